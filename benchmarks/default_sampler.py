"""NUTS and HMC, between which `hbm_jax.sample` chooses by default, on posteriors more and less close to normal.

    python benchmarks/default_sampler.py [--systems relation ...] [--output FILE]

Printed for each: the number of parameters, the departure from normal that decides (`Start.departure`; NUTS is used
above `MAX_DEPARTURE`), leapfrog steps per draw, and effective sample sizes per 1000 gradients of 4 x 1000 draws: the
smallest bulk or tail one of any parameter, and the smallest of the distances from the medians ("folded"), on which
R-hat depends.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import gallery
import numpy as np
from arviz_stats.base import array_stats
from cold_start import SIZES, sample_of

import hbm_jax as hbm
from hbm_jax.inference.run import Run

sys.path.insert(0, str(Path(__file__).parent / "suite"))
FROM_GALLERY = (
    "eight schools", "radon, varying intercept", "radon, varying slope", "rat tumour", "baseball", "pumps", "surgical",
    "rats", "dugongs", "hogg line, outliers", "hogg line, Student t", "Poisson, groups", "negative binomial, groups",
    "rolling regression", "baseball, logistic",
)  # fmt: skip
SAMPLERS = (hbm.NUTS(), hbm.HMC(trajectory_length=1.5))
NUM_DRAWS, AXES = 1000, {"chain_axis": 0, "draw_axis": 1}


def case_of(system):
    """Return a model and its data."""
    if system in SIZES:
        return import_module(f"systems.{system}").ours(sample_of(system, SIZES[system][0]), "marginal")
    return gallery.GALLERY[system]()


def measure(system):
    """Return a row for each sampler."""
    case, departures, rows = case_of(system), [], []
    choose_start = Run._choose_start

    def recorded(self, *args):
        start = choose_start(self, *args)
        departures.append(start.departure)
        return start

    Run._choose_start = recorded
    try:
        for sampler in SAMPLERS:
            fit = hbm.sample(*case, seed=1, num_samples=NUM_DRAWS, num_warmup=400, sampler=sampler, progress=False)
            draws = fit.tree["unconstrained_posterior"]["position"].transpose("chain", "draw", "parameter").to_numpy()
            steps = fit.tree["sample_stats"]["n_steps"].to_numpy()
            tail = array_stats.ess(draws, method="tail", prob=(0.05, 0.95), **AXES)
            smallest = min(array_stats.ess(draws, **AXES).min(), tail.min())
            folded = array_stats.ess(np.abs(draws - np.median(draws, axis=(0, 1))), **AXES).min()
            per_gradients = 1000.0 / steps.sum()
            rows.append(
                f"{system:26s}{draws.shape[-1]:4d}{departures[-1]:10.2f}  {sampler.name:6s}{steps.mean():6.1f}"
                f"{per_gradients * smallest:9.1f}{per_gradients * folded:9.1f}"
            )
    finally:
        Run._choose_start = choose_start
    return rows


def main():
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=[*SIZES, *FROM_GALLERY])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    hbm.use_every_core()
    lines = [f"{'':26s} dim departure  sampler steps bulk,tail   folded"]
    for system in options.systems:
        lines += measure(system)
        print("\n".join(lines[-2:]), flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
