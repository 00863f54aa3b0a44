"""`CoordinatePriors` and `SoftClip`: whatever the coordinates, the parameters have the priors that were stated."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from monte_carlo import seed
from scipy import stats

import hbm_jax
from hbm_jax.distributions import CoordinatePriors, LogOrLinear, SoftClip
from hbm_jax.models import expansion
from hbm_jax.models.supernovae import degeneracy

LOWEST, HIGHEST = 0.05, 5.0

# The stated priors, and the same in SciPy.
PRIORS = {
    "uniform": (dist.Uniform(-3.0, 0.5), stats.uniform(-3.0, 3.5)),
    "normal": (dist.Normal(0.2, 0.7), stats.norm(0.2, 0.7)),
    "half_normal": (dist.HalfNormal(0.3), stats.halfnorm(0, 0.3)),
    "log_uniform": (dist.LogUniform(LOWEST, HIGHEST), stats.loguniform(LOWEST, HIGHEST)),
    "truncated": (dist.TruncatedNormal(0.3, 0.4, low=0.0), stats.truncnorm(-0.75, np.inf, 0.3, 0.4)),
    "truncated above": (dist.TruncatedNormal(0.3, 0.4, high=0.5), stats.truncnorm(-np.inf, 0.5, 0.3, 0.4)),
    "truncated twice": (dist.TruncatedNormal(0.3, 0.4, low=0.0, high=1.0), stats.truncnorm(-0.75, 1.75, 0.3, 0.4)),
}
PLAIN = CoordinatePriors({name: prior for name, (prior, _) in PRIORS.items()})
# Every prior behind a ridge that depends on the ones before it, and leaves the support.
RIDGED = CoordinatePriors(
    {"first": dist.Normal(0.0, 1.0)} | PLAIN.priors,
    {
        name: lambda p, i=i: (jnp.sin(3.0 * p["first"]) + 0.3 * i * p["first"] ** 2, 1.0 + 0.1 * i * p["first"] ** 2)
        for i, name in enumerate(PRIORS)
    },
)


def of_model(name):
    """The coordinates that `Supernova` uses."""
    free = {p: expansion.DEFAULT_PRIORS[p] for p in expansion.FREE[name]}
    return CoordinatePriors(free, *degeneracy.supernova_degeneracy(free, {}))


WARPED = CoordinatePriors(
    {"first": dist.Normal(0.0, 1.0), "second": dist.Normal(-7.0, 1.0)},
    {"second": lambda p: (jnp.sin(3.0 * p["first"]) - 7.0, 1.0)},
    transforms={"second": LogOrLinear.of(0.3, 0.7).inv},
)
BLOCKS = {"plain": PLAIN, "ridged": RIDGED, "warped": WARPED} | {name: of_model(name) for name in expansion.FREE}


@pytest.fixture(scope="module", params=BLOCKS)
def block(request):
    return request.param


def draw_coordinates(block, num=40, spread=2.0):
    return np.random.default_rng(2).normal(scale=spread, size=(num, len(block.priors)))


SPREADS = (2.0, 0.5, 3.0)
COORDINATES = {
    name: np.concatenate(
        [draw_coordinates(block), *(np.clip(draw_coordinates(block, spread=s), -4.0, None) for s in SPREADS[1:])]
    )
    for name, block in BLOCKS.items()
}


def far_parameters(block):
    """Parameters far in the tails of the priors, up to 1e-12 of the range from a bound."""
    share = np.array([1e-12, 1e-6, 0.5, 1 - 1e-6])
    parameters = {}
    for name, prior in block.priors.items():
        low, high = (float(getattr(prior.support, f"{end}_bound", np.nan)) for end in ("lower", "upper"))
        if np.isfinite(low) and np.isfinite(high):
            parameters[name] = low + share * (high - low)
        elif np.isfinite(high):
            parameters[name] = high - share
        else:
            parameters[name] = (low if np.isfinite(low) else 0.0) + share
    return parameters


@cache
def everything(name):
    """All that is compared of one block, in one compiled function."""
    block = BLOCKS[name]

    @jax.jit
    def found(y, far):
        parameters = block.parameters(y)
        each = {key: prior.log_prob(parameters[key]) for key, prior in block.priors.items()}
        return {
            "parameters": parameters,
            "jacobian": jax.vmap(jax.jacfwd(lambda y: jnp.stack(list(block.parameters(y).values()))))(y),
            "log_prob": block.log_prob(y),
            "stated": each,
            "back": block.coordinates(parameters),
            "far": block.parameters(block.coordinates(far)),
        }

    return jax.tree.map(np.asarray, found(COORDINATES[name], far_parameters(block)))


def test_density_is_the_stated_priors_times_the_jacobian_of_the_parameters(block):
    found = everything(block)
    jacobian = found["jacobian"]
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0.0, "a parameter depends on those before it only")
    with np.errstate(divide="ignore"):
        log_jacobian = np.linalg.slogdet(jacobian)[1]
    # Some forty hinges beyond a bound a parameter rounds to the bound, and its prior may exclude that.
    stated = sum(found["stated"].values())
    inside = np.isfinite(stated) & np.isfinite(log_jacobian)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(found["log_prob"][inside], (stated + log_jacobian)[inside], rtol=1e-9, atol=1e-9)


def test_stated_priors_are_scipys():
    found = everything("plain")
    for name, (_, reference) in PRIORS.items():
        expected = reference.logpdf(found["parameters"][name])
        np.testing.assert_allclose(found["stated"][name], expected, rtol=1e-6)


@cache
def one_dimensional():
    """Density over each prior's coordinate, without and with a ridge, and the step of the coordinate."""
    y = np.linspace(-40, 40, 40_001)[:, None]

    @jax.jit
    def densities(y):
        found = {}
        for name, (prior, _) in PRIORS.items():
            for ridge in (None, 0.4):
                ridges = None if ridge is None else {name: lambda _, ridge=ridge: (ridge, 1.7)}
                found[f"{name} {ridge}"] = jnp.exp(CoordinatePriors({name: prior}, ridges).log_prob(y))
        return found

    return {key: np.asarray(v) for key, v in densities(y).items()}, y[1, 0] - y[0, 0]


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("ridge", [None, 0.4])
def test_density_over_one_coordinate_integrates_to_one(name, ridge):
    densities, step = one_dimensional()
    total = np.sum(densities[f"{name} {ridge}"]) * step
    np.testing.assert_allclose(total, 1.0, rtol=2e-7)  # NumPyro normalises truncated priors to some 1e-8


