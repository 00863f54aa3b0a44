"""Optical depth of the warm-hot intergalactic medium, tabulated over temperature for sources of known redshift."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import sparse

from hbm_jax.absorption.abundances import as_abundances
from hbm_jax.absorption.domain import LOG10_T, MAX_ENERGY, MIN_ENERGY, masked, one_of, within
from hbm_jax.absorption.ionization import MODES, ion_fractions
from hbm_jax.absorption.rates import ABSORBING, RATES
from hbm_jax.absorption.running_integrals import hermite_weights, running_integrals
from hbm_jax.absorption.whim import (
    ABSORBING_INDEX,
    COLUMN,
    MAX_REDSHIFT,
    METAL,
    NUM_CELLS,
    Cells,
    checked_cells,
    weights_along,
)
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import cached_once, on_every_core, precomputed
from hbm_jax.validation import concrete
from hbm_jax.xla_options import QUICK

# A step of 1/48 in log10 T. In collisional gas an ion appears and disappears within 0.3 in log10 T. A step of 0.05 has
# an error of 2e-4 in a transmission; a step of 1/32 has 1e-4, and 1e-2 in the slope of ln(tau). The error falls as the
# fourth power of the step.
NUM_TEMPERATURES = 193
_STEP = (LOG10_T[1] - LOG10_T[0]) / (NUM_TEMPERATURES - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class WhimTable:
    """Optical depth of the warm-hot intergalactic medium for fixed energies, redshifts and cosmology.

    The precomputed form of `whim_optical_depth`: everything that does not depend on density, temperature or metallicity
    is computed once. An optical depth then costs eight multiply-adds, or four if the metallicity is fixed.

    Parameters
    ----------
    energy : (num_energies,) or (num_sources, num_energies)
        Observed photon energies [keV], 0.03 to 500 / (1 + max(z)).
    z : scalar or (num_sources,)
        Redshifts, 0 to 10.
    cosmology : Cosmology
        Cosmology of the lines of sight.
    metallicity : float, optional
        Fixed metallicity, which halves memory and work. None: the metallicity is an argument of each evaluation.
    log10_xi, abundances, mode, rates, photon_index, density_slope, metallicity_slope, num_cells
        As in `whim_optical_depth`.
    double : bool
        True: store the table in double precision; False: in single precision.
    log10_temperatures : tuple of float, optional
        Store the optical depth at these temperatures only, which takes less memory. The table then returns the values
        at the stored temperature nearest to its argument.

    Attributes
    ----------
    coefficients : (195, ..., 2, num_energies) or (195, ..., 1, num_energies)
        Coefficients of cubic B-splines in log10 T, for hydrogen and helium and for metals, or for their sum at a fixed
        metallicity, [1 per n0 in cm^-3]. With ``log10_temperatures``, the values at each of them instead.
    log10_T : (num_temperatures,) or None
        ``log10_temperatures``.

    Raises
    ------
    ValueError
        For arguments outside their domain, unknown names, or shapes that do not match.

    Notes
    -----
    A transmission exp(-tau) differs from that of `whim_optical_depth` by less than 1e-4, for all modes, log10 T from 4
    to 8, energies from 0.3 keV and any density (``tests/absorption/test_whim.py``). A temperature that evolves with
    redshift needs `whim_optical_depth`. The table is computed in double precision, whatever JAX's default, and
    evaluated in the precision of the arguments. The object is a pytree: pass it to a compiled function as an argument.

    Examples
    --------
    >>> from hbm_jax.cosmology import Cosmology
    >>> table = WhimTable(np.linspace(0.3, 10.0, 500), [0.5, 2.0], cosmology=Cosmology.flat(H0=70.0, Om0=0.3))
    >>> table(n0=1e-7, log10_T=6.0).shape
    (2, 500)
    """

    energy: Any
    z: Any
    _: KW_ONLY
    coefficients: Any = None
    log10_T: Any = None
    cosmology: InitVar[Cosmology | None] = None
    metallicity: InitVar[float | None] = None
    log10_xi: InitVar[float] = 0.0
    abundances: InitVar[Any] = "wilm"
    mode: InitVar[str] = "photo+collisional"
    rates: InitVar[str] = "modern"
    photon_index: InitVar[float] = 2.0
    density_slope: InitVar[float] = 0.0
    metallicity_slope: InitVar[float] = 0.0
    num_cells: InitVar[int] = NUM_CELLS
    double: InitVar[bool] = False
    log10_temperatures: InitVar[tuple[float, ...] | None] = None

    def __post_init__(
        self,
        cosmology,
        metallicity,
        log10_xi,
        abundances,
        mode,
        rates,
        photon_index,
        density_slope,
        metallicity_slope,
        num_cells,
        double,
        log10_temperatures,
    ):
        # JAX rebuilds the object from leaves of any kind; only a new object is precomputed.
        if self.coefficients is not None or self.energy is None:
            return
        if not isinstance(cosmology, Cosmology):
            raise ValueError(f"WhimTable: expected a Cosmology; found {cosmology!r}.")
        numbers = abundances if not isinstance(abundances, str) else ()
        arguments = (self.energy, self.z, cosmology, metallicity, log10_xi, numbers, photon_index)
        if any(concrete(leaf) is None for leaf in jax.tree.leaves(arguments)):
            raise ValueError(
                "WhimTable: expected numbers, because the table is computed once, before compilation; found a "
                "traced value. Use whim_optical_depth for a redshift, a cosmology or an xi that is a parameter."
            )
        num_cells = checked_cells(num_cells)
        one_of("mode", mode, MODES)
        one_of("collection of rates", rates, RATES)
        energy, z = checked_lines("WhimTable", self.energy, self.z)
        if metallicity is not None:
            within("metallicity", metallicity, 0.0, math.inf)
        values = precomputed(lambda: np.asarray(as_abundances(abundances), dtype=float))
        options = tuple(values.tolist()), float(log10_xi), mode, rates, float(photon_index)
        basis = _spline_basis(*options)
        if log10_temperatures is not None:
            object.__setattr__(self, "log10_T", np.asarray(log10_temperatures, float))
            basis = _basis_at(tuple(log10_temperatures), *options)
        slopes = (density_slope, metallicity_slope)
        dtype = np.float64 if double else np.float32
        lines = along_lines(energy, z, cosmology, basis, metallicity, slopes=slopes, num_cells=num_cells, dtype=dtype)
        shape = (lines.shape[0], *z.shape, *lines.shape[2:])
        for name, value in (("energy", energy), ("z", z), ("coefficients", lines.reshape(shape))):
            object.__setattr__(self, name, value)

    def __repr__(self):
        return f"WhimTable({np.size(self.z)} lines of sight, {np.shape(self.energy)[-1]} energies)"

    def only(self, row: int) -> "WhimTable":
        """Return the table of one line of sight, keeping the axis of sources."""
        energy = np.asarray(self.energy)
        return dataclasses.replace(
            self,
            energy=energy[row : row + 1] if energy.ndim > 1 else energy,
            z=np.asarray(self.z)[row : row + 1],
            coefficients=np.asarray(self.coefficients)[:, row : row + 1],
        )

    def __call__(self, n0: ArrayLike, log10_T: ArrayLike, metallicity: ArrayLike | None = None) -> jax.Array:
        """Return the optical depth.

        Parameters
        ----------
        n0, log10_T, metallicity : scalar or (num_sources,)
            As in `whim_optical_depth`; one for all lines of sight, or one for each. The metallicity is 1 by default,
            and must be None if it is fixed in the table.

        Returns
        -------
        (num_energies,) or (num_sources, num_energies)
            NaN where a traced argument is outside its domain.

        Raises
        ------
        ValueError
            For arguments outside their domain, or for a metallicity if it is fixed in the table.
        """
        fixed = jnp.shape(self.coefficients)[-2] == 1
        if fixed and metallicity is not None:
            raise ValueError(
                "WhimTable: expected no metallicity, because this table was set up for one metallicity; found one. "
                "Omit `metallicity` in WhimTable(...) to pass it here."
            )
        for name, value in (("n0", n0), ("log10_T", log10_T), ("metallicity", metallicity)):
            if value is not None and jnp.shape(value) not in ((), jnp.shape(self.z)):
                or_each = f", or one for each line of sight, {jnp.shape(self.z)}" if jnp.ndim(self.z) else ""
                raise ValueError(f"{name}: expected one number{or_each}; found shape {jnp.shape(value)}.")
        n0, in_n0 = within("n0", n0, 0.0, math.inf, "cm^-3")
        log10_T, in_T = within("log10_T", log10_T, *LOG10_T)
        metallicity, in_metallicity = within("metallicity", 1.0 if metallicity is None else metallicity, 0.0, math.inf)
        T = jnp.where(in_T, log10_T, 6.0)
        dtype = jnp.result_type(n0, T, metallicity)
        coefficients = jnp.asarray(self.coefficients)
        interpolate = _spline if self.log10_T is None else functools.partial(_nearest, jnp.asarray(self.log10_T))
        if T.ndim:
            interpolate = jax.vmap(interpolate, in_axes=(1, 0))
        # One group of elements after the other: XLA fuses this into one loop; both at once are four times slower.
        tau, *metals = (interpolate(coefficients[..., group, :], T.astype(dtype)) for group in range(1 if fixed else 2))
        if metals:
            tau = tau + metallicity[..., None] * metals[0]
        tau = n0[..., None] * tau
        return masked(tau, (in_n0 & in_T & in_metallicity)[..., None])


def checked_lines(name: str, energy: Any, z: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the energies and redshifts of lines of sight as arrays; `name` begins the messages.

    Raises
    ------
    ValueError
        If shapes do not match, or a value is outside its domain.
    """
    energy, z = np.asarray(energy, dtype=float), np.asarray(z, dtype=float)
    if z.ndim > 1 or energy.ndim not in (1, 1 + z.ndim) or energy.shape[:-1] not in ((), z.shape):
        raise ValueError(
            f"{name}: expected one redshift, or one for each row of energies; found redshifts {z.shape} and energies "
            f"{energy.shape}."
        )
    within("z", z, 0.0, MAX_REDSHIFT)
    within("energy", energy, MIN_ENERGY, MAX_ENERGY / (1.0 + float(z.max(initial=0.0))), "keV")
    return energy, z


