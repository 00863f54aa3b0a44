"""The figure of many posteriors side by side: one parameter over all objects of a population."""

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from hbm_jax.inference.batch.results import Fits
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLUE, GREY, VERMILION, Figure, house_style

FEW = 40  # objects that have room for a row with their name


def population(fits: Fits, parameter: str) -> Figure:
    """Posteriors of one parameter over all objects of `hbm_jax.fit_each`, in the order of their medians.

    Parameters
    ----------
    fits : Fits
        From `hbm_jax.fit_each`.
    parameter : str
        A parameter, or an element such as ``"theta[1]"``.

    Returns
    -------
    matplotlib.figure.Figure
        Points are medians, bars the central 68 %. Posteriors that are not usable are open and vermilion. Up to 40
        objects have a row each, with their name; more are in columns without names.

    Raises
    ------
    ValueError
        For a parameter that no object has.

    Examples
    --------
    >>> population(fits, "rate").savefig("rates.pdf")  # doctest: +SKIP
    """
    table = fits.summary([parameter.partition("[")[0]])
    known = table.index.get_level_values("parameter").unique()
    if parameter not in known:
        sites = dict.fromkeys(fits.summary().index.get_level_values("parameter"))
        raise ValueError(
            f"population: expected a parameter of the fits, some of {', '.join(list(sites)[:20])}; found {parameter!r}."
        )
    table = table.xs(parameter, level="parameter")[["median", "lower_68", "upper_68"]]
    table = table[np.isfinite(table).all(axis=1)].sort_values("median", kind="stable")
    usable = fits.usable.loc[table.index].to_numpy()
    few = len(table) <= FEW
    with house_style():
        size = (5.2, 1.0 + 0.2 * len(table)) if few else (7.2, 3.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        place = np.arange(len(table), 0, -1) if few else np.arange(1, len(table) + 1)
        marks = 3.6 if few else float(np.clip(450.0 / len(table), 1.3, 3.2))
        kinds = (("usable", usable, BLUE, BLUE), ("not usable", ~usable, VERMILION, "white"))
        for order, (text, chosen, colour, face) in enumerate(kinds):
            if not chosen.any():
                continue
            median, lower, upper = table[chosen].to_numpy().T
            bars = axes.hlines if few else axes.vlines
            width = float(np.clip(200.0 / len(table), 0.4, 1.4))
            bars(place[chosen], lower, upper, color=colour, lw=width, alpha=1.0 if few else 0.5, zorder=2 + order)
            points = (median, place[chosen]) if few else (place[chosen], median)
            axes.plot(
                *points,
                "o",
                color=colour,
                markerfacecolor=face,
                markeredgewidth=0.7,
                markersize=max(marks, 1.6) + 0.8 if face == "white" else marks,
                zorder=4 + order,
                label=f"{text} ({chosen.sum()})",
            )
        if len(table) < len(fits):
            axes.plot([], [], "x", color=GREY, markersize=4.0, label=f"without a posterior ({len(fits) - len(table)})")
        if few:
            axes.set_yticks(place, [str(name).replace("$", r"\$") for name in table.index])
            axes.tick_params(axis="y", which="both", length=0)
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0.3, len(table) + 0.7)
            axes.set_xlabel(label(parameter))
        else:
            axes.set_xlim(1 - 0.01 * len(table), len(table) * 1.01)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("objects, in the order of their medians")
            axes.set_ylabel(label(parameter))
        if not usable.all() or len(table) < len(fits):
            figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
    return figure
