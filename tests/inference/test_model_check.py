"""The check of the model: exact ranks, corrected for their number; planted misfits; programs that cannot be checked."""

import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from criticised import fit_of_line, flat_line, line_data
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from programs import fit_of_draws
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference.model_check import host_draws, p_values
from hbm_jax.inference.model_check import residual_statistics as rs
from hbm_jax.inference.model_check.check import _describe, _scores_of_components, check_model, judge_pools
from hbm_jax.inference.model_check.replicates import completed, inspect_program, replicator
from hbm_jax.inference.model_check.result import ModelCheck, unusual_residuals

SHAPE = (4, 200)


def groups(x, y, night):
    """Stars of nights that differ: sampled latents, of which the data know a little."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("night", 12):
        level = numpyro.sample("level", dist.Normal(0.0, scale))
    with numpyro.plate("star", len(y)), handlers.mask(mask=np.asarray(x) > -9.0):
        numpyro.sample("y", dist.Normal(level[night], 0.5), obs=y)


def fit_of_groups(shift=0.0):
    """Fit with levels whose posterior, given a known scale of 1, is normal."""
    rng = np.random.default_rng(5)
    night = np.repeat(np.arange(12), 5)
    level = rng.normal(size=12)
    level[3] += shift
    y = level[night] + 0.5 * rng.normal(size=60)
    x = np.where(np.arange(60) % 10 == 9, -99.0, rng.normal(size=60))
    y = np.where(x < -9.0, 1e6, y)  # padding
    used = x > -9.0
    num = np.bincount(night, weights=used)
    variance = 1.0 / (1.0 + num / 0.25)
    mean = variance * np.bincount(night, weights=np.where(used, y, 0.0)) / 0.25
    draws = mean + np.sqrt(variance) * rng.normal(size=(*SHAPE, 12))
    sites = {"scale": np.ones(SHAPE), "level": draws}
    free = {"scale": np.zeros(SHAPE), "level": draws}  # the logarithm of 1
    return fit_of_draws(groups, (x, y, night), sites, unconstrained=free)


def test_scores_are_normal_quantiles_and_go_on_beyond_the_pool():
    rng = np.random.default_rng(1)
    pool = rng.normal(size=(50, 401))
    scores = rs.normal_scores(pool)
    assert np.abs(scores - pool)[np.abs(pool) < 1.2].max() < 0.45
    # Ranks and nothing else in the middle; a far value is as far as an exponential tail makes it.
    ordered = np.sort(scores, axis=1)
    np.testing.assert_allclose(ordered[0, 60:340], stats.norm.ppf((np.arange(60, 340) + 0.5) / 401), atol=1e-9)
    pool[:, 0] = 6.0
    far = rs.normal_scores(pool)[:, 0]
    assert (far > 3.3).all()
    assert (far < 6.0).all()


def test_p_values_are_uniform_for_exchangeable_columns():
    """From residuals to the corrected p-value, on pools whose first column is like the others."""
    rng = np.random.default_rng(2)
    num, size, counts = 40, 60, []
    numeric = [rs.Covariate("x", rng.normal(size=size))]
    codes = np.arange(size) % 4
    for _ in range(200):
        pool = rng.standard_exponential((num, size))
        residuals = rs.residuals_of(pool, "y")
        designs = [rs.design_of("x", numeric[0].values, np.zeros(size, int))]
        empty = np.zeros(0, int)
        nights = [rs.Design("night", empty, rs.group_matrix(codes), empty, empty)]
        statistics = list(rs.statistics_of(residuals, [], designs, nights))
        values = np.stack([statistic.values for statistic in statistics])
        scores = p_values.scores_of(values, np.array([statistic.two_sided for statistic in statistics]))
        counts.append(p_values.p_value_of(scores))
    assert stats.kstest(np.array(counts) - rng.uniform(0, 1 / num, 200), "uniform").pvalue > 1e-3


def test_several_moderate_deviations_count_for_more_than_a_larger_one():
    scores = np.random.default_rng(3).normal(size=(100, 20_000))

    def p_value(*unusual):
        scores[:, 0] = stats.norm.ppf((np.arange(100) + 0.5) / 100)
        scores[-1 - len(unusual) : -1, 0] = unusual
        return p_values.p_value_of(scores)

    assert p_value(*[2.5] * 8) < 0.8 * p_value(3.0) < 0.2
    # Beyond a sum T of 100 inverse tail probabilities there is a share of 100 / T, as the largest alone has it.
    assert p_value(3.9) == pytest.approx(100 * stats.norm.sf(3.9), rel=0.5)


def test_weights_are_numbers_of_copies():
    scores = np.random.default_rng(6).normal(size=(30, 201))
    weights = np.where(np.arange(30) < 2, 4.0, 1.0)
    copies = np.concatenate([scores, *[scores[:2]] * 3])
    assert p_values.p_value_of(scores, weights) == p_values.p_value_of(copies)
    scores[0, 0] = 3.0
    assert p_values.p_value_of(scores, weights) < p_values.p_value_of(scores)


def test_number_expected_below_the_smallest_value_is_exponential_and_large_for_cut_values(monte_carlo):
    rng = np.random.default_rng(seed(7))
    mean, spread = rng.normal(size=(100, 1)), rng.uniform(0.5, 2.0, (100, 1))
    values = mean + spread * rng.normal(size=(100, 2000))
    below = rs.expected_below(values)
    for x in (0.5, 1.0, 3.0):
        # Of many independent values; the product of all 1 - F is smaller by the squares of F.
        monte_carlo.share(below > x, np.exp(-x), expected_error=0.1 * np.exp(-x), name=f"above {x}", independent=True)
    limit = 0.0
    lost = stats.norm.cdf((limit - mean) / spread).sum()
    values[:, 0] = mean[:, 0] + spread[:, 0] * stats.truncnorm.rvs(
        (limit - mean[:, 0]) / spread[:, 0], np.inf, random_state=rng
    )
    residuals = rs.residuals_of(values.T, "flux")
    # Beyond the limit only the distance to the smallest value, with less than one expected there, is missing.
    assert residuals.beyond["low end"][0] == pytest.approx(lost, rel=0.25)
    assert residuals.beyond["high end"][0] < 8.0
    assert rs.expected_below(values)[0] == residuals.beyond["low end"][0]
    np.testing.assert_array_equal(rs.expected_below(-values), residuals.beyond["high end"])


def test_objects_that_are_missing_below_a_limit_show_in_the_smallest_of_their_maxima():
    rng = np.random.default_rng(8)
    values = 2.0 * rng.normal(size=(400, 40, 1)) + 0.5 * rng.normal(size=(400, 40, 3))
    bright = values[0].max(axis=1) > -1.0
    values[0, ~bright] = np.abs(values[0, ~bright])
    group = np.repeat(np.arange(40), 3)
    beyond = rs.residuals_of(values.reshape(400, 120), "flux", group=group).beyond
    expected = (values.max(axis=2) < values[0].max(axis=1).min()).sum(axis=1).mean()
    assert beyond["low end of maxima"][0] == pytest.approx(expected)
    assert beyond["low end of maxima"][0] > 8.0 > beyond["low end of maxima"].mean() * 4.0
    assert beyond["high end of means"][0] < 8.0


def test_residuals_of_a_component_given_the_others_are_those_of_a_regression():
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(6, 3, 3))
    pool = np.einsum("eij,pej->pei", mixing, rng.normal(size=(50, 6, 3))) + rng.normal(size=(6, 3))
    pool[:, 5, 2] = 1.0  # constant, and therefore of no use to the others
    found = _scores_of_components(pool)
    for element in range(6):
        for k in range(2 if element == 5 else 3):
            others = np.column_stack([np.ones(50), np.delete(pool[:, element], k, axis=1)])
            response = pool[:, element, k]
            expected = response - others @ np.linalg.lstsq(others, response, rcond=None)[0]
            assert np.corrcoef(found[:, element, k], expected)[0, 1] == pytest.approx(1.0, abs=1e-10)


def test_right_model_passes_and_is_the_same_twice():
    fit = fit_of_line(line_data())
    check = check_model(fit)
    assert check.passed
    assert check.p_value > 0.05
    assert "look like draws" in str(check)
    assert not check.remedies
    assert check_model(fit).p_value == check.p_value
    assert set(check.table["covariate"]) >= {"x", "night"}
    assert "y" not in set(check.table["covariate"])  # what is observed is no covariate


def test_missing_slope_is_found_where_it_is():
    check = check_model(fit_of_line(line_data(), flat_line))
    assert check.passed is False
    trends = check.table[check.table["family"] == "trend"]
    assert trends.iloc[0]["covariate"] == "x"
    assert trends.iloc[0]["score"] > 3.0
    assert "y scatters" in check.sentence  # the noise is known
    assert "where x is" in check.sentence
    assert len(check.remedies) >= 2


def test_a_trend_with_another_component_is_described_without_bins_where_their_elements_differ():
    values = np.random.default_rng(1).normal(size=(8, 3))
    residuals = types.SimpleNamespace(label="x1", values=values, elements=np.arange(8), beyond={})
    describe = partial(_describe, "trend", residuals, "the residual of c", labels=(), name_of=str)
    assert describe(np.zeros(0)) == "the residuals of x1 are correlated with the residual of c"
    assert " standard deviations where the residual of c is " in describe(np.arange(8.0))


def test_outlier_is_named():
    check = check_model(fit_of_line(line_data(outlier=4.0)))
    assert check.passed is False
    assert "star 35" in check.sentence or "tails" in check.sentence


def test_remedies_of_the_program_take_the_place_of_general_ones():
    fit = fit_of_line(line_data(), flat_line)
    flat_line.remedies = {"trend": "use line"}
    try:
        assert "use line" in check_model(fit).remedies
    finally:
        del flat_line.remedies


def test_padding_is_left_out_and_latents_of_nights_are_drawn_anew():
    fit = fit_of_groups()
    check = check_model(fit)
    assert check.passed, str(check)
    assert set(check.table["level"]) == {"given latents", "population"}
    # A night that is far from the others fits its own level, but no population of unit width.
    check = check_model(fit_of_groups(shift=8.0))
    assert check.passed is False
    assert check.table.iloc[0]["level"] == "population"
    assert "drawn anew" in check.sentence


@pytest.mark.long
def test_residuals_given_the_others_are_those_of_the_precision_matrix():
    """Of a bivariate normal, the gradient gives the residual of y given x."""
    rng = np.random.default_rng(3)
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    y = rng.multivariate_normal(np.zeros(2), covariance, size=80)

    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("star", len(y)):
            numpyro.sample("y", dist.MultivariateNormal(jnp.full(2, mu), covariance), obs=y)

    with jax.enable_x64(True):
        structure = inspect_program(program, (y,))
        run = replicator(program, (y,), structure, 60)
        pool = run({"mu": 0.2}, jax.random.key_data(jax.random.key(0)), {})["y", "given latents"]
    expected = (y - 0.2) @ np.linalg.inv(covariance)
    np.testing.assert_allclose(np.asarray(pool["scores"])[0], expected, rtol=1e-9)
    assert structure.observed["y"].components == ("component 1", "component 2")
    check = judge_pools([{("y", "given latents"): jax.device_get(pool)}], structure, (y,))
    assert "component 2 given the other components" in set(check.table["residuals"])


def test_counts_and_values_without_a_plate():
    rng = np.random.default_rng(3)
    counts = rng.poisson(3.0, 50)

    def program(counts):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    def fit(counts):
        rate = rng.gamma(2.0 + counts.sum(), 1.0 / (0.5 + len(counts)), SHAPE)
        return fit_of_draws(program, (counts,), {"rate": rate}, unconstrained={"rate": np.log(rate)})

    assert check_model(fit(counts)).passed
    clumped = rng.poisson(rng.gamma(1.0, 3.0, 50))  # more scatter than Poisson's
    check = check_model(fit(clumped))
    assert check.passed is False
    assert "distribution" in set(check.table["family"][:1])


@pytest.mark.long
def test_counts_that_numpy_draws_have_the_moments_of_those_of_jax(monkeypatch, monte_carlo):
    counts, num = np.arange(12.0).reshape(4, 3), 4000
    log_rate = np.array([1.0, 2.0, 0.0, 3.0])

    def program(counts):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("source", 4, dim=-2):
            level = numpyro.sample("level", dist.Normal(0.0, scale))
            with numpyro.plate("bin", 3, dim=-1), handlers.mask(mask=counts < 11.0):
                numpyro.sample("counts", dist.Poisson(jnp.exp(level)), obs=counts)

    def pools():
        with jax.enable_x64(True):
            structure = inspect_program(program, (counts,))
            run = replicator(program, (counts,), structure, num)
            latents = {"scale": np.log(0.5), "level": log_rate[:, None]}
            pools = jax.device_get(run(latents, jax.random.key_data(jax.random.key(seed(5))), {}))
        return structure, {level: completed(pool, structure.observed[name]) for (name, level), pool in pools.items()}

    structure, by_numpy = pools()
    assert not structure.observed["counts"].loops
    monkeypatch.setattr(host_draws, "HOST_DRAWS", {})
    structure, by_jax = pools()
    assert structure.observed["counts"].loops
    for found in (by_numpy, by_jax):
        for level in ("given latents", "population"):
            np.testing.assert_array_equal(found[level]["values"][0], counts)
            np.testing.assert_array_equal(found[level]["valid"], counts < 11.0)
            drawn = found[level]["values"][1:].astype(float)
            assert drawn.shape == (num, 4, 3)
            for i, rate in enumerate(np.exp(log_rate)):
                # Of the population, exp(level) has a log-normal distribution.
                mean = rate if level == "given latents" else np.exp(0.5 * 0.5**2)
                variance = mean + (0.0 if level == "given latents" else mean**2 * (np.exp(0.5**2) - 1.0))
                monte_carlo.mean(drawn[:, i, 0], mean, name=f"{level} {i}", independent=True)
                monte_carlo.std(drawn[:, i, 1], np.sqrt(variance), name=f"{level} {i}", independent=True)
    # Bins of one source share its rate, those of others do not; replicates of the two levels are drawn separately.
    drawn = by_numpy["population"]["values"][1:]
    correlation = np.corrcoef(drawn[:, 1].T)[0, 1]
    mean = np.exp(0.125)
    between = mean**2 * (np.exp(0.25) - 1.0)
    assert correlation == pytest.approx(between / (between + mean), abs=0.1)
    assert abs(np.corrcoef(drawn[:, 1, 0], drawn[:, 2, 0])[0, 1]) < 0.08
    given = by_numpy["given latents"]["values"][1:]
    assert abs(np.corrcoef(given[:, 1, 0], drawn[:, 1, 0])[0, 1]) < 0.08
    assert abs(np.corrcoef(given[:, 1, 0], given[:, 1, 1])[0, 1]) < 0.08


@pytest.mark.parametrize(
    "fn",
    [
        dist.Poisson(np.array([0.5, 30.0])),
        dist.NegativeBinomial2(np.array([3.0, 20.0]), 2.0),
        dist.GammaPoisson(2.5, np.array([0.5, 2.0])),
        dist.Binomial(np.array([1.0, 20.0]), probs=0.3),
        dist.Binomial(np.array([5, 20]), logits=np.array([-1.0, 2.0])),
        dist.BetaBinomial(2.0, np.array([3.0, 5.0]), 12),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_counts_of_numpy_have_mean_and_variance_of_their_distribution(fn, monte_carlo):
    expanded = fn.expand((3, 2)).mask(True)
    parameters = {name: np.broadcast_to(v, (6000, 3, 2)) for name, v in host_draws.parameters_of(expanded).items()}
    drawn = host_draws.draw_counts(expanded, parameters, np.random.default_rng(seed(2))).astype(float)
    for i in (0, 1):
        monte_carlo.mean(drawn[:, 1, i], float(fn.mean[i]), independent=True)
        monte_carlo.std(drawn[:, 2, i], float(np.sqrt(fn.variance[i])), independent=True)


def test_numpy_does_not_draw_for_distributions_with_draws_of_their_own():
    class Doubled(dist.Poisson):
        def sample(self, key, sample_shape=()):
            return 2 * super().sample(key, sample_shape)

    assert host_draws.draws_on_host(dist.Poisson(1.0).expand((3,)).mask(False))
    assert not host_draws.draws_on_host(Doubled(1.0))
    assert not host_draws.draws_on_host(dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("reason", ["program", "observed", "sample"])
def test_what_cannot_be_checked_says_why(reason):
    fit = fit_of_line(line_data())
    if reason == "program":
        fit.program = None
        expected = "without its program"
    elif reason == "observed":
        fit.program = lambda data: numpyro.sample("coefficient", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        expected = "no site of the program is observed"
    else:

        class NoDraws(dist.Normal):
            def sample(self, key, sample_shape=()):
                raise NotImplementedError("no draws")

        def program(data):
            coefficient = numpyro.sample("coefficient", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
            with numpyro.plate("star", len(data)):
                numpyro.sample("y", NoDraws(coefficient[0], 1.0), obs=data.y)

        fit.program = program
        expected = "NotImplementedError: no draws"
    check = check_model(fit)
    assert check.passed is None
    assert np.isnan(check.p_value)
    assert check.sentence.startswith("the model could not be checked because")
    assert expected in check.sentence


def test_few_draws_or_replicates_are_refused():
    fit = fit_of_line(line_data())
    with pytest.raises(ValueError, match="num_replicates >= 20; found 5 and 3"):
        check_model(fit, num_draws=5, num_replicates=3)


@pytest.mark.slow
def test_relation_whose_measured_x_are_cut_fails():
    """x exponential, slope 2, scatter 0.3, errors 0.7 in x, and only X > 1 measured."""
    rng, num = np.random.default_rng(3), 300
    x = rng.exponential(1.0, 20 * num)
    measured_x = x + 0.7 * rng.normal(size=x.size)
    measured_y = 2.0 * x + 0.3 * rng.normal(size=x.size) + 0.2 * rng.normal(size=x.size)
    kept = np.flatnonzero(measured_x > 1.0)[:num]
    columns = {"x": measured_x[kept], "y": measured_y[kept], "sigma_x": np.full(num, 0.7), "sigma_y": np.full(num, 0.2)}
    fit = hbm.sample(
        hbm.models.Relation(pooling="complete"), hbm.data.PointsInGroups.from_columns(columns), seed=1, progress=False
    )
    assert fit.verdict.usable
    check = check_model(fit)
    assert check.passed is False
    assert "selection" in " ".join(check.remedies)


def test_covariates_are_found_in_containers_tables_and_arrays():
    @dataclasses.dataclass
    class Inner:
        energy: np.ndarray

    @dataclasses.dataclass
    class Outer:
        name: tuple
        survey: tuple
        y: np.ndarray
        inner: Inner
        covariance: np.ndarray
        band: np.ndarray = dataclasses.field(metadata={"columns": ("lower energy", "upper energy")})

    rng = np.random.default_rng(6)
    y = rng.normal(size=(20, 4))
    data = Outer(
        tuple(f"s{i}" for i in range(20)), tuple("ab" * 10), y, Inner(rng.normal(size=(20, 4))),
        np.eye(3) * rng.uniform(1, 2, (20, 1, 1)), rng.normal(size=(20, 4, 2)),
    )  # fmt: skip
    numeric, found = rs.find_covariates((data, rng.normal(size=20)), (20, 4), [y], ["star", "filter"])
    # The covariance is one number times the unit matrix: its three columns are the same one.
    assert [c.name for c in numeric] == [
        "energy", "variance[0]", "lower energy", "upper energy", "argument 2", "the order of star"
    ]  # fmt: skip
    assert [g.name for g in found] == ["star", "survey"]
    assert found[1].labels == ("a", "b")
    assert found[1].values.shape == (80,)


def test_figure_shows_the_residuals_that_are_most_unusual(tmp_path):
    plotting = pytest.importorskip("hbm_jax.plotting")
    check = check_model(fit_of_line(line_data(), flat_line))
    figure = plotting.model_residuals(check)
    left, right = figure.axes
    assert (left.get_xlabel(), figure.get_suptitle()) == ("x", "residuals of y")
    # The line that is missing: residuals rise along x, outside the bands of the replicates at both ends.
    means = np.concatenate([line.get_ydata() for line in left.lines if line.get_marker() == "o"])
    assert means.min() < -1.0 < 1.0 < means.max()
    assert sum(patch.get_data().values.sum() for patch in right.patches[-1:]) == 36
    figure.savefig(tmp_path / "residuals.png")
    with pytest.raises(ValueError, match="could not be checked because why"):
        plotting.model_residuals(dataclasses.replace(check, worst=None, sentence="it could not be checked because why"))


def test_figure_has_symbols_units_and_a_legend():
    plotting = pytest.importorskip("hbm_jax.plotting")
    rng = np.random.default_rng(4)
    x, values = np.sort(rng.normal(10.0, 1.0, 80)), rng.normal(size=(80, 50))
    values[:, 0] += np.where(x > 10.5, 3.0, 0.0)
    worst = unusual_residuals("x1 given the other components", "log10_mass", values, x, (), rs.bins_of(x))
    figure = plotting.model_residuals(ModelCheck(False, 0.001, "some sentence", worst=worst))
    assert figure.get_suptitle() == "residuals of $x_1$ given the other components"
    assert figure.axes[0].get_xlabel() == r"$\log_{10}\,M_\mathrm{host}$ [$M_\odot$]"
    text = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert text == ["mean in a bin", "mean in a bin, outside 95 %", "number of residuals", "68 % of replicates", "95 %"]


def test_order_of_a_table_sorted_by_what_was_observed_is_no_covariate():
    y = np.random.default_rng(9).normal(size=30)
    assert [c.name for c in rs.find_covariates((y,), (30,), [y], ["star"])[0]] == ["the order of star"]
    assert rs.find_covariates((np.sort(y),), (30,), [np.sort(y)], ["star"])[0] == []
