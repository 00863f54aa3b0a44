"""The normal hierarchical model: one posterior in every form, the reference of the eight schools, what is refused."""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from monte_carlo import seed
from scipy import integrate, stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data import DataError, ValuesInGroups, load_eight_schools, read_values
from hbm_jax.models import Normal, NormalVectors

LATENTS = ("marginal", "centred", "noncentred", "mixed")
REFERENCE = {"mu": "Normal(0, 5)", "tau": "HalfCauchy(5)"}
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def values(components=1, errors=True, groups=5, seed=0):
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), 1 + np.arange(groups) % 4)
    names = [f"y{i}" for i in range(components)] if components > 1 else ["y"]
    theta = rng.normal(2.0, 1.0, (groups, components))
    columns = {"group": [f"g{k}" for k in of]}
    for d, name in enumerate(names):
        sigma = rng.uniform(0.3, 0.9, len(of))
        columns[name] = theta[of, d] + sigma * rng.normal(size=len(of))
        if errors:
            columns[f"sigma_{name}"] = sigma
    if errors and components == 2:
        columns["correlation_y0_y1"] = rng.uniform(-0.6, 0.6, len(of))
    return ValuesInGroups.from_columns(columns, components=names)


def test_densities_are_those_of_plain_sums():
    """Every form at a point, priors and all, against SciPy."""
    data = values(groups=14)
    theta, mu, tau = np.linspace(1.0, 3.0, 14), 1.7, 0.8
    priors = {"mu": "Normal(1, 2)", "tau": "HalfNormal(1.5)"}
    prior = stats.norm(1, 2).logpdf(mu) + stats.halfnorm(scale=1.5).logpdf(tau)
    expected = prior + stats.norm(mu, tau).logpdf(theta).sum()
    for k in range(14):
        y, sigma = data.values[k, data.used[k], 0], np.sqrt(data.errors[k, data.used[k], 0, 0])
        expected += stats.norm(theta[k], sigma).logpdf(y).sum()
    given = {"mu": mu, "tau": tau}
    centred = compiled_sites(Normal(latents="centred", priors=priors), data)
    assert centred(given | {"theta": theta}).log_density == pytest.approx(expected, rel=1e-12)
    noncentred = compiled_sites(Normal(latents="noncentred", priors=priors), data)
    change = 14 * np.log(tau)  # of the volume, from theta to z
    found = noncentred(given | {"_theta": (theta - mu) / tau}).log_density
    assert found == pytest.approx(expected + change, rel=1e-12)
    mixed = Normal(latents="mixed", priors=priors)
    table = mixed.centring(data)
    c, scale = table["weight"].to_numpy(), table["prior_scale"].to_numpy()
    assert c.max() > 0.3  # neither of the other forms
    x = c * mu + (theta - mu) / (tau / scale) ** (1.0 - c)
    found = compiled_sites(mixed, data)(given | {"_theta": x})
    np.testing.assert_allclose(found.values["theta"], theta, rtol=1e-12)
    change = ((1.0 - c) * np.log(tau / scale)).sum()
    assert found.log_density == pytest.approx(expected + change, rel=1e-12)


@pytest.mark.long
def test_default_priors_are_of_standardised_values():
    for data, model in (
        (values(), Normal(sigma="inferred")),
        (values(2, errors=False), NormalVectors(sigma="inferred")),
    ):
        flat = data.values[data.used]
        center, unit = flat.mean(axis=0), flat.std(axis=0)
        found = compiled_sites(model, data)(number=4)
        v = found.values
        expected = {
            "mu": stats.norm.logpdf(v["mu"], center, 3.0 * unit),
            "tau": stats.halfnorm.logpdf(v["tau"], scale=2.0 * unit),
            "sigma": stats.halfnorm.logpdf(v["sigma"], scale=2.0 * unit),
        }
        for name, log_prob in expected.items():
            assert found.log_probs[name] == pytest.approx(log_prob.sum(), rel=1e-9), name
    factor = v["_correlation_factor"]
    np.testing.assert_allclose(v["correlation"], [(factor @ factor.T)[1, 0]])
    # Lewandowski, Kurowicka & Joe of concentration 2, two components.
    density = np.log(0.75 * (1.0 - v["correlation"][0] ** 2))
    assert float(found.log_probs["_correlation_factor"]) == pytest.approx(density, rel=1e-6)


