"""Channels that are used and their groups: counts are never lost, thresholds are met, optimal widths the paper's."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import norm
from small_ogip import NUM_CHANNELS, small_observation, small_spectrum

from hbm_jax.spectra.folding.grouping import METHODS, fwhm, group, groups, noticed, optimal_widths
from hbm_jax.spectra.folding.response import Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.pha import read_pha, read_spectrum
from hbm_jax.spectra.ogip.writing import write_pha
from hbm_jax.validation import DataError

AMOUNTS = {"min_counts": 20, "min_signal_to_noise": 3.0, "channels_per_group": 7, "width": 0.11}


def gaussian_response(num=300, sigma=lambda energy: 4.0 + 0 * energy):
    """Channels of 0.02 keV from 0.5 keV and a Gaussian whose sigma [channels] is a function of the energy [keV]."""
    edges = 0.5 + 0.02 * np.arange(num + 1)
    middle = 0.5 * (edges[1:] + edges[:-1])
    width = np.broadcast_to(0.02 * sigma(middle), num)
    matrix = np.diff(norm.cdf((edges[None] - middle[:, None]) / width[:, None]), axis=1)
    rmf = Rmf(edges, sparse.csr_matrix(matrix), np.arange(num), edges[:-1], edges[1:])
    return Response.from_area(rmf, np.full(num, 50.0))


def random_spectrum(seed, num=300, mean=3.0, response=True):
    """Counts, a background of another exposure and scale, bad channels and groups, all by chance."""
    rng = np.random.default_rng(seed)

    def one(level, scale, **more):
        flags = np.where(rng.random(num) < 0.02, rng.integers(1, 6, num), 0)
        return Spectrum(
            name="random",
            counts=rng.poisson(level * rng.gamma(2.0, 0.5, num)).astype(float),
            channels=np.arange(num),
            exposure=float(rng.uniform(300, 600)),
            backscal=np.full(num, scale * rng.uniform(0.5, 1)),
            areascal=np.ones(num),
            quality=flags,
            grouping=rng.choice([1, -1, -1, 0], num),
            **more,
        )

    behind = one(0.3 * mean, 1.0)
    return one(mean, 0.5, background=behind, response=gaussian_response(num) if response else None)


def members(number):
    """Channels of each group."""
    return [np.flatnonzero(number == k) for k in range(number.max() + 1)]


RANGES = [None, (0.7, 6.0), [(0.6, 1.5), (2.0, 3.01), (3.5, 6.4)]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_groups_are_runs_of_used_channels_and_lose_no_counts(method, seed):
    spectrum = random_spectrum(seed, mean=[0.3, 3.0, 30.0, 0.0][seed])
    for energies in RANGES:
        used = noticed(spectrum, energies)
        grouped = group(spectrum, method, AMOUNTS.get(method), noticed=used)
        number = groups(grouped, used)
        assert grouped.counts is spectrum.counts
        np.testing.assert_array_equal(number >= 0, used)
        np.testing.assert_array_equal(grouped.grouping != 0, used)
        assert (np.diff(number[used]) >= 0).all()
        for k, channels in enumerate(members(number)):
            assert (np.diff(channels) == 1).all(), "a group is a run"
            assert grouped.grouping[channels[0]] == 1
            assert (grouped.grouping[channels[1:]] == -1).all()
            assert channels.size, k
        for counts in (spectrum.counts, spectrum.background.counts):
            sums = np.bincount(number[used], weights=counts[used])
            assert sums.sum() == counts[used].sum()
        # Grouping again by what the first left changes nothing.
        np.testing.assert_array_equal(group(grouped, "file", noticed=used).grouping, grouped.grouping)


@pytest.mark.parametrize("seed", range(6))
def test_least_counts_are_reached_and_not_overshot(seed):
    spectrum = random_spectrum(seed, mean=2.0)
    used = noticed(spectrum, RANGES[seed % 3])
    number = groups(group(spectrum, "min_counts", 15, noticed=used), used)
    every = members(number)
    ends_run = [channels[-1] + 1 == len(used) or not used[channels[-1] + 1] for channels in every]
    begins_run = [channels[0] == 0 or not used[channels[0] - 1] for channels in every]
    assert len(every) > 10
    for channels, ends, begins in zip(every, ends_run, begins_run, strict=True):
        counts = spectrum.counts[channels]
        if not (ends and begins):
            assert counts.sum() >= 15
        if not ends:
            assert counts[:-1].sum() < 15, "it stops as soon as it has enough"


@pytest.mark.parametrize("seed", range(6))
def test_least_signal_to_noise_is_reached_with_the_background_taken_off(seed):
    spectrum = random_spectrum(seed, mean=4.0)
    used = noticed(spectrum, RANGES[seed % 3])
    number = groups(group(spectrum, "min_signal_to_noise", 3.0, noticed=used), used)
    behind = spectrum.background
    ratio = behind.exposure * behind.backscal[0] / (spectrum.exposure * spectrum.backscal[0])

    def signal_to_noise(channels):
        n, b = spectrum.counts[channels].sum(), behind.counts[channels].sum()
        return (n - b / ratio) / max(math.sqrt(n + b / ratio**2), 1e-300)

    reached = 0
    for channels in members(number):
        ends = channels[-1] + 1 == len(used) or not used[channels[-1] + 1]
        if not ends:
            assert signal_to_noise(channels) >= 3.0 * (1 - 1e-12)
            assert all(signal_to_noise(channels[:k]) < 3.0 for k in range(1, len(channels)))
            reached += 1
    assert reached > 5


def test_gaussian_errors_count_in_the_signal_to_noise():
    spectrum = small_spectrum(counts=np.full(NUM_CHANNELS, 9.0))
    np.testing.assert_array_equal(groups(group(spectrum, "min_signal_to_noise", 3)), np.arange(NUM_CHANNELS))
    np.testing.assert_array_equal(groups(group(spectrum, "min_signal_to_noise", 3.1)), np.arange(NUM_CHANNELS) // 2)
    behind = small_spectrum(counts=np.zeros(NUM_CHANNELS), error=np.full(NUM_CHANNELS, 4.0))
    with_background = dataclasses.replace(spectrum, background=behind)
    # 9 / sqrt(9 + 16) = 1.8, and two of them 1.8 sqrt(2) = 2.55.
    number = groups(group(with_background, "min_signal_to_noise", 2.5))
    np.testing.assert_array_equal(number, np.arange(NUM_CHANNELS) // 2)
    errors = dataclasses.replace(spectrum, error=np.full(NUM_CHANNELS, 9.0))
    np.testing.assert_array_equal(groups(group(errors, "min_signal_to_noise", 1.4)), np.arange(NUM_CHANNELS) // 2)


def test_small_cases_by_hand():
    spectrum = small_spectrum(counts=np.array([0, 3, 1, 5, 0, 0, 4, 2, 9, 0, 1, 0.0]))
    expected = {
        ("none", None): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ("min_counts", 4): [0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 3],  # what is left joins the last
        ("min_counts", 25): [0] * 12,
        ("min_counts", 26): [0] * 12,  # the whole run has 25
        ("channels_per_group", 5): [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2],  # what is left is a smaller one
        ("channels_per_group", 12): [0] * 12,
        ("channels_per_group", 100): [0] * 12,
    }
    for (method, amount), number in expected.items():
        np.testing.assert_array_equal(groups(group(spectrum, method, amount)), number, err_msg=method)
    flagged = dataclasses.replace(spectrum, quality=np.array([2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1]))
    number = groups(group(flagged, "channels_per_group", 3))
    np.testing.assert_array_equal(number, [-1, 0, 0, 0, 1, -1, 2, 2, 2, 3, 3, -1])
    # As files say it: 0 is a channel alone, and a cut group keeps the rest.
    grouped = dataclasses.replace(flagged, grouping=np.array([1, -1, -1, 1, -1, -1, -1, 0, 0, 1, -1, -1]))
    np.testing.assert_array_equal(groups(grouped), [-1, 0, 0, 1, 1, -1, 2, 3, 4, 5, 5, -1])
    np.testing.assert_array_equal(groups(grouped, np.ones(12, bool)), [0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 4, 4])


def test_widths_in_energy():
    spectrum = random_spectrum(0)  # channels of 0.02 keV
    used = np.ones(300, bool)
    np.testing.assert_array_equal(groups(group(spectrum, "width", 0.1, noticed=used), used), np.arange(300) // 5)
    np.testing.assert_array_equal(groups(group(spectrum, "width", 0.11, noticed=used), used), np.arange(300) // 5)
    np.testing.assert_array_equal(groups(group(spectrum, "width", 0.001, noticed=used), used), np.arange(300))
    # Gratings number channels by wavelength: energies go down.
    rmf = spectrum.response.rmf
    falling = dataclasses.replace(rmf, e_min=rmf.e_min[::-1], e_max=rmf.e_max[::-1])
    turned = dataclasses.replace(spectrum, response=dataclasses.replace(spectrum.response, rmf=falling))
    np.testing.assert_array_equal(groups(group(turned, "width", 0.1, noticed=used), used), np.arange(300) // 5)


def test_channels_count_that_lie_wholly_within_a_range():
    spectrum = dataclasses.replace(random_spectrum(1), quality=np.zeros(300, int), background=None)
    low, high = spectrum.response.e_min, spectrum.response.e_max
    for energies in ((1.0, 2.0), (1.001, 1.999), (0.1, 100.0)):
        expected = (low >= energies[0] - 1e-9) & (high <= energies[1] + 1e-9)
        np.testing.assert_array_equal(noticed(spectrum, energies), expected)
        np.testing.assert_array_equal(noticed(spectrum, [energies]), expected)
    assert noticed(spectrum, (1.0, 2.0)).sum() == 50
    assert noticed(spectrum, (1.001, 1.999)).sum() == 48
    both = noticed(spectrum, [(1.0, 2.0), (3.0, 3.5)])
    np.testing.assert_array_equal(both, noticed(spectrum, (1.0, 2.0)) | noticed(spectrum, (3.0, 3.5)))
    # Single precision puts 0.3 keV at 0.30000001.
    rmf = spectrum.response.rmf
    single = dataclasses.replace(rmf, e_min=np.float64(np.float32(rmf.e_min)), e_max=np.float64(np.float32(rmf.e_max)))
    spectrum = dataclasses.replace(spectrum, response=dataclasses.replace(spectrum.response, rmf=single))
    assert all(noticed(spectrum, (0.02 * k, 0.02 * k + 0.2)).sum() == 10 for k in range(25, 200))


def test_bad_channels_are_left_out_unless_asked_for():
    spectrum = random_spectrum(2)
    good = (spectrum.quality == 0) & (spectrum.background.quality == 0)
    assert 0 < (~good).sum() < 50
    np.testing.assert_array_equal(noticed(spectrum), good)
    assert noticed(spectrum, keep_bad=True).all()
    wide = (0.1, 100.0)
    np.testing.assert_array_equal(noticed(spectrum, wide), good)
    assert noticed(spectrum, wide, keep_bad=True).all()


def paper(spectrum, used, width):
    """Kaastra & Bleeker 2016, equations of their summary, in a loop."""
    num_elements = sum(1 / width[c] for c in range(len(width)) if used[c])
    out = []
    for c in range(len(width)):
        total = 0.0
        for other in range(len(width)):
            if used[other]:  # the part of the channel that is within half a width
                part = min(other + 0.5, c + width[c] / 2) - max(other - 0.5, c - width[c] / 2)
                total += spectrum.counts[other] * max(part, 0.0)
        x = math.log(max(total * (1 + 0.2 * math.log(num_elements)), 1e-300))
        relative = 1.0 if x <= 2.119 else (0.08 + 7.0 / x + 1.8 / x**2) / (1 + 5.9 / x)
        out.append(max(relative * width[c], 1.0))
    return np.array(out)


@pytest.mark.parametrize("mean", [0.1, 3.0, 3000.0])
def test_optimal_widths_are_those_of_the_paper(mean):
    def sigma(energy):
        return 2.0 + energy

    spectrum = dataclasses.replace(random_spectrum(3, mean=mean), response=gaussian_response(sigma=sigma))
    middle = 0.5 * (spectrum.response.e_min + spectrum.response.e_max)
    exact = math.sqrt(8 * math.log(2)) * sigma(middle)
    width = fwhm(spectrum.response)
    inner = (middle > 1.0) & (middle < 5.8)  # whole peaks
    # Channels of 0.2 sigma or more blur the peak, and straight lines cut its slopes.
    assert np.abs(width / exact - 1)[inner].max() < 0.03
    used = noticed(spectrum, (0.6, 6.3))
    expected = paper(spectrum, used, width)
    np.testing.assert_allclose(optimal_widths(spectrum, used), expected, rtol=1e-12)
    number = groups(group(spectrum, "optimal", noticed=used), used)
    every = members(number)
    for channels, after in zip(every, [*every[1:], None], strict=True):
        assert len(channels) <= max(expected[channels].min(), 1)
        if after is not None and after[0] == channels[-1] + 1:  # and one channel more would be too many
            assert len(channels) + 1 > expected[[*channels, after[0]]].min() * (1 - 1e-5)


def test_optimal_groups_are_finer_where_there_are_more_counts():
    nums = []
    for mean in (0.02, 1.0, 100.0, 1e6):
        spectrum = random_spectrum(5, mean=mean)
        used = np.ones(300, bool)
        relative = optimal_widths(spectrum, used) / fwhm(spectrum.response)
        assert (relative <= 1).all()
        nums.append(groups(group(spectrum, "optimal", noticed=used), used).max() + 1)
    assert nums == sorted(set(nums))
    # 300 channels of a width of 9.4: 9 channels a group with few counts. Ever so many counts do not make it below 0.08.
    assert nums[0] == pytest.approx(300 / 9, abs=2)
    assert nums[-1] > 2.5 * nums[0]
    # The limits of the fit: x = 2.119 gives 1, and where it begins there is no jump.
    x = 2.119
    assert (0.08 + 7.0 / x + 1.8 / x**2) / (1 + 5.9 / x) == pytest.approx(1.0, abs=2e-4)


def test_widths_of_real_responses(shared_data):
    spectrum = read_spectrum(shared_data("xray/chandra_3c273/3c273.pi"))
    response, width = spectrum.response, fwhm(spectrum.response)
    matrix = response.matrix.toarray()
    for channel in range(40, 600, 40):
        energy = 0.5 * (response.e_min[channel] + response.e_max[channel])
        (row,) = np.flatnonzero((response.energy[:-1] <= energy) & (response.energy[1:] > energy))
        above = matrix[row] > 0.5 * matrix[row].max()
        assert abs(above.sum() - width[channel]) <= 1.0
        assert above[channel]
    used = noticed(spectrum, (0.3, 7.0))
    number = groups(group(spectrum, "optimal", noticed=used), used)
    assert 40 < number.max() + 1 < 200


def test_published_groups_of_files(shared_data):
    (spectrum,) = read_pha(shared_data("xray/chandra_3c273/3c273.pi"))
    number = groups(spectrum)
    assert number.max() + 1 == 46
    assert np.bincount(number, weights=spectrum.counts).sum() == 736
    # Grouped to 15 counts at least; the last one is what was left.
    assert np.bincount(number, weights=spectrum.counts)[:-1].min() >= 15
    (spectrum,) = read_pha(shared_data("xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits"))
    number = groups(spectrum)
    assert (number >= 0).sum() == (spectrum.quality == 0).sum() == 2980


def test_new_groups_are_written_and_read(tmp_path):
    spectrum = small_observation()
    used = noticed(spectrum, (0.3, 8.0))
    grouped = group(spectrum, "min_counts", 10, noticed=used)
    (found,) = read_pha(write_pha(tmp_path / "a.pha", grouped))
    np.testing.assert_array_equal(groups(found, used), groups(grouped, used))


def test_what_makes_no_sense_is_refused():
    spectrum = random_spectrum(0)
    bare = dataclasses.replace(spectrum, response=None)
    for method, amount, expected in (
        ("mincounts", 5, r"unknown method of grouping 'mincounts' \(did you mean 'min_counts'\?\)"),
        ("min_counts", None, "expected the minimum counts per group, 1 or more; found None"),
        ("min_counts", 0, "1 or more; found 0"),
        ("min_counts", 0.5, "1 or more; found 0.5"),
        ("min_counts", np.nan, "found nan"),
        ("min_counts", "20", "found 20"),
        ("min_counts", True, "found True"),
        ("min_signal_to_noise", 0.0, "above 0; found 0.0"),
        ("channels_per_group", 2.5, "a whole number of 1 or more; found 2.5"),
        ("width", -1.0, r"width of a group \[keV\], above 0; found -1.0"),
        ("optimal", 5, "expected no amount; found 5"),
    ):
        with pytest.raises(DataError, match=expected):
            group(spectrum, method, amount)
    for method, amount in (("optimal", None), ("width", 0.1)):
        with pytest.raises(DataError, match=r"random: expected a response, for .*; found none"):
            group(bare, method, amount)
    with pytest.raises(DataError, match="expected a response, for ranges of energy; found none"):
        noticed(bare, (0.3, 10))
    with pytest.raises(DataError, match=r"entirely within 20 to 30 keV; found none \(channels cover 0.5 to 6.5 keV\)"):
        noticed(spectrum, [(1, 2), (20, 30)])
    with pytest.raises(DataError, match=r"entirely within 1.001 to 1.019 keV"):
        noticed(spectrum, (1.001, 1.019))
    for energies in ((2, 1), (1, 1), (1,), (1, 2, 3), [], "soft", [(1, 2), (3,)], (np.nan, 2), 5.0):
        with pytest.raises(DataError, match=r"energies: expected \(low, high\) in keV"):
            noticed(spectrum, energies)
    with pytest.raises(DataError, match="expected good channels; found QUALITY other than 0 in all 300"):
        noticed(dataclasses.replace(spectrum, quality=np.ones(300, int)))
    for mask in (np.zeros(300, bool), np.ones(299, bool), np.ones(300), 3):
        with pytest.raises(DataError, match="noticed: expected a mask of 300 channels"):
            groups(spectrum, mask)
        with pytest.raises(DataError, match="noticed: expected a mask of 300 channels"):
            group(spectrum, "none", noticed=mask)
