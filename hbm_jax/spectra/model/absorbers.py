"""Multiplicative components of spectral models: absorbers and constant factors."""

import dataclasses
import functools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.absorption import MODES, WhimTable, neutral_cross_section
from hbm_jax.absorption.abundances import as_abundances
from hbm_jax.absorption.domain import LOG10_XI, MAX_ENERGY, MIN_ENERGY, one_of
from hbm_jax.absorption.neutral import MODELS, Grains
from hbm_jax.absorption.transmission import edges_of_ions, edges_of_neutral_matter
from hbm_jax.absorption.whim import MAX_REDSHIFT
from hbm_jax.cosmology import Cosmology
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.composition import Component, Parameter

_CHUNK = 1024  # energies per evaluation of a cross section: a fixed shape compiles once
_ROUNDING = 1e-6  # relative tolerance of the energy limits


@dataclass(frozen=True)
class _Multiplicative(Component):
    """Multiplicative component."""

    kind: ClassVar[str] = "multiplicative"


@dataclass(frozen=True)
class Constant(_Multiplicative):
    """Factor independent of energy, such as a cross-calibration constant between instruments.

    Examples
    --------
    >>> list(Constant("epic").parameters)
    ['epic_factor']
    """

    flat: ClassVar[bool] = True

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """The factor."""
        return {"factor": Parameter("", "LogNormal(0.0, 0.1)", "constant factor")}

    def _tables(self, energy):
        return np.ones(energy.shape)

    def _evaluate(self, tables, values):
        factor = self._unprefixed(values)["factor"]
        return factor[..., None] * jnp.asarray(tables, factor.dtype)


def _redshift(z: Any) -> Any:
    """Return a redshift as a float, or those of several sources as a tuple, so that components can be compared."""
    numbers = np.asarray(z, dtype=float)
    if numbers.ndim > 1 or not (np.isfinite(numbers) & (numbers > -1)).all() or numbers.size == 0:
        raise ValueError(f"z: expected one redshift above -1, or one for each source; found {z!r}.")
    return float(numbers) if not numbers.ndim else tuple(numbers.tolist())


def _abundances(abundances: Any) -> Any:
    """Return abundances as the name of a table, or as a tuple of numbers."""
    if isinstance(abundances, str):
        as_abundances(abundances)
        return abundances
    return tuple(np.asarray(abundances, dtype=float).tolist())


def _at_redshift(energy: np.ndarray, z: Any) -> np.ndarray:
    """Return energies in the rest frame of an absorber, for one redshift or one per row."""
    if not isinstance(z, tuple):
        return energy * (1.0 + z)
    if energy.ndim < 2 or energy.shape[-2] != len(z):
        raise ValueError(
            f"energy: expected a row for each of {len(z)} redshifts; found an array of shape {energy.shape}. Use "
            f"`of_source` for a single source."
        )
    return energy * (1.0 + np.asarray(z))[:, None]


@functools.partial(jax.jit, static_argnames=("model", "abundances", "grains", "molecules"))
def _cross_section(energy, model, abundances, grains, molecules):
    """Return the compiled `neutral_cross_section`, with hashable abundances."""
    numbers = abundances if isinstance(abundances, str) else np.asarray(abundances)
    return neutral_cross_section(energy, model=model, abundances=numbers, grains=grains, molecules=molecules)


@dataclass(frozen=True)
class Absorption(_Multiplicative):
    """Absorption by cold interstellar matter, exp(-nh sigma(E (1 + z))), in the Milky Way or a host galaxy.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    z : float, tuple or None
        Redshift of the absorber. A tuple has one for each source, and energies then have one row per source. None makes
        the redshift a parameter ``z``: the cross section is computed at each evaluation, and the energies of the
        absorption edges are not known in advance.
    model, abundances, grains, molecules
        As in `hbm_jax.absorption.neutral_cross_section`.

    Raises
    ------
    ValueError
        If the redshift, model or abundance table is invalid. `on` raises it for energies outside 0.03 to 500 keV in the
        rest frame of the absorber.

    Notes
    -----
    ``nh`` is the hydrogen column density [1e22 cm^-2]. At a fixed redshift the cross section is precomputed in double
    precision.

    Examples
    --------
    >>> mw = Absorption("mw")
    >>> transmission = mw.on([0.5, 1.0])({"mw_nh": 0.1})
    >>> bool((transmission < 1).all())
    True
    """

    absorbs: ClassVar[bool] = True
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

    def _sigma(self, energy):
        return _cross_section(energy, self.model, self.abundances, self.grains, self.molecules)

    def _tables(self, energy):
        if self.z is None:
            return energy
        if isinstance(energy, jax.core.Tracer):
            raise ValueError(f"{self}: expected concrete energies; found traced ones.")
        energy = _at_redshift(energy, self.z)
        wrong = ~((energy >= MIN_ENERGY * (1 - _ROUNDING)) & (energy <= MAX_ENERGY * (1 + _ROUNDING)))
        if wrong.any():
            raise ValueError(
                f"{self}: expected energies within {MIN_ENERGY} and {MAX_ENERGY:g} keV at the absorber; found "
                f"{energy[wrong][0]:g} keV."
            )
        flat = np.pad(energy.ravel(), (0, -energy.size % _CHUNK), mode="edge").reshape(-1, _CHUNK)
        sigma = np.concatenate(precomputed(lambda: [np.asarray(self._sigma(chunk)) for chunk in flat]))
        return sigma[: energy.size].reshape(energy.shape)

    def _evaluate(self, tables, values):
        params = self._unprefixed(values)
        nh = params["nh"][..., None]
        sigma = jnp.asarray(tables, nh.dtype)
        if self.z is None:
            sigma = self._sigma(sigma * (1.0 + params["z"][..., None]))
        return jnp.exp(-nh * sigma)

    def jumps(self, low: float, high: float) -> np.ndarray:
        """Return the energies of the absorption edges [keV]; none if the redshift is a parameter."""
        edges = [
            edges_of_neutral_matter(low * (1.0 + z), high * (1.0 + z)) / (1.0 + z)
            for z in ([] if self.z is None else np.atleast_1d(self.z))
        ]
        return np.unique(np.concatenate([np.zeros(0), *edges]))

    def of_source(self, index: int) -> "Absorption":
        """Return the absorber with the redshift of one source."""
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self


