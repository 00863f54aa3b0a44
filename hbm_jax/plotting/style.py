"""Style of the figures, applied without changing the settings of matplotlib."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Tick, XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as _Figure

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


# Versions of matplotlib with which `_QuickAxes`, which depends on its internal methods, was tested.
TESTED_VERSIONS = ((3, 10), (3, 11))


class Figure(_Figure):
    """Matplotlib Figure that is drawn and saved in the style of this package whatever the user's settings.

    It is not registered with pyplot: it needs no display, is shown once in a notebook, and is freed when no longer
    referenced.
    """

    def add_subplot(self, *args, **kwargs):
        """Add axes whose ticks are drawn together; see `matplotlib.figure.Figure.add_subplot`."""
        return super().add_subplot(*args, **_with_quick_ticks(kwargs))

    def add_axes(self, *args, **kwargs):
        """Add axes whose ticks are drawn together; see `matplotlib.figure.Figure.add_axes`."""
        return super().add_axes(*args, **_with_quick_ticks(kwargs))

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


def _with_quick_ticks(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of new axes, with `_QuickAxes` as class unless they name one or matplotlib is untested."""
    if mpl.__version_info__[:2] not in TESTED_VERSIONS or {"projection", "polar", "axes_class"} & set(options):
        return options
    return options | {"axes_class": _QuickAxes}


class _Ticks:
    """All major or all minor ticks of an axis, drawn with the artists of a single tick.

    Creating five artists for each tick takes as long as drawing everything else in a small panel.
    """

    def __init__(self, tick: Tick, is_x: bool, positions: np.ndarray, labels: Sequence[str]):
        self.tick, self.is_x, self.positions, self.labels = tick, is_x, positions, labels

    def draw(self, renderer) -> None:
        """Draw grid lines, marks and labels."""
        if not self.tick.get_visible():
            return
        if self.tick.gridline.get_visible():
            for position in self.positions:
                self.tick.update_position(position)
                self.tick.gridline.draw(renderer)
        for line in (self.tick.tick1line, self.tick.tick2line):
            if line.get_visible():
                edge = np.asarray(line.get_data()[self.is_x])[:1]
                self._place(line, self.positions, np.repeat(edge, len(self.positions)))
                line.draw(renderer)
                self._place(line, self.positions[:1], edge)
        for text in (self.tick.label1, self.tick.label2):
            if text.get_visible():
                for _ in self._moved(text):
                    text.draw(renderer)

    def _place(self, line, positions, edges) -> None:
        """Set the positions of the marks along the axis, and those across it."""
        line.set_data(*((positions, edges) if self.is_x else (edges, positions)))

    def _moved(self, text) -> Iterator[None]:
        """Set an artist to the position and text of each label in turn; of empty labels only the first is used."""
        empty = 0
        for position, label in zip(self.positions, self.labels, strict=True):
            empty += not label
            if label or empty == 1:
                (text.set_x if self.is_x else text.set_y)(position)
                text.set_text(label)
                yield

    def boxes(self, which: str, renderer) -> list[Any]:
        """Return the extents of ``"label1"`` or ``"label2"`` of all ticks."""
        text = getattr(self.tick, which)
        return [text.get_window_extent(renderer) for _ in self._moved(text)] if text.get_visible() else []


_Part: Any = object  # its methods are those of matplotlib's Axis, which has no types for them


class _QuickTicks(_Part):
    """Part of an axis that draws its ticks together, until the objects of single ticks are requested."""

    _single = False

    def _update_ticks(self):
        """Return the ticks in the view, in groups that are drawn together."""
        if self._single:
            return super()._update_ticks()
        groups = []
        interval = np.sort(self.get_transform().transform(self.get_view_interval()))
        margin = 1e-10 * (interval[1] - interval[0])
        for major, ticker in ((True, self.major), (False, self.minor)):
            positions = np.asarray(self.get_majorticklocs() if major else self.get_minorticklocs(), float)
            labels = ticker.formatter.format_ticks(positions)
            if not len(positions):
                continue
            transformed = self.get_transform().transform(positions)
            inside = (interval[0] - margin <= transformed) & (transformed <= interval[1] + margin)
            if inside.any():
                tick = (self.majorTicks if major else self.minorTicks)[0]
                shown = [label for label, is_inside in zip(labels, inside, strict=True) if is_inside]
                groups.append(_Ticks(tick, self.axis_name == "x", positions[inside], shown))
        return groups

    def _get_ticklabel_bboxes(self, ticks, renderer=None):
        if self._single:
            return super()._get_ticklabel_bboxes(ticks, renderer)
        renderer = renderer or self.get_figure().canvas.get_renderer()
        return tuple([box for group in ticks for box in group.boxes(n, renderer)] for n in ("label1", "label2"))

    def get_major_ticks(self, numticks=None):
        self._single = True
        return super().get_major_ticks(numticks)

    def get_minor_ticks(self, numticks=None):
        self._single = True
        return super().get_minor_ticks(numticks)

    def get_majorticklabels(self):
        self._single = True
        return super().get_majorticklabels()

    def get_minorticklabels(self):
        self._single = True
        return super().get_minorticklabels()

    def set_ticklabels(self, labels, **options):
        single = self._single
        texts = super().set_ticklabels(labels, **options)
        self._single = single or bool(set(options) - {"minor"})  # only a style needs single ticks
        return texts


