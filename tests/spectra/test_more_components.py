"""Components of XSPEC's list against independent integrals, at the limits of their domains, and folded."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from astropy.io import fits
from scipy import integrate, special
from small_ogip import small_rmf, small_spectrum

from hbm_jax.absorption import neutral_cross_section
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import Response, SpectrumStack, Wabs, energy_flux, photons
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.spectra.model.thermal import gaunt_factor

KEV = 1.602176634e-9  # erg
ENERGY = np.array([0.31, 0.8, 1.0, 2.0, 3.3, 10.0, 20.0])


def disk(E, kT):
    def one(w):
        pieces = ((0, 1), (1, 10), (10, 60))
        return sum(
            integrate.quad(lambda u: u ** (5 / 3) * np.exp(-u) / -np.expm1(-u), w + a, w + b, epsabs=0)[0]
            for a, b in pieces
        )

    return 1.03878e-3 * 8 / 3 * E**2 * np.array([w ** (-8 / 3) * one(w) for w in E / kT])


def bremsstrahlung(E, kT):
    """With Elwert's factor in the velocities, over the energy of the electron after the emission."""

    def gaunt(energy, charge):
        u, gamma2 = energy / kT, charge**2 * 0.0136057 / kT

        def integrand(root):
            before, after = np.sqrt(root**2 + u), root
            elwert = before / after * np.expm1(-2 * np.pi * np.sqrt(gamma2) / before)
            elwert /= np.expm1(-2 * np.pi * np.sqrt(gamma2) / after)
            return 2 * root * np.exp(-(root**2)) * elwert * np.log((before + after) ** 2 / u)

        return np.sqrt(3) / np.pi * integrate.quad(integrand, 1e-12, 7.0, epsabs=0, epsrel=1e-11)[0]

    total = np.array([gaunt(energy, 1) + 0.34 * gaunt(energy, 2) for energy in E])
    return total * np.exp(-E / kT) / (E * np.sqrt(kT))


def sigma_phabs(E):
    return np.asarray(neutral_cross_section(E, model="phabs"))


# Name of XSPEC, formula, values of the parameters.
CASES = {
    "bbody": (lambda E, kT: 8.0525 * E**2 / kT**4 * np.exp(-E / kT) / -np.expm1(-E / kT), {"kT": 0.7}),
    "diskbb": (disk, {"kT": 1.1}),
    "bremss": (bremsstrahlung, {"kT": 2.3}),
    "zpowerlw(z=1.5)": (lambda E, photon_index: (2.5 * E) ** -photon_index, {"photon_index": 1.8}),
    "logpar(pivot=2.0)": (
        lambda E, alpha, beta: (E / 2) ** -(alpha + beta * np.log10(E / 2)),
        {"alpha": 1.5, "beta": 0.4},
    ),
    "highecut": (lambda E, e_cut, e_fold: np.exp(np.minimum(e_cut - E, 0) / e_fold), {"e_cut": 3.0, "e_fold": 8.0}),
    "expabs": (lambda E, e_cut: np.exp(-e_cut / E), {"e_cut": 0.6}),
    "pcfabs": (
        lambda E, nh, fraction: 1 - fraction + fraction * np.exp(-nh * sigma_phabs(E)),
        {"nh": 3.0, "fraction": 0.6},
    ),
    "zpcfabs(z=0.5)": (
        lambda E, nh, fraction: 1 - fraction + fraction * np.exp(-nh * sigma_phabs(1.5 * E)),
        {"nh": 3.0, "fraction": 0.6},
    ),
    "edge": (
        lambda E, energy, max_tau: np.where(energy <= E, np.exp(-max_tau * (E / energy) ** -3), 1.0),
        {"energy": 1.0, "max_tau": 0.8},
    ),
    "gabs": (
        lambda E, energy, sigma, strength: np.exp(
            -strength / sigma / np.sqrt(2 * np.pi) * np.exp(-0.5 * ((E - energy) / sigma) ** 2)
        ),
        {"energy": 3.0, "sigma": 0.5, "strength": 0.9},
    ),
    "zgauss(z=0.5)": (
        lambda E, energy, sigma: np.exp(-0.5 * ((1.5 * E - energy) / sigma) ** 2) / sigma / np.sqrt(2 * np.pi),
        {"energy": 3.0, "sigma": 2.0},
    ),
}
SPECTRA = {name: spectrum_from_text(name) for name in CASES}