@dataclass(frozen=True)
class Whim(_Multiplicative):
    """Absorption by the warm-hot intergalactic medium, by `hbm_jax.absorption.WhimTable`.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    z : float or tuple
        Redshift of the source. A tuple has one for each source, and energies then have one row per source.
    cosmology : Cosmology
        Background cosmology.
    metallicity : float or None
        Metallicity relative to the abundance table; None makes it a parameter.
    mode, abundances, log10_xi, rates, photon_index
        As in `hbm_jax.absorption.whim_optical_depth`.

    Raises
    ------
    ValueError
        If an argument is outside its domain; `on` raises it for energies outside the domain.

    Notes
    -----
    `on` takes seconds per hundred thousand energies, and 0.8 kB of memory per energy (1.6 kB if the metallicity is a
    parameter).

    Examples
    --------
    >>> whim = Whim(z=1.5, cosmology=Cosmology.flat(H0=70.0, Om0=0.3))
    >>> list(whim.parameters)
    ['log10_n0', 'log10_T']
    """

    absorbs: ClassVar[bool] = True
    _: KW_ONLY
    z: Any
    cosmology: Cosmology
    metallicity: float | None = 1.0
    mode: str = "photo+collisional"
    abundances: Any = "wilm"
    log10_xi: float = 0.0
    rates: str = "modern"
    photon_index: float = 2.0

    def __post_init__(self):
        one_of("mode", self.mode, MODES)
        object.__setattr__(self, "z", _redshift(self.z))
        for name, value, (low, high) in (("z", self.z, (0.0, MAX_REDSHIFT)), ("log10_xi", self.log10_xi, LOG10_XI)):
            if not (np.min(value) >= low and np.max(value) <= high):
                raise ValueError(f"{name}: expected {low:g} to {high:g}; found {value}.")
        if not isinstance(self.cosmology, Cosmology):
            raise ValueError(f"cosmology: expected a Cosmology; found {self.cosmology!r}.")
        object.__setattr__(self, "abundances", _abundances(self.abundances))

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Density and temperature, and the metallicity if it is not fixed."""
        parameters = {
            "log10_n0": Parameter("1/cm^3", "Normal(-7.0, 1.0)", "density of hydrogen nuclei at redshift 0"),
            "log10_T": Parameter("K", "Uniform(4.0, 8.0)", "temperature"),
        }
        if self.metallicity is None:
            parameters["metallicity"] = Parameter(
                "solar", "LogNormal(-1.2, 1.0)", "abundance of elements heavier than helium"
            )
        return parameters

    def _tables(self, energy):
        if isinstance(energy, jax.core.Tracer):
            raise ValueError(f"{self}: expected concrete energies; found traced ones.")
        _at_redshift(energy, self.z)
        rows = energy.reshape(-1, energy.shape[-1])
        z = np.broadcast_to(self.z, energy.shape[:-1]).ravel()
        numbers = self.abundances if isinstance(self.abundances, str) else np.asarray(self.abundances)
        # The empty array carries the shape of the energies, which is static even if the array is traced.
        table = WhimTable(
            rows,
            z,
            cosmology=self.cosmology,
            metallicity=self.metallicity,
            log10_xi=self.log10_xi,
            abundances=numbers,
            mode=self.mode,
            rates=self.rates,
            photon_index=self.photon_index,
        )
        return table, np.zeros((*energy.shape[:-1], 0))

    def _evaluate(self, tables, values):
        table, empty = tables
        params = self._unprefixed(values)
        arguments = [10.0 ** params["log10_n0"], *(params[name] for name in list(params)[1:])]
        rows = empty.shape[:-1]
        shape = jnp.broadcast_shapes(*(jnp.shape(argument) for argument in arguments), rows)
        if all(not argument.ndim for argument in arguments):
            return jnp.exp(-table(*arguments)).reshape(*rows, -1)
        flat_arguments = [jnp.broadcast_to(argument, shape).reshape(-1, math.prod(rows)) for argument in arguments]
        return jnp.exp(-jax.vmap(table.__call__)(*flat_arguments)).reshape(*shape, -1)

    def kinks(self, low: float, high: float) -> np.ndarray:
        """Return the energies [keV] of all ionic edges at redshift 0 and at the sources, in increasing order.

        Absorption between these redshifts turns the edges of the ions into discontinuities of slope at both ends.
        """
        redshifts = np.unique(np.append(np.atleast_1d(self.z), 0.0))
        return np.unique(
            np.concatenate([edges_of_ions(low * (1.0 + z), high * (1.0 + z)) / (1.0 + z) for z in redshifts])
        )

    def of_source(self, index: int) -> "Whim":
        """Return the medium along the line of sight to one source."""
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self
