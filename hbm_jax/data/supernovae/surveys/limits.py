"""Detection limits of surveys in an observed band, m_obs = m_b + c2(z) + c3(z) c."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.tables import read_table
from hbm_jax.names import listed
from hbm_jax.validation import DataError, frozen_array, warn_unusual

# Names in the table of limits of Union3.1 (rubind/union3).
ALIASES = {"band": "kc_file", "limit": "est_mobs_cuts", "width": "est_mobs_sigmas"}
BAND_ALIASES = {"z": "redshift", "c2": "c2", "c3": "c3"}


class Band(NamedTuple):
    """Observed magnitude minus m_b, c2(z) + c3(z) c, tabulated at increasing redshifts (K,).

    Attributes
    ----------
    z : (K,)
        Heliocentric redshifts.
    c2, c3 : (K,)
        Coefficients: of unit mag, and dimensionless.
    """

    z: np.ndarray
    c2: np.ndarray
    c3: np.ndarray


def read_band(path: str | os.PathLike) -> Band:
    """Read the coefficients of an observed band, a table with columns ``redshift`` (or ``z``), ``c2`` and ``c3``.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For missing columns, numbers that are not finite, and redshifts that do not increase.
    """
    table = read_table(str(path))
    names = table.resolve(list(BAND_ALIASES), {}, BAND_ALIASES)
    table.require(names, *BAND_ALIASES)
    band = Band(*(np.asarray(table.values(names[key]), float) for key in BAND_ALIASES))
    if not np.isfinite(band).all():
        raise DataError(f"{path}: expected finite redshifts and coefficients; found NaN or infinity.")
    if len(band.z) < 2 or (np.diff(band.z) <= 0).any():
        raise DataError(f"{path}: expected two redshifts or more, which increase; found {band.z}.")
    return band


def with_survey_limits(
    sne: Supernovae, limits: Any, bands: str | os.PathLike | None = None, *, stacklevel: int = 2
) -> Supernovae:
    """Return the supernovae with the detection limits of their surveys, for ``selection="band"`` of the model.

    Parameters
    ----------
    sne : Supernovae
        N supernovae.
    limits : str or table
        Table with one row for each survey: ``survey``, ``limit`` and ``width`` [mag] in the observed band, and
        ``band``, the name of the file of its coefficients without ``.csv``. The names of Union3.1 are recognised too
        (``mag_cut.csv``: ``kc_file, est_mobs_cuts, est_mobs_sigmas``). Surveys that are not in the table have no limit.
        Without a column of bands the limits are in m_b.
    bands : str, optional
        Folder of the files of coefficients (`read_band`); by default the folder ``selection`` beside the table, or, if
        there is none, the folder of the table.

    Returns
    -------
    Supernovae
        With ``band_limit``, ``band_limit_width``, ``band_offset`` and ``band_colour`` of each supernova: coefficients
        are interpolated linearly at its heliocentric redshift, and constant beyond their table, with a warning.

    Raises
    ------
    FileNotFoundError
        If the table or a file of coefficients does not exist.
    DataError
        For missing columns, a survey that has two rows, a width that is not positive, and a table with none of the
        surveys of the sample.
    """
    table = read_table(limits)
    names = table.resolve(["survey", *ALIASES], {}, ALIASES)
    table.require(names, "survey", "limit", "width")
    surveys = [str(name) for name in table.values(names["survey"], text=True)]
    if len(set(surveys)) < len(surveys):
        raise DataError(f"{table.origin}: expected one row for each survey; found {listed(surveys)}.")
    limit, width = (np.asarray(table.values(names[key]), float) for key in ("limit", "width"))
    if not (np.isfinite(limit).all() and (width > 0).all()):
        raise DataError(f"{table.origin}: expected finite limits, and widths above 0; found {limit} and {width}.")
    row_of = {survey: row for row, survey in enumerate(surveys)}
    if not row_of.keys() & set(sne.survey):
        raise DataError(
            f"{table.origin}: expected limits of {listed(sne.survey_counts)}; found those of {listed(surveys)}."
        )
    rows = np.array([row_of.get(survey, -1) for survey in sne.survey])
    known = rows >= 0
    columns = {
        "band_limit": np.where(known, limit[rows], np.nan),
        "band_limit_width": np.where(known, width[rows], np.nan),
        "band_offset": np.zeros(len(sne)),
        "band_colour": np.zeros(len(sne)),
    }
    texts = []
    if "band" in names:
        files = [str(name) for name in table.values(names["band"], text=True)]
        folder = _folder(limits, bands)
        for file in dict.fromkeys(files[row] for row in rows[known]):
            members = known & np.array([files[row] == file for row in rows])
            band, z = read_band(folder / f"{file}.csv"), sne.z_hel[members]
            beyond = int(np.sum((z < band.z[0]) | (z > band.z[-1])))
            if beyond:
                texts.append(
                    f"band {file}: {beyond} supernovae are beyond its redshifts, {band.z[0]:.4g} to {band.z[-1]:.4g}; "
                    "their coefficients are those at its end"
                )
            columns["band_offset"][members] = np.interp(z, band.z, band.c2)
            columns["band_colour"][members] = np.interp(z, band.z, band.c3)
    arrays: dict[str, Any] = {key: frozen_array(value) for key, value in columns.items()}
    changed = dataclasses.replace(sne, **arrays)
    if not texts:
        return changed
    warned = warn_unusual(texts, origin=table.origin, stacklevel=stacklevel + 1)
    return dataclasses.replace(changed, warnings=(*sne.warnings, *warned))


def _folder(limits: Any, bands: str | os.PathLike | None) -> Path:
    """Return the folder of the files of coefficients."""
    if bands is not None:
        return Path(bands)
    if not isinstance(limits, str | os.PathLike):
        raise DataError("bands: expected the folder of the files of coefficients, as the limits are not a file.")
    folder = Path(limits).parent
    return folder / "selection" if (folder / "selection").is_dir() else folder
