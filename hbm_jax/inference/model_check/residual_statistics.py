"""Statistics of the residuals of measured and replicated data.

Arrays of residuals are (element, pool): column 0 of the pool is the measured data set, the others are replicates. Every
step treats the columns alike, so that under the model the rank of column 0 among them is uniform.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from hbm_jax.inference.model_check.p_values import normal_scores
from hbm_jax.inference.model_check.replicates import MAX_COMPONENTS
from hbm_jax.inference.sampler.ensemble.convergence import ranks

MAX_SKEWNESS, MAX_KURTOSIS = 0.3, 1.0  # median over elements, above which residuals are normal scores
MAX_COVARIATES = 16  # numeric ones of one site, in the order of the fields
MIN_ELEMENTS = 8  # for a dependence on a covariate
MIN_PER_BIN, MAX_BINS = 10, 8
NEARLY_EQUAL = 0.9995  # correlation of ranks above which a field repeats observed values or another field
MIN_RATIO = 4.0  # variance of expected values or scatters between elements, relative to that from few replicates
SORTED = 0.7  # correlation of ranks above which a table counts as sorted by observed values
FAR = 3.0  # standard deviations

FAMILIES = {
    "width": "distribution",
    "skewness": "distribution",
    "tails": "distribution",
    "largest": "distribution",
    "far": "distribution",
    "low end": "distribution",
    "high end": "distribution",
    "low end of maxima": "distribution",
    "high end of minima": "distribution",
    "low end of means": "distribution",
    "high end of means": "distribution",
    "level": "trend",
    "trend": "trend",
    "bins": "trend",
    "curvature": "trend",
    "scatter trend": "scatter",
    "scatter bins": "scatter",
    "groups": "groups",
    "group": "groups",
    "scatter of groups": "groups",
    "neighbours": "neighbours",
}
"""Family of each kind of statistic."""

WEIGHTS = {
    "skewness": 20.0, "tails": 10.0, "trend": 2.0, "bins": 2.0, "scatter trend": 2.0,
    "low end of maxima": 3.0, "high end of minima": 3.0, "low end of means": 3.0, "high end of means": 3.0,
}  # fmt: skip
"""Weights of kinds of statistics in the combined p-value, where they are not 1: outliers and missing objects would be
lost among the statistics of covariates, of which there are several."""


class Residuals(NamedTuple):
    """Standardised residuals of one component of a site.

    Attributes
    ----------
    label, component : str
        Name of the quantity in sentences, and the component of the site.
    values : (element, pool)
        Zero mean and unit variance over the pool.
    elements : (element,)
        Position in the flattened site.
    mean, spread : (element,)
        Mean and standard deviation of the replicates; empty if they have no meaning.
    beyond : dict of str to (pool,)
        For each data set of the pool, the number of values expected below its smallest value (``"low end"``) or above
        its largest (``"high end"``): large if a selection has removed small or large values. The same of the maxima,
        minima and means of groups, because a selection may act on these. Empty if ``mean`` is.
    """

    label: str
    component: str
    values: np.ndarray
    elements: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    beyond: Mapping[str, np.ndarray]


class Covariate(NamedTuple):
    """Numbers, or codes of groups with their labels, on which residuals may depend; one for each element of a site."""

    name: str
    values: np.ndarray
    labels: tuple[str, ...] = ()


class Statistic(NamedTuple):
    """Values of a statistic over the pool; large values of either sign are unusual if it is two-sided."""

    kind: str
    residuals: str
    covariate: str
    values: np.ndarray
    two_sided: bool


def residuals_of(
    pool: np.ndarray, label: str, valid: np.ndarray | None = None, group: np.ndarray | None = None
) -> Residuals | None:
    """Standardise values (pool, element) of valid elements; None if no element varies.

    Constant elements, and elements with a value that is not finite, are left out. If the replicates are far from
    normal, such as small counts, the residuals are normal scores. ``group`` (element,), in ascending order, are objects
    of several elements.
    """
    values = np.asarray(pool, dtype=np.float64).reshape(len(pool), -1).T
    usable = np.isfinite(values).all(axis=1)
    usable &= True if valid is None else valid
    index = np.flatnonzero(usable)
    values = values[index]
    mean, spread = values.mean(axis=1), values.std(axis=1)
    varies = spread > 1e-12 * np.maximum(np.abs(mean), 1e-300)
    if not varies.any():
        return None
    index, mean, spread = index[varies], mean[varies], spread[varies]
    scaled = ((values[varies] - mean[:, None]) / spread[:, None]).astype(np.float32)
    square = scaled * scaled
    skewness, kurtosis = (square * scaled).mean(axis=1), (square * square).mean(axis=1) - 3.0
    if np.median(np.abs(skewness)) > MAX_SKEWNESS or np.median(kurtosis) > MAX_KURTOSIS:
        scaled = normal_scores(scaled).astype(np.float32)
        scaled = (scaled - scaled.mean(axis=1, keepdims=True)) / scaled.std(axis=1, keepdims=True)
    beyond = _expected_beyond(values[varies], None if group is None else group[index])
    return Residuals(label, label, scaled, index, mean, spread, beyond)


def _expected_beyond(values: np.ndarray, group: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return `Residuals.beyond` of values (element, pool); ``group`` (element,) is the object of each, in order."""
    beyond = {"low end": expected_below(values), "high end": expected_below(-values)}
    if group is None or len(starts := np.flatnonzero(np.diff(group, prepend=-1))) < 2:
        return beyond
    sizes = np.diff(starts, append=len(group))[:, None]
    means = np.add.reduceat(values, starts, axis=0) / sizes
    return beyond | {
        "low end of maxima": expected_below(np.maximum.reduceat(values, starts, axis=0)),
        "high end of minima": expected_below(-np.minimum.reduceat(values, starts, axis=0)),
        "low end of means": expected_below(means),
        "high end of means": expected_below(-means),
    }


