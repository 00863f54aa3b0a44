"""The skew-normal distribution at all shapes, its standardised form, and its reparametrisation.

Derivatives and draws in general: `test_distribution_laws`.
"""

import jax
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from scipy import stats

from hbm_jax.distributions import SkewNormal
from hbm_jax.inference.centering.location_scale import PartialNonCentring, ReparametrisedProgram, find_sites

SHAPES = np.array([-20.0, -1.5, 0.0, 0.7, 5.0])


@jax.jit
def everything(x, shapes):
    d, standardised = SkewNormal(0.5, 1.7, shapes), SkewNormal.standardised(1.0, 2.0, shapes)
    far = jax.value_and_grad(lambda a: SkewNormal(0.5, 1.7, a).log_prob(30.0))(-5.0)
    return d.log_prob(x), d.mean, d.variance, standardised.mean, standardised.variance, standardised.log_prob(x), far


def test_density_and_moments_are_scipys():
    x = np.linspace(-4, 6, 41)[:, None]
    log_prob, mean, variance, standard_mean, standard_variance, standardised, far = everything(x, SHAPES)
    exact = stats.skewnorm(SHAPES, 0.5, 1.7)
    # SciPy's own density loses digits in the tail; its parts do not.
    t = (x - 0.5) / 1.7
    expected = np.log(2.0 / 1.7) + stats.norm.logpdf(t) + stats.norm.logcdf(SHAPES * t)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.exp(log_prob), exact.pdf(x), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mean, exact.mean(), rtol=1e-10)
    np.testing.assert_allclose(variance, exact.var(), rtol=1e-10)
    # The standardised one has the given mean and deviation, and is the same distribution in other numbers.
    np.testing.assert_allclose(standard_mean, 1.0, rtol=1e-10)
    np.testing.assert_allclose(standard_variance, 4.0, rtol=1e-10)
    scale = 2.0 / np.sqrt(exact.var()) * 1.7
    same = stats.skewnorm(SHAPES, 1.0 - scale * (exact.mean() - 0.5) / 1.7, scale)
    np.testing.assert_allclose(np.exp(standardised), same.pdf(x), rtol=1e-6, atol=1e-9)
    # Far in the thin tail.
    ends = [stats.norm.logcdf(a * 29.5 / 1.7) for a in (-5.0 + 1e-5, -5.0 - 1e-5)]
    assert float(far[0]) == pytest.approx(
        np.log(2.0 / 1.7) + stats.norm.logpdf(29.5 / 1.7) + stats.norm.logcdf(-5.0 * 29.5 / 1.7), rel=1e-10
    )
    assert float(far[1]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def hosts():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    std = numpyro.sample("std", dist.HalfNormal(1.0))
    with numpyro.plate("source", 4):
        numpyro.sample("column", SkewNormal.standardised(mean, std, 3.0))


def test_it_can_be_sampled_as_centred_as_one_likes():
    assert find_sites(hosts, (), jax.random.key(0)) == {"column": (4,)}
    form = PartialNonCentring("column", np.array([0.0, 0.3, 0.7, 1.0]), np.full(4, 0.8))
    program = ReparametrisedProgram(hosts, (form,))
    values = np.array([-0.5, 0.1, 0.4, 1.5])

    @jax.jit
    def of_point(values, mean, std):
        fn = SkewNormal.standardised(mean, std, 3.0)
        free = form.sampled_value(values, fn.loc, fn.scale)
        substituted = numpyro.handlers.substitute(program, {"mean": mean, "std": std, form.sampled_site: free})
        trace = numpyro.handlers.trace(substituted).get_trace()
        sampled = trace[form.sampled_site]
        return trace["column"]["value"], sampled["fn"].log_prob(sampled["value"]), fn.log_prob(values), fn.scale

    value, of_helper, of_values, scale = of_point(values, 0.3, 0.6)
    np.testing.assert_allclose(value, values, rtol=1e-10)
    # The densities differ by the Jacobian (t / t0)^(1 - c).
    jacobian = (1.0 - form.weight) * np.log(np.asarray(scale) / 0.8)
    np.testing.assert_allclose(np.asarray(of_helper) - jacobian, of_values, rtol=1e-10)
