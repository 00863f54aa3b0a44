"""Calibration: a right program passes, each planted error is caught and described."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from arviz_stats import ecdf_utils
from numpyro import distributions as dist
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import Interrupted, batch, calibration
from hbm_jax.inference.calibration import LOG_DENSITY, RANKS, Calibration, band, calibrate, judge_ranks

DESIGN = np.array([-0.25, 0.25, -0.2, 0.3])
RNG = np.random.default_rng(3)

SLOW = pytest.mark.slow


def line(x, y=None, width=1.0, shift=0.0, jacobian=True):
    """A line with few data, so that the priors matter; with errors to plant."""
    slope = numpyro.sample("slope", dist.Normal(0.0, width))
    error = numpyro.sample("error", dist.Gamma(4.0, 4.0))
    if not jacobian:  # as if its logarithm were sampled with the density of itself
        numpyro.factor("forgotten", -jnp.log(error))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x + shift, error), obs=y)


def in_logarithm(x, y=None, jacobian=True):
    """The same, sampled in the logarithm of the error by hand."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    log_error = numpyro.sample("_log_error", dist.ImproperUniform(dist.constraints.real, (), ()))
    error = numpyro.deterministic("error", jnp.exp(log_error))
    numpyro.factor("prior", dist.Gamma(4.0, 4.0).log_prob(error) + (log_error if jacobian else 0.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, error), obs=y)


def run(num_replicates=300, **options):
    return calibrate(line, DESIGN, np.zeros(4), num_replicates=num_replicates, seed=2, progress=False, **options)


@pytest.fixture(scope="module")
def right():
    return run()


def test_a_right_program_passes(right):
    assert right.calibrated
    assert str(right).startswith("calibrated: the ranks of 3 quantities in 300 replicates are uniform")
    assert list(right.table.index) == ["slope", "error", LOG_DENSITY]
    assert (right.table["verdict"] == "uniform").all()
    assert right.ranks.to_numpy().min() >= 0
    assert right.ranks.to_numpy().max() < RANKS
    np.testing.assert_allclose(right.table["mean_rank"], 0.5, atol=0.06)
    np.testing.assert_allclose(right.table["spread"], 1.0, atol=0.1)
    assert right.num_failed < 40


@pytest.mark.parametrize(
    ("wrong", "quantity", "words"),
    [
        pytest.param(functools.partial(program, **planted), quantity, words, id=name, marks=marks)
        for name, program, planted, quantity, words, marks in (
            ("prior 20 % too narrow", line, {"width": 0.8}, "slope", "overconfident: posteriors are too narrow", ()),
            ("prior 25 % too wide", line, {"width": 1.25}, "slope", "underconfident: posteriors are too wide", SLOW),
            ("Jacobian dropped", line, {"jacobian": False}, "error", "biased: posteriors lie too low", SLOW),
            ("by hand", in_logarithm, {"jacobian": False}, "error", "biased: posteriors lie too low", SLOW),
            ("data shifted", line, {"shift": 0.8}, "error", "biased: posteriors lie too high", SLOW),
        )
    ],
)
@pytest.mark.long
def test_planted_errors_are_caught(wrong, quantity, words):
    found = run(512, fitted=wrong)
    assert not found.calibrated
    assert found.table.loc[quantity, "verdict"] == words
    assert f"{quantity} is {words}" in str(found)


@pytest.mark.slow
def test_the_jacobian_in_place_passes():
    found = run(512, fitted=in_logarithm)
    assert found.calibrated
    assert list(found.table.index) == ["slope", "error"]  # the log density is one of other sites


@pytest.mark.slow
def test_a_model_of_ours_with_its_own_design():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 25))
    found = calibrate(hbm.models.Supernova(), sne, num_replicates=40, seed=1, progress=False)
    assert {"Om0", "sigma_int", "alpha", LOG_DENSITY} <= set(found.table.index)
    assert found.calibrated
    assert found.run["about"]["data"] == sne.describe()
    assert found.run["program"]["config"]["cosmology"] == "lcdm"


def test_only_the_parameters_asked_for():
    found = run(20, parameters=["error"])
    assert list(found.table.index) == ["error", LOG_DENSITY]


# The certificate


def test_certificate(right, tmp_path):
    path = right.save(tmp_path / "deep" / "certificate.json")
    content = json.loads(path.read_text())
    assert content["calibrated"] is True
    assert content["verdict"] == str(right)
    assert content["run"]["options"]["seed"] == 2
    assert content["run"]["versions"]["jax"] == jax.__version__
    again = Calibration.load(path)
    assert str(again) == str(right)
    pd.testing.assert_frame_equal(again.ranks, right.ranks, check_index_type=False)
    pd.testing.assert_frame_equal(again.table, right.table, check_names=False)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: expected a calibration certificate; found something else"):
        Calibration.load(tmp_path / "other.json")


