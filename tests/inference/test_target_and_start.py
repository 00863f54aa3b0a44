"""A program as a density on flat vectors, and where its chains start."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro.infer.reparam import CircularReparam
from scipy import stats
from scipy.special import i0e, i1e

import hbm_jax as hbm
from hbm_jax.inference import HMC
from hbm_jax.inference.sampler import initialisation as start_module
from hbm_jax.inference.sampler.approximations import GRADIENT_TOLERANCE, hessian_at, minimise
from hbm_jax.inference.sampler.chains import Chains
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.metric import Metric, curvature_metric, scaled_metric
from hbm_jax.inference.sampler.target import StartError, Target, build_target

KEY = jax.random.key(seed(5))
Y = np.array([0.3, -1.2, 2.0])


def program(y, spread):
    mu = numpyro.sample("mu", dist.Normal(0.5, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(spread))
    p = numpyro.sample("p", dist.Uniform(-1.0, 3.0))
    numpyro.sample("_nuisance", dist.Normal(0.0, 1.0))
    numpyro.deterministic("twice", 2.0 * mu)
    with numpyro.plate("thing", 3):
        x = numpyro.sample("x", dist.Normal(mu, sigma))
        numpyro.deterministic("shifted", x + p)
        numpyro.sample("y", dist.Normal(x * p, 0.7), obs=y)


@pytest.fixture(scope="module")
def target():
    return build_target(program, (Y, 1.5), KEY)


def log_density(flat):
    """Of the program above, in SciPy, with the Jacobians of exp and of the scaled sigmoid."""
    nuisance, mu, logit, log_sigma, *x = flat
    sigma = np.exp(log_sigma)
    share = 1.0 / (1.0 + np.exp(-logit))
    p = -1.0 + 4.0 * share
    total = stats.norm(0.5, 2.0).logpdf(mu) + stats.halfnorm(0, 1.5).logpdf(sigma) + stats.norm().logpdf(nuisance)
    total += stats.uniform(-1.0, 4.0).logpdf(p)
    total += stats.norm(mu, sigma).logpdf(x).sum() + stats.norm(np.array(x) * p, 0.7).logpdf(Y).sum()
    return total + log_sigma + np.log(4.0 * share * (1.0 - share))


def test_density_with_jacobians_and_its_gradient(target):
    for point in np.random.default_rng(0).normal(size=(6, 7)):
        value, gradient = target.value_and_grad(point)
        np.testing.assert_allclose(-value, log_density(point), rtol=1e-12)
        slopes = [(log_density(point + h) - log_density(point - h)) / 2e-5 for h in 1e-5 * np.eye(7)]
        np.testing.assert_allclose(-gradient, slopes, rtol=1e-7, atol=1e-8)


def test_labels_dims_and_bounds(target):
    assert target.labels == ("_nuisance", "mu", "p", "sigma", "x[0]", "x[1]", "x[2]")
    assert target.size == 7
    assert target.start.shape == (7,)
    assert target.start.dtype == np.float64
    assert target.dims["x"] == target.dims["shifted"] == ["thing"]
    assert target.dims["mu"] == []
    assert "_nuisance" not in target.dims
    assert target.bounds["p"] == (-1.0, 3.0)
    assert target.bounds["sigma"] == (0.0, np.inf)
    assert target.bounds["mu"] == (-np.inf, np.inf)
    assert target.bounds["x"] == (-np.inf, np.inf)  # of every element
    assert target.names == ["mu", "sigma", "p", "twice", "x", "shifted"]
    assert target.observed
    assert not target.standard.any()


def test_sites_come_back_constrained(target):
    flat = np.random.default_rng(2).normal(size=7)
    sites, readable = jax.jit(lambda flat: (target.sites(flat), target.constrain(flat)))(flat)
    np.testing.assert_allclose(sites["sigma"], np.exp(flat[3]))
    np.testing.assert_allclose(sites["p"], -1 + 4 / (1 + np.exp(-flat[2])))
    np.testing.assert_allclose(sites["shifted"], flat[4:] + sites["p"])
    np.testing.assert_allclose(sites["twice"], 2 * flat[1])
    assert sites["_nuisance"] == flat[0]
    assert set(readable) == {"mu", "sigma", "p", "twice", "x", "shifted"}


def test_start_is_the_same_for_the_same_key_and_near_the_prior(target):
    again = build_target(program, (Y, 1.5), KEY)
    np.testing.assert_array_equal(again.start, target.start)
    assert abs(target.start[1] - 0.5) < 3.0


def test_bounds_that_are_parameters_are_no_bounds():
    def ordered():
        low = numpyro.sample("low", dist.Normal(0.0, 1.0))
        numpyro.sample("high", dist.Uniform(low, low + 1.0))

    assert build_target(ordered, (), KEY).bounds["high"] == (-np.inf, np.inf)


def test_matrix_labels_follow_the_flat_order():
    def matrix():
        with numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 3, dim=-1):
            numpyro.sample("m", dist.Normal(0.0, 1.0))

    target = build_target(matrix, (), KEY)
    assert target.labels == ("m[0,0]", "m[0,1]", "m[0,2]", "m[1,0]", "m[1,1]", "m[1,2]")
    assert target.dims["m"] == ["row", "column"]
    np.testing.assert_array_equal(jax.jit(target.sites)(np.arange(6.0))["m"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "prior", [lambda: dist.Bernoulli(0.3), lambda: dist.Poisson(3.0), lambda: dist.Categorical(np.ones(3) / 3)]
)
def test_discrete_latent_is_refused_by_name(prior):
    def mixture():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("which", prior())

    with pytest.raises(ValueError, match=r"discrete latent site 'which': expected continuous latents only"):
        build_target(mixture, (), KEY)


def missing(y, known):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    with numpyro.plate("datum", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=known)


def test_what_obs_mask_does_not_need_has_a_proper_density():
    y, known = np.array([1.0, -2.0, 0.5]), np.array([True, False, True])
    with jax.enable_x64(True):
        target = build_target(missing, (y, known), KEY)
        point = np.array([0.3, 0.1, 0.2, -0.7])
        assert target.labels == ("mu", "y_unobserved[0]", "y_unobserved[1]", "y_unobserved[2]")
        density = -float(target.potential(point))
    # As if all three were missing, and two more known: their density integrates to 1.
    expected = stats.norm(0, 3).logpdf(0.3) + stats.norm(0.3).logpdf([0.1, 0.2, -0.7, 1.0, 0.5]).sum()
    assert density == pytest.approx(expected, rel=1e-12)


@pytest.mark.long
def test_programs_with_flat_auxiliary_sites_are_usable(monte_carlo):
    y, known = np.arange(20) / 10.0, np.arange(20) % 2 == 0
    fit = hbm.sample(missing, y, known, seed=seed(7), progress=False)
    assert fit.verdict.usable, fit.verdict
    precision = 1 / 9 + 10
    monte_carlo.mean(fit.posterior["mu"], y[known].sum() / precision, name="mu")
    monte_carlo.std(fit.posterior["mu"], precision**-0.5, name="mu")

    def angles(seen):
        with numpyro.handlers.reparam(config={"angle": CircularReparam()}):
            angle = numpyro.sample("angle", dist.VonMises(0.0, 1.0))
        numpyro.sample("seen", dist.VonMises(angle, 2.0), obs=seen)

    for seen in (np.array([0.5, 1.5]), np.array([3.0, -3.0, 2.9])):
        fit = hbm.sample(angles, seen, seed=seed(8), progress=False)
        assert fit.verdict.usable, fit.verdict
        resultant = 1.0 + 2.0 * np.exp(1j * seen).sum()
        length = i1e(abs(resultant)) / i0e(abs(resultant))
        turned = fit.posterior["angle"].to_numpy() - np.angle(resultant)
        monte_carlo.mean(np.cos(turned), length, name="cosine")
        monte_carlo.mean(np.sin(turned), 0.0, name="sine")


def test_nothing_to_sample_is_refused():
    with pytest.raises(ValueError, match="nothing to sample: expected at least one latent site, found none"):
        build_target(lambda y: numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y), (1.0,), KEY)


# Mode and curvature

MIX = np.random.default_rng(8).normal(size=(4, 4))
COVARIANCE = MIX @ MIX.T + 0.1 * np.eye(4)
PRECISION = np.linalg.inv(COVARIANCE)
CENTRE = np.array([1.0, -2.0, 30.0, 0.0])


def gaussian(x):
    return 0.5 * (x - CENTRE) @ PRECISION @ (x - CENTRE)


def rosenbrock(x):
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2 + 100.0 * (x[3] - x[2] ** 2) ** 2 + (1.0 - x[2]) ** 2


def curved(x):
    return jnp.sum(jnp.exp(0.3 * x)) + x[0] ** 2 * x[1] + jnp.cos(x[2] * x[3])


def bare_target(potential, size=4):
    """Of a potential without a program; of four parameters, so that a step of L-BFGS is compiled once."""
    return Target(potential, lambda flat: {"x": flat}, np.zeros(size), ("x",) * size, {"x": []}, {})


@pytest.mark.parametrize(
    ("function", "begin", "mode"),
    [(gaussian, np.zeros(4), CENTRE), (rosenbrock, np.array([-1.2, 1.0, 1.5, 0.0]), np.ones(4))],
)
def test_minimise(function, begin, mode):
    point, value, norm = minimise(jax.jit(jax.value_and_grad(function)), begin)
    np.testing.assert_allclose(value, function(point), rtol=1e-12, atol=1e-15)
    assert norm < GRADIENT_TOLERANCE
    np.testing.assert_allclose(point, mode, atol=5e-3)


def test_minimise_keeps_out_of_where_the_density_is_not_finite():
    # Minus the log density of Exponential(1) in x itself: NaN below zero, least at its edge.
    point, _, norm = minimise(jax.jit(jax.value_and_grad(lambda x: jnp.sum(x - 0.01 * jnp.log(x)))), np.full(4, 5.0))
    np.testing.assert_allclose(point, 0.01, rtol=0.01)
    assert norm < GRADIENT_TOLERANCE


def test_hessian():
    point = np.array([0.5, -1.0, 2.0, 300.0])
    found = hessian_at(lambda x: (gaussian(x), PRECISION @ (x - CENTRE)), point)
    np.testing.assert_allclose(found, PRECISION, rtol=1e-7, atol=1e-9)
    point = np.array([0.5, -1.0, 0.4, 0.8])
    found = hessian_at(jax.jit(jax.value_and_grad(curved)), point)
    np.testing.assert_allclose(found, jax.jit(jax.hessian(curved))(point), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found, found.T)


def test_start_by_the_laplace_approximation(monte_carlo):
    start = choose_start(bare_target(gaussian), 200, KEY)
    assert start.informed
    assert start.metric.dense
    assert "Laplace" in start.note
    covariance = start.metric.inverse_mass * np.outer(start.metric.scale, start.metric.scale)
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=1e-5, atol=1e-6)
    assert (np.abs(np.log2(np.diag(start.metric.inverse_mass))) <= 1.0).all()  # about 1 in the sampler's variables
    # Drawn from the approximation: squared distances from the mode follow chi squared of four degrees.
    distances = np.einsum("ij,jk,ik->i", start.points - CENTRE, PRECISION, start.points - CENTRE)
    monte_carlo.distribution(distances, stats.chi2(4).cdf, name="squared distances")
    assert start.caution == ""


@pytest.mark.parametrize(
    "potential",
    [lambda x: 0.0 * jnp.sum(x), lambda x: jnp.sum(jnp.cosh(x[:1])), lambda x: -jnp.sum(jnp.tanh(x) ** 2)],
    ids=["flat", "one-flat-direction", "maximum"],
)
def test_start_falls_back_without_a_mode(potential):
    start = choose_start(bare_target(potential), 4, KEY)
    assert not start.informed
    assert "jittered median" in start.note
    np.testing.assert_array_equal(start.metric.inverse_mass, np.eye(4))
    assert np.abs(start.points).max() <= 0.5
    assert len(np.unique(start.points, axis=0)) == 4


def two_peaks(x):
    """Normals of one width at -20 and 20, the second with a third of the weight."""
    return -jnp.logaddexp(-0.5 * jnp.sum((x + 20.0) ** 2), jnp.log(0.5) - 0.5 * jnp.sum((x - 20.0) ** 2))


@pytest.mark.parametrize("curvature", [1e-12, -1e-12])
def test_a_density_that_grows_without_end_has_no_mode(curvature):
    # As that of a line through its points exactly, where the scatter goes to 0: rounding gives any curvature.
    def endless(x):
        return 5.0 * x[0] + 0.5 * curvature * x[0] ** 2 + 0.5 * jnp.sum(x[1:] ** 2)

    start = choose_start(bare_target(endless), 4, KEY)
    assert not start.informed
    assert start.note.startswith("jittered median of the prior")
    assert (np.abs(start.points) < 1).all()


def test_a_hierarchy_without_a_joint_mode_starts_in_its_bulk():
    # Five effects seen with errors of 1, a half-normal scatter: the density is infinite where all effects are equal.
    seen = np.array([-1.5, -0.4, 0.2, 0.9, 1.8])

    def potential(x):
        mean, log_scatter, effects = x[0], x[1], x[2:]
        squares = (effects - mean) ** 2 / jnp.exp(2 * log_scatter)
        of_scatter = 0.5 * jnp.exp(2 * log_scatter) - log_scatter
        return 0.5 * jnp.sum((seen - effects) ** 2 + squares) + 5 * log_scatter + of_scatter + 0.5 * mean**2 / 9

    start = choose_start(replace(bare_target(potential, 7), start=np.full(7, -20.0)), 100, KEY)
    assert start.informed
    assert start.note.startswith("mean-field normal approximation")
    assert np.abs(np.mean(start.points[:, 2:], axis=0)).max() < 1.5
    assert -3 < np.mean(start.points[:, 1]) < 1


def test_chains_are_shared_out_over_modes():
    draws = np.random.default_rng(seed(1)).choice([-1.0, 1.0], (15, 1)) * np.arange(1.0, 16.0)[:, None] * np.ones(4)
    start = choose_start(replace(bare_target(two_peaks), prior_draws=draws), 4, KEY)
    assert "2 modes were found" in start.note
    assert "searches before sampling found 2 separate modes, 2 with significant evidence" in start.caution
    assert sorted(np.sign(start.points[:, 0])) == [-1, -1, 1, 1]
    np.testing.assert_allclose(np.abs(start.points), 20.0, atol=6.0)


def test_a_mode_without_weight_is_discarded_and_said():
    def potential(x):
        return -jnp.logaddexp(-0.5 * jnp.sum((x + 20.0) ** 2), -30.0 - 0.5 * jnp.sum((x - 20.0) ** 2))

    draws = np.array([[22.0, 19.0, 20.0, 20.0], [-25.0, -3.0, -20.0, -20.0]])
    start = choose_start(replace(bare_target(potential), prior_draws=draws, start=np.full(4, 9.0)), 4, KEY)
    assert "1 of 3 searches ended at no mode of significant evidence" in start.note
    assert "found 2 separate modes, 1 with significant evidence" in start.caution
    np.testing.assert_allclose(start.points, -20.0, atol=6.0)


# More parameters than a dense metric is for


def funnel(x):
    """Neal 2003 in the form everyone fears, with a datum of 3 or -3 each: a joint mode does not exist."""
    y = 3.0 * (-1.0) ** jnp.arange(len(x) - 1)
    return 0.5 * (x[0] / 3) ** 2 + jnp.sum(0.5 * x[1:] ** 2 * jnp.exp(-x[0]) + 0.5 * x[0] + 0.5 * (x[1:] - y) ** 2)


def test_many_parameters_start_from_a_normal_approximation(monkeypatch, monte_carlo):
    monkeypatch.setattr(start_module, "MAX_DENSE", 3)
    width = np.array([0.01, 1.0, 5.0, 300.0])
    target = bare_target(lambda x: 0.5 * jnp.sum(((x - CENTRE) / width) ** 2))
    start = choose_start(target, 400, KEY)
    assert start.informed
    assert start.metric.kind == "diagonal"
    assert start.note.startswith("mean-field normal approximation, diagonal metric (curvatures differ by a factor of 1")
    np.testing.assert_allclose(start.metric.scale * np.sqrt(start.metric.inverse_mass), width, rtol=0.02)
    monte_carlo.distribution((start.points - CENTRE) / width, stats.norm.cdf, name="scaled points")


def test_a_funnel_has_a_normal_approximation_where_it_has_no_mode(monkeypatch):
    monkeypatch.setattr(start_module, "MAX_DENSE", 3)
    start = choose_start(bare_target(funnel, 60), 20, KEY)
    assert start.informed
    # The data have a variance of 9, one of it noise, so x[0] is log 8 within 0.3; the mouth is at minus infinity.
    np.testing.assert_allclose(start.points[:, 0], np.log(8.0), atol=1.0)


def spread_out(size, values, rng):
    """A Gaussian with a unit diagonal-scaled covariance but for a few long and short directions."""
    directions = np.linalg.qr(rng.normal(size=(size, len(values))))[0]
    scale = np.exp(rng.normal(size=size))
    precision = np.eye(size) + directions @ np.diag(np.asarray(values) - 1.0) @ directions.T
    return scale, precision / np.outer(scale, scale)


def test_a_low_rank_metric_whitens_what_a_diagonal_cannot():
    size, rng = 150, np.random.default_rng(seed(2))
    scale, precision = spread_out(size, [1e-3, 0.02, 50.0], rng)
    metric = scaled_metric(lambda x: precision @ x, rng.normal(size=(2, size)), scale, rng)
    assert metric.kind == "low-rank"
    assert metric.stretch.shape == (3,)
    columns = metric.to_position(np.eye(size))
    np.testing.assert_allclose(np.linalg.eigvalsh(columns @ precision @ columns.T), 1.0, rtol=0.05)
    u = rng.normal(size=(5, size))
    np.testing.assert_allclose(metric.from_position(metric.to_position(u)), u, rtol=1e-9, atol=1e-9)
    again = Metric.from_arrays(metric.to_arrays())
    np.testing.assert_array_equal(again.to_position(u), metric.to_position(u))
    assert again.why == metric.why


def test_a_diagonal_metric_where_nothing_stands_out():
    rng = np.random.default_rng(seed(3))
    scale, precision = spread_out(150, [0.6, 1.5], rng)
    metric = scaled_metric(lambda x: precision @ x, rng.normal(size=(2, 150)), scale, rng)
    assert metric.kind == "diagonal"
    np.testing.assert_array_equal(metric.inverse_mass * metric.scale**2, scale**2)
    assert "curvatures differ by a factor of 2.5" in metric.why


def test_a_curvature_that_cannot_be_measured_leaves_the_metric_diagonal():
    scale, rng = np.array([1.0, 2.0, 3.0]), np.random.default_rng(0)
    metric = scaled_metric(lambda x: x * np.nan, np.zeros((1, 3)), scale, rng)
    assert metric.kind == "diagonal"
    assert metric.why == "its curvature could not be measured"
    np.testing.assert_array_equal(metric.inverse_mass * metric.scale**2, scale**2)


@pytest.mark.parametrize(("size", "kind"), [(20, "dense"), (21, "rotated")])
def test_the_metric_of_a_mode_is_its_covariance(size, kind):
    rng = np.random.default_rng(4)
    vectors, stretch = np.linalg.qr(rng.normal(size=(size, size)))[0], rng.uniform(0.1, 10.0, size)
    covariance = (vectors * stretch**2) @ vectors.T
    metric = curvature_metric(vectors, stretch, np.ones(size))
    assert metric.kind == kind
    assert metric.dense == (kind == "dense")
    mass = metric.inverse_mass if metric.dense else np.diag(metric.inverse_mass)
    columns = metric.to_position(np.eye(size))
    np.testing.assert_allclose(columns.T @ mass @ columns, covariance, rtol=1e-9, atol=1e-9)
    u = rng.normal(size=(5, size))
    np.testing.assert_allclose(metric.from_position(metric.to_position(u)), u, rtol=1e-9, atol=1e-9)


def test_starting_points_are_where_the_density_is_finite():
    half = bare_target(lambda x: jnp.where(x[0] > 0.2, 0.0, jnp.nan) + 0.0 * x[1])
    start = choose_start(half, 4, KEY)
    assert start.points.shape == (4, 4)
    assert np.all(start.points[:, 0] > 0.2)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_no_finite_start_is_an_error(value):
    with pytest.raises(StartError, match=r"expected 4 with a finite log density .* among 80 .* found 0"):
        choose_start(bare_target(lambda x: value + 0.0 * jnp.sum(x)), 4, KEY)


def sinusoid(t, y):
    frequency = numpyro.sample("frequency", dist.Uniform(0.05, 5.0))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    phase = 2 * np.pi * frequency * t
    numpyro.sample("y", dist.Normal(a * jnp.sin(phase) + b * jnp.cos(phase), 0.3), obs=y)


@pytest.mark.long
def test_searches_that_disagree_go_on_and_are_told_in_the_verdict():
    rng = np.random.default_rng(0)
    t = np.sort(rng.uniform(0, 10, 25))
    y = np.sin(2 * np.pi * 1.37 * t) + rng.normal(0, 0.3, 25)
    options = {"num_warmup": 20, "num_samples": 20, "sampler": hbm.HMC(trajectory_length=1.5), "progress": False}
    fit = hbm.sample(sinusoid, t, y, seed=seed(4), **options)
    assert any("separate modes" in note and "R-hat cannot detect a mode" in note for note in fit.verdict.notes)
    assert "separate modes" in str(fit.verdict)


def narrow_peak(y):
    x = numpyro.sample("x", dist.Uniform(-50.0, 50.0))
    numpyro.factor("peaks", jnp.logaddexp(-0.5 * (x - y) ** 2, 9.0 - 0.5 * ((x - 30.0) / 1e-3) ** 2))


def test_a_better_starting_point_of_the_program_is_used_or_told_in_the_verdict():
    """As of the energy of a line: one that the program proposes, before the searches or only after them."""
    target, proposed = build_target(narrow_peak, (0.5,), KEY), []

    def told(also_before):
        def further_starts(values, refit):
            proposed.append(values)
            return [{"x": np.array(30.0)}] if also_before or len(proposed) > 1 else []

        proposed.clear()
        return choose_start(replace(target, further_starts=further_starts), 2, KEY)

    start = told(also_before=False)
    assert proposed[1]["x"] == pytest.approx(0.5, abs=1e-3)
    log_ratio = 9.0 + np.log(0.8 * 0.2) - np.log(0.505 * 0.495)
    expected = f"at other values of x the log density is higher by {log_ratio:.1f} than at the starting points"
    assert start.caution == expected
    used = told(also_before=True)
    assert "found 2 separate modes" in used.caution
    assert "is higher" not in used.caution


def prior_only(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_whether_a_program_has_observations_is_known():
    # The verdict on a program without any, `tiny`, is asked for in `test_loop`.
    assert not build_target(prior_only, (), KEY).observed
    assert build_target(prior_only, (1.0,), KEY).observed


def test_many_components_that_are_about_standard_start_where_their_sites_say():
    """Beyond the dense metric: one search for the mode, and scales for the other components only."""
    num = 150
    rng = np.random.default_rng(1)
    y = 3.0 + 0.01 * rng.normal(size=num) + 0.5 * rng.normal(size=num)

    def program():
        mean = numpyro.sample("mean", dist.Normal(0.0, 100.0))
        with numpyro.plate("group", num):
            x = numpyro.sample("_x", dist.Normal(0.0, 1.0), infer={"start": 0.25})
            numpyro.sample("y", dist.Normal(mean + 0.01 * x, 0.5), obs=y)

    target = build_target(program, (), jax.random.key(0))
    free = [label.startswith("_x") for label in target.labels]
    np.testing.assert_array_equal(target.standard, free)
    np.testing.assert_array_equal(target.start[target.standard], 0.25)
    assert (target.prior_draws[:, target.standard] == 0.25).all()
    start = choose_start(target, 4, jax.random.key(1))
    assert start.note.startswith("around the mode")
    mean = start.points[:, ~target.standard]
    assert (abs(mean - y.mean()) < 6 * 0.5 / np.sqrt(num)).all()
    scale = start.metric.scale * (np.sqrt(start.metric.inverse_mass) if start.metric.kind == "diagonal" else 1.0)
    assert scale[~target.standard] == pytest.approx(0.5 / np.sqrt(num), rel=0.05)


@pytest.mark.parametrize(
    "kind", ["rotated", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("dense", "diagonal", "low-rank"))]
)
def test_chains_draw_from_the_density_whatever_the_variables_of_the_sampler(kind, monte_carlo):
    rng = np.random.default_rng(seed(1))
    directions = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    size = {"rotated": 4, "low-rank": 2}.get(kind, 0)
    inverse_mass = np.diag([1.0, 0.5, 2.0, 3.0]) if kind == "dense" else np.array([1.0, 0.5, 2.0, 3.0])
    metric = Metric(kind, inverse_mass, "", rng.uniform(0.5, 2.0, 4), directions[:, :size], rng.uniform(0.3, 3.0, size))
    start = Start(CENTRE + rng.normal(size=(4, 4)), metric, True, "")
    chains = Chains(
        bare_target(gaussian), start, 300, HMC(target_accept_prob=0.8, max_tree_depth=5, trajectory_length=3.0), KEY
    )
    # They begin with what the program of the searches found in the model's own variables, the gradient transformed.
    np.testing.assert_allclose(metric.to_position(np.asarray(chains.state.z)), start.points, rtol=1e-12, atol=1e-12)
    values = [gaussian(point) for point in start.points]
    np.testing.assert_allclose(chains.state.potential_energy, values, rtol=1e-12)
    slopes = (start.points - CENTRE) @ PRECISION @ metric.to_position(np.eye(4)).T
    np.testing.assert_allclose(chains.state.z_grad, slopes, rtol=1e-9, atol=1e-9)
    chains.advance(300)
    block = chains.advance(700)
    away = block.position - CENTRE
    energy = 0.5 * np.einsum("cdi,ij,cdj->cd", away, PRECISION, away)
    np.testing.assert_allclose(block.potential_energy, energy, rtol=1e-9, atol=1e-9)
    for i in range(4):
        monte_carlo.mean(away[..., i], 0.0, name=f"mean {i}")
        monte_carlo.std(away[..., i], np.sqrt(COVARIANCE[i, i]), name=f"standard deviation {i}")


def test_a_state_of_other_chains_is_refused():
    chains = SimpleNamespace(state={"a": np.zeros(3), "b": np.zeros(2, int)})
    with pytest.raises(ValueError, match=r"does not fit: expected \['b'\] of int64\[2\], found float64\[2\]\. It was"):
        Chains.restore(chains, {"['a']": np.zeros(3), "['b']": np.zeros(2)})
    with pytest.raises(ValueError, match=r"does not fit: expected \['a'\] of float64\[3\], found none\."):
        Chains.restore(chains, {"['b']": np.zeros(2, int)})
