"""Columns of a supernova table, and their validation for `Supernovae`."""

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.columns import (
    ERROR,
    POSITIVE_ERROR,
    REDSHIFT,
    TEXT,
    Column,
    check_frames,
    check_values,
    repeated_names,
)
from hbm_jax.data.containers import HasWarnings
from hbm_jax.names import listed
from hbm_jax.validation import (
    DataError,
    Floats,
    float_vector,
    frozen_array,
    reject_rows,
    reject_unknown,
    require_covariances,
    require_present,
    require_same_length,
    text_tuple,
)

QUANTITIES = ("m_b", "x1", "c")
COVARIANCES = {"cov_m_x1": (0, 1), "cov_m_c": (0, 2), "cov_x1_c": (1, 2)}
VARIANCES = ("variance_coherent", "variance_lensing", "variance_velocity")
MASSES = ("log10_mass", "sigma_log10_mass")
UNMEASURED_MASS_ERROR = 2.0  # dex; errors of this size or more mark unmeasured masses (5 or more in JLA)
# Detection limit of the survey in an observed band, m_obs = m_b + band_offset + band_colour c; a limit may be missing.
LIMITS = ("band_limit", "band_limit_width")
BANDS = ("band_offset", "band_colour")
CALIBRATORS = ("mu_calibrator", "sigma_mu_calibrator")
SENSITIVITIES = tuple(f"d_{quantity}_" for quantity in QUANTITIES)  # column prefixes, before the offset name

# All columns that `Supernovae.from_columns` accepts. Failed light-curve fits have parameters outside the usual range
# or, for two supernovae of Union3 (m_b = -261), outside the allowed range. log10 masses as small as 5 (JLA) and 2
# (Pantheon+, Union3), with large errors, are placeholders for unmeasured masses.
COLUMNS: dict[str, Column] = {
    "name": TEXT,
    "survey": TEXT,
    "z_cmb": REDSHIFT,
    "z_hel": REDSHIFT,
    "m_b": Column("mag", "a magnitude", (-10.0, 40.0), (5.0, 30.0)),
    "x1": Column("", "a stretch x1", (-50.0, 50.0), (-10.0, 10.0)),
    "c": Column("mag", "a colour", (-10.0, 10.0), (-1.5, 3.0)),
    "sigma_m_b": replace(POSITIVE_ERROR, unit="mag"),
    "sigma_x1": POSITIVE_ERROR,
    "sigma_c": replace(POSITIVE_ERROR, unit="mag"),
    "var_m_b": Column("mag2", "a variance", (0.0, np.inf)),
    "var_x1": Column("", "a variance", (0.0, np.inf)),
    "var_c": Column("mag2", "a variance", (0.0, np.inf)),
    "cov_m_x1": Column("mag"),
    "cov_m_c": Column("mag2"),
    "cov_x1_c": Column("mag"),
    "covariance": Column(None),
    **{key: Column("mag2", "a variance", (0.0, np.inf), zero=True) for key in VARIANCES},
    "log10_mass": Column("dex(solMass)", "a logarithm of solar masses", (0.0, 14.0), (2.0, 13.0)),
    "sigma_log10_mass": replace(POSITIVE_ERROR, unit="dex"),
    "sigma_z": ERROR,
    "prob_ia": Column("", "a probability", (0.0, np.nextafter(1.0, 2.0)), zero=True),
    "num_observations": Column("", "a number of observations", (0.5, np.inf)),
    "band_limit": Column("mag", "a magnitude", (-10.0, 40.0), (5.0, 30.0)),
    "band_limit_width": replace(POSITIVE_ERROR, unit="mag"),
    "band_offset": Column("mag"),
    "band_colour": Column(""),
    "mu_calibrator": Column("mag", "a modulus of a calibrator", (10.0, 50.0), (18.0, 40.0)),
    "sigma_mu_calibrator": replace(POSITIVE_ERROR, unit="mag"),
    "sensitivity": Column(None),
    "offset_name": Column(None),
}


