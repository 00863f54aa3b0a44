"""Trial spectra of populations of absorbed sources, for which their folds must be accurate."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption.domain import LOG10_T
from hbm_jax.models.xray.population import Medium
from hbm_jax.models.xray.source_information import expected_counts
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.components import Component
from hbm_jax.xla_options import QUICK

# Trial spectra that bracket those of afterglows: photon index, column densities of host and Milky Way [1e22 cm^-2].
_INDICES, _HOSTS, _GALACTIC = (0.0, 2.0, 4.0), (0.0, 0.1, 1.0, 10.0, 100.0, 1e3), (0.02, 1.0)
# Trial media: log10 of n0 [cm^-3], log10 of T [K], metallicity.
_WHIMS = ((-6.0, 4.5, 1.0), (-6.0, 5.5, 1.0), (-6.0, 6.2, 1.0), (-6.0, 6.8, 1.0), (-6.0, 7.4, 0.1), (-7.0, 6.0, 0.3))
_NO_WHIM = (-30.0, 6.0, 0.3)
_NUM_SPECTRA, _NUM_TEMPERATURES = 900, 40
_NUM_TRIALS, _NUM_DISTANCES = 48, 7  # of trial spectra of other expressions
_LARGEST_CHANGE = 50.0  # of the log likelihood, for possible spectra
_SMALLEST_COLUMN = 1e-4  # 1e22 cm^-2


def trials(medium: Medium, spectrum: Component) -> dict[str, np.ndarray]:
    """Return parameters that bracket those of the population, (num_trials,) each."""
    if not medium.has_power_laws:
        return _prior_means(medium)
    index, host, galactic = (a.ravel() for a in np.meshgrid(_INDICES, _HOSTS, _GALACTIC, indexing="ij"))
    media = np.array(_NO_WHIM)[:, None]
    if "log10_T" in spectrum.parameters:
        # All spectra without a medium, and those of the middle photon index with every medium.
        middle = np.flatnonzero((index == 2.0) & (galactic == _GALACTIC[0]))
        rows = np.append(np.arange(len(index)), np.repeat(middle, len(_WHIMS)))
        media = np.concatenate([np.tile(media.T, (len(index), 1)), np.tile(_WHIMS, (len(middle), 1))]).T
        index, host, galactic = index[rows], host[rows], galactic[rows]
    return _parameters(index, host, galactic, *media)


def _prior_means(medium: Medium) -> dict[str, np.ndarray]:
    """Return parameters of trial spectra of any expression, at the means of the priors."""
    values = _absorbers(np.where(np.arange(_NUM_TRIALS) % 2, *_GALACTIC[::-1]))
    for varying in (*medium.sites, *medium.common_sites):
        values[varying.parameter] = np.full(_NUM_TRIALS, float(varying.spread(0.0)))
    return values


def possible_trials(bound: Any, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return parameters of trial spectra that are possible given the counts of each source, (num_trials,) each.

    A black body that is far brighter than the counts allow would need many nodes, and the posterior never includes it.

    Parameters
    ----------
    bound : AbsorbedCounts
        The sources, with an approximate fold, and `SourceInformation` from it.
    rows : (n,)
        Indices of the sources.

    Notes
    -----
    The product of likelihood and prior is approximated by a normal distribution about its maximum. The trials lie in
    random directions from the maximum, within two standard deviations of the prior. The first distance in each
    direction is the one at which the normal approximation has fallen by ``_LARGEST_CHANGE`` in the logarithm. It is
    halved until the log likelihood, without a WHIM, is at most ``_LARGEST_CHANGE`` below the largest of all trial
    spectra of the source.
    """
    medium, rng, trial = bound.medium, np.random.default_rng(0), np.arange(_NUM_TRIALS)
    best, directions = _directions(bound.source_information, medium.sites, rng)
    common = rng.uniform(-1.0, 1.0, (_NUM_TRIALS, len(medium.common_sites)))
    distances = np.append(0.5 ** np.arange(_NUM_DISTANCES - 1), 0.0)
    theta = _within_prior(best + distances[:, None, None, None] * directions, medium.sites)
    # Every second trial spectrum has a larger column of the Milky Way than the catalogue.
    factor = 1.0 + distances[:, None] * (trial % 2)
    galactic = factor[..., None] * np.asarray(bound.source_information.galactic)
    fractions = distances[:, None, None] * common
    chosen = _largest_distance(bound, theta, galactic, fractions)
    samples = []
    for row in rows:
        index = chosen[:, row], trial  # distance and number of each trial spectrum
        values = _absorbers(galactic[*index, row])
        for k, varying in enumerate(medium.sites):
            values[varying.parameter] = np.asarray(varying.value(theta[*index, row, k]))
        for k, varying in enumerate(medium.common_sites):
            values[varying.parameter] = np.asarray(varying.spread(fractions[*index, k]))
        samples.append(values)
    return samples


