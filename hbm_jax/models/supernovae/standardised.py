"""Supernova magnitudes with stretch, colour and host taken out."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.models.supernovae.population import host_relation, tripp
from hbm_jax.models.supernovae.redshift import SPEED_OF_LIGHT


class Standardised(NamedTuple):
    """Magnitudes that stretch, colour and host would leave alike [mag]: value and variance of each supernova."""

    m_b: np.ndarray
    variance: np.ndarray


def standardised(model, data: Supernovae, parameters: Mapping[str, Any]) -> Standardised:
    """Standardised magnitudes; see `hbm_jax.models.Supernova.standardise`."""
    p: dict[str, Any] = {name: np.asarray(value) for name, value in parameters.items()}
    if p["sigma_int"].ndim:
        surveys = list(data.survey_counts)
        p["sigma_int"] = p["sigma_int"][[surveys.index(survey) for survey in data.survey]]
    host: dict[str, Any] = {"host_magnitude": 0.0}
    if model.mass_step:
        host = host_relation(model, p, np.asarray(model.massive(data)))
    host_magnitude = host.pop("host_magnitude")
    p |= host
    zero = 0.0
    if model.colour == "broken":
        p["beta"] = np.where(data.c > 0.0, p["beta_red"], p["beta"])
    elif model.colour == "dust":
        # The mean magnitude at a colour, taken as linear: a share of the scatter of colours is dust.
        share = p["c_dust"] ** 2 / (p["c_dust"] ** 2 + p["c_std"] ** 2)
        slope = p["beta"] + (p["beta_dust"] - p["beta"]) * share
        zero = p["beta"] * p["c_mean"] + p["beta_dust"] * p["c_dust"] - slope * (p["c_mean"] + p["c_dust"])
        p["beta"] = slope
    m_b = data.m_b - tripp(p, data.x1, data.c) - host_magnitude - zero
    direction = np.stack(np.broadcast_arrays(p["alpha"], -p["beta"], np.ones(len(data))), axis=-1)
    variance = np.einsum("ni,nij,nj->n", direction, model.noise(data), direction) + p["sigma_int"] ** 2
    error = data.sigma_z**2
    if model.velocity == "redshift":
        error = error + (model.sigma_v / SPEED_OF_LIGHT * (1.0 + data.z_cmb)) ** 2
    return Standardised(m_b, variance + (5.0 / np.log(10.0) / data.z_cmb) ** 2 * error)
