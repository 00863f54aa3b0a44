"""Sites of a linear relation: the population of true predictors, the lines of the groups, and the measured points.

In all functions ``model`` is a `hbm_jax.models.Relation`, and parameters of a single predictor are scalars, those of
several are vectors.
"""

import contextlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import transforms

from hbm_jax.distributions import GroupedLinearRelation, ProbitSelection
from hbm_jax.distributions.linear.broken_points import BrokenPoints
from hbm_jax.distributions.linear.curved_points import CurvedPoints
from hbm_jax.distributions.linear.measured_points import MeasuredPoints
from hbm_jax.distributions.selection import FoundInjections
from hbm_jax.models.linear.bound_points import BoundPoints
from hbm_jax.models.partial_centering import GaussianLikelihood, sample_whitened
from hbm_jax.models.selection import record_effective


class Population(NamedTuple):
    """Population of true predictors, a mixture of K normal distributions, or an exponential distribution.

    Attributes
    ----------
    loc, cov, log_weights : (K, P), (K, P, P), (K,)
        Means, covariances and log weights; of an exponential distribution its lower end and a variance of 0.
    mean, std : scalar or (P,), or None
        Mean and standard deviation of a single distribution.
    tail : scalar or None
        Mean of an exponential distribution above its lower end.
    """

    loc: Any
    cov: Any
    log_weights: Any
    mean: Any = None
    std: Any = None
    tail: Any = None


class Scatter(NamedTuple):
    """Scatter of the true response about the line.

    Attributes
    ----------
    std : scalar, (J, 1) or (J, M)
        Standard deviation, or scale of Student's t.
    outliers : (scalar, scalar) or None
        Fraction and additional scatter of outliers.
    nu : scalar or None
        Degrees of freedom of Student's t.
    """

    std: Any
    outliers: Any
    nu: Any


class Lines(NamedTuple):
    """Lines of J groups.

    Attributes
    ----------
    alpha : scalar, (P,), (J,) or (J, P)
        Slopes, with the first axis if groups differ.
    beta : scalar or (J,), or None
        Intercepts; None if they are integrated out.
    offset, spread : (J,), scalar, or None
        Means and standard deviation of the intercepts given the slopes, with partial pooling.
    evolution, slope_evolution : (J, M) or 0
        Changes of y, and of the slope, with redshift.
    """

    alpha: Any
    beta: Any
    offset: Any = None
    spread: Any = None
    evolution: Any = 0.0
    slope_evolution: Any = 0.0


def sample_population(model: Any, bound: BoundPoints) -> Population:
    """Sample the population of true predictors."""
    unit, center, shape, k = bound.x_unit, bound.x_center, bound.shape, model.num_components
    if model.x_population == "exponential":
        lowest, tail = model.sample_site("x_min", unit, center), model.sample_site("x_scale", unit)
        return Population(lowest[None, None], jnp.zeros((1, 1, 1)), jnp.zeros(1), tail=tail)
    if k > 1:
        # For standardised variables the first mean is N(0, 2^2), and differences of successive means are log-normal
        # with median 1.
        loc, scale = jnp.append(center, jnp.full(k - 1, jnp.log(unit))), jnp.append(2.0 * unit, jnp.ones(k - 1))
        base = dist.Normal(loc, scale).to_event(1)
        means = numpyro.sample("x_mean", dist.TransformedDistribution(base, transforms.OrderedTransform()))
        std = model.sample_site("x_std", unit, shape=(k,))
        return Population(means[:, None], (std**2)[:, None, None], jnp.log(model.sample_site("x_weight")))
    mean, std = model.sample_site("x_mean", unit, center, shape), model.sample_site("x_std", unit, shape=shape)
    if not shape:  # one predictor
        return Population(mean[None, None], (std**2)[None, None, None], jnp.zeros(1), mean, std)
    factor = std[:, None] * numpyro.sample("x_correlation_factor", dist.LKJCholesky(shape[0], 2.0))
    return Population(mean[None], (factor @ factor.T)[None], jnp.zeros(1), mean, std)


