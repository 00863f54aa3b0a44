"""Evaluation of functions in chunks of one size, so that they are compiled once for any number of rows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def map_in_chunks(function: Callable, size: int, *arrays: np.ndarray) -> Any:
    """Evaluate a function of rows in chunks of ``size`` rows; the last row is repeated to fill the last chunk.

    Parameters
    ----------
    function : callable
        Arrays (size, ...) -> pytree of arrays (size, ...).
    size : int
        Number of rows of each chunk.
    *arrays : (num, ...)
        Arguments of the function; NumPy indexes them.

    Returns
    -------
    pytree of numpy arrays (num, ...)
    """
    num = len(arrays[0])
    chunks = np.minimum(np.arange(-(-num // size) * size), num - 1).reshape(-1, size)
    values = [jax.device_get(function(*(array[rows] for array in arrays))) for rows in chunks]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *values)
