"""Predictive densities by fits without what is left out, where importance sampling fails."""

import copy
import dataclasses

import numpy as np
import pytest
from criticised import (
    GROUP_OF,
    NOISE_OF_LINE,
    NUM_STARS,
    density_of_line_left_out,
    fit_of_line,
    fit_of_scattered,
    group_fit,
    level_posterior,
    line,
    line_data,
    line_fit,
    line_loo,
    sampled_groups,
    scattered,
    with_bad,
)
from monte_carlo import seed
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import loo, refit
from hbm_jax.inference.blinding.blinding import Blinding
from hbm_jax.inference.criticism import leave_out, refitting


@pytest.fixture
def exact_refits(monkeypatch):
    """Stands in for sampling where units are refitted: draws of the exact posterior, and what was asked for."""
    asked = []

    def sample(program, data, **options):
        asked.append((program, data, options))
        return (fit_of_line if program is line else fit_of_scattered)(data, number=10 + len(asked))

    monkeypatch.setattr(refitting, "sample", sample)
    return asked


def test_refits_are_of_the_other_stars_and_give_the_exact_density(exact_refits, monte_carlo):
    fit = fit_of_line(line_data(), num_warmup=123, seed=7)
    result = with_bad(line_loo(), "star 35", "star 3")
    assert set(result.bad.index) == {"star 35", "star 3"}
    assert "Not reliable: Pareto k is above 0.70 for 2: " in str(result)
    assert "refit without them, with hbm_jax.inference.refit, if they are few" in str(result)
    better = refit(fit, result, sampler=hbm.NUTS(max_tree_depth=6))
    for _, data, options in exact_refits:
        assert len(data) == NUM_STARS - 1
        assert options["num_warmup"] == 123
        assert options["seed"] == 8  # another than that of the fit
        assert options["sampler"] == hbm.NUTS(max_tree_depth=6)
        assert options["progress"] is options["centering"] is False
    assert {name for _, data, _ in exact_refits for name in fit.data.name if name not in data.name} == {
        "star 3",
        "star 35",
    }
    for number, (_, data, _) in enumerate(exact_refits, start=11):
        (i,) = (i for i, name in enumerate(fit.data.name) if name not in data.name)
        draws = fit_of_line(data, number=number).posterior["coefficient"].to_numpy()
        density = stats.norm(draws[..., 0] + draws[..., 1] * fit.data.x[i], NOISE_OF_LINE).pdf(fit.data.y[i])
        assert better.table["elpd"].iloc[i] == pytest.approx(np.log(density.mean()), rel=1e-9)
        error = density.std() / density.mean() / np.sqrt(density.size)
        exact = density_of_line_left_out(fit.data, [i])
        monte_carlo.within(better.table["elpd"].iloc[i], exact, error, name=f"star {i}")
    kept = ~better.table["refitted"]
    assert kept.sum() == NUM_STARS - 2
    np.testing.assert_array_equal(better.table["elpd"][kept], result.table["elpd"][kept])
    assert better.reliable
    assert "Reliable: 2 refitted, the others with Pareto k below 0.70." in str(better)
    data = better.elpd_data
    assert data.elpd == pytest.approx(better.elpd)
    assert data.se == pytest.approx(better.se)
    assert data.elpd + data.p == pytest.approx(result.elpd_data.elpd + result.elpd_data.p)
    assert not data.warning
    assert refit(fit, line_loo()) is line_loo()


def test_refits_draw_the_latents_of_what_is_left_out_from_the_population(exact_refits, monte_carlo):
    data = line_data().subset(range(12))
    fit = fit_of_scattered(data)
    better = refit(fit, with_bad(loo(fit), "4"))
    ((program, others, _),) = exact_refits
    assert program is scattered
    np.testing.assert_array_equal(others.y, np.delete(data.y, 4))
    mean, variance = level_posterior(others.y)
    exact = stats.norm(mean, np.sqrt(variance + 1.0 + NOISE_OF_LINE**2)).logpdf(data.y[4])
    true = np.random.default_rng(0).normal(mean, np.sqrt(variance + 1.0), 100_000)
    density = stats.norm(true, NOISE_OF_LINE).pdf(data.y[4])
    monte_carlo.within(better.table["elpd"].iloc[4], exact, density.std() / density.mean() / np.sqrt(4000))


