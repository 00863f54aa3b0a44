"""Initial metric of NUTS, estimated before the warm-up; `Adaptation` replaces it during the warm-up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

MAX_DENSE = 100  # parameters beyond which a dense metric costs more per step than it saves
# Parameters beyond which the first draws of a warm-up do not determine the covariance. The sampler's variables are then
# those in which the initial metric is a unit matrix, towards which a metric learnt from few draws is shrunk.
MAX_ADAPTED = 20
MAX_RANK = 20
# Parameters up to which the metric learnt in the warm-up is dense if `MAX_RANK` directions stand out from the diagonal.
# A logistic regression with 151 correlated parameters then has 2.2 times the effective draws per gradient, and a normal
# distribution of 120 with correlations of 0.95 between neighbours 60 times; 203 parameters of groups, of which 2
# directions stand out, would have 1.1 times, at twice the time.
MAX_LEARNT = 300
LANCZOS_STEPS = 40
# Ratio of curvatures above which a low-rank metric pays. Steps per draw scale with its square root, so it saves half.
MIN_RATIO = 4.0
RESCALE_ABOVE = 2.0  # curvature, relative to the diagonal metric, of a direction that is rescaled


@dataclass(frozen=True)
class Metric:
    """Inverse mass matrix at the start of the warm-up, and the sampler's variables.

    The sampler works in variables u of about unit width. For a dense or diagonal metric, position = scale * u. Two
    kinds are more general changes of variables, in which the sampler begins with a unit matrix: a low-rank metric is
    position = scale * (u + V (stretch - 1) V^T u), a rotated one position = scale * V (stretch * u).

    Attributes
    ----------
    kind : str
        ``"dense"``, ``"diagonal"``, ``"low-rank"`` or ``"rotated"``.
    inverse_mass : (size, size) or (size,)
        Inverse mass matrix, or its diagonal, for the sampler's variables.
    why : str
        Reason for the choice of this kind.
    scale, directions, stretch : (size,), (size, rank), (rank,)
        The change of variables; the columns of ``directions``, V, are orthonormal. An empty ``scale`` is 1.
    max_learnt : int
        Parameters up to which the metric learnt in the warm-up is dense if `MAX_RANK` directions stand out.
    """

    kind: str
    inverse_mass: np.ndarray
    why: str
    scale: np.ndarray = field(default_factory=lambda: np.ones(0))
    directions: np.ndarray = field(default_factory=lambda: np.ones((0, 0)))
    stretch: np.ndarray = field(default_factory=lambda: np.ones(0))
    max_learnt: int = MAX_LEARNT

    @property
    def dense(self) -> bool:
        """True if the inverse mass matrix is dense, False if it is diagonal."""
        return self.kind == "dense"

    @property
    def learnt_dense(self) -> bool:
        """True if the metric that the warm-up learns from here on is dense, False if it is diagonal."""
        size = max(len(self.scale), len(self.inverse_mass))
        return size <= MAX_DENSE or (size <= self.max_learnt and len(self.stretch) >= MAX_RANK)

    def to_position(self, u):
        """Return the unconstrained position of the sampler's variables, (..., size)."""
        if self.kind == "rotated":
            u = (self.stretch * u) @ self.directions.T
        elif self.kind == "low-rank":
            u = u + ((self.stretch - 1.0) * (u @ self.directions)) @ self.directions.T
        return self.scale * u if len(self.scale) else u

    def from_position(self, position):
        """Return the sampler's variables at an unconstrained position; inverse of `to_position`."""
        v = position / self.scale if len(self.scale) else position
        if self.kind == "rotated":
            return (v @ self.directions) / self.stretch
        if self.kind == "low-rank":
            return v + ((1.0 / self.stretch - 1.0) * (v @ self.directions)) @ self.directions.T
        return v

    def in_units(self, unit: np.ndarray) -> "Metric":
        """Return the metric for positions multiplied by ``unit``, (size,); the sampler's variables are the same."""
        return replace(self, scale=unit * self.scale if len(self.scale) else unit)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return all fields as arrays."""
        return {f"metric/{name}": np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Metric":
        """Return the metric that `to_arrays` stored."""
        fields = {n.removeprefix("metric/"): value for n, value in arrays.items() if n.startswith("metric/")}
        scale, directions, stretch = (fields[name] for name in ("scale", "directions", "stretch"))
        max_learnt = int(fields.get("max_learnt", MAX_DENSE))  # older versions learnt no larger dense metric
        kind, why = str(fields["kind"]), str(fields["why"])
        return cls(kind, fields["inverse_mass"], why, scale, directions, stretch, max_learnt)


def power_of_two(x: np.ndarray) -> np.ndarray:
    """Return the nearest powers of two; multiplication by them is exact."""
    return np.exp2(np.round(np.log2(x)))


def curvature_metric(vectors: np.ndarray, stretch: np.ndarray, unit: np.ndarray) -> Metric:
    """Return the metric of a covariance V diag(stretch^2) V^T in units (size,): dense, or rotated if large.

    It is dense up to `MAX_ADAPTED` parameters.
    """
    size = len(stretch)
    if size <= MAX_ADAPTED:
        factor = vectors * stretch
        width = power_of_two(np.linalg.norm(factor, axis=1))
        factor = factor / width[:, None]
        return Metric("dense", factor @ factor.T, f"{size} parameters, at most {MAX_ADAPTED}", unit * width)
    why = f"{size} parameters, {MAX_ADAPTED + 1} to {MAX_DENSE}"
    return Metric("rotated", np.ones(size), why, unit, vectors, stretch)


def scaled_metric(gradient: Callable, points: np.ndarray, scale: np.ndarray, rng: np.random.Generator) -> Metric:
    """Return a diagonal metric, or a low-rank-plus-diagonal one if the curvature differs much in a few directions.

    Parameters
    ----------
    gradient : callable
        (size,) -> (size,), gradient of minus the log density.
    points : (num, size)
        Typical points; the curvature is averaged over them, beyond `MAX_DENSE` parameters over the first two.
    scale : (size,)
        Standard deviation of each component in a diagonal approximation.
    rng : numpy.random.Generator
        Draws the first Lanczos vector.

    Returns
    -------
    Metric
        Low-rank if the curvatures of the scaled density differ by more than `MIN_RATIO`; beyond `MAX_LEARNT` parameters
        they are found by Lanczos iteration, which may miss small ones.
    """

    def curvature(v):
        step = scale * v * 1e-3 / max(np.linalg.norm(v) / np.sqrt(len(v)), 1e-300)
        differences = [np.asarray(gradient(p + step)) - np.asarray(gradient(p - step)) for p in points]
        return scale * np.mean(differences, axis=0) * np.linalg.norm(v) / np.sqrt(len(v)) / 2e-3

    def diagonal(why):
        unit = power_of_two(scale)
        return Metric("diagonal", (scale / unit) ** 2, why, unit)

    size = len(scale)
    if MAX_DENSE < size <= MAX_LEARNT:
        points = points[:2]
    values, vectors = _eigen(curvature, size) if size <= MAX_LEARNT else _lanczos(curvature, size, rng)
    if not np.isfinite(values).all():
        return diagonal("its curvature could not be measured")
    # Directions of negative curvature contain no information on the width.
    keep = (values > 0) & ((values < 1.0 / RESCALE_ABOVE) | (values > RESCALE_ABOVE))
    positive = values[values > 0]
    ratio = positive.max() / positive.min() if len(positive) else 1.0
    if ratio < MIN_RATIO or not keep.any():
        return diagonal(f"curvatures differ by a factor of {ratio:.1f} once each is scaled")
    order = np.argsort(-np.abs(np.log(values[keep])))[:MAX_RANK]
    directions, stretch = vectors[:, keep][:, order], values[keep][order] ** -0.5
    why = f"{len(order)} directions stand out from the diagonal: curvatures differ by a factor of {ratio:.0f}"
    return Metric("low-rank", np.ones(len(scale)), why, scale, directions, stretch)


def _eigen(matvec, size):
    """Return all eigenvalues and eigenvectors of a symmetric matrix from its columns, more exactly than Lanczos."""
    matrix = np.stack([matvec(v) for v in np.eye(size)])
    if not np.isfinite(matrix).all():
        return np.array([np.nan]), np.eye(size)[:, :1]
    return np.linalg.eigh(0.5 * (matrix + matrix.T))


def _lanczos(matvec, size, rng):
    """Return converged extreme eigenvalues and eigenvectors of a symmetric matrix, by reorthogonalised Lanczos."""
    # Not `scipy.sparse.linalg.eigsh`: it must know their number, and of 300 curvatures from 0.01 to 100 it finds 10 by
    # 51 products (two gradients each and more), where these 40 give 19.
    steps = min(LANCZOS_STEPS, size)
    basis = np.zeros((size, steps))
    diagonal, off_diagonal = np.zeros(steps), np.zeros(steps)
    v = rng.normal(size=size)
    v /= np.linalg.norm(v)
    for k in range(steps):
        basis[:, k] = v
        w = matvec(v)
        if not np.isfinite(w).all():
            return np.array([np.nan]), basis[:, :1]
        diagonal[k] = v @ w
        for _ in range(2):  # one pass leaves rounding errors that grow
            w = w - basis[:, : k + 1] @ (basis[:, : k + 1].T @ w)
        off_diagonal[k] = np.linalg.norm(w)
        if off_diagonal[k] < 1e-8 * np.abs(diagonal).max():
            steps = k + 1
            break
        v = w / off_diagonal[k]
    tridiagonal = (
        np.diag(diagonal[:steps]) + np.diag(off_diagonal[: steps - 1], 1) + np.diag(off_diagonal[: steps - 1], -1)
    )
    values, coefficients = np.linalg.eigh(tridiagonal)
    residual = np.abs(off_diagonal[steps - 1] * coefficients[-1]) if steps < size else np.zeros(steps)
    converged = residual < 0.1 * np.abs(values)
    if not converged.any():
        return np.ones(1), basis[:, :1]
    return values[converged], np.linalg.qr(basis[:, :steps] @ coefficients[:, converged])[0]
