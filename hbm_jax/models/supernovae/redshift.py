"""Uncertain redshifts: quadrature nodes in the true redshift of each supernova."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.constants import speed_of_light_km_s
from hbm_jax.cosmology import Cosmology, RedshiftMatrix
from hbm_jax.data import Supernovae
from hbm_jax.validation import reject_rows

PRIORS = ("flat", "volume")

# Equal steps of 0.31 standard deviations. The error of the sum is exp(-2 (pi s / 0.31)^2) for an integrand of a width
# of s standard deviations: 1e-9 where the redshift error changes the magnitude by 3 times its scatter.
_NODES = np.linspace(-5.0, 5.0, 33)
_MAX_ERROR = 0.25  # largest error relative to the redshift that these steps resolve
_MIN_NODE = 0.01  # times the observed redshift: nodes below have no weight


class RedshiftNodes(NamedTuple):
    """True redshifts (N, Z) in both frames and the logarithms of their weights, which sum to 1 for each supernova."""

    z_cmb: Any
    z_hel: Any
    log_weights: Any


def redshift_nodes(data: Supernovae, sigma_v: float, prior: str, cosmology: Cosmology) -> RedshiftNodes:
    """Return quadrature nodes in the true redshift of each supernova, weighted by its posterior given the observed one.

    Parameters
    ----------
    data : Supernovae
        Supernovae with redshift errors ``sigma_z``.
    sigma_v : float
        Dispersion of line-of-sight velocities that is added to the redshift error [km/s].
    prior : str
        Distribution of true redshifts: ``"flat"``, or ``"volume"`` for a constant rate per comoving volume.
    cosmology : Cosmology
        Cosmology that determines the volume.

    Raises
    ------
    DataError
        If an error exceeds a quarter of its redshift: the nodes then do not resolve the change of the distance.
    """
    xp = jnp if isinstance(data.z_cmb + data.sigma_z, jax.core.Tracer) else np
    velocity = sigma_v / speed_of_light_km_s * (1.0 + data.z_cmb)
    sigma = xp.sqrt(data.sigma_z**2 + velocity**2)
    if xp is np:
        expected = f"a redshift error, peculiar velocity included, of at most {_MAX_ERROR} z_cmb"
        reject_rows(sigma > _MAX_ERROR * data.z_cmb, sigma / data.z_cmb, "error relative to z_cmb", expected, data.name)
    z_cmb = data.z_cmb[:, None] + sigma[:, None] * _NODES
    inside = z_cmb > _MIN_NODE * data.z_cmb[:, None]
    z_cmb = xp.where(inside, z_cmb, data.z_cmb[:, None])
    # A peculiar velocity changes the measured redshift in both frames, so z_hel is exact; only the distance, computed
    # from z_cmb, is uncertain. A measurement error applies to both redshifts.
    z_hel = data.z_hel[:, None] + xp.where(data.sigma_z[:, None] > 0, z_cmb - data.z_cmb[:, None], 0.0)
    log_weights = xp.where(inside, -0.5 * _NODES**2, -np.inf)
    if prior == "volume":
        redshifts = RedshiftMatrix(z_cmb.reshape(-1))
        volume = redshifts.differential_comoving_volume(cosmology).reshape(z_cmb.shape)
        log_weights = log_weights + jnp.log(volume / (1.0 + z_cmb))
    return RedshiftNodes(z_cmb, z_hel, log_weights - jax.scipy.special.logsumexp(log_weights, axis=1, keepdims=True))
