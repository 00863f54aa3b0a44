"""Absorption along the line of sight by the warm-hot intergalactic medium."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.absorption.abundances import as_abundances
from hbm_jax.absorption.domain import MAX_ENERGY, MIN_ENERGY, masked, one_of, within
from hbm_jax.absorption.ionization import IONS, MODES, ion_fractions
from hbm_jax.absorption.rates import ABSORBING, RATES
from hbm_jax.absorption.running_integrals import Running, look_up, running_integrals
from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.background import guarded_inverse_e

NUM_CELLS = 20
MAX_REDSHIFT = 10.0
_NODES = 8  # of Gauss and Legendre in a cell
# 1e-22 cm^2 times cm^-3 times c / H0 in km/s over km/s/Mpc
COLUMN = 1e-22 * constants.megaparsec * 100.0 * constants.speed_of_light_km_s
PLACES = np.array([IONS.index(ion) for ion in ABSORBING], np.int32)
_Z = np.array([Z for Z, _ in ABSORBING], np.int32)
METAL = _Z > 2


class Cells(NamedTuple):
    """The line of sight in cells of u = log(1 + z), in each of which the weight is a straight line.

    Attributes
    ----------
    edge : (cells + 1,)
        u at the cells' ends.
    lower, upper : (cells,)
        The line at the ends of each cell.
    slope : (cells,)
        Its slope.
    """

    edge: jax.Array
    lower: jax.Array
    upper: jax.Array
    slope: jax.Array


def cells_of(z: jax.Array, weight: Any, num_cells: int) -> Cells:
    """Least-squares lines of a function of u on equal cells from 0 to log(1 + z).

    Without a quotient by the width of a cell, so that redshift 0 has its value and its gradient.
    """
    x, w = (a.astype(z.dtype) for a in np.polynomial.legendre.leggauss(_NODES))
    edge = jnp.log1p(z) * np.linspace(0.0, 1.0, num_cells + 1).astype(z.dtype)
    half = 0.5 * (edge[1:] - edge[:-1])
    u = 0.5 * (edge[1:] + edge[:-1])[:, None] + half[:, None] * x
    values, rises = jax.jvp(weight, (u,), (jnp.ones_like(u),))
    mean = 0.5 * jnp.sum(values * w, axis=1)
    # The projection on the first Legendre polynomial, integrated by parts.
    slope = 0.75 * jnp.sum(rises * w * (1.0 - x**2), axis=1)
    return Cells(edge, mean - slope * half, mean + slope * half, slope)


def along(cells: Cells, table: Running, log_energy: jax.Array) -> jax.Array:
    """Integral of sigma times the weight, at log energies of any shape; the table has one axis, or (cells, nodes)."""
    L = log_energy[..., None] + cells.edge
    if jnp.ndim(table.first) == 1:
        first, second = look_up(table, L)
        before, after = (first[..., :-1], second[..., :-1]), (first[..., 1:], second[..., 1:])
    else:
        each = jax.vmap(look_up, in_axes=(Running(None, 0, 0, 0, 0), -1), out_axes=-1)  # type: ignore[arg-type]
        before, after = each(table, L[..., :-1]), each(table, L[..., 1:])
    parts = cells.lower * before[0] - cells.upper * after[0] + cells.slope * (before[1] - after[1])
    return jnp.sum(parts, axis=-1)


def combine(weights: jax.Array, dtype: Any) -> Running:
    """Tables of sums over ions with the weights (..., ions); (..., nodes)."""
    table = running_integrals()

    def summed(column):
        return jnp.matmul(weights, column.T.astype(dtype), precision=jax.lax.Precision.HIGHEST)

    node = jnp.asarray(table.node.astype(dtype))
    return Running(node, *(summed(column) for column in table[1:]))


def weights_of(cosmology: Cosmology, density_slope, metallicity, metallicity_slope):
    """Weights along u = log(1 + z) of hydrogen and helium, and of everything heavier."""

    def weight(u):
        inverse_e, positive = guarded_inverse_e(u, cosmology)
        return jnp.exp((3.0 + density_slope) * u) * jnp.where(positive, inverse_e, jnp.nan)

    def metal_weight(u):
        return weight(u) * metallicity * 10.0 ** (metallicity_slope * jnp.expm1(u))

    return weight, metal_weight


def weights_along(z: float, cosmology: Cosmology, density_slope, metallicity_slope, num_cells: int):
    """Edges in u, and what S1 and S2 there count for, of either group: the integral is linear in them."""
    found = []
    for weight in weights_of(cosmology, density_slope, 1.0, metallicity_slope):
        edge, lower, upper, slope = (np.asarray(part) for part in cells_of(jnp.asarray(z), weight, num_cells))
        of_first = np.append(lower, 0.0) - np.append(0.0, upper)
        of_second = np.append(slope, 0.0) - np.append(0.0, slope)
        found.append((edge, of_first, of_second))
    return found


def whim_optical_depth(
    energy: ArrayLike,
    z: ArrayLike,
    *,
    n0: ArrayLike,
    log10_T: ArrayLike,
    cosmology: Cosmology,
    log10_xi: ArrayLike = 0.0,
    metallicity: ArrayLike = 1.0,
    abundances: Any = "wilm",
    mode: str = "photo+collisional",
    rates: str = "modern",
    photon_index: ArrayLike = 2.0,
    density_slope: ArrayLike = 0.0,
    metallicity_slope: ArrayLike = 0.0,
    temperature_slope: ArrayLike = 0.0,
    num_cells: int = NUM_CELLS,
) -> jax.Array:
    """Optical depth of a homogeneous ionised medium between the observer and redshift z.

    Parameters
    ----------
    energy : array of any shape
        Observed photon energy [keV], 0.03 to 500 with its redshift.
    z : scalar
        Redshift of the source, 0 to 10. For several sources, `jax.vmap`.
    n0 : scalar
        Density of hydrogen nuclei at redshift 0 [cm^-3]; at redshift z it is n0 (1 + z)^(3 + density_slope).
    log10_T : scalar
        Logarithm of the temperature [K] at redshift 0; T ~ (1 + z)^temperature_slope, 4 to 8 all along the line of
        sight.
    cosmology : Cosmology
        The universe.
    log10_xi : scalar
        Logarithm of the ionisation parameter [erg cm/s], see `ion_fractions`.
    metallicity : scalar
        Of everything heavier than helium, relative to the abundance table, at redshift 0, not negative; it changes by a
        factor 10^(metallicity_slope z).
    abundances : str or (30,) array
        As in `neutral_cross_section`.
    mode, rates, photon_index
        As in `ion_fractions`.
    density_slope, metallicity_slope, temperature_slope : scalar
        Evolution besides that of a constant comoving density. With a temperature that evolves the ion fractions are
        those at the middle of each cell.
    num_cells : int
        Cells of log(1 + z).

    Returns
    -------
    array of the shape of energy
        0 at redshift 0, NaN where a traced argument is out of its domain or the universe has no such redshift.

    Raises
    ------
    ValueError
        For arguments out of their domain, unknown names.

    Notes
    -----
    tau = n0 c / H0 times the sum over ions of A_Z X_ion and the integral from 0 to z of
    sigma_ion(E (1 + z')) (1 + z')^2 / E(z') dz' (Starling et al. 2013, MNRAS 431, 3159). The integral is a product
    integration: the weight is a straight line in each cell, the cross section enters through its running integrals, so
    that edges do no harm. Largest error over 0.3 to 9.9 keV and z from 0.01 to 9: 5e-5
    (``tests/absorption/test_whim.py``). In single precision redshifts
    below 0.1 lose digits, where `WhimTable` does not.

    n0 and the metallicity are degenerate but for H and He, and with collisions n0 and T are along a curve. Left out:
    resonance lines and the fine structure of edges.

    Examples
    --------
    >>> from hbm_jax.cosmology import Cosmology
    >>> flat = Cosmology.flat(H0=70.0, Om0=0.3)
    >>> whim_optical_depth(0.5, 2.0, n0=1e-7, log10_T=6.0, cosmology=flat)
    """
    one_of("mode", mode, MODES)
    one_of("collection of rates", rates, RATES)
    numbers = as_abundances(abundances)
    z, in_z = within("z", z, 0.0, MAX_REDSHIFT)
    n0, in_n0 = within("n0", n0, 0.0, math.inf, "cm^-3")
    metallicity, in_metallicity = within("metallicity", metallicity, 0.0, math.inf)
    if z.ndim:
        raise ValueError(f"z: expected one redshift (for several, jax.vmap); found an array of shape {z.shape}.")
    most = MAX_ENERGY / (1.0 + (float(z) if not isinstance(z, jax.core.Tracer) else 0.0))
    energy, in_energy = within("energy", energy, MIN_ENERGY, most, "keV")
    in_energy = in_energy & (energy * (1.0 + z) <= MAX_ENERGY)
    dtype = jnp.result_type(energy, z, n0, *jax.tree.leaves(cosmology), log10_T, metallicity)
    z = jnp.where(in_z, z, 0.0).astype(dtype)
    log_energy = jnp.log(jnp.where(in_energy, energy, 1.0).astype(dtype))

    weight, metal_weight = weights_of(cosmology, density_slope, metallicity, metallicity_slope)
    fractions = functools.partial(ion_fractions, mode=mode, rates=rates, photon_index=photon_index)
    cells = cells_of(z, weight, num_cells)
    if isinstance(temperature_slope, int | float) and temperature_slope == 0:
        shares = fractions(log10_T, log10_xi)
    else:
        middle = 0.5 * (cells.edge[1:] + cells.edge[:-1])
        shares = fractions(log10_T + temperature_slope * middle / math.log(10.0), log10_xi)
    shares = shares[..., PLACES].astype(dtype) * jnp.asarray(numbers[_Z - 1], dtype)
    tau = along(cells, combine(jnp.where(METAL, 0.0, shares), dtype), log_energy)
    tau = tau + along(cells_of(z, metal_weight, num_cells), combine(jnp.where(METAL, shares, 0.0), dtype), log_energy)
    return masked(n0 * COLUMN / cosmology.H0 * tau, in_energy & in_z & in_n0 & in_metallicity)
