"""Supernova magnitudes corrected for stretch, colour and host."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.data.columns import index_of_groups
from hbm_jax.models.supernovae.laws.scatter import Scatter
from hbm_jax.models.supernovae.population import Laws, tripp


class Standardised(NamedTuple):
    """Magnitudes corrected for stretch, colour and host [mag], and their variances [mag^2], (N,)."""

    m_b: np.ndarray
    variance: np.ndarray


def standardised(
    laws: Laws, data: Supernovae, parameters: Mapping[str, Any], noise, redshift_variance, massive
) -> Standardised:
    """Return the magnitude of each supernova corrected to x1 = c = 0 and a low-mass host.

    Parameters
    ----------
    laws : Laws
        Laws of the model.
    data : Supernovae
        The sample of N supernovae.
    parameters : mapping of str to float
        ``alpha``, ``beta``, ``sigma_int``, ``delta_M`` with a mass step, and the parameters of other options used;
        others are ignored. sigma_int may be an array with one value for each survey of ``data.survey_counts``.
    noise : (N, 3, 3)
        Covariance of the errors of (x1, c, m_b).
    redshift_variance : (N,)
        Variance of the redshift.
    massive : (N,) or None
        Weight of the high-mass side of the mass step; None without a step.

    Returns
    -------
    Standardised
        ``m_b + alpha x1 - beta c - delta_M [massive host]``, (N,), whose mean in the model is M0 plus the distance
        modulus; and its variance, from the covariance of the light-curve fit, lensing, peculiar velocity and
        intrinsic scatter. With ``mass_error`` the step is weighted by the probability of a massive host. With dust
        the slope is that of the regression of magnitude on true colour. Redshift errors are propagated to first
        order. Selection and outliers are ignored.
    """
    p: dict[str, Any] = {name: np.asarray(value) for name, value in parameters.items()}
    if p["sigma_int"].ndim:
        p["sigma_int"] = p["sigma_int"][index_of_groups(data.survey, list(data.survey_counts))]
    host_magnitude: Any = 0.0
    if laws.host is not None:
        p |= laws.host.columns_of(data)
        relation = laws.host.relation(p, massive, laws.colour.slopes)
        host_magnitude = relation.pop("host_magnitude")
        p |= relation
    p["beta"], intercept = laws.colour.standardisation(p, data.c)
    m_b = data.m_b - tripp(p, data.x1, data.c) - host_magnitude - intercept
    direction = np.stack(np.broadcast_arrays(p["alpha"], -p["beta"], np.ones(len(data))), axis=-1)
    variance = np.einsum("ni,nij,nj->n", direction, noise, direction) + _scatter_variance(laws.scatter.scatter(p), p)
    return Standardised(m_b, variance + (5.0 / np.log(10.0) / data.z_cmb) ** 2 * redshift_variance)


def _scatter_variance(scatter: Scatter, p: Mapping[str, Any]) -> Any:
    """Return the variance of the standardised magnitude due to the intrinsic scatter."""
    alpha, beta = p["alpha"], p["beta"]
    x1_x1, c_x1, c_c, m_x1, m_c = (0.0 if entry is None else entry for entry in scatter[1:])
    variance = scatter.m_std**2 + alpha**2 * x1_x1 + beta**2 * c_c
    return variance + 2.0 * (alpha * m_x1 - beta * m_c - alpha * beta * c_x1)
