"""Data of a linear relation: grouped points with errors in the predictors and in the response."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.columns import (
    HasWarnings,
    check_plain,
    index_of_groups,
    position_in_group,
    unused_errors,
    warnings_of,
)
from hbm_jax.data.tables import make_from_rows, read_table
from hbm_jax.validation import (
    DataError,
    Labels,
    float_vector,
    frozen_array,
    reject_rows,
    require_covariances,
    require_present,
    text_tuple,
    warn_unusual,
)

__all__ = ["PointsInGroups", "read_relation"]

ARRAYS = ("values", "errors", "limit", "side", "order", "used", "row", "group_predictors", "center", "unit")
LIMITS = {"": 0.0, "none": 0.0, "upper": 1.0, "lower": -1.0}
ALIASES = {"group": "name", "sigma_x": "x_err", "sigma_y": "y_err"}


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class PointsInGroups(HasWarnings):
    """Points with P predictors x and a response y, measured with errors, in J groups of at most M points.

    Build it with `from_columns` or `hbm_jax.data.read_relation`; the constructor does not validate. Registered as a
    pytree. Groups of fewer than M points are padded.

    Attributes
    ----------
    name : tuple of str
        Names of the groups.
    predictors, group_predictor_names : tuple of str
        Names of the predictors of points and of the predictors of groups.
    values : (J, M, P + 1)
        Measured predictors followed by the response; for a censored coordinate, its limit. Zero in padding.
    errors : (J, M, P + 1, P + 1)
        Error covariances of the points; the unit matrix in padding.
    limit, side : (J, M)
        Censoring of one coordinate per point. A value at or below an upper limit (side 1), or at or above a lower limit
        (side -1), is censored: the true measurement is only known to lie there. NaN in `limit` if there is no limit.
    order : (J, M, P + 1, P + 1)
        Permutation matrix that moves the coordinate with the limit to the end.
    used : (J, M)
        False in padding.
    row : (J, M)
        Row of each point in the table; -1 in padding.
    group_predictors : (J, Q)
        Group-level predictors of slope and intercept, minus their means over the groups.
    center, unit : (P + 1,)
        Mean and standard deviation of the measured values, which scale the default priors of
        `hbm_jax.models.Relation`. `replace_observations` does not change them.
    limited : str
        Which coordinates have limits: ``"no"``, ``"y"`` or ``"both"`` (at least one predictor).
    warnings : tuple of str
        One sentence for each unusual feature of the data.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    predictors: tuple[str, ...] = field(metadata={"static": True})
    group_predictor_names: tuple[str, ...] = field(metadata={"static": True})
    values: Any
    errors: Any
    limit: Any
    side: Any
    order: Any
    used: Any
    row: Any
    group_predictors: Any
    center: Any
    unit: Any
    limited: str = field(default="no", metadata={"static": True})

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        *,
        predictors: Sequence[str] = ("x",),
        group_predictors: Sequence[str] = (),
        called: Mapping[str, str] | None = None,
    ) -> "PointsInGroups":
        """Validate columns with one row per point and build the container.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            Required: ``y`` and each predictor. Optional, with A and B any two coordinates in the order of the
            predictors and then y:

            - ``sigma_A``: standard deviation of the error of A; 0 for a predictor without error.
            - ``covariance`` or ``correlation``: of the errors of y and a single predictor. With several predictors,
              ``covariance_A_B`` or ``correlation_A_B``.
            - ``group``: name of the group of each point.
            - ``limit_A``: ``"upper"`` or ``"lower"`` if the value of A is a limit, otherwise empty.
            - ``threshold_y``: detection threshold of the response; simulated responses below it become upper limits.
        predictors : sequence of str
            Names of the predictors.
        group_predictors : sequence of str
            Names of columns, constant within each group, that predict its slope and intercept.
        called : mapping, optional
            Column names to use in messages, by standard name.

        Raises
        ------
        DataError
            For missing columns, values that are not numbers, errors that are not positive, correlations outside -1 to
            1, a predictor with the same value in all points, limits without a value, and two limits for one point.

        Examples
        --------
        >>> data = PointsInGroups.from_columns({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8], "sigma_y": [0.1, 0.1, 0.2]})
        >>> len(data), data.num_points
        (1, 3)
        """
        called = dict(called or {})
        coordinates = (*predictors, "y")
        if not predictors or len(set(coordinates)) < len(coordinates):
            raise DataError(f"predictors: expected names that differ from each other and from 'y'; found {predictors}.")
        for key in coordinates:
            require_present(key, columns)
        num = len(np.asarray(columns["y"]))
        group = text_tuple(columns["group"], called.get("group", "group"), "") if "group" in columns else ()
        no_value = ["no value (masked or empty)"] * num
        reject_rows([not name for name in group], no_value, called.get("group", "group"), "the name of a group", ())
        labels = Labels(num, lambda row: f"row {row}" + (f" (group {group[row]})" if group else ""))

        def vector(key):
            numbers = float_vector(columns[key], called.get(key, key), labels)
            if len(numbers) != num:
                raise DataError(f"{called.get(key, key)}: expected {num} values, as many as y; found {len(numbers)}.")
            return numbers

        if num < 3:
            raise DataError(f"y: expected 3 points or more; found {num}.")
        values = np.stack([vector(key) for key in coordinates], axis=-1)
        for column, key in enumerate(predictors):
            if np.ptp(values[:, column]) == 0:
                raise DataError(
                    f"{called.get(key, key)}: expected values that differ between rows, without which there is no "
                    f"slope; found {values[0, column]:g} in all {num} rows."
                )
        limit, side, limit_index, limited = _limits(columns, values, coordinates, labels, called)
        errors = _errors(columns, vector, coordinates, labels, called, num)
        names = tuple(dict.fromkeys(group)) if group else ("all",)
        group_index = index_of_groups(group, names) if group else np.zeros(num, int)
        centered = _centered_by_group(columns, vector, group_predictors, group_index, len(names), labels, called)
        spread = values.std(axis=0)
        padded: dict[str, Any] = _padded(group_index, len(names), values, errors, limit, side, limit_index)
        return cls(
            names,
            tuple(predictors),
            tuple(group_predictors),
            **padded,
            group_predictors=frozen_array(centered),
            center=frozen_array(values.mean(axis=0)),
            unit=frozen_array(np.where(spread > 0, spread, 1.0)),
            limited=limited,
            warnings=tuple(check_plain(dict(zip(coordinates, values.T, strict=True)), called)),
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.name)

    @property
    def num_points(self) -> int:
        """Number of points in all groups."""
        return int(np.sum(self.used))

    def __repr__(self) -> str:
        return (
            f"PointsInGroups({self.num_points} points in {len(self)} groups, predictors {', '.join(self.predictors)})"
        )

    def describe(self) -> str:
        """Return a one-paragraph summary: number of points and groups, errors and limits."""
        used = np.asarray(self.used)
        sizes = used.sum(axis=1)
        variances = np.diagonal(np.asarray(self.errors)[used], axis1=-2, axis2=-1)
        error_texts = [
            f"{name}: median error {np.sqrt(np.median(variance)):.3g}" if variance.any() else f"{name}: no errors"
            for name, variance in zip((*self.predictors, "y"), variances.T, strict=True)
        ]
        groups = f"{len(self)} groups of {sizes.min()} to {sizes.max()}" if len(self) > 1 else "one group"
        num_limits = int(np.sum(self.is_limit))
        limits = f" {num_limits} points are limits." if num_limits else ""
        return f"{self.num_points} points in {groups}. {'; '.join(error_texts)}.{limits}{self._warning_text()}"

    @property
    def is_limit(self) -> np.ndarray:
        """Whether a point has a censored coordinate, (J, M)."""
        last = (np.asarray(self.order)[..., -1, :] * np.asarray(self.values)).sum(-1)
        side = np.asarray(self.side)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.used) & (side * last <= side * np.asarray(self.limit))

    def subset(self, rows: ArrayLike) -> "PointsInGroups":
        """Return the groups selected by a boolean mask or by integer indices."""
        indices = np.arange(len(self))[np.asarray(rows)]
        arrays: dict[str, Any] = {key: np.asarray(getattr(self, key))[indices] for key in ARRAYS[:-2]}
        name = tuple(self.name[i] for i in indices)
        return dataclasses.replace(self, name=name, **arrays)

    def replace_observations(self, observed: ArrayLike) -> "PointsInGroups":
        """Return a copy with other measured values (J, M, P + 1); all other fields are unchanged."""
        values = np.where(np.asarray(self.used)[..., None], np.asarray(observed, float), 0.0)
        if values.shape != np.shape(self.values):
            raise DataError(f"observed: expected shape {np.shape(self.values)}; found {values.shape}.")
        return dataclasses.replace(self, values=frozen_array(values))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage and fingerprints."""
        text = {key: np.asarray(getattr(self, key), str) for key in ("name", "predictors", "group_predictor_names")}
        arrays = {key: np.asarray(getattr(self, key)) for key in ARRAYS}
        return text | arrays | {"limited": np.asarray(self.limited)} | self._stored()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PointsInGroups":
        """Build the container from the output of `to_dict`."""
        keys = ("name", "predictors", "group_predictor_names")
        text: dict[str, Any] = {key: tuple(str(entry) for entry in np.atleast_1d(stored[key])) for key in keys}
        arrays: dict[str, Any] = {key: np.asarray(stored[key]) for key in ARRAYS}
        return cls(**text, **arrays, limited=str(stored["limited"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table`` with one row per point, which `hbm_jax.data.read_relation` reads."""
        from astropy.table import Table

        used = np.asarray(self.used)
        order = np.argsort(np.asarray(self.row)[used])
        group = np.repeat(np.array(self.name), used.sum(axis=1))[order]
        values, errors = np.asarray(self.values)[used][order], np.asarray(self.errors)[used][order]
        coordinates = (*self.predictors, "y")
        table = Table({"group": group})
        for column, key in enumerate(coordinates):
            table[key] = values[:, column]
            table[f"sigma_{key}"] = np.sqrt(errors[:, column, column])
        for i in range(len(coordinates)):
            for j in range(i + 1, len(coordinates)):
                if errors[:, i, j].any():
                    pair = "" if len(coordinates) == 2 else f"_{coordinates[i]}_{coordinates[j]}"
                    table[f"covariance{pair}"] = errors[:, i, j]
        limit_index = np.asarray(self.order)[used][order][:, -1].argmax(axis=1)
        kinds = np.where(self.is_limit[used][order], np.asarray(self.side)[used][order], 0.0)
        words = {0.0: "none", 1.0: "upper", -1.0: "lower"}
        for column, key in enumerate(coordinates):
            if (kinds_of_column := np.where(limit_index == column, kinds, 0.0)).any():
                table[f"limit_{key}"] = [words[kind] for kind in kinds_of_column]
        for column, key in enumerate(self.group_predictor_names):
            predictor = np.asarray(self.group_predictors)[:, column]
            table[key] = np.repeat(predictor, used.sum(axis=1))[order]
        return table


