"""The verdict: is this posterior usable, and if not, which parameter fails, why, and what to try."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats

MAX_R_HAT = 1.01  # Vehtari et al. 2021, Bayesian Analysis 16, 667
MIN_ESS = 400.0  # bulk and tail, the same paper
MIN_BFMI = 0.3  # Betancourt 2016, arXiv:1604.00695
TAIL = (0.05, 0.95)
# Density at a prior's edge, relative to its peak, from which a posterior leans on it; and the width of the slices it is
# measured in, in units of the posterior's. Small: a density that vanishes at the edge has a few draws near it too.
EDGE = 0.04
PINNED = 0.4
MAX_EDGE_SIZE = 10_000_000  # draws of a variable; the latents of a large population have no say
SATURATED = 0.01  # share of trees cut off at the largest depth that is worth a word
COARSE = 0.25  # of a standard deviation: a step between neighbouring floating-point numbers that is too wide
APART = 3.0  # standard deviations within chains between chains that are in different modes
COLUMNS = ["r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd"]
WORST = [np.inf, 0.0, 0.0, np.inf, np.inf]  # values of the columns where there are none


@dataclass(frozen=True)
class Verdict:
    """Whether a posterior is usable.

    Attributes
    ----------
    usable : bool
        True if every R-hat < 1.01, every bulk and tail ESS >= 400, no divergence, every E-BFMI > 0.3, and every sampled
        parameter moves and is resolved by its floating-point numbers. Sites that the table does not show (those whose
        names begin with ``_``) count as well.
    reasons : tuple of str
        Why not, one clause each; empty if usable.
    advice : tuple of str
        What to try, one sentence each; empty if usable.
    notes : tuple of str
        What a reader should know although it does not fail the fit, such as a posterior pinned at a prior's edge.
    table : pandas.DataFrame
        ``r_hat, ess_bulk, ess_tail, mcse_mean, mcse_sd`` of every scalar parameter and element of the others.
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
    """R-hat, effective sample sizes and Monte Carlo errors of every element of every variable.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Variables with dimensions ``chain, draw`` and any others.

    Returns
    -------
    pandas.DataFrame
        Columns ``r_hat`` (rank-normalised, split), ``ess_bulk``, ``ess_tail``, and the Monte Carlo standard errors
        ``mcse_mean`` and ``mcse_sd``; one row an element, labelled ``name`` or ``name[coordinate]``. NaN for an element
        that never varies. What cannot be computed for one that varies fails: an R-hat or an error of infinity, an ESS
        of 0. R-hat of a single chain is NaN.
    """
    parts = []
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...).to_numpy().astype(float)
        elements = values.reshape(*values.shape[:2], -1)
        part = np.full((elements.shape[-1], len(COLUMNS)), np.nan)
        varies = elements.max(axis=(0, 1)) != elements.min(axis=(0, 1))
        if varies.any():
            # Chains that are stuck at different values have no variance within: their R-hat is infinite.
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                part[varies] = _statistics(elements[..., varies])
        parts.append(pd.DataFrame(part, index=_element_labels(str(name), variable), columns=COLUMNS))
    return pd.concat(parts) if parts else pd.DataFrame(columns=COLUMNS)


def _statistics(elements) -> np.ndarray:
    """Columns of the table for elements of shape (chain, draw, n)."""
    axes = {"chain_axis": 0, "draw_axis": 1}
    columns = [
        array_stats.rhat(elements, **axes),
        array_stats.ess(elements, **axes),
        array_stats.ess(elements, method="tail", prob=TAIL, **axes),
        array_stats.mcse(elements, method="mean", **axes),
        array_stats.mcse(elements, method="sd", **axes),
    ]
    found = [np.where(np.isnan(column), worst, column) for column, worst in zip(columns, WORST, strict=True)]
    if len(elements) == 1:
        found[0] = np.full(elements.shape[-1], np.nan)
    return np.stack(found, axis=-1)


