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
    with pytest.raises(ValueError, match=r"expected an element among H, He, .*; found 'Ni'"):
        ionization("Ni")


def test_whim_one_parameter_after_the_other():
    figure = whim_transmission({"z": (0.5, 3.0), "n0": (1e-8, 1e-7)}, log10_T=6.2)
    assert len(figure.axes) == 2
    energy, shown = curves(figure.axes[0])["$z$ = 3"]
    flat = Cosmology.flat(H0=70.0, Om0=0.3)
    expected = np.exp(-whim_optical_depth(energy, 3.0, n0=1e-7, log10_T=6.2, cosmology=flat))
    np.testing.assert_allclose(shown, expected, rtol=1e-10)
    assert r"$n_0$ = $10^{-8}$ cm$^{-3}$" in curves(figure.axes[1])


def test_transmissions_and_their_product():
    energy = np.geomspace(0.3, 10.0, 50)
    axis = transmissions(energy, {"host": energy**-3.0, "Milky Way": 0.1 * energy**-3.0}).axes[0]
    np.testing.assert_allclose(curves(axis)["together"][1], np.exp(-1.1 * energy**-3.0))
    assert list(curves(transmissions(energy, {"host": energy**-3.0}).axes[0])) == ["host"]
