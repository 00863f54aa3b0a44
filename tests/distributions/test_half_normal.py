"""The half normal prior in its own coordinate: same density, same draws, and what the coordinate is for."""

import jax
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.transforms import biject_to
from numpyro.infer.util import potential_energy
from scipy import stats

import hbm_jax as hbm
from hbm_jax.distributions import SoftHalfNormal
from hbm_jax.distributions.half_normal import BEND, SoftScale

CHART = SoftScale(0.6)


@pytest.mark.parametrize("V", [-300.0, -30.0, -3.0, -0.5, 0.0, 0.8, 5.0, 30.0, 1000.0])
def test_formula_inverse_and_slope_are_those_of_many_digits(V):
    with mpmath.workdps(450):

        def scale(x):
            return mpmath.mpf(0.6) * mpmath.log1p(mpmath.exp(x))

        exact, slope = scale(mpmath.mpf(V)), mpmath.diff(scale, V)
        log_slope = float(mpmath.log(slope))
    assert float(CHART(V)) == pytest.approx(float(exact), rel=1e-12)
    assert float(CHART.inv(CHART(V))) == pytest.approx(V, rel=1e-9, abs=1e-9)
    assert float(CHART.log_abs_det_jacobian(V, CHART(V))) == pytest.approx(log_slope, rel=1e-9, abs=1e-12)
    assert float(jax.grad(CHART)(V)) == pytest.approx(float(slope), rel=1e-9)


def test_density_and_draws_are_those_of_a_half_normal():
    soft = SoftHalfNormal(2.0)
    x = np.linspace(0.01, 8.0, 30)
    np.testing.assert_allclose(soft.log_prob(x), stats.halfnorm(scale=2.0).logpdf(x), rtol=1e-12)
    draws = np.asarray(soft.sample(jax.random.key(0), (4000,)))
    assert stats.kstest(draws, stats.halfnorm(scale=2.0).cdf).pvalue > 1e-3
    assert bool(soft.support(0.1))
    assert not bool(soft.support(-0.1))
    assert biject_to(soft.support).size == BEND * 2.0


def test_numpyro_samples_it_by_that_coordinate():
    """The potential in the coordinate is minus the log density and the log slope."""

    def program():
        numpyro.sample("s", SoftHalfNormal(2.0))

    V = np.linspace(-20.0, 12.0, 9)
    found = [float(potential_energy(program, (), {}, {"s": v})) for v in V]
    s = BEND * 2.0 * np.log1p(np.exp(V))
    expected = stats.halfnorm(scale=2.0).logpdf(s) + np.log(BEND * 2.0) - np.log1p(np.exp(-V))
    np.testing.assert_allclose(found, -expected, rtol=1e-10)


def test_a_scale_between_nothing_and_much_is_walked_without_divergences():
    """Of 30 normal numbers whose known errors are as large as the scale; the posterior by quadrature."""
    y = np.random.default_rng(2).normal(0.0, np.sqrt(1.0 + 0.5**2), 30)

    def program():
        s = numpyro.sample("s", SoftHalfNormal(1.0))
        numpyro.sample("y", dist.Normal(0.0, (1.0 + s**2) ** 0.5).expand([30]).to_event(1), obs=y)

    fit = hbm.sample(program, seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    grid = np.linspace(1e-4, 5.0, 4000)
    log = -0.5 * grid**2 + stats.norm.logpdf(y[:, None], scale=np.sqrt(1.0 + grid**2)).sum(axis=0)
    cdf = np.cumsum(np.exp(log - log.max()))
    quantiles = np.interp([0.1, 0.5, 0.9], cdf / cdf[-1], grid)
    found = np.quantile(fit.posterior["s"].to_numpy(), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(found, quantiles, rtol=0.12)
