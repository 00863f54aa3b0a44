"""Distance moduli of known redshifts as a constant matrix times values at a few nodes.

5 log10(D_M / log(1 + z)), the modulus without its steep dependence on redshift, is as smooth in log(1 + z) as 1/E. Its
values at some thirty Chebyshev nodes determine the moduli of any number of objects. Linear functions of the moduli,
such as their projection on the eigenvectors of a covariance, can be precomputed for the nodes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from hbm_jax.cosmology.redshift_matrix import RedshiftMatrix, chebyshev_points, enough_nodes, nodes_per_panel


class ModulusBasis(NamedTuple):
    """Moduli ``fixed + matrix @ values(cosmology)`` of N objects; build one with `modulus_basis`.

    Attributes
    ----------
    fixed : (N,)
        5 log10((1 + z_hel) log(1 + z)) + 25 [mag], independent of cosmology.
    matrix : (N, K)
        Interpolation matrix from the nodes to the objects.
    distances : RedshiftMatrix
        Distances to the K nodes.
    log_u : (K,)
        5 log10 log(1 + z) at the nodes.
    """

    fixed: np.ndarray
    matrix: np.ndarray
    distances: RedshiftMatrix
    log_u: np.ndarray

    def values(self, cosmology: Any) -> jax.Array:
        """Return 5 log10(D_M / Mpc / log(1 + z)) at the nodes, (K,); NaN where E^2 is not positive."""
        return 5.0 * jnp.log10(self.distances.transverse_comoving_distance(cosmology)) - self.log_u


def modulus_basis(
    z: Any, z_hel: Any = None, *, breaks: tuple[float, ...] = (), z_max: float | None = None
) -> ModulusBasis:
    """Precompute the interpolation of distance moduli at fixed redshifts.

    Parameters
    ----------
    z : array (N,)
        Redshift of the expansion (in the CMB frame), above 0.
    z_hel : array (N,), optional
        Observed redshift; None: z.
    breaks : tuple of float
        Redshifts at which the expansion history is not smooth, as in `RedshiftMatrix`.
    z_max : float, optional
        Upper end of the nodes, as in `RedshiftMatrix`. None: the largest redshift.

    Returns
    -------
    ModulusBasis
        With 32 nodes up to z = 2.4, and about 32 more for each unit of log(1 + z) beyond. Largest error of a modulus
        relative to `hbm_jax.cosmology.distmod`: 1e-13 mag near the concordance cosmology, 1e-6 mag over the default
        priors of flat wCDM (``tests/cosmology/test_modulus_basis.py``).

    Examples
    --------
    >>> basis = modulus_basis(np.array([0.1, 0.5, 1.0]))
    >>> basis.fixed + basis.matrix @ basis.values(Cosmology.flat(H0=70.0, Om0=0.3))  # doctest: +SKIP
    """
    z = np.asarray(z, dtype=np.float64)
    z_hel = z if z_hel is None else np.asarray(z_hel, dtype=np.float64)
    u = np.log1p(z)
    u_max = max(float(u.max()) if z_max is None else float(np.log1p(z_max)), 1e-3)  # an interval of positive width
    u_breaks = np.log1p(np.array(breaks, dtype=float))
    u_breaks = u_breaks[u_breaks < u_max]
    edges = np.concatenate([[0.0], u_breaks, [u_max]])
    panel = np.searchsorted(u_breaks, u, side="right")
    blocks, nodes = [], []
    for index, count in enumerate(nodes_per_panel(enough_nodes(u_max), u_breaks, u_max)):
        low, high = edges[index], edges[index + 1]
        points = chebyshev_points(count)
        x = np.clip(2.0 * (u - low) / (high - low) - 1.0, -1.0, 1.0)
        interpolation = chebyshev.chebvander(x, count - 1) @ np.linalg.inv(chebyshev.chebvander(points, count - 1))
        blocks.append(np.where((panel == index)[:, None], interpolation, 0.0))
        nodes.append(low + 0.5 * (high - low) * (1.0 + points))
    node_u = np.concatenate(nodes)
    return ModulusBasis(
        5.0 * np.log10((1.0 + z_hel) * u) + 25.0,
        np.concatenate(blocks, axis=1),
        RedshiftMatrix(np.expm1(node_u), breaks=tuple(breaks)),
        5.0 * np.log10(node_u),
    )
