"""What a photon spectrum is: a table of parameters and one pure function; and how two of them make one."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from hbm_jax.names import did_you_mean, listed

Values = Mapping[str, ArrayLike]
_WIDTH = 0.1  # in ln E, of a piece of the quadrature
_NODES = 4  # of Gauss and Legendre in a piece
_LINE_WIDTH = 0.002  # in ln E, of the bins in which an absorbed line is integrated


@dataclass(frozen=True)
class Parameter:
    """A parameter of a spectrum.

    Attributes
    ----------
    unit : str
        Empty for a pure number; of a logarithm, the unit of its argument.
    prior : str
        A broad prior in NumPyro's notation.
    help : str
        One line.
    """

    unit: str
    prior: str
    help: str


@dataclass(frozen=True)
class Component:
    """A part of a spectrum; the base of all, also of sums and products.

    Additive components are photons, multiplicative ones factors. ``a + b`` adds photons, ``a * b`` absorbs or scales
    them. Objects are frozen and hold choices only, no values of parameters.
    """

    label: str = ""
    kind: ClassVar[str] = "additive"
    absorbs: ClassVar[bool] = False
    flat: ClassVar[bool] = False  # a factor without energy dependence
    narrow: ClassVar[bool] = False  # may be narrower than any bin: its photons in bins are a formula

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Parameters by the names that the component itself has for them."""
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters by full name, ``label_name``, in order."""
        return {self._full(name): parameter for name, parameter in self.own_parameters.items()}

    def _full(self, name: str) -> str:
        return f"{self.label}_{name}" if self.label else name

    def _own(self, values: Values) -> dict[str, jax.Array]:
        """Values by own name, as arrays of one floating type."""
        given = floating(self, values)
        return {name: given[self._full(name)] for name in self.own_parameters}

    def _tables(self, energy: Any) -> Any:
        """All that depends on energy alone."""
        raise NotImplementedError

    def _evaluate(self, tables: Any, values: Values) -> jax.Array:
        raise NotImplementedError

    def on(self, energy: ArrayLike) -> Callable[[Values], jax.Array]:
        """Set the spectrum up for known energies.

        Parameters
        ----------
        energy : (..., K)
            Photon energies as observed [keV], positive. Known numbers: cross sections and tables are worked out here,
            once, in double precision. (Without absorbers they may be traced.)

        Returns
        -------
        callable
            Takes a mapping of parameter names to values, numbers or arrays that broadcast against ``energy[..., 0]``,
            and returns photons/cm^2/s/keV, or the factor of a multiplicative component, (..., K). It computes in the
            floating type of the values. It is also a pytree whose leaves are the tables: pass it to a compiled
            function as an argument and they are no constants of the program. Names it does not know are left alone.

        Raises
        ------
        ValueError
            For energies that are not positive and finite or that an absorber does not cover; from the callable, for a
            value that is missing.
        """
        if not isinstance(energy, jax.core.Tracer):
            energy = np.asarray(energy, dtype=float)
            wrong = ~(np.isfinite(energy) & (energy > 0))
            if wrong.any() or not energy.ndim:
                found = energy[wrong][0] if energy.ndim else energy
                raise ValueError(f"energy: expected an array of positive numbers [keV]; found {found}.")
        return Partial(self._evaluate, self._tables(energy))

    def jumps(self, low: float, high: float) -> np.ndarray:
        """Energies [keV] between two at which the spectrum jumps for known reasons, in order.

        These are the edges of absorbers at known redshifts; of an absorber for several sources, those of all.
        """
        return np.zeros(0)

    def kinks(self, low: float, high: float) -> np.ndarray:
        """Energies [keV] between two at which the spectrum bends for known reasons, in order."""
        return np.zeros(0)

    def of_source(self, index: int) -> "Component":
        """Return the spectrum of one source, where redshifts are given for several."""
        return self

    @property
    def unabsorbed(self) -> "Component":
        """The same without its absorbers; constant factors stay.

        Raises
        ------
        ValueError
            If nothing additive is left.
        """
        left = self._without_absorbers()
        if left is None or left.kind != "additive":
            raise ValueError(f"unabsorbed: expected a spectrum with an additive component; found {self}.")
        return left

    def _without_absorbers(self) -> "Component | None":
        return None if self.absorbs else self

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Integral over energy of energy^power times the spectrum.

        Parameters
        ----------
        values : mapping
            As for `on`, of any shape (...).
        low, high : scalar or (...)
            Of the band [keV], broadcast against the values. Where the spectrum has absorbers, known numbers.
        power : int
            0 for photons/cm^2/s, 1 for keV/cm^2/s.

        Returns
        -------
        (...)
        """
        if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
            raise ValueError(f"integral of {self}: expected a band of known energies; found a traced one.")
        energy, weights = _nodes(self, np.asarray(low, float), np.asarray(high, float))
        density = self.on(energy)(values)
        return jnp.sum(density * jnp.asarray(weights * energy**power, density.dtype), axis=-1)

    def __add__(self, other: "Component") -> "Sum":
        if not isinstance(other, Component):
            return NotImplemented
        return Sum((*_terms(self, Sum), *_terms(other, Sum)))

    def __mul__(self, other: "Component") -> "Product":
        if not isinstance(other, Component):
            return NotImplemented
        return Product((*_terms(self, Product), *_terms(other, Product)))


