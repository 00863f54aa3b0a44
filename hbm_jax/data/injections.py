"""Injections: simulated objects, found or not by a survey, that measure the detected fraction of a population."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hbm_jax.data.building import named_errors
from hbm_jax.data.linear.measurements import NO_LIMIT, limit_words
from hbm_jax.data.tables import read_table
from hbm_jax.validation import DataError, Floats, float_vector, reject_rows

NOT_FOUND = (*NO_LIMIT, "no")
FOUND = ("1", "1.0", "true", "yes")


def read_injections(source: Any, coordinates: Sequence[str]) -> tuple[Floats, int]:
    """Read a table of injections.

    Parameters
    ----------
    source : path or table
        One row per injection, as for `hbm_jax.data.read_table`. Columns: the true value of every coordinate;
        ``density``, the probability density of the distribution from which it was drawn, per unit of every coordinate;
        and ``found``, 1 or 0.
    coordinates : sequence of str
        Names of the D coordinates.

    Returns
    -------
    found : (I, D + 1)
        True coordinates of those that were found, and the logarithm of their density.
    num : int
        Number of all injections.

    Raises
    ------
    DataError
        For missing columns, densities that are not positive, and tables in which none is found.
    """
    table = read_table(source)
    with named_errors(table.origin):
        names = (*coordinates, "density", "found")
        column_names = table.resolve(names, None, {})
        table.require(column_names, *names)
        words = limit_words(table.values("found", text=True))
        reject_rows([word not in FOUND + NOT_FOUND for word in words], words, "found", "1 or 0", ())
        values = [float_vector(table.values(key), key) for key in (*coordinates, "density")]
        reject_rows(values[-1] <= 0.0, values[-1], "density", "a positive density", ())
        found = np.array([word in FOUND for word in words])
        if not found.any():
            raise DataError(f"found: expected injections that were found; found none of {len(found)}.")
    return np.stack([*values[:-1], np.log(values[-1])], axis=-1)[found], len(found)