def _centered_by_group(columns, vector, predictors, group_index, num_groups, labels, called):
    """Return the predictors of groups, (J, Q), minus their means over the groups."""
    if not predictors:
        return np.zeros((num_groups, 0))
    for key in predictors:
        require_present(key, columns)
    values = np.stack([vector(key) for key in predictors], axis=-1)
    first = np.unique(group_index, return_index=True)[1]
    for column, key in enumerate(predictors):
        differs = values[:, column] != values[first, column][group_index]
        reject_rows(differs, values[:, column], called.get(key, key), "one value in all points of a group", labels)
    return values[first] - values[first].mean(axis=0)


def _errors(columns, vector, coordinates, labels, called, num):
    """Return the error covariances (N, D, D) of the D coordinates."""
    sigma = np.zeros((num, len(coordinates)))
    for index, key in enumerate(coordinates):
        column = f"sigma_{key}"
        if column in columns:
            sigma[:, index] = vector(column)
            invalid = sigma[:, index] < 0 if key != "y" else sigma[:, index] <= 0
            expected = "a positive error" if key == "y" else "an error of 0 or more"
            reject_rows(invalid, sigma[:, index], called.get(column, column), expected, labels)
    errors = np.zeros((num, len(coordinates), len(coordinates)))
    for i in range(len(coordinates)):
        errors[:, i, i] = sigma[:, i] ** 2
        for j in range(i + 1, len(coordinates)):
            pair = "" if len(coordinates) == 2 else f"_{coordinates[i]}_{coordinates[j]}"
            for kind in ("correlation", "covariance"):
                if f"{kind}{pair}" in columns:
                    values = vector(f"{kind}{pair}")
                    label = called.get(f"{kind}{pair}", f"{kind}{pair}")
                    covariance = _covariance(kind, values, sigma[:, i] * sigma[:, j], label, labels)
                    errors[:, i, j] = errors[:, j, i] = covariance
    for kind in {"covariance", "correlation"} & set(columns):
        if len(coordinates) > 2:
            example = f"{kind}_{coordinates[0]}_y"
            raise DataError(
                f"{called.get(kind, kind)}: expected the coordinates in the name, as in {example!r}, with "
                f"{len(coordinates) - 1} predictors; found {kind!r}."
            )
    if len(coordinates) > 2:
        # With three or more coordinates, valid pairwise correlations do not ensure a positive definite matrix.
        has_error = sigma > 0
        unit_filled = errors + np.where(has_error, 0.0, 1.0)[:, :, None] * np.eye(len(coordinates))
        require_covariances(unit_filled, "covariance of the errors", labels)
    return errors


