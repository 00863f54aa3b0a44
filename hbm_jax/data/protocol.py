"""What the rest of the package asks of a data container: written down once, for whoever adds one."""

from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike


@runtime_checkable
class Container(Protocol):
    """A validated sample of objects, one row each.

    A container is a frozen dataclass registered with JAX as a pytree, holds read-only float64 NumPy arrays whose first
    dimension is the object, and is built through one validating constructor, ``from_columns``, whose `DataError`\\ s
    name the column, the row and the object. Units are in the field names or the docstring. It may have a static field
    ``warnings``, a sentence for each thing that is unusual in the data, which the verdict takes up.
    """

    name: tuple[str, ...]
    """Names of the objects, for messages and labels."""

    def __len__(self) -> int:
        """Return the number of objects."""
        ...

    def describe(self) -> str:
        """Return one paragraph: how many objects, from where, and what is known of them."""
        ...

    def subset(self, rows: ArrayLike) -> Self:
        """Return the objects picked by a boolean mask or by integer indices."""
        ...

    def replace_observations(self, **observed: ArrayLike) -> Self:
        """Return a copy with other observed values, by field name; everything else is the design and stays."""
        ...

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage and fingerprints."""
        ...

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build the container from what `to_dict` returned; every value comes back exactly."""
        ...

    def to_table(self) -> Any:
        """Return an astropy ``Table``, one row an object, that the container's reader takes."""
        ...
