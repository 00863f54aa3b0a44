"""Figures of regressions show the coefficients, groups and data that they are of."""

import numpy as np
import pytest
from stored_fits import load

from hbm_jax.plotting import coefficients, group_effects, predictive_check, shrinkage
from hbm_jax.registry import entry_of_fit


def fitted():
    return load("regression")


def test_coefficients_are_in_units_of_their_predictors():
    fit = fitted()
    axis = coefficients(fit).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["x"]
    dot = next(line for line in axis.lines if line.get_marker() == "o")
    expected = np.median(fit.posterior["coef"].sel(term="x")) * fit.data.scales[1]
    assert dot.get_xdata()[0] == pytest.approx(expected)


def test_groups_are_in_the_order_of_their_effects():
    fit = fitted()
    intercepts, slopes = group_effects(fit).axes
    assert (intercepts.get_title(), slopes.get_title()) == ("Intercept", "x")
    dots = next(line for line in slopes.lines if line.get_marker() == "o").get_xdata()
    assert (np.diff(dots) <= 0).all()
    names = [label.get_text() for label in slopes.get_yticklabels()]
    median = fit.posterior["g_effect"].sel(g_term="x").median(("chain", "draw"))
    np.testing.assert_allclose(dots, [float(median.sel(g=name)) for name in names])
    (walk,) = group_effects(fit, "t").axes
    assert len(walk.lines[0].get_xdata()) == 9
    with pytest.raises(ValueError, match="one of g, t; found 'h'"):
        group_effects(fit, "h")


def test_shrinkage_goes_with_the_number_of_points():
    figure = shrinkage(fitted(), "g")
    axis = figure.axes[0]
    alone = next(line for line in axis.lines if line.get_markerfacecolor() == "none")
    pooled = axis.containers[0].lines[0]
    assert len(alone.get_xdata()) == len(pooled.get_xdata()) == 5
    assert np.ptp(pooled.get_ydata()) < np.ptp(alone.get_ydata())
    with pytest.raises(ValueError, match="found t, a random walk"):
        shrinkage(fitted(), "t")


@pytest.mark.long
def test_replicated_data_are_like_the_data():
    left, right = predictive_check(fitted()).axes
    assert left.get_xlabel() == "y"
    means = next(line for line in right.lines if line.get_marker() == "o")
    assert np.mean(means.get_ydata()) == pytest.approx(np.mean(fitted().data.y), rel=0.15)


def test_the_report_has_them():
    entry = entry_of_fit(fitted())
    assert entry is not None
    names = {"coefficients", "group_effects_g", "shrinkage_g", "group_effects_t", "predictive_check"}
    assert set(entry.figures(fitted())) == names
