"""Check whether the data look like draws from the fitted model.

Under the right model, the data and one draw of the posterior have the joint distribution of the model: given the
parameters of that draw, measured data and data replicated from them are exchangeable, and the rank of any discrepancy
T(y, theta) among those of the replicates is exactly uniform (Johnson 2007, Bayesian Analysis 2, 719). This holds for
any number of data, and the p-values are not conservative as those of posterior predictive checks, which use the data
twice.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax.inference.blinding.blinding import unconstrained_draws
from hbm_jax.inference.model_check import residual_statistics as rs
from hbm_jax.inference.model_check.compiled_replicates import compiled_replicates
from hbm_jax.inference.model_check.p_values import combined, distances_of, family_scores_of, p_value_of, scores_of
from hbm_jax.inference.model_check.replicates import (
    Site,
    Structure,
    completed,
    inspect_program,
    split_positions,
    without_padding,
)
from hbm_jax.inference.model_check.result import ModelCheck, UnusualResiduals, unusual_residuals
from hbm_jax.inference.program import coords_of, remedies_of

LEVEL = 0.05  # p-value below which the model fails
NUM_DRAWS = 5  # posterior draws at which the data are compared with replicates
NOTABLE = 2.5  # smallest score of a family that is named in addition to the most unusual one
MAX_CLAUSES = 3  # families named
AS_UNUSUAL = 0.3  # statistics with scores within this of the largest are ordered by distance from the replicates
AS_FAR = 0.8  # of statistics at least this fraction of the largest distance away, the first is named
REMEDIES = {
    "distribution": "a part of the model for outliers, another population, or a selection",
    "trend": "another component or covariate, or a selection",
    "scatter": "a scatter that changes, or other errors",
    "groups": "effects of these groups",
    "neighbours": "another component",
}


class FittedProgram(Protocol):
    """Members of a `hbm_jax.Fit` that the check uses; the class itself imports this module."""

    tree: xr.DataTree
    program: Callable | None
    args: tuple

    @property
    def bound_args(self) -> tuple:
        """Arguments with which the program is traced."""


def check_model(
    fit: FittedProgram, *, seed: int = 0, num_draws: int = NUM_DRAWS, num_replicates: int | None = None
) -> ModelCheck:
    """Check whether the data look like draws from the fitted model.

    Parameters
    ----------
    fit : Fit
        With its program and data; any NumPyro program with observed sites.
    seed : int
        Seed of the choice of draws and of the replicates.
    num_draws : int
        Number of posterior draws.
    num_replicates : int, optional
        Replicated data sets at each draw, 20 or more; 200 by default, and fewer for more than 1300 values.

    Returns
    -------
    ModelCheck
        If the program cannot be replicated, ``passed`` is None and ``sentence`` gives the reason.

    Raises
    ------
    ValueError
        For ``num_draws`` or ``num_replicates`` out of range.

    Notes
    -----
    At each draw the residuals of each component of each observed site are standardised by the replicates. If components
    or objects are correlated, the residuals from the conditional mean given all other values are examined as well. The
    statistics are:

    - width, skewness, tails and extremes of the distribution of the residuals;
    - the number of values, and of maxima, minima and means of objects, expected beyond the outermost measured one;
    - their mean and scatter against every covariate of the data, by rank and in bins, and in every group;
    - products of the residuals of two components;
    - products of the residuals of neighbours in the order of each covariate.

    Latents that were integrated out are drawn anew with the replicates. Sampled latents of objects are kept in one set
    of replicates and drawn anew in a second. At each draw, the tail probabilities of all statistics are combined, and
    the combination is ranked among those of the replicates.

    `numpyro.factor` terms are not data and are not checked.

    Examples
    --------
    >>> check_model(fit).passed  # doctest: +SKIP
    True
    """
    if num_draws < 1 or (num_replicates is not None and num_replicates < 20):
        raise ValueError(
            f"check_model: expected num_draws >= 1 and num_replicates >= 20; found {num_draws} and {num_replicates}."
        )
    if fit.program is None:
        return _unchecked("the fit was loaded without its program; pass it to load()")
    try:
        with jax.enable_x64(True):
            structure = inspect_program(fit.program, fit.bound_args, coords_of(fit.program, fit.args))
            if not structure.observed:
                return _unchecked("no site of the program is observed")
            draws = _choose_draws(fit, structure, num_draws, seed)
            rng = np.random.default_rng(seed)
            keys = np.random.default_rng([seed, 1]).integers(2**32, size=(num_draws, *_key_shape()), dtype=np.uint32)
            example = {name: values[0] for name, values in draws.items()}
            draw = compiled_replicates(fit.program, fit.bound_args, structure, num_replicates, example, keys[0], rng)
            pools = [draw({name: values[k] for name, values in draws.items()}, keys[k]) for k in range(num_draws)]
        # Replicates of the later draws are computed while those of the first are judged.
        return judge_pools(pools, structure, fit.args, remedies_of(fit.program))
    except Exception as error:  # a failed check must not discard the fit
        return _unchecked(f"{type(error).__name__}: {str(error).rstrip('.')}")


def _key_shape() -> tuple[int, ...]:
    """Return the shape of the data of a random key; NumPy draws them because operations of JAX are compiled."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def _unchecked(reason: str) -> ModelCheck:
    """Return the result for a model that could not be checked."""
    return ModelCheck(None, float("nan"), f"the model could not be checked because {reason}")


