"""What is unusual in a table is told and kept with the data, and is left out or called missing on request."""

import numpy as np
import pytest
from astropy import units
from astropy.table import QTable, Table

from hbm_jax.data import (
    Bursts,
    DataError,
    DataWarning,
    DistanceModuli,
    RegressionData,
    load_jla,
    read_bursts,
    read_correlated_supernovae,
    read_distance_moduli,
    read_regression,
    read_relation,
    read_supernovae,
    read_values,
)
from hbm_jax.data.bursts.bursts import columns_of
from hbm_jax.data.catalogues import read_catalogue
from hbm_jax.data.columns import EVERYTHING, REDSHIFT, TEXT
from hbm_jax.data.supernovae import columns as supernova_columns
from hbm_jax.data.supernovae import distance_moduli
from hbm_jax.data.xray import afterglows
from hbm_jax.validation import Remedy

RNG = np.random.default_rng(1)
X = np.round(RNG.normal(size=20), 3)
Y = np.round(2.0 * X + 0.1 * RNG.normal(size=20), 3)
GROUP = np.repeat(["a", "b", "c", "d"], 5)
BURST = {
    "burst": ["one", "two", "three"], "z": [1.0, 2.0, 0.5], "log10_E_peak": [2.5, 2.2, 1.9],
    "log10_flux": [-5.5, -6.1, -6.0], "sigma_log10_E_peak": [0.05] * 3, "sigma_log10_flux": [0.02] * 3,
}  # fmt: skip
MODULI = {"name": ["p", "q", "r"], "z_cmb": [0.1, 0.2, 0.3], "mu": [38.0, 39.9, 40.9], "sigma": [0.1] * 3}

# Reader, a table, one of its columns of numbers, the name of its second object.
READERS = {
    "relation": (read_relation, {"x": X, "y": Y, "group": GROUP}, "x", "b"),
    "values": (read_values, {"y": Y, "group": GROUP}, "y", "b"),
    "regression": (
        lambda table, **options: read_regression(table, formula="y ~ x", name="object", **options),
        {"x": X, "y": Y, "object": [f"o{i}" for i in range(20)]},
        "x",
        "o1",
    ),
    "bursts": (read_bursts, BURST, "log10_E_peak", "two"),
    "moduli": (read_distance_moduli, MODULI, "mu", "q"),
}


def changed(table, column, rows, value):
    values = np.array(table[column], dtype=float)
    values[rows] = value
    return table | {column: values}


@pytest.mark.parametrize("kind", READERS)
def test_rows_are_left_out_by_name_by_number_and_where_they_are_bad(kind):
    read, table, column, second = READERS[kind]
    whole = read(table)
    assert second in whole.name
    assert whole.warnings == ()
    without = read(table, leave_out=second)
    assert set(whole.name) - set(without.name) == {second}
    num = len(next(iter(read(table, leave_out="row 0").to_table().itercols())))
    assert num == len(table[column]) - 1
    with pytest.raises(DataError, match=r"leave_out: expected names of the table's rows, .* found nobody"):
        read(table, leave_out=["nobody"])
    bad = changed(table, column, [1], np.nan)
    with pytest.raises(DataError, match="row 1"):
        read(bad)
    with pytest.warns(DataWarning, match=r"left out: .*, because of .*row 1"):
        kept = read(bad, leave_out="bad")
    assert len(kept.to_table()) == len(table[column]) - 1
    assert kept.warnings[0].startswith("left out: ")
    assert kept.warnings[0] in kept.describe()
    assert type(kept).from_dict(kept.to_dict()).warnings == kept.warnings


@pytest.mark.parametrize("kind", READERS)
def test_numbers_that_mean_nothing_are_missing(kind):
    read, table, column, _ = READERS[kind]
    coded = changed(table, column, [1], -99.0)
    with pytest.raises(DataError, match="row 1"):
        read(coded, missing=(-9, -99))
    with pytest.warns(DataWarning, match="left out"):
        kept = read(coded, missing=-99, leave_out="bad")
    assert len(kept.to_table()) == len(table[column]) - 1


