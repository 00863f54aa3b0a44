"""Tabulated efficiencies and functions of x and y: the detected fraction, storage, and what is refused."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from monte_carlo import seed
from numpyro.infer.util import log_density
from scipy import integrate, stats

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.distributions.selection import TabulatedSelection
from hbm_jax.models import DetectionFunction, Efficiency, GolenetskiiCounts, Relation
from hbm_jax.validation import DataError, OptionError
from hbm_jax.xla_options import QUICK


def log_interval(low, high):
    """Return the log probability of a standard normal variable between two limits, accurate on both sides."""
    low, high = np.asarray(low), np.asarray(high)
    left, right = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    return stats.norm.logcdf(right) + np.log1p(-np.exp(stats.norm.logcdf(left) - stats.norm.logcdf(right)))


TRUTH = {"alpha": 1.8, "beta": 1.1, "intrinsic_scatter": 0.5, "x_mean": 0.6, "x_std": 0.9}
TABLE = Efficiency("x", (-0.5, 0.4, 1.0, 2.5), (0.05, 0.3, 0.9, 0.8))


def points(**more):
    columns = {"x": np.array([0.6, 1.2, 0.9, 2.1, 1.0]), "y": np.array([0.4, 1.9, 1.1, 2.8, -0.5])}
    errors = {"sigma_x": np.array([0.7, 0.2, 0.4, 0.3, 0.1]), "sigma_y": np.full(5, 0.4)}
    return PointsInGroups.from_columns(columns | errors | more)


def likelihood(model, data=None):
    """Log densities of the points, as a function of the parameters."""
    bound = model.bind(points() if data is None else data)

    @jax.jit
    def densities(values):
        site = log_density(model, (bound,), {}, values)[1]["observed"]
        return site["fn"].log_prob(site["value"])[0]

    return densities


def with_gradient(densities):
    """Return a function of the sum and the log densities, with the gradient of the sum, as one program."""

    def total(values):
        found = densities(values)
        return found.sum(), found

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_a_table_is_integrated_exactly():
    """Densities and their gradient against a trapezoidal rule between the values of the table."""
    options = {"pooling": "complete", "pivot": 0.0}
    found, without = likelihood(Relation(selection=TABLE, **options)), likelihood(Relation(**options))
    std = np.hypot(TRUTH["x_std"], points().values[0, :, 0] * 0 + np.sqrt(points().errors[0, :, 0, 0]))
    edges = np.concatenate([[-12.0], TABLE.at, [14.0]])
    grid = np.concatenate([np.linspace(a, b, 4001) for a, b in pairwise(edges)])[:, None]

    def expected(mean):
        density = np.interp(grid, TABLE.at, TABLE.probability) * stats.norm.pdf(grid, mean, std)
        share = integrate.trapezoid(density, grid, axis=0)
        return np.log(np.interp(points().values[0, :, 0], TABLE.at, TABLE.probability) / share)

    with jax.enable_x64(True):
        (_, shares), slopes = with_gradient(lambda p: found(p) - without(p))(TRUTH)
    np.testing.assert_allclose(shares, expected(TRUTH["x_mean"]), rtol=0, atol=1e-6)
    numeric = (expected(TRUTH["x_mean"] + 1e-3) - expected(TRUTH["x_mean"] - 1e-3)).sum() / 2e-3
    assert float(slopes["x_mean"]) == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("mean", [-40.0, -9.0, -3.0, 0.3, 1.2, 8.0, 60.0])
@pytest.mark.parametrize("probability", [(0.0, 0.2, 1.0), (1.0, 0.4, 0.0), (0.1, 1.0, 0.3)])
def test_shares_far_from_the_table_are_accurate(mean, probability):
    at, std = (0.0, 0.7, 2.0), 1.3

    def piece(low, high, a, b):  # integral of a + b v from low to high
        z = [(mpmath.mpf(end) - mean) / std for end in (low, high)]
        mass = (mpmath.erfc(z[0] / mpmath.sqrt(2)) - mpmath.erfc(z[1] / mpmath.sqrt(2))) / 2
        return (a + b * mean) * mass - b * std * (mpmath.npdf(z[1]) - mpmath.npdf(z[0]))

    with mpmath.workdps(600):  # masses of opposite tails cancel
        ends = ("-inf", *at, "inf")
        values = [mpmath.mpf(p) for p in (probability[0], *probability, probability[-1])]
        expected = piece(ends[0], ends[1], values[0], 0) + piece(ends[-2], ends[-1], values[-1], 0)
        for k in range(2):
            slope = (values[k + 2] - values[k + 1]) / (mpmath.mpf(at[k + 1]) - mpmath.mpf(at[k]))
            expected += piece(at[k], at[k + 1], values[k + 1] - slope * at[k], slope)
        log_expected = float(mpmath.log(expected))
    selection = TabulatedSelection(np.array(at), np.array(probability), np.array([1.0]))
    with jax.enable_x64(True):
        found = selection.log_detected([jnp.array([mean])], [[jnp.array([std**2])]])[0]
    assert float(found) == pytest.approx(log_expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("std", [0.05, pytest.param(0.3, marks=pytest.mark.long)])
@pytest.mark.parametrize("options", [{}, QUICK], ids=["optimised", "quick"])
def test_gradients_far_from_the_table_do_not_depend_on_how_they_are_compiled(std, options):
    # Without optimisation, XLA computed hinges twice and rounded them differently: none was then the largest, and the
    # derivative of the maximum was NaN.
    selection = TabulatedSelection(np.array([-1.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0]))
    mean = jnp.linspace(-8.0, 8.0, 401)
    gradient = jax.vmap(jax.grad(lambda m: selection.log_detected([m], [[jnp.full_like(m, std**2)]])))
    found = jax.jit(gradient).lower(mean).compile(options)(mean)
    ends = jnp.array([-1.0, 1.0]) - mean[:, None]
    # The derivative of the share is half the probability between the ends of the table, (Phi(b) - Phi(a)) / 2.
    log_slope = log_interval(ends[:, 0] / std, ends[:, 1] / std) - np.log(2.0)
    log_share = jax.jit(jax.vmap(lambda m: selection.log_detected([m], [[jnp.full_like(m, std**2)]])))(mean)
    np.testing.assert_allclose(found, np.exp(log_slope - log_share), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("mean", [-40.0, 0.5, 40.0])
def test_rows_that_change_nothing_change_nothing(mean):
    """Zeros beyond those next to the rise or fall, and a constant table."""

    def log_detected_fraction(at, probability):
        selection = TabulatedSelection(np.array(at), np.array(probability), np.array([1.0]))
        return selection.log_detected([jnp.array([mean])], [[jnp.array([0.2**2])]])[0]

    with jax.enable_x64(True):
        short, long = (
            log_detected_fraction([0.0, 1.0, 2.0], [0.0, 0.7, 0.0]),
            log_detected_fraction(range(-9, 11), 10 * [0.0] + [0.7] + 9 * [0.0]),
        )
        assert float(long) == pytest.approx(float(short), rel=1e-11)
        assert float(log_detected_fraction([0.0, 1.0], [0.3, 0.3])) == pytest.approx(np.log(0.3), rel=1e-12)


@pytest.mark.long
def test_a_function_is_integrated_over_both_coordinates():
    """A product of two normal distribution functions, against the limits in x and y that it is."""

    def detected(x, y):
        return jax.scipy.special.ndtr((x - 0.5) / 0.4) * jax.scipy.special.ndtr((3.0 - y) / 0.9)

    model = Relation(selection=DetectionFunction(detected, "two limits"), pooling="complete", pivot=0.0)
    same = Relation(selection="x > 0.5 +- 0.4 and y < 3 +- 0.9", pooling="complete", pivot=0.0)
    found, exact = likelihood(model), likelihood(same)
    with jax.enable_x64(True):
        (_, one), slopes = with_gradient(found)(TRUTH)
        (_, other), exact_slopes = with_gradient(exact)(TRUTH)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    for name, slope in slopes.items():
        assert float(slope) == pytest.approx(float(exact_slopes[name]), rel=1e-5, abs=1e-5), name
    assert "selected by two limits" in model.description
    assert model.to_config()["selection"] == "two limits"
    assert model.to_config()["class"] == "Relation with two limits"


def test_simulated_points_pass_the_efficiency(monte_carlo):
    """The distribution function of what the table leaves of a normal population."""
    num = 2000
    x = np.linspace(-1.0, 3.0, num)
    design = PointsInGroups.from_columns({"x": x, "y": x, "sigma_x": np.full(num, 0.3), "sigma_y": np.full(num, 0.3)})
    model = Relation(pooling="complete", selection="x efficiency 0:0 0.5:1", pivot=0.0)
    drawn, _ = model.simulate(jax.random.key(seed(3)), design, TRUTH)
    measured = drawn.values[0, :, 0]
    assert measured.min() > 0.0
    grid = np.linspace(0.0, 8.0, 20001)
    density = np.interp(grid, [0.0, 0.5], [0.0, 1.0]) * stats.norm.pdf(grid, 0.6, np.hypot(0.9, 0.3))
    cumulative = np.cumsum(density) / density.sum()
    monte_carlo.distribution(measured, lambda v: np.interp(v, grid, cumulative))


def test_text_tables_and_objects_are_the_same(tmp_path):
    text = "x efficiency -0.5:0.05 0.4:0.3 1.0:0.9 2.5:0.8"
    assert str(TABLE) == text
    (tmp_path / "efficiency.csv").write_text("x,share\n-0.5,0.05\n0.4,0.3\n1.0,0.9\n2.5,0.8\n")
    for choice in (TABLE, text, f"x from {tmp_path / 'efficiency.csv'}"):
        model = Relation(selection=choice)
        assert model.selection == text
        assert model.selections == (TABLE,)
        assert Relation(**model.to_config()).to_config() == model.to_config()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("x efficiency 0.5", "expected pairs of a value and a probability"),
        ("x efficiency 0.5:0.1", "expected two or more increasing values"),
        ("x efficiency 1:0.1 0:1", "expected two or more increasing values"),
        ("x efficiency 0:0 1:0", "expected probabilities from 0 to 1, not all 0"),
        ("x efficiency 0:0 1:1 and y > 2", "expected x efficiency 0.0:0.0 1.0:1.0 alone"),
    ],
)
def test_tables_that_make_no_sense_are_refused(choice, words):
    with pytest.raises(OptionError, match=words):
        Relation(selection=choice)


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match=r"GolenetskiiCounts: .*: expected a limit, or injections"):
        GolenetskiiCounts(selection="log10_peak_flux efficiency -7:0 -6:1")
    with pytest.raises(OptionError, match="expects at most one limit"):
        Relation(selection=TABLE, x_population="exponential")
    with pytest.raises(DataError, match=r"probability above 0 and up to 1 at every point; found 0 in row 0"):
        Relation(selection="x efficiency 0.7:0 2:1").bind(points())
    with pytest.raises(DataError, match="expected a measured coordinate, one of x, y; found 'z'"):
        Relation(selection="z efficiency 0.7:0 2:1").bind(points())
    with pytest.raises(DataError, match="expected no upper or lower limits"):
        Relation(selection=TABLE).bind(points(limit_y=["<", "", "", "", ""]))
