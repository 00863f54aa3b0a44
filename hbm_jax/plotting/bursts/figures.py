"""Figures of gamma-ray bursts: peak energy against flux and luminosity, and redshifts predicted by the relation."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Bursts, BurstSpectra
from hbm_jax.inference import Fit, latents
from hbm_jax.inference.results import model_of
from hbm_jax.models import Golenetskii, GolenetskiiCounts
from hbm_jax.models.bursts.golenetskii import PIVOT
from hbm_jax.plotting.count_spectra import spectra
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, BLUE, GREY, SERIES, Figure, house_style
from hbm_jax.spectra.model.energetics import log10_sphere

NUM_DRAWS = 2000
MAX_COLOURED = len(SERIES)  # bursts with distinct colours; beyond, colours repeat
SHOWN_Z = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
QUANTITY = {
    "flux": (r"flux $\log_{10}\,F$ [erg cm$^{-2}$ s$^{-1}$]", r"luminosity $\log_{10}\,L$ [erg s$^{-1}$]"),
    "fluence": (r"fluence $\log_{10}\,S$ [erg cm$^{-2}$]", r"energy $\log_{10}\,E_\mathrm{iso}$ [erg]"),
}


class _Burst(NamedTuple):
    """Intervals of a burst: observed log10 peak energy and flux, their errors, and the conversion to the rest frame."""

    x: np.ndarray
    y: np.ndarray
    x_error: np.ndarray
    y_error: np.ndarray
    shift: float  # log10(1 + z); NaN if the redshift is unknown
    log10_ratio: np.ndarray  # log10 of luminosity over flux
    line: tuple[float, float] | None  # log10_N and gamma


def golenetskii_planes(fit: Fit) -> Figure:
    """Draw flux against observed peak energy, and luminosity against rest-frame peak energy, side by side.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Golenetskii` or `GolenetskiiCounts`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Points are measured values with their errors; for fits of counts, posterior medians and standard deviations. If
        each burst has its own relation, its line at the posterior median is drawn over the range of its intervals.
        Right: bands contain 68 and 95 % of the predicted luminosities of an interval of a new burst, given its peak
        energy. Bursts of unknown redshift are grey diamonds, in the left panel only.

    Raises
    ------
    ValueError
        If the fit is of another model, or was loaded without its program and data.

    Examples
    --------
    >>> golenetskii_planes(fit).savefig("planes.pdf")  # doctest: +SKIP
    """
    program: Any = model_of(fit)
    if isinstance(program, GolenetskiiCounts) and isinstance(fit.data, BurstSpectra):
        model: Any = program
        bursts, quantity, line_per_burst = _from_counts(fit, model), "flux", True
    else:
        model = program_of(fit, Golenetskii, Bursts, "golenetskii_planes")
        line_per_burst = model.pooling == "partial"
        bursts, quantity = _from_catalogue(fit, model), cast(Bursts, fit.data).quantity
    with house_style():
        figure = Figure(figsize=(8.2, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        rest_frame = [burst.x + burst.shift for burst in bursts if np.isfinite(burst.shift)]
        if rest_frame:
            log10_E_peak = np.concatenate(rest_frame)
            _draw_population(right, fit, model, line_per_burst, log10_E_peak.min() - 0.2, log10_E_peak.max() + 0.2)
        for index, burst in enumerate(bursts):
            known = np.isfinite(burst.shift)
            colour = BLUE if not line_per_burst else SERIES[index % MAX_COLOURED] if known else GREY
            style: Any = {"color": colour, "fmt": "o" if known else "D", "ms": 2.6, "elinewidth": 0.6, "alpha": 0.75}
            style |= {"mfc": colour if known else "none", "mew": 0.0 if known else 0.6, "zorder": 3}
            left.errorbar(burst.x, burst.y, burst.y_error, burst.x_error, **style)
            if not known:
                continue
            right.errorbar(burst.x + burst.shift, burst.y + burst.log10_ratio, burst.y_error, burst.x_error, **style)
            if burst.line is not None:
                log10_N, gamma = burst.line
                ends = np.array([burst.x.min() - 0.05, burst.x.max() + 0.05]) + burst.shift
                line = log10_N + gamma * (ends - PIVOT)
                left.plot(ends - burst.shift, line - burst.log10_ratio.mean(), color=colour, lw=0.9, zorder=2)
                right.plot(ends, line, color=colour, lw=0.9, zorder=2)
        observed, intrinsic = QUANTITY[quantity]
        left.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}$ [keV]", ylabel=observed, title="as observed")
        right.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}(1+z)$ [keV]", ylabel=intrinsic, title="rest frame")
    return figure


def _from_catalogue(fit: Fit, model: Golenetskii) -> list[_Burst]:
    """Return the bursts of a fit of catalogue values."""
    data: Any = fit.data
    known = np.asarray(data.knows_redshift) | (np.asarray(data.sigma_z) > 0)
    z = np.where(known, data.z, 1.0)
    log10_ratio = _log10_luminosity_ratio(fit, model, data, z)
    bursts = []
    for index, is_known in enumerate(known):
        used = np.asarray(data.used)[index]
        x, y = np.asarray(data.log10_E_peak)[index, used], np.asarray(data.log10_flux)[index, used]
        x_error, y_error = np.sqrt(np.asarray(data.errors)[index, used][:, [0, 2]]).T
        shift = np.log10(1.0 + z[index]) if is_known else np.nan
        line = None
        if model.pooling == "partial" and is_known:
            line = _line_parameters(fit, index, x + shift, y + log10_ratio[index, used])
        bursts.append(_Burst(x, y, x_error, y_error, float(shift), log10_ratio[index, used], line))
    return bursts


def _from_counts(fit: Fit, model: GolenetskiiCounts) -> list[_Burst]:
    """Return the bursts of a fit of counts, at posterior medians and standard deviations."""
    data: Any = fit.data
    draws = latents(fit, num_draws=NUM_DRAWS // 4)
    z = np.asarray(data.z)
    with jax.enable_x64(True):
        log10_area = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(H0=model.H0, Om0=model.Om0)))
    bursts = []
    for index in range(len(data)):
        mask = np.asarray(data.interval_burst) == index
        x, y = (draws[name].to_numpy()[:, mask] for name in ("log10_E_peak", "log10_flux"))
        shift = float(np.log10(1.0 + z[index]))
        log10_N, gamma = (float(np.median(draws[name].to_numpy()[:, index])) for name in ("log10_N", "gamma"))
        errors = x.std(axis=0), y.std(axis=0)
        ratio = np.full(mask.sum(), log10_area[index])
        bursts.append(
            _Burst(np.median(x, axis=0) - shift, np.median(y, axis=0), *errors, shift, ratio, (log10_N, gamma))
        )
    return bursts


def _log10_luminosity_ratio(fit: Fit, model: Golenetskii, data: Bursts, z) -> np.ndarray:
    """Return log10 of luminosity over measured flux, (B, J), for posterior medians of the cosmology."""
    values = {name: float(np.median(parameter(fit, name, default))) for name, default in
              (("H0", model.H0), ("Om0", model.Om0))}  # fmt: skip
    with jax.enable_x64(True):
        log10_ratio = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(**values)))  # type: ignore[arg-type]
        log10_ratio = log10_ratio - (np.log10(1.0 + z) if data.quantity == "fluence" else 0.0)
        return log10_ratio[:, None] + np.asarray(data.log10_k(z, model.band))


def _line_parameters(fit: Fit, index: int, x, y) -> tuple[float, float]:
    """Return log10_N and gamma of a burst at the posterior median; log10_N from its data if it was integrated out."""
    gamma = float(np.median(fit.posterior["gamma"].isel(burst=index)))
    if "log10_N" in fit.posterior and "burst" in fit.posterior["log10_N"].dims:
        return float(np.median(fit.posterior["log10_N"].isel(burst=index))), gamma
    return float(np.mean(y - gamma * (x - PIVOT))), gamma


def _draw_population(axis, fit: Fit, model: Any, line_per_burst: bool, low: float, high: float) -> None:
    """Draw the predictive bands and the median for an interval of a new burst."""
    names = ["gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std"] if line_per_burst else ["gamma", "log10_N"]
    names += ["correlation"] if getattr(model, "correlated", False) else []
    draws = {name: parameter(fit, name) for name in names}
    draws["intrinsic_scatter"] = parameter(fit, "intrinsic_scatter", 0.0)
    num_draws = max(map(len, draws.values()))
    indices = spread(num_draws, NUM_DRAWS)
    p = {name: np.broadcast_to(values, (num_draws,))[indices] for name, values in draws.items()}
    rng = np.random.default_rng(0)
    u, v, w = rng.standard_normal((3, len(indices)))
    if line_per_burst:
        correlation = p.get("correlation", 0.0)
        gamma = p["gamma_mean"] + p["gamma_std"] * u
        log10_N = p["log10_N_mean"] + p["log10_N_std"] * (correlation * u + np.sqrt(1.0 - np.square(correlation)) * v)
    else:
        gamma, log10_N = p["gamma"], p["log10_N"]
    grid = np.linspace(low, high, 60)
    luminosities = log10_N[:, None] + gamma[:, None] * (grid - PIVOT) + (p["intrinsic_scatter"] * w)[:, None]
    lowest, lower, median, upper, highest = np.quantile(luminosities, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
    axis.fill_between(grid, lowest, highest, color=BAND_95, alpha=0.6, lw=0, zorder=0, label="95 %")
    axis.fill_between(grid, lower, upper, color=BAND_68, alpha=0.6, lw=0, zorder=0.5, label="68 %")
    axis.plot(grid, median, color=BLACK, lw=1.0, zorder=1, label="population")
    axis.legend(loc="upper left")


def redshift_predictions(fit: Fit, truth: Mapping[str, float] | np.ndarray | None = None) -> Figure:
    """Draw the redshifts predicted by the relation for bursts of unknown redshift, with the prior.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Golenetskii` with bursts of unknown redshift, with its program and data.
    truth : mapping of str to float or array, optional
        True redshifts of these bursts, by name or in the order of the data.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 % (thick) and 95 % intervals, against the true redshifts if they are passed, otherwise by name.
        Grey: 68 and 95 % intervals of the prior, for comparison.

    Raises
    ------
    ValueError
        If the fit is of another model, no redshift is unknown, or a true redshift is missing.
    """
    model = program_of(fit, Golenetskii, Bursts, "redshift_predictions")
    data: Any = fit.data
    names = [name for name, z in zip(data.name, data.z, strict=True) if np.isnan(z)]
    prior = model.all_priors["z"]
    if not names or not isinstance(prior, dist.Distribution):
        raise ValueError("redshift_predictions: expected bursts of unknown redshift; found none.")
    draws = fit.posterior["z"].transpose("chain", "draw", ...).to_numpy().reshape(-1, len(names))
    quantiles = np.quantile(draws, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
    true_redshifts = None if truth is None else _true_redshifts(truth, names)
    prior_levels = np.quantile(np.asarray(prior.sample(jax.random.key(0), (20_000,))), (0.025, 0.16, 0.5, 0.84, 0.975))
    order = np.argsort(true_redshifts if true_redshifts is not None else quantiles[2])
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        x = np.log(true_redshifts) if true_redshifts is not None else np.empty(len(names))
        if true_redshifts is None:
            x[order] = np.arange(len(names))
        low, lower, median, upper, high = np.log(quantiles)
        bounds = np.log(prior_levels)
        axis.axhspan(bounds[0], bounds[4], color=BAND_95, alpha=0.45, lw=0, zorder=0, label="prior, 95 %")
        axis.axhspan(bounds[1], bounds[3], color=BAND_68, alpha=0.45, lw=0, zorder=0.5, label="prior, 68 %")
        axis.vlines(x, low, high, color=BLUE, lw=0.8, zorder=2)
        axis.vlines(x, lower, upper, color=BLUE, lw=2.4, zorder=2, label="posterior")
        axis.plot(x, median, "o", color=BLUE, ms=3.5, zorder=3)
        ticks = FixedLocator(list(np.log(SHOWN_Z)))
        formatter = FuncFormatter(lambda u, _: f"{np.exp(u):.3g}")
        axis.yaxis.set_major_locator(ticks)
        axis.yaxis.set_major_formatter(formatter)
        axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylabel("predicted redshift")
        if true_redshifts is not None:
            ends = np.array([min(x.min(), low.min()), max(x.max(), high.max())])
            axis.plot(ends, ends, color=BLACK, lw=0.9, ls="--", zorder=1, label="truth")
            pad = 0.08 * (x.max() - x.min()) + 0.05
            axis.set_xlim(x.min() - pad, x.max() + pad)
            axis.xaxis.set_major_locator(FixedLocator(list(np.log(SHOWN_Z))))
            axis.xaxis.set_major_formatter(formatter)
            axis.set_xlabel("true redshift")
        else:
            axis.set_xticks(np.arange(len(names)), [names[i] for i in order], rotation=60, ha="right", fontsize=8)
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _true_redshifts(truth, names) -> np.ndarray:
    """Return the true redshifts of the named bursts; raise ValueError where one is missing."""
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
        "Left: flux against observed peak energy. Right: luminosity against rest-frame peak energy. Lines are the "
        "relations of single bursts; bands contain 68 and 95 % of the predictions for an interval of a new burst.",
        golenetskii_planes,
    ),
}
REDSHIFT_FIGURES = {
    "redshift_predictions": (
        "Redshifts predicted by the relation for bursts of unknown redshift: medians, 68 and 95 % intervals, and the "
        "intervals of the prior.",
        redshift_predictions,
    ),
}


COUNTS_FIGURES = {
    "spectra": (
        "Counts of the brightest interval of the brightest bursts in every detector, with the folded model (median "
        "and 68 % band) and the background. Below: square root of the C statistic of each bin.",
        spectra,
    ),
}


def figures(fit: Fit):
    """Return the figures of a fit of bursts: spectra for counts, predicted redshifts where redshifts are unknown."""
    if isinstance(fit.data, BurstSpectra):
        return FIGURES | COUNTS_FIGURES
    return FIGURES | (REDSHIFT_FIGURES if np.isnan(np.asarray(cast(Any, fit.data).z)).any() else {})
