"""Gamma-ray bursts from OGIP files: PHA II of every detector with background and responses, and catalogues."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.bursts.spectra import SAME_TIME, BurstObservation, BurstSpectra, Range
from hbm_jax.data.catalogues import numbers_of, read_catalogue, refuse_bad
from hbm_jax.data.columns import BURST_REDSHIFT, TEXT
from hbm_jax.names import listed
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.pha import read_pha, read_rows
from hbm_jax.spectra.ogip.responses import area_warnings, num_matrices, read_arf, read_rmf
from hbm_jax.spectra.ogip.tables import numbered
from hbm_jax.spectra.ogip.type2 import read_detector, read_intervals, read_matrix_times
from hbm_jax.validation import DataError, tell

__all__ = ["read_burst", "read_burst_spectra"]

FILES = ("spectrum", "background", "rmf", "arf")
SUFFIXES = (".pha", ".pha2", ".pi", ".fits", ".fit")
NOT_SPECTRA = re.compile(r"(bak|bkg|back|background)$", re.IGNORECASE)  # at the end of a file's stem
COLUMNS = {"name": TEXT, "z": BURST_REDSHIFT, "detectors": TEXT, "reference": TEXT, "intervals": TEXT}
ALIASES = {"name": "burst", "z": "redshift"}
Files = Mapping[str, str | Path | Mapping[str, str | Path]] | Sequence[str | Path]


def read_burst(
    files: Files,
    *,
    name: str,
    z: float,
    energies: Mapping[str, Range] | None = None,
    intervals: Sequence[int] | None = None,
    reference: str | None = None,
    grouping: str = "none",
    group_by: float | None = None,
    bad_channels: bool = False,
) -> BurstSpectra:
    """Read one burst.

    Parameters
    ----------
    files : mapping or sequence of paths
        PHA files of type II, one a detector: ``{"n3": path, "b0": path}``, where a path may also be a mapping of
        ``spectrum`` and, instead of what its header names, ``background``, ``rmf`` and ``arf``. Of a sequence, the
        detectors are named by the headers (DETNAM, else the end of INSTRUME).
    name : str
        Of the burst.
    z : float
        Its redshift.
    energies : mapping, optional
        Ranges to use by detector [keV], channels that lie wholly within; by default 8 to 900 keV of detectors ``n0``
        to ``nb``, 250 to 40000 keV of ``b0`` and ``b1``, all of others.
    intervals : sequence of int, optional
        Rows to use, from 1; by default all that have a positive exposure in a detector.
    reference : str, optional
        Detector to whose effective area those of the others are relative; the first by default.
    grouping, group_by, bad_channels
        As in `BurstSpectra.of`.

    Returns
    -------
    BurstSpectra

    Raises
    ------
    DataError
        For files that cannot be read or do not belong together.

    Notes
    -----
    Of a response file with several matrices (RSP II) that is not asked for one of them by ``file{number}``, the matrix
    whose times hold the middle of the interval is taken, else the nearest in time; without times, that of the row.
    Matrices with the same numbers are held once.

    Examples
    --------
    >>> read_burst({"n3": "n3.pha", "b0": "b0.pha"}, name="GRB 160910A", z=1.2)  # doctest: +SKIP
    """
    given = (name, z, energies or {}, intervals, reference)
    observation = _read(files, *given, {})
    return BurstSpectra.of([observation], grouping=grouping, group_by=group_by, bad_channels=bad_channels)


def read_burst_spectra(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    spectra: str | Path | None = None,
    energies: Mapping[str, Range] | None = None,
    grouping: str = "none",
    group_by: float | None = None,
    bad_channels: bool = False,
    leave_out: str | Sequence[str] = (),
) -> BurstSpectra:
    """Read a catalogue and all spectra of every burst in it.

    Parameters
    ----------
    source
        Catalogue: path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns:
        ``name`` and ``z``; optional ``detectors`` (names with blanks or commas between them, in whose order the first
        one is the reference), ``reference``, and ``intervals`` (rows to use from 1, such as ``"2-8"`` or ``"1,3,4"``).
    columns
        Which column of the table is which, standard name to the table's.
    format
        File format of the catalogue, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    spectra
        Folder with a folder for each burst, of its name (blanks left out or written as ``_`` if need be), in which
        there is a PHA file for each detector; that of the catalogue by default. Without a column ``detectors``: all
        PHA files whose names do not end in ``bak``, ``bkg`` or ``back``, by name.
    energies, grouping, group_by, bad_channels
        As in `read_burst`, by detector, for all bursts.
    leave_out
        Bursts to leave out, by name; ``"bad"`` leaves out those that cannot be read, and says so.

    Returns
    -------
    BurstSpectra

    Raises
    ------
    FileNotFoundError
        If the catalogue or the folder does not exist.
    DataError
        For everything else that is wrong. All bursts are tried first; the message names every bad one and why.

    Examples
    --------
    >>> read_burst_spectra("bursts.ecsv", energies={"n3": (10.0, 900.0)})  # doctest: +SKIP
    """
    catalogue = read_catalogue(
        source, COLUMNS, columns=columns, format=format, missing=missing, spectra=spectra, leave_out=leave_out,
        aliases=ALIASES,
    )  # fmt: skip
    found, values = catalogue.found, catalogue.values
    read: list[BurstObservation] = []
    bad: list[tuple[str, str]] = []
    shared: dict = {}
    options: dict[str, Any] = {"grouping": grouping, "group_by": group_by, "bad_channels": bad_channels}
    for row in catalogue.rows:
        name = catalogue.names[row]
        try:
            text = {key: _text(values[key][row]) for key in ("detectors", "reference", "intervals") if key in values}
            files = _files_of(name, catalogue.folder, text.get("detectors", ""))
            z = numbers_of(catalogue, row)["z"]
            ranges = {key: value for key, value in (energies or {}).items() if key in files}
            rows = _rows(text.get("intervals", ""), f"{found.get('intervals')}, row {row}")
            burst = _read(files, name, z, ranges, rows, text.get("reference") or None, shared)
            BurstSpectra.of([burst], **options)
            read.append(burst)
        except DataError as error:
            bad.append((name, str(error)))
    refuse_bad(catalogue, bad, leave_out, "burst")
    data = BurstSpectra.of(read, left_out=[*catalogue.left_out, *bad], **options)
    stack = dataclasses.replace(data.spectra, warnings=(*data.spectra.warnings, *catalogue.warnings))
    return dataclasses.replace(data, spectra=stack)


def _read(
    files: Files,
    name: str,
    z: float,
    energies: Mapping[str, Range],
    intervals: Sequence[int] | None,
    reference: str | None,
    shared: dict,
) -> BurstObservation:
    """Read all detectors of a burst, and see that they have the same intervals."""
    if not isinstance(files, Mapping):
        files = {read_detector(path): path for path in files}
    spectra: dict[str, Sequence[Spectrum | None]] = {}
    times: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for detector, given in files.items():
        named = dict(given) if isinstance(given, Mapping) else {"spectrum": given}
        unknown = [key for key in named if key not in FILES]
        if unknown or "spectrum" not in named:
            raise DataError(f"{name}, {detector}: expected the files {listed(FILES)}; found {listed(named)}.")
        paths[detector] = Path(named.pop("spectrum"))
        times[detector] = read_intervals(paths[detector])
        spectra[detector] = _detector(paths[detector], times[detector], named, shared)
    first = next(iter(spectra))
    known = next((t for t in times.values() if t is not None), None)
    num = len(spectra[first])
    start, stop = known if known is not None else (np.arange(num, dtype=float), np.arange(1.0, num + 1.0))
    for detector, own in spectra.items():
        if len(own) != num:
            raise DataError(f"{paths[detector]}: expected {num} spectra, as {paths[first]} has; found {len(own)}.")
        if times[detector] is not None:
            allowed = SAME_TIME * np.maximum(1.0, stop - start)
            apart = np.maximum(*(np.abs(a - b) for a, b in zip(times[detector], (start, stop), strict=True))) > allowed
            if apart.any():
                row = int(apart.argmax())
                begin, end = (float(t[row]) for t in times[detector])
                raise DataError(
                    f"{paths[detector]}[SPECTRUM], TSTART, row {row}: expected the interval {start[row]:g} to "
                    f"{stop[row]:g} s of {paths[first]}; found {begin:g} to {end:g} s."
                )
    for number in intervals or ():
        if not 1 <= number <= num:
            raise DataError(f"{name}: intervals: expected numbers from 1 to {num}; found {number}.")
    asked = range(num) if intervals is None else [number - 1 for number in intervals]
    # Without those in which no detector has an exposure.
    rows = [row for row in asked if any(own[row] is not None for own in spectra.values())]
    if not rows or (intervals is not None and len(rows) < len(asked)):
        raise DataError(f"{name}: expected intervals with a positive exposure in a detector; found one without.")
    used = {detector: [own[row] for row in rows] for detector, own in spectra.items()}
    return BurstObservation(name, z, start[rows], stop[rows], used, energies, reference)


def _detector(path: Path, times: Any, named: Mapping[str, Any], shared: dict) -> list[Spectrum | None]:
    """Spectra of one detector, each with the matrix of its time; None in place of one without exposure."""
    response = named.get("rmf") or _response_in_header(path)
    file, number = numbered(response) if response is not None else (None, None)
    several = file is not None and number is None and file.is_file() and num_matrices(file) > 1
    matrix_times = read_matrix_times(file) if several and times is not None else None  # type: ignore[arg-type]
    if matrix_times is None:
        return [_held_once(one, shared) for one in read_rows(path, **named)]
    area = named.get("arf")
    arf = None if area is None or str(area).lower() == "none" else read_arf(area)
    plain = read_rows(path, **{**named, "rmf": "none", "arf": "none"})
    middle = 0.5 * (times[0] + times[1])
    outside = np.maximum(matrix_times[0] - middle[:, None], middle[:, None] - matrix_times[1])
    centre = np.abs(0.5 * (matrix_times[0] + matrix_times[1]) - middle[:, None])
    # The one that holds the middle; of several or none, the nearest.
    chosen = np.lexsort((centre, np.maximum(outside, 0.0)), axis=-1)[:, 0]
    matrices = {int(k): read_rmf(file, int(k) + 1) for k in np.unique(chosen)}  # type: ignore[arg-type]
    told = {k: (*rmf.warnings, *tell(area_warnings(rmf, arf))) for k, rmf in matrices.items()}
    answering = [
        None
        if one is None
        else dataclasses.replace(
            one.with_response(Response.of(matrices[int(k)], arf)), warnings=(*one.warnings, *told[int(k)])
        )
        for one, k in zip(plain, chosen, strict=True)
    ]
    return [_held_once(one, shared) for one in answering]


def _held_once(spectrum: Spectrum | None, shared: dict) -> Spectrum | None:
    """Give a spectrum the matrix with the same numbers that another one has already."""
    if spectrum is None or spectrum.response is None:
        return spectrum
    rmf, area = spectrum.response.rmf, spectrum.response.area
    arrays = (rmf.energy, rmf.matrix.data, rmf.matrix.indices, rmf.matrix.indptr, rmf.e_min, rmf.e_max, rmf.channels)
    key = tuple(array.tobytes() for array in arrays)
    held = shared.setdefault(key, rmf)
    return spectrum if held is rmf else dataclasses.replace(spectrum, response=Response.from_area(held, area))


def _response_in_header(path: Path) -> str | None:
    """File of the response that the header names, if it names one and the same for all rows; without a number."""
    base, _ = numbered(path)
    named = {spectrum.files.get("RESPFILE") for spectrum in read_pha(path)}
    if len(named) != 1 or None in named:
        return None
    file, number = numbered(str(named.pop()))
    if number is not None:
        return None
    places = (base.parent / file, base.parent / file.name)
    return next((str(place) for place in places if place.is_file()), None)


def _files_of(name: str, folder: Path, detectors: str) -> dict[str, Path]:
    """Find the PHA files of a burst, by detector."""
    stems = list(dict.fromkeys([name, name.replace(" ", ""), name.replace(" ", "_")]))
    own = next((folder / stem for stem in stems if (folder / stem).is_dir()), None)
    if own is None:
        raise DataError(f"expected a folder {folder / stems[0]} with the burst's spectra; found none.")
    every = sorted(path for path in own.iterdir() if path.suffix.lower() in SUFFIXES)
    every = [path for path in every if not NOT_SPECTRA.search(path.stem)]
    wanted = [one for one in re.split(r"[\s,]+", detectors) if one]
    if not wanted:
        if not every:
            raise DataError(f"{own}: expected PHA files ({', '.join(SUFFIXES)}), one a detector; found none.")
        return {path.stem: path for path in every}
    files = {}
    for detector in wanted:
        matches = [path for path in every if path.stem == detector]
        if len(matches) != 1:
            raise DataError(
                f"{own}: expected one file {detector}{{{','.join(SUFFIXES)}}}; found {listed(p.name for p in every)}."
            )
        files[detector] = matches[0]
    return files


def _text(value: Any) -> str:
    return "" if value is None or value is np.ma.masked else str(value).strip()


def _rows(text: str, where: str) -> list[int] | None:
    """Numbers of intervals, such as ``2-8`` or ``1,3,4``."""
    if not text:
        return None
    rows: list[int] = []
    for part in re.split(r"[\s,]+", text):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise DataError(f"{where}: expected numbers of intervals such as '2-8' or '1,3,4'; found {text!r}.")
        rows += range(int(match[1]), int(match[2] or match[1]) + 1)
    return rows
