"""Style of the figures, applied without changing the settings of matplotlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import matplotlib as mpl
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
SERIES = (
    BLUE,
    ORANGE,
    GREEN,
    PURPLE,
    SKY,
    VERMILION,
)  # for categories, in this order; yellow is too faint
BAND_95, BAND_68 = "#c9c9c9", "#9a9a9a"

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


def to_png(figure: _Figure, dpi: float = 150) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def in_few_colours(png: bytes, colours: int) -> bytes:
    """Return a PNG image reduced to a number of colours, which makes the file several times smaller."""
    from PIL import Image

    buffer = BytesIO()
    with Image.open(BytesIO(png)) as image:
        # Maximum coverage keeps rare colours: median cut turns nine pink points among 700 others grey.
        method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
        image.convert("RGB").quantize(colours, method, dither=dither).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
