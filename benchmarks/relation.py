"""The linear relation with errors in both variables: hbm_jax next to Stan and to PyMC with nutpie, in one run.

50 groups of 20 points. Stan (PyStan 3) and PyMC have the true x and the lines of the groups as parameters; the scatter
of y is added to its error, as anybody would. Both are written centred and non-centred, vectorised; the better form of
each counts. Compared are effective samples a second, of the slowest parameter of the population: of sampling alone for
all (hbm_jax with four times the draws, so that there is something to time), and with everything counted, compilation
too, of a fit of hbm_jax that ends by itself against sampling alone of the others. Claims: 50 times Stan, 10 times PyMC
with nutpie.
"""

import argparse
import datetime
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

PROGRAM = Path(__file__).parent / "stan" / "relation.stan"
PRIORS = {
    "alpha_mean": "Normal(0, 3)", "alpha_std": "HalfNormal(1.5)", "beta_mean": "Normal(0, 3)",
    "beta_std": "HalfNormal(1.5)", "intrinsic_scatter": "HalfNormal(1)", "x_mean": "Normal(0, 2)",
    "x_std": "HalfNormal(2)",
}  # fmt: skip
CLAIMS = {"Stan": 50, "PyMC": 10}


def columns(seed, num_groups=50, size=20):
    """Simulate points, as columns, and say which group each is in."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(num_groups), size)
    alpha, beta = rng.normal(1.5, 0.3, num_groups), rng.normal(0.5, 0.5, num_groups)
    x = rng.normal(0.2, 1.0, len(of))
    y = alpha[of] * x + beta[of] + rng.normal(0.0, 0.2, len(of))
    sigma_x, sigma_y = rng.uniform(0.1, 0.4, (2, len(of)))
    return {
        "x": x + sigma_x * rng.normal(size=len(of)), "y": y + sigma_y * rng.normal(size=len(of)), "sigma_x": sigma_x,
        "sigma_y": sigma_y, "group": [f"g{i}" for i in of],
    }, of  # fmt: skip


def diagnose(draws):
    """Smallest bulk or tail ESS with its parameter, and largest R-hat, of (chain, draw) arrays by name."""
    from arviz_stats.base import array_stats

    axes = {"chain_axis": 0, "draw_axis": 1}
    ess = {
        name: min(float(array_stats.ess(d, method=m, **axes, **({"prob": (0.05, 0.95)} if m == "tail" else {})))
                  for m in ("bulk", "tail"))
        for name, d in draws.items()
    }  # fmt: skip
    worst = min(ess, key=ess.__getitem__)
    return ess[worst], worst, max(float(array_stats.rhat(d, **axes)) for d in draws.values())


def run_stan(data, of, centred, options):
    """Warm-up and sampling of the slowest chain [s], draws, divergences."""
    import shutil

    import httpstan.cache
    import stan

    given = {
        "J": int(of.max()) + 1, "n": len(of), "group": (of + 1).tolist(), "x_obs": data["x"], "y_obs": data["y"],
        "sigma_x": data["sigma_x"], "sigma_y": data["sigma_y"], "centred": int(centred),
    }  # fmt: skip
    model = stan.build(PROGRAM.read_text(), data=given, random_seed=options.seed)
    shutil.rmtree(httpstan.cache.model_directory(model.model_name) / "fits", ignore_errors=True)
    start = {"alpha_mean": 1.4, "alpha_std": 0.3, "beta_mean": 0.4, "beta_std": 0.5, "intrinsic_scatter": 0.2}
    start |= {"x_mean": 0.1, "x_std": 1.0}
    num = given["J"]
    free = (
        (np.full(num, 1.4), np.full(num, 0.4), data["x"]) if centred else (np.zeros(num), np.zeros(num), 0 * data["x"])
    )
    start |= {f"{k}_free": v.tolist() for k, v in zip(("alpha", "beta", "x"), free, strict=True)}
    fit = model.sample(
        num_chains=options.chains, num_warmup=options.draws, num_samples=options.draws, init=[start] * options.chains
    )
    seconds = [
        max(float(re.search(rb"([0-9.eE+-]+) seconds \(%s\)" % phase, out)[1]) for out in fit.stan_outputs)
        for phase in (b"Warm-up", b"Sampling")
    ]
    draws = {name: fit[name].reshape(options.draws, options.chains).T for name in PRIORS}
    return *seconds, draws, int(fit["divergent__"].sum())


def run_pymc(data, of, centred, options):
    """As `run_stan`; nutpie tells no phases apart, so that its sampling is half of all by the number of draws."""
    import nutpie
    import pymc as pm

    num = int(of.max()) + 1
    with pm.Model() as model:
        p = {}
        for name, text in PRIORS.items():
            a = [float(v) for v in re.findall(r"[\d.]+", text)]
            p[name] = pm.Normal(name, *a) if text.startswith("Normal") else pm.HalfNormal(name, *a)

        def latent(name, size):
            mean, std = p[f"{name}_mean"], p[f"{name}_std"]
            if centred:
                return pm.Normal(name, mean, std, shape=size)
            return mean + std * pm.Normal(f"{name}_free", 0, 1, shape=size)

        alpha, beta, x = latent("alpha", num), latent("beta", num), latent("x", len(of))
        pm.Normal("x_obs", x, data["sigma_x"], observed=data["x"])
        scale = pm.math.sqrt(data["sigma_y"] ** 2 + p["intrinsic_scatter"] ** 2)
        pm.Normal("y_obs", alpha[of] * x + beta[of], scale, observed=data["y"])
    compiled = nutpie.compile_pymc_model(model)
    began = time.perf_counter()
    trace = nutpie.sample(
        compiled, draws=options.draws, tune=options.draws, chains=options.chains, seed=options.seed, progress_bar=False
    )
    seconds = time.perf_counter() - began
    draws = {name: trace.posterior[name].transpose("chain", "draw").to_numpy() for name in PRIORS}
    return 0.5 * seconds, 0.5 * seconds, draws, int(trace.sample_stats["diverging"].sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="warm-up and kept draws of each chain of the others")
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    import hbm_jax as hbm

    hbm.use_every_core()
    data, of = columns(options.seed)
    points = hbm.data.PointsInGroups.from_columns(data)
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    packages = ("hbm_jax", "jax", "numpyro", "pystan", "pymc", "nutpie")
    say(f"{points.describe()} {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores")
    say(f"python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}; float64")
    began = time.perf_counter()
    model = hbm.models.Relation(pivot=0.0, priors=PRIORS)
    fit = hbm.sample(model, points, seed=options.seed, progress=False)
    everything = time.perf_counter() - began
    say(str(fit.verdict))

    def population(fit):
        return {name: fit.posterior[name].transpose("chain", "draw").to_numpy() for name in PRIORS}

    all_counted = diagnose(population(fit))[0] / everything
    long = {"num_samples": 4 * options.draws, "num_chains": options.chains}
    fit = hbm.sample(model, points, seed=options.seed, progress=False, **long)
    posterior = population(fit)
    rows = {
        "hbm_jax": (
            fit.timing["warmup"], fit.timing["sampling"], posterior, int(fit.tree.sample_stats.diverging.sum())
        )
    }  # fmt: skip
    for name, runner in (("Stan", run_stan), ("PyMC", run_pymc)):
        for centred in (True, False):
            rows[f"{name}, {'centred' if centred else 'non-centred'}"] = runner(data, of, centred, options)
    head = f"{'warm-up s':>10s}{'sampling s':>11s}{'diverg.':>8s}{'R-hat':>7s}{'ESS':>7s}{'ESS/s':>9s}  slowest"
    say(f"\n{'':22s}{head}")
    rates, means = {}, {}
    for name, (warm, sampling, draws, diverging) in rows.items():
        ess, worst, r_hat = diagnose(draws)
        rates[name] = ess / sampling
        means[name] = {k: (d.mean(), d.std() / np.sqrt(ess)) for k, d in draws.items()}
        say(f"{name:22s}{warm:10.2f}{sampling:11.2f}{diverging:8d}{r_hat:7.3f}{ess:7.0f}{rates[name]:9.3g}  {worst}")
    ours = rates["hbm_jax"]
    say(f"\nhbm_jax with everything counted, {everything:.1f} s: {all_counted:.0f} a second")
    for name, claim in CLAIMS.items():
        best = max((row for row in rates if row.startswith(name)), key=rates.__getitem__)
        apart = max(
            abs(means["hbm_jax"][k][0] - means[best][k][0]) / np.hypot(means["hbm_jax"][k][1], means[best][k][1])
            for k in PRIORS
        )
        ratio = ours / rates[best]
        say(
            f"{'PASS' if ratio >= claim else 'MISS'}: {ratio:.0f} times the ESS/s of {best}, claimed {claim}; "
            f"{all_counted / rates[best]:.0f} times with everything of ours counted; means at most {apart:.1f} "
            "standard errors apart"
        )
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
