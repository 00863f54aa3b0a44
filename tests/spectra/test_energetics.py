"""Fluxes, luminosities and energies against adaptive integrals, closed forms and astropy."""

import itertools

import astropy.units as u
import jax
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy import integrate

from hbm_jax.cosmology import Cosmology
from hbm_jax.spectra.model.components import (
    Absorption,
    Band,
    BlackBody,
    BrokenPowerLaw,
    Constant,
    CutoffPowerLaw,
    GaussianLine,
    PowerLaw,
)
from hbm_jax.spectra.model.energetics import (
    energy_flux,
    equivalent_width,
    isotropic_energy,
    k_correction,
    log10_luminosity,
    log10_sphere_area,
    luminosity,
    photon_flux,
)

KEV = 1.602176634e-9  # erg
FLAT = Cosmology.flat(H0=70.0, Om0=0.3)
ASTROPY = FlatLambdaCDM(H0=70.0, Om0=0.3, Tcmb0=0.0)


def reference(log_density, low, high, power, breaks=()):
    """Adaptive integral in ln E of a density given by its logarithm, cut at breaks, its maximum factored out."""
    ends = np.log([low, *sorted(b for b in breaks if low < b < high), high])
    grid = np.linspace(ends[0], ends[-1], 400)
    top = max((power + 1) * x + log_density(np.exp(x)) for x in grid)
    # In parts, so that it finds what is next to one end of five decades.
    cuts = np.unique(np.concatenate([np.linspace(ends[0], ends[-1], 13), ends]))

    def integrand(x):
        return np.exp((power + 1) * x + log_density(np.exp(x)) - top)

    total = sum(
        integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-13, limit=100)[0] for a, b in itertools.pairwise(cuts)
    )
    return np.exp(top) * total


def cutoff(E, photon_index, e_cut):
    return -photon_index * np.log(E) - E / e_cut


def band(E, alpha, beta, e_peak):
    E0 = e_peak / (2 + alpha)
    if (alpha - beta) * E0 > E:
        return alpha * np.log(E / 100) - E / E0
    return (alpha - beta) * np.log((alpha - beta) * E0 / 100) + beta - alpha + beta * np.log(E / 100)


def black_body(E, kT):
    return np.log(1.0344e-3) + 2 * np.log(E) - E / kT - np.log(-np.expm1(-E / kT))


DOMAIN = {
    "cutoff": (
        CutoffPowerLaw(norm="amplitude"),
        cutoff,
        {"photon_index": [2.0, -2.0, 1.0, 5.0, 0.0, -2.0], "e_cut": [0.03, 0.03, 1.0, 30.0, 1e3, 1e6]},
    ),
    "Band": (
        Band(norm="amplitude"),
        band,
        {
            "alpha": [-1.0, -1.99, 2.0, -0.5, -1.0, -1.9],
            "beta": [-2.0, -2.5, -8.0, -2.5, -4.0, -2.1],
            "e_peak": [0.1, 1.0, 30.0, 300.0, 1e4, 1e5],
        },
    ),
    "black body": (BlackBody(norm="amplitude"), black_body, {"kT": [0.03, 0.3, 3.0, 30.0, 1e3, 1e6]}),
}


@pytest.mark.parametrize("name", DOMAIN)
def test_the_quadrature_is_right_over_the_domain(name):
    spectrum, log_density, values = DOMAIN[name]
    values = {key: np.array(column) for key, column in values.items()}
    # The second is the rest frame band 1 keV to 10 MeV.
    bands = np.array([[1.0, 100.0], [1.0, 1e4]])
    low, high = bands[:, 0, None], bands[:, 1, None]

    @jax.jit
    def both(values, log10_amplitude):
        given = values | {"log10_amplitude": log10_amplitude}
        return photon_flux(spectrum, given, low, high), energy_flux(spectrum, given, low, high)

    found = jax.tree.map(np.asarray, both(values, 2.0))
    single = both(jax.tree.map(np.float32, values), np.float32(2.0))
    for i, (a, b) in enumerate(bands):
        for j in range(6):
            one = {key: column[j] for key, column in values.items()}
            place = (one["alpha"] - one["beta"]) * one["e_peak"] / (2 + one["alpha"]) if name == "Band" else 1.0
            for power, unit in ((0, 1.0), (1, KEV)):
                expected = 100 * unit * reference(lambda E, one=one: log_density(E, **one), a, b, power, [place])
                assert float(found[power][i, j]) == pytest.approx(expected, rel=1e-12), (a, b, one)
                assert float(single[power][i, j]) == pytest.approx(expected, rel=2e-5), (a, b, one)


