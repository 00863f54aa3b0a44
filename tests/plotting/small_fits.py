"""Two small, fast fits that the tests of figures and of the report share."""

import functools

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

import hbm_jax as hbm


@functools.cache
def supernova_fit():
    """Every twelfth supernova of JLA, flat LCDM."""
    sne = hbm.data.load_jla()
    return hbm.sample(
        hbm.models.Supernova(), sne.subset(np.arange(0, len(sne), 12)), num_samples=200, num_warmup=200, seed=3
    )


def own_model(x, y=None):
    """A straight line through the origin: a user's program of two parameters, without any of our conveniences."""
    slope = numpyro.sample("my_slope", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * jnp.asarray(x), sigma), obs=y)


@functools.cache
def own_fit():
    x = np.linspace(0.0, 1.0, 30)
    y = 2.0 * x + 0.3 * np.random.default_rng(0).normal(size=30)
    return hbm.sample(own_model, x, y, num_samples=200, num_warmup=200, seed=3)
