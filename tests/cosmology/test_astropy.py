"""Astropy as the reference: every quantity, every preset, and conversion both ways."""

import astropy.cosmology
import jax
import numpy as np
import pytest

from hbm_jax import cosmology as hc

from .catalogue import FUNCTIONS, REDSHIFTS, quantities

CASES = {name: getattr(astropy.cosmology, name) for name in astropy.cosmology.available}
CASES |= {
    "LambdaCDM open": astropy.cosmology.LambdaCDM(68, 0.3, 0.5),
    "LambdaCDM closed, radiation": astropy.cosmology.LambdaCDM(72, 0.4, 0.9, Tcmb0=2.725, Neff=3.04),
    "wCDM": astropy.cosmology.wCDM(70, 0.25, 0.8, w0=-1.2),
    "FlatwCDM": astropy.cosmology.FlatwCDM(70, 0.3, w0=-0.8),
    "w0waCDM, three masses": astropy.cosmology.w0waCDM(
        70, 0.3, 0.65, w0=-0.9, wa=0.3, Tcmb0=2.7, Neff=3.1, m_nu=[0.01, 0.1, 0.5]
    ),
    "Flatw0waCDM": astropy.cosmology.Flatw0waCDM(70, 0.3, w0=-0.9, wa=-0.4),
    "Flatw0waCDM, radiation": astropy.cosmology.Flatw0waCDM(67, 0.3, w0=-0.9, wa=-0.4, Tcmb0=2.7255),
}


@pytest.mark.parametrize("name", CASES)
def test_every_quantity(name):
    reference = CASES[name]
    found = quantities(REDSHIFTS, hc.from_astropy(reference))
    for function in FUNCTIONS:
        theirs = {"transverse_comoving_distance": "comoving_transverse_distance"}.get(function, function)
        expected = getattr(reference, theirs)(REDSHIFTS)
        units = {"lookback_time": "Gyr", "age": "Gyr", "distmod": "mag", "differential_comoving_volume": "Mpc3 / sr"}
        expected = expected if function == "efunc" else expected.to_value(units.get(function, "Mpc"))
        # Astropy's integrals are adaptive with a tolerance of 1e-8, and usually much better.
        rtol = 1e-13 if function == "efunc" else 1e-8 if function == "age" else 1e-9
        np.testing.assert_allclose(found[function], expected, rtol=rtol, atol=0, err_msg=function)


@pytest.mark.parametrize("name", CASES)
def test_densities_and_round_trip(name):
    reference = CASES[name]
    ours = hc.from_astropy(reference)
    for density in ("Ogamma0", "Onu0", "Ode0", "Ok0"):
        np.testing.assert_allclose(getattr(ours, density), getattr(reference, density), rtol=1e-10, atol=1e-15)
    back = ours.to_astropy()
    assert hc.Cosmology.from_astropy(back) == ours
    assert isinstance(ours, hc.FlatCosmology) == type(reference).__name__.startswith("Flat")
    np.testing.assert_array_equal(back.efunc(REDSHIFTS), reference.efunc(REDSHIFTS))


def test_massless_radiation_round_trip():
    ours = hc.Cosmology.flat(H0=70.0, Om0=0.3, radiation=hc.Radiation(Tcmb0=2.7, Neff=3.04))
    efunc = quantities(REDSHIFTS, ours)["efunc"]
    np.testing.assert_allclose(ours.to_astropy().efunc(REDSHIFTS), efunc, rtol=1e-13)


@pytest.mark.parametrize(
    "cosmology",
    [
        astropy.cosmology.w0wzCDM(70, 0.3, 0.7, w0=-0.9, wz=0.1),
        astropy.cosmology.wpwaCDM(70, 0.3, 0.7, wp=-0.9, wa=0.2, zp=0.5),
        3.0,
    ],
)
def test_what_is_not_representable_is_named(cosmology):
    with pytest.raises(TypeError, match=f"expected one of astropy's LambdaCDM.*found .*{type(cosmology).__name__}"):
        hc.from_astropy(cosmology)


def test_only_one_universe_converts():
    with pytest.raises(ValueError, match=r"Om0: expected a scalar.*found \(2,\)"):
        hc.Cosmology.flat(H0=70.0, Om0=np.array([0.2, 0.3])).to_astropy()


def test_radiation_may_be_traced():
    slopes = jax.jit(jax.value_and_grad(lambda cosmology: hc.luminosity_distance(1.0, cosmology)))
    ours = hc.from_astropy(astropy.cosmology.Planck18)
    distance, gradient = slopes(ours)
    expected = astropy.cosmology.Planck18.luminosity_distance(1.0).value
    np.testing.assert_allclose(distance, expected, rtol=1e-9)
    step = 1e-3

    def at(Tcmb0):
        radiation = hc.Radiation(Tcmb0, ours.radiation.Neff, ours.radiation.m_nu)
        return float(slopes(hc.Cosmology.flat(ours.H0, ours.Om0, radiation=radiation))[0])

    shifted = [at(2.7255 - step), at(2.7255 + step)]
    np.testing.assert_allclose(gradient.radiation.Tcmb0, (shifted[1] - shifted[0]) / (2 * step), rtol=1e-5)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
