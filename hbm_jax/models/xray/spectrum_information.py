"""Gaussian approximation of each spectrum's likelihood, for the coordinates of a population of any expression.

The log likelihood of each spectrum is approximated by a quadratic in the parameters that have a population, about the
best fit of the spectrum alone with a normal prior. The approximation only chooses coordinates; the posterior is
unchanged, see `hbm_jax.models.partial_centering.sample_together`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from hbm_jax.models.partial_centering import Coordinate, sample_together
from hbm_jax.models.scoring import Evaluation, fisher_scoring, linearized
from hbm_jax.models.varying import Varying
from hbm_jax.models.xray.folded import FoldedSpectra
from hbm_jax.precomputation import precomputed
from hbm_jax.xla_options import QUICK

_PRIOR_WEIGHT = 1.0  # of the initial population in estimates of mean and variance, in spectra
_POPULATION_UPDATES, _SCORING_STEPS = 5, 12


@dataclass(frozen=True, eq=False)
class Whitening:
    """Quadratic approximation of the log posterior of M objects in K coordinates V = (x - mean) / std of a population.

    Attributes
    ----------
    precision : (M, K, K)
        Negative Hessian.
    slope : (M, K)
        Gradient at V = 0.
    cross : (M, K, L)
        Negative mixed derivatives with L coordinates that are sampled before.
    """

    precision: Any
    slope: Any
    cross: Any = None

    def given(self, V: Sequence[Any]) -> "Whitening":
        """Return the approximation for values V, (M,) each, of the coordinates sampled before."""
        slope = self.slope - sum((self.cross[:, :, k] * value[:, None] for k, value in enumerate(V)), jnp.zeros(()))
        return Whitening(self.precision, slope)

    def sample(
        self, sites: Sequence[Varying], means: Sequence[Any], stds: Sequence[Any], detection: Any = None
    ) -> list[Any]:
        """Sample values of sites with normal populations, (M,) each, of sources selected by a `SourceDetection`."""
        if not sites:
            return []
        normal = dist.Normal().expand((len(self.slope),))

        def prior(site: str) -> Any:
            return normal if detection is None else detection.standardised(site, normal, None)

        coordinates = {
            v.site: Coordinate(prior(v.site), lambda V, mean=mean, std=std: mean + std * V)
            for v, mean, std in zip(sites, means, stds, strict=True)
        }
        return sample_together(coordinates, self.precision, self.slope)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SpectrumInformation:
    """Gaussian approximations of the likelihoods of E epochs in K parameters theta, the sums of those of their spectra.

    ln L = information_vector . theta - theta . fisher_information . theta / 2 + constant.

    Attributes
    ----------
    fisher_information : (E, K, K)
        Fisher information at the best fit.
    information_vector : (E, K)
        Score at theta = 0.
    source : (E,) int
        Index of the source of each epoch.
    """

    fisher_information: Any
    information_vector: Any
    source: Any

    @classmethod
    def of(
        cls,
        spectra: FoldedSpectra,
        sites: tuple[Varying, ...],
        means: np.ndarray,
        others: Mapping[str, Any],
        source: np.ndarray,
        epoch: np.ndarray,
    ) -> "SpectrumInformation":
        """Fit all spectra at once, as if each had a source of its own, and expand their likelihoods about the fits.

        ``means`` (K,) are those of the first population, ``others`` the values of all other parameters, () or (S,), and
        ``source`` and ``epoch`` the indices of source and epoch of each spectrum, (S,).
        """
        information, vector = precomputed(lambda: _fit(spectra, sites, means, dict(others)))
        first = np.unique(epoch, return_index=True)[1]
        membership = np.arange(len(first))[:, None] == epoch
        return cls(np.einsum("es,skl->ekl", membership, information), membership @ vector, source[first])

    def coordinates(
        self, means: Sequence[Any], stds: Sequence[Any], num: int, num_sources: int
    ) -> tuple[Whitening, Whitening]:
        """Return the coordinates of N sources in the first ``num`` sites, and of E epochs in all others."""
        std, mean = jnp.stack([jnp.asarray(s) for s in stds]), jnp.stack([jnp.asarray(m) for m in means])
        information = jnp.asarray(self.fisher_information)
        slope = std * (self.information_vector - jnp.sum(information * mean, axis=-1))
        precision = std[:, None] * information * std
        own = precision[:, num:, num:] + np.eye(len(means) - num)
        cross, of_source, source_slope = precision[:, num:, :num], precision[:, :num, :num], slope[:, :num]
        if num < len(means):
            # Marginalised over the values of each epoch (Schur complement).
            columns = jnp.concatenate([cross, slope[:, num:, None]], axis=-1)
            solved = jnp.linalg.solve(own, columns)
            of_source = of_source - jnp.einsum("skl,skm->slm", cross, solved[..., :-1])
            source_slope = source_slope - jnp.einsum("skl,sk->sl", cross, solved[..., -1])
        membership = jnp.arange(num_sources)[:, None] == jnp.asarray(self.source)
        total = jnp.einsum("ns,skl->nkl", membership * 1.0, of_source) + np.eye(num)
        return Whitening(total, (membership * 1.0) @ source_slope), Whitening(own, slope[:, num:], cross)


def _fit(spectra: FoldedSpectra, sites: tuple[Varying, ...], mean: np.ndarray, others: dict[str, Any]):
    """Return Fisher information and information vector of each spectrum, by penalised Fisher scoring.

    The mean and standard deviation of the normal prior are estimated with the fits. Spectra whose expected counts are
    not finite have no information.
    """
    statistic = spectra.statistic
    counts = np.sum(np.where(statistic.used, statistic.counts, 0.0), axis=1)
    spectra, others = jax.device_put((spectra, others))  # transferred once, not at every evaluation

    def evaluate(theta):
        _, *parts = map(np.asarray, _evaluate(spectra, sites, others, theta))
        return Evaluation(*parts)

    start = mean, np.array([v.start_std for v in sites])
    theta, std = np.tile(mean, (len(counts), 1)), start[1]
    fluxes = [
        k for k, v in enumerate(sites) if any(f"log10_{name}" in v.site for name in ("flux", "amplitude", "luminosity"))
    ]
    expected = np.asarray(_evaluate(spectra, sites, others, theta)[0])
    theta[:, fluxes] += np.log10(np.maximum(counts, 1.0) / expected)[:, None]
    best = evaluate(theta)
    for _ in range(_POPULATION_UPDATES):
        theta, best = fisher_scoring(evaluate, theta, best, mean, std**-2.0, _SCORING_STEPS)
        covariance = np.linalg.inv(best.information + np.diag(std**-2.0))
        weight = len(theta) + _PRIOR_WEIGHT
        mean = (np.sum(theta, axis=0) + _PRIOR_WEIGHT * start[0]) / weight
        square = np.sum((theta - mean) ** 2 + np.einsum("skk->sk", covariance), axis=0)
        std = np.sqrt((square + _PRIOR_WEIGHT * start[1] ** 2) / weight)
        std = np.maximum(std, [v.min_std for v in sites])
    information = best.information
    vector = np.einsum("skl,sl->sk", information, theta) + best.score
    finite = np.isfinite(information).all(axis=(1, 2)) & np.isfinite(vector).all(axis=1)
    return np.where(finite[:, None, None], information, 0.0), np.where(finite[:, None], vector, 0.0)


@functools.partial(jax.jit, static_argnums=1, compiler_options=QUICK)
def _evaluate(spectra: FoldedSpectra, sites: tuple[Varying, ...], others: dict[str, Any], theta: Any):
    """Return total expected counts (S,), log likelihood (S,), score (S, K) and Fisher information (S, K, K)."""
    statistic = spectra.statistic

    def expected(values):
        """Return the expected counts for values (S, K) of the sites, (S, G)."""
        return spectra.expected(others | {v.parameter: v.value(values[:, k]) for k, v in enumerate(sites)})

    counts, derivatives = linearized(expected, theta)
    gradient = jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m)))
    channel_score, curvature = jax.jvp(gradient, (counts,), (jnp.ones_like(counts),))
    channel_information = jnp.maximum(-curvature, 0.0)
    return (
        jnp.sum(jnp.where(statistic.used, counts, 0.0), axis=1),
        jnp.sum(statistic.log_likelihood(counts), axis=1),
        jnp.einsum("ksg,sg->sk", derivatives, channel_score),
        jnp.einsum("ksg,lsg,sg->skl", derivatives, derivatives, channel_information),
    )