def test_density_over_two_coordinates_integrates_to_the_stated_marginals():
    # (Om0, w0) of the supernova model; the first coordinate is straight in (1 - 0.9 Om0)^(-1.8), between 1 and 63.1.
    # The second is scanned evenly in w0 before it is bent to its bounds: the ridge is up to 90 times as wide as at 0.
    block = BLOCKS["wcdm"]
    first, second = np.meshgrid(np.arange(-8.0, 73.0, 0.04), np.arange(-9.0, 6.0, 0.02), indexing="ij")

    @jax.jit
    def on_grid(first, second):
        om = block.parameters(jnp.stack([first, 0.0 * first], axis=-1))["Om0"]
        loc, scale = degeneracy._w0_degeneracy({"Om0": om})
        y = jnp.stack([first, (second - loc) / scale], axis=-1)
        parameters = block.parameters(y)
        return jnp.exp(block.log_prob(y)) * 0.04 * 0.02 / scale, parameters["Om0"], parameters["w0"]

    density, om, w0 = map(np.asarray, on_grid(first, second))
    np.testing.assert_allclose(density.sum(), 1.0, rtol=1e-9)
    # Moments of Uniform(0, 1) and Uniform(-3, 0), and their independence.
    for found, expected in [(om, 1 / 2), (om**2, 1 / 3), (w0, -3 / 2), (w0**2, 3.0), (om * w0, -3 / 4)]:
        np.testing.assert_allclose((density * found).sum(), expected, rtol=1e-9)


