"""The command line: ``hbm-jax fit | simulate | report | doctor``.

Exit status: 0 the posterior is usable, 3 it is not, 2 bad input, 130 interrupted.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hbm_jax.configuration import ConfigError, defaults, merged, read_toml, set_key

USABLE, BAD_INPUT, NOT_USABLE, INTERRUPTED = 0, 2, 3, 130
TABLES = (".csv", ".ecsv", ".fits")  # that simulate writes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where omitted.
    """
    arguments = _parser().parse_args(argv)
    from hbm_jax.inference.devices import use_every_core

    use_every_core()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nhbm-jax: interrupted; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        # Ours and the libraries' refusals of bad input; anything else is a bug and keeps its traceback.
        print(f"hbm-jax: {error}", file=sys.stderr)
        return BAD_INPUT
    except RuntimeError as error:
        from hbm_jax.inference.target import StartError

        if not isinstance(error, StartError):
            raise
        print(f"hbm-jax: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="hbm-jax", description="Hierarchical Bayesian models for populations of astrophysical objects."
    )
    parser.add_argument("--version", action="version", version=f"hbm_jax {version('hbm_jax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a model to a sample and write a run folder with a report")
    _model_arguments(fit)
    fit.add_argument("--data", metavar="NAME|FILE", help="a bundled sample (jla) or a CSV, ECSV or FITS table")
    fit.add_argument("--out", metavar="DIR", help="run folder to write")
    fit.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    fit.add_argument("--seed", type=int)
    fit.add_argument("--num-chains", type=int)
    fit.add_argument("--num-warmup", type=int)
    fit.add_argument("--num-samples", type=int, help="draws a chain; until the posterior is good where omitted")
    fit.add_argument("--quiet", action="store_true", help="no live line")
    fit.add_argument("--no-report", action="store_true", help="posterior and summary only, no figures")
    fit.set_defaults(run=_fit)

    simulate = commands.add_parser("simulate", help="draw a simulated sample on the design of a real one")
    _model_arguments(simulate)
    simulate.add_argument("--design", metavar="NAME|FILE", help="sample that gives redshifts and errors", default=None)
    simulate.add_argument("--seed", type=int)
    simulate.add_argument("--out", metavar="FILE", help="table to write: .csv, .ecsv or .fits", required=True)
    simulate.add_argument("--overwrite", action="store_true", help="replace a file that is already there")
    simulate.set_defaults(run=_simulate)

    report = commands.add_parser("report", help="write the figures and the report of a run folder again")
    report.add_argument("folder", metavar="DIR", type=Path)
    report.set_defaults(run=_report)

    doctor = commands.add_parser("doctor", help="versions, devices, precision, known bad combinations")
    doctor.set_defaults(run=_doctor)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="supernova")
    parser.add_argument("--config", metavar="FILE", help="TOML file with anything the flags can say")
    parser.add_argument("--cosmology", metavar="NAME", help="lcdm, olcdm, wcdm, owcdm or w0wacdm")
    parser.add_argument("--latents", metavar="NAME", help="marginal, noncentred or centred")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="e.g. prior.w0='Uniform(-2, 0)', prior.H0=73, model.mass_step=false, columns.m_b=mB, "
        "sample.target_accept_prob=0.9, and truth.Om0=0.3 for simulate; may be repeated",
    )


def _configuration(arguments) -> dict:
    """Defaults, then the TOML file, then flags, then --set."""
    config = defaults()
    if arguments.config:
        config = merged(config, read_toml(arguments.config), arguments.config)
    flags = {
        "model.name": arguments.model,
        "model.cosmology": arguments.cosmology,
        "model.latents": arguments.latents,
        "data.source": getattr(arguments, "data", None) or getattr(arguments, "design", None),
        "sample.seed": arguments.seed,
        "sample.num_chains": getattr(arguments, "num_chains", None),
        "sample.num_warmup": getattr(arguments, "num_warmup", None),
        "sample.num_samples": getattr(arguments, "num_samples", None),
    }
    for key, value in flags.items():
        if value is not None:
            set_key(config, key, value)
    for assignment in arguments.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE, found no '='.")
        set_key(config, key.strip(), value.strip())
    return config