def _terms(one: Component, kind: type) -> tuple[Component, ...]:
    return one.parts if isinstance(one, _Composite) and type(one) is kind else (one,)


@dataclass(frozen=True)
class _Composite(Component):
    """Several components."""

    label: str = field(default="", init=False, repr=False)
    parts: tuple[Component, ...] = ()

    def __post_init__(self):
        owner: dict[str, Component] = {}
        for part in self.parts:
            for name in part.parameters:
                if name in owner:
                    raise ValueError(
                        f"parameter {name!r} belongs to both {owner[name]} and {part}: expected different names. Give "
                        f"one of them a label, as in {_example(part)}(label='second')."
                    )
                owner[name] = part

    def __str__(self):
        sign = " + " if isinstance(self, Sum) else " * "
        return "(" + sign.join(str(part) for part in self.parts) + ")"

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {name: parameter for part in self.parts for name, parameter in part.parameters.items()}

    def _tables(self, energy):
        return tuple(part.on(energy) for part in self.parts)

    def jumps(self, low: float, high: float) -> np.ndarray:
        return np.unique(np.concatenate([part.jumps(low, high) for part in self.parts]))

    def kinks(self, low: float, high: float) -> np.ndarray:
        return np.unique(np.concatenate([part.kinks(low, high) for part in self.parts]))

    def of_source(self, index: int) -> "Component":
        return type(self)(tuple(part.of_source(index) for part in self.parts))

    def _without_absorbers(self):
        left = [part for part in (part._without_absorbers() for part in self.parts) if part is not None]
        return type(self)(tuple(left)) if len(left) > 1 else (left[0] if left else None)


def _example(part: Component) -> str:
    return type(part.parts[0] if isinstance(part, _Composite) else part).__name__


@dataclass(frozen=True)
class Sum(_Composite):
    """Photons of several components; made by ``+``.

    Raises
    ------
    ValueError
        For a multiplicative part, or a parameter that two parts have.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import BlackBody, PowerLaw
    >>> spectrum = PowerLaw() + BlackBody(label="thermal")
    >>> list(spectrum.parameters)
    ['photon_index', 'log10_flux', 'thermal_kT', 'thermal_log10_flux']
    """

    def __post_init__(self):
        for part in self.parts:
            if part.kind != "additive":
                raise ValueError(f"a sum: expected additive components; found {part}, which multiplies.")
        super().__post_init__()

    def _evaluate(self, tables, values):
        given = floating(self, values)
        return functools.reduce(jnp.add, (part(given) for part in tables))

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Sum of the integrals of the parts."""
        given = floating(self, values)
        return functools.reduce(jnp.add, (part.integral(given, low, high, power) for part in self.parts))


@dataclass(frozen=True)
class Product(_Composite):
    """Factors, and what they are applied to; made by ``*``.

    Raises
    ------
    ValueError
        For two additive parts, or a parameter that two parts have.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import Absorption, PowerLaw
    >>> spectrum = PowerLaw() * Absorption("mw") * Absorption("host", z=1.3)
    >>> list(spectrum.parameters)
    ['photon_index', 'log10_flux', 'mw_nh', 'host_nh']
    >>> spectrum.unabsorbed
    PowerLaw(label='', norm=(0.3, 10.0), pivot=1.0)
    """

    def __post_init__(self):
        additive = [part for part in self.parts if part.kind == "additive"]
        if len(additive) > 1:
            raise ValueError(
                f"a product: expected at most one additive component; found {additive[0]} and {additive[1]}."
            )
        super().__post_init__()

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Additive with light, multiplicative without."""
        return "additive" if any(part.kind == "additive" for part in self.parts) else "multiplicative"

    @property
    def flat(self) -> bool:  # type: ignore[override]
        """Whether all factors are constants."""
        return all(part.flat for part in self.parts)

    def _evaluate(self, tables, values):
        given = floating(self, values)
        return functools.reduce(jnp.multiply, (part(given) for part in tables))

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """As for every component; that of the additive part where all factors are constants.

        Absorbers of lines are averaged over bins of 0.2 % in energy.
        """
        light = [part for part in self.parts if part.kind == "additive"]
        factors = [part for part in self.parts if part.kind != "additive"]
        if not light or not all(part.flat for part in factors):
            smooth, lines = separated(self)
            if not lines:
                return super().integral(values, low, high, power)
            given = floating(self, values)
            parts = [] if smooth is None else [smooth.integral(given, low, high, power)]
            ends = np.asarray(low, float), np.asarray(high, float)
            return functools.reduce(jnp.add, parts + [_line_integral(line, given, *ends, power) for line in lines])
        given = floating(self, values)
        total = light[0].integral(given, low, high, power)
        return functools.reduce(jnp.multiply, (part.on(np.ones(1))(given)[..., 0] for part in factors), total)


