"""Run the statistical tests with other seeds, and compare the spread of their distances with that of a standard normal.

    python tests/other_seeds.py --seeds 20 [--long] [--out benchmarks/results/test_seeds.txt]

Every comparison by the fixture `monte_carlo` gives a difference in units of its Monte Carlo error. If the errors are
right, these differences have a standard deviation of one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IN_PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
WIDEST = 1.3


def main() -> int:
    """Return 0 if no test failed and the standard deviation of the distances is at most `WIDEST`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--long", action="store_true", help="include long tests")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    which = "statistical and not slow" if chosen.long else "statistical and not slow and not long"
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        distances = Path(folder) / "distances.jsonl"
        for seed in range(chosen.first, chosen.first + chosen.seeds):
            environment = os.environ | {"HBM_JAX_TEST_SEED": str(seed), "HBM_JAX_DISTANCES": str(distances)}
            command = [sys.executable, "-m", "pytest", "-q", *IN_PARALLEL, "-m", which]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            lines = done.stdout.splitlines()
            failed += [f"seed {seed}: {line[:200]}" for line in lines if line.startswith(("FAILED", "ERROR"))]
            print(f"seed {seed}: {lines[-1].strip('= ') if lines else done.stderr[-300:]}", flush=True)
        rows = [json.loads(line) for line in distances.read_text().splitlines()]
    by_test = defaultdict(list)
    for test, _, distance in rows:
        by_test[test].append(distance)
    values = np.array([distance for _, _, distance in rows])
    text = [
        f"{chosen.seeds} seeds, {len(by_test)} tests, {len(values)} comparisons ({which})",
        f"standard deviation of the distances {values.std():.2f} (at most {WIDEST}), mean {values.mean():+.2f}, "
        f"largest {np.abs(values).max():.1f}",
        "widest tests (standard deviation, comparisons):",
    ]
    wide = sorted(((np.std(v), len(v), test) for test, v in by_test.items() if len(v) >= 10), reverse=True)
    text += [f"  {std:5.2f} {number:5d}  {test}" for std, number, test in wide[:12]]
    text += ["failed:", *(failed or ["none"])]
    print("\n".join(text))
    if chosen.out:
        chosen.out.write_text("\n".join(text) + "\n")
    return int(bool(failed) or values.std() > WIDEST)


if __name__ == "__main__":
    sys.exit(main())
