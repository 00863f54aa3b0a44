"""Summaries, verdicts and kept draws of the posteriors of many objects."""

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax.files import atomic_write
from hbm_jax.inference.checksum import ResultFileError
from hbm_jax.inference.options import plain
from hbm_jax.inference.storage import dataset_of_draws
from hbm_jax.names import require_parameters
from hbm_jax.notation import column_format

if TYPE_CHECKING:
    from astropy.table import Table

FORMAT = 1
STATISTICS = ("lower_68", "median", "upper_68", "mean", "sd", "r_hat", "ess_bulk", "ess_tail")
ORDER = ["median", "lower_68", "upper_68", "mean", "sd", "r_hat", "ess_bulk", "ess_tail"]


def element_labels(parameter: str, shape: Sequence[int]) -> list[str]:
    """Return ``name``, or ``name[i, j]`` for each element of an array."""
    return [f"{parameter}[{', '.join(map(str, index))}]" if index else parameter for index in np.ndindex(*shape)]


@dataclass(frozen=True)
class Fits:
    """Posteriors of many objects, as returned by `fit_each`.

    Attributes
    ----------
    names : list
        Names of the objects.
    verdicts : pandas.DataFrame
        One row per object: ``usable``, ``why`` (the reasons if not usable), ``num_draws, num_divergences``, ``bfmi``
        (smallest E-BFMI over chains), ``num_steps`` (leapfrog steps per draw), and ``notes`` as in `Verdict`:
        posteriors at the edge of a prior, unusual data, cautions of the model.
    cost : dict of str to float
        ``seconds`` in total; ``compile_seconds``, until the first block of draws; ``num_slots``, the number of slots of
        the batch (``lanes`` in older files); ``steps``, the leapfrog steps of all objects; ``steps_waited_for``, the
        steps if each trajectory were as long as the longest of the batch, because the others wait for it.
    run : dict
        Options.
    sites : dict
        Statistics by object and site, (..., statistic); `summary` is their table.
    kept : dict
        Kept draws by object and site, (chain, draw, ...). ``lp`` is the log density of the unconstrained parameters,
        including the prior of padded latents where there are any.
    """

    names: list
    verdicts: pd.DataFrame
    cost: dict[str, float]
    run: dict[str, Any]
    sites: dict[Any, dict[str, np.ndarray]] = field(repr=False)
    kept: dict[Any, dict[str, np.ndarray]] = field(repr=False)

    @classmethod
    def assemble(cls, names: Sequence, results: Sequence, cost: dict[str, float], run: dict[str, Any]) -> "Fits":
        """Assemble the results of all objects, in the order of the objects."""
        results = sorted(results, key=lambda result: result.number)
        rows = [
            (
                not result.why,
                result.why,
                result.num_draws,
                result.num_divergences,
                result.bfmi,
                result.num_steps,
                "; ".join(result.notes),
            )
            for result in results
        ]
        columns = ["usable", "why", "num_draws", "num_divergences", "bfmi", "num_steps", "notes"]
        verdicts = pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="object"))
        sites = {name: result.sites for name, result in zip(names, results, strict=True)}
        draws = {name: result.draws for name, result in zip(names, results, strict=True) if result.draws is not None}
        return cls(list(names), verdicts, cost, run, sites, draws)

    def __len__(self):
        return len(self.names)

    @property
    def usable(self) -> pd.Series:
        """Usability of the posterior of each object, bool by name."""
        return self.verdicts["usable"]

    @property
    def waste(self) -> float:
        """Factor by which waiting for the longest trajectory of the batch increased the number of leapfrog steps."""
        return self.cost["steps_waited_for"] / max(self.cost["steps"], 1)

    def summary(self, parameters: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a table of summary statistics of every parameter of every object.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include; all by default.

        Returns
        -------
        pandas.DataFrame
            Indexed by object and parameter (``name`` or ``name[i]``); ``median, lower_68, upper_68, mean, sd, r_hat,
            ess_bulk, ess_tail``. An object without draws has no rows.

        Raises
        ------
        ValueError
            If a name in ``parameters`` is not a site.
        """
        if parameters is not None and self.sites:
            parameters = [parameters] if isinstance(parameters, str) else list(parameters)
            known = dict.fromkeys(name for sites in self.sites.values() for name in sites)
            require_parameters(parameters, known, "summary")
        index, rows = [], []
        for name, sites in self.sites.items():
            for parameter, values in sites.items():
                if parameters is not None and parameter not in parameters:
                    continue
                index += [(name, label) for label in element_labels(parameter, values.shape[:-1])]
                rows += list(values.reshape(-1, values.shape[-1]))
        table = pd.DataFrame(
            np.reshape(rows, (-1, len(STATISTICS))),
            columns=list(STATISTICS),
            index=pd.MultiIndex.from_tuples(index, names=["object", "parameter"]),
        )
        return table[ORDER]

    def draws(self, name) -> xr.DataTree:
        """Return the draws of one object as a DataTree for ArviZ.

        Raises
        ------
        KeyError
            If there is no such object, or its draws were not kept.
        """
        if name not in self.kept:
            if not self.kept:
                reason = "keep_draws=True was not given"
            else:
                reason = "it has no draws" if name in self.names else "no object has this name"
            raise KeyError(f"draws of {name!r}: expected an object whose draws were kept; {reason}.")
        return xr.DataTree.from_dict({"posterior": dataset_of_draws(self.kept[name])})

    def to_table(self, parameters: Sequence[str] | None = None) -> "Table":
        """Return a catalogue as an astropy Table, which can be written as ECSV, FITS and other formats.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include; all by default.

        Returns
        -------
        astropy.table.Table
            One row per object: ``object``, ``usable``, ``why``, and for each parameter or element ``name_median``,
            ``name_lower_68``, ``name_upper_68`` and ``name_sd``, NaN where an object has no draws. Numbers are shown
            with the digits of their errors.

        Examples
        --------
        >>> fits.to_table().write("catalogue.fits")  # doctest: +SKIP
        """
        from astropy.table import Table

        summary = self.summary(parameters)
        columns = {"object": np.array([str(name) for name in self.names])}
        columns |= {"usable": self.usable.to_numpy(bool), "why": self.verdicts["why"].to_numpy(str)}
        formats = {}
        for label in dict.fromkeys(summary.index.get_level_values("parameter")):
            rows = summary.xs(label, level="parameter").reindex(self.names)
            columns |= {f"{label}_{name}": rows[name].to_numpy() for name in ("median", "lower_68", "upper_68", "sd")}
            formats[label] = column_format(columns[f"{label}_median"], columns[f"{label}_sd"])
        table = Table(columns)
        for label, digits in formats.items():
            for name in ("median", "lower_68", "upper_68"):
                table[f"{label}_{name}"].format = digits
            table[f"{label}_sd"].format = ".3g"
        return table

    def save(self, path: str | os.PathLike) -> Path:
        """Write all results to one file, atomically; `load` reads it.

        Parameters
        ----------
        path : path
            File to write; ``.npz`` is appended if there is no suffix. An existing file is replaced.

        Raises
        ------
        ValueError
            If a name of an object is neither text nor a number.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".npz")
        names = [plain(name) for name in self.names]
        invalid = [name for name in names if not isinstance(name, str | int | float)]
        if invalid:
            raise ValueError(f"save: expected names of objects that are text or numbers; found {invalid[0]!r}.")
        arrays: dict[str, np.ndarray] = {}
        for kind, objects in (("sites", self.sites), ("kept", self.kept)):
            for index, name in enumerate(self.names):
                arrays |= {f"{kind}/{index}/{site}": values for site, values in objects.get(name, {}).items()}
        verdicts = self.verdicts.to_dict(orient="list")
        about = {"format": FORMAT, "names": names, "verdicts": verdicts, "cost": self.cost, "run": self.run}
        arrays["about"] = np.array(json.dumps(about, default=str))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Fits":
        """Read a file that `save` wrote, by the path that was given to it or returned by it.

        Raises
        ------
        ResultFileError
            If the file is missing, damaged, or was not written by `save`.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".npz")
        try:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                arrays = {key: file[key] for key in file.files if key != "about"}
            names, verdicts = about["names"], pd.DataFrame(about["verdicts"], index=about["names"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise ResultFileError(f"{path}: expected a file written by Fits.save; found: {error}") from error
        if about["format"] != FORMAT:
            raise ResultFileError(f"{path}: expected format {FORMAT}; found {about['format']} of another version.")
        verdicts.index.name = "object"
        stored: dict[str, dict[Any, dict[str, np.ndarray]]] = {"sites": {name: {} for name in names}, "kept": {}}
        for key, values in arrays.items():
            kind, index, site = key.split("/", 2)
            stored[kind].setdefault(names[int(index)], {})[site] = values
        return cls(names, verdicts, about["cost"], about["run"], stored["sites"], stored["kept"])

    def __str__(self):
        total, usable = len(self), int(self.usable.sum())
        text = f"{usable} of {total} posteriors are usable"
        if usable < total:
            reasons = self.verdicts.loc[~self.usable, "why"].str.replace(r"(?<!\w)[\d.]+", "", regex=True).str.strip()
            text += f"; most frequent reason among the others: {reasons.mode().iloc[0]}"
        noted = self.verdicts.loc[self.verdicts["notes"] != "", "notes"]
        if len(noted):
            text += f". Posteriors with notes: {len(noted)}, for example {noted.index[0]}: {noted.iloc[0]}"
        return text + "."
