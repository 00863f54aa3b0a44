"""Data of the normal hierarchy: grouped values of one or more components, and the eight-schools example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.building import build_from_table
from hbm_jax.data.columns import TEXT, UNCONVERTED
from hbm_jax.data.linear.grouped import GroupedRows, InGroups, pairs_of
from hbm_jax.data.tables import read_bundled, read_table
from hbm_jax.names import listed, renamed_keyword
from hbm_jax.validation import DataError, Floats, require_covariances


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class ValuesInGroups(InGroups):
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
        True if the errors are known.
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
    @renamed_keyword("called", "column_names")
    def from_columns(
        cls,
        columns: Mapping[str, ArrayLike],
        *,
        components: Sequence[str] = ("y",),
        column_names: Mapping[str, str] | None = None,
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
        column_names : mapping, optional
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
        components = tuple(components)
        if not components or len(set(components)) < len(components):
            raise DataError(f"components: expected names that differ from each other; found {components}.")
        rows = GroupedRows(columns, components, column_names or {}, 2)
        errors = _errors(rows)
        names, group_index = rows.groups(together=False)
        fields = rows.padded_fields(group_index, errors)
        return cls(names, components, **fields, has_errors=bool(errors.any()))

    @property
    def num_values(self) -> int:
        """Number of values in all groups."""
        return int(np.sum(self.used))

    def __repr__(self) -> str:
        return f"ValuesInGroups({self.num_values} values of {', '.join(self.components)} in {len(self)} groups)"

    def describe(self) -> str:
        """Return a one-paragraph summary: number of values and groups, and errors."""
        no_errors = f"{', '.join(self.components)}: errors not given"
        errors = self._median_errors(self.components) if self.has_errors else no_errors
        groups = f"{len(self)} groups of {self._group_sizes()}"
        return f"{self.num_values} values in {groups}. {errors}.{self._warning_text()}"

    def replace_observations(self, y: ArrayLike) -> "ValuesInGroups":
        """Return a copy with other measured values (K, M, D); all other fields are unchanged."""
        return self._replaced(y, "y")

    def to_table(self):
        """Return an astropy ``Table`` with one row per value, which `hbm_jax.data.read_values` reads."""
        return self._measured_table(self.components, pairs_of(self.components))


def _errors(rows: GroupedRows) -> Floats:
    """Return the error covariances (N, D, D); zero if the columns contain no errors."""
    sigmas = [f"sigma_{key}" for key in rows.coordinates]
    present = [key for key in sigmas if key in rows.columns]
    if not present:
        return np.zeros((rows.num, len(sigmas), len(sigmas)))
    for key in sigmas:
        if key not in present:
            raise DataError(
                f"column {key!r} is missing: expected errors of all components or of none; found {listed(present)}."
            )
    return require_covariances(rows.errors(pairs_of(rows.coordinates)), "covariance of the errors", rows.labels)


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
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`. The name of a row is its ``group``.
    components
        Names of the components.

    Raises
    ------
    FileNotFoundError, DataError
        As for `hbm_jax.data.read_table` and `ValuesInGroups.from_columns`.

    Examples
    --------
    >>> read_values({"star": ["a", "a", "b"], "v": [1.0, 1.2, 3.0]}, columns={"y": "v", "group": "star"}).name
    ('a', 'b')
    """
    error_columns = [
        f"{kind}{pair}" for pair in pairs_of(components).values() for kind in ("correlation", "covariance")
    ]
    numbers = [*components, *(f"sigma_{key}" for key in components), *error_columns]
    return build_from_table(
        read_table(source, format=format, missing=missing),
        partial(ValuesInGroups.from_columns, components=components),
        dict.fromkeys(numbers, UNCONVERTED) | {"group": TEXT},
        columns=columns,
        leave_out=leave_out,
        required=components,
        name="group",
        aliases={"group": "name"},
        quantities=components,
    )


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
    return read_values(read_bundled("eight_schools"), columns={"group": "school", "y": "effect", "sigma_y": "std_err"})
