"""Points with errors in all coordinates against numerical integration, and what is drawn of the truth.

Density, derivatives and draws in general: `test_distribution_laws`.
"""

import jax
import numpy as np
import pytest
from draw_comparison import same_distribution
from monte_carlo import seed
from normal_oracles import draw_normal, log_normal
from scipy import integrate, stats

from hbm_jax.distributions import LinearRelation
from hbm_jax.distributions.linear.measured_points import Limits, MeasuredPoints

ERRORS = np.array([[0.3, 0.1], [0.1, 0.2]])
LINE = {
    "x_loc": np.array([[0.4]]), "x_cov": np.array([[[1.2]]]), "log_weights": np.zeros(1),
    "intercept": 0.5, "slope": np.array([1.7]), "scatter": 0.6, "errors": ERRORS,
}  # fmt: skip
NUM_TRUE = 5_000


@jax.jit
def log_prob(p, values, limits=None):
    return MeasuredPoints(**p, limits=limits).log_prob(values)


@jax.jit
def with_outliers(p, outliers, values):
    d = MeasuredPoints(**p, outliers=outliers)
    return d.log_prob(values), d.outlier_probability(values)


@jax.jit
def of_students_t(p, nu, values):
    d = MeasuredPoints(**p, nu=nu)
    return d.log_prob(values), d.weight(values)


@jax.jit
def draw_and_draw_back(p, limits, values, number):
    d = MeasuredPoints(**p, limits=limits)
    keys = jax.random.split(jax.random.key(number))
    return d.sample(keys[0], (NUM_TRUE,)), d.draw_true(keys[1], values)


def integral(value, x_loc=0.4, x_var=1.2, intercept=0.5, slope=1.7, scatter=0.6):
    """Integrate over the true x; true y given x is normal and joins the error of y."""
    cov = ERRORS + np.diag([0.0, scatter**2])

    def over(x):
        return np.exp(log_normal(value, np.array([x, intercept + slope * x]), cov)) * stats.norm.pdf(
            x, x_loc, np.sqrt(x_var)
        )

    return integrate.quad(over, -12, 12, epsabs=1e-13, limit=200)[0]


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)
VALUE = np.array([1.1, 1.9])


def line_through(coordinate, low, high):
    """Values of which one coordinate is at the nodes of a quadrature, and its weights."""
    values = np.tile(VALUE, (len(NODES), 1))
    values[:, coordinate] = low + 0.5 * (high - low) * (1.0 + NODES)
    return values, 0.5 * (high - low) * WEIGHTS


def test_density_is_the_integral_over_the_truth():
    values = line_through(0, -2.0, 3.0)[0]
    found = np.exp(log_prob(LINE, values))
    for k in (0, 50, 199):
        assert float(found[k]) == pytest.approx(integral(values[k]), rel=1e-9)


def test_one_component_is_the_linear_relation():
    values = line_through(0, -2.0, 3.0)[0]
    other = jax.jit(lambda v: LinearRelation(0.4, np.sqrt(1.2), 0.5, 1.7, 0.6, np.array([0.3, 0.1, 0.2])).log_prob(v))
    np.testing.assert_allclose(log_prob(LINE, values), other(values), rtol=1e-12)


def test_mixtures_and_outliers_are_sums():
    values = np.array([[1.1, -2.0], [0.3, 1.0]])
    share, scale = 0.2, 3.0
    both = LINE | {
        "x_loc": np.array([[0.4], [-1.0]]), "x_cov": np.array([[[1.2]], [[0.3]]]), "log_weights": np.log([0.7, 0.3]),
    }  # fmt: skip
    log, probability = with_outliers(both, (share, scale), values)
    wide = np.hypot(0.6, scale)
    for k, value in enumerate(values):
        parts = [[integral(value, loc, var, scatter=s) for loc, var in ((0.4, 1.2), (-1.0, 0.3))] for s in (0.6, wide)]
        good, bad = (0.7 * a + 0.3 * b for a, b in parts)
        expected = (1 - share) * good + share * bad
        assert float(np.exp(log[k])) == pytest.approx(expected, rel=1e-8)
        assert float(probability[k]) == pytest.approx(share * bad / expected, rel=1e-8)


