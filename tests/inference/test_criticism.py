import dataclasses
import functools

import arviz_stats
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr
from numpyro import distributions as dist
from scipy import integrate, stats

import hbm_jax as hbm
from hbm_jax.inference.criticism import compare, log_likelihood, loo, prior_sensitivity, refit

OPTIONS = {"num_samples": 1000, "num_warmup": 300, "progress": False}
SIGMA, WIDTH = 0.5, 2.0  # of the noise and of the prior of the coefficients
NUM = 36


@dataclasses.dataclass(frozen=True)
class Line:
    """A container of the kind that can be refitted."""

    name: tuple
    x: np.ndarray
    y: np.ndarray
    night: tuple

    def __len__(self):
        return len(self.x)

    def subset(self, rows):
        rows = np.asarray(rows)
        name, night = (tuple(values[i] for i in rows) for values in (self.name, self.night))
        return Line(name, self.x[rows], self.y[rows], night)


def line_data(outlier=0.0):
    rng = np.random.default_rng(7)
    x = np.sort(rng.uniform(-1.0, 1.0, NUM))
    y = 0.4 + 1.3 * x + SIGMA * rng.normal(size=NUM)
    y[-1] += outlier
    return Line(tuple(f"star {i}" for i in range(NUM)), x, y, tuple(f"night {i}" for i in rng.integers(0, 5, NUM)))


def line(data):
    """Known noise and a normal prior: every leave-one-out density is known."""
    coefficient = numpyro.sample("coefficient", dist.Normal(0.0, WIDTH).expand([2]).to_event(1))
    with numpyro.plate("star", len(data)):
        numpyro.sample("y", dist.Normal(coefficient[0] + coefficient[1] * jnp.asarray(data.x), SIGMA), obs=data.y)


def flat_line(data):
    level = numpyro.sample("level", dist.Normal(0.0, WIDTH))
    with numpyro.plate("star", len(data)):
        numpyro.sample("y", dist.Normal(level, SIGMA), obs=data.y)


line.coords = flat_line.coords = lambda data: {"star": list(data.name)}


@functools.cache
def line_fit(outlier=0.0, program=line):
    return hbm.sample(program, line_data(outlier), seed=1, **OPTIONS)


def exact_density_left_out(data, rows):
    """log p(y_rows | y_others), by the conjugate posterior of the others."""
    design = np.column_stack([np.ones(len(data)), data.x])
    rest = np.setdiff1d(np.arange(len(data)), rows)
    covariance = np.linalg.inv(np.eye(2) / WIDTH**2 + design[rest].T @ design[rest] / SIGMA**2)
    mean = covariance @ design[rest].T @ data.y[rest] / SIGMA**2
    spread = design[rows] @ covariance @ design[rows].T + SIGMA**2 * np.eye(len(rows))
    return stats.multivariate_normal(design[rows] @ mean, spread).logpdf(data.y[rows])


# Log likelihoods


def test_log_likelihood_is_scipys_at_every_draw_whatever_the_chunks():
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    values = log_likelihood(fit, chunk=333)["y"]
    assert values.dims == ("chain", "draw", "star")
    draws = fit.posterior["coefficient"].to_numpy()
    mean = draws[..., :1] + draws[..., 1:] * fit.data.x
    np.testing.assert_allclose(values, stats.norm(mean, SIGMA).logpdf(fit.data.y), rtol=1e-10)
    few = log_likelihood(fit, chunk=7, num_draws=10)["y"]
    assert few.sizes["draw"] == 3
    np.testing.assert_allclose(few, values.sel(draw=few["draw"]), rtol=1e-12)


def test_log_likelihood_is_kept_only_on_request_and_where_arviz_looks(tmp_path):
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    loo(fit)
    log_likelihood(fit, num_draws=20)
    assert "log_likelihood" not in fit.tree
    kept = log_likelihood(fit)
    assert fit.tree["log_likelihood"].to_dataset().identical(kept)
    np.testing.assert_array_equal(fit.tree["observed_data"]["y"], fit.data.y)
    ours, theirs = loo(fit), arviz_stats.loo(fit.tree, pointwise=True)
    assert ours.elpd == pytest.approx(theirs.elpd, abs=0.05)
    fit.save(tmp_path / "line")
    loaded = hbm.load(tmp_path / "line")
    assert loo(loaded).elpd == pytest.approx(ours.elpd, abs=1e-9)


