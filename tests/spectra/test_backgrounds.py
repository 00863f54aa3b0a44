"""Which background belongs to a spectrum, and which statistic to a background."""

import dataclasses

import jax
import numpy as np
import pytest
from astropy.io import fits
from monte_carlo import seed
from small_ogip import NUM_CHANNELS, small_observation, small_spectrum

from hbm_jax.data import read_grouped_spectra
from hbm_jax.inference import maximum_likelihood
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import SpectrumStack, group, noticed, read_pha, read_spectra, read_spectrum, write_pha
from hbm_jax.spectra.ogip.type2 import write_pha2
from hbm_jax.spectra.statistics.statistic import prepare
from hbm_jax.validation import DataError, DataWarning

log_likelihood = jax.jit(lambda statistic, expected: statistic.log_likelihood(expected))


def in_one_file(path, **classes):
    """Write spectra of the classes given into one file that names itself as background."""
    hdus = [fits.PrimaryHDU()]
    for number, (kind, spectrum) in enumerate(classes.items()):
        write_pha(path, spectrum, background=path.name, overwrite=True)
        with fits.open(path) as written:
            hdus.append(written["SPECTRUM"].copy())
        hdus[-1].header.update(HDUCLAS2=kind, EXTVER=number + 1)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def test_a_file_with_source_and_background_is_told_apart(tmp_path):
    source, behind = small_spectrum(seed=3), small_spectrum(seed=4, exposure=99.0)
    path = tmp_path / "a.pha"
    for classes in ({"TOTAL": source, "BKG": behind}, {"BKG": behind, "TOTAL": source}):
        found = read_spectrum(in_one_file(path, **classes))
        np.testing.assert_array_equal(found.counts, source.counts)
        np.testing.assert_array_equal(found.background.counts, behind.counts)
        assert (found.exposure, found.background.exposure) == (source.exposure, 99.0)
    with pytest.raises(DataError, match=r"a\.pha, BACKFILE: .*HDUCLAS2 = BKG.* found the file itself"):
        read_spectrum(in_one_file(path, TOTAL=source))
    assert read_spectrum(path, background="none").background is None
    with pytest.raises(DataError, match="found the file itself"):
        read_spectrum(path, background=path)


@pytest.mark.long
def test_a_source_of_the_chandra_catalogue(shared_data):
    stack = read_grouped_spectra(
        shared_data("xray/chandra_csc_1575/acisf01575_001N001_r0085_pha3.fits.gz"), energies=(0.5, 7.0)
    )
    ratio = 5.3813243392845e-05 / 2.2426552620567e-06
    assert stack.counts.sum() == 828
    assert stack.background.sum() < 828
    np.testing.assert_allclose(stack.ratio[0], ratio, rtol=1e-12)
    found = maximum_likelihood(SpectralFit("powerlaw * tbabs"), stack, errors=None, num_starts=2)
    assert found.parameters["photon_index"] == pytest.approx(1.599, abs=2e-3)
    assert found.parameters["log10_amplitude"] == pytest.approx(-4.43, abs=5e-3)


@pytest.mark.long
def test_a_background_with_errors_has_its_statistic(shared_data):
    files = {
        key: shared_data(f"xray/hxmt_he/P011160506306_HE_{name}.fits")
        for key, name in (("source", "TOTAL"), ("background", "BKG"), ("rmf", "RSP"))
    }
    stack = read_grouped_spectra(**files, arf="none", energies=(30.0, 200.0))
    for name in ("wstat", "chi2_data", "chi2_gehrels", "chi2_model", "cstat"):
        with pytest.raises(ValueError, match=rf"{name}: expected .*TOTAL\.fits\. Use "):
            stack.statistic(name)
    model = SpectralFit("powerlaw")
    found = maximum_likelihood(model, stack, errors=None, num_starts=2)
    deviance = model.deviance(stack, found.parameters)
    assert found.parameters["photon_index"] == pytest.approx(2.099, abs=1e-3)
    assert deviance.total == pytest.approx(30.3, abs=0.1)
    assert model.num_data(stack) == 25
    # With the background integrated out, 10^5 counts or so give the same photon index.
    integrated = maximum_likelihood(SpectralFit("powerlaw", statistic="marginal"), stack, errors=None, num_starts=2)
    assert integrated.parameters["photon_index"] == pytest.approx(found.parameters["photon_index"], abs=5e-3)
    statistic = stack.statistic("marginal")
    assert statistic.shape is None
    expected = stack.expected_background(np.ones(stack.counts.shape), statistic)
    np.testing.assert_allclose(expected, stack.background / stack.ratio, rtol=1e-6)  # far above 0


