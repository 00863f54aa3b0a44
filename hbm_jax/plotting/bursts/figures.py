"""Figures of gamma-ray bursts: the planes of peak energy and brightness, and redshifts that the relation predicts."""

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
MAX_COLOURED = len(SERIES)  # bursts that get a colour of their own; of more, colours repeat
SHOWN_Z = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
QUANTITY = {
    "flux": (r"flux $\log_{10}\,F$ [erg cm$^{-2}$ s$^{-1}$]", r"luminosity $\log_{10}\,L$ [erg s$^{-1}$]"),
    "fluence": (r"fluence $\log_{10}\,S$ [erg cm$^{-2}$]", r"energy $\log_{10}\,E_\mathrm{iso}$ [erg]"),
}


class _Burst(NamedTuple):
    """Intervals of a burst as they are drawn: observed peak energy, brightness, errors, and what leads to rest."""

    x: np.ndarray
    y: np.ndarray
    x_error: np.ndarray
    y_error: np.ndarray
    shift: float  # from observed to rest-frame peak energy, NaN where the redshift is unknown
    away: np.ndarray  # from flux to luminosity
    line: tuple[float, float] | None  # log10_N and gamma


def golenetskii_planes(fit: Fit) -> Figure:
    """Flux against peak energy as observed, and luminosity against peak energy in the bursts' frame, side by side.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Golenetskii` or `GolenetskiiCounts`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Measured values with their errors; from counts, posterior medians and standard deviations instead. Lines: where
        each burst has its own, that one at its posterior median, over the range of its intervals. Right, bands: 68 and
        95 % of where a new burst's interval would be, given its peak energy. Bursts of unknown redshift are grey
        diamonds, left only.

    Raises
    ------
    ValueError
        If the fit is not one of these, or was loaded without its program and data.

    Examples
    --------
    >>> golenetskii_planes(fit).savefig("planes.pdf")  # doctest: +SKIP
    """
    program: Any = model_of(fit)
    if isinstance(program, GolenetskiiCounts) and isinstance(fit.data, BurstSpectra):
        model: Any = program
        bursts, quantity, own_lines = _from_counts(fit, model), "flux", True
    else:
        model = program_of(fit, Golenetskii, Bursts, "golenetskii_planes")
        own_lines = model.pooling == "partial"
        bursts, quantity = _from_catalogue(fit, model), cast(Bursts, fit.data).quantity
    with house_style():
        figure = Figure(figsize=(8.2, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        at_rest = [burst.x + burst.shift for burst in bursts if np.isfinite(burst.shift)]
        if at_rest:
            every = np.concatenate(at_rest)
            _draw_population(right, fit, model, own_lines, every.min() - 0.2, every.max() + 0.2)
        for i, burst in enumerate(bursts):
            known = np.isfinite(burst.shift)
            colour = BLUE if not own_lines else SERIES[i % MAX_COLOURED] if known else GREY
            style: Any = {"color": colour, "fmt": "o" if known else "D", "ms": 2.6, "elinewidth": 0.6, "alpha": 0.75}
            style |= {"mfc": colour if known else "none", "mew": 0.0 if known else 0.6, "zorder": 3}
            left.errorbar(burst.x, burst.y, burst.y_error, burst.x_error, **style)
            if not known:
                continue
            right.errorbar(burst.x + burst.shift, burst.y + burst.away, burst.y_error, burst.x_error, **style)
            if burst.line is not None:
                level, gamma = burst.line
                at = np.array([burst.x.min() - 0.05, burst.x.max() + 0.05]) + burst.shift
                line = level + gamma * (at - PIVOT)
                left.plot(at - burst.shift, line - burst.away.mean(), color=colour, lw=0.9, zorder=2)
                right.plot(at, line, color=colour, lw=0.9, zorder=2)
        observed, intrinsic = QUANTITY[quantity]
        left.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}$ [keV]", ylabel=observed, title="as observed")
        right.set(xlabel=r"$\log_{10}\,E_\mathrm{peak}(1+z)$ [keV]", ylabel=intrinsic, title="in the bursts' frame")
    return figure


def _from_catalogue(fit: Fit, model: Golenetskii) -> list[_Burst]:
    data: Any = fit.data
    known = np.asarray(data.knows_redshift) | (np.asarray(data.sigma_z) > 0)
    z = np.where(known, data.z, 1.0)
    away = _away(fit, model, data, z)
    found = []
    for i, is_known in enumerate(known):
        used = np.asarray(data.used)[i]
        x, y = np.asarray(data.log10_E_peak)[i, used], np.asarray(data.log10_flux)[i, used]
        x_error, y_error = np.sqrt(np.asarray(data.errors)[i, used][:, [0, 2]]).T
        shift = np.log10(1.0 + z[i]) if is_known else np.nan
        line = None
        if model.pooling == "partial" and is_known:
            line = _line_of(fit, i, x + shift, y + away[i, used])
        found.append(_Burst(x, y, x_error, y_error, float(shift), away[i, used], line))
    return found


def _from_counts(fit: Fit, model: GolenetskiiCounts) -> list[_Burst]:
    data: Any = fit.data
    drawn = latents(fit, num_draws=NUM_DRAWS // 4)
    z = np.asarray(data.z)
    with jax.enable_x64(True):
        sphere = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(H0=model.H0, Om0=model.Om0)))
    found = []
    for i in range(len(data)):
        own = np.asarray(data.interval_burst) == i
        x, y = (drawn[name].to_numpy()[:, own] for name in ("log10_E_peak", "log10_flux"))
        shift = float(np.log10(1.0 + z[i]))
        level, gamma = (float(np.median(drawn[name].to_numpy()[:, i])) for name in ("log10_N", "gamma"))
        errors = x.std(axis=0), y.std(axis=0)
        away = np.full(own.sum(), sphere[i])
        found.append(_Burst(np.median(x, axis=0) - shift, np.median(y, axis=0), *errors, shift, away, (level, gamma)))
    return found