@functools.cache
def supernova_fit():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 37))
    model = hbm.models.Supernova(cosmology="wcdm", priors={"Om0": "Normal(0.3, 0.05)"})
    return hbm.sample(model, sne, num_samples=250, num_warmup=200, progress=False)


def test_log_likelihood_of_marginal_supernovae_is_a_multivariate_normal():
    fit, sne = supernova_fit(), supernova_fit().data
    values = log_likelihood(fit)["observed"]
    assert values.dims == ("chain", "draw", "supernova")
    assert list(values["supernova"].to_numpy()) == list(sne.name)
    for chain, draw in ((0, 0), (3, 249)):
        p = {name: float(v) for name, v in fit.posterior.isel(chain=chain, draw=draw).items()}
        cosmology = hbm.cosmology.Cosmology.flat(H0=70.0, Om0=p["Om0"], w0=p["w0"]).to_astropy()
        for i in (0, 11, 19):
            # In the container's order: m_b, x1, c.
            distance = cosmology.comoving_distance(sne.z_cmb[i]).value * (1 + sne.z_hel[i])
            step = p["delta_M"] * (sne.log10_mass[i] > 10)
            centre = 5 * np.log10(distance) + 25 + p["M0"] + step - p["alpha"] * p["x1_mean"] + p["beta"] * p["c_mean"]
            loading = np.array([-p["alpha"], 1.0, 0.0]), np.array([p["beta"], 0.0, 1.0])
            covariance = sne.covariance[i] + p["x1_std"] ** 2 * np.outer(loading[0], loading[0])
            covariance += p["c_std"] ** 2 * np.outer(loading[1], loading[1])
            covariance[0, 0] += p["sigma_int"] ** 2 + sne.variance_lensing[i] + sne.variance_velocity[i]
            exact = stats.multivariate_normal([centre, p["x1_mean"], p["c_mean"]], covariance)
            seen = [sne.m_b[i], sne.x1[i], sne.c[i]]
            assert float(values[chain, draw, i]) == pytest.approx(exact.logpdf(seen), abs=1e-5)


def test_double_precision_within_and_the_callers_setting_without():
    with jax.enable_x64(False):
        values = log_likelihood(line_fit(), num_draws=4)
        assert not jax.config.jax_enable_x64
    assert values["y"].dtype == np.float64
    np.testing.assert_allclose(values["y"], log_likelihood(line_fit(), num_draws=4)["y"], rtol=1e-13)


# Leaving out


def test_loo_is_the_exact_leave_one_out_density():
    result = loo(line_fit())
    exact = [exact_density_left_out(line_fit().data, [i]) for i in range(NUM)]
    np.testing.assert_allclose(result.table["elpd"], exact, atol=0.04)
    assert result.elpd == pytest.approx(sum(exact), abs=0.1)
    assert result.se == pytest.approx(np.sqrt(NUM) * np.std(exact), rel=0.02)
    assert 1.0 < result.p < 3.0
    assert result.reliable
    assert "each star left out in turn (36)" in str(result)
    assert f"{result.table['pareto_k'].max():.2f}, of {result.table['pareto_k'].idxmax()}" in str(result)
    assert result.table.index[3] == "star 3"


@pytest.mark.parametrize("by", ["name", "labels"])
def test_leaving_groups_out_is_the_exact_joint_density(by):
    fit = line_fit()
    result = loo(fit, group="night" if by == "name" else np.array(fit.data.night))
    names = list(dict.fromkeys(fit.data.night))
    assert list(result.table.index) == names
    assert result.unit == ("night" if by == "name" else "group")
    for name in names:
        rows = np.flatnonzero(np.array(fit.data.night) == name)
        row = result.table.loc[name]
        close = 0.03 if row["pareto_k"] < 0.5 else 0.2  # the importance weights have no variance beyond
        assert row["elpd"] == pytest.approx(exact_density_left_out(fit.data, rows), abs=close)
        assert result.table["num_observations"][name] == len(rows)
    assert "the standard error is itself uncertain" in str(result)


