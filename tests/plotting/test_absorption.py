"""Figures of absorption show the numbers they are given."""

import numpy as np
import pytest

from hbm_jax.absorption import ion_fractions, ion_index, neutral_cross_section, whim_optical_depth
from hbm_jax.cosmology import Cosmology
from hbm_jax.plotting import ionization, neutral_cross_sections, transmissions, whim_transmission


def curves(axis):
    return {line.get_label(): line.get_xydata().T for line in axis.get_lines()}


def test_cross_sections_of_two_tables():
    upper, lower = neutral_cross_sections(("wilm", "angr"), model="phabs").axes
    energy, shown = curves(upper)["angr"]
    np.testing.assert_allclose(
        shown, energy**3 * neutral_cross_section(energy, model="phabs", abundances="angr"), rtol=1e-12
    )
    assert lower.get_lines()[1].get_ydata()[-1] == pytest.approx(shown[-1] / curves(upper)["wilm"][1][-1])


def test_ions_of_an_element():
    figure = ionization("Ne", log10_xi=(1.0,))
    assert len(figure.axes) == 2
    log10_T, shown = figure.axes[0].get_lines()[8].get_xydata().T  # Ne IX
    expected = ion_fractions(log10_T, 0.0, mode="collisional")[:, ion_index("Ne IX")]
    np.testing.assert_allclose(shown, expected, rtol=1e-12, atol=1e-15)
    assert "IX" in [text.get_text() for text in figure.axes[0].texts]
    # Of iron's 27 ions only names that are not over another are written, and every curve has its own colour.
    (axis,) = ionization("Fe", log10_xi=()).axes
    figure_names = [text.get_text() for text in axis.texts]
    assert {"XVII", "XXV", "XXVII"} <= set(figure_names)
    axis.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert len({tuple(line.get_color()) for line in axis.get_lines()}) == 27
    with pytest.raises(ValueError, match=r"expected an element among H, He, .*; found 'Ni'"):
        ionization("Ni")


@pytest.mark.long
def test_whim_one_parameter_after_the_other():
    grid = np.linspace(0.4, 1.0, 20)
    figure = whim_transmission({"z": (0.5, 3.0), "n0": (1e-8, 1e-7)}, log10_T=6.2, energy=grid)
    assert len(figure.axes) == 2
    energy, shown = curves(figure.axes[0])["$z$ = 3"]
    flat = Cosmology.flat(H0=70.0, Om0=0.3)
    expected = np.exp(-whim_optical_depth(energy, 3.0, n0=1e-7, log10_T=6.2, cosmology=flat))
    np.testing.assert_allclose(shown, expected, rtol=1e-10)
    assert r"$n_0$ = $10^{-8}$ cm$^{-3}$" in curves(figure.axes[1])
    modes = whim_transmission({"mode": ("photo", "collisional")}, energy=grid)
    energy, shown = curves(modes.axes[0])["mode collisional"]
    expected = np.exp(-whim_optical_depth(energy, 2.0, n0=1e-7, log10_T=6.0, cosmology=flat, mode="collisional"))
    np.testing.assert_allclose(shown, expected, rtol=1e-10)
    with pytest.raises(ValueError, match=r"whim_transmission: z: expected several values, such as \(1, 2\); found 2"):
        whim_transmission({"z": 2})


def test_transmissions_and_their_product():
    energy = np.geomspace(0.3, 10.0, 50)
    axis = transmissions(energy, {"host": energy**-3.0, "Milky Way": 0.1 * energy**-3.0}).axes[0]
    np.testing.assert_allclose(curves(axis)["all absorbers"][1], np.exp(-1.1 * energy**-3.0))
    assert list(curves(transmissions(energy, {"host": energy**-3.0}).axes[0])) == ["host"]
    # What absorbs nothing is left out; of many absorbers every one is drawn.
    none = {"host": energy**-3.0, "Milky Way": 0.0 * energy}
    assert list(curves(transmissions(energy, none).axes[0])) == ["host"]
    many = curves(transmissions(energy, {f"cloud {i}": i * energy**-3.0 for i in range(1, 9)}).axes[0])
    assert len(many) == 9
    with pytest.raises(ValueError, match="at least one absorber; found none"):
        transmissions(energy, {})
