"""Figures of the normal hierarchical model show the groups and draws that they are of."""

import numpy as np
import pytest
from stored_fits import load

from hbm_jax.models import NormalVectors
from hbm_jax.plotting import forest, funnel
from hbm_jax.plotting.style import VERMILION
from hbm_jax.registry import entry_of_fit


def test_a_forest_has_a_row_for_each_group():
    axis, right = forest(load("eight_schools")).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list("ABCDEFGH")
    alone = axis.containers[0].lines[0].get_xdata()
    np.testing.assert_array_equal(alone, [28, 8, -3, 7, -1, 1, 18, 12])
    pooled = next(line for line in axis.lines if line.get_label() == "partial pooling").get_xdata()
    theta = load("eight_schools").posterior["theta"].to_numpy().reshape(-1, 8)
    np.testing.assert_allclose(pooled, np.median(theta, axis=0), atol=0.1)
    assert np.ptp(pooled) < 0.3 * np.ptp(alone)
    assert right.get_ylabel() == "weight of partial non-centring"
    assert len(forest(load("eight_schools_centred")).axes) == 1


def test_a_funnel_shows_divergences_and_the_missing_neck():
    fits = {"centred": load("eight_schools_centred"), "mixed": load("eight_schools")}
    axes = funnel(fits, "G").axes
    assert axes[0].get_xlabel() == r"$\theta$ of G"
    count = int(fits["centred"].tree["sample_stats"]["diverging"].sum())
    assert axes[0].get_title() == f"centred: {count} divergent"
    assert axes[2].get_title() == "mixed: no divergence"
    red = next(line for line in axes[0].lines if line.get_color() == VERMILION)
    assert len(red.get_xdata()) == count > 0
    drawn = [np.concatenate([line.get_ydata() for line in axes[place].lines]).min() for place in (0, 2)]
    assert drawn[0] > drawn[1] + 0.5
    points = axes[0].lines[0]
    theta = fits["centred"].posterior["theta"].sel(group="G").to_numpy().ravel()
    tau = np.log(fits["centred"].posterior["tau"].to_numpy().ravel())
    where = np.argmin(np.abs(theta - points.get_xdata()[5]))
    assert tau[where] == pytest.approx(points.get_ydata()[5])


def test_vectors_have_a_panel_for_each_component_and_bad_requests_are_named(own_fit):
    fit = load("normal_vectors")
    assert [axis.get_xlabel() for axis in forest(fit).axes] == [r"$\theta$ of a", r"$\theta$ of b"]
    assert len(funnel(fit, 2, component=1).axes) == 2
    entry = entry_of_fit(fit)
    assert entry is not None
    assert entry.model is NormalVectors
    assert set(entry.figures(fit)) == {"forest", "funnel"}
    with pytest.raises(ValueError, match=r"funnel: expected a component from 0 to 1; found 2"):
        funnel(fit, component=2)
    with pytest.raises(ValueError, match=r"funnel: expected a group, one of A, B.*found 'Z'"):
        funnel(load("eight_schools"), "Z")
    with pytest.raises(ValueError, match=r"forest: expected a fit of hbm_jax.models.Normal"):
        forest(own_fit)
