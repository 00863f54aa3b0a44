"""Points on lines with the true ones integrated out: integrals, limits, conditionals, second derivatives.

Density, first derivatives by every argument and draws in general: `test_distribution_laws`.
"""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from normal_oracles import grouped_relation, linear_relation, log_linear_relation, log_normal
from scipy import integrate, stats

from hbm_jax.distributions import GroupedLinearRelation, LinearRelation
from hbm_jax.distributions.linear.linear_relation import Pair, bivariate

LINE = {
    "x_loc": 2.4, "x_scale": 0.3, "intercept": -7.0, "slope": 1.6, "scatter": 0.2,
    "errors": np.array([0.02, 0.004, 0.01]),
}  # fmt: skip
MATRIX = np.array([[0.02, 0.004], [0.004, 0.01]])
VALUES = np.array([(2.4, -3.2), (2.9, -2.1), (1.8, -3.0), (2.4, -3.4), (2.4, 30.0)])


@jax.jit
def of_points(p, values):
    """Density and conditional of points."""
    d = LinearRelation(**p)
    conditional = d.conditional(values)
    return d.log_prob(values), conditional.mean, conditional.scale_tril


@jax.jit
def draws_above(p, number):
    return LinearRelation(**p).sample(jax.random.key(number), (10_000,))


def density_by_integration(value):
    """Over the true x; the scatter is part of the error of y given x."""
    noise = MATRIX + np.diag([0.0, 0.04])

    def one(x):
        return stats.norm.pdf(x, 2.4, 0.3) * np.exp(log_normal(value, np.array([x, -7.0 + 1.6 * x]), noise))

    return integrate.quad(one, 0.0, 5.0, epsabs=1e-13, points=[2.4], limit=200)[0]


def test_a_point_has_the_density_that_the_integral_over_the_true_one_gives():
    found = of_points(LINE, VALUES)[0]
    for k in range(3):
        assert float(found[k]) == pytest.approx(np.log(density_by_integration(VALUES[k])), abs=1e-9)


def test_a_limit_divides_by_the_probability_to_be_above():
    mean, covariance = linear_relation(LINE)
    far = mean[1] + 40.0 * np.sqrt(covariance[1, 1])
    for limit in (-3.3, far):
        found = np.asarray(of_points(LINE | {"limit": limit}, VALUES)[0])
        for k, value in enumerate(VALUES):
            expected = log_linear_relation(LINE | {"limit": limit}, value)
            assert found[k] == pytest.approx(expected, rel=1e-11), (limit, value)
    # Forty standard deviations out the probability is no number any more, but its logarithm is.
    assert np.isfinite(found[-1])
    assert (found[:-1] == -np.inf).all()


@pytest.mark.parametrize("limit", [-3.3, -1.0, 20.0])
def test_draws_above_a_limit_have_the_density(limit, monte_carlo):
    """Also 40 standard deviations above the mean, where the normal distribution function underflows."""
    draws = np.asarray(draws_above(LINE | {"limit": limit}, seed(1)))
    mean, covariance = linear_relation(LINE)
    deviation = np.sqrt(covariance[1, 1])
    above = stats.truncnorm((limit - mean[1]) / deviation, np.inf, mean[1], deviation)
    monte_carlo.distribution(draws[:, 1], above.cdf, name="y")
    slope = covariance[0, 1] / covariance[1, 1]
    left = draws[:, 0] - mean[0] - slope * (draws[:, 1] - mean[1])
    monte_carlo.distribution(left / np.sqrt(covariance[0, 0] - slope * covariance[0, 1]), "norm", name="x given y")


def test_a_smooth_limit_divides_by_the_detected_share_and_is_drawn(monte_carlo):
    p, (mean, covariance) = LINE | {"limit": -2.6, "width": 0.3}, linear_relation(LINE)
    deviation, y = np.sqrt(covariance[1, 1]), np.linspace(-8.0, 2.0, 20_001)
    detected = stats.norm.pdf(y, mean[1], deviation) * stats.norm.cdf((y + 2.6) / 0.3)
    cumulative = integrate.cumulative_simpson(detected, x=y, initial=0.0)
    found = np.asarray(of_points(p, VALUES)[0])
    for k in range(4):
        efficiency = stats.norm.logcdf((VALUES[k, 1] + 2.6) / 0.3)
        expected = log_linear_relation(LINE, VALUES[k]) + efficiency - np.log(cumulative[-1])
        assert found[k] == pytest.approx(expected, rel=1e-9)
    draws = np.asarray(draws_above(p, seed(2)))
    monte_carlo.distribution(draws[:, 1], lambda v: np.interp(v, y, cumulative / cumulative[-1]), name="y")
    slope = covariance[0, 1] / covariance[1, 1]
    left = draws[:, 0] - mean[0] - slope * (draws[:, 1] - mean[1])
    monte_carlo.distribution(left / np.sqrt(covariance[0, 0] - slope * covariance[0, 1]), "norm", name="x given y")


