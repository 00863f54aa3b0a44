"""The coordinate of a measured positive quantity: formula, inverse, slopes, and what it is for."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from hbm_jax.distributions import LogOrLinear

CHART = LogOrLinear.of(error=0.3, width=0.7)


@pytest.mark.parametrize("log10", [-300.0, -30.0, -8.7, -3.0, -0.5, 0.0, 0.8, 2.0, 30.0])
def test_formula_and_slope_are_those_of_many_digits(log10):
    with mpmath.workdps(50):
        w = mpmath.mpf(0.7) * mpmath.log(10)

        def coordinate(x):
            return mpmath.log(mpmath.expm1(mpmath.mpf(10) ** x * w / mpmath.mpf(0.3))) / w

        exact, slope = coordinate(mpmath.mpf(log10)), mpmath.diff(coordinate, log10)
    assert float(CHART(log10)) == pytest.approx(float(exact), rel=1e-9)
    assert float(CHART.log_abs_det_jacobian(log10, CHART(log10))) == pytest.approx(float(mpmath.log(slope)), rel=1e-8)
    assert float(jax.grad(CHART)(log10)) == pytest.approx(float(slope), rel=1e-8)


def test_there_and_back():
    x = np.linspace(-40.0, 3.0, 200)
    np.testing.assert_allclose(CHART.inv(CHART(x)), x, rtol=1e-10, atol=1e-10)
    V = np.linspace(-60.0, 300.0, 200)
    np.testing.assert_allclose(CHART(CHART.inv(V)), V, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("measured", [-1.0, 0.05, 0.3, 3.0])
def test_posterior_is_close_to_normal_where_its_logarithm_is_not(measured):
    """Of a quantity with the error 0.3 and a prior of 0.7 dex about 0.1."""
    prior = dist.TransformedDistribution(dist.Normal(-1.0, 0.7), CHART)
    V = np.linspace(-12.0, 40.0, 60001)
    log = prior.log_prob(V) + stats.norm.logpdf(10.0 ** CHART.inv(V), measured, 0.3)
    weights = np.exp(log - log.max())
    weights /= weights.sum()

    def lean(x):
        mean = weights @ x
        return abs(weights @ (x - mean) ** 3) / (weights @ (x - mean) ** 2) ** 1.5

    inside = stats.norm.cdf(CHART.inv(V[-1]), -1.0, 0.7)
    assert np.trapezoid(np.exp(np.asarray(prior.log_prob(V))), V) == pytest.approx(inside, abs=1e-6)
    print(f"{measured}: skewness {lean(V):.2f}, of the logarithm {lean(np.asarray(CHART.inv(V))):.2f}")
    assert lean(V) < 0.35
    std = np.sqrt(weights @ V**2 - (weights @ V) ** 2)
    assert 0.6 < std < 1.5  # of one size, whatever was measured


def test_it_is_a_pytree_that_is_vectorised():
    charts = jax.vmap(lambda error: LogOrLinear.of(error, 0.7))(jnp.array([0.1, 0.3]))
    both = jax.vmap(lambda chart: chart(0.2))(charts)
    assert float(both[1]) == pytest.approx(float(CHART(0.2)), rel=1e-12)
