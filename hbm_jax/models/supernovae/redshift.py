"""Redshifts that are not known exactly: nodes in the true redshift of each supernova, at which distances are exact."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology import Cosmology, RedshiftMatrix
from hbm_jax.data import Supernovae
from hbm_jax.validation import reject_rows

SPEED_OF_LIGHT = 299792.458  # km/s, exact (SI)
PRIORS = ("flat", "volume")

# Equal steps of 0.31 standard deviations: the sum over them converges like exp(-2 (pi s / 0.31)^2) for an integrand of
# s standard deviations, 1e-9 where the redshift error moves the magnitude by 3 times its scatter.
_NODES = np.linspace(-5.0, 5.0, 33)
_MOST = 0.25  # largest error relative to the redshift that these steps resolve
_LEAST = 0.01  # of the redshift; nodes below have no weight


class RedshiftNodes(NamedTuple):
    """True redshifts (N, Z) in both frames and the log of their weights, which add up to 1 for each supernova."""

    z_cmb: Any
    z_hel: Any
    log_weights: Any


def redshift_nodes(data: Supernovae, sigma_v: float, prior: str, cosmology: Cosmology) -> RedshiftNodes:
    """Return nodes for the true redshift of each supernova given the observed one.

    Parameters
    ----------
    data : Supernovae
        With ``sigma_z``.
    sigma_v : float
        Scatter of the line-of-sight velocity that counts as an error of the redshift [km/s].
    prior : str
        Density of supernovae in redshift: ``"flat"``, or ``"volume"``, that of a constant rate
        in the comoving volume.
    cosmology : Cosmology
        Of the volume.

    Raises
    ------
    DataError
        If an error is larger than a quarter of its redshift: distances then change too much from node to node.
    """
    xp = jnp if isinstance(data.z_cmb + data.sigma_z, jax.core.Tracer) else np
    velocity = sigma_v / SPEED_OF_LIGHT * (1.0 + data.z_cmb)
    sigma = xp.sqrt(data.sigma_z**2 + velocity**2)
    if xp is np:
        expected = f"an error of the redshift, velocities included, of at most {_MOST} of it"
        reject_rows(sigma > _MOST * data.z_cmb, sigma / data.z_cmb, "error relative to z_cmb", expected, data.name)
    z_cmb = data.z_cmb[:, None] + sigma[:, None] * _NODES
    inside = z_cmb > _LEAST * data.z_cmb[:, None]
    z_cmb = xp.where(inside, z_cmb, data.z_cmb[:, None])
    # A peculiar velocity is seen in both frames as one redshift, which is measured; only a distance goes with z_cmb.
    z_hel = data.z_hel[:, None] + xp.where(data.sigma_z[:, None] > 0, z_cmb - data.z_cmb[:, None], 0.0)
    log_weights = xp.where(inside, -0.5 * _NODES**2, -np.inf)
    if prior == "volume":
        lines = RedshiftMatrix(z_cmb.reshape(-1))
        volume = lines.differential_comoving_volume(cosmology).reshape(z_cmb.shape)
        log_weights = log_weights + jnp.log(volume / (1.0 + z_cmb))
    return RedshiftNodes(z_cmb, z_hel, log_weights - jax.scipy.special.logsumexp(log_weights, axis=1, keepdims=True))
