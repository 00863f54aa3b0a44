"""Cold interstellar matter against tables made with XSPEC, limits, and the integral that grains stand for."""

import functools
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.io import fits
from scipy import integrate

from hbm_jax.absorption import ABUNDANCES, ELEMENTS, Grains, abundance_table, neutral_cross_section
from hbm_jax.absorption.coefficients import table
from hbm_jax.absorption.neutral import FINE_STRUCTURE, _grain_cross_section
from hbm_jax.absorption.transmission import edges_of_neutral_matter

ORACLE = ["phabs_angr", "phabs_aspl", "tbabs_angr", "tbabs_aspl", "tbabs_wilm"]
# From the table of tbabs and wilm. Its value for 10 keV is the mean of the bin around 9.9986 keV, in single precision:
# there the last digit may be another.
REFERENCE = {0.2: 85.13, 0.5: 6.291, 1.0: 1.738, 2.0: 0.2921, 5.0: 0.02390, 9.998624: 0.007080}


def cross_section(energy, **options):
    """Cross sections in NumPy at up to 400 energies, by one program for each model."""
    energy = np.atleast_1d(energy)
    padded = np.pad(energy, (0, 400 - len(energy)), mode="edge")
    return np.asarray(neutral_cross_section(padded, **options))[: len(energy)]


@pytest.fixture(scope="module", params=ORACLE)
def oracle(request):
    """Energies, cross sections, model and abundance table of one of astromodels' files, which XSPEC made."""
    package = importlib.util.find_spec("astromodels")
    if package is None:
        if os.environ.get("CI"):
            pytest.fail("astromodels is not installed")
        pytest.skip("astromodels is not installed (pip install 'hbm_jax[test]')")
    path = Path(package.submodule_search_locations[0]) / "data" / "xsect" / f"xsect_{request.param}.fits"
    with fits.open(path) as file:
        data = file[1].data
        return data["ENERGY"].astype(float), data["SIGMA"].astype(float), *request.param.split("_")


def test_tables_made_with_xspec_are_reproduced(oracle):
    energy, expected, model, abundances = oracle
    found = neutral_cross_section(energy, model=model, abundances=abundances)
    difference = np.abs(np.asarray(found) / expected - 1)
    # The table holds averages over its bins, and real edges where the fits have none.
    middle = 0.5 * (energy[1:] + energy[:-1])
    bins = np.searchsorted(middle, edges_of_neutral_matter(energy[0], energy[-1]))
    clear = np.ones(len(energy), bool)
    clear[np.clip(np.add.outer(bins, [-1, 0, 1]).ravel(), 0, len(energy) - 1)] = False
    if model == "tbabs":
        for low, high in FINE_STRUCTURE.values():
            clear &= (energy < low) | (energy > high)
    assert clear.sum() > 0.9 * len(energy)
    assert np.median(difference[clear]) < 1e-5
    assert np.quantile(difference[clear], 0.95) < 1e-3
    assert difference[clear].max() < 5e-3


def test_reference_values_to_their_last_digit():
    found = cross_section(np.array(list(REFERENCE)))
    for value, expected in zip(found, REFERENCE.values(), strict=True):
        last = 10.0 ** (np.floor(np.log10(expected)) - 3)
        assert abs(value - expected) < (1.0 if expected < 0.01 else 0.5) * last


@pytest.mark.parametrize("abundances", ABUNDANCES)
def test_names_of_tables_and_their_values_are_one(abundances):
    values = abundance_table(abundances)
    assert values[0] == 1
    energy = np.array([0.3, 1.0, 4.0])
    for model in ("tbabs", "phabs"):
        named = cross_section(energy, model=model, abundances=abundances)
        np.testing.assert_array_equal(named, cross_section(energy, model=model, abundances=values))


def test_gas_is_linear_in_the_abundances_and_grains_are_not():
    wilm, angr, energy = abundance_table("wilm"), abundance_table("angr"), np.array([0.3, 0.6, 1.5])

    def bend(**options):
        a, b, both = (cross_section(energy, abundances=x, **options) for x in (wilm, angr, 0.5 * (wilm + angr)))
        return np.abs(0.5 * (a + b) / both - 1)

    assert bend(grains=False).max() < 1e-14
    assert bend(model="phabs").max() < 1e-14
    assert 1e-6 < bend().max() < 1e-3


def test_tiny_grains_are_gas():
    energy = np.geomspace(0.1, 10.0, 40)
    tiny = cross_section(energy, grains=Grains(radius_min=1e-9, radius_max=2e-9))
    np.testing.assert_allclose(tiny, cross_section(energy, grains=False), rtol=1e-6)
    assert (cross_section(energy, grains=Grains(radius_max=2.5)) < cross_section(energy)).all()


