"""Reading a table of a million rows in a thousand groups: seconds of each reader, and pandas in the same run.

    python benchmarks/read_tables.py

Prints a table; `benchmarks/results/read_tables.txt` is one such output. pandas parses the file; hbm_jax checks every
value and sorts the rows into groups as well.
"""

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hbm_jax.data import read_regression, read_relation, read_values

NUM, GROUPS = 1_000_000, 1000


def main() -> None:
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=NUM), rng.integers(0, GROUPS, NUM)
    y = 2.0 * x + rng.normal(size=NUM)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w") as file:
            file.write("x,y,group\n")
            file.writelines(f"{a:.6f},{b:.6f},g{c}\n" for a, b, c in zip(x, y, group, strict=True))
        readers = {
            "pandas.read_csv": pd.read_csv,
            "read_relation": read_relation,
            "read_values": read_values,
            "read_regression": lambda path: read_regression(path, formula="y ~ x + (1 | group)"),
        }
        seconds = {}
        print(f"{NUM:,} rows in {GROUPS:,} groups; best of three\n\n{'':18} {'seconds':>8} {'ratio':>6}")
        for name, read in readers.items():
            taken = []
            for _ in range(3):
                begun = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read(path)
                taken.append(time.perf_counter() - begun)
            seconds[name] = float(min(taken))
            print(f"{name:18} {seconds[name]:8.2f} {seconds[name] / seconds['pandas.read_csv']:6.1f}", flush=True)


if __name__ == "__main__":
    main()
