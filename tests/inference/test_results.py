"""What comes out of a fit: numbers, text, and a file that comes back exactly or says what is wrong with it."""

import dataclasses
import functools
import hashlib
import json

import arviz_base
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from programs import COVARIANCE, MEAN, correlated, fit_about_the_start, fit_of_draws
from stored_fits import own_model

import hbm_jax as hbm
from hbm_jax.inference import Fit, ResultFileError, load
from hbm_jax.inference.checksum import LENGTH, DamageWarning
from hbm_jax.inference.model_check.check import check_model
from hbm_jax.notation import rounded

SIZE = (4, 200)  # chains and draws, which NumPy makes: what comes out of them is no matter of sampling


@functools.cache
def correlated_fit():
    x = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, SIZE)
    sites = {"x": x, "total": x.sum(axis=-1)}
    return fit_of_draws(correlated, (MEAN, COVARIANCE), sites, unconstrained={"x": x})


@functools.cache
def supernova_fit():
    """Every twelfth supernova of JLA, flat LCDM."""
    sne = hbm.data.load_jla()
    return fit_about_the_start(hbm.models.Supernova(), (sne.subset(np.arange(0, len(sne), 12)),), SIZE, 2)


@functools.cache
def own_fit():
    x = np.linspace(0.0, 1.0, 30)
    return fit_about_the_start(own_model, (x, 2.0 * x + 0.3 * np.random.default_rng(0).normal(size=30)), SIZE, 3)


@pytest.fixture(
    scope="module",
    params=[pytest.param(correlated_fit, marks=pytest.mark.long), supernova_fit, own_fit],
    ids=lambda f: f.__name__,
)
def fit(request):
    return request.param()


@pytest.fixture(scope="module")
def saved(fit, tmp_path_factory):
    return fit.save(tmp_path_factory.mktemp("saved") / "deeper" / "run")


# Saving and loading


def test_round_trip_is_exact(fit, saved):
    assert saved.name == "run.nc"
    back = load(saved)
    assert isinstance(back, Fit)
    assert set(back.tree.children) == set(fit.tree.children)
    for group in fit.tree.children:
        mine, other = back.tree[group].to_dataset(), fit.tree[group].to_dataset()
        xr.testing.assert_equal(mine, other)
        assert list(mine) == list(other)
        for name in other:
            assert mine[name].attrs == other[name].attrs
            assert mine[name].dtype.kind == other[name].dtype.kind or other[name].dtype.kind == "U"
    assert back.run == json.loads(json.dumps(fit.run))
    assert back.timing.keys() <= fit.timing.keys()
    assert back.units == fit.units
    assert back.program is None
    assert back.args == ()
    assert back.data is None


def test_verdict_and_summary_come_back(fit, saved):
    back = load(saved)
    assert str(back.verdict) == str(fit.verdict)
    assert back.verdict.notes == fit.verdict.notes
    assert back.verdict.table.equals(fit.verdict.table)
    assert back.summary().equals(fit.summary())
    assert back.table() == fit.table()


def test_loading_and_saving_again_changes_nothing(saved, tmp_path):
    once = load(saved)
    again = load(once.save(tmp_path / "again.nc"))
    xr.testing.assert_equal(again.tree, once.tree)
    assert again.run == once.run


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", []),
        ("run", {"program": 3}),
        ("run", {"config": "text"}),
        ("timing", {"sampling": "long"}),
        ("timing", [1.0]),
        ("notes", [1]),
        ("notes", None),
    ],
)
def test_what_is_stored_about_a_run_is_of_its_kind(name, value, tmp_path):
    tree = own_fit().tree.copy()
    about = json.loads(tree.attrs["hbm_jax_run"]) | value if isinstance(value, dict) and name == "run" else value
    tree.attrs[f"hbm_jax_{name}"] = json.dumps(about)
    with pytest.raises(ResultFileError, match=r"run\.nc: expected a result file written by Fit\.save"):
        load(dataclasses.replace(own_fit(), tree=tree).save(tmp_path / "run.nc"))


