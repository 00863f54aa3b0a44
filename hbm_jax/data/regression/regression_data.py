"""The container of regressions: a response, its design matrix, and the designs of effects that vary between groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.columns import Unusual, check_plain, unused_errors, warnings_of
from hbm_jax.data.regression import formulas
from hbm_jax.data.regression.group_designs import GroupDesign, group_designs
from hbm_jax.data.tables import make_from_rows, read_table
from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError, float_vector, frozen_array, reject_rows, tell, text_tuple

__all__ = ["RegressionData", "read_regression"]

INTERCEPT = "Intercept"
ROLES = ("trials", "exposure", "offset", "error", "name")  # that columns may have beside those of the formula
DEPENDENT = 1e-9  # of a column's length, that the columns before leave of it where it adds nothing


@dataclass(frozen=True, eq=False)
class Source:
    """What a container was made from: the columns it used, the formula, and which columns have which role."""

    columns: dict[str, np.ndarray]
    formula: str
    roles: dict[str, str]


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class RegressionData(Unusual):
    """A response of N points, K predictors, and effects that vary between groups.

    Build one with `from_columns` (a formula), `from_arrays` or `hbm_jax.data.read_regression`; the constructor itself
    checks nothing. A pytree.

    Attributes
    ----------
    name : tuple of str
        Of the points; their row numbers where none were given.
    response : str
        What the formula calls the response.
    terms : tuple of str
        Names of the columns of the design matrix, ``"Intercept"`` among them where there is one.
    categories : tuple of str
        Of a response that is text; else empty.
    y : (N,)
        Response; of one that is text, the number of its category.
    X : (N, K)
        Design matrix.
    offset : (N,)
        Added to the linear predictor: offsets and logarithms of exposures.
    error : (N,)
        Standard deviations of known errors of the response; 0 for none.
    trials : (N,)
        Number of trials of a binomial response; 1 where none were given.
    groups : tuple of GroupDesign
        Effects that vary between groups.
    within : (K,)
        0 for columns that some group term has a multiple of in every group, which the effects are centred on; else 1.
    means, scales : (K,)
        Means (0 of the intercept and where there is none) and standard deviations (1 of the intercept) of the columns.
    basis : (K, K)
        From coordinates in which the columns, less their means, are orthogonal and of unit mean square, to coefficients
        (by QR decomposition).
    y_mean, y_std : float
        Of the response: the scale of default priors. They belong to the design and stay when other values are put in.
    source : Source
        What it was made from.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    response: str = field(metadata={"static": True})
    terms: tuple[str, ...] = field(metadata={"static": True})
    categories: tuple[str, ...] = field(metadata={"static": True})
    y: Any
    X: Any
    offset: Any
    error: Any
    trials: Any
    groups: tuple[GroupDesign, ...]
    within: Any
    means: Any
    scales: Any
    basis: Any
    y_mean: Any
    y_std: Any
    source: Source = field(metadata={"static": True})

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        formula: str = "",
        *,
        trials: str | None = None,
        exposure: str | None = None,
        offset: str | None = None,
        error: str | None = None,
        name: str | None = None,
    ) -> "RegressionData":
        """Build the container from columns of one row a point and a formula.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            The table: numbers or text. Text in a formula is a category.
        formula : str
            ``"response ~ terms"``, for example ``x1 * x2 + log(x3) + C(k) + I(x4 - 2)``, and terms that vary between
            groups: ``(1 | g)``, ``(1 + x | g)`` with correlated effects, ``(1 + x || g)`` without,
            ``(1 | a:b)`` for combinations, and ``(1 + x | walk(t))`` for coefficients that walk at random along t.
        trials, exposure, offset, error, name : str, optional
            Columns: number of trials of a binomial response; exposure, whose logarithm is an offset; offset of the
            linear predictor; standard deviation of the known error of the response; labels of the points.

        Raises
        ------
        DataError
            For a formula that cannot be read or names an unknown column, values that are missing, predictors that are
            all equal or follow from others, groups without points or a single group, errors and exposures that are not
            positive.

        Examples
        --------
        >>> data = RegressionData.from_columns({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8]}, "y ~ x")
        >>> data.terms
        ('Intercept', 'x')
        """
        given = {"trials": trials, "exposure": exposure, "offset": offset, "error": error, "name": name}
        roles = {role: column for role, column in given.items() if column}
        if not formula:
            raise DataError(f"formula: expected one, {formulas.EXAMPLE}; found none.")
        parsed = formulas.parse(formula)
        needed = set(parsed.columns)
        formulas.require_columns(needed, columns, formula)
        for role, column in roles.items():
            if column not in columns:
                raise DataError(
                    f"{role}: {column!r} is not in the table{did_you_mean(column, columns)}: expected one of "
                    f"{listed(columns)}; found {column!r}."
                )
        _refuse_empty_groups(columns, parsed)
        used = [key for key in columns if key in needed | set(roles.values())]
        frame = formulas.frame_of({key: np.asanyarray(columns[key]) for key in used})
        formulas.require_numbers(parsed.numbers, frame)
        num = len(frame)
        if num < 2:
            raise DataError(f"{parsed.response}: expected 2 points or more; found {num}.")
        labels = text_tuple(columns[roles["name"]], roles["name"], "row {row}") if "name" in roles else None
        name_of = labels or tuple(map(str, range(num)))
        for column in needed:
            missing = frame[column].isna().to_numpy()
            reject_rows(missing, frame[column].to_numpy(dtype=object), column, "a value", labels or ())
        y, categories = _response(parsed.response, frame, labels or ())
        terms, matrix = formulas.design(parsed.fixed, frame, "the part for all points")
        for place, called in enumerate(terms):
            reject_rows(~np.isfinite(matrix[:, place]), matrix[:, place], called, "a finite number", labels or ())
        means, scales, basis = _scales(terms, matrix)
        groups, within = group_designs(parsed.groups, frame, matrix, labels or ())
        raw = {key: np.asarray(frame[key].to_numpy(), float if frame[key].dtype.kind in "iuf" else str) for key in used}
        return cls(
            name_of,
            parsed.response,
            terms,
            categories,
            frozen_array(y),
            frozen_array(matrix),
            **_roles(frame, roles, y, labels or ()),
            groups=groups,
            within=frozen_array(within),
            means=frozen_array(means),
            scales=frozen_array(scales),
            basis=frozen_array(basis),
            y_mean=frozen_array(y.mean()),
            y_std=frozen_array(y.std() or 1.0),
            source=Source(raw, formula, roles),
            warnings=tuple(_unusual(raw, roles)),
        )

    @classmethod
    def from_arrays(
        cls,
        y: ArrayLike,
        X: ArrayLike | Mapping[str, ArrayLike],
        *,
        groups: Mapping[str, Sequence] | None = None,
        intercept: bool = True,
        varying: Sequence[str] = (),
        trials: ArrayLike | None = None,
        exposure: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        error: ArrayLike | None = None,
    ) -> "RegressionData":
        """Build the container from plain arrays.

        Parameters
        ----------
        y : (N,)
            Response.
        X : (N, K), (N,), or mapping of str to (N,)
            Predictors, without a column of ones; those of an array are called ``x1, x2, ...``.
        groups : mapping of str to sequence (N,), optional
            Label of each point's group, by the name of the grouping: each has a varying intercept.
        intercept : bool
            Whether there is an intercept.
        varying : sequence of str
            Names of predictors whose slopes vary between groups, too.
        trials, exposure, offset, error : (N,), optional
            As in `from_columns`.

        Raises
        ------
        DataError
            As `from_columns`, and for arrays of other lengths.

        Examples
        --------
        >>> RegressionData.from_arrays([1.0, 2.0, 4.0], [[1.0], [2.0], [3.0]]).terms
        ('Intercept', 'x1')
        """
        y = np.asarray(y)
        if not isinstance(X, Mapping):
            array = np.asarray(X, float)
            array = array[:, None] if array.ndim == 1 else array
            if array.ndim != 2:
                raise DataError(f"X: expected predictors of shape (N, K); found {array.shape}.")
            X = {f"x{k + 1}": array[:, k] for k in range(array.shape[1])}
        groups = dict(groups or {})
        extra = {"trials": trials, "exposure": exposure, "offset": offset, "error": error}
        given = {role: np.asarray(values) for role, values in extra.items() if values is not None}
        columns: dict[str, Any] = {"y": y, **X, **groups, **given}
        if len(columns) < 1 + len(X) + len(groups) + len(given):
            raise DataError(
                f"X, groups: expected names that differ from each other and from 'y'; found {[*X, *groups]}."
            )
        for key, values in columns.items():
            if len(values) != len(y):
                raise DataError(f"{key}: expected {len(y)} values, as y has; found {len(values)}.")
        terms = ["1" if intercept else "0", *(f"`{key}`" for key in X)]
        inner = " + ".join(["1", *(f"`{key}`" for key in varying)])
        formula = f"y ~ {' + '.join([*terms, *(f'({inner} | `{group}`)' for group in groups)])}"
        return cls.from_columns(columns, formula, **{role: role for role in given})

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.name)

    def __repr__(self) -> str:
        return f"RegressionData({self.source.formula}, {len(self)} points)"

    def describe(self) -> str:
        """Return one paragraph: how many points, which formula, which groups."""
        of = [f"{len(group.labels)} {group.name}" for group in self.groups]
        groups = f" Groups: {', '.join(of)}." if of else ""
        more = f" {len(self.categories)} categories." if self.categories else ""
        roles = "".join(f" {role.capitalize()}: {column}." for role, column in self.source.roles.items())
        text = f"{len(self)} points, {self.source.formula}; {len(self.terms)} coefficients.{groups}{more}{roles}"
        return text + self._told()

    def subset(self, rows: ArrayLike) -> "RegressionData":
        """Return the points picked by a boolean mask or by integer indices, with scales of their own."""
        picked = np.arange(len(self))[np.asarray(rows)]
        columns = {key: values[picked] for key, values in self.source.columns.items()}
        made = RegressionData.from_columns(columns, self.source.formula, **self.source.roles)
        made = dataclasses.replace(made, name=tuple(self.name[i] for i in picked), warnings=self.warnings)
        return made.replace_observations(np.asarray(self.y)[picked])

    def replace_observations(self, observed: ArrayLike) -> "RegressionData":
        """Return a copy with another response (N,); everything else is the design and stays."""
        values = np.asarray(observed, float)
        if values.shape != np.shape(self.y):
            raise DataError(f"observed: expected shape {np.shape(self.y)}; found {values.shape}.")
        return dataclasses.replace(self, y=frozen_array(values))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by name, text as arrays of strings, for storage and fingerprints."""
        columns = {f"column:{key}": values for key, values in self.source.columns.items()}
        roles = {f"role:{role}": np.asarray(column) for role, column in self.source.roles.items()}
        rest = {"formula": np.asarray(self.source.formula), "observed": np.asarray(self.y)}
        return columns | roles | rest | self._stored()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RegressionData":
        """Build the container from what `to_dict` returned."""
        parts: dict[str, dict[str, Any]] = {"column": {}, "role": {}}
        for key, value in stored.items():
            kind, _, rest = key.partition(":")
            if kind in parts:
                parts[kind][rest] = np.asarray(value) if kind == "column" else str(value)
        made = cls.from_columns(parts["column"], str(stored["formula"]), **parts["role"])
        return dataclasses.replace(made.replace_observations(stored["observed"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table`` of the columns, the response in the column that the formula names.

        Where the response is an expression such as ``log(y)``, its value is in a column ``response``.
        """
        from astropy.table import Table

        table = Table({key: values for key, values in self.source.columns.items() if key != self.response})
        y = np.asarray(self.y)
        table[self.response if self.response in self.source.columns else "response"] = (
            [self.categories[int(value)] for value in y] if self.categories else y
        )
        return table


