"""Run folders: reading, resuming and writing the files of a fit, its configuration and its checkpoint."""

import contextlib
import hashlib
import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from hbm_jax import inference
from hbm_jax.configuration import ConfigError
from hbm_jax.inference import results
from hbm_jax.inference.checksum import DamageWarning
from hbm_jax.inference.results import Fit, ResultFileError
from hbm_jax.inference.sampler.checkpoint import RUN, RUN_ID, START, Checkpoint, CheckpointError, read_run
from hbm_jax.inference.sampler.progress import Progress
from hbm_jax.registry import entry_of_stored

BEST_FIT = "best_fit.npz"
POSTERIOR = "posterior.nc"
CONFIG = "config.toml"
SUMMARY = "summary.csv"
REPORT = "report.html"
FIGURES = "figures"
CHECKPOINT = "checkpoint"
CHECKSUM_PREFIX = "# sha256 "  # start of a configuration file, before the checksum of the lines after the first
REPLACED = ".checkpoint-replaced"  # checkpoint of the previous run, until the new run has starting points


def load(path: str | os.PathLike, program: Callable | None = None, args: tuple = ()) -> Any:
    """Read a fit from a file written by `Fit.save`, or from a run folder of the command line.

    Parameters
    ----------
    path : path
        netCDF file (the suffix ``.nc`` may be omitted) or run folder; or the folder or file of a best fit of spectra.
    program, args
        User-defined program and its arguments, which are not stored; needed only for predictions.

    Returns
    -------
    Fit, or BestFit for a best fit
        The fit, with model and data if the model is part of hbm_jax or `program` is given; else ``fit.program`` is
        None.

    Raises
    ------
    ResultFileError
        If the file does not exist, is not a fit, or is damaged.

    Warns
    -----
    DamageWarning
        If the file has no checksum, or the run folder contains the checkpoint of another run.

    Examples
    --------
    >>> load("runs/jla").verdict  # doctest: +SKIP
    """
    path = Path(path)
    if path.name == BEST_FIT or ((path / BEST_FIT).exists() and not (path / POSTERIOR).exists()):
        from hbm_jax.best_fits import loading

        return loading.load(path)
    if path.is_dir():
        if not (path / POSTERIOR).exists():
            checkpoint = checkpoint_of(path)
            hint = f" The run is unfinished: continue it with hbm_jax.resume({str(path)!r})." if checkpoint else ""
            raise ResultFileError(f"{path}: expected a run folder holding {POSTERIOR}, found none in it.{hint}")
        path = path / POSTERIOR
    fit = results.load(path, program, args)
    _warn_if_other_run(fit, path)
    if program is not None:
        return fit
    entry = entry_of_stored(fit.run["program"], fit.run.get("config"))
    if entry is not None and "constant_data" in fit.tree:
        stored = fit.tree["constant_data"].to_dataset()
        arrays = {str(name): variable.to_numpy() for name, variable in stored.items()}
        try:
            model, container = entry.restore(fit.run["config"], arrays)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ResultFileError(
                f"{path}: expected a stored model and data from which {fit.run['program']} can be rebuilt; "
                f"found invalid ones ({error}). Pass both: hbm_jax.load(path, program, (data,))."
            ) from error
        fit.attach(model, (container,))
    return fit


def _warn_if_other_run(fit: Fit, path: Path) -> None:
    """Warn if the checkpoint in the folder of a posterior belongs to another run."""
    checkpoint = path.parent / CHECKPOINT
    if path.name != POSTERIOR or not (checkpoint / RUN).is_file():
        return
    try:
        run_id = read_run(checkpoint).get(RUN_ID)
    except CheckpointError:  # raised again when the run is resumed
        return
    if run_id != fit.run.get(RUN_ID):
        warnings.warn(
            f"{path}: expected the posterior of the run in {checkpoint}; found that of another run. Either the run in "
            "the checkpoint was started to replace it, or the file was copied here.",
            DamageWarning,
            stacklevel=3,
        )


