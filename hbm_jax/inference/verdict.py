"""Convergence diagnostics of a posterior, and the verdict: whether it is usable, which criteria fail, and advice."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax.inference.model_check.result import ModelCheck
from hbm_jax.inference.modes.chains import exchanged, scalars, separate_groups
from hbm_jax.inference.sampler.ensemble.statistics import COLUMNS, WORST, element_statistics, min_bfmi, superchains_of
from hbm_jax.inference.sampler.kernels.advice import advice_against_divergences
from hbm_jax.inference.sampler.stopping import MAX_R_HAT, MIN_BFMI, MIN_ESS

# Width of the bins in which densities are measured, in units of that of the posterior. It is small because there are a
# few draws near the bound even if the density vanishes there.
BIN_WIDTH = 0.04
PINNED = 0.4  # density at a bound of the prior, relative to the peak, above which a note is written
MAX_EDGE_SIZE = 10_000_000  # draws of a variable; larger ones (latents of a large population) are not checked at bounds
MAX_CUT_OFF = 0.01  # fraction of trees that reach the maximum depth, above which a note is written
MAX_SPACING = 0.25  # largest spacing of neighbouring floating-point numbers, in posterior standard deviations
MAX_NAMES = 5  # parameters named in a reason or a note
LOOK = "hbm_jax.look_for_modes(fit)"
UNWRAPPED = "_unwrapped"  # ending of the site from which CircularReparam of NumPyro computes an angle


@dataclass(frozen=True)
class Verdict:
    """Verdict on the draws of a posterior.

    Attributes
    ----------
    usable : bool
        True if there are two chains or more, every R-hat (nested R-hat for superchains) < 1.01, every bulk and tail ESS
        >= 400, there is no divergence, every E-BFMI > 0.3, all draws are finite, every sampled parameter moves and is
        resolved in floating point, and no known mode is missing. Sites that are not in the table (names that begin with
        ``_``) count as well.
    reasons : tuple of str
        The criteria that fail, one clause each; empty if usable.
    advice : tuple of str
        Suggestions, one sentence each; empty if usable.
    notes : tuple of str
        Cautions that do not fail the fit, such as a posterior pinned at a bound of the prior.
    table : pandas.DataFrame
        ``r_hat, ess_bulk, ess_tail, mcse_mean, mcse_sd``; one row per scalar parameter or array element.
    num_draws, num_divergences : int
        Total over all chains.
    min_bfmi : float
        Smallest E-BFMI over chains.
    modes : str
        Outcome of the searches for modes before sampling, or of `hbm_jax.look_for_modes`. Both may miss a mode.
    model : ModelCheck or None
        Whether the data look like draws from the fitted model; None until `Fit.model_check` has been computed. It does
        not affect ``usable``.
    num_superchains : int
        Number of superchains; R-hat is then nested R-hat. 0 for independent chains.
    """

    usable: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    num_draws: int
    num_divergences: int
    min_bfmi: float
    modes: str = ""
    model: ModelCheck | None = None
    num_superchains: int = 0

    @property
    def worst_r_hat(self) -> tuple[str, float]:
        """Name of the parameter with the largest R-hat, and its R-hat."""
        return _extreme(self.table["r_hat"], "max")

    @property
    def smallest_ess(self) -> tuple[str, float]:
        """Name of the parameter with the smallest bulk or tail ESS, and its ESS."""
        return _extreme(self.table[["ess_bulk", "ess_tail"]].min(axis=1), "min")

    def __str__(self):
        if self.usable:
            (r_name, r_hat), (e_name, ess) = self.worst_r_hat, self.smallest_ess
            kind = f"nested R-hat of {self.num_superchains} superchains" if self.num_superchains else "R-hat"
            text = (
                f"usable: {self.num_draws} draws without divergence, largest {kind} {r_hat:.3f} ({r_name}), smallest "
                f"effective sample size {ess:.0f} ({e_name}), smallest E-BFMI {self.min_bfmi:.2f}."
            )
        else:
            text = f"not usable: {'; '.join(self.reasons)}. To try: {' '.join(self.advice)}"
        modes = [f"Modes: {self.modes}."] if self.modes else []
        text = " ".join([text, *modes, *(f"Note: {note}." for note in self.notes)])
        return text if self.model is None else f"{text}\nmodel: {self.model}"


def _extreme(column: pd.Series, kind: str) -> tuple[str, float]:
    """Return label and value of the maximum (``kind`` "max") or minimum of a column; ``("none", nan)`` if empty."""
    column = column.dropna()
    if column.empty:
        return "none", float("nan")
    name = column.idxmax() if kind == "max" else column.idxmin()
    return str(name), float(column[name])


def diagnose(
    posterior: Mapping[Any, xr.DataArray], num_superchains: int = 0, known: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Compute R-hat, effective sample sizes and Monte Carlo errors of every element of every variable.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Variables with dimensions ``chain, draw`` and any others.
    num_superchains : int
        Number of superchains, for nested R-hat; 0 if every chain has its own start.
    known : mapping of str to array, optional
        Results of `element_statistics` for some of the variables.

    Returns
    -------
    pandas.DataFrame
        Columns ``r_hat`` (rank-normalised, split), ``ess_bulk``, ``ess_tail``, and the Monte Carlo standard errors
        ``mcse_mean`` and ``mcse_sd``; one row per element, labelled ``name`` or ``name[coordinate]``. All are NaN for
        an element that never varies. For an element that varies, a statistic that cannot be computed gets its worst
        value: infinity for R-hat and errors, 0 for an ESS. R-hat of a single chain is NaN.
    """
    known = known or {}
    tables = []
    for name, variable in posterior.items():
        values = known[name] if name in known else element_statistics(variable, num_superchains)
        tables.append(pd.DataFrame(values, index=_element_labels(str(name), variable), columns=COLUMNS))
    return pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)


