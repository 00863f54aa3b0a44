"""The columns of a supernova table, and the checks that turn them into the fields of `Supernovae`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from hbm_jax.names import listed
from hbm_jax.validation import (
    DataError,
    float_vector,
    frozen_array,
    reject_unknown,
    require_covariances,
    require_present,
    require_same_length,
    text_tuple,
)

__all__ = ["COLUMNS", "UNMEASURED_MASS_ERROR", "checked_fields"]

Floats = NDArray[np.float64]

QUANTITIES = ("m_b", "x1", "c")
COVARIANCES = {"cov_m_x1": (0, 1), "cov_m_c": (0, 2), "cov_x1_c": (1, 2)}
VARIANCES = ("variance_coherent", "variance_lensing", "variance_velocity")
MASSES = ("log10_mass", "sigma_log10_mass")
UNMEASURED_MASS_ERROR = 2.0  # dex; of placeholders for masses that were not measured, in JLA 5 and more
SENSITIVITIES = tuple(f"d_{quantity}_" for quantity in QUANTITIES)  # columns of a table, before the offset's name

# Every column that `Supernovae.from_columns` takes. A fit of a light curve that has failed gives parameters outside
# what is usual or, as two of Union3 (m_b = -261), beyond what is allowed. Masses as small as 5 (JLA) and 2 (Pantheon+,
# Union3), with large errors, stand for "not measured".
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
    "sensitivity": Column(None),
    "offset_name": Column(None),
}


def checked_fields(columns: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of `Supernovae` from columns; its `from_columns` says what is taken and what is refused."""
    reject_unknown(columns, list(COLUMNS), "column")
    for key in ("z_cmb", "z_hel", *QUANTITIES):
        require_present(key, columns)
    what = {key: f"column {called.get(key, key)!r}" for key in columns}
    what |= {key: f"{what[key]} ({key})" for key, name in called.items() if key in columns and name != key}

    names = text_tuple(columns["name"], what["name"], "row {row}") if "name" in columns else ()
    texts = {}
    if "survey" in columns:
        texts["survey"] = text_tuple(columns["survey"], what["survey"], "unknown")
    numbers = {
        key: float_vector(columns[key], what[key], names, allow_missing=key in MASSES)
        for key in columns
        if key not in ("name", "survey", "covariance", "sensitivity", "offset_name")
    }
    lengths = {key: len(value) for key, value in (texts | numbers).items()}
    num = require_same_length(lengths | ({"name": len(names)} if "name" in columns else {}))
    names = names or tuple(f"row {row}" for row in range(num))

    warnings = check_values(numbers, COLUMNS, what, names) + repeated_names(names, "supernovae")
    check_frames(numbers["z_cmb"], numbers["z_hel"], what, names)
    if "covariance" in columns:
        covariance = _given_covariance(columns, what["covariance"], num, names)
    else:
        covariance = _assembled_covariance(numbers, what, num, names)
    masses = _host_masses(numbers, what, num, names)
    zero = np.zeros(num)
    fields: dict[str, Any] = {"name": names, "survey": texts.get("survey", ("unknown",) * num)}
    fields |= {key: frozen_array(numbers[key]) for key in ("z_cmb", "z_hel", *QUANTITIES)}
    fields |= {key: frozen_array(numbers.get(key, zero)) for key in VARIANCES}
    fields |= {key: frozen_array(value) for key, value in masses.items()}
    fields["sigma_z"] = frozen_array(numbers.get("sigma_z", zero))
    fields |= {"covariance": frozen_array(covariance), "warnings": tuple(warnings)}
    return fields | _sensitivities(columns, num)


def _sensitivities(columns: Mapping[str, Any], num: int) -> dict[str, Any]:
    """Return the checked (N, J, 3) sensitivities to calibration offsets, and the names of these."""
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
        raise DataError(f"sensitivity to {offsets[offset]!r}: expected finite numbers, found others in row {row}.")
    if len(set(offsets)) < len(offsets):
        raise DataError(f"offset_name: expected every name once, found {listed(offsets)}.")
    return {"sensitivity": frozen_array(sensitivity), "offset_name": offsets}


def _given_covariance(columns: Mapping[str, Any], what: str, num: int, names: tuple[str, ...]) -> Floats:
    """Return the checked (N, 3, 3) covariance that was given whole."""
    others = [key for key in columns if key.startswith(("sigma_m", "sigma_x", "sigma_c", "var_", "cov_"))]
    if others:
        raise DataError(f"{what}: expected the errors either whole or by column, found both it and {listed(others)}.")
    covariance = np.array(columns["covariance"], dtype=np.float64)
    if covariance.shape != (num, 3, 3):
        raise DataError(f"{what}: expected shape ({num}, 3, 3), found {covariance.shape}.")
    return require_covariances(covariance, what, names)


def _assembled_covariance(
    numbers: Mapping[str, Floats], what: Mapping[str, str], num: int, names: tuple[str, ...]
) -> Floats:
    """Return the checked (N, 3, 3) covariance put together from single columns."""
    covariance = np.zeros((num, 3, 3))
    for index, quantity in enumerate(QUANTITIES):
        given = [key for key in (f"sigma_{quantity}", f"var_{quantity}") if key in numbers]
        if not given:
            require_present(f"sigma_{quantity}", numbers)
        if len(given) == 2:
            raise DataError(f"{quantity}: expected one of {given[0]!r} and {given[1]!r}, found both.")
        error = numbers[given[0]]
        covariance[:, index, index] = error**2 if given[0].startswith("sigma_") else error
    for key, (i, j) in COVARIANCES.items():
        if key in numbers:
            covariance[:, i, j] = covariance[:, j, i] = numbers[key]
    return require_covariances(covariance, "covariance of (m_b, x1, c)", names)


def _host_masses(
    numbers: Mapping[str, Floats], what: Mapping[str, str], num: int, names: tuple[str, ...]
) -> dict[str, Floats]:
    """Return the checked host masses and errors, NaN where there are none."""
    if not any(key in numbers for key in MASSES):
        return {key: np.full(num, np.nan) for key in MASSES}
    require_present("log10_mass", numbers)
    if "sigma_log10_mass" not in numbers:  # for models that ask only on which side of a mass a host is
        return {"log10_mass": numbers["log10_mass"], "sigma_log10_mass": np.full(num, np.nan)}
    mass, sigma = (numbers[key] for key in MASSES)
    return {"log10_mass": mass, "sigma_log10_mass": np.where(np.isnan(mass), np.nan, sigma)}
