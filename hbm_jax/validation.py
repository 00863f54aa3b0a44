"""Checks of options and of the values in data containers, and the errors that they raise.

A message is one paragraph that names the column or value, what was expected and what was found. Rows count from 0.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from hbm_jax.names import did_you_mean, listed

__all__ = ["DataError", "DataWarning", "OptionError", "Remedy"]

Floats = NDArray[np.float64]


def concrete(value: Any) -> Floats | None:
    """Return a value as a float64 array, or None if JAX traces it, so that its numbers are not known."""
    try:
        return np.asarray(value, dtype=np.float64)
    except jax.errors.TracerArrayConversionError:
        return None


# A correlation matrix is positive definite if its smallest eigenvalue exceeds this. Rounding gives +-1e-16 for a
# perfectly correlated pair; among the 2588 fits of Union3, the smallest of a usable one is 3e-7.
SMALLEST_CORRELATION_EIGENVALUE = 1e-12


@dataclass(frozen=True)
class Remedy:
    """Option with which an error is avoided; as text, the argument in Python.

    Attributes
    ----------
    option : str
        Name of an option of the reader or of the model.
    value
        Its value, a list, or a mapping with a description in place of each value that the user has to supply.
    """

    option: str
    value: Any

    def __str__(self):
        if not isinstance(self.value, Mapping):
            return f"{self.option}={self.value!r}"
        (first, described), *others = self.value.items()
        return f"{self.option}={{{first!r}: <{described}>{', ...' if others else ''}}}"


class RemediableError(ValueError):
    """An error that other options may avoid.

    Parameters
    ----------
    message : str
        The message, which contains the text of the remedies.
    remedies : sequence of Remedy
        Options with which the error is avoided; the command line writes them as its flags.
    """

    def __init__(self, message: str = "", remedies: Sequence[Remedy] = ()):
        super().__init__(message)
        self.remedies = tuple(remedies)


class OptionError(RemediableError):
    """Error for options of a model that are out of range or inconsistent; the message names them."""


class DataError(RemediableError):
    """Error for a table, column or value that a data container rejects; the message names it and what was expected."""

    rows: tuple[int, ...] = ()
    """Rows that cause the error; empty if it is not due to single rows."""


class DataWarning(UserWarning):
    """Warning about unusual data; the message names them, their rows, and the consequence if they are a mistake."""


def warn_unusual(texts: Iterable[str], *, origin: str = "", stacklevel: int = 3) -> tuple[str, ...]:
    """Issue a `DataWarning` for each unusual property of data; return the texts, to be kept with the data.

    Parameters
    ----------
    texts
        One sentence for each property, without a full stop.
    origin
        The table or file, with which each warning begins.
    stacklevel
        As in `warnings.warn`: 3 is the caller of the function that calls this one.
    """
    unique = tuple(dict.fromkeys(texts))
    for text in unique:
        warnings.warn(f"{origin}: {text}." if origin else f"{text}.", DataWarning, stacklevel=stacklevel)
    return unique


class Labels(Sequence):
    """Labels of the rows of a table for messages, computed only for the rows that are named."""

    def __init__(self, num: int, label: Callable[[int], str]):
        self.num, self.label = num, label

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row):
        return self.label(row)


def reject_unknown(names: Iterable[str], known: Sequence[str], kind: str) -> None:
    """Raise `DataError` for the first of `names` that is not in `known`."""
    for name in names:
        if name not in known:
            raise DataError(
                f"unknown {kind} {name!r}{did_you_mean(name, known)}: expected one of {listed(known)}, found {name!r}."
            )


def require_present(name: str, columns: Mapping[str, Any]) -> None:
    """Raise `DataError` if the column `name` is missing."""
    if name not in columns:
        raise DataError(
            f"column {name!r} is missing{did_you_mean(name, columns)}: "
            f"expected {name!r}, found the columns {listed(columns) or '(none)'}."
        )


def reject_rows(
    bad: Any,
    values: Sequence[Any] | np.ndarray,
    label: str,
    expected: str,
    names: Sequence[str],
    remedies: Sequence[Remedy] = (),
) -> None:
    """Raise `DataError` if any row is bad; the message names the first such row, its object and the number of rows.

    `bad` is a mask of the rows (N,), `values` the values found (N), `label` the quantity, `expected` the end of the
    sentence "expected ...", and `names` the objects (N).
    """
    rows = np.flatnonzero(bad)
    if rows.size:
        first = int(rows[0])
        name = str(names[first]) if first < len(names) else ""
        named = name and not name.startswith("row ")
        row_label = f"row {first} ({name if named else 'counted from 0'})"
        others = f" ({rows.size} such rows of {len(values)})" if rows.size > 1 else ""
        value = values[first]
        value = value.tolist() if isinstance(value, np.ndarray) else value
        error = DataError(f"{label}, {row_label}: expected {expected}, found {value}{others}.", remedies)
        error.rows = tuple(rows.tolist())
        raise error


def _is_missing(value: Any) -> bool:
    """Return whether an entry of a column of objects or strings is missing."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def all_numbers(array: np.ndarray) -> Floats | None:
    """Return a column of text as numbers; None if an entry is not text or not a number."""
    if set(map(type, array.tolist())) != {str}:
        return None
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def float_vector(values: Any, label: str, names: Sequence[str] = (), *, allow_missing: bool = False) -> Floats:
    """Return a new float64 vector from a column of numbers or of text.

    Parameters
    ----------
    values
        One-dimensional array-like, masked or not; text is parsed.
    label
        Name of the column in messages.
    names
        Names of the objects in messages.
    allow_missing
        Whether masked, empty and NaN entries become NaN instead of raising an error. Infinities always raise.

    Raises
    ------
    DataError
        For any other shape, and for an entry that is missing, not a number or not finite.
    """
    missing = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values))
    if array.ndim != 1:
        raise DataError(
            f"{label}: expected one number per object (one dimension), found an array of shape {array.shape}."
        )
    missing = np.zeros(array.shape, bool) if missing is None else missing.copy()
    if array.dtype.kind in "iuf":
        numbers = array.astype(np.float64)
    elif array.dtype.kind in "OSU":
        parsed = all_numbers(array) if not missing.any() else None
        numbers = np.full(array.shape, np.nan) if parsed is None else parsed
        entries = array.tolist() if parsed is None else []
        for row, value in enumerate(entries):
            if missing[row] or _is_missing(value):
                # NaN in an array of objects is reported below as NaN, not as an empty entry
                missing[row] |= not isinstance(value, float)
                continue
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError):
                reject_rows(np.arange(array.size) == row, [repr(entry) for entry in entries], label, "a number", names)
    else:
        raise DataError(f"{label}: expected numbers, found values of type {array.dtype}.")
    numbers[missing] = np.nan
    if not allow_missing:
        reject_rows(missing, ["no value (masked or empty)"] * array.size, label, "a finite number", names)
        reject_rows(np.isnan(numbers), numbers, label, "a finite number", names)
    reject_rows(np.isinf(numbers), numbers, label, "a finite number", names)
    return numbers


