"""Data of a linear relation: grouped points with errors in the predictors and in the response."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.building import build_from_table
from hbm_jax.data.columns import TEXT, UNCONVERTED
from hbm_jax.data.injections import read_injections
from hbm_jax.data.linear.grouped import GroupedRows, InGroups, pairs_of
from hbm_jax.data.linear.measurements import (
    COMBINED,
    LIMITS,
    combined_by_object,
    limit_words,
    point_errors,
    with_normal_errors,
)
from hbm_jax.data.tables import read_table
from hbm_jax.names import renamed_keyword
from hbm_jax.validation import DataError, Floats, frozen_array, require_present

ALIASES = {"group": "name", "sigma_x": "x_err", "sigma_y": "y_err", "redshift": "z"}


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
        Row of each point in the table, or number of its object where rows are combined by object; -1 in padding.
    group_predictors : (J, Q)
        Group-level predictors of slope and intercept, minus their means over the groups.
    center, unit : (P + 1,)
        Mean and standard deviation of the measured values, which scale the default priors of
        `hbm_jax.models.Relation`. `replace_observations` does not change them.
    limited : str
        Coordinates with limits: ``"no"``, ``"y"``, or ``"both"`` if at least one predictor has limits.
    cut : (J, M, P + 1)
        Selection limit of each coordinate, beyond which the point would not be in the data; NaN for no limit.
    redshift : (J, M)
        Redshift of each point; NaN if the table has none.
    common_error_y : (J,)
        Standard deviation of the error of y that is common to all points of a group; 0 for none.
    common_error_x : (J, P)
        The same of the predictors.
    injections : (I, P + 2)
        True coordinates of the injections that were found, and the logarithms of the densities from which they were
        drawn; see `with_injections`.
    num_injections : ()
        Number of injections, found or not.
    column_labels : tuple of str
        Names of the columns of predictors and response in the user's table; empty if they are the names of the
        coordinates.
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
    redshift: Any = None
    common_error_y: Any = None
    common_error_x: Any = None
    injections: Any = None
    num_injections: Any = None
    column_labels: tuple[str, ...] = field(default=(), metadata={"static": True})

    @classmethod
    @renamed_keyword("called", "column_names")
    def from_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        *,
        predictors: Sequence[str] = ("x",),
        group_predictors: Sequence[str] = (),
        log10: Sequence[str] = (),
        column_names: Mapping[str, str] | None = None,
    ) -> "PointsInGroups":
        """Validate columns with one row per point and build the container.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            Required: ``y`` and each predictor. Optional, with A and B any two coordinates in the order of the
            predictors and then y:

            - ``sigma_A``: standard deviation of the error of A; 0 for none.
            - ``A_err_lo`` and ``A_err_hi`` in its place: distances of the ends of the interval of one standard
              deviation from A. The interval is taken as that of a normal distribution: the value becomes its centre,
              and the error half of its width.
            - ``covariance`` or ``correlation``: of the errors of y and a single predictor. With several predictors,
              ``covariance_A_B`` or ``correlation_A_B``.
            - ``group``: name of the group of each point.
            - ``limit_A``: ``"upper"``, ``"<"`` or 1 if the value of A is an upper limit, ``"lower"``, ``">"`` or -1 if
              it is a lower limit, otherwise empty, ``"="`` or 0. The error of a limit may be missing: it is then 0.
            - ``threshold_y``: detection threshold of the response; simulated responses below it become upper limits.
            - ``cut_A``: value of A beyond which the point would not be in the data at all, for a
              `hbm_jax.models.Relation` with a selection in A.
            - ``redshift``: for a `hbm_jax.models.Relation` with ``evolution``; NaN for none.
            - ``common_error_A``: standard deviation of an error of A that is the same for all points of a group, such
              as the calibration of an instrument, beside the errors of the points.
            - ``object``: name of the object of each point. Rows of the same object are independent measurements of the
              same true coordinates, and are combined to one point without loss; a coordinate may be missing in all of
              them but one. They count as one point for limits of a selection.
        predictors : sequence of str
            Names of the predictors.
        group_predictors : sequence of str
            Names of columns, constant within each group, that predict its slope and intercept.
        log10 : sequence of str
            Coordinates whose columns, and those of their errors and limits, are linear: the relation is one of their
            decimal logarithms. The ends of the interval of one standard deviation are converted, as those of asymmetric
            errors.
        column_names : mapping, optional
            Column names to use in messages and figures, by standard name.

        Raises
        ------
        DataError
            For missing columns, values that are not numbers, errors below 0, correlations outside -1 to 1, logarithms
            of values that are not above their errors, a predictor with the same value in all points, limits without a
            value, and two limits for one point.

        Examples
        --------
        >>> data = PointsInGroups.from_columns({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8], "sigma_y": [0.1, 0.1, 0.2]})
        >>> len(data), data.num_points
        (1, 3)
        """
        coordinates = (*predictors, "y")
        if not predictors or len(set(coordinates)) < len(coordinates):
            raise DataError(f"predictors: expected names that differ from each other and from 'y'; found {predictors}.")
        column_names = column_names or {}
        columns = with_normal_errors(columns, coordinates, log10, column_names)
        labels = tuple(("log10 " if key in log10 else "") + column_names.get(key, key) for key in coordinates)
        labels = () if labels == coordinates else labels
        if COMBINED not in columns:
            data = cls._from_rows(GroupedRows(columns, coordinates, column_names, 3), group_predictors)
            return replace(data, column_labels=labels)
        columns, warnings = combined_by_object(columns, coordinates, column_names)
        try:
            data = cls._from_rows(GroupedRows(columns, coordinates, column_names, 3), group_predictors, warnings)
            return replace(data, column_labels=labels)
        except DataError as error:
            error.rows = () if warnings else error.rows  # objects, not rows of the table
            raise

    @classmethod
    def _from_rows(
        cls, rows: GroupedRows, group_predictors: Sequence[str], warnings: Sequence[str] = ()
    ) -> "PointsInGroups":
        """Build the container from checked columns with one row per point."""
        *predictors, _ = coordinates = rows.coordinates
        for key, values in zip(predictors, rows.values.T, strict=False):
            if np.ptp(values) == 0:
                raise DataError(
                    f"{rows.label(key)}: expected values that differ between rows, without which there is no "
                    f"slope; found {values[0]:g} in all {rows.num} rows."
                )
        limit, side, limit_index, limited = _limits(rows)
        errors = point_errors(rows)
        names, group_index = rows.groups(together=True)
        exchanges = _exchanges(len(coordinates))
        redshift = np.full(rows.num, np.nan)
        if "redshift" in rows.columns:  # models that use it check its values
            redshift = rows.vector("redshift", allow_missing=True)
        by_point = {  # array (N, ...), and its value in padding
            "limit": (limit, np.nan),
            "side": (side, 1.0),
            "order": (exchanges[limit_index], exchanges[-1]),
            "cut": (_cuts(rows), np.full(len(coordinates), np.nan)),
            "redshift": (redshift, np.nan),
        }
        fields = rows.padded_fields(group_index, errors, by_point)
        return cls(
            names,
            tuple(predictors),
            tuple(group_predictors),
            **(fields | {"warnings": (*warnings, *fields["warnings"])}),
            group_predictors=frozen_array(_centered_by_group(rows, group_predictors, group_index, len(names))),
            limited=limited,
            common_error_y=frozen_array(_common_errors(rows, group_index, "y")),
            common_error_x=frozen_array(
                np.stack([_common_errors(rows, group_index, key) for key in predictors], axis=-1)
            ),
            injections=frozen_array(np.zeros((0, len(coordinates) + 1))),
            num_injections=frozen_array(0.0),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of predictors and response for figures: those of the user's columns."""
        return self.column_labels or (*self.predictors, "y")

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
        last = (np.asarray(self.order)[..., -1, :] * np.asarray(self.values)).sum(-1)  # the coordinate with the limit
        side = np.asarray(self.side)
        with np.errstate(invalid="ignore"):  # without a limit it is NaN, and the comparison False
            return np.asarray(self.used) & (side * last <= side * np.asarray(self.limit))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, without those of optional columns that the points do not have."""
        stored = super().to_dict()
        present = {
            "cut": np.isfinite(self.cut).any(),
            "redshift": np.isfinite(self.redshift).any(),
            "common_error_y": np.any(self.common_error_y),
            "common_error_x": np.any(self.common_error_x),
            "injections": len(self.injections) > 0,
            "num_injections": len(self.injections) > 0,
            "column_labels": bool(self.column_labels),
        }
        return {key: value for key, value in stored.items() if present.get(key, True)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "PointsInGroups":
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        values = np.asarray(stored["values"])
        missing = {
            "cut": np.full(values.shape, np.nan),
            "redshift": np.full(values.shape[:-1], np.nan),
            "common_error_y": np.zeros(len(values)),
            "common_error_x": np.zeros((len(values), values.shape[-1] - 1)),
            "injections": np.zeros((0, values.shape[-1] + 1)),
            "num_injections": 0.0,
            "column_labels": (),
        }
        return super().from_dict({**missing, **stored})

    def replace_observations(self, observed: ArrayLike) -> "PointsInGroups":
        """Return a copy with other measured values (J, M, P + 1); all other fields are unchanged."""
        return self._replaced(observed, "observed")

    def with_injections(self, source: Any) -> "PointsInGroups":
        """Return a copy with injections, for a `hbm_jax.models.Relation` with ``selection="injections"``.

        Parameters
        ----------
        source : path or table
            Simulated points of which the survey found some, one row each: the true value of every coordinate, in the
            units of the relation; ``density``, the probability density per unit of every coordinate of the distribution
            from which they were drawn; and ``found``, 1 or 0.

        Raises
        ------
        DataError
            For missing columns, densities that are not positive, and tables in which none is found.
        """
        every = read_injections(source, (*self.predictors, "y"))
        found = np.concatenate([every.values, every.log_density[:, None]], axis=1)[every.found]
        num = frozen_array(float(len(every.found)))
        arrays: dict[str, Any] = {"injections": frozen_array(found), "num_injections": num}
        return replace(self, **arrays)

    def to_table(self):
        """Return an astropy ``Table`` with one row per point, which `hbm_jax.data.read_relation` reads."""
        coordinates = (*self.predictors, "y")
        table = self._measured_table(coordinates, pairs_of(coordinates, short=len(coordinates) == 2))
        limit_index = self._by_row(self.order)[:, -1].argmax(axis=1)
        kinds = np.where(self._by_row(self.is_limit), self._by_row(self.side), 0.0)
        words = {0.0: "none", 1.0: "upper", -1.0: "lower"}
        for index, key in enumerate(coordinates):
            kinds_of_coordinate = np.where(limit_index == index, kinds, 0.0)
            if kinds_of_coordinate.any():
                table[f"limit_{key}"] = [words[kind] for kind in kinds_of_coordinate]
        cuts, redshift = self._by_row(self.cut), self._by_row(self.redshift)
        for index, key in enumerate(coordinates):
            if np.isfinite(cuts[:, index]).any():
                table[f"cut_{key}"] = cuts[:, index]
        if np.isfinite(redshift).any():
            table["redshift"] = redshift
        common_errors = [*np.asarray(self.common_error_x).T, np.asarray(self.common_error_y)]
        for key, errors in zip(coordinates, common_errors, strict=True):
            if errors.any():
                table[f"common_error_{key}"] = self._by_row(np.broadcast_to(errors[:, None], np.shape(self.used)))
        for predictor, key in zip(np.asarray(self.group_predictors).T, self.group_predictor_names, strict=True):
            table[key] = self._by_row(np.broadcast_to(predictor[:, None], np.shape(self.used)))
        return table


def _centered_by_group(rows: GroupedRows, predictors, group_index, num_groups: int) -> Floats:
    """Return the group-level predictors (J, Q), minus their means over the groups."""
    if not predictors:
        return np.zeros((num_groups, 0))
    for key in predictors:
        require_present(key, rows.columns)
    values = np.stack([_values_of_groups(rows, key, group_index) for key in predictors], axis=-1)
    return values - values.mean(axis=0)


def _values_of_groups(rows: GroupedRows, key: str, group_index) -> Floats:
    """Return the values (J,) of a column that is constant within each group."""
    values, first = rows.vector(key), np.unique(group_index, return_index=True)[1]
    rows.reject(values != values[first][group_index], values, key, "one value in all points of a group")
    return values[first]


def _common_errors(rows: GroupedRows, group_index, coordinate: str) -> Floats:
    """Return the standard deviation of the error of a coordinate that is common to each group, (J,); 0 for none."""
    key = f"common_error_{coordinate}"
    if key not in rows.columns:
        return np.zeros(group_index.max() + 1)
    errors = _values_of_groups(rows, key, group_index)
    rows.reject((errors < 0)[group_index], errors[group_index], key, "an error of 0 or more")
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
        words = limit_words(rows.columns[key])
        expected = "'upper', 'lower' or nothing; '<', '>' or '='; or 1, -1 or 0"
        rows.reject([word not in LIMITS for word in words], np.array(words), key, expected)
        kind = np.array([LIMITS[word] for word in words])
        is_limit = kind != 0
        # A limit of y may replace its threshold, a limit of a predictor may not be beside it.
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
    log10: Sequence[str] = (),
    injections: str | None = None,
) -> PointsInGroups:
    """Read points with errors from a table with one row per point.

    Parameters
    ----------
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`. The name of a row is its ``group``.
    predictors, group_predictors
        Names of the predictors of points and of groups.
    log10
        Coordinates with linear columns whose decimal logarithms are related, see `PointsInGroups.from_columns`.
    injections
        Table of injections, see `PointsInGroups.with_injections`.

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
        *coordinates,
        *(f"{kind}_{key}" for kind in ("sigma", "cut", "common_error") for key in coordinates),
        *(f"{key}_err_{side}" for key in coordinates for side in ("lo", "hi")),
        *(f"{kind}{pair}" for kind in ("covariance", "correlation") for pair in ("", *pairs)),
        *("threshold_y", "redshift", *group_predictors),
    ]
    declared = dict.fromkeys(numbers, UNCONVERTED)
    declared |= dict.fromkeys(["group", COMBINED, *(f"limit_{key}" for key in coordinates)], TEXT)
    data = build_from_table(
        read_table(source, format=format, missing=missing),
        partial(
            PointsInGroups.from_columns, predictors=predictors, group_predictors=group_predictors, log10=tuple(log10)
        ),
        declared,
        columns=columns,
        leave_out=leave_out,
        required=(*coordinates, *group_predictors),
        name="group",
        aliases={key: alias for key, alias in ALIASES.items() if key in declared and alias not in declared},
        quantities=coordinates,
    )
    return data if injections is None else data.with_injections(injections)
