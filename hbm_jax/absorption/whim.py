"""Absorption by the warm-hot intergalactic medium along a line of sight."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax import constants
from hbm_jax.absorption.abundances import as_abundances
from hbm_jax.absorption.domain import LOG10_T, MAX_ENERGY, MIN_ENERGY, masked, one_of, within
from hbm_jax.absorption.ionization import IONS, MODES, band_of_xi, ion_fractions
from hbm_jax.absorption.rates import ABSORBING, RATES
from hbm_jax.absorption.running_integrals import RunningIntegrals, look_up, running_integrals
from hbm_jax.cosmology import Cosmology
from hbm_jax.cosmology.expansion import guarded_inverse_e
from hbm_jax.validation import concrete
from hbm_jax.xla_options import QUICK

NUM_CELLS = 20
MAX_REDSHIFT = 10.0
_NODES = 8  # Gauss-Legendre nodes per cell
# n0 sigma c / H0 for n0 = 1 cm^-3, sigma = 1e-22 cm^2 and H0 = 1 km/s/Mpc
COLUMN = 1e-22 * constants.megaparsec * 100.0 * constants.speed_of_light_km_s
ABSORBING_INDEX = np.array([IONS.index(ion) for ion in ABSORBING], np.int32)
_Z = np.array([Z for Z, _ in ABSORBING], np.int32)
METAL = _Z > 2


class Cells(NamedTuple):
    """Cells of u = log(1 + z) along the line of sight, with a weight that is a parabola in each cell.

    The integral of sigma(L + u) times the weight is the sum over cell edges of S1, S2 and S3 there, times the
    discontinuities of the weight, its slope and its curvature. The last axis may be that of several ions.

    Attributes
    ----------
    edge : (cells + 1,)
        u at the edges of the cells.
    first, second, third : (cells + 1, ...)
        Discontinuities of the value, the slope and the curvature.
    """

    edge: jax.Array
    first: jax.Array
    second: jax.Array
    third: jax.Array


def parabolic_cells(z: jax.Array, weight: Any, num_cells: int) -> Cells:
    """Return the cells of a weight: equal cells from u = 0 to log(1 + z), with a least-squares parabola in each.

    ``weight`` is a function of u. Linear weights would suffice for the sum of all ions. But just above the iron edge of
    a hot gas at the source, only the end of the last cell contributes, and linear weights are wrong there by 1e-3. No
    expression divides by the width of a cell, so that value and gradient are finite at redshift 0.
    """
    x, w = (a.astype(z.dtype) for a in np.polynomial.legendre.leggauss(_NODES))
    edge = jnp.log1p(z) * np.linspace(0.0, 1.0, num_cells + 1).astype(z.dtype)
    half = 0.5 * (edge[1:] - edge[:-1])
    u = 0.5 * (edge[1:] + edge[:-1])[:, None] + half[:, None] * x

    def with_slope(u):
        return jax.jvp(weight, (u,), (jnp.ones_like(u),))

    (values, slopes), (_, curvatures) = jax.jvp(with_slope, (u,), (jnp.ones_like(u),))

    def project(values_at_nodes, weights):
        return jnp.einsum("cn...,n->c...", values_at_nodes, weights)

    # Projections on the Legendre polynomials, integrated by parts.
    mean = 0.5 * project(values, w)
    linear = 0.75 * project(slopes, w * (1.0 - x**2))
    quadratic = 15.0 / 16.0 * project(curvatures, w * (1.0 - x**2) ** 2)
    half = half.reshape(-1, *(1,) * (mean.ndim - 1))
    centre = mean + quadratic * half**2 / 3.0
    # Value, slope and curvature at the lower and the upper end of each cell.
    ends = (
        (centre - linear * half, centre + linear * half),
        (linear - quadratic * half, linear + quadratic * half),
        (quadratic, quadratic),
    )
    zero = jnp.zeros_like(mean[:1])
    discontinuities = (jnp.concatenate([low, zero]) - jnp.concatenate([zero, high]) for low, high in ends)
    return Cells(edge, *discontinuities)


def weighted_integral(cells: Cells, table: RunningIntegrals, log_energy: jax.Array) -> jax.Array:
    """Return the integral of sigma times the weight at log energies of any shape, for one combination of ions."""
    first, second, third = look_up(table, log_energy[..., None] + cells.edge)
    return jnp.sum(cells.first * first + cells.second * second + cells.third * third, axis=-1)


def weighted_integral_of_ions(cells: Cells, log_energy: jax.Array) -> jax.Array:
    """Return the sum over ions of the integrals of sigma times a weight; fields of ``cells`` are (cells + 1, ions)."""
    table = combine(cells.first, cells.edge.dtype)
    second, third = combine(cells.second, cells.edge.dtype), combine(cells.third, cells.edge.dtype)
    # `look_up` interpolates S_k with the slopes -S_(k-1), so both have the weights of order k. Of each of these tables
    # only the result of its own order is used; the other columns are fillers.
    tables = (
        RunningIntegrals(table.node, table.first, table.first, table.first, table.sigma_above, table.sigma_below),
        RunningIntegrals(
            table.node, second.first, second.second, second.second, second.sigma_above, second.sigma_below
        ),
        RunningIntegrals(table.node, third.first, third.second, third.third, third.sigma_above, third.sigma_below),
    )
    axes = RunningIntegrals(None, 0, 0, 0, 0, 0)  # type: ignore[arg-type]
    look_up_ions = jax.vmap(look_up, in_axes=(axes, -1), out_axes=-1)
    L = log_energy[..., None] + cells.edge
    parts = [look_up_ions(running, L)[order] for order, running in enumerate(tables)]
    return jnp.sum(parts[0] + parts[1] + parts[2], axis=-1)


def combine(weights: jax.Array, dtype: Any) -> RunningIntegrals:
    """Return the table of weighted sums over ions, with columns (..., nodes), for weights (..., ions)."""
    table = running_integrals()

    def summed(column):
        return jnp.matmul(weights, column.T.astype(dtype), precision=jax.lax.Precision.HIGHEST)

    node = jnp.asarray(table.node.astype(dtype))
    return RunningIntegrals(node, *(summed(column) for column in table[1:]))


def weights_of(cosmology: Cosmology, density_slope, metallicity, metallicity_slope):
    """Return the weights of hydrogen and helium, and of metals, as functions of u = log(1 + z).

    With a constant comoving density that of hydrogen is (1 + z)^3 / E: (1 + z)^2 / E dz is (1 + z)^3 / E du.
    """

    def weight(u):
        inverse_e, positive = guarded_inverse_e(u, cosmology)
        return jnp.exp((3.0 + density_slope) * u) * jnp.where(positive, inverse_e, jnp.nan)

    def metal_weight(u):
        return weight(u) * metallicity * 10.0 ** (metallicity_slope * jnp.expm1(u))

    return weight, metal_weight


def weights_along(z: float, cosmology: Cosmology, density_slope, metallicity_slope, num_cells: int) -> list[Cells]:
    """Return the cells of hydrogen and helium, and of metals, as NumPy arrays."""
    cells = _weights_along(jnp.asarray(z), cosmology, density_slope, metallicity_slope, num_cells=num_cells)
    return jax.tree.map(np.asarray, cells)


@functools.partial(jax.jit, static_argnames="num_cells", compiler_options=QUICK)
def _weights_along(z, cosmology, density_slope, metallicity_slope, *, num_cells):
    """Compiled part of `weights_along`."""
    weights = weights_of(cosmology, density_slope, 1.0, metallicity_slope)
    return [parabolic_cells(z, weight, num_cells) for weight in weights]


def one_number(name: str, value: ArrayLike) -> ArrayLike:
    """Return a scalar; raise ValueError if the value is an array."""
    if jnp.ndim(value):
        raise ValueError(f"{name}: expected one number (for several, jax.vmap); found shape {jnp.shape(value)}.")
    return value


def checked_cells(num_cells: int) -> int:
    """Return the number of cells; raise ValueError if it is not a positive whole number."""
    if not isinstance(num_cells, int | np.integer) or num_cells < 1:
        raise ValueError(f"num_cells: expected a whole number, 1 or more; found {num_cells!r}.")
    return int(num_cells)


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
    xi_band: str | tuple[float, float] = "definition",
    density_slope: ArrayLike = 0.0,
    metallicity_slope: ArrayLike = 0.0,
    temperature_slope: ArrayLike = 0.0,
    num_cells: int = NUM_CELLS,
) -> jax.Array:
    """Return the optical depth of a homogeneous ionised medium between the observer and redshift z.

    Parameters
    ----------
    energy : array of any shape
        Observed photon energy [keV], 0.03 to 500 / (1 + z).
    z : scalar
        Redshift of the source, 0 to 10. For several sources, `jax.vmap`.
    n0 : scalar
        Density of hydrogen nuclei at redshift 0 [cm^-3]; at redshift z it is n0 (1 + z)^(3 + density_slope).
    log10_T : scalar
        Logarithm of the temperature [K] at redshift 0; T ~ (1 + z)^temperature_slope. 4 to 8 along the whole line of
        sight.
    cosmology : Cosmology
        Cosmology of the line of sight.
    log10_xi : scalar
        Logarithm of the ionisation parameter [erg cm/s], see `ion_fractions`.
    metallicity : scalar
        Abundance of elements heavier than helium at redshift 0 relative to the abundance table, at least 0. At redshift
        z it is multiplied by 10^(metallicity_slope z).
    abundances : str or (30,) array
        As in `neutral_cross_section`.
    mode, rates, photon_index, xi_band
        As in `ion_fractions`.
    density_slope, metallicity_slope, temperature_slope : scalar
        Evolution with redshift, as defined above. An evolving temperature takes some 20 times longer, because each ion
        then has a different weight along the line of sight.
    num_cells : int
        Number of cells in log(1 + z).

    Returns
    -------
    array of the shape of energy
        0 at redshift 0; NaN where a traced argument is outside its domain, or if E(z')^2 is not positive for some z'
        between 0 and z.

    Raises
    ------
    ValueError
        For arguments outside their domain, or unknown names.

    Notes
    -----
    tau = n0 c / H0 sum_ion A_Z int_0^z X_ion sigma_ion(E (1 + z')) (1 + z')^2 / E(z') dz'

    for a constant comoving density (Starling et al. 2013, MNRAS 431, 3159), with abundances A_Z and ion fractions
    X_ion. It is computed by product integration: the weight is a parabola in each cell, and the cross section enters
    through its running integrals, so edges cause no error. Largest relative error over 0.3 to 9.9 keV, z from 0.01 to
    9, all T, xi and modes: 5e-5; 2e-4 where the temperature evolves (``tests/absorption/test_whim.py``). The integral
    is a difference of running integrals. It is therefore computed in double precision, whatever JAX's default, and
    returned in the precision of the arguments.

    n0 and the metallicity are degenerate except for the absorption by H and He; with collisional ionisation, n0 and T
    are degenerate along a curve. Not included: resonance lines and the fine structure of edges.

    Examples
    --------
    >>> from hbm_jax.cosmology import Cosmology
    >>> flat = Cosmology.flat(H0=70.0, Om0=0.3)
    >>> whim_optical_depth(0.5, 2.0, n0=1e-7, log10_T=6.0, cosmology=flat)
    """
    one_of("mode", mode, MODES)
    one_of("collection of rates", rates, RATES)
    num_cells = checked_cells(num_cells)
    if not isinstance(cosmology, Cosmology):
        raise ValueError(f"cosmology: expected a Cosmology; found {cosmology!r}.")
    number_abundances = as_abundances(abundances)
    scalars = {"z": z, "n0": n0, "log10_T": log10_T, "log10_xi": log10_xi, "metallicity": metallicity}
    scalars |= {"photon_index": photon_index, "density_slope": density_slope}
    scalars |= {"metallicity_slope": metallicity_slope, "temperature_slope": temperature_slope}
    for name, value in scalars.items():
        one_number(name, value)
    z, in_z = within("z", z, 0.0, MAX_REDSHIFT)
    n0, in_n0 = within("n0", n0, 0.0, math.inf, "cm^-3")
    metallicity, in_metallicity = within("metallicity", metallicity, 0.0, math.inf)
    concrete_z = concrete(z)
    max_energy = MAX_ENERGY / (1.0 + (0.0 if concrete_z is None else float(concrete_z)))
    energy, in_energy = within("energy", energy, MIN_ENERGY, max_energy, "keV")
    dtype = jnp.result_type(energy, z, n0, *jax.tree.leaves(cosmology), log10_T, metallicity)
    slopes = (density_slope, metallicity_slope, temperature_slope)
    arguments = (energy, z, n0, log10_T, log10_xi, metallicity, photon_index, *slopes, number_abundances, cosmology)
    within("log10_T", log10_T, *LOG10_T)
    log10_T_source = jnp.add(log10_T, temperature_slope * jnp.log10(1.0 + z))
    within("log10_T at the source", log10_T_source, *LOG10_T)
    evolving = not (isinstance(temperature_slope, int | float) and temperature_slope == 0)
    with jax.enable_x64(True):
        doubles = jax.tree.map(lambda value: jnp.asarray(value, jnp.float64), arguments)
        domains = (in_energy, in_z, in_n0 & in_metallicity)
        static = {"mode": mode, "rates": rates, "evolving": evolving, "num_cells": num_cells, "dtype": dtype}
        static["xi_band"] = band_of_xi(xi_band)
        return _integral(domains, *doubles, **static)


@functools.partial(jax.jit, static_argnames=("mode", "rates", "evolving", "num_cells", "dtype", "xi_band"))
def _integral(
    domains, energy, z, n0, T, xi, metallicity, index, density_slope, metallicity_slope, temperature_slope, abundances,
    cosmology, *, mode, rates, evolving, num_cells, dtype, xi_band,
):  # fmt: skip
    """Return the optical depth of arguments in double precision; `domains` are the masks of their domains."""
    in_energy, in_z, inside = domains
    in_energy = in_energy & (energy * (1.0 + z) <= MAX_ENERGY)
    inside = in_energy & in_z & inside & (cosmology.H0 > 0)
    log_energy, z = jnp.log(jnp.where(in_energy, energy, 1.0)), jnp.where(in_z, z, 0.0)
    weight, metal_weight = weights_of(cosmology, density_slope, metallicity, metallicity_slope)
    fractions = functools.partial(ion_fractions, mode=mode, rates=rates, photon_index=index, xi_band=xi_band)
    per_hydrogen = abundances[_Z - 1]
    if evolving:

        def ion_weight(u):
            """Return the weight of each ion along the line of sight, (..., ions)."""
            weights = jnp.where(METAL, metal_weight(u)[..., None], weight(u)[..., None])
            return (
                weights * fractions(T + temperature_slope * u / math.log(10.0), xi)[..., ABSORBING_INDEX] * per_hydrogen
            )

        tau = weighted_integral_of_ions(parabolic_cells(z, ion_weight, num_cells), log_energy)
    else:
        ion_abundances = fractions(T, xi)[ABSORBING_INDEX] * per_hydrogen
        light, metals = (combine(jnp.where(metal == METAL, ion_abundances, 0.0), T.dtype) for metal in (False, True))
        tau = weighted_integral(parabolic_cells(z, weight, num_cells), light, log_energy)
        tau = tau + weighted_integral(parabolic_cells(z, metal_weight, num_cells), metals, log_energy)
    return masked((n0 * COLUMN / cosmology.H0 * tau).astype(dtype), inside)
