"""Summaries, verdicts and kept draws of the posteriors of many objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import from_dict

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
        (smallest E-BFMI over chains), ``num_steps`` (leapfrog steps per draw), and ``notes`` as of a single fit: about
        posteriors at the edge of a prior, unusual data, and cautions of the model.
    cost : dict of str to float
        ``seconds`` in total; ``compile_seconds``, until the first block of draws; ``lanes``, the number of slots of the
        batch; ``steps``, the leapfrog steps of all objects; ``steps_waited_for``, the same with each trajectory as long
        as the longest in the batch, for which the others wait.
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
        """Whether the posterior of each object is usable."""
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
        """
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
            reason = "keep_draws=True was not given" if not self.kept else "there is none of that name"
            raise KeyError(f"draws of {name!r}: expected an object whose draws were kept; {reason}.")
        return from_dict({"posterior": self.kept[name]})

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
