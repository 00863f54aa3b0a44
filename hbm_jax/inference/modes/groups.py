"""Groups of points between which a density does not fall: the modes of the density that the points show."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

NEIGHBOURS = 8  # nearest points to which each point may be joined
VALLEY = 3.0  # depth in log density of the valley between two modes
FRACTIONS = (0.25, 0.5, 0.75)  # of the distance of two points, at which the density between them is evaluated
SMALLEST = 0.01  # smallest fraction of the points in a separate mode


@dataclass(frozen=True)
class Groups:
    """Points and the mode of each: those of a search for modes, followed by draws of the chains of a fit.

    Attributes
    ----------
    points : (num, size)
        The points.
    labels : (num,)
        Mode of each point, from 0.
    num_found : int
        Number of points of the search.
    num_chains : int
        Number of chains of the other points, which have as many points each.
    """

    points: np.ndarray
    labels: np.ndarray
    num_found: int
    num_chains: int

    @property
    def num(self) -> int:
        """Number of modes."""
        return int(self.labels.max()) + 1

    @property
    def in_mode(self) -> np.ndarray:
        """Membership of each point in each mode, (num, num_modes)."""
        return np.equal.outer(self.labels, np.arange(self.num))

    @property
    def is_found(self) -> np.ndarray:
        """Modes with points of the search, (num_modes,)."""
        return np.isin(np.arange(self.num), self.labels[: self.num_found])

    @property
    def share_of_draws(self) -> np.ndarray:
        """Fraction of the draws in each mode, (num_modes,)."""
        return self.in_mode[self.num_found :].mean(axis=0)

    def chains_within(self, mode: int) -> np.ndarray:
        """Return which chains have all their points in a mode, (num_chains,)."""
        return (self.labels[self.num_found :].reshape(self.num_chains, -1) == mode).all(axis=1)

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """Return the mode, (num,), of the point of the groups nearest to each of ``points``, (num, size)."""
        unit = scale(self.points)
        return self.labels[KDTree(self.points / unit).query(points / unit)[1]]


def scale(points: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each component of points (num, size); 1 for components that do not vary."""
    width = points.std(axis=0)
    return np.where(width > 0, width, 1.0)


def group(points: np.ndarray, log_density: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the group of each point, (num,): those between which the density does not fall by more than `VALLEY`.

    Parameters
    ----------
    points : (num, size)
        The points.
    log_density : callable
        (num, size) -> (num,).

    Notes
    -----
    Points are joined to their neighbours in the order of the lowest density between the two. Two groups are joined if
    it is at most `VALLEY` below the highest density of either (Chazal et al. 2013, J. ACM 60, 41): a chain of points
    through a valley does not join the modes on its sides.
    """
    num, scaled = len(points), points / scale(points)
    ends = log_density(points)

    def edges(first, second) -> tuple[np.ndarray, ...]:
        """Return pairs of points, with the lowest density between the two."""
        step = points[second] - points[first]
        between = np.min([log_density(points[first] + f * step) for f in FRACTIONS], axis=0)
        return first, second, np.minimum(between, np.minimum(ends[first], ends[second]))

    neighbours = KDTree(scaled).query(scaled, k=min(NEIGHBOURS + 1, num))[1][:, 1:]
    all_edges = edges(np.repeat(np.arange(num), neighbours.shape[1]), neighbours.ravel())
    groups = _joined(all_edges, ends)
    while groups.max():
        # Also try the nearest pairs between each group and the others, because neighbours alone may not connect it.
        pairs = []
        for number in range(groups.max() + 1):
            inside, outside = np.flatnonzero(groups == number), np.flatnonzero(groups != number)
            distances, nearest = KDTree(scaled[outside]).query(scaled[inside])
            closest = np.argsort(distances)[:NEIGHBOURS]
            pairs.append((inside[closest], outside[nearest[closest]]))
        new_edges = edges(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
        all_edges = tuple(np.concatenate(part) for part in zip(all_edges, new_edges, strict=True))
        previous, groups = groups, _joined(all_edges, ends)
        if groups.max() == previous.max():
            break
    is_large = (np.bincount(groups) >= SMALLEST * num)[groups]
    if is_large.any() and not is_large.all():
        nearest = KDTree(scaled[is_large]).query(scaled[~is_large])[1]
        groups[~is_large] = groups[is_large][nearest]
    return np.unique(groups, return_inverse=True)[1]


def _joined(edges: tuple[np.ndarray, ...], density: np.ndarray) -> np.ndarray:
    """Return the group of each point, (num,), from the log density at the points.

    ``edges`` are the first and second points of pairs, and the lowest log density between these.
    """
    first, second, lowest = edges
    parent, highest = list(range(len(density))), density.tolist()

    def root(i):
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for k in np.argsort(-lowest, kind="stable").tolist():
        a, b = root(int(first[k])), root(int(second[k]))
        if highest[a] < highest[b]:
            a, b = b, a
        if a != b and lowest[k] >= highest[b] - VALLEY:
            parent[b] = a
    return np.unique([root(i) for i in range(len(density))], return_inverse=True)[1]
