"""The medium with every ion's integral stored, against the integral itself."""

import jax
import numpy as np
import pytest
from lines_of_sight import FLAT, depth

from hbm_jax.absorption import WhimIons, WhimTable

ENERGY = np.array([[0.4, 0.61, 0.8, 1.2, 3.0], [0.35, 0.55, 0.75, 1.0, 2.0]])
Z = np.array([0.8, 3.0])

evaluated = jax.jit(lambda of, *arguments: of(*arguments))


@pytest.fixture(scope="module")
def ions():
    return WhimIons(ENERGY, Z, cosmology=FLAT)


def test_optical_depths_are_those_of_the_integral(ions):
    for log10_T, log10_xi, metallicity in ((5.0, 0.0, 0.3), (6.2, 1.5, 1.0), (7.1, -1.0, 0.05)):
        found = np.asarray(evaluated(ions, 1e-6, log10_T, log10_xi, metallicity))
        for row, energy, z in zip(found, ENERGY, Z, strict=True):
            gas = {"n0": 1e-6, "log10_T": log10_T, "log10_xi": log10_xi, "metallicity": metallicity}
            np.testing.assert_allclose(row, depth(energy, z, **gas), rtol=2e-6, atol=1e-9)


def test_other_modes_rates_light_and_abundances_are_those_given():
    numbers = np.full(30, 1e-4)
    given = {"mode": "photo", "rates": "older", "photon_index": 1.4, "abundances": numbers}
    found = np.asarray(evaluated(WhimIons(ENERGY, Z, cosmology=FLAT, **given), 1e-6, 5.6, 1.0, 0.7))
    for row, energy, z in zip(found, ENERGY, Z, strict=True):
        exact = depth(energy, z, n0=1e-6, log10_T=5.6, log10_xi=1.0, metallicity=0.7, **given)
        np.testing.assert_allclose(row, exact, rtol=2e-6, atol=1e-9)


def test_one_line_of_sight_is_its_row(ions):
    table = WhimTable(ENERGY, Z, cosmology=FLAT, metallicity=0.3)
    gas = (1e-6, 6.0, 0.5, 0.3)
    np.testing.assert_allclose(evaluated(ions.only(1), *gas)[0], evaluated(ions, *gas)[1], rtol=1e-6)
    np.testing.assert_allclose(evaluated(table.only(0), 1e-6, 6.0)[0], evaluated(table, 1e-6, 6.0)[0], rtol=1e-12)
    assert table.only(0).z == Z[:1]
    assert ions.only(1).z == Z[1:]
    assert repr(ions) == "WhimIons(2 lines of sight, 5 energies)"


def test_each_line_of_sight_has_the_density_given_for_it(ions):
    both = np.asarray(evaluated(ions, np.array([1e-6, 3e-6]), 6.0, 0.5, 0.3))
    one = np.asarray(evaluated(ions, 1e-6, 6.0, 0.5, 0.3))
    np.testing.assert_allclose(both, one * np.array([[1.0], [3.0]]), rtol=1e-12)


def test_bad_names_and_temperatures(ions):
    with pytest.raises(ValueError, match="photo"):
        WhimIons(ENERGY, Z, cosmology=FLAT, mode="photons")
    with pytest.raises(ValueError, match="unknown collection of rates"):
        WhimIons(ENERGY, Z, cosmology=FLAT, rates="newest")
    with pytest.raises(ValueError, match="log10_T"):
        ions(1e-6, 12.0, 0.0)
    assert np.isnan(evaluated(ions, 1e-6, 12.0, 0.0, 0.3)).all()
