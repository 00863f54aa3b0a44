"""Claim: SNLS3 with its six-block covariance: the full posterior in 3 minutes, the density that of a plain Gaussian.

Conley et al. 2011, ApJS 192, 1: 472 supernovae, flat wCDM, free alpha, beta, M0, delta_M, Om0, w0. The plain Gaussian
is NumPy's, with hbm_jax's exact distances, at points of the whole posterior. Measured are the largest difference of the
log likelihood, a gradient with and without the table of the likelihood, and the time from the start of a process to a
verdict.

    python benchmarks/snls3.py [--data ../shared/data/supernovae] [--output benchmarks/results/snls3.txt]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

NAMES = ("Om0", "w0", "M0", "alpha", "beta", "delta_M")


def sample_in(folder):
    """Read the published sample."""
    import hbm_jax as hbm

    covariance = str(folder / "snls3_covmats.npz")
    return hbm.data.read_correlated_supernovae(folder / "snls3_lcparams.txt", covariance=covariance)


def model_of(**options):
    import hbm_jax as hbm

    return hbm.models.CorrelatedSupernova(cosmology="wcdm", **options)


def plain(data, p):
    """Return the log likelihood, written out in NumPy."""
    from hbm_jax.cosmology import Cosmology, distmod

    sne, a, b = data.sne, p["alpha"], p["beta"]
    v0, va, vb, v0a, v0b, vab = data.blocks
    covariance = v0 + a * a * va + b * b * vb + 2 * a * v0a - 2 * b * v0b - 2 * a * b * vab
    own = np.array([1.0, a, -b])
    covariance[np.diag_indices(len(sne))] += (
        np.einsum("i,nij,j->n", own, sne.covariance, own)
        + sne.variance_coherent + sne.variance_lensing + sne.variance_velocity
    )  # fmt: skip
    mu = np.asarray(distmod(sne.z_cmb, Cosmology.flat(H0=70.0, Om0=p["Om0"], w0=p["w0"])))
    mu = mu + 5 * np.log10((1 + sne.z_hel) / (1 + sne.z_cmb))
    residual = sne.m_b + a * sne.x1 - b * sne.c - p["delta_M"] * (sne.log10_mass > 10) - p["M0"] - mu
    tril = np.linalg.cholesky(covariance)
    white = np.linalg.solve(tril, residual)
    return -0.5 * (white @ white + 2 * np.log(np.diag(tril)).sum() + len(sne) * np.log(2 * np.pi))


def seconds_each(function, points, least=3.0):
    """Return the median time of a call after the first, over some seconds."""
    import jax

    jax.block_until_ready(function(points[0]))
    taken, began = [], time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - began < least:
        start = time.perf_counter()
        jax.block_until_ready(function(points[len(taken) % len(points)]))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def gradients(folder):
    """Return the times of a gradient with and without the table, and the difference of their log densities."""
    import jax

    from hbm_jax.inference.sampler.target import build_target

    record = {}
    with jax.enable_x64(True):
        data = sample_in(folder)
        functions = {}
        for name, tabulate in (("table", True), ("factorised", False)):
            began = time.perf_counter()
            target = build_target(model_of(tabulate=tabulate), (data,), jax.random.key(0))
            functions[name] = jax.jit(jax.value_and_grad(target.potential))
            jax.block_until_ready(functions[name](target.start))
            record[f"{name}_set_up_s"] = time.perf_counter() - began
            points = [target.start + 0.02 * np.sin(np.arange(len(target.start)) + k) for k in range(5)]
            record[f"{name}_s"] = seconds_each(functions[name], points)
    return record


def posterior(folder):
    """Return the time from the start of a process to a verdict, and differences of the log likelihood at draws."""
    import jax
    from numpyro.infer.util import log_density

    import hbm_jax as hbm

    hbm.use_every_core()
    data = sample_in(folder)
    began = time.perf_counter()
    fit = hbm.sample(model_of(), data, seed=1, progress=False)
    record = {"sample_s": time.perf_counter() - began, "usable": fit.verdict.usable, "said": str(fit.verdict)}
    draws = {name: fit.posterior[name].to_numpy().ravel() for name in NAMES}
    record["posterior"] = {name: [float(x.mean()), float(x.std())] for name, x in draws.items()}
    apart = []
    with jax.enable_x64(True):
        for row in np.linspace(0, len(draws["Om0"]) - 1, 20).astype(int):
            p = {name: float(x[row]) for name, x in draws.items()}
            each = [log_density(model_of(tabulate=t, priors=p), (data,), {}, {})[0] for t in (True, False)]
            apart.append([abs(float(value) - plain(data, p)) for value in each])
    record["table_apart"], record["factorised_apart"] = np.max(apart, axis=0).tolist()
    record["points"] = len(apart)
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/supernovae"), help="folder of the two files")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    parser.add_argument("--one", choices=("gradients", "posterior"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"gradients": gradients, "posterior": posterior}[options.one](options.data)))
        return
    records = {}
    for what in ("gradients", "posterior"):
        began = time.perf_counter()
        command = [sys.executable, __file__, "--one", what, "--data", str(options.data)]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        records[what] = json.loads(output.stdout.splitlines()[-1]) | {"process_s": time.perf_counter() - began}
    g, v = records["gradients"], records["posterior"]
    apart = max(v["table_apart"], v["factorised_apart"])
    lines = [
        "SNLS3, 472 supernovae with six covariance blocks, flat wCDM, float64",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"hbm_jax {version('hbm_jax')}, jax {version('jax')}, numpyro {version('numpyro')}; "
        f"load {os.getloadavg()[0]:.1f} at the end",
        "",
        f"log likelihood beside NumPy's at {v['points']} draws: apart by {v['table_apart']:.1e} at most by the table, "
        f"{v['factorised_apart']:.1e} by the factorisation",
    ]
    for name, title in {"table": "table in alpha and beta", "factorised": "factorised at every step"}.items():
        lines.append(
            f"{title:<26} gradient {1e3 * g[f'{name}_s']:8.3f} ms; set up and compiled in {g[f'{name}_set_up_s']:.1f} s"
        )
    lines += [
        f"ratio {g['factorised_s'] / g['table_s']:.0f}",
        "",
        f"process start to the end {v['process_s']:.1f} s, of which sampling with the table {v['sample_s']:.1f} s. "
        f"{v['said']}",
        ", ".join(f"{name} {mean:.3f} +- {std:.3f}" for name, (mean, std) in v["posterior"].items()),
        "",
        f"{'PASS' if v['usable'] and v['process_s'] < 180 else 'MISS'}  full posterior within 3 minutes of starting",
        f"{'PASS' if apart < 1e-8 else 'MISS'}  equal to a plain dense Gaussian to 1e-8",
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
