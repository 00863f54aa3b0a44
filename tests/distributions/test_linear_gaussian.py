"""`LinearGaussian`: sizes, conditionals and the edges of its domain, against dense formulae and 60-digit arithmetic.

Derivatives, draws and its behaviour as a distribution in general: `test_distribution_laws`.
"""

import jax
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from normal_oracles import log_normal
from numpyro import handlers
from scipy import stats

from hbm_jax.distributions import LinearGaussian
from hbm_jax.distributions.normal.linear_gaussian import MAX_UNROLLED

NAMES = ("latent_loc", "latent_scale_tril", "noise_covariance", "loading", "offset")
# (n, k): every n of the closed form and one beyond it; fewer, as many and more latents than data.
SIZES = [(1, 1), (2, 1), (3, 0), (3, 2), (3, 4), (4, 2), (5, 3), (6, 1), (8, 0), (8, 3)]
BEYOND = MAX_UNROLLED + 1


def draw_case(n, k, batch=(4,), own=NAMES, loading=True, seed=0):
    """Arguments of a LinearGaussian; those in ``own`` differ from object to object, the others are shared."""
    rng = np.random.default_rng([n, k, seed])

    def normal(name, *shape):
        return rng.normal(size=(batch if name in own else ()) + shape)

    root = normal("noise_covariance", n, n)
    scale = np.tril(normal("latent_scale_tril", k, k))
    arguments = {
        "latent_loc": normal("latent_loc", k),
        "latent_scale_tril": np.where(np.eye(k), np.abs(scale) + 0.1, scale),
        "noise_covariance": root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(n),
        "offset": normal("offset", n),
    }
    if loading:
        arguments["loading"] = normal("loading", n, k)
    return arguments, rng.normal(size=(*batch, n)), rng.normal(size=(*batch, k))


def build(arguments):
    return LinearGaussian(**arguments)


def each(arguments, shape):
    """The same arguments for every object, one dictionary each, complete."""
    n, k = np.shape(arguments["noise_covariance"])[-1], np.shape(arguments["latent_loc"])[-1]
    full = {"loading": np.eye(n, k), "offset": np.zeros(n)} | arguments
    rank = {"latent_loc": 1, "offset": 1, "latent_scale_tril": 2, "noise_covariance": 2, "loading": 2}
    full = {name: np.broadcast_to(v, shape + np.shape(v)[np.ndim(v) - rank[name] :]) for name, v in full.items()}
    return [{name: v[index] for name, v in full.items()} for index in np.ndindex(*shape)]


def textbook(one, value):
    """Marginal mean and covariance; conditional mean and covariance by the gain matrix; all dense."""
    a, s = one["loading"], one["latent_scale_tril"]
    prior = s @ s.T
    mean, covariance = one["offset"] + a @ one["latent_loc"], a @ prior @ a.T + one["noise_covariance"]
    gain = np.linalg.solve(covariance, a @ prior).T
    return mean, covariance, one["latent_loc"] + gain @ (value - mean), prior - gain @ a @ prior


def evaluate(arguments, value):
    """All that is compared."""
    d = build(arguments)
    found = {"log_prob": d.log_prob(value), "mean": d.mean, "variance": d.variance}
    if d.latent_loc.shape[-1]:
        conditional = d.conditional(value)
        found |= {"conditional_mean": conditional.loc, "conditional_tril": conditional.scale_tril}
    return found


everything = jax.jit(evaluate)


