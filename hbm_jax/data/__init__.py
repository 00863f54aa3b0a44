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
from hbm_jax.data.correlated_supernova_files import read_correlated_supernovae
from hbm_jax.data.correlated_supernovae import CorrelatedSupernovae, blocks_from_joint
from hbm_jax.data.magnitude_errors import MagnitudeErrorParts, lensing_variance, velocity_variance
from hbm_jax.data.relations import PointsInGroups, read_relation
from hbm_jax.data.supernova_tables import JLA_ERROR_PARTS, load_jla, read_supernovae
from hbm_jax.data.supernovae import Supernovae
from hbm_jax.data.tables import read_table
from hbm_jax.validation import DataError

__all__ = [
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
    "MagnitudeErrorParts",
    "PointsInGroups",
    "Supernovae",
    "blocks_from_joint",
    "lensing_variance",
    "load_jla",
    "load_konus",
    "read_afterglows",
    "read_burst",
    "read_burst_spectra",
    "read_bursts",
    "read_correlated_supernovae",
    "read_relation",
    "read_supernovae",
    "read_table",
    "velocity_variance",
    "write_afterglows",
    "write_burst_spectra",
]
