"""Half normal prior of a scale, sampled in a coordinate between the scale and its logarithm."""

import jax.numpy as jnp
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform, biject_to

from hbm_jax.distributions.elementary import softplus

BEND = 0.3  # scale at which the coordinate turns from linear to logarithmic, in units of the prior's scale


class SoftHalfNormal(dist.HalfNormal):
    """Half normal prior sampled in a coordinate that is linear in the scale, and logarithmic far below ``BEND``.

    ``BEND`` is in units of the prior's scale. Where the data allow a scale of zero, the posterior of its logarithm has
    a long tail to small values and falls steeply to large values, because the likelihood falls like a normal
    distribution in the scale itself. The density is that of `numpyro.distributions.HalfNormal`.
    """

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self):
        """Positive numbers."""
        return SoftlyPositive(BEND * self.scale)


class SoftlyPositive(constraints.Constraint):
    """Constraint to positive numbers for which ``biject_to`` returns a `SoftScale`.

    Parameters
    ----------
    size : (...)
        Value below which the coordinate is logarithmic.
    """

    lower_bound = 0.0

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        """Return whether a number is positive."""
        return x > 0

    def feasible_like(self, prototype):
        """Return positive numbers in the shape of a prototype."""
        return jnp.broadcast_to(self.size, jnp.shape(prototype))

    def eq(self, other, static=False):
        """Return whether another constraint is the same."""
        return isinstance(other, SoftlyPositive) and constraints.array_equiv(self.size, other.size, static=static)

    def tree_flatten(self):
        """Return the parts of the pytree, as NumPyro expects them."""
        return (self.size,), (("size",), {})


class SoftScale(Transform):
    """Transform of a real coordinate V to the scale, size ln(1 + e^V)."""

    domain = constraints.real
    codomain = constraints.positive

    def __init__(self, size):
        self.size = size

    def __call__(self, x):
        """Return the scale."""
        return self.size * softplus(x)[0]

    def _inverse(self, y):
        """Return V at a scale."""
        ratio = y / self.size
        return ratio + jnp.log(-jnp.expm1(-ratio))

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Return the log of the derivative of the scale with respect to V."""
        return jnp.log(self.size) - softplus(x)[1]

    def tree_flatten(self):
        """Return the parts of the pytree, as NumPyro expects them."""
        return (self.size,), (("size",), {})

    def __eq__(self, other):
        return isinstance(other, SoftScale) and self.size is other.size

    __hash__ = None  # type: ignore[assignment]


@biject_to.register(SoftlyPositive)
def _coordinate(support):
    """Return the transform onto the support."""
    return SoftScale(support.size)
