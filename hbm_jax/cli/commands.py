"""Commands of the command line and their arguments."""

import argparse
import contextlib
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from hbm_jax.cli import absorption, bench
from hbm_jax.cli.exit_status import BAD_INPUT, INTERRUPTED, NOT_USABLE, USABLE
from hbm_jax.cli.interruption import Terminated, exit_message
from hbm_jax.configuration import ConfigError, defaults, merged, read_toml, sample_keywords, set_key
from hbm_jax.simulation.configuration import TABLES, format_truth, refuse_bad_table, write_table
from hbm_jax.validation import DataError

CERTIFICATE, FIGURE = "certificate.json", "calibration.png"  # output of calibrate
CALIBRATION_OPTIONS = (
    "seed",
    "num_chains",
    "num_warmup",
    "max_num_samples",
    "target_accept_prob",
    "dtype",
)  # of [sample], for calibrate
END_OPTIONS = ("num_samples", "until", "max_num_samples", "max_seconds")  # of [sample], which resume may change


def run(argv: Sequence[str] | None) -> int:
    """Parse the arguments, run the command and return the exit status."""
    arguments = _parser().parse_args(argv)
    from hbm_jax.inference.compilation.cache import use_compilation_cache
    from hbm_jax.inference.compilation.devices import use_every_core

    use_every_core()
    use_compilation_cache()
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="hbm-jax", description="Hierarchical Bayesian models for populations of astrophysical objects."
    )
    parser.add_argument("--version", action="version", version=f"hbm_jax {version('hbm_jax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_fit(commands)
    _add_resume(commands)
    _add_simulate(commands)
    _add_calibrate(commands)

    report = commands.add_parser("report", help="rewrite the figures and the report of a run folder")
    report.add_argument("folder", metavar="DIR", type=Path)
    report.set_defaults(run=_report)

    absorption.add_command(commands)
    bench.add_command(commands)

    doctor = commands.add_parser("doctor", help="show versions, devices and precision, and check for known problems")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_fit(commands) -> None:
    """Add the parser of ``fit``."""
    fit = commands.add_parser("fit", help="fit a model to data and write a run folder with a report")
    _model_arguments(fit)
    fit.add_argument(
        "--data", "--catalog", metavar="NAME|FILE", help="bundled sample, or table such as CSV, ECSV or FITS"
    )
    fit.add_argument("--out", metavar="DIR", help="run folder to write")
    fit.add_argument("--overwrite", action="store_true", help="replace an existing run")
    fit.add_argument("--seed", type=int)
    fit.add_argument("--num-chains", type=int)
    fit.add_argument("--num-warmup", type=int)
    _end_arguments(fit)
    fit.set_defaults(run=_fit)


def _add_resume(commands) -> None:
    """Add the parser of ``resume``."""
    resume = commands.add_parser("resume", help="continue a run that was stopped, or draw more samples")
    resume.add_argument("folder", metavar="DIR", type=Path, help="run folder, or the checkpoint folder of a Python run")
    resume.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="new stopping criterion: sample.until=2000, sample.until.w0=2000, sample.max_num_samples=50000; may be "
        "repeated",
    )
    _end_arguments(resume)
    resume.set_defaults(run=_resume)


def _add_simulate(commands) -> None:
    """Add the parser of ``simulate``."""
    simulate = commands.add_parser(
        "simulate", help="simulate data with the design of an existing sample, or a population of afterglows or bursts"
    )
    _model_arguments(simulate)
    simulate.add_argument(
        "--design",
        metavar="NAME|FILE",
        help="sample whose design (everything except the observed values) is used",
        default=None,
    )
    simulate.add_argument("--seed", type=int)
    simulate.add_argument(
        "--out", metavar="FILE|DIR", help=f"table to write ({', '.join(TABLES)}), or folder for spectra", required=True
    )
    simulate.add_argument(
        "--num", metavar="N", type=int, help="number of objects to simulate, for populations without a design"
    )
    simulate.add_argument("--rmf", metavar="FILE", help="redistribution matrix for simulated afterglows")
    simulate.add_argument("--arf", metavar="FILE", help="effective area, if the matrix does not include it")
    simulate.add_argument("--overwrite", action="store_true", help="replace existing files")
    simulate.set_defaults(run=_simulate)


