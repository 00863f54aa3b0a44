"""The commands for bursts: fit catalogue values and counts, simulate both, and what is refused."""

import os

import numpy as np
import pytest
from astropy.table import Table
from commands import handed_to_the_sampler, refused, run

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.data import BurstPopulation

SHORT = ["--num-chains", "2", "--num-warmup", "60", "--num-samples", "40", "--seed", "1"]


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def test_bundled_bursts_reach_the_sampler(tmp_path, capsys, monkeypatch):
    options = ["--data", "konus-yonetoku", "--pooling", "complete", "--out", tmp_path / "run"]
    model, bursts, _ = handed_to_the_sampler(capsys, monkeypatch, "fit", "golenetskii", *options)
    assert model == hbm.models.Golenetskii(pooling="complete")
    np.testing.assert_array_equal(bursts.log10_E_peak, hbm.data.load_konus("yonetoku").log10_E_peak)


@pytest.mark.long
def test_fit_of_the_bundled_bursts(tmp_path, capsys):
    out = tmp_path / "run"
    status, text, err = run(
        capsys, "fit", "golenetskii", "--data", "konus-yonetoku", "--pooling", "complete", "--out", out
    )
    assert status in (0, cli.MISFIT), err
    assert "usable" in text
    assert "\nmodel: " in text
    assert "gamma" in text
    assert "golenetskii_planes" in {path.stem for path in (out / "figures").iterdir()}
    assert "flux against observed peak energy" in (out / "report.html").read_text()


def test_a_simulated_catalogue_reaches_the_sampler(tmp_path, capsys, monkeypatch):
    table = tmp_path / "bursts.ecsv"
    options = ["--num", "5", "--seed", "3", "--set", "population.num_intervals=4", "--set", "truth.gamma_mean=1.3"]
    status, text, err = run(capsys, "simulate", "golenetskii", "--out", table, *options)
    assert status == 0, err
    assert "5 simulated bursts with 20 intervals" in text
    assert f"hbm-jax fit golenetskii --data {table}" in text
    assert Table.read(table).meta["truth"]["gamma_mean"] == 1.3
    fit = ["fit", "golenetskii", "--data", table, "--out", tmp_path / "run", "--set", "prior.gamma_mean=Normal(1, 1)"]
    model, bursts, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert (len(bursts), bursts.num_intervals) == (5, 20)
    assert model.priors.keys() == {"gamma_mean"}


@pytest.mark.long
def test_a_simulated_catalogue_is_fitted(tmp_path, capsys):
    table = tmp_path / "bursts.ecsv"
    options = ["--num", "5", "--seed", "3", "--set", "population.num_intervals=4", "--set", "truth.gamma_mean=1.3"]
    status, text, err = run(capsys, "simulate", "golenetskii", "--out", table, *options)
    assert status == 0, err
    status, text, err = run(capsys, "fit", "golenetskii", "--data", table, "--out", tmp_path / "run", *SHORT)
    assert status in (0, cli.MISFIT, cli.NOT_USABLE), err  # so few draws
    # On its design, too.
    status, text, err = run(capsys, "simulate", "golenetskii", "--design", table, "--out", tmp_path / "again.csv")
    assert status == 0, err
    assert "5 simulated objects" in text


@pytest.mark.long
def test_simulated_spectra_are_fitted(tmp_path, capsys):
    folder, out = tmp_path / "bursts", tmp_path / "run"
    options = ["--num", "2", "--seed", "3", "--set", "population.num_intervals=2", "--spectrum", "cutoff"]
    options += ["--set", "population.detectors={n0='nai', b0='bgo'}", "--set", "truth.alpha_mean=-0.9"]
    status, text, err = run(capsys, "simulate", "golenetskii-counts", "--out", folder, *options)
    assert status == 0, err
    assert "2 simulated bursts" in text
    command = text.splitlines()[-1].removeprefix("fit them with: hbm-jax ").split()
    assert command == ["fit", "golenetskii-counts", "--catalog", str(folder / "bursts.ecsv"), "--spectrum", "cutoff"]
    status, text, err = run(capsys, *command, "--out", out, *SHORT)
    assert status in (0, cli.MISFIT, cli.NOT_USABLE), err
    assert {"golenetskii_planes", "spectra"} <= {path.stem for path in (out / "figures").iterdir()}
    assert "FileExistsError" not in refused(capsys, "simulate", "golenetskii-counts", "--out", folder, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "{table}", "--pooling", "none"], ["pooling", "'none'", "partial"]),
        (["--data", "{bad}"], ["column 'log10_E_peak' is missing"]),
        (["--data", "{table}", "--spectra", "x"], ["unknown option --spectra"]),
    ],
)
def test_bad_tables_and_options(options, words, tmp_path, capsys):
    table, bad = tmp_path / "bursts.ecsv", tmp_path / "bad.csv"
    BurstPopulation(num_intervals=3).draw(3, seed=1).data.to_table().write(table)
    bad.write_text("name,redshift\na,1.0\n")
    given = [o.format(table=table, bad=bad) for o in options]
    text = refused(capsys, "fit", "golenetskii", *given, "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


def test_a_limit_that_is_not_there(tmp_path, capsys):
    BurstPopulation(num_intervals=3).draw(3, seed=1).data.to_table().write(tmp_path / "bursts.ecsv")
    command = ["fit", "golenetskii", "--data", tmp_path / "bursts.ecsv", "--truncated", "--out", tmp_path / "run"]
    status, _, err = run(capsys, *command)
    assert status == cli.BAD_INPUT
    assert "hbm-jax: Golenetskii(truncated=True): expected bursts with a log10_flux_limit; found none" in err


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("golenetskii", ["--set", "population.gama=1"], ["'gama'", "gamma"]),
        ("golenetskii", ["--set", "truth.gamma=1"], ["'gamma'", "gamma_mean"]),
        ("golenetskii", ["--num", "0"], ["--num", "found 0"]),
        ("golenetskii", ["--design", "konus-amati", "--num", "3"], ["--num: expected no options of populations"]),
        ("golenetskii", ["--truncated"], ["model.truncated", "expected none"]),
        ("golenetskii", ["--set", "population.redshift=uniform"], ["redshift", "'uniform'", "log-normal"]),
        ("golenetskii-counts", ["--design", "a.ecsv"], ["a.ecsv", "no --design"]),
        ("golenetskii-counts", ["--set", "population.spectrum=bent"], ["'bent'", "cutoff"]),
    ],
)
def test_bad_populations(model, options, words, tmp_path, capsys):
    text = refused(capsys, "simulate", model, *options, "--out", tmp_path / "bursts.ecsv")
    for word in words:
        assert word in text
    assert not (tmp_path / "bursts.ecsv").exists()
