"""The integral along the line of sight by plain quadrature in NumPy, and the package's own, by one program."""

import functools

import numpy as np
from scipy.interpolate import CubicSpline

from hbm_jax import constants
from hbm_jax.absorption import abundance_table, ion_fractions, whim_optical_depth
from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients
from hbm_jax.absorption.rates import ABSORBING
from hbm_jax.absorption.whim import ABSORBING_INDEX
from hbm_jax.absorption.whim_table import NUM_TEMPERATURES
from hbm_jax.cosmology import Cosmology

FLAT = Cosmology.flat(H0=70.0, Om0=0.3)
ENERGY = np.geomspace(0.3, 9.9, 15)
FITS = fit_coefficients(ABSORBING)
CHARGE = np.array([Z for Z, _ in ABSORBING])
NUMBERS = abundance_table("wilm")[CHARGE - 1]
NUM_ENERGIES = 40  # of the one program


def depth(energy, z, *, n0=1e-7, cosmology=FLAT, **options):
    """Optical depth by the package, at up to 40 energies."""
    padded = np.pad(energy, (0, NUM_ENERGIES - len(energy)), mode="edge")
    return np.asarray(whim_optical_depth(padded, z, n0=n0, cosmology=cosmology, **options))[: len(energy)]


def fractions(log10_T, log10_xi=0.0, *, mode="photo+collisional", rates="modern"):
    """Ion fractions at temperatures (n,), as many at a time as the tables have nodes: their program."""
    T = np.asarray(log10_T, dtype=float)
    rows = np.pad(T, (0, -len(T) % NUM_TEMPERATURES), mode="edge").reshape(-1, NUM_TEMPERATURES)
    found = [np.asarray(ion_fractions(row, log10_xi, mode=mode, rates=rates, photon_index=2.0)) for row in rows]
    return np.concatenate(found)[: len(T), ABSORBING_INDEX]


@functools.cache
def _nodes(z, energy, num_panels=24, num_nodes=10):
    """For each ion, points u = log(1 + z') between its own edges, (energies, nodes), and weights times sigma there."""
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    found = []
    for ion, thresholds in zip(ABSORBING, FITS.thresholds(), strict=True):
        cuts = np.clip(np.log(thresholds / np.array(energy)[:, None]), 0.0, np.log1p(z))
        # A fit may bend within 10 eV of its edge.
        bends = np.clip(np.log((thresholds + 0.01) / np.array(energy)[:, None]), 0.0, np.log1p(z))
        panels = np.broadcast_to(np.linspace(0.0, np.log1p(z), num_panels + 1), (len(energy), num_panels + 1))
        cuts = np.sort(np.concatenate([panels, cuts, bends], axis=1), axis=1)
        half = 0.5 * np.diff(cuts)[..., None]
        u = cuts[:, :-1, None] + half * (1.0 + x)
        sigma = evaluate(np.array(energy)[:, None, None] * np.exp(u), fit_coefficients((ion,)))[0]
        found.append((u.reshape(len(energy), -1), (half * w * sigma).reshape(len(energy), -1)))
    return found


@functools.cache
def ion_integrals(z, energy, density_slope=0.0, metallicity_slope=0.0, *, metallicity=1.0):
    """Integrals of sigma (1 + z')^(3 + density_slope) / E over u, (ions, energies); energy is a tuple."""
    rows = []
    for Z, (u, sigma) in zip(CHARGE, _nodes(z, energy), strict=True):
        weight = np.exp((3 + density_slope) * u) / np.sqrt(0.3 * np.exp(3 * u) + 0.7)
        if Z > 2:
            weight = weight * metallicity * 10 ** (metallicity_slope * np.expm1(u))
        rows.append(np.sum(weight * sigma, axis=1))
    return np.array(rows)


def scale(n0=1e-7):
    """n0 c / H0, with 1e-22 cm^2."""
    hubble = 70.0 / constants.megaparsec * 1e3  # 1/s
    return n0 * constants.speed_of_light * 1e2 / hubble * 1e-22


def by_quadrature(energy, z, log10_T, log10_xi=0.0, *, metallicity=1.0, slopes=(0.0, 0.0, 0.0), **options):
    """Optical depth for n0 = 1e-7 by Gauss and Legendre between the edges of each ion, in NumPy."""
    energy = tuple(np.asarray(energy, dtype=float).tolist())
    if not slopes[2]:
        shares = fractions([log10_T], log10_xi, **options)[0] * NUMBERS
        return scale() * shares @ ion_integrals(z, energy, *slopes[:2], metallicity=metallicity)
    along = np.linspace(0.0, np.log1p(z), NUM_TEMPERATURES)
    spline = CubicSpline(along, fractions(log10_T + slopes[2] * along / np.log(10), log10_xi, **options) * NUMBERS)
    total = 0.0
    for i, (Z, (u, sigma)) in enumerate(zip(CHARGE, _nodes(z, energy), strict=True)):
        weight = np.exp((3 + slopes[0]) * u) / np.sqrt(0.3 * np.exp(3 * u) + 0.7)
        if Z > 2:
            weight = weight * metallicity * 10 ** (slopes[1] * np.expm1(u))
        total = total + np.sum(weight * sigma * spline(u)[..., i], axis=1)
    return scale() * total
