"""Time of the report of a stored run, by this version and by other checkouts of the repository, taking turns.

``git worktree add ../before main~1; python benchmarks/report_time.py runs/demo --against ../before``
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
# Loading the run is not part of the report; importing matplotlib is.
TIMED = """
import json, sys, tempfile, time
from pathlib import Path
from hbm_jax import report, runs
fit = runs.load(sys.argv[1])
fit.summary()
wall, cpu = time.perf_counter(), time.process_time()
with tempfile.TemporaryDirectory() as folder:
    page = report.write_report(fit, Path(folder) / "report.html", figure_folder=folder)
    size, failed = page.stat().st_size, page.read_text().count("could not be drawn")
times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
print(json.dumps(times | {"size": size, "failed": failed}))
"""


def measure(checkout: Path, run: Path) -> dict[str, float]:
    """Return seconds, bytes and failed figures of a report in a new process."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", TIMED, str(run.resolve())]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    checkouts = [HERE, *(path.resolve() for path in options.against)]
    taken: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    for _ in range(options.turns):
        for checkout in checkouts:
            taken[checkout].append(measure(checkout, options.run))
    print(f"load {os.getloadavg()[0]:.1f}, medians of {options.turns}")
    first = statistics.median(each["cpu"] for each in taken[HERE])
    for checkout, each in taken.items():
        wall, cpu = (statistics.median(one[name] for one in each) for name in ("wall", "cpu"))
        page, failed = each[0]["size"] / 1e6, int(each[0]["failed"])
        print(f"{cpu:6.2f} s CPU ({cpu / first:.1f}x)  {wall:6.2f} s  {page:5.2f} MB  {failed} failed  {checkout.name}")


if __name__ == "__main__":
    main()
