"""Hubble diagram of any sample with redshifts and moduli: moduli of posterior draws, binned means, and the drawing."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hbm_jax.models import expansion
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, GREY, SERIES, Figure, fill_bands, house_style, panels
from hbm_jax.xla_options import QUICK

NUM_GRID = 120  # redshifts at which the band is evaluated
CHUNK = 50  # cosmologies evaluated in parallel
MIN_PER_BIN = 5  # smallest number of objects in a bin whose mean is shown
MARKERS = ("o", "s", "^", "D", "v", "P")
SURVEYS = {"sdss": "SDSS", "snls": "SNLS", "lowz": "low z", "hst": "HST"}
NAMED = 6  # surveys with a colour and a legend entry; the others are grey
MANY = 100  # objects from which points and error bars are pale and means in bins are drawn
MEANS: dict[str, Any] = {
    "fmt": "o", "color": BLACK, "markersize": 3.4, "markerfacecolor": "white", "elinewidth": 1.1, "zorder": 5,
    "label": "weighted mean in bins",
}  # fmt: skip


class Diagram(NamedTuple):
    """A sample in a Hubble diagram, with the posterior of the modulus.

    Attributes
    ----------
    redshift, residual, error : (N,)
        Redshift of each object, its modulus minus the posterior median of the model [mag], and the error.
    survey : tuple of N str
        Survey of each object.
    grid : (G,)
        Redshifts of the bands, in increasing order.
    bands : (5, G)
        `QUANTILES` of the modulus at these redshifts.
    """

    redshift: np.ndarray
    residual: np.ndarray
    error: np.ndarray
    survey: tuple[str, ...]
    grid: np.ndarray
    bands: np.ndarray


def moduli_of_draws(model: Any, data: Any, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the model's ``distmod`` of every object of ``data``, (draw, N) [mag], for draws of the cosmology.

    Parameters
    ----------
    model : Supernova or HubbleDiagram
        Model with a ``cosmology`` and a method ``distmod``.
    data : container
        N objects.
    values : mapping of str to array (draw,)
        Draws of H0 and the parameters of the expansion history.
    """
    with jax.enable_x64(True):

        @functools.partial(jax.jit, compiler_options=QUICK)
        def moduli(draws):
            """Return moduli (draw, N)."""

            def modulus(draw):
                return model.distmod(data, expansion.cosmology_from(model.cosmology, draw))

            return jax.lax.map(modulus, draws, batch_size=CHUNK)

        return np.asarray(moduli(values))


def means_in_bins(
    x: np.ndarray, residual: np.ndarray, error: np.ndarray, index: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inverse-variance weighted means of x and of the residual, and the error of the latter, in each bin.

    ``index`` is the bin of each object. Bins of fewer than `MIN_PER_BIN` objects are omitted.
    """
    rows = []
    for in_bin in (index == i for i in range(num_bins)):
        if in_bin.sum() >= MIN_PER_BIN:
            weight = 1.0 / error[in_bin] ** 2
            total = weight.sum()
            rows.append((np.sum(weight * x[in_bin]) / total, np.sum(weight * residual[in_bin]) / total, total**-0.5))
    centres, means, errors = np.array(rows).T if rows else np.zeros((3, 0))
    return centres, means, errors


def draw_diagram(diagram: Diagram, means: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> Figure:
    """Draw moduli against redshift, and below the residuals, both with the posterior band.

    Parameters
    ----------
    diagram : Diagram
        The sample. In the upper panel its residuals are added to the median of the bands.
    means : tuple of arrays, optional
        Redshift, mean residual and its error in bins.
    """
    z, residual, error, _, grid, bands = diagram
    mu = residual + np.interp(np.log(z), np.log(grid), bands[2])
    many = len(z) >= MANY
    with house_style():
        figure, axes = panels(
            2, 1, (6.4, 6.2), margins=(0.68, 0.1, 0.48, 0.1), gaps=(0.0, 0.1), sharex=True, height_ratios=(2.2, 1.0)
        )
        upper, lower = axes[:, 0]
        for mask, text, colour, marker in _surveys(diagram.survey):
            style: dict[str, Any] = {"fmt": marker, "color": colour, "markeredgewidth": 0, "zorder": 2}
            style |= {"markersize": 2.6, "elinewidth": 0.5} if many else {"markersize": 4.0, "elinewidth": 0.8}
            upper.errorbar(z[mask], mu[mask], error[mask], label=text, alpha=0.6 if many else 0.9, **style)
            lower.errorbar(z[mask], residual[mask], error[mask], alpha=0.3 if many else 0.9, **style)
        for panel, centre in ((upper, 0.0), (lower, bands[2])):
            _draw_band(panel, grid, bands - centre, zorder=3 if many else 1)
        if means is not None:
            lower.legend(handles=[lower.errorbar(*means, **MEANS)], loc="lower left")
        upper.set_ylabel(f"distance modulus {label('mu', 'mag')}")
        lower.set_ylabel(r"$\mu - \mu_\mathrm{median}$ [mag]")
        lower.set_xlabel(r"redshift $z_\mathrm{CMB}$")
        lower.set_xscale("log")
        lower.set_xlim(grid[0] / 1.1, grid[-1] * 1.1)
        half_range = 1.1 * np.quantile(np.abs(residual) + error, 0.99)
        lower.set_ylim(-half_range, half_range)
        label_redshifts(lower)
        handles, texts = upper.get_legend_handles_labels()
        order = [*range(3, len(handles)), 2, 1, 0]  # matplotlib lists bands and lines before points
        upper.legend([handles[i] for i in order], [texts[i] for i in order], loc="upper left")
        for panel in (upper, lower):
            panel.yaxis.set_label_coords(-0.48 / (6.4 - 0.78), 0.5)
    return figure


def _draw_band(axes, z: np.ndarray, bands: np.ndarray, zorder: float) -> None:
    """Draw the bands and the median, given their `QUANTILES`, (5, z)."""
    fill_bands(axes, z, bands, zorder=zorder)
    axes.plot(z, bands[2], color=BLACK, lw=1.0, zorder=4, label="posterior median")


def _surveys(survey: tuple[str, ...]) -> Iterator[tuple[np.ndarray, str, str, str]]:
    """Yield mask, legend entry, colour and marker of the largest surveys, and of all others together."""
    names = np.array(survey)
    counts = dict(Counter(survey).most_common())
    named = list(counts)[:NAMED]
    for name, colour, marker in zip(named, SERIES, MARKERS, strict=False):
        text = f"{SURVEYS.get(name, name)} ({counts[name]})" if name != "unknown" else f"{counts[name]} objects"
        yield names == name, text, colour, marker
    others = ~np.isin(names, named)
    if others.any():
        yield others, f"{len(counts) - len(named)} others ({int(others.sum())})", GREY, "o"


def label_redshifts(axes) -> None:
    """Label a logarithmic redshift axis as 0.01, 0.02, 0.05, 0.1 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
