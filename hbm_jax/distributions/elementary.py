"""Elementary functions whose gradients are small programs, which compile quickly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 32


def softplus(x):
    """Return log(1 + e^x) and log(1 + e^-x), which is minus the logarithm of the sigmoid function of x.

    Both share one exponential and one logarithm, and with half the sum of x and its absolute value in place of a
    maximum their first derivatives are right everywhere, for a third of the operations of `jax.nn.softplus`.
    """
    size = jnp.abs(x)
    tail = jnp.log1p(jnp.exp(-size))
    return 0.5 * (size + x) + tail, 0.5 * (size - x) + tail


def scaled(array: Any, factor: Any):
    """Return the product of an array and a factor.

    Where the factor is a traced scalar, its derivative is a matrix product instead of a sum. For a sum of more than
    `WINDOW` terms XLA compiles two programs: one for parts of the array and one for their sums.
    """
    if not isinstance(factor, jax.Array) or np.ndim(factor) or np.size(array) <= WINDOW:
        return array * factor
    array = jnp.asarray(array, factor.dtype)
    return jax.lax.dot_general(array, factor, (((), ()), ((), ())), precision=jax.lax.Precision.HIGHEST)
