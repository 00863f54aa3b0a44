"""The container of measured values in groups, of one component or several, and the eight schools."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike

from hbm_jax.data.columns import Unusual, check_plain, places_of, places_within, unused_errors, warnings_of
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
    tell,
    text_tuple,
)

__all__ = ["ValuesInGroups", "load_eight_schools", "read_values"]

ARRAYS = ("values", "errors", "used", "row", "center", "unit")


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class ValuesInGroups(Unusual):
    """Values of D components, measured in K groups of at most M values each, with errors that are known or not.

    Build one with `from_columns` or `hbm_jax.data.read_values`; the constructor itself checks nothing. A pytree.

    Attributes
    ----------
    name : tuple of str
        Of the groups.
    components : tuple of str
        Of a value; one for `hbm_jax.models.Normal`.
    values : (K, M, D)
        Measured values, zero in padding.
    errors : (K, M, D, D)
        Covariances of their errors, zero where there are none; the unit matrix in padding.
    used : (K, M)
        False for padding.
    row : (K, M)
        Row of the table a value is from.
    center, unit : (D,)
        Mean and standard deviation of all values: the scale of the default priors. They belong to the design and stay
        when other values are put in.
    has_errors : bool
        Whether errors were given.
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
        """Check columns of one row a value, and build the container.

        Parameters
        ----------
        columns : mapping of str to array (N,)
            Each component. Optional: ``sigma_`` and any of these names, standard deviations of their errors, of all
            components or of none; ``correlation_a_b`` or ``covariance_a_b`` of the errors of components a and b, in
            their order; ``group``, names. Without groups every row is one.
        components : sequence of str
            Names of the components of a value.
        called : mapping, optional
            What messages call the columns.

        Raises
        ------
        DataError
            For missing columns, values that are no numbers, errors that are not positive, errors of some components
            only, covariances that are not positive definite, a row without a group.

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
                raise DataError(f"group: expected {num} names, one a value; found {len(group)}.")
            nothing = ["no value (masked or empty)"] * num
            reject_rows(np.array([not name for name in group]), nothing, called.get("group", "group"), "a name", [])

        def vector(key):
            found = float_vector(columns[key], called.get(key, key), labels)
            if len(found) != num:
                raise DataError(f"{called.get(key, key)}: expected {num} values, one a row; found {len(found)}.")
            return found

        values = np.stack([vector(key) for key in components], axis=-1)
        errors = _errors(columns, vector, components, labels, called, num)
        names = tuple(dict.fromkeys(group)) if group else tuple(f"group {i}" for i in range(num))
        of = places_of(group, names) if group else np.arange(num)
        spread = values.std(axis=0)
        return cls(
            names,
            components,
            **_padded(of, len(names), values, errors),
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
        """Return one paragraph: how many values and groups, and with which errors."""
        used = np.asarray(self.used)
        sizes = used.sum(axis=1)
        least, most = int(sizes.min()), int(sizes.max())
        each = f"{least}" if least == most else f"{least} to {most}"
        variances = np.diagonal(np.asarray(self.errors)[used], axis1=-2, axis2=-1)
        kinds = [
            f"{c}: median error {np.sqrt(np.median(v)):.3g}" for c, v in zip(self.components, variances.T, strict=True)
        ]
        errors = "; ".join(kinds) if self.has_errors else f"{', '.join(self.components)}: errors not given"
        return f"{self.num_values} values in {len(self)} groups of {each}. {errors}.{self._told()}"

    def subset(self, rows: ArrayLike) -> "ValuesInGroups":
        """Return the groups picked by a boolean mask or by integer indices."""
        picked = np.arange(len(self))[np.asarray(rows)]
        arrays: dict[str, Any] = {
            key: np.asarray(getattr(self, key))[picked] for key in ("values", "errors", "used", "row")
        }
        return dataclasses.replace(self, name=tuple(self.name[i] for i in picked), **arrays)

    def replace_observations(self, y: ArrayLike) -> "ValuesInGroups":
        """Return a copy with other measured values (K, M, D); everything else is the design and stays."""
        found = np.asarray(y, float)
        if found.shape != np.shape(self.values):
            raise DataError(f"y: expected shape {np.shape(self.values)}; found {found.shape}.")
        return dataclasses.replace(self, values=frozen_array(np.where(np.asarray(self.used)[..., None], found, 0.0)))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage and fingerprints."""
        text = {key: np.asarray(getattr(self, key), str) for key in ("name", "components")}
        arrays = {key: np.asarray(getattr(self, key)) for key in ARRAYS}
        return text | arrays | {"has_errors": np.asarray(self.has_errors)} | self._stored()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "ValuesInGroups":
        """Build the container from what `to_dict` returned."""
        text: dict[str, Any] = {
            key: tuple(str(one) for one in np.atleast_1d(stored[key])) for key in ("name", "components")
        }
        arrays: dict[str, Any] = {key: np.asarray(stored[key]) for key in ARRAYS}
        return cls(**text, **arrays, has_errors=bool(stored["has_errors"]), warnings=warnings_of(stored))

    def to_table(self):
        """Return an astropy ``Table``, one row a value, that `hbm_jax.data.read_values` reads back."""
        from astropy.table import Table

        used = np.asarray(self.used)
        order = np.argsort(np.asarray(self.row)[used])
        values, errors = np.asarray(self.values)[used][order], np.asarray(self.errors)[used][order]
        table = Table({"group": np.repeat(np.array(self.name), used.sum(axis=1))[order]})
        for place, key in enumerate(self.components):
            table[key] = values[:, place]
            if self.has_errors:
                table[f"sigma_{key}"] = np.sqrt(errors[:, place, place])
        for i, j in _pairs(len(self.components)):
            if errors[:, i, j].any():
                table[f"covariance_{self.components[i]}_{self.components[j]}"] = errors[:, i, j]
        return table


