"""Multiplicative components of spectral models: absorbers and constant factors."""

import dataclasses
import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hbm_jax.absorption import MODES, WhimIons, WhimTable, neutral_cross_section
from hbm_jax.absorption.abundances import as_abundances
from hbm_jax.absorption.domain import LOG10_XI, MAX_ENERGY, MIN_ENERGY, one_of
from hbm_jax.absorption.ionization import XI_BAND, band_of_xi, xi_shift
from hbm_jax.absorption.neutral import MODELS, Grains
from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter
from hbm_jax.absorption.whim import MAX_REDSHIFT
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import elementwise, precomputed
from hbm_jax.spectra.model.composition import Component, Parameter, Values
from hbm_jax.validation import Floats
from hbm_jax.xla_options import QUICK

_ROUNDING = 1e-6  # relative tolerance of the energy limits
_CELLS = 16384  # of the grid in ln E of the integrated neutral cross section
_NUM_Z = 6  # Chebyshev nodes in ln(1 + z) at which the WHIM is tabulated over the range of a free redshift


@dataclass(frozen=True)
class _Multiplicative(Component):
    """Multiplicative component."""

    kind: ClassVar[str] = "multiplicative"
    smooth: ClassVar[bool] = True


@dataclass(frozen=True)
class _Absorber(_Multiplicative):
    """Absorber at one redshift, or at one for each source, or at a redshift that is a parameter."""

    absorbs: ClassVar[bool] = True
    _: KW_ONLY
    z: Any = None

    def _of_source(self, index):
        return dataclasses.replace(self, z=self.z[index]) if np.ndim(self.z) == 1 else self

    def at_redshift(self, values: Values) -> Component:
        """Return the component with a free redshift fixed at its value in `values`."""
        if "z" not in self.own_parameters:
            return self
        return dataclasses.replace(self, z=float(np.ravel(values[self._prefixed("z")])[0]))


@dataclass(frozen=True)
class Constant(_Multiplicative):
    """Factor independent of energy, such as a cross-calibration constant between instruments.

    Examples
    --------
    >>> list(Constant("epic").parameters)
    ['epic_factor']
    """

    flat: ClassVar[bool] = True
    own_parameters: ClassVar[dict[str, Parameter]] = {"factor": Parameter("", "LogNormal(0.0, 0.1)", "constant factor")}

    def _tables(self, energy):
        return np.ones(energy.shape)

    def _evaluate(self, tables, values):
        factor = self._unprefixed(values)["factor"]
        return factor[..., None] * jnp.asarray(tables, factor.dtype)


def _redshift(z: Any) -> Any:
    """Return a redshift as a float, or several as a tuple, so that components are hashable."""
    numbers = np.asarray(z, dtype=float)
    if numbers.ndim > 1 or not (np.isfinite(numbers) & (numbers > -1)).all() or numbers.size == 0:
        raise ValueError(f"z: expected a redshift above -1, or one for each source; found {z!r}.")
    return float(numbers) if not numbers.ndim else tuple(numbers.tolist())


def _abundances(abundances: Any) -> Any:
    """Return abundances as the name of a table, or as a tuple of numbers."""
    if isinstance(abundances, str):
        as_abundances(abundances)
        return abundances
    return tuple(np.asarray(abundances, dtype=float).tolist())


def _at_redshift(energy: np.ndarray, z: Any) -> np.ndarray:
    """Return energies (..., K) in the rest frame of an absorber, for one redshift or one per row."""
    if not isinstance(z, tuple):
        return energy * (1.0 + z)
    if energy.ndim < 2 or energy.shape[-2] != len(z):
        raise ValueError(
            f"energy: expected a row for each of {len(z)} redshifts; found an array of shape {energy.shape}. Use "
            f"`of_source` for a single source."
        )
    return energy * (1.0 + np.asarray(z))[:, None]