@pytest.mark.parametrize("nu", [1.0, 2.0, 4.0, 30.0])
def test_students_t_is_its_integral_over_the_scatter(nu):
    """Against SciPy's density of Student's t, folded with the errors by a quadrature of its own."""
    x, y, scatter = 1.1, np.array([2.0, 4.0, -25.0]), 0.6
    values = np.column_stack([np.full(3, x), y])
    points = LINE | {"x_loc": np.array([[x]]), "x_cov": np.zeros((1, 1, 1)), "errors": np.diag([1.0, 0.3**2])}
    log, weights = map(np.asarray, of_students_t(points, nu, values))
    for value, density in zip(y - 0.5 - 1.7 * x, np.exp(log) * np.sqrt(2 * np.pi), strict=True):
        grid = value + 0.3 * np.linspace(-9, 9, 20001)
        expected = integrate.trapezoid(stats.t.pdf(grid, nu, 0.0, scatter) * stats.norm.pdf(value, grid, 0.3), grid)
        assert float(density) == pytest.approx(expected, rel=1e-5)
    assert weights[2] < 0.2
    assert weights[0] > 0.7
    # Without an error of the response the weight has a closed form.
    _, weights = of_students_t(points | {"errors": np.diag([1.0, 0.0])}, nu, values)
    away = (y - 0.5 - 1.7 * x) / scatter
    np.testing.assert_allclose(weights, (nu + 1) / (nu + away**2), rtol=1e-4)


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_limits_are_integrals_of_the_density(coordinate, side):
    order = None if coordinate == 1 else np.eye(2)[::-1]
    limits = Limits(np.array(VALUE[coordinate]), np.array(side), order)
    ends = (-15.0, VALUE[coordinate]) if side > 0 else (VALUE[coordinate], 20.0)
    beyond, weights = line_through(coordinate, *ends)
    # At the limit, and on the other side of it, where the point is an ordinary one.
    values = np.tile(VALUE, (len(NODES), 1))
    values[1:, coordinate] += side * np.linspace(0.1, 2.0, len(NODES) - 1)
    found = np.exp(log_prob(LINE, values, limits))
    assert float(found[0]) == pytest.approx(weights @ np.exp(log_prob(LINE, beyond)), rel=1e-7)
    np.testing.assert_allclose(found[1:], np.exp(log_prob(LINE, values))[1:], rtol=1e-12)
    # Where there is no limit all points are ordinary.
    free = np.asarray(log_prob(LINE, values, limits._replace(at=np.array(np.nan))))
    np.testing.assert_allclose(free, log_prob(LINE, values), rtol=1e-12)


MIXTURE = LINE | {
    "x_loc": np.array([[0.4], [-1.0]]), "x_cov": np.array([[[1.2]], [[0.3]]]), "log_weights": np.log([0.7, 0.3]),
}  # fmt: skip


@pytest.mark.parametrize(("coordinate", "side"), [(None, 1.0), (0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)])
def test_draws_and_what_is_drawn_of_the_truth(coordinate, side, monte_carlo):
    """Truth and observation drawn by NumPy, then the truth drawn back: both have one distribution with the data."""
    limit, order = 0.8, None if coordinate == 1 else np.eye(2)[::-1]
    limits = None if coordinate is None else Limits(np.array(limit), np.array(side), order)

    def forward(rng, num):
        which = rng.random(num) < 0.3
        x = np.where(which, -1.0 + np.sqrt(0.3) * rng.normal(size=num), 0.4 + np.sqrt(1.2) * rng.normal(size=num))
        true = np.column_stack([x, 0.5 + 1.7 * x + 0.6 * rng.normal(size=num)])
        value = true + draw_normal(rng, np.zeros(2), ERRORS, num)
        if coordinate is not None:
            column = value[:, coordinate]
            column[side * column <= side * limit] = limit
        return value, true

    values, _ = forward(np.random.default_rng(seed(1)), NUM_TRUE)
    drawn, back = map(np.asarray, draw_and_draw_back(MIXTURE, limits, values, seed(2)))
    others, other_truth = forward(np.random.default_rng(seed(3)), 20_000)
    same_distribution(monte_carlo, drawn, others, "data")
    # Of points at the limit and of others: what is drawn back is not the data again.
    columns = np.column_stack([other_truth, other_truth[:, 1] - 1.7 * other_truth[:, 0], others - other_truth])
    found = np.column_stack([back, back[:, 1] - 1.7 * back[:, 0], values - back])
    same_distribution(monte_carlo, found, columns, "truth")
    if coordinate is not None:
        at_limit, expected = values[:, coordinate] == limit, others[:, coordinate] == limit
        assert np.mean(drawn[:, coordinate] == limit) > 0.05
        same_distribution(monte_carlo, found[at_limit], columns[expected], "truth at the limit")
        same_distribution(monte_carlo, found[~at_limit], columns[~expected], "truth elsewhere")
