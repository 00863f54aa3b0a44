"""Reader of supernova tables, and the bundled JLA sample."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hbm_jax.data.building import make_from_rows, named_errors, with_warnings
from hbm_jax.data.columns import repeated_names, unused_errors
from hbm_jax.data.supernovae.columns import COLUMNS, MASSES, QUANTITIES, SENSITIVITIES
from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts
from hbm_jax.data.supernovae.snana import read_snana
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.tables import TableColumns, read_bundled, read_table

# Betoule et al. 2014, A&A 568, A22.
JLA_ERROR_PARTS = MagnitudeErrorParts(
    coherent_scatter={"snls": 0.080, "sdss": 0.108, "lowz": 0.134, "hst": 0.100},
    lensing_per_z=0.055,
    sigma_v_km_s=150.0,
)

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
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`; `log_mass` and `sigma_log_mass` are
        recognised too. Covariances that the table does not contain are zero. Columns ``d_m_b_NAME, d_x1_NAME,
        d_c_NAME`` are the sensitivities to the calibration offset NAME, in units of its prior error; of the three,
        those that are absent are zero. A column ``prob_ia`` is the probability of type Ia from a classifier, 1 where it
        is missing. Of the classifiers of a DES table choose one, ``columns={"prob_ia": "PROB_SCONE"}``; probabilities
        that a fit of the Hubble diagram has updated (``PROBIA_BEAMS``) would use the distances twice.
        ``format="snana"``: a text table of SNANA (FITRES), in which -9 stands for missing values and the covariances
        with x0 are converted to covariances with m_b.
    sigma_m_b_includes
        Contributions to the table's error of m_b other than the light-curve fit. They are subtracted and stored in the
        ``variance_*`` fields. By default, the error is that of the fit alone.

    Returns
    -------
    Supernovae

    Raises
    ------
    FileNotFoundError, DataError
        As for `hbm_jax.data.read_table` and `Supernovae.from_columns`.

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
    """Return the output of `read_supernovae`, and the rows of the table that were kept.

    With ``tied``, repeated names cause no warning, because a covariance of all rows accounts for repeated measurements.
    """
    table = read_snana(source, missing) if format == "snana" else read_table(source, format=format, missing=missing)
    with named_errors(table.origin):
        column_names = _resolve(table, columns or {})
        values: dict[str, Any] = dict(table.values_of(column_names, COLUMNS))
        values |= _sensitivities(table)
        supernovae, left_out, rows = make_from_rows(
            values,
            lambda selected: Supernovae.from_columns(selected, called=column_names),
            name="name",
            leave_out=leave_out,
            whole=("offset_name",),
        )
        if sigma_m_b_includes is not None:
            supernovae = supernovae.separate_error_parts(sigma_m_b_includes)
    unused = unused_errors(column_names, table.columns, (*QUANTITIES, "z_cmb", "log10_mass"))
    repeated = repeated_names(supernovae.name, "supernovae") if tied else []
    unusual = [text for text in supernovae.warnings if text not in repeated]
    return with_warnings(supernovae, [*left_out, *unused, *unusual], table, stacklevel=5), rows


def load_jla() -> Supernovae:
    """Load the 740 type Ia supernovae of the Joint Light-curve Analysis, bundled with the package.

    Betoule, M. et al. 2014, A&A 568, A22: SALT2 parameters from SNLS (239), SDSS (374), nearby surveys
    (118) and HST (9).

    The published error of m_b is the quadratic sum of the light-curve fit, the coherent scatter of the survey (0.080,
    0.108, 0.134, 0.100 mag for snls, sdss, lowz, hst), lensing (0.055 z) and peculiar velocities (150 km/s). Here these
    contributions are separated: `covariance` is that of the fit, the `variance_*` fields contain the others. Lensing
    and velocity terms use the CMB redshift, as the published errors do: after subtraction with `z_cmb`, all 740
    covariances are positive definite (smallest fit error 0.0122 mag, median 0.035 mag); with `z_hel`, 21 are not and 6
    variances are negative.

    `m_b` includes the published selection-bias correction. Hosts without a measured mass have the published
    placeholders: 5 +- 10 (27 objects), 6 +- 5 (16), 5.294 +- 52.87 and 7.492 +- 54.194; the published analysis counts
    them as low-mass hosts.

    Returns
    -------
    Supernovae

    Examples
    --------
    >>> load_jla().num_objects
    740
    """
    return read_supernovae(read_bundled("jla"), sigma_m_b_includes=JLA_ERROR_PARTS)


def _sensitivities(table: TableColumns) -> dict[str, Any]:
    """Return the sensitivities to calibration offsets and the names of the offsets, or an empty dict."""
    columns = [name for name in table.columns if name.startswith(SENSITIVITIES)]
    prefix = {name: next(p for p in SENSITIVITIES if name.startswith(p)) for name in columns}
    offsets = list(dict.fromkeys(name.removeprefix(prefix[name]) for name in columns))
    if not offsets:
        return {}
    zero = np.zeros(len(table.values(columns[0], None)))
    parts = [
        [np.asarray(table.values(p + offset, None), float) if p + offset in columns else zero for p in SENSITIVITIES]
        for offset in offsets
    ]
    return {"sensitivity": np.array(parts).transpose(2, 0, 1), "offset_name": offsets}


def _resolve(table: TableColumns, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column names of the table by standard name, after checks of required columns and duplicate errors."""
    column_names = table.resolve(list(COLUMNS), columns, ALIASES)
    for quantity in QUANTITIES:
        sigma, variance = f"sigma_{quantity}", f"var_{quantity}"
        if sigma in column_names and variance in column_names and (sigma in columns) != (variance in columns):
            column_names.pop(variance if sigma in columns else sigma)
    if "log10_mass" not in column_names and MASSES[1] not in columns:
        column_names.pop(MASSES[1], None)
    required: list[tuple[str, ...]] = [(key,) for key in ("z_cmb", "z_hel", *QUANTITIES)]
    required += [(f"sigma_{quantity}", f"var_{quantity}", "covariance") for quantity in QUANTITIES]
    table.require(column_names, *required)
    return column_names