class Sampled(NamedTuple):
    """Diagnostics of everything that is sampled.

    Attributes
    ----------
    table : pandas.DataFrame
        As of `diagnose`, of the posterior and then of each component of sites that it does not show; a parameter that
        never moved fails in it.
    num_hidden : int
        Rows of what the posterior does not show.
    stuck, coarse : list of str
        Labels of what never moved, and of what moved in steps of `COARSE` standard deviations or more, because
        floating-point numbers of its size are no closer to each other.
    """

    table: pd.DataFrame
    num_hidden: int
    stuck: list[str]
    coarse: list[str]


def diagnose_sampled(
    posterior: Mapping[Any, xr.DataArray], positions: xr.DataArray | None, recentred: Collection[str] = ()
) -> Sampled:
    """Diagnose a posterior together with what the sampler saw.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Variables with dimensions ``chain, draw`` and any others.
    positions : xarray.DataArray, optional
        Dimensions ``chain, draw, parameter``: the unconstrained draws, labelled ``site`` or ``site[index]``.
    recentred : collection of str
        Variables of the posterior that are sampled by another site in their place, element by element.

    Returns
    -------
    Sampled
    """
    table = diagnose(posterior)
    if positions is None:
        return Sampled(table, 0, [], [])
    labels = positions["parameter"].to_numpy().astype(str)
    sites = np.array([label.split("[")[0] for label in labels])
    draws = positions.sizes["chain"] * positions.sizes["draw"]
    # A matrix of correlations has elements that are fixed: only of plain numbers is every element sampled.
    plain = [
        n for n, number in Counter(sites.tolist()).items() if n in posterior and posterior[n].size == number * draws
    ]
    checked = [(_element_labels(name, posterior[name]), posterior[name]) for name in (*plain, *recentred)]
    other = ~np.isin(sites, plain)
    checked.append((labels[other].tolist(), positions.isel(parameter=other)))
    stuck, coarse = [], []
    for names, variable in checked:
        values = variable.transpose("chain", "draw", ...).to_numpy()
        still, stepped = resolution(values.reshape(values.shape[0] * values.shape[1], -1))
        stuck += [name for name, true in zip(names, still, strict=True) if true]
        coarse += [name for name, true in zip(names, stepped, strict=True) if true]
    hidden = ~np.isin(sites, [str(name) for name in posterior])
    if hidden.any():
        table = pd.concat([table, diagnose({"": positions.isel(parameter=hidden)}).set_axis(labels[hidden])])
    table.loc[table.index.isin(stuck), :] = WORST
    return Sampled(table, int(hidden.sum()), stuck, coarse)


