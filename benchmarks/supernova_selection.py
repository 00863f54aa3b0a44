"""Claim: 68 % intervals of supernovae cut at a magnitude limit cover if the limit is in the model, else they do not.

Of 1000 supernovae, for Om0, alpha and beta. Every replicate is drawn by rejection at the limit, and fitted with and
without the selection (`hbm_jax.fit_each`). The limit and its width are inferred. The number of intervals that contain
the true value is compared with the binomial distribution of 68.27 %.

Two surveys: one with a limit that matters in the upper half of its redshifts, and one with a limit that matters at all.

    python benchmarks/supernova_selection.py [--replicates 64] [--output benchmarks/results/supernova_selection.txt]
    python benchmarks/supernova_selection.py --cut everywhere [--output ...results/supernova_selection_everywhere.txt]
"""

import argparse
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import stats

TRUTH = {
    "Om0": 0.3, "M0": -19.1, "alpha": 0.14, "beta": 3.1, "delta_M": -0.07, "sigma_int": 0.12, "x1_mean": 0.0,
    "x1_std": 1.0, "c_mean": 0.0, "c_std": 0.09,
}  # fmt: skip
# Redshifts, limit and width: of a survey with a limit in its far half, and of one whose every supernova feels it.
CUTS = {"far": (0.0, 0.7, 23.0, 0.25), "everywhere": (0.15, 0.45, 21.7, 0.15)}
NAMES = ("Om0", "alpha", "beta")


def models(cut="far"):
    """Return the models with and without the limit."""
    from hbm_jax.models import Supernova

    priors = {"m_lim": f"Normal({CUTS[cut][2]}, 1)"}
    return {"selection": Supernova(selection="common", priors=priors), "naive": Supernova()}


def samples(num_replicates, num_supernovae=1000, cut="far"):
    """Simulate samples on rows of JLA's design, at redshifts where some supernovae are still detected."""
    import jax

    from hbm_jax.data import load_jla

    jla = load_jla()
    low, high, limit, width = CUTS[cut]
    rows = np.flatnonzero((low < jla.z_cmb) & (jla.z_cmb < high))
    design = jla.subset(np.random.default_rng(0).choice(rows, num_supernovae))
    model, truth = models(cut)["selection"], TRUTH | {"m_lim": limit, "m_lim_width": width}
    return [model.simulate(jax.random.key(seed), design, truth)[0] for seed in range(num_replicates)]


def coverage(num_replicates, num_supernovae=1000, cut="far"):
    """Fit each model; return the fits, and the number of 68 % intervals that contain the truth by parameter."""
    import hbm_jax as hbm

    data = samples(num_replicates, num_supernovae, cut)
    fits, covered = {}, {}
    print(f"{num_replicates} samples are simulated", flush=True)
    for name, model in models(cut).items():
        fits[name] = hbm.fit_each(
            model, data, seed=1, num_chains=2, num_warmup=250, num_samples=300, until=80, progress=False
        )
        table = fits[name].summary(list(NAMES))
        print(f"fits of the model {name}: {fits[name]} {fits[name].cost}", flush=True)
        for parameter in NAMES:
            rows = table.xs(parameter, level="parameter")
            inside = (rows["lower_68"] < TRUTH[parameter]) & (TRUTH[parameter] < rows["upper_68"])
            covered[name, parameter] = int(inside.sum())
    return fits, covered


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=64)
    parser.add_argument("--supernovae", type=int, default=1000)
    parser.add_argument("--cut", choices=tuple(CUTS), default="far", help="which survey")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--figure", type=Path, help="draw the intervals of every replicate")
    options = parser.parse_args()
    import hbm_jax as hbm

    hbm.use_every_core()
    began, cpu = time.perf_counter(), time.process_time()
    fits, covered = coverage(options.replicates, options.supernovae, options.cut)
    z_low, z_high, limit, width = CUTS[options.cut]
    num = options.replicates
    low, high = (int(v) for v in stats.binom.interval(0.99, num, 0.6827))
    lines = [
        f"{options.supernovae} supernovae of JLA's design, {z_low:g} < z < {z_high:g}, detected at m_b < {limit:g} "
        f"(width {width:g} mag), {num} replicates",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}, "
        f"numpyro {version('numpyro')}",
        f"simulated and fitted in {time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)",
        "",
        f"68 % intervals that hold the truth (99 % of the time {low} to {high} if they are right), mean of the medians",
    ]
    for name, found in fits.items():
        table = found.summary(list(NAMES))
        for parameter in NAMES:
            rows = table.xs(parameter, level="parameter")
            lines.append(
                f"{name:10s} {parameter:6s} {covered[name, parameter]:3d} of {num}   "
                f"{rows['median'].mean():.4f} +- {rows['median'].std() / np.sqrt(num):.4f}   truth {TRUTH[parameter]}"
            )
        smallest = table["ess_bulk"].groupby(level="object").min()
        lines.append(
            f"{name:10s} {int(found.usable.sum())} of {num} posteriors usable; smallest effective sample size of "
            f"the three: {smallest.median():.0f} in the median replicate, {smallest.min():.0f} in the worst"
        )
    right = all(low <= covered["selection", parameter] <= high for parameter in NAMES)
    wrong = [parameter for parameter in NAMES if covered["naive", parameter] < low]
    lines += ["", f"{'PASS' if right else 'MISS'}  intervals with the selection cover"]
    lines += [
        f"{'PASS' if len(wrong) == 3 else 'MISS'}  naive intervals do not: {', '.join(wrong) or 'none'} of the three"
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    if options.figure:
        hbm.plotting.replicates(fits, {name: TRUTH[name] for name in NAMES}).savefig(options.figure, dpi=110)


if __name__ == "__main__":
    main()
