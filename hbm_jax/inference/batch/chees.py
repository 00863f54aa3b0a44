"""Hamiltonian Monte Carlo with trajectories of a common length, for many chains of one posterior side by side.

Side by side, NUTS waits at every draw for the deepest tree there is. Here all chains of an object take the same number
of steps, and step size, length and metric are learnt from all of them together: the length by maximising the change in
squared distance from the mean (ChEES: Hoffman, Radul & Sountsov 2021, AISTATS, PMLR 130, 3907), jittered by a
low-discrepancy sequence. Where the gradient costs much more than a product with a covariance, the metric is dense: few
chains learn the covariance well before they learn the length, and in its units every direction wants about the same
one.

Written for one object; a batch is a `jax.vmap` of it.
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
SEGMENT = 25  # draws after which a window may end
EARLY_STEPS = 40  # at most, before the first metric: on the way to where the posterior is
CORRELATED = 0.2  # weight of no correlation, in draws per parameter
SHORTEST = 1.0  # length of the longest trajectory, in standard deviations: less is a random walk
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
    factor: jax.Array  # (d, d) lower triangle, or (d,): its product with its transpose is the covariance
    inverse: jax.Array  # of the factor
    log_length: jax.Array  # (2,) of the longest trajectory, in units of the metric: now, and averaged
    adam: jax.Array  # (2,)
    log_step: jax.Array
    averaged: jax.Array  # (4,): log step averaged, mean error, shrinkage point, count
    num_seen: jax.Array  # by the running variance
    mean: jax.Array  # (d,)
    squares: jax.Array  # (d, d) or (d,)
    slope_mean: jax.Array  # (d,), of the gradient
    slope_squares: jax.Array  # (d,)


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


def operations(value_and_grad: Callable, size: int, num_chains: int) -> float:
    """Floating-point operations of one gradient of every chain, as the compiler counts them."""
    cost = jax.jit(value_and_grad).lower(jnp.zeros((num_chains, size))).cost_analysis() or {}
    return max(float(cost.get("flops", 0.0)), 1.0)


def initial_state(value_and_grad: Callable, points: jax.Array, key: jax.Array, dense: bool) -> State:
    """State before the first draw.

    Parameters
    ----------
    value_and_grad : callable
        (C, d) -> (C,), (C, d): minus the log density and its gradient.
    points : (C, d)
        Starting points.
    key : jax.Array
        Data of a random key, plain numbers so that states can be mixed.
    dense : bool
        Whether the metric is.
    """
    potential, gradient = value_and_grad(points)
    size = points.shape[-1]
    zero, zeros = jnp.zeros((), points.dtype), jnp.zeros(size, points.dtype)
    unit = jnp.eye(size, dtype=points.dtype) if dense else zeros + 1.0
    zeros_of_two = jnp.full(2, jnp.log(2.0), points.dtype)
    log_step = jnp.log(jnp.asarray(0.5 * size**-0.25, points.dtype))
    return State(
        age=jnp.zeros((), jnp.int32),
        key=key,
        position=points,
        potential=potential,
        gradient=gradient,
        factor=unit,
        inverse=unit,
        log_length=zeros_of_two,
        adam=jnp.zeros(2, points.dtype),
        log_step=log_step,
        averaged=jnp.stack([log_step, zero, jnp.log(10.0) + log_step, zero]).astype(points.dtype),
        num_seen=zero,
        mean=zeros,
        squares=jnp.zeros_like(unit),
        slope_mean=zeros,
        slope_squares=zeros,
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
    most = jnp.where(state.age < SEGMENT, min(EARLY_STEPS, options.max_steps), options.max_steps)
    num_steps = jnp.clip(jnp.where(jnp.isfinite(wanted), wanted, 1.0), 1, most).astype(jnp.int32)
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

    def one(carry):
        k, position, momentum, slope, _ = carry
        momentum = momentum - 0.5 * step * slope
        position = position + step * _times(momentum, state.factor.T)
        potential, gradient = value_and_grad(position)
        slope = _times(gradient, state.factor)
        return k + 1, position, momentum - 0.5 * step * slope, slope, potential

    begin = (jnp.zeros((), jnp.int32), state.position, momentum, _times(state.gradient, state.factor), state.potential)
    _, position, momentum, slope, potential = jax.lax.while_loop(lambda carry: carry[0] < num_steps, one, begin)
    return position, potential, _times(slope, state.inverse), momentum


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
    q0 = _times(began, state.inverse.T)
    q1 = _times(jnp.where(trust[:, None] > 0, ended, began), state.inverse.T)
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
    rising = jnp.maximum(state.log_length[0] + LEARNING_RATE * rise, jnp.log(SHORTEST))
    rising = jnp.clip(rising, now, now + jnp.log(float(options.max_steps)))
    # The slope is noisy with few chains: what is used in the end is the mean over the last part of the warm-up.
    late = jnp.maximum(age - AVERAGE_FROM * options.num_warmup, 0.0)
    smooth = jnp.where(late > 0, state.log_length[1] + (rising - state.log_length[1]) / jnp.maximum(late, 1.0), rising)
    log_length = jnp.stack([rising, smooth])
    # Covariance over chains and the draws of a window, all chains at once.
    num = began.shape[0]
    seen = state.num_seen
    mean, squares = _seen(state.position, seen, state.mean, state.squares)
    slope_mean, slope_squares = _seen(state.gradient, seen, state.slope_mean, state.slope_squares)
    return state._replace(
        log_step=now,
        averaged=averaged,
        log_length=log_length,
        adam=adam,
        num_seen=seen + num,
        mean=mean,
        squares=squares,
        slope_mean=slope_mean,
        slope_squares=slope_squares,
    )


def _seen(rows, num_before, mean, squares):
    """Mean and sum of squares around it, of the rows and those before; (d, d) or, of each alone, (d,)."""
    num = rows.shape[0]
    here = rows.mean(0)
    around, shift = rows - here, here - mean
    between = num_before * num / (num_before + num)
    if squares.ndim == 2:
        more = around.T @ around + between * jnp.outer(shift, shift)
    else:
        more = jnp.sum(around**2, 0) + between * shift**2
    return mean + shift * num / (num_before + num), squares + more


def end_segment(state: State, options: Options) -> State:
    """Replace the metric where a window of the warm-up ends; to be called after every `SEGMENT` draws."""
    ends = {SEGMENT * max(round(share * options.num_warmup / SEGMENT), 1) for share in WINDOWS}
    closing = jnp.any(state.age == jnp.asarray(sorted(ends))) & (state.age < options.num_warmup)
    first = state.age == min(ends)
    num, size = state.num_seen, state.mean.shape[0]
    # Stan's shrinkage towards a small unit variance; correlations from few draws are shrunk as well.
    trust = num / (num + 5.0)
    covariance = trust * state.squares / jnp.maximum(num - 1.0, 1.0)
    variance = jnp.diagonal(covariance) if covariance.ndim == 2 else covariance
    # On the way to the posterior its width is not seen yet, but the curvature is: positions and gradients of a normal
    # density vary in proportion, wherever they are.
    early = (variance / trust * (num - 1.0) / state.slope_squares) ** 0.25
    scale = jnp.sqrt(variance + 1e-3 * (1.0 - trust))
    if state.factor.ndim == 2:
        unit = jnp.eye(size, dtype=variance.dtype)
        covariance = covariance * jnp.where(unit == 1.0, 1.0, num / (num + CORRELATED * size))
        factor = _cholesky(covariance + 1e-3 * (1.0 - trust) * unit)
        factor = jnp.where(first, early * unit, factor)
        inverse = _invert(factor)
    else:
        factor = jnp.where(first, early, scale)
        inverse = 1.0 / factor
    usable = closing & jnp.isfinite(factor).all() & jnp.isfinite(inverse).all()
    # A new metric is a new unit of length: steps and length are those of the old one where it was right already.
    now = state.log_step
    restart = jnp.stack([now, 0.0 * now, jnp.log(10.0) * 0.5 + now, 0.0 * now])
    return state._replace(
        averaged=jnp.where(usable, restart, state.averaged),
        factor=jnp.where(usable, factor, state.factor),
        inverse=jnp.where(usable, inverse, state.inverse),
        num_seen=jnp.where(closing, 0.0, num),
        mean=jnp.where(closing, 0.0, state.mean),
        squares=jnp.where(closing, 0.0, state.squares),
        slope_mean=jnp.where(closing, 0.0, state.slope_mean),
        slope_squares=jnp.where(closing, 0.0, state.slope_squares),
    )


def _times(rows, matrix):
    """Product with a matrix, or with a diagonal."""
    return rows @ matrix if matrix.ndim == 2 else rows * matrix


# Written out, because XLA hands batched factorisations to LAPACK one by one, and now and then hangs there.
def _cholesky(matrix):
    """Lower Cholesky factor, by columns."""
    index = jnp.arange(len(matrix))

    def column(rest, j):
        found = jnp.where(index >= j, rest[:, j] / jnp.sqrt(rest[j, j]), 0.0)
        return rest - jnp.outer(found, found), found

    return jax.lax.scan(column, matrix, index)[1].T


def _invert(factor):
    """Inverse of a lower triangle, by forward substitution."""
    unit = jnp.eye(len(factor), dtype=factor.dtype)

    def row(known, j):
        found = (unit[j] - factor[j] @ known) / factor[j, j]
        return known + jnp.outer(unit[j], found), None

    return jax.lax.scan(row, jnp.zeros_like(factor), jnp.arange(len(factor)))[0]
