"""Many chains adapted together: nested R-hat against its definition, draws against exact moments, stop and resume."""

import importlib
import re
from pathlib import Path

import jax
import numpy as np
import numpyro
import pytest
import xarray as xr
from monte_carlo import seed
from numpyro import distributions as dist
from programs import COVARIANCE, MEAN, correlated, tiny

import hbm_jax as hbm
from hbm_jax.configuration import defaults, sample_keywords, set_key
from hbm_jax.inference import Interrupted, judge, load, resume
from hbm_jax.inference.sampler.ensemble import chains as ensemble
from hbm_jax.inference.sampler.ensemble.statistics import nested_r_hat, statistics

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "suite"
MANY = {"sampler": hbm.ChEES(), "num_chains": 64, "seed": seed(5), "progress": False}
RNG = np.random.default_rng(31)


def chains_of(means, num=4, num_draws=20):
    """Independent normal draws around a mean for each superchain, (chain, draw, 1)."""
    return np.repeat(means, num)[:, None, None] + RNG.normal(size=(len(means) * num, num_draws, 1))


def test_nested_r_hat_is_that_of_the_definition():
    # Margossian et al. 2024, equations 6 to 9, on normal scores of the ranks; written as loops.
    draws = chains_of(RNG.normal(0.0, 0.3, 16))
    flat = draws.ravel()
    ranks = np.array([(flat < x).sum() + 1.0 for x in flat])
    uniform = (ranks - 0.375) / (len(flat) + 0.25)
    scores = np.asarray(dist.Normal(0.0, 1.0).icdf(uniform)).reshape(16, 4, 20)
    superchain_means = [s.mean() for s in scores]
    between = sum((m - np.mean(superchain_means)) ** 2 for m in superchain_means) / 15
    within = np.mean([np.var([c.mean() for c in s], ddof=1) + np.mean([np.var(c, ddof=1) for c in s]) for s in scores])
    assert nested_r_hat(draws, 16)[0] == pytest.approx(np.sqrt(1.0 + between / within), rel=1e-4)


def test_nested_r_hat_sees_means_widths_and_chains_that_stay():
    same = chains_of(np.zeros(16), num_draws=100)
    assert nested_r_hat(same, 16)[0] < 1.01
    assert nested_r_hat(chains_of(np.r_[np.zeros(15), 2.0], num_draws=100), 16)[0] > 1.05
    scale = np.repeat(np.r_[np.ones(15), 4.0], 4)[:, None, None]
    assert nested_r_hat(scale * same, 16)[0] > 1.05
    stuck = np.broadcast_to(np.repeat(np.arange(16.0), 4)[:, None, None], (64, 20, 1))
    assert nested_r_hat(stuck, 16)[0] > 1e6


def test_errors_and_sizes_count_superchains_that_have_not_forgotten_their_start():
    shifted = chains_of(RNG.normal(0.0, 0.5, 16), num=16, num_draws=50)
    table = statistics(shifted, 16)[0]
    error = shifted.reshape(16, -1).mean(axis=1).std(ddof=1) / 4.0
    assert table[3] >= 0.999 * error
    assert table[1] < 16 * 1.25 / 0.1
    # Those of independent chains with the same draws know nothing of it.
    assert table[1] < 0.2 * statistics(shifted)[0][1]


