"""Regressions: densities against SciPy, effects of groups in every form, what is sampled, and what is refused."""

import functools

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import stats
from scipy.special import expit, log_softmax, ndtr
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data import DataError, RegressionData
from hbm_jax.models import Regression


def table(num=40):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(2.0, 1.5, num), "n": rng.integers(1, 9, num), "u": rng.uniform(size=num),
        "e": np.full(num, 0.4),
        "g": [f"g{j}" for j in np.arange(num) % 6], "t": np.arange(num) // 4, "y": rng.normal(5.0, 2.0, num),
    }  # fmt: skip


def linear_predictor(data, values):
    """Of the values of sites: coefficients, and effects as deviations from what all share."""
    eta = data.offset + data.X @ values["coef"]
    for group in data.groups:
        effect = values[f"{group.name}_effect"].reshape(len(group.labels), -1)
        eta = eta + (group.values * effect[group.index]).sum(-1)
    return eta


CASES = {
    "normal": (
        {"family": "normal"},
        {"error": "e"},
        lambda y, eta, d, p: stats.norm.logpdf(y, eta, np.hypot(p["sigma"], 0.4)),
    ),
    "student_t": ({"family": "student_t"}, {}, lambda y, eta, d, p: stats.t.logpdf(y, p["nu"], eta, p["sigma"])),
    "bernoulli": ({"family": "bernoulli"}, {}, lambda y, eta, d, p: stats.bernoulli.logpmf(y, expit(eta))),
    "probit": (
        {"family": "bernoulli", "link": "probit"},
        {},
        lambda y, eta, d, p: stats.bernoulli.logpmf(y, ndtr(eta)),
    ),
    "binomial": (
        {"family": "binomial"},
        {"trials": "n"},
        lambda y, eta, d, p: stats.binom.logpmf(y, d.trials, expit(eta)),
    ),
    "poisson": ({"family": "poisson"}, {"exposure": "n"}, lambda y, eta, d, p: stats.poisson.logpmf(y, np.exp(eta))),
    "negative_binomial": (
        {"family": "negative_binomial"},
        {},
        lambda y, eta, d, p: stats.nbinom.logpmf(
            y, 1 / p["overdispersion"], 1 / (1 + np.exp(eta) * p["overdispersion"])
        ),
    ),
}


def response(columns, name):
    n, u = np.asarray(columns["n"]), np.asarray(columns["u"])
    return {
        "normal": columns["y"], "student_t": columns["y"], "bernoulli": (u > 0.5) * 1, "probit": (u > 0.5) * 1,
        "binomial": np.floor(u * (n + 1)), "poisson": np.floor(9 * u), "negative_binomial": np.floor(9 * u),
    }[name]  # fmt: skip


FORMULA = "y ~ x + (1 + x | g) + (1 | walk(t))"  # with all kinds of effects


@pytest.mark.parametrize("name", [pytest.param(k, marks=pytest.mark.long) if k == "probit" else k for k in CASES])
def test_the_likelihood_is_that_of_scipy(name):
    options, reader, expected = CASES[name]
    columns = table()
    columns["y"] = response(columns, name)
    whole = name == "normal"  # with all kinds of effects; the other families differ in the last step
    formula = FORMULA if whole else "y ~ x + (1 | g)"
    data = RegressionData.from_columns(columns, formula, **reader)
    priors = {"coef": "Normal(0, 0.1)", "sd": "HalfNormal(0.1)"}
    sites = compiled_sites(Regression(**options, priors=priors), data)
    for number in (3, 4):
        found = sites(number=number)
        parameters = {key: float(value) for key, value in found.values.items() if np.ndim(value) == 0}
        each = expected(np.asarray(data.y), linear_predictor(data, found.values), data, parameters)
        np.testing.assert_allclose(found.log_probs["observed"], each, rtol=1e-6, atol=3e-6)  # betaln of JAX: 3e-7
        # Overrides are in the units of the data.
        sd = found.values["g_sd"]
        np.testing.assert_allclose(found.log_probs["g_sd"], stats.halfnorm.logpdf(sd, scale=0.1), rtol=1e-9)
        for parameter, law in (("overdispersion", stats.halfnorm()), ("nu", stats.gamma(2.0, scale=10.0))):
            if parameter in parameters:
                assert found.log_probs[parameter] == pytest.approx(law.logpdf(parameters[parameter]), rel=1e-9)


