"""Population models: frozen dataclasses of options whose call is an ordinary NumPyro program."""

from hbm_jax.models.bursts.golenetskii import Golenetskii
from hbm_jax.models.bursts.golenetskii_counts import GolenetskiiCounts
from hbm_jax.models.bursts.interval_fits import interval_fits
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections
from hbm_jax.models.expansion import Expansion
from hbm_jax.models.linear.normal import Normal, NormalVectors
from hbm_jax.models.linear.relation import Relation
from hbm_jax.models.regression.rates import Rates
from hbm_jax.models.regression.regression import Regression
from hbm_jax.models.selection import Selection
from hbm_jax.models.supernovae.correlated import CorrelatedSupernova
from hbm_jax.models.supernovae.hubble_diagram import HubbleDiagram
from hbm_jax.models.supernovae.supernova import Supernova
from hbm_jax.models.xray.afterglow import Afterglow
from hbm_jax.models.xray.spectral_fit import SpectralFit
from hbm_jax.models.xray.spectral_population import SpectralPopulation

__all__ = [
    "Afterglow",
    "CorrelatedSupernova",
    "DetectionFunction",
    "Efficiency",
    "Expansion",
    "Golenetskii",
    "GolenetskiiCounts",
    "HubbleDiagram",
    "Injections",
    "Normal",
    "NormalVectors",
    "Rates",
    "Regression",
    "Relation",
    "Selection",
    "SpectralFit",
    "SpectralPopulation",
    "Supernova",
    "interval_fits",
]