def test_check_of_the_model_is_the_second_line_and_kept(fit, tmp_path):
    fit = dataclasses.replace(fit)
    assert fit.verdict.model is None, "it is not computed behind the user's back"
    first = str(fit.verdict)
    check = fit.model_check
    assert check is fit.model_check is fit.verdict.model
    assert str(fit.verdict) == f"{first}\nmodel: {check}"
    back = load(fit.save(tmp_path / "checked.nc"))
    assert back.program is None, "nothing is computed again"
    assert str(back.verdict).splitlines()[-1] == f"model: {check}"
    assert back.model_check.passed is check.passed
    np.testing.assert_equal(back.model_check.p_value, check.p_value)
    pd.testing.assert_frame_equal(back.model_check.table, check.table)
    assert (back.model_check.worst is None) == (check.worst is None)
    for stored, value in zip(back.model_check.worst or (), check.worst or (), strict=True):
        np.testing.assert_array_equal(stored, value)
    assert str(load(back.save(tmp_path / "again.nc")).verdict) == str(back.verdict)


def test_a_fit_without_its_program_is_checked_once_it_has_it(fit, saved):
    back = load(saved)
    assert back.model_check.passed is None
    assert "without its program" in back.model_check.sentence
    assert back.verdict.model is None
    back.attach(fit.program, fit.args)
    assert str(back.model_check) == str(check_model(fit))
    assert back.verdict.model is not None


@pytest.mark.parametrize("text", ["3", "{", "{}", '{"sentence": 3, "p_value": 0.1, "passed": true, "remedies": []}'])
def test_a_stored_check_is_of_its_kind(text, tmp_path):
    tree = own_fit().tree.copy()
    tree.attrs["hbm_jax_model_check"] = text
    with pytest.raises(ResultFileError, match=r"run\.nc: expected a result file written by Fit\.save"):
        load(dataclasses.replace(own_fit(), tree=tree).save(tmp_path / "run.nc"))


def test_the_suffix_may_be_left_out(saved):
    assert load(saved.with_suffix("")).run == load(str(saved)).run


def test_program_and_data_may_be_given(fit, saved):
    back = load(saved, fit.program, fit.args)
    assert back.program is fit.program
    assert back.args is fit.args


def test_readable_without_hbm_jax(fit, saved):
    with xr.open_datatree(saved) as tree:
        assert tree["posterior"].sizes["chain"] == fit.posterior.sizes["chain"]
        xr.testing.assert_equal(tree["posterior"].to_dataset().load(), fit.posterior)
        assert "hbm_jax_verdict" in tree.attrs
    # What ArviZ opens files with, where this version has it.
    if hasattr(arviz_base, "from_netcdf"):
        read = arviz_base.from_netcdf(str(saved))
        np.testing.assert_array_equal(read["sample_stats"]["lp"], fit.tree["sample_stats"]["lp"])


# Files that are not fits


def test_missing_file(tmp_path):
    with pytest.raises(ResultFileError, match=r"nothing: expected a result file written by Fit.save, found no such"):
        load(tmp_path / "nothing")
    with pytest.raises(ResultFileError, match="found no such file"):
        load(tmp_path)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return own_fit().save(tmp_path_factory.mktemp("whole") / "whole.nc").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.3, 0.9])
def test_truncated_file(content, keep, tmp_path):
    path = tmp_path / "cut.nc"
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ResultFileError, match=r"cut\.nc: expected a result file .* (damaged|netCDF file without)"):
        load(path)


def test_random_bytes(tmp_path):
    path = tmp_path / "noise.nc"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ResultFileError, match=r"noise\.nc: .* It may be damaged or cut short"):
        load(path)


def flipped(content, number):
    """The same with one bit of one byte changed."""
    rng = np.random.default_rng(number)
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@pytest.mark.parametrize("number", range(5))
def test_one_changed_bit_is_noticed(content, number, tmp_path):
    path = tmp_path / "flipped.nc"
    path.write_bytes(flipped(content[:-LENGTH], number) + content[-LENGTH:])
    with pytest.raises(ResultFileError, match=r"flipped\.nc: .* found one that is damaged: its checksum differs"):
        load(path)


def test_the_checksum_is_that_of_the_file_before_it(content):
    assert content.endswith(hashlib.sha256(content[:-LENGTH]).hexdigest().encode())


