"""The commands for afterglows: simulate a folder, fit it, leave out by name what cannot be read; what is refused."""

import os
import shutil

import numpy as np
import pytest
from astropy.table import Table
from commands import handed_to_the_sampler, refused, run

from hbm_jax import cli


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "sample"
    options = ["--num", "4", "--seed", "3", "--set", "population.exposure=4000", "--set", "truth.log10_flux_mean=-10.9"]
    options += ["--set", "truth.log10_flux_std=0.3"]
    assert cli.main(["simulate", "afterglow", "--out", str(folder), *options]) == 0
    return folder


def arguments(folder, *more):
    return ["fit", "afterglow", "--catalog", folder / "catalog.ecsv", "--spectra", folder / "spectra", *more]


def test_simulation_says_what_it_wrote_and_how_to_fit_it(tmp_path, capsys):
    folder = tmp_path / "some"
    status, out, _ = run(capsys, "simulate", "afterglow", "--out", folder, "--num", "2", "--whim", "--seed", "1")
    assert status == 0
    assert "2 simulated afterglows" in out
    assert "log10_n0 = -7" in out
    assert f"hbm-jax fit afterglow --catalog {folder / 'catalog.ecsv'} --spectra {folder / 'spectra'} --whim" in out
    assert len(Table.read(folder / "catalog.ecsv")) == 2


def spoilt(sample, tmp_path):
    """The folder with a source that cannot be read."""
    folder = shutil.copytree(sample, tmp_path / "sample")
    (folder / "spectra" / "sim002.pha").write_bytes(b"no FITS file")
    return folder


def test_a_source_that_cannot_be_read_is_named_and_can_be_left_out(sample, tmp_path, capsys, monkeypatch):
    folder, out = spoilt(sample, tmp_path), tmp_path / "run"
    said = refused(capsys, *arguments(folder), "--out", out, one_line=False)
    for word in (
        "sim002",
        "sim002.pha",
        "expected a FITS file",
        "by name: --leave-out sim002 (--leave-out bad leaves out all",
    ):
        assert word in said
    assert not out.exists()
    options = ["--leave-out", "sim002", "--whim", "--out", out]
    model, data, _ = handed_to_the_sampler(capsys, monkeypatch, *arguments(folder, *options))
    assert model.whim
    assert data.name == ("sim001", "sim003", "sim004")


@pytest.mark.long
def test_fit_without_a_source_that_cannot_be_read(sample, tmp_path, capsys):
    folder, out = spoilt(sample, tmp_path), tmp_path / "run"

    short = ["--num-chains", "2", "--num-warmup", "60", "--num-samples", "40", "--seed", "1"]
    status, printed, err = run(capsys, *arguments(folder), "--leave-out", "sim002", "--out", out, *short)
    assert status in (0, cli.MISFIT, cli.NOT_USABLE), err  # so few draws
    assert "sim002" in printed + err
    assert 'leave_out = "sim002"' in (out / "config.toml").read_text()
    assert {"spectra", "host_columns"} <= {path.stem for path in (out / "figures").iterdir()}
    assert "sim001" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--spectra", "spectra"], ["expected a file, as in --catalog FILE"]),
        (["--catalog", "nowhere.ecsv"], ["nowhere.ecsv", "does not exist"]),
        (["--catalog", "{sample}/catalog.ecsv", "--spectra", "{sample}/nowhere"], ["nowhere"]),
        (["--catalog", "{sample}/catalog.ecsv", "--spectra", "{sample}/spectra", "--leave-out", "sim009"], ["sim009"]),
        (["--set", "model.host=skewed"], ["'skewed'", "skew-normal"]),
        (["--set", "prior.log10_nO=0"], ["'log10_nO'", "parameter"]),
        (["--set", "model.sightlines=true"], ["expected whim=True"]),
    ],
)
def test_bad_options_of_a_fit(options, words, sample, tmp_path, capsys):
    text = refused(capsys, "fit", "afterglow", *[o.format(sample=sample) for o in options], "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num", "0"], ["--num: expected 1 or more; found 0"]),
        (["--design", "catalog.ecsv"], ["expected no --design"]),
        (["--arf", "my.arf"], ["expected --rmf with it"]),
        (["--rmf", "nowhere.rmf"], ["nowhere.rmf"]),
        (["--set", "population.exposre=3"], ["'exposre'", "did you mean 'exposure'?"]),
        (["--set", "truth.Om0=0.3"], ["'Om0'"]),
        (["--no-whim", "--set", "population.log10_n0=-7"], ["expected none with --no-whim"]),
    ],
)
def test_bad_options_of_a_simulation(options, words, tmp_path, capsys):
    text = refused(capsys, "simulate", "afterglow", *options, "--out", tmp_path / "sample")
    for word in words:
        assert word in text
    assert not (tmp_path / "sample").exists()


def test_simulation_does_not_replace_a_folder(sample, capsys):
    before = np.sort([path.stat().st_mtime_ns for path in sample.rglob("*")])
    text = refused(capsys, "simulate", "afterglow", "--out", sample, "--num", "2")
    assert "--overwrite" in text
    np.testing.assert_array_equal(np.sort([path.stat().st_mtime_ns for path in sample.rglob("*")]), before)
