"""Mixtures with a positive latent and a selection: density, normalisation, draws, draws of what is integrated out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from hbm_jax.distributions import HalfLine, ObservedMixture, ProbitSelection
from hbm_jax.distributions.half_line import log_half_line, truncated
from hbm_jax.distributions.selection import detected_share

ABOVE_ZERO = (
    1e-11  # where integrals begin: whether SciPy's truncated density counts at 0 itself is a matter of rounding
)
HALF_LINES = {
    "exponential": (HalfLine(None, 4.0), stats.expon(scale=0.25)),
    "half normal": (HalfLine(None, 0.0, 1.0), stats.halfnorm()),
    "truncated": (HalfLine(None, 2.0, 3.0), stats.truncnorm(2 / 3 * np.sqrt(3), np.inf, -2 / 3, 1 / np.sqrt(3))),
    "hardly truncated": (HalfLine(None, -9.0, 3.0), stats.truncnorm(-3 * np.sqrt(3), np.inf, 3, 1 / np.sqrt(3))),
}


@pytest.mark.parametrize("name", HALF_LINES)
def test_half_line_is_integrated(name):
    half_line, scipy = HALF_LINES[name]
    for linear, quadratic in [(0.3, 2.0), (-40.0, 0.5), (25.0, 6.0)]:
        log_integrand = lambda t, b=linear, q=quadratic: scipy.logpdf(t) + b * t - 0.5 * q * t * t  # noqa: E731
        t = np.linspace(ABOVE_ZERO, 12, 400001)
        top = log_integrand(t).max()
        expected = top + np.log(integrate.simpson(np.exp(log_integrand(t) - top), x=t))
        np.testing.assert_allclose(half_line.log_integral(linear, quadratic), expected, rtol=1e-8)
    nodes, log_weights = half_line.nodes()
    for power in range(4):
        np.testing.assert_allclose(
            jnp.exp(log_weights) @ nodes**power, scipy.moment(power) if power else 1.0, rtol=1e-9
        )


@pytest.mark.parametrize("name", HALF_LINES)
def test_half_line_draws(name):
    half_line, scipy = HALF_LINES[name]
    assert stats.kstest(half_line.sample(jax.random.key(1), (4000,)), scipy.cdf).pvalue > 1e-3
    more = 0.0 if half_line.precision is None else half_line.precision
    linear, quadratic = jnp.full(4000, 3.0), jnp.full(4000, 2.0)
    drawn = half_line.conditional(jax.random.key(2), linear, quadratic)
    mean, std = (3.0 - half_line.rate) / (2.0 + more), 1 / np.sqrt(2.0 + more)
    assert stats.kstest(drawn, stats.truncnorm(-mean / std, np.inf, mean, std).cdf).pvalue > 1e-3


def test_far_tail_is_finite():
    assert np.isfinite(log_half_line(-1e6, 1.0))
    assert np.isfinite(jax.grad(log_half_line)(-1e6, 1.0))
    far = truncated(jax.random.key(0), -50.0, 1.0, (4000,))  # exponential of mean 1 / 50
    assert far.mean() == pytest.approx(0.02, rel=0.08)
    assert (far > 0).all()


@pytest.mark.parametrize("name", HALF_LINES)
def test_detected_share(name):
    half_line, scipy = HALF_LINES[name]
    for room, along in [(0.5, 0.4), (-3.0, -0.8), (2.0, 1.5)]:
        found = detected_share(jnp.asarray(room), jnp.asarray(0.3), half_line, jnp.asarray(along))
        t = np.linspace(ABOVE_ZERO, 12, 40001)
        expected = integrate.simpson(scipy.pdf(t) * stats.norm.cdf((room - along * t) / np.sqrt(0.3)), x=t)
        np.testing.assert_allclose(jnp.exp(found), expected, rtol=1e-7)


def mixture(name=None, selected=False):
    """Two objects, two components, two observed values."""
    half_line = None if name is None else HALF_LINES[name][0]._replace(direction=np.array([0.5, -1.0]))
    selection = ProbitSelection(jnp.array(0.4), jnp.array(0.3), jnp.array([0.2, 1.0])) if selected else None
    return ObservedMixture(
        jnp.log(jnp.array([0.3, 0.7])),
        jnp.array([[0.0, 0.2], [1.0, -0.5]]),
        jnp.array([[[0.5, 0.0], [0.2, 0.4]], [[0.3, 0.0], [-0.1, 0.8]]]),
        np.array([[[0.2, 0.05], [0.05, 0.1]], [[0.05, 0.0], [0.0, 0.3]]]),
        offset=np.array([[0.1, 0.0], [0.0, -0.1]]),
        half_line=half_line,
        selection=selection,
    )


def on_a_grid(name, selected):
    """Densities of both objects on a grid of observed values, and its step."""
    x = np.linspace(-7, 9, 321)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    return x, np.exp(jax.jit(jax.vmap(jax.vmap(mixture(name, selected).log_prob)))(grid[:, :, None, :]))


@pytest.mark.parametrize(
    ("name", "selected"),
    [(None, False), (None, True), ("half normal", False), ("exponential", True), ("truncated", True)],
)
def test_density_is_normalised_and_draws_follow_it(name, selected):
    x, density = on_a_grid(name, selected)
    np.testing.assert_allclose(density.sum(axis=(0, 1)) * (x[1] - x[0]) ** 2, 1.0, rtol=1e-4)
    drawn = mixture(name, selected).sample(jax.random.key(3), (3000,))
    assert drawn.shape == (3000, 2, 2)
    for n in range(2):
        for axis in range(2):
            marginal = density[:, :, n].sum(axis=1 - axis) * (x[1] - x[0])
            cdf = np.cumsum(marginal) * (x[1] - x[0])
            # Cells are centred on the grid.
            assert (
                stats.kstest(drawn[:, n, axis], lambda v, c=cdf: np.interp(v, x + 0.5 * (x[1] - x[0]), c)).pvalue > 1e-3
            )


@pytest.mark.parametrize("name", [None, "exponential", "half normal"])
def test_what_is_integrated_out_is_drawn_back(name):
    """Truth and observation drawn forward, then the truth drawn back: the two truths have one distribution."""
    one, num = mixture(name), 4000
    value = one.sample(jax.random.key(4), (num,))
    keys = jax.random.split(jax.random.key(5), num)
    which, truth = jax.jit(jax.vmap(one.conditional_sample))(keys, value)
    share = jax.vmap(one.probabilities)(value)
    np.testing.assert_allclose(share.mean((0, 1)), [0.3, 0.7], atol=0.02)
    np.testing.assert_allclose((which == 1).mean(0), [0.7, 0.7], atol=0.03)
    residual = value - truth - one.offset  # the noise, whose covariance is known
    for n in range(2):
        np.testing.assert_allclose(np.cov(residual[:, n].T), one.noise_covariance[n], atol=0.015)
        np.testing.assert_allclose(residual[:, n].mean(0), 0.0, atol=0.04)


def test_an_object_that_cannot_be_detected_is_nan():
    blind = ObservedMixture(
        jnp.zeros(1), jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), np.ones((1, 1, 1)),
        selection=ProbitSelection(jnp.array(-40.0), jnp.array(0.1), jnp.ones(1)),
    )  # fmt: skip
    assert np.isnan(jax.jit(blind.sample)(jax.random.key(0))).all()
