"""The ridge that supernovae leave in (Om0, w0), and coordinates in which it is straight.

Models along it predict nearly the same relative distances. NUTS takes short steps on a curved ridge, so the parameters
are sampled in coordinates that follow it, while the priors on the parameters themselves stay exactly as stated.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from hbm_jax.distributions import SoftClip

# The ridge of supernova distances in flat universes, fitted to JLA's posterior: where w0 is and how wide, given Om0.
# It steers the sampler and cannot change what is sampled.
_RIDGE = (-0.126, -0.408, -2.0)  # w0 = -0.126 - 0.408 (1 - Om0)^(-2)
_WIDTH_POWER = -2.8
# Along it the posterior is close to a Gaussian in a power of 1 - 0.9 Om0 that bends close to the bounds only: of JLA it
# has an excess kurtosis of 0.3 and a skewness of -0.3; with the power -1.5 and a hinge of 0.3, 2.4 and -0.9. A narrower
# hinge makes divergences where some 30 supernovae leave Om0 free between its bounds.
_MATTER_POWER = -1.8
_HINGE = 0.2


def _w0_ridge(parameters):
    """w0 at which supernova distances stay about the same, and the width of the posterior about it up to a constant."""
    dark_energy = jnp.maximum(1.0 - parameters["Om0"], 0.2)  # a floor, to stay finite at the end of the prior's range
    loc = _RIDGE[0] + _RIDGE[1] * dark_energy ** _RIDGE[2] - 0.2 * parameters.get("wa", 0.0)
    return loc, dark_energy**_WIDTH_POWER


class _MatterBijection:
    """Om0 in [low, high] from a real number, straight in a power of 1 - 0.9 Om0 away from the bounds, high <= 1.

    The factor 0.9 bounds the range for high = 1, without which a sample that says little would wander off towards 1.
    """

    def __init__(self, low: float, high: float):
        self._clip = SoftClip(self._straight(low), self._straight(high), _HINGE)

    @staticmethod
    def _straight(matter):
        return (1.0 - 0.9 * matter) ** _MATTER_POWER

    def __call__(self, y):
        return (1.0 - self._clip(y) ** (1.0 / _MATTER_POWER)) / 0.9

    def inv(self, x):
        return self._clip.inv(self._straight(x))

    def log_abs_det_jacobian(self, y, x):
        straight = self._clip(y)
        log_slope = -math.log(-0.9 * _MATTER_POWER) + (1.0 / _MATTER_POWER - 1.0) * jnp.log(straight)
        return self._clip.log_abs_det_jacobian(y, straight) + log_slope


def supernova_ridge(free: Mapping[str, Any], fixed: Mapping[str, float]) -> tuple[dict, dict]:
    """Ridges and bijections for the free parameters, as `hbm_jax.distributions.CoordinatePriors` takes them.

    Parameters
    ----------
    free : mapping of str to Distribution
        Parameters of the expansion history that have a prior.
    fixed : mapping of str to float
        Those held fixed.
    """
    if "w0" not in free or "Om0" not in free or "Ode0" in free:
        # With curvature too, JLA's posterior fills the priors' box; following a ridge into its walls was worse.
        return {}, {}
    low, high = (float(getattr(free["Om0"].support, f"{end}_bound", math.nan)) for end in ("lower", "upper"))
    bijections = {"Om0": _MatterBijection(low, high)} if low >= 0.0 and high <= 1.0 else {}
    return {"w0": lambda parameters: _w0_ridge(fixed | parameters)}, bijections
