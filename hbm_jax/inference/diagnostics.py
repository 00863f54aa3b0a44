"""The verdict: is this posterior usable, and if not, which parameter fails, why, and what to try."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats

MAX_R_HAT = 1.01  # Vehtari et al. 2021, Bayesian Analysis 16, 667
MIN_ESS = 400.0  # bulk and tail, the same paper
MIN_BFMI = 0.3  # Betancourt 2016, arXiv:1604.00695
TAIL = (0.05, 0.95)
# A density that is flat up to a bound has 2 % of its draws within 2 % of the way to it; half of that is noticed.
EDGE = 0.02
PINNED = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior is usable.

    Attributes
    ----------
    usable : bool
        True if every R-hat < 1.01, every bulk and tail ESS >= 400, no divergence, every E-BFMI > 0.3.
    reasons : tuple of str
        Why not, one clause each; empty if usable.
    advice : tuple of str
        What to try, one sentence each; empty if usable.
    notes : tuple of str
        What a reader should know although it does not fail the fit, such as a posterior pinned at a prior's edge.
    table : pandas.DataFrame
        ``r_hat, ess_bulk, ess_tail`` of every scalar parameter and of every element of the others.
    num_draws, num_divergences : int
        Over all chains.
    min_bfmi : float
        Smallest E-BFMI over chains.
    """

    usable: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    num_draws: int
    num_divergences: int
    min_bfmi: float

    @property
    def worst_r_hat(self) -> tuple[str, float]:
        """Parameter with the largest R-hat, and that R-hat."""
        return _extreme(self.table["r_hat"], "max")

    @property
    def smallest_ess(self) -> tuple[str, float]:
        """Parameter with the smallest bulk or tail ESS, and that ESS."""
        return _extreme(self.table[["ess_bulk", "ess_tail"]].min(axis=1), "min")

    def __str__(self):
        if self.usable:
            (r_name, r_hat), (e_name, ess) = self.worst_r_hat, self.smallest_ess
            text = (
                f"usable: {self.num_draws} draws without divergence, largest R-hat {r_hat:.3f} ({r_name}), smallest "
                f"effective sample size {ess:.0f} ({e_name}), smallest E-BFMI {self.min_bfmi:.2f}."
            )
        else:
            text = f"not usable: {'; '.join(self.reasons)}. To try: {' '.join(self.advice)}"
        return " ".join([text, *(f"Note: {note}." for note in self.notes)])


def _extreme(column: pd.Series, which: str) -> tuple[str, float]:
    column = column.dropna()
    if column.empty:
        return "none", float("nan")
    name = column.idxmax() if which == "max" else column.idxmin()
    return str(name), float(column[name])


def diagnose(posterior: Mapping[Any, xr.DataArray]) -> pd.DataFrame:
    """R-hat and effective sample sizes of every element of every variable.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Variables with dimensions ``chain, draw`` and any others.

    Returns
    -------
    pandas.DataFrame
        Columns ``r_hat`` (rank-normalised, split), ``ess_bulk``, ``ess_tail``; one row an element, labelled
        ``name`` or ``name[coordinate]``. NaN for an element that never varies.
    """
    rows = {}
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...).to_numpy().astype(float)
        elements = values.reshape(*values.shape[:2], -1)
        labels = _element_labels(str(name), variable)
        for index, label in enumerate(labels):
            element = elements[..., index]
            if np.ptp(element) == 0:
                rows[label] = (np.nan, np.nan, np.nan)
                continue
            # Chains that are stuck at different values have no variance within: their R-hat is infinite.
            with np.errstate(divide="ignore", invalid="ignore"):
                rows[label] = (
                    float(array_stats.rhat(element, chain_axis=0, draw_axis=1)) if len(element) > 1 else np.nan,
                    float(array_stats.ess(element, chain_axis=0, draw_axis=1)),
                    float(array_stats.ess(element, chain_axis=0, draw_axis=1, method="tail", prob=TAIL)),
                )
    return pd.DataFrame.from_dict(rows, orient="index", columns=["r_hat", "ess_bulk", "ess_tail"])


def _element_labels(name: str, variable: xr.DataArray) -> list[str]:
    rest = [dim for dim in variable.dims if dim not in ("chain", "draw")]
    if not rest:
        return [name]
    shape = [variable.sizes[dim] for dim in rest]
    coordinates = [
        variable[dim].to_numpy() if dim in variable.coords else np.arange(variable.sizes[dim]) for dim in rest
    ]
    texts = [_distinct([str(label) for label in labels]) for labels in coordinates]
    return [f"{name}[{', '.join(t[i] for t, i in zip(texts, index, strict=True))}]" for index in np.ndindex(*shape)]


