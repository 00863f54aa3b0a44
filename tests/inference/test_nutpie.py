"""The sampler of nutpie; where it is not installed, only what it refuses."""

import importlib.util
import re

import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from programs import tiny

import hbm_jax as hbm
from hbm_jax.inference.sampler.kernels.selection import options_of, sampler_of

ONE_CALL = "all draws are made in one call"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected num_samples: it cannot stop when chains have converged"),
        ({"num_samples": 10, "max_seconds": 5.0}, f"expected no max_seconds: {ONE_CALL}; found 5.0"),
        ({"until": 1000}, f"expected no until: {ONE_CALL}; found 1000"),
        ({"num_samples": 10, "checkpoint": "folder"}, f"expected no checkpoint: {ONE_CALL}; found 'folder'"),
        ({"num_samples": 10, "dtype": "float32"}, "expected dtype 'float64'; found 'float32'"),
    ],
)
def test_what_it_cannot_do_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"Nutpie: {message}")):
        hbm.sample(tiny, sampler=hbm.Nutpie(), progress=False, **options)
    assert not any(tmp_path.iterdir())


def test_options():
    assert sampler_of(options_of(hbm.Nutpie(low_rank=False))) == hbm.Nutpie(low_rank=False)
    with pytest.raises(ValueError, match="Nutpie: expected low_rank to be True or False; found 3"):
        hbm.Nutpie(low_rank=3)
    with pytest.raises(ValueError, match="Nutpie: expected target_accept_prob between 0 and 1"):
        hbm.Nutpie(target_accept_prob=2.0)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"expected the package nutpie; found none\. Install hbm_jax\[nutpie\]"):
        hbm.sample(tiny, sampler=hbm.Nutpie(), num_samples=10, progress=False)


def precise():
    """A normal mean and a log-normal scatter, in small units."""
    numpyro.sample("x", dist.Normal(3e-6, 2e-6))
    numpyro.sample("s", dist.LogNormal(1.0, 0.5))


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("nutpie") is None, reason="nutpie is not installed")
def test_its_draws_are_those_of_the_posterior(monte_carlo):
    options = {"sampler": hbm.Nutpie(), "num_samples": 800, "num_warmup": 200, "progress": False}
    fit = hbm.sample(precise, seed=seed(1), **options)
    assert fit.posterior["x"].shape == (4, 800)
    assert fit.run["sampler"] == "nutpie"
    assert fit.run["num_warmup"] == 200
    assert fit.run["stopped"] == "stopped: all requested draws are done"
    stats = fit.tree["sample_stats"]
    assert (stats["n_steps"] >= 1).all()
    monte_carlo.mean(fit.posterior["x"].to_numpy(), 3e-6, name="x")
    monte_carlo.mean(np.log(fit.posterior["s"].to_numpy()), 1.0, name="log s")
    z, log_s = (fit.posterior["x"] - 3e-6) / 2e-6, np.log(fit.posterior["s"])
    expected = -0.5 * z**2 - 0.5 * ((log_s - 1.0) / 0.5) ** 2
    difference = (stats["lp"].to_numpy() - expected.to_numpy()).ravel()
    assert np.ptp(difference) < 1e-9  # the density of the unconstrained variables, in which the sampler works
    again = hbm.sample(precise, seed=seed(1), **options)
    np.testing.assert_array_equal(again.posterior["x"], fit.posterior["x"])
