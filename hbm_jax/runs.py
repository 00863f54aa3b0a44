"""What a run folder holds, and the models that can be named: shared by the command line, the report and `load`."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from hbm_jax import data, models
from hbm_jax.inference import results
from hbm_jax.inference.results import Fit, ResultFileError

POSTERIOR = "posterior.nc"
CONFIG = "config.toml"
SUMMARY = "summary.csv"
REPORT = "report.html"
FIGURES = "figures"


@dataclass(frozen=True)
class Entry:
    """A model that can be named on the command line.

    Attributes
    ----------
    model : type
        Frozen dataclass of choices; calling an instance is a NumPyro program.
    container : type
        Its data container.
    bundled : dict of str to callable
        Data sets that ship with the package.
    read : callable
        ``read(path, columns=...)`` for a user's table.
    """

    model: Any
    container: Any
    bundled: Mapping[str, Callable]
    read: Callable

    @property
    def options(self) -> tuple[str, ...]:
        """Choices of the model other than its priors."""
        return tuple(item.name for item in fields(self.model) if item.name != "priors")


MODELS = {
    "supernova": Entry(models.Supernova, data.Supernovae, {"jla": data.load_jla}, data.read_supernovae),
}


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

    Examples
    --------
    >>> load("runs/jla").verdict  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        if not (path / POSTERIOR).exists():
            raise ResultFileError(f"{path}: expected a run folder holding {POSTERIOR}, found none in it.")
        path = path / POSTERIOR
    fit = results.load(path, program, args)
    if program is not None:
        return fit
    for entry in MODELS.values():
        if fit.run["program"] == entry.model.__name__ and "config" in fit.run and "constant_data" in fit.tree:
            stored = fit.tree["constant_data"].to_dataset()
            container = entry.container.from_dict({str(name): v.to_numpy() for name, v in stored.items()})
            fit.program, fit.args = entry.model(**fit.run["config"]), (container,)
    return fit


def refuse_other_run(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if a folder holds a run, or anything else, and must not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: expected a folder for the run, found a file of that name.")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    what = "another run" if (folder / POSTERIOR).exists() else "other files"
    raise FileExistsError(
        f"{folder}: expected a new or empty folder for the run, found {what} in it. Choose another --out, or pass "
        "--overwrite to replace it."
    )


def write(fit: Fit, folder: Path, config: Mapping[str, Any]) -> None:
    """Write a run folder: the posterior first, then what is derived from it."""
    folder.mkdir(parents=True, exist_ok=True)
    # Pictures of the run that is being replaced would be taken for this one's.
    (folder / REPORT).unlink(missing_ok=True)
    shutil.rmtree(folder / FIGURES, ignore_errors=True)
    fit.save(folder / POSTERIOR)
    known = {section: {k: v for k, v in content.items() if v is not None} for section, content in config.items()}
    (folder / CONFIG).write_text(tomli_w.dumps({section: content for section, content in known.items() if content}))
    fit.summary().to_csv(folder / SUMMARY, index_label="parameter")


def write_report(fit: Fit, folder: Path) -> Path:
    """Write the figures, each as a PNG file of its own, and the report that holds them all; returns the report."""
    from hbm_jax import report

    (folder / FIGURES).mkdir(parents=True, exist_ok=True)

    def saved(name, draw):
        def draw_and_save(fit):
            figure = draw(fit)
            figure.savefig(folder / FIGURES / f"{name}.png", dpi=200)
            return figure

        return draw_and_save

    figures = {name: (caption, saved(name, draw)) for name, (caption, draw) in report.figures_for(fit).items()}
    return report.write_report(fit, folder / REPORT, figures, posterior=folder / POSTERIOR)
