"""Fits of the supernova model: truth recovered, latents and predictions drawn back, one posterior of all treatments."""

import functools

import jax
import numpy as np
import pytest
from models.test_supernova import (
    DESIGN,
    JLA,
    PRIORS,
    TRUTH,
    noise,
    reordered,
    textbook_conditional,
    textbook_population,
    whitened,
)
from monte_carlo import seed
from numpyro import distributions as dist
from scipy import stats

import hbm_jax
from hbm_jax.models import Supernova
from hbm_jax.models.supernovae.supernova import OBSERVABLES

OPTIONS = {"num_chains": 2, "progress": False}
TREATMENTS = {
    "marginal": {"num_samples": 1500, "num_warmup": 300},
    "sampled": {"num_samples": 4000},
    "noncentred": {"num_samples": 2000, "num_warmup": 500},
    # Small steps, because the centred posterior narrows to a funnel where sigma_int is small.
    "centred": {"num_samples": 2000, "num_warmup": 600, "sampler": hbm_jax.NUTS(target_accept_prob=0.95)},
}


@functools.cache
def simulated():
    return Supernova().simulate(jax.random.key(seed(3)), DESIGN, {"Om0": 0.3} | TRUTH)[0]


@functools.cache
def short_fit():
    return hbm_jax.sample(Supernova(), simulated(), seed=seed(7), num_warmup=200, num_samples=250, **OPTIONS)


@functools.cache
def fit_of(latents):
    return hbm_jax.sample(Supernova(latents=latents), simulated(), seed=seed(7), **OPTIONS | TREATMENTS[latents])


def drawn_parameters(fit, num_draws, every):
    """Parameters of every so many of the draws that `hbm_jax.latents` and others spread over a posterior."""
    posterior = {name: values.to_numpy().ravel() for name, values in fit.posterior.items() if values.ndim == 2}
    index = np.linspace(0, posterior["M0"].size - 1, num_draws).round().astype(int)
    return [(k, {name: float(v[index[k]]) for name, v in posterior.items()}) for k in range(0, num_draws, every)]


@pytest.mark.long
def test_the_truth_is_in_the_posterior(monte_carlo):
    fit = short_fit()
    assert {name for name, v in fit.posterior.items() if v.ndim == 2} == {"Om0", *TRUTH}
    for name, value in ({"Om0": 0.3} | TRUTH).items():
        draws = fit.posterior[name].to_numpy()
        # A standard deviation of some hundred effective draws is known to a tenth.
        monte_carlo.within(draws.mean(), value, 1.1 * draws.std(), name=name)
    assert fit.posterior["alpha"].to_numpy().std() < 0.1, "the prior has 0.5"
    assert fit.posterior["x1_mean"].to_numpy().std() < 0.3, "the prior has 1"


@pytest.mark.long
def test_recovered_latents_are_drawn_from_the_exact_conditional(monte_carlo):
    drawn = hbm_jax.latents(short_fit(), num_draws=400, seed=seed(5))
    assert set(drawn) == {"x1_true", "c_true", "m_b_true"}
    assert drawn["c_true"].dims == ("sample", "supernova")
    assert drawn["c_true"].shape == (400, 60)
    assert list(drawn.supernova.to_numpy()) == list(DESIGN.name)
    x = np.stack([drawn[f"{name}_true"].to_numpy() for name in OBSERVABLES], axis=-1)
    residuals, covariances = [], []
    for k, p in drawn_parameters(short_fit(), 400, 20):
        mean, covariance = textbook_conditional(simulated(), p)
        residuals.append(x[k] - mean)
        covariances.append(covariance)
    whitened(monte_carlo, residuals, np.array(covariances), "latents")


@pytest.mark.long
def test_prior_and_posterior_predictive_come_from_the_same_program(monte_carlo):
    prior = hbm_jax.prior_predictive(Supernova(), DESIGN, num_draws=400, seed=seed(1))
    assert prior["observed"].dims == ("sample", "supernova", "observable")
    assert prior["observed"].shape == (400, 60, 3)
    assert list(prior.observable.to_numpy()) == list(OBSERVABLES)
    for name in ("alpha", "Om0", "sigma_int"):
        monte_carlo.distribution(prior[name].to_numpy(), PRIORS[name].cdf, name=f"prior of {name}")

    replicated = hbm_jax.posterior_predictive(short_fit(), num_draws=400, seed=seed(2))["observed"].to_numpy()
    assert replicated.shape == (400, 60, 3)
    residuals, covariances = [], []
    for k, p in drawn_parameters(short_fit(), 400, 20):
        mean, population = textbook_population(simulated(), p)
        residuals.append(replicated[k] - mean)
        covariances.append(population + reordered(noise(simulated())))
    whitened(monte_carlo, residuals, np.array(covariances), "replicated")


