"""Figures of model criticism: Pareto k, comparison of models, sensitivity to the priors."""

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator

from hbm_jax.inference import Comparison, Loo, Sensitivity
from hbm_jax.inference.criticism.comparison import SMALL_DIFFERENCE
from hbm_jax.inference.criticism.sensitivity import THRESHOLD
from hbm_jax.plotting.labels import label, object_name
from hbm_jax.plotting.style import BLACK, BLUE, GREY, ORANGE, VERMILION, Figure, house_style

MAX_TICKS = 12  # largest number of units that are named at the axis
NAMED = 5  # largest number of units with a bad Pareto k that are named
SHADE = "#e4e4e4"


def pareto_k(result: Loo) -> Figure:
    """Draw the Pareto k of every unit that was left out, in the order of the data.

    Parameters
    ----------
    result : Loo
        From `hbm_jax.inference.loo`.

    Returns
    -------
    matplotlib.figure.Figure
        Above the dashed line importance sampling is unreliable; the units with the largest k there are named. Open
        circles are units that were refitted.
    """
    table = result.table.reset_index(drop=True)
    names = result.table.index
    refitted = table["refitted"].to_numpy()
    bad = ~(table["pareto_k"] <= result.good_k).to_numpy() & ~refitted
    k = table["pareto_k"].to_numpy()
    with house_style():
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        size = 3.5 if len(k) < 200 else 2.0
        position = np.arange(1, len(k) + 1)
        styles = (
            ("good", ~bad & ~refitted, {"color": BLUE}),
            ("bad", bad, {"color": VERMILION, "markersize": size + 1.0}),
            ("refitted", refitted, {"color": BLUE, "markerfacecolor": "white"}),
        )
        for text, selected, style in styles:
            if selected.any():
                markers = {"markersize": size, "markeredgewidth": 0.6} | style
                axes.plot(position[selected], k[selected], "o", label=f"{text} ({selected.sum()})", **markers)
        axes.axhline(result.good_k, color=BLACK, lw=0.9, ls="--")
        axes.annotate(
            f"{result.good_k:.2f}",
            (1.0, result.good_k),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.0,
        )
        low, high = min(0.0, np.nanmin(k)), max(result.good_k, np.nanmax(k))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
        axes.set_xlim(0.5 - 0.01 * len(k), len(k) + 0.5 + 0.01 * len(k))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(k) <= MAX_TICKS:
            axes.set_xticks(position, [object_name(name) for name in names])
            axes.set_xlabel(result.unit)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _annotate_largest(axes, position, k, names, bad if bad.any() else k == np.nanmax(k))
            axes.set_xlabel(f"{result.unit} (in the order of the data)")
        axes.set_ylabel("Pareto $k$")
        axes.legend(loc="upper left", ncols=3)
    return figure


def _annotate_largest(axes, position, k, names, selected) -> None:
    """Write names beside the largest values, shifted downwards where they would overlap."""
    indices = np.flatnonzero(selected)
    indices = indices[np.argsort(-k[indices])][:NAMED]
    low, high = axes.get_ylim()
    step = 0.055 * (high - low)
    placed: list[tuple[int, float]] = []
    for index in indices:
        height = k[index]
        while any(abs(height - y) < step and abs(position[index] - x) < 0.25 * len(k) for x, y in placed):
            height -= step
        placed.append((position[index], height))
        on_left = position[index] > 0.7 * len(k)
        axes.annotate(
            object_name(names[index]),
            (position[index], k[index]),
            xytext=(-8 if on_left else 8, (height - k[index]) / (high - low) * 180),
            textcoords="offset points",
            ha="right" if on_left else "left",
            va="center",
            fontsize=8.0,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": GREY, "shrinkA": 0.5, "shrinkB": 1.5},
        )


