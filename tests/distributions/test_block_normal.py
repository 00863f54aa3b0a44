"""Normal distributions of a few constant blocks: second derivatives, and shapes. All else: `test_distribution_laws`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax.distributions.normal.block_normal import BlockNormal

RNG = np.random.default_rng(0)
NUM = 6
BLOCKS = np.array([m @ m.T / NUM for m in RNG.normal(size=(3, NUM, NUM))])
VALUE = RNG.normal(size=NUM)
POINT = np.array([0.7, 0.4, 0.2])


def density(p):
    coefficients = jnp.stack([1.0 + p[0] ** 2, p[1] ** 2, 0.3 * p[0] * p[1]])
    normal = BlockNormal(p[2] * jnp.ones(NUM), 0.5 + p[1] ** 2 * jnp.arange(NUM), coefficients, BLOCKS)
    return normal.log_prob(VALUE)


def test_second_derivatives_are_those_of_the_gradient():
    points = np.concatenate([POINT + 1e-5 * np.eye(3), POINT - 1e-5 * np.eye(3)])
    gradients, second = jax.jit(lambda points: (jax.vmap(jax.grad(density))(points), jax.hessian(density)(POINT)))(
        points
    )
    expected = (np.asarray(gradients)[:3] - np.asarray(gradients)[3:]) / 2e-5
    np.testing.assert_allclose(second, expected, rtol=1e-6)


@pytest.mark.parametrize(("loc", "coefficients"), [(np.zeros(3), np.ones(2)), (np.zeros(2), np.ones(3))])
def test_shapes_are_checked(loc, coefficients):
    with pytest.raises(ValueError, match=r"expected loc \(N,\), coefficients \(K,\) and blocks \(K, N, N\); found"):
        BlockNormal(loc, np.ones(3), coefficients, np.ones((3, 3, 3)))
