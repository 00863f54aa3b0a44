"""Dense covariances of supernova samples: readers of the published file formats, and validation."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.names import listed
from hbm_jax.reading import read_text, readable
from hbm_jax.validation import SMALLEST_CORRELATION_EIGENVALUE, DataError, Floats, reject_rows

# Largest allowed difference of elements (i, j) and (j, i), in units of the product of the errors: published text has
# six digits or more.
ASYMMETRY = 1e-6


def checked_covariance(covariance: Any, label: str, names: Sequence[str]) -> Floats:
    """Return a valid covariance (N, N), made exactly symmetric; `label` begins the messages.

    Raises
    ------
    DataError
        For a wrong shape, numbers that are not finite, variances that are not positive, elements (i, j) and (j, i) that
        differ by more than 1e-6 of the product of the errors, and a correlation matrix whose smallest eigenvalue is not
        above 1e-12.
    """
    matrix = np.array(covariance, dtype=np.float64)
    num = len(names)
    if matrix.shape != (num, num):
        raise DataError(f"{label}: expected shape ({num}, {num}), one row and column per object; found {matrix.shape}.")
    bad = ~np.isfinite(matrix)
    reject_rows(bad.any(axis=1), [f"{row[~np.isfinite(row)][:1]}" for row in matrix], label, "finite numbers", names)
    variance = np.diagonal(matrix)
    reject_rows(variance <= 0, variance, f"{label}, its diagonal", "a variance above 0", names)
    sigma = np.sqrt(variance)
    correlation = matrix / sigma[:, None] / sigma
    asymmetry = np.abs(correlation - correlation.T)
    if asymmetry.max() > ASYMMETRY:
        i, j = (int(k) for k in np.unravel_index(asymmetry.argmax(), asymmetry.shape))
        raise DataError(
            f"{label}: expected a symmetric matrix; found {matrix[i, j]:.8g} at ({i}, {j}), of {names[i]} and "
            f"{names[j]}, and {matrix[j, i]:.8g} at ({j}, {i})."
        )
    correlation = 0.5 * (correlation + correlation.T)
    try:
        # A Cholesky factorisation is much cheaper than the eigenvalues, which are needed only for the message.
        np.linalg.cholesky(correlation - SMALLEST_CORRELATION_EIGENVALUE * np.eye(num))
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(correlation)
        num_bad = int((eigenvalues <= SMALLEST_CORRELATION_EIGENVALUE).sum())
        worst = np.argsort(-np.abs(vectors[:, 0]))[:2]
        raise DataError(
            f"{label}: expected a positive definite {num} x {num} matrix; found {num_bad} "
            f"eigenvalues of its correlation matrix that are not above 0, the smallest {eigenvalues[0]:.3g}; its "
            f"eigenvector is dominated by {' and '.join(names[i] for i in worst)}."
        ) from None
    return 0.5 * (matrix + matrix.T)


def only_one_of(keys: Sequence[str], columns: Iterable[str]) -> str:
    """Return the key that is among the columns; raise `DataError` if none or several are."""
    present = [key for key in keys if key in columns]
    if len(present) != 1:
        expected = " and ".join(map(repr, keys))
        found = "both" if present else f"the columns {listed(columns)}"
        raise DataError(f"expected one of the columns {expected}, found {found}.")
    return present[0]


def read_covariance(path: str | os.PathLike, num: int) -> Floats:
    """Read a covariance (num, num) in the formats in which supernova samples are published.

    Parameters
    ----------
    path
        Text file (also ``.gz``) with num x num numbers in any layout, optionally preceded by num; ``.npz`` file with a
        square matrix or, as in the Dovekie release, with num and the upper triangle row by row; or ``.npy`` file.
    num
        Number of objects.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        If the number of entries is wrong, or the entries are not numbers.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a covariance file, found no such file.")
    with readable(path, "a covariance"):
        if path.suffix in (".npz", ".npy"):
            with path.open("rb") as file:
                stored = np.load(file)
                arrays = [stored[name] for name in stored.files] if path.suffix == ".npz" else [stored]
            values = max((np.asarray(array, float) for array in arrays), key=lambda array: array.size).ravel()
        else:
            lines = [line for line in read_text(path).splitlines() if not line.lstrip().startswith("#")]
            values = np.array(" ".join(lines).replace(",", " ").split(), dtype=np.float64)
    if values.size == num**2 + 1 and values[0] == num:
        values = values[1:]
    if values.size == num**2:
        return values.reshape(num, num)
    if path.suffix == ".npz" and values.size == num * (num + 1) // 2:
        return symmetric(values, num, lower=False)
    first = f", the first of them {values[0]:.6g}" if values.size else ""
    raise DataError(
        f"{path}: expected {num} x {num} numbers for {num} objects, with or without {num} before them; found "
        f"{values.size}{first}."
    )


def symmetric(triangle: Floats, num: int, *, lower: bool) -> Floats:
    """Return the symmetric matrix (num, num) with these values in its lower or upper triangle, row by row."""
    matrix = np.zeros((num, num))
    rows, columns = np.tril_indices(num) if lower else np.triu_indices(num)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix
