"""Starting points and initial metric of the chains, from several short searches.

Compiling the gradient of the model costs more than evaluating it a thousand times, so one compiled value-and-gradient
serves all searches, Hessians and the check of the starting points; the loops around it are Python.

Up to `MAX_DENSE` parameters, the searches look for modes, whose curvature gives a Laplace approximation. Beyond, a
joint mode of hierarchical latents is often degenerate (a scatter of zero), so a mean-field normal approximation is
fitted instead. That is also done if no mode is found, provided that its optimisation converges.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hbm_jax.inference.sampler.metric import MAX_DENSE, Metric, curvature_metric, scaled_metric
from hbm_jax.inference.sampler.target import StartError, Target

SEARCHES = 6  # from the median and from draws of the prior; if they find several modes, all prior draws are used
SEARCH_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-3  # gradient norm at which a search ends; high accuracy is not needed to start chains
MAX_GRADIENT_NORM = 0.1  # gradient norm above which a search has not converged
MAX_NEWTON_STEP = 1.0  # Newton step, in standard deviations, beyond which the end of a search is no mode
HESSIAN_STEP = 1e-4  # relative step of central differences, whose truncation error is its square
CANDIDATES = 20  # starting points drawn per chain
SAME_MODE = 5.0  # distance in standard deviations below which two modes are the same
NEGLIGIBLE = 10.0  # difference in log evidence beyond which a mode is discarded: a weight below 5e-5
VARIATIONAL_DRAWS = 8
VARIATIONAL_SEARCHES = 3
VARIATIONAL_ITERATIONS = 80
VARIATIONAL_ROUNDS = 3

LBFGS = optax.scale_by_lbfgs()
_update = jax.jit(LBFGS.update)  # shared by all searches, so that it is compiled once per size


@dataclass(frozen=True)
class Start:
    """Starting points and metric.

    Attributes
    ----------
    points : (num_chains, size)
        One starting point per chain.
    metric : Metric
        Initial metric of the warm-up.
    informed : bool
        Whether points and metric come from an approximation of the posterior, so that a short warm-up suffices.
    note : str
        How points and metric were chosen, for the provenance of a fit.
    caution : str
        Note for the verdict; empty if there is none.
    """

    points: np.ndarray
    metric: Metric
    informed: bool
    note: str
    caution: str = ""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all fields, with those of the metric, as arrays."""
        arrays = {"points": self.points, "informed": np.asarray(self.informed)}
        arrays |= {"note": np.asarray(self.note), "caution": np.asarray(self.caution)}
        return arrays | self.metric.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Start":
        """Return the start that `to_arrays` stored."""
        metric, informed = Metric.from_arrays(arrays), bool(arrays["informed"])
        return cls(arrays["points"], metric, informed, str(arrays["note"]), str(arrays["caution"]))


