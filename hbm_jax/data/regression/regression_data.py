"""Container of regression data: a response, its design matrix, and the designs of effects that vary between groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.building import make_from_rows, named_errors, with_warnings
from hbm_jax.data.columns import check_plain, require_in_table, unused_errors
from hbm_jax.data.containers import HasWarnings, reshaped, selected_rows, warnings_of
from hbm_jax.data.regression import formulas
from hbm_jax.data.regression.grammar import EXAMPLE, parse
from hbm_jax.data.regression.group_designs import GroupDesign, group_designs
from hbm_jax.data.tables import read_table
from hbm_jax.names import listed
from hbm_jax.validation import DataError, float_vector, frozen_array, reject_rows, text_tuple

INTERCEPT = "Intercept"
# A column is linearly dependent if its norm orthogonal to the preceding columns is smaller, relative to its norm.
DEPENDENT = 1e-9


@dataclass(frozen=True, eq=False)
class Source:
    """Inputs of a container: the columns used, the formula, and the column of each role."""

    columns: dict[str, np.ndarray]
    formula: str
    roles: dict[str, str]


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class RegressionData(HasWarnings):
    """A response of N points, K predictors, and effects that vary between groups.

    Build it with `from_columns` (a formula), `from_arrays` or `hbm_jax.data.read_regression`; the constructor does not
    validate. Registered as a pytree.

    Attributes
    ----------
    name : tuple of str
        Names of the points; row numbers by default.
    response : str
        Response as written in the formula.
    terms : tuple of str
        Names of the columns of the design matrix, including ``"Intercept"`` if there is one.
    categories : tuple of str
        Categories of a text response; else empty.
    y : (N,)
        Response; for a text response, the index of the category.
    X : (N, K)
        Design matrix.
    offset : (N,)
        Added to the linear predictor: offsets and logarithms of exposures.
    error : (N,)
        Known standard deviations of the response; 0 for none.
    trials : (N,)
        Number of trials of a binomial response; 1 by default.
    groups : tuple of GroupDesign
        Effects that vary between groups.
    within : (K,)
        0 for columns that enter through the mean of the effects of a group, see ``GroupDesign.group_predictors``; 1 for
        others.
    means, scales : (K,)
        Means (0 for the intercept, and for all columns of a formula without intercept) and standard deviations (1 for
        the intercept) of the columns.
    basis : (K, K)
        Matrix from coordinates in which the centred columns are orthogonal and have unit mean square to coefficients,
        from a QR decomposition.
    y_mean, y_std : float
        Mean and standard deviation of the original response, which scale the default priors. `replace_observations`
        does not change them.
    source : Source
        Columns, formula and roles from which the container was built.
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
        """Build the container from a formula and columns with one row per point.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            Columns of numbers or text. Text columns in the formula are categorical predictors.
        formula : str
            ``"response ~ terms"``, for example ``x1 * x2 + log(x3) + C(k) + I(x4 - 2)``, and terms that vary between
            groups: ``(1 | g)``, ``(1 + x | g)`` with correlated effects, ``(1 + x || g)`` with uncorrelated effects,
            ``(1 | a:b)`` for combinations, and ``(1 + x | walk(t))`` for coefficients that follow a random walk in t.
        trials, exposure, offset, error, name : str, optional
            Names of columns: number of trials of a binomial response; exposure, whose logarithm is added to the linear
            predictor; offset of the linear predictor; known standard deviation of the response; names of the points.

        Raises
        ------
        DataError
            For a formula that cannot be parsed or has an unknown column, missing values, predictors that are constant
            or linearly dependent, groups without points, a single group, and errors or exposures that are not positive.

        Examples
        --------
        >>> data = RegressionData.from_columns({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8]}, "y ~ x")
        >>> data.terms
        ('Intercept', 'x')
        """
        options = {"trials": trials, "exposure": exposure, "offset": offset, "error": error, "name": name}
        roles = {role: column for role, column in options.items() if column}
        parsed, frame = _checked_frame(columns, formula, roles)
        names = text_tuple(columns[roles["name"]], roles["name"], "row {row}") if "name" in roles else ()
        for column in parsed.columns:
            is_missing = frame[column].isna().to_numpy()
            reject_rows(is_missing, frame[column].to_numpy(dtype=object), column, "a value", names)
        y, categories = _response(parsed.response, frame, names)
        terms, matrix = formulas.design(parsed.fixed, frame, "the terms shared by all points")
        for index, term in enumerate(terms):
            reject_rows(~np.isfinite(matrix[:, index]), matrix[:, index], term, "a finite number", names)
        means, scales, basis = _scales(terms, matrix)
        groups, within = group_designs(parsed.groups, frame, matrix, names)
        used = {
            key: np.asarray(frame[key].to_numpy(), float if frame[key].dtype.kind in "iuf" else str) for key in frame
        }
        return cls(
            names or tuple(map(str, range(len(frame)))),
            parsed.response,
            terms,
            categories,
            frozen_array(y),
            frozen_array(matrix),
            **_roles(frame, roles, y, names),
            groups=groups,
            within=frozen_array(within),
            means=frozen_array(means),
            scales=frozen_array(scales),
            basis=frozen_array(basis),
            y_mean=frozen_array(y.mean()),
            y_std=frozen_array(y.std() or 1.0),
            source=Source(used, formula, roles),
            warnings=tuple(_unusual(used, roles)),
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
            Predictors, without a column of ones; columns of an array are named ``x1, x2, ...``.
        groups : mapping of str to sequence (N,), optional
            Labels of the groups, by name of the factor; each factor adds a varying intercept.
        intercept : bool
            True: include an intercept.
        varying : sequence of str
            Names of predictors whose slopes also vary between groups.
        trials, exposure, offset, error : (N,), optional
            Values of the columns described in `from_columns`.

        Raises
        ------
        DataError
            As in `from_columns`, and for arrays of unequal lengths.

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
        options = {"trials": trials, "exposure": exposure, "offset": offset, "error": error}
        option_columns = {role: np.asarray(values) for role, values in options.items() if values is not None}
        columns: dict[str, Any] = {"y": y, **X, **groups, **option_columns}
        if len(columns) < 1 + len(X) + len(groups) + len(option_columns):
            raise DataError(
                f"X, groups: expected names that differ from each other and from 'y'; found {[*X, *groups]}."
            )
        for key, values in columns.items():
            if len(values) != len(y):
                raise DataError(f"{key}: expected {len(y)} values, as in y; found {len(values)}.")
        terms = ["1" if intercept else "0", *(f"`{key}`" for key in X)]
        group_terms = " + ".join(["1", *(f"`{key}`" for key in varying)])
        formula = f"y ~ {' + '.join([*terms, *(f'({group_terms} | `{group}`)' for group in groups)])}"
        return cls.from_columns(columns, formula, **{role: role for role in option_columns})

    def __repr__(self) -> str:
        return f"RegressionData({self.source.formula}, {len(self)} points)"

    def describe(self) -> str:
        """Return a paragraph on the data: number of points, formula, coefficients and groups."""
        group_sizes = [f"{len(group.labels)} {group.name}" for group in self.groups]
        groups = f" Groups: {', '.join(group_sizes)}." if group_sizes else ""
        categories = f" {len(self.categories)} categories." if self.categories else ""
        roles = "".join(f" {role.capitalize()}: {column}." for role, column in self.source.roles.items())
        text = f"{len(self)} points, {self.source.formula}; {len(self.terms)} coefficients.{groups}{categories}{roles}"
        return text + self._warning_text()

    def subset(self, rows: ArrayLike) -> "RegressionData":
        """Return the points selected by a boolean mask or by integer indices, with means and scales computed anew."""
        index = selected_rows(rows, len(self), "point")
        columns = {key: values[index] for key, values in self.source.columns.items()}
        data = RegressionData.from_columns(columns, self.source.formula, **self.source.roles)
        data = dataclasses.replace(data, name=tuple(self.name[i] for i in index), warnings=self.warnings)
        return data.replace_observations(np.asarray(self.y)[index])

    def replace_observations(self, observed: ArrayLike) -> "RegressionData":
        """Return a copy with a new response (N,) and the same design."""
        return dataclasses.replace(self, y=frozen_array(reshaped(observed, self.y, "observed")))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays, with text as arrays of strings, for storage and fingerprints."""
        columns = {f"column:{key}": values for key, values in self.source.columns.items()}
        roles = {f"role:{role}": np.asarray(column) for role, column in self.source.roles.items()}
        single = {"formula": np.asarray(self.source.formula), "observed": np.asarray(self.y)}
        return columns | roles | single | self._stored_warnings()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "RegressionData":
        """Rebuild the container from the output of `to_dict`."""
        parts: dict[str, dict[str, Any]] = {"column": {}, "role": {}}
        for key, value in stored.items():
            kind, _, name = key.partition(":")
            if kind in parts:
                parts[kind][name] = np.asarray(value) if kind == "column" else str(value)
        data = cls.from_columns(parts["column"], str(stored["formula"]), **parts["role"])
        return dataclasses.replace(data.replace_observations(stored["observed"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table`` of the columns used, with the current response.

        A response that is an expression such as ``log(y)`` is in a column ``response``.
        """
        from astropy.table import Table

        table = Table({key: values for key, values in self.source.columns.items() if key != self.response})
        y = np.asarray(self.y)
        table[self.response if self.response in self.source.columns else "response"] = (
            [self.categories[int(value)] for value in y] if self.categories else y
        )
        return table


def _checked_frame(columns: Mapping[str, Any], formula: str, roles: Mapping[str, str]):
    """Return the parsed formula, and a pandas data frame of the columns that it and the roles use."""
    if not formula:
        raise DataError(f"formula: expected one, {EXAMPLE}; found none.")
    parsed = parse(formula)
    for column in sorted(parsed.columns):
        require_in_table(f"formula {formula!r}: {column!r}", column, columns)
    for role, column in roles.items():
        require_in_table(f"{role}: {column!r}", column, columns)
    _reject_empty_groups(columns, parsed)
    used = parsed.columns | set(roles.values())
    frame = formulas.frame_of({key: np.asanyarray(columns[key]) for key in columns if key in used})
    formulas.require_numbers(parsed.numbers, frame)
    if len(frame) < 2:
        raise DataError(f"{parsed.response}: expected 2 points or more; found {len(frame)}.")
    return parsed, frame


def _reject_empty_groups(columns, parsed) -> None:
    """Raise `DataError` for declared categories of a pandas column that have no rows."""
    for factor in {name for term in parsed.groups for name in term.factors}:
        declared = getattr(getattr(columns[factor], "cat", None), "categories", None)
        if declared is None:
            continue
        empty = sorted(set(map(str, declared)) - {str(label) for label in columns[factor]})
        if empty:
            raise DataError(
                f"{factor}: expected points in every group; found none in {listed(empty)}. Drop these categories "
                "(remove_unused_categories)."
            )


def _response(response: str, frame, labels) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values of the response, and the categories of a text response."""
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
    texts = [str(value) for value in values]
    categories = tuple(sorted(set(texts)))
    if len(categories) < 2:
        raise DataError(f"{response}: expected two categories or more; found {categories[0]!r} in every row.")
    return np.array([categories.index(value) for value in texts], float), categories


def _scales(terms, matrix: np.ndarray):
    """Return means, standard deviations and basis of a design matrix, after checking that it has full rank."""
    num_points, num_terms = matrix.shape
    has_intercept = INTERCEPT in terms
    for index, term in enumerate(terms):
        if term != INTERCEPT and np.ptp(matrix[:, index]) == 0:
            hint = " The formula already includes an intercept." if has_intercept and matrix[0, index] == 1 else ""
            raise DataError(
                f"{term}: expected a predictor that is not constant; found {matrix[0, index]:g} in all {num_points} "
                f"rows.{hint}"
            )
    intercept = terms.index(INTERCEPT) if has_intercept else -1
    means = matrix.mean(axis=0) if has_intercept else np.zeros(num_terms)
    scales = matrix.std(axis=0)
    shift = np.eye(num_terms)
    if has_intercept:
        means[intercept], scales[intercept] = 0.0, 1.0
        shift[intercept] -= means
    if num_terms > num_points:
        raise DataError(f"formula: expected at most {num_points} coefficients, one per point; found {num_terms}.")
    centred = (matrix - means) / scales
    r = np.asarray(np.linalg.qr(centred / np.sqrt(num_points), mode="r"))
    norms = np.sqrt((r**2).sum(axis=0))
    dependent = np.abs(np.diagonal(r)) < DEPENDENT * norms
    if dependent.any():
        names = [term for term, is_dependent in zip(terms, dependent, strict=True) if is_dependent]
        raise DataError(
            f"{listed(names)}: expected predictors that are linearly independent of the preceding ones; found a linear "
            f"combination of {listed(term for term in terms if term not in names)}."
        )
    return means, scales, shift @ (np.linalg.inv(r) / scales[:, None])


def _roles(frame, roles, y, labels) -> dict[str, np.ndarray]:
    """Return offset, error and trials, after checking them; the offset includes the logarithm of the exposure."""

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
    """Read regression data from a table with one row per point.

    Parameters
    ----------
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`; `columns` may rename any column for
        use in the formula.
    formula, trials, exposure, offset, error, name
        As in `RegressionData.from_columns`.

    Raises
    ------
    FileNotFoundError, DataError
        As for `hbm_jax.data.read_table` and `RegressionData.from_columns`.

    Examples
    --------
    >>> len(read_regression({"x": [1.0, 2.0, 3.0], "y": [1.1, 2.3, 2.8]}, formula="y ~ x"))
    3
    """
    table = read_table(source, format=format, missing=missing)
    columns = dict(columns or {})
    with named_errors(table.origin):
        for key, column in columns.items():
            require_in_table(f"columns[{key!r}] = {column!r}", column, table.columns)
        # Columns of pandas keep their declared categories.
        values = {key: _column_of(table, columns.get(key, key)) for key in dict.fromkeys([*table.columns, *columns])}
        roles = {"trials": trials, "exposure": exposure, "offset": offset, "error": error, "name": name}
        data, left_out, _ = make_from_rows(
            values,
            lambda rows: RegressionData.from_columns(rows, formula, **roles),
            name=name or "name",
            leave_out=leave_out,
        )
    used = {key: key for key in data.source.columns}
    error_columns = {} if error is None else {f"sigma_{data.response}": error}
    unused = unused_errors(used | error_columns, table.columns, used)
    return with_warnings(data, [*left_out, *unused, *data.warnings], table)


def _unusual(columns: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> list[str]:
    """Return warnings about values that look like codes for missing values."""
    names = {roles[role] for role in ("name",) if role in roles}
    numbers = {key: values for key, values in columns.items() if values.dtype.kind == "f" and key not in names}
    return check_plain(numbers, {})


def _column_of(table, name: str):
    """Return a column: categorical columns unchanged, masked numbers as NaN, masked text as None."""
    column = table.columns[name]
    if hasattr(column, "cat"):
        return column
    values = table.values(name)
    if not np.ma.isMaskedArray(values):
        return values
    is_numeric = values.dtype.kind in "iuf"
    # Not MaskedArray.filled(None), which uses the default fill value.
    filled = np.ma.getdata(values).astype(float if is_numeric else object)
    filled[np.ma.getmaskarray(values)] = np.nan if is_numeric else None
    return filled
