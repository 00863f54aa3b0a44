"""Points on a line with a break: density against sums over the true x, draws against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions import ProbitSelection
from hbm_jax.distributions.linear.broken_points import BrokenPoints
from hbm_jax.distributions.linear.measured_points import MeasuredPoints

LOC, STD, BREAK, BETA, SLOPES, SCATTER = 0.4, 1.1, 0.7, 1.5, (0.8, 2.5), 0.3
ERRORS = np.array([[[0.3**2, 0.01], [0.01, 0.2**2]], [[0.0, 0.0], [0.0, 0.2**2]], [[0.5**2, -0.05], [-0.05, 0.3**2]]])
VALUES = np.array([[0.9, 1.7], [0.2, 1.3], [-0.4, 0.6]])
SELECTIONS = {
    "none": None, "x > -0.5": ProbitSelection(0.5, None, np.array([-1.0, 0.0])),
    "y < 3 +- 0.2": ProbitSelection(3.0, 0.2, np.array([0.0, 1.0])),
}  # fmt: skip


def points(selection=None, errors=ERRORS, slopes=SLOPES, x_break=BREAK):
    selections = () if selection is None else (selection,)
    return BrokenPoints(LOC, STD, x_break, BETA, slopes, SCATTER, errors, selections)


def expected(selection):
    """Sum over the true x, each with a normal distribution of measured values."""
    x = np.linspace(LOC - 9.0 * STD, LOC + 9.0 * STD, 40_001)
    weights = stats.norm.pdf(x, LOC, STD) * (x[1] - x[0])
    y = BETA + np.where(x < BREAK, *SLOPES) * (x - BREAK)
    total = []
    for value, error in zip(VALUES, ERRORS, strict=True):
        covariance = error + np.diag([0.0, SCATTER**2])
        if covariance[0, 0] == 0.0:
            at = BETA + np.where(value[0] < BREAK, *SLOPES) * (value[0] - BREAK)
            density = stats.norm.pdf(value[0], LOC, STD) * stats.norm.pdf(value[1], at, np.sqrt(covariance[1, 1]))
        else:
            residual = np.stack([value[0] - x, value[1] - y], axis=-1)
            density = weights @ stats.multivariate_normal(np.zeros(2), covariance).pdf(residual)
        if selection is not None:
            slope = np.asarray(selection.slope)
            width = np.sqrt(slope @ covariance @ slope + (selection.width or 0.0) ** 2)
            margin = selection.limit - slope[0] * x - slope[1] * y
            share = stats.norm.cdf(margin / width) if width > 0.0 else (margin >= 0.0)
            density *= np.exp(selection.log_probability(value)) / (weights @ share)
        total.append(np.log(density))
    return np.array(total)


@functools.cache
def densities(name):
    """Sum of the log densities with its gradient in the break and the slopes, and each of them; compiled once."""

    def total(p):
        log_prob = points(SELECTIONS[name], slopes=(p[1], p[2]), x_break=p[0]).log_prob(VALUES)
        return jnp.sum(log_prob), log_prob

    return jax.jit(jax.value_and_grad(total, has_aux=True))


NAMES = pytest.mark.parametrize("name", ["none", "y < 3 +- 0.2", pytest.param("x > -0.5", marks=pytest.mark.long)])
AT = np.array([BREAK, *SLOPES])


@NAMES
def test_the_density_is_the_sum_over_true_x(name):
    selection = SELECTIONS[name]
    with jax.enable_x64(True):
        found = densities(name)(AT)[0][1]
    # Steps of the sum at the break and at a sharp limit: 1e-4 of the share.
    np.testing.assert_allclose(found, expected(selection), atol=1e-7 if name == "none" else 2e-4)


def test_equal_slopes_are_a_line_without_a_break():
    one, cov = np.array([[LOC]]), np.array([[[STD**2]]])
    line = MeasuredPoints(one, cov, np.zeros(1), BETA - 1.3 * BREAK, np.array([1.3]), SCATTER, ERRORS)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            jax.jit(lambda v: points(slopes=(1.3, 1.3)).log_prob(v))(VALUES), line.log_prob(VALUES), rtol=1e-9
        )


@NAMES
def test_gradients_are_finite_and_right(name):
    with jax.enable_x64(True):
        density, gradient = (lambda p: densities(name)(p)[0][0]), densities(name)(AT)[1]
        differences = [(density(AT + step) - density(AT - step)) / 2e-5 for step in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(gradient, differences, rtol=1e-4, atol=1e-5)


def test_draws_are_of_the_density_and_true_values_of_its_population(monte_carlo):
    """True values drawn given drawn measured ones are those of the population, on both sides of the break."""
    num = 4000

    @jax.jit
    def drawn(first, second):
        distribution = BrokenPoints(LOC, STD, BREAK, BETA, SLOPES, SCATTER, np.broadcast_to(ERRORS[0], (num, 2, 2)))
        values = distribution.sample(first)
        return values, distribution.draw_true(second, values)

    with jax.enable_x64(True):
        values, true = map(np.asarray, drawn(jax.random.key(seed(1)), jax.random.key(seed(2))))
    errors, x = np.asarray(values) - true, true[:, 0]
    monte_carlo.p_value(stats.kstest(x, stats.norm(LOC, STD).cdf).pvalue, name="x")
    residual = true[:, 1] - BETA - np.where(x < BREAK, *SLOPES) * (x - BREAK)
    monte_carlo.p_value(stats.kstest(residual, stats.norm(0.0, SCATTER).cdf).pvalue, name="scatter")
    for side, chosen in (("below", x < BREAK), ("above", x > BREAK)):
        monte_carlo.p_value(stats.kstest(errors[chosen, 0], stats.norm(0.0, 0.3).cdf).pvalue, name=f"error of x {side}")
        monte_carlo.p_value(stats.kstest(errors[chosen, 1], stats.norm(0.0, 0.2).cdf).pvalue, name=f"error of y {side}")
