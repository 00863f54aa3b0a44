"""Results of a fit: draws as an ArviZ DataTree, the verdict and provenance; saving and loading."""

import datetime
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax import __version__
from hbm_jax.files import atomic_write
from hbm_jax.inference.blinding.blinding import Blinding
from hbm_jax.inference.centering.location_scale import ReparametrisedProgram, with_partial_centring
from hbm_jax.inference.checksum import (
    DamageWarning,
    ResultFileError,
    append_checksum,
    checksum_holds,
    refuse_expansion,
    require_room,
)
from hbm_jax.inference.exports import Exports, labelled_draws
from hbm_jax.inference.model_check.check import check_model
from hbm_jax.inference.model_check.result import ModelCheck
from hbm_jax.inference.program import (
    TARGET_ACCEPT_PROB,
    bound_args,
    cautions_of,
    cautions_of_draws,
    config_of,
    description_of,
    description_of_data,
    name_of,
    supports_of,
    warnings_of,
)
from hbm_jax.inference.sampler.target import support_bounds
from hbm_jax.inference.storage import tree_of
from hbm_jax.inference.verdict import Verdict, judge, with_modes
from hbm_jax.names import require_parameters
from hbm_jax.notation import rounded

INTERVAL = (0.16, 0.5, 0.84)
FORMAT = 1
UNOBSERVED = "no site of the program is observed: these are draws of its prior (were the data forgotten?)"


class ResultsError(RuntimeError):
    """Error between sampling and the assembly of the `Fit`; it holds the draws.

    Attributes
    ----------
    draws : dict of str to array (chain, draw, ...)
        ``position``, the flat unconstrained draws, and the sampler statistics of each draw.
    labels : tuple of str
        Name of each component of ``position``.
    """

    def __init__(self, message: str, draws: dict[str, np.ndarray], labels: tuple[str, ...]):
        super().__init__(message)
        self.draws, self.labels = draws, labels


