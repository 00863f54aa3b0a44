"""Independent priors sampled in reparametrised, unconstrained coordinates.

The priors are stated for the parameters theta; the sampler moves in an unconstrained vector y. A parameter that is
degenerate with those before it is shifted and scaled along the degeneracy before it is mapped into its support,

    theta_j = T_j( loc_j + scale_j W_j(y_j) ),    loc_j, scale_j = degeneracy_j(theta_1 ... theta_(j-1)).

W_j is the identity, or a bijection of the real line that brings the posterior of y_j closer to a normal distribution,
for example where the data give only an upper limit. The Jacobian is included, so that theta has exactly the stated
priors for any choice of degeneracy_j and W_j. A good choice leaves the components of y uncorrelated and of constant
width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints

from hbm_jax.distributions.elementary import softplus

# Width over which a soft clip turns from the identity to the bound, as a fraction of the distance between two bounds.
# A narrow hinge keeps the interior linear; a much narrower one is nearly a discontinuity in slope, which causes
# divergences where the posterior reaches the bound.
HINGE = 0.05


class CoordinatePriors(dist.Distribution):
    """Product of one-dimensional priors in unconstrained coordinates that follow degeneracies.

    Parameters
    ----------
    priors : mapping of str to numpyro.distributions.Distribution
        Scalar continuous priors by parameter name. A degeneracy may depend on the parameters before its own in this
        order.
    degeneracies : mapping of str to callable, optional
        Degeneracies: ``degeneracies[name](parameters)`` receives the dictionary of the parameters before ``name`` and
        returns the expected location of the posterior and its width (up to a constant), in units of the parameter. The
        location may lie outside the support of the prior; the width must be positive.
    bijections : mapping of str to bijection, optional
        The functions T_j, from the real line onto the support of a prior, in place of the default ones: callables with
        ``inv`` and ``log_abs_det_jacobian``, like the transforms of NumPyro.
    transforms : mapping of str to transform, optional
        The functions W_j: NumPyro transforms of the real line onto itself, applied before the shift and the scale.

    Raises
    ------
    ValueError
        If a prior is discrete or not scalar.

    Notes
    -----
    The event is the coordinate vector, shape (number of priors,). `parameters` turns it into the named parameters,
    `coordinates` is the inverse. A parameter in `degeneracies` is mapped into its support by a `SoftClip`, any other
    parameter by the bijection of NumPyro. The induced priors are tested by integrating the density, by its draws,
    and by MCMC (``tests/distributions/test_coordinates.py``).

    Examples
    --------
    >>> CoordinatePriors({"Om0": dist.Uniform(0, 1)}).parameters(np.zeros(1))["Om0"]  # doctest: +SKIP
    Array(0.5, dtype=float64)
    """

    support = constraints.real_vector

    def __init__(
        self,
        priors: Mapping[str, dist.Distribution],
        degeneracies: Mapping[str, Callable] | None = None,
        bijections: Mapping[str, Any] | None = None,
        transforms: Mapping[str, Any] | None = None,
    ):
        self.priors = dict(priors)
        self.transforms = dict(transforms or {})
        self.degeneracies = dict(degeneracies or {})
        for name, prior in self.priors.items():
            if prior.batch_shape or prior.event_shape or prior.is_discrete:
                raise ValueError(
                    f"The prior of {name} must be a continuous distribution of one number; found "
                    f"{type(prior).__name__} with batch shape {prior.batch_shape} and event shape {prior.event_shape}."
                )
        defaults = {
            name: SoftClip.onto(prior.support) if name in self.degeneracies else dist.biject_to(prior.support)
            for name, prior in self.priors.items()
        }
        self._bijections = defaults | dict(bijections or {})
        super().__init__((), (len(self.priors),), validate_args=False)

    def _location_and_scale(self, name, parameters):
        """Return the shift and the scale of the coordinate of a parameter."""
        return self.degeneracies[name](parameters) if name in self.degeneracies else (0.0, 1.0)

    def _transform(self, value):
        """Return the parameters by name and the log Jacobian of coordinates -> parameters."""
        parameters: dict[str, Any] = {}
        log_jacobian = 0.0
        for index, (name, bijection) in enumerate(self._bijections.items()):
            loc, scale = self._location_and_scale(name, parameters)
            y = value[..., index]
            if name in self.transforms:
                transformed = self.transforms[name](y)
                log_jacobian = log_jacobian + self.transforms[name].log_abs_det_jacobian(y, transformed)
                y = transformed
            unconstrained = loc + scale * y
            parameters[name] = bijection(unconstrained)
            log_derivative = bijection.log_abs_det_jacobian(unconstrained, parameters[name])
            log_jacobian = log_jacobian + log_derivative + jnp.log(scale)
        return parameters, log_jacobian

    def parameters(self, value):
        """Return the named parameters at coordinates ``value``, shape (..., number of priors)."""
        return self._transform(value)[0]

    def coordinates(self, parameters):
        """Return the coordinates (..., number of priors) of named parameters, the inverse of `parameters`."""
        columns = []
        for name, bijection in self._bijections.items():
            loc, scale = self._location_and_scale(name, parameters)
            y = (bijection.inv(jnp.asarray(parameters[name])) - loc) / scale
            columns.append(self.transforms[name].inv(y) if name in self.transforms else y)
        return jnp.stack(jnp.broadcast_arrays(*columns), axis=-1)

    def log_prob(self, value):
        """Return the log density of coordinates: the stated priors times the Jacobian."""
        parameters, log_jacobian = self._transform(value)
        return sum((prior.log_prob(parameters[name]) for name, prior in self.priors.items()), log_jacobian)

    def sample(self, key, sample_shape=()):
        """Draw parameters from the stated priors; return their coordinates ``(*sample_shape, number of priors)``."""
        keys = random.split(key, len(self.priors))
        draws = {n: p.sample(k, sample_shape) for k, (n, p) in zip(keys, self.priors.items(), strict=True)}
        return self.coordinates(draws)


class SoftClip:
    """Smooth bijection of the real line onto an interval, a half line or the line; the identity far from the bounds.

    Parameters
    ----------
    low, high : scalar
        Bounds, which may be traced; infinite numbers for no bound.
    hinge : float
        Width over which the map turns from the identity to the bound.
    """

    def __init__(self, low: Any, high: Any, hinge: Any):
        self.low, self.high, self.hinge = low, high, hinge
        self.has_low, self.has_high = (isinstance(end, jax.Array) or not np.isinf(end) for end in (low, high))

    @classmethod
    def onto(cls, support) -> "SoftClip":
        """Return the map onto the support of a prior; the hinge is 0.05 times the finite interval, or 0.05."""
        low, high = (getattr(support, f"{end}_bound", sign * np.inf) for end, sign in (("lower", -1), ("upper", 1)))
        clip = cls(low, high, HINGE)
        return cls(low, high, HINGE * (high - low)) if clip.has_low and clip.has_high else clip

    def __call__(self, y):
        """Return the image of a real number between the bounds."""
        if not (self.has_low or self.has_high):
            return y
        if not self.has_low:
            return self.high - self.hinge * softplus((y - self.high) / self.hinge)[1]
        above_low, below_low = softplus((y - self.low) / self.hinge)
        if not self.has_high:
            return self.low + self.hinge * above_low
        above_high, below_high = softplus((y - self.high) / self.hinge)
        # From the nearer bound, so that rounding cannot carry x past it.
        from_low, from_high = (
            self.low + self.hinge * (above_low - above_high),
            self.high - self.hinge * (below_high - below_low),
        )
        return jnp.where(y < 0.5 * (self.low + self.high), from_low, from_high)

    def inv(self, x):
        """Return the real number that is mapped to x."""
        rise, fall = (x - self.low) / self.hinge, (self.high - x) / self.hinge
        if not (self.has_low or self.has_high):
            return x
        if not self.has_low:
            return self.high - self.hinge * _log_expm1(fall)
        if not self.has_high:
            return self.low + self.hinge * _log_expm1(rise)
        # With two bounds, e^rise = (1 + e^a) / (1 + e^(a - width)) for a = (y - low) / hinge, solved for a.
        return self.low + self.hinge * (_log_expm1(rise) - jnp.log(-jnp.expm1(-fall)))

    def log_abs_det_jacobian(self, y, x):
        """Return the log of the derivative at y."""
        log_rise = -softplus((y - self.low) / self.hinge)[1] if self.has_low else 0.0
        log_fall = -softplus((y - self.high) / self.hinge)[0] if self.has_high else 0.0
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)); b - a does not depend on y.
        both = jnp.log(-jnp.expm1((self.low - self.high) / self.hinge)) if self.has_low and self.has_high else 0.0
        return log_rise + log_fall + both


def _log_expm1(x):
    """Return log(e^x - 1) for x > 0, without overflow."""
    return x + jnp.log(-jnp.expm1(-x))
