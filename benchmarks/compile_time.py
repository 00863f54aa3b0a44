"""Time to compile value and gradient of JLA, a relation, a normal hierarchy and a regression, against another checkout.

Prints CPU seconds of tracing, lowering and compiling value and gradient, the microseconds of an evaluation, and their
ratios to those of another checkout. Processes of both checkouts alternate; each figure is a median over repetitions in
a process, of which the first is left out, and over processes. CPU time varies less than elapsed time where other
programs run.

    git worktree add ../before COMMIT
    python benchmarks/compile_time.py --against ../before [--processes 3] [--repetitions 4] [--cases jla relation]
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIGURES = ("trace", "lower", "compile", "total", "equations", "gradient_us")


def cases():
    """Return functions that return a model and its data, by name."""
    import numpy as np

    from hbm_jax import data, models

    rng = np.random.default_rng(1)
    num = 40
    x = rng.normal(size=num)
    table = {
        "x": x, "y": x + 0.3 * rng.normal(size=num), "sigma_x": np.full(num, 0.2), "sigma_y": np.full(num, 0.1),
        "group": [f"group {i % 5}" for i in range(num)],
    }  # fmt: skip
    points = data.PointsInGroups.from_columns(table)
    grouped = "y ~ x + (1 | group)"
    return {
        "jla": lambda: (models.Supernova(), data.load_jla()),
        "jla wcdm": lambda: (models.Supernova(cosmology="wcdm"), data.load_jla()),
        "relation": lambda: (models.Relation(), points),
        "relation, one line": lambda: (models.Relation(pooling="complete"), points),
        "normal": lambda: (models.Normal(), data.load_eight_schools()),
        "regression": lambda: (models.Regression(), data.RegressionData.from_columns(table, "y ~ x")),
        "regression, groups": lambda: (
            models.Regression(),
            data.RegressionData.from_columns(table, grouped),
        ),
    }


def count(jaxpr) -> int:
    """Return the number of equations, with those of inner functions."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(part, "jaxpr", part) for value in equation.params.values() for part in
                 (value if isinstance(value, list | tuple) else [value])]  # fmt: skip
        total += 1 + sum(count(part) for part in inner if hasattr(part, "eqns"))
    return total


def measure(names, repetitions) -> dict[str, dict[str, float]]:
    """Measure the checkout that is imported."""
    import jax
    import jax.numpy as jnp

    from hbm_jax.inference.sampler.target import build_target

    found = {}
    for name in names:
        model, sample = cases()[name]()
        target = build_target(model, (model.bound(sample) if hasattr(model, "bound") else sample,), jax.random.key(1))
        at, rows = jnp.asarray(target.start), []
        for _ in range(repetitions):
            jax.clear_caches()
            marks = [time.process_time()]
            traced = jax.jit(jax.value_and_grad(target.potential)).trace(at)
            marks.append(time.process_time())
            lowered = traced.lower()
            marks.append(time.process_time())
            program = lowered.compile()
            marks.append(time.process_time())
            rows.append([b - a for a, b in itertools.pairwise(marks)])
        trace, lower, compiled = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        jax.block_until_ready(program(at))
        began, evaluations = time.process_time(), 0
        while time.process_time() - began < 0.5:
            jax.block_until_ready(program(at))
            evaluations += 1
        gradient = 1e6 * (time.process_time() - began) / evaluations
        values = trace, lower, compiled, trace + lower + compiled, count(traced.jaxpr.jaxpr), gradient
        found[name] = dict(zip(FIGURES, values, strict=True))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="checkout to compare with")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--cases", nargs="+", default=["jla", "jla wcdm", "relation", "normal", "regression"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        import jax

        with jax.enable_x64(True):
            print(json.dumps(measure(arguments.cases, arguments.repetitions)))
        return
    here = Path(__file__).resolve().parents[1]
    results: dict[Path, list] = {folder: [] for folder in (here, arguments.against) if folder}
    command = [
        sys.executable,
        __file__,
        "--child",
        "--repetitions",
        str(arguments.repetitions),
        "--cases",
        *arguments.cases,
    ]
    for _ in range(arguments.processes):
        for folder, runs in results.items():
            environment = os.environ | {"PYTHONPATH": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "false"}
            shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(shown.splitlines()[-1]))
    print(f"{'':24s}" + "".join(f"{figure:>13s}" for figure in FIGURES))
    for name in arguments.cases:
        medians = [[statistics.median(run[name][f] for run in runs) for f in FIGURES] for runs in results.values()]
        for label, row in zip((name, "  before"), medians, strict=False):
            print(f"{label:24s}" + "".join(f"{value:13.4g}" for value in row))
        if len(medians) == 2:
            print(f"{'  ratio':24s}" + "".join(f"{a / b:13.3f}" for a, b in zip(*medians, strict=True)))


if __name__ == "__main__":
    main()
