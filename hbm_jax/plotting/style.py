"""Style of the figures, applied without changing the settings of matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as _Figure
from PIL import Image

# Okabe & Ito 2008 (https://jfly.uni-koeln.de/color/): colours distinguishable with any common colour vision deficiency.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#6b6b6b"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)  # for categories, in this order; yellow is too faint
BAND_95, BAND_68 = "#c9c9c9", "#9a9a9a"
MIN_SIMULATED, MAX_DOTS = 3000, 1500  # simulated objects beside measured ones, and how many of them are drawn
BINS = 30  # of the histograms of detected objects
QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)  # ends of the 95 and the 68 % interval, and the median

_STYLE = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # DejaVu for glyphs that STIX lacks
    "mathtext.fontset": "stix",
    "font.size": 10.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 10.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals reject bitmapped type 3 fonts
    "ps.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply matplotlib's defaults and then the style of this package, within the block."""
    defaults = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
    with mpl.rc_context(defaults | _STYLE):
        yield


class Figure(_Figure):
    """Matplotlib Figure that is drawn and saved in the style of this package whatever the user's settings.

    It is not registered with pyplot: it needs no display, is shown once in a notebook, and is freed when no longer
    referenced.
    """

    def draw(self, renderer):
        """Draw in the style of this package; ticks and fonts are resolved only here."""
        with house_style():
            super().draw(renderer)

    def savefig(self, *args, **kwargs):
        """Save in the style of this package; see `matplotlib.figure.Figure.savefig`."""
        with house_style():
            super().savefig(*args, **kwargs)

    def _repr_png_(self):
        """Return a PNG image for notebooks without pyplot."""
        return to_png(self, dpi=110)


