"""Cost of one gradient of a population of afterglows with WHIM: hbm_jax next to Stan (PyStan 3), in one run.

The Stan programs in `benchmarks/stan` are ours, for the posterior of `hbm_jax.models.Afterglow(whim=True)` of a few
sources, without background (C statistic):

- ``published form``: bin by bin in a loop, folded by the whole response;
- ``expert``: vectorised, channels grouped beforehand.

Claim: at least 50 times as fast per gradient. Stan's seconds are those that it reports itself for the draws that it
keeps, over the number of leapfrog steps in them; ours are of compiled value and gradient, and of `hbm_jax.sample` in
the same way as Stan's. Log densities at points of the posterior are compared before: they may differ by a constant.
"""

import argparse
import dataclasses
import datetime
import os
import platform
import re
import shutil
import statistics
import time
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.infer.util import log_density

import hbm_jax
from hbm_jax import constants
from hbm_jax.data import Afterglows
from hbm_jax.data.xray.simulation import AfterglowPopulation
from hbm_jax.models import Afterglow
from hbm_jax.models.xray.absorbed_counts import bin_average, neutral_integral
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.stack import SpectrumStack

jax.config.update("jax_enable_x64", True)

PROGRAMS = Path(__file__).parent / "stan"
CLAIM = 50
NUM_ENERGIES = 2400  # of the response, as of Swift-XRT's
BAND = (0.3, 10.0)
TEMPERATURES = np.linspace(4.5, 7.5, 61)
TRUTH = {
    "photon_index_mean": 2.0,
    "photon_index_std": 0.2,
    "log10_flux_mean": -11.4,
    "log10_flux_std": 0.4,
    "log10_nh_mean": -0.3,
    "log10_nh_std": 0.5,
    "log10_n0": -6.9,
    "log10_T": 6.0,
}
LATENTS = ("photon_index", "log10_flux", "log10_nh")


