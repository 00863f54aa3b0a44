"""Posteriors of simulated replicates beside the truth: whether intervals cover, for one program or several."""

from collections.abc import Mapping

import numpy as np

from hbm_jax.inference import Fits
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, SERIES, Figure, house_style


def replicates(fits: Mapping[str, Fits], truth: Mapping[str, float]) -> Figure:
    """Draw the 68 % interval of every replicate, for each program.

    Parameters
    ----------
    fits : mapping of str to Fits
        What `hbm_jax.fit_each` made of the same replicates, by the program's name.
    truth : mapping of str to float
        True value of each parameter to draw.

    Returns
    -------
    matplotlib.figure.Figure
        A column for each parameter and a row for each program. Intervals that hold the truth are dark, the others pale;
        how many do is written above.

    Raises
    ------
    ValueError
        If a parameter is not among the fits'.
    """
    with house_style():
        figure = Figure(figsize=(2.5 * len(truth) + 0.6, 1.9 * len(fits) + 0.6), layout="constrained")
        grid = figure.subplots(len(fits), len(truth), squeeze=False, sharex="col")
        for row, (name, found) in enumerate(fits.items()):
            table = found.summary(list(truth))
            colour = SERIES[row % len(SERIES)]
            for axes, (parameter, value) in zip(grid[row], truth.items(), strict=True):
                if parameter not in table.index.get_level_values("parameter"):
                    raise ValueError(
                        f"replicates: expected the parameter {parameter!r} in the fits {name!r}; found none."
                    )
                one = table.xs(parameter, level="parameter").sort_values("median")
                inside = ((one["lower_68"] < value) & (value < one["upper_68"])).to_numpy()
                place = np.arange(len(one))
                for mask, alpha in ((inside, 1.0), (~inside, 0.35)):
                    some = one[mask]
                    axes.hlines(place[mask], some["lower_68"], some["upper_68"], color=colour, alpha=alpha, lw=1.1)
                    axes.plot(some["median"], place[mask], ".", color=colour, alpha=alpha, ms=3.0)
                axes.axvline(value, color=BLACK, lw=1.0)
                axes.set_title(f"{name}: {int(inside.sum())} of {len(one)} hold the truth", fontsize=8.0)
                axes.set_yticks([])
                if row == len(fits) - 1:
                    axes.set_xlabel(label(parameter))
    return figure
