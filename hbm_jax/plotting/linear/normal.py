"""Figures of the normal hierarchical model: what pooling does to each group, and the funnel."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from matplotlib.ticker import NullLocator

from hbm_jax.data import ValuesInGroups
from hbm_jax.inference import Fit, latents
from hbm_jax.inference.results import model_of
from hbm_jax.models import Normal, NormalVectors
from hbm_jax.plotting.draws import parameter, program_of, spread
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK, BLUE, GREY, VERMILION, Figure, house_style

NUM_DRAWS = 2000
MAX_GROUPS = 40  # that have room for a row with their name
BINS = 40
MIXED = "centredness"


def forest(fit: Fit) -> Figure:
    """Draw the true value of every group: by its own values alone, and with partial pooling.

    Parameters
    ----------
    fit : Fit
        Of `hbm_jax.models.Normal` or `NormalVectors`, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each component, a row for each group (of many, forty spread evenly over all). Open circles: mean of
        the group's own values, one standard error, which is no pooling. Dots: posterior median with partial pooling,
        and the central 68 and 95 %. Bands: the posterior of mu, where complete pooling would put them all. In the
        mixed form the right margin says how centred each group was sampled.

    Raises
    ------
    ValueError
        If the fit is not such a one.

    Examples
    --------
    >>> forest(fit).savefig("forest.pdf")  # doctest: +SKIP
    """
    model, data = _of(fit, "forest")
    theta = _theta(fit, data)
    own, error = _alone(fit, model, data)
    mu = _vector(fit, model, data, "mu")
    shown = spread(len(data), MAX_GROUPS)
    place = np.arange(len(shown), 0, -1)
    size = len(data.components)
    with house_style():
        figure = Figure(figsize=(1.4 + 3.4 * size, 1.2 + 0.24 * len(shown)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, size, sharey=True))
        for d, axis in enumerate(axes):
            low, lower, upper, high = np.quantile(mu[:, d], (0.025, 0.16, 0.84, 0.975))
            axis.axvspan(low, high, color=BAND_95, alpha=0.35, lw=0)
            axis.axvspan(lower, upper, color=BAND_68, alpha=0.45, lw=0, label=r"$\mu$, 68 and 95 %")
            style: Any = {"fmt": "o", "color": GREY, "mfc": "white", "ms": 3.6, "elinewidth": 0.7, "mew": 0.7}
            axis.errorbar(own[shown, d], place + 0.16, xerr=error[shown, d], label="alone", zorder=2, **style)
            low, lower, middle, upper, high = np.quantile(theta[:, shown, d], (0.025, 0.16, 0.5, 0.84, 0.975), axis=0)
            axis.hlines(place - 0.16, low, high, color=BLUE, lw=0.8, zorder=3)
            axis.hlines(place - 0.16, lower, upper, color=BLUE, lw=2.0, zorder=3)
            axis.plot(middle, place - 0.16, "o", color=BLUE, ms=3.6, mew=0.0, zorder=4, label="partial pooling")
            axis.set_xlabel(rf"$\theta$ of {data.components[d]}" if size > 1 else r"$\theta$")
            axis.tick_params(axis="y", which="both", length=0)
            axis.yaxis.set_minor_locator(NullLocator())
        axes[0].set_yticks(place, [data.name[k].replace("$", r"\$") for k in shown])
        axes[0].set_ylim(0.3, len(shown) + 0.7)
        if model.latents == "mixed":
            _write_centredness(axes[-1], model, data, shown, place)
        handles, labels = axes[0].get_legend_handles_labels()
        order = [labels.index(text) for text in ("alone", "partial pooling", r"$\mu$, 68 and 95 %")]
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handletextpad=0.4, columnspacing=1.2)
    return figure


def _write_centredness(axis, model, data, shown, place) -> None:
    table = model.centring(data)[MIXED].to_numpy().reshape(len(data.components), len(data))
    right = axis.twinx()
    right.set_ylim(axis.get_ylim())
    right.set_yticks(place, [", ".join(f"{c:.2f}" for c in table[:, k]) for k in shown])
    right.tick_params(axis="y", which="both", length=0)
    right.yaxis.set_minor_locator(NullLocator())
    right.set_ylabel(MIXED)


def funnel(fits: Fit | Mapping[str, Fit], group: str | int = 0, component: int = 0) -> Figure:
    """Draw the true value of a group against log tau, in one parametrisation or several side by side.

    Parameters
    ----------
    fits : Fit, or mapping of str to Fit
        Of `hbm_jax.models.Normal` or `NormalVectors` on the same data, by the titles of their panels.
    group : str or int
        Name or place of the group.
    component : int
        Of vectors.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each fit: up to 2000 draws of (theta, ln tau), and in vermilion every divergent transition. At the
        right the distribution of ln tau (filled), over the outline of that of a fit in the marginal form where one is
        among them: where a form cannot enter the neck, the lower end is missing.

    Raises
    ------
    ValueError
        If a fit is not such a one, or has tau fixed; for an unknown group or component.

    Examples
    --------
    >>> funnel({"centred": fit, "marginal": other}, "A").savefig("funnel.pdf")  # doctest: +SKIP
    """
    fits = {"": fits} if isinstance(fits, Fit) else dict(fits)
    drawn = {title: _pair(fit, group, component) for title, fit in fits.items()}
    exact = next(
        (drawn[title][3] for title, fit in fits.items() if cast(Any, model_of(fit)).latents == "marginal"), None
    )
    every = np.concatenate([whole for *_, whole, _ in drawn.values()])
    low, high = np.quantile(every, (0.0005, 0.9995))
    bins = np.linspace(low - 0.3, high + 0.3, BINS)
    theta = np.concatenate([each for each, *_ in drawn.values()])
    reach = np.quantile(theta, (0.001, 0.999))
    name = _of(next(iter(fits.values())), "funnel")[1].name[drawn[next(iter(drawn))][4]]
    with house_style():
        figure = Figure(figsize=(0.6 + 2.9 * len(fits), 3.2), layout="constrained")
        grid = figure.subplots(1, 2 * len(fits), sharey=True, width_ratios=[3.0, 0.8] * len(fits), squeeze=False)[0]
        for (title, (value, log_tau, diverging, whole, _)), axis, side in zip(
            drawn.items(), grid[::2], grid[1::2], strict=True
        ):
            axis.plot(
                value[~diverging], log_tau[~diverging], ".", color=BLUE, ms=2.2, mew=0.0, alpha=0.45, rasterized=True
            )
            axis.plot(value[diverging], log_tau[diverging], ".", color=VERMILION, ms=5.0, mew=0.0, rasterized=True)
            count = f"{int(diverging.sum())} divergent" if diverging.any() else "no divergence"
            axis.set_title(f"{title}: {count}" if title else count)
            axis.set(xlim=reach, xlabel=rf"$\theta$ of {name}".replace("_", r"\_"))
            heights, _ = np.histogram(whole, bins, density=True)
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


def _pair(fit: Fit, group: str | int, component: int):
    """Draws of theta and ln tau, thinned but for divergences, which of them diverged, all of ln tau, and the group."""
    model, data = _of(fit, "funnel")
    if isinstance(group, str) and group not in data.name:
        raise ValueError(f"funnel: expected a group, one of {', '.join(data.name[:20])}; found {group!r}.")
    row = data.name.index(group) if isinstance(group, str) else range(len(data))[group]
    if not 0 <= component < len(data.components):
        raise ValueError(f"funnel: expected a component from 0 to {len(data.components) - 1}; found {component}.")
    if "tau" not in fit.posterior:
        raise ValueError("funnel: expected a fit in which tau varies; found it held fixed.")
    tau = np.log(_vector(fit, model, data, "tau")[:, component])
    diverging = fit.tree["sample_stats"]["diverging"].transpose("chain", "draw").to_numpy().ravel()
    keep = np.zeros(len(tau), bool)
    keep[spread(len(tau), NUM_DRAWS)] = True
    if "theta" in fit.posterior:
        keep |= diverging
        theta = _flat(fit, "theta").reshape(len(tau), len(data), -1)[keep]
    else:
        theta = _theta(fit, data)
    return theta[:, row, component], tau[keep], diverging[keep], tau, row


def _of(fit: Fit, what: str) -> tuple[Normal | NormalVectors, ValuesInGroups]:
    kind: Any = NormalVectors if isinstance(model_of(fit), NormalVectors) else Normal
    return program_of(fit, kind, ValuesInGroups, what), cast(ValuesInGroups, fit.data)


def _flat(fit: Fit, name: str) -> np.ndarray:
    values = fit.posterior[name].transpose("chain", "draw", ...).to_numpy()
    return values.reshape(-1, *values.shape[2:])


def _vector(fit: Fit, model, data: ValuesInGroups, name: str) -> np.ndarray:
    """Draws of a parameter with one element a component, (draw, D); a single one where it was held fixed."""
    if name in fit.posterior:
        values = _flat(fit, name)
        return values.reshape(len(values), -1)
    return np.full((1, len(data.components)), float(parameter(fit, name)[0]))


def _theta(fit: Fit, data: ValuesInGroups) -> np.ndarray:
    """Draws of the true values, (draw, K, D)."""
    if "theta" in fit.posterior:
        drawn = _flat(fit, "theta")
        drawn = drawn[spread(len(drawn), NUM_DRAWS)]
    else:
        drawn = latents(fit, num_draws=NUM_DRAWS)["theta"].to_numpy()
    return drawn.reshape(len(drawn), len(data), -1)


def _alone(fit: Fit, model, data: ValuesInGroups) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group's own values, weighted by their errors, and its standard error, (K, D) each."""
    used = np.asarray(data.used)[..., None]
    variance = np.diagonal(np.asarray(data.errors), axis1=-2, axis2=-1)
    if model.sigma == "inferred":
        variance = variance + np.median(_vector(fit, model, data, "sigma"), axis=0) ** 2
    weights = np.where(used, 1.0 / np.where(used, variance, 1.0), 0.0)
    total = weights.sum(axis=1)
    return (weights * np.asarray(data.values)).sum(axis=1) / total, 1.0 / np.sqrt(total)


FIGURES = {
    "forest": (
        "True value of each group: by its own values alone (open circles, one standard error) and with partial pooling "
        "(dots; the central 68 and 95 %), about the mean of the population (bands).",
        forest,
    ),
    "funnel": (
        "True value of the first group against the logarithm of the population's spread tau; divergent transitions "
        "vermilion, at the right the distribution of ln tau.",
        funnel,
    ),
}


def figures(fit: Fit):
    """Figures of a fit of the normal hierarchical model; no funnel where tau is held fixed."""
    return FIGURES if "tau" in fit.posterior else {"forest": FIGURES["forest"]}
