"""Reparametrisation of (Om0, w0) along the degeneracy of supernova distances.

Models along the degeneracy curve predict nearly the same relative distances. NUTS takes short steps where a posterior
is narrow and curved, so the parameters are sampled in coordinates in which it is close to a Gaussian. The priors of the
parameters themselves stay exactly as stated.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from hbm_jax.distributions import SoftClip

# Degeneracy curve of supernova distances in flat universes, fitted to the JLA posterior: the location and width of w0
# for a given Om0. They affect the efficiency of the sampler only.
_DEGENERACY = (-0.126, -0.408, -2.0)  # w0 = -0.126 - 0.408 (1 - Om0)^(-2)
_WIDTH_POWER = -2.8
# Along the curve the posterior is close to a Gaussian in a power of 1 - 0.9 Om0, clipped softly at the bounds. For JLA
# its excess kurtosis is 0.3 and its skewness -0.3; with the power -1.5 and a hinge of 0.3 they are 2.4 and -0.9. With a
# narrower hinge NUTS diverges for samples of some 30 supernovae, which leave Om0 free between its bounds.
_MATTER_POWER = -1.8
_HINGE = 0.2


def _w0_degeneracy(parameters):
    """Return w0 on the degeneracy curve, and the posterior width about it up to a constant."""
    dark_energy = jnp.maximum(1.0 - parameters["Om0"], 0.2)  # the minimum keeps the curve finite at Om0 = 1
    loc = _DEGENERACY[0] + _DEGENERACY[1] * dark_energy ** _DEGENERACY[2] - 0.2 * parameters.get("wa", 0.0)
    return loc, dark_energy**_WIDTH_POWER


class _MatterBijection:
    """Bijection from the real line to Om0 in [low, high]: a power of 1 - 0.9 Om0 away from the bounds.

    The factor 0.9 keeps the power finite at Om0 = 1; for bounds above 1 it is 0.9 / high. Otherwise the chain of a
    weakly constraining sample drifts to 1. The bounds may be traced.
    """

    def __init__(self, low: Any, high: Any):
        self._factor = 0.9 / jnp.maximum(1.0, high)
        self._clip = SoftClip(self._power(low), self._power(high), _HINGE)

    def _power(self, matter):
        return (1.0 - self._factor * matter) ** _MATTER_POWER

    def __call__(self, y):
        return (1.0 - self._clip(y) ** (1.0 / _MATTER_POWER)) / self._factor

    def inv(self, x):
        return self._clip.inv(self._power(x))

    def log_abs_det_jacobian(self, y, x):
        """Return the log of dOm0 / dy."""
        power = self._clip(y)
        log_slope = -jnp.log(-_MATTER_POWER * self._factor) + (1.0 / _MATTER_POWER - 1.0) * jnp.log(power)
        return self._clip.log_abs_det_jacobian(y, power) + log_slope


def supernova_degeneracy(free: Mapping[str, Any], fixed: Mapping[str, float]) -> tuple[dict, dict]:
    """Return the degeneracies and bijections of `hbm_jax.distributions.CoordinatePriors` for the free parameters.

    Parameters
    ----------
    free : mapping of str to Distribution
        Priors of the free parameters of the expansion history.
    fixed : mapping of str to float
        Values of the fixed parameters.
    """
    if "w0" not in free or "Om0" not in free or "Ode0" in free:
        # With free curvature the JLA posterior reaches the bounds of the priors; these coordinates made sampling worse.
        return {}, {}
    support = free["Om0"].support
    is_bounded = hasattr(support, "lower_bound") and hasattr(support, "upper_bound")
    bijections = {"Om0": _MatterBijection(support.lower_bound, support.upper_bound)} if is_bounded else {}
    return {"w0": lambda parameters: _w0_degeneracy(fixed | parameters)}, bijections
