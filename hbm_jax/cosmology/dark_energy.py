"""Dark energy other than w0 + wa z / (1 + z): its equation of state in bins of redshift, or any function of a user's.

An object of this module is a cosmology's ``dark_energy``. All that distances need of it is ``density(u)``, the density
at u = log(1 + z) over that of today, exp(3 int_0^u (1 + w) du'), and ``breaks``, the redshifts where w is not smooth.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Gauss-Legendre nodes on [0, u] of the integral of a user's w: 1e-12 of the density for w0 + wa z / (1 + z) out to
# z = 1100, and 1e-8 for a step of w smoothed over 0.1 in log(1 + z), out to z = 3.
NUM_NODES = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BinnedDarkEnergy:
    """Dark energy whose equation of state is constant in bins of redshift.

    Parameters
    ----------
    edges : tuple of float
        Redshifts that separate the bins, increasing and above 0; the first bin begins at 0, the last has no end.
    w : array (len(edges) + 1,)
        Equation of state in each bin.

    Notes
    -----
    The density is exact: the product over bins of the factors exp(3 (1 + w_k) du_k), du_k being how much of log(1 + z)
    lies in bin k. It is continuous; its slope is not.

    Examples
    --------
    >>> BinnedDarkEnergy((0.5,), jnp.array([-1.0, 0.0])).density(jnp.log(3.0))  # (3 / 1.5)^3
    Array(8., dtype=float64)
    """

    edges: tuple[float, ...] = field(metadata={"static": True})
    w: Any

    @property
    def breaks(self) -> tuple[float, ...]:
        """Redshifts at which the equation of state jumps."""
        return self.edges

    def density(self, u: Any) -> jax.Array:
        """Density over today's at u = log(1 + z), any shape."""
        ends = np.log1p(np.array([0.0, *self.edges]))
        widths = np.append(np.diff(ends), np.inf)
        least = np.where(ends == 0.0, -np.inf, 0.0)  # no corner at today, where the slope of clip would be half of it
        inside = jnp.clip(jnp.asarray(u)[..., None] - ends, least, widths)
        return jnp.exp(3.0 * jnp.sum((1.0 + jnp.asarray(self.w)) * inside, axis=-1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CustomDarkEnergy:
    """Dark energy with an equation of state of the user's own.

    Parameters
    ----------
    function : callable
        ``w(z, parameters)``, written with jax.numpy, for z of any shape.
    parameters : mapping of str to scalar
        What the function takes, possibly traced.
    breaks : tuple of float
        Redshifts at which w is not smooth, if any: panels of the distance integral end there.

    Notes
    -----
    The integral of 1 + w over log(1 + z) is by 64 Gauss-Legendre nodes on [0, log(1 + z)], cut at the breaks.

    Examples
    --------
    >>> CustomDarkEnergy(lambda z, p: p["w"] + 0.0 * z, {"w": -0.9}).density(jnp.log(2.0))  # 2^0.3
    Array(1.23114441, dtype=float64)
    """

    function: Callable[[Any, Mapping[str, Any]], Any] = field(metadata={"static": True})
    parameters: Mapping[str, Any]
    breaks: tuple[float, ...] = field(default=(), metadata={"static": True})

    def density(self, u: Any) -> jax.Array:
        """Density over today's at u = log(1 + z), any shape."""
        x, weights = np.polynomial.legendre.leggauss(NUM_NODES)
        u = jnp.asarray(u)
        ends = np.log1p(np.array([0.0, *self.breaks, np.inf]))
        exponent = jnp.zeros_like(u)
        for low, high in itertools.pairwise(ends):
            width = jnp.clip(u - low, 0.0 if low else -np.inf, high - low)
            nodes = low + width[..., None] * (0.5 * (x + 1.0))
            values = 1.0 + self.function(jnp.expm1(nodes), self.parameters)
            exponent = exponent + width * jnp.sum(0.5 * weights * values, axis=-1)
        return jnp.exp(3.0 * exponent)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DistanceFunction:
    """A universe known by its distances alone, by a function of the user's own: cosmography, or another gravity.

    Takes the place of a `Cosmology` where distances are asked for (`distmod`, `luminosity_distance` and so on, of
    functions, `RedshiftGrid` and `RedshiftMatrix`); times and volumes it does not know.

    Parameters
    ----------
    function : callable
        ``transverse_comoving_distance(z, parameters)`` [Mpc], written with jax.numpy, for z of any shape. It must go to
        zero with z.
    parameters : mapping of str to scalar
        What the function takes, possibly traced.
    breaks : tuple of float
        Redshifts at which the function is not smooth, if any.

    Examples
    --------
    >>> DistanceFunction(lambda z, p: 299792.458 / p["H0"] * jnp.log1p(z), {"H0": 70.0})  # doctest: +SKIP
    """

    function: Callable[[Any, Mapping[str, Any]], Any] = field(metadata={"static": True})
    parameters: Mapping[str, Any]
    breaks: tuple[float, ...] = field(default=(), metadata={"static": True})

    def transverse_comoving_distance(self, z: Any) -> jax.Array:
        """Transverse comoving distance [Mpc] at z of any shape."""
        return jnp.asarray(self.function(z, self.parameters))


def breaks_of(cosmology: Any) -> tuple[float, ...]:
    """Redshifts at which the expansion of a universe is not smooth."""
    dark_energy = getattr(cosmology, "dark_energy", None)
    return tuple(getattr(cosmology if dark_energy is None else dark_energy, "breaks", ()))