@pytest.mark.slow
def test_refit_replaces_what_importance_sampling_cannot_do():
    fit = line_fit(outlier=6.0)
    result = loo(fit)
    assert list(result.bad.index) == ["star 35"]
    assert "Not reliable: Pareto k is above" in str(result)
    assert "star 35 (" in str(result)
    exact = exact_density_left_out(fit.data, [NUM - 1])
    # An error of a tail 11 standard deviations out; the refit has the mean of the right tail's density.
    better = refit(fit, result)
    assert better.table["elpd"]["star 35"] == pytest.approx(exact, abs=0.5)
    assert abs(better.table["elpd"]["star 35"] - exact) < abs(result.table["elpd"]["star 35"] - exact)
    assert better.reliable
    assert "1 refitted" in str(better)
    assert better.elpd_data.elpd == pytest.approx(better.elpd)
    nothing_bad = loo(line_fit())
    assert refit(line_fit(), nothing_bad) is nothing_bad
    with pytest.raises(ValueError, match=r"at most max_refits=0 bad units; found 1"):
        refit(fit, result, max_refits=0)


def scattered(data):
    level = numpyro.sample("level", dist.Normal(0.0, WIDTH))
    with numpyro.plate("star", len(data)):
        true = numpyro.sample("true", dist.Normal(level, 1.0))
        numpyro.deterministic("offset", true - level)
        numpyro.sample("y", dist.Normal(true, SIGMA), obs=data.y)


@pytest.mark.slow
@pytest.mark.parametrize("centering", [False, True])
def test_refit_draws_the_latents_of_what_is_left_out_from_the_population(centering):
    data = line_data().subset(range(12))
    fit = hbm.sample(scattered, data, centering=centering, **OPTIONS)
    result = loo(fit)
    table = result.table.copy()
    table["pareto_k"] = np.where(np.arange(12) == 4, 2.0, 0.0)
    better = refit(fit, dataclasses.replace(result, table=table))
    rest = np.delete(data.y, 4)
    variance = 1.0 / (1.0 / WIDTH**2 + 11 / (1.0 + SIGMA**2))
    predicted = stats.norm(variance * rest.sum() / (1.0 + SIGMA**2), np.sqrt(variance + 1.0 + SIGMA**2))
    assert better.table["elpd"].iloc[4] == pytest.approx(predicted.logpdf(data.y[4]), abs=0.06)


GROUPS, PER_GROUP, NOISE = 6, 3, 0.7
MEASURED = np.random.default_rng(3).normal(
    np.repeat(np.random.default_rng(2).normal(1.0, 1.0, GROUPS), PER_GROUP), NOISE
)
OF = np.repeat(np.arange(GROUPS), PER_GROUP)