def test_coordinates_come_back(block):
    found, priors, degeneracies = everything(block), BLOCKS[block].priors, BLOCKS[block].degeneracies
    names = [n for n in degeneracies if np.isfinite(getattr(priors[n].support, "upper_bound", np.inf))]
    upper = [float(getattr(p.support, "upper_bound", np.inf)) for p in priors.values()]
    lower = [float(getattr(p.support, "lower_bound", -np.inf)) for p in priors.values()]
    parameters = np.stack([found["parameters"][name] for name in priors], axis=-1)
    for part, tolerance in [(slice(40, 80), 1e-11), (slice(80, 120), 1e-6)]:
        y, reached = COORDINATES[block][part], parameters[part]
        # Far beyond an upper bound a number just below it no longer says how far.
        told = (np.asarray(upper) - reached > 1e-7) & (reached - np.asarray(lower) > 1e-7)
        assert told.mean() > (0.5 if names else 0.9)
        back = np.where(told, found["back"][part], 0.0)
        np.testing.assert_allclose(back, np.where(told, y, 0.0), rtol=tolerance, atol=tolerance)


def test_parameters_come_back_from_far_in_the_tails(block):
    again = everything(block)["far"]
    for name, value in far_parameters(BLOCKS[block]).items():
        np.testing.assert_allclose(again[name], value, rtol=1e-9, atol=1e-15, err_msg=name)


def test_draws_have_the_stated_priors(monte_carlo):
    @jax.jit
    def draws(number):
        return [b.parameters(b.sample(jax.random.key(number), (4000,))) for b in (PLAIN, RIDGED)]

    for block, drawn in zip(("plain", "ridged"), draws(seed(6)), strict=True):
        for name, (_, reference) in PRIORS.items():
            monte_carlo.distribution(drawn[name], reference.cdf, name=f"{name}, {block}")


@pytest.mark.long
def test_sampling_the_coordinates_of_the_supernova_model_gives_the_stated_priors(monte_carlo):
    # Under the prior alone the coordinate of Om0 has a tail too heavy for any sampler, (1 - Om0)^(-3/2) with Om0 up to
    # 1. A known factor in Om0 takes it away: a Uniform(0, 1) prior times Beta(2, 6) is Beta(2, 6), and w0 is untouched.
    def program():
        cosmology = expansion.sample_cosmology("wcdm", expansion.default_priors("wcdm"))
        numpyro.factor("known", dist.Beta(2.0, 6.0).log_prob(cosmology.Om0))

    fit = hbm_jax.sample(program, seed=seed(4), num_chains=2, num_warmup=400, num_samples=4000, progress=False)
    for name, reference in [("Om0", stats.beta(2, 6)), ("w0", stats.uniform(-3, 3))]:
        draws = fit.posterior[name].to_numpy()
        for quantile in (0.05, 0.16, 0.5, 0.84, 0.95):
            monte_carlo.share(draws < reference.ppf(quantile), quantile, name=f"{name} {quantile}")


def test_a_number_in_a_fixed_place_changes_nothing_else():
    # w0's ridge is worked out with a fixed Ode0 too; the density of the free ones stays theirs.
    free = {name: expansion.DEFAULT_PRIORS[name] for name in ("Om0", "w0")}
    block = CoordinatePriors(free, *degeneracy.supernova_degeneracy(free, {"Ode0": 0.7}))
    parameters = {"Om0": 0.3, "w0": -0.9}
    again = jax.jit(lambda p: block.parameters(block.coordinates(p)))(parameters)
    for name, value in parameters.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-12)


CLIPS = {
    "interval": SoftClip(-3.0, 0.7, 0.15),
    "narrow": SoftClip(0.1, 0.7, 0.03),
    "above": SoftClip(0.5, np.inf, 0.05),
    "below": SoftClip(-np.inf, 0.5, 0.05),
    "line": SoftClip(-np.inf, np.inf, 0.05),
}


