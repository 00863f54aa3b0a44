"""Data containers, each validated where it is built, and readers that fill them from tables."""

from hbm_jax.data.afterglow_files import write_afterglows
from hbm_jax.data.afterglow_simulation import AfterglowPopulation
from hbm_jax.data.afterglow_tables import read_afterglows
from hbm_jax.data.afterglows import Afterglows
from hbm_jax.data.burst_counts_simulation import BurstSpectraPopulation, write_burst_spectra
from hbm_jax.data.burst_simulation import BurstPopulation
from hbm_jax.data.burst_spectra import BurstObservation, BurstSpectra
from hbm_jax.data.burst_spectra_files import read_burst, read_burst_spectra
from hbm_jax.data.burst_tables import KONUS_COSMOLOGY, load_konus, read_bursts
from hbm_jax.data.bursts import Bursts
from hbm_jax.data.examples import EXAMPLES, load_example
from hbm_jax.data.magnitude_errors import MagnitudeErrorParts, lensing_variance, velocity_variance
from hbm_jax.data.regressions import RegressionData, read_regression
from hbm_jax.data.relations import PointsInGroups, read_relation
from hbm_jax.data.spectrum_files import read_grouped_spectra
from hbm_jax.data.supernova_tables import JLA_ERROR_PARTS, load_jla, read_supernovae
from hbm_jax.data.supernovae import Supernovae
from hbm_jax.data.tables import read_table
from hbm_jax.data.values_in_groups import ValuesInGroups, load_eight_schools, read_values
from hbm_jax.validation import DataError

__all__ = [
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
    "DataError",
    "MagnitudeErrorParts",
    "PointsInGroups",
    "RegressionData",
    "Supernovae",
    "ValuesInGroups",
    "lensing_variance",
    "load_eight_schools",
    "load_example",
    "load_jla",
    "load_konus",
    "read_afterglows",
    "read_burst",
    "read_burst_spectra",
    "read_bursts",
    "read_grouped_spectra",
    "read_regression",
    "read_relation",
    "read_supernovae",
    "read_table",
    "read_values",
    "velocity_variance",
    "write_afterglows",
    "write_burst_spectra",
]