def _cross_section(energy, abundances, model, grains, molecules):
    """Return `neutral_cross_section`; abundances are hashable."""
    numbers = abundances if isinstance(abundances, str) else np.asarray(abundances)
    return neutral_cross_section(energy, model=model, abundances=numbers, grains=grains, molecules=molecules)


_compiled_cross_section = jax.jit(
    _cross_section, static_argnames=("model", "abundances", "grains", "molecules"), compiler_options=QUICK
)


def precise_cross_section(
    energy: ArrayLike,
    abundances: Any = "wilm",
    model: str = "tbabs",
    grains: bool | Grains = True,
    molecules: bool | float = True,
) -> Floats:
    """Return `neutral_cross_section` [1e-22 cm^2 per H] in double precision, for energies [keV] of any shape."""
    options = abundances, model, grains, molecules
    return elementwise(lambda chunk: _compiled_cross_section(chunk, *options), energy)


@functools.cache
def neutral_integral(*options: Any) -> Floats:
    """Integrate the neutral cross section over ln E, from each node of a uniform grid to its end, (16385,).

    The options are those of `precise_cross_section`.
    """
    edges = np.linspace(np.log(MIN_ENERGY), np.log(MAX_ENERGY), _CELLS + 1)
    x, w = np.polynomial.legendre.leggauss(3)
    half = 0.5 * (edges[1] - edges[0])
    energy = np.exp(0.5 * (edges[1:] + edges[:-1])[:, None] + half * x)
    cells = half * precise_cross_section(np.clip(energy, MIN_ENERGY, MAX_ENERGY), *options) @ w
    return np.append(np.cumsum(cells[::-1])[::-1], 0.0)


def bin_average(integral, log_edges):
    """Return the mean over ln E of the neutral cross section in bins, (..., K), from their edges, (..., K + 1).

    Both arguments are NumPy arrays, or both are JAX arrays; the first is the result of `neutral_integral`.
    """
    step = (math.log(MAX_ENERGY) - math.log(MIN_ENERGY)) / _CELLS
    position = (log_edges - math.log(MIN_ENERGY)) / step
    cell = position.clip(0, _CELLS - 1).astype(int)
    t = position - cell
    values = (1.0 - t) * integral[cell] + t * integral[cell + 1]
    return (values[..., :-1] - values[..., 1:]) / (log_edges[..., 1:] - log_edges[..., :-1])


def _lagrange(nodes, u):
    """Return Lagrange weights (n, R) of nodes (n, R) for interpolation at u (n,)."""
    nodes, is_same = jnp.asarray(nodes), np.eye(np.shape(nodes)[1], dtype=bool)
    distances = jnp.where(is_same, 1.0, nodes[:, :, None] - nodes[:, None, :])
    return jnp.prod(jnp.where(is_same, 1.0, (u[:, None, None] - nodes[:, None, :]) / distances), axis=2)


