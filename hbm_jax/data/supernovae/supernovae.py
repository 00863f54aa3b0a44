"""The container of type Ia supernovae: SALT parameters with their covariances, redshifts and host masses."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import Unusual, warnings_of
from hbm_jax.data.supernovae.columns import COVARIANCES, QUANTITIES, SENSITIVITIES, VARIANCES, checked_fields
from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts, lensing_variance, velocity_variance
from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import (
    DataError,
    float_vector,
    frozen_array,
    reject_rows,
    require_covariances,
    require_same_length,
)

__all__ = ["Supernovae"]

Floats = NDArray[np.float64]


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Supernovae(Unusual):
    """Type Ia supernovae, one row each: what was measured, and how well.

    Build one with `from_columns`, `hbm_jax.data.read_supernovae` or `hbm_jax.data.load_jla`; the constructor itself
    checks nothing, because JAX uses it with traced fields. A pytree: the arrays are leaves, the names are static.
    Arrays are read-only float64 NumPy arrays; N is the number of supernovae.

    Attributes
    ----------
    name, survey
        N strings each; ``"unknown"`` where the table names no survey.
    z_cmb, z_hel : (N,)
        Redshift in the CMB frame and heliocentric, positive.
    m_b, x1, c : (N,)
        Rest-frame peak magnitude in B [mag], stretch, colour [mag], as observed.
    covariance : (N, 3, 3)
        Covariance of (m_b, x1, c) from the light-curve fit alone, positive definite.
    variance_coherent, variance_lensing, variance_velocity : (N,)
        Other parts of the published error of m_b [mag^2]. They are kept apart because a model with an intrinsic scatter
        of its own must not count the coherent part twice. Zero where the data does not carry them.
    log10_mass, sigma_log10_mass : (N,)
        Stellar mass of the host and its error [log10 solar masses], as published. NaN where there is no value, in the
        error also where the table has no column for it. Some tables publish placeholders instead, which are kept: JLA
        writes 5 or 6 with error 10 or 5 for "not measured". A sharp step takes that for a low mass, as the published
        analysis does; a model of the errors of masses takes it for none (`UNMEASURED_MASS_ERROR`).
    sigma_z : (N,)
        Error of both redshifts, as of photometric ones; zero where they are spectroscopic.
    offset_name : J strings
        Calibration offsets, each in units of its prior error; none where the data does not carry them.
    sensitivity : (N, J, 3)
        What one unit of each offset adds to the observed (m_b, x1, c).
    warnings : tuple of str
        What is unusual in the data, a sentence each.
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
    sensitivity: Floats
    offset_name: tuple[str, ...] = field(metadata={"static": True})

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], *, called: Mapping[str, str] | None = None) -> "Supernovae":
        """Check columns and build the container: the one place where data comes in.

        Parameters
        ----------
        columns
            Arrays by name. Required: `z_cmb`, `z_hel`, `m_b`, `x1`, `c`, and their errors, either as `covariance`
            (N, 3, 3) or as `sigma_m_b` or `var_m_b`, `sigma_x1` or `var_x1`, `sigma_c` or `var_c`. Optional:
            `cov_m_x1`, `cov_m_c`, `cov_x1_c` (zero where absent), `variance_coherent`, `variance_lensing`,
            `variance_velocity` (zero where absent), `log10_mass` and `sigma_log10_mass` (NaN where absent; single
            entries may be NaN or masked), `sigma_z` (zero where absent), `sensitivity` (N, J, 3) with
            `offset_name` (J), `survey`, and `name` (``"row 0"`` and so on where absent).
        called
            What messages call a column, where the user's table has another name for it.

        Returns
        -------
        Supernovae

        Raises
        ------
        DataError
            For an unknown or missing column, unequal lengths, no rows, a value missing, not finite or beyond what
            physics allows (`hbm_jax.data.supernovae.columns`), redshifts in two frames that cannot be of one object,
            and a covariance that is not symmetric or not positive definite. The message names the column, the first
            such row (from 0) and its object.

        Examples
        --------
        >>> sn = dict(z_cmb=[0.1], z_hel=[0.1], m_b=[19.0], x1=[0.0], c=[0.0], covariance=0.01 * np.eye(3)[None])
        >>> Supernovae.from_columns(sn).num_objects
        1
        """
        return cls(**checked_fields(columns, called or {}))

    @property
    def num_objects(self) -> int:
        """Number of supernovae, N."""
        return len(self.name)

    def __len__(self) -> int:
        return len(self.name)

    def __repr__(self) -> str:
        return f"Supernovae({len(self.name)} objects)"

    @property
    def variance_m_b_total(self) -> Floats:
        """Fit, coherent, lensing and velocity variance of m_b together [mag^2], (N,)."""
        return self.covariance[:, 0, 0] + self.variance_coherent + self.variance_lensing + self.variance_velocity

    @property
    def has_host_mass(self) -> NDArray[np.bool_]:
        """Whether each object has a host mass, (N,)."""
        return np.isfinite(self.log10_mass)

    @property
    def survey_counts(self) -> dict[str, int]:
        """Number of supernovae of each survey, the largest first."""
        return dict(Counter(self.survey).most_common())

    def describe(self) -> str:
        """Return one paragraph: how many objects, from where, at which redshifts, and what is known of them."""
        counts = self.survey_counts
        listed = ", ".join(f"{name} {num}" for name, num in counts.items())
        surveys = "" if set(counts) == {"unknown"} else f" ({listed})"
        correlated = any(np.any(self.covariance[:, i, j]) for i, j in COVARIANCES.values())
        parts = [key.removeprefix("variance_") for key in VARIANCES if np.any(getattr(self, key))]
        return (
            f"{self.num_objects} type Ia supernovae at redshift {self.z_cmb.min():.4g} to {self.z_cmb.max():.4g}"
            f"{surveys}. Fit errors of m_b, x1 and c are {'correlated' if correlated else 'uncorrelated'}; "
            f"further variances of m_b carried apart: {', '.join(parts) or 'none'}; "
            f"host masses: {int(self.has_host_mass.sum())} of {self.num_objects}.{self._told()}"
        )

    def subset(self, rows: ArrayLike) -> "Supernovae":
        """Return the objects picked by a boolean mask (N,) or by integer indices.

        Raises
        ------
        DataError
            If the mask has another length, an index is out of range, or nothing is left.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> sne = load_jla()
        >>> sne.subset(sne.z_cmb < 0.1).num_objects
        152
        """
        index = np.asarray(rows)
        num = self.num_objects
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
        picked: dict[str, Any] = {
            key: tuple(value[i] for i in index) if isinstance(value, tuple) else frozen_array(value[index])
            for key, value in self._fields().items()
            if key != "offset_name"
        }
        return dataclasses.replace(self, **picked)

    def replace_observations(self, m_b: ArrayLike, x1: ArrayLike, c: ArrayLike) -> "Supernovae":
        """Return a copy with other observed values, (N,) each, for example simulated ones.

        Raises
        ------
        DataError
            If a value is not finite or the length is not N.
        """
        given = dict(zip(QUANTITIES, (m_b, x1, c), strict=True))
        new: dict[str, Any] = {key: frozen_array(float_vector(value, key, self.name)) for key, value in given.items()}
        require_same_length({"the container": self.num_objects} | {key: len(value) for key, value in new.items()})
        return dataclasses.replace(self, **new)

    def with_variances(
        self,
        *,
        coherent: ArrayLike | None = None,
        lensing: ArrayLike | None = None,
        velocity: ArrayLike | None = None,
    ) -> "Supernovae":
        """Return a copy with the given variances of m_b [mag^2], each a number or (N,); None keeps what is there.

        Raises
        ------
        DataError
            If a variance is negative or not finite, or the length is not N.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> sne = load_jla()
        >>> sne = sne.with_variances(velocity=velocity_variance(sne.z_cmb, sigma_v_km_s=250.0))
        """
        given = {"variance_coherent": coherent, "variance_lensing": lensing, "variance_velocity": velocity}
        new: dict[str, Any] = {}
        for key, value in given.items():
            if value is None:
                continue
            value = np.full(self.num_objects, value) if np.ndim(value) == 0 else value
            numbers = float_vector(value, key, self.name)
            require_same_length({"the container": self.num_objects, key: len(numbers)})
            reject_rows(numbers < 0, numbers, key, "a variance of 0 or more", self.name)
            new[key] = frozen_array(numbers)
        return dataclasses.replace(self, **new)

    def separate_error_parts(self, parts: MagnitudeErrorParts) -> "Supernovae":
        """Return a copy with `parts` taken out of the fit variance of m_b and put in their own fields.

        Raises
        ------
        DataError
            If some variance is already apart, a survey has no coherent scatter in `parts`, or what is left for the fit
            is not a positive definite covariance.
        """
        apart = [key for key in VARIANCES if np.any(getattr(self, key))]
        if apart:
            raise DataError(
                f"separating the parts of the magnitude error: expected none apart yet, found {listed(apart)}."
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
            [f"{left:.4g} mag^2 left of {whole:.4g}" for left, whole in zip(fit, total, strict=True)],
            "variance of m_b less its coherent, lensing and velocity parts",
            "a positive variance for the light-curve fit",
            self.name,
        )
        covariance = require_covariances(covariance, "covariance less the separated parts", self.name)
        separated = self.with_variances(coherent=coherent, lensing=lensing, velocity=velocity)
        return dataclasses.replace(separated, covariance=frozen_array(covariance))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage; without what the data lack."""
        absent = set() if np.any(self.sigma_z) else {"sigma_z"}
        absent |= set() if self.offset_name else {"sensitivity", "offset_name"}
        return {key: np.array(value) for key, value in self._fields().items() if key not in absent} | self._stored()

    def to_table(self):
        """Return an astropy ``Table``, one row a supernova, that `hbm_jax.data.read_supernovae` reads back.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> load_jla().to_table().write("sample.ecsv")  # doctest: +SKIP
        """
        from astropy.table import Table

        others = ("covariance", "sensitivity", "offset_name")
        columns: dict[str, Any] = {key: value for key, value in self._fields().items() if key not in others}
        for index, key in enumerate(QUANTITIES):
            columns[f"var_{key}"] = self.covariance[:, index, index]
        columns |= {key: self.covariance[:, i, j] for key, (i, j) in COVARIANCES.items()}
        for index, start in enumerate(SENSITIVITIES):
            columns |= {f"{start}{name}": self.sensitivity[:, j, index] for j, name in enumerate(self.offset_name)}
        if not self.has_host_mass.any():
            del columns["log10_mass"], columns["sigma_log10_mass"]
        return Table({key: list(value) if isinstance(value, tuple) else value for key, value in columns.items()})

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Supernovae":
        """Build the container from what `to_dict` returned; every value comes back exactly."""
        made = cls.from_columns({key: value for key, value in stored.items() if key != "warnings"})
        return dataclasses.replace(made, warnings=warnings_of(stored))

    def _fields(self) -> dict[str, Any]:
        """Return the fields by name, not copied."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "warnings"}
