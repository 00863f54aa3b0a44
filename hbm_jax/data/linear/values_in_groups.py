"""Data of the normal hierarchy: grouped values of one or more components, and the eight-schools example."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
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
from hbm_jax.names import listed
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

__all__ = ["ValuesInGroups", "load_eight_schools", "read_values"]

ARRAYS = ("values", "errors", "used", "row", "center", "unit")


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class ValuesInGroups(HasWarnings):
    """Values of D components in K groups of at most M values, with known or unknown errors.

    Build it with `from_columns` or `hbm_jax.data.read_values`; the constructor does not validate. Registered as a
    pytree. Groups of fewer than M values are padded.

    Attributes
    ----------
    name : tuple of str
        Names of the groups.
    components : tuple of str
        Names of the D components; `hbm_jax.models.Normal` takes a single component.
    values : (K, M, D)
        Measured values; zero in padding.
    errors : (K, M, D, D)
        Error covariances; zero if the errors are unknown, the unit matrix in padding.
    used : (K, M)
        False in padding.
    row : (K, M)
        Row of each value in the table; -1 in padding.
    center, unit : (D,)
        Mean and standard deviation of all values, which scale the default priors. `replace_observations` does not
        change them.
    has_errors : bool
        Whether the errors are known.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    components: tuple[str, ...] = field(metadata={"static": True})
    values: Any
    errors: Any
    used: Any
    row: Any
    center: Any
    unit: Any
    has_errors: bool = field(default=True, metadata={"static": True})

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        *,
        components: Sequence[str] = ("y",),
        called: Mapping[str, str] | None = None,
    ) -> "ValuesInGroups":
        """Validate columns with one row per value and build the container.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            Required: each component. Optional, with A and B any two components in their order:

            - ``sigma_A``: standard deviation of the error of A, for all components or for none.
            - ``correlation_A_B`` or ``covariance_A_B``: of the errors of A and B.
            - ``group``: name of the group of each value; by default each row is a group.
        components : sequence of str
            Names of the components.
        called : mapping, optional
            Column names to use in messages, by standard name.

        Raises
        ------
        DataError
            For missing columns, values that are not numbers, errors that are not positive, errors of only some of the
            components, covariances that are not positive definite, and rows without a group.

        Examples
        --------
        >>> data = ValuesInGroups.from_columns({"group": ["a", "a", "b"], "y": [1.0, 1.4, 0.3]})
        >>> len(data), data.num_values, data.has_errors
        (2, 3, False)
        """
        called = dict(called or {})
        components = tuple(components)
        if not components or len(set(components)) < len(components):
            raise DataError(f"components: expected names that differ from each other; found {components}.")
        for key in components:
            require_present(key, columns)
        num = len(np.asarray(columns[components[0]]))
        if num < 2:
            raise DataError(f"{called.get(components[0], components[0])}: expected 2 values or more; found {num}.")
        group = text_tuple(columns["group"], called.get("group", "group"), "") if "group" in columns else ()
        labels = Labels(len(group), lambda row: f"group {group[row]}")
        if group:
            if len(group) != num:
                raise DataError(f"group: expected {num} names, one per value; found {len(group)}.")
            no_value = ["no value (masked or empty)"] * num
            reject_rows(np.array([not name for name in group]), no_value, called.get("group", "group"), "a name", [])

        def vector(key):
            numbers = float_vector(columns[key], called.get(key, key), labels)
            if len(numbers) != num:
                raise DataError(f"{called.get(key, key)}: expected {num} values, one per row; found {len(numbers)}.")
            return numbers

        values = np.stack([vector(key) for key in components], axis=-1)
        errors = _errors(columns, vector, components, labels, called, num)
        names = tuple(dict.fromkeys(group)) if group else tuple(f"group {i}" for i in range(num))
        group_index = index_of_groups(group, names) if group else np.arange(num)
        spread = values.std(axis=0)
        return cls(
            names,
            components,
            **_padded(group_index, len(names), values, errors),
            center=frozen_array(values.mean(axis=0)),
            unit=frozen_array(np.where(spread > 0, spread, 1.0)),
            has_errors=bool(errors.any()),
            warnings=tuple(check_plain(dict(zip(components, values.T, strict=True)), called)),
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.name)

    @property
    def num_values(self) -> int:
        """Number of values in all groups."""
        return int(np.sum(self.used))

    def __repr__(self) -> str:
        return f"ValuesInGroups({self.num_values} values of {', '.join(self.components)} in {len(self)} groups)"

    def describe(self) -> str:
        """Return a one-paragraph summary: number of values and groups, and errors."""
        used = np.asarray(self.used)
        sizes = used.sum(axis=1)
        least, most = int(sizes.min()), int(sizes.max())
        group_size = f"{least}" if least == most else f"{least} to {most}"
        variances = np.diagonal(np.asarray(self.errors)[used], axis1=-2, axis2=-1)
        error_texts = [
            f"{c}: median error {np.sqrt(np.median(v)):.3g}" for c, v in zip(self.components, variances.T, strict=True)
        ]
        errors = "; ".join(error_texts) if self.has_errors else f"{', '.join(self.components)}: errors not given"
        return f"{self.num_values} values in {len(self)} groups of {group_size}. {errors}.{self._warning_text()}"

    def subset(self, rows: ArrayLike) -> "ValuesInGroups":
        """Return the groups selected by a boolean mask or by integer indices."""
        indices = np.arange(len(self))[np.asarray(rows)]
        arrays: dict[str, Any] = {
            key: np.asarray(getattr(self, key))[indices] for key in ("values", "errors", "used", "row")
        }
        return dataclasses.replace(self, name=tuple(self.name[i] for i in indices), **arrays)

    def replace_observations(self, y: ArrayLike) -> "ValuesInGroups":
        """Return a copy with other measured values (K, M, D); all other fields are unchanged."""
        values = np.asarray(y, float)
        if values.shape != np.shape(self.values):
            raise DataError(f"y: expected shape {np.shape(self.values)}; found {values.shape}.")
        return dataclasses.replace(self, values=frozen_array(np.where(np.asarray(self.used)[..., None], values, 0.0)))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage and fingerprints."""
        text = {key: np.asarray(getattr(self, key), str) for key in ("name", "components")}
        arrays = {key: np.asarray(getattr(self, key)) for key in ARRAYS}
        return text | arrays | {"has_errors": np.asarray(self.has_errors)} | self._stored()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ValuesInGroups":
        """Build the container from the output of `to_dict`."""
        text: dict[str, Any] = {
            key: tuple(str(entry) for entry in np.atleast_1d(stored[key])) for key in ("name", "components")
        }
        arrays: dict[str, Any] = {key: np.asarray(stored[key]) for key in ARRAYS}
        return cls(**text, **arrays, has_errors=bool(stored["has_errors"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table`` with one row per value, which `hbm_jax.data.read_values` reads."""
        from astropy.table import Table

        used = np.asarray(self.used)
        order = np.argsort(np.asarray(self.row)[used])
        values, errors = np.asarray(self.values)[used][order], np.asarray(self.errors)[used][order]
        table = Table({"group": np.repeat(np.array(self.name), used.sum(axis=1))[order]})
        for index, key in enumerate(self.components):
            table[key] = values[:, index]
            if self.has_errors:
                table[f"sigma_{key}"] = np.sqrt(errors[:, index, index])
        for i, j in _pairs(len(self.components)):
            if errors[:, i, j].any():
                table[f"covariance_{self.components[i]}_{self.components[j]}"] = errors[:, i, j]
        return table