def test_the_likelihood_of_categories():
    columns = table()
    columns["y"] = np.array(["a", "b", "c"])[(3 * columns["u"]).astype(int)]
    data = RegressionData.from_columns(columns, "y ~ x")
    found = compiled_sites(Regression(family="categorical"), data)()
    coef = found.values["coef"]
    assert coef.shape == (2, 2)
    eta = np.concatenate([np.zeros((40, 1)), data.X @ coef.T], axis=1)
    expected = log_softmax(eta, axis=1)[np.arange(40), data.y.astype(int)]
    np.testing.assert_allclose(found.log_probs["observed"], expected, rtol=1e-10)


@functools.cache
def sites_of(formula):
    data = RegressionData.from_columns(table(), formula)
    return data, compiled_sites(Regression(), data)


@pytest.mark.long
def test_default_priors_are_of_standardised_variables():
    """Coefficients in standard deviations of the response over those of predictors, spreads likewise."""
    columns, (data, sites) = table(), sites_of(FORMULA)
    first = sites(number=1)
    basis = np.eye(2)
    given = {name: first.values[name] for name in first.log_probs if name != "observed"}
    zero, *ones = (sites(given | {"_coef": z}).values["coef"] for z in (np.zeros(2), *basis))
    log_determinant = np.linalg.slogdet(np.stack(ones, axis=1) - zero[:, None])[1]
    slope = first.values["coef"][1]
    at_mean = first.values["coef"][0] + slope * columns["x"].mean()
    unit, width = columns["y"].std(), columns["x"].std()
    expected = stats.norm.logpdf(at_mean, columns["y"].mean(), 2.5 * unit)
    expected += stats.norm.logpdf(slope, 0.0, 2.5 * unit / width)
    assert float(first.log_probs["_coef"].sum()) == pytest.approx(expected + log_determinant, rel=1e-9)
    spreads = {"g_sd": [unit, unit / width], data.groups[1].name + "_sd": unit / np.sqrt(10)}  # a walk of ten steps
    for name, scale in spreads.items():
        expected = stats.halfnorm.logpdf(first.values[name], scale=1.5 * np.asarray(scale))
        np.testing.assert_allclose(first.log_probs[name], expected, rtol=1e-9, err_msg=name)
    sigma = first.values["sigma"]
    assert float(first.log_probs["sigma"]) == pytest.approx(stats.halfnorm.logpdf(sigma, scale=unit), rel=1e-9)


