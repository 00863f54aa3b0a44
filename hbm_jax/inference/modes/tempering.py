"""Tempered sequential Monte Carlo: particles moved from a reference distribution to a posterior.

The particles pass through densities proportional to q^(1 - b) p^b, from the reference q at b = 0 to the posterior p at
b = 1 (Del Moral, Doucet & Jasra 2006, J. R. Statist. Soc. B 68, 411). At small b the modes are not separate, and
particles move between them; while the modes separate, weights and resampling keep the right fraction in each. After
each step, each half of the particles moves along differences of the other half (ter Braak 2006, Stat. Comput. 16, 239),
which have the widths and directions of every mode and need neither units nor a gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EFFICIENCY = 0.5  # effective fraction of the particles after reweighting, which sets the next b
SWEEPS = 10  # moves of each particle after a step; as many as there are parameters, if these are more
MAX_SWEEPS = 60
BATCH = 50  # densities evaluated in one batch
HOPS = 0.1  # fraction of the moves by a whole difference, from mode to mode
SHORTEST = 0.2  # smallest length of the other moves, relative to the optimum for a normal distribution
MAX_STEPS = 1000
RECORDED = 10  # particles whose path is recorded


class Particles(NamedTuple):
    """Particles and their densities: (num, size), (num,), (num,)."""

    position: Any
    log_reference: Any
    log_posterior: Any

    def at(self, indices) -> "Particles":
        """Return the particles with these indices."""
        return Particles(*(values[indices] for values in self))


class Tempered:
    """Tempered sequential Monte Carlo on one pair of densities, compiled once for any number of runs.

    Parameters
    ----------
    log_reference, log_posterior : callable
        (size,) -> scalar; the first is normalised up to the same constant as the draws that `run` begins with.
    num_particles, size : int
        Number of particles, which is even, and of parameters.
    """

    def __init__(self, log_reference: Callable, log_posterior: Callable, num_particles: int, size: int):
        self.num_particles = num_particles
        sweeps = min(max(SWEEPS, size), MAX_SWEEPS)

        def densities(position):
            values = log_reference(position), log_posterior(position)
            return tuple(jnp.where(jnp.isfinite(value), value, -jnp.inf) for value in values)

        def evaluate(positions):
            return Particles(positions, *jax.lax.map(densities, positions, batch_size=BATCH))

        def move_half(moving, others, b, key):
            """Move each particle along the difference of two particles of the other half."""
            key_a, key_b, key_length, key_hop, key_accept = jax.random.split(key, 5)
            num = len(moving.position)
            first = jax.random.randint(key_a, (num,), 0, num)
            second = (first + jax.random.randint(key_b, (num,), 1, num)) % num
            optimum = 2.38 / np.sqrt(2 * size)  # for a normal distribution
            length = optimum * SHORTEST ** jax.random.uniform(key_length, (num,))
            length = jnp.where(jax.random.uniform(key_hop, (num,)) < HOPS, 1.0, length)
            step = length[:, None] * (others.position[first] - others.position[second])
            moved = evaluate(moving.position + step)
            rise = _tempered(moved, b) - _tempered(moving, b)
            accepted = jnp.log(jax.random.uniform(key_accept, (num,))) < rise
            return jax.tree.map(
                lambda new, old: jnp.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old), moved, moving
            )

        def move(particles, b, key):
            """Move the particles, one half after the other, at the exponent ``b``."""
            half = num_particles // 2

            def sweep(i, particles):
                keys = jax.random.split(jax.random.fold_in(key, i))
                first, second = particles.at(slice(None, half)), particles.at(slice(half, None))
                first = move_half(first, second, b, keys[0])
                second = move_half(second, first, b, keys[1])
                return Particles(*(jnp.concatenate(pair) for pair in zip(first, second, strict=True)))

            return jax.lax.fori_loop(0, sweeps, sweep, particles)

        self.evaluate, self.move = jax.jit(evaluate), jax.jit(move)

    def run(
        self, reference_draws: np.ndarray, seed: int, visited: list[np.ndarray] | None = None
    ) -> tuple[Particles, float]:
        """Move draws of the reference to the posterior.

        Parameters
        ----------
        reference_draws : (num_particles, size)
            Draws of the reference.
        seed : int
            Seed of the moves.
        visited : list, optional
            Receives the positions of the first `RECORDED` particles at each temperature.

        Returns
        -------
        Particles, float
            Draws of the posterior, of equal weight, and the log evidence.

        Raises
        ------
        ValueError
            If the posterior vanishes at all draws of the reference, or no step makes progress.
        """
        rng, key = np.random.default_rng(seed), jax.random.key(seed)
        particles = Particles(*map(np.asarray, self.evaluate(reference_draws)))
        b, log_evidence = 0.0, 0.0
        for step in range(MAX_STEPS):
            if visited is not None:
                visited.append(np.asarray(particles.position[:RECORDED]))
            with np.errstate(invalid="ignore"):
                log_ratio = particles.log_posterior - particles.log_reference
            log_ratio = np.where(np.isnan(log_ratio), -np.inf, log_ratio)
            if not np.isfinite(log_ratio.max()):
                raise ValueError(
                    f"look_for_modes: expected a finite density at some of {self.num_particles} draws of the prior; "
                    "found none."
                )
            previous, b = b, _next_exponent(b, log_ratio)
            weights = np.exp((b - previous) * (log_ratio - log_ratio.max()))
            log_evidence += float(np.log(weights.mean()) + (b - previous) * log_ratio.max())
            # Systematic resampling, in random order, because the halves must be alike.
            points = (np.arange(len(log_ratio)) + rng.uniform()) / len(log_ratio)
            resampled = np.minimum(np.searchsorted(np.cumsum(weights) / weights.sum(), points), len(log_ratio) - 1)
            particles = particles.at(rng.permutation(resampled))
            particles = Particles(*map(np.asarray, self.move(particles, b, jax.random.fold_in(key, step))))
            if b == 1.0:
                return particles, log_evidence
        raise ValueError(
            f"look_for_modes: expected the posterior within {MAX_STEPS} tempering steps; found b = {b:.2g}."
        )


def _tempered(particles: Particles, b):
    """Return the log density of the particles at the exponent ``b``."""
    value = (1.0 - b) * particles.log_reference + b * particles.log_posterior
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _next_exponent(b: float, log_ratio: np.ndarray) -> float:
    """Return the next b, at which the effective number of the reweighted particles is `EFFICIENCY` of all."""
    finite = np.isfinite(log_ratio)

    def efficiency(step):
        weights = np.where(finite, np.exp(step * (np.where(finite, log_ratio, 0.0) - log_ratio[finite].max())), 0.0)
        # Relative to the particles with a finite density; the others are lost at any step.
        return weights.sum() ** 2 / (weights**2).sum() / finite.sum()

    if efficiency(1.0 - b) >= EFFICIENCY:
        return 1.0
    low, high = 0.0, 1.0 - b
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if efficiency(middle) >= EFFICIENCY else (low, middle)
    return b + low
