"""JLA as bundled, and the readers of users' tables."""

import csv
import dataclasses
import gzip
import subprocess
import sys

import astropy.units as u
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from scipy.linalg import block_diag
from scipy.stats import norm

import hbm_jax.data
from hbm_jax.data import (
    JLA_ERROR_PARTS,
    DataError,
    DataWarning,
    Supernovae,
    combine_observations,
    load_jla,
    read_supernovae,
    read_table,
    velocity_variance,
)
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR
from hbm_jax.models.supernovae.laws.host import massive_hosts

BUNDLED = hbm_jax.data.__path__[0] + "/bundled/jla.csv"


def jla_rows():
    """The bundled table, read by nothing but the csv module."""
    with open(BUNDLED, encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def plain_columns(num=6):
    """The first rows of JLA under standard names, read with errors as they stand."""
    rows = jla_rows()[:num]
    rename = {"log_mass": "log10_mass", "sigma_log_mass": "sigma_log10_mass"}
    skip = ("ra_deg", "dec_deg", "bias_m_b")
    return {
        rename.get(key, key): np.array([row[key] if key in ("name", "survey") else float(row[key]) for row in rows])
        for key in rows[0]
        if key not in skip
    }


def assert_same(a, b, rtol=0.0):
    a, b = a.to_dict(), b.to_dict()
    assert a.keys() == b.keys()
    for key in a:
        if rtol and a[key].dtype.kind == "f":
            np.testing.assert_allclose(a[key], b[key], rtol=rtol, err_msg=key)
        else:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key, strict=True)


@pytest.fixture
def reference():
    return read_supernovae(plain_columns())


# --- JLA ---


def test_jla_counts_and_ranges():
    jla = load_jla()
    assert jla.num_objects == 740
    assert jla.survey_counts == {"sdss": 374, "snls": 239, "lowz": 118, "hst": 9}
    assert jla.z_cmb.min() == 0.010060
    assert jla.z_cmb.max() == 1.299106
    assert jla.has_host_mass.all()
    assert jla.describe().startswith(
        "740 type Ia supernovae at redshift 0.01006 to 1.299 (sdss 374, snls 239, lowz 118"
    )


def test_jla_published_error_is_the_sum_of_the_parts():
    jla, rows = load_jla(), jla_rows()
    published = np.array([float(row["sigma_m_b"]) for row in rows])
    np.testing.assert_allclose(np.sqrt(jla.variance_m_b_total), published, rtol=1e-12)
    z = np.array([float(row["z_cmb"]) for row in rows])
    scatter = {"snls": 0.080, "sdss": 0.108, "lowz": 0.134, "hst": 0.100}
    np.testing.assert_array_equal(jla.variance_coherent, np.square([scatter[row["survey"]] for row in rows]))
    np.testing.assert_array_equal(jla.variance_lensing, (0.055 * z) ** 2)
    np.testing.assert_array_equal(jla.variance_velocity, velocity_variance(z))


def test_jla_fit_covariances_are_positive_definite():
    covariance = load_jla().covariance
    assert np.linalg.eigvalsh(covariance).min() > 0
    error = np.sqrt(covariance[:, 0, 0])
    assert error.min() == pytest.approx(0.0122, abs=5e-5)
    assert np.median(error) == pytest.approx(0.0352, abs=5e-5)
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert np.linalg.eigvalsh(covariance / sigma[:, :, None] / sigma[:, None, :]).min() > 0.08


def test_jla_published_terms_take_the_cmb_redshift():
    """With the heliocentric redshift in their place, what is left for the fit would be negative in six rows."""
    jla = load_jla()
    left = jla.variance_m_b_total - jla.variance_coherent - (0.055 * jla.z_hel) ** 2 - velocity_variance(jla.z_hel)
    assert (left <= 0).sum() == 6


