"""Type Ia supernovae: SALT parameters with their covariances, redshifts and host masses."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.containers import warnings_of
from hbm_jax.data.supernovae.columns import (
    BANDS,
    CALIBRATORS,
    COVARIANCES,
    LIMITS,
    QUANTITIES,
    SENSITIVITIES,
    VARIANCES,
    HasSurveys,
    checked_fields,
)
from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts, lensing_variance, velocity_variance
from hbm_jax.names import did_you_mean, listed, renamed_keyword
from hbm_jax.validation import (
    DataError,
    Floats,
    float_vector,
    frozen_array,
    reject_rows,
    require_covariances,
    require_same_length,
)


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Supernovae(HasSurveys):
    """Light-curve parameters, redshifts and host masses of N type Ia supernovae, with their errors.

    Build it with `from_columns`, `hbm_jax.data.read_supernovae` or `hbm_jax.data.load_jla`. The constructor does not
    validate, because JAX calls it with traced fields. Registered as a pytree: arrays are leaves, strings are static.
    Arrays are read-only float64 NumPy arrays.

    Attributes
    ----------
    name, survey : tuple of str
        Name and survey of each supernova; the survey is ``"unknown"`` if the table does not contain it.
    z_cmb, z_hel : (N,)
        Redshifts in the CMB frame and in the heliocentric frame, positive.
    m_b, x1, c : (N,)
        Observed rest-frame peak magnitude in B [mag], stretch and colour [mag].
    covariance : (N, 3, 3)
        Covariance of (m_b, x1, c) from the light-curve fit alone, positive definite.
    variance_coherent, variance_lensing, variance_velocity : (N,)
        Other contributions to the published variance of m_b [mag^2], zero if absent. They are separate so that a model
        with a free intrinsic scatter does not count the coherent scatter twice.
    log10_mass, sigma_log10_mass : (N,)
        Stellar mass of the host and its error [log10 solar masses], as published; NaN if missing. Placeholders for
        unmeasured masses are kept: JLA uses masses of 5 or 6 with errors of 10 or 5. A model with a sharp mass step
        counts these hosts as low-mass, as the published analysis does; a model with mass errors treats them as
        unmeasured (`hbm_jax.data.supernovae.columns.UNMEASURED_MASS_ERROR`).
    sigma_z : (N,)
        Error of both redshifts, for example photometric ones; zero for spectroscopic redshifts.
    prob_ia : (N,)
        Probability that the object is of type Ia, from a classification of its light curve; 1 where it is known to be.
    num_observations : (N,)
        Number of measured vectors that a row combines (`hbm_jax.data.combine_observations`), 1 by default.
    band_limit, band_limit_width : (N,)
        Detection limit of the survey in an observed band, at which half of the objects are detected, and its width
        [mag]; NaN for a survey without one.
    band_offset, band_colour : (N,)
        Coefficients of the magnitude in that band, m_b + band_offset + band_colour c, at the redshift; 0 by default.
    mu_calibrator, sigma_mu_calibrator : (N,)
        Distance modulus of the host from Cepheids or another calibrator, and its error [mag]; NaN if unknown.
    offset_name : tuple of str
        Names of the J calibration offsets, which are in units of their prior errors; may be empty.
    sensitivity : (N, J, 3)
        Change of the observed (m_b, x1, c) per unit of each offset.
    warnings : tuple of str
        One sentence for each unusual feature of the data.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    survey: tuple[str, ...] = field(metadata={"static": True})
    z_cmb: Floats
    z_hel: Floats
    m_b: Floats
    x1: Floats
    c: Floats
    covariance: Floats
    variance_coherent: Floats
    variance_lensing: Floats
    variance_velocity: Floats
    log10_mass: Floats
    sigma_log10_mass: Floats
    sigma_z: Floats
    prob_ia: Floats
    num_observations: Floats
    band_limit: Floats
    band_limit_width: Floats
    band_offset: Floats
    band_colour: Floats
    mu_calibrator: Floats
    sigma_mu_calibrator: Floats
    sensitivity: Floats
    offset_name: tuple[str, ...] = field(metadata={"static": True})
    whole = ("offset_name",)

    @classmethod
    @renamed_keyword("called", "column_names")
    def from_columns(cls, columns: Mapping[str, Any], *, column_names: Mapping[str, str] | None = None) -> "Supernovae":
        """Validate columns and build the container.

        Parameters
        ----------
        columns
            Arrays by name. Required: `z_cmb`, `z_hel`, `m_b`, `x1`, `c`, and the errors of (m_b, x1, c), either as
            `covariance` (N, 3, 3) or as `sigma_m_b` or `var_m_b`, `sigma_x1` or `var_x1`, `sigma_c` or `var_c`.
            Optional, default zero: `cov_m_x1`, `cov_m_c`, `cov_x1_c`, `variance_coherent`, `variance_lensing`,
            `variance_velocity`, `sigma_z`. Optional: `log10_mass` and `sigma_log10_mass` (default NaN; entries may be
            NaN or masked), `prob_ia` (default 1, for missing entries too), `num_observations` (default 1),
            `band_limit` and `band_limit_width` (default and missing entries: no limit), `band_offset` and `band_colour`
            (default 0), `mu_calibrator` and `sigma_mu_calibrator` (default and missing entries: no calibrator),
            `sensitivity` (N, J, 3) with `offset_name` (J), `survey`, and `name` (default ``"row 0"`` and
            so on).
        column_names
            Column names to use in messages, by standard name.

        Raises
        ------
        DataError
            For unknown or missing columns, unequal lengths, no rows, values that are missing, not finite or outside
            their allowed range (`hbm_jax.data.supernovae.columns.COLUMNS`), CMB and heliocentric redshifts that differ
            by more than 0.01 (1 + z), and a covariance that is not symmetric or not positive definite. The message
            names the column, the first invalid row (counted from 0) and its object.

        Examples
        --------
        >>> sn = dict(z_cmb=[0.1], z_hel=[0.1], m_b=[19.0], x1=[0.0], c=[0.0], covariance=0.01 * np.eye(3)[None])
        >>> Supernovae.from_columns(sn).num_objects
        1
        """
        return cls(**checked_fields(columns, column_names or {}))

    @property
    def num_objects(self) -> int:
        """Number of supernovae, N."""
        return len(self.name)

    @property
    def variance_m_b_total(self) -> Floats:
        """Sum of the fit, coherent, lensing and velocity variances of m_b [mag^2], (N,)."""
        return self.covariance[:, 0, 0] + self.variance_coherent + self.variance_lensing + self.variance_velocity

    @property
    def has_host_mass(self) -> NDArray[np.bool_]:
        """Mask (N,) of the objects with a host mass."""
        return np.isfinite(self.log10_mass)

    @property
    def is_calibrator(self) -> NDArray[np.bool_]:
        """Mask (N,) of the supernovae whose host has a distance of its own."""
        return np.isfinite(self.mu_calibrator)

    def describe(self) -> str:
        """Return a one-paragraph summary: number of objects, surveys, redshifts, errors and host masses."""
        correlated = any(np.any(self.covariance[:, i, j]) for i, j in COVARIANCES.values())
        parts = [key.removeprefix("variance_") for key in VARIANCES if np.any(getattr(self, key))]
        calibrators = f" {self.is_calibrator.sum()} are calibrators of known distance." * bool(self.is_calibrator.any())
        return (
            f"{self.num_objects} type Ia supernovae at redshift {self.z_cmb.min():.4g} to {self.z_cmb.max():.4g}"
            f"{self._survey_text()}. Fit errors of m_b, x1 and c are {'correlated' if correlated else 'uncorrelated'}; "
            f"separate variances of m_b: {', '.join(parts) or 'none'}; "
            f"host masses: {int(self.has_host_mass.sum())} of {self.num_objects}.{self._type_text()}"
            f"{calibrators}"
            f"{self._warning_text()}"
        )

    def _type_text(self) -> str:
        """Return a sentence on the probabilities of type Ia; empty if all are 1."""
        uncertain = self.prob_ia < 1.0
        if not uncertain.any():
            return ""
        expected = float(np.sum(1.0 - self.prob_ia))
        return (
            f" {int(uncertain.sum())} have a probability of type Ia below 1; {expected:.1f} expected not to be of it."
        )

    def replace_observations(self, m_b: ArrayLike, x1: ArrayLike, c: ArrayLike) -> "Supernovae":
        """Return a copy with other observed values (N,), for example simulated ones.

        Raises
        ------
        DataError
            If a value is not finite, or a length is not N.
        """
        observed = dict(zip(QUANTITIES, (m_b, x1, c), strict=True))
        arrays: dict[str, Any] = {
            key: frozen_array(float_vector(value, key, self.name)) for key, value in observed.items()
        }
        require_same_length({"the container": self.num_objects} | {key: len(value) for key, value in arrays.items()})
        return dataclasses.replace(self, **arrays)

    def with_variances(
        self,
        *,
        coherent: ArrayLike | None = None,
        lensing: ArrayLike | None = None,
        velocity: ArrayLike | None = None,
    ) -> "Supernovae":
        """Return a copy with other separate variances of m_b [mag^2], each a number or (N,); None changes nothing.

        Raises
        ------
        DataError
            If a variance is negative or not finite, or a length is not N.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> sne = load_jla()
        >>> sne = sne.with_variances(velocity=velocity_variance(sne.z_cmb, sigma_v_km_s=250.0))
        """
        variances = {"variance_coherent": coherent, "variance_lensing": lensing, "variance_velocity": velocity}
        arrays: dict[str, Any] = {}
        for key, value in variances.items():
            if value is None:
                continue
            value = np.full(self.num_objects, value) if np.ndim(value) == 0 else value
            numbers = float_vector(value, key, self.name)
            require_same_length({"the container": self.num_objects, key: len(numbers)})
            reject_rows(numbers < 0, numbers, key, "a variance of 0 or more", self.name)
            arrays[key] = frozen_array(numbers)
        return dataclasses.replace(self, **arrays)

    def separate_error_parts(self, parts: MagnitudeErrorParts) -> "Supernovae":
        """Return a copy with `parts` subtracted from the fit variance of m_b and stored in the ``variance_*`` fields.

        Raises
        ------
        DataError
            If a separate variance is not zero, a survey has no coherent scatter in `parts`, or the remaining fit
            covariance is not positive definite.
        """
        separate = [key for key in VARIANCES if np.any(getattr(self, key))]
        if separate:
            raise DataError(
                "separating the parts of the magnitude error: expected no separate variances yet, found "
                f"{listed(separate)}."
            )
        scatter = parts.coherent_scatter
        if isinstance(scatter, Mapping):
            for survey in self.survey_counts:
                if survey not in scatter:
                    raise DataError(
                        f"coherent_scatter has no value for survey {survey!r}{did_you_mean(survey, scatter)}: "
                        f"expected one for each of {listed(self.survey_counts)}, found {listed(scatter)}."
                    )
            coherent = np.array([scatter[survey] for survey in self.survey], dtype=np.float64) ** 2
        else:
            coherent = np.full(self.num_objects, float(scatter) ** 2)
        lensing = lensing_variance(self.z_cmb, parts.lensing_per_z)
        velocity = velocity_variance(self.z_cmb, parts.sigma_v_km_s)
        covariance = self.covariance.copy()
        covariance[:, 0, 0] -= coherent + lensing + velocity
        fit, total = covariance[:, 0, 0], self.covariance[:, 0, 0]
        reject_rows(
            fit <= 0,
            [f"{remainder:.4g} mag^2 left of {variance:.4g}" for remainder, variance in zip(fit, total, strict=True)],
            "variance of m_b minus its coherent, lensing and velocity parts",
            "a positive variance for the light-curve fit",
            self.name,
        )
        covariance = require_covariances(covariance, "covariance minus the separated parts", self.name)
        separated = self.with_variances(coherent=coherent, lensing=lensing, velocity=velocity)
        return dataclasses.replace(separated, covariance=frozen_array(covariance))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name for storage, text as arrays of strings; omit absent optional fields."""
        absent = set() if np.any(self.sigma_z) else {"sigma_z"}
        absent |= {name for name in ("prob_ia", "num_observations") if np.all(getattr(self, name) == 1.0)}
        absent |= self._unused
        absent |= set() if self.offset_name else {"sensitivity", "offset_name"}
        return {key: value for key, value in super().to_dict().items() if key not in absent}

    @property
    def _unused(self) -> set[str]:
        """Names of the fields of detection limits, and of calibrators, if no object has one."""
        unused = set() if np.isfinite(self.band_limit).any() else {*LIMITS, *BANDS}
        return unused if self.is_calibrator.any() else {*unused, *CALIBRATORS}

    def to_table(self):
        """Return an astropy ``Table`` with one row per supernova, which `hbm_jax.data.read_supernovae` reads.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> load_jla().to_table().write("sample.ecsv")  # doctest: +SKIP
        """
        from astropy.table import Table

        not_columns = ("covariance", "sensitivity", "offset_name")
        columns: dict[str, Any] = {key: value for key, value in self._fields().items() if key not in not_columns}
        for index, key in enumerate(QUANTITIES):
            columns[f"var_{key}"] = self.covariance[:, index, index]
        columns |= {key: self.covariance[:, i, j] for key, (i, j) in COVARIANCES.items()}
        for index, prefix in enumerate(SENSITIVITIES):
            columns |= {f"{prefix}{name}": self.sensitivity[:, j, index] for j, name in enumerate(self.offset_name)}
        for name in ("prob_ia", "num_observations"):
            if np.all(columns[name] == 1.0):
                del columns[name]
        for name in self._unused:
            del columns[name]
        if not self.has_host_mass.any():
            del columns["log10_mass"], columns["sigma_log10_mass"]
        return Table({key: list(value) if isinstance(value, tuple) else value for key, value in columns.items()})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Supernovae":
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        container = cls.from_columns({key: value for key, value in stored.items() if key != "warnings"})
        # The class of a warning (`RepeatedNames`) is its category, which a file of texts does not keep.
        categories = {text: text for text in container.warnings}
        return dataclasses.replace(
            container, warnings=tuple(categories.get(text, text) for text in warnings_of(stored))
        )
