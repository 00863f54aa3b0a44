"""What a run folder holds; how a run is read, continued and written: for the command line, the report and Python."""

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
from hbm_jax.registry import of_stored

POSTERIOR = "posterior.nc"
CONFIG = "config.toml"
SUMMARY = "summary.csv"
REPORT = "report.html"
FIGURES = "figures"
CHECKPOINT = "checkpoint"
SUM = "# sha256 "  # how a configuration begins, before the checksum of the rest
REPLACED = ".checkpoint-replaced"  # the checkpoint of a run that is being replaced, until the new one has begun


def load(path: str | os.PathLike, program: Callable | None = None, args: tuple = ()) -> Fit:
    """Read a fit: a file written by `Fit.save`, or a run folder of the command line.

    Parameters
    ----------
    path : path
        The netCDF file (its ``.nc`` may be left out) or the folder.
    program, args
        A user's own program and what it was called with, which are not stored; needed only for predictions.

    Returns
    -------
    Fit
        With its model and data where they are hbm_jax's own, or given; else ``fit.program`` is None.

    Raises
    ------
    ResultFileError
        If there is no such file, or it is not a fit, or it is damaged.

    Warns
    -----
    DamageWarning
        If it has no checksum, or a run folder has the checkpoint of another run beside it.

    Examples
    --------
    >>> load("runs/jla").verdict  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        if not (path / POSTERIOR).exists():
            begun = checkpoint_of(path)
            more = f" The run is unfinished: continue it with hbm_jax.resume({str(path)!r})." if begun else ""
            raise ResultFileError(f"{path}: expected a run folder holding {POSTERIOR}, found none in it.{more}")
        path = path / POSTERIOR
    fit = results.load(path, program, args)
    _warn_of_another_run(fit, path)
    if program is not None:
        return fit
    entry = of_stored(fit.run["program"], fit.run.get("config"))
    if entry is not None and "constant_data" in fit.tree:
        stored = fit.tree["constant_data"].to_dataset()
        arrays = {str(name): variable.to_numpy() for name, variable in stored.items()}
        try:
            model, container = entry.restore(fit.run["config"], arrays)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ResultFileError(
                f"{path}: expected model and data of the fit, {fit.run['program']}; found stored ones of which it "
                f"cannot be made ({error}). Pass both: hbm_jax.load(path, program, (data,))."
            ) from error
        fit.attach(model, (container,))
    return fit


def _warn_of_another_run(fit: Fit, path: Path) -> None:
    """Warn where the checkpoint beside a posterior is not that of its run."""
    checkpoint = path.parent / CHECKPOINT
    if path.name != POSTERIOR or not (checkpoint / RUN).is_file():
        return
    try:
        begun = read_run(checkpoint).get(RUN_ID)
    except CheckpointError:  # which whoever resumes it is told
        return
    if begun != fit.run.get(RUN_ID):
        warnings.warn(
            f"{path}: expected the posterior of the run in {checkpoint}; found that of another run, which that one was "
            "begun to replace, or whose file was put there.",
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
    progress: bool = True,
) -> Fit:
    """Continue a run that was stopped; the draws are those the uninterrupted run would have had.

    Parameters
    ----------
    path : path
        The ``checkpoint=`` folder of `hbm_jax.sample`, or a run folder of the command line.
    program, *args
        A user's own program and what it was called with; programs are not stored. Omitted for a model of hbm_jax, which
        is rebuilt together with its data.
    num_samples, until, max_num_samples, max_seconds : optional
        Another end than the one the run was begun with, as in `hbm_jax.sample`: to draw more, or to stop at less. Where
        ``max_seconds`` is omitted, this call has as much time as the one before.
    progress : bool
        Whether to show the live line.

    Returns
    -------
    Fit
        All draws, of this and of earlier sessions. Nothing but the checkpoint is written.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, it belongs to another program, other data or other options, or its program is needed.

    Examples
    --------
    >>> fit = resume("runs/jla", until={"w0": 2000})  # doctest: +SKIP
    """
    folder = checkpoint_of(path) or Path(path)
    if program is None:
        program, args = rebuilt(folder)
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
    """Return the checkpoint folder that a run folder holds or that the path itself is; None where there is none."""
    for folder in (Path(path) / CHECKPOINT, Path(path)):
        if (folder / RUN).is_file():
            return folder
    return None


def can_go_on(folder: Path) -> bool:
    """Whether a folder holds a checkpoint with anything in it that is worth keeping."""
    checkpoint = checkpoint_of(folder)
    return checkpoint is not None and (checkpoint / START).exists()


def rebuilt(folder: Path) -> tuple[Callable, tuple]:
    """Return the model of a checkpoint and what it was called with.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or its program is not one of hbm_jax's own.
    """
    store = Checkpoint.existing(folder)
    try:
        about = {"name": "a program"} | store.run["program"]
        stored = store.read_data()
    finally:
        store.close()
    entry = of_stored(about["name"], about.get("config"))
    if entry is None or stored is None:
        raise CheckpointError(
            f"{folder}: expected the program of the run, {about['name']}, and its data, because programs other than "
            f"hbm_jax's own models are not stored; found none given. Continue it from Python: "
            f"hbm_jax.resume({str(folder)!r}, {about['name']}, data)."
        )
    try:
        model, container = entry.restore(about["config"], stored)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: expected model and data of the run, {about['name']}; found stored ones of which it cannot be "
            f"made ({error})."
        ) from error
    return model, (container,)


def refuse_other_run(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if a folder holds a run, or anything else, and must not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: expected a folder for the run, found a file of that name.")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    finished, begun = (folder / POSTERIOR).exists(), checkpoint_of(folder) is not None
    what = "another run" if finished else "an unfinished run" if begun else "other files"
    hint = f"continue it with '{resume_command(folder)}', choose" if begun else "choose"
    raise FileExistsError(
        f"{folder}: expected a new or empty folder for the run, found {what} in it. {hint.capitalize()} another --out, "
        "or pass --overwrite to replace it."
    )


def resume_command(folder: Path) -> str:
    """Return the command that continues the run of a folder."""
    return f"hbm-jax resume {shlex.quote(str(folder))}"


@contextlib.contextmanager
def new_checkpoint(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Make a fresh checkpoint in a run folder, for the duration of the sampling.

    A checkpoint that is there already is put aside, and put back if the new run fails before it has found its starting
    points, which is when everything it was given has been seen to be good. The results of the old run stay.

    Raises
    ------
    CheckpointError
        If another process is drawing in the checkpoint that is there.
    """
    fresh, old = folder / CHECKPOINT, folder / REPLACED
    if (fresh / RUN).exists():
        Checkpoint.existing(fresh).close()
    if fresh.exists():
        shutil.rmtree(old, ignore_errors=True)
        fresh.rename(old)
    try:
        fresh.mkdir(parents=True)
        write_config(fresh, config)
        yield fresh
    finally:
        settle_checkpoint(folder)


