"""The commands for a distance-level sample: a release's files fitted, simulated and read back, and what is refused."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from commands import handed_to_the_sampler, refused, run

import hbm_jax
from hbm_jax import cli
from hbm_jax.cli.commands import model_name
from hbm_jax.data import read_distance_moduli
from hbm_jax.models import HubbleDiagram


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture
def release(tmp_path):
    """Thirty bins in the form in which JLA published its own."""
    rng = np.random.default_rng(1)
    z = np.geomspace(0.02, 1.3, 30)
    covariance = np.diag(np.full(30, 0.05**2)) + 0.02**2
    # Flat, Om0 = 0.3, to third order of a Pade form that is good to 1e-3; the offset is free.
    u = z * (1 + z / 2) / (1 + z * (0.5 + 0.175))
    mu = 5 * np.log10((1 + z) * u) + 43.1 + 0.05 * rng.normal(size=30)
    table, matrix = tmp_path / "mub.txt", tmp_path / "mub_covmatrix.dat"
    table.write_text("# zb mub\n" + "\n".join(f"{a:.8f} {b:.8f}" for a, b in zip(z, mu, strict=True)) + "\n")
    matrix.write_text("30\n" + "\n".join(f"{value:.8g}" for value in covariance.ravel()) + "\n")
    return table, matrix


def test_a_release_reaches_the_sampler_and_is_a_design(release, tmp_path, capsys, monkeypatch):
    table, matrix = release
    source = ["--data", table, "--set", "data.format=jla-binned", "--set", f"data.covariance={matrix}"]
    fit = ["fit", "hubble-diagram", *source, "--cosmology", "wcdm", "--out", tmp_path / "run"]
    model, moduli, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert model == HubbleDiagram(cosmology="wcdm")
    assert len(moduli) == 30
    assert moduli.covariance[0, 1] == pytest.approx(0.02**2)
    again = tmp_path / "simulated.csv"
    options = ["--out", again, "--set", "truth.Om0=0.3"]
    status, text, err = run(capsys, "simulate", "hubble-diagram", "--design", *source[1:], *options)
    assert status == 0, err
    assert "Om0 = 0.3" in text
    drawn = read_distance_moduli(again)
    assert len(drawn) == 30
    assert drawn.covariance[0, 1] == pytest.approx(0.02**2)


@pytest.mark.long
def test_a_release_is_fitted(release, tmp_path, capsys):
    table, matrix = release
    source = ["--data", table, "--set", "data.format=jla-binned", "--set", f"data.covariance={matrix}"]
    out = tmp_path / "run"
    status, text, err = run(capsys, "fit", "hubble-diagram", *source, "--cosmology", "wcdm", "--out", out)
    assert status in (0, cli.MISFIT), err  # the moduli of the fixture are made up
    assert "30 distance moduli" in text
    assert "M0 integrated out" in text
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names >= {"hubble_diagram", "hubble_residuals", "expansion_contour", "equation_of_state"}


@pytest.mark.long
def test_a_blind_fit_shows_its_values_only_when_it_is_told_to(release, tmp_path, capsys, monkeypatch):
    # One of a thousand random offsets is too small for the digits that are shown.
    monkeypatch.setattr("secrets.token_hex", lambda num: "1f" * num)
    table, matrix = release
    out = tmp_path / "run"
    source = ["--data", table, "--set", "data.format=jla-binned", "--set", f"data.covariance={matrix}"]
    short = ["--num-samples", 200, "--num-warmup", 200, "--num-chains", 2]
    _, text, err = run(capsys, "fit", "hubble-diagram", *source, *short, "--blind", "--out", out)
    assert "blinded: the values of Om0 are shifted" in text, err
    hidden = hbm_jax.load(out)
    row = next(line for line in text.splitlines() if line.startswith("Om0"))
    assert "blinded" in row
    page = re.sub(r"data:image[^\"]*", "", (out / "report.html").read_text())
    assert page.count("blinded") >= 3
    assert "hubble_residuals.png" in {path.name for path in (out / "figures").iterdir()}
    assert "hubble_diagram.png" not in {path.name for path in (out / "figures").iterdir()}
    true = float((hidden.posterior["Om0"] - hidden.blinding.offset("Om0")).median())
    summary = pd.read_csv(out / "summary.csv", index_col=0)
    for shown in (float(row.split()[1]), summary.loc["Om0", "median"]):
        assert abs(shown - true) > 0.9 * abs(hidden.blinding.offset("Om0")) > 1e-3
    assert f"{true:.4f}"[1:] not in page
    assert hbm_jax.resume(out, progress=False).blinding == hidden.blinding
    _, text, err = run(capsys, "unblind", out)
    assert "blinded" not in text, err
    shown = hbm_jax.load(out)
    assert float(shown.posterior["Om0"].median()) == pytest.approx(true, rel=1e-12)
    assert (out / "figures" / "hubble_diagram.png").exists()
    assert hbm_jax.resume(out, progress=False).blinding is None
    _, text, err = run(capsys, "report", out)
    assert "blinded" not in text + (out / "report.html").read_text().replace("unblinded", ""), err


@pytest.mark.parametrize("switch", ["--blind", "--best-fit", "--quiet", "--out=run"])
def test_a_switch_before_the_model_has_no_value(switch):
    assert model_name([switch, "hubble-diagram", "--z-min", "0"]) == ("hubble-diagram", [switch, "--z-min", "0"])
    assert model_name(["--out", "hubble-diagram"])[0] is None


def test_what_is_refused(release, tmp_path, capsys):
    table, _ = release
    text = refused(
        capsys, "fit", "hubble-diagram", "--data", table, "--out", tmp_path / "run", "--set", "data.format=jla"
    )
    for word in ("format: expected one of", "'jla'", "jla-binned"):
        assert word in text
    named = ["--set", "data.format=jla-binned"]
    text = refused(capsys, "fit", "hubble-diagram", "--data", table, "--out", tmp_path / "run", *named)
    for word in ("mub.txt", "covariance=<file> (jla_mub_covmatrix.dat of the release)"):
        assert word in text
