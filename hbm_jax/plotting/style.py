"""The look of every figure, applied to our figures alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import matplotlib as mpl
from matplotlib.figure import Figure as _Figure

# Okabe & Ito 2008 (https://jfly.uni-koeln.de/color/): eight colours told apart under every common colour blindness.
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
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)  # for categories, in this order; yellow is faint on white
BAND_95, BAND_68 = "#c9c9c9", "#9a9a9a"

_STYLE = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # the second where the first lacks a letter of a user's label
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
    "pdf.fonttype": 42,  # text stays text: journals refuse the bitmapped type 3
    "ps.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with our style on top, for the duration of the block."""
    defaults = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
    with mpl.rc_context(defaults | _STYLE):
        yield


class Figure(_Figure):
    """A matplotlib Figure that is drawn and saved in our style whatever the user's settings are.

    It is unknown to pyplot, so that it needs no display, is shown once in a notebook and is freed when dropped.
    """

    def draw(self, renderer):
        """Draw in our style; ticks and fonts are resolved only now."""
        with house_style():
            super().draw(renderer)

    def savefig(self, *args, **kwargs):
        """Save in our style; see `matplotlib.figure.Figure.savefig`."""
        with house_style():
            super().savefig(*args, **kwargs)

    def _repr_png_(self):
        """Picture for notebooks in which pyplot has not been set up."""
        return to_png(self, dpi=110)


def to_png(figure: _Figure, dpi: float = 150) -> bytes:
    """PNG file of a figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def in_few_colours(png: bytes, colours: int) -> bytes:
    """PNG file of the same picture in so many colours, which makes a figure several times smaller."""
    from PIL import Image

    few = BytesIO()
    with Image.open(BytesIO(png)) as image:
        # Of Pillow's ways the one that keeps rare colours: median cut turns nine pink points among 700 others grey.
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        image.convert("RGB").quantize(colours, method, dither=dither).save(few, "PNG", optimize=True)
    return few.getvalue()
