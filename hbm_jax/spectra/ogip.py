"""OGIP files: PHA spectra of type I and II, RMF and RSP responses, ARF effective areas, read and written.

Whatever is wrong with a file ends in one kind of error, `DataError`, that names the file, the extension and the row.
(Arnaud, George & Tennant, OGIP/92-007; George et al., CAL/GEN/92-002.)
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import sparse

from hbm_jax.data.validation import DataError, listed
from hbm_jax.spectra.response import Arf, Response, Rmf

Floats = NDArray[np.float64]
NONE = ("", "none", "null")  # names by which a header says that there is no such file


@contextmanager
def _file(path: Path) -> Iterator[fits.HDUList]:
    """Open a FITS file; everything that goes wrong inside names it."""
    if not path.is_file():
        raise DataError(f"{path}: expected a FITS file; found {'a folder' if path.is_dir() else 'no such file'}.")
    try:
        with warnings.catch_warnings():
            # A file cut short is read as far as it goes, with a warning.
            warnings.filterwarnings("error", message=".*(truncated|Error validating header|not multiple of|extra bytes).*")
            warnings.filterwarnings("ignore", category=fits.verify.VerifyWarning)
            with fits.open(path, memmap=False) as hdus:
                yield hdus
    except DataError:
        raise
    except Exception as error:  # astropy and NumPy fail in every way on a broken file
        raise DataError(
            f"{path}: expected a FITS file that can be read; found one that cannot: {type(error).__name__}: {error}"
        ) from error


def read_arf(path: str | Path) -> Arf:
    """Read an effective area.

    Parameters
    ----------
    path : path
        FITS file with an extension SPECRESP.

    Returns
    -------
    Arf

    Raises
    ------
    DataError
        For a file that cannot be read, has no such extension or columns, or holds energies that do not increase or an
        area that is negative or not finite.
    """
    path = Path(path)
    with _file(path) as hdus:
        hdu = _extension(hdus, path, names=("SPECRESP",), classes=("SPECRESP",))
        where = f"{path}[{hdu.name}]"
        energy = _energies(_column(hdu, "ENERG_LO", where), _column(hdu, "ENERG_HI", where), where)
        area = _column(hdu, "SPECRESP", where)
        _reject(~np.isfinite(area) | (area < 0), area, where, "an effective area of 0 or more")
        return Arf(energy, area, where)


def read_rmf(path: str | Path, number: int = 1) -> Rmf:
    """Read a redistribution matrix, or a response with the area folded in (RSP).

    Parameters
    ----------
    path : path
        FITS file with extensions MATRIX or SPECRESP MATRIX, and EBOUNDS.
    number : int
        Which matrix, from 1, where a file holds several (RSP II).

    Returns
    -------
    Rmf

    Raises
    ------
    DataError
        As `read_arf`; also for channels out of range and rows whose parts do not add up.

    Notes
    -----
    Channels are counted from TLMIN of F_CHAN, or from the first channel of EBOUNDS where that is not given. A first
    energy bin that begins at 0 begins at a thousandth of its end instead. Bins of no width hold no photons: their rows
    are zero.
    """
    path = Path(path)
    with _file(path) as hdus:
        matrices = [h for h in hdus if h.name in ("MATRIX", "SPECRESP MATRIX") or _is(h, "RSP_MATRIX")]
        if not 1 <= number <= max(len(matrices), 1):
            raise DataError(f"{path}: expected a matrix of number 1 to {len(matrices)}; found number {number} asked for.")
        hdu = matrices[number - 1] if matrices else _extension(hdus, path, names=("MATRIX", "SPECRESP MATRIX"))
        bounds = _extension(hdus, path, names=("EBOUNDS",), classes=("EBOUNDS",))
        where = f"{path}[{hdu.name}{f', {number}' if len(matrices) > 1 else ''}]"
        channels = _whole(_column(bounds, "CHANNEL", f"{path}[EBOUNDS]"), f"{path}[EBOUNDS]", "a channel number")
        if not len(channels) or (np.diff(channels) != 1).any():
            raise DataError(f"{path}[EBOUNDS]: expected channel numbers that go up by one; found others.")
        e_min, e_max = (_column(bounds, name, f"{path}[EBOUNDS]") for name in ("E_MIN", "E_MAX"))
        energy = _energies(_column(hdu, "ENERG_LO", where), _column(hdu, "ENERG_HI", where), where)
        return Rmf(energy, _matrix(hdu, channels, energy, where), channels, e_min, e_max, where)


def _matrix(hdu, channels, energy, where) -> sparse.csr_matrix:
    """Unpack the runs of channels of every row."""
    data, columns = hdu.data, {c.name.upper(): i + 1 for i, c in enumerate(hdu.columns)}
    for name in ("N_GRP", "F_CHAN", "N_CHAN", "MATRIX"):
        if name not in columns:
            raise DataError(f"{where}: expected a column {name}; found {listed(columns)}.")
    first = hdu.header.get(f"TLMIN{columns['F_CHAN']}")
    first = int(channels[0]) if first is None else int(first)
    num = len(channels)
    widths = np.diff(energy)
    indptr, indices, values = [0], [], []
    for row in range(len(data)):
        groups = int(data["N_GRP"][row])
        starts = np.atleast_1d(data["F_CHAN"][row]).astype(int)[:groups] - first
        lengths = np.atleast_1d(data["N_CHAN"][row]).astype(int)[:groups]
        numbers = np.atleast_1d(data["MATRIX"][row]).astype(float)
        total = int(lengths.sum())
        if groups < 0 or len(starts) < groups or len(lengths) < groups or (lengths < 0).any() or len(numbers) < total:
            raise DataError(
                f"{where}, row {row}: expected {groups} groups of channels and as many values as they have; found "
                f"{len(starts)} groups of {total} channels and {len(numbers)} values."
            )
        if ((starts < 0) | (starts + lengths > num))[lengths > 0].any():
            raise DataError(
                f"{where}, row {row}: expected channels {first} to {first + num - 1}; found channels "
                f"{int(starts.min()) + first} to {int((starts + lengths).max()) + first - 1}."
            )
        numbers = numbers[:total]
        if not (np.isfinite(numbers) & (numbers >= 0)).all():
            raise DataError(f"{where}, row {row}: expected a response of 0 or more; found {numbers.min():g}.")
        if widths[row] > 0:
            indices += [np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]
            values.append(numbers)
        indptr.append(indptr[-1] + (total if widths[row] > 0 else 0))
    flat = (np.concatenate([np.zeros(0), *values]), np.concatenate([np.zeros(0, int), *indices]), indptr)
    matrix = sparse.csr_matrix(flat, shape=(len(data), num))
    matrix.sum_duplicates()
    return matrix


def _energies(low, high, where) -> Floats:
    """Edges of bins that follow one another."""
    for name, values in (("ENERG_LO", low), ("ENERG_HI", high)):
        _reject(~np.isfinite(values) | (values < 0), values, f"{where}, {name}", "an energy of 0 or more [keV]")
    if not len(low):
        raise DataError(f"{where}: expected at least one bin of energy; found no rows.")
    if len(low) > 1 and low[0] > low[-1]:
        raise DataError(f"{where}: expected energies that increase; found them decreasing.")
    _reject(high < low, high, f"{where}, ENERG_HI", "an energy above ENERG_LO")
    gap = np.append(np.abs(low[1:] - high[:-1]) > 1e-4 * np.maximum(high[:-1], 1e-3), False)
    _reject(gap, high, f"{where}, ENERG_HI", "the ENERG_LO of the next row")
    edges = np.append(low, high[-1])
    if edges[0] == 0:
        edges[0] = 1e-3 * edges[edges > 0][0] if (edges > 0).any() else 0.0
    return np.maximum.accumulate(edges)


def _extension(hdus, path, names: Sequence[str], classes: Sequence[str] = ()):
    """Find a table by its name, or else by its class."""
    for hdu in hdus:
        if hdu.name in names and getattr(hdu, "columns", None) is not None:
            return hdu
    for hdu in hdus:
        if any(_is(hdu, kind) for kind in classes) and getattr(hdu, "columns", None) is not None:
            return hdu
    found = listed(h.name or "(no name)" for h in hdus)
    raise DataError(f"{path}: expected an extension {' or '.join(names)}; found {found}.")


def _is(hdu, kind: str) -> bool:
    return any(str(hdu.header.get(f"HDUCLAS{i}", "")).strip() == kind for i in (1, 2, 3))


def _column(hdu, name: str, where: str) -> Floats:
    """Read a column of numbers."""
    for column in hdu.columns:
        if column.name.upper() == name:
            return np.array(hdu.data[column.name], dtype=float)
    raise DataError(f"{where}: expected a column {name}; found {listed(c.name for c in hdu.columns)}.")


def _reject(bad, values, where: str, expected: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        others = f" ({rows.size} such rows of {len(values)})" if rows.size > 1 else ""
        raise DataError(f"{where}, row {rows[0]}: expected {expected}; found {values[rows[0]]:g}{others}.")


def _whole(values, where: str, expected: str) -> NDArray[np.int64]:
    _reject(~np.isfinite(values) | (values % 1 != 0), values, where, expected)
    return values.astype(np.int64)
