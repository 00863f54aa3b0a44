"""Where chains start and which metric they begin with, from many short searches of which the bad ones are discarded.

Compiling the model's gradient costs more than running it a thousand times, so one compiled value-and-gradient serves
every search, the Hessians and the check of the starting points, and the loops around it are plain Python.

Up to `MAX_DENSE` parameters the searches look for modes, and the curvature there gives a Laplace approximation. Beyond,
a joint mode of hierarchical latents is often degenerate (a scatter of zero), so they fit a mean-field normal
approximation instead; as they do where no mode is found, if that approximation settles.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hbm_jax.inference.sampler.metric import MAX_DENSE, Metric, curvature_metric, scaled_metric
from hbm_jax.inference.sampler.target import StartError, Target

SEARCHES = 6  # from the median of the prior and from draws of it; where they find several modes, all draws there are
SEARCH_ITERATIONS = 500
GRADIENT_TOLERANCE = (
    1e-3  # of the gradient's norm, in units where the posterior is about one wide; a mode is only a start
)
SETTLED = 0.1  # gradient norm above which a search has not arrived anywhere
UPHILL = 1.0  # standard deviations that the slope asks to go on from where a search ended, beyond which it is no mode
HESSIAN_STEP = 1e-4  # the truncation error of central differences is its square
CANDIDATES = 20  # starting points tried for each chain
SAME_MODE = 5.0  # standard deviations between two modes that count as one
NEGLIGIBLE = 10.0  # difference in log evidence beyond which a mode is discarded: a weight below 5e-5
VARIATIONAL_DRAWS = 8
VARIATIONAL_SEARCHES = 3
VARIATIONAL_ITERATIONS = 80
VARIATIONAL_ROUNDS = 3

LBFGS = optax.scale_by_lbfgs()
_update = jax.jit(LBFGS.update)  # one for all searches, so that each size is compiled once


@dataclass(frozen=True)
class Start:
    """Starting points and metric.

    Attributes
    ----------
    points : (num_chains, size)
        One starting point a chain.
    metric : Metric
        The metric the warm-up begins with.
    informed : bool
        Whether points and metric come from an approximation of the posterior, so that a short warm-up is enough.
    note : str
        What was done and why, for the provenance of a fit.
    caution : str
        What a reader of the verdict should know of it; empty if nothing.
    """

    points: np.ndarray
    metric: Metric
    informed: bool
    note: str
    caution: str = ""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays."""
        own = {"points": self.points, "informed": np.asarray(self.informed)}
        own |= {"note": np.asarray(self.note), "caution": np.asarray(self.caution)}
        return own | self.metric.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Start":
        """Inverse of `to_arrays`."""
        metric, informed = Metric.from_arrays(arrays), bool(arrays["informed"])
        return cls(arrays["points"], metric, informed, str(arrays["note"]), str(arrays["caution"]))


def minimise(
    value_and_grad: Callable, start: np.ndarray, max_iterations: int = SEARCH_ITERATIONS
) -> tuple[np.ndarray, float, float]:
    """Minimise by Optax's L-BFGS directions and a backtracking line search.

    Parameters
    ----------
    value_and_grad : callable
        (size,) -> (value, gradient).
    start : (size,)
        Where to begin, with a finite value.
    max_iterations : int
        Budget.

    Returns
    -------
    point, value, gradient_norm
        The last point, and what was found there.
    """

    def evaluate(point):
        return jax.tree.map(np.asarray, value_and_grad(point))

    # NumPy between the programs: each operation of JAX would be compiled for every number of parameters.
    point = np.asarray(start, jnp.result_type(float))
    state = LBFGS.init(point)
    value, gradient = evaluate(point)
    for _ in range(max_iterations):
        if np.linalg.norm(gradient) < GRADIENT_TOLERANCE:
            break
        direction, state = _update(gradient, state, point)
        direction = np.asarray(direction)
        if direction @ gradient <= 0:
            # A step through negative curvature spoils the memory: begin again with the steepest descent.
            direction, state = _update(gradient, LBFGS.init(point), point)
            direction = np.asarray(direction)
        slope = -float(direction @ gradient)
        step = 1.0
        while step > 1e-10:
            trial = point - step * direction
            trial_value, trial_gradient = evaluate(trial)
            # Armijo's condition; a NaN fails it too.
            if trial_value <= value + 1e-4 * step * slope:
                break
            step *= 0.5
        else:
            break
        point, value, gradient = trial, trial_value, trial_gradient
    return point, float(value), float(np.linalg.norm(gradient))


def hessian_at(value_and_grad: Callable, point: np.ndarray) -> np.ndarray:
    """Hessian by central differences of the gradient, (size, size), symmetrised."""
    rows = []
    for step in HESSIAN_STEP * np.maximum(1.0, np.abs(point))[:, None] * np.eye(len(point)):
        difference = np.asarray(value_and_grad(point + step)[1]) - np.asarray(value_and_grad(point - step)[1])
        rows.append(difference / (2.0 * step.sum()))
    hessian = np.stack(rows)
    return 0.5 * (hessian + hessian.T)