@pytest.mark.parametrize("formula", ["y ~ C(k)", "y ~ k", "y ~ (1 | k)", "k ~ y"])
@pytest.mark.parametrize("codes", [["1", "2", "-9"], [1, 2, -9], ["a", "b", "-9"]])
def test_a_code_for_no_value_is_no_category(formula, codes):
    if formula == "k ~ y" and codes[0] == "a":
        return
    table = {"k": codes * 10, "y": np.arange(30.0)}
    masked = Table(table, masked=True)
    masked["k"].mask = np.arange(30) % 3 == 2
    for options in ({"table": table, "missing": -9}, {"table": masked}):
        source = options.pop("table")
        with pytest.raises(DataError, match=r"k, row 2 .*: expected a value, .* \(10 such rows of 30\)"):
            read_regression(source, formula=formula, **options)
        with pytest.warns(DataWarning, match="left out"):
            assert len(read_regression(source, formula=formula, leave_out="bad", **options)) == 20
    with pytest.raises(DataError, match=r"k, row 2 .*: expected a value"):
        RegressionData.from_columns({key: masked[key] for key in table}, formula)


@pytest.mark.parametrize("kind", ["relation", "values", "regression"])
def test_repeated_values_far_from_all_others_are_warned_of(kind):
    read, table, column, _ = READERS[kind]
    with pytest.warns(DataWarning, match=rf"{column} is -99 in 3 rows and between .* pass missing=-99"):
        data = read(changed(table, column, [1, 7, 9], -99.0))
    assert "-99 in 3 rows" in data.describe()
    # One such value may be real, and so are two clusters.
    assert read(changed(table, column, [1], 40.0)).warnings == ()
    assert read(changed(table, column, np.arange(10), 4.0)).warnings == ()


@pytest.mark.parametrize("name", ["e_x", "xerr", "x_error", "err_x", "sx", "dx", "x_err_", "COV_x_y", "X_ERR"])
def test_columns_that_look_like_errors_and_are_not_used(name):
    table = {"x": X, "y": Y, name: np.full(20, 0.2)}
    if name == "x_err_":
        assert read_relation(table).warnings == ()
        return
    with pytest.warns(DataWarning, match=rf"column '{name}' looks like the (error|covariance) of 'x' and is not used"):
        read_relation(table)
    with pytest.warns(DataWarning, match=name):
        read_regression(table, formula="y ~ x")
    if not name.startswith("COV"):
        assert read_relation(table, columns={"sigma_x": name}).warnings == ()


def test_errors_of_redshifts_and_calibrators_that_are_not_used():
    with pytest.warns(DataWarning, match="column 'z_err' looks like the error of 'z' and is not used"):
        assert "'z_err' looks like" in read_bursts(BURST | {"z_err": [0.1] * 3}).describe()
    assert read_bursts(BURST | {"sigma_z": [0.1] * 3}).warnings == ()
    calibrated = MODULI | {"mu_calibrator": [38.0, np.nan, np.nan], "mu_calibrator_err": [0.1] * 3}
    with pytest.warns(DataWarning, match="column 'mu_calibrator_err' looks like the error of 'mu_calibrator'"):
        read_distance_moduli(calibrated)


@pytest.mark.parametrize("kind", READERS)
def test_options_that_are_none_are_refused(kind):
    read, table, *_ = READERS[kind]
    with pytest.raises(DataError, match=r"missing: expected numbers, such as -9 or \(-99, -999\); found 'NA'"):
        read(table, missing="NA")
    with pytest.raises(DataError, match=r"leave_out: expected names of the table's rows, or 'row 3' .* found 3"):
        read(table, leave_out=3)


@pytest.mark.parametrize("name", ["sigma", "Error", "stderr"])
def test_a_column_that_is_called_an_error_and_is_not_used(name):
    with pytest.warns(DataWarning, match=f"column '{name}' looks like an error and is not used"):
        read_values({"y": Y, name: np.full(20, 0.1)})
    assert read_values({"y": Y, name: np.full(20, 0.1)}, columns={"sigma_y": name}).warnings == ()


