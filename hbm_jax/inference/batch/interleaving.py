"""Draws of many objects in one batch, each at its own pace.

If all objects of a batch made their draws together, each would wait at every draw for the one with the longest
trajectory. Here an object whose trajectory has ended waits only until those of a fraction of the others have ended too.
Then all of these are accepted or rejected and begin the next trajectory, while the others continue theirs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hbm_jax.inference.batch import chees

MAX_DRAWS = 100  # of one object in one call
RECORDS = 256  # rounds of one call, in each of which an object makes a draw or none
# Fraction of the objects whose trajectories end before they are accepted or rejected: a smaller one means less waiting
# and more rounds, which cost about as much as a leapfrog step.
ENDED = 0.25
STOPPED = 0.25  # fraction of the objects which, when they have all their draws, end the call
JITTER = 50  # period of the jitter, in draws


class Records(NamedTuple):
    """Outcome of one call, for R rounds and S slots.

    Attributes
    ----------
    draws : Draw
        Arrays (S, R, ...); valid where ``ended`` is true.
    ended : (S, R)
        Whether a draw of the slot ended in this round.
    steps, waited : (S,)
        Leapfrog steps that the slot needed, and those that the batch took meanwhile.
    """

    draws: chees.Draw
    ended: jax.Array
    steps: jax.Array
    waited: jax.Array


def first_trajectory(state: chees.State, options: chees.Options) -> chees.Trajectory:
    """Return the first trajectory of one object."""
    momentum, _ = chees.random_numbers(state.key, state.age, state.position.shape, state.position.dtype)
    return chees.begin(state, momentum, jnp.asarray(chees.halton(JITTER))[state.age % JITTER], options)


def advance(
    leapfrog: Callable,
    state: chees.State,
    trajectory: chees.Trajectory,
    num_draws: jax.Array,
    options: chees.Options,
) -> tuple[chees.State, chees.Trajectory, Records]:
    """Make draws of every object.

    Parameters
    ----------
    leapfrog : callable
        `chees.leapfrog` of every slot: a function of the factors of the metrics and of the trajectories.
    state, trajectory
        States and trajectories under way; the first axis of each array is the slot.
    num_draws : (S,)
        Largest number of draws of each object, at most `MAX_DRAWS`; 0 for empty slots.
    options : chees.Options
        Settings.

    Returns
    -------
    State, Trajectory, Records
        The draws end when a fraction `STOPPED` of the objects have made all of theirs, or after `RECORDS` rounds.
    """
    first_age, shape, dtype = state.age, state.position.shape[1:], state.position.dtype

    def numbers_of(key, age):
        ages = age + jnp.arange(MAX_DRAWS + 1)
        return jax.vmap(lambda age: chees.random_numbers(key, age, shape, dtype))(ages)

    momenta, uniforms = jax.vmap(numbers_of)(state.key, first_age)
    jitters = jnp.asarray(chees.halton(JITTER), dtype)
    slots = jnp.arange(len(first_age))
    num_occupied = jnp.sum(num_draws > 0)

    def is_active(state):
        return state.age - first_age < num_draws

    def travel(state, trajectory, steps, waited):
        """Take leapfrog steps until enough trajectories have ended."""
        active = is_active(state)
        enough = jnp.maximum(1, jnp.ceil(ENDED * jnp.sum(active)))

        def condition(carry):
            return jnp.sum(active & (carry[0].steps_left == 0)) < enough

        def body(carry):
            trajectory, steps, waited = carry
            is_moving = active & (trajectory.steps_left > 0)
            moved = _where(is_moving, leapfrog(state.factor, trajectory), trajectory)
            return moved, steps + is_moving, waited + 1

        return jax.lax.while_loop(condition, body, (trajectory, steps, waited))

    def one_round(carry):
        index, state, trajectory, records, steps, waited = carry
        trajectory, steps, waited = travel(state, trajectory, steps, waited)
        ended = is_active(state) & (trajectory.steps_left == 0)
        count = state.age - first_age
        new_state, draw = jax.vmap(chees.end, in_axes=(0, 0, 0, None))(
            state, trajectory, uniforms[slots, count], options
        )
        closing = ended & jax.vmap(chees.window_ends, in_axes=(0, None))(new_state.age, options)
        new_state = jax.lax.cond(
            closing.any(),
            lambda state: _where(closing, jax.vmap(chees.end_segment, in_axes=(0, None))(state, options), state),
            lambda state: state,
            new_state,
        )
        state = _where(ended, new_state, state)
        count = state.age - first_age
        begun = jax.vmap(chees.begin, in_axes=(0, 0, 0, None))(
            state, momenta[slots, count], jitters[state.age % JITTER], options
        )
        trajectory = _where(ended, begun, trajectory)
        records = jax.tree.map(lambda all_, new: all_.at[index].set(new), records, (draw, ended))
        return index + 1, state, trajectory, records, steps, waited

    def goes_on(carry):
        index, state, *_ = carry
        num_active = jnp.sum(is_active(state))
        return (index < RECORDS) & (num_active > (1.0 - STOPPED) * num_occupied)

    def row(state, trajectory, uniform):
        return chees.end(state, trajectory, uniform, options)[1], jnp.zeros((), bool)

    rows = jax.eval_shape(jax.vmap(row), state, trajectory, uniforms[:, 0])
    records = jax.tree.map(lambda x: jnp.zeros((RECORDS, *x.shape), x.dtype), rows)
    zeros = jnp.zeros(len(first_age), jnp.int32)
    initial = (jnp.zeros((), jnp.int32), state, trajectory, records, zeros, zeros)
    _, state, trajectory, records, steps, waited = jax.lax.while_loop(goes_on, one_round, initial)
    draws, ended = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), records)
    return state, trajectory, Records(draws, ended, steps, waited)


def _where(chosen: jax.Array, new: Any, old: Any) -> Any:
    """Return the new values of the chosen slots, and the old ones of the others."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.expand_dims(chosen, tuple(range(1, a.ndim))), a, b), new, old)
