"""Claim: 512 calibration replicates of a flat-LCDM model of 60 supernovae take less than 5 minutes on two cores.

Contestants in one process: `hbm_jax.calibrate`, and a loop that calls `hbm_jax.sample` for each replicate as one would
without it, timed on three of them.

    python benchmarks/calibration.py [--replicates 512] [--output benchmarks/results/calibration.txt]
"""

import argparse
import datetime
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=512)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import jax

    import hbm_jax as hbm

    hbm.use_every_core()
    sne = hbm.data.load_jla().subset(np.linspace(0, 739, 60).astype(int))
    model = hbm.models.Supernova(cosmology="lcdm")
    began = time.perf_counter()
    result = hbm.calibrate(model, sne, num_replicates=options.replicates, seed=1)
    seconds = time.perf_counter() - began
    alone = []
    for seed in range(3):
        simulated, _ = model.simulate(jax.random.key(seed), sne)
        began = time.perf_counter()
        hbm.sample(model, simulated, seed=seed, num_samples=100, num_warmup=200, progress=False)
        alone.append(time.perf_counter() - began)
    each = seconds / options.replicates
    text = "\n".join(
        [
            f"flat LCDM, 60 supernovae of JLA's design, marginal latents, {options.replicates} replicates, float64",
            f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}, "
            f"numpyro {version('numpyro')}",
            "",
            f"calibrate, compilation included   {seconds:7.0f} s   {1e3 * each:8.0f} ms a replicate",
            f"a loop over sample                          {1e3 * statistics.median(alone):8.0f} ms a replicate "
            f"(median of 3)   ratio {statistics.median(alone) / each:.0f}",
            "",
            str(result),
            result.table.round(4).to_string(),
            "",
            f"{'PASS' if seconds < 300 else 'MISS'}  within 5 minutes",
        ]
    )
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
