"""Distances to the redshifts of a sample by one small constant matrix, for gradient-based samplers."""

import functools
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
from hbm_jax.cosmology.redshift_grid import _checked_redshifts

FULL = jax.lax.Precision.HIGHEST  # accelerators compute matrix products with a few digits by default

# Largest relative errors for z <= 2.4: for Om0 = 0.3 and a cosmological constant 2e-10 (16 nodes), 4e-15 (24); over all
# flat universes with w0 in [-3, 0] 1e-3 (16), 1e-5 (24), 1e-7 (32), 2e-9 (40), reached at Om0 < 0.01, w0 < -2.5.
NUM_NODES = 32
# Beyond this redshift the singularities of 1/E are closer relative to the width of the interval. NUM_NODES more nodes
# for each unit of log(1 + z) keep the errors stated in the docstring: 70 nodes at z = 10. The density of nodes at lower
# redshift, 26 per unit, would be too low where wa is free: an error of 2e-4 at z = 5.
_Z_OF_NUM_NODES = 2.4
NODES_OF_A_PANEL = 16
_TRACED_Z_MAX = 10.0  # largest redshift assumed where redshifts are traced


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RedshiftMatrix(LinesOfSight):
    """Fixed redshifts whose distances are one constant matrix times 1/E at a few Chebyshev nodes.

    An alternative to `RedshiftGrid` for fits: it has no look-up in the forward pass, hence no scatter in the gradient,
    and much less to compile. In exchange, the error depends on the cosmology. It falls geometrically with the number of
    nodes, but more slowly the closer E^2 comes to zero below the largest redshift.

    Parameters
    ----------
    z : array (N,)
        Redshift of the expansion (in the CMB frame), finite and not negative.
    z_hel : array (N,), optional
        Observed redshift, used in the factor 1 + z_hel of the luminosity distance. None: z.
    num_nodes : int, optional
        Number of Chebyshev nodes in log(1 + z) between 0 and the largest redshift. None: 32, and 32 more for each unit
        of log(1 + z) beyond z = 2.4; for traced redshifts 70, the number for z = 10.
    breaks : tuple of float
        Redshifts at which the expansion history is not smooth, such as the edges of `BinnedDarkEnergy`. Nodes are
        divided among the panels between them, at least 16 per panel, so that the errors stated below still hold.

    Raises
    ------
    ValueError
        If a redshift is not finite or is negative, or if the shapes of z and z_hel differ.

    Notes
    -----
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
    matrix: Any = field(default=None, repr=False)  # (N, num_nodes): mean over [0, u] of the interpolated integrand
    nodes: Any = field(default=None, repr=False)  # (num_nodes,): log(1 + z)

    def __post_init__(self):
        # JAX rebuilds the object from leaves of any kind; only a new object is precomputed.
        if self.matrix is not None or self.z is None:
            return
        xp = jnp if isinstance(self.z, jax.core.Tracer) else np
        z = self.z if xp is jnp else _checked_redshifts(self.z, "z")
        z_hel = z if self.z_hel is None else self.z_hel
        if xp is np and z_hel is not z:
            z_hel = _checked_redshifts(z_hel, "z_hel", above=-1.0)
        if np.shape(z_hel) != np.shape(z):
            raise ValueError(f"z_hel: expected the shape of z, {np.shape(z)}; found {np.shape(z_hel)}.")
        u = xp.log1p(z)
        u_max = xp.maximum(xp.max(u), 1e-3)
        num_nodes = self.num_nodes or _enough_nodes(np.log1p(_TRACED_Z_MAX) if xp is jnp else float(u_max))
        u_breaks = np.log1p(np.array(self.breaks, dtype=float))
        counts = [num_nodes] * (len(u_breaks) + 1)
        if xp is np:
            u_breaks = u_breaks[u_breaks < u_max]
            counts = nodes_per_panel(num_nodes, u_breaks, u_max)
        edges = [0.0, *(xp.minimum(end, u_max) for end in u_breaks), u_max]
        blocks: list = []
        nodes: list = []
        for count, (low, high) in zip(counts, itertools.pairwise(edges), strict=True):
            width = high - low if xp is np else xp.maximum(high - low, 1e-6)
            points = chebyshev_points(count)
            reach = xp.clip(u - low, 0.0, width)
            block = _mean_matrix(points, 2.0 * reach / width - 1.0, xp)
            if len(edges) > 2:
                block = block * xp.where(u > 0, reach / xp.where(u > 0, u, 1.0), float(not blocks))[:, None]
            blocks.append(block)
            nodes.append(low + 0.5 * width * (1.0 + points))
        parts = {
            "z": z, "z_hel": z_hel, "num_nodes": num_nodes, "matrix": xp.concatenate(blocks, axis=-1),
            "nodes": xp.concatenate(nodes),
        }  # fmt: skip
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of e^(power u) / E over u from 0 to log(1 + z), and whether it exists."""
        inverse_e, positive = guarded_inverse_e(self.nodes, cosmology)
        # NumPy makes these constants of the program where the redshifts are data; otherwise they may be traced.
        xp = np if isinstance(self.z, np.ndarray) else jnp
        integrand = inverse_e if power == 0 else xp.exp(power * self.nodes) * inverse_e
        u = xp.log1p(self.z)
        return u * jnp.matmul(self.matrix, integrand, precision=FULL), jnp.all(positive)

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of 1 / E over u from log(1 + z) to infinity, and whether it exists."""
        return quadrature.tail_direct(jnp.log1p(jnp.asarray(self.z)), cosmology)


def chebyshev_points(num: int) -> np.ndarray:
    """Return Chebyshev nodes of the first kind on [-1, 1]."""
    return np.cos(np.pi * (np.arange(num) + 0.5) / num)


def nodes_per_panel(num_nodes: int, u_breaks: np.ndarray, u_max: float) -> list[int]:
    """Return the number of nodes in each panel of log(1 + z), proportional to its width and at least 16."""
    if not len(u_breaks):
        return [num_nodes]
    widths = np.diff(np.concatenate([[0.0], u_breaks, [u_max]]))
    return [max(NODES_OF_A_PANEL, math.ceil(num_nodes * width / u_max)) for width in widths]


def _enough_nodes(u_max: float) -> int:
    """Return the number of nodes that keeps the documented errors up to log(1 + z) = u_max."""
    return NUM_NODES + math.ceil(NUM_NODES * max(u_max - math.log1p(_Z_OF_NUM_NODES), 0.0))


def _mean_matrix(points: np.ndarray, x, xp):
    """Return the matrix (len(x), len(points)) from values at Chebyshev points to means of the interpolant over [-1, x].

    The mean, not the integral, keeps relative accuracy as x goes to -1.
    """
    num = len(points)
    # Chebyshev coefficients from values, then the mean over [-1, x] of each T_k by Gauss-Legendre quadrature, exactly.
    coefficients = np.linalg.inv(chebyshev.chebvander(points, num - 1))
    nodes, weights = np.polynomial.legendre.leggauss(num // 2 + 1)
    abscissae = -1.0 + 0.5 * (x[..., None] + 1.0) * (nodes + 1.0)
    angle = xp.arccos(xp.clip(abscissae, -1.0, 1.0))
    matmul = np.matmul if xp is np else functools.partial(jnp.matmul, precision=FULL)
    means = xp.stack([matmul(xp.cos(k * angle), 0.5 * weights) for k in range(num)], axis=-1)
    return matmul(means, coefficients)
