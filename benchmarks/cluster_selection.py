"""Slope of the X-ray luminosity and mass of clusters selected by their Sunyaev-Zel'dovich effect, with the selection.

Table of Bulbul et al. 2019, ApJ 871, 50: soft-band luminosity, core included, divided by E(z)^2, against M500. The
sample is cut at a detection significance xi, and M500 follows from xi and redshift, so that the cut is one in measured
mass, which falls with redshift: the limit of each cluster is its mass times (xi_limit / xi)^b, with b fitted to the
table. Their slope is 1.93, from 59 clusters at z > 0.2, with the distribution of the mass given xi under the mass
function.

Fits of each sample: without the selection; with it and a normal or an exponential population of log mass (a power law
of masses far below the limit); and by regression on the masses of the table, which is right if these are means of the
true mass given xi, about which the true mass scatters. The last two also by largest likelihood without hbm_jax, for the
luminosities with the cores of the clusters and without. Simulations tell what a correlation of the scatters of
luminosity and xi would change.

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
CORES = {"core included": "Lxcin", "core excised": "Lxcex"}
LOWEST_MASS = -3.0  # log of mass over pivot, far below the limits of all clusters


def columns(path, low_redshift=0.0, luminosity="Lxcin"):
    """Return the columns of clusters above a redshift: logarithms of mass and luminosity, errors, xi and redshift."""
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units that FITS does not know
        table = Table.read(path)
    z, xi, mass, value = (np.array(table[name], float) for name in ("redshift", "xi", "m500", luminosity))
    e = np.sqrt(0.3 * (1.0 + z) ** 3 + 0.7)
    clusters = {
        "x": np.log(mass / PIVOT),
        "sigma_x": np.array(table["m500_err"], float) / mass,
        "y": np.log(value / 1e44 / e**2),
        "sigma_y": np.array(table[f"{luminosity}_err"], float) / value,
        "redshift": z,
        "log_xi": np.log(xi),
        "log_e": np.log(e),
    }
    return {name: values[z > low_redshift] for name, values in clusters.items()}


def cut(clusters, limit):
    """Return the columns of clusters above a limit in xi, with the mass at the limit and the redshift of each."""
    design = np.stack([np.ones_like(clusters["x"]), clusters["log_xi"], clusters["log_e"]], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, clusters["x"], rcond=None)
    scatter = np.std(clusters["x"] - design @ coefficients)
    lowest = clusters["x"] + coefficients[1] * (np.log(limit) - clusters["log_xi"])
    kept = clusters["log_xi"] > np.log(limit)
    return {name: values[kept] for name, values in (clusters | {"cut_x": lowest}).items()}, coefficients[1], scatter


def described(clusters, low_redshift, core):
    """Return a description of a sample."""
    above = f", z > {low_redshift:g}" if low_redshift else ""
    return f"{len(clusters['x'])} clusters, xi > {LOWEST:g}{above}, {core}"


def fits(path):
    """Yield a description of the sample and of the fit, its columns, and the options of the model."""
    limited, lowest = {"selection": "x > cut_x"}, {"x_min": LOWEST_MASS}
    exponential = limited | {"x_population": "exponential", "priors": lowest}
    for low_redshift in (0.0, 0.2):
        for core, luminosity in CORES.items():
            clusters, _, _ = cut(columns(path, low_redshift, luminosity), LOWEST)
            sample = described(clusters, low_redshift, core)
            if core == "core included":
                yield sample, "without the selection", clusters, {}
                yield sample, "with the selection, normal masses", clusters, limited
            yield sample, "with the selection, exponential masses", clusters, exponential
            if low_redshift and core == "core included":
                yield sample, "the same with (1 + z)^g", clusters, exponential | {"evolution": "ln 1+z"}
            yield sample, "regression on the masses of the table", clusters | {"sigma_x": 0.0 * clusters["x"]}, {}


def largest(deviance, start, step=1e-3):
    """Return the first parameter at the smallest deviance, and its error from second differences there."""
    from scipy.optimize import minimize

    best = minimize(deviance, start).x
    steps = step * np.eye(len(best))
    curvature = [
        [sum(i * j * deviance(best + i * a + j * b) for i in (-1, 1) for j in (-1, 1)) / (4 * step**2) for b in steps]
        for a in steps
    ]
    return best[0], float(np.sqrt(np.linalg.inv(curvature)[0, 0]))


def slope_of_means(clusters):
    """Return the slope of largest likelihood of luminosities at true masses that scatter about those of the table."""

    def deviance(p):
        variance = np.exp(2.0 * p[2]) + clusters["sigma_y"] ** 2 + (p[0] * clusters["sigma_x"]) ** 2
        residual = clusters["y"] - p[0] * clusters["x"] - p[1]
        return 0.5 * np.sum(residual**2 / variance + np.log(variance))

    return largest(deviance, [2.0, 1.0, -1.0])


def slope_of_exponential(clusters, evolves=False):
    """Return the slope of largest likelihood with the selection and exponential masses, from the formulas in SciPy."""
    from scipy.special import log_ndtr

    x, error = clusters["x"] - LOWEST_MASS, clusters["sigma_x"]
    limit = (clusters["cut_x"] - LOWEST_MASS) / error

    def deviance(p):
        slope, intercept, scale = p[0], p[1], np.exp(p[3])
        variance = np.exp(2.0 * p[2]) + clusters["sigma_y"] ** 2
        y = (
            clusters["y"]
            - intercept
            - slope * LOWEST_MASS
            - (p[4] * np.log1p(clusters["redshift"]) if evolves else 0.0)
        )
        precision, linear = 1.0 / error**2 + slope**2 / variance, x / error**2 + slope * y / variance - 1.0 / scale
        log_density = 0.5 * (linear**2 / precision - x**2 / error**2 - y**2 / variance - np.log(variance * precision))
        log_density = log_density + log_ndtr(linear / np.sqrt(precision)) - p[3]
        k = error / scale
        log_detected_fraction = np.logaddexp(log_ndtr(-limit), k * (0.5 * k - limit) + log_ndtr(limit - k))
        return -np.sum(log_density - log_detected_fraction)

    return largest(deviance, [2.0, 1.5, -1.0, -0.7, *([0.0] if evolves else [])])


def correlated_slopes(correlations, slope=1.93, num=1_000_000):
    """Return slopes of simulated luminosities and means of mass given xi, whose scatters have these correlations.

    Masses are a power law with an exponential scale of 0.25 in the logarithm, xi has the scatter of Vanderlinde et al.
    2010, ApJ 722, 1180 (20 % in zeta ~ mass^1.6, and unit noise), luminosities scatter by 0.3.
    """
    rng = np.random.default_rng(1)
    x = rng.exponential(0.25, num)
    scatter, noise, other = rng.normal(size=(3, num))
    zeta = 2.0 * np.exp(1.6 * x + 0.2 * scatter)
    log_xi = np.log(np.maximum(np.sqrt(zeta**2 + 3.0) + noise, 1.0))
    kept = log_xi > np.log(LOWEST)
    edges = np.quantile(log_xi[kept], np.linspace(0.0, 1.0, 41))
    number = np.clip(np.searchsorted(edges, log_xi[kept]) - 1, 0, 39)
    mean = np.bincount(number, x[kept]) / np.bincount(number)
    for r in correlations:
        y = slope * x + 0.3 * (r * scatter + np.sqrt(1.0 - r**2) * other)
        yield r, np.polyfit(mean[number], y[kept], 1)[0]


def likelihoods(path):
    """Yield lines with slopes of largest likelihood, without hbm_jax, and what the choices of a fit change."""
    slopes = {}
    for low_redshift in (0.0, 0.2):
        for core, luminosity in CORES.items():
            clusters, _, _ = cut(columns(path, low_redshift, luminosity), LOWEST)
            yield from ("", f"{described(clusters, low_redshift, core)}: largest likelihood; published {PUBLISHED}")
            exact = clusters | {"sigma_x": 0.0 * clusters["x"]}
            for name, (slope, error) in {
                "with the selection, exponential masses": slope_of_exponential(clusters),
                "the same with (1 + z)^g": slope_of_exponential(clusters, evolves=True),
                "regression on the masses of the table": slope_of_means(clusters),
                "the same without scatter of true masses": slope_of_means(exact),
            }.items():
                slopes[low_redshift, core, name] = slope
                yield f"    {name:40s} slope {slope:.3f} +- {error:.3f}"
    yield from changes(slopes)


def changes(slopes):
    """Yield lines with the smallest and the largest change of the slope by each choice of a fit."""
    samples = list(dict.fromkeys((low, core) for low, core, _ in slopes))
    choices = {
        "the cores of the clusters excised": [
            slopes[low, "core excised", name] - slopes[low, "core included", name]
            for low, core, name in slopes
            if core == "core excised"
        ],
    }
    for label, to, of in (
        ("a free power of 1 + z", "the same with (1 + z)^g", "with the selection, exponential masses"),
        (
            "true masses scatter about those of the table",
            "regression on the masses of the table",
            "the same without scatter of true masses",
        ),
    ):
        choices[label] = [slopes[(*sample, to)] - slopes[(*sample, of)] for sample in samples]
    best = slopes[0.0, "core included", "with the selection, exponential masses"]
    yield from ("", f"what these choices change; {PUBLISHED} is {PUBLISHED - best:+.2f} from the slope of all clusters")
    for label, values in choices.items():
        yield f"    {label:46s} {min(values):+.2f} to {max(values):+.2f}"
    yield f"    {'masses as a power of xi that is 5 % larger':46s} {best / 1.05 - best:+.2f}"
    yield "None of them is singled out by these data."


def posteriors(path, word):
    """Yield lines with posterior slopes of the fits whose names contain a word."""
    import hbm_jax as hbm
    from hbm_jax.data import PointsInGroups
    from hbm_jax.models import Relation

    hbm.use_every_core()
    last = ""
    for sample, name, clusters, choices in fits(path):
        if word not in name:
            continue
        data = PointsInGroups.from_columns(
            {key: value for key, value in clusters.items() if not key.startswith("log_")}
        )
        fit = hbm.sample(Relation(pooling="complete", pivot=0.0, **choices), data, seed=1, progress=False)
        row = fit.summary().loc["alpha"]
        if sample != last:
            yield from ("", f"{sample}: posterior; published {PUBLISHED}")
        usable = "" if fit.verdict.usable else "   not usable"
        check = f"model check p = {fit.model_check.p_value:.3f}"
        yield f"    {name:40s} slope {row['mean']:.3f} +- {row['sd']:.3f}   {check}{usable}"
        last = sample
    yield from (
        "",
        "The model check rejects fits where errors of log mass fall with mass, as in this table, because the",
    )
    yield "model takes them to be independent of the mass."


def report(path, word):
    """Yield the lines of the result."""
    clusters, exponent, scatter = cut(columns(path), LOWEST)
    yield (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores (shared), "
        f"Python {platform.python_version()}, hbm_jax {version('hbm_jax')}, jax {version('jax')}"
    )
    yield f"masses of the table: proportional to xi^{exponent:.3f} and a power of E(z) to {100 * scatter:.0f} %; slopes"
    yield "are inversely proportional to this exponent, which is a result of the survey's calibration of masses"
    yield f"errors of log mass: {clusters['sigma_x'].min():.2f} to {clusters['sigma_x'].max():.2f}"
    yield from likelihoods(path)
    yield from ("", f"simulated luminosities of slope {PUBLISHED}: regression on the mean mass given xi, by the")
    yield "correlation of the scatters of luminosity and zeta"
    for r, slope in correlated_slopes((0.0, 0.3, 0.6)):
        yield f"    {r:.1f}   slope {slope:.3f}"
    if word != "none":
        yield from posteriors(path, word)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="bulbul2019_clusters.fits")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--fits", default="", metavar="WORD", help="sample fits with this word in their name, or none")
    options = parser.parse_args()
    began, cpu = time.perf_counter(), time.process_time()
    lines = []
    for line in report(options.table, options.fits):
        lines.append(line)
        print(line, flush=True)
    lines += ["", f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"]
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