def _add_calibrate(commands) -> None:
    """Add the parser of ``calibrate``."""
    calibrate = commands.add_parser(
        "calibrate", help="test a model by simulation-based calibration, with data simulated from its priors"
    )
    _model_arguments(calibrate)
    calibrate.add_argument(
        "--design",
        metavar="NAME|FILE",
        help="sample whose design (everything except the observed values) is used",
        default=None,
    )
    calibrate.add_argument("--subset", metavar="N", type=int, help="use only N objects of the design, evenly spaced")
    calibrate.add_argument(
        "--num-replicates", metavar="N", type=int, default=512, help="number of simulated data sets (512)"
    )
    calibrate.add_argument("--out", metavar="DIR", help="folder to write")
    calibrate.add_argument("--overwrite", action="store_true", help="write into an existing folder")
    calibrate.add_argument("--seed", type=int)
    calibrate.add_argument("--num-chains", type=int)
    calibrate.add_argument("--num-warmup", type=int)
    calibrate.add_argument("--quiet", action="store_true", help="do not show progress")
    calibrate.set_defaults(run=_calibrate)


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that configure model and data."""
    from hbm_jax.registry import MODELS, flags, reader_flags

    parser.add_argument("model", nargs="?", help=", ".join(MODELS))
    parser.add_argument("--config", metavar="FILE", help="TOML file with the same options as the flags")
    for name, (kind, text) in flags().items():
        dashed = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(dashed, dest=f"model.{name}", action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(dashed, dest=f"model.{name}", metavar=name.upper(), help=text)
    for name, (kind, text) in reader_flags().items():
        action = "append" if any(typing.get_origin(part) is list for part in typing.get_args(kind)) else "store"
        metavar = "NUMBER" if name == "missing" else "NAME" if action == "append" else "DIR"
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=f"data.{name}", metavar=metavar, action=action, help=text
        )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="e.g. prior.w0='Uniform(-2, 0)', prior.H0=73, model.mass_step=false, columns.m_b=mB, data.format=ascii, "
        "data.energies='[0.5, 7]', sample.until.w0=1000, sample.target_accept_prob=0.9, and truth.Om0=0.3, "
        "population.exposure=5000 for simulate; may be repeated",
    )


def _end_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that set when sampling ends, and those of the output."""
    parser.add_argument(
        "--num-samples", type=int, help="draws per chain; by default sampling continues until the posterior is usable"
    )
    parser.add_argument("--max-seconds", type=float, help="time budget of this command, and of each resume")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--no-report", action="store_true", help="write posterior and summary only, no figures")


def _configuration(arguments) -> dict:
    """Return the configuration merged from defaults, TOML file, flags and --set, in order of increasing precedence."""
    config = defaults()
    if arguments.config:
        config = merged(config, read_toml(arguments.config), arguments.config)
    options = vars(arguments)
    flags = {
        "model.name": options["model"],
        "data.source": options.get("data") or options.get("design"),
        **{name: value for name, value in options.items() if name.startswith(("model.", "data."))},
        **{f"sample.{name}": options.get(name) for name in ("seed", "num_chains", "num_warmup", *END_OPTIONS)},
    }
    for key, value in flags.items():
        if value is not None:
            # A repeatable flag given once is passed as a string, since a keyword such as "bad" is not a list.
            set_key(config, key, value[0] if isinstance(value, list) and len(value) == 1 else value)
    for key, value in _assignments(arguments):
        set_key(config, key, value)
    return config


