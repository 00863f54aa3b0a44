"""Bursts as counts: files written and read back, responses chosen by time, containers, and all that is refused."""

import dataclasses
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from monte_carlo import seed

from hbm_jax.data import (
    BurstSpectra,
    BurstSpectraPopulation,
    DataError,
    read_burst,
    read_burst_spectra,
    write_burst_spectra,
)
from hbm_jax.data.bursts.spectra import ARRAYS
from hbm_jax.spectra import gbm_like_arf, gbm_like_rmf, read_pha, write_rmf
from hbm_jax.spectra.ogip.type2 import read_intervals, read_matrix_times, write_pha2
from hbm_jax.spectra.stack import ARRAYS as STACKED
from hbm_jax.validation import DataWarning


@pytest.fixture(scope="module")
def sample():
    return BurstSpectraPopulation(
        num_intervals=(3, 2), evolution="tracking", detectors={"n0": "nai", "b0": "bgo"}
    ).draw(2, seed=3)


@pytest.fixture(scope="module")
def written(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bursts")
    write_burst_spectra(folder, sample)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def same(one, two):
    for key in ARRAYS:
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key), err_msg=key)
    for key in STACKED:
        np.testing.assert_array_equal(getattr(one.spectra, key), getattr(two.spectra, key), err_msg=key)
    for a, b in zip(one.spectra.responses, two.spectra.responses, strict=True):
        np.testing.assert_allclose(a.matrix.toarray(), b.matrix.toarray(), rtol=1e-14)
    assert one.name == two.name
    assert one.detector == two.detector


def test_files_come_back_as_they_were_written(sample, folder):
    read = read_burst_spectra(folder / "bursts.ecsv")
    same(read, BurstSpectra.of(sample.bursts))
    assert len(read) == 2
    assert len(read.spectra) == 10
    # Ranges that the detectors' names imply, in whole channels.
    nai, bgo = (np.asarray(read.spectra.used)[row] for row in (0, 3))
    assert np.nanmin(read.spectra.e_min[0][nai]) >= 8.0
    assert np.nanmax(read.spectra.e_max[0][nai]) <= 900.0
    assert np.nanmin(read.spectra.e_min[3][bgo]) >= 250.0
    assert np.nanmax(read.spectra.e_max[3][bgo]) <= 40000.0
    assert read.spectra.default_statistic == "pgstat"
    # One response file a detector: read once, held once.
    assert len({id(r.rmf) for r in read.spectra.responses}) == 4
    table = Table.read(folder / "bursts.ecsv")
    assert table.meta["truth"]["gamma_mean"] == 1.5
    with pytest.raises(FileExistsError, match="overwrite"):
        write_burst_spectra(folder, sample)


def test_storage_and_selection(sample):
    data = BurstSpectra.of(sample.bursts)
    same(data, BurstSpectra.from_dict(data.to_dict()))
    same(data.subset([1]), BurstSpectra.of(sample.bursts[1:]))
    same(data.subset(np.array([True, True])), data)
    assert data.subset([1, 0]).name == ("sim002", "sim001")
    one = data.intervals([3])
    assert one.name == ("sim002",)
    assert one.start == data.start[3]
    np.testing.assert_array_equal(one.spectra.counts, data.spectra.counts[[6, 8]])
    assert data.interval_name[3] == "sim002 1"
    assert data.detector_name[1] == "sim001 b0"
    assert "5 in all" in data.describe()
    assert data.to_table()["counts"].sum() == np.asarray(data.spectra.counts).sum()
    changed = data.replace_observations(np.asarray(data.spectra.counts) + np.asarray(data.spectra.used))
    assert (changed.spectra.counts >= data.spectra.counts).all()
    for rows in ([2], [0, 0], [], np.array([True])):
        with pytest.raises(DataError, match="subset: expected"):
            data.subset(rows)


def test_ranges_grouping_intervals_and_reference_are_choices(folder):
    table = Table.read(folder / "bursts.ecsv")
    table["intervals"] = ["2-3", "1"]
    table["reference"] = ["b0", "n0"]
    data = read_burst_spectra(
        table, spectra=folder, energies={"n0": [(10.0, 30.0), (40.0, 900.0)]}, grouping="channels_per_group", group_by=4
    )
    assert len(data.start) == 3
    assert data.reference.tolist() == [0, 1, 1, 0]
    assert (np.bincount(data.spectrum_interval) == 2).all()
    e_min, e_max = data.spectra.e_min[0], data.spectra.e_max[0]
    assert not ((e_min < 40.0) & (e_max > 30.0)).any()
    assert np.asarray(data.spectra.used)[0].sum() < 32


