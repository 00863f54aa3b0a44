"""Errors of the effective area: components against covariances, expected counts against changed areas, fits."""

import numpy as np
import pytest
from numpyro import handlers
from small_ogip import small_arf, small_rmf, small_spectrum

from hbm_jax import best_fit, maximum_likelihood
from hbm_jax.data import AfterglowPopulation, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow, SpectralFit
from hbm_jax.spectra import (
    AreaComponents,
    AreaErrors,
    Arf,
    Response,
    SpectrumStack,
    energy_flux,
    read_area_components,
)
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text
from hbm_jax.validation import DataError

ARF = small_arf()
BINS = ARF.energy
FREE = {"photon_index": 1.7, "log10_amplitude": -2.5}


def photons(index, amplitude):
    return amplitude * np.diff(BINS ** (1 - index)) / (1 - index)


@pytest.fixture(scope="module")
def stack():
    response = Response.of(small_rmf(), ARF)
    rate = response.fold(photons(1.7, 10**-2.5))
    counts = np.random.default_rng(4).poisson(1234.5678901234 * np.stack([rate, rate])).astype(float)
    return SpectrumStack.of([small_spectrum(counts=row, response=response) for row in counts])


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """A factor for each of two bands that meet at an edge of the bins."""
    path = tmp_path_factory.mktemp("area") / "bands.fits"
    return AreaComponents.of_bands([BINS[0], BINS[4], BINS[-1]], [0.1, 0.04]).write(path)


def areas(num=60):
    rng, middle = np.random.default_rng(3), np.sqrt(BINS[1:] * BINS[:-1])
    shapes = np.stack([np.ones(len(middle)), np.log(middle), (middle > 2.0) * 1.0])
    factor = 1.0 + 0.02 + rng.normal(0.0, [0.05, 0.03, 0.01], (num, 3)) @ shapes
    return [Arf(BINS, ARF.area * row, f"area {i}") for i, row in enumerate(factor)]


def test_components_have_the_covariance_of_the_areas(tmp_path):
    arfs = areas()
    relative = np.stack([arf.area / ARF.area for arf in arfs])
    pieces = AreaComponents.of(arfs, ARF, fraction=1.0)
    np.testing.assert_allclose(pieces.components.T @ pieces.components, np.cov(relative.T), atol=1e-12)
    np.testing.assert_allclose(pieces.deviation, relative.mean(axis=0) - 1.0, atol=1e-12)
    assert pieces.components.shape == (3, 8)  # the areas differ in three ways
    first = AreaComponents.of(arfs, ARF, num=1)
    assert first.components.shape == (1, 8)
    absolute = np.cov(np.stack([arf.area for arf in arfs]).T)
    assert first.explained == pytest.approx(np.linalg.eigvalsh(absolute)[-1] / np.trace(absolute), rel=1e-9)
    assert len(AreaComponents.of(arfs, ARF, fraction=first.explained).components) == 1
    again = read_area_components(pieces.write(tmp_path / "pieces.fits"))
    for name in ("energy", "components", "deviation"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pieces, name))
    assert (again.steps, again.explained) == (False, pytest.approx(1.0))


def test_expected_counts_are_those_of_a_changed_area(stack, bands):
    model = SpectralFit(f"powerlaw * AreaErrors('{bands}', small)")
    assert list(model.all_priors) == [*FREE, "small_area_1", "small_area_2"]
    values = FREE | {"small_area_1": 1.5, "small_area_2": -2.0}
    factor = np.where(np.arange(8) < 4, 1.15, 0.92)
    changed = Response.of(small_rmf(), Arf(BINS, ARF.area * factor))
    exact = 1234.5678901234 * changed.fold(photons(1.7, 10**-2.5))
    np.testing.assert_allclose(model.expected(stack, values), [exact, exact], rtol=1e-5)
    # Only the second spectrum has this instrument.
    second = SpectralFit(f"powerlaw * AreaErrors('{bands}', small, spectra=(1,))")
    plain = 1234.5678901234 * Response.of(small_rmf(), ARF).fold(photons(1.7, 10**-2.5))
    np.testing.assert_allclose(second.expected(stack, values), [plain, exact], rtol=1e-5)
    assert spectrum_from_text(spectrum_to_text(second.spectrum)) == second.spectrum
    assert float(energy_flux(second.spectrum, values, 0.5, 5.0)) == pytest.approx(
        float(energy_flux(spectrum_from_text("powerlaw"), FREE, 0.5, 5.0)), rel=1e-12
    )


def test_components_that_are_linear_between_bins(stack, tmp_path):
    pieces = AreaComponents.of(areas(), ARF)
    model = SpectralFit(f"powerlaw * AreaErrors('{pieces.write(tmp_path / 'pieces.fits')}')")
    bound = model.prepare(stack)
    assert bound.errors.max() < 1e-2
    amplitudes = {f"area_{k + 1}": a for k, a in enumerate((1.0, -0.5, 2.0)[: len(pieces.components)])}
    middle, fine = 0.5 * (BINS[1:] + BINS[:-1]), np.geomspace(BINS[0], BINS[-1], 8 * 4000 + 1)
    change = pieces.deviation + np.array(list(amplitudes.values())) @ pieces.components
    at = np.sqrt(fine[1:] * fine[:-1])
    density = 10**-2.5 * at**-1.7 * np.diff(fine) * (1.0 + np.interp(at, middle, change))
    in_bins = density.reshape(8, -1).sum(axis=1)
    exact = 1234.5678901234 * Response.of(small_rmf(), ARF).fold(in_bins)
    np.testing.assert_allclose(model.expected(bound, FREE | amplitudes)[0], exact, rtol=1e-4)