def test_the_marginal_form_is_the_integral_of_the_centred_one():
    """Group by group by quadrature, with an inferred sigma on top of known errors."""
    data = values(groups=3)
    priors = {"mu": "Normal(1, 2)", "tau": "HalfNormal(1.5)", "sigma": "HalfNormal(0.5)"}
    sites = compiled_sites(Normal(sigma="inferred", priors=priors), data)
    for mu, tau, sigma in ((1.5, 0.7, 0.4), (2.2, 1.1, 0.9)):
        found = sites({"mu": mu, "tau": tau, "sigma": sigma})
        prior = stats.norm(1, 2).logpdf(mu) + stats.halfnorm(scale=1.5).logpdf(tau)
        prior += stats.halfnorm(scale=0.5).logpdf(sigma)
        total = 0.0
        for k in range(3):
            y, scale = data.values[k, data.used[k], 0], np.sqrt(data.errors[k, data.used[k], 0, 0] + sigma**2)

            def density(theta, y=y, scale=scale, mu=mu, tau=tau):
                return stats.norm.pdf(theta, mu, tau) * np.prod(stats.norm.pdf(y, theta, scale))

            one = np.log(integrate.quad(density, -10.0, 12.0, epsabs=0.0, epsrel=1e-11, limit=200)[0])
            assert float(found.log_probs["y"][k]) == pytest.approx(one, abs=1e-8)
            total += one
        assert found.log_density == pytest.approx(prior + total, abs=1e-8)