def test_molecules_take_the_place_of_a_share_of_the_hydrogen():
    energy = np.array([0.031, 0.05, 0.084, 0.086, 0.3, 2.0])
    none, usual, all_of_it = (cross_section(energy, grains=False, molecules=m) for m in (False, True, 1.0))
    np.testing.assert_allclose(usual, none + 0.2 * (all_of_it - none), rtol=1e-12)
    # Yan, Sadeghpour & Dalgarno 1998, equations 17 and 18, in their corrected form (2001), for each molecule.
    x = 1e3 * energy / 15.4
    high = 1 - 2.003 * x**-0.5 - 4.806 / x + 50.577 * x**-1.5 - 171.044 * x**-2 + 231.608 * x**-2.5 - 81.885 * x**-3
    expected = 45.57 * energy**-3.5 * high * 1e-2  # of barn, in 1e-22 cm^2
    found = 2.0 * (all_of_it - none + hydrogen_atom(energy))
    np.testing.assert_allclose(found[3:], expected[3:], rtol=0.03)  # the exact atom is not the fit of atoms
    # Of the fit below 85 eV: it goes on smoothly, and a molecule is a little more than two atoms.
    slope = np.diff(np.log(found)) / np.diff(np.log(energy))
    assert slope[2] == pytest.approx(slope[3], abs=0.7)
    assert ((found > 2.0 * hydrogen_atom(energy)) & (found < 4.0 * hydrogen_atom(energy))).all()


def hydrogen_atom(energy):
    """Exact photo-ionisation cross section of the ground state (Stobbe), 6.30 Mb at the threshold."""
    eta = np.sqrt(13.5984 / (1e3 * energy - 13.5984))
    threshold = 6.3042e4  # 1e-22 cm^2
    falling = (13.5984e-3 / energy) ** 4 * np.exp(4 - 4 * np.arctan(1 / eta) * eta)
    return threshold * falling / (1 - np.exp(-2 * np.pi * eta))


def test_hydrogen_is_that_of_the_exact_atom():
    only = np.where(np.arange(30) == 0, 1.0, 0.0)
    energy = np.geomspace(0.031, 2.0, 20)
    found = cross_section(energy, abundances=only, grains=False, molecules=False)
    np.testing.assert_allclose(found, hydrogen_atom(energy), rtol=0.02)


@pytest.mark.parametrize("grains", [Grains(), Grains(index=3.2, radius_max=1.0, density=3.0)])
def test_grains_are_the_integral_over_their_sizes(grains):
    dust = table("ism_depletion_wilms_2000")
    in_grains = jax.jit(functools.partial(_grain_cross_section, grains=grains))
    rng = np.random.default_rng(1)
    depleted = rng.uniform(0, 1e-4, 17)
    mass_number = dust["mass_number"][1:]
    for size in (1e2, 1e4, 1e6):
        sigma = size * rng.uniform(0.5, 1.5, 17)
        mass = depleted @ mass_number * 1.660565e-24
        sbar, mbar = depleted @ sigma * 1e-22 / depleted.sum(), mass / depleted.sum()
        a0, a1, p = 1e-4 * grains.radius_min, 1e-4 * grains.radius_max, grains.index

        def blocked(a, sbar=sbar, mbar=mbar, p=p):
            return a ** (2 - p) * -np.expm1(-4 / 3 * grains.density * sbar / mbar * a)

        total = integrate.quad(lambda u, f=blocked: np.exp(u) * f(np.exp(u)), np.log(a0), np.log(a1), epsrel=1e-12)[0]
        volume = integrate.quad(lambda u, p=p: np.exp((4 - p) * u), np.log(a0), np.log(a1), epsrel=1e-12)[0]
        expected = 1e22 * np.pi * total * mass / (grains.density * 4 / 3 * np.pi * volume)
        found = in_grains(sigma, depleted, mass_number)
        assert float(found) == pytest.approx(expected, rel=1e-10)


def test_gradient_in_the_abundances():
    wilm = abundance_table("wilm")

    @functools.partial(jax.jit, static_argnames=("model", "grains"))
    def gradient_at(x, model="tbabs", grains=True):
        return jax.grad(lambda x: neutral_cross_section(0.7, model=model, abundances=x, grains=grains))(x)

    for model in ("tbabs", "phabs"):

        def sigma(x, model=model):
            return cross_section(0.7, model=model, abundances=x)[0]

        gradient = gradient_at(wilm, model=model)
        for element in ("H", "He", "O", "Fe"):
            i = ELEMENTS.index(element)
            h = 1e-4 * wilm[i]
            step = np.eye(30)[i] * h
            expected = (sigma(wilm + step) - sigma(wilm - step)) / (2 * h)
            assert float(gradient[i]) == pytest.approx(expected, rel=1e-5)
    no_metals = np.where(np.arange(30) < 2, wilm, 0.0)
    # Without metals there is no slope in general; the one given is that of dust which does not shade itself yet.
    slopes = [gradient_at(no_metals, grains=grains) for grains in (True, False)]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-12)