def _pairs(num: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(num) for j in range(i + 1, num)]


def _errors(columns, vector, components, labels, called, num):
    """Covariances of the errors, (N, D, D); zero where none are given."""
    size = len(components)
    errors = np.zeros((num, size, size))
    given = [f"sigma_{key}" for key in components if f"sigma_{key}" in columns]
    if not given:
        return errors
    for place, key in enumerate(components):
        column = f"sigma_{key}"
        if column not in columns:
            raise DataError(
                f"column {column!r} is missing: expected errors of all components or of none; found {listed(given)}."
            )
        sigma = vector(column)
        reject_rows(sigma <= 0, sigma, called.get(column, column), "a positive error", labels)
        errors[:, place, place] = sigma**2
    for i, j in _pairs(size):
        product = np.sqrt(errors[:, i, i] * errors[:, j, j])
        for kind, scale in (("correlation", product), ("covariance", np.ones(num))):
            column = f"{kind}_{components[i]}_{components[j]}"
            if column not in columns:
                continue
            value = vector(column)
            bad = np.abs(value * scale) >= product
            what = "a correlation between -1 and 1" if kind == "correlation" else "one of a positive definite matrix"
            reject_rows(bad, value, called.get(column, column), what, labels)
            errors[:, i, j] = errors[:, j, i] = value * scale
    return require_covariances(errors, "covariance of the errors", labels)


def _padded(of, num: int, values, errors) -> dict[str, np.ndarray]:
    """Arrays of one row a value in the shape (group, place)."""
    sizes = np.bincount(of, minlength=num)
    place = places_within(of)
    shape = (num, int(sizes.max()))
    eye = np.eye(values.shape[1])
    filled = {"values": 0.0, "errors": eye, "used": False, "row": -1}
    given = {"values": values, "errors": errors, "used": np.ones(len(of), bool), "row": np.arange(len(of))}
    done = {}
    for key, rows in given.items():
        array = np.empty((*shape, *rows.shape[1:]), rows.dtype)
        array[...] = filled[key]
        array[of, place] = rows
        array.setflags(write=False)
        done[key] = array
    return done


def read_values(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    components: Sequence[str] = ("y",),
) -> ValuesInGroups:
    """Read measured values in groups from a table of one row a value.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`.
    columns
        Which column of the table is which, standard name to the table's: ``{"y": "effect", "sigma_y": "std_err"}``.
        Columns with standard names, see `ValuesInGroups.from_columns`, are found by themselves; others are ignored.
    format
        File format, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        What to leave out: names of groups, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out rows that cannot
        be used, and warns of them.
    components
        Names of the components of a value.

    Returns
    -------
    ValuesInGroups

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For everything else that is wrong; the message begins with the table.

    Examples
    --------
    >>> read_values({"star": ["a", "a", "b"], "v": [1.0, 1.2, 3.0]}, columns={"y": "v", "group": "star"}).name
    ('a', 'b')
    """
    table = read_table(source, format=format, missing=missing)
    pairs = [f"{components[i]}_{components[j]}" for i, j in _pairs(len(components))]
    both = [f"{kind}_{pair}" for pair in pairs for kind in ("correlation", "covariance")]
    standard = [*components, *(f"sigma_{key}" for key in components), "group", *both]
    try:
        found = table.resolve(standard, columns, {"group": "name"})
        table.require(found, *components)
        data, left_out, _ = make_from_rows(
            {key: table.values(name, text=key == "group") for key, name in found.items()},
            lambda rows: ValuesInGroups.from_columns(rows, components=components, called=found),
            name="group",
            leave_out=leave_out,
        )
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(found, table.columns, components)
    return dataclasses.replace(data, warnings=tell([*left_out, *unused, *data.warnings], origin=table.origin))


def load_eight_schools() -> ValuesInGroups:
    """Load the effects of coaching in eight schools with their standard errors, bundled with the package.

    Rubin, D. B. 1981, Journal of Educational Statistics 6, 377; Gelman et al. 2013, Bayesian Data Analysis, 3rd
    edition, table 5.2.

    Returns
    -------
    ValuesInGroups
        One value a school [points of SAT-V], with its error.

    Examples
    --------
    >>> load_eight_schools().name
    ('A', 'B', 'C', 'D', 'E', 'F', 'G', 'H')
    """
    with resources.as_file(resources.files("hbm_jax.data") / "bundled" / "eight_schools.csv") as path:
        return read_values(path, columns={"group": "school", "y": "effect", "sigma_y": "std_err"})
