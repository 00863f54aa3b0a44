"""Points of a relation with asymmetric errors, linear columns, limits in other forms, and several rows per object."""

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats

from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
from hbm_jax.models import Relation
from hbm_jax.validation import DataError

X, Y = np.array([0.2, 1.1, 1.9, 3.2]), np.array([1.0, 1.4, 2.9, 3.1])
TRUTH = {"alpha": 0.8, "beta": 0.9, "intrinsic_scatter": 0.3, "x_mean": 1.4, "x_std": 1.2}


def log_likelihood(data, **values):
    model = Relation(pooling="complete", pivot=0.0)

    @jax.jit
    def likelihood(bound, values):
        site = log_density(model, (bound,), {}, values)[1]["observed"]
        return site["fn"].log_prob(site["value"])

    with jax.enable_x64(True):
        return np.asarray(likelihood(model.bound(data), {k: np.float64(v) for k, v in (TRUTH | values).items()}))[0]


def test_intervals_of_one_standard_deviation_are_kept():
    """Linear and logarithmic, the ends of the interval are those of the table."""
    low, high = np.array([0.3, 0.2, 0.1, 0.4]), np.array([0.5, 0.2, 0.6, 0.9])
    columns = {"x": X, "y": Y, "y_err_lo": low, "y_err_hi": high, "sigma_x": [0.1, 0.0, 0.2, 0.3]}
    linear = PointsInGroups.from_columns(columns)
    sigma = np.sqrt(linear.errors[0, :, 1, 1])
    np.testing.assert_allclose(linear.values[0, :, 1] - sigma, Y - low, rtol=1e-14)
    np.testing.assert_allclose(linear.values[0, :, 1] + sigma, Y + high, rtol=1e-14)
    logarithms = PointsInGroups.from_columns(columns | {"cut_x": np.full(4, 0.1)}, log10=["x", "y"])
    for column, (centre, down, up) in enumerate([(X, columns["sigma_x"], columns["sigma_x"]), (Y, low, high)]):
        sigma = np.sqrt(logarithms.errors[0, :, column, column])
        np.testing.assert_allclose(10 ** (logarithms.values[0, :, column] - sigma), centre - down, rtol=1e-12)
        np.testing.assert_allclose(10 ** (logarithms.values[0, :, column] + sigma), centre + np.array(up), rtol=1e-12)
    np.testing.assert_allclose(logarithms.cut[0, :, 0], -1.0)
    # Of a small error, the logarithm is that of the propagated error.
    small = PointsInGroups.from_columns({"x": X, "y": Y, "sigma_y": 1e-4 * Y}, log10=["y"])
    np.testing.assert_allclose(np.sqrt(small.errors[0, :, 1, 1]), 1e-4 / np.log(10.0), rtol=1e-7)
    np.testing.assert_allclose(small.values[0, :, 1], np.log10(Y), atol=1e-8)


@pytest.mark.parametrize(
    "words", [["", "upper", "lower", "none"], [0, 1, -1, 0], ["=", "<", ">", ""], [0.0, 1.0, -1.0, 0.0]]
)
def test_limits_may_be_numbers_or_signs_and_have_no_error(words):
    columns = {"x": X, "y": Y, "sigma_y": [0.1, np.nan, np.nan, 0.2], "limit_y": words}
    data = PointsInGroups.from_columns(columns)
    np.testing.assert_array_equal(data.is_limit[0], [False, True, True, False])
    np.testing.assert_array_equal(data.errors[0, :, 1, 1], np.array([0.1, 0.0, 0.0, 0.2]) ** 2)
    found = log_likelihood(data)
    below = stats.norm.cdf(Y, TRUTH["beta"] + TRUTH["alpha"] * X, TRUTH["intrinsic_scatter"])
    density = stats.norm.pdf(X, TRUTH["x_mean"], TRUTH["x_std"])
    np.testing.assert_allclose(found[1:3], np.log(density * [1, below[1], 1 - below[2], 1])[1:3], rtol=1e-12)
    with pytest.raises(DataError, match="sigma_y, row 1"):
        PointsInGroups.from_columns(columns | {"limit_y": [0, 0, 1, 0]})


def test_values_without_error_are_true_values():
    """A point known exactly in y, in x, and in both."""
    data = PointsInGroups.from_columns(
        {"x": X, "y": Y, "sigma_x": [0.2, 0.0, 0.0, 0.1], "sigma_y": [0.0, 0.3, 0.0, 0.2]}
    )
    spread = np.hypot(TRUTH["intrinsic_scatter"], [0.0, 0.3, 0.0, 0.2])
    expected = stats.norm.logpdf(Y, TRUTH["beta"] + TRUTH["alpha"] * X, spread)
    expected += stats.norm.logpdf(X, TRUTH["x_mean"], TRUTH["x_std"])
    np.testing.assert_allclose(log_likelihood(data)[1:3], expected[1:3], rtol=1e-12)