def test_spectra_without_exposure_are_left_out(sample, folder):
    whole = BurstSpectra.of(sample.bursts)
    left = np.ones(len(whole.spectra), bool)
    left[(np.asarray(whole.spectrum_interval) == 1) & (np.asarray(whole.spectrum_detector) == 0)] = False
    for detector, intervals in (("n0", whole.start), ("b0", np.delete(whole.start, 1))):
        with fits.open(folder / "sim001" / f"{detector}.pha", mode="update") as hdus:
            hdus["SPECTRUM"].data["EXPOSURE"][1] = -1.0
        with pytest.warns(
            DataWarning, match=r"[nb]0\.pha.*EXPOSURE: spectra without a positive exposure .* left out: 2\."
        ):
            data = read_burst_spectra(folder / "bursts.ecsv")
        np.testing.assert_array_equal(data.start, intervals)
        np.testing.assert_array_equal(data.spectra.counts, np.asarray(whole.spectra.counts)[left])
        left &= np.asarray(whole.spectrum_interval) != 1
    assert [f"{detector}.pha" in text for detector, text in zip(("n0", "b0"), data.warnings, strict=True)] == [True] * 2
    assert "Warning: " in data.describe()
    files = {detector: folder / "sim001" / f"{detector}.pha" for detector in ("n0", "b0")}
    with pytest.warns(DataWarning), pytest.raises(DataError, match=r"sim001: intervals: .* found none in .* 2\."):
        read_burst(files, name="sim001", z=1.0, intervals=[1, 2])


def test_the_matrix_is_that_of_the_time_of_the_interval(sample, tmp_path):
    burst = sample.bursts[0]
    spectra = burst.spectra["n0"]
    response = spectra[0].response
    matrices = [write_rmf(tmp_path / f"{k}.rsp", dataclasses.replace(response, area=response.area * k)) for k in (1, 2)]
    middle = 0.5 * (burst.start[1] + burst.stop[1])
    with fits.open(matrices[0]) as one, fits.open(matrices[1]) as two:
        hdus = fits.HDUList([fits.PrimaryHDU(), one[1], two[1], one[2]])
        for hdu, (start, stop) in zip(hdus[1:3], [(-10.0, middle - 0.01), (middle - 0.01, 1e3)], strict=True):
            hdu.header["TSTART"], hdu.header["TSTOP"] = 5e8 + start, 5e8 + stop
            hdu.header["TRIGTIME"] = 5e8
        hdus.writeto(tmp_path / "n0.rsp")
    np.testing.assert_allclose(read_matrix_times(tmp_path / "n0.rsp")[1], [middle - 0.01, 1e3], atol=1e-6)
    write_pha2(tmp_path / "n0.pha", spectra, start=burst.start, stop=burst.stop, background="n0_bak.pha", rmf="n0.rsp")
    header = fits.getheader(tmp_path / "n0.pha", "SPECTRUM")
    expected = {"HDUCLAS3": "COUNT", "HDUCLAS4": "TYPE:II", "CORRFILE": "none", "CORRSCAL": 1.0, "POISSERR": True}
    assert {key: header[key] for key in expected} == expected
    behind = [s.background for s in spectra]
    write_pha2(tmp_path / "n0_bak.pha", behind, start=burst.start, stop=burst.stop)
    np.testing.assert_array_equal(read_intervals(tmp_path / "n0.pha"), (burst.start, burst.stop))
    # A path alone: the detector is named by the file, and the header names the response.
    data = read_burst([tmp_path / "n0.pha"], name="one", z=1.0)
    assert data.detector == ("n0",)
    total = [r.matrix.sum() for r in data.spectra.responses]
    np.testing.assert_allclose(np.array(total) / total[0], [1.0, 2.0, 2.0], rtol=1e-12)
    chosen = read_burst({"n0": {"spectrum": tmp_path / "n0.pha", "rmf": f"{tmp_path}/n0.rsp{{2}}"}}, name="one", z=1.0)
    assert len({id(r.rmf) for r in chosen.spectra.responses}) == 1
    assert chosen.spectra.responses[0].matrix.sum() == pytest.approx(total[1])