def _model_and_data(config):
    """Build the model and read its data; every complaint about either comes before any work."""
    from hbm_jax.models.priors import choose
    from hbm_jax.runs import MODELS

    if not config["model"].get("name"):
        raise ConfigError(f"No model named: expected one of {', '.join(MODELS)}, as in 'hbm-jax fit supernova'.")
    entry = MODELS[choose("model", config["model"]["name"], tuple(MODELS))]
    options = {key: value for key, value in config["model"].items() if key != "name"}
    for key in options:
        choose(f"option of the model {config['model']['name']}", key, entry.options)
        default = getattr(entry.model, key)
        if not isinstance(options[key], type(default)):
            kind = "true or false" if isinstance(default, bool) else "text"
            raise ConfigError(f"model.{key}: expected {kind}, found {options[key]!r}.")
    model = entry.model(**options, priors=config["prior"])
    source, columns = config["data"]["source"], config["columns"]
    if source in entry.bundled:
        if columns:
            raise ConfigError(f"columns: expected none for the bundled sample {source!r}, found {', '.join(columns)}.")
        return model, entry.bundled[source]()
    if not Path(source).exists():
        raise ConfigError(
            f"data: expected a bundled sample ({', '.join(entry.bundled)}) or a file, found {source!r}, which is "
            "neither."
        )
    return model, entry.read(source, columns=columns or None)


def _fit(arguments) -> int:
    from hbm_jax import inference, runs
    from hbm_jax.inference.results import Fit

    config = _configuration(arguments)
    model, sample = _model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}")
    runs.refuse_other_run(folder, arguments.overwrite)
    if not arguments.no_report:
        import hbm_jax.plotting  # noqa: F401 - a missing extra is said before the work, not after
    folder.mkdir(parents=True, exist_ok=True)  # so is a folder that cannot be written
    print(f"{model.description}\n{sample.describe()}\n", flush=True)
    options = {key: value for key, value in config["sample"].items() if value is not None}
    try:
        fit: Fit = inference.sample(model, sample, progress=not arguments.quiet, **options)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: it holds the run that was to be replaced
            folder.rmdir()
        raise
    runs.write(fit, folder, config | {"prior": model.to_config()["priors"]})
    print(f"\n{fit.verdict}\n\n{fit.table()}\n")
    print(f"posterior  {folder / runs.POSTERIOR}")
    if not arguments.no_report:
        print(f"report     {runs.write_report(fit, folder)}")
    return USABLE if fit.verdict.usable else NOT_USABLE


def _simulate(arguments) -> int:
    import jax

    config = _configuration(arguments)
    model, design = _model_and_data(config)
    out = Path(arguments.out)
    if out.suffix not in TABLES:
        raise ConfigError(f"{out}: expected a table name ending in {', '.join(TABLES)}, found {out.suffix!r}.")
    if out.exists() and not arguments.overwrite:
        raise FileExistsError(f"{out}: expected a new file, found one that is there. Pass --overwrite to replace it.")
    wanted = {key: _true_value(model, key, value) for key, value in config["truth"].items()}
    simulated, truth = model.simulate(jax.random.key(config["sample"]["seed"]), design, wanted)
    table = simulated.to_table()
    known = {key: float(value) for key, value in truth.items() if value.ndim == 0}
    # A FITS header holds no table of names, but any text.
    table.meta["truth"] = json.dumps(known) if out.suffix == ".fits" else known
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".part-{out.name}")
    try:
        table.write(part, overwrite=True)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    print(f"{len(simulated)} simulated objects in {out}")
    print("truth: " + ", ".join(f"{key} = {value:.4g}" for key, value in known.items()))
    return USABLE


def _true_value(model, key, value) -> float:
    """Return a true value as a number that its prior allows; unknown names are left for the model to refuse."""
    prior = model.all_priors.get(key)
    try:
        number = float(value)
        if not hasattr(prior, "support") or bool(prior.support(number)):
            return number
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"truth.{key}: expected a number that its prior allows, found {value!r}.")


def _report(arguments) -> int:
    from hbm_jax import runs

    fit = runs.load(arguments.folder)
    print(fit.verdict)
    print(f"report     {runs.write_report(fit, arguments.folder)}")
    return USABLE if fit.verdict.usable else NOT_USABLE


def _doctor(arguments) -> int:
    from hbm_jax.doctor import examine

    lines, problems = examine()
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    return BAD_INPUT if problems else USABLE


if __name__ == "__main__":
    sys.exit(main())
