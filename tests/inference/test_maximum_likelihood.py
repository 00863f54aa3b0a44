"""Maximum likelihood of plain programs: closed forms, bounds, and what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

import hbm_jax
from hbm_jax.inference import MaximumLikelihood, StartError, maximum_likelihood
from hbm_jax.inference.likelihood import profile
from hbm_jax.inference.likelihood.function import Likelihood

X = np.linspace(0.0, 1.0, 40)
Y = 3.0 + 2.0 * X + 0.5 * np.random.default_rng(0).normal(size=40)


def line(x, y, wide=10.0):
    slope = numpyro.sample("slope", dist.Normal(0.0, wide))
    offset = numpyro.sample("offset", dist.Uniform(-20.0, 20.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(wide))
    with numpyro.plate("datum", len(x)):
        numpyro.sample("y", dist.Normal(offset + slope * x, sigma), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return maximum_likelihood(line, X, Y, level=0.9)


def test_a_line_has_its_closed_form(fitted):
    design = np.stack([X, np.ones(40)], axis=1)
    best, rss = (a.ravel() for a in np.linalg.lstsq(design, Y, rcond=None)[:2])
    sigma = np.sqrt(rss[0] / 40)
    unit = np.linalg.inv(design.T @ design)
    assert list(fitted.table.index) == ["slope", "offset", "sigma"]
    np.testing.assert_allclose(fitted.table["value"], [*best, sigma], rtol=1e-7)
    np.testing.assert_allclose(fitted.covariance.iloc[:2, :2], sigma**2 * unit, rtol=1e-5)
    np.testing.assert_allclose(fitted.table["std"].iloc[2], sigma / np.sqrt(80), rtol=1e-5)
    assert fitted.log_likelihood == pytest.approx(stats.norm(design @ best, sigma).logpdf(Y).sum(), abs=1e-9)
    correlation = unit[0, 1] / np.sqrt(unit[0, 0] * unit[1, 1])
    assert fitted.correlation.loc["slope", "offset"] == pytest.approx(correlation, rel=1e-5)
    # Profile of a slope with the scatter at its best: 40 ln(RSS / RSS_min) rises by 2.706.
    half = np.sqrt((np.exp(stats.chi2.ppf(0.9, 1) / 40) - 1) * rss[0] * np.diagonal(unit))
    np.testing.assert_allclose(fitted.table["upper"].iloc[:2], best + half, atol=1e-4 * half.min())
    np.testing.assert_allclose(fitted.table["lower"].iloc[:2], best - half, atol=1e-4 * half.min())
    # And of the scatter: 40 ln s^2 + RSS / s^2.
    for end, side in (("lower", (0.2, sigma)), ("upper", (sigma, 1.0))):
        wanted = 40 * np.log(rss[0] / 40) + 40 + stats.chi2.ppf(0.9, 1)
        root = optimize.brentq(lambda s, wanted=wanted: 80 * np.log(s) + rss[0] / s**2 - wanted, *side)
        assert fitted.table.loc["sigma", end] == pytest.approx(root, abs=1e-4 * sigma / 9)


def test_what_else_is_said(fitted):
    assert isinstance(fitted, MaximumLikelihood)
    assert hbm_jax.maximum_likelihood is maximum_likelihood
    assert fitted.converged
    assert fitted.num_data == 40
    assert fitted.parameters["slope"] == fitted.table.loc["slope", "value"]
    assert fitted.note == "8 of 8 searches ended at this maximum"
    text = repr(fitted)
    assert "90 % interval" in text
    assert f"{fitted.log_likelihood:.4f}" in text
    assert not fitted.table[["lower_open", "upper_open"]].to_numpy().any()


def test_priors_matter_for_their_supports_only_and_precision_is_not_the_sessions(fitted):
    with jax.enable_x64(False):
        narrow = maximum_likelihood(line, X, Y, 0.7, errors="curvature", level=0.9, seed=3, num_starts=3)
    np.testing.assert_allclose(narrow.table["value"], fitted.table["value"], rtol=1e-7)
    assert narrow.parameters["slope"].dtype == np.float64
    half = np.sqrt(stats.chi2.ppf(0.9, 1)) * narrow.table["std"]
    np.testing.assert_allclose(narrow.table["upper"] - narrow.table["value"], half, rtol=1e-9)


def test_unconstrained_parameters_are_those_of_the_supports():
    likelihood = object.__new__(Likelihood)
    likelihood.lower = np.array([-np.inf, 2.0, -np.inf, -1.0])
    likelihood.upper = np.array([np.inf, np.inf, 3.0, 5.0])
    x = np.array([0.7, 2.5, 1.0, 3.5])
    u = likelihood.unconstrained(x)
    np.testing.assert_allclose(u, [0.7, np.log(0.5), np.log(2.0), np.log(4.5 / 1.5)], rtol=1e-12)
    back, slope = likelihood.constrained(u)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    step = 1e-6
    differences = (likelihood.constrained(u + step)[0] - likelihood.constrained(u - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, differences, rtol=1e-7)
    assert likelihood.at_bound(np.array([0.0, 2.0, 3.0, 4.9])).tolist() == [False, True, True, False]


def counts(both, alone):
    with numpyro.plate("kind", 2):
        extra = numpyro.sample("extra", dist.HalfNormal(np.array([10.0, 20.0])))
    common = numpyro.sample("common", dist.LogNormal(0.0, 1.0))
    numpyro.sample("both", dist.Poisson(extra + common), obs=both)
    numpyro.factor("alone", alone * jnp.log(common) - common)


def test_a_maximum_at_a_bound_is_found_and_flagged():
    found = maximum_likelihood(counts, np.array([2, 30]), 9)
    assert list(found.table.index) == ["extra[0]", "extra[1]", "common"]
    # The first is at 0, so its 2 counts and the 9 others are both of what is common; the last takes up the rest.
    np.testing.assert_allclose(found.table["value"], [0.0, 30 - 5.5, 5.5], atol=1e-5)
    assert found.table["lower_open"].tolist() == [True, False, False]
    assert found.table.loc["extra[0]", "lower"] == 0.0
    assert np.isnan(found.table.loc["extra[0]", "std"])
    assert found.table.loc["common", "std"] == pytest.approx(np.sqrt(5.5 / 2), rel=1e-5)
    assert "at a bound of its prior: extra[0]" in found.note
    assert found.converged
    assert "(0 to" in repr(found)

    def fall(extra):
        """Of the log likelihood, with the others at their best."""
        best = optimize.minimize_scalar(
            lambda c: -stats.poisson(extra + c).logpmf(2) - stats.poisson(c).logpmf(9), bounds=(0.1, 20.0),
            method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        return best.fun

    upper = optimize.brentq(lambda e: fall(e) - fall(0.0) - 0.5 * stats.chi2.ppf(0.683, 1), 0.0, 10.0)
    assert found.table.loc["extra[0]", "upper"] == pytest.approx(upper, rel=1e-4)


def test_the_better_of_two_maxima_is_found():
    def program(y):
        x = numpyro.sample("x", dist.Uniform(-5.0, 5.0))
        numpyro.sample("y", dist.Normal(jnp.stack([x**2, 0.1 * x]), 0.3), obs=y)

    found = maximum_likelihood(program, np.array([4.0, 0.2]))
    assert found.table.loc["x", "value"] == pytest.approx(2.0, abs=1e-6)
    assert found.table.loc["x", "lower"] > 1.8
    assert found.log_likelihood == pytest.approx(2 * stats.norm(0, 0.3).logpdf(0), abs=1e-9)


@pytest.mark.parametrize("restarts", [0, profile.RESTARTS, profile.RESTARTS + 1])
def test_a_profile_that_finds_a_better_maximum_restarts_the_fit(monkeypatch, restarts):
    better = [types.SimpleNamespace(x=i) for i in range(1, restarts + 1)]
    monkeypatch.setattr(profile, "covariance_at", lambda likelihood, best: (np.eye(1), []))
    monkeypatch.setattr(profile, "_table", lambda *args: ("table", [], better.pop(0) if better else None))
    monkeypatch.setattr(profile, "newton", lambda likelihood, x: types.SimpleNamespace(x=x))
    notes = []
    best, *_, failures = profile._with_errors(None, types.SimpleNamespace(x=0), "profile", 0.5, None, notes)
    assert best.x == restarts
    assert failures == (
        ["profiles kept finding better maxima, so there are no intervals"] * (restarts > profile.RESTARTS)
    )
    said = f"{restarts} times a profile found a better maximum, and the fit restarted there"
    assert notes == ([said] if restarts else [])


def test_what_the_data_do_not_determine_is_named():
    def program(y):
        a, b = numpyro.sample("a", dist.Normal(0.0, 5.0)), numpyro.sample("b", dist.Uniform(-3.0, 3.0))
        c = numpyro.sample("c", dist.Normal(0.0, 5.0))
        numpyro.sample("y", dist.Normal(jnp.stack([a + b, c]), 1.0), obs=y)

    found = maximum_likelihood(program, np.array([1.0, 2.0]))
    assert not found.converged
    assert "the data do not determine a, b" in found.note
    assert found.table.loc["b", ["lower", "upper"]].tolist() == [-3.0, 3.0]
    assert found.table.loc["b", ["lower_open", "upper_open"]].all()
    np.testing.assert_allclose(found.table.loc["a", ["lower", "upper"]].astype(float), [-3.0, 5.0], atol=0.01)
    assert found.table.loc["c", "value"] == pytest.approx(2.0)


def hierarchical(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("group", 3):
        theta = numpyro.sample("theta", dist.Normal(mean, 1.0))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def by_hand(y):
    numpyro.sample("y", dist.Normal(numpyro.deterministic("b", 2.0 * numpyro.sample("_b", dist.Normal()))), obs=y)


def of_simplex(y):
    numpyro.sample("y", dist.Multinomial(6, numpyro.sample("share", dist.Dirichlet(jnp.ones(3)))), obs=y)


def of_class(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("kind", dist.Bernoulli(0.5)), 1.0), obs=y)


def of_nothing(y):
    numpyro.sample("a", dist.Normal())


@pytest.mark.parametrize(
    ("program", "options", "error", "words"),
    [
        (
            hierarchical,
            {},
            ValueError,
            "found that the prior of 'theta' does. The program is hierarchical: sample",
        ),
        (by_hand, {}, ValueError, "expected latent sites whose names do not begin with '_'; found '_b'"),
        (of_simplex, {}, ValueError, "found 'share', whose support is Simplex"),
        (of_class, {}, ValueError, "discrete latent site 'kind'"),
        (of_nothing, {}, ValueError, "expected an observed site, found none"),
        (lambda y: None, {}, ValueError, "expected at least one latent site"),
        (line, {"errors": "minos"}, ValueError, "expected 'profile', 'curvature' or None; found 'minos'"),
        (line, {"level": 68.3}, ValueError, "expected a number between 0 and 1; found 68.3"),
        (line, {"num_starts": 0}, ValueError, "expected at least 1; found 0"),
    ],
)
def test_what_is_refused(program, options, error, words):
    args = (X, Y) if program is line else (np.ones(3, int) * 2,)
    with pytest.raises(error, match=words):
        maximum_likelihood(program, *args, **options)


def test_no_finite_start():
    def program(y):
        numpyro.factor("y", y * jnp.log(-numpyro.sample("a", dist.HalfNormal())))

    with pytest.raises(StartError, match="some of 2 draws of the prior; found none"):
        maximum_likelihood(program, 2.0, num_starts=2)
