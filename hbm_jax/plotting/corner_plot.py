"""Corner plot of any posterior: marginal densities of parameters and of every pair of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contourpy import FillType, LineType, contour_generator
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from hbm_jax.inference import Fit
from hbm_jax.notation import quote, quoted_math
from hbm_jax.plotting.contours import levels_of_draws
from hbm_jax.plotting.draws import label_of, named_draws
from hbm_jax.plotting.style import BLACK, BLUE, ORANGE, Figure, house_style

INTERVAL = (0.16, 0.5, 0.84)
SPAN = (0.001, 0.999)  # quantiles that limit an axis, so that single outlying draws do not set its range
BINS, SMOOTHING = 30, 1.2  # of a panel; the standard deviation of the smoothing is in bins
LIGHT, DARK = "#b7d5ea", "#5fa3d0"  # tints of BLUE inside the contours of 95 and 68 %
GAP = 0.06  # between panels, in units of a panel
LEFT, RIGHT, BOTTOM, TOP = 0.78, 0.5, 0.78, 0.48  # inches from the edges of the figure to the panels
LABEL, TICK = 0.46, 0.045  # inches from a panel to its label, beyond the slanted numbers; length of a tick


def corner(
    fit: Fit,
    parameters: Iterable[str] | None = None,
    *,
    truths: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the marginal posteriors of parameters and of every pair of them.

    All panels are in one matplotlib Axes, which for eleven parameters is drawn ten times faster than 66 of them.

    Parameters
    ----------
    fit : Fit
        Fit of any model.
    parameters : iterable of str, optional
        Names of parameters, or of elements such as ``"theta[3]"``. By default every scalar parameter that varies.
    truths : mapping of str to float, optional
        Values to mark in orange, of parameters that are drawn.
    labels : mapping of str to str, optional
        Symbols by name of the parameter, such as ``{"slope": "$m$"}``. A program can have them as ``symbols``.

    Returns
    -------
    matplotlib.figure.Figure
        Contours contain 68 and 95 % of the posterior. Titles give the median and the 68 % interval, marked by dashed
        lines. Draws that are not finite are omitted.

    Raises
    ------
    ValueError
        If the fit has no parameter of that name, if no parameter varies, or if ``truths`` names one that is not drawn.
    """
    draws = {name: values.ravel() for name, values in named_draws(fit, parameters).items()}
    table = np.column_stack(list(draws.values())) if draws else np.zeros((0, 0))
    table = table[np.isfinite(table).all(axis=1)]
    if not table.size:
        raise ValueError("corner: expected parameters that vary; found none with finite draws.")
    constant = [name for name, column in zip(draws, table.T, strict=True) if np.ptp(column) == 0]
    if constant:
        raise ValueError(f"corner: expected parameters that vary; found constant {', '.join(constant)}.")
    unknown = [name for name in truths or () if name not in draws]
    if unknown:
        raise ValueError(f"corner: truths: expected values of {', '.join(draws)}; found {', '.join(unknown)}.")
    size = len(draws)
    panel = 1.9 if size <= 4 else 1.1
    lower, median, upper = np.quantile(table, INTERVAL, axis=0)
    with house_style():
        grid = _Grid(_ranges(table), panel)
        scaled = grid.scaled(table)
        _draw_contours(grid, scaled)
        _draw_histograms(grid, scaled, grid.scaled(np.stack([lower, median, upper])))
        if truths:
            grid.mark({index: truths[name] for index, name in enumerate(draws) if name in truths})
        grid.frame([_inner_ticks(low, high, 4 if size <= 4 else 3) for low, high in grid.ranges])
        for index, name in enumerate(draws):
            numbers = quoted_math(quote(median[index], lower[index], upper[index]))
            grid.name(index, label_of(fit, name, labels), _title(label_of(fit, name, labels, unit=False), numbers))
    return grid.figure


