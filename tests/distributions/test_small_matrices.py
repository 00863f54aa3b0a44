"""Density of small normal distributions, with written-out derivatives, and softplus against SciPy and dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from hbm_jax.distributions.elementary import softplus
from hbm_jax.distributions.normal.small_matrices import elements, normal_log_density, with_noise

NUM = 3  # objects


def case(size):
    """Return residuals (size, NUM) and covariances (NUM, size, size)."""
    rng = np.random.default_rng(size)
    root = rng.normal(size=(NUM, size, size)) + 2.0 * np.eye(size)
    return rng.normal(size=(size, NUM)), root @ root.swapaxes(-1, -2)


def density(residual, covariance):
    """Return the total log density."""
    return normal_log_density(list(residual), elements(covariance)).sum()


def dense(residual, covariance):
    """Return the total log density by dense linear algebra, up to a constant."""
    whitened = jnp.linalg.solve(covariance, residual.T[..., None])[..., 0]
    return -0.5 * ((residual.T * whitened).sum() + jnp.linalg.slogdet(covariance)[1].sum())


@pytest.mark.parametrize("size", [1, 3])
def test_density_and_derivatives(size):
    residual, covariance = case(size)
    found = normal_log_density(list(residual), elements(covariance))
    expected = [
        stats.multivariate_normal(np.zeros(size), c).logpdf(r) for r, c in zip(residual.T, covariance, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)

    def along(function):  # of a line through residuals and covariances, of which only the lower triangle is read
        def value(t):
            shifted = covariance + jnp.exp(t[1]) * np.eye(size) + t[2] * np.ones((size, size))
            return function(residual + t[0] * jnp.arange(1.0, NUM + 1.0), shifted)

        return value

    at = np.array([0.3, 0.1, 0.2])
    derivatives = jax.jit(lambda t: [d(along(f))(t) for f in (density, dense) for d in (jax.grad, jax.hessian)])(at)
    for ours, theirs in zip(derivatives[:2], derivatives[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_constants_have_no_derivative_and_zeros_no_cost():
    residual, covariance = case(3)
    noise = elements(covariance[0])

    def value(scale):
        return normal_log_density(
            list(residual[:, 0]), with_noise(noise, ((scale, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 2.0, 0.0)))
        )

    slope, step = jax.grad(value)(0.7), 1e-5
    root = np.array([[0.7, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    expected = stats.multivariate_normal(np.zeros(3), covariance[0] + root @ root.T).logpdf(residual[:, 0])
    np.testing.assert_allclose(value(0.7), expected, rtol=1e-12)
    np.testing.assert_allclose(slope, (value(0.7 + step) - value(0.7 - step)) / (2 * step), rtol=1e-7)
    assert with_noise(noise, ((0.7, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 2.0, 0.0)))[1][0] == noise[1][0]


def test_softplus():
    def stacked(x):
        return jnp.stack(softplus(x))

    x = np.array([-800.0, -40.0, -1.5, 0.0, 1e-9, 1.5, 40.0, 800.0])
    values = softplus(x)
    np.testing.assert_allclose(values[0], np.logaddexp(x, 0.0), rtol=1e-14)
    np.testing.assert_allclose(values[1], np.logaddexp(-x, 0.0), rtol=1e-14)
    derivatives = jax.jacobian(stacked), jax.jacobian(jax.jacobian(stacked))
    slope, curvature = jax.jit(jax.vmap(lambda x: [derivative(x) for derivative in derivatives]))(x)
    np.testing.assert_allclose(slope, np.stack([special.expit(x), -special.expit(-x)], axis=-1), rtol=1e-13)
    expected = special.expit(x) * special.expit(-x)
    np.testing.assert_allclose(curvature, np.stack([expected, expected], axis=-1), rtol=1e-13, atol=1e-300)
