"""Skew-normal distribution of Azzalini."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample


class SkewNormal(dist.Distribution):
    """Skew-normal distribution with density 2 phi(t) Phi(a t) / scale, t = (x - loc) / scale.

    Parameters
    ----------
    loc, scale : array
        Location and scale. They are not the mean and the standard deviation; see `SkewNormal.standardised`.
    shape_parameter : array
        The parameter a: 0 is the normal distribution; positive values have a tail to the right.

    References
    ----------
    Azzalini 1985, Scandinavian Journal of Statistics 12, 171.

    Examples
    --------
    >>> round(float(SkewNormal.standardised(mean=1.0, std=2.0, shape=3.0).mean), 6)
    1.0
    """

    arg_constraints = {  # noqa: RUF012 - NumPyro's own convention
        "loc": constraints.real,
        "scale": constraints.positive,
        "shape_parameter": constraints.real,
    }
    support = constraints.real
    reparametrized_params = ("loc", "scale", "shape_parameter")
    location_scale = True  # lets inference choose its partial non-centring

    def __init__(self, loc=0.0, scale=1.0, shape_parameter=0.0, *, validate_args=None):
        self.loc, self.scale, self.shape_parameter = promote_shapes(loc, scale, shape_parameter)
        batch_shape = jnp.broadcast_shapes(jnp.shape(loc), jnp.shape(scale), jnp.shape(shape_parameter))
        super().__init__(batch_shape, (), validate_args=validate_args)

    @classmethod
    def standardised(cls, mean, std, shape) -> "SkewNormal":
        """Return the distribution with this mean and standard deviation."""
        standard_mean = _standard_mean(shape)
        scale = std / jnp.sqrt(1.0 - standard_mean**2)
        return cls(mean - scale * standard_mean, scale, shape)

    @validate_sample
    def log_prob(self, value):
        """Return the log density."""
        t = (value - self.loc) / self.scale
        normal = -0.5 * t * t - 0.5 * math.log(2.0 * math.pi) - jnp.log(self.scale)
        return math.log(2.0) + normal + log_ndtr(self.shape_parameter * t)

    def sample(self, key, sample_shape=()):
        """Draw as a weighted sum of a normal and a half normal deviate."""
        half, normal = jax.random.normal(key, (2, *sample_shape, *self.batch_shape))
        delta = self.shape_parameter / jnp.sqrt(1.0 + self.shape_parameter**2)
        return self.loc + self.scale * (delta * jnp.abs(half) + jnp.sqrt(1.0 - delta**2) * normal)

    @property
    def mean(self):
        """Mean."""
        return self.loc + self.scale * _standard_mean(self.shape_parameter)

    @property
    def variance(self):
        """Variance."""
        return self.scale**2 * (1.0 - _standard_mean(self.shape_parameter) ** 2)


def _standard_mean(shape):
    """Return the mean at location 0 and scale 1."""
    return math.sqrt(2.0 / math.pi) * shape / jnp.sqrt(1.0 + jnp.asarray(shape) ** 2)
