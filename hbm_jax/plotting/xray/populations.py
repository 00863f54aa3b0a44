"""Figures of a population of afterglows: host columns against redshift, parameters of the WHIM, and distributions."""

from typing import Any

import jax
import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpyro import distributions as dist

from hbm_jax.data import Afterglows, SourceSpectra
from hbm_jax.distributions.skew_normal import SkewNormal
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Afterglow, SpectralPopulation
from hbm_jax.plotting.contours import joint_posterior, shown_range
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    QUANTILES,
    SKY,
    VERMILION,
    Figure,
    fill_bands,
    house_style,
    panels,
)

UNIT_COLUMN = 22.0  # log10 of the unit of column density [cm^-2]
FAR = 1.0  # dex from the median to the lower end of the 95 % interval beyond which a column is an upper limit
LIMIT = "upper limit, 95 %"
BARYONS = 1.9e-7  # cm^-3, hydrogen at redshift 0 if all baryons were gas: 0.0224 x 1.88e-29 g cm^-3 x 0.76 / m_H
SHOWN_Z = (0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
NUM_GRID = 300
SERIES = ((BLUE, "o"), (ORANGE, "s"))


def host_columns(fit: Fit, other: Fit | None = None) -> Figure:
    """Plot the column of every host against redshift, with the population.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow`, with its program and data.
    other : Fit, optional
        Another fit of the same sources, for example with a WHIM where ``fit`` has none; lines connect the two columns
        of each source.

    Returns
    -------
    matplotlib.figure.Figure
        Medians with 68 % intervals. A column whose 95 % interval extends more than a factor of ten below the median is
        shown as an upper limit, an arrow from its 95 % quantile. Lines: posterior median of the population mean. Bands:
        its 68 % interval (dark) and one standard deviation of the population about it (light).

    Raises
    ------
    ValueError
        If a fit is not one of afterglows, has no host columns or was loaded without its program and data, or if the
        fits have no source in common.
    """
    fits = [fit] if other is None else [fit, other]
    models = [model_and_data(member, Afterglow, Afterglows, "host_columns")[0] for member in fits]
    names = ["with WHIM" if model.whim else "without WHIM" for model in models]
    names = names if len(set(names)) == len(names) else ["fit", "other"]
    if other is not None and not set(fit.data.name) & set(other.data.name):
        raise ValueError("host_columns: expected two fits of the same sources; found none in common.")
    with house_style():
        figure, axes = panels(1, 1, (6.4, 4.3), margins=(0.6, 0.12, 0.48, 0.35))
        axis = axes[0, 0]
        positions: list[dict[str, tuple[float, float]]] = []
        log1p_z = [float(np.log1p(z)) for member in fits for z in member.data.z]
        pad = 0.04 * (max(log1p_z) - min(log1p_z)) + 0.02
        # The two points of a source are drawn side by side.
        shift = 0.0 if other is None else 0.12 * pad
        for number, member in enumerate(fits):
            text = "host column" if other is None else names[number]
            positions.append(_draw_columns(axis, member, number, (2 * number - 1) * shift, text))
            _draw_mean(axis, member, SERIES[number][0], single=other is None)
        if other is not None:
            for name in positions[0].keys() & positions[1].keys():
                ends = zip(positions[0][name], positions[1][name], strict=True)
                axis.plot(*ends, color=GREY, lw=0.5, alpha=0.7, zorder=1.5)
        axis.set_xlim(max(min(log1p_z) - pad, 0.0), max(log1p_z) + pad)
        shown = [z for z in SHOWN_Z if min(log1p_z) - pad <= np.log1p(z) <= max(log1p_z) + pad]
        axis.set_xticks(np.log1p(shown), [f"{z:g}" for z in shown])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("redshift $z$")
        axis.set_ylabel(r"host column $\log_{10}\,N_\mathrm{H}$ [cm$^{-2}$]")
        figure.legend(loc="upper center", ncols=4)
    return figure


def _draw_columns(axis, fit: Fit, number: int, shift: float, name: str) -> dict[str, tuple[float, float]]:
    """Draw the columns of one fit and return the position of each source in the axes, by name."""
    colour, marker = SERIES[number]
    draws = parameter(fit, "log10_nh") + UNIT_COLUMN
    low, lower, median, upper, high = np.quantile(draws, (0.025, 0.16, 0.5, 0.84, 0.95), axis=0)
    x = np.log1p(np.asarray(fit.data.z)) + shift
    is_limit = median - low > FAR
    error = np.asarray(fit.data.sigma_z) / (1.0 + np.asarray(fit.data.z))
    style = {"color": colour, "elinewidth": 0.8, "zorder": 3}
    axis.errorbar(
        x[~is_limit], median[~is_limit], ((median - lower)[~is_limit], (upper - median)[~is_limit]),
        error[~is_limit] if error.any() else None,
        fmt=marker, markersize=3.2, markeredgewidth=0, label=name, **style,
    )  # fmt: skip
    if is_limit.any():
        in_legend = any(container.get_label() == LIMIT for container in axis.containers)
        length = 0.06 * (high.max() - lower[~is_limit].min(initial=median.min()))
        axis.errorbar(
            x[is_limit], high[is_limit], length, fmt="_", uplims=True, markersize=4.0, capsize=2.0,
            label="" if in_legend else LIMIT, **style | {"elinewidth": 0.7, "alpha": 0.7},
        )  # fmt: skip
    y = np.where(is_limit, high, median)
    return {source: (float(x[i]), float(y[i])) for i, source in enumerate(fit.data.name)}


def _draw_mean(axis, fit: Fit, colour: str, single: bool) -> None:
    """Draw the mean of a population, and its standard deviation if it is the only one in the figure."""
    mean, std = (parameter(fit, f"log10_nh_{part}") for part in ("mean", "std"))
    lower, median, upper = np.quantile(mean, (0.16, 0.5, 0.84)) + UNIT_COLUMN
    if single:
        width = float(np.median(std))
        text = "population, 1 s.d."
        axis.axhspan(median - width, median + width, color=colour, alpha=0.1, lw=0, zorder=0, label=text)
    text = "population mean, 68 %" if single else ""
    axis.axhspan(lower, upper, color=colour, alpha=0.25, lw=0, zorder=1, label=text)
    axis.axhline(median, color=colour, lw=0.9, zorder=1.2)


def whim_contour(fit: Fit) -> Figure:
    """Plot the joint posterior of density and temperature of the WHIM.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow` with a WHIM of free density and temperature.

    Returns
    -------
    matplotlib.figure.Figure
        Contours contain 68 and 95 % of the posterior, dashed contours of the prior; at the sides are the marginal
        densities of both. The vertical line is the density of hydrogen at redshift 0 if all baryons were gas.

    Raises
    ------
    ValueError
        If the fit is not one of afterglows, or has no WHIM of free density and temperature.
    """
    model, _ = model_and_data(fit, Afterglow, Afterglows, "whim_contour")
    names = whim_parameters(model)
    if not names:
        raise ValueError(
            "whim_contour: expected a fit with whim=True whose density and temperature are free; found "
            + ("fixed values." if model.whim else "one without WHIM.")
        )
    draws = np.stack([parameter(fit, name) for name in names])
    priors = [model.all_priors[name] for name in names]
    ranges = [shown_range(values, prior) for values, prior in zip(draws, priors, strict=True)]
    low, high = ranges[0]
    ranges[0] = (min(low, np.log10(BARYONS) - 0.15), max(high, np.log10(BARYONS) + 0.15))
    joint = joint_posterior(draws, priors, ranges)
    with house_style():
        for axis in (joint.main, joint.above):
            axis.axvline(np.log10(BARYONS), color=VERMILION, lw=1.1, zorder=5)
        joint.main.text(
            np.log10(BARYONS), 0.03, "all cosmic baryons ", color=VERMILION, rotation=90, ha="right", va="bottom",
            fontsize=8.5, transform=joint.main.get_xaxis_transform(),
            path_effects=[withStroke(linewidth=2.0, foreground="white")],
        )  # fmt: skip
        joint.main.set_xlabel(label(names[0], "1/cm^3"))
        joint.main.set_ylabel(label(names[1], "K"))
        joint.above.legend(loc="upper left")
    return joint.figure


def whim_parameters(model: Afterglow) -> tuple[str, ...]:
    """Return the names of density and temperature of the WHIM if both are free, else an empty tuple."""
    names = ("log10_n0_mean" if model.sightlines else "log10_n0", "log10_T")
    priors = model.all_priors
    return names if all(isinstance(priors.get(name), dist.Distribution) for name in names) else ()


def spectral_populations(fit: Fit, num_draws: int = 300) -> Figure:
    """Plot the population of every spectral parameter that varies, with the posteriors of the sources.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow` or `SpectralPopulation`, with its program and data.
    num_draws : int
        Number of posterior draws from which the bands are computed.

    Returns
    -------
    matplotlib.figure.Figure
        One panel for each quantity: density of the population (68 and 95 % bands), average of the posteriors of the
        sources (grey), and posterior median of each source (ticks at the bottom).

    Raises
    ------
    ValueError
        If the fit is not one of a population of X-ray sources or was loaded without its program and data.
    """
    model: Any = model_of(fit)
    if not (isinstance(model, Afterglow) and isinstance(fit.data, Afterglows)):
        model, _ = model_and_data(fit, SpectralPopulation, SourceSpectra, "spectral_populations")
    with house_style():
        sites = model.sites if isinstance(model, SpectralPopulation) else model.medium.sites
        names, units = [varying.site for varying in sites], model.units
        num_columns = len(names) if len(names) < 3 else 4  # of the legend, which has four entries
        top = 0.16 + 0.2 * -(-4 // num_columns)
        size = (2.46 * len(names) + 0.02, 2.54 + top)
        figure, axes = panels(1, len(names), size, margins=(0.3, 0.12, 0.48, top), gaps=(0.15, 0.0))
        for axis, name in zip(axes[0], names, strict=True):
            draws = parameter(fit, name)
            low, high = np.quantile(draws, (0.001, 0.999))
            grid = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), NUM_GRID)
            bands = np.quantile(_population(fit, model, name, grid, num_draws), QUANTILES, axis=0)
            axis.hist(draws.ravel(), bins=40, density=True, color="#d9d9d9", label="posteriors of sources")
            fill_bands(axis, grid, bands, "population", (SKY, BLUE), alpha=0.6)
            medians = np.median(draws, axis=0)
            axis.plot(
                medians, np.full(len(medians), 0.03), "|", color=BLACK, markersize=6.0, markeredgewidth=0.7,
                transform=axis.get_xaxis_transform(), label="median of a source",
            )  # fmt: skip
            axis.set_xlim(grid[0], grid[-1])
            axis.set_ylim(0.0, None)
            axis.set_yticks([])
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.set_xlabel(label(name, units.get(name, "")))
        figure.axes[0].set_ylabel("density")
        handles, texts = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="upper center", ncols=num_columns, columnspacing=1.2)
    return figure


def afterglow_populations(fit: Fit, num_draws: int = 300) -> Figure:
    """Plot the populations of a fit of `hbm_jax.models.Afterglow`, as `spectral_populations`."""
    model_and_data(fit, Afterglow, Afterglows, "afterglow_populations")
    return spectral_populations(fit, num_draws)


def _population(fit: Fit, model: Any, name: str, grid, num_draws: int) -> np.ndarray:
    """Return the density of a population on a grid at posterior draws, (draw, grid)."""
    is_skewed = name == "log10_nh" and getattr(model, "host", "") == "skew-normal"
    names = [f"{name}_{part}" for part in ("mean", "std", *(["shape"] if is_skewed else []))]
    values = np.broadcast_arrays(*(parameter(fit, name) for name in names))
    chosen = evenly_spaced(len(values[0]), num_draws)
    mean, std, *shape = (v[chosen, None] for v in values)
    with jax.enable_x64(True):
        population = SkewNormal.standardised(mean, std, shape[0]) if is_skewed else dist.Normal(mean, std)
        return np.exp(np.asarray(population.log_prob(grid)))
