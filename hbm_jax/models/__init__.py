"""Models: each a frozen dataclass of its choices whose call is an ordinary NumPyro program."""

from hbm_jax.models.afterglow import Afterglow
from hbm_jax.models.background import Expansion
from hbm_jax.models.correlated_supernova import CorrelatedSupernova
from hbm_jax.models.golenetskii import Golenetskii
from hbm_jax.models.golenetskii_counts import GolenetskiiCounts
from hbm_jax.models.hubble_diagram import HubbleDiagram
from hbm_jax.models.interval_fits import interval_fits
from hbm_jax.models.normal import Normal, NormalVectors
from hbm_jax.models.rates import Rates
from hbm_jax.models.regression import Regression
from hbm_jax.models.relation import Relation
from hbm_jax.models.spectral_fit import SpectralFit
from hbm_jax.models.supernova import Supernova

__all__ = [
    "Afterglow",
    "CorrelatedSupernova",
    "Expansion",
    "Golenetskii",
    "GolenetskiiCounts",
    "HubbleDiagram",
    "Normal",
    "NormalVectors",
    "Rates",
    "Regression",
    "Relation",
    "SpectralFit",
    "Supernova",
    "interval_fits",
]
