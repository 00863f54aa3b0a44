"""Figure of the selection of afterglows: sources of the sample, and a simulated population with what is missing."""

from typing import Any

import jax
import numpy as np
from numpyro import handlers
from scipy.special import gammainc, ndtr

from hbm_jax.data import Afterglows
from hbm_jax.distributions.skew_normal import SkewNormal
from hbm_jax.inference import Fit
from hbm_jax.models import Afterglow, DetectionFunction, Efficiency, Injections
from hbm_jax.models.xray.detection import SourceDetection
from hbm_jax.plotting.draws import model_and_data, parameter
from hbm_jax.plotting.labels import label
from hbm_jax.plotting.style import (
    BLACK,
    MAX_DOTS,
    Figure,
    draw_distribution,
    draw_efficiency,
    draw_simulated,
    house_style,
)

SEED = 0
NUM = 6000  # simulated sources
OTHER = ("log10_nh", "photon_index")  # parameter beside the flux


def selected_afterglows(fit: Fit) -> Figure:
    """Plot the sources of a sample with a simulated population, of which the selection detects a part.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Afterglow` with a selection, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: host column, or photon index, against flux: posterior medians of the sources in black; sources simulated
        at the posterior means of the population, detected ones in blue and missing ones in grey; dashed: the limit of
        the flux. Right: distribution of the fluxes of the sources, of simulated detected ones, and of all, scaled to
        the number of detected ones; dashed: the limit, or the efficiency. For injections, detected are found ones,
        drawn in proportion to their weights, beside all of the population instead of missing ones.

    Raises
    ------
    ValueError
        If the fit is of another model or without selection.
    """
    model, _ = model_and_data(fit, Afterglow, Afterglows, "selected_afterglows")
    if not drawable(model):
        raise ValueError(f"selected_afterglows: expected a fit with a selection; found {model.description}.")
    (part,) = model.selections
    drawn, others = _population(fit, model), "missing"
    if isinstance(part, Injections):
        drawn, detected, others = *_with_found(fit, model, drawn), "all"
    else:
        detected = np.random.default_rng(SEED).random(NUM) < _probability(fit, model, drawn)
    name = next(name for name in OTHER if name in drawn)
    medians = {site: np.median(parameter(fit, site), axis=0) for site in ("log10_flux", name)}
    has_limit = part.quantity == "log10_flux" and not isinstance(part, Efficiency)
    limit = float(np.median(_flux_limits(fit, part))) if has_limit else None
    with house_style():
        figure = Figure(figsize=(7.3, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1.0])
        shown = np.random.default_rng(SEED).permutation(len(detected))[:MAX_DOTS]
        draw_simulated(left, drawn["log10_flux"][shown], drawn[name][shown], detected[shown], others)
        left.plot(medians["log10_flux"], medians[name], "o", color=BLACK, ms=2.8, mew=0.0, label="sources, medians")
        if limit is not None:
            left.axvline(limit, color=BLACK, lw=0.8, ls="--")
        text = label("log10_flux", model.units.get("log10_flux", ""))
        left.set(xlabel=text, ylabel=label(name, model.units.get(name, "")))
        left.legend(loc="best", markerscale=2.0)
        draw_distribution(right, medians["log10_flux"], drawn["log10_flux"], detected, limit, others)
        right.set(xlabel=text, ylabel="sources")
        right.set_ylim(top=1.25 * right.get_ylim()[1])  # room for the legend
        if isinstance(part, Efficiency):
            draw_efficiency(right, part.at, part.probability)
        right.legend(loc="upper right")
    return figure


def drawable(model: Any) -> bool:
    """Return True if `selected_afterglows` can draw a fit of this model."""
    selections: Any = getattr(model, "selections", ())
    return bool(selections)


def _population(fit: Fit, model: Afterglow) -> dict[str, np.ndarray]:
    """Return simulated latents of all sources, detected or not, at the posterior means of the population."""
    rng, drawn = np.random.default_rng(SEED), {}
    for site in (varying.site for varying in model.medium.sites):
        mean, std = (float(parameter(fit, f"{site}_{part}").mean()) for part in ("mean", "std"))
        drawn[site] = rng.normal(mean, std, NUM)
        if site == "log10_nh" and model.host == "skew-normal":
            shape = float(parameter(fit, "log10_nh_shape").mean())
            with jax.enable_x64(True):
                drawn[site] = np.asarray(SkewNormal.standardised(mean, std, shape).sample(jax.random.key(SEED), (NUM,)))
    return drawn


def _with_found(fit: Fit, model: Afterglow, drawn: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return all simulated latents with those of found injections, and which these are."""
    p = {name: float(parameter(fit, name).mean()) for name in model.all_priors}
    with jax.enable_x64(True), handlers.seed(rng_seed=SEED):
        (part,) = model.selections
        columns = model._population_of_columns(p)
        detection: Any = SourceDetection(part, p).with_injections(model.selected_values, NUM, columns)
        # Whether there are enough injections depends on the number of sources.
        found = detection.found._replace(num_objects=len(fit.data))
        num = round(NUM * float(np.exp(found.log_normalisation)))
        values = np.stack([np.asarray(detection.drawn[site])[:num] for site in model.selected_values], axis=-1)
    joined = {
        site: np.append(drawn[site], column) for site, column in zip(model.selected_values, values.T, strict=True)
    }
    return joined, np.arange(NUM + num) >= NUM


def _flux_limits(fit: Fit, part: Any) -> np.ndarray:
    """Return log10 of the limits of the flux: those of all sources, or the posterior mean of a common one."""
    if part.of_objects:
        return np.asarray(fit.data.log10_flux_limit)
    return np.atleast_1d(parameter(fit, part.names[0]).mean())


def _probability(fit: Fit, model: Afterglow, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """Return the probability that each simulated source is detected, with the exposures of the sample in turn."""
    (part,) = model.selections
    if isinstance(part, Efficiency):
        return part.probability_at(drawn["log10_flux"])
    if isinstance(part, DetectionFunction):
        return np.broadcast_to(np.asarray(part.function(drawn["photon_index"], drawn["log10_flux"])), NUM)
    if part.quantity == "log10_flux":
        width = float(parameter(fit, part.names[1]).mean())
        return ndtr((drawn["log10_flux"] - np.resize(_flux_limits(fit, part), NUM)) / width)
    detection: Any = model.bound(fit.data).detection
    num = len(detection.least)
    probability = np.empty(NUM)
    with jax.enable_x64(True):
        log10_counts_at = jax.jit(detection.log10_counts_at)
        for start in range(0, NUM, num):
            chosen = np.arange(start, start + num) % NUM
            log10_counts = np.asarray(log10_counts_at(drawn["photon_index"][chosen], drawn["log10_nh"][chosen]))
            expected = 10.0 ** (log10_counts + drawn["log10_flux"][chosen])
            probability[chosen] = gammainc(detection.least, expected + detection.background)
    return probability