@pytest.mark.long
def test_truth_of_a_sample_as_large_as_jla_is_recovered(monte_carlo):
    truth = {"Om0": 0.3, "w0": -1.0} | TRUTH
    data, _ = Supernova(cosmology="wcdm").simulate(jax.random.key(seed(12)), JLA, truth)
    options = OPTIONS | {"num_warmup": 300, "num_samples": 500}
    fit = hbm_jax.sample(Supernova(cosmology="wcdm"), data, seed=seed(2), **options)
    assert fit.verdict.num_divergences <= 10, "1 % of the draws"
    for name, value in truth.items():
        draws = fit.posterior[name].to_numpy()
        assert fit.verdict.table.loc[name, ["ess_bulk", "ess_tail"]].min() > 100, name
        monte_carlo.within(draws.mean(), value, 1.1 * draws.std(), name=name)
    assert fit.posterior["alpha"].to_numpy().std() < 0.02, "and the data say something"


def same_means(monte_carlo, a, b, names):
    for name in names:
        monte_carlo.same_mean(a.posterior[name].to_numpy(), b.posterior[name].to_numpy(), name=name, min_ess=200)


@pytest.mark.parametrize(
    "latents",
    [
        pytest.param("sampled", marks=pytest.mark.long),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("noncentred", "centred")),
    ],
)
def test_treatments_of_latents_have_one_posterior(monte_carlo, latents):
    marginal, fit = fit_of("marginal"), fit_of(latents)
    same_means(monte_carlo, marginal, fit, ["Om0", *TRUTH])
    exact = hbm_jax.latents(marginal, num_draws=2000, seed=seed(5))
    for name in OBSERVABLES:
        sampled = fit.posterior[f"{name}_true"].transpose("chain", "draw", "supernova").to_numpy()
        recovered = exact[f"{name}_true"].to_numpy()
        for i, label in enumerate(DESIGN.name):
            # Of the 2000 there are 1000 effective ones, spread over a correlated chain.
            error = recovered[:, i].std() / np.sqrt(1000)
            monte_carlo.mean(
                sampled[..., i], recovered[:, i].mean(), expected_error=error, name=f"{name} of {label}", min_ess=200
            )


@pytest.mark.slow
def test_treatments_of_latents_have_one_posterior_on_jla(monte_carlo):
    fits = {
        latents: hbm_jax.sample(
            Supernova(cosmology="wcdm", latents=latents),
            JLA,
            seed=1,
            num_chains=2,
            num_warmup=num_warmup,
            num_samples=num_samples,
            progress=False,
        )
        for latents, (num_warmup, num_samples) in {
            "marginal": (300, 1500),
            "noncentred": (600, 1500),
            "centred": (600, 2000),
        }.items()
    }
    names = ["Om0", "w0", *TRUTH]
    same_means(monte_carlo, fits["marginal"], fits["noncentred"], names)
    same_means(monte_carlo, fits["marginal"], fits["centred"], names)


@pytest.mark.slow
def test_ranks_of_simulated_truths_are_uniform():
    """Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788), 64 replicates."""
    design = JLA.subset(np.arange(0, 740, 12)[:60])
    priors = {
        "M0": dist.Normal(-19.1, 0.1), "alpha": dist.Normal(0.14, 0.05), "beta": dist.Normal(3.1, 0.5),
        "delta_M": dist.Normal(-0.05, 0.05), "sigma_int": dist.LogNormal(np.log(0.1), 0.4),
        "x1_mean": dist.Normal(0, 0.5), "x1_std": dist.LogNormal(0.0, 0.3), "c_mean": dist.Normal(0, 0.05),
        "c_std": dist.LogNormal(np.log(0.08), 0.3),
    }  # fmt: skip
    model = Supernova(priors=priors)
    num_replicates, num_thinned = 64, 99
    ranks = {name: [] for name in ("Om0", *priors)}
    for replicate in range(num_replicates):
        data, truth = model.simulate(jax.random.key(1000 + replicate), design)
        fit = hbm_jax.sample(model, data, seed=replicate, num_chains=2, num_warmup=200, num_samples=400, progress=False)
        for name in ranks:
            assert fit.verdict.table.loc[name, "ess_bulk"] > num_thinned, (replicate, name)
            draws = fit.posterior[name].to_numpy().ravel()
            thinned = draws[np.linspace(0, len(draws) - 1, num_thinned).astype(int)]
            ranks[name].append(np.sum(thinned < truth[name]))
    for name, values in ranks.items():
        counts = np.histogram(values, bins=8, range=(0, num_thinned + 1))[0]
        assert stats.chisquare(counts).pvalue > 0.01 / len(ranks), (name, counts)
        uniform = (np.array(values) + 0.5) / (num_thinned + 1)
        assert stats.kstest(uniform, "uniform").pvalue > 0.01 / len(ranks), name
