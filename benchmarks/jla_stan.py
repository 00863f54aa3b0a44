"""How many effective samples of w a second on JLA, flat wCDM: hbm_jax next to Stan (PyStan 3), in one run.

The Stan programs in `benchmarks/stan` are ours, all for the posterior of `hbm_jax.models.Supernova(cosmology="wcdm")`:

- ``stan-published``: as such programs are published: 740 x 3 latents as they are, a quadrature in a loop;
- ``stan-latents``: the same latents as a careful Stan user would write it: vectorised, scaled, distances by one matrix;
- ``stan-noncentred``: the same with standard normal latents;
- ``stan-marginal``: the latents integrated out, as hbm_jax does it: what is left is the engine and the coordinates;
- ``stan-straight``: the same in the coordinates of hbm_jax: what is left is the engine.

Claim: at least 1000 times the effective samples a second of the program that samples the latents. Before any speed is
quoted, log densities at random points and posterior means are compared. Every contestant runs in a process of its own,
with as many chains as it is told, in parallel; Stan starts at typical values of the parameters, scattered a little, and
its seconds are those that it reports itself. A contestant out of time is killed and shown as not finished.
"""

import argparse
import dataclasses
import datetime
import math
import multiprocessing
import os
import pickle
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.polynomial import chebyshev, legendre

PROGRAMS = Path(__file__).parent / "stan"
CLAIM = 1000
H0 = 70.0
NUM_NODES = 16  # Chebyshev nodes of the distances: 2e-13 at the posterior, 2e-6 in the farthest corner of the prior
MAX_Z_SCORE = 4.0  # of posterior means, in combined Monte Carlo standard errors
MIN_ESS = 100  # of any parameter, for a speed to mean something
MAX_R_HAT = 1.05
COMPILE_SECONDS = 150  # granted to each contestant beside its minutes

# How each program treats the latents, in the words of `hbm_jax.models.Supernova`.
LATENTS = {
    "jla_marginal.stan": "marginal",
    "jla_latents.stan": "centred",
    "jla_noncentred.stan": "noncentred",
    "jla_published_form.stan": "centred",
}

# Where Stan starts, give or take a little; also where log densities are compared.
TYPICAL = {
    "Om0": (0.30, 0.05),
    "w0": (-1.0, 0.15),
    "M0": (-19.05, 0.03),
    "alpha": (0.14, 0.01),
    "beta": (3.1, 0.1),
    "delta_M": (-0.05, 0.01),
    "sigma_int": (0.11, 0.01),
    "x1_mean": (0.0, 0.1),
    "x1_std": (0.95, 0.05),
    "c_mean": (-0.02, 0.005),
    "c_std": (0.075, 0.005),
}


@dataclass
class Result:
    """What a contestant hands back; draws are (chain, draw)."""

    name: str
    seconds: dict[str, float]
    draws: dict[str, np.ndarray]
    num_steps: np.ndarray
    num_diverging: int
    num_warmup: int
    note: str = ""
    log_densities: list[tuple[dict, float]] = field(default_factory=list)
    diagnostics: dict[str, tuple[float, float]] = field(default_factory=dict)  # parameter to (ESS, R-hat)

    def diagnose(self):
        """Work out ESS and R-hat of every parameter."""
        from arviz_stats.base import array_stats

        axes = {"chain_axis": 0, "draw_axis": 1}
        for parameter, draws in self.draws.items():
            ess = float(array_stats.ess(draws, method="bulk", **axes))
            self.diagnostics[parameter] = ess, float(array_stats.rhat(draws, method="rank", **axes))
        return self

    @property
    def worst(self):
        """Parameter with the smallest ESS."""
        return min(self.diagnostics, key=lambda name: self.diagnostics[name][0])

    @property
    def r_hat(self):
        """Largest R-hat of any parameter."""
        return max(r_hat for _, r_hat in self.diagnostics.values())

    @property
    def converged(self):
        """Whether ESS and speed mean something."""
        return self.r_hat < MAX_R_HAT and self.diagnostics[self.worst][0] >= MIN_ESS

    def rate(self, parameter, *phases):
        """Effective samples a second, counting the sampling and the named phases before it."""
        return self.diagnostics[parameter][0] / sum(self.seconds[phase] for phase in ("sampling", *phases))

    def mean_and_error(self, parameter):
        """Posterior mean and its Monte Carlo standard error."""
        from arviz_stats.base import array_stats

        draws = self.draws[parameter]
        ess = float(array_stats.ess(draws, method="mean", chain_axis=0, draw_axis=1))
        return draws.mean(), draws.std(ddof=1) / math.sqrt(ess)


