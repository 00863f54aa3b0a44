"""PHA files of type II: many spectra of one detector in one file, a row each, with the times of the intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.responses import MATRICES
from hbm_jax.spectra.ogip.tables import as_floats, keyword, opened, reject, spectrum_table, tables
from hbm_jax.spectra.ogip.writing import _identity, _table, _written
from hbm_jax.validation import DataError

__all__ = ["read_detector", "read_intervals", "read_matrix_times", "write_pha2"]

Floats = NDArray[np.float64]


def read_intervals(path: str | Path) -> tuple[Floats, Floats] | None:
    """Read begin and end of the interval of each spectrum of a PHA file.

    Parameters
    ----------
    path : path
        Of type I or II. Columns or keywords TSTART, and TSTOP or TELAPSE; less TRIGTIME where TSTART is not before it.

    Returns
    -------
    start, stop : (num_spectra,)
        [s]; None where the file does not say.

    Raises
    ------
    DataError
        For a file that cannot be read, and for times that are not finite or do not increase.
    """
    path = Path(path)
    with opened(path) as hdus:
        hdu = spectrum_table(hdus, path)
        where, num = f"{path}[{hdu.name}]", len(hdu.data)
        columns = {c.name.upper(): c.name for c in hdu.columns}
        if "EXPOSURE" not in columns and not any(as_floats(hdu.data[c], where).ndim == 2 for c in hdu.columns.names):
            num = 1

        def read(name: str) -> Floats | None:
            if name in columns:
                values = as_floats(hdu.data[columns[name]], f"{where}, {name}")
                reject(~np.isfinite(values), values, f"{where}, {name}", "a time [s]")
                return values
            value = keyword(hdu.header, name, np.nan, where)
            return np.full(num, value) if np.isfinite(value) else None

        start, stop, elapsed = read("TSTART"), read("TSTOP"), read("TELAPSE")
        if start is None or (stop is None and elapsed is None):
            return None
        stop = start + elapsed if stop is None else stop  # type: ignore[operator]
        reject(~(stop > start), stop, f"{where}, TSTOP", "an end after TSTART [s]")
        return _since_trigger(hdu.header, start, where), _since_trigger(hdu.header, stop, where)


def read_matrix_times(path: str | Path) -> tuple[Floats, Floats] | None:
    """Read the times that the matrices of a response file (RSP II) are for, as `read_intervals` does.

    Returns
    -------
    start, stop : (num_matrices,)
        [s]; None where the file does not say of each.
    """
    path = Path(path)
    with opened(path) as hdus:
        found = tables(hdus, MATRICES, "RSP_MATRIX")
        times = []
        for number, hdu in enumerate(found, start=1):
            where = f"{path}[{hdu.name}, {number}]"
            pair = np.array([keyword(hdu.header, name, np.nan, where) for name in ("TSTART", "TSTOP")])
            header = hdu.header if "TRIGTIME" in hdu.header else hdus[0].header
            times.append(_since_trigger(header, pair, where))
        both = np.array(times).reshape(-1, 2)
    return (both[:, 0], both[:, 1]) if len(both) and np.isfinite(both).all() else None


def _since_trigger(header: Any, times: Floats, where: str) -> Floats:
    """Mission time to time since the trigger, where a header has both."""
    trigger = keyword(header, "TRIGTIME", 0.0, where)
    mission = np.isfinite(times).all() and trigger > 1e6 and np.abs(times).min() > 0.5 * trigger
    return times - trigger if mission else times


def read_detector(path: str | Path) -> str:
    """Name of the detector of a PHA file: DETNAM, else what INSTRUME has after its last ``_``, else the file's stem."""
    path = Path(path)
    with opened(path) as hdus:
        header = spectrum_table(hdus, path).header
        name = str(header.get("DETNAM", "")).strip() or str(header.get("INSTRUME", "")).strip().rpartition("_")[2]
    return name.lower() if name and name.upper() != "UNKNOWN" else path.stem


