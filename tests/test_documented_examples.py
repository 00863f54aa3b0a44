"""Python of README and pages runs as it is written, on small data in the files that it names.

Readers read, models meet their data, and programs are traced, but nothing is sampled or drawn, except that the long
tests sample those of the README as a user does, and compare the verdict of its demo, the only one shown, with
that of the command. What other examples print is described in their comments and not compared. That the command lines
are valid is tested in test_cli_parsers.py.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import jax
import numpy as np
import numpyro
import pandas as pd
import pytest

import hbm_jax as hbm
from hbm_jax import inference, plotting, runs
from hbm_jax.models.supernovae.laws import ColourLaw
from hbm_jax.spectra.model.registration import REGISTERED

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md", "docs/index.md", "docs/guide.md", "docs/domains.md", "docs/engine.md", "docs/model_verdict.md",
)  # fmt: skip
# Another machine, or files from the network.
ELSEWHERE = ("dask_jobqueue", "load_distance_moduli")
SPECTRA = "sample/"


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language="python"):
    """Code blocks of a page, without those that need another machine."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for block in found if not any(word in block for word in ELSEWHERE)]


def supernovae():
    """Every twelfth supernova of JLA, with the column names of the README."""
    table = hbm.data.load_jla().to_table().to_pandas().iloc[::12]
    names = {"name": "CID", "z_cmb": "zHD", "z_hel": "zHEL", "m_b": "mB"}
    errors = {f"{name}ERR": np.sqrt(table[f"var_{column}"]) for name, column in (("x1", "x1"), ("c", "c"))}
    return table.rename(columns=names)[["CID", "zHD", "zHEL", "mB", "x1", "c"]].assign(mBERR=0.15, **errors)


def lines():
    """Points of five lines."""
    rng = np.random.default_rng(1)
    of, x = np.repeat(np.arange(5), 8), rng.normal(10.0, 1.0, 40)
    y = 2.0 + 0.1 * of + x + rng.normal(0.0, 0.2, 40)
    return pd.DataFrame(
        {"log_M": x, "log_L": y, "e_M": 0.1, "e_L": 0.1, "cluster": [f"A{i}" for i in of], "velocity": 5.0 * y}
    )


