"""Elementary functions whose gradients are small programs, which compile quickly."""

import jax.numpy as jnp


def softplus(x):
    """Return log(1 + e^x) and log(1 + e^-x), which is minus the logarithm of the sigmoid function of x.

    Both share one exponential and one logarithm. On either side of 0 they are written as one analytic function, so that
    all derivatives are right everywhere, for half of the operations of `jax.nn.softplus`.
    """
    positive = x >= 0
    tail = jnp.log1p(jnp.exp(jnp.where(positive, -x, x)))
    return jnp.where(positive, x, 0.0) + tail, jnp.where(positive, 0.0, -x) + tail
