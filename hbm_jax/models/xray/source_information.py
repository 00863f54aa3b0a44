"""Gaussian approximation of each source's likelihood, for the coordinates in which a population is sampled.

Counts constrain the column itself rather than its logarithm, and photon index, flux and column are correlated. The log
likelihood of each source is approximated by a quadratic in photon index, log10 flux and column, about the best fit of
the source as a member of the sample, without a WHIM. Absorption by the WHIM shifts the maximum of the quadratic, to
first order. The approximation only chooses coordinates, so the posterior is unchanged: see
`hbm_jax.models.partial_centering.sample_together`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions.transforms import AffineTransform

from hbm_jax.distributions import LogOrLinear
from hbm_jax.models.partial_centering import Coordinate, sample_together
from hbm_jax.precomputation import precomputed

# Initial population of photon index, log10 flux and log10 column; its weight, in sources, where the mean and variance
# of the population are estimated from the sample; and the smallest standard deviation of that estimate.
_MEAN, _STD, _PRIOR_WEIGHT = np.array([2.0, -11.5, -0.5]), np.array([1.0, 3.0, 1.0]), 1.0
_MIN_STD = np.array([0.1, 0.1, 0.2])
_POPULATION_UPDATES, _SCORING_STEPS = 5, 12
_TEMPERATURES = np.linspace(4.5, 7.5, 13)  # log10 of T [K]
_THIN = -12.0  # log10 of a density [cm^-3] low enough for an expansion of first order
_MIN_INFORMATION = 1e-6  # on a column [1e22 cm^-2]: a standard deviation of 10^25 cm^-2
_LN10 = float(np.log(10.0))
# Grid in V of `LogOrLinear`: points, margin beyond the modes of likelihood and population, and largest half width.
_GRID_POINTS, _MARGIN, _MAX_HALF_WIDTH = 33, 4.0, 20.0


class Population(Protocol):
    """Sources and their expected counts, such as `hbm_jax.models.xray.absorbed_counts.AbsorbedCounts`."""

    @property
    def statistic(self) -> Any:
        """Statistic of the counts."""

    @property
    def z(self) -> Any:
        """Redshifts of the catalogue, (N,)."""

    @property
    def nh_mw(self) -> Any:
        """Columns of the Milky Way [1e22 cm^-2], (N,); NaN where missing."""

    @property
    def depth(self) -> Any:
        """Table of the optical depth of the WHIM to each source at a few energies; None without a WHIM."""

    def expected(self, p: dict[str, Any]) -> jax.Array:
        """Return the expected counts of the sources without background, (N, G)."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SourceInformation:
    """Gaussian approximations of the likelihoods of N sources in photon index, log10 flux and column [1e22 cm^-2].

    With the three parameters theta of a source, ln L = information_vector . theta - theta . fisher_information . theta
    / 2 + constant.

    Attributes
    ----------
    fisher_information : (N, 3, 3)
        Fisher information at the best fit.
    information_vector : (N, 3)
        Fisher information times the parameters at the maximum, without a WHIM: the score at theta = 0.
    vector_per_depth : (N, 3, D)
        Derivative of ``information_vector`` with respect to each of the D optical depths in `AbsorbedCounts.depth`.
    vector_per_galactic : (N, 3)
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
    def of(cls, prepared: Population) -> "SourceInformation":
        """Fit all sources at once and expand their likelihoods about the fits.

        Parameters
        ----------
        prepared : Population
            The sources, at the redshifts of the catalogue; a missing column of the Milky Way is set to 10^20.7 cm^-2.
        """
        known = np.isfinite(np.asarray(prepared.nh_mw))
        galactic = np.where(known, np.asarray(prepared.nh_mw), 0.05)
        fits = precomputed(lambda: _fit(prepared, galactic))
        fisher_information, vector, vector_per_galactic, vector_per_density, depth, unmarginalised = fits
        density_information = np.zeros(len(vector))
        if prepared.depth is None:
            vector_per_depth = np.zeros((*vector.shape, 0))
        else:  # a few optical depths represent the WHIM at every temperature
            inverse = np.linalg.pinv(np.moveaxis(depth, 0, 1), rcond=1e-3)  # (N, D, temperatures)
            vector_per_depth = np.einsum("ndt,tnk->nkd", inverse, vector_per_density)
            middle = len(_TEMPERATURES) // 2
            # Broad priors: standard deviations of 0.2 in index, 1 dex in flux and 3e22 cm^-2 in column.
            precision = fisher_information + np.diag([25.0, 1.0, 0.1])
            shift = np.linalg.solve(precision, vector_per_density[middle][..., None])[..., 0]
            density_information = 1e-14 * (unmarginalised[middle] - np.sum(shift * vector_per_density[middle], axis=1))
        return cls(
            fisher_information,
            vector,
            vector_per_depth,
            vector_per_galactic,
            galactic,
            np.maximum(density_information, 1e-6),
        )

    def sample(self, depth, galactic, means, stds, population) -> tuple[Any, Any, Any]:
        """Sample photon index, log10 flux and log10 column of every source and return their values.

        The column is sampled first, from the likelihood marginalised over index and flux. Its coordinate
        (`LogOrLinear`) is the logarithm of the column where the population determines it, and the column itself where
        the counts do. Index and flux are sampled next, in units of their population, from their approximately normal
        distribution given the column.

        Parameters
        ----------
        depth : (N, D) or None
            Optical depths of the WHIM, as in `AbsorbedCounts.depth`; None without a WHIM.
        galactic : (N,)
            Columns of the Milky Way [1e22 cm^-2].
        means, stds : sequences of 3
            Means and standard deviations of the populations of photon index, log10 flux and log10 column.
        population : Distribution
            Population of log10 column.
        """
        vector = self.information_vector + self.vector_per_galactic * (galactic - self.galactic)[:, None]
        if depth is not None:
            vector = vector + jnp.einsum("nkd,nd->nk", self.vector_per_depth, depth)
        information = jnp.asarray(self.fisher_information)
        spread = jnp.broadcast_to(jnp.stack(stds[:2]), (len(galactic), 2))
        # Index and flux in units of their population: precision, score at the means, cross information with the column.
        precision = spread[:, :, None] * information[:, :2, :2] * spread[:, None, :] + np.eye(2)
        score = vector - information[:, :, 0] * means[0] - information[:, :, 1] * means[1]
        scaled_score, cross = spread * score[:, :2], spread * information[:, :2, 2]
        (a, b), c = jnp.moveaxis(precision[:, 0], -1, 0), precision[:, 1, 1]
        regression = jnp.stack([c * cross[:, 0] - b * cross[:, 1], a * cross[:, 1] - b * cross[:, 0]], axis=-1)
        regression = regression / (a * c - b * b)[:, None]
        column_information = jnp.maximum(information[:, 2, 2] - jnp.sum(regression * cross, axis=1), _MIN_INFORMATION)
        column = (score[:, 2] - jnp.sum(regression * scaled_score, axis=1)) / column_information
        log10_nh = _sample_column(column_information, column, means[2], stds[2], population)
        index, flux = sample_together(
            {
                "photon_index": _standardised(means[0], stds[0], galactic.shape),
                "log10_flux": _standardised(means[1], stds[1], galactic.shape),
            },
            precision,
            scaled_score - cross * (10.0**log10_nh)[:, None],
        )
        return index, flux, log10_nh


def _sample_column(information, best, mean, std, population):
    """Sample log10 of columns with likelihood N(best, 1 / information) and population N(mean, std^2).

    The sampled quantity is V of `LogOrLinear`, standardised by its mean and standard deviation under the product of
    likelihood and population. These are sums over a grid that vary smoothly with mean and std, also where the
    posterior of a source moves from the population to its likelihood.
    """
    std = jnp.broadcast_to(std, information.shape)
    to_v = LogOrLinear.of(information**-0.5, std)
    prior = dist.TransformedDistribution(population.expand(information.shape), to_v)
    log10_best = jnp.arcsinh(0.5 * best * jnp.sqrt(information)) / _LN10 - 0.5 * jnp.log10(information)
    population_weight = 1.0 / (1.0 + (_LN10 * 10.0**log10_best * std) ** 2 * information)
    log10_posterior = log10_best + population_weight * (mean - log10_best)
    v_likelihood, v_population, v_posterior = to_v(log10_best), to_v(mean), to_v(log10_posterior)
    low = jnp.maximum(jnp.minimum(v_likelihood, v_population) - _MARGIN, v_posterior - _MAX_HALF_WIDTH)
    high = jnp.minimum(jnp.maximum(v_likelihood, v_population) + _MARGIN, v_posterior + _MAX_HALF_WIDTH)
    step = (high - low) / (_GRID_POINTS - 1)
    V = low + np.arange(_GRID_POINTS)[:, None] * step
    weight = jax.nn.softmax(prior.log_prob(V) - 0.5 * information * (best - 10.0 ** to_v.inv(V)) ** 2, axis=0)
    center = jnp.sum(weight * V, axis=0)
    scale = jnp.sqrt(jnp.sum(weight * (V - center) ** 2, axis=0) + step**2 / 12.0)
    standardised = dist.TransformedDistribution(prior, AffineTransform(-center / scale, 1.0 / scale))
    V = center + scale * numpyro.sample("_log10_nh", standardised, infer={"start": 0.0})
    return numpyro.deterministic("log10_nh", to_v.inv(V))


def _standardised(mean, std, shape) -> Coordinate:
    """Return the coordinate (x - mean) / std of a normal population."""
    return Coordinate(dist.Normal().expand(shape), lambda V: mean + std * V)


def _fit(prepared: Population, galactic):
    """Fit all sources by penalised Fisher scoring, with a normal population that is estimated with them.

    Returns Fisher information and information vector of each source, the derivatives of the vector with respect to the
    Galactic column and to the density of the WHIM at each temperature, the optical depths of the WHIM per unit density,
    and the Fisher information of its density at fixed spectra.

    One compiled program gives the expected counts and their derivatives, another the response to the WHIM; the
    iteration between them is NumPy.
    """
    num = len(galactic)

    counts = np.sum(np.where(prepared.statistic.used, prepared.statistic.counts, 0.0), axis=1)
    prepared, galactic = jax.device_put((prepared, galactic))  # transferred once, not at every evaluation

    def evaluate(theta):
        *sums, derivatives, channel_information = _evaluate(prepared, galactic, theta)
        return [np.asarray(part) for part in sums], derivatives, channel_information

    def log_posterior(log_likelihood, theta, mean, precision):
        return log_likelihood - 0.5 * np.sum(precision * (theta - mean) ** 2, axis=1)

    theta, mean, std = np.tile(_MEAN, (num, 1)), _MEAN, _STD
    theta[:, 1] += np.log10(np.maximum(counts, 1.0) / evaluate(theta)[0][0])
    (_, log_likelihood, score, information), *_ = evaluate(theta)
    for _ in range(_POPULATION_UPDATES):
        precision, damping = 1.0 / std**2, np.full(num, 1e-2)
        for _ in range(_SCORING_STEPS):
            gradient, curvature = score - precision * (theta - mean), information[:, :3, :3] + np.diag(precision)
            damped = curvature + damping[:, None, None] * (curvature * np.eye(3))
            proposal = theta + np.clip(np.linalg.solve(damped, gradient[..., None])[..., 0], -0.5, 0.5)
            (_, *at_proposal), *_ = evaluate(proposal)
            accepted = log_posterior(at_proposal[0], proposal, mean, precision) >= log_posterior(
                log_likelihood, theta, mean, precision
            )
            theta = np.where(accepted[:, None], proposal, theta)
            log_likelihood = np.where(accepted, at_proposal[0], log_likelihood)
            score = np.where(accepted[:, None], at_proposal[1], score)
            information = np.where(accepted[:, None, None], at_proposal[2], information)
            damping = np.where(accepted, damping / 5.0, damping * 5.0)
        covariance = np.linalg.inv(information[:, :3, :3] + np.diag(precision))
        mean = (np.sum(theta, axis=0) + _PRIOR_WEIGHT * _MEAN) / (num + _PRIOR_WEIGHT)
        square = np.sum((theta - mean) ** 2 + np.einsum("nkk->nk", covariance), axis=0) + _PRIOR_WEIGHT * _STD**2
        std = np.maximum(np.sqrt(square / (num + _PRIOR_WEIGHT)), _MIN_STD)
    _, derivatives, channel_information = evaluate(theta)
    values = np.stack([theta[:, 0], theta[:, 1], 10.0 ** theta[:, 2]], axis=1)
    # Chain rule from the logarithm of the column to the column.
    jacobian = np.stack([np.ones(num), np.ones(num), 1.0 / (_LN10 * values[:, 2])], axis=1)
    fisher_information = jacobian[:, :, None] * information[:, :3, :3] * jacobian[:, None, :]
    vector = np.einsum("nkl,nl->nk", fisher_information, values) + jacobian * score
    score_per_density, depth, density_information = jax.device_get(
        _whim_response(prepared, galactic, theta, derivatives, channel_information)
    )
    vector_per_galactic = -jacobian * information[:, :3, 3]
    vector_per_density = jacobian * score_per_density
    return fisher_information, vector, vector_per_galactic, vector_per_density, depth, density_information


def _expected(prepared, theta, galactic, log10_n0=-30.0, log10_T=6.0):
    """Return expected counts at photon index, log10 flux and log10 column (N, 3); by default without a WHIM."""
    p = {"photon_index": theta[:, 0], "log10_flux": theta[:, 1], "nh": 10.0 ** theta[:, 2], "nh_mw": galactic}
    medium = {"log10_n0": log10_n0, "log10_T": log10_T, "log10_xi": 0.0, "metallicity": 0.3}
    return prepared.expected(p | medium | {"z": jnp.asarray(prepared.z)})


@jax.jit
def _evaluate(prepared, galactic, theta):
    """Return the log likelihood and its derivatives in photon index, log10 flux, log10 column and Galactic column.

    Total expected counts and log likelihood (N,), score in the first three parameters (N, 3), Fisher information in
    all four (N, 4, 4); derivatives of the expected counts in the first three (3, N, G), and the Fisher information of
    the expected counts of each channel (N, G).
    """
    statistic = prepared.statistic
    parameters = jnp.concatenate([theta, galactic[:, None]], axis=1)
    mu, jvp = jax.linearize(lambda b: _expected(prepared, b[:, :3], b[:, 3]), parameters)
    derivatives = jax.lax.map(jvp, jnp.broadcast_to(jnp.eye(4)[:, None, :], (4, *parameters.shape)))
    channel_gradient = jax.grad(lambda m: jnp.sum(statistic.log_likelihood(m)))
    channel_score, second_derivative = jax.jvp(channel_gradient, (mu,), (jnp.ones_like(mu),))
    channel_information = jnp.maximum(-second_derivative, 0.0)
    return (
        jnp.sum(jnp.where(statistic.used, mu, 0.0), axis=1),
        jnp.sum(statistic.log_likelihood(mu), axis=1),
        jnp.einsum("kng,ng->nk", derivatives[:3], channel_score),
        jnp.einsum("kng,lng,ng->nkl", derivatives, derivatives, channel_information),
        derivatives[:3],
        channel_information,
    )


@jax.jit
def _whim_response(prepared, galactic, theta, derivatives, channel_information):
    """Return, by temperature: derivative of the score with density, optical depth per density, information of density.

    The derivatives are those of a thin WHIM.
    """
    table = prepared.depth
    if table is None:
        num = len(galactic)
        return jnp.zeros((0, num, 3)), jnp.zeros((0, num, 0)), jnp.zeros((0, num))

    def by_temperature(T):
        def counts(log10_n0):
            return _expected(prepared, theta, galactic, log10_n0, T)

        change = jax.jvp(counts, (_THIN,), (1.0,))[1] / (_LN10 * 10.0**_THIN)
        score_change = -jnp.einsum("kng,ng,ng->nk", derivatives, channel_information, change)
        return score_change, table(1.0, T), jnp.sum(channel_information * change**2, axis=1)

    return jax.lax.map(by_temperature, jnp.asarray(_TEMPERATURES))
