"""Hamiltonian Monte Carlo with trajectories of a common length, for many chains of one posterior side by side.

Side by side, NUTS waits at every draw for the deepest tree there is. Here all chains of an object take the same number
of steps, and step size, length and metric are learnt from all of them together: the length by maximising the change in
squared distance from the mean (ChEES: Hoffman, Radul & Sountsov 2021, AISTATS, PMLR 130, 3907), jittered by a
low-discrepancy sequence. Written for one object; a batch is a `jax.vmap` of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DIVERGENT = 1000.0  # error of the energy, as in NumPyro and Stan
LEARNING_RATE = 0.03  # of Adam on the logarithm of the length
AVERAGE_FROM = 0.4  # of the warm-up
ADAM = (0.9, 0.95, 1e-8)
# Ends of the windows after which the metric is replaced, as shares of the warm-up.
WINDOWS = (0.1, 0.25, 0.5, 0.85)
DUAL_AVERAGING = (0.05, 10.0, 0.75)  # gamma, t0, kappa: Hoffman & Gelman 2014, JMLR 15, 1593


class Options(NamedTuple):
    """Settings of the algorithm."""

    num_warmup: int
    target_accept_prob: float
    max_steps: int


class State(NamedTuple):
    """All chains of one object, and what has been learnt from them; C chains of d parameters."""

    age: jax.Array  # draws so far, warm-up included
    key: jax.Array  # data of it
    position: jax.Array  # (C, d)
    potential: jax.Array  # (C,)
    gradient: jax.Array  # (C, d)
    scale: jax.Array  # (d,), standard deviations that make the metric
    log_length: jax.Array  # (2,) of the longest trajectory, in units of the metric: now, and averaged
    adam: jax.Array  # (2,)
    log_step: jax.Array
    averaged: jax.Array  # (4,): log step averaged, mean error, shrinkage point, count
    num_seen: jax.Array  # by the running variance
    mean: jax.Array  # (d,)
    squares: jax.Array  # (d,)


class Draw(NamedTuple):
    """One draw of every chain of one object."""

    position: jax.Array  # (C, d)
    potential_energy: jax.Array  # (C,)
    energy: jax.Array  # (C,)
    accept_prob: jax.Array  # (C,)
    diverging: jax.Array  # (C,)
    num_steps: jax.Array  # of each chain


def halton(num: int, base: int = 2) -> np.ndarray:
    """Low-discrepancy numbers between 0 and 1, (num,)."""
    found = np.zeros(num)
    for index in range(num):
        n, share = index + 1, 1.0
        while n:
            share /= base
            found[index] += share * (n % base)
            n //= base
    return found


def initial_state(value_and_grad: Callable, points: jax.Array, key: jax.Array) -> State:
    """State before the first draw.

    Parameters
    ----------
    value_and_grad : callable
        (C, d) -> (C,), (C, d): minus the log density and its gradient.
    points : (C, d)
        Starting points.
    key : jax.Array
        Data of a random key, plain numbers so that states can be mixed.
    """
    potential, gradient = value_and_grad(points)
    size = points.shape[-1]
    zero, zeros = jnp.zeros((), points.dtype), jnp.zeros(size, points.dtype)
    zeros_of_two = jnp.full(2, jnp.log(2.0), points.dtype)
    log_step = jnp.log(jnp.asarray(0.5 * size**-0.25, points.dtype))
    return State(
        age=jnp.zeros((), jnp.int32),
        key=key,
        position=points,
        potential=potential,
        gradient=gradient,
        scale=zeros + 1.0,
        log_length=zeros_of_two,
        adam=jnp.zeros(2, points.dtype),
        log_step=log_step,
        averaged=jnp.stack([log_step, zero, jnp.log(10.0) + log_step, zero]).astype(points.dtype),
        num_seen=zero,
        mean=zeros,
        squares=zeros,
    )


def advance(
    value_and_grad: Callable, state: State, share: jax.Array, active: jax.Array, options: Options
) -> tuple[State, Draw]:
    """Make one draw of every chain, learning from it during the warm-up.

    Parameters
    ----------
    value_and_grad : callable
        As in `initial_state`.
    state : State
        Where the chains are.
    share : scalar
        Of the full length that this trajectory takes, between 0 and 1.
    active : scalar
        False takes no step at all: a place in a batch without an object.
    options : Options
        Settings.
    """
    key, key_momentum, key_accept = jax.random.split(jax.random.wrap_key_data(state.key), 3)
    warming = state.age < options.num_warmup
    step = jnp.exp(jnp.where(warming, state.log_step, state.averaged[0]))
    length = share * jnp.exp(jnp.where(warming, state.log_length[0], state.log_length[1]))
    wanted = jnp.ceil(length / step)
    num_steps = jnp.clip(jnp.where(jnp.isfinite(wanted), wanted, 1.0), 1, options.max_steps).astype(jnp.int32)
    num_steps = jnp.where(active, num_steps, 0)
    # In units of the metric: momenta are standard normal.
    momentum = jax.random.normal(key_momentum, state.position.shape, state.position.dtype)
    position, potential, gradient, ending = _leapfrog(value_and_grad, state, momentum, step, num_steps)
    before = state.potential + 0.5 * jnp.sum(momentum**2, axis=-1)
    after = potential + 0.5 * jnp.sum(ending**2, axis=-1)
    error = jnp.where(jnp.isfinite(after), after - before, jnp.inf)
    accept_prob = jnp.minimum(1.0, jnp.exp(-error))
    accepted = jax.random.uniform(key_accept, error.shape, error.dtype) < accept_prob
    moved = state._replace(
        age=state.age + 1,
        key=jax.random.key_data(key),
        position=jnp.where(accepted[:, None], position, state.position),
        potential=jnp.where(accepted, potential, state.potential),
        gradient=jnp.where(accepted[:, None], gradient, state.gradient),
    )
    learnt = _learn(moved, state.position, position, ending, accept_prob, length, options)
    new = jax.tree.map(lambda a, b: jnp.where(warming, a, b), learnt, moved)
    draw = Draw(
        position=new.position,
        potential_energy=new.potential,
        energy=jnp.where(accepted, after, before),
        accept_prob=accept_prob,
        diverging=~(error < DIVERGENT),
        num_steps=jnp.broadcast_to(num_steps, error.shape),
    )
    return new, draw


def _leapfrog(value_and_grad, state, momentum, step, num_steps):
    """Take the steps of every chain together; momenta are in units of the metric."""
    half = 0.5 * step * state.scale

    def one(carry):
        k, position, momentum, gradient, _ = carry
        momentum = momentum - half * gradient
        position = position + step * state.scale * momentum
        potential, gradient = value_and_grad(position)
        return k + 1, position, momentum - half * gradient, gradient, potential

    begin = (jnp.zeros((), jnp.int32), state.position, momentum, state.gradient, state.potential)
    _, position, momentum, gradient, potential = jax.lax.while_loop(lambda carry: carry[0] < num_steps, one, begin)
    return position, potential, gradient, momentum


def _learn(state: State, began, ended, ending, accept_prob, length, options: Options) -> State:
    """Adapt step size, length and metric to one trajectory of every chain."""
    # Step size, by dual averaging.
    gamma, t0, kappa = DUAL_AVERAGING
    log_step, mean_error, middle, count = state.averaged
    count = count + 1.0
    off = options.target_accept_prob - jnp.mean(accept_prob)
    mean_error = (1.0 - 1.0 / (count + t0)) * mean_error + off / (count + t0)
    now = middle - jnp.sqrt(count) / gamma * mean_error
    weight = count**-kappa
    averaged = jnp.stack([weight * now + (1.0 - weight) * log_step, mean_error, middle, count])
    # Length, by the gradient of the mean squared change in squared distance from the mean.
    trust = jnp.where(jnp.isfinite(ended).all(-1), accept_prob, 0.0)
    total = jnp.maximum(trust.sum(), 1e-12)
    q0, q1 = began / state.scale, jnp.where(trust[:, None] > 0, ended, began) / state.scale
    centre = (trust[:, None] * q1).sum(0) / total
    from_centre, before = q1 - centre, q0 - q0.mean(0)
    change = jnp.sum(from_centre**2, -1) - jnp.sum(before**2, -1)
    slopes = length * change * jnp.sum(from_centre * ending, -1)
    slope = jnp.where(trust > 0, trust * slopes, 0.0).sum() / total
    slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
    beta1, beta2, tiny = ADAM
    adam = jnp.stack([beta1 * state.adam[0] + (1 - beta1) * slope, beta2 * state.adam[1] + (1 - beta2) * slope**2])
    age = state.age.astype(slope.dtype)
    rise = (adam[0] / (1 - beta1**age)) / (jnp.sqrt(adam[1] / (1 - beta2**age)) + tiny)
    rising = jnp.clip(state.log_length[0] + LEARNING_RATE * rise, now, now + jnp.log(float(options.max_steps)))
    # The slope is noisy with few chains: what is used in the end is the mean over the last part of the warm-up.
    late = jnp.maximum(age - AVERAGE_FROM * options.num_warmup, 0.0)
    smooth = jnp.where(late > 0, state.log_length[1] + (rising - state.log_length[1]) / jnp.maximum(late, 1.0), rising)
    log_length = jnp.stack([rising, smooth])
    # Metric: the variance over chains and the draws of a window, all chains at once.
    num = began.shape[0]
    count_now = state.num_seen + num
    delta = state.position.mean(0) - state.mean
    mean = state.mean + delta * num / count_now
    squares = state.squares + jnp.sum((state.position - state.position.mean(0)) ** 2, 0)
    squares = squares + delta**2 * state.num_seen * num / count_now
    ends = jnp.asarray([max(int(share * options.num_warmup), 1) for share in WINDOWS])
    closing = jnp.any(state.age == ends)
    # Stan's shrinkage towards a small unit variance.
    variance = (count_now / (count_now + 5.0)) * squares / jnp.maximum(count_now - 1.0, 1.0)
    scale = jnp.sqrt(variance + 1e-3 * 5.0 / (count_now + 5.0))
    usable = closing & jnp.isfinite(scale).all()
    # A new metric is a new unit of length: steps and length are those of the old one where it was right already.
    restart = jnp.stack([now, 0.0 * now, jnp.log(10.0) * 0.5 + now, 0.0 * now])
    return state._replace(
        log_step=jnp.where(usable, now, now),
        averaged=jnp.where(usable, restart, averaged),
        log_length=log_length,
        adam=adam,
        scale=jnp.where(usable, scale, state.scale),
        num_seen=jnp.where(closing, 0.0, count_now),
        mean=jnp.where(closing, 0.0, mean),
        squares=jnp.where(closing, 0.0, squares),
    )