def test_overlay_replaces_the_fit_inside_its_range_only():
    energy = np.linspace(0.45, 0.65, 400)
    plain = cross_section(energy, grains=False)
    grid = np.linspace(0.48, 0.60, 50)
    nothing = cross_section(energy, grains=False, overlay={"O": (grid, 0.0 * grid)})
    inside = (energy >= 0.48) & (energy <= 0.60)
    np.testing.assert_array_equal(nothing[~inside], plain[~inside])
    no_oxygen = abundance_table("wilm").copy()
    no_oxygen[7] = 0
    expected = cross_section(energy, grains=False, abundances=no_oxygen)
    np.testing.assert_allclose(nothing[inside], expected[inside], rtol=1e-13)
    # Between the points of its table it is a straight line.
    sloped = cross_section(energy, grains=False, overlay={"O": (grid, grid**2)})
    share = abundance_table("wilm")[7] * np.interp(energy, grid, grid**2)
    np.testing.assert_allclose((sloped - nothing)[inside], share[inside], rtol=1e-8)
    # The grain formula comes after it.
    with_grains = cross_section(energy, overlay={"O": (grid, 0.0 * grid)})
    assert (with_grains[inside] < cross_section(energy)[inside])[100:].all()


def test_single_precision():
    energy = np.geomspace(0.1, 20.0, 301)
    away = np.min(np.abs(np.subtract.outer(energy, edges_of_neutral_matter(0.1, 20.0))), axis=1) > 1e-5
    for grains in (True, Grains(index=3.3)):
        double = cross_section(energy, grains=grains)
        with jax.enable_x64(False):
            single = neutral_cross_section(energy.astype(np.float32), grains=grains)
            assert single.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(single)[away], double[away], rtol=1e-5)


def test_traced_values_out_of_the_domain_are_nan():
    energy = np.array([0.02, 1.0, 600.0])
    found = jax.jit(lambda e, a: neutral_cross_section(e, model="phabs", abundances=a))
    assert np.isnan(found(np.ones(3), -np.ones(30))).all()
    # And so are energies out of the domain.
    np.testing.assert_array_equal(np.isnan(found(energy, np.ones(30))), [True, False, True])


def overlay(low, high, num=20):
    return np.linspace(low, high, num), np.ones(num)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": -1.0}, r"energy: expected between 0\.03 and 500 keV; found -1"),
        ({"grains": "mrn"}, r"grains: expected True, False or Grains\(\.\.\.\); found 'mrn'"),
        ({"overlay": {"O": np.ones(3)}}, r"overlay of O: expected a pair, energies and cross sections; found 3"),
        ({"model": "tbab"}, r"unknown model 'tbab' \(did you mean 'tbabs'\?\): expected one of tbabs, phabs"),
        ({"abundances": "wilms"}, r"unknown abundance table 'wilms' \(did you mean 'wilm'\?\)"),
        ({"abundances": np.ones(10)}, r"abundances: expected the name of a table or 30 numbers.*shape \(10,\)"),
        ({"abundances": -np.ones(30)}, r"abundances\[0\] \(H\): expected a number not below 0; found -1"),
        ({"molecules": 1.5}, r"molecules: expected a fraction .* found 1\.5"),
        ({"overlay": {"O": overlay(0.5, 0.6)}}, r"overlay of O: expected energies that cover 0\.49 to 0\.585 keV"),
        ({"overlay": {"C": overlay(0.2, 0.3)}}, r"unknown element of an overlay 'C'"),
        ({"overlay": {"O": ([0.6, 0.4], [1.0, 1.0])}}, r"overlay of O: expected increasing energies"),
        ({"overlay": {"O": ([0.4, 0.6], [1.0])}}, r"overlay of O: expected two columns of equal length"),
    ],
)  # fmt: skip
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        neutral_cross_section(**({"energy": 1.0} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius_min": 0.3}, "0 < radius_min < radius_max"),
        ({"index": 3.0}, "index between 3 and 4"),
        ({"density": 0.0}, "positive density"),
    ],
)
def test_impossible_grains(options, message):
    with pytest.raises(ValueError, match=message):
        Grains(**options)
