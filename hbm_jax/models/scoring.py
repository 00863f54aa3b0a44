"""Best fits of many objects at once by damped Fisher scoring, for the coordinates in which a population is sampled.

One compiled function evaluates the likelihoods of all objects together; SciPy's optimisers, which fit one object at a
time, would evaluate all of them for each. The iteration between evaluations is NumPy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MAX_STEP = 0.5  # largest change of a parameter in one iteration
_DAMPING, _FACTOR = 1e-2, 5.0  # initial damping; it falls or rises by the factor with each accepted or rejected step
_CONVERGED = 1e-12  # predicted gain of the log posterior by a full step; the parameters are then right to 1e-6 sigma


class Evaluation(NamedTuple):
    """Log likelihoods (N,) of N objects, scores (N, K) in their K parameters, and Fisher information (N, K, K)."""

    log_likelihood: Any
    score: Any
    information: Any


def linearized(expected: Callable, theta: Any) -> tuple[jax.Array, jax.Array]:
    """Return expected counts (M, G) and their derivatives (K, M, G) in the parameters of N objects, (N, K).

    A count may depend on the parameters of one object only.
    """
    counts, jvp = jax.linearize(expected, theta)
    num = theta.shape[1]
    return counts, jax.lax.map(jvp, jnp.broadcast_to(jnp.eye(num)[:, None, :], (num, *theta.shape)))


def log_posterior(evaluation: Evaluation, theta, mean, precision) -> np.ndarray:
    """Return the log posterior of each object for a normal prior of diagonal precision, up to a constant, (N,)."""
    return evaluation.log_likelihood - 0.5 * np.sum(precision * (theta - mean) ** 2, axis=1)


def fisher_scoring(
    evaluate: Callable[[np.ndarray], Evaluation],
    theta: np.ndarray,
    evaluation: Evaluation,
    mean: Any,
    precision: Any,
    num_steps: int,
) -> tuple[np.ndarray, Evaluation]:
    """Maximise the posterior of every object for a normal prior by the method of Levenberg and Marquardt.

    Parameters
    ----------
    evaluate : callable
        Returns the `Evaluation` at parameters (N, K). A step to a NaN log likelihood is rejected.
    theta, evaluation : (N, K), Evaluation
        Starting point, and the result of ``evaluate`` there. The function returns both at the maximum.
    mean, precision : (K,)
        Means and inverse variances of the prior; 0 for a flat prior.
    num_steps : int
        Largest number of steps; the iteration ends when the fits of all objects have converged.
    """
    K, damping = theta.shape[1], np.full(len(theta), _DAMPING)
    for _ in range(num_steps):
        gradient = evaluation.score - precision * (theta - mean)
        curvature = evaluation.information + np.diag(precision)
        full_step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        if (0.5 * np.sum(gradient * full_step, axis=1) < _CONVERGED).all():
            break
        damped = curvature + damping[:, None, None] * (curvature * np.eye(K))
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        proposal = theta + np.clip(step, -_MAX_STEP, _MAX_STEP)
        proposed = evaluate(proposal)
        accepted = log_posterior(proposed, proposal, mean, precision) >= log_posterior(
            evaluation, theta, mean, precision
        )

        def select(new, old, accepted=accepted):
            return np.where(accepted.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        theta, evaluation = select(proposal, theta), Evaluation(*map(select, proposed, evaluation))
        damping = np.where(accepted, damping / _FACTOR, damping * _FACTOR)
    return theta, evaluation