@pytest.mark.filterwarnings("ignore:.*expected a checksum:hbm_jax.inference.checksum.DamageWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*File.close")  # of h5netcdf, for what it could not open
@pytest.mark.parametrize("number", range(10))
def test_damage_to_a_file_without_a_checksum_is_an_error_of_the_file_or_no_error(content, number, tmp_path):
    """Damage in the numbers alone cannot be seen there, but never is another exception."""
    # Bits of the first part, in which most of the structure is, and a stretch anywhere.
    bare, structure = content[:-LENGTH], len(content) // 8
    begin = len(bare) * number // 10
    path = tmp_path / "scratched.nc"
    for changed in (
        flipped(bare[:structure], number) + bare[structure:],
        bare[:begin] + b"\xff" * 400 + bare[begin + 400 :],
    ):
        path.write_bytes(changed)
        try:
            load(path)
        except ResultFileError as error:
            assert "scratched.nc" in str(error)  # noqa: PT017 - not every change is noticed


def test_a_file_of_before_checksums_is_loaded_with_a_warning(content, tmp_path):
    path = tmp_path / "before.nc"
    path.write_bytes(content[:-LENGTH])
    with pytest.warns(DamageWarning, match=r"before\.nc: expected a checksum at its end; found none"):
        fit = load(path)
    assert load(fit.save(tmp_path / "again.nc")).summary().equals(own_fit().summary())


def test_another_program_that_adds_a_group_takes_the_checksum_away(content, tmp_path):
    path = tmp_path / "added.nc"
    path.write_bytes(content)
    xr.Dataset({"y": ("x", np.arange(3.0))}).to_netcdf(path, group="more", mode="a", engine="h5netcdf")
    with pytest.warns(DamageWarning, match="another program has changed it"):
        fit = load(path)
    assert fit.tree["more"]["y"].values.tolist() == [0.0, 1.0, 2.0]


def test_another_netcdf_file(tmp_path):
    path = tmp_path / "other.nc"
    xr.Dataset({"temperature": ("x", np.arange(3.0))}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ResultFileError, match=r"other\.nc: expected .* found a netCDF file without 'hbm_jax_run'"):
        load(path)


def test_a_fit_without_its_posterior(tmp_path):
    tree = own_fit().tree.copy()
    del tree["posterior"]
    tree.to_netcdf(tmp_path / "half.nc", engine="h5netcdf")
    with pytest.raises(ResultFileError, match=r"half\.nc: expected .* found a netCDF file without .*posterior"):
        load(tmp_path / "half.nc")


def test_provenance_that_is_not_readable(tmp_path):
    tree = own_fit().tree.copy()
    tree.attrs["hbm_jax_run"] = "{not json"
    tree.to_netcdf(tmp_path / "odd.nc", engine="h5netcdf")
    with pytest.raises(ResultFileError, match=r"odd\.nc"):
        load(tmp_path / "odd.nc")


# All of it or nothing


