"""The checks at the border of every data container, and the error they raise.

Messages are one paragraph that names the thing, what was expected and what was found. Rows count from 0.
"""

import contextlib
import difflib
import gzip
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "DataWarning"]

Floats = NDArray[np.float64]

# Smallest eigenvalue of a correlation matrix that still counts as positive. Rounding leaves a perfectly correlated pair
# at +-1e-16; the most correlated usable fit of the 2588 of Union3 has 3e-7.
SMALLEST_CORRELATION_EIGENVALUE = 1e-12


MAX_EXPANDED = 1 << 30  # bytes that a compressed file may hold


class DataError(ValueError):
    """A table, column or value that a data container cannot take; the message says which, and what was expected."""

    rows: tuple[int, ...] = ()
    """Rows that the message is about, where it is about rows."""


class DataWarning(UserWarning):
    """Something unusual in data that were read: which, where, and what it would mean if it is a mistake."""


def refuse_expansion(path: Path) -> None:
    """Refuse a compressed file that holds more than 1 GiB, whatever its name; astropy and NumPy unpack all they meet.

    Raises
    ------
    DataError
        Also for bzip2 and xz. Damage is left for the reader of the file to find.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"BZh", b"\xfd7zXZ", b"\x1f\x9d")):
        raise DataError(f"{path}: expected a file as it is or compressed by gzip; found one by bzip2, xz or compress.")
    total = 0
    with contextlib.suppress(OSError, EOFError, zlib.error, zipfile.BadZipFile):
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as members:
                total = sum(member.file_size for member in members.infolist())
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as unpacked:
                while total <= MAX_EXPANDED and (block := unpacked.read(1 << 22)):
                    total += len(block)
    if total > MAX_EXPANDED:
        raise DataError(f"{path}: expected at most {MAX_EXPANDED >> 20} MiB when it is decompressed, found more.")


def tell(texts: Iterable[str], *, origin: str = "", stacklevel: int = 3) -> tuple[str, ...]:
    """Warn of what is unusual in data; returns the texts, to be kept with the data.

    Parameters
    ----------
    texts
        A sentence each, without a full stop.
    origin
        The table or file, told before each warning.
    stacklevel
        As of `warnings.warn`: 3 is the caller of the function that calls this one.
    """
    kept = tuple(dict.fromkeys(texts))
    for text in kept:
        warnings.warn(f"{origin}: {text}." if origin else f"{text}.", DataWarning, stacklevel=stacklevel)
    return kept


class Labels(Sequence):
    """What messages call the rows of a table: worked out for those that are named, not for a million."""

    def __init__(self, num: int, of: Callable[[int], str]):
        self.num, self.of = num, of

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row):
        return self.of(row)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``" (did you mean 'm_b'?)"`` for the nearest candidate, upper and lower case alike, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def listed(names: Iterable[str], limit: int = 30) -> str:
    """Return the names separated by commas, the first `limit` of them."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def reject_unknown(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Raise `DataError` at the first of `names` that is not in `known`."""
    for name in names:
        if name not in known:
            raise DataError(
                f"unknown {what} {name!r}{did_you_mean(name, known)}: expected one of {listed(known)}, found {name!r}."
            )


def require_present(name: str, columns: Mapping[str, Any]) -> None:
    """Raise `DataError` when the column `name` is not in `columns`."""
    if name not in columns:
        raise DataError(
            f"column {name!r} is missing{did_you_mean(name, columns)}: "
            f"expected {name!r}, found the columns {listed(columns) or '(none)'}."
        )


def reject_rows(bad: Any, found: Sequence[Any] | np.ndarray, what: str, expected: str, names: Sequence[str]) -> None:
    """Raise `DataError` naming the first row where `bad` is true, its object, and how many rows there are like it."""
    rows = np.flatnonzero(bad)
    if rows.size:
        first = int(rows[0])
        name = str(names[first]) if first < len(names) else ""
        named = name and not name.startswith("row ")
        label = f"row {first} ({name if named else 'the first is row 0'})"
        others = f" ({rows.size} such rows of {len(found)})" if rows.size > 1 else ""
        value = found[first]
        value = value.tolist() if isinstance(value, np.ndarray) else value
        error = DataError(f"{what}, {label}: expected {expected}, found {value}{others}.")
        error.rows = tuple(rows.tolist())
        raise error


