"""Construction of containers from tables: rows left out, errors that name the table, and warnings."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hbm_jax.data.columns import Column, unused_errors
from hbm_jax.data.tables import TableColumns
from hbm_jax.names import listed
from hbm_jax.validation import DataError, warn_unusual

Container = TypeVar("Container")


@contextmanager
def named_errors(origin: Any) -> Iterator[None]:
    """Context in which the messages of `DataError` begin with the name of the table or file."""
    try:
        yield
    except DataError as error:
        if str(error).startswith(f"{origin}"):
            raise
        raise DataError(f"{origin}: {error}", error.remedies) from error


def build_from_table(
    table: TableColumns,
    make: Callable[..., Container],
    declared: Mapping[str, Column],
    *,
    columns: Mapping[str, str] | None,
    leave_out: str | Sequence[str],
    required: Sequence[str],
    name: str,
    aliases: Mapping[str, str],
    quantities: Sequence[str],
) -> Container:
    """Build a container from a table, with warnings about rows left out and about unused errors of `quantities`.

    ``make(columns, column_names=...)`` returns the container from columns by standard name, which are all in
    `declared`; ``column_names`` are their names in the table. For `columns` and `aliases` see `TableColumns.resolve`,
    for `required` `TableColumns.require`, for `name` and `leave_out` `make_from_rows`.
    """
    with named_errors(table.origin):
        column_names = table.resolve(list(declared), columns, aliases)
        table.require(column_names, *required)
        values = table.values_of(column_names, declared)
        data, left_out, _ = make_from_rows(
            values, lambda rows: make(rows, column_names=column_names), name=name, leave_out=leave_out
        )
    unused = unused_errors(column_names, table.columns, quantities)
    return with_warnings(data, [*left_out, *unused, *data.warnings], table, stacklevel=5)  # type: ignore[attr-defined]


def with_warnings(data: Container, texts: Sequence[str], table: TableColumns, *, stacklevel: int = 4) -> Container:
    """Issue warnings and return the container with them; `stacklevel` 4 attributes them to the caller of a reader."""
    warnings_issued = warn_unusual(texts, origin=table.origin, stacklevel=stacklevel)
    return replace(data, warnings=warnings_issued)  # type: ignore[type-var]


def make_from_rows(
    columns: Mapping[str, Any],
    make: Callable[[dict[str, Any]], Container],
    *,
    name: str,
    leave_out: str | Sequence[str],
    whole: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> tuple[Container, list[str], np.ndarray | slice]:
    """Build a container from columns by standard name, without the rows to leave out.

    `leave_out` contains entries of the column `name`, or row numbers such as ``"row 3"``, counted from 0; ``"bad"``
    leaves out the rows that `make` rejects. Columns in `whole` are not indexed by row, and columns in `matrices` have
    one row and one column per object.

    Returns
    -------
    data
        The container.
    left_out : list of str
        One message for each set of rejected rows: their names and the reason.
    rows : array of int, or slice
        Rows of the table that were kept.

    Raises
    ------
    DataError
        Raised by `make`, or for names that are not in the table.
    """
    excluded = listed_names(leave_out)
    if not excluded:
        return make(dict(columns)), [], slice(None)
    num = max(len(value) for key, value in columns.items() if key not in whole)
    labels = list(map(str, np.ma.asarray(columns[name]).tolist())) if name in columns else [""] * num
    keep = leave_out_rows(labels, [entry for entry in excluded if entry != "bad"])
    left_out: list[str] = []
    while True:
        rows = np.flatnonzero(keep)
        selected = {
            key: value if key in whole else _rows_of(value, rows, is_matrix=key in matrices)
            for key, value in columns.items()
        }
        if "name" not in selected and name == "name":
            selected["name"] = [f"row {row}" for row in rows]
        try:
            return make(selected), left_out, rows
        except DataError as error:
            if "bad" not in excluded or not error.rows or len(error.rows) == len(rows):
                raise
            bad = [labels[row] or f"row {row}" for row in rows[list(error.rows)]]
            left_out.append(f"left out: {listed(bad, 5)}, because of {str(error).rstrip('.')}")
            keep[rows[list(error.rows)]] = False


def _rows_of(values: Any, rows: np.ndarray, *, is_matrix: bool) -> Any:
    """Return rows of a column, or rows and columns of a matrix."""
    if is_matrix:
        return np.asarray(values)[np.ix_(rows, rows)]
    if hasattr(values, "iloc"):  # pandas
        return values.iloc[rows]
    return (values if isinstance(values, np.ndarray) else np.asarray(values))[rows]


def listed_names(leave_out: Any) -> list[str]:
    """Return the names to leave out as a list of strings; a single name becomes a list of length one."""
    several = isinstance(leave_out, Iterable) and not isinstance(leave_out, str)
    return [str(name) for name in (leave_out if several else [leave_out])]


def leave_out_rows(names: Sequence[str], leave_out: str | Sequence[str]) -> NDArray[np.bool_]:
    """Return a mask of the rows to keep.

    Parameters
    ----------
    names
        Name of the object in each row.
    leave_out
        Names of objects to leave out, or row numbers such as ``"row 3"``, counted from 0.

    Raises
    ------
    DataError
        For a name that no row has.
    """
    excluded = set(listed_names(leave_out))
    numbers = {name: int(name[4:]) for name in excluded if re.fullmatch(r"row \d+", name)}
    rows = {name: row for name, row in numbers.items() if row < len(names)}
    if unknown := excluded - rows.keys() - excluded.intersection(names):
        raise DataError(
            f"leave_out: expected names of the table's rows, or 'row 3' and so on counted from 0; found "
            f"{listed(sorted(unknown))}."
        )
    keep = np.array([name not in excluded for name in names], dtype=bool)
    keep[list(rows.values())] = False
    return keep
