"""The figure of simulation-based calibration: ranks of true values among posterior draws."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from hbm_jax.inference.criticism.calibration import LEVEL, RANKS, Calibration, band
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, VERMILION, Figure, house_style

COLUMNS = 4
LIGHT, DARK = "#ededed", "#d2d2d2"
TESTS = 3  # of each quantity, of which its curve is one; the level is shared between them
MAX_PANELS = 24  # quantities with a panel of their own; more share the last one, the most even ones first


def calibration(result: Calibration) -> Figure:
    """How the ranks of the true values of every quantity differ from uniform ones.

    Parameters
    ----------
    result : Calibration
        From `hbm_jax.calibrate`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel a quantity: the fraction of true values below each fraction of their posterior, less that fraction
        (Sailynoja, Burkner & Vehtari 2022, Statistics and Computing 32, 32). The dark band holds 95 % of the whole
        curves of a right program; a curve that leaves the light one fails, as one may also by its mean or spread alone.
        A hill is a posterior that lies too high, a dip one too low, a hill followed by a dip one too narrow. Quantities
        that fail are vermilion, with their verdict in words.

    Examples
    --------
    >>> calibration(calibrate(model, design)).savefig("calibration.pdf")  # doctest: +SKIP
    """
    table = result.table
    failing = table["p"] < LEVEL / len(table)
    own, shared = list(table.index), []
    if len(own) > MAX_PANELS:
        uneven = list(table.sort_values("p").index)
        shared = uneven[max(MAX_PANELS - 1, int(failing.sum())) :]
        own = [name for name in own if name not in set(shared)]
    num_panels = len(own) + bool(shared)
    columns = min(COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    bands = [_closed(*band(len(result.ranks), coverage)) for coverage in (1.0 - LEVEL / TESTS / len(table), 0.95)]
    curves = {name: _difference(result.ranks[name].to_numpy()) for name in table.index}
    reach = 1.08 * max(float(np.abs(curve).max()) for _, *curve in (bands[0], *curves.values()))
    with house_style():
        figure = Figure(figsize=(max(1.8 * columns, 2.6) + 0.4, 0.5 + 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel in axes.flat[num_panels:]:
            panel.remove()
        for panel in axes.flat[max(num_panels - columns, 0) : num_panels]:  # with none below them
            panel.tick_params(labelbottom=True)
        for panel in axes.flat[:num_panels]:
            for edges, colour in zip(bands, (LIGHT, DARK), strict=True):
                panel.fill_between(*edges, color=colour, lw=0)
            panel.axhline(0.0, color=GREY, lw=0.6)
        for name, panel in zip(own, axes.flat, strict=False):
            colour = VERMILION if failing[name] else BLUE
            panel.plot(*curves[name], color=colour, lw=1.2)
            words = table.loc[name, "verdict"].replace(": ", ":\n") if failing[name] else ""
            title = "\n".join(filter(None, [label(name), words]))
            panel.set_title(title, fontsize=9.0, color=VERMILION if failing[name] else BLACK)
        if shared:
            panel = axes.flat[num_panels - 1]
            for name in shared:
                panel.plot(*curves[name], color=BLUE, lw=0.5, alpha=0.5)
            panel.set_title(f"{len(shared)} others, uniform", fontsize=9.0)
        first = axes[0, 0]
        first.set_xlim(0.0, 1.0)
        first.set_ylim(-reach, reach)
        first.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
        first.yaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        figure.supxlabel("fraction of the posterior below the true value", fontsize=10.0)
        figure.supylabel("ECDF less uniform", fontsize=10.0)
    return figure


def _difference(ranks) -> tuple[np.ndarray, np.ndarray]:
    """Share of all possible ranks, from none to all, and the ECDF of the ranks less that share."""
    share = np.arange(RANKS + 1) / RANKS
    counts = np.bincount(ranks, minlength=RANKS).cumsum()
    return share, np.concatenate([[0.0], counts / len(ranks)]) - share


def _closed(share, lower, upper) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band with both its ends, where every ECDF is certain."""
    return np.concatenate([[0.0], share, [1.0]]), np.pad(lower, 1), np.pad(upper, 1)
