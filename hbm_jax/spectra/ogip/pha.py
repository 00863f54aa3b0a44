"""OGIP spectra: readers of PHA files of type I and II, with their background and response files.

Every defect of a file raises `DataError`, which names the file, the extension and the row. Reference: Arnaud, George &
Tennant, OGIP/92-007. Response files are read in `responses`; files are written in `writing` and `type2`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import listed
from hbm_jax.spectra.folding.spectrum import Spectrum, summed_background
from hbm_jax.spectra.ogip.gratings import background_columns, orders_of, selected_rows
from hbm_jax.spectra.ogip.response_files import (
    NONE,
    OPTIONS,
    align,
    cached_in,
    files_of,
    number_in_file,
    response_of,
)
from hbm_jax.spectra.ogip.tables import as_floats, consecutive, keyword, opened, reject, spectrum_table, whole
from hbm_jax.validation import DataError, Floats, Remedy, warn_unusual

if TYPE_CHECKING:
    from astropy.io import fits

HEADER = "header"  # option for the files named in the header of the background
# Largest deviation of counts from a whole number, absolute and relative: rates times exposure in single precision.
ROUNDING = (1e-3, 3e-7)


def read_pha(path: str | Path) -> list[Spectrum]:
    """Read the spectra of a PHA file, without their background and response files.

    Raises DataError as for `read_arf`; also if counts or scales are negative or an exposure is not positive.
    ``Spectrum.files`` has the values of BACKFILE, RESPFILE and ANCRFILE, except those that are "none".

    Parameters
    ----------
    path : path
        PHA file of type I (one spectrum) or II (one spectrum per row). Numbers in braces after the name, as in
        ``name.pha{3}``, select rows, from 1. The rows of a grating are also selected by arm and order, as in
        ``name.pha{MEG -1, MEG +1}``.

    Notes
    -----
    COUNTS that are whole numbers are Poisson, whatever the value of POISSERR: Chandra files set POISSERR = F and give
    approximate errors of Poisson counts in STAT_ERR, which are not used. RATE is multiplied by the exposure. The
    product is Poisson if POISSERR is T, or if it is a whole number to single precision and the file does not have both
    POISSERR = F and STAT_ERR. All other counts have STAT_ERR as Gaussian errors. QUALITY, GROUPING, BACKSCAL and
    AREASCAL may be columns or keywords. SYS_ERR is a fraction of the counts; chi-square statistics add it to the
    errors. A warning is issued for SYS_ERR of Poisson counts, whose statistics cannot use it, and for CORRFILE, which
    is not used.

    The columns BACKGROUND_UP and BACKGROUND_DOWN of grating spectra are read as their background, with the sum of
    BACKSCUP and BACKSCDN as its BACKSCAL.

    Of several SPECTRUM extensions, the first that is not a background (HDUCLAS2 = BKG) is read. Counts that are
    negative or not finite in a channel of bad QUALITY become NaN; such a channel is never used. Spectra of type II
    without a positive exposure are left out with a warning, unless they are selected by number.
    """
    path, numbers = selected_rows(path)
    return [spectrum for spectrum in _rows(path, numbers, False) if spectrum is not None]


def _rows(path: Path, numbers: list[int] | None, background: bool) -> list[Spectrum | None]:
    """Read all spectra of a file, or those with these numbers; None for a spectrum of type II without exposure."""
    with opened(path) as hdus:
        table = _Table(spectrum_table(hdus, path, background), path)
        is_type2 = table.values(None).ndim == 2
        rows: list[int | None] = [*range(len(table.hdu.data))] if is_type2 else [None]
        for number in numbers or ():
            if not 1 <= number <= len(rows):
                raise DataError(
                    f"{table.where}: expected a spectrum number from 1 to {len(rows)}; found number {number}."
                )
        selected = rows if numbers is None else [rows[number - 1] for number in numbers]
        unexposed = [row for row in selected if row is not None and numbers is None and not _has_exposure(table, row)]
        if len(unexposed) == len(selected):
            unexposed = []  # reading the first then raises an error that names it
        spectra = {row: _spectrum(table, row) for row in selected if row not in unexposed}
        unused = [_unused_corrections(table, row, spectrum) for row, spectrum in spectra.items()]
    texts = []
    for key in ("SYS_ERR", "CORRFILE"):
        messages = [text[key] for text in unused if key in text]
        if messages:
            others = f"; likewise {len(messages) - 1} other spectra of the file" if len(messages) > 1 else ""
            texts.append(f"{messages[0]}{others}")
    if unexposed:
        left_out = listed([f"{row + 1}" for row in unexposed], 10)
        texts.append(f"{table.where}, EXPOSURE: spectra without a positive exposure are left out: {left_out}")
    warnings = warn_unusual(texts, stacklevel=4)
    return [None if row in unexposed else replace(spectra[row], warnings=warnings) for row in selected]


def _has_exposure(table: "_Table", row: int) -> bool:
    """Return True if a spectrum of type II has a positive exposure."""
    return bool((table.per_channel("EXPOSURE", np.nan, row, len(table.values(row))) > 0).all())


class _Table:
    """SPECTRUM extension. Quantities are columns or keywords; in type II each row is a spectrum."""

    def __init__(self, hdu: "fits.BinTableHDU", path: Path):
        self.hdu, self.path, self.where = hdu, path, f"{path}[{hdu.name}]"
        self.columns = {c.name.upper(): c.name for c in hdu.columns}
        self.quantity = next((name for name in ("COUNTS", "RATE") if name in self.columns), "")
        if not self.quantity:
            raise DataError(f"{self.where}: expected a column COUNTS or RATE; found {listed(self.columns)}.")
        self.orders = orders_of(hdu, self.where)

    def location(self, row: int | None) -> str:
        """Return the location of a spectrum for messages."""
        return self.where if row is None else f"{self.where}, spectrum {row + 1}"

    def values(self, row: int | None) -> Floats:
        """Return the counts or rates of a row, or of all rows if `row` is None."""
        return self.column(self.quantity, row)

    def column(self, name: str, row: int | None) -> Floats:
        """Return a column, or its values in one row."""
        values = self.hdu.data[self.columns[name]]
        return as_floats(values if row is None else values[row], f"{self.location(row)}, {name}")

    def per_channel(self, name: str, default: float, row: int | None, num: int) -> Floats:
        """Return the values of all ``num`` channels, from a column, a keyword or the default."""
        if name in self.columns:
            values = self.column(name, row)
        else:
            values = np.asarray(keyword(self.hdu.header, name, default, self.where))
        if values.shape not in ((), (1,), (num,)):
            raise DataError(
                f"{self.location(row)}, {name}: expected one number or {num}; found an array of shape {values.shape}."
            )
        return np.array(np.broadcast_to(values, num))

    def name(self, key: str, row: int | None) -> str:
        """Return the file name in a column or keyword, such as BACKFILE."""
        if key in self.columns:
            return str(self.hdu.data[self.columns[key]][row or 0]).strip()
        value = self.hdu.header.get(key, "")
        return value.strip() if isinstance(value, str) else ""


def _spectrum(table: _Table, row: int | None) -> Spectrum:
    """Build the spectrum of a type I table, or of one row of type II."""
    where, values = table.location(row), table.values(row)
    num = len(values)
    if values.ndim != 1 or num == 0:
        raise DataError(
            f"{where}, {table.quantity}: expected one number per channel; found an array of shape {values.shape}."
        )
    exposures = table.per_channel("EXPOSURE", np.nan, row, num)
    exposure = float(exposures[0])
    if not (0 < exposure < np.inf and (exposures == exposure).all()):
        raise DataError(f"{where}, EXPOSURE: expected one positive time [s]; found {exposure:g}.")
    if "CHANNEL" in table.columns:
        channels = whole(table.per_channel("CHANNEL", 1, row, num), f"{where}, CHANNEL", "a channel number")
    else:
        channels = np.arange(1, num + 1)
    scales = {name: table.per_channel(name, 1.0, row, num) for name in ("BACKSCAL", "AREASCAL")}
    for name, scale in scales.items():
        reject(~(np.isfinite(scale) & (scale >= 0)), scale, f"{where}, {name}", "a scale of 0 or more")
    quality = whole(table.per_channel("QUALITY", 0, row, num), f"{where}, QUALITY", "a whole number")
    counts, error = _counts(table, row, values, exposure, quality == 0)
    grouping = whole(table.per_channel("GROUPING", 0, row, num), f"{where}, GROUPING", "1, 0 or -1")
    reject(np.abs(grouping) > 1, grouping, f"{where}, GROUPING", "1, 0 or -1")
    systematic = table.per_channel("SYS_ERR", 0.0, row, num)
    reject(~(systematic >= 0) & (quality == 0), systematic, f"{where}, SYS_ERR", "a fraction of 0 or more")
    files = {key: table.name(key, row) for key in OPTIONS}
    order = table.orders[row or 0]
    label = str(order) if order is not None and table.orders.count(order) == 1 else f"{(row or 0) + 1}"
    spectrum = Spectrum(
        name=table.path.name if row is None else f"{table.path.name}{{{label}}}",
        counts=counts,
        channels=consecutive(channels, f"{where}, CHANNEL"),
        exposure=exposure,
        backscal=scales["BACKSCAL"],
        areascal=scales["AREASCAL"],
        quality=quality,
        grouping=grouping,
        error=error,
        systematic=systematic if systematic.any() else None,
        files={key: name for key, name in files.items() if name.lower() not in NONE},
        instrument=" ".join(table.name(key, row) for key in ("TELESCOP", "INSTRUME", "DETNAM")),
        order=order,
    )
    columns = background_columns(table, row, num)
    if columns is None:
        return spectrum
    background = replace(spectrum, counts=columns[0], backscal=columns[1], error=None, systematic=None, files={})
    return replace(spectrum, background=background)


def _unused_corrections(table: _Table, row: int | None, spectrum: Spectrum) -> dict[str, str]:
    """Return messages, by keyword, for systematic errors of Poisson counts and for a correction file."""
    messages, num = {}, len(spectrum)
    systematic = table.per_channel("SYS_ERR", 0.0, row, num) != 0
    if systematic.any() and spectrum.error is None:
        messages["SYS_ERR"] = (
            f"{table.location(row)}, SYS_ERR: systematic errors of {systematic.sum()} channels are used only by "
            "chi-square, not by statistics of Poisson counts"
        )
    name = table.name("CORRFILE", row)
    if name.lower() not in NONE and (table.per_channel("CORRSCAL", 1.0, row, num) != 0).any():
        messages["CORRFILE"] = f"{table.location(row)}, CORRFILE: the correction {name!r} is not applied"
    return messages


def _counts(
    table: _Table, row: int | None, values: Floats, exposure: float, good: NDArray[np.bool_]
) -> tuple[Floats, Floats | None]:
    """Return counts, and their errors (None if they are Poisson); NaN in bad channels with invalid values."""
    where, rate = table.location(row), table.quantity == "RATE"
    counts = values * exposure if rate else values
    reject(~np.isfinite(counts) & good, counts, f"{where}, {table.quantity}", "a finite number")
    counts = np.where(np.isfinite(counts), counts, np.nan)
    nearest = np.round(counts)
    is_whole = bool((np.abs(counts - nearest) <= ROUNDING[0] + ROUNDING[1] * np.abs(counts))[~np.isnan(counts)].all())
    poisserr = table.hdu.header.get("POISSERR")
    has_error = "STAT_ERR" in table.columns or "STAT_ERR" in table.hdu.header
    if poisserr is True or (is_whole and not (rate and poisserr is False and has_error)):
        counts = nearest if is_whole else counts
        reject((counts < 0) & good, counts, f"{where}, {table.quantity}", "counts of 0 or more")
        return np.where(counts < 0, np.nan, counts + 0.0), None  # a rate of -0.0 is 0
    if not has_error:
        raise DataError(
            f"{where}: expected whole numbers of counts, POISSERR = T, or errors in STAT_ERR; found none of these."
        )
    error = table.per_channel("STAT_ERR", np.nan, row, len(counts)) * (exposure if rate else 1.0)
    valid = np.isfinite(error) & (error >= 0)
    reject(~valid & good, error, f"{where}, STAT_ERR", "an error of 0 or more")
    return np.where(valid, nearest if is_whole else counts, np.nan), np.where(valid, error, np.nan)


def read_spectrum(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
    name: str | None = None,
    cache: dict | None = None,
) -> Spectrum:
    """Read a spectrum with its background and response.

    Raises DataError if a file is missing or cannot be read, or if channels or energies differ between files.

    Parameters
    ----------
    path : path
        PHA file of type I, or ``file{row}`` of type II.
    background, rmf, arf : path, optional
        Files to use instead of those named in the header; ``"none"`` for no file. File names in the header are relative
        to the folder of the spectrum; files are also looked for directly in that folder, and with the suffix ``.gz``. A
        number in braces selects one of several spectra or matrices in a file; the default is the row of the spectrum.
        Responses of several files are added, as in ``rmf="leg_1.rmf + leg_2.rmf"`` for overlapping orders of a grating.
        Backgrounds of several files, as in ``background="left.pha + right.pha"``, are added as regions with one
        background; see `hbm_jax.spectra.folding.spectrum.summed_background`.
        In names of responses ``{arm}`` (meg), ``{ARM}`` (MEG) and ``{order}`` (-1) are those of a grating spectrum.
    name : str, optional
        Name of the source; default: the name of the file.
    cache : dict, optional
        Cache of files already read. With the same dictionary in all calls, a redistribution matrix shared by several
        spectra is read and stored once.
    """
    base, numbers = selected_rows(path)
    spectra = _rows(base, numbers, False)
    if len(spectra) != 1 or spectra[0] is None:
        raise DataError(
            f"{path}: expected one spectrum; found {len(spectra)} (type II). Select one, as in '{base.name}{{1}}', or "
            "read all with read_spectra."
        )
    files = {"background": background, "rmf": rmf, "arf": arf}
    row = numbers[0] if numbers else None
    spectrum = _with_files(spectra[0], base, row, files, name, {} if cache is None else cache)
    if spectrum is None:
        raise DataError(f"{path}: expected a background with a positive exposure [s]; found none.")
    return spectrum


def read_spectra(
    path: str | Path,
    *,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
    background_rmf: str | Path | None = None,
    background_arf: str | Path | None = None,
) -> list[Spectrum]:
    """Read all spectra of a PHA file of type II with their backgrounds and responses.

    Raises DataError as for `read_spectrum`; also if no row remains. A file of type I gives a single spectrum. Rows
    without a positive exposure of source or background are left out with a warning.

    Parameters
    ----------
    path, background, rmf, arf
        As for `read_spectrum`. Several rows may be selected, as in ``name.pha{3, 4}`` or ``name.pha{MEG -1, MEG +1}``.
        Of several spectra, matrices or areas in a background or response file, each row uses the one with its own
        number.
    background_rmf, background_arf : path, optional
        Files of a response of the background region, ``background.response``; ``"header"`` for those named in the
        header of the background. By default no such response is read.
    """
    files = {"background": background, "rmf": rmf, "arf": arf}
    rows = read_rows(path, files | {"background_rmf": background_rmf, "background_arf": background_arf})
    spectra = [spectrum for spectrum in rows if spectrum is not None]
    if not spectra:
        raise DataError(f"{path}: expected spectra and backgrounds with positive exposures [s]; found none.")
    return spectra


def read_rows(path: str | Path, files: Mapping[str, Any]) -> list[Spectrum | None]:
    """Read all rows of a PHA file as `read_spectra` does with these files; None for each row that it leaves out.

    ``files["rmf"]`` may be a list, with a file for each row.
    """
    base, selected = selected_rows(path)
    spectra = _rows(base, selected, False)
    cache: dict = {}
    numbers: Sequence[int | None] = selected or (range(1, len(spectra) + 1) if len(spectra) > 1 else [None])
    rmf = files.get("rmf")
    files_of_rows = [{**files, "rmf": name} for name in (rmf if isinstance(rmf, list) else [rmf] * len(spectra))]
    return [
        None if spectrum is None else _with_files(spectrum, base, row, row_files, None, cache)
        for spectrum, row, row_files in zip(spectra, numbers, files_of_rows, strict=True)
    ]


def _with_files(
    spectrum: Spectrum, base: Path, row: int | None, files: Mapping[str, Any], name: str | None, cache: dict
) -> Spectrum | None:
    """Return the spectrum in `row` with its background and response; None if the background has no exposure."""
    cached = cached_in(cache)
    background_files = files_of(spectrum, base, "BACKFILE", files.get("background"))
    if files.get("background") is not None:
        spectrum = replace(spectrum, background=None)  # also that of columns of the spectrum
    background_base = background_files[0][0] if background_files else base
    if background_files:
        backgrounds = []
        for file in background_files:
            rows = cached(_rows, file[0], None, True)
            number = number_in_file(file, len(rows), row, "spectra", "background")
            _reject_own_file(file[0], number, base, row or 1)
            background = rows[number - 1]
            if background is None:
                return None
            align(file[0], background.channels, base, spectrum)
            backgrounds.append(background)
        if len(set(background_files)) < len(background_files):
            raise DataError(f"{base}: expected different backgrounds to add; found {files['background']!r}.")
        background = summed_background(backgrounds)
        spectrum = replace(spectrum, background=background, warnings=(*spectrum.warnings, *background.warnings))
    if files.get("background_rmf") is not None and len(background_files) > 1:
        raise DataError(
            f"{base}: expected one background where it has a response of its own; found {len(background_files)} that "
            "are added. Use background_response 'rmf' or 'source'."
        )
    if files.get("background_rmf") is not None and spectrum.background is not None:
        names = (files["background_rmf"], files.get("background_arf"))
        rmf, arf = (None if name == HEADER else name for name in names)
        response, texts = response_of(spectrum.background, background_base, row, rmf, arf, cached)
        background = replace(spectrum.background, response=response)
        spectrum = replace(spectrum, background=background, warnings=(*spectrum.warnings, *texts))
    response, texts = response_of(spectrum, base, row, files.get("rmf"), files.get("arf"), cached)
    spectrum = replace(spectrum, response=response, warnings=(*spectrum.warnings, *texts))
    return spectrum if name is None else replace(spectrum, name=name)


def _reject_own_file(path: Path, number: int, base: Path, row: int) -> None:
    """Raise DataError if the background is the spectrum itself: the same extension and row of the same file."""
    if number != row or not (os.path.isfile(base) and os.path.samefile(path, base)):
        return
    with opened(path) as hdus:
        is_same_table = spectrum_table(hdus, path, True) is spectrum_table(hdus, path, False)
    if is_same_table:
        no_file = Remedy("background", "none")
        raise DataError(
            f"{base}, BACKFILE: expected another file, or an extension SPECTRUM with HDUCLAS2 = BKG in this one; found "
            f"the file itself without such an extension. Name the background (background=PATH), or none ({no_file}).",
            [no_file],
        )
