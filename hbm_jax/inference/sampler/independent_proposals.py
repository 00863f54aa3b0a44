"""Draws proposed independently of where a chain is, between trajectories: for posteriors close to normal.

A normal distribution in the sampler's variables, fitted to the warm-up, proposes; Metropolis and Hastings decide
(the independence chain of Tierney 1994, Ann. Statist. 22, 1701). Nothing of a proposal depends on the one before, and
one density is enough for a draw, which takes less than its gradient (half for JLA). Where the posterior has heavier
tails than the proposals, a chain stays at a place in them for long: so every so many draws there is a trajectory, which
moves from anywhere, and where too few proposals are accepted there are only trajectories.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EVERY = 16  # draws, one of which is a trajectory
ROUNDS = (200, 600, 4000)  # draws a chain after the warm-up of trajectories, at whose ends proposals are fitted again
DRAWS_A_PARAMETER = 10  # below which nothing is fitted
# Of the proposals: the first share is as wide as the draws they are fitted to, the second wider, so that a chain stays
# less long in the tails.
SHARES, SCALES = (0.8, 0.2), (1.0, 1.2)
LEAST_ACCEPTED = 0.4  # share of the proposals in the last round; with fewer, trajectories are as good
MAX_SIZE = 100  # parameters


class Proposals(NamedTuple):
    """A distribution about normal of d parameters in the sampler's variables, and whether it is to be used."""

    mean: Any  # (d,)
    factor: Any  # (d, d) lower triangle: its product with its transpose is the covariance
    inverse: Any  # of the factor
    used: Any  # ()

    @classmethod
    def none(cls, size: int) -> "Proposals":
        """Trajectories only."""
        return cls(np.zeros(size), np.eye(size), np.eye(size), np.asarray(False))

    @classmethod
    def of(cls, draws: np.ndarray) -> "Proposals":
        """Fit to draws (num, size); `none` where they are too few or degenerate."""
        num, size = draws.shape
        if num < DRAWS_A_PARAMETER * size or not np.isfinite(draws).all():
            return cls.none(size)
        covariance = np.atleast_2d(np.cov(draws, rowvar=False))
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return cls.none(size)
        return cls(draws.mean(axis=0), factor, np.linalg.inv(factor), np.asarray(True))

    def at(self, noise: jax.Array) -> jax.Array:
        """Place of numbers of `scaled`, (..., d)."""
        return self.mean + noise @ self.factor.T

    def log_density(self, place: jax.Array) -> jax.Array:
        """Log density at a place (..., d), but for a constant."""
        return _log_density((place - self.mean) @ self.inverse.T)


def scaled(noise: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return standard normal numbers (..., d), those of which the uniform number (...) says so wider."""
    return noise * jnp.where(uniform < SHARES[0], *SCALES)[..., None]


def _log_density(noise):
    square, size = jnp.sum(noise**2, axis=-1), noise.shape[-1]
    parts = [np.log(p) - size * np.log(s) - 0.5 * square / s**2 for p, s in zip(SHARES, SCALES, strict=True)]
    return jnp.logaddexp(*parts)


class Stage(NamedTuple):
    """Proposals for one call of the sampler, worked out before any of them is judged; n of them."""

    place: jax.Array  # (n, d)
    potential: jax.Array  # (n,)
    weight: jax.Array  # (n,) log of posterior over proposal density, minus infinity where that is no number
    threshold: jax.Array  # (n,) log of a uniform number


def stage(potential, proposals: Proposals, key: jax.Array, first, num, most: int, chunk: int) -> Stage:
    """Draw proposals and compute their densities.

    Parameters
    ----------
    potential : callable
        (d,) -> scalar, minus the log density.
    proposals : Proposals
        What to draw from; nothing is computed where it is not to be used.
    key : jax.Array
        Of the chain. Numbers depend on it and on the number of the draw alone, not on how draws are cut into calls.
    first, num : scalar
        Number of the first draw, and of how many.
    most : int
        Length of what is returned; beyond ``num`` it is filled up.
    chunk : int
        Densities computed side by side.
    """
    length = -(-most // chunk) * chunk
    numbers = first + jnp.arange(length)
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number)))(numbers)
    dtype = jnp.result_type(proposals.mean)
    noise = jax.vmap(lambda k: jax.random.normal(k, proposals.mean.shape, dtype))(keys[:, 0])
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (2,), dtype))(keys[:, 1])
    noise, threshold = scaled(noise, uniform[:, 0]), jnp.log(uniform[:, 1])
    place = proposals.at(noise)
    several = potential if chunk == 1 else jax.vmap(potential)

    def compute(index, found):
        part = jax.lax.dynamic_slice_in_dim(place, index * chunk, chunk)
        values = several(part[0])[None] if chunk == 1 else several(part)
        return jax.lax.dynamic_update_slice_in_dim(found, values.astype(dtype), index * chunk, 0)

    num_chunks = jnp.where(proposals.used, -(-num // chunk), 0)
    values = jax.lax.fori_loop(0, num_chunks, compute, jnp.full(length, jnp.inf, dtype))
    weight = -values - _log_density(noise)
    return Stage(place, values, jnp.where(jnp.isfinite(weight), weight, -jnp.inf), threshold)