def _choose_draws(fit: FittedProgram, structure: Structure, num_draws: int, seed: int) -> dict[str, np.ndarray]:
    """Return the unconstrained latents at posterior draws, spread over the chains, (num_draws, ...) by site."""
    positions = unconstrained_draws(fit).to_numpy()
    num_chains, num_per_chain, size = positions.shape
    needed = sum(int(np.prod(shape)) for shape in structure.latents.values())
    if needed != size:
        raise ValueError(f"expected the program of the fit, with {size} unconstrained parameters; found {needed}")
    rng = np.random.default_rng(seed)
    points = positions[np.arange(num_draws) % num_chains, rng.integers(0, num_per_chain, num_draws)]
    return split_positions(np.asarray(points, float), structure)


def judge_pools(
    pools: Sequence[Mapping[tuple[str, str], Mapping[str, Any]]],
    structure: Structure,
    args: tuple,
    remedies: Mapping[str, str] | None = None,
) -> ModelCheck:
    """Judge pools of measured and replicated values; see `check_model`.

    Parameters
    ----------
    pools : sequence of mapping
        Results of `replicator`, one for each posterior draw.
    structure : Structure
        Sites of the program.
    args : tuple
        Arguments of the program, which contain the covariates.
    remedies : mapping of str to str, optional
        Advice by family of statistics, in place of `REMEDIES`.
    """
    covariates = {
        name: rs.find_covariates(
            args,
            site.shape,
            _components(without_padding(pools[0][name, "given latents"]["values"], site, 1)[0], site),
            site.axes,
            site.components,
        )
        for name, site in structure.observed.items()
    }
    p_value, table, residuals, num_replicates = _scored(pools, structure, covariates)
    worst = _worst(table, residuals, covariates)
    passed = p_value >= LEVEL
    advice: tuple[str, ...] = ()
    if passed:
        sentence = (
            f"the data look like draws from the fitted model (p = {p_value:.2g} for {len(table)} statistics of "
            "residuals together)"
        )
    else:
        clauses, families = _clauses(table, residuals, covariates, structure)
        sentence = f"the data do not look like draws from the fitted model (p = {p_value:.1g}): {'; '.join(clauses)}"
        by_family = REMEDIES | dict(remedies or {})
        advice = tuple(dict.fromkeys(by_family[family] for family in families))
    table = table.drop(columns="family_score").reset_index(drop=True)
    return ModelCheck(passed, p_value, sentence, advice, table, len(pools), num_replicates, worst)


