"""Hubble diagram of a supernova fit."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import HubbleDiagram, Supernova, expansion
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, SERIES, Figure, house_style
from hbm_jax.plotting.supernovae.distance_moduli import distance_diagram

NUM_GRID = 120  # redshifts at which the band is evaluated
CHUNK = 50  # cosmologies evaluated in one batch
BANDS = (0.025, 0.16, 0.5, 0.84, 0.975)
MIN_PER_BIN = 5  # fewer supernovae give no useful mean
SURVEYS = {"sdss": "SDSS", "snls": "SNLS", "lowz": "low z", "hst": "HST"}
MARKERS = ("o", "s", "^", "D", "v", "P")


class Standardised(NamedTuple):
    """Distance modulus [mag] of each supernova from its light curve, and its error."""

    mu: np.ndarray
    error: np.ndarray


def standardise(fit: Fit) -> Standardised:
    """Return the distance modulus of every supernova with the standardisation parameters at their posterior medians.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.

    Returns
    -------
    Standardised
        Standardised magnitude of `hbm_jax.models.Supernova.standardise` minus M0, and its error.
    """
    model = program_of(fit, Supernova, Supernovae, "standardise")
    medians = {name: _median(fit, name) for name in model.relation_parameters}
    magnitude, variance = model.standardise(fit.data, medians)
    return Standardised(magnitude - medians["M0"], np.sqrt(variance))


def _median(fit: Fit, name: str):
    """Return the posterior median of a parameter, an array if the parameter has one value per survey."""
    if name in fit.posterior and fit.posterior[name].ndim > 2:
        return fit.posterior[name].median(["chain", "draw"]).to_numpy()
    return float(np.median(parameter(fit, name)))


def modulus_draws(fit: Fit, data: Supernovae, num_draws: int = 200) -> np.ndarray:
    """Return the distance moduli of supernovae from ``model.distmod`` for posterior draws of the cosmology.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.
    data : Supernovae
        N supernovae: those of the fit, or others, for example from `at_redshifts`.
    num_draws : int
        Number of evenly spaced posterior draws used.

    Returns
    -------
    array (draw, N)
        [mag] Only mu + M0 is measured: the modulus of each draw is shifted by its M0 minus the median M0, the value
        used in `standardise`.
    """
    model = program_of(fit, Supernova, Supernovae, "modulus_draws")
    values = {p: parameter(fit, p) for p in ("H0", *expansion.named(model.cosmology).parameters, "M0")}
    total = max(len(v) for v in values.values())
    indices = spread(total, num_draws)
    values = {p: np.broadcast_to(v, total)[indices] for p, v in values.items()}
    offset = values.pop("M0") - np.median(parameter(fit, "M0"))
    with jax.enable_x64(True):

        @jax.jit
        def moduli(draws):
            def modulus(draw):
                return model.distmod(data, expansion.cosmology_from(model.cosmology, draw))

            return jax.lax.map(modulus, draws, batch_size=CHUNK)

        return np.asarray(moduli(values)) + offset[:, None]


def at_redshifts(data: Supernovae, z: np.ndarray) -> Supernovae:
    """Return supernovae at redshifts z in both frames, otherwise equal to the supernova nearest in redshift."""
    nearest = np.abs(np.log(z)[:, None] - np.log(data.z_cmb)).argmin(axis=1)
    return dataclasses.replace(data.subset(nearest), z_cmb=z, z_hel=z)


def binned(z: np.ndarray, residual: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return redshift, inverse-variance weighted mean and its error in bins of equal width in log redshift."""
    num_bins = int(np.clip(len(z) // 30, 4, 20))
    edges = np.geomspace(z.min(), z.max() * (1 + 1e-9), num_bins + 1)
    index = np.digitize(z, edges) - 1
    weights = 1.0 / error**2
    rows = [
        (
            np.average(z[mask], weights=weights[mask]),
            np.average(residual[mask], weights=weights[mask]),
            mask,
        )
        for mask in (index == i for i in range(num_bins))
        if mask.sum() >= MIN_PER_BIN
    ]
    if not rows:
        return np.array([]), np.array([]), np.array([])
    centres, means, members = zip(*rows, strict=True)
    return np.array(centres), np.array(means), np.array([weights[mask].sum() ** -0.5 for mask in members])


def hubble_diagram(fit: Fit, num_draws: int = 200) -> Figure:
    """Draw the Hubble diagram and its residuals, with posterior bands.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data. For a fit of `hbm_jax.models.HubbleDiagram` the
        figure is that of `distance_diagram`.
    num_draws : int
        Number of posterior draws for the bands.

    Returns
    -------
    matplotlib.figure.Figure
        Bottom: distance modulus of every supernova (`standardise`) by survey minus the posterior median of the model
        (`modulus_draws`), with means in bins of redshift. Top: these residuals added to the posterior median at equal
        redshifts in both frames. Grey: 68 and 95 % bands of the posterior. All moduli are from ``model.distmod``.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.

    Examples
    --------
    >>> hubble_diagram(fit).savefig("hubble.pdf")  # doctest: +SKIP
    """
    if isinstance(model_of(fit), HubbleDiagram):
        return distance_diagram(fit, num_draws)
    program_of(fit, Supernova, Supernovae, "hubble_diagram")
    data = fit.data
    points = standardise(fit)
    z = np.geomspace(data.z_cmb.min(), data.z_cmb.max(), NUM_GRID)
    bands = np.quantile(modulus_draws(fit, at_redshifts(data, z), num_draws), BANDS, axis=0)
    # The modulus depends on z_hel as well as z_cmb: the top panel shows residuals about the median curve.
    residual = points.mu - np.median(modulus_draws(fit, data, num_draws), axis=0)
    mu = residual + np.interp(np.log(data.z_cmb), np.log(z), bands[2])
    with house_style():
        figure = Figure(figsize=(6.4, 6.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1.0))
        survey = np.array(data.survey)
        for index, (name, count) in enumerate(data.survey_counts.items()):
            members = survey == name
            style = {
                "fmt": MARKERS[index % len(MARKERS)],
                "color": SERIES[index % len(SERIES)],
                "markersize": 2.6,
                "markeredgewidth": 0,
                "elinewidth": 0.5,
                "alpha": 0.6,
                "zorder": 2,
            }
            text = f"{SURVEYS.get(name, name)} ({count})"
            upper.errorbar(data.z_cmb[members], mu[members], points.error[members], label=text, **style)
            lower.errorbar(data.z_cmb[members], residual[members], points.error[members], **style | {"alpha": 0.3})
        for axes, centre in ((upper, 0.0), (lower, bands[2])):
            axes.fill_between(z, bands[0] - centre, bands[4] - centre, color=BAND_95, zorder=3, lw=0, label="95 %")
            axes.fill_between(z, bands[1] - centre, bands[3] - centre, color=BAND_68, zorder=3, lw=0, label="68 %")
            axes.plot(z, bands[2] - centre, color=BLACK, lw=1.0, zorder=4, label="posterior median")
        lower.errorbar(
            *binned(data.z_cmb, residual, points.error),
            fmt="o",
            color=BLACK,
            markersize=3.4,
            markerfacecolor="white",
            elinewidth=1.1,
            zorder=5,
            label="weighted mean in bins",
        )
        upper.set_ylabel(rf"distance modulus {label('mu', 'mag')}")
        lower.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
        lower.set_xlabel(r"redshift $z_\mathrm{CMB}$")
        lower.set_xscale("log")
        lower.set_xlim(z[0] / 1.1, z[-1] * 1.1)
        limit = 1.1 * np.quantile(np.abs(residual) + points.error, 0.99)
        lower.set_ylim(-limit, limit)
        _plain_decades(lower)
        handles, texts = upper.get_legend_handles_labels()
        order = [*range(3, len(handles)), 2, 1, 0]  # matplotlib lists bands and lines before points
        upper.legend([handles[i] for i in order], [texts[i] for i in order], loc="upper left")
        handles, texts = lower.get_legend_handles_labels()
        lower.legend(handles[-1:], texts[-1:], loc="lower left")
        figure.align_ylabels()
    return figure


def _plain_decades(axes) -> None:
    """Label redshifts as 0.01, 0.02, 0.05, 0.1 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
