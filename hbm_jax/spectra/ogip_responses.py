"""RMF and RSP responses and ARF effective areas of OGIP files (George et al., CAL/GEN/92-002)."""

from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import sparse

from hbm_jax.spectra.ogip_tables import (
    Floats,
    as_floats,
    column,
    consecutive,
    energies,
    extension,
    first_channel,
    numbers,
    opened,
    reject,
    tables,
    whole,
)
from hbm_jax.spectra.response import Arf, Rmf
from hbm_jax.validation import DataError

__all__ = ["read_arf", "read_rmf"]

MATRICES = ("MATRIX", "SPECRESP MATRIX")
LARGEST_GAP = 1e-4  # relative, between the end of an energy bin and the begin of the next, in single precision
FIRST_EDGE = 1e-3  # of the end of the first bin: where that bin begins if a file says at 0 keV


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
        area that is negative or not finite. The message names the file, the extension and the row, from 0.

    Notes
    -----
    A first energy bin that begins at 0 begins at a thousandth of its end instead.
    """
    path = Path(path)
    with opened(path) as hdus:
        hdu = extension(hdus, path, ("SPECRESP",), "SPECRESP")
        where = f"{path}[{hdu.name}]"
        edges = _edges(hdu, where)
        area = numbers(hdu, "SPECRESP", where)
        reject(~np.isfinite(area) | (area < 0), area, f"{where}, SPECRESP", "an effective area of 0 or more [cm^2]")
        return Arf(edges, area, where)


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
    Channels are counted from TLMIN of F_CHAN, or from the first channel of EBOUNDS where that is not given. Energies
    begin as in `read_arf`. Bins of no width hold no photons: their rows are zero. Small negative values, which some
    interpolated calibration files hold, are kept as long as their row adds up to 0 or more.
    """
    path = Path(path)
    with opened(path) as hdus:
        found = tables(hdus, MATRICES, "RSP_MATRIX") or [extension(hdus, path, MATRICES, "RSP_MATRIX")]
        if not 1 <= number <= len(found):
            raise DataError(f"{path}: expected a matrix of number 1 to {len(found)}; found number {number} asked for.")
        hdu = found[number - 1]
        bounds = extension(hdus, path, ("EBOUNDS",), "EBOUNDS")
        where = f"{path}[{hdu.name}{f', {number}' if len(found) > 1 else ''}]"
        at = f"{path}[{bounds.name}]"
        channels = consecutive(
            whole(numbers(bounds, "CHANNEL", at), f"{at}, CHANNEL", "a channel number"), f"{at}, CHANNEL"
        )
        e_min, e_max = energies(bounds, "E_MIN", at), energies(bounds, "E_MAX", at)
        reject(~np.isfinite(e_min), e_min, f"{at}, E_MIN", "a finite energy [keV]")
        reject(~(np.isfinite(e_max) & (e_max >= e_min)), e_max, f"{at}, E_MAX", "an energy not below E_MIN [keV]")
        edges = _edges(hdu, where)
        return Rmf(edges, _matrix(hdu, channels, edges, where), channels, e_min, e_max, where)


def num_matrices(path: Path) -> int:
    """Count the matrices of a file of responses."""
    with opened(path) as hdus:
        return len(tables(hdus, MATRICES, "RSP_MATRIX"))


def _edges(hdu: fits.BinTableHDU, where: str) -> Floats:
    """Edges of bins that follow one another."""
    low, high = energies(hdu, "ENERG_LO", where), energies(hdu, "ENERG_HI", where)
    if not len(low):
        raise DataError(f"{where}: expected at least one bin of energy; found no rows.")
    for name, values in (("ENERG_LO", low), ("ENERG_HI", high)):
        reject(~np.isfinite(values) | (values < 0), values, f"{where}, {name}", "an energy of 0 or more [keV]")
    if low[0] > low[-1]:
        raise DataError(f"{where}, ENERG_LO: expected energies that increase; found them decreasing.")
    reject(high < low, high, f"{where}, ENERG_HI", "an energy not below ENERG_LO")
    apart = np.append(np.abs(low[1:] - high[:-1]) > LARGEST_GAP * np.maximum(high[:-1], 1e-3), False)
    reject(apart, high, f"{where}, ENERG_HI", "the ENERG_LO of the next row")
    if high[-1] == 0:
        raise DataError(f"{where}, ENERG_HI: expected energies above 0; found none.")
    edges = np.append(low, high[-1])
    if edges[0] == 0:
        edges[0] = FIRST_EDGE * edges[edges > 0][0]
    return np.maximum.accumulate(edges)


def _matrix(hdu: fits.BinTableHDU, channels: NDArray[np.int64], edges: Floats, where: str) -> sparse.csr_matrix:
    """Unpack the runs of channels of every row."""
    num_groups = whole(numbers(hdu, "N_GRP", where), f"{where}, N_GRP", "a number of groups")
    firsts, lengths, numbers_ = (column(hdu, name, where) for name in ("F_CHAN", "N_CHAN", "MATRIX"))
    place = 1 + [c.name.upper() for c in hdu.columns].index("F_CHAN")
    first, num = first_channel(hdu.header, place, int(channels[0]), where), len(channels)
    empty = np.diff(edges) == 0
    indptr, indices, values = [0], [np.zeros(0, int)], [np.zeros(0)]
    for row, groups in enumerate(num_groups):
        at = f"{where}, row {row}"
        starts = _integers(firsts[row], f"{at}, F_CHAN") - first
        widths = _integers(lengths[row], f"{at}, N_CHAN")
        filled = as_floats(numbers_[row], f"{at}, MATRIX").ravel()
        if not 0 <= groups <= min(len(starts), len(widths)):
            raise DataError(
                f"{at}, N_GRP: expected 0 to {min(len(starts), len(widths))} groups, as F_CHAN and N_CHAN have; found "
                f"{groups}."
            )
        starts, widths = starts[:groups], widths[:groups]
        if (widths < 0).any() or (widths > num).any() or widths.sum() > len(filled):
            raise DataError(
                f"{at}, N_CHAN: expected groups of 0 to {num} channels, no more together than the {len(filled)} values "
                f"of MATRIX; found {widths.tolist()}."
            )
        starts, widths = starts[widths > 0], widths[widths > 0]
        if ((starts < 0) | (starts + widths > num)).any():
            raise DataError(
                f"{at}, F_CHAN: expected channels {first} to {first + num - 1}; found channels "
                f"{int(starts.min()) + first} to {int((starts + widths).max()) + first - 1}."
            )
        filled = filled[: widths.sum()]
        if not np.isfinite(filled).all() or filled.sum() < 0:
            raise DataError(f"{at}, MATRIX: expected finite numbers of a sum of 0 or more; found {filled.min():g}.")
        if not empty[row]:
            indices += [np.arange(a, a + n) for a, n in zip(starts, widths, strict=True)]
            values.append(filled)
        indptr.append(indptr[-1] + (0 if empty[row] else len(filled)))
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(indices), indptr), shape=(len(num_groups), num))
    matrix.sum_duplicates()
    return matrix


def _integers(values, where: str) -> NDArray[np.int64]:
    return whole(as_floats(values, where).ravel(), where, "a whole number")
