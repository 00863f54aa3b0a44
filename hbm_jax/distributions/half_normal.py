"""The half normal prior of a scale, sampled in a coordinate that is straight whether the scale is measured or not."""

import jax
import jax.numpy as jnp
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

BEND = 0.3  # of the prior's scale: where the coordinate turns from the scale to its logarithm


class SoftHalfNormal(dist.HalfNormal):
    """A half normal prior whose coordinate is the scale itself, and its logarithm far below ``BEND`` of the prior's.

    In its logarithm a scale that may be zero has a long tail on one side and a wall on the other, where the likelihood
    falls like that of a normal in the scale. The density is that of `numpyro.distributions.HalfNormal`.
    """

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        """Positive numbers."""
        return SoftlyPositive(BEND * self.scale)


class SoftlyPositive(constraints.Constraint):
    """Positive numbers, for NumPyro to choose `SoftScale` for.

    Parameters
    ----------
    size : (...)
        Where the coordinate turns into the logarithm.
    """

    lower_bound = 0.0

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        """Whether a number is positive."""
        return x > 0

    def feasible_like(self, prototype):
        """Return a positive number for each of a prototype."""
        return jnp.broadcast_to(self.size, jnp.shape(prototype))

    def eq(self, other, static=False):
        """Whether another is the same."""
        return isinstance(other, SoftlyPositive) and constraints.array_equiv(self.size, other.size, static=static)

    def tree_flatten(self):
        """Parts, for JAX."""
        return (self.size,), (("size",), {})


class SoftScale(Transform):
    """From a coordinate V to size ln(1 + e^V)."""

    domain = constraints.real
    codomain = constraints.positive

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        """Return the scale."""
        return self.size * jax.nn.softplus(x)

    def _inverse(self, y):
        ratio = y / self.size
        return ratio + jnp.log(-jnp.expm1(-ratio))

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Logarithm of the slope."""
        return jnp.log(self.size) + jax.nn.log_sigmoid(x)

    def tree_flatten(self):
        """Parts, for JAX."""
        return (self.size,), (("size",), {})

    def __eq__(self, other):
        return isinstance(other, SoftScale) and self.size is other.size

    __hash__ = None  # type: ignore[assignment]


@biject_to.register(SoftlyPositive)
def _coordinate(support):
    return SoftScale(support.size)