def test_jla_rows_by_hand():
    jla = load_jla()
    first = jla.subset([0])
    assert (first.name, first.survey) == (("03D1au",), ("snls",))
    assert (first.z_cmb[0], first.z_hel[0], first.m_b[0]) == (0.503084, 0.5043, 23.001698)
    assert (first.log10_mass[0], first.sigma_log10_mass[0]) == (9.517, 0.1105)
    # 0.088031^2 - 0.08^2 - (0.055 x 0.503084)^2 - (5 x 150 / (ln10 x 299792.458 x 0.503084))^2, with a calculator
    variance = 0.007749456961 - 0.0064 - 0.00076560787 - 4.664109e-06
    assert first.covariance[0, 0, 0] == pytest.approx(variance, abs=1e-11)
    np.testing.assert_allclose(first.covariance[0, 1], [0.00079, 0.150058**2, -0.00003], rtol=1e-15)
    np.testing.assert_allclose(first.covariance[0, 2], [0.00044, -0.00003, 0.030011**2], rtol=1e-15)
    smallest = int(np.argmin(jla.covariance[:, 0, 0]))
    assert jla.name[smallest] == "sn2005hc"


def test_jla_unmeasured_masses_are_kept_as_published():
    jla = load_jla()
    placeholder = jla.sigma_log10_mass >= 5
    values, counts = np.unique(jla.log10_mass[placeholder], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {5.0: 27, 5.294: 1, 6.0: 16, 7.492: 1}
    assert jla.sigma_log10_mass[~placeholder].max() < UNMEASURED_MASS_ERROR < 5
    # A sharp step takes them for low masses, as Betoule et al. 2014; the errors say that nothing is known.
    assert not massive_hosts(jla, 10.0, 0.0, False)[placeholder].any()
    shares = massive_hosts(jla, 10.0, 0.0, True)
    np.testing.assert_array_equal(shares[placeholder], 0.5)
    mass, error = jla.log10_mass[~placeholder], jla.sigma_log10_mass[~placeholder]
    np.testing.assert_allclose(shares[~placeholder], norm.cdf((mass - 10.0) / error), rtol=1e-5)


def test_bundled_jla_is_the_shared_file(shared_data):
    with open(BUNDLED, "rb") as file:
        assert file.read() == shared_data("supernovae/jla.csv").read_bytes()


def test_a_users_jla_file_gives_the_same(tmp_path):
    assert_same(read_supernovae(BUNDLED, sigma_m_b_includes=JLA_ERROR_PARTS), load_jla())
    whole = read_supernovae(BUNDLED)
    np.testing.assert_array_equal(whole.covariance[:, 0, 0], [float(row["sigma_m_b"]) ** 2 for row in jla_rows()])
    assert not whole.variance_coherent.any()


# --- round trips through every kind of table ---

UNITS = {
    "m_b": u.mag,
    "sigma_m_b": u.mag,
    "c": u.mag,
    "sigma_c": u.mag,
    "cov_m_c": u.mag**2,
    "log10_mass": u.dex(u.Msun),
}


def structured(columns):
    return Table(columns).as_array()


@pytest.mark.parametrize("make", [dict, Table, QTable, pd.DataFrame, structured])
def test_tables_in_memory(make, reference):
    assert_same(read_supernovae(make(plain_columns())), reference)


@pytest.mark.parametrize("table_type", [Table, QTable])
@pytest.mark.parametrize("suffix", [".csv", ".ecsv", ".fits", ".csv.gz", ".fits.gz"])
def test_astropy_files(table_type, suffix, tmp_path, reference):
    path = tmp_path / f"sne{suffix}"
    table = table_type(plain_columns())
    if suffix == ".csv.gz":
        table.write(tmp_path / "sne.csv")
        path.write_bytes(gzip.compress((tmp_path / "sne.csv").read_bytes()))
    else:
        table.write(path)
    assert_same(read_supernovae(path), reference)
    assert_same(read_supernovae(str(path)), reference)


def test_pandas_csv_with_its_index(tmp_path, reference):
    pd.DataFrame(plain_columns()).to_csv(tmp_path / "sne.csv")
    assert_same(read_supernovae(tmp_path / "sne.csv"), reference)


def test_format_overrides_the_suffix(tmp_path, reference):
    Table(plain_columns()).write(tmp_path / "sne.dat", format="ascii")
    with pytest.raises(DataError, match=r"sne.dat: expected a name ending in .csv, .tsv.*found '.dat'"):
        read_supernovae(tmp_path / "sne.dat")
    assert_same(read_supernovae(tmp_path / "sne.dat", format="ascii"), reference)


def test_units_are_converted(tmp_path, reference):
    table = QTable(plain_columns())
    for name, unit in UNITS.items():
        table[name] = u.Quantity(table[name], unit) if unit is not UNITS["log10_mass"] else table[name] * unit
    assert_same(read_supernovae(table), reference)
    table.remove_column("log10_mass")
    table.remove_column("sigma_log10_mass")
    table.write(tmp_path / "sne.fits")
    expected = read_supernovae({key: value for key, value in plain_columns().items() if "mass" not in key})
    assert_same(read_supernovae(tmp_path / "sne.fits"), expected)

    table["m_b"] = table["m_b"].to_value(u.mag) * u.ABmag
    table["c"] = table["c"].to(u.mmag)
    table["cov_m_c"] = table["cov_m_c"].to(u.mmag**2)
    table["z_cmb"] = u.Quantity(table["z_cmb"], "").to(u.percent)
    assert_same(read_supernovae(table), expected, rtol=1e-14)

    masses = QTable(plain_columns())
    masses["log10_mass"] = (10 ** masses["log10_mass"] * u.Msun).to(u.kg).to(u.dex(u.kg))
    assert_same(read_supernovae(masses), reference, rtol=1e-13)
    # a dictionary of quantities is as good
    assert_same(read_supernovae({name: table[name] for name in table.colnames}), expected, rtol=1e-14)


def test_wrong_unit_is_named():
    table = QTable(plain_columns())
    table["m_b"] = u.Quantity(table["m_b"], u.Jy)
    with pytest.raises(DataError, match=r"QTable: column 'm_b': expected a unit that converts to mag, found 'Jy'"):
        read_supernovae(table)
    table = QTable(plain_columns())
    table["z_cmb"] = table["z_cmb"] * 3e5 * u.km / u.s
    with pytest.raises(
        DataError, match=r"'z_cmb': expected a unit that converts to a dimensionless number, found 'km / s'"
    ):
        read_supernovae(table)


def test_fits_arrays_become_native_float64(tmp_path):
    columns = plain_columns()
    columns["x1"] = columns["x1"].astype(">f4")
    Table(columns).write(tmp_path / "sne.fits")
    with fits.open(tmp_path / "sne.fits") as hdus:
        assert hdus[1].data["z_cmb"].dtype.byteorder == ">"
    sne = read_supernovae(tmp_path / "sne.fits")
    assert sne.z_cmb.dtype == np.dtype(np.float64)
    assert sne.z_cmb.dtype.isnative
    np.testing.assert_array_equal(sne.x1, columns["x1"].astype(float))


def test_text_forms(tmp_path, reference):
    frame = pd.DataFrame(plain_columns()).astype({"name": "string", "survey": "category", "m_b": "Float64"})
    assert_same(read_supernovae(frame), reference)
    Table({k: v.astype("S") if v.dtype.kind == "U" else v for k, v in plain_columns().items()}).write(
        tmp_path / "b.fits"
    )
    assert_same(read_supernovae(tmp_path / "b.fits"), reference)
    text = tmp_path / "a.csv"
    Table(plain_columns()).write(text)
    text.write_bytes(
        b"\xef\xbb\xbf" + text.read_bytes().replace(b",", b" , ").replace(b"\n", b"\r\n") + b"\r\n# end\r\n"
    )
    assert_same(read_supernovae(text), reference)


# --- columns ---


def renamed(**names):
    columns = plain_columns()
    return {names.get(key, key): value for key, value in columns.items()}


def test_columns_are_mapped(reference):
    table = renamed(m_b="mB", z_cmb="zHD", sigma_c="cERR")
    mapping = {"m_b": "mB", "z_cmb": "zHD", "sigma_c": "cERR"}
    assert_same(read_supernovae(table, columns=mapping), reference)
    assert_same(read_supernovae(renamed(z_cmb="z"), columns={"z_cmb": "z"}), reference)


def test_a_mapping_wins_over_names_found_by_themselves(reference):
    columns = plain_columns()
    table = columns | {"zHD": columns["z_cmb"] + 0.001, "mb_var": columns["sigma_m_b"] ** 2}
    sne = read_supernovae(table, columns={"z_cmb": "zHD", "var_m_b": "mb_var"})
    np.testing.assert_array_equal(sne.z_cmb, columns["z_cmb"] + 0.001)
    np.testing.assert_array_equal(sne.covariance, reference.covariance)
    with pytest.raises(DataError, match="expected one of 'sigma_m_b' and 'var_m_b', found both"):
        read_supernovae(columns | {"var_m_b": columns["sigma_m_b"] ** 2})


def test_one_redshift_serves_as_both():
    columns = renamed(z_cmb="z")
    del columns["z_hel"]
    sne = read_supernovae(columns, columns={"z_cmb": "z", "z_hel": "z"})
    np.testing.assert_array_equal(sne.z_cmb, sne.z_hel)


@pytest.mark.parametrize(
    ("table", "columns", "fragments"),
    [
        (
            renamed(m_b="mB"),
            None,
            ["column 'm_b' is missing (did you mean 'mB'?)", "columns={'m_b':", "name, survey, z_cmb"],
        ),
        (renamed(z_hel="zHEL"), None, ["column 'z_hel' is missing (did you mean 'zHEL'?)"]),
        (renamed(sigma_c="e"), None, ["'sigma_c' is missing", "expected 'sigma_c' or 'var_c' or 'covariance'"]),
        (plain_columns(), {"mb": "m_b"}, ["unknown key in columns 'mb' (did you mean 'm_b'?)"]),
        (
            plain_columns(),
            {"m_b": "m_B_corr"},
            ["columns['m_b'] = 'm_B_corr' is not in the table", "expected one of name,"],
        ),
        (renamed(m_b="mB"), {"m_b": "MB"}, ["columns['m_b'] = 'MB' is not in the table (did you mean 'mB'?)"]),
    ],
)
def test_wrong_columns_are_named(table, columns, fragments):
    with pytest.raises(DataError) as caught:
        read_supernovae(table, columns=columns)
    for fragment in ["the given columns: ", *fragments]:
        assert fragment in str(caught.value)


def test_messages_use_the_users_column_name():
    table = renamed(m_b="mB")
    table["mB"][2] = np.nan
    with pytest.raises(DataError, match=r"column 'mB' \(m_b\), row 2 \(03D1ax\): expected a finite number, found nan"):
        read_supernovae(table, columns={"m_b": "mB"})


def test_a_mass_without_its_error_is_used_where_no_error_is_needed():
    table = plain_columns()
    del table["sigma_log10_mass"]
    sne = read_supernovae(table)
    np.testing.assert_array_equal(sne.log10_mass, table["log10_mass"])
    np.testing.assert_array_equal(massive_hosts(sne, 10.0, 0.0, False), np.array(table["log10_mass"]) > 10.0)
    with pytest.raises(DataError, match=r"mass_error=True\) needs the error of every host mass; found none for 6 of 6"):
        massive_hosts(sne, 10.0, 0.0, True)


# --- missing values ---


def masked_table(key):
    table = Table(plain_columns(), masked=True)
    table[key] = MaskedColumn(table[key], mask=np.arange(6) == 3)
    return table


def masked_quantities(key):
    table = QTable(plain_columns())
    table[key] = Masked(u.Quantity(plain_columns()[key], u.mag), mask=np.arange(6) == 3)
    return table


def frame_with_gap(key):
    frame = pd.DataFrame(plain_columns()).astype({key: "Float64"})
    frame.loc[3, key] = pd.NA
    return frame


@pytest.mark.parametrize("make", [masked_table, masked_quantities, frame_with_gap])
def test_missing_entries_in_required_columns(make):
    with pytest.raises(DataError, match=r"column 'c', row 3 \(03D1bp\): expected a finite number, found no value"):
        read_supernovae(make("c"))


@pytest.mark.parametrize("suffix", [".csv", ".ecsv"])
def test_missing_entries_in_files(suffix, tmp_path):
    masked_table("m_b").write(tmp_path / f"sne{suffix}")
    with pytest.raises(
        DataError, match=rf"sne{suffix}: column 'm_b', row 3 \(03D1bp\): .*found no value \(masked or empty\)"
    ):
        read_supernovae(tmp_path / f"sne{suffix}")


def test_nan_in_fits_is_called_nan(tmp_path):
    columns = plain_columns()
    columns["m_b"][3] = np.nan
    Table(columns).write(tmp_path / "sne.fits")
    with pytest.raises(DataError, match=r"column 'm_b', row 3 \(03D1bp\): expected a finite number, found nan"):
        read_supernovae(tmp_path / "sne.fits")


def test_missing_masses_and_texts_are_not_errors():
    table = masked_table("log10_mass")
    table["sigma_log10_mass"].mask = table["log10_mass"].mask
    table["survey"].mask = [True] + [False] * 5
    table["name"].mask = [False, True] + [False] * 4
    sne = read_supernovae(table)
    np.testing.assert_array_equal(sne.has_host_mass, np.arange(6) != 3)
    assert sne.survey[:2] == ("unknown", "snls")
    assert sne.name[:3] == ("03D1au", "row 1", "03D1ax")


# --- files that are no tables ---


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.csv: expected a table file, found no such file"):
        read_supernovae(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "could not be read as csv: the file is empty"),
        ("b.csv", b"# only a comment\n", "could not be read as csv: the file is empty"),
        ("c.csv", b"z_cmb,m_b\n0.1,19,7\n", "line 2: expected 2 fields, as in the header, found 3"),
        ("d.csv", b"# head\n0.1,19\n", r"line 2: expected the column names .* found \['0.1', '19'\]"),
        ("e.csv", b"z,z\n0.1,19\n", r"line 1: expected distinct column names, found \['z'\] more than once"),
        ("f.csv", b"\xff\xfe\x00", "could not be read as csv: .*decode"),
        ("g.fits", b"no fits", "could not be read as fits"),
        ("h.csv.gz", b"no gzip", "could not be read as csv"),
        ("i.ecsv", b"x\n1\n", "could not be read as ascii.ecsv"),
    ],
)
def test_unreadable_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_supernovae(tmp_path / name)


