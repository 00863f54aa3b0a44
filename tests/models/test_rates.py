"""Rates of groups: marginal counts against quadrature, rates drawn back, textbook values."""

import numpy as np
import pytest
from numpyro import handlers
from scipy import integrate, stats

import hbm_jax as hbm
from hbm_jax.data import DataError, read_regression
from hbm_jax.models import Rates
from hbm_jax.plotting import coefficients, shrinkage
from hbm_jax.registry import of_fit


def pumps():
    return read_regression(hbm.data.load_example("pumps"), formula="failures ~ 1", exposure="time", name="pump")


def tumours():
    return read_regression(hbm.data.load_example("rat_tumor"), formula="tumors ~ 1", trials="rats")


def observed(model, data, recover=False, **values):
    seeded = handlers.substitute(handlers.seed(model, 0), data=values)
    return handlers.trace(seeded).get_trace(data, recover=recover)


def test_the_rates_are_integrated_out():
    data = pumps()
    sites = observed(Rates(family="poisson", parameters="shape"), data, alpha=0.7, beta=0.9)
    found = np.exp(np.asarray(sites["observed"]["fn"].log_prob(sites["observed"]["value"])))
    time = np.exp(data.offset)
    for j in range(10):
        expected = integrate.quad(
            lambda r, j=j: stats.poisson.pmf(data.y[j], r * time[j]) * stats.gamma.pdf(r, 0.7, scale=1 / 0.9), 0, np.inf
        )[0]
        assert found[j] == pytest.approx(expected, rel=1e-6)
    data = tumours().subset(np.arange(60, 71))
    sites = observed(Rates(), data, mean=0.15, dispersion=0.3)
    found = np.exp(np.asarray(sites["observed"]["fn"].log_prob(sites["observed"]["value"])))
    total = 0.3**-2
    for j in range(11):
        expected = integrate.quad(
            lambda r, j=j: stats.binom.pmf(data.y[j], data.trials[j], r)
            * stats.beta.pdf(r, 0.15 * total, 0.85 * total), 0, 1
        )[0]  # fmt: skip
        assert found[j] == pytest.approx(expected, rel=1e-6)


def exact_pumps(points=200):
    """Posterior of alpha and beta of the pumps on a grid, and the mean rates."""
    data = pumps()
    time, y = np.exp(data.offset), np.asarray(data.y)
    a, b = np.meshgrid(np.geomspace(0.05, 4.0, points), np.geomspace(0.01, 8.0, points), indexing="ij")
    log = stats.expon.logpdf(a) + stats.gamma.logpdf(b, 0.1) + np.log(a) + np.log(b)
    for t, k in zip(time, y, strict=True):
        log += stats.nbinom.logpmf(k, a, b / (b + t))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    rate = [float((weights * (a + k) / (b + t)).sum()) for t, k in zip(time, y, strict=True)]
    return float((weights * a).sum()), float((weights * b).sum()), np.array(rate)


def test_pumps_as_published():
    """George, Makov & Smith 1993; the BUGS examples give alpha 0.70, beta 0.93, rates 0.060 ... 1.99."""
    alpha, beta, rate = exact_pumps()
    assert (alpha, beta) == pytest.approx((0.70, 0.93), abs=0.02)
    published = [0.060, 0.102, 0.089, 0.116, 0.60, 0.61, 0.90, 0.90, 1.60, 1.99]
    np.testing.assert_allclose(rate, published, rtol=0.03)
    fit = hbm.sample(Rates(family="poisson", parameters="shape"), pumps(), seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    table = fit.summary()
    for name, exact in (("alpha", alpha), ("beta", beta)):
        row = table.loc[name]
        assert row["ess_bulk"] > 400
        assert abs(row["mean"] - exact) < 4.0 * row["sd"] / np.sqrt(row["ess_bulk"])
    assert set(of_fit(fit).figures(fit)) == {"shrinkage", "predictive_check"}
    bars = shrinkage(fit).axes[0].containers[0].lines[0]
    np.testing.assert_allclose(sorted(bars.get_ydata()), sorted(rate), rtol=0.3)
    with pytest.raises(ValueError, match=r"coefficients: expected a fit of hbm_jax.models.Regression"):
        coefficients(fit)
    drawn = hbm.latents(fit, num_draws=2000)["rate"].to_numpy()
    error = drawn.std(axis=0) / np.sqrt(1000)
    assert (np.abs(drawn.mean(axis=0) - rate) < 4.5 * error).all()


def test_rat_tumours_as_published():
    """Gelman et al. 2013, section 5.3: the posterior means of alpha and beta are 2.4 and 14.3."""
    data = tumours()
    u, m = np.meshgrid(np.linspace(0.05, 0.6, 300), np.linspace(0.08, 0.25, 200), indexing="ij")
    total = u**-2.0
    log = np.zeros_like(u)
    for n, k in zip(data.trials, data.y, strict=True):
        log += stats.betabinom.logpmf(k, n, m * total, (1 - m) * total)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    assert float((weights * m * total).sum()) == pytest.approx(2.4, abs=0.1)
    assert float((weights * (1 - m) * total).sum()) == pytest.approx(14.3, abs=0.6)
    # The model has this density: the prior of Gelman et al. is uniform in mean and (alpha + beta)^(-1/2).
    at = [(0.13, 0.2), (0.15, 0.3), (0.2, 0.25)]
    found = [
        float(sites["observed"]["fn"].log_prob(sites["observed"]["value"]).sum())
        + sum(float(sites[name]["fn"].log_prob(sites[name]["value"])) for name in ("mean", "dispersion"))
        for sites in (observed(Rates(), data, mean=mean, dispersion=dispersion) for mean, dispersion in at)
    ]
    expected = [stats.betabinom.logpmf(data.y, data.trials, mean * d**-2, (1 - mean) * d**-2).sum() for mean, d in at]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # betaln of JAX is good to 3e-7


def test_what_is_refused():
    with pytest.raises(DataError, match=r"Rates: the family 'poisson' expects exposure="):
        observed(Rates(family="poisson"), tumours())
    data = read_regression(hbm.data.load_example("rat_tumor"), formula="tumors ~ group", trials="rats")
    with pytest.raises(DataError, match=r"without predictors, as in 'tumors ~ 1'.*Regression"):
        observed(Rates(), data)
    with pytest.raises(ValueError, match="Unknown family 'gamma'"):
        Rates(family="gamma")
    assert Rates(**Rates(priors={"mean": "Beta(2, 8)"}).to_config()).priors.keys() == {"mean"}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_posteriors_are_calibrated(family):
    data = tumours().subset(np.arange(0, 70, 5)) if family == "binomial" else pumps()
    priors = {"mean": "Beta(3, 9)"} if family == "binomial" else {"mean": "LogNormal(0, 0.7)"}
    result = hbm.calibrate(Rates(family=family, priors=priors), data, num_replicates=512, seed=3, progress=False)
    print(result)
    assert result.calibrated, str(result)