def _covariance(kind: str, values, product, called: str, labels):
    """Return error covariances (N,) of two coordinates from covariances or correlations and the product of sigmas."""
    invalid = (values != 0) & (product == 0)
    reject_rows(invalid, values, called, "0 where one of the two errors is 0 or not given", labels)
    correlation = np.abs(values) if kind == "correlation" else np.abs(values) / np.where(product > 0, product, 1.0)
    expected = "a correlation between -1 and 1" if kind == "correlation" else "one of a positive definite matrix"
    reject_rows(correlation >= 1, values, called, expected, labels)
    return values * product if kind == "correlation" else values


def _limits(columns, values, coordinates, labels, called):
    """Return limit and side of each point, the index of the limited coordinate, and the attribute `limited`."""
    num, size = values.shape
    limit, side = np.full(num, np.nan), np.ones(num)
    limit_index = np.full(num, size - 1)
    limited = "no"
    if "threshold_y" in columns:
        label = called.get("threshold_y", "threshold_y")
        limit = float_vector(columns["threshold_y"], label, labels, allow_missing=True)
        if limit.shape != (num,):
            raise DataError(f"threshold_y: expected {num} values, as many as y; found shape {limit.shape}.")
        limited = "y"
    for index, key in enumerate(coordinates):
        column = f"limit_{key}"
        if column not in columns:
            continue
        words = ["" if word is np.ma.masked else str(word).strip().lower() for word in columns[column]]
        invalid = np.array([word not in LIMITS for word in words])
        reject_rows(invalid, np.array(words), called.get(column, column), "'upper', 'lower' or nothing", labels)
        kind = np.array([LIMITS[word] for word in words])
        is_limit = kind != 0
        repeated = is_limit & ((limit_index != size - 1) if key == "y" else (~np.isnan(limit) & (limit_index != index)))
        reject_rows(repeated, kind, called.get(column, column), "at most one limit for each point", labels)
        limit, side = np.where(is_limit, values[:, index], limit), np.where(is_limit, kind, side)
        limit_index = np.where(is_limit, index, limit_index)
        if is_limit.any():
            limited = "both" if key != "y" or limited == "both" else "y"
    return limit, side, limit_index, limited


