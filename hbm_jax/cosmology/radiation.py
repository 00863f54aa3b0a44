"""Energy densities of photons and of massless or massive neutrinos."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from hbm_jax import constants

Scalar = jax.Array | float

# Values as in astropy, so that a converted cosmology agrees to rounding
_NEUTRINO_TO_PHOTON = 0.22710731766  # 7/8 (4/11)^(4/3)
_NEUTRINO_TEMPERATURE = 0.7137658555036082  # (4/11)^(1/3)
_KOMATSU_K = 0.3173
_KOMATSU_P = 1.83
_KOMATSU_INVERSE_P = 0.54644808743

# Ogamma0 H0^2 / Tcmb0^4 in (km/s/Mpc)^2 K^-4
_PHOTON_DENSITY = (
    constants.radiation_constant
    / constants.speed_of_light**2
    * 8
    * math.pi
    * constants.gravitational_constant
    / 3
    * (constants.megaparsec / 1e3) ** 2
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Radiation:
    """Photons and massless or massive neutrinos.

    Parameters
    ----------
    Tcmb0 : scalar
        Temperature of the microwave background today [K], at least 0.
    Neff : scalar
        Effective number of neutrino species, shared equally among the species listed in `m_nu`.
    m_nu : array of shape (num_species,), optional
        Mass of each neutrino species [eV], at least 0. None: all are massless.

    Notes
    -----
    Massive neutrinos follow the fitting formula of Komatsu et al. 2011 (ApJS 192, 18), equation 26, applied to each
    species as `astropy.cosmology` does. E(z) of astropy's presets is reproduced to 1e-13
    (``tests/cosmology/test_astropy.py``).

    Examples
    --------
    >>> Radiation(Tcmb0=2.7255, Neff=3.046, m_nu=(0.0, 0.0, 0.06))
    Radiation(Tcmb0=2.7255, Neff=3.046, m_nu=(0.0, 0.0, 0.06))
    """

    Tcmb0: Scalar
    Neff: Scalar = 3.04
    m_nu: Any = None

    def photon_density(self, H0: Scalar) -> Scalar:
        """Return the density parameter of photons today, for a Hubble constant [km/s/Mpc]."""
        return _PHOTON_DENSITY * self.Tcmb0**4 / H0**2

    def neutrinos_per_photon(self, x: Scalar) -> Scalar:
        """Return the ratio of neutrino to photon energy density at ``x = 1 + z``, any shape."""
        if self.m_nu is None:
            return _NEUTRINO_TO_PHOTON * self.Neff
        masses = self.m_nu if isinstance(self.m_nu, tuple | list) else [self.m_nu[i] for i in range(len(self.m_nu))]
        total: Scalar = 0.0
        for mass in masses:
            if isinstance(mass, int | float) and mass == 0:
                total = total + 1.0
                continue
            y = mass / (constants.boltzmann_constant_ev * _NEUTRINO_TEMPERATURE * self.Tcmb0 * x)
            total = total + (1.0 + (_KOMATSU_K * y) ** _KOMATSU_P) ** _KOMATSU_INVERSE_P
        return _NEUTRINO_TO_PHOTON * self.Neff / len(masses) * total
