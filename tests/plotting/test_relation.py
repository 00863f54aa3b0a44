"""Figures of linear relations show the points and lines that they are of."""

import types

import numpy as np
import pytest
from stored_fits import load

from hbm_jax.data import PointsInGroups
from hbm_jax.models import Relation
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
    with pytest.raises(ValueError, match="selected_points: expected a fit with a selection"):
        selected_points(load("relation"))
