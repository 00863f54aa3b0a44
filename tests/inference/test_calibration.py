"""Calibration: a right program passes, each planted error is caught and described."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from arviz_stats import ecdf_utils
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import Interrupted
from hbm_jax.inference.batch import fit_each as batch
from hbm_jax.inference.criticism import calibration, rank_tests
from hbm_jax.inference.criticism.calibration import Calibration, calibrate
from hbm_jax.inference.criticism.rank_tests import LEVEL, RANKS, band, judge_ranks, p_values
from hbm_jax.inference.criticism.replicates import LOG_DENSITY, Replicates

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


def run(num_replicates=200, **options):
    return calibrate(line, DESIGN, np.zeros(4), num_replicates=num_replicates, seed=seed(2), progress=False, **options)


@pytest.fixture(scope="module")
def right():
    return run(max_num_samples=400)


@pytest.mark.long
def test_a_right_program_passes(right, monte_carlo):
    assert list(right.table.index) == ["slope", "error", LOG_DENSITY]
    assert right.ranks.to_numpy().min() >= 0
    assert right.ranks.to_numpy().max() < RANKS
    num = len(right.ranks)
    assert num > 150
    for name, row in right.table.iterrows():
        monte_carlo.within(row["bias"], 0.0, 1 / np.sqrt(num), name=f"bias of {name}")
        monte_carlo.within(row["width"], 1.0, 1 / np.sqrt(2 * num), name=f"width of {name}")
        monte_carlo.p_value(row["p"], name=name)


def test_ranks_that_are_even_and_ranks_that_are_not_have_their_verdicts():
    even = np.tile(np.arange(RANKS), 2)
    result = Calibration(pd.DataFrame({"a": even, "b": even[::-1]}), *_judged(a=even, b=even[::-1]), {})
    assert result.calibrated
    assert str(result).startswith("calibrated: the ranks of 2 quantities in 200 replicates are uniform")
    low = even // 2
    result = Calibration(pd.DataFrame({"a": even, "b": low}), *_judged(a=even, b=low), {})
    assert not result.calibrated
    assert "b is biased: posteriors lie too high" in str(result)
    assert result.table["verdict"]["a"] == "uniform"
    # Ranks in the lower half are those of the half-normal distribution, whose mean is -0.798.
    np.testing.assert_allclose(result.table["bias"], [0.0, np.sqrt(2 / np.pi)], atol=0.01)


def test_a_distribution_whose_draws_do_not_follow_its_density_says_so(tmp_path):
    class Approximate(dist.Normal):
        calibration_caution = "the density is approximate"

    def program(y=None):
        loc = numpyro.sample("loc", dist.Normal())
        with numpyro.plate("point", 3), numpyro.handlers.mask(mask=np.array([True, True, False])):
            numpyro.sample("y", Approximate(loc, 1.0), obs=y)

    with pytest.warns(UserWarning, match="calibrate: the density is approximate"), pytest.raises(RuntimeError):
        calibrate(program, np.zeros(3), num_replicates=20, executor=_NoExecutor(), progress=False)
    cautions = Replicates.of(program, (np.zeros(3),), program).cautions
    assert cautions == ("the density is approximate",)
    assert not Replicates.of(line, (DESIGN, np.zeros(4)), line).cautions
    even = np.tile(np.arange(RANKS), 2)
    result = Calibration(pd.DataFrame({"a": even}), *_judged(a=even), {}, cautions)
    assert str(result).endswith("\nCaution: the density is approximate.")
    assert Calibration.load(result.save(tmp_path / "one.json")).cautions == cautions
    unusable = {"3": "3 divergences", "5": "17 divergences", "8": "R-hat 1.02"}
    result = Calibration(result.ranks, result.table, 3, {"unusable": unusable})
    assert "(3 replicates gave no usable posterior, most often because of divergences)" in str(result)
    result = Calibration(result.ranks, result.table, 1, {"unusable": {"4": "R-hat 1.2, 3 divergences"}})
    assert "most often because of R-hat, divergences)" in str(result)


class _NoExecutor:
    """Executor that does not run anything."""

    def submit(self, *args, **options):
        raise RuntimeError


def _judged(**ranks):
    return judge_ranks(pd.DataFrame(ranks)), 0


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


class Fitted:
    """Stands in for `fit_each`: of each of 30 data sets the same draws, and what it was called with."""

    def __init__(self, draws, why=()):
        self.draws, self.why = draws, ["", *why]

    def __call__(self, program, objects, **options):
        self.program, self.objects, self.options = program, objects, options
        num = len(objects)
        why = [self.why[i % len(self.why)] for i in range(num)]
        kept = {i: {n: self.draws[n] for n in options["keep_draws"]} for i in range(num) if not why[i]}
        verdicts = pd.DataFrame({"why": why})
        return SimpleNamespace(verdicts=verdicts, kept=kept, usable=verdicts["why"] == "", cost={"seconds": 1.0})


def test_ranks_are_numbers_of_draws_below_the_true_value(monkeypatch):
    slope, error = RNG.normal(size=(4, 300)), RNG.gamma(4.0, size=(4, 300)) / 4.0
    fitted = Fitted({"slope": slope, "error": error, "lp": RNG.normal(-6.0, 3.0, size=(4, 300))})
    monkeypatch.setattr(calibration, "fit_each", fitted)
    result = run(30, parameters=["error", "slope"], max_num_samples=700, max_steps=9)
    assert list(result.ranks) == ["error", "slope", LOG_DENSITY]
    assert fitted.options["until"] == 1.2 * 99
    assert (fitted.options["max_num_samples"], fitted.options["max_steps"]) == (700, 9)
    assert fitted.options["seed"] == seed(2) + 1
    truth, data, density = Replicates.of(line, (DESIGN, np.zeros(4)), line).simulate(30, seed(2))
    chosen = np.linspace(0, 1199, 99).round().astype(int)
    for name, draws in (("slope", slope), ("error", error)):
        expected = (draws.ravel()[chosen] < truth[name][:, None]).sum(axis=1)
        np.testing.assert_array_equal(result.ranks[name], expected)
    expected = (fitted.draws["lp"].ravel()[chosen] < density[:, None]).sum(axis=1)
    np.testing.assert_array_equal(result.ranks[LOG_DENSITY], expected)
    for i, values in enumerate(fitted.objects):
        np.testing.assert_array_equal(values["y"], data["y"][i])
    # The log density is that of the program on the simulated data, in the sampler's coordinates: with a Jacobian.
    expected = stats.norm.logpdf(truth["slope"]) + stats.gamma.logpdf(truth["error"], 4.0, scale=0.25)
    expected += np.log(truth["error"])
    expected += stats.norm.logpdf(data["y"], truth["slope"][:, None] * DESIGN, truth["error"][:, None]).sum(axis=1)
    np.testing.assert_allclose(density, expected, rtol=1e-10)
    # What is fitted is the program with these data in place of its own.
    trace = handlers.trace(handlers.seed(fitted.program, 0)).get_trace(fitted.objects[3])
    np.testing.assert_array_equal(trace["y"]["value"], data["y"][3])


@pytest.mark.long
def test_what_is_simulated_has_the_distribution_of_the_program(monte_carlo):
    truth, data, _ = Replicates.of(line, (DESIGN, np.zeros(4)), line).simulate(200, seed(7))
    monte_carlo.distribution(truth["slope"], "norm", name="slope")
    monte_carlo.distribution(truth["error"], stats.gamma(4.0, scale=0.25).cdf, name="error")
    noise = (data["y"] - truth["slope"][:, None] * DESIGN) / truth["error"][:, None]
    monte_carlo.distribution(noise, "norm", name="noise")


def test_failures_are_counted_and_an_interrupted_calibration_is_none(monkeypatch):
    draws = {name: RNG.normal(size=(2, 99)) for name in ("slope", "error", "lp")}
    monkeypatch.setattr(calibration, "fit_each", Fitted(draws, why=["R-hat 1.2", ""]))
    result = run(30, parameters=["error"])
    assert result.num_failed == 10
    assert list(result.ranks.index) == [i for i in range(30) if i % 3 != 1]
    monkeypatch.setattr(calibration, "fit_each", Fitted(draws, why=[batch.INTERRUPTED]))
    with pytest.raises(Interrupted, match="calibrate: interrupted with 15 of 30 replicates done"):
        run(30)


def without_slope(x, y=None):
    """`line` with its slope integrated out."""
    error = numpyro.sample("error", dist.Gamma(4.0, 4.0))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(4), error**2 * jnp.eye(4) + jnp.outer(x, x)), obs=y)


def test_parameters_that_are_integrated_out_are_not_ranked(monkeypatch):
    monkeypatch.setattr(calibration, "fit_each", Fitted(dict.fromkeys(("error", "lp"), RNG.gamma(4.0, size=(2, 99)))))
    assert list(run(30, fitted=without_slope).ranks) == ["error"]
    with pytest.raises(ValueError, match="slope"):
        run(30, fitted=without_slope, parameters=["slope"])


@pytest.mark.long
def test_another_program_may_be_fitted(monkeypatch):
    """Its log density is ranked where it has the same latent sites."""
    draws = {name: RNG.normal(size=(2, 99)) for name in ("slope", "error", "lp")}
    monkeypatch.setattr(calibration, "fit_each", Fitted(draws))
    assert list(run(30, fitted=in_logarithm).ranks) == ["slope", "error"]
    narrow = run(30, fitted=functools.partial(line, width=0.8))
    assert list(narrow.ranks) == ["slope", "error", LOG_DENSITY]
    assert "fitted" in narrow.run


# The certificate


@pytest.mark.long
def test_certificate(right, tmp_path):
    path = right.save(tmp_path / "deep" / "certificate.json")
    content = json.loads(path.read_text())
    assert content["calibrated"] is right.calibrated
    assert content["verdict"] == str(right)
    assert content["run"]["options"]["seed"] == seed(2)
    assert content["run"]["versions"]["jax"] == jax.__version__
    again = Calibration.load(path)
    assert str(again) == str(right)
    pd.testing.assert_frame_equal(again.ranks, right.ranks, check_index_type=False)
    pd.testing.assert_frame_equal(again.table, right.table, check_names=False)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: expected a calibration certificate; found something else"):
        Calibration.load(tmp_path / "other.json")


# The statistics


def test_uniform_ranks_fail_as_often_as_they_should(monte_carlo):
    random = np.random.default_rng(seed(3))
    table = judge_ranks(pd.DataFrame({f"a{i}": random.integers(0, RANKS, 200) for i in range(60)}))
    p = table["p"].to_numpy()
    monte_carlo.p_value(stats.kstest(p, "uniform", alternative="greater").pvalue, name="p-values are not too small")
    # Three tests in one are a little shy: of 2000 such p-values the mean is 0.676, the spread 0.345.
    monte_carlo.within(p.mean(), 0.676, 0.345 / np.sqrt(60), name="mean p-value")


def test_shapes_of_ranks_have_their_words():
    """Of 200 ranks at the quantiles of each shape."""
    share = (np.arange(200) + 0.5) / 200
    shapes = {"low": (1.5, 1.0), "high": (1.0, 1.5), "narrow": (0.6, 0.6), "wide": (2.0, 2.0), "even": (1.0, 1.0)}
    ranks = {name: np.floor(stats.beta.ppf(share, *shape) * RANKS).astype(int) for name, shape in shapes.items()}
    table = judge_ranks(pd.DataFrame(ranks))
    verdicts = table["verdict"]
    assert verdicts["low"] == "biased: posteriors lie too low"
    assert verdicts["high"] == "biased: posteriors lie too high"
    assert verdicts["narrow"] == "overconfident: posteriors are too narrow"
    assert verdicts["wide"] == "underconfident: posteriors are too wide"
    assert verdicts["even"] == "uniform"
    for name, shape in shapes.items():
        scores = stats.norm.ppf(stats.beta.ppf(share, *shape))
        assert table["bias"][name] == pytest.approx(-scores.mean(), abs=0.02)
        assert table["width"][name] == pytest.approx(1 / scores.std(), rel=0.05)


def ranks_of_normal_posteriors(num_sets, num, bias, width):
    """Histograms (set, rank) of true values among 99 draws of normal posteriors, drawn one by one."""
    rng = np.random.default_rng(seed(8))
    below = stats.norm.cdf((rng.normal(size=(num_sets, num)) - bias) / width)
    return np.stack([np.bincount(row, minlength=RANKS) for row in rng.binomial(RANKS - 1, below)])


def test_the_smallest_errors_are_found_in_nine_of_ten_calibrations(monte_carlo):
    bias, narrow, wide = detectable = rank_tests.detectable_errors(200, 4)
    assert detectable is Calibration(pd.DataFrame(index=range(200)), pd.DataFrame(index=range(4)), 0, {}).detectable
    for name, error in {"bias": (bias, 1.0), "narrow": (0.0, narrow), "wide": (0.0, wide)}.items():
        p = p_values(ranks_of_normal_posteriors(600, 200, *error))[0]
        # The test of the ECDF, which the errors stated leave out, finds up to 1.5 % more; their simulation errs by 1 %.
        monte_carlo.share(p < LEVEL / 4, 0.9, expected_error=0.015, name=name, independent=True)
    assert str(detectable).startswith("a bias of 0.3")


def test_normal_scores_see_more_than_the_variance_of_ranks(monte_carlo):
    """Posteriors 15 % too narrow, in 200 replicates of three quantities: the variance of the ranks finds 34 %."""
    p = p_values(ranks_of_normal_posteriors(1000, 200, 0.0, 0.85))[0]
    monte_carlo.share(p < LEVEL / 3, 0.468, expected_error=0.004, name="found", independent=True)


@pytest.mark.long
def test_false_alarms_are_as_rare_as_the_level_says(monte_carlo):
    for num in (20, 200):
        histograms = np.random.default_rng(seed(9)).multinomial(num, np.full(RANKS, 1 / RANKS), 20000)
        p = p_values(histograms)[0]
        for level, size in ((0.05, 0.0415), (0.01, 0.0083)):  # three tests that share a level are a little shy
            monte_carlo.share(p < level, size, expected_error=0.03 * size, name=f"{num}", independent=True)


def test_the_band_holds_whole_curves_as_often_as_it_says(monte_carlo):
    share, lower, upper = band(200, 0.9)
    assert share.shape == (RANKS - 1,)
    ranks = np.random.default_rng(seed(4)).multinomial(200, np.full(RANKS, 1 / RANKS), 3000)
    curves = ranks.cumsum(axis=1)[:, :-1] / 200 - share
    inside = ((curves >= lower - 1e-12) & (curves <= upper + 1e-12)).all(axis=1)
    # Ranks are whole numbers, so that no band holds exactly nine tenths.
    monte_carlo.share(inside, 0.9, expected_error=0.005, name="inside", independent=True)


def test_the_band_is_that_of_arviz():
    num = 200
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
    advance, calls = batch._Queue.advance, []

    def advance_or_stop(self):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(batch._Queue, "advance", advance_or_stop)
    with pytest.raises(Interrupted, match=r"calibrate: interrupted with \d+ of 200 replicates done"):
        run(200, num_slots=100)


def test_priors_of_impossible_data_are_said(monkeypatch):
    def often_impossible(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(jax.numpy.sqrt(x - 0.5), 1.0), obs=y)

    monkeypatch.setattr(calibration, "fit_each", None)
    with pytest.raises(
        ValueError, match="expected at least half of the prior draws to give finite data and densities; found"
    ):
        calibrate(often_impossible, np.array(0.0), num_replicates=50, progress=False)
    with pytest.raises(ValueError, match=r"found 0 of 40\. .* The argument 'x' has NaN in row 2 \(counted from 0\)\.$"):
        calibrate(line, np.array([0.0, 1.0, np.nan]), np.zeros(3), num_replicates=20, progress=False)


def with_ties(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.deterministic("positive", jnp.maximum(slope, 0.0))
    numpyro.deterministic("three", jnp.asarray(3.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


@pytest.mark.long
def test_ties_are_broken_by_chance_and_constants_left_out(monkeypatch, monte_carlo):
    slope = RNG.normal(size=(4, 300))
    draws = {"slope": slope, "positive": np.maximum(slope, 0.0), "three": np.full(slope.shape, 3.0), "lp": slope}
    monkeypatch.setattr(calibration, "fit_each", Fitted(draws))
    x = np.linspace(-1, 1, 6)
    result = calibrate(with_ties, x, np.zeros(6), num_replicates=200, seed=seed(1), progress=False)
    assert set(result.table.index) == {"slope", "positive", LOG_DENSITY}
    kept = np.maximum(slope.ravel()[np.linspace(0, 1199, 99).round().astype(int)], 0.0)
    ties = (kept == 0.0).sum()
    ranks = result.ranks["positive"].to_numpy()
    truth = Replicates.of(with_ties, (x, np.zeros(6)), with_ties).simulate(200, seed(1))[0]["positive"]
    np.testing.assert_array_equal(ranks[truth > 0], (kept < truth[:, None]).sum(axis=1)[truth > 0])
    tied = ranks[truth == 0]
    assert tied.max() <= ties
    expected, std = ties / 2.0, np.sqrt(((ties + 1) ** 2 - 1) / 12.0)
    monte_carlo.within(tied.mean(), expected, std / np.sqrt(len(tied)), name="ranks of ties")


def by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("soft", -(mu**4))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_what_cannot_be_simulated_is_refused_by_name():
    with pytest.raises(ValueError, match=r"data can be simulated; found numpyro\.factor 'soft'"):
        calibrate(by_factor, 1.0, progress=False)


def test_an_option_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"calibrate: unknown option 'num_replicate' .did you mean 'num_replicates'\?"):
        calibrate(with_ties, np.ones(3), np.ones(3), num_replicate=30)
