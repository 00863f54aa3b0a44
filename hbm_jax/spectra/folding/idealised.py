"""Idealised responses of our own making: a focusing X-ray telescope with a CCD, a burst monitor with scintillators."""

from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import ndtr

from hbm_jax.spectra.folding.response import Arf, Rmf

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


# Of the two kinds of scintillators of a gamma-ray burst monitor: photon energies and channels [keV], the full width at
# half maximum relative to the energy at 100 keV, the area [cm^2], and the energy [keV] above which most photons leave
# a part of their energy only.
GBM_LIKE: dict[str, dict[str, Any]] = {
    "nai": {
        "energy": (5.0, 5e4),
        "channels": (4.0, 2e3),
        "width": 0.18,
        "area": 115.0,
        "window": 12.0,
        "partial": 250.0,
        "depth": 600.0,
    },
    "bgo": {
        "energy": (100.0, 2e5),
        "channels": (100.0, 5e4),
        "width": 0.35,
        "area": 160.0,
        "window": 150.0,
        "partial": 4e3,
        "depth": 5e4,
    },
}
_IODINE_EDGE, _ELECTRON = 33.17, 510.99895  # keV


def gbm_like_rmf(detector: str = "nai", num_energies: int = 140, num_channels: int = 128) -> Rmf:
    """Redistribution of an idealised scintillator of a gamma-ray burst monitor.

    A Gaussian peak whose width goes with the root of the energy, and for photons that scatter once and escape a
    continuum up to the Compton edge, the more the higher their energy. Energies and channels are equal steps of the
    logarithm: 5 keV to 50 MeV and 4 keV to 2 MeV (``"nai"``), 0.1 to 200 MeV and 0.1 to 50 MeV (``"bgo"``).

    Parameters
    ----------
    detector : str
        ``"nai"`` or ``"bgo"``.
    num_energies, num_channels : int
        Bins of photon energy, and channels, counted from 0.

    Returns
    -------
    Rmf
        Not that of any instrument: for simulations and tests.

    Raises
    ------
    ValueError
        For another detector.
    """
    of = _scintillator(detector)
    energy, bounds = (
        np.geomspace(of[what][0], of[what][1], num + 1)
        for what, num in (("energy", num_energies), ("channels", num_channels))
    )
    middle = np.sqrt(energy[1:] * energy[:-1])[:, None]
    sigma = of["width"] * np.sqrt(100.0 * middle) / 2.3548
    peak = np.diff(ndtr((bounds - middle) / sigma), axis=1)
    edge = middle * 2.0 * middle / (_ELECTRON + 2.0 * middle)  # energy left by a photon that turns back
    continuum = np.diff(np.clip(bounds, 0.0, edge), axis=1) / edge
    share = middle / (middle + of["partial"])
    matrix = (1.0 - share) * peak + share * continuum
    matrix[matrix < 1e-7] = 0.0
    name = f"idealised GBM-like {detector.upper()} RMF"
    return Rmf(energy, sparse.csr_matrix(matrix), np.arange(num_channels), bounds[:-1], bounds[1:], name)


def gbm_like_arf(detector: str = "nai", rmf: Rmf | None = None) -> Arf:
    """Effective area of an idealised scintillator that is seen face on: a window, its thickness, the edge of iodine.

    Parameters
    ----------
    detector : str
        ``"nai"`` or ``"bgo"``.
    rmf : Rmf, optional
        On whose energies; those of `gbm_like_rmf` by default.

    Raises
    ------
    ValueError
        For another detector.
    """
    of = _scintillator(detector)
    energy = (rmf or gbm_like_rmf(detector)).energy
    middle = np.sqrt(energy[1:] * energy[:-1])
    window = np.exp(-((of["window"] / middle) ** 2.5))
    thickness = 1.0 - np.exp(-0.5 - np.sqrt(of["depth"] / middle))
    iodine = np.where((middle > _IODINE_EDGE * 0.8) & (middle < _IODINE_EDGE), 0.85, 1.0) if detector == "nai" else 1.0
    return Arf(energy, of["area"] * window * thickness * iodine, f"idealised GBM-like {detector.upper()} ARF")


def _scintillator(detector: str) -> dict[str, Any]:
    if detector not in GBM_LIKE:
        raise ValueError(f"detector: expected one of {', '.join(map(repr, GBM_LIKE))}; found {detector!r}.")
    return GBM_LIKE[detector]