def resume(
    path: str | os.PathLike,
    program: Callable | None = None,
    *args: Any,
    num_samples: int | None = None,
    until: float | Mapping[str, float] | None = None,
    max_num_samples: int | None = None,
    max_seconds: float | None = None,
    progress: Progress = True,
) -> Fit:
    """Continue a run that was stopped. The draws are identical to those of an uninterrupted run.

    Parameters
    ----------
    path : path
        Checkpoint folder passed to `hbm_jax.sample`, or run folder of the command line.
    program, *args
        User-defined program and its arguments, which are not stored. Not needed for models of hbm_jax, which are
        rebuilt together with their data.
    num_samples, until, max_num_samples, max_seconds : optional
        Stopping criteria, as in `hbm_jax.sample`, that replace those of the run, to draw more or fewer samples. If
        ``max_seconds`` is omitted, this call has the same time budget as the previous one.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.

    Returns
    -------
    Fit
        Fit with the draws of this and of all previous sessions. Only the checkpoint is written to disk.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, if it belongs to another program, other data or other options, or if `program` is
        needed and missing.

    Examples
    --------
    >>> fit = resume("runs/jla", until={"w0": 2000})  # doctest: +SKIP
    """
    folder = checkpoint_of(path) or Path(path)
    if program is None:
        program, args = rebuild_program(folder)
    return inference.resume(
        folder,
        program,
        *args,
        num_samples=num_samples,
        until=until,
        max_num_samples=max_num_samples,
        max_seconds=max_seconds,
        progress=progress,
    )


def checkpoint_of(path: str | os.PathLike) -> Path | None:
    """Return the checkpoint folder in a run folder, or the path itself if it is a checkpoint folder; else None."""
    for folder in (Path(path) / CHECKPOINT, Path(path)):
        if (folder / RUN).is_file():
            return folder
    return None


def is_resumable(folder: Path) -> bool:
    """Return whether a folder has a checkpoint with starting points, from which a run can be resumed."""
    checkpoint = checkpoint_of(folder)
    return checkpoint is not None and (checkpoint / START).exists()


def rebuild_program(folder: Path) -> tuple[Callable, tuple]:
    """Return the model of a checkpoint and its arguments, rebuilt from stored options and data.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or its program is not a model of hbm_jax.
    """
    store = Checkpoint.existing(folder)
    try:
        program = {"name": "a program"} | store.run["program"]
        stored = store.read_data()
    finally:
        store.close()
    entry = entry_of_stored(program["name"], program.get("config"))
    if entry is None or stored is None:
        raise CheckpointError(
            f"{folder}: expected the program of the run, {program['name']}, and its data, because only models "
            f"of hbm_jax are stored; found no program. Continue the run from Python: "
            f"hbm_jax.resume({str(folder)!r}, {program['name']}, data)."
        )
    try:
        model, container = entry.restore(program["config"], stored)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: expected a stored model and data from which {program['name']} can be rebuilt; found "
            f"invalid ones ({error})."
        ) from error
    return model, (container,)