FAR = np.array([3.0, 8.0, 50.0, 12_345.678, 1e6, 1e17, 1e200])
NEAR = np.concatenate([np.linspace(-6, 6, 25), [-40.0, 40.0]])


@cache
def of_clips():
    """Value, log slope, slope and inverse of every clip, near the bounds and far away."""

    @jax.jit
    def found(y):
        return {
            name: (
                clip(y),
                clip.log_abs_det_jacobian(y, clip(y)) + 0.0 * y,
                jax.vmap(jax.grad(clip))(y),
                clip.inv(clip(y)),
            )
            for name, clip in CLIPS.items()
        }

    return jax.tree.map(np.asarray, found(np.concatenate([NEAR, -FAR, [0.0], FAR])))


@pytest.mark.parametrize("name", CLIPS)
def test_soft_clip_agrees_with_its_formula_and_slope(name):
    clip, num = CLIPS[name], len(NEAR)

    def exact(v):
        """Value and log slope in arithmetic that loses nothing."""
        x, slope = mpmath.mpf(v), mpmath.mpf(1)
        if np.isfinite(clip.low):
            a = mpmath.exp((x - mpmath.mpf(clip.low)) / clip.hinge)
            x, slope = mpmath.mpf(clip.low) + clip.hinge * mpmath.log1p(a), a / (1 + a)
        if np.isfinite(clip.high):
            b = mpmath.exp((mpmath.mpf(v) - mpmath.mpf(clip.high)) / clip.hinge)
            x, slope = x - clip.hinge * mpmath.log1p(b), slope - b / (1 + b)
        return float(x), float(mpmath.log(slope))

    with mpmath.workdps(1300):
        x, log_slope = np.array([exact(v) for v in NEAR]).T
    value, found_log_slope, derivative, back = (part[:num] for part in of_clips()[name])
    np.testing.assert_allclose(value, x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found_log_slope, log_slope, rtol=1e-11, atol=1e-11)
    reached = np.exp(log_slope) > 1e-5
    np.testing.assert_allclose(derivative, np.exp(log_slope), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(back[reached], NEAR[reached], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLIPS)
def test_soft_clip_stays_in_bounds_and_finite_however_far(name):
    clip, num = CLIPS[name], len(NEAR)
    y = np.concatenate([-FAR, [0.0], FAR])
    x, log_slope, slope, _ = (part[num:] for part in of_clips()[name])
    # A prior that checks its support then has a finite density there too.
    assert np.all(x >= clip.low)
    assert np.all(x <= clip.high)
    assert np.all(np.diff(x[np.argsort(y)]) >= 0)
    assert np.isfinite(log_slope).all()
    np.testing.assert_allclose(slope, np.exp(log_slope), atol=1e-12)


def test_soft_clip_of_a_support():
    clip = SoftClip.onto(dist.Uniform(-1.0, 3.0).support)
    assert (clip.low, clip.high, clip.hinge) == (-1.0, 3.0, 0.2)
    clip = SoftClip.onto(dist.HalfNormal(1.0).support)
    assert (clip.low, clip.high, clip.hinge) == (0.0, np.inf, 0.05)
    clip = SoftClip.onto(dist.Normal(0.0, 1.0).support)
    assert (clip.low, clip.high) == (-np.inf, np.inf)
    assert clip(1.25) == clip.inv(1.25) == 1.25


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Normal(np.zeros(3), 1.0), r"found Normal with batch shape \(3,\) and event shape \(\)"),
        (dist.Dirichlet(np.ones(2)), r"found Dirichlet with batch shape \(\) and event shape \(2,\)"),
        (dist.Poisson(3.0), "found Poisson"),
    ],
)
def test_priors_over_anything_but_one_number_are_refused(prior, message):
    with pytest.raises(
        ValueError, match=f"The prior of alpha must be a continuous distribution of one number; {message}"
    ):
        CoordinatePriors({"beta": dist.Normal(0, 1), "alpha": prior})
