"""`LinearGaussian`: densities, conditionals and draws against SciPy, textbook formulae and 60-digit arithmetic."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from scipy import stats

from hbm_jax.distributions import LinearGaussian
from hbm_jax.distributions.linear_gaussian import MAX_UNROLLED

NAMES = ("latent_loc", "latent_scale_tril", "noise_covariance", "loading", "offset")
# (n, k): every n of the closed form and one beyond it; fewer, as many and more latents than data.
SIZES = [(1, 1), (2, 1), (3, 0), (3, 2), (3, 4), (4, 2), (5, 3), (6, 1), (8, 0), (8, 3)]


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


@jax.jit
def everything(arguments, value):
    """All that is compared, in one compiled program a case."""
    d = build(arguments)
    found = {"log_prob": d.log_prob(value), "mean": d.mean, "variance": d.variance}
    if d.latent_loc.shape[-1]:
        conditional = d.conditional(value)
        found |= {"conditional_mean": conditional.loc, "conditional_tril": conditional.scale_tril}
    return found


@jax.jit
def by_numpyro(arguments, value):
    d = build(arguments)
    return dist.MultivariateNormal(d.mean, d.covariance_matrix).log_prob(value)


def log_normal(x, mean, covariance):
    return stats.multivariate_normal(mean, covariance).logpdf(x)


def compare(arguments, value, latents):
    found = {name: np.asarray(v) for name, v in everything(arguments, value).items()}
    shape = value.shape[:-1]
    assert build(arguments).batch_shape == found["log_prob"].shape == shape
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
    compare(*draw_case(n, k))


@pytest.mark.parametrize("n", [3, MAX_UNROLLED + 1])
def test_density_is_that_of_numpyros_multivariate_normal(n):
    arguments, value, _ = draw_case(n, 2)
    np.testing.assert_allclose(everything(arguments, value)["log_prob"], by_numpyro(arguments, value), rtol=1e-12)


@pytest.mark.parametrize("n", [3, MAX_UNROLLED + 1])
def test_without_loading_the_latents_are_the_data_less_noise(n):
    arguments, value, latents = draw_case(n, n, loading=False)
    compare(arguments, value, latents)
    del arguments["offset"]
    compare(arguments, value, latents)


BEYOND = MAX_UNROLLED + 1


@pytest.mark.parametrize(
    ("n", "own"), [*((2, (name,)) for name in NAMES), (2, ()), (BEYOND, ("latent_loc",)), (BEYOND, ("loading",))]
)
def test_every_argument_broadcasts(n, own):
    arguments, value, latents = draw_case(n, 2, batch=(2, 3), own=own)
    value, latents = (value, latents) if own else (value[0, 0], latents[0, 0])
    compare(arguments, value, latents)


def test_batch_dimensions_of_different_arguments_combine_and_value_may_have_more():
    arguments, _, _ = draw_case(3, 2, batch=())
    arguments["offset"] = np.arange(6.0).reshape(2, 1, 3)
    arguments["latent_loc"] = np.arange(10.0).reshape(5, 2)
    d = build(arguments)
    assert d.batch_shape == (2, 5)
    assert d.event_shape == (3,)
    value = np.random.default_rng(0).normal(size=(4, 2, 5, 3))
    found = everything(arguments, value)
    assert found["log_prob"].shape == (4, 2, 5)
    one = dict(arguments, offset=arguments["offset"][1, 0], latent_loc=arguments["latent_loc"][3])
    mean, covariance, conditional_mean, _ = textbook(one, value[2, 1, 3])
    np.testing.assert_allclose(found["log_prob"][2, 1, 3], log_normal(value[2, 1, 3], mean, covariance), rtol=1e-12)
    assert found["conditional_mean"].shape == (4, 2, 5, 2)
    np.testing.assert_allclose(found["conditional_mean"][2, 1, 3], conditional_mean, rtol=1e-11)


def test_conditional_agrees_with_numerical_integration():
    arguments, value, _ = draw_case(2, 1, batch=())
    x = np.linspace(-12, 12, 20_001)[:, None]
    centre = arguments["offset"] + x @ arguments["loading"].T
    log = stats.multivariate_normal(np.zeros(2), arguments["noise_covariance"]).logpdf(value - centre)
    log += stats.norm(arguments["latent_loc"], np.abs(arguments["latent_scale_tril"][0])).logpdf(x)[:, 0]
    weight, step = np.exp(log), x[1, 0] - x[0, 0]
    mean = np.sum(weight * x[:, 0]) / weight.sum()
    variance = np.sum(weight * (x[:, 0] - mean) ** 2) / weight.sum()
    found = everything(arguments, value)
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


@pytest.mark.parametrize("noise", [1e-10, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("n", "k"), [(3, 3), (4, 2)])
def test_no_digits_are_lost_whatever_the_noise(n, k, noise):
    arguments, value, _ = draw_case(n, k, batch=(), seed=1)
    # Near unit scale, so that what is tested is the ratio of noise to population, not the condition of either.
    arguments["latent_scale_tril"] = 0.3 * arguments["latent_scale_tril"] + np.eye(k)
    arguments["loading"] = 0.3 * arguments["loading"] + np.eye(n, k)
    arguments["noise_covariance"] = noise**2 * arguments["noise_covariance"]
    # Data that the model expects: with fewer latents than data, others would be absurd at tiny noise.
    x = arguments["latent_loc"] + arguments["latent_scale_tril"] @ value[:k]
    value = arguments["offset"] + arguments["loading"] @ x + noise * value
    found = everything(arguments, value)
    log_prob, mean, covariance = exact(arguments, value)
    # With n > k the marginal covariance itself has condition noise^-2, which no formula for the density survives; the
    # conditional does.
    if n == k or noise >= 1e-4:
        np.testing.assert_allclose(found["log_prob"], log_prob, rtol=1e-6 if n > k and noise < 1 else 1e-12)
    np.testing.assert_allclose(found["conditional_mean"], mean, rtol=1e-11, atol=1e-11)
    tril = np.asarray(found["conditional_tril"])
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(tril @ tril.T / scale, covariance / scale, atol=1e-11)


def test_latents_without_scatter_stay_where_they_are():
    arguments, value, _ = draw_case(3, 3, batch=())
    s = arguments["latent_scale_tril"]
    s[1] = 0.0
    found = everything(arguments, value)
    log_prob, mean, covariance = exact(arguments, value)
    tril = np.asarray(found["conditional_tril"])
    np.testing.assert_allclose(found["log_prob"], log_prob, rtol=1e-12)
    np.testing.assert_allclose(found["conditional_mean"], mean, rtol=1e-11)
    np.testing.assert_allclose(tril @ tril.T, covariance, atol=1e-12)
    draws = jax.jit(lambda key: build(arguments).conditional(value).sample(key, (7,)))(jax.random.key(0))
    np.testing.assert_array_equal(draws[:, 1], arguments["latent_loc"][1])
    gradient = jax.jit(jax.grad(lambda s: build(dict(arguments, latent_scale_tril=s)).log_prob(value)))(0.0 * s)
    assert np.isfinite(gradient).all(), "no scatter at all is the edge of the domain, not outside"


@pytest.mark.parametrize("offset", [True, False])
def test_components_of_the_mean_may_be_kept_apart(offset):
    arguments, value, _ = draw_case(3, 3, batch=(4,), own=("latent_loc", "noise_covariance"), loading=False)
    arguments = arguments if offset else arguments | {"offset": None}

    def log_prob(loc, apart):
        loc = tuple(loc[..., i] for i in range(3)) if apart else loc
        return build(arguments | {"latent_loc": loc}).log_prob(value).sum()

    (one, slope), (other, same) = (
        jax.value_and_grad(log_prob)(jnp.asarray(arguments["latent_loc"]), apart) for apart in (True, False)
    )
    assert float(one) == pytest.approx(float(other), rel=1e-14)
    np.testing.assert_allclose(slope, same, rtol=1e-12)
    apart = build(arguments | {"latent_loc": tuple(np.moveaxis(arguments["latent_loc"], -1, 0))})
    np.testing.assert_array_equal(apart.mean, build(arguments).mean)
    assert len(jax.tree.leaves(apart)) == len(jax.tree.leaves(build(arguments))) + 3


@pytest.mark.parametrize("loading", [True, False])
def test_draws_have_the_stated_mean_and_covariance(loading):
    arguments, _, _ = draw_case(3, 3, batch=(2,), own=("latent_loc", "noise_covariance"), loading=loading)
    d = build(arguments)
    num = 40_000
    draws = np.asarray(jax.jit(lambda key: d.sample(key, (num,)))(jax.random.key(3)))
    assert draws.shape == (num, 2, 3)
    for i in range(2):
        mean, covariance, *_ = textbook(each(arguments, (2,))[i], np.zeros(3))
        error = np.sqrt(np.diag(covariance) / num)
        np.testing.assert_array_less(np.abs(draws[:, i].mean(0) - mean), 4.5 * error)
        spread = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / num)
        np.testing.assert_array_less(np.abs(np.cov(draws[:, i].T) - covariance), 4.5 * spread)
    between = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
    assert abs(between) < 4.5 / np.sqrt(num), "objects are independent"


@pytest.mark.parametrize(("n", "k"), [(3, 2), (BEYOND, 2)])
def test_gradients_agree_with_finite_differences_forward_and_reverse(n, k):
    arguments, value, _ = draw_case(n, k, batch=(2,))
    rest = {name: arguments[name] for name in NAMES if name != "noise_covariance"}
    point, unravel = ravel_pytree((rest, np.linalg.cholesky(arguments["noise_covariance"]), value))

    @jax.jit
    def log_prob(flat):
        rest, root, value = unravel(flat)
        noise = root @ jnp.swapaxes(root, -1, -2)
        return build(dict(rest, noise_covariance=noise)).log_prob(value).sum()

    forward, reverse = (np.asarray(jax.jit(jac(log_prob))(point)) for jac in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-10)
    step = 1e-5
    for index, slope in enumerate(reverse):
        ends = (log_prob(point.at[index].add(sign * step)) for sign in (1, -1))
        difference = np.subtract(*(float(end) for end in ends)) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-6, err_msg=f"{index}")


def test_jit_vmap_and_plain_agree_and_nothing_is_traced_twice():
    arguments, value, _ = draw_case(3, 2, batch=(5,))
    traces = []

    def log_prob(arguments, value):
        traces.append(1)
        return build(arguments).log_prob(value)

    jitted, mapped = jax.jit(log_prob), jax.jit(jax.vmap(log_prob))
    for shift in (0.0, 1.0):
        plain = everything(arguments, value + shift)["log_prob"]
        np.testing.assert_allclose(jitted(arguments, value + shift), plain, rtol=1e-13)
        np.testing.assert_allclose(mapped(arguments, value + shift), plain, rtol=1e-13)
    assert len(traces) == 2


@pytest.mark.parametrize("loading", [True, False])
def test_it_is_a_pytree(loading):
    arguments, value, _ = draw_case(2, 2, loading=loading)
    d = build(arguments)
    leaves, structure = jax.tree.flatten(d)
    assert len(leaves) == 5 if loading else 4
    again = jax.tree.unflatten(structure, leaves)
    assert (again.batch_shape, again.event_shape) == (d.batch_shape, d.event_shape)
    expected = everything(arguments, value)["log_prob"]
    np.testing.assert_allclose(again.log_prob(value), expected, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(lambda d, v: d.log_prob(v))(d, value), expected, rtol=1e-13)


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


@pytest.mark.parametrize("n", [1, 3, BEYOND])
def test_outside_the_domain_it_is_nan(n):
    @jax.jit
    def log_prob(scale, noise):
        return LinearGaussian(np.zeros(n), scale, noise).log_prob(np.ones(n))

    assert np.isnan(log_prob(0.1 * np.eye(n), np.diag([1.0] * (n - 1) + [-1.0])))
    assert np.isnan(log_prob(np.zeros((n, n)), np.zeros((n, n))))
    unchecked = LinearGaussian(np.zeros(n), np.zeros((n, n)), -np.eye(n), validate_args=False)
    assert np.isnan(unchecked.log_prob(np.ones(n)))


def test_numpyro_checks_concrete_arguments():
    with pytest.raises(ValueError, match="noise_covariance"):
        LinearGaussian(np.zeros(2), np.eye(2), -np.eye(2), validate_args=True)
    d = LinearGaussian(np.zeros(2), np.eye(2), np.eye(2), validate_args=True)
    np.testing.assert_allclose(d.log_prob(np.zeros(2)), -np.log(4 * np.pi), rtol=1e-12)


@pytest.mark.parametrize("own", [NAMES, ()])
def test_in_a_plate(own):
    arguments, _, _ = draw_case(3, 2, batch=(5,), own=own)
    value = np.random.default_rng(8).normal(size=(5, 3))

    def program(obs=None):
        with numpyro.plate("object", 5):
            numpyro.sample("y", build(arguments), obs=obs)

    density, _ = numpyro.infer.util.log_density(program, (value,), {}, {})
    np.testing.assert_allclose(density, build(arguments).log_prob(value).sum(), rtol=1e-12)
    drawn = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace()["y"]["value"]
    assert drawn.shape == (5, 3)
    assert len(np.unique(np.asarray(drawn)[:, 0])) == 5