def minimise(
    value_and_grad: Callable, start: np.ndarray, max_iterations: int = SEARCH_ITERATIONS
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

    Returns
    -------
    point, value, gradient_norm
        The last point, with its value and gradient norm.
    """

    def evaluate(point):
        return jax.tree.map(np.asarray, value_and_grad(point))

    # NumPy between the compiled functions: JAX would compile each operation for every number of parameters.
    point = np.asarray(start, jnp.result_type(float))
    state = LBFGS.init(point)
    value, gradient = evaluate(point)
    for _ in range(max_iterations):
        if np.linalg.norm(gradient) < GRADIENT_TOLERANCE:
            break
        direction, state = _update(gradient, state, point)
        direction = np.asarray(direction)
        if direction @ gradient <= 0:
            # After a step through negative curvature, discard the L-BFGS memory and use the steepest descent.
            direction, state = _update(gradient, LBFGS.init(point), point)
            direction = np.asarray(direction)
        slope = -float(direction @ gradient)
        step = 1.0
        while step > 1e-10:
            trial = point - step * direction
            trial_value, trial_gradient = evaluate(trial)
            # Armijo's condition; False for NaN.
            if trial_value <= value + 1e-4 * step * slope:
                break
            step *= 0.5
        else:
            break
        point, value, gradient = trial, trial_value, trial_gradient
    return point, float(value), float(np.linalg.norm(gradient))


def hessian_at(value_and_grad: Callable, point: np.ndarray) -> np.ndarray:
    """Return the Hessian by central differences of the gradient, (size, size), symmetrised."""
    rows = []
    for step in HESSIAN_STEP * np.maximum(1.0, np.abs(point))[:, None] * np.eye(len(point)):
        difference = np.asarray(value_and_grad(point + step)[1]) - np.asarray(value_and_grad(point - step)[1])
        rows.append(difference / (2.0 * step.sum()))
    hessian = np.stack(rows)
    return 0.5 * (hessian + hessian.T)


@dataclass(frozen=True)
class _Mode:
    """Minimum of the potential, with the normal approximation there."""

    point: np.ndarray
    gradient_norm: float
    vectors: np.ndarray
    stretch: np.ndarray  # the covariance is V diag(stretch^2) V^T
    log_evidence: float

    @property
    def scale(self) -> np.ndarray:
        """Factor of the covariance, which is scale @ scale.T."""
        return self.vectors * self.stretch

    def distance(self, other: "_Mode") -> float:
        """Return the distance to another mode, in standard deviations."""
        return float(np.linalg.norm(np.linalg.solve(self.scale, other.point - self.point)))


def choose_start(target: Target, num_chains: int, key: jax.Array, value_and_grad: Callable | None = None) -> Start:
    """Choose starting points and metric: from searches, or from the prior if all searches fail.

    Parameters
    ----------
    target : Target
        The posterior.
    num_chains : int
        Number of chains.
    key : jax.Array
        Random key.
    value_and_grad : callable, optional
        Replaces ``target.value_and_grad``, for processes that must evaluate the density together.

    Raises
    ------
    StartError
        If fewer starting points than chains have a finite density.
    """
    value_and_grad = value_and_grad or target.value_and_grad
    # NumPy random numbers need no compilation.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    candidates = [p for p in (target.start, *target.prior_draws) if _is_finite(value_and_grad(p))]
    if candidates:
        small = target.size <= MAX_DENSE
        start = _laplace(value_and_grad, candidates, num_chains, rng) if small else None
        if not small and target.standard.any():
            start = _from_best_mode(value_and_grad, candidates, target.standard, num_chains, rng)
        # A small hierarchical posterior may have no joint mode, yet a bulk that a normal distribution approximates.
        start = start or _variational(value_and_grad, candidates, num_chains, rng, require_convergence=small)
        if start is not None:
            return start
    points = target.start + rng.uniform(-0.5, 0.5, size=(CANDIDATES * num_chains, target.size))
    points = np.concatenate([points, target.prior_draws.reshape(-1, target.size)])
    kind = "dense" if target.size <= MAX_DENSE else "diagonal"
    unit = np.eye(target.size) if kind == "dense" else np.ones(target.size)
    why = "no search found a mode at which to estimate it"
    note = f"jittered median of the prior, because {why}; {kind} metric, adapted from the unit matrix"
    return Start(_finite(value_and_grad, points, num_chains), Metric(kind, unit, why), False, note)


def _laplace(value_and_grad, candidates, num_chains, rng) -> Start | None:
    """Find modes, and draw starting points around each mode of significant evidence."""
    modes: list[_Mode] = []
    failed = searches = 0
    for candidate in candidates:
        if searches >= SEARCHES and len(modes) < 2:
            break
        searches += 1
        point, value, norm = minimise(value_and_grad, candidate)
        if norm < MAX_GRADIENT_NORM and any(np.linalg.norm(point - mode.point) < 1e-2 for mode in modes):
            continue
        hessian = hessian_at(value_and_grad, point)
        if not np.isfinite(hessian).all():
            failed += 1
            continue
        eigenvalues, vectors = np.linalg.eigh(hessian)
        if not (np.isfinite(norm) and eigenvalues.min() > 0):
            failed += 1
            continue
        mode = _Mode(point, norm, vectors, eigenvalues**-0.5, -value - 0.5 * float(np.log(eigenvalues).sum()))
        # If the density grows without limit, the curvature is a rounding error of either sign; the gradient shows it.
        if np.linalg.norm(mode.scale.T @ np.asarray(value_and_grad(point)[1])) > MAX_NEWTON_STEP:
            failed += 1
            continue
        if not any(other.distance(mode) < SAME_MODE for other in modes):
            modes.append(mode)
    if not modes:
        return None
    modes.sort(key=lambda mode: -mode.log_evidence)
    kept = [mode for mode in modes if mode.log_evidence > modes[0].log_evidence - NEGLIGIBLE]
    # The better modes get the remaining chains.
    chains = np.bincount(np.arange(num_chains) % len(kept), minlength=len(kept))
    points = []
    for mode, num_points in zip(kept, chains, strict=True):
        draws = mode.point + rng.normal(size=(CANDIDATES * num_points, len(mode.point))) @ mode.scale.T
        if num_points:
            points.append(_finite(value_and_grad, draws, num_points))
    best = modes[0]
    metric = curvature_metric(best.vectors, best.stretch)
    discarded = len(modes) - len(kept) + failed
    note = f"Laplace approximation at the mode (gradient norm {best.gradient_norm:.1g}), "
    note += f"{metric.kind} metric ({metric.why})"
    if len(kept) > 1:
        note += f"; {len(kept)} modes were found, and the chains distributed over them"
    if discarded:
        note += f"; {discarded} of {searches} searches ended at no mode of significant evidence"
    caution = ""
    if len(modes) > 1:
        caution = (
            f"{searches} searches before sampling found {len(modes)} separate modes, {len(kept)} with significant "
            "evidence; R-hat cannot detect a mode that no chain has visited"
        )
    return Start(np.concatenate(points), metric, True, note, caution)


def _from_best_mode(value_and_grad, candidates, standard, num_chains, rng) -> Start | None:
    """Find the best mode of a posterior whose ``standard`` components are about standard normal; scale the others."""

    def gradient(point):
        return np.asarray(value_and_grad(point)[1])

    searches = [minimise(value_and_grad, candidate) for candidate in candidates[:VARIATIONAL_SEARCHES]]
    converged = [search for search in searches if np.isfinite(search[1]) and search[2] < MAX_GRADIENT_NORM]
    if not converged:
        return None
    point, value, norm = min(converged, key=lambda search: search[1])
    scale = np.ones(len(point))
    for i in np.flatnonzero(~standard):
        step = HESSIAN_STEP * max(1.0, abs(point[i])) * np.eye(len(point))[i]
        curvature = (gradient(point + step) - gradient(point - step))[i] / (2.0 * step[i])
        if curvature > 0:
            scale[i] = curvature**-0.5
    metric = scaled_metric(gradient, point[None], scale, rng)
    noise = rng.normal(size=(CANDIDATES * num_chains, len(point)))
    points = point + (metric.to_position(noise) if metric.kind == "low-rank" else scale * noise)
    note = f"around the mode (gradient norm {norm:.1g}), {metric.kind} metric ({metric.why})"
    worse = sum(search[1] > value + NEGLIGIBLE for search in searches) + len(searches) - len(converged)
    if worse:
        note += f"; {worse} of {len(searches)} searches were worse and discarded"
    return Start(_finite(value_and_grad, points, num_chains), metric, True, note)


def _variational(value_and_grad, candidates, num_chains, rng, require_convergence: bool) -> Start | None:
    """Fit a mean-field normal approximation with fixed draws (Giordano et al. 2024, JMLR 25, 18); best of several.

    If ``require_convergence``, use only fits that converged; none does if the density cannot be normalised.
    """
    size = len(candidates[0])
    half = rng.normal(size=(VARIATIONAL_DRAWS // 2, size))
    half /= np.sqrt(np.mean(half**2, axis=0))  # with their negatives, mean and variance are exact
    noise = np.concatenate([half, -half])

    def refit(loc, log_scale):
        """Refit in units of the current approximation, so that widths may differ as much as 0.01 and 1000."""
        unit = np.exp(log_scale)

        def objective(parameters):
            parameters = np.asarray(parameters)
            center, scale = loc + unit * parameters[:size], unit * np.exp(parameters[size:])
            values, gradients = zip(*(value_and_grad(center + scale * e) for e in noise), strict=True)
            gradient_rows = np.stack([np.asarray(g) for g in gradients])
            if not np.isfinite(values).all():
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
            with np.errstate(all="ignore"):
                value, loc, log_scale, norm = refit(candidate, np.full(size, initial_log_scale))
                for _ in range(VARIATIONAL_ROUNDS - 1):
                    if np.isfinite(value):
                        value, loc, log_scale, norm = refit(loc, log_scale)
            point = np.concatenate([loc, log_scale])
            if np.isfinite(value):
                if np.isfinite(point).all() and not (require_convergence and norm > MAX_GRADIENT_NORM):
                    fits.append((value, point))
                break
    if not fits:
        return None
    fits.sort(key=lambda pair: pair[0])
    best = fits[0][1]
    loc, scale = best[:size], np.exp(best[size:])
    points = loc + scale * rng.normal(size=(CANDIDATES * num_chains, size))
    metric = scaled_metric(lambda p: value_and_grad(p)[1], points[: VARIATIONAL_DRAWS // 2], scale, rng)
    note = f"mean-field normal approximation, {metric.kind} metric ({metric.why})"
    worse = sum(value > fits[0][0] + NEGLIGIBLE for value, _ in fits)
    if worse:
        note += f"; {worse} of {min(VARIATIONAL_SEARCHES, len(candidates))} searches were worse and discarded"
    return Start(_finite(value_and_grad, points, num_chains), metric, True, note)


def _is_finite(value_and_gradient) -> bool:
    """Return whether value and gradient are finite."""
    value, gradient = value_and_gradient
    return bool(np.isfinite(value) and np.isfinite(gradient).all())


def _finite(value_and_grad, points, num_chains):
    """Return the first points, one per chain, at which density and gradient are finite."""
    kept: list[np.ndarray] = []
    for point in points:
        if _is_finite(value_and_grad(point)):
            kept.append(point)
        if len(kept) == num_chains:
            return np.stack(kept)
    raise StartError(
        f"No starting points were found: expected {num_chains} with a finite log density and gradient among "
        f"{len(points)} near the start, found {len(kept)}. Check the priors' supports and the data for "
        "impossible values."
    )
