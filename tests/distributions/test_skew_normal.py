"""The skew-normal distribution against SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from scipy import stats

from hbm_jax.distributions import SkewNormal
from hbm_jax.inference.location_scale import Form, Recentred, find_sites

SHAPES = np.array([-20.0, -1.5, 0.0, 0.7, 5.0])


def test_density_and_moments_are_scipys():
    x = np.linspace(-4, 6, 41)[:, None]
    found = SkewNormal(0.5, 1.7, SHAPES)
    exact = stats.skewnorm(SHAPES, 0.5, 1.7)
    np.testing.assert_allclose(found.log_prob(x), exact.logpdf(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.variance, exact.var(), rtol=1e-6)
    slope = jax.grad(lambda a: SkewNormal(0.5, 1.7, a).log_prob(30.0))(-5.0)
    assert np.isfinite(slope)


def test_the_standardised_one_has_that_mean_and_deviation():
    found = SkewNormal.standardised(1.0, 2.0, SHAPES)
    np.testing.assert_allclose(found.mean, 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.variance, 4.0, rtol=1e-5)


def test_draws_follow_the_density():
    draws = SkewNormal(0.5, 1.7, 4.0).sample(jax.random.key(2), (20_000,))
    assert stats.kstest(np.asarray(draws), stats.skewnorm(4.0, 0.5, 1.7).cdf).pvalue > 1e-3


def hosts():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    std = numpyro.sample("std", dist.HalfNormal(1.0))
    with numpyro.plate("source", 4):
        numpyro.sample("column", SkewNormal.standardised(mean, std, 3.0))


def test_it_can_be_sampled_as_centred_as_one_likes():
    assert find_sites(hosts, (), jax.random.key(0)) == {"column": (4,)}
    form = Form("column", np.array([0.0, 0.3, 0.7, 1.0]), np.full(4, 0.8))
    program = Recentred(hosts, (form,))
    values = jnp.array([-0.5, 0.1, 0.4, 1.5])
    point = {"mean": 0.3, "std": 0.6}
    fn = SkewNormal.standardised(0.3, 0.6, 3.0)
    free = form.free(values, fn.loc, fn.scale)
    trace = numpyro.handlers.trace(
        numpyro.handlers.substitute(program, point | {form.helper: free}),
    ).get_trace()
    np.testing.assert_allclose(trace["column"]["value"], values, rtol=1e-5)
    # The densities differ by the Jacobian (t / t0)^(1 - c).
    helper = trace[form.helper]
    jacobian = (1.0 - form.centredness) * np.log(np.asarray(fn.scale) / 0.8)
    np.testing.assert_allclose(helper["fn"].log_prob(helper["value"]) - jacobian, fn.log_prob(values), rtol=1e-5)


def test_shapes_must_be_numbers():
    with pytest.raises(ValueError, match="scale"):
        SkewNormal(0.0, -1.0, 0.0, validate_args=True)
