"""Independent fits of the spectra of single intervals, as in a catalogue of time-resolved spectroscopy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.models.bursts.folded import FoldedBursts
from hbm_jax.precomputation import precomputed

__all__ = ["IntervalFits", "fit_intervals", "interval_fits"]

NAMES = ("log10_E_peak", "alpha", "beta", "log10_flux")
# Mean and standard deviation of weak normal priors on the first parameters, so that all directions are constrained.
WEAK = ((2.6, 0.8), (-0.8, 0.6), (-2.5, 0.5))
STARTS = (1.7, 2.1, 2.5, 2.9, 3.3)  # log10 of the rest-frame peak energy [keV]
STEPS = 60


class IntervalFits(NamedTuple):
    """Best-fitting spectra of I intervals in P parameters.

    The parameters are log10_E_peak (rest frame), alpha, beta (Band function only) and log10_flux.

    Attributes
    ----------
    values : (I, P)
        Parameters at the maximum of the likelihood times the weak priors.
    covariance : (I, P, P)
        Inverse of the expected Fisher information at the maximum.
    deviance : (N,)
        Deviance of each spectrum.
    """

    values: np.ndarray
    covariance: np.ndarray
    deviance: np.ndarray


def fit_intervals(folded: FoldedBursts, effective_area: ArrayLike | None = None) -> IntervalFits:
    """Fit every interval independently, by Fisher scoring.

    Parameters
    ----------
    folded : FoldedBursts
        Spectra of all bursts with precomputed responses.
    effective_area : (F,), optional
        Effective areas of the non-reference detectors relative to the reference detectors; 1 by default.

    Returns
    -------
    IntervalFits
    """
    num_free = folded.of_free.shape[1]
    area = np.ones(num_free) if effective_area is None else np.asarray(effective_area, float)
    return IntervalFits(*precomputed(lambda: jax.device_get(_fit(folded, jnp.asarray(area)))))


@jax.jit
def _fit(folded: FoldedBursts, area):
    """Return parameters, covariances and deviances of all intervals, by damped Fisher scoring."""
    statistic = folded.statistic
    num, P = len(folded.middle), folded.num_parameters
    mean, std = (np.array(column) for column in zip(*WEAK[: P - 1], strict=True))
    precision = jnp.append(1.0 / std**2, 0.0)
    of_interval = jnp.asarray(folded.of_interval)[folded.order]  # (N, I)

    def expected(theta):
        beta = theta[:, 2] if P == 4 else jnp.zeros(num)
        return folded.expected(theta[:, 0], theta[:, 1], beta, theta[:, -1], area)

    def objective(theta):
        beta = theta[:, 2] if P == 4 else -3.0
        prior_chi2 = jnp.sum(((theta[:, :-1] - mean) / std) ** 2, axis=1)
        inside = folded.inside(theta[:, 1], beta)
        safe = jnp.where(inside[:, None], theta, parameters_at(2.6))
        log_likelihood = folded.per_interval(statistic.log_likelihood(expected(safe)))
        return jnp.where(inside, log_likelihood - 0.5 * prior_chi2, -jnp.inf)

    def parameters_at(peak, flux=-6.0):
        start = jnp.concatenate([jnp.array([peak]), mean[1:], jnp.array([0.0])])
        return jnp.broadcast_to(start, (num, P)).at[:, -1].set(flux)

    background, background_variance = statistic.background_moments()
    net = of_interval.T @ jnp.sum(statistic.counts - background, axis=1)
    net = jnp.maximum(net, jnp.sqrt(1.0 + of_interval.T @ jnp.sum(statistic.counts, axis=1)))

    def information(theta):
        def derivative(k):
            tangent = jnp.zeros((num, P)).at[:, k].set(1.0)
            return jax.jvp(expected, (theta,), (tangent,))[1]

        mu = expected(theta)
        derivatives = jax.lax.map(derivative, jnp.arange(P))  # (P, N, G)
        weights = jnp.where(statistic.used, 1.0 / jnp.maximum(mu + background + background_variance, 1e-6), 0.0)
        products = jnp.einsum("kng,lng,ng->nkl", derivatives, derivatives, weights)
        return jnp.einsum("ni,nkl->ikl", of_interval, products) + jnp.diag(precision)

    def scaled_start(peak):
        theta = parameters_at(peak)
        counts = of_interval.T @ jnp.sum(jnp.where(statistic.used, expected(theta), 0.0), axis=1)
        theta = theta.at[:, -1].add(jnp.log10(net / counts))
        return theta, objective(theta)

    starts, values = jax.lax.map(scaled_start, jnp.asarray(STARTS))
    best = jnp.argmax(values, axis=0)
    theta = jnp.take_along_axis(starts, best[None, :, None], axis=0)[0]

    def step(_, state):
        theta, value, damping = state
        score = jax.grad(lambda t: jnp.sum(objective(t)))(theta)
        fisher_information = information(theta)
        damped = fisher_information + damping[:, None, None] * (fisher_information * jnp.eye(P))
        new = theta + jnp.clip(jnp.linalg.solve(damped, score[..., None])[..., 0], -0.5, 0.5)
        new_value = objective(new)
        better = new_value >= value
        theta = jnp.where(better[:, None], new, theta)
        return theta, jnp.where(better, new_value, value), jnp.where(better, damping / 5.0, damping * 5.0)

    start = (theta, jnp.max(values, axis=0), jnp.full(num, 1e-2))
    theta, _, _ = jax.lax.fori_loop(0, STEPS, step, start)
    covariance = jnp.linalg.inv(information(theta))
    return theta, covariance, jnp.sum(statistic.deviance(expected(theta)), axis=-1)


def interval_fits(
    data: BurstSpectra,
    *,
    spectrum: str = "band",
    band: tuple[float, float] = (1.0, 1e4),
    frame: str = "rest",
    statistic: str | None = None,
    effective_area: ArrayLike | None = None,
):
    """Fit every interval independently with all its detectors; return a catalogue for `hbm_jax.data.read_bursts`.

    Parameters
    ----------
    data : BurstSpectra
        The bursts.
    spectrum, band, frame, statistic
        As in `GolenetskiiCounts`.
    effective_area : (F,), optional
        Effective areas of the non-reference detectors relative to the reference detectors; 1 by default.

    Returns
    -------
    astropy.table.Table
        One row per interval: ``name, z, start, stop``; ``log10_flux`` [erg/cm^2/s in the band] and ``log10_E_peak``
        (observed frame, keV) with ``sigma_log10_flux, sigma_log10_E_peak, cov_log10_flux_log10_E_peak``; ``alpha``,
        ``beta`` and their errors; ``deviance`` and ``num_groups``. The band is in the header.

    Notes
    -----
    The fits maximise the likelihood times weak normal priors: 2.6 +- 0.8 for log10 of the rest-frame peak energy [keV],
    -0.8 +- 0.6 for alpha, -2.5 +- 0.5 for beta. The covariance is the inverse of the expected Fisher information at the
    maximum; it does not include the uncertainty of the effective areas. For posteriors, sample single intervals:
    `hbm_jax.sample` with a `hbm_jax.models.SpectralFit` of ``data.intervals([number]).spectra``.
    """
    from astropy.table import Table

    folded = FoldedBursts.of(data, shape=spectrum, band=band, frame=frame, statistic=statistic)
    fits = fit_intervals(folded, effective_area)
    table: Table = data.to_table()
    error = np.sqrt(np.diagonal(fits.covariance, axis1=1, axis2=2))
    last = fits.values.shape[1] - 1
    table["log10_flux"], table["sigma_log10_flux"] = fits.values[:, last], error[:, last]
    table["log10_E_peak"] = fits.values[:, 0] - np.asarray(folded.log10_stretch)
    table["sigma_log10_E_peak"] = error[:, 0]
    table["cov_log10_flux_log10_E_peak"] = fits.covariance[:, 0, last]
    for k, name in enumerate(NAMES[1:last], start=1):
        table[name], table[f"sigma_{name}"] = fits.values[:, k], error[:, k]
    interval = np.asarray(data.spectrum_interval)
    table["deviance"] = np.bincount(interval, fits.deviance, minlength=len(table))
    num_groups = np.asarray(data.spectra.used).sum(axis=1)
    table["num_groups"] = np.bincount(interval, num_groups, minlength=len(table)).astype(int)
    table.meta |= {"band_low": float(band[0]), "band_high": float(band[1]), "band_frame": frame, "spectrum": spectrum}
    return table
