"""Distribution of the true redshifts of supernovae whose observed redshifts have errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from numpyro import distributions as dist

from hbm_jax.data import DataError, Supernovae
from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Law
from hbm_jax.validation import Remedy


class RedshiftLaw(Law):
    """Density of true redshifts, integrated over on nodes. A subclass defines `log_density`.

    Attributes
    ----------
    reach : float
        Largest distance of a node from the observed redshift, in units of the error.
    is_population : bool
        True where the density describes observed redshifts too, which are then data.
    """

    kind = "distribution of redshifts"
    registry: ClassVar[dict[str, type]] = {}
    gaussian = True
    reach: ClassVar[float] = 5.0
    is_population: ClassVar[bool] = False

    def log_density(self, p: Mapping[str, Any], z: Any, volume: Callable[[], Any]) -> Any:
        """Return the log density at redshifts (N, Z), up to a constant.

        ``volume()`` is the differential comoving volume at them, (N, Z).
        """
        raise NotImplementedError

    def log_weights(self, p: Mapping[str, Any], log_nodes: Any, z: Any, volume: Callable[[], Any]) -> Any:
        """Return log weights of the redshift nodes given the observed redshift, (N, Z).

        ``log_nodes`` (N, Z) are the log density of the observed redshift times the step, in units of the error.
        """
        log_weights = log_nodes + self.log_density(p, z, volume)
        return log_weights - logsumexp(log_weights, axis=1, keepdims=True)

    def drawn(self, key: jax.Array, data: Supernovae, std: np.ndarray, p: Mapping[str, Any]) -> Supernovae:
        """Return the design of a simulation; a population draws observed redshifts with errors ``std`` (N,)."""
        return data


@dataclass(frozen=True)
class FlatRedshifts(RedshiftLaw):
    """Flat density; observed redshifts are taken as given."""

    name = "flat"

    def log_density(self, p: Mapping[str, Any], z: Any, volume: Callable[[], Any]) -> Any:
        """Return zero."""
        return 0.0


@dataclass(frozen=True)
class VolumeRedshifts(RedshiftLaw):
    """Constant rate per comoving volume; observed redshifts are taken as given."""

    name = "volume"

    def log_density(self, p: Mapping[str, Any], z: Any, volume: Callable[[], Any]) -> Any:
        """Return the log of the volume over the time dilation 1 + z, up to a constant."""
        return jnp.log(volume() / (1.0 + z))


@dataclass(frozen=True)
class GammaRedshifts(RedshiftLaw):
    """Gamma distribution of the true redshifts of supernovae with ``sigma_z`` above 0, with inferred parameters.

    The density of a true redshift is z^(z_shape - 1) exp(-z_shape z / z_mean), normalised, and observed redshifts
    are normal about the true ones: they are data too, which inform z_mean and z_shape. Supernovae with a spectroscopic
    redshift (``sigma_z`` of 0) are not part of this population; a peculiar velocity leaves their true redshift flat.
    """

    name = "gamma"
    reach = 6.25  # the normal tails beyond it, 4e-10, are left out
    is_population = True
    symbols: ClassVar[Mapping[str, str]] = {"z_mean": r"$\langle z \rangle$", "z_shape": "$k_z$"}
    priors: ClassVar[Mapping[str, Prior]] = {"z_mean": dist.LogNormal(-0.7, 0.7), "z_shape": dist.LogNormal(1.6, 0.8)}

    def log_density(self, p: Mapping[str, Any], z: Any, volume: Callable[[], Any]) -> Any:
        """Return the normalised log density."""
        mean, shape = p["z_mean"], p["z_shape"]
        rate = shape / mean
        return shape * jnp.log(rate) - gammaln(shape) + (shape - 1.0) * jnp.log(z) - rate * z

    def log_weights(self, p: Mapping[str, Any], log_nodes: Any, z: Any, volume: Callable[[], Any]) -> Any:
        """Return log weights of the nodes, (N, Z): jointly with the observed redshift where it is photometric."""
        spectroscopic = log_nodes - logsumexp(log_nodes, axis=1, keepdims=True)
        photometric = log_nodes + self.log_density(p, z, volume)
        return jnp.where(jnp.asarray(p["photometric"])[:, None], photometric, spectroscopic)

    def columns_of(self, data: Supernovae) -> dict[str, Any]:
        """Return ``photometric``, True where the redshift has an error; raise DataError if none has."""
        photometric = np.asarray(data.sigma_z) > 0.0
        if not photometric.any():
            raise DataError(
                f"Supernova: redshift_prior={self.name!r} expects photometric redshifts (sigma_z above 0); found none.",
                [Remedy("redshift_prior", "flat")],
            )
        return {"photometric": photometric}

    def drawn(self, key: jax.Array, data: Supernovae, std: np.ndarray, p: Mapping[str, Any]) -> Supernovae:
        """Return the design with observed redshifts drawn where they are photometric."""
        keys = jax.random.split(key)
        with jax.enable_x64(True):
            true = jax.random.gamma(keys[0], p["z_shape"], (len(data),)) * p["z_mean"] / p["z_shape"]
            observed = np.asarray(true + std * jax.random.normal(keys[1], (len(data),)))
        shift = np.where(self.columns_of(data)["photometric"], observed - data.z_cmb, 0.0)
        return replace(data, z_cmb=data.z_cmb + shift, z_hel=data.z_hel + shift)
