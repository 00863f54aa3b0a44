"""Rates with errors, net spectra and systematic errors: chi-square with the errors of the file."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from astropy.io import fits
from commands import handed_to_the_sampler
from scipy import stats
from small_ogip import NUM_CHANNELS, small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax.data import DataWarning, read_grouped_spectra
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import SpectrumStack, group, prepare, write_arf, write_pha, write_rmf
from hbm_jax.spectra.statistics.joint import JointStatistic
from hbm_jax.validation import DataError

ERROR = np.linspace(2.0, 4.0, NUM_CHANNELS)
FRACTION = np.linspace(0.0, 0.3, NUM_CHANNELS)


@pytest.fixture(scope="module")
def net():
    """A spectrum with errors, systematic ones among them, from which a Poisson background is subtracted."""
    return dataclasses.replace(small_observation(), error=ERROR, systematic=FRACTION, name="net")


def test_errors_and_backgrounds_are_summed_in_quadrature(net):
    stack = SpectrumStack.of([group(net, "channels_per_group", 3)])
    assert stack.default_statistic == "chi2"
    assert "with Gaussian errors" in stack.describe()
    assert not stack.has_background.any()
    ratio = net.background_ratio
    counts = (net.counts - net.background.counts / ratio).reshape(4, 3).sum(axis=1)
    variance = ERROR**2 + (FRACTION * net.counts) ** 2 + net.background.counts / ratio**2
    np.testing.assert_allclose(stack.counts[0], counts, rtol=1e-12)
    np.testing.assert_allclose(stack.error[0], np.sqrt(variance.reshape(4, 3).sum(axis=1)), rtol=1e-12)
    expected = np.full((1, 4), 15.0)
    statistic = stack.statistic()
    exact = stats.norm(expected, stack.error)
    np.testing.assert_allclose(statistic.log_likelihood(expected), exact.logpdf(counts), rtol=1e-12)
    np.testing.assert_allclose(statistic.deviance(expected), ((counts - expected) / stack.error) ** 2, rtol=1e-12)
    drawn = stack.replace_observations([[-3.5, 2.25, 0.0, 7.0]])
    assert drawn.counts.tolist() == [[-3.5, 2.25, 0.0, 7.0]]
    again = SpectrumStack.from_dict(stack.to_dict())
    np.testing.assert_array_equal(again.error, stack.error)


def test_a_joint_fit_keeps_the_statistic_of_each(net):
    poisson = dataclasses.replace(small_spectrum(seed=8, response=net.response), name="poisson")
    stack = SpectrumStack.of([net, poisson])
    assert stack.default_statistic == "chi2 and cstat"
    joint = stack.statistic("chi2")
    assert isinstance(joint, JointStatistic)
    expected = np.full(stack.counts.shape, 5.0)
    found = np.asarray(joint.log_likelihood(expected))
    np.testing.assert_allclose(found[0], stats.norm(5.0, stack.error[0]).logpdf(stack.counts[0]), rtol=1e-12)
    np.testing.assert_allclose(found[1], stats.poisson(5.0).logpmf(poisson.counts), rtol=1e-12)
    with pytest.raises(ValueError, match="cstat: expected Poisson counts; found counts with Gaussian errors in net"):
        stack.subset([0]).statistic("cstat")
    with pytest.raises(ValueError, match="chi2: expected counts with errors; found Poisson counts in poisson"):
        stack.subset([1]).statistic("chi2")


def test_systematic_errors_of_counts_enter_chi_square_alone():
    one = dataclasses.replace(small_spectrum(), systematic=FRACTION, response=small_observation().response)
    stack = SpectrumStack.of([one])
    expected = np.full((1, NUM_CHANNELS), 6.5)
    variance = np.maximum(one.counts, 1.0) + (FRACTION * one.counts) ** 2
    found = stack.statistic("chi2_data").deviance(expected)
    np.testing.assert_allclose(found[0], (one.counts - 6.5) ** 2 / variance, rtol=1e-12)
    plain = SpectrumStack.of([dataclasses.replace(one, systematic=None)])
    np.testing.assert_array_equal(
        stack.statistic("cstat").deviance(expected), plain.statistic("cstat").deviance(expected)
    )


def test_groups_without_errors_are_left_out_with_a_warning(net):
    error = np.where(np.arange(NUM_CHANNELS) < 2, 0.0, ERROR)
    alone = dataclasses.replace(net, error=error, background=None, systematic=None)
    with pytest.warns(DataWarning, match="STAT_ERR: 2 groups of channels with an error of 0 are left out"):
        stack = SpectrumStack.of([alone])
    assert stack.used.sum() == NUM_CHANNELS - 2
    assert "are left out" in stack.describe()
    assert SpectrumStack.of([group(alone, "channels_per_group", 4)]).used.sum() == 3
    with pytest.raises(DataError, match="STAT_ERR: expected positive errors; found 0 in all"):
        SpectrumStack.of([dataclasses.replace(alone, error=0.0 * error)])
    with pytest.raises(DataError, match="net: expected Poisson counts; found counts with Gaussian errors"):
        SpectrumStack.of([net], poisson=True)
    with pytest.raises(ValueError, match=r"chi2: expected the error of each channel.*found no error"):
        prepare("chi2", [1.0])
    with pytest.raises(ValueError, match="cstat: error: expected none"):
        prepare("cstat", [1.0], error=1.0)


def test_net_rates_of_swift_bat_are_fitted(shared_data):
    folder = shared_data("xray/swift_bat_862")
    pha, rsp = folder / "bat_index_862.pha", folder / "swiftbat_survey_full_157m.rsp"
    stack = read_grouped_spectra(pha, rmf=rsp, arf="none", energies=None, grouping="none")
    table, time = fits.getdata(pha, "SPECTRUM"), fits.getheader(pha, "SPECTRUM")["EXPOSURE"]
    np.testing.assert_allclose(stack.counts[0], table["RATE"].astype(float) * time, rtol=1e-12)
    np.testing.assert_allclose(stack.error[0], table["STAT_ERR"].astype(float) * time, rtol=1e-12)
    model = SpectralFit("po", priors={"photon_index": "Uniform(0, 4)", "log10_amplitude": "Uniform(-6, 0)"})
    bound = model.prepare(stack)
    index, amplitude = 1.9, 10**-3.0
    energy, matrix = stack.grouped_response(0)
    expected = amplitude * -np.diff(energy ** (1 - index)) / (index - 1) @ matrix
    values = {"photon_index": index, "log10_amplitude": -3.0}
    np.testing.assert_allclose(model.expected(bound, values)[0], expected, rtol=1e-5)
    chi2 = (((stack.counts - expected) / stack.error) ** 2).sum()
    assert model.deviance(bound, values).total == pytest.approx(chi2, rel=1e-5)
    drawn, truth = model.simulate(jax.random.key(1), stack, values)
    assert truth["photon_index"] == index
    assert 0.0 < (((drawn.counts - expected) / stack.error) ** 2).sum() < 40.0


def test_rates_of_ixpe_have_their_background_subtracted(shared_data):
    folder = shared_data("xray/ixpe_rate")
    name = "ixpe_d1_obssim20240701_v013"
    files = {"rmf": folder / f"{name}.rmf", "arf": folder / f"{name}.arf", "background": folder / "ixpe_bkg.pha"}
    options = {"energies": (2.0, 8.0), "grouping": "channels_per_group", "group_by": 5}
    stack = read_grouped_spectra(folder / "ixpe_src.pha", **files, **options)
    source, background = (fits.getdata(folder / f"ixpe_{kind}.pha", "SPECTRUM") for kind in ("src", "bkg"))
    time = fits.getheader(folder / "ixpe_src.pha", "SPECTRUM")["EXPOSURE"]
    used = stack.grouping[0] >= 0
    net = (source["RATE"].astype(float) - background["RATE"])[used].sum() * time
    variance = (source["STAT_ERR"].astype(float) ** 2 + background["STAT_ERR"].astype(float) ** 2)[used].sum() * time**2
    assert stack.counts[0].sum() == pytest.approx(net, rel=1e-6)
    assert (stack.error[0][stack.used[0]] ** 2).sum() == pytest.approx(variance, rel=1e-6)


def test_each_spectrum_of_a_joint_fit_has_its_own_files_and_options(tmp_path, capsys, monkeypatch):
    write_rmf(tmp_path / "a.rmf", small_rmf())
    write_arf(tmp_path / "a.arf", small_arf())
    write_arf(tmp_path / "b.arf", small_arf(seed=4))
    for name, seed in (("a", 2), ("b", 7)):
        background = small_spectrum(seed=seed + 1, exposure=9e3)
        write_pha(tmp_path / f"{name}_bkg.pha", background)
        write_pha(tmp_path / f"{name}.pha", small_spectrum(seed=seed), rmf="a.rmf", arf="a.arf")
    a, b = str(tmp_path / "a.pha"), str(tmp_path / "b.pha")
    own = {"file": b, "energies": (1.0, 5.0), "grouping": "channels_per_group", "group_by": 2}
    own |= {"background": str(tmp_path / "b_bkg.pha"), "arf": str(tmp_path / "b.arf")}
    joint = read_grouped_spectra([a, own], energies=(0.3, 10.0), grouping="none")
    first = read_grouped_spectra(a, grouping="none")
    second = read_grouped_spectra(b, **{key: value for key, value in own.items() if key != "file"})
    for row, alone in enumerate((first, second)):
        num = alone.used.sum()
        np.testing.assert_array_equal(joint.counts[row][:num], alone.counts[0])
        np.testing.assert_array_equal(joint.background[row][:num], alone.background[0])
        np.testing.assert_array_equal(joint.grouped_response(row)[1], alone.grouped_response(0)[1])
        assert joint.used[row].sum() == num
    expected = np.full(joint.counts.shape, 4.0)
    found = np.asarray(joint.statistic(["cstat", "wstat"]).log_likelihood(expected))
    for row, (alone, name) in enumerate(((first, "cstat"), (second, "wstat"))):
        num = alone.used.sum()
        np.testing.assert_allclose(found[row][:num], alone.statistic(name).log_likelihood(expected[:1, :num])[0])
    table = "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in own.items()) + "}"
    arguments = ["fit", "spectrum", "--data", a, "--also", table, "--grouping", "none", "--spectrum", "po"]
    arguments += ["--statistic", "cstat", "--statistic", "wstat", "--calibration", "--out", tmp_path / "run"]
    model, data, _ = handed_to_the_sampler(capsys, monkeypatch, *arguments)
    np.testing.assert_array_equal(data.counts, joint.counts)
    assert model.statistic == ("cstat", "wstat")
    assert SpectralFit(**model.to_config()).statistic == model.statistic
    with pytest.raises(DataError, match=r"unknown option of the spectrum .*b.pha 'energy' \(did you mean 'energies'"):
        read_grouped_spectra([a, {"file": b, "energy": (1, 2)}])
    with pytest.raises(DataError, match="expected the name of the file as 'file'"):
        read_grouped_spectra([a, {"energies": (1, 2)}])
    with pytest.raises(ValueError, match="statistic: expected one, or one for each of 2 spectra; found 3"):
        joint.statistic(["cstat"] * 3)
