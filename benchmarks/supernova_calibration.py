"""Claim: the full supernova model is calibrated: mass step with the masses' errors, outliers and selection at once.

Simulation-based calibration (`hbm_jax.calibrate`): true values from the priors, a sample drawn by rejection at the
limit, a fit; the ranks of the truth are uniform if density, simulator and sampler are consistent.

    python benchmarks/supernova_calibration.py [--replicates 64] [--output benchmarks/results/calibration_supernova.txt]
"""

import argparse
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

# Narrow enough that every simulated supernova can be detected, and that a step away from the truth would be seen.
PRIORS = {
    "Om0": "Uniform(0.1, 0.6)", "M0": "Normal(-19.1, 0.1)", "alpha": "Normal(0.14, 0.05)", "beta": "Normal(3.1, 0.5)",
    "delta_M": "Normal(-0.1, 0.1)", "sigma_int": "LogNormal(-2.2, 0.3)", "x1_mean": "Normal(0, 0.5)",
    "x1_std": "LogNormal(0, 0.3)", "c_mean": "Normal(0, 0.05)", "c_std": "LogNormal(-2.5, 0.3)",
    "outlier_fraction": "Beta(2, 18)", "outlier_scatter": "LogNormal(0, 0.3)", "m_lim": "Normal(23, 0.3)",
    "m_lim_width": "LogNormal(-1.2, 0.4)",
}  # fmt: skip


def model():
    """Return the full model."""
    from hbm_jax.models import Supernova

    return Supernova(mass_error=True, outliers=True, selection="common", priors=PRIORS)


def design(num_supernovae=60):
    """Return rows of JLA up to z = 0.7, their errors and host masses."""
    from hbm_jax.data import load_jla

    jla = load_jla()
    rows = np.flatnonzero(jla.z_cmb < 0.7)
    return jla.subset(rows[np.linspace(0, len(rows) - 1, num_supernovae).astype(int)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=64)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import hbm_jax as hbm

    hbm.use_every_core()
    began, cpu = time.perf_counter(), time.process_time()
    result = hbm.calibrate(model(), design(), num_replicates=options.replicates, seed=3, progress=False)
    num = options.replicates
    lines = [
        f"mass step with errors, outliers, selection: 60 supernovae, flat LCDM, {num} replicates, float64",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}, "
        f"numpyro {version('numpyro')}",
        f"{time.perf_counter() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU",
        "",
        str(result),
        result.table.round(4).to_string(),
        "",
        f"{'PASS' if result.calibrated else 'MISS'}  calibrated",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
