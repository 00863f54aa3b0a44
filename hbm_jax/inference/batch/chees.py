"""Hamiltonian Monte Carlo with a common trajectory length, for many vectorised chains of one posterior.

Vectorised NUTS waits at every draw for the deepest tree of the batch. Here all chains of an object take the same number
of steps, and step size, trajectory length and metric are adapted to all of them together. The length maximises the
mean squared change in squared distance from the mean (the ChEES criterion: Hoffman, Radul & Sountsov 2021, AISTATS,
PMLR 130, 3907) and is jittered by a low-discrepancy sequence. The metric is dense where the gradient costs much more
than a matrix-vector product: a few chains estimate the covariance well before they have adapted the length, and in
units of the metric all directions need about the same length.

The functions treat one object; a batch is their `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DIVERGENT = 1000.0  # energy error above which a trajectory is divergent, as in NumPyro and Stan
LEARNING_RATE = 0.03  # of Adam, for the logarithm of the trajectory length
AVERAGE_FROM = 0.4  # fraction of the warm-up from which the trajectory length is averaged
ADAM = (0.9, 0.95, 1e-8)  # beta1, beta2, epsilon
# Ends of the adaptation windows, after which the metric is replaced, as fractions of the warm-up.
WINDOWS = (0.1, 0.25, 0.5, 0.85)
SEGMENT = 25  # draws after which a window may end
EARLY_STEPS = 40  # limit on leapfrog steps in the first segment, while the chains approach the typical set
CORRELATED = 0.2  # strength of the shrinkage of correlations towards zero, in pseudo-draws per parameter
SHORTEST = 1.0  # smallest full trajectory length, in standard deviations: below it HMC is a random walk
SMALLEST_PROB = 1e-4  # acceptance probability, in harmonic means
DUAL_AVERAGING = (0.05, 10.0, 0.75)  # gamma, t0, kappa: Hoffman & Gelman 2014, JMLR 15, 1593
# Bits after the point to which logarithms of step size and length, and elements of the metric, are rounded. Otherwise
# the adaptation amplifies rounding errors of the density: by 10^8 in 50 draws, so that draws would depend on the units
# of the data and on the division of the batch.
BITS = 10


class Options(NamedTuple):
    """Settings of the algorithm."""

    num_warmup: int
    target_accept_prob: float
    max_steps: int
    # Whether the step size is adapted to the harmonic mean of the acceptance probabilities of the chains. Hundreds of
    # chains always have some in the narrowest region, which the arithmetic mean does not show.
    harmonic: bool = False


class State(NamedTuple):
    """State of all C chains of one object, and of the adaptation; d parameters."""

    age: jax.Array  # number of draws so far, warm-up included
    key: jax.Array  # key data of a random key
    position: jax.Array  # (C, d)
    potential: jax.Array  # (C,)
    gradient: jax.Array  # (C, d)
    factor: jax.Array  # (d, d) lower Cholesky factor of the estimated covariance, or (d,) standard deviations
    inverse: jax.Array  # inverse of ``factor``
    log_length: jax.Array  # (2,) log of the full trajectory length in units of the metric: current and averaged
    adam: jax.Array  # (2,) first and second moments of Adam
    log_step: jax.Array  # log of the current step size
    averaged: jax.Array  # (4,) dual averaging: averaged log step size, mean error, shrinkage point, count
    num_seen: jax.Array  # number of positions in the running moments
    mean: jax.Array  # (d,) running mean of the positions
    squares: jax.Array  # (d, d) or (d,) running sum of squared deviations of the positions
    gradient_mean: jax.Array  # (d,) running mean of the gradients
    gradient_squares: jax.Array  # (d,) running sum of squared deviations of the gradients


class Draw(NamedTuple):
    """One draw of every chain of one object; arrays of JAX on the device, of NumPy on the host."""

    position: Any  # (C, d)
    potential_energy: Any  # (C,)
    energy: Any  # (C,)
    accept_prob: Any  # (C,)
    diverging: Any  # (C,)
    num_steps: Any  # (C,) leapfrog steps


def halton(num: int) -> np.ndarray:
    """Return the first ``num`` points of the Halton sequence of base 2 after 0, (num,)."""
    bits = np.arange(num.bit_length())
    return ((np.arange(1, num + 1)[:, None] >> bits & 1) * 0.5 ** (bits + 1)).sum(axis=1)


def operations(value_and_grad: Callable, size: int, num_chains: int) -> float:
    """Return the floating-point operations of one gradient of all chains, as counted by the compiler; at least 1."""
    cost = jax.jit(value_and_grad).lower(jnp.zeros((num_chains, size))).cost_analysis() or {}
    return max(float(cost.get("flops", 0.0)), 1.0)


def initial_unit(points: jax.Array, gradients: jax.Array) -> jax.Array:
    """Return powers of two near the width of the posterior of each parameter, (d,), from points around it.

    The width of a normal density is the square root of the ratio of the spreads of positions and gradients, at any
    points. If the gradients do not vary or are not finite, the spread of the positions is used, and 1 if that is 0 too.

    Parameters
    ----------
    points, gradients : (n, d)
        Points, and the gradients of the log density there.
    """
    spread, gradient_spread = (jnp.median(jnp.abs(x - jnp.median(x, axis=0)), axis=0) for x in (points, gradients))
    width = jnp.sqrt(spread / gradient_spread)
    width = jnp.where(jnp.isfinite(width) & (width > 0), width, spread)
    width = jnp.where(jnp.isfinite(width) & (width > 0), width, 1.0)
    # `jnp.exp2` and `jnp.log2` are not exact.
    mantissa, exponent = jnp.frexp(width)
    return jnp.ldexp(jnp.ones_like(width), jnp.where(mantissa > 0.5**0.5, exponent, exponent - 1))


def initial_state(
    value_and_grad: Callable, points: jax.Array, key: jax.Array, dense: bool, unit: jax.Array | float = 1.0
) -> State:
    """Return the state before the first draw.

    Parameters
    ----------
    value_and_grad : callable
        (C, d) -> (C,), (C, d): potential energy (minus the log density) and its gradient.
    points : (C, d)
        Starting points.
    key : jax.Array
        Key data of a random key: plain numbers, so that states can be combined with ``where``.
    dense : bool
        Whether the metric is dense; otherwise it is diagonal.
    unit : (d,)
        Standard deviations of the first metric.
    """
    potential, gradient = value_and_grad(points)
    size = points.shape[-1]
    zero, zeros = jnp.zeros((), points.dtype), jnp.zeros(size, points.dtype)
    identity = jnp.eye(size, dtype=points.dtype) if dense else zeros + 1.0
    log_length = jnp.full(2, jnp.log(2.0), points.dtype)
    log_step = jnp.log(jnp.asarray(0.5 * size**-0.25, points.dtype))
    return State(
        age=jnp.zeros((), jnp.int32),
        key=key,
        position=points,
        potential=potential,
        gradient=gradient,
        factor=identity * unit,
        inverse=identity / unit,
        log_length=log_length,
        adam=jnp.zeros(2, points.dtype),
        log_step=log_step,
        averaged=jnp.stack([log_step, zero, jnp.log(10.0) + log_step, zero]).astype(points.dtype),
        num_seen=zero,
        mean=zeros,
        squares=jnp.zeros_like(identity),
        gradient_mean=zeros,
        gradient_squares=zeros,
    )


class Trajectory(NamedTuple):
    """Trajectories of all C chains of one object that are under way."""

    position: jax.Array  # (C, d)
    potential: jax.Array  # (C,)
    momentum: jax.Array  # (C, d) in units of the metric, so that momenta are standard normal
    gradient: jax.Array  # (C, d) in units of the metric
    start_energy: jax.Array  # (C,)
    step: jax.Array  # step size
    length: jax.Array  # length of the trajectories
    num_steps: jax.Array  # leapfrog steps in all
    steps_left: jax.Array  # leapfrog steps still to be taken


def begin(state: State, momentum: jax.Array, jitter: jax.Array, options: Options) -> Trajectory:
    """Return trajectories that begin at the positions of the chains.

    Parameters
    ----------
    state : State
        State of the chains.
    momentum : (C, d)
        Standard normal numbers.
    jitter : scalar
        Fraction of the full trajectory length to integrate over, between 0 and 1.
    options : Options
        Settings.
    """
    warming = state.age < options.num_warmup
    step = jnp.exp(_fixed_point(jnp.where(warming, state.log_step, state.averaged[0])))
    length = jitter * jnp.exp(_fixed_point(jnp.where(warming, state.log_length[0], state.log_length[1])))
    ideal_steps = jnp.ceil(length / step)
    step_limit = jnp.where(state.age < SEGMENT, min(EARLY_STEPS, options.max_steps), options.max_steps)
    num_steps = jnp.clip(jnp.where(jnp.isfinite(ideal_steps), ideal_steps, 1.0), 1, step_limit).astype(jnp.int32)
    energy = state.potential + 0.5 * jnp.sum(momentum**2, axis=-1)
    gradient = _multiply(state.gradient, state.factor)
    return Trajectory(
        state.position, state.potential, momentum, gradient, energy, step, length, num_steps, steps_left=num_steps
    )


def leapfrog(value_and_grad: Callable, factor: jax.Array, trajectory: Trajectory) -> Trajectory:
    """Take one leapfrog step with the metric of this ``factor``, whether any are left or not."""
    _, _, momentum, gradient, _, step, *_ = trajectory
    momentum = momentum - 0.5 * step * gradient
    position = trajectory.position + step * _multiply(momentum, factor.T)
    potential, raw_gradient = value_and_grad(position)
    gradient = _multiply(raw_gradient, factor)
    return trajectory._replace(
        position=position,
        potential=potential,
        momentum=momentum - 0.5 * step * gradient,
        gradient=gradient,
        steps_left=trajectory.steps_left - 1,
    )


def end(state: State, trajectory: Trajectory, uniform: jax.Array, options: Options) -> tuple[State, Draw]:
    """Accept or reject the ends of trajectories, and adapt during the warm-up.

    Parameters
    ----------
    state : State
        State of the chains where the trajectories began.
    trajectory : Trajectory
        Trajectories without steps left.
    uniform : (C,)
        Random numbers between 0 and 1.
    options : Options
        Settings.

    Returns
    -------
    State, Draw
        State after the draw, and the draw of every chain.
    """
    warming = state.age < options.num_warmup
    gradient = _multiply(trajectory.gradient, state.inverse)
    end_energy = trajectory.potential + 0.5 * jnp.sum(trajectory.momentum**2, axis=-1)
    energy_error = jnp.where(jnp.isfinite(end_energy), end_energy - trajectory.start_energy, jnp.inf)
    accept_prob = jnp.minimum(1.0, jnp.exp(-energy_error))
    accepted = uniform < accept_prob
    moved = state._replace(
        age=state.age + 1,
        position=jnp.where(accepted[:, None], trajectory.position, state.position),
        potential=jnp.where(accepted, trajectory.potential, state.potential),
        gradient=jnp.where(accepted[:, None], gradient, state.gradient),
    )
    ends = trajectory.position, trajectory.momentum, accept_prob, trajectory.length
    adapted = _adapt(moved, state.position, *ends, options)
    new = jax.tree.map(lambda a, b: jnp.where(warming, a, b), adapted, moved)
    draw = Draw(
        position=new.position,
        potential_energy=new.potential,
        energy=jnp.where(accepted, end_energy, trajectory.start_energy),
        accept_prob=accept_prob,
        diverging=~(energy_error < DIVERGENT),
        num_steps=jnp.broadcast_to(trajectory.num_steps, energy_error.shape),
    )
    return new, draw


def random_numbers(key: jax.Array, age: jax.Array, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return the momenta, (C, d), and the uniform numbers, (C,), of the draw of this age, given the data of a key."""
    key_momentum, key_accept = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(key), age))
    return jax.random.normal(key_momentum, shape, dtype), jax.random.uniform(key_accept, shape[:1], dtype)


