"""Results of a fit in the formats of LaTeX, astropy, pandas and GetDist; and a fit in place of its program."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from astropy.table import Table
from stored_fits import load

import hbm_jax as hbm
from hbm_jax.inference import Fits
from hbm_jax.inference.checksum import ResultFileError
from hbm_jax.notation import quote


@pytest.fixture
def fits():
    """Three objects, the last without draws."""
    rng = np.random.default_rng(1)
    names = ["M 87", "NGC 1275", "empty"]
    columns = {"usable": [True, True, False], "why": ["", "", "no finite density"], "num_draws": [4000, 4000, 0]}
    sites = {name: {"kT": rng.normal(size=8), "norm": rng.normal(size=(2, 8))} for name in names[:2]}
    kept = {"M 87": {"kT": rng.normal(size=(4, 5))}}
    verdicts = pd.DataFrame(columns | {"notes": ["", "few data", ""]}, index=pd.Index(names, name="object"))
    return Fits(names, verdicts, {"seconds": 2.5, "lanes": 64}, {"seed": 3}, sites | {"empty": {}}, kept)


def test_draws_as_a_dataframe():
    fit = load("supernova")
    frame = fit.to_dataframe()
    assert list(frame) == list(fit.summary().index)
    sizes = fit.posterior.sizes
    assert frame.shape[0] == sizes["chain"] * sizes["draw"]
    np.testing.assert_array_equal(frame.loc[(1, 3), "Om0"], fit.posterior["Om0"].isel(chain=1, draw=3))
    assert list(fit.to_dataframe(["M0", "Om0"])) == ["M0", "Om0"]
    with pytest.raises(ValueError, match=r"expected parameters among .*; found slop"):
        fit.to_dataframe(["slop"])


def test_elements_of_vectors_are_columns():
    fit = load("eight_schools")
    name = next(str(name) for name, values in fit.posterior.items() if values.ndim == 3)
    frame = fit.to_dataframe([name])
    assert frame.shape[1] == 8
    np.testing.assert_array_equal(frame.to_numpy(), fit.posterior[name].to_numpy().reshape(-1, 8))


def test_summary_in_the_order_that_is_asked_for():
    fit = load("supernova")
    assert list(fit.summary(["beta", "Om0"]).index) == ["beta", "Om0"]


def test_a_table_shows_the_digits_of_its_errors_and_keeps_all(tmp_path):
    fit = load("supernova")
    table = fit.to_table()
    shown = {row[0]: row for row in (line.split() for line in table["parameter", "median", "r_hat"].pformat()[2:])}
    for name, row in fit.summary().iterrows():
        assert abs(float(shown[name][1]) - row["median"]) < 0.05 * row["sd"]
        assert len(shown[name][1].lstrip("-0.")) <= 8
    table.write(tmp_path / "fit.ecsv")
    np.testing.assert_array_equal(Table.read(tmp_path / "fit.ecsv")["median"], fit.summary()["median"])


def test_latex_has_symbols_and_units():
    fit = load("supernova")
    row = fit.summary().loc["M0"]
    quoted = quote(row["median"], row["lower_68"], row["upper_68"])
    number = f"${quoted.median}^{{+{quoted.plus}}}_{{-{quoted.minus}}}$"
    assert fit.to_latex(["Om0", "M0"]).splitlines()[-3] == rf"$M_0$ & {number} & mag \\"
    assert fit.to_latex(["M0"], symbols={"M0": "$M$"}).splitlines()[4].startswith("$M$ & ")


def test_latex_of_a_relation_has_symbols_and_no_constants():
    assert r"$\langle \alpha \rangle$ & $" in load("relation").to_latex()
    fit = load("relation_of_two")
    assert np.ptp(fit.posterior["x_correlation_factor"].values[..., 0, 0]) == 0.0
    rows = fit.to_latex().splitlines()
    assert [row.partition(" & ")[0] for row in rows if row.startswith("$L$")] == ["$L$[1, 0]", "$L$[1, 1]"]


def test_a_user_program_has_symbols_as_an_attribute(monkeypatch):
    fit = load("own")
    assert r"my\_slope & $" in fit.to_latex()
    monkeypatch.setattr(fit.program, "symbols", {"my_slope": "$m$", "absent": "$a$"}, raising=False)
    assert fit.symbols == {"my_slope": "$m$"}
    assert "$m$ & $" in fit.to_latex()


def test_astropy_table_survives_ecsv(tmp_path):
    fit = load("supernova")
    path = tmp_path / "parameters.ecsv"
    fit.to_table().write(path)
    table, summary = Table.read(path), fit.summary()
    assert list(table["parameter"]) == list(summary.index)
    assert list(table["unit"].filled("")) == list(summary["unit"])
    np.testing.assert_array_equal(table["median"], summary["median"])
    assert table.meta["verdict"] == str(fit.verdict)


def test_files_of_getdist(tmp_path):
    fit = load("supernova")
    files = fit.save_getdist(tmp_path / "out" / "chain", ["Om0", "M0", "sigma_int"])
    chains = fit.posterior.sizes["chain"]
    assert [file.name for file in files] == [
        "chain.paramnames", "chain.ranges", *(f"chain_{i + 1}.txt" for i in range(chains))
    ]  # fmt: skip
    assert files[0].read_text().splitlines()[:2] == ["Om0\t\\Omega_\\mathrm{m}", "M0\tM_0"]
    ranges = dict(line.split("\t", 1) for line in files[1].read_text().splitlines())
    support = fit.program.all_priors["Om0"].support
    assert [float(end) for end in ranges["Om0"].split("\t")] == [support.lower_bound, support.upper_bound]
    second = np.loadtxt(files[3])
    np.testing.assert_array_equal(second[:, 0], 1.0)
    np.testing.assert_allclose(-second[:, 1], fit.tree["sample_stats"]["lp"].isel(chain=1), rtol=1e-9)
    np.testing.assert_allclose(second[:, 3], fit.posterior["M0"].isel(chain=1), rtol=1e-9)


def test_many_fits_are_saved_and_read(fits, tmp_path):
    path = fits.save(tmp_path / "out" / "fits")
    assert path.name == "fits.npz"
    again = Fits.load(tmp_path / "out" / "fits")  # the name that was given, or the path that was returned
    assert Fits.load(path).summary().equals(again.summary())
    assert again.names == fits.names
    assert (again.cost, again.run) == (fits.cost, fits.run)
    pd.testing.assert_frame_equal(again.verdicts, fits.verdicts)
    pd.testing.assert_frame_equal(again.summary(), fits.summary())
    np.testing.assert_array_equal(again.draws("M 87")["posterior"]["kT"], fits.kept["M 87"]["kT"])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ResultFileError, match=r"fits.npz: expected a file written by Fits.save"):
        Fits.load(path)
    fits.names[0] = ("M", 87)
    with pytest.raises(ValueError, match=r"expected names of objects that are text or numbers; found \('M', 87\)"):
        fits.save(path)


@pytest.mark.parametrize("suffix", ["ecsv", "fits"])
def test_catalogue_of_many_fits(fits, tmp_path, suffix):
    path = tmp_path / f"catalogue.{suffix}"
    fits.to_table().write(path)
    table = Table.read(path)
    assert [str(name) for name in table["object"]] == fits.names
    assert list(table["usable"]) == [True, True, False]
    summary = fits.summary()
    for label in ("kT", "norm[0]", "norm[1]"):
        expected = [*summary.xs(label, level="parameter")["upper_68"], np.nan]
        np.testing.assert_array_equal(np.ma.filled(table[f"{label}_upper_68"], np.nan), expected)


def test_the_prior_of_a_fit_is_that_of_its_program():
    fit = load("own")
    found = hbm.prior_predictive(fit, num_draws=2, seed=4)
    xr.testing.assert_identical(found, hbm.prior_predictive(fit.program, *fit.args, num_draws=2, seed=4))
    with pytest.raises(ValueError, match="prior_predictive: expected a fit with its program and data"):
        hbm.prior_predictive(dataclasses.replace(fit, program=None))