def _pairs(num: int) -> list[tuple[int, int]]:
    """Return the index pairs i < j below `num`."""
    return [(i, j) for i in range(num) for j in range(i + 1, num)]


def _errors(columns, vector, components, labels, called, num):
    """Return the error covariances (N, D, D); zero if the columns contain no errors."""
    size = len(components)
    errors = np.zeros((num, size, size))
    sigmas = [f"sigma_{key}" for key in components if f"sigma_{key}" in columns]
    if not sigmas:
        return errors
    for index, key in enumerate(components):
        column = f"sigma_{key}"
        if column not in columns:
            raise DataError(
                f"column {column!r} is missing: expected errors of all components or of none; found {listed(sigmas)}."
            )
        sigma = vector(column)
        reject_rows(sigma <= 0, sigma, called.get(column, column), "a positive error", labels)
        errors[:, index, index] = sigma**2
    for i, j in _pairs(size):
        product = np.sqrt(errors[:, i, i] * errors[:, j, j])
        for kind, scale in (("correlation", product), ("covariance", np.ones(num))):
            column = f"{kind}_{components[i]}_{components[j]}"
            if column not in columns:
                continue
            value = vector(column)
            invalid = np.abs(value * scale) >= product
            expected = (
                "a correlation between -1 and 1" if kind == "correlation" else "one of a positive definite matrix"
            )
            reject_rows(invalid, value, called.get(column, column), expected, labels)
            errors[:, i, j] = errors[:, j, i] = value * scale
    return require_covariances(errors, "covariance of the errors", labels)