def advance(value_and_grad: Callable, state: State, jitter: jax.Array, options: Options) -> tuple[State, Draw]:
    """Make one draw of every chain, and adapt during the warm-up.

    Parameters
    ----------
    value_and_grad : callable
        As in `initial_state`.
    state, jitter, options
        As in `begin`.
    """
    momentum, uniform = random_numbers(state.key, state.age, state.position.shape, state.position.dtype)
    trajectory = jax.lax.while_loop(
        lambda trajectory: trajectory.steps_left > 0,
        lambda trajectory: leapfrog(value_and_grad, state.factor, trajectory),
        begin(state, momentum, jitter, options),
    )
    return end(state, trajectory, uniform, options)


def _adapt(state: State, start, end, end_momentum, accept_prob, length, options: Options) -> State:
    """Adapt step size, trajectory length and metric to one trajectory of every chain.

    ``start``, ``end`` and ``end_momentum`` are (chain, parameter), ``accept_prob`` is (chain,), ``length`` a scalar.
    """
    log_step, averaged = _adapt_step_size(state.averaged, accept_prob, options)
    gradient = _length_gradient(state, start, end, end_momentum, accept_prob, length)
    log_length, adam = _adapt_length(state, gradient, log_step, options)
    # Moments over the chains and the draws of a window.
    mean, squares = _update_moments(state.position, state.num_seen, state.mean, state.squares)
    gradient_mean, gradient_squares = _update_moments(
        state.gradient, state.num_seen, state.gradient_mean, state.gradient_squares
    )
    return state._replace(
        log_step=log_step,
        averaged=averaged,
        log_length=log_length,
        adam=adam,
        num_seen=state.num_seen + start.shape[0],
        mean=mean,
        squares=squares,
        gradient_mean=gradient_mean,
        gradient_squares=gradient_squares,
    )