@dataclass(frozen=True)
class Absorption(_Absorber):
    """Absorption by cold interstellar matter, exp(-nh sigma(E (1 + z))), in the Milky Way or a host galaxy.

    ``nh`` is the hydrogen column density [1e22 cm^-2]. At a fixed redshift the cross section is precomputed in double
    precision. Raises ValueError if the redshift, model or abundance table is invalid. `on` raises it for energies
    outside 0.03 to 500 keV in the rest frame of the absorber.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    z : float, tuple or None
        Redshift of the absorber. A tuple gives one for each source; energies then have one row per source. None makes
        the redshift a parameter ``z``: the cross section is computed at each evaluation, and the energies of the
        absorption edges are not known in advance.
    model, abundances, grains, molecules
        As in `hbm_jax.absorption.neutral_cross_section`.

    Examples
    --------
    >>> mw = Absorption("mw")
    >>> transmission = mw.on([0.5, 1.0])({"mw_nh": 0.1})
    >>> bool((transmission < 1).all())
    True
    """

    _: KW_ONLY
    z: Any = 0.0
    model: str = "tbabs"
    abundances: Any = "wilm"
    grains: bool | Grains = True
    molecules: bool | float = True

    def __post_init__(self):
        one_of("model", self.model, MODELS)
        if self.z is not None:
            object.__setattr__(self, "z", _redshift(self.z))
        object.__setattr__(self, "abundances", _abundances(self.abundances))

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Column density, and the redshift if it is not fixed."""
        column = {"nh": Parameter("1e22/cm^2", "LogNormal(-1.5, 1.5)", "hydrogen column density")}
        return column | (
            {"z": Parameter("", "Uniform(0.0, 10.0)", "redshift of the absorber")} if self.z is None else {}
        )

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """True if the energies of the absorption edges are known."""
        return self.z is not None

    @property
    def _options(self):
        return self.abundances, self.model, self.grains, self.molecules

    def _without_tables(self):
        """Return the component with another redshift, the same for all sources, if the redshift is fixed."""
        return self if self.z is None else dataclasses.replace(self, z=0.0)

    def _tables(self, energy):
        """Return the cross section [1e-22 cm^2 per H]; the energies if the redshift is a parameter."""
        if self.z is None:
            return energy
        energy = _at_redshift(self._concrete(energy), self.z)
        outside = ~((energy >= MIN_ENERGY * (1 - _ROUNDING)) & (energy <= MAX_ENERGY * (1 + _ROUNDING)))
        if outside.any():
            raise ValueError(
                f"{self}: expected energies within {MIN_ENERGY} and {MAX_ENERGY:g} keV at the absorber; found "
                f"{energy[outside][0]:g} keV."
            )
        return precise_cross_section(energy, *self._options)

    def _bin_tables(self, edges):
        """Return the mean cross section in bins; with a free redshift, its integral over ln E and ln of the edges."""
        integral = neutral_integral(*self._options)
        if self.z is None:
            return integral, np.log(edges)
        return bin_average(integral, np.log(_at_redshift(edges, self.z)))

    def _log(self, tables, values):
        """Return minus the optical depth; with a free redshift, ``tables`` are energies, or integral and bin edges."""
        params = self._unprefixed(values)
        nh = params["nh"][..., None]
        if self.z is not None:
            return -nh * jnp.asarray(tables, nh.dtype)
        stretch = 1.0 + params["z"][..., None]
        if isinstance(tables, tuple):
            integral, log_edges = tables
            return -nh * bin_average(jnp.asarray(integral), log_edges + jnp.log(stretch))
        return -nh * _cross_section(jnp.asarray(tables, nh.dtype) * stretch, *self._options)

    def discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the energies of the absorption edges [keV]; empty if the redshift is a parameter."""
        stretch = 1.0 + np.ravel([] if self.z is None else self.z)
        return np.unique(np.concatenate([[], *(edges_of_neutral_matter(low * s, high * s) / s for s in stretch)]))