class Sampled(NamedTuple):
    """Diagnostics of every sampled site, including those that are not in the posterior.

    Attributes
    ----------
    table : pandas.DataFrame
        As from `diagnose`: first the rows of the posterior, then those of sites that are not in it. A parameter that
        never moved has the worst values.
    num_hidden : int
        Number of rows of sites that are not in the posterior.
    stuck, coarse : list of str
        Labels of parameters that never moved, and of parameters for which the spacing of neighbouring floating-point
        numbers exceeds `MAX_SPACING` standard deviations.
    """

    table: pd.DataFrame
    num_hidden: int
    stuck: list[str]
    coarse: list[str]


def diagnose_sampled(
    posterior: Mapping[Any, xr.DataArray],
    positions: xr.DataArray | None,
    recentred: Collection[str] = (),
    num_superchains: int = 0,
    known: Mapping[str, np.ndarray] | None = None,
) -> Sampled:
    """Compute diagnostics of a posterior and of the unconstrained draws.

    Parameters
    ----------
    posterior : xarray.Dataset or mapping of str to DataArray
        Variables with dimensions ``chain, draw`` and any others.
    positions : xarray.DataArray, optional
        Dimensions ``chain, draw, parameter``: the unconstrained draws, labelled ``site`` or ``site[index]``.
    recentred : collection of str
        Variables of the posterior that are sampled through an auxiliary site, element by element.
    num_superchains, known
        As in `diagnose`.
    """
    table = diagnose(posterior, num_superchains, known)
    if positions is None:
        return Sampled(table, 0, [], [])
    labels = positions["parameter"].to_numpy().astype(str)
    sites = np.array([label.split("[")[0] for label in labels])
    # The number of turns of an angle is arbitrary, and so is its convergence.
    turns = [
        s for s in dict.fromkeys(sites.tolist()) if s.endswith(UNWRAPPED) and s.removesuffix(UNWRAPPED) in posterior
    ]
    for name in set(turns) & set(map(str, posterior)):
        table.loc[_element_labels(name, posterior[name]), :] = np.nan
    is_judged = ~np.isin(sites, turns)
    positions, labels, sites = positions.isel(parameter=is_judged), labels[is_judged], sites[is_judged]
    num_draws = positions.sizes["chain"] * positions.sizes["draw"]
    # A constrained site may have fixed elements, as a correlation matrix does. Check the elements of sites whose size
    # does not change on constraining, and the unconstrained draws of all others.
    plain = [
        n for n, number in Counter(sites.tolist()).items() if n in posterior and posterior[n].size == number * num_draws
    ]
    checked = [(_element_labels(name, posterior[name]), posterior[name]) for name in (*plain, *recentred)]
    unconstrained = ~np.isin(sites, plain)
    checked.append((labels[unconstrained].tolist(), positions.isel(parameter=unconstrained)))
    stuck, coarse = [], []
    for names, variable in checked:
        values = variable.transpose("chain", "draw", ...).to_numpy()
        is_stuck, is_coarse = resolution(values.reshape(values.shape[0] * values.shape[1], -1))
        stuck += [name for name, flag in zip(names, is_stuck, strict=True) if flag]
        coarse += [name for name, flag in zip(names, is_coarse, strict=True) if flag]
    hidden = ~np.isin(sites, [str(name) for name in posterior])
    if hidden.any():
        hidden_table = diagnose({"": positions.isel(parameter=hidden)}, num_superchains)
        table = pd.concat([table, hidden_table.set_axis(labels[hidden])])
    table.loc[table.index.isin(stuck), :] = WORST
    return Sampled(table, int(hidden.sum()), stuck, coarse)


