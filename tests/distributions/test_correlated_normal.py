"""The normal with one decomposition, against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from hbm_jax.distributions import CorrelatedNormal, Offset, ProjectedNormal, projected, whiten

RNG = np.random.default_rng(4)
N, K = 30, 3
ROOT = RNG.normal(size=(N, N))
COVARIANCE = ROOT @ ROOT.T / N + 0.1 * np.diag(RNG.uniform(0.5, 2.0, N))
BASIS = RNG.normal(size=(N, K))
FIXED = RNG.normal(size=N)
THETA = np.array([0.3, -1.0, 0.5])
VALUE = FIXED + BASIS @ THETA + 2.0 + RNG.normal(size=N)
SOME = np.where(np.arange(N) < 12, 1.0, 0.0)
CASES = {
    "everywhere": (np.ones(N), 0.4),
    "of some": (SOME, 0.7),
    "of some, unequally": (SOME * np.linspace(0.5, 2.0, N), 0.7),
    "none": (None, 0.0),
}


def of(weights, scatter, offset=None, theta=THETA):
    whitening = whiten(COVARIANCE, weights)
    return CorrelatedNormal(whitening, FIXED, projected(whitening, BASIS), theta, scatter, offset)


def dense(weights, scatter, scale=0.0):
    total = COVARIANCE + scale**2 * np.ones((N, N))
    return total if weights is None else total + scatter**2 * np.diag(weights)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e3])
def test_density(case, scale):
    weights, scatter = CASES[case]
    mean = FIXED + BASIS @ THETA + 1.5
    expected = multivariate_normal(mean, dense(weights, scatter, scale)).logpdf(VALUE)
    tolerance = 1e-9 if scale < 100 else 1e-6  # the dense one loses digits to the large variance
    offset = Offset(1.5, scale)
    assert float(of(weights, scatter, offset).log_prob(VALUE)) == pytest.approx(expected, rel=tolerance)
    # The same with every part traced, so that nothing is compressed beforehand.
    traced = jax.jit(lambda v, s: of(weights, s, offset).log_prob(v))(VALUE, scatter)
    assert float(traced) == pytest.approx(expected, rel=tolerance)
    inner = of(weights, scatter, offset)
    again = ProjectedNormal(inner.projection, THETA, scatter, offset).log_prob(inner.project(VALUE))
    assert float(again) == pytest.approx(expected, rel=tolerance)


def test_gradient():
    weights, scatter = CASES["of some"]

    def ours(theta, s):
        return of(weights, s, Offset(1.0, 2.0), theta).log_prob(VALUE)

    def plain(theta, s):
        total = jnp.asarray(COVARIANCE) + s**2 * jnp.diag(weights) + 4.0
        return jax.scipy.stats.multivariate_normal.logpdf(VALUE, FIXED + BASIS @ theta + 1.0, total)

    for which in (0, 1):
        np.testing.assert_allclose(
            jax.grad(ours, which)(THETA, scatter), jax.grad(plain, which)(THETA, scatter), rtol=1e-9
        )


def test_each_value_given_all_others():
    weights, scatter = CASES["of some"]
    found = np.asarray(of(weights, scatter, Offset(1.5, 0.8)).log_prob_given_others(VALUE))
    total, mean = dense(weights, scatter, 0.8), FIXED + BASIS @ THETA + 1.5
    for i in (0, 7, 29):
        rest = np.delete(np.arange(N), i)
        together = multivariate_normal(mean, total).logpdf(VALUE)
        without = multivariate_normal(mean[rest], total[np.ix_(rest, rest)]).logpdf(VALUE[rest])
        assert found[i] == pytest.approx(together - without, rel=1e-8)


def test_the_offset_is_drawn_back_and_draws_have_the_covariance():
    weights, scatter = CASES["of some"]
    found = of(weights, scatter, Offset(1.0, 0.8)).offset_given(VALUE)
    precision = np.linalg.inv(dense(weights, scatter))
    weight = precision.sum()
    best = (precision @ (VALUE - FIXED - BASIS @ THETA)).sum() / weight
    variance = 1.0 / (weight + 0.8**-2)
    assert float(found.loc) == pytest.approx(variance * (weight * best + 1.0 * 0.8**-2), rel=1e-9)
    assert float(found.scale) == pytest.approx(variance**0.5, rel=1e-9)
    draws = np.asarray(of(weights, scatter, Offset(1.0, 0.8)).sample(jax.random.key(1), (20_000,)))
    expected = dense(weights, scatter, 0.8)
    pulls = (np.cov(draws.T) - expected) / np.sqrt((expected**2 + np.outer(*[np.diag(expected)] * 2)) / 20_000)
    assert np.abs(pulls).max() < 5.0
    assert 0.8 < pulls.std() < 1.2
    mean = (draws.mean(0) - FIXED - BASIS @ THETA - 1.0) / np.sqrt(np.diag(expected) / 20_000)
    assert np.abs(mean).max() < 4.5


def test_a_decomposition_is_made_once_for_an_array():
    one, other = COVARIANCE.copy(), COVARIANCE.copy()
    assert whiten(one, SOME) is whiten(one, SOME)
    assert whiten(one, SOME) is not whiten(one)
    assert whiten(one) is not whiten(other)
    with pytest.raises(np.linalg.LinAlgError):
        whiten(COVARIANCE - 5.0 * np.eye(N), np.ones(N))
