"""Gaussian approximation of each source's likelihood, for the coordinates in which a population is sampled.

Counts constrain the column itself rather than its logarithm, and photon index, flux and column are correlated. The log
likelihood of each source is approximated by a quadratic in photon index, log10 flux and column, about the best fit of
the source as a member of the sample, without a WHIM. Absorption by the WHIM shifts the maximum of the quadratic, to
first order. The approximation only chooses coordinates, so the posterior is unchanged: see
`hbm_jax.models.partial_centering.sample_together`.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions.transforms import AffineTransform

from hbm_jax.distributions import LogOrLinear
from hbm_jax.models.partial_centering import Coordinate, sample_together
from hbm_jax.models.scoring import Evaluation, fisher_scoring, linearized
from hbm_jax.precomputation import precomputed
from hbm_jax.xla_options import QUICK

_PRIOR_WEIGHT = 1.0  # of the initial population in estimates of mean and variance, in sources
_POPULATION_UPDATES, _SCORING_STEPS = 5, 12
_TEMPERATURES = np.linspace(4.5, 7.5, 13)  # log10 of T [K]
_THIN = -12.0  # log10 of a density [cm^-3] low enough for an expansion of first order
_MIN_INFORMATION = 1e-6  # on a column [1e22 cm^-2]: a standard deviation of 10^25 cm^-2
_LN10 = float(np.log(10.0))
# Precision of broad priors, where n0 is marginalised over index, flux and column; 1 for other parameters.
_BROAD = {"photon_index": 25.0, "log10_flux": 1.0, "log10_nh": 0.1}
# Grid in V of `LogOrLinear`: points, margin beyond the modes of likelihood and population, and largest half width.
_GRID_POINTS, _MARGIN, _MAX_HALF_WIDTH = 33, 4.0, 20.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SourceInformation:
    """Gaussian approximations of the likelihoods of N sources in their K varying parameters.

    These are the sites of `Medium.sites`, with the column of the host itself [1e22 cm^-2]. With the parameters theta of
    a source, ln L = information_vector . theta - theta . fisher_information . theta / 2 + constant.

    Attributes
    ----------
    fisher_information : (N, K, K)
        Fisher information at the best fit.
    information_vector : (N, K)
        Fisher information times the parameters at the maximum, without a WHIM: the score at theta = 0.
    vector_per_depth : (N, K, D)
        Derivative of ``information_vector`` with respect to each of the D optical depths in `AbsorbedCounts.depth`.
    vector_per_galactic : (N, K)
        Derivative of ``information_vector`` with respect to the column of the Milky Way [1e22 cm^-2].
    galactic : (N,)
        Column of the Milky Way at which ``information_vector`` was computed [1e22 cm^-2].
    density_information : (N,)
        Fisher information of n0 of a WHIM of 10^6 K, marginalised over index, flux and column [1e14 cm^6]; at least
        1e-6.
    """

    fisher_information: Any
    information_vector: Any
    vector_per_depth: Any
    vector_per_galactic: Any
    galactic: Any
    density_information: Any

    @classmethod
    def of(cls, bound: Any) -> "SourceInformation":
        """Fit all sources of `AbsorbedCounts` at once and expand their likelihoods about the fits.

        Redshifts are those of the catalogue; a missing column of the Milky Way is set to 10^20.7 cm^-2.
        """
        known = np.isfinite(np.asarray(bound.nh_mw))
        galactic = np.where(known, np.asarray(bound.nh_mw), 0.05)  # [1e22 cm^-2]
        fits = precomputed(lambda: _fit(bound, galactic))
        fisher_information, vector, vector_per_galactic, vector_per_density, depth, unmarginalised = fits
        density_information = np.zeros(len(vector))
        if bound.depth is None:
            vector_per_depth = np.zeros((*vector.shape, 0))
        else:  # a few optical depths represent the WHIM at every temperature
            inverse = np.linalg.pinv(np.moveaxis(depth, 0, 1), rcond=1e-3)  # (N, D, temperatures)
            vector_per_depth = np.einsum("ndt,tnk->nkd", inverse, vector_per_density)
            middle = len(_TEMPERATURES) // 2
            precision = fisher_information + np.diag([_BROAD.get(v.site, 1.0) for v in bound.medium.sites])
            shift = np.linalg.solve(precision, vector_per_density[middle][..., None])[..., 0]
            # Marginalised over the other parameters, in 1e14 cm^6, because n0 is in 1e-7 cm^-3.
            density_information = 1e-14 * (unmarginalised[middle] - np.sum(shift * vector_per_density[middle], axis=1))
        density_information = np.maximum(density_information, 1e-6)
        return cls(fisher_information, vector, vector_per_depth, vector_per_galactic, galactic, density_information)

    def sample(self, depth, galactic, sites, means, stds, population, detection=None) -> dict[str, Any]:
        """Sample all varying parameters of every source and return the values of their sites.

        The column is sampled first, from the likelihood marginalised over index and flux. Its coordinate
        (`LogOrLinear`) is the logarithm of the column where the population determines it, and the column itself where
        the counts do. Index and flux are sampled next, in units of their population, from their approximately normal
        distribution given the column.

        The arguments are the optical depths ``depth`` (N, D) as in `AbsorbedCounts.depth`, None without a WHIM; columns
        ``galactic`` (N,) of the Milky Way [1e22 cm^-2]; the K varying parameters ``sites``, the column of the host
        last, with ``means`` and ``stds`` of their populations; the ``population`` of log10 column; and a
        `SourceDetection`.
        """
        vector = self.information_vector + self.vector_per_galactic * (galactic - self.galactic)[:, None]
        if depth is not None:
            vector = vector + jnp.einsum("nkd,nd->nk", self.vector_per_depth, depth)
        information, with_column = jnp.asarray(self.fisher_information), sites[-1].parameter == "host_nh"
        num = len(sites) - with_column
        spread = jnp.broadcast_to(jnp.stack(stds[:num]), (len(galactic), num))
        # All but the column in units of their population: precision, score at the means, cross information with the
        # column.
        precision = spread[:, :, None] * information[:, :num, :num] * spread[:, None, :] + np.eye(num)
        score = functools.reduce(lambda total, k: total - information[:, :, k] * means[k], range(num), vector)
        scaled_score, log10_nh = spread * score[:, :num], None
        if with_column:
            # Information and best fit of the column, marginalised over all others (Schur complement).
            cross = spread * information[:, :num, num]
            regression = _solve(precision, cross)
            column_information = information[:, num, num] - jnp.sum(regression * cross, axis=1)
            column_information = jnp.maximum(column_information, _MIN_INFORMATION)
            column = (score[:, num] - jnp.sum(regression * scaled_score, axis=1)) / column_information
            log10_nh = _sample_column(column_information, column, means[num], stds[num], population)
            scaled_score = scaled_score - cross * (10.0**log10_nh)[:, None]
        # Coordinates (x - mean) / std of normal populations.
        coordinates = {
            v.site: Coordinate(dist.Normal().expand(galactic.shape), lambda V, mean=mean, std=std: mean + std * V)
            for v, mean, std in zip(sites[:num], means[:num], stds[:num], strict=True)
        }
        if detection is not None:
            coordinates = {
                site: Coordinate(detection.standardised(site, prior, log10_nh), latent)
                for site, (prior, latent) in coordinates.items()
            }
        values = sample_together(coordinates, precision, scaled_score)
        return dict(zip((v.site for v in sites), [*values, log10_nh], strict=False))


def _solve(precision, vector):
    """Solve small symmetric systems, (n, K, K) and (n, K), by elimination in closed form."""
    num = vector.shape[1]
    A = [[precision[:, i, j] for j in range(num)] for i in range(num)]
    b = [vector[:, i] for i in range(num)]
    for k in range(num):
        for i in range(k + 1, num):
            factor = A[i][k] / A[k][k]
            A[i] = [a - factor * pivot for a, pivot in zip(A[i], A[k], strict=True)]
            b[i] = b[i] - factor * b[k]
    for k in reversed(range(num)):
        b[k] = (b[k] - sum(A[k][j] * b[j] for j in range(k + 1, num))) / A[k][k]
    return jnp.stack(b, axis=-1)


def _sample_column(information, best, mean, std, population):
    """Sample log10 of columns with likelihood N(best, 1 / information) and population N(mean, std^2).

    The sampled quantity is V of `LogOrLinear`, standardised by its mean and standard deviation under the product of
    likelihood and population. These are sums over a grid that vary smoothly with mean and std, also where the
    posterior of a source moves from the population to its likelihood.
    """
    std = jnp.broadcast_to(std, information.shape)
    to_v = LogOrLinear.of(information**-0.5, std)
    prior = dist.TransformedDistribution(population.expand(information.shape), to_v)
    # A smooth function of the best fit that is log10 of it far above 0, and is defined for negative best fits.
    log10_best = jnp.arcsinh(0.5 * best * jnp.sqrt(information)) / _LN10 - 0.5 * jnp.log10(information)
    # Weight of the population in the mean of two normal distributions of log10 of the column.
    population_weight = 1.0 / (1.0 + (_LN10 * 10.0**log10_best * std) ** 2 * information)
    log10_posterior = log10_best + population_weight * (mean - log10_best)
    v_likelihood, v_population, v_posterior = to_v(log10_best), to_v(mean), to_v(log10_posterior)
    low = jnp.maximum(jnp.minimum(v_likelihood, v_population) - _MARGIN, v_posterior - _MAX_HALF_WIDTH)
    high = jnp.minimum(jnp.maximum(v_likelihood, v_population) + _MARGIN, v_posterior + _MAX_HALF_WIDTH)
    step = (high - low) / (_GRID_POINTS - 1)
    V = low + np.arange(_GRID_POINTS)[:, None] * step
    weight = jax.nn.softmax(prior.log_prob(V) - 0.5 * information * (best - 10.0 ** to_v.inv(V)) ** 2, axis=0)
    center = jnp.sum(weight * V, axis=0)
    # step^2 / 12 is the variance in one cell of the grid, which dominates for a narrow posterior.
    scale = jnp.sqrt(jnp.sum(weight * (V - center) ** 2, axis=0) + step**2 / 12.0)
    standardised = dist.TransformedDistribution(prior, AffineTransform(-center / scale, 1.0 / scale))
    V = center + scale * numpyro.sample("_log10_nh", standardised, infer={"start": 0.0})
    return numpyro.deterministic("log10_nh", to_v.inv(V))


def _fit(bound: Any, galactic):
    """Fit all sources by penalised Fisher scoring, with a normal population that is estimated with them.

    Returns Fisher information and information vector of each source, the derivatives of the vector with respect to the
    Galactic column and to the density of the WHIM at each temperature, the optical depths of the WHIM per unit density,
    and the Fisher information of its density at fixed spectra.

    One compiled program gives the expected counts and their derivatives, another the response to the WHIM; the
    iteration between them is NumPy.
    """
    num, sites, K = len(galactic), bound.medium.sites, len(bound.medium.sites)
    counts = np.sum(np.where(bound.statistic.used, bound.statistic.counts, 0.0), axis=1)
    bound, galactic = jax.device_put((bound, galactic))  # transferred once, not at every evaluation

    def evaluate(theta):
        _, log_likelihood, score, information = map(np.asarray, _evaluate(bound, galactic, theta)[:4])
        return Evaluation(log_likelihood, score, information[:, :K, :K])

    start = np.array([v.mean[0] for v in sites]), np.array([v.start_std for v in sites])
    theta, (mean, std) = np.tile(start[0], (num, 1)), start
    fluxes = [k for k, v in enumerate(sites) if "log10_flux" in v.site or "log10_amplitude" in v.site]
    expected, *_ = _evaluate(bound, galactic, theta)
    theta[:, fluxes] += np.log10(np.maximum(counts, 1.0) / np.asarray(expected))[:, None]
    best = evaluate(theta)
    for _ in range(_POPULATION_UPDATES):
        precision = 1.0 / std**2
        theta, best = fisher_scoring(evaluate, theta, best, mean, precision, _SCORING_STEPS)
        covariance = np.linalg.inv(best.information + np.diag(precision))
        mean = (np.sum(theta, axis=0) + _PRIOR_WEIGHT * start[0]) / (num + _PRIOR_WEIGHT)
        square = np.sum((theta - mean) ** 2 + np.einsum("nkk->nk", covariance), axis=0) + _PRIOR_WEIGHT * start[1] ** 2
        std = np.maximum(np.sqrt(square / (num + _PRIOR_WEIGHT)), [v.min_std for v in sites])
    _, _, score, information, *by_channel = _evaluate(bound, galactic, theta)
    score, information = np.asarray(score), np.asarray(information)
    values, jacobian = theta.copy(), np.ones((num, K))
    if sites[-1].parameter == "host_nh":  # chain rule from the logarithm of the column to the column
        values[:, -1] = 10.0 ** theta[:, -1]
        jacobian[:, -1] = 1.0 / (_LN10 * values[:, -1])
    fisher_information = jacobian[:, :, None] * information[:, :K, :K] * jacobian[:, None, :]
    vector = np.einsum("nkl,nl->nk", fisher_information, values) + jacobian * score
    score_per_density, depth, density_information = jax.device_get(_whim_response(bound, galactic, theta, *by_channel))
    galactic_and_density = -jacobian * information[:, :K, K], jacobian * score_per_density
    return fisher_information, vector, *galactic_and_density, depth, density_information


def expected_counts(bound, theta, galactic, common=None, log10_n0=-30.0, log10_T=6.0):
    """Return expected counts at values ``theta`` (N, K) of the sites that vary; by default without a WHIM.

    Common parameters are at the means of their priors, or at fractions ``common`` as in `Varying.spread`.
    """
    medium = bound.medium
    p = {v.parameter: v.value(theta[:, k]) for k, v in enumerate(medium.sites)}
    p |= {v.parameter: v.spread(0.0 if common is None else common[k]) for k, v in enumerate(medium.common_sites)}
    p |= {"nh": p.get("host_nh", 0.0), "nh_mw": galactic, "z": jnp.asarray(bound.z)}
    whim = {"log10_n0": log10_n0, "log10_T": log10_T, "log10_xi": 0.0, "metallicity": 0.3}
    return bound.expected(p | whim)


@functools.partial(jax.jit, compiler_options=QUICK)
def _evaluate(bound, galactic, theta):
    """Return the log likelihood and its derivatives in the varying parameters and the Galactic column.

    Total expected counts and log likelihood (N,), score in the K parameters (N, K), Fisher information with that of
    the Galactic column (N, K + 1, K + 1); derivatives of the expected counts in the K parameters (K, N, G), and the
    Fisher information of the expected counts of each channel (N, G).
    """
    statistic = bound.statistic
    parameters = jnp.concatenate([theta, galactic[:, None]], axis=1)
    mu, derivatives = linearized(lambda b: expected_counts(bound, b[:, :-1], b[:, -1]), parameters)
    channel_gradient = jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m)))
    channel_score, second_derivative = jax.jvp(channel_gradient, (mu,), (jnp.ones_like(mu),))
    channel_information = jnp.maximum(-second_derivative, 0.0)
    return (
        jnp.sum(jnp.where(statistic.used, mu, 0.0), axis=1),
        jnp.sum(statistic.log_likelihood(mu), axis=1),
        jnp.einsum("kng,ng->nk", derivatives[:-1], channel_score),
        jnp.einsum("kng,lng,ng->nkl", derivatives, derivatives, channel_information),
        derivatives[:-1],
        channel_information,
    )


@functools.partial(jax.jit, compiler_options=QUICK)
def _whim_response(bound, galactic, theta, derivatives, channel_information):
    """Return, by temperature: derivative of the score with density, optical depth per density, information of density.

    The derivatives are those of a thin WHIM.
    """
    table = bound.depth
    if table is None:
        num = len(galactic)
        return jnp.zeros((0, num, theta.shape[1])), jnp.zeros((0, num, 0)), jnp.zeros((0, num))

    def at_temperature(T):
        """Return the three results at one log10 T."""

        def counts(log10_n0):
            """Return the expected counts, (N, G)."""
            return expected_counts(bound, theta, galactic, None, log10_n0, T)

        # d counts / d n0 = (d counts / d log10 n0) / (n0 ln 10)
        slope = jax.jvp(counts, (_THIN,), (1.0,))[1] / (_LN10 * 10.0**_THIN)
        score_slope = -jnp.einsum("kng,ng,ng->nk", derivatives, channel_information, slope)
        return score_slope, table(1.0, T), jnp.sum(channel_information * slope**2, axis=1)

    return jax.lax.map(at_temperature, jnp.asarray(_TEMPERATURES))
