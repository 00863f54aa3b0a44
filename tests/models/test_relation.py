"""The linear relation: exact marginals, what goes in comes out, limits and outliers, and what is refused."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import handlers
from scipy import stats
from sites import at_latents, compiled_sites

import hbm_jax as hbm
from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
from hbm_jax.models.linear.relation import Relation
from hbm_jax.validation import DataError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TRUE = {"alpha_mean": 1.5, "alpha_std": 0.3, "beta_mean": 2.0, "beta_std": 0.5, "intrinsic_scatter": 0.2}


def points(groups=12, size=8, start=1, sigma_x=0.3, sigma_y=0.2, spread=1.0):
    """Columns of points in groups of different sizes, and the true lines."""
    rng = np.random.default_rng(start)
    sizes = np.maximum(size - np.arange(groups) % size, 1) if groups > 1 else np.array([size])
    of = np.repeat(np.arange(groups), sizes)
    alpha, beta = rng.normal(1.5, 0.3, groups), rng.normal(2.0, 0.5, groups)
    x = rng.normal(1.0, spread, len(of))
    y = alpha[of] * (x - 1.0) + beta[of] + rng.normal(0, 0.2, len(of))
    columns = {
        "x": x + rng.normal(0, sigma_x, len(of)), "y": y + rng.normal(0, sigma_y, len(of)),
        "sigma_x": np.full(len(of), sigma_x), "sigma_y": np.full(len(of), sigma_y),
        "group": [f"g{i:02d}" for i in of],
    }  # fmt: skip
    return columns, alpha, beta


def compared(fit, expected, names, k=4.0):
    for name in names:
        draws = fit.posterior[name].to_numpy()
        assert abs(draws.mean() - expected[name]) < k * draws.std(), name


POPULATION = {
    "alpha_mean": 1.4, "alpha_std": 0.4, "beta_mean": 1.8, "beta_std": 0.6, "intrinsic_scatter": 0.3,
    "x_mean": 0.9, "x_std": 1.1,
}  # fmt: skip


@pytest.mark.parametrize("correlation", [None, -0.5])
def test_the_marginal_density_is_that_of_the_sampled_one_integrated(correlation):
    """Intercepts and true predictors integrated out, against a normal of all measured values of a group at once."""
    columns, *_ = points(3, 4)
    data = PointsInGroups.from_columns(columns)
    r = correlation or 0.0
    values = POPULATION | ({} if correlation is None else {"correlation": r})
    sites = compiled_sites(Relation(pivot=1.0, correlated=correlation is not None), data)
    alpha = np.array([1.2, 1.7, 0.8])
    # Whatever form the slopes are sampled in: find their site values that give these slopes.
    given, log_determinant = at_latents(sites, values | {"_alpha": np.zeros(3)}, {"_alpha": ("alpha", alpha)})
    found = sites(given)
    np.testing.assert_allclose(found.values["alpha"], alpha, rtol=1e-12)
    prior = stats.norm.logpdf(alpha, 1.4, 0.4).sum()
    assert found.log_probs["_alpha"].sum() == pytest.approx(prior + log_determinant, rel=1e-10)
    expected = 0.0
    for j in range(3):
        used = data.used[j]
        num = int(used.sum())
        measured, errors = data.values[j, used], data.errors[j, used]
        beta, spread = 1.8 + r * 0.6 * (alpha[j] - 1.4) / 0.4, 0.6 * np.sqrt(1 - r**2)
        mean = np.array([0.9, beta + alpha[j] * (0.9 - 1.0)])
        cov = np.zeros((num, 2, num, 2))
        for i in range(num):
            line = np.array([1.0, alpha[j]])
            cov[i, :, i, :] = 1.1**2 * np.outer(line, line) + np.diag([0.0, 0.3**2]) + errors[i]
        cov[:, 1, :, 1] += spread**2
        whole = stats.multivariate_normal(np.tile(mean, num), cov.reshape(2 * num, 2 * num))
        expected += whole.logpdf(measured.ravel())
    assert found.log_probs["observed"].sum() == pytest.approx(expected, rel=1e-10)


def test_the_density_with_sampled_latents_and_group_predictors_is_a_plain_sum():
    columns, *_ = points(4, 4)
    age = np.array([0.5, -1.0, 2.0, 0.1])
    columns["age"] = [age[int(g[1:])] for g in columns["group"]]
    data = PointsInGroups.from_columns(columns, group_predictors=["age"])
    away = age - age.mean()  # group predictors are less their mean
    values = POPULATION | {"alpha_group": np.array([0.7]), "beta_group": np.array([-0.4])}
    sites = compiled_sites(Relation(pivot=1.0, latents="sampled"), data)
    random = np.random.default_rng(3)
    alpha, beta, x = random.normal(1.4, 0.4, 4), random.normal(1.8, 0.6, 4), random.normal(0.9, 1.1, data.used.shape)
    wanted = {"_alpha": ("alpha", alpha), "_beta": ("beta", beta), "_x": ("x", x)}
    zeros = {site: np.zeros(value.shape) for site, (_, value) in wanted.items()}
    given, _ = at_latents(sites, values | zeros, wanted)
    found = sites(given)
    change = {
        site: np.log(sites(given | {site: given[site] + 1.0}).values[latent] - value)
        for site, (latent, value) in wanted.items()
    }
    expected = stats.norm.logpdf(alpha, 1.4 + 0.7 * away, 0.4) + change["_alpha"]
    np.testing.assert_allclose(found.log_probs["_alpha"], expected, rtol=1e-9)
    expected = stats.norm.logpdf(beta, 1.8 - 0.4 * away, 0.6) + change["_beta"]
    np.testing.assert_allclose(found.log_probs["_beta"], expected, rtol=1e-9)
    expected = stats.norm.logpdf(x, 0.9, 1.1) + change["_x"]
    np.testing.assert_allclose(found.log_probs["_x"][data.used], expected[data.used], rtol=1e-9)
    for j, i in np.argwhere(data.used):
        mean = [x[j, i], beta[j] + alpha[j] * (x[j, i] - 1.0)]
        expected = stats.multivariate_normal.logpdf(data.values[j, i], mean, data.errors[j, i] + np.diag([0.0, 0.09]))
        assert float(found.log_probs["observed"][j, i]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pooling", ["partial", "none", "complete"])
def test_default_priors_are_of_standardised_variables(pooling):
    columns, *_ = points(3, 4)
    data = PointsInGroups.from_columns(columns)
    (cx, cy), (ux, uy) = data.values[data.used].mean(axis=0), data.values[data.used].std(axis=0)
    np.testing.assert_allclose(data.center, [cx, cy], rtol=1e-12)
    np.testing.assert_allclose(data.unit, [ux, uy], rtol=1e-12)
    found = compiled_sites(Relation(pooling=pooling), data)(number=2)
    v = found.values
    expected = {
        "intrinsic_scatter": stats.halfnorm.logpdf(v["intrinsic_scatter"], scale=uy),
        "x_mean": stats.norm.logpdf(v["x_mean"], cx, 2.0 * ux),
        "x_std": stats.halfnorm.logpdf(v["x_std"], scale=2.0 * ux),
    }
    if pooling == "partial":
        expected |= {
            "alpha_mean": stats.norm.logpdf(v["alpha_mean"], 0.0, 3.0 * uy / ux),
            "alpha_std": stats.halfnorm.logpdf(v["alpha_std"], scale=1.5 * uy / ux),
            "beta_mean": stats.norm.logpdf(v["beta_mean"], cy, 3.0 * uy),
            "beta_std": stats.halfnorm.logpdf(v["beta_std"], scale=1.5 * uy),
        }
    else:
        expected |= {
            "alpha": stats.norm.logpdf(v["alpha"], 0.0, 5.0 * uy / ux),
            "beta": stats.norm.logpdf(v["beta"], cy, 5.0 * uy),
        }
        # Lines without a population: point by point, the intercept being at the mean predictor.
        alpha, beta = (np.broadcast_to(v[name], 3) for name in ("alpha", "beta"))
        for j, i in np.argwhere(data.used):
            line = np.array([1.0, alpha[j]])
            mean = v["x_mean"] * line + [0.0, beta[j] - alpha[j] * cx]
            covariance = v["x_std"] ** 2 * np.outer(line, line) + data.errors[j, i]
            covariance = covariance + np.diag([0.0, v["intrinsic_scatter"] ** 2])
            one = stats.multivariate_normal.logpdf(data.values[j, i], mean, covariance)
            assert float(found.log_probs["observed"][j, i]) == pytest.approx(one, rel=1e-9)
    for name, log_prob in expected.items():
        np.testing.assert_allclose(found.log_probs[name], log_prob, rtol=1e-9, err_msg=name)


FIXED = {"alpha": 1.4, "beta": 1.8, "intrinsic_scatter": 0.3, "x_mean": 0.9, "x_std": 1.1}
MORE: dict = {
    "plain": ({}, {}, ()),
    "outliers": ({"outliers": True}, {"outlier_fraction": 0.2, "outlier_scatter": 3.0}, ()),
    "student_t": ({"student_t": True}, {"nu": 3.0}, ()),
    "limits": ({}, {}, ("limit_x", "limit_y")),
    "mixture": ({"num_components": 2}, {}, ()),
}


@pytest.mark.parametrize("kind", MORE)
def test_the_sampled_form_integrated_over_the_true_predictors_is_the_marginal_one(kind):
    """Point by point, by a fine sum over the site of the true predictor."""
    options, priors, limits = MORE[kind]
    columns, *_ = points(1, 6)
    del columns["group"]
    columns |= {name: ["upper" if i == place else "" for i in range(6)] for place, name in enumerate(limits)}
    data = PointsInGroups.from_columns(columns)
    priors = FIXED | priors
    values = {}
    if kind == "mixture":
        del priors["x_mean"], priors["x_std"]
        values = {"x_mean": np.array([0.2, 1.5]), "x_std": np.array([0.5, 0.9]), "x_weight": np.array([0.3, 0.7])}
    model = {
        form: Relation(pooling="complete", latents=form, priors=priors, **options) for form in ("marginal", "sampled")
    }

    def density(form, values):
        seeded = handlers.seed(handlers.substitute(model[form], data=values), 0)
        trace = handlers.trace(seeded).get_trace(data)
        site = trace["observed"]
        fn = site["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        found = fn.log_prob(site["value"])[0]
        x = next((n for n in ("_x", "x") if n in trace and trace[n]["type"] == "sample"), None)
        return found if x is None else found + trace[x]["fn"].log_prob(trace[x]["value"])[0]

    grid = np.linspace(-12.0, 12.0, 2401)
    name = "x" if kind == "mixture" else "_x"

    @jax.jit
    def both(values, grid):
        each = jax.lax.map(lambda x: density("sampled", values | {name: jax.numpy.full((1, 6), x)}), grid)
        return density("marginal", values), each

    expected, each = both(values, grid)
    found = np.log(np.exp(np.asarray(each)).sum(axis=0) * (grid[1] - grid[0]))
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.long
def test_slopes_and_intercept_are_correlated_among_groups(monte_carlo):
    """Of two predictors: the lines of groups, drawn from the program, have the correlations of its factor."""
    rng = np.random.default_rng(2)
    columns = {
        "a": rng.normal(size=1200), "b": rng.normal(size=1200), "y": rng.normal(size=1200),
        "sigma_y": np.full(1200, 0.1), "group": [f"g{i // 3}" for i in range(1200)],
    }  # fmt: skip
    data = PointsInGroups.from_columns(columns, predictors=["a", "b"])
    correlation = np.array([[1.0, 0.6, -0.5], [0.6, 1.0, 0.1], [-0.5, 0.1, 1.0]])
    values = {"correlation_factor": np.linalg.cholesky(correlation), "alpha_std": np.array([0.5, 2.0])}
    program = compiled_sites(Relation(correlated=True, pivot=0.0), data, observed=False)
    v = program(values | {"beta_std": 0.7}, number=seed(1)).values
    lines = np.column_stack([v["alpha"], v["beta"]])
    found = np.corrcoef(lines.T)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        r = correlation[i, j]
        monte_carlo.within(found[i, j], r, (1 - r**2) / 20.0, name=f"correlation of {i} and {j}")
    for k, (mean, std) in enumerate(((v["alpha_mean"][0], 0.5), (v["alpha_mean"][1], 2.0), (v["beta_mean"], 0.7))):
        monte_carlo.mean(lines[:, k], mean, name=f"mean {k}", independent=True, min_ess=300)
        monte_carlo.std(lines[:, k], std, name=f"spread {k}", independent=True, min_ess=300)
    with pytest.raises(DataError, match="a prior of correlation expects one predictor; found 2"):
        Relation(correlated=True, priors={"correlation": 0.1})(data)


@pytest.mark.long
def test_a_short_fit_has_the_lines_of_all_groups():
    columns, alpha, beta = points(8, 6)
    data = PointsInGroups.from_columns(columns)
    options = {"num_warmup": 150, "num_samples": 60, "num_chains": 2, "progress": False}
    fit = hbm.sample(Relation(pivot=1.0), data, seed=seed(2), **options)
    assert set(fit.posterior) == {*POPULATION, "alpha"}
    assert fit.posterior["alpha"].dims == ("chain", "draw", "group")
    latents = hbm.latents(fit, num_draws=60)
    assert latents["x"].shape == (60, *data.used.shape)
    # True predictors are near the measured ones, and intercepts make lines through them.
    used = data.used
    x = latents["x"].to_numpy()
    assert (np.abs(x - data.values[..., 0])[:, used] < 7.0 * 0.3).all()
    drawn, truth = Relation().simulate(jax.random.key(1), data, {"beta_std": 0.1})
    assert drawn.values.shape == data.values.shape
    assert {"alpha", "alpha_mean"} <= set(truth)
    line = latents["beta"].to_numpy()[..., None] + latents["alpha"].to_numpy()[..., None] * (x - 1.0)
    away = (data.values[..., 1] - line)[:, used]
    assert (np.abs(away) < 7.0 * np.hypot(0.2, fit.posterior["intrinsic_scatter"].to_numpy().max())).all()
    for name, truth in (("alpha", alpha), ("beta", beta)):
        draws = latents[name].to_numpy()
        pulls = (draws.mean(axis=0) - truth) / draws.std(axis=0)
        assert np.sqrt(np.mean(pulls**2)) < 2.5, name


@pytest.mark.long
def test_what_goes_in_comes_out_in_every_form(monte_carlo):
    columns, alpha, beta = points(10, 6)
    data = PointsInGroups.from_columns(columns)
    fits = {}
    for latents in ("marginal", "sampled"):
        fit = hbm.sample(Relation(pivot=1.0, latents=latents), data, seed=seed(2), progress=False)
        compared(fit, TRUE, TRUE, 4.5)
        fits[latents] = fit
    assert fits["marginal"].verdict.usable, str(fits["marginal"].verdict)
    for name in TRUE:
        one, other = (fits[latents].posterior[name].to_numpy() for latents in fits)
        monte_carlo.same_mean(one, other, name=name, min_ess=200)
        monte_carlo.same_std(one, other, name=name, min_ess=100)
    # Lines of single groups, the slopes sampled and the intercepts drawn back.
    latents = hbm.latents(fits["marginal"])
    for name, truth in (("alpha", alpha), ("beta", beta)):
        draws = latents[name].to_numpy()
        pulls = (draws.mean(axis=0) - truth) / draws.std(axis=0)
        assert np.sqrt(np.mean(pulls**2)) < 1.8, name


@pytest.mark.long
def test_errors_in_x_do_not_flatten_the_line():
    """Where least squares is attenuated by half, the relation is not."""
    columns, alpha, _ = points(1, 300, start=3, sigma_x=1.0)
    del columns["group"]
    data = PointsInGroups.from_columns(columns)
    fit = hbm.sample(Relation(pooling="complete", pivot=1.0), data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.posterior["alpha"].to_numpy()
    assert np.polyfit(columns["x"], columns["y"], 1)[0] < 0.65 * draws.mean()
    assert abs(draws.mean() - alpha[0]) < 3.5 * draws.std()


@pytest.mark.long
def test_upper_limits_are_points():
    """A sample cut at a threshold: as upper limits the line is right, as values it is too flat."""
    columns, alpha, _ = points(1, 400, start=5)
    del columns["group"]
    below = columns["y"] < 2.0
    assert below.mean() > 0.35
    limited = columns | {"y": np.where(below, 2.0, columns["y"]), "limit_y": np.where(below, "upper", "")}
    model = Relation(pooling="complete", pivot=1.0)
    fit = hbm.sample(model, PointsInGroups.from_columns(limited), seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.posterior["alpha"].to_numpy()
    assert abs(draws.mean() - alpha[0]) < 3.0 * draws.std()
    as_values = PointsInGroups.from_columns({key: limited[key] for key in columns})
    naive = hbm.sample(model, as_values, seed=seed(1), progress=False).posterior["alpha"].to_numpy()
    assert naive.mean() < alpha[0] - 3.0 * naive.std()


@pytest.mark.parametrize("kind", ["outliers", "student_t"])
@pytest.mark.long
def test_outliers_are_told(kind):
    columns, alpha, _ = points(1, 80, start=6)
    del columns["group"]
    wrong = np.arange(0, 80, 10)
    columns["y"][wrong] += 8.0 * np.where(np.arange(8) % 2, 1.0, -1.0)
    data = PointsInGroups.from_columns(columns)
    fit = hbm.sample(Relation(pooling="complete", **{kind: True}), data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.posterior["alpha"].to_numpy()
    assert abs(draws.mean() - alpha[0]) < 3.0 * draws.std()
    latents = hbm.latents(fit)
    if kind == "student_t":
        weight = latents["weight"].to_numpy().mean(axis=0)[0]
        assert (weight[wrong] < 0.05).all()
        assert np.median(np.delete(weight, wrong)) > 0.7
        return
    share = latents["outlier_probability"].to_numpy().mean(axis=0)[0]
    assert (share[wrong] > 0.95).all()
    assert np.median(np.delete(share, wrong)) < 0.05


@pytest.mark.long
def test_several_predictors_and_predictors_of_groups():
    rng = np.random.default_rng(7)
    of = np.repeat(np.arange(20), 12)
    age = rng.normal(size=20)
    alpha = np.stack([1.0 + 0.8 * age, np.full(20, -0.5)], axis=1) + 0.1 * rng.normal(size=(20, 2))
    x = rng.normal(size=(240, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
    y = (alpha[of] * x).sum(1) + 0.3 * age[of] + 0.3 * rng.normal(size=20)[of] + 0.2 * rng.normal(size=240)
    columns = {
        "a": x[:, 0] + 0.2 * rng.normal(size=240), "b": x[:, 1] + 0.2 * rng.normal(size=240),
        "y": y + 0.1 * rng.normal(size=240), "sigma_a": np.full(240, 0.2), "sigma_b": np.full(240, 0.2),
        "sigma_y": np.full(240, 0.1), "group": [f"g{i}" for i in of], "age": age[of],
    }  # fmt: skip
    data = PointsInGroups.from_columns(columns, predictors=["a", "b"], group_predictors=["age"])
    fit = hbm.sample(Relation(pivot=0.0), data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    more = fit.posterior["alpha_group"].to_numpy().reshape(-1, 2)
    mean = fit.posterior["alpha_mean"].to_numpy().reshape(-1, 2)
    # Group predictors are less their mean.
    truth = np.array([1.0 + 0.8 * age.mean(), -0.5])
    assert (np.abs(mean.mean(0) - truth) < 4.0 * mean.std(0)).all()
    assert (np.abs(more.mean(0) - [0.8, 0.0]) < 4.0 * more.std(0)).all()


def test_tables_come_back(tmp_path):
    columns, *_ = points(4, 4)
    columns |= {"limit_y": ["upper" if i == 2 else "" for i in range(len(columns["y"]))]}
    columns |= {"limit_x": ["lower" if i == 4 else "" for i in range(len(columns["y"]))]}
    data = PointsInGroups.from_columns(columns)
    data.to_table().write(tmp_path / "points.ecsv")
    for again in (read_relation(tmp_path / "points.ecsv"), PointsInGroups.from_dict(data.to_dict())):
        assert again.name == data.name
        assert again.limited == data.limited == "both"
        for key in ("values", "errors", "limit", "side", "order", "used"):
            np.testing.assert_allclose(getattr(again, key), getattr(data, key), rtol=1e-12)
    assert data.is_limit.sum() == 2
    assert len(data.subset([0, 2])) == 2
    model = Relation(correlated=True, priors={"alpha_mean": "Normal(1, 2)"})
    assert Relation(**model.to_config()).priors.keys() == {"alpha_mean"}
    again = Relation(**model.to_config())
    assert again.to_config() == model.to_config()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.ones(36)}, ["x", "no slope", "1 in all"]),
        ({"sigma_y": np.full(36, -1.0)}, ["sigma_y", "0 or more", "row 0"]),
        ({"y": np.full(36, np.nan)}, ["y", "row 0"]),
        ({"correlation": np.full(36, 1.2)}, ["correlation", "between -1 and 1", "1.2"]),
        ({"limit_y": ["above"] * 36}, ["limit_y", "'upper', 'lower'", "above"]),
        ({"limit_y": ["upper"] * 36, "limit_x": ["upper"] * 36}, ["one limit"]),
        ({"sigma_x": np.full(36, -1.0)}, ["sigma_x", "0 or more"]),
        ({"group": ["", *["g"] * 35]}, ["group", "row 0 (counted from 0)", "the name of a group"]),
        ({"sigma_x": np.zeros(36), "correlation": np.full(36, 0.5)}, ["correlation", "row 0", "one of the two errors"]),
        ({"y": [np.nan, *[1.0] * 35], "limit_y": ["upper"] * 36}, ["y, row 0", "finite number"]),
    ],
)
def test_bad_points(change, words):
    columns, *_ = points(8, 8)
    with pytest.raises(DataError) as error:
        PointsInGroups.from_columns(columns | change)
    for word in words:
        assert word in str(error.value)


def test_bad_choices(tmp_path):
    columns, *_ = points(8, 8)
    with pytest.raises(DataError, match="age"):
        PointsInGroups.from_columns(columns, group_predictors=["age"])
    with pytest.raises(DataError, match="one value in all points of a group"):
        PointsInGroups.from_columns(columns | {"age": np.arange(36.0)}, group_predictors=["age"])
    with pytest.raises(ValueError, match="'alpha_men'"):
        Relation(priors={"alpha_men": 1.0})
    with pytest.raises(ValueError, match="correlated=True expects pooling='partial'"):
        Relation(pooling="none", correlated=True)
    with pytest.raises(ValueError, match=r"num_components=2 expects no prior of x_mean.*found Normal"):
        Relation(num_components=2, priors={"x_mean": "Normal(0, 1)"})
    assert Relation(num_components=2, priors={"x_std": "HalfNormal(1)"}).priors.keys() == {"x_std"}
    with pytest.raises(ValueError, match="student_t=True expects scatter=True and outliers=False; found outliers=True"):
        Relation(outliers=True, student_t=True)
    exact = PointsInGroups.from_columns({key: columns[key] for key in ("x", "y", "sigma_y", "group")})
    with pytest.raises(DataError, match="expected an error of x for every point"):
        Relation(latents="sampled")(exact)
    bare = PointsInGroups.from_columns({key: columns[key] for key in ("x", "y", "sigma_x", "group")})
    with pytest.raises(DataError, match="expected errors of y for every point"):
        Relation(scatter=False)(bare)
    one = PointsInGroups.from_columns({key: columns[key] for key in ("x", "y", "sigma_y")})
    with pytest.raises(DataError, match=r"a prior of alpha_mean expects two groups or more; found 1"):
        Relation(priors={"alpha_mean": "Normal(0, 1)"})(one)
    with pytest.raises(DataError, match=r"correlated=True expects two groups or more; found 1"):
        Relation(correlated=True)(one)
    (tmp_path / "points.csv").write_text("x,L\n1,2\n2,3\n3,4\n")
    with pytest.raises(DataError, match=r"points\.csv: column 'y' is missing"):
        read_relation(tmp_path / "points.csv")


def test_errors_of_several_predictors_may_be_correlated(tmp_path):
    rng = np.random.default_rng(8)
    columns = {key: rng.normal(size=9) for key in ("a", "b", "y")}
    columns |= {"sigma_a": np.full(9, 0.2), "sigma_b": np.full(9, 0.3), "sigma_y": np.full(9, 0.1)}
    given = columns | {"correlation_a_b": np.full(9, 0.5), "covariance_b_y": np.full(9, -0.006)}
    data = PointsInGroups.from_columns(given, predictors=["a", "b"])
    expected = [[0.04, 0.03, 0.0], [0.03, 0.09, -0.006], [0.0, -0.006, 0.01]]
    np.testing.assert_allclose(data.errors[0, 4], expected, rtol=1e-12)
    data.to_table().write(tmp_path / "points.ecsv")
    again = read_relation(tmp_path / "points.ecsv", predictors=["a", "b"])
    np.testing.assert_allclose(again.errors, data.errors, rtol=1e-12, atol=1e-15)
    # Each pair possible, all of them together not.
    wrong = {
        "correlation_a_b": np.full(9, 0.9),
        "correlation_b_y": np.full(9, 0.9),
        "correlation_a_y": np.full(9, -0.9),
    }
    with pytest.raises(DataError, match="positive definite 3 x 3 matrix"):
        PointsInGroups.from_columns(columns | wrong, predictors=["a", "b"])
    with pytest.raises(DataError, match="as in 'correlation_a_y', with 2 predictors"):
        PointsInGroups.from_columns(columns | {"correlation": np.zeros(9)}, predictors=["a", "b"])


@pytest.mark.long
def test_the_slope_of_greatest_density_is_not_attenuated():
    """As linmix, with errors in both, scatter and limits: least squares is too flat, the best line is not."""
    rng = np.random.default_rng(12)
    x = rng.normal(1.0, 1.0, 600)
    y = 1.5 * (x - 1.0) + 2.0 + rng.normal(0, 0.3, 600) + rng.normal(0, 0.2, 600)
    x = x + rng.normal(0, 0.8, 600)
    columns = {"x": x, "y": y, "sigma_x": np.full(600, 0.8), "sigma_y": np.full(600, 0.2)}
    below = y < 1.0
    limited = columns | {"y": np.where(below, 1.0, y), "limit_y": np.where(below, "upper", "")}
    flat = np.polyfit(x, y, 1)[0]
    assert flat < 1.5 / 1.64 + 0.1  # 1 / (1 + 0.8^2) of the true slope
    for given in (columns, limited):
        data = PointsInGroups.from_columns(given)
        best = hbm.maximum_likelihood(Relation(pooling="complete", pivot=1.0), data, errors="curvature")
        slope, error = best.table.loc["alpha", ["value", "std"]]
        assert abs(slope - 1.5) < 3.5 * error
        assert slope - flat > 5 * error


@pytest.mark.slow
def test_posteriors_are_calibrated(monkeypatch):
    """With partial pooling, correlated too, with limits, and as linmix; 512 replicates each."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from calibration_relation import cases

    for name, model, data in cases():
        result = hbm.calibrate(model, data, num_replicates=512, seed=3, progress=False)
        print(name, result)
        assert result.calibrated, f"{name}: {result}"


