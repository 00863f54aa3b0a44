"""The posteriors of many objects: summaries, verdicts, and draws where they were kept."""

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
    return [f"{parameter}[{', '.join(map(str, place))}]" if place else parameter for place in np.ndindex(*shape)]


@dataclass(frozen=True)
class Fits:
    """What `fit_each` returns.

    Attributes
    ----------
    names : list
        Names of the objects.
    verdicts : pandas.DataFrame
        One row an object: ``usable, why, num_draws, num_divergences, bfmi, num_steps`` (leapfrog steps a draw), and
        ``notes`` as of a single fit: on the prior's edges, what is unusual in the data, cautions of the model.
    cost : dict of str to float
        ``seconds``, ``compile_seconds``, ``lanes``; ``steps`` taken, and ``steps_waited_for``: what the same
        trajectories cost side by side, where all wait for the longest.
    run : dict
        Options.
    sites : dict
        By object and site, (..., statistic): the numbers of `summary`.
    kept : dict
        By object and site, (chain, draw, ...): the draws that were kept; ``lp`` is the log density of the
        unconstrained parameters, with the prior of padded latents where there are some.
    """

    names: list
    verdicts: pd.DataFrame
    cost: dict[str, float]
    run: dict[str, Any]
    sites: dict[Any, dict[str, np.ndarray]] = field(repr=False)
    kept: dict[Any, dict[str, np.ndarray]] = field(repr=False)

    @classmethod
    def assemble(cls, names: Sequence, done: Sequence, cost: dict[str, float], run: dict[str, Any]) -> "Fits":
        """Put together what came out of every object, in the order of the objects."""
        done = sorted(done, key=lambda d: d.number)
        rows = [
            (not d.why, d.why, d.num_draws, d.num_divergences, d.bfmi, d.num_steps, "; ".join(d.notes)) for d in done
        ]
        columns = ["usable", "why", "num_draws", "num_divergences", "bfmi", "num_steps", "notes"]
        verdicts = pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="object"))
        sites = {name: d.sites for name, d in zip(names, done, strict=True)}
        draws = {name: d.draws for name, d in zip(names, done, strict=True) if d.draws is not None}
        return cls(list(names), verdicts, cost, run, sites, draws)

    def __len__(self):
        return len(self.names)

    @property
    def usable(self) -> pd.Series:
        """Whether each object's posterior is usable."""
        return self.verdicts["usable"]

    @property
    def waste(self) -> float:
        """Factor by which waiting for the longest trajectory made the sampling longer."""
        return self.cost["steps_waited_for"] / max(self.cost["steps"], 1)

    def summary(self, parameters: Sequence[str] | None = None) -> pd.DataFrame:
        """Summary of every parameter of every object.

        Parameters
        ----------
        parameters : sequence of str, optional
            Which sites; all of them otherwise.

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
        """Draws of one object as a DataTree that any ArviZ function takes.

        Raises
        ------
        KeyError
            If there is no such object, or its draws were not kept.
        """
        if name not in self.kept:
            why = "keep_draws=True was not given" if not self.kept else "there is none of that name"
            raise KeyError(f"draws of {name!r}: expected an object whose draws were kept; {why}.")
        return from_dict({"posterior": self.kept[name]})

    def __str__(self):
        total, usable = len(self), int(self.usable.sum())
        text = f"{usable} of {total} posteriors are usable"
        if usable < total:
            common = self.verdicts.loc[~self.usable, "why"].str.replace(r"(?<!\w)[\d.]+", "", regex=True).str.strip()
            text += f"; of the others most often: {common.mode().iloc[0]}"
        noted = self.verdicts.loc[self.verdicts["notes"] != "", "notes"]
        if len(noted):
            text += f". Posteriors with notes: {len(noted)}, for example {noted.index[0]}: {noted.iloc[0]}"
        return text + "."