class _QuickXAxis(_QuickTicks, XAxis):
    """Horizontal axis."""


class _QuickYAxis(_QuickTicks, YAxis):
    """Vertical axis."""


class _QuickAxes(Axes):
    """Axes whose ticks are drawn together."""

    def _init_axis(self):
        self.xaxis, self.yaxis = _QuickXAxis(self, clear=False), _QuickYAxis(self, clear=False)
        for name, axis in (("bottom", self.xaxis), ("top", self.xaxis), ("left", self.yaxis), ("right", self.yaxis)):
            self.spines[name].register_axis(axis)


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
    return _png(pixels[..., :3], level=3)


def in_few_colours(pixels: np.ndarray, colours: int) -> bytes:
    """Return the pixels of a figure as the bytes of a PNG file with a palette, which is several times smaller.

    The palette has the most common colours, and then one by one the colour that differs most from it: rare colours
    remain, while median cut makes them grey. Before the choice, channels are rounded to 6 bits.
    """
    packed = pixels.view("<u4")[..., 0].ravel() & 0xFFFFFF
    inked = np.flatnonzero(packed != 0xFFFFFF)  # the other pixels, most of them, are white
    packed = packed[inked]
    codes = packed >> 2 & 63 | packed >> 4 & 63 << 6 | packed >> 6 & 63 << 12
    counts = np.bincount(codes, minlength=64**3)
    counts[-1] += pixels.shape[0] * pixels.shape[1] - len(inked)
    occupied = np.flatnonzero(counts)
    red, green, blue = ((occupied >> shift & 63) * np.float32(255 / 63) for shift in (0, 6, 12))
    by_count = np.argsort(-counts[occupied], kind="stable")
    palette: list[int] = []
    distance = np.full(len(occupied), np.inf, np.float32)
    nearest = np.zeros(len(occupied), np.uint8)
    for index in range(min(colours, len(occupied))):
        new = int(by_count[index] if index < colours // 4 else distance.argmax())
        palette.append(new)
        to_new = (red - red[new]) ** 2 + (green - green[new]) ** 2 + (blue - blue[new]) ** 2
        nearest[to_new < distance] = index
        np.minimum(distance, to_new, out=distance)
    index_of_code = np.zeros(64**3, np.uint8)
    index_of_code[occupied] = nearest
    indices = np.full(pixels.shape[:2], index_of_code[-1])
    indices.ravel()[inked] = index_of_code[codes]
    channels = np.stack([red, green, blue], axis=1)[palette]
    return _png(indices[..., None], level=6, palette=np.rint(channels).astype(np.uint8))


def _png(values: np.ndarray, level: int, palette: np.ndarray | None = None) -> bytes:
    """Return an image of 8 bits, (height, width, channels), as the bytes of a PNG file, compressed at this level.

    Pillow is not used, because it tries five filters for each row: it takes twice as long and the files are no smaller.
    """
    height, width, num_channels = values.shape
    rows = np.zeros((height, 1 + width * num_channels), np.uint8)  # each begins with its filter, none
    rows[:, 1:] = values.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2 if palette is None else 3, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), level)), (b"IEND", b"")]
    if palette is not None:
        chunks.insert(1, (b"PLTE", palette.tobytes()))
    parts = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def draw_simulated(axis, x, y, detected, others: str = "missing") -> None:
    """Draw simulated objects, detected and other ones, which are labelled."""
    for mask, colour, alpha, status in ((~detected, GREY, 0.35, others), (detected, SKY, 0.9, "detected")):
        axis.plot(x[mask], y[mask], ".", color=colour, ms=3.5, alpha=alpha, mew=0.0, label=f"simulated, {status}")


def draw_distribution(axis, measured, simulated, detected, limit: float | None, others: str = "missing") -> None:
    """Draw the distributions of measured values, of simulated detected ones, and of all, and a limit.

    Values that are not ``detected`` are missing, or all objects if ``others`` is "all".
    """
    everything = simulated[~detected] if others == "all" else simulated
    low, high = np.quantile(simulated, [0.001, 0.999])
    low, high = min(low, measured.min()), max(high, measured.max())
    width = (high - low) / BINS
    edge = low if limit is None else limit
    edges = edge + width * np.arange(np.floor((low - edge) / width), np.ceil((high - edge) / width) + 1)
    weight = len(measured) / max(detected.sum(), 1)
    style: Any = {"bins": edges, "histtype": "stepfilled"}
    for values, name, colour, alpha in ((everything, "all", GREY, 0.35), (simulated[detected], "detected", SKY, 0.8)):
        axis.hist(values, weights=np.full(len(values), weight), color=colour, alpha=alpha, label=name, **style)
    axis.hist(measured, bins=edges, histtype="step", color=BLACK, lw=1.0, label="measured")
    if limit is not None:
        axis.axvline(limit, color=BLACK, lw=0.8, ls="--")


def draw_efficiency(axis, at, probability) -> None:
    """Draw a tabulated efficiency over a distribution, on an axis of its own from 0 to 1."""
    low, high = axis.get_xlim()
    shown = np.unique(np.clip([low, *at, high], low, high))
    right = axis.twinx()
    right.plot(shown, np.interp(shown, at, probability), color=BLACK, lw=0.8, ls="--")
    right.set(ylim=(0.0, 1.25), yticks=[0.0, 0.5, 1.0], ylabel="efficiency")
    right.grid(visible=False)
    axis.set_xlim(low, high)
