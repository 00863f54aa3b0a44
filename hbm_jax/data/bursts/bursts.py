"""The container of gamma-ray bursts at catalogue level: peak energy and flux of their intervals, and redshifts."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import (
    BURST_REDSHIFT,
    ERROR,
    POSITIVE_ERROR,
    TEXT,
    Column,
    Unusual,
    check_values,
    places_of,
    places_within,
    warnings_of,
)
from hbm_jax.names import listed
from hbm_jax.spectra.model.components import Band, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import k_correction
from hbm_jax.validation import (
    DataError,
    Labels,
    float_vector,
    frozen_array,
    reject_rows,
    reject_unknown,
    require_present,
    require_same_length,
    text_tuple,
)

__all__ = ["Bursts"]

Floats = NDArray[np.float64]
MAX_REDSHIFT = BURST_REDSHIFT.allowed[1]
FLUX_UNITS = {"flux": "erg / (cm2 s)", "fluence": "erg / cm2"}
BOLOMETRIC = (1.0, 1e4)  # keV, in the burst's frame
ARRAYS = (
    "z",
    "sigma_z",
    "log10_flux_limit",
    "used",
    "log10_E_peak",
    "log10_flux",
    "errors",
    "alpha",
    "beta",
    "flux_band",
)
VALUES = {"log10_E_peak": "E_peak", "log10_flux": "flux"}
OPTIONAL = ("covariance", "correlation", "alpha", "beta", "band_low", "band_high", "log10_flux_limit", "sigma_z")


def columns_of(quantity: str) -> dict[str, Column]:
    """Return every column that `Bursts.from_columns` takes, of fluxes or of fluences.

    A peak energy is from 0.1 keV to 1 GeV; without an index alpha above -2 there is no peak.
    """
    if quantity not in FLUX_UNITS:
        raise DataError(f"quantity: expected one of {listed(FLUX_UNITS)}; found {quantity!r}.")
    unit = FLUX_UNITS[quantity]
    energy_error, flux_error = (dataclasses.replace(POSITIVE_ERROR, unit=one) for one in ("keV", unit))
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
class Bursts(Unusual):
    """Gamma-ray bursts with the fitted spectra of their intervals.

    Build one with `from_columns`, `hbm_jax.data.read_bursts` or `hbm_jax.data.load_konus`; the constructor itself
    checks nothing. A pytree. B bursts have at most J intervals; what is beyond the last one of a burst is padding.

    Attributes
    ----------
    name : tuple of str
        Of the bursts.
    z, sigma_z : (B,)
        Redshift, NaN where it is unknown, and its error, 0 where it is known without one.
    log10_flux_limit : (B,)
        Flux below which an interval is not in the data [log10, as the fluxes]; -inf where there is no limit.
    used : (B, J)
        False for padding.
    log10_E_peak : (B, J)
        Logarithm of the peak energy of E^2 N(E) as observed [keV].
    log10_flux : (B, J)
        Logarithm of the energy flux [erg/cm^2/s], or of the fluence [erg/cm^2].
    errors : (B, J, 3)
        Variance of log10_E_peak, covariance of the two, variance of log10_flux.
    alpha, beta : (B, J)
        Photon indices below and above the peak; NaN in beta for a power law with exponential cut-off, in both where the
        shape is unknown.
    flux_band : (B, J, 2)
        Energies between which the flux was measured, as observed [keV]. NaN for a flux that is bolometric already: from
        1 keV to 10 MeV in the burst's frame.
    quantity : str
        ``"flux"`` or ``"fluence"``: what log10_flux is of.
    warnings : tuple of str
        What is unusual in the data, a sentence each.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    z: Any
    sigma_z: Any
    log10_flux_limit: Any
    used: Any
    log10_E_peak: Any
    log10_flux: Any
    errors: Any
    alpha: Any
    beta: Any
    flux_band: Any
    quantity: str = field(default="flux", metadata={"static": True})

    @classmethod
    def from_columns(
        cls, columns: Mapping[str, Any], *, quantity: str = "flux", called: Mapping[str, str] | None = None
    ) -> "Bursts":
        """Check columns of one row an interval, and build the container.

        Parameters
        ----------
        columns : mapping of str to array
            ``burst``, names; rows of the same name are intervals of one burst, in the order given. ``z``, the same in
            all rows of a burst, masked or NaN where it is unknown. ``log10_E_peak`` and ``log10_flux`` with
            ``sigma_log10_E_peak`` and ``sigma_log10_flux``; or ``E_peak`` [keV] and ``flux`` [erg/cm^2/s] with
            ``E_peak_err_lo``, ``E_peak_err_hi`` and ``flux_err_lo``, ``flux_err_hi``, of which half the distance of
            log10(value + hi) from log10(value - lo) is the standard deviation. Optional: ``covariance`` or
            ``correlation`` of the two logarithms, ``alpha`` and ``beta``, ``band_low`` and ``band_high`` [keV],
            ``sigma_z``, ``log10_flux_limit``.
        quantity : str
            ``"flux"`` or ``"fluence"``.
        called : mapping, optional
            What messages call a column, where the user's table has another name for it.

        Raises
        ------
        DataError
            For a missing or unknown column, unequal lengths, values that are missing or out of range, a flux below the
            limit, a covariance that is not positive definite, redshifts of one burst that differ. The message names the
            column, the row and the burst.

        Examples
        --------
        >>> rows = dict(burst=["a", "a"], z=[1, 1], log10_E_peak=[2.5, 2.2], log10_flux=[-5.5, -6.1])
        >>> rows |= dict(sigma_log10_E_peak=[0.05, 0.04], sigma_log10_flux=[0.02, 0.03])
        >>> Bursts.from_columns(rows)
        Bursts(1 bursts, 2 intervals)
        """
        called = dict(called or {})
        declared = columns_of(quantity)
        reject_unknown(columns, list(declared), "column")
        for key in ("burst", "z"):
            require_present(key, columns)
        burst = text_tuple(columns["burst"], called.get("burst", "burst"), "row {row}")
        optional = [key for key in ("z", *OPTIONAL) if key in columns]
        rows: dict[str, Floats] = {
            key: float_vector(columns[key], called.get(key, key), burst, allow_missing=key in optional)
            for key in (*_measured(columns), *optional)
        }
        require_same_length({"burst": len(burst)} | {key: len(value) for key, value in rows.items()})
        warnings = check_values(rows, declared, called, burst)
        for key, linear in VALUES.items():
            if key not in rows:
                rows[key], rows[f"sigma_{key}"] = _logarithm(rows, linear, burst, called)
        _check_shapes(rows, burst, called)
        warnings += _repeated_intervals(rows, burst)
        covariance = _covariance(rows, burst, called)
        names = tuple(dict.fromkeys(burst))
        of = places_of(burst, names)
        per_burst = {
            "z": _one_each(rows["z"], of, names, called.get("z", "z")),
            "sigma_z": np.nan_to_num(_one_each(rows.get("sigma_z", np.zeros(len(of))), of, names, "sigma_z")),
        }
        limit = _one_each(rows.get("log10_flux_limit", np.full(len(of), np.nan)), of, names, "log10_flux_limit")
        per_burst["log10_flux_limit"] = np.where(np.isnan(limit), -np.inf, limit)
        below = rows["log10_flux"] < per_burst["log10_flux_limit"][of]
        reject_rows(below, rows["log10_flux"], "log10_flux", "a flux above the burst's log10_flux_limit", burst)
        place = places_within(of)
        shape = len(names), place.max() + 1

        def padded(values, fill):
            out = np.full(shape + np.shape(values)[1:], fill)
            out[of, place] = values
            return frozen_array(out)

        sigma_x, sigma_y = rows["sigma_log10_E_peak"], rows["sigma_log10_flux"]
        nothing = np.full(len(of), np.nan)
        used = np.zeros(shape, bool)
        used[of, place] = True
        used.flags.writeable = False
        return cls(
            name=names,
            used=used,
            log10_E_peak=padded(rows["log10_E_peak"], 0.0),
            log10_flux=padded(rows["log10_flux"], 0.0),
            errors=_unit_where_padded(padded(np.stack([sigma_x**2, covariance, sigma_y**2], -1), 0.0), used),
            alpha=padded(rows.get("alpha", nothing), np.nan),
            beta=padded(rows.get("beta", nothing), np.nan),
            flux_band=padded(np.stack([rows.get("band_low", nothing), rows.get("band_high", nothing)], -1), np.nan),
            quantity=quantity,
            warnings=tuple(warnings),
            **{key: frozen_array(value) for key, value in per_burst.items()},
        )

    def __len__(self) -> int:
        return len(self.name)

    def __repr__(self) -> str:
        return f"Bursts({len(self)} bursts, {self.num_intervals} intervals)"

    @property
    def num_intervals(self) -> int:
        """Number of intervals of all bursts together."""
        return int(np.asarray(self.used).sum())

    @property
    def knows_redshift(self) -> NDArray[np.bool_]:
        """Whether each redshift is known without error, (B,)."""
        return np.isfinite(self.z) & (np.asarray(self.sigma_z) == 0)

    @property
    def has_limit(self) -> bool:
        """Whether any burst has a limit of flux."""
        return bool(np.isfinite(self.log10_flux_limit).any())

    @property
    def has_band(self) -> NDArray[np.bool_]:
        """Whether each flux was measured in a band of its own and the shape is known, (B, J)."""
        return np.asarray(self.used) & np.isfinite(self.flux_band).all(axis=-1) & np.isfinite(self.alpha)

    def log10_k(self, z: ArrayLike, rest: tuple[float, float] = BOLOMETRIC):
        """Logarithm of the flux in a band in the burst's frame over that measured, at given redshifts.

        Parameters
        ----------
        z : (B,)
            Redshifts, which may be traced.
        rest : (low, high)
            The band [keV].

        Returns
        -------
        (B, J)
            0 where the flux has no band of its own. With the measured peak energy and indices: their errors are not
            carried over.
        """
        here = self.has_band
        if not here.any():
            return np.zeros(here.shape)
        is_band = here & np.isfinite(self.beta)
        alpha = np.where(here, self.alpha, -1.0)
        values = {
            "e_peak": 10.0 ** np.where(here, self.log10_E_peak, 2.0),
            "alpha": alpha,
            "photon_index": -alpha,
            "beta": np.where(is_band, self.beta, np.minimum(alpha - 0.5, -2.5)),
            "log10_amplitude": np.zeros(here.shape),
        }
        observed = tuple(np.moveaxis(np.where(here[..., None], self.flux_band, [10.0, 1000.0]), -1, 0))
        band, cutoff = (
            jnp.log10(k_correction(shape, values, jnp.asarray(z)[:, None], rest=rest, observed=observed))
            for shape in (Band(norm="amplitude"), CutoffPowerLaw(norm="amplitude", peak=True))
        )
        return jnp.where(here, jnp.where(is_band, band, cutoff), 0.0)

    def describe(self) -> str:
        """Return one paragraph: how many bursts and intervals, at which redshifts, and what is known of them."""
        known, unknown = int(self.knows_redshift.sum()), int(np.isnan(self.z).sum())
        each = np.asarray(self.used).sum(axis=1)
        intervals = f"{each.min()} to {each.max()} intervals each" if each.max() > each.min() else f"{each[0]} each"
        at = f" at redshift {np.nanmin(self.z):.4g} to {np.nanmax(self.z):.4g}" if unknown < len(self) else ""
        peak = 10.0 ** np.asarray(self.log10_E_peak)[np.asarray(self.used)]
        limit = ", above a limit of flux" if self.has_limit else ""
        text = (
            f"{len(self)} gamma-ray bursts{at}; {known} redshifts are known, {unknown} unknown, the others uncertain. "
            f"{self.num_intervals} {self.quantity}es{limit}, {intervals}, with peak energies of {peak.min():.3g} to "
            f"{peak.max():.4g} keV; {int(self.has_band.sum())} in bands of their own."
        )
        return text.replace("fluencees", "fluences") + self._told()

    def subset(self, rows: ArrayLike) -> "Bursts":
        """Return the bursts picked by a boolean mask (B,) or by integer indices.

        Raises
        ------
        DataError
            If the mask has another length, an index is out of range, or nothing is left.
        """
        index = np.asarray(rows)
        if index.dtype.kind == "b":
            if index.shape != (len(self),):
                raise DataError(f"subset: expected a mask of shape ({len(self)},); found shape {index.shape}.")
            index = np.flatnonzero(index)
        if index.size == 0:
            raise DataError("subset: expected at least one burst; found a selection of none.")
        if index.dtype.kind not in "iu" or index.ndim != 1 or not (np.abs(index + 0.5) < len(self)).all():
            raise DataError(f"subset: expected a mask, or indices from {-len(self)} to {len(self) - 1}; found {index}.")
        picked: dict[str, Any] = {key: np.asarray(getattr(self, key))[index] for key in ARRAYS}
        return dataclasses.replace(self, name=tuple(self.name[i] for i in index), **picked)

    def without_redshifts(self, which: ArrayLike) -> "Bursts":
        """Return a copy in which the redshifts of some bursts, by mask (B,), indices or names, are unknown."""
        given = np.asarray(which)
        names = [str(one) for one in given] if given.dtype.kind in "US" else []
        for name in names:
            if name not in self.name:
                raise DataError(f"without_redshifts: expected names of bursts; found {name!r}, which is none of them.")
        index = np.array([self.name.index(name) for name in names]) if names else given
        z, sigma_z = np.array(self.z), np.array(self.sigma_z)
        z[index], sigma_z[index] = np.nan, 0.0
        return dataclasses.replace(self, z=frozen_array(z), sigma_z=frozen_array(sigma_z))

    def replace_observations(self, observed: ArrayLike) -> "Bursts":
        """Return a copy with other measured (log10_E_peak, log10_flux), (B, J, 2), for example simulated ones."""
        values = np.asarray(observed, float)
        if values.shape != (*np.shape(self.used), 2):
            raise DataError(f"observed: expected shape {(*np.shape(self.used), 2)}; found {values.shape}.")
        bad = np.asarray(self.used) & ~np.isfinite(values).all(axis=-1)
        reject_rows(bad.any(axis=1), values, "observed", "finite numbers in every interval", self.name)
        x, y = np.moveaxis(np.where(np.asarray(self.used)[..., None], values, 0.0), -1, 0)
        return dataclasses.replace(self, log10_E_peak=frozen_array(x), log10_flux=frozen_array(y))

    @property
    def observed(self):
        """Measured (log10_E_peak, log10_flux), (B, J, 2)."""
        return np.stack([self.log10_E_peak, self.log10_flux], axis=-1)

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage."""
        own = {key: np.array(getattr(self, key)) for key in ARRAYS}
        return {"name": np.array(self.name), "quantity": np.array(self.quantity)} | own | self._stored()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Bursts":
        """Build the container from what `to_dict` returned; every value comes back exactly."""
        table = {key: np.asarray(stored[key]) for key in ARRAYS}
        used = table["used"].astype(bool)
        of = np.repeat(np.arange(len(used)), used.sum(axis=1))
        names = np.asarray([str(name) for name in stored["name"]])
        cls.from_columns(_columns(names, of, used, table), quantity=str(stored["quantity"]))
        warnings = warnings_of(stored)
        arrays: dict[str, Any] = {key: frozen_array(value) for key, value in table.items() if key != "used"}
        quantity = str(stored["quantity"])
        return cls(name=tuple(names.tolist()), used=used, quantity=quantity, warnings=warnings, **arrays)

    def to_table(self):
        """Return an astropy ``Table``, one row an interval, that `hbm_jax.data.read_bursts` reads back."""
        from astropy.table import Table

        used = np.asarray(self.used)
        of = np.repeat(np.arange(len(used)), used.sum(axis=1))
        columns = _columns(np.asarray(self.name), of, used, {key: np.asarray(getattr(self, key)) for key in ARRAYS})
        return Table(columns, meta={"quantity": self.quantity})


def _columns(names, of, used, arrays) -> dict[str, Any]:
    """Columns of one row an interval, those without any value left out."""
    errors, band = arrays["errors"][used], arrays["flux_band"][used]
    columns = {
        "burst": names[of],
        "z": arrays["z"][of],
        "sigma_z": arrays["sigma_z"][of],
        "log10_E_peak": arrays["log10_E_peak"][used],
        "log10_flux": arrays["log10_flux"][used],
        "sigma_log10_E_peak": np.sqrt(errors[:, 0]),
        "sigma_log10_flux": np.sqrt(errors[:, 2]),
        "covariance": errors[:, 1],
        "alpha": arrays["alpha"][used],
        "beta": arrays["beta"][used],
        "band_low": band[:, 0],
        "band_high": band[:, 1],
        "log10_flux_limit": np.where(np.isinf(arrays["log10_flux_limit"]), np.nan, arrays["log10_flux_limit"])[of],
    }
    return {key: value for key, value in columns.items() if key in ("burst", "z") or not np.isnan(value).all()}


def _measured(columns: Mapping[str, Any]) -> list[str]:
    """Return the columns of peak energy and flux: the logarithms where they are there."""
    names: list[str] = []
    for key, linear in VALUES.items():
        if key not in columns and linear not in columns:
            raise DataError(f"column {key!r} is missing: expected {key!r} or {linear!r}; found {listed(columns)}.")
        names += [key, f"sigma_{key}"] if key in columns else [linear, f"{linear}_err_lo", f"{linear}_err_hi"]
    for name in names:
        require_present(name, columns)
    return names


def _logarithm(rows, linear: str, burst, called) -> tuple[Floats, Floats]:
    """Logarithm of a quantity and its standard deviation."""
    low = f"{linear}_err_lo"
    value, down, up = rows[linear], rows[low], rows[f"{linear}_err_hi"]
    reject_rows(down >= value, down, called.get(low, low), f"an error smaller than {linear}", burst)
    return np.log10(value), 0.5 * (np.log10(value + up) - np.log10(value - down))


def _check_shapes(rows, burst, called) -> None:
    """Photon indices and bands that can be."""
    if "beta" in rows:
        bad = ~np.isnan(rows["beta"]) & (rows["beta"] >= np.minimum(rows.get("alpha", 0.0), -1.0))
        reject_rows(bad, rows["beta"], called.get("beta", "beta"), "an index below alpha", burst)
    if ("band_low" in rows) != ("band_high" in rows):
        raise DataError("band_low, band_high: expected both columns or none; found one of them.")
    if "band_low" in rows:
        low, high = rows["band_low"], rows["band_high"]
        bad = (np.isnan(low) != np.isnan(high)) | (high <= low)
        reject_rows(bad, np.stack([low, high], -1), "band_low, band_high", "two energies [keV] in order", burst)
        if "alpha" not in rows or np.isnan(rows["alpha"][~np.isnan(low)]).any():
            raise DataError(
                "band_low, band_high: expected the photon index alpha (and beta) of every flux with a band, for the "
                "k-correction; found none of some."
            )


def _repeated_intervals(rows, burst) -> list[str]:
    """Warn of intervals of one burst that are the same to the last digit: data that count twice."""
    both = Counter(zip(burst, rows["log10_E_peak"].tolist(), rows["log10_flux"].tolist(), strict=True))
    twice = dict.fromkeys(key[0] for key, times in both.items() if times > 1)
    if not twice:
        return []
    return [f"{listed(twice, 5)}: the same peak energy and flux in more than one row, taken as different intervals"]


def _covariance(rows, burst, called) -> Floats:
    product = rows["sigma_log10_E_peak"] * rows["sigma_log10_flux"]
    if "covariance" in rows and "correlation" in rows:
        raise DataError("covariance, correlation: expected one of the two columns; found both.")
    if "correlation" in rows:
        correlation, key = np.nan_to_num(rows["correlation"]), "correlation"
    else:
        correlation, key = np.nan_to_num(rows.get("covariance", np.zeros(len(product)))) / product, "covariance"
    bad = np.abs(correlation) >= 1
    reject_rows(bad, rows.get(key, correlation), called.get(key, key), "one of a positive definite matrix", burst)
    return correlation * product


def _one_each(values: Floats, of, names, what: str) -> Floats:
    """Return what all rows of a burst agree on."""
    first = values[np.unique(of, return_index=True)[1]]
    differs = ~((values == first[of]) | (np.isnan(values) & np.isnan(first[of])))
    reject_rows(
        differs, values, what, "one value in all intervals of a burst", Labels(len(of), lambda row: names[of[row]])
    )
    return first


def _unit_where_padded(errors: Floats, used) -> Floats:
    """Errors of padding that a density can be computed with."""
    return frozen_array(np.where(used[..., None], errors, [1.0, 0.0, 1.0]))
