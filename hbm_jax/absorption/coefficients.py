"""Published coefficients in the files of `tables/`, each read on first use."""

import csv
import functools
from importlib import resources

import numpy as np


@functools.cache
def table(name: str) -> dict[str, np.ndarray]:
    """Return the columns of a file of `tables/` by name: float64 where all entries are numbers, text otherwise."""
    text = (resources.files("hbm_jax.absorption") / "tables" / f"{name}.csv").read_text()
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))
    columns = {}
    for column, *values in zip(*rows, strict=True):
        try:
            columns[column] = np.array([float(value) for value in values])
        except ValueError:
            columns[column] = np.array(values)
        columns[column].setflags(write=False)
    return columns


@functools.cache
def rows_of(name: str, key: tuple[str, str], values: tuple[str, ...]) -> dict[tuple[int, int], list[np.ndarray]]:
    """Return the rows of the columns `values` of a file, grouped by the pair of integers in the columns `key`."""
    columns = table(name)
    grouped: dict[tuple[int, int], list[np.ndarray]] = {}
    for i, pair in enumerate(zip(*(columns[k].astype(int).tolist() for k in key), strict=True)):
        grouped.setdefault(pair, []).append(np.array([columns[v][i] for v in values]))
    return grouped
