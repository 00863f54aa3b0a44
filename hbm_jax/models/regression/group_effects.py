"""Partial non-centring of the effects of groups in a regression, with weights computed from the data."""

from typing import Any

import numpy as np

from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.data.regression.regression_data import RegressionData
from hbm_jax.models.partial_centering import CentringWeight, centring_weight, centring_weight_of_some
from hbm_jax.models.regression.families import working

RIDGE = 1e-6  # relative ridge penalty, which keeps coefficients finite under separation
STEPS = 6  # iterations of reweighted least squares, enough for the accuracy that weights need


def group_centring_weights(link: str, unit: float, data: RegressionData) -> list[list[CentringWeight]]:
    """Return the partial non-centring of the effects of every term and column.

    The residuals of a fit without groups, by reweighted least squares, are fitted in each group. For traced data all
    groups have the same weight.

    Parameters
    ----------
    link : str
        Link of the family.
    unit : float
        Unit of the linear predictor.
    data : RegressionData
        Points with their terms of groups.

    Returns
    -------
    list (term) of list (column) of CentringWeight
    """
    if not data.groups:
        return []
    if not all(isinstance(array, np.ndarray) for array in (data.y, data.X, data.groups[0].values)):
        return [
            [centring_weight(np.full(_size(group), 1.0), 1.0, few=True)] * len(group.columns) for group in data.groups
        ]
    residuals, weights = _residuals(link, data)
    return [_centring_weights(group, residuals, weights, unit) for group in data.groups]


def _size(group: GroupDesign) -> int:
    """Return the number of latents of a column: modes of a random walk, or groups."""
    return np.shape(group.modes)[1] if group.walk else len(group.labels)


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
        scale = _scale(values[:, c])
        standardised = np.where(informative, estimates[:, c], 0.0) / unit * scale
        chosen, reference = centring_weight_of_some(standardised, unit**2 / variance[:, c] / scale**2, informative)
        centring_weights.append((chosen, reference * unit / scale))
    return centring_weights


def _walk_centring_weight(group: GroupDesign, value, residuals, weights, unit: float) -> CentringWeight:
    """Return the partial non-centring of the modes of a random walk, treating their amplitudes as independent."""
    modes = np.asarray(group.modes)
    predictors = value[:, None] * modes[group.index]
    information = (weights[:, None] * predictors**2).sum(axis=0)
    estimates = (weights[:, None] * predictors * residuals[:, None]).sum(axis=0) / np.maximum(information, 1e-300)
    chosen, reference = centring_weight_of_some(estimates / unit, unit**2 * information, information > 0)
    return chosen, reference * unit


def _scale(value: np.ndarray) -> float:
    """Return the root mean square of a column, or 1 if it is 0."""
    return float(np.sqrt(np.mean(value**2))) or 1.0