def bursts():
    """Sixteen bursts of six intervals."""
    rng = np.random.default_rng(2)
    of, z = np.repeat(np.arange(16), 6), np.repeat(rng.uniform(0.5, 2.0, 16), 6)
    peak = rng.normal(2.5, 0.3, 96)
    flux = -6.0 + 1.5 * (peak - 2.5) - 2.0 * np.log10(z) + rng.normal(0.0, 0.3, 96)
    errors = {"e_log10_flux": 0.05, "sigma_log10_E_peak": 0.05}
    return pd.DataFrame({"GRB": [f"GRB {i}" for i in of], "z": z, "log10_flux": flux, "log10_E_peak": peak, **errors})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the examples name."""
    from astropy.table import Table

    folder = tmp_path_factory.mktemp("examples")
    supernovae().to_csv(folder / "mine.csv", index=False)
    Table.from_pandas(supernovae().drop(columns="CID")).write(folder / "mine.fits")
    lines().to_csv(folder / "galaxies.csv", index=False)
    lines().to_csv(folder / "stars.csv", index=False)
    found = {"x": [9.0, 10.0, 11.0], "y": [11.0, 12.0, 13.0], "density": 0.1, "found": [0, 1, 1]}
    found |= {"photon_index": 2.0, "log10_flux": [-12.0, -11.8, -11.5], "log10_nh": 0.1}
    pd.DataFrame(found).to_csv(folder / "injections.csv", index=False)
    efficiency = {"log10_flux": [-13.0, -12.0, -11.0], "fraction": [0.1, 0.5, 1.0]}
    pd.DataFrame(efficiency).to_csv(folder / "efficiency.csv", index=False)
    bursts().to_csv(folder / "bursts.csv", index=False)
    rng = np.random.default_rng(3)
    np.savez(folder / "posteriors.npz", **{f"A{i}": rng.normal(rng.normal(2.0, 0.5), 0.3, 500) for i in range(12)})
    return folder


@pytest.fixture
def registries():
    """Registries that are afterwards as they were: examples define a colour law and a component."""
    before = [(registry, dict(registry)) for registry in (ColourLaw.registry, REGISTERED)]
    yield
    for registry, content in before:
        registry.clear()
        registry.update(content)


def given():
    """Return the arrays that the examples take from the reader, by the names that the pages use."""
    rng = np.random.default_rng(4)
    x, z, exposure = np.linspace(0.0, 1.0, 20), np.linspace(0.1, 1.0, 20), np.full(12, 2.0)
    counts = rng.poisson(3.0 * exposure)
    return {
        "hbm": hbm, "x": x, "y": 2.0 * x + rng.normal(0.0, 0.2, 20), "sigma": np.full(20, 0.2),
        "z": z, "magnitude": -19.0 + 43.2 + 5.0 * np.log10(z * (1.0 + 0.35 * z)) + rng.normal(0.0, 0.1, 20),
        "error": np.full(20, 0.1), "effect": rng.normal(0.0, 1.0, 20), "exposure": exposure, "counts": counts,
        "exposure_1": exposure, "counts_1": counts, "exposure_2": exposure[:8], "counts_2": counts[:8],
        "fit": Anything(), "hbm_jax": hbm,
    }  # fmt: skip


class Anything(MagicMock):
    """A result that was not computed."""

    def __iter__(self):
        return iter(())


def traced(program, *args, **options):
    """Trace a program with its data in place of sampling it; an error in either is raised."""
    if callable(program) and not isinstance(program, Anything):
        bound = (program.bind(*args),) if hasattr(program, "bind") else args

        def sites(key):
            numpyro.handlers.trace(numpyro.handlers.seed(program, key)).get_trace(*bound)

        jax.eval_shape(sites, jax.random.key(0))
    return Anything()


def traced_each(program, objects, **options):
    """Trace a program with the data of each object."""
    for args in objects:
        traced(program, *args)
    return Anything()


def execute(page, monkeypatch, folder, wanted):
    """Run the code blocks of a page in one session; returns what they printed, and the session's names."""
    monkeypatch.chdir(folder)
    names, printed = given() | {"__name__": "page"}, io.StringIO()
    for number, block in enumerate(blocks(page), 1):
        if wanted(block):
            code = compile(block, f"{page}, block {number}", "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, names)
    return printed.getvalue(), names


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("registries")
def test_examples_read_and_trace(page, monkeypatch, folder):
    for name in set(re.findall(r"plotting\.(\w+)\(", text_of(page))):
        assert name in plotting.__all__
        monkeypatch.setattr(plotting, name, Anything())
    for name in ("sample", "calibrate", "centre", "latents"):
        monkeypatch.setattr(inference, name, traced)
    monkeypatch.setattr(inference, "fit_each", traced_each)
    for name in ("use_every_core", "look_for_modes"):
        monkeypatch.setattr(inference, name, Anything())
    monkeypatch.setattr(runs, "resume", Anything())
    execute(page, monkeypatch, folder, lambda block: SPECTRA not in block)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_examples_of_the_readme_sample_and_draw(monkeypatch, folder):
    fits = []
    sample = inference.sample
    monkeypatch.setattr(inference, "sample", lambda *args, **options: fits.append(sample(*args, **options)) or fits[-1])
    printed, names = execute("README.md", monkeypatch, folder, lambda block: True)
    assert len(fits) == 5
    assert all(fit.verdict.usable for fit in fits), [str(fit.verdict) for fit in fits]
    for fit in fits[:3]:  # whose verdicts the examples print
        assert str(fit.verdict).splitlines()[0] in printed
    assert "largest R-hat" in printed
    assert (folder / "hubble.pdf").stat().st_size > 1000
    assert names["slope"].mean() == pytest.approx(2.0, abs=5.0 * names["slope"].std())


@pytest.mark.long
def test_verdict_of_the_demo_is_that_of_the_readme(tmp_path):
    """All words; digits that depend on the draws, which differ between processors, are compared roughly."""
    (shown,) = blocks("README.md", "text")
    command = [sys.executable, "-m", "hbm_jax", "fit", "supernova", "--data", "jla", "--cosmology", "wcdm"]
    without = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # optimised, as for a user
    ran = subprocess.run([*command, "--out", str(tmp_path / "demo")], capture_output=True, text=True, env=without)
    assert ran.returncode == 4, ran.stderr
    assert "\n$ make demo" in text_of("README.md")
    assert " ".join(command[3:]) in text_of("Makefile")
    said = " ".join(ran.stdout.split())
    for part in " ".join(shown.split()).split(" ..."):
        words = re.escape(part.strip(" ;,"))
        words = re.sub(r"(R\\-hat\\ )1\\\.\d+(\\ )\\\(\w+\\\)", r"\g<1>1\\.00\\d\2\\(\\w+\\)", words)
        words = re.sub(r"(size\\ )\d+(\\ )\\\(\w+\\\)", r"\g<1>\\d{4}\2\\(\\w+\\)", words)
        words = re.sub(
            r"(p\\ =\\ 0\\\.0)\d+|(off\\ by\\ \\-0\\\.5)\d", lambda found: (found[1] or found[2]) + r"\d+", words
        )
        assert re.search(words, said), (words, said)


def covered(seed):
    """Return the fraction of true rates in 68 % intervals of notebook 08, from exact posteriors on a grid."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(1.0, 0.6, 200))
    of = np.repeat(np.arange(200), rng.integers(12, 21, 200))
    exposure = rng.uniform(0.5, 1.5, len(of))
    counts = np.bincount(of, rng.poisson(rate[of] * 0.9 * exposure), 200)
    exposures = 0.9 * np.bincount(of, exposure, 200)
    grid = np.linspace(-3.0, 5.0, 1601)
    log_density = counts[:, None] * grid - exposures[:, None] * np.exp(grid) - 0.125 * grid**2  # LogNormal(0, 2)
    weights = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    below = np.sum(weights * (grid < np.log(rate)[:, None]), axis=1) / weights.sum(axis=1)
    return np.mean((below > 0.16) & (below < 0.84))


def test_coverage_in_notebook_08_is_noise():
    text = (ROOT / "notebooks" / "08_batch_calibration_clusters.ipynb").read_text(encoding="utf-8")
    this = covered(1)
    assert this == pytest.approx(0.615, abs=0.011)  # the grid decides two sources
    assert "contain 61.5 % of the true rates" in text
    others = np.array([covered(seed) for seed in range(2, 22)])
    error = np.sqrt(0.68 * 0.32 / 200)
    assert others.mean() == pytest.approx(0.68, abs=5.0 * error / np.sqrt(20))
    assert others.std(ddof=1) == pytest.approx(error, rel=5.0 / np.sqrt(2 * 20))
    assert "67.7 % on average, with a standard deviation of 3.3 %" in text.replace('\\n",\n    "', " ")
