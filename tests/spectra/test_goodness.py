"""Goodness of fit: p-values of a true and of a wrong model, and the moments of simulated deviances."""

import dataclasses

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats

from hbm_jax.spectra.statistics.goodness import Goodness, drawn_counts, drawn_data, goodness_of_fit
from hbm_jax.spectra.statistics.joint import JointStatistic
from hbm_jax.spectra.statistics.statistic import prepare


def moments_of_c(mu):
    """Mean and variance of Cash's C for mu expected counts, by sums over all counts (Kaastra 2017, A&A 605, A51)."""
    k = np.arange(200.0)
    probability = stats.poisson.pmf(k, mu[:, None])
    c = 2.0 * (mu[:, None] - k + k * np.log(np.maximum(k, 1.0) / mu[:, None]))
    mean = (probability * c).sum(axis=1)
    return mean, (probability * (c - mean[:, None]) ** 2).sum(axis=1)


@pytest.mark.long
def test_p_values_are_uniform_for_the_true_model_and_small_for_a_wrong_one(monte_carlo):
    num, simulations = 100, 400
    rng = np.random.default_rng(seed(11))
    mu = np.broadcast_to(np.geomspace(0.2, 20.0, 10), (num, 10))
    used = np.arange(10) < np.where(np.arange(num) % 2, 10, 8)[:, None]
    statistic = prepare("cstat", rng.poisson(mu).astype(float), used=used)
    true = goodness_of_fit(statistic, mu, seed=seed(1), num_simulations=simulations)
    assert true.p_value.shape == (num,)
    monte_carlo.distribution(true.p_value, "uniform", name="p-values of the true model")
    monte_carlo.p_value(true.total_p_value, name="of all spectra together")
    # The mean and variance of the deviances simulated are the sums of those of the channels.
    mean, variance = (np.where(used, x, 0.0).sum(axis=1) for x in (np.tile(m, (num, 1)) for m in moments_of_c(mu[0])))
    for rows, name in ((slice(0, None, 2), "8 channels"), (slice(1, None, 2), "10 channels")):
        total = true.simulated[:, rows].sum(axis=1)
        monte_carlo.mean(total, mean[rows].sum(), name=name, independent=True)
        monte_carlo.std(total, np.sqrt(variance[rows].sum()), name=name, independent=True)
    # Twice the expected counts: some 4 standard deviations in a spectrum, and ever so many in all together.
    wrong = goodness_of_fit(statistic, 2 * mu, seed=seed(1), num_simulations=simulations)
    assert np.median(wrong.p_value) < 0.1
    assert wrong.total_p_value == 1 / (simulations + 1)


def test_draws_are_taken_in_turn_each_with_its_own_deviance():
    statistic = prepare("wstat", [3, 0, 6], [10, 4, 0], 5.0)
    draws = np.array([[1.0, 0.2, 5.0], [2.0, 0.5, 4.0]])
    found = goodness_of_fit(statistic, draws, seed=2, num_simulations=5)
    expected = np.asarray(jax.jit(lambda one, mu: one.deviance(mu))(statistic, draws)).sum(axis=-1)
    np.testing.assert_allclose(found.observed, expected[[0, 1, 0, 1, 0]], rtol=1e-12)
    assert found.simulated.shape == (5,)
    assert len(set(found.simulated.tolist())) == 5, "each of its own draw"
    again = goodness_of_fit(statistic, draws, seed=2, num_simulations=5)
    np.testing.assert_array_equal(found.simulated, again.simulated)


def test_each_spectrum_of_several_has_its_own_deviance():
    statistic = prepare("cstat", [[3, 0, 6], [1, 2, 0]])
    mu = np.array([[1.0, 0.2, 5.0], [2.0, 0.5, 0.4]])
    found = goodness_of_fit(statistic, mu, seed=2, num_simulations=3)
    expected = np.asarray(jax.jit(lambda one, mu: one.deviance(mu))(statistic, mu)).sum(axis=1)
    np.testing.assert_allclose(found.observed, [expected] * 3, rtol=1e-12)
    assert found.simulated.shape == (3, 2)


def test_the_data_count_as_a_simulation():
    found = Goodness(np.full((4, 2), [5.0, 1.0]), np.array([[1.0, 1.0], [5.0, 2.0], [2.0, 3.0], [6.0, 4.0]]))
    assert found.p_value.tolist() == [3 / 5, 1.0]
    assert found.total_p_value == 3 / 5
    assert repr(found) == "Goodness(4 simulations, 2 spectra, smallest p 0.6)"


