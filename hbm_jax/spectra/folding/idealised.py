"""Idealised responses for simulations and tests: an X-ray telescope with a CCD, and a gamma-ray burst monitor.

They are not responses of real instruments.
"""

from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from hbm_jax.spectra.folding.response import Arf, Rmf

_FANO, _PAIR = 0.115, 3.68e-3  # Fano factor of silicon; energy per electron-hole pair [keV]
_NOISE = 7.0  # readout noise [electrons]
_SHELF = 0.02  # fraction of photons whose charge is collected incompletely


def xrt_like_rmf(num_energies: int = 1190, num_channels: int = 1024) -> Rmf:
    """Return the redistribution of an idealised CCD: a Gaussian peak with a flat shelf at lower energies.

    Photon energies are 0.1 to 12 keV; channels are 10 eV wide, start at 0 keV and are numbered from 0. The peak width
    combines a readout noise of 7 electrons with the Fano statistics of silicon: 63 eV (FWHM) at 0.3 keV, 133 eV at
    6 keV.

    Parameters
    ----------
    num_energies, num_channels : int
        Numbers of photon energy bins and of channels.
    """
    energy = np.linspace(0.1, 12.0, num_energies + 1)
    bounds = np.asarray(np.arange(num_channels + 1) * 0.01, float)
    middle = 0.5 * (energy[1:] + energy[:-1])
    sigma = _PAIR * np.sqrt(_NOISE**2 + _FANO * middle / _PAIR)
    peak = np.diff(ndtr((bounds - middle[:, None]) / sigma[:, None]), axis=1)
    shelf = np.clip(middle[:, None] - bounds[:-1], 0.0, 0.01) / middle[:, None]
    matrix = (1.0 - _SHELF) * peak + _SHELF * shelf
    matrix[matrix < 1e-6] = 0.0
    channels = np.arange(num_channels)
    return Rmf(energy, sparse.csr_matrix(matrix), channels, bounds[:-1], bounds[1:], "idealised XRT-like RMF")


def xrt_like_arf(rmf: Rmf | None = None) -> Arf:
    """Return the effective area of an idealised mirror and CCD, at most 110 cm^2.

    It has the transmission of a filter below 1 keV, a drop at the M edges of gold (2.2 keV) and a falling reflectivity
    above 5 keV.

    Parameters
    ----------
    rmf : Rmf, optional
        Redistribution whose energy bins are used; default: that of `xrt_like_rmf`.
    """
    energy = (rmf or xrt_like_rmf()).energy
    middle = 0.5 * (energy[1:] + energy[:-1])
    # Simple functions with the shape of the area of such a telescope, not a calculation.
    filter_ = np.exp(-0.16 * middle**-2.5)
    gold = np.where(middle > 2.206, 0.72, 1.0)
    reflectivity = 1.0 / (1.0 + (middle / 5.6) ** 5)
    return Arf(energy, 132.0 * filter_ * gold * reflectivity, "idealised XRT-like ARF")


# Scintillators of a gamma-ray burst monitor: ranges of photon energies and channels [keV], FWHM relative to the energy
# at 100 keV, area [cm^2], energy at which the window becomes transparent [keV], energy above which most photons deposit
# only a part of their energy [keV], and energy scale of the absorption in the crystal [keV].
GBM_LIKE: dict[str, dict[str, Any]] = {
    "nai": {"energy": (5.0, 5e4), "channels": (4.0, 2e3), "width": 0.18}
    | {"area": 115.0, "window": 12.0, "partial": 250.0, "depth": 600.0},
    "bgo": {"energy": (100.0, 2e5), "channels": (100.0, 5e4), "width": 0.35}
    | {"area": 160.0, "window": 150.0, "partial": 4e3, "depth": 5e4},
}
_IODINE_EDGE, _ELECTRON = 33.17, 510.99895  # keV


def gbm_like_rmf(detector: str = "nai", num_energies: int = 140, num_channels: int = 128) -> Rmf:
    """Return the redistribution of an idealised scintillator of a gamma-ray burst monitor.

    It has a Gaussian peak with a width proportional to the square root of the energy, and a continuum up to the Compton
    edge, from photons that scatter once and escape; their fraction rises with energy. Energies and channels are spaced
    evenly in logarithm: 5 keV to 50 MeV and 4 keV to 2 MeV (``"nai"``), 0.1 to 200 MeV and 0.1 to 50 MeV (``"bgo"``).
    Raises ValueError if the detector is unknown.

    Parameters
    ----------
    detector : str
        ``"nai"`` or ``"bgo"``.
    num_energies, num_channels : int
        Numbers of photon energy bins and of channels; channels are numbered from 0.
    """
    parameters = _scintillator(detector)
    (lowest, highest), (first, last) = parameters["energy"], parameters["channels"]
    energy, bounds = np.geomspace(lowest, highest, num_energies + 1), np.geomspace(first, last, num_channels + 1)
    middle = np.sqrt(energy[1:] * energy[:-1])[:, None]
    sigma = parameters["width"] * np.sqrt(100.0 * middle) / 2.3548  # from the FWHM, the width times E at 100 keV
    peak = np.diff(ndtr((bounds - middle) / sigma), axis=1)
    # Energy deposited by a photon that is scattered backwards and escapes.
    compton_edge = middle * 2.0 * middle / (_ELECTRON + 2.0 * middle)
    continuum = np.diff(np.clip(bounds, 0.0, compton_edge), axis=1) / compton_edge
    continuum_fraction = middle / (middle + parameters["partial"])
    matrix = (1.0 - continuum_fraction) * peak + continuum_fraction * continuum
    matrix[matrix < 1e-7] = 0.0
    name = f"idealised GBM-like {detector.upper()} RMF"
    return Rmf(energy, sparse.csr_matrix(matrix), np.arange(num_channels), bounds[:-1], bounds[1:], name)


def gbm_like_arf(detector: str = "nai", rmf: Rmf | None = None) -> Arf:
    """Return the effective area of an idealised scintillator at normal incidence.

    It includes the transmission of the entrance window, the finite thickness of the crystal, and for ``"nai"`` the K
    edge of iodine. Raises ValueError if the detector is unknown.

    Parameters
    ----------
    detector : str
        ``"nai"`` or ``"bgo"``.
    rmf : Rmf, optional
        Redistribution whose energy bins are used; default: that of `gbm_like_rmf`.
    """
    parameters = _scintillator(detector)
    energy = (rmf or gbm_like_rmf(detector)).energy
    middle = np.sqrt(energy[1:] * energy[:-1])
    # Simple functions with the shape of the area of such a detector, not a calculation.
    window = np.exp(-((parameters["window"] / middle) ** 2.5))
    thickness = 1.0 - np.exp(-0.5 - np.sqrt(parameters["depth"] / middle))
    iodine = np.where((middle > _IODINE_EDGE * 0.8) & (middle < _IODINE_EDGE), 0.85, 1.0) if detector == "nai" else 1.0
    return Arf(energy, parameters["area"] * window * thickness * iodine, f"idealised GBM-like {detector.upper()} ARF")


def _scintillator(detector: str) -> dict[str, Any]:
    """Return the parameters of a scintillator."""
    if detector not in GBM_LIKE:
        raise ValueError(f"detector: expected one of {', '.join(map(repr, GBM_LIKE))}; found {detector!r}.")
    return GBM_LIKE[detector]
