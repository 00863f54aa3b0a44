"""Residuals in which the data look least like draws from the fitted model."""

import re

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from hbm_jax.inference.model_check.result import ModelCheck, UnusualResiduals, numbers_by_size
from hbm_jax.plotting.labels import LABELS, label
from hbm_jax.plotting.style import BAND_68, BAND_95, BLUE, GREY, VERMILION, Figure, house_style

MAX_LABELS = 12  # largest number of groups that are named at the axis
AXES = {  # covariates with a unit, or with more than a symbol
    "z_cmb": r"redshift $z_\mathrm{CMB}$",
    "z_hel": r"redshift $z_\mathrm{hel}$",
    "z": "redshift $z$",
    "log10_mass": label("log10_mass", r"$M_\odot$"),
    "mw_ebv": label("mw_ebv", "mag"),
    "x1": label("x1"),
    "c": label("c", "mag"),
    "m_b": label("m_b", "mag"),
}


def model_residuals(check: ModelCheck) -> Figure:
    """Draw the residuals of the most unusual statistic of a check of the model.

    Parameters
    ----------
    check : ModelCheck
        From `hbm_jax.check_model`.

    Returns
    -------
    matplotlib.figure.Figure
        Left, the residuals against the covariate on which they depend most, with their means in bins, and 68 and 95 %
        bands of the means of replicated data; means outside the 95 % band are vermilion. Right, the numbers of
        residuals by size, with the same bands. All replicates are from one draw of the posterior.

    Raises
    ------
    ValueError
        If the model could not be checked.
    """
    worst = check.worst
    if worst is None:
        raise ValueError(f"model_residuals: expected a check with residuals; found that {check.sentence}.")
    with house_style():
        figure = Figure(figsize=(7.2, 3.3), layout="constrained")
        if len(worst.positions):
            left, right = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
            _against_covariate(left, worst)
        else:
            right = figure.subplots()
        _by_size(right, worst)
        replicates = [Patch(color=BAND_68, label="68 % of replicates"), Patch(color=BAND_95, label="95 %")]
        shown = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
        figure.legend(handles=[*shown, *replicates], loc="outside lower center", ncols=6, columnspacing=1.2)
        figure.suptitle(f"residuals of {_with_symbols(worst.label)}", fontsize=10.0)
    return figure


def _against_covariate(axes, worst: UnusualResiduals) -> None:
    """Draw residuals against a covariate, with means in bins and the bands of the replicates."""
    codes = worst.bins
    occupied = [int(k) for k in np.unique(codes[codes >= 0])]
    means = np.array([worst.residuals[codes == k].mean() for k in occupied])
    if worst.labels:
        centres, edges = np.array(occupied, float), [(k - 0.4, k + 0.4) for k in occupied]
        if len(occupied) <= MAX_LABELS:
            axes.set_xticks(centres, [_plain(worst.labels[k]) for k in occupied], rotation=30, ha="right")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        members = [worst.positions[codes == k] for k in occupied]
        centres = np.array([np.median(values) for values in members])
        edges = [(values.min(), values.max()) for values in members]
    used = codes >= 0
    axes.plot(worst.positions[used], worst.residuals[used], ".", color=GREY, ms=2.0, alpha=0.5, zorder=1)
    for edge, (low_95, low_68, high_68, high_95) in zip(edges, worst.mean_bands.T, strict=True):
        axes.fill_between(edge, low_95, high_95, color=BAND_95, lw=0, zorder=2, alpha=0.9)
        axes.fill_between(edge, low_68, high_68, color=BAND_68, lw=0, zorder=3, alpha=0.9)
    outside = (means < worst.mean_bands[0]) | (means > worst.mean_bands[-1])
    text = "mean of a group" if worst.labels else "mean in a bin"
    for mask, colour, entry in ((~outside, BLUE, text), (outside, VERMILION, f"{text}, outside 95 %")):
        if mask.any():
            axes.plot(centres[mask], means[mask], "o", color=colour, ms=5.0, zorder=4, label=entry)
    axes.set_xlabel(AXES.get(worst.covariate, _with_symbols(worst.covariate)))
    axes.set_ylabel("residual [standard deviations]")


def _by_size(axes, worst: UnusualResiduals) -> None:
    """Draw the numbers of residuals by size, with the bands of the replicates."""
    edges = worst.edges
    low, inner_low, inner_high, high = worst.number_bands
    axes.stairs(high, edges, baseline=low, fill=True, color=BAND_95)
    axes.stairs(inner_high, edges, baseline=inner_low, fill=True, color=BAND_68)
    axes.stairs(numbers_by_size(worst.residuals, edges), edges, color=BLUE, lw=1.4, label="number of residuals")
    axes.set_yscale("symlog", linthresh=5.0)
    axes.set_ylim(0.0, None)
    axes.set_xlabel("residual [standard deviations]")
    axes.set_ylabel("number")


def _with_symbols(text: str) -> str:
    """Return text with the symbols of the quantities that it names."""
    parts = re.split(r"(\w+)", text)
    return "".join(label(part) if part in LABELS else _plain(part) for part in parts)


def _plain(text: str) -> str:
    """Return text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")
