"""Dark energy beyond w0 + wa z / (1 + z): w in bins of redshift, or any user-defined function.

`BinnedDarkEnergy` and `CustomDarkEnergy` are values of the argument ``dark_energy`` of a cosmology. Distances use two
of their attributes: ``density(u)``, the density at u = log(1 + z) relative to today, exp(3 int_0^u (1 + w) du'), and
``breaks``, the redshifts at which w is not smooth. `DistanceFunction` replaces a whole cosmology.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Gauss-Legendre nodes for the integral of a user-defined w. Relative error of the density: 1e-12 for
# w0 + wa z / (1 + z) up to z = 1100, and 1e-8 for a step of w smoothed over 0.1 in log(1 + z), up to z = 3.
NUM_NODES = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BinnedDarkEnergy:
    """Dark energy with an equation of state that is constant in bins of redshift.

    Parameters
    ----------
    edges : tuple of float
        Redshifts that separate the bins, increasing and above 0. The first bin begins at z = 0, the last is open.
    w : array (len(edges) + 1,)
        Equation of state in each bin.

    Notes
    -----
    The density is exact: the product over bins of exp(3 (1 + w_k) du_k), where du_k is the part of [0, log(1 + z)] in
    bin k. It is continuous, with a discontinuous slope at the edges.

    Examples
    --------
    >>> BinnedDarkEnergy((0.5,), jnp.array([-1.0, 0.0])).density(jnp.log(3.0))  # (3 / 1.5)^3
    Array(8., dtype=float64)
    """

    edges: tuple[float, ...] = field(metadata={"static": True})
    w: Any

    @property
    def breaks(self) -> tuple[float, ...]:
        """Redshifts at which the equation of state is discontinuous."""
        return self.edges

    def density(self, u: Any) -> jax.Array:
        """Return the density at u = log(1 + z), of any shape, relative to today."""
        edges = np.log1p(np.array([0.0, *self.edges]))
        widths = np.append(np.diff(edges), np.inf)
        lower = np.where(edges == 0.0, -np.inf, 0.0)  # no lower bound at u = 0, where clip would halve the gradient
        du = jnp.clip(jnp.asarray(u)[..., None] - edges, lower, widths)
        return jnp.exp(3.0 * jnp.sum((1.0 + jnp.asarray(self.w)) * du, axis=-1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CustomDarkEnergy:
    """Dark energy with a user-defined equation of state.

    Parameters
    ----------
    function : callable
        ``w(z, parameters)``, written with jax.numpy, for z of any shape.
    parameters : mapping of str to scalar
        Second argument of the function; values may be traced.
    breaks : tuple of float
        Redshifts at which w is not smooth, if any. Integrals over redshift are split there.

    Notes
    -----
    The integral of 1 + w over log(1 + z) uses 64 Gauss-Legendre nodes in each interval between breaks.

    Examples
    --------
    >>> CustomDarkEnergy(lambda z, p: p["w"] + 0.0 * z, {"w": -0.9}).density(jnp.log(2.0))  # 2^0.3
    Array(1.23114441, dtype=float64)
    """

    function: Callable[[Any, Mapping[str, Any]], Any] = field(metadata={"static": True})
    parameters: Mapping[str, Any]
    breaks: tuple[float, ...] = field(default=(), metadata={"static": True})

    def density(self, u: Any) -> jax.Array:
        """Return the density at u = log(1 + z), of any shape, relative to today."""
        x, weights = np.polynomial.legendre.leggauss(NUM_NODES)
        u = jnp.asarray(u)
        edges = np.log1p(np.array([0.0, *self.breaks, np.inf]))
        exponent = jnp.zeros_like(u)
        for low, high in itertools.pairwise(edges):
            # The first interval extends to negative redshifts.
            width = jnp.clip(u - low, 0.0 if low > 0 else -np.inf, high - low)
            nodes = low + width[..., None] * (0.5 * (x + 1.0))
            values = 1.0 + self.function(jnp.expm1(nodes), self.parameters)
            exponent = exponent + width * jnp.sum(0.5 * weights * values, axis=-1)
        return jnp.exp(3.0 * exponent)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DistanceFunction:
    """A user-defined distance-redshift relation, such as a cosmographic series or modified gravity.

    It replaces a `Cosmology` in distance functions (`distmod`, `luminosity_distance` and so on) and in the methods of
    `RedshiftGrid` and `RedshiftMatrix` with the same names. Times and volumes are not available.

    Parameters
    ----------
    function : callable
        ``transverse_comoving_distance(z, parameters)`` [Mpc], written with jax.numpy, for z of any shape. It must go to
        zero with z.
    parameters : mapping of str to scalar
        Second argument of the function; values may be traced.
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
        """Return the transverse comoving distance [Mpc] at redshifts of any shape."""
        return jnp.asarray(self.function(z, self.parameters))


def breaks_of(cosmology: Any) -> tuple[float, ...]:
    """Return the redshifts at which the expansion history of a cosmology is not smooth."""
    dark_energy = getattr(cosmology, "dark_energy", None)
    return tuple(getattr(cosmology if dark_energy is None else dark_energy, "breaks", ()))
