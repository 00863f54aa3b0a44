"""One process of several: ``python processes.py ADDRESS NUM_PROCESSES PROCESS_ID OUT FOLDER``."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.data import load_jla
from hbm_jax.inference import CheckpointError, distributed, resume
from hbm_jax.inference.distributed import number_of_objects, split_over_processes, start_processes
from hbm_jax.inference.sampler import loop
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.models import Supernova

RNG = np.random.default_rng(5)
ERROR = RNG.uniform(0.5, 2.0, size=1000)
Y = RNG.normal(1.0, 0.7, size=1000) + ERROR * RNG.normal(size=1000)
NUM_POINTS = 4
OPTIONS = {"seed": 3, "num_chains": 2, "num_warmup": 150, "progress": False}


def population(y, error):
    """A user's program, with a latent for each object and a compiled function that holds data of its own."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    weight = jax.jit(lambda x: x * (error / error))(1.0)
    with numpyro.plate("galaxy", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, jnp.asarray(error) * weight), obs=y)


def marginal(y, error):
    """The same with the latents integrated out."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("galaxy", len(y)):
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(tau**2 + error**2)), obs=y)


CASES = {
    "jla": (Supernova(), (load_jla(),), "supernova"),
    "population": (population, (Y, ERROR), "galaxy"),
    "uneven": (population, (Y[:997], ERROR[:997]), "galaxy"),
}


def densities(name, split):
    """Potential and gradient at draws of the prior, and what a device runs."""
    program, args, plate = CASES[name]
    target = build_target(program, args, jax.random.key(1))
    points = target.prior_draws[:NUM_POINTS]
    if split:
        target = split_over_processes(target, number_of_objects(program, args, plate))
    compiled = target.processes.compile(jax.value_and_grad(target.potential), points[0])
    values, gradients = zip(*(compiled(point) for point in points), strict=True)
    return np.asarray(values), np.asarray(gradients), compiled.as_text()


def main(address, num_processes, process_id, out, folder):
    jax.config.update("jax_enable_x64", True)
    start_processes(address, int(num_processes), int(process_id))
    found = {}
    for name in CASES:
        found[f"{name}_value"], found[f"{name}_gradient"], found[f"{name}_text"] = densities(name, True)
    fit = hbm.sample(marginal, Y, ERROR, split="galaxy", num_samples=300, checkpoint=folder, **OPTIONS)
    found["draws"] = fit.tree["unconstrained_posterior"]["position"].values
    # Time is measured by process 0 alone: here the clock of the other stands still, and it would draw longer blocks.
    loop.SECONDS_PER_BLOCK = 0.05 * (1 + int(process_id))
    leads = process_id == "0"
    loop.Loop.seconds = property(lambda self: 100.0 if leads and self.draws.num_draws >= 310 else 0.0)
    budget = {"num_samples": 10**6, "max_seconds": 50.0}
    more = resume(folder, marginal, Y, ERROR, split="galaxy", progress=False, **budget)
    found["more"] = more.tree["unconstrained_posterior"]["position"].values
    found["stopped"] = more.run["stopped"]
    try:
        hbm.sample(marginal, Y, ERROR, split="galaxy", num_samples=10, checkpoint=folder, **OPTIONS)
    except CheckpointError as error:
        found["refused"] = str(error)
    shift = float(process_id)
    try:
        hbm.sample(marginal, Y + shift, ERROR, split="galaxy", num_samples=10, **OPTIONS)
    except distributed.ProcessesError as error:
        found["apart"] = str(error)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