class Line(NamedTuple):
    """A line and what multiplies it.

    Attributes
    ----------
    light : Component
        Additive and `narrow`.
    factor : Component or None
        Of absorbers and constants; None where there are none.
    """

    light: Any
    factor: Component | None


def separated(spectrum: Component) -> tuple[Component | None, tuple[Line, ...]]:
    """Split a spectrum into what is smooth, None where nothing is, and its lines."""
    if getattr(spectrum, "narrow", False):
        return None, (Line(spectrum, None),)
    if not isinstance(spectrum, Sum | Product):
        return spectrum, ()
    split = [separated(part) for part in spectrum.parts]
    lines = tuple(line for _, found in split for line in found)
    if not lines:
        return spectrum, ()
    if isinstance(spectrum, Sum):
        smooth = [part for part, _ in split if part is not None]
        return (functools.reduce(operator.add, smooth) if smooth else None), lines
    factors = functools.reduce(operator.mul, [p for p in spectrum.parts if p.kind != "additive"])
    rest = next(part for part, found in split if found)
    absorbed = tuple(Line(light, factors if own is None else factors * own) for light, own in lines)
    return (None if rest is None else factors * rest), absorbed


def _line_integral(line: Line, values: Values, low: np.ndarray, high: np.ndarray, power: int) -> jax.Array:
    """Integrate a line with its factors over bands (...), in bins over which the factors are averaged."""
    low, high = np.broadcast_arrays(low, high)
    check_band(low, high)
    num = int(np.ceil(np.max(np.log(high / low)) / _LINE_WIDTH))
    edges = low[..., None] * (high / low)[..., None] ** np.linspace(0.0, 1.0, num + 1)
    x, _ = np.polynomial.legendre.leggauss(2)
    middle, half = 0.5 * (edges[..., 1:] + edges[..., :-1]), 0.5 * np.diff(edges)
    nodes = middle[..., None] + half[..., None] * x
    factor = line.factor.on(nodes.reshape(*low.shape, -1))(values)  # type: ignore[union-attr]
    given = {name: jnp.asarray(value)[..., None] for name, value in values.items()}
    light = line.light.integral(given, edges[..., :-1], edges[..., 1:], power)
    return jnp.sum(light * jnp.mean(factor.reshape(*factor.shape[:-1], num, 2), axis=-1), axis=-1)


def floating(spectrum: Component, values: Values) -> dict[str, jax.Array]:
    """Return the values of a spectrum's parameters as arrays of one floating type.

    Raises
    ------
    ValueError
        For one that is missing.
    """
    given = {}
    for name in spectrum.parameters:
        if name not in values:
            near = did_you_mean(name, values)
            raise ValueError(f"values of {spectrum}: expected one of {name!r}; found {listed(values) or 'none'}{near}.")
        given[name] = values[name]
    dtype = jnp.result_type(float, *given.values())
    return {name: jnp.asarray(value, dtype) for name, value in given.items()}


def pieces(spectrum: Component, edges: np.ndarray) -> np.ndarray:
    """Cut at edges, where a spectrum jumps and bends, and where a piece would be too wide; (num_pieces + 1,)."""
    cuts = np.unique(np.concatenate([edges, spectrum.jumps(edges[0], edges[-1]), spectrum.kinks(edges[0], edges[-1])]))
    num = np.ceil(np.log(cuts[1:] / cuts[:-1]) / _WIDTH).astype(int)
    parts = [np.geomspace(*ends, n + 1)[:-1] for ends, n in zip(itertools.pairwise(cuts), num, strict=True)]
    return np.concatenate([*parts, cuts[-1:]])


def gauss(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies and weights for integrals over energy between edges, in ln E; (num_pieces, nodes) each."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    logs = np.log(edges)
    half = 0.5 * np.diff(logs)[:, None]
    energy = np.exp(0.5 * (logs[1:] + logs[:-1])[:, None] + half * x)
    return energy, energy * half * w


def _nodes(spectrum: Component, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies and weights for bands of any shape (...), (..., num_nodes); padded with weights of 0."""
    low, high = np.broadcast_arrays(low, high)
    check_band(low, high)
    found = [gauss(pieces(spectrum, band)) for band in np.stack([low.ravel(), high.ravel()], axis=-1)]
    most = max(energy.size for energy, _ in found)
    energy = [np.pad(e.ravel(), (0, most - e.size), mode="edge") for e, _ in found]
    weights = [np.pad(w.ravel(), (0, most - w.size)) for _, w in found]
    return np.reshape(energy, (*low.shape, most)), np.reshape(weights, (*low.shape, most))


def check_band(low: ArrayLike, high: ArrayLike, name: str = "band") -> None:
    """Raise ValueError unless 0 < low < high, both finite; traced ones are not looked at."""
    if isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return
    low, high = np.broadcast_arrays(np.asarray(low, float), np.asarray(high, float))
    wrong = ~((low > 0) & (high > low) & (high < math.inf))
    if wrong.any():
        raise ValueError(
            f"{name}: expected two energies [keV] with 0 < low < high; found {low[wrong][0]:g} and {high[wrong][0]:g}."
        )