def _ranges(table: np.ndarray) -> np.ndarray:
    """Return the range of each parameter, (size, 2), from draws (draw, size)."""
    low, high = np.quantile(table, SPAN, axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 0.5 * np.ptp(table, axis=0))
    return np.stack([low - margin, high + margin], axis=1)


def _title(symbol: str, numbers: str) -> str:
    """Return the symbol of a parameter and its interval; a name that is no symbol has a line of its own."""
    if symbol.startswith("$") and symbol.endswith("$"):
        return f"{symbol} = {numbers}"
    return f"{symbol}\n{numbers}"


def _inner_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return round tick values away from both ends, where labels would overlap those of the next panel."""
    margin = 0.1 * (high - low)
    return [tick for tick in MaxNLocator(max_ticks).tick_values(low, high) if low + margin <= tick <= high - margin]


class _Grid:
    """The lower triangle of panels in one Axes, in which a panel has unit size.

    Attributes
    ----------
    figure, axes
        The figure and its Axes.
    ranges : (size, 2)
        Range of each parameter.
    inch : float
        Length of an inch in units of a panel.
    """

    def __init__(self, ranges: np.ndarray, panel: float):
        self.ranges, self.size = ranges, len(ranges)
        extent = self.size + GAP * (self.size - 1)
        width, height = LEFT + panel * self.size + RIGHT, BOTTOM + panel * self.size + TOP
        self.figure, self.inch = Figure(figsize=(width, height)), extent / (panel * self.size)
        bounds = (LEFT / width, BOTTOM / height, panel * self.size / width, panel * self.size / height)
        self.axes = self.figure.add_axes(bounds, xlim=(0.0, extent), ylim=(0.0, extent))
        self.axes.set_axis_off()

    def origin(self, row: int, column: int) -> np.ndarray:
        """Return the lower left corner of a panel."""
        return np.array([column, self.size - 1 - row]) * (1.0 + GAP)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values of the parameters, (..., size), as positions in their panels, from 0 to 1."""
        return (values - self.ranges[:, 0]) / (self.ranges[:, 1] - self.ranges[:, 0])

    def add_lines(self, lines: Sequence[np.ndarray], **style) -> None:
        """Draw lines, (points, 2) each."""
        self.axes.add_collection(LineCollection(lines, clip_on=False, **style), autolim=False)

    def mark(self, values: Mapping[int, float]) -> None:
        """Mark the values of parameters, by index, in every panel that shows them."""
        lines = []
        for index, value in values.items():
            low, high = self.ranges[index]
            position = (value - low) / (high - low)
            if 0.0 <= position <= 1.0:
                vertical, horizontal = (
                    np.array([[position, 0.0], [position, 1.0]]),
                    np.array([[0.0, position], [1.0, position]]),
                )
                lines += [self.origin(row, index) + vertical for row in range(index, self.size)]
                lines += [self.origin(index, column) + horizontal for column in range(index)]
        self.add_lines(lines, colors=ORANGE, linewidths=1.0)

    def frame(self, ticks: Sequence[Sequence[float]]) -> None:
        """Draw the frame of every panel, its ticks, and their numbers at the lower and the left edge."""
        square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
        length, frames, tick_marks = TICK * self.inch, [], []
        positions = [[(t - low) / (high - low) for t in v] for v, (low, high) in zip(ticks, self.ranges, strict=True)]
        for row in range(self.size):
            for column in range(row + 1):
                origin = self.origin(row, column)
                frames.append(origin + square)
                for edge in (np.array([0.0, length]), np.array([1.0, 1.0 - length])):
                    tick_marks += [origin + np.column_stack([[p, p], edge]) for p in positions[column]]
                    tick_marks += [origin + np.column_stack([edge, [p, p]]) for p in positions[row] if row != column]
        self.add_lines(frames, colors=BLACK, linewidths=0.8, joinstyle="miter")
        self.add_lines(tick_marks, colors=BLACK, linewidths=0.6)
        style: dict[str, Any] = {"rotation": 45.0, "rotation_mode": "anchor", "fontsize": 9.0, "ha": "right"}
        for index, values in enumerate(ticks):
            for number, position in zip(_numbers(values), positions[index], strict=True):
                x, y = self.origin(self.size - 1, index)
                self.axes.text(x + position, y - length, number, va="top", **style)
                if index > 0:
                    x, y = self.origin(index, 0)
                    self.axes.text(x - length, y + position, number, va="center", **style)

    def name(self, index: int, text: str, title: str) -> None:
        """Write the label of a parameter below its column and left of its row, and the title of its panel."""
        x, y = self.origin(index, index)
        self.axes.text(x + 0.5, y + 1.0 + 0.06 * self.inch, title, ha="center", va="bottom", fontsize=10.0)
        below = -LABEL * self.inch
        self.axes.text(x + 0.5, below, text, ha="center", va="top", fontsize=11.0)
        if index > 0:
            self.axes.text(below, y + 0.5, text, ha="right", va="center", rotation=90.0, fontsize=11.0)


