"""Designs of regression effects that vary between groups or follow a random walk in time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass

from hbm_jax.data.regression import formulas
from hbm_jax.validation import DataError, frozen_array, reject_rows

MAX_STEPS = 2000  # of a random walk, whose principal components are a dense matrix
SAME = 1e-9  # relative tolerance within which a column is a multiple of another


@register_dataclass
@dataclass(frozen=True, eq=False)
class GroupDesign:
    """Effects of J groups on Q columns.

    Attributes
    ----------
    name : str
        Name of the term: the grouping factor, followed by the columns where several terms have the same factor.
    factor : str
        Grouping factor.
    labels : tuple of str
        Labels of the groups.
    columns : tuple of str
        Names of the columns whose coefficients vary.
    walk, correlated : bool
        True: the effects follow a random walk along the groups; the effects of a group are correlated.
    index : (N,)
        Index of each point's group.
    values : (N, Q)
        Columns that the effects multiply.
    group_predictors : (J, Q, K)
        Group-level predictors: ``group_predictors @ coef`` is the prior mean of the effects, (J, Q).
    modes : (J, J - 1)
        For a random walk, the principal components of the walk minus its mean, for steps of unit variance; else empty.
    """

    name: str = field(metadata={"static": True})
    factor: str = field(metadata={"static": True})
    labels: tuple[str, ...] = field(metadata={"static": True})
    columns: tuple[str, ...] = field(metadata={"static": True})
    walk: bool = field(metadata={"static": True})
    correlated: bool = field(metadata={"static": True})
    index: Any
    values: Any
    group_predictors: Any
    modes: Any


def group_designs(terms, frame, matrix: np.ndarray, names) -> tuple[tuple[GroupDesign, ...], np.ndarray]:
    """Return the designs of group terms, and a mask of the columns that vary within groups.

    Parameters
    ----------
    terms : tuple of formulas.GroupTerm
        Group terms of the formula.
    frame : pandas.DataFrame
        The table.
    matrix : (N, K)
        Design matrix of the terms shared by all points.
    names : sequence of str
        Names of the points, for messages.

    Returns
    -------
    tuple of GroupDesign
        One design per term.
    (K,)
        0 for columns that, within each group, are a multiple of a column with varying coefficients (with a varying
        intercept: the intercept, and predictors that are constant within groups). They determine the prior mean of the
        effects of a group, see ``GroupDesign.group_predictors``. 1 for other columns.

    Raises
    ------
    DataError
        For a single group, a column that cannot be evaluated, or a random walk along a column of text.
    """
    within = np.ones(matrix.shape[1])
    designs: list[GroupDesign] = []
    for term in terms:
        factor = ":".join(term.factors)
        columns, values = formulas.design(term.columns, frame, f"the group term of {factor}")
        for effect, column in enumerate(columns):
            reject_rows(~np.isfinite(values[:, effect]), values[:, effect], column, "a finite number", names)
        labels, index = _groups(term, frame)
        if len(labels) < 2:
            raise DataError(f"{factor}: expected two groups or more; found one, {labels[0]!r}.")
        group_predictors = np.zeros((len(labels), len(columns), matrix.shape[1]))
        modes = np.zeros((0, 0))
        if term.walk:
            modes = _modes(np.array(labels, float))
        else:
            for effect in range(len(columns)):
                for predictor in np.flatnonzero(within):
                    multiple = _multiple(matrix[:, predictor], values[:, effect], index, len(labels))
                    if multiple is not None:
                        group_predictors[:, effect, predictor], within[predictor] = multiple, 0.0
        name = factor.replace(":", "_")
        if any(design.name == name for design in designs):
            name = f"{name}_{'_'.join(columns)}"
        designs.append(
            GroupDesign(
                name,
                factor,
                labels,
                columns,
                term.walk,
                term.correlated and not term.walk,
                np.array(index),
                frozen_array(values),
                frozen_array(group_predictors),
                frozen_array(modes),
            )
        )
    return tuple(designs), within


def _groups(term, frame) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the labels of the groups, and the index of each point's group."""
    if term.walk:
        (factor,) = term.factors
        if frame[factor].dtype.kind not in "iuf":
            raise DataError(f"walk({factor}): expected numbers; found text such as {frame[factor].iloc[0]!r}.")
        times, index = np.unique(frame[factor].to_numpy(float), return_inverse=True)
        if len(times) > MAX_STEPS:
            raise DataError(
                f"walk({factor}): expected at most {MAX_STEPS} different values; found {len(times)}. Round them."
            )
        return tuple(f"{time:.15g}" for time in times), index
    rows = frame.groupby(list(term.factors), sort=False, dropna=False, observed=True)
    index = rows.ngroup().to_numpy()  # in order of appearance
    first = np.unique(index, return_index=True)[1]
    factor_texts = (map(_text, frame[name].iloc[first]) for name in term.factors)
    texts = [":".join(parts) for parts in zip(*factor_texts, strict=True)]
    position = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # numbers equal to 15 digits are one group
    return tuple(position), np.array([position[text] for text in texts], int)[index]


def _text(value) -> str:
    """Return the label of a group; numbers have 15 significant digits."""
    return f"{value:.15g}" if isinstance(value, float | int | np.number) else str(value)


def _multiple(column, base, index, num: int) -> np.ndarray | None:
    """Return the factor by which a column is a multiple of `base` in each group, or None if it is not."""
    squares = np.bincount(index, base**2, num)
    factor = np.bincount(index, column * base, num) / np.where(squares > 0, squares, 1.0)
    residual = np.abs(column - factor[index] * base)
    return factor if residual.max() <= SAME * max(np.abs(column).max(), 1e-300) else None


def _modes(times: np.ndarray) -> np.ndarray:
    """Return the principal components of a random walk minus its mean, with unit variance per mean time step."""
    scaled_times = (times - times[0]) / np.mean(np.diff(times))
    covariance = np.minimum(scaled_times[:, None], scaled_times)
    centred = covariance - covariance.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    variances, vectors = np.linalg.eigh(centred)
    order = np.argsort(-variances)[:-1]
    return vectors[:, order] * np.sqrt(np.maximum(variances[order], 0.0))
