"""Spectra of different sizes in one padded stack."""

import dataclasses

import jax
import numpy as np
import pytest
from small_ogip import NUM_CHANNELS, small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax.spectra import Response, SpectrumStack, group
from hbm_jax.spectra.statistics.statistic import prepare
from hbm_jax.validation import DataError

log_likelihood = jax.jit(lambda statistic, expected: statistic.log_likelihood(expected))


@pytest.fixture(scope="module")
def spectra():
    one = small_observation()
    other = dataclasses.replace(small_spectrum(seed=8), name="other", response=one.response, background=one.background)
    ground = Response.of(small_rmf(first=0), small_arf(seed=5))
    third = dataclasses.replace(small_spectrum(first=0, seed=9), name="third", response=ground)
    return [one, group(other, "channels_per_group", 3), third]


@pytest.fixture(scope="module")
def stack(spectra):
    return SpectrumStack.of(spectra)


def test_groups_hold_all_counts_and_padding_none(spectra, stack):
    assert len(stack) == 3
    np.testing.assert_array_equal(stack.used.sum(axis=1), [NUM_CHANNELS, 4, NUM_CHANNELS])
    for row, spectrum in enumerate(spectra):
        assert stack.counts[row].sum() == spectrum.counts.sum()
        assert not stack.counts[row][~stack.used[row]].any()
    np.testing.assert_array_equal(stack.counts[1, :4], spectra[1].counts.reshape(4, 3).sum(axis=1))
    assert stack.responses[0] is stack.responses[1]
    np.testing.assert_array_equal(stack.has_background, [True, True, False])
    assert stack.default_statistic == "marginal"
    ratio = 2000.0 * 0.5 / (1234.5678901234 * 0.0123456789)
    np.testing.assert_allclose(stack.ratio[0], ratio, rtol=1e-12)


def test_a_grouped_response_is_the_sum_over_its_channels(spectra, stack):
    energy, found = stack.grouped_response(1)
    response = spectra[1].response
    dense = response.matrix.toarray() * spectra[1].exposure
    np.testing.assert_allclose(found, dense.reshape(len(dense), 4, 3).sum(axis=2), rtol=1e-12)
    np.testing.assert_array_equal(energy, response.energy)


@pytest.mark.parametrize("name", ["wstat", "marginal"])
def test_a_stack_has_the_likelihood_of_its_spectra(stack, name):
    expected = np.full(stack.counts.shape, 3.3)
    together = np.asarray(log_likelihood(stack.statistic(name), expected))
    assert not together[~stack.used].any()
    for row in range(3):
        used = stack.used[row]
        more = {"prior_mean": stack.background_mean[row][used]} if name == "marginal" else {}
        alone = prepare(name, stack.counts[row][used], stack.background[row][used], stack.ratio[row][used], **more)
        np.testing.assert_allclose(together[row][used], log_likelihood(alone, expected[row][used]), rtol=1e-9)


def test_parts_and_copies(stack):
    part = stack.subset([1])
    assert part.name == ("other",)
    assert part.counts.shape == (1, 4)
    np.testing.assert_array_equal(part.counts, stack.counts[1:2, :4])
    more = stack.replace_observations(stack.counts + stack.used)
    np.testing.assert_array_equal(more.counts - stack.counts, stack.used)
    again = SpectrumStack.from_dict(stack.to_dict())
    for key, value in stack.to_dict().items():
        np.testing.assert_array_equal(again.to_dict()[key], value, err_msg=key)
    assert again.responses[0].rmf is again.responses[1].rmf
    photons = np.arange(1.0, len(stack.responses[2].energy))
    np.testing.assert_array_equal(again.responses[2].fold(photons), stack.responses[2].fold(photons))


def test_errors_name_the_spectrum(spectra, stack):
    with pytest.raises(DataError, match="expected at least one; found none"):
        SpectrumStack.of([])
    with pytest.raises(DataError, match=r"small.*response"):
        SpectrumStack.of([dataclasses.replace(spectra[0], response=None)])
    with pytest.raises(DataError, match=r"expected an array of shape \(3, 12\); found \(2,\)"):
        stack.replace_observations([1, 2])
    wrong = stack.counts.copy()
    wrong[2, 3] = 0.5
    with pytest.raises(DataError, match=r"counts, third: expected whole numbers, 0 or more; found 0.5"):
        stack.replace_observations(wrong)
    with pytest.raises(ValueError, match=r"expected spectra without a background; found one in small"):
        stack.statistic("cstat")