def _assignments(arguments) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of --set."""
    for assignment in arguments.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE, found no '='.")
        yield key.strip(), value.strip()


# Command-line equivalents of the remedies that errors propose in Python.
_HINTS = {
    "leave_out=": "--leave-out NAME for each, or --leave-out bad.",
    "columns={": "--set columns.KEY=NAME for each.",
    "mass_step=False": "--no-mass-step.",
}


def _model_and_data(config):
    """Build the model and read its data, so that errors in either are raised before sampling."""
    from hbm_jax import registry

    name = config["model"].get("name")
    entry = registry.named(name)
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = entry.build(options, config["prior"])
    config["data"].setdefault("source", entry.default_source)  # recorded in the configuration of the run
    try:
        return model, entry.load(config["data"], config["columns"])
    except DataError as error:
        hints = [hint for pattern, hint in _HINTS.items() if pattern in str(error)]
        if not hints:
            raise
        separator = "\n" if "\n" in str(error) else " "
        raise DataError(f"{error}{separator}On the command line: {' '.join(hints)}") from error


def _fit(arguments) -> int:
    """Fit a model and write the run folder."""
    from hbm_jax import inference, runs

    config = _configuration(arguments)
    model, sample = _model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}")
    runs.check_run_folder(folder, arguments.overwrite)
    _before_sampling(arguments, model, sample)
    options = sample_keywords(config)
    with runs.new_checkpoint(folder, config) as checkpoint, _resume_hint(folder, new=True):
        fit = inference.sample(model, sample, progress=not arguments.quiet, checkpoint=checkpoint, **options)
    return _after_sampling(arguments, fit, folder, config)


def _resume(arguments) -> int:
    """Continue a run and write the run folder."""
    from hbm_jax import runs

    checkpoint = runs.checkpoint_of(arguments.folder) or arguments.folder
    folder = checkpoint.parent if checkpoint.name == runs.CHECKPOINT else checkpoint
    new_config: dict = {"sample": {}}
    for name in END_OPTIONS:
        if (value := vars(arguments).get(name)) is not None:
            set_key(new_config, f"sample.{name}", value)
    for key, value in _assignments(arguments):
        if key.split(".")[:2] not in [["sample", name] for name in END_OPTIONS]:
            ends = ", ".join(f"sample.{name}" for name in END_OPTIONS)
            raise ConfigError(f"--set {key}: expected one of {ends}, because resume can change only when a run ends.")
        set_key(new_config, key, value)
    changes = new_config["sample"]
    program, args = runs.rebuild_program(checkpoint)
    config = _configuration_of(runs.config_of(checkpoint), changes)
    _before_sampling(arguments, program, *args)
    with _resume_hint(folder):
        fit = runs.resume(checkpoint, program, *args, progress=not arguments.quiet, **changes)
    return _after_sampling(arguments, fit, folder, config)


def _configuration_of(path: Path | None, changes: dict) -> dict | None:
    """Return the configuration of a run with changed stopping criteria; None for a run started in Python."""
    if path is None:
        return None
    config = merged(defaults(), read_toml(path), str(path))
    if changes.keys() & {"num_samples", "until"}:
        config["sample"] |= {"num_samples": None, "until": None}
    config["sample"] |= changes
    return config


def _before_sampling(arguments, model, sample) -> None:
    """Print the model and the data; fail now if a package for the report is missing."""
    if not arguments.no_report:
        import hbm_jax.plotting  # noqa: F401 - fails before sampling where an extra is missing
    print(f"{model.description}\n{sample.describe()}\n", flush=True)


@contextlib.contextmanager
def _resume_hint(folder: Path, reason: str = "interrupted", *, new: bool = False) -> Iterator[None]:
    """Tell the user how to resume a run that is interrupted in this context, if it can be resumed.

    Parameters
    ----------
    folder : path
        Run folder.
    reason : str
        Description of the interruption, unless the exception has its own.
    new : bool
        Whether the checkpoint was made by `runs.new_checkpoint`.
    """
    from hbm_jax import runs

    def message() -> str:
        if new:
            runs.settle_checkpoint(folder)
        return (
            f"interrupted; continue with\n{command}"
            if runs.is_resumable(folder)
            else "interrupted; nothing was written."
        )

    command = runs.resume_command(folder)
    with exit_message(message):
        try:
            yield
        except (KeyboardInterrupt, Terminated) as interruption:
            if not runs.is_resumable(folder):
                raise
            raise KeyboardInterrupt(f"{getattr(interruption, 'reason', reason)}; continue with\n{command}") from None


def _after_sampling(arguments, fit, folder: Path, config: dict | None) -> int:
    """Write the run folder, print the results and return the exit status."""
    from hbm_jax import runs

    command, stopped = runs.resume_command(folder), fit.run["stopped"]
    interrupted = stopped == "interrupted"
    if stopped.startswith("stopped because"):  # the disk is full, but the results may still fit
        print(f"hbm-jax: {stopped}", file=sys.stderr)
    with _resume_hint(folder, "interrupted while the results were written"):
        try:
            runs.write(fit, folder, config)
        except Exception as error:
            error.add_note(f"All draws are in the checkpoint; to write the results again:\n{command}")
            raise
        print(f"\n{fit.verdict}\n\n{fit.table()}\n")
        print(f"posterior  {folder / runs.POSTERIOR}", flush=True)
        if not arguments.no_report and not interrupted:
            print(f"report     {runs.write_report(fit, folder)}")
    if interrupted or stopped.startswith("stopped: the time budget"):
        print(f"{stopped.removeprefix('stopped: ')}; continue with\n{command}")
    if interrupted:
        return INTERRUPTED
    return USABLE if fit.verdict.usable else NOT_USABLE


def _simulate(arguments) -> int:
    """Simulate a population, or data with the design of a sample."""
    import jax

    from hbm_jax import registry

    config = _configuration(arguments)
    entry = registry.named(config["model"].get("name"))
    out = Path(arguments.out)
    population_flags = {name: getattr(arguments, name) for name in ("num", "rmf", "arf")}
    if entry.simulate is not None and not (entry.takes_design and config["data"]):
        print(entry.simulate(config, out, **population_flags, overwrite=arguments.overwrite))
        return USABLE
    _reject_population(config, population_flags)
    model, design = _model_and_data(config)
    refuse_bad_table(out, arguments.overwrite)
    true_values = {key: _true_value(model, key, value) for key, value in config["truth"].items()}
    simulated, truth = model.simulate(jax.random.key(config["sample"]["seed"]), design, true_values)
    write_table(simulated.to_table(), truth, out)
    print(f"{len(simulated)} simulated objects in {out}\n{format_truth(truth)}")
    return USABLE


def _reject_population(config, flags) -> None:
    """Raise `ConfigError` for options that apply only to populations without a design."""
    names = [f"--{name}" for name, value in flags.items() if value is not None]
    names += [f"population.{name}" for name in config["population"]]
    if names:
        raise ConfigError(
            f"{names[0]}: expected no options of populations for {config['model']['name']}, which is simulated with "
            f"the design of a sample (--design); found {', '.join(names)}."
        )


def _true_value(model, key, value) -> float:
    """Return a true value as a number within the support of its prior; the model rejects unknown names."""
    prior = model.all_priors.get(key)
    try:
        number = float(value)
        if not hasattr(prior, "support") or bool(prior.support(number)):
            return number
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"truth.{key}: expected a number within the support of its prior, found {value!r}.")


def _calibrate(arguments) -> int:
    """Run simulation-based calibration of a model; write the certificate and its figure."""
    from hbm_jax import inference, plotting, runs  # plotting fails here, before sampling, where an extra is missing

    config = _configuration(arguments)
    model, design = _model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}-calibration")
    runs.check_run_folder(folder, arguments.overwrite)
    if arguments.subset is not None:
        design = _evenly_spaced(design, arguments.subset)
    default_options = defaults()["sample"]
    options = {
        name: value for name, value in config["sample"].items() if value != default_options[name] or name == "seed"
    }
    for name in options:
        if name not in CALIBRATION_OPTIONS:
            raise ConfigError(
                f"sample.{name}: expected one of {', '.join(CALIBRATION_OPTIONS)} for calibrate; found {name!r}."
            )
    print(f"{model.description}\n{design.describe()}\n", flush=True)
    result = inference.calibrate(
        model, design, num_replicates=arguments.num_replicates, progress=not arguments.quiet, **options
    )
    certificate = result.save(folder / CERTIFICATE)
    plotting.calibration(result).savefig(folder / FIGURE, dpi=200)
    table = result.table.to_string(formatters={"p": "{:.2g}".format}, float_format="{:.3f}".format)
    print(f"\n{result}\n\n{table}\n\ncertificate  {certificate}\nfigure       {folder / FIGURE}")
    return USABLE if result.calibrated else NOT_USABLE


def _evenly_spaced(sample, num: int):
    """Return `num` objects of a sample, evenly spaced in its order."""
    if not 1 <= num <= len(sample):
        raise ConfigError(f"--subset: expected 1 to {len(sample)}, the number of objects; found {num}.")
    last = max(num - 1, 1)
    return sample.subset([i * (len(sample) - 1) // last for i in range(num)])


def _report(arguments) -> int:
    """Rewrite figures and report of a run folder."""
    from hbm_jax import runs

    fit = runs.load(arguments.folder)
    print(fit.verdict)
    print(f"report     {runs.write_report(fit, arguments.folder)}")
    return USABLE if fit.verdict.usable else NOT_USABLE


def _doctor(arguments) -> int:
    """Print the environment and known problems."""
    from hbm_jax.doctor import examine

    lines, problems = examine()
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    return BAD_INPUT if problems else USABLE