@pytest.fixture(scope="module")
def mixed():
    """Spectra with a Poisson background, one with errors, and none."""
    poisson = small_observation()
    counts = poisson.background.counts
    gaussian = dataclasses.replace(
        poisson, name="gaussian", background=dataclasses.replace(poisson.background, error=np.sqrt(counts + 1.0))
    )
    return SpectrumStack.of([poisson, gaussian, dataclasses.replace(poisson, background=None)])


@pytest.mark.parametrize(("name", "other"), [(None, "marginal"), ("wstat", "wstat"), ("pgstat", "marginal")])
def test_in_a_joint_fit_every_spectrum_keeps_the_statistic_that_suits_it(mixed, name, other):
    assert mixed.default_statistic == "pgstat and marginal"
    joint = mixed.statistic(name)
    assert joint.name == f"pgstat and {other}"
    expected = np.full(mixed.counts.shape, 3.3)
    together = np.asarray(log_likelihood(joint, expected))
    behind, ratio, error = mixed.background, mixed.ratio, mixed.background_error
    more = {"prior_mean": mixed.background_mean[0]} if other == "marginal" else {}
    first = prepare(other, mixed.counts[0], behind[0], ratio[0], **more)
    second = prepare("pgstat", mixed.counts[1], behind[1], ratio[1], error[1])
    third = prepare("cstat", mixed.counts[2])
    for row, one in enumerate((first, second, third)):
        np.testing.assert_allclose(together[row], log_likelihood(one, expected[row]), rtol=1e-9)
    moved = np.asarray(joint.with_counts(mixed.counts + 1.0).counts)
    np.testing.assert_array_equal(moved, mixed.counts + 1.0)


@pytest.mark.long
def test_a_joint_statistic_draws_and_knows_its_backgrounds(mixed):
    joint = mixed.statistic()
    mean, variance = (np.asarray(moment) for moment in joint.background_moments())
    share = (mixed.ratio[:, :1] != 1e12) / mixed.ratio
    np.testing.assert_allclose(mean, share * mixed.background, rtol=1e-12)
    np.testing.assert_allclose(variance[0], share[0] ** 2 * mixed.background[0], rtol=1e-12)
    np.testing.assert_allclose(variance[1], (share[1] * mixed.background_error[1]) ** 2, rtol=1e-12)
    assert not variance[2].any()
    expected = np.full(mixed.counts.shape, 400.0)
    drawn = jax.jit(lambda statistic, key: statistic.draw(key, expected))(joint, jax.random.key(seed(3)))
    counts = np.asarray(drawn.counts)
    assert (counts % 1 == 0).all()
    total = expected + mean
    assert ((counts - total) ** 2 / (total + variance + 1.0)).sum() < 36 + 6 * np.sqrt(2 * 36)
    parts = [np.asarray(part.log_likelihood(expected)) for part in drawn.parts]
    np.testing.assert_allclose(log_likelihood(drawn, expected), sum(parts), rtol=1e-12)
    assert not parts[0][[0, 2]].any()
    assert not parts[1][1].any()


def test_a_statistic_that_suits_no_background_is_refused(mixed):
    poisson, gaussian = mixed.subset([0]), mixed.subset([1])
    assert mixed.subset([False, True, False]).name == gaussian.name
    with pytest.raises(DataError, match=r"a mask of 3 rows; found a mask of shape \(2,\)"):
        mixed.subset([True, False])
    for stack, name, words in (
        (poisson, "pgstat", "pgstat: expected backgrounds with Gaussian errors; found a Poisson background in small"),
        (gaussian, "wstat", "wstat: expected Poisson backgrounds; found Gaussian errors in gaussian. Use pg"),
        (mixed, "chi2_gehrels", "chi2_gehrels: expected Poisson backgrounds; found Gaussian errors"),
        (mixed, "cstat", "cstat: expected spectra without a background; found one in small"),
    ):
        with pytest.raises(ValueError, match=words):
            stack.statistic(name)
    # Without a background there is nothing to suit.
    alone = mixed.subset([2])
    expected = np.full(alone.counts.shape, 2.0)
    np.testing.assert_allclose(
        log_likelihood(alone.statistic("wstat"), expected), log_likelihood(alone.statistic("cstat"), expected)
    )


STEP = np.where(np.arange(NUM_CHANNELS) < 5, 1.0, 0.6)  # within the second group of three channels


def grouped(**changes):
    observation = small_observation()
    behind = {key[5:]: changes.pop(key) for key in list(changes) if key.startswith("back_")}
    background = dataclasses.replace(observation.background, **behind)
    one = dataclasses.replace(observation, background=background, **changes)
    return group(one, "channels_per_group", 3)


