"""Simulated catalogues of gamma-ray bursts that obey the rest-frame Golenetskii relation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.bursts.bursts import Bursts
from hbm_jax.data.populations import (
    EVOLUTIONS,
    log10_areas,
    moments,
    require,
    require_choice,
    require_moments,
    require_ranges,
)
from hbm_jax.validation import DataError

LOG_NORMAL_TEXT, LOG_NORMAL = "log-normal", (0.5, 0.6)
_MAX_DRAWS = 500  # draws per requested interval, after which a flux limit is considered unreachable


class SimulatedBursts(NamedTuple):
    """Simulated bursts and their true parameters.

    Attributes
    ----------
    data : Bursts
        Bursts named ``sim001`` and so on.
    truth : dict of str to array
        Population parameters, named as in `hbm_jax.models.Golenetskii`; ``z, gamma, log10_N, log10_E_peak_burst`` (B,)
        of each burst; ``log10_E_peak`` (rest frame [keV]) and ``log10_flux`` (B, J) of each interval, padded with NaN;
        and ``num_drawn``, the number of intervals drawn, including those below the flux limit.
    """

    data: Bursts
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BurstPopulation:
    """A population of bursts whose intervals obey L = N (E_peak (1 + z) / 100 keV)^gamma, with the observed E_peak.

    Pairs of numbers are a mean and a standard deviation, unless stated otherwise. Raises ValueError for invalid values.

    Parameters
    ----------
    redshift : str or (float, float) or sequence of float
        ``"log-normal"``: ln z ~ N(0.5, 0.6^2), clipped to 0.02 to 12; without the limits it is also the prior of
        `hbm_jax.models.Golenetskii` for unknown redshifts. Two numbers: uniform between them. More than two: these
        values, cyclically.
    unknown : float or int
        Fraction (below 1) or number of bursts whose redshift is unknown; these are the last bursts of the sample.
    num_intervals : int or sequence of int
        Number of intervals per burst; several numbers are used cyclically.
    gamma, log10_N : (float, float)
        Slope and normalisation [erg/s] of the bursts' relations.
    correlation : float
        Correlation of gamma and log10_N.
    intrinsic_scatter : float
        Scatter of log10 flux about a burst's relation.
    log10_E_peak : (float, float)
        Bursts' mean peak energy in the rest frame [keV].
    log10_E_peak_scatter : float
        Scatter of a burst's intervals about its mean peak energy.
    evolution : str
        Order of a burst's intervals in time: ``"hard to soft"``, ``"tracking"`` (rise in the first third, then decay)
        or ``"none"``. It does not change their distribution.
    sigma_log10_E_peak, sigma_log10_flux : (float, float)
        Smallest and largest error; log-uniform between them.
    error_correlation : float
        Correlation of the two errors of an interval.
    log10_flux_limit : float, optional
        Limit on the measured flux [log10 erg/cm^2/s]; intervals below it are drawn again.
    H0, Om0 : float
        Parameters of the flat LCDM cosmology.

    Examples
    --------
    >>> sample = BurstPopulation(num_intervals=[3, 5]).draw(4, seed=1)
    >>> sample.data.num_intervals
    16
    """

    redshift: str | Sequence[float] = "log-normal"
    unknown: float = 0
    num_intervals: int | Sequence[int] = 12
    gamma: tuple[float, float] = (1.5, 0.2)
    log10_N: tuple[float, float] = (52.0, 0.3)
    correlation: float = 0.0
    intrinsic_scatter: float = 0.1
    log10_E_peak: tuple[float, float] = (2.6, 0.3)
    log10_E_peak_scatter: float = 0.25
    evolution: str = "hard to soft"
    sigma_log10_E_peak: tuple[float, float] = (0.02, 0.1)
    sigma_log10_flux: tuple[float, float] = (0.02, 0.08)
    error_correlation: float = 0.3
    log10_flux_limit: float | None = None
    H0: float = 70.0
    Om0: float = 0.3

    def __post_init__(self):
        require_moments(self, "gamma", "log10_N", "log10_E_peak")
        require_ranges(self, "errors", "sigma_log10_E_peak", "sigma_log10_flux")
        require(self, ("correlation", "error_correlation"), "-1 to 1", lambda value: -1 < value < 1)
        require(self, ("redshift",), f"{LOG_NORMAL_TEXT!r}, or two or more positive numbers", _are_redshifts)
        require_choice(self, "evolution", EVOLUTIONS)
        require(self, ("unknown",), "a fraction or a number of bursts", lambda value: value >= 0)

    def draw(self, num: int, *, seed: int) -> SimulatedBursts:
        """Draw a sample of ``num`` bursts.

        Raises DataError if hardly any interval is above the flux limit.
        """
        rng = np.random.default_rng(seed)
        z = self._redshifts(rng, num)
        log10_area = log10_areas(z, self.H0, self.Om0)
        deviates = rng.multivariate_normal(np.zeros(2), [[1.0, self.correlation], [self.correlation, 1.0]], num)
        gamma, log10_N = (mean + std * u for (mean, std), u in zip((self.gamma, self.log10_N), deviates.T, strict=True))
        mean_log10_E_peak = rng.normal(*self.log10_E_peak, num)
        num_intervals = np.resize(np.atleast_1d(self.num_intervals), num)
        names = np.array([f"sim{i + 1:03d}" for i in range(num)])
        drawn = [
            self._intervals(
                rng, num_intervals[i], mean_log10_E_peak[i], log10_N[i] - log10_area[i], gamma[i], z[i], names[i]
            )
            for i in range(num)
        ]
        rows = np.concatenate([intervals for intervals, _ in drawn])
        used = np.arange(num_intervals.max()) < num_intervals[:, None]
        true_values = {key: np.full(used.shape, np.nan) for key in ("log10_E_peak", "log10_flux")}
        for key, values in zip(true_values, rows.T, strict=False):
            true_values[key][used] = values
        measured = ("log10_E_peak", "log10_flux", "sigma_log10_E_peak", "sigma_log10_flux")
        columns: dict[str, Any] = {"burst": np.repeat(names, num_intervals), "z": np.repeat(z, num_intervals)}
        columns |= dict(zip(measured, rows.T[2:], strict=True))
        columns["correlation"] = np.full(len(rows), self.error_correlation)
        if self.log10_flux_limit is not None:
            columns["log10_flux_limit"] = np.full(len(rows), self.log10_flux_limit)
        data = Bursts.from_columns(columns)
        num_unknown = round(self.unknown * num) if self.unknown < 1 else int(self.unknown)
        if num_unknown:
            data = data.without_redshifts(np.arange(num - num_unknown, num))
        single_numbers = ("correlation", "log10_E_peak_scatter", "intrinsic_scatter")
        truth = moments(self, "gamma", "log10_N", "log10_E_peak") | {key: getattr(self, key) for key in single_numbers}
        truth |= {"z": z, "gamma": gamma, "log10_N": log10_N, "log10_E_peak_burst": mean_log10_E_peak, **true_values}
        truth["num_drawn"] = sum(num_of_burst for _, num_of_burst in drawn)
        return SimulatedBursts(data, {key: np.asarray(value) for key, value in truth.items()})

    def _redshifts(self, rng, num: int) -> np.ndarray:
        """Draw redshifts; log-normal ones are clipped to 0.02 to 12."""
        if isinstance(self.redshift, str):
            return np.clip(rng.lognormal(*LOG_NORMAL, num), 0.02, 12.0)
        values = np.asarray(self.redshift, float)
        return rng.uniform(*values, num) if len(values) == 2 else np.resize(values, num)

    def _intervals(self, rng, num: int, mean_log10_E_peak, log10_flux_at_100keV, gamma, z, name):
        """Draw one burst; return its intervals (num, 6) and the number of draws.

        The columns are true log10_E_peak (rest frame) and log10_flux, the measured values, and the two errors.
        """
        accepted: list[np.ndarray] = []
        drawn = 0
        while sum(map(len, accepted)) < num:
            if drawn >= _MAX_DRAWS * num:
                raise DataError(
                    f"BurstPopulation: expected {num} intervals of {name} (z = {z:.2f}) above log10_flux_limit = "
                    f"{self.log10_flux_limit}; found {sum(map(len, accepted))} of {drawn} drawn. Lower the limit."
                )
            peak = rng.normal(mean_log10_E_peak, self.log10_E_peak_scatter, num)
            flux = log10_flux_at_100keV + gamma * (peak - 2.0) + rng.normal(0.0, self.intrinsic_scatter, num)
            log_limits = np.log([self.sigma_log10_E_peak, self.sigma_log10_flux])
            sigma = np.exp(rng.uniform(log_limits[:, 0], log_limits[:, 1], (num, 2)))
            error = rng.standard_normal((num, 2))
            error[:, 1] = self.error_correlation * error[:, 0] + np.sqrt(1 - self.error_correlation**2) * error[:, 1]
            measured = np.stack([peak - np.log10(1.0 + z), flux], axis=-1) + sigma * error
            above = measured[:, 1] >= (-np.inf if self.log10_flux_limit is None else self.log10_flux_limit)
            accepted.append(np.column_stack([peak, flux, measured, sigma])[above])
            drawn += num
        rows = np.concatenate(accepted)[:num]
        return rows[self._order(rows[:, 0])], drawn

    def _order(self, peak) -> np.ndarray:
        """Return the indices of the intervals in the order of time that the evolution of the peak energy implies."""
        order = np.argsort(-peak)
        if self.evolution == "none":
            return np.arange(len(peak))
        if self.evolution == "hard to soft":
            return order
        rise = order[1::3][::-1]  # one interval in three
        return np.concatenate([rise, np.setdiff1d(order, rise, assume_unique=True)])


def _are_redshifts(values: str | Sequence[float]) -> bool:
    """Return True for ``"log-normal"``, and for two or more positive numbers."""
    return values == LOG_NORMAL_TEXT if isinstance(values, str) else len(values) >= 2 and min(values) > 0
