"""Time of the check of the model beside that of the run, for one sample of each system of the error rates.

    python benchmarks/model_verdict_time.py [--systems relation normal]

Processor and wall time without a compilation cache, so that compilation is counted, in one process for each system.
"again" is a second check.
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from model_verdict_systems import SYSTEMS, program_draws

import hbm_jax as hbm

HERE = Path(__file__).resolve().parent


def row_of(name: str) -> str:
    """Sample and check a simulated sample; return the row of the table."""
    system = SYSTEMS[name]()
    values = program_draws(system.model, system.design, system.site, system.truth)(np.random.default_rng(1), 1)[0]
    data = system.measured(values)
    times = [(time.process_time(), time.perf_counter())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = hbm.sample(system.model, data, seed=1, progress=False)
    times.append((time.process_time(), time.perf_counter()))
    check = hbm.check_model(fit)
    times.append((time.process_time(), time.perf_counter()))
    hbm.check_model(fit, seed=1)
    times.append((time.process_time(), time.perf_counter()))
    (run, run_wall), (first, first_wall), (again, _) = np.diff(times, axis=0)
    share = f"{100 * first / run:5.1f} %"
    return (
        f"{name:<12} {run:9.1f} {first:8.2f} {share:>8} {again:8.2f} {run_wall:9.1f} {first_wall:8.2f} "
        f"{len(check.table):11}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS))
    parser.add_argument("--row", help="print the row of this system alone")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "model_verdict_time.txt")
    options = parser.parse_args()
    if options.row:
        print(row_of(options.row))
        return
    lines = [
        f"{'system':<12} {'run, CPU s':>9} {'check':>8} {'of run':>8} {'again':>8} {'run, wall':>9} {'check':>8} "
        f"{'statistics':>11}"
    ]
    for name in options.systems:
        command = [sys.executable, "-W", "ignore", __file__, "--row", name]
        lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        print(lines[-1], flush=True)
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
