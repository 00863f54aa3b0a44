"""Claim: integrating true values and offsets out reaches a usable verdict sooner than sampling them in NumPyro.

    python benchmarks/supernova_union_numpyro.py --data FOLDER [--only NAME ...] [--out FILE]

FOLDER is that of `supernova_union.py`. 300 supernovae of Union3.1, normal populations, flat LCDM, without and with 378
calibration offsets and 100 modes of bulk flows, all in one run, four chains each:

- hbm_jax: `hbm_jax.sample`, which stops by itself;
- hbm_jax, sampled: the same with the true values sampled (without offsets only);
- NumPyro: its NUTS, a program as an expert writes it, with true stretch, colour and offsets sampled: centred
  stretch and colour, which these data determine better than their populations do, scatter of the magnitude in its
  covariance, distances by Gauss-Legendre quadrature, 1000 warm-up draws, then blocks of 500 draws until the verdict of
  hbm_jax on all sites is that they are usable, eight at most.

For each: seconds from start to the verdict, compilation included, bulk effective draws a second of the drawing (of the
population's parameter with the fewest), and the largest difference of means from the first in Monte Carlo errors.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

CONTESTANTS = ("hbm_jax", "hbm_jax, sampled", "NumPyro")
SPEED_OF_LIGHT, H0 = 299792.458, 70.0  # [km/s], [km/s/Mpc]
NAMES = ("Om0", "M0", "alpha", "beta", "delta_M", "sigma_int", "x1_mean", "x1_std", "c_mean", "c_std")
MOST_BLOCKS = 8


def expert(data, sensitivity=None):
    """Return the NumPyro program; ``sensitivity`` (3 N, J) is that of (m_b, x1, c) of all supernovae."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    nodes, weights = np.polynomial.legendre.leggauss(24)
    z = 0.5 * data.z_cmb[:, None] * (nodes + 1.0)
    weights, num = 0.5 * data.z_cmb[:, None] * weights, len(data)
    massive = (data.log10_mass > 10.0) * 1.0
    observed = np.stack([data.m_b, data.x1, data.c], axis=-1)
    noise = data.covariance.copy()
    noise[:, 0, 0] += data.variance_lensing + data.variance_velocity

    def program():
        Om0 = numpyro.sample("Om0", dist.Uniform(0.0, 1.0))
        M0 = numpyro.sample("M0", dist.Normal(-19.3, 1.0))
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 0.5))
        beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
        delta_M = numpyro.sample("delta_M", dist.Normal(0.0, 0.2))
        sigma_int = numpyro.sample("sigma_int", dist.HalfNormal(0.3))
        x1_mean = numpyro.sample("x1_mean", dist.Normal(0.0, 1.0))
        x1_std = numpyro.sample("x1_std", dist.HalfNormal(2.0))
        c_mean = numpyro.sample("c_mean", dist.Normal(0.0, 0.2))
        c_std = numpyro.sample("c_std", dist.HalfNormal(0.3))
        distance = jnp.sum(weights / jnp.sqrt(Om0 * (1.0 + z) ** 3 + 1.0 - Om0), axis=1) * SPEED_OF_LIGHT / H0
        modulus = 5.0 * jnp.log10((1.0 + data.z_hel) * distance) + 25.0
        shift = 0.0
        if sensitivity is not None:
            with numpyro.plate("offset", sensitivity.shape[1]):
                offsets = numpyro.sample("calibration", dist.Normal(0.0, 1.0))
            shift = (sensitivity @ offsets).reshape(num, 3)
        with numpyro.plate("supernova", num):
            x1 = numpyro.sample("x1_true", dist.Normal(x1_mean, x1_std))
            c = numpyro.sample("c_true", dist.Normal(c_mean, c_std))
            m_b = M0 + modulus - alpha * x1 + beta * c + delta_M * massive
            covariance = noise + sigma_int**2 * np.diag([1.0, 0.0, 0.0])
            mean = jnp.stack([m_b, x1, c], axis=-1) + shift
            numpyro.sample("observed", dist.MultivariateNormal(mean, covariance), obs=observed)

    return program


def run_numpyro(program) -> dict:
    """Run NumPyro's NUTS until the verdict, and return draws and times."""
    import jax
    import xarray as xr
    from numpyro.infer import MCMC, NUTS

    from hbm_jax.inference import judge

    start, blocks, stats, drawing, verdict = time.perf_counter(), [], [], 0.0, None
    fields = ("diverging", "energy", "num_steps")
    with jax.enable_x64(True):
        mcmc = MCMC(NUTS(program), num_warmup=1000, num_samples=500, num_chains=4, progress_bar=False)
        mcmc.warmup(jax.random.key(0), extra_fields=fields)
        warmup = time.perf_counter() - start
        while len(blocks) < MOST_BLOCKS and (verdict is None or not verdict.usable):
            began = time.perf_counter()
            mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=fields)
            blocks.append(jax.device_get(mcmc.get_samples(group_by_chain=True)))
            stats.append(jax.device_get(mcmc.get_extra_fields(group_by_chain=True)))
            drawing += time.perf_counter() - began
            mcmc.post_warmup_state = mcmc.last_state
            posterior, sample_stats = (
                xr.Dataset(
                    {
                        name: (("chain", "draw", *(f"{name}_dim" for _ in parts[0][name].shape[2:])), values)
                        for name in parts[0]
                        for values in [np.concatenate([part[name] for part in parts], axis=1)]
                    }
                )
                for parts in (blocks, stats)
            )
            verdict = judge(posterior, sample_stats)
    steps = float(sample_stats["num_steps"].mean())
    total = time.perf_counter() - start
    return record(posterior, verdict, total, warmup, drawing, steps)