def resolution(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the elements that never moved, and of those that moved in coarse steps, (..., element) each.

    Parameters
    ----------
    draws : (..., draw, element)
        Draws; steps are coarse if the spacing of floating-point numbers exceeds `MAX_SPACING` standard deviations.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # draws may be infinite or NaN
        is_stuck = draws.max(axis=-2) == draws.min(axis=-2)
        spacing = np.spacing(np.abs(draws).max(axis=-2))
        return is_stuck, ~is_stuck & (spacing > MAX_SPACING * draws.std(axis=-2, dtype=float))


def _element_labels(name: str, variable: xr.DataArray) -> list[str]:
    """Return the labels of the elements of a variable, ``name[coordinate, ...]``, in C order."""
    dims = [dim for dim in variable.dims if dim not in ("chain", "draw")]
    if not dims:
        return [name]
    texts = [dimension_labels(variable, dim) for dim in dims]
    return [f"{name}[{', '.join(element)}]" for element in itertools.product(*texts)]


def dimension_labels(variable: xr.DataArray, dim: Any) -> list[str]:
    """Return the labels of a dimension as texts, with the index appended to each if two labels are equal."""
    texts = [
        str(label) for label in (variable[dim].to_numpy() if dim in variable.coords else range(variable.sizes[dim]))
    ]
    return texts if len(set(texts)) == len(texts) else [f"{text} ({i})" for i, text in enumerate(texts)]


def judge(
    posterior: xr.Dataset,
    sample_stats: xr.Dataset,
    bounds: Mapping | None = None,
    max_tree_depth: int | None = None,
    positions: xr.DataArray | None = None,
    recentred: Collection[str] = (),
    target_accept_prob: float = 0.8,
    num_superchains: int = 0,
    sampler: str = "nuts",
    known: Mapping[str, np.ndarray] | None = None,
) -> Verdict:
    """Judge whether a posterior is usable.

    Parameters
    ----------
    posterior : xarray.Dataset
        Draws, dimensions ``chain, draw, ...``.
    sample_stats : xarray.Dataset
        ``diverging``, ``energy`` and, for trajectories with equal steps, ``tree_depth``.
    bounds : mapping of str to (float, float), optional
        Lower and upper bound of the prior of each variable; used to detect posteriors pinned at a bound.
    max_tree_depth : int, optional
        Largest depth of the NUTS trees; used to detect trees that were cut off.
    positions, recentred
        Unconstrained draws and re-centred variables, as in `diagnose_sampled`; used to detect parameters that never
        moved and to judge sites that are not in the posterior.
    target_accept_prob : float
        Acceptance probability of the run; the advice against divergences names a larger one.
    num_superchains : int
        Number of superchains, whose chains share a start: nested R-hat replaces R-hat. 0 for independent chains.
    sampler : str
        Name of the sampler, for the advice against divergences.
    known : mapping of str to array, optional
        As in `diagnose`.
    """
    sampled = diagnose_sampled(posterior, positions, recentred, num_superchains, known)
    table = sampled.table[~sampled.table.index.isin(sampled.stuck)]
    smallest_bfmi = min_bfmi(sample_stats, num_superchains)
    num_divergences = int(sample_stats["diverging"].sum())
    failures = [
        *_numerical_failures(posterior, sample_stats, positions, sampled, table),
        *_convergence_failures(superchains_of(posterior, num_superchains), table, num_superchains),
        *_sampler_failures(
            posterior,
            sample_stats["diverging"],
            num_divergences,
            smallest_bfmi,
            advice_against_divergences(sampler, target_accept_prob, num_superchains),
        ),
    ]
    notes = list(_all_edge_notes(posterior, bounds or {}))
    if max_tree_depth is not None and "tree_depth" in sample_stats:
        fraction = float((sample_stats["tree_depth"] >= max_tree_depth).mean())
        if fraction > MAX_CUT_OFF:
            notes.append(
                f"{100 * fraction:.0f} % of the trees were cut off at the depth of {max_tree_depth}, which costs speed "
                "but not validity; faster would be a better parametrisation, or "
                f"sampler=hbm_jax.NUTS(max_tree_depth={max_tree_depth + 2})"
            )
    return Verdict(
        usable=not failures,
        reasons=tuple(reason for reason, _ in failures),
        advice=tuple(dict.fromkeys(advice for _, advice in failures if advice)),
        notes=tuple(notes),
        table=sampled.table[: len(sampled.table) - sampled.num_hidden],
        num_draws=posterior.sizes["chain"] * posterior.sizes["draw"],
        num_divergences=num_divergences,
        min_bfmi=smallest_bfmi,
        num_superchains=num_superchains,
    )


def with_modes(verdict: Verdict, modes: str, missing: str) -> Verdict:
    """Return a verdict with the outcome of the searches for modes, and the modes that are missing from the draws."""
    if missing:
        verdict = replace(
            verdict,
            usable=False,
            reasons=(*verdict.reasons, missing),
            advice=(*verdict.advice, f"Use the draws that {LOOK} returned, or constrain the priors to one mode."),
        )
    return replace(verdict, modes=modes)


def _numerical_failures(posterior, sample_stats, positions, sampled: Sampled, table) -> Iterator[tuple[str, str]]:
    """Yield reason and advice for draws that are not finite, overflow, never moved or moved in coarse steps."""
    broken = [str(name) for name, variable in posterior.items() if not np.isfinite(variable).all()]
    if positions is not None:
        not_finite = ~np.isfinite(positions).all(["chain", "draw"]).to_numpy()
        sites = (str(label).split("[")[0] for label in positions["parameter"].to_numpy()[not_finite])
        broken += [site for site in dict.fromkeys(sites) if site not in broken]
    if "lp" in sample_stats and not np.isfinite(sample_stats["lp"]).all():
        broken.append("the log density")
    if broken:
        yield (
            f"draws that are not finite in {_listed(broken)}",
            "Check the priors' supports and the data for impossible values.",
        )
    overflowing = table.index[np.isinf(table[["mcse_mean", "mcse_sd"]]).any(axis=1)]
    if len(overflowing) and not broken:
        yield (
            f"the mean or the spread of {_listed(list(overflowing))} cannot be computed: the values are too large",
            "Scale the parameter.",
        )
    precision = 'Sample in double precision (dtype="float64"), or subtract a reference value from the data.'
    if sampled.stuck:
        yield f"{_listed(sampled.stuck)} never moved: all draws are the same number", precision
    if sampled.coarse:
        yield (
            f"{_listed(sampled.coarse)} moved in steps of more than {MAX_SPACING:g} standard deviations: the spacing "
            "of floating-point numbers of that size",
            precision,
        )


def _convergence_failures(posterior, table, num_superchains: int = 0) -> Iterator[tuple[str, str]]:
    """Yield reason and advice for R-hat and effective sample sizes that fail; the advice may be empty."""
    unmixed = table.index[table["r_hat"] >= MAX_R_HAT]
    advice = "Draw more; if it grows slowly, reparametrise the slow parameters."
    if len(unmixed):
        name, value = _extreme(table["r_hat"], "max")
        kind = "nested R-hat" if num_superchains else "R-hat"
        reason = (
            f"{kind} is {_beyond_limit(value)} for {name} (below {MAX_R_HAT} is needed; {_number_failing(unmixed)})"
        )
        vectors = exchanged(posterior, dict.fromkeys(label.split("[")[0] for label in unmixed))
        modes = "" if vectors else groups_of_chains(posterior, table)
        chains = "superchains" if num_superchains else "chains"
        if vectors or modes:
            yield reason, ""
            advice = ""
        if vectors:
            yield (
                f"the components of {_listed(list(vectors))} change places (label switching): sorted in each draw, "
                f"they have an R-hat of at most {max(vectors.values()):.3f}",
                "More draws will not help, because the components are interchangeable: order one of the vectors in the "
                "program (numpyro.distributions.transforms.OrderedTransform), or relabel the draws.",
            )
        elif modes:
            yield (
                f"{chains} are in different modes: {modes.replace('chain', chains[:-1])}",
                f"More draws will not help: check whether the modes are real ({LOOK} gives their masses), and "
                "constrain the priors if not.",
            )
        else:
            yield reason, "Draw more, or look at the rank plot for chains that differ from the others."
    elif not num_superchains and posterior.sizes["chain"] < 2:
        yield "a single chain cannot show that it has converged", "Use at least two chains, preferably four."
    for column, kind in (("ess_bulk", "bulk"), ("ess_tail", "tail")):
        too_small = table.index[table[column] < MIN_ESS]
        if len(too_small):
            name, value = _extreme(table[column], "min")
            yield (
                f"the {kind} effective sample size is {value:.0f} for {name} ({MIN_ESS:.0f} is needed; "
                f"{_number_failing(too_small)})",
                advice,
            )


def groups_of_chains(posterior: Mapping[Any, xr.DataArray], table: pd.DataFrame) -> str:
    """Describe groups of chains in different modes, first of the parameter with the largest R-hat; empty if none."""
    name = _extreme(table["r_hat"], "max")[0]
    return separate_groups(posterior, name, _element(posterior, name))


def _sampler_failures(
    posterior, diverging, num_divergences: int, min_bfmi: float, advice: str
) -> Iterator[tuple[str, str]]:
    """Yield reason and advice for divergences, whose advice is given, and a small E-BFMI."""
    if num_divergences:
        region = _divergent_region(posterior, diverging)
        yield f"{num_divergences} divergent transitions{region}: some region was not explored", advice
    if not min_bfmi > MIN_BFMI:  # true for NaN too
        yield (
            f"E-BFMI is {min_bfmi:.2f} (above {MIN_BFMI} is needed): the tails were not explored",
            "Reparametrise scale parameters.",
        )


def _divergent_region(posterior, diverging) -> str:
    """Describe where in parameter space divergent transitions concentrate; empty if they do not."""
    divergent = diverging.transpose("chain", "draw").to_numpy().astype(bool).ravel()
    largest, text = 4.0, ""  # standard errors from a uniform spread
    for name, values in scalars(posterior):
        ranks = (np.argsort(np.argsort(values.ravel())) + 0.5) / values.size
        mean_rank = ranks[divergent].mean()
        significance = abs(mean_rank - 0.5) * np.sqrt(12 * divergent.sum())
        if significance > largest:
            side = "low" if mean_rank < 0.5 else "high"
            largest, text = significance, f" at {side} {name} (median {np.median(values.ravel()[divergent]):.3g})"
    return text


def _element(posterior: Mapping[Any, xr.DataArray], label: str) -> np.ndarray | None:
    """Return the draws, (chain, draw), of the element with a label; None for a site that is not in the posterior."""
    name = label.split("[")[0]
    if name not in posterior:
        return None
    values = posterior[name].transpose("chain", "draw", ...).to_numpy().astype(float)
    element = _element_labels(name, posterior[name]).index(label)
    return values.reshape(*values.shape[:2], -1)[..., element]


def _beyond_limit(r_hat: float) -> str:
    """Format an R-hat that is not below its limit with as many decimals as show this."""
    return next((text for text in (f"{r_hat:.{n}f}" for n in range(3, 9)) if float(text) > MAX_R_HAT), f"{r_hat:.3f}")


def _number_failing(names) -> str:
    """Return how many parameters fail, as text."""
    return f"{len(names)} parameter{' fails' if len(names) == 1 else 's fail'}"


def _listed(names) -> str:
    """Return the first names joined by commas, and the number of the others."""
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")


def _all_edge_notes(posterior, bounds):
    """Yield notes on all variables whose posterior is pinned at a bound of the prior."""
    for name, ends in bounds.items():
        if name in posterior and posterior[name].size <= MAX_EDGE_SIZE:
            values = posterior[name].transpose("chain", "draw", ...).to_numpy()
            yield from edge_notes(_element_labels(str(name), posterior[name]), values, ends)


def edge_notes(labels: Sequence[str], values: np.ndarray, ends: Iterable[float]) -> Iterator[str]:
    """Yield notes on elements of (chain, draw, ...) whose posterior is pinned at a bound of the prior."""
    elements = values.reshape(values.shape[0] * values.shape[1], -1).astype(float).T
    for bound in ends:
        if np.isfinite(bound):
            pinned = [label for label, draws in zip(labels, elements, strict=True) if _is_pinned(draws, bound)]
            if pinned:
                yield (
                    f"{_listed(pinned)} lean{'s' * (len(pinned) == 1)} on the edge of the prior at {bound:g}: the "
                    f"density there is more than {100 * PINNED:.0f} % of its peak"
                )


def _is_pinned(draws, bound) -> bool:
    """Return whether the density next to a bound exceeds `PINNED` of its peak, both from bins of equal width."""
    distance = np.sort(np.abs(draws - bound))
    bin_width = BIN_WIDTH * (np.quantile(distance, 0.95) - distance[0])
    if not bin_width > 0:  # stuck, or every draw at the bound
        return bool(distance[-1] == 0)
    counts = np.searchsorted(distance, distance + bin_width, side="right") - np.arange(len(distance))
    return np.searchsorted(distance, bin_width) > PINNED * counts.max()
