"""Simulated gamma-ray bursts at catalogue level: pulses that obey the rest-frame Golenetskii relation, as measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.bursts import Bursts
from hbm_jax.spectra.model.energetics import log10_sphere
from hbm_jax.validation import DataError

__all__ = ["BurstPopulation", "SimulatedBursts"]

EVOLUTIONS = ("hard to soft", "tracking", "none")
LOG_NORMAL_TEXT, LOG_NORMAL = "log-normal", (0.5, 0.6)
_MOST = 500  # draws for each interval wanted, before a limit is taken for impossible


class SimulatedBursts(NamedTuple):
    """What was drawn.

    Attributes
    ----------
    data : Bursts
        Named ``sim001`` and so on.
    truth : dict of str to array
        The parameters of the population by the names that `hbm_jax.models.Golenetskii` gives them; ``z, gamma, log10_N,
        log10_E_peak_burst`` (B,) of each burst; ``log10_E_peak`` (at rest [keV]) and ``log10_flux`` (B, J) of each
        interval, padded with NaN; and ``num_drawn``: intervals drawn until enough of them were above the limit.
    """

    data: Bursts
    truth: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BurstPopulation:
    """A population of bursts whose intervals obey L = N (E_peak (1 + z) / 100 keV)^gamma.

    Pairs are means and standard deviations.

    Parameters
    ----------
    redshift : str or (float, float) or sequence of float
        ``"log-normal"``: ln z ~ N(0.5, 0.6^2), also the prior that `hbm_jax.models.Golenetskii` has for redshifts that
        it is not told. Two numbers: uniform between them. More: exactly those, in turn.
    unknown : float or int
        Share (below 1) or number of the bursts, the last ones, whose redshift the sample does not tell.
    num_intervals : int or sequence of int
        Intervals a burst; of several numbers, in turn.
    gamma, log10_N : (float, float)
        Of the relations; N in erg/s.
    correlation : float
        Of gamma and log10_N.
    intrinsic_scatter : float
        Of log10 of the flux about a burst's relation.
    log10_E_peak : (float, float)
        Of the mean peak energies of bursts, at rest [keV].
    log10_E_peak_scatter : float
        Of a burst's intervals about its mean.
    evolution : str
        How the intervals of a burst follow each other: ``"hard to soft"``, ``"tracking"`` (a rise that takes a third of
        them, then the decay) or ``"none"``. It orders what is drawn and changes no distribution.
    sigma_log10_E_peak, sigma_log10_flux : (float, float)
        Smallest and largest error; log-uniform between.
    error_correlation : float
        Of the errors of one interval.
    log10_flux_limit : float, optional
        Intervals with a measured flux below are drawn anew [log10 erg/cm^2/s].
    H0, Om0 : float
        The universe, flat.

    Raises
    ------
    ValueError
        For choices that make no sense.

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
        for name in ("gamma", "log10_N", "log10_E_peak"):
            value = getattr(self, name)
            if len(value) != 2 or not value[1] >= 0:
                raise ValueError(f"BurstPopulation: {name}: expected mean and standard deviation; found {value}.")
        for name in ("sigma_log10_E_peak", "sigma_log10_flux"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"BurstPopulation: {name}: expected two positive errors in order; found {low, high}.")
        for name in ("correlation", "error_correlation"):
            if not -1 < getattr(self, name) < 1:
                raise ValueError(f"BurstPopulation: {name}: expected -1 to 1; found {getattr(self, name)}.")
        given = self.redshift
        if given != LOG_NORMAL_TEXT if isinstance(given, str) else len(given) < 2 or not min(given) > 0:
            raise ValueError(
                f"BurstPopulation: redshift: expected {LOG_NORMAL_TEXT!r}, or two or more above 0; found {given!r}."
            )
        if self.evolution not in EVOLUTIONS:
            raise ValueError(f"BurstPopulation: evolution: expected one of {EVOLUTIONS}; found {self.evolution!r}.")
        if not self.unknown >= 0:
            raise ValueError(f"BurstPopulation: unknown: expected a share or a number of bursts; found {self.unknown}.")

    def draw(self, num: int, *, seed: int) -> SimulatedBursts:
        """Draw a sample.

        Parameters
        ----------
        num : int
            Number of bursts in it.
        seed : int
            Of the random numbers.

        Raises
        ------
        DataError
            If the limit leaves next to nothing.
        """
        rng = np.random.default_rng(seed)
        z = self._redshifts(rng, num)
        with jax.enable_x64(True):
            sphere = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(H0=self.H0, Om0=self.Om0)))
        unit = rng.multivariate_normal(np.zeros(2), [[1.0, self.correlation], [self.correlation, 1.0]], num)
        gamma, log10_N = (mean + std * u for (mean, std), u in zip((self.gamma, self.log10_N), unit.T, strict=True))
        middle = rng.normal(*self.log10_E_peak, num)
        counts = np.resize(np.atleast_1d(self.num_intervals), num)
        names = [f"sim{i + 1:03d}" for i in range(num)]
        true = {key: np.full((num, counts.max()), np.nan) for key in ("log10_E_peak", "log10_flux")}
        rows: dict[str, list] = {
            key: [] for key in ("burst", "z", "log10_E_peak", "log10_flux", "sigma_log10_E_peak", "sigma_log10_flux")
        }
        num_drawn = 0
        for i, name in enumerate(names):
            peak, flux, measured, sigma, drawn = self._intervals(
                rng, counts[i], middle[i], log10_N[i] - sphere[i], gamma[i], z[i], name
            )
            num_drawn += drawn
            true["log10_E_peak"][i, : counts[i]], true["log10_flux"][i, : counts[i]] = peak, flux
            found = (measured[:, 0], measured[:, 1], sigma[:, 0], sigma[:, 1])
            for key, values in zip(list(rows)[2:], found, strict=True):
                rows[key] += list(values)
            rows["burst"] += [name] * counts[i]
            rows["z"] += [z[i]] * counts[i]
        columns: dict[str, Any] = {key: np.asarray(values) for key, values in rows.items()}
        columns["correlation"] = np.full(len(columns["z"]), self.error_correlation)
        if self.log10_flux_limit is not None:
            columns["log10_flux_limit"] = np.full(len(columns["z"]), self.log10_flux_limit)
        data = Bursts.from_columns(columns)
        hidden = round(self.unknown * num) if self.unknown < 1 else int(self.unknown)
        if hidden:
            data = data.without_redshifts(np.arange(num - hidden, num))
        population = {
            "gamma_mean": self.gamma[0], "gamma_std": self.gamma[1],
            "log10_N_mean": self.log10_N[0], "log10_N_std": self.log10_N[1], "correlation": self.correlation,
            "log10_E_peak_mean": self.log10_E_peak[0], "log10_E_peak_std": self.log10_E_peak[1],
            "log10_E_peak_scatter": self.log10_E_peak_scatter, "intrinsic_scatter": self.intrinsic_scatter,
        }  # fmt: skip
        each = {"z": z, "gamma": gamma, "log10_N": log10_N, "log10_E_peak_burst": middle}
        numbers = {key: np.asarray(value) for key, value in population.items()}
        return SimulatedBursts(data, numbers | each | true | {"num_drawn": np.asarray(num_drawn)})

    def _redshifts(self, rng, num: int) -> np.ndarray:
        if isinstance(self.redshift, str):
            return np.clip(rng.lognormal(*LOG_NORMAL, num), 0.02, 12.0)
        given = np.asarray(self.redshift, float)
        return rng.uniform(*given, num) if len(given) == 2 else np.resize(given, num)

    def _intervals(self, rng, num: int, middle, level, gamma, z, name):
        """Draw the intervals of one burst: true peak energies and fluxes, measured values, errors, how many drawn."""
        kept: list[np.ndarray] = []
        drawn = 0
        while sum(map(len, kept)) < num:
            if drawn >= _MOST * num:
                raise DataError(
                    f"BurstPopulation: expected {num} intervals of {name} (z = {z:.2f}) above log10_flux_limit = "
                    f"{self.log10_flux_limit}; found {sum(map(len, kept))} of {drawn} drawn. Lower it."
                )
            peak = rng.normal(middle, self.log10_E_peak_scatter, num)
            flux = level + gamma * (peak - 2.0) + rng.normal(0.0, self.intrinsic_scatter, num)
            ends = np.log([self.sigma_log10_E_peak, self.sigma_log10_flux])
            sigma = np.exp(rng.uniform(ends[:, 0], ends[:, 1], (num, 2)))
            error = rng.standard_normal((num, 2))
            error[:, 1] = self.error_correlation * error[:, 0] + np.sqrt(1 - self.error_correlation**2) * error[:, 1]
            measured = np.stack([peak - np.log10(1.0 + z), flux], axis=-1) + sigma * error
            above = measured[:, 1] >= (-np.inf if self.log10_flux_limit is None else self.log10_flux_limit)
            kept.append(np.column_stack([peak, flux, measured, sigma])[above])
            drawn += num
        rows = np.concatenate(kept)[:num]
        rows = rows[self._order(rows[:, 0])]
        return rows[:, 0], rows[:, 1], rows[:, 2:4], rows[:, 4:], drawn

    def _order(self, peak) -> np.ndarray:
        """Order in time of intervals by their peak energies."""
        order = np.argsort(-peak)
        if self.evolution == "none":
            return np.arange(len(peak))
        if self.evolution == "hard to soft":
            return order
        rise = order[1::3][::-1]
        return np.concatenate([rise, np.setdiff1d(order, rise, assume_unique=True)])
