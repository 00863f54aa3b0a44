"""Data containers, validated on construction, and the readers of tables that build them."""

import importlib
from typing import TYPE_CHECKING

from hbm_jax.validation import DataError, DataWarning

# ruff: noqa: F401
if TYPE_CHECKING:
    from hbm_jax.data.bursts.bursts import Bursts
    from hbm_jax.data.bursts.simulation import BurstPopulation
    from hbm_jax.data.bursts.spectra import BurstObservation, BurstSpectra
    from hbm_jax.data.bursts.spectra_files import read_burst, read_burst_spectra
    from hbm_jax.data.bursts.spectra_simulation import BurstSpectraPopulation, write_burst_spectra
    from hbm_jax.data.bursts.tables import KONUS_COSMOLOGY, load_konus, read_bursts
    from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
    from hbm_jax.data.linear.values_in_groups import ValuesInGroups, load_eight_schools, read_values
    from hbm_jax.data.regression.examples import EXAMPLES, load_example
    from hbm_jax.data.regression.regression_data import RegressionData, read_regression
    from hbm_jax.data.supernovae.constraints import (
        GaussianConstraints,
        desi2024_bao,
        desi_dr2_bao,
        load_constraints,
        planck2018_distance_priors,
        read_constraints,
    )
    from hbm_jax.data.supernovae.correlated import CorrelatedSupernovae, blocks_from_joint
    from hbm_jax.data.supernovae.correlated_tables import read_correlated_supernovae
    from hbm_jax.data.supernovae.distance_moduli import DistanceModuli
    from hbm_jax.data.supernovae.distance_tables import DISTANCE_FORMATS, read_distance_moduli
    from hbm_jax.data.supernovae.downloads import DownloadError, fetch_distance_moduli, load_distance_moduli
    from hbm_jax.data.supernovae.magnitude_errors import MagnitudeErrorParts, lensing_variance, velocity_variance
    from hbm_jax.data.supernovae.supernovae import Supernovae
    from hbm_jax.data.supernovae.surveys.limits import with_survey_limits
    from hbm_jax.data.supernovae.surveys.sensitivities import with_sensitivities
    from hbm_jax.data.supernovae.tables import (
        JLA_ERROR_PARTS,
        combine_observations,
        load_jla,
        read_supernovae,
    )
    from hbm_jax.data.tables import read_table
    from hbm_jax.data.xray.afterglows import Afterglows
    from hbm_jax.data.xray.simulation import AfterglowPopulation
    from hbm_jax.data.xray.sources import SourceSpectra, read_source_spectra
    from hbm_jax.data.xray.spectrum_files import read_grouped_spectra
    from hbm_jax.data.xray.tables import read_afterglows
    from hbm_jax.data.xray.writing import write_afterglows

_MODULES = {
    "AfterglowPopulation": "xray.simulation",
    "Afterglows": "xray.afterglows",
    "BurstObservation": "bursts.spectra",
    "BurstPopulation": "bursts.simulation",
    "BurstSpectra": "bursts.spectra",
    "BurstSpectraPopulation": "bursts.spectra_simulation",
    "Bursts": "bursts.bursts",
    "CorrelatedSupernovae": "supernovae.correlated",
    "DISTANCE_FORMATS": "supernovae.distance_tables",
    "DistanceModuli": "supernovae.distance_moduli",
    "DownloadError": "supernovae.downloads",
    "EXAMPLES": "regression.examples",
    "GaussianConstraints": "supernovae.constraints",
    "JLA_ERROR_PARTS": "supernovae.tables",
    "KONUS_COSMOLOGY": "bursts.tables",
    "MagnitudeErrorParts": "supernovae.magnitude_errors",
    "PointsInGroups": "linear.points_in_groups",
    "RegressionData": "regression.regression_data",
    "SourceSpectra": "xray.sources",
    "Supernovae": "supernovae.supernovae",
    "ValuesInGroups": "linear.values_in_groups",
    "blocks_from_joint": "supernovae.correlated",
    "combine_observations": "supernovae.tables",
    "desi2024_bao": "supernovae.constraints",
    "desi_dr2_bao": "supernovae.constraints",
    "fetch_distance_moduli": "supernovae.downloads",
    "lensing_variance": "supernovae.magnitude_errors",
    "load_constraints": "supernovae.constraints",
    "load_distance_moduli": "supernovae.downloads",
    "load_eight_schools": "linear.values_in_groups",
    "load_example": "regression.examples",
    "load_jla": "supernovae.tables",
    "load_konus": "bursts.tables",
    "planck2018_distance_priors": "supernovae.constraints",
    "read_afterglows": "xray.tables",
    "read_burst": "bursts.spectra_files",
    "read_burst_spectra": "bursts.spectra_files",
    "read_bursts": "bursts.tables",
    "read_constraints": "supernovae.constraints",
    "read_correlated_supernovae": "supernovae.correlated_tables",
    "read_distance_moduli": "supernovae.distance_tables",
    "read_grouped_spectra": "xray.spectrum_files",
    "read_regression": "regression.regression_data",
    "read_relation": "linear.points_in_groups",
    "read_source_spectra": "xray.sources",
    "read_supernovae": "supernovae.tables",
    "read_table": "tables",
    "read_values": "linear.values_in_groups",
    "velocity_variance": "supernovae.magnitude_errors",
    "with_sensitivities": "supernovae.surveys.sensitivities",
    "with_survey_limits": "supernovae.surveys.limits",
    "write_afterglows": "xray.writing",
    "write_burst_spectra": "bursts.spectra_simulation",
}

__all__ = [*_MODULES, "DataError", "DataWarning"]


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"hbm_jax.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'hbm_jax.data' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