@pytest.mark.long
def test_errors_of_a_best_fit_include_those_of_the_area(stack, tmp_path):
    """A factor common to all energies adds its error to that of the flux in quadrature, and no degree of freedom."""
    path = AreaComponents.of_bands([0.01, 100.0], 0.1).write(tmp_path / "all.fits")
    options = {"num_starts": 2, "seed": 0, "errors": None}
    plain = maximum_likelihood(SpectralFit("powerlaw"), stack, **options)
    model = SpectralFit(f"powerlaw * AreaErrors('{path}')")
    with_area = maximum_likelihood(model, stack, **options)
    assert with_area.parameters["area_1"] == pytest.approx(0.0, abs=1e-4)
    std = [fit.table.loc["log10_amplitude", "std"] for fit in (plain, with_area)]
    assert std[1] ** 2 - std[0] ** 2 == pytest.approx((0.1 / np.log(10)) ** 2, rel=1e-4)
    assert with_area.table.loc["area_1", "std"] == pytest.approx(1.0, rel=1e-4)
    best = best_fit(model, stack, num_simulations=0, num_starts=1, bands=[(0.5, 2.0)])
    assert best.deviance.degrees_of_freedom == 24 - 2
    flux = best.fluxes.iloc[0]
    np.testing.assert_allclose(best.spectra["source"].iloc[:12], model.expected(stack, best.likelihood.parameters)[0])
    assert np.log(flux["upper"] / flux["value"]) > 0.1


def test_untied_amplitudes_keep_their_priors(stack, bands):
    model = SpectralFit(f"powerlaw * AreaErrors('{bands}')", own=["area_1"])
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(model.prepare(stack))
    assert trace["area_1"]["value"].shape == (2,)
    assert all(trace[name]["infer"].get("auxiliary") for name in ("area_1", "area_2"))


@pytest.mark.long
def test_the_sources_of_a_population_have_the_instrument_in_common(tmp_path):
    population = AfterglowPopulation(redshift=(0.4, 1.5), log10_flux=(-11.2, 0.1), exposure=3000.0, min_counts=0)
    folder = write_afterglows(tmp_path / "sample", population.draw(2, seed=4))
    data = read_afterglows(folder, spectra=tmp_path / "sample" / "spectra")
    path = AreaComponents.of_bands([0.01, 100.0], 0.1).write(tmp_path / "all.fits")
    model = Afterglow(spectrum=f"tbabs(mw) * ztbabs(host) * powerlaw * AreaErrors('{path}', xrt)")
    assert model.common == ("xrt_area_1",)
    bound = model.bind(data)
    values = {"photon_index_mean": 2.0, "log10_flux_mean": -11.0, "log10_nh_mean": -1.0}
    values |= {f"{name[:-5]}_std": 0.3 for name in list(values)}
    values |= {f"_{name}": np.zeros(2) for name in ("photon_index", "log10_flux", "log10_nh")}
    counts = []
    for amplitude in (0.0, 2.0):
        program = handlers.seed(handlers.substitute(model, values | {"xrt_area_1": amplitude}), 0)
        trace = handlers.trace(program).get_trace(bound)
        assert np.shape(trace["xrt_area_1"]["value"]) == ()
        counts.append(np.asarray(trace["counts"]["fn"].expected))
    np.testing.assert_allclose(counts[1], 1.2 * counts[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda path: AreaComponents.of(areas()[:1]), "at least two effective areas; found 1"),
        (lambda path: AreaComponents.of([ARF, ARF]), "areas that differ"),
        (lambda path: AreaComponents.of([ARF, Arf(2 * BINS, ARF.area)]), "expected the energy bins"),
        (lambda path: AreaComponents(BINS, np.ones((2, 3)), np.zeros(8)), r"\(num_components, 8\)"),
        (lambda path: AreaComponents.of(areas(), fraction=99), "fraction: expected a number above 0"),
        (lambda path: AreaComponents.of(areas(), num=0), "num: expected 1 or more"),
        (lambda path: AreaComponents.of_bands([1.0, 2.0, 3.0], [0.1] * 3), "each of 2 bands"),
        (lambda path: AreaComponents.of_bands([1.0, 2.0], np.nan), "0 or more"),
        (lambda path: AreaErrors(file=path / "none.fits"), "the file does not exist"),
    ],
)
def test_what_is_refused(build, words, tmp_path):
    with pytest.raises(DataError, match=words):
        build(tmp_path)


def test_spectra_must_exist(stack, bands):
    with pytest.raises(ValueError, match=r"indices of 2 spectra; found \(2,\)"):
        SpectralFit(f"powerlaw * AreaErrors('{bands}', spectra=(2,))").prepare(stack)
    for name in ("cflux", "gsmooth"):
        with pytest.raises(ValueError, match="errors of the instrument outside"):
            spectrum_from_text(f"{name}(powerlaw * AreaErrors('{bands}'), c)")
    with pytest.raises(ValueError, match="indices of spectra, from 0"):
        AreaErrors(file=bands, spectra=(-1,))
