"""``hbm-jax bench``: the comparison with other packages, which lives in the repository and not in the package."""

import subprocess
import sys
from pathlib import Path


def add_command(commands) -> None:
    """Add ``bench`` to the commands."""
    bench = commands.add_parser(
        "bench",
        help="compare with NumPyro, BlackJAX, PyMC and Stan, as far as they are installed",
        description="Run the comparison of benchmarks/suite, side by side. `make bench` makes an environment with "
        "every contestant first; here those that are not installed are shown as such.",
    )
    bench.add_argument("--quick", action="store_true", help="one short round: whether it all runs")
    bench.add_argument("--systems", metavar="NAMES", help="comma-separated: relation, supernovae, golenetskii, ...")
    bench.add_argument("--only", metavar="NAMES", help="contestants whose names begin with one of these")
    bench.add_argument("--rounds", metavar="N", help="how often each contestant takes its turn")
    bench.add_argument("--out", metavar="DIR", default="runs/bench", help="folder for the table, numbers and figures")
    bench.set_defaults(run=_run)


def _run(arguments) -> int:
    suite = Path(__file__).resolve().parents[2] / "benchmarks" / "suite"
    if not suite.is_dir():
        raise ValueError(
            f"bench: expected the benchmarks beside the package, in {suite}; found none: hbm_jax was not installed "
            "from a clone of its repository. In a clone, `make bench` makes an environment and runs them."
        )
    command = [sys.executable, str(suite), *(["--quick"] if arguments.quick else [])]
    for name in ("systems", "only", "rounds", "out"):
        if (value := getattr(arguments, name)) is not None:
            command += [f"--{name}", str(value)]
    return subprocess.call(command)