@dataclass(frozen=True)
class Whim(_Absorber):
    """Absorption by the warm-hot intergalactic medium, computed by `hbm_jax.absorption.WhimTable` or `WhimIons`.

    `on` takes seconds per hundred thousand energies, and 0.8 kB of memory per energy (1.6 kB if the metallicity is a
    parameter). Raises ValueError if an argument is outside its domain; `on` raises it for energies outside the domain.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    z : float or tuple
        Redshift of the source. A tuple gives one for each source; energies then have one row per source. A pair of
        tuples, the lowest and the highest redshift of each source, makes the redshift a parameter ``z``. None if a
        population of sources provides redshifts and cosmology, as `hbm_jax.models.Afterglow` does.
    cosmology : Cosmology
        Background cosmology.
    metallicity : float or None
        Metallicity relative to the abundance table; None makes it a parameter.
    mode, abundances, rates, photon_index, xi_band
        As in `hbm_jax.absorption.whim_optical_depth`.
    log10_xi : float or None
        Logarithm of the ionisation parameter [erg cm/s]; None makes it and the metallicity parameters, the same for all
        sources.
    double, log10_temperatures
        As in `hbm_jax.absorption.WhimTable`; see also `tabulated_for`.

    Examples
    --------
    >>> whim = Whim(z=1.5, cosmology=Cosmology.flat(H0=70.0, Om0=0.3))
    >>> list(whim.parameters)
    ['log10_n0', 'log10_T']
    """

    _: KW_ONLY
    cosmology: Cosmology | None = None
    metallicity: float | None = 1.0
    mode: str = "photo+collisional"
    abundances: Any = "wilm"
    log10_xi: float | None = 0.0
    rates: str = "modern"
    photon_index: float = 2.0
    xi_band: str | tuple[float, float] = "definition"
    double: bool = False
    log10_temperatures: tuple[float, ...] | None = None

    def __post_init__(self):
        one_of("mode", self.mode, MODES)
        band_of_xi(self.xi_band)
        if self.z is None:
            return
        z = tuple(map(_redshift, self.z)) if np.ndim(self.z) == 2 else _redshift(self.z)
        object.__setattr__(self, "z", z)
        limits = (("z", self.z, (0.0, MAX_REDSHIFT)), ("log10_xi", self.log10_xi or 0.0, LOG10_XI))
        for name, value, (low, high) in limits:
            if not (np.min(value) >= low and np.max(value) <= high):
                raise ValueError(f"{name}: expected {low:g} to {high:g}; found {value}.")
        if not isinstance(self.cosmology, Cosmology):
            raise ValueError(f"cosmology: expected a Cosmology; found {self.cosmology!r}.")
        object.__setattr__(self, "abundances", _abundances(self.abundances))

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Density and temperature, and ionisation parameter, metallicity and redshift if they are not fixed."""
        parameters = {
            "log10_n0": Parameter("1/cm^3", "Normal(-7.0, 1.0)", "density of hydrogen nuclei at redshift 0"),
            "log10_T": Parameter("K", "Uniform(4.0, 8.0)", "temperature"),
        }
        if self.log10_xi is None:
            parameters["log10_xi"] = Parameter("erg cm/s", "Uniform(-2.0, 4.0)", "ionisation parameter")
        if self.metallicity is None or self.log10_xi is None:
            parameters["metallicity"] = Parameter(
                "solar", "LogNormal(-1.2, 1.0)", "abundance of elements heavier than helium"
            )
        if self._free_redshift:
            parameters["z"] = Parameter("", "Uniform(0.0, 10.0)", "redshift of the source")
        return parameters

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """True if the redshift is fixed."""
        return not self._free_redshift

    @property
    def _free_redshift(self) -> bool:
        return np.ndim(self.z) == 2

    def _without_tables(self):
        """Return the component with other choices, the same for all sources."""
        z = ((0.0,), (0.0,)) if self._free_redshift else 0.0
        choices: dict[str, Any] = {"mode": MODES[0], "abundances": "wilm", "rates": "modern", "double": False}
        return dataclasses.replace(self, z=z, log10_temperatures=None, xi_band="definition", **choices)

    def _tables(self, energy):
        """Return the table of the optical depth, an empty array of the shape of its rows, ln(1 + z) and shift of xi.

        ln(1 + z) of the nodes, (rows, _NUM_Z), is None if the redshift is fixed.
        """
        energy = self._concrete(energy)
        if self.z is None:
            raise ValueError(f"{self}: expected the redshift of a source and a cosmology; found none.")
        # The empty array carries the shape of the energies, which is static even if the array is traced.
        empty = np.zeros((*energy.shape[:-1], 0))
        if not self._free_redshift:
            _at_redshift(energy, self.z)  # raises unless there is a row of energies for each redshift
            z = np.broadcast_to(self.z, energy.shape[:-1]).ravel()
            return self._table(energy.reshape(-1, energy.shape[-1]), z), empty, None, self._xi_shift
        low, high = np.log1p(self.z)
        nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(_NUM_Z) + 0.5) / _NUM_Z)
        log1p_z = low[:, None] + (high - low)[:, None] * nodes
        table = self._table(np.repeat(energy, _NUM_Z, axis=0), np.expm1(log1p_z).ravel())
        return table, np.repeat(empty, _NUM_Z, axis=0), log1p_z, self._xi_shift

    @property
    def _xi_shift(self) -> np.ndarray:
        """Correction to log10 xi from the chosen band to that of the tables."""
        if band_of_xi(self.xi_band) == XI_BAND:
            return np.zeros(())
        return precomputed(lambda: np.asarray(xi_shift(self.photon_index, self.xi_band)))

    def _table(self, energy, z) -> WhimTable | WhimIons:
        """Return the precomputed optical depth for energies (num, num_energies) and redshifts (num,)."""
        options: dict[str, Any] = {key: getattr(self, key) for key in ("cosmology", "mode", "rates", "photon_index")}
        options["abundances"] = self.abundances if isinstance(self.abundances, str) else np.asarray(self.abundances)
        if self.log10_xi is None:
            return WhimIons(energy, z, **options)
        log10_xi = self.log10_xi + float(self._xi_shift)
        fixed: dict[str, Any] = {"metallicity": self.metallicity, "log10_xi": log10_xi, "double": self.double}
        fixed["log10_temperatures"] = self.log10_temperatures
        return WhimTable(energy, z, **options, **fixed)

    def _log(self, tables, values):
        """Return minus the optical depth, from the results of `_tables`."""
        table, empty, nodes, shift = tables
        params = self._unprefixed(values)
        if self.log10_xi is None:
            params["log10_xi"] = params["log10_xi"] + jnp.asarray(shift, params["log10_xi"].dtype)
        log1p_z = jnp.log1p(params.pop("z")) if self._free_redshift else None
        arguments = [10.0 ** params["log10_n0"], *(params[name] for name in list(params)[1:])]
        if log1p_z is None:
            return -_optical_depth(table, empty.shape[:-1], arguments)
        arguments = [jnp.repeat(argument, _NUM_Z, axis=0) if argument.ndim else argument for argument in arguments]
        weights = _lagrange(nodes, log1p_z)
        tau = _optical_depth(table, empty.shape[:-1], arguments)
        return -jnp.einsum("nr,nrk->nk", weights, tau.reshape(*weights.shape, -1))

    def slope_discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the energies [keV] of all ionic edges at redshift 0 and at the sources, in increasing order.

        Absorption between these redshifts turns the edges of the ions into discontinuities of slope at both ends.
        """
        stretch = 1.0 + np.unique(np.append(np.ravel(0.0 if self.z is None else self.z), 0.0))
        return np.unique(np.concatenate([edges_of_ions(low * s, high * s) / s for s in stretch]))

    def in_double_precision(self) -> "Whim":
        """Return the medium with tables in double precision."""
        return dataclasses.replace(self, double=True)

    def tabulated_for(self, values: Values) -> "Whim":
        """Return the medium with tables at the temperatures among the values."""
        if self.log10_xi is None:
            return self
        temperatures = np.unique(np.asarray(values[self._prefixed("log10_T")], float))
        return dataclasses.replace(self, log10_temperatures=tuple(temperatures.tolist()))


def _optical_depth(table: WhimTable | WhimIons, rows: tuple[int, ...], arguments: list[jax.Array]) -> jax.Array:
    """Return the optical depth for arguments that broadcast against rows of energies, (..., *rows, num_energies)."""
    if all(argument.shape in ((), rows) for argument in arguments):
        return table(*(argument.ravel() if argument.ndim else argument for argument in arguments)).reshape(*rows, -1)
    shape = jnp.broadcast_shapes(*(argument.shape for argument in arguments), rows)
    flat = [jnp.broadcast_to(argument, shape).reshape(-1, math.prod(rows)) for argument in arguments]
    if isinstance(table, WhimIons):  # its other arguments are the same for all rows
        flat = [flat[0], *(argument[:, 0] for argument in flat[1:])]
    return jax.vmap(table.__call__)(*flat).reshape(*shape, -1)