def marginal_groups(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    covariance = tau**2 * jnp.ones((PER_GROUP, PER_GROUP)) + NOISE**2 * jnp.eye(PER_GROUP)
    with numpyro.plate("group", GROUPS):
        numpyro.sample("y", dist.MultivariateNormal(mu, covariance), obs=y.reshape(GROUPS, PER_GROUP))


def sampled_groups(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("group", GROUPS):
        effect = numpyro.sample("effect", dist.Normal(mu, tau))
    with numpyro.plate("member", len(y)):
        numpyro.sample("y", dist.Normal(effect[OF], NOISE), obs=y)


@functools.cache
def group_fit(program):
    return hbm.sample(program, MEASURED, seed=5, num_samples=1500, num_warmup=500, progress=False)


def exact_density_of_groups():
    """log p(y_g | others) with mu and tau on a grid."""
    mu, tau = np.meshgrid(np.linspace(-8, 10, 361), np.linspace(0.005, 10, 400), indexing="ij")
    log_prior = stats.norm(0, 3).logpdf(mu) + stats.halfnorm(0, 2).logpdf(tau)
    # Normals with a common correlation, split into the group's mean and the scatter within.
    mean = MEASURED.reshape(GROUPS, PER_GROUP).mean(axis=1)
    log_group = stats.norm.logpdf(mean[:, None, None], mu, np.sqrt(tau**2 + NOISE**2 / PER_GROUP))
    within = np.sum((MEASURED.reshape(GROUPS, PER_GROUP) - mean[:, None]) ** 2, axis=1)
    free = PER_GROUP - 1
    log_within = -0.5 * within / NOISE**2 - 0.5 * free * np.log(2 * np.pi * NOISE**2) - 0.5 * np.log(PER_GROUP)
    found = []
    for g in range(GROUPS):
        others = log_prior + np.delete(log_group, g, axis=0).sum(axis=0)
        joint = others + log_group[g]
        found.append(np.logaddexp.reduce(joint.ravel()) - np.logaddexp.reduce(others.ravel()) + log_within[g])
    return np.array(found)


def test_leaving_groups_out_with_marginal_effects_agrees_with_exact_refits():
    result = loo(group_fit(marginal_groups))
    np.testing.assert_allclose(result.table["elpd"], exact_density_of_groups(), atol=0.08)
    assert result.reliable
    assert "sampled" not in str(result)


def test_sampled_effects_are_named_and_do_worse():
    fit = group_fit(sampled_groups)
    conditional, marginal = loo(fit, group=OF), loo(group_fit(marginal_groups))
    assert conditional.table["pareto_k"].mean() > marginal.table["pareto_k"].mean() + 0.2
    assert not conditional.reliable
    assert "the latents effect are sampled, not integrated out" in str(conditional)
    assert "integrate the latents out" in str(conditional)
    assert "are sampled" not in str(loo(fit))  # the other members of a group still say what its effect is
    # The quantity itself is the same, but importance sampling does not get there.
    excess = conditional.table["elpd"] - exact_density_of_groups()
    assert (excess > 0.2).all()
    assert (excess < 1.5).all()


def pair(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("object", len(x)):
        true = numpyro.sample("true", dist.Normal(0.0, 1.0))
        numpyro.sample("x_seen", dist.Normal(true, 0.8), obs=x)
        numpyro.sample("y_seen", dist.Normal(slope * true, 0.8), obs=y)
    numpyro.factor("_guard", 0.0)
    numpyro.factor("own", 0.0 * slope)


def test_everything_measured_of_an_object_is_left_out_together():
    rng = np.random.default_rng(0)
    true = rng.normal(size=12)
    fit = hbm.sample(pair, true + 0.8 * rng.normal(size=12), true + 0.8 * rng.normal(size=12), **OPTIONS)
    values = log_likelihood(fit)
    assert set(values) == {"x_seen", "y_seen"}
    result = loo(fit)
    assert result.sites == ("x_seen", "y_seen")
    assert "x_seen, y_seen are left out together" in str(result)
    assert "the latents true are sampled" in str(result)
    assert "the factors own belong to no observation" in str(result)
    lone = loo(fit, site="x_seen")
    assert lone.sites == ("x_seen",)
    assert lone.elpd > result.elpd
    # With `true` integrated out by hand; ArviZ's smoothing of conditional weights is what differs.
    slope = fit.posterior["slope"].to_numpy().ravel()
    covariance = np.array([[1 + 0.8**2 + 0 * slope, slope], [slope, slope**2 + 0.8**2]])
    x, y = fit.args
    for i in range(12):
        density = [stats.multivariate_normal(np.zeros(2), c).pdf([x[i], y[i]]) for c in covariance.T[::40]]
        assert result.table["elpd"].iloc[i] == pytest.approx(-np.log(np.mean(1 / np.array(density))), abs=0.15)


# Comparison


def test_comparison_prefers_the_model_the_data_come_from():
    fits = {"constant": line_fit(program=flat_line), "line": line_fit()}
    result = compare(fits)
    assert list(result.table.index) == ["line", "constant"]
    one, other = (loo(fit).table["elpd"].to_numpy() for fit in (fits["constant"], fits["line"]))
    row = result.table.loc["constant"]
    assert row["elpd_diff"] == pytest.approx(np.sum(one - other), rel=1e-9)
    assert row["elpd_diff"] < -10
    assert row["dse"] == pytest.approx(np.sqrt(NUM) * np.std(one - other), rel=1e-9)
    assert row["elpd"] == pytest.approx(one.sum(), rel=1e-9)
    assert result.table["weight"].sum() == pytest.approx(1.0)
    assert result.table["weight"]["line"] > 0.9
    assert str(result).startswith("line predicts best; constant is behind by")
    assert "standard errors" in str(result)


def test_models_that_predict_alike_are_called_so():
    a, b = line_fit(), loo(line_fit(), num_draws=2000)
    assert len(b.table) == NUM
    assert "practically the same" in str(compare({"a": a, "b": b}))


def test_tiny_densities_do_not_spoil_the_weights():
    fits = {"a": loo(line_fit()), "b": loo(line_fit(program=flat_line))}
    low = {n: dataclasses.replace(r, table=r.table.assign(elpd=r.table["elpd"] - 5000.0)) for n, r in fits.items()}
    np.testing.assert_allclose(compare(low).table["weight"], compare(fits).table["weight"], atol=1e-6)


def test_other_observations_are_refused_by_name():
    with pytest.raises(ValueError, match="at least two fits; found 1"):
        compare({"a": line_fit()})
    with pytest.raises(ValueError, match=r"y\[35\] is .* in a and .* in b"):
        compare({"a": line_fit(), "b": line_fit(outlier=6.0)})
    result = loo(line_fit())
    with pytest.raises(ValueError, match="a has the observed sites y, b has z"):
        compare({"a": result, "b": dataclasses.replace(result, sites=("z",))})
    short = dataclasses.replace(result, observed={"y": line_data().y[:20]})
    with pytest.raises(ValueError, match=r"y has shape \(36,\) in a and \(20,\) in b"):
        compare({"a": result, "b": short})
    with pytest.raises(ValueError, match="a leaves out 36 x star, b 5 x night"):
        compare({"a": result, "b": loo(line_fit(), group="night")})


# Sensitivity to priors


def level(y, centre, width):
    theta = numpyro.sample("theta", dist.Normal(centre, width))
    other = numpyro.sample("other", dist.Uniform(-1.0, 1.0))
    numpyro.sample("z", dist.Normal(other, 0.1), obs=0.2)
    with numpyro.plate("i", len(y)):
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


Y = np.random.default_rng(1).normal(4.0, 1.0, 10)


@functools.cache
def level_fit(centre, width):
    return hbm.sample(level, Y, centre, width, seed=4, num_samples=2000, num_warmup=300, progress=False)


def exact_sensitivity(fit, centre, width, what):
    """Of the normal posterior of theta, by quadrature over the range of the draws: Kallioinen et al. 2024."""
    draws = fit.posterior["theta"].to_numpy()
    t = np.linspace(draws.min(), draws.max(), 20001)

    def posterior(prior_power, likelihood_power):
        precision = prior_power / width**2 + likelihood_power * len(Y)
        return stats.norm((prior_power * centre / width**2 + likelihood_power * Y.sum()) / precision, precision**-0.5)

    def distance(p, q):
        def directed(f, g):
            with np.errstate(divide="ignore", invalid="ignore"):
                inner = np.where(f > 0, f * np.log2(2 * f / (f + g)), 0.0)
            return integrate.trapezoid(inner + 0.5 / np.log(2) * (g - f), t)

        def symmetric(f, g):
            bound = integrate.trapezoid(f + g, t)
            return np.sqrt((directed(f, g) + directed(g, f)) / bound)

        return max(symmetric(p.cdf(t), q.cdf(t)), symmetric(p.sf(t), q.sf(t)))

    base = posterior(1, 1)
    powers = [(a, 1) if what == "prior" else (1, a) for a in (0.99, 1.01)]
    low, high = (distance(base, posterior(*power)) for power in powers)
    return 0.5 * (low / -np.log2(0.99) + high / np.log2(1.01))


def test_power_scaling_flags_a_conflict_with_the_exact_sensitivity():
    fit = level_fit(0.0, 0.5)
    result = prior_sensitivity(fit)
    row = result.table.loc["theta"]
    assert row["prior"] == pytest.approx(exact_sensitivity(fit, 0.0, 0.5, "prior"), rel=0.15)
    assert row["diagnosis"] == "possible conflict of prior and data"
    assert row["strongest_prior"] == "theta"
    assert list(result.flagged.index) == ["theta"]
    assert result.flat == ("other",)
    assert "theta: possible conflict of prior and data" in str(result)
    assert "the priors of other are flat" in str(result)


def test_power_scaling_leaves_a_harmless_prior_alone():
    fit = level_fit(0.0, 100.0)
    result = prior_sensitivity(fit)
    row = result.table.loc["theta"]
    assert row["prior"] < 0.01
    assert row["likelihood"] == pytest.approx(exact_sensitivity(fit, 0.0, 100.0, "likelihood"), rel=0.15)
    assert row["diagnosis"] == "the data decide"
    assert str(result).startswith("the priors matter little")


def test_a_prior_that_decides_is_called_so():
    result = prior_sensitivity(level_fit(4.0, 0.02))
    assert result.table["diagnosis"]["theta"].startswith("the prior decides")


def test_hyperpriors_are_scaled_and_populations_are_not():
    result = prior_sensitivity(group_fit(sampled_groups))
    assert list(result.by_prior) == ["mu", "tau"]
    assert result.left_out == ("effect",)
    assert "the distributions of effect are taken for a part of the model" in str(result)
    chosen = prior_sensitivity(group_fit(sampled_groups), sites=["tau"])
    np.testing.assert_allclose(chosen.table["prior"], result.by_prior["tau"], rtol=1e-9)


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


# Errors


def no_data():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("own", 0.0)


def one_event(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0).expand([len(y)]).to_event(1), obs=y)


def two_sites(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    numpyro.sample("z", dist.Normal(x, 1.0), obs=y[:2])


def test_errors_name_what_was_expected():
    few = {"num_samples": 50, "num_warmup": 50, "progress": False}
    fit = line_fit()
    empty = hbm.sample(no_data, **few)
    for function in (log_likelihood, loo, prior_sensitivity):
        with pytest.raises(ValueError, match="expected a fit with its program and data, found one without"):
            function(dataclasses.replace(fit, program=None))
        with pytest.raises(ValueError, match=r"expected a program with observed sites.*found none"):
            function(empty)
    with pytest.raises(ValueError, match=r"found none, but factors \(own\) in no_data"):
        log_likelihood(empty)
    with pytest.raises(ValueError, match=r"expected the program the draws are of, with 2 .* found another, with 1"):
        loo(dataclasses.replace(fit, program=flat_line))
    with pytest.raises(ValueError, match=r"one group label for each entry of the site, 36 \(star\); .* shape \(35,\)"):
        loo(fit, group=np.zeros(35))
    with pytest.raises(ValueError, match=r"name of a dimension or of a field of the data \(.*night.*\); found 'nigth'"):
        loo(fit, group="nigth")
    with pytest.raises(ValueError, match="expected one of the observed sites y; found site='z'"):
        loo(fit, site="z")
    with pytest.raises(ValueError, match="expected 1 or more draws at a time; found 0"):
        log_likelihood(fit, chunk=0, num_draws=3)
    y = np.linspace(-1.0, 1.0, 5)
    with pytest.raises(ValueError, match="a single one for all data of y"):
        loo(hbm.sample(one_event, y, **few))
    with pytest.raises(ValueError, match=r"found y over \(y_dim_0: 5\); z over \(z_dim_0: 2\)"):
        loo(hbm.sample(two_sites, y, **few))
    with pytest.raises(ValueError, match="expected sites among coefficient; found slope"):
        prior_sensitivity(fit, sites=["slope"])
    with pytest.raises(ValueError, match=r"data with subset\(indices\).*found ndarray"):
        refit(group_fit(sampled_groups), loo(group_fit(sampled_groups), group=OF))


def test_fits_are_compared_by_name():
    with pytest.raises(ValueError, match=r"compare: expected a dictionary of fits .*; found list"):
        compare([1, 2])
    with pytest.raises(ValueError, match=r"compare: expected a dictionary of fits .*; found int, str"):
        compare({"a": "line", "b": 1})


def masked(y, seen):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("i", len(y)), numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_masked_observations_are_left_aside():
    seen = np.array([True] * 11 + [False])
    fit = hbm.sample(masked, np.linspace(-1.0, 1.0, 12), seen, **OPTIONS)
    result = loo(fit)
    assert len(result.table) == 11
    assert "1 without any bearing on the parameters (masked?) were left aside" in str(result)
