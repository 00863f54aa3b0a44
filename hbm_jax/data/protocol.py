"""Interface of data containers for models, inference and reports."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike


@runtime_checkable
class Container(Protocol):
    """Protocol of a validated sample of objects.

    A container is a frozen dataclass registered with JAX as a pytree. Its arrays are read-only float64 NumPy arrays
    whose first axis runs over the objects. Its validating constructor ``from_columns`` raises `DataError`\\ s that name
    the column, the row and the object. Units are in the field names or in the docstring. An optional static field
    ``warnings`` has one sentence for each unusual feature of the data; the verdict of a fit reports them.
    """

    name: tuple[str, ...]
    """Names of the objects, for messages and labels."""

    def __len__(self) -> int:
        """Return the number of objects."""
        ...

    def describe(self) -> str:
        """Return a one-paragraph summary: number of objects, origin and measured quantities."""
        ...

    def subset(self, rows: ArrayLike) -> Self:
        """Return the objects selected by a boolean mask or by integer indices."""
        ...

    def replace_observations(self, **observed: ArrayLike) -> Self:
        """Return a copy with other observed values, by field name; all other fields are unchanged."""
        ...

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage and fingerprints."""
        ...

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        ...

    def to_table(self) -> Any:
        """Return an astropy ``Table`` with one row per object, which the reader of the container accepts."""
        ...