def load(errors):
    """JLA; with ``errors="published"`` the coherent scatter stays in the error of m_b."""
    from hbm_jax.data import load_jla

    sne = load_jla()
    if errors == "separated":
        return sne
    covariance = sne.covariance.copy()
    covariance[:, 0, 0] += sne.variance_coherent
    return dataclasses.replace(sne, covariance=covariance)


def noise_covariance(sne):
    """Covariance of the observed (x1, c, m_b)."""
    order = [1, 2, 0]
    covariance = sne.covariance[:, order][:, :, order].copy()
    covariance[:, 2, 2] += sne.variance_lensing + sne.variance_velocity
    return covariance


def stan_data(sne):
    """Everything that any of the Stan programs reads."""
    from hbm_jax import constants

    u_sne = np.log1p(sne.z_cmb)
    u_max = u_sne.max()
    x = np.cos((np.arange(NUM_NODES) + 0.5) * np.pi / NUM_NODES)
    coefficients = np.linalg.inv(chebyshev.chebvander(x, NUM_NODES - 1))  # from values at the nodes
    antiderivatives = chebyshev.chebint(np.eye(NUM_NODES), lbnd=-1, axis=1)
    integral = chebyshev.chebvander(2 * u_sne / u_max - 1, NUM_NODES) @ antiderivatives.T @ coefficients * u_max / 2
    node, weight = legendre.leggauss(10)
    return {
        "N": len(sne),
        "K": NUM_NODES,
        "x1": sne.x1,
        "c": sne.c,
        "m_b": sne.m_b,
        "covariance": noise_covariance(sne),
        "is_massive": (sne.log10_mass > 10) * 1.0,
        "u": (x + 1) / 2 * u_max,
        "integral": integral,
        "modulus_of_one": 5 * np.log10((1 + sne.z_hel) * constants.speed_of_light_km_s / H0) + 25,
        "z_cmb": sne.z_cmb,
        "z_hel": sne.z_hel,
        "H0": H0,
        "num_nodes": len(node),
        "node": (node + 1) / 2,
        "weight": weight / 2,
    }


def random_point(sne, rng, straighten):
    """Values of every parameter of every Stan program; a program takes those that it declares."""
    point = {name: float(rng.normal(*spread)) for name, spread in TYPICAL.items()}
    logit = math.log((point["w0"] + 3) / -point["w0"])
    shift = math.log(2) + 1.5 * (1 - 0.55 - 1.6 * point["Om0"] ** 1.5)
    point["w0_coordinate"] = logit - straighten * shift
    errors = np.sqrt(np.einsum("nii->in", noise_covariance(sne)))
    for name, error in zip(("x1", "c", "m_b"), errors, strict=True):
        point[f"{name}_true"] = (getattr(sne, name) + 0.3 * error * rng.normal(size=len(sne))).tolist()
        point[f"{name}_standard"] = (0.3 * rng.normal(size=len(sne))).tolist()
    return point


