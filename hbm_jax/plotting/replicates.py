"""Posterior intervals of simulated replicates compared with the true values, for one or several programs."""

from collections.abc import Mapping

import numpy as np

from hbm_jax.inference import Fits
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, SERIES, Figure, house_style


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
            table = fits_of_program.summary(list(truth))
            colour = SERIES[row % len(SERIES)]
            for axes, (parameter, value) in zip(panels[row], truth.items(), strict=True):
                if parameter not in table.index.get_level_values("parameter"):
                    raise ValueError(
                        f"replicates: expected the parameter {parameter!r} in the fits {name!r}; found none."
                    )
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
