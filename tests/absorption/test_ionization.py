"""Ionisation equilibrium: limits, published values, and the same balance by loops in plain Python."""

import csv
import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import integrate

from hbm_jax.absorption import IONS, MODES, ion_fractions, ion_index, ion_name
from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients
from hbm_jax.absorption.ionization import XI_BAND, _log_photoionization
from hbm_jax.absorption.rates import ABSORBING, BALANCE, RATES, recombination
from hbm_jax.absorption.whim_table import NUM_TEMPERATURES

K_EV, ERG = 8.617333262e-5, 1.602176634e-9  # eV/K, erg/keV
BOTH = [(mode, rates) for mode in MODES for rates in RATES]
log_photoionization = jax.jit(jax.vmap(_log_photoionization))
recombination_of = {rates: jax.jit(jax.vmap(recombination(rates))) for rates in RATES}


def fractions(log10_T, log10_xi, photon_index=2.0, **options):
    """Ion fractions in NumPy, by one program for each mode and rates."""
    given = np.broadcast_arrays(log10_T, log10_xi, photon_index)
    flat = [np.ravel(x).astype(float) for x in given]
    padded = (np.pad(x, (0, NUM_TEMPERATURES - len(x)), mode="edge") for x in flat)
    T, xi, index = padded
    found = np.asarray(ion_fractions(T, xi, photon_index=index, **options))
    return found[: len(flat[0])].reshape(*given[0].shape, len(IONS))


@pytest.fixture(scope="module")
def rows(shared_data):
    @functools.cache
    def read(name):
        with open(shared_data(f"atomic/{name}.csv")) as file:
            found = list(csv.DictReader(line for line in file if not line.startswith("#")))
        return [{k: float(v) if v.replace(".", "").replace("-", "").replace("e+", "e").replace("e", "").isdigit() else v
                 for k, v in row.items()} for row in found]  # fmt: skip

    return read


def of(rows, name, ion, key="N_final"):
    return [row for row in rows(name) if (row["Z"], row[key]) == ion]


def radiative(rows, ion, T, rates):
    power = of(rows, "recombination_radiative_power_law", ion)
    if rates == "older":
        if ion[1] == 1:
            y = 15.8e4 * ion[0] ** 2 / T
            return 1.033e-13 * ion[0] ** 2 * (T / 1e4) ** -0.5 * (1.735 + np.log(y) + 1 / (6 * y))
        return power[0]["A"] * (T / 1e4) ** -power[0]["eta"]
    for r in of(rows, "recombination_radiative_badnell_2006", ion):
        b = r["B"] + r["C"] * np.exp(-r["T2"] / T)
        s, u = np.sqrt(T / r["T0"]), np.sqrt(T / r["T1"])
        return r["A"] / (s * (1 + s) ** (1 - b) * (1 + u) ** (1 + b))
    if ion[0] == 16:
        return power[0]["A"] * (T / 1e4) ** -power[0]["eta"]
    r = of(rows, "recombination_radiative_verner_ferland_1996", ion)[0]
    s, u = np.sqrt(T / r["T0"]), np.sqrt(T / r["T1"])
    return r["a"] / (s * (1 + s) ** (1 - r["b"]) * (1 + u) ** (1 + r["b"]))


def dielectronic(rows, ion, T, rates):
    if rates == "older":
        found = of(rows, "recombination_dielectronic_arnaud_rothenflug_1985", ion)
        return sum(r["A_di"] * T**-1.5 * np.exp(-r["T0"] / T) * (1 + r["B_di"] * np.exp(-r["T1"] / T)) for r in found)
    found = of(rows, "recombination_dielectronic_badnell", ion) or of(
        rows, "recombination_dielectronic_mazzotta_1998", ion
    )
    return T**-1.5 * sum(r["c_i"] * np.exp(-r["E_i"] / T) for r in found)


@pytest.mark.parametrize("rates", RATES)
def test_recombination_is_the_published_fits(rows, rates):
    T = np.concatenate([[2e4, 1e6, 3e7], 10.0 ** np.linspace(3.5, 8.5, 498)])
    found = np.asarray(recombination_of[rates](T))
    for at, row in zip(T[:3], found, strict=False):
        expected = [radiative(rows, ion, at, rates) + dielectronic(rows, ion, at, rates) for ion in ABSORBING]
        np.testing.assert_allclose(row, expected, rtol=1e-12)
    assert (found > 0).all(), "over the domain and a little beyond"


INDICES = np.array([0.0, 0.3, 1.0, 1.37, 2.0, 2.0 + 1e-9, 3.1, 4.0])