def sample_scatter(model: Any, bound: BoundPoints) -> Scatter:
    """Sample the scatter about the line."""
    unit, outliers = bound.unit[-1], None
    std = model.sample_site("intrinsic_scatter", unit) if model.scatter else jnp.zeros(())
    if model.outliers:
        outliers = model.sample_site("outlier_fraction"), model.sample_site("outlier_scatter", unit)
    return Scatter(std, outliers, model.sample_site("nu") if model.student_t else None)


def sample_scatter_of_groups(model: Any, bound: BoundPoints, scatter: Scatter) -> Scatter:
    """Return the scatter with its change with the predictors of groups, if that has a prior."""
    if "scatter_group" not in model.all_priors:
        return scatter
    change = bound.group_predictors @ model.sample_site("scatter_group", shape=(bound.group_predictors.shape[1],))
    return scatter._replace(std=scatter.std * jnp.exp(change)[:, None])


def sample_lines(model: Any, bound: BoundPoints, pooling: str, scatter: Scatter, integrates: bool) -> Lines:
    """Sample slopes and intercepts of the groups; ``integrates`` is True if the intercepts are integrated out."""
    num, shape, y_unit, y_center = len(bound.used), bound.shape, bound.unit[-1], bound.center[-1]
    unit = y_unit / bound.x_unit
    if pooling == "complete":
        return Lines(model.sample_site("alpha", unit, 0.0, shape), model.sample_site("beta", y_unit, y_center))
    if pooling == "none":
        with numpyro.plate("group", num, dim=-1):
            alpha = jnp.broadcast_to(model.sample_site("alpha", unit, 0.0, shape), (num, *shape))
            return Lines(alpha, jnp.broadcast_to(model.sample_site("beta", y_unit, y_center), (num,)))
    location, std = model.sample_site("alpha_mean", unit, 0.0, shape), model.sample_site("alpha_std", unit, 0.0, shape)
    offset, spread = model.sample_site("beta_mean", y_unit, y_center), model.sample_site("beta_std", y_unit)
    if size := bound.group_predictors.shape[1]:
        location = location + bound.group_predictors @ model.sample_site("alpha_group", unit, 0.0, (size, *shape))
        offset = offset + bound.group_predictors @ model.sample_site("beta_group", y_unit, 0.0, (size,))
    factor = _sample_correlation(model, len(bound.predictors))
    alpha, standard = _sample_slopes(bound, jnp.broadcast_to(location, (num, *shape)), std, factor)
    offset, spread = offset + spread * (standard @ factor[-1, :-1]), spread * factor[-1, -1]
    if integrates:
        return Lines(alpha, None, offset, spread)
    likelihood = bound.means.intercept(alpha.reshape(num, -1), bound.pivot, scatter.std)
    with numpyro.plate("group", num, dim=-1):
        beta = sample_whitened("beta", jnp.broadcast_to(offset, (num,)), spread, likelihood)
    return Lines(alpha, beta, offset, spread)


def _sample_correlation(model: Any, num: int):
    """Sample the Cholesky factor of the correlation matrix of slopes and intercept, (P + 1, P + 1)."""
    if not model.correlated:
        return jnp.eye(num + 1)
    if num > 1:
        return numpyro.sample("correlation_factor", dist.LKJCholesky(num + 1, 1.0))
    r = model.sample_site("correlation")
    return jnp.array([[1.0, 0.0], [r, jnp.sqrt(1.0 - r**2)]])