def _scored(
    pools: Sequence[Mapping[tuple[str, str], Mapping[str, Any]]], structure: Structure, covariates: Mapping
) -> tuple[float, pd.DataFrame, dict[tuple[str, str], list[rs.Residuals]], int]:
    """Return the p-value of all pools, the table of statistics, the residuals of the last pool, and its replicates."""
    designs = {name: _Designs(site, *covariates[name]) for name, site in structure.observed.items()}
    p_values: list[float] = []
    scored: dict[tuple, list[tuple[float, float]]] = {}
    family_scores: dict[tuple[str, str], list[float]] = {}
    last: dict[tuple[str, str], list[rs.Residuals]] = {}
    for on_device in pools:
        pool = {key: completed(values, structure.observed[key[0]]) for key, values in jax.device_get(on_device).items()}
        num_replicates = len(next(iter(pool.values()))["values"]) - 1
        for level in dict.fromkeys(level for _, level in pool):
            statistics, keys = [], []
            for name, site in structure.observed.items():
                last[name, level] = _residuals(pool[name, level], site, name)
                for statistic in _statistics(last[name, level], designs[name]):
                    statistics.append(statistic)
                    keys.append((name, level, statistic.residuals, statistic.kind, statistic.covariate))
            if not statistics:
                raise ValueError("no observed value differs between replicates")
            two_sided = np.array([statistic.two_sided for statistic in statistics])
            values = np.stack([statistic.values for statistic in statistics])
            scores = scores_of(values, two_sided)
            weights = np.array([rs.WEIGHTS.get(statistic.kind, 1.0) for statistic in statistics])
            p_values.append(p_value_of(scores, weights))
            families = family_scores_of([rs.FAMILIES[statistic.kind] for statistic in statistics], scores)
            for key, *measured in zip(keys, scores[:, 0], distances_of(values, two_sided), strict=True):
                scored.setdefault(key, []).append(tuple(measured))
            for family, score in families.items():
                family_scores.setdefault((level, family), []).append(score)
    return combined(p_values), _table(scored, family_scores), last, num_replicates


def _components(values: np.ndarray, site: Site) -> list[np.ndarray]:
    """Return the components of the values of a site."""
    return [values[..., k] for k in range(len(site.components))] if site.components else [values]


def _residuals(pool: Mapping[str, np.ndarray], site: Site, name: str) -> list[rs.Residuals]:
    """Return the residuals of each component and, if they differ, those given all other values."""
    mask = pool["valid"]  # of the leading axes of the site
    valid = np.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(site.shape) - mask.ndim)), site.shape).ravel()
    labels, empty = site.components or (name,), np.zeros(0)

    group = np.repeat(np.arange(site.shape[0]), int(np.prod(site.shape[1:]))) if len(site.shape) > 1 else None

    def standardised(array, k, label):
        values = array[..., k] if site.components else array
        return rs.residuals_of(values, label, valid, group)

    scores = pool.get("scores")
    if scores is None and len(site.components) > 1:
        scores = _scores_of_components(np.asarray(pool["values"], float))
    residuals = []
    for k, label in reversed(list(enumerate(labels))):  # the response is the last component, and is named first
        marginal = standardised(pool["values"], k, label)
        if marginal is None:
            continue
        residuals.append(marginal)
        if scores is not None:
            conditional = standardised(scores, k, label)
            if conditional is not None and not _nearly_equal(conditional, marginal):
                text = f"{label} given {'the other components' if site.components else 'all others'}"
                residuals.append(conditional._replace(label=text, mean=empty, spread=empty, beyond={}))
    return residuals


