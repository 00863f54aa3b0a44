"""X-ray spectra: OGIP files, grouping, responses, models in photons, and statistics of the counts.

Energies in keV, fluxes in erg/cm^2/s, amplitudes in photons/cm^2/s/keV, columns in 1e22 cm^-2.
"""

from hbm_jax.spectra.absorbers import Absorption, Constant, Whim
from hbm_jax.spectra.components import Band, BlackBody, BrokenPowerLaw, CutoffPowerLaw, GaussianLine, PowerLaw, photons
from hbm_jax.spectra.composition import Component, Parameter
from hbm_jax.spectra.compression import compress
from hbm_jax.spectra.energetics import energy_flux, isotropic_energy, k_correction, luminosity, photon_flux
from hbm_jax.spectra.goodness import Goodness, goodness_of_fit
from hbm_jax.spectra.grouping import group, noticed
from hbm_jax.spectra.idealised import gbm_like_arf, gbm_like_rmf, xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.likelihood import STATISTICS, Statistic, prepare
from hbm_jax.spectra.ogip import read_pha, read_spectra, read_spectrum
from hbm_jax.spectra.ogip_responses import read_arf, read_rmf
from hbm_jax.spectra.ogip_type2 import write_pha2
from hbm_jax.spectra.ogip_writing import write_arf, write_pha, write_rmf
from hbm_jax.spectra.response import Arf, Response, Rmf
from hbm_jax.spectra.spectrum import Spectrum
from hbm_jax.spectra.stack import SpectrumStack

__all__ = [
    "STATISTICS",
    "Absorption",
    "Arf",
    "Band",
    "BlackBody",
    "BrokenPowerLaw",
    "Component",
    "Constant",
    "CutoffPowerLaw",
    "GaussianLine",
    "Goodness",
    "Parameter",
    "PowerLaw",
    "Response",
    "Rmf",
    "Spectrum",
    "SpectrumStack",
    "Statistic",
    "Whim",
    "compress",
    "energy_flux",
    "gbm_like_arf",
    "gbm_like_rmf",
    "goodness_of_fit",
    "group",
    "isotropic_energy",
    "k_correction",
    "luminosity",
    "noticed",
    "photon_flux",
    "photons",
    "prepare",
    "read_arf",
    "read_pha",
    "read_rmf",
    "read_spectra",
    "read_spectrum",
    "write_arf",
    "write_pha",
    "write_pha2",
    "write_rmf",
    "xrt_like_arf",
    "xrt_like_rmf",
]