def test_the_verdict_uses_superchains():
    draws = chains_of(np.r_[np.zeros(8), np.full(8, 20.0)])[..., 0]
    posterior = xr.Dataset({"a": (("chain", "draw"), draws)})
    energy = RNG.normal(size=draws.shape)
    stats = xr.Dataset({n: (("chain", "draw"), v) for n, v in {"diverging": energy > 99, "energy": energy}.items()})
    verdict = judge(posterior, stats, num_superchains=16)
    assert not verdict.usable
    assert verdict.reasons[0].startswith("nested R-hat is")
    assert "superchains are in different modes: superchains 0, 1, 2, 3, 4, 5, 6, 7 near a" in verdict.reasons[1]
    good = judge(posterior % 10.0, stats, num_superchains=16)
    assert good.min_bfmi > 1.0  # independent energies: 2
    mixed = xr.Dataset({"a": (("chain", "draw"), chains_of(np.zeros(16), num_draws=100)[..., 0])})
    longer = xr.Dataset({k: (("chain", "draw"), np.tile(v.to_numpy(), 5)) for k, v in stats.items()})
    verdict = judge(mixed, longer, num_superchains=16)
    assert verdict.usable
    assert "largest nested R-hat of 16 superchains 1.0" in str(verdict)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "expected num_chains from 64 to 4096, a multiple of the 16 superchains and at least twice as many; found 4",
        ),
        ({"num_chains": 72}, "found 72"),
        ({"num_chains": 5000}, "found 5000"),
        ({"num_chains": 64, "split": 4}, "expected no split"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_sampling(options, message):
    with pytest.raises(ValueError, match=f"ChEES: .*{re.escape(message)}"):
        hbm.sample(tiny, sampler=hbm.ChEES(), progress=False, **options)


def test_a_configuration_describes_it():
    config = defaults()
    for key, value in (("sampler", "chees"), ("num_superchains", "32"), ("num_chains", "128")):
        set_key(config, f"sample.{key}", value)
    keywords = sample_keywords(config)
    assert keywords["sampler"] == hbm.ChEES(num_superchains=32)
    assert keywords["num_chains"] == 128


@pytest.fixture(scope="module")
def fit():
    """Five correlated parameters, until good."""
    return hbm.sample(correlated, MEAN, COVARIANCE, **MANY)


def test_means_and_covariances_are_exact(fit, monte_carlo):
    assert fit.verdict.usable, fit.verdict
    assert fit.posterior.sizes["draw"] < 200  # far fewer than four chains need
    draws = fit.posterior["x"].to_numpy()
    errors = fit.verdict.table["mcse_mean"].to_numpy()[:5]
    for i in range(5):
        monte_carlo.within(draws[..., i].mean(), MEAN[i], errors[i], name=f"mean of x[{i}]")
    deviations = np.linalg.solve(np.linalg.cholesky(COVARIANCE), (draws - MEAN).reshape(-1, 5).T).T
    squares = (deviations.reshape(16, -1, 5) ** 2).mean(axis=1)
    for i in range(5):
        monte_carlo.within(squares[:, i].mean(), 1.0, squares[:, i].std(ddof=1) / 4.0, name=f"variance {i}")


def test_what_is_saved_is_judged_the_same(fit, tmp_path):
    loaded = load(fit.save(tmp_path / "fit"))
    assert loaded.run["num_superchains"] == 16
    assert str(loaded.verdict) == str(fit.verdict)


@pytest.mark.long
@pytest.mark.parametrize("stop", [20, 65])
def test_a_stopped_run_goes_on_bit_for_bit(stop, tmp_path, monkeypatch):
    options = MANY | {"num_warmup": 60, "num_samples": 20}
    whole = hbm.sample(tiny, **options)
    advance = ensemble.EnsembleChains.advance

    def advance_or_stop(self, num_draws):
        if self.count >= stop:
            raise KeyboardInterrupt
        return advance(self, min(num_draws, 7))

    monkeypatch.setattr(ensemble.EnsembleChains, "advance", advance_or_stop)
    with pytest.raises(Interrupted, match="warm-up draws; hbm_jax"):
        hbm.sample(tiny, checkpoint=tmp_path, **options)
    monkeypatch.setattr(ensemble.EnsembleChains, "advance", advance)
    resumed = resume(tmp_path, tiny, progress=False)
    xr.testing.assert_equal(resumed.tree["posterior"].to_dataset(), whole.tree["posterior"].to_dataset())
    assert resumed.run["sequential_gradients"] == whole.run["sequential_gradients"]


@pytest.mark.long
def test_unmixed_modes_are_not_usable():
    centres = np.array([0.0, 12.0])

    def modes():
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(np.array([0.3, 0.7])), dist.Normal(centres, 1.0)))

    fit = hbm.sample(modes, **MANY)
    assert not fit.verdict.usable
    assert any("superchains are in different modes" in reason for reason in fit.verdict.reasons)
    assert fit.posterior.sizes["draw"] < 50  # not drawn on, since more draws do not help


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in ("supernovae", "relation", "golenetskii", "normal")),
        pytest.param("afterglows", marks=pytest.mark.slow),
    ],
)
def test_posteriors_of_the_five_systems_are_those_of_nuts(name, monkeypatch, monte_carlo):
    monkeypatch.syspath_prepend(str(SUITE))
    system = importlib.import_module(f"systems.{name}")
    with jax.enable_x64(True):
        model, data = system.ours(system.problem(**system.QUICK_SIZES), next(iter(system.OURS.values())))
    many = hbm.sample(model, data, **MANY)
    # Smaller steps than by default, with which afterglows had 3 divergent transitions in 4000.
    few = hbm.sample(model, data, sampler=hbm.NUTS(target_accept_prob=0.95), seed=seed(6), progress=False)
    assert many.verdict.usable, many.verdict
    assert few.verdict.usable, few.verdict
    ours, others = many.summary()[["mean", "mcse_mean"]], few.summary()[["mean", "mcse_mean"]]
    for parameter in others.index[others["mcse_mean"] > 0]:
        error = np.hypot(ours.loc[parameter, "mcse_mean"], others.loc[parameter, "mcse_mean"])
        monte_carlo.within(ours.loc[parameter, "mean"], others.loc[parameter, "mean"], error, name=parameter)