def _spline(coefficients, T):
    """Return the sum of the four B-splines that are not zero at T; coefficients (knots, ...)."""
    position = (T - LOG10_T[0]) / _STEP
    interval = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)).astype(jnp.int32), 0, NUM_TEMPERATURES - 2)
    t = position - interval
    weights = (
        jnp.stack(
            [
                (1.0 - t) ** 3,
                3.0 * t**3 - 6.0 * t**2 + 4.0,
                -3.0 * t**3 + 3.0 * t**2 + 3.0 * t + 1.0,
                t**3,
            ]
        )
        / 6.0
    )
    rows = (jax.lax.dynamic_index_in_dim(coefficients, interval + k, keepdims=False) for k in range(4))
    return sum(weights[k] * row.astype(T.dtype) for k, row in enumerate(rows))


def _nearest(temperatures, coefficients, T):
    """Return the row of the coefficients for the temperature nearest to T."""
    return coefficients[jnp.argmin(jnp.abs(temperatures - T))].astype(T.dtype)


@functools.lru_cache(maxsize=4)
def _basis_at(log10_temperatures: tuple[float, ...], *options: Any) -> np.ndarray:
    """Return the running integrals of `_spline_basis` at given temperatures, (5 num_nodes, 2, temperatures)."""
    from scipy.interpolate import BSpline  # here: its import takes a tenth of a second

    knots = LOG10_T[0] + _STEP * np.arange(-3, NUM_TEMPERATURES + 3)
    weights = BSpline.design_matrix(np.clip(log10_temperatures, *knots[[3, -4]]), knots, 3).toarray()
    return _spline_basis(*options) @ weights.T


