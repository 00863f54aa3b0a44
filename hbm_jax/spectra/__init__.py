"""X-ray spectra: OGIP files, grouping, responses, spectral models, and statistics of counts.

Energies are in keV, fluxes in erg/cm^2/s, amplitudes in photons/cm^2/s/keV and column densities in 1e22 cm^-2.
"""

from hbm_jax.spectra.background_regions import RegionStack
from hbm_jax.spectra.folding.area_errors import AreaComponents, AreaErrors, read_area_components
from hbm_jax.spectra.folding.fold import fold
from hbm_jax.spectra.folding.grouping import group, noticed
from hbm_jax.spectra.folding.idealised import gbm_like_arf, gbm_like_rmf, xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.folding.response import Arf, Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.model.absorbers import Absorption, Constant, Whim
from hbm_jax.spectra.model.components import (
    Band,
    BlackBody,
    BrokenPowerLaw,
    CutoffPowerLaw,
    GaussianLine,
    LogParabola,
    PowerLaw,
    photons,
)
from hbm_jax.spectra.model.composition import Component, Parameter
from hbm_jax.spectra.model.energetics import (
    energy_flux,
    equivalent_width,
    isotropic_energy,
    k_correction,
    luminosity,
    photon_flux,
)
from hbm_jax.spectra.model.factors import (
    Edge,
    FluxScale,
    GaussianAbsorption,
    HighEnergyCutoff,
    LowEnergyCutoff,
    LuminosityScale,
    PartialAbsorption,
    Wabs,
)
from hbm_jax.spectra.model.photons import GaussianSmoothing
from hbm_jax.spectra.model.registration import component
from hbm_jax.spectra.model.tables import AdditiveTable, ExponentialTable, MultiplicativeTable
from hbm_jax.spectra.model.thermal import BlackBodyLuminosity, Bremsstrahlung, DiskBlackBody
from hbm_jax.spectra.ogip.instruments import default_energies
from hbm_jax.spectra.ogip.pha import read_pha, read_spectra, read_spectrum
from hbm_jax.spectra.ogip.responses import read_arf, read_rmf
from hbm_jax.spectra.ogip.table_models import read_table_model, write_table_model
from hbm_jax.spectra.ogip.type2 import write_pha2
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.goodness import Goodness, goodness_of_fit
from hbm_jax.spectra.statistics.statistic import STATISTICS, Statistic, prepare

__all__ = [
    "STATISTICS", "Absorption", "AdditiveTable", "AreaComponents", "AreaErrors", "Arf", "Band", "BlackBody",
    "BlackBodyLuminosity", "Bremsstrahlung", "BrokenPowerLaw", "Component", "Constant", "CutoffPowerLaw",
    "DiskBlackBody", "Edge", "ExponentialTable", "FluxScale", "GaussianAbsorption", "GaussianLine", "GaussianSmoothing",
    "Goodness", "HighEnergyCutoff", "LogParabola", "LowEnergyCutoff", "LuminosityScale", "MultiplicativeTable",
    "Parameter", "PartialAbsorption", "PowerLaw", "RegionStack", "Response", "Rmf", "Spectrum", "SpectrumStack",
    "Statistic", "Wabs", "Whim", "component", "default_energies", "energy_flux", "equivalent_width", "fold",
    "gbm_like_arf", "gbm_like_rmf", "goodness_of_fit", "group", "isotropic_energy", "k_correction", "luminosity",
    "noticed", "photon_flux", "photons", "prepare", "read_area_components", "read_arf", "read_pha", "read_rmf",
    "read_spectra", "read_spectrum", "read_table_model", "write_arf", "write_pha", "write_pha2", "write_rmf",
    "write_table_model", "xrt_like_arf", "xrt_like_rmf",
]  # fmt: skip
