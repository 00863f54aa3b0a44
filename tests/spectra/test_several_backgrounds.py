"""Several background regions of one spectrum, which are added."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import poisson
from small_ogip import NUM_CHANNELS, small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax.data import read_grouped_spectra
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import read_spectrum, write_arf, write_pha, write_rmf
from hbm_jax.spectra.folding.spectrum import summed_background
from hbm_jax.spectra.statistics.statistic import prepare
from hbm_jax.validation import DataError

NAMES = "left.pha + right.pha"


@pytest.fixture(scope="module")
def regions():
    """Two regions that differ in exposure, size and area."""
    areas = np.linspace(0.8, 1.2, NUM_CHANNELS)
    return (
        small_spectrum(seed=3, name="left", backscal=np.full(NUM_CHANNELS, 0.05), exposure=2000.0),
        small_spectrum(seed=4, name="right", backscal=np.full(NUM_CHANNELS, 0.02), exposure=900.0, areascal=areas),
    )


@pytest.fixture(scope="module")
def folder(regions, tmp_path_factory):
    """Files of the source, of both regions and of the response."""
    folder = tmp_path_factory.mktemp("regions")
    write_rmf(folder / "small.rmf", small_rmf())
    write_arf(folder / "small.arf", small_arf())
    write_pha(folder / "source.pha", small_observation(), rmf="small.rmf", arf="small.arf")
    for region in regions:
        write_pha(folder / f"{region.name}.pha", region)
    return folder


@pytest.fixture
def ratios(regions):
    """Ratio of each region to the source region."""
    return [dataclasses.replace(small_observation(), background=region).background_ratio for region in regions]


def of_files(folder, names):
    """Return the names with the folder before each."""
    return " + ".join(str(folder / name) for name in names.split(" + "))


def test_counts_and_ratios_are_sums(folder, regions, ratios):
    spectrum = read_spectrum(folder / "source.pha", background=of_files(folder, NAMES))
    np.testing.assert_array_equal(spectrum.background.counts, regions[0].counts + regions[1].counts)
    np.testing.assert_allclose(spectrum.background_ratio, ratios[0] + ratios[1], rtol=1e-6)  # files of 32 bits
    assert summed_background(regions[:1]) is regions[0]


def test_w_is_the_profile_over_one_background_of_both_regions(regions, ratios):
    spectrum = dataclasses.replace(small_observation(), background=summed_background(regions))
    expected = np.array([0.5, 7.0])

    def plain(mu, channel):
        """Largest log likelihood of the counts of all regions."""

        def minus_log_likelihood(log_background):
            background = np.exp(log_background)
            pairs = [(spectrum.counts, mu + background)]
            pairs += [
                (region.counts, ratio[channel] * background) for region, ratio in zip(regions, ratios, strict=True)
            ]
            return -sum(poisson.logpmf(counts[channel], mean) for counts, mean in pairs)

        return -minimize_scalar(
            minus_log_likelihood, bounds=(-12.0, 6.0), method="bounded", options={"xatol": 1e-9}
        ).fun

    data = {"background": spectrum.background.counts, "ratio": spectrum.background_ratio}
    w = [np.asarray(prepare("wstat", spectrum.counts, **data).deviance(np.full(NUM_CHANNELS, mu))) for mu in expected]
    for channel in range(NUM_CHANNELS):
        rise = -2.0 * (plain(expected[1], channel) - plain(expected[0], channel))
        assert w[1][channel] - w[0][channel] == pytest.approx(rise, abs=2e-5)


def test_a_model_of_the_background_has_the_likelihood_of_all_regions(folder, regions, ratios):
    """Up to a constant: the sum of Poisson counts with one rate has all the information of the rate."""
    data = read_grouped_spectra(
        folder / "source.pha", background=of_files(folder, NAMES), background_response="rmf", energies=None,
        grouping="none",
    )  # fmt: skip
    model = SpectralFit("powerlaw", background_spectrum="powerlaw(bkg)")
    log_likelihoods, plain = [], []
    total = ratios[0] + ratios[1]
    for log10_amplitude in (-2.0, -1.6):
        values = {"photon_index": 1.5, "log10_amplitude": -3.0, "bkg_photon_index": 1.0}
        values["bkg_log10_amplitude"] = log10_amplitude
        source, background = model.expected(data, values)
        both = np.asarray(data.counts)
        log_likelihoods.append(poisson.logpmf(both[0], source).sum() + poisson.logpmf(both[1], background).sum())
        plain.append(
            poisson.logpmf(small_observation().counts, source).sum()
            + sum(
                poisson.logpmf(region.counts, background * ratio / total).sum()
                for region, ratio in zip(regions, ratios, strict=True)
            )
        )
        deviances = model.deviance(data, values).total
        saturated = 2.0 * (poisson.logpmf(both[0], np.maximum(both[0], 1e-300)).sum())
        saturated += 2.0 * poisson.logpmf(both[1], np.maximum(both[1], 1e-300)).sum()
        assert deviances == pytest.approx(saturated - 2.0 * log_likelihoods[-1], rel=1e-6)
    assert log_likelihoods[1] - log_likelihoods[0] == pytest.approx(plain[1] - plain[0], rel=1e-5)


def test_gaussian_errors_are_added_in_quadrature(regions):
    errors = [
        dataclasses.replace(region, error=np.full(NUM_CHANNELS, size))
        for region, size in zip(regions, (3.0, 4.0), strict=True)
    ]
    np.testing.assert_allclose(summed_background(errors).error, 5.0)
    with pytest.raises(DataError, match="Gaussian errors only in right"):
        summed_background([regions[0], errors[1]])


def test_a_channel_that_is_bad_in_one_region_is_bad(regions):
    quality = np.zeros(NUM_CHANNELS, int)
    quality[4] = 1
    summed = summed_background([regions[0], dataclasses.replace(regions[1], quality=quality)])
    np.testing.assert_array_equal(summed.quality, quality)


def test_what_is_refused(folder, regions):
    with pytest.raises(DataError, match="expected different backgrounds to add"):
        read_spectrum(folder / "source.pha", background=of_files(folder, "left.pha + left.pha"))
    with pytest.raises(DataError, match="expected one background where it has a response of its own; found 2"):
        read_grouped_spectra(
            folder / "source.pha", background=of_files(folder, NAMES), background_response="own",
            background_rmf=str(folder / "small.rmf"),
        )  # fmt: skip
    with pytest.raises(DataError, match="right: expected the channels of left"):
        summed_background([regions[0], dataclasses.replace(regions[1], channels=regions[1].channels + 1)])
