"""Statistics against the formulas of the XSPEC manual, SciPy's densities."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import optimize, stats
from sums import log_marginal

from hbm_jax.spectra.statistics.kernels import cash, gaussian_background, profiled_background
from hbm_jax.spectra.statistics.marginal import background_integral, background_posterior, marginal_background
from hbm_jax.spectra.statistics.statistic import STATISTICS, prepare

# Of every statistic, one program.
log_likelihoods = jax.jit(lambda every, mu: {name: one.log_likelihood(mu) for name, one in every.items()})
best_of_w = jax.jit(lambda *x: profiled_background(*x)[1])
best_of_pg = jax.jit(lambda *x: gaussian_background(*x)[1])
LONG = np.longdouble  # the manual's forms cancel; 19 digits leave 10 to compare


def cases(*axes):
    return [x.ravel() for x in np.meshgrid(*(np.asarray(a, float) for a in axes), indexing="ij")]


def textbook_c(S, mu):
    S, mu = LONG(S), LONG(mu)
    return 2 * mu if S == 0 else 2 * (mu - S + S * (np.log(S) - np.log(mu)))


def textbook_w(S, m, B, r):
    """XSPEC manual, appendix B, for t_s = 1 and t_b = r; with dW/dm at fixed background, which is all of it."""
    S, m, B, r = (LONG(x) for x in (S, m, B, r))
    if S == 0:
        W = 2 * (m - (B * np.log(r / (1 + r)) if B > 0 else 0))
        return W, 2.0
    if B == 0:
        if m < S / (1 + r):
            return 2 * (-r * m - S * np.log(1 / (1 + r))), -2 * r
        return 2 * (m + S * (np.log(S) - np.log(m) - 1)), 2 * (1 - S / m)
    d = np.sqrt(((1 + r) * m - S - B) ** 2 + 4 * (1 + r) * B * m)
    f = (S + B - (1 + r) * m + d) / (2 * (1 + r))
    W = m + (1 + r) * f - S * np.log(m + f) - B * np.log(r * f) - S * (1 - np.log(S)) - B * (1 - np.log(B))
    return 2 * W, 2 * (1 - S / (m + f))


def textbook_pg(S, m, B, sigma):
    """XSPEC manual, appendix B, for t_s = t_b = 1, as long as mu + b is positive; and its derivative."""
    S, m, B, sigma = (LONG(x) for x in (S, m, B, sigma))
    if S == 0:
        return 2 * (m + B - sigma**2 / 2), 2.0
    d = np.sqrt((sigma**2 - B + m) ** 2 - 4 * (sigma**2 * m - S * sigma**2 - B * m))
    f = (-(sigma**2 - B + m) + d) / 2
    PG = m + f - S * np.log(m + f) + (B - f) ** 2 / (2 * sigma**2) - S * (1 - np.log(S))
    return 2 * PG, 2 * (1 - S / (m + f))


def values_and_slopes(function, *arguments):
    """Value, reverse and forward derivative in mu, all channels in one program."""

    @jax.jit
    def all_three(mu, *others):
        def one(mu, *others):
            return function(mu, *others)

        value, reverse = jax.vmap(jax.value_and_grad(one))(mu, *others)
        return value, reverse, jax.vmap(jax.jacfwd(one))(mu, *others)

    return [np.asarray(x) for x in all_three(*arguments)]


def test_c_of_the_manual():
    S, mu = cases([0, 1, 2.5, 40, 1e4], [1e-8, 0.3, 1, 40, 9999, 1e6])
    value, reverse, forward = values_and_slopes(lambda m, S: cash(S, m), mu, S)
    expected = [float(textbook_c(*one)) for one in zip(S, mu, strict=True)]
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(reverse, 2 * (1 - S / mu), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12, atol=1e-12)


def test_w_of_the_manual_in_every_branch():
    S, mu, B, r = cases([0, 1, 3, 60, 5000], [0, 1e-6, 0.5, 2, 59, 6000], [0, 1, 7, 4000], [0.05, 1, 5, 300])
    # On the border between the branches without background, and between those of nothing observed.
    edge_S, edge_r = cases([1, 3, 60], [0.05, 1, 5, 300])
    S, B, r = np.append(S, edge_S), np.append(B, 0 * edge_S), np.append(r, edge_r)
    mu = np.append(mu, edge_S / (1 + edge_r))
    value, reverse, forward = values_and_slopes(lambda m, *x: profiled_background(x[0], m, *x[1:])[0], mu, S, B, r)
    W, slope = np.array([textbook_w(*one) for one in zip(S, mu, B, r, strict=True)], dtype=float).T
    np.testing.assert_allclose(value, W, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(reverse, slope, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-8)


def test_pg_of_the_manual_and_where_it_would_go_below_zero():
    S, mu, B, sigma = cases([0, 1, 6, 3000], [0, 0.2, 5, 2800], [-3, 0, 0.5, 6, 300], [0, 0.1, 1, 2.5, 40])
    value, reverse, forward = values_and_slopes(lambda m, *x: gaussian_background(x[0], m, *x[1:])[0], mu, S, B, sigma)
    np.testing.assert_array_equal(np.isnan(value), (sigma == 0) & (mu + B < 0))
    known = (sigma == 0) & (mu + B > 0)
    expected = [float(textbook_c(*one)) for one in zip(S[known], (mu + B)[known], strict=True)]
    np.testing.assert_allclose(value[known], expected, rtol=1e-10, atol=1e-10)
    inside = (sigma > 0) & ((S > 0) | (mu + B - sigma**2 > 0))
    PG, slope = np.array(
        [textbook_pg(*one) for one in zip(S[inside], mu[inside], B[inside], sigma[inside], strict=True)], dtype=float
    ).T
    np.testing.assert_allclose(value[inside], PG, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(reverse[inside], slope, rtol=1e-7, atol=1e-7)
    # Nothing observed and less than nothing best: mu + b = 0.
    at_zero = (sigma > 0) & (S == 0) & (mu + B - sigma**2 <= 0)
    distance = (mu + B)[at_zero] / sigma[at_zero]
    np.testing.assert_allclose(value[at_zero], distance**2, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reverse[at_zero], 2 * distance / sigma[at_zero], rtol=1e-10, atol=1e-10)
    finite = np.isfinite(value)
    np.testing.assert_allclose(forward[finite], reverse[finite], rtol=1e-9, atol=1e-9)
    # Held at nothing: S = 0 costs nothing, any count is impossible.
    nothing = (sigma == 0) & (mu + B == 0)
    np.testing.assert_array_equal(value[nothing], np.where(S[nothing] == 0, 0.0, np.inf))


def test_second_derivative_of_pg_is_that_of_its_quadratic_equation():
    """t^2 - p t - sigma^2 S = 0 gives dt/dmu = t / (2 t - p), and dD/dmu = 2 (1 - S / t)."""
    S, mu, B, sigma = np.array(
        [[1.0, 7.0, 300.0, 4.0], [0.5, 3.0, 200.0, 1e-3], [0.2, 5.0, 90.0, 3.0], [0.7, 2.0, 9.0, 4.0]]
    )
    p = mu + B - sigma**2
    t = 0.5 * (p + np.sqrt(p**2 + 4.0 * sigma**2 * S))
    slope = jax.grad(lambda m, *x: gaussian_background(x[0], m, *x[1:])[0])
    curvature = jax.jit(jax.vmap(jax.grad(slope)))(mu, S, B, sigma)
    np.testing.assert_allclose(curvature, 2.0 * S / t**2 * t / (2.0 * t - p), rtol=1e-9)


def test_best_backgrounds_are_where_the_likelihood_is_largest():
    S, mu, B, r = (np.array(x, float) for x in ([3, 8, 1], [1.2, 0.1, 6.0], [2, 1, 9], [4.0, 0.5, 1.0]))
    of_w, of_pg = best_of_w(S, mu, B, r), best_of_pg(S, mu, B, r)

    def best(function):
        return optimize.minimize_scalar(function, bounds=(1e-6, 50), method="bounded", options={"xatol": 1e-10}).x

    logpmf = stats.poisson.logpmf
    for i, m in enumerate(mu):
        w = best(lambda b, i=i, m=m: -logpmf(S[i], m + b) - logpmf(B[i], r[i] * b))
        pg = best(lambda b, i=i, m=m: -logpmf(S[i], m + b) - stats.norm.logpdf(B[i], b, r[i]))
        assert float(of_w[i]) == pytest.approx(w, abs=1e-6)
        assert float(of_pg[i]) == pytest.approx(pg, abs=1e-6)


def test_outside_the_domain():
    integral = background_integral([2.0], [1.0], [1.0])

    @jax.jit
    def all_of(m):
        return (
            cash(2.0, m),
            profiled_background(2.0, m, 3.0, 1.0)[0],
            gaussian_background(2.0, m, 3.0, 1.0)[0],
            marginal_background(m, integral)[0],
        )

    assert np.isnan(all_of(-0.1)).all()
    np.testing.assert_allclose(all_of(0.1)[0], 2.0 * (0.1 - 2.0 + 2.0 * np.log(2.0 / 0.1)), rtol=1e-12)
    assert np.isfinite(all_of(0.1)).all()
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(cash, argnums=1)))(np.array([1.0, 0.0]), np.zeros(2))
    np.testing.assert_array_equal(value, [np.inf, 0.0])
    assert slope[1] == 2.0


def test_log_likelihoods_are_normalised():
    S, B, r = np.array([0.0, 3, 12, 5]), np.array([4.0, 0, 9, 1]), np.array([5.0, 2, 0.5, 3])
    mu, error = np.array([0.7, 2.0, 4.0, 6.0]), np.array([1.0, 0.5, 3.0, 0.0])
    logpmf, normal = stats.poisson.logpmf, stats.norm.logpdf
    best, held = np.asarray(best_of_w(S, mu, B, r)), np.asarray(best_of_pg(S, mu, B / r, error / r))
    shape, rate = background_posterior(B, r, prior_mean=np.full(4, 2.0))
    of_error = np.where(error > 0, normal(B / r, held, np.where(error > 0, error, r) / r), 0.0)
    behind, net = B / r**2, S - B / r
    gehrels = (1 + np.sqrt(S + 0.75)) ** 2 + np.where(B > 0, (1 + np.sqrt(B + 0.75)) ** 2, 0) / r**2
    expected = {
        "cstat": logpmf(S, mu),
        "wstat": logpmf(S, mu + best) + logpmf(B, r * best),
        "pgstat": logpmf(S, mu + held) + of_error,
        "marginal": [log_marginal(*one) for one in zip(S, mu, shape, rate, strict=True)],
        "chi2": normal(S, mu, S + 2.0),
        "chi2_gehrels": normal(net, mu, np.sqrt(gehrels)),
        "chi2_data": normal(net, mu, np.sqrt(np.maximum(S, 1) + behind)),
        "chi2_model": normal(net, mu, np.sqrt(mu + B / r + behind)),
    }
    every = catalogue(S, B, r, error)
    found = log_likelihoods(every, mu)
    for name in STATISTICS:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, err_msg=name)
        assert repr(every[name]) == f"Statistic({name}, (4,))"


def catalogue(S, B, r, error, **options):
    """Every statistic of the same data."""
    found = {}
    for name in STATISTICS:
        given = {} if name in ("cstat", "chi2") else {"background": B, "ratio": r}
        given |= {"error": np.asarray(S) + 2.0} if name == "chi2" else {}
        given |= {"background_error": error} if name == "pgstat" else {}
        given |= {"prior_mean": np.full(np.shape(S), 2.0)} if name == "marginal" else {}
        found[name] = prepare(name, S, **given, **options)
    return found


def test_padding_counts_for_nothing_and_empty_channels_can_be_added_up():
    S, B = np.array([[0.0, 4, 0], [0, np.nan, -3]]), np.array([[3.0, 0, 0], [2, np.nan, -1]])
    r, error = np.array([[2.0, 5, 1], [3, np.nan, 0]]), np.array([[1.0, 1, 2], [1, np.nan, -1]])
    used = np.array([[True, True, True], [True, False, False]])
    every = catalogue(S, B, r, error, used=used)
    mu = np.array([[0.4, 1.0, 0.9], [1.5, np.nan, -1.0]])

    @jax.jit
    def both(every, mu):
        def total(mu, one):
            value = one.log_likelihood(mu)
            return value.sum(), (value, one.deviance(mu))

        return {name: jax.value_and_grad(total, has_aux=True)(mu, one) for name, one in every.items()}

    for name, ((_, (value, deviance)), slope) in both(every, mu).items():
        for array in (value, deviance, slope):
            assert (np.asarray(array)[~used] == 0).all(), name
            assert np.isfinite(array).all(), name
        if name in ("cstat", "wstat", "marginal"):  # log likelihoods that are linear in mu without counts
            np.testing.assert_allclose(np.asarray(slope)[used & (S == 0)], -1.0, rtol=1e-15)


def test_gradients_evaluate_no_gamma_function():
    one = np.array([3.0, 0.0])
    for name, statistic in catalogue(one, one, one + 1, one + 1).items():
        program = str(jax.make_jaxpr(jax.grad(lambda mu, s=statistic: s.log_likelihood(mu).sum()))(one + 1.0))
        assert "lgamma" not in program, name


@pytest.mark.long
def test_draws_have_the_moments_of_their_distributions(monte_carlo):
    num = 20_000
    S, B, r, mu = np.full(num, 4.0), np.full(num, 6.0), np.full(num, 3.0), np.full(num, 2.5)
    every = catalogue(S, B, r, np.full(num, 1.5))

    @jax.jit
    def draw(every, mu, number):
        return {n: s.draw(jax.random.key(number), mu) for n, s in every.items()}

    drawn = draw(every, mu, seed(3))
    of_w = float(best_of_w(4.0, 2.5, 6.0, 3.0))
    of_pg = float(best_of_pg(4.0, 2.5, 2.0, 0.5))
    a, b = background_posterior(np.array([6.0]), 3.0, prior_mean=np.array([2.0]))
    expected = {
        "cstat": (2.5, 2.5),
        "wstat": (2.5 + of_w, 2.5 + of_w),
        "pgstat": (2.5 + of_pg, 2.5 + of_pg),
        "marginal": (2.5 + (a / b).item(), 2.5 + (a / b + a / b**2).item()),
        "chi2": (2.5, 36.0),
        "chi2_gehrels": (2.5, every["chi2_gehrels"].variance[0]),
        "chi2_data": (2.5, 4 + 6 / 9),
        "chi2_model": (2.5, 2.5 + 2 + 6 / 9),
    }

    def close(x, mean, variance, name):
        monte_carlo.mean(np.asarray(x), mean, name=name, independent=True)
        monte_carlo.std(np.asarray(x), np.sqrt(variance), name=name, independent=True)

    for name, (mean, variance) in expected.items():
        close(drawn[name].counts, mean, variance, name)
    close(drawn["wstat"].background, 3 * of_w, 3 * of_w, "background of W")
    close(drawn["pgstat"].background, of_pg, 0.25, "background of PG")
    np.testing.assert_array_equal(drawn["marginal"].background, B)
    # Of what is drawn the likelihood is that of other data.
    found = log_likelihoods(drawn, mu)
    counts = {name: np.asarray(one.counts) for name, one in drawn.items()}
    np.testing.assert_allclose(found["cstat"], stats.poisson.logpmf(counts["cstat"], mu), rtol=1e-11)
    behind, logpmf = np.asarray(drawn["wstat"].background), stats.poisson.logpmf
    best = np.asarray(best_of_w(counts["wstat"], mu, behind, r))
    of_both = logpmf(counts["wstat"], mu + best) + logpmf(behind, r * best)
    np.testing.assert_allclose(found["wstat"], of_both, rtol=1e-10)
    # Prepared for 4 counts, the series has powers up to 7.
    few = np.flatnonzero(counts["marginal"] <= 7)[:20]
    one = every["marginal"]
    given = (counts["marginal"][few], mu[few], np.asarray(one.shape)[few], np.asarray(one.rate)[few])
    some = [log_marginal(*case) for case in zip(*given, strict=True)]
    np.testing.assert_allclose(found["marginal"][few], some, rtol=1e-9)
    normal = stats.norm.logpdf(counts["chi2_data"], mu, np.sqrt(4 + 6 / 9))
    np.testing.assert_allclose(found["chi2_data"], normal, rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cash", {}, r"unknown statistic 'cash' \(did you mean 'cstat'\?\)"),
        ("wsat", {}, r"unknown statistic 'wsat' \(did you mean 'wstat'\?\): expected one of cstat, wstat"),
        ("wstat", {}, "wstat: background: expected one number for each channel; found none"),
        ("pgstat", {"background": 1.0}, "pgstat: background_error: expected one number for each channel; found none"),
        ("cstat", {"background": 1.0}, "cstat: background: expected none; found one. Use wstat"),
        ("wstat", {"background": [1.0, 2, 3]}, r"wstat: background: expected the shape .*\(2,\); found \(3,\)"),
        ("wstat", {"background": [1.0, -2]}, r"wstat: background\[1\]: expected numbers of 0 or more; found -2"),
        ("wstat", {"background": 1.0, "ratio": [1, 0]}, r"wstat: ratio\[1\]: expected positive numbers; found 0"),
        ("wstat", {"background": 1.0, "prior_mean": 1.0}, "wstat: prior_mean: expected none; found one"),
        ("chi2_data", {"background_error": 1.0}, "chi2_data: background_error: expected none; found one. Use pgstat"),
        ("marginal", {"counts": [0.5, 1], "background": 1.0}, r"counts\[0\]: expected whole numbers of 0 or more"),
        ("cstat", {"used": [True]}, r"cstat: used: expected the shape of the counts, \(2,\); found \(1,\)"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, **({"counts": [1.0, 2.0]} | options))
