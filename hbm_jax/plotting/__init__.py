"""Publication figures of fits. Each function returns a matplotlib Figure and does not change matplotlib's settings.

Requires the optional packages of ``hbm_jax[plots]``.

>>> forest(fit).savefig("forest.pdf")  # doctest: +SKIP
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"hbm_jax.plotting: expected the package {error.name}, which is not installed. "
        "Install hbm_jax[plots]: pip install 'hbm_jax[plots]'.",
        name=error.name,
    ) from error

from hbm_jax.plotting.batch import population, replicates
from hbm_jax.plotting.bursts.figures import golenetskii_planes, redshift_predictions
from hbm_jax.plotting.bursts.selection import selected_bursts
from hbm_jax.plotting.calibration import calibration
from hbm_jax.plotting.corner_plot import corner
from hbm_jax.plotting.criticism import comparison, pareto_k, sensitivity
from hbm_jax.plotting.labels import LABELS, label
from hbm_jax.plotting.linear.normal import forest, funnel
from hbm_jax.plotting.linear.relation import lines, shrinkage_of_lines
from hbm_jax.plotting.linear.selection import selected_points
from hbm_jax.plotting.model_residuals import model_residuals
from hbm_jax.plotting.posterior import trace
from hbm_jax.plotting.regression.figures import coefficients, group_effects, predictive_check, shrinkage
from hbm_jax.plotting.supernovae.dark_energy import equation_of_state, expansion_contour
from hbm_jax.plotting.supernovae.distance_moduli import distance_diagram, distance_residuals
from hbm_jax.plotting.supernovae.hubble import hubble_diagram
from hbm_jax.plotting.supernovae.populations import populations
from hbm_jax.plotting.supernovae.residuals import hubble_residuals, influence
from hbm_jax.plotting.supernovae.selection import selected_supernovae
from hbm_jax.plotting.xray.absorption import ionization, neutral_cross_sections, transmissions, whim_transmission
from hbm_jax.plotting.xray.any_fit import spectra, unfolded_spectrum
from hbm_jax.plotting.xray.populations import (
    afterglow_populations,
    host_columns,
    spectral_populations,
    whim_contour,
)
from hbm_jax.plotting.xray.selection import selected_afterglows

__all__ = [
    "LABELS",
    "afterglow_populations",
    "calibration",
    "coefficients",
    "comparison",
    "corner",
    "distance_diagram",
    "distance_residuals",
    "equation_of_state",
    "expansion_contour",
    "forest",
    "funnel",
    "golenetskii_planes",
    "group_effects",
    "host_columns",
    "hubble_diagram",
    "hubble_residuals",
    "influence",
    "ionization",
    "label",
    "lines",
    "model_residuals",
    "neutral_cross_sections",
    "pareto_k",
    "population",
    "populations",
    "predictive_check",
    "redshift_predictions",
    "replicates",
    "selected_afterglows",
    "selected_bursts",
    "selected_points",
    "selected_supernovae",
    "sensitivity",
    "shrinkage",
    "shrinkage_of_lines",
    "spectra",
    "spectral_populations",
    "trace",
    "transmissions",
    "unfolded_spectrum",
    "whim_contour",
    "whim_transmission",
]
