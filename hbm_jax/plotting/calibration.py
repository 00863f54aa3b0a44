"""Simulation-based calibration: empirical distribution of the ranks of true values among posterior draws."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hbm_jax.inference.criticism.rank_tests import ECDF_SHARE, LEVEL, RANKS, band
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, VERMILION, Figure, house_style

if TYPE_CHECKING:
    from hbm_jax.inference.criticism.calibration import Calibration

COLUMNS = 4
LIGHT, DARK = "#ededed", "#d2d2d2"
MAX_PANELS = 24  # with more quantities, those with the largest p values share the last panel


def calibration(result: "Calibration") -> Figure:
    """Draw the difference between the rank distribution of each quantity and the uniform distribution.

    Parameters
    ----------
    result : Calibration
        From `hbm_jax.calibrate`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per quantity, with the empirical distribution function (ECDF) of the normalised ranks minus that of
        the uniform distribution (Sailynoja, Burkner & Vehtari 2022, Statistics and Computing 32, 32). If the program
        is calibrated, 95 % of the curves lie entirely within the dark band. A curve that leaves the light band fails;
        a quantity can also fail by the mean or the mean square of its normal scores. A maximum above zero means that
        the posterior is too high, a minimum below zero that it is too low, a maximum followed by a minimum that it is
        too narrow. Quantities that fail are vermilion, with their verdict. The title has the smallest errors that
        this number of replicates detects (`Calibration.detectable`).
    """
    table = result.table
    failing = table["p"] < LEVEL / len(table)
    separate, pooled = list(table.index), []
    if len(separate) > MAX_PANELS:
        by_p_value = list(table.sort_values("p").index)
        pooled = by_p_value[max(MAX_PANELS - 1, int(failing.sum())) :]
        separate = [name for name in separate if name not in set(pooled)]
    num_panels = len(separate) + bool(pooled)
    num_columns = min(COLUMNS, num_panels)
    num_rows = -(-num_panels // num_columns)
    coverages = (1.0 - LEVEL * ECDF_SHARE / len(table), 0.95)
    bands = [_with_ends(*band(len(result.ranks), coverage)) for coverage in coverages]
    curves = {name: _ecdf_difference(result.ranks[name].to_numpy()) for name in table.index}
    limit = 1.08 * max(float(np.abs(curve).max()) for _, *curve in (bands[0], *curves.values()))
    with house_style():
        figure = Figure(figsize=(max(1.8 * num_columns, 2.6) + 0.4, 0.5 + 1.75 * num_rows), layout="constrained")
        axes = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
        for panel in axes.flat[num_panels:]:
            panel.remove()
        for panel in axes.flat[max(num_panels - num_columns, 0) : num_panels]:  # the lowest panel of each column
            panel.tick_params(labelbottom=True)
        for panel in axes.flat[:num_panels]:
            for edges, colour in zip(bands, (LIGHT, DARK), strict=True):
                panel.fill_between(*edges, color=colour, lw=0)
            panel.axhline(0.0, color=GREY, lw=0.6)
        for name, panel in zip(separate, axes.flat, strict=False):
            colour = VERMILION if failing[name] else BLUE
            panel.plot(*curves[name], color=colour, lw=1.2)
            verdict = table.loc[name, "verdict"].replace(": ", ":\n") if failing[name] else ""
            title = "\n".join(filter(None, [label(name), verdict]))
            panel.set_title(title, fontsize=9.0, color=VERMILION if failing[name] else BLACK)
        if pooled:
            panel = axes.flat[num_panels - 1]
            for name in pooled:
                panel.plot(*curves[name], color=BLUE, lw=0.5, alpha=0.5)
            panel.set_title(f"{len(pooled)} others, uniform", fontsize=9.0)
        first_panel = axes[0, 0]  # all panels share its axes
        first_panel.set_xlim(0.0, 1.0)
        first_panel.set_ylim(-limit, limit)
        first_panel.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
        first_panel.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        figure.supxlabel("posterior probability below the true value", fontsize=10.0)
        bias, narrow, wide = result.detectable
        errors = rf"bias $\pm{bias:.2g}\,\sigma$, width $-{100 * (1 - narrow):.0f}$ or $+{100 * (wide - 1):.0f}$ %"
        figure.suptitle(f"detected with 90 % probability:{chr(10) if num_columns < 3 else ' '}{errors}", fontsize=9.0)
        figure.supylabel("ECDF $-$ uniform", fontsize=10.0)
    return figure


def _ecdf_difference(ranks) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised ranks from 0 to 1, and the ECDF of the ranks minus that of the uniform distribution."""
    fraction = np.arange(RANKS + 1) / RANKS
    counts = np.bincount(ranks, minlength=RANKS).cumsum()
    return fraction, np.concatenate([[0.0], counts / len(ranks)]) - fraction


def _with_ends(fraction, lower, upper) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extend a band to its ends at 0 and 1, where the difference is zero by definition."""
    return np.concatenate([[0.0], fraction, [1.0]]), np.pad(lower, 1), np.pad(upper, 1)