def run_stan(name, options, minutes, program="", straighten=0):
    """Compile, find the cost of a draw in a pilot, then sample for as long as the time allows."""
    import httpstan.cache
    import stan

    sne = load(options.errors)
    rng = np.random.default_rng(options.seed)
    start = time.perf_counter()
    model = stan.build(
        (PROGRAMS / program).read_text(), data=stan_data(sne) | {"straighten": straighten}, random_seed=options.seed
    )
    compile_seconds = time.perf_counter() - start
    deadline = time.perf_counter() + 60 * minutes

    def sample(num_warmup, num_samples):
        # A fit with the same seed would come out of httpstan's cache in no time.
        shutil.rmtree(httpstan.cache.model_directory(model.model_name) / "fits", ignore_errors=True)
        starts = [random_point(sne, rng, straighten) for _ in range(options.chains)]
        fit = model.sample(num_chains=options.chains, num_warmup=num_warmup, num_samples=num_samples, init=starts)
        pattern = rb"([0-9.eE+-]+) seconds \(%s\)"
        seconds = {
            phase: max(float(re.search(pattern % phase.encode(), output)[1]) for output in fit.stan_outputs)
            for phase in ("Warm-up", "Sampling")
        }
        return fit, seconds

    points = []
    for _ in range(3):
        point = random_point(sne, rng, straighten)
        unconstrained = model.unconstrain_pars({k: v for k, v in point.items() if k in model.param_names})
        points.append((point, model.log_prob(unconstrained, adjust_transform=False)))

    num_warmup, num_pilot = 200, 20  # with fewer than 150, Stan has no metric yet
    fit, pilot = sample(num_warmup, num_pilot)
    # The dear draws are the first of the warm-up, before there is a metric; the others cost about what the last did.
    seconds_per_draw = pilot["Sampling"] / num_pilot
    left = deadline - time.perf_counter()
    affordable = num_warmup + (0.9 * left - pilot["Warm-up"]) / (1.5 * seconds_per_draw)
    num_samples = int(np.clip(affordable / 2, 100, options.draws))
    note = (
        f"pilot of {num_warmup} + {num_pilot} in {pilot['Warm-up']:.0f} + {pilot['Sampling']:.1f} s, "
        f"{fit['n_leapfrog__'].mean():.0f} steps a draw"
    )
    print(f"{note}; now {num_samples} + {num_samples}", flush=True)

    fit, seconds = sample(num_samples, num_samples)

    def by_chain(parameter):
        return fit[parameter].reshape(num_samples, options.chains).T

    return Result(
        name,
        {"compile": compile_seconds, "warmup": seconds["Warm-up"], "sampling": seconds["Sampling"]},
        {parameter: by_chain(parameter) for parameter in TYPICAL},
        by_chain("n_leapfrog__"),
        int(fit["divergent__"].sum()),
        num_samples,
        note,
        points,
    )


def run_ours(name, options, minutes, latents="marginal"):
    """Sample the same posterior with `hbm_jax.sample`."""
    import jax

    jax.config.update("jax_num_cpu_devices", options.chains)
    import hbm_jax

    model = hbm_jax.models.Supernova(cosmology="wcdm", latents=latents)
    num_samples = options.draws * (10 if latents == "marginal" else 1)
    fit = hbm_jax.sample(
        model,
        load(options.errors),
        seed=options.seed,
        num_chains=options.chains,
        num_samples=num_samples,
        progress=False,
    )
    posterior, stats = fit.tree["posterior"], fit.tree["sample_stats"]
    seconds = {phase: fit.timing[phase] for phase in ("compile", "warmup", "sampling")}
    seconds["compile"] += fit.timing.get("trace", 0.0)
    seconds["warmup"] += fit.timing.get("start", 0.0)  # the search for the mode stands for a part of the warm-up
    return Result(
        name,
        seconds,
        {parameter: posterior[parameter].transpose("chain", "draw").to_numpy() for parameter in TYPICAL},
        stats["n_steps"].transpose("chain", "draw").to_numpy(),
        int(stats["diverging"].sum()),
        int(fit.run["num_warmup"]),
        f"on {jax.devices()[0].device_kind}, {fit.run['dtype']}",
    )


CONTESTANTS = {
    "ours-marginal": run_ours,
    "ours-noncentred": partial(run_ours, latents="noncentred"),
    "ours-centred": partial(run_ours, latents="centred"),
    "stan-straight": partial(run_stan, program="jla_marginal.stan", straighten=1),
    "stan-marginal": partial(run_stan, program="jla_marginal.stan"),
    "stan-latents": partial(run_stan, program="jla_latents.stan"),
    "stan-noncentred": partial(run_stan, program="jla_noncentred.stan"),
    "stan-published": partial(run_stan, program="jla_published_form.stan"),
}


