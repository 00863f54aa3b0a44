"""Normal distributions of a few constant blocks: density and derivatives against SciPy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hbm_jax.distributions.block_normal import BlockNormal

RNG = np.random.default_rng(0)
NUM = 12
BLOCKS = np.array([m @ m.T / NUM for m in RNG.normal(size=(3, NUM, NUM))])
VALUE = RNG.normal(size=NUM)


def normal(p):
    coefficients = jnp.stack([1.0 + p[0] ** 2, p[1] ** 2, 0.3 * p[0] * p[1]])
    return BlockNormal(p[2] * jnp.ones(NUM), 0.5 + p[1] ** 2 * jnp.arange(NUM), coefficients, BLOCKS)


POINT = jnp.array([0.7, 0.4, 0.2])


def test_density_and_derivatives():
    one = normal(POINT)
    scipy = stats.multivariate_normal(np.asarray(one.mean), np.asarray(one.covariance_matrix))
    np.testing.assert_allclose(one.log_prob(VALUE), scipy.logpdf(VALUE), rtol=1e-12)
    np.testing.assert_allclose(one.log_prob(np.stack([VALUE, -VALUE])), scipy.logpdf([VALUE, -VALUE]), rtol=1e-12)
    np.testing.assert_allclose(one.variance, np.diagonal(scipy.cov), rtol=1e-12)

    def density(p):
        return normal(p).log_prob(VALUE)

    steps = 1e-5 * np.eye(3)
    numeric = [(density(POINT + s) - density(POINT - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(jax.jit(jax.grad(density))(POINT), numeric, rtol=1e-7)
    np.testing.assert_allclose(jax.jacfwd(density)(POINT), numeric, rtol=1e-7)
    gradient = jax.jit(jax.grad(density))
    second = [(gradient(POINT + s) - gradient(POINT - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(jax.jit(jax.hessian(density))(POINT), second, rtol=1e-6)
    by_block = jax.grad(lambda blocks: BlockNormal(jnp.zeros(NUM), jnp.ones(NUM), jnp.ones(3), blocks).log_prob(VALUE))
    moved = BLOCKS + 1e-5 * np.eye(NUM)
    change = [
        BlockNormal(jnp.zeros(NUM), jnp.ones(NUM), jnp.ones(3), b).log_prob(VALUE) for b in (moved, 2 * BLOCKS - moved)
    ]
    expected = (change[0] - change[1]) / 2e-5
    np.testing.assert_allclose(jnp.trace(by_block(jnp.asarray(BLOCKS)).sum(0)), expected, rtol=1e-6)


def test_draws():
    one = normal(POINT)
    drawn = one.sample(jax.random.key(1), (20000,))
    np.testing.assert_allclose(np.cov(drawn.T), one.covariance_matrix, atol=0.12 * float(one.variance.max()) ** 1)
    np.testing.assert_allclose(drawn.mean(0), 0.2, atol=4 * np.sqrt(float(one.variance.max()) / 20000))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"expected loc \(N,\), coefficients \(K,\) and blocks \(K, N, N\); found"):
        BlockNormal(np.zeros(3), np.ones(3), np.ones(2), np.ones((3, 3, 3)))
