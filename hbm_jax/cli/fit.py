"""``hbm-jax fit`` and ``hbm-jax resume``: sampling a model and writing the run folder."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hbm_jax.cli.arguments import END_OPTIONS, Parser, assignments, flags
from hbm_jax.cli.exit_status import INTERRUPTED, NOT_USABLE, in_flags, status_of
from hbm_jax.cli.inputs import configuration_of, model_and_data
from hbm_jax.cli.interruption import Terminated, exit_message
from hbm_jax.configuration import ConfigError, defaults, merged, read_toml, read_value, sample_keywords, set_key
from hbm_jax.names import choose


def resume_parser() -> Parser:
    """Return the parser of ``resume``."""
    parser = Parser(
        "hbm-jax resume",
        "DIR [options]",
        "Continue a run that was stopped, or draw more samples; the draws are those of an uninterrupted run.",
        "example:\n  hbm-jax resume runs/jla --until 2000",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="run folder, or the checkpoint folder of a Python run")
    parser.add_sampling(END_OPTIONS, "when the run ends")
    parser.add_set("new stopping criterion, such as sample.until.w0=2000")
    parser.add_output("resume", "", "")
    return parser


def fit(arguments) -> int:
    """Fit a model and write the run folder."""
    from hbm_jax import inference, runs

    config = configuration_of(arguments)
    model, sample = model_and_data(config)
    folder = Path(arguments.out or f"runs/{config['model']['name']}-{Path(config['data']['source']).stem}")
    runs.check_run_folder(folder, arguments.overwrite)
    _before_sampling(arguments, model, sample)
    if getattr(arguments, "best_fit", False):
        if config["sample"].get("blind"):
            raise ConfigError("--blind: expected no --best-fit, whose tables show the values; found both.")
        return _best_fit(arguments, model, sample, folder, config)
    options = sample_keywords(config)
    with runs.new_checkpoint(folder, config) as checkpoint, _resume_hint(folder, new=True):
        result = inference.sample(model, sample, progress=not arguments.quiet, checkpoint=checkpoint, **options)
    return _after_sampling(arguments, result, folder, config)


def _best_fit(arguments, model, sample, folder: Path, config: dict) -> int:
    """Fit by maximum likelihood, write the tables and figures, print the result and return the exit status."""
    from hbm_jax import registry, runs

    bands = [read_value(text, tuple[float, float], "band") for text in arguments.band or ()]
    options: dict = {"bands": bands} if bands else {}
    seed = config["sample"].get("seed") or 0
    options |= {"level": arguments.level, "z": arguments.redshift, "seed": seed, "progress": not arguments.quiet}
    pairs = [[name.strip() for name in text.split(",")] for text in arguments.contour or ()]
    for names in pairs:
        if len(names) != 2:
            raise ConfigError(f"--contour: expected two parameters, as in 'photon_index, nh'; found {names}.")
    for name in [*(arguments.profile or ()), *(name for names in pairs for name in names)]:
        choose("parameter", name.partition("[")[0], tuple(model.all_priors))
    result = registry.named(config["model"]["name"]).best_fit(model, sample, **options)
    profiles = [result.profile(name, progress=not arguments.quiet) for name in arguments.profile or ()]
    profiles += [result.contour(*names, progress=not arguments.quiet) for names in pairs]
    files = result.save(folder, figures=not arguments.no_report)
    files += [path for each in profiles for path in each.save(folder, figures=not arguments.no_report)]
    runs.write_config(folder, config)
    print(f"{str(result).removeprefix(model.description).lstrip()}\n")
    lines = result.lines()
    if len(lines):
        print(f"{lines.to_string(index=False, float_format='{:.4g}'.format)}\n")
    print("\n".join(f"{path.name:<16} {path}" for path in files), flush=True)
    return 0 if result.likelihood.converged else NOT_USABLE


def resume(arguments) -> int:
    """Continue a run and write the run folder."""
    from hbm_jax import runs

    checkpoint = runs.checkpoint_of(arguments.folder) or arguments.folder
    folder = checkpoint.parent if checkpoint.name == runs.CHECKPOINT else checkpoint
    new_config: dict = {"sample": {}}
    changeable = [f"sample.{name}" for name in END_OPTIONS]
    for key, value in [*flags(arguments), *assignments("set", arguments.set)]:
        if ".".join(key.split(".")[:2]) not in changeable:  # sample.until.mu belongs to sample.until
            raise ConfigError(
                f"--set {key}: expected one of {', '.join(changeable)}, because resume can change only when a run ends."
            )
        set_key(new_config, key, value)
    changes = new_config["sample"]
    program, args = runs.rebuild_program(checkpoint)
    config = _changed_configuration(runs.config_of(checkpoint), changes)
    _before_sampling(arguments, program, *args)
    with _resume_hint(folder):
        fit = runs.resume(checkpoint, program, *args, progress=not arguments.quiet, **changes)
    return _after_sampling(arguments, fit, folder, config)


def _changed_configuration(path: Path | None, changes: dict) -> dict | None:
    """Return the configuration of a run with changed stopping criteria; None for a run started in Python."""
    if path is None:
        return None
    config = merged(defaults(), read_toml(path), str(path))
    if changes.keys() & {"num_samples", "until"}:
        config["sample"] |= {"num_samples": None, "until": None}
    config["sample"] |= changes
    return config


def _before_sampling(arguments, model, sample) -> None:
    """Print the model and the data; raise ImportError if a package for the report is missing."""
    if not (arguments.no_report or all(map(find_spec, ("matplotlib", "jinja2")))):
        import hbm_jax.plotting  # noqa: F401 - names the missing extra; importing matplotlib would delay the verdict
    print(f"{model.description}\n{sample.describe()}\n", flush=True)
    gc.freeze()  # searching modules and data for garbage would add a tenth or more to the time of the report


@contextlib.contextmanager
def _resume_hint(folder: Path, reason: str = "interrupted", *, new: bool = False) -> Iterator[None]:
    """Print how to resume a run that is interrupted within this context, if it can be resumed.

    Parameters
    ----------
    folder : path
        Run folder.
    reason : str
        Description of the interruption, if the exception has none.
    new : bool
        Whether the checkpoint was made by `runs.new_checkpoint`.
    """
    from hbm_jax import runs

    command = runs.resume_command(folder)

    def message() -> str:
        if new:
            runs.settle_checkpoint(folder)
        if runs.is_resumable(folder):
            return f"interrupted; continue with\n{command}"
        return "interrupted; nothing was written."

    with exit_message(message):
        try:
            yield
        except (KeyboardInterrupt, Terminated) as interruption:
            if not runs.is_resumable(folder):
                raise
            raise KeyboardInterrupt(f"{getattr(interruption, 'reason', reason)}; continue with\n{command}") from None


def _after_sampling(arguments, fit, folder: Path, config: dict | None) -> int:
    """Write the run folder, check the model, print the results and return the exit status."""
    from hbm_jax import runs

    command, stopped = runs.resume_command(folder), fit.run["stopped"]
    interrupted = stopped == "interrupted"
    if stopped.startswith("stopped because"):  # a full disk may still have room for the results
        print(f"hbm-jax: {stopped}", file=sys.stderr)
    with _resume_hint(folder, "interrupted while the results were written"):
        try:
            runs.write(fit, folder, config)
            if fit.verdict.usable and not interrupted:
                _check_model(fit, folder)
        except Exception as error:
            error.add_note(f"All draws are in the checkpoint; to write the results again:\n{command}")
            raise
        print(f"\n{in_flags(str(fit.verdict))}\n\n{fit.table()}\n")
        print(f"posterior  {folder / runs.POSTERIOR}", flush=True)
        if not arguments.no_report and not interrupted:
            print(f"report     {runs.write_report(fit, folder)}")
    if interrupted or stopped.startswith("stopped: the time budget"):
        print(f"{stopped.removeprefix('stopped: ')}; continue with\n{command}")
    if interrupted:
        return INTERRUPTED
    return status_of(fit.verdict)


def _check_model(fit, folder: Path) -> None:
    """Check whether the data look like the model, and store the result with the posterior, which is already written."""
    from hbm_jax import runs

    start = time.perf_counter()
    fit.model_check  # noqa: B018 - computed and kept
    fit.note_timing({"check of the model": time.perf_counter() - start})
    fit.save(folder / runs.POSTERIOR)
