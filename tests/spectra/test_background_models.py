"""A model of the background fitted with the source: both regions against plain sums and a plain likelihood."""

import dataclasses

import jax
import numpy as np
import pytest
from numpyro import handlers
from scipy import optimize
from scipy.special import gammaln
from small_ogip import small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax import best_fit
from hbm_jax.data import read_grouped_spectra
from hbm_jax.models import SpectralFit
from hbm_jax.plotting.folded_draws import rows_of
from hbm_jax.plotting.xray.best_fit import best_fit_spectra, best_fit_unfolded
from hbm_jax.spectra import RegionStack, Response, SpectrumStack, write_arf, write_pha, write_rmf
from hbm_jax.validation import DataError

RESPONSE = Response.of(small_rmf(), small_arf())
BARE = Response.of(small_rmf())
TRUTH = {"photon_index": 1.7, "log10_amplitude": -2.5, "bkg_photon_index": 0.5, "bkg_log10_amplitude": -1.5}
MODEL = SpectralFit("powerlaw", background_spectrum="powerlaw(bkg)")


def photons(index, log10_amplitude):
    edges = RESPONSE.energy
    return 10**log10_amplitude * np.diff(edges ** (1 - index)) / (1 - index)


def mean(index, amplitude, bkg_index, bkg_amplitude, ratio, exposure, bkg_exposure):
    """Expected counts of both regions, written out."""
    background = bkg_exposure * BARE.fold(photons(bkg_index, bkg_amplitude))
    return exposure * RESPONSE.fold(photons(index, amplitude)) + background / ratio, background


@pytest.fixture(scope="module")
def observation():
    empty = small_observation()
    parts = float(empty.background_ratio[0]), empty.exposure, empty.background.exposure
    rng = np.random.default_rng(5)
    counts = [rng.poisson(region).astype(float) for region in mean(*TRUTH.values(), *parts)]
    background = small_spectrum(counts=counts[1], backscal=np.full(12, 0.5), exposure=2000.0)
    return small_spectrum(counts=counts[0], background=background, response=RESPONSE), parts


@pytest.fixture(scope="module")
def stack(observation):
    return RegionStack.separated([observation[0]])


@pytest.fixture(scope="module")
def best(stack):
    return best_fit(MODEL, stack, num_starts=2, num_simulations=20)


def test_both_regions_are_plain_sums(observation, stack):
    _, parts = observation
    np.testing.assert_allclose(MODEL.expected(stack, TRUTH), mean(*TRUTH.values(), *parts), rtol=1e-5)
    # With the response of the source, amplitudes are photons.
    full = RegionStack.separated([observation[0]], response="source")
    background = parts[2] * RESPONSE.fold(photons(0.5, -1.5))
    np.testing.assert_allclose(MODEL.expected(full, TRUTH)[1], background, rtol=1e-5)
    assert stack.name == ("small", "small, background")
    assert stack.statistic(None).name == "cstat"


def test_the_best_fit_is_that_of_a_plain_likelihood(observation, stack, best):
    spectrum, parts = observation
    counts = np.concatenate([spectrum.counts, spectrum.background.counts])

    def minus_log_likelihood(x):
        total = np.concatenate(mean(*x, *parts))
        return -(counts * np.log(total) - total - gammaln(counts + 1)).sum()

    found = optimize.minimize(minus_log_likelihood, list(TRUTH.values()), method="Nelder-Mead",
                              options={"xatol": 1e-8, "fatol": 1e-10, "maxfev": 4000})  # fmt: skip
    assert best.likelihood.log_likelihood == pytest.approx(-found.fun, abs=1e-4)
    value, std = best.likelihood.table["value"], best.likelihood.table["std"]
    assert (np.abs(value.to_numpy() - found.x) < 2e-2 * std.to_numpy()).all()
    assert best.deviance.degrees_of_freedom == 24 - 4
    assert best.goodness.p_value.shape == (2,)
    total = np.concatenate(mean(*value, *parts))
    table = best.spectra
    np.testing.assert_allclose(table["source"] + table["background"], total, rtol=1e-5)
    assert (table["source"].iloc[12:] == 0).all()


