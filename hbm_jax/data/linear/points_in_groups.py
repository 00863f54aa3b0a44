"""The container of points on a line: predictors and a response, both with errors, in groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.columns import Unusual, check_plain, places_of, places_within, unused_errors, warnings_of
from hbm_jax.data.tables import make_from_rows, read_table
from hbm_jax.validation import (
    DataError,
    Labels,
    float_vector,
    frozen_array,
    reject_rows,
    require_covariances,
    require_present,
    tell,
    text_tuple,
)

__all__ = ["PointsInGroups", "read_relation"]

ARRAYS = ("values", "errors", "limit", "side", "order", "used", "row", "group_predictors", "center", "unit")
LIMITS = {"": 0.0, "none": 0.0, "upper": 1.0, "lower": -1.0}
ALIASES = {"group": "name", "sigma_x": "x_err", "sigma_y": "y_err"}


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class PointsInGroups(Unusual):
    """Points with P predictors x and a response y, measured with errors, in J groups of at most M points.

    Build one with `from_columns` or `hbm_jax.data.read_relation`; the constructor itself checks nothing. A pytree.

    Attributes
    ----------
    name : tuple of str
        Of the groups.
    predictors, group_predictor_names : tuple of str
        Names of the predictors of points, and of groups.
    values : (J, M, P + 1)
        Measured predictors and, last, response; that of a limit is the limit. Zero in padding.
    errors : (J, M, P + 1, P + 1)
        Covariances of their errors; the unit matrix in padding.
    limit, side : (J, M)
        A measured coordinate at the limit or beyond is only known to be there: below where side is 1, above where it is
        -1. NaN for none.
    order : (J, M, P + 1, P + 1)
        Permutation that brings the coordinate with the limit to the end.
    used : (J, M)
        False for padding.
    row : (J, M)
        Row of the table a point is from.
    group_predictors : (J, Q)
        Predictors of slope and intercept of a group, less their means.
    center, unit : (P + 1,)
        Mean and standard deviation of the measured values: the scale of the default priors of
        `hbm_jax.models.Relation`. They belong to the design and stay when other values are put in.
    limited : str
        Where limits are: ``"no"``, ``"y"`` or ``"both"`` (some in a predictor).
    warnings : tuple of str
        What is unusual in the data, a sentence each.
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
        """Check columns of one row a point, and build the container.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            ``y`` and each predictor. Optional: ``sigma_`` and any of these names, standard deviations of the errors, 0
            for a predictor without error; ``covariance`` or ``correlation`` of the errors of y and a single predictor,
            of several ``covariance_a_b`` or ``correlation_a_b``, a and b two of the names in their order, y last;
            ``group``, names; ``limit_`` and any of these names, ``"upper"``, ``"lower"`` or empty; ``threshold_y``,
            below which a response is not seen, so that simulated ones become upper limits there.
        predictors : sequence of str
            Names of the predictors.
        group_predictors : sequence of str
            Names of columns, the same in all points of a group, that predict its slope and intercept.
        called : mapping, optional
            What messages call the columns.

        Raises
        ------
        DataError
            For missing columns, values that are no numbers, errors that are not positive, correlations outside -1 to 1,
            predictors that are all equal, limits without a value, two limits of one point.

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
        nothing = ["no value (masked or empty)"] * num
        reject_rows([not name for name in group], nothing, called.get("group", "group"), "the name of a group", ())
        labels = Labels(num, lambda row: f"row {row}" + (f" (group {group[row]})" if group else ""))

        def vector(key):
            found = float_vector(columns[key], called.get(key, key), labels)
            if len(found) != num:
                raise DataError(f"{called.get(key, key)}: expected {num} values, as y has; found {len(found)}.")
            return found

        if num < 3:
            raise DataError(f"y: expected 3 points or more; found {num}.")
        values = np.stack([vector(key) for key in coordinates], axis=-1)
        for place, key in enumerate(predictors):
            if np.ptp(values[:, place]) == 0:
                raise DataError(
                    f"{called.get(key, key)}: expected predictors that differ, else there is no slope; found "
                    f"{values[0, place]:g} in all {num} rows."
                )
        limit, side, where, limited = _limits(columns, values, coordinates, labels, called)
        errors = _errors(columns, vector, coordinates, labels, called, num)
        names = tuple(dict.fromkeys(group)) if group else ("all",)
        of = places_of(group, names) if group else np.zeros(num, int)
        given = np.zeros((len(names), 0))
        if group_predictors:
            for key in group_predictors:
                require_present(key, columns)
            each = np.stack([vector(key) for key in group_predictors], axis=-1)
            first = np.unique(of, return_index=True)[1]
            for place, key in enumerate(group_predictors):
                differs = each[:, place] != each[first, place][of]
                reject_rows(differs, each[:, place], called.get(key, key), "one value in all points of a group", labels)
            given = each[first] - each[first].mean(axis=0)
        spread = values.std(axis=0)
        padded: dict[str, Any] = _padded(of, len(names), values, errors, limit, side, where)
        return cls(
            names,
            tuple(predictors),
            tuple(group_predictors),
            **padded,
            group_predictors=frozen_array(given),
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
        """Return one paragraph: how many points and groups, with which errors and limits."""
        used = np.asarray(self.used)
        sizes = used.sum(axis=1)
        variances = np.diagonal(np.asarray(self.errors)[used], axis1=-2, axis2=-1)
        kinds = [
            f"{name}: median error {np.sqrt(np.median(variance)):.3g}" if variance.any() else f"{name}: no errors"
            for name, variance in zip((*self.predictors, "y"), variances.T, strict=True)
        ]
        groups = f"{len(self)} groups of {sizes.min()} to {sizes.max()}" if len(self) > 1 else "one group"
        beyond = int(np.sum(self.is_limit))
        limits = f" {beyond} points are limits." if beyond else ""
        return f"{self.num_points} points in {groups}. {'; '.join(kinds)}.{limits}{self._told()}"

    @property
    def is_limit(self) -> np.ndarray:
        """Whether a point is only a limit, (J, M)."""
        last = (np.asarray(self.order)[..., -1, :] * np.asarray(self.values)).sum(-1)
        side = np.asarray(self.side)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.used) & (side * last <= side * np.asarray(self.limit))

    def subset(self, rows: ArrayLike) -> "PointsInGroups":
        """Return the groups picked by a boolean mask or by integer indices."""
        picked = np.arange(len(self))[np.asarray(rows)]
        arrays: dict[str, Any] = {key: np.asarray(getattr(self, key))[picked] for key in ARRAYS[:-2]}
        name = tuple(self.name[i] for i in picked)
        return dataclasses.replace(self, name=name, **arrays)

    def replace_observations(self, observed: ArrayLike) -> "PointsInGroups":
        """Return a copy with other measured values (J, M, P + 1); everything else is the design and stays."""
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
        """Build the container from what `to_dict` returned."""
        keys = ("name", "predictors", "group_predictor_names")
        text: dict[str, Any] = {key: tuple(str(one) for one in np.atleast_1d(stored[key])) for key in keys}
        arrays: dict[str, Any] = {key: np.asarray(stored[key]) for key in ARRAYS}
        return cls(**text, **arrays, limited=str(stored["limited"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table``, one row a point, that `hbm_jax.data.read_relation` reads back."""
        from astropy.table import Table

        used = np.asarray(self.used)
        order = np.argsort(np.asarray(self.row)[used])
        group = np.repeat(np.array(self.name), used.sum(axis=1))[order]
        values, errors = np.asarray(self.values)[used][order], np.asarray(self.errors)[used][order]
        coordinates = (*self.predictors, "y")
        table = Table({"group": group})
        for place, key in enumerate(coordinates):
            table[key] = values[:, place]
            table[f"sigma_{key}"] = np.sqrt(errors[:, place, place])
        for i in range(len(coordinates)):
            for j in range(i + 1, len(coordinates)):
                if errors[:, i, j].any():
                    pair = "" if len(coordinates) == 2 else f"_{coordinates[i]}_{coordinates[j]}"
                    table[f"covariance{pair}"] = errors[:, i, j]
        where = np.asarray(self.order)[used][order][:, -1].argmax(axis=1)
        kinds = np.where(self.is_limit[used][order], np.asarray(self.side)[used][order], 0.0)
        words = {0.0: "none", 1.0: "upper", -1.0: "lower"}
        for place, key in enumerate(coordinates):
            if (own := np.where(where == place, kinds, 0.0)).any():
                table[f"limit_{key}"] = [words[kind] for kind in own]
        for place, key in enumerate(self.group_predictor_names):
            each = np.asarray(self.group_predictors)[:, place]
            table[key] = np.repeat(each, used.sum(axis=1))[order]
        return table