def _numbers(ticks: Sequence[float]) -> list[str]:
    """Return ticks as text with equal numbers of decimals, or with powers of ten where these would be many."""
    decimals = next((d for d in range(6) if np.allclose(np.round(ticks, d), ticks, rtol=1e-9, atol=0.0)), None)
    if decimals is None or max(map(abs, ticks), default=0.0) >= 1e5:
        text = [f"{tick:.4g}".replace("e+0", "e").replace("e-0", "e-") for tick in ticks]
    else:
        text = [f"{tick:.{decimals}f}" for tick in ticks]
    return [number.replace("-", "\N{MINUS SIGN}") for number in text]


def _draw_contours(grid: _Grid, scaled: np.ndarray) -> None:
    """Draw the contours of every pair of parameters, from positions of the draws in the panels, (draw, size)."""
    edges = np.linspace(0.0, 1.0, BINS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    outer: list[Path] = []
    inner: list[Path] = []
    lines: list[Path] = []
    for row in range(1, grid.size):
        for column in range(row):
            density = np.histogram2d(scaled[:, row], scaled[:, column], [edges, edges])[0]
            density = gaussian_filter(density, SMOOTHING)
            contours: Any = contour_generator(
                centres, centres, density, fill_type=FillType.ChunkCombinedCode, line_type=LineType.ChunkCombinedCode
            )
            origin = grid.origin(row, column)
            low, high = levels_of_draws(density, scaled[:, [row, column]].T, (centres, centres))
            for paths, (points, codes) in (
                (outer, contours.filled(low, np.inf)),
                (inner, contours.filled(high, np.inf)),
                (lines, contours.lines(low)),
                (lines, contours.lines(high)),
            ):
                paths += [Path(p + origin, c) for p, c in zip(points, codes, strict=True) if p is not None]
    for paths, colour in ((outer, LIGHT), (inner, DARK)):
        grid.axes.add_collection(PathCollection(paths, facecolors=colour, linewidths=0.0), autolim=False)
    outlines = PathCollection(lines, facecolors="none", edgecolors=BLUE, linewidths=0.9)
    grid.axes.add_collection(outlines, autolim=False)


def _draw_histograms(grid: _Grid, scaled: np.ndarray, interval: np.ndarray) -> None:
    """Draw the histogram of every parameter, and its interval (3, size) as dashed lines, in positions of the panels."""
    edges = np.linspace(0.0, 1.0, BINS + 1)
    steps, quantiles = [], []
    for index in range(grid.size):
        counts = np.histogram(scaled[:, index], edges)[0]
        heights = np.concatenate([[0.0], np.repeat(counts / (1.1 * counts.max()), 2), [0.0]])
        steps.append(grid.origin(index, index) + np.column_stack([np.repeat(edges, 2), heights]))
        quantiles += [grid.origin(index, index) + np.array([[q, 0.0], [q, 1.0]]) for q in interval[:, index]]
    grid.add_lines(steps, colors=BLUE, linewidths=1.0)
    grid.add_lines(quantiles, colors=BLUE, linewidths=0.8, linestyles="dashed")