def with_norm(name, values):
    return values | ({"log10_amplitude": 0.5} if SPECTRA[name].kind == "additive" else {})


@pytest.fixture(scope="module")
def evaluated():
    """Values and derivatives of all components at once, by one program."""
    grids = {name: spectrum.on(ENERGY) for name, spectrum in SPECTRA.items()}
    call = jax.jit(lambda points: {n: (grids[n](v), jax.jacfwd(grids[n])(v)) for n, v in points.items()})
    return lambda points: {
        name: (np.asarray(value), {k: np.asarray(d) for k, d in slopes.items()})
        for name, (value, slopes) in call(
            {name: {k: jnp.asarray(v, float) for k, v in values.items()} for name, values in points.items()}
        ).items()
    }


def test_densities_and_their_derivatives_are_those_of_the_formulas(evaluated):
    found = evaluated({name: with_norm(name, values) for name, (_, values) in CASES.items()})
    for name, (formula, values) in CASES.items():
        scale = 10.0**0.5 if SPECTRA[name].kind == "additive" else 1.0
        density, slopes = found[name]
        np.testing.assert_allclose(density, scale * formula(ENERGY, **values), rtol=1e-8, err_msg=name)
        for parameter, value in values.items():
            if (name, parameter) == ("edge", "energy"):
                continue  # no derivative at E = 1, which is the edge
            step = 1e-4 * value
            up, down = (formula(ENERGY, **values | {parameter: value + sign * step}) for sign in (1, -1))
            expected = scale * (up - down) / (2 * step)
            atol = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(slopes[parameter], expected, rtol=2e-5, atol=atol, err_msg=f"{name} {parameter}")


def test_limits_of_the_domains_are_finite(evaluated):
    limits = {
        "bbody": [{"kT": 1e-3}, {"kT": 1e4}],
        "diskbb": [{"kT": 1e-3}, {"kT": 1e4}, {"kT": 1.0}],
        "bremss": [{"kT": 0.01}, {"kT": 1e3}],
        "zpowerlw(z=1.5)": [{"photon_index": -5.0}, {"photon_index": 10.0}],
        "logpar(pivot=2.0)": [{"alpha": -5.0, "beta": -5.0}, {"alpha": 5.0, "beta": 5.0}],
        "highecut": [{"e_cut": 1e-4, "e_fold": 1e-2}, {"e_cut": 1.0, "e_fold": 1e4}],
        "expabs": [{"e_cut": 0.0}, {"e_cut": 1e4}],
        "pcfabs": [{"nh": 1e5, "fraction": 1.0}, {"nh": 0.0, "fraction": 0.0}],
        "zpcfabs(z=0.5)": [{"nh": 1e5, "fraction": 1.0}, {"nh": 0.0, "fraction": 1.0}],
        "edge": [{"energy": 1.0, "max_tau": 0.0}, {"energy": 30.0, "max_tau": 1e5}, {"energy": 0.1, "max_tau": 1e5}],
        "gabs": [{"energy": 1.0, "sigma": 1e-4, "strength": 0.0}, {"energy": 1.0, "sigma": 1e-4, "strength": 100.0}],
        "zgauss(z=0.5)": [{"energy": 3.0, "sigma": 0.0}, {"energy": 1.5, "sigma": 100.0}],
    }
    for number in range(3):
        found = evaluated({name: with_norm(name, rows[number % len(rows)]) for name, rows in limits.items()})
        for name, (density, slopes) in found.items():
            assert np.isfinite(density).all(), (name, number, density)
            assert (density >= 0).all(), name
            assert all(np.isfinite(slope).all() for slope in slopes.values()), (name, number, slopes)


def test_gaunt_factors():
    u = np.array([1e-4, 0.03, 1.0, 20.0])
    born = [float(mpmath.sqrt(3) / mpmath.pi * mpmath.exp(x / 2) * mpmath.besselk(0, x / 2)) for x in u]
    # The polynomials of Kellogg, Baldwin & Koch 1975, fitted to exact factors, at (u, gamma^2).
    published = {(0.1, 0.01): 1.8880, (1.0, 0.01): 0.9698, (5.0, 0.01): 0.5231, (5.0, 0.1): 0.7444, (20.0, 0.1): 0.4522}
    points = np.concatenate([np.stack([u, np.full(4, 1e-16)]), np.transpose(list(published))], axis=1)
    found = np.asarray(jax.jit(gaunt_factor)(*points))
    np.testing.assert_allclose(found[:4], born, rtol=1e-7)
    np.testing.assert_allclose(found[4:], list(published.values()), rtol=5e-3)