@pytest.mark.parametrize(
    ("formula", "place"),
    [
        (FORMULA, 0),
        (FORMULA, 1),
        pytest.param("y ~ x + u + (1 + x || g)", 0, marks=pytest.mark.long),
        pytest.param("y ~ x + (0 + x | walk(t))", 0, marks=pytest.mark.long),
    ],
)
def test_effects_have_their_normal_distribution_in_whatever_form(formula, place):
    data, sites = sites_of(formula)
    group = data.groups[place]
    start = sites(number=1)
    given = {name: start.values[name] for name in start.log_probs if name != "observed"}
    names = [name for name in start.values if name.startswith(f"__{group.name}_") and name in given]
    assert len(names) == len(group.columns)
    size = np.shape(given[names[0]])[0]

    def at(values):
        found = sites(given | dict(zip(names, values.reshape(len(names), size), strict=True)))
        return found.values[f"{group.name}_effect"].ravel(), sum(found.log_probs[name].sum() for name in names)

    values = np.random.default_rng(2).normal(size=len(names) * size)
    zero, _ = at(np.zeros_like(values))
    matrix = np.stack([at(row)[0] - zero for row in np.eye(len(values))], axis=1)
    effect, density = at(values)
    sd = np.atleast_1d(given[f"{group.name}_sd"])
    if group.walk:
        latent, _, _, _ = np.linalg.lstsq(group.modes, effect, rcond=None)
        assert latent.shape == (size,)
        expected = stats.norm.logpdf(latent, 0.0, sd[0]).sum()
        change = np.linalg.slogdet(np.linalg.lstsq(group.modes, matrix, rcond=None)[0])[1]
    else:
        factor = given.get("_g_correlation", np.eye(2))
        covariance = np.outer(sd, sd) * (factor @ factor.T)
        expected = stats.multivariate_normal.logpdf(effect.reshape(-1, 2), np.zeros(2), covariance).sum()
        change = np.linalg.slogdet(matrix)[1]
        if "_g_correlation" in given:
            np.testing.assert_allclose(start.values["g_correlation"], [(factor @ factor.T)[1, 0]])
    assert density - change == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def fitted():
    """Counts in groups of unequal size, down to one point, with a predictor of groups."""
    rng = np.random.default_rng(5)
    of = np.repeat(np.arange(12), [30, 25, 20, 15, 10, 8, 6, 5, 4, 3, 2, 1])
    age = rng.normal(size=12)
    effect = 0.4 * rng.normal(size=12)
    x = rng.normal(size=len(of))
    y = rng.poisson(np.exp(1.0 + 0.5 * x + 0.6 * age[of] + effect[of]))
    columns = {"x": x, "y": y, "g": [f"g{j}" for j in of], "age": age[of]}
    data = RegressionData.from_columns(columns, "y ~ x + age + (1 | g)")
    options = {"num_warmup": 200, "num_samples": 150, "progress": False}
    return hbm.sample(Regression(family="poisson"), data, seed=seed(1), **options), effect


@pytest.mark.long
def test_what_goes_in_comes_out(fitted):
    fit, effect = fitted
    coef = fit.posterior["coef"]
    assert list(coef["term"].to_numpy()) == ["Intercept", "x", "age"]
    for term, truth in {"Intercept": 1.0, "x": 0.5, "age": 0.6}.items():
        draws = coef.sel(term=term).to_numpy()
        assert abs(draws.mean() - truth) < 4.0 * draws.std(), term
    sd = fit.posterior["g_sd"].to_numpy()
    assert abs(sd.mean() - 0.4) < 4.0 * sd.std()
    draws = fit.posterior["g_effect"].transpose("chain", "draw", "g").to_numpy().reshape(-1, 12)
    pulls = (draws.mean(axis=0) - effect) / draws.std(axis=0)
    assert np.sqrt(np.mean(pulls**2)) < 1.8
    # The group of one point knows least.
    assert draws.std(axis=0)[11] > 1.3 * draws.std(axis=0)[0]


@pytest.mark.long
def test_every_point_has_its_likelihood_for_loo(fitted):
    fit, _ = fitted
    result = hbm.loo(fit)
    pointwise = hbm.inference.log_likelihood(fit)["observed"]
    data = fit.data
    coef = fit.posterior["coef"].transpose("chain", "draw", "term").to_numpy()[0, 7]
    effect = fit.posterior["g_effect"].transpose("chain", "draw", "g").to_numpy()[0, 7]
    eta = data.X @ coef + effect[data.groups[0].index]
    expected = stats.poisson.logpmf(data.y, np.exp(eta))
    np.testing.assert_allclose(pointwise.isel(chain=0, draw=7), expected, rtol=1e-8)
    assert "129" in str(result)