def population(num):
    """Return a simulated sample without background, grouped optimally, and what was true."""
    rmf = xrt_like_rmf(NUM_ENERGIES)
    response = Response.of(rmf, xrt_like_arf(rmf))
    drawn = AfterglowPopulation(log10_n0=-6.9, log10_flux=(-11.4, 0.35), exposure=8000.0).draw(
        num, seed=5, response=response
    )
    spectra = [dataclasses.replace(s, background=None) for s in drawn.spectra]
    masks = [noticed(s, BAND) for s in spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(spectra, masks, strict=True)]
    data = Afterglows.from_spectra(SpectrumStack.of(grouped, masks), z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    return data, {name: np.asarray(drawn.truth[name]) for name in LATENTS}


def stan_data(data, model):
    """Everything that either of the Stan programs reads."""
    stack = data.spectra
    edges = np.asarray(stack.responses[0].energy)
    low, high = np.searchsorted(edges, (0.1, 12.0))  # bins outside give no counts from 0.3 to 10 keV
    edges = edges[low : high + 1]
    num, num_groups, middle = len(data), np.shape(stack.counts)[1], np.sqrt(edges[1:] * edges[:-1])
    z = np.asarray(data.z)
    table = model.medium.towards(np.repeat(middle[None], num, axis=0), z)
    whim = np.stack([np.asarray(table(1.0, T)) for T in np.clip(TEMPERATURES, 4.5 + 1e-9, 7.5 - 1e-9)], axis=-1)
    response = stack.responses[0].matrix.toarray()[low:high].T
    group_of = np.stack([np.asarray(g) + 1 for g in stack.grouping])
    grouped = np.zeros((num, num_groups, len(middle)))
    for row in range(num):
        used = np.flatnonzero(group_of[row] > 0)
        np.add.at(grouped[row], group_of[row, used] - 1, response[used] * stack.exposure[row])
    integral = neutral_integral(model.abundances)
    return {
        "N": num, "E": len(middle), "C": len(response), "G": num_groups, "T": len(TEMPERATURES),
        "edge": edges, "response": response, "exposure": np.asarray(stack.exposure), "group": group_of,
        "num_groups": group_of.max(axis=1), "counts": np.asarray(stack.counts).astype(int),
        "nh_mw": np.asarray(data.nh_mw), "grouped": grouped, "whim": whim,
        "galactic": np.repeat(bin_average(integral, np.log(edges), np)[None], num, axis=0),
        "host": np.stack([bin_average(integral, np.log(edges * (1 + one)), np) for one in z]),
        "low_T": TEMPERATURES[0], "step_T": TEMPERATURES[1] - TEMPERATURES[0],
        "erg_per_keV": constants.electron_volt * 1e10, "band": np.array(model.band),
    }  # fmt: skip


def point(truth, rng):
    """Return values near the truth, of every parameter."""
    found = {name: value + 0.02 * rng.normal() for name, value in TRUTH.items()}
    return found | {name: (value + 0.02 * rng.normal(size=len(value))).tolist() for name, value in truth.items()}


def ours(data, prepared, model, truth, options, rng):
    """Seconds of one value and gradient, and of a leapfrog step in `hbm_jax.sample`."""
    numbers = {name: jnp.asarray(value) for name, value in point(truth, rng).items() if name not in LATENTS}
    # What is sampled in place of the latents, and of density and temperature.
    numbers |= {f"_{name}": jnp.asarray(rng.normal(size=len(truth[name]))) for name in LATENTS}

    def potential(p):
        sites = {k: v for k, v in p.items() if k not in ("log10_n0", "log10_T")} | {"_whim": jnp.array([0.1, 0.2])}
        return log_density(model, (prepared,), {}, sites)[0]

    run = jax.jit(jax.value_and_grad(potential)).lower(numbers).compile()
    jax.block_until_ready(run(numbers))
    gradients = []
    for _ in range(200):
        start = time.perf_counter()
        jax.block_until_ready(run(numbers))
        gradients.append(time.perf_counter() - start)
    fit = hbm_jax.sample(model, data, seed=1, num_chains=1, num_samples=options.draws, progress=False)
    steps = int(fit.tree["sample_stats"]["n_steps"].sum())
    return statistics.median(gradients), fit.timing["sampling"] / steps, steps


def our_log_density(prepared, model, values):
    """Log density at parameters, the uniform one of log10_T left out."""
    values = {name: jnp.asarray(value) for name, value in values.items()}
    priors = model.all_priors
    found = sum(priors[name].log_prob(values[name]) for name in values if name in priors and name != "log10_T")
    for name in LATENTS:
        found += dist.Normal(values[f"{name}_mean"], values[f"{name}_std"]).log_prob(values[name]).sum()
    p = values | {"nh": 10.0 ** values["log10_nh"], "nh_mw": prepared.nh_mw, "log10_xi": 0.0, "metallicity": 0.3}
    return float(found + prepared.statistic.log_likelihood(prepared.expected(p, model.band)).sum())


def theirs(program, prepared, model, given, truth, options, rng):
    """Seconds of a step of a Stan program, steps, seconds to compile, spread of log densities about ours."""
    import httpstan.cache
    import stan

    text = (PROGRAMS / program).read_text()
    declared = {name for name in given if re.search(rf"\b{name};", text.split("parameters {")[0])}
    start = time.perf_counter()
    built = stan.build(text, data={name: given[name] for name in declared}, random_seed=1)
    compile_seconds = time.perf_counter() - start
    differences = []
    for _ in range(3):
        values = point(truth, rng)
        at = built.unconstrain_pars(values)
        differences.append(built.log_prob(at, adjust_transform=False) - our_log_density(prepared, model, values))
    per_step, steps = [], 0
    for _ in range(options.repeats):
        # A fit with the same seed would come out of httpstan's cache in no time.
        shutil.rmtree(httpstan.cache.model_directory(built.model_name) / "fits", ignore_errors=True)
        init = [point(truth, rng)]
        # A step costs the same in a short trajectory as in a long one.
        fit = built.sample(
            num_chains=1, num_warmup=options.warmup, num_samples=options.stan_draws, init=init, max_depth=5
        )
        seconds = float(re.search(rb"([0-9.eE+-]+) seconds \(Sampling\)", fit.stan_outputs[0])[1])
        per_step.append(seconds / fit["n_leapfrog__"].sum())
        steps += int(fit["n_leapfrog__"].sum())
    return statistics.median(per_step), steps, compile_seconds, np.ptp(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-sources", type=int, default=5)
    parser.add_argument("--draws", type=int, default=1000, help="ours")
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--stan-draws", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--programs", nargs="+", default=["published form", "expert"])
    parser.add_argument("--output", type=Path, help="also write the text to this file")
    options = parser.parse_args()
    lines = []

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    packages = ("hbm_jax", "jax", "numpyro", "numpy", "pystan", "httpstan")
    say(f"{options.num_sources} afterglows, C statistic, global WHIM, 8 + {3 * options.num_sources} parameters")
    say(f"{datetime.date.today()}; {platform.processor() or platform.machine()}, {os.cpu_count()} cores; one chain")
    say(f"versions: python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}; float64")
    data, truth = population(options.num_sources)
    model, rng = Afterglow(whim=True, statistic="cstat"), np.random.default_rng(1)
    given, prepared = stan_data(data, model), model.prepare(data)
    gradient, step, steps = ours(data, prepared, model, truth, options, rng)
    say(f"{given['E']} bins of energy, {given['C']} channels, {given['G']} groups at most")
    head = ("ms/step", 9), ("steps", 8), ("to a step", 12), ("gradient", 10), ("compile s", 10), ("lnL spread", 12)
    say("\n" + " " * 16 + "".join(f"{text:>{width}s}" for text, width in head))
    say(f"{'hbm_jax':16s}{step * 1e3:9.3f}{steps:8d}{'':12s}{f'{gradient * 1e3:.3f} ms':>10s}")
    verdicts = []
    for name in options.programs:
        program = f"afterglow_{name.replace(' ', '_')}.stan"
        per_step, num, seconds, spread = theirs(program, prepared, model, given, truth, options, rng)
        say(
            f"{name:16s}{per_step * 1e3:9.3f}{num:8d}{f'{per_step / step:.0f}x':>12s}"
            f"{f'{per_step / gradient:.0f}x':>10s}{seconds:10.1f}{spread:12.4f}"
        )
        verdicts.append(
            f"{'PASS' if per_step / step >= CLAIM else 'MISS'}: {per_step / step:.0f} times as fast per leapfrog step "
            f"as the Stan program ({name}), claimed {CLAIM}"
        )
    say()
    for verdict in verdicts:
        say(verdict)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
