"""The host-mass step: probability that a supernova has a massive host."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from hbm_jax.data import DataError, Supernovae
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR
from hbm_jax.validation import Remedy

__all__ = ["massive_hosts"]


def massive_hosts(data: Supernovae, step_mass: float, step_width: float, mass_error: bool):
    """Return the weight of the high-mass side of the step for each host, (N,): 0 or 1 for a sharp step.

    Parameters
    ----------
    data : Supernovae
        Supernovae with host masses.
    step_mass : float
        Mass at the step [log10 solar masses].
    step_width : float
        Width of the step [dex]: standard deviation of the normal distribution function that it follows. 0 is a sharp
        step.
    mass_error : bool
        Whether the weight is the probability that the host is massive, for a true mass distributed as
        N(log10_mass, sigma_log10_mass^2); 0.5 where the mass is missing, or a placeholder with an error of
        `UNMEASURED_MASS_ERROR` or more.

    Raises
    ------
    DataError
        If a mass is missing and ``mass_error`` is False, or if a mass has no error and ``mass_error`` is True.
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
    """Raise an error where a host lacks the mass, or the error of the mass, that the step needs."""
    without_mass = np.isnan(data.log10_mass)
    without_error = ~without_mass & np.isnan(data.sigma_log10_mass)
    if mass_error and without_error.any():
        raise DataError(
            f"Supernova(mass_error=True) needs the error of every host mass; found none for {int(without_error.sum())} "
            f"of {len(data)}, the first being {data.name[int(without_error.argmax())]}. Give them, or use "
            "mass_error=False.",
            [Remedy("mass_error", False)],
        )
    if not mass_error and without_mass.any():
        raise DataError(
            "Supernova(mass_step=True) needs the host mass of every supernova; found none for "
            f"{int(without_mass.sum())} of {len(data)}, the first being {data.name[int(without_mass.argmax())]}. Give "
            "them, or use mass_error=True, which marginalises over both sides of the step where the mass is missing, "
            "or mass_step=False.",
            [Remedy("mass_error", True), Remedy("mass_step", False)],
        )