def cut(path, **changes):
    """Change columns or keywords of the first table of a file."""
    with fits.open(path) as hdus:
        for key, value in changes.items():
            if key in hdus[1].columns.names:
                hdus[1].data[key] = value
            else:
                hdus[1].header[key] = value
        hdus.writeto(path, overwrite=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "sim001" / "b0.pha").unlink(), r"sim001: .*expected one file b0.*found n0\.pha"),
        (lambda f: (f / "sim001" / "b0.rsp").unlink(), r"b0\.pha, RESPFILE: expected the file 'b0\.rsp'"),
        (lambda f: cut(f / "sim001" / "n0.pha", EXPOSURE=-1.0), r"n0\.pha\[SPECTRUM\], spectrum 1, EXPOSURE"),
        (
            lambda f: cut(f / "sim001" / "b0.pha", TSTART=[0.0, 0.1, 0.2]),
            r"b0\.pha\[SPECTRUM\], TSTART, row 1: expected the interval",
        ),
        (  # by more than a thousandth of an interval of 1.88 s
            lambda f: cut(f / "sim001" / "b0.pha", TSTOP=[1.12786715, 2.51843638, 4.404]),
            r"TSTART, row 2: expected the interval 2\.51844 to 4\.40079 s of .*; found 2\.51844 to 4\.404 s",
        ),
        (
            lambda f: cut(f / "sim001" / "b0.pha", TSTOP=-5.0),
            r"b0\.pha\[SPECTRUM\], TSTOP, row 0: expected an end after",
        ),
        (lambda f: cut(f / "sim002" / "n0_bak.pha", STAT_ERR=-1.0), r"sim002: .*n0_bak\.pha.*STAT_ERR"),
        (lambda f: (f / "sim002" / "n0.pha").write_bytes(b"no FITS"), r"sim002: .*n0\.pha: expected a FITS file"),
    ],
)
def test_bad_files_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=r"(?s)found 1 that cannot:.*" + message):
        read_burst_spectra(folder / "bursts.ecsv")
    left = read_burst_spectra(folder / "bursts.ecsv", leave_out="bad")
    assert len(left) == 1
    assert "Left out" in left.describe()


def test_bad_catalogues_and_observations_are_named(sample, folder, tmp_path):
    table = Table.read(folder / "bursts.ecsv")
    with pytest.raises(DataError, match="column 'z' is missing"):
        read_burst_spectra(table["name", "detectors"], spectra=folder)
    table["z"] = [1.0, np.nan]
    with pytest.raises(DataError, match="sim002: z, row 1: expected a redshift"):
        read_burst_spectra(table, spectra=folder)
    with pytest.raises(DataError, match="leave_out: expected names"):
        read_burst_spectra(table, spectra=folder, leave_out=["sim003"])
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        read_burst_spectra(table, spectra=tmp_path / "nowhere")
    table["z"] = [1.0, -1.0]
    with pytest.raises(DataError, match=r"sim002: z, row 1 \(sim002\): expected a redshift between 0 and 20"):
        read_burst_spectra(table, spectra=folder)
    table["z"] = [1.0, 12.0]
    with pytest.warns(DataWarning, match="z of sim002 is 12, unusual for a redshift"):
        assert "z of sim002 is 12" in read_burst_spectra(table, spectra=folder).describe()
    table["z"], table["intervals"] = [1.0, 1.0], ["1-9", "x"]
    with pytest.raises(DataError, match=r"(?s)numbers from 1 to 3; found 4.*such as '2-8'"):
        read_burst_spectra(table, spectra=folder)
    burst = sample.bursts[0]
    for change, message in (
        ({"z": 0.0}, r"z, row 0 \(sim001\): expected a redshift between 0 and 20, found 0"),
        ({"stop": burst.start}, "intervals"),
        ({"spectra": {}}, "at least one detector"),
        ({"spectra": {"n0": burst.spectra["n0"][:2]}}, "expected 3 spectra"),
        ({"spectra": {"n0": [None, *burst.spectra["n0"][1:]]}}, "interval 1: expected a spectrum"),
        ({"reference": "n9"}, "reference: expected one of n0, b0"),
        ({"energies": {"n9": (8.0, 9.0)}}, "energies: expected one of n0, b0"),
    ):
        with pytest.raises(DataError, match=message):
            BurstSpectra.of([dataclasses.replace(burst, **change)])
    with pytest.raises(DataError, match="twice"):
        BurstSpectra.of([burst, burst])
    with pytest.raises(DataError, match="at least one"):
        BurstSpectra.of([])


