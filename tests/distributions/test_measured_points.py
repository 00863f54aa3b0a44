"""Points with errors in all coordinates against numerical integration and SciPy, and against the other distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from hbm_jax.distributions import LinearRelation
from hbm_jax.distributions.measured_points import Limits, MeasuredPoints

ERRORS = np.array([[0.3, 0.1], [0.1, 0.2]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def line(x_loc=0.4, x_var=1.2, intercept=0.5, slope=1.7, scatter=0.6, **more):
    return MeasuredPoints(
        np.array([[x_loc]]), np.array([[[x_var]]]), np.zeros(1), intercept, np.array([slope]), scatter, ERRORS, **more
    )


def integral(value, x_loc=0.4, x_var=1.2, intercept=0.5, slope=1.7, scatter=0.6):
    """Integrate over the true x; true y given x is normal and joins the error of y."""
    cov = ERRORS + np.diag([0.0, scatter**2])

    def over(x):
        return stats.multivariate_normal([x, intercept + slope * x], cov).pdf(value) * stats.norm.pdf(
            x, x_loc, np.sqrt(x_var)
        )

    return integrate.quad(over, -12, 12, epsabs=1e-13, limit=200)[0]


def test_density_is_the_integral_over_the_truth():
    value = np.array([1.1, 1.9])
    assert float(jnp.exp(line().log_prob(value))) == pytest.approx(integral(value), rel=1e-9)


def test_one_component_is_the_linear_relation():
    errors = np.array([0.3, 0.1, 0.2])
    values = np.random.default_rng(1).normal(size=(7, 2))
    other = LinearRelation(0.4, np.sqrt(1.2), 0.5, 1.7, 0.6, errors)
    np.testing.assert_allclose(line().log_prob(values), other.log_prob(values), rtol=1e-12)


def test_mixtures_and_outliers_are_sums():
    value = np.array([1.1, -2.0])
    share, scale = 0.2, 3.0
    both = MeasuredPoints(
        np.array([[0.4], [-1.0]]), np.array([[[1.2]], [[0.3]]]), np.log([0.7, 0.3]), 0.5, np.array([1.7]), 0.6, ERRORS,
        outliers=(share, scale),
    )  # fmt: skip
    wide = np.hypot(0.6, scale)
    parts = [[integral(value, loc, var, scatter=s) for loc, var in ((0.4, 1.2), (-1.0, 0.3))] for s in (0.6, wide)]
    good, bad = (0.7 * a + 0.3 * b for a, b in parts)
    expected = (1 - share) * good + share * bad
    assert float(jnp.exp(both.log_prob(value))) == pytest.approx(expected, rel=1e-8)
    assert float(both.outlier_probability(value)) == pytest.approx(share * bad / expected, rel=1e-8)


@pytest.mark.parametrize("nu", [1.0, 2.0, 4.0, 30.0])
def test_students_t_is_its_integral_over_the_scatter(nu):
    """Against SciPy's density of Student's t, folded with the errors by a quadrature of its own."""
    x, y = 1.1, np.array([2.0, 4.0, -25.0])
    errors, slope, scatter = np.diag([0.0, 0.3**2]), np.array([1.7]), 0.6
    points = MeasuredPoints(
        np.array([[x]]), np.zeros((1, 1, 1)), np.zeros(1), 0.5, slope, scatter, errors + np.diag([1.0, 0.0]), nu=nu
    )
    found = np.exp(points.log_prob(np.stack([np.full(3, x), y], axis=1))) * np.sqrt(2 * np.pi)
    for value, density in zip(y - 0.5 - 1.7 * x, found, strict=True):
        grid = value + 0.3 * np.linspace(-9, 9, 20001)
        expected = integrate.trapezoid(stats.t.pdf(grid, nu, 0.0, scatter) * stats.norm.pdf(value, grid, 0.3), grid)
        assert float(density) == pytest.approx(expected, rel=1e-5)
    weights = np.asarray(points.weight(np.stack([np.full(3, x), y], axis=1)))
    assert weights[2] < 0.2
    assert weights[0] > 0.7
    # Without an error of the response the weight has a closed form.
    bare = MeasuredPoints(
        np.array([[x]]), np.zeros((1, 1, 1)), np.zeros(1), 0.5, slope, scatter, np.diag([1.0, 0.0]), nu=nu
    )
    away = (y - 0.5 - 1.7 * x) / scatter
    np.testing.assert_allclose(bare.weight(np.stack([np.full(3, x), y], axis=1)), (nu + 1) / (nu + away**2), rtol=1e-4)


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_limits_are_integrals_of_the_density(coordinate, side):
    value = np.array([1.1, 1.9])
    order = None if coordinate == 1 else np.eye(2)[::-1]
    limits = Limits(np.array(value[coordinate]), np.array(side), order)
    found = float(jnp.exp(line(limits=limits).log_prob(value)))
    plain = line()

    def beyond(t):
        at = np.array(value)
        at[coordinate] = t
        return float(jnp.exp(plain.log_prob(at)))

    ends = (-15.0, value[coordinate]) if side > 0 else (value[coordinate], 20.0)
    assert found == pytest.approx(integrate.quad(beyond, *ends)[0], rel=1e-7)
    # On the other side of the limit the point is an ordinary one.
    other = np.array(value)
    other[coordinate] += side * 0.1
    assert float(line(limits=limits).log_prob(other)) == pytest.approx(float(plain.log_prob(other)), rel=1e-12)


def test_several_predictors_against_scipy():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(3, 3))
    cov_x, slope = root[:2, :2] @ root[:2, :2].T + np.eye(2), np.array([0.7, -1.3])
    errors = root @ root.T + 0.1 * np.eye(3)
    points = MeasuredPoints(np.array([[0.2, -0.5]]), cov_x[None], np.zeros(1), 0.3, slope, 0.4, errors)
    design = np.vstack([np.eye(2), slope])
    cov = design @ cov_x @ design.T + np.diag([0.0, 0.0, 0.16]) + errors
    mean = design @ np.array([0.2, -0.5]) + np.array([0.0, 0.0, 0.3])
    value = np.array([1.0, 0.3, -0.8])
    assert float(points.log_prob(value)) == pytest.approx(stats.multivariate_normal(mean, cov).logpdf(value), rel=1e-11)


def test_draws_and_what_is_drawn_of_the_truth():
    limits = Limits(np.array(1.0), np.array(1.0))
    points = line(limits=limits)
    drawn = np.asarray(points.sample(jax.random.key(0), (40_000,)))
    plain = np.asarray(line().sample(jax.random.key(1), (40_000,)))
    assert drawn[:, 1].min() == 1.0
    share = (plain[:, 1] <= 1.0).mean()
    assert (drawn[:, 1] == 1.0).mean() == pytest.approx(share, abs=0.015)
    # Truths drawn given data drawn are draws of the population.
    true = np.asarray(points.draw_true(jax.random.key(2), drawn))
    assert true[:, 0].mean() == pytest.approx(0.4, abs=0.025)
    assert true[:, 0].var() == pytest.approx(1.2, rel=0.04)
    left = true[:, 1] - 0.5 - 1.7 * true[:, 0]
    assert left.mean() == pytest.approx(0.0, abs=0.015)
    assert left.std() == pytest.approx(0.6, rel=0.03)
