"""How centred latents are sampled and where searches begin: what data say of each element, by plain NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logsumexp, ndtr

from hbm_jax.data import RegressionData
from hbm_jax.models.partial_centering import (
    centring_weight,
    centring_weight_from_estimates,
    centring_weight_of_informative,
    slopes_of_groups,
)
from hbm_jax.models.regression.families import centre_of, working
from hbm_jax.models.regression.group_effects import group_centring_weights

RNG = np.random.default_rng(6)


def expected_form_of(estimates, information):
    """Centredness at the 1 per cent quantile of the scale, the mean of the population integrated out by a fine sum."""
    estimates, information = np.asarray(estimates), np.maximum(information, 1e-12)
    variance = 1.0 / information
    about = (estimates - estimates.mean()) ** 2
    largest = 2.0 * max(np.sqrt((information * about).sum() / information.sum()), 1e-3)
    scales = largest * (np.arange(60) + 0.5) / 60
    mu = np.linspace(estimates.min() - 20.0, estimates.max() + 20.0, 6001)[:, None]
    log = np.array([logsumexp(stats.norm.logpdf(estimates, mu, np.sqrt(t**2 + variance)).sum(1)) for t in scales])
    weights = np.exp(log - logsumexp(log))
    t = scales[np.searchsorted(weights.cumsum(), 0.01)]
    return t**2 / (t**2 + variance), np.exp(weights @ np.log(scales))


def test_the_weight_is_the_fraction_of_the_prior_variance_that_data_remove():
    information = np.array([[0.0, 0.5], [4.0, 1e6]])
    c, scale = centring_weight(information, 0.7)
    np.testing.assert_allclose(c, 0.49 / (0.49 + 1.0 / np.maximum(information, 1e-300)), rtol=1e-12, atol=1e-15)
    assert scale == 0.7
    c, scale = centring_weight(information, 0.7, few=True)
    each = [centring_weight(information, t)[0] for t in 0.7 * np.linspace(0.05, 1.95, 20)]
    np.testing.assert_allclose(c, np.mean(each, axis=0), rtol=1e-12)
    assert scale == 0.7
    assert centring_weight(np.array([-1.0]), 1.0)[0] == 0.0


def test_the_scale_is_what_estimates_say_of_it():
    information = np.array([100.0, 30.0, 8.0, 50.0, 2.0, 25.0, 60.0])
    estimates = np.array([0.3, -0.8, 1.5, 0.2, 2.0, -1.1, 0.9])
    for found in (
        centring_weight_from_estimates(estimates, information),
        centring_weight_from_estimates(estimates + 3.0, information),
    ):
        expected = expected_form_of(estimates, information)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
        assert found[1] == pytest.approx(expected[1], rel=1e-4)
    some = np.array([True, True, False, True, False, True, True])
    c, scale = centring_weight_of_informative(estimates, information, some)
    expected = centring_weight_from_estimates(estimates[some], information[some])
    np.testing.assert_array_equal(c[some], expected[0])
    assert (c[~some] == 0.0).all()
    assert scale == expected[1]
    two = np.arange(7) < 2
    c, scale = centring_weight_of_informative(estimates, information, two)
    np.testing.assert_array_equal(c, centring_weight(np.where(two, information, 0.0), 0.3, few=True)[0])
    assert scale == 0.3


def test_slopes_of_groups_are_least_squares_less_the_variances_of_errors():
    used = np.arange(8) < np.array([8, 5, 2, 6])[:, None]
    x, y = RNG.normal(3.0, 2.0, (4, 8, 2)), RNG.normal(size=(4, 8))
    noise = RNG.uniform(0.05, 0.2, (4, 8, 2))
    found = slopes_of_groups(x, y, noise, used)
    left, freedom, squares = [], 0, 0.0
    for j in range(4):
        dx, dy = x[j, used[j]] - x[j, used[j]].mean(axis=0), y[j, used[j]] - y[j, used[j]].mean()
        n = used[j].sum()
        square, product = dx.T @ dx, dx.T @ dy
        np.testing.assert_allclose(found.product[j], product, rtol=1e-10)
        left.append((dy @ dy - product**2 / np.diagonal(square)).min())
        freedom, squares = freedom + max(n - 2, 0), squares + (dy @ dy)
        if n > 2:
            np.testing.assert_allclose(found.square[j][0, 1], square[0, 1], rtol=1e-10)
            true = np.diagonal(square) - noise[j, used[j]].mean(axis=0) * (n - 1)
            np.testing.assert_allclose(np.diagonal(found.square[j]), true, rtol=1e-10)
    variance = max(sum(left) / freedom, 1e-6 * squares / 32)
    np.testing.assert_allclose(found.weight, np.where([[1], [1], [0], [1]], 1.0 / variance, 0.0) + np.zeros((4, 2)))
    own = found.likelihood(1, [np.full(4, 0.7), None])
    np.testing.assert_allclose(
        own.estimate, (found.product[:, 1] - 0.7 * found.square[:, 1, 0]) / found.square[:, 1, 1], rtol=1e-12
    )
    np.testing.assert_allclose(own.information, found.square[:, 1, 1] * found.weight[:, 1], rtol=1e-12)


@pytest.mark.parametrize("link", ["log", "logit", "probit"])
def test_working_responses_have_the_score_and_the_information_of_the_likelihood(link):
    y, trials = np.array([0.0, 3.0, 7.0, 2.0]), np.array([4.0, 5.0, 9.0, 20.0])
    means = {"log": np.exp, "logit": expit, "probit": ndtr}[link]

    def log_likelihood(eta):
        return stats.poisson.logpmf(y, means(eta)) if link == "log" else stats.binom.logpmf(y, trials, means(eta))

    eta, step = np.array([-0.5, 0.4, 1.0, -1.2]), 1e-5
    response, weights = working(link, y, trials, eta)
    score = (log_likelihood(eta + step) - log_likelihood(eta - step)) / (2 * step)
    np.testing.assert_allclose(weights * (response - eta), score, rtol=1e-7, atol=1e-8)
    slope = (means(eta + step) - means(eta - step)) / (2 * step)
    mean = means(eta)
    information = slope**2 / mean if link == "log" else trials * slope**2 / (mean * (1 - mean))
    np.testing.assert_allclose(weights, information, rtol=1e-8)
    # Without a linear predictor it is that of the data themselves.
    first = np.log(y + 0.5) if link == "log" else {"logit": stats.logistic, "probit": stats.norm}[link].ppf(
        (y + 0.5) / (trials + 1.0)
    )  # fmt: skip
    for found, expected in zip(working(link, y, trials), working(link, y, trials, first), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("identity", 1.5 - 0.2),
        ("log", np.log(1.5) - np.log(np.exp([0.1, 0.3]).mean())),
        ("logit", np.log(0.25 / 0.75) - 0.2),
        ("probit", np.log(0.25 / 0.75) / 1.6 - 0.2),
        ("softmax", 0.0),
    ],
)
def test_the_default_intercept_is_at_the_mean_response(link, expected):
    data = SimpleNamespace(y_mean=np.array(1.5), offset=np.array([0.1, 0.3]), trials=np.array([4.0, 8.0]))
    assert centre_of(link, data) == pytest.approx(expected, rel=1e-12)


def test_effects_of_groups_are_centred_by_what_their_points_say():
    group = np.repeat(np.arange(6), [9, 7, 5, 8, 3, 1])
    x = RNG.normal(size=33)
    y = 2.0 + 0.5 * x + RNG.normal(0.0, 1.5, 6)[group] + 0.6 * RNG.normal(size=33)
    data = RegressionData.from_columns({"x": x, "y": y, "g": [f"g{j}" for j in group]}, "y ~ x + (1 | g)")
    ((found,),) = group_centring_weights("identity", 2.0, data)
    design = np.stack([np.ones(33), x], axis=1)
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    count = np.bincount(group)
    mean = np.bincount(group, left) / count
    variance = ((left - mean[group]) ** 2).sum() / (33 - 6)
    expected = expected_form_of(mean / 2.0, 4.0 * count / variance)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    assert found[1] == pytest.approx(2.0 * expected[1], rel=1e-4)


def test_modes_of_a_walk_are_centred_by_what_their_points_say():
    t = np.repeat(np.arange(5), 6)
    y = np.cumsum(RNG.normal(size=5))[t] + 0.3 * RNG.normal(size=30)
    data = RegressionData.from_columns({"y": y, "t": t}, "y ~ 1 + (1 | walk(t))")
    ((found,),) = group_centring_weights("identity", 1.0, data)
    left, modes = y - y.mean(), np.asarray(data.groups[0].modes)[data.groups[0].index]
    count = np.bincount(t)
    mean = np.bincount(t, left) / count
    variance = ((left - mean[t]) ** 2).sum() / 25
    information = (modes**2).sum(axis=0) / variance
    expected = expected_form_of((modes * left[:, None]).sum(axis=0) / variance / information, information)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
