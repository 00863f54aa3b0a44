"""Reading tables: CSV, ECSV, FITS, astropy tables, pandas frames and mappings, all seen through one small object."""

import csv
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hbm_jax.data.columns import leave_out_rows, listed_names
from hbm_jax.names import did_you_mean, listed
from hbm_jax.reading import is_compressed, read_bytes, read_text, refuse_expansion
from hbm_jax.validation import DataError, reject_unknown

__all__ = ["TableColumns", "make_from_rows", "missing_codes", "read_table"]

Made = TypeVar("Made")


@dataclass(frozen=True)
class TableColumns:
    """Columns of a table as they were found.

    Attributes
    ----------
    origin
        What messages call the table: the path, or the type of the object.
    columns
        Columns by name, untouched; use `values` to read one.
    missing
        Numbers that mean that there is no value.
    """

    origin: str
    columns: Mapping[str, Any]
    missing: tuple[float, ...] = ()

    def values(self, name: str, unit: str | None = None, *, text: bool = False) -> np.ndarray:
        """Return one column as a plain or masked NumPy array.

        Parameters
        ----------
        name
            Column name in the table.
        unit
            astropy unit string to convert to; a column without a unit, or dimensionless, is taken to be in it already.
            Logarithmic units work: ``mag(AB)`` is read as ``mag``, ``dex(kg)`` converts to ``dex(solMass)``.
        text
            Whether the column holds names, in which no number means that there is none.

        Raises
        ------
        DataError
            If the column's unit does not convert.
        """
        values, found = _plain(self.columns[name])
        if self.missing and not text:
            values = _without(values, self.missing)
        if unit is None or found is None or np.ma.getdata(values).dtype.kind not in "iuf":
            return values
        return _convert(values, found, unit, name)

    def resolve(
        self, standard: Sequence[str], columns: Mapping[str, str] | None, aliases: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the table's column for each standard name that it has.

        Parameters
        ----------
        standard
            Names a container knows.
        columns
            The user's mapping, standard name or its alias to the table's; it wins over names found by themselves.
        aliases
            Other spellings that are found by themselves, standard name to alias.

        Raises
        ------
        DataError
            If `columns` has a key that is no standard name, or a value that is no column of the table.
        """
        meant = {alias: key for key, alias in aliases.items() if alias not in standard}
        columns = {meant.get(key, key): name for key, name in (columns or {}).items()}
        reject_unknown(columns, standard, "key in columns")
        for key, name in columns.items():
            if name not in self.columns:
                raise DataError(
                    f"columns[{key!r}] = {name!r} is not in the table{did_you_mean(str(name), self.columns)}: "
                    f"expected one of {listed(self.columns)}, found {name!r}."
                )
        found = {}
        for key in standard:
            for candidate in (columns.get(key), key, aliases.get(key)):
                if candidate is not None and candidate in self.columns:
                    found[key] = candidate
                    break
        return found

    def require(self, found: Mapping[str, str], *required: str | tuple[str, ...]) -> None:
        """Complain of all columns at once that are not there.

        Parameters
        ----------
        found
            From `resolve`.
        required
            Standard names, or several of which one will do; the message proposes the first.

        Raises
        ------
        DataError
            If one of `required` is not in `found`.
        """
        each = [(keys,) if isinstance(keys, str) else keys for keys in required]
        missing = [keys for keys in each if not any(key in found for key in keys)]
        if not missing:
            return
        names = [f"{keys[0]!r}{did_you_mean(keys[0], self.columns)}" for keys in missing]
        what = f"columns {', '.join(names)} are missing"
        if len(missing) == 1:
            key = missing[0][0]
            what = f"column {key!r} is missing{did_you_mean(key, self.columns)}"
        expected = ", ".join(" or ".join(map(repr, keys)) for keys in missing)
        mapping = f"{missing[0][0]!r}: <its name in the table>" + ", ..." * (len(missing) > 1)
        there = listed(self.columns) or "(none)"
        raise DataError(f"{what}: expected {expected}, or columns={{{mapping}}}; found the columns {there}.")


def read_table(source: Any, *, format: str | None = None, missing: float | Sequence[float] = ()) -> TableColumns:
    """Read a table from a file, or take one from an object in memory.

    Parameters
    ----------
    source
        Path of a file: ``.csv`` or ``.tsv`` (lines that start with ``#`` are comments, the first other line names the
        columns; commas, tabs or semicolons between them), ``.ecsv``, ``.fits`` (first table extension), each also with
        ``.gz``, of at most 1 GiB when decompressed. Or an astropy ``Table`` or ``QTable``, a
        pandas ``DataFrame``, a NumPy structured array, or a mapping of names to arrays.
    format
        Overrides the suffix: ``"csv"``, or any format name of `astropy.table.Table.read`, such as ``"fits"``,
        ``"ascii.ecsv"`` or ``"ascii"`` (blank-separated).
    missing
        Numbers that mean that there is no value, such as -9 or (-99, -999).

    Returns
    -------
    TableColumns

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        If the file cannot be read, or the object is of another kind.

    Examples
    --------
    >>> read_table({"z_cmb": [0.1, 0.2]}).values("z_cmb")
    array([0.1, 0.2])
    """
    return replace(_read(source, format), missing=missing_codes(missing))


def missing_codes(missing: Any) -> tuple[float, ...]:
    """Return the numbers that mean that there is no value; refuses what is none."""
    try:
        return tuple(np.atleast_1d(np.asarray(missing, float)).tolist())
    except (TypeError, ValueError):
        raise DataError(f"missing: expected numbers, such as -9 or (-99, -999); found {missing!r}.") from None


def _read(source: Any, format: str | None) -> TableColumns:
    """Read a table from a file, or take one from an object in memory."""
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), format)
    if format is not None:
        raise DataError(f"format={format!r} goes with a path: expected a path, found a {type(source).__name__}.")
    origin = type(source).__name__
    if isinstance(source, Mapping):
        return TableColumns("the given columns", dict(source))
    if isinstance(source, np.ndarray) and source.dtype.names:
        return TableColumns(origin, {name: source[name] for name in source.dtype.names})
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return TableColumns(origin, {str(name): source[name] for name in source.columns})
    from astropy.table import Table

    if isinstance(source, Table):
        return TableColumns(origin, {name: source[name] for name in source.colnames})
    raise DataError(
        "source: expected a path, an astropy Table or QTable, a pandas DataFrame, a structured array or a mapping of "
        f"names to arrays, found {type(source).__module__}.{type(source).__name__}."
    )


def _read_file(path: Path, format: str | None) -> TableColumns:
    """Read a file in the format given or told by its suffix."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a table file, found no such file.")
    by_suffix = {".csv": "csv", ".tsv": "csv", ".ecsv": "ascii.ecsv", ".fits": "fits", ".fit": "fits"}
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = (suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]) or [""]
    chosen = format or by_suffix.get(suffix[0])
    if chosen is None:
        raise DataError(
            f"{path}: expected a name ending in {', '.join(by_suffix)} (or .gz after it), or format=, "
            f"found {suffix[0]!r}."
        )
    if path.is_file():
        refuse_expansion(path)
    try:
        if chosen == "csv":
            text = read_text(path)
            if not text.startswith("# %ECSV"):
                return TableColumns(str(path), _csv_columns(text))
            chosen = "ascii.ecsv"
        from astropy.table import Table

        # NaN must arrive as NaN, to be reported as such; astropy would mask it
        options: dict[str, Any] = {"mask_invalid": False} if chosen == "fits" else {}
        contents = read_bytes(path) if chosen == "fits" or is_compressed(path) else b""
        if chosen == "fits":
            _refuse_repetition(path, contents)
        table = Table.read(io.BytesIO(contents) if chosen == "fits" else path, format=chosen, **options)
        return TableColumns(str(path), {name: table[name] for name in table.colnames})
    # Whatever csv, gzip, zlib and astropy make of a damaged file: KeyError 'BITPIX', zlib.error, IORegistryError.
    except Exception as error:
        text = str(error).partition("\nThe available formats")[0].strip() or type(error).__name__
        if isinstance(error, KeyError):
            text = f"expected {text} in it, found none"
        raise DataError(f"{path}: could not be read as {chosen}: {text}") from error


