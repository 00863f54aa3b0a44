"""Claim: blocks, progress line and checkpoints cost less than 5 % of NumPyro's own MCMC.run.

Both contestants draw from the same density from the same points, with step size and metric of hbm_jax's warm-up (one
for each chain; their means for NumPyro, which takes one of each). Two chains, one on each of two cores. What is timed
is drawing alone, compiled before; repetitions alternate; times are compared per leapfrog step.

- hbm_jax: the loop of `hbm_jax.sample` with its progress line and a checkpoint on disk.
- numpyro: ``MCMC.run`` without progress bar, chains in parallel.

    python benchmarks/loop_overhead.py [--repetitions 7] [--output benchmarks/results/loop_overhead.txt]
"""

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
DRAWS = {"eight schools": 20_000, "JLA": 12_000}


def eight_schools(y, sigma):
    """Rubin 1981, non-centred."""
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        standard = numpyro.sample("_standard", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * standard, sigma), obs=y)


def problems():
    import hbm_jax as hbm

    yield "eight schools", eight_schools, (Y, SIGMA)
    yield "JLA", hbm.models.Supernova(cosmology="wcdm"), (hbm.data.load_jla(),)


def contest(program, args, num_draws, repetitions):
    """Return time and leapfrog steps per draw of both contestants, for each repetition."""
    import jax
    import jax.numpy as jnp
    from numpyro.infer import MCMC, NUTS

    from hbm_jax.inference.sampler import loop
    from hbm_jax.inference.sampler.chains import Chains, Draws
    from hbm_jax.inference.sampler.checkpoint import Checkpoint
    from hbm_jax.inference.sampler.initialisation import choose_start
    from hbm_jax.inference.sampler.kernels.nuts import NUTS as OurNUTS
    from hbm_jax.inference.sampler.progress import ProgressLine
    from hbm_jax.inference.sampler.stopping import StopRule
    from hbm_jax.inference.sampler.target import build_target

    keys = jax.random.split(jax.random.key(1), 3)
    target = build_target(program, args, keys[0])
    start = choose_start(target, 2, keys[1])
    chains = Chains(target, start, 400, OurNUTS(target_accept_prob=0.8), keys[2])
    for _ in range(8):
        chains.advance(50)
    warm = chains.state
    # Both from one kernel with nothing left to learn.
    mean_step = float(np.mean(chains.step_size))
    metric = np.asarray(warm.adapt_state.inverse_mass_matrix).mean(0)
    mcmc = MCMC(
        NUTS(
            potential_fn=target.potential,
            step_size=mean_step,
            inverse_mass_matrix=jnp.asarray(metric),
            dense_mass=True,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        ),
        num_warmup=0,
        num_samples=num_draws,
        num_chains=2,
        chain_method="parallel",
        progress_bar=False,
    )
    fields = ("potential_energy", "energy", "num_steps", "accept_prob", "diverging")
    mcmc.run(keys[2], init_params=warm.z, extra_fields=fields)  # compiles
    seconds = {"hbm_jax": [], "numpyro": []}
    steps = {"hbm_jax": [], "numpyro": []}
    for repetition in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            store = Checkpoint(folder)
            chains.state, draws = warm, Draws(target)
            began = time.perf_counter()
            run = loop.Loop(
                chains, draws, ProgressLine(True), StopRule(num_samples=num_draws), 0, store, time.perf_counter(), False
            )
            run.draw()
            seconds["hbm_jax"].append(time.perf_counter() - began)
            steps["hbm_jax"].append(float(draws.raw("num_steps").mean()))
            store.close()
        began = time.perf_counter()
        mcmc.run(jax.random.key(repetition), init_params=warm.z, extra_fields=fields)
        jax.device_get(mcmc.get_samples())
        seconds["numpyro"].append(time.perf_counter() - began)
        steps["numpyro"].append(float(mcmc.get_extra_fields()["num_steps"].mean()))
    return seconds, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import jax

    import hbm_jax as hbm

    hbm.use_every_core()
    jax.config.update("jax_enable_x64", True)
    lines = [
        "two chains on two cores, one kernel with fixed step size and metric, drawing only, float64 on CPU",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, numpyro {version('numpyro')}",
        f"medians of {options.repetitions} alternating repetitions",
        "",
        f"{'':14s}{'':10s}{'draws/s':>10s}{'steps a draw':>14s}{'us a step':>11s}{'time ratio':>12s}{'per step':>10s}",
    ]
    verdicts = []
    for name, program, args in problems():
        seconds, steps = contest(program, args, DRAWS[name], options.repetitions)
        median = {who: statistics.median(values) for who, values in seconds.items()}
        a_step = {
            who: statistics.median(s / (DRAWS[name] * n) for s, n in zip(seconds[who], steps[who], strict=True))
            for who in seconds
        }
        for who in seconds:
            lines.append(
                f"{name:14s}{who:10s}{2 * DRAWS[name] / median[who]:10.0f}{statistics.median(steps[who]):14.2f}"
                f"{1e6 * a_step[who]:11.2f}{median[who] / median['numpyro']:12.3f}"
                f"{a_step[who] / a_step['numpyro']:10.3f}"
            )
        cost = a_step["hbm_jax"] / a_step["numpyro"] - 1.0
        verdicts.append(
            f"{'PASS' if cost < 0.05 else 'MISS'}  {name}: {100 * cost:+.1f} % of the time of a leapfrog step "
            "(steps a draw differ by chance)"
        )
    text = "\n".join([*lines, "", *verdicts])
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
