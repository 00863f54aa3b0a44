"""Adaptation of metric and step size to the draws of all chains during the warm-up.

The metric minimises the Fisher divergence between a normal distribution and the posterior (Seyboldt, Carlson &
Carpenter 2026, arXiv:2603.18845). Its covariance is the geometric mean of the covariance of the draws and the inverse
covariance of the gradients. For a normal posterior this is exact as soon as there are more draws than parameters,
whether they are independent or not, because draws and gradients share their noise. The covariance of the draws alone
has relative errors of the square root of the ratio of the number of parameters to that of independent draws.

Draws of all chains are pooled, because they have the same posterior. The metric is therefore computed on the host,
between two calls of the compiled program, which advances the chains one after the other.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from numpyro.infer.hmc_util import build_adaptation_schedule

from hbm_jax.inference.sampler.kernels.protocol import Block

# Fractions of the warm-up after which the metric is learnt from the draws so far.
METRIC_UPDATES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 4 / 5)
STEP_UPDATES = 8  # updates of the step size after the last one of the metric, at equal distances
FEWEST_DRAWS = 10  # per chain, for the first update
FORGOTTEN = 1 / 3  # fraction of the draws so far that is discarded, the first ones
SHRINKAGE = 0.02  # weight of unit covariances, per parameter, in draws
MAX_STEP_CHANGE = 10.0  # largest factor between step sizes before and after an update
EXPLORED = 2.0  # dual averaging after an update shrinks the step size towards this multiple of its new value
GAIN = 3.0  # of the first update of the log step size: about the inverse slope of the acceptance probability in it
# Fractions of the distance from the target acceptance to 1 that are added to it, without and with divergences.
STRICT, STRICTER = 1 / 4, 1 / 2
# Fraction of the transitions in the second half of the draws so far above which divergences count. A few are due to the
# trials of dual averaging: sixty groups have 0 to 2 of 660, and none of 24 000 afterwards without the stricter aim;
# non-centred eight schools have 4 to 12, and 27 of 48 000 afterwards without it, 2 with it.
OFTEN = 0.004
# Departure from a normal distribution below which nothing is added. Measured: regressions with normal errors 0.01 to
# 0.2, one X-ray spectrum, of which one transition in 4000 diverges without an addition, 0.18, hyperparameters of a
# Gaussian process 0.3, sixty groups with unknown scatters 0.5, non-centred eight schools 0.9 to 1.2, GARCH 1.1.
NEARLY_NORMAL = 0.1
CONSTANT = 2**30  # number of updates after which dual averaging leaves a step size unchanged


class Adaptation:
    """Draws and gradients of the warm-up, and the metric and the step size that are learnt from them.

    Up to the last update of the metric, the step size of each chain is adapted by NumPyro's dual averaging. Afterwards
    it is the same for all chains and constant between updates, at which its logarithm changes by the difference between
    the mean acceptance of all chains and the one aimed at, with decreasing gain (Robbins & Monro 1951, Ann. Math.
    Statist. 22, 400). The acceptance aimed at is the target if the posterior is nearly normal, because one step size
    then suits every point (`departure_from_normal`). Otherwise it is a quarter of the way from the target to 1, or half
    of it if more than 0.4 % of the transitions diverged in the second half of the draws so far, or any since the last
    update of the metric. (NumPyro's warm-up ends about halfway, because its fluctuations leave the step size small.)

    Attributes
    ----------
    ends : tuple of int
        Numbers of draws per chain after which metric or step size are updated.
    """

    def __init__(self, num_warmup: int, target_accept_prob: float):
        updates = (round(num_warmup * fraction) for fraction in METRIC_UPDATES)
        self.metric_updates = tuple(dict.fromkeys(n for n in updates if n >= FEWEST_DRAWS))
        steps = np.linspace(self.metric_updates[-1], num_warmup, STEP_UPDATES + 1) if self.metric_updates else ()
        self.step_updates = tuple(dict.fromkeys(np.round(steps).astype(int).tolist()[1:])) if len(steps) else ()
        self.ends = self.metric_updates + self.step_updates
        self.target_accept_prob = target_accept_prob
        self.blocks: list[Block] = []
        self.left_out: dict[int, int] = {}  # number of first draws of a chain that are not used

    @property
    def has_gradients(self) -> bool:
        """True if all draws have gradients, which older versions of hbm_jax did not store."""
        return all(block.gradient.shape == block.position.shape for block in self.blocks)

    def add(self, block: Block) -> None:
        """Add the next draws."""
        self.blocks.append(block)

    def leave_out(self, chains: Iterable[int]) -> None:
        """Leave out the draws so far of some chains."""
        self.left_out |= dict.fromkeys(chains, sum(block.energy.shape[1] for block in self.blocks))

    def update(self, state: Any, num_draws: int, from_position: Callable) -> Any:
        """Return the state of all chains with the metric and step size learnt from ``num_draws`` draws of each.

        The state changes only if ``num_draws`` is one of `ends`. It does not depend on the division into blocks.

        Parameters
        ----------
        state : pytree
            State of all chains.
        num_draws : int
            Number of draws of each chain.
        from_position : callable
            (num, size) -> (num, size), the variables of the sampler at unconstrained positions.

        Raises
        ------
        ValueError
            If gradients are missing, as in checkpoints of older versions.
        """
        if num_draws in self.metric_updates:
            previous = np.asarray(state.adapt_state.inverse_mass_matrix)[0].astype(float)
            num_forgotten = round(FORGOTTEN * num_draws)
            gradients = self._since(num_forgotten, "gradient")
            draws = from_position(self._since(num_forgotten, "position"))
            if gradients.shape != draws.shape:
                raise ValueError(
                    "The warm-up cannot be continued: expected draws with gradients; found draws of an older version "
                    "of hbm_jax. Start the run again."
                )
            covariance = fisher_covariance(draws, gradients, previous.ndim == 2)
            state = state if covariance is None else with_metric(state, covariance, previous)
            if num_draws == self.metric_updates[-1]:
                log_step = np.asarray(state.adapt_state.ss_state[1])
                state = with_step_size(state, np.full(len(log_step), log_step.mean()))
        elif num_draws in self.step_updates:
            previous_end = self.ends[self.ends.index(num_draws) - 1]
            towards_one = self._towards_one(state, num_draws, from_position)
            target = self.target_accept_prob + towards_one * (1.0 - self.target_accept_prob)
            excess = self._since(previous_end, "accept_prob").mean() - target
            change = GAIN / (1 + self.step_updates.index(num_draws)) * excess
            state = with_step_size(state, np.asarray(state.adapt_state.ss_state[1]) + np.clip(change, -1.0, 1.0))
            if num_draws == self.ends[-1]:
                self.blocks = []
        return state

    def _towards_one(self, state: Any, num_draws: int, from_position: Callable) -> float:
        """Return the fraction of the distance from the target acceptance to 1 that is added to it."""
        last_update = self.metric_updates[-1]
        diverged = self._since(last_update, "diverging").any()
        metric = np.asarray(state.adapt_state.inverse_mass_matrix)[0].astype(float)
        # Draws before the last update are left out: dual averaging tries steps that are too long for any posterior.
        if metric.ndim == 2 and not diverged:
            begin = round(FORGOTTEN * last_update)
            draws, gradients = (self._since(begin, name, last_update) for name in ("position", "gradient"))
            if departure_from_normal(from_position(draws), gradients, metric) < NEARLY_NORMAL:
                return 0.0
        return STRICTER if diverged or self._since(num_draws // 2, "diverging").mean() > OFTEN else STRICT

    def _since(self, begin: int, name: str, end: int | None = None) -> np.ndarray:
        """Return a field of the draws ``begin`` to ``end`` of each chain, pooled over chains, (num, ...)."""
        values = np.concatenate([getattr(block, name) for block in self.blocks], axis=1).astype(float)[:, :end]
        return np.concatenate([chain[max(begin, self.left_out.get(i, 0)) :] for i, chain in enumerate(values)])


def fisher_covariance(draws: np.ndarray, gradients: np.ndarray, dense: bool) -> np.ndarray | None:
    """Return the covariance of the normal distribution with the smallest Fisher divergence from a density.

    Parameters
    ----------
    draws, gradients : (num, size)
        Draws from the density, and gradients of its logarithm there, of either sign.
    dense : bool
        Whether to return a matrix (size, size), or the variances (size,) of independent components.

    Returns
    -------
    array or None
        None if a component does not vary or is not finite.
    """
    num, size = draws.shape
    with np.errstate(all="ignore"):
        draws, gradients = draws - draws.mean(axis=0), gradients - gradients.mean(axis=0)
        variances = np.sqrt((draws**2).mean(axis=0) / (gradients**2).mean(axis=0))
    if not (np.isfinite(variances).all() and (variances > 0).all()):
        return None
    if not dense:
        return variances
    # In units of these widths, covariances of draws and gradients have the same diagonal.
    scale = np.sqrt(variances)
    weight = SHRINKAGE * size / num
    draw_covariance, gradient_covariance = (
        (a.T @ a / num + weight * np.eye(size)) / (1.0 + weight) for a in (draws / scale, gradients * scale)
    )
    return scale[:, None] * geometric_mean(draw_covariance, gradient_covariance) * scale


def departure_from_normal(draws: np.ndarray, gradients: np.ndarray, covariance: np.ndarray) -> float:
    """Return by how much the score of a density departs from that of a normal distribution with this covariance.

    Parameters
    ----------
    draws, gradients : (num, size)
        Draws from the density, and gradients of minus its logarithm there.
    covariance : (size, size)
        Positive definite; rounding to single precision may have made it indefinite.

    Returns
    -------
    float
        Mean square of the difference of the two scores along the direction in which it is largest, in units of the
        variance of the score of the normal distribution: 0 for a normal density. NaN if draws are not finite, or the
        covariance is not positive definite.
    """
    with np.errstate(all="ignore"):
        draws, gradients = draws - draws.mean(axis=0), gradients - gradients.mean(axis=0)
        if not (np.isfinite(draws).all() and np.isfinite(gradients).all()):
            return np.nan
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return np.nan
        difference = gradients @ factor - scipy.linalg.solve_triangular(factor, draws.T, lower=True).T
    return float(np.linalg.eigvalsh(difference.T @ difference / len(draws)).max())


def geometric_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the positive definite X with X b X = a: the geometric mean of a and the inverse of b, (size, size)."""
    values, vectors = np.linalg.eigh(b)
    root, inverse_root = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    values, vectors = np.linalg.eigh(root @ a @ root)
    square_root = inverse_root @ vectors * np.maximum(values, 0.0) ** 0.25
    return square_root @ square_root.T


def with_metric(state: Any, covariance: np.ndarray, previous: np.ndarray) -> Any:
    """Return the state of all chains with another metric, and the adaptation of its step size restarted.

    The largest stable step is the smallest ratio of the posterior's widths to those of the metric. The step size
    changes by the ratio of the largest stable steps, if the new metric has the widths of the posterior.

    Parameters
    ----------
    state : pytree
        State of all chains.
    covariance, previous : (size, size) or (size,)
        New and previous inverse mass matrix, or its diagonal.
    """
    if covariance.ndim == 2:
        factor = np.linalg.cholesky(covariance[::-1, ::-1])[::-1, ::-1].T  # lower, as NumPyro has it
        sqrt, sqrt_inverse = np.linalg.inv(factor), factor
        ratio = np.linalg.eigvalsh(sqrt.T @ previous @ sqrt).max()
    else:
        sqrt, sqrt_inverse = covariance**-0.5, covariance**0.5
        ratio = (previous / covariance).max()
    adapt = state.adapt_state
    num_chains, dtype = len(adapt.step_size), adapt.step_size.dtype
    change = np.clip(np.sqrt(ratio), 1 / MAX_STEP_CHANGE, MAX_STEP_CHANGE)
    matrices = (np.broadcast_to(m, (num_chains, *m.shape)) for m in (covariance, sqrt, sqrt_inverse))
    inverse_mass, mass_sqrt, mass_sqrt_inverse = (jnp.asarray(m, dtype) for m in matrices)
    adapt = adapt._replace(
        inverse_mass_matrix=inverse_mass, mass_matrix_sqrt=mass_sqrt, mass_matrix_sqrt_inv=mass_sqrt_inverse
    )
    return with_step_size(
        state._replace(adapt_state=adapt), np.asarray(adapt.ss_state[1]) + np.log(change), 0, EXPLORED
    )


def with_step_size(state: Any, log_step: np.ndarray, num_updates: int = CONSTANT, explored: float = 1.0) -> Any:
    """Return the state of all chains with another step size, at which dual averaging is restarted.

    Parameters
    ----------
    state : pytree
        State of all chains.
    log_step : (num_chains,)
        Logarithms of the step sizes.
    num_updates : int
        Number of past updates that dual averaging assumes; by default so many that the step size stays constant.
    explored : float
        Dual averaging shrinks the step size towards ``explored`` exp(``log_step``).
    """
    adapt, zero = state.adapt_state, np.zeros(len(log_step))
    dual_averaging = log_step, log_step, zero, zero + num_updates, log_step + np.log(explored)
    arrays = zip(dual_averaging, adapt.ss_state, strict=True)
    return state._replace(
        adapt_state=adapt._replace(
            step_size=jnp.asarray(np.exp(log_step), adapt.step_size.dtype),
            ss_state=tuple(jnp.asarray(new, old.dtype) for new, old in arrays),
        )
    )


def without_windows(state: Any, num_warmup: int) -> Any:
    """Return the state of all chains in the last window of NumPyro's warm-up, which adapts only the step size."""
    window = jnp.full_like(state.adapt_state.window_idx, len(build_adaptation_schedule(num_warmup)) - 1)
    return state._replace(adapt_state=state.adapt_state._replace(window_idx=window))
