"""Background and response files of a spectrum, named in its header or by options."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hbm_jax.spectra.folding.response import Arf, Response, Rmf, summed_response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.gratings import file_name
from hbm_jax.spectra.ogip.responses import area_warnings, num_areas, num_matrices, read_arf, read_rmf
from hbm_jax.spectra.ogip.tables import numbered
from hbm_jax.validation import DataError, Remedy, warn_unusual

NONE = ("", "none", "null")  # values of a header keyword that mean no file
OPTIONS = {"BACKFILE": "background", "RESPFILE": "rmf", "ANCRFILE": "arf"}
PLUS = " + "  # between the names of background or response files that are added
File = tuple[Path, int | None]


def cached_in(cache: dict) -> Callable:
    """Return a function that calls a reader, or returns its result from the cache if the file has been read before."""

    def cached(read: Callable, *key):
        if (read, *key) not in cache:
            cache[read, *key] = read(*key)
        return cache[read, *key]

    return cached


def response_of(
    spectrum: Spectrum, base: Path, row: int | None, rmf: str | None, arf: str | None, cached: Callable
) -> tuple[Response | None, tuple[str, ...]]:
    """Read the response of a spectrum; return it, or None if no file is named, and warnings.

    Parameters
    ----------
    spectrum, base, row
        Spectrum, the path of its file, and its number in the file or None.
    rmf, arf : str, optional
        Names that replace those of the header; several names with " + " between them are added.
    cached : callable
        Result of `cached_in`.
    """
    names = {"RESPFILE": rmf, "ANCRFILE": arf}
    rmf_files, arf_files = (files_of(spectrum, base, key, name) for key, name in names.items())
    if not rmf_files:
        return None, ()
    if arf_files and len(arf_files) != len(rmf_files):
        raise DataError(
            f"{base}: expected an ARF for each of {len(rmf_files)} response files that are added; found "
            f"{len(arf_files)}."
        )
    parts, texts = [], []
    areas: Sequence[File | None] = arf_files or [None] * len(rmf_files)
    for rmf_file, arf_file in zip(rmf_files, areas, strict=True):
        number = number_in_file(rmf_file, cached(num_matrices, rmf_file[0]), row, "matrices", "rmf")
        redistribution = cached(read_rmf, rmf_file[0], number)
        align(rmf_file[0], redistribution.channels, base, spectrum)
        area = None
        if arf_file is not None:
            number = number_in_file(arf_file, cached(num_areas, arf_file[0]), row, "areas", "arf")
            area = cached(read_arf, arf_file[0], number)
        texts += [*redistribution.warnings, *cached(_warn_of_areas, redistribution, area)]
        parts.append((redistribution, area))
    # Sums are cached, so that spectra with the same response share one matrix.
    return (Response.of(*parts[0]) if len(parts) == 1 else cached(_summed, *parts)), tuple(texts)


def _summed(*parts: tuple[Rmf, Arf | None]) -> Response:
    """Return the sum of responses."""
    return summed_response([Response.of(*part) for part in parts])


def files_of(spectrum: Spectrum, base: Path, key: str, name: str | Path | None) -> list[File]:
    """Return the files of a spectrum of one kind (BACKFILE, RESPFILE or ANCRFILE); of several, those that are added."""
    if name is None:
        names: list[str | None] = [None]
    else:
        names = [file_name(part.strip(), spectrum.order, str(base)) for part in str(name).split(PLUS)]
    return [file for file in (file_of(spectrum, base, key, part) for part in names) if file is not None]


def _warn_of_areas(rmf: Rmf, arf: Arf | None) -> tuple[str, ...]:
    """Warn of a missing or doubled effective area; return the messages."""
    return warn_unusual(area_warnings(rmf, arf), stacklevel=6)


def file_of(spectrum: Spectrum, base: Path, key: str, file_name: str | Path | None) -> File | None:
    """Return path and number of a background or response file of a spectrum, or None if it has none."""
    if file_name is not None:
        return None if str(file_name).strip().lower() in NONE else numbered(file_name)
    header_name = spectrum.files.get(key)
    if header_name is None:
        return None
    # Without the name of an extension, as in PN.rmf[MATRIX].
    path, number = numbered(re.sub(r"\[[^\]]*\]$", "", header_name))
    for candidate in (base.parent / path, base.parent / path.name):
        for name in (str(candidate), f"{candidate}.gz"):
            if os.path.isfile(name):  # unlike Path.is_file, False for invalid file names
                return Path(name), number
    no_file = Remedy(OPTIONS[key], "none")
    raise DataError(
        f"{base}, {key}: expected the file {header_name!r} in the folder of the spectrum; found no such file. Name "
        f"another ({OPTIONS[key]}=PATH), or none ({no_file}).",
        [no_file],
    )


def number_in_file(file: File, num: int, row: int | None, kind: str, option: str) -> int:
    """Return the number, from 1, of the spectrum or matrix to use from a background or response file."""
    path, number = file
    number = number or (1 if num <= 1 else row)
    if number is None:
        raise DataError(f"{path}: expected one; found {num} {kind}. Select one ({option}='{path.name}{{1}}').")
    if number > max(num, 1):
        raise DataError(f"{path}: expected at least {number} {kind}, for the spectrum of that row; found {num}.")
    return number


def align(path: Path, channels, base: Path, spectrum: Spectrum) -> None:
    """Raise DataError unless a file has the channels of the spectrum."""
    if not np.array_equal(channels, spectrum.channels):
        raise DataError(
            f"{path}: expected the channels {spectrum.channels[0]} to {spectrum.channels[-1]} of {base}; found "
            f"{channels[0]} to {channels[-1]}."
        )