def comparison(result: Comparison) -> Figure:
    """Draw the difference of the expected log predictive density (elpd) from that of the best model, for each model.

    Parameters
    ----------
    result : Comparison
        From `hbm_jax.inference.compare`.

    Returns
    -------
    matplotlib.figure.Figure
        One row per model, the best at the top. Thick lines are one standard error of the difference, thin lines two.
        Differences within the grey band are small whatever their error. Open circles mark models with a bad Pareto k.
        The text gives the log evidence, relative to the largest, where it was computed.
    """
    table = result.table
    rows = np.arange(len(table))[::-1]
    evidence = table["log_evidence"] - table["log_evidence"].max()
    with house_style():
        figure = Figure(figsize=(7.2, 1.1 + 0.42 * len(table)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(-SMALL_DIFFERENCE, 0.0, color=SHADE, lw=0)
        axes.axvline(0.0, color=BLACK, lw=0.9)
        for row, (name, model) in zip(rows, table.iterrows(), strict=True):
            difference, error = model["elpd_diff"], model["dse"]
            if row != rows[0]:
                axes.plot(difference + 2 * error * np.array([-1, 1]), [row, row], color=BLUE, lw=0.9)
                axes.plot(difference + error * np.array([-1, 1]), [row, row], color=BLUE, lw=2.6, solid_capstyle="butt")
            facecolour = "white" if model["num_bad_k"] else BLUE
            axes.plot(difference, row, "o", color=BLUE, markerfacecolor=facecolour, markersize=5.5, zorder=3)
            bad = f"; {int(model['num_bad_k'])} bad $k$" if model["num_bad_k"] else ""
            text = "best" if row == rows[0] else f"${difference:.1f} \\pm {error:.1f}$"
            has_evidence = len(result.evidences) > 1 and name in result.evidences
            evidence_text = rf"; $\Delta \ln Z = {evidence[name]:.2f}$" if has_evidence else ""
            axes.annotate(
                f"{text}, weight {model['weight']:.2f}{bad}{evidence_text}",
                (1.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.0,
            )
        axes.set_yticks(rows, [object_name(name) for name in table.index])
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.6, len(table) - 0.4)
        axes.set_xlabel(r"elpd $-$ elpd of the best model")
    return figure


def sensitivity(result: Sensitivity) -> Figure:
    """Draw the sensitivity of every parameter to the priors and to the likelihood.

    Parameters
    ----------
    result : Sensitivity
        From `hbm_jax.inference.prior_sensitivity`.

    Returns
    -------
    matplotlib.figure.Figure
        One row per parameter. Symbols to the right of the dashed line show sensitivity. Parameters that are sensitive
        to the priors are annotated with the diagnosis and the most influential prior.
    """
    table = result.table
    rows = np.arange(len(table))[::-1]
    floor = 1e-3  # smaller values are noise and are drawn at the floor
    prior, likelihood = (np.maximum(table[column].to_numpy(), floor) for column in ("prior", "likelihood"))
    with house_style():
        figure = Figure(figsize=(7.2, 1.3 + 0.27 * len(table)), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(floor / 2, THRESHOLD, color=SHADE, lw=0)
        axes.axvline(THRESHOLD, color=BLACK, lw=0.9, ls="--")
        axes.hlines(rows, np.minimum(prior, likelihood), np.maximum(prior, likelihood), color=GREY, lw=0.5)
        axes.plot(likelihood, rows, "s", color=BLUE, markersize=6.5, markerfacecolor="white", label="to the likelihood")
        axes.plot(prior, rows, "o", color=ORANGE, markersize=4.5, label="to the priors")
        for row, (_, parameter) in zip(rows, table.iterrows(), strict=True):
            if parameter["prior"] >= THRESHOLD:
                axes.annotate(
                    f"{parameter['diagnosis']}\n(prior of {label(parameter['strongest_prior'])})",
                    (1.0, row),
                    xycoords=("axes fraction", "data"),
                    xytext=(6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.0,
                    linespacing=0.95,
                )
        axes.set_xscale("log")
        axes.set_xlim(floor * 0.8, 2.0 * max(prior.max(), likelihood.max(), 2 * THRESHOLD))
        axes.set_yticks(rows, [label(str(name)) for name in table.index])
        axes.tick_params(axis="y", which="both", length=0)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.7, len(table) - 0.3)
        axes.set_xlabel(f"sensitivity to power scaling (smaller values drawn at {floor:g})")
        figure.legend(loc="outside upper left", ncols=2)
    return figure
