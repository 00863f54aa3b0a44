"""Readers of OGIP response files: RMF, RSP and ARF (George et al., CAL/GEN/92-002)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hbm_jax.spectra.folding.response import AREA_INCLUDED, Arf, Rmf, summed_matrices
from hbm_jax.spectra.ogip.tables import (
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
from hbm_jax.validation import DataError, Floats, warn_unusual

if TYPE_CHECKING:
    from astropy.io import fits

MATRICES, AREAS = ("MATRIX", "SPECRESP MATRIX"), ("SPECRESP",)
LARGEST_GAP = 1e-4  # relative, between the end of an energy bin and the start of the next, stored in single precision
# Largest overlap of channels: relative to the width of the narrower one, and (single precision) to the energy.
LARGEST_OVERLAP = 0.01, 1e-6
NEGLIGIBLE = 1e-4  # fraction of a response in negative elements below which there is no warning
FIRST_EDGE = 1e-3  # lower edge that replaces 0 keV in the first bin, relative to the upper edge


def read_arf(path: str | Path, number: int = 1) -> Arf:
    """Read an effective area.

    If the first energy bin starts at 0 keV, its lower edge is set to a thousandth of its upper edge. Raises DataError
    if the file cannot be read, the extension or a column is missing, energies do not increase, or an area is negative
    or not finite. The message names the file, the extension and the row, counted from 0.

    Parameters
    ----------
    path : path
        FITS file with an extension SPECRESP.
    number : int
        Number of the extension, from 1, in a file with several.
    """
    path = Path(path)
    with opened(path) as hdus:
        hdu_list = tables(hdus, AREAS, "SPECRESP") or [extension(hdus, path, AREAS, "SPECRESP")]
        if not 1 <= number <= len(hdu_list):
            raise DataError(f"{path}: expected an area number from 1 to {len(hdu_list)}; found number {number}.")
        hdu = hdu_list[number - 1]
        where = f"{path}[{hdu.name}{f', {number}' if len(hdu_list) > 1 else ''}]"
        order = _increasing(hdu, where)
        edges = _edges(hdu, where, order)
        area = numbers(hdu, "SPECRESP", where)[order]
        reject(~np.isfinite(area) | (area < 0), area, f"{where}, SPECRESP", "an effective area of 0 or more [cm^2]")
        return Arf(edges, area, where)


def read_rmf(path: str | Path, number: int = 1) -> Rmf:
    """Read a redistribution matrix, or a response that includes the effective area (RSP).

    Raises DataError as for `read_arf`; also if channels are out of range, the groups of a row are inconsistent with its
    values, or nominal channel energies are negative or overlap.

    Parameters
    ----------
    path : path
        FITS file with extensions MATRIX or SPECRESP MATRIX, and EBOUNDS.
    number : int
        Number of the matrix, from 1, in a file with several (RSP II).

    Notes
    -----
    Several extensions named MATRIX are parts of one response, unless their times differ. Their sum is returned, on the
    union of their energy bin edges.

    Channels are numbered from TLMIN of F_CHAN, or from the first channel of EBOUNDS if TLMIN is absent. A lower edge of
    0 keV is treated as in `read_arf`. Energy bins of zero width have no response. Small negative elements, which occur
    in interpolated calibration files, become 0, and the other elements of their row are scaled to keep the row sum,
    which must be 0 or more. A warning is issued if negative elements are more than 1e-4 of the response.
    """
    path = Path(path)
    with opened(path) as hdus:
        hdu_list = tables(hdus, MATRICES, "RSP_MATRIX") or [extension(hdus, path, MATRICES, "RSP_MATRIX")]
        matrix_parts = _responses(hdu_list)
        if not 1 <= number <= len(matrix_parts):
            raise DataError(f"{path}: expected a matrix number from 1 to {len(matrix_parts)}; found number {number}.")
        bounds = extension(hdus, path, ("EBOUNDS",), "EBOUNDS")
        bounds_where = f"{path}[{bounds.name}]"
        channels = consecutive(
            whole(numbers(bounds, "CHANNEL", bounds_where), f"{bounds_where}, CHANNEL", "a channel number"),
            f"{bounds_where}, CHANNEL",
        )
        e_min, e_max = energies(bounds, "E_MIN", bounds_where), energies(bounds, "E_MAX", bounds_where)
        reject(~np.isfinite(e_min) | (e_min < 0), e_min, f"{bounds_where}, E_MIN", "a finite energy of 0 or more [keV]")
        reject(
            ~(np.isfinite(e_max) & (e_max >= e_min)), e_max, f"{bounds_where}, E_MAX", "an energy not below E_MIN [keV]"
        )
        _reject_overlaps(e_min, e_max, bounds_where)
        parts = []
        for hdu in matrix_parts[number - 1]:
            suffix = f", {hdu_list.index(hdu) + 1}" if len(hdu_list) > 1 else ""
            where = f"{path}[{hdu.name}{suffix}]"
            order = _increasing(hdu, where)
            edges = _edges(hdu, where, order)
            parts.append((edges, _matrix(hdu, channels, np.diff(edges)[order] == 0, where)[order]))
        edges, matrix = summed_matrices(parts)
        hdu = matrix_parts[number - 1][-1]
        where = where if len(parts) == 1 else f"{path}[{hdu.name}, 1 to {len(parts)}]"
        full = str(hdu.header.get("HDUCLAS3", "")).strip().upper() == "FULL"
    matrix, texts = _without_negatives(matrix, where)
    return Rmf(edges, matrix, channels, e_min, e_max, where, full, len(parts) > 1, warn_unusual(texts))


def num_matrices(path: Path) -> int:
    """Return the number of matrices in a response file; the parts of a split response count as one."""
    with opened(path) as hdus:
        return len(_responses(tables(hdus, MATRICES, "RSP_MATRIX")))


def num_areas(path: Path) -> int:
    """Return the number of effective areas in a file."""
    with opened(path) as hdus:
        return len(tables(hdus, AREAS, "SPECRESP"))


def _responses(hdus: "list[fits.BinTableHDU]") -> "list[list[fits.BinTableHDU]]":
    """Group extensions into responses: those named MATRIX are parts of one response, unless their times differ."""
    times = {tuple(hdu.header.get(key) for key in ("TSTART", "TSTOP")) for hdu in hdus}
    split = len(times) == 1 and all(str(hdu.name).strip().upper() == "MATRIX" for hdu in hdus)
    return [hdus] if split else [[hdu] for hdu in hdus]


def area_warnings(rmf: Rmf, arf: Arf | None) -> list[str]:
    """Return a message if the effective area seems to be missing or to be included twice."""
    largest = float(rmf.matrix.sum(axis=1).max())
    if arf is None and largest <= AREA_INCLUDED and not rmf.full:
        return [
            f"{rmf.name}: there is no ARF for this redistribution matrix, whose largest row sum is {largest:.3g}: the "
            "effective area is taken as 1 cm^2"
        ]
    if arf is not None and largest > AREA_INCLUDED and arf.area.max() > AREA_INCLUDED:
        return [
            f"{rmf.name}: the largest row sum of this response is {largest:.4g}, so that it seems to include the "
            f"effective area already; it is multiplied by that of {arf.name}"
        ]
    return []


def _reject_overlaps(e_min: Floats, e_max: Floats, where: str) -> None:
    """Raise DataError for overlapping nominal channel energies, which may increase or decrease."""
    order = np.lexsort((e_max, e_min))
    low, high = e_min[order], e_max[order]
    relative, absolute = LARGEST_OVERLAP
    allowed = np.maximum(relative * np.minimum(np.diff(high), np.diff(low)), absolute * low[1:])
    bad = np.flatnonzero(high[:-1] - low[1:] > allowed)
    if bad.size:
        row, next_row = order[bad[0]], order[bad[0] + 1]
        raise DataError(
            f"{where}, E_MAX, row {row}: expected an energy not above the E_MIN of the next channel, "
            f"{e_min[next_row]:g} keV; found {e_max[row]:g} keV ({bad.size} such rows of {len(e_min)})."
        )


def _without_negatives(matrix: sparse.csr_matrix, where: str) -> tuple[sparse.csr_matrix, list[str]]:
    """Set negative elements to 0 and keep all row sums; also return a message if they are not negligible."""
    negative = matrix.data < 0
    if not negative.any():
        return matrix, []
    before = np.asarray(matrix.sum(axis=1)).ravel()
    fraction = -matrix.data[negative].sum() / before.sum()
    positive = matrix.copy()
    positive.data = np.where(negative, 0.0, positive.data)
    after = np.asarray(positive.sum(axis=1)).ravel()
    scale = np.where(after > 0, np.maximum(before, 0.0) / np.where(after > 0, after, 1.0), 0.0)
    message = (
        f"{where}, MATRIX: {negative.sum()} negative elements, {fraction:.2g} of the response, are set to 0 and the "
        "others of their rows reduced to keep the row sums"
    )
    positive = sparse.csr_matrix(sparse.diags(scale) @ positive)
    positive.eliminate_zeros()
    return positive, [message] if fraction > NEGLIGIBLE else []


def _increasing(hdu: "fits.BinTableHDU", where: str) -> slice:
    """Return the order of the rows in which energies increase; files of gratings may have decreasing ones."""
    bounds = [energies(hdu, name, where) for name in ("ENERG_LO", "ENERG_HI")]
    decreasing = len(bounds[0]) > 1 and all(bool((np.diff(values) < 0).all()) for values in bounds)
    return slice(None, None, -1 if decreasing else 1)


def _edges(hdu: "fits.BinTableHDU", where: str, order: slice) -> Floats:
    """Return the edges of contiguous energy bins."""
    low, high = energies(hdu, "ENERG_LO", where)[order], energies(hdu, "ENERG_HI", where)[order]
    if not len(low):
        raise DataError(f"{where}: expected at least one energy bin; found no rows.")
    for name, values in (("ENERG_LO", low), ("ENERG_HI", high)):
        reject(~np.isfinite(values) | (values < 0), values, f"{where}, {name}", "an energy of 0 or more [keV]")
    if low[0] > low[-1]:
        raise DataError(f"{where}, ENERG_LO: expected increasing energies; found decreasing ones.")
    reject(high < low, high, f"{where}, ENERG_HI", "an energy not below ENERG_LO")
    is_gap = np.append(np.abs(low[1:] - high[:-1]) > LARGEST_GAP * np.maximum(high[:-1], 1e-3), False)
    reject(is_gap, high, f"{where}, ENERG_HI", "the ENERG_LO of the next row")
    if high[-1] == 0:
        raise DataError(f"{where}, ENERG_HI: expected energies above 0; found none.")
    edges = np.append(low, high[-1])
    if edges[0] == 0:
        edges[0] = FIRST_EDGE * edges[edges > 0][0]
    return np.maximum.accumulate(edges)


def _matrix(
    hdu: "fits.BinTableHDU", channels: NDArray[np.int64], empty: NDArray[np.bool_], where: str
) -> sparse.csr_matrix:
    """Return the matrix, expanded from the groups of channels of every row; rows of zero width are ``empty``."""
    num_groups = whole(numbers(hdu, "N_GRP", where), f"{where}, N_GRP", "a number of groups")
    firsts, lengths, elements = (column(hdu, name, where) for name in ("F_CHAN", "N_CHAN", "MATRIX"))
    column_number = 1 + [c.name.upper() for c in hdu.columns].index("F_CHAN")
    first, num = first_channel(hdu.header, column_number, int(channels[0]), where), len(channels)
    indptr, indices, values = [0], [np.zeros(0, int)], [np.zeros(0)]
    for row, groups in enumerate(num_groups):
        location = f"{where}, row {row}"
        starts = _integers(firsts[row], f"{location}, F_CHAN") - first
        widths = _integers(lengths[row], f"{location}, N_CHAN")
        row_values = as_floats(elements[row], f"{location}, MATRIX").ravel()
        if not 0 <= groups <= min(len(starts), len(widths)):
            raise DataError(
                f"{location}, N_GRP: expected 0 to {min(len(starts), len(widths))} groups, as in F_CHAN and N_CHAN; "
                f"found {groups}."
            )
        starts, widths = starts[:groups], widths[:groups]
        if (widths < 0).any() or (widths > num).any() or widths.sum() > len(row_values):
            raise DataError(
                f"{location}, N_CHAN: expected groups of 0 to {num} channels, in total at most the {len(row_values)} "
                f"values of MATRIX; found {widths.tolist()}."
            )
        starts, widths = starts[widths > 0], widths[widths > 0]
        if ((starts < 0) | (starts + widths > num)).any():
            raise DataError(
                f"{location}, F_CHAN: expected channels {first} to {first + num - 1}; found channels "
                f"{int(starts.min()) + first} to {int((starts + widths).max()) + first - 1}."
            )
        row_values = row_values[: widths.sum()]
        if not np.isfinite(row_values).all() or row_values.sum() < 0:
            raise DataError(
                f"{location}, MATRIX: expected finite numbers with a sum of 0 or more; found {row_values.min():g}."
            )
        if not empty[row]:
            indices += [np.arange(a, a + n) for a, n in zip(starts, widths, strict=True)]
            values.append(row_values)
        indptr.append(indptr[-1] + (0 if empty[row] else len(row_values)))
    matrix = sparse.csr_matrix((np.concatenate(values), np.concatenate(indices), indptr), shape=(len(num_groups), num))
    matrix.sum_duplicates()
    return matrix


def _integers(values, where: str) -> NDArray[np.int64]:
    """Return an element of an array column as integers."""
    return whole(as_floats(values, where).ravel(), where, "a whole number")
