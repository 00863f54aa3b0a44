"""Searches for modes from particles at all temperatures.

A narrow mode of several parameters has hardly any mass in tempered densities, and may lose all its particles before it
would gain some. Searches from particles on their way end in it as soon as one of them is in its basin.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hbm_jax.inference.sampler.approximations import (
    Approximation,
    importance_sample,
    is_finite,
    minimise,
    mode_at,
)
from hbm_jax.inference.sampler.initialisation import MAX_LOSS, SAME_MODE, SAME_POINT

NUM_SEARCHES = 200
ITERATIONS = 100  # largest number of each search
MAX_SIZE = 100  # parameters, up to which there are searches: a Hessian takes two gradients for each
NEGLIGIBLE = 7.0  # difference in Laplace's log evidence beyond which a mode is left out: a weight below 1e-3
NUM_MODES = 12  # largest number of modes
NUM_DRAWS = 60  # from the approximation of a mode, as points of this mode
MIN_DRAWS = 20  # of these with a typical density


def points_of_modes(value_and_grad: Callable, starts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return draws from the Laplace approximations of the modes in which searches end, (num, size).

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> minus the log density, gradient; in units in which the widths of the prior are about 1.
    starts : sequence of (size,)
        Starting points, in these units.
    rng : numpy.random.Generator
        Generator of the draws.
    """
    # Searches may follow a density without limit, or leave the support.
    with np.errstate(all="ignore"):
        return _points_of_modes(value_and_grad, starts, rng)


def _points_of_modes(value_and_grad: Callable, starts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the result of `points_of_modes`."""
    size = len(starts[0])
    modes: list[Approximation] = []
    ends: list[np.ndarray] = []  # of searches that failed
    for start in starts:
        if not is_finite(*map(np.asarray, value_and_grad(start))):
            continue
        point, value, _ = minimise(value_and_grad, start, ITERATIONS)
        if any(mode.distance(point) < SAME_POINT for mode in modes) or any((point == end).all() for end in ends):
            continue
        mode = mode_at(value_and_grad, point, value)
        if mode is None:
            ends.append(point)
        # In units of the widths of both, because a narrow mode may lie within a wide one.
        elif not any(max(other.distance(mode.point), mode.distance(other.point)) < SAME_MODE for other in modes):
            modes.append(mode)
    best = max((mode.log_evidence for mode in modes), default=0.0)
    modes = sorted((m for m in modes if m.log_evidence > best - NEGLIGIBLE), key=lambda mode: -mode.log_evidence)
    points = [np.zeros((0, size))]
    for mode in modes[:NUM_MODES]:
        typical = importance_sample(value_and_grad, mode, rng, NUM_DRAWS).typical(MAX_LOSS[0] + MAX_LOSS[1] * size)
        points += [typical] if len(typical) >= MIN_DRAWS else []
    return np.concatenate(points)
