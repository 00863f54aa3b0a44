"""Claim: with every selection off, log densities and the cost of a gradient are those of a version without selections.

Log densities of models without selection are compared with those of another checkout of the package, such as one before
selections were added (9cbd4fde), at the same values of all sites, drawn by the other checkout. Both run in processes of
their own, which take turns. The cost is the number of operations of the compiled program, and its CPU time.

    git worktree add ../before 9cbd4fde
    python benchmarks/selection_off.py ../before [--output benchmarks/results/selection_off.txt]
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EVALUATIONS = 200
MOST_DIFFERENCE, MOST_RATIO = 1e-12, 1.05  # relative difference of log densities, ratio of operations


def cases():
    """Return models and data by name."""
    from hbm_jax.data import BurstPopulation, PointsInGroups, load_jla
    from hbm_jax.models import Golenetskii, Relation, Supernova

    rng = np.random.default_rng(1)
    num = 300
    x, errors = rng.normal(size=num), {"sigma_x": np.full(num, 0.3), "sigma_y": np.full(num, 0.2)}
    columns = {"x": x + 0.3 * rng.normal(size=num), "y": 2.0 * x + 0.4 * rng.normal(size=num)} | errors
    one = PointsInGroups.from_columns(columns)
    limited = PointsInGroups.from_columns(columns | {"limit_y": ["upper" if i % 9 == 0 else "" for i in range(num)]})
    groups = PointsInGroups.from_columns(columns | {"group": [f"g{i % 20}" for i in range(num)]})
    bursts = BurstPopulation(num_intervals=6, log10_flux_limit=-7.5).draw(20, seed=2).data
    return {
        "line of 300 points": (Relation(pooling="complete"), one),
        "line with upper limits": (Relation(pooling="complete"), limited),
        "two populations of x": (Relation(pooling="complete", num_components=2), one),
        "lines of 20 groups": (Relation(), groups),
        "Golenetskii": (Golenetskii(), bursts),
        "Golenetskii, truncated": (Golenetskii(truncated=True), bursts),
        "JLA": (Supernova(), load_jla()),
        "JLA, outliers": (Supernova(outliers=True), load_jla()),
    }


def evaluate(path: Path) -> None:
    """Print log density and CPU time of value and gradient of every case, at values in a file; draw those it lacks."""
    import jax
    from numpyro import handlers
    from numpyro.infer.util import log_density

    jax.config.update("jax_enable_x64", True)
    stored = json.loads(path.read_text()) if path.exists() else {}
    found = {}
    for name, (model, data) in cases().items():
        bound = model.bind(data) if hasattr(model, "bind") else data
        if name not in stored:
            trace = handlers.trace(handlers.seed(model, 3)).get_trace(bound)
            sampled = {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
            stored[name] = {k: np.asarray(s["value"]).tolist() for k, s in sampled.items()}
        values = {k: np.asarray(v, float) for k, v in stored[name].items()}

        def density(values, model=model, bound=bound):
            return log_density(model, (bound,), {}, values)[0]

        both, times = jax.jit(jax.value_and_grad(density)).lower(values).compile(), []
        value = float(both(values)[0])
        for _ in range(EVALUATIONS):
            began = time.process_time()
            jax.block_until_ready(both(values))
            times.append(time.process_time() - began)
        # On a busy machine most evaluations are disturbed; the tenth percentile is not.
        found[name] = {"log density": value, "operations": both.cost_analysis()["flops"]}
        found[name] |= {"ms": 1e3 * float(np.quantile(times, 0.1))}
    path.write_text(json.dumps(stored))
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of another checkout of the package")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each version")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--values", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.values:
        evaluate(options.values)
        return
    here, results = Path(__file__).resolve().parents[1], {"other": [], "this": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for version, root in (("other", options.checkout.resolve()), ("this", here)):
                command = [sys.executable, __file__, str(root), "--values", f"{folder}/values.json"]
                flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
                environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": flags.strip()}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                results[version].append(json.loads(done.stdout.splitlines()[-1]))
    lines = [
        f"float64; {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared, load "
        f"{os.getloadavg()[0]:.1f}), Python {platform.python_version()}; CPU time of value and gradient, tenth "
        f"percentile of {EVALUATIONS} in each of {options.rounds} processes, smallest of these",
        f"{'':26s}{'log density':>22s}{'difference':>12s}{'operations':>12s}{'ratio':>7s}"
        f"{'this [ms]':>11s}{'other [ms]':>11s}{'ratio':>7s}",
    ]
    for name, first in results["this"][0].items():
        this, other = first["log density"], results["other"][0][name]["log density"]
        ours, theirs = (min(run[name]["ms"] for run in results[version]) for version in ("this", "other"))
        difference = abs(this - other) / abs(other)
        operations = first["operations"]
        ratio = operations / results["other"][0][name]["operations"]
        passed = difference <= MOST_DIFFERENCE and ratio <= MOST_RATIO
        lines.append(
            f"{'PASS' if passed else 'MISS'} {name:21s}{this:22.10f}{difference:12.1e}{operations:12.0f}"
            f"{ratio:7.2f}{ours:11.3f}{theirs:11.3f}{ours / theirs:7.2f}"
        )
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