def _work(name, options, minutes, folder):
    """Run one contestant in this process and leave its result in a file; what it says goes to a log."""
    os.setsid()
    with (folder / f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
        result = CONTESTANTS[name](name, options, minutes)
    (folder / f"{name}.part").write_bytes(pickle.dumps(result))
    (folder / f"{name}.part").rename(folder / f"{name}.pickle")


def run_contestant(name, options, minutes, folder):
    """Run one contestant in a process of its own; returns its result, or why there is none."""
    file, log = folder / f"{name}.pickle", folder / f"{name}.log"
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(name, options, minutes, folder))
    start = time.perf_counter()
    process.start()
    while process.is_alive() and not file.exists():
        process.join(0.2)
        if time.perf_counter() - start > 60 * minutes + COMPILE_SECONDS:
            break
    spent = time.perf_counter() - start
    killed = process.is_alive() and not file.exists()
    if process.is_alive():
        # Also where it is done: PyStan's own workers would keep it from ending.
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if file.exists():
        return pickle.loads(file.read_bytes()).diagnose()
    lines = [line for line in log.read_text().splitlines() if line.strip()] if log.exists() else []
    if killed:
        pilot = next((line for line in lines if line.startswith("pilot")), "not even the pilot")
        return f"not finished after {spent / 60:.1f} min ({pilot})"
    return f"failed: {lines[-1] if lines else f'exit status {process.exitcode}'}"


def our_log_density(sne, point, latents):
    """Log density of `Supernova` at the parameters themselves, without Jacobians."""
    import jax
    from numpyro.infer.util import log_density

    from hbm_jax.models import Supernova

    with jax.enable_x64(True):
        priors = Supernova(cosmology="wcdm").all_priors
        model = Supernova(cosmology="wcdm", latents=latents, priors={name: point[name] for name in TYPICAL})
        names = {"marginal": "", "centred": "{}_true", "noncentred": "_{}_standard"}[latents]
        sites = {names.format(n): np.array(point[names.format(n).lstrip("_")]) for n in ("x1", "c", "m_b") if names}
        likelihood, _ = log_density(model, (sne,), {}, sites)
        return float(likelihood + sum(priors[name].log_prob(point[name]) for name in TYPICAL))


def compare_log_densities(results, sne, say):
    """Print the largest difference of log densities at random points, each up to one constant."""
    say("\nlog density of each Stan program minus ours at 3 random points, from the first:")
    for result in results:
        if not result.log_densities:
            continue
        latents = LATENTS[CONTESTANTS[result.name].keywords["program"]]
        differences = []
        for point, theirs in result.log_densities:
            if latents == "marginal":  # the program itself adds the Jacobian of its coordinate of w0
                p = (point["w0"] + 3) / 3
                theirs = theirs - math.log(p * (1 - p))
            differences.append(theirs - our_log_density(sne, point, latents))
        spread = np.ptp(differences)
        span = np.ptp([theirs for _, theirs in result.log_densities])
        verdict = "PASS" if spread < 1e-6 * max(span, 1) else "MISS"
        say(f"{verdict}: {result.name:18s}{spread:10.1e}   while the density itself differs by {span:.1f}")


def compare_means(results, say):
    """Print posterior means, and their distances from the first contestant's in combined standard errors."""
    reference = results[0]
    say(f"\nposterior means, and their distance from {reference.name} in combined standard errors:")
    say(f"{'':18s}" + "".join(f"{name:>15s}" for name in ("w0", "Om0", "sigma_int", "beta")) + "      largest of 11")
    agree = {}
    for result in results:
        scores, means = {}, {}
        for name in TYPICAL:
            (a, error_a), (b, error_b) = result.mean_and_error(name), reference.mean_and_error(name)
            means[name] = a
            scores[name] = 0.0 if result is reference else (a - b) / math.hypot(error_a, error_b)
        largest = max(scores, key=lambda name: abs(scores[name]))
        agree[result.name] = abs(scores[largest]) < MAX_Z_SCORE
        columns = "".join(f"{means[n]:9.4f} {scores[n]:+5.1f}" for n in ("w0", "Om0", "sigma_int", "beta"))
        tail = "" if result is reference else f"{scores[largest]:+10.1f} ({largest})"
        say(f"{result.name:18s}{columns}{tail}{'' if agree[result.name] else '  DISAGREES'}")
    return agree