def write_pha2(
    path: str | Path,
    spectra: Sequence[Spectrum],
    *,
    start: ArrayLike,
    stop: ArrayLike,
    overwrite: bool = False,
    background: str | None = None,
    rmf: str | None = None,
    telescope: str = "UNKNOWN",
    instrument: str = "UNKNOWN",
) -> Path:
    """Write spectra of one detector as a PHA file of type II (OGIP/92-007); backgrounds and responses go elsewhere.

    Parameters
    ----------
    path : path
        File to write. It appears whole or not at all.
    spectra : sequence of Spectrum
        All Poisson, or all with errors; on the same channels.
    start, stop : (num_spectra,)
        Intervals [s].
    overwrite : bool
        Replace a file that is there.
    background, rmf : str, optional
        For BACKFILE and RESPFILE: each row names its own row of the background, ``background{row}``, and the response
        as given.
    telescope, instrument : str
        For TELESCOP and INSTRUME.

    Returns
    -------
    path

    Raises
    ------
    FileExistsError
        If there is a file and `overwrite` is false.
    DataError
        For no spectra, other channels, Poisson counts beside others, values that are not finite.

    Notes
    -----
    Counts and errors come back bit by bit. Those with errors must not all be whole numbers within a row: COUNTS that
    are whole are taken for Poisson.
    """
    path, num = Path(path), len(spectra)
    start, stop = (np.broadcast_to(np.asarray(t, float), num) for t in (start, stop))
    if not num:
        raise DataError(f"{path}: expected at least one spectrum; found none.")
    first = spectra[0]
    poisson = first.error is None
    for row, one in enumerate(spectra):
        at = f"{path}, spectrum {row + 1} ({one.name})"
        if not np.array_equal(one.channels, first.channels):
            raise DataError(f"{at}: expected the channels of the first spectrum; found others.")
        if (one.error is None) != poisson:
            raise DataError(f"{at}: expected errors in all spectra or in none; found both.")
        if not poisson and (one.counts % 1 == 0).all():
            raise DataError(f"{at}: expected counts with errors, some of them no whole numbers; found whole ones only.")
        if not (np.isfinite(one.counts).all() and 0 < one.exposure < np.inf and start[row] < stop[row]):
            raise DataError(f"{at}: expected finite counts, a positive exposure and start < stop; found others.")
    width = len(first)
    whole = poisson and all((s.counts % 1 == 0).all() for s in spectra)
    each = np.array

    def array(name: str, kind: str, values, unit: str | None = None) -> fits.Column:
        return fits.Column(name, f"{width}{kind}", unit=unit, array=each(values))

    numbers = [f"{row}" for row in range(1, num + 1)]
    files = {
        "BACKFILE": ["none" if background is None else f"{background}{{{n}}}" for n in numbers],
        "RESPFILE": [rmf or "none"] * num,
        "ANCRFILE": ["none"] * num,
    }
    columns = [
        fits.Column("TSTART", "D", unit="s", array=start),
        fits.Column("TSTOP", "D", unit="s", array=stop),
        fits.Column("SPEC_NUM", "J", array=np.arange(1, num + 1)),
        array("CHANNEL", "J", [s.channels for s in spectra]),
        array("COUNTS", "J" if whole else "D", [s.counts.astype(int) if whole else s.counts for s in spectra], "count"),
        *([] if poisson else [array("STAT_ERR", "D", [s.error for s in spectra], "count")]),
        fits.Column("EXPOSURE", "D", unit="s", array=[s.exposure for s in spectra]),
        array("QUALITY", "I", [s.quality for s in spectra]),
        array("GROUPING", "I", [s.grouping for s in spectra]),
        array("BACKSCAL", "D", [s.backscal for s in spectra]),
        array("AREASCAL", "D", [s.areascal for s in spectra]),
        *(fits.Column(key, f"{max(map(len, names))}A", array=names) for key, names in files.items()),
    ]
    header = {
        **_identity("SPECTRUM", "TOTAL" if poisson else "BKG", "COUNT", "1.2.1", telescope, instrument),
        "HDUCLAS4": "TYPE:II",
        "CHANTYPE": "PHA",
        "DETCHANS": width,
        "POISSERR": poisson,
        "SYS_ERR": 0,
        "CORRFILE": "none",
        "CORRSCAL": 1.0,
        "TLMIN4": int(first.channels[0]),
        "TLMAX4": int(first.channels[-1]),
    }
    return _written(path, [_table("SPECTRUM", columns, header)], overwrite)