def _adapt_step_size(averaged, accept_prob, options: Options):
    """Update the log step size by dual averaging; return it and the new ``State.averaged``."""
    gamma, t0, kappa = DUAL_AVERAGING
    log_step, mean_error, shrinkage_point, count = averaged
    count = count + 1.0
    if options.harmonic:
        accepted = 1.0 / jnp.mean(1.0 / jnp.maximum(accept_prob, SMALLEST_PROB))
    else:
        accepted = jnp.mean(accept_prob)
    acceptance_error = options.target_accept_prob - accepted
    mean_error = (1.0 - 1.0 / (count + t0)) * mean_error + acceptance_error / (count + t0)
    new_log_step = shrinkage_point - jnp.sqrt(count) / gamma * mean_error
    weight = count**-kappa
    log_step = weight * new_log_step + (1.0 - weight) * log_step
    return new_log_step, jnp.stack([log_step, mean_error, shrinkage_point, count])


def _length_gradient(state: State, start, end, end_momentum, accept_prob, length):
    """Return the gradient of the ChEES criterion with respect to the logarithm of the trajectory length.

    In standardised positions q the criterion is the mean of (|q1 - centre|^2 - |q0 - centre|^2)^2 / 4. Its derivative
    with respect to the length is the mean of this difference times (q1 - centre) . momentum.
    """
    weights = jnp.where(jnp.isfinite(end).all(-1), accept_prob, 0.0)
    total_weight = jnp.maximum(weights.sum(), 1e-12)
    q0 = _multiply(start, state.inverse.T)
    q1 = _multiply(jnp.where(weights[:, None] > 0, end, start), state.inverse.T)
    centre = (weights[:, None] * q1).sum(0) / total_weight
    end_deviation, start_deviation = q1 - centre, q0 - q0.mean(0)
    change = jnp.sum(end_deviation**2, -1) - jnp.sum(start_deviation**2, -1)
    gradients = length * change * jnp.sum(end_deviation * end_momentum, -1)
    gradient = jnp.where(weights > 0, weights * gradients, 0.0).sum() / total_weight
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def _adapt_length(state: State, gradient, log_step, options: Options):
    """Update the log trajectory length by a step of Adam; return ``State.log_length`` and ``State.adam``."""
    beta1, beta2, epsilon = ADAM
    adam = jnp.stack(
        [beta1 * state.adam[0] + (1 - beta1) * gradient, beta2 * state.adam[1] + (1 - beta2) * gradient**2]
    )
    age = state.age.astype(gradient.dtype)
    update = (adam[0] / (1 - beta1**age)) / (jnp.sqrt(adam[1] / (1 - beta2**age)) + epsilon)
    latest = jnp.maximum(state.log_length[0] + LEARNING_RATE * update, jnp.log(SHORTEST))
    latest = jnp.clip(latest, log_step, log_step + jnp.log(float(options.max_steps)))
    # The gradient is noisy with few chains, so sampling uses the mean length of the last part of the warm-up.
    num_averaged = jnp.maximum(age - AVERAGE_FROM * options.num_warmup, 0.0)
    change = (latest - state.log_length[1]) / jnp.maximum(num_averaged, 1.0)
    averaged_length = jnp.where(num_averaged > 0, state.log_length[1] + change, latest)
    return jnp.stack([latest, averaged_length]), adam


