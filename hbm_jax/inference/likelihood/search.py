"""Searches for the maximum of a likelihood: L-BFGS from several starts, then Newton steps within the bounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.program import further_starts_of
from hbm_jax.inference.sampler.progress import ProgressLine
from hbm_jax.inference.sampler.target import StartError

SEARCH_ITERATIONS = 500
NEWTON_STEPS = 60
DECREMENT = 1e-10  # predicted increase of the log likelihood below which Newton steps stop
CLOSE = 10.0  # difference in log likelihood from the best search, beyond which a search is dropped
SAME = 1e-3  # difference in log likelihood within which two searches have found the same maximum
FLAT = 1e-8  # eigenvalue of the scaled Hessian below which the data do not determine a direction
NUM_NAMED = 3  # parameters named if only one search found the maximum
BETTER = 1.0  # increase of the log likelihood by another starting point from which the search continues
ROUNDS = 3  # times that it does


@dataclass(frozen=True)
class Point:
    """Last point of a minimisation of minus the log likelihood."""

    x: np.ndarray
    value: float
    converged: bool


class Search:
    """Searches for the maximum of a likelihood.

    Parameters
    ----------
    program : callable
        The program.
    likelihood : Likelihood
        Its likelihood.
    progress_line : ProgressLine
        Shows the searches.

    Attributes
    ----------
    unfinished : str
        Reason why the best search did not end at the highest maximum; empty if none is known.
    """

    def __init__(self, program: Callable, likelihood: Likelihood, progress_line: ProgressLine):
        self.program, self.likelihood, self.progress_line = program, likelihood, progress_line
        self.ends: list[tuple[float, np.ndarray]] = []
        self.num_started = 0
        self.unfinished = ""

    def best(self, with_nan: str) -> tuple[Point, list[str]]:
        """Return the best of Newton's steps from the ends of searches close to the best, and notes.

        ``with_nan`` is a sentence about arguments with NaN, for the error if no start has a finite likelihood.
        """
        starts = self.likelihood.starts
        self.run(starts)
        if not self.ends:
            raise StartError(
                f"maximum_likelihood: expected a finite likelihood and gradient at some of {len(starts)} draws of the "
                f"prior; found none. {with_nan}Check the priors' supports and the data for impossible values."
            )
        num_from_prior = len(self.ends)
        self.run(self.further_starts(self.best_end[1], self.refitted))
        best, same = self.refined()
        for _ in range(ROUNDS):
            better = self.better_starts(best)
            if not better:
                break
            self.run(better)
            best, same = self.refined()
        notes = [f"{len(same)} of {self.num_started} searches ended at this maximum"]
        if same[0] >= num_from_prior:
            notes[-1] += "; each had begun at values that the model proposed"
        elif len(same) == 1 and self.num_started > 1:
            names = ", ".join(self.where_searches_differ(best))
            notes[-1] = (
                f"only one of {self.num_started} searches ended at this maximum, and there may be a higher one: start "
                f"more searches, or give a narrower prior to {names}"
            )
        if better := self.better_starts(best):
            self.unfinished = self.caution(best, better[0])
        return best, notes

    @property
    def best_end(self) -> tuple[float, np.ndarray]:
        """Lowest minus log likelihood at the end of a search, and its parameters, (size,)."""
        return min(self.ends, key=lambda end: end[0])

    def value_and_grad(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log likelihood and its gradient at unconstrained parameters, (size,)."""
        x, jacobian = self.likelihood.constrained(u)
        value, gradient = self.likelihood.value_and_grad(x)
        with np.errstate(invalid="ignore"):
            gradient = gradient * jacobian
        # The gradient of a distant trial may be NaN; the line search rejects an infinite value.
        is_finite = np.isfinite(value) and np.isfinite(gradient).all()
        return (value, gradient) if is_finite else (np.inf, np.zeros_like(gradient))

    def run(self, starts: list[np.ndarray]) -> None:
        """Run L-BFGS from each start with a finite likelihood."""
        self.num_started += len(starts)
        for start in starts:
            u = self.likelihood.unconstrained(start)
            if not np.isfinite(self.value_and_grad(u)[0]):
                continue
            result = minimize(
                self.value_and_grad, u, jac=True, method="L-BFGS-B", options={"maxiter": SEARCH_ITERATIONS}
            )
            self.ends.append((float(result.fun), self.likelihood.constrained(result.x)[0]))
            self.progress_line.show(f"search {len(self.ends)}: log likelihood {-self.best_end[0]:.3f}")

    def refined(self) -> tuple[Point, list[int]]:
        """Return the best result of Newton's steps from the ends close to the best, and the searches that found it."""
        lowest = self.best_end[0]
        close = [
            (number, newton(self.likelihood, x))
            for number, (value, x) in enumerate(self.ends)
            if value <= lowest + CLOSE
        ]
        # Of equal maxima, one at which the steps converged
        best = min((point for _, point in close), key=lambda point: point.value - SAME * point.converged)
        return best, [number for number, point in close if point.value < best.value + SAME]

    def further_starts(self, x: np.ndarray, refit: Callable) -> list[np.ndarray]:
        """Return the further starting points of the program, see `Program.further_starts`."""
        further = further_starts_of(self.program, self.likelihood.args)
        return [self.likelihood.ravel(values) for values in further(self.values(x), refit)] if further else []

    def better_starts(self, best: Point) -> list[np.ndarray]:
        """Return further starting points, all else as at the best, that are clearly better than the best."""
        starts = self.further_starts(best.x, lambda values, constant: values)
        return [start for start in starts if self.likelihood.value_and_grad(start)[0] < best.value - BETTER]

    def caution(self, best: Point, better: np.ndarray) -> str:
        """Return a note on a point that is better than the best."""
        moved = np.flatnonzero(~np.isclose(better, best.x, rtol=1e-3))[:NUM_NAMED]
        values = ", ".join(f"{self.likelihood.labels[i]} = {better[i]:.4g}" for i in moved)
        gain = best.value - self.likelihood.value_and_grad(better)[0]
        return f"this is not the highest maximum: with {values}, the log likelihood is higher by {gain:.1f}"

    def values(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of the sites."""
        return {name: np.asarray(value) for name, value in self.likelihood.unravel(x).items()}

    def refitted(self, values: Mapping[str, Any], constant: set[str]) -> dict[str, np.ndarray]:
        """Return the values of highest likelihood near given ones, with the named sites held constant."""
        is_constant = self.likelihood.ravel({name: np.full_like(v, name in constant) for name, v in values.items()})
        return self.values(newton(self.likelihood, self.likelihood.ravel(values), list(np.flatnonzero(is_constant))).x)

    def where_searches_differ(self, best: Point) -> list[str]:
        """Return the parameters in which most searches ended far from the best, at most `NUM_NAMED`."""
        errors = np.sqrt(np.diagonal(covariance_at(self.likelihood, best)[0]))
        distance = np.median(np.abs(np.array([x for _, x in self.ends]) - best.x), axis=0)
        distance /= np.where(np.isnan(errors), np.inf, errors)
        labels = self.likelihood.labels
        return [labels[i] for i in np.argsort(-distance)[:NUM_NAMED] if distance[i] > 1.0] or labels[:NUM_NAMED]


def newton(likelihood: Likelihood, x: np.ndarray, fixed: int | list[int] | None = None) -> Point:
    """Minimise by Newton steps within the bounds, with the parameters of index ``fixed`` held constant."""
    x = np.clip(x, likelihood.lower, likelihood.upper)
    value, gradient = likelihood.value_and_grad(x)
    if not (np.isfinite(value) and np.isfinite(gradient).all()):
        return Point(x, np.inf, False)
    for _ in range(NEWTON_STEPS):
        outwards = ((x <= likelihood.lower) & (gradient > 0)) | ((x >= likelihood.upper) & (gradient < 0))
        free = ~outwards
        if fixed is not None:
            free[fixed] = False
        if not free.any():
            return Point(x, value, True)
        hessian = likelihood.hessian(x)[np.ix_(free, free)]
        if not np.isfinite(hessian).all():
            return Point(x, value, False)
        newton, steepest, lowest = _step_directions(hessian, gradient[free])
        predicted = -0.5 * float(newton @ gradient[free])
        if predicted < DECREMENT and lowest > -FLAT:
            return Point(x, value, True)
        for direction in (newton, steepest):
            trial = _line_search(likelihood, x, value, gradient, free, direction)
            if trial is not None:
                break
        else:
            # Rounding of the log likelihood can also prevent a further decrease.
            return Point(x, value, predicted < 1e-6)
        x, value, gradient = trial
    return Point(x, value, False)


def _step_directions(hessian: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a descending Newton step, a scaled gradient step, and the lowest eigenvalue of the scaled Hessian."""
    diagonal = np.abs(np.diagonal(hessian))
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    positive = np.maximum(np.abs(eigenvalues), FLAT)
    newton = -scale * (vectors @ ((vectors.T @ (scale * gradient)) / positive))
    return newton, -(scale**2) * gradient, float(eigenvalues[0])


def _line_search(likelihood, x, value, gradient, free, direction):
    """Backtrack along a direction, projected onto the bounds, until Armijo's condition holds; None if it never does."""
    step = 1.0
    while step > 1e-9:
        trial = x.copy()
        trial[free] += step * direction
        trial = np.clip(trial, likelihood.lower, likelihood.upper)
        trial_value, trial_gradient = likelihood.value_and_grad(trial)
        if trial_value < value + 1e-4 * min(float(gradient @ (trial - x)), 0.0) and np.isfinite(trial_gradient).all():
            return trial, trial_value, trial_gradient
        step *= 0.4
    return None


def covariance_at(likelihood: Likelihood, best: Point) -> tuple[np.ndarray, list[str]]:
    """Return the inverse Hessian, and the parameters that the data do not determine."""
    covariance = np.full((likelihood.size, likelihood.size), np.nan)
    free = np.flatnonzero(~likelihood.at_bound(best.x))
    hessian = likelihood.hessian(best.x)[np.ix_(free, free)]
    if not free.size or not np.isfinite(hessian).all():
        return covariance, []
    diagonal = np.diagonal(hessian)
    flat = [likelihood.labels[i] for i, curvature in zip(free, diagonal, strict=True) if not curvature > 0]
    if flat:
        return covariance, flat
    scale = 1.0 / np.sqrt(diagonal)
    eigenvalues, vectors = np.linalg.eigh(hessian * scale[:, None] * scale)
    if eigenvalues[0] < FLAT:
        return covariance, [
            likelihood.labels[i] for i, component in zip(free, vectors[:, 0], strict=True) if abs(component) > 0.1
        ]
    covariance[np.ix_(free, free)] = (vectors / eigenvalues) @ vectors.T * scale[:, None] * scale
    return covariance, []
