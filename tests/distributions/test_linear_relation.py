"""Points on lines with the true ones integrated out: against SciPy's multivariate normal and its integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from hbm_jax.distributions import GroupedLinearRelation, LinearRelation

ERRORS = np.array([0.02, 0.004, 0.01])
MATRIX = np.array([[0.02, 0.004], [0.004, 0.01]])


def line(limit=None, **changed):
    given = {"x_loc": 2.4, "x_scale": 0.3, "intercept": -7.0, "slope": 1.6, "scatter": 0.2} | changed
    return LinearRelation(*given.values(), ERRORS, limit)


def density_by_integration(value):
    """Over the true x; the scatter is part of the error of y given x."""

    def one(x):
        inner = stats.multivariate_normal([x, -7.0 + 1.6 * x], MATRIX + np.diag([0.0, 0.04]))
        return stats.norm.pdf(x, 2.4, 0.3) * inner.pdf(value)

    return integrate.quad(one, 0.0, 5.0, epsabs=1e-13, points=[2.4], limit=200)[0]


@pytest.mark.parametrize("value", [(2.4, -3.2), (2.9, -2.1), (1.8, -3.0)])
def test_a_point_has_the_density_that_the_integral_over_the_true_one_gives(value):
    assert float(line().log_prob(np.array(value))) == pytest.approx(np.log(density_by_integration(value)), abs=1e-9)


def test_a_limit_divides_by_the_probability_to_be_above():
    value, limit = np.array([2.4, -3.0]), -3.3
    mean, variance = -7.0 + 1.6 * 2.4, 1.6**2 * 0.09 + 0.04 + 0.01
    expected = float(line().log_prob(value)) - stats.norm.logsf(limit, mean, np.sqrt(variance))
    assert float(line(limit).log_prob(value)) == pytest.approx(expected, abs=1e-12)
    assert float(line(limit).log_prob(np.array([2.4, -3.4]))) == -np.inf
    # Forty standard deviations out the probability is no number any more, but its logarithm is.
    far = float(line(limit=-3.16 + 40 * variance**0.5).log_prob(np.array([2.4, 30.0])))
    assert np.isfinite(far)
    slope = jax.grad(lambda s: line(limit, slope=s).log_prob(value))(1.6)
    steps = [float(line(limit, slope=1.6 + d).log_prob(value)) for d in (1e-6, -1e-6)]
    assert float(slope) == pytest.approx((steps[0] - steps[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("limit", [None, -3.3, -1.0])
def test_draws_have_the_density(limit):
    draws = np.asarray(line(limit).sample(jax.random.key(1), (40_000,)))
    mean, covariance = np.array([2.4, -3.16]), MATRIX + 0.09 * np.array([[1, 1.6], [1.6, 2.56]]) + np.diag([0, 0.04])
    deviation = np.sqrt(covariance[1, 1])
    least = -np.inf if limit is None else (limit - mean[1]) / deviation
    assert stats.kstest(draws[:, 1], stats.truncnorm(least, np.inf, mean[1], deviation).cdf).pvalue > 1e-3
    slope = covariance[0, 1] / covariance[1, 1]
    left = draws[:, 0] - mean[0] - slope * (draws[:, 1] - mean[1])
    assert stats.kstest(left / np.sqrt(covariance[0, 0] - slope * covariance[0, 1]), "norm").pvalue > 1e-3


def test_true_values_given_measured_ones():
    value = np.array([2.9, -2.1])
    true = 0.09 * np.array([[1, 1.6], [1.6, 2.56]]) + np.diag([0, 0.04])
    gain = true @ np.linalg.inv(true + MATRIX)
    mean = np.array([2.4, -3.16])
    found = line().conditional(value)
    np.testing.assert_allclose(found.mean, mean + gain @ (value - mean), rtol=1e-12)
    np.testing.assert_allclose(found.covariance_matrix, true - gain @ true, rtol=1e-10)
    # Without scatter the true point is on the line.
    x, y = np.asarray(line(scatter=0.0).conditional(value).sample(jax.random.key(0)))
    assert y == pytest.approx(-7.0 + 1.6 * x, abs=1e-7)


RNG = np.random.default_rng(3)
USED = np.array([[True] * 4, [True, True, False, False], [True, False, False, False]])
SHIFT, INTERCEPT = RNG.normal(0, 0.2, (3, 1)), RNG.normal(-58, 0.5, (3, 1))
SLOPE, OFFSET = np.array([1.2, 1.7, 2.0]), np.array([51.8, 52.0, 52.3])
ALL_ERRORS = np.broadcast_to(ERRORS, (3, 4, 3)) * RNG.uniform(0.5, 2, (3, 4, 1))
VALUE = np.stack([0.3 + SHIFT + RNG.normal(0, 0.4, (3, 4)), INTERCEPT + 52.4 + RNG.normal(0, 0.6, (3, 4))], axis=-1)


def groups(group_scale=0.3, offset_scale=0.4):
    return GroupedLinearRelation(
        0.3, group_scale, OFFSET, offset_scale, SLOPE, 0.25, 0.1, SHIFT, INTERCEPT, ALL_ERRORS, USED
    )


def dense(i, group_scale, offset_scale):
    """Mean and covariance of all numbers of a group, and the response to (m, c)."""
    num = USED[i].sum()
    response = np.tile([[1.0, 0.0], [SLOPE[i], 1.0]], (num, 1))
    mean = np.tile([SHIFT[i, 0], INTERCEPT[i, 0]], num) + response @ [0.3, OFFSET[i]]
    covariance = np.zeros((2 * num, 2 * num))
    for j in range(num):
        xx, xy, yy = ALL_ERRORS[i, j]
        true = 0.25**2 * np.array([[1, SLOPE[i]], [SLOPE[i], SLOPE[i] ** 2]]) + np.diag([0, 0.1**2])
        covariance[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = true + np.array([[xx, xy], [xy, yy]])
    prior = np.diag([group_scale**2, offset_scale**2])
    return mean, covariance + response @ prior @ response.T, response, prior


@pytest.mark.parametrize("scales", [(0.3, 0.4), (0.0, 0.4), (1e-9, 50.0), (0.0, 0.0)])
def test_a_group_has_the_density_of_all_its_numbers_together(scales):
    found = np.asarray(groups(*scales).log_prob(VALUE))
    for i in range(3):
        mean, covariance, *_ = dense(i, *scales)
        value = VALUE[i][USED[i]].ravel()
        assert found[i] == pytest.approx(stats.multivariate_normal(mean, covariance).logpdf(value), abs=1e-8)


def test_groups_given_what_was_measured():
    found = groups().groups(VALUE)
    for i in range(3):
        mean, covariance, response, prior = dense(i, 0.3, 0.4)
        gain = prior @ response.T @ np.linalg.inv(covariance)
        expected = [0.3, OFFSET[i]] + gain @ (VALUE[i][USED[i]].ravel() - mean)
        np.testing.assert_allclose(found.mean[i], expected, rtol=1e-10)
        np.testing.assert_allclose(found.covariance_matrix[i], prior - gain @ response @ prior, rtol=1e-8, atol=1e-12)


def test_padding_counts_for_nothing_and_is_not_drawn():
    other = np.where(USED[..., None], VALUE, 1e6)
    np.testing.assert_array_equal(groups().log_prob(other), groups().log_prob(VALUE))
    slope = jax.grad(lambda v: groups().log_prob(v).sum())(jnp.asarray(other))
    assert (np.asarray(slope)[~USED] == 0).all()
    drawn = jax.vmap(groups().sample)(jax.random.split(jax.random.key(2), 20_000))
    assert (np.asarray(drawn)[:, ~USED] == 0).all()
    for i in range(3):
        mean, covariance, *_ = dense(i, 0.3, 0.4)
        values = np.asarray(drawn)[:, i][:, USED[i]].reshape(20_000, -1)
        assert (np.abs(values.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / 20_000)).all()
        np.testing.assert_allclose(np.cov(values.T), covariance, atol=0.06 * np.diag(covariance).max())


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("used", [USED, np.ones_like(USED)])
def test_the_written_derivative_is_that_of_the_density(moves, used):
    """By every argument, against automatic differentiation of the dense Gaussian, and forward against reverse."""

    def dense_density(slope, x_scale, scatter, m, s, c, t, shift, intercept, errors, value, row):
        keep = np.flatnonzero(used[row])
        x, y, e = value[row, keep, 0] - shift[row], value[row, keep, 1] - intercept[row], errors[row, keep]
        a, num, v = slope[row], len(keep), x_scale**2
        eye = jnp.eye(num)
        xx = eye * (v + e[:, 0]) + s**2
        xy = eye * (a * v + e[:, 1]) + a * s**2
        yy = eye * (a**2 * v + scatter**2 + e[:, 2]) + a**2 * s**2 + t**2
        covariance = jnp.block([[xx, xy], [xy, yy]])
        residual = jnp.concatenate([x - m, y - a * m - c[row]])
        log_det = jnp.linalg.slogdet(covariance)[1]
        return -0.5 * (residual @ jnp.linalg.solve(covariance, residual) + log_det + 2 * num * np.log(2 * np.pi))

    def density(slope, x_scale, scatter, m, s, c, t, shift, intercept, errors, value, row):
        s = s if moves else None
        given = GroupedLinearRelation(m, s, c, t, slope, x_scale, scatter, shift, intercept, errors, used)
        return given.log_prob(value)[row]

    at = (SLOPE, 0.25, 0.1, 0.3, 0.3 if moves else 0.0, OFFSET, 0.4, SHIFT, INTERCEPT, ALL_ERRORS, VALUE)
    at = tuple(jnp.asarray(a) for a in at)
    for row in range(3):
        by = tuple(range(11))
        found, expected = (jax.grad(f, by)(*at, row) for f in (density, dense_density))
        for i in by:
            if moves or i != 4:
                np.testing.assert_allclose(found[i], expected[i], rtol=1e-8, atol=1e-8)
    second, expected = (jax.hessian(f)(at[0], *at[1:], 0) for f in (density, dense_density))
    np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-8)