def panels(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    margins: tuple[float, float, float, float] = (0.65, 0.12, 0.45, 0.12),
    gaps: tuple[float, float] = (0.12, 0.12),
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes, (rows, columns), at fixed distances: a layout solver takes as long as drawing.

    Parameters
    ----------
    rows, columns : int
        Numbers of axes.
    size : (width, height)
        Size of the figure [inches].
    margins : (left, right, bottom, top)
        Distances of the axes from the edges of the figure [inches].
    gaps : (horizontal, vertical)
        Distances between axes [inches].
    **options
        Of `matplotlib.figure.Figure.subplots`.
    """
    (width, height), (left, right, bottom, top) = size, margins
    figure = Figure(figsize=size)
    axes_width = (width - left - right - (columns - 1) * gaps[0]) / columns
    axes_height = (height - bottom - top - (rows - 1) * gaps[1]) / rows
    spacing = {
        "left": left / width, "right": 1.0 - right / width, "bottom": bottom / height, "top": 1.0 - top / height,
        "wspace": gaps[0] / axes_width, "hspace": gaps[1] / axes_height,
    }  # fmt: skip
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=spacing, **options)


def fill_bands(axes, x, quantiles, name: str = "", colours=(BAND_95, BAND_68), **style) -> None:
    """Fill the 95 and 68 % bands of curves, given their `QUANTILES` (5, x); ``name`` comes first in the legend."""
    for outer, fraction, colour in ((0, "95 %", colours[0]), (1, "68 %", colours[1])):
        text = f"{name}, {fraction}" if name else fraction
        axes.fill_between(x, quantiles[outer], quantiles[-1 - outer], color=colour, lw=0, label=text, **style)


def draw_intervals(axes, position, quantiles, *, upright: bool = False, label: str | None = None, zorder=2) -> None:
    """Draw medians as dots and 95 and 68 % intervals as thin and thick lines, given their `QUANTILES` (5, n)."""
    low, lower, median, upper, high = quantiles
    draw_lines = axes.vlines if upright else axes.hlines
    draw_lines(position, low, high, color=BLUE, lw=0.8, zorder=zorder)
    draw_lines(position, lower, upper, color=BLUE, lw=2.2, zorder=zorder)
    points = (position, median) if upright else (median, position)
    axes.plot(*points, "o", color=BLUE, ms=3.8, mec="white", mew=0.4, zorder=zorder + 1, label=label)


def to_pixels(figure: _Figure, dpi: float) -> np.ndarray:
    """Draw a figure once on white, and return its pixels, (height, width, 4), of which the last channel is unused."""
    canvas, drawn_dpi, background = figure.canvas, figure.dpi, figure.get_facecolor()
    try:
        agg = FigureCanvasAgg(figure)
        figure.set_dpi(dpi)
        figure.set_facecolor("white")
        agg.draw()
        return np.array(agg.buffer_rgba())
    finally:
        figure.set_dpi(drawn_dpi)
        figure.set_facecolor(background)
        figure.set_canvas(canvas)


def to_png(figure: _Figure, dpi: float = 150) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    return in_all_colours(to_pixels(figure, dpi))


def in_all_colours(pixels: np.ndarray) -> bytes:
    """Return the pixels of a figure as the bytes of a PNG file."""
    return _png(Image.fromarray(pixels).convert("RGB"), level=3)


def in_few_colours(pixels: np.ndarray, colours: int) -> bytes:
    """Return the pixels of a figure as the bytes of a PNG file with a palette, which is several times smaller.

    The palette has the most common colours, and then one by one the colour that differs most from it: rare colours
    remain, while median cut makes them grey. Before the choice, channels are rounded to 6 bits.
    """
    packed = pixels.view("<u4")[..., 0]
    codes = packed >> 2 & 63 | packed >> 4 & 63 << 6 | packed >> 6 & 63 << 12
    counts = np.bincount(codes.ravel(), minlength=64**3)
    occupied = np.flatnonzero(counts)
    channels = np.stack([occupied & 63, occupied >> 6 & 63, occupied >> 12], axis=1) * np.float32(255 / 63)
    by_count = np.argsort(-counts[occupied], kind="stable")
    palette: list[int] = []
    distance = np.full(len(occupied), np.inf, np.float32)
    nearest = np.zeros(len(occupied), np.uint8)
    for index in range(min(colours, len(occupied))):
        palette.append(int(by_count[index] if index < colours // 4 else distance.argmax()))
        to_new = ((channels - channels[palette[-1]]) ** 2).sum(axis=1)
        nearest[to_new < distance] = index
        distance = np.minimum(distance, to_new)
    index_of_code = np.zeros(64**3, np.uint8)
    index_of_code[occupied] = nearest
    image = Image.fromarray(index_of_code[codes])
    image.putpalette(np.rint(channels[palette]).astype(np.uint8).tobytes())
    return _png(image, level=6)


def _png(image: Image.Image, level: int) -> bytes:
    """Return an image as the bytes of a PNG file, compressed at this level."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def draw_simulated(axis, x, y, detected) -> None:
    """Draw simulated objects, detected and missing ones."""
    for mask, colour, alpha, label in ((~detected, GREY, 0.35, "missing"), (detected, SKY, 0.9, "detected")):
        axis.plot(x[mask], y[mask], ".", color=colour, ms=3.5, alpha=alpha, mew=0.0, label=f"simulated, {label}")


def draw_distribution(axis, measured, simulated, detected, limit: float | None) -> None:
    """Draw the distributions of measured values, of simulated detected ones, and of all, and a limit."""
    low, high = np.quantile(simulated, [0.001, 0.999])
    low, high = min(low, measured.min()), max(high, measured.max())
    width = (high - low) / BINS
    edge = low if limit is None else limit
    edges = edge + width * np.arange(np.floor((low - edge) / width), np.ceil((high - edge) / width) + 1)
    weights = np.full(len(simulated), len(measured) / max(detected.sum(), 1))
    style: Any = {"bins": edges, "histtype": "stepfilled"}
    axis.hist(simulated, weights=weights, color=GREY, alpha=0.35, label="all", **style)
    axis.hist(simulated[detected], weights=weights[detected], color=SKY, alpha=0.8, label="detected", **style)
    axis.hist(measured, bins=edges, histtype="step", color=BLACK, lw=1.0, label="measured")
    if limit is not None:
        axis.axvline(limit, color=BLACK, lw=0.8, ls="--")
