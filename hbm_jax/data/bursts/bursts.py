"""Container of gamma-ray bursts at catalogue level: redshifts, and peak energy and flux of each time interval."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.bursts.flux_bands import FluxBands
from hbm_jax.data.columns import (
    BURST_REDSHIFT,
    ERROR,
    POSITIVE_ERROR,
    TEXT,
    Column,
    check_values,
    index_of_groups,
    padded,
    rows_by_group,
)
from hbm_jax.data.containers import HasWarnings, reshaped
from hbm_jax.names import listed, renamed_keyword
from hbm_jax.validation import (
    DataError,
    Floats,
    Labels,
    float_vector,
    frozen_array,
    reject_rows,
    reject_unknown,
    require_present,
    require_same_length,
    text_tuple,
)

MAX_REDSHIFT = BURST_REDSHIFT.allowed[1]
FLUX_UNITS = {"flux": "erg / (cm2 s)", "fluence": "erg / cm2"}
BOLOMETRIC = (1.0, 1e4)  # keV, rest frame
VALUES = {"log10_E_peak": "E_peak", "log10_flux": "flux"}
LIMITS = ("log10_flux_limit", "log10_peak_flux_limit")
OPTIONAL = ("covariance", "correlation", "alpha", "beta", "band_low", "band_high", *LIMITS, "sigma_z")


def columns_of(quantity: str) -> dict[str, Column]:
    """Return the declarations of all columns that `Bursts.from_columns` accepts, for ``"flux"`` or ``"fluence"``.

    Peak energies are limited to 0.1 keV to 1 GeV. Alpha must exceed -2, because otherwise E^2 N(E) has no peak. Raise
    DataError for another quantity.
    """
    if quantity not in FLUX_UNITS:
        raise DataError(f"quantity: expected one of {listed(FLUX_UNITS)}; found {quantity!r}.")
    unit = FLUX_UNITS[quantity]
    energy_error, flux_error = (dataclasses.replace(POSITIVE_ERROR, unit=error_unit) for error_unit in ("keV", unit))
    log10_flux = Column(f"dex({unit})", f"a logarithm of a {quantity} in {unit}", (-25.0, 5.0), (-12.0, 0.0))
    return {
        "burst": TEXT,
        "z": BURST_REDSHIFT,
        "sigma_z": ERROR,
        "log10_E_peak": Column("dex(keV)", "a logarithm of keV", (-1.0, 6.0), (0.0, 5.0)),
        "sigma_log10_E_peak": dataclasses.replace(POSITIVE_ERROR, unit="dex"),
        "E_peak": Column("keV", "a peak energy in keV", (0.1, 1e6), (1.0, 1e5)),
        "E_peak_err_lo": energy_error,
        "E_peak_err_hi": energy_error,
        "log10_flux": log10_flux,
        "sigma_log10_flux": dataclasses.replace(POSITIVE_ERROR, unit="dex"),
        "log10_flux_limit": log10_flux,
        "log10_peak_flux_limit": log10_flux,
        "flux": Column(unit, f"a {quantity} in {unit}", (1e-25, 1e5), (1e-12, 1.0)),
        "flux_err_lo": flux_error,
        "flux_err_hi": flux_error,
        "covariance": Column(None),
        "correlation": Column("", "a correlation", (-1.0, 1.0)),
        "alpha": Column("", "a photon index", (-2.0, 10.0), (-2.0, 4.0)),
        "beta": Column("", "a photon index", (-50.0, 0.0), (-20.0, -1.0)),
        "band_low": Column("keV", "an energy in keV", (0.0, 1e9)),
        "band_high": Column("keV", "an energy in keV", (0.0, 1e12)),
    }


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Bursts(HasWarnings):
    """Gamma-ray bursts with spectral parameters fitted in time intervals.

    Build it with `from_columns`, `hbm_jax.data.read_bursts` or `hbm_jax.data.load_konus`; the constructor does not
    validate. Registered as a pytree. There are B bursts of at most J intervals; shorter bursts are padded.

    Attributes
    ----------
    name : tuple of str
        Names of the bursts.
    z, sigma_z : (B,)
        Redshift, NaN where it is unknown, and its standard deviation, 0 where it is exact.
    log10_flux_limit : (B,)
        Flux limit below which intervals are not in the data [log10, in the units of the fluxes]; -inf for no limit.
    log10_peak_flux_limit : (B,)
        Limit of the brightest flux of each burst, below which the burst is not in the data, as ``log10_flux_limit``.
    used : (B, J)
        False for padding.
    log10_E_peak : (B, J)
        Logarithm of the observed peak energy of E^2 N(E) [keV].
    log10_flux : (B, J)
        Logarithm of the energy flux [erg/cm^2/s], or of the fluence [erg/cm^2].
    errors : (B, J, 3)
        Variance of log10_E_peak, covariance of log10_E_peak and log10_flux, variance of log10_flux.
    alpha, beta : (B, J)
        Photon indices below and above the peak. Beta is NaN for a power law with exponential cut-off; both are NaN
        where the spectral shape is unknown.
    flux_band : (B, J, 2)
        Observed energy band of the flux [keV]. NaN for a bolometric flux: 1 keV to 10 MeV in the rest frame.
    quantity : str
        ``"flux"`` or ``"fluence"``: the quantity in log10_flux.
    warnings : tuple of str
        Warnings about unusual values in the data, one sentence each.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    z: Any
    sigma_z: Any
    log10_flux_limit: Any
    log10_peak_flux_limit: Any
    used: Any
    log10_E_peak: Any
    log10_flux: Any
    errors: Any = field(metadata={"columns": ("variance of log10_E_peak", "covariance", "variance of log10_flux")})
    alpha: Any
    beta: Any
    flux_band: Any = field(metadata={"columns": ("lower energy of the flux band", "upper energy of the flux band")})
    quantity: str = field(default="flux", metadata={"static": True})
    object_name = "burst"

    @classmethod
    @renamed_keyword("called", "column_names")
    def from_columns(
        cls, columns: Mapping[str, Any], *, quantity: str = "flux", column_names: Mapping[str, str] | None = None
    ) -> "Bursts":
        """Build the container from columns with one row per interval, after checking them.

        Raises DataError for a missing or unknown column, unequal lengths, values that are missing or out of range, a
        flux below the flux limit, a covariance that is not positive definite, or different redshifts within a burst.
        The message names the column, the row and the burst.

        Parameters
        ----------
        columns : mapping of str to array
            Required: ``burst``, names; rows of the same name are the intervals of one burst, in this order. ``z``, the
            same in all rows of a burst; masked or NaN if unknown. Peak energy and flux, either as ``log10_E_peak`` and
            ``log10_flux`` with ``sigma_log10_E_peak`` and ``sigma_log10_flux``, or as ``E_peak`` [keV] and ``flux``
            [erg/cm^2/s] with ``E_peak_err_lo``, ``E_peak_err_hi``, ``flux_err_lo`` and ``flux_err_hi``; the standard
            deviation of the logarithm is then half of log10(value + err_hi) - log10(value - err_lo). Optional:
            ``covariance`` or ``correlation`` of the two logarithms, ``alpha`` and ``beta``, ``band_low`` and
            ``band_high`` [keV], ``sigma_z``, ``log10_flux_limit``, ``log10_peak_flux_limit``.
        quantity : str
            ``"flux"`` or ``"fluence"``.
        column_names : mapping, optional
            Names of columns in the user's table, by standard name, for use in messages.

        Examples
        --------
        >>> rows = dict(burst=["a", "a"], z=[1, 1], log10_E_peak=[2.5, 2.2], log10_flux=[-5.5, -6.1])
        >>> rows |= dict(sigma_log10_E_peak=[0.05, 0.04], sigma_log10_flux=[0.02, 0.03])
        >>> Bursts.from_columns(rows)
        Bursts(1 bursts, 2 intervals)
        """
        column_names = dict(column_names or {})
        rows, burst, warnings = _checked_rows(columns, columns_of(quantity), column_names)
        names = tuple(dict.fromkeys(burst))
        burst_index = index_of_groups(burst, names)
        no_value = np.full(len(burst), np.nan)

        def per_burst(key: str, default: float) -> Floats:
            values = _one_per_burst(rows.get(key, no_value), burst_index, names, column_names.get(key, key))
            return frozen_array(np.where(np.isnan(values), default, values))

        limit = per_burst("log10_flux_limit", -np.inf)
        below = rows["log10_flux"] < limit[burst_index]
        reject_rows(below, rows["log10_flux"], "log10_flux", "a flux above the burst's log10_flux_limit", burst)
        peak_limit = per_burst("log10_peak_flux_limit", -np.inf)
        brightest = np.full(len(names), -np.inf)
        np.maximum.at(brightest, burst_index, rows["log10_flux"])
        expected = "a burst with a flux above its log10_peak_flux_limit"
        reject_rows((brightest < peak_limit)[burst_index], rows["log10_flux"], "log10_flux", expected, burst)
        sigma_x, sigma_y = rows["sigma_log10_E_peak"], rows["sigma_log10_flux"]
        errors = np.stack([sigma_x**2, _covariance(rows, burst, column_names), sigma_y**2], -1)
        band = np.stack([rows.get(key, no_value) for key in ("band_low", "band_high")], -1)
        intervals = rows_by_group(burst_index)
        return cls(
            name=names,
            z=per_burst("z", np.nan),
            sigma_z=per_burst("sigma_z", 0.0),
            log10_flux_limit=limit,
            log10_peak_flux_limit=peak_limit,
            used=frozen_array(intervals >= 0, None),
            log10_E_peak=padded(rows["log10_E_peak"], intervals, 0.0),
            log10_flux=padded(rows["log10_flux"], intervals, 0.0),
            errors=padded(errors, intervals, [1.0, 0.0, 1.0]),  # finite densities in the padding
            alpha=padded(rows.get("alpha", no_value), intervals, np.nan),
            beta=padded(rows.get("beta", no_value), intervals, np.nan),
            flux_band=padded(band, intervals, [np.nan, np.nan]),
            quantity=quantity,
            warnings=tuple(warnings),
        )

    def __repr__(self) -> str:
        return f"Bursts({len(self)} bursts, {self.num_intervals} intervals)"

    @property
    def num_intervals(self) -> int:
        """Total number of intervals."""
        return int(np.asarray(self.used).sum())

    @property
    def knows_redshift(self) -> NDArray[np.bool_]:
        """Mask (B,) of the known redshifts without error."""
        return np.isfinite(self.z) & (np.asarray(self.sigma_z) == 0)

    @property
    def has_limit(self) -> bool:
        """True if any burst has a flux limit, of its intervals or of the brightest one."""
        return bool(np.isfinite(self.log10_flux_limit).any() or np.isfinite(self.log10_peak_flux_limit).any())

    @property
    def has_band(self) -> NDArray[np.bool_]:
        """Mask (B, J) of the fluxes in an observed band (not bolometric) with a known spectral shape."""
        return np.asarray(self.used) & np.isfinite(self.flux_band).all(axis=-1) & np.isfinite(self.alpha)

    def log10_k(self, z: ArrayLike, rest: tuple[float, float] = BOLOMETRIC):
        """Return log10 of the ratio of the flux in a rest-frame band [keV] to the measured flux, (B, J).

        It is 0 for bolometric fluxes. Redshifts (B,) may be traced. The measured peak energies and indices are used;
        their errors are not propagated.
        """
        bands = FluxBands.of(self)
        return np.zeros(np.shape(self.used)) if bands is None else bands.log10_k(z, rest)

    def describe(self) -> str:
        """Return a paragraph on the sample: numbers of bursts and intervals, redshifts, peak energies and bands."""
        known, unknown = int(self.knows_redshift.sum()), int(np.isnan(self.z).sum())
        sizes = np.asarray(self.used).sum(axis=1)
        intervals = (
            f"{sizes.min()} to {sizes.max()} intervals each" if sizes.max() > sizes.min() else f"{sizes[0]} each"
        )
        redshifts = f" at redshift {np.nanmin(self.z):.4g} to {np.nanmax(self.z):.4g}" if unknown < len(self) else ""
        peak = 10.0 ** np.asarray(self.log10_E_peak)[np.asarray(self.used)]
        limit = ", above a flux limit" if self.has_limit else ""
        quantities = "fluences" if self.quantity == "fluence" else "fluxes"
        text = (
            f"{len(self)} gamma-ray bursts{redshifts}; {known} redshifts are known, {unknown} unknown, the others "
            f"uncertain. {self.num_intervals} {quantities}{limit}, {intervals}, with peak energies of "
            f"{peak.min():.3g} to {peak.max():.4g} keV; {int(self.has_band.sum())} in observed bands."
        )
        return text + self._warning_text()

    def without_redshifts(self, which: ArrayLike) -> "Bursts":
        """Return a copy in which the redshifts of some bursts, given by a mask (B,), indices or names, are unknown.

        Raises DataError for a name that is not in the sample.
        """
        selected = np.asarray(which)
        names = [str(value) for value in selected] if selected.dtype.kind in "US" else []
        for name in names:
            if name not in self.name:
                raise DataError(
                    f"without_redshifts: expected names of bursts; found {name!r}, which is not in the sample."
                )
        index = np.array([self.name.index(name) for name in names]) if names else selected
        z, sigma_z = np.array(self.z), np.array(self.sigma_z)
        z[index], sigma_z[index] = np.nan, 0.0
        return dataclasses.replace(self, z=frozen_array(z), sigma_z=frozen_array(sigma_z))

    def replace_observations(self, observed: ArrayLike) -> "Bursts":
        """Return a copy with new measured (log10_E_peak, log10_flux), (B, J, 2), for example simulated ones."""
        values = reshaped(observed, self.observed, "observed")
        bad = np.asarray(self.used) & ~np.isfinite(values).all(axis=-1)
        reject_rows(bad.any(axis=1), values, "observed", "finite numbers in every interval", self.name)
        x, y = np.moveaxis(np.where(np.asarray(self.used)[..., None], values, 0.0), -1, 0)
        return dataclasses.replace(self, log10_E_peak=frozen_array(x), log10_flux=frozen_array(y))

    @property
    def observed(self):
        """Measured (log10_E_peak, log10_flux), (B, J, 2)."""
        return np.stack([self.log10_E_peak, self.log10_flux], axis=-1)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage and fingerprints; limits of whole bursts if there are any."""
        stored = super().to_dict()
        if not np.isfinite(stored["log10_peak_flux_limit"]).any():
            del stored["log10_peak_flux_limit"]
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Bursts":
        """Build the container from the output of `to_dict`, after checking it; every value is restored exactly."""
        defaults = {"log10_peak_flux_limit": np.full(len(np.atleast_1d(stored["z"])), -np.inf)}
        restored = super().from_dict(defaults | dict(stored))
        cls.from_columns(restored._columns(), quantity=restored.quantity)
        return restored

    def to_table(self):
        """Return an astropy ``Table`` with one row per interval, which `hbm_jax.data.read_bursts` reads back."""
        from astropy.table import Table

        return Table(self._columns(), meta={"quantity": self.quantity})

    def _columns(self) -> dict[str, Any]:
        """Return columns with one row per interval, without columns that have no values."""
        arrays = {key: np.asarray(value) for key, value in self._fields().items()}
        used = arrays["used"].astype(bool)
        burst_index = np.repeat(np.arange(len(used)), used.sum(axis=1))
        errors, band = arrays["errors"][used], arrays["flux_band"][used]
        columns = {"burst": arrays["name"][burst_index]}
        columns |= {key: arrays[key][burst_index] for key in ("z", "sigma_z")}
        columns |= {key: arrays[key][used] for key in ("log10_E_peak", "log10_flux")}
        columns |= {"sigma_log10_E_peak": np.sqrt(errors[:, 0]), "sigma_log10_flux": np.sqrt(errors[:, 2])}
        columns |= {"covariance": errors[:, 1], "alpha": arrays["alpha"][used], "beta": arrays["beta"][used]}
        columns |= {"band_low": band[:, 0], "band_high": band[:, 1]}
        for name in LIMITS:
            columns[name] = np.where(np.isinf(arrays[name]), np.nan, arrays[name])[burst_index]
        return {key: value for key, value in columns.items() if key in ("burst", "z") or not np.isnan(value).all()}


def _checked_rows(
    columns: Mapping[str, Any], declared: Mapping[str, Column], column_names: Mapping[str, str]
) -> tuple[dict[str, Floats], tuple[str, ...], list[str]]:
    """Return the numerical columns (including the logarithms), the burst of each row, and warnings."""
    reject_unknown(columns, list(declared), "column")
    for key in ("burst", "z"):
        require_present(key, columns)
    burst = text_tuple(columns["burst"], column_names.get("burst", "burst"), "row {row}")
    optional = [key for key in ("z", *OPTIONAL) if key in columns]
    rows = {
        key: float_vector(columns[key], column_names.get(key, key), burst, allow_missing=key in optional)
        for key in (*_measured_columns(columns), *optional)
    }
    require_same_length({"burst": len(burst)} | {key: len(value) for key, value in rows.items()})
    warnings = check_values(rows, declared, column_names, burst)
    for key, linear in VALUES.items():
        if key not in rows:
            rows[key], rows[f"sigma_{key}"] = _logarithm(rows, linear, burst, column_names)
    _check_spectral_shapes(rows, burst, column_names)
    return rows, burst, warnings + _repeated_intervals(rows, burst)


def _measured_columns(columns: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns of peak energy and flux and their errors; logarithms take precedence."""
    names: list[str] = []
    for key, linear in VALUES.items():
        if key not in columns and linear not in columns:
            raise DataError(f"column {key!r} is missing: expected {key!r} or {linear!r}; found {listed(columns)}.")
        names += [key, f"sigma_{key}"] if key in columns else [linear, f"{linear}_err_lo", f"{linear}_err_hi"]
    for name in names:
        require_present(name, columns)
    return names


