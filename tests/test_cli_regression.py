"""The commands for regressions and rates: a table and a formula, the figures, and what is refused."""

import os

import numpy as np
import pytest
from commands import handed_to_the_sampler, refused, run

import hbm_jax as hbm
from hbm_jax import cli


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(1)
    group = np.arange(60) % 6
    x = rng.normal(size=60)
    y = 1.0 + 2.0 * x + rng.normal(size=6)[group] + 0.3 * rng.normal(size=60)
    path = tmp_path / "table.csv"
    rows = [f"{a},{b},g{c}" for a, b, c in zip(x, y, group, strict=True)]
    path.write_text("x,y,g\n" + "\n".join(rows))
    return path


def test_a_formula_and_a_table_reach_the_sampler_and_are_a_design(table, tmp_path, capsys, monkeypatch):
    command = ["regression", "--data", table, "--set", "data.formula=y ~ x + (1 | g)"]
    fit = ["fit", *command, "--out", tmp_path / "run", "--set", "prior.coef[x]=Normal(0, 5)"]
    model, data, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert data.terms == ("Intercept", "x")
    assert model.priors.keys() == {"coef[x]"}
    again = tmp_path / "simulated.csv"
    design = ["--design", *command[2:], "--out", again, "--set", "truth.sd=0.1"]
    status, _, err = run(capsys, "simulate", "regression", *design)
    assert status == 0, err
    simulated = hbm.data.read_regression(again, formula="y ~ x + (1 | g)")
    np.testing.assert_allclose(simulated.X, data.X)


@pytest.mark.long
def test_a_formula_and_a_table_are_fitted(table, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["regression", "--data", table, "--set", "data.formula=y ~ x + (1 | g)"]
    status, text, err = run(capsys, "fit", *command, "--out", out, "--set", "prior.coef[x]=Normal(0, 5)")
    assert status == 0, err
    assert "60 points, y ~ x + (1 | g); 2 coefficients. Groups: 6 g." in text
    slope = float(next(line for line in text.splitlines() if line.startswith("coef[x]")).split()[1])
    assert slope == pytest.approx(2.0, abs=0.2)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures >= {"coefficients", "group_effects_g", "shrinkage_g", "predictive_check"}
    fit = hbm.load(out)
    assert fit.data.terms == ("Intercept", "x")
    assert fit.program.priors.keys() == {"coef[x]"}


def test_what_is_refused(table, tmp_path, capsys):
    base = ["fit", "regression", "--data", table, "--out", tmp_path / "run"]
    text = refused(capsys, *base)
    assert "table.csv: formula: expected one, such as 'y ~ x + (1 | group)'; found none" in text
    text = refused(capsys, *base, "--set", "data.formula=y ~ xx")
    assert "table.csv: formula 'y ~ xx': 'xx' is not in the table (did you mean 'x'?)" in text
    status, _, err = run(capsys, *base, "--set", "data.formula=y ~ x", "--family", "poisson")
    assert status == cli.BAD_INPUT
    assert "y, row 0" in err
    assert "a count" in err
    status, _, err = run(capsys, "fit", "rates", *base[2:], "--set", "data.formula=y ~ 1")
    assert status == cli.BAD_INPUT
    assert "expects trials=" in err