def _errors(columns, vector, coordinates, labels, called, num):
    """Covariances of the errors, (N, D, D)."""
    sigma = np.zeros((num, len(coordinates)))
    for place, key in enumerate(coordinates):
        column = f"sigma_{key}"
        if column in columns:
            sigma[:, place] = vector(column)
            bad = sigma[:, place] < 0 if key != "y" else sigma[:, place] <= 0
            what = "a positive error" if key == "y" else "an error of 0 or more"
            reject_rows(bad, sigma[:, place], called.get(column, column), what, labels)
    errors = np.zeros((num, len(coordinates), len(coordinates)))
    for i in range(len(coordinates)):
        errors[:, i, i] = sigma[:, i] ** 2
        for j in range(i + 1, len(coordinates)):
            pair = "" if len(coordinates) == 2 else f"_{coordinates[i]}_{coordinates[j]}"
            for kind in ("correlation", "covariance"):
                if f"{kind}{pair}" in columns:
                    given = vector(f"{kind}{pair}")
                    called_it = called.get(f"{kind}{pair}", f"{kind}{pair}")
                    covariance = _covariance(kind, given, sigma[:, i] * sigma[:, j], called_it, labels)
                    errors[:, i, j] = errors[:, j, i] = covariance
    for kind in {"covariance", "correlation"} & set(columns):
        if len(coordinates) > 2:
            example = f"{kind}_{coordinates[0]}_y"
            raise DataError(
                f"{called.get(kind, kind)}: expected to be told of which errors, as in {example!r}, with "
                f"{len(coordinates) - 1} predictors; found {kind!r}."
            )
    if len(coordinates) > 2:
        # Of three and more, each pair may be right and the matrix wrong.
        some = sigma > 0
        filled = errors + np.where(some, 0.0, 1.0)[:, :, None] * np.eye(len(coordinates))
        require_covariances(filled, "covariance of the errors", labels)
    return errors


