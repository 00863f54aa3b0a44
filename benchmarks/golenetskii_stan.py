"""The Golenetskii relation at catalogue level: hbm_jax next to Stan (PyStan 3) with sampled latents, in one run.

30 simulated bursts of 15 intervals. The Stan program in `benchmarks/stan` is ours, vectorised, with true peak energies
and fluxes as parameters, in three forms: everything centred, everything non-centred, and intervals centred with bursts
non-centred; the best of them counts. A fourth, whose true fluxes are integrated out by hand, is shown beside. Compared
are effective samples a second of sampling, of the slowest parameter of the population. Claims: 50 times, and a good
verdict within 30 s of the start of a process that reads the table, fits it and judges it.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).parent / "stan" / "golenetskii.stan"
CLAIM, SECONDS = 50, 30
POPULATION = (
    "gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std", "log10_E_peak_mean", "log10_E_peak_std",
    "log10_E_peak_scatter", "intrinsic_scatter",
)  # fmt: skip
# Whether intervals, and bursts, are centred, and whether the true fluxes are sampled.
FORMS = {
    "centred": (1, 1, 1),
    "non-centred": (0, 0, 1),
    "intervals centred": (1, 0, 1),
    "fluxes integrated": (1, 1, 0),
}
MARGINAL = "Stan, fluxes integrated"

FIT = """
import sys
import hbm_jax as hbm
hbm.use_every_core()
fit = hbm.sample(hbm.models.Golenetskii(), hbm.data.read_bursts(sys.argv[1]), seed=1, progress=False)
print(fit.verdict)
sys.exit(not fit.verdict.usable)
"""


def diagnose(draws):
    """Smallest bulk or tail ESS, and largest R-hat, of (chain, draw) arrays by name."""
    from arviz_stats.base import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    ess = {
        name: min(float(array_stats.ess(d, method=m, **axes, **({"prob": (0.05, 0.95)} if m == "tail" else {})))
                  for m in ("bulk", "tail"))
        for name, d in draws.items()
    }  # fmt: skip
    worst = min(ess, key=ess.__getitem__)
    return ess[worst], worst, max(float(array_stats.rhat(d, **axes)) for d in draws.values())


def stan_data(data):
    """Return the measured values, as the program takes them."""
    import jax

    from hbm_jax.cosmology import Cosmology
    from hbm_jax.spectra.model.energetics import log10_sphere

    with jax.enable_x64(True):
        sphere = np.asarray(log10_sphere(data.z, Cosmology.flat(H0=70.0, Om0=0.3)))
    used = np.asarray(data.used)
    of = np.repeat(np.arange(len(data)), used.sum(axis=1))
    xx, xy, yy = data.errors[used].T
    return {
        "B": len(data),
        "n": int(used.sum()),
        "burst": (of + 1).tolist(),
        "x_obs": data.log10_E_peak[used] + np.log10(1 + data.z[of]) - 2.0,
        "y_obs": data.log10_flux[used] + sphere[of] - 52.0,
        "var_x": xx,
        "cov_xy": xy,
        "var_y": yy,
    }


def run_stan(data, form, options):
    """Seconds of sampling of the slowest chain, draws, divergences."""
    import re

    import httpstan.cache
    import stan

    peaks, bursts, fluxes = FORMS[form]
    given = stan_data(data) | {"centred_peaks": peaks, "centred_bursts": bursts, "sampled_fluxes": fluxes}
    model = stan.build(PROGRAM.read_text(), data=given, random_seed=options.seed)
    import shutil

    shutil.rmtree(httpstan.cache.model_directory(model.model_name) / "fits", ignore_errors=True)
    rng = np.random.default_rng(options.seed)
    typical = dict(zip(POPULATION, (1.5, 0.2, 0.0, 0.3, 2.6, 0.3, 0.25, 0.1), strict=True))
    B, n = given["B"], given["n"]
    starts = []
    for _ in range(options.chains):
        start = {k: float(v * (1 + 0.05 * rng.normal())) for k, v in typical.items()}
        where = {"gamma_free": 1.5, "line_free": 0.0, "middle_free": 0.6} if bursts else {}
        for name in ("gamma_free", "line_free", "middle_free"):
            start[name] = (where.get(name, 0.0) + 0.1 * rng.normal(size=B)).tolist()
        start["x_free"] = (given["x_obs"] if peaks else 0.1 * rng.normal(size=n)).tolist()
        if fluxes:
            start["y_free"] = (given["y_obs"] if peaks else 0.1 * rng.normal(size=n)).tolist()
        starts.append(start)
    fit = model.sample(
        num_chains=options.chains, num_warmup=options.draws, num_samples=options.draws, init=starts
    )  # fmt: skip
    seconds = {
        phase: max(float(re.search(rb"([0-9.eE+-]+) seconds \(%s\)" % phase, out)[1]) for out in fit.stan_outputs)
        for phase in (b"Warm-up", b"Sampling")
    }
    draws = {name: fit[name].reshape(options.draws, options.chains).T for name in POPULATION}
    draws["log10_N_mean"] = draws["log10_N_mean"] + 52.0
    return seconds[b"Warm-up"], seconds[b"Sampling"], draws, int(fit["divergent__"].sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="warm-up and kept draws of each of Stan's chains")
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import hbm_jax as hbm

    hbm.use_every_core()
    sample = hbm.data.BurstPopulation(num_intervals=15, gamma=(1.5, 0.25)).draw(30, seed=6)
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    packages = ("hbm_jax", "jax", "numpyro", "pystan", "httpstan")
    say(f"30 bursts, 15 intervals each; {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores")
    say(f"python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}; float64")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "bursts.ecsv"
        sample.data.to_table().write(table)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", FIT, str(table)], capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - began)
    say(f"\nfrom the start of the process to the verdict: {', '.join(f'{s:.1f}' for s in seconds)} s")
    say(f"{done.stdout.strip()}{done.stderr.strip()[-300:] if done.returncode else ''}")
    good = done.returncode == 0 and np.median(seconds) <= SECONDS
    say(f"{'PASS' if good else 'MISS'}: a good verdict within {SECONDS} s")
    ours = {"num_samples": 4 * options.draws, "num_chains": options.chains, "progress": False}
    fit = hbm.sample(hbm.models.Golenetskii(), sample.data, seed=1, **ours)
    posterior = fit.tree.posterior.to_dataset()
    rows = {
        "hbm_jax": (
            fit.timing["warmup"], fit.timing["sampling"],
            {name: posterior[name].transpose("chain", "draw").to_numpy() for name in POPULATION},
            int(fit.tree.sample_stats.diverging.sum()),
        )
    }  # fmt: skip
    for form in FORMS:
        rows[f"Stan, {form}"] = run_stan(sample.data, form, options)
    say(
        f"\n{'':22s}{'warm-up s':>10s}{'sampling s':>11s}{'diverg.':>8s}{'R-hat':>7s}{'ESS':>7s}{'ESS/s':>9s}"
        "  slowest parameter"
    )
    rates, means = {}, {}
    for name, (warm, sampling, draws, diverging) in rows.items():
        ess, worst, r_hat = diagnose(draws)
        rates[name] = ess / sampling
        means[name] = {k: (d.mean(), d.std() / np.sqrt(ess)) for k, d in draws.items()}
        say(f"{name:22s}{warm:10.2f}{sampling:11.2f}{diverging:8d}{r_hat:7.3f}{ess:7.0f}{rates[name]:9.3g}  {worst}")
    best = max((name for name in rates if name not in ("hbm_jax", MARGINAL)), key=rates.__getitem__)
    apart = {
        k: abs(means["hbm_jax"][k][0] - means[best][k][0]) / np.hypot(means["hbm_jax"][k][1], means[best][k][1])
        for k in POPULATION
    }
    say(f"\nposterior means of hbm_jax and {best}: at most {max(apart.values()):.1f} standard errors apart")
    ratio = rates["hbm_jax"] / rates[best]
    say(f"{'PASS' if ratio >= CLAIM else 'MISS'}: {ratio:.0f} times the ESS/s of {best}, claimed {CLAIM}")
    by_hand = rates["hbm_jax"] / rates[MARGINAL]
    say(f"{by_hand:.0f} times that of a Stan program whose true fluxes are integrated out by hand")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
