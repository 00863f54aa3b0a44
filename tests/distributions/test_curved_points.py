"""Points on a parabola with a scatter that changes with x: density and gradient against sums over the true x, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions import ProbitSelection
from hbm_jax.distributions.linear.curved_points import CurvedPoints
from hbm_jax.distributions.linear.measured_points import Limits, MeasuredPoints

# x_loc, x_std, pivot, intercept, slope, curvature, scatter, scatter_change
PARAMETERS = {
    "parabola": (0.4, 1.1, 0.2, 1.5, 1.3, 0.4, 0.3, 0.0),
    "vertex within the errors": (0.4, 1.1, 0.2, 1.5, -0.5, -0.6, 0.3, 0.3),
    "vertex at the pivot": (0.4, 1.1, 0.2, 1.5, 0.0, 1.0, 0.3, 0.2),
    "steep": (0.4, 0.3, 0.2, 1.5, 3.0, 0.1, 0.1, -0.4),
    "line, small scatter": (0.4, 1.1, 0.2, 1.5, 1.3, 0.0, 0.02, 0.5),
    "mostly missed": (-2.0, 0.8, 0.2, 1.5, 2.0, 0.5, 0.3, 0.3),
}
SELECTIONS = {
    "none": None,
    "x > -0.5": ProbitSelection(0.5, None, np.array([-1.0, 0.0])),
    "y < 3 +- 0.2": ProbitSelection(3.0, 0.2, np.array([0.0, 1.0])),
    "y > 1": ProbitSelection(-1.0, None, np.array([0.0, -1.0])),
}
MORE = ("x > -0.5", "y < 3 +- 0.2")
ERRORS = np.array([
    [[0.09, 0.01], [0.01, 0.04]], [[0.0, 0.0], [0.0, 0.04]], [[0.25, -0.05], [-0.05, 0.09]], [[0.5, 0.0], [0.0, 1e-4]],
    [[1e-4, 0.0], [0.0, 0.04]], [[0.04, 0.0], [0.0, 0.0]],
])  # fmt: skip
VALUES = np.array([[1.9, 2.7], [1.2, 2.3], [1.4, 1.6], [1.1, 1.5], [1.0, 1.1], [3.0, 2.9]])


# Upper limits, a lower one, a measured point above its limit of 0.5, and points without limits.
LIMITS = Limits(np.array([2.7, 2.3, 1.6, 1.5, 0.5, np.nan]), np.array([1.0, 1.0, -1.0, 1.0, 1.0, 1.0]))


def distribution(p, selection, errors=ERRORS, limits=None):
    return CurvedPoints(*(p[i] for i in range(8)), errors, () if selection is None else (selection,), limits)


def expected(p, selection, sides=(0.0,) * 6):
    """Trapezoidal sums over the true x, of the density of each point and of the detected fraction."""
    loc, std, pivot, intercept, slope, curvature, scatter, change = p
    x = np.linspace(loc - 12.0 * std - 5.0, loc + 12.0 * std + 5.0, 40_001)

    def curve(x):
        t = x - pivot
        return intercept + slope * t + curvature * t**2, (scatter * np.exp(change * t)) ** 2

    (y, variance), weights, total = curve(x), stats.norm.pdf(x, loc, std) * (x[1] - x[0]), []
    for value, error, side in zip(VALUES, ERRORS, sides, strict=True):

        def of_y(mean, std, y=value[1], side=side):
            return stats.norm.cdf(side * (y - mean) / std) if side else stats.norm.pdf(y, mean, std)

        (xx, xy), (_, yy) = error
        if xx == 0.0:
            at, spread = curve(value[0])
            density = stats.norm.pdf(value[0], loc, std) * of_y(at, np.sqrt(spread + yy))
        else:
            given_x = y + xy / xx * (value[0] - x)
            given_x = of_y(given_x, np.sqrt(variance + yy - xy**2 / xx))
            density = weights @ (given_x * stats.norm.pdf(value[0], x, np.sqrt(xx)))
        if selection is not None:
            (in_x, in_y), width = selection.slope, selection.width or 0.0
            spread = np.sqrt(width**2 + (xx if in_x else yy + variance))
            if in_x and xx == 0.0:
                fraction = stats.norm.sf((-selection.limit - loc) / std)
            else:
                fraction = weights @ stats.norm.cdf((selection.limit - in_x * x - in_y * y) / spread)
            density *= float(selection.probability(value)) / fraction
        total.append(np.log(density))
    return np.array(total)


@pytest.mark.parametrize("selected", ["none", "y > 1", *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_density_and_gradient_are_those_of_the_integral(selected):
    selection = SELECTIONS[selected]

    @jax.jit
    def density(p):
        return distribution(p, selection).log_prob(VALUES)

    # All parameters are varied together.
    direction = np.array([0.5, -0.4, 0.6, 0.7, -0.8, 0.3, 0.5, -0.6])
    derivative = jax.jit(lambda p: jax.jvp(density, (p,), (jnp.asarray(direction),))[1])
    with jax.enable_x64(True):
        for name, p in PARAMETERS.items():
            np.testing.assert_allclose(density(np.array(p)), expected(p, selection), rtol=0, atol=1e-8, err_msg=name)
        p = np.array(PARAMETERS["vertex at the pivot"])
        ends = [expected(p + 1e-3 * h * direction, selection) for h in (2.0, 1.0, -1.0, -2.0)]
        slopes = (8.0 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / 12e-3
        np.testing.assert_allclose(derivative(p), slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("selected", ["none", "x > -0.5"])
def test_a_limit_has_the_probability_beyond_it(selected):
    selection, sides = SELECTIONS[selected], (1.0, 1.0, -1.0, 1.0, 0.0, 0.0)

    @jax.jit
    def density(p):
        return distribution(p, selection, limits=LIMITS).log_prob(VALUES)

    gradient = jax.jit(jax.jacfwd(density))
    with jax.enable_x64(True):
        for name, p in PARAMETERS.items():
            found = density(np.array(p))
            np.testing.assert_allclose(found, expected(p, selection, sides), rtol=0, atol=1e-8, err_msg=name)
        p = np.array(PARAMETERS["vertex within the errors"])
        slopes = []
        for step in 1e-3 * np.eye(8):
            ends = [expected(p + h * step, selection, sides) for h in (2.0, 1.0, -1.0, -2.0)]
            slopes.append((8.0 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / 12e-3)
        np.testing.assert_allclose(gradient(p), np.transpose(slopes), rtol=1e-6, atol=1e-6)


@pytest.mark.long
def test_a_straight_line_is_the_closed_form():
    p, num = (0.4, 1.1, 0.2, 1.5, 1.3, 0.0, 0.3, 0.0), len(VALUES)
    one, cov = np.array([[p[0]]]), np.array([[[p[1] ** 2]]])
    for selection in SELECTIONS.values():
        chosen = () if selection is None else (selection,)
        errors = ERRORS if selection is None else np.tile(ERRORS[0], (num, 1, 1))
        with jax.enable_x64(True):
            line = MeasuredPoints(
                one, cov, np.zeros(1), 1.5 - 1.3 * 0.2, np.array([1.3]), 0.3, errors, selections=chosen
            )
            np.testing.assert_allclose(
                distribution(p, selection, errors).log_prob(VALUES), line.log_prob(VALUES), rtol=0, atol=1e-9
            )
    with jax.enable_x64(True):
        line = MeasuredPoints(one, cov, np.zeros(1), 1.5 - 1.3 * 0.2, np.array([1.3]), 0.3, ERRORS, LIMITS)
        found = distribution(p, None, limits=LIMITS).log_prob(VALUES)
        np.testing.assert_allclose(found, line.log_prob(VALUES), rtol=0, atol=1e-9)


def test_derivatives_are_finite_far_from_the_points():
    """Outliers, populations far from a limit, and a curve that is a constant."""
    errors = np.tile(ERRORS[0], (3, 1, 1))
    values = np.array([[0.0, 50.0], [8.0, -9.0], [-7.0, 1.0]])
    limit = ProbitSelection(60.0, 0.3, np.array([0.0, 1.0]))
    total = jax.jit(jax.value_and_grad(lambda p: distribution(p, limit, errors).log_prob(values).sum()))
    with jax.enable_x64(True):
        for p in [(0.0, 0.5, 0.0, 0.0, 1.0, 0.3, 0.2, 0.1), (-9.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0)]:
            value, gradient = total(jnp.array(p))
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


@pytest.mark.long
def test_draws_behind_limits_are_of_the_density_and_true_values_of_its_population(monte_carlo):
    num, p = 6000, np.array(PARAMETERS["vertex within the errors"])
    limits = Limits(np.full(num, 1.3), np.full(num, 1.0))
    whole = distribution(p, None, np.broadcast_to(ERRORS[2], (num, 2, 2)), limits)
    with jax.enable_x64(True):
        values = np.asarray(whole.sample(jax.random.key(seed(1))))
        true = np.asarray(whole.draw_true(jax.random.key(seed(2)), values))
    loc, std, pivot, intercept, slope, curvature, scatter, change = p
    rng = np.random.default_rng(seed(3))
    x = rng.normal(loc, std, 20 * num)
    t = x - pivot
    y = intercept + slope * t + curvature * t**2 + scatter * np.exp(change * t) * rng.normal(size=len(x))
    measured = np.stack([x, y], axis=-1) + rng.multivariate_normal([0.0, 0.0], ERRORS[2], len(x))
    below = measured[:, 1] < 1.3
    assert values[:, 1].min() == 1.3
    monte_carlo.share(values[:, 1] == 1.3, below.mean(), independent=True, name="limits")
    for is_limit, kept, name in ((values[:, 1] == 1.3, below, "limits"), (values[:, 1] > 1.3, ~below, "measured")):
        for column in range(2):
            reference = (x, y)[column][kept]
            monte_carlo.p_value(stats.ks_2samp(true[is_limit, column], reference).pvalue, name=f"{name} {column}")


@pytest.mark.long
@pytest.mark.parametrize("selected", ["none", "y > 1"])
def test_draws_are_of_the_density_and_true_values_of_its_population(selected, monte_carlo):
    num, p = 4000, np.array(PARAMETERS["vertex within the errors"])
    whole = distribution(p, SELECTIONS[selected], np.broadcast_to(ERRORS[2], (num, 2, 2)))
    with jax.enable_x64(True):
        values = whole.sample(jax.random.key(seed(1)))
        true = np.asarray(whole.draw_true(jax.random.key(seed(2)), values))
    loc, std, pivot, intercept, slope, curvature, scatter, change = p
    rng = np.random.default_rng(seed(3))
    x = rng.normal(loc, std, 20 * num)
    t = x - pivot
    y = intercept + slope * t + curvature * t**2 + scatter * np.exp(change * t) * rng.normal(size=len(x))
    measured = np.stack([x, y], axis=-1) + rng.multivariate_normal([0.0, 0.0], ERRORS[2], len(x))
    kept = measured[:, 1] > 1.0 if selected == "y > 1" else np.ones(len(x), bool)
    for column, name in enumerate("xy"):
        result = stats.ks_2samp(np.asarray(values)[:, column], measured[kept, column])
        monte_carlo.p_value(result.pvalue, name=f"measured {name}")
        monte_carlo.p_value(stats.ks_2samp(true[:, column], (x, y)[column][kept]).pvalue, name=f"true {name}")
