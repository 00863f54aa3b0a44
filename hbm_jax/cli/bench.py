"""``hbm-jax bench``: comparison with other packages, whose code is in the repository but not in the package."""

import subprocess
import sys
from pathlib import Path

from hbm_jax.cli.arguments import Parser


def parser() -> Parser:
    """Return the parser of ``bench``."""
    bench = Parser(
        "hbm-jax bench",
        "[options]",
        "Run the benchmarks of benchmarks/suite in the current environment; packages that are missing are reported as "
        "such. 'make bench' first creates an environment with all packages.",
    )
    bench.add_argument("--quick", action="store_true", help="one short round, to check that everything runs")
    bench.add_argument("--systems", metavar="NAMES", help="comma-separated: relation, supernovae, golenetskii, ...")
    bench.add_argument("--only", metavar="NAMES", help="comma-separated: packages whose names begin with one of these")
    bench.add_argument("--rounds", metavar="N", help="number of repetitions per package")
    bench.add_argument("--out", metavar="DIR", default="runs/bench", help="folder for the table, numbers and figures")
    return bench


def run(arguments) -> int:
    """Run the benchmarks in a subprocess and return its exit status."""
    suite = Path(__file__).resolve().parents[2] / "benchmarks" / "suite"
    if not suite.is_dir():
        raise ValueError(
            f"bench: expected the benchmarks in {suite}; found no such folder, because hbm_jax was not installed from "
            "a clone of its repository. In a clone, `make bench` creates an environment and runs them."
        )
    command = [sys.executable, str(suite), *(["--quick"] if arguments.quick else [])]
    for name in ("systems", "only", "rounds", "out"):
        if (value := getattr(arguments, name)) is not None:
            command += [f"--{name}", str(value)]
    return subprocess.call(command)
