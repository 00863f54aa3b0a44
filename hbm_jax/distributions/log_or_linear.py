"""Reparametrisation of a positive quantity with a linear measurement error and a prior in its logarithm."""

import math

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

_LN10 = math.log(10.0)
_FAR = 20.0  # beyond it the asymptotic form holds: ln(1 + e^-20) is e^-20 to nine digits, and ln(e^20 - 1) is 20


class LogOrLinear(Transform):
    """Transform of log10 of a positive quantity to a coordinate V with an approximately normal posterior.

    A column density (or a density) is measured with an error that does not depend on its value, and its prior has a
    given width in the logarithm. Far above the error the posterior is normal in the quantity, far below it is normal in
    the logarithm. The quantity is therefore written s ln(1 + e^(w V)), with w = width ln 10 and s = error / w: V grows
    by 1 per error at large values, and by 1 per width at small values.

    Parameters
    ----------
    log_scale : (...)
        Natural logarithm of s.
    w : (...)
        Factor of V in the exponent.

    Examples
    --------
    >>> transform = LogOrLinear.of(error=0.1, width=0.5)
    >>> [round(float(transform(jnp.log10(x))), 2) for x in (1e-4, 1e-3, 1.0, 1.1)]
    [-5.88, -3.87, 10.0, 11.0]
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, log_scale, w):
        self.log_scale, self.w = log_scale, w

    @classmethod
    def of(cls, error, width) -> "LogOrLinear":
        """Build from the error of the quantity and the width of the prior of its log10, both positive."""
        w = jnp.maximum(width, 1e-6) * _LN10
        return cls(jnp.log(error) - jnp.log(w), w)

    def __call__(self, x):
        """Return V for log10 of the quantity."""
        log_u = _LN10 * x - self.log_scale
        small = log_u < -_FAR
        u = jnp.exp(jnp.where(small, 0.0, jnp.minimum(log_u, 700.0)))
        # w V = log(exp(u) - 1), which is log u for small u and u for large u.
        return jnp.where(small, log_u, u + jnp.log(-jnp.expm1(-u))) / self.w

    def _inverse(self, y):
        """Return log10 of the quantity at V."""
        v = self.w * y
        small = v < -_FAR
        log_u = jnp.where(small, v, jnp.log(jax.nn.softplus(jnp.where(small, 0.0, v))))
        return (self.log_scale + log_u) / _LN10

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        """Return ln(dV / dx), with ln u = ln 10 x - log_scale the logarithm of ln(1 + e^(w V))."""
        v = self.w * y
        small = v < -_FAR
        v = jnp.where(small, 0.0, v)
        # ln of d ln u / d(w V), which is 1 for small u.
        log_derivative = jnp.where(small, 0.0, jax.nn.log_sigmoid(v) - jnp.log(jax.nn.softplus(v)))
        return math.log(_LN10) - jnp.log(self.w) - log_derivative

    def tree_flatten(self):
        """Return the parts of the pytree, as NumPyro expects them."""
        return (self.log_scale, self.w), (("log_scale", "w"), {})

    def __eq__(self, other):
        return isinstance(other, LogOrLinear) and self.log_scale is other.log_scale and self.w is other.w

    __hash__ = None  # type: ignore[assignment]
