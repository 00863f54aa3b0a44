"""The container of distance-level supernova samples: moduli or corrected magnitudes with one dense covariance."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import (
    POSITIVE_ERROR,
    REDSHIFT,
    TEXT,
    Column,
    Unusual,
    check_frames,
    check_values,
    repeated_names,
    warnings_of,
)
from hbm_jax.data.supernovae.dense_covariance import checked_covariance
from hbm_jax.names import listed
from hbm_jax.validation import (
    DataError,
    Floats,
    float_vector,
    frozen_array,
    reject_unknown,
    require_present,
    require_same_length,
    text_tuple,
)

__all__ = ["DistanceModuli"]

QUANTITIES = ("mu", "m_b_corr")
# Moduli are known up to an offset.
COLUMNS: dict[str, Column] = {
    "name": TEXT,
    "survey": TEXT,
    "z_cmb": REDSHIFT,
    "z_hel": REDSHIFT,
    "mu": Column("mag", "a modulus, up to an offset", (-60.0, 60.0)),
    "m_b_corr": Column("mag", "a magnitude", (-10.0, 40.0), (5.0, 30.0)),
    "sigma": dataclasses.replace(POSITIVE_ERROR, unit="mag"),
    "covariance": Column(None),
    "mu_calibrator": Column("mag", "a modulus of a calibrator", (10.0, 50.0), (18.0, 40.0)),
}
COVARIATE = "covariate_"  # before the name of a covariate among the arrays of `to_dict` and the columns of a table


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class DistanceModuli(Unusual):
    """Distance moduli, or magnitudes corrected for all but distance, of N objects with their covariance.

    Build one with `from_columns`, `hbm_jax.data.read_distance_moduli` or `load_distance_moduli`; the constructor itself
    checks nothing, because JAX uses it with traced fields. A pytree: arrays are leaves, text is static. Arrays are
    read-only float64 NumPy arrays. An object may be a supernova, one of several light curves of it, or a bin.

    Attributes
    ----------
    name, survey
        N strings each; ``"unknown"`` where the table names no survey.
    quantity
        ``"mu"`` or ``"m_b_corr"``: whether `mu` is a modulus, up to an offset, or a magnitude, which is the modulus and
        the absolute magnitude.
    z_cmb, z_hel : (N,)
        Redshift of the expansion (in the CMB frame, corrected for peculiar velocities where that was done) and
        heliocentric, positive.
    mu : (N,)
        Modulus or corrected magnitude [mag].
    covariance : (N, N)
        Its covariance, statistical and systematic [mag^2], positive definite.
    mu_calibrator : (N,)
        Modulus of the host from Cepheids or another calibrator [mag]; NaN where there is none. Its error is part of the
        covariance.
    covariates : dict of str to (N,)
        What residuals may be looked at against; NaN where missing.
    warnings : tuple of str
        What is unusual in the data, a sentence each.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    survey: tuple[str, ...] = field(metadata={"static": True})
    quantity: str = field(metadata={"static": True})
    z_cmb: Floats
    z_hel: Floats
    mu: Floats
    covariance: Floats
    mu_calibrator: Floats
    covariates: dict[str, Floats]

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        *,
        covariates: Mapping[str, Any] | None = None,
        called: Mapping[str, str] | None = None,
    ) -> "DistanceModuli":
        """Check columns and build the container: the one place where data comes in.

        Parameters
        ----------
        columns
            Required: `z_cmb`; `mu` or `m_b_corr`; `covariance` (N, N), or `sigma` where they are independent. Optional:
            `z_hel` (z_cmb where absent), `mu_calibrator` (NaN, masked or empty where there is none), `survey`, `name`.
        covariates
            More columns, for figures of the residuals; entries may be missing.
        called
            What messages call a column, where the user's table has another name for it.

        Raises
        ------
        DataError
            For an unknown or missing column, unequal lengths, no rows, a value missing, not finite or beyond what
            physics allows, redshifts in two frames that cannot be of one object, and a covariance of the wrong size,
            not symmetric or not positive definite.

        Examples
        --------
        >>> DistanceModuli.from_columns({"z_cmb": [0.1, 0.5], "mu": [38.3, 42.3], "sigma": [0.1, 0.1]})
        DistanceModuli(2 objects)
        """
        called = dict(called or {})
        reject_unknown(columns, list(COLUMNS), "column")
        require_present("z_cmb", columns)
        given = [key for key in QUANTITIES if key in columns]
        if len(given) != 1:
            found = "both" if given else f"the columns {listed(columns)}"
            raise DataError(f"expected one of the columns 'mu' and 'm_b_corr', found {found}.")
        if ("sigma" in columns) == ("covariance" in columns):
            found = "both" if "sigma" in columns else f"the columns {listed(columns)}"
            raise DataError(f"expected one of the columns 'sigma' and 'covariance', found {found}.")
        names = text_tuple(columns["name"], called.get("name", "name"), "row {row}") if "name" in columns else ()
        optional = {"mu_calibrator"} | {f"{COVARIATE}{key}" for key in covariates or {}}
        every = {key: columns[key] for key in columns if key not in ("name", "survey", "covariance")}
        every |= {f"{COVARIATE}{key}": value for key, value in (covariates or {}).items()}
        numbers = {
            key: float_vector(value, called.get(key, key), names, allow_missing=key in optional)
            for key, value in every.items()
        }
        lengths = {key: len(value) for key, value in numbers.items()}
        survey = text_tuple(columns["survey"], "survey", "unknown") if "survey" in columns else ()
        lengths |= ({"name": len(names)} if names else {}) | ({"survey": len(survey)} if survey else {})
        num = require_same_length(lengths)
        names = names or tuple(f"row {row}" for row in range(num))
        warnings = check_values(numbers, COLUMNS, called, names)
        check_frames(numbers["z_cmb"], numbers.get("z_hel", numbers["z_cmb"]), called, names)
        if "sigma" in numbers:
            covariance = np.diag(numbers["sigma"] ** 2)
            warnings += repeated_names(names, "objects")
        else:
            covariance = checked_covariance(columns["covariance"], called.get("covariance", "covariance"), names)
        return cls(
            names,
            survey or ("unknown",) * num,
            given[0],
            frozen_array(numbers["z_cmb"]),
            frozen_array(numbers.get("z_hel", numbers["z_cmb"])),
            frozen_array(numbers[given[0]]),
            frozen_array(covariance),
            frozen_array(numbers.get("mu_calibrator", np.full(num, np.nan))),
            {key: frozen_array(numbers[f"{COVARIATE}{key}"]) for key in covariates or {}},
            warnings=tuple(warnings),
        )

    def __len__(self) -> int:
        return len(self.name)

    def __repr__(self) -> str:
        return f"DistanceModuli({len(self)} objects)"

    @property
    def sigma(self) -> Floats:
        """Error of each object by itself [mag], (N,): the root of the diagonal."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def is_calibrator(self) -> NDArray[np.bool_]:
        """Whether the distance of an object's host is known independently of its redshift, (N,)."""
        return np.isfinite(self.mu_calibrator)

    @property
    def survey_counts(self) -> dict[str, int]:
        """Number of objects of each survey, the largest first."""
        return dict(Counter(self.survey).most_common())

    def describe(self) -> str:
        """Return one paragraph: how many objects, from where, at which redshifts, and with which errors."""
        surveys = ", ".join(f"{survey} {count}" for survey, count in self.survey_counts.items())
        what = "distance moduli" if self.quantity == "mu" else "corrected magnitudes"
        off = np.asarray(self.covariance) - np.diag(np.diagonal(self.covariance))
        errors = "correlated" if off.any() else "uncorrelated"
        num = int(self.is_calibrator.sum())
        calibrators = f" {num} are calibrators of known distance." if num else ""
        return (
            f"{len(self)} {what} at redshift {self.z_cmb.min():.4g} to {self.z_cmb.max():.4g} ({surveys}). Errors are "
            f"{errors}, their median {np.median(self.sigma):.3g} mag.{calibrators}{self._told()}"
        )

    def subset(self, rows: ArrayLike) -> "DistanceModuli":
        """Return the objects picked by a boolean mask (N,) or by integer indices, with their block of the covariance.

        Raises
        ------
        DataError
            If the mask has another length, an index is out of range, or nothing is left.

        Examples
        --------
        >>> data.subset(data.z_cmb > 0.01)  # doctest: +SKIP
        """
        index = np.asarray(rows)
        num = len(self)
        if index.dtype.kind == "b":
            if index.shape != (num,):
                raise DataError(f"subset: expected a mask of shape ({num},), found shape {index.shape}.")
            index = np.flatnonzero(index)
        if index.size == 0:
            raise DataError("subset: expected at least one object, found a selection of none.")
        if index.dtype.kind not in "iu" or index.ndim != 1:
            raise DataError(
                f"subset: expected a mask or a list of indices, found {index.dtype} of shape {index.shape}."
            )
        outside = index[(index < -num) | (index >= num)]
        if outside.size:
            raise DataError(f"subset: expected indices from {-num} to {num - 1}, found {outside[0]}.")
        vectors: dict[str, Any] = {
            key: frozen_array(getattr(self, key)[index]) for key in ("z_cmb", "z_hel", "mu", "mu_calibrator")
        }
        return dataclasses.replace(
            self,
            name=tuple(self.name[i] for i in index),
            survey=tuple(self.survey[i] for i in index),
            covariance=frozen_array(self.covariance[np.ix_(index, index)]),
            covariates={key: frozen_array(value[index]) for key, value in self.covariates.items()},
            **vectors,
        )

    def without_survey(self, survey: str) -> "DistanceModuli":
        """Return all objects but those of a survey.

        Raises
        ------
        DataError
            If there is no such survey, or no other.
        """
        if survey not in self.survey:
            raise DataError(f"survey: expected one of {listed(self.survey_counts)}; found {survey!r}.")
        return self.subset(np.array([name != survey for name in self.survey]))

    def replace_observations(self, mu: ArrayLike) -> "DistanceModuli":
        """Return a copy with other moduli or magnitudes, (N,), for example simulated ones.

        Raises
        ------
        DataError
            If a value is not finite or the length is not N.
        """
        new = float_vector(mu, "mu", self.name)
        require_same_length({"the container": len(self), "mu": len(new)})
        return dataclasses.replace(self, mu=frozen_array(new))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        covariates = fields.pop("covariates")
        plain = {key: np.array(value) for key, value in fields.items() if key != "warnings"} | self._stored()
        return plain | {f"{COVARIATE}{key}": np.array(value) for key, value in covariates.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "DistanceModuli":
        """Build the container from what `to_dict` returned; every value comes back exactly."""
        quantity = str(stored["quantity"])
        covariates = {key.removeprefix(COVARIATE): v for key, v in stored.items() if key.startswith(COVARIATE)}
        skipped = {"quantity", "mu", "warnings"}
        columns = {key: v for key, v in stored.items() if key not in skipped and not key.startswith(COVARIATE)}
        made = cls.from_columns(columns | {quantity: stored["mu"]}, covariates=covariates)
        return dataclasses.replace(made, warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table``, one row an object, that `hbm_jax.data.read_distance_moduli` reads back.

        The covariance is a column of N numbers a row. In CSV, which has no such columns, `hbm-jax simulate` writes N
        columns ``covariance_0`` and so on, and the reader knows them.
        """
        from astropy.table import Table

        columns = {key: value for key, value in self.to_dict().items() if key != "warnings"}
        columns[str(columns.pop("quantity"))] = columns.pop("mu")
        if not self.is_calibrator.any():
            del columns["mu_calibrator"]
        return Table({key: list(value) if value.dtype.kind == "U" else value for key, value in columns.items()})