def test_true_values_given_measured_ones():
    true = 0.09 * np.array([[1, 1.6], [1.6, 2.56]])
    for scatter in (0.2, 0.0):
        _, loc, tril = map(np.asarray, of_points(LINE | {"scatter": scatter}, VALUES))
        covariance = true + np.diag([0.0, scatter**2])
        gain = covariance @ np.linalg.inv(covariance + MATRIX)
        mean = np.array([2.4, -3.16])
        np.testing.assert_allclose(loc, mean + (VALUES - mean) @ gain.T, rtol=1e-11)
        expected = covariance - gain @ covariance
        np.testing.assert_allclose(tril @ np.swapaxes(tril, -1, -2), expected[None], rtol=1e-9)
    # Without scatter the true point is on the line.
    np.testing.assert_allclose(loc[:, 1], -7.0 + 1.6 * loc[:, 0], rtol=1e-10)
    np.testing.assert_allclose(tril[:, 1, 0], 1.6 * tril[:, 0, 0], rtol=1e-9)
    np.testing.assert_allclose(tril[:, 1, 1], 0.0, atol=1e-7)
    # A known true x stays where it is.
    _, loc, tril = map(np.asarray, of_points(LINE | {"x_scale": 0.0}, VALUES))
    np.testing.assert_array_equal(loc[:, 0], 2.4)
    np.testing.assert_array_equal(tril[:, 0], 0.0)
    y_gain = 0.04 / (0.04 + 0.01 - 0.004**2 / 0.02)
    left = VALUES[:, 1] + 3.16 - 0.004 / 0.02 * (VALUES[:, 0] - 2.4)
    np.testing.assert_allclose(loc[:, 1], -3.16 + y_gain * left, rtol=1e-10)


RNG = np.random.default_rng(3)
USED = np.array([[True] * 4, [True, True, False, False], [True, False, False, False]])
GROUPS = {
    "group_loc": 0.3, "offset_loc": np.array([51.8, 52.0, 52.3]), "slope": np.array([1.2, 1.7, 2.0]),
    "x_scale": 0.25, "scatter": 0.1, "x_shift": RNG.normal(0, 0.2, (3, 1)), "intercept": RNG.normal(-58, 0.5, (3, 1)),
    "errors": np.broadcast_to(LINE["errors"], (3, 4, 3)) * RNG.uniform(0.5, 2, (3, 4, 1)),
}  # fmt: skip
VALUE = np.stack(
    [0.3 + GROUPS["x_shift"] + RNG.normal(0, 0.4, (3, 4)), GROUPS["intercept"] + 52.4 + RNG.normal(0, 0.6, (3, 4))], -1
)
SCALES = [(0.3, 0.4), (0.0, 0.4), (1e-9, 50.0), (0.0, 0.0)]


@jax.jit
def of_groups(groups, group_scale, offset_scale, value, known):
    """Density, mean, what is known of m and c, and of true points given them."""
    d = GroupedLinearRelation(**groups, group_scale=group_scale, offset_scale=offset_scale, used=USED)
    found, true = d.groups(value), d.conditional(value, known)
    one_mean = GroupedLinearRelation(**groups, group_scale=None, offset_scale=offset_scale, used=USED).groups(value)
    return {
        "log_prob": d.log_prob(value),
        "mean": d.mean,
        "groups": (found.mean, found.covariance_matrix),
        "groups of one mean": (one_mean.mean, one_mean.covariance_matrix),
        "true": (true.mean, true.covariance_matrix),
    }


KNOWN = np.column_stack([RNG.normal(0.3, 0.3, 3), RNG.normal(52.0, 0.3, 3)])


@pytest.mark.parametrize("scales", SCALES)
def test_a_group_has_the_density_of_all_its_numbers_together(scales):
    found = jax.tree.map(np.asarray, of_groups(GROUPS, *scales, VALUE, KNOWN))
    for i in range(3):
        p = one_group(i, *scales)
        mean, covariance, response, prior = grouped_relation(p)
        value = VALUE[i][USED[i]].ravel()
        assert found["log_prob"][i] == pytest.approx(log_normal(value, mean, covariance), abs=1e-8)
        np.testing.assert_allclose(found["mean"][i][USED[i]].ravel(), mean, rtol=1e-12)
        if scales[1] > 10:  # the dense formulae lose digits
            continue
        for name in ("groups", "groups of one mean"):
            if name == "groups of one mean":
                prior = np.diag([0.0, scales[1] ** 2])
                covariance = grouped_relation(p | {"group_scale": 0.0})[1]
            gain = prior @ response.T @ np.linalg.inv(covariance)
            expected = [0.3, GROUPS["offset_loc"][i]] + gain @ (value - mean)
            np.testing.assert_allclose(found[name][0][i], expected, rtol=1e-10)
            left = prior - gain @ response @ prior
            np.testing.assert_allclose(found[name][1][i], left, rtol=1e-8, atol=1e-12)