def test_power_laws_are_closed_forms_at_every_index():
    index = np.array([1.0, 2.0, 2.0 + 1e-9, 0.5, 3.0])
    one = PowerLaw(norm="amplitude", pivot=2.0)
    two = BrokenPowerLaw("b", norm="amplitude")
    values = {"photon_index": index, "log10_amplitude": 0.0, "b_photon_index": index, "b_photon_index_high": 2.0}
    values |= {"b_energy_break": 3.0, "b_log10_amplitude": 0.0}

    @jax.jit
    def all_of(values):
        def flux(spectrum):
            return energy_flux(spectrum, values, 0.5, 8.0)

        return flux(one), flux(two), flux((one + two) * Constant()), photon_flux(one, values, 0.5, 8.0)

    of_one, of_two, of_both, counts = all_of(values | {"factor": 1.5})
    for i, g in enumerate(index):
        low = reference(lambda E, g=g: -g * np.log(E), 0.5, 3.0, 1)
        high = 3.0 ** (2 - g) * np.log(8 / 3)
        expected = reference(lambda E, g=g: -g * np.log(E / 2), 0.5, 8.0, 1)
        assert float(of_one[i]) == pytest.approx(KEV * expected, rel=1e-12)
        assert float(of_two[i]) == pytest.approx(KEV * (low + high), rel=1e-12)
        assert float(of_both[i]) == pytest.approx(1.5 * KEV * (expected + low + high), rel=1e-12)
        assert float(counts[i]) == pytest.approx(reference(lambda E, g=g: -g * np.log(E / 2), 0.5, 8.0, 0), rel=1e-12)
    assert float(of_one[1]) == pytest.approx(4 * KEV * np.log(16), rel=1e-13)


def test_absorbed_fluxes_and_the_flux_without_absorbers():
    spectrum = PowerLaw(norm=(0.3, 10.0)) * Absorption("mw") * Absorption("host", z=1.0)
    values = {"photon_index": np.array([2.0, 1.4]), "log10_flux": -11.0, "mw_nh": 0.05, "host_nh": np.array([0.5, 5.0])}

    @jax.jit
    def fluxes(values):
        bare = energy_flux(spectrum, values, 0.3, 10.0, unabsorbed=True)
        seen = energy_flux(spectrum, values, np.array([0.3, 0.5]), 10.0), photon_flux(spectrum, values, 0.3, 10.0)
        return bare, *seen

    bare, energy, counts = fluxes(values)
    np.testing.assert_allclose(bare, 1e-11, rtol=1e-13)
    cuts = np.unique(np.concatenate([np.geomspace(0.3, 10.0, 800), [0.5], spectrum.discontinuities(0.3, 10.0)]))
    x, w = np.polynomial.legendre.leggauss(4)
    half = 0.5 * np.diff(cuts)[:, None]
    E = (0.5 * (cuts[1:] + cuts[:-1])[:, None] + half * x).ravel()
    weights = (half * w).ravel()
    density = np.asarray(jax.jit(spectrum.on(E))(values))
    expected = [(density[i] * weights * E * KEV)[low < E].sum() for i, low in enumerate((0.3, 0.5))]
    np.testing.assert_allclose(energy, expected, rtol=1e-9)
    np.testing.assert_allclose(counts, density @ weights, rtol=1e-9)
    # The kink of a break is the one thing that no piece ends at.
    broken = BrokenPowerLaw(norm="amplitude") * Absorption(z=1.0)
    shape = {"photon_index": 1.0, "photon_index_high": 2.5, "energy_break": np.geomspace(0.4, 8.0, 40)}
    shape |= {"log10_amplitude": 0.0, "nh": 0.3}
    found, density = jax.jit(lambda v: (photon_flux(broken, v, 0.3, 10.0), broken.on(E)(v)))(shape)
    np.testing.assert_allclose(found, density @ weights, rtol=1e-4)
    with pytest.raises(ValueError, match="expected a band of concrete energies"):
        jax.jit(lambda low: energy_flux(spectrum, values, low, 10.0))(0.3)


