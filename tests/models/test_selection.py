"""Selections: their text, the likelihood of what is detected, its simulation, and what is refused."""

import jax
import numpy as np
import pytest
from densities import compare_with_integral
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from scipy import integrate, stats

from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
from hbm_jax.models import Relation
from hbm_jax.models.selection import Selection, as_selections, selections_to_text
from hbm_jax.validation import DataError, OptionError

ERROR_X, ERROR_Y = 0.7, 0.4
TRUTH = {"alpha": 1.8, "beta": 1.1, "intrinsic_scatter": 0.5, "x_mean": 0.6, "x_std": 0.9}
OUTLIERS = {"outlier_fraction": 0.2, "outlier_scatter": 1.5}
CUT = np.array([0.1, 0.3, -0.2, 0.4, 0.0])


def points(**more):
    """Five points of one line, all above 0.5 in x and below 3 in y."""
    x, y = np.array([0.6, 1.2, 0.9, 2.1, 1.0]), np.array([0.4, 1.9, 1.1, 2.8, -0.5])
    errors = {"sigma_x": np.full(5, ERROR_X), "sigma_y": np.full(5, ERROR_Y)}
    return PointsInGroups.from_columns({"x": x, "y": y, **errors, **more})


# Limit and width in x and in y; None for no selection, and a width of 0 for a step.
CASES = {
    "x > 0.5": ((0.5, 0.0), None, {}),
    "y < 3.0 +- 0.6": (None, (3.0, 0.6), {}),
    "x > 0.5 and y < 3.0": ((0.5, 0.0), (3.0, 0.0), {}),
    "x > cut_x +- 0.3 and y < 3.0": ((CUT, 0.3), (3.0, 0.0), OUTLIERS),
}


def passed(value, case, sign, error=0.0):
    """The probability of detection of values measured with a normal error."""
    if case is None:
        return np.ones(np.broadcast_shapes(np.shape(value), (5,)))
    limit, width = case
    spread = np.hypot(width, error)
    room = sign * (value - limit)
    return stats.norm.cdf(room / spread) if spread > 0 else (room >= 0.0) * 1.0


def plain_log_likelihood(p, in_x, in_y):
    """Densities of the points over the share detected, an integral over the true x (accurate to rounding)."""
    data, grid = points(), np.linspace(-12.0, 12.0, 2401)[:, None]
    total, share = 0.0, 0.0
    outliers = p.get("outlier_fraction", 0.0)
    for weight, scatter in (
        (1.0 - outliers, p["intrinsic_scatter"]),
        (outliers, np.hypot(p["intrinsic_scatter"], p.get("outlier_scatter", 0.0))),
    ):
        a, variance = p["alpha"], p["x_std"] ** 2
        covariance = np.array([[variance, a * variance], [a * variance, a**2 * variance + scatter**2]])
        mean = [p["x_mean"], p["beta"] + a * p["x_mean"]]
        normal = stats.multivariate_normal(mean, covariance + np.diag([ERROR_X**2, ERROR_Y**2]))
        total = total + weight * normal.pdf(data.values[0])
        y = p["beta"] + p["alpha"] * grid
        both = passed(grid, in_x, 1.0, ERROR_X) * passed(y, in_y, -1.0, np.hypot(scatter, ERROR_Y))
        density = stats.norm.pdf(grid, p["x_mean"], p["x_std"])
        share = share + weight * integrate.trapezoid(both * density, grid, axis=0)
    x, y = data.values[0].T
    return np.log(total * passed(x, in_x, 1.0) * passed(y, in_y, -1.0) / share).sum()


@pytest.mark.parametrize("text", CASES)
def test_the_likelihood_is_that_of_detected_points(text):
    in_x, in_y, more = CASES[text]
    model = Relation(pooling="complete", selection=text, outliers=bool(more), pivot=0.0)
    truth = TRUTH | more
    compare_with_integral(model, points(cut_x=CUT), truth, lambda values: plain_log_likelihood(values, in_x, in_y))


def test_a_limit_that_no_point_reaches_changes_nothing():
    values = TRUTH | {"x_mean": 0.2}
    priors = {"x_mean": "Normal(0, 2)", "x_std": "HalfNormal(2)"}

    def density(**options):
        model = Relation(pooling="complete", priors=priors, **options)
        return jax.jit(lambda p: log_density(model, (model.bind(points()),), {}, p)[0])(values)

    with jax.enable_x64(True):
        assert float(density(selection="x > -40")) == pytest.approx(float(density()), rel=1e-14)


