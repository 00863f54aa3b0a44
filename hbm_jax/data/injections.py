"""Injections: simulated objects, found or not by a survey, that measure the detected fraction of a population."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data.building import named_errors
from hbm_jax.data.linear.measurements import NO_LIMIT, limit_words
from hbm_jax.data.tables import read_table
from hbm_jax.validation import DataError, Floats, float_vector, reject_rows

NOT_FOUND = (*NO_LIMIT, "no")
FOUND = ("1", "1.0", "true", "yes")


class AllInjections(NamedTuple):
    """Simulated objects, or intervals of simulated bursts, found or not.

    Attributes
    ----------
    values : (I, D)
        True value of every coordinate.
    log_density : (I,)
        Log density of the distribution from which they were drawn.
    found : (I,) bool
        Whether a survey found each.
    burst : (I,) of str
        Name of the burst of each interval, of which density and ``found`` are; empty for objects.
    """

    values: Floats
    log_density: Floats
    found: np.ndarray
    burst: np.ndarray


class BurstInjections(NamedTuple):
    """Simulated bursts that were found, with their intervals.

    Attributes
    ----------
    values : (I, J, D)
        True values of each interval; 0 in padding.
    used : (I, J) bool
        False for padding.
    log_density : (I,)
        Log density of the distribution from which all values of a burst were drawn.
    num_drawn : (J + 1,)
        Number of bursts of 0, 1, ... J intervals, found or not.
    """

    values: Floats
    used: np.ndarray
    log_density: Floats
    num_drawn: Floats

    @classmethod
    def of(cls, every: AllInjections) -> "BurstInjections":
        """Return the found bursts of a table with a row for every interval.

        Raises DataError for a burst with several values of ``density`` or ``found``.
        """
        names, first, index = np.unique(every.burst, return_index=True, return_inverse=True)
        for key, column in (("density", every.log_density), ("found", every.found)):
            differs = column != column[first][index]
            reject_rows(differs, every.burst, key, "one value in all intervals of a burst", ())
        order, counts = np.argsort(index, kind="stable"), np.bincount(index)
        position = np.empty(len(index), int)
        position[order] = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = np.zeros((len(names), counts.max(), every.values.shape[1]))
        values[index, position] = every.values
        used, found = np.arange(counts.max()) < counts[:, None], every.found[first]
        return cls(values[found], used[found], every.log_density[first][found], np.bincount(counts).astype(float))


def read_injections(source: Any, coordinates: Sequence[str]) -> AllInjections:
    """Read a table of injections.

    Parameters
    ----------
    source : path or table
        One row per injection, as for `hbm_jax.data.read_table`. Columns: the true value of every coordinate;
        ``density``, the probability density of the distribution from which it was drawn, per unit of every coordinate;
        and ``found``, 1 or 0. For whole bursts one row per interval, with the name of its ``burst``; ``density`` is
        that of the values of all of its intervals.
    coordinates : sequence of str
        Names of the D coordinates.

    Raises
    ------
    DataError
        For missing columns, densities that are not positive, and tables in which none is found.
    """
    table = read_table(source)
    with named_errors(table.origin):
        column_names = table.resolve((*coordinates, "density", "found", "burst"), None, {})
        table.require(column_names, *coordinates, "density", "found")
        words = limit_words(table.values("found", text=True))
        reject_rows([word not in FOUND + NOT_FOUND for word in words], words, "found", "1 or 0", ())
        values = [float_vector(table.values(key), key) for key in (*coordinates, "density")]
        reject_rows(values[-1] <= 0.0, values[-1], "density", "a positive density", ())
        found = np.array([word in FOUND for word in words])
        if not found.any():
            raise DataError(f"found: expected injections that were found; found none of {len(found)}.")
        burst = table.values("burst", text=True) if "burst" in column_names else ()
    return AllInjections(np.stack(values[:-1], axis=-1), np.log(values[-1]), found, np.array([str(n) for n in burst]))