def test_folder_is_not_a_file(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match="could not be read as csv"):
        read_supernovae(tmp_path / "x.csv")


def test_empty_tables(tmp_path):
    (tmp_path / "head.csv").write_text(",".join(plain_columns()) + "\n")
    for source in (tmp_path / "head.csv", Table(plain_columns())[:0], pd.DataFrame(plain_columns()).iloc[:0]):
        with pytest.raises(DataError, match="the table is empty: expected at least one object, found no rows"):
            read_supernovae(source)
    with pytest.raises(DataError, match=r"'z_cmb', 'z_hel', .* are missing: .*found the columns \(none\)"):
        read_supernovae({})


def test_other_objects():
    with pytest.raises(DataError, match=r"source: expected a path.*found builtins.int"):
        read_table(7)
    with pytest.raises(DataError, match="format='csv' is the format of a file: expected a path; found a dict"):
        read_table({}, format="csv")


# --- shared data ---


def test_union3_light_curve_fits(shared_data):
    path = shared_data("supernovae/union3_salt3_fits.csv.gz")
    columns = {"survey": "sample"}
    with pytest.raises(DataError) as caught:
        read_supernovae(path, columns=columns)
    for fragment in (str(path), "'m_b', row 2091 (SN2006og)", "found -261.078 (2 such rows of 2588)"):
        assert fragment in str(caught.value)
    with pytest.warns(DataWarning) as told:
        sne = read_supernovae(path, columns=columns, missing=-99, leave_out="bad")
    assert len(told) == len(sne.warnings)
    frame = pd.read_csv(path)
    left_out = {"SN2006og", "SN2006pt", "m070", "SN2005dm", "PSN_J110533.80+194118.7"}
    assert all(any(name in text for text in sne.warnings) for name in left_out)
    left_out |= set(frame["name"][frame["log_mass"] == 0])
    assert left_out == set(frame["name"]) - set(sne.name)
    assert np.isnan(sne.log10_mass).sum() == (frame["log_mass"] == -99).sum()

    whole = frame.drop(columns=["var_m_b", "var_x1", "var_c", "cov_m_x1", "cov_m_c", "cov_x1_c"])
    whole = {key: whole[key] for key in whole} | {"covariance": union3_covariance(frame)}
    whole |= {"m_b": np.full(len(frame), 20.0), "x1": np.zeros(len(frame)), "c": np.zeros(len(frame))}
    whole["log_mass"] = np.full(len(frame), 10.0)
    with pytest.raises(DataError, match=r"row 18 \(PSN_J110533.80\+194118.7\): expected positive variances"):
        read_supernovae(whole, columns=columns)

    good = frame[~frame.name.isin(left_out)]
    with pytest.warns(DataWarning, match="unusual"):
        sne = read_supernovae(good, columns=columns, missing=-99)
    assert sne.num_objects == 2571
    np.testing.assert_array_equal(sne.covariance, union3_covariance(good))
    assert sne.survey == tuple(good["sample"])
    np.testing.assert_array_equal(sne.has_host_mass, good["log_mass"] != -99)