def test_simulated_points_are_the_detected_ones(monte_carlo):
    num = 4000
    x = np.linspace(-3.0, 5.0, num)
    columns = {"x": x, "y": x, "sigma_x": np.full(num, ERROR_X), "sigma_y": np.full(num, ERROR_Y)}
    design = PointsInGroups.from_columns(columns)
    model = Relation(pooling="complete", selection="x > 1 and y < 3 +- 0.6", pivot=0.0)
    drawn, _ = model.simulate(jax.random.key(seed(1)), design, TRUTH)
    measured = drawn.values[0]
    assert measured[:, 0].min() > 1.0
    # Plain rejection.
    rng = np.random.default_rng(seed(2))
    true = rng.normal(TRUTH["x_mean"], TRUTH["x_std"], 100_000)
    y = TRUTH["alpha"] * true + TRUTH["beta"] + rng.normal(0, np.hypot(TRUTH["intrinsic_scatter"], ERROR_Y), len(true))
    x = true + rng.normal(0, ERROR_X, len(true))
    kept = (x > 1.0) & (rng.normal(size=len(x)) < (3.0 - y) / 0.6)
    for column, values in enumerate((x[kept], y[kept])):
        monte_carlo.p_value(stats.ks_2samp(measured[:, column], values).pvalue, name="xy"[column])


def test_groups_may_have_limits_of_their_own():
    """Two groups that share a line: the density is the sum of those with a common limit."""
    values = {"alpha": 1.8, "beta": 1.1, "intrinsic_scatter": 0.5, "x_mean": 0.6, "x_std": 0.9}
    limits = np.array([0.2, -0.4])

    groups = points(group=["a", "a", "b", "b", "b"])

    def likelihood(text, limit):
        model = Relation(pooling="complete", selection=text, pivot=0.0)
        _, trace = log_density(model, (model.bind(groups),), {}, values | {"x_lim": limit})
        return trace["observed"]["fn"].log_prob(trace["observed"]["value"])

    @jax.jit
    def likelihoods():
        common = [likelihood("x > Normal(0, 1) +- 0.3", limit) for limit in limits]
        return likelihood("x > Normal(0, 1) +- 0.3 by group", limits), common

    with jax.enable_x64(True):
        found, common = likelihoods()
    for row in range(2):
        used = groups.used[row]
        np.testing.assert_allclose(found[row][used], common[row][row][used], rtol=1e-12)


@pytest.mark.long
def test_a_limit_in_a_third_quantity_is_that_of_another_predictor():
    """x, w and y are a normal vector whatever the correlation of their scatter; points are missing below a w of 1."""
    w = np.array([1.3, 1.8, 1.2, 2.4, 1.1])
    data = PointsInGroups.from_columns(
        {"x": [0.6, 1.2, 0.9, 2.1, 1.0], "w": w, "y": [0.4, 1.9, 1.1, 2.8, -0.5], "sigma_x": np.full(5, ERROR_X),
         "sigma_w": np.full(5, 0.2), "sigma_y": np.full(5, ERROR_Y)}, predictors=("x", "w"),
    )  # fmt: skip
    mean, std, factor = np.array([0.6, 0.5]), np.array([0.9, 0.7]), np.array([[1.0, 0.0], [0.8, 0.6]])
    slopes, scatter = np.array([1.5, 0.4]), 0.5
    values = {"alpha": slopes, "beta": 1.1, "intrinsic_scatter": scatter, "x_mean": mean, "x_std": std}
    model = Relation(selection="w > 1", pooling="complete", pivot=0.0)
    with jax.enable_x64(True):
        trace = log_density(model, (model.bind(data),), {}, values | {"x_correlation_factor": factor})[1]
        found = trace["observed"]["fn"].log_prob(trace["observed"]["value"])[0]
    cov = np.outer(std, std) * (factor @ factor.T)
    true = np.block([[cov, (cov @ slopes)[:, None]], [cov @ slopes, slopes @ cov @ slopes + scatter**2]])
    normal = stats.multivariate_normal([*mean, 1.1 + slopes @ mean], true + np.diag([ERROR_X, 0.2, ERROR_Y]) ** 2)
    share = stats.norm.logsf(1.0, mean[1], np.hypot(std[1], 0.2))
    np.testing.assert_allclose(found, normal.logpdf(data.values[0]) - share, rtol=1e-10)