def report(results, options, say):
    """Print what was found, and whether the claim holds."""
    compare_log_densities(results, load(options.errors), say)
    agree = compare_means(results, say)
    say(
        f"\n{'':18s}{'chains x draws':>15s}{'warm-up':>8s}{'compile':>9s}{'warm-up':>9s}{'sampling':>9s}{'steps/':>8s}"
        f"{'us/':>8s}{'diver-':>7s}{'max':>7s}"
    )
    say(f"{'':18s}{'':15s}{'draws':>8s}{'s':>9s}{'s':>9s}{'s':>9s}{'draw':>8s}{'step':>8s}{'gent':>7s}{'R-hat':>7s}")
    for r in results:
        num_chains, num_draws = r.num_steps.shape
        # Chains run side by side; a step's time is that of one of them.
        step = r.seconds["sampling"] / r.num_steps.sum(axis=1).max() * 1e6
        say(
            f"{r.name:18s}{f'{num_chains} x {num_draws}':>15s}{r.num_warmup:8d}{r.seconds['compile']:9.1f}"
            f"{r.seconds['warmup']:9.2f}{r.seconds['sampling']:9.2f}{r.num_steps.mean():8.1f}{step:8.0f}"
            f"{r.num_diverging:7d}{r.r_hat:7.3f}"
        )
    ours = results[0]
    say(f"\n{'':18s}{'ESS':>9s}{'ESS/s':>9s}{ours.name + ' is':>22s}{'ESS/s with':>12s}{'':>10s}{'worst':>12s}")
    head = f"{'':18s}{'w0':>9s}{'w0':>9s}{'times as fast':>22s}{'warm-up':>12s}{'times':>10s}"
    say(head + f"{'parameter':>12s}{'ESS/s':>9s}{'times':>8s}")
    for r in results:
        rate, whole = r.rate("w0"), r.rate("w0", "warmup")
        say(
            f"{r.name:18s}{r.diagnostics['w0'][0]:9.0f}{rate:9.3g}{ours.rate('w0') / rate:22.1f}{whole:12.3g}"
            f"{ours.rate('w0', 'warmup') / whole:10.1f}{r.worst:>12s}{r.rate(r.worst):9.3g}"
            f"{ours.rate(ours.worst) / r.rate(r.worst):8.1f}"
            f"{'' if r.converged else '   NOT CONVERGED: its ESS is no measure yet'}"
        )
    say()
    for r in results:
        if r.name in ("stan-published", "stan-latents", "stan-noncentred"):
            ratio = ours.rate("w0") / r.rate("w0")
            sound = agree[r.name] and ours.converged and r.converged
            verdict = "UNSURE" if not sound else "PASS" if ratio >= CLAIM else "MISS"
            worst = ours.rate(ours.worst) / r.rate(r.worst)
            say(f"{verdict}: {ours.name} has {ratio:.0f} times the ESS/s of {r.name} for w, claimed {CLAIM}")
            say(f"{'':8s}and {worst:.0f} times for the slowest parameter of each ({ours.worst}, {r.worst})")
    for r in results:
        if r.note:
            say(f"{r.name}: {r.note}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"comma-separated: {', '.join(CONTESTANTS)}; the first is what others relate to")
    parser.add_argument("--minutes", type=float, default=20.0, help="of pilots, warm-up and sampling, all together")
    parser.add_argument("--draws", type=int, default=1000, help="warm-up and kept draws a chain where time allows")
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--errors",
        choices=("separated", "published"),
        default="separated",
        help="separated: sigma_int is the coherent scatter; published: the error of m_b holds it already, as in the "
        "published programs, and sigma_int is what is left, near zero",
    )
    parser.add_argument("--quick", action="store_true", help="200 draws and 4 minutes: whether it runs")
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    if options.quick:
        options.draws, options.minutes = min(options.draws, 200), min(options.minutes, 4.0)
    names = options.only.split(",") if options.only else list(CONTESTANTS)
    for name in names:
        if name not in CONTESTANTS:
            parser.error(f"--only: expected some of {', '.join(CONTESTANTS)}; found {name!r}")
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    packages = ("hbm_jax", "jax", "numpyro", "numpy", "pystan", "httpstan")
    say(f"JLA, 740 supernovae, flat wCDM, 11 parameters (+ 2220 latents); {datetime.date.today()}")
    say(f"errors of m_b: {options.errors}; seed {options.seed}")
    say(f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores; {options.chains} chains")
    say(f"versions: python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}; float64")

    results, left = [], options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(names):
            print(f"... {name}", flush=True)
            start = time.perf_counter()
            result = run_contestant(name, options, left / (len(names) - index), Path(folder))
            compile_seconds = result.seconds["compile"] if isinstance(result, Result) else 0.0
            left -= (time.perf_counter() - start - compile_seconds) / 60
            if isinstance(result, Result):
                results.append(result)
            else:
                say(f"{name}: {result}")
    if results:
        report(results, options, say)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
