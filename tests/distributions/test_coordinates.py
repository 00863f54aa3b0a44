"""`CoordinatePriors` and `SoftClip`: whatever the coordinates, the parameters have the priors that were stated."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import hbm_jax
from hbm_jax.distributions import CoordinatePriors, LogOrLinear, SoftClip
from hbm_jax.models import background, supernova_ridge

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
    free = {p: background.DEFAULT_PRIORS[p] for p in background.FREE[name]}
    return CoordinatePriors(free, *supernova_ridge.supernova_ridge(free, {}))


WARPED = CoordinatePriors(
    {"first": dist.Normal(0.0, 1.0), "second": dist.Normal(-7.0, 1.0)},
    {"second": lambda p: (jnp.sin(3.0 * p["first"]) - 7.0, 1.0)},
    warps={"second": LogOrLinear.of(0.3, 0.7).inv},
)
BLOCKS = {"plain": PLAIN, "ridged": RIDGED, "warped": WARPED} | {name: of_model(name) for name in background.FREE}


@pytest.fixture(scope="module", params=BLOCKS)
def block(request):
    return BLOCKS[request.param]


def draw_coordinates(block, num=40, spread=2.0):
    return np.random.default_rng(2).normal(scale=spread, size=(num, len(block.priors)))


def test_density_is_the_stated_priors_times_the_jacobian_of_the_parameters(block):
    y = draw_coordinates(block)

    def vector(y):
        return jnp.stack(list(block.parameters(y).values()))

    jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(vector)))(y))
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0.0, "a parameter depends on those before it only")
    log_jacobian = np.linalg.slogdet(jacobian)[1]

    @jax.jit
    def densities(y):
        parameters = block.parameters(y)
        return block.log_prob(y), sum(prior.log_prob(parameters[name]) for name, prior in block.priors.items())

    density, stated = densities(y)
    # Some forty hinges beyond a bound a parameter rounds to the bound, and its prior may exclude that.
    inside = np.isfinite(stated) & np.isfinite(log_jacobian)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(density[inside], (stated + log_jacobian)[inside], rtol=1e-9, atol=1e-9)


def test_stated_priors_are_scipys():
    parameters = PLAIN.parameters(draw_coordinates(PLAIN))
    for name, (prior, reference) in PRIORS.items():
        np.testing.assert_allclose(prior.log_prob(parameters[name]), reference.logpdf(parameters[name]), rtol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("ridge", [None, 0.4])
def test_density_over_one_coordinate_integrates_to_one(name, ridge):
    block = CoordinatePriors({name: PRIORS[name][0]}, None if ridge is None else {name: lambda _: (ridge, 1.7)})
    y = np.linspace(-40, 40, 80_001)[:, None]
    total = np.sum(np.exp(jax.jit(block.log_prob)(y))) * (y[1, 0] - y[0, 0])
    np.testing.assert_allclose(total, 1.0, rtol=2e-7)  # NumPyro normalises truncated priors to some 1e-8


def test_density_over_two_coordinates_integrates_to_the_stated_marginals():
    # (Om0, w0) of the supernova model; the first coordinate is straight in (1 - 0.9 Om0)^(-1.8), between 1 and 63.1.
    # The second is scanned evenly in w0 before it is bent to its bounds: the ridge is up to 90 times as wide as at 0.
    block = of_model("wcdm")
    first, second = np.meshgrid(np.arange(-8.0, 73.0, 0.04), np.arange(-9.0, 6.0, 0.02), indexing="ij")
    om = block.parameters(np.stack([first, 0.0 * first], axis=-1))["Om0"]
    loc, scale = supernova_ridge._w0_ridge({"Om0": om})
    y = np.stack([first, (second - loc) / scale], axis=-1)
    density = np.exp(jax.jit(block.log_prob)(y)) * 0.04 * 0.02 / np.asarray(scale)
    np.testing.assert_allclose(density.sum(), 1.0, rtol=1e-9)
    parameters = block.parameters(y)
    om, w0 = np.asarray(parameters["Om0"]), np.asarray(parameters["w0"])
    # Moments of Uniform(0, 1) and Uniform(-3, 0), and their independence.
    for found, expected in [(om, 1 / 2), (om**2, 1 / 3), (w0, -3 / 2), (w0**2, 3.0), (om * w0, -3 / 4)]:
        np.testing.assert_allclose((density * found).sum(), expected, rtol=1e-9)


def test_coordinates_come_back(block):
    @jax.jit
    def back_and_forth(y):
        parameters = block.parameters(y)
        return block.coordinates(parameters), parameters

    for spread, tolerance in [(0.5, 1e-11), (3.0, 1e-6)]:
        y = np.clip(draw_coordinates(block, spread=spread), -4.0, None)
        names = [n for n in block.ridges if np.isfinite(getattr(block.priors[n].support, "upper_bound", np.inf))]
        found, parameters = back_and_forth(y)
        # Far beyond an upper bound a number just below it no longer says how far.
        reached = np.stack([parameters[name] for name in block.priors], axis=-1)
        upper = [float(getattr(p.support, "upper_bound", np.inf)) for p in block.priors.values()]
        lower = [float(getattr(p.support, "lower_bound", -np.inf)) for p in block.priors.values()]
        told = (np.asarray(upper) - reached > 1e-7) & (reached - np.asarray(lower) > 1e-7)
        assert told.mean() > (0.5 if names else 0.9)
        np.testing.assert_allclose(np.where(told, found, 0.0), np.where(told, y, 0.0), rtol=tolerance, atol=tolerance)


def test_parameters_come_back_from_far_in_the_tails(block):
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
    again = jax.jit(lambda p: block.parameters(block.coordinates(p)))(parameters)
    for name, value in parameters.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-9, atol=1e-15, err_msg=name)


def test_draws_have_the_stated_priors():
    for block in (PLAIN, RIDGED):
        draws = jax.jit(lambda key, b=block: b.parameters(b.sample(key, (4000,))))(jax.random.key(6))
        for name, (_, reference) in PRIORS.items():
            assert stats.kstest(np.asarray(draws[name]), reference.cdf).pvalue > 1e-3, name


def test_sampling_the_coordinates_of_the_supernova_model_gives_the_stated_priors():
    # Under the prior alone the coordinate of Om0 has a tail too heavy for any sampler, (1 - Om0)^(-3/2) with Om0 up to
    # 1. A known factor in Om0 takes it away: a Uniform(0, 1) prior times Beta(2, 6) is Beta(2, 6), and w0 is untouched.
    def program():
        cosmology = background.sample_cosmology("wcdm", background.default_priors("wcdm"))
        numpyro.factor("known", dist.Beta(2.0, 6.0).log_prob(cosmology.Om0))

    fit = hbm_jax.sample(program, seed=4, num_chains=2, num_warmup=400, num_samples=4000, progress=False)
    for name, reference in [("Om0", stats.beta(2, 6)), ("w0", stats.uniform(-3, 3))]:
        ess = fit.verdict.table.loc[name, ["ess_bulk", "ess_tail"]].min()
        assert ess > 400
        draws = fit.posterior[name].to_numpy().ravel()
        for quantile in (0.05, 0.16, 0.5, 0.84, 0.95):
            below = np.mean(draws < reference.ppf(quantile))
            assert abs(below - quantile) < 4 * np.sqrt(quantile * (1 - quantile) / ess), (name, quantile)
        thinned = draws[:: int(np.ceil(len(draws) / ess))]
        assert stats.kstest(thinned, reference.cdf).pvalue > 1e-3, name


def test_a_number_in_a_fixed_place_changes_nothing_else():
    # w0's ridge is worked out with a fixed Ode0 too; the density of the free ones stays theirs.
    free = {name: background.DEFAULT_PRIORS[name] for name in ("Om0", "w0")}
    block = CoordinatePriors(free, *supernova_ridge.supernova_ridge(free, {"Ode0": 0.7}))
    parameters = {"Om0": 0.3, "w0": -0.9}
    y = block.coordinates(parameters)
    for name, value in parameters.items():
        np.testing.assert_allclose(block.parameters(y)[name], value, rtol=1e-12)


CLIPS = {
    "interval": SoftClip(-3.0, 0.7, 0.15),
    "narrow": SoftClip(0.1, 0.7, 0.03),
    "above": SoftClip(0.5, np.inf, 0.05),
    "below": SoftClip(-np.inf, 0.5, 0.05),
    "line": SoftClip(-np.inf, np.inf, 0.05),
}


@pytest.mark.parametrize("name", CLIPS)
def test_soft_clip_agrees_with_its_formula_and_slope(name):
    clip = CLIPS[name]
    y = np.concatenate([np.linspace(-6, 6, 25), [-40.0, 40.0]])

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
        x, slope = np.array([exact(v) for v in y]).T
    np.testing.assert_allclose(clip(y), x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(clip.log_abs_det_jacobian(y, clip(y)) + 0.0 * y, slope, rtol=1e-11, atol=1e-11)
    reached = np.exp(slope) > 1e-5
    derivative = jax.jit(jax.vmap(jax.grad(clip)))(y)
    np.testing.assert_allclose(derivative, np.exp(slope), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(clip.inv(clip(y))[reached], y[reached], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLIPS)
def test_soft_clip_stays_in_bounds_and_finite_however_far(name):
    clip = CLIPS[name]
    far = np.array([3.0, 8.0, 50.0, 12_345.678, 1e6, 1e17, 1e200])
    y = np.concatenate([-far, [0.0], far])
    x = np.asarray(clip(y))
    assert np.all(x >= clip.low)
    assert np.all(x <= clip.high)
    assert np.all(np.diff(x[np.argsort(y)]) >= 0)
    for value in (jax.vmap(jax.grad(clip))(y), clip.log_abs_det_jacobian(y, x)):
        assert np.isfinite(value).all()
    # A prior that checks its support then has a finite density there too.
    support = dist.constraints.interval(clip.low, clip.high)
    assert np.all(support(x)) or np.isinf([clip.low, clip.high]).any()


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