def _is_missing(value: Any) -> bool:
    """Return whether one entry of a column of objects or strings holds no value."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def _all_numbers(array: np.ndarray) -> Floats | None:
    """Return a column of text as numbers, None if some entry is none."""
    if set(map(type, array.tolist())) != {str}:
        return None
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def float_vector(values: Any, what: str, names: Sequence[str] = (), *, allow_missing: bool = False) -> Floats:
    """Return a fresh, native float64 vector of a column of numbers or of their text.

    Parameters
    ----------
    values
        One-dimensional array-like, masked or not; text is parsed.
    what
        What messages call it.
    names
        Object names for messages.
    allow_missing
        Masked, empty and NaN entries become NaN instead of an error. Infinities never pass.

    Raises
    ------
    DataError
        For any other shape, and for an entry that is missing, not a number or not finite.
    """
    missing = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values))
    if array.ndim != 1:
        raise DataError(
            f"{what}: expected one number per object (one dimension), found an array of shape {array.shape}."
        )
    missing = np.zeros(array.shape, bool) if missing is None else missing.copy()
    if array.dtype.kind in "iuf":
        numbers = array.astype(np.float64)
    elif array.dtype.kind in "OSU":
        plain = _all_numbers(array) if not missing.any() else None
        numbers = np.full(array.shape, np.nan) if plain is None else plain
        entries = array.tolist() if plain is None else []
        for row, value in enumerate(entries):
            if missing[row] or _is_missing(value):
                # NaN in an array of objects is reported as NaN below, not as an empty field
                missing[row] |= not isinstance(value, float)
                continue
            try:
                numbers[row] = float(value)
            except (TypeError, ValueError):
                reject_rows(np.arange(array.size) == row, [repr(entry) for entry in entries], what, "a number", names)
    else:
        raise DataError(f"{what}: expected numbers, found values of type {array.dtype}.")
    numbers[missing] = np.nan
    if not allow_missing:
        reject_rows(missing, ["no value (masked or empty)"] * array.size, what, "a finite number", names)
        reject_rows(np.isnan(numbers), numbers, what, "a finite number", names)
    reject_rows(np.isinf(numbers), numbers, what, "a finite number", names)
    return numbers


def text_tuple(values: Any, what: str, default: str) -> tuple[str, ...]:
    """Return a column as a tuple of strings; missing entries become `default` with ``{row}`` filled in."""
    mask = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values) if mask is not None else values)
    if array.ndim != 1:
        raise DataError(f"{what}: expected one string per object, found an array of shape {array.shape}.")
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
    """Return the common length of the columns; raise `DataError` when they differ or are zero."""
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


def require_covariances(covariance: Floats, what: str, names: Sequence[str]) -> Floats:
    """Return (N, K, K) covariances made exactly symmetric; raise `DataError` for any that is not positive definite.

    Symmetry is asked to 1e-10 of the product of the two errors. Positive definite means that every eigenvalue of the
    correlation matrix exceeds 1e-12, so that the answer does not depend on the units.
    """
    num, size = covariance.shape[0], covariance.shape[-1]
    reject_rows(~np.isfinite(covariance).all(axis=(1, 2)), covariance, what, "finite numbers", names)
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    reject_rows((variances <= 0).any(axis=1), variances, f"{what}, its diagonal", "positive variances", names)
    sigma = np.sqrt(variances)
    scale = sigma[:, :, None] * sigma[:, None, :]
    asymmetry = np.abs(covariance - covariance.swapaxes(1, 2)) / scale
    reject_rows((asymmetry > 1e-10).any(axis=(1, 2)), covariance, what, "a symmetric matrix", names)
    symmetric = 0.5 * (covariance + covariance.swapaxes(1, 2))
    smallest = np.linalg.eigvalsh(symmetric / scale)[:, 0]
    bad = smallest <= SMALLEST_CORRELATION_EIGENVALUE
    if bad.any():
        eigenvalues = np.linalg.eigvalsh(symmetric)
        found = [
            f"the eigenvalues {', '.join(f'{e:.4g}' for e in eigenvalues[row])} "
            f"(smallest of its correlation matrix {smallest[row]:.3g})"
            for row in range(num)
        ]
        reject_rows(bad, found, what, f"a positive definite {size} x {size} matrix", names)
    return symmetric


def frozen_array(array: Any) -> Floats:
    """Return a read-only float64 copy."""
    out = np.array(array, dtype=np.float64)
    out.flags.writeable = False
    return out