@dataclass
class Fit(Exports):
    """A sampled posterior, with its verdict, program, data and provenance.

    Attributes
    ----------
    tree : xarray.DataTree
        Groups ``posterior`` and ``sample_stats`` with dimensions ``chain, draw, ...``; ``unconstrained_posterior``, the
        draws in the unconstrained parameters; ``constant_data``, the data, if they can be stored. Any ArviZ function
        accepts it.
    verdict : Verdict
        Whether the posterior is usable, and if not, why. Its ``model`` is `model_check`, once that has been computed.
    program : callable or None
        The NumPyro program that was fitted.
    args : tuple
        Arguments of the program.
    run : dict
        Options of the run, versions and machine, with which it can be repeated.
    timing : dict of str to float
        Duration of each phase in seconds.
    """

    tree: xr.DataTree
    verdict: Verdict
    program: Callable | None
    args: tuple
    run: dict[str, Any]
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def data(self):
        """First argument of the program; None if it has no arguments."""
        return self.args[0] if self.args else None

    @cached_property
    def bound_args(self) -> tuple:
        """Arguments with which the program is traced: bound data if it has a method ``bind``, else `args`."""
        return bound_args(self.program, self.args) if self.program is not None else self.args

    def unblind(self) -> None:
        """Shift the values of blinded parameters back, here and in what `save` writes from now on.

        The verdict is made again, with notes on posteriors at the edges of priors, which would have given values away.

        Raises
        ------
        ValueError
            If the fit is not blinded.
        """
        blinding = self.blinding
        if blinding is None:
            raise ValueError("unblind: expected a fit of sample(..., blind=True); found one that is not blinded.")
        bounds = blinding.bounds_in(self.tree)
        self.tree = blinding.reveal(self.tree)
        self.run.pop("blind", None)
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.run["unblinded"] = f"{', '.join(blinding.names)} at {time}"
        verdict = _verdict_of(self.tree, bounds, self.run)
        notes = [note for note in self.verdict.notes if note != blinding.note]
        notes += [note for note in verdict.notes if note not in notes]
        self.verdict = replace(verdict, notes=tuple(notes), model=self.verdict.model)
        self.tree.attrs |= {"hbm_jax_run": json.dumps(self.run, default=str), "hbm_jax_notes": json.dumps(notes)}

    @property
    def model_check(self) -> ModelCheck:
        """Result of `check_model`: whether the data look like draws from the fitted model.

        It is computed at the first access, kept as ``verdict.model`` and saved with the fit. A fit that was loaded
        without its program and has no stored check cannot be checked.
        """
        if self.verdict.model is not None:
            return self.verdict.model
        check = check_model(self)
        if self.program is not None:
            self.verdict = replace(self.verdict, model=check)
        return check

    def summary(self, parameters: Sequence[str] | None = None, *, max_size: int = 20) -> pd.DataFrame:
        """Compute the median, 68 % interval, mean, standard deviation, unit and diagnostics of each parameter.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include, in this order, whatever their size. Default: all sites of at most ``max_size`` elements.
        max_size : int
            Omit variables with more elements (the latents of a large population), unless ``parameters`` names them.

        Returns
        -------
        pandas.DataFrame
            One row per parameter or element: ``median, lower_68, upper_68, mean, sd, unit, r_hat, ess_bulk, ess_tail,
            mcse_mean, mcse_sd``. The interval runs from the 16th to the 84th percentile.

        Raises
        ------
        ValueError
            If a name in ``parameters`` is not a site.
        """
        if parameters is not None:
            requested = [parameters] if isinstance(parameters, str) else list(parameters)
            require_parameters(requested, self.posterior, "summary")
        rows = {}
        units = self.units
        for name, labels, draws in labelled_draws(self.posterior, self.verdict):
            if len(labels) > max_size if parameters is None else name not in requested:
                continue
            values = np.concatenate(draws).astype(float)
            lower, median, upper = np.quantile(values, INTERVAL, axis=0)
            for index, label in enumerate(labels):
                rows[label] = {
                    "median": median[index],
                    "lower_68": lower[index],
                    "upper_68": upper[index],
                    "mean": values[:, index].mean(),
                    "sd": values[:, index].std(ddof=1),
                    "unit": units.get(name, ""),
                }
        if parameters is not None:
            rows = dict(sorted(rows.items(), key=lambda row: requested.index(row[0].partition("[")[0])))
        return pd.DataFrame.from_dict(rows, orient="index").join(self.verdict.table)

    def __repr__(self):
        sizes = self.posterior.sizes
        return (
            f"<Fit of {self.run.get('model', 'a program')}, {sizes['chain']} x {sizes['draw']} draws; {self.verdict}>"
        )

    def table(self, max_size: int = 20) -> str:
        """Return the summary as text: median and 68 % interval to two digits of the error, unit, R-hat and bulk ESS."""
        summary = self.summary(max_size=max_size)
        rows = [("parameter", "median", "68 % interval", "unit", "R-hat", "ESS")]
        for name, row in summary.iterrows():
            median, lower, upper = rounded(row["median"], row["lower_68"], row["upper_68"])
            numbers = f"{row['r_hat']:.3f}", f"{row['ess_bulk']:.0f}"
            rows.append((str(name), median, f"{lower} to {upper}", row["unit"] or "", *numbers))
        min_widths = (12, 10, 20, 9, 6, 6)
        widths = [max(width, *(len(row[column]) for row in rows)) for column, width in enumerate(min_widths)]
        lines = [
            f"{a:<{widths[0]}} {b:>{widths[1]}} {c:>{widths[2]}}  {d:<{widths[3]}} {e:>{widths[4]}} {f:>{widths[5]}}"
            for a, b, c, d, e, f in rows
        ]
        return "\n".join(lines)

    def attach(self, program: Callable, args: tuple):
        """Attach program and data to a loaded fit, with the partial non-centring with which it was sampled."""
        centering = self.tree["centering"].to_dataset() if "centering" in self.tree else {}
        arrays = {str(name): np.asarray(value) for name, value in centering.items()}
        self.program = with_partial_centring(program, arrays)
        self.args = args
        vars(self).pop("bound_args", None)

    def note_timing(self, timing: Mapping[str, float]):
        """Record the duration of phases, also in the attributes that `save` writes."""
        self.timing.update(timing)
        self.tree.attrs["hbm_jax_timing"] = json.dumps(self.timing)

    def note_modes(self, outcome: str, missing: str):
        """Record the outcome of a search for modes, in the verdict and in the attributes that `save` writes."""
        self.run |= {"modes": outcome, "missing_modes": missing}
        self.tree.attrs["hbm_jax_run"] = json.dumps(self.run, default=str)
        verdict = _verdict_of(self.tree, {}, self.run)
        self.verdict = replace(verdict, notes=self.verdict.notes, model=self.verdict.model)

    def save(self, path: str | os.PathLike) -> Path:
        """Write the fit to a netCDF file, atomically.

        Parameters
        ----------
        path : path
            File to write; ``.nc`` is appended if there is no suffix. An existing file is replaced.

        Returns
        -------
        pathlib.Path
            The file written. ``hbm_jax.load`` reads it; ``xarray.open_datatree`` returns the DataTree that ArviZ
            accepts. A checksum at its end lets `load` detect damage.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".nc")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            require_room(part, int(1.1 * sum(node.to_dataset().nbytes for node in self.tree.subtree)) + 2**20)
            tree = self.tree.copy(deep=False)
            tree.attrs |= {"hbm_jax_verdict": str(self.verdict)}
            if self.verdict.model is not None:
                tree.attrs |= {"hbm_jax_model_check": self.verdict.model.to_json()}
            tree.to_netcdf(part, engine="h5netcdf")
            append_checksum(part)
        return path


def _require_types(run, timing, notes) -> None:
    """Raise TypeError if the stored description of a run has entries of the wrong type."""
    tables = [run, timing, *(run[name] for name in ("config", "versions") if name in run)]
    texts = [run["program"], *notes]
    if not (all(isinstance(table, dict) for table in tables) and all(isinstance(text, str) for text in texts)):
        raise TypeError("expected tables and text about the run")
    if not all(isinstance(seconds, int | float) for seconds in timing.values()):
        raise TypeError("expected numbers of seconds")


def assemble(
    program: Callable,
    args: tuple,
    bound: tuple,
    *,
    target,
    sites: Mapping[str, np.ndarray],
    sample_stats: Mapping[str, np.ndarray],
    positions: np.ndarray,
    dims: Mapping[str, list[str]] | None,
    coords: Mapping[str, Any] | None,
    timing: dict[str, float],
    run: dict[str, Any],
    cautions: tuple[str, ...] = (),
    blinding: Blinding | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> Fit:
    """Assemble draws, labels and provenance into a `Fit`, and judge it.

    Parameters
    ----------
    program, args, bound
        The fitted program, its arguments, and the bound arguments with which it was traced.
    target : Target
        Gives dimensions, labels and prior bounds.
    sites, sample_stats : mapping of str to array (chain, draw, ...)
        Draws.
    positions : array (chain, draw, size)
        The flat unconstrained draws.
    dims, coords : mapping, optional
        Dimensions and coordinates given by the user; they take precedence over those of the program and the plates.
    timing, run : dict
        Duration of each phase in seconds; options of the run.
    cautions : tuple of str
        Notes for the verdict.
    blinding : Blinding, optional
        Hidden shifts of parameters. Verdict and `Fit` see shifted draws only, because a verdict names values.
    known : mapping of str to array, optional
        Statistics of sites, as in `hbm_jax.inference.verdict.diagnose`; unused for shifted draws.
    """
    tree = tree_of(
        program,
        args,
        target=target,
        sites=sites,
        sample_stats=sample_stats,
        positions=positions,
        dims=dims,
        coords=coords,
    )
    bounds = bounds_of(program, target)
    cautions = (*cautions, *cautions_of_draws(program, args, tree["posterior"].to_dataset()))
    if blinding is not None:
        blinding = blinding.measured_in(tree["posterior"].to_dataset())
        tree = blinding.hide(tree, bounds)
        bounds = {name: ends for name, ends in bounds.items() if name not in blinding.names}
        cautions = (blinding.note, *cautions)
        run, known = run | {"blind": ", ".join(blinding.names)}, None
    verdict = _verdict_of(tree, bounds, run, known)
    verdict = replace(verdict, notes=(*cautions, *notes_without_draws(program, args, bound), *verdict.notes))
    run = run | provenance() | describe(program, args[0] if args else None)
    tree.attrs |= {
        "hbm_jax_format": FORMAT,
        "hbm_jax_run": json.dumps(run, default=str),
        "hbm_jax_timing": json.dumps(timing),
        "hbm_jax_verdict": str(verdict),
        "hbm_jax_notes": json.dumps(list(verdict.notes)),
    }
    return Fit(tree, verdict, program, args, run, timing)


def bounds_of(program: Callable, target) -> dict[str, Any]:
    """Return the lower and upper bound of the prior of each site, including priors in ``program.all_priors``."""
    return target.bounds | {name: support_bounds(support) for name, support in supports_of(program).items()}


def notes_without_draws(program: Callable, args: tuple, bound: tuple) -> tuple[str, ...]:
    """Return the notes that do not depend on draws: cautions of the program and warnings of the data."""
    return (*cautions_of(program, args, bound), *(f"in the data, {text}" for text in warnings_of(args)))


def _verdict_of(tree: xr.DataTree, bounds: Mapping, run: Mapping[str, Any], known: Mapping | None = None) -> Verdict:
    """Return the verdict on the constrained and unconstrained draws of a tree, from a run with these options."""
    centering = tree["centering"].to_dataset() if "centering" in tree else {}
    verdict = judge(
        tree["posterior"].to_dataset(),
        tree["sample_stats"].to_dataset(),
        bounds,
        run.get("max_tree_depth"),
        tree["unconstrained_posterior"].to_dataset()["position"],
        {str(name).split(":")[1] for name in centering},
        run.get("target_accept_prob") or TARGET_ACCEPT_PROB,
        run.get("num_superchains", 0),
        run.get("trajectories") or run.get("sampler") or "nuts",
        known,
    )
    return with_modes(verdict, run.get("modes", ""), run.get("missing_modes", ""))


def provenance() -> dict[str, Any]:
    """Return package versions, device, machine and time."""
    packages = ("jax", "jaxlib", "numpyro", "arviz-base", "numpy")
    device = jax.local_devices()[0]
    versions = {"python": platform.python_version(), "hbm_jax": __version__}
    return {
        "versions": versions | {name: version(name) for name in packages},
        "device": f"{len(jax.local_devices())} x {device.platform} ({device.device_kind})",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def describe(program, data) -> dict[str, Any]:
    """Return name, description and, if they exist, configuration of a program and description of its data."""
    description: dict[str, Any] = {"program": name_of(program), "description": description_of(program)}
    try:
        if (config := config_of(program)) is not None:
            description["config"] = config
    except ValueError as error:
        description["config_error"] = str(error)
    if (described := description_of_data(data)) is not None:
        description["data"] = described
    return description


def load(path: str | os.PathLike, program: Callable | None = None, args: tuple = ()) -> Fit:
    """Read a fit that `Fit.save` wrote.

    Parameters
    ----------
    path : path
        The netCDF file.
    program, args
        Program and its arguments; needed only for predictions.

    Raises
    ------
    ResultFileError
        If the file is missing, was not written by `Fit.save`, or is damaged.

    Warns
    -----
    DamageWarning
        If the file has no checksum.
    """
    path = _existing(Path(path))
    checksum_ok = checksum_holds(path)
    if checksum_ok is False:
        raise ResultFileError(
            f"{path}: expected an unchanged result file; found one that is damaged: its checksum differs. Restore it "
            "from a backup, or assemble it again from the checkpoint of the run with hbm_jax.resume."
        )
    try:
        refuse_expansion(path)
        with xr.open_datatree(path, engine="h5netcdf") as file:
            tree = file.load()
        attributes = tree.attrs
        run, timing = json.loads(attributes["hbm_jax_run"]), json.loads(attributes["hbm_jax_timing"])
        notes = tuple(json.loads(attributes["hbm_jax_notes"]))
        _require_types(run, timing, notes)
        Blinding.of(tree)  # raises for a damaged blinding
        stored_check = attributes.get("hbm_jax_model_check")
        model = ModelCheck.from_json(stored_check) if stored_check is not None else None
        file_format = int(attributes["hbm_jax_format"])
        origin = f"{run['program']} by hbm_jax {run['versions']['hbm_jax']}"
        if file_format <= FORMAT:
            verdict = _verdict_of(tree, {}, run)
    except ResultFileError:
        raise
    except KeyError as error:
        raise ResultFileError(
            f"{path}: expected a result file written by Fit.save, found a netCDF file without {error}."
        ) from None
    except Exception as error:  # HDF5, xarray, JSON and NumPy each raise different exceptions for a damaged file
        raise ResultFileError(
            f"{path}: expected a result file written by Fit.save, found one that cannot be read ({error}). It may be "
            "damaged or cut short."
        ) from None
    if file_format > FORMAT:
        raise ResultFileError(
            f"{path}: expected a result file of format {FORMAT} or older, found format {file_format}, of {origin}. "
            "Install that version or a newer one."
        )
    if checksum_ok is None:
        warnings.warn(
            f"{path}: expected a checksum at its end; found none, because an older hbm_jax wrote it or another program "
            "has changed it. Damage would not be detected. Fit.save adds a checksum.",
            DamageWarning,
            stacklevel=2,
        )
    fit = Fit(tree, replace(verdict, notes=notes, model=model), None, args, run, timing)
    if program is not None:
        fit.attach(program, args)
    return fit


def _existing(path: Path) -> Path:
    """Return the path of a result file, with ``.nc`` where only that exists."""
    if not path.exists() and path.with_suffix(".nc").exists():
        path = path.with_suffix(".nc")
    if not path.is_file():
        raise ResultFileError(f"{path}: expected a result file written by Fit.save, found no such file.")
    return path


def model_of(fit) -> Any:
    """Return the original program of a fit, without the partial non-centring with which it was sampled."""
    return fit.program.program if isinstance(fit.program, ReparametrisedProgram) else fit.program