@functools.cache
def _interpolation() -> np.ndarray:
    """Return the matrix (nodes + 2, nodes) from values to coefficients of uniform cubic B-splines; not-a-knot ends."""
    num = NUM_TEMPERATURES
    matrix = np.zeros((num + 2, num + 2))
    for i in range(num):
        matrix[i, i : i + 3] = 1.0 / 6.0, 4.0 / 6.0, 1.0 / 6.0
    # Not-a-knot: the third derivative is continuous at the second node and at the last but one.
    matrix[num, :5] = matrix[num + 1, -5:] = 1.0, -4.0, 6.0, -4.0, 1.0
    return np.linalg.inv(matrix)[:, :num]


@cached_once(maxsize=32)
def _fractions_at_nodes(log10_xi, mode, rates, photon_index) -> np.ndarray:
    """Return the fractions of all ions at the temperature nodes, (nodes, ions)."""

    def fractions(nodes):
        return ion_fractions(nodes, log10_xi, mode=mode, rates=rates, photon_index=photon_index)

    run = jax.jit(fractions, compiler_options=QUICK)
    return precomputed(lambda: np.asarray(run(np.linspace(*LOG10_T, NUM_TEMPERATURES))))


@cached_once(maxsize=2)  # some 30 MB each
def _spline_basis(numbers, log10_xi, mode, rates, photon_index) -> np.ndarray:
    """Return the running integrals for each spline coefficient, of H and He and of metals, (5 num_nodes, 2, knots)."""
    fractions = _fractions_at_nodes(log10_xi, mode, rates, photon_index)
    charges = np.array([Z for Z, _ in ABSORBING])
    ion_splines = _interpolation() @ (fractions[:, ABSORBING_INDEX] * np.array(numbers)[charges - 1])  # (knots, ions)
    groups = np.stack([np.where(METAL, 0.0, ion_splines), np.where(METAL, ion_splines, 0.0)])
    table = running_integrals()
    return np.concatenate([np.einsum("ni,gki->ngk", column, groups, optimize=True) for column in table[1:]])