@dataclass(frozen=True)
class _Mode:
    """A minimum of the potential and the normal approximation around it."""

    point: np.ndarray
    gradient_norm: float
    vectors: np.ndarray
    stretch: np.ndarray  # of the covariance V diag(stretch^2) V^T
    log_evidence: float

    @property
    def scale(self) -> np.ndarray:
        """A factor of the covariance, scale @ scale.T."""
        return self.vectors * self.stretch

    def distance(self, other: "_Mode") -> float:
        """How far another mode is, in standard deviations."""
        return float(np.linalg.norm(np.linalg.solve(self.scale, other.point - self.point)))


def choose_start(target: Target, num_chains: int, key: jax.Array, value_and_grad: Callable | None = None) -> Start:
    """Choose starting points and metric; draws of the prior where every search fails.

    Parameters
    ----------
    target : Target
        The density.
    num_chains : int
        Number of chains.
    key : jax.Array
        Random key.
    value_and_grad : callable, optional
        The target's own, where another process has to be told of each call.

    Raises
    ------
    StartError
        If fewer starting points than chains have a finite density.
    """
    value_and_grad = value_and_grad or target.value_and_grad
    # NumPy draws, so that nothing has to be compiled for them.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    candidates = [p for p in (target.start, *target.prior_draws) if _is_finite(value_and_grad(p))]
    if candidates:
        small = target.size <= MAX_DENSE
        start = _laplace(value_and_grad, candidates, num_chains, rng) if small else None
        if not small and target.standard.any():
            start = _around_a_mode(value_and_grad, candidates, target.standard, num_chains, rng)
        # Few parameters without a joint mode, as of a hierarchy, still have a bulk that a normal distribution fits.
        start = start or _variational(value_and_grad, candidates, num_chains, rng, settled=small)
        if start is not None:
            return start
    points = target.start + rng.uniform(-0.5, 0.5, size=(CANDIDATES * num_chains, target.size))
    points = np.concatenate([points, target.prior_draws.reshape(-1, target.size)])
    kind = "dense" if target.size <= MAX_DENSE else "diagonal"
    unit = np.eye(target.size) if kind == "dense" else np.ones(target.size)
    why = "no search found a peak to measure it at"
    note = f"jittered median of the prior, because {why}; {kind} metric, adapted from the unit matrix"
    return Start(_finite(value_and_grad, points, num_chains), Metric(kind, unit, why), False, note)


def _laplace(value_and_grad, candidates, num_chains, rng) -> Start | None:
    """Modes, their weights, and points around each of those that matter."""
    modes: list[_Mode] = []
    lost = searches = 0
    for candidate in candidates:
        if searches >= SEARCHES and len(modes) < 2:
            break
        searches += 1
        point, value, norm = minimise(value_and_grad, candidate)
        if norm < SETTLED and any(np.linalg.norm(point - mode.point) < 1e-2 for mode in modes):
            continue
        hessian = hessian_at(value_and_grad, point)
        if not np.isfinite(hessian).all():
            lost += 1
            continue
        eigenvalues, vectors = np.linalg.eigh(hessian)
        if not (np.isfinite(norm) and eigenvalues.min() > 0):
            lost += 1
            continue
        mode = _Mode(point, norm, vectors, eigenvalues**-0.5, -value - 0.5 * float(np.log(eigenvalues).sum()))
        # Where a density grows without end, curvatures are rounding errors of either sign; the slope tells.
        if np.linalg.norm(mode.scale.T @ np.asarray(value_and_grad(point)[1])) > UPHILL:
            lost += 1
            continue
        if not any(known.distance(mode) < SAME_MODE for known in modes):
            modes.append(mode)
    if not modes:
        return None
    modes.sort(key=lambda mode: -mode.log_evidence)
    kept = [mode for mode in modes if mode.log_evidence > modes[0].log_evidence - NEGLIGIBLE]
    # The better modes get the chains that are left over.
    chains = np.bincount(np.arange(num_chains) % len(kept), minlength=len(kept))
    points = []
    for mode, wanted in zip(kept, chains, strict=True):
        around = mode.point + rng.normal(size=(CANDIDATES * wanted, len(mode.point))) @ mode.scale.T
        if wanted:
            points.append(_finite(value_and_grad, around, wanted))
    best = modes[0]
    metric = curvature_metric(best.vectors, best.stretch)
    discarded = len(modes) - len(kept) + lost
    note = f"Laplace approximation at the mode (gradient norm {best.gradient_norm:.1g}), "
    note += f"{metric.kind} metric ({metric.why})"
    if len(kept) > 1:
        note += f"; {len(kept)} modes were found and the chains shared out over them"
    if discarded:
        note += f"; {discarded} of {searches} searches ended nowhere that matters"
    caution = ""
    if len(modes) > 1:
        caution = (
            f"{searches} searches before sampling found {len(modes)} separate modes, of which {len(kept)} matter by "
            "their evidence; R-hat cannot see a mode that no chain has been in"
        )
    return Start(np.concatenate(points), metric, True, note, caution)