@pytest.mark.parametrize("sigma", ["known", "inferred"])
def test_densities_of_vectors_are_those_of_plain_sums(sigma):
    data = values(2, errors=sigma == "known")
    theta = np.random.default_rng(1).normal(2.0, 1.0, (5, 2))
    mu, tau, r = np.array([1.5, 2.5]), np.array([0.8, 1.3]), 0.4
    factor = np.array([[1.0, 0.0], [r, np.sqrt(1 - r**2)]])
    given = {"mu": mu, "tau": tau, "_correlation_factor": factor}
    within = np.zeros((2, 2))
    if sigma == "inferred":
        s = np.array([0.5, 0.9])
        given |= {"sigma": s, "_sigma_correlation_factor": factor}
        within = np.outer(s, s) * (factor @ factor.T)
    cov = np.outer(tau, tau) * np.array([[1.0, r], [r, 1.0]])
    expected, marginal = stats.multivariate_normal(mu, cov).logpdf(theta).sum(), 0.0
    for k in range(5):
        used = np.flatnonzero(data.used[k])
        for m in used:
            expected += stats.multivariate_normal(theta[k], data.errors[k, m] + within).logpdf(data.values[k, m])
        # All values of a group at once.
        num = len(used)
        whole = np.kron(np.ones((num, num)), cov)
        for i, m in enumerate(used):
            whole[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += data.errors[k, m] + within
        marginal += stats.multivariate_normal(np.tile(mu, num), whole).logpdf(data.values[k, used].ravel())
    found = compiled_sites(NormalVectors(sigma=sigma), data)(given)
    assert found.log_probs["y"].sum() == pytest.approx(marginal, rel=1e-11)
    prior = found.log_density - marginal
    centred = compiled_sites(NormalVectors(latents="centred", sigma=sigma), data)
    whole = centred(given | {"theta": theta}).log_density
    assert whole == pytest.approx(prior + expected, rel=1e-11)
    # The other forms, less the change of volume: theta at the sites' values and their density agree.
    for latents in ("noncentred", "mixed"):
        model = NormalVectors(latents=latents, sigma=sigma)
        table = model.centring(data) if latents == "mixed" else None
        c = table["weight"].to_numpy().reshape(2, 5) if latents == "mixed" else np.zeros((2, 5))
        scale = table["prior_scale"].to_numpy().reshape(2, 5) if latents == "mixed" else np.ones((2, 5))
        place = [np.full(5, mu[0]), mu[1] + r * tau[1] / tau[0] * (theta[:, 0] - mu[0])]
        spread = [tau[0], tau[1] * np.sqrt(1 - r**2)]
        sites, change = {}, 0.0
        for d in range(2):
            power = (spread[d] / scale[d]) ** (1.0 - c[d])
            sites[f"__theta_y{d}"] = c[d] * place[d] + (theta[:, d] - place[d]) / power
            change += np.log(power).sum()
        found = compiled_sites(model, data)(given | sites)
        np.testing.assert_allclose(found.values["theta"], theta, rtol=1e-11)
        assert found.log_density == pytest.approx(whole + change, rel=1e-11)


@functools.cache
def schools(latents, **options):
    model = Normal(latents=latents, priors=REFERENCE)
    return hbm.sample(model, load_eight_schools(), seed=seed(1), progress=False, **options)


def compared(fit, shared_data, monte_carlo, min_ess, num_draws):
    """Means and quantiles of a fit against the reference draws of posteriordb, which are nearly independent."""
    name = "eight_schools-eight_schools_noncentered"
    summary = json.loads(shared_data("hierarchical/posteriordb/reference_summary.json").read_text())[name]
    draws = np.load(shared_data("hierarchical/posteriordb/reference_draws.npz"))[name]
    names = list(summary["parameters"]) if "parameters" in summary else list(summary)
    theta = hbm.latents(fit, num_draws=num_draws)["theta"].to_numpy()
    assert set(names) == {"mu", "tau", *(f"theta[{k + 1}]" for k in range(8))}
    for place, name in enumerate(names):
        theirs = draws[..., place].ravel()
        if name in ("mu", "tau"):
            ours, less = fit.posterior[name].to_numpy(), min_ess
        else:
            ours = theta[:, int(name[6]) - 1].reshape(4, -1)  # spread evenly over the chains, in their order
            less = 0.5 * min_ess
        monte_carlo.mean(ours, theirs.mean(), expected_error=theirs.std() / 90.0, name=name, min_ess=less)
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            error = np.sqrt(q * (1 - q)) / 90.0
            below = ours < np.quantile(theirs, q)
            monte_carlo.share(below, q, expected_error=error, name=f"{q} quantile of {name}", min_ess=0.5 * less)


@pytest.mark.parametrize(
    "latents", [pytest.param("marginal", marks=pytest.mark.long), pytest.param("mixed", marks=pytest.mark.slow)]
)
def test_eight_schools_have_the_reference_posterior(latents, shared_data, monte_carlo):
    """Means and quantiles within standard errors of the reference draws of posteriordb, after a gate on ESS."""
    fit = schools(latents, until=1000)
    assert fit.verdict.usable, str(fit.verdict)
    compared(fit, shared_data, monte_carlo, min_ess=800, num_draws=4000)


@pytest.mark.long
def test_the_funnel_shows_in_the_centred_form_alone():
    # Enough draws that divergences crowd where they do, whatever the seed.
    fit = schools("centred", num_samples=2500, num_warmup=400)
    assert not fit.verdict.usable
    exact = np.log(schools("marginal", until=1000).posterior["tau"].to_numpy()).ravel()
    neck = np.quantile(exact, 0.05)
    # The neck is below the 5 % quantile of ln tau: chains avoid it, or begin in it and stay, which rounding decides.
    share = np.mean(np.log(fit.posterior["tau"].to_numpy()) < neck)
    assert not 0.035 < share < 0.07


def test_weights_follow_the_information_of_the_data():
    rng = np.random.default_rng(2)
    sigma = np.array([0.01] * 6 + [30.0] * 6)
    data = ValuesInGroups.from_columns({"y": rng.normal(0, 3.0, 12) + sigma * rng.normal(size=12), "sigma_y": sigma})
    table = Normal(latents="mixed").centring(data)
    assert (table["parametrisation"][:6] == "centred").all()
    assert (table["parametrisation"][6:] == "non-centred").all()
    assert table["element"][0] == "theta[group 0]"
    assert (Normal(latents="noncentred").centring(data)["weight"] == 0).all()
    assert (NormalVectors(latents="centred").centring(values(2))["weight"] == 1).all()
    # Where sigma is inferred, information grows with the number of values.
    many = Normal(latents="mixed", sigma="inferred").centring(values(errors=False, groups=4))["information"]
    np.testing.assert_allclose(many / many[0], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="found 'marginal'"):
        Normal().centring(data)


def test_tables_and_models_come_back(tmp_path):
    for components in (1, 2):
        data = values(components)
        data.to_table().write(tmp_path / f"{components}.ecsv")
        read = read_values(tmp_path / f"{components}.ecsv", components=data.components)
        for again in (read, ValuesInGroups.from_dict(data.to_dict())):
            assert (again.name, again.components, again.has_errors) == (data.name, data.components, True)
            for key in ("values", "errors", "used", "center", "unit"):
                np.testing.assert_allclose(getattr(again, key), getattr(data, key), rtol=1e-12, atol=1e-15)
    assert len(data.subset([0, 3])) == 2
    assert data.describe() == "11 values in 5 groups of 1 to 4. y0: median error 0.554; y1: median error 0.615."
    model = Normal(latents="mixed", priors={"mu": "Normal(1, 2)", "tau": 0.5})
    assert Normal(**model.to_config()).to_config() == model.to_config()
    school = load_eight_schools()
    np.testing.assert_array_equal(school.values[:, 0, 0], [28, 8, -3, 7, -1, 1, 18, 12])
    np.testing.assert_array_equal(np.sqrt(school.errors[:, 0, 0, 0]), [15, 10, 16, 11, 9, 11, 10, 18])


@pytest.mark.long
def test_simulations_have_the_design_and_the_parameters():
    drawn, truth = Normal().simulate(jax.random.key(1), values(), {"tau": 0.0, "mu": 3.0})
    np.testing.assert_allclose(truth["theta"], 3.0)
    assert drawn.values.shape == values().values.shape
    assert (drawn.values[~drawn.used] == 0).all()
    vectors, truth = NormalVectors().simulate(jax.random.key(1), values(2), {"tau": 0.5})
    assert {"mu", "tau", "theta", "correlation"} <= truth.keys()  # which have dimensions, as the observed site
    residual = (vectors.values - truth["theta"][:, None])[vectors.used]
    assert (np.abs(residual) < 5.0 * 0.9).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": [1.0, np.nan, 2.0]}, ["y, row 1 (group a)", "finite number"]),
        ({"sigma_y": [1.0, 0.0, 1.0]}, ["sigma_y, row 1 (group a)", "positive error", "0.0"]),
        ({"group": ["a", "", "b"]}, ["group, row 1", "the name of a group"]),
        ({"sigma_y": [1.0, 2.0]}, ["sigma_y", "expected 3 values", "found 2"]),
        ({"group": ["a", "b"]}, ["group", "expected 3 names"]),
    ],
)
def test_bad_values(change, words):
    columns = {"group": ["a", "a", "b"], "y": [1.0, 2.0, 3.0], "sigma_y": [0.1, 0.2, 0.1]}
    with pytest.raises(DataError) as error:
        ValuesInGroups.from_columns(columns | change)
    for word in words:
        assert word in str(error.value)


