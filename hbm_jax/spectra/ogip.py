"""OGIP files: PHA spectra of type I and II, RMF and RSP responses, ARF effective areas, read and written.

Whatever is wrong with a file ends in one kind of error, `DataError`, that names the file, the extension and the row.
(Arnaud, George & Tennant, OGIP/92-007; George et al., CAL/GEN/92-002.)
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy import sparse

from hbm_jax.data.validation import DataError, listed
from hbm_jax.spectra.response import Arf, Response, Rmf
from hbm_jax.spectra.spectrum import Spectrum

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


def read_pha(path: str | Path) -> list[Spectrum]:
    """Read the spectra of a file, without the background and the response that it names.

    Parameters
    ----------
    path : path
        PHA file of type I (one spectrum) or II (one a row); a number in braces after the name, as in ``name.pha{3}``,
        picks one row, from 1.

    Returns
    -------
    list of Spectrum
        ``files`` holds the header's names of BACKFILE, RESPFILE and ANCRFILE.

    Raises
    ------
    DataError
        As `read_arf`; also for negative counts, an exposure that is not positive, scales that are negative.

    Notes
    -----
    Rates are multiplied by the exposure; where that gives whole numbers to 1e-3, or POISSERR says so, they are counts.
    Other rates keep their STAT_ERR as Gaussian errors. A column of whole COUNTS is Poisson whatever POISSERR says:
    Chandra files give the approximate errors of Poisson counts in STAT_ERR.
    """
    path, number = _numbered(path)
    with _file(path) as hdus:
        hdu = _extension(hdus, path, names=("SPECTRUM",), classes=("SPECTRUM",))
        where = f"{path}[{hdu.name}]"
        columns = {c.name.upper(): c.name for c in hdu.columns}
        quantity = next((name for name in ("COUNTS", "RATE") if name in columns), None)
        if quantity is None:
            raise DataError(f"{where}: expected a column COUNTS or RATE; found {listed(columns)}.")
        values = np.asarray(hdu.data[columns[quantity]], dtype=float)
        several = values.ndim == 2
        rows = range(len(values)) if several else [None]
        if number is not None and not 1 <= number <= len(rows):
            raise DataError(f"{where}: expected a spectrum of number 1 to {len(rows)}; found number {number} asked for.")
        read = [_spectrum(hdu, columns, quantity, row, where, path) for row in rows]
        return read if number is None else [read[number - 1]]


def _spectrum(hdu, columns, quantity: str, row: int | None, where: str, path: Path) -> Spectrum:
    """Build one spectrum: of a whole table, or of a row of type II."""

    def of(name, default, dtype=float):
        """Column, or keyword for all channels, or default."""
        if name in columns:
            value = np.asarray(hdu.data[columns[name]], dtype=float)
            value = value if row is None else value[row]
        else:
            value = np.asarray(hdu.header.get(name, default), dtype=float)
        return np.broadcast_to(value, num)

    values = np.asarray(hdu.data[columns[quantity]], dtype=float)
    values = values if row is None else values[row]
    num = len(values)
    at = where if row is None else f"{where}, spectrum {row + 1}"
    if num == 0:
        raise DataError(f"{at}: expected channels; found none.")
    exposure = float(of("EXPOSURE", np.nan)[0])
    if not (np.isfinite(exposure) and exposure > 0):
        raise DataError(f"{at}: EXPOSURE: expected a positive time [s]; found {exposure:g}.")
    if "CHANNEL" in columns:
        channels = _whole(of("CHANNEL", 0), f"{at}, CHANNEL", "a channel number")
    else:
        channels = int(hdu.header.get("TLMIN1", 1)) + np.arange(num)
    if num > 1 and (np.diff(channels) != 1).any():
        raise DataError(f"{at}, CHANNEL: expected channel numbers that go up by one; found others.")
    counts = values * exposure if quantity == "RATE" else values
    bad = ~np.isfinite(counts)
    _reject(bad, counts, f"{at}, {quantity}", "a finite number")
    stat_err = of("STAT_ERR", np.nan) * (exposure if quantity == "RATE" else 1.0)
    whole = np.abs(counts - np.round(counts)).max() < 1e-3
    poisson = whole or hdu.header.get("POISSERR") is True
    if poisson:
        counts = np.round(counts) if whole else counts
        _reject(counts < 0, counts, f"{at}, {quantity}", "counts of 0 or more")
    else:
        _reject(~(np.isfinite(stat_err) & (stat_err >= 0)), stat_err, f"{at}, STAT_ERR", "an error of 0 or more")
    scales = {name: of(name, 1.0) for name in ("BACKSCAL", "AREASCAL")}
    for name, scale in scales.items():
        _reject(~(np.isfinite(scale) & (scale >= 0)), scale, f"{at}, {name}", "a scale of 0 or more")
    files = {key: str(_name_of(hdu, columns, key, row)).strip() for key in ("BACKFILE", "RESPFILE", "ANCRFILE")}
    return Spectrum(
        name=path.name if row is None else f"{path.name}{{{row + 1}}}",
        counts=counts,
        channels=channels,
        exposure=exposure,
        backscal=scales["BACKSCAL"],
        areascal=scales["AREASCAL"],
        quality=_whole(of("QUALITY", 0), f"{at}, QUALITY", "a whole number"),
        grouping=_whole(of("GROUPING", 0), f"{at}, GROUPING", "1, 0 or -1"),
        error=None if poisson else stat_err,
        files={key: name for key, name in files.items() if name.lower() not in NONE},
    )


def _name_of(hdu, columns, key: str, row: int | None) -> str:
    """Name of a file that belongs to a spectrum."""
    return hdu.data[columns[key]][row or 0] if key in columns else hdu.header.get(key, "")


def read_spectrum(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
    name: str | None = None,
) -> Spectrum:
    """Read a spectrum with its background and its response.

    Parameters
    ----------
    path : path
        PHA file of type I, or ``file{row}`` of type II.
    background, rmf, arf : path, optional
        Instead of the files that the header names, which are looked for beside the spectrum. ``"none"``: there is none.
    name : str, optional
        Of the source; that of the file by default.

    Returns
    -------
    Spectrum

    Raises
    ------
    DataError
        For a file that is missing or cannot be read, or whose channels or energies are not those of the others.
    """
    base, number = _numbered(path)
    found = read_pha(path)
    if len(found) > 1:
        raise DataError(
            f"{path}: expected one spectrum; found {len(found)} (type II). Pick one, as in '{base.name}{{1}}', or read "
            "all with read_spectra."
        )
    return _completed(found[0], base, background, rmf, arf, name, {})


def read_spectra(path: str | Path, **options: Any) -> list[Spectrum]:
    """Read every spectrum of a type II file, with backgrounds and responses; options as of `read_spectrum`.

    A background or a response file of as many spectra or matrices is taken row by row.
    """
    base, _ = _numbered(path)
    cache: dict = {}
    return [
        _completed(
            one,
            base,
            *(options.get(key) for key in ("background", "rmf", "arf", "name")),
            cache,
            row=number,
        )
        for number, one in enumerate(read_pha(path), start=1)
    ]


def _completed(spectrum: Spectrum, base: Path, background, rmf, arf, name, cache: dict, row: int = 1) -> Spectrum:
    """Add background and response to a spectrum."""

    def place(given, key) -> tuple[Path, int | None] | None:
        if given is not None:
            return None if str(given).lower() in NONE else _numbered(given)
        named = spectrum.files.get(key)
        if named is None:
            return None
        path, number = _numbered(named)
        path = path if path.is_absolute() and path.is_file() else base.parent / path.name if (
            not (base.parent / path).is_file()
        ) else base.parent / path
        if not path.is_file():
            option = {"BACKFILE": "background", "RESPFILE": "rmf", "ANCRFILE": "arf"}[key]
            raise DataError(
                f"{base}: {key}: expected the file {named!r} beside the spectrum; found no such file. Name another "
                f"({option}=PATH), or none ({option}='none')."
            )
        return path, number

    def once(read, *key):
        if (read, *key) not in cache:
            cache[read, *key] = read(*key)
        return cache[read, *key]

    behind, matrix, area = (
        place(given, key) for given, key in ((background, "BACKFILE"), (rmf, "RESPFILE"), (arf, "ANCRFILE"))
    )
    if behind is not None:
        all_of_them = once(read_pha, behind[0])
        number = behind[1] or (row if len(all_of_them) > 1 else 1)
        if number > len(all_of_them):
            raise DataError(f"{behind[0]}: expected a spectrum of number {number}; found {len(all_of_them)}.")
        spectrum = replace(spectrum, background=_aligned(all_of_them[number - 1], spectrum, behind[0]))
    if matrix is not None:
        number = matrix[1] or (row if once(_num_matrices, matrix[0]) > 1 else 1)
        redistribution = once(read_rmf, matrix[0], number)
        response = Response.of(redistribution, None if area is None else once(read_arf, area[0]))
        if len(response.channels) != len(spectrum) or response.channels[0] != spectrum.channels[0]:
            raise DataError(
                f"{matrix[0]}: expected the channels {spectrum.channels[0]} to {spectrum.channels[-1]} of {base}; found "
                f"{response.channels[0]} to {response.channels[-1]}."
            )
        spectrum = replace(spectrum, response=response)
    return spectrum if name is None else replace(spectrum, name=name)


def _num_matrices(path: Path) -> int:
    with _file(path) as hdus:
        return sum(h.name in ("MATRIX", "SPECRESP MATRIX") or _is(h, "RSP_MATRIX") for h in hdus)


def _aligned(background: Spectrum, spectrum: Spectrum, path: Path) -> Spectrum:
    if not np.array_equal(background.channels, spectrum.channels):
        raise DataError(
            f"{path}: expected the channels {spectrum.channels[0]} to {spectrum.channels[-1]} of {spectrum.name}; found "
            f"{background.channels[0]} to {background.channels[-1]}."
        )
    return background


def _numbered(path: str | Path) -> tuple[Path, int | None]:
    """Split ``name{3}`` into name and number."""
    match = re.fullmatch(r"(.*)\{(\d+)\}", str(path))
    return (Path(match[1]), int(match[2])) if match else (Path(path), None)


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
        # Some calibration files hold small negative values: as good as the interpolation they come from, and kept.
        if not np.isfinite(numbers).all() or numbers.sum() < 0:
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