def _around_a_mode(value_and_grad, candidates, standard, num_chains, rng) -> Start | None:
    """Best mode, where most components are about standard normal: the scales of the others, and what stands out."""

    def gradient(point):
        return np.asarray(value_and_grad(point)[1])

    searches = [minimise(value_and_grad, candidate) for candidate in candidates[:VARIATIONAL_SEARCHES]]
    found = [one for one in searches if np.isfinite(one[1]) and one[2] < SETTLED]
    if not found:
        return None
    point, value, norm = min(found, key=lambda one: one[1])
    scale = np.ones(len(point))
    for i in np.flatnonzero(~standard):
        step = HESSIAN_STEP * max(1.0, abs(point[i])) * np.eye(len(point))[i]
        curvature = (gradient(point + step) - gradient(point - step))[i] / (2.0 * step[i])
        if curvature > 0:
            scale[i] = curvature**-0.5
    metric = scaled_metric(gradient, point[None], scale, rng)
    noise = rng.normal(size=(CANDIDATES * num_chains, len(point)))
    around = point + (metric.to_position(noise) if metric.kind == "low-rank" else scale * noise)
    note = f"around the mode (gradient norm {norm:.1g}), {metric.kind} metric ({metric.why})"
    worse = sum(one[1] > value + NEGLIGIBLE for one in searches) + len(searches) - len(found)
    if worse:
        note += f"; {worse} of {len(searches)} searches were worse and discarded"
    return Start(_finite(value_and_grad, around, num_chains), metric, True, note)


def _variational(value_and_grad, candidates, num_chains, rng, settled: bool) -> Start | None:
    """Mean-field normal approximation with fixed draws (Giordano et al. 2024, JMLR 25, 18), best of several.

    ``settled``: only searches that arrived; where a density cannot be normalised, none does.
    """
    size = len(candidates[0])
    half = rng.normal(size=(VARIATIONAL_DRAWS // 2, size))
    half /= np.sqrt(np.mean(half**2, axis=0))  # with their antipodes: the right mean and variance, exactly
    noise = np.concatenate([half, -half])

    def round_from(loc, log_scale):
        """Fit in units of the approximation there is, so that widths as different as 0.01 and 1000 do no harm."""
        unit = np.exp(log_scale)

        def objective(both):
            both = np.asarray(both)
            here, scale = loc + unit * both[:size], unit * np.exp(both[size:])
            values, gradients = zip(*(value_and_grad(here + scale * e) for e in noise), strict=True)
            slopes = np.stack([np.asarray(g) for g in gradients])
            if not np.isfinite(values).all():
                return np.inf, jnp.zeros(2 * size)
            slope = np.concatenate([slopes.mean(0) * unit, (slopes * noise).mean(0) * scale - 1.0])
            return float(np.mean(values)) - np.log(scale).sum(), jnp.asarray(slope)

        if not np.isfinite(objective(np.zeros(2 * size))[0]):
            return np.inf, loc, log_scale, np.inf
        both, value, norm = minimise(objective, np.zeros(2 * size), VARIATIONAL_ITERATIONS)
        return value, loc + unit * both[:size], log_scale + both[size:], norm

    found = []
    for candidate in candidates[:VARIATIONAL_SEARCHES]:
        for narrow in (-2.0, -5.0):
            with np.errstate(all="ignore"):
                value, loc, log_scale, norm = round_from(candidate, np.full(size, narrow))
                for _ in range(VARIATIONAL_ROUNDS - 1):
                    if np.isfinite(value):
                        value, loc, log_scale, norm = round_from(loc, log_scale)
            point = np.concatenate([loc, log_scale])
            if np.isfinite(value):
                if np.isfinite(point).all() and not (settled and norm > SETTLED):
                    found.append((value, point))
                break
    if not found:
        return None
    found.sort(key=lambda pair: pair[0])
    best = found[0][1]
    loc, scale = best[:size], np.exp(best[size:])
    points = loc + scale * rng.normal(size=(CANDIDATES * num_chains, size))
    metric = scaled_metric(lambda p: value_and_grad(p)[1], points[: VARIATIONAL_DRAWS // 2], scale, rng)
    note = f"mean-field normal approximation, {metric.kind} metric ({metric.why})"
    worse = sum(value > found[0][0] + NEGLIGIBLE for value, _ in found)
    if worse:
        note += f"; {worse} of {min(VARIATIONAL_SEARCHES, len(candidates))} searches were worse and discarded"
    return Start(_finite(value_and_grad, points, num_chains), metric, True, note)


def _is_finite(value_and_gradient) -> bool:
    value, gradient = value_and_gradient
    return bool(np.isfinite(value) and np.isfinite(gradient).all())


def _finite(value_and_grad, points, num_chains):
    """Keep the first points, one a chain, at which density and gradient are finite."""
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
