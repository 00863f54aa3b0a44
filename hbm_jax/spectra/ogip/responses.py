"""RMF and RSP responses and ARF effective areas of OGIP files (George et al., CAL/GEN/92-002)."""

from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import sparse

from hbm_jax.spectra.folding.response import AREA_INCLUDED, Arf, Rmf
from hbm_jax.spectra.ogip.tables import (
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
from hbm_jax.validation import DataError, tell

__all__ = ["read_arf", "read_rmf"]

MATRICES = ("MATRIX", "SPECRESP MATRIX")
LARGEST_GAP = 1e-4  # relative, between the end of an energy bin and the begin of the next, in single precision
SAME_EDGE = 1e-6  # relative, of edges of the parts of a split response
LARGEST_OVERLAP = 0.01, 1e-6  # of channels: relative to the narrower one, and to the energy, for single precision
NEGLIGIBLE = 1e-4  # of a response, below which negative elements are not told of
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
        As `read_arf`; also for channels out of range, rows whose parts do not add up, and channels whose nominal
        energies are negative or overlap.

    Notes
    -----
    Several extensions called MATRIX, without times that differ, are parts of one response: their sum is read, on the
    edges of all their bins of energy.

    Channels are counted from TLMIN of F_CHAN, or from the first channel of EBOUNDS where that is not given. Energies
    begin as in `read_arf`. Bins of no width hold no photons: their rows are zero. Small negative values, which some
    interpolated calibration files hold, become 0, and the others of their row are reduced to the same sum, which has to
    be 0 or more; a warning tells of them where they are more than 1e-4 of the response.
    """
    path = Path(path)
    with opened(path) as hdus:
        found = tables(hdus, MATRICES, "RSP_MATRIX") or [extension(hdus, path, MATRICES, "RSP_MATRIX")]
        every = _responses(found)
        if not 1 <= number <= len(every):
            raise DataError(f"{path}: expected a matrix of number 1 to {len(every)}; found number {number} asked for.")
        bounds = extension(hdus, path, ("EBOUNDS",), "EBOUNDS")
        at = f"{path}[{bounds.name}]"
        channels = consecutive(
            whole(numbers(bounds, "CHANNEL", at), f"{at}, CHANNEL", "a channel number"), f"{at}, CHANNEL"
        )
        e_min, e_max = energies(bounds, "E_MIN", at), energies(bounds, "E_MAX", at)
        reject(~np.isfinite(e_min) | (e_min < 0), e_min, f"{at}, E_MIN", "a finite energy of 0 or more [keV]")
        reject(~(np.isfinite(e_max) & (e_max >= e_min)), e_max, f"{at}, E_MAX", "an energy not below E_MIN [keV]")
        _reject_overlaps(e_min, e_max, at)
        parts = []
        for hdu in every[number - 1]:
            place = f", {found.index(hdu) + 1}" if len(found) > 1 else ""
            where = f"{path}[{hdu.name}{place}]"
            edges = _edges(hdu, where)
            parts.append((edges, _matrix(hdu, channels, edges, where)))
        where = where if len(parts) == 1 else f"{path}[{hdu.name}, 1 to {len(parts)}]"
        edges, matrix = _summed(parts)
        full = str(hdu.header.get("HDUCLAS3", "")).strip().upper() == "FULL"
    matrix, texts = _without_negatives(matrix, where)
    return Rmf(edges, matrix, channels, e_min, e_max, where, full, tell(texts))


def num_matrices(path: Path) -> int:
    """Count the matrices of a file of responses; the parts of one that is split are one."""
    with opened(path) as hdus:
        return len(_responses(tables(hdus, MATRICES, "RSP_MATRIX")))


def _responses(hdus: list[fits.BinTableHDU]) -> list[list[fits.BinTableHDU]]:
    """Group the extensions that are parts of one response: those called MATRIX without times that differ."""
    times = {tuple(hdu.header.get(key) for key in ("TSTART", "TSTOP")) for hdu in hdus}
    split = len(times) == 1 and all(str(hdu.name).strip().upper() == "MATRIX" for hdu in hdus)
    return [hdus] if split else [[hdu] for hdu in hdus]


def area_warnings(rmf: Rmf, arf: Arf | None) -> list[str]:
    """Say where an effective area seems to be missing, or to be there twice."""
    largest = float(rmf.matrix.sum(axis=1).max())
    if arf is None and largest <= AREA_INCLUDED and not rmf.full:
        return [
            f"{rmf.name}: no ARF goes with this redistribution, which adds up to {largest:.3g} at most: the effective "
            "area is taken as 1 cm^2"
        ]
    if arf is not None and largest > AREA_INCLUDED and arf.area.max() > AREA_INCLUDED:
        return [
            f"{rmf.name}: this response adds up to {largest:.4g}, so that it seems to hold the effective area already, "
            f"and is multiplied by that of {arf.name}"
        ]
    return []


def _reject_overlaps(e_min: Floats, e_max: Floats, where: str) -> None:
    """Refuse channels whose nominal energies overlap; they may go up or down."""
    order = np.lexsort((e_max, e_min))
    low, high = e_min[order], e_max[order]
    relative, absolute = LARGEST_OVERLAP
    allowed = np.maximum(relative * np.minimum(np.diff(high), np.diff(low)), absolute * low[1:])
    bad = np.flatnonzero(high[:-1] - low[1:] > allowed)
    if bad.size:
        one, other = order[bad[0]], order[bad[0] + 1]
        raise DataError(
            f"{where}, E_MAX, row {one}: expected an energy not above the E_MIN of the next channel, {e_min[other]:g} "
            f"keV; found {e_max[one]:g} keV ({bad.size} such rows of {len(e_min)})."
        )


def _summed(parts: list[tuple[Floats, sparse.csr_matrix]]) -> tuple[Floats, sparse.csr_matrix]:
    """Sum matrices of the same channels, on all their edges of energy."""
    if len(parts) == 1:
        return parts[0]
    edges = max((e for e, _ in parts), key=len)
    for other, _ in parts:
        nearest = np.clip(np.searchsorted(edges, other), 1, len(edges) - 1)
        apart = np.minimum(np.abs(other - edges[nearest]), np.abs(other - edges[nearest - 1]))
        edges = np.union1d(edges, other[apart > SAME_EDGE * other])
    total = sparse.csr_matrix((len(edges) - 1, parts[0][1].shape[1]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    for own, matrix in parts:
        row = np.searchsorted(own, middle) - 1
        inside = np.flatnonzero((row >= 0) & (row < matrix.shape[0]))
        shape = len(middle), matrix.shape[0]
        spread = sparse.csr_matrix((np.ones(len(inside)), (inside, row[inside])), shape)
        total = total + spread @ matrix
    return edges, sparse.csr_matrix(total)


def _without_negatives(matrix: sparse.csr_matrix, where: str) -> tuple[sparse.csr_matrix, list[str]]:
    """Set negative elements to 0 and keep the sum of every row; say so where they matter."""
    negative = matrix.data < 0
    if not negative.any():
        return matrix, []
    before = np.asarray(matrix.sum(axis=1)).ravel()
    share = -matrix.data[negative].sum() / before.sum()
    positive = matrix.copy()
    positive.data = np.where(negative, 0.0, positive.data)
    after = np.asarray(positive.sum(axis=1)).ravel()
    scale = np.where(after > 0, np.maximum(before, 0.0) / np.where(after > 0, after, 1.0), 0.0)
    told = (
        f"{where}, MATRIX: {negative.sum()} negative elements, {share:.2g} of the response, are set to 0 and the "
        "others of their rows reduced to the same sums"
    )
    positive = sparse.csr_matrix(sparse.diags(scale) @ positive)
    positive.eliminate_zeros()
    return positive, [told] if share > NEGLIGIBLE else []


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