@pytest.mark.parametrize(
    ("expected", "num", "message"),
    [
        ([1.0], 9, r"expected an array of shape \(2,\), or one for each draw; found \(1,\)"),
        (np.ones((0, 2)), 9, r"found \(0, 2\)"),
        ([[1.0, 1.0], [1.0, -2.0]], 9, r"expected\[1, 1\]: expected numbers of 0 or more; found -2"),
        ([1.0, np.nan], 9, r"expected\[0, 1\]: expected numbers of 0 or more; found nan"),
        ([1.0, 1.0], 0, "num_simulations: expected 1 or more; found 0"),
    ],
)
def test_errors(expected, num, message):
    with pytest.raises(ValueError, match=message):
        goodness_of_fit(prepare("cstat", [1, 2]), expected, seed=1, num_simulations=num)


@pytest.mark.parametrize(
    ("name", "options", "best", "variance"),
    [
        ("cstat", {}, 0.0, 4.0),
        ("wstat", {"background": 9.0, "ratio": 3.0}, None, None),
        ("pgstat", {"background": 2.0, "background_error": 1e-6}, 2.0, 6.0),
        ("chi2", {"error": 1.5}, 0.0, 2.25),
    ],
)
def test_simulated_data_have_the_moments_of_their_model(name, options, best, variance, monte_carlo):
    arrays = {key: [value] for key, value in options.items()}
    statistic, rng = prepare(name, [6.0], **arrays), np.random.default_rng(seed(3))
    counts, background = drawn_data(statistic, np.full((4000, 1), 4.0), rng)
    if name == "wstat":
        # d ln L / d b = S / (mu + b) + B / b - (1 + ratio) = 0
        best = np.roots([4.0, 4.0 * 4.0 - 6.0 - 9.0, -9.0 * 4.0]).max()
        monte_carlo.mean(background[:, 0], 3.0 * best, name="background", independent=True)
    monte_carlo.mean(counts[:, 0], 4.0 + best, name="mean", independent=True)
    monte_carlo.std(counts[:, 0], np.sqrt(variance or 4.0 + best), name="spread", independent=True)


def test_a_marginal_background_is_drawn_from_its_posterior(monte_carlo):
    statistic = prepare("marginal", [6.0], [9.0], 3.0, prior_mean=[2.0])
    counts, _ = drawn_data(statistic, np.full((4000, 1), 4.0), np.random.default_rng(seed(4)))
    shape, rate = statistic.shape[0], statistic.rate[0]
    monte_carlo.mean(counts[:, 0], 4.0 + shape / rate, name="mean", independent=True)
    variance = 4.0 + shape / rate + shape / rate**2
    monte_carlo.std(counts[:, 0], np.sqrt(variance), name="spread", independent=True)


def test_simulations_in_parts_are_those_drawn_at_once(monkeypatch):
    statistic, expected = prepare("cstat", [3, 0, 2, 7]), [2.0, 1.0, 2.0, 5.0]
    at_once = goodness_of_fit(statistic, expected, seed=3, num_simulations=50)
    monkeypatch.setattr("hbm_jax.spectra.statistics.goodness.CHUNK", 4 * 7)
    in_parts = goodness_of_fit(statistic, expected, seed=3, num_simulations=50)
    np.testing.assert_allclose(in_parts.simulated, at_once.simulated, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "mean", "variance"),
    [
        ("cstat", {}, 4.0, 4.0),
        # A gamma distribution of the background: mean B / ratio, variance B / ratio^2.
        ("wstat", {"background": 9.0, "ratio": 3.0}, 7.0, 8.0),
        ("wstat", {"background": 0.0, "ratio": 3.0}, 4.0, 4.0),
        ("pgstat", {"background": 5.0, "background_error": 1.0}, 9.0, 10.0),
        ("chi2", {"error": 1.5}, 4.0, 2.25),
    ],
)
def test_counts_given_the_background_region_are_drawn_alike_by_numpy_and_jax(
    name, options, mean, variance, monte_carlo
):
    statistic = prepare(name, [6.0], **{key: [value] for key, value in options.items()})
    by_numpy = drawn_counts(statistic, np.full((8000, 1), 4.0), np.random.default_rng(seed(6)))
    keys = jax.random.split(jax.random.key(seed(7)), 8000)
    by_jax = jax.jit(jax.vmap(lambda key: statistic.draw_counts(key, np.array([4.0]))))(keys)
    for label, drawn in (("NumPy", by_numpy), ("JAX", np.asarray(by_jax, float))):
        monte_carlo.mean(drawn[:, 0], mean, name=f"mean, {label}", independent=True)
        monte_carlo.std(drawn[:, 0], np.sqrt(variance), name=f"spread, {label}", independent=True)


def test_counts_of_several_instruments_are_summed_and_padding_has_none():
    part = dataclasses.replace(prepare("cstat", [6.0, 2.0]), used=np.array([True, False]))
    drawn = drawn_counts(JointStatistic.of((part, part)), np.full((4000, 2), 50.0), np.random.default_rng(8))
    assert drawn[:, 0].mean() == pytest.approx(100.0, abs=5 * np.sqrt(100.0 / 4000))
    assert (drawn[:, 1] == 0.0).all()
