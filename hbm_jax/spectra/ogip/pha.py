"""OGIP spectra: PHA files of type I and II, read with the background and the response that they name.

Whatever is wrong with a file ends in one kind of error, `DataError`, that names the file, the extension and the row.
(Arnaud, George & Tennant, OGIP/92-007; responses are read in `ogip_responses`, files are written in `ogip_writing`.)
"""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from hbm_jax.names import listed
from hbm_jax.spectra.folding.response import Arf, Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.responses import area_warnings, num_matrices, read_arf, read_rmf
from hbm_jax.spectra.ogip.tables import (
    Floats,
    as_floats,
    consecutive,
    keyword,
    numbered,
    opened,
    reject,
    spectrum_table,
    whole,
)
from hbm_jax.validation import DataError, tell

__all__ = ["read_arf", "read_pha", "read_rmf", "read_spectra", "read_spectrum"]

NONE = ("", "none", "null")  # names by which a header says that there is no such file
OPTIONS = {"BACKFILE": "background", "RESPFILE": "rmf", "ANCRFILE": "arf"}
# How far from a whole number counts may be, as rates times exposure are in single precision: absolute, and relative.
ROUNDING = (1e-3, 3e-7)


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
        ``files`` holds the header's names of BACKFILE, RESPFILE and ANCRFILE, those left out that are "none".

    Raises
    ------
    DataError
        As `read_arf`; also for negative counts, an exposure that is not positive, scales that are negative.

    Notes
    -----
    Whole numbers of COUNTS are Poisson, whatever POISSERR says: Chandra files set it to F and give approximate errors
    of Poisson counts in STAT_ERR, which are not used. A RATE is multiplied by the exposure. It is Poisson where
    POISSERR is T, or where that gives whole numbers to single precision and the file gives no STAT_ERR with
    POISSERR = F. All other values keep their STAT_ERR as Gaussian errors. QUALITY, GROUPING, BACKSCAL and AREASCAL may
    be a column or a keyword. SYS_ERR and CORRFILE are not used; a file that has one is read with a warning.

    Of several SPECTRUM extensions, the first is taken that is no background (HDUCLAS2 = BKG). Counts that are not
    finite or negative in a channel of bad QUALITY become NaN, and that channel is never used. Spectra of type II
    without a positive exposure are left out with a warning, unless they are asked for by number.
    """
    path, number = numbered(path)
    return [one for one in _rows(path, number, False) if one is not None]


def _rows(path: Path, number: int | None, background: bool) -> list[Spectrum | None]:
    """Read all spectra of a file, or one by number; None in place of one of type II without exposure."""
    with opened(path) as hdus:
        table = _Table(spectrum_table(hdus, path, background), path)
        several = table.values(None).ndim == 2
        rows: list[int | None] = [*range(len(table.hdu.data))] if several else [None]
        if number is not None and not 1 <= number <= len(rows):
            raise DataError(
                f"{table.where}: expected a spectrum of number 1 to {len(rows)}; found number {number} asked for."
            )
        picked = rows if number is None else [rows[number - 1]]
        skipped = [row for row in picked if row is not None and number is None and not _exposed(table, row)]
        if len(skipped) == len(picked):
            skipped = []  # so that the first of them is named in an error
        found = {row: _spectrum(table, row) for row in picked if row not in skipped}
        unused = [_not_used(table, row, len(one)) for row, one in found.items()]
    texts = []
    for key in ("SYS_ERR", "CORRFILE"):
        same = [text[key] for text in unused if key in text]
        if same:
            more = f", nor are those of {len(same) - 1} more spectra of the file" if len(same) > 1 else ""
            texts.append(f"{same[0]}{more}")
    if skipped:
        numbers = listed([f"{row + 1}" for row in skipped], 10)
        texts.append(f"{table.where}, EXPOSURE: spectra without a positive time are left out: {numbers}")
    told = tell(texts, stacklevel=4)
    return [None if row in skipped else replace(found[row], warnings=told) for row in picked]


def _exposed(table: "_Table", row: int) -> bool:
    """Say whether a spectrum of type II has a positive exposure."""
    times = table.of("EXPOSURE", np.nan, row, len(table.values(row)))
    return bool((times > 0).all())


class _Table:
    """The SPECTRUM extension: every quantity may be a column or a keyword, and a column of type II has a row each."""

    def __init__(self, hdu: fits.BinTableHDU, path: Path):
        self.hdu, self.path, self.where = hdu, path, f"{path}[{hdu.name}]"
        self.columns = {c.name.upper(): c.name for c in hdu.columns}
        self.quantity = next((name for name in ("COUNTS", "RATE") if name in self.columns), "")
        if not self.quantity:
            raise DataError(f"{self.where}: expected a column COUNTS or RATE; found {listed(self.columns)}.")

    def at(self, row: int | None) -> str:
        """Say where a message is about."""
        return self.where if row is None else f"{self.where}, spectrum {row + 1}"

    def values(self, row: int | None) -> Floats:
        """Return counts or rates, of all rows if `row` is None."""
        return self.column(self.quantity, row)

    def column(self, name: str, row: int | None) -> Floats:
        """Return a column, or its part for one spectrum."""
        values = self.hdu.data[self.columns[name]]
        return as_floats(values if row is None else values[row], f"{self.at(row)}, {name}")

    def of(self, name: str, default: float, row: int | None, num: int) -> Floats:
        """Return values for all channels: of a column, a keyword or the default."""
        at = f"{self.at(row)}, {name}"
        if name in self.columns:
            values = self.column(name, row)
        else:
            values = np.asarray(keyword(self.hdu.header, name, default, self.where))
        if values.shape not in ((), (1,), (num,)):
            raise DataError(f"{at}: expected one number or {num}; found an array of shape {values.shape}.")
        return np.array(np.broadcast_to(values, num))

    def name(self, key: str, row: int | None) -> str:
        """Return the name of a file that belongs to a spectrum."""
        if key in self.columns:
            return str(self.hdu.data[self.columns[key]][row or 0]).strip()
        value = self.hdu.header.get(key, "")
        return value.strip() if isinstance(value, str) else ""


def _spectrum(table: _Table, row: int | None) -> Spectrum:
    """Build one spectrum: of a whole table, or of a row of type II."""
    at, values = table.at(row), table.values(row)
    num = len(values)
    if values.ndim != 1 or num == 0:
        raise DataError(f"{at}, {table.quantity}: expected one number a channel; found the shape {values.shape}.")
    exposures = table.of("EXPOSURE", np.nan, row, num)
    exposure = float(exposures[0])
    if not (0 < exposure < np.inf and (exposures == exposure).all()):
        raise DataError(f"{at}, EXPOSURE: expected one positive time [s]; found {exposure:g}.")
    if "CHANNEL" in table.columns:
        channels = whole(table.of("CHANNEL", 1, row, num), f"{at}, CHANNEL", "a channel number")
    else:
        channels = np.arange(1, num + 1)
    scales = {name: table.of(name, 1.0, row, num) for name in ("BACKSCAL", "AREASCAL")}
    for name, scale in scales.items():
        reject(~(np.isfinite(scale) & (scale >= 0)), scale, f"{at}, {name}", "a scale of 0 or more")
    quality = whole(table.of("QUALITY", 0, row, num), f"{at}, QUALITY", "a whole number")
    counts, error = _counts(table, row, values, exposure, quality == 0)
    grouping = whole(table.of("GROUPING", 0, row, num), f"{at}, GROUPING", "1, 0 or -1")
    reject(np.abs(grouping) > 1, grouping, f"{at}, GROUPING", "1, 0 or -1")
    files = {key: table.name(key, row) for key in OPTIONS}
    return Spectrum(
        name=table.path.name if row is None else f"{table.path.name}{{{row + 1}}}",
        counts=counts,
        channels=consecutive(channels, f"{at}, CHANNEL"),
        exposure=exposure,
        backscal=scales["BACKSCAL"],
        areascal=scales["AREASCAL"],
        quality=quality,
        grouping=grouping,
        error=error,
        files={key: name for key, name in files.items() if name.lower() not in NONE},
    )


def _not_used(table: _Table, row: int | None, num: int) -> dict[str, str]:
    """Say of systematic errors and of a correction that they are there: a statistic of counts has no place for them."""
    said = {}
    systematic = table.of("SYS_ERR", 0.0, row, num) != 0
    if systematic.any():
        said["SYS_ERR"] = f"{table.at(row)}, SYS_ERR: systematic errors of {systematic.sum()} channels are not used"
    name = table.name("CORRFILE", row)
    if name.lower() not in NONE and (table.of("CORRSCAL", 1.0, row, num) != 0).any():
        said["CORRFILE"] = f"{table.at(row)}, CORRFILE: the correction {name!r} is not applied"
    return said


def _counts(
    table: _Table, row: int | None, values: Floats, exposure: float, good: NDArray[np.bool_]
) -> tuple[Floats, Floats | None]:
    """Read counts, and their errors where they are not Poisson; NaN in bad channels that hold no such number."""
    at, rate = table.at(row), table.quantity == "RATE"
    counts = values * exposure if rate else values
    reject(~np.isfinite(counts) & good, counts, f"{at}, {table.quantity}", "a finite number")
    counts = np.where(np.isfinite(counts), counts, np.nan)
    nearest = np.round(counts)
    is_whole = bool((np.abs(counts - nearest) <= ROUNDING[0] + ROUNDING[1] * np.abs(counts))[~np.isnan(counts)].all())
    said = table.hdu.header.get("POISSERR")
    has_error = "STAT_ERR" in table.columns or "STAT_ERR" in table.hdu.header
    if said is True or (is_whole and not (rate and said is False and has_error)):
        counts = nearest if is_whole else counts
        reject((counts < 0) & good, counts, f"{at}, {table.quantity}", "counts of 0 or more")
        return np.where(counts < 0, np.nan, counts + 0.0), None  # a rate of -0.0 is 0
    if not has_error:
        raise DataError(
            f"{at}: expected whole numbers of counts, POISSERR = T, or errors in STAT_ERR; found none of them."
        )
    error = table.of("STAT_ERR", np.nan, row, len(counts)) * (exposure if rate else 1.0)
    known = np.isfinite(error) & (error >= 0)
    reject(~known & good, error, f"{at}, STAT_ERR", "an error of 0 or more")
    return np.where(known, nearest if is_whole else counts, np.nan), np.where(known, error, np.nan)


def read_spectrum(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
    name: str | None = None,
    cache: dict | None = None,
) -> Spectrum:
    """Read a spectrum with its background and its response.

    Parameters
    ----------
    path : path
        PHA file of type I, or ``file{row}`` of type II.
    background, rmf, arf : path, optional
        Instead of the files that the header names. Those are looked for where the header says, seen from the spectrum's
        folder, then in that folder itself, also as ``.gz``. ``"none"``: there is none. A number in braces picks one of
        several spectra or matrices of a file; without it the row of the spectrum is taken.
    name : str, optional
        Of the source; that of the file by default.
    cache : dict, optional
        Where files that were read are kept. Give the same one to every call, and a redistribution that several spectra
        share is read, and held, once.

    Returns
    -------
    Spectrum

    Raises
    ------
    DataError
        For a file that is missing or cannot be read, or whose channels or energies are not those of the others.
    """
    base, number = numbered(path)
    found = _rows(base, number, False)
    if len(found) != 1 or found[0] is None:
        raise DataError(
            f"{path}: expected one spectrum; found {len(found)} (type II). Pick one, as in '{base.name}{{1}}', or read "
            "all with read_spectra."
        )
    given = {"BACKFILE": background, "RESPFILE": rmf, "ANCRFILE": arf}
    one = _completed(found[0], base, number, given, name, {} if cache is None else cache)
    if one is None:
        raise DataError(f"{path}: expected a background with a positive exposure [s]; found one without.")
    return one


def read_spectra(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
) -> list[Spectrum]:
    """Read every spectrum of a file of type II, with backgrounds and responses; options as of `read_spectrum`.

    A background or a response file that holds several is taken row by row. A file of type I gives a list of one. Rows
    without a positive exposure, of source or background, are left out with a warning.
    """
    found = read_rows(path, background=background, rmf=rmf, arf=arf)
    kept = [one for one in found if one is not None]
    if not kept:
        raise DataError(f"{path}: expected spectra and backgrounds with positive exposures [s]; found none.")
    return kept


def read_rows(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
) -> list[Spectrum | None]:
    """Read every row as `read_spectra` does; None in place of those that it leaves out."""
    base, number = numbered(path)
    given = {"BACKFILE": background, "RESPFILE": rmf, "ANCRFILE": arf}
    found = _rows(base, number, False)
    cache: dict = {}
    several = number is None and len(found) > 1
    return [
        None if one is None else _completed(one, base, row if several else number, given, None, cache)
        for row, one in enumerate(found, start=1)
    ]


def _completed(
    spectrum: Spectrum, base: Path, row: int | None, given: dict[str, Any], name: str | None, cache: dict
) -> Spectrum | None:
    """Add background and response to a spectrum, `row` of a file of type II; None if the background has no exposure."""

    def once(read: Callable, *key):
        if (read, *key) not in cache:
            cache[read, *key] = read(*key)
        return cache[read, *key]

    behind, matrix, area = (_place(spectrum, base, key, given[key]) for key in OPTIONS)
    if behind is not None:
        every = once(_rows, behind[0], None, True)
        chosen = _chosen(behind, len(every), row, "spectra", "background")
        _refuse_itself(behind[0], chosen, base, row or 1)
        other = every[chosen - 1]
        if other is None:
            return None
        _align(behind[0], other.channels, base, spectrum)
        spectrum = replace(spectrum, background=other, warnings=(*spectrum.warnings, *other.warnings))
    if matrix is not None:
        number = _chosen(matrix, once(num_matrices, matrix[0]), row, "matrices", "rmf")
        redistribution = once(read_rmf, matrix[0], number)
        _align(matrix[0], redistribution.channels, base, spectrum)
        arf = None if area is None else once(read_arf, area[0])
        told = once(_told_of_areas, redistribution, arf)
        response = Response.of(redistribution, arf)
        spectrum = replace(spectrum, response=response, warnings=(*spectrum.warnings, *redistribution.warnings, *told))
    return spectrum if name is None else replace(spectrum, name=name)


def _told_of_areas(rmf: Rmf, arf: Arf | None) -> tuple[str, ...]:
    return tell(area_warnings(rmf, arf), stacklevel=5)


def _place(spectrum: Spectrum, base: Path, key: str, given: str | Path | None) -> tuple[Path, int | None] | None:
    """Path and number of a file that belongs to a spectrum, if there is one."""
    if given is not None:
        return None if str(given).strip().lower() in NONE else numbered(given)
    named = spectrum.files.get(key)
    if named is None:
        return None
    path, number = numbered(re.sub(r"\[[^\]]*\]$", "", named))  # without an extension, as in PN.rmf[MATRIX]
    for place in (base.parent / path, base.parent / path.name):
        for one in (str(place), f"{place}.gz"):
            if os.path.isfile(one):  # unlike Path.is_file, False for names that no file can have
                return Path(one), number
    option = OPTIONS[key]
    raise DataError(
        f"{base}, {key}: expected the file {named!r} beside the spectrum; found no such file. Name another "
        f"({option}=PATH), or none ({option}='none')."
    )


def _refuse_itself(path: Path, number: int, base: Path, row: int) -> None:
    """Refuse a spectrum as its own background: its file may hold one, in an extension of its own or another row."""
    if number != row or not (os.path.isfile(base) and os.path.samefile(path, base)):
        return
    with opened(path) as hdus:
        same = spectrum_table(hdus, path, True) is spectrum_table(hdus, path, False)
    if same:
        raise DataError(
            f"{base}, BACKFILE: expected another file, or an extension SPECTRUM with HDUCLAS2 = BKG in this one; found "
            "the file itself without such an extension. Name the background (background=PATH), or none "
            "(background='none')."
        )


def _chosen(place: tuple[Path, int | None], num: int, row: int | None, what: str, option: str) -> int:
    """Which of the spectra or matrices of a file belongs to a spectrum, from 1."""
    path, number = place
    number = number or (1 if num <= 1 else row)
    if number is None:
        raise DataError(f"{path}: expected one; found {num} {what}. Pick one ({option}='{path.name}{{1}}').")
    if number > max(num, 1):
        raise DataError(f"{path}: expected at least {number} {what}, for the spectrum of that row; found {num}.")
    return number


def _align(path: Path, channels, base: Path, spectrum: Spectrum) -> None:
    """Check that a file has the channels of the spectrum."""
    if not np.array_equal(channels, spectrum.channels):
        raise DataError(
            f"{path}: expected the channels {spectrum.channels[0]} to {spectrum.channels[-1]} of {base}; found "
            f"{channels[0]} to {channels[-1]}."
        )