def _logarithm(rows, linear: str, burst, column_names) -> tuple[Floats, Floats]:
    """Return log10 of a quantity and its standard deviation."""
    lower_error = f"{linear}_err_lo"
    value, down, up = rows[linear], rows[lower_error], rows[f"{linear}_err_hi"]
    label = column_names.get(lower_error, lower_error)
    reject_rows(down >= value, down, label, f"an error smaller than {linear}", burst)
    return np.log10(value), 0.5 * (np.log10(value + up) - np.log10(value - down))


def _check_spectral_shapes(rows, burst, column_names) -> None:
    """Raise DataError for inconsistent photon indices or energy bands."""
    if "beta" in rows:
        bad = ~np.isnan(rows["beta"]) & (rows["beta"] >= np.minimum(rows.get("alpha", 0.0), -1.0))
        reject_rows(bad, rows["beta"], column_names.get("beta", "beta"), "an index below alpha and below -1", burst)
    if ("band_low" in rows) != ("band_high" in rows):
        raise DataError("band_low, band_high: expected both columns or none; found one of them.")
    if "band_low" in rows:
        low, high = rows["band_low"], rows["band_high"]
        bad = (np.isnan(low) != np.isnan(high)) | (high <= low)
        reject_rows(
            bad, np.stack([low, high], -1), "band_low, band_high", "two energies [keV] in increasing order", burst
        )
        if "alpha" not in rows or np.isnan(rows["alpha"][~np.isnan(low)]).any():
            raise DataError(
                "band_low, band_high: expected the photon index alpha (and beta) of every flux with a band, for the "
                "k-correction; found fluxes without it."
            )


