"""X-ray absorption by single ions, by cold interstellar matter, and by the warm-hot intergalactic medium.

Energies are in keV, cross sections in 1e-22 cm^2 and column densities in 1e22 cm^-2, so that an optical depth is the
product of a cross section and a column density.
"""

from hbm_jax.absorption.abundances import ABUNDANCES, ELEMENTS, abundance_table
from hbm_jax.absorption.cross_sections import ion_name, photoionization_cross_section
from hbm_jax.absorption.ionization import IONS, MODES, ion_fractions, ion_index
from hbm_jax.absorption.neutral import Grains, neutral_cross_section
from hbm_jax.absorption.transmission import EnergyBins, transmission
from hbm_jax.absorption.whim import whim_optical_depth
from hbm_jax.absorption.whim_ions import WhimIons
from hbm_jax.absorption.whim_table import WhimTable

__all__ = [
    "ABUNDANCES",
    "ELEMENTS",
    "IONS",
    "MODES",
    "EnergyBins",
    "Grains",
    "WhimIons",
    "WhimTable",
    "abundance_table",
    "ion_fractions",
    "ion_index",
    "ion_name",
    "neutral_cross_section",
    "photoionization_cross_section",
    "transmission",
    "whim_optical_depth",
]
