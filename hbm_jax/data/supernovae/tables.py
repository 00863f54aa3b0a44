"""Supernovae from a user's table, and the bundled JLA table."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np

from hbm_jax.data.columns import repeated_names, unused_errors
from hbm_jax.data.supernovae.columns import COLUMNS, MASSES, QUANTITIES, SENSITIVITIES
from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts
from hbm_jax.data.supernovae.snana import read_snana
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.tables import TableColumns, make_from_rows, read_table
from hbm_jax.validation import DataError, tell

__all__ = ["JLA_ERROR_PARTS", "load_jla", "read_supernovae"]

# Betoule et al. 2014, A&A 568, A22.
JLA_ERROR_PARTS = MagnitudeErrorParts(
    coherent_scatter={"snls": 0.080, "sdss": 0.108, "lowz": 0.134, "hst": 0.100},
    lensing_per_z=0.055,
    sigma_v_km_s=150.0,
)

TEXTS = ("name", "survey")
ALIASES = {"log10_mass": "log_mass", "sigma_log10_mass": "sigma_log_mass"}  # as in jla.csv


def read_supernovae(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    sigma_m_b_includes: MagnitudeErrorParts | None = None,
) -> Supernovae:
    """Read supernovae from a table of SALT parameters.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, an astropy ``Table`` or ``QTable``, a pandas ``DataFrame``, a structured array
        or a mapping of arrays; see `hbm_jax.data.read_table`. Columns with units are converted.
    columns
        Which column of the table is which, standard name to the table's: ``{"m_b": "mB", "z_cmb": "zHD"}``. Columns
        that have the standard names of `Supernovae.from_columns` already (or `log_mass`, `sigma_log_mass`) are found by
        themselves; others are ignored. Covariances that the table does not
        carry are zero. Columns ``d_m_b_NAME, d_x1_NAME, d_c_NAME`` are sensitivities to the calibration offset NAME, in
        units of its prior error; one or two of the three may be absent and are zero.
    format
        File format, where the suffix does not tell; see `hbm_jax.data.read_table`. ``"snana"``: a text table of SNANA
        (FITRES), in which -9 is no value and the covariances with x0 give those with m_b.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        Rows to leave out: names of supernovae, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out those that
        cannot be used, and warns of them.
    sigma_m_b_includes
        Parts other than the light-curve fit that the table's error of m_b contains; they are taken out of it and kept
        in fields of their own. By default the error is taken to be that of the fit alone.

    Returns
    -------
    Supernovae

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For everything else that is wrong, see `Supernovae.from_columns`; the message begins with the table.

    Examples
    --------
    >>> table = dict(zHD=[0.1], z_hel=[0.1], m_b=[19.0], x1=[0.0], c=[0.0])
    >>> table |= dict(sigma_m_b=[0.1], sigma_x1=[1.0], sigma_c=[0.1])
    >>> read_supernovae(table, columns={"z_cmb": "zHD"}).num_objects
    1
    """
    return supernovae_and_rows(source, columns, format, missing, leave_out, sigma_m_b_includes)[0]


def supernovae_and_rows(
    source: Any, columns, format, missing, leave_out, sigma_m_b_includes=None, *, tied: bool = False
) -> tuple[Supernovae, np.ndarray | slice]:
    """Return what `read_supernovae` does, and the rows of the table that these are.

    With ``tied``, a covariance of all rows tells that several are of one supernova: repeated names are not warned of.
    """
    table = read_snana(source, missing) if format == "snana" else read_table(source, format=format, missing=missing)
    try:
        found = _resolve(table, columns or {})
        values = {key: table.values(name, COLUMNS[key].unit, text=key in TEXTS) for key, name in found.items()}
        values |= _sensitivities(table)
        supernovae, left_out, rows = make_from_rows(
            values,
            lambda some: Supernovae.from_columns(some, called=found),
            name="name",
            leave_out=leave_out,
            whole=("offset_name",),
        )
        if sigma_m_b_includes is not None:
            supernovae = supernovae.separate_error_parts(sigma_m_b_includes)
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(found, table.columns, (*QUANTITIES, "z_cmb", "log10_mass"))
    repeated = repeated_names(supernovae.name, "supernovae") if tied else []
    found_in_values = [text for text in supernovae.warnings if text not in repeated]
    told = tell([*left_out, *unused, *found_in_values], origin=table.origin, stacklevel=4)
    return replace(supernovae, warnings=told), rows


def load_jla() -> Supernovae:
    """Load the 740 type Ia supernovae of the Joint Light-curve Analysis, bundled with the package.

    Betoule, M. et al. 2014, A&A 568, A22: SALT2 parameters from SNLS (239), SDSS (374), nearby surveys
    (118) and HST (9).

    The published error of m_b holds, in quadrature, the light-curve fit, the survey's coherent scatter (0.080, 0.108,
    0.134, 0.100 mag for snls, sdss, lowz, hst), lensing (0.055 z) and peculiar velocities (150 km/s). The parts are
    separated here: `covariance` is that of the fit, the rest is in the `variance_*` fields. Both terms take the CMB
    redshift. That it is the one used in the table shows in what is left: with `z_cmb` all 740 covariances are positive
    definite (smallest fit error 0.0122 mag, median 0.035 mag), with `z_hel` 21 are not and 6 variances are negative.

    `m_b` contains the published selection-bias correction. Hosts without a measured mass carry the published
    placeholders: 5 +- 10 (27 objects), 6 +- 5 (16), 5.294 +- 52.87 and 7.492 +- 54.194, with which the published
    analysis counts them as hosts of low mass.

    Returns
    -------
    Supernovae

    Examples
    --------
    >>> load_jla().num_objects
    740
    """
    bundled = resources.files("hbm_jax.data") / "bundled" / "jla.csv"
    with resources.as_file(bundled) as path:
        return read_supernovae(path, sigma_m_b_includes=JLA_ERROR_PARTS)


def _sensitivities(table: TableColumns) -> dict[str, Any]:
    """Return the table's sensitivities to calibration offsets, if it has any."""
    columns = [name for name in table.columns if name.startswith(SENSITIVITIES)]
    start = {name: next(s for s in SENSITIVITIES if name.startswith(s)) for name in columns}
    offsets = list(dict.fromkeys(name.removeprefix(start[name]) for name in columns))
    if not offsets:
        return {}
    zero = np.zeros(len(table.values(columns[0], None)))
    parts = [
        [np.asarray(table.values(s + o, None), float) if s + o in columns else zero for s in SENSITIVITIES]
        for o in offsets
    ]
    return {"sensitivity": np.array(parts).transpose(2, 0, 1), "offset_name": offsets}


def _resolve(table: TableColumns, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the table's column for each standard name, with nothing required missing and no error given twice."""
    found = table.resolve(list(COLUMNS), columns, ALIASES)
    for quantity in QUANTITIES:
        sigma, variance = f"sigma_{quantity}", f"var_{quantity}"
        if sigma in found and variance in found and (sigma in columns) != (variance in columns):
            found.pop(variance if sigma in columns else sigma)
    if "log10_mass" not in found and MASSES[1] not in columns:
        found.pop(MASSES[1], None)
    required: list[tuple[str, ...]] = [(key,) for key in ("z_cmb", "z_hel", *QUANTITIES)]
    required += [(f"sigma_{quantity}", f"var_{quantity}", "covariance") for quantity in QUANTITIES]
    table.require(found, *required)
    return found
