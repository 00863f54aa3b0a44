"""Distance moduli of known redshifts as a constant matrix times their values at a few nodes.

What is left of mu once its steep part is taken out, 5 log10(D_M / log(1 + z)), is as smooth in log(1 + z) as 1/E. Its
values at some thirty Chebyshev nodes therefore hold the moduli of any number of objects, and whatever is linear in the
moduli, such as their projection on the eigenvectors of a covariance, can be worked out for the nodes once and for all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from hbm_jax.cosmology.redshift_matrix import RedshiftMatrix, _enough_nodes, chebyshev_points, nodes_per_panel


class ModulusBasis(NamedTuple):
    """Moduli ``fixed + matrix @ values(cosmology)`` of N objects; build one with `modulus_basis`.

    Attributes
    ----------
    fixed : (N,)
        5 log10((1 + z_hel) log(1 + z)) + 25 [mag], which no cosmology changes.
    matrix : (N, K)
        Interpolation from the nodes.
    distances : RedshiftMatrix
        Of the K nodes.
    log_u : (K,)
        5 log10 log(1 + z) of the nodes.
    """

    fixed: np.ndarray
    matrix: np.ndarray
    distances: RedshiftMatrix
    log_u: np.ndarray

    def values(self, cosmology: Any) -> jax.Array:
        """5 log10(D_M / Mpc / log(1 + z)) at the nodes, (K,); NaN where there is no such universe."""
        return 5.0 * jnp.log10(self.distances.transverse_comoving_distance(cosmology)) - self.log_u


def modulus_basis(z: Any, z_hel: Any = None, *, breaks: tuple[float, ...] = ()) -> ModulusBasis:
    """Prepare moduli of redshifts that are data.

    Parameters
    ----------
    z : array (N,)
        Redshift of the expansion (in the CMB frame), above 0.
    z_hel : array (N,), optional
        Observed redshift; None: z.
    breaks : tuple of float
        Redshifts at which the expansion is not smooth, see `RedshiftMatrix`.

    Returns
    -------
    ModulusBasis
        Of 32 nodes up to z = 2.4, and as many more a unit of log(1 + z) beyond. Largest error of a modulus against
        `hbm_jax.cosmology.distmod`: 1e-13 mag near the concordance universe, and over the default priors of flat
        wCDM 1e-6 mag (``tests/cosmology/test_modulus_basis.py``).

    Examples
    --------
    >>> basis = modulus_basis(np.array([0.1, 0.5, 1.0]))
    >>> basis.fixed + basis.matrix @ basis.values(Cosmology.flat(H0=70.0, Om0=0.3))  # doctest: +SKIP
    """
    z = np.asarray(z, dtype=np.float64)
    z_hel = z if z_hel is None else np.asarray(z_hel, dtype=np.float64)
    u = np.log1p(z)
    # A little beyond the largest redshift, so that the nodes' own distances need no extrapolation either.
    u_max = max(float(u.max()), 1e-3)
    u_breaks = np.log1p(np.array(breaks, dtype=float))
    u_breaks = u_breaks[u_breaks < u_max]
    ends = np.concatenate([[0.0], u_breaks, [u_max]])
    panel = np.searchsorted(u_breaks, u, side="right")
    blocks, nodes = [], []
    for index, count in enumerate(nodes_per_panel(_enough_nodes(u_max), u_breaks, u_max)):
        low, high = ends[index], ends[index + 1]
        points = chebyshev_points(count)
        inside = np.clip(2.0 * (u - low) / (high - low) - 1.0, -1.0, 1.0)
        block = chebyshev.chebvander(inside, count - 1) @ np.linalg.inv(chebyshev.chebvander(points, count - 1))
        blocks.append(np.where((panel == index)[:, None], block, 0.0))
        nodes.append(low + 0.5 * (high - low) * (1.0 + points))
    at = np.concatenate(nodes)
    return ModulusBasis(
        5.0 * np.log10((1.0 + z_hel) * u) + 25.0,
        np.concatenate(blocks, axis=1),
        RedshiftMatrix(np.expm1(at), breaks=tuple(breaks)),
        5.0 * np.log10(at),
    )
