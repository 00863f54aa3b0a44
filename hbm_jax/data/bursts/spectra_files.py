"""Readers of gamma-ray bursts in OGIP format: PHA II files with background and responses, and catalogues."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.data.bursts.spectra import SAME_TIME, BurstObservation, BurstSpectra, Range
from hbm_jax.data.catalogues import possible_stems, read_catalogue
from hbm_jax.data.columns import BURST_REDSHIFT, TEXT
from hbm_jax.names import listed
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.pha import read_pha, read_rows
from hbm_jax.spectra.ogip.response_files import file_of
from hbm_jax.spectra.ogip.responses import num_matrices
from hbm_jax.spectra.ogip.tables import numbered
from hbm_jax.spectra.ogip.type2 import read_detector, read_intervals, read_matrix_times
from hbm_jax.validation import DataError

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
    """Read the spectra of one burst.

    Raises DataError for files that cannot be read, or whose intervals differ between detectors.

    Parameters
    ----------
    files : mapping or sequence of paths
        PHA files of type II, one per detector: ``{"n3": path, "b0": path}``. Instead of a path, a mapping with
        ``spectrum`` and optionally ``background``, ``rmf`` and ``arf`` overrides the files named in the header. For a
        sequence, detector names are read from the headers (DETNAM, else the end of INSTRUME).
    name : str
        Name of the burst.
    z : float
        Redshift.
    energies : mapping, optional
        Energy ranges to use [keV], by detector; only channels entirely within a range are used. Defaults: 8 to 900 keV
        for detectors ``n0`` to ``nb``, 250 to 40000 keV for ``b0`` and ``b1``, all channels for others.
    intervals : sequence of int, optional
        Rows to use, from 1; by default all rows with a positive exposure in at least one detector.
    reference : str, optional
        Reference detector, whose effective area is not scaled; the first by default.
    grouping, group_by, bad_channels
        As in `BurstSpectra.of`.

    Notes
    -----
    If a response file has several matrices (RSP II) and none is selected as ``file{number}``, each interval uses the
    matrix whose time range contains the middle of the interval, else the nearest in time; without times in the file,
    the matrix with the number of its row. Identical matrices are stored once.

    Examples
    --------
    >>> read_burst({"n3": "n3.pha", "b0": "b0.pha"}, name="GRB 160910A", z=1.2)  # doctest: +SKIP
    """
    observation = _read(files, name, z, energies or {}, intervals, reference, {})
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
    """Read a catalogue of bursts and the spectra of every burst.

    Parameters
    ----------
    source
        Catalogue: path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns:
        ``name`` and ``z``; optional ``detectors`` (names separated by blanks or commas; the first is the reference),
        ``reference``, and ``intervals`` (rows to use, from 1, such as ``"2-8"`` or ``"1,3,4"``).
    columns, format, missing
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`.
    spectra
        Folder that contains one folder per burst, named like the burst (blanks may be omitted or replaced with ``_``),
        with one PHA file per detector; by default the folder of the catalogue. Without a column ``detectors``, all PHA
        files are read in alphabetical order, except those whose names end in ``bak``, ``bkg``, ``back`` or
        ``background``.
    energies, grouping, group_by, bad_channels
        As in `read_burst`, for all bursts.
    leave_out
        As in `hbm_jax.data.read_afterglows`, which raises the same errors.

    Examples
    --------
    >>> read_burst_spectra("bursts.ecsv", energies={"n3": (10.0, 900.0)})  # doctest: +SKIP
    """
    catalogue = read_catalogue(
        source, COLUMNS, columns=columns, format=format, missing=missing, spectra=spectra, leave_out=leave_out,
        aliases=ALIASES,
    )  # fmt: skip
    options: dict[str, Any] = {"grouping": grouping, "group_by": group_by, "bad_channels": bad_channels}
    rmf_cache: dict = {}

    def read(row: int, name: str) -> BurstObservation:
        detectors, reference, intervals = (catalogue.text(key, row) for key in ("detectors", "reference", "intervals"))
        files = _files_of(name, catalogue.folder, detectors)
        z = catalogue.numbers(row)["z"]
        ranges = {key: value for key, value in (energies or {}).items() if key in files}
        rows = _rows(intervals, catalogue.label("intervals", row))
        burst = _read(files, name, z, ranges, rows, reference or None, rmf_cache)
        BurstSpectra.of([burst], **options)  # raises the errors of this burst
        return burst

    bursts, left_out = catalogue.read_each(read, "burst")
    data = BurstSpectra.of(bursts, left_out=left_out, **options)
    stack = dataclasses.replace(data.spectra, warnings=(*data.spectra.warnings, *catalogue.warnings))
    return dataclasses.replace(data, spectra=stack)


def _read(
    files: Files,
    name: str,
    z: float,
    energies: Mapping[str, Range],
    intervals: Sequence[int] | None,
    reference: str | None,
    rmf_cache: dict,
) -> BurstObservation:
    """Read all detectors of a burst; raise DataError if their intervals differ."""
    if not isinstance(files, Mapping):
        files = {read_detector(path): path for path in files}
    spectra: dict[str, list[Spectrum | None]] = {}
    times: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for detector, entry in files.items():
        file_names = dict(entry) if isinstance(entry, Mapping) else {"spectrum": entry}
        if not {"spectrum"} <= file_names.keys() <= set(FILES):
            raise DataError(f"{name}, {detector}: expected the files {listed(FILES)}; found {listed(file_names)}.")
        path = paths[detector] = Path(file_names.pop("spectrum"))
        times[detector] = read_intervals(path)
        spectra[detector] = _detector(path, times[detector], file_names, rmf_cache)
    start, stop = _common_intervals(paths, spectra, times)
    for number in intervals or ():
        if not 1 <= number <= len(start):
            raise DataError(f"{name}: intervals: expected numbers from 1 to {len(start)}; found {number}.")
    requested = range(len(start)) if intervals is None else [number - 1 for number in intervals]
    rows = [row for row in requested if any(rows_read[row] is not None for rows_read in spectra.values())]
    if not rows or (intervals is not None and len(rows) < len(requested)):
        without = [str(row + 1) for row in requested if row not in rows]
        raise DataError(
            f"{name}: intervals: expected a positive exposure in at least one detector; found none in interval "
            f"{listed(without)}."
        )
    selected = {detector: [rows_read[row] for row in rows] for detector, rows_read in spectra.items()}
    return BurstObservation(name, z, start[rows], stop[rows], selected, energies, reference)


def _common_intervals(paths: Mapping[str, Path], spectra: Mapping[str, Sequence], times: Mapping[str, Any]):
    """Return start and stop of the intervals, which must agree between detectors.

    Without times in any file, interval n is from n to n + 1.
    """
    first, *_ = spectra
    num = len(spectra[first])
    numbers = np.arange(num + 1.0)
    start, stop = next((t for t in times.values() if t is not None), (numbers[:-1], numbers[1:]))
    for detector, path in paths.items():
        if len(spectra[detector]) != num:
            raise DataError(f"{path}: expected {num} spectra, as in {paths[first]}; found {len(spectra[detector])}.")
        if times[detector] is None:
            continue
        allowed = SAME_TIME * np.maximum(1.0, stop - start)
        differs = np.maximum(*(np.abs(a - b) for a, b in zip(times[detector], (start, stop), strict=True))) > allowed
        if differs.any():
            row = int(differs.argmax())
            other_start, other_stop = (float(t[row]) for t in times[detector])
            raise DataError(
                f"{path}[SPECTRUM], TSTART, row {row}: expected the interval {start[row]:g} to {stop[row]:g} s of "
                f"{paths[first]}; found {other_start:g} to {other_stop:g} s."
            )
    return start, stop


def _detector(path: Path, times: Any, files: Mapping[str, Any], rmf_cache: dict) -> list[Spectrum | None]:
    """Read the spectra of a detector, each with the response of its time; None for intervals without exposure."""
    response = files.get("rmf") or _response_in_header(path)
    file, number = numbered(response) if response is not None else (None, None)
    is_rsp2 = file is not None and number is None and file.is_file() and num_matrices(file) > 1
    matrix_times = read_matrix_times(file) if is_rsp2 and times is not None else None  # type: ignore[arg-type]
    if matrix_times is not None:
        middle = 0.5 * (times[0] + times[1])
        outside = np.maximum(matrix_times[0] - middle[:, None], middle[:, None] - matrix_times[1])
        centre = np.abs(0.5 * (matrix_times[0] + matrix_times[1]) - middle[:, None])
        # Nearest matrix: by distance of the interval's middle from its time range (0 within), then from its centre.
        nearest = np.lexsort((centre, np.maximum(outside, 0.0)), axis=-1)[:, 0]
        files = {**files, "rmf": [f"{file}{{{index + 1}}}" for index in nearest], "arf": files.get("arf") or "none"}
    return [_share_matrix(spectrum, rmf_cache) for spectrum in read_rows(path, files)]


def _share_matrix(spectrum: Spectrum | None, rmf_cache: dict) -> Spectrum | None:
    """Return a spectrum that shares one redistribution matrix with all spectra whose matrices are identical."""
    if spectrum is None or spectrum.response is None:
        return spectrum
    rmf, area = spectrum.response.rmf, spectrum.response.area
    arrays = (rmf.energy, rmf.matrix.data, rmf.matrix.indices, rmf.matrix.indptr, rmf.e_min, rmf.e_max, rmf.channels)
    key = tuple(array.tobytes() for array in arrays)
    first_rmf = rmf_cache.setdefault(key, rmf)
    return spectrum if first_rmf is rmf else dataclasses.replace(spectrum, response=Response.from_area(first_rmf, area))


def _response_in_header(path: Path) -> str | None:
    """Return the response file named in the header; None if rows differ or the header selects a matrix by number."""
    base, _ = numbered(path)
    files = {file_of(spectrum, base, "RESPFILE", None) for spectrum in read_pha(path)}
    first = files.pop()
    return str(first[0]) if first is not None and first[1] is None and not files else None


def _files_of(name: str, folder: Path, detectors: str) -> dict[str, Path]:
    """Return the PHA files of a burst, by detector."""
    stems = possible_stems(name)
    burst_folder = next((folder / stem for stem in stems if (folder / stem).is_dir()), None)
    if burst_folder is None:
        raise DataError(f"expected a folder {folder / stems[0]} with the spectra of the burst; found none.")
    paths = sorted(path for path in burst_folder.iterdir() if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if not NOT_SPECTRA.search(path.stem)]
    names = [word for word in re.split(r"[\s,]+", detectors) if word]
    if not names:
        if not paths:
            raise DataError(
                f"{burst_folder}: expected PHA files ({', '.join(SUFFIXES)}), one per detector; found none."
            )
        return {path.stem: path for path in paths}
    files = {}
    for detector in names:
        matches = [path for path in paths if path.stem == detector]
        if len(matches) != 1:
            raise DataError(
                f"{burst_folder}: expected one file {detector}{{{','.join(SUFFIXES)}}}; "
                f"found {listed(p.name for p in paths)}."
            )
        files[detector] = matches[0]
    return files


def _rows(text: str, where: str) -> list[int] | None:
    """Parse numbers of intervals such as ``2-8`` or ``1,3,4``; None for all."""
    if not text:
        return None
    rows: list[int] = []
    for part in re.split(r"[\s,]+", text):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise DataError(f"{where}: expected numbers of intervals such as '2-8' or '1,3,4'; found {text!r}.")
        rows += range(int(match[1]), int(match[2] or match[1]) + 1)
    return rows
