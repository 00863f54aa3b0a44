"""Independent fits of the spectra of single intervals, as in a catalogue of time-resolved spectroscopy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.data.bursts.spectra import BurstSpectra
from hbm_jax.models.bursts.folded import FoldedBursts
from hbm_jax.models.scoring import Evaluation, fisher_scoring, linearized, log_posterior
from hbm_jax.precomputation import precomputed
from hbm_jax.xla_options import QUICK

__all__ = ["IntervalFits", "fit_intervals", "interval_fits"]

STARTS = (1.7, 2.1, 2.5, 2.9, 3.3)  # log10 of the rest-frame peak energy [keV]
START_FLUX = -6.0  # log10 of the flux that is scaled to the counts [erg/cm^2/s]
STEPS = 60  # a few per cent of the fits, without information on beta, converge slowly


class IntervalFits(NamedTuple):
    """Best-fitting spectra of I intervals in P parameters.

    The parameters are the sites of the spectrum, `PeakedSpectrum.names`: log10_E_peak (rest frame) first and log10_flux
    last.

    Attributes
    ----------
    values : (I, P)
        Parameters at the maximum of the likelihood times weak normal priors.
    covariance : (I, P, P)
        Inverse of the expected Fisher information at the maximum.
    deviance : (N,)
        Deviance of each spectrum.
    """

    values: np.ndarray
    covariance: np.ndarray
    deviance: np.ndarray


def fit_intervals(
    folded: FoldedBursts, effective_area: ArrayLike | None = None, *, num_steps: int = STEPS
) -> IntervalFits:
    """Fit every interval independently, by at most ``num_steps`` steps of Fisher scoring.

    The effective areas (F,) of the non-reference detectors relative to the reference detectors are 1 by default.
    """
    num_free = folded.of_free.shape[1]
    area = np.ones(num_free) if effective_area is None else np.asarray(effective_area, float)
    return precomputed(lambda: _fit(folded, area, num_steps))


def _fit(folded: FoldedBursts, area, num_steps: int) -> IntervalFits:
    """Return the fits, each started from the peak energy of `STARTS` with the highest posterior."""
    sites, num = folded.spectrum.sites, len(folded.low)
    mean = np.array([*(v.mean[0] for v in sites), 0.0])
    precision = np.array([*(v.start_std**-2 for v in sites), 0.0])
    of_interval, statistic = np.asarray(folded.of_interval)[folded.order], folded.statistic  # (N, I)
    counts, background = (
        of_interval.T @ np.sum(np.asarray(values), axis=1)
        for values in (statistic.counts, statistic.background_moments()[0])
    )
    net = np.maximum(counts - background, np.sqrt(1.0 + counts))
    folded, area = jax.device_put((folded, area))  # transferred once, not at every evaluation

    def evaluate(theta):
        """Return the evaluation as NumPy arrays."""
        evaluation, _, _ = _evaluate(folded, area, theta)
        return Evaluation(*map(np.asarray, evaluation))

    starts = []
    for peak in STARTS:
        theta = np.tile([peak, *mean[1:-1], START_FLUX], (num, 1))
        _, expected, _ = _evaluate(folded, area, theta)
        theta[:, -1] += np.log10(net / np.asarray(expected))
        starts.append((theta, evaluate(theta)))
    best = np.argmax([log_posterior(evaluation, theta, mean, precision) for theta, evaluation in starts], axis=0)
    # Parameters and evaluation of the best start of each interval.
    fields_of_starts = [(theta, *evaluation) for theta, evaluation in starts]
    theta, *terms = (np.stack(arrays)[best, np.arange(num)] for arrays in zip(*fields_of_starts, strict=True))
    theta, evaluation = fisher_scoring(evaluate, theta, Evaluation(*terms), mean, precision, num_steps)
    covariance = np.linalg.inv(evaluation.information + np.diag(precision))
    _, _, deviance = _evaluate(folded, area, theta)
    return IntervalFits(theta, covariance, np.asarray(deviance))


@functools.partial(jax.jit, compiler_options=QUICK)
def _evaluate(folded: FoldedBursts, area, theta) -> tuple[Evaluation, jax.Array, jax.Array]:
    """Return log likelihood, score and Fisher information of each interval, its expected counts, and deviances (N,)."""
    statistic, names = folded.statistic, folded.spectrum.names
    mu, derivatives = linearized(
        lambda t: folded.expected(dict(zip(names, t.T, strict=True)) | {"effective_area": area}), theta
    )
    background, background_variance = statistic.background_moments()
    weights = jnp.where(statistic.used, 1.0 / jnp.maximum(mu + background + background_variance, 1e-6), 0.0)
    of_interval = folded.of_interval[folded.order]  # (N, I)
    score = jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m)))(mu)
    evaluation = Evaluation(
        folded.per_interval(statistic.log_likelihood(mu)),
        of_interval.T @ jnp.einsum("kng,ng->nk", derivatives, score),
        jnp.einsum("ni,nkl->ikl", of_interval, jnp.einsum("kng,lng,ng->nkl", derivatives, derivatives, weights)),
    )
    expected = of_interval.T @ jnp.sum(jnp.where(statistic.used, mu, 0.0), axis=1)
    return evaluation, expected, jnp.sum(statistic.deviance(mu), axis=-1)


def interval_fits(
    data: BurstSpectra,
    *,
    spectrum: Any = "band",
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

    folded = FoldedBursts.of(data, spectrum=spectrum, band=band, frame=frame, statistic=statistic)
    fits, spectra = fit_intervals(folded, effective_area), folded.spectrum
    table: Table = data.to_table()
    values = spectra.in_domain(dict(zip(spectra.names, fits.values.T, strict=True)))
    values["log10_E_peak"] = values["log10_E_peak"] - np.asarray(folded.log10_stretch)
    errors = dict(zip(spectra.names, np.sqrt(np.diagonal(fits.covariance, axis1=1, axis2=2)).T, strict=True))
    for name in ("log10_flux", "log10_E_peak", *spectra.names[1:-1]):
        table[name], table[f"sigma_{name}"] = values[name], errors[name]
    table["cov_log10_flux_log10_E_peak"] = fits.covariance[:, 0, -1]
    interval, num_groups = np.asarray(data.spectrum_interval), np.asarray(data.spectra.used).sum(axis=1)
    table["deviance"] = np.bincount(interval, fits.deviance, minlength=len(table))
    table["num_groups"] = np.bincount(interval, num_groups, minlength=len(table)).astype(int)
    table.meta |= {"band_low": float(band[0]), "band_high": float(band[1]), "band_frame": frame}
    table.meta["spectrum"] = str(spectrum)
    return table