def _refuse_repetition(path: Path, contents: bytes) -> None:
    """Refuse a FITS table of far more numbers than it has bytes."""
    from astropy.io import fits

    from hbm_jax.spectra.ogip.tables import refuse_repetition

    with warnings.catch_warnings(), fits.open(io.BytesIO(contents)) as hdus:
        warnings.simplefilter("ignore")  # which astropy repeats when the table is read
        refuse_repetition(hdus, path)


def _csv_columns(text: str) -> dict[str, np.ndarray]:
    """Return the columns of CSV text as arrays of text; numbers are parsed, exactly, when a column is asked for.

    Nothing is done line by line in Python where the text as a whole tells that it is not needed: a million rows.
    """
    lines = text.splitlines()
    numbers: Sequence[int] = range(1, len(lines) + 1)
    if "#" in text or not all(map(str.strip, lines)):
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
        numbers, lines = [n for n, _ in numbered], [line for _, line in numbered]
    if not lines:
        raise DataError("the file is empty: expected a line with the column names, found none.")
    delimiter = next((mark for mark in (",", "\t", ";") if mark in lines[0]), ",")
    quoted = '"' in text
    rows: list[list[str]] = []
    if quoted:
        ended = (f"{line}\n" for line in lines)  # a quoted entry may go on in the next line
        reader = csv.reader(ended, strict=True, skipinitialspace=delimiter != "\t", delimiter=delimiter)
        pairs = [(numbers[reader.line_num - 1], row) for row in reader]
        numbers, rows = [number for number, _ in pairs], [row for _, row in pairs]
    header = [name.strip() for name in (rows[0] if quoted else lines[0].split(delimiter))]
    if any(_is_number(name) for name in header):
        raise DataError(
            f"line {numbers[0]}: expected the column names on the first line that is no comment, found {header}."
        )
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"line {numbers[0]}: expected distinct column names, found {sorted(repeated)} more than once.")
    marks = [len(row) - 1 for row in rows] if quoted else list(map(methodcaller("count", delimiter), lines))
    if set(marks) != {len(header) - 1}:
        number, found = next(pair for pair in zip(numbers, marks, strict=False) if pair[1] != len(header) - 1)
        raise DataError(f"line {number}: expected {len(header)} fields, as in the header, found {found + 1}.")
    entries = [entry for row in rows[1:] for entry in row] if quoted else delimiter.join(lines[1:]).split(delimiter)
    if len(lines) == 1:
        entries = []
    if quoted or " " in text:
        entries = list(map(str.strip, entries))
    return {name: np.array(entries[place :: len(header)], dtype=object) for place, name in enumerate(header)}


