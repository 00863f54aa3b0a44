"""PHA files of type II, whose rows are the spectra of one detector in time intervals; and times in OGIP files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.ogip.responses import MATRICES
from hbm_jax.spectra.ogip.tables import as_floats, keyword, opened, reject, spectrum_table, tables
from hbm_jax.spectra.ogip.writing import NO_CORRECTION, identity, limits, table_of, write_file
from hbm_jax.validation import DataError, Floats

if TYPE_CHECKING:
    from astropy.io import fits


def read_intervals(path: str | Path) -> tuple[Floats, Floats] | None:
    """Read start and stop times of the spectra of a PHA file of type I or II, [s], (num_spectra,) each.

    Times are columns or keywords: TSTART, and TSTOP or TELAPSE. TRIGTIME is subtracted from mission times. The result
    is None if the file has no times. Raises DataError if the file cannot be read, a time is not finite, or a stop time
    is not after its start time.
    """
    path = Path(path)
    with opened(path) as hdus:
        hdu = spectrum_table(hdus, path)
        where, num = f"{path}[{hdu.name}]", len(hdu.data)
        columns = {c.name.upper(): c.name for c in hdu.columns}
        if "EXPOSURE" not in columns and not any(as_floats(hdu.data[c], where).ndim == 2 for c in hdu.columns.names):
            num = 1

        def read(name: str) -> Floats | None:
            """Return a time of each spectrum, from a column or a keyword; None if there is neither."""
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
    """Read start and stop times of the matrices of a response file (RSP II), as `read_intervals` does for spectra.

    The result is None unless all matrices have times.
    """
    path = Path(path)
    with opened(path) as hdus:
        matrix_hdus = tables(hdus, MATRICES, "RSP_MATRIX")
        times = []
        for number, hdu in enumerate(matrix_hdus, start=1):
            where = f"{path}[{hdu.name}, {number}]"
            interval = np.array([keyword(hdu.header, name, np.nan, where) for name in ("TSTART", "TSTOP")])
            header = hdu.header if "TRIGTIME" in hdu.header else hdus[0].header
            times.append(_since_trigger(header, interval, where))
        limits = np.array(times).reshape(-1, 2)
    return (limits[:, 0], limits[:, 1]) if len(limits) and np.isfinite(limits).all() else None


def _since_trigger(header: Any, times: Floats, where: str) -> Floats:
    """Return times since the trigger; unchanged without TRIGTIME, or if they are not mission times."""
    trigger = keyword(header, "TRIGTIME", 0.0, where)
    # Times since the trigger are far smaller than the mission time of the trigger.
    is_mission_time = np.isfinite(times).all() and trigger > 1e6 and np.abs(times).min() > 0.5 * trigger
    return times - trigger if is_mission_time else times


def read_detector(path: str | Path) -> str:
    """Return the detector name of a PHA file: DETNAM, the part of INSTRUME after its last ``_``, or the file stem."""
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
    """Write spectra of one detector as a PHA file of type II (OGIP/92-007), without backgrounds and responses.

    Counts and errors are restored exactly when read. The counts with errors of a row must not all be whole numbers,
    because whole COUNTS are read as Poisson. Raises errors as `hbm_jax.spectra.write_pha`; also DataError if there are
    no spectra, channels differ, or only some have errors.

    Parameters
    ----------
    path, overwrite, telescope, instrument
        As for `hbm_jax.spectra.write_pha`.
    spectra : sequence of Spectrum
        Spectra on the same channels, all Poisson or all with errors.
    start, stop : (num_spectra,)
        Start and stop times of the intervals [s].
    background, rmf : str, optional
        File names for BACKFILE and RESPFILE. The background of each row is written as ``background{row}``.
    """
    from astropy.io import fits

    path, num = Path(path), len(spectra)
    start, stop = (np.broadcast_to(np.asarray(times, float), num) for times in (start, stop))
    _check_rows(path, spectra, start, stop)
    backgrounds = ["none" if background is None else f"{background}{{{number}}}" for number in range(1, num + 1)]
    files = {"BACKFILE": backgrounds, "RESPFILE": [rmf or "none"] * num, "ANCRFILE": ["none"] * num}
    columns = [
        fits.Column("TSTART", "D", unit="s", array=start),
        fits.Column("TSTOP", "D", unit="s", array=stop),
        fits.Column("SPEC_NUM", "J", array=np.arange(1, num + 1)),
        *_channel_columns(spectra),
        *(fits.Column(key, f"{max(map(len, names))}A", array=names) for key, names in files.items()),
    ]
    poisson = spectra[0].error is None
    header = {
        **identity("SPECTRUM", "TOTAL" if poisson else "BKG", "COUNT", "1.2.1", telescope, instrument),
        "HDUCLAS4": "TYPE:II",
        "CHANTYPE": "PHA",
        "DETCHANS": len(spectra[0]),
        "POISSERR": poisson,
        "SYS_ERR": 0,
        **NO_CORRECTION,
        **limits(4, spectra[0].channels),
    }
    return write_file(path, [table_of("SPECTRUM", columns, header)], overwrite)


def _channel_columns(spectra: Sequence[Spectrum]) -> "list[fits.Column]":
    """Return the columns with one array of channels per row, and the column of exposures."""
    from astropy.io import fits

    poisson = spectra[0].error is None
    whole = poisson and all((s.counts % 1 == 0).all() for s in spectra)

    def column(name: str, kind: str, field: str, unit: str | None = None) -> "fits.Column":
        values = np.array([getattr(spectrum, field) for spectrum in spectra])
        return fits.Column(name, f"{len(spectra[0])}{kind}", unit=unit, array=values)

    return [
        column("CHANNEL", "J", "channels"),
        column("COUNTS", "J" if whole else "D", "counts", "count"),
        *([] if poisson else [column("STAT_ERR", "D", "error", "count")]),
        fits.Column("EXPOSURE", "D", unit="s", array=[s.exposure for s in spectra]),
        column("QUALITY", "I", "quality"),
        column("GROUPING", "I", "grouping"),
        column("BACKSCAL", "D", "backscal"),
        column("AREASCAL", "D", "areascal"),
    ]


def _check_rows(path: Path, spectra: Sequence[Spectrum], start: Floats, stop: Floats) -> None:
    """Raise DataError unless the spectra fit into one file of type II."""
    if not len(spectra):
        raise DataError(f"{path}: expected at least one spectrum; found none.")
    first = spectra[0]
    poisson = first.error is None
    for row, spectrum in enumerate(spectra):
        where = f"{path}, spectrum {row + 1} ({spectrum.name})"
        if not np.array_equal(spectrum.channels, first.channels):
            raise DataError(f"{where}: expected the channels of the first spectrum; found different ones.")
        if (spectrum.error is None) != poisson:
            raise DataError(f"{where}: expected errors in all spectra or in none; found them in some.")
        if not poisson and (spectrum.counts % 1 == 0).all():
            raise DataError(
                f"{where}: expected counts that are not all whole numbers, because whole counts are read as Poisson, "
                "without their errors; found whole numbers only."
            )
        if not (np.isfinite(spectrum.counts).all() and 0 < spectrum.exposure < np.inf and start[row] < stop[row]):
            raise DataError(
                f"{where}: expected finite counts, a positive exposure and start < stop; found exposure "
                f"{spectrum.exposure:g} s, start {start[row]:g} s, stop {stop[row]:g} s, "
                f"and {int((~np.isfinite(spectrum.counts)).sum())} counts that are not finite."
            )
