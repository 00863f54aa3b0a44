"""Distances, times and volumes as functions of two integrals along the line of sight.

`LinesOfSight` contains each formula once; its subclasses hold the redshifts and choose the quadrature.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology import quadrature
from hbm_jax.cosmology.dark_energy import DistanceFunction
from hbm_jax.cosmology.expansion import Cosmology, efunc, guarded_inverse_e, is_exactly

# Three doublings: the series is summed at an eighth of the angle. 12 terms are accurate to 1e-13 up to 25 rad, far more
# than any universe with E^2 > 0.01 needs.
_SERIES_TERMS = 12
_DOUBLINGS = 3
_SINE_SERIES = 1.0 / np.cumprod([1.0, *[2.0 * n * (2 * n + 1) for n in range(1, _SERIES_TERMS)]])
_COSINE_SERIES = 1.0 / np.cumprod([1.0, *[2.0 * n * (2 * n - 1) for n in range(1, _SERIES_TERMS)]])


def curvature_factor(k: jax.Array) -> jax.Array:
    """Return sinh(sqrt k) / sqrt k, equal to sin(sqrt -k) / sqrt(-k) for negative k: one entire function of k.

    Power series are summed at k / 64; three doublings of the argument of sine and cosine then give the value at k.
    There is no branch, square root or quotient, so all derivatives are correct for either sign of k and at zero.
    Accurate to 1e-13 for |k| < 600.
    """
    small = k / 4.0**_DOUBLINGS
    sine = cosine = jnp.zeros_like(small)
    for s, c in zip(_SINE_SERIES[::-1], _COSINE_SERIES[::-1], strict=True):
        sine = sine * small + float(s)
        cosine = cosine * small + float(c)
    # With x = sqrt k: sinh(2 x) / (2 x) = (sinh(x) / x) cosh(x), and cosh(2 x) = 2 cosh(x)^2 - 1.
    for _ in range(_DOUBLINGS):
        sine = sine * cosine
        cosine = 2.0 * cosine * cosine - 1.0
    return sine


class LinesOfSight:
    """Redshifts, and distances, times and volumes at them; NaN outside the domain (see `distances`)."""

    z: Any
    z_hel: Any

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of e^(power u) / E over u from 0 to log(1 + z), and the mask of its domain."""
        raise NotImplementedError

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of 1 / E over u from log(1 + z) to infinity, and the mask of its domain."""
        raise NotImplementedError

    def efunc(self, cosmology: Cosmology) -> jax.Array:
        """Return the expansion rate H(z)/H0, as `hbm_jax.cosmology.efunc`."""
        return efunc(self.z, cosmology)

    def comoving_distance(self, cosmology: Cosmology) -> jax.Array:
        """Return the line-of-sight comoving distance [Mpc], as `hbm_jax.cosmology.comoving_distance`."""
        value, in_domain = self.integral(1, cosmology)
        return _or_nan(in_domain, cosmology.hubble_distance * value)

    def transverse_comoving_distance(self, cosmology: Cosmology) -> jax.Array:
        """Return the transverse comoving distance [Mpc], as `hbm_jax.cosmology.transverse_comoving_distance`."""
        value, in_domain = self._transverse(cosmology)
        return _or_nan(in_domain, value)

    def luminosity_distance(self, cosmology: Cosmology) -> jax.Array:
        """Return the luminosity distance [Mpc], as `hbm_jax.cosmology.luminosity_distance`."""
        value, in_domain = self._transverse(cosmology)
        return _or_nan(in_domain, (1.0 + self.z_hel) * value)

    def angular_diameter_distance(self, cosmology: Cosmology) -> jax.Array:
        """Return the angular diameter distance [Mpc], as `hbm_jax.cosmology.angular_diameter_distance`."""
        value, in_domain = self._transverse(cosmology)
        return _or_nan(in_domain, value / (1.0 + self.z))

    def distmod(self, cosmology: Cosmology) -> jax.Array:
        """Return the distance modulus [mag], as `hbm_jax.cosmology.distmod`."""
        value, in_domain = self._transverse(cosmology)
        return _or_nan(in_domain, 5.0 * jnp.log10((1.0 + self.z_hel) * value) + 25.0)

    def lookback_time(self, cosmology: Cosmology) -> jax.Array:
        """Return the lookback time [Gyr], as `hbm_jax.cosmology.lookback_time`."""
        value, in_domain = self.integral(0, cosmology)
        return _or_nan(in_domain, cosmology.hubble_time * value)

    def age(self, cosmology: Cosmology) -> jax.Array:
        """Return the age of the universe [Gyr], as `hbm_jax.cosmology.age`."""
        value, in_domain = self.integral_to_infinity(cosmology)
        return _or_nan(in_domain, cosmology.hubble_time * value)

    def differential_comoving_volume(self, cosmology: Cosmology) -> jax.Array:
        """Return the comoving volume [Mpc^3/sr] per redshift, as `hbm_jax.cosmology.differential_comoving_volume`."""
        value, in_domain = self._transverse(cosmology)
        inverse_e, positive = guarded_inverse_e(jnp.log1p(self.z), cosmology)
        return _or_nan(in_domain & positive, cosmology.hubble_distance * value**2 * inverse_e)

    def _transverse(self, cosmology: Any) -> tuple[jax.Array, jax.Array]:
        """Return the transverse comoving distance [Mpc], and the mask of its domain."""
        if isinstance(cosmology, DistanceFunction):
            return cosmology.transverse_comoving_distance(self.z), jnp.asarray(True)
        value, in_domain = self.integral(1, cosmology)
        if not is_exactly(cosmology.Ok0, 0):
            value = value * curvature_factor(cosmology.Ok0 * value**2)
        return cosmology.hubble_distance * value, in_domain


class FewLinesOfSight(LinesOfSight):
    """A few redshifts, each with its own quadrature."""

    def __init__(self, z: jax.Array, z_hel: jax.Array | None = None):
        self.z = z
        self.z_hel = z if z_hel is None else z_hel
        self._u, self._inside = quadrature.log_redshift(z)

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of e^(power u) / E over u from 0 to log(1 + z), and the mask of its domain."""
        value, positive = quadrature.integral_direct(self._u, power, cosmology)
        return value, positive & self._inside

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of 1 / E over u from log(1 + z) to infinity, and the mask of its domain."""
        value, positive = quadrature.tail_direct(self._u, cosmology)
        return value, positive & self._inside


def _or_nan(in_domain: jax.Array, value: jax.Array) -> jax.Array:
    """Return a value, NaN outside its domain."""
    # Must be the last step: 0 times NaN is NaN, so a NaN earlier in the program would spoil even a masked gradient.
    return jnp.where(in_domain, value, np.nan)
