"""Data of a linear relation: grouped points with errors in the predictors and in the response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.building import build_from_table
from hbm_jax.data.columns import TEXT, UNCONVERTED
from hbm_jax.data.linear.grouped import GroupedRows, InGroups, pairs_of
from hbm_jax.data.tables import read_table
from hbm_jax.validation import DataError, Floats, frozen_array, require_covariances, require_present

LIMITS = {"": 0.0, "none": 0.0, "upper": 1.0, "lower": -1.0}
ALIASES = {"group": "name", "sigma_x": "x_err", "sigma_y": "y_err"}


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class PointsInGroups(InGroups):
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
        (side -1), is censored: only the limit is known. NaN in `limit` if there is no limit.
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
        Coordinates with limits: ``"no"``, ``"y"``, or ``"both"`` if at least one predictor has limits.
    cut : (J, M, P + 1)
        Selection limit of each coordinate, beyond which the point would not be in the data; NaN for no limit.
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
    cut: Any = None

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
            - ``cut_A``: value of A beyond which the point would not be in the data at all, for a
              `hbm_jax.models.Relation` with a selection in A.
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
        coordinates = (*predictors, "y")
        if not predictors or len(set(coordinates)) < len(coordinates):
            raise DataError(f"predictors: expected names that differ from each other and from 'y'; found {predictors}.")
        rows = GroupedRows(columns, coordinates, called or {}, 3)
        for key, values in zip(predictors, rows.values.T, strict=False):
            if np.ptp(values) == 0:
                raise DataError(
                    f"{rows.label(key)}: expected values that differ between rows, without which there is no "
                    f"slope; found {values[0]:g} in all {rows.num} rows."
                )
        limit, side, limit_index, limited = _limits(rows)
        errors = _errors(rows)
        names, group_index = rows.groups(together=True)
        exchanges = _exchanges(len(coordinates))
        points = {
            "limit": (limit, np.nan),
            "side": (side, 1.0),
            "order": (exchanges[limit_index], exchanges[-1]),
            "cut": (_cuts(rows), np.full(len(coordinates), np.nan)),
        }
        return cls(
            names,
            tuple(predictors),
            tuple(group_predictors),
            **rows.padded_fields(group_index, errors, points),
            group_predictors=frozen_array(_centered_by_group(rows, group_predictors, group_index, len(names))),
            limited=limited,
        )

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
        groups = f"{len(self)} groups of {self._group_sizes()}" if len(self) > 1 else "one group"
        num_limits = int(np.sum(self.is_limit))
        limits = f" {num_limits} points are limits." if num_limits else ""
        errors = self._median_errors((*self.predictors, "y"))
        return f"{self.num_points} points in {groups}. {errors}.{limits}{self._warning_text()}"

    @property
    def is_limit(self) -> np.ndarray:
        """Mask (J, M) of the points with a censored coordinate."""
        last = (np.asarray(self.order)[..., -1, :] * np.asarray(self.values)).sum(-1)
        side = np.asarray(self.side)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.used) & (side * last <= side * np.asarray(self.limit))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name; ``cut`` is included only if a point has a selection limit."""
        stored = super().to_dict()
        return stored if np.isfinite(self.cut).any() else {key: v for key, v in stored.items() if key != "cut"}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PointsInGroups":
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        return super().from_dict({"cut": np.full(np.shape(stored["values"]), np.nan), **stored})

    def replace_observations(self, observed: ArrayLike) -> "PointsInGroups":
        """Return a copy with other measured values (J, M, P + 1); all other fields are unchanged."""
        return self._replaced(observed, "observed")

    def to_table(self):
        """Return an astropy ``Table`` with one row per point, which `hbm_jax.data.read_relation` reads."""
        coordinates = (*self.predictors, "y")
        table = self._measured(coordinates, pairs_of(coordinates, short=len(coordinates) == 2))
        limit_index = self._of_rows(self.order)[:, -1].argmax(axis=1)
        kinds = np.where(self._of_rows(self.is_limit), self._of_rows(self.side), 0.0)
        words = {0.0: "none", 1.0: "upper", -1.0: "lower"}
        for column, key in enumerate(coordinates):
            if (kinds_of_column := np.where(limit_index == column, kinds, 0.0)).any():
                table[f"limit_{key}"] = [words[kind] for kind in kinds_of_column]
        for column, key in enumerate(coordinates):
            if np.isfinite(cut := self._of_rows(self.cut)[:, column]).any():
                table[f"cut_{key}"] = cut
        for predictor, key in zip(np.asarray(self.group_predictors).T, self.group_predictor_names, strict=True):
            table[key] = self._of_rows(np.broadcast_to(predictor[:, None], np.shape(self.used)))
        return table