def compare(found, arguments, value, latents):
    found = {name: np.asarray(v) for name, v in found.items()}
    shape = value.shape[:-1]
    assert found["log_prob"].shape == shape
    for one, i in zip(each(arguments, shape), np.ndindex(*shape), strict=True):
        mean, covariance, conditional_mean, conditional_covariance = textbook(one, value[i])
        log_prob = log_normal(value[i], mean, covariance)
        np.testing.assert_allclose(found["log_prob"][i], log_prob, rtol=1e-12)
        np.testing.assert_allclose(found["mean"][i], mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found["variance"][i], np.diag(covariance), rtol=1e-12)
        if "conditional_mean" not in found:
            continue
        tril = found["conditional_tril"][i]
        np.testing.assert_array_equal(np.triu(tril, 1), 0.0)
        np.testing.assert_allclose(found["conditional_mean"][i], conditional_mean, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(tril @ tril.T, conditional_covariance, rtol=1e-10, atol=1e-11)
        # Bayes' identity, at latents of no particular kind.
        x, s = latents[i], one["latent_scale_tril"]
        joint = log_normal(x, one["latent_loc"], s @ s.T)
        joint += log_normal(value[i], one["offset"] + one["loading"] @ x, one["noise_covariance"])
        posterior = log_normal(x, found["conditional_mean"][i], tril @ tril.T)
        np.testing.assert_allclose(joint - posterior, found["log_prob"][i], rtol=1e-9)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_density_and_conditional_agree_with_dense_formulae(n, k):
    arguments, value, latents = draw_case(n, k)
    compare(everything(arguments, value), arguments, value, latents)


@pytest.mark.parametrize("n", [3, BEYOND])
def test_without_loading_the_latents_are_the_data_less_noise(n):
    arguments, value, latents = draw_case(n, n, loading=False)
    without = {name: v for name, v in arguments.items() if name != "offset"}
    found = jax.jit(lambda *cases: [evaluate(case, value) for case in cases])(arguments, without)
    for one, case in zip(found, (arguments, without), strict=True):
        compare(one, case, value, latents)


def shape_of(arguments):
    """Batch and event shape, without computing anything."""
    found = []
    jax.eval_shape(lambda arguments: found.append(build(arguments)), arguments)
    return found[0].batch_shape, found[0].event_shape


# Arguments that differ from object to object, the others shared by all.
BROADCAST = [*((2, (name,)) for name in NAMES), (2, ()), (BEYOND, ("latent_loc",)), (BEYOND, ("loading",))]
BROADCAST_CASES = [draw_case(n, 2, batch=(2, 3), own=own) for n, own in BROADCAST]


@jax.jit
def of_all(cases):
    return [evaluate(arguments, value) for arguments, value, _ in cases]


@pytest.mark.parametrize("place", range(len(BROADCAST)), ids=lambda place: f"{BROADCAST[place]}")
def test_every_argument_broadcasts(place):
    """With the value of all objects; the batch shape is that of the arguments."""
    arguments, value, latents = BROADCAST_CASES[place]
    found = of_all(BROADCAST_CASES)[place]
    n, own = BROADCAST[place]
    batch = (2, 3) if own else ()
    assert shape_of(arguments) == (batch, (n,))
    assert found["mean"].shape == found["variance"].shape == (*batch, n)
    if not own:
        found = found | {name: np.broadcast_to(found[name], (2, 3, n)) for name in ("mean", "variance")}
    compare(found, arguments, value, latents)


def test_batch_dimensions_of_different_arguments_combine_and_value_may_have_more():
    arguments, _, _ = draw_case(3, 2, batch=())
    arguments["offset"] = np.arange(6.0).reshape(2, 1, 3)
    arguments["latent_loc"] = np.arange(10.0).reshape(5, 2)
    assert shape_of(arguments) == ((2, 5), (3,))
    value = np.random.default_rng(0).normal(size=(4, 2, 5, 3))
    found = {name: np.asarray(v) for name, v in everything(arguments, value).items()}
    assert found["log_prob"].shape == (4, 2, 5)
    one = dict(arguments, offset=arguments["offset"][1, 0], latent_loc=arguments["latent_loc"][3])
    mean, covariance, conditional_mean, _ = textbook(one, value[2, 1, 3])
    np.testing.assert_allclose(found["log_prob"][2, 1, 3], log_normal(value[2, 1, 3], mean, covariance), rtol=1e-12)
    assert found["conditional_mean"].shape == (4, 2, 5, 2)
    np.testing.assert_allclose(found["conditional_mean"][2, 1, 3], conditional_mean, rtol=1e-11)


def test_conditional_agrees_with_numerical_integration():
    batch, values, _ = draw_case(2, 1)
    found = {name: np.asarray(v)[0] for name, v in everything(batch, values).items()}
    arguments, value = each(batch, (4,))[0], values[0]
    x = np.linspace(-12, 12, 20_001)[:, None]
    centre = arguments["offset"] + x @ arguments["loading"].T
    log = log_normal(value - centre, np.zeros(2), arguments["noise_covariance"])
    log += stats.norm(arguments["latent_loc"], np.abs(arguments["latent_scale_tril"][0])).logpdf(x)[:, 0]
    weight, step = np.exp(log), x[1, 0] - x[0, 0]
    mean = np.sum(weight * x[:, 0]) / weight.sum()
    variance = np.sum(weight * (x[:, 0] - mean) ** 2) / weight.sum()
    np.testing.assert_allclose(found["log_prob"], np.log(weight.sum() * step), rtol=1e-12)
    np.testing.assert_allclose(found["conditional_mean"][0], mean, rtol=1e-11)
    np.testing.assert_allclose(found["conditional_tril"][0, 0] ** 2, variance, rtol=1e-11)


def exact(arguments, value):
    """Log density, conditional mean and covariance in 60 digits, by the gain matrix."""
    with mpmath.workdps(60):
        m = {name: mpmath.matrix(np.asarray(v).tolist()) for name, v in arguments.items()}
        a, prior = m["loading"], m["latent_scale_tril"] * m["latent_scale_tril"].T
        covariance = a * prior * a.T + m["noise_covariance"]
        residual = mpmath.matrix(value.tolist()) - m["offset"] - a * m["latent_loc"]
        inverse = covariance**-1
        gain = prior * a.T * inverse
        mean, conditional = m["latent_loc"] + gain * residual, prior - gain * a * prior
        chi2, log_det = (residual.T * inverse * residual)[0], mpmath.log(mpmath.det(covariance))
        log_prob = -(chi2 + log_det + len(value) * mpmath.log(2 * mpmath.pi)) / 2
        return float(log_prob), np.array(mean.tolist(), float)[:, 0], np.array(conditional.tolist(), float)


NOISES = (1e-10, 1e-4, 1.0, 1e4)


@pytest.mark.parametrize(("n", "k"), [(3, 3), (4, 2)])
def test_no_digits_are_lost_whatever_the_noise(n, k):
    batch, values, _ = draw_case(n, k, seed=1)
    # Near unit scale, so that what is tested is the ratio of noise to population, not the condition of either.
    batch["latent_scale_tril"] = 0.3 * batch["latent_scale_tril"] + np.eye(k)
    batch["loading"] = 0.3 * batch["loading"] + np.eye(n, k)
    scale = np.array(NOISES)
    batch["noise_covariance"] = scale[:, None, None] ** 2 * batch["noise_covariance"]
    # Data that the model expects: with fewer latents than data, others would be absurd at tiny noise.
    x = batch["latent_loc"] + (batch["latent_scale_tril"] @ values[:, :k, None])[..., 0]
    values = batch["offset"] + (batch["loading"] @ x[..., None])[..., 0] + scale[:, None] * values
    found = {name: np.asarray(v) for name, v in everything(batch, values).items()}
    for i, noise in enumerate(NOISES):
        log_prob, mean, covariance = exact(each(batch, (4,))[i], values[i])
        # With n > k the marginal covariance itself has condition noise^-2, which no formula for the density survives;
        # the conditional does.
        if n == k or noise >= 1e-4:
            rtol = 1e-6 if n > k and noise < 1 else 1e-12
            np.testing.assert_allclose(found["log_prob"][i], log_prob, rtol=rtol)
        np.testing.assert_allclose(found["conditional_mean"][i], mean, rtol=1e-11, atol=1e-11)
        tril = found["conditional_tril"][i]
        size = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        np.testing.assert_allclose(tril @ tril.T / size, covariance / size, atol=1e-11)


def test_latents_without_scatter_stay_where_they_are():
    batch, values, _ = draw_case(3, 3)
    batch["latent_scale_tril"][:, 1] = 0.0
    found = {name: np.asarray(v) for name, v in everything(batch, values).items()}
    for i, arguments in enumerate(each(batch, (4,))):
        log_prob, mean, covariance = exact(arguments, values[i])
        tril = found["conditional_tril"][i]
        np.testing.assert_allclose(found["log_prob"][i], log_prob, rtol=1e-12)
        np.testing.assert_allclose(found["conditional_mean"][i], mean, rtol=1e-11)
        np.testing.assert_allclose(tril @ tril.T, covariance, atol=1e-12)

    @jax.jit
    def draws_and_slope(number, tril):
        drawn = build(batch).conditional(values).sample(jax.random.key(number), (7,))
        return drawn, jax.grad(lambda s: build(dict(batch, latent_scale_tril=s)).log_prob(values).sum())(tril)

    draws, gradient = draws_and_slope(0, 0.0 * batch["latent_scale_tril"])
    np.testing.assert_array_equal(draws[..., 1], np.broadcast_to(batch["latent_loc"][:, 1], (7, 4)))
    # No scatter at all is the edge of the domain, not outside; the density is even in the scatter.
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def test_components_of_the_mean_may_be_kept_apart():
    whole, value, _ = draw_case(3, 3, batch=(4,), own=("latent_loc", "noise_covariance"), loading=False)
    loc = whole["latent_loc"]

    @jax.jit
    def both(loc):
        found = []
        for offset in (whole["offset"], None):

            def log_prob(loc, apart, offset=offset):
                loc = tuple(loc[..., i] for i in range(3)) if apart else loc
                return build(whole | {"latent_loc": loc, "offset": offset}).log_prob(value).sum()

            found.append([jax.value_and_grad(log_prob)(loc, apart) for apart in (True, False)])
        apart = build(whole | {"latent_loc": tuple(loc[..., i] for i in range(3))})
        assert len(jax.tree.leaves(apart)) == len(jax.tree.leaves(build(whole))) + 2
        return found, apart.mean, build(whole).mean

    found, mean, same_mean = both(loc)
    for (one, slope), (other, same) in found:
        assert float(one) == pytest.approx(float(other), rel=1e-14)
        np.testing.assert_allclose(slope, same, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(mean, same_mean)


@pytest.mark.parametrize("loading", [True, False])
def test_it_is_a_pytree_of_its_arguments(loading):
    arguments, _, _ = draw_case(2, 2, loading=loading)
    assert len(jax.eval_shape(lambda a: jax.tree.leaves(build(a)), arguments)) == (5 if loading else 4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2,), (3, 3), (3, 3), None), r"latent_loc must have shape \(\.\.\., k\).*found \(2,\) and \(3, 3\)"),
        (((3,), (3, 2), (3, 3), None), r"latent_scale_tril \(\.\.\., k, k\); found \(3,\) and \(3, 2\)"),
        (((2,), (2, 2), (3, 3), None), r"2 latents and 3 observed components need a loading .* \(\.\.\., 3, 2\)"),
        (((2,), (2, 2), (3, 3), (2, 3)), r"loading must have shape \(\.\.\., 3, 2\); found \(2, 3\)"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    *positional, loading = (None if shape is None else np.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        LinearGaussian(*positional, loading=loading)


def test_outside_the_domain_it_is_nan():
    """A covariance with a negative variance, one that is zero, and one that is negative."""

    @jax.jit
    def log_probs(cases):
        return [
            [
                LinearGaussian(np.zeros(n), scale, noise, validate_args=False).log_prob(np.ones(n))
                for scale, noise in each
            ]
            for n, each in zip((1, 3, BEYOND), cases, strict=True)
        ]

    cases = []
    for n in (1, 3, BEYOND):
        zero, negative = np.zeros((n, n)), np.diag([1.0] * (n - 1) + [-1.0])
        cases.append([(0.1 * np.eye(n), negative), (zero, zero), (zero, -np.eye(n))])
    for found in log_probs(cases):
        assert np.isnan(found[:2]).all()
        # Of an even number of negative pivots the product is positive; then the square root of one is NaN, or none is.
        assert np.isnan(found[2])


@pytest.mark.parametrize("n", [3, BEYOND])
def test_density_is_that_of_numpyros_multivariate_normal_also_in_a_plate(n):
    value = np.random.default_rng(8).normal(size=(4, n))

    @jax.jit
    def in_plates(cases, number):
        found = []
        for arguments in cases:

            def program(obs=None, arguments=arguments):
                with numpyro.plate("object", 4):
                    numpyro.sample("y", build(arguments), obs=obs)

            d = build(arguments)
            density, _ = numpyro.infer.util.log_density(program, (value,), {}, {})
            drawn = handlers.trace(handlers.seed(program, jax.random.key(number))).get_trace()["y"]["value"]
            # All parameters of the objects, or the same for all, are drawn for each.
            same = dist.MultivariateNormal(d.mean, d.covariance_matrix, validate_args=False).log_prob(value)
            found.append((d.log_prob(value), same, density, drawn))
        return found

    for log_prob, same, density, drawn in in_plates([draw_case(n, 2, own=own)[0] for own in (NAMES, ())], 0):
        np.testing.assert_allclose(log_prob, same, rtol=1e-12)
        np.testing.assert_allclose(density, np.sum(log_prob), rtol=1e-12)
        assert drawn.shape == (4, n)
        assert len(np.unique(np.asarray(drawn)[:, 0])) == 4