def check_run_folder(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if a folder is not empty and must not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: expected a folder for the run, found a file of that name.")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    has_posterior, has_checkpoint = (folder / POSTERIOR).exists(), checkpoint_of(folder) is not None
    content = "another run" if has_posterior else "an unfinished run" if has_checkpoint else "other files"
    hint = f"Continue it with '{resume_command(folder)}', choose" if has_checkpoint else "Choose"
    raise FileExistsError(
        f"{folder}: expected a new or empty folder for the run, found {content} in it. {hint} another "
        "--out, or pass --overwrite to replace it."
    )


def resume_command(folder: Path) -> str:
    """Return the command that continues the run of a folder."""
    return f"hbm-jax resume {shlex.quote(str(folder))}"


@contextlib.contextmanager
def new_checkpoint(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Create a new checkpoint in a run folder, as a context around the sampling.

    An existing checkpoint is moved aside. It is restored if the new run fails before it has starting points, which is
    before its model, data and options are known to be valid. The results of the previous run are kept.

    Raises
    ------
    CheckpointError
        If another process is sampling with the existing checkpoint.
    """
    new, old = folder / CHECKPOINT, folder / REPLACED
    if (new / RUN).exists():
        Checkpoint.existing(new).close()
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        new.rename(old)
    try:
        new.mkdir(parents=True)
        write_config(new, config)
        yield new
    finally:
        settle_checkpoint(folder)


def settle_checkpoint(folder: Path) -> None:
    """Remove the previous checkpoint if the new run has starting points, else restore it."""
    new, old = folder / CHECKPOINT, folder / REPLACED
    if (new / START).exists():
        shutil.rmtree(old, ignore_errors=True)
        return
    shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        old.rename(new)
    with contextlib.suppress(OSError):  # not empty: it contains the previous run
        folder.rmdir()


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration as TOML, without entries that are None, with its checksum in a comment."""
    stored = {section: {k: v for k, v in content.items() if v is not None} for section, content in config.items()}
    text = tomli_w.dumps({section: content for section, content in stored.items() if content})
    (folder / CONFIG).write_text(f"{CHECKSUM_PREFIX}{_sha256(text)}\n{text}", encoding="utf-8")


def _sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def config_of(folder: Path) -> Path | None:
    """Return the path of the configuration in a run folder or checkpoint; None for a run started in Python.

    Raises
    ------
    ConfigError
        If the file was changed after it was written. Files of older versions have no checksum and are not checked.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
    except ValueError as error:
        raise ConfigError(f"{path}: expected TOML, found something else: {error}.") from None
    if not text.strip() and (not first.strip() or first.startswith("#")):
        raise ConfigError(
            f"{path}: expected the configuration of the run; found an empty file. Restore it from a copy, or remove it."
        )
    if first.startswith(CHECKSUM_PREFIX) and first.removeprefix(CHECKSUM_PREFIX) != _sha256(text):
        raise ConfigError(
            f"{path}: expected the configuration of the run as it was written; found a changed or damaged file, "
            "whose checksum differs. Restore it from a copy, or remove it."
        )
    return path


def write(fit: Fit, folder: Path, config: Mapping[str, Any] | None) -> None:
    """Write posterior, configuration (unless it is None) and summary to a run folder, and remove an outdated report."""
    folder.mkdir(parents=True, exist_ok=True)
    fit.save(folder / POSTERIOR)
    shutil.rmtree(folder / REPLACED, ignore_errors=True)  # remains if the new run was killed and resumed
    # Figures and report of the previous run would be mistaken for those of this run.
    (folder / REPORT).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES, ignore_errors=True)
    if config is not None:
        write_config(folder, config)
    fit.summary().to_csv(folder / SUMMARY, index_label="parameter")
    tables = getattr(fit.program, "tables", None)
    for name, table in (tables(fit.posterior) if callable(tables) else {}).items():
        table.write(folder / f"{name}.ecsv", overwrite=True)


def unblind(folder: str | os.PathLike) -> Fit:
    """Unblind the run of a folder: rewrite its posterior and summary, and let `resume` show values too.

    Its report and figures, which show shifted values, are removed; `write_report` writes new ones.

    Returns
    -------
    Fit
        The fit of the folder, as from `load`.

    Raises
    ------
    ValueError
        If the fit is not blinded.
    ResultFileError
        As `load`.
    """
    folder = Path(folder)
    fit = load(folder)
    fit.unblind()
    checkpoint = checkpoint_of(folder)
    if checkpoint is not None and read_run(checkpoint).get(RUN_ID) == fit.run.get(RUN_ID):
        with contextlib.closing(Checkpoint.existing(checkpoint)) as store:
            store.update(blind=None)
    write(fit, folder, None)
    return fit


def write_report(fit: Fit, folder: Path) -> Path:
    """Write the figures as PNG files, and the report that includes them; return the path of the report."""
    from hbm_jax import report

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    return report.write_report(
        fit,
        folder / REPORT,
        posterior=folder / POSTERIOR,
        configuration=config_of(folder),
        figure_folder=folder / FIGURES,
    )