def test_the_figures_show_both_regions(stack, best):
    axes = best_fit_spectra(best).axes
    assert [axis.get_title() for axis in axes if axis.get_title()] == ["small", "small, background"]
    assert best_fit_unfolded(best).axes[0].get_title() == "small"
    assert rows_of(stack, None, 1, "test") == [0]


def test_untied_parameters_of_each_region(observation):
    spectra = [observation[0], small_spectrum(seed=9, response=RESPONSE), observation[0]]
    stack = RegionStack.separated(spectra)
    assert (len(stack), stack.num_sources, stack.source_row) == (5, 3, (0, 2))
    model = SpectralFit("powerlaw", background_spectrum="powerlaw(bkg)", calibration=True,
                        own=["log10_amplitude", "bkg_log10_amplitude"])  # fmt: skip
    values = TRUTH | {"log10_amplitude": np.array([-2.5, -2.0, -3.0]), "bkg_log10_amplitude": np.array([-1.5, -1.0])}
    values["calibration"] = np.array([1.1, 0.9])
    bound = model.prepare(stack)
    parts, exposure = observation[1], observation[0].exposure
    rows = [mean(1.7, -2.5, 0.5, -1.5, *parts), mean(1.7, -3.0 + np.log10(0.9), 0.5, -1.0, *parts)]
    lone = 1.1 * exposure * RESPONSE.fold(photons(1.7, -2.0))
    expected = [rows[0][0], lone, rows[1][0], rows[0][1], rows[1][1]]
    np.testing.assert_allclose(model.expected(bound, values), expected, rtol=1e-5)
    shapes = {n: np.shape(v) for n, v in values.items()}
    with jax.enable_x64(True):
        trace = handlers.trace(handlers.seed(model, 0)).get_trace(bound)
    assert {n: trace[n]["value"].shape for n in shapes} == shapes
    assert model.deviance(bound, values).degrees_of_freedom == 5 * 12 - (2 + 3 + 2 + 2)
    kept = stack.subset([2])
    assert (kept.name, kept.source_row) == (("small", "small, background"), (0,))
    assert stack.subset([0, 0]).source_row == (0, 1)
    with pytest.raises(DataError, match="expected indices below 3"):
        stack.subset([-1])


@pytest.mark.parametrize("own", [(), ("x_log10_amplitude",), ("x_energy", "x_log10_amplitude")])
def test_searches_start_at_lines_of_the_sources(observation, own):
    """A line in source regions, of which some have a background region."""
    stack = RegionStack.separated([observation[0], small_spectrum(seed=9, response=RESPONSE)])
    model = SpectralFit("powerlaw + gauss(x)", background_spectrum="powerlaw(bkg)", own=own, priors={"x_sigma": 0.05})
    values = TRUTH | {"x_energy": 3.0, "x_log10_amplitude": -3.0}
    values = {n: np.full(2, v) if n in own else np.asarray(v) for n, v in values.items()}
    with jax.enable_x64(True):
        bound = model.prepare(stack)
        starts = model.further_starts(bound, values, lambda values, constant: values)
    absent = model.deviance(bound, values | {"x_log10_amplitude": np.full(np.shape(values["x_log10_amplitude"]), -60)})
    assert starts
    for start in starts:
        assert {name: np.shape(value) for name, value in start.items()} == {n: np.shape(v) for n, v in values.items()}
        assert model.deviance(bound, start).total <= absent.total + 1e-6


def test_simulated_spectra_have_both_regions(stack):
    drawn, _ = MODEL.simulate(jax.random.key(1), stack, TRUTH)
    assert isinstance(drawn, RegionStack)
    expected = MODEL.expected(stack, TRUTH)
    np.testing.assert_array_less(np.abs(drawn.counts - expected), 6 * np.sqrt(expected) + 6)