def _scores_of_components(values: np.ndarray) -> np.ndarray:
    """Return the residual of each component given the others of the same element, times a constant.

    The covariance between components is estimated at each element from the draws of the pool, the first axis of
    ``values`` (pool, ..., component).
    """
    deviation = values - values.mean(axis=0)
    spread = deviation.std(axis=0)
    deviation = deviation / np.where(spread > 0, spread, 1.0)
    correlation = np.einsum("p...i,p...j->...ij", deviation, deviation) / len(values)
    inverse = np.linalg.pinv(np.nan_to_num(correlation), hermitian=True)
    return np.einsum("...ij,p...j->p...i", inverse, deviation)


def _nearly_equal(a: rs.Residuals, b: rs.Residuals) -> bool:
    """Return whether residuals of the same elements have a correlation above 0.99."""
    return np.array_equal(a.elements, b.elements) and float((a.values * b.values).mean()) > 0.99


class _Designs:
    """Designs of the covariates of a site, computed once for each set of elements."""

    def __init__(self, site: Site, numeric: Sequence[rs.Covariate], groups: Sequence[rs.Covariate]):
        self.numeric, self.groups = numeric, groups
        self._block = np.zeros(site.shape, int).ravel()  # elements of different blocks are no neighbours
        if len(site.shape) > 1:
            self._block = np.repeat(np.arange(site.shape[0]), int(np.prod(site.shape[1:])))
        self._known: dict[bytes, tuple[list[rs.Design], list[rs.Design]]] = {}

    def __call__(self, residuals: rs.Residuals) -> tuple[list[rs.Design], list[rs.Design]]:
        """Return the designs of numeric covariates, including predictions of the replicates, and of groups."""
        index, block = residuals.elements, self._block[residuals.elements]
        key = index.tobytes()
        if key not in self._known:
            designs = [rs.design_of(c.name, c.values[index], block) for c in self.numeric]
            columns = [(c.name, c.values[index]) for c in self.groups]
            empty = np.zeros(0, int)
            self._known[key] = (
                [design for design in designs if design is not None],
                [
                    rs.Design(name, empty, rs.group_matrix(codes), empty, empty)
                    for name, codes in columns
                    if len(np.unique(codes[codes >= 0])) > 1
                ],
            )
        numeric, groups = self._known[key]
        predicted = (rs.design_of(name, values, block) for name, values in rs.predictions_of(residuals))
        return [*numeric, *(design for design in predicted if design is not None)], groups


def _statistics(residuals: Sequence[rs.Residuals], designs: _Designs):
    """Yield all statistics of a site."""
    marginal = [r for r in residuals if len(r.mean)]
    for r in residuals:
        # Each pair of components once; residuals given the others may depend on any of the others.
        position = [other.component for other in marginal].index(r.component)
        others = marginal[:position] + (marginal[position + 1 :] if not len(r.mean) else [])
        yield from rs.statistics_of(r, others, *designs(r))


def _table(
    scored: Mapping[tuple, list[tuple[float, float]]], family_scores: Mapping[tuple[str, str], list[float]]
) -> pd.DataFrame:
    """Return scores and distances averaged over draws; the index is the order of the statistics.

    The most unusual family and statistic come first. No score exceeds that of the extreme of the replicates, so
    statistics with nearly equal scores are ordered by their distances.
    """
    table = pd.DataFrame(list(scored), columns=["site", "level", "residuals", "kind", "covariate"])
    table["family"] = [rs.FAMILIES[kind] for kind in table["kind"]]
    table[["score", "distance"]] = [np.mean(values, axis=0) for values in scored.values()]
    family = [table["level"], table["family"]]
    table["family_score"] = [float(np.mean(family_scores[key])) for key in zip(*family, strict=True)]
    leading = table["score"] >= table.groupby(family)["score"].transform("max") - AS_UNUSUAL
    largest = table["distance"].where(leading).groupby(family).transform("max")
    # Families by their score, then by the largest distance of a leading statistic; in a family, leading statistics
    # first, by their distance.
    keys = {
        "rank": -(table["family_score"] / AS_UNUSUAL).round(),
        "largest": -largest,
        "leading": ~leading,
        "distance": -table["distance"],
    }
    return table.loc[table.assign(**keys).sort_values(list(keys)).index]