def _repeated_intervals(rows, burst) -> list[str]:
    """Return a warning about bursts with identical intervals, which may be duplicated rows."""
    counts = Counter(zip(burst, rows["log10_E_peak"].tolist(), rows["log10_flux"].tolist(), strict=True))
    repeated = dict.fromkeys(key[0] for key, num in counts.items() if num > 1)
    if not repeated:
        return []
    return [f"{listed(repeated, 5)}: the same peak energy and flux in more than one row, taken as different intervals"]


def _covariance(rows, burst, column_names) -> Floats:
    """Return the covariance of log10_E_peak and log10_flux; 0 if the table does not contain it."""
    product = rows["sigma_log10_E_peak"] * rows["sigma_log10_flux"]
    if "covariance" in rows and "correlation" in rows:
        raise DataError("covariance, correlation: expected one of the two columns; found both.")
    if "correlation" in rows:
        correlation, key = np.nan_to_num(rows["correlation"]), "correlation"
    else:
        correlation, key = np.nan_to_num(rows.get("covariance", np.zeros(len(product)))) / product, "covariance"
    bad = np.abs(correlation) >= 1
    expected = "a value of a positive definite covariance matrix"
    reject_rows(bad, rows.get(key, correlation), column_names.get(key, key), expected, burst)
    return correlation * product


def _one_per_burst(values: Floats, burst_index, names, label: str) -> Floats:
    """Return the value of each burst; raise DataError if it is not the same in all its rows."""
    first = values[np.unique(burst_index, return_index=True)[1]]
    differs = ~((values == first[burst_index]) | (np.isnan(values) & np.isnan(first[burst_index])))
    row_names = Labels(len(burst_index), lambda row: names[burst_index[row]])
    reject_rows(differs, values, label, "one value in all intervals of a burst", row_names)
    return first
