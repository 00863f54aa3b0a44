"""The coordinate of a measured positive quantity: formula, inverse, slopes, and what it is for."""

import jax
import mpmath
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from hbm_jax.distributions import LogOrLinear

ERROR, WIDTH = 0.3, 0.7
LOGARITHMS = np.array([-300.0, -30.0, -8.7, -3.0, -0.5, 0.0, 0.8, 2.0, 30.0])


@jax.jit
def everything(x, V):
    chart = LogOrLinear.of(error=ERROR, width=WIDTH)
    coordinate = chart(x)
    log_slope, slope = chart.log_abs_det_jacobian(x, coordinate), jax.vmap(jax.grad(chart))(x)
    return coordinate, log_slope, slope, chart.inv(coordinate), chart(chart.inv(V))


# The coordinates between which there and back is compared, besides those with many digits.
X = np.concatenate([LOGARITHMS, np.linspace(-40.0, 3.0, 200)])
V = np.linspace(-60.0, 300.0, 200)


@pytest.mark.parametrize("place", range(len(LOGARITHMS)))
def test_formula_and_slope_are_those_of_many_digits(place):
    log10 = LOGARITHMS[place]
    with mpmath.workdps(50):
        w = mpmath.mpf(WIDTH) * mpmath.log(10)

        def coordinate(x):
            return mpmath.log(mpmath.expm1(mpmath.mpf(10) ** x * w / mpmath.mpf(ERROR))) / w

        exact, slope = coordinate(mpmath.mpf(log10)), mpmath.diff(coordinate, log10)
    found, log_slope, derivative = (float(x[place]) for x in everything(X, V)[:3])
    assert found == pytest.approx(float(exact), rel=1e-9)
    assert log_slope == pytest.approx(float(mpmath.log(slope)), rel=1e-8)
    assert derivative == pytest.approx(float(slope), rel=1e-8)


def test_there_and_back():
    *_, x, again = everything(X, V)
    np.testing.assert_allclose(x[len(LOGARITHMS) :], X[len(LOGARITHMS) :], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(again, V, rtol=1e-8, atol=1e-8)


GRID = np.linspace(-12.0, 40.0, 20001)


@jax.jit
def prior_on_grid(V):
    chart = LogOrLinear.of(error=ERROR, width=WIDTH)
    prior = dist.TransformedDistribution(dist.Normal(-1.0, 0.7), chart)
    return prior.log_prob(V), chart.inv(V)


@pytest.mark.parametrize("measured", [-1.0, 0.05, 0.3, 3.0])
def test_posterior_is_close_to_normal_where_its_logarithm_is_not(measured):
    """Of a quantity with the error 0.3 and a prior of 0.7 dex about 0.1."""
    prior, log10 = map(np.asarray, prior_on_grid(GRID))
    log = prior + stats.norm.logpdf(10.0**log10, measured, ERROR)
    weights = np.exp(log - log.max())
    weights /= weights.sum()

    def skewness(x):
        mean = weights @ x
        return abs(weights @ (x - mean) ** 3) / (weights @ (x - mean) ** 2) ** 1.5

    inside = stats.norm.cdf(log10[-1], -1.0, 0.7)
    assert np.trapezoid(np.exp(prior), GRID) == pytest.approx(inside, abs=1e-6)
    print(f"{measured}: skewness {skewness(GRID):.2f}, of the logarithm {skewness(log10):.2f}")
    assert skewness(GRID) < 0.35
    std = np.sqrt(weights @ GRID**2 - (weights @ GRID) ** 2)
    assert 0.6 < std < 1.5  # of one size, whatever was measured


def test_it_is_a_pytree_that_is_vectorised():
    @jax.jit
    def both(errors, x):
        charts = jax.vmap(lambda error: LogOrLinear.of(error, WIDTH))(errors)
        return jax.vmap(lambda chart: chart(x))(charts)

    w = WIDTH * np.log(10.0)
    errors = np.array([0.1, 0.3])
    expected = np.log(np.expm1(10**0.2 * w / errors)) / w
    np.testing.assert_allclose(both(errors, 0.2), expected, rtol=1e-12)
    chart = LogOrLinear(-1.0, 1.6)
    assert chart == LogOrLinear(chart.log_scale, chart.w)
    assert chart != LogOrLinear(chart.log_scale, 2.6)