def along_lines(
    energy, z, cosmology, basis, metallicity, *, slopes=(0.0, 0.0), num_cells=NUM_CELLS, dtype: Any = np.float32
) -> np.ndarray:
    """Return integrals of combinations of cross sections along lines of sight.

    Parameters
    ----------
    energy : (num_energies,) or (num_sources, num_energies)
        [keV].
    z : () or (num_sources,)
        Redshifts.
    cosmology : Cosmology
        Cosmology of the lines of sight.
    basis : (5 num_nodes, 2, num_combinations)
        Running integrals of each combination of ions: the sum over ions of H and He, and that over metals.
    metallicity : float or None
        Factor of the metals in the sum of both groups; None: the groups are returned separately.
    slopes : (float, float)
        ``density_slope`` and ``metallicity_slope``.
    num_cells : int
        As in `whim_optical_depth`.
    dtype : type
        Type of the result. Single precision, with an error of 6e-8, halves the cost of an evaluation, which is
        limited by reading the table.

    Returns
    -------
    (num_combinations, num_sources, 2 or 1, num_energies)
        [1 per n0 in cm^-3].
    """
    weights = precomputed(
        lambda: [weights_along(redshift, cosmology, slopes[0], slopes[1], num_cells) for redshift in np.atleast_1d(z)]
    )
    scale = COLUMN / float(cosmology.H0)
    energies = np.broadcast_to(energy, (*np.shape(z), energy.shape[-1])).reshape(-1, energy.shape[-1])
    integrate = functools.partial(_one_source, basis=basis, scale=scale, metallicity=metallicity, dtype=dtype)
    return np.stack(on_every_core(lambda source: integrate(*source), zip(energies, weights, strict=True)), axis=1)


def _one_source(energy, weights: Sequence[Cells], basis: np.ndarray, scale: float, metallicity, dtype) -> np.ndarray:
    """Return the integrals of one source.

    They are (combinations, 2, energies), of H and He and of metals; or (combinations, 1, energies), of all of them, at
    a fixed metallicity.
    """
    coefficients = []
    for group, cells in enumerate(weights):
        functional = _functional(np.log(energy)[:, None] + cells.edge, *cells[1:])
        coefficients.append(scale * (functional @ basis[:, group]))
    if metallicity is not None:
        coefficients = [coefficients[0] + float(metallicity) * coefficients[1]]
    return np.ascontiguousarray(np.stack(coefficients).transpose(2, 0, 1), dtype=dtype)


def _functional(L, first, second, third) -> sparse.csr_matrix:
    """Return the matrix (energies, 5 x nodes) of the integral of sigma times a weight along the line of sight.

    Multiplied by the vector of S1, S2, S3, sigma above and sigma below at all nodes (see `RunningIntegrals`), it gives
    the integral at each energy. The integral is the sum over the edges of the cells of S1, S2 and S3 at ``L``,
    (energies, edges), times ``first``, ``second`` and ``third`` of `Cells`. Between the nodes S1, S2 and S3 are cubic
    Hermite interpolants, with the slopes -sigma, -S1 and -S2.
    """
    node = running_integrals().node
    interval, (v0, v1), (s0, s1) = hermite_weights(L, node)
    num = len(node)
    # Part of the vector (S1 to S3, sigma above, sigma below), end of the interval (0 or 1), and matrix element.
    entries = (
        (0, 0, first * v0 - second * s0),
        (0, 1, first * v1 - second * s1),
        (1, 0, second * v0 - third * s0),
        (1, 1, second * v1 - third * s1),
        (2, 0, third * v0),
        (2, 1, third * v1),
        (3, 0, -first * s0),
        (4, 1, -first * s1),
    )
    columns = np.stack([interval + column * num + end for column, end, _ in entries], axis=-1)
    values = np.stack([value for _, _, value in entries], axis=-1)
    row_starts = np.arange(len(L) + 1) * columns[0].size
    return sparse.csr_matrix((values.ravel(), columns.ravel(), row_starts), shape=(len(L), 5 * num))