def _distinct(texts: list[str]) -> list[str]:
    """Labels with their number behind them where two are alike, so that no element hides another."""
    return texts if len(set(texts)) == len(texts) else [f"{text} ({i})" for i, text in enumerate(texts)]


def judge(posterior: xr.Dataset, sample_stats: xr.Dataset, bounds: Mapping | None = None) -> Verdict:
    """Judge a posterior.

    Parameters
    ----------
    posterior : xarray.Dataset
        Draws, dimensions ``chain, draw, ...``.
    sample_stats : xarray.Dataset
        ``diverging``, ``energy`` and, if there, ``tree_depth`` with ``max_tree_depth`` in its attributes.
    bounds : mapping of str to (float, float), optional
        Lower and upper bound of a variable's prior; used to notice posteriors pinned at an edge.

    Returns
    -------
    Verdict
    """
    table = diagnose(posterior)
    energy = sample_stats["energy"].transpose("chain", "draw").to_numpy()
    min_bfmi = float(np.min(array_stats.bfmi(energy)))
    num_divergences = int(sample_stats["diverging"].sum())
    reasons, advice = [], []

    broken = [str(name) for name, variable in posterior.items() if not np.isfinite(variable).all()]
    if broken:
        reasons.append(f"draws that are not finite in {_listed(broken)}")
        advice.append("Check the priors' supports and the data for impossible values.")
    unmixed = table.index[table["r_hat"] >= MAX_R_HAT]
    if len(unmixed):
        name, value = _extreme(table["r_hat"], "max")
        reasons.append(f"R-hat is {value:.3f} for {name} (below {MAX_R_HAT} is needed; {_failing(unmixed)})")
        advice.append("Draw more, or look at the rank plot: chains that sit apart are in different modes.")
    elif posterior.sizes["chain"] < 2:
        reasons.append("a single chain cannot show that it has converged")
        advice.append("Use at least two chains, better four.")
    for column, what in (("ess_bulk", "bulk"), ("ess_tail", "tail")):
        few = table.index[table[column] < MIN_ESS]
        if len(few):
            name, value = _extreme(table[column], "min")
            reasons.append(
                f"the {what} effective sample size is {value:.0f} for {name} ({MIN_ESS:.0f} is needed; {_failing(few)})"
            )
            advice.append("Draw more; if it grows slowly, reparametrise what is slow.")
    if num_divergences:
        reasons.append(f"{num_divergences} divergent transitions: some region was not explored")
        advice.append("Raise target_accept_prob, or use another parametrisation of the latents.")
    if not min_bfmi > MIN_BFMI:  # nor if it is NaN
        reasons.append(f"E-BFMI is {min_bfmi:.2f} (above {MIN_BFMI} is needed): the tails were not explored")
        advice.append("Reparametrise scale parameters, or use heavier steps in them.")
    return Verdict(
        usable=not reasons,
        reasons=tuple(reasons),
        advice=tuple(dict.fromkeys(advice)),
        notes=tuple(_edges(posterior, bounds or {})),
        table=table,
        num_draws=posterior.sizes["chain"] * posterior.sizes["draw"],
        num_divergences=num_divergences,
        min_bfmi=min_bfmi,
    )


def _failing(names) -> str:
    return "1 parameter fails" if len(names) == 1 else f"{len(names)} parameters fail"


def _listed(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _edges(posterior, bounds):
    """Yield notes on scalar parameters whose posterior leans on a bound of their prior."""
    for name, (low, high) in bounds.items():
        if name not in posterior or posterior[name].ndim != 2:
            continue
        draws = posterior[name].to_numpy().ravel()
        centre = np.median(draws)
        for bound, other in ((low, high), (high, low)):
            if not np.isfinite(bound):
                continue
            # Between two bounds distance is measured in their difference, from a single one in the median's distance.
            reach = abs(other - bound) if np.isfinite(other) else 2.0 * abs(centre - bound)
            share = float(np.mean(np.abs(draws - bound) < EDGE * reach))
            if share > PINNED:
                yield (
                    f"{name} leans on the edge of its prior at {bound:g} ({100 * share:.0f} % of the draws are within "
                    f"{100 * EDGE:.0f} % of it)"
                )
