"""Claim: fit_each samples 1000 eight-schools-sized problems at 20 times the throughput of a loop over MCMC.run.

Contestants, in one process, two cores, float64, each compiled before it is timed:

- fit_each: 1000 simulated problems, each drawn until usable (R-hat < 1.01, bulk and tail ESS >= 400, no divergence).
- MCMC.run: NumPyro's MCMC on the same program, four chains, 500 warm-up and 500 draws, called for each data set
  (``jit_model_args=True``); with the faster of its methods for four chains.
- compiled loop: the same NUTS with its initialisation, compiled once as a function of key and data, and called in a
  loop. It avoids the work that MCMC.run does in Python at every call.
- lock-step: the same function applied to 64 problems by `jax.vmap`, where each draw takes as long as the deepest tree.

The smallest effective sample size of each problem is given beside the time, because fewer effective draws would also
increase the throughput.

    python benchmarks/fit_each.py [--objects 1000] [--output benchmarks/results/fit_each.txt]
"""

import argparse
import datetime
import os
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
TARGET = 20.0
ACCEPT = 0.9
NUM_WARMUP = NUM_SAMPLES = 500


def eight_schools(y, sigma):
    """Rubin 1981, non-centred."""
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        standard = numpyro.sample("_standard", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * standard)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def simulate(num):
    rng = np.random.default_rng(0)
    mu, tau = rng.normal(0, 5, num), np.abs(rng.normal(0, 8, num))
    theta = mu[:, None] + tau[:, None] * rng.normal(size=(num, 8))
    return theta + SIGMA * rng.normal(size=(num, 8))


def smallest_ess(sites):
    """Return the smallest bulk or tail ESS of any element of arrays (chain, draw, ...)."""
    from hbm_jax.inference.batch.diagnostics import diagnose_many

    diagnostics = [diagnose_many(np.moveaxis(np.asarray(v), (0, 1), (-2, -1))) for v in sites.values()]
    return min(float(min(np.min(d.ess_bulk), np.min(d.ess_tail))) for d in diagnostics)


def loop(y, chain_method):
    """Seconds and smallest ESS of each problem, one after the other."""
    import jax
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(
        NUTS(eight_schools, target_accept_prob=ACCEPT),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=4,
        chain_method=chain_method,
        progress_bar=False,
        jit_model_args=True,
    )
    seconds, ess = [], []
    for i, one in enumerate(y):
        began = time.perf_counter()
        mcmc.run(jax.random.key(i), one, SIGMA)
        samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
        seconds.append(time.perf_counter() - began)
        ess.append(smallest_ess({n: v for n, v in samples.items() if n != "_standard"}))
    return seconds[1:], ess[1:]  # the first compiles


def nuts(key, y):
    """Draws of one problem, (chain, draw, ...)."""
    import jax
    from numpyro.infer import NUTS
    from numpyro.infer.util import initialize_model

    info = initialize_model(key, eight_schools, model_args=(y, SIGMA), validate_grad=False)
    kernel = NUTS(potential_fn=info.potential_fn, target_accept_prob=ACCEPT)

    def step(state, _):
        state = kernel.sample(state, (), {})
        return state, state.z

    def chain(key):
        state = kernel.init(key, NUM_WARMUP, info.param_info.z, (), {})
        _, drawn = jax.lax.scan(step, state, length=NUM_WARMUP + NUM_SAMPLES)
        return jax.tree.map(lambda x: x[NUM_WARMUP:], drawn)

    # One chain after the other inside the program: side by side they would wait for each other's trees.
    return jax.lax.map(chain, jax.random.split(key, 4))


def compiled_loop(y):
    """Compile seconds, seconds and smallest ESS of each problem."""
    import jax

    began = time.perf_counter()
    run = jax.jit(nuts).lower(jax.random.key(0), y[0]).compile()
    compile_seconds = time.perf_counter() - began
    seconds, ess = [], []
    for i, one in enumerate(y):
        began = time.perf_counter()
        drawn = jax.device_get(run(jax.random.key(i), one))
        seconds.append(time.perf_counter() - began)
        ess.append(smallest_ess(drawn))
    return compile_seconds, seconds, ess


def lock_step(y):
    """Compile seconds, seconds of a batch, and the smallest ESS of each of its problems."""
    import jax

    keys = jax.random.split(jax.random.key(0), len(y))
    began = time.perf_counter()
    run = jax.jit(jax.vmap(nuts)).lower(keys, y).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    drawn = jax.device_get(run(keys, y))
    seconds = time.perf_counter() - began
    return compile_seconds, seconds, [smallest_ess({n: v[i] for n, v in drawn.items()}) for i in range(len(y))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=16, help="problems the loop is timed on")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import jax

    import hbm_jax as hbm

    hbm.use_every_core()
    jax.config.update("jax_enable_x64", True)
    warnings.filterwarnings("ignore", message="There are not enough devices")
    y = simulate(options.objects)
    data = [(one, SIGMA) for one in y]
    settings = {"seed": 1, "target_accept_prob": ACCEPT, "progress": False}
    fits = hbm.fit_each(eight_schools, data, **settings)
    ours = fits.cost["seconds"] - fits.cost["compile_seconds"]
    ess = fits.summary()[["ess_bulk", "ess_tail"]].min(axis=1).groupby("object").min()
    lines = [
        f"eight schools, {options.objects} simulated problems, float64 on CPU",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, numpyro {version('numpyro')}",
        "compilation is not counted; per problem, medians; draws until usable against 4 x (500 + 500)",
        "",
        f"{'':28s}{'compile s':>10s}{'ms a problem':>14s}{'smallest ESS':>14s}{'ratio':>8s}{'ratio by ESS':>14s}",
    ]
    each = ours / options.objects

    def row(name, compile_seconds, seconds, ess):
        by_ess = (seconds / np.median(ess)) / (each / np.median(ours_ess))
        lines.append(
            f"{name:28s}{compile_seconds:10.1f}{1e3 * seconds:14.1f}{np.median(ess):14.0f}{seconds / each:8.1f}"
            f"{by_ess:14.1f}"
        )

    ours_ess = ess.to_numpy()
    row("fit_each", fits.cost["compile_seconds"], each, ours_ess)
    loops = []
    for method in ("vectorized", "sequential"):
        began = time.perf_counter()
        seconds, ess = loop(y[: options.loop], method)
        row(f"MCMC.run, {method} chains", time.perf_counter() - began - sum(seconds), statistics.median(seconds), ess)
        loops.append(statistics.median(seconds) / each)
    compile_seconds, seconds, ess = compiled_loop(y[: 2 * options.loop])
    row("compiled loop", compile_seconds, statistics.median(seconds), ess)
    by_hand = statistics.median(seconds) / each
    compile_seconds, seconds, ess = lock_step(y[:64])
    row("lock-step NUTS, 64 at once", compile_seconds, seconds / 64, ess)
    usable = int(fits.usable.sum())
    lines += [
        "",
        f"fit_each: {usable} of {options.objects} usable, {fits.verdicts['num_draws'].median():.0f} draws (median), "
        f"{fits.cost['num_slots']} slots, waiting factor {fits.waste:.1f}",
        "",
        f"{'PASS' if min(loops) >= TARGET else 'MISS'}  at least {TARGET:.0f} times the throughput of a loop over "
        f"MCMC.run: {min(loops):.1f}; of the loop compiled by hand: {by_hand:.1f}",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
