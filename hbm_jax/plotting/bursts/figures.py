"""Figures of gamma-ray bursts: flux and luminosity against peak energy, and predicted redshifts."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Bursts, BurstSpectra
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Golenetskii, GolenetskiiCounts, expansion
from hbm_jax.models.bursts.golenetskii import PIVOT
from hbm_jax.plotting.bursts.selection import drawable, selected_bursts
from hbm_jax.plotting.count_spectra import spectra
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, require_values, true_values
from hbm_jax.plotting.style import (
    BAND_68,
    BAND_95,
    BLACK,
    BLUE,
    GREY,
    QUANTILES,
    SERIES,
    Figure,
    draw_intervals,
    fill_bands,
    house_style,
)
from hbm_jax.spectra.model.energetics import log10_sphere_area

NUM_DRAWS = 2000
MAX_COLOURED = len(SERIES)  # bursts with distinct colours; for more, colours repeat
SHOWN_Z = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
QUANTITY = {
    "flux": (r"flux $\log_{10}\,F$ [erg cm$^{-2}$ s$^{-1}$]", r"luminosity $\log_{10}\,L$ [erg s$^{-1}$]"),
    "fluence": (r"fluence $\log_{10}\,S$ [erg cm$^{-2}$]", r"energy $\log_{10}\,E_\mathrm{iso}$ [erg]"),
}


class _Burst(NamedTuple):
    """Plotted values of the intervals of a burst: peak energy, flux, errors, and shifts to the rest frame."""

    x: np.ndarray
    y: np.ndarray
    x_error: np.ndarray
    y_error: np.ndarray
    shift: float  # log10(1 + z), NaN where the redshift is unknown
    log10_area: np.ndarray  # log10 of luminosity over flux
    line: tuple[float, float] | None  # log10_N and gamma


def golenetskii_planes(fit: Fit) -> Figure:
    """Plot flux against observed peak energy, and luminosity against rest-frame peak energy.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Golenetskii` or `GolenetskiiCounts`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Points: measured values with their errors, or posterior medians and standard deviations for a fit of counts.
        Lines: the posterior median line of each burst over the range of its intervals, with partial pooling. Bands in
        the right panel: 68 and 95 % predictive intervals for an interval of a new burst, given its peak energy. Bursts
        of unknown redshift are grey diamonds in the left panel only.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.
    """
    program: Any = model_of(fit)
    if isinstance(program, GolenetskiiCounts) and isinstance(fit.data, BurstSpectra):
        model: Any = program
        bursts, quantity, partial_pooling = _from_counts(fit, model), "flux", True
    else:
        model, data = model_and_data(fit, Golenetskii, Bursts, "golenetskii_planes")
        model = model.pooled_for(data)
        bursts, quantity, partial_pooling = _from_catalogue(fit, model), data.quantity, model.pooling == "partial"
    with house_style():
        figure = Figure(figsize=(8.2, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        rest_frame_x = [burst.x + burst.shift for burst in bursts if np.isfinite(burst.shift)]
        if rest_frame_x:
            x = np.concatenate(rest_frame_x)
            _draw_population(right, fit, model, partial_pooling, x.min() - 0.2, x.max() + 0.2)
        for i, burst in enumerate(bursts):
            known = np.isfinite(burst.shift)
            colour = BLUE if not partial_pooling else SERIES[i % MAX_COLOURED] if known else GREY
            style: Any = {"color": colour, "fmt": "o" if known else "D", "ms": 2.6, "elinewidth": 0.6, "alpha": 0.75}
            style |= {"mfc": colour if known else "none", "mew": 0.0 if known else 0.6, "zorder": 3}
            left.errorbar(burst.x, burst.y, burst.y_error, burst.x_error, **style)
            if not known:
                continue
            right.errorbar(burst.x + burst.shift, burst.y + burst.log10_area, burst.y_error, burst.x_error, **style)
            if burst.line is not None:
                log10_N, gamma = burst.line
                x = np.array([burst.x.min() - 0.05, burst.x.max() + 0.05]) + burst.shift
                line = log10_N + gamma * (x - PIVOT)
                left.plot(x - burst.shift, line - burst.log10_area.mean(), color=colour, lw=0.9, zorder=2)
                right.plot(x, line, color=colour, lw=0.9, zorder=2)
        observed, intrinsic = QUANTITY[quantity]
        left.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}$ [keV]", ylabel=observed, title="observed")
        right.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}(1+z)$ [keV]", ylabel=intrinsic, title="rest frame")
    return figure


def _from_catalogue(fit: Fit, model: Golenetskii) -> list[_Burst]:
    """Return the measured values of each burst."""
    data: Any = fit.data
    known = np.asarray(data.knows_redshift) | (np.asarray(data.sigma_z) > 0)
    z = np.where(known, data.z, 1.0)
    log10_area = _log10_area(fit, model, data, z)
    bursts = []
    for i, is_known in enumerate(known):
        used = np.asarray(data.used)[i]
        x, y = np.asarray(data.log10_E_peak)[i, used], np.asarray(data.log10_flux)[i, used]
        x_error, y_error = np.sqrt(np.asarray(data.errors)[i, used][:, [0, 2]]).T
        shift = np.log10(1.0 + z[i]) if is_known else np.nan
        line = None
        if model.pooling == "partial" and is_known:
            line = _median_line(fit, i, x + shift, y + log10_area[i, used])
        bursts.append(_Burst(x, y, x_error, y_error, float(shift), log10_area[i, used], line))
    return bursts


def _from_counts(fit: Fit, model: GolenetskiiCounts) -> list[_Burst]:
    """Return posterior medians and standard deviations of the intervals of each burst."""
    data: Any = fit.data
    drawn = true_values(fit, num_draws=NUM_DRAWS // 4)
    z = np.asarray(data.z)
    with jax.enable_x64(True):
        log10_areas = np.asarray(jax.jit(log10_sphere_area)(z, Cosmology.flat(H0=model.H0, Om0=model.Om0)))
    bursts = []
    for i in range(len(data)):
        in_burst = np.asarray(data.interval_burst) == i
        x, y = (drawn[name].to_numpy()[:, in_burst] for name in ("log10_E_peak", "log10_flux"))
        line = tuple(float(np.median(drawn[name].to_numpy()[:, i])) for name in ("log10_N", "gamma"))
        shift, log10_area = float(np.log10(1.0 + z[i])), np.full(in_burst.sum(), log10_areas[i])
        values = np.median(x, axis=0) - shift, np.median(y, axis=0), x.std(axis=0), y.std(axis=0)
        bursts.append(_Burst(*values, shift, log10_area, line))  # type: ignore[arg-type]
    return bursts


def _log10_area(fit: Fit, model: Golenetskii, data: Bursts, z) -> np.ndarray:
    """Return log10 of luminosity over measured flux, (B, J), at the posterior medians of a free cosmology."""
    cosmology = Cosmology.flat(H0=model.H0, Om0=model.Om0)
    if model.cosmology is not None:
        names = ("H0", *expansion.FREE[model.cosmology])
        medians = {name: float(np.median(parameter(fit, name))) for name in names}
        cosmology = expansion.cosmology_from(model.cosmology, medians)
    with jax.enable_x64(True):
        log10_area = np.asarray(jax.jit(log10_sphere_area)(z, cosmology))
        log10_area = log10_area - (np.log10(1.0 + z) if data.quantity == "fluence" else 0.0)
        return log10_area[:, None] + np.asarray(data.log10_k(z, model.band))


def _median_line(fit: Fit, i: int, x, y) -> tuple[float, float]:
    """Return the posterior median log10_N and gamma of a burst; log10_N follows from its data if integrated out."""
    require_values(fit, "gamma", "log10_N")
    gamma = float(np.median(fit.posterior["gamma"].isel(burst=i)))
    if "log10_N" in fit.posterior and "burst" in fit.posterior["log10_N"].dims:
        return float(np.median(fit.posterior["log10_N"].isel(burst=i))), gamma
    return float(np.mean(y - gamma * (x - PIVOT))), gamma


def _draw_population(axis, fit: Fit, model: Any, partial_pooling: bool, low: float, high: float) -> None:
    """Draw the predictive median and bands of log10 luminosity in one time interval of a new burst."""
    names = ["gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std"] if partial_pooling else ["gamma", "log10_N"]
    names += ["correlation"] if getattr(model, "correlated", False) else []
    draws = {name: parameter(fit, name) for name in names}
    draws["intrinsic_scatter"] = parameter(fit, "intrinsic_scatter", 0.0)
    num = max(map(len, draws.values()))
    keep = evenly_spaced(num, NUM_DRAWS)
    p = {name: np.broadcast_to(values, (num,))[keep] for name, values in draws.items()}
    rng = np.random.default_rng(0)
    u, v, w = rng.standard_normal((3, len(keep)))
    if partial_pooling:
        r = p.get("correlation", 0.0)
        gamma = p["gamma_mean"] + p["gamma_std"] * u
        log10_N = p["log10_N_mean"] + p["log10_N_std"] * (r * u + np.sqrt(1.0 - np.square(r)) * v)
    else:
        gamma, log10_N = p["gamma"], p["log10_N"]
    x = np.linspace(low, high, 60)
    drawn = log10_N[:, None] + gamma[:, None] * (x - PIVOT) + (p["intrinsic_scatter"] * w)[:, None]
    bands = np.quantile(drawn, QUANTILES, axis=0)
    fill_bands(axis, x, bands, alpha=0.6, zorder=0)
    axis.plot(x, bands[2], color=BLACK, lw=1.0, zorder=1, label="population")
    axis.legend(loc="upper left")


def redshift_predictions(fit: Fit, truth: Mapping[str, float] | np.ndarray | None = None) -> Figure:
    """Plot the redshifts that the relation predicts for bursts of unknown redshift.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Golenetskii` to data with bursts of unknown redshift, with its program and data.
    truth : mapping of str to float or array, optional
        True redshifts of these bursts, by name or in the order of the data.

    Returns
    -------
    matplotlib.figure.Figure
        Posterior medians with 68 % (thick) and 95 % intervals, against the true redshift if ``truth`` is passed,
        otherwise by name. Grey bands: 68 and 95 % intervals of the prior, for comparison.

    Raises
    ------
    ValueError
        If the fit is of another model, no redshift is unknown, z is fixed, or a true redshift is missing.
    """
    model, data = model_and_data(fit, Golenetskii, Bursts, "redshift_predictions")
    names = [name for name, z in zip(data.name, data.z, strict=True) if np.isnan(z)]
    prior = model.all_priors["z"]
    if not names:
        raise ValueError("redshift_predictions: expected bursts of unknown redshift; found none.")
    if not isinstance(prior, dist.Distribution):
        raise ValueError(f"redshift_predictions: expected a prior of z; found the fixed redshift {prior}.")
    quantiles = np.quantile(parameter(fit, "z"), QUANTILES, axis=0)
    true_z = None if truth is None else _truth(truth, names)
    prior_quantiles = np.quantile(np.asarray(prior.sample(jax.random.key(0), (20_000,))), QUANTILES)
    order = np.argsort(true_z if true_z is not None else quantiles[2])
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        x = np.log(true_z) if true_z is not None else np.empty(len(names))
        if true_z is None:
            x[order] = np.arange(len(names))
        bounds = np.log(prior_quantiles)
        axis.axhspan(bounds[0], bounds[4], color=BAND_95, alpha=0.45, lw=0, zorder=0, label="prior, 95 %")
        axis.axhspan(bounds[1], bounds[3], color=BAND_68, alpha=0.45, lw=0, zorder=0.5, label="prior, 68 %")
        draw_intervals(axis, x, np.log(quantiles), upright=True, label="posterior")
        ticks, limits = (np.log(SHOWN_Z), [f"{z:g}" for z in SHOWN_Z]), axis.get_ylim()
        axis.set_yticks(*ticks)
        axis.set(ylim=limits, ylabel="predicted redshift")
        if true_z is not None:
            low, high = np.log(quantiles[[0, -1]])
            ends = np.array([min(x.min(), low.min()), max(x.max(), high.max())])
            axis.plot(ends, ends, color=BLACK, lw=0.9, ls="--", zorder=1, label="truth")
            pad = 0.08 * (x.max() - x.min()) + 0.05
            axis.set_xticks(*ticks)
            axis.set(xlim=(x.min() - pad, x.max() + pad), xlabel="true redshift")
        else:
            axis.set_xticks(np.arange(len(names)), [names[i] for i in order], rotation=60, ha="right", fontsize=8)
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _truth(truth, names) -> np.ndarray:
    """Return the true redshifts in the order of ``names``."""
    if isinstance(truth, Mapping):
        missing = [name for name in names if name not in truth]
        if missing:
            raise ValueError(f"redshift_predictions: expected the true redshift of {missing[0]}; found none.")
        return np.array([float(truth[name]) for name in names])
    values = np.asarray(truth, float)
    if values.shape != (len(names),):
        raise ValueError(f"redshift_predictions: expected {len(names)} true redshifts; found shape {values.shape}.")
    return values


FIGURES = {
    "golenetskii_planes": (
        "Left: flux against observed peak energy. Right: luminosity against rest-frame peak energy. Lines: individual "
        "bursts. Bands: 68 and 95 % predictive intervals for an interval of a new burst.",
        golenetskii_planes,
    ),
}
REDSHIFT_FIGURES = {
    "redshift_predictions": (
        "Redshifts that the relation predicts for bursts of unknown redshift: medians with 68 and 95 % intervals, and "
        "the intervals of the prior.",
        redshift_predictions,
    ),
}


SELECTION_FIGURES = {
    "selected_bursts": (
        "Luminosities and fluxes, measured and simulated at the posterior means: detected ones, and those that are "
        "missing.",
        selected_bursts,
    ),
}
COUNTS_FIGURES = {
    "spectra": (
        "Counts of the brightest interval of the brightest bursts in every detector, the folded model (median and 68 % "
        "band) and the background. Below: signed square root of the contribution of each bin to the C statistic.",
        spectra,
    ),
}


def figures(fit: Fit):
    """Return the figures of a fit of bursts: spectra for counts, predicted redshifts where some are unknown."""
    selected = SELECTION_FIGURES if drawable(cast(Any, model_of(fit)), fit.data) else {}
    if isinstance(fit.data, BurstSpectra):
        return FIGURES | COUNTS_FIGURES | selected
    return FIGURES | selected | (REDSHIFT_FIGURES if np.isnan(np.asarray(cast(Any, fit.data).z)).any() else {})
