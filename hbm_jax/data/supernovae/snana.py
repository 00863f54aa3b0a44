"""Readers of SNANA tables and other blank-separated text."""

from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.tables import TableColumns, missing_codes, read_table
from hbm_jax.names import listed
from hbm_jax.reading import read_text
from hbm_jax.validation import DataError

# Survey numbers of SNANA (file SURVEY.DEF) that occur in the published compilations.
SNANA_SURVEYS = {
    1: "SDSS", 4: "SNLS", 5: "CSP", 10: "DES", 15: "PS1MD", 18: "CNIa0.02", 50: "LOWZ/JRK07", 51: "LOSS1", 56: "SOUSA",
    57: "LOSS2", 61: "CFA1", 62: "CFA2", 63: "CFA3S", 64: "CFA3K", 65: "CFA4p2", 66: "CFA4p3", 100: "HST", 101: "SNAP",
    106: "CANDELS", 150: "FOUNDATION",
}  # fmt: skip
MISSING = -9.0  # missing-value code of SNANA and Pantheon+
# SNANA column names, by standard name of `Supernovae.from_columns`.
COLUMNS = {
    "name": "CID", "z_cmb": "zHD", "z_hel": "zHEL", "m_b": "mB", "x1": "x1", "c": "c", "sigma_m_b": "mBERR",
    "sigma_x1": "x1ERR", "sigma_c": "cERR", "cov_x1_c": "COV_x1_c", "log10_mass": "HOST_LOGMASS",
    "sigma_log10_mass": "HOST_LOGMASS_ERR",
}  # fmt: skip


def _split(rows: list[list[str]], names: list[str], path: Path) -> TableColumns:
    """Return a table from rows of entries; raise DataError if a row has a wrong number of entries."""
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(f"row {number}: expected {len(names)} entries ({listed(names, 6)}), found {len(row)}.")
    return TableColumns(
        str(path), {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names)}
    )


def blank_separated(path: Path, names: list[str] | None = None, *, short: bool = False) -> TableColumns:
    """Read blank-separated text.

    The names of the columns are in the first line (with or without a leading #), unless they are given as `names`. With
    ``short``, the last columns may be absent from all rows.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if names is None:
        if not lines:
            raise DataError("expected a line with the names of the columns, found an empty file.")
        names = lines[0].lstrip("#").split()
        lines = lines[1:]
    rows = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return _split(rows, names[: len(rows[0])] if short and rows else names, path)


def snana_text(path: Path) -> TableColumns:
    """Read a text table of SNANA: a line ``VARNAMES:`` with names, and lines ``SN:``, ``GAL:`` or ``ROW:``."""
    lines = [line.split() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("#")]
    header = [line for line in lines if line[0] == "VARNAMES:"]
    if len(header) != 1:
        raise DataError(f"expected one line 'VARNAMES: ...', as tables of SNANA have, found {len(header)}.")
    rows = [line[1:] for line in lines if line[0] in ("SN:", "ROW:", "GAL:")]
    return _split(rows, header[0][1:], path)


def survey_name(number: Any) -> str:
    """Return the name of an SNANA survey number, ``"survey <number>"`` if unknown; text is returned unchanged."""
    try:
        return SNANA_SURVEYS.get(int(float(number)), f"survey {int(float(number))}")
    except ValueError:
        return str(number)


def read_snana(source: Any, missing: Any = ()) -> TableColumns:
    """Read a table with SNANA column names and add columns with standard names.

    Parameters
    ----------
    source
        Path of a FITRES file (with a line ``VARNAMES:``), of blank-separated text with column names in the first line,
        or of a CSV or FITS file; or a table in memory.
    missing
        Numbers that stand for missing values, in addition to -9.

    Returns
    -------
    TableColumns
        The columns of the table and the standard ones. ``cov_m_x1`` and ``cov_m_c`` are -2.5 / (x0 ln 10) times the
        covariances with x0, because m_B = constant - 2.5 log10 x0. Errors of host masses that are not positive are
        masked.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or {".csv", ".fits"} & set(path.suffixes):
        table = read_table(source)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: expected a table file, found no such file.")
    else:
        try:
            lines = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
            table = snana_text(path) if "VARNAMES:" in lines else blank_separated(path)
        except DataError as error:
            raise DataError(f"{path}: could not be read as a table of SNANA: {error}") from error
    columns = dict(table.columns)
    codes = (MISSING, *missing_codes(missing))
    with_codes = TableColumns(table.origin, columns, codes)
    added = {key: columns[name] for key, name in COLUMNS.items() if name in columns and key not in columns}
    if "sigma_log10_mass" in added:  # an error of 0 or below is unknown
        sigma = np.ma.asarray(with_codes.values(COLUMNS["sigma_log10_mass"])).astype(float)
        added["sigma_log10_mass"] = np.ma.masked_where(sigma <= 0.0, sigma)
    if "IDSURVEY" in columns and "survey" not in columns:
        added["survey"] = [survey_name(number) for number in columns["IDSURVEY"]]
    for key, name in {"cov_m_x1": "COV_x1_x0", "cov_m_c": "COV_c_x0"}.items():
        if name in columns and "x0" in columns and key not in columns:
            x0, covariance = (np.ma.asarray(with_codes.values(column)).astype(float) for column in ("x0", name))
            added[key] = -2.5 / np.log(10.0) * covariance / x0
    used = {"COV_x1_c", "COV_x1_x0", "COV_c_x0"} if {"cov_x1_c", "cov_m_x1"} <= added.keys() else set()
    return TableColumns(table.origin, {key: value for key, value in columns.items() if key not in used} | added, codes)
