"""The metric of NUTS: how far it may go in each direction, known before the warm-up begins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

MAX_DENSE = 100  # parameters; beyond, a dense metric costs more a step than it saves
# A covariance of more parameters than this is not known from the draws of a warm-up: of 57 parameters, adapted by one
# chain's 400 draws, its eigenvalues are off by up to a factor of four, and trajectories are twice as long as needed.
MAX_ADAPTED = 20
MAX_RANK = 20
LANCZOS_STEPS = 40
# Steps a draw go with the root of the ratio of curvatures: a low-rank metric has to save half of them to be worth it.
WORTH_IT = 4.0
OUTSTANDING = 2.0  # curvature, relative to what the diagonal expects, of a direction that gets a scale of its own


@dataclass(frozen=True)
class Metric:
    """Inverse mass matrix that the warm-up begins with.

    Two kinds are changes of variables in which the sampler adapts a diagonal metric: a low-rank metric is position =
    scale * (u + V (stretch - 1) V^T u), a rotated one position = V (stretch * u).

    Attributes
    ----------
    kind : str
        ``"dense"``, ``"diagonal"``, ``"low-rank"`` or ``"rotated"``.
    inverse_mass : (size, size) or (size,)
        Of what the sampler sees.
    why : str
        The reason for the choice.
    scale, directions, stretch : (size,), (size, rank), (rank,)
        Of a change of variables; the columns of ``directions``, V, are orthonormal.
    """

    kind: str
    inverse_mass: np.ndarray
    why: str
    scale: np.ndarray = field(default_factory=lambda: np.ones(0))
    directions: np.ndarray = field(default_factory=lambda: np.ones((0, 0)))
    stretch: np.ndarray = field(default_factory=lambda: np.ones(0))

    @property
    def dense(self) -> bool:
        """Whether the sampler adapts a dense matrix."""
        return self.kind == "dense"

    def to_position(self, u):
        """Unconstrained position of the sampler's variables, (..., size)."""
        if self.kind == "rotated":
            return (self.stretch * u) @ self.directions.T
        if self.kind != "low-rank":
            return u
        return self.scale * (u + ((self.stretch - 1.0) * (u @ self.directions)) @ self.directions.T)

    def from_position(self, position):
        """Inverse of `to_position`."""
        if self.kind == "rotated":
            return (position @ self.directions) / self.stretch
        if self.kind != "low-rank":
            return position
        v = position / self.scale
        return v + ((1.0 / self.stretch - 1.0) * (v @ self.directions)) @ self.directions.T

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays."""
        return {f"metric/{name}": np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Metric":
        """Inverse of `to_arrays`."""
        own = {n.removeprefix("metric/"): value for n, value in arrays.items() if n.startswith("metric/")}
        arrays_of = [own[name] for name in ("scale", "directions", "stretch")]
        return cls(str(own["kind"]), own["inverse_mass"], str(own["why"]), *arrays_of)


def curvature_metric(vectors: np.ndarray, stretch: np.ndarray) -> Metric:
    """Metric of a mode, whose covariance is V diag(stretch^2) V^T: dense, or rotated where it is not to be adapted."""
    size = len(stretch)
    if size <= MAX_ADAPTED:
        factor = vectors * stretch
        return Metric("dense", factor @ factor.T, f"{size} parameters, at most {MAX_ADAPTED}")
    why = f"{size} parameters, {MAX_ADAPTED + 1} to {MAX_DENSE}"
    return Metric("rotated", np.ones(size), why, np.ones(size), vectors, stretch)


def scaled_metric(gradient: Callable, points: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> Metric:
    """Diagonal metric, or low-rank-plus-diagonal where a few directions stand out.

    Parameters
    ----------
    gradient : callable
        (size,) -> (size,), of minus the log density.
    points : (num, size)
        Typical points; curvature is averaged over them.
    scale : (size,)
        Standard deviation of each component on its own.
    rng : numpy.random.Generator
        For the first Lanczos vector.

    Returns
    -------
    Metric
        Low-rank if the curvatures of the scaled density, by Lanczos iteration, differ by more than `WORTH_IT`.
    """

    def curvature(v):
        step = scale * v * 1e-3 / max(np.linalg.norm(v) / np.sqrt(len(v)), 1e-300)
        ends = [np.asarray(gradient(p + step)) - np.asarray(gradient(p - step)) for p in points]
        return scale * np.mean(ends, axis=0) * np.linalg.norm(v) / np.sqrt(len(v)) / 2e-3

    diagonal = Metric("diagonal", scale**2, "")
    values, vectors = _lanczos(curvature, len(scale), rng)
    if not np.isfinite(values).all():
        return Metric("diagonal", scale**2, "its curvature could not be measured")
    # Directions in which the density is not even locally a peak say nothing of its width.
    keep = (values > 0) & ((values < 1.0 / OUTSTANDING) | (values > OUTSTANDING))
    positive = values[values > 0]
    ratio = positive.max() / positive.min() if len(positive) else 1.0
    if ratio < WORTH_IT or not keep.any():
        return Metric(
            "diagonal", diagonal.inverse_mass, f"curvatures differ by a factor of {ratio:.1f} once each is scaled"
        )
    order = np.argsort(-np.abs(np.log(values[keep])))[:MAX_RANK]
    chosen, stretch = vectors[:, keep][:, order], values[keep][order] ** -0.5
    why = f"{len(order)} directions stand out from the diagonal: curvatures differ by a factor of {ratio:.0f}"
    return Metric("low-rank", np.ones(len(scale)), why, scale, chosen, stretch)


def _lanczos(matvec, size, rng):
    """Converged extreme eigenvalues and eigenvectors of a symmetric matrix, with full reorthogonalisation."""
    steps = min(LANCZOS_STEPS, size)
    basis = np.zeros((size, steps))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    v = rng.normal(size=size)
    v /= np.linalg.norm(v)
    for k in range(steps):
        basis[:, k] = v
        w = matvec(v)
        if not np.isfinite(w).all():
            return np.array([np.nan]), basis[:, :1]
        diagonal[k] = v @ w
        for _ in range(2):  # once leaves rounding errors that grow
            w = w - basis[:, : k + 1] @ (basis[:, : k + 1].T @ w)
        beside[k] = np.linalg.norm(w)
        if beside[k] < 1e-8 * np.abs(diagonal).max():
            steps = k + 1
            break
        v = w / beside[k]
    tridiagonal = np.diag(diagonal[:steps]) + np.diag(beside[: steps - 1], 1) + np.diag(beside[: steps - 1], -1)
    values, inner = np.linalg.eigh(tridiagonal)
    residual = np.abs(beside[steps - 1] * inner[-1]) if steps < size else np.zeros(steps)
    converged = residual < 0.1 * np.abs(values)
    vectors, _ = np.linalg.qr(basis[:, :steps] @ inner[:, converged]) if converged.any() else (basis[:, :0], None)
    return (values[converged], vectors) if converged.any() else (np.ones(1), basis[:, :1])
