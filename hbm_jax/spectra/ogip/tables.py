"""FITS tables for the OGIP readers: validated access to files, extensions, columns and keywords."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import listed
from hbm_jax.reading import MAX_BYTES, read_bytes, refuse_expansion
from hbm_jax.validation import DataError, Floats

if TYPE_CHECKING:
    from astropy.io import fits

KEV = {"kev": 1.0, "ev": 1e-3, "mev": 1e3, "gev": 1e6}  # by TUNIT; keV if a header has none
LARGEST_COUNT = 999  # most axes or columns that a header may have
MAX_REPETITION = 20  # largest number of array elements of a table per byte


@contextmanager
def opened(path: Path) -> "Iterator[fits.HDUList]":
    """Open a FITS file in a context that turns every error into a `DataError` with the name of the file."""
    from astropy.io import fits

    if not os.path.isfile(path):  # unlike Path.is_file, False for invalid file names
        raise DataError(f"{path}: expected a FITS file; found {'a folder' if os.path.isdir(path) else 'no such file'}.")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Astropy's warnings about headers are ignored, because the readers validate all values.
            warnings.simplefilter("ignore")
            # Its warnings about truncated files, of which it reads the available part, become errors.
            warnings.filterwarnings("error", message=r"(?s).*(truncated|Error validating header|not multiple of)")
            with fits.open(io.BytesIO(_contents(path))) as hdus:
                len(hdus)  # reads all headers, to detect truncation anywhere
                refuse_repetition(hdus, path)
                yield hdus
    except DataError:
        raise
    except Exception as error:  # astropy and NumPy raise many kinds of errors on a broken file
        raise DataError(
            f"{path}: expected a FITS file that can be read; found one that cannot: {type(error).__name__}: {error}"
        ) from error


def _contents(path: Path) -> bytes:
    """Return the decompressed contents of a file.

    If given a file name, astropy would leave broken files open and accept truncated gzip data.
    """
    refuse_expansion(path)
    try:
        data = read_bytes(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for key, value in re.findall(rb"(NAXIS   |TFIELDS )= *(\d+)", data):
        if int(value) > LARGEST_COUNT:  # astropy would create that many columns, which takes minutes
            name = key.decode().strip()
            raise DataError(f"{path}: {name}: expected at most {LARGEST_COUNT}, as FITS allows; found {int(value)}.")
    return data


def refuse_repetition(hdus: "fits.HDUList", path: Path) -> None:
    """Raise DataError for tables with far more numbers than bytes: rows of zero width, or rows that share arrays."""
    for hdu in hdus:
        columns = getattr(hdu, "columns", None) or ()
        if not len(columns):
            continue
        num_rows = hdu.header["NAXIS2"]
        num_bytes = max(hdu.header["NAXIS1"] * num_rows + hdu.header.get("PCOUNT", 0), 1)  # of the table and its heap
        if num_rows > num_bytes:
            raise DataError(f"{path}[{hdu.name}]: expected rows with data; found {num_rows} empty rows.")
        for column in columns:
            if re.match(r"\d*[PQ]", str(column.format)) and num_rows:  # arrays of variable length
                # The table itself has only the length and the position in the heap of each array.
                total_length = hdu.data.view(hdu.data.dtype, np.ndarray)[column.name][..., 0].astype(float).sum()
                if total_length > max(MAX_REPETITION * num_bytes, MAX_BYTES / 8):
                    raise DataError(
                        f"{path}[{hdu.name}], {column.name}: expected at most about as many numbers as the table "
                        f"has bytes, {num_bytes}; found {total_length:.0f}, because rows share their arrays."
                    )


def extension(hdus: "fits.HDUList", path: Path, names: Sequence[str], kind: str) -> "fits.BinTableHDU":
    """Return the first table with one of the names, or else of the HDU class `kind`."""
    candidates = tables(hdus, names, kind)
    if not candidates:
        names_found = listed(str(h.name) or "(no name)" for h in hdus)
        raise DataError(f"{path}: expected an extension {' or '.join(names)}; found {names_found}.")
    return candidates[0]


def tables(hdus: "fits.HDUList", names: Sequence[str], kind: str) -> "list[fits.BinTableHDU]":
    """Return the tables with one of the names, or else those of the HDU class `kind`."""
    all_tables = [hdu for hdu in hdus if getattr(hdu, "columns", None) is not None]
    named = [hdu for hdu in all_tables if str(hdu.name).strip().upper() in names]
    return named or [
        hdu for hdu in all_tables if kind in (str(hdu.header.get(f"HDUCLAS{i}", "")).strip() for i in (1, 2, 3))
    ]


def spectrum_table(hdus: "fits.HDUList", path: Path, background: bool = False) -> "fits.BinTableHDU":
    """Return the first SPECTRUM extension that is, or is not, a background; the first extension if none matches."""
    first = extension(hdus, path, ("SPECTRUM",), "SPECTRUM")
    for hdu in tables(hdus, ("SPECTRUM",), "SPECTRUM"):
        if (str(hdu.header.get("HDUCLAS2", "")).strip().upper() == "BKG") == background:
            return hdu
    return first


def column(hdu: "fits.BinTableHDU", name: str, where: str) -> Any:
    """Return a column; its name is case-insensitive."""
    for fits_column in hdu.columns:
        if fits_column.name.upper() == name:
            return hdu.data[fits_column.name]
    raise DataError(f"{where}: expected a column {name}; found {listed(c.name for c in hdu.columns)}.")


def numbers(hdu: "fits.BinTableHDU", name: str, where: str) -> Floats:
    """Return a column with one number per row."""
    values = as_floats(column(hdu, name, where), f"{where}, {name}")
    if values.ndim != 1:
        raise DataError(f"{where}, {name}: expected one number per row; found an array of shape {values.shape}.")
    return values


def energies(hdu: "fits.BinTableHDU", name: str, where: str) -> Floats:
    """Return a column of energies in keV."""
    unit = str(next((c.unit for c in hdu.columns if c.name.upper() == name), None) or "keV").strip()
    if unit.lower() not in KEV:
        raise DataError(f"{where}, {name}: expected energies in eV, keV, MeV or GeV; found the unit {unit!r}.")
    return numbers(hdu, name, where) * KEV[unit.lower()]


def as_floats(values: Any, where: str) -> Floats:
    """Return a new float64 array."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected numbers; found values of type {np.asarray(values).dtype}.") from None


