"""The command line: every bad input is one paragraph, status 2, nothing written; and one real run from end to end."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from commands import refused, run
from PIL import Image
from stored_fits import load, own_model

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.cli import commands, inputs
from hbm_jax.cli.exit_status import status_of
from hbm_jax.cli.inputs import message_in_flags
from hbm_jax.data import PointsInGroups
from hbm_jax.inference.criticism.calibration import Calibration
from hbm_jax.inference.criticism.rank_tests import judge_ranks
from hbm_jax.validation import DataError, OptionError, Remedy

JLA = hbm.data.load_jla()
FEW = JLA.subset(np.arange(0, 740, 12)[:60])
POINTS = PointsInGroups.from_columns({"x": [1.0, 2.0, 3.0], "y": [1.0, 3.0, 2.0], "sigma_y": [0.1, 0.1, 0.1]})
KONUS = hbm.data.load_konus("yonetoku")


class Columns:
    """The Galactic columns of two afterglows: none, or without errors."""

    def __init__(self, galactic):
        self.name, self.sigma_nh_mw = ("a", "b"), np.zeros(2)
        self.nh_mw = np.full(2, 0.02 if galactic == "error" else np.nan)

    def __len__(self):
        return 2


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def sample_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "few.csv"
    FEW.to_table().write(path)
    return path


# Bad options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["supernove"], ["Unknown model 'supernove'", "expected one of 'supernova'", "did you mean 'supernova'?"]),
        ([], ["No model named: expected one of supernova"]),
        (["supernova", "--cosmology", "wdcm"], ["Unknown cosmology 'wdcm'", "'w0wacdm'", "did you mean 'wcdm'?"]),
        (["supernova", "--latents", "margnal"], ["model.latents", "'margnal' (did you mean 'marginal'?)"]),
        (["supernova", "--set", "prior.sigma_itn=HalfNormal(1)"], ["'sigma_itn'", "did you mean 'sigma_int'?"]),
        (["supernova", "--set", "prior.w0=Normal(-1,1)"], ["cosmology='lcdm'", "no parameter 'w0'", "Om0"]),
        (["supernova", "--set", "prior.Om0=Normal(0.3"], ["prior.Om0: expected", "found 'Normal(0.3'", "be read"]),
        (["supernova", "--set", "prior.Om0=Nromal(0, 1)"], ["prior.Om0", "'Nromal'", "did you mean 'Normal'?"]),
        (["supernova", "--set", "prior.Om0=Normal(0, -1)"], ["prior.Om0", "which NumPyro refuses"]),
        (["supernova", "--set", "prior.Om0=__import__('os')"], ["prior.Om0", "'__import__'"]),
        (["supernova", "--set", "priors.Om0=0.3"], ["priors.Om0", "expected SECTION.NAME", "did you mean 'prior'?"]),
        (["supernova", "--set", "sample.num_chain=2"], ["sample.num_chain", "did you mean 'num_chains'?"]),
        (["supernova", "--set", "sample.seed=x"], ["sample.seed: expected a whole number, found 'x'"]),
        (["supernova", "--set", "sample.seed"], ["--set sample.seed: expected KEY=VALUE, found no '='"]),
        (["supernova", "--set", "model.mass_setp=false"], ["'mass_setp'", "did you mean 'mass_step'?"]),
        (["supernova", "--set", "model.mass_step=maybe"], ["model.mass_step: expected true or false", "'maybe'"]),
        (["supernova", "--set", "columns.m_b=mB"], ["columns: expected none for the bundled sample 'jla'", "m_b"]),
        (["supernova", "--data", "jlaa"], ["expected a bundled sample (jla) or a file", "'jlaa'", "neither"]),
        (["supernova", "--data", "nowhere/my.csv"], ["nowhere/my.csv", "neither"]),
        (["supernova", "--config", "nowhere.toml"], ["nowhere.toml: expected a TOML file", "No such file"]),
        (["supernova", "--num-chains", "0"], ["num_chains >= 1", "found 0"]),
        (["supernova", "--num-samples", "2"], ["num_samples >= 4", "found 2"]),
        (["supernova", "--num-warmup", "-1"], ["num_warmup >= 0", "-1"]),
        (["supernova", "--set", "sample.target_accept_prob=2"], ["target_accept_prob between 0 and 1"]),
        (["supernova", "--quiet", "--set", "sample.until.Om=500"], ["until names 'Om'", "expected one of"]),
        (["supernova", "--set", "sample.until=-1"], ["effective sample size above 0", "-1"]),
        (["supernova", "--set", "sample.until=9", "--num-samples", "9"], ["either num_samples or until", "found both"]),
        (["supernova", "--max-seconds", "-1"], ["max_seconds >= 0", "-1"]),
        (["supernova", "--set", "data.format=csv"], ["options of [data]: expected none for the bundled sample 'jla'"]),
        (["supernova", "--set", "sample.dtype=float16"], ["'float64' or 'float32'", "float16"]),
    ],
)
def test_bad_options(arguments, words, tmp_path, capsys):
    text = refused(capsys, "fit", *arguments, "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not toml", ["expected TOML, found something else"]),
        (b"\xff\xfe", ["expected TOML, found something else"]),
        (b"[sample]\nsed = 3", ["sample.sed", "did you mean 'seed'?"]),
        (b"[smaple]\nseed = 3", ["smaple.seed", "did you mean 'sample'?"]),
        (b"seed = 3", ["seed: expected a table such as [seed], found 3"]),
        (b"[sample]\nnum_chains = 2.5", ["sample.num_chains: expected a whole number, found 2.5"]),
        (b"[model]\ncosmology = 'wdcm'", ["did you mean 'wcdm'?"]),
        (b"[model]\nmass_step = 'perhaps'", ["model.mass_step: expected true or false"]),
        (b"[model]\ncosmology = 3", ["model.cosmology: expected text, found 3"]),
    ],
)
def test_bad_toml(content, words, tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_bytes(content)
    text = refused(capsys, "fit", "supernova", "--config", config, "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


# Bad tables


def misspelt(table):
    table.rename_column("m_b", "mb")


def without_value(table):
    table["x1"][7] = np.nan


def negative_error(table):
    table["var_c"][4] = -0.01


def not_definite(table):
    table["cov_x1_c"][9] = 10.0


def no_redshift(table):
    table["z_cmb"][3] = 0.0


def text_for_a_number(table):
    table["c"] = [f"{c:.3f}" if i != 5 else "n/a" for i, c in enumerate(table["c"])]


def no_rows(table):
    table.remove_rows(slice(None))


def no_host_masses(table):
    table.remove_columns(["log10_mass", "sigma_log10_mass"])


@pytest.mark.parametrize(
    ("spoil", "row", "words"),
    [
        (misspelt, None, ["'m_b' is missing", "did you mean 'mb'?", "expected 'm_b', or --column m_b=NAME; found"]),
        (without_value, 7, ["'x1'", "row 7", "found"]),
        (negative_error, 4, ["'var_c'", "row 4"]),
        (not_definite, 9, ["covariance", "row 9", "positive definite"]),
        (no_redshift, 3, ["'z_cmb'", "row 3", "expected a redshift between 0 and 20, found 0.0"]),
        (text_for_a_number, 5, ["'c'", "row 5", "expected a number", "'n/a'"]),
        (no_rows, None, ["expected"]),
        (
            no_host_masses,
            None,
            ["mass_step=True) needs the host mass", "60 of 60", "use --mass-error,", "or --no-mass-step."],
        ),
    ],
)
def test_bad_tables(spoil, row, words, tmp_path, capsys):
    table = FEW.to_table()
    spoil(table)
    path = tmp_path / "sample.csv"
    table.write(path)
    text = refused(capsys, "fit", "supernova", "--data", path, "--out", tmp_path / "run", "--quiet")
    for word in words:
        assert word in text
    if row is not None:
        assert FEW.name[row] in text  # the object, not only its row
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "data", "python", "flags"),
    [
        (hbm.models.Relation(pooling="complete", latents="sampled"),
         POINTS,
         "Use latents='marginal'.", "Use --latents marginal."),
        (hbm.models.Supernova(latents="centred"), dataclasses.replace(FEW, sigma_z=np.full(60, 0.01)),
         "Use latents='marginal'.", "Use --latents marginal."),
        (hbm.models.Golenetskii(truncated=True), KONUS, "use truncated=False.", "use --no-truncated."),
        *((hbm.models.Afterglow(galactic=given), Columns(given), f"use galactic='{use}'.", f"use --galactic {use}.")
          for given, use in (("fixed", "free"), ("error", "fixed"))),
    ],
)  # fmt: skip
def test_models_say_which_option_avoids_an_error(model, data, python, flags):
    check = getattr(model, "_require_columns", model.bind)  # spectra take long to fold
    with pytest.raises(DataError) as caught:
        check(data)
    assert str(caught.value).endswith(python)
    assert message_in_flags(caught.value).endswith(flags)


@pytest.mark.parametrize(
    ("model", "options", "python", "flags"),
    [
        (hbm.models.Supernova, {"mass_step": False, "host_beta": True}, "mass_step=True", "--mass-step"),
        (hbm.models.Supernova, {"velocity": "redshift"}, "sigma_v=250", "--sigma-v 250"),
        (hbm.models.Supernova, {"latents": "centred", "outliers": True}, "latents='marginal'", "--latents marginal"),
        (hbm.models.HubbleDiagram, {"scatter_surveys": ("a",)}, "intrinsic_scatter=True", "--intrinsic-scatter"),
        (hbm.models.Relation, {"correlated": True, "pooling": "none"}, "pooling='partial'", "--pooling partial"),
        (hbm.models.Relation, {"student_t": True, "outliers": True}, "outliers=False", "--no-outliers"),
    ],
)
def test_models_say_which_options_fit_together(model, options, python, flags):
    with pytest.raises(OptionError) as caught:
        model(**options)
    assert python in str(caught.value)
    assert flags in message_in_flags(caught.value)
    assert python not in message_in_flags(caught.value)


def test_remedies_are_worded_for_python_and_for_the_command_line():
    def failing(value):
        remedy = Remedy("leave_out", value)
        try:
            raise DataError(f"bad rows; set {remedy} or correct them.", [remedy, Remedy("sigma", "inferred")])
        except DataError as error:
            raise DataError(f"table.csv: {error}") from error

    for value, python, flags in (
        (["a b", "c"], "leave_out=['a b', 'c']", "--leave-out 'a b' --leave-out c"),
        ("bad", "leave_out='bad'", "--leave-out bad"),
        (False, "leave_out=False", "--no-leave-out"),
    ):
        with pytest.raises(DataError) as caught:
            failing(value)
        assert str(caught.value) == f"table.csv: bad rows; set {python} or correct them."
        assert message_in_flags(caught.value) == f"table.csv: bad rows; set {flags} or correct them."
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert str(Remedy("columns", {"x": "its name", "y": "its name"})) == "columns={'x': <its name>, ...}"
    # Only what an error says is its remedy is written as flags, not what looks like one.
    assert message_in_flags(ValueError("expected mass_step=False")) == "expected mass_step=False"


def test_tables_that_are_none(tmp_path, capsys):
    (tmp_path / "sample.fits").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "folder.csv").mkdir()
    for name in ("sample.fits", "folder.csv"):
        out = tmp_path / "run"
        assert name in refused(capsys, "fit", "supernova", "--data", tmp_path / name, "--out", out)
        assert not out.exists()


def test_column_mapping_that_names_no_column(sample_csv, tmp_path, capsys):
    out = tmp_path / "run"
    text = refused(capsys, "fit", "supernova", "--data", sample_csv, "--set", "columns.m_b=mag", "--out", out)
    assert "'mag' is not in the table" in text
    assert not out.exists()


def test_reader_options_from_the_command_line(sample_csv):
    def read(*options):
        arguments = ["fit", "supernova", "--data", str(sample_csv)]
        for option in options:
            arguments += ["--set", option]
        return inputs.model_and_data(inputs.configuration_of(commands.parsed(arguments)[1]))[1]

    columns = FEW.to_table()
    columns["variance_velocity"][:], columns["variance_lensing"][:], columns["variance_coherent"][:] = 0.0, 0.0, 0.0
    columns.write(sample_csv.with_name("plain.csv"), overwrite=True)
    sample_csv = sample_csv.with_name("plain.csv")
    parts = ["data.sigma_m_b_includes.lensing_per_z=0.01", "data.sigma_m_b_includes.coherent_scatter=0.001"]
    np.testing.assert_allclose(read(*parts, "data.format=csv").variance_lensing, (0.01 * FEW.z_cmb) ** 2)
    with pytest.raises(
        ValueError, match=r"data\.sigma_m_b_includes: expected a table of coherent_scatter, lensing_per_z"
    ):
        read("data.sigma_m_b_includes.lens=0.01")
    with pytest.raises(ValueError, match=r"Unknown option of \[data\] 'fromat' .did you mean 'format'"):
        read("data.fromat=csv")


# Folders and files that are there


@pytest.mark.parametrize(("name", "what"), [("posterior.nc", "another run"), ("notes.txt", "other files")])
def test_a_folder_in_use_is_left_alone(name, what, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    text = refused(capsys, "fit", "supernova", "--out", tmp_path)
    assert f"found {what} in it" in text
    assert "--overwrite" in text
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_failing_fit_leaves_the_run_it_was_to_replace(tmp_path, capsys):
    (tmp_path / "posterior.nc").write_text("mine")
    refused(capsys, "fit", "supernova", "--out", tmp_path, "--overwrite", "--num-samples", "2")
    assert (tmp_path / "posterior.nc").read_text() == "mine"


def test_an_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert "found a file of that name" in refused(capsys, "fit", "supernova", "--out", tmp_path / "run")


# report


def test_report_of_what_is_no_run(tmp_path, capsys):
    assert "found no such file" in refused(capsys, "report", tmp_path / "nowhere")
    assert "expected a run folder holding posterior.nc" in refused(capsys, "report", tmp_path)
    whole = load("own").save(tmp_path / "posterior.nc").read_bytes()
    (tmp_path / "posterior.nc").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in refused(capsys, "report", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]


# simulate


@pytest.mark.parametrize(
    "suffix", [*(pytest.param(suffix, marks=pytest.mark.long) for suffix in ("csv", "ecsv")), "fits"]
)
def test_simulate_writes_what_is_read_back(suffix, sample_csv, tmp_path, capsys):
    out = tmp_path / "new" / f"simulated.{suffix}"
    truth = ["--set", "truth.Om0=0.3", "--set", "truth.alpha=0.14", "--set", "truth.sigma_int=0.1"]
    command = ["simulate", "supernova", "--design", sample_csv, "--seed", "7", *truth, "--out", out]
    status, text, err = run(capsys, *command)
    assert (status, err) == (0, "")
    assert f"60 simulated objects in {out}" in text
    assert "Om0 = 0.3, " in text
    assert "alpha = 0.14" in text
    back = hbm.data.read_supernovae(out)
    np.testing.assert_array_equal(back.z_cmb, FEW.z_cmb)
    np.testing.assert_allclose(back.covariance, FEW.covariance, rtol=1e-15)
    assert back.name == FEW.name
    assert not np.any(back.m_b == FEW.m_b)
    assert {path.name for path in out.parent.iterdir()} == {out.name, "simulated_truth.json"}
    assert json.loads((out.parent / "simulated_truth.json").read_text())["alpha"] == 0.14
    if suffix != "csv":
        stored = {key.lower(): value for key, value in Table.read(out).meta.items()}["truth"]
        assert (json.loads(stored) if suffix == "fits" else stored)["alpha"] == 0.14
    # The file is left alone from now on, and the same seed gives the same sample.
    content = out.read_bytes()
    assert "--overwrite" in refused(capsys, *command)
    assert out.read_bytes() == content
    assert run(capsys, *command, "--overwrite")[0] == 0
    np.testing.assert_array_equal(hbm.data.read_supernovae(out).m_b, back.m_b)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "truth.Om0=abc"], ["truth.Om0: expected a number", "'abc'"]),
        (["--set", "truth.sigma_int=-1"], ["truth.sigma_int: expected a number within the support of its prior", "-1"]),
        (["--set", "truth.Om=0.3"], ["no parameter 'Om'", "did you mean 'Om0'?"]),
        (["--design", "nowhere.csv"], ["'nowhere.csv', which is neither"]),
    ],
)
def test_bad_simulations(arguments, words, tmp_path, capsys):
    text = refused(capsys, "simulate", "supernova", *arguments, "--out", tmp_path / "new" / "s.csv")
    for word in words:
        assert word in text
    assert list(tmp_path.iterdir()) == []


def test_simulating_to_an_unknown_format(tmp_path, capsys):
    text = refused(capsys, "simulate", "supernova", "--out", tmp_path / "s.xlsx")
    assert "expected a table name ending in .csv, .ecsv, .fits, found '.xlsx'" in text
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_cannot_be_written_leaves_nothing(sample_csv, tmp_path, capsys, monkeypatch):
    def fail(self, path, **kwargs):
        Path(path).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Table, "write", fail)
    command = ["simulate", "supernova", "--design", sample_csv, "--out", tmp_path / "s.csv"]
    assert "No space left" in refused(capsys, *command)
    assert list(tmp_path.iterdir()) == []


# calibrate


@pytest.mark.long
def test_calibrate_writes_a_certificate_and_its_figure(tmp_path, capsys):
    out = tmp_path / "new" / "calibration"
    words = ["--subset", "8", "--num-replicates", "20", "--num-warmup", "100", "--no-mass-step", "--quiet"]
    priors = ["--set", "prior.Om0=Normal(0.3, 0.05)", "--set", "sample.max_num_samples=200"]
    status, text, err = run(capsys, "calibrate", "supernova", *words, *priors, "--out", out)
    assert err == ""
    found = Calibration.load(out / "certificate.json")
    assert status == (cli.USABLE if found.calibrated else cli.NOT_USABLE)
    assert text.startswith("Type Ia supernovae, flat LCDM, marginal latents\n8 type Ia supernovae")
    assert f"\n{found}\n" in text
    for name in found.table.index:
        assert f"\n{name} " in text
    assert f"certificate  {out / 'certificate.json'}\nfigure       {out / 'calibration.png'}\n" in text
    assert found.run["options"] == {"seed": 0, "num_replicates": 20, "num_chains": 4}
    assert found.run["program"]["config"]["mass_step"] is False
    assert found.run["program"]["config"]["priors"]["Om0"].startswith("Normal")
    assert {path.name for path in out.iterdir()} == {"certificate.json", "calibration.png"}
    with Image.open(out / "calibration.png") as image:
        assert min(image.size) > 300
    content = (out / "certificate.json").read_bytes()
    assert "found other files in it" in refused(capsys, "calibrate", "supernova", "--out", out)
    assert (out / "certificate.json").read_bytes() == content


def judged(monkeypatch, ranks, interrupted=False):
    """Replaces the calibration by one that has such ranks; what it is called with is noted."""
    seen = {}

    def calibrate(model, design, **options):
        seen.update(options, model=model, design=design)
        if interrupted:
            with contextlib.suppress(KeyboardInterrupt):  # as fit_each does, to return what is done
                signal.raise_signal(interrupted)
        table = pd.DataFrame({"w0": ranks})
        return Calibration(table, judge_ranks(table), 0, {})

    monkeypatch.setattr("hbm_jax.inference.calibrate", calibrate)
    return seen


def test_calibrate_fails_where_ranks_are_uneven(tmp_path, capsys, monkeypatch):
    seen = judged(monkeypatch, np.arange(200) // 4)
    options = ["--num-chains", "6", "--seed", "5", "--set", "sample.target_accept_prob=0.9", "--num-replicates", "99"]
    options += ["--max-num-samples", "20000"]  # the default of a fit, but not of a calibration
    status, text, _ = run(capsys, "calibrate", "supernova", "--cosmology", "wcdm", *options, "--out", tmp_path)
    assert status == cli.NOT_USABLE
    assert "\nnot calibrated, according to 200 replicates: w0 is biased: posteriors lie too high. Found with" in text
    assert seen.pop("model").cosmology == "wcdm"
    assert len(seen.pop("design")) == 740
    expected = {"seed": 5, "num_chains": 6, "max_num_samples": 20000, "target_accept_prob": 0.9, "num_replicates": 99}
    assert seen == expected | {"progress": True}


@pytest.mark.parametrize(("wanted", "rows"), [(1, [0]), (4, [0, 19, 39, 59]), (60, list(range(60)))])
def test_a_subset_is_evenly_spaced(wanted, rows, sample_csv, tmp_path, capsys, monkeypatch):
    seen = judged(monkeypatch, np.arange(200) // 2)
    words = ["--design", sample_csv, "--subset", wanted, "--out", tmp_path]
    assert run(capsys, "calibrate", "supernova", *words)[0] == cli.USABLE
    np.testing.assert_array_equal(seen["design"].z_cmb, FEW.z_cmb[rows])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_calibration_is_none(number, tmp_path, capsys, monkeypatch):
    judged(monkeypatch, np.arange(200) // 2, number)
    monkeypatch.setattr("hbm_jax.cli.interruption.PATIENCE", 60.0)  # after which the process would be ended
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    status, _, err = run(capsys, "calibrate", "supernova", "--out", tmp_path / "run")
    assert status == cli.INTERRUPTED
    assert "interrupted; nothing was written" in err
    assert list(tmp_path.iterdir()) == []
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--num-replicates", "5"], ["expected num_replicates >= 20; found 5"]),
        (["--subset", "0"], ["--subset: expected 1 to 740", "found 0"]),
        (["--subset", "741"], ["--subset: expected 1 to 740", "found 741"]),
        (["--set", "sample.until=9"], ["sample.until: expected one of seed, num_chains"]),
        pytest.param(["--num-chains", "1"], ["num_chains >= 2", "found 1"], marks=pytest.mark.long),
        (["--cosmology", "wdcm"], ["did you mean 'wcdm'?"]),
        (["--design", "nowhere.csv"], ["'nowhere.csv', which is neither"]),
    ],
)
def test_bad_calibrations(arguments, words, tmp_path, capsys):
    text = refused(capsys, "calibrate", "supernova", *arguments, "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert list(tmp_path.iterdir()) == []


# doctor


def test_doctor(capsys, monkeypatch):
    status, out, err = run(capsys, "doctor")
    assert (status, err) == (0, "")
    for word in ("python ", "jaxlib ", "device 0", "float64       works", "kernels "):
        assert word in out
    monkeypatch.setattr("hbm_jax.cli.doctor.known_problems", lambda *_: ["the sky falls; hold it up."])
    status, out, _ = run(capsys, "doctor")
    assert status == cli.BAD_INPUT
    assert "problem: the sky falls; hold it up.\n" in out


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend: 'cuda' requested.\nMore.")])
def test_a_platform_without_a_device_is_said(error, tmp_path, capsys, monkeypatch):
    def none(*args, **options):
        raise error

    monkeypatch.setattr("jax.devices", none)
    status, out, err = run(capsys, "doctor")
    assert (status, err) == (cli.BAD_INPUT, "")
    problem = out.partition("problem: ")[2]
    assert ": expected a device of this platform; found none" in problem
    assert ("(Unknown backend: 'cuda' requested.)" in problem) == bool(error.args)
    monkeypatch.setattr("hbm_jax.inference.sample", none)
    assert refused(capsys, "fit", "supernova", "--out", tmp_path / "run") == f"hbm-jax: {problem}"
    assert list(tmp_path.iterdir()) == []


# What stops a run


def test_interrupted_before_anything_was_drawn(tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hbm_jax.inference.sample", stop)
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path / "run")
    assert status == cli.INTERRUPTED
    assert "interrupted; nothing was written" in err
    assert not (tmp_path / "run").exists()


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("hbm_jax.inference.sample", stop)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["fit", "supernova", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_no_start_is_bad_input(tmp_path, capsys, monkeypatch):
    from hbm_jax.inference.sampler.target import StartError

    def stop(*args, **kwargs):
        raise StartError("No starting points were found.")

    monkeypatch.setattr("hbm_jax.inference.sample", stop)
    assert "No starting points" in refused(capsys, "fit", "supernova", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# One real run


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def command(sample_csv, folder, *more):
    """A fit of the few supernovae as a process of its own; a different end needs no different program."""
    words = [
        Path(sys.executable).parent / "hbm-jax", "fit", "supernova", "--data", sample_csv, "--cosmology", "lcdm",
        "--num-warmup", "200", "--seed", "4", "--set", "prior.Om0=Uniform(0.05, 0.95)", "--no-report", "--out", folder,
        *more,
    ]  # fmt: skip
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def real_run(sample_csv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "runs" / "few"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(command(sample_csv, folder, "--num-samples", "300")[1:])
    return folder, subprocess.CompletedProcess("hbm-jax", status, out.getvalue(), err.getvalue())


def test_real_run_says_what_it_found(real_run):
    folder, done = real_run
    assert done.returncode in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), done.stderr
    assert "Traceback" not in done.stderr
    assert "stopped: all requested draws are done: 4 x 300 draws in" in done.stderr
    assert done.stdout.startswith("Type Ia supernovae, flat LCDM, marginal latents\n60 type Ia supernovae")
    fit = hbm.load(folder)
    assert str(fit.verdict) in done.stdout
    assert fit.table() in done.stdout
    assert done.returncode == status_of(fit.verdict)
    assert ("\nusable: 1200 draws" in done.stdout) == (done.returncode != cli.NOT_USABLE)
    assert f"posterior  {folder / 'posterior.nc'}" in done.stdout


def test_real_run_folder(real_run, sample_csv):
    folder, _ = real_run
    assert {path.name for path in folder.iterdir()} == {"posterior.nc", "config.toml", "summary.csv", "checkpoint"}
    assert (folder / "checkpoint" / "config.toml").read_text() == (folder / "config.toml").read_text()
    fit = hbm.load(folder)
    assert fit.posterior.sizes == {"chain": 4, "draw": 300}
    assert fit.posterior["Om0"].dtype == np.float64
    assert fit.run["seed"] == 4
    assert fit.run["num_warmup"] == 200
    assert fit.program.to_config()["priors"]["Om0"] == "Uniform(low=0.05, high=0.95)"
    assert float(fit.posterior["Om0"].min()) > 0.05
    np.testing.assert_array_equal(fit.data.m_b, hbm.data.read_supernovae(sample_csv).m_b)
    rows = (folder / "summary.csv").read_text().splitlines()
    assert len(rows) == len(fit.summary()) + 1


def test_config_of_a_run_reproduces_it(real_run):
    folder, _ = real_run
    stored = tomllib.loads((folder / "config.toml").read_text())
    arguments = commands.parsed(["fit", "--config", str(folder / "config.toml")])[1]
    config = inputs.configuration_of(arguments)
    again = {
        section: {k: v for k, v in content.items() if v is not None} for section, content in config.items() if content
    }
    assert again == stored
    model, sample = inputs.model_and_data(config)
    fit = hbm.load(folder)
    assert model.to_config() == fit.program.to_config()
    np.testing.assert_array_equal(sample.m_b, fit.data.m_b)
    assert config["sample"]["num_samples"] == 300
    assert config["sample"]["seed"] == 4
    # A flag comes before the file.
    arguments = commands.parsed(["fit", "--config", str(folder / "config.toml"), "--seed", "9"])[1]
    assert inputs.configuration_of(arguments)["sample"]["seed"] == 9


def test_real_run_in_the_way_of_another(real_run, capsys):
    folder, _ = real_run
    content = (folder / "posterior.nc").read_bytes()
    text = refused(capsys, "fit", "supernova", "--out", folder)
    assert "found another run in it. Continue it with 'hbm-jax resume " in text
    assert (folder / "posterior.nc").read_bytes() == content


def test_a_configuration_can_be_used_for_another_model(real_run):
    # The run's own file holds the priors that were given, not those of its cosmology's other parameters.
    folder, _ = real_run
    arguments = commands.parsed(["fit", "--config", str(folder / "config.toml"), "--cosmology", "wcdm"])[1]
    model, _ = inputs.model_and_data(inputs.configuration_of(arguments))
    assert model.cosmology == "wcdm"
    assert model.all_priors["Om0"].low == 0.05
    assert model.all_priors["w0"].low == -3.0


@pytest.fixture(scope="module")
def run_as_a_process(sample_csv, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process") / "few"
    words = command(sample_csv, folder, "--num-samples", "300")
    environment = os.environ | {"HBM_JAX_CACHE": str(cache)}
    return folder, subprocess.run(words, capture_output=True, text=True, timeout=250, env=environment)


@pytest.mark.long
def test_a_process_of_its_own_says_the_same(real_run, run_as_a_process):
    (folder, done), (other, process) = real_run, run_as_a_process
    assert process.returncode in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), process.stderr
    assert "Traceback" not in process.stderr
    assert {path.name for path in other.iterdir()} == {path.name for path in folder.iterdir()}
    assert process.stdout.splitlines()[:2] == done.stdout.splitlines()[:2]
    assert hbm.load(other).posterior.sizes == hbm.load(folder).posterior.sizes


# Runs that are stopped, and go on


@pytest.mark.long
def test_a_run_is_continued(real_run, tmp_path, capsys):
    before = hbm.load(real_run[0])
    folder = shutil.copytree(real_run[0], tmp_path / "run")
    status, out, err = run(capsys, "resume", folder, "--num-samples", "350", "--no-report", "--quiet")
    assert out.startswith("Type Ia supernovae, flat LCDM, marginal latents\n60 type Ia supernovae"), err
    fit = hbm.load(folder)
    assert status == status_of(fit.verdict)
    assert fit.posterior.sizes == {"chain": 4, "draw": 350}
    np.testing.assert_array_equal(fit.posterior["Om0"][:, :300], before.posterior["Om0"])
    stored = tomllib.loads((folder / "config.toml").read_text())
    assert stored["sample"]["num_samples"] == 350
    assert stored["prior"] == {"Om0": "Uniform(0.05, 0.95)"}
    assert len((folder / "summary.csv").read_text().splitlines()) == len(fit.summary()) + 1
    # The same from Python, which writes nothing but the checkpoint; the run has ended, so nothing is drawn.
    written = (folder / "posterior.nc").read_bytes()
    again = hbm.resume(folder, progress=False)
    np.testing.assert_array_equal(again.posterior["Om0"], fit.posterior["Om0"])
    assert isinstance(again.program, hbm.models.Supernova)
    assert (folder / "posterior.nc").read_bytes() == written


def blocks(folder, warmup):
    found = []
    for path in sorted((folder / "checkpoint").glob("block-*.npz")):
        with np.load(path) as block:
            found += [path] if bool(block["warmup"]) == warmup else []
    return found


@pytest.mark.parametrize(
    ("number", "more", "warmup"),
    [
        pytest.param(signal.SIGTERM, ["--num-samples", "1000000"], False, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, ["--num-warmup", "1000000"], True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("run_as_a_process")  # which compiles
def test_a_stopped_run_says_how_it_goes_on(number, more, warmup, sample_csv, cache, tmp_path):
    folder = tmp_path / "my run"
    process = subprocess.Popen(
        command(sample_csv, folder, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HBM_JAX_CACHE": str(cache)},
    )
    try:
        ends = time.monotonic() + 200
        while not blocks(folder, warmup) and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED, err
    assert "Traceback" not in err
    resume = f"hbm-jax resume '{folder}'"
    if warmup:
        assert " of 1000000 warm-up draws; continue with" in err
        assert err.splitlines()[-1] == resume
        assert [path.name for path in folder.iterdir()] == ["checkpoint"]
    else:
        assert out.splitlines()[-1] == resume
        fit = hbm.load(folder)
        assert fit.run["stopped"] == "interrupted"
        assert fit.posterior.sizes["draw"] >= 4
        assert {path.name for path in folder.iterdir()} == {"posterior.nc", "config.toml", "summary.csv", "checkpoint"}


@pytest.mark.long
@pytest.mark.usefixtures("run_as_a_process")
def test_a_second_run_compiles_nothing(sample_csv, cache, tmp_path):
    programs = {path.name for path in cache.glob("*-cache")}
    assert len(programs) > 5
    again = command(sample_csv, tmp_path / "run", "--num-samples", "20")
    environment = os.environ | {"HBM_JAX_CACHE": str(cache)}
    done = subprocess.run(again, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == cli.NOT_USABLE, done.stderr
    new = {path.name for path in cache.glob("*-cache")} - programs
    assert not [name for name in new if "advance" in name or "start" in name], "the programs that take long to compile"


LIKE_THE_MODEL = hbm.inference.ModelCheck(True, 0.5, "the data look like draws from the fitted model (p = 0.5)", ())


def ended(stopped, model=LIKE_THE_MODEL):
    """A sampler that returns a fit which was ended in a certain way, with its check of the model if that is given."""

    fit = load("supernova")
    fit = dataclasses.replace(fit, verdict=dataclasses.replace(fit.verdict, model=model))

    def sample(*args, checkpoint, **options):
        (checkpoint / "start.npz").write_bytes(b"")
        (checkpoint / "run.json").write_text("{}")
        return dataclasses.replace(fit, run=fit.run | {"stopped": stopped})

    return sample


@pytest.mark.long
def test_a_full_disk(tmp_path, capsys, monkeypatch):
    why = "stopped because run/checkpoint: the checkpoint could not be written: No space left on device."
    monkeypatch.setattr("hbm_jax.inference.sample", ended(why))
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path / "run", "--no-report")
    assert status in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE), "the posterior could be written"
    assert (tmp_path / "run" / "posterior.nc").exists()
    assert err == f"hbm-jax: {why}\n"

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hbm_jax.inference.Fit.save", full)
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path / "other", "--no-report")
    assert status == cli.BAD_INPUT
    assert err.startswith(f"hbm-jax: {why}\nhbm-jax: ")
    again = f"hbm-jax resume {tmp_path / 'other'}"
    assert err.endswith(f"All draws are in the checkpoint; to write the results again:\n{again}\n")
    assert (tmp_path / "other" / "checkpoint" / "start.npz").exists()


@pytest.mark.long
def test_the_data_are_compared_with_the_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hbm_jax.inference.sample", ended("stopped: all requested draws are done", model=None))
    monkeypatch.setattr("hbm_jax.inference.model_check.check.LEVEL", 0.01)  # these supernovae have a p-value of 0.04
    status, out, _ = run(capsys, "fit", "supernova", "--out", tmp_path / "run", "--no-report")
    stored = hbm.load(tmp_path / "run")
    assert (status, stored.verdict.usable, stored.verdict.model.passed) == (cli.USABLE, True, True)
    assert f"\n{stored.verdict}\n" in out
    assert "\nmodel: the data look like draws from the fitted model" in out
    assert stored.timing["check of the model"] > 0


@pytest.mark.long
def test_the_exit_status_says_whether_the_data_look_like_the_model(tmp_path, capsys, monkeypatch):
    good = load("supernova").verdict
    bad = hbm.inference.ModelCheck(False, 0.001, "the data do not look like the model: mb is off", ("outliers",))
    undecided = hbm.inference.ModelCheck(None, float("nan"), "the model could not be checked because why")
    for check, usable, expected in ((bad, True, 4), (bad, False, cli.NOT_USABLE), (undecided, True, cli.USABLE)):
        fit = dataclasses.replace(load("supernova"), verdict=dataclasses.replace(good, model=check, usable=usable))
        monkeypatch.setattr("hbm_jax.inference.sample", lambda *args, fit=fit, **options: fit)
        folder = tmp_path / f"{check.passed}{usable}"
        status, out, _ = run(capsys, "fit", "supernova", "--out", folder, "--no-report")
        assert status == expected
        assert f"\nmodel: {check}\n" in out
        assert str(hbm.load(folder).model_check) == str(check)
    # The report keeps it: nothing is computed.
    monkeypatch.setattr("hbm_jax.report.figures_for", lambda fit: {})
    status, out, _ = run(capsys, "report", tmp_path / "FalseTrue")
    assert status == cli.MISFIT
    assert "\nmodel: the data do not look like the model: mb is off. To try: outliers.\n" in out
    assert "The data do not look like the model: mb is off." in (tmp_path / "FalseTrue" / "report.html").read_text()


def test_draws_that_are_not_usable_are_not_compared_with_the_data(tmp_path, capsys, monkeypatch):
    fit = load("supernova")
    fit = dataclasses.replace(fit, verdict=dataclasses.replace(fit.verdict, usable=False))
    monkeypatch.setattr("hbm_jax.inference.sample", lambda *args, **options: fit)
    status, out, _ = run(capsys, "fit", "supernova", "--out", tmp_path / "run", "--no-report")
    assert status == cli.NOT_USABLE
    assert "\nmodel: " not in out


def test_a_time_budget_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hbm_jax.inference.sample", ended("stopped: the time budget of 9 s is spent"))
    status, out, _ = run(capsys, "fit", "supernova", "--out", tmp_path / "run", "--no-report")
    assert status in (cli.USABLE, cli.MISFIT, cli.NOT_USABLE)
    assert out.endswith(f"the time budget of 9 s is spent; continue with\nhbm-jax resume {tmp_path / 'run'}\n")


def test_interrupted_while_compiling(tmp_path, capsys, monkeypatch):
    found_start = ended("")

    def stop(*args, checkpoint, **options):
        found_start(checkpoint=checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr("hbm_jax.inference.sample", stop)
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path / "run")
    assert status == cli.INTERRUPTED
    assert err.endswith(f"\nhbm-jax: interrupted; continue with\nhbm-jax resume {tmp_path / 'run'}\n")


def test_interrupted_while_the_results_are_written(tmp_path, capsys, monkeypatch):
    def stop(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr("hbm_jax.inference.sample", ended("stopped: all requested draws are done"))
    monkeypatch.setattr("hbm_jax.inference.Fit.save", stop)
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path / "run", "--no-report")
    assert status == cli.INTERRUPTED
    assert err.endswith(f"while the results were written; continue with\nhbm-jax resume {tmp_path / 'run'}\n")


def test_options_reach_the_sampler(tmp_path, capsys, monkeypatch):
    seen = {}

    def sample(*args, **options):
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("hbm_jax.inference.sample", sample)
    ends = ["--max-seconds", "90", "--set", "sample.until.Om0=1000", "--set", "sample.until.alpha=800"]
    refused(capsys, "fit", "supernova", *ends, "--out", tmp_path / "run", "--no-report")
    assert seen["until"] == {"Om0": 1000.0, "alpha": 800.0}
    assert seen["max_seconds"] == 90.0
    assert seen["checkpoint"] == tmp_path / "run" / "checkpoint"
    assert "num_samples" not in seen
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_begun_again(tmp_path, capsys):
    folder = tmp_path / "Run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "run.json").write_text("{}")
    text = refused(capsys, "fit", "supernova", "--out", folder)
    assert f"found an unfinished run in it. Continue it with 'hbm-jax resume {folder}', choose another --out" in text
    assert "unfinished: continue it with hbm_jax.resume(" in refused(capsys, "report", folder)


@pytest.mark.parametrize("how", ["options", "start", "interrupt", "in use"])
def test_an_old_run_stays_until_a_new_one_has_begun(how, tmp_path, capsys, monkeypatch):
    from hbm_jax.inference.sampler.checkpoint import Checkpoint

    old = {"posterior.nc": "draws", "checkpoint/run.json": "{}", "checkpoint/start.npz": "start", "report.html": "old"}
    (tmp_path / "checkpoint").mkdir()
    for name, text in old.items():
        (tmp_path / name).write_text(text)

    def stop(*args, checkpoint, **options):
        assert not (checkpoint / "run.json").exists()
        assert (checkpoint / "config.toml").exists()
        raise {"start": OSError("no start"), "interrupt": KeyboardInterrupt()}[how]

    options = ["--num-samples", "2"] if how == "options" else []
    if how in ("start", "interrupt"):
        monkeypatch.setattr("hbm_jax.inference.sample", stop)
    held = Checkpoint(tmp_path / "checkpoint") if how == "in use" else None
    status, _, err = run(capsys, "fit", "supernova", "--out", tmp_path, "--overwrite", "--no-report", *options)
    if held is not None:
        held.close()
        assert "another process is" in err
    assert status == (cli.INTERRUPTED if how == "interrupt" else cli.BAD_INPUT)
    assert how != "interrupt" or "nothing was written" in err
    for name, text in old.items():
        assert (tmp_path / name).read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"posterior.nc", "checkpoint", "report.html"}


def test_a_new_run_replaces_the_old_one(tmp_path, capsys, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    for name in ("run.json", "start.npz", "block-000000.npz"):
        (tmp_path / "checkpoint" / name).write_text("old")
    monkeypatch.setattr("hbm_jax.inference.sample", ended("stopped: all requested draws are done"))
    assert run(capsys, "fit", "supernova", "--out", tmp_path, "--overwrite", "--no-report")[0] != cli.BAD_INPUT
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {"run.json", "start.npz", "config.toml"}
    assert {path.name for path in tmp_path.iterdir()} == {"posterior.nc", "config.toml", "summary.csv", "checkpoint"}


def test_bad_resumes(tmp_path, capsys, monkeypatch):
    assert "expected a checkpoint folder holding run.json; found none" in refused(capsys, "resume", tmp_path / "none")
    text = refused(capsys, "resume", tmp_path, "--set", "sample.seed=3")
    assert "--set sample.seed: expected one of sample.num_samples, sample.until" in text
    text = refused(capsys, "resume", tmp_path, "--set", "sample.max_seconds=long")
    assert "sample.max_seconds: expected a number, found 'long'" in text
    text = refused(capsys, "resume", tmp_path, "--set", "sample.until.Om0=many")
    assert "sample.until.Om0: expected a number or a table, each entry a number, found" in text
    x = np.linspace(0.0, 1.0, 5)
    y = x + np.array([0.1, -0.2, 0.1, 0.2, -0.1])  # scatter, or the density has no maximum
    monkeypatch.setattr("hbm_jax.inference.run.Run.fit", lambda *_: None)  # the run is described before any work
    hbm.sample(own_model, x, y, checkpoint=tmp_path / "own", progress=False)
    text = refused(capsys, "resume", tmp_path / "own")
    assert "expected the program of the run, own_model, and its data" in text
    assert f"hbm_jax.resume('{tmp_path / 'own'}', own_model, data)" in text


@pytest.mark.long
def test_absorption_prints_transmissions_and_draws_them(tmp_path, capsys):
    from hbm_jax.absorption import neutral_cross_section, whim_optical_depth
    from hbm_jax.cosmology import Cosmology

    out = tmp_path / "out.png"
    command = ["absorption", "--nh", "1", "--nh-mw", "0.3", "--z", "2", "--n0", "1e-7", "--log10-T", "6"]
    command += ["--plot", str(out)]
    assert cli.main(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[0] == "0.50"]
    host = np.exp(-neutral_cross_section(1.5))
    flat = Cosmology.flat(H0=70.0, Om0=0.3)
    whim = np.exp(-whim_optical_depth(0.5, 2.0, n0=1e-7, log10_T=6.0, cosmology=flat))
    galactic = np.exp(-0.3 * neutral_cross_section(0.5))
    expected = [host, galactic, whim, host * galactic * whim]
    np.testing.assert_allclose([float(x) for x in row[1:]], expected, atol=6e-5)
    with Image.open(out) as figure:
        assert figure.size[0] > 600


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nh", "-1"], "--nh: expected a number of at least 0; found -1.0"),
        (["--nh-mw", "nan"], "--nh-mw: expected a number of at least 0; found nan"),
        (["--nh", "1e22"], "--nh: expected a column density in units of 1e22 cm^-2, up to 10000; found 1e+22"),
        (["--H0", "-70"], "--H0: expected a positive number [km/s/Mpc]; found -70.0"),
        (["--n0", "1e-7"], "--n0: expected the redshift of the source with it, such as --z 2"),
        (["--z", "9", "--energies", "0.3", "100"], "--energies: expected no more than 50 keV, which is 500 keV at the"),
        (["--plot", "out.xyz"], "--plot: expected a name ending in .png, .pdf, .svg; found 'out.xyz'"),
        (["--plot", "nowhere/out.png"], "--plot: expected an existing folder; found 'nowhere'"),
        (["--abundances", "wlim"], "unknown abundance table 'wlim' (did you mean 'wilm'?)"),
        (["--log10-T", "9"], "log10_T: expected between 4 and 8; found 9"),
        (["--z", "20"], "z: expected between 0 and 10; found 20"),
        (["--energies", "5", "1"], "--energies: expected two positive energies [keV] in increasing order; found 5 1"),
    ],
)
def test_bad_input_of_absorption(flags, message, capsys):
    assert cli.main(["absorption", *flags]) == 2
    assert message in capsys.readouterr().err
