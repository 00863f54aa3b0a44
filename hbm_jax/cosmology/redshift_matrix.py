"""Distances to the redshifts of a sample by one small constant matrix, for gradient-based samplers."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from hbm_jax.cosmology import quadrature
from hbm_jax.cosmology.expansion import Cosmology, guarded_inverse_e
from hbm_jax.cosmology.line_of_sight import LinesOfSight
from hbm_jax.cosmology.redshift_grid import both_redshifts

FULL = jax.lax.Precision.HIGHEST  # accelerators compute matrix products with a few digits by default

# Largest relative errors for z <= 2.4: for Om0 = 0.3 and a cosmological constant 2e-10 (16 nodes), 4e-15 (24); over all
# flat universes with w0 in [-3, 0] 1e-3 (16), 1e-5 (24), 1e-7 (32), 2e-9 (40), reached at Om0 < 0.01, w0 < -2.5.
NUM_NODES = 32
# Beyond this redshift the singularities of 1/E are closer relative to the width of the interval. NUM_NODES more nodes
# for each unit of log(1 + z) keep the errors stated in the docstring: 80 nodes at z = 10. The density of nodes at lower
# redshift, 26 per unit, would be too low where wa is free: an error of 2e-4 at z = 5.
_Z_OF_NUM_NODES = 2.4
NODE_STEP = 16  # nodes; samples that reach similar redshifts then have matrices of equal shape
_SMALLEST_RANGE = 1e-3  # of log(1 + z), so that the nodes differ even if all redshifts are zero


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RedshiftMatrix(LinesOfSight):
    """Fixed redshifts whose distances are one constant matrix times 1/E at a few Chebyshev nodes.

    An alternative to `RedshiftGrid` for fits: without a look-up in the forward pass there is no scatter in the
    gradient, and much less to compile. However, the error depends on the cosmology. It falls geometrically with the
    number of nodes, but more slowly the closer E^2 comes to zero below the largest redshift.

    Parameters
    ----------
    z : array (N,)
        Redshift of the expansion (in the CMB frame), finite and not negative.
    z_hel : array (N,), optional
        Observed redshift, used in the factor 1 + z_hel of the luminosity distance. None: z.
    num_nodes : int, optional
        Number of Chebyshev nodes in log(1 + z) between 0 and the largest redshift. None: 32, and 32 more for each unit
        of log(1 + z) beyond z = 2.4, in steps of 16, so that most samples have the same number and can be stacked.
    breaks : tuple of float
        Redshifts at which the expansion history is not smooth, such as the edges of `BinnedDarkEnergy`. Nodes are
        divided among the panels between them, in steps of 16, so that the errors stated below still hold.
    z_max : float, optional
        Upper end of the nodes, at least the largest redshift. None: the largest redshift. Matrices of several samples
        with the same ``z_max`` have equal structure.

    Raises
    ------
    ValueError
        If a redshift is not finite, negative, traced or above z_max, or if the shapes of z and z_hel differ.

    Notes
    -----
    The object is a pytree: build it outside of a NumPyro program, and pass it as an argument.

    Methods have the names and meaning of the functions of `hbm_jax.cosmology`, with the cosmology as the only argument.
    Largest relative differences of distances for z <= 10 over the default priors of the supernova model, reached for
    phantom dark energy: 1e-7 in flat universes with constant w0, 1e-4 with wa, and 3e-5 with curvature where E^2 > 0.2
    up to the largest redshift. Near the concordance cosmology: 1e-14 for z <= 2.4 and 1e-13 for z <= 10
    (``tests/cosmology/test_redshift_matrix.py``). If E^2 is not positive at some node, all distances are NaN.

    Examples
    --------
    >>> RedshiftMatrix([0.1, 0.5, 1.0]).distmod(Cosmology.flat(H0=70.0, Om0=0.3))
    """

    z: Any
    z_hel: Any = None
    num_nodes: int | None = field(default=None, metadata={"static": True})
    breaks: tuple[float, ...] = field(default=(), metadata={"static": True})
    z_max: float | None = field(default=None, metadata={"static": True})
    matrix: Any = field(default=None, repr=False)  # (N, num_nodes): mean over [0, u] of the interpolated integrand
    nodes: Any = field(default=None, repr=False)  # (num_nodes,): log(1 + z)
    u: Any = field(default=None, repr=False)  # (N,): log(1 + z)

    def __post_init__(self):
        # JAX rebuilds the object from leaves of any kind; only a new object is precomputed.
        if self.matrix is not None or self.z is None:
            return
        z, z_hel = both_redshifts(self.z, self.z_hel)
        parts = _matrix_fields(z, z_hel, self.num_nodes, self.breaks, self.z_max)
        for name, value in (parts | {"z_max": None}).items():  # a static field must not differ between samples
            object.__setattr__(self, name, value)

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of e^(power u) / E over u from 0 to log(1 + z), and the mask of its domain."""
        inverse_e, positive = guarded_inverse_e(self.nodes, cosmology)
        integrand = inverse_e if power == 0 else jnp.exp(power * self.nodes) * inverse_e
        return self.u * jnp.matmul(self.matrix, integrand, precision=FULL), jnp.all(positive)

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of 1 / E over u from log(1 + z) to infinity, and the mask of its domain."""
        return quadrature.tail_direct(jnp.asarray(self.u), cosmology)


def chebyshev_points(num: int) -> np.ndarray:
    """Return Chebyshev nodes of the first kind on [-1, 1]."""
    return np.cos(np.pi * (np.arange(num) + 0.5) / num)


def nodes_per_panel(num_nodes: int, u_breaks: np.ndarray, u_max: float) -> list[int]:
    """Return the number of nodes in each panel of log(1 + z), proportional to its width, in steps of 16."""
    if not len(u_breaks):
        return [num_nodes]
    widths = np.diff(np.concatenate([[0.0], u_breaks, [u_max]]))
    return [NODE_STEP * max(1, math.ceil(num_nodes * width / u_max / NODE_STEP)) for width in widths]


def enough_nodes(u_max: float) -> int:
    """Return the number of nodes that keeps the documented errors up to log(1 + z) = u_max."""
    beyond = NUM_NODES * max(u_max - math.log1p(_Z_OF_NUM_NODES), 0.0)
    return NUM_NODES + NODE_STEP * math.ceil(beyond / NODE_STEP)


def chebyshev_panels(
    z: np.ndarray, breaks: tuple[float, ...], z_max: float | None, num_nodes: int | None = None
) -> tuple[np.ndarray, list[tuple[float, float, np.ndarray]]]:
    """Return u = log(1 + z), and lower end, upper end and Chebyshev points in [-1, 1] of each panel in u.

    Raises
    ------
    ValueError
        If a redshift is above z_max.
    """
    u = np.log1p(z)
    if z_max is not None and np.max(z) > z_max:
        raise ValueError(f"z_max: expected at least the largest redshift, {np.max(z):g}; found {z_max:g}.")
    u_max = max(float(np.max(u) if z_max is None else np.log1p(z_max)), _SMALLEST_RANGE)
    u_breaks = np.log1p(np.array(breaks, dtype=float))
    u_breaks = u_breaks[u_breaks < u_max]
    counts = nodes_per_panel(num_nodes or enough_nodes(u_max), u_breaks, u_max)
    limits = itertools.pairwise([0.0, *u_breaks, u_max])
    return u, [(low, high, chebyshev_points(count)) for count, (low, high) in zip(counts, limits, strict=True)]


def mean_coefficients(points: np.ndarray) -> np.ndarray:
    """Return the matrix C with which T(x) @ C gives the mean of an interpolant over [-1, x] from its values at points.

    T are the Chebyshev polynomials, and the points are Chebyshev nodes. The mean, unlike the integral, keeps its
    relative accuracy as x goes to -1.
    """
    num = len(points)
    # Means of each T_k over [-1, x], with x at the nodes; Gauss-Legendre quadrature is exact.
    from_values = np.linalg.inv(chebyshev.chebvander(points, num - 1))
    nodes, weights = np.polynomial.legendre.leggauss(num // 2 + 1)
    abscissae = -1.0 + 0.5 * (points[:, None] + 1.0) * (nodes + 1.0)
    means = np.stack([np.cos(k * np.arccos(abscissae)) @ (0.5 * weights) for k in range(num)], axis=-1)
    return from_values @ means @ from_values


def _matrix_fields(z, z_hel, num_nodes, breaks, z_max) -> dict[str, Any]:
    """Return the fields of the matrix of concrete redshifts."""
    u, panels = chebyshev_panels(z, breaks, z_max, num_nodes)
    blocks: list = []
    for low, high, points in panels:
        length = np.clip(u - low, 0.0, high - low)  # of the part of [0, u] in the panel
        x, count = 2.0 * length / (high - low) - 1.0, len(points)
        block = chebyshev.chebvander(x, count - 1).reshape(*u.shape, count) @ mean_coefficients(points)
        if len(panels) > 1:
            at_zero = 1.0 if not blocks else 0.0  # limit of length / u at u = 0, in the first panel and in the others
            block = block * np.where(u > 0, length / np.where(u > 0, u, 1.0), at_zero)[..., None]
        blocks.append(block)
    nodes = np.concatenate([low + 0.5 * (high - low) * (1.0 + points) for low, high, points in panels])
    fields = {"z": z, "z_hel": z_hel, "num_nodes": num_nodes or enough_nodes(panels[-1][1])}
    return fields | {"matrix": np.concatenate(blocks, axis=-1), "nodes": nodes, "u": u}
