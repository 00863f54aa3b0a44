"""Points of a linear relation bound to the model, with estimates of the lines of groups from their own points."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.distributions.linear.measured_points import Limits
from hbm_jax.models.partial_centering import GaussianLikelihood, slopes_of_groups
from hbm_jax.models.selection import Selection
from hbm_jax.precomputation import padded_axis

MIN_ERROR = 1e-3  # smallest error that whitens a sampled predictor, in standard deviations of the predictor


class GroupMeans(NamedTuple):
    """Means over the points of each of J groups, and the numbers of points.

    Attributes
    ----------
    values, variances : (J, D)
        Measured values, and variances of their errors.
    num : (J,)
        Numbers of points.
    """

    values: Any
    variances: Any
    num: Any

    @classmethod
    def of(cls, data: PointsInGroups) -> "GroupMeans":
        """Return the means over the points of each group."""
        num, used = data.used.sum(axis=1), data.used[..., None]

        def mean(array):
            return np.where(used, array, 0.0).sum(axis=1) / num[:, None]

        return cls(mean(data.values), mean(np.diagonal(data.errors, axis1=-2, axis2=-1)), num)

    def intercept(self, alpha, pivot, scatter) -> GaussianLikelihood:
        """Return the likelihood of the intercept of each group, for slopes (J, P)."""
        variance = scatter**2 + self.variances[:, -1] + (alpha**2 * self.variances[:, :-1]).sum(-1)
        estimate = self.values[:, -1] - (alpha * (self.values[:, :-1] - pivot)).sum(-1)
        return GaussianLikelihood(estimate, self.num / variance)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundPoints:
    """Points with P predictors and a response (D = P + 1) in J groups of at most M points, bound to a `Relation`.

    Attributes
    ----------
    predictors : tuple of str
        Names of the predictors.
    values, errors, used, group_predictors
        As in `hbm_jax.data.PointsInGroups`. Where the intercepts are integrated out, ``errors`` are (J, M, 3): variance
        of x, covariance and variance of y.
    center, unit : (D,)
        Mean and standard deviation of the measured values, which scale the default priors.
    pivot : (P,)
        Values of the predictors at which the response is the intercept.
    limits : Limits or None
        Upper and lower limits.
    slopes, means : Slopes, GroupMeans or None
        Estimates of the lines of the groups from their own points, with partial pooling.
    x_information : (J, M) or None
        Inverse variances of the errors of x, where true predictors are whitened; 0 in padding.
    cuts : tuple of (J, M) or None
        For each selection, the limits of the points, or None where the limit is a parameter.
    log_evolution : (J, M) or None
        Logarithm of the factor of redshift whose powers multiply the coordinates; 0 in padding.
    common_error : (J,) or None
        Standard deviation of the error of y that is common to all points of a group.
    common_error_x : (J, P) or None
        The same of the predictors.
    injections : (I, D + 1) or None
        Found injections, where the selection is by them: true coordinates and the logarithms of their densities.
    num_injections : () or None
        Number of injections, found or not.
    """

    predictors: tuple[str, ...] = field(metadata={"static": True})
    values: Any
    errors: Any
    used: Any
    group_predictors: Any
    center: Any
    unit: Any
    pivot: Any
    limits: Limits | None
    slopes: Any
    means: Any
    x_information: Any
    cuts: tuple[Any, ...] = ()
    log_evolution: Any = None
    common_error: Any = None
    common_error_x: Any = None
    injections: Any = None
    num_injections: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameters of the predictors: scalars for a single one."""
        return () if len(self.predictors) == 1 else (len(self.predictors),)

    @property
    def x_unit(self):
        """Standard deviations of the predictors, of the shape of their parameters."""
        return self.unit[:-1].reshape(self.shape)

    @property
    def x_center(self):
        """Means of the predictors, of the shape of their parameters."""
        return self.center[:-1].reshape(self.shape)


