"""On which side of the host-mass step a supernova is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from hbm_jax.data import DataError, Supernovae

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
        N(log10_mass, sigma_log10_mass^2); 0.5 where there is no mass.

    Raises
    ------
    DataError
        If a mass is missing, and not by ``mass_error``.
    """
    mass = data.log10_mass
    if mass_error:
        known = ~jnp.isnan(mass)
        width = jnp.sqrt(jnp.where(known, data.sigma_log10_mass, 1.0) ** 2 + step_width**2)
        return jnp.where(known, ndtr((jnp.where(known, mass, step_mass) - step_mass) / width), 0.5)
    if not isinstance(mass, jax.core.Tracer) and np.isnan(mass).any():
        raise DataError(
            f"Supernova(mass_step=True) needs the host mass of every supernova; found none for "
            f"{int(np.isnan(mass).sum())} of {len(data)}, the first being {data.name[int(np.isnan(mass).argmax())]}. "
            "Give them, or use mass_error=True, which takes these for either, or mass_step=False."
        )
    return ndtr((mass - step_mass) / step_width) if step_width > 0 else (mass > step_mass) * 1.0
