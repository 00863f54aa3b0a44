"""Base classes of the containers: number, selection and storage of objects."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbm_jax.validation import DataError, Floats, frozen_array


def selected_rows(rows: ArrayLike, num: int, object_name: str) -> NDArray[np.intp]:
    """Return the indices, from 0 to ``num`` - 1, of objects selected by a boolean mask or by integer indices.

    Raises
    ------
    DataError
        If the mask has a wrong length, an index is out of range, or the selection is empty.
    """
    index = np.asarray(rows)
    if index.dtype.kind == "b":
        if index.shape != (num,):
            raise DataError(f"subset: expected a mask of shape ({num},); found shape {index.shape}.")
        index = np.flatnonzero(index)
    if index.size == 0:
        raise DataError(f"subset: expected at least one {object_name}; found an empty selection.")
    if index.dtype.kind not in "iu" or index.ndim != 1:
        raise DataError(f"subset: expected a mask or a list of indices; found {index.dtype} of shape {index.shape}.")
    outside = index[(index < -num) | (index >= num)]
    if outside.size:
        raise DataError(f"subset: expected indices from {-num} to {num - 1}; found {outside[0]}.")
    return index % num


def warnings_of(stored: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings in the output of `to_dict`."""
    return tuple(str(text) for text in np.atleast_1d(stored.get("warnings", ())))


def reshaped(values: ArrayLike, original: Any, label: str) -> Floats:
    """Return new observed values as float64; raise `DataError` unless they have the shape of the original ones."""
    array, shape = np.asarray(values, float), np.shape(original)
    if array.shape != shape:
        raise DataError(f"{label}: expected shape {shape}; found {array.shape}.")
    return array


class Sample:
    """Base class of containers, which are dataclasses; see `hbm_jax.data.protocol.Container`."""

    object_name: ClassVar[str] = "object"
    whole: ClassVar[tuple[str, ...]] = ()  # fields without an entry for each object
    matrices: ClassVar[tuple[str, ...]] = ()  # fields with one row and one column per object
    name: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} {self.object_name}s)"

    def subset(self, rows: ArrayLike) -> Self:
        """Return the objects selected by a boolean mask (N,) or by integer indices.

        Raises
        ------
        DataError
            If the mask has a wrong length, an index is out of range, or the selection is empty.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> sne = load_jla()
        >>> len(sne.subset(sne.z_cmb < 0.1))
        152
        """
        index = selected_rows(rows, len(self), self.object_name)
        fields = {key: value for key, value in self._fields().items() if key not in self.whole}
        selected = {key: self._selected(value, index, key in self.matrices) for key, value in fields.items()}
        return dataclasses.replace(self, **selected)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, text as arrays of strings, for storage and fingerprints."""
        stored = {
            key: np.array(value, str if isinstance(value, tuple) else None) for key, value in self._fields().items()
        }
        return stored | self._stored_warnings()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build the container from the output of `to_dict`; every value is restored exactly."""
        fields: dict[str, Any] = {}
        for item in dataclasses.fields(cls):  # type: ignore[arg-type]
            if item.name == "warnings":
                fields["warnings"] = warnings_of(stored)
            elif item.type == tuple[str, ...]:
                fields[item.name] = tuple(str(entry) for entry in np.atleast_1d(stored[item.name]))
            else:
                is_plain = item.type in (str, bool)
                value = stored[item.name]
                fields[item.name] = item.type(value) if is_plain else frozen_array(value, None)  # type: ignore[operator]
        return cls(**fields)

    def _fields(self) -> dict[str, Any]:
        """Return the fields by name, without warnings and without copying."""
        names = [item.name for item in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if name != "warnings"}

    def _stored_warnings(self) -> dict[str, np.ndarray]:
        """Return the warnings as an entry of `to_dict`; an empty dict without warnings."""
        warnings = getattr(self, "warnings", ())
        return {"warnings": np.array(warnings)} if warnings else {}

    @classmethod
    def _selected(cls, value: Any, index: NDArray[np.intp], is_matrix: bool = False) -> Any:
        """Return the entries of a field for the objects with these indices."""
        if isinstance(value, str | bool):
            return value
        if hasattr(value, "subset"):
            return value.subset(index)
        if isinstance(value, dict):
            return {key: cls._selected(entry, index) for key, entry in value.items()}
        if isinstance(value, tuple):
            return tuple(value[i] for i in index)
        return frozen_array(np.asarray(value)[np.ix_(index, index) if is_matrix else index], None)

    def _warning_text(self) -> str:
        """Return the warnings as sentences to append to a description."""
        return "".join(f" Warning: {text}." for text in getattr(self, "warnings", ()))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HasWarnings(Sample):
    """Base class of containers with a field for warnings about unusual data.

    Attributes
    ----------
    warnings : tuple of str
        One sentence per warning, without a full stop.
    """

    warnings: tuple[str, ...] = dataclasses.field(default=(), kw_only=True, metadata={"static": True})