def expected_below(values: np.ndarray) -> np.ndarray:
    """Return the number of values expected below the smallest one of each data set, (element, pool) -> (pool,).

    The expectation is the mean over all data sets. For independent values it has nearly an exponential distribution.
    """
    smallest = values.min(axis=0)
    lowest = np.sort(values[values < smallest.max()])
    return np.searchsorted(lowest, smallest) / values.shape[1]


def fields_of(arg: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each field of a container, table or mapping, nested to ``depth``.

    A field whose metadata have ``"columns"`` is divided into columns of these names along its last axis. An array that
    is not in a container has an empty name.
    """
    if isinstance(arg, pd.DataFrame):
        yield from ((str(name), arg[name].to_numpy()) for name in arg.columns)
        return
    if isinstance(arg, Mapping):
        items = [(str(name), value) for name, value in arg.items()]
    elif dataclasses.is_dataclass(arg) and not isinstance(arg, type):
        items = []
        for item in dataclasses.fields(arg):
            value, columns = getattr(arg, item.name), item.metadata.get("columns")
            items += [(item.name, value)] if columns is None else [(c, value[..., k]) for k, c in enumerate(columns)]
    elif hasattr(arg, "_asdict"):
        items = list(arg._asdict().items())
    elif isinstance(arg, tuple | list) and arg and all(dataclasses.is_dataclass(entry) for entry in arg):
        items = [(str(getattr(entry, "name", i)), entry) for i, entry in enumerate(arg)]
    else:
        yield "", arg
        return
    lists = [value for _, value in items if isinstance(value, tuple | list) and value]
    texts_by_length = {len(value): value for value in lists if all(isinstance(entry, str) for entry in value)}
    for name, value in items:
        nested = dataclasses.is_dataclass(value) or isinstance(value, Mapping) or hasattr(value, "_asdict")
        nested |= isinstance(value, tuple | list) and bool(value) and dataclasses.is_dataclass(value[0])
        if nested and depth:
            prefix = f"{name} " if isinstance(arg, tuple | list) else ""  # to distinguish entries of the same kind
            for key, field in fields_of(value, depth - 1):
                yield f"{prefix}{key}".removesuffix(" index"), field  # the ``index`` of a group names the group itself
        elif not nested:
            yield from _named_columns(name, value, texts_by_length)


def _named_columns(name: str, value: Any, texts: Mapping[int, Sequence[str]]) -> Iterator[tuple[str, Any]]:
    """Yield name and values of a field; a matrix is divided into named columns, and codes are replaced by labels.

    The names or labels are the sequence of ``texts``, which are by length, with as many entries as there are columns or
    codes. Without one, the field is unchanged.
    """
    array: np.ndarray = value if isinstance(value, np.ndarray) else np.zeros(0)
    shape = array.shape
    columns = texts.get(shape[-1]) if len(shape) > 1 and shape[-1] != shape[-2] else None
    labels = texts.get(int(array.max()) + 1) if array.ndim == 1 and array.dtype.kind == "i" and len(array) else None
    if columns is not None and len(array) != len(columns):
        yield from ((str(column), array[..., k]) for k, column in enumerate(columns))
    elif labels is not None and len(labels) != len(array) and array.min() >= 0:
        yield name, np.asarray(labels)[array]
    else:
        yield name, value


def find_covariates(
    args: Sequence[Any],
    shape: tuple[int, ...],
    observed: Sequence[np.ndarray],
    axes: Sequence[str],
    components: Sequence[str] = (),
) -> tuple[list[Covariate], list[Covariate]]:
    """Find covariates of the residuals of a site among the data of a program.

    Parameters
    ----------
    args : sequence
        Arguments of the program: containers, tables, mappings, arrays.
    shape : tuple of int
        Shape of the site without its components.
    observed : sequence of arrays
        Observed values by component, of that shape; fields that repeat them are not covariates.
    axes : sequence of str
        Names of the axes of the site.
    components : sequence of str
        Names of its components, for the columns of fields that have one for each.

    Returns
    -------
    numeric, groups : list of Covariate
        Flattened to the elements of the site. ``numeric`` includes the position along each axis, and ``groups`` the
        entries of the first of several axes.
    """
    positions, groups = _axes_of(shape, axes)
    numeric: list[Covariate] = []
    measured = [np.ravel(values) for values in observed]
    for number, arg in enumerate(args):
        for name, value in fields_of(arg):
            name = name or f"argument {number + 1}"
            for column, values in _aligned(name, value, shape, components):
                if not any(_repeats(values, other) for other in measured):
                    _add_covariate(column, values, numeric, groups)
    positions = [p for p in positions if not any(_same_order(p.values, c.values) for c in numeric)]

    def is_row_number(values):  # of a table that is sorted by observed values
        return _is_order(values) and any(_same_order(values, y, SORTED) for y in measured)

    return [c for c in (*numeric[:MAX_COVARIATES], *positions) if not is_row_number(c.values)], groups


def _axes_of(shape, axes) -> tuple[list[Covariate], list[Covariate]]:
    """Return the position along each axis, and groups: where there are several axes, the rows along the first."""
    numeric, groups = [], []
    for axis, size in enumerate(shape):
        position = np.broadcast_to(np.arange(size).reshape(-1, *(1,) * (len(shape) - axis - 1)), shape).ravel()
        name = axes[axis] if axis < len(axes) else f"axis {axis + 1}"
        if size >= MIN_ELEMENTS:
            numeric.append(Covariate(f"the order of {name}", position.astype(float)))
        if len(shape) > 1 and axis == 0:
            groups.append(Covariate(name, position, tuple(map(str, range(size)))))
    return numeric, groups


def _aligned(
    name: str, value: Any, shape: tuple[int, ...], components: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns of a field that has one entry for each element, or for each entry of one axis."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(entry, str) for entry in array):
        array = array.astype(str)
    if array.dtype.kind not in "biufUS" or not array.ndim or not shape:
        return
    if array.shape[: len(shape)] == shape:
        lead = shape
    elif len(array) == shape[0]:
        lead = shape[:1]
    elif len(shape) == 2 and array.shape == (shape[-1],):
        yield name, np.broadcast_to(array, shape).ravel()
        return
    else:
        return
    trailing = array.shape[len(lead) :]
    if len(trailing) == 2 and trailing[0] == trailing[1] <= MAX_COMPONENTS:
        name = name.replace("covariance", "variance")  # its diagonal
        array, trailing = np.diagonal(array, axis1=-2, axis2=-1), trailing[:1]
    if len(trailing) > 1 or (trailing and trailing[0] > MAX_COMPONENTS):
        return
    columns = array[..., None] if not trailing else array
    for k in range(columns.shape[-1]):
        entries = columns[..., k].reshape(*lead, *(1,) * (len(shape) - len(lead)))
        label = f"{name} of {components[k]}" if trailing and len(components) == trailing[0] else f"{name}[{k}]"
        yield (label if trailing else name), np.broadcast_to(entries, shape).ravel()


def _add_covariate(name: str, values: np.ndarray, numeric, groups) -> None:
    """Append a column to the numeric covariates or the groups, unless it is constant or repeats one of them."""
    text = values.dtype.kind in "US"
    finite = np.ones(len(values), bool) if text else np.isfinite(values.astype(float))
    labels, codes = np.unique(values[finite], return_inverse=True)
    if len(labels) < 2 or finite.sum() < MIN_ELEMENTS // 2:
        return
    if text or values.dtype.kind in "bi" or len(labels) <= MAX_BINS:
        if len(labels) <= finite.sum() / 2:
            full = np.full(len(values), -1)
            full[finite] = codes
            if not any(_same_groups(full, group.values) for group in groups):
                groups.append(Covariate(name, full, tuple(map(str, labels))))
        if text or len(labels) <= 2:
            return
    numbers = values.astype(float)
    if not any(_same_order(numbers, other.values) for other in numeric):
        numeric.append(Covariate(name, numbers))


def _repeats(values: np.ndarray, measured: np.ndarray) -> bool:
    """Return whether a column repeats the measured values: it has their order, or one label for each value."""
    is_text = values.dtype.kind in "US"
    if not is_text and _same_order(values.astype(float), measured.astype(float)):
        return True
    if len(np.unique(measured)) > len(measured) / 2:
        return False
    return _same_groups(values, measured)


def _same_groups(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two columns have the same groups of equal values."""
    (labels_a, codes_a), (labels_b, codes_b) = (np.unique(array, return_inverse=True) for array in (a, b))
    if len(labels_a) != len(labels_b):
        return False
    return len(np.unique(codes_a * len(labels_b) + codes_b)) == len(labels_a)


def _is_order(values: np.ndarray) -> bool:
    """Return whether the values of a column are consecutive numbers, such as those of rows."""
    finite = np.sort(values[np.isfinite(values)])
    return bool((np.diff(finite) == 1).all())


def _same_order(a: np.ndarray, b: np.ndarray, correlation: float = NEARLY_EQUAL) -> bool:
    """Return whether two columns have nearly the same order, or the opposite one, where both are finite."""
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.sum() < 3:
        return False
    first, second = (ranks(values[None, finite])[0] - (finite.sum() + 1) / 2 for values in (a, b))
    norm = np.sqrt((first @ first) * (second @ second))
    return bool(norm > 0 and abs(first @ second) > correlation * norm)


def bins_of(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value, in bins of about equal numbers; -1 for NaN. Equal values share a bin."""
    finite = np.isfinite(values)
    num_bins = int(np.clip(finite.sum() // MIN_PER_BIN, 2, MAX_BINS))
    edges = np.unique(np.quantile(values[finite], np.linspace(0.0, 1.0, num_bins + 1)[1:-1]))
    return np.where(finite, np.searchsorted(edges, np.where(finite, values, 0.0), side="left"), -1)


def group_matrix(codes: np.ndarray) -> sparse.csr_matrix:
    """Return the matrix (group, element) that sums residuals in each group and divides by the root of its size."""
    used = codes >= 0
    size = np.bincount(codes[used])
    weights = 1.0 / np.sqrt(np.maximum(size, 1))
    return sparse.csr_matrix(
        (weights[codes[used]].astype(np.float32), (codes[used], np.flatnonzero(used))), (len(size), len(codes))
    )


class Design(NamedTuple):
    """Precomputed arrays for statistics of the dependence on a covariate.

    Attributes
    ----------
    name : str
        Name of the covariate.
    rank : (element,)
        Ranks with zero mean and unit norm; 0 for NaN. Empty for groups.
    matrix : sparse matrix (group, element), or None
        `group_matrix` of the bins of a numeric covariate, or of groups; None for too few elements.
    first, second : (pair,)
        Elements that are neighbours in the order of the covariate.
    """

    name: str
    rank: np.ndarray
    matrix: Any
    first: np.ndarray
    second: np.ndarray


def design_of(name: str, values: np.ndarray, block: np.ndarray) -> Design | None:
    """Return the design of a numeric covariate (element,); None if it does not vary or has too few finite values.

    Only elements with the same ``block`` (element,) can be neighbours.
    """
    finite = np.isfinite(values)
    num = int(finite.sum())
    if num < MIN_ELEMENTS or np.ptp(values[finite]) == 0:
        return None
    rank = np.zeros(len(values), np.float32)
    rank[finite] = ranks(values[None, finite])[0]
    rank[finite] -= rank[finite].mean()
    rank /= np.sqrt((rank**2).sum())
    matrix = group_matrix(bins_of(values)) if num >= 3 * MIN_PER_BIN else None
    order = np.lexsort((values, block))
    order = order[finite[order]]
    # Neighbours are undefined in a column with many equal values.
    distinct = len(np.unique(values[finite])) > 0.5 * num / len(np.unique(block))
    same = np.flatnonzero(block[order[1:]] == block[order[:-1]]) if distinct else np.zeros(0, int)
    return Design(name, rank, matrix, order[same + 1], order[same])


def statistics_of(
    residuals: Residuals, others: Sequence[Residuals], numeric: Sequence[Design], groups: Sequence[Design]
) -> Iterator[Statistic]:
    """Yield the statistics of one component's residuals.

    Parameters
    ----------
    residuals : Residuals
        The residuals.
    others : sequence of Residuals
        Those of the other components, on which they may depend.
    numeric, groups : sequence of Design
        Covariates of these elements.
    """
    label, r = residuals.label, residuals.values

    def statistic(kind, values, covariate="", two_sided=True):
        return Statistic(kind, label, covariate, np.asarray(values, float), two_sided)

    yield statistic("level", r.mean(axis=0))
    yield statistic("width", (r * r).mean(axis=0))
    yield statistic("largest", np.abs(r).max(axis=0), two_sided=False)
    yield statistic("far", (np.abs(r) > FAR).sum(axis=0), two_sided=False)
    for kind, beyond in residuals.beyond.items():
        yield statistic(kind, beyond, two_sided=False)
    # For all other statistics the mean and width of each column are set to 0 and 1, so that errors in these do not
    # hide other features.
    r = column_standardised(r)
    square = r * r
    yield statistic("skewness", (square * r).mean(axis=0))
    yield statistic("tails", (square * square).mean(axis=0))
    for other in others:
        if np.array_equal(other.elements, residuals.elements):
            second = column_standardised(other.values)
            yield statistic("trend", (r * second).mean(axis=0), other.label)
            yield statistic("curvature", (r * (second * second - 1.0)).mean(axis=0), other.label)
            yield statistic("scatter trend", ((square - 1.0) * second).mean(axis=0), other.label)
    for design in numeric:
        yield from _dependences(statistic, design, r, square)
    for design in groups:
        means, widths = design.matrix @ r, design.matrix @ (square - 1.0)
        yield statistic("groups", (means**2).sum(axis=0), design.name, two_sided=False)
        yield statistic("group", np.abs(means).max(axis=0), design.name, two_sided=False)
        yield statistic("scatter of groups", widths.max(axis=0), design.name, two_sided=False)


def column_standardised(values: np.ndarray) -> np.ndarray:
    """Return values (element, pool) with zero mean and unit variance over the elements of each column."""
    deviation = values - values.mean(axis=0)
    width = np.sqrt((deviation * deviation).mean(axis=0))
    return deviation / np.where(width > 0, width, 1.0)


def predictions_of(residuals: Residuals) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and values (element,) of the mean and the scatter of the replicates, if they differ by element."""
    if not len(residuals.mean):
        return
    spread = residuals.spread
    # Sampling variance of the mean of the replicates over their variance; that of their standard deviation is half.
    noise = 1.0 / residuals.values.shape[1]
    if np.var(residuals.mean) > MIN_RATIO * noise * np.mean(spread**2):
        yield "the expected value", residuals.mean
    if np.var(spread) > MIN_RATIO * 0.5 * noise * np.mean(spread) ** 2:
        yield "the expected scatter", spread


def _dependences(statistic, design: Design, r: np.ndarray, square: np.ndarray) -> Iterator[Statistic]:
    """Yield the statistics of the dependence on one numeric covariate."""
    name = design.name
    yield statistic("trend", design.rank @ r, name)
    yield statistic("scatter trend", design.rank @ square, name)
    if design.matrix is not None:
        yield statistic("bins", ((design.matrix @ r) ** 2).sum(axis=0), name, two_sided=False)
        yield statistic("scatter bins", ((design.matrix @ (square - 1.0)) ** 2).sum(axis=0), name, two_sided=False)
    if len(design.first):
        yield statistic("neighbours", np.einsum("ep,ep->p", r[design.first], r[design.second]), name)
