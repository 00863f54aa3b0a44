"""Populations of spectra: simulated, written, read back; what is wrong is named, and left out only by name."""

import dataclasses

import jax
import numpy as np
import pytest
from astropy.table import Table
from monte_carlo import seed

from hbm_jax.data import AfterglowPopulation, Afterglows, DataError, DataWarning, read_afterglows, write_afterglows
from hbm_jax.data.populations import draw_until
from hbm_jax.spectra import SpectrumStack, group, noticed

POPULATION = AfterglowPopulation(redshift=(0.5, 1.0, 2.0), log10_flux=(-11.3, 0.2), exposure=3000.0, min_counts=20)


@pytest.fixture(scope="module")
def sample():
    return POPULATION.draw(3, seed=2)


@pytest.fixture(scope="module")
def written(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    return folder, write_afterglows(folder, sample)


@pytest.fixture(scope="module")
def data(written):
    return read_afterglows(written[1], spectra=written[0] / "spectra")


@pytest.fixture
def copy(written, tmp_path):
    """Return a folder in which files may be spoilt, and a function that rewrites the catalogue."""
    import shutil

    shutil.copytree(written[0], tmp_path / "sample")
    folder = tmp_path / "sample"

    def edit(old, new):
        text = (folder / "catalog.ecsv").read_text()
        assert old in text
        (folder / "catalog.ecsv").write_text(text.replace(old, new))

    return folder, edit


def read(folder, **options):
    return read_afterglows(folder / "catalog.ecsv", spectra=folder / "spectra", **options)


def test_objects_are_drawn_until_enough_are_accepted():
    accepted, drawn = draw_until(2, lambda drawn, accepted: (drawn, accepted) if drawn % 3 == 2 else None, "")
    assert (accepted, drawn) == ([(2, 0), (5, 1)], 6)
    with pytest.raises(DataError, match=r"^1 of 400$"):  # 200 draws per object
        draw_until(2, lambda drawn, _: drawn if drawn == 7 else None, "{accepted} of {drawn}")


def test_a_source_with_exactly_the_smallest_number_of_counts_is_kept():
    first = POPULATION.draw(1, seed=3)
    spectrum = first.spectra[0]
    response = spectrum.response
    counts = spectrum.counts[(response.e_min >= 0.3) & (response.e_max <= 10.0)].sum()
    same = dataclasses.replace(POPULATION, min_counts=int(counts)).draw(1, seed=3)
    np.testing.assert_array_equal(same.spectra[0].counts, spectrum.counts)


def test_what_is_written_is_read_back(sample, data):
    assert data.name == ("sim001", "sim002", "sim003")
    np.testing.assert_allclose(data.z, [0.5, 1.0, 2.0])
    np.testing.assert_allclose(data.nh_mw, sample.columns["nh_mw"])
    assert data.knows_redshift.all()
    for row, spectrum in enumerate(sample.spectra):
        inside = noticed(spectrum, (0.3, 10.0))
        assert data.spectra.counts[row].sum() == spectrum.counts[inside].sum()
        assert data.spectra.background[row].sum() == spectrum.background.counts[inside].sum()
    assert np.nanmin(data.spectra.e_min) >= 0.3
    assert np.nanmax(data.spectra.e_max) <= 10.0
    assert data.spectra.responses[0].rmf is data.spectra.responses[2].rmf
    assert "3 afterglows at redshift 0.5 to 2;" in data.describe()


def test_options_of_reading(written, data):
    folder = written[0]
    hard = read(folder, energies=(1.0, 8.0), grouping="min_counts", group_by=5)
    assert np.nanmin(hard.spectra.e_min) >= 1.0
    assert np.nanmax(hard.spectra.e_max) <= 8.0
    used = hard.spectra.used
    assert (hard.spectra.counts[used] >= 5).mean() > 0.9  # the last group of a spectrum has what is left
    two = read(folder, leave_out=["sim002"])
    assert two.name == ("sim001", "sim003")
    np.testing.assert_array_equal(two.z, data.z[[0, 2]])
    assert dict(two.left_out).keys() == {"sim002"}


def test_a_missing_redshift_names_the_source(copy):
    folder, edit = copy
    edit("\nsim002 1.0 ", "\nsim002 nan ")
    with pytest.raises(DataError, match=r"expected 3 sources that can be read; found 1 that cannot") as error:
        read(folder)
    assert "sim002" in str(error.value)
    assert "redshift" in str(error.value) or "'z'" in str(error.value) or "z, row 2" in str(error.value)
    assert "leave_out=['sim002']" in str(error.value)
    assert read(folder, leave_out="bad").name == ("sim001", "sim003")


def test_values_that_cannot_be_name_the_source_and_unusual_ones_are_kept_with_the_data(copy):
    folder, _ = copy
    table = Table.read(folder / "catalog.ecsv")
    table["z"][1] = -1.0
    table.write(folder / "catalog.ecsv", overwrite=True)
    with pytest.raises(DataError, match=r"sim002: z, row 1 \(sim002\): expected a redshift from 0 to 10 .*missing=-1"):
        read(folder)
    table["nh_mw"][2], table["e_z"] = 7.0, 0.1
    table.write(folder / "catalog.ecsv", overwrite=True)
    with (
        pytest.warns(DataWarning, match="column 'e_z'"),
        pytest.warns(DataWarning, match="nh_mw of sim003 is 7, unusual for a column in units of 1e22 cm"),
    ):
        data = read(folder, leave_out="bad")
    assert data.name == ("sim001", "sim003")
    assert "nh_mw of sim003 is 7, unusual" in data.describe()
    assert "column 'e_z' looks like the error of 'z' and is not used" in data.describe()
    assert Afterglows.from_dict(data.to_dict()).warnings == data.warnings


def test_bad_files_are_all_reported_at_once(copy):
    folder, _ = copy
    (folder / "spectra" / "sim001.pha").write_bytes(b"no FITS file")
    (folder / "spectra" / "sim003.pha").unlink()
    with pytest.raises(DataError, match=r"found 2 that cannot") as error:
        read(folder)
    assert "sim001" in str(error.value)
    assert "sim003" in str(error.value)
    assert read(folder, leave_out=["sim001", "sim003"]).name == ("sim002",)
    with pytest.raises(DataError, match=r"sim02.*sim002"):
        read(folder, leave_out=["sim02"])


def test_missing_folders_and_columns(copy):
    folder, edit = copy
    with pytest.raises(FileNotFoundError, match="expected a folder; found"):
        read_afterglows(folder / "catalog.ecsv", spectra=folder / "spectre")
    edit("name: z,", "name: zeta,")
    edit("\nname z ", "\nname zeta ")
    with pytest.raises(DataError, match=r"column 'z' is missing"):
        read(folder)
    assert len(read(folder, columns={"z": "zeta"})) == 3


def test_container_checks_and_parts(sample, data):
    spectra = data.spectra
    with pytest.raises(DataError, match=r"z.*found"):
        Afterglows.from_spectra(spectra, z=[0.5, -1.0, 2.0])
    with pytest.raises(DataError, match=r"z"):
        Afterglows.from_spectra(spectra, z=[0.5, 1.0])
    with pytest.raises(DataError, match=r"subset: expected indices from -3 to 2; found 3"):
        data.subset([3])
    part = data.subset([2, 0])
    assert part.name == ("sim003", "sim001")
    np.testing.assert_array_equal(part.spectra.counts[1][: spectra.used[0].sum()], spectra.counts[0][spectra.used[0]])
    other = data.replace_observations(spectra.counts + spectra.used)
    assert other.spectra.counts.sum() == spectra.counts.sum() + spectra.used.sum()
    again = Afterglows.from_dict(data.to_dict())
    for key, value in data.to_dict().items():
        np.testing.assert_array_equal(again.to_dict()[key], value, err_msg=key)
    leaves, tree = jax.tree.flatten(data)
    np.testing.assert_array_equal(jax.tree.unflatten(tree, leaves).z, data.z)
    assert dataclasses.is_dataclass(data)
    assert len(sample.spectra) == 3


def test_simulated_counts_follow_their_sources(monte_carlo):
    same = {"photon_index": (2.0, 0.0), "log10_nh": (-3.0, 0.0), "log10_nh_mw": (-1.4, 0.0)}
    bright = dataclasses.replace(POPULATION, log10_flux=(-10.0, 0.0), **same)
    faint = dataclasses.replace(bright, log10_flux=(-10.5, 0.0))
    counts = [sum(s.counts.sum() for s in one.draw(3, seed=seed(6)).spectra) for one in (bright, faint)]
    # The background adds 3 counts a source; half a dex is a factor of 3.16.
    ratio = (counts[0] - 9.0) / (counts[1] - 9.0)
    monte_carlo.within(ratio, 10**0.5, ratio * np.sqrt(1.0 / counts[0] + 1.0 / counts[1]), name="ratio")
    again = [bright.draw(2, seed=6).spectra[1].counts for _ in range(2)]
    np.testing.assert_array_equal(*again)


@pytest.mark.long
def test_populations_and_selection(monte_carlo):
    many = dataclasses.replace(
        POPULATION,
        redshift="star formation",
        host="cloud",
        log10_nh=(0.0, 0.0),
        min_counts=200,
        log10_flux=(-11.5, 0.4),
    ).draw(40, seed=seed(1))
    assert min(s.counts.sum() for s in many.spectra) >= 200
    assert many.truth["num_drawn"] > 40
    # No way out of a sphere is longer than its diameter; the mean of the way is 3/8 of that.
    assert (many.truth["log10_nh"] <= 1e-12).all()
    # Bright enough are these whatever their columns are, nearly: their mean is that of all to some hundredths.
    monte_carlo.within(np.mean(10.0 ** many.truth["log10_nh"]), 0.375, np.hypot(0.24 / np.sqrt(40), 0.02), name="way")
    assert (many.columns["z"] >= 0.1).all()
    assert (many.columns["z"] <= 8.0).all()
    assert 1.0 < np.median(many.columns["z"]) < 3.5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"redshift": "stars"}, "redshift: expected 'star formation'"),
        ({"host": "clouds"}, "host: expected one of .*'cloud'.*; found 'clouds'"),
        ({"exposure": 0.0}, "exposure: expected a positive number; found 0"),
        ({"photon_index": (2.0, -0.1)}, "photon_index"),
    ],
)
def test_bad_populations_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        AfterglowPopulation(**given)


def test_groups_in_memory_are_those_of_files(sample, data):
    masks = [noticed(s, (0.3, 10.0)) for s in sample.spectra]
    spectra = [group(s, "optimal", noticed=m) for s, m in zip(sample.spectra, masks, strict=True)]
    stack = SpectrumStack.of(spectra, masks)
    np.testing.assert_array_equal(stack.counts, data.spectra.counts)