def keyword(header: "fits.Header", name: str, default: float, where: str) -> float:
    """Return a number from a header, the default if it is absent, NaN for a logical value.

    A number in quotes is accepted, as in CFITSIO. Raise DataError for other text.
    """
    from astropy.io import fits

    value = header.get(name)
    if value is None or isinstance(value, fits.card.Undefined):
        return default
    try:
        return np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}, {name}: expected a number; found {value!r}.") from None


def first_channel(header: "fits.Header", number: int, default: int, where: str) -> int:
    """Return TLMIN of a column, the number of the first channel."""
    value = keyword(header, f"TLMIN{number}", default, where)
    if not (np.isfinite(value) and value % 1 == 0):
        raise DataError(f"{where}, TLMIN{number}: expected the number of the first channel; found {value:g}.")
    return int(value)


def reject(bad: Any, values: Any, where: str, expected: str) -> None:
    """Raise `DataError` if `bad` is true anywhere, with the first such row, its value and the number of rows."""
    rows = np.flatnonzero(bad)
    if rows.size:
        others = f" ({rows.size} such rows of {len(values)})" if rows.size > 1 else ""
        raise DataError(f"{where}, row {rows[0]}: expected {expected}; found {values[rows[0]]:g}{others}.")


def whole(values: Floats, where: str, expected: str) -> NDArray[np.int64]:
    """Return whole numbers as integers; raise DataError for other numbers."""
    reject(~(np.abs(values) < 2**53) | (values % 1 != 0), values, where, expected)
    return values.astype(np.int64)


def consecutive(channels: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Return the channels; raise DataError unless their numbers are consecutive."""
    if not len(channels):
        raise DataError(f"{where}: expected channels; found none.")
    breaks = np.flatnonzero(np.diff(channels) != 1)
    if breaks.size:
        row = int(breaks[0]) + 1
        raise DataError(
            f"{where}, row {row}: expected channel {channels[row - 1] + 1}, as channel numbers increase by one; found "
            f"{channels[row]}."
        )
    return channels


def numbered(path: str | Path) -> tuple[Path, int | None]:
    """Split ``name{3}`` into name and number; the number is None without braces."""
    match = re.fullmatch(r"(.*)\{(\d+)\}\s*", str(path), flags=re.DOTALL)
    return (Path(match[1]), int(match[2])) if match else (Path(path), None)