@pytest.mark.parametrize("index", [0.0, 2.0, 3.1])
def test_photoionization_rates_are_the_integral(index):
    found = np.exp(log_photoionization(INDICES)[np.flatnonzero(index == INDICES)[0]])
    low, high = np.log(XI_BAND)
    flux = integrate.quad(lambda u: np.exp((2 - index) * u), low, high, epsrel=1e-12)[0]
    for ion in ((1, 1), (2, 2), (8, 8), (14, 13), (26, 20), (26, 26)):
        fits = fit_coefficients((ion,))
        cuts = np.log(np.append(np.maximum(fits.thresholds()[0], XI_BAND[0]), XI_BAND[1]))
        total = sum(
            integrate.quad(
                lambda u, f=fits: np.exp((1 - index) * u) * evaluate(np.exp(u), f)[0],
                a * (1 + 1e-14) + 1e-14, b - 1e-14, epsrel=1e-11, limit=200,
            )[0]
            for a, b in itertools.pairwise(cuts)
        )  # fmt: skip
        assert found[ABSORBING.index(ion)] == pytest.approx(total * 1e-22 / ERG / flux, rel=1e-8), ion


def test_photoionization_rates_of_every_ion():
    # Si II has a corner between two edges; 4000 nodes of Gauss and Legendre between any two see all of them.
    x, w = np.polynomial.legendre.leggauss(20)
    found = np.asarray(log_photoionization(INDICES))
    low, high = np.log(XI_BAND)
    for i, ion in enumerate(ABSORBING):
        fits = fit_coefficients((ion,))
        edges = np.log(np.append(np.maximum(fits.thresholds()[0], XI_BAND[0]), XI_BAND[1]))
        cuts = np.unique(np.concatenate([np.linspace(a, b, 201) for a, b in itertools.pairwise(edges)]))
        half = 0.5 * np.diff(cuts)[:, None]
        u = (cuts[:-1, None] + half * (1 + x)).ravel()
        values = (half * w).ravel() * evaluate(np.exp(u), fits)[0]
        for place, index in enumerate(INDICES):
            s = 2 - index
            flux = high - low if abs(s) < 1e-8 else (np.exp(s * high) - np.exp(s * low)) / s
            total = np.log(np.sum(np.exp((1 - index) * u) * values) * 1e-22 / ERG / flux)
            assert found[place, i] == pytest.approx(total, abs=1e-8), (ion, index)


@pytest.mark.parametrize(("mode", "rates"), BOTH)
def test_balance_by_loops(rows, mode, rates):
    log10_T, log10_xi, index = 5.7, 0.6, 1.37
    T = 10**log10_T
    per_xi = np.exp(np.asarray(log_photoionization(INDICES))[np.flatnonzero(index == INDICES)[0]])
    light = 10**log10_xi / (4 * np.pi) * per_xi
    expected = []
    for Z in BALANCE:
        number = [1.0]
        for n in range(Z, 0, -1):
            r = of(rows, "collisional_ionization_voronov_1997", (Z, n), "N_electrons")[0]
            U = r["dE_eV"] / (K_EV * T)
            hit = r["A"] * (1 + r["P"] * np.sqrt(U)) * U ** r["K"] * np.exp(-U) / (r["X"] + U)
            up = {"photo": 0, "collisional": hit, "photo+collisional": hit}[mode]
            up += 0 if mode == "collisional" else light[ABSORBING.index((Z, n))]
            down = radiative(rows, (Z, n), T, rates) + dielectronic(rows, (Z, n), T, rates)
            number.append(number[-1] * up / down)
        expected += list(np.array(number) / np.sum(number))
    found = fractions(log10_T, log10_xi, index, mode=mode, rates=rates)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-300)


def test_published_values():
    found = fractions(6.0, 0.0, mode="collisional")
    for name, expected in {"O VII": 0.99, "Ne IX": 0.93, "Fe IX": 0.43, "Fe X": 0.34, "Fe XI": 0.14}.items():
        assert found[ion_index(name)] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("mode", "rates"), BOTH)
def test_fractions_of_an_element_sum_to_one(mode, rates):
    T, xi = np.meshgrid(np.linspace(4, 8, 9), np.linspace(-12, 8, 6))
    found = fractions(T, xi, mode=mode, rates=rates)
    assert (found >= 0).all()
    for Z in BALANCE:
        own = [i for i, ion in enumerate(IONS) if ion[0] == Z]
        assert len(own) == Z + 1
        np.testing.assert_allclose(found[..., own].sum(-1), 1.0, rtol=1e-14)


