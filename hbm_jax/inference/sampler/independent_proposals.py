"""Independent Metropolis-Hastings proposals between trajectories, for posteriors close to normal.

Proposals are drawn from a normal distribution in the sampler's variables, fitted to the warm-up (the independence chain
of Tierney 1994, Ann. Statist. 22, 1701). They do not depend on the current state, and a draw costs one evaluation of
the density, which takes less time than its gradient (half for JLA). If the posterior has heavier tails than the
proposals, a chain stays in a tail for many draws. Therefore one draw in `EVERY` is a trajectory, and if too few
proposals are accepted, all draws are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EVERY = 16  # number of draws per trajectory
ROUNDS = (200, 600, 4000)  # draws per chain in each round after the warm-up; proposals are refitted at its end
DRAWS_A_PARAMETER = 10  # fewest draws per parameter to which proposals are fitted
# Weights and widths of the two components of the proposals. The first is as wide as the draws, the second wider, so
# that a chain leaves the tails sooner.
WEIGHTS, SCALES = (0.8, 0.2), (1.0, 1.2)
LEAST_ACCEPTED = 0.4  # accepted fraction in the last round below which trajectories are as efficient
MAX_SIZE = 100  # largest number of parameters


class Proposals(NamedTuple):
    """Mixture of two normal distributions in the d variables of the sampler, and whether to propose from it."""

    mean: Any  # (d,)
    factor: Any  # (d, d) Cholesky factor of the covariance, lower triangular
    inverse: Any  # (d, d) inverse of the factor
    used: Any  # () bool

    @classmethod
    def disabled(cls, size: int) -> "Proposals":
        """Return proposals that are not used: all draws are trajectories."""
        return cls(np.zeros(size), np.eye(size), np.eye(size), np.asarray(False))

    @classmethod
    def fit(cls, draws: np.ndarray) -> "Proposals":
        """Fit to draws (num, size); `disabled` if they are too few or degenerate."""
        num, size = draws.shape
        if num < DRAWS_A_PARAMETER * size or not np.isfinite(draws).all():
            return cls.disabled(size)
        covariance = np.atleast_2d(np.cov(draws, rowvar=False))
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return cls.disabled(size)
        return cls(draws.mean(axis=0), factor, np.linalg.inv(factor), np.asarray(True))

    def transform(self, noise: jax.Array) -> jax.Array:
        """Transform noise from `scaled`, (..., d), to positions."""
        return self.mean + noise @ self.factor.T

    def log_density(self, position: jax.Array) -> jax.Array:
        """Return the log density at positions (..., d), up to a constant."""
        return _log_density((position - self.mean) @ self.inverse.T)


def scaled(noise: jax.Array, uniform: jax.Array) -> jax.Array:
    """Scale standard normal noise (..., d) by the width of the component that a uniform number (...) selects."""
    return noise * jnp.where(uniform < WEIGHTS[0], *SCALES)[..., None]


def _log_density(noise):
    """Return the log density of the mixture at standardised positions (..., d), up to a constant."""
    square, size = jnp.sum(noise**2, axis=-1), noise.shape[-1]
    parts = [np.log(p) - size * np.log(s) - 0.5 * square / s**2 for p, s in zip(WEIGHTS, SCALES, strict=True)]
    return jnp.logaddexp(*parts)


class ProposedDraws(NamedTuple):
    """Precomputed proposals for one call of the sampler, n of them."""

    position: jax.Array  # (n, d)
    potential: jax.Array  # (n,)
    weight: jax.Array  # (n,) log ratio of posterior to proposal density, -inf if not finite
    threshold: jax.Array  # (n,) log of a uniform random number


def draw_proposals(
    potential, proposals: Proposals, key: jax.Array, first, num, max_num: int, chunk: int
) -> ProposedDraws:
    """Draw proposals and compute their densities.

    Parameters
    ----------
    potential : callable
        (d,) -> scalar, minus the log density.
    proposals : Proposals
        Distribution of the proposals; if it is not used, no densities are computed.
    key : jax.Array
        Key of the chain. Random numbers depend only on it and on the index of the draw, not on the division into calls.
    first, num : scalar
        Index of the first draw, and number of draws.
    max_num : int
        Length of the result, rounded up to a multiple of ``chunk``; entries beyond ``num`` are padding.
    chunk : int
        Number of densities evaluated in parallel.
    """
    length = -(-max_num // chunk) * chunk
    indices = first + jnp.arange(length)
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number)))(indices)
    dtype = jnp.result_type(proposals.mean)
    noise = jax.vmap(lambda k: jax.random.normal(k, proposals.mean.shape, dtype))(keys[:, 0])
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,), dtype))(keys[:, 1])
    noise, threshold = scaled(noise, uniform[:, 0]), jnp.log(uniform[:, 1])
    position = proposals.transform(noise)
    batched_potential = potential if chunk == 1 else jax.vmap(potential)

    def compute(index, potentials):
        chunk_positions = jax.lax.dynamic_slice_in_dim(position, index * chunk, chunk)
        values = batched_potential(chunk_positions[0])[None] if chunk == 1 else batched_potential(chunk_positions)
        return jax.lax.dynamic_update_slice_in_dim(potentials, values.astype(dtype), index * chunk, 0)

    num_chunks = jnp.where(proposals.used, -(-num // chunk), 0)
    values = jax.lax.fori_loop(0, num_chunks, compute, jnp.full(length, jnp.inf, dtype))
    weight = -values - _log_density(noise)
    return ProposedDraws(position, values, jnp.where(jnp.isfinite(weight), weight, -jnp.inf), threshold)