def test_thresholds_may_be_missing():
    data = read_relation({"x": X, "y": Y, "sigma_y": X**2, "threshold_y": [-99.0, *Y[1:]]}, missing=-99)
    np.testing.assert_array_equal(data.limit[0], [np.nan, *Y[1:]])


def test_impossible_values_are_refused():
    with pytest.raises(DataError, match=r"mu_calibrator, row 1 \(q\): expected a modulus .* missing=-1\), found -1"):
        DistanceModuli.from_columns(MODULI | {"mu_calibrator": [np.nan, -1.0, np.nan]})
    with pytest.raises(DataError, match=r"log10_flux, row 0 \(one\): .* missing=.-999, -99.*found -99.0 .2 such"):
        Bursts.from_columns(BURST | {"log10_flux": [-99.0, -999.0, -6.0]})
    with pytest.raises(DataError, match=r"beta, row 2 \(three\): expected a photon index .*missing=-99"):
        read_bursts(BURST | {"alpha": [-1.0] * 3, "beta": [-2.5, -2.3, -99.0]})
    with pytest.warns(DataWarning, match="log10_flux of three is 1.5, unusual"):
        read_bursts(BURST | {"log10_flux": [-5.5, -6.1, 1.5]})


@pytest.mark.parametrize(
    "declared",
    [supernova_columns.COLUMNS, distance_moduli.COLUMNS, columns_of("flux"), columns_of("fluence"), afterglows.COLUMNS],
)
def test_every_column_declares_its_unit_and_what_is_usual_within_what_is_allowed(declared):
    for key, column in declared.items():
        assert column.allowed[0] <= column.usual[0] < column.usual[1] <= column.allowed[1] or column.usual == EVERYTHING
        if column.unit is None:
            assert column.allowed == EVERYTHING, key
        else:
            units.Unit(column.unit)


@pytest.mark.parametrize("quantity", ["flux", "fluence"])
def test_units_of_bursts_are_converted_whether_logarithms_or_not(quantity):
    per_time = " s-1" if quantity == "flux" else ""
    plain = {"burst": ["one"], "z": [1.0]}
    linear = QTable(plain)
    linear["E_peak"] = [0.3] * units.MeV
    linear["flux"] = [1e-9] * units.Unit(f"J m-2{per_time}")  # 1e-6 erg / cm2
    for side in ("lo", "hi"):
        linear[f"E_peak_err_{side}"] = [20.0] * units.keV
        linear[f"flux_err_{side}"] = [1e-10] * units.Unit(f"J m-2{per_time}")
    logarithms = Table(plain | {"log10_E_peak": [np.log10(0.3)], "log10_flux": [-9.0]})
    logarithms["log10_E_peak"].unit, logarithms["log10_flux"].unit = "dex(MeV)", f"dex(J m-2{per_time})"
    logarithms["sigma_log10_E_peak"] = logarithms["sigma_log10_flux"] = [0.03]
    for table in (linear, logarithms):
        bursts = read_bursts(table, quantity=quantity)
        np.testing.assert_allclose(bursts.log10_E_peak, np.log10([[300.0]]), rtol=1e-12)
        np.testing.assert_allclose(bursts.log10_flux, [[-6.0]], rtol=1e-12)
    with pytest.raises(DataError, match=r"column 'flux': expected a unit that converts to erg"):
        read_bursts(linear, quantity="flux" if quantity == "fluence" else "fluence")


def test_units_of_moduli_are_converted():
    table = Table(MODULI)
    table["mu"], table["mu"].unit = 1000.0 * table["mu"], "mmag"
    np.testing.assert_allclose(read_distance_moduli(table).mu, MODULI["mu"])


