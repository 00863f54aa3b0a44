"""Reading catalogues of sources whose spectra are in a folder: the part common to afterglows and bursts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.columns import Column, check_values, listed_names, unused_errors
from hbm_jax.data.tables import read_table
from hbm_jax.names import did_you_mean
from hbm_jax.validation import DataError, Remedy, text_tuple, warn_unusual

REQUIRED = ("name", "z")


class Catalogue(NamedTuple):
    """Rows of a catalogue of sources with spectra.

    Attributes
    ----------
    origin : str
        Path of the table, or the type of an object in memory, for messages.
    folder : path
        Folder of the spectra.
    declared : mapping of str to Column
        Columns that the reader accepts, by standard name.
    found : dict of str to str
        Name in the table of each column that is present, by standard name.
    values : dict of str to array
        Values of these columns, by standard name.
    names : tuple of str
        Names of all sources.
    rows : list of int
        Rows to read.
    left_out : list of (str, str)
        Name of each source that is left out, and the reason.
    warnings : tuple of str
        Warnings about columns that look like errors and are not used.
    """

    origin: str
    folder: Path
    declared: Mapping[str, Column]
    found: dict[str, str]
    values: dict[str, Any]
    names: tuple[str, ...]
    rows: list[int]
    left_out: list[tuple[str, str]]
    warnings: tuple[str, ...]


def read_catalogue(
    source: Any,
    declared: Mapping[str, Column],
    *,
    columns: Mapping[str, str] | None,
    format: str | None,
    missing: float | Sequence[float],
    spectra: str | Path | None,
    leave_out: str | Sequence[str],
    aliases: Mapping[str, str],
) -> Catalogue:
    """Read the declared columns of a catalogue; the columns ``name`` and ``z`` are required.

    Raises
    ------
    FileNotFoundError
        If the catalogue or the folder does not exist.
    DataError
        If a required column is missing, or a name in `leave_out` is not in the catalogue.
    """
    table = read_table(source, format=format, missing=missing)
    folder = Path(spectra) if spectra is not None else Path(source).parent if isinstance(source, str | Path) else Path()
    if not folder.is_dir():
        raise FileNotFoundError(f"spectra: expected a folder; found {str(folder)!r}, which does not exist.")
    column_names = table.resolve(list(declared), columns, aliases)
    try:
        table.require(column_names, *REQUIRED)
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    units = {key: declared[key].unit for key in column_names}
    values = {key: table.values(name, units[key], text=units[key] is None) for key, name in column_names.items()}
    names = text_tuple(values["name"], column_names["name"], "row {row}")
    excluded = [name for name in listed_names(leave_out) if name != "bad"]
    for name in excluded:
        if name not in names:
            raise DataError(
                f"leave_out: expected names of the catalogue {table.origin}; found {name!r}{did_you_mean(name, names)}."
            )
    rows = [row for row, name in enumerate(names) if name not in excluded]
    left_out = [(name, "by name") for name in excluded]
    unused = warn_unusual(unused_errors(column_names, table.columns, ("z", "nh_mw")), origin=table.origin, stacklevel=4)
    return Catalogue(table.origin, folder, declared, column_names, values, names, rows, left_out, unused)


def source_numbers(catalogue: Catalogue, row: int) -> dict[str, float]:
    """Return the numerical columns of one source, NaN for missing values; warn of unusual values.

    Raises
    ------
    DataError
        For an entry that is not a number, a value outside its allowed range, and a source without a redshift.
    """
    numbers = {}
    for key in [key for key in catalogue.found if catalogue.declared[key].unit is not None]:
        value, label = catalogue.values[key][row], f"{catalogue.found[key]}, row {row}"
        empty = value is None or value is np.ma.masked or not str(value).strip()
        try:
            numbers[key] = np.nan if empty else float(value)
        except (TypeError, ValueError):
            raise DataError(f"{label}: expected a number; found {value!r}.") from None
        if key in REQUIRED and np.isnan(numbers[key]):
            raise DataError(f"{label}: expected {catalogue.declared[key].what}; found {'none' if empty else value}.")
        column = np.where(np.arange(len(catalogue.names)) == row, numbers[key], np.nan)
        unusual = check_values({key: column}, catalogue.declared, catalogue.found, catalogue.names)
        warn_unusual(unusual, origin=catalogue.origin, stacklevel=4)
    return numbers


def raise_for_unreadable(
    catalogue: Catalogue, bad: Sequence[tuple[str, str]], leave_out: str | Sequence[str], what: str
) -> None:
    """Raise a DataError listing the unreadable sources and the reasons, unless `leave_out` contains ``"bad"``.

    Also raise it if no source is readable.
    """
    num = len(catalogue.rows)
    if bad and "bad" not in listed_names(leave_out):
        listing = "\n".join(f"  {name}: {why}" for name, why in bad)
        by_name, all_bad = Remedy("leave_out", [name for name, _ in bad]), Remedy("leave_out", "bad")
        raise DataError(
            f"{catalogue.origin}: expected {num} {what}s that can be read; found {len(bad)} that cannot:\n{listing}\n"
            f"Correct them, or leave them out by name: {by_name} ({all_bad} leaves out all of them).",
            [by_name, all_bad],
        )
    if num == len(bad):
        reasons = "\n".join(why for _, why in bad)
        raise DataError(f"{catalogue.origin}: expected a {what} that can be read; found none.\n{reasons}")
