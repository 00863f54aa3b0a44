"""Figures of the profile likelihood: the curve of one parameter, and contours of two."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline

from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SKY, VERMILION, Figure, house_style, panels

# Rise of the statistic that encloses 68.3, 90 and 99 % of a normal likelihood, of one and of two parameters.
ONE, TWO = (1.0, 2.706, 6.635), (2.30, 4.61, 9.21)
PERCENT = ("68.3 %", "90 %", "99 %")
STYLES = ("-", "--", ":")
FILL = (0.75, 0.45, 0.22)  # opacity between the levels, from the inside
FINER = 10  # cells of the drawn grid in one of the computed grid


def contours(grid: Any, units: Mapping[str, str] | None = None) -> Figure:
    """Plot the contours of the profile likelihood of two parameters.

    Parameters
    ----------
    grid : hbm_jax.inference.likelihood.grid.ProfileGrid
        Profile likelihood of two parameters.
    units : mapping of str to str, optional
        Units of the parameters by name.

    Returns
    -------
    matplotlib.figure.Figure
        Contours at which the fit statistic exceeds that of the best fit (cross) by 2.30, 4.61 and 9.21, which enclose
        68.3, 90 and 99 % if the likelihood is normal. Between grid points the rise is interpolated by cubic splines;
        points that did not converge are left white.
    """
    (x, y), rise = grid.axes, grid.rise
    if np.isfinite(rise).all() and min(rise.shape) > 3:
        fine = [np.linspace(axis[0], axis[-1], FINER * (len(axis) - 1) + 1) for axis in (x, y)]
        rise = RectBivariateSpline(x, y, rise)(*fine)
        x, y = fine
    with house_style():
        figure, axes = panels(1, 1, (4.6, 4.1), margins=(0.8, 0.15, 0.55, 0.4))
        axis = axes[0, 0]
        lowest = min(0.0, float(np.nanmin(rise))) - 1e-9
        levels = [level for level in TWO if np.nanmin(rise) < level < np.nanmax(rise)]
        bounds = (lowest, *TWO)
        for low, high, alpha in zip(bounds[:-1], bounds[1:], FILL, strict=True):
            axis.contourf(x, y, rise.T, [low, high], colors=[SKY if alpha < FILL[0] else BLUE], alpha=alpha)
        shown = [STYLES[TWO.index(level)] for level in levels]
        if levels:
            axis.contour(x, y, rise.T, levels, colors=[BLACK], linewidths=0.9, linestyles=shown)
        for level, percent, style in zip(TWO, PERCENT, STYLES, strict=True):
            if level in levels:
                axis.plot([], [], style, color=BLACK, lw=0.9, label=f"{percent} ({level:.2f})")
        axis.plot(*grid.best, "+", color=VERMILION, ms=9, mew=1.6, zorder=4, label="best fit")
        axis.set_xlim(x[0], x[-1])
        axis.set_ylim(y[0], y[-1])
        axis.set_xlabel(_label(grid.names[0], units))
        axis.set_ylabel(_label(grid.names[1], units))
        axis.locator_params(axis="x", nbins=6)
        handles, texts = axis.get_legend_handles_labels()
        figure.legend(handles, texts, loc="upper center", ncols=4, columnspacing=1.1, handlelength=1.7)
    return figure


def profile_curve(grid: Any, units: Mapping[str, str] | None = None) -> Figure:
    """Plot the rise of the fit statistic with one parameter, minimised over all others.

    Parameters
    ----------
    grid, units
        As in `contours`, of one parameter.

    Returns
    -------
    matplotlib.figure.Figure
        Grey: rises of 1.00, 2.71 and 6.63, at which the intervals of 68.3, 90 and 99 % end. Triangle: best fit.
    """
    (x,), rise = grid.axes, grid.rise
    with house_style():
        figure, axes = panels(1, 1, (4.6, 3.6), margins=(0.65, 0.45, 0.55, 0.15))
        axis = axes[0, 0]
        axis.plot(x, rise, "-", marker="o", color=BLUE, ms=2.6, zorder=3)
        top = 1.05 * float(np.nanmax(rise))
        for level, percent, style in zip(ONE, PERCENT, STYLES, strict=True):
            if level < top:
                axis.axhline(level, color=GREY, lw=0.8, ls=style)
                axis.annotate(
                    percent, (1.01, level), xycoords=("axes fraction", "data"), va="center", fontsize=8.0, color=GREY
                )
        lowest = min(0.0, float(np.nanmin(rise)))
        axis.plot(grid.best, [0.0], "^", color=VERMILION, ms=5, zorder=4, clip_on=False)
        axis.set_xlim(x[0], x[-1])
        axis.set_ylim(lowest - 0.02 * top, top)
        axis.set_xlabel(_label(grid.names[0], units))
        axis.set_ylabel("rise of the statistic")
    return figure


def _label(name: str, units: Mapping[str, str] | None) -> str:
    """Return symbol and unit of a parameter or an element of one."""
    return label(name, (units or {}).get(name.partition("[")[0], ""))