def _refuse_empty_groups(columns, parsed) -> None:
    """Refuse categories that are declared, as in pandas, and have no row."""
    for factor in {name for term in parsed.groups for name in term.factors}:
        declared = getattr(getattr(columns[factor], "cat", None), "categories", None)
        if declared is None:
            continue
        empty = sorted(set(map(str, declared)) - {str(one) for one in columns[factor]})
        if empty:
            raise DataError(
                f"{factor}: expected points in every group; found none in {listed(empty)}. Drop these categories "
                "(remove_unused_categories)."
            )


def _response(response: str, frame, labels) -> tuple[np.ndarray, tuple[str, ...]]:
    values = frame.get(response)
    if values is None:
        _, matrix = formulas.design(f"0 + {response}", frame, "the response")
        if matrix.shape[1] != 1:
            raise DataError(f"response: expected one column; found {matrix.shape[1]} in {response!r}.")
        y = matrix[:, 0]
        reject_rows(~np.isfinite(y), y, response, "a finite number", labels)
        return y, ()
    if values.dtype.kind in "iuf":
        return float_vector(values.to_numpy(), response, labels), ()
    texts = [str(one) for one in values]
    categories = tuple(sorted(set(texts)))
    if len(categories) < 2:
        raise DataError(f"{response}: expected two categories or more; found {categories[0]!r} in every row.")
    return np.array([categories.index(one) for one in texts], float), categories


