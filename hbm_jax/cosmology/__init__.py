"""Distances, times and volumes in homogeneous universes, as differentiable JAX functions."""

from hbm_jax.cosmology.dark_energy import BinnedDarkEnergy, CustomDarkEnergy, DistanceFunction, breaks_of
from hbm_jax.cosmology.distances import (
    age,
    angular_diameter_distance,
    comoving_distance,
    differential_comoving_volume,
    distmod,
    lookback_time,
    luminosity_distance,
    transverse_comoving_distance,
)
from hbm_jax.cosmology.expansion import Cosmology, FlatCosmology, efunc, from_astropy, inv_efunc, to_astropy
from hbm_jax.cosmology.modulus_basis import ModulusBasis, modulus_basis
from hbm_jax.cosmology.radiation import Radiation
from hbm_jax.cosmology.redshift_grid import RedshiftGrid
from hbm_jax.cosmology.redshift_matrix import RedshiftMatrix

__all__ = [
    "BinnedDarkEnergy",
    "Cosmology",
    "CustomDarkEnergy",
    "DistanceFunction",
    "FlatCosmology",
    "ModulusBasis",
    "Radiation",
    "RedshiftGrid",
    "RedshiftMatrix",
    "age",
    "angular_diameter_distance",
    "breaks_of",
    "comoving_distance",
    "differential_comoving_volume",
    "distmod",
    "efunc",
    "from_astropy",
    "inv_efunc",
    "lookback_time",
    "luminosity_distance",
    "modulus_basis",
    "to_astropy",
    "transverse_comoving_distance",
]
