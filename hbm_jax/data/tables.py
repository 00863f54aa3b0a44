"""Reader of tables: CSV, ECSV, FITS, astropy tables, pandas DataFrames, structured arrays and mappings."""

import csv
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.columns import TEXT, Column, require_in_table
from hbm_jax.names import did_you_mean, listed
from hbm_jax.reading import is_compressed, read_bytes, read_text, refuse_expansion
from hbm_jax.validation import DataError, Remedy, reject_unknown


@dataclass(frozen=True)
class TableColumns:
    """Columns of a table, unconverted.

    Attributes
    ----------
    origin
        Name of the table in messages: its path, or the type of the object.
    columns
        Columns by name, as read; `values` returns their arrays.
    missing
        Numbers that stand for missing values.
    meta
        Metadata of an astropy table.
    """

    origin: str
    columns: Mapping[str, Any]
    missing: tuple[float, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def values(self, name: str, unit: str | None = None, *, text: bool = False) -> np.ndarray:
        """Return a column as a plain or masked NumPy array.

        Parameters
        ----------
        name
            Column name in the table.
        unit
            astropy unit to convert to. Columns without a unit, and dimensionless ones, are assumed to be in it.
            Logarithmic units are supported: ``mag(AB)`` is read as ``mag``, ``dex(kg)`` converts to ``dex(solMass)``.
        text
            True for a column of text, to which missing-value codes do not apply.

        Raises
        ------
        DataError
            If the unit of the column cannot be converted.
        """
        values, column_unit = _plain(self.columns[name])
        if self.missing and not text:
            values = _mask_codes(values, self.missing)
        if unit is None or column_unit is None or np.ma.getdata(values).dtype.kind not in "iuf":
            return values
        return _convert(values, column_unit, unit, name)

    def values_of(self, column_names: Mapping[str, str], declared: Mapping[str, Column]) -> dict[str, np.ndarray]:
        """Return columns by standard name, in their declared units; `column_names` is the output of `resolve`."""
        return {
            key: self.values(name, declared[key].unit, text=declared[key] is TEXT) for key, name in column_names.items()
        }

    def resolve(
        self, standard: Sequence[str], columns: Mapping[str, str] | None, aliases: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the column names of the table by standard name, for the columns that are present.

        Parameters
        ----------
        standard
            Standard names of the columns of a container.
        columns
            Column names given by the user, by standard name or alias. They take precedence over columns of the table
            that have a standard name or an alias.
        aliases
            Alternative column name, by standard name.

        Raises
        ------
        DataError
            If a key of `columns` is not a standard name, or a value is not a column of the table.
        """
        standard_of = {alias: key for key, alias in aliases.items() if alias not in standard}
        columns = {standard_of.get(key, key): name for key, name in (columns or {}).items()}
        reject_unknown(columns, standard, "key in columns")
        for key, name in columns.items():
            require_in_table(f"columns[{key!r}] = {name!r}", name, self.columns)
        column_names = {}
        for key in standard:
            for candidate in (columns.get(key), key, aliases.get(key)):
                if candidate is not None and candidate in self.columns:
                    column_names[key] = candidate
                    break
        return column_names

    def require(self, column_names: Mapping[str, str], *required: str | tuple[str, ...]) -> None:
        """Raise a DataError with all required columns that are missing.

        Parameters
        ----------
        column_names
            Output of `resolve`.
        required
            Standard names, or tuples of alternatives of which one is sufficient; the message suggests the first.

        Raises
        ------
        DataError
            If an entry of `required` is not in `column_names`.
        """
        alternatives = [(keys,) if isinstance(keys, str) else keys for keys in required]
        missing = [keys for keys in alternatives if not any(key in column_names for key in keys)]
        if not missing:
            return
        names = [f"{keys[0]!r}{did_you_mean(keys[0], self.columns)}" for keys in missing]
        problem = f"columns {', '.join(names)} are missing"
        if len(missing) == 1:
            key = missing[0][0]
            problem = f"column {key!r} is missing{did_you_mean(key, self.columns)}"
        expected = ", ".join(" or ".join(map(repr, keys)) for keys in missing)
        remedy = Remedy("columns", {keys[0]: "its name in the table" for keys in missing})
        present = listed(self.columns) or "(none)"
        raise DataError(f"{problem}: expected {expected}, or {remedy}; found the columns {present}.", [remedy])


def read_table(source: Any, *, format: str | None = None, missing: float | Sequence[float] = ()) -> TableColumns:
    """Read a table from a file or an object in memory.

    Parameters
    ----------
    source
        Path of a ``.csv``, ``.tsv``, ``.ecsv`` or ``.fits`` file, optionally compressed (``.gz``; at most 1 GiB when
        decompressed); or an astropy ``Table`` or ``QTable``, a pandas ``DataFrame``, a NumPy structured array, or a
        mapping of names to arrays. In CSV and TSV files, lines that start with ``#`` are comments, and the first other
        line contains the column names; the separator is a comma, tab or semicolon. In a FITS file, the first table
        extension is read.
    format
        Overrides the suffix: ``"csv"``, or any format name of `astropy.table.Table.read`, such as ``"fits"``,
        ``"ascii.ecsv"`` or ``"ascii"`` (blank-separated).
    missing
        Numbers that stand for missing values, such as -9 or (-99, -999).

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        If the file cannot be read, or the type of the object is not supported.

    Notes
    -----
    The readers of containers have the same parameters `source`, `format` and `missing`, and two more:

    - ``columns``: the names of columns in the table, by standard name: ``columns={"m_b": "mB", "z_cmb": "zHD"}``.
      Standard names are those of the container's ``from_columns``. Columns with a standard name need no entry, and
      other columns are ignored.
    - ``leave_out``: the names of objects (or of their groups), or rows such as ``"row 3"``, counted from 0.
      ``leave_out="bad"`` leaves out invalid rows with a warning.

    Columns with units are converted to the units of the container. Messages of errors begin with the path or type of
    the table. Warnings are issued for unusual values, and for unused columns that look like errors of the values.

    Examples
    --------
    >>> read_table({"z_cmb": [0.1, 0.2]}).values("z_cmb")
    array([0.1, 0.2])
    """
    return replace(_read(source, format), missing=missing_codes(missing))


def read_bundled(name: str) -> TableColumns:
    """Read a CSV table bundled with the package."""
    with resources.as_file(resources.files("hbm_jax.data") / "bundled" / f"{name}.csv") as path:
        return read_table(path)


def missing_codes(missing: Any) -> tuple[float, ...]:
    """Return the missing-value codes as a tuple of floats; raise DataError if they are not numbers."""
    try:
        return tuple(np.atleast_1d(np.asarray(missing, float)).tolist())
    except (TypeError, ValueError):
        raise DataError(f"missing: expected numbers, such as -9 or (-99, -999); found {missing!r}.") from None


def _read(source: Any, format: str | None) -> TableColumns:
    """Read a table from a file or an object in memory, without missing-value codes."""
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), format)
    if format is not None:
        raise DataError(f"format={format!r} is the format of a file: expected a path; found a {type(source).__name__}.")
    origin = type(source).__name__
    if isinstance(source, TableColumns):
        return source
    if isinstance(source, Mapping):
        return TableColumns("the given columns", dict(source))
    if isinstance(source, np.ndarray) and source.dtype.names:
        return TableColumns(origin, {name: source[name] for name in source.dtype.names})
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return TableColumns(origin, {str(name): source[name] for name in source.columns})
    from astropy.table import Table

    if isinstance(source, Table):
        return _columns_of_table(origin, source)
    raise DataError(
        "source: expected a path, an astropy Table or QTable, a pandas DataFrame, a structured array or a mapping of "
        f"names to arrays, found {type(source).__module__}.{type(source).__name__}."
    )


def _columns_of_table(origin: str, table: Any) -> TableColumns:
    """Return the columns of an astropy table."""
    return TableColumns(origin, {name: table[name] for name in table.colnames}, meta=table.meta)


def _read_file(path: Path, format: str | None) -> TableColumns:
    """Read a file in `format`, by default the format of its suffix."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a table file, found no such file.")
    by_suffix = {".csv": "csv", ".tsv": "csv", ".ecsv": "ascii.ecsv", ".fits": "fits", ".fit": "fits"}
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    chosen = format or by_suffix.get(suffix)
    if chosen is None:
        raise DataError(
            f"{path}: expected a name ending in {', '.join(by_suffix)} (or .gz after it), or format=, found {suffix!r}."
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

        # NaN has to stay NaN, to be reported as NaN; by default astropy masks it.
        options: dict[str, Any] = {"mask_invalid": False} if chosen == "fits" else {}
        contents = read_bytes(path) if chosen == "fits" or is_compressed(path) else b""
        if chosen == "fits":
            _refuse_repetition(path, contents)
        table = Table.read(io.BytesIO(contents) if chosen == "fits" else path, format=chosen, **options)
        return _columns_of_table(str(path), table)
    # csv, gzip, zlib and astropy raise many types for a damaged file: KeyError 'BITPIX', zlib.error, IORegistryError.
    except Exception as error:
        reason = str(error).partition("\nThe available formats")[0].strip() or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"expected {reason} in it, found none"
        raise DataError(f"{path}: could not be read as {chosen}: {reason}") from error


def _refuse_repetition(path: Path, contents: bytes) -> None:
    """Raise DataError for a FITS file whose headers declare far more numbers than the file has bytes."""
    from astropy.io import fits

    from hbm_jax.spectra.ogip.tables import refuse_repetition

    with warnings.catch_warnings(), fits.open(io.BytesIO(contents)) as hdus:
        warnings.simplefilter("ignore")  # astropy repeats the warnings when it reads the table
        refuse_repetition(hdus, path)


def _csv_columns(text: str) -> dict[str, np.ndarray]:
    """Return the columns of CSV text as arrays of strings, which `float_vector` parses later.

    Lines are processed one by one only if the text contains comments, empty lines or quotes, because that is slow for a
    million rows.
    """
    lines = text.splitlines()
    line_numbers: Sequence[int] = range(1, len(lines) + 1)
    if "#" in text or not all(map(str.strip, lines)):
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
        line_numbers, lines = [n for n, _ in numbered], [line for _, line in numbered]
    if not lines:
        raise DataError("the file is empty: expected a line with the column names, found none.")
    delimiter = next((separator for separator in (",", "\t", ";") if separator in lines[0]), ",")
    quoted = '"' in text
    rows: list[list[str]] = []
    if quoted:
        terminated = (f"{line}\n" for line in lines)  # a quoted entry may continue on the next line
        reader = csv.reader(terminated, strict=True, skipinitialspace=delimiter != "\t", delimiter=delimiter)
        pairs = [(line_numbers[reader.line_num - 1], row) for row in reader]
        line_numbers, rows = [number for number, _ in pairs], [row for _, row in pairs]
    header = [name.strip() for name in (rows[0] if quoted else lines[0].split(delimiter))]
    if any(_is_number(name) for name in header):
        raise DataError(
            f"line {line_numbers[0]}: expected the column names on the first line that is not a comment, "
            f"found {header}."
        )
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(
            f"line {line_numbers[0]}: expected distinct column names, found {sorted(repeated)} more than once."
        )
    counts = [len(row) - 1 for row in rows] if quoted else list(map(methodcaller("count", delimiter), lines))
    if set(counts) != {len(header) - 1}:
        number, count = next(pair for pair in zip(line_numbers, counts, strict=False) if pair[1] != len(header) - 1)
        raise DataError(f"line {number}: expected {len(header)} fields, as in the header, found {count + 1}.")
    entries = [entry for row in rows[1:] for entry in row] if quoted else delimiter.join(lines[1:]).split(delimiter)
    if len(lines) == 1:
        entries = []
    if quoted or " " in text:
        entries = list(map(str.strip, entries))
    return {name: np.array(entries[column :: len(header)], dtype=object) for column, name in enumerate(header)}


def _is_number(text: str) -> bool:
    """Return True for text that represents a number other than NaN."""
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() != "nan"


def _mask_codes(values: np.ndarray, missing: tuple[float, ...]) -> np.ndarray:
    """Return a column with its missing-value codes masked."""
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
    """Convert an entry to a float, NaN if it is not a number."""
    try:
        return float(entry)
    except (TypeError, ValueError):
        return float("nan")


def _plain(column: Any) -> tuple[np.ndarray, Any]:
    """Return the values of a column of any supported type, with its mask if it has one, and its unit or None."""
    if hasattr(column, "to_numpy"):  # pandas, whose extension types have their own value NA for missing entries
        plain = isinstance(column.dtype, np.dtype)
        return (column.to_numpy() if plain else column.to_numpy(dtype=object, na_value=None)), None
    unit, mask = getattr(column, "unit", None), getattr(column, "mask", None)
    column = getattr(column, "unmasked", column)
    values = np.asarray(getattr(column, "value", column))
    return (np.ma.MaskedArray(values, mask) if mask is not None and np.any(mask) else values), unit


def _convert(values: np.ndarray, unit: Any, target: str, name: str) -> np.ndarray:
    """Convert values from `unit` to the unit `target`."""
    from astropy import units

    target_unit = units.Unit(target)
    unit = units.Unit(unit)
    if unit == units.dimensionless_unscaled or unit == target_unit:
        return values
    logarithmic = hasattr(unit, "function_unit")
    if logarithmic and not hasattr(target_unit, "function_unit"):
        unit = unit.function_unit
    elif hasattr(target_unit, "function_unit") and not logarithmic:
        target_unit = target_unit.function_unit
    try:
        converted = unit.to(target_unit, np.ma.getdata(values).astype(np.float64))
    except (ValueError, TypeError) as error:  # UnitConversionError is a TypeError
        raise DataError(
            f"column {name!r}: expected a unit that converts to {target or 'a dimensionless number'}, "
            f"found {unit.to_string()!r}."
        ) from error
    return np.ma.MaskedArray(converted, values.mask) if np.ma.isMaskedArray(values) else converted