def _scales(terms, matrix: np.ndarray):
    """Means, standard deviations, and the map from orthogonal coordinates to coefficients."""
    num, size = matrix.shape
    has_one = INTERCEPT in terms
    for place, term in enumerate(terms):
        if term != INTERCEPT and np.ptp(matrix[:, place]) == 0:
            more = " The intercept is in the formula already." if has_one and matrix[0, place] == 1 else ""
            raise DataError(
                f"{term}: expected a predictor that differs between points; found {matrix[0, place]:g} in all {num} "
                f"rows.{more}"
            )
    first = terms.index(INTERCEPT) if has_one else -1
    means = matrix.mean(axis=0) if has_one else np.zeros(size)
    scales = matrix.std(axis=0)
    shift = np.eye(size)
    if has_one:
        means[first], scales[first] = 0.0, 1.0
        shift[first] -= means
    if size > num:
        raise DataError(f"formula: expected at most {num} coefficients, one a point; found {size}.")
    centred = (matrix - means) / scales
    factor = np.asarray(np.linalg.qr(centred / np.sqrt(num), mode="r"))
    length = np.sqrt((factor**2).sum(axis=0))
    dependent = np.abs(np.diagonal(factor)) < DEPENDENT * length
    if dependent.any():
        names = [term for term, bad in zip(terms, dependent, strict=True) if bad]
        raise DataError(
            f"{listed(names)}: expected predictors that do not follow from those before them; found a linear "
            f"combination of {listed(term for term in terms if term not in names)}."
        )
    return means, scales, shift @ (np.linalg.inv(factor) / scales[:, None])


