"""Counts in channels as a distribution: Poisson without a background, of other counts too, with padding."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.distributions import Counts
from hbm_jax.spectra.statistics.statistic import prepare

RNG = np.random.default_rng(1)
EXPECTED = RNG.uniform(0.5, 8.0, size=(3, 4))
USED = np.array([[True] * 4, [True, True, False, False], [True, True, True, False]])
COUNTS = np.where(USED, RNG.poisson(EXPECTED), 0)
OTHERS = np.where(USED, RNG.poisson(EXPECTED) + 1.0, 0.0)
STATISTIC = prepare("cstat", COUNTS, used=USED)


@jax.jit
def everything(expected, others, number):
    d = Counts(expected, STATISTIC)
    draws = jax.vmap(d.sample)(jax.random.split(jax.random.key(number), 2000))
    return d.log_prob(STATISTIC.counts), d.log_prob(others), d.mean, draws


def test_log_probability_and_draws_are_poisson(monte_carlo):
    own, other, mean, draws = map(np.asarray, everything(EXPECTED, OTHERS, seed(2)))
    for found, counts in ((own, COUNTS), (other, OTHERS)):
        np.testing.assert_allclose(found, np.where(USED, stats.poisson.logpmf(counts, EXPECTED), 0.0), rtol=1e-10)
    np.testing.assert_array_equal(mean, EXPECTED)
    np.testing.assert_array_equal(draws[:, ~USED], 0.0)
    for i in np.argwhere(USED):
        values, rate = draws[(slice(None), *i)], EXPECTED[tuple(i)]
        monte_carlo.mean(values, rate, independent=True, name=f"mean {i}")
        monte_carlo.share(values == 1, stats.poisson.pmf(1, rate), independent=True, name=f"one count {i}")


def test_several_draws_at_once_are_refused():
    with pytest.raises(NotImplementedError, match="one sample at a time"):
        Counts(EXPECTED, STATISTIC).sample(None, (2,))
    assert Counts(EXPECTED, STATISTIC).batch_shape == (3, 4)