def _centered_by_group(rows: GroupedRows, predictors, group_index, num_groups: int) -> Floats:
    """Return the group-level predictors (J, Q), minus their means over the groups."""
    if not predictors:
        return np.zeros((num_groups, 0))
    for key in predictors:
        require_present(key, rows.columns)
    values = np.stack([rows.vector(key) for key in predictors], axis=-1)
    first = np.unique(group_index, return_index=True)[1]
    for column, key in enumerate(predictors):
        differs = values[:, column] != values[first, column][group_index]
        rows.reject(differs, values[:, column], key, "one value in all points of a group")
    return values[first] - values[first].mean(axis=0)


def _errors(rows: GroupedRows) -> Floats:
    """Return the error covariances (N, D, D) of the D coordinates."""
    *predictors, _ = rows.coordinates
    for kind in {"covariance", "correlation"} & set(rows.columns):
        if len(predictors) > 1:
            raise DataError(
                f"{rows.label(kind)}: expected the coordinates in the name, as in '{kind}_{predictors[0]}_y', with "
                f"{len(predictors)} predictors; found {kind!r}."
            )
    errors = rows.errors(pairs_of(rows.coordinates, short=len(predictors) == 1), without_error=predictors)
    if len(predictors) > 1:
        # With three or more coordinates, valid pairwise correlations do not ensure a positive definite matrix.
        diagonal = np.diagonal(errors, axis1=1, axis2=2)
        unit_filled = errors + np.where(diagonal > 0, 0.0, 1.0)[:, :, None] * np.eye(len(rows.coordinates))
        require_covariances(unit_filled, "covariance of the errors", rows.labels)
    return errors


def _limits(rows: GroupedRows) -> tuple[Floats, Floats, NDArray[np.int64], str]:
    """Return limit and side of each point, the index of the limited coordinate, and the attribute `limited`."""
    num, last = rows.num, len(rows.coordinates) - 1
    limit, side, limit_index, limited = np.full(num, np.nan), np.ones(num), np.full(num, last), "no"
    if "threshold_y" in rows.columns:
        limit, limited = rows.vector("threshold_y", allow_missing=True), "y"
    for index, coordinate in enumerate(rows.coordinates):
        key = f"limit_{coordinate}"
        if key not in rows.columns:
            continue
        words = ["" if word is np.ma.masked else str(word).strip().lower() for word in rows.columns[key]]
        rows.reject([word not in LIMITS for word in words], np.array(words), key, "'upper', 'lower' or nothing")
        kind = np.array([LIMITS[word] for word in words])
        is_limit = kind != 0
        other_limit = (limit_index != last) if index == last else ~np.isnan(limit) & (limit_index != index)
        rows.reject(is_limit & other_limit, kind, key, "at most one limit for each point")
        limit, side = np.where(is_limit, rows.values[:, index], limit), np.where(is_limit, kind, side)
        limit_index = np.where(is_limit, index, limit_index)
        if is_limit.any():
            limited = "both" if index < last or limited == "both" else "y"
    return limit, side, limit_index, limited


def _cuts(rows: GroupedRows) -> Floats:
    """Return the selection limit of each coordinate, (N, D); NaN for no limit."""
    cuts = np.full(rows.values.shape, np.nan)
    for index, coordinate in enumerate(rows.coordinates):
        if (key := f"cut_{coordinate}") in rows.columns:
            cuts[:, index] = rows.vector(key)
    return cuts


def _exchanges(size: int) -> Floats:
    """Return permutation matrices (size, size, size); matrix j swaps coordinate j with the last one."""
    exchanges = np.tile(np.eye(size), (size, 1, 1))
    for j, permutation in enumerate(exchanges):
        permutation[[j, -1]] = permutation[[-1, j]]
    return exchanges


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
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`. The name of a row is its ``group``.
    predictors, group_predictors
        Names of the predictors of points and of groups.

    Returns
    -------
    PointsInGroups

    Raises
    ------
    FileNotFoundError, DataError
        As for `hbm_jax.data.read_table` and `PointsInGroups.from_columns`.

    Examples
    --------
    >>> read_relation({"x": [1.0, 2.0, 3.0], "L": [1.1, 2.3, 2.8]}, columns={"y": "L"}).num_points
    3
    """
    coordinates = (*predictors, "y")
    pairs = pairs_of(coordinates).values() if len(predictors) > 1 else ()
    numbers = [
        *(f"{kind}{pair}" for kind in ("covariance", "correlation") for pair in pairs),
        *coordinates, *(f"{kind}_{key}" for kind in ("sigma", "cut") for key in coordinates), "covariance",
        "correlation", "threshold_y", *group_predictors,
    ]  # fmt: skip
    declared = dict.fromkeys(numbers, UNCONVERTED)
    declared |= dict.fromkeys(["group", *(f"limit_{key}" for key in coordinates)], TEXT)
    return build_from_table(
        read_table(source, format=format, missing=missing),
        partial(PointsInGroups.from_columns, predictors=predictors, group_predictors=group_predictors),
        declared,
        columns=columns,
        leave_out=leave_out,
        required=(*coordinates, *group_predictors),
        name="group",
        aliases={key: alias for key, alias in ALIASES.items() if key in declared},
        quantities=coordinates,
    )
