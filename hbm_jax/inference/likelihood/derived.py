"""Profile likelihood of a quantity that is a function of the parameters, such as the flux of a spectral component.

The likelihood is not maximised with the quantity fixed, but with a penalty that is the square of its distance from a
value. Among all parameters with the same quantity, those of the penalised maximum have the highest likelihood, because
the penalty is the same for them. Each penalised maximum is therefore a point of the profile, and the bounds of the
parameters apply as in the profiles of parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.likelihood.profile import CROSSING, PROFILE_STEPS
from hbm_jax.inference.likelihood.search import SAME, newton

STIFFNESS = 4.0  # curvature of the penalty relative to that of the profile; smaller ones jump where the profile bends


class ProfileEnd(NamedTuple):
    """End of an interval of the profile likelihood of a quantity.

    Attributes
    ----------
    value : float
        The end; NaN if it was not found.
    is_open : bool
        Whether the likelihood has not fallen enough there: at the bounds of the priors, or beyond ``reach``.
    """

    value: float
    is_open: bool


def quantity_interval(
    likelihood: Likelihood,
    center: np.ndarray,
    quantity: Callable[[np.ndarray], tuple[float, np.ndarray]],
    curvature: Callable[[np.ndarray], np.ndarray],
    *,
    std: float,
    rise: float,
    reach: tuple[float, float],
) -> tuple[ProfileEnd, ProfileEnd]:
    """Return the ends of the profile-likelihood interval of a quantity; call it with 64-bit JAX.

    Parameters
    ----------
    likelihood : Likelihood
        The likelihood.
    center : (size,)
        Parameters at its maximum.
    quantity : callable
        (size,) -> the quantity and its gradient, (size,).
    curvature : callable
        (size,) -> Hessian of the quantity, (size, size); its errors only change the number of Newton steps.
    std : float
        Standard deviation of the quantity from the curvature of the likelihood, positive; a guess suffices.
    rise : float
        Fall of the log likelihood at the ends.
    reach : (float, float)
        Distances below and above the value at the maximum beyond which the interval is open.
    """
    value, gradient = quantity(center)
    if not gradient.any():  # nothing that is free changes it
        return ProfileEnd(value, False), ProfileEnd(value, False)
    penalised = _Penalised(likelihood, quantity, curvature, STIFFNESS / std**2)
    target = float(np.sqrt(2.0 * rise))
    return _end(penalised, center, -1.0, std, target, reach[0]), _end(penalised, center, 1.0, std, target, reach[1])


class _Penalised:
    """Minus log likelihood plus half the squared distance of a quantity from a target, times a stiffness."""

    def __init__(self, likelihood: Likelihood, quantity: Callable, curvature: Callable, stiffness: float):
        self.likelihood, self.quantity, self.curvature, self.stiffness = likelihood, quantity, curvature, stiffness
        self.lower, self.upper, self.target = likelihood.lower, likelihood.upper, 0.0

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the penalised value and its gradient; infinite where the quantity is not finite."""
        value, gradient = self.likelihood.value_and_grad(x)
        derived, slope = self.quantity(x)
        excess = derived - self.target
        if not (np.isfinite(excess) and np.isfinite(slope).all()):
            return np.inf, np.full_like(gradient, np.nan)
        return value + 0.5 * self.stiffness * excess**2, gradient + self.stiffness * excess * slope

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessian."""
        derived, slope = self.quantity(x)
        penalty = np.outer(slope, slope) + (derived - self.target) * self.curvature(x)
        return self.likelihood.hessian(x) + self.stiffness * penalty


def _end(penalised: _Penalised, center: np.ndarray, sign: float, std: float, target: float, reach: float) -> ProfileEnd:
    """Search for the penalty at whose maximum the square root of the rise in -2 log likelihood equals ``target``."""
    lowest, at_best = penalised.likelihood.value_and_grad(center)[0], penalised.quantity(center)[0]
    inner, outer, x = (0.0, 0.0), None, center  # (distance of the penalty, root) of trials within and beyond the end
    distance = target * std * (1.0 + 1.0 / STIFFNESS)  # exact for a normal likelihood
    for _ in range(PROFILE_STEPS):
        penalised.target = at_best + sign * distance
        point = newton(penalised, x)  # type: ignore[arg-type]
        derived = penalised.quantity(point.x)[0]
        excess = penalised.likelihood.value_and_grad(point.x)[0] - lowest
        if not point.converged or excess < -SAME:  # a better maximum: the best fit is not the best
            return ProfileEnd(np.nan, False)
        root = float(np.sqrt(2.0 * max(excess, 0.0)))
        if abs(root - target) < CROSSING * target:
            return ProfileEnd(derived, False)
        if root < target:
            stays = outer is None and inner[0] > 0 and np.allclose(point.x, x, rtol=1e-12, atol=1e-12)
            if stays or abs(derived - at_best) > reach:
                return ProfileEnd(derived, True)
            inner, x = (distance, root), point.x
            if outer is None:
                distance *= np.clip(1.05 * target / max(root, 1e-300), 1.1, 3.0)
                continue
        else:
            outer = (distance, root)
        gap = outer[0] - inner[0]
        if gap < 1e-9 * outer[0]:  # the profile jumps
            return ProfileEnd(np.nan, False)
        distance = inner[0] + gap * float(np.clip((target - inner[1]) / (outer[1] - inner[1]), 0.02, 0.98))
    return ProfileEnd(np.nan, False)
