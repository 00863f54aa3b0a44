"""OGIP files written: headers as the standard asks, and everything read back as it was."""

import dataclasses

import numpy as np
import pytest
from astropy.io import fits
from scipy import sparse
from small_ogip import NUM_CHANNELS, small_arf, small_observation, small_rmf, small_spectrum

from hbm_jax.spectra.folding.response import Arf, Rmf
from hbm_jax.spectra.ogip.pha import read_pha, read_spectrum
from hbm_jax.spectra.ogip.responses import read_arf, read_rmf
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf
from hbm_jax.validation import DataError


def assert_same(found, expected):
    for name in ("counts", "channels", "backscal", "areascal", "quality", "grouping"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.exposure == expected.exposure
    assert (found.error is None) == (expected.error is None)
    if expected.error is not None:
        np.testing.assert_array_equal(found.error, expected.error)


RNG = np.random.default_rng(4)
BAD = np.where(np.arange(NUM_CHANNELS) % 4, 0, 5)
SPECTRA = {
    "plain": small_spectrum(),
    "first channel 0": small_spectrum(first=0),
    "grouped": small_spectrum(
        grouping=np.tile([1, -1, -1, 0], 3), quality=np.repeat([0, 2, 5], 4), areascal=np.full(NUM_CHANNELS, 32.4418)
    ),
    "scales that vary": small_spectrum(backscal=RNG.uniform(0.1, 1, NUM_CHANNELS), areascal=RNG.random(NUM_CHANNELS)),
    "no noise": small_spectrum(counts=RNG.uniform(0, 4, NUM_CHANNELS)),
    "Gaussian": small_spectrum(counts=RNG.normal(1, 1, NUM_CHANNELS), error=RNG.uniform(0, 1, NUM_CHANNELS)),
    "NaN in bad channels": small_spectrum(
        counts=np.where(np.arange(NUM_CHANNELS) % 4, np.arange(NUM_CHANNELS), np.nan), quality=BAD
    ),
    "NaN in bad channels, Gaussian": small_spectrum(
        counts=np.where(BAD, np.nan, RNG.normal(1, 1, NUM_CHANNELS)),
        error=np.where(np.arange(NUM_CHANNELS) % 8, 0.25, np.nan),
        quality=BAD,
    ),
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
    for name, kind in (("xray/chandra_gcs25_joint/rmf2278.fits", "E"), ("grb/synth_gbm/b1.rsp", "D")):
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


def test_explicit_zeros_of_a_matrix_survive(tmp_path):
    matrix = sparse.csr_matrix(np.array([[0.5, 1e-3, 0.5, 0.0], [0.0, 0.0, 1e-3, 1.0]]))
    matrix.data[1] = 0.0
    rmf = Rmf(np.array([1.0, 2.0, 3.0]), matrix, np.arange(4), np.arange(4.0), np.arange(1.0, 5.0))
    found = read_rmf(write_rmf(tmp_path / "a.rmf", rmf))
    np.testing.assert_array_equal(found.matrix.toarray(), matrix.toarray())
    (low, high) = (Arf(rmf.energy, np.array([0.0, 1e40])), Arf(rmf.energy, np.array([1.0, 1e-300])))
    for arf in (low, high):
        np.testing.assert_array_equal(read_arf(write_arf(tmp_path / "a.arf", arf, overwrite=True)).area, arf.area)


def test_counts_that_a_file_does_not_hold_come_back_as_none(shared_data, tmp_path):
    whole = np.where(BAD, np.nan, np.arange(NUM_CHANNELS))  # as RATE, because whole COUNTS are taken for Poisson
    spectrum = small_spectrum(counts=whole, error=np.where(BAD, np.nan, 0.5), quality=BAD)
    (found,) = read_pha(write_pha(tmp_path / "a.pha", spectrum))
    np.testing.assert_allclose(found.counts, whole, rtol=1e-15)
    np.testing.assert_allclose(found.error, spectrum.error, rtol=1e-15)
    for name in ("counts", "error"):
        known = {"counts": np.ones(NUM_CHANNELS), "error": np.full(NUM_CHANNELS, 0.5), "quality": BAD}
        with pytest.raises(DataError, match=f"{name}: expected 12 finite numbers"):
            write_pha(tmp_path / "b.pha", small_spectrum(**known | {name: np.where(BAD, np.inf, 1.0)}))
    for spectrum in read_pha(shared_data("xray/integral_isgri/phaI.fits.gz")):
        assert np.isnan(spectrum.counts).any()
        assert_same(read_pha(write_pha(tmp_path / "c.pha", spectrum, overwrite=True))[0], spectrum)