def _update_moments(rows, num_before, mean, squares):
    """Update a running mean and sum of squared deviations, (d, d) or (d,), with new rows (n, d).

    The sums of both sets are combined by the formula of Chan, Golub & LeVeque 1983 (The American Statistician 37, 242).
    """
    num_rows = rows.shape[0]
    row_mean = rows.mean(0)
    deviations, shift = rows - row_mean, row_mean - mean
    between = num_before * num_rows / (num_before + num_rows)
    if squares.ndim == 2:
        added = deviations.T @ deviations + between * jnp.outer(shift, shift)
    else:
        added = jnp.sum(deviations**2, 0) + between * shift**2
    return mean + shift * num_rows / (num_before + num_rows), squares + added


def window_ends(age: jax.Array, options: Options) -> jax.Array:
    """Return whether an adaptation window ends after this number of draws."""
    return jnp.any(age == jnp.asarray(_window_ends(options))) & (age < options.num_warmup)


def _window_ends(options: Options) -> list[int]:
    """Return the numbers of draws, multiples of `SEGMENT`, after which adaptation windows end."""
    return sorted({SEGMENT * max(round(fraction * options.num_warmup / SEGMENT), 1) for fraction in WINDOWS})


def end_segment(state: State, options: Options) -> State:
    """Replace the metric where an adaptation window ends; to be called after every `SEGMENT` draws."""
    closing = window_ends(state.age, options)
    is_first = state.age == _window_ends(options)[0]
    num_seen, size = state.num_seen, state.mean.shape[0]
    # Stan's shrinkage; correlations from few draws are shrunk as well.
    shrinkage = num_seen / (num_seen + 5.0)
    covariance = shrinkage * state.squares / jnp.maximum(num_seen - 1.0, 1.0)
    variance = jnp.diagonal(covariance) if covariance.ndim == 2 else covariance
    # While the chains approach the typical set, their scatter is not the width of the posterior. The ratio of the
    # scatters of positions and gradients gives it already: for a normal density it is the same everywhere.
    early_scale = (variance / shrinkage * (num_seen - 1.0) / state.gradient_squares) ** 0.25
    # A floor in the units of each parameter; that of Stan is absolute.
    floor = 1e-3 * (1.0 - shrinkage) * jnp.where(jnp.isfinite(early_scale), early_scale**2, variance)
    if state.factor.ndim == 2:
        identity = jnp.eye(size, dtype=variance.dtype)
        covariance = covariance * jnp.where(identity == 1.0, 1.0, num_seen / (num_seen + CORRELATED * size))
        factor = _cholesky(covariance + floor * identity)
        factor = _few_bits(jnp.where(is_first, early_scale * identity, factor))
        inverse = _invert(factor)
    else:
        factor = _few_bits(jnp.where(is_first, early_scale, jnp.sqrt(variance + floor)))
        inverse = 1.0 / factor
    replace = closing & jnp.isfinite(factor).all() & jnp.isfinite(inverse).all()
    # Step size and length are in units of the metric; they are kept, because the metric usually changes little.
    log_step = state.log_step
    # Dual averaging starts again, in the order of `State.averaged`, with shrinkage to sqrt(10) times the step size.
    restart = jnp.stack([log_step, 0.0 * log_step, jnp.log(10.0) * 0.5 + log_step, 0.0 * log_step])
    return state._replace(
        averaged=jnp.where(replace, restart, state.averaged),
        factor=jnp.where(replace, factor, state.factor),
        inverse=jnp.where(replace, inverse, state.inverse),
        num_seen=jnp.where(closing, 0.0, num_seen),
        mean=jnp.where(closing, 0.0, state.mean),
        squares=jnp.where(closing, 0.0, state.squares),
        gradient_mean=jnp.where(closing, 0.0, state.gradient_mean),
        gradient_squares=jnp.where(closing, 0.0, state.gradient_squares),
    )