def test_bad_vectors_choices_and_tables(tmp_path):
    two = {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0], "sigma_a": [1.0, 1.0, 1.0]}
    with pytest.raises(DataError, match="'sigma_b' is missing: expected errors of all components or of none"):
        ValuesInGroups.from_columns(two, components=["a", "b"])
    whole = two | {"sigma_b": [1.0, 1.0, 1.0]}
    for kind, text in (("correlation", "a correlation between -1 and 1"), ("covariance", "positive definite")):
        with pytest.raises(DataError, match=rf"{kind}_a_b, row 2.*{text}.*1\.5"):
            ValuesInGroups.from_columns(whole | {f"{kind}_a_b": [0.0, 0.0, 1.5]}, components=["a", "b"])
    with pytest.raises(ValueError, match=r"Unknown latents of Normal 'central'.*did you mean 'centred'"):
        Normal(latents="central")
    with pytest.raises(ValueError, match=r"Normal has no parameter 'ta'.*did you mean 'tau'"):
        Normal(priors={"ta": 1.0})
    with pytest.raises(TypeError, match=r"Normal: unknown option 'latent' \(did you mean 'latents'\?\)"):
        Normal(latent="centred")
    with pytest.raises(ValueError, match=r"concentration: expected a positive number; found 0"):
        NormalVectors(concentration=0.0)

    def refused(model, columns, message, **options):
        with pytest.raises(DataError, match=message):
            model(ValuesInGroups.from_columns(columns, **options))

    plain = {"y": [1.0, 2.0, 3.0], "group": ["a", "a", "b"]}
    refused(Normal(), plain, r"sigma='known' expects errors of the values \(sigma_y\); found none")
    refused(Normal(sigma="inferred"), {"y": [1.0, 2.0]}, "groups of several values")
    refused(Normal(sigma="inferred"), plain | {"group": ["a"] * 3}, "two groups or more.*found 1")
    three = plain | {"group": ["a", "b", "c"]}
    refused(Normal(sigma="inferred"), three, "expects errors, or groups of several values.*found neither")
    refused(Normal(), whole, r"expected one component; found 2 \(a, b\). Use NormalVectors", components=["a", "b"])
    with pytest.raises(DataError, match="expected ValuesInGroups; found dict"):
        Normal()(plain)
    (tmp_path / "values.csv").write_text("school,effect\nA,1\nB,2\n")
    with pytest.raises(DataError, match=r"values\.csv: column 'y' is missing.*found the columns school, effect"):
        read_values(tmp_path / "values.csv")


