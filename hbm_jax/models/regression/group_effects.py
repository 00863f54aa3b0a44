"""Effects of groups in a regression: partial non-centring with weights computed from the data, and their sites."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.data.regression.regression_data import RegressionData
from hbm_jax.models.partial_centering import CentringWeight, centring_weight_of_informative, sample_partially_centred
from hbm_jax.models.regression.families import working

RIDGE = 1e-6  # relative ridge penalty, which keeps coefficients finite under separation
STEPS = 6  # iterations of reweighted least squares, enough for the accuracy that weights need


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundEffects:
    """Effects of J groups on Q columns, bound to data.

    Attributes
    ----------
    name, factor, columns, walk, correlated, index, values, group_predictors, modes
        As in `hbm_jax.data.regression.group_designs.GroupDesign`.
    units : (Q,)
        Units of the default priors of the standard deviations of the effects.
    weights, reference : (Q, J) or (Q, J - 1) for a random walk, (Q,)
        Weights of the partial non-centring, and its reference scales.
    """

    name: str = field(metadata={"static": True})
    factor: str = field(metadata={"static": True})
    columns: tuple[str, ...] = field(metadata={"static": True})
    walk: bool = field(metadata={"static": True})
    correlated: bool = field(metadata={"static": True})
    index: Any
    values: Any
    group_predictors: Any
    modes: Any
    units: Any
    weights: Any
    reference: Any


def bind_effects(link: str, unit: float, data: RegressionData) -> tuple[BoundEffects, ...]:
    """Return the effects of every term of groups.

    Parameters
    ----------
    link : str
        Link of the family.
    unit : float
        Unit of the linear predictor.
    data : RegressionData
        Points with their terms of groups.
    """
    weights = group_centring_weights(link, unit, data)
    return tuple(_bound(group, unit, chosen) for group, chosen in zip(data.groups, weights, strict=True))


def _bound(group: GroupDesign, unit: float, weights: list[CentringWeight]) -> BoundEffects:
    """Return the effects of one term."""
    values = np.asarray(group.values)
    units = unit / np.array([_spread(column) for column in values.T])
    return BoundEffects(
        group.name,
        group.factor,
        group.columns,
        group.walk,
        group.correlated,
        np.asarray(group.index),
        values,
        np.asarray(group.group_predictors),
        np.asarray(group.modes),
        units / np.sqrt(len(group.labels)) if group.walk else units,
        np.stack([weight for weight, _ in weights]),
        np.array([scale for _, scale in weights]),
    )


def _spread(values: np.ndarray) -> float:
    """Return the standard deviation of a column, or its root mean square where the column is constant."""
    deviation = values.std()
    return deviation if deviation > 1e-9 * np.abs(values).max() else np.sqrt((values**2).mean())


def sample_effects(group: BoundEffects, coef, lkj: float, positive: Callable):
    """Sample the effects of a term, record them, and return them plus their means, (J, Q).

    Parameters
    ----------
    group : BoundEffects
        The term.
    coef : (K,)
        Coefficients of the design matrix.
    lkj : float
        Concentration of the prior of correlations.
    positive : callable
        ``positive("sd", unit, site, single)`` samples standard deviations; see `Regression.sample_positive`.
    """
    (num, _, _), size = group.group_predictors.shape, len(group.columns)
    site, single = f"{group.name}_sd", f"sd[{group.name}]"
    if size == 1:
        sd = positive("sd", group.units[0], site, single).reshape(1)
    else:
        with numpyro.plate(f"{group.name}_term", size):
            sd = jnp.broadcast_to(positive("sd", group.units, site, single), (size,))
    weights = list(zip(group.weights, group.reference, strict=True))
    if group.walk:
        effects = _sample_walks(group, sd, weights)
        _record(group, effects)
        return effects
    factor = _sample_correlation(group, lkj)
    means = group.group_predictors @ coef
    columns: list[Any] = []
    standard: list[Any] = []  # standard normals, with which the effects of later columns are correlated
    for c in range(size):
        location = means[:, c] + sd[c] * sum((factor[c, d] * z for d, z in enumerate(standard)), jnp.zeros(num))
        scale = sd[c] * factor[c, c]
        with numpyro.plate(group.factor, num):
            columns.append(sample_partially_centred(f"_{group.name}_{c}", location, scale, weights[c]))
        standard.append((columns[c] - location) / scale)
    effects = jnp.stack(columns, axis=-1)
    _record(group, effects - means)
    return effects


def _sample_correlation(group: BoundEffects, lkj: float):
    """Sample the Cholesky factor of the correlation matrix of the effects of a group, (Q, Q)."""
    size = len(group.columns)
    if size == 1 or not group.correlated:
        return jnp.eye(size)
    factor = jnp.asarray(numpyro.sample(f"_{group.name}_correlation", dist.LKJCholesky(size, lkj)))
    below = np.tril_indices(size, -1)
    with numpyro.plate(f"{group.name}_pair", len(below[0])):
        numpyro.deterministic(f"{group.name}_correlation", (factor @ factor.T)[below])
    return factor


def _sample_walks(group: BoundEffects, sd, weights: list[CentringWeight]):
    """Sample random walks with zero mean, (J, Q), by the amplitudes of their principal components."""
    walks, num = [], group.modes.shape[1]
    for c in range(len(group.columns)):
        with numpyro.plate(f"{group.name}_mode", num):
            amplitudes = sample_partially_centred(f"_{group.name}_{c}", jnp.zeros(num), sd[c], weights[c])
        walks.append(group.modes @ amplitudes)
    return jnp.stack(walks, axis=-1)


def _record(group: BoundEffects, effects) -> None:
    """Record effects (J, Q); those of a single column without the axis of columns."""
    name, (num, size) = f"{group.name}_effect", effects.shape
    if size == 1:
        with numpyro.plate(group.factor, num):
            numpyro.deterministic(name, effects[:, 0])
        return
    with numpyro.plate(group.factor, num, dim=-2), numpyro.plate(f"{group.name}_term", size, dim=-1):
        numpyro.deterministic(name, effects)


def group_centring_weights(link: str, unit: float, data: RegressionData) -> list[list[CentringWeight]]:
    """Return the partial non-centring of the effects of every term and column, for arguments as in `bind_effects`.

    The residuals of a fit without groups, by reweighted least squares, are fitted in each group.

    Returns
    -------
    list (term) of list (column) of CentringWeight
    """
    if not data.groups:
        return []
    residuals, weights = _residuals(link, data)
    return [_centring_weights(group, residuals, weights, unit) for group in data.groups]


def _residuals(link: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the working residuals of a fit without groups, and the weight of each point."""
    X = np.asarray(data.X) / np.sqrt((np.asarray(data.X) ** 2).mean(axis=0))
    eta = None
    for _ in range(STEPS):
        response, weights = working(link, data.y, data.trials, eta)
        response = response - data.offset
        normal = X.T @ (weights[:, None] * X)
        normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        fitted = X @ np.linalg.solve(normal, X.T @ (weights * response))
        eta = fitted + data.offset
        if link == "identity":
            break
    residuals = response - fitted
    if link == "identity":
        weights = _precision(data, residuals)
    return residuals, weights