def test_options_and_data_are_stored(stack):
    config = MODEL.to_config()
    assert SpectralFit(**config).to_config() == config
    again = SpectrumStack.from_dict(stack.to_dict())
    assert isinstance(again, RegionStack)
    np.testing.assert_array_equal(MODEL.expected(again, TRUTH), MODEL.expected(stack, TRUTH))
    assert again.source_row == stack.source_row


def test_what_is_refused(observation, stack):
    spectrum = observation[0]
    with pytest.raises(DataError, match="expected background regions; found none"):
        MODEL.prepare(SpectrumStack.of([spectrum]))
    with pytest.raises(DataError, match="expected a model of the background; found none"):
        SpectralFit("powerlaw").prepare(stack)
    with pytest.raises(DataError, match="expected a spectrum with a background"):
        RegionStack.separated([small_spectrum(response=RESPONSE)])
    with pytest.raises(DataError, match="background_response: expected 'rmf', 'source', 'own' or 'sky'; found"):
        RegionStack.separated([spectrum], response="arf")
    with pytest.raises(ValueError, match="found 'photon_index' in both"):
        SpectralFit("powerlaw", background_spectrum="powerlaw")


OTHER = Response.of(small_rmf(seed=7), small_arf(seed=8))


@pytest.mark.parametrize("kind", ["own", "sky"])
def test_a_background_with_a_response_of_its_own(observation, kind):
    spectrum, (ratio, exposure, background_exposure) = observation
    background = dataclasses.replace(spectrum.background, response=OTHER)
    stack = RegionStack.separated([dataclasses.replace(spectrum, background=background)], response=kind)
    in_background = background_exposure * OTHER.fold(photons(0.5, -2.0))
    scale = background.backscal[0] / spectrum.backscal[0]
    in_source = in_background / ratio if kind == "own" else exposure * RESPONSE.fold(photons(0.5, -2.0)) / scale
    values = TRUTH | {"bkg_log10_amplitude": -2.0}
    expected = [exposure * RESPONSE.fold(photons(1.7, -2.5)) + in_source, in_background]
    np.testing.assert_allclose(MODEL.expected(stack, values), expected, rtol=1e-5)
    restored = SpectrumStack.from_dict(stack.to_dict())
    np.testing.assert_array_equal(MODEL.expected(restored, values), MODEL.expected(stack, values))
    np.testing.assert_array_equal(MODEL.expected(stack.subset([0]), values), MODEL.expected(stack, values))
    with pytest.raises(DataError, match="expected a response of the background region; found none"):
        RegionStack.separated([spectrum], response=kind)


def test_own_responses_are_read_from_the_header_of_the_background_or_from_options(observation, tmp_path):
    spectrum, _ = observation
    write_rmf(tmp_path / "a.rmf", small_rmf())
    write_rmf(tmp_path / "b.rmf", small_rmf(seed=7))
    write_arf(tmp_path / "a.arf", small_arf())
    write_arf(tmp_path / "b.arf", small_arf(seed=8))
    write_pha(tmp_path / "b.pha", spectrum.background, rmf="b.rmf", arf="b.arf")
    write_pha(tmp_path / "a.pha", spectrum, background="b.pha", rmf="a.rmf", arf="a.arf")
    options = {"energies": None, "grouping": "none", "background_response": "own"}
    stack = read_grouped_spectra(tmp_path / "a.pha", **options)
    np.testing.assert_allclose(stack.responses[1].matrix.toarray(), OTHER.matrix.toarray(), rtol=1e-12)
    np.testing.assert_allclose(stack.responses[0].matrix.toarray(), RESPONSE.matrix.toarray(), rtol=1e-12)
    files = {"background_rmf": str(tmp_path / "a.rmf"), "background_arf": "none"}
    with pytest.warns(UserWarning, match="there is no ARF for this redistribution matrix"):
        stack = read_grouped_spectra(tmp_path / "a.pha", **options, **files)
    np.testing.assert_allclose(stack.responses[1].matrix.toarray(), BARE.matrix.toarray(), rtol=1e-12)
    with pytest.raises(DataError, match="expected background_response 'own' or 'sky', for which they are used"):
        read_grouped_spectra(tmp_path / "a.pha", background_rmf="b.rmf")
