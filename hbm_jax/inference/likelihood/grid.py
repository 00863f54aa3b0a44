"""Profile likelihood on a grid of one or two parameters."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from hbm_jax.blas import one_blas_thread
from hbm_jax.inference.arguments import plain_arguments
from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.likelihood.profile import MaximumLikelihood
from hbm_jax.inference.likelihood.search import SAME, Point, newton
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.names import choose

REACH = 13.0  # rise of -2 log likelihood at the ends of the default range, if the likelihood were normal
COVERED = 9.21  # rise that the default range must reach, 99 % of two parameters
MAX_SWEEPS = 6  # comparisons of all points with their neighbours
NUM_STARTS = 8  # draws of the prior from which corners of the grid are searched too; as many as by default in a fit
WIDENINGS = 4  # times the default range is widened
MAX_POINTS = 40_000


@dataclass(frozen=True)
class ProfileGrid:
    """Profile likelihood of one or two parameters on a grid.

    Attributes
    ----------
    names : tuple of str
        The parameters.
    axes : tuple of arrays
        Values of each parameter, increasing.
    rise : (n,) or (n, m)
        Minus twice the log likelihood, maximised over all other parameters, relative to that of the best fit: the
        difference of the fit statistic. NaN where the maximisation did not converge. Negative where the likelihood is
        higher than that of the best fit.
    best : (1,) or (2,)
        Values of the best fit.
    values : dict of str to array
        Values of all other parameters at each point, by label, in the shape of ``rise``.
    note : str
        Failed points and maxima above the best fit, or an empty text.
    """

    names: tuple[str, ...]
    axes: tuple[np.ndarray, ...]
    rise: np.ndarray = field(repr=False)
    best: np.ndarray
    values: dict[str, np.ndarray] = field(repr=False)
    note: str


def profile_grid(
    program: Callable,
    *args: Any,
    best: MaximumLikelihood,
    grid: Mapping[str, ArrayLike | int],
    progress: Progress = False,
) -> ProfileGrid:
    """Maximise a likelihood over all other parameters at each point of a grid of one or two parameters.

    Parameters
    ----------
    program, *args
        As in `hbm_jax.maximum_likelihood`.
    best : MaximumLikelihood
        The best fit of this program and these data.
    grid : mapping of str to array or int
        One or two parameters, by their labels in ``best.table``, with their increasing values; or with a number of
        values, whose range is chosen from the errors: it extends until the statistic has risen by more than 9.21, or to
        the bounds of the priors.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.

    Raises
    ------
    ValueError
        For no or more than two parameters, an unknown one, values that do not increase or are outside the prior, or
        more than 40 000 points.

    Notes
    -----
    The search starts at the grid point next to the best fit and continues from solved points to their neighbours.
    Corners of the grid are also searched from eight draws of the prior. In the end each point is compared with its
    neighbours' values of the other parameters, and searched again from those with a higher likelihood.

    Examples
    --------
    >>> import numpy as np, numpyro, numpyro.distributions as dist
    >>> from hbm_jax.inference import maximum_likelihood
    >>> def program(y):
    ...     mean = numpyro.sample("mean", dist.Uniform(-10.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mean, 2.0).expand([4]).to_event(1), obs=y)
    >>> y = np.array([1.0, 2.0, 3.0, 4.0])
    >>> best = maximum_likelihood(program, y, errors=None)
    >>> profile_grid(program, y, best=best, grid={"mean": [1.5, 2.5, 4.5]}).rise.round(2).tolist()
    [1.0, 0.0, 4.0]
    """
    if not 1 <= len(grid) <= 2:
        raise ValueError(f"profile_grid: expected one or two parameters; found {len(grid)}.")
    for name in grid:
        choose("parameter", name, tuple(best.table.index))
    args = plain_arguments(program, args)
    with jax.enable_x64(True), one_blas_thread(), ProgressLine(progress) as progress_line:
        surface = _Surface(Likelihood(program, args, 0, NUM_STARTS), best, tuple(grid), progress_line)
        axes = surface.axes([grid[name] for name in grid])
        for _ in range(WIDENINGS):
            surface.solve(axes)
            wider = surface.wider(axes, [np.ndim(values) == 0 for values in grid.values()])
            if wider is None:
                break
            axes = wider
        else:
            surface.solve(axes)
        return surface.result(axes)


class _Surface:
    """Solved points of a grid: for each the values of all parameters and the height above the minimum."""

    def __init__(self, likelihood: Likelihood, best: MaximumLikelihood, names: tuple[str, ...], progress: ProgressLine):
        self.likelihood, self.table, self.names, self.progress = likelihood, best.table, names, progress
        self.index = [likelihood.labels.index(name) for name in names]
        self.best = best.table["value"].to_numpy(float)
        self.minimum = likelihood.value_and_grad(self.best)[0]
        self.limits = np.stack([likelihood.lower[self.index], likelihood.upper[self.index]], axis=1)
        self.slopes = self._slopes(best.covariance.to_numpy(float))
        self.level = float(ndtri(0.5 + 0.5 * best.level)) ** 2
        self.points: dict[tuple[int, ...], Point] = {}

    def _slopes(self, covariance: np.ndarray) -> np.ndarray:
        """Return the change of all parameters with those of the grid, (size, number of names), for a normal shape."""
        block = covariance[np.ix_(self.index, self.index)]
        if not np.isfinite(block).all() or np.linalg.cond(block) > 1e12:
            return np.zeros((len(covariance), len(self.index)))
        return np.nan_to_num(covariance[:, self.index] @ np.linalg.inv(block))

    def axes(self, values: list[Any]) -> list[np.ndarray]:
        """Return the values of each parameter, checked, or of the default range."""
        axes = []
        for name, value, limits in zip(self.names, values, self.limits, strict=True):
            if np.ndim(value) == 0:
                if value < 2 or value % 1:
                    raise ValueError(f"profile_grid: {name}: expected 2 values or more; found {value}.")
                axes.append(np.linspace(*self._default_range(name, limits), int(value)))
                continue
            axis = np.asarray(value, float)
            if axis.ndim != 1 or not axis.size or not (np.diff(axis) > 0).all():
                raise ValueError(f"profile_grid: {name}: expected increasing numbers; found {value}.")
            if not (axis[0] >= limits[0] and axis[-1] <= limits[1]):
                raise ValueError(
                    f"profile_grid: {name}: expected values within the limits of its prior, {limits[0]:g} to "
                    f"{limits[1]:g}; found {axis[0]:g} to {axis[-1]:g}."
                )
            axes.append(axis)
        num = math.prod(len(axis) for axis in axes)
        if num > MAX_POINTS:
            raise ValueError(f"profile_grid: expected at most {MAX_POINTS} points; found {num}.")
        return axes

    def _default_range(self, name: str, limits: np.ndarray) -> tuple[float, float]:
        """Return the values at which -2 log likelihood is `REACH` above its minimum, if it is a parabola on each side.

        They lie within the limits of the prior.
        """
        row = self.table.loc[name]
        std = row["std"] * np.sqrt(REACH)
        ends = []
        for end, limit, sign in zip(("lower", "upper"), limits, (-1.0, 1.0), strict=True):
            reach = abs(row[end] - row["value"]) * np.sqrt(REACH / self.level)
            if not (np.isfinite(reach) and reach > 0) or row[f"{end}_open"]:
                reach = std if np.isfinite(std) else abs(limit - row["value"])
            if not np.isfinite(reach):
                raise ValueError(f"profile_grid: {name}: expected its values, because it has no error; found a number.")
            ends.append(sign * min(sign * row["value"] + reach, sign * limit))
        return ends[0], ends[1]

    def wider(self, axes: list[np.ndarray], is_default: list[bool]) -> list[np.ndarray] | None:
        """Return axes of a wider range if the default one does not reach `COVERED`; None if it does."""
        rise, result, changed = self.rise(axes), [], False
        for number, (axis, default, limits) in enumerate(zip(axes, is_default, self.limits, strict=True)):
            low, high = axis[0], axis[-1]
            for edge, limit in ((0, limits[0]), (-1, limits[1])):
                lowest = np.nanmin(np.append(np.take(rise, edge, axis=number), np.inf))
                if default and axis[edge] != limit and lowest < COVERED:
                    changed, span = True, 0.5 * (axis[-1] - axis[0])
                    low, high = (max(low - span, limit), high) if edge == 0 else (low, min(high + span, limit))
            result.append(np.linspace(low, high, len(axis)))
        return result if changed else None

    def solve(self, axes: list[np.ndarray]) -> None:
        """Maximise the likelihood at all points of the grid."""
        shape = tuple(len(axis) for axis in axes)
        center = [int(np.abs(axis - self.best[i]).argmin()) for axis, i in zip(axes, self.index, strict=True)]
        order = sorted(np.ndindex(shape), key=lambda cell: sum((a - b) ** 2 for a, b in zip(cell, center, strict=True)))
        self.points = {}
        for number, cell in enumerate(order):
            self.progress.show(f"profile of {', '.join(self.names)}, {number + 1} of {len(order)} points")
            starts = [self.points[near].x for near in neighbours(cell, shape) if near in self.points][:2]
            position = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
            self.points[cell] = self._first_converged(position, starts or [self.best])
        self._search_corners(axes)
        for sweep in range(MAX_SWEEPS):
            if not self._compare(axes, order[:: -1 if sweep % 2 == 0 else 1]):
                break

    def _search_corners(self, axes: list[np.ndarray]) -> None:
        """Search at the corners of the grid from draws of the prior too, for maxima far from that of the best fit."""
        for cell in itertools.product(*({0, len(axis) - 1} for axis in axes)):
            position = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
            for start in self.likelihood.starts:
                self._improve(cell, self._moved(start, position))

    def _compare(self, axes: list[np.ndarray], order: list[tuple[int, ...]]) -> bool:
        """Search again where the other parameters of a neighbour have a higher likelihood.

        Return True if any point improved.
        """
        improved = False
        for cell in order:
            position = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
            for near in neighbours(cell, tuple(len(axis) for axis in axes)):
                start, point = self._moved(self.points[near].x, position), self.points[cell]
                if not point.converged or self.likelihood.value_and_grad(start)[0] < point.value - SAME:
                    improved |= self._improve(cell, start)
        return improved

    def _improve(self, cell: tuple[int, ...], start: np.ndarray) -> bool:
        """Search from a start, and keep the result if it is better than that of the cell."""
        candidate, point = newton(self.likelihood, start, self.index), self.points[cell]
        if not candidate.converged or (point.converged and candidate.value > point.value - SAME):
            return False
        self.points[cell] = candidate
        return True

    def _moved(self, x: np.ndarray, position: np.ndarray, slopes: Any = 0.0) -> np.ndarray:
        """Return parameters moved to a grid point, the others along the degeneracy direction or unchanged."""
        start = x + np.broadcast_to(slopes, (len(x), len(position))) @ (position - x[self.index])
        start[self.index] = position
        return np.clip(start, self.likelihood.lower, self.likelihood.upper)

    def _first_converged(self, position: np.ndarray, starts: list[np.ndarray]) -> Point:
        """Return the first point that converges, of searches from each start; without one, the last point."""
        point = Point(self._moved(starts[0], position), np.inf, False)
        for start in starts:
            for slopes in (self.slopes, 0.0):
                point = newton(self.likelihood, self._moved(start, position, slopes), self.index)
                if point.converged:
                    return point
        return point

    def rise(self, axes: list[np.ndarray]) -> np.ndarray:
        """Return the rise of -2 log likelihood on the grid."""
        rise = np.full([len(axis) for axis in axes], np.nan)
        for cell, point in self.points.items():
            if point.converged:
                rise[cell] = 2.0 * (point.value - self.minimum)
        return rise

    def result(self, axes: list[np.ndarray]) -> ProfileGrid:
        """Return the grid with its notes."""
        rise, notes = self.rise(axes), []
        failed = int(np.isnan(rise).sum())
        if failed:
            notes.append(f"{failed} of {rise.size} points did not converge")
        if np.nanmin(np.append(rise, 0.0)) < -2.0 * SAME:
            cell = np.unravel_index(np.nanargmin(rise), rise.shape)
            where = ", ".join(f"{n} = {axis[i]:.5g}" for n, axis, i in zip(self.names, axes, cell, strict=True))
            notes.append(f"the likelihood is higher than that of the best fit by {-0.5 * rise[cell]:.3g} at {where}")
        values = {
            label: np.array([self.points[cell].x[i] for cell in np.ndindex(rise.shape)]).reshape(rise.shape)
            for i, label in enumerate(self.likelihood.labels)
            if i not in self.index
        }
        return ProfileGrid(self.names, tuple(axes), rise, self.best[self.index], values, "; ".join(notes))


def neighbours(cell: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the cells next to a cell, along each axis of a grid."""
    near = []
    for axis, size in enumerate(shape):
        for step in (-1, 1):
            position = cell[axis] + step
            if 0 <= position < size:
                near.append((*cell[:axis], position, *cell[axis + 1 :]))
    return near