def test_models_come_back_and_simulate():
    data = RegressionData.from_columns(table(), "y ~ x + (1 | g)")
    model = Regression(family="student_t", priors={"coef": "flat", "nu": 4.0, "sd[g]": "HalfNormal(2)"})
    again = Regression(**model.to_config())
    assert again.to_config() == model.to_config()
    assert again.all_priors["coef"] == "flat"
    given = {"coef[x]": 2.0, "sigma": 0.01, "sd": 0.02}
    assert set(again.to_config()["priors"]) == {"coef", "nu", "sd[g]"}
    drawn, truth = Regression().simulate(jax.random.key(seed(1)), data, given)
    assert float(truth["coef"][1]) == pytest.approx(2.0)
    slope = np.polyfit(table()["x"], drawn.y, 1)[0]
    assert slope == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("change", "options", "reader", "words"),
    [
        ({}, {"family": "poisson"}, {}, ["y, row 0", "a count"]),
        ({}, {"family": "bernoulli"}, {}, ["y, row 0", "0 or 1"]),
        ({}, {"family": "binomial"}, {}, ["'binomial' expects trials="]),
        ({}, {"family": "categorical"}, {}, ["y: expected text for the family 'categorical'; found numbers"]),
        ({"y": list("abc") + ["a"] * 37}, {}, {}, ["y: expected numbers for the family 'normal'", "a, b, c"]),
        ({"y": list("ab") * 20}, {"family": "categorical"}, {}, ["no terms of groups", "found g"]),
        ({}, {"family": "student_t"}, {"error": "e"}, ["expected the family 'normal' with known errors"]),
        (
            {},
            {"priors": {"coef[z]": 1.0}},
            {},
            ["prior.coef[z]", "one of Intercept, x, the terms of y ~ x"],
        ),
        ({}, {"priors": {"sd[h]": 1.0}}, {}, ["prior.sd[h]", "expected one of g"]),
    ],
)
def test_bad_data(change, options, reader, words):
    data = RegressionData.from_columns(table() | change, "y ~ x + (1 | g)", **reader)
    with pytest.raises(DataError) as error:
        Regression(**options)(data)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_bad_choices():
    with pytest.raises(ValueError, match=r"Unknown family of Regression 'poison'.*did you mean 'poisson'"):
        Regression(family="poison")
    with pytest.raises(ValueError, match="link of the family normal 'logit'"):
        Regression(link="logit")
    with pytest.raises(ValueError, match="no parameter 'beta'"):
        Regression(priors={"beta": "flat"})
    with pytest.raises(ValueError, match="no parameter 'nu'"):
        Regression(priors={"nu": 4.0})
    with pytest.raises(DataError, match="expected RegressionData; found list"):
        Regression()([1.0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_posteriors_are_calibrated(family):
    columns = table(48)
    columns["y"] = np.round(np.abs(columns["y"]))
    data = RegressionData.from_columns(columns, "y ~ x + (1 + x | g)")
    priors = {"intercept": "Normal(0.5, 0.5)", "coef": "Normal(0, 0.3)", "sd": "HalfNormal(0.4)"}
    priors |= {"sigma": "HalfNormal(0.5)"} if family == "normal" else {}
    result = hbm.calibrate(Regression(family=family, priors=priors), data, num_replicates=512, seed=3, progress=False)
    print(result)
    assert result.calibrated, str(result)


@pytest.mark.long
def test_the_maximum_of_the_likelihood_is_of_named_coefficients():
    """One far from zero, one that would be negative, and one that is held."""
    rng = np.random.default_rng(1)
    columns = {"year": rng.uniform(2000.0, 2010.0, 50), "x": rng.normal(size=50), "u": rng.normal(size=50)}
    y = 0.2 * columns["year"] - columns["x"] + rng.normal(size=50)
    data = RegressionData.from_columns(columns | {"y": y}, "y ~ year + x + u")
    model = Regression(priors={"coef[u]": 0.3, "coef[x]": "HalfNormal(1)"})
    best = hbm.maximum_likelihood(model, data, num_starts=2, errors=None)
    X = np.stack([np.ones(50), columns["year"]], axis=1)
    expected, rss = np.linalg.lstsq(X, y - 0.3 * columns["u"], rcond=None)[:2]
    assert list(best.table.index) == ["coef[Intercept]", "coef[year]", "coef[x]", "sigma"]
    np.testing.assert_allclose(best.parameters["coef"], [*expected, 0.0], rtol=1e-6, atol=1e-9)
    error = np.sqrt(np.diagonal(np.linalg.inv(X.T @ X)) * rss[0] / 50)
    np.testing.assert_allclose(best.table["std"].iloc[:2], error, rtol=1e-5)
    assert "at a bound of its prior: coef[x]" in best.note