@pytest.mark.parametrize("outlier", [3.0, 5.5])
def test_a_refitted_star_far_in_the_tail_is_reliable_only_if_many_draws_are_behind_its_density(exact_refits, outlier):
    fit = fit_of_line(line_data(outlier))
    better = refit(fit, with_bad(loo(fit), "star 35"))
    exact = density_of_line_left_out(fit.data, [NUM_STARS - 1])
    row = better.table.loc["star 35"]
    assert row["refitted"]
    assert better.table["mc_error"].drop("star 35").isna().all()
    if outlier < 5.0:
        assert row["mc_error"] < leave_out.MAX_ERROR
        assert row["elpd"] == pytest.approx(exact, abs=0.3)
        assert better.reliable
        return
    assert row["mc_error"] > leave_out.MAX_ERROR
    assert list(better.bad.index) == ["star 35"]
    assert "the Monte Carlo error after refitting is above 0.1 for 1: star 35 (" in str(better)
    assert "refit again with more draws, num_samples=" in str(better)
    refit(fit, better)
    assert len(exact_refits) == 2


def test_the_error_of_a_mean_density_is_that_of_its_draws(monte_carlo):
    rng = np.random.default_rng(seed(31))
    log_densities = stats.norm(0.0, 0.5).logpdf(1.0 - 0.3 * rng.normal(size=(400, 4, 500)))
    means, errors = np.transpose([refitting.log_mean_density(draws) for draws in log_densities])
    exact = stats.norm(0.0, np.hypot(0.3, 0.5)).logpdf(1.0)
    monte_carlo.within(means.mean(), exact, np.median(errors) / 20.0)
    assert np.median(errors) == pytest.approx(means.std(), rel=0.15)
    repeated = np.repeat(log_densities[0], 4, axis=1)  # correlated draws: the error stays
    assert refitting.log_mean_density(repeated)[1] == pytest.approx(errors[0], rel=0.2)
    lonely = np.full((4, 500), -1e3)
    lonely[0, 0] = 0.0
    assert refitting.log_mean_density(lonely)[1] == np.inf


def test_refits_of_a_blinded_fit_are_blinded(exact_refits):
    fit = copy.copy(fit_of_line(line_data()))
    assert "blind" not in fit.run
    blinding = Blinding((str(next(iter(fit.posterior))),)).measured_in(fit.posterior)
    fit.tree = blinding.hide(fit.tree, {})
    refit(fit, with_bad(line_loo(), "star 3"))
    (asked,) = exact_refits
    assert asked[2]["blind"] == blinding


def test_refits_that_cannot_be_made_are_refused():
    fit = line_fit()
    result = with_bad(line_loo(), "star 35")
    with pytest.raises(ValueError, match=r"at most max_refits=0 bad units; found 1"):
        refit(fit, result, max_refits=0)
    with pytest.raises(ValueError, match="refit: expected a fit with its program and data, found one without"):
        refit(dataclasses.replace(fit, program=None), result)
    groups = group_fit(sampled_groups)
    with pytest.raises(ValueError, match=r"data with subset\(indices\).*found ndarray, dimension member\."):
        refit(groups, loo(groups, group=GROUP_OF))


@pytest.mark.slow
def test_refit_replaces_what_importance_sampling_cannot_do():
    fit = line_fit(outlier=3.0)
    result = loo(fit)
    assert list(result.bad.index) == ["star 35"]
    assert "Not reliable: Pareto k is above" in str(result)
    assert "star 35 (" in str(result)
    exact = density_of_line_left_out(fit.data, [NUM_STARS - 1])
    # Farther out, the mean density is that of a few draws, and the unit stays unreliable.
    better = refit(fit, result)
    assert better.table["elpd"]["star 35"] == pytest.approx(exact, abs=0.2)
    assert better.reliable
    assert "1 refitted" in str(better)


@pytest.mark.slow
@pytest.mark.parametrize("centering", [False, True])
def test_refit_of_a_sampled_fit_draws_latents_from_the_population(centering, monte_carlo):
    data = line_data().subset(range(12))
    fit = hbm.sample(scattered, data, centering=centering, num_samples=1000, num_warmup=300, progress=False)
    better = refit(fit, with_bad(loo(fit), "4"))
    mean, variance = level_posterior(np.delete(data.y, 4))
    exact = stats.norm(mean, np.sqrt(variance + 1.0 + NOISE_OF_LINE**2)).logpdf(data.y[4])
    true = np.random.default_rng(0).normal(mean, np.sqrt(variance + 1.0), 100_000)
    density = stats.norm(true, NOISE_OF_LINE).pdf(data.y[4])
    monte_carlo.within(better.table["elpd"].iloc[4], exact, density.std() / density.mean() / np.sqrt(2000))
