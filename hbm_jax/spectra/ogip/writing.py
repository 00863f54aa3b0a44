"""Writers of OGIP files that XSPEC and Sherpa read: PHA of type I, RMF and ARF.

Values are restored exactly when read: a column is in single precision (E) if that represents all values exactly, and in
double precision (D) otherwise.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.files import atomic_write
from hbm_jax.spectra.folding.response import AREA_INCLUDED, Arf, Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.validation import DataError

if TYPE_CHECKING:
    from astropy.io import fits

NO_CORRECTION = {"CORRFILE": "none", "CORRSCAL": 1.0}


def write_pha(
    path: str | Path,
    spectrum: Spectrum,
    *,
    overwrite: bool = False,
    background: str | Path | None = None,
    rmf: str | Path | None = None,
    arf: str | Path | None = None,
    telescope: str = "UNKNOWN",
    instrument: str = "UNKNOWN",
) -> Path:
    """Write a spectrum as a PHA file of type I (OGIP/92-007).

    Background and response are written separately, with ``write_pha(other, spectrum.background)``, `write_rmf` and
    `write_arf`. `read_pha` restores the values exactly. Counts with Gaussian errors that are all whole numbers are
    written as RATE, because whole COUNTS are read as Poisson; their errors are then restored to rounding. Raises
    FileExistsError if the file exists and `overwrite` is false, and DataError if the file cannot store a value: arrays
    of different lengths, values that are not finite (except counts of bad channels, which may be NaN), names that are
    not ASCII.

    Parameters
    ----------
    path : path
        File to write. It is written completely or not at all.
    spectrum : Spectrum
        Poisson counts are written as whole numbers (real numbers if simulated without noise), others with STAT_ERR.
    overwrite : bool
        True: replace an existing file.
    background, rmf, arf : path, optional
        File names for BACKFILE, RESPFILE and ANCRFILE; default: those of ``spectrum.files``, or ``"none"``.
    telescope, instrument : str
        Values of TELESCOP and INSTRUME.
    """
    _require_writable(spectrum)
    poisson = spectrum.error is None
    as_rate = not poisson and _are_whole(spectrum.counts)
    columns, keywords = _pha_columns(spectrum, as_rate)
    files = {
        key: spectrum.files.get(key, "none") if file_name is None else str(file_name)
        for key, file_name in (("BACKFILE", background), ("RESPFILE", rmf), ("ANCRFILE", arf))
    }
    header = {
        **identity("SPECTRUM", "TOTAL", "RATE" if as_rate else "COUNT", "1.2.1", telescope, instrument),
        "HDUCLAS4": "TYPE:I",
        "PHAVERSN": "1992a",
        "OBJECT": spectrum.name,
        "EXPOSURE": float(spectrum.exposure),
        **keywords,
        **NO_CORRECTION,
        **files,
        "CHANTYPE": "PI",
        "DETCHANS": len(spectrum),
        "POISSERR": poisson,
        "SYS_ERR": 0,
        **limits(1, spectrum.channels),
    }
    return write_file(path, [table_of("SPECTRUM", columns, header)], overwrite)


def _require_writable(spectrum: Spectrum) -> None:
    """Raise `DataError` for values that a file cannot store."""
    num = len(spectrum)
    for name in ("counts", "channels", "backscal", "areascal", "quality", "grouping", "error"):
        values = getattr(spectrum, name)
        if values is None:
            continue
        # Counts and their errors may be NaN in channels of bad quality.
        may_be_nan = name in ("counts", "error") and np.isnan(spectrum.counts) & (np.asarray(spectrum.quality) != 0)
        if np.shape(values) != (num,) or not num or not (np.isfinite(values) | may_be_nan).all():
            raise DataError(f"{spectrum.name}: {name}: expected {num or 'some'} finite numbers; found {values}.")
    if not 0 < spectrum.exposure < np.inf:
        raise DataError(f"{spectrum.name}: exposure: expected a positive time [s]; found {spectrum.exposure:g}.")


def _pha_columns(spectrum: Spectrum, as_rate: bool) -> "tuple[list[fits.Column], dict[str, Any]]":
    """Return the columns of a spectrum, and keywords for quantities that are equal in all channels."""
    unit, divisor = ("count/s", spectrum.exposure) if as_rate else ("count", 1.0)
    counts = spectrum.counts / divisor
    if not as_rate and np.isfinite(counts).all() and _are_whole(counts, 2**31):
        counts = counts.astype(np.int32)
    columns = [_column("CHANNEL", spectrum.channels), _column("RATE" if as_rate else "COUNTS", counts, unit)]
    if spectrum.error is not None:
        columns.append(_column("STAT_ERR", spectrum.error / divisor, unit))
    keywords: dict[str, Any] = {}
    for name, values in (("BACKSCAL", spectrum.backscal), ("AREASCAL", spectrum.areascal)):
        if (values == values[0]).all():
            keywords[name] = float(values[0])
        else:
            columns.append(_column(name, values))
    for name, flags in (("QUALITY", spectrum.quality), ("GROUPING", spectrum.grouping)):
        if flags.any():
            columns.append(_column(name, flags))
        else:
            keywords[name] = 0
    return columns, keywords


def write_rmf(
    path: str | Path,
    rmf: Rmf | Response,
    *,
    overwrite: bool = False,
    area_included: bool | None = None,
    telescope: str = "UNKNOWN",
    instrument: str = "UNKNOWN",
) -> Path:
    """Write a redistribution matrix, or a response that includes the effective area (CAL/GEN/92-002).

    Parameters
    ----------
    path, overwrite, telescope, instrument
        As for `write_pha`, which raises the same errors.
    rmf : Rmf or Response
        A `Response` is written as a matrix that includes the area, for a spectrum with ``arf="none"``.
    area_included : bool, optional
        True: the matrix includes the area [cm^2], and the extension is SPECRESP MATRIX instead of MATRIX. Default: True
        if a row sum exceeds 1.5, for ``rmf.full``, and for a `Response`.
    """
    matrix = rmf.matrix.tocsr(copy=True)
    matrix.sum_duplicates()
    _require_finite(path, energy=rmf.energy, matrix=matrix.data, e_min=rmf.e_min, e_max=rmf.e_max)
    if area_included is None:
        area_included = isinstance(rmf, Response) or rmf.full or bool((matrix.sum(axis=1) > AREA_INCLUDED).any())
    groups, runs = _matrix_runs(matrix, int(rmf.channels[0]), "cm**2" if area_included else None)
    columns = [*_energy_bins(rmf.energy), _column("N_GRP", groups), *runs]
    common = {"CHANTYPE": "PI", "DETCHANS": len(rmf.channels), "RMFVERSN": "1992a"}
    kind = "FULL" if area_included else "REDIST"
    header = {
        **identity("RESPONSE", "RSP_MATRIX", kind, "1.3.0", telescope, instrument),
        **common,
        "NUMGRP": int(groups.sum()),
        "NUMELT": int(matrix.nnz),
        "LO_THRES": 0.0,
        **limits(4, rmf.channels),
    }
    bounds = identity("RESPONSE", "EBOUNDS", "", "1.2.0", telescope, instrument) | common | limits(1, rmf.channels)
    energies = [
        _column("CHANNEL", rmf.channels),
        _column("E_MIN", rmf.e_min, "keV"),
        _column("E_MAX", rmf.e_max, "keV"),
    ]
    name = "SPECRESP MATRIX" if area_included else "MATRIX"
    return write_file(path, [table_of(name, columns, header), table_of("EBOUNDS", energies, bounds)], overwrite)


def _matrix_runs(matrix: Any, first: int, unit: str | None) -> "tuple[NDArray[np.int64], list[fits.Column]]":
    """Return the number of runs of channels in each row, and their starts, lengths and values as columns."""
    starts, widths, values = [], [], []
    for low, high in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        indices = matrix.indices[low:high]
        run_starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        starts.append(indices[run_starts] + first)
        widths.append(np.diff(np.append(run_starts, len(indices))))
        values.append(matrix.data[low:high])
    columns = [_array_column("F_CHAN", starts), _array_column("N_CHAN", widths), _array_column("MATRIX", values, unit)]
    return np.array([len(row) for row in starts]), columns


def write_arf(
    path: str | Path, arf: Arf, *, overwrite: bool = False, telescope: str = "UNKNOWN", instrument: str = "UNKNOWN"
) -> Path:
    """Write an effective area (CAL/GEN/92-002).

    Parameters
    ----------
    path, overwrite, telescope, instrument
        As for `write_pha`, which raises the same errors.
    arf : Arf
        Effective area [cm^2].
    """
    _require_finite(path, energy=arf.energy, area=arf.area)
    columns = [*_energy_bins(arf.energy), _column("SPECRESP", arf.area, "cm**2")]
    header = {**identity("RESPONSE", "SPECRESP", "", "1.1.0", telescope, instrument), "ARFVERSN": "1992a"}
    return write_file(path, [table_of("SPECRESP", columns, header)], overwrite)


def _require_finite(path: str | Path, **arrays: ArrayLike) -> None:
    """Raise `DataError` for values that are not finite."""
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise DataError(f"{path}: {name}: expected finite numbers; found NaN or infinity.")


def identity(first: str, second: str, third: str, version: str, telescope: str, instrument: str) -> dict[str, Any]:
    """Return the header keywords that identify an extension."""
    classes = {"HDUCLAS1": first, "HDUCLAS2": second} | ({"HDUCLAS3": third} if third else {})
    origin = {"TELESCOP": telescope, "INSTRUME": instrument, "FILTER": "NONE"}
    return {"HDUCLASS": "OGIP", **classes, "HDUVERS": version, **origin}


def limits(number: int, channels: NDArray[np.int64]) -> dict[str, int]:
    """Return the keywords for the first and the last channel in the column of this number."""
    return {f"TLMIN{number}": int(channels[0]), f"TLMAX{number}": int(channels[-1])}


def _are_whole(counts: NDArray[np.float64], below: float = np.inf) -> bool:
    """Return True if all counts other than NaN are whole numbers of absolute value below a bound."""
    numbers = counts[~np.isnan(counts)]
    return bool((numbers % 1 == 0).all() and (np.abs(numbers) < below).all())


def _format(values: NDArray[Any]) -> str:
    """Return the shortest FITS format of OGIP that represents the values exactly."""
    if values.dtype.kind in "iub":
        return "J" if values.size and (values.min() < -(2**15) or values.max() >= 2**15) else "I"
    with np.errstate(over="ignore", under="ignore"):
        return "E" if np.array_equal(values.astype(np.float32), values, equal_nan=True) else "D"


def _column(name: str, values: NDArray[Any], unit: str | None = None) -> "fits.Column":
    """Return a column in the shortest exact format."""
    # Integer counts are always J, as readers expect.
    from astropy.io import fits

    kind = "J" if name == "COUNTS" and values.dtype.kind == "i" else _format(values)
    return fits.Column(name, kind, unit=unit, array=values)


def _energy_bins(edges: NDArray[np.float64]) -> "list[fits.Column]":
    """Return the columns of the limits of energy bins."""
    return [_column("ENERG_LO", edges[:-1], "keV"), _column("ENERG_HI", edges[1:], "keV")]


def _array_column(name: str, rows: list[NDArray[Any]], unit: str | None = None) -> "fits.Column":
    """Return a column with an array of any length in each row."""
    from astropy.io import fits

    kind = _format(np.concatenate([*rows, np.zeros(0, rows[0].dtype)]))
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return fits.Column(name, f"P{kind}({max(map(len, rows))})", unit=unit, array=array)


def table_of(name: str, columns: "list[fits.Column]", keywords: dict[str, Any]) -> "fits.BinTableHDU":
    """Return a table extension with these columns and header keywords."""
    from astropy.io import fits

    table = fits.BinTableHDU.from_columns(columns, name=name)
    for key, value in keywords.items():
        try:
            table.header[key] = value
        except ValueError as error:
            raise DataError(f"{key}: expected text in ASCII or a finite number; found {value!r}.") from error
    return table


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `FileExistsError` for an existing file, unless it may be overwritten."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: expected a new file; found an existing one. Pass overwrite=True to replace it.")


def write_file(path: str | Path, tables: "list[fits.BinTableHDU]", overwrite: bool) -> Path:
    """Write a FITS file completely or not at all."""
    from astropy.io import fits

    path = Path(path)
    refuse_existing(path, overwrite)
    if not path.parent.is_dir():
        raise DataError(f"{path}: expected a folder to write to; found no folder {path.parent}.")
    with atomic_write(path) as part:
        fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(part, output_verify="exception")
    return path
