"""Claim: for groups of one datum and of a thousand, partial non-centring has more ESS/s than both pure forms.

The case is the unbalanced one of M. Betancourt, "Hierarchical Modeling" (2020, betanalpha.github.io): measurements of
error 10 of groups drawn from N(mu, tau^2), mu ~ N(0, 5), tau ~ half-N(0, 5), simulated with mu = 4.5, tau = 3.5. Here
twenty groups have one datum each and five have a thousand each.

Three parametrisations are compared, in a shuffled order, with the same sampler, options and seeds: centred,
non-centred, and the partial non-centring that `centre` chooses. Each repetition simulates new data. Reported are the
time of compilation, the time of warm-up and drawing, and the smallest bulk ESS over all parameters and groups. ESS/s is
per second of drawing; "with all" is per second from the call on: pilot run, tracing, start, compilation, warm-up,
drawing.

``--gradients`` counts gradients in place of seconds, which do not depend on the load: those of the pilot runs, with two
for each product with the Hessian, of the searches and the warm-up, and of 4 x 1000 draws.

    python benchmarks/centering.py [--repetitions 5] [--output benchmarks/results/centering.txt] [--gradients]
"""

import argparse
import contextlib
import datetime
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

NUMBERS = np.array([1] * 20 + [1000] * 5)
CONTESTANTS = ("centred", "non-centred", "chosen")
NUM_SAMPLES = 2000


def program(y, group):
    """Sample the centred parametrisation of groups of very different size."""
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("group", len(NUMBERS)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Normal(theta[group], 10.0), obs=y)


def simulate(seed):
    """Return data and the group of each datum."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(NUMBERS)), NUMBERS)
    return random.normal(random.normal(4.5, 3.5, size=len(NUMBERS))[group], 10.0), group


def program_of(contestant, data, seed):
    """Return the program of a contestant, and the time of its pilot run [s]."""
    from hbm_jax.inference.centering.location_scale import PartialNonCentring, ReparametrisedProgram
    from hbm_jax.inference.centering.pilot import centre

    if contestant == "centred":
        return program, 0.0
    if contestant == "non-centred":
        size = len(NUMBERS)
        return ReparametrisedProgram(program, (PartialNonCentring("theta", np.zeros(size), np.ones(size)),)), 0.0
    started = time.perf_counter()
    centering = centre(program, *data, seed=seed)
    return centering.program, time.perf_counter() - started


def run(contestant, seed):
    """Fit once, and return times, effective sample sizes and diagnostics."""
    import hbm_jax as hbm

    data = simulate(seed)
    chosen, pilot = program_of(contestant, data, seed)
    fit = hbm.sample(chosen, *data, seed=seed, num_samples=NUM_SAMPLES, progress=False)
    name, ess = min(fit.verdict.table["ess_bulk"].items(), key=lambda item: item[1])
    total = pilot + sum(fit.timing[phase] for phase in ("trace", "start", "compile", "warmup", "sampling"))
    stats = fit.tree["sample_stats"]
    return {
        "pilot_s": pilot,
        "compile_s": fit.timing["compile"],
        "run_s": fit.timing["warmup"] + fit.timing["sampling"],
        "ess": ess,
        "ess_per_s": ess / fit.timing["sampling"],
        "ess_per_s_all": ess / total,
        "steps_per_draw": float(stats["n_steps"].mean()),
        "divergences": float(stats["diverging"].sum()),
        "worst": name,
        "tau": float(fit.posterior["tau"].mean()),
    }


def table(records):
    """Return the lines of the result."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("hbm_jax", "jax", "numpyro"))
    few, many = (np.count_nonzero(number == NUMBERS) for number in (1, 1000))
    repetitions = len(records["chosen"])
    yield f"{few} groups with 1 datum, {many} with 1000; 4 chains of {NUM_SAMPLES} draws, float64 on CPU"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    yield f"{datetime.date.today()}, {machine}, {packages}"
    load = os.getloadavg()[2]  # other programs make all times longer, but hardly change ratios of successive runs
    yield f"median (smallest to largest) of {repetitions} data sets, contestants alternating; load average {load:.1f}"
    yield ""
    columns = {
        "pilot_s": "pilot, with its compilation [s]",
        "compile_s": "compiling [s]",
        "run_s": "running: warm-up and drawing [s]",
        "ess": "smallest bulk ESS",
        "ess_per_s": "ESS per second of drawing",
        "ess_per_s_all": "ESS per second with all",
        "steps_per_draw": "leapfrog steps a draw",
        "divergences": "divergent draws",
    }
    yield (" " * 34 + "".join(f"{contestant:<30}" for contestant in CONTESTANTS)).rstrip()
    for key, title in columns.items():
        cells = []
        for contestant in CONTESTANTS:
            values = [record[key] for record in records[contestant]]
            cells.append(f"{statistics.median(values):.4g} ({min(values):.3g} to {max(values):.3g})".ljust(30))
        yield (f"{title:<34}" + "".join(cells)).rstrip()
    for contestant in CONTESTANTS:
        worst = sorted({record["worst"] for record in records[contestant]})
        means = ", ".join(f"{record['tau']:.2f}" for record in records[contestant])
        yield f"{contestant}: slowest {', '.join(worst)}; posterior mean of tau by data set {means}"
    yield ""
    for key, label in (("ess_per_s", "ESS per second of drawing"), ("ess_per_s_all", "ESS per second with all")):
        for other in CONTESTANTS[:2]:
            ratios = [ours[key] / theirs[key] for ours, theirs in zip(records["chosen"], records[other], strict=True)]
            met = "PASS" if min(ratios) > 1 else "MISS"
            yield (
                f"{met}  chosen over {other}, {label}: ratio {statistics.median(ratios):.3g} "
                f"({min(ratios):.3g} to {max(ratios):.3g})"
            )


