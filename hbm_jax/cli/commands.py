"""The commands of the command line: their arguments, and what each does."""

import argparse
import contextlib
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from hbm_jax.cli import absorption, bench
from hbm_jax.cli.exit_status import BAD_INPUT, INTERRUPTED, NOT_USABLE, USABLE
from hbm_jax.cli.interruption import Ended, last_words
from hbm_jax.configuration import ConfigError, defaults, merged, read_toml, set_key
from hbm_jax.simulation.configuration import TABLES, in_words, refuse_bad_table, write_table
from hbm_jax.validation import DataError

CERTIFICATE, FIGURE = "certificate.json", "calibration.png"  # that calibrate writes
CALIBRATED = ("seed", "num_chains", "num_warmup", "max_num_samples", "target_accept_prob", "dtype")  # of [sample]
ENDS = ("num_samples", "until", "max_num_samples", "max_seconds")  # what resume may change of [sample]


def run(argv: Sequence[str] | None) -> int:
    """Read the arguments and run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from hbm_jax.inference.compilation.cache import use_compilation_cache
    from hbm_jax.inference.compilation.devices import use_every_core

    use_every_core()
    use_compilation_cache()
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="hbm-jax", description="Hierarchical Bayesian models for populations of astrophysical objects."
    )
    parser.add_argument("--version", action="version", version=f"hbm_jax {version('hbm_jax')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="fit a model to a sample and write a run folder with a report")
    _model_arguments(fit)
    fit.add_argument(
        "--data", "--catalog", metavar="NAME|FILE", help="a bundled sample or a table, for example CSV, ECSV or FITS"
    )
    fit.add_argument("--out", metavar="DIR", help="run folder to write")
    fit.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    fit.add_argument("--seed", type=int)
    fit.add_argument("--num-chains", type=int)
    fit.add_argument("--num-warmup", type=int)
    _end_arguments(fit)
    fit.set_defaults(run=_fit)

    resume = commands.add_parser("resume", help="continue a run that was stopped, or draw more")
    resume.add_argument("folder", metavar="DIR", type=Path, help="run folder, or the checkpoint folder of a Python run")
    resume.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="another end: sample.until=2000, sample.until.w0=2000, sample.max_num_samples=50000; may be repeated",
    )
    _end_arguments(resume)
    resume.set_defaults(run=_resume)

    simulate = commands.add_parser(
        "simulate", help="draw a simulated sample on the design of a real one, or a population of afterglows or bursts"
    )
    _model_arguments(simulate)
    simulate.add_argument(
        "--design",
        metavar="NAME|FILE",
        help="sample whose design is taken: everything but what was observed",
        default=None,
    )
    simulate.add_argument("--seed", type=int)
    simulate.add_argument(
        "--out", metavar="FILE|DIR", help=f"table to write: {', '.join(TABLES)}; folder for spectra", required=True
    )
    simulate.add_argument("--num", metavar="N", type=int, help="objects to simulate, where no design says it")
    simulate.add_argument("--rmf", metavar="FILE", help="redistribution matrix of the instrument of afterglows")
    simulate.add_argument("--arf", metavar="FILE", help="its effective area, where the matrix does not hold it")
    simulate.add_argument("--overwrite", action="store_true", help="replace a file that is already there")
    simulate.set_defaults(run=_simulate)

    calibrate = commands.add_parser("calibrate", help="test a model on data that it simulates from its own priors")
    _model_arguments(calibrate)
    calibrate.add_argument(
        "--design",
        metavar="NAME|FILE",
        help="sample whose design is taken: everything but what was observed",
        default=None,
    )
    calibrate.add_argument("--subset", metavar="N", type=int, help="only so many of its objects, evenly spaced")
    calibrate.add_argument("--num-replicates", metavar="N", type=int, default=512, help="simulated samples (512)")
    calibrate.add_argument("--out", metavar="DIR", help="folder to write")
    calibrate.add_argument("--overwrite", action="store_true", help="write into a folder that is already there")
    calibrate.add_argument("--seed", type=int)
    calibrate.add_argument("--num-chains", type=int)
    calibrate.add_argument("--num-warmup", type=int)
    calibrate.add_argument("--quiet", action="store_true", help="do not show progress")
    calibrate.set_defaults(run=_calibrate)

    report = commands.add_parser("report", help="write the figures and the report of a run folder again")
    report.add_argument("folder", metavar="DIR", type=Path)
    report.set_defaults(run=_report)

    absorption.add_command(commands)
    bench.add_command(commands)

    doctor = commands.add_parser("doctor", help="versions, devices, precision, known bad combinations")
    doctor.set_defaults(run=_doctor)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    from hbm_jax.registry import MODELS, flags, reader_flags

    parser.add_argument("model", nargs="?", help=", ".join(MODELS))
    parser.add_argument("--config", metavar="FILE", help="TOML file with anything the flags can say")
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
    parser.add_argument("--num-samples", type=int, help="draws a chain; until the posterior is good where omitted")
    parser.add_argument("--max-seconds", type=float, help="budget of time, of this and of each resume")
    parser.add_argument("--quiet", action="store_true", help="do not show progress")
    parser.add_argument("--no-report", action="store_true", help="posterior and summary only, no figures")


def _configuration(arguments) -> dict:
    """Defaults, then the TOML file, then flags, then --set."""
    config = defaults()
    if arguments.config:
        config = merged(config, read_toml(arguments.config), arguments.config)
    given = vars(arguments)
    flags = {
        "model.name": given["model"],
        "data.source": given.get("data") or given.get("design"),
        **{name: value for name, value in given.items() if name.startswith(("model.", "data."))},
        **{f"sample.{name}": given.get(name) for name in ("seed", "num_chains", "num_warmup", *ENDS)},
    }
    for key, value in flags.items():
        if value is not None:
            # Of a flag that may be repeated; once, it may be a word that has a meaning of its own.
            set_key(config, key, value[0] if isinstance(value, list) and len(value) == 1 else value)
    for key, value in _assignments(arguments):
        set_key(config, key, value)
    return config


def _assignments(arguments) -> Iterator[tuple[str, str]]:
    for assignment in arguments.set:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE, found no '='.")
        yield key.strip(), value.strip()


# How what an error proposes in Python is said on the command line.
_AS_OPTIONS = {
    "leave_out=": "--leave-out NAME for each, or --leave-out bad.",
    "columns={": "--set columns.KEY=NAME for each.",
    "mass_step=False": "--no-mass-step.",
}


def _model_and_data(config):
    """Build the model and read its data; every complaint about either comes before any work."""
    from hbm_jax import registry

    name = config["model"].get("name")
    entry = registry.named(name)
    options = {key: value for key, value in config["model"].items() if key != "name"}
    model = entry.build(options, config["prior"])
    config["data"].setdefault("source", entry.default_source)  # so that the run's own file says which it was
    try:
        return model, entry.load(config["data"], config["columns"])
    except DataError as error:
        said = [words for sign, words in _AS_OPTIONS.items() if sign in str(error)]
        if not said:
            raise
        between = "\n" if "\n" in str(error) else " "
        raise DataError(f"{error}{between}On the command line: {' '.join(said)}") from error


def _fit(arguments) -> int:
    from hbm_jax import inference, runs

    config = _configuration(arguments)
    model, sample = _model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}")
    runs.refuse_other_run(folder, arguments.overwrite)
    _before_drawing(arguments, model, sample)
    options = {key: value for key, value in config["sample"].items() if value is not None}
    with runs.new_checkpoint(folder, config) as checkpoint, _kept(folder, new=True):
        fit = inference.sample(model, sample, progress=not arguments.quiet, checkpoint=checkpoint, **options)
    return _after_drawing(arguments, fit, folder, config)


def _resume(arguments) -> int:
    from hbm_jax import runs

    checkpoint = runs.checkpoint_of(arguments.folder) or arguments.folder
    folder = checkpoint.parent if checkpoint.name == runs.CHECKPOINT else checkpoint
    wanted: dict = {"sample": {}}
    for name in ENDS:
        if (value := vars(arguments).get(name)) is not None:
            set_key(wanted, f"sample.{name}", value)
    for key, value in _assignments(arguments):
        if key.split(".")[:2] not in [["sample", name] for name in ENDS]:
            ends = ", ".join(f"sample.{name}" for name in ENDS)
            raise ConfigError(f"--set {key}: expected one of {ends}, because only the end of a run can be changed.")
        set_key(wanted, key, value)
    changed = wanted["sample"]
    program, args = runs.rebuilt(checkpoint)
    config = _configuration_of(runs.config_of(checkpoint), changed)
    _before_drawing(arguments, program, *args)
    with _kept(folder):
        fit = runs.resume(checkpoint, program, *args, progress=not arguments.quiet, **changed)
    return _after_drawing(arguments, fit, folder, config)


def _configuration_of(path: Path | None, changed: dict) -> dict | None:
    """Read what a run was begun with, and give it the end that was asked for now; None for a run begun in Python."""
    if path is None:
        return None
    config = merged(defaults(), read_toml(path), str(path))
    if changed.keys() & {"num_samples", "until"}:
        config["sample"] |= {"num_samples": None, "until": None}
    config["sample"] |= changed
    return config


def _before_drawing(arguments, model, sample) -> None:
    if not arguments.no_report:
        import hbm_jax.plotting  # noqa: F401 - a missing extra is said before the work, not after
    print(f"{model.description}\n{sample.describe()}\n", flush=True)


@contextlib.contextmanager
def _kept(folder: Path, reason: str = "interrupted", *, new: bool = False) -> Iterator[None]:
    """Say how a run goes on that is stopped before it has a fit, or before that is written, where it can.

    Parameters
    ----------
    folder : path
        Of the run.
    reason : str
        What is interrupted, where the interruption does not say so itself.
    new : bool
        Whether the checkpoint is one that `runs.new_checkpoint` has made.
    """
    from hbm_jax import runs

    def how_to_go_on() -> str:
        if new:
            runs.settle_checkpoint(folder)
        return (
            f"interrupted; continue with\n{command}" if runs.can_go_on(folder) else "interrupted; nothing was written."
        )

    command = runs.resume_command(folder)
    with last_words(how_to_go_on):
        try:
            yield
        except (KeyboardInterrupt, Ended) as stopped:
            if not runs.can_go_on(folder):
                raise
            raise KeyboardInterrupt(f"{getattr(stopped, 'reason', reason)}; continue with\n{command}") from None


def _after_drawing(arguments, fit, folder: Path, config: dict | None) -> int:
    """Write the run folder and say what came out."""
    from hbm_jax import runs

    again, stopped = runs.resume_command(folder), fit.run["stopped"]
    interrupted = stopped == "interrupted"
    if stopped.startswith("stopped because"):  # the disk is full; what is in memory may fit yet
        print(f"hbm-jax: {stopped}", file=sys.stderr)
    with _kept(folder, "interrupted while the results were written"):
        try:
            runs.write(fit, folder, config)
        except Exception as error:
            error.add_note(f"All draws are in the checkpoint; to put the results together again:\n{again}")
            raise
        print(f"\n{fit.verdict}\n\n{fit.table()}\n")
        print(f"posterior  {folder / runs.POSTERIOR}", flush=True)
        if not arguments.no_report and not interrupted:
            print(f"report     {runs.write_report(fit, folder)}")
    if interrupted or stopped.startswith("stopped: the time budget"):
        print(f"{stopped.removeprefix('stopped: ')}; continue with\n{again}")
    if interrupted:
        return INTERRUPTED
    return USABLE if fit.verdict.usable else NOT_USABLE


def _simulate(arguments) -> int:
    import jax

    from hbm_jax import registry

    config = _configuration(arguments)
    entry = registry.named(config["model"].get("name"))
    out = Path(arguments.out)
    of_a_population = {name: getattr(arguments, name) for name in ("num", "rmf", "arf")}
    if entry.simulate is not None and not (entry.takes_design and config["data"]):
        print(entry.simulate(config, out, **of_a_population, overwrite=arguments.overwrite))
        return USABLE
    _refuse_population(config, of_a_population)
    model, design = _model_and_data(config)
    refuse_bad_table(out, arguments.overwrite)
    wanted = {key: _true_value(model, key, value) for key, value in config["truth"].items()}
    simulated, truth = model.simulate(jax.random.key(config["sample"]["seed"]), design, wanted)
    write_table(simulated.to_table(), truth, out)
    print(f"{len(simulated)} simulated objects in {out}\n{in_words(truth)}")
    return USABLE


def _refuse_population(config, given) -> None:
    """Refuse what only a population without a design has a use for."""
    names = [f"--{name}" for name, value in given.items() if value is not None]
    names += [f"population.{name}" for name in config["population"]]
    if names:
        raise ConfigError(
            f"{names[0]}: expected none for {config['model']['name']}, which is simulated on the design of a sample "
            "(--design)."
        )


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


def _calibrate(arguments) -> int:
    from hbm_jax import inference, plotting, runs  # plotting now: a missing extra is said before the work, not after

    config = _configuration(arguments)
    model, design = _model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}-calibration")
    runs.refuse_other_run(folder, arguments.overwrite)
    if arguments.subset is not None:
        design = _spread_over(design, arguments.subset)
    usual = defaults()["sample"]
    options = {name: value for name, value in config["sample"].items() if value != usual[name] or name == "seed"}
    for name in options:
        if name not in CALIBRATED:
            raise ConfigError(f"sample.{name}: expected none for calibrate, which takes {', '.join(CALIBRATED)}.")
    print(f"{model.description}\n{design.describe()}\n", flush=True)
    result = inference.calibrate(
        model, design, num_replicates=arguments.num_replicates, progress=not arguments.quiet, **options
    )
    certificate = result.save(folder / CERTIFICATE)
    plotting.calibration(result).savefig(folder / FIGURE, dpi=200)
    table = result.table.to_string(formatters={"p": "{:.2g}".format}, float_format="{:.3f}".format)
    print(f"\n{result}\n\n{table}\n\ncertificate  {certificate}\nfigure       {folder / FIGURE}")
    return USABLE if result.calibrated else NOT_USABLE


def _spread_over(sample, wanted: int):
    """Return so many objects of a sample, evenly spaced in its order."""
    if not 1 <= wanted <= len(sample):
        raise ConfigError(f"--subset: expected 1 to {len(sample)}, the number of objects; found {wanted}.")
    last = max(wanted - 1, 1)
    return sample.subset([i * (len(sample) - 1) // last for i in range(wanted)])


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
