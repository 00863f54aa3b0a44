"""Figure of the populations of stretch and colour, and of the shrinkage of each supernova towards them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_ndtr

from hbm_jax.data import Supernovae
from hbm_jax.inference import Fit
from hbm_jax.models import Supernova, expansion
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, true_values
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import BLACK, BLUE, GREY, QUANTILES, SKY, VERMILION, Figure, fill_bands, house_style, panels

QUANTITIES = {"x1": (1, ""), "c": (2, "mag")}  # row of the container's covariance, and unit
NUM_GRID = 300


def population_draws(fit: Fit, name: str, grid: np.ndarray, num_draws: int = 300) -> np.ndarray:
    """Return the density of the population on a grid, for posterior draws of its parameters.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova`.
    name : str
        Quantity: ``"x1"`` or ``"c"``.
    grid : (G,)
        Values of the quantity, in equal steps.
    num_draws : int
        Number of posterior draws, evenly spaced among all of them.

    Returns
    -------
    array (draw, G)
    """
    draws = _parameters(fit)
    rows = evenly_spaced(max(map(len, draws.values())), num_draws)
    chosen = {key: values if len(values) == 1 else values[rows] for key, values in draws.items()}
    return density(_law(fit, name), chosen, grid, 0.5 * (grid[1] - grid[0]))


def density(law, parameters: Mapping[str, np.ndarray], values: np.ndarray, error: np.ndarray | float) -> np.ndarray:
    """Return the density of the population of a law, convolved with normal errors.

    Parameters
    ----------
    law : StretchLaw or ColourLaw
        The law.
    parameters : mapping of str to array (draw,)
        Values of the parameters.
    values : array
        Values of the quantity.
    error : array or float
        Positive standard deviation of the error; it broadcasts against the values.

    Returns
    -------
    array (draw, ...)
    """
    shape = np.shape(values)
    components, latent = _components(law, parameters, len(shape))
    offset, variance = values - components["loc"], components["scale"] ** 2 + np.square(error)
    log_density = components["log_weight"] - 0.5 * offset**2 / variance - 0.5 * np.log(2.0 * np.pi * variance)
    if latent is not None:
        # Both factors are exponentials of a quadratic in the positive latent, which is integrated out.
        slope, rate, precision = latent
        total = precision + slope**2 / variance
        log_density += _log_half_line(rate - slope * offset / variance, total) - _log_half_line(rate, precision)
    return np.exp(np.broadcast_to(log_density, np.broadcast_shapes(log_density.shape, (1, 1, *shape)))).sum(axis=1)


def _components(law, parameters, ndim: int) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...] | None]:
    """Return location, scale and weight of the components, and slope, rate and precision of the positive latent.

    Axes are draws, components, and those of the values, of which there are ``ndim``.
    """
    trailing = (1,) * ndim
    p = {key: np.reshape(draws, (-1, 1, *trailing)) for key, draws in parameters.items()}
    with jax.enable_x64(True):
        population = law.population(p, lambda values: jnp.reshape(jnp.asarray(values), (-1, *trailing)))
        components = {name: np.asarray(getattr(population, name), float) for name in ("loc", "scale", "log_weight")}
        latent = population.latent
        if latent is None:
            return components, None
        precision = 0.0 if latent.precision is None else latent.precision
        return components, tuple(np.asarray(value, float) for value in (latent.quantity, latent.rate, precision))


def _log_half_line(rate: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the log of the integral of exp(-rate t - precision t^2 / 2) over t > 0."""
    rate, precision = np.broadcast_arrays(rate, precision)
    root = np.sqrt(np.where(precision > 0, precision, 1.0))
    quadratic = 0.5 * (rate / root) ** 2 + log_ndtr(-rate / root) + 0.5 * np.log(2.0 * np.pi) - np.log(root)
    return np.where(precision > 0, quadratic, -np.log(np.where(precision > 0, 1.0, rate)))


def _law(fit: Fit, name: str):
    """Return the law of stretch or colour."""
    model, _ = model_and_data(fit, Supernova, Supernovae, "populations")
    laws = model.laws
    return laws.stretch if name == "x1" else laws.colour


def _parameters(fit: Fit) -> dict[str, np.ndarray]:
    """Return the draws of the scalar parameters, (draw,); a single one of those that are fixed."""
    model, _ = model_and_data(fit, Supernova, Supernovae, "populations")
    hidden = expansion.result_parameters(model.cosmology, model.all_priors)
    parameters = {name: parameter(fit, name) for name in model.all_priors if name not in hidden}
    return {name: draws for name, draws in parameters.items() if draws.ndim == 1}


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
    """
    _, data = model_and_data(fit, Supernova, Supernovae, "populations")
    truth = true_values(fit, num_draws=num_draws)
    with house_style():
        figure, axes = panels(
            2, 2, (7.2, 6.2), margins=(0.68, 0.15, 0.48, 0.1), gaps=(0.75, 0.12), sharex="col",
            height_ratios=(1.0, 1.15),
        )  # fmt: skip
        for (name, (row, unit)), (upper, lower) in zip(QUANTITIES.items(), axes.T, strict=True):
            observed, error = getattr(data, name), np.sqrt(data.covariance[:, row, row])
            mean = _draw_population(upper, fit, name, observed, error, num_draws)
            upper.set_ylabel("density [mag$^{-1}$]" if unit == "mag" else "density")
            values = truth[f"{name}_true"].transpose("sample", ...).to_numpy()
            _draw_shrinkage(lower, values, observed, error, mean)
            lower.set_xlabel(f"observed {label(name, unit)}")
            lower.set_ylabel(f"{label(f'{name}_true', unit)}: posterior mean ± s.d.")
        axes[0, 0].legend(loc="upper left", fontsize=8.0)
        axes[1, 0].legend(loc="upper left", fontsize=8.0)
    return figure


def _draw_population(axes, fit, name, observed, error, num_draws) -> float:
    """Draw the observed values with the inferred population; return the mean of its median density."""
    margin = 0.05 * np.ptp(observed)
    grid = np.linspace(observed.min() - margin, observed.max() + margin, NUM_GRID)
    axes.hist(observed, bins="fd", density=True, color="#d9d9d9", edgecolor="white", lw=0.4, label="observed")
    bands = np.quantile(population_draws(fit, name, grid, num_draws), QUANTILES, axis=0)
    fill_bands(axes, grid, bands, "population", (SKY, BLUE), alpha=0.6)
    medians = {key: np.median(draws, keepdims=True) for key, draws in _parameters(fit).items()}
    broadened = density(_law(fit, name), medians, grid[:, None], error)[0].mean(axis=1)
    axes.plot(grid, broadened, "--", color=VERMILION, lw=1.2, label="population with errors")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.0, 1.22 * axes.get_ylim()[1])
    wide = np.linspace(grid[0] - np.ptp(grid), grid[-1] + np.ptp(grid), 3 * NUM_GRID)
    median = density(_law(fit, name), medians, wide, 0.5 * (wide[1] - wide[0]))[0]
    return float((wide * median).sum() / median.sum())


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