def bind_points(model: Any, data: PointsInGroups, pooling: str, integrates: bool) -> BoundPoints:
    """Return points bound to a `hbm_jax.models.Relation`.

    Parameters
    ----------
    model : Relation
        The model.
    data : PointsInGroups
        The points.
    pooling : str
        Pooling of the groups of these data.
    integrates : bool
        Whether the intercepts are integrated out.
    """
    arrays = {key: np.asarray(getattr(data, key)) for key in ("values", "used", "group_predictors", "center", "unit")}
    errors, center, unit = np.asarray(data.errors), arrays["center"], arrays["unit"]
    variances = np.diagonal(errors, axis1=-2, axis2=-1)
    limits = slopes = means = x_information = None
    if data.limited != "no":
        order = np.asarray(data.order) if data.limited == "both" else None
        limits = Limits(np.asarray(data.limit), np.asarray(data.side), order)
    if pooling == "partial":
        values = arrays["values"]
        slopes = slopes_of_groups(values[..., :-1], values[..., -1], variances[..., :-1], arrays["used"])
        means = None if integrates else GroupMeans.of(data)
    if model.latents == "sampled" and len(data.predictors) == model.num_components == 1:
        variance = np.maximum(variances[..., 0], (MIN_ERROR * unit[0]) ** 2)
        x_information = np.where(arrays["used"], 1.0 / variance, 0.0)
    return BoundPoints(
        data.predictors,
        errors=errors[..., [0, 0, 1], [0, 1, 1]] if integrates else errors,
        pivot=center[:-1] if model.pivot is None else np.full(len(data.predictors), float(model.pivot)),
        limits=limits,
        slopes=slopes,
        means=means,
        x_information=x_information,
        cuts=tuple(_cut(data, selection) for selection in model.selections),
        log_evolution=log_evolution(model, data),
        common_error=np.asarray(data.common_error_y) if has_common_error(data) else None,
        common_error_x=np.asarray(data.common_error_x) if np.any(data.common_error_x) else None,
        injections=np.asarray(data.injections) if model.by_injections else None,
        num_injections=np.asarray(data.num_injections) if model.by_injections else None,
        **arrays,
    )


def padded_points(bound: BoundPoints, rows: int, columns: int) -> BoundPoints:
    """Return the points with unused ones added, in ``rows`` groups of ``columns`` points.

    Groups of padding have no points, so that their lines have the distribution of the population.
    """

    def of_groups(array, value=None):
        return padded_axis(array, rows, value=value)

    def of_points(array, value=None):
        return padded_axis(of_groups(array, value), columns, 1, value)

    slopes, means = bound.slopes, bound.means
    if slopes is not None:
        slopes = slopes._replace(
            square=of_groups(slopes.square), product=of_groups(slopes.product), weight=of_groups(slopes.weight, 0.0)
        )
    if means is not None:
        means = GroupMeans(of_groups(means.values), of_groups(means.variances), of_groups(means.num, 0))
    return dataclasses.replace(
        bound,
        values=of_points(bound.values),
        errors=of_points(bound.errors),
        used=of_points(bound.used, False),
        group_predictors=of_groups(bound.group_predictors),
        limits=None if bound.limits is None else Limits(*(None if a is None else of_points(a) for a in bound.limits)),
        slopes=slopes,
        means=means,
        x_information=None if bound.x_information is None else of_points(bound.x_information, 0.0),
        cuts=tuple(None if cut is None else of_points(cut) for cut in bound.cuts),
        log_evolution=None if bound.log_evolution is None else of_points(bound.log_evolution, 0.0),
        common_error=None if bound.common_error is None else of_groups(bound.common_error),
        common_error_x=None if bound.common_error_x is None else of_groups(bound.common_error_x),
    )


def has_common_error(data: PointsInGroups) -> bool:
    """Return whether the points of a group have a common error of y."""
    return bool(np.any(data.common_error_y))


def log_evolution(model: Any, data: PointsInGroups) -> Any:
    """Return the logarithm of the factor of redshift of a model, (J, M) with 0 in padding, or None without one."""
    if model.evolution == "none":
        return None
    used = np.asarray(data.used)
    factor = 1.0 + np.where(used, data.redshift, 0.0)
    logarithm, quantity = model.evolution.split(" ", 1)
    if quantity == "E(z)":
        factor = np.sqrt(model.Om0 * factor**3 + 1.0 - model.Om0)
    return np.where(used, {"log10": np.log10, "ln": np.log}[logarithm](factor), 0.0)


def _cut(data: PointsInGroups, selection: Selection) -> Any:
    """Return the limits of a selection from the column of the data, (J, M), or None without such a column."""
    if not selection.of_objects:
        return None
    cut, used = np.asarray(data.cut)[..., (*data.predictors, "y").index(selection.quantity)], np.asarray(data.used)
    return np.where(used, cut, cut[used].mean())  # padding needs a finite value
