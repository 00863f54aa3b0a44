"""Figures of supernova fits in a report, in addition to those of every posterior."""

from hbm_jax.plotting.supernovae.hubble import hubble_diagram
from hbm_jax.plotting.supernovae.populations import populations
from hbm_jax.plotting.supernovae.residuals import hubble_residuals

FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Top: distance modulus of every supernova, with the standardisation parameters at their "
        "posterior medians, and the posterior of the model (median, 68 and 95 % bands). Bottom: residuals from the "
        "posterior median, with weighted means in bins of redshift. Errors include the intrinsic scatter.",
        hubble_diagram,
    ),
    "populations": (
        "Stretch and colour. Top: observed values, the inferred population of true values, and that population "
        "convolved with the measurement errors. Bottom: posterior of the true value of each supernova against the "
        "observed value.",
        populations,
    ),
    "hubble_residuals": (
        "Hubble residuals against redshift, stretch, colour, host mass and survey, with weighted means in bins. A "
        "trend indicates an effect missing from the model; for stretch and colour, correlated errors also cause one.",
        hubble_residuals,
    ),
}
