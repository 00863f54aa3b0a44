"""Distance moduli of known redshifts as a constant matrix times values at a few nodes.

The quantity 5 log10(D_M / log(1 + z)), the modulus without its steep dependence on redshift, is as smooth in log(1 + z)
as 1/E. Its values at some thirty Chebyshev nodes determine the moduli of any number of objects. Linear functions of the
moduli, such as their projection on the eigenvectors of a covariance, can be precomputed for the nodes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from hbm_jax.cosmology.redshift_matrix import RedshiftMatrix, chebyshev_panels


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

    Raises
    ------
    ValueError
        If a redshift is above z_max.

    Examples
    --------
    >>> basis = modulus_basis(np.array([0.1, 0.5, 1.0]))
    >>> basis.fixed + basis.matrix @ basis.values(Cosmology.flat(H0=70.0, Om0=0.3))  # doctest: +SKIP
    """
    z = np.asarray(z, dtype=np.float64)
    z_hel = z if z_hel is None else np.asarray(z_hel, dtype=np.float64)
    u, panels = chebyshev_panels(z, breaks, z_max)
    panel = np.searchsorted([low for low, _, _ in panels[1:]], u, side="right")
    blocks = []
    for index, (low, high, points) in enumerate(panels):
        x, degree = np.clip(2.0 * (u - low) / (high - low) - 1.0, -1.0, 1.0), len(points) - 1
        interpolation = chebyshev.chebvander(x, degree) @ np.linalg.inv(chebyshev.chebvander(points, degree))
        blocks.append(np.where((panel == index)[:, None], interpolation, 0.0))
    node_u = np.concatenate([low + 0.5 * (high - low) * (1.0 + points) for low, high, points in panels])
    return ModulusBasis(
        5.0 * np.log10((1.0 + z_hel) * u) + 25.0,
        np.concatenate(blocks, axis=1),
        RedshiftMatrix(np.expm1(node_u), breaks=tuple(breaks)),
        5.0 * np.log10(node_u),
    )