def run_hbm_jax(latents, offsets, data) -> dict:
    """Run `hbm_jax.sample`, and return draws and times."""
    import hbm_jax as hbm
    from hbm_jax.models import Supernova

    start = time.perf_counter()
    fit = hbm.sample(Supernova(latents=latents, offsets=offsets), data, progress=False)
    total, drawing = time.perf_counter() - start, fit.timing["sampling"]
    steps = float(fit.tree["sample_stats"]["n_steps"].mean())
    return record(fit.posterior, fit.verdict, total, total - drawing, drawing, steps)


def record(posterior, verdict, total, before, drawing, steps) -> dict:
    """Return what is reported of a run."""
    import arviz

    draws = {name: posterior[name].transpose("chain", "draw").to_numpy() for name in NAMES}
    ess = {name: float(arviz.ess(values)) for name, values in draws.items()}
    worst = min(ess, key=lambda name: ess[name])
    return {
        "usable": bool(verdict.usable), "reasons": list(map(str, verdict.reasons)), "total_s": total,
        "before_s": before, "drawing_s": drawing, "draws": int(next(iter(draws.values())).size), "worst": worst,
        "ess": ess[worst], "r_hat": max(float(arviz.rhat(values)) for values in draws.values()), "steps": steps,
        "divergences": int(verdict.num_divergences),
        "means": {n: [float(v.mean()), float(v.std()), float(v.std() / ess[n] ** 0.5)] for n, v in draws.items()},
        "load": os.getloadavg()[0],
    }  # fmt: skip


def one(contestant: str, name: str, folder: Path) -> None:
    """Run one contestant in this process and print its record."""
    import hbm_jax as hbm

    hbm.use_every_core()
    from supernova_union_calibration import design_of

    data = design_of(name, folder)
    with_offsets = name == "offsets and flows"
    if contestant == "NumPyro":
        sensitivity = np.moveaxis(data.sensitivity, 1, 2).reshape(3 * len(data), -1) if with_offsets else None
        result = run_numpyro(expert(data, sensitivity))
    else:
        latents = "sampled" if "sampled" in contestant else "marginal"
        result = run_hbm_jax(latents, "marginal" if with_offsets else "sampled", data)
    print(json.dumps(result))


def table(records: list[dict]) -> str:
    """Return one line for each run."""
    lines = [
        f"300 supernovae of Union3.1, flat LCDM, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores "
        "shared with other work (load at the end of each row), "
        + ", ".join(f"{package} {version(package)}" for package in ("hbm_jax", "jax", "numpyro")),
        f"{'data':18} {'contestant':17} {'verdict':10} {'R-hat':>6} {'draws':>6} {'steps':>6} {'verdict after':>13} "
        f"{'before drawing':>14} {'ESS':>6} {'ESS/s':>7} {'Om0':>17} {'differs by':>10} load",
    ]
    for entry in records:
        first = next(e for e in records if e["name"] == entry["name"])
        differences = {
            n: (m[0] - first["means"][n][0]) / np.hypot(m[2], first["means"][n][2]) for n, m in entry["means"].items()
        }
        most = max(differences, key=lambda n: abs(differences[n]))
        against = "" if entry is first else f"{differences[most]:+.1f} ({most})"
        mean, sd, _ = entry["means"]["Om0"]
        lines.append(
            f"{entry['name']:18} {entry['contestant']:17} {'usable' if entry['usable'] else 'not usable':10} "
            f"{entry['r_hat']:6.3f} {entry['draws']:6} {entry['steps']:6.1f} {entry['total_s']:11.0f} s "
            f"{entry['before_s']:12.0f} s {entry['ess']:6.0f} {entry['ess'] / entry['drawing_s']:7.1f} "
            f"{mean:.4f} +- {sd:.4f} {against:>10} {entry['load']:.1f}"
        )
        if not entry["usable"]:
            lines.append(f"    {'; '.join(entry['reasons'])[:300]}")
    return "\n".join(lines)


def main() -> None:
    """Run the contestants in turn, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sample")
    parser.add_argument("--only", nargs="*", default=["default", "offsets and flows"], help="with which offsets")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/supernova_union_numpyro.txt")
    parser.add_argument("--one", nargs=2, metavar=("CONTESTANT", "NAME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(*given.one, given.data)
        return
    records: list[dict] = []
    for name in given.only:
        for contestant in CONTESTANTS:
            if name != "default" and "sampled" in contestant:
                continue
            start = time.perf_counter()
            command = [sys.executable, __file__, "--data", str(given.data), "--one", contestant, name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            entry = json.loads(output.splitlines()[-1]) | {"name": name, "contestant": contestant}
            records.append(entry | {"process_s": time.perf_counter() - start})
            print(table(records), flush=True)
            given.out.write_text(table(records) + "\n")


if __name__ == "__main__":
    main()
