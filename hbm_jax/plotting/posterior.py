"""Figures of any posterior: corner plot, trace plot and rank histograms."""

from collections.abc import Iterable

import corner as corner_library
import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator
from scipy.stats import rankdata

from hbm_jax.inference import Fit
from hbm_jax.plotting.draws import named_draws, unit_of
from hbm_jax.plotting.labels import label, quote, quoted_math
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SERIES, Figure, house_style

LEVELS = (0.68, 0.95)
INTERVAL = (0.16, 0.5, 0.84)
SPAN = (0.001, 0.999)  # quantiles that limit an axis, so that single outlying draws do not set its range
RANK_BINS = 20
LABEL_INCHES = 0.45  # from a panel of the corner plot to its label, outside the slanted tick labels
MAX_LEGEND = 7  # entries that fit in one line; with more there is no legend


def corner(fit: Fit, names: Iterable[str] | None = None) -> Figure:
    """Draw the marginal posteriors of parameters and of every pair of them.

    Parameters
    ----------
    fit : Fit
        Fit of any model.
    names : iterable of str, optional
        Names of parameters, or of elements such as ``"theta[3]"``. By default every scalar parameter that varies.

    Returns
    -------
    matplotlib.figure.Figure
        Contours contain 68 and 95 % of the posterior. Titles give the median and the 68 % interval, marked by dashed
        lines. Draws that are not finite are omitted.

    Raises
    ------
    ValueError
        If the fit has no parameter of that name, or if no parameter varies.

    Examples
    --------
    >>> corner(fit, ["Om0", "w0"]).savefig("corner.pdf")  # doctest: +SKIP
    """
    draws = named_draws(fit, names)
    draws = {name: values.ravel() for name, values in draws.items()}
    table = np.column_stack(list(draws.values())) if draws else np.zeros((0, 0))
    table = table[np.isfinite(table).all(axis=1)]
    constant = [name for name, column in zip(draws, table.T, strict=True) if np.ptp(column) == 0]
    if constant or not table.size:
        raise ValueError(f"corner: expected parameters that vary; found constant: {', '.join(constant) or 'none'}.")
    size = len(draws)
    panel = 1.9 if size <= 4 else 1.1
    ranges = []
    for column in table.T:
        low, high = np.quantile(column, SPAN)
        pad = 0.05 * (high - low) or 0.5 * np.ptp(column)
        ranges.append((low - pad, high + pad))
    with house_style():
        figure = Figure(figsize=(1.25 + panel * size, 1.15 + panel * size))
        corner_library.corner(
            table,
            fig=figure,
            range=ranges,
            labels=[label(name, unit_of(fit, name)) for name in draws],
            bins=30,
            smooth=1.2,
            levels=LEVELS,
            color=BLUE,
            quantiles=INTERVAL,
            plot_datapoints=False,
            plot_density=False,
            fill_contours=True,
            hist_kwargs={"color": BLUE, "linewidth": 1.0},
            contour_kwargs={"linewidths": 0.9},
            quiet=True,
        )
        axes = np.array(figure.axes).reshape(size, size)
        ticks = [_inner_ticks(*limits, 4 if size <= 4 else 3) for limits in ranges]
        for row in range(size):
            for column in range(row + 1):
                axes[row, column].xaxis.set_major_locator(FixedLocator(ticks[column]))
                if column < row:
                    axes[row, column].yaxis.set_major_locator(FixedLocator(ticks[row]))
        for index, (name, values) in enumerate(zip(draws, table.T, strict=True)):
            lower, median, upper = np.quantile(values, INTERVAL)
            symbol = label(name).strip("$") if label(name).startswith("$") and label(name).endswith("$") else None
            numbers = quoted_math(quote(median, lower, upper))
            axes[index, index].set_title(f"${symbol}$ = {numbers}" if symbol else f"{name}\n{numbers}", pad=5.0)
        for panel_axes in axes.ravel():
            panel_axes.minorticks_off()
            panel_axes.xaxis.set_label_coords(0.5, -LABEL_INCHES / panel)
            panel_axes.yaxis.set_label_coords(-LABEL_INCHES / panel, 0.5)
            for line in panel_axes.lines:
                line.set_linewidth(0.8)
        inch = 1.0 / figure.get_figwidth()
        figure.subplots_adjust(0.75 * inch, 0.75 * inch, 1.0 - 0.5 * inch, 1.0 - 0.4 * inch, 0.06, 0.06)
    return figure


def _inner_ticks(low: float, high: float, max_ticks: int) -> list[float]:
    """Return round tick values away from both ends, where labels would overlap those of the next panel."""
    margin = 0.1 * (high - low)
    return [tick for tick in MaxNLocator(max_ticks).tick_values(low, high) if low + margin <= tick <= high - margin]


