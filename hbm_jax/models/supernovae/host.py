"""On which side of the host-mass step a supernova is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from hbm_jax.data import DataError, Supernovae
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR

__all__ = ["massive_hosts"]


def massive_hosts(data: Supernovae, step_mass: float, step_width: float, mass_error: bool):
    """Return the share of the high-mass side that each host counts for, (N,).

    Parameters
    ----------
    data : Supernovae
        With host masses.
    step_mass : float
        Where the step is [log10 solar masses].
    step_width : float
        Standard deviation of the normal distribution function that the step follows [dex]; 0 is a sharp step.
    mass_error : bool
        Whether the error of each mass counts: the probability that the host is massive, the true mass being
        N(log10_mass, sigma_log10_mass^2); 0.5 where there is no mass, or a placeholder with an error of
        `UNMEASURED_MASS_ERROR` or more.

    Raises
    ------
    DataError
        If a mass is missing, and not by ``mass_error``; with it, if a mass has no error.
    """
    mass = data.log10_mass
    if not isinstance(mass, jax.core.Tracer):
        _require_masses(data, mass_error)
    if mass_error:
        known = ~jnp.isnan(mass) & (data.sigma_log10_mass < UNMEASURED_MASS_ERROR)
        width = jnp.sqrt(jnp.where(known, data.sigma_log10_mass, 1.0) ** 2 + step_width**2)
        return jnp.where(known, ndtr((jnp.where(known, mass, step_mass) - step_mass) / width), 0.5)
    return ndtr((mass - step_mass) / step_width) if step_width > 0 else (mass > step_mass) * 1.0


def _require_masses(data: Supernovae, mass_error: bool) -> None:
    """Refuse hosts of which there is not what the step needs."""
    none = np.isnan(data.log10_mass)
    without_error = ~none & np.isnan(data.sigma_log10_mass)
    if mass_error and without_error.any():
        raise DataError(
            f"Supernova(mass_error=True) needs the error of every host mass; found none for {int(without_error.sum())} "
            f"of {len(data)}, the first being {data.name[int(without_error.argmax())]}. Give them, or use "
            "mass_error=False."
        )
    if not mass_error and none.any():
        raise DataError(
            f"Supernova(mass_step=True) needs the host mass of every supernova; found none for {int(none.sum())} of "
            f"{len(data)}, the first being {data.name[int(none.argmax())]}. Give them, or use mass_error=True, which "
            "takes these for either, or mass_step=False."
        )