# The statistics


def test_uniform_ranks_fail_as_often_as_they_should():
    p = [judge_ranks(pd.DataFrame({"a": RNG.integers(0, RANKS, 200)}))["p"].iloc[0] for _ in range(60)]
    assert stats.kstest(p, "uniform", alternative="greater").pvalue > 1e-3  # three tests in one are a little shy
    assert np.mean(p) < 0.75


def test_shapes_of_ranks_have_their_words():
    share = {
        "low": RNG.beta(1.5, 1.0, 500),
        "high": RNG.beta(1.0, 1.5, 500),
        "narrow": RNG.beta(0.6, 0.6, 500),
        "wide": RNG.beta(2.0, 2.0, 500),
        "even": RNG.uniform(size=500),
    }
    ranks = pd.DataFrame(
        {name: np.floor(values * RANKS).astype(int).clip(0, RANKS - 1) for name, values in share.items()}
    )
    verdicts = judge_ranks(ranks)["verdict"]
    assert verdicts["low"] == "biased: posteriors lie too low"
    assert verdicts["high"] == "biased: posteriors lie too high"
    assert verdicts["narrow"] == "overconfident: posteriors are too narrow"
    assert verdicts["wide"] == "underconfident: posteriors are too wide"
    assert verdicts["even"] == "uniform"


def test_the_band_holds_whole_curves_as_often_as_it_says():
    share, lower, upper = band(250, 0.9)
    assert share.shape == (RANKS - 1,)
    curves = np.stack(
        [np.bincount(RNG.integers(0, RANKS, 250), minlength=RANKS).cumsum()[:-1] / 250 - share for _ in range(2000)]
    )
    inside = ((curves >= lower - 1e-12) & (curves <= upper + 1e-12)).all(axis=1).mean()
    assert inside == pytest.approx(0.9, abs=0.03)


def test_the_band_is_that_of_arviz():
    num = 300
    points = np.arange(1, RANKS) / RANKS
    pointwise = ecdf_utils.simulate_confidence_bands(num, 1, points, 0.95, 4000, np.random.default_rng(1))
    lower, upper = ecdf_utils.get_pointwise_confidence_band(pointwise, num, points)
    share, ours_lower, ours_upper = band(num, 0.95)
    np.testing.assert_allclose(ours_lower + share, lower, atol=2.5 / num)
    np.testing.assert_allclose(ours_upper + share, upper, atol=2.5 / num)


# Bad input


def test_nothing_observed_is_refused():
    with pytest.raises(ValueError, match="expected a program with observed sites; found none"):
        calibrate(lambda: numpyro.sample("x", dist.Normal(0, 1)), num_replicates=20, progress=False)


def test_too_few_replicates_and_unknown_parameters():
    with pytest.raises(ValueError, match="expected num_replicates >= 20; found 5"):
        run(5)
    with pytest.raises(ValueError, match="expected parameters among slope, error; found slop"):
        run(20, parameters=["slop"])


@pytest.mark.long
def test_an_interrupted_calibration_is_none(monkeypatch):
    turn, turns = batch._Queue.turn, []

    def turn_or_stop(self):
        turns.append(1)
        if len(turns) == 8:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(batch._Queue, "turn", turn_or_stop)
    with pytest.raises(Interrupted, match=r"calibrate: interrupted with \d+ of 200 replicates done"):
        run(200, num_lanes=100)


def test_priors_of_impossible_data_are_said(monkeypatch):
    def often_impossible(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jax.numpy.sqrt(x - 0.5), 1.0), obs=y)

    monkeypatch.setattr(calibration, "fit_each", None)
    with pytest.raises(
        ValueError, match="expected the prior to give possible data sets at least every other time; found"
    ):
        calibrate(often_impossible, np.array(0.0), num_replicates=50, progress=False)


def with_ties(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.deterministic("positive", jnp.maximum(slope, 0.0))
    numpyro.deterministic("three", jnp.asarray(3.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def test_ties_are_broken_by_chance_and_constants_left_out():
    x = np.linspace(-1, 1, 6)
    result = calibrate(with_ties, x, np.zeros(6), num_replicates=200, progress=False)
    assert set(result.table.index) == {"slope", "positive", LOG_DENSITY}
    assert result.calibrated, str(result)


def by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("soft", -(mu**4))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_what_cannot_be_simulated_is_refused_by_name():
    with pytest.raises(ValueError, match=r"data can be simulated; found numpyro\.factor 'soft'"):
        calibrate(by_factor, 1.0, progress=False)


def test_an_option_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"calibrate: unknown option 'num_replicate'\. Did you mean 'num_replicates'\?"):
        calibrate(with_ties, np.ones(3), np.ones(3), num_replicate=30)
