"""Slope of the X-ray luminosity and mass of clusters selected by their Sunyaev-Zel'dovich effect, with the selection.

Table of Bulbul et al. 2019, ApJ 871, 50: soft-band luminosity, core included, divided by E(z)^2, against M500. The
sample is cut at a detection significance xi, and M500 follows from xi and redshift, so that the cut is one in measured
mass, which falls with redshift: the limit of each cluster is its mass times (xi_limit / xi)^b, with b fitted to the
table. Their slope is 1.93, from 59 clusters at z > 0.2, with the distribution of the mass given xi under the mass
function.

Fits of each sample: without the selection; with it; and by regression on the masses of the table, which is right if
these are means of the true mass given xi, about which the true mass scatters. The last two also with a free power of
1 + z beside E(z)^2, as in the published relation.

    python benchmarks/cluster_selection.py TABLE [--output benchmarks/results/cluster_selection.txt]
"""

import argparse
import datetime
import os
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

PIVOT = 6.35e14  # solar masses
PUBLISHED = 1.93
LOWEST = 4.5  # xi of the survey's catalogue


def columns(path, low_redshift=0.0):
    """Return the columns of clusters above a redshift: logarithms of mass and luminosity, errors, xi and redshift."""
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units that FITS does not know
        table = Table.read(path)
    z, xi, mass, luminosity = (np.array(table[name], float) for name in ("redshift", "xi", "m500", "Lxcin"))
    e = np.sqrt(0.3 * (1.0 + z) ** 3 + 0.7)
    found = {
        "x": np.log(mass / PIVOT),
        "sigma_x": np.array(table["m500_err"], float) / mass,
        "y": np.log(luminosity / 1e44 / e**2),
        "sigma_y": np.array(table["Lxcin_err"], float) / luminosity,
        "log_xi": np.log(xi),
        "log_e": np.log(e),
        "log_1z": np.log1p(z),
    }
    return {name: values[z > low_redshift] for name, values in found.items()}


def cut(found, limit):
    """Return the columns of clusters above a limit in xi, with the mass at the limit and the redshift of each."""
    design = np.stack([np.ones_like(found["x"]), found["log_xi"], found["log_e"]], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, found["x"], rcond=None)
    scatter = np.std(found["x"] - design @ coefficients)
    lowest = found["x"] + coefficients[1] * (np.log(limit) - found["log_xi"])
    kept = found["log_xi"] > np.log(limit)
    return {name: values[kept] for name, values in (found | {"cut_x": lowest}).items()}, coefficients[1], scatter


def fits(path):
    """Yield a description of the sample and of the fit, its columns, its selection and its predictors."""
    for low_redshift in (0.0, 0.2):
        found, _, _ = cut(columns(path, low_redshift), LOWEST)
        sample = f"{len(found['x'])} clusters, xi > {LOWEST:g}" + (f", z > {low_redshift:g}" if low_redshift else "")
        exact = found | {"sigma_x": 0.0 * found["x"]}
        yield sample, "without the selection", found, "none", ("x",)
        yield sample, "with the selection", found, "x > cut_x", ("x",)
        yield sample, "with the selection, (1 + z)^g", found, "x > cut_x", ("x", "log_1z")
        yield sample, "regression on the masses of the table", exact, "none", ("x",)
        yield sample, "regression, (1 + z)^g", exact, "none", ("x", "log_1z")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="bulbul2019_clusters.fits")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import hbm_jax as hbm
    from hbm_jax.data import PointsInGroups
    from hbm_jax.models import Relation

    hbm.use_every_core()
    began, cpu, unused = time.perf_counter(), time.process_time(), ("log_xi", "log_e", "log_1z")
    _, exponent, scatter = cut(columns(options.table), LOWEST)
    lines = [
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}",
        f"masses of the table: proportional to xi^{exponent:.3f} and a power of E(z) to {100 * scatter:.0f} %",
    ]
    last = ""
    for sample, name, found, selection, predictors in fits(options.table):
        kept = {key: value for key, value in found.items() if key in predictors or key not in unused}
        data = PointsInGroups.from_columns(kept, predictors=predictors)
        model = Relation(pooling="complete", pivot=0.0, selection=selection)
        fit = hbm.sample(model, data, seed=1, progress=False)
        row = fit.summary().loc["alpha" if len(predictors) == 1 else "alpha[0]"]
        lines += ["", f"{sample}; published slope {PUBLISHED}"] if sample != last else []
        usable = "" if fit.verdict.usable else f"   {fit.verdict}"
        lines.append(f"    {name:40s} slope {row['mean']:.3f} +- {row['sd']:.3f}{usable}")
        print("\n".join(lines[-3:] if sample != last else lines[-1:]), flush=True)
        last = sample
    lines += ["", f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
