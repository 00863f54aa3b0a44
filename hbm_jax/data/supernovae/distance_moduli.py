"""Distance-level supernova samples: distance moduli or corrected magnitudes with a dense covariance."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import POSITIVE_ERROR, REDSHIFT, TEXT, Column, repeated_names
from hbm_jax.data.containers import warnings_of
from hbm_jax.data.supernovae.columns import HasSurveys, checked_columns
from hbm_jax.data.supernovae.dense_covariance import checked_covariance, only_one_of
from hbm_jax.names import listed, renamed_keyword
from hbm_jax.validation import (
    DataError,
    Floats,
    float_vector,
    frozen_array,
    reject_unknown,
    require_present,
    require_same_length,
)

QUANTITIES = ("mu", "m_b_corr")
# Moduli may have an arbitrary offset, hence the wide allowed range of `mu`.
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
COVARIATE = "covariate_"  # prefix of covariates in the output of `to_dict` and in tables


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class DistanceModuli(HasSurveys):
    """Distance moduli or standardised magnitudes of N objects, with their covariance.

    Build it with `from_columns`, `hbm_jax.data.read_distance_moduli` or `hbm_jax.data.load_distance_moduli`. The
    constructor does not validate, because JAX calls it with traced fields. Registered as a pytree: arrays are leaves,
    strings are static. Arrays are read-only float64 NumPy arrays. An object is a supernova, one of several light curves
    of a supernova, or a redshift bin.

    Attributes
    ----------
    name, survey : tuple of str
        Name and survey of each object; the survey is ``"unknown"`` if the table does not contain it.
    quantity : str
        Content of `mu`: ``"mu"`` for distance moduli, up to a common offset; ``"m_b_corr"`` for corrected magnitudes,
        the sum of distance modulus and absolute magnitude.
    z_cmb, z_hel : (N,)
        Redshift in the CMB frame (corrected for peculiar velocities in some samples) and heliocentric redshift,
        positive.
    mu : (N,)
        Distance modulus or corrected magnitude [mag].
    covariance : (N, N)
        Statistical and systematic covariance of `mu` [mag^2], positive definite.
    mu_calibrator : (N,)
        Distance modulus of the host from Cepheids or another calibrator [mag]; NaN if unknown. Its error is part of
        `covariance`.
    covariates : dict of str to (N,)
        Quantities to plot residuals against; NaN if missing.
    warnings : tuple of str
        One sentence for each unusual feature of the data.
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
    matrices = ("covariance",)

    @classmethod
    @renamed_keyword("called", "column_names")
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        *,
        covariates: Mapping[str, Any] | None = None,
        column_names: Mapping[str, str] | None = None,
    ) -> "DistanceModuli":
        """Validate columns and build the container.

        Parameters
        ----------
        columns
            Required: `z_cmb`; `mu` or `m_b_corr`; `covariance` (N, N), or `sigma` for independent errors. Optional:
            `z_hel` (default `z_cmb`), `mu_calibrator` (NaN, masked or empty if unknown), `survey`, `name`.
        covariates
            Additional columns for residual plots, which may also be among `columns` with the prefix ``covariate_``;
            entries may be missing.
        column_names
            Column names to use in messages, by standard name.

        Raises
        ------
        DataError
            For unknown or missing columns, unequal lengths, no rows, values that are missing, not finite or outside
            their allowed range, CMB and heliocentric redshifts that differ by more than 0.01 (1 + z), and a covariance
            that has a wrong shape, is not symmetric or is not positive definite.

        Examples
        --------
        >>> DistanceModuli.from_columns({"z_cmb": [0.1, 0.5], "mu": [38.3, 42.3], "sigma": [0.1, 0.1]})
        DistanceModuli(2 objects)
        """
        column_names = dict(column_names or {})
        columns = {**columns, **{f"{COVARIATE}{key}": value for key, value in (covariates or {}).items()}}
        prefixed = [key for key in columns if key.startswith(COVARIATE)]
        reject_unknown([key for key in columns if key not in prefixed], list(COLUMNS), "column")
        require_present("z_cmb", columns)
        quantity = only_one_of(QUANTITIES, columns)
        error = only_one_of(("sigma", "covariance"), columns)
        single = {key: value for key, value in columns.items() if key != "covariance"}
        names, survey, numbers, warnings = checked_columns(single, COLUMNS, column_names, {"mu_calibrator", *prefixed})
        if error == "sigma":
            covariance = np.diag(numbers["sigma"] ** 2)
            warnings += repeated_names(names, "objects")
        else:
            covariance = checked_covariance(columns["covariance"], column_names.get("covariance", "covariance"), names)
        return cls(
            names,
            survey,
            quantity,
            frozen_array(numbers["z_cmb"]),
            frozen_array(numbers.get("z_hel", numbers["z_cmb"])),
            frozen_array(numbers[quantity]),
            frozen_array(covariance),
            frozen_array(numbers.get("mu_calibrator", np.full(len(names), np.nan))),
            {key.removeprefix(COVARIATE): frozen_array(numbers[key]) for key in prefixed},
            warnings=tuple(warnings),
        )

    @property
    def sigma(self) -> Floats:
        """Error of each object [mag], (N,): the square root of the diagonal of the covariance."""
        return np.sqrt(np.diagonal(self.covariance))

    @property
    def is_calibrator(self) -> NDArray[np.bool_]:
        """Mask (N,) of the objects with a host distance that is independent of redshift."""
        return np.isfinite(self.mu_calibrator)

    def describe(self) -> str:
        """Return a one-paragraph summary: number of objects, surveys, redshifts and errors."""
        quantities = "distance moduli" if self.quantity == "mu" else "corrected magnitudes"
        off_diagonal = np.asarray(self.covariance) - np.diag(np.diagonal(self.covariance))
        errors = "correlated" if off_diagonal.any() else "uncorrelated"
        num_calibrators = int(self.is_calibrator.sum())
        calibrators = f" {num_calibrators} are calibrators of known distance." if num_calibrators else ""
        return (
            f"{len(self)} {quantities} at redshift {self.z_cmb.min():.4g} to {self.z_cmb.max():.4g}"
            f"{self._survey_text()}. Errors are {errors}, with a median of {np.median(self.sigma):.3g} mag."
            f"{calibrators}{self._warning_text()}"
        )

    def without_survey(self, survey: str) -> "DistanceModuli":
        """Return the objects of all other surveys.

        Raises
        ------
        DataError
            If the survey is not in the sample, or is the only one.
        """
        if survey not in self.survey:
            raise DataError(f"survey: expected one of {listed(self.survey_counts)}; found {survey!r}.")
        return self.subset(np.array([name != survey for name in self.survey]))

    def replace_observations(self, mu: ArrayLike) -> "DistanceModuli":
        """Return a copy with other moduli or magnitudes (N,), for example simulated ones.

        Raises
        ------
        DataError
            If a value is not finite or the length is not N.
        """
        values = float_vector(mu, "mu", self.name)
        require_same_length({"the container": len(self), "mu": len(values)})
        return dataclasses.replace(self, mu=frozen_array(values))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage."""
        fields = super().to_dict()
        del fields["covariates"]
        return fields | {f"{COVARIATE}{key}": np.array(value) for key, value in self.covariates.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "DistanceModuli":
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        columns = {key: value for key, value in stored.items() if key not in ("quantity", "mu", "warnings")}
        container = cls.from_columns(columns | {str(stored["quantity"]): stored["mu"]})
        return dataclasses.replace(container, warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table`` with one row per object, which `hbm_jax.data.read_distance_moduli` reads.

        The column ``covariance`` has N numbers per row. CSV has no such columns: there, `hbm-jax simulate` writes N
        columns ``covariance_0``, ``covariance_1`` and so on, which the reader recognises. The warnings are in the
        metadata, ``meta["warnings"]``, which ECSV and FITS files keep, so that the reader repeats them.
        """
        from astropy.table import Table

        columns = {key: value for key, value in self.to_dict().items() if key != "warnings"}
        columns[str(columns.pop("quantity"))] = columns.pop("mu")
        if not self.is_calibrator.any():
            del columns["mu_calibrator"]
        meta = {"warnings": list(self.warnings)} if self.warnings else None
        rows = {key: list(value) if value.dtype.kind == "U" else value for key, value in columns.items()}
        return Table(rows, meta=meta)
