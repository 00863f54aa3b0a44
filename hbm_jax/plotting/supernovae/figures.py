"""Figures of supernovae in a report, in addition to those of every posterior."""

from hbm_jax.plotting.supernovae.hubble import hubble_diagram
from hbm_jax.plotting.supernovae.populations import populations
from hbm_jax.plotting.supernovae.residuals import hubble_residuals

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
