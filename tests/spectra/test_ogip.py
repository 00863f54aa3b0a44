"""OGIP files: the numbers of published ones, folding against a plain sum, and writing and reading back."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from scipy import sparse
from small_ogip import NUM_CHANNELS, small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax.spectra.ogip import read_arf, read_pha, read_rmf, read_spectra, read_spectrum
from hbm_jax.spectra.ogip_writing import write_arf, write_pha, write_rmf
from hbm_jax.spectra.response import Arf, Rmf
from hbm_jax.validation import DataError

SWIFT_RMF = "xray/swift_xrt_response/swxpc0to12s6_20130101v014.rmf.gz"
JOINT = "xray/chandra_gcs25_joint/"
GBM = "grb/synth_gbm/"

# From the table of the data's README: counts, exposure, channels, first channel, groups, counts of the background.
PUBLISHED = {
    "xray/swift_xrt_grb050401/apc.pi": (963, 33618.02, 1024, 0, 642, 4159),
    "xray/swift_xrt_grb070110/interval0pc.pi": (2751, 9504.67, 1024, 0, 589, 286),
    "xray/swift_xrt_2m0259/target_sr.pha": (58, 4812.267, 1024, 0, 0, None),
    "xray/chandra_3c273/3c273.pi": (736, 38564.609, 1024, 1, 46, 216),
    JOINT + "pi2278.fits": (78, 11619.08, 685, 1, 9, None),
    JOINT + "pi2286.fits": (78, 11619.08, 685, 1, 9, None),
    "xray/chandra_cdfs179/179.pi": (2830, 3746510, 1024, 1, 0, 19068),
    "xray/xmm_pn_absorbed/pn_pi_src_bin10.ds": (4784, 11754.644, 4096, 0, 410, None),
    "xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits": (11526, 20265.981, 4096, 0, 1230, 1213),
}
# Where the header names no response, or one that is not here.
OPTIONS = {
    "xray/swift_xrt_grb050401/apc.pi": {"rmf": SWIFT_RMF},
    "xray/swift_xrt_grb070110/interval0pc.pi": {"rmf": SWIFT_RMF},
    "xray/swift_xrt_2m0259/target_sr.pha": {"rmf": SWIFT_RMF, "arf": "xray/swift_xrt_2m0259/target_sr.arf"},
    JOINT + "pi2278.fits": {"rmf": JOINT + "rmf2278.fits", "arf": JOINT + "arf2278.fits"},
    JOINT + "pi2286.fits": {"rmf": JOINT + "rmf2286.fits", "arf": JOINT + "arf2286.fits"},
    "xray/xmm_pn_absorbed/pn_pi_src_bin10.ds": {"rmf": "xray/xmm_pn_absorbed/epn_ff20_dY9.rmf", "background": "none"},
}
# Name of the extension, photon energies, channels, first channel.
MATRICES = {
    SWIFT_RMF: ("MATRIX", 2400, 1024, 0),
    "xray/chandra_3c273/3c273.rmf": ("MATRIX", 1090, 1024, 1),
    JOINT + "rmf2278.fits": ("SPECRESP MATRIX", 410, 685, 1),
    JOINT + "rmf2286.fits": ("SPECRESP MATRIX", 410, 685, 1),
    "xray/chandra_cdfs179/cdfs4Ms_179.rmf": ("MATRIX", 1918, 1024, 1),
    "xray/xmm_pn_absorbed/epn_ff20_dY9.rmf": ("SPECRESP MATRIX", 1319, 4096, 0),
    "xray/xmm_ngc7793_ulx4/PN.rmf": ("MATRIX", 2067, 4096, 0),
}


def observed(shared_data, name):
    options = {key: v if v == "none" else shared_data(v) for key, v in OPTIONS.get(name, {}).items()}
    return read_spectrum(shared_data(name), **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_spectra_have_the_published_numbers(shared_data, name):
    counts, exposure, num, first, num_groups, background = PUBLISHED[name]
    # Responses are read in other tests: the large ones take a while.
    spectrum = read_spectrum(
        shared_data(name), rmf="none", arf="none", **({} if background else {"background": "none"})
    )
    assert spectrum.counts.sum() == counts
    assert spectrum.exposure == pytest.approx(exposure, rel=2e-7)
    assert (len(spectrum), spectrum.channels[0], spectrum.channels[-1]) == (num, first, first + num - 1)
    assert (spectrum.grouping == 1).sum() == num_groups
    assert spectrum.error is None
    assert (None if spectrum.background is None else spectrum.background.counts.sum()) == background
    assert spectrum.response is None


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_have_the_published_sizes(shared_data, name):
    extension, num_energies, num, first = MATRICES[name]
    rmf = read_rmf(shared_data(name))
    assert rmf.name.endswith(f"[{extension}]")
    assert rmf.matrix.shape == (num_energies, num)
    assert (rmf.channels[0], rmf.channels[-1]) == (first, first + num - 1)
    assert rmf.energy[0] > 0
    assert (np.diff(rmf.energy) > 0).all()
    # Of each photon one count at most, but for the interpolation of calibration files.
    assert rmf.matrix.sum(axis=1).max() < 1.03


def test_scales_of_source_and_background(shared_data):
    def scales(name):
        s = read_spectrum(shared_data(name), rmf="none", arf="none")
        return s, s.backscal, s.background.backscal

    for name, source, behind, rel in (
        ("xray/swift_xrt_grb050401/apc.pi", 0.002171419, 0.0714956580, 1e-9),
        ("xray/swift_xrt_grb070110/interval0pc.pi", 0.001804759, 0.0324985151, 1e-8),
        ("xray/chandra_3c273/3c273.pi", 2.5264e-6, 1.87254e-5, 2e-5),
        ("xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits", 2010100, 6866200, 0),
    ):
        spectrum, of_source, of_background = scales(name)
        assert of_source.shape == of_background.shape == spectrum.counts.shape
        np.testing.assert_allclose(of_source, source, rtol=rel)
        np.testing.assert_allclose(of_background, behind, rtol=rel)
        times = spectrum.background.exposure / spectrum.exposure
        np.testing.assert_allclose(spectrum.background_ratio, behind / source * times, rtol=2e-5)
        assert (spectrum.areascal == 1).all()
        assert (spectrum.background.areascal == 1).all()
    spectrum, *_ = scales("xray/swift_xrt_grb070110/interval0pc.pi")
    assert spectrum.background.exposure == pytest.approx(9569.60, rel=1e-6)
    spectrum, *_ = scales("xray/chandra_cdfs179/179.pi")
    assert (spectrum.areascal == 1).all()
    np.testing.assert_allclose(spectrum.background.areascal, 32.4418, rtol=1e-12)
    np.testing.assert_allclose(spectrum.background_ratio, 32.4418, rtol=1e-12)


def test_bad_channels_of_the_files(shared_data):
    def bad(name):
        flags = read_pha(shared_data(name))[0].quality
        return {int(value): int((flags == value).sum()) for value in np.unique(flags)}

    assert bad("xray/swift_xrt_grb050401/apc.pi") == {0: 743, 2: 251, 5: 30}
    assert bad("xray/chandra_gcs25_joint/pi2278.fits") == {0: 382, 2: 303}
    assert bad("xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits") == {0: 2980, 1: 1116}
    assert bad("xray/swift_xrt_2m0259/target_sr.pha") == {0: 1024}


def test_statistical_errors_of_chandra_counts_are_not_used(shared_data):
    path = shared_data("xray/chandra_3c273/3c273.pi")
    with fits.open(path) as hdus:
        assert hdus["SPECTRUM"].header["POISSERR"] is False
        assert hdus["SPECTRUM"].data["STAT_ERR"].max() > 0
    spectrum = read_spectrum(path, rmf="none", arf="none")
    assert spectrum.error is None
    assert spectrum.background.error is None


def test_a_first_energy_of_zero_is_replaced(shared_data):
    path = shared_data(SWIFT_RMF)
    with fits.open(path) as hdus:
        assert hdus["MATRIX"].data["ENERG_LO"][0] == 0
    rmf = read_rmf(path)
    assert rmf.energy[0] == pytest.approx(5e-6)
    arf = read_arf(shared_data("xray/swift_xrt_grb050401/apc.arf"))
    np.testing.assert_allclose(arf.energy, rmf.energy, rtol=1e-6)


def test_missing_responses_and_backgrounds_are_errors_that_say_what_to_do(shared_data):
    for name, missing, options in (
        ("xray/swift_xrt_grb050401/apc.pi", r"RESPFILE.*'apc\.rmf'.*rmf=PATH.*rmf='none'", {}),
        ("xray/swift_xrt_grb070110/interval0pc.pi", r"RESPFILE.*'interval0pc\.rmf'.*rmf=PATH", {}),
        ("xray/xmm_pn_absorbed/pn_pi_src_bin10.ds", r"BACKFILE.*pn_pi_bgd\.ds.*background=PATH", {}),
        ("xray/xmm_pn_absorbed/pn_pi_src_bin10.ds", r"RESPFILE.*epn_ff20_sdY9\.rmf.*rmf=PATH", {"background": "none"}),
    ):
        with pytest.raises(DataError, match=missing) as caught:
            read_spectrum(shared_data(name), **options)
        assert str(shared_data(name)) in str(caught.value)


def dense(matrix_hdu, channels, first):
    """Matrix of a file by a loop of its own, in single rows, straight from the columns."""
    full = np.zeros((len(matrix_hdu.data), len(channels)))
    for row, record in enumerate(matrix_hdu.data):
        values, at = np.atleast_1d(record["MATRIX"]), 0
        starts, widths = np.atleast_1d(record["F_CHAN"]), np.atleast_1d(record["N_CHAN"])
        for k in range(int(record["N_GRP"])):
            start, width = int(starts[k]) - first, int(widths[k])
            full[row, start : start + width] += values[at : at + width]
            at += width
    return full


@pytest.mark.parametrize(
    "name",
    [
        "xray/swift_xrt_grb070110/interval0pc.pi",
        "xray/chandra_3c273/3c273.pi",
        "xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits",
        GBM + "n1.pha{4}",
    ],
)
def test_folded_counts_are_a_plain_sum_over_the_file(shared_data, name):
    folder = name.rpartition("/")[0]
    if "gbm" in name:
        spectrum = read_spectrum(f"{shared_data(folder)}/n1.pha{{4}}")
        rmf, arf, which = shared_data(GBM + "n1.rsp"), None, 4
    else:
        spectrum = observed(shared_data, name)
        rmf = shared_data(OPTIONS[name]["rmf"] if name in OPTIONS else f"{folder}/{spectrum.files['RESPFILE']}")
        arf, which = shared_data(f"{folder}/{spectrum.files['ANCRFILE']}"), 1
    with fits.open(rmf) as hdus:
        hdu = [h for h in hdus if h.name in ("MATRIX", "SPECRESP MATRIX")][which - 1]
        place = hdu.columns.names.index("F_CHAN") + 1
        matrix = dense(hdu, hdus["EBOUNDS"].data["CHANNEL"], hdu.header[f"TLMIN{place}"])
        low, high = hdu.data["ENERG_LO"].astype(float), hdu.data["ENERG_HI"].astype(float)
    area = np.ones(len(low))
    if arf is not None:
        with fits.open(arf) as hdus:
            area = hdus["SPECRESP"].data["SPECRESP"].astype(float)
    low[0] = max(low[0], 1e-3 * high[0])
    photons = (low**-0.7 - high**-0.7) / 0.7
    expected = (photons * area) @ matrix
    edges = spectrum.response.energy
    found = spectrum.response.fold((edges[:-1] ** -0.7 - edges[1:] ** -0.7) / 0.7)
    assert expected.max() > 0
    # Files hold both edges of each bin, in single precision; the response has the lower ones of them.
    assert np.abs(edges[1:-1] / low[spectrum.response.rows][1:] - 1).max() < 1e-15
    exact = (edges[:-1] ** -0.7 - edges[1:] ** -0.7) / 0.7
    np.testing.assert_allclose(
        found, (exact * area[spectrum.response.rows]) @ matrix[spectrum.response.rows], rtol=1e-10
    )
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_bursts_of_type_ii_are_read_row_by_row(shared_data):
    path = shared_data(GBM + "n1.pha")
    spectra = read_spectra(path)
    assert [s.name for s in spectra] == [f"n1.pha{{{i}}}" for i in range(1, 10)]
    with fits.open(path) as hdus, fits.open(shared_data(GBM + "n1_bak.pha")) as behind:
        source, background = hdus["SPECTRUM"].data, behind["SPECTRUM"].data
        for row, spectrum in enumerate(spectra):
            exposure = float(source["EXPOSURE"][row])
            assert spectrum.exposure == exposure
            expected = source["RATE"][row].astype(float) * exposure
            np.testing.assert_allclose(spectrum.counts, expected, atol=1e-3)
            assert (spectrum.counts % 1 == 0).all()
            assert spectrum.error is None
            at = float(background["EXPOSURE"][row])
            np.testing.assert_allclose(spectrum.background.counts, background["RATE"][row].astype(float) * at)
            np.testing.assert_allclose(spectrum.background.error, background["STAT_ERR"][row].astype(float) * at)
            assert spectrum.response.matrix.shape[1] == 128
    assert [s.response.rmf.name[-3:] for s in spectra] == [f", {i}]"[-3:] for i in range(1, 10)]
    # One alone is that of the list.
    one = read_spectrum(f"{path}{{9}}", background=shared_data(GBM + "n1_bak.pha"), rmf=shared_data(GBM + "n1.rsp"))
    np.testing.assert_array_equal(one.counts, spectra[8].counts)
    np.testing.assert_array_equal(one.background.counts, spectra[8].background.counts)
    assert (one.response.matrix != spectra[8].response.matrix).nnz == 0
    assert one.response.rmf.name.endswith(", 9]")
    (alone,) = read_spectra(f"{path}{{9}}")
    assert (alone.name, alone.background.name) == ("n1.pha{9}", "n1_bak.pha{9}")


def test_which_of_several_is_never_guessed(shared_data, tmp_path):
    with pytest.raises(DataError, match=r"expected one spectrum; found 9 .*n1\.pha\{1\}.*read_spectra"):
        read_spectrum(shared_data(GBM + "n1.pha"))
    with pytest.raises(DataError, match="number 1 to 9; found number 10"):
        read_spectrum(f"{shared_data(GBM + 'n1.pha')}{{10}}")
    path = write_pha(tmp_path / "one.pha", small_spectrum())
    with pytest.raises(DataError, match=r"found 9 matrices.*n1\.rsp\{1\}"):
        read_spectrum(path, rmf=shared_data(GBM + "n1.rsp"))
    with pytest.raises(DataError, match=r"found 9 spectra.*n1\.pha\{1\}"):
        read_spectrum(path, background=shared_data(GBM + "n1.pha"))
    with pytest.raises(DataError, match=r"expected the channels 3 to 14 of .*; found 1 to 128"):
        read_spectrum(path, rmf=f"{shared_data(GBM + 'n1.rsp')}{{2}}")


def assert_same(found, expected):
    for name in ("counts", "channels", "backscal", "areascal", "quality", "grouping"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.exposure == expected.exposure
    assert (found.error is None) == (expected.error is None)
    if expected.error is not None:
        np.testing.assert_array_equal(found.error, expected.error)


RNG = np.random.default_rng(4)
SPECTRA = {
    "plain": small_spectrum(),
    "first channel 0": small_spectrum(first=0),
    "grouped": small_spectrum(
        grouping=np.tile([1, -1, -1, 0], 3), quality=np.repeat([0, 2, 5], 4), areascal=np.full(NUM_CHANNELS, 32.4418)
    ),
    "scales that vary": small_spectrum(backscal=RNG.uniform(0.1, 1, NUM_CHANNELS), areascal=RNG.random(NUM_CHANNELS)),
    "no noise": small_spectrum(counts=RNG.uniform(0, 4, NUM_CHANNELS)),
    "Gaussian": small_spectrum(counts=RNG.normal(1, 1, NUM_CHANNELS), error=RNG.uniform(0, 1, NUM_CHANNELS)),
    "many": small_spectrum(counts=np.arange(NUM_CHANNELS) * 1e9, channels=np.arange(40000, 40000 + NUM_CHANNELS)),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_come_back_as_they_were(tmp_path, name):
    spectrum = SPECTRA[name]
    path = write_pha(tmp_path / "a.pha", spectrum)
    (found,) = read_pha(path)
    assert_same(found, spectrum)
    assert (found.name, found.files) == ("a.pha", {})
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header, columns = hdus["SPECTRUM"].header, hdus["SPECTRUM"].columns
        formats = {c.name: c.format for c in columns}
        assert header["POISSERR"] is (spectrum.error is None)
        assert (header["TLMIN1"], header["TLMAX1"]) == (spectrum.channels[0], spectrum.channels[-1])
        assert columns.names[0] == "CHANNEL"
        assert formats["CHANNEL"] == ("J" if name == "many" else "I")
        # Astropy itself reads the same numbers.
        np.testing.assert_array_equal(hdus["SPECTRUM"].data["COUNTS"], spectrum.counts)
        if name == "plain":
            assert formats["COUNTS"] == "J"
            assert (header["GROUPING"], header["QUALITY"]) == (0, 0)
            assert header["BACKSCAL"] == spectrum.backscal[0]
        elif name == "grouped":
            assert formats["GROUPING"] == formats["QUALITY"] == "I"
            assert header["AREASCAL"] == 32.4418
        elif name == "scales that vary":
            assert "BACKSCAL" not in header
            assert formats["BACKSCAL"] == "D"


def test_headers_have_what_the_standard_asks_for(tmp_path):
    path = write_pha(
        tmp_path / "a.pha",
        small_spectrum(),
        background="b.pha",
        rmf="c.rmf",
        arf="d.arf",
        telescope="SWIFT",
        instrument="XRT",
    )
    header = fits.getheader(path, "SPECTRUM")
    expected = {
        "HDUCLASS": "OGIP",
        "HDUCLAS1": "SPECTRUM",
        "HDUCLAS2": "TOTAL",
        "HDUCLAS3": "COUNT",
        "HDUCLAS4": "TYPE:I",
        "HDUVERS": "1.2.1",
        "PHAVERSN": "1992a",
        "TELESCOP": "SWIFT",
        "INSTRUME": "XRT",
        "FILTER": "NONE",
        "EXPOSURE": 1234.5678901234,
        "AREASCAL": 1.0,
        "CORRFILE": "none",
        "CORRSCAL": 1.0,
        "BACKFILE": "b.pha",
        "RESPFILE": "c.rmf",
        "ANCRFILE": "d.arf",
        "DETCHANS": NUM_CHANNELS,
        "CHANTYPE": "PI",
    }
    assert {key: header[key] for key in expected} == expected
    write_rmf(tmp_path / "c.rmf", small_rmf())
    header = fits.getheader(tmp_path / "c.rmf", "MATRIX")
    with fits.open(tmp_path / "c.rmf") as hdus:
        assert [c.name for c in hdus["MATRIX"].columns] == [
            "ENERG_LO",
            "ENERG_HI",
            "N_GRP",
            "F_CHAN",
            "N_CHAN",
            "MATRIX",
        ]
        assert [c.name for c in hdus["EBOUNDS"].columns] == ["CHANNEL", "E_MIN", "E_MAX"]
        assert header["NUMGRP"] == hdus["MATRIX"].data["N_GRP"].sum()
    assert (header["HDUCLAS1"], header["HDUCLAS2"], header["HDUCLAS3"]) == ("RESPONSE", "RSP_MATRIX", "REDIST")
    assert (header["TLMIN4"], header["DETCHANS"], header["NUMELT"]) == (3, NUM_CHANNELS, small_rmf().matrix.nnz)
    header = fits.getheader(write_arf(tmp_path / "d.arf", small_arf()), "SPECRESP")
    assert (header["HDUCLAS1"], header["HDUCLAS2"], header["TUNIT3"]) == ("RESPONSE", "SPECRESP", "cm**2")


def test_gaussian_errors_of_whole_numbers_stay_gaussian(tmp_path):
    spectrum = small_spectrum(counts=np.zeros(NUM_CHANNELS), error=RNG.uniform(0, 1, NUM_CHANNELS))
    (found,) = read_pha(write_pha(tmp_path / "a.pha", spectrum))
    np.testing.assert_array_equal(found.counts, spectrum.counts)
    np.testing.assert_allclose(found.error, spectrum.error, rtol=1e-15)


@pytest.mark.parametrize("first", [0, 1, 7])
def test_responses_come_back_as_they_were(tmp_path, first):
    rmf, arf = small_rmf(first), small_arf()
    found = read_rmf(write_rmf(tmp_path / "a.rmf", rmf))
    for name in ("energy", "channels", "e_min", "e_max"):
        np.testing.assert_array_equal(getattr(found, name), getattr(rmf, name), err_msg=name)
    np.testing.assert_array_equal(found.matrix.toarray(), rmf.matrix.toarray())
    assert found.name.endswith("a.rmf[MATRIX]")
    found = read_arf(write_arf(tmp_path / "a.arf", arf))
    np.testing.assert_array_equal(found.energy, arf.energy)
    np.testing.assert_array_equal(found.area, arf.area)


def test_an_observation_comes_back_whole(tmp_path):
    spectrum = small_observation()
    write_pha(tmp_path / "s.pha", spectrum, background="s_bkg.pha", rmf="s.rsp")
    write_pha(tmp_path / "s_bkg.pha", spectrum.background)
    write_rmf(tmp_path / "s.rsp", spectrum.response)
    found = read_spectrum(tmp_path / "s.pha", name="mine")
    assert found.name == "mine"
    assert_same(found, spectrum)
    assert_same(found.background, spectrum.background)
    assert found.response.rmf.name.endswith("[SPECRESP MATRIX]")
    photons = np.arange(1.0, len(spectrum.response.energy))
    np.testing.assert_allclose(found.response.fold(photons), spectrum.response.fold(photons), rtol=1e-14)
    # As two files.
    write_rmf(tmp_path / "s.rmf", spectrum.response.rmf)
    write_arf(tmp_path / "s.arf", small_arf())
    found = read_spectrum(tmp_path / "s.pha", rmf=tmp_path / "s.rmf", arf=tmp_path / "s.arf")
    np.testing.assert_array_equal(found.response.fold(photons), spectrum.response.fold(photons))


def test_shared_responses_come_back_as_they_were(shared_data, tmp_path):
    for name, kind in ((JOINT + "rmf2278.fits", "E"), (GBM + "b1.rsp", "D")):
        rmf = read_rmf(shared_data(name))
        path = write_rmf(tmp_path / "again.rmf", rmf, overwrite=True)
        with fits.open(path) as hdus:
            assert hdus[1].columns["MATRIX"].format.startswith(f"P{kind}(")
        found = read_rmf(path)
        assert abs(found.matrix - rmf.matrix).max() == 0
        np.testing.assert_array_equal(found.energy, rmf.energy)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = write_pha(tmp_path / "a.pha", small_spectrum())
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_pha(path, small_spectrum(seed=9))
    assert path.read_bytes() == before
    for bad, message in (
        ({"exposure": 0.0}, "exposure: expected a positive time"),
        ({"counts": np.full(NUM_CHANNELS, np.nan)}, "counts: expected 12 finite numbers"),
        ({"backscal": np.ones(3)}, "backscal: expected 12"),
        ({"name": "β Cet"}, "OBJECT: expected text in ASCII"),
    ):
        with pytest.raises(DataError, match=message):
            write_pha(path, small_spectrum(**bad), overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="no folder"):
        write_pha(tmp_path / "nowhere" / "a.pha", small_spectrum())
    write_pha(path, small_spectrum(seed=9), overwrite=True)
    np.testing.assert_array_equal(read_pha(path)[0].counts, small_spectrum(seed=9).counts)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pha"]
    rmf = small_rmf()
    with pytest.raises(DataError, match="energy: expected finite numbers"):
        write_rmf(tmp_path / "a.rmf", dataclasses.replace(rmf, energy=rmf.energy * np.nan))


def test_long_names_of_files_come_back(tmp_path):
    name = "a_folder_with_a_long_name_" * 4 + "/b.pha"
    path = write_pha(tmp_path / "a.pha", small_spectrum(), background=name)
    assert read_pha(path)[0].files == {"BACKFILE": name}
    again = write_pha(tmp_path / "b.pha", read_pha(path)[0])
    assert read_pha(again)[0].files == {"BACKFILE": name}


def test_where_files_that_headers_name_are_looked_for(tmp_path):
    (tmp_path / "sub").mkdir()
    behind = small_spectrum(seed=5)

    def counts(named):
        write_pha(tmp_path / "a.pha", small_spectrum(), background=named, overwrite=True)
        return read_spectrum(tmp_path / "a.pha").background.counts

    write_pha(tmp_path / "b.pha", behind)
    for named in ("b.pha", "/no/such/folder/b.pha", "elsewhere/b.pha", "b.pha[SPECTRUM]", str(tmp_path / "b.pha")):
        np.testing.assert_array_equal(counts(named), behind.counts)
    write_pha(tmp_path / "sub" / "b.pha", small_spectrum(seed=6))
    np.testing.assert_array_equal(counts("sub/b.pha"), small_spectrum(seed=6).counts)
    for named in ("none", "NONE", " "):
        write_pha(tmp_path / "a.pha", small_spectrum(), background=named, overwrite=True)
        assert read_spectrum(tmp_path / "a.pha").background is None
    with pytest.raises(DataError, match=r"a\.pha, BACKFILE: .*background=PATH.*background='none'"):
        counts("c.pha")
    with pytest.raises(DataError, match=r"c\.pha: expected a FITS file; found no such file"):
        read_spectrum(tmp_path / "a.pha", background=tmp_path / "c.pha")
    with pytest.raises(DataError, match="found a folder"):
        read_pha(tmp_path)


def table(name, columns, **keywords):
    hdu = fits.BinTableHDU.from_columns([fits.Column(n, f, array=a) for n, f, a in columns], name=name)
    hdu.header.update(keywords)
    return hdu


def written(path, *tables):
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(path, overwrite=True)
    return path


def test_rates_errors_and_scales_as_headers_give_them(tmp_path):
    path, channel = tmp_path / "a.pha", ("CHANNEL", "I", [1, 2, 3])
    counts = np.array([2.0, 0.0, 7.0])

    def read(columns, **keywords):
        (found,) = read_pha(written(path, table("SPECTRUM", [channel, *columns], EXPOSURE=10.0, **keywords)))
        return found

    rate = ("RATE", "E", counts / 10)
    error = ("STAT_ERR", "E", [0.125, 0.25, 0.5])
    np.testing.assert_array_equal(read([rate]).counts, counts)
    assert read([rate], POISSERR=True).error is None
    assert read([rate, error], POISSERR=True).error is None
    assert read([rate, error]).error is None
    np.testing.assert_allclose(read([rate, error], POISSERR=False).error, [1.25, 2.5, 5.0])
    np.testing.assert_allclose(read([rate], POISSERR=False, STAT_ERR=0.5).error, 5.0)
    part = ("RATE", "D", counts / 10 + 0.025)
    np.testing.assert_allclose(read([part], POISSERR=True).counts, counts + 0.25)
    with pytest.raises(DataError, match="POISSERR = T, or errors in STAT_ERR"):
        read([part], POISSERR=False)
    found = read([("COUNTS", "J", counts), ("QUALITY", "I", [0, 1, 2])], GROUPING=1, BACKSCAL="0.25", AREASCAL=2)
    np.testing.assert_array_equal(found.quality, [0, 1, 2])
    np.testing.assert_array_equal(found.grouping, [1, 1, 1])
    np.testing.assert_array_equal(found.backscal, [0.25] * 3)
    np.testing.assert_array_equal(found.areascal, [2.0] * 3)
    found = read([("counts", "D", counts), ("BACKSCAL", "D", [0.1, 0.2, 0.3])], QUALITY=3)
    np.testing.assert_array_equal(found.quality, [3, 3, 3])
    np.testing.assert_array_equal(found.backscal, [0.1, 0.2, 0.3])
    (found,) = read_pha(written(path, table("SPECTRUM", [("COUNTS", "J", counts)], EXPOSURE=1.0)))
    np.testing.assert_array_equal(found.channels, [1, 2, 3])
    # By class, where the name is another.
    (found,) = read_pha(written(path, table("OTHER", [("COUNTS", "J", counts)], EXPOSURE=1.0, HDUCLAS1="SPECTRUM")))
    np.testing.assert_array_equal(found.counts, counts)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("tlmin", [True, False])
@pytest.mark.parametrize("kind", ["fixed", "variable", "scalar"])
def test_every_way_to_write_a_matrix(tmp_path, first, tlmin, kind):
    expected = np.array([[0, 0, 0, 0], [0.25, 0.5, 0, 0.25], [0, 0.5, 0.5, 0], [0, 0, 0, 0.75]])
    if kind == "scalar":  # one group a row, as GBM and Swift have
        expected[1] = [0.25, 0.5, 0.25, 0]
    starts = [[], [0, 3], [1], [3]] if kind != "scalar" else [[], [0], [1], [3]]
    widths = [[], [2, 1], [2], [1]] if kind != "scalar" else [[], [3], [2], [1]]
    values = [row[row > 0] for row in expected]
    groups = [len(s) for s in starts]
    starts = [[s + first for s in row] for row in starts]

    def padded(rows, num, fill):
        return np.array([list(row) + [fill] * (num - len(row)) for row in rows])

    if kind == "variable":
        columns = []
        for name, form, rows in (("F_CHAN", "PI", starts), ("N_CHAN", "PI", widths), ("MATRIX", "PE", values)):
            array = np.empty(4, object)
            array[:] = [np.array(row) for row in rows]
            columns.append((name, form, array))
    elif kind == "fixed":
        columns = [
            ("F_CHAN", "3I", padded(starts, 3, 0)),
            ("N_CHAN", "3I", padded(widths, 3, 0)),
            ("MATRIX", "4E", padded(values, 4, 9.0)),
        ]
    else:
        columns = [
            ("F_CHAN", "I", padded(starts, 1, 0)[:, 0]),
            ("N_CHAN", "I", padded(widths, 1, 0)[:, 0]),
            ("MATRIX", "4E", padded(values, 4, 9.0)),
        ]
    edges = np.array([0.0, 0.0, 1.0, 2.0, 3.0])  # the first bin has no width
    energy = [("ENERG_LO", "E", edges[:-1]), ("ENERG_HI", "E", edges[1:]), ("N_GRP", "I", groups)]
    matrix = table("SPECRESP MATRIX", energy + columns, **({"TLMIN4": first} if tlmin else {}))
    bounds = [
        ("CHANNEL", "J", np.arange(first, first + 4)),
        ("E_MIN", "E", np.arange(4)),
        ("E_MAX", "E", np.arange(1, 5)),
    ]
    path = written(tmp_path / "a.rmf", table("EBOUNDS", bounds), matrix)
    rmf = read_rmf(path)
    np.testing.assert_array_equal(rmf.matrix.toarray(), expected)
    np.testing.assert_array_equal(rmf.channels, np.arange(first, first + 4))
    np.testing.assert_allclose(rmf.energy, [1e-3, 1e-3, 1.0, 2.0, 3.0])


def test_energies_in_other_units(tmp_path):
    edges = np.array([100.0, 200.0, 400.0])
    for unit, factor in (("eV", 1e-3), ("MeV", 1e3), ("keV", 1.0)):
        hdu = table(
            "SPECRESP", [("ENERG_LO", "D", edges[:-1]), ("ENERG_HI", "D", edges[1:]), ("SPECRESP", "D", [1, 2])]
        )
        hdu.columns["ENERG_LO"].unit = hdu.columns["ENERG_HI"].unit = unit
        np.testing.assert_allclose(read_arf(written(tmp_path / "a.arf", hdu)).energy, edges * factor)
    hdu.columns["ENERG_LO"].unit = "Angstrom"
    with pytest.raises(
        DataError, match="ENERG_LO: expected energies in eV, keV, MeV or GeV; found the unit 'Angstrom'"
    ):
        read_arf(written(tmp_path / "a.arf", hdu))


def test_explicit_zeros_and_negative_values_of_a_matrix_survive(tmp_path):
    matrix = sparse.csr_matrix(np.array([[0.5, 1e-3, 0.5, 0.0], [0.0, 0.0, -1e-3, 1.0]]))
    matrix.data[1] = 0.0
    rmf = Rmf(np.array([1.0, 2.0, 3.0]), matrix, np.arange(4), np.arange(4.0), np.arange(1.0, 5.0))
    found = read_rmf(write_rmf(tmp_path / "a.rmf", rmf))
    np.testing.assert_array_equal(found.matrix.toarray(), matrix.toarray())
    (low, high) = (Arf(rmf.energy, np.array([0.0, 1e40])), Arf(rmf.energy, np.array([1.0, 1e-300])))
    for arf in (low, high):
        np.testing.assert_array_equal(read_arf(write_arf(tmp_path / "a.arf", arf, overwrite=True)).area, arf.area)
