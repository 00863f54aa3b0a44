"""Figures of distance-level samples show the objects, bands and contours that they are of."""

import numpy as np
import pytest
from stored_fits import load

from hbm_jax.plotting import distance_residuals, equation_of_state, expansion_contour, hubble_diagram
from hbm_jax.plotting.supernovae.distance_moduli import modulus_draws
from hbm_jax.registry import entry_of_fit


def fitted():
    return load("hubble_diagram")


def test_the_diagram_shows_every_object_and_the_band():
    fit = fitted()
    upper, lower = hubble_diagram(fit).axes
    points = [container for container in upper.containers if len(container.lines[0].get_xdata()) < 120]
    assert sum(len(container.lines[0].get_xdata()) for container in points) == 120
    assert "2 others (30)" in [text.get_text() for text in upper.get_legend().get_texts()]
    curve = next(line for line in upper.lines if line.get_label() == "posterior median")
    moduli, _ = modulus_draws(fit, fit.data, 100)
    expected = np.interp(np.log(curve.get_xdata()), np.log(fit.data.z_cmb), np.median(moduli, axis=0))
    np.testing.assert_allclose(curve.get_ydata(), expected, atol=0.02)
    residuals = np.concatenate([c.lines[0].get_ydata() for c in lower.containers[:-1]])
    assert np.std(residuals) == pytest.approx(0.1, rel=0.2)
    assert abs(np.mean(residuals)) < 0.03


def test_residuals_against_everything():
    axes = [axis for axis in distance_residuals(fitted()).axes if axis.get_visible()]
    assert [axis.get_xlabel() for axis in axes] == [r"$\log_{10}\,z_\mathrm{CMB}$", "$x_1$", ""]
    assert [text.get_text() for text in axes[2].get_xticklabels()] == [f"s{i}" for i in range(8)]


def test_contours_with_the_prior_and_the_equation_of_state():
    fit = fitted()
    figure = expansion_contour(fit, ("Om0", "w_1"), {"again": fit}, name="binned")
    assert figure.axes[0].get_xlabel() == r"$\Omega_\mathrm{m}$"
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["again", "binned"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["prior"]
    axis = equation_of_state(fit, z_max=0.8).axes[0]
    median = next(line for line in axis.lines if line.get_label() == "posterior median")
    z, w = median.get_xdata(), median.get_ydata()
    for name, where in (("w_1", z < 0.39), ("w_2", z > 0.41)):
        expected = float(np.median(fit.posterior[name]))
        np.testing.assert_allclose(w[where], expected, atol=1e-9)
    entry = entry_of_fit(fit)
    assert entry is not None
    assert set(entry.figures(fit)) == {"hubble_diagram", "hubble_residuals", "equation_of_state"}
    with pytest.raises(ValueError, match="expected two free parameters"):
        expansion_contour(fit)