def test_wabs_is_that_of_xspec(shared_data):
    table = fits.getdata(shared_data("xray/absorption/xsect_wabs_angr.fits"))
    energy, sigma = (table[name].astype(float) for name in ("ENERGY", "SIGMA"))
    edges = Wabs().discontinuities(0.03, 11.0)
    away = np.abs(np.log(energy[:, None] / edges)).min(axis=1) > 1e-3  # the table has averages over its bins
    low = away & (energy < 10.0)
    found = Wabs()._tables(energy)
    np.testing.assert_allclose(found[low], sigma[low], rtol=2e-5)
    np.testing.assert_allclose(found[energy > 10.0], sigma[energy > 10.0], rtol=1e-3)
    with pytest.raises(ValueError, match=r"expected energies above 0\.03 keV"):
        Wabs().on([0.02, 1.0])


def test_scaled_expressions_have_their_flux_and_luminosity_and_lines_a_redshift():
    scaled = spectrum_from_text("cflux(po + gauss(fe), x, band=(2, 10)) * wabs")
    values = {"x_log10_flux": -11.0, "photon_index": 1.7, "log10_amplitude": 1.0, "nh": 0.0}
    values |= {"fe_energy": 6.4, "fe_sigma": 0.05, "fe_log10_amplitude": 0.2}
    bright = spectrum_from_text("clumin(po, z=0.5, band=(2, 10))")
    line, parabola = spectrum_from_text("zgauss(z=1)"), spectrum_from_text("logpar(z=1, norm=(1, 10))")
    edges, bins = np.array([0.5, 1.0, 3.0]), np.geomspace(0.5, 10.0, 40)

    @jax.jit
    def every():
        return (
            energy_flux(scaled, values, 2.0, 10.0, unabsorbed=True),
            photons(scaled, edges)(values),
            energy_flux(bright, {"log10_luminosity": 44.0, "photon_index": 1.7, "log10_amplitude": 3.0}, 4 / 3, 20 / 3),
            photons(line, bins)({"energy": 6.4, "sigma": 0.1, "log10_amplitude": -4.0}),
            energy_flux(parabola, {"alpha": 1.5, "beta": 0.4, "log10_flux": -11.0}, 1.0, 10.0),
        )

    flux, in_bins, of_bright, of_line, of_parabola = (np.asarray(value) for value in every())
    assert flux == pytest.approx(1e-11, rel=1e-9)
    line_flux, continuum = 10**0.2 * 6.4, 10.0 * (10**0.3 - 2**0.3) / 0.3  # all of the line is in the band
    factor = 1e-11 / KEV / (line_flux + continuum)
    np.testing.assert_allclose(in_bins, factor * 10.0 * -np.diff(edges**-0.7) / 0.7, rtol=1e-8)
    distance = FlatLambdaCDM(70.0, 0.27).luminosity_distance(0.5).to_value("cm")
    assert of_bright == pytest.approx(1e44 / (4 * np.pi * distance**2), rel=1e-8)
    assert of_line.sum() == pytest.approx(0.5e-4, rel=1e-9)  # spread in time by the redshift
    assert 3.0 < bins[of_line.argmax()] < 3.4
    assert of_parabola == pytest.approx(1e-11, rel=1e-10)