def resolution(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether elements of (..., draw, element) never moved, and whether they moved in coarse steps, (..., element)."""
    with np.errstate(invalid="ignore", over="ignore"):  # of draws that are not finite
        still = draws.max(axis=-2) == draws.min(axis=-2)
        steps = np.spacing(np.abs(draws).max(axis=-2))
        return still, ~still & (steps > COARSE * draws.std(axis=-2, dtype=float))


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


def judge(
    posterior: xr.Dataset,
    sample_stats: xr.Dataset,
    bounds: Mapping | None = None,
    max_tree_depth: int | None = None,
    positions: xr.DataArray | None = None,
    recentred: Collection[str] = (),
) -> Verdict:
    """Judge a posterior.

    Parameters
    ----------
    posterior : xarray.Dataset
        Draws, dimensions ``chain, draw, ...``.
    sample_stats : xarray.Dataset
        ``diverging``, ``energy`` and ``tree_depth``.
    bounds : mapping of str to (float, float), optional
        Lower and upper bound of a variable's prior; used to notice posteriors pinned at an edge.
    max_tree_depth : int, optional
        Largest depth allowed; used to notice trees that were cut off.
    positions, recentred
        As of `diagnose_sampled`: what the sampler saw; used to notice parameters that never moved, and to judge sites
        that the posterior does not show.

    Returns
    -------
    Verdict
    """
    sampled = diagnose_sampled(posterior, positions, recentred)
    table = sampled.table[~sampled.table.index.isin(sampled.stuck)]
    energy = sample_stats["energy"].transpose("chain", "draw").to_numpy()
    if "n_steps" in sample_stats:  # independent proposals have no energy: of the trajectories between them
        energy = energy[:, (sample_stats["n_steps"].transpose("chain", "draw").to_numpy() > 0).all(axis=0)]
    min_bfmi = float(np.min(array_stats.bfmi(energy)))
    num_divergences = int(sample_stats["diverging"].sum())
    reasons, advice = [], []

    broken = [str(name) for name, variable in posterior.items() if not np.isfinite(variable).all()]
    if positions is not None:
        bad = ~np.isfinite(positions).all(["chain", "draw"]).to_numpy()  # type: ignore[call-overload]
        sites = (str(label).split("[")[0] for label in positions["parameter"].to_numpy()[bad])
        broken += [site for site in dict.fromkeys(sites) if site not in broken]
    if "lp" in sample_stats and not np.isfinite(sample_stats["lp"]).all():
        broken.append("the log density")
    if broken:
        reasons.append(f"draws that are not finite in {_listed(broken)}")
        advice.append("Check the priors' supports and the data for impossible values.")
    overflowing = table.index[np.isinf(table[["mcse_mean", "mcse_sd"]]).any(axis=1)]
    if len(overflowing) and not broken:
        reasons.append(f"the mean or the spread of {_listed(list(overflowing))} cannot be computed: numbers too large")
        advice.append("Scale the parameter.")
    if sampled.stuck:
        reasons.append(f"{_listed(sampled.stuck)} never moved: all draws are the same number")
    if sampled.coarse:
        reasons.append(
            f"{_listed(sampled.coarse)} moved in steps of more than {COARSE:g} standard deviations: floating-point "
            "numbers of that size are no closer to each other"
        )
    if sampled.stuck or sampled.coarse:
        advice.append('Sample in double precision (dtype="float64"), or subtract a reference value from the data.')
    unmixed = table.index[table["r_hat"] >= MAX_R_HAT]
    if len(unmixed):
        name, value = _extreme(table["r_hat"], "max")
        reasons.append(f"R-hat is {value:.3f} for {name} (below {MAX_R_HAT} is needed; {_failing(unmixed)})")
        apart = _modes(posterior, name)
        if apart:
            reasons.append(f"chains are in different modes: {apart}")
            advice.append("More draws will not help: ask whether the modes are real, and constrain the priors if not.")
        else:
            advice.append("Draw more, or look at the rank plot for chains that sit apart.")
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
        where = _where(posterior, sample_stats["diverging"])
        reasons.append(f"{num_divergences} divergent transitions{where}: some region was not explored")
        advice.append("Raise target_accept_prob, or use another parametrisation of the latents.")
    if not min_bfmi > MIN_BFMI:  # nor if it is NaN
        reasons.append(f"E-BFMI is {min_bfmi:.2f} (above {MIN_BFMI} is needed): the tails were not explored")
        advice.append("Reparametrise scale parameters, or use heavier steps in them.")
    notes = list(_edges(posterior, bounds or {}))
    if max_tree_depth is not None and "tree_depth" in sample_stats:
        share = float((sample_stats["tree_depth"] >= max_tree_depth).mean())
        if share > SATURATED:
            notes.append(
                f"{100 * share:.0f} % of the trees were cut off at the depth of {max_tree_depth}, which costs speed "
                "and not validity; a better parametrisation, or a larger max_tree_depth, would draw faster"
            )
    return Verdict(
        usable=not reasons,
        reasons=tuple(reasons),
        advice=tuple(dict.fromkeys(advice)),
        notes=tuple(notes),
        table=sampled.table[: len(sampled.table) - sampled.num_hidden],
        num_draws=posterior.sizes["chain"] * posterior.sizes["draw"],
        num_divergences=num_divergences,
        min_bfmi=min_bfmi,
    )


def _scalars(posterior):
    """Yield name and draws, (chain, draw), of every scalar parameter that varies."""
    for name, variable in posterior.items():
        if variable.ndim == 2:
            values = variable.transpose("chain", "draw").to_numpy().astype(float)
            if np.ptp(values) > 0:
                yield str(name), values


def _where(posterior, diverging) -> str:
    """Where in parameter space divergent transitions end, if they crowd anywhere."""
    at = diverging.transpose("chain", "draw").to_numpy().astype(bool).ravel()
    best, text = 4.0, ""  # standard errors from a uniform spread
    for name, values in _scalars(posterior):
        ranks = (np.argsort(np.argsort(values.ravel())) + 0.5) / values.size
        middle = ranks[at].mean()
        crowding = abs(middle - 0.5) * np.sqrt(12 * at.sum())
        if crowding > best:
            side = "low" if middle < 0.5 else "high"
            best, text = crowding, f" at {side} {name} (median {np.median(values.ravel()[at]):.3g})"
    return text


def _modes(posterior, label) -> str:
    """Which chains sit apart, if the chains of a parameter fall into two groups with nothing between them."""
    variable = posterior.get(label)
    if variable is None or variable.ndim != 2:
        candidates = list(_scalars(posterior))
    else:
        candidates = [(label, variable.transpose("chain", "draw").to_numpy().astype(float))]
    for name, values in candidates:
        means, within = values.mean(1), values.std(1)
        order = np.argsort(means)
        gaps = np.diff(means[order])
        cut = int(np.argmax(gaps)) + 1
        # Chains that never move sit apart as well, which says nothing of modes.
        if within.min() > 0 and gaps[cut - 1] > APART * 2 * within.max():
            groups = [sorted(int(c) for c in group) for group in (order[:cut], order[cut:])]
            return " and ".join(
                f"chain{'s' * (len(group) > 1)} {', '.join(map(str, group))} near {name} = {values[group].mean():.3g}"
                for group in groups
            )
    return ""


def _failing(names) -> str:
    return "1 parameter fails" if len(names) == 1 else f"{len(names)} parameters fail"


def _listed(names, most=5):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _edges(posterior, bounds):
    """Yield notes on parameters whose posterior leans on a bound of their prior."""
    for name, ends in bounds.items():
        if name in posterior and posterior[name].size <= MAX_EDGE_SIZE:
            values = posterior[name].transpose("chain", "draw", ...).to_numpy()
            yield from edge_notes(_element_labels(str(name), posterior[name]), values, ends)


def edge_notes(labels: Sequence[str], values: np.ndarray, ends: Iterable[float]) -> Iterator[str]:
    """Yield notes on elements of (chain, draw, ...) that lean on a bound of their prior."""
    elements = values.reshape(values.shape[0] * values.shape[1], -1).astype(float).T
    for bound in ends:
        if np.isfinite(bound):
            leaning = [label for label, draws in zip(labels, elements, strict=True) if _leans(draws, bound)]
            if leaning:
                verb = "leans" if len(leaning) == 1 else "lean"
                yield (
                    f"{_listed(leaning)} {verb} on the edge of the prior at {bound:g}: the density there is more "
                    f"than {100 * PINNED:.0f} % of its peak"
                )


def _leans(draws, bound) -> bool:
    """Whether the density next to a bound is a good part of its peak, both from slices of a fixed width."""
    distance = np.sort(np.abs(draws - bound))
    slice_ = EDGE * (np.quantile(distance, 0.95) - distance[0])
    if not slice_ > 0:  # stuck, or all at the bound
        return bool(distance[-1] == 0)
    counts = np.searchsorted(distance, distance + slice_, side="right") - np.arange(len(distance))
    return np.searchsorted(distance, slice_) > PINNED * counts.max()
