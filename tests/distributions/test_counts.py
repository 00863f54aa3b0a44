"""Counts in channels as a distribution: Poisson without a background, of other counts too, with padding."""

import dataclasses
import re

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


@pytest.mark.parametrize(
    ("name", "options", "mean", "variance"),
    [
        ("wstat", {"ratio": 3.0}, 2.0, 2.0 / 3.0),
        ("pgstat", {"background_error": 0.5}, 6.0, 0.25),
        ("marginal", {"background_error": 0.5}, 6.0, 0.25),
    ],
)
def test_draws_with_a_background_do_not_depend_on_the_counts(name, options, mean, variance, monte_carlo):
    """Of 6 background counts, or a background of 6 with an error; 50 counts would have a most likely one of 10."""
    num, key = 20_000, jax.random.key(seed(3))
    full = {option: np.full(num, value) for option, value in options.items()}
    few, many = (prepare(name, np.full(num, counts), np.full(num, 6.0), **full) for counts in (0.0, 50.0))
    draw = jax.jit(lambda statistic: Counts(np.full(num, 2.5), statistic).sample(key))
    counts = np.asarray(draw(many))
    np.testing.assert_array_equal(counts, draw(few))
    monte_carlo.mean(counts, 2.5 + mean, independent=True, name="mean")
    monte_carlo.std(counts, np.sqrt(2.5 + mean + variance), independent=True, name="standard deviation")


def test_the_caution_for_calibration_is_given_where_errors_of_backgrounds_matter():
    counts = np.full((2, 30), 20.0)

    def caution(name, **options):
        return Counts(counts, prepare(name, counts, np.full((2, 30), 10.0), **options)).calibration_caution

    words = "the statistic pgstat has the most likely background.* can displace posteriors by up to about 0.54 of their"
    assert re.match(words, caution("pgstat", background_error=np.full((2, 30), 3.0)))  # sqrt(60 / 20) 9 / 29
    assert "wstat" in caution("wstat", ratio=1.0)
    for name, options in (
        ("pgstat", {"background_error": np.full((2, 30), 0.3)}),
        ("wstat", {"ratio": 100.0}),
        ("marginal", {"ratio": 1.0}),
        ("marginal", {"background_error": np.full((2, 30), 3.0)}),
    ):
        assert not caution(name, **options)
    assert not Counts(EXPECTED, STATISTIC).calibration_caution
    # A traced background may have errors that matter.
    text = []

    def traced(background):
        statistic = dataclasses.replace(
            prepare("pgstat", counts, background_error=1.0, background=10.0), background_error=background
        )
        text.append(Counts(counts, statistic).calibration_caution)
        return background

    jax.eval_shape(traced, counts)
    assert "can displace posteriors, so that ranks" in text[0]


def test_several_draws_at_once_are_refused():
    with pytest.raises(NotImplementedError, match="one sample at a time"):
        Counts(EXPECTED, STATISTIC).sample(None, (2,))
    assert Counts(EXPECTED, STATISTIC).batch_shape == (3, 4)
