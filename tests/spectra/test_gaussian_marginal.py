"""A background with Gaussian errors integrated out: against adaptive integrals by SciPy."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import integrate, stats

from hbm_jax.spectra import goodness_of_fit, prepare
from hbm_jax.spectra.statistics.goodness import drawn_data

# Counts, expected source counts, measured background and its error: faint and bright, errors from small to large,
# backgrounds measured as negative, and most likely backgrounds up to four standard deviations from the measured ones.
CASES = [
    (0, 0.0, 0.3, 0.5),
    (0, 2.0, 5.0, 2.0),
    (3, 1.0, 1.0, 1.0),
    (3, 0.0, 0.01, 0.2),
    (1, 0.5, -1.0, 1.0),
    (0, 0.5, -30.0, 10.0),
    (5, 1.0, -8.0, 1.0),
    (12, 4.0, 4.0, 0.05),
    (130, 30.0, 95.0, 3.0),
    (60, 30.0, 95.0, 12.0),
    (1000, 100.0, 1000.0, 100.0),
    (0, 1.0, 100.0, 100.0),
    (10_400, 300.0, 10_000.0, 30.0),
    (10_000, 0.0, 9_000.0, 300.0),
]
COUNTS, EXPECTED, BACKGROUND, ERROR = np.array(CASES, float).T


def log_integral(S, mu, b0, s):
    """Log of the integral over b >= 0, relative to the largest integrand."""
    b = np.linspace(max(b0 - 60 * s, 0.0), max(b0, 0.0) + 60 * s, 20_001)
    density = stats.truncnorm(-b0 / s, np.inf, loc=b0, scale=s)

    def log_integrand(x):
        return stats.poisson.logpmf(S, mu + x) + density.logpdf(x)

    values = np.array(log_integrand(b))
    largest = values.max()
    inside = b[values > largest - 60.0]
    ends = max(inside[0] - (b[1] - b[0]), 0.0), inside[-1]
    parts, error = integrate.quad_vec(
        lambda cell: np.exp(log_integrand(ends[0] + (np.arange(40) + cell) * np.ptp(ends) / 40) - largest), 0.0, 1.0,
        epsabs=0, epsrel=1e-11,
    )  # fmt: skip
    assert error < 1e-9 * np.linalg.norm(parts)
    return largest + np.log(parts.sum() * np.ptp(ends) / 40)


def test_the_likelihood_is_the_integral_over_the_background():
    statistic = prepare("marginal", COUNTS, BACKGROUND, background_error=ERROR)
    found = jax.jit(lambda mu: statistic.log_likelihood(mu))(EXPECTED)
    np.testing.assert_allclose(found, [log_integral(*case) for case in CASES], rtol=0, atol=1e-7)
    # Other counts have the same nodes.
    others = np.round(COUNTS + np.sqrt(COUNTS + ERROR**2))
    found = jax.jit(lambda counts: statistic.with_counts(counts).log_likelihood(EXPECTED))(others)
    expected = [log_integral(S, *case[1:]) for S, case in zip(others[::4], CASES[::4], strict=True)]
    np.testing.assert_allclose(found[::4], expected, rtol=0, atol=1e-7)


def test_the_gradient_is_that_of_the_likelihood():
    statistic = prepare("marginal", COUNTS, BACKGROUND, background_error=ERROR)
    mu = EXPECTED + 0.5
    log_likelihood = jax.jit(statistic.log_likelihood)
    slope = jax.jit(jax.grad(lambda mu: statistic.log_likelihood(mu).sum()))(mu)
    up, down = (np.asarray(log_likelihood(mu + step)) for step in (1e-4, -1e-4))
    np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-5, atol=1e-6)


def test_a_known_background_is_added_to_the_source():
    statistic = prepare("marginal", [3.0, 0.0, 7.0], [2.0, 0.0, 4.0], background_error=[0.0, 0.0, 1e-7])
    found = statistic.log_likelihood(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found, stats.poisson.logpmf([3, 0, 7], [3.0, 2.0, 7.0]), rtol=1e-9)
    with pytest.raises(ValueError, match=r"marginal: background\[1\]: expected numbers of 0 or more; found -1"):
        prepare("marginal", [3.0, 0.0], [2.0, -1.0], background_error=[0.0, 0.0])
    with pytest.raises(ValueError, match="prior_mean: expected none for a background with Gaussian errors"):
        prepare("marginal", [3.0], [2.0], background_error=[1.0], prior_mean=[1.0])


def test_draws_follow_the_likelihood(monte_carlo):
    # Counts of one channel: the share of each number of counts is its likelihood.
    num, mu, b0, s = 5000, 0.7, 0.3, 0.9
    statistic = prepare("marginal", np.zeros(num), np.full(num, b0), background_error=np.full(num, s))
    expected = np.full(num, mu)
    drawn = np.asarray(jax.jit(lambda key: statistic.draw_counts(key, expected))(jax.random.key(seed(4))))
    by_numpy, _ = drawn_data(statistic, expected[None], np.random.default_rng(seed(5)))
    for counts, name in ((drawn, "JAX"), (by_numpy[0], "NumPy")):
        for number in (0, 1, 3):
            probability = np.exp(log_integral(number, mu, b0, s))
            monte_carlo.share(counts == number, probability, independent=True, name=f"{number} counts, {name}")
    assert 0.0 < goodness_of_fit(statistic, expected, seed=1, num_simulations=20).p_value <= 1.0


@pytest.mark.parametrize(("background", "error", "source"), [(10.0, 3.0, 10.0), (30.0, 5.0, 3.0), (300.0, 8.0, 10.0)])
def test_a_profiled_background_displaces_an_amplitude_as_estimated(background, error, source):
    # Counts at their expectation, so that only the two likelihoods differ.
    num = 30
    counts, data = np.full(num, source + background), np.full(num, background)
    errors = np.full(num, error)
    statistics = [prepare(name, counts, data, background_error=errors) for name in ("pgstat", "marginal")]
    amplitude = np.linspace(0.0, 8.0, 2001)
    moments = []
    for statistic in statistics:
        likelihood = jax.jit(jax.vmap(lambda a, one=statistic: one.log_likelihood(a * np.full(num, source)).sum()))
        log_density = np.asarray(likelihood(amplitude))
        weights = np.exp(log_density - log_density.max())
        mean = np.average(amplitude, weights=weights)
        moments.append((mean, np.sqrt(np.average((amplitude - mean) ** 2, weights=weights))))
    (profiled, _), (integrated, std) = moments
    estimate = statistics[0].displacement_by_profile()
    assert 0.4 < (integrated - profiled) / std / estimate < 1.3
    assert statistics[1].displacement_by_profile() == 0.0
