"""Sensitivity of posteriors to their priors, as a function of draws whose posterior is known."""

import functools

import arviz_stats
import numpy as np
import numpyro
import pytest
import xarray as xr
from criticised import group_fit, sampled_groups, supernova_fit
from numpyro import distributions as dist
from programs import fit_of_draws
from scipy import integrate, stats

from hbm_jax.inference import prior_sensitivity


def level(y, centre, width):
    theta = numpyro.sample("theta", dist.Normal(centre, width))
    other = numpyro.sample("other", dist.Uniform(-1.0, 1.0))
    numpyro.sample("z", dist.Normal(other, 0.1), obs=0.2)
    with numpyro.plate("i", len(y)):
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


Y = np.random.default_rng(1).normal(4.0, 1.0, 10)


def posterior_of_theta(centre, width, prior_power=1.0, likelihood_power=1.0):
    precision = prior_power / width**2 + likelihood_power * len(Y)
    return stats.norm((prior_power * centre / width**2 + likelihood_power * Y.sum()) / precision, precision**-0.5)


@functools.cache
def level_fit(centre, width):
    """Draws at equal steps of probability, in random order: without the noise of random ones."""
    rng = np.random.default_rng(4)
    steps = [rng.permutation((np.arange(8000) + 0.5) / 8000).reshape(4, 2000) for _ in range(2)]
    theta = posterior_of_theta(centre, width).ppf(steps[0])
    other = stats.truncnorm(-12.0, 8.0, 0.2, 0.1).ppf(steps[1])
    unconstrained = {"theta": theta, "other": np.log((1.0 + other) / (1.0 - other))}
    return fit_of_draws(level, (Y, centre, width), {"theta": theta, "other": other}, unconstrained=unconstrained)


def exact_sensitivity(fit, centre, width, what):
    """Of the normal posterior of theta, by quadrature over the range of the draws: Kallioinen et al. 2024."""
    draws = fit.posterior["theta"].to_numpy()
    t = np.linspace(draws.min(), draws.max(), 20001)

    def distance(p, q):
        def directed(f, g):
            with np.errstate(divide="ignore", invalid="ignore"):
                inner = np.where(f > 0, f * np.log2(2 * f / (f + g)), 0.0)
            return integrate.trapezoid(inner + 0.5 / np.log(2) * (g - f), t)

        def symmetric(f, g):
            bound = integrate.trapezoid(f + g, t)
            return np.sqrt((directed(f, g) + directed(g, f)) / bound)

        return max(symmetric(p.cdf(t), q.cdf(t)), symmetric(p.sf(t), q.sf(t)))

    base = posterior_of_theta(centre, width)
    powers = [(a, 1) if what == "prior" else (1, a) for a in (0.99, 1.01)]
    low, high = (distance(base, posterior_of_theta(centre, width, *power)) for power in powers)
    return 0.5 * (low / -np.log2(0.99) + high / np.log2(1.01))


def test_power_scaling_flags_a_conflict_with_the_exact_sensitivity():
    fit = level_fit(0.0, 0.5)
    result = prior_sensitivity(fit)
    row = result.table.loc["theta"]
    assert row["prior"] == pytest.approx(exact_sensitivity(fit, 0.0, 0.5, "prior"), rel=0.05)
    assert row["likelihood"] == pytest.approx(exact_sensitivity(fit, 0.0, 0.5, "likelihood"), rel=0.05)
    assert row["diagnosis"] == "possible conflict of prior and data"
    assert row["strongest_prior"] == "theta"
    assert list(result.flagged.index) == ["theta"]
    assert result.flat == ("other",)
    assert "the priors matter for 1 of 2 parameters. theta: possible conflict of prior and data" in str(result)
    assert "the priors of other are flat" in str(result)


def test_power_scaling_leaves_a_harmless_prior_alone():
    fit = level_fit(0.0, 100.0)
    result = prior_sensitivity(fit)
    row = result.table.loc["theta"]
    assert row["prior"] < 0.01
    assert row["likelihood"] == pytest.approx(exact_sensitivity(fit, 0.0, 100.0, "likelihood"), rel=0.05)
    assert row["diagnosis"] == "the data dominate"
    assert str(result).startswith("the priors matter little: none of 2 parameters has a sensitivity of 0.05.")
    # Every fourth draw of each chain alone.
    few = prior_sensitivity(fit, num_draws=2000).table.loc["theta"]
    assert few["likelihood"] == pytest.approx(row["likelihood"], rel=0.3)
    assert few["likelihood"] != row["likelihood"]


def test_a_prior_that_decides_is_called_so():
    result = prior_sensitivity(level_fit(4.0, 0.02))
    assert result.table["diagnosis"]["theta"].startswith("the prior dominates")


def test_hyperpriors_are_scaled_and_populations_are_not():
    fit = group_fit(sampled_groups)
    result = prior_sensitivity(fit)
    assert list(result.by_prior) == ["mu", "tau"]
    assert result.left_out == ("effect",)
    assert "the distributions of effect are treated as part of the model" in str(result)
    chosen = prior_sensitivity(fit, sites=["tau"])
    np.testing.assert_allclose(chosen.table["prior"], result.by_prior["tau"], rtol=1e-9)
    # Through ArviZ, from the draws and the prior of SciPy.
    tau = fit.posterior["tau"]
    log_prior = xr.Dataset({"tau": stats.halfnorm(0, 2).logpdf(tau) + 0 * tau})
    theirs = arviz_stats.psense(
        xr.DataTree.from_dict({"posterior": fit.posterior, "log_prior": log_prior}), group="prior"
    )
    for name in ("mu", "tau"):
        assert result.by_prior["tau"][name] == pytest.approx(float(theirs[name]), rel=1e-6)


@pytest.mark.long
def test_priors_behind_coordinates_are_those_stated():
    fit = supernova_fit()
    result = prior_sensitivity(fit)
    assert result.flat == ("w0",)
    assert {"Om0", "M0", "sigma_int"} <= set(result.by_prior)
    assert result.left_out == ()
    # From the draws of Om0 themselves, through ArviZ.
    log_prior = xr.Dataset({"Om0": stats.norm(0.3, 0.05).logpdf(fit.posterior["Om0"]) + 0 * fit.posterior["Om0"]})
    tree = xr.DataTree.from_dict({"posterior": fit.posterior, "log_prior": log_prior})
    theirs = arviz_stats.psense(tree, group="prior")
    for name in ("Om0", "w0", "M0"):
        assert result.by_prior["Om0"][name] == pytest.approx(float(theirs[name]), rel=1e-6)
    assert result.table["strongest_prior"]["Om0"] == "Om0"


def in_plates(y):
    with numpyro.plate("i", len(y)):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_priors_that_cannot_be_found_are_asked_for():
    draws = np.random.default_rng(0).normal(size=(4, 20, 5))
    fit = fit_of_draws(in_plates, (np.linspace(-1.0, 1.0, 5),), {"x": draws}, dims={"x": ["i"]})
    with pytest.raises(ValueError, match=r"a sampled site outside every plate .* found none\. Name .* among x\."):
        prior_sensitivity(fit)
    with pytest.raises(ValueError, match="expected sites among x; found none"):
        prior_sensitivity(fit, sites=[])
