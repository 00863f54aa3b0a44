"""The half normal prior in its own coordinate: formula of the coordinate, what NumPyro makes of it, and what it is for.

Density and draws: `test_distribution_laws`.
"""

import jax
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from monte_carlo import seed
from numpyro.distributions.transforms import biject_to
from numpyro.infer.util import potential_energy
from scipy import stats

import hbm_jax as hbm
from hbm_jax.distributions import SoftHalfNormal
from hbm_jax.distributions.half_normal import BEND, SoftScale

COORDINATES = np.array([-300.0, -30.0, -3.0, -0.5, 0.0, 0.8, 5.0, 30.0, 1000.0])


@jax.jit
def everything(V, size):
    chart = SoftScale(size)
    scale = chart(V)
    return scale, chart.inv(scale), chart.log_abs_det_jacobian(V, scale), jax.vmap(jax.grad(chart))(V)


@pytest.mark.parametrize("place", range(len(COORDINATES)))
def test_formula_inverse_and_slope_are_those_of_many_digits(place):
    V = COORDINATES[place]
    with mpmath.workdps(450):

        def scale(x):
            return mpmath.mpf(0.6) * mpmath.log1p(mpmath.exp(x))

        exact, slope = scale(mpmath.mpf(V)), mpmath.diff(scale, V)
        log_slope = float(mpmath.log(slope))
    found, back, found_log_slope, found_slope = (float(x[place]) for x in everything(COORDINATES, 0.6))
    assert found == pytest.approx(float(exact), rel=1e-12)
    assert back == pytest.approx(V, rel=1e-9, abs=1e-9)
    assert found_log_slope == pytest.approx(log_slope, rel=1e-9, abs=1e-12)
    assert found_slope == pytest.approx(float(slope), rel=1e-9)


def test_the_support_is_that_of_the_coordinate():
    soft = SoftHalfNormal(2.0)
    assert bool(soft.support(0.1))
    assert not bool(soft.support(-0.1))
    assert not bool(soft.support(0.0))
    assert soft.support.lower_bound == 0.0
    assert biject_to(soft.support).size == BEND * 2.0
    assert soft.support == SoftHalfNormal(2.0).support
    assert soft.support != SoftHalfNormal(3.0).support
    assert soft.support != dist.constraints.positive


def test_coordinate_and_support_are_pytrees():
    chart, support = SoftScale(0.6), SoftHalfNormal(2.0).support
    for one in (chart, support):
        leaves, structure = jax.tree.flatten(one)
        assert jax.tree.unflatten(structure, leaves).size == one.size
    assert chart == SoftScale(chart.size)
    assert chart != SoftScale(0.7)
    np.testing.assert_array_equal(jax.jit(lambda s: s.feasible_like(np.zeros(3)))(support), np.full(3, BEND * 2.0))


def test_numpyro_samples_it_by_that_coordinate():
    """The potential in the coordinate is minus the log density and the log slope."""

    def program():
        numpyro.sample("s", SoftHalfNormal(2.0))

    V = np.linspace(-20.0, 12.0, 9)
    found = jax.jit(jax.vmap(lambda v: potential_energy(program, (), {}, {"s": v})))(V)
    s = BEND * 2.0 * np.log1p(np.exp(V))
    expected = stats.halfnorm(scale=2.0).logpdf(s) + np.log(BEND * 2.0) - np.log1p(np.exp(-V))
    np.testing.assert_allclose(found, -expected, rtol=1e-10)


@pytest.mark.long
def test_a_scale_between_nothing_and_much_is_walked_without_divergences(monte_carlo):
    """Of 30 normal numbers whose known errors are as large as the scale; the posterior by quadrature."""
    y = np.random.default_rng(2).normal(0.0, np.sqrt(1.0 + 0.5**2), 30)

    def program():
        s = numpyro.sample("s", SoftHalfNormal(1.0))
        numpyro.sample("y", dist.Normal(0.0, (1.0 + s**2) ** 0.5).expand([30]).to_event(1), obs=y)

    fit = hbm.sample(program, seed=seed(1), progress=False)
    # The logarithm of the scale has dozens.
    assert fit.verdict.num_divergences < 10
    grid = np.linspace(1e-4, 5.0, 4000)
    log = -0.5 * grid**2 + stats.norm.logpdf(y[:, None], scale=np.sqrt(1.0 + grid**2)).sum(axis=0)
    cdf = np.cumsum(np.exp(log - log.max()))
    draws = fit.posterior["s"].to_numpy()
    for level in (0.1, 0.5, 0.9):
        quantile = np.interp(level, cdf / cdf[-1], grid)
        monte_carlo.share(draws < quantile, level, expected_error=0.001, name=f"quantile {level}")
