"""Writers of OGIP files that XSPEC and Sherpa read: PHA of type I, RMF and ARF.

Values are restored exactly when read: a column is in single precision (E) if that represents its values exactly, and in
double precision (D) otherwise.
"""

from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from hbm_jax.files import atomic_write
from hbm_jax.spectra.folding.response import AREA_INCLUDED, Arf, Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.validation import DataError

__all__ = ["write_arf", "write_pha", "write_rmf"]


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
    `write_arf`.

    Parameters
    ----------
    path : path
        File to write. It is written completely or not at all.
    spectrum : Spectrum
        Poisson counts are written as whole numbers (real numbers if simulated without noise), others with STAT_ERR.
    overwrite : bool
        Whether to replace an existing file.
    background, rmf, arf : path, optional
        File names for BACKFILE, RESPFILE and ANCRFILE; default: those of ``spectrum.files``, or ``"none"``.
    telescope, instrument : str
        Values of TELESCOP and INSTRUME.

    Returns
    -------
    path

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is false.
    DataError
        If the file cannot store a value: arrays of different lengths, values that are not finite (except counts
        of bad channels, which may be NaN), names that are not ASCII.

    Notes
    -----
    `read_pha` restores the values exactly. Counts with Gaussian errors that are all whole numbers are written as RATE,
    because whole COUNTS are read as Poisson; their errors are then restored to rounding.
    """
    num = len(spectrum.counts)
    for name in ("counts", "channels", "backscal", "areascal", "quality", "grouping", "error"):
        values = getattr(spectrum, name)
        if values is None:
            continue
        if np.shape(values) != (num,) or not num or not (np.isfinite(values) | _may_be_nan(spectrum, name)).all():
            raise DataError(f"{spectrum.name}: {name}: expected {num or 'some'} finite numbers; found {values}.")
    if not 0 < spectrum.exposure < np.inf:
        raise DataError(f"{spectrum.name}: exposure: expected a positive time [s]; found {spectrum.exposure:g}.")
    poisson = spectrum.error is None
    as_rate = not poisson and _are_whole(spectrum.counts)
    divisor = spectrum.exposure if as_rate else 1.0
    columns = [_column("CHANNEL", spectrum.channels)]
    if as_rate:
        columns.append(_column("RATE", spectrum.counts / divisor, "count/s"))
    else:
        columns.append(_column("COUNTS", _integers_if_whole(spectrum.counts), "count"))
    if spectrum.error is not None:
        columns.append(_column("STAT_ERR", spectrum.error / divisor, "count/s" if as_rate else "count"))
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
    files = {
        key: spectrum.files.get(key, "none") if file_name is None else str(file_name)
        for key, file_name in (("BACKFILE", background), ("RESPFILE", rmf), ("ANCRFILE", arf))
    }
    header = {
        **_identity("SPECTRUM", "TOTAL", "RATE" if as_rate else "COUNT", "1.2.1", telescope, instrument),
        "HDUCLAS4": "TYPE:I",
        "PHAVERSN": "1992a",
        "OBJECT": spectrum.name,
        "EXPOSURE": float(spectrum.exposure),
        **keywords,
        "CORRFILE": "none",
        "CORRSCAL": 1.0,
        **files,
        "CHANTYPE": "PI",
        "DETCHANS": num,
        "POISSERR": poisson,
        "SYS_ERR": 0,
        "TLMIN1": int(spectrum.channels[0]),
        "TLMAX1": int(spectrum.channels[-1]),
    }
    return _write_file(path, [_table("SPECTRUM", columns, header)], overwrite)


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
        As for `write_pha`.
    rmf : Rmf or Response
        A `Response` is written as a matrix that includes the area, for a spectrum with ``arf="none"``.
    area_included : bool, optional
        Whether the matrix includes the area [cm^2]; its extension is then SPECRESP MATRIX instead of MATRIX. Default:
        true if a row sum exceeds 1.5, if the file it was read from states it (``rmf.full``), or for a `Response`.

    Returns
    -------
    path

    Raises
    ------
    FileExistsError, DataError
        As for `write_pha`.
    """
    matrix = rmf.matrix.tocsr(copy=True)
    matrix.sum_duplicates()
    for name, values in (("energy", rmf.energy), ("matrix", matrix.data), ("e_min", rmf.e_min), ("e_max", rmf.e_max)):
        _require_finite(path, name, values)
    if area_included is None:
        area_included = isinstance(rmf, Response) or rmf.full or bool((matrix.sum(axis=1) > AREA_INCLUDED).any())
    first, last, num = int(rmf.channels[0]), int(rmf.channels[-1]), len(rmf.channels)
    starts, widths, values = [], [], []
    for low, high in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        indices = matrix.indices[low:high]
        run_starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        starts.append(indices[run_starts] + first)
        widths.append(np.diff(np.append(run_starts, len(indices))))
        values.append(matrix.data[low:high])
    groups = np.array([len(row) for row in starts])
    columns = [
        _column("ENERG_LO", rmf.energy[:-1], "keV"),
        _column("ENERG_HI", rmf.energy[1:], "keV"),
        _column("N_GRP", groups),
        _runs("F_CHAN", starts),
        _runs("N_CHAN", widths),
        _runs("MATRIX", values, "cm**2" if area_included else None),
    ]
    kind = "FULL" if area_included else "REDIST"
    common = {"CHANTYPE": "PI", "DETCHANS": num, "RMFVERSN": "1992a"}
    header = {
        **_identity("RESPONSE", "RSP_MATRIX", kind, "1.3.0", telescope, instrument),
        **common,
        "NUMGRP": int(groups.sum()),
        "NUMELT": int(matrix.nnz),
        "LO_THRES": 0.0,
        "TLMIN4": first,
        "TLMAX4": last,
    }
    bounds = {
        **_identity("RESPONSE", "EBOUNDS", "", "1.2.0", telescope, instrument),
        **common,
        "TLMIN1": first,
        "TLMAX1": last,
    }
    energies = [
        _column("CHANNEL", rmf.channels),
        _column("E_MIN", rmf.e_min, "keV"),
        _column("E_MAX", rmf.e_max, "keV"),
    ]
    name = "SPECRESP MATRIX" if area_included else "MATRIX"
    return _write_file(path, [_table(name, columns, header), _table("EBOUNDS", energies, bounds)], overwrite)