def _precision(data, residuals: np.ndarray) -> np.ndarray:
    """Return the precision of each point, from the larger of its error and the scatter in groups of the first term."""
    group = data.groups[0]
    num = len(group.labels)
    count = np.maximum(np.bincount(group.index, minlength=num), 1)
    mean = np.bincount(group.index, residuals, num) / count
    freedom = len(residuals) - num
    scatter = float(((residuals - mean[group.index]) ** 2).sum()) / freedom if freedom > 0 else 0.0
    error_variance = np.asarray(data.error) ** 2
    return 1.0 / np.maximum(np.maximum(scatter, error_variance), 1e-6 * float(np.var(residuals)) + 1e-300)


def _centring_weights(group: GroupDesign, residuals, weights, unit: float) -> list[CentringWeight]:
    """Return weights of the partial non-centring of every column of a term, from least squares in each group."""
    values, index = np.asarray(group.values), np.asarray(group.index)
    num, size = len(group.labels), values.shape[1]
    if group.walk:
        return [_walk_centring_weight(group, values[:, c], residuals, weights, unit) for c in range(size)]
    weighted_values = weights[:, None] * values
    normal = np.zeros((num, size, size))
    np.add.at(normal, index, weighted_values[:, :, None] * values[:, None, :])
    moments = np.zeros((num, size))
    np.add.at(moments, index, weighted_values * residuals[:, None])
    diagonal = np.diagonal(normal, axis1=1, axis2=2)
    floor = 1e-9 * np.maximum(diagonal.mean(axis=0), 1e-300)
    covariance = np.linalg.inv(normal + np.eye(size) * floor)
    estimates = (covariance @ moments[..., None])[..., 0]
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    centring_weights = []
    for c in range(size):
        informative = diagonal[:, c] * variance[:, c] < 1e3  # not degenerate with the other columns
        informative &= diagonal[:, c] > floor[c] * 1e3
        scale = float(np.sqrt(np.mean(values[:, c] ** 2))) or 1.0  # 1 for a column of zeros
        standardised = np.where(informative, estimates[:, c], 0.0) / unit * scale
        chosen, reference = centring_weight_of_informative(
            standardised, unit**2 / variance[:, c] / scale**2, informative
        )
        centring_weights.append((chosen, reference * unit / scale))
    return centring_weights


def _walk_centring_weight(group: GroupDesign, value, residuals, weights, unit: float) -> CentringWeight:
    """Return the partial non-centring of the modes of a random walk, treating their amplitudes as independent."""
    modes = np.asarray(group.modes)
    predictors = value[:, None] * modes[group.index]
    information = (weights[:, None] * predictors**2).sum(axis=0)
    estimates = (weights[:, None] * predictors * residuals[:, None]).sum(axis=0) / np.maximum(information, 1e-300)
    chosen, reference = centring_weight_of_informative(estimates / unit, unit**2 * information, information > 0)
    return chosen, reference * unit