def _covariance(kind: str, given, product, called: str, labels):
    """Covariances of two errors, (N,), from a column of them or of correlations, and the product of the errors."""
    bad = (given != 0) & (product == 0)
    reject_rows(bad, given, called, "0 where one of the two errors is 0 or not given", labels)
    size = np.abs(given) if kind == "correlation" else np.abs(given) / np.where(product > 0, product, 1.0)
    what = "a correlation between -1 and 1" if kind == "correlation" else "one of a positive definite matrix"
    reject_rows(size >= 1, given, called, what, labels)
    return given * product if kind == "correlation" else given


def _limits(columns, values, coordinates, labels, called):
    """Limit and side of each point, which coordinate has it, and where there are limits at all."""
    num, size = values.shape
    limit, side = np.full(num, np.nan), np.ones(num)
    where = np.full(num, size - 1)
    limited = "no"
    if "threshold_y" in columns:
        what = called.get("threshold_y", "threshold_y")
        limit = float_vector(columns["threshold_y"], what, labels, allow_missing=True)
        if limit.shape != (num,):
            raise DataError(f"threshold_y: expected {num} values, as y has; found shape {limit.shape}.")
        limited = "y"
    for place, key in enumerate(coordinates):
        column = f"limit_{key}"
        if column not in columns:
            continue
        words = ["" if word is np.ma.masked else str(word).strip().lower() for word in columns[column]]
        bad = np.array([word not in LIMITS for word in words])
        reject_rows(bad, np.array(words), called.get(column, column), "'upper', 'lower' or nothing", labels)
        kind = np.array([LIMITS[word] for word in words])
        some = kind != 0
        again = some & ((where != size - 1) if key == "y" else (~np.isnan(limit) & (where != place)))
        reject_rows(again, kind, called.get(column, column), "one limit of a point at most", labels)
        limit, side = np.where(some, values[:, place], limit), np.where(some, kind, side)
        where = np.where(some, place, where)
        if some.any():
            limited = "both" if key != "y" or limited == "both" else "y"
    return limit, side, where, limited


def _padded(of, num: int, values, errors, limit, side, where) -> dict[str, np.ndarray]:
    """Arrays of one row a point in the shape (group, place)."""
    row = np.full((num, int(np.bincount(of).max())), -1)
    row[of, places_within(of)] = np.arange(len(of))

    def padded(rows, padding):
        # -1 picks the last row; for a million rows `take` is five times as fast as indexing.
        return np.concatenate([rows, np.asarray(padding)[None]]).take(row, 0, mode="wrap")

    size = values.shape[1]
    exchanged = np.tile(np.eye(size), (size, 1, 1))  # of coordinate j and the last
    for j, permutation in enumerate(exchanged):
        permutation[[j, -1]] = permutation[[-1, j]]
    arrays = {
        "values": padded(values, np.zeros(size)),
        "errors": padded(errors, np.eye(size)),
        "limit": padded(limit, np.nan),
        "side": padded(side, 1.0),
        "order": exchanged.take(padded(where, size - 1), 0),
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
    """Read points with errors from a table of one row a point.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`.
    columns
        Which column of the table is which, standard name to the table's: ``{"x": "log_M", "sigma_x": "e_log_M"}``.
        Columns with standard names, see `PointsInGroups.from_columns`, are found by themselves; others are ignored.
    format
        File format, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        What to leave out: names of groups, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out rows that cannot
        be used, and warns of them.
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
        For everything else that is wrong; the message begins with the table.

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
        found = table.resolve(standard, columns, {k: v for k, v in ALIASES.items() if k in standard})
        table.require(found, *coordinates, *group_predictors)
        texts = ("group", *(f"limit_{key}" for key in coordinates))
        data, left_out, _ = make_from_rows(
            {key: table.values(name, text=key in texts) for key, name in found.items()},
            lambda rows: PointsInGroups.from_columns(
                rows, predictors=predictors, group_predictors=group_predictors, called=found
            ),
            name="group",
            leave_out=leave_out,
        )
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(found, table.columns, coordinates)
    return dataclasses.replace(data, warnings=tell([*left_out, *unused, *data.warnings], origin=table.origin))
