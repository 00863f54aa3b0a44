"""Joint posterior of two parameters, with the contours of their prior."""

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from hbm_jax.plotting.style import BLUE, GREY, SKY, Figure, house_style

LEVELS = (0.68, 0.95)
NUM_CELLS = 60
NUM_GRID = 300


class Joint(NamedTuple):
    """Figure of two parameters: axes of their plane, and of the marginal densities above and beside it."""

    figure: Figure
    main: Any
    above: Any
    beside: Any


def joint_posterior(draws: np.ndarray, priors: list[Any], ranges: list[tuple[float, float]]) -> Joint:
    """Draw the contours and the marginal densities of posterior and prior.

    Parameters
    ----------
    draws : (2, N)
        Posterior draws.
    priors : list of two Distributions
        Independent priors of the parameters.
    ranges : list of two pairs
        Range of each axis.

    Returns
    -------
    Joint
        Contours contain 68 and 95 % of the posterior. Dashed: contours of the prior, or its bounds where it is uniform.
    """
    edges = [np.linspace(*limits, NUM_CELLS + 1) for limits in ranges]
    centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
    density = smoothed(draws, edges)
    curves = [density_of(prior, grid) for prior, grid in zip(priors, centres, strict=True)]
    with house_style():
        figure = Figure(figsize=(5.0, 4.8))
        grid = figure.add_gridspec(
            2, 2, width_ratios=(3.2, 1.0), height_ratios=(1.0, 3.2), left=0.145, right=0.98, bottom=0.105, top=0.98,
            wspace=0.05, hspace=0.05,
        )  # fmt: skip
        main = figure.add_subplot(grid[1, 0])
        above, beside = figure.add_subplot(grid[0, 0], sharex=main), figure.add_subplot(grid[1, 1], sharey=main)
        levels = levels_of_draws(density, draws, centres)
        main.contourf(*centres, density.T, [*levels, 2.0 * density.max()], colors=[SKY, BLUE], alpha=0.75)
        main.contour(*centres, density.T, levels, colors=[BLUE], linewidths=0.9)
        _draw_prior(main, priors, ranges, centres, curves)
        for axis, values, edge, centre, curve, on_side in (
            (above, draws[0], edges[0], centres[0], curves[0], False),
            (beside, draws[1], edges[1], centres[1], curves[1], True),
        ):
            marginal = np.histogram(values, edge[::2], density=True)
            axis.stairs(
                *marginal, color=BLUE, fill=True, alpha=0.6, orientation="horizontal" if on_side else "vertical"
            )
            line = (curve, centre) if on_side else (centre, curve)
            axis.plot(*line, "--", color=GREY, lw=0.9, label="prior")
            axis.tick_params(labelbottom=False, labelleft=False)
            (axis.xaxis if on_side else axis.yaxis).set_ticks([])
        main.set_xlim(*ranges[0])
        main.set_ylim(*ranges[1])
    return Joint(figure, main, above, beside)


def _draw_prior(main, priors, ranges, centres, curves) -> None:
    """Draw contours of the prior; its bounds where it is uniform in both parameters and has no contours."""
    full_grids = [_prior_grid(prior, limits) for prior, limits in zip(priors, ranges, strict=True)]
    full_curves = [density_of(prior, grid) for prior, grid in zip(priors, full_grids, strict=True)]
    if all(np.ptp(curve) <= 1e-9 * curve.max() for curve in full_curves):
        for prior, limits, draw_line in zip(priors, ranges, (main.axvline, main.axhline), strict=True):
            for edge in (getattr(prior, "low", np.nan), getattr(prior, "high", np.nan)):
                if limits[0] <= float(edge) <= limits[1]:
                    draw_line(float(edge), color=GREY, lw=1.2, ls="--")
        return
    # The axes may show only part of the prior; the contour levels are those of the whole prior.
    shown = np.outer(*curves)
    levels = [level for level in levels_of(np.outer(*full_curves)) if shown.min() < level < shown.max()]
    if levels:
        main.contour(*centres, shown.T, levels, colors=[GREY], linewidths=0.9, linestyles="--")


def smoothed(draws, edges) -> np.ndarray:
    """Return a histogram of draws (2, N), smoothed by a Gaussian of two cells."""
    return gaussian_filter(np.histogram2d(draws[0], draws[1], bins=[*edges])[0], 2.0, mode="nearest")


def shown_range(values, prior) -> tuple[float, float]:
    """Return the range of the posterior with a margin, within the bounds of the prior."""
    low, high = np.quantile(values, (0.002, 0.998))
    margin = 0.15 * (high - low)
    lowest = float(getattr(prior, "low", -np.inf))
    highest = float(getattr(prior, "high", np.inf))
    return max(low - margin, lowest), min(high + margin, highest)


def _prior_grid(prior, default_range: tuple[float, float]) -> np.ndarray:
    """Return a grid from ``low`` to ``high`` of a prior; by default, over six standard deviations on either side.

    It covers the default range where the prior has no finite moments.
    """
    try:
        mean, std = float(prior.mean), float(prior.variance) ** 0.5
    except (NotImplementedError, TypeError):
        return np.linspace(*default_range, NUM_GRID)
    ends = float(getattr(prior, "low", mean - 6.0 * std)), float(getattr(prior, "high", mean + 6.0 * std))
    return np.linspace(*(ends if np.isfinite(ends).all() else default_range), NUM_GRID)


def density_of(prior, grid) -> np.ndarray:
    """Return the density of a prior on a grid."""
    with jax.enable_x64(True):
        return np.exp(np.asarray(prior.log_prob(grid)))


def levels_of_draws(density, draws, centres) -> list[float]:
    """Return the levels of a smoothed density whose contours contain the fractions `LEVELS` of the draws, outer first.

    Parameters
    ----------
    density : (n, m)
        Density in cells.
    draws : (2, N)
        Draws of the two quantities.
    centres : pair of (n,) and (m,)
        Centres of the cells, in equal steps.

    Notes
    -----
    The levels are quantiles of the density at the draws. Levels that contain these fractions of the smoothed density
    itself (`levels_of`) contain more of the draws: where a posterior is as narrow as the smoothing, 83 instead of 68 %.
    """
    cells = [(values - centre[0]) / (centre[1] - centre[0]) for values, centre in zip(draws, centres, strict=True)]
    at_draws = map_coordinates(density, cells, order=1, mode="nearest")
    inner, outer = np.quantile(at_draws, 1.0 - np.array(LEVELS))
    return [float(outer), max(float(inner), float(outer) * (1.0 + 1e-9))]


def levels_of(density) -> list[float]:
    """Return the densities whose contours contain the fractions `LEVELS`, the outer contour first."""
    sorted_density = np.sort(density.ravel())[::-1]
    cumulative = np.cumsum(sorted_density) / sorted_density.sum()
    levels = [float(sorted_density[np.searchsorted(cumulative, level)]) for level in LEVELS]
    return [levels[1], max(levels[0], levels[1] * (1.0 + 1e-9))]
