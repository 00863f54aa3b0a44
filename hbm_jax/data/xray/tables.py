"""Reader of afterglows from a catalogue of redshifts and a folder of OGIP spectra."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbm_jax.data.building import named_errors
from hbm_jax.data.catalogues import Catalogue, possible_stems, read_catalogue
from hbm_jax.data.columns import TEXT
from hbm_jax.data.xray.afterglows import COLUMNS, LIMITS, Afterglows
from hbm_jax.names import listed
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.pha import read_spectrum
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError

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
    """Read a catalogue of afterglows and the spectrum of every source.

    Raises FileNotFoundError if the catalogue or the folder does not exist, and DataError for invalid catalogues and
    spectra. All sources are read first; the message lists every invalid source and the reason.

    Parameters
    ----------
    source
        Catalogue: path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns:
        ``name`` and ``z``; optional ``sigma_z``, ``nh_mw`` and ``sigma_nh_mw`` [1e22 cm^-2]; ``log10_flux_limit``
        [log10 of erg/cm^2/s], the limit of a selection for each source; and file names
        ``spectrum``, ``background``, ``rmf``, ``arf``, relative to the folder of spectra, which override the spectrum
        named like the source and the files named in its header.
    columns, format, missing
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`.
    spectra
        Folder of the spectra; by default the folder of the catalogue. The file of a source, with a suffix ``.pha``,
        ``.pi``, ``.fits``, ``.fit`` or ``.ds``, is named like the source (blanks may be omitted or replaced with
        ``_``), and lies in this folder or in a subfolder named like the source.
    rmf
        Redistribution matrix that overrides that of the header, for sources without an entry ``rmf`` in the catalogue.
    energies
        Energy range to use [keV]; only channels entirely within it are used.
    grouping
        Method of `hbm_jax.spectra.group` by which channels are grouped.
    group_by
        Argument of that method: counts, signal-to-noise ratio, or number of channels per group.
    bad_channels
        True: include channels flagged as bad in the file.
    leave_out
        Names of sources to leave out; ``"bad"`` leaves out those that cannot be read, with a warning.

    Examples
    --------
    >>> read_afterglows("catalog.ecsv", spectra="spectra", leave_out=["GRB 060607A"])  # doctest: +SKIP
    """
    catalogue = read_catalogue(
        source, {"name": TEXT, **COLUMNS, **LIMITS, **dict.fromkeys(FILES, TEXT)}, columns=columns, format=format,
        missing=missing, spectra=spectra, leave_out=leave_out, aliases=ALIASES,
    )  # fmt: skip
    cache: dict = {}

    def read(row: int, name: str) -> tuple[Spectrum, NDArray[np.bool_], dict[str, float]]:
        spectrum = _read(catalogue, row, name, rmf, cache)
        mask = noticed(spectrum, energies, keep_bad=bad_channels)
        grouped = group(spectrum, grouping, group_by, noticed=mask)
        SpectrumStack.of([grouped], [mask], poisson=True)  # raises the errors of this spectrum
        return grouped, mask, catalogue.numbers(row)

    sources, left_out = catalogue.read_each(read, "source")
    grouped, masks, numbers = zip(*sources, strict=True)
    stack = SpectrumStack.of(grouped, masks, poisson=True)
    stack = dataclasses.replace(stack, warnings=(*stack.warnings, *catalogue.warnings))
    present = [key for key in (*COLUMNS, *LIMITS) if key in catalogue.column_names]
    values: dict[str, Any] = {key: np.array([row[key] for row in numbers]) for key in present}
    with named_errors(catalogue.origin):
        return Afterglows.from_spectra(stack, left_out=left_out, column_names=catalogue.column_names, **values)


def _read(catalogue: Catalogue, row: int, name: str, rmf: str | None, cache: dict) -> Spectrum:
    """Read the spectrum of one source; redistribution matrices shared by several sources are read once."""
    texts = {key: catalogue.text(key, row) for key in FILES}
    folder = catalogue.folder
    paths: dict[str, Any] = {
        key: folder / text if text.lower() != "none" else text for key, text in texts.items() if text
    }
    path = paths.pop("spectrum", None) or _spectrum_of(name, folder)
    if rmf is not None:
        paths.setdefault("rmf", Path(rmf))
    return read_spectrum(path, name=name, cache=cache, **paths)


def _spectrum_of(name: str, folder: Path) -> Path:
    """Return the only spectrum file that is named like a source; raise DataError unless there is exactly one."""
    stems = possible_stems(name)
    folders = [folder, *(folder / stem for stem in stems)]
    matches = [parent / f"{stem}{suffix}" for parent in folders for stem in stems for suffix in SUFFIXES]
    matches = [path for path in matches if path.is_file()]
    if len(matches) != 1:
        expected = f"one file {folder / stems[0]}{{{','.join(SUFFIXES)}}}, or a column 'spectrum' that names it"
        raise DataError(f"expected {expected}; found {listed(map(str, matches)) if matches else 'none'}.")
    return matches[0]
