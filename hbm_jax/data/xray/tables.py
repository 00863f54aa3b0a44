"""Afterglows from a catalogue of redshifts and a folder of OGIP spectra."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.catalogues import numbers_of, read_catalogue, refuse_bad
from hbm_jax.data.columns import TEXT
from hbm_jax.data.xray.afterglows import COLUMNS, Afterglows
from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.pha import read_spectrum
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError

__all__ = ["read_afterglows"]

FILES = ("spectrum", "background", "rmf", "arf")
ALIASES = {"name": "source", "z": "redshift", "sigma_z": "redshift_error", "nh_mw": "nh_gal", "spectrum": "pha"}
SUFFIXES = (".pha", ".pi", ".fits", ".fit", ".ds")


def read_afterglows(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    spectra: str | None = None,
    rmf: str | None = None,
    energies: tuple[float, float] = (0.3, 10.0),
    grouping: str = "optimal",
    group_by: float | None = None,
    bad_channels: bool = False,
    leave_out: str | list[str] = (),  # type: ignore[assignment]
) -> Afterglows:
    """Read a catalogue and the spectrum of every source in it.

    Parameters
    ----------
    source
        Catalogue: path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns:
        ``name`` and ``z``; optional ``sigma_z``, ``nh_mw`` and ``sigma_nh_mw`` [1e22 cm^-2]; and the files
        ``spectrum``, ``background``, ``rmf``, ``arf``, relative to the folder of spectra, where they are not those
        that follow from the name and the header.
    columns
        Which column of the table is which, standard name to the table's.
    format
        File format of the catalogue, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    spectra
        Folder of the spectra; that of the catalogue by default. A source's file is named like the source, blanks
        left out or written as ``_`` if need be, with a suffix ``.pha``, ``.pi``, ``.fits``, ``.fit`` or ``.ds``, there
        or in a folder of the source's name.
    rmf
        Redistribution for sources whose catalogue row names none, instead of that of the header.
    energies
        Range to use [keV]; channels that lie wholly within it.
    grouping
        How channels are grouped: a method of `hbm_jax.spectra.group`.
    group_by
        What that method needs: the counts, the ratio of signal to noise, or the number of channels of a group.
    bad_channels
        Whether to use channels that the file marks as bad, too.
    leave_out
        Sources to leave out, by name; ``"bad"`` leaves out those that cannot be read, and says so.

    Returns
    -------
    Afterglows

    Raises
    ------
    FileNotFoundError
        If the catalogue or the folder does not exist.
    DataError
        For everything else that is wrong. All sources are tried first; the message names every bad one and why.

    Examples
    --------
    >>> read_afterglows("catalog.ecsv", spectra="spectra", leave_out=["GRB 060607A"])  # doctest: +SKIP
    """
    catalogue = read_catalogue(
        source, {"name": TEXT, **COLUMNS, **dict.fromkeys(FILES, TEXT)}, columns=columns, format=format,
        missing=missing, spectra=spectra, leave_out=leave_out, aliases=ALIASES,
    )  # fmt: skip
    values, names = catalogue.values, catalogue.names
    numbers: dict[int, dict[str, float]] = {}
    read: dict[int, Spectrum] = {}
    masks: dict[int, Any] = {}
    bad: dict[int, str] = {}
    cache: dict = {}
    for row in catalogue.rows:
        try:
            spectrum = _read(row, names[row], values, catalogue.folder, rmf, cache)
            masks[row] = noticed(spectrum, energies, keep_bad=bad_channels)
            read[row] = group(spectrum, grouping, group_by, noticed=masks[row])
            SpectrumStack.of([read[row]], [masks[row]])
            numbers[row] = numbers_of(catalogue, row)
        except DataError as error:
            bad[row] = str(error)
    named = [(names[row], why) for row, why in bad.items()]
    refuse_bad(catalogue, named, leave_out, "source")
    rows = [row for row in read if row not in bad]
    stack = SpectrumStack.of([read[row] for row in rows], [masks[row] for row in rows])
    stack = dataclasses.replace(stack, warnings=(*stack.warnings, *catalogue.warnings))
    picked = {key: np.array([numbers[row][key] for row in rows]) for key in COLUMNS if key in values}
    try:
        return Afterglows.from_spectra(
            stack,
            name=[names[row] for row in rows],
            left_out=[*catalogue.left_out, *named],
            called=catalogue.found,
            **picked,
        )
    except DataError as error:
        raise DataError(f"{catalogue.origin}: {error}") from error


def _read(row: int, name: str, values: Mapping[str, Any], folder: Path, rmf: str | None, cache: dict) -> Spectrum:
    """Read the spectrum of one source; redistributions that several share are read once."""
    named = {}
    for key in FILES:
        text = values[key][row] if key in values else None
        if text is not None and text is not np.ma.masked and str(text).strip():
            named[key] = _place(folder, str(text).strip())
    path = named.pop("spectrum", None) or _spectrum_of(name, folder)
    if rmf is not None:
        named.setdefault("rmf", Path(rmf))
    return read_spectrum(path, name=name, cache=cache, **named)


def _place(folder: Path, text: str) -> str | Path:
    return text if text.lower() == "none" else folder / text


def _spectrum_of(name: str, folder: Path) -> Path:
    """Find the file that is named like a source."""
    stems = dict.fromkeys([name, name.replace(" ", ""), name.replace(" ", "_")])
    places = [folder, *(folder / stem for stem in stems)]
    matches = [place / f"{stem}{suffix}" for place in places for stem in stems for suffix in SUFFIXES]
    matches = [path for path in matches if path.is_file()]
    if len(matches) != 1:
        wanted = f"one file {folder / next(iter(stems))}{{{','.join(SUFFIXES)}}}, or a column 'spectrum' that names it"
        raise DataError(f"expected {wanted}; found {listed(map(str, matches)) if matches else 'none'}.")
    return matches[0]
