"""The commands for a linear relation: a table of one's own, fitted and simulated, and what is refused."""

import os

import numpy as np
import pytest
from commands import handed_to_the_sampler, refused, run

from hbm_jax import cli
from hbm_jax.models import Relation


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(1)
    mass = rng.normal(11.0, 0.5, 40)
    light = 1.2 * (mass - 11.0) + 44.0 + rng.normal(0, 0.1, 40)
    rows = zip(mass + rng.normal(0, 0.1, 40), light, strict=True)
    path = tmp_path / "galaxies.csv"
    path.write_text("log_M,log_L,e_M,e_L\n" + "\n".join(f"{m},{y},0.1,0.05" for m, y in rows))
    return path


COLUMNS = ["columns.x=log_M", "columns.y=log_L", "columns.sigma_x=e_M", "columns.sigma_y=e_L"]


def test_a_table_of_ones_own_reaches_the_sampler_and_is_a_design(table, tmp_path, capsys, monkeypatch):
    options = [word for column in COLUMNS for word in ("--set", column)]
    command = ["relation", "--pooling", "complete", *options]
    fit = ["fit", *command, "--data", table, "--out", tmp_path / "run"]
    model, data, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert model == Relation(pooling="complete")
    np.testing.assert_allclose(data.errors[data.used], np.broadcast_to(np.diag([0.1, 0.05]) ** 2, (40, 2, 2)))
    assert "40 points in one group" in data.describe()
    again = tmp_path / "simulated.csv"
    status, text, err = run(capsys, "simulate", *command, "--design", table, "--out", again, "--set", "truth.alpha=2")
    assert status == 0, err
    assert "alpha = 2" in text


def test_a_selection_from_the_command_line_and_from_a_file(table, tmp_path, capsys, monkeypatch):
    text = "x > 9 and y < Normal(46, 1) +- 0.2"
    (tmp_path / "run.toml").write_text(f'[model]\nselection = "{text}"\n[prior]\ny_lim_width = "HalfNormal(0.3)"\n')
    options = ["relation", "--pooling", "complete", *[word for column in COLUMNS for word in ("--set", column)]]
    for more in (["--selection", text, "--prior", "y_lim_width=HalfNormal(0.3)"], ["--config", tmp_path / "run.toml"]):
        command = ["fit", *options, *more, "--data", table, "--out", tmp_path / "run"]
        model, _, _ = handed_to_the_sampler(capsys, monkeypatch, *command)
        assert str(model.selections[1]) == "y < Normal(loc=46.0, scale=1.0) +- HalfNormal(scale=0.3)"
        assert model.selections[0].limit == 9.0
    message = refused(capsys, "fit", *options, "--selection", "x", "--data", table, "--out", tmp_path / "run")
    assert "selection: expected text such as 'x > 1'" in message


@pytest.mark.long
def test_a_table_of_ones_own_is_fitted(table, tmp_path, capsys):
    options = [word for column in COLUMNS for word in ("--set", column)]
    out = tmp_path / "run"
    command = ["relation", "--pooling", "complete", *options]
    status, text, err = run(capsys, "fit", *command, "--data", table, "--out", out)
    assert status == 0, err
    assert "40 points in one group" in text
    slope = float(next(line for line in text.splitlines() if line.strip().startswith("alpha")).split()[1])
    assert slope == pytest.approx(1.2, abs=0.25)
    assert {path.stem for path in (out / "figures").iterdir()} >= {"lines"}


def test_what_is_refused(table, tmp_path, capsys):
    text = refused(capsys, "fit", "relation", "--data", table, "--out", tmp_path / "run")
    for word in ("galaxies.csv", "columns 'x', 'y' are missing", "log_M", "--column x=NAME --column y=NAME"):
        assert word in text
    options = [word for column in COLUMNS for word in ("--set", column)]
    prior = ["--prior", "alpha_mean=0"]
    status, _, err = run(capsys, "fit", "relation", "--data", table, *options, *prior, "--out", tmp_path / "run")
    assert status == cli.BAD_INPUT
    assert "two groups or more; found 1" in err