def _roles(frame, roles, y, labels) -> dict[str, np.ndarray]:
    def column(role, default):
        if role not in roles:
            return np.full(len(y), default)
        return float_vector(frame[roles[role]].to_numpy(), roles[role], labels)

    exposure, error, trials = column("exposure", 1.0), column("error", 0.0), column("trials", 1.0)
    for role, values in (("exposure", exposure), ("error", error), ("trials", trials)):
        if role in roles:
            reject_rows(values <= 0, values, f"{role} {roles[role]}", "a positive number", labels)
    if "trials" in roles:
        reject_rows(trials != np.round(trials), trials, f"trials {roles['trials']}", "a whole number", labels)
        reject_rows((y < 0) | (y > trials), y, "the response", f"0 to the number of trials ({roles['trials']})", labels)
    return {
        "offset": frozen_array(column("offset", 0.0) + np.log(exposure)),
        "error": frozen_array(error),
        "trials": frozen_array(trials),
    }


def read_regression(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    formula: str = "",
    trials: str | None = None,
    exposure: str | None = None,
    offset: str | None = None,
    error: str | None = None,
    name: str | None = None,
) -> RegressionData:
    """Read the data of a regression from a table of one row a point.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`.
    columns
        Other names for columns of the table, to be used in the formula: ``{"y": "log_L"}``.
    format
        File format, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        What to leave out: names of points, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out rows that cannot
        be used, and warns of them.
    formula, trials, exposure, offset, error, name
        As in `RegressionData.from_columns`.

    Returns
    -------
    RegressionData

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For everything else that is wrong; the message begins with the table.

    Examples
    --------
    >>> len(read_regression({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8]}, formula="y ~ x"))
    3
    """
    table = read_table(source, format=format, missing=missing)
    try:
        for key, column in dict(columns or {}).items():
            if column not in table.columns:
                raise DataError(
                    f"columns[{key!r}] = {column!r} is not in the table{did_you_mean(column, table.columns)}: expected "
                    f"one of {listed(table.columns)}; found {column!r}."
                )
        called = dict.fromkeys(table.columns) | dict.fromkeys(columns or {})
        # pandas' own columns say which categories they were declared with.
        values = {key: _as_declared(table, (columns or {}).get(key, key)) for key in called}
        roles = {"trials": trials, "exposure": exposure, "offset": offset, "error": error, "name": name}
        data, left_out, _ = make_from_rows(
            values,
            lambda rows: RegressionData.from_columns(rows, formula, **roles),
            name=name or "name",
            leave_out=leave_out,
        )
    except DataError as error_found:
        raise DataError(f"{table.origin}: {error_found}") from error_found
    used = {key: key for key in data.source.columns}
    known = {} if error is None else {f"sigma_{data.response}": error}
    unused = unused_errors(used | known, table.columns, used)
    return dataclasses.replace(data, warnings=tell([*left_out, *unused, *data.warnings], origin=table.origin))


def _unusual(columns: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> list[str]:
    """Warn of values of the columns in use that look like codes for no value."""
    texts = {roles[role] for role in ("name",) if role in roles}
    numbers = {key: values for key, values in columns.items() if values.dtype.kind == "f" and key not in texts}
    return check_plain(numbers, {})


def _as_declared(table, name: str):
    column = table.columns[name]
    if hasattr(column, "cat"):
        return column
    values = table.values(name)
    if not np.ma.isMaskedArray(values):
        return values
    numbers = values.dtype.kind in "iuf"
    # Not by `filled`, to which None is the default of the type, "?".
    plain = np.ma.getdata(values).astype(float if numbers else object)
    plain[np.ma.getmaskarray(values)] = np.nan if numbers else None
    return plain
