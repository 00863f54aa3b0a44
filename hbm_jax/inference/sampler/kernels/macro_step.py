"""Leapfrog steps of a size that is chosen at each point of a trajectory, reversibly (WALNUTS).

A trajectory consists of macro steps of a fixed size. Each of them consists of 2**n leapfrog steps (micro steps), where
n, the number of halvings, is the smallest for which the energy varies by at most a given amount along the macro step. A
macro step is reversible if the one in the opposite direction, from its end, has the same number of halvings. The path
back with the same number has the same points, so that only fewer halvings have to be tried from there (Bou-Rabee,
Carpenter, Kleppe & Liu 2025, arXiv:2506.18746, with the smallest number rather than a random one).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro.infer.hmc_util import euclidean_kinetic_energy

# Stages of a macro step: halvings are tried from its start, then from its end; outcomes.
FORWARD, BACKWARD, REVERSIBLE, IRREVERSIBLE, FAILED = range(5)


class Point(NamedTuple):
    """Point of a trajectory: position (size,), momentum (size,), potential, and its gradient (size,)."""

    position: Any
    momentum: Any
    potential: Any
    gradient: Any


class MacroStep(NamedTuple):
    """Outcome of a macro step.

    Attributes
    ----------
    end : Point
        The point reached; any point if it failed.
    outcome : int
        `REVERSIBLE`, `IRREVERSIBLE`, or `FAILED` if the energy varies too much with all numbers of halvings.
    num_halvings : int
        Number of halvings of the step size.
    num_gradients : int
        Number of gradients, with those of all numbers of halvings that were tried in both directions.
    """

    end: Point
    outcome: Any
    num_halvings: Any
    num_gradients: Any


class _Search(NamedTuple):
    """State of the search for the number of halvings; one gradient is evaluated between two states."""

    stage: Any
    num_halvings: Any  # that is tried
    num_done: Any  # micro steps of this attempt
    point: Point
    lowest: Any  # energy along this attempt
    highest: Any
    end: Point
    chosen: Any  # halvings of the step forward
    num_gradients: Any


def leapfrog(value_and_grad: Callable, inverse_mass: Any, step_size: Any, point: Point) -> Point:
    """Return the point after one leapfrog step; a negative step goes back."""
    momentum = point.momentum - 0.5 * step_size * point.gradient
    velocity = inverse_mass @ momentum if inverse_mass.ndim == 2 else inverse_mass * momentum
    position = point.position + step_size * velocity
    potential, gradient = value_and_grad(position)
    return Point(position, momentum - 0.5 * step_size * gradient, potential, gradient)


def macro_step(
    value_and_grad: Callable,
    inverse_mass: Any,
    step_size: Any,
    start: Point,
    max_energy_error: float,
    max_halvings: int,
) -> MacroStep:
    """Make one macro step.

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> scalar, (size,): potential and gradient.
    inverse_mass : (size, size) or (size,)
        Inverse mass matrix, or its diagonal.
    step_size : scalar
        Size of the macro step; negative to go back.
    start : Point
        Its start.
    max_energy_error : float
        Largest difference between the energies of two points along the macro step.
    max_halvings : int
        Largest number of halvings.
    """

    def energy(point: Point):
        return point.potential + euclidean_kinetic_energy(inverse_mass, point.momentum)

    def choose(condition, yes, no):
        return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

    def advance(search: _Search) -> _Search:
        sign = jnp.where(search.stage == FORWARD, 1.0, -1.0)
        micro_step = (sign * step_size * jnp.exp2(-search.num_halvings)).astype(step_size.dtype)
        point = leapfrog(value_and_grad, inverse_mass, micro_step, search.point)
        new_energy = energy(point)
        lowest, highest = jnp.minimum(search.lowest, new_energy), jnp.maximum(search.highest, new_energy)
        failed = ~(highest - lowest <= max_energy_error)  # also for NaN
        num_done = search.num_done + 1
        passed = ~failed & (num_done == 2**search.num_halvings)
        forward = search.stage == FORWARD
        next_halvings = search.num_halvings + failed
        # Forward: the first number of halvings that passes is chosen, then checked from the other end.
        found = forward & passed
        end, chosen = choose(found, point, search.end), jnp.where(found, search.num_halvings, search.chosen)
        stage = jnp.where(found, jnp.where(search.num_halvings == 0, REVERSIBLE, BACKWARD), search.stage)
        stage = jnp.where(forward & (next_halvings > max_halvings), FAILED, stage)
        # Backward: no smaller number may pass.
        stage = jnp.where(~forward & passed, IRREVERSIBLE, stage)
        stage = jnp.where(~forward & failed & (next_halvings == search.chosen), REVERSIBLE, stage)
        restart = failed | passed
        origin = choose(stage == FORWARD, start, end)
        origin_energy = energy(origin)
        return _Search(
            stage,
            jnp.where(found, 0, next_halvings),
            jnp.where(restart, 0, num_done),
            choose(restart, origin, point),
            jnp.where(restart, origin_energy, lowest),
            jnp.where(restart, origin_energy, highest),
            end,
            chosen,
            search.num_gradients + 1,
        )

    zero = jnp.zeros((), jnp.result_type(int))
    start_energy = energy(start)
    begin = _Search(zero + FORWARD, zero, zero, start, start_energy, start_energy, start, zero, zero)
    search = jax.lax.while_loop(lambda search: search.stage < REVERSIBLE, advance, begin)
    return MacroStep(search.end, search.stage, search.chosen, search.num_gradients)
