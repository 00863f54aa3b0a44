"""Figures of linear relations show the points and lines that they are of."""

import dataclasses
import types

import numpy as np
import pytest
from jax.scipy.special import ndtr
from scipy import stats
from stored_fits import load

from hbm_jax.data import PointsInGroups
from hbm_jax.models import Relation
from hbm_jax.models.efficiency import DetectionFunction
from hbm_jax.plotting import lines, selected_points, shrinkage_of_lines
from hbm_jax.plotting.linear.relation import _least_squares_line
from hbm_jax.registry import entry_of_fit


@pytest.mark.long
def test_every_group_has_its_points_and_its_line():
    fit = load("relation")
    axes = [axis for axis in lines(fit).axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["g0", "g1", "g2", "g3", "g4"]
    counts = [len(axis.containers[0].lines[0].get_xdata()) for axis in axes]
    assert counts == [7, 8, 6, 2, 1]  # one of the first is a limit
    assert any(line.get_marker() == "v" for line in axes[0].lines)
    median = axes[1].lines[0]
    slope = np.polyfit(median.get_xdata(), median.get_ydata(), 1)[0]
    expected = float(np.median(fit.posterior["alpha"].isel(group=1)))
    assert slope == pytest.approx(expected, abs=0.05)
    assert [axis.get_title() for axis in lines(fit, ["g3"]).axes] == ["g3"]


def test_axes_are_named_after_the_columns_of_the_table():
    fit = load("relation")
    fit.args = (dataclasses.replace(fit.args[0], column_labels=("log10 M500", "L_X")),)
    figure = lines(fit, ["g3"])
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("log10 M500", "L_X")


def test_shrinkage_shows_groups_and_population():
    axis = shrinkage_of_lines(load("relation")).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    alone = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert len(dots) == 5
    assert len(alone) == 3  # groups of three points or more
    assert len(axis.patches) == 2


@pytest.mark.long
def test_shrinkage_begins_where_groups_stand_alone():
    fit, none = load("relation"), load("relation_unpooled")
    axis = shrinkage_of_lines(fit, alone=none).axes[0]
    alone = [line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert len(alone) == 5
    expected = none.posterior["alpha"].mean(("chain", "draw")).to_numpy()
    # But for the group of one point, which leaves its slope to the prior.
    np.testing.assert_allclose([line.get_xdata()[0] for line in alone][:4], expected[:4], atol=0.1)
    with pytest.raises(ValueError, match="with pooling='none'; found pooling='partial'"):
        shrinkage_of_lines(fit, alone=fit)
    # Without it, least squares whose slope the errors of x do not flatten.
    rng = np.random.default_rng(5)
    x = rng.normal(size=4000)
    columns = {"x": x + rng.normal(size=4000), "y": 2.0 * x, "sigma_x": np.ones(4000), "sigma_y": np.full(4000, 0.1)}
    slope, intercept = _least_squares_line(PointsInGroups.from_columns(columns), 0, 0.0)
    assert slope == pytest.approx(2.0, abs=0.15)
    assert intercept == pytest.approx(0.0, abs=0.1)
    flat = PointsInGroups.from_columns(columns | {"sigma_x": np.full(4000, 1.4)})
    assert _least_squares_line(flat, 0, 0.0) is None


@pytest.mark.long
def test_several_predictors_have_figures_each():
    fit = load("relation_of_two")
    entry = entry_of_fit(fit)
    assert entry is not None
    kinds = entry.figures(fit)
    assert set(kinds) == {"lines_a", "lines_b", "shrinkage_of_lines_a", "shrinkage_of_lines_b"}
    axes = kinds["lines_b"][1](fit).axes
    # Less what the other predictor adds, the points are on the line.
    line, points = axes[1].lines[0], axes[1].containers[0].lines[0]
    left = np.interp(points.get_xdata(), line.get_xdata(), line.get_ydata()) - points.get_ydata()
    assert np.abs(left).max() < 0.6
    assert np.polyfit(line.get_xdata(), line.get_ydata(), 1)[0] == pytest.approx(-2.0, abs=0.2)
    axis = kinds["shrinkage_of_lines_a"][1](fit).axes[0]
    assert axis.get_xlabel() == r"slope $\alpha_j$ of a"
    dots = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, 1.0, atol=0.3)
    with pytest.raises(ValueError, match=r"lines: expected a predictor, one of a, b; found 'c'"):
        lines(fit, predictor="c")


def test_the_report_has_them_and_others_are_refused():
    fit = load("relation")
    entry = entry_of_fit(fit)
    assert entry is not None
    assert set(entry.figures(fit)) == {"lines", "shrinkage_of_lines"}
    with pytest.raises(ValueError, match="'g9'"):
        lines(fit, ["g9"])
    with pytest.raises(ValueError, match=r"lines: expected a fit of hbm_jax.models.Relation"):
        lines(load("own"))


def test_points_are_drawn_without_their_evolution():
    """Points of an exact relation with powers of E(z) in both coordinates are on the line."""
    x, z = np.linspace(0.5, 3.0, 20), np.linspace(1.5, 0.1, 20)
    e = 0.5 * np.log(0.3 * (1.0 + z) ** 3 + 0.7)
    data = PointsInGroups.from_columns({"x": x, "y": 2.0 * (x + 0.5 * e) + 1.5 * e, "redshift": z})
    priors = {"alpha": 2.0, "beta": 0.0, "intrinsic_scatter": 0.5, "x_mean": 0.5, "x_std": 1.0}
    priors |= {"evolution_y": 1.5, "evolution_x": 0.5}
    model = Relation(pooling="complete", evolution="ln E(z)", pivot=0.0, priors=priors)
    axis = lines(types.SimpleNamespace(program=model, args=(data,), data=data, posterior={})).axes[0]
    points = axis.containers[0].lines[0]
    np.testing.assert_allclose(points.get_ydata(), 2.0 * points.get_xdata(), rtol=1e-12)


def test_a_selection_shows_what_it_leaves_out():
    x, y = np.meshgrid(np.linspace(0.5, 3.0, 10), np.linspace(-1.0, 3.0, 10))
    errors = {"sigma_x": np.full(100, 0.3), "sigma_y": np.full(100, 0.2)}
    data = PointsInGroups.from_columns({"x": x.ravel(), "y": y.ravel(), **errors})
    priors = {"alpha": 1.0, "beta": 0.0, "intrinsic_scatter": 0.5, "x_mean": 0.5, "x_std": 1.0}
    model = Relation(pooling="complete", selection="x > 0.5 and y < 3.2 +- 0.5", pivot=0.0, priors=priors)
    fit = types.SimpleNamespace(program=model, args=(data,), data=data, posterior={})
    left, in_x, in_y = selected_points(fit).axes
    missing, detected, measured = (line for line in left.lines if line.get_linestyle() != "--")
    assert detected.get_xdata().min() > 0.5
    assert len(measured.get_xdata()) == 100
    # Half of the population is below 0.5, and few are above 3.2 in y.
    share = len(detected.get_xdata()) / (len(detected.get_xdata()) + len(missing.get_xdata()))
    assert 0.3 < share < 0.5
    assert {in_x.get_xlabel(), in_y.get_xlabel()} == {"x", "y"}
    # Independent of the figure: the share of a normal population, of 3.2 in y smoothed by the width of the limit.
    rng = np.random.default_rng(1)
    true = rng.normal(0.5, 1.0, 10**6)
    shown_x, shown_y = true + rng.normal(0.0, 0.3, 10**6), true + rng.normal(0.0, np.hypot(0.5, 0.2), 10**6)
    expected = np.mean((shown_x > 0.5) * stats.norm.cdf((3.2 - shown_y) / 0.5))
    assert abs(int(left.get_title().split()[0]) - 100 * expected) < 3
    with pytest.raises(ValueError, match="selected_points: expected a fit with a selection"):
        selected_points(load("relation"))


POPULATION = {"alpha": 1.0, "beta": 0.0, "intrinsic_scatter": 0.5, "x_mean": 0.5, "x_std": 1.0}


def _selected(selection, injections=None):
    x, y = np.meshgrid(np.linspace(0.5, 3.0, 10), np.linspace(0.0, 3.0, 10))
    errors = {"sigma_x": np.full(100, 0.3), "sigma_y": np.full(100, 0.2)}
    data = PointsInGroups.from_columns({"x": x.ravel(), "y": y.ravel(), **errors})
    data = data if injections is None else data.with_injections(injections)
    model = Relation(pooling="complete", selection=selection, pivot=0.0, priors=POPULATION)
    return selected_points(types.SimpleNamespace(program=model, args=(data,), data=data, posterior={}))


def _detected_percentage(figure):
    return float(figure.axes[0].get_title().split()[0])


def test_an_efficiency_is_drawn_with_its_distribution():
    figure = _selected("x efficiency -1:0.1 2:0.9")
    left, in_x, right = figure.axes
    np.testing.assert_allclose(np.interp(2.0, *right.lines[0].get_data()), 0.9)
    assert in_x.get_xlabel() == "x"
    assert left.get_ylabel() == "y"
    x = np.random.default_rng(1).normal(0.5, np.hypot(1.0, 0.3), 10**6)
    assert abs(_detected_percentage(figure) - 100 * np.interp(x, [-1, 2], [0.1, 0.9]).mean()) < 3


def test_a_function_is_drawn_as_contours():
    def probability(x, y):
        return ndtr((x + y - 1.0) / 0.8)

    figure = _selected(DetectionFunction(probability))
    assert [axis.get_xlabel() for axis in figure.axes] == ["x", "x", "y"]
    levels = next(part.levels for part in figure.axes[0].collections if hasattr(part, "levels"))
    np.testing.assert_allclose(levels, [0.1, 0.5, 0.9])
    # The sum of measured x and y is normal, with the mean 1 and the variance 4 + 0.5^2 + 0.3^2 + 0.2^2.
    assert abs(_detected_percentage(figure) - 50) < 3


def test_injections_are_drawn_in_proportion_to_their_weights():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 1.5, 20_000), rng.normal(0.5, 2.5, 20_000)
    density = stats.norm.pdf(x, 0.5, 1.5) * stats.norm.pdf(y, 0.5, 2.5)
    figure = _selected("injections", {"x": x, "y": y, "density": density, "found": (x > 1.0).astype(int)})
    everything, detected, measured = figure.axes[0].lines
    assert detected.get_xdata().min() > 1.0
    assert len(measured.get_xdata()) == 100
    # Found are those of the population beyond 1, half a standard deviation above its mean, and on its line.
    assert abs(_detected_percentage(figure) - 100 * stats.norm.sf(0.5)) < 3
    residual = detected.get_ydata() - detected.get_xdata()
    assert abs(residual.std() - 0.5) < 0.06
    assert abs(detected.get_xdata().mean() - (0.5 + stats.norm.pdf(0.5) / stats.norm.sf(0.5))) < 0.08
    assert abs(everything.get_xdata().mean() - 0.5) < 0.1
    assert figure.axes[1].get_xlabel() == "true x"
