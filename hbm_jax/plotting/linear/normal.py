"""Figures of the normal hierarchical model: shrinkage of the groups, and the funnel."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from matplotlib.ticker import NullLocator

from hbm_jax.data import ValuesInGroups
from hbm_jax.inference import Fit
from hbm_jax.inference.results import model_of
from hbm_jax.models import Normal, NormalVectors
from hbm_jax.plotting.draws import evenly_spaced, model_and_data, parameter, true_values
from hbm_jax.plotting.labels import object_name
from hbm_jax.plotting.style import (
    BAND_68,
    BAND_95,
    BLACK,
    BLUE,
    GREY,
    QUANTILES,
    VERMILION,
    Figure,
    draw_intervals,
    house_style,
)

NUM_DRAWS = 2000
MAX_GROUPS = 40  # rows of a forest plot
BINS = 40


def forest(fit: Fit) -> Figure:
    """Plot the true value of every group without pooling and with partial pooling.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Normal` or `NormalVectors`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each component, a row for each group (of more than 40 groups, 40 evenly spaced ones). Open circles:
        mean of the values of the group with its standard error (no pooling). Dots: posterior median with partial
        pooling, with central 68 and 95 % intervals. Bands: the posterior of mu, the limit of complete pooling. With
        mixed latents, the right axis shows the weight of partial non-centring of each group (1 centred).

    Raises
    ------
    ValueError
        If the fit is of another model.
    """
    model, data = _model_and_data(fit, "forest")
    theta = _true_value_draws(fit, data)
    mean, error = _unpooled(fit, model, data)
    mu = _component_draws(fit, data, "mu")
    shown = evenly_spaced(len(data), MAX_GROUPS)
    rows = np.arange(len(shown), 0, -1)
    size = len(data.components)
    with house_style():
        figure = Figure(figsize=(1.4 + 3.4 * size, 1.2 + 0.24 * len(shown)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, size, sharey=True))
        for d, axis in enumerate(axes):
            low, lower, upper, high = np.quantile(mu[:, d], (0.025, 0.16, 0.84, 0.975))
            axis.axvspan(low, high, color=BAND_95, alpha=0.35, lw=0)
            axis.axvspan(lower, upper, color=BAND_68, alpha=0.45, lw=0, label=r"$\mu$, 68 and 95 %")
            style: Any = {"fmt": "o", "color": GREY, "mfc": "white", "ms": 3.6, "elinewidth": 0.7, "mew": 0.7}
            axis.errorbar(mean[shown, d], rows + 0.16, xerr=error[shown, d], label="no pooling", zorder=2, **style)
            quantiles = np.quantile(theta[:, shown, d], QUANTILES, axis=0)
            draw_intervals(axis, rows - 0.16, quantiles, label="partial pooling", zorder=3)
            axis.set_xlabel(rf"$\theta$ of {data.components[d]}" if size > 1 else r"$\theta$")
            axis.tick_params(axis="y", which="both", length=0)
            axis.yaxis.set_minor_locator(NullLocator())
        axes[0].set_yticks(rows, [object_name(data.name[k]) for k in shown])
        axes[0].set_ylim(0.3, len(shown) + 0.7)
        if model.latents == "mixed":
            _label_weights(axes[-1], model, data, shown, rows)
        handles, labels = axes[0].get_legend_handles_labels()
        order = [labels.index(text) for text in ("no pooling", "partial pooling", r"$\mu$, 68 and 95 %")]
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handletextpad=0.4, columnspacing=1.2)
    return figure


def _label_weights(axis, model, data, shown, rows) -> None:
    """Label the right axis with the weight of partial non-centring of each group."""
    weights = model.centring(data)["weight"].to_numpy().reshape(len(data.components), len(data))
    right = axis.twinx()
    right.set_ylim(axis.get_ylim())
    right.set_yticks(rows, [", ".join(f"{weight:.2f}" for weight in weights[:, k]) for k in shown])
    right.tick_params(axis="y", which="both", length=0)
    right.yaxis.set_minor_locator(NullLocator())
    right.set_ylabel("weight of partial non-centring")


def funnel(fits: Fit | Mapping[str, Fit], group: str | int = 0, component: int = 0) -> Figure:
    """Plot the true value of a group against ln tau, for one fit or for several parametrisations.

    Parameters
    ----------
    fits : Fit, or mapping of str to Fit
        Fits of `hbm_jax.models.Normal` or `NormalVectors` to the same data, by panel title.
    group : str or int
        Name or index of the group.
    component : int
        Index of the component of vectors.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each fit: up to 2000 draws of (theta, ln tau), with all divergent transitions in vermilion. Next to
        it, the distribution of ln tau (filled), and as an outline that of the fit with marginal latents, if there is
        one: a parametrisation that cannot sample the neck of the funnel lacks small values of ln tau.

    Raises
    ------
    ValueError
        If a fit is of another model or has tau fixed, or for an unknown group or component.
    """
    fits = {"": fits} if isinstance(fits, Fit) else dict(fits)
    drawn = {title: _funnel_draws(fit, group, component) for title, fit in fits.items()}
    marginal = (title for title, fit in fits.items() if cast(Any, model_of(fit)).latents == "marginal")
    exact = next((drawn[title].all_log_tau for title in marginal), None)
    log_taus = np.concatenate([draws.all_log_tau for draws in drawn.values()])
    low, high = np.quantile(log_taus, (0.0005, 0.9995))
    bins = np.linspace(low - 0.3, high + 0.3, BINS)
    limits = np.quantile(np.concatenate([draws.theta for draws in drawn.values()]), (0.001, 0.999))
    name = next(iter(drawn.values())).group
    with house_style():
        figure = Figure(figsize=(0.6 + 2.9 * len(fits), 3.2), layout="constrained")
        grid = figure.subplots(1, 2 * len(fits), sharey=True, width_ratios=[3.0, 0.8] * len(fits), squeeze=False)[0]
        for (title, draws), axis, side in zip(drawn.items(), grid[::2], grid[1::2], strict=True):
            theta, log_tau, diverging = draws.theta, draws.log_tau, draws.diverging
            axis.plot(
                theta[~diverging], log_tau[~diverging], ".", color=BLUE, ms=2.2, mew=0.0, alpha=0.45, rasterized=True
            )
            axis.plot(theta[diverging], log_tau[diverging], ".", color=VERMILION, ms=5.0, mew=0.0, rasterized=True)
            count = f"{int(diverging.sum())} divergent" if diverging.any() else "no divergence"
            axis.set_title(f"{title}: {count}" if title else count)
            axis.set(xlim=limits, xlabel=rf"$\theta$ of {name}".replace("_", r"\_"))
            heights, _ = np.histogram(draws.all_log_tau, bins, density=True)
            side.stairs(heights, bins, orientation="horizontal", fill=True, color=BLUE, alpha=0.45)
            if exact is not None:
                side.stairs(
                    np.histogram(exact, bins, density=True)[0], bins, orientation="horizontal", color=BLACK, lw=0.8
                )
            side.set_xlim(left=0.0)
            side.set_xticks([])
        grid[0].set_ylim(bins[0], bins[-1])
        grid[0].set_ylabel(r"$\ln \tau$")
    return figure


class _FunnelDraws(NamedTuple):
    """Thinned draws (draw,) with divergence flags, ln tau of all draws, and the name of the group."""

    theta: np.ndarray
    log_tau: np.ndarray
    diverging: np.ndarray
    all_log_tau: np.ndarray
    group: str


def _funnel_draws(fit: Fit, group: str | int, component: int) -> _FunnelDraws:
    """Return the draws of a group and a component; all divergent draws are kept."""
    _, data = _model_and_data(fit, "funnel")
    if isinstance(group, str) and group not in data.name:
        raise ValueError(f"funnel: expected a group, one of {', '.join(data.name[:20])}; found {group!r}.")
    row = data.name.index(group) if isinstance(group, str) else range(len(data))[group]
    if not 0 <= component < len(data.components):
        raise ValueError(f"funnel: expected a component from 0 to {len(data.components) - 1}; found {component}.")
    if "tau" not in fit.posterior:
        raise ValueError("funnel: expected a fit in which tau varies; found a fixed tau.")
    log_tau = np.log(_component_draws(fit, data, "tau")[:, component])
    diverging = fit.tree["sample_stats"]["diverging"].transpose("chain", "draw").to_numpy().ravel()
    keep = np.zeros(len(log_tau), bool)
    keep[evenly_spaced(len(log_tau), NUM_DRAWS)] = True
    if "theta" in fit.posterior:
        keep |= diverging
        theta = parameter(fit, "theta").reshape(len(log_tau), len(data), -1)[keep]
    else:
        theta = _true_value_draws(fit, data)
    return _FunnelDraws(theta[:, row, component], log_tau[keep], diverging[keep], log_tau, data.name[row])


def _model_and_data(fit: Fit, figure_name: str) -> tuple[Normal | NormalVectors, ValuesInGroups]:
    """Return the model and the data of a fit, or raise an error that names the figure ``figure_name``."""
    kind: Any = NormalVectors if isinstance(model_of(fit), NormalVectors) else Normal
    return model_and_data(fit, kind, ValuesInGroups, figure_name)


def _component_draws(fit: Fit, data: ValuesInGroups, name: str) -> np.ndarray:
    """Return the draws of a parameter with one element per component, (draw, D); one draw if it is fixed."""
    if name in fit.posterior:
        values = parameter(fit, name)
        return values.reshape(len(values), -1)
    return np.full((1, len(data.components)), float(parameter(fit, name)[0]))


def _true_value_draws(fit: Fit, data: ValuesInGroups) -> np.ndarray:
    """Return draws of the true values, (draw, K, D)."""
    if "theta" in fit.posterior:
        drawn = parameter(fit, "theta")
        drawn = drawn[evenly_spaced(len(drawn), NUM_DRAWS)]
    else:
        drawn = true_values(fit, num_draws=NUM_DRAWS)["theta"].to_numpy()
    return drawn.reshape(len(drawn), len(data), -1)


def _unpooled(fit: Fit, model, data: ValuesInGroups) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of the values of each group and its standard error, (K, D) each."""
    used = np.asarray(data.used)[..., None]
    variance = np.diagonal(np.asarray(data.errors), axis1=-2, axis2=-1)
    if model.sigma == "inferred":
        variance = variance + np.median(_component_draws(fit, data, "sigma"), axis=0) ** 2
    weights = np.where(used, 1.0 / np.where(used, variance, 1.0), 0.0)
    total = weights.sum(axis=1)
    return (weights * np.asarray(data.values)).sum(axis=1) / total, 1.0 / np.sqrt(total)


FIGURES = {
    "forest": (
        "True value of each group: without pooling (open circles with standard errors) and with partial pooling (dots "
        "with 68 and 95 % intervals), and the posterior of the population mean (bands).",
        forest,
    ),
    "funnel": (
        "True value of the first group against the logarithm of the population standard deviation tau, with divergent "
        "transitions in vermilion. Right: distribution of ln tau.",
        funnel,
    ),
}


def figures(fit: Fit):
    """Return the figures of a fit of the normal hierarchical model; no funnel for fixed tau."""
    return FIGURES if "tau" in fit.posterior else {"forest": FIGURES["forest"]}