def text_tuple(values: Any, label: str, default: str) -> tuple[str, ...]:
    """Return a column as a tuple of strings; missing entries become `default`, formatted with ``{row}``."""
    mask = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values) if mask is not None else values)
    if array.ndim != 1:
        raise DataError(f"{label}: expected one string per object, found an array of shape {array.shape}.")
    texts = []
    entries = array.tolist()
    if mask is None and set(map(type, entries)) == {str} and all(map(str.strip, entries)):
        return tuple(entries)
    for row, value in enumerate(entries):
        if (mask is not None and mask[row]) or _is_missing(value):
            texts.append(default.format(row=row))
        else:
            texts.append(value.decode(errors="replace") if isinstance(value, bytes) else str(value))
    return tuple(texts)


def require_same_length(lengths: Mapping[str, int]) -> int:
    """Return the common length of the columns; raise `DataError` if lengths differ or are zero."""
    length = next(iter(lengths.values()))
    if any(other != length for other in lengths.values()):
        raise DataError(
            "columns of different length: expected one entry per object in every column, found "
            + ", ".join(f"{name} {count}" for name, count in lengths.items())
            + "."
        )
    if length == 0:
        raise DataError("the table is empty: expected at least one object, found no rows.")
    return length


def require_covariances(covariance: Floats, label: str, names: Sequence[str]) -> Floats:
    """Return (N, K, K) covariances made exactly symmetric; raise `DataError` if one is not positive definite.

    The asymmetry may be at most 1e-10 of the product of the two standard deviations. Positive definite means that every
    eigenvalue of the correlation matrix exceeds 1e-12, which does not depend on the units.
    """
    num, size = covariance.shape[0], covariance.shape[-1]
    reject_rows(~np.isfinite(covariance).all(axis=(1, 2)), covariance, label, "finite numbers", names)
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    reject_rows((variances <= 0).any(axis=1), variances, f"{label}, its diagonal", "positive variances", names)
    sigma = np.sqrt(variances)
    scale = sigma[:, :, None] * sigma[:, None, :]
    asymmetry = np.abs(covariance - covariance.swapaxes(1, 2)) / scale
    reject_rows((asymmetry > 1e-10).any(axis=(1, 2)), covariance, label, "a symmetric matrix", names)
    symmetric = 0.5 * (covariance + covariance.swapaxes(1, 2))
    smallest = np.linalg.eigvalsh(symmetric / scale)[:, 0]
    bad = smallest <= SMALLEST_CORRELATION_EIGENVALUE
    if bad.any():
        eigenvalues = np.linalg.eigvalsh(symmetric)
        descriptions = [
            f"the eigenvalues {', '.join(f'{e:.4g}' for e in eigenvalues[row])} "
            f"(smallest of its correlation matrix {smallest[row]:.3g})"
            for row in range(num)
        ]
        reject_rows(bad, descriptions, label, f"a positive definite {size} x {size} matrix", names)
    return symmetric


def frozen_array(array: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a read-only copy; its type is that of the array if `dtype` is None."""
    out = np.array(array, dtype=dtype)
    out.flags.writeable = False
    return out


def energy_band(band, label: str) -> tuple[float, float]:
    """Return a band (low, high) [keV] as two floats.

    Raises
    ------
    ValueError
        Unless they are positive, finite and in increasing order; the message begins with ``label``.
    """
    if np.shape(band) != (2,) or not 0 < band[0] < band[1] < np.inf:
        raise ValueError(f"{label}: expected two positive energies [keV] in increasing order; found {band}.")
    return float(band[0]), float(band[1])