def trace(fit: Fit, names: Iterable[str] | None = None) -> Figure:
    """Draw the trace of every chain, and the ranks of its draws among the draws of all chains.

    Parameters
    ----------
    fit : Fit
        Fit of any model.
    names : iterable of str, optional
        Names of parameters, or of elements such as ``"theta[3]"``. By default every scalar parameter that varies.

    Returns
    -------
    matplotlib.figure.Figure
        One row per parameter. Left: draws of each chain; ticks at the bottom mark divergent transitions. Right:
        histogram of the ranks of each chain (Vehtari et al. 2021, Bayesian Analysis 16, 667). Chains that agree have
        flat histograms within the grey band, which contains 95 % of the counts of a chain with the observed effective
        sample size.

    Raises
    ------
    ValueError
        If the fit has no parameter of that name, or if no parameter varies.

    Examples
    --------
    >>> trace(fit).savefig("trace.pdf")  # doctest: +SKIP
    """
    draws = named_draws(fit, names)
    if not draws:
        raise ValueError("trace: expected parameters that vary; found none.")
    diverging = fit.tree["sample_stats"]["diverging"].transpose("chain", "draw").to_numpy()
    num_chains, num_draws = next(iter(draws.values())).shape
    with house_style():
        figure = Figure(figsize=(7.2, 0.7 + 1.05 * len(draws)), layout="constrained")
        axes = figure.subplots(len(draws), 2, squeeze=False, sharex="col", width_ratios=(1.7, 1.0))
        for (name, values), (left, right) in zip(draws.items(), axes, strict=True):
            _draw_traces(left, values, diverging)
            left.set_ylabel(label(name, unit_of(fit, name)))
            efficiency = fit.verdict.table["ess_bulk"].get(name, np.nan) / values.size
            _draw_ranks(right, values, efficiency)
        axes[-1, 0].set_xlabel("draw")
        axes[-1, 1].set_xlabel("rank among all draws")
        axes[0, 0].set_xlim(0, num_draws - 1)
        axes[0, 1].set_xlim(0, num_chains * num_draws)
        handles = axes[0, 0].get_lines()[:num_chains]
        texts = [f"chain {index}" for index in range(num_chains)]
        marks = [line for line in axes[0, 0].get_lines() if line.get_gid() == "divergent"]
        if marks:
            handles, texts = [*handles, marks[0]], [*texts, f"divergent ({int(diverging.sum())})"]
        if len(handles) <= MAX_LEGEND:
            legend = figure.legend(handles, texts, loc="outside upper left", ncols=len(handles), handlelength=1.2)
            for line in legend.get_lines():
                line.set(linewidth=2.0, alpha=1.0)
        axes[0, 1].set_title("draws per bin of rank", fontsize=9.0)
        figure.align_ylabels(axes[:, 0])
    return figure


def _chain_colours(num_chains: int) -> list:
    """Return the colours of the chains: the palette, or a colour map for more chains."""
    if num_chains <= len(SERIES):
        return list(SERIES[:num_chains])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.9, num_chains)))


def _draw_traces(axes, values, diverging) -> None:
    """Draw the chains of one parameter, and ticks at divergent transitions."""
    for chain, colour in zip(values, _chain_colours(len(values)), strict=True):
        axes.plot(chain, color=colour, lw=0.4, alpha=0.75, rasterized=True)
    if diverging.any():
        positions = np.nonzero(diverging)[1]
        axes.plot(
            positions,
            np.full(len(positions), 0.02),
            "|",
            color=BLACK,
            markersize=7.0,
            transform=axes.get_xaxis_transform(),
            gid="divergent",
            clip_on=False,
        )


def _draw_ranks(axes, values, efficiency) -> None:
    """Draw the rank histogram of each chain, and the band expected for the ratio of effective to actual draws."""
    if not np.isfinite(values).all():
        axes.text(0.5, 0.5, "draws that are not finite", transform=axes.transAxes, ha="center", va="center")
        return
    ranks = rankdata(values, method="average").reshape(values.shape)
    edges = np.linspace(0.5, values.size + 0.5, RANK_BINS + 1)
    expected = values.shape[1] / RANK_BINS
    inflation = 1.0 / np.clip(efficiency, 1e-3, 1.0) if np.isfinite(efficiency) else 1.0
    # Autocorrelated draws have similar ranks, which inflates the variance; 1 - 1 / bins, since their total is fixed.
    half_width = 1.96 * np.sqrt(expected * (1.0 - 1.0 / RANK_BINS) * inflation)
    axes.axhspan(max(expected - half_width, 0.0), expected + half_width, color="#e4e4e4", lw=0)
    axes.axhline(expected, color=GREY, lw=0.6)
    for chain, colour in zip(ranks, _chain_colours(len(ranks)), strict=True):
        axes.stairs(np.histogram(chain, edges)[0], edges, color=colour, lw=1.0)
    axes.set_ylim(0.0, None)