def test_scatter_in_x_is_degenerate_with_slope_and_scatter_in_y():
    """Points on a line that scatter in x too have the density of a steeper line with more errors in x."""
    p = TRUTH | {"intrinsic_scatter": 1.2}
    assumed, variance = 0.3, TRUTH["x_std"] ** 2
    ratio = variance / (variance - assumed**2)  # of the slopes, with and without a scatter in x
    other = p | {"x_std": np.sqrt(variance / ratio), "alpha": p["alpha"] * ratio}
    other["beta"] = p["beta"] + (p["alpha"] - other["alpha"]) * p["x_mean"]
    rest = p["intrinsic_scatter"] ** 2 + p["alpha"] ** 2 * variance * (1.0 - ratio)
    other["intrinsic_scatter"] = np.sqrt(rest)
    broader = points(sigma_x=np.full(5, np.hypot(ERROR_X, assumed)))

    def density(values, data, text):
        model = Relation(pooling="complete", selection=text, pivot=0.0)
        site = log_density(model, (model.bind(data),), {}, values)[1]["observed"]
        return float(site["fn"].log_prob(site["value"]).sum())

    for text in ("none", "x > 0.5", "y < 3.0 +- 0.6"):
        with jax.enable_x64(True):
            assert density(other, broader, text) == pytest.approx(density(p, points(), text), rel=1e-10)


def test_text_and_objects_are_the_same(tmp_path):
    chosen = (Selection("x", "below", dist.Normal(1.0, 0.5), 0.1, by_group=True), Selection("y", "above", "cut_y"))
    text = "x > Normal(loc=1.0, scale=0.5) +- 0.1 by group and y < cut_y"
    assert selections_to_text(chosen) == text
    assert selections_to_text(as_selections(text, "model")) == text
    assert as_selections("none", "model") == ()
    assert Selection("x", "below", 1.0).symbols == {"x_lim": r"$x_\mathrm{lim}$"}
    assert Selection("m", "above", 24.0, unit="mag").units == {"m_lim": "mag"}
    priors = {"x_lim_width": "HalfNormal(0.2)", "x_mean": "Normal(0, 1)"}
    model = Relation(selection="x>1+-0.1 and y < Normal(2, 1) +- 1", priors=priors)
    assert {"x_lim": 1.0}.items() <= model.all_priors.items()
    assert [part.is_step for part in model.selections] == [False, False]
    assert str(model.selections[0]) == "x > 1.0 +- HalfNormal(scale=0.2)"
    again = Relation(**model.to_config())
    assert again.to_config() == model.to_config()
    assert "selected by x > 1.0 +- 0.1 and y <" in again.description
    # The limits of points come back from tables and stored runs.
    data = points(cut_x=CUT)
    data.to_table().write(tmp_path / "points.ecsv")
    for other in (read_relation(tmp_path / "points.ecsv"), PointsInGroups.from_dict(data.to_dict())):
        np.testing.assert_array_equal(other.cut, data.cut)
    assert "cut" not in points().to_dict()
    assert np.isnan(PointsInGroups.from_dict(points().to_dict()).cut).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "x"}, "expected text such as 'x > 1'.*found 'x'"),
        ({"selection": "x > Normal(1, 1)"}, "limit with a prior expects a width"),
        ({"selection": "x > 1", "priors": {"x_lim": "Normal(1, 1)"}}, "limit with a prior expects a width"),
        ({"selection": "x > 1 +- -0.1"}, "expected a width of 0 or more; found -0.1"),
        ({"selection": "x > 1 +- Normal(0, 1)"}, "expected a width of 0 or more; found Normal"),
        ({"selection": "x > 1 by group"}, "by_group expects a prior"),
        ({"selection": "x > 1 and x < 3"}, "one limit for each quantity"),
        ({"selection": "x > 1 and y > 3 and z < 2"}, "at most two limits"),
        ({"selection": "x > 1", "latents": "sampled"}, "expects latents='marginal'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Relation(**options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("z > 1", "expected a measured coordinate, one of x, y; found 'z'"),
        ("x > cut_x", "expected the column cut_x"),
        ("x > lowest", "expected the column cut_x"),
        ("x > 1", r"expected no point beyond the limit; found 2 of 5, the first with x = 0\.6 in row 0"),
        ("y > -9", "expected no upper or lower limits of y; found 1"),
    ],
)
def test_data_that_do_not_fit_are_refused(text, words):
    with pytest.raises(DataError, match=words):
        Relation(pooling="complete", selection=text).bind(points(limit_y=["", "", "", "", "upper"]))