def test_what_is_there_twice_is_told():
    with pytest.warns(DataWarning, match="p is in the table more than once"):
        data = read_distance_moduli(MODULI | {"name": ["p", "p", "r"]})
    assert data.name == ("p", "p 2", "r")
    # Where a covariance ties them they are measurements of one object.
    tied = {key: value for key, value in MODULI.items() if key != "sigma"} | {"covariance": 0.01 * np.eye(3)}
    assert read_distance_moduli(tied | {"name": ["p", "p", "r"]}).warnings == ()
    twice = {key: [*value, value[0]] for key, value in BURST.items()}
    with pytest.warns(DataWarning, match="one: the same peak energy and flux in more than one row"):
        read_bursts(twice)


def test_blocks_of_a_covariance_lose_the_rows_that_are_left_out(tmp_path):
    sne = load_jla().subset(np.arange(6))
    v0 = 1e-4 * (np.arange(36.0).reshape(6, 6) + np.arange(36.0).reshape(6, 6).T) + np.eye(6)
    np.savez(tmp_path / "blocks.npz", v0=v0)
    table = sne.to_table()
    table["x1"][2] = -999.0
    options = {"covariance": str(tmp_path / "blocks.npz")}
    with pytest.raises(DataError, match="row 2"):
        read_correlated_supernovae(table, **options)
    kept = np.delete(np.arange(6), 2)
    data = read_correlated_supernovae(table, leave_out=sne.name[2], **options)
    np.testing.assert_array_equal(data.blocks[0], v0[np.ix_(kept, kept)])
    with pytest.warns(DataWarning, match="left out"):
        bad = read_correlated_supernovae(table, missing=-999, leave_out="bad", **options)
    assert bad.name == data.name == tuple(sne.name[i] for i in kept)
    assert type(bad).from_dict(bad.to_dict()).warnings == bad.warnings != ()


def test_repeated_names_are_tied_by_blocks_of_a_covariance(tmp_path):
    table = load_jla().subset(np.arange(4)).to_table()
    table["name"][1] = table["name"][0]
    np.savez(tmp_path / "blocks.npz", v0=0.01 * np.eye(4) + 0.001)
    assert read_correlated_supernovae(table, covariance=str(tmp_path / "blocks.npz")).warnings == ()
    with pytest.warns(DataWarning, match="03D1au is in the table more than once"):
        read_supernovae(table)


def test_a_catalogue_has_numbers_that_mean_nothing(tmp_path):
    catalogue = read_catalogue(
        {"name": ["a", "-9"], "z": [1.0, -9.0]}, {"name": TEXT, "z": REDSHIFT}, columns=None, format=None, missing=-9,
        spectra=tmp_path, leave_out=(), aliases={},
    )  # fmt: skip
    assert catalogue.names == ("a", "-9")
    assert catalogue.values["z"].mask.tolist() == [False, True]


@pytest.mark.parametrize("kind", READERS)
def test_containers_are_selected_and_stored_alike(kind):
    read, table, _, _ = READERS[kind]
    data = read(table)
    names = data.name[1:3]
    assert data.subset([1, 2]).name == names
    assert data.subset(np.isin(np.arange(len(data)), [1, 2])).name == names
    for rows, words in (
        ([len(data)], "expected indices from"),
        (np.zeros(len(data), bool), "empty selection"),
        (np.ones(len(data) + 1, bool), "expected a mask of shape"),
        ([0.5], "a mask or a list of indices"),
    ):
        with pytest.raises(DataError, match=words):
            data.subset(rows)
    stored, again = data.to_dict(), type(data).from_dict(data.to_dict()).to_dict()
    assert stored.keys() == again.keys()
    for key, value in stored.items():
        np.testing.assert_array_equal(again[key], value)


@pytest.mark.parametrize(
    ("read", "remedy"),
    [
        (lambda: read_bursts(changed(BURST, "z", [0], -1.0)), Remedy("missing", -1)),
        (lambda: read_bursts({key: BURST[key] for key in BURST if key != "z"}), Remedy("columns", {"z": "its name"})),
    ],
)
def test_errors_of_readers_carry_what_avoids_them(read, remedy):
    with pytest.raises(DataError, match="the given columns: ") as caught:
        read()
    (found,) = caught.value.remedies
    assert found.option == remedy.option
    assert str(found) in str(caught.value)
    if remedy.option == "missing":
        assert found == remedy