def test_luminosities_and_k_corrections_of_power_laws():
    z = np.array([0.01, 1.0, 8.0])
    index = np.array([[1.5], [2.0], [2.7], [3.0]])
    spectrum = PowerLaw(norm=(0.3, 10.0)) * Absorption("mw")
    values = {"photon_index": index, "log10_flux": np.array([-11.0, -12.0, -13.0]), "mw_nh": 0.3}

    band = {"rest": (0.3, 10.0)}

    @jax.jit
    def of_luminosity(values, z):
        return log10_luminosity(spectrum, values, z, FLAT, **band)

    @jax.jit
    def of_the_rest(values, traced_z):
        k = [k_correction(spectrum, values, one, observed=(0.3, 10.0), **band) for one in (z, traced_z)]
        return (
            *k,
            isotropic_energy(1e-6, z, FLAT, k=2.0),
            luminosity(spectrum, values, z, FLAT, **band),
            log10_sphere_area(z, FLAT),
        )

    k_known, k_traced, energy, linear, sphere = of_the_rest(values, z)
    area = 4 * np.pi * (ASTROPY.luminosity_distance(z).to_value(u.cm)) ** 2
    k = (1 + z) ** (index - 2)
    np.testing.assert_allclose(k_known, k, rtol=1e-12)
    np.testing.assert_allclose(k_traced, k, rtol=1e-12)
    np.testing.assert_allclose(energy, area * 1e-6 * 2 / (1 + z), rtol=1e-10)
    expected = area * 10.0 ** values["log10_flux"] * k
    np.testing.assert_allclose(linear, expected, rtol=1e-10)
    np.testing.assert_allclose(sphere, np.log10(area), rtol=1e-12)
    np.testing.assert_allclose(of_luminosity(values, z), np.log10(expected), rtol=1e-12)
    single = of_luminosity(jax.tree.map(np.float32, values), z.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, np.log10(expected), atol=2e-5)


@pytest.mark.parametrize("compile_it", [False, True])
def test_luminosities_and_energies_in_a_session_of_single_precision(compile_it):
    """1e46 erg/s and 1e53 erg are more than single precision holds."""
    values = {"photon_index": np.float32(1.5), "log10_flux": np.float32(-11.0)}

    def both(values, fluence):
        z = np.float32(1.0)
        return luminosity(PowerLaw(), values, z, FLAT, rest=(0.3, 10.0)), isotropic_energy(fluence, z, FLAT)

    with jax.enable_x64(False):
        found = (jax.jit(both) if compile_it else both)(values, np.float32(1e-5))
    area = 4 * np.pi * (ASTROPY.luminosity_distance(1.0).to_value(u.cm)) ** 2
    assert [number.dtype for number in found] == [np.float64, np.float64]
    np.testing.assert_allclose(found, [area * 1e-11 * 2.0**-0.5, area * 1e-5 / 2], rtol=1e-6)


