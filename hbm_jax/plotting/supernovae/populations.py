"""Figure of the populations of stretch and colour, and of the shrinkage of each supernova towards them."""

import numpy as np

from hbm_jax.data import Supernovae
from hbm_jax.inference import Fit, latents
from hbm_jax.models import Supernova
from hbm_jax.plotting.draws import model_and_data, parameter, spread
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, SKY, VERMILION, Figure, house_style

QUANTITIES = {"x1": (1, ""), "c": (2, "mag")}  # row of the container's covariance, and unit
NUM_GRID = 300
BANDS = (0.025, 0.16, 0.5, 0.84, 0.975)


def population_draws(fit: Fit, name: str, grid: np.ndarray, num_draws: int = 300) -> np.ndarray:
    """Return the density of a normal population on a grid, for posterior draws of its mean and standard deviation.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`.
    name : str
        Quantity: ``"x1"`` or ``"c"``.
    grid : (G,)
        Values of the quantity.
    num_draws : int
        Number of posterior draws, evenly spaced among all of them.

    Returns
    -------
    array (draw, G)
    """
    mean, std = (parameter(fit, f"{name}_{what}") for what in ("mean", "std"))
    mean, std = np.broadcast_arrays(mean, std)
    rows = spread(len(mean), num_draws)
    return _normal(grid, mean[rows, None], std[rows, None])


def populations(fit: Fit, num_draws: int = 300) -> Figure:
    """Draw the populations of stretch and colour, and the shrinkage of the observed values.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`, with its program and data.
    num_draws : int
        Number of posterior draws of the bands and the true values.

    Returns
    -------
    matplotlib.figure.Figure
        Upper panels: the observed values; the inferred population of true values (68 and 95 % bands); and this
        population convolved with the measurement errors, which is the expected distribution of the observed values.
        Lower panels: posterior mean and standard deviation of each true value against the observed one. The larger the
        error of a value, the closer its posterior mean is to the population.

    Raises
    ------
    ValueError
        If the fit is not one of supernovae, or was loaded without its program and data.

    Examples
    --------
    >>> populations(fit).savefig("populations.pdf")  # doctest: +SKIP
    """
    _, data = model_and_data(fit, Supernova, Supernovae, "populations")
    truth = latents(fit, num_draws=num_draws)
    with house_style():
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col", height_ratios=(1.0, 1.15))
        for (name, (row, unit)), (upper, lower) in zip(QUANTITIES.items(), axes.T, strict=True):
            observed, error = getattr(data, name), np.sqrt(data.covariance[:, row, row])
            _draw_population(upper, fit, name, observed, error, num_draws)
            upper.set_ylabel("density [mag$^{-1}$]" if unit == "mag" else "density")
            values = truth[f"{name}_true"].transpose("sample", ...).to_numpy()
            _draw_shrinkage(lower, values, observed, error, float(np.median(parameter(fit, f"{name}_mean"))))
            lower.set_xlabel(f"observed {label(name, unit)}")
            lower.set_ylabel(f"{label(f'{name}_true', unit)}: posterior mean ± s.d.")
        axes[0, 0].legend(loc="upper left", fontsize=8.0)
        axes[1, 0].legend(loc="upper left", fontsize=8.0)
    return figure


def _draw_population(axes, fit, name, observed, error, num_draws) -> None:
    """Draw the observed values with the inferred population."""
    margin = 0.05 * np.ptp(observed)
    grid = np.linspace(observed.min() - margin, observed.max() + margin, NUM_GRID)
    axes.hist(observed, bins="fd", density=True, color="#d9d9d9", edgecolor="white", lw=0.4, label="observed")
    bands = np.quantile(population_draws(fit, name, grid, num_draws), BANDS, axis=0)
    axes.fill_between(grid, bands[0], bands[4], color=SKY, alpha=0.5, lw=0, label="population, 95 %")
    axes.fill_between(grid, bands[1], bands[3], color=BLUE, alpha=0.7, lw=0, label="population, 68 %")
    mean, std = (float(np.median(parameter(fit, f"{name}_{what}"))) for what in ("mean", "std"))
    broadened = _normal(grid[:, None], mean, np.sqrt(std**2 + error**2)).mean(axis=1)
    axes.plot(grid, broadened, "--", color=VERMILION, lw=1.2, label="population with errors")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.0, 1.22 * axes.get_ylim()[1])


def _draw_shrinkage(axes, values, observed, error, mean) -> None:
    """Draw posterior means and standard deviations of the true values against the observed values."""
    centre, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    axes.errorbar(
        observed, centre, sd, error, fmt="none", ecolor=BLUE, elinewidth=0.4, alpha=0.25, zorder=1, rasterized=True
    )
    axes.plot(observed, centre, "o", color=BLUE, markersize=2.2, markeredgewidth=0, zorder=2, label="supernovae")
    ends = np.array([observed.min(), observed.max()])
    axes.plot(ends, ends, color=BLACK, lw=0.9, zorder=3, label="equality")
    axes.axhline(mean, color=GREY, lw=0.9, ls="--", zorder=3, label="population mean")


def _normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2.0 * np.pi))
