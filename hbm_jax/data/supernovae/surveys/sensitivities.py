"""Sensitivities of light-curve parameters to calibration offsets and other linear nuisances, from a file."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.names import listed
from hbm_jax.reading import readable, refuse_expansion
from hbm_jax.validation import DataError, frozen_array

SENSITIVITY, NAMES = "sensitivity", "names"


def with_sensitivities(sne: Supernovae, path: str | os.PathLike, rows: np.ndarray | slice = slice(None)) -> Supernovae:
    """Return the supernovae with the sensitivities to calibration offsets of a file, after those that they have.

    Parameters
    ----------
    sne : Supernovae
        N supernovae.
    path : str
        ``.npz`` file with one row for each row of the table. ``sensitivity`` (M, 3, J), or (M, J, 3) for J other
        than 3, has the changes of m_b, x1 and c by one standard deviation of each of J calibration quantities, and
        ``names`` (J,) their names. Every
        other array (M, K) has the changes of m_b alone by one standard deviation of each of K modes, such as
        ``bulk_flow``; they are named after the array. The files of Union3.1 have this form.
    rows : array of int, mask or slice
        Rows of the file that belong to the supernovae.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For another number of rows, shapes that do not agree, numbers that are not finite, and repeated names.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"sensitivity: expected a file; found nothing at {path}.")
    refuse_expansion(path)
    with readable(path, "sensitivities"), path.open("rb") as file:
        stored = np.load(file)
        arrays = {name: np.asarray(stored[name]) for name in stored.files}
    names = [str(name) for name in arrays.pop(NAMES, np.array([]))]
    parts, labels = [], []
    for key, array in arrays.items():
        values, kind = _by_offset(array, key, path), "offset"
        if key != SENSITIVITY:
            kind = key.replace("_", " ")
        part = values[rows]
        if len(part) != len(sne):
            raise DataError(
                f"{path}: {key}: expected one row for each of {len(sne)} supernovae; found {len(values)} rows."
            )
        if key == SENSITIVITY and names and len(names) != part.shape[1]:
            raise DataError(f"{path}: expected {part.shape[1]} names, one for each offset; found {len(names)}.")
        parts.append(part)
        labels += names if key == SENSITIVITY and names else [f"{kind} {mode}" for mode in range(part.shape[1])]
    if not parts:
        raise DataError(f"{path}: expected an array {SENSITIVITY!r}; found {listed(arrays)}.")
    labels = [*sne.offset_name, *labels]
    if len(set(labels)) < len(labels):
        raise DataError(f"{path}: expected distinct names of offsets; found {listed(labels)}.")
    sensitivity = np.concatenate([sne.sensitivity, *parts], axis=1)
    return dataclasses.replace(sne, sensitivity=frozen_array(sensitivity), offset_name=tuple(labels))


def _by_offset(array: np.ndarray, key: str, path: Path) -> np.ndarray:
    """Return an array of the file as changes of (m_b, x1, c), (M, J, 3)."""
    values = np.asarray(array, dtype=np.float64)
    if key != SENSITIVITY and values.ndim == 2:
        values = np.stack([values, np.zeros_like(values), np.zeros_like(values)], axis=-1)
    elif key == SENSITIVITY and values.ndim == 3 and values.shape[1] == 3:
        values = np.moveaxis(values, 1, 2)
    if values.ndim != 3 or values.shape[2] != 3:
        expected = "(M, 3, J) or (M, J, 3)" if key == SENSITIVITY else "(M, K)"
        raise DataError(f"{path}: {key}: expected shape {expected}; found {np.shape(array)}.")
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {key}: expected finite numbers; found NaN or infinity.")
    return values