def _is_number(text: str) -> bool:
    """Return whether a piece of text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() != "nan"


def _without(values: np.ndarray, missing: tuple[float, ...]) -> np.ndarray:
    """Return a column with the numbers masked that mean that there is no value."""
    plain = np.ma.getdata(values)
    if plain.dtype.kind in "OSU":
        try:
            codes = np.isin(plain.astype(np.float64), missing)
        except (TypeError, ValueError):
            codes = np.array([_number(entry) in missing for entry in plain.ravel()], bool).reshape(plain.shape)
    else:
        codes = np.isin(plain, missing) if plain.dtype.kind in "iuf" else np.zeros(plain.shape, bool)
    return np.ma.MaskedArray(plain, np.ma.getmaskarray(values) | codes) if codes.any() else values


def _number(entry: Any) -> float:
    """Return the number that an entry of text is, NaN where it is none."""
    try:
        return float(entry)
    except (TypeError, ValueError):
        return float("nan")


def _plain(column: Any) -> tuple[np.ndarray, Any]:
    """Return the values of a column of any origin, masked where it is, and its unit or None."""
    if hasattr(column, "to_numpy"):  # pandas; extension types mark missing entries with their own NA
        plain = isinstance(column.dtype, np.dtype)
        return (column.to_numpy() if plain else column.to_numpy(dtype=object, na_value=None)), None
    unit, mask = getattr(column, "unit", None), getattr(column, "mask", None)
    column = getattr(column, "unmasked", column)
    values = np.asarray(getattr(column, "value", column))
    return (np.ma.MaskedArray(values, mask) if mask is not None and np.any(mask) else values), unit


def _convert(values: np.ndarray, unit: Any, target: str, name: str) -> np.ndarray:
    """Return the values, in `unit`, in the unit `target`."""
    from astropy import units

    wanted = units.Unit(target)
    unit = units.Unit(unit)
    if unit == units.dimensionless_unscaled or unit == wanted:
        return values
    logarithmic = hasattr(unit, "function_unit")
    if logarithmic and not hasattr(wanted, "function_unit"):
        unit = unit.function_unit
    elif hasattr(wanted, "function_unit") and not logarithmic:
        wanted = wanted.function_unit
    try:
        converted = unit.to(wanted, np.ma.getdata(values).astype(np.float64))
    except (ValueError, TypeError) as error:  # UnitConversionError is a TypeError
        raise DataError(
            f"column {name!r}: expected a unit that converts to {target or 'a dimensionless number'}, "
            f"found {unit.to_string()!r}."
        ) from error
    return np.ma.MaskedArray(converted, values.mask) if np.ma.isMaskedArray(values) else converted


def make_from_rows(
    columns: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Made],
    *,
    name: str,
    leave_out: str | Sequence[str],
    whole: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> tuple[Made, list[str], np.ndarray | slice]:
    """Make a container of columns less the rows to leave out.

    Parameters
    ----------
    columns
        By standard name.
    make
        Returns the container of some rows of the columns.
    name
        Column with the names that rows are left out by; rows can also be called ``"row 3"``, counted from 0.
    leave_out
        Names; ``"bad"`` leaves out the rows that `make` refuses.
    whole, matrices
        Columns that have no rows, and that have rows and columns of the objects.

    Returns
    -------
    made : the container
    left_out : list of str
        Of rows that were left out because they are bad: which, and why.
    rows : array of int, or slice
        Those that were kept.

    Raises
    ------
    DataError
        Of `make`, and for names that are not in the table.
    """
    wanted = listed_names(leave_out)
    if not wanted:
        return make(dict(columns)), [], slice(None)
    num = max(len(value) for key, value in columns.items() if key not in whole)
    given = list(map(str, np.ma.asarray(columns[name]).tolist())) if name in columns else [""] * num
    keep = leave_out_rows(given, [one for one in wanted if one != "bad"])
    left_out: list[str] = []
    while True:
        rows = np.flatnonzero(keep)
        picked = {
            key: value
            if key in whole
            else np.asarray(value)[np.ix_(rows, rows)]
            if key in matrices
            else value.iloc[rows]
            if hasattr(value, "iloc")
            else (value if isinstance(value, np.ndarray) else np.asarray(value))[rows]
            for key, value in columns.items()
        }
        if "name" not in picked and name == "name":
            picked["name"] = [f"row {row}" for row in rows]
        try:
            return make(picked), left_out, rows
        except DataError as error:
            if "bad" not in wanted or not error.rows or len(error.rows) == len(rows):
                raise
            bad = [given[row] or f"row {row}" for row in rows[list(error.rows)]]
            left_out.append(f"left out: {listed(bad, 5)}, because of {str(error).rstrip('.')}")
            keep[rows[list(error.rows)]] = False
