"""Designs of effects that vary between groups, or walk at random along a time."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass

from hbm_jax.data.regression import formulas
from hbm_jax.validation import DataError, frozen_array, reject_rows

MAX_STEPS = 2000  # of a walk, whose modes are a dense matrix
SAME = 1e-9  # relative, between a column and a multiple of another


@register_dataclass
@dataclass(frozen=True, eq=False)
class GroupDesign:
    """Effects of J groups on Q columns.

    Attributes
    ----------
    name : str
        Of the term; that of the grouping, with its columns where several terms have the same.
    factor : str
        Of the grouping.
    labels : tuple of str
        Of the groups.
    columns : tuple of str
        Of what varies.
    walk, correlated : bool
        Whether effects walk along the groups, and whether the effects of a group are correlated.
    index : (N,)
        Group of each point.
    values : (N, Q)
        What the effects are multiplied with.
    between : (J, Q, K)
        Times the coefficients: what the effects are centred on.
    modes : (J, J - 1)
        Of a walk: its principal components, less its mean, for a step of unit variance; else of no size.
    """

    name: str = field(metadata={"static": True})
    factor: str = field(metadata={"static": True})
    labels: tuple[str, ...] = field(metadata={"static": True})
    columns: tuple[str, ...] = field(metadata={"static": True})
    walk: bool = field(metadata={"static": True})
    correlated: bool = field(metadata={"static": True})
    index: Any
    values: Any
    between: Any
    modes: Any


def group_designs(parsed, frame, matrix: np.ndarray, names) -> tuple[tuple[GroupDesign, ...], np.ndarray]:
    """Return the designs of a formula's terms of groups, and which columns stay with the points.

    Parameters
    ----------
    parsed : tuple of formulas.GroupTerm
        The terms.
    frame : pandas.DataFrame
        The table.
    matrix : (N, K)
        Design matrix of what all points share.
    names : sequence of str
        Of the points, for messages.

    Returns
    -------
    tuple of GroupDesign
        One for each term.
    (K,)
        0 for columns that are a multiple of some group's column in every group, as the intercept is of a varying
        intercept and as a predictor of groups is; 1 for others.

    Raises
    ------
    DataError
        For a single group, a column that cannot be evaluated, or a walk along what is no number.
    """
    within = np.ones(matrix.shape[1])
    designs: list[GroupDesign] = []
    for term in parsed:
        factor = ":".join(term.factors)
        columns, values = formulas.design(term.columns, frame, f"the term of {factor}")
        for place, column in enumerate(columns):
            reject_rows(~np.isfinite(values[:, place]), values[:, place], column, "a finite number", names)
        labels, index = _groups(term, frame)
        if len(labels) < 2:
            raise DataError(f"{factor}: expected two groups or more; found one, {labels[0]!r}.")
        between = np.zeros((len(labels), len(columns), matrix.shape[1]))
        modes = np.zeros((0, 0))
        if term.walk:
            modes = _modes(np.array(labels, float))
        else:
            for place in range(len(columns)):
                for k in np.flatnonzero(within):
                    multiple = _multiple(matrix[:, k], values[:, place], index, len(labels))
                    if multiple is not None:
                        between[:, place, k], within[k] = multiple, 0.0
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
                frozen_array(between),
                frozen_array(modes),
            )
        )
    return tuple(designs), within


def _groups(term, frame) -> tuple[tuple[str, ...], np.ndarray]:
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
    index = rows.ngroup().to_numpy()  # as they come
    first = np.unique(index, return_index=True)[1]
    of_factors = (map(_text, frame[name].iloc[first]) for name in term.factors)
    texts = [":".join(parts) for parts in zip(*of_factors, strict=True)]
    labels = tuple(dict.fromkeys(texts))  # numbers that differ beyond 15 digits are one group
    place = np.array([labels.index(text) for text in texts]) if len(labels) < len(texts) else np.arange(len(texts))
    return labels, place[index]


def _text(value) -> str:
    return f"{value:.15g}" if isinstance(value, float | int | np.number) else str(value)


def _multiple(column, of, index, num: int) -> np.ndarray | None:
    """Return by what, in each group, one column is a multiple of another; None where it is not."""
    square = np.bincount(index, of**2, num)
    factor = np.bincount(index, column * of, num) / np.where(square > 0, square, 1.0)
    left = np.abs(column - factor[index] * of)
    return factor if left.max() <= SAME * max(np.abs(column).max(), 1e-300) else None


def _modes(times: np.ndarray) -> np.ndarray:
    """Principal components of a random walk less its mean, one step of mean length having unit variance."""
    along = (times - times[0]) / np.mean(np.diff(times))
    covariance = np.minimum(along[:, None], along)
    centred = covariance - covariance.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    variances, vectors = np.linalg.eigh(centred)
    order = np.argsort(-variances)[:-1]
    return vectors[:, order] * np.sqrt(np.maximum(variances[order], 0.0))