def test_the_area_of_each_channel_scales_its_own_expected_counts():
    one = grouped(areascal=STEP, back_areascal=STEP)
    stack = SpectrumStack.of([one, dataclasses.replace(one, name="again"), grouped()])
    edges, found = stack.grouped_response(0)
    dense = one.response.matrix.toarray() * STEP * one.exposure
    np.testing.assert_allclose(found, dense.reshape(len(dense), 4, 3).sum(axis=2), rtol=1e-12)
    np.testing.assert_array_equal(edges, one.response.energy)
    assert stack.responses[0] is stack.responses[1]
    assert stack.responses[2] is not stack.responses[0]
    np.testing.assert_allclose(stack.ratio[0], small_observation().background_ratio[0])  # the step is in both regions
    again = SpectrumStack.from_dict(stack.to_dict())
    np.testing.assert_array_equal(again.grouped_response(0)[1], found)


def test_a_group_of_several_ratios_is_refused_for_w_and_exact_for_pgstat():
    stack = SpectrumStack.of([grouped(backscal=0.01 * STEP)])
    for name in ("wstat", "marginal", None):
        with pytest.raises(ValueError, match=r"small: expected one ratio .* differ by 0.\d+ of their mean from .* keV"):
            stack.statistic(name)
    assert SpectrumStack.of([grouped(backscal=0.01 * (1.0 + 0.005 * (STEP == 1)))]).statistic("wstat").name == "wstat"
    assert SpectrumStack.of([group(grouped(backscal=STEP), "none")]).statistic("wstat").name == "wstat"
    error = np.sqrt(1.0 + np.arange(NUM_CHANNELS))
    one = grouped(backscal=0.01 * STEP, back_error=error)
    found = SpectrumStack.of([one]).statistic()
    share = 1.0 / one.background_ratio
    by_channel = (share * one.background.counts).reshape(4, 3), (share * error).reshape(4, 3)
    np.testing.assert_allclose(found.background[0], by_channel[0].sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.background_error[0], np.sqrt((by_channel[1] ** 2).sum(axis=1)), rtol=1e-12)


def test_bad_channels_without_counts_are_never_used(shared_data):
    (found,) = read_pha(shared_data("xray/integral_isgri/phaI.fits.gz"))
    missing = np.isnan(found.counts)
    assert missing.sum() == 18
    assert (found.quality[missing] == 3).all()
    np.testing.assert_array_equal(noticed(found, keep_bad=True), ~missing)
    one = small_observation()
    counts, behind = one.counts.copy(), one.background.counts.copy()
    counts[2], behind[5] = np.nan, np.nan
    spoilt = dataclasses.replace(one, counts=counts, background=dataclasses.replace(one.background, counts=behind))
    np.testing.assert_array_equal(np.flatnonzero(~noticed(spoilt, keep_bad=True)), [2, 5])
    kept = SpectrumStack.of([spoilt], [noticed(spoilt)])
    assert kept.counts.sum() == np.nansum(counts) - counts[5]
    for mask, words in (
        (~np.isnan(counts), " of the background in every channel used; found NaN in channel 8"),
        (~np.isnan(behind), " in every channel used; found NaN in channel 5"),
    ):
        with pytest.raises(DataError, match=f"small: expected counts{words}"):
            SpectrumStack.of([spoilt], [mask])


def test_spectra_without_exposure_leave_the_others_of_their_file(tmp_path):
    rows = [small_spectrum(seed=row) for row in range(4)]
    times = {"start": np.arange(4.0), "stop": np.arange(1.0, 5.0)}
    for name, bad in (("a.pha", 1), ("b.pha", 2)):
        write_pha2(tmp_path / name, rows, **times, background="b.pha" if name == "a.pha" else None)
        with fits.open(tmp_path / name, mode="update") as hdus:
            hdus["SPECTRUM"].data["EXPOSURE"][bad] = -5.0
    path = tmp_path / "a.pha"
    with pytest.warns(DataWarning, match=r"EXPOSURE: spectra without a positive exposure are left out: 2\."):
        found = read_pha(path)
    assert [one.name for one in found] == ["a.pha{1}", "a.pha{3}", "a.pha{4}"]
    with pytest.warns(DataWarning, match=r"[ab]\.pha\[SPECTRUM\], EXPOSURE: .* left out: [23]\."):
        found = read_spectra(path)
    assert [one.name for one in found] == ["a.pha{1}", "a.pha{4}"]
    np.testing.assert_array_equal(found[1].background.counts, rows[3].counts)
    assert [text[-1] for text in found[1].warnings] == ["2", "3"]
    with pytest.raises(DataError, match=r"spectrum 2, EXPOSURE: expected one positive time \[s\]; found -5"):
        read_spectrum(f"{path}{{2}}")
