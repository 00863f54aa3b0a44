"""What readers of a catalogue with a folder of spectra have in common: its rows, and what cannot be read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.columns import Column, check_values, listed_names, unused_errors
from hbm_jax.data.tables import read_table
from hbm_jax.names import did_you_mean
from hbm_jax.validation import DataError, tell, text_tuple

REQUIRED = ("name", "z")


class Catalogue(NamedTuple):
    """Rows of a catalogue of sources with spectra.

    Attributes
    ----------
    origin : str
        For messages.
    folder : path
        Of the spectra.
    declared : mapping of str to Column
        The columns that the reader knows.
    found : dict of str to str
        What the table calls each column that it has.
    values : dict of str to array
        Those columns.
    names : tuple of str
        Of all sources.
    rows : list of int
        Those to read.
    left_out : list of (str, str)
        The others, and why.
    warnings : tuple of str
        Of columns that look like errors and are not used.
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
    """Read the catalogue; the declared columns are taken, of which name and z have to be there.

    Raises
    ------
    FileNotFoundError
        If the catalogue or the folder does not exist.
    DataError
        For a column that is missing, and a name to leave out that is not in the catalogue.
    """
    table = read_table(source, format=format, missing=missing)
    folder = Path(spectra) if spectra is not None else Path(source).parent if isinstance(source, str | Path) else Path()
    if not folder.is_dir():
        raise FileNotFoundError(f"spectra: expected a folder; found {str(folder)!r}, which is not there.")
    found = table.resolve(list(declared), columns, aliases)
    try:
        table.require(found, *REQUIRED)
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    units = {key: declared[key].unit for key in found}
    values = {key: table.values(name, units[key], text=units[key] is None) for key, name in found.items()}
    names = text_tuple(values["name"], found["name"], "row {row}")
    asked = [name for name in listed_names(leave_out) if name != "bad"]
    for name in asked:
        if name not in names:
            raise DataError(
                f"leave_out: expected names of the catalogue {table.origin}; found {name!r}{did_you_mean(name, names)}."
            )
    rows = [row for row, name in enumerate(names) if name not in asked]
    left_out = [(name, "by name") for name in asked]
    unused = tell(unused_errors(found, table.columns, ("z", "nh_mw")), origin=table.origin, stacklevel=4)
    return Catalogue(table.origin, folder, declared, found, values, names, rows, left_out, unused)


def numbers_of(catalogue: Catalogue, row: int) -> dict[str, float]:
    """Return the numbers of a source, NaN where there is none; warns of those that are unusual.

    Raises
    ------
    DataError
        For what is no number, a value that cannot be, and a source without a redshift.
    """
    numbers = {}
    for key in [key for key in catalogue.found if catalogue.declared[key].unit is not None]:
        value, where = catalogue.values[key][row], f"{catalogue.found[key]}, row {row}"
        empty = value is None or value is np.ma.masked or not str(value).strip()
        try:
            numbers[key] = np.nan if empty else float(value)
        except (TypeError, ValueError):
            raise DataError(f"{where}: expected a number; found {value!r}.") from None
        if key in REQUIRED and np.isnan(numbers[key]):
            raise DataError(f"{where}: expected {catalogue.declared[key].what}; found {'none' if empty else value}.")
        alone = np.where(np.arange(len(catalogue.names)) == row, numbers[key], np.nan)
        unusual = check_values({key: alone}, catalogue.declared, catalogue.found, catalogue.names)
        tell(unusual, origin=catalogue.origin, stacklevel=4)
    return numbers


def refuse_bad(catalogue: Catalogue, bad: Sequence[tuple[str, str]], leave_out: str | Sequence[str], what: str) -> None:
    """Raise a DataError that names every source that cannot be read and why, unless the bad ones are to be left out."""
    num = len(catalogue.rows)
    if bad and "bad" not in listed_names(leave_out):
        listing = "\n".join(f"  {name}: {why}" for name, why in bad)
        raise DataError(
            f"{catalogue.origin}: expected {num} {what}s that can be read; found {len(bad)} that cannot:\n{listing}\n"
            f"Mend them, or leave them out by name: leave_out={[name for name, _ in bad]!r} "
            "(leave_out='bad' for all)."
        )
    if num == len(bad):
        reasons = "\n".join(why for _, why in bad)
        raise DataError(f"{catalogue.origin}: expected a {what} that can be read; found none.\n{reasons}")
