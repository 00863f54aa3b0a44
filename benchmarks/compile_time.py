"""Time to compile the programs of a fit: against another checkout, and by options of XLA.

Prints CPU seconds of tracing, lowering and compiling value and gradient, the microseconds of an evaluation, and their
ratios to those of another checkout. Processes of both checkouts alternate; each figure is a median over repetitions in
a process, of which the first is left out, and over processes. CPU time varies less than elapsed time where other
programs run.

    git worktree add ../before COMMIT
    python benchmarks/compile_time.py --against ../before [--processes 3] [--repetitions 4] [--cases jla relation]

With ``--options`` it compiles the programs of `hbm_jax.sample` of this checkout, each case in a separate process,
with several options of XLA, and prints the CPU seconds of compiling those of the chains, of the gradient and of the
sites, the microseconds of a leapfrog step, and their ratio to those with XLA's defaults. Chains draw in turn with each
option; a ratio is the median over the turns.

    python benchmarks/compile_time.py --options [--repetitions 7] [--cases jla "afterglows, 300 energies"]
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

NO_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
OPTIONS = {
    "XLA's defaults": {},
    "no fusion emitters": NO_EMITTERS,
}
SAMPLED = (
    "jla wcdm", "relation", "normal", "golenetskii", "golenetskii, counts", "afterglows, 300 energies",
    "afterglows, 2400 energies", "regression, groups",
)  # fmt: skip
SECONDS_PER_TURN, WARM_UP_SECONDS = 0.3, 3.0
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
        "golenetskii": lambda: (
            models.Golenetskii(),
            data.BurstPopulation(num_intervals=15).draw(10, seed=1).data,
        ),
        "golenetskii, counts": lambda: (
            models.GolenetskiiCounts(),
            data.BurstSpectra.of(data.BurstSpectraPopulation(num_intervals=4).draw(3, seed=1).bursts),
        ),
        "afterglows, 300 energies": lambda: afterglows(300),
        "afterglows, 2400 energies": lambda: afterglows(2400),
    }


def afterglows(num_energies):
    """Return the model and the data of the suite's five afterglows."""
    sys.path.insert(0, str(Path(__file__).parent / "suite" / "systems"))
    import afterglows as system

    return system._model(), system._sample(num_energies)[0]


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

    try:
        from hbm_jax.xla_options import sampling_options

        options = sampling_options(jax.default_backend())
    except ImportError:  # an older checkout
        options = {}
    results = {}
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
            program = lowered.compile(options)
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
        results[name] = dict(zip(FIGURES, values, strict=True))
    return results


def compiled_by_options(name: str, repetitions: int) -> None:
    """Compile the programs of one case with each option, and print a row for each."""
    import jax
    import numpy as np

    import hbm_jax as hbm
    from hbm_jax.inference.compilation.constants_as_arguments import lowered
    from hbm_jax.inference.program import bound_args
    from hbm_jax.inference.sampler.chains import Chains
    from hbm_jax.inference.sampler.initialisation import choose_start
    from hbm_jax.inference.sampler.target import OneProcess, build_target

    class Recording(OneProcess):
        """Process that keeps the last function it compiled, and its arguments."""

        def compile(self, fn, *args, **keywords):
            self.last = fn, args
            return super().compile(fn, *args, **keywords)

    def timed(work):
        began = time.process_time()
        done = jax.block_until_ready(work())
        return done, time.process_time() - began

    process = Recording()
    model, sample = cases()[name]()
    target = replace(build_target(model, bound_args(model, (sample,)), jax.random.key(1)), processes=process)
    start = choose_start(target, 4, jax.random.key(2))
    chains = Chains(target, start, 200, hbm.NUTS(target_accept_prob=0.8), jax.random.key(3))
    advance, shapes = process.last
    chains.advance(5)  # the first call may take longer
    num = int(np.clip(WARM_UP_SECONDS / (timed(lambda: chains.advance(5))[1] / 5), 5, 100))
    chains.advance(num)
    draw, flat = chains._inputs, np.asarray(target.start)
    points = np.repeat(flat[None], 500, axis=0)
    functions = (advance, *shapes), (jax.value_and_grad(target.potential), flat), (jax.vmap(target.constrain), points)
    programs = [lowered(fn, *arguments) for fn, *arguments in functions]
    constants = [programs[0][1]] if programs[0][1] else []
    jax.clear_caches()  # of programs that were compiled with these options
    seconds, samplers, steps = {}, {}, {option: [] for option in OPTIONS}
    for option, values in OPTIONS.items():
        compiled = [timed(partial(program.compile, values)) for program, _ in programs]
        samplers[option], seconds[option] = partial(compiled[0][0], *constants), [spent for _, spent in compiled]
    length = timed(lambda: samplers["XLA's defaults"](*draw(2)))[1] / 2
    length = int(np.clip(SECONDS_PER_TURN / length, 3, 1500))
    for turn in range(repetitions):
        for option in OPTIONS if turn % 2 else reversed(OPTIONS):
            (_, block), spent = timed(lambda option=option: samplers[option](*draw(length)))
            steps[option].append(1e6 * spent / int(np.asarray(block.num_steps)[:, :length].sum()))
    first = steps["XLA's defaults"]
    for option in OPTIONS:
        ratio = statistics.median(a / b for a, b in zip(steps[option], first, strict=True))
        row = "".join(f"{value:13.2f}" for value in seconds[option])
        print(f"{name:27s}{option:25s}{row}{statistics.median(steps[option]):13.1f}{ratio:13.3f}", flush=True)


def compare_options(arguments) -> None:
    """Print a table of all cases, each measured in a separate process."""
    if arguments.child:
        import jax

        with jax.enable_x64(True):
            compiled_by_options(arguments.cases[0], arguments.repetitions)
        return
    columns = "advance s", "gradient s", "sites s", "us a step", "ratio"
    print(f"{'':52s}" + "".join(f"{column:>13s}" for column in columns), flush=True)
    # As the command line does.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": flags}
    for name in arguments.cases or SAMPLED:
        own = ["--options", "--child", "--repetitions", str(arguments.repetitions), "--cases", name]
        subprocess.run([sys.executable, __file__, *own], env=environment, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="checkout to compare with")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--options", action="store_true", help="compare options of XLA")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.options:
        compare_options(arguments)
        return
    arguments.cases = arguments.cases or ["jla", "jla wcdm", "relation", "normal", "regression"]
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
