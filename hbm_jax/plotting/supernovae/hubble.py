"""Hubble diagram of a fit of supernovae with light-curve parameters."""

import dataclasses
from typing import NamedTuple

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import HubbleDiagram, Supernova, expansion
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, require_values
from hbm_jax.plotting.style import QUANTILES, Figure
from hbm_jax.plotting.supernovae.diagram import (
    NUM_GRID,
    Diagram,
    draw_diagram,
    means_in_bins,
    moduli_of_draws,
)
from hbm_jax.plotting.supernovae.distance_moduli import distance_diagram


class Standardised(NamedTuple):
    """Distance modulus of each supernova from its light curve, and its error [mag]."""

    mu: np.ndarray
    error: np.ndarray


def standardise(fit: Fit) -> Standardised:
    """Return the distance modulus of every supernova, with the relation at the posterior medians of its parameters.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.

    Returns
    -------
    Standardised
        The standardised magnitude of `hbm_jax.models.Supernova.standardise` minus M0, and its error.
    """
    model, data = model_and_data(fit, Supernova, Supernovae, "standardise")
    medians = {name: _median(fit, name) for name in model.relation_parameters}
    magnitude, variance = model.standardise(data, medians)
    return Standardised(magnitude - medians["M0"], np.sqrt(variance))


def _median(fit: Fit, name: str):
    """Return the posterior median of a parameter, one value for each survey where it differs between surveys."""
    if name in fit.posterior and fit.posterior[name].ndim > 2:
        require_values(fit, name)
        return fit.posterior[name].median(["chain", "draw"]).to_numpy()
    return float(np.median(parameter(fit, name)))


def modulus_draws(fit: Fit, data: Supernovae, num_draws: int = 200) -> np.ndarray:
    """Return distance moduli of supernovae for posterior draws of the cosmology.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.
    data : Supernovae
        N supernovae: those of the fit, or others, for example from `at_redshifts`.
    num_draws : int
        Number of posterior draws, evenly spaced among all of them.

    Returns
    -------
    array (draw, N)
        Moduli of the model's ``distmod`` plus the M0 of the draw minus the median M0 [mag]. They are comparable with
        those of `standardise`, because the data constrain only mu + M0. Calibrators have the modulus of their host.
    """
    model, _ = model_and_data(fit, Supernova, Supernovae, "modulus_draws")
    values = {p: parameter(fit, p) for p in ("H0", *expansion.named(model.cosmology).parameters, "M0")}
    total = max(len(v) for v in values.values())
    rows = evenly_spaced(total, num_draws)
    values = {p: np.broadcast_to(v, total)[rows] for p, v in values.items()}
    offset = values.pop("M0") - np.median(parameter(fit, "M0"))
    moduli = np.where(data.is_calibrator, data.mu_calibrator, moduli_of_draws(model, data, values))
    return moduli + offset[:, None]


def at_redshifts(data: Supernovae, z: np.ndarray) -> Supernovae:
    """Return supernovae at redshifts z in both frames, each a copy of the one in the data nearest in log redshift.

    None of them is a calibrator.
    """
    nearest = np.abs(np.log(z)[:, None] - np.log(data.z_cmb)).argmin(axis=1)
    unknown = np.full(len(z), np.nan)
    return dataclasses.replace(data.subset(nearest), z_cmb=z, z_hel=z, mu_calibrator=unknown)


def binned(z: np.ndarray, residual: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return redshift, inverse-variance weighted mean and its error in bins of equal width in log redshift."""
    num_bins = int(np.clip(len(z) // 30, 4, 20))
    edges = np.geomspace(z.min(), z.max() * (1 + 1e-9), num_bins + 1)
    return means_in_bins(z, residual, error, np.digitize(z, edges) - 1, num_bins)


def hubble_diagram(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw the Hubble diagram and its residuals, with the posterior band of the model.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data. A fit of `hbm_jax.models.HubbleDiagram` is drawn
        by `distance_diagram`.
    num_draws : int
        Number of posterior draws from which the band is computed.

    Returns
    -------
    matplotlib.figure.Figure
        Lower panel: the distance modulus of every supernova but calibrators (`standardise`), by survey, minus the
        posterior median of the model (`modulus_draws`), with means in bins of redshift. Upper panel: these residuals
        added to the median curve for equal redshifts in both frames. Grey: 68 and 95 % bands of the posterior. Moduli
        are those of the model's ``distmod``.

    Raises
    ------
    ValueError
        If the fit is not one of supernovae, or was loaded without its program and data.
    """
    if isinstance(model_of(fit), HubbleDiagram):
        return distance_diagram(fit, num_draws)
    _, data = model_and_data(fit, Supernova, Supernovae, "hubble_diagram")
    points, shown = standardise(fit), ~data.is_calibrator
    z = np.geomspace(data.z_cmb[shown].min(), data.z_cmb.max(), NUM_GRID)
    bands = np.quantile(modulus_draws(fit, at_redshifts(data, z), num_draws), QUANTILES, axis=0)
    # The modulus also depends on z_hel, so in the upper panel residuals are added to a curve for z_hel = z_cmb.
    residual = (points.mu - np.median(modulus_draws(fit, data, num_draws), axis=0))[shown]
    data, error = data.subset(np.flatnonzero(shown)), points.error[shown]
    means = binned(data.z_cmb, residual, error)
    return draw_diagram(Diagram(data.z_cmb, residual, error, data.survey, z, bands), means)
