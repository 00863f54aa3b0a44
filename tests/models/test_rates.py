"""Rates of groups: marginal counts against quadrature, rates drawn back, textbook values."""

import numpy as np
import pytest
from monte_carlo import seed
from scipy import integrate, stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data import DataError, RegressionData, read_regression
from hbm_jax.models import Rates
from hbm_jax.plotting import coefficients, shrinkage
from hbm_jax.registry import entry_of_fit


def pumps():
    return read_regression(hbm.data.load_example("pumps"), formula="failures ~ 1", exposure="time", name="pump")


def tumours():
    return read_regression(hbm.data.load_example("rat_tumor"), formula="tumors ~ 1", trials="rats")


@pytest.mark.long
def test_binomial_counts_are_drawn_from_priors():
    data = tumours().subset(np.arange(40, 60))
    for model in (Rates(), hbm.models.Regression(family="binomial")):
        drawn = hbm.prior_predictive(model, data, num_draws=200, seed=seed(3))["observed"].to_numpy()
        assert drawn.shape[-1] == 20
        assert ((drawn >= 0) & (drawn <= data.trials)).all()
        assert len(np.unique(drawn)) > 10


def test_the_rates_are_integrated_out():
    data = pumps()
    sites = compiled_sites(Rates(family="poisson", parameters="shape"), data)
    time = np.exp(data.offset)
    for alpha, beta in ((0.7, 0.9), (2.0, 0.3)):
        found = np.exp(sites({"alpha": alpha, "beta": beta}).log_probs["observed"])
        for j in range(10):
            expected = integrate.quad(
                lambda r, j=j, a=alpha, b=beta: stats.poisson.pmf(data.y[j], r * time[j])
                * stats.gamma.pdf(r, a, scale=1 / b), 0, np.inf,
            )[0]  # fmt: skip
            assert found[j] == pytest.approx(expected, rel=1e-6)
    data = tumours().subset(np.arange(60, 71))
    sites = compiled_sites(Rates(), data)
    for mean, dispersion in ((0.15, 0.3), (0.3, 0.5)):
        found = np.exp(sites({"mean": mean, "dispersion": dispersion}).log_probs["observed"])
        total = dispersion**-2
        for j in range(11):
            expected = integrate.quad(
                lambda r, j=j, a=mean * total, b=(1 - mean) * total: stats.binom.pmf(data.y[j], data.trials[j], r)
                * stats.beta.pdf(r, a, b), 0, 1,
            )[0]  # fmt: skip
            assert found[j] == pytest.approx(expected, rel=1e-6)


def test_mean_and_dispersion_of_poisson_rates_are_those_of_their_population():
    data = pumps()
    found = compiled_sites(Rates(family="poisson"), data)({"mean": 0.8, "dispersion": 0.5})
    time, shape = np.exp(data.offset), 0.5**-2
    expected = stats.nbinom.logpmf(data.y, shape, shape / 0.8 / (shape / 0.8 + time))
    np.testing.assert_allclose(found.log_probs["observed"], expected, rtol=1e-6)
    overall = data.y.sum() / time.sum()
    prior = stats.lognorm.logpdf(0.8, 2.0, scale=overall)
    assert float(found.log_probs["mean"]) == pytest.approx(prior, rel=1e-9)
    assert float(found.log_probs["dispersion"]) == pytest.approx(stats.halfnorm.logpdf(0.5), rel=1e-9)


def test_rates_drawn_back_have_their_posterior(monte_carlo):
    data = tumours().subset(np.arange(60, 64))
    sites = compiled_sites(Rates(), data, recover=True)
    total, mean = 0.2**-2, 0.15
    draws = [sites({"mean": mean, "dispersion": 0.2}, number=seed(k)).values["rate"] for k in range(200)]
    for j, column in enumerate(np.array(draws).T):
        law = stats.beta(mean * total + data.y[j], (1 - mean) * total + data.trials[j] - data.y[j])
        monte_carlo.distribution(column, law.cdf, name=f"rate {j}")


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


@pytest.mark.long
def test_pumps_as_published(monte_carlo):
    """George, Makov & Smith 1993; the BUGS examples give alpha 0.70, beta 0.93, rates 0.060 ... 1.99."""
    alpha, beta, rate = exact_pumps()
    assert (alpha, beta) == pytest.approx((0.70, 0.93), abs=0.02)
    published = [0.060, 0.102, 0.089, 0.116, 0.60, 0.61, 0.90, 0.90, 1.60, 1.99]
    np.testing.assert_allclose(rate, published, rtol=0.03)
    options = {"num_warmup": 250, "num_samples": 400, "progress": False}
    fit = hbm.sample(Rates(family="poisson", parameters="shape"), pumps(), seed=seed(1), **options)
    for name, exact in (("alpha", alpha), ("beta", beta)):
        monte_carlo.mean(fit.posterior[name].to_numpy(), exact, name=name, min_ess=200)
    assert set(entry_of_fit(fit).figures(fit)) == {"shrinkage", "predictive_check"}
    bars = shrinkage(fit).axes[0].containers[0].lines[0]
    np.testing.assert_allclose(sorted(bars.get_ydata()), sorted(rate), rtol=0.3)
    with pytest.raises(ValueError, match=r"coefficients: expected a fit of hbm_jax.models.Regression"):
        coefficients(fit)
    drawn = hbm.latents(fit, num_draws=1600)["rate"].to_numpy().reshape(4, 400, 10)
    for j in range(10):
        monte_carlo.mean(drawn[..., j], rate[j], name=f"rate {j}", min_ess=200)


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
    sites = compiled_sites(Rates(), data)
    found = [sites({"mean": mean, "dispersion": dispersion}).log_density for mean, dispersion in at]
    expected = [stats.betabinom.logpmf(data.y, data.trials, mean * d**-2, (1 - mean) * d**-2).sum() for mean, d in at]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # betaln of JAX is good to 3e-7


def test_what_is_refused():
    with pytest.raises(DataError, match=r"Rates: the family 'poisson' expects exposure="):
        Rates(family="poisson")(tumours())
    data = read_regression(hbm.data.load_example("rat_tumor"), formula="tumors ~ group", trials="rats")
    with pytest.raises(DataError, match=r"without predictors, as in 'tumors ~ 1'.*Regression"):
        Rates()(data)
    with pytest.raises(DataError, match="expected RegressionData; found list"):
        Rates()([1.0])
    half = RegressionData.from_columns({"y": [1.0, 2.5], "n": [3, 4]}, "y ~ 1", trials="n")
    with pytest.raises(DataError, match=r"y, row 1.*a count.*2\.5"):
        Rates()(half)
    with pytest.raises(ValueError, match="Unknown family of Rates 'gamma'"):
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
