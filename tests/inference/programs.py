"""Programs with known posteriors, and the fits of them that several tests share."""

import functools
from dataclasses import asdict
from types import SimpleNamespace

import jax
import numpy as np
import numpyro
from monte_carlo import seed
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.inference.options import RunOptions
from hbm_jax.inference.program import bound_args
from hbm_jax.inference.results import assemble
from hbm_jax.inference.sampler.target import build_target

_MIX = np.random.default_rng(4).normal(size=(5, 5))
COVARIANCE = _MIX @ _MIX.T + 0.05 * np.eye(5)
MEAN = np.array([10.0, -3.0, 0.0, 0.5, 100.0])


def correlated(mean, covariance):
    """Five correlated normals."""
    x = numpyro.sample("x", dist.MultivariateNormal(mean, covariance))
    numpyro.deterministic("total", x.sum())


def tiny():
    """Two independent parameters, one of them bounded."""
    numpyro.sample("a", dist.Normal(2.0, 3.0))
    numpyro.sample("b", dist.Uniform(-1.0, 1.0))


def scales(width):
    """Independent normals of very different widths."""
    numpyro.sample("x", dist.Normal(0.0, width).to_event(1))


def eight_schools(y, sigma):
    """Rubin 1981, non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        standard = numpyro.sample("_standard", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * standard)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def conjugate(y):
    """A mean with a normal prior of width 2, and data of unit error."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("datum", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@functools.cache
def correlated_fit():
    """Drawn until good."""
    return hbm.sample(correlated, MEAN, COVARIANCE, seed=seed(11), progress=False)


def fit_of_draws(program, args, sites, *, unconstrained=None, dims=None, coords=None, bounds=None, run=None):
    """A fit whose draws, (chain, draw, ...) by site, were made without sampling, as `hbm_jax.sample` would return it.

    `unconstrained` holds the draws of every latent site as the sampler sees them; where omitted, `sites` are these.
    """
    unconstrained = sites if unconstrained is None else unconstrained
    labels, columns = [], []
    for name in sorted(unconstrained):
        num_chains, num_draws, *shape = np.shape(unconstrained[name])
        labels += [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(*shape)] if shape else [name]
        columns.append(np.reshape(unconstrained[name], (num_chains, num_draws, -1)))
    size = (num_chains, num_draws)
    steps = np.full(size, 3)
    sample_stats = {
        "diverging": np.zeros(size, bool),
        "energy": np.random.default_rng(99).normal(size=size),
        "lp": np.random.default_rng(98).normal(size=size),
        "n_steps": steps,
        "acceptance_rate": np.full(size, 0.9),
        "tree_depth": np.full(size, 2),
        "step_size": np.full(size, 0.5),
    }
    return assemble(
        program,
        args,
        bound_args(program, args),
        target=SimpleNamespace(
            real_labels=tuple(labels), dims={name: [] for name in sites} | (dims or {}), bounds=bounds or {}
        ),
        sites=sites,
        sample_stats=sample_stats,
        positions=np.concatenate(columns, axis=-1),
        dims=None,
        coords=coords,
        timing={"trace": 0.5, "sampling": 1.0},
        run=asdict(RunOptions(num_chains=num_chains, num_warmup=300))
        | {"max_tree_depth": 10, "num_samples": num_draws}
        | (run or {}),
    )


def fit_about_the_start(program, args, size, number):
    """A fit of draws about the median of the prior, of no posterior: enough for what is a function of draws."""
    target = build_target(program, args, jax.random.key(0))
    position = target.start + 0.1 * np.random.default_rng(seed(number)).normal(size=(*size, target.size))
    sites = jax.device_get(jax.jit(jax.vmap(target.constrain))(position.reshape(-1, target.size)))
    sites = {name: sites[name].reshape(*size, *sites[name].shape[1:]) for name in target.dims if name in sites}
    names = [label.split("[")[0] for label in target.labels]
    columns = {name: [i for i, other in enumerate(names) if other == name] for name in names}
    latents = {n: position[..., i] if "[" in target.labels[i[0]] else position[..., i[0]] for n, i in columns.items()}
    return fit_of_draws(program, args, sites, unconstrained=latents, dims=target.dims, bounds=target.bounds)