def test_a_failing_save_leaves_the_old_file(content, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    path.write_bytes(content)

    def fail(self, target, **kwargs):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", fail)
    with pytest.raises(OSError, match="No space left"):
        own_fit().save(path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_saving_replaces(content, tmp_path):
    path = tmp_path / "run.nc"
    path.write_bytes(b"something else")
    assert own_fit().save(path) == path
    assert load(path).run["program"] == "own_model"
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


# Numbers and text


def test_summary_against_numpy(fit):
    summary = fit.summary()
    assert list(summary.columns) == [
        "median", "lower_68", "upper_68", "mean", "sd", "unit", "r_hat", "ess_bulk", "ess_tail", "mcse_mean",
        "mcse_sd",
    ]  # fmt: skip
    for name, variable in fit.posterior.items():
        values = variable.to_numpy().reshape(-1, int(np.prod(variable.shape[2:])))
        labels = [label for label in summary.index if label == name or label.startswith(f"{name}[")]
        assert len(labels) == values.shape[1]
        for label, column in zip(labels, values.T, strict=True):
            row = summary.loc[label]
            expected = [*np.quantile(column, [0.5, 0.16, 0.84]), column.mean(), column.std(ddof=1)]
            np.testing.assert_allclose(row.iloc[:5].astype(float), expected, rtol=1e-12)
            assert row["unit"] == fit.units.get(name, "")
            assert row["r_hat"] == fit.verdict.table.loc[label, "r_hat"]


def test_large_variables_are_left_out_of_the_summary():
    fit = correlated_fit()
    assert list(fit.summary(max_size=4).index) == ["total"]
    assert fit.summary(max_size=4).loc["total"].equals(fit.summary().loc["total"])
    assert len(fit.summary(max_size=0)) == 0
    assert fit.table(max_size=0).splitlines()[0].startswith("parameter")


def test_table_has_units_and_every_parameter():
    fit = supernova_fit()
    lines = fit.table().splitlines()
    assert lines[0].split() == ["parameter", "median", "68", "%", "interval", "unit", "R-hat", "ESS"]
    assert [line.split()[0] for line in lines[1:]] == list(fit.posterior)
    (line,) = (line for line in lines if line.startswith("sigma_int"))
    row = fit.summary().loc["sigma_int"]
    texts = rounded(row["median"], row["lower_68"], row["upper_68"])
    assert line.split() == [
        "sigma_int", texts[0], texts[1], "to", texts[2], "mag", f"{row['r_hat']:.3f}", f"{row['ess_bulk']:.0f}"
    ]  # fmt: skip
    (line,) = (line for line in lines if line.startswith("Om0"))
    assert "mag" not in line


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((1.23456, 1.2, 1.27), ("1.235", "1.200", "1.270")),
        ((70.04, 69.0, 72.0), ("70.0", "69.0", "72.0")),
        ((1234.5, 1000.0, 1600.0), ("1234", "1000", "1600")),
        ((-19.0512, -19.0712, -19.03), ("-19.051", "-19.071", "-19.030")),
        ((3e-6, 2.5e-6, 4e-6), ("3.000e-06", "2.500e-06", "4.000e-06")),
        ((1.2346e-14, 1.1e-14, 1.4e-14), ("1.235e-14", "1.100e-14", "1.400e-14")),
        ((1e44, 0.98e44, 1.03e44), ("1.000e+44", "9.800e+43", "1.030e+44")),
        ((2459000.5123, 2459000.50, 2459000.53), ("2.459000512e+06", "2.459000500e+06", "2.459000530e+06")),
        ((-3e8, -4e8, -1e8), ("-3.000e+08", "-4.000e+08", "-1.000e+08")),
        ((0.0, -1e-14, 1e-14), ("0.000e+00", "-1.000e-14", "1.000e-14")),
        ((70.0, 70.0, 70.0), ("70.000", "70.000", "70.000")),  # held fixed
        ((0.5, 0.5 - 0.1, 0.5 + 0.3), ("0.50", "0.40", "0.80")),  # the smaller half-width decides
        ((5e-10, 0.0, 6.26598), ("0.0000", "0.0000", "6.2660")),  # next to a bound
        ((1.0, 1.0 - 1e-14, 1.0 + 1e-14), ("1.000000000000", "1.000000000000", "1.000000000000")),
    ],
)
def test_rounding_to_two_digits_of_the_error(values, texts):
    assert rounded(*values) == texts


def test_provenance():
    run = supernova_fit().run
    assert run["program"] == "Supernova"
    assert run["config"]["cosmology"] == "lcdm"
    assert run["config"]["priors"]["H0"] == "70.0"
    assert {"python", "jax", "numpyro", "hbm_jax"} <= set(run["versions"])
    assert run["data"].startswith("62 type Ia supernovae")
    assert run["description"] == "Type Ia supernovae, flat LCDM, marginal latents"
    assert "config" not in own_fit().run


def test_a_file_of_a_later_format(tmp_path):
    tree = own_fit().tree.copy()
    tree.attrs["hbm_jax_format"] = 99
    tree.to_netcdf(tmp_path / "later.nc", engine="h5netcdf")
    with pytest.raises(ResultFileError, match=r"later\.nc: expected .* format 1 or older, found format 99"):
        load(tmp_path / "later.nc")


def test_summary_of_some_parameters(fit):
    name = next(iter(fit.posterior))
    one = fit.summary([name])
    assert set(one.index) == {label for label in fit.summary(max_size=10**6).index if label.split("[")[0] == name}
    with pytest.raises(
        ValueError, match=r"summary: expected parameters among .*; found slop( \(did you mean .*\?\))?\."
    ):
        fit.summary("slop")


def test_a_fit_shows_its_verdict(fit):
    assert repr(fit).startswith("<Fit of ")
    assert str(fit.verdict) in repr(fit)
    assert len(repr(fit).splitlines()) == 1
