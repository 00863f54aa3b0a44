"""Figure of the selection of supernovae: the sample, and a simulated one with what is missing."""

import dataclasses
from typing import Any

import jax
import numpy as np
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Supernovae
from hbm_jax.data.columns import index_of_groups
from hbm_jax.inference import Fit
from hbm_jax.models import Efficiency, Injections, Supernova
from hbm_jax.models.supernovae.laws import ColourCut, DetectedBy, MeasuredLimit, NoSelection
from hbm_jax.plotting.draws import found_objects, model_and_data, parameter
from hbm_jax.plotting.style import (
    BLACK,
    MAX_DOTS,
    MIN_SIMULATED,
    Figure,
    draw_distribution,
    draw_efficiency,
    draw_simulated,
    house_style,
)

SEED = 0
TEXT = {"m_b": r"apparent magnitude $m_B$", "c": r"colour $c$", "x1": r"stretch $x_1$"}


def selected_supernovae(fit: Fit) -> Figure:
    """Plot a sample of supernovae with a simulated one, of which the selection detects a part.

    Parameters
    ----------
    fit : Fit
        Fit of `hbm_jax.models.Supernova` with a selection and redshifts that are given, with its program and data.

    Returns
    -------
    matplotlib.figure.Figure
        Left: observed magnitude less the distance modulus (flat, H0 = 70 km/s/Mpc, Om0 = 0.3) against redshift, at the
        redshifts of the sample: measured in black; simulated at the posterior means of the parameters, detected ones in
        blue and missing ones in grey. Right: distribution of the
        magnitudes, or of the quantity that the selection is in, measured, of simulated detected ones, and of all,
        scaled to the number of detected ones; dashed: the efficiency, if it is tabulated. For injections, detected are
        found ones, drawn in proportion to their weights, beside all of the population instead of missing ones.

    Raises
    ------
    ValueError
        If the fit is of another model, or its selection cannot be drawn.
    """
    model, data = model_and_data(fit, Supernova, Supernovae, "selected_supernovae")
    if not drawable(model):
        raise ValueError(
            "selected_supernovae: expected a fit with a selection, and separate observations; "
            f"found selection={str(model.selection)!r}, observations={model.observations!r}."
        )
    law = model.laws.selection
    drawn, detected = _simulated(fit, model, data)
    others = "all" if _by_injections(law) else "missing"
    quantity = _quantity(law)
    with house_style():
        figure = Figure(figsize=(7.3, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.5, 1.0])
        shown = np.random.default_rng(SEED).permutation(len(drawn))[:MAX_DOTS]
        absolute, simulated = (_absolute(model, sample) for sample in (data, drawn))
        draw_simulated(left, np.asarray(drawn.z_cmb)[shown], simulated[shown], detected[shown], others)
        left.plot(data.z_cmb, absolute, "o", color=BLACK, ms=2.2, mew=0.0, label="measured")
        left.set(xlabel="redshift", ylabel=r"magnitude less distance modulus, $m_B - \mu(z)$")
        left.invert_yaxis()
        left.legend(loc="lower right", markerscale=2.0)
        draw_distribution(right, np.asarray(getattr(data, quantity)), getattr(drawn, quantity), detected, None, others)
        right.set(xlabel=TEXT[quantity], ylabel="supernovae")
        right.set_ylim(top=1.25 * right.get_ylim()[1])  # room for the legend
        if isinstance(law, DetectedBy) and isinstance(law.choice, Efficiency):
            draw_efficiency(right, law.choice.at, law.choice.probability)
        right.legend(loc="upper right")
    return figure


def drawable(model: Any) -> bool:
    """Return True if `selected_supernovae` can draw a fit of this model."""
    law = model.laws.selection
    if isinstance(law, NoSelection) or model.observations == "joint":
        return False
    return hasattr(law, "detection")


def _by_injections(law: Any) -> bool:
    """Return True for a selection by injections."""
    return isinstance(law, DetectedBy) and isinstance(law.choice, Injections)


def _quantity(law: Any) -> str:
    """Return the observed value whose distribution shows the selection best."""
    if isinstance(law, MeasuredLimit):
        return law.limit.quantity
    if isinstance(law, DetectedBy) and isinstance(law.choice, Efficiency):
        return law.choice.quantity
    return "c" if isinstance(law, ColourCut) else "m_b"


def _absolute(model: Supernova, data: Supernovae) -> np.ndarray:
    """Return observed magnitudes less the distance moduli of a flat cosmology, (N,)."""
    with jax.enable_x64(True):
        return np.asarray(data.m_b) - np.asarray(model.distmod(data, Cosmology.flat(H0=70.0, Om0=0.3)))


def _simulated(fit: Fit, model: Supernova, data: Supernovae) -> tuple[Supernovae, np.ndarray]:
    """Return simulated supernovae, and which are detected. For injections the others are all of the population."""
    own = model.laws.selection.priors
    priors = {name: prior for name, prior in model.priors.items() if name not in own}
    unselected = dataclasses.replace(model, selection="none", priors=priors)
    means = {name: parameter(fit, name).mean(axis=0) for name in model.all_priors}
    repeats = -(-MIN_SIMULATED // len(data))
    design = data.subset(np.tile(np.arange(len(data)), repeats))
    parameters = {name: float(np.mean(means[name])) for name in unselected.all_priors}
    drawn, _ = unselected.simulate(jax.random.key(SEED), design, parameters)
    rng = np.random.default_rng(SEED)
    if _by_injections(model.laws.selection):
        fixed = dataclasses.replace(model, priors={**model.priors, **parameters})
        design, found, fraction = found_objects(fixed, data, repeats, SEED)
        x1, c, m_b = found.T
        kept = rng.random(len(drawn)) < fraction
        rows = np.append(np.arange(len(drawn)), np.flatnonzero(kept))
        every = {"m_b": (drawn.m_b, m_b), "x1": (drawn.x1, x1), "c": (drawn.c, c)}
        observed = {name: np.append(each, values[kept]) for name, (each, values) in every.items()}
        return design.subset(rows).replace_observations(**observed), np.arange(len(rows)) >= len(drawn)
    values = np.stack([drawn.x1, drawn.c, drawn.m_b], axis=-1)
    survey = index_of_groups(design.survey, list(data.survey_counts))
    with jax.enable_x64(True):
        p: dict[str, Any] = {}
        for name in own:
            is_array = name in model.by_survey and isinstance(model.all_priors[name], dist.Distribution)
            p[name] = np.asarray(means[name])[survey] if is_array else float(means[name])
        detection = model.laws.selection.detection(p | _columns(model, design))
        return drawn, rng.random(len(drawn)) < np.asarray(detection.probability(values))


def _columns(model: Supernova, design: Supernovae) -> dict[str, Any]:
    """Return the columns of the design that the limits of bands need."""
    law = model.laws.selection
    return law.columns_of(design) if not isinstance(law, DetectedBy | MeasuredLimit) else {}