def test_arguments_are_broadcast():
    found = ion_fractions([5.0, 6.5], [[0.0], [1.0], [2.0]])
    assert found.shape == (3, 2, 112)
    T, xi = np.broadcast_arrays([5.0, 6.5], [[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(found, fractions(T, xi), rtol=1e-12)


def test_limits():
    T = np.linspace(4, 8, 17)
    dark = fractions(T, -12.0)
    np.testing.assert_allclose(dark, fractions(T, 3.0, mode="collisional"), rtol=1e-5, atol=1e-6)
    bright = fractions(T, 5.0)
    np.testing.assert_allclose(bright, fractions(T, 5.0, mode="photo"), rtol=0, atol=1e-4)
    hot = dark[-1]
    for Z in (1, 2, 6, 7, 8):
        assert hot[ion_index(ion_name(Z, 0))] > 0.99
    cold = fractions(4.0, -12.0, mode="collisional")
    assert cold[ion_index("H I")] > 0.99
    assert cold[ion_index("O I")] > 0.9
    # The product of light and slow recombination: hotter gas is more ionised though nothing hits it.
    mean = fractions(np.array([5.0, 7.0]), 1.0, mode="photo")[:, -27:] @ np.arange(27)
    assert mean[1] > mean[0] + 1


def forward_slopes(mode, rates):
    """Compiled derivatives of all fractions in log T, log xi and photon index, at points (n, 3)."""

    def all_fractions(x):
        return ion_fractions(x[0], x[1], mode=mode, rates=rates, photon_index=x[2])

    return jax.jit(jax.vmap(jax.jacfwd(all_fractions)))


WHERE = ((5.3, 0.5, 1.7), (6.4, 1.5, 2.0), (7.7, -3.0, 3.3), (4.2, 2.0, 2.0))
CORNERS = ((4.0, -12.0, 0.0), (4.0, 8.0, 4.0), (8.0, -12.0, 2.0), (8.0, 8.0, 2.0))


@pytest.mark.parametrize(
    ("mode", "rates"),
    [
        both
        if both in zip(MODES, ("older", "modern", "older"), strict=True)
        else pytest.param(*both, marks=pytest.mark.long)
        for both in BOTH
    ],
)
def test_slopes_are_differences_and_finite_at_the_corners_of_the_domain(mode, rates):
    slopes = np.asarray(forward_slopes(mode, rates)(np.array(WHERE + CORNERS)))
    at = np.array(WHERE)
    for i in range(3):
        # Fourth order: fractions bend within a tenth in log T.
        steps = 1e-4 * np.array([-2, -1, 1, 2])[:, None, None] * np.eye(3)[i]
        ends = fractions(*np.moveaxis(at + steps, -1, 0), mode=mode, rates=rates)
        expected = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12e-4
        np.testing.assert_allclose(slopes[:4, :, i], expected, rtol=1e-5, atol=1e-8)
    # Fractions of an element add up to one, so their slopes to zero; NaN and infinity would not.
    for Z in BALANCE:
        of_element = slopes[:, [i for i, ion in enumerate(IONS) if ion[0] == Z]]
        np.testing.assert_allclose(of_element.sum(axis=1), 0.0, atol=1e-8, err_msg=f"Z = {Z}")


def test_reverse_slopes_are_the_forward_ones():
    weights = np.random.default_rng(2).normal(size=112)

    @jax.jit
    @jax.vmap
    def reverse(x):
        return jax.grad(lambda x: ion_fractions(x[0], x[1], rates="older", photon_index=x[2]) @ weights)(x)

    at = np.array(WHERE + CORNERS)
    forward = np.einsum("nij,i->nj", np.asarray(forward_slopes("photo+collisional", "older")(at)), weights)
    np.testing.assert_allclose(reverse(at), forward, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_single_precision(mode):
    T = np.linspace(4, 8, NUM_TEMPERATURES)
    double = fractions(T, 1.0, mode=mode)
    single = ion_fractions(T.astype(np.float32), np.float32(1.0), mode=mode, photon_index=np.float32(2.0))
    assert single.dtype == np.float32
    # A ladder of 26 steps, each with a rounding error of 1e-6 in its logarithm.
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3.9, 0.0), {}, r"log10_T: expected between 4 and 8; found 3\.9"),
        (([5.0, 8.5], 0.0), {}, r"log10_T\[1\]: expected between 4 and 8; found 8\.5"),
        ((1e6, 0.0), {}, r"log10_T: expected between 4 and 8; found 1e\+06"),
        ((6.0, 9.0), {}, r"log10_xi: expected between -12 and 8; found 9"),
        ((6.0, 0.0), {"mode": "photon"}, r"unknown mode 'photon' \(did you mean 'photo'\?\)"),
        ((6.0, 0.0), {"rates": "new"}, r"unknown collection of rates 'new'.*expected one of modern, older"),
        ((6.0, 0.0), {"photon_index": -2.0}, r"photon_index: expected between 0 and 4; found -2"),
    ],
)
def test_errors(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ion_fractions(*arguments, **options)


def test_an_ion_outside_the_balance_is_refused():
    with pytest.raises(ValueError, match=r"ion 'Ni I': expected an element of the balance, one of H, He, C"):
        ion_index("Ni I")


def test_traced_values_out_of_the_domain_are_nan():
    T = np.array([3.0, 8.5, 6.0, 6.0, 6.0, 6.0, 6.0])
    xi = np.array([0.0, 0.0, -13.0, 9.0, 0.0, 0.0, 0.0])
    index = np.array([2.0, 2.0, 2.0, 2.0, -0.5, 4.5, 2.0])
    found = np.asarray(jax.jit(lambda T, xi, index: ion_fractions(T, xi, photon_index=index))(T, xi, index))
    assert np.isnan(found[:6]).all()
    np.testing.assert_allclose(found[6], fractions(6.0, 0.0), rtol=1e-12)