def write_arf(
    path: str | Path, arf: Arf, *, overwrite: bool = False, telescope: str = "UNKNOWN", instrument: str = "UNKNOWN"
) -> Path:
    """Write an effective area (CAL/GEN/92-002).

    Parameters
    ----------
    path, overwrite, telescope, instrument
        As for `write_pha`.
    arf : Arf
        Effective area [cm^2].

    Returns
    -------
    path

    Raises
    ------
    FileExistsError, DataError
        As for `write_pha`.
    """
    for name, values in (("energy", arf.energy), ("area", arf.area)):
        _require_finite(path, name, values)
    columns = [
        _column("ENERG_LO", arf.energy[:-1], "keV"),
        _column("ENERG_HI", arf.energy[1:], "keV"),
        _column("SPECRESP", arf.area, "cm**2"),
    ]
    header = {**_identity("RESPONSE", "SPECRESP", "", "1.1.0", telescope, instrument), "ARFVERSN": "1992a"}
    return _write_file(path, [_table("SPECRESP", columns, header)], overwrite)


def _may_be_nan(spectrum: Spectrum, name: str) -> NDArray[np.bool_] | bool:
    """Return where values may be NaN: counts in channels of bad quality, and their errors."""
    return name in ("counts", "error") and np.isnan(spectrum.counts) & (np.asarray(spectrum.quality) != 0)


def _require_finite(path: str | Path, name: str, values: ArrayLike) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name}: expected finite numbers; found NaN or infinity.")


def _identity(first: str, second: str, third: str, version: str, telescope: str, instrument: str) -> dict[str, Any]:
    """Return the header keywords that identify an extension."""
    classes = {"HDUCLAS1": first, "HDUCLAS2": second} | ({"HDUCLAS3": third} if third else {})
    origin = {"TELESCOP": telescope, "INSTRUME": instrument, "FILTER": "NONE"}
    return {"HDUCLASS": "OGIP", **classes, "HDUVERS": version, **origin}


def _integers_if_whole(counts: NDArray[np.float64]) -> NDArray[Any]:
    return counts.astype(np.int32) if np.isfinite(counts).all() and _are_whole(counts, 2**31) else counts


def _are_whole(counts: NDArray[np.float64], below: float = np.inf) -> bool:
    """Return whether all counts other than NaN are whole numbers of absolute value below a bound."""
    known = counts[~np.isnan(counts)]
    return bool((known % 1 == 0).all() and (np.abs(known) < below).all())


def _format(values: NDArray[Any]) -> str:
    """Return the shortest FITS format of OGIP that represents the values exactly."""
    if values.dtype.kind in "iub":
        return "J" if values.size and (values.min() < -(2**15) or values.max() >= 2**15) else "I"
    with np.errstate(over="ignore", under="ignore"):
        return "E" if np.array_equal(values.astype(np.float32), values, equal_nan=True) else "D"


def _column(name: str, values: NDArray[Any], unit: str | None = None) -> fits.Column:
    # Integer counts are always J, as readers expect.
    kind = "J" if name == "COUNTS" and values.dtype.kind == "i" else _format(values)
    return fits.Column(name, kind, unit=unit, array=values)


def _runs(name: str, rows: list[NDArray[Any]], unit: str | None = None) -> fits.Column:
    """Return a variable-length array column."""
    kind = _format(np.concatenate([*rows, np.zeros(0, rows[0].dtype)]))
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return fits.Column(name, f"P{kind}({max(map(len, rows))})", unit=unit, array=array)


def _table(name: str, columns: list[fits.Column], keywords: dict[str, Any]) -> fits.BinTableHDU:
    table = fits.BinTableHDU.from_columns(columns, name=name)
    for key, value in keywords.items():
        try:
            table.header[key] = value
        except ValueError as error:
            raise DataError(f"{key}: expected text in ASCII or a finite number; found {value!r}.") from error
    return table


def _write_file(path: str | Path, tables: list[fits.BinTableHDU], overwrite: bool) -> Path:
    """Write a FITS file completely or not at all."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: expected a new file; found an existing one. Pass overwrite=True to replace it.")
    if not path.parent.is_dir():
        raise DataError(f"{path}: expected a folder to write to; found no folder {path.parent}.")
    with atomic_write(path) as part:
        fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(part, output_verify="exception")
    return path