def _padded(group_index, num: int, values, errors) -> dict[str, np.ndarray]:
    """Return the arrays of the values, padded to the shape (group, value in group)."""
    sizes = np.bincount(group_index, minlength=num)
    rank = position_in_group(group_index)
    shape = (num, int(sizes.max()))
    eye = np.eye(values.shape[1])
    fillers = {"values": 0.0, "errors": eye, "used": False, "row": -1}
    arrays = {
        "values": values,
        "errors": errors,
        "used": np.ones(len(group_index), bool),
        "row": np.arange(len(group_index)),
    }
    padded = {}
    for key, rows in arrays.items():
        array = np.empty((*shape, *rows.shape[1:]), rows.dtype)
        array[...] = fillers[key]
        array[group_index, rank] = rows
        array.setflags(write=False)
        padded[key] = array
    return padded


def read_values(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    components: Sequence[str] = ("y",),
) -> ValuesInGroups:
    """Read grouped values from a table with one row per value.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`.
    columns
        Column names in the table, by standard name: ``{"y": "effect", "sigma_y": "std_err"}``. Columns that already
        have a standard name (see `ValuesInGroups.from_columns`) are recognised; other columns are ignored.
    format
        File format, if the suffix does not determine it; see `hbm_jax.data.read_table`.
    missing
        Numbers that stand for missing values: ``missing=(-9, -999)``.
    leave_out
        Names of groups to leave out, or row numbers such as ``"row 3"``, counted from 0. ``"bad"`` leaves out unusable
        rows, with a warning.
    components
        Names of the components.

    Returns
    -------
    ValuesInGroups

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For any other problem with the data; the message begins with the path or type of the table.

    Examples
    --------
    >>> read_values({"star": ["a", "a", "b"], "v": [1.0, 1.2, 3.0]}, columns={"y": "v", "group": "star"}).name
    ('a', 'b')
    """
    table = read_table(source, format=format, missing=missing)
    pairs = [f"{components[i]}_{components[j]}" for i, j in _pairs(len(components))]
    error_columns = [f"{kind}_{pair}" for pair in pairs for kind in ("correlation", "covariance")]
    standard = [*components, *(f"sigma_{key}" for key in components), "group", *error_columns]
    try:
        column_names = table.resolve(standard, columns, {"group": "name"})
        table.require(column_names, *components)
        data, left_out, _ = make_from_rows(
            {key: table.values(name, text=key == "group") for key, name in column_names.items()},
            lambda rows: ValuesInGroups.from_columns(rows, components=components, called=column_names),
            name="group",
            leave_out=leave_out,
        )
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(column_names, table.columns, components)
    return dataclasses.replace(data, warnings=warn_unusual([*left_out, *unused, *data.warnings], origin=table.origin))


def load_eight_schools() -> ValuesInGroups:
    """Load the effects of coaching in eight schools with their standard errors, bundled with the package.

    Rubin, D. B. 1981, Journal of Educational Statistics 6, 377; Gelman et al. 2013, Bayesian Data Analysis, 3rd
    edition, table 5.2.

    Returns
    -------
    ValuesInGroups
        One effect per school [points of SAT-V], with its standard error.

    Examples
    --------
    >>> load_eight_schools().name
    ('A', 'B', 'C', 'D', 'E', 'F', 'G', 'H')
    """
    with resources.as_file(resources.files("hbm_jax.data") / "bundled" / "eight_schools.csv") as path:
        return read_values(path, columns={"group": "school", "y": "effect", "sigma_y": "std_err"})
