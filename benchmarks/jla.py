"""Claim: JLA in flat wCDM, all parameters free, gives 1000 effective draws per second and a verdict within 20 s.

That is: smallest bulk ESS over the global parameters per second of drawing, once compiled, on two cores; and from the
start of the process to a usable verdict (R-hat < 1.01, ESS >= 400, no divergence), in under 1.5 GiB.

Contestants, alternating, each repetition a process of its own so that start-up and compilation count:

- hbm_jax: `hbm-jax fit supernova --data jla --cosmology wcdm`, less the report.
- numpyro: the same program handed to NumPyro's own MCMC with a dense metric, chains in parallel, 1000 warm-up and 1000
  draws a chain, as a careful user would run it; R-hat and effective sample sizes by ArviZ.

    python benchmarks/jla.py [--repetitions 5] [--output benchmarks/results/jla.txt]
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

CONTESTANTS = ("hbm_jax", "numpyro")


def set_up():
    """Set the options that the command line sets before JAX starts."""
    import hbm_jax as hbm

    hbm.use_every_core()


def run_hbm_jax(seed):
    """Fit with hbm_jax; return times and effective sample sizes."""
    import hbm_jax as hbm

    fit = hbm.sample(hbm.models.Supernova(cosmology="wcdm"), hbm.data.load_jla(), seed=seed, progress=False)
    name, ess = min(fit.verdict.table["ess_bulk"].items(), key=lambda item: item[1])
    return {
        "usable": fit.verdict.usable,
        "worst": name,
        "ess": ess,
        "sampling_s": fit.timing["sampling"],
        "draws": fit.verdict.num_draws,
        "steps_per_draw": float(fit.tree["sample_stats"]["n_steps"].mean()),
        "means": {key: float(fit.posterior[key].mean()) for key in ("Om0", "w0")},
    }


def run_numpyro(seed):
    """Fit the same program with NumPyro's MCMC."""
    import jax
    import xarray as xr
    from numpyro.infer import MCMC, NUTS

    import hbm_jax as hbm
    from hbm_jax.inference import judge

    with jax.enable_x64(True):
        kernel = NUTS(hbm.models.Supernova(cosmology="wcdm"), dense_mass=True)
        mcmc = MCMC(
            kernel, num_warmup=1000, num_samples=1000, num_chains=4, chain_method="parallel", progress_bar=False
        )
        if len(jax.local_devices()) < 4:
            mcmc.chain_method = "vectorized"
        sne = hbm.data.load_jla()
        fields = ("diverging", "energy", "num_steps")
        mcmc.warmup(jax.random.key(seed), sne, extra_fields=fields, collect_warmup=False)
        # Twice, because the first call compiles.
        mcmc.run(mcmc.post_warmup_state.rng_key, sne, extra_fields=fields)
        started = time.perf_counter()
        mcmc.run(mcmc.post_warmup_state.rng_key, sne, extra_fields=fields)
        jax.block_until_ready(mcmc.get_samples())
        sampling = time.perf_counter() - started
        draws = {k: v for k, v in mcmc.get_samples(group_by_chain=True).items() if v.ndim == 2}
        stats = mcmc.get_extra_fields(group_by_chain=True)
    dims = ("chain", "draw")
    posterior = xr.Dataset({name: (dims, jax.device_get(value)) for name, value in draws.items()})
    sample_stats = xr.Dataset({name: (dims, jax.device_get(value)) for name, value in stats.items()})
    verdict = judge(posterior, sample_stats)
    name, ess = min(verdict.table["ess_bulk"].items(), key=lambda item: item[1])
    return {
        "usable": verdict.usable,
        "worst": name,
        "ess": ess,
        "sampling_s": sampling,
        "draws": verdict.num_draws,
        "steps_per_draw": float(stats["num_steps"].mean()),
        "means": {key: float(posterior[key].mean()) for key in ("Om0", "w0")},
    }


def one(contestant, seed):
    """Run one contestant in this process and print its record."""
    set_up()
    record = {"hbm_jax": run_hbm_jax, "numpyro": run_numpyro}[contestant](seed)
    record["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(record))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("CONTESTANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], int(arguments.one[1]))
        return
    records = {contestant: [] for contestant in CONTESTANTS}
    for repetition in range(arguments.repetitions):
        for contestant in CONTESTANTS:
            started = time.perf_counter()
            command = [sys.executable, __file__, "--one", contestant, str(repetition + 1)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            record = json.loads(output.splitlines()[-1]) | {"total_s": time.perf_counter() - started}
            record["ess_per_s"] = record["ess"] / record["sampling_s"]
            records[contestant].append(record)
    text = "\n".join(table(records))
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def table(records):
    """Return the lines of the result."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("hbm_jax", "jax", "numpyro"))
    yield "JLA, flat wCDM, 740 supernovae, 11 free parameters, 4 chains, float64 on CPU"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    yield f"{datetime.date.today()}, {machine}, {packages}"
    yield f"median (smallest to largest) of {len(records['hbm_jax'])} processes each, contestants alternating"
    yield ""
    columns = {
        "total_s": "process start to verdict [s]",
        "sampling_s": "drawing [s]",
        "ess_per_s": "smallest bulk ESS per second of drawing",
        "steps_per_draw": "leapfrog steps a draw",
        "memory_gib": "largest memory [GiB]",
    }
    for key, title in columns.items():
        cells = []
        for contestant in CONTESTANTS:
            values = [record[key] for record in records[contestant]]
            cells.append(
                f"{contestant} {statistics.median(values):9.3g} ({min(values):.3g} to {max(values):.3g})".ljust(42)
            )
        ratio = statistics.median(
            ours[key] / theirs[key] for ours, theirs in zip(records["hbm_jax"], records["numpyro"], strict=True)
        )
        yield f"{title:<42} {' '.join(cells)} ratio {ratio:.3g}"
    for contestant in CONTESTANTS:
        usable = sum(record["usable"] for record in records[contestant])
        means = ", ".join(
            f"{key} {statistics.mean(r['means'][key] for r in records[contestant]):.3f}" for key in ("Om0", "w0")
        )
        yield f"{contestant}: usable {usable} of {len(records[contestant])}; posterior means {means}"
    ours = records["hbm_jax"]
    yield ""
    for claim, met in {
        "at least 1000 effective draws a second (median)": statistics.median(r["ess_per_s"] for r in ours) >= 1000,
        "good verdict within 20 s of starting the process (every run)": all(
            r["usable"] and r["total_s"] <= 20 for r in ours
        ),
        "under 1.5 GiB (every run)": all(r["memory_gib"] < 1.5 for r in ours),
    }.items():
        yield f"{'PASS' if met else 'MISS'}  {claim}"


if __name__ == "__main__":
    main()