def test_bolometric_k_correction_of_bursts():
    z = np.array([0.1, 2.0])
    values = {"alpha": -1.0, "beta": -2.3, "e_peak": np.array([200.0, 600.0]), "log10_flux": -6.0}
    bands = {"rest": (1.0, 1e4), "observed": (15.0, 150.0)}
    found, slope = jax.jit(
        lambda v, z: (
            k_correction(Band(), v, z, **bands),
            jax.jacfwd(lambda z: k_correction(Band(), v, z, **bands))(z),
        )
    )(values, z)

    def expected(z, i):
        one = {"alpha": -1.0, "beta": -2.3, "e_peak": values["e_peak"][i]}
        place = [1.3 * one["e_peak"]]
        rest, observed = (
            reference(lambda E: band(E, **one), a, b, 1, place)
            for a, b in ((1 / (1 + z), 1e4 / (1 + z)), (15.0, 150.0))
        )
        return rest / observed

    for i, redshift in enumerate(z):
        assert float(found[i]) == pytest.approx(expected(redshift, i), rel=1e-11)
        rise = (expected(redshift + 1e-4, i) - expected(redshift - 1e-4, i)) / 2e-4
        assert float(slope[i, i]) == pytest.approx(rise, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v: energy_flux(PowerLaw(), v, 10.0, 0.3), "band: expected two energies"),
        (lambda v: energy_flux(PowerLaw(), {}, 0.3, 10.0), "expected a value of 'photon_index'; found none"),
        (lambda v: photon_flux(Absorption(), v, 0.3, 10.0), "expected a model with an additive component"),
        (lambda v: k_correction(PowerLaw(), v, 1.0, rest=(0.0, 1.0), observed=(1.0, 2.0)), "rest: expected two"),
        (lambda v: k_correction(PowerLaw(), v, 1.0, rest=(1.0, 2.0), observed=(2.0, 2.0)), "observed: expected two"),
        (lambda v: luminosity(PowerLaw(), v, 1.0, FLAT, rest=(2.0, 1.0)), "rest: expected two"),
    ],
)
def test_errors_say_what_was_expected_and_found(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong({"photon_index": 2.0, "log10_flux": -11.0})


def test_equivalent_widths_are_integrals_of_line_over_continuum():
    continuum = PowerLaw(norm="amplitude") + BlackBody("hot", norm="amplitude")
    spectrum = (continuum + GaussianLine("fe", z=0.1)) * Absorption() + GaussianLine("o")
    values = {"photon_index": 1.7, "log10_amplitude": -3.0, "hot_kT": 0.3, "hot_log10_amplitude": -0.5, "nh": 0.3}
    values |= {"fe_energy": 6.4, "fe_sigma": np.array([0.0, 0.05, 0.6]), "fe_log10_amplitude": -5.0}
    values |= {"o_energy": 1.1, "o_sigma": 0.02, "o_log10_amplitude": -4.0}
    width = equivalent_width(spectrum, values, "fe")
    density = continuum.on(np.array([6.4 / 1.1]))({n: v for n, v in values.items() if n in continuum.parameters})
    assert float(width[0]) == pytest.approx(1e-5 / 1.1 / float(density[0]), rel=1e-5)
    for sigma, found in zip(values["fe_sigma"][1:], width[1:], strict=True):

        def ratio(energy, sigma=sigma):
            line = 1e-5 / 1.1 * np.exp(-0.5 * ((energy * 1.1 - 6.4) / sigma) ** 2) / (sigma / 1.1 * np.sqrt(2 * np.pi))
            kev = 1.0344e-3 * 10**-0.5 * energy**2 / np.expm1(energy / 0.3)
            return line / (1e-3 * energy**-1.7 + kev)

        exact = integrate.quad(ratio, 6.4 / 1.1 - 8 * sigma, 6.4 / 1.1 + 8 * sigma, epsabs=0, points=[6.4 / 1.1])[0]
        assert float(found) == pytest.approx(exact, rel=2e-6)
    # Absorbed continuum, unabsorbed line.
    at = np.linspace(0.95, 1.25, 20001)
    line = 1e-4 * np.exp(-0.5 * ((at - 1.1) / 0.02) ** 2) / (0.02 * np.sqrt(2 * np.pi))
    with jax.enable_x64(True):
        absorbed = np.asarray((continuum * Absorption()).on(at)(values))
    assert float(equivalent_width(spectrum, values, "o")[1]) == pytest.approx(
        np.trapezoid(line / absorbed, at), rel=1e-4
    )


@pytest.mark.parametrize(
    ("spectrum", "line", "words"),
    [(GaussianLine("fe"), "fe", "expected a continuum"), (PowerLaw() + GaussianLine("fe"), "fee", "'fee'.*fe")],
)
def test_equivalent_widths_need_a_line_and_a_continuum(spectrum, line, words):
    values = {"photon_index": 2.0, "log10_flux": -11.0, "fe_energy": 6.4, "fe_sigma": 0.0, "fe_log10_amplitude": -5.0}
    with pytest.raises(ValueError, match=words):
        equivalent_width(spectrum, values, line)