def _covariate(row, residuals: rs.Residuals, others, numeric, groups) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values of the covariate of a statistic at its residuals, and the labels of groups.

    If the covariate is another component, these are its residuals.
    """
    if rs.FAMILIES[row.kind] == "groups":
        group = next(group for group in groups if group.name == row.covariate)
        return group.values[residuals.elements], group.labels
    values = {o.label: o.values[:, 0] for o in others if np.array_equal(o.elements, residuals.elements)}
    values |= {covariate.name: covariate.values[residuals.elements] for covariate in numeric}
    # Included even if constant at this draw: at another, they may vary enough for the statistic.
    if len(residuals.mean):
        values |= {"the expected value": residuals.mean, "the expected scatter": residuals.spread}
    return values.get(row.covariate, np.zeros(0)), ()


def _covariate_name(covariate: str, residuals: Sequence[rs.Residuals]) -> str:
    """Return the name of a covariate for a sentence; a component of the site stands for its residuals."""
    return f"the residual of {covariate}" if covariate in (other.component for other in residuals) else covariate


def _clauses(table, all_residuals, covariates, structure) -> tuple[list[str], list[str]]:
    """Describe the most unusual statistic of each unusual family, at the last draw; return clauses and families."""
    clauses: list[str] = []
    families: list[str] = []
    for _, rows in table.groupby("family", sort=False):
        leading = rows[rows["score"] >= rows["score"].max() - AS_UNUSUAL]
        farthest = leading[leading["distance"] >= AS_FAR * leading["distance"].max()]
        row = next(farthest.sort_index().itertuples())  # the first in the order of the statistics
        if families and (row.family_score < NOTABLE or len(families) == MAX_CLAUSES):
            break
        residuals = next((r for r in all_residuals[row.site, row.level] if r.label == row.residuals), None)
        if residuals is None:
            continue
        site = structure.observed[row.site]
        values, labels = _covariate(row, residuals, all_residuals[row.site, row.level], *covariates[row.site])
        if labels and len(labels) == site.shape[0] and row.covariate == site.axes[0]:
            labels = site.axis_labels[0]

        def name_of(index, site=site):
            indices = np.unravel_index(index, site.shape)
            return ", ".join(labels[i] for labels, i in zip(site.axis_labels, indices, strict=True)) or "the datum"

        covariate = _covariate_name(row.covariate, all_residuals[row.site, row.level])
        clause = _describe(row.kind, residuals, covariate, values, labels, name_of)
        clauses.append(clause + (", with the latents of objects drawn anew" if row.level == "population" else ""))
        families.append(row.family)
    return clauses, families


def _worst(table: pd.DataFrame, all_residuals, covariates) -> UnusualResiduals | None:
    """Return the residuals of the most unusual statistic, with its covariate; None if they are not available.

    If this statistic has no covariate, the covariate is that of the next most unusual statistic of the same residuals.
    """
    row = next(table.itertuples())
    same = table[(table["site"] == row.site) & (table["level"] == row.level) & (table["residuals"] == row.residuals)]
    residuals = next((r for r in all_residuals[row.site, row.level] if r.label == row.residuals), None)
    if residuals is None:
        return None
    for candidate in (row, *same.sort_values("score", ascending=False).itertuples()):
        values, labels = _covariate(candidate, residuals, all_residuals[row.site, row.level], *covariates[row.site])
        if len(values):
            bins = np.asarray(values, int) if labels else rs.bins_of(values)
            covariate = _covariate_name(candidate.covariate, all_residuals[row.site, row.level])
            return unusual_residuals(row.residuals, covariate, residuals.values, values, labels, bins)
    return unusual_residuals(row.residuals, "", residuals.values, np.zeros(0), (), np.zeros(0, int))


def _describe(
    kind: str, residuals: rs.Residuals, covariate: str, values: np.ndarray, labels: Sequence[str], name_of
) -> str:
    """Describe in one clause what is unusual in the measured residuals.

    Parameters
    ----------
    kind : str
        Kind of the statistic.
    residuals : rs.Residuals
        Residuals of one component.
    covariate : str
        Name of the covariate; may be empty.
    values : array (element,)
        Values of the covariate, or codes of its groups; may be empty.
    labels : sequence of str
        Labels of the groups.
    name_of : callable
        Position in the flattened site -> name of the element.
    """
    label, r = residuals.label, residuals.values[:, 0].astype(float)
    if kind in ("bins", "trend", "scatter bins", "scatter trend") and len(values):
        return _describe_bins(kind, label, r, covariate, values)
    if kind in ("groups", "group", "scatter of groups"):
        return _describe_group(kind, label, r, covariate, values, labels)
    num_far = int((np.abs(r) > rs.FAR).sum())
    row = int(np.abs(r).argmax())
    tails = "longer" if (r**4).mean() > np.median((residuals.values**4).mean(axis=0)) else "shorter"
    with_covariate = f" with {covariate}" if covariate else ""
    if kind in residuals.beyond:
        size, end = ("small", "smallest") if kind.startswith("low") else ("large", "largest")
        quantity = f"{kind.partition(' of ')[2] or 'values'} of {label}"
        return f"{size} {quantity} are missing: {residuals.beyond[kind][0]:.2g} were expected beyond the {end}"
    return {
        "width": f"{label} scatters {np.sqrt((r**2).mean()):.2g} times as much as expected",
        "skewness": f"the residuals of {label} are skewed towards {'large' if (r**3).mean() > 0 else 'small'} values",
        "tails": f"the residuals of {label} have {tails} tails than expected",
        "largest": f"{label} of {name_of(residuals.elements[row])} is {r[row]:+.1f} standard deviations off",
        "far": f"{num_far} of {len(r)} residuals of {label} are beyond {rs.FAR:g} standard deviations",
        "level": f"{label} is off by {r.mean():+.2g} standard deviations on average",
        "trend": f"the residuals of {label} are correlated{with_covariate}",
        "curvature": f"the residuals of {label} depend on {covariate} along a curve",
        "scatter trend": f"the scatter of {label} changes{with_covariate}",
        "neighbours": f"the residuals of neighbours in {covariate} are alike for {label}",
    }[kind]


def _describe_bins(kind: str, label: str, r: np.ndarray, covariate: str, values: np.ndarray) -> str:
    """Describe the residuals of the bin of a covariate whose residuals are most unusual."""
    codes = rs.bins_of(values)
    quantity = r**2 - 1.0 if kind.startswith("scatter") else r
    deviation = np.abs(rs.group_matrix(codes) @ quantity)
    members = codes == int(deviation.argmax())
    region = f"where {covariate} is {values[members].min():.3g} to {values[members].max():.3g}"
    if kind.startswith("scatter"):
        return f"{label} scatters {np.sqrt((r[members] ** 2).mean()):.2g} times as much as expected {region}"
    return f"{label} is off by {r[members].mean():+.2g} standard deviations {region}"


def _describe_group(kind: str, label: str, r: np.ndarray, covariate: str, values, labels) -> str:
    """Describe the residuals of the group whose residuals are most unusual."""
    quantity = r**2 - 1.0 if kind == "scatter of groups" else r
    deviation = rs.group_matrix(values) @ quantity
    worst = int((deviation if kind == "scatter of groups" else np.abs(deviation)).argmax())
    members, group = values == worst, f"for {covariate} {labels[worst]}"
    if kind == "scatter of groups":
        return f"{label} scatters {np.sqrt((r[members] ** 2).mean()):.2g} times as much as expected {group}"
    ending = "; groups differ by more than expected" if kind == "groups" else ""
    return f"{label} is off by {r[members].mean():+.2g} standard deviations {group}{ending}"
