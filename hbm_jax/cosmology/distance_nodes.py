"""Distances that are free at nodes in redshift: a spline of the distance modulus about a fiducial cosmology."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology.distances import distmod, transverse_comoving_distance
from hbm_jax.cosmology.expansion import Cosmology

# Rubin et al. 2025, ApJ 986, 231: nodes of Union3.
UNION3_NODES = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.8981382, 0.99627639,
    1.09441459, 1.23224445, 1.39096125, 2.26226,
)  # fmt: skip
FIDUCIAL_OM0 = 0.3  # flat LCDM


@dataclass(frozen=True)
class DistanceNodes:
    """Transverse comoving distance whose modulus differs from that of flat LCDM by a spline of redshift.

    The distance modulus is that of flat LCDM with Om0 = 0.3 plus a natural cubic spline through free values dmu_1 to
    dmu_K at the nodes, linear beyond them. It is the function of a `DistanceFunction`.

    Parameters
    ----------
    nodes : tuple of float
        Increasing redshifts of K >= 3 nodes, above 0.

    Raises
    ------
    ValueError
        For fewer than three nodes, or redshifts that do not increase or are not above 0.

    Examples
    --------
    >>> DistanceNodes((0.1, 0.5, 1.0)).names
    ('dmu_1', 'dmu_2', 'dmu_3')
    """

    nodes: tuple[float, ...] = UNION3_NODES

    def __post_init__(self):
        z = np.asarray(self.nodes, dtype=float)
        if len(z) < 3 or z[0] <= 0.0 or np.any(np.diff(z) <= 0.0):
            raise ValueError(f"nodes: expected three redshifts or more, which increase and are above 0; found {z}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the free values."""
        return tuple(f"dmu_{k + 1}" for k in range(len(self.nodes)))

    def __call__(self, z: Any, parameters: Mapping[str, Any]):
        """Return the distance [Mpc] at redshifts of any shape, for H0 [km/s/Mpc] and the values at the nodes [mag]."""
        values = jnp.stack([jnp.asarray(parameters[name], float) for name in self.names])
        fiducial = transverse_comoving_distance(z, Cosmology.flat(H0=parameters["H0"], Om0=FIDUCIAL_OM0))
        return fiducial * 10.0 ** (0.2 * self.spline(z, values))

    def spline(self, z: Any, values):
        """Return the spline [mag] at redshifts of any shape, through the values (K,) at the nodes."""
        nodes = jnp.asarray(self.nodes, float)
        values = jnp.asarray(values, float)
        curvature = jnp.asarray(self._curvature) @ values  # second derivatives at the nodes
        index = jnp.clip(jnp.searchsorted(nodes, z) - 1, 0, len(self.nodes) - 2)
        width = (nodes[1:] - nodes[:-1])[index]
        b = (z - nodes[index]) / width
        inside = jnp.clip(b, 0.0, 1.0)
        a, beyond = 1.0 - inside, b - inside
        low, high, bend_low, bend_high = values[index], values[index + 1], curvature[index], curvature[index + 1]
        bend = ((a**3 - a) * bend_low + (inside**3 - inside) * bend_high) * width**2 / 6.0
        # Slope per width at the nearer end, where one second derivative is 0.
        slope = high - low + ((1.0 - 3.0 * a**2) * bend_low + (3.0 * inside**2 - 1.0) * bend_high) * width**2 / 6.0
        return a * low + inside * high + bend + slope * beyond

    def moduli(self, H0: float) -> np.ndarray:
        """Return the moduli [mag] of the fiducial cosmology at the nodes, (K,)."""
        return np.asarray(distmod(np.asarray(self.nodes), Cosmology.flat(H0=H0, Om0=FIDUCIAL_OM0)))

    @cached_property
    def _curvature(self) -> np.ndarray:
        """Matrix of the second derivatives of the natural spline at the nodes, (K, K), from the values."""
        width = np.diff(self.nodes)
        num = len(self.nodes)
        left, right = np.eye(num), np.zeros((num, num))
        for k in range(1, num - 1):
            left[k, k - 1 : k + 2] = width[k - 1] / 6.0, (width[k - 1] + width[k]) / 3.0, width[k] / 6.0
            right[k, k - 1 : k + 2] = 1.0 / width[k - 1], -1.0 / width[k - 1] - 1.0 / width[k], 1.0 / width[k]
        return np.linalg.solve(left, right)
