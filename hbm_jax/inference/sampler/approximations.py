"""Normal approximations of a posterior: at a mode, along the path of a search, and mean-field.

All functions work in one set of variables, in units of the prior (see `hbm_jax.inference.sampler.initialisation`).
Compiling the gradient of the model costs more than evaluating it a thousand times, so one compiled value-and-gradient
serves all searches and Hessians; the loops around it are Python.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hbm_jax.inference.sampler.metric import power_of_two
from hbm_jax.xla_options import QUICK

SEARCH_ITERATIONS = 500
TRIALS_PER_ITERATION = 4  # largest mean number of evaluations; more mean that rounding errors limit the steps
GRADIENT_TOLERANCE = 1e-3  # gradient norm at which a search ends; high accuracy is not needed to start chains
MAX_NEWTON_STEP = 0.1  # Newton step, in standard deviations, beyond which the end of a search is no mode
POLISHED = 3  # Newton steps after a search that rounding errors ended a little early
MAX_POLISHING_STEP = 1.0  # largest length of these steps, in standard deviations
HESSIAN_STEP = 1e-4  # step of central differences in units of the width, whose truncation error is its square
# Range of steps in units of the width that they measure; a measurement with another step is repeated, because a
# posterior may be much narrower or wider than its prior.
MEASURING_STEPS = (1e-7, 1e-2)
MEMORY = 6  # pairs of steps and gradient differences in the inverse Hessian along a path
PATH_POINTS = 25  # points of a path whose approximation is compared with the density
PATH_DRAWS = 5  # draws at each of these points
GOLDEN = 0.6180339887498949  # golden ratio minus 1; its multiples modulo 1 are spread evenly
NUM_IMPORTANCE_DRAWS = 20  # draws from an approximation at which it is compared with the density
# Of mean-field fits: draws, starting points, iterations of a round, and rounds.
VARIATIONAL_DRAWS = 8
VARIATIONAL_SEARCHES = 3
VARIATIONAL_ITERATIONS = 80
VARIATIONAL_ROUNDS = 3

LBFGS = optax.scale_by_lbfgs()
# Shared by all searches, so that they are compiled once per size.
_begin = jax.jit(LBFGS.init, compiler_options=QUICK)
_update = jax.jit(LBFGS.update, compiler_options=QUICK)


def minimise(
    value_and_grad: Callable, start: np.ndarray, max_iterations: int = SEARCH_ITERATIONS, path: list | None = None
) -> tuple[np.ndarray, float, float]:
    """Minimise a function by Optax's L-BFGS directions and a backtracking line search.

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> (value, gradient).
    start : (size,)
        Starting point, with a finite value.
    max_iterations : int
        Largest number of iterations.
    path : list, optional
        Receives (point, gradient) of every iteration.

    Returns
    -------
    point, value, gradient_norm
        The last point, with its value and gradient norm.
    """

    def evaluate(point):
        return jax.tree.map(np.asarray, value_and_grad(point))

    # NumPy between the compiled functions: JAX would compile each operation for every number of parameters.
    point = np.asarray(start, jnp.result_type(float))
    state = _begin(point)
    value, gradient = evaluate(point)
    evaluations_left = TRIALS_PER_ITERATION * max_iterations
    for _ in range(max_iterations):
        if path is not None:
            path.append((point, gradient))
        if np.linalg.norm(gradient) < GRADIENT_TOLERANCE or evaluations_left <= 0:
            break
        direction, state = _update(gradient, state, point)
        direction = np.asarray(direction)
        if direction @ gradient <= 0:
            # After a step through negative curvature, discard the L-BFGS memory and use the steepest descent.
            direction, state = _update(gradient, _begin(point), point)
            direction = np.asarray(direction)
        slope = -float(direction @ gradient)
        step = 1.0
        while step > 1e-10:
            trial = point - step * direction
            trial_value, trial_gradient = evaluate(trial)
            evaluations_left -= 1
            # Armijo's condition; False for NaN.
            if trial_value <= value + 1e-4 * step * slope:
                break
            step *= 0.5
        else:
            break
        point, value, gradient = trial, trial_value, trial_gradient
    return point, float(value), float(np.linalg.norm(gradient))


def curvature_along(value_and_grad: Callable, point: np.ndarray, index: int) -> np.ndarray:
    """Return a row of the Hessian of minus a log density by central differences of its gradient, (size,).

    The step is adapted to the width of the density along this component, which is 1 / sqrt(second derivative). NaN
    where no step gives finite gradients.
    """
    size = HESSIAN_STEP
    row = np.full(len(point), np.nan)
    for _ in range(4):
        step = np.zeros(len(point))
        step[index] = size
        forward, backward = point + step, point - step
        difference = np.asarray(value_and_grad(forward)[1]) - np.asarray(value_and_grad(backward)[1])
        row = difference / (forward - backward)[index]
        if not np.isfinite(row).all():
            size *= 1e-3  # beyond the edge of the support
            continue
        width = row[index] ** -0.5 if row[index] > 0 else np.inf
        smallest, largest = MEASURING_STEPS
        if size <= largest * width and (size >= smallest * width or np.isinf(width)):
            break
        size = HESSIAN_STEP * width
    return row


def hessian_at(value_and_grad: Callable, point: np.ndarray) -> np.ndarray:
    """Return the Hessian by central differences of the gradient, (size, size), symmetrised."""
    hessian = np.stack([curvature_along(value_and_grad, point, index) for index in range(len(point))])
    return 0.5 * (hessian + hessian.T)


@dataclass(frozen=True)
class Approximation:
    """Normal approximation of a posterior, with covariance F F^T, F = width * vectors * stretch.

    Attributes
    ----------
    point : (size,)
        Mean.
    width : (size,)
        Units close to the widths of the components.
    vectors, stretch : (size, size), (size,)
        Principal axes of the covariance in units of ``width``, and the standard deviations along them; ``vectors`` is
        empty if the axes are the components.
    value : float
        Minus the log density at the mean; NaN if it was not evaluated.
    gradient_norm : float
        Gradient norm at the mean.
    """

    point: np.ndarray
    width: np.ndarray
    vectors: np.ndarray
    stretch: np.ndarray
    value: float = np.nan
    gradient_norm: float = np.nan

    @classmethod
    def from_precision(cls, point, precision, value=np.nan, gradient_norm=np.nan) -> "Approximation | None":
        """Return the approximation with an inverse covariance (size, size); None if it is not positive definite."""
        diagonal = np.diag(precision)
        if not (np.isfinite(precision).all() and (diagonal > 0).all()):
            return None
        width = _distinct_units(diagonal**-0.5)
        # In units of the widths, because these may differ by many orders of magnitude.
        eigenvalues, vectors = np.linalg.eigh(width[:, None] * precision * width)
        if eigenvalues.min() <= 0:
            return None
        return cls(point, width, vectors, eigenvalues**-0.5, value, gradient_norm)

    @classmethod
    def from_covariance(cls, point: np.ndarray, covariance: np.ndarray) -> "Approximation | None":
        """Return the approximation with a covariance (size, size); None if it is not positive definite."""
        diagonal = np.diag(covariance)
        if not (np.isfinite(covariance).all() and np.isfinite(point).all() and (diagonal > 0).all()):
            return None
        width = _distinct_units(diagonal**0.5)
        eigenvalues, vectors = np.linalg.eigh(covariance / np.outer(width, width))
        return None if eigenvalues.min() <= 0 else cls(point, width, vectors, eigenvalues**0.5)

    @classmethod
    def mean_field(cls, point: np.ndarray, scale: np.ndarray) -> "Approximation":
        """Return the approximation with independent components of widths ``scale``, (size,)."""
        width = power_of_two(scale)
        return cls(point, width, np.zeros((0, 0)), scale / width)

    @property
    def log_volume(self) -> float:
        """Logarithm of the determinant of the factor."""
        return float(np.log(self.width).sum() + np.log(self.stretch).sum())

    @property
    def log_evidence(self) -> float:
        """Laplace's estimate of the log evidence, without the factor (2 pi)^(size / 2)."""
        return self.log_volume - self.value

    def transform(self, noise: np.ndarray) -> np.ndarray:
        """Return positions from standard normal noise (..., size)."""
        along_axes = self.stretch * noise
        return self.point + self.width * (along_axes @ self.vectors.T if self.vectors.size else along_axes)

    def standardise(self, point: np.ndarray) -> np.ndarray:
        """Return the noise of a position; inverse of `transform`."""
        return (self.vectors.T @ ((point - self.point) / self.width)) / self.stretch

    def distance(self, point: np.ndarray) -> float:
        """Return the distance of a point from the mean, in standard deviations."""
        return float(np.linalg.norm(self.standardise(point)))

    def standardised_gradient(self, gradient: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to the noise; at a point near a mode, minus the Newton step."""
        return self.stretch * (self.vectors.T @ (self.width * gradient))


def search_from(
    value_and_grad: Callable, candidate: np.ndarray, known_mode: Approximation | None
) -> tuple[np.ndarray, float, list]:
    """Search for a mode from a candidate; return the last point, its value, and the path (point, gradient).

    If a mode is known, the search works in the standardised variables of its approximation and takes fewer iterations.
    """
    path: list = []
    if known_mode is None:
        point, value, _ = minimise(value_and_grad, candidate, path=path)
        return point, value, path

    def standardised(noise):
        value, gradient = value_and_grad(known_mode.transform(noise))
        return value, known_mode.standardised_gradient(np.asarray(gradient))

    def gradient_by_position(gradient):
        return known_mode.vectors @ (gradient / known_mode.stretch) / known_mode.width

    noise, value, _ = minimise(standardised, known_mode.standardise(candidate), path=path)
    path = [(known_mode.transform(noise), gradient_by_position(gradient)) for noise, gradient in path]
    return known_mode.transform(noise), value, path


def _distinct_units(width: np.ndarray) -> np.ndarray:
    """Return units close to widths (size,): powers of two times different factors between 1 and 1.1.

    Groups with equal errors have equal curvatures; in equal units, rounding errors would decide their principal axes.
    """
    return power_of_two(width) * (1.0 + 0.1 * np.mod(GOLDEN * np.arange(len(width)), 1.0))


@dataclass(frozen=True)
class ImportanceSample:
    """An approximation compared with the density at draws from it.

    Attributes
    ----------
    approximation : Approximation
        The approximation.
    points : (num, size)
        Draws from it.
    log_weights : (num,)
        Log density minus that of the approximation (both up to the same constant); -inf where not finite.
    """

    approximation: Approximation
    points: np.ndarray
    log_weights: np.ndarray

    @property
    def bound(self) -> float:
        """Evidence lower bound without the lowest tenth of the draws, up to the constant of `log_evidence`."""
        return float(np.mean(np.sort(self.log_weights)[len(self.log_weights) // 10 :]))

    @property
    def departure(self) -> float:
        """Departure of the density from normal: the standard deviation of the log weights for each degree of freedom.

        It is 0 for the approximation itself. A relative error s^2 of all its variances gives ``|1 - s^2|``. Infinite
        where a weight is not finite.
        """
        if not np.isfinite(self.log_weights).all():
            return np.inf
        return float(np.std(self.log_weights) / np.sqrt(0.5 * len(self.approximation.point)))

    def typical(self, margin: float) -> np.ndarray:
        """Return the draws whose log weight is less than ``margin`` below the median, (num, size)."""
        return self.points[self.log_weights > np.median(self.log_weights) - margin]


def importance_sample(
    value_and_grad: Callable, approximation: Approximation, rng: np.random.Generator, num: int = NUM_IMPORTANCE_DRAWS
) -> ImportanceSample:
    """Return draws from an approximation, with their log importance weights for the density."""
    noise = rng.normal(size=(num, len(approximation.point)))
    points = approximation.transform(noise)
    log_weights = np.full(num, -np.inf)
    for i, point in enumerate(points):
        value, gradient = map(np.asarray, value_and_grad(point))
        if is_finite(value, gradient):
            log_weights[i] = approximation.log_volume + 0.5 * noise[i] @ noise[i] - value
    return ImportanceSample(approximation, points, log_weights)


def is_finite(value, gradient) -> bool:
    """Return whether value and gradient are finite."""
    return bool(np.isfinite(value) and np.isfinite(gradient).all())


def mode_at(value_and_grad: Callable, point: np.ndarray, value: float) -> Approximation | None:
    """Return the Laplace approximation at the end of a search; None if the search did not end at a mode.

    At a mode the density is finite, its curvature positive definite, and its gradient small in units of the curvature:
    where the density grows without limit, the curvature is a rounding error of either sign.
    """
    gradient = np.asarray(value_and_grad(point)[1])
    if not is_finite(value, gradient):
        return None
    precision = hessian_at(value_and_grad, point)
    for _ in range(POLISHED):
        mode = Approximation.from_precision(point, precision, value, float(np.linalg.norm(gradient)))
        if mode is None or not is_finite(value, gradient):
            return None
        step = -mode.standardised_gradient(gradient)
        if np.linalg.norm(step) < MAX_NEWTON_STEP:
            return mode
        if np.linalg.norm(step) > MAX_POLISHING_STEP:
            return None
        point = mode.transform(step)
        new_value, gradient = map(np.asarray, value_and_grad(point))
        if not new_value < value:
            return None
        value = float(new_value)
    return None


def along_path(value_and_grad: Callable, path: Sequence, rng: np.random.Generator) -> ImportanceSample | None:
    """Return the best normal approximation along the path of a search, by its evidence lower bound.

    A path from the prior to a mode, or to a density without limit, crosses the region that holds the posterior mass
    (Pathfinder: Zhang et al. 2022, JMLR 23, 306). The inverse Hessian at a point is the BFGS update, by the last
    `MEMORY` steps, of a diagonal estimated from all steps so far.
    """
    best = None
    diagonal = np.ones(len(path[0][0]))
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    indices = np.unique(np.linspace(1, len(path) - 1, PATH_POINTS).astype(int)) if len(path) > 1 else ()
    for i in range(1, len(path)):
        step, change = path[i][0] - path[i - 1][0], path[i][1] - path[i - 1][1]
        if step @ change > 1e-12 * np.linalg.norm(step) * np.linalg.norm(change):
            diagonal = _updated_diagonal(diagonal, step, change)
            pairs = [*pairs, (step, change)][-MEMORY:]
        if i not in indices or not pairs:
            continue
        inverse = _inverse_hessian(diagonal, pairs)
        mean = path[i][0] - inverse @ path[i][1]
        approximation = Approximation.from_covariance(mean, inverse)
        if approximation is None:
            continue
        candidate = importance_sample(value_and_grad, approximation, rng, PATH_DRAWS)
        if best is None or candidate.bound > best.bound:
            best = candidate
    # With new draws, because the best of many estimates from a few draws is too high.
    return None if best is None else importance_sample(value_and_grad, best.approximation, rng)


def _updated_diagonal(diagonal: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the diagonal inverse Hessian after one more step (equation 9 of Gilbert & Lemarechal 1989)."""
    a, b, c = change @ (diagonal * change), change @ step, step @ (step / diagonal)
    updated = 1.0 / (a / (b * diagonal) + change**2 / b - a * step**2 / (b * c * diagonal**2))
    return updated if np.isfinite(updated).all() and (updated > 0).all() else diagonal


def _inverse_hessian(diagonal: np.ndarray, pairs: Sequence) -> np.ndarray:
    """Return the BFGS inverse Hessian of pairs (step, change of the gradient) on a diagonal, (size, size)."""
    inverse = np.diag(diagonal)
    for step, change in pairs:
        scale = 1.0 / (step @ change)
        projection = np.eye(len(step)) - scale * np.outer(step, change)
        inverse = projection @ inverse @ projection.T + scale * np.outer(step, step)
    return 0.5 * (inverse + inverse.T)


@dataclass(frozen=True)
class MeanField:
    """Mean-field normal approximation: mean and widths (size,), minus its evidence lower bound, its gradient norm."""

    point: np.ndarray
    scale: np.ndarray
    value: float
    gradient_norm: float


def mean_field_fits(
    value_and_grad: Callable, candidates: Sequence[np.ndarray], rng: np.random.Generator
) -> list[MeanField]:
    """Fit mean-field normal approximations with fixed draws (Giordano et al. 2024, JMLR 25, 18).

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> minus the log density, gradient.
    candidates : sequence of (size,)
        Starting points, of which the first `VARIATIONAL_SEARCHES` are used.
    rng : numpy.random.Generator
        Generator of the fixed draws.

    Returns
    -------
    list of MeanField
        Fits with finite values, the best first.
    """
    size = len(candidates[0])
    half = rng.normal(size=(VARIATIONAL_DRAWS // 2, size))
    half /= np.sqrt(np.mean(half**2, axis=0))  # with their negatives, mean and variance are exact
    noise = np.concatenate([half, -half])

    def refit(loc, log_scale):
        """Fit again in units of the current approximation, so that widths may differ as much as 0.01 and 1000."""
        unit = np.exp(log_scale)

        def objective(parameters):
            parameters = np.asarray(parameters)
            center, scale = loc + unit * parameters[:size], unit * np.exp(parameters[size:])
            values, gradient_rows = np.zeros(len(noise)), np.zeros(noise.shape)
            for i, draw in enumerate(noise):
                values[i], gradient_rows[i] = value_and_grad(center + scale * draw)
                if not np.isfinite(values[i]):
                    return np.inf, jnp.zeros(2 * size)
            gradient = np.concatenate([gradient_rows.mean(0) * unit, (gradient_rows * noise).mean(0) * scale - 1.0])
            return float(np.mean(values)) - np.log(scale).sum(), jnp.asarray(gradient)

        if not np.isfinite(objective(np.zeros(2 * size))[0]):
            return np.inf, loc, log_scale, np.inf
        parameters, value, norm = minimise(objective, np.zeros(2 * size), VARIATIONAL_ITERATIONS)
        return value, loc + unit * parameters[:size], log_scale + parameters[size:], norm

    fits = []
    for candidate in candidates[:VARIATIONAL_SEARCHES]:
        for initial_log_scale in (-2.0, -5.0):
            value, loc, log_scale, norm = refit(candidate, np.full(size, initial_log_scale))
            for _ in range(VARIATIONAL_ROUNDS - 1):
                if np.isfinite(value):
                    value, loc, log_scale, norm = refit(loc, log_scale)
            if np.isfinite(value):
                if np.isfinite(loc).all() and np.isfinite(log_scale).all():
                    fits.append(MeanField(loc, np.exp(log_scale), value, norm))
                break
    return sorted(fits, key=lambda fit: fit.value)
