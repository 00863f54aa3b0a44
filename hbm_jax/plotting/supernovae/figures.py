"""Figures of supernovae in a report, in addition to those of every posterior."""

from collections.abc import Callable
from typing import Any

from hbm_jax.inference import Fit
from hbm_jax.plotting.supernovae.hubble import hubble_diagram
from hbm_jax.plotting.supernovae.populations import populations
from hbm_jax.plotting.supernovae.residuals import hubble_residuals
from hbm_jax.plotting.supernovae.selection import drawable, selected_supernovae

FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Above, the distance modulus of every supernova with the parameters of the relation at their "
        "posterior medians, and the posterior of the model (median, 68 and 95 % bands). Below, the same minus the "
        "posterior median, with weighted means in bins of redshift. Errors include the intrinsic scatter.",
        hubble_diagram,
    ),
    "populations": (
        "Stretch and colour. Above, the observed values, the inferred population of true values, and that "
        "population broadened by the measurement errors. Below, the posterior of the true value of each "
        "supernova against the observed value.",
        populations,
    ),
    "hubble_residuals": (
        "Hubble residuals against redshift, stretch, colour, host mass and survey, with weighted means in bins. A "
        "trend indicates an effect missing in the model; against stretch and colour, errors common to both axes also "
        "cause a trend.",
        hubble_residuals,
    ),
}

SELECTED = (
    "Selection. Left, the observed magnitudes less a distance modulus, with a sample simulated at the posterior means, "
    "of which the selection detects a part. Right, the distribution of the observed values, of simulated detected ones "
    "and of all.",
    selected_supernovae,
)


def figures(fit: Fit) -> dict[str, tuple[str, Callable[[Fit], Any]]]:
    """Return captions and functions of the figures of a fit, by name."""
    selected: dict[str, tuple[str, Callable[[Fit], Any]]] = dict(FIGURES)
    return selected | ({"selected_supernovae": SELECTED} if drawable(fit.program) else {})
