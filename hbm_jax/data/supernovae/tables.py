"""Reader of supernova tables, supernovae observed several times, and the bundled JLA sample."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import chdtrc

from hbm_jax.data.building import make_from_rows, named_errors, with_warnings
from hbm_jax.data.columns import unused_errors, without_repeated_names
from hbm_jax.data.supernovae.columns import CALIBRATORS, COLUMNS, MASSES, QUANTITIES, SENSITIVITIES, VARIANCES
from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts
from hbm_jax.data.supernovae.snana import read_snana
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.data.supernovae.surveys.limits import with_survey_limits
from hbm_jax.data.supernovae.surveys.sensitivities import with_sensitivities
from hbm_jax.data.tables import TableColumns, read_bundled, read_table
from hbm_jax.validation import DataError, reject_rows

# Betoule et al. 2014, A&A 568, A22.
JLA_ERROR_PARTS = MagnitudeErrorParts(
    coherent_scatter={"snls": 0.080, "sdss": 0.108, "lowz": 0.134, "hst": 0.100},
    lensing_per_z=0.055,
    sigma_v_km_s=150.0,
)

SAME_REDSHIFT = 0.002  # largest difference between observations of one supernova, times 1 + z; 600 km/s
DISAGREEMENT = 1e-5  # p-value below which a warning names a supernova whose observations disagree
ALIASES = {"log10_mass": "log_mass", "sigma_log10_mass": "sigma_log_mass"}  # as in jla.csv


def read_supernovae(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    sigma_m_b_includes: MagnitudeErrorParts | None = None,
    combine: bool = False,
    limits: str | None = None,
    sensitivity: str | None = None,
) -> Supernovae:
    """Read supernovae from a table of SALT parameters.

    Parameters
    ----------
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`; `log_mass` and `sigma_log_mass` are
        recognised too. Covariances that the table does not contain are zero. Columns ``d_m_b_NAME, d_x1_NAME,
        d_c_NAME`` are the sensitivities to the calibration offset NAME, in units of its prior error; absent ones are
        zero. A column ``prob_ia`` is the probability of type Ia from a classifier, 1 where it is missing. Of the
        classifiers of a DES table choose one, ``columns={"prob_ia": "PROB_SCONE"}``; probabilities that a fit of the
        Hubble diagram has updated (``PROBIA_BEAMS``) would use the distances twice. ``format="snana"``: a text table of
        SNANA (FITRES), in which -9 stands for missing values and the covariances with x0 are converted to covariances
        with m_b.
    sigma_m_b_includes
        Contributions to the table's error of m_b other than the light-curve fit. They are subtracted and stored in the
        ``variance_*`` fields. By default, the error is that of the fit alone.
    combine
        Whether rows of the same name are observations of one supernova, which `combine_observations` combines. By
        default each row is another supernova, with a warning where names are repeated.
    limits
        Table of the detection limits of surveys in observed bands, as for `hbm_jax.data.with_survey_limits`.
    sensitivity
        File with the sensitivities to calibration offsets and other linear nuisances, as for
        `hbm_jax.data.with_sensitivities`.

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
    supernovae, rows = supernovae_and_rows(
        source, columns, format, missing, leave_out, sigma_m_b_includes, combine=combine and sensitivity is None
    )
    if sensitivity is not None:
        supernovae = with_sensitivities(supernovae, sensitivity, rows)
        supernovae = combine_observations(supernovae) if combine else supernovae
    return supernovae if limits is None else with_survey_limits(supernovae, limits, stacklevel=3)


def supernovae_and_rows(
    source: Any, columns, format, missing, leave_out, sigma_m_b_includes=None, *, tied: bool = False, combine=False
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
            lambda selected: Supernovae.from_columns(selected, column_names=column_names),
            name="name",
            leave_out=leave_out,
            whole=("offset_name",),
        )
        if sigma_m_b_includes is not None:
            supernovae = supernovae.separate_error_parts(sigma_m_b_includes)
        if combine:
            supernovae = combine_observations(supernovae)
    unused = unused_errors(column_names, table.columns, (*QUANTITIES, "z_cmb", "log10_mass"))
    unusual = without_repeated_names(supernovae.warnings) if tied else supernovae.warnings
    return with_warnings(supernovae, [*left_out, *unused, *unusual], table, stacklevel=5), rows


def combine_observations(supernovae: Supernovae) -> Supernovae:
    """Return a sample with one row for each name: the combined observations of each supernova.

    Several surveys observe one supernova with one true stretch, colour and magnitude, and with independent errors of
    the light-curve fits. The mean of the observed vectors, weighted by the inverse covariances, is then sufficient: the
    posterior of any model in which the covariances are known is that of all observations, apart from a constant of the
    likelihood. This holds for every population and for outliers, whose scatter belongs to the supernova; not where
    detection, or a parameter, depends on the survey, which `hbm_jax.models.Supernova` rejects: with
    ``observations="joint"`` it describes the observations themselves.

    Parameters
    ----------
    supernovae : Supernovae
        N observations. Errors of the same name other than ``covariance`` are common to its observations.

    Returns
    -------
    Supernovae
        In the order in which names first appear. Redshifts and the ``variance_*`` fields are means; the host mass and
        the modulus of a calibrator are those with the smallest error, the probability of type Ia the largest, and the
        survey is, for example, ``"DES+PS1"``. A warning names supernovae whose observations disagree (chi2 with a
        p-value below 1e-5).

    Raises
    ------
    DataError
        For samples with calibration offsets, on which the differences between surveys depend, and for redshifts of the
        same name that differ by more than 0.002 (1 + z) or have different errors.

    Examples
    --------
    >>> twice = load_jla().subset([0, 1, 1])
    >>> combine_observations(twice).num_observations
    array([1., 2.])
    """
    if supernovae.offset_name:
        raise DataError(
            "combining observations: expected a sample without calibration offsets, because the differences between "
            f"the observations of a supernova constrain them (use Supernova(observations='joint') with all rows); "
            f"found {len(supernovae.offset_name)} offsets."
        )
    for key in ("z_cmb", "z_hel", "sigma_z"):
        _require_agreement(supernovae, key)
    rows_of = [np.flatnonzero(np.array(supernovae.name) == name) for name in dict.fromkeys(supernovae.name)]
    combined = [_combined_vector(supernovae, rows) for rows in rows_of]
    best = [_best_row(supernovae, rows) for rows in rows_of]
    errors = np.where(supernovae.is_calibrator, supernovae.sigma_mu_calibrator, np.inf)
    calibrators = [rows[errors[rows].argmin()] for rows in rows_of]
    means = ("z_cmb", "z_hel", "sigma_z", *VARIANCES)
    fields: dict[str, Any] = {
        "name": [supernovae.name[rows[0]] for rows in rows_of],
        "survey": ["+".join(dict.fromkeys(supernovae.survey[row] for row in rows)) for rows in rows_of],
        **dict(zip(QUANTITIES, np.array([vector.mean for vector in combined]).T, strict=True)),
        "covariance": np.array([vector.covariance for vector in combined]),
        "num_observations": np.array([supernovae.num_observations[rows].sum() for rows in rows_of]),
        "prob_ia": np.array([supernovae.prob_ia[rows].max() for rows in rows_of]),
        **{key: getattr(supernovae, key)[best] for key in MASSES},
        **{key: getattr(supernovae, key)[calibrators] for key in CALIBRATORS},
        **{key: np.array([getattr(supernovae, key)[rows].mean() for rows in rows_of]) for key in means},
    }
    disagreeing = [
        f"the {len(rows)} observations of {name} disagree: chi2 = {vector.chi2:.1f} for {3 * (len(rows) - 1)} degrees "
        "of freedom"
        for name, rows, vector in zip(fields["name"], rows_of, combined, strict=True)
        if chdtrc(max(3 * (len(rows) - 1), 1), vector.chi2) < DISAGREEMENT
    ]
    warnings = (*without_repeated_names(supernovae.warnings), *disagreeing)
    return replace(Supernovae.from_columns(fields), warnings=warnings)


class _Combined(NamedTuple):
    """Weighted mean of observed vectors (m_b, x1, c), its covariance, and chi2 of the observations about it."""

    mean: np.ndarray
    covariance: np.ndarray
    chi2: float


def _combined_vector(supernovae: Supernovae, rows: np.ndarray) -> _Combined:
    """Combine the observed vectors of one supernova by their inverse covariances; a single one stays as it is."""
    observed = np.stack([getattr(supernovae, key)[rows] for key in QUANTITIES], axis=-1)
    covariances = supernovae.covariance[rows]
    if len(rows) == 1:
        return _Combined(observed[0], covariances[0], 0.0)
    precisions = np.linalg.inv(covariances)
    covariance = np.linalg.inv(precisions.sum(axis=0))
    mean = covariance @ np.einsum("nij,nj->i", precisions, observed)
    residual = observed - mean
    chi2 = np.einsum("ni,nij,nj->", residual, precisions, residual)
    return _Combined(mean, 0.5 * (covariance + covariance.T), float(chi2))


def _require_agreement(supernovae: Supernovae, key: str) -> None:
    """Raise DataError where a redshift, or its error, differs too much between observations of one supernova."""
    values, first = getattr(supernovae, key), dict[str, float]()
    reference = np.array([first.setdefault(name, value) for name, value in zip(supernovae.name, values, strict=True)])
    allowed, expected = 1e-6 * np.abs(reference), "the same error for each observation of one supernova"
    if key != "sigma_z":
        allowed = SAME_REDSHIFT * (1.0 + supernovae.z_cmb)
        expected = f"redshifts of one supernova that agree within {SAME_REDSHIFT} (1 + z)"
    reject_rows(np.abs(values - reference) > allowed, values, key, expected, supernovae.name)


def _best_row(supernovae: Supernovae, rows: np.ndarray) -> int:
    """Return the row with the smallest error of the host mass; the first where there is none."""
    error = np.where(np.isfinite(supernovae.sigma_log10_mass), supernovae.sigma_log10_mass, 1e6)[rows]
    return int(rows[np.argmin(np.where(supernovae.has_host_mass[rows], error, np.inf))])


def load_jla() -> Supernovae:
    """Load the 740 type Ia supernovae of the Joint Light-curve Analysis, bundled with the package.

    Betoule, M. et al. 2014, A&A 568, A22: SALT2 parameters from SNLS (239), SDSS (374), nearby surveys
    (118) and HST (9).

    The published error of m_b is the quadratic sum of the light-curve fit, the coherent scatter of the survey (0.080,
    0.108, 0.134, 0.100 mag for snls, sdss, lowz, hst), lensing (0.055 z) and peculiar velocities (150 km/s). Here these
    contributions are separated: `covariance` is that of the fit, the `variance_*` fields contain the others. Lensing
    and velocity terms use the CMB redshift, as in the published errors: after subtraction with `z_cmb`, all 740
    covariances are positive definite (smallest fit error 0.0122 mag, median 0.035 mag); with `z_hel`, 21 are not, and 6
    variances are negative.

    `m_b` includes the published selection-bias correction. Hosts without a measured mass have the published
    placeholders: 5 +- 10 (27 objects), 6 +- 5 (16), 5.294 +- 52.87 and 7.492 +- 54.194; the published analysis counts
    them as low-mass hosts.

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
    """Return the column names of the table by standard name; raise DataError for missing columns.

    Of an error and a variance of the same quantity, the one named by the user is kept.
    """
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
