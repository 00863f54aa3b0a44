"""Figure of the chains of any posterior: traces and rank histograms."""

from collections.abc import Iterable

import numpy as np
from scipy.stats import rankdata

from hbm_jax.inference import Fit
from hbm_jax.plotting.draws import named_draws, unit_of
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, GREY, SERIES, Figure, house_style, panels

RANK_BINS = 20
LEFT, LABEL = 0.95, 0.7  # inches from the panels to the edge of the figure, and to their labels
MAX_LEGEND = 7  # entries that fit in one line; with more there is no legend


def trace(fit: Fit, parameters: Iterable[str] | None = None) -> Figure:
    """Draw the trace of every chain, and the ranks of its draws among the draws of all chains.

    Parameters
    ----------
    fit : Fit
        Fit of any model.
    parameters : iterable of str, optional
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
    """
    draws = named_draws(fit, parameters)
    if not draws:
        raise ValueError("trace: expected parameters that vary; found none.")
    diverging = fit.tree["sample_stats"]["diverging"].transpose("chain", "draw").to_numpy()
    num_chains, num_draws = next(iter(draws.values())).shape
    with house_style():
        height = 0.8 + 1.05 * len(draws)
        figure, axes = panels(
            len(draws), 2, (7.2, height), margins=(LEFT, 0.2, 0.45, 0.35), gaps=(0.5, 0.17), sharex="col",
            width_ratios=(1.7, 1.0),
        )  # fmt: skip
        for (name, values), (left, right) in zip(draws.items(), axes, strict=True):
            _draw_traces(left, values, diverging)
            left.set_ylabel(label(name, unit_of(fit, name)))
            left.yaxis.set_label_coords(-LABEL / (left.get_position().width * 7.2), 0.5)
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
            legend = figure.legend(
                handles, texts, loc="upper left", bbox_to_anchor=(LEFT / 7.2, 1.0), borderaxespad=0.4,
                ncols=len(handles), handlelength=1.2,
            )  # fmt: skip
            for line in legend.get_lines():
                line.set(linewidth=2.0, alpha=1.0)
        axes[0, 1].set_title("draws per bin of rank", fontsize=9.0)
        for panel in axes.flat:
            panel.minorticks_off()
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
    # Binomial variance of the counts of a bin, inflated because autocorrelated draws have similar ranks.
    half_width = 1.96 * np.sqrt(expected * (1.0 - 1.0 / RANK_BINS) * inflation)
    axes.axhspan(max(expected - half_width, 0.0), expected + half_width, color="#e4e4e4", lw=0)
    axes.axhline(expected, color=GREY, lw=0.6)
    for chain, colour in zip(ranks, _chain_colours(len(ranks)), strict=True):
        axes.stairs(np.histogram(chain, edges)[0], edges, color=colour, lw=1.0)
    axes.set_ylim(0.0, None)
