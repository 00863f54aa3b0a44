"""Points in groups, each with an error covariance: base of the containers of relations and of grouped values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import check_plain, index_of_groups, padded, rows_by_group
from hbm_jax.data.containers import HasWarnings, reshaped
from hbm_jax.validation import (
    DataError,
    Floats,
    Labels,
    float_vector,
    frozen_array,
    reject_rows,
    require_present,
    text_tuple,
)


class InGroups(HasWarnings):
    """Base class of containers of points in groups, padded to the largest group."""

    whole = (
        "predictors", "group_predictor_names", "components", "center", "unit", "injections", "num_injections",
        "column_labels",
    )  # fmt: skip
    object_name = "group"
    values: Any
    errors: Any
    used: Any
    row: Any

    def _group_sizes(self) -> str:
        """Return the number of points in a group, or the range of these numbers, as text."""
        sizes = np.asarray(self.used).sum(axis=1)
        return f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"

    def _replaced(self, values: ArrayLike, label: str) -> Self:
        """Return a copy with other measured values, after checking their shape."""
        values = np.where(np.asarray(self.used)[..., None], reshaped(values, self.values, label), 0.0)
        arrays: dict[str, Any] = {"values": frozen_array(values)}
        return replace(self, **arrays)

    def _median_errors(self, coordinates: Sequence[str]) -> str:
        """Return the median error of each coordinate as text."""
        variances = np.diagonal(np.asarray(self.errors)[np.asarray(self.used)], axis1=-2, axis2=-1)
        return "; ".join(
            f"{key}: median error {np.sqrt(np.median(variance)):.3g}" if variance.any() else f"{key}: no errors"
            for key, variance in zip(coordinates, variances.T, strict=True)
        )

    def _by_row(self, array: Any) -> NDArray[Any]:
        """Return an array (groups, points in a group, ...) as one row per point, in the order of the table."""
        used = np.asarray(self.used)
        return np.asarray(array)[used][np.argsort(np.asarray(self.row)[used])]

    def _measured_table(self, coordinates: Sequence[str], pairs: Mapping[tuple[int, int], str]):
        """Return a table of groups, values, their errors and non-zero covariances."""
        from astropy.table import Table

        values, errors = self._by_row(self.values), self._by_row(self.errors)
        group = np.broadcast_to(np.array(self.name)[:, None], np.shape(self.used))
        table = Table({"group": self._by_row(group)})
        for index, key in enumerate(coordinates):
            table[key] = values[:, index]
            if getattr(self, "has_errors", True):
                table[f"sigma_{key}"] = np.sqrt(errors[:, index, index])
        for (i, j), pair in pairs.items():
            if errors[:, i, j].any():
                table[f"covariance{pair}"] = errors[:, i, j]
        return table


class GroupedRows:
    """Columns of a table with one row per point, which are checked on access.

    Parameters
    ----------
    columns : mapping of str to array (N,)
        Columns by standard name.
    coordinates : tuple of str
        Names of the D measured coordinates.
    column_names : mapping of str to str
        Names of columns in messages.
    min_rows : int
        Smallest allowed number of rows.

    Raises
    ------
    DataError
        For too few rows, values that are missing or not numbers, and rows without a group.
    """

    def __init__(
        self, columns: Mapping[str, Any], coordinates: Sequence[str], column_names: Mapping[str, str], min_rows: int
    ):
        self.columns, self.coordinates, self.column_names = columns, tuple(coordinates), column_names
        for key in coordinates:
            require_present(key, columns)
        key = self.coordinates[-1]
        self.num = len(np.asarray(columns[key]))
        if self.num < min_rows:
            raise DataError(f"{self.label(key)}: expected {min_rows} rows or more; found {self.num}.")
        self.group = text_tuple(columns["group"], self.label("group"), "") if "group" in columns else ()
        if self.group and len(self.group) != self.num:
            raise DataError(f"{self.label('group')}: expected {self.num} names, one per row; found {len(self.group)}.")
        self.labels = Labels(len(self.group), lambda row: f"group {self.group[row]}")
        found = ["no value (masked or empty)"] * self.num
        reject_rows([not name for name in self.group], found, self.label("group"), "the name of a group", ())
        self.values = np.stack([self.vector(key) for key in coordinates], axis=-1)

    def label(self, key: str) -> str:
        """Return the name of a column in messages."""
        return self.column_names.get(key, key)

    def vector(self, key: str, *, allow_missing: bool = False) -> Floats:
        """Return a column of numbers."""
        numbers = float_vector(self.columns[key], self.label(key), self.labels, allow_missing=allow_missing)
        if len(numbers) != self.num:
            raise DataError(f"{self.label(key)}: expected {self.num} values, one per row; found {len(numbers)}.")
        return numbers

    def reject(self, bad: Any, values: Any, key: str, expected: str) -> None:
        """Raise `DataError` if `bad` is true in any row of a column."""
        reject_rows(bad, values, self.label(key), expected, self.labels)

    def groups(self, *, together: bool) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Return the names of the groups and the index of each row's group.

        Without a column of groups, rows are one group if `together`, and a group each otherwise.
        """
        if self.group:
            names = tuple(dict.fromkeys(self.group))
            return names, index_of_groups(self.group, names)
        if together:
            return ("all",), np.zeros(self.num, int)
        return tuple(f"group {row}" for row in range(self.num)), np.arange(self.num)

    def errors(self, pairs: Mapping[tuple[int, int], str], *, without_error: Sequence[str] = ()) -> Floats:
        """Return the error covariances (N, D, D); elements without a column are zero.

        Parameters
        ----------
        pairs
            For each pair of coordinates, by their indices: the suffix of the columns ``covariance...`` and
            ``correlation...``, as from `pairs_of`.
        without_error
            Coordinates whose errors may be 0.
        """
        size = len(self.coordinates)
        sigma, errors = np.zeros((self.num, size)), np.zeros((self.num, size, size))
        for index, coordinate in enumerate(self.coordinates):
            if (key := f"sigma_{coordinate}") in self.columns:
                sigma[:, index] = self.vector(key)
                zero_allowed = coordinate in without_error
                invalid = sigma[:, index] < 0 if zero_allowed else sigma[:, index] <= 0
                expected = "an error of 0 or more" if zero_allowed else "a positive error"
                self.reject(invalid, sigma[:, index], key, expected)
            errors[:, index, index] = sigma[:, index] ** 2
        for (i, j), pair in pairs.items():
            product = sigma[:, i] * sigma[:, j]
            for kind in ("correlation", "covariance"):
                if (key := f"{kind}{pair}") in self.columns:
                    errors[:, i, j] = errors[:, j, i] = self._covariance(key, product)
        return errors

    def _covariance(self, key: str, product: Floats) -> Floats:
        """Return a column of covariances, or of correlations times the `product` of two standard deviations."""
        values = self.vector(key)
        invalid = (values != 0) & (product == 0)
        self.reject(invalid, values, key, "0 where one of the two errors is 0 or not given")
        if key.startswith("correlation"):
            self.reject(np.abs(values) >= 1, values, key, "a correlation between -1 and 1")
            return values * product
        too_large = np.abs(values) >= np.where(product > 0, product, np.inf)
        self.reject(too_large, values, key, "one of a positive definite matrix")
        return values

    def padded_fields(
        self, group_index: NDArray[np.int64], errors: Floats, additional: Mapping[str, tuple[Any, Any]] | None = None
    ) -> dict[str, Any]:
        """Return the fields common to both containers, and additional ones, padded.

        Parameters
        ----------
        group_index
            Index of the group of each row.
        errors
            Error covariances (N, D, D).
        additional
            Array (N, ...) of each additional field, and its value in padding.
        """
        rows = rows_by_group(group_index)
        size = len(self.coordinates)
        spread = self.values.std(axis=0)
        arrays = {"values": (self.values, np.zeros(size)), "errors": (errors, np.eye(size)), **(additional or {})}
        return {
            **{key: padded(values, rows, filler) for key, (values, filler) in arrays.items()},
            "used": frozen_array(rows >= 0, None),
            "row": frozen_array(rows, None),
            "center": frozen_array(self.values.mean(axis=0)),
            "unit": frozen_array(np.where(spread > 0, spread, 1.0)),
            "warnings": tuple(check_plain(dict(zip(self.coordinates, self.values.T, strict=True)), self.column_names)),
        }


def pairs_of(coordinates: Sequence[str], *, short: bool = False) -> dict[tuple[int, int], str]:
    """Return the suffixes ``_A_B`` of the names of covariances, by the indices of two coordinates; "" if `short`."""
    pairs = combinations(range(len(coordinates)), 2)
    return {(i, j): "" if short else f"_{coordinates[i]}_{coordinates[j]}" for i, j in pairs}
