"""Programs with known posteriors, and the fits of them that several tests share."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

import hbm_jax as hbm

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
    return hbm.sample(correlated, jnp.asarray(MEAN), jnp.asarray(COVARIANCE), seed=11, progress=False)


@functools.cache
def eight_schools_fit(path):
    """Eight schools with the letters of the schools for coordinates."""
    data = json.loads(path.read_text())
    y, sigma = (np.array(data[name], dtype=float) for name in ("y", "sigma"))
    return hbm.sample(
        eight_schools,
        y,
        sigma,
        seed=2,
        num_samples=2500,
        target_accept_prob=0.95,
        coords={"school": list("ABCDEFGH")},
        progress=False,
    )
