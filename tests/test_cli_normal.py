"""The commands for the normal hierarchical model: the eight schools, a table of vectors, and what is refused."""

import os

import numpy as np
import pytest
from commands import handed_to_the_sampler, run

import hbm_jax as hbm
from hbm_jax import cli


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


def test_the_eight_schools_reach_the_sampler_and_are_a_design(tmp_path, capsys, monkeypatch):
    options = ["--latents", "mixed", "--set", "prior.tau=HalfCauchy(5)", "--out", tmp_path / "run"]
    fit = ["fit", "normal", "--data", "eight-schools", *options]
    model, schools, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert (model.latents, model.priors.keys()) == ("mixed", {"tau"})
    np.testing.assert_array_equal(np.ravel(schools.values[schools.used]), [28, 8, -3, 7, -1, 1, 18, 12])
    again = tmp_path / "simulated.csv"
    design = ["--design", "eight-schools", "--out", again, "--set", "truth.tau=0.5"]
    status, text, err = run(capsys, "simulate", "normal", *design)
    assert status == 0, err
    assert "tau = 0.5" in text
    assert len(hbm.data.read_values(again)) == 8


@pytest.mark.long
def test_the_eight_schools_are_fitted(tmp_path, capsys):
    out = tmp_path / "run"
    status, text, err = run(capsys, "fit", "normal", "--data", "eight-schools", "--out", out)
    assert status == 0, err
    assert "Normal hierarchical model, known sigma, marginal latents" in text
    assert "8 values in 8 groups of 1" in text
    assert {path.stem for path in (out / "figures").iterdir()} >= {"forest", "funnel"}
    fit = hbm.load(out)
    assert list(fit.data.name) == list("ABCDEFGH")
    assert 4 < float(fit.posterior["mu"].mean()) < 12


def test_what_is_refused(tmp_path, capsys):
    path = tmp_path / "stars.csv"
    rows = "\n".join(f"s{i % 4},{x:.3f}" for i, x in enumerate(np.random.default_rng(1).normal(size=12)))
    path.write_text("star,v\n" + rows + "\n")
    status, _, err = run(capsys, "fit", "normal", "--data", path, "--out", tmp_path / "run")
    assert status == cli.BAD_INPUT
    assert "stars.csv: column 'y' is missing" in err
    columns = ("--set", "columns.y=v", "--set", "columns.group=star")
    status, _, err = run(capsys, "fit", "normal", "--data", path, *columns, "--out", tmp_path / "run")
    assert status == cli.BAD_INPUT
    assert "Use --sigma inferred." in err
    status, _, err = run(capsys, "fit", "normal", "--data", "seven-schools", "--out", tmp_path / "run")
    assert status == cli.BAD_INPUT
    assert "a bundled sample (eight-schools) or a file" in err
