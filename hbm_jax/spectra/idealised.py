"""An idealised response of our own making, with the main traits of a focusing X-ray telescope with a CCD."""

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from hbm_jax.spectra.response import Arf, Rmf

_FANO, _PAIR = 0.115, 3.68e-3  # of silicon; keV for an electron-hole pair
_NOISE = 7.0  # electrons
_SHELF = 0.02  # share of photons whose charge is not all collected


def xrt_like_rmf(num_energies: int = 1190, num_channels: int = 1024) -> Rmf:
    """Redistribution of an idealised CCD: a Gaussian peak and a shelf below it.

    Photon energies of 0.1 to 12 keV, channels of 10 eV from 0, counted from 0. The width is that of 7 electrons of
    noise and of the statistics of electron-hole pairs in silicon: 63 eV (FWHM) at 0.3 keV, 133 eV at 6 keV.

    Returns
    -------
    Rmf
        Not that of any instrument: for simulations and tests.
    """
    energy = np.linspace(0.1, 12.0, num_energies + 1)
    bounds = np.asarray(np.arange(num_channels + 1) * 0.01, float)
    middle = 0.5 * (energy[1:] + energy[:-1])
    sigma = _PAIR * np.sqrt(_NOISE**2 + _FANO * middle / _PAIR)
    peak = np.diff(ndtr((bounds - middle[:, None]) / sigma[:, None]), axis=1)
    below = np.clip(middle[:, None] - bounds[:-1], 0.0, 0.01) / middle[:, None]
    matrix = (1.0 - _SHELF) * peak + _SHELF * below
    matrix[matrix < 1e-6] = 0.0
    channels = np.arange(num_channels)
    return Rmf(energy, sparse.csr_matrix(matrix), channels, bounds[:-1], bounds[1:], "idealised XRT-like RMF")


def xrt_like_arf(rmf: Rmf | None = None) -> Arf:
    """Effective area of an idealised mirror and detector, 110 cm^2 at its best.

    Rises with the transparency of a filter below 1 keV, drops at the M edges of gold (2.2 keV) and with the
    reflectivity above 5 keV.
    """
    energy = (rmf or xrt_like_rmf()).energy
    middle = 0.5 * (energy[1:] + energy[:-1])
    filter_ = np.exp(-0.16 * middle**-2.5)
    gold = np.where(middle > 2.206, 0.72, 1.0)
    reflectivity = 1.0 / (1.0 + (middle / 5.6) ** 5)
    return Arf(energy, 132.0 * filter_ * gold * reflectivity, "idealised XRT-like ARF")