def test_rows_of_an_object_are_measurements_of_the_same_true_values(tmp_path):
    """Against the integral over the true x and y of the product of all measurements."""
    columns = {
        "object": ["a", "b", "c", "b", "b", "d"],
        "x": [0.2, 1.1, 1.9, 0.7, np.nan, 3.2],
        "y": [1.0, 1.4, 2.9, np.nan, 1.9, 3.1],
        "sigma_x": [0.2, 0.4, 0.2, 0.3, np.nan, 0.2],
        "sigma_y": [0.1, 0.2, 0.3, np.nan, 0.5, 0.1],
        "correlation": [0.0, 0.5, 0.0, 0.0, 0.0, 0.0],
    }
    data = PointsInGroups.from_columns(columns)
    assert data.num_points == 4

    def of_b(p):
        x, y = np.linspace(-4.0, 6.0, 801)[:, None], np.linspace(-4.0, 7.0, 901)
        scatter = stats.norm.logpdf(y, p["beta"] + p["alpha"] * x, p["intrinsic_scatter"])
        density = stats.norm.logpdf(x, p["x_mean"], p["x_std"]) + scatter
        covariance = [[0.16, 0.04], [0.04, 0.04]]
        residual = np.stack(np.broadcast_arrays(1.1 - x, 1.4 - y), axis=-1)
        density = density + stats.multivariate_normal([0.0, 0.0], covariance).logpdf(residual)
        density = density + stats.norm.logpdf(0.7, x, 0.3) + stats.norm.logpdf(1.9, y, 0.5)
        return np.log(integrate.trapezoid(integrate.trapezoid(np.exp(density), y), x[:, 0]))

    other = {"alpha": -0.3, "beta": 2.0, "intrinsic_scatter": 0.5}
    change = log_likelihood(data, **other)[1] - log_likelihood(data)[1]
    assert change == pytest.approx(of_b(TRUTH | other) - of_b(TRUTH), rel=1e-9)
    # An object of one row is unchanged, and the combined points come back from a table.
    np.testing.assert_allclose(data.values[0, 2], [1.9, 2.9])
    data.to_table().write(tmp_path / "points.ecsv")
    np.testing.assert_allclose(read_relation(tmp_path / "points.ecsv").errors, data.errors, rtol=1e-12, atol=1e-15)


def test_one_response_written_in_every_row_is_told():
    columns = {"object": ["a", "a", "b", "c"], "x": X, "y": [1.0, 1.0, 2.0, 3.0], "sigma_x": np.full(4, 0.1)}
    columns |= {"sigma_y": np.full(4, 0.1)}
    combined = "1 of 3 objects have several rows, which are combined as measurements of the same true values"
    first, second = PointsInGroups.from_columns(columns).warnings
    assert first == combined
    assert "same in all rows of a" in second
    assert PointsInGroups.from_columns(columns | {"y": [1.0, np.nan, 2.0, 3.0]}).warnings == (combined,)
    # A column of different objects, or of empty names, changes nothing.
    for names in (["a", "b", "c", "d"], ["", "", "c", "d"]):
        data = PointsInGroups.from_columns(columns | {"object": names})
        assert data.num_points == 4
        assert not data.warnings


ERRORS = {"sigma_x": np.full(4, 0.1), "sigma_y": np.full(4, 0.1)}


@pytest.mark.parametrize(
    ("change", "log10", "words"),
    [
        ({"y_err_lo": ERRORS["sigma_y"]}, (), "expected y_err_lo and y_err_hi, or sigma_y; found y_err_lo"),
        ({"x": X - 1.0}, ["x"], "x, row 0 .*expected a positive value, whose logarithm"),
        ({"sigma_x": np.full(4, 0.2)}, ["x"], "x, row 0 .*expected a value above its error of sigma_x"),
        ({"covariance": np.full(4, 1e-3)}, ["x"], "expected a correlation, because the error of x is converted"),
        ({}, ["z"], "log10: expected coordinates, of x, y; found 'z'"),
        ({"limit_y": ["maybe", "", "", ""]}, (), "limit_y, row 0.*'<', '>' or '='"),
        ({"object": ["a", "a", "b", "c"], "group": ["p", "q", "p", "q"]}, (), "group of object a.*found p, q"),
        ({"object": ["a", "a", "b", "c"], "limit_y": ["<", "", "", ""]}, (), "single row for an object with a limit"),
        ({"object": ["a", "a", "b", "c"], "sigma_x": np.zeros(4)}, (), "x of object a: expected errors, or the same"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(change, log10, words):
    with pytest.raises(DataError, match=words):
        PointsInGroups.from_columns({"x": X, "y": Y} | ERRORS | change, log10=log10)


def test_coordinates_keep_the_names_of_their_columns():
    rng = np.random.default_rng(1)
    table = {"M500": 10.0 ** rng.normal(14.0, 0.5, 9), "L_X": rng.normal(1.0, 0.5, 9), "cluster": list("aaabbbccc")}
    data = read_relation(table, columns={"x": "M500", "y": "L_X", "group": "cluster"}, log10=["x"])
    assert data.labels == ("log10 M500", "L_X")
    assert data.subset(np.array([0, 2])).labels == data.labels
    assert PointsInGroups.from_dict(data.to_dict()).labels == data.labels
    plain = read_relation({"x": table["L_X"] ** 2, "y": table["L_X"]})
    assert plain.labels == ("x", "y")
    assert "column_labels" not in plain.to_dict()
