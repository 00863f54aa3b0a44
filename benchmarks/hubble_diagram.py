"""Claim: with a dense covariance of 1700 objects, a gradient is 100 times as fast as by a Cholesky factorisation.

Flat wCDM with a free intrinsic scatter and the offset integrated out, on a simulated sample of 1700 objects with a
dense 1700 x 1700 covariance (calibration systematics of ten surveys and peculiar velocities, as published samples
have). The other contestant is the NumPyro program that is straightforward to write: distances by `RedshiftMatrix`, the
covariance with the scatter on its diagonal and the offset's variance everywhere factorised at every step, the same
priors and the same coordinates. That both are the same posterior is tested first, at 20 points. Also measured: from the
start of a process to a usable verdict, within 60 s on two cores.

    python benchmarks/hubble_diagram.py [--output benchmarks/results/hubble_diagram.txt]
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

NUM = 1700
TRUTH = {"Om0": 0.3, "w0": -0.9, "sigma_int": 0.08, "M0": -19.3}
PRIORS = {"M0": "Normal(-19.3, 10)", "sigma_int": "HalfNormal(0.3)"}


def sample_of(seed=1):
    """Simulate a sample of NUM magnitudes with a dense covariance."""
    import jax

    import hbm_jax as hbm

    rng = np.random.default_rng(seed)
    z = np.sort(np.exp(rng.uniform(np.log(0.01), np.log(1.6), NUM)))
    survey = rng.integers(0, 10, NUM)
    modes = np.concatenate(
        [
            0.02 * (survey[:, None] == np.arange(10)) * rng.uniform(0.5, 1.5, 10),
            0.02 * np.cos(np.outer(np.log(z / 0.01), np.arange(1, 9)) + rng.uniform(0, 6, 8)),
        ],
        axis=1,
    )
    smooth = 0.01**2 * np.exp(-0.5 * (np.subtract.outer(np.log(z), np.log(z)) / 0.3) ** 2)
    statistical = rng.uniform(0.08, 0.2, NUM) ** 2 + (5 * 250 / (np.log(10) * 299792.458 * z)) ** 2
    covariance = modes @ modes.T + smooth + np.diag(statistical)
    design = hbm.data.DistanceModuli.from_columns(
        {
            "z_cmb": z, "z_hel": z * (1 + rng.normal(0, 1e-3, NUM)), "m_b_corr": np.zeros(NUM),
            "covariance": covariance, "survey": [f"survey {i}" for i in survey],
        }
    )  # fmt: skip
    data, _ = model_of().simulate(jax.random.key(seed), design, TRUTH)
    return data


def model_of():
    import hbm_jax as hbm

    return hbm.models.HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True, priors=PRIORS)


def plain_program(data):
    """Return the same posterior as a NumPyro program with a Cholesky factorisation a step."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    from hbm_jax.cosmology import RedshiftMatrix
    from hbm_jax.models import expansion
    from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy

    priors = model_of().all_priors
    distances = RedshiftMatrix(data.z_cmb, data.z_hel)
    covariance, eye, ones = jnp.asarray(data.covariance), jnp.eye(NUM), jnp.ones((NUM, NUM))

    def program():
        cosmology = expansion.sample_cosmology("wcdm", priors, supernova_degeneracy)
        scatter = numpyro.sample("sigma_int", priors["sigma_int"])
        offset = priors["M0"]
        total = covariance + scatter**2 * eye + offset.scale**2 * ones
        mean = distances.distmod(cosmology) + offset.loc
        numpyro.sample("observed", dist.MultivariateNormal(mean, covariance_matrix=total), obs=data.mu)

    return program


def seconds_each(function, points, least):
    """Return the median time of a call after the first, over some seconds."""
    import jax

    jax.block_until_ready(function(points[0]))
    taken, began = [], time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - began < least:
        start = time.perf_counter()
        jax.block_until_ready(function(points[len(taken) % len(points)]))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), len(taken)


