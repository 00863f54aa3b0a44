"""Figures of many fits: a parameter of every object of a population, and intervals of simulated replicates."""

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from hbm_jax.inference.batch.results import Fits
from hbm_jax.names import require_parameters
from hbm_jax.plotting.labels import label, object_name
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SERIES, VERMILION, Figure, house_style

MAX_NAMED = 40  # objects drawn as rows with their names


def population(fits: Fits, parameter: str) -> Figure:
    """Draw the posterior of one parameter for every object of `hbm_jax.fit_each`, sorted by median.

    Parameters
    ----------
    fits : Fits
        From `hbm_jax.fit_each`.
    parameter : str
        Name of a parameter, or of an element such as ``"theta[1]"``.

    Returns
    -------
    matplotlib.figure.Figure
        Points are medians and bars the central 68 % intervals. Posteriors that are not usable are drawn with open
        vermilion symbols. Up to 40 objects are drawn as rows with their names, more as columns without names.

    Raises
    ------
    ValueError
        If no object has the parameter.
    """
    table = fits.summary()
    require_parameters([parameter], table.index.get_level_values("parameter").unique(), "population")
    table = table.xs(parameter, level="parameter")[["median", "lower_68", "upper_68"]]
    table = table[np.isfinite(table).all(axis=1)].sort_values("median", kind="stable")
    usable = fits.usable.loc[table.index].to_numpy()
    named = len(table) <= MAX_NAMED
    with house_style():
        size = (5.2, 1.0 + 0.2 * len(table)) if named else (7.2, 3.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        position = np.arange(len(table), 0, -1) if named else np.arange(1, len(table) + 1)
        _draw_objects(axes, table, position, usable, named)
        if len(table) < len(fits):
            axes.plot([], [], "x", color=GREY, markersize=4.0, label=f"without a posterior ({len(fits) - len(table)})")
        if named:
            axes.set_yticks(position, [object_name(name) for name in table.index])
            axes.tick_params(axis="y", which="both", length=0)
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_ylim(0.3, len(table) + 0.7)
            axes.set_xlabel(label(parameter))
        else:
            axes.set_xlim(1 - 0.01 * len(table), len(table) * 1.01)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("objects, sorted by median")
            axes.set_ylabel(label(parameter))
        if not usable.all() or len(table) < len(fits):
            figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
    return figure


def _draw_objects(axes, table, position, usable, named: bool) -> None:
    """Draw medians and 68 % intervals at these positions, those that are not usable with open symbols."""
    marker_size = 3.6 if named else float(np.clip(450.0 / len(table), 1.3, 3.2))
    styles = (("usable", usable, BLUE, BLUE), ("not usable", ~usable, VERMILION, "white"))
    for layer, (status, mask, colour, facecolour) in enumerate(styles):
        if not mask.any():
            continue
        median, lower, upper = table[mask].to_numpy().T
        bars = axes.hlines if named else axes.vlines
        width = float(np.clip(200.0 / len(table), 0.4, 1.4))
        bars(position[mask], lower, upper, color=colour, lw=width, alpha=1.0 if named else 0.5, zorder=2 + layer)
        points = (median, position[mask]) if named else (position[mask], median)
        axes.plot(
            *points,
            "o",
            color=colour,
            markerfacecolor=facecolour,
            markeredgewidth=0.7,
            markersize=max(marker_size, 1.6) + 0.8 if facecolour == "white" else marker_size,
            zorder=4 + layer,
            label=f"{status} ({mask.sum()})",
        )


def replicates(fits: Mapping[str, Fits], truth: Mapping[str, float]) -> Figure:
    """Draw the 68 % posterior interval of every replicate, for each program.

    Parameters
    ----------
    fits : mapping of str to Fits
        Results of `hbm_jax.fit_each` for the same replicates, by name of the program.
    truth : mapping of str to float
        True value of each parameter that is drawn.

    Returns
    -------
    matplotlib.figure.Figure
        One column per parameter and one row per program. Intervals that contain the true value are dark, the others
        pale; titles give the number that do.

    Raises
    ------
    ValueError
        If the fits of a program have no parameter of that name.
    """
    with house_style():
        figure = Figure(figsize=(2.5 * len(truth) + 0.6, 1.9 * len(fits) + 0.6), layout="constrained")
        panels = figure.subplots(len(fits), len(truth), squeeze=False, sharex="col")
        for row, (name, fits_of_program) in enumerate(fits.items()):
            table = fits_of_program.summary()
            available = table.index.get_level_values("parameter").unique()
            require_parameters(truth, available, f"replicates: fits {name!r}")
            colour = SERIES[row % len(SERIES)]
            for axes, (parameter, value) in zip(panels[row], truth.items(), strict=True):
                intervals = table.xs(parameter, level="parameter").sort_values("median")
                inside = ((intervals["lower_68"] < value) & (value < intervals["upper_68"])).to_numpy()
                y = np.arange(len(intervals))
                for mask, alpha in ((inside, 1.0), (~inside, 0.35)):
                    subset = intervals[mask]
                    axes.hlines(y[mask], subset["lower_68"], subset["upper_68"], color=colour, alpha=alpha, lw=1.1)
                    axes.plot(subset["median"], y[mask], ".", color=colour, alpha=alpha, ms=3.0)
                axes.axvline(value, color=BLACK, lw=1.0)
                axes.set_title(f"{name}: {int(inside.sum())} of {len(intervals)} contain the truth", fontsize=8.0)
                axes.set_yticks([])
                if row == len(fits) - 1:
                    axes.set_xlabel(label(parameter))
    return figure