def _away(fit: Fit, model: Golenetskii, data: Bursts, z) -> np.ndarray:
    """Logarithm of luminosity over measured flux, (B, J), at the posterior medians of a free cosmology."""
    values = {name: float(np.median(parameter(fit, name, default))) for name, default in
              (("H0", model.H0), ("Om0", model.Om0))}  # fmt: skip
    with jax.enable_x64(True):
        away = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(**values)))  # type: ignore[arg-type]
        away = away - (np.log10(1.0 + z) if data.quantity == "fluence" else 0.0)
        return away[:, None] + np.asarray(data.log10_k(z, model.band))


def _line_of(fit: Fit, i: int, x, y) -> tuple[float, float]:
    """log10_N and gamma of a burst at the posterior median; the level through its data where it was integrated out."""
    gamma = float(np.median(fit.posterior["gamma"].isel(burst=i)))
    if "log10_N" in fit.posterior and "burst" in fit.posterior["log10_N"].dims:
        return float(np.median(fit.posterior["log10_N"].isel(burst=i))), gamma
    return float(np.mean(y - gamma * (x - PIVOT))), gamma


def _draw_population(axis, fit: Fit, model: Any, own_lines: bool, low: float, high: float) -> None:
    """Band of a new burst's intervals, and the median of its centre."""
    names = ["gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std"] if own_lines else ["gamma", "log10_N"]
    names += ["correlation"] if getattr(model, "correlated", False) else []
    draws = {name: parameter(fit, name) for name in names}
    draws["intrinsic_scatter"] = parameter(fit, "intrinsic_scatter", 0.0)
    num = max(map(len, draws.values()))
    keep = spread(num, NUM_DRAWS)
    p = {name: np.broadcast_to(values, (num,))[keep] for name, values in draws.items()}
    rng = np.random.default_rng(0)
    u, v, w = rng.standard_normal((3, len(keep)))
    if own_lines:
        r = p.get("correlation", 0.0)
        gamma = p["gamma_mean"] + p["gamma_std"] * u
        level = p["log10_N_mean"] + p["log10_N_std"] * (r * u + np.sqrt(1.0 - np.square(r)) * v)
    else:
        gamma, level = p["gamma"], p["log10_N"]
    at = np.linspace(low, high, 60)
    drawn = level[:, None] + gamma[:, None] * (at - PIVOT) + (p["intrinsic_scatter"] * w)[:, None]
    lowest, lower, median, upper, highest = np.quantile(drawn, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
    axis.fill_between(at, lowest, highest, color=BAND_95, alpha=0.6, lw=0, zorder=0, label="95 %")
    axis.fill_between(at, lower, upper, color=BAND_68, alpha=0.6, lw=0, zorder=0.5, label="68 %")
    axis.plot(at, median, color=BLACK, lw=1.0, zorder=1, label="population")
    axis.legend(loc="upper left")


def redshift_predictions(fit: Fit, truth: Mapping[str, float] | np.ndarray | None = None) -> Figure:
    """Redshifts that the relation predicts for bursts of unknown redshift, beside the prior.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Golenetskii` with bursts of unknown redshift, with its program and data.
    truth : mapping of str to float or array, optional
        Their true redshifts, by name or in the order of the data.

    Returns
    -------
    matplotlib.figure.Figure
        68 % (thick) and 95 % intervals and medians, against the truth if it is given, else by name. Grey, the prior's
        intervals: what the relation adds is how much shorter the others are.

    Raises
    ------
    ValueError
        If the fit is not one of `Golenetskii`, no redshift is unknown, or one has no truth.
    """
    model = program_of(fit, Golenetskii, Bursts, "redshift_predictions")
    data: Any = fit.data
    names = [name for name, z in zip(data.name, data.z, strict=True) if np.isnan(z)]
    prior = model.all_priors["z"]
    if not names or not isinstance(prior, dist.Distribution):
        raise ValueError("redshift_predictions: expected bursts of unknown redshift; found none.")
    draws = fit.posterior["z"].transpose("chain", "draw", ...).to_numpy().reshape(-1, len(names))
    quantiles = np.quantile(draws, (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
    given = None if truth is None else _truth(truth, names)
    expected = np.quantile(np.asarray(prior.sample(jax.random.key(0), (20_000,))), (0.025, 0.16, 0.5, 0.84, 0.975))
    order = np.argsort(given if given is not None else quantiles[2])
    with house_style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axis = figure.subplots()
        x = np.log(given) if given is not None else np.empty(len(names))
        if given is None:
            x[order] = np.arange(len(names))
        low, lower, median, upper, high = np.log(quantiles)
        bounds = np.log(expected)
        axis.axhspan(bounds[0], bounds[4], color=BAND_95, alpha=0.45, lw=0, zorder=0, label="prior, 95 %")
        axis.axhspan(bounds[1], bounds[3], color=BAND_68, alpha=0.45, lw=0, zorder=0.5, label="prior, 68 %")
        axis.vlines(x, low, high, color=BLUE, lw=0.8, zorder=2)
        axis.vlines(x, lower, upper, color=BLUE, lw=2.4, zorder=2, label="posterior")
        axis.plot(x, median, "o", color=BLUE, ms=3.5, zorder=3)
        ticks = FixedLocator(list(np.log(SHOWN_Z)))
        text = FuncFormatter(lambda u, _: f"{np.exp(u):.3g}")
        axis.yaxis.set_major_locator(ticks)
        axis.yaxis.set_major_formatter(text)
        axis.yaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylabel("redshift predicted")
        if given is not None:
            ends = np.array([min(x.min(), low.min()), max(x.max(), high.max())])
            axis.plot(ends, ends, color=BLACK, lw=0.9, ls="--", zorder=1, label="truth")
            pad = 0.08 * (x.max() - x.min()) + 0.05
            axis.set_xlim(x.min() - pad, x.max() + pad)
            axis.xaxis.set_major_locator(FixedLocator(list(np.log(SHOWN_Z))))
            axis.xaxis.set_major_formatter(text)
            axis.set_xlabel("true redshift")
        else:
            axis.set_xticks(np.arange(len(names)), [names[i] for i in order], rotation=60, ha="right", fontsize=8)
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _truth(truth, names) -> np.ndarray:
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
        "Flux against peak energy as observed, left, and luminosity against peak energy in the bursts' frame, right. "
        "Lines are those of single bursts; bands hold 68 and 95 % of where an interval of a new burst would be.",
        golenetskii_planes,
    ),
}
REDSHIFT_FIGURES = {
    "redshift_predictions": (
        "Redshifts that the relation predicts for bursts whose redshift it was not told: medians, 68 and 95 % "
        "intervals, and those of the prior.",
        redshift_predictions,
    ),
}


COUNTS_FIGURES = {
    "spectra": (
        "Counts of the brightest interval of the brightest bursts in every detector, the folded model (median and 68 % "
        "band), the background, and the root of each bin's C below.",
        spectra,
    ),
}


def figures(fit: Fit):
    """Figures of a fit of bursts: spectra where there are counts, predicted redshifts where some are unknown."""
    if isinstance(fit.data, BurstSpectra):
        return FIGURES | COUNTS_FIGURES
    return FIGURES | (REDSHIFT_FIGURES if np.isnan(np.asarray(cast(Any, fit.data).z)).any() else {})
