"""How centred the effects of each group of a regression are to be sampled: what the points say of them."""

from typing import Any

import numpy as np

from hbm_jax.data.regression.group_designs import GroupDesign
from hbm_jax.data.regression.regression_data import RegressionData
from hbm_jax.models.partial_centering import Form, form, form_of_some
from hbm_jax.models.regression.families import working

RIDGE = 1e-6  # of unit mean square, for coefficients that separation lets run away
STEPS = 6  # of reweighted least squares, which is enough for weights


def group_forms(link: str, unit: float, data: RegressionData) -> list[list[Form]]:
    """Centredness of the effects of every term and column.

    By reweighted least squares: what the coefficients of all points leave, and the least squares of that in each group.
    Where the data are traced and cannot be looked at, the effects of all groups are half centred.

    Parameters
    ----------
    link : str
        Of the family.
    unit : float
        Of the linear predictor.
    data : RegressionData

    Returns
    -------
    list (term) of list (column) of Form
    """
    if not data.groups:
        return []
    if not all(isinstance(array, np.ndarray) for array in (data.y, data.X, data.groups[0].values)):
        return [[form(np.full(_size(group), 1.0), 1.0, few=True)] * len(group.columns) for group in data.groups]
    left, weights = _left_over(link, data)
    return [_forms(group, left, weights, unit) for group in data.groups]


def _size(group: GroupDesign) -> int:
    return np.shape(group.modes)[1] if group.walk else len(group.labels)


def _left_over(link: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Working residuals of a fit without groups, and the information of each point."""
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
    left = response - fitted
    if link == "identity":
        weights = _precision(data, left)
    return left, weights


def _precision(data, left: np.ndarray) -> np.ndarray:
    """Precision of each point: by its known error, and by the scatter within the groups of the first term."""
    group = data.groups[0]
    num = len(group.labels)
    count = np.maximum(np.bincount(group.index, minlength=num), 1)
    mean = np.bincount(group.index, left, num) / count
    freedom = len(left) - num
    scatter = float(((left - mean[group.index]) ** 2).sum()) / freedom if freedom > 0 else 0.0
    known = np.asarray(data.error) ** 2
    return 1.0 / np.maximum(np.maximum(scatter, known), 1e-6 * float(np.var(left)) + 1e-300)


def _forms(group: GroupDesign, left, weights, unit: float) -> list[Form]:
    values, index = np.asarray(group.values), np.asarray(group.index)
    num, size = len(group.labels), values.shape[1]
    if group.walk:
        return [_walk_form(group, values[:, c], left, weights, unit) for c in range(size)]
    each = weights[:, None] * values
    normal = np.zeros((num, size, size))
    np.add.at(normal, index, each[:, :, None] * values[:, None, :])
    right = np.zeros((num, size))
    np.add.at(right, index, each * left[:, None])
    diagonal = np.diagonal(normal, axis1=1, axis2=2)
    floor = 1e-9 * np.maximum(diagonal.mean(axis=0), 1e-300)
    covariance = np.linalg.inv(normal + np.eye(size) * floor)
    estimates = (covariance @ right[..., None])[..., 0]
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    forms = []
    for c in range(size):
        known = diagonal[:, c] * variance[:, c] < 1e3  # not lost in those of the other columns
        known &= diagonal[:, c] > floor[c] * 1e3
        scale = _scale(values[:, c])
        some = np.where(known, estimates[:, c], 0.0) / unit * scale
        chosen, reference = form_of_some(some, unit**2 / variance[:, c] / scale**2, known)
        forms.append((chosen, reference * unit / scale))
    return forms


def _walk_form(group: GroupDesign, value, left, weights, unit: float) -> Form:
    """Of every mode of a walk; the modes are next to independent."""
    modes = np.asarray(group.modes)
    each = value[:, None] * modes[group.index]
    information = (weights[:, None] * each**2).sum(axis=0)
    estimates = (weights[:, None] * each * left[:, None]).sum(axis=0) / np.maximum(information, 1e-300)
    chosen, reference = form_of_some(estimates / unit, unit**2 * information, information > 0)
    return chosen, reference * unit


def _scale(value: np.ndarray) -> float:
    """Typical size of a column."""
    return float(np.sqrt(np.mean(value**2))) or 1.0