def gradients():
    """Check that both posteriors are equal, and return the time of a gradient of each."""
    import jax

    from hbm_jax.inference.sampler.target import build_target

    record = {}
    with jax.enable_x64(True):
        data = sample_of()
        began = time.perf_counter()
        ours = build_target(model_of(), (data,), jax.random.key(0))
        value_and_grad = jax.jit(jax.value_and_grad(ours.potential))
        jax.block_until_ready(value_and_grad(ours.start))
        record["ours_set_up_s"] = time.perf_counter() - began
        began = time.perf_counter()
        theirs = build_target(plain_program(data), (), jax.random.key(0))
        plain = jax.jit(jax.value_and_grad(theirs.potential))
        jax.block_until_ready(plain(theirs.start))
        record["plain_set_up_s"] = time.perf_counter() - began
        assert ours.labels == theirs.labels
        points = list(ours.prior_draws) + [0.5 * point for point in ours.prior_draws[:5]]
        both = [(value_and_grad(point), plain(point)) for point in points]
        values = np.array([(float(a[0]), float(b[0])) for a, b in both])
        slopes = [np.abs(np.asarray(a[1]) - np.asarray(b[1])) / (1 + np.abs(np.asarray(b[1]))) for a, b in both]
        record["points"] = len(points)
        apart = np.abs(values[:, 0] - values[:, 1]) / np.abs(values[:, 1])
        record["largest_relative_difference"] = float(np.max(apart))
        record["largest_difference_of_gradients"] = float(np.max(slopes))
        record["ours_s"], record["ours_calls"] = seconds_each(value_and_grad, points, 3.0)
        record["plain_s"], record["plain_calls"] = seconds_each(plain, points, 3.0)
    return record


def verdict():
    """Return the time from the start of a process to a usable verdict."""
    import hbm_jax as hbm

    hbm.use_every_core()
    data = sample_of()
    began = time.perf_counter()
    fit = hbm.sample(model_of(), data, seed=1, progress=False)
    return {
        "usable": fit.verdict.usable,
        "said": str(fit.verdict),
        "sample_s": time.perf_counter() - began,
        "drawing_s": fit.timing["sampling"],
        "posterior": {n: [float(fit.posterior[n].mean()), float(fit.posterior[n].std())] for n in fit.posterior},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=("gradients", "verdict"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"gradients": gradients, "verdict": verdict}[arguments.one]()))
        return
    records = {}
    for what in ("gradients", "verdict"):
        began = time.perf_counter()
        output = subprocess.run([sys.executable, __file__, "--one", what], check=True, capture_output=True, text=True)
        records[what] = json.loads(output.stdout.splitlines()[-1]) | {"process_s": time.perf_counter() - began}
    text = "\n".join(table(records))
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


def table(records):
    """Return the lines of the result."""
    g, v = records["gradients"], records["verdict"]
    packages = ", ".join(f"{name} {version(name)}" for name in ("hbm_jax", "jax", "numpyro"))
    yield f"{NUM} magnitudes with a dense covariance, flat wCDM, free intrinsic scatter, offset integrated out, float64"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    yield f"{datetime.date.today()}, {machine}, {packages}; load {os.getloadavg()[0]:.1f} at the end"
    yield ""
    yield (
        f"same posterior at {g['points']} points: log densities apart by {g['largest_relative_difference']:.1e} of "
        f"themselves at most, gradients by {g['largest_difference_of_gradients']:.1e}"
    )
    for name in ("ours", "plain"):
        title = {"ours": "hbm_jax", "plain": "NumPyro, Cholesky a step"}[name]
        yield (
            f"{title:<26} gradient {1e3 * g[f'{name}_s']:10.4f} ms (median of {g[f'{name}_calls']}); set up and "
            f"compiled in {g[f'{name}_set_up_s']:.1f} s"
        )
    ratio = g["plain_s"] / g["ours_s"]
    yield f"ratio {ratio:.0f}"
    yield ""
    yield f"process start to verdict {v['process_s']:.1f} s, of which drawing {v['drawing_s']:.2f} s. {v['said']}"
    posterior = ", ".join(f"{n} {m:.3f} +- {s:.3f} (true {TRUTH[n]:g})" for n, (m, s) in v["posterior"].items())
    yield posterior
    yield ""
    for claim, met in {
        "gradient at least 100 times as fast as a Cholesky a step": ratio >= 100,
        "good verdict within 60 s of starting the process": v["usable"] and v["process_s"] <= 60,
    }.items():
        yield f"{'PASS' if met else 'MISS'}  {claim}"


if __name__ == "__main__":
    main()