@pytest.mark.slow
def test_posteriors_are_calibrated_in_every_form(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from calibration_normal import cases

    for name, model, data in cases():
        result = hbm.calibrate(model, data, num_replicates=512, seed=2, progress=False)
        print(name, result)
        assert result.calibrated, f"{name}: {result}"


@pytest.mark.slow
def test_vectors_have_one_posterior_in_every_form():
    data = values(2, groups=8, seed=3)
    draws = {}
    for latents in LATENTS:
        fit = hbm.sample(NormalVectors(latents=latents), data, seed=1, until=1000, progress=False)
        assert fit.verdict.usable, (latents, str(fit.verdict))
        theta = hbm.latents(fit, num_draws=4000)["theta"].to_numpy()
        draws[latents] = [
            fit.posterior[name].to_numpy().reshape(4, -1, 2 if name != "correlation" else 1)
            for name in ("mu", "tau", "correlation")
        ]
        draws[latents].append(theta.reshape(1, len(theta), -1))
    for latents in LATENTS[1:]:
        for one, other in zip(draws["marginal"], draws[latents], strict=True):
            error = np.std(one, axis=(0, 1)) * np.sqrt(2 / 1000)
            assert (np.abs(one.mean((0, 1)) - other.mean((0, 1))) < 4.5 * error).all(), latents
