"""The optical depth with the band, rates and processes of absori, against its tables and equations in plain NumPy."""

import h5py
import jax
import numpy as np
import pytest

from hbm_jax.absorption import ion_fractions, whim_optical_depth
from hbm_jax.absorption.ionization import xi_shift
from hbm_jax.absorption.whim import COLUMN
from hbm_jax.cosmology import Cosmology

ELEMENTS = ("H", "He", "C", "N", "O", "Ne", "Mg", "Si", "S", "Fe")
FLAT = Cosmology.flat(H0=70.0, Om0=0.3)
Z = 1e-4  # a line of sight so short that its optical depth is that of the gas here
ENERGY = np.geomspace(0.3, 10.0, 300)


def absori(tables, xi, photon_index, T):
    """Cross section per hydrogen atom [1e-22 cm^2] at ENERGY: Done et al. 1992, with the rates of the table."""
    sigma, ion, energy = (np.array(tables[name], float) for name in ("sigma", "ion", "energy"))
    step = np.gradient(np.log(energy))
    light = energy ** (1 - photon_index) * step / (energy ** (2 - photon_index) * step).sum()
    t4, total = T / 1e4, np.zeros(len(ENERGY))
    for i, charge in enumerate(np.array(tables["atomicnumber"], int)):
        c = ion[i, : charge - 1]
        rates = c[:, 1] * t4 ** -c[:, 2]
        rates += c[:, 3] * t4**-1.5 * np.exp(-c[:, 4] / t4) * (1 + c[:, 5] * np.exp(-c[:, 6] / t4))
        y = 15.8 * charge**2 / t4
        rates = np.append(rates, 1.033e-3 / np.sqrt(t4) * charge**2 * (1.735 + np.log(y) + 1 / (6 * y)))
        logs = np.append(0.0, np.cumsum(np.log(3.2749e-6 * xi * (sigma[i, :charge] @ light) / rates)))
        fractions = np.exp(logs - logs.max())
        fractions /= fractions.sum()
        own = np.maximum(fractions[:-1] @ sigma[i, :charge], 1e-300)
        abundance = tables["abundances/wilm"].attrs[ELEMENTS[i]]
        total += abundance * np.exp(np.interp(np.log(1e3 * ENERGY), np.log(energy), np.log(own)))
    return 6.6e-5 * total


@pytest.mark.long
def test_optical_depths_are_near_those_of_absori(shared_data):
    options = {"n0": 1.0, "cosmology": FLAT, "mode": "photo", "rates": "older", "xi_band": "absori_code"}
    depth = jax.jit(lambda log10_T: whim_optical_depth(ENERGY, Z, log10_T=log10_T, **options))
    with h5py.File(shared_data("xray/absorption/absori.h5")) as tables:
        for T, low, high in ((1e5, -0.035, 0.04), (1e6, -0.17, 0.045), (1e7, -0.27, 0.03)):
            found = np.asarray(depth(np.log10(T))) / (COLUMN / 70.0 * Z)
            ratio = np.quantile(found / absori(tables, 1.0, 2.0, T), [0.05, 0.5, 0.95]) - 1.0
            assert low < ratio[0] < ratio[2] < high, (T, ratio)
            assert abs(ratio[1]) < 0.06, (T, ratio)


def test_the_band_of_xi_is_a_choice():
    # Light from 5 eV to 300 keV over that from 5 eV to 19.9 keV, of power laws in closed form.
    assert 10 ** xi_shift(2.0, "absori_code") == pytest.approx(np.log(300 / 0.005) / np.log(19.9 / 0.005), rel=1e-6)
    ratio = (300**0.5 - 0.005**0.5) / (19.9**0.5 - 0.005**0.5)
    assert 10 ** xi_shift(1.5, (0.005, 19.9)) == pytest.approx(ratio, rel=1e-6)
    shifted = ion_fractions(5.5, 1.0 + float(xi_shift(1.5, "absori_code")), photon_index=1.5)
    np.testing.assert_allclose(ion_fractions(5.5, 1.0, photon_index=1.5, xi_band="absori_code"), shifted, rtol=1e-6)
    for band, words in (("absori", "absori_code"), ((1.0, 0.5), "0 < low < high; found 1 and 0.5")):
        with pytest.raises(ValueError, match=words):
            ion_fractions(5.5, 1.0, xi_band=band)