def union3_covariance(frame):
    m, x, c = (frame[f"var_{key}"].to_numpy() for key in ("m_b", "x1", "c"))
    mx, mc, xc = (frame[key].to_numpy() for key in ("cov_m_x1", "cov_m_c", "cov_x1_c"))
    return np.stack([np.stack([m, mx, mc]), np.stack([mx, x, xc]), np.stack([mc, xc, c])]).transpose(2, 0, 1)


@pytest.mark.long
def test_importing_is_cheap():
    """No file is read, no array made, and tables of astropy and pandas wait until they are needed."""
    code = (
        "import sys, hbm_jax.data, jax; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized(); "
        "print([name for name in ('astropy.table', 'pandas', 'numpyro', 'arviz', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_missing_is_said_at_once():
    table = {"zCMB": [0.1], "z_hel": [0.1], "mB": [20.0], "x1": [0.0], "c": [0.0], "sigma_x1": [0.1], "sigma_c": [0.1]}
    with pytest.raises(DataError) as raised:
        read_supernovae(table)
    assert "columns 'z_cmb' (did you mean 'zCMB'?), 'm_b' (did you mean 'mB'?), 'sigma_m_b'" in str(raised.value)
    assert "are missing: expected 'z_cmb', 'm_b', 'sigma_m_b' or 'var_m_b' or 'covariance', or" in str(raised.value)
    assert str(raised.value).endswith("columns zCMB, z_hel, mB, x1, c, sigma_x1, sigma_c.")


def test_a_classifier_of_a_des_table_gives_probabilities_of_type_ia(tmp_path):
    path = tmp_path / "sample.csv"
    rows = ["a,0.10,0.10,19.0,0.1,-1.0,0.5,0.0,0.03,-9.0", "b,0.20,0.20,20.5,0.1,0.3,0.5,0.1,0.03,0.25"]
    path.write_text("\n".join(["CID,zHD,zHEL,mB,mBERR,x1,x1ERR,c,cERR,PROB_SCONE", *rows]))
    sne = read_supernovae(path, format="snana", columns={"prob_ia": "PROB_SCONE"})
    np.testing.assert_array_equal(sne.prob_ia, [1.0, 0.25])
    np.testing.assert_array_equal(read_supernovae(path, format="snana").prob_ia, 1.0)


def observed_twice():
    """Three supernovae of JLA; the second was observed three times, the first twice."""
    sne = load_jla().subset([0, 1, 2, 1, 0, 1])
    rng = np.random.default_rng(3)
    shifted = sne.replace_observations(*(getattr(sne, q) + 0.02 * rng.normal(size=6) for q in ("m_b", "x1", "c")))
    scale = np.array([1.0, 1.0, 1.0, 2.0, 0.7, 1.3])[:, None, None]
    return dataclasses.replace(
        shifted,
        covariance=sne.covariance * scale,
        survey=("a", "b", "c", "a", "b", "b"),
        log10_mass=np.array([np.nan, 9.0, 8.0, 10.0, 11.0, 9.5]),
        sigma_log10_mass=np.array([np.nan, 0.3, 0.1, 0.1, 0.2, 0.2]),
        prob_ia=np.array([0.3, 1.0, 0.5, 0.2, 0.4, 0.1]),
    )


def test_combined_observations_are_those_of_least_squares():
    sne = observed_twice()
    combined = combine_observations(sne)
    assert combined.name == sne.name[:3]
    assert combined.survey == ("a+b", "b+a", "c")
    np.testing.assert_array_equal(combined.num_observations, [2, 3, 1])
    np.testing.assert_array_equal(combined.log10_mass, [11.0, 10.0, 8.0])
    np.testing.assert_array_equal(combined.prob_ia, [0.4, 1.0, 0.5])
    for index, rows in enumerate([[0, 4], [1, 3, 5], [2]]):
        design = np.tile(np.eye(3), (len(rows), 1))
        noise = block_diag(*sne.covariance[rows])
        observed = np.stack([sne.m_b, sne.x1, sne.c], axis=-1)[rows].ravel()
        covariance = np.linalg.inv(design.T @ np.linalg.solve(noise, design))
        mean = covariance @ design.T @ np.linalg.solve(noise, observed)
        np.testing.assert_allclose([combined.m_b[index], combined.x1[index], combined.c[index]], mean, rtol=1e-11)
        np.testing.assert_allclose(combined.covariance[index], covariance, rtol=1e-9)
    assert not combined.warnings
    back = Supernovae.from_dict(combined.to_dict())
    np.testing.assert_array_equal(back.num_observations, combined.num_observations)
    assert combine_observations(combined).m_b.tolist() == combined.m_b.tolist()
    with pytest.warns(DataWarning, match="in the table more than once"):
        read_supernovae(sne.to_table())
    np.testing.assert_array_equal(read_supernovae(sne.to_table(), combine=True).m_b, combined.m_b)


def test_observations_that_cannot_be_combined():
    sne = observed_twice()
    far = dataclasses.replace(sne, z_cmb=sne.z_cmb + np.array([0, 0, 0, 0, 0, 0.005]))
    with pytest.raises(DataError, match=r"z_cmb, row 5 .*agree within 0.002 \(1 \+ z\)"):
        combine_observations(far)
    uncertain = dataclasses.replace(sne, sigma_z=np.array([0, 0, 0, 0, 0.01, 0]))
    with pytest.raises(DataError, match=r"sigma_z, row 4 .*the same error"):
        combine_observations(uncertain)
    offsets = dataclasses.replace(sne, sensitivity=np.zeros((6, 1, 3)), offset_name=("zero point",))
    with pytest.raises(DataError, match=r"without calibration offsets.*found 1 offsets"):
        combine_observations(offsets)
    apart = sne.replace_observations(sne.m_b + np.array([0, 0, 0, 0, 2.0, 0]), sne.x1, sne.c)
    assert [
        f"the 2 observations of {sne.name[0]} disagree" in text for text in combine_observations(apart).warnings
    ] == [True]