def test_type_two_files_refuse_what_they_cannot_hold(sample, tmp_path):
    spectra = sample.bursts[0].spectra["n0"]
    times = {"start": [0.0, 1.0, 2.0], "stop": [1.0, 2.0, 3.0]}
    path = tmp_path / "a.pha"
    mixed = [spectra[0], spectra[1].background, spectra[2]]
    other = dataclasses.replace(spectra[1], channels=spectra[1].channels + 1)
    whole = [dataclasses.replace(s.background, counts=np.round(s.background.counts)) for s in spectra]
    for bad, message in (
        ([], "at least one"),
        (mixed, "errors in all spectra or in none"),
        ([spectra[0], other, spectra[2]], "spectrum 2 .*channels of the first"),
        (whole, "not all whole numbers"),
    ):
        with pytest.raises(DataError, match=message):
            write_pha2(path, bad, **{k: v[: len(bad)] for k, v in times.items()})
    with pytest.raises(DataError, match="start < stop"):
        write_pha2(path, spectra, start=times["stop"], stop=times["start"])
    write_pha2(path, spectra, **times)
    with pytest.raises(FileExistsError):
        write_pha2(path, spectra, **times)
    for one, two in zip(read_pha(path), spectra, strict=True):
        np.testing.assert_array_equal(one.counts, two.counts)
        assert one.error is None
        assert one.exposure == two.exposure


@pytest.mark.parametrize("kind", ["nai", "bgo"])
def test_the_idealised_scintillators_count_each_photon_once_at_most(kind):
    rmf, arf = gbm_like_rmf(kind), gbm_like_arf(kind)
    assert rmf.matrix.shape == (140, 128)
    total = np.asarray(rmf.matrix.sum(axis=1)).ravel()
    assert (total <= 1.0 + 1e-12).all()
    middle = np.sqrt(rmf.energy[1:] * rmf.energy[:-1])
    # Away from the ends of the channels all photons are counted, but for what they leave below the lowest channel.
    well = (middle > 3 * rmf.e_min[0]) & (middle < rmf.e_max[-1] / 3)
    assert total[well].min() > 0.85
    centre = np.sqrt(rmf.e_min * rmf.e_max)
    row = np.searchsorted(rmf.energy, 1000.0)
    peak = rmf.matrix[row].toarray()[0]
    assert centre[peak.argmax()] == pytest.approx(1000.0, rel=0.15)
    assert (arf.area > 0).all()
    assert 60.0 < arf.area.max() < 200.0
    with pytest.raises(ValueError, match="expected one of 'nai', 'bgo'"):
        gbm_like_rmf("csi")


@pytest.mark.long
def test_a_population_is_what_it_says(monte_carlo):
    population = BurstSpectraPopulation(
        num_intervals=40, duration=(0.01, 0.02), threshold=0.0, intrinsic_scatter=0.0, detectors={"n0": "nai"}
    )
    drawn = population.draw(6, seed=seed(7))
    peak = drawn.truth["log10_E_peak"].reshape(6, 40)
    assert (np.diff(peak, axis=1) <= 0).all()
    monte_carlo.within(peak.mean(), 2.7, 0.25 / np.sqrt(240), name="mean")
    monte_carlo.within(peak.std(), 0.25, 0.25 / np.sqrt(480), name="standard deviation")
    flux = drawn.truth["log10_flux"].reshape(6, 40)
    slope = (flux[:, 0] - flux[:, -1]) / (peak[:, 0] - peak[:, -1])
    np.testing.assert_allclose(slope, drawn.truth["gamma"], rtol=1e-10)
    assert drawn.truth["num_drawn"] == 6
    with pytest.raises(DataError, match="threshold: expected bursts with"):
        BurstSpectraPopulation(num_intervals=1, log10_N=(40.0, 0.0), detectors={"n0": "nai"}).draw(1, seed=1)
    for bad in ({"gamma": (1.0,)}, {"evolution": "soft"}, {"duration": (2.0, 1.0)}, {"detectors": {}}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            BurstSpectraPopulation(**bad)
