"""The figures that a report of supernovae has beside those of every posterior."""

from hbm_jax.plotting.supernovae.hubble import hubble_diagram
from hbm_jax.plotting.supernovae.populations import populations
from hbm_jax.plotting.supernovae.residuals import hubble_residuals

FIGURES = {
    "hubble_diagram": (
        "Hubble diagram. Above, the distance modulus of every supernova with the relation's parameters at their "
        "posterior medians, and the posterior of the model (median, 68 and 95 % bands). Below, the same less the "
        "posterior median, with weighted means in bins of redshift. Errors include the intrinsic scatter.",
        hubble_diagram,
    ),
    "populations": (
        "Stretch and colour. Above, the observed values, the inferred population of true values, and that "
        "population broadened by the measurement errors. Below, the posterior of each supernova's true value "
        "against the observed one.",
        populations,
    ),
    "hubble_residuals": (
        "Hubble residuals against redshift, stretch, colour, host mass and survey, with weighted means in bins. A "
        "trend is something that the model leaves out; against stretch and colour, errors in common make one too.",
        hubble_residuals,
    ),
}