class HasSurveys(HasWarnings):
    """Base class of samples of objects from several surveys."""

    survey: tuple[str, ...]

    @property
    def survey_counts(self) -> dict[str, int]:
        """Number of objects in each survey, in descending order."""
        return dict(Counter(self.survey).most_common())

    def _survey_text(self) -> str:
        """Return the numbers of objects in the surveys as text; empty if the surveys are unknown."""
        counts = self.survey_counts
        return "" if set(counts) == {"unknown"} else f" ({', '.join(f'{name} {num}' for name, num in counts.items())})"


class CheckedColumns(NamedTuple):
    """Columns of objects: names, surveys and numbers by standard name, and warnings about unusual values."""

    names: tuple[str, ...]
    survey: tuple[str, ...]
    numbers: dict[str, Floats]
    warnings: list[str]


def checked_columns(
    columns: Mapping[str, Any], declared: Mapping[str, Column], labels: Mapping[str, str], optional: Container[str]
) -> CheckedColumns:
    """Check the names, surveys and numbers of objects; the column ``z_cmb`` is required.

    All mappings are by standard name. Values may be missing in `optional` columns; `labels` are the names of the
    columns in messages.
    """
    texts = {
        key: text_tuple(columns[key], labels.get(key, key), default)
        for key, default in (("name", "row {row}"), ("survey", "unknown"))
        if key in columns
    }
    names = texts.get("name", ())
    numbers = {
        key: float_vector(value, labels.get(key, key), names, allow_missing=key in optional)
        for key, value in columns.items()
        if key not in texts
    }
    num = require_same_length({key: len(value) for key, value in (numbers | texts).items()})
    names = names or tuple(f"row {row}" for row in range(num))
    warnings = check_values(numbers, declared, labels, names)
    check_frames(numbers["z_cmb"], numbers.get("z_hel", numbers["z_cmb"]), labels, names)
    return CheckedColumns(names, texts.get("survey", ("unknown",) * num), numbers, warnings)


def checked_fields(columns: Mapping[str, Any], column_names: Mapping[str, str]) -> dict[str, Any]:
    """Return the validated fields of `Supernovae` from columns; see `Supernovae.from_columns`."""
    reject_unknown(columns, list(COLUMNS), "column")
    for key in ("z_cmb", "z_hel", *QUANTITIES):
        require_present(key, columns)
    labels = {key: f"column {column_names.get(key, key)!r}" for key in columns}
    labels |= {key: f"{labels[key]} ({key})" for key, name in column_names.items() if key in columns and name != key}
    single = {key: value for key, value in columns.items() if key not in ("covariance", "sensitivity", "offset_name")}
    names, survey, numbers, warnings = checked_columns(
        single, COLUMNS, labels, (*MASSES, "prob_ia", *LIMITS, *CALIBRATORS)
    )
    num = len(names)
    if "covariance" in columns:
        covariance = _full_covariance(columns, labels["covariance"], num, names)
    else:
        covariance = _assembled_covariance(numbers, num, names)
    arrays = {key: numbers[key] for key in ("z_cmb", "z_hel", *QUANTITIES)}
    arrays |= {key: numbers.get(key, np.zeros(num)) for key in (*VARIANCES, "sigma_z")}
    arrays |= {key: numbers.get(key, np.ones(num)) for key in ("prob_ia", "num_observations")}
    arrays["prob_ia"] = np.where(np.isnan(arrays["prob_ia"]), 1.0, arrays["prob_ia"])
    arrays |= _with_partner(CALIBRATORS, numbers, num, names)
    arrays |= _limits(numbers, num, names) | _host_masses(numbers, num) | {"covariance": covariance}
    texts = {"name": names, "survey": survey, "warnings": (*warnings, *repeated_names(names, "supernovae"))}
    return {key: frozen_array(value) for key, value in arrays.items()} | texts | _sensitivities(columns, num)