def _largest_distance(bound: Any, theta, galactic, fractions) -> np.ndarray:
    """Return the index of the largest distance at which each trial spectrum is possible, (num_trials, N).

    The parameters at D distances, which decrease to 0, are ``theta`` (D, num_trials, N, K), columns of the Milky Way
    ``galactic`` (D, num_trials, N), and ``fractions`` of the common parameters (D, num_trials, num_common), as in
    `Varying.spread`.
    """
    num = theta.shape[0] * theta.shape[1]
    flattened = (array.reshape(num, *array.shape[2:]) for array in (theta, galactic, fractions))
    log_likelihood = precomputed(lambda: np.asarray(_log_likelihoods(bound, *flattened))).reshape(theta.shape[:-1])
    log_likelihood = np.where(np.isfinite(log_likelihood), log_likelihood, -np.inf)
    is_possible = log_likelihood >= log_likelihood.max(axis=(0, 1)) - _LARGEST_CHANGE
    is_possible[-1] = True
    return np.argmax(is_possible, axis=0)  # the first, because distances decrease


def _absorbers(galactic: np.ndarray) -> dict[str, np.ndarray]:
    """Return columns of the Milky Way, (num_trials,), and trial media without and with a WHIM in turns."""
    number = np.arange(len(galactic))
    media = np.array([_NO_WHIM, *_WHIMS])[number % (1 + len(_WHIMS))].T
    values = dict(zip(("log10_n0", "log10_T", "metallicity"), media, strict=True))
    return values | {"log10_xi": 0.0 * number, "mw_nh": galactic}


def _directions(information: Any, sites, rng) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of the best fit, (N, K), and random directions, (num_trials, N, K), for `possible_trials`.

    The column of the host is linear in the approximation, with a prior of mean 0.
    """
    mean = np.array([float(v.mean[0]) for v in sites])
    std = np.array([float(np.hypot(v.mean[1], v.std)) for v in sites])
    if sites[-1].parameter == "host_nh":
        mean[-1], std[-1] = 0.0, 10.0 ** (mean[-1] + std[-1])
    covariance = np.linalg.inv(np.asarray(information.fisher_information) + np.diag(std**-2.0))
    best = np.einsum("nkl,nl->nk", covariance, np.asarray(information.information_vector) + mean / std**2)
    normal = rng.normal(size=(_NUM_TRIALS, len(sites)))
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    directions = np.sqrt(2.0 * _LARGEST_CHANGE) * np.einsum("nkl,tl->tnk", np.linalg.cholesky(covariance), unit)
    return best, directions


def _within_prior(theta: np.ndarray, sites) -> np.ndarray:
    """Return parameters (D, num_trials, N, K) within two standard deviations of the prior, with the column as log10.

    The limits include the best fits, which are the parameters at the last of the distances.
    """
    theta = theta.copy()
    if sites[-1].parameter == "host_nh":
        theta[..., -1] = np.log10(np.maximum(np.abs(theta[..., -1]), _SMALLEST_COLUMN))
    mean, width = np.array([[v.mean[0], 2.0 * np.hypot(v.mean[1], v.std)] for v in sites]).T
    low, high = mean - width, mean + width
    if sites[-1].parameter == "host_nh":
        low[-1] = np.log10(_SMALLEST_COLUMN)
    return np.clip(theta, np.minimum(low, theta[-1]), np.maximum(high, theta[-1]))


@functools.partial(jax.jit, compiler_options=QUICK)
def _log_likelihoods(bound, theta, galactic, fractions):
    """Return log likelihoods of sources, (num, N), for parameters (num, N, K), (num, N) and (num, num_common)."""

    def log_likelihood(trial):
        return jnp.sum(bound.statistic.log_likelihood(expected_counts(bound, *trial)), axis=1)

    return jax.lax.map(log_likelihood, (theta, galactic, fractions))


def random_draws(whim: bool, num: int = _NUM_SPECTRA) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return parameters of random spectra, (num,) to choose nodes and half as many to test them; the seed is fixed.

    Photon indices are from -0.5 to 4.5, host columns up to 1e26 cm^-2, Milky Way columns up to 1.5e22 cm^-2, and media
    have densities up to 2e-6 cm^-3 and temperatures of 10^4 to 10^8 K, which differ between the two samples.
    """
    rng, samples = np.random.default_rng(0), []
    for sample, size in enumerate((num, num // 2)):
        index = rng.uniform(-0.5, 4.5, size)
        host, galactic = (10.0 ** rng.uniform(*ends, size) for ends in ((-2.5, 4.0), (-2.5, 0.18)))
        media: Any = _NO_WHIM
        if whim:
            row = 2 * rng.integers(_NUM_TEMPERATURES, size=size) + sample
            log10_T = np.linspace(*LOG10_T, 2 * _NUM_TEMPERATURES)[row]
            media = rng.uniform(-9.0, -5.7, size), log10_T, rng.uniform(0.0, 1.0, size)
        samples.append(_parameters(index, host, galactic, *media))
    return samples[0], samples[1]


def _parameters(index, host, galactic, log10_n0, log10_T, metallicity) -> dict[str, np.ndarray]:
    """Return parameters of the expression, all of the length of the photon indices."""
    values = {"photon_index": index, "log10_flux": -11.0, "host_nh": host, "mw_nh": galactic, "log10_n0": log10_n0}
    values |= {"log10_T": log10_T, "log10_xi": 0.0, "metallicity": metallicity}
    return {name: np.broadcast_to(value, np.shape(index)) for name, value in values.items()}
