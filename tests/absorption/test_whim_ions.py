"""The medium with every ion's integral stored, against the integral itself."""

import jax
import numpy as np
import pytest

from hbm_jax.absorption import WhimIons, WhimTable, whim_optical_depth
from hbm_jax.cosmology import Cosmology

ENERGY = np.array([[0.4, 0.61, 0.8, 1.2, 3.0], [0.35, 0.55, 0.75, 1.0, 2.0]])
Z = np.array([0.8, 3.0])


@pytest.fixture(scope="module")
def cosmology():
    return Cosmology.flat(H0=70.0, Om0=0.3)


@pytest.fixture(scope="module")
def ions(cosmology):
    return WhimIons(ENERGY, Z, cosmology=cosmology)


def test_optical_depths_are_those_of_the_integral(ions, cosmology):
    cases = np.array([(5.0, 0.0, 0.3), (6.2, 1.5, 1.0), (7.1, -1.0, 0.05)])

    def exact(T, xi, metallicity):
        return jax.vmap(
            lambda E, z: whim_optical_depth(
                E, z, n0=1e-6, log10_T=T, log10_xi=xi, metallicity=metallicity, cosmology=cosmology
            )
        )(ENERGY, Z)

    found = jax.jit(jax.vmap(lambda c: ions(1e-6, c[0], c[1], c[2])))(cases)
    np.testing.assert_allclose(found, jax.jit(jax.vmap(lambda c: exact(*c)))(cases), rtol=2e-6, atol=1e-9)


def test_one_line_of_sight_is_its_row(ions, cosmology):
    table = WhimTable(ENERGY, Z, cosmology=cosmology, metallicity=0.3)
    np.testing.assert_array_equal(ions.only(1)(1e-6, 6.0, 0.5, 0.3)[0], ions(1e-6, 6.0, 0.5, 0.3)[1])
    np.testing.assert_allclose(table.only(0)(1e-6, 6.0)[0], table(1e-6, 6.0)[0], rtol=1e-12)
    assert table.only(0).z == Z[:1]


def test_bad_names_and_temperatures(ions, cosmology):
    with pytest.raises(ValueError, match="photo"):
        WhimIons(ENERGY, Z, cosmology=cosmology, mode="photons")
    with pytest.raises(ValueError, match="log10_T"):
        ions(1e-6, 12.0, 0.0)
    assert np.isnan(jax.jit(lambda T: ions(1e-6, T, 0.0))(12.0)).all()