@pytest.mark.long
def test_an_expression_of_many_is_folded_with_a_measured_error():
    stack = SpectrumStack.of([small_spectrum(response=Response.of(small_rmf()))])
    text = "cflux(diskbb, band=(0.5, 2)) * highecut(h) * pcfabs * gabs(g)"
    fixed = {"log10_amplitude": 0.0, "h_e_cut": 3.0, "h_e_fold": 5.0, "g_energy": 2.0, "g_sigma": 0.3}
    model = SpectralFit(text, priors=fixed | {"kT": "Uniform(0.5, 2)", "nh": "Uniform(0, 2)"})
    bound = model.prepare(stack)
    assert bound.errors.max() < 1e-3
    values = {"log10_flux": -9.0, "kT": 0.9, "nh": 1.0, "fraction": 0.7, "g_strength": 0.8}
    energy, matrix = stack.grouped_response(0)
    fine = np.concatenate([np.linspace(*pair, 2001)[:-1] for pair in itertools.pairwise(energy)])
    middle, width = fine + 0.5 * np.repeat(np.diff(energy) / 2000, 2000), np.repeat(np.diff(energy) / 2000, 2000)
    coarse = np.geomspace(0.09, 13.0, 4000)
    shape = np.interp(np.log(middle), np.log(coarse), np.log(disk(coarse, 0.9)))
    grid = np.linspace(np.log(0.5), np.log(2.0), 401)
    flux = KEV * integrate.simpson(
        np.exp(2 * grid + np.interp(grid, np.log(coarse), np.log(disk(coarse, 0.9)))), x=grid
    )
    formulas = {name: CASES[name][0] for name in ("highecut", "pcfabs", "gabs")}
    density = np.exp(shape) * 1e-9 / flux * formulas["highecut"](middle, 3.0, 5.0)
    density *= formulas["pcfabs"](middle, 1.0, 0.7) * formulas["gabs"](middle, 2.0, 0.3, 0.8)
    expected = (density * width).reshape(-1, 2000).sum(axis=1) @ matrix
    np.testing.assert_allclose(model.expected(bound, values)[0], expected, rtol=2e-3)


def test_smoothed_lines_and_continua():
    smoothed = spectrum_from_text("gsmooth(gauss(fe) + po, blur, index=1) * constant")
    assert list(smoothed.parameters)[:2] == ["blur_sigma", "fe_energy"]
    assert spectrum_from_text(spectrum_to_text(smoothed)) == smoothed
    values = {"fe_energy": 6.4, "fe_sigma": 0.1, "fe_log10_amplitude": -4.0, "photon_index": 0.0, "factor": 1.0}
    values |= {"log10_amplitude": -6.0}
    edges = np.linspace(5.0, 8.0, 61)
    found = jax.jit(photons(smoothed, edges))(values | {"blur_sigma": np.array([0.0, 0.15, 0.3])})
    for row, sigma in zip(np.asarray(found), (0.0, 0.15, 0.3), strict=True):
        width = np.hypot(0.1, sigma * 6.4 / 6.0)
        line = 1e-4 * np.diff(special.ndtr((edges - 6.4) / width))
        # The width of the smoothing changes across the line, and the bins that are smoothed are 0.4 % wide.
        np.testing.assert_allclose(row, line + 1e-6 * np.diff(edges), atol=0.03 * line.max())
        assert row.sum() == pytest.approx(line.sum() + 3e-6, rel=2e-3)
    with pytest.raises(ValueError, match="Give it a label"):
        spectrum_from_text("gsmooth(gauss)")


def test_names_are_abbreviated_and_errors_say_what_is_expected():
    assert spectrum_from_text("PO * Wabs") == spectrum_from_text("powerlaw * wabs")
    for text, words in (
        ("bb", "found 'bb', short for bbodyrad, bbody"),
        ("cflux * po", r"expected an additive expression in parentheses, as in cflux\(powerlaw\)"),
        ("cflux(wabs)", "expected an additive expression"),
        ("clumin(po)", "expected a redshift above 0, as in clumin"),
        ("cflux(po, band=(2, 1))", "band: expected two energies"),
        ("po(z=-2)", "expected a redshift above -1"),
        ("po + cflux(po)", "parameter 'photon_index' belongs to both"),
    ):
        with pytest.raises(ValueError, match=words):
            spectrum_from_text(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("tbabs(powerlaw)", "tbabs * powerlaw"),
        ("tbabs(po + gauss(fe))", "tbabs * (po + gauss(fe))"),
        ("tbabs(zphabs(host, z=1) * po)", "tbabs * zphabs(host, z=1) * po"),
        ("tbabs(mw) * po(a)", "Absorption('mw') * PowerLaw('a', norm='amplitude')"),
    ],
)
def test_a_factor_of_an_expression_is_read_as_in_xspec(text, same):
    """A single name that is not that of an additive component is a label."""
    assert spectrum_from_text(text) == spectrum_from_text(same)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tbabs * apec", r"'apec' is unknown: expected a table model for a thermal plasma, atable\('file.mod'\)"),
        ("atable(apec.mod)", "apec.mod is not a literal value; put names of files in quotation marks"),
        ("tbabs * atable{no file.mod}", "no file.mod: expected a table model; the file does not exist"),
        ("po + gauss", r"or in text, such as diskbb\(second\)"),
    ],
)
def test_names_of_xspec_that_are_not_components(text, message):
    with pytest.raises(ValueError, match=message):
        spectrum_from_text(text)
