"""Population models: frozen dataclasses of options whose call is an ordinary NumPyro program."""

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: F401
if TYPE_CHECKING:
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

_MODULES = {
    "Afterglow": "xray.afterglow",
    "CorrelatedSupernova": "supernovae.correlated",
    "DetectionFunction": "efficiency",
    "Efficiency": "efficiency",
    "Expansion": "expansion",
    "Golenetskii": "bursts.golenetskii",
    "GolenetskiiCounts": "bursts.golenetskii_counts",
    "HubbleDiagram": "supernovae.hubble_diagram",
    "Injections": "efficiency",
    "Normal": "linear.normal",
    "NormalVectors": "linear.normal",
    "Rates": "regression.rates",
    "Regression": "regression.regression",
    "Relation": "linear.relation",
    "Selection": "selection",
    "SpectralFit": "xray.spectral_fit",
    "SpectralPopulation": "xray.spectral_population",
    "Supernova": "supernovae.supernova",
    "interval_fits": "bursts.interval_fits",
}

__all__ = [*_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"hbm_jax.models.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'hbm_jax.models' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