def _sample_slopes(bound: BoundPoints, location, std, factor):
    """Sample the slopes, predictor by predictor; return them and their standardised values, (J, P).

    The first P rows of ``factor`` are the Cholesky factor of the correlation of the slopes.
    """
    num, size = len(bound.used), len(bound.predictors)
    std = jnp.reshape(std, (size,))
    slopes = list(location.reshape(num, size).T)  # means, replaced by sampled values in turn
    standard: list[Any] = []
    for k, predictor in enumerate(bound.predictors):
        mean = slopes[k] + std[k] * sum(factor[k, i] * z for i, z in enumerate(standard))
        scale = std[k] * factor[k, k]
        with numpyro.plate("group", num, dim=-1):
            name = f"alpha_{predictor}" if bound.shape else "alpha"
            slope = sample_whitened(name, mean, scale, bound.slopes.likelihood(k, slopes), record=False)
        slopes[k] = slope
        standard.append((slope - mean) / scale)
    alpha = jnp.stack(slopes, axis=-1) if bound.shape else slopes[0]
    with contextlib.ExitStack() as plates:
        plates.enter_context(numpyro.plate("group", num, dim=-1 - len(bound.shape)))
        if bound.shape:
            plates.enter_context(numpyro.plate("predictor", size, dim=-1))
        numpyro.deterministic("alpha", alpha)
    return alpha, jnp.stack(standard, axis=-1)


def sample_detections(model: Any, bound: BoundPoints) -> list[ProbitSelection]:
    """Sample the parameters of the selections; return the detection probabilities of measured points."""
    coordinates, rows = (*bound.predictors, "y"), len(bound.used)
    detections = []
    for selection, cut in zip(model.selections, bound.cuts, strict=True):
        values = selection.sample(rows)
        if selection.by_group:
            values = {name: jnp.reshape(value, (-1, 1)) for name, value in values.items()}
        slope = np.array([float(name == selection.quantity) for name in coordinates])
        detections.append(selection.detection(values, slope, cut))
    return detections


def sample_evolution(model: Any, bound: BoundPoints, lines: Lines, scatter: Scatter) -> tuple[Lines, Scatter]:
    """Sample the exponents of redshift; return lines and scatter with their changes.

    With F the factor of redshift, y = alpha (x + evolution_x log F - pivot) + beta + evolution_y log F, so that y
    changes by (evolution_y + alpha evolution_x) log F.
    """
    logarithm = bound.log_evolution
    if logarithm is None:
        return lines, scatter
    exponent = model.sample_site("evolution_y")
    if "evolution_alpha" in model.evolving:
        lines = lines._replace(slope_evolution=model.sample_site("evolution_alpha") * logarithm)
    if "evolution_scatter" in model.evolving:
        log_factor = logarithm * (np.log(10.0) if model.evolution.startswith("log10") else 1.0)
        scatter = scatter._replace(std=scatter.std * jnp.exp(model.sample_site("evolution_scatter") * log_factor))
    if len(bound.predictors) == 1:
        slope = jnp.reshape(lines.alpha, (-1, 1)) + lines.slope_evolution
        exponent = exponent + slope * model.sample_site("evolution_x")
    return lines._replace(evolution=exponent * logarithm), scatter


def sample_grouped(bound: BoundPoints, population: Population, scatter: Scatter, lines: Lines, values, recover) -> None:
    """Sample the measured values with true values, and intercepts or common errors of groups, integrated out."""
    zero, common_error = jnp.zeros((len(bound.used), 1)), bound.common_error
    sampled = lines.beta is not None  # intercepts, beside which the common errors are integrated out
    mean, spread = (lines.beta, 0.0) if sampled else (lines.offset, lines.spread)
    total_spread = spread if common_error is None else jnp.sqrt(spread**2 + common_error**2)
    # With x + shift in place of x, where the common error of x is the shift, the errors of the points are independent.
    shift, x_mean, line_shift = _sample_x_offset(bound), population.mean - bound.pivot[0], 0.0
    if shift is not None:
        x_mean, line_shift = x_mean + shift[:, 0], lines.alpha * shift[:, 0]
    scatter_of_groups = jnp.reshape(scatter.std, -1) if jnp.ndim(scatter.std) else scatter.std
    relation = GroupedLinearRelation(
        x_mean, None, mean - line_shift, total_spread, lines.alpha, population.std, scatter_of_groups,
        zero + bound.pivot[0], zero + lines.evolution, bound.errors, bound.used,
    )  # fmt: skip
    with numpyro.plate("group", len(bound.used)):
        drawn = numpyro.sample("observed", relation, obs=values)
    if recover:
        groups = relation.groups(drawn).sample(numpyro.prng_key())
        with numpyro.plate("group", len(bound.used)):
            _record_groups(groups[..., 1] + line_shift, mean, spread, common_error, sampled)
        _record(relation.conditional(drawn, groups).sample(numpyro.prng_key()), 1, shift=shift)