def settle_checkpoint(folder: Path) -> None:
    """Drop the old checkpoint where the new one has found its starting points, else put it back."""
    fresh, old = folder / CHECKPOINT, folder / REPLACED
    if (fresh / START).exists():
        shutil.rmtree(old, ignore_errors=True)
        return
    shutil.rmtree(fresh, ignore_errors=True)
    if old.exists():
        old.rename(fresh)
    with contextlib.suppress(OSError):  # not empty: it holds the run that was to be replaced
        folder.rmdir()


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration as TOML, leaving out what is None, with its checksum in a comment."""
    known = {section: {k: v for k, v in content.items() if v is not None} for section, content in config.items()}
    text = tomli_w.dumps({section: content for section, content in known.items() if content})
    (folder / CONFIG).write_text(f"{SUM}{_digest(text)}\n{text}", encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def config_of(folder: Path) -> Path | None:
    """Return the configuration of a run folder or checkpoint; None for a run begun in Python.

    Raises
    ------
    ConfigError
        If the file is not as it was written. One of an older version has no checksum, and is believed.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except ValueError as error:
        raise ConfigError(f"{path}: expected TOML, found something else: {error}.") from None
    if first.startswith(SUM) and first.removeprefix(SUM) != _digest(rest):
        raise ConfigError(
            f"{path}: expected the configuration of the run as it was written; found one that was changed or is "
            "damaged: its checksum differs. Put a copy of it in its place, or remove it."
        )
    return path


def write(fit: Fit, folder: Path, config: Mapping[str, Any] | None) -> None:
    """Write a run folder: the posterior first, then what is derived from it; no configuration where it is None."""
    folder.mkdir(parents=True, exist_ok=True)
    fit.save(folder / POSTERIOR)
    shutil.rmtree(folder / REPLACED, ignore_errors=True)  # left where the run that replaces it was killed and resumed
    # Pictures of the run that has been replaced would be taken for this one's.
    (folder / REPORT).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES, ignore_errors=True)
    if config is not None:
        write_config(folder, config)
    fit.summary().to_csv(folder / SUMMARY, index_label="parameter")


def write_report(fit: Fit, folder: Path) -> Path:
    """Write the figures, each as a PNG file of its own, and the report that holds them all; returns the report."""
    from hbm_jax import report

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    return report.write_report(
        fit,
        folder / REPORT,
        posterior=folder / POSTERIOR,
        configuration=config_of(folder),
        figure_folder=folder / FIGURES,
    )