def _sensitivities(columns: Mapping[str, Any], num: int) -> dict[str, Any]:
    """Return the validated (N, J, 3) sensitivities to calibration offsets and the names of the offsets."""
    offsets = text_tuple(columns.get("offset_name", ()), "column 'offset_name'", "offset {row}")
    sensitivity = np.array(columns.get("sensitivity", np.zeros((num, 0, 3))), dtype=np.float64)
    if sensitivity.ndim == 3 and not offsets:
        offsets = tuple(f"offset {index}" for index in range(sensitivity.shape[1]))
    if sensitivity.shape != (num, len(offsets), 3):
        raise DataError(
            f"sensitivity: expected shape (supernovae, offsets, 3), here ({num}, {len(offsets)}, 3); found "
            f"{sensitivity.shape}."
        )
    if not np.isfinite(sensitivity).all():
        row, offset, _ = np.argwhere(~np.isfinite(sensitivity))[0]
        raise DataError(
            f"sensitivity to {offsets[offset]!r}: expected finite numbers, found NaN or infinity in row {row}."
        )
    if len(set(offsets)) < len(offsets):
        raise DataError(f"offset_name: expected distinct names, found {listed(offsets)}.")
    return {"sensitivity": frozen_array(sensitivity), "offset_name": offsets}


def _full_covariance(columns: Mapping[str, Any], label: str, num: int, names: tuple[str, ...]) -> Floats:
    """Return the validated (N, 3, 3) covariance of the column ``covariance``."""
    error_columns = [key for key in columns if key.startswith(("sigma_m_b", "sigma_x", "sigma_c", "var_", "cov_"))]
    if error_columns:
        raise DataError(
            f"{label}: expected either this covariance or errors in separate columns, found also "
            f"{listed(error_columns)}."
        )
    covariance = np.array(columns["covariance"], dtype=np.float64)
    if covariance.shape != (num, 3, 3):
        raise DataError(f"{label}: expected shape ({num}, 3, 3), found {covariance.shape}.")
    return require_covariances(covariance, label, names)


def _assembled_covariance(numbers: Mapping[str, Floats], num: int, names: tuple[str, ...]) -> Floats:
    """Return the validated (N, 3, 3) covariance assembled from columns of errors and covariances."""
    covariance = np.zeros((num, 3, 3))
    for index, quantity in enumerate(QUANTITIES):
        error_columns = [key for key in (f"sigma_{quantity}", f"var_{quantity}") if key in numbers]
        if not error_columns:
            require_present(f"sigma_{quantity}", numbers)
        if len(error_columns) == 2:
            raise DataError(f"{quantity}: expected one of {error_columns[0]!r} and {error_columns[1]!r}, found both.")
        error = numbers[error_columns[0]]
        covariance[:, index, index] = error**2 if error_columns[0].startswith("sigma_") else error
    for key, (i, j) in COVARIANCES.items():
        if key in numbers:
            covariance[:, i, j] = covariance[:, j, i] = numbers[key]
    return require_covariances(covariance, "covariance of (m_b, x1, c)", names)


def _limits(numbers: Mapping[str, Floats], num: int, names: tuple[str, ...]) -> dict[str, Floats]:
    """Return detection limits, NaN where there is none, and the coefficients of the observed band."""
    arrays = _with_partner(LIMITS, numbers, num, names)
    return arrays | {key: numbers.get(key, np.zeros(num)) for key in BANDS}


def _with_partner(
    keys: tuple[str, str], numbers: Mapping[str, Floats], num: int, names: tuple[str, ...]
) -> dict[str, Floats]:
    """Return two columns, NaN where missing; a value of the first without one of the second is refused."""
    first, second = (numbers.get(key, np.full(num, np.nan)) for key in keys)
    missing = np.isfinite(first) & ~np.isfinite(second)
    reject_rows(missing, first, keys[0], f"a {keys[1]} beside it", names)
    return dict(zip(keys, (first, second), strict=True))


def _host_masses(numbers: Mapping[str, Floats], num: int) -> dict[str, Floats]:
    """Return the host masses and their errors, NaN where missing."""
    if not any(key in numbers for key in MASSES):
        return {key: np.full(num, np.nan) for key in MASSES}
    require_present("log10_mass", numbers)
    if "sigma_log10_mass" not in numbers:  # a sharp mass step does not need the errors
        return {"log10_mass": numbers["log10_mass"], "sigma_log10_mass": np.full(num, np.nan)}
    mass, sigma = (numbers[key] for key in MASSES)
    return {"log10_mass": mass, "sigma_log10_mass": np.where(np.isnan(mass), np.nan, sigma)}