def _record_groups(shifted_beta, mean, spread, common_error, sampled: bool) -> None:
    """Record the terms of ``shifted_beta``: the intercepts, unless they were sampled, and the common offsets.

    The intercepts are `mean` if they were sampled, and N(mean, spread^2) otherwise; the offsets are
    N(0, common_error^2), or none.
    """
    if sampled:
        beta = mean
    elif common_error is None:
        beta = shifted_beta
    else:  # given the sum of two normals, each is normal
        weight = spread**2 / (spread**2 + common_error**2)
        std = common_error * jnp.sqrt(weight)
        beta = mean + weight * (shifted_beta - mean) + std * random.normal(numpyro.prng_key(), shifted_beta.shape)
    if not sampled:
        numpyro.deterministic("beta", beta)
    if common_error is not None:
        numpyro.deterministic("common_offset", shifted_beta - beta)


def sample_points(
    model: Any, bound: BoundPoints, population: Population, scatter: Scatter, lines: Lines, values, recover
) -> None:
    """Sample the measured values for these slopes and intercepts, after the true predictors where they are sampled."""
    (rows, columns), num = bound.used.shape, len(bound.predictors)
    slope = jnp.broadcast_to(lines.alpha.reshape(-1, num), (rows, num))[:, None] + jnp.atleast_3d(lines.slope_evolution)
    intercept = jnp.broadcast_to(lines.beta, (rows,))[:, None] - (slope * bound.pivot).sum(-1) + lines.evolution
    intercept = intercept + _sample_y_offset(bound)
    if model.latents == "sampled":
        x = _sample_predictors(bound, population)
        population = Population(x[..., None, :], jnp.zeros((1, num, num)), jnp.zeros(1))
    if (shift := _sample_x_offset(bound)) is not None:
        population = population._replace(loc=population.loc + shift[:, None, None])
        intercept = intercept - (slope * shift[:, None]).sum(-1)
    detections, injections = sample_detections(model, bound), None
    if bound.injections is not None:
        injections = _found_injections(bound, population, intercept[0, 0], slope[0, 0], scatter)
        record_effective(injections)
    points = MeasuredPoints(
        *population[:3], intercept, slope, scatter.std, bound.errors, bound.limits, *scatter[1:], detections,
        population.tail, injections,
    )  # fmt: skip
    with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
        with handlers.mask(mask=bound.used):
            drawn = numpyro.sample("observed", points, obs=values)
        if recover:
            true = points.draw_true(numpyro.prng_key(), drawn)
            _record(true, num, record_x=model.latents == "marginal", shift=shift)
            if model.outliers:
                numpyro.deterministic("outlier_probability", points.outlier_probability(drawn))
            if model.student_t:
                numpyro.deterministic("weight", points.weight(drawn))


def sample_broken(
    model: Any, bound: BoundPoints, population: Population, scatter: Scatter, lines: Lines, values, recover
) -> None:
    """Sample the measured values of points on a line with a break."""
    rows, columns = bound.used.shape
    alpha_above = model.sample_site("alpha_above", bound.unit[-1] / bound.x_unit)
    x_break = model.sample_site("x_break", bound.x_unit, bound.x_center)
    slopes = tuple(map(jnp.asarray, (lines.alpha, alpha_above)))
    detections = sample_detections(model, bound)
    points = BrokenPoints(
        population.mean, population.std, x_break, lines.beta, slopes, scatter.std, bound.errors, detections
    )
    with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
        with handlers.mask(mask=bound.used):
            drawn = numpyro.sample("observed", points, obs=values)
        if recover:
            _record(points.draw_true(numpyro.prng_key(), drawn), 1)


