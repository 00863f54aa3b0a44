"""The joint posterior of two parameters with their priors over it."""

from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.ndimage import gaussian_filter

from hbm_jax.plotting.style import BLUE, GREY, SKY, Figure, house_style

LEVELS = (0.68, 0.95)
NUM_CELLS = 60
NUM_GRID = 300


class Joint(NamedTuple):
    """A figure of two parameters: their plane, and the marginal densities above and beside it."""

    figure: Figure
    main: Any
    above: Any
    beside: Any


def joint_posterior(draws: np.ndarray, priors: list[Any], ranges: list[tuple[float, float]]) -> Joint:
    """Contours of the posterior and of the prior, and the marginal densities of both.

    Parameters
    ----------
    draws : (2, N)
        Posterior draws.
    priors : list of two Distributions
        Independent.
    ranges : list of two pairs
        What is shown.

    Returns
    -------
    Joint
        Contours hold 68 and 95 % of the posterior; dashed, those of the prior, or its edges where it is flat.
    """
    edges = [np.linspace(*limits, NUM_CELLS + 1) for limits in ranges]
    centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
    density = smoothed(draws, edges)
    curves = [density_of(prior, grid) for prior, grid in zip(priors, centres, strict=True)]
    with house_style():
        figure = Figure(figsize=(5.0, 4.8), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(3.2, 1.0), height_ratios=(1.0, 3.2))
        main = figure.add_subplot(grid[1, 0])
        above, beside = figure.add_subplot(grid[0, 0], sharex=main), figure.add_subplot(grid[1, 1], sharey=main)
        levels = levels_of(density)
        main.contourf(*centres, density.T, [*levels, 2.0 * density.max()], colors=[SKY, BLUE], alpha=0.75)
        main.contour(*centres, density.T, levels, colors=[BLUE], linewidths=0.9)
        _draw_prior(main, priors, ranges, centres, curves)
        for axis, values, centre, curve, flat in (
            (above, draws[0], centres[0], curves[0], False), (beside, draws[1], centres[1], curves[1], True),
        ):  # fmt: skip
            marginal = np.histogram(values, np.linspace(*_ends(centre), len(centre) // 2 + 1), density=True)
            axis.stairs(*marginal, color=BLUE, fill=True, alpha=0.6, orientation="horizontal" if flat else "vertical")
            line = (curve, centre) if flat else (centre, curve)
            axis.plot(*line, "--", color=GREY, lw=0.9, label="prior")
            axis.tick_params(labelbottom=False, labelleft=False)
            (axis.xaxis if flat else axis.yaxis).set_ticks([])
        main.set_xlim(*ranges[0])
        main.set_ylim(*ranges[1])
    return Joint(figure, main, above, beside)


def _draw_prior(main, priors, ranges, centres, curves) -> None:
    """Contours of the prior; its edges where it is flat in both parameters, so that there are none."""
    outer_grids = [_all_of(prior, limits) for prior, limits in zip(priors, ranges, strict=True)]
    of_all = [density_of(prior, grid) for prior, grid in zip(priors, outer_grids, strict=True)]
    if all(np.ptp(curve) <= 1e-9 * curve.max() for curve in of_all):
        for prior, limits, draw in zip(priors, ranges, (main.axvline, main.axhline), strict=True):
            for edge in (getattr(prior, "low", np.nan), getattr(prior, "high", np.nan)):
                if limits[0] <= float(edge) <= limits[1]:
                    draw(float(edge), color=GREY, lw=1.2, ls="--")
        return
    # The figure may show a part of the prior only; its contours are those of all of it.
    shown = np.outer(*curves)
    levels = [level for level in levels_of(np.outer(*of_all)) if shown.min() < level < shown.max()]
    if levels:
        main.contour(*centres, shown.T, levels, colors=[GREY], linewidths=0.9, linestyles="--")


def smoothed(draws, edges) -> np.ndarray:
    """Density of draws (2, N) in cells, smoothed by two of them."""
    return gaussian_filter(np.histogram2d(draws[0], draws[1], bins=[*edges])[0], 2.0, mode="nearest")


def shown_range(values, prior) -> tuple[float, float]:
    """Range of the posterior with some room, within the support of a prior that has ends."""
    low, high = np.quantile(values, (0.002, 0.998))
    room = 0.15 * (high - low)
    lowest = float(getattr(prior, "low", -np.inf))
    highest = float(getattr(prior, "high", np.inf))
    return max(low - room, lowest), min(high + room, highest)


def _all_of(prior, otherwise: tuple[float, float]) -> np.ndarray:
    """Grid over next to all of a prior; over the range shown where its ends cannot be told."""
    try:
        mean, std = float(prior.mean), float(prior.variance) ** 0.5
    except (NotImplementedError, TypeError):
        return np.linspace(*otherwise, NUM_GRID)
    low, high = (float(getattr(prior, name, mean + sign * 6.0 * std)) for name, sign in (("low", -1), ("high", 1)))
    return np.linspace(low, high, NUM_GRID) if np.isfinite([low, high]).all() else np.linspace(*otherwise, NUM_GRID)


def _ends(centres) -> tuple[float, float]:
    half = 0.5 * (centres[1] - centres[0])
    return centres[0] - half, centres[-1] + half


def density_of(prior, grid) -> np.ndarray:
    """Density of a prior on a grid."""
    with jax.enable_x64(True):
        return np.exp(np.asarray(prior.log_prob(grid)))


def levels_of(density) -> list[float]:
    """Densities above which the shares of `LEVELS` lie, the outer contour first."""
    ordered = np.sort(density.ravel())[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    found = [float(ordered[np.searchsorted(share, level)]) for level in LEVELS]
    return [found[1], max(found[0], found[1] * (1.0 + 1e-9))]