def one_group(i, group_scale, offset_scale):
    """Parameters of one group, as the reference takes them."""
    names = ("group_loc", "offset_loc", "slope", "x_scale", "scatter")
    p = {name: np.broadcast_to(GROUPS[name], 3)[i] for name in names}
    p |= {name: np.broadcast_to(GROUPS[name][i], 4) for name in ("x_shift", "intercept")}
    return p | {
        "group_scale": group_scale, "offset_scale": offset_scale, "errors": GROUPS["errors"][i], "used": USED[i],
    }  # fmt: skip


def test_true_points_given_their_group():
    loc, covariance = map(np.asarray, of_groups(GROUPS, 0.3, 0.4, VALUE, KNOWN)["true"])
    for i, j in np.ndindex(3, 4):
        slope, shift, (m, c) = GROUPS["slope"][i], GROUPS["x_shift"][i, 0], KNOWN[i]
        mean = np.array([shift + m, GROUPS["intercept"][i, 0] + c + slope * m])
        true = 0.25**2 * np.array([[1, slope], [slope, slope**2]]) + np.diag([0.0, 0.1**2])
        xx, xy, yy = GROUPS["errors"][i, j]
        gain = true @ np.linalg.inv(true + np.array([[xx, xy], [xy, yy]]))
        np.testing.assert_allclose(loc[i, j], mean + gain @ (VALUE[i, j] - mean), rtol=1e-10)
        np.testing.assert_allclose(covariance[i, j], true - gain @ true, rtol=1e-8, atol=1e-12)


def test_standard_normals_become_values_with_the_covariance_of_the_density():
    """Values are linear in the normals; the inverse covariance is minus the second derivative of the log density."""

    @jax.jit
    def derivatives(value):
        d = GroupedLinearRelation(**GROUPS, group_scale=0.3, offset_scale=0.4, used=USED)
        at_zero = np.zeros(d.shape_of_normals)
        hessian = jax.hessian(lambda value: d.log_prob(value).sum())(value)
        return d.from_normals(at_zero), d.mean, jax.jacfwd(d.from_normals)(at_zero), hessian

    value, mean, factor, hessian = jax.device_get(derivatives(VALUE))
    np.testing.assert_allclose(value[USED], mean[USED], rtol=1e-12)
    kept = np.repeat(USED[1], 2)
    linear = factor[1][:, :, 1].reshape(len(kept), -1)[kept]
    precision = -hessian[1][:, :, 1].reshape(len(kept), -1)[np.ix_(kept, kept)]
    np.testing.assert_allclose(linear @ linear.T @ precision, np.eye(kept.sum()), atol=1e-8)


def test_several_draws_at_once_are_refused():
    d = GroupedLinearRelation(**GROUPS, group_scale=0.3, offset_scale=0.4, used=USED)
    with pytest.raises(NotImplementedError, match="one sample at a time"):
        jax.eval_shape(lambda number: d.sample(jax.random.key(number), (2,)), 0)


def test_the_written_derivative_can_be_differentiated_once_more():
    """Forward over reverse, with and without padding and a mean of each group."""

    def density(slope, group_scale, used):
        d = GroupedLinearRelation(**(GROUPS | {"slope": slope}), group_scale=group_scale, offset_scale=0.4, used=used)
        return d.log_prob(VALUE).sum()

    @jax.jit
    def both(points):
        slope = GROUPS["slope"]
        found = []
        for group_scale, used in ((0.3, USED), (None, np.ones_like(USED))):
            gradient = jax.grad(lambda s, g=group_scale, u=used: density(s, g, u))
            found.append((jax.jacfwd(gradient)(slope), jax.vmap(gradient)(points)))
        return found

    steps = 1e-5 * np.eye(3)
    for second, gradients in both(np.concatenate([GROUPS["slope"] + steps, GROUPS["slope"] - steps])):
        expected = (np.asarray(gradients)[:3] - np.asarray(gradients)[3:]) / 2e-5
        np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-5)


def test_a_singular_covariance_has_a_square_root_with_finite_slopes():
    """Where the first coordinate is exact, only the second one is drawn."""

    def root(xy, yy):
        return bivariate(np.zeros(2), Pair(0.0, xy, yy)).scale_tril

    values, slopes = jax.jit(lambda xy, yy: (root(xy, yy), jax.jacrev(root, (0, 1))(xy, yy)))(0.0, 4.0)
    np.testing.assert_array_equal(values, [[0.0, 0.0], [0.0, 2.0]])
    np.testing.assert_array_equal(slopes[0], np.zeros((2, 2)))
    np.testing.assert_allclose(slopes[1], [[0.0, 0.0], [0.0, 0.25]])
