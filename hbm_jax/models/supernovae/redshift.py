"""Uncertain redshifts: quadrature nodes in the true redshift of each supernova."""

from typing import NamedTuple

import numpy as np

from hbm_jax.constants import speed_of_light_km_s
from hbm_jax.data import Supernovae
from hbm_jax.validation import reject_rows

# Equal steps of 0.31 standard deviations. The error of the sum is exp(-2 (pi s / 0.31)^2) for an integrand of a width
# of s standard deviations: 1e-9 where the redshift error changes the magnitude by 3 times its scatter.
_NODES = np.linspace(-5.0, 5.0, 33)
_MAX_ERROR = 0.25  # largest error relative to the redshift that these steps resolve
_MIN_NODE = 0.01  # times the observed redshift: nodes below have no weight


class RedshiftNodes(NamedTuple):
    """True redshifts (N, Z) in both frames and the logarithms of their weights, up to a constant."""

    z_cmb: np.ndarray
    z_hel: np.ndarray
    log_weights: np.ndarray


def redshift_nodes(data: Supernovae, sigma_v: float) -> RedshiftNodes:
    """Return quadrature nodes in the true redshift of each supernova, weighted by the error of the observed one.

    Parameters
    ----------
    data : Supernovae
        Supernovae with redshift errors ``sigma_z``.
    sigma_v : float
        Dispersion of line-of-sight velocities that is added to the redshift error [km/s].

    Raises
    ------
    DataError
        If an error exceeds a quarter of its redshift: the nodes then do not resolve the change of the distance.
    """
    velocity = sigma_v / speed_of_light_km_s * (1.0 + data.z_cmb)
    sigma = np.sqrt(data.sigma_z**2 + velocity**2)
    expected = f"a redshift error, peculiar velocity included, of at most {_MAX_ERROR} z_cmb"
    reject_rows(sigma > _MAX_ERROR * data.z_cmb, sigma / data.z_cmb, "error relative to z_cmb", expected, data.name)
    z_cmb = data.z_cmb[:, None] + sigma[:, None] * _NODES
    inside = z_cmb > _MIN_NODE * data.z_cmb[:, None]
    z_cmb = np.where(inside, z_cmb, data.z_cmb[:, None])
    # A peculiar velocity changes the measured redshift in both frames, so z_hel is exact; only the distance, computed
    # from z_cmb, is uncertain. A measurement error applies to both redshifts.
    z_hel = data.z_hel[:, None] + np.where(data.sigma_z[:, None] > 0, z_cmb - data.z_cmb[:, None], 0.0)
    return RedshiftNodes(z_cmb, z_hel, np.where(inside, -0.5 * _NODES**2, -np.inf))
