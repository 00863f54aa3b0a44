"""Where chains start and which metric they begin with: the posterior's mode and its curvature where that is cheap.

Compiling the model's gradient costs more than running it a thousand times, so one compiled value-and-gradient serves
the mode search, the Hessian and the check of the starting points, and the loops around it are plain Python.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hbm_jax.inference.target import StartError, Target

# Up to this many parameters the mode is searched, its Hessian taken, and the metric is dense. Beyond, a joint mode of
# hierarchical latents is often degenerate (a scatter of zero) and a dense metric costs more than it saves.
MAX_DENSE = 100
MODE_ITERATIONS = 500
MODE_TOLERANCE = (
    1e-3  # of the gradient's norm, in units where the posterior is about one wide; the mode is only a start
)
HESSIAN_STEP = 1e-4  # the truncation error of central differences is its square
CANDIDATES = 20  # starting points tried for each chain


@dataclass(frozen=True)
class Start:
    """Starting points and metric.

    Attributes
    ----------
    points : (num_chains, size)
        One starting point a chain.
    inverse_mass : (size, size) or (size,)
        Initial inverse mass matrix, dense or diagonal.
    dense : bool
        Whether the metric is dense.
    laplace : bool
        Whether points and metric come from a Laplace approximation.
    note : str
        What was done, for the provenance of a fit.
    """

    points: np.ndarray
    inverse_mass: np.ndarray
    dense: bool
    laplace: bool
    note: str

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Start":
        """Build from the arrays of `dataclasses.asdict`, as read back from a file."""
        dense, laplace = bool(arrays["dense"]), bool(arrays["laplace"])
        return cls(arrays["points"], arrays["inverse_mass"], dense, laplace, str(arrays["note"]))


def find_mode(value_and_grad: Callable, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Minimise by Optax's L-BFGS directions and a backtracking line search.

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> (value, gradient).
    start : (size,)
        Where to begin, with a finite value.

    Returns
    -------
    point, gradient_norm
        The last point, and the norm of the gradient there.
    """
    solver = optax.scale_by_lbfgs()
    update = jax.jit(solver.update)
    point = jnp.asarray(start)
    state = solver.init(point)
    value, gradient = value_and_grad(point)
    for _ in range(MODE_ITERATIONS):
        if jnp.linalg.norm(gradient) < MODE_TOLERANCE:
            break
        direction, state = update(gradient, state, point)
        if direction @ gradient <= 0:
            # A step through negative curvature spoils the memory: begin again with the steepest descent.
            direction, state = update(gradient, solver.init(point), point)
        slope = -float(direction @ gradient)
        step = 1.0
        while step > 1e-10:
            trial = point - step * direction
            trial_value, trial_gradient = value_and_grad(trial)
            # Armijo's condition; a NaN fails it too.
            if trial_value <= value + 1e-4 * step * slope:
                break
            step *= 0.5
        else:
            break
        point, value, gradient = trial, trial_value, trial_gradient
    return np.asarray(point), float(jnp.linalg.norm(gradient))


def hessian_at(value_and_grad: Callable, point: np.ndarray) -> np.ndarray:
    """Hessian by central differences of the gradient, (size, size), symmetrised."""
    rows = []
    for step in HESSIAN_STEP * np.maximum(1.0, np.abs(point))[:, None] * np.eye(len(point)):
        difference = np.asarray(value_and_grad(point + step)[1]) - np.asarray(value_and_grad(point - step)[1])
        rows.append(difference / (2.0 * step.sum()))
    hessian = np.stack(rows)
    return 0.5 * (hessian + hessian.T)


def choose_start(target: Target, num_chains: int, key: jax.Array) -> Start:
    """Mode, curvature and dispersed starting points; the prior's median where there is no usable mode.

    Parameters
    ----------
    target : Target
        The density.
    num_chains : int
        Number of chains.
    key : jax.Array
        Random key.

    Raises
    ------
    StartError
        If fewer starting points than chains have a finite density.
    """
    value_and_grad = jax.jit(jax.value_and_grad(target.potential))
    # NumPy draws, so that nothing has to be compiled for them.
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    dense = target.size <= MAX_DENSE
    if dense:
        mode, norm = find_mode(value_and_grad, target.start)
        hessian = hessian_at(value_and_grad, mode)
        if np.isfinite(norm) and np.isfinite(hessian).all():
            eigenvalues, vectors = np.linalg.eigh(hessian)
            if eigenvalues.min() > 0:
                scale = vectors / np.sqrt(eigenvalues)
                points = mode + random.normal(size=(CANDIDATES * num_chains, target.size)) @ scale.T
                note = f"Laplace approximation at the mode (gradient norm {norm:.1g}), dense metric"
                return Start(_finite(value_and_grad, points, num_chains), scale @ scale.T, True, True, note)
    points = target.start + random.uniform(-0.5, 0.5, size=(CANDIDATES * num_chains, target.size))
    inverse_mass = np.eye(target.size) if dense else np.ones(target.size)
    note = f"jittered median of the prior, {'dense' if dense else 'diagonal'} metric"
    return Start(_finite(value_and_grad, points, num_chains), inverse_mass, dense, False, note)


def _finite(value_and_grad, points, num_chains):
    """Keep the first points, one a chain, at which density and gradient are finite."""
    kept = []
    for point in points:
        value, gradient = value_and_grad(point)
        if np.isfinite(value) and np.isfinite(gradient).all():
            kept.append(point)
        if len(kept) == num_chains:
            return np.stack(kept)
    raise StartError(
        f"No starting points were found: expected {num_chains} with a finite log density and gradient among "
        f"{len(points)} near the start, found {len(kept)}. Check the priors' supports and the data for "
        "impossible values."
    )