@pytest.mark.slow
def test_linmix_problems_give_the_truth_back():
    """Twenty samples of 100 points with errors in both, scatter and limits: pulls of every parameter."""
    true = {"alpha": 1.5, "beta": 2.0, "intrinsic_scatter": 0.3, "x_mean": 1.0, "x_std": 1.0}
    rng = np.random.default_rng(9)
    pulls = []
    for number in range(20):
        columns = {
            "x": rng.normal(1.0, 1.0, 100), "y": np.zeros(100), "sigma_x": rng.uniform(0.3, 0.8, 100),
            "sigma_y": rng.uniform(0.1, 0.4, 100), "threshold_y": np.full(100, 1.0),
        }  # fmt: skip
        model = Relation(pooling="complete", pivot=1.0)
        data, _ = model.simulate(jax.random.key(number), PointsInGroups.from_columns(columns), true)
        assert 0.1 < data.is_limit.mean() < 0.45
        fit = hbm.sample(model, data, seed=seed(1), progress=False)
        assert fit.verdict.usable, str(fit.verdict)
        draws = {name: fit.posterior[name].to_numpy() for name in true}
        pulls.append([(draws[name].mean() - value) / draws[name].std() for name, value in true.items()])
    pulls = np.array(pulls)
    assert (np.abs(pulls.mean(axis=0)) < 4.0 / np.sqrt(20)).all(), pulls.mean(axis=0)
    assert ((pulls**2).mean(axis=0) < 2.2).all()
