"""Data containers, validated on construction, and the readers of tables that build them."""

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
from hbm_jax.validation import DataError, DataWarning

__all__ = [
    "DISTANCE_FORMATS",
    "EXAMPLES",
    "JLA_ERROR_PARTS",
    "KONUS_COSMOLOGY",
    "AfterglowPopulation",
    "Afterglows",
    "BurstObservation",
    "BurstPopulation",
    "BurstSpectra",
    "BurstSpectraPopulation",
    "Bursts",
    "CorrelatedSupernovae",
    "DataError",
    "DataWarning",
    "DistanceModuli",
    "DownloadError",
    "GaussianConstraints",
    "MagnitudeErrorParts",
    "PointsInGroups",
    "RegressionData",
    "SourceSpectra",
    "Supernovae",
    "ValuesInGroups",
    "blocks_from_joint",
    "combine_observations",
    "desi2024_bao",
    "desi_dr2_bao",
    "fetch_distance_moduli",
    "lensing_variance",
    "load_constraints",
    "load_distance_moduli",
    "load_eight_schools",
    "load_example",
    "load_jla",
    "load_konus",
    "planck2018_distance_priors",
    "read_afterglows",
    "read_burst",
    "read_burst_spectra",
    "read_bursts",
    "read_constraints",
    "read_correlated_supernovae",
    "read_distance_moduli",
    "read_grouped_spectra",
    "read_regression",
    "read_relation",
    "read_source_spectra",
    "read_supernovae",
    "read_table",
    "read_values",
    "velocity_variance",
    "with_sensitivities",
    "with_survey_limits",
    "write_afterglows",
    "write_burst_spectra",
]
