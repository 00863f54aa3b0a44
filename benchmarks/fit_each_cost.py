"""CPU time, draws and waiting of `hbm_jax.fit_each` for 1000 sets of eight values, compilation included.

    python benchmarks/fit_each_cost.py [--program normal] [--objects 1000]

``normal``: mean and standard deviation of eight values. ``schools``: the eight schools of ``benchmarks/fit_each.py``,
non-centred. Run it with ``PYTHONPATH`` set to another checkout to compare versions. The waiting factor is the number of
leapfrog steps of the batch while an object was in it, over those that the object needed, of both devices together.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np


def normal(y):
    """Eight values of unknown mean and standard deviation."""
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("value", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", choices=["normal", "schools"], default="normal")
    parser.add_argument("--objects", type=int, default=1000)
    options = parser.parse_args()
    import jax

    import hbm_jax as hbm

    hbm.use_every_core()
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    if options.program == "normal":
        mean, width = rng.normal(0, 5, (options.objects, 1)), rng.uniform(0.5, 3, (options.objects, 1))
        program, data = normal, [(y,) for y in rng.normal(mean, width, (options.objects, 8))]
        settings = {}
    else:
        sys.path.insert(0, str(Path(__file__).parent))
        from fit_each import SIGMA, eight_schools, simulate

        program, data = eight_schools, [(y, SIGMA) for y in simulate(options.objects)]
        settings = {"target_accept_prob": 0.9}
    began, cpu = time.perf_counter(), time.process_time()
    fits = hbm.fit_each(program, data, seed=1, progress=False, **settings)
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    ess = fits.summary()[["ess_bulk", "ess_tail"]].min(axis=1).groupby("object").min()
    print(
        f"{options.program}: {int(fits.usable.sum())} of {options.objects} usable, CPU time {cpu:.1f} s, "
        f"{seconds:.1f} s at a load of {os.getloadavg()[0]:.1f}, draws of an object "
        f"{fits.verdicts['num_draws'].median():.0f} (median), "
        f"smallest effective sample size {ess.median():.0f} (median), waiting factor {fits.waste:.2f}"
    )


if __name__ == "__main__":
    main()
