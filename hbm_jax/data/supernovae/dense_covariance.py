"""Dense covariances of whole samples: read in the forms in which they are published, and checked."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.reading import read_text, readable
from hbm_jax.validation import SMALLEST_CORRELATION_EIGENVALUE, DataError, Floats, reject_rows

__all__ = ["checked_covariance", "read_covariance"]

# Largest difference of two elements that should be equal, in units of the product of the errors: published text has
# six digits or more.
ASYMMETRY = 1e-6


def checked_covariance(covariance: Any, what: str, names: Sequence[str]) -> Floats:
    """Return a covariance (N, N) made exactly symmetric.

    Raises
    ------
    DataError
        For another shape, numbers that are not finite, variances that are not positive, elements that differ from their
        mirror images by more than 1e-6 of the product of the errors, and a correlation matrix with an eigenvalue not
        above 1e-12.
    """
    matrix = np.array(covariance, dtype=np.float64)
    num = len(names)
    if matrix.shape != (num, num):
        raise DataError(f"{what}: expected shape ({num}, {num}), one row and column an object; found {matrix.shape}.")
    bad = ~np.isfinite(matrix)
    reject_rows(bad.any(axis=1), [f"{row[~np.isfinite(row)][:1]}" for row in matrix], what, "finite numbers", names)
    variance = np.diagonal(matrix)
    reject_rows(variance <= 0, variance, f"{what}, its diagonal", "a variance above 0", names)
    sigma = np.sqrt(variance)
    correlation = matrix / sigma[:, None] / sigma
    apart = np.abs(correlation - correlation.T)
    if apart.max() > ASYMMETRY:
        i, j = (int(k) for k in np.unravel_index(apart.argmax(), apart.shape))
        raise DataError(
            f"{what}: expected a symmetric matrix; found {matrix[i, j]:.8g} at ({i}, {j}), of {names[i]} and "
            f"{names[j]}, and {matrix[j, i]:.8g} at ({j}, {i})."
        )
    correlation = 0.5 * (correlation + correlation.T)
    try:
        # Much cheaper than eigenvalues, which are only computed for the message.
        np.linalg.cholesky(correlation - SMALLEST_CORRELATION_EIGENVALUE * np.eye(num))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(correlation)
        worst = np.argsort(-np.abs(vectors[:, 0]))[:2]
        raise DataError(
            f"{what}: expected a positive definite {num} x {num} matrix; found {int((values <= 1e-12).sum())} "
            f"eigenvalues of its correlation matrix that are not above 0, the smallest {values[0]:.3g}; that direction "
            f"is mostly {' and '.join(names[i] for i in worst)}."
        ) from None
    return 0.5 * (matrix + matrix.T)


def read_covariance(path: str | os.PathLike, num: int) -> Floats:
    """Read a matrix (num, num) in any of the forms in which covariances of supernovae are published.

    Parameters
    ----------
    path
        Text, also with ``.gz``: num x num numbers in any layout, with or without their number num before them. Or
        ``.npz`` with a square matrix or, as the Dovekie release has it, num and the upper triangle row by row. Or
        ``.npy``.
    num
        Number of objects.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        If it holds another number of entries, or no numbers.
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
        matrix = np.zeros((num, num))
        matrix[np.triu_indices(num)] = values
        return np.where(np.tri(num, k=-1, dtype=bool), matrix.T, matrix)
    first = f", the first of them {values[0]:.6g}" if values.size else ""
    raise DataError(
        f"{path}: expected {num} x {num} numbers for {num} objects, with or without {num} before them; found "
        f"{values.size}{first}."
    )
