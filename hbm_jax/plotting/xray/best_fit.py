"""Figures of a best fit of spectra: counts with the folded model and its components, and the unfolded spectrum."""

from typing import Any

import jax
import numpy as np

from hbm_jax import constants
from hbm_jax.plotting.count_spectra import (
    BACKGROUND,
    COLUMNS,
    LOWEST,
    MAX_NUM,
    MODEL,
    NUM_ENERGIES,
    _draw_points,
    _few_ticks,
    _outline,
    residuals,
    unfolded_points,
)
from hbm_jax.plotting.folded_draws import points
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, Figure, house_style, panels
from hbm_jax.spectra.folding.area_errors import without_instrument

COLOURS = (BLUE, GREEN, ORANGE, PURPLE)
SHARED = ("spectrum", "e_min", "e_max", "counts", "error", "source", "background")


def best_fit_spectra(best: Any) -> Figure:
    """Plot data, folded model, its components, background and residuals of the spectra of a best fit.

    Parameters
    ----------
    best : hbm_jax.best_fits.BestFit
        The best fit; at most 12 of its spectra are shown.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels for each spectrum. Upper panel: counts per second and keV, the model with the background (red), the
        components (dashed) and the background (grey). Lower panel: residuals in standard deviations, or signed square
        roots of Cash's C. Bins have at least 5 counts; the fit is that of the groups in ``best.spectra``.
    """
    data = best.data
    rows = range(min(len(data), MAX_NUM))
    columns = min(COLUMNS, len(rows))
    height = -(-len(rows) // columns)
    with house_style():
        figure, axes = panels(
            2 * height, columns, (max(4.6, 3.4 * columns), 3.6 * height), margins=(0.75, 0.12, 0.48, 0.45),
            gaps=(0.72, 0.25), height_ratios=[2.2, 1.0] * height,
        )  # fmt: skip
        for row in rows:
            line, column = divmod(row, columns)
            _draw(axes[2 * line, column], axes[2 * line + 1, column], best, row)
        for spare in range(len(rows), height * columns):
            line, column = divmod(spare, columns)
            axes[2 * line, column].set_visible(False)
            axes[2 * line + 1, column].set_visible(False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), columnspacing=1.2, handlelength=1.6)
    return figure


def _draw(upper, lower, best: Any, row: int) -> None:
    """Draw one spectrum and its residuals."""
    data, table = best.data, best.spectra[best.spectra["spectrum"] == best.data.name[row]]
    table = table.iloc[: int(np.asarray(data.used[row]).sum())].dropna(axis="columns", how="all")
    binned = points(data, row)
    low, high = table["e_min"].to_numpy(), table["e_max"].to_numpy()
    exposure = float(data.exposure[row])
    width = exposure * binned.bins.total(high - low)
    _draw_points(upper, binned, 1.0 / width)
    total = binned.bins.total((table["source"] + table["background"]).to_numpy())
    edges = binned.bins.low, binned.bins.high
    _outline(upper, *edges, total / width, color=MODEL, lw=1.0, label="model")
    components = [name for name in table.columns if name not in SHARED]
    for name, colour in zip(components, COLOURS * len(components), strict=False):
        values = binned.bins.total(table[name].to_numpy()) / width
        _outline(upper, *edges, values, color=colour, lw=0.9, ls="--", label=name)
    if table["background"].any():
        values = binned.bins.total(table["background"].to_numpy()) / width
        _outline(upper, *edges, values, color=BACKGROUND, lw=0.8, label="background")
    upper.set_yscale("log")
    top = max(float((total / width).max()), float((binned.counts / width).max()))
    upper.set_ylim(max(LOWEST * top, 0.3 * float((total / width).min())), 4.0 * top)
    upper.set_ylabel(r"counts s$^{-1}$ keV$^{-1}$")
    upper.set_title(object_name(data.name[row]), fontsize=8.0, pad=2.5)
    upper.tick_params(labelbottom=False)
    error = binned.error
    residual = residuals(binned.counts, total) if error is None else (binned.counts - total) / error
    middle = np.sqrt(binned.bins.low * binned.bins.high)
    lower.axhline(0.0, color=MODEL, lw=0.9)
    lower.errorbar(middle, residual, 1.0, fmt="o", color=BLACK, markersize=1.6, elinewidth=0.6, markeredgewidth=0)
    limit = max(3.4, 1.1 * float(np.abs(residual).max()) + 1.0)
    lower.set_ylim(-limit, limit)
    lower.set_ylabel("residual")
    for axis in (upper, lower):
        _few_ticks(axis, low.min(), high.max())  # removes the label
    lower.set_xlabel("energy [keV]")
    upper.tick_params(labelbottom=False)


def best_fit_unfolded(best: Any, row: int = 0) -> Figure:
    """Plot the unfolded spectrum E^2 dN/dE of a best fit with its components.

    Parameters
    ----------
    best : hbm_jax.best_fits.BestFit
        The best fit.
    row : int
        Index of the spectrum.

    Returns
    -------
    matplotlib.figure.Figure
        Absorbed model (red) and components (dashed). The data are the ratio of the counts less background to the
        expected counts, times the model, and so depend on the model.
    """
    data, model = best.data, best.model
    table = best.spectra[best.spectra["spectrum"] == data.name[row]].iloc[: int(np.asarray(data.used[row]).sum())]
    binned = points(data, row)
    energy = np.geomspace(binned.bins.low.min(), binned.bins.high.max(), NUM_ENERGIES)
    with jax.enable_x64(True):
        values = {name: np.asarray(value, float) for name, value in model.complete(best.likelihood.parameters).items()}
        used = model.spectrum.parameters
        values = {name: np.ravel(v)[row] if v.ndim else v for name, v in values.items() if name in used}
        curves = {
            name: constants.kev_in_erg
            * energy**2
            * np.asarray(without_instrument(term.of_source(row)).on(energy)(values))
            for name, term in {"model": model.spectrum, **best.terms}.items()
        }
    source, background = (binned.bins.total(table[name].to_numpy()) for name in ("source", "background"))
    net, scale = unfolded_points(binned, source, background, energy, curves["model"])
    with house_style():
        figure, axes = panels(1, 1, (5.4, 4.0), margins=(0.8, 0.12, 0.48, 0.3))
        axis = axes[0, 0]
        _draw_points(axis, net, scale, "data, unfolded")
        for (name, curve), colour in zip(curves.items(), (MODEL, *COLOURS * len(curves)), strict=False):
            axis.plot(energy, curve, color=colour, lw=1.1, ls="-" if name == "model" else "--", label=name)
        top = max(float(curves["model"].max()), float((net.counts * scale).max()))
        shown = (net.counts * scale)[net.counts > 0]
        axis.set_yscale("log")
        axis.set_ylim(max(0.3 * shown.min(initial=top), LOWEST * top), 3.0 * top)
        axis.set_ylabel(r"$E^2\, \mathrm{d}N/\mathrm{d}E$ [erg cm$^{-2}$ s$^{-1}$]")
        axis.set_title(object_name(data.name[row]), fontsize=8.0, pad=2.5)
        _few_ticks(axis, energy[0], energy[-1])  # removes the label
        axis.set_xlabel("observed energy [keV]")
        axis.legend(loc="best")
    return figure
