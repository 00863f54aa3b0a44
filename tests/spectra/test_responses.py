"""Responses in several parts, with negative elements, with an effective area too few or too many."""

import contextlib
import warnings

import numpy as np
import pytest
from astropy.io import fits
from scipy import sparse
from small_ogip import NUM_CHANNELS, NUM_ENERGIES, small_arf, small_rmf, small_spectrum

from hbm_jax.spectra import Rmf, read_rmf, read_spectrum, write_arf, write_pha, write_rmf
from hbm_jax.spectra.ogip.responses import num_matrices
from hbm_jax.validation import DataWarning


def changed(matrix, energy=None):
    rmf = small_rmf()
    return Rmf(rmf.energy if energy is None else energy, sparse.csr_matrix(matrix), rmf.channels, rmf.e_min, rmf.e_max)


def in_one_file(path, *rmfs, times=((None, None),) * 2):
    names = [write_rmf(path.with_name(f"part{number}.rmf"), rmf, overwrite=True) for number, rmf in enumerate(rmfs)]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(fits.open(name)) for name in names]
        hdus = fits.HDUList([fits.PrimaryHDU(), *(part["MATRIX"] for part in parts), parts[0]["EBOUNDS"]])
        for hdu, pair in zip(hdus[1:3], times, strict=True):
            hdu.header["TSTART"], hdu.header["TSTOP"] = pair
        hdus.writeto(path, overwrite=True)
    return path


def test_parts_of_a_split_response_are_summed(tmp_path):
    whole = small_rmf()
    dense = whole.matrix.toarray()
    core = np.where(np.arange(NUM_CHANNELS) % 2, dense, 0.0)
    tail = np.random.default_rng(4).uniform(0.0, 0.1, (NUM_ENERGIES // 2, NUM_CHANNELS))
    coarse = whole.energy[::2] * (1.0 + 1e-8)  # as in single precision
    found = read_rmf(in_one_file(tmp_path / "a.rmf", changed(core), changed(tail, coarse)))
    np.testing.assert_allclose(found.matrix.toarray(), core + np.repeat(tail, 2, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.energy, whole.energy)
    assert num_matrices(tmp_path / "a.rmf") == 1
    assert found.name.endswith("a.rmf[MATRIX, 1 to 2]")
    # Edges that only one of them has are kept; where one has no bins the other is alone.
    edges = np.array([whole.energy[1], 1.0, whole.energy[-1]])
    found = read_rmf(in_one_file(tmp_path / "a.rmf", changed(core), changed(tail[:2], edges)))
    np.testing.assert_array_equal(found.energy, np.sort(np.append(whole.energy, 1.0)))
    flat = np.diff(found.energy) @ found.matrix.toarray()
    np.testing.assert_allclose(flat, np.diff(whole.energy) @ core + np.diff(edges) @ tail[:2], rtol=1e-12)


def test_matrices_of_other_times_are_others(tmp_path):
    one, two = changed(small_rmf().matrix), changed(0.5 * small_rmf().matrix)
    path = in_one_file(tmp_path / "a.rmf", one, two, times=[(0.0, 1.0), (1.0, 2.0)])
    assert num_matrices(path) == 2
    np.testing.assert_allclose(read_rmf(path, 2).matrix.toarray(), two.matrix.toarray())
    assert num_matrices(in_one_file(path, one, two, times=[(0.0, 2.0), (0.0, 2.0)])) == 1


def test_negative_elements_become_zero_and_rows_keep_their_sums(tmp_path):
    dense = small_rmf().matrix.toarray()
    dense[2] = 0.0
    dense[2, [0, 4, 7]] = 0.6, -0.01, 0.4
    path = write_rmf(tmp_path / "a.rmf", changed(dense))
    with pytest.warns(DataWarning, match=r"a\.rmf\[MATRIX\], MATRIX: 1 negative elements, 0\.00\d+ of the response"):
        found = read_rmf(path)
    matrix = found.matrix.toarray()
    np.testing.assert_allclose(matrix.sum(axis=1), dense.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(matrix[2, [0, 4, 7]], np.array([0.6, 0.0, 0.4]) * 0.99, rtol=1e-12)
    others = np.arange(NUM_ENERGIES) != 2
    np.testing.assert_allclose(matrix[others], dense[others], rtol=1e-12)
    # Photons of the second bin alone, as of a soft source, give no counts below zero.
    assert (np.eye(NUM_ENERGIES)[2] @ matrix >= 0).all()


def test_an_area_that_is_missing_or_there_twice_is_told(shared_data, tmp_path):
    area = small_arf().area
    files = {"redistribution.rmf": small_rmf(), "full.rsp": changed(sparse.diags(area) @ small_rmf().matrix)}
    for name, rmf in files.items():
        write_rmf(tmp_path / name, rmf)
    write_arf(tmp_path / "a.arf", small_arf())
    path = write_pha(tmp_path / "a.pha", small_spectrum())

    def read(rmf, arf):
        return read_spectrum(path, rmf=tmp_path / rmf, arf=arf if arf == "none" else tmp_path / arf)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = read("redistribution.rmf", "a.arf"), read("full.rsp", "none")
    np.testing.assert_allclose(both[0].response.matrix.toarray(), both[1].response.matrix.toarray(), rtol=1e-12)
    assert both[0].warnings == ()
    with pytest.warns(DataWarning, match=r"redistribution\.rmf\[MATRIX\]: there is no ARF for .* taken as 1 cm\^2"):
        found = read("redistribution.rmf", "none")
    assert len(found.warnings) == 1
    with pytest.warns(
        DataWarning, match=r"full\.rsp.*: the largest row sum of this response is .* multiplied by that of .*a\.arf"
    ):
        read("full.rsp", "a.arf")
    # A response per illuminated cm^2 says that it is one.
    bat = shared_data("xray/swift_bat_862/swiftbat_survey_full_157m.rsp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_spectrum(shared_data("xray/swift_bat_862/bat_index_862.pha"), rmf=bat)
    assert found.response.rmf.full
    again = read_rmf(write_rmf(tmp_path / "bat.rsp", found.response.rmf))
    assert again.full
    assert again.name.endswith("[SPECRESP MATRIX]")