def sample_curved(
    model: Any, bound: BoundPoints, population: Population, scatter: Scatter, lines: Lines, values, recover
) -> None:
    """Sample the measured values of points about a parabola, or with a scatter that changes with x."""
    rows, columns = bound.used.shape
    y_unit, x_unit = bound.unit[-1], bound.x_unit
    curvature = model.sample_site("curvature", y_unit / x_unit**2) if model.curved else jnp.zeros(())
    change = model.sample_site("scatter_change", 1.0 / x_unit) if model.scatter_with_x else jnp.zeros(())
    slope = jnp.broadcast_to(lines.alpha, (rows,))[:, None] + lines.slope_evolution
    intercept = jnp.broadcast_to(lines.beta, (rows,))[:, None] + lines.evolution + _sample_y_offset(bound)
    shift, x_loc, pivot = _sample_x_offset(bound), population.mean, bound.pivot[0]
    if shift is not None:
        x_loc, pivot = x_loc + shift, pivot + shift
    points = CurvedPoints(
        x_loc, population.std, pivot, intercept, slope, curvature, scatter.std, change, bound.errors,
        sample_detections(model, bound), bound.limits,
    )  # fmt: skip
    with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
        with handlers.mask(mask=bound.used):
            drawn = numpyro.sample("observed", points, obs=values)
        if recover:
            _record(points.draw_true(numpyro.prng_key(), drawn), 1, shift=shift)


def _sample_y_offset(bound: BoundPoints):
    """Sample the error of y that the points of each group have in common, (J, 1); 0 without one."""
    if bound.common_error is None:
        return 0.0
    with numpyro.plate("group", len(bound.used), dim=-1):
        standard = numpyro.sample("_common_offset", dist.Normal(0.0, 1.0))
        return numpyro.deterministic("common_offset", bound.common_error * standard)[:, None]


def _sample_x_offset(bound: BoundPoints):
    """Sample the errors of the predictors that the points of each group have in common, (J, P), or None."""
    if bound.common_error_x is None:
        return None
    num = len(bound.used)
    with numpyro.plate("group", num, dim=-2), numpyro.plate("predictor", len(bound.predictors), dim=-1):
        standard = numpyro.sample("_common_offset_x", dist.Normal(0.0, 1.0))
        return numpyro.deterministic("common_offset_x", bound.common_error_x * standard)


def _found_injections(bound: BoundPoints, population: Population, intercept, slope, scatter: Scatter):
    """Return the found injections with their weights in the population of true points on one line."""
    values, log_density = bound.injections[:, :-1], bound.injections[:, -1]
    exact = jnp.zeros((values.shape[-1],) * 2)
    true = MeasuredPoints(*population[:3], intercept, slope, scatter.std, exact, None, *scatter[1:])
    return FoundInjections(values, true.log_prob(values) - log_density, bound.num_injections, bound.used.sum())


def _sample_predictors(bound: BoundPoints, population: Population):
    """Sample the true predictors, (J, M, P)."""
    (rows, columns), (loc, cov, log_weights) = bound.used.shape, population[:3]
    with numpyro.plate("group", rows, dim=-2), numpyro.plate("point", columns, dim=-1):
        if len(bound.predictors) > 1:
            return numpyro.sample("x", dist.MultivariateNormal(loc[0], covariance_matrix=cov[0]))
        if len(loc) > 1:
            components = dist.Normal(loc[:, 0], jnp.sqrt(cov[:, 0, 0]))
            mixture = dist.MixtureSameFamily(dist.Categorical(logits=log_weights), components)
            return numpyro.sample("x", mixture)[..., None]
        likelihood = GaussianLikelihood(bound.values[..., 0], bound.x_information)
        return sample_whitened("x", population.mean, population.std, likelihood)[..., None]


def _record(true, num: int, record_x: bool = True, shift=None) -> None:
    """Record true responses, and true predictors unless they were sampled (``record_x=False``), from (J, M, P + 1).

    The predictors of ``true`` include their common errors ``shift``, (J, P) or None.
    """
    if shift is not None:
        true = true.at[..., :-1].add(-shift[:, None])
    if record_x:
        numpyro.deterministic("x", true[..., 0] if num == 1 else true[..., :-1])
    numpyro.deterministic("y", true[..., -1])