def _fixed_point(x):
    """Round to `BITS` bits after the point."""
    return jnp.round(x * 2.0**BITS) / 2.0**BITS


def _few_bits(x):
    """Round the mantissas of numbers to `BITS` bits."""
    mantissa, exponent = jnp.frexp(x)
    return jnp.ldexp(_fixed_point(mantissa), exponent)


def _multiply(rows, matrix):
    """Multiply rows by a matrix, or by a diagonal matrix stored as a vector."""
    return rows @ matrix if matrix.ndim == 2 else rows * matrix


# jnp.linalg is not used: XLA calls LAPACK for each matrix of a batch, and occasionally hangs there.
def _cholesky(matrix):
    """Return the lower Cholesky factor, computed column by column."""
    index = jnp.arange(len(matrix))

    def column(remainder, j):
        values = jnp.where(index >= j, remainder[:, j] / jnp.sqrt(remainder[j, j]), 0.0)
        return remainder - jnp.outer(values, values), values

    return jax.lax.scan(column, matrix, index)[1].T


def _invert(factor):
    """Invert a lower triangular matrix by forward substitution."""
    identity = jnp.eye(len(factor), dtype=factor.dtype)

    def row(inverse, j):
        values = (identity[j] - factor[j] @ inverse) / factor[j, j]
        return inverse + jnp.outer(identity[j], values), None

    return jax.lax.scan(row, jnp.zeros_like(factor), jnp.arange(len(factor)))[0]