@contextlib.contextmanager
def counting_pilot():
    """Count the gradients of pilot runs, in a list of one number."""
    import jax

    from hbm_jax.inference.centering.pilot import Pilot

    count, potential, curvature = [0], Pilot.potential, Pilot._curvature

    def counted(self, reparams, params):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 1))
        return potential(self, reparams, params)

    def counted_curvature(self, sampled_site, reparams, draws, keys):
        jax.debug.callback(lambda: count.__setitem__(0, count[0] + 2 * self.num_pilots))
        return curvature(self, sampled_site, reparams, draws, keys)

    Pilot.potential, Pilot._curvature = counted, counted_curvature
    try:
        yield count
    finally:
        jax.effects_barrier()
        Pilot.potential, Pilot._curvature = potential, curvature


def gradients_of(contestant, seed):
    """Fit once; return gradients and the smallest effective sample size."""
    import engine
    import jax

    from hbm_jax.inference.sampler.target import build_target

    data = simulate(seed)
    with counting_pilot() as pilot:
        program, _ = program_of(contestant, data, seed)
    with jax.enable_x64(True):
        target = build_target(program, data, jax.random.key(0))
        outcome = engine.ours(target, program, data, seed)
    ess = engine.smallest_ess(outcome.draws)[0]
    before = pilot[0] + outcome.gradients_before
    whole = before + outcome.gradients
    return {
        "gradients of the pilot": pilot[0],
        "gradients of searches and warm-up": outcome.gradients_before,
        "gradients of the draws": outcome.gradients,
        "divergent draws": outcome.divergences,
        "smallest bulk ESS": ess,
        "the same per 1000 gradients of the draws": 1e3 * ess / outcome.gradients,
        "the same per 1000 gradients, with all": 1e3 * ess / whole,
        "with all but those of the pilot": 1e3 * ess / (whole - pilot[0]),
    }


def table_of_gradients(repetitions):
    """Return the lines of the result with ``--gradients``."""
    records = {contestant: [] for contestant in CONTESTANTS}
    for seed in range(1, repetitions + 1):
        for contestant in CONTESTANTS:
            records[contestant].append(gradients_of(contestant, seed))
            print(contestant, seed, records[contestant][-1], flush=True)
    few, many = (np.count_nonzero(number == NUMBERS) for number in (1, 1000))
    yield f"{few} groups with 1 datum, {many} with 1000; 4 chains of 1000 draws; {datetime.date.today()}"
    yield f"median (smallest to largest) of {repetitions} data sets"
    yield f"{'':<42}" + "".join(f"{contestant:<36}" for contestant in CONTESTANTS).rstrip()
    for key in records["chosen"][0]:
        cells = []
        for contestant in CONTESTANTS:
            values = [record[key] for record in records[contestant]]
            cells.append(f"{statistics.median(values):.4g} ({min(values):.3g} to {max(values):.3g})".ljust(36))
        yield f"{key:<42}" + "".join(cells).rstrip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--gradients", action="store_true", help="count gradients in place of seconds")
    arguments = parser.parse_args()
    if arguments.gradients:
        text = "\n".join(table_of_gradients(arguments.repetitions))
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n")
        return
    import hbm_jax as hbm

    hbm.use_every_core()
    order = np.random.default_rng(0)
    records = {contestant: [] for contestant in CONTESTANTS}
    run("centred", 0)  # costs that a process has once are not counted
    for repetition in range(arguments.repetitions):
        for contestant in order.permutation(CONTESTANTS):
            records[str(contestant)].append(run(contestant, repetition + 1))
    text = "\n".join(table(records))
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