def _padded(group_index, num: int, values, errors, limit, side, limit_index) -> dict[str, np.ndarray]:
    """Return the arrays of the points, padded to the shape (group, point in group)."""
    row = np.full((num, int(np.bincount(group_index).max())), -1)
    row[group_index, position_in_group(group_index)] = np.arange(len(group_index))

    def pad(rows, filler):
        # Row -1 is the padding value. For a million rows, `take` is five times as fast as indexing.
        return np.concatenate([rows, np.asarray(filler)[None]]).take(row, 0, mode="wrap")

    size = values.shape[1]
    exchanges = np.tile(np.eye(size), (size, 1, 1))  # exchanges[j] swaps coordinate j with the last
    for j, permutation in enumerate(exchanges):
        permutation[[j, -1]] = permutation[[-1, j]]
    arrays = {
        "values": pad(values, np.zeros(size)),
        "errors": pad(errors, np.eye(size)),
        "limit": pad(limit, np.nan),
        "side": pad(side, 1.0),
        "order": exchanges.take(pad(limit_index, size - 1), 0),
        "used": row >= 0,
        "row": row,
    }
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def read_relation(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    predictors: Sequence[str] = ("x",),
    group_predictors: Sequence[str] = (),
) -> PointsInGroups:
    """Read points with errors from a table with one row per point.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`.
    columns
        Column names in the table, by standard name: ``{"x": "log_M", "sigma_x": "e_log_M"}``. Columns that already
        have a standard name (see `PointsInGroups.from_columns`) are recognised; other columns are ignored.
    format
        File format, if the suffix does not determine it; see `hbm_jax.data.read_table`.
    missing
        Numbers that stand for missing values: ``missing=(-9, -999)``.
    leave_out
        Names of groups to leave out, or row numbers such as ``"row 3"``, counted from 0. ``"bad"`` leaves out unusable
        rows, with a warning.
    predictors, group_predictors
        Names of the predictors of points and of groups.

    Returns
    -------
    PointsInGroups

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For any other problem with the data; the message begins with the path or type of the table.

    Examples
    --------
    >>> read_relation({"x": [1.0, 2.0, 3.0], "L": [1.1, 2.3, 2.8]}, columns={"y": "L"}).num_points
    3
    """
    table = read_table(source, format=format, missing=missing)
    coordinates = (*predictors, "y")
    pairs = [f"{a}_{b}" for i, a in enumerate(coordinates) for b in coordinates[i + 1 :]]
    standard = [
        *(f"{kind}_{pair}" for kind in ("covariance", "correlation") for pair in pairs if len(predictors) > 1),
        *coordinates, *(f"{kind}_{key}" for kind in ("sigma", "limit") for key in coordinates), "group", "covariance",
        "correlation", "threshold_y", *group_predictors,
    ]  # fmt: skip
    try:
        column_names = table.resolve(standard, columns, {k: v for k, v in ALIASES.items() if k in standard})
        table.require(column_names, *coordinates, *group_predictors)
        texts = ("group", *(f"limit_{key}" for key in coordinates))
        data, left_out, _ = make_from_rows(
            {key: table.values(name, text=key in texts) for key, name in column_names.items()},
            lambda rows: PointsInGroups.from_columns(
                rows, predictors=predictors, group_predictors=group_predictors, called=column_names
            ),
            name="group",
            leave_out=leave_out,
        )
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(column_names, table.columns, coordinates)
    return dataclasses.replace(data, warnings=warn_unusual([*left_out, *unused, *data.warnings], origin=table.origin))
