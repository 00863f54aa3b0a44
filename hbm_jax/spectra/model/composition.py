"""Base classes of spectral models: parameters, components, and their sums and products."""

import functools
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
from hbm_jax.spectra.model.quadrature import (
    LINE_WIDTH,
    WIDTH,
    density_weights,
    flat,
    integrals,
    nodes_between,
    pieces_of_bands,
)
from hbm_jax.validation import Floats, concrete

Values = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class Parameter:
    """Parameter of a spectral model.

    Attributes
    ----------
    unit : str
        Unit, empty if dimensionless; for a logarithm, the unit of its argument.
    prior : str
        Broad default prior, in NumPyro's notation.
    help : str
        Description in one line.
    """

    unit: str
    prior: str
    help: str


@dataclass(frozen=True)
class Component:
    """Base class of spectral models: components, and sums and products of them.

    An additive component is a photon spectrum, a multiplicative component a factor such as a transmission. ``a + b``
    adds spectra, ``a * b`` multiplies. Instances are frozen and hold model choices only, no parameter values.
    """

    label: str = ""
    kind: ClassVar[str] = "additive"
    absorbs: ClassVar[bool] = False
    of_instrument: ClassVar[bool] = False  # an error of the instrument, not a property of the source
    flat: ClassVar[bool] = False  # a factor without energy dependence
    narrow: ClassVar[bool] = False  # may be narrower than the bins; its photons in bins have a closed form
    smooth: ClassVar[bool] = False  # between the energies of `discontinuities` and `slope_discontinuities`
    integrable: ClassVar[bool] = False  # the photons in a bin have a closed form (`_integrals`)
    has_moving_feature: ClassVar[bool] = False  # a break, edge or line whose energy is a free parameter
    localised: ClassVar[bool] = False  # a line or edge: first parameter its energy, last its strength

    @property
    def logarithmic(self) -> bool:
        """True if `_log` is defined. A product adds the logarithms of its parts and takes one exponential."""
        return type(self)._log is not Component._log

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Parameters by name, without the label."""
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Parameters by full name, ``label_name``, in order."""
        return {self._prefixed(name): parameter for name, parameter in self.own_parameters.items()}

    @property
    def shared_parameters(self) -> frozenset[str]:
        """Names of parameters that this component uses and that another component of the expression defines."""
        return frozenset()

    def _prefixed(self, name: str) -> str:
        return f"{self.label}_{name}" if self.label else name

    def _unprefixed(self, values: Values) -> dict[str, jax.Array]:
        """Return parameter values by name without the label, as arrays of a common floating type."""
        params = floating(self, values)
        return {name: params[self._prefixed(name)] for name in self.own_parameters}

    def _tables(self, energy: Any) -> Any:
        """Precompute everything that depends on energy alone."""
        raise NotImplementedError

    def _concrete(self, energy: Any) -> Floats:
        """Return energies as a NumPy array; raise ValueError for traced ones."""
        numbers = concrete(energy)
        if numbers is None:
            raise ValueError(f"{self}: expected concrete energies; found traced ones.")
        return numbers

    def _bin_tables(self, edges: Floats) -> Any:
        """Precompute everything that averages over bins between edges (..., K + 1) need."""
        return self._tables(np.sqrt(edges[..., 1:] * edges[..., :-1]))

    def _log(self, tables: Any, values: Values) -> jax.Array:
        """Return the logarithm of the spectrum."""
        raise NotImplementedError

    def _evaluate(self, tables: Any, values: Values) -> jax.Array:
        return jnp.exp(self._log(tables, values))

    def _limits(self, edges: Floats) -> Any:
        """Precompute the limits of bins between edges (..., K + 1) for `_integrals`."""
        return edges[..., :-1], edges[..., 1:]

    def _integrals(self, limits: Any, values: Values) -> jax.Array:
        """Return the photons in bins in closed form, (..., K)."""
        raise NotImplementedError

    @staticmethod
    def _sum_of_integrals(components: "tuple[Component, ...]", limits: Any, values: Values) -> jax.Array:
        """Return the sum of `_integrals` of components of this type with the same limits."""
        return functools.reduce(jnp.add, (component._integrals(limits, values) for component in components))

    def _weight_tables(self, edges: Floats) -> Any:
        """Precompute the tables of `_integrals_and_weights` for bins between edges (..., K + 1)."""
        return self._tables(flat(nodes_between(edges)))

    def _integrals_and_weights(self, limits: Any, tables: Any, values: Values) -> tuple[jax.Array, jax.Array]:
        """Return the photons in bins (..., K), and the weights of each bin's nodes in a mean over its photons."""
        return self._integrals(limits, values), density_weights(self._evaluate(tables, values))

    def _without_tables(self) -> "Component":
        """Return the component without choices that only its tables depend on.

        Sources of a population then have equal components, and share a compiled program.
        """
        return self

    def mapped(self, change: "Callable[[Component], Component]") -> "Component":
        """Return the expression with a function applied to each component."""
        return change(self)

    def on(self, energy: ArrayLike) -> Callable[[Values], jax.Array]:
        """Return the spectrum at the energies as a function of its parameters.

        Raises ValueError if an energy is not positive and finite, or outside the domain of an absorber. The callable
        raises it if a parameter value is missing.

        Parameters
        ----------
        energy : (..., K)
            Observed photon energies [keV], positive. They may be traced only if the spectrum has no absorbers: cross
            sections and tables are precomputed here in double precision.

        Returns
        -------
        callable
            Takes a mapping of parameter names to values, which are numbers or arrays that broadcast against
            ``energy[..., 0]``. Returns photons/cm^2/s/keV, or the factor of a multiplicative component, (..., K), in
            the floating type of the values. Names of other parameters are ignored. The callable is a pytree whose
            leaves are the tables: if it is an argument of a compiled function, they are not constants of the program.
        """
        numbers = concrete(energy)
        if numbers is not None:
            energy, invalid = numbers, ~(np.isfinite(numbers) & (numbers > 0))
            if invalid.any() or not numbers.ndim:
                first = numbers[invalid][0] if numbers.ndim else numbers
                raise ValueError(f"energy: expected an array of positive numbers [keV]; found {first}.")
        return self._evaluated(self._tables(energy))

    def averaged(self, edges: ArrayLike) -> Callable[[Values], jax.Array]:
        """Return the spectrum averaged over energy bins between edges (..., K + 1) [keV]; see `on`.

        Cross sections of cold matter are averaged over ln E in each bin, also if the redshift is free. All other
        components are evaluated at the middle of the bin in ln E.
        """
        return self._evaluated(self._bin_tables(np.asarray(edges, float)))

    def _evaluated(self, tables: Any) -> Partial:
        """Return the spectrum with these tables as a function of its parameters."""
        return Partial(_Evaluated(self.mapped(lambda part: part._without_tables())), tables)

    def discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the energies [keV] from low to high at which the spectrum is discontinuous, in increasing order.

        These are the absorption edges at known redshifts; for an absorber of several sources, those of all sources.
        """
        return np.zeros(0)

    def slope_discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the energies [keV] from low to high at which the slope is discontinuous, in increasing order."""
        return np.zeros(0)

    def of_source(self, index: int) -> "Component":
        """Return the spectrum of one source, for a model with the redshifts of several sources."""
        return self.mapped(lambda part: part._of_source(index))

    def _of_source(self, index: int) -> "Component":
        return self

    def in_double_precision(self) -> "Component":
        """Return the component with tables in double precision."""
        return self

    def tabulated_for(self, values: Values) -> "Component":
        """Return the component with tables for these parameter values only, if these are faster to compute."""
        return self

    def at_redshift(self, values: Values) -> "Component":
        """Return the component with a free redshift fixed at its value in `values`."""
        return self

    @property
    def unabsorbed(self) -> "Component":
        """The spectrum without its absorbers; constant factors are kept.

        Raises ValueError if no additive component remains.
        """
        remaining = self._without_absorbers()
        if remaining is None or remaining.kind != "additive":
            raise ValueError(f"unabsorbed: expected a spectrum with an additive component; found {self}.")
        return remaining

    def _without_absorbers(self) -> "Component | None":
        return None if self.absorbs else self

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Return the integral over a band of energy^power times the spectrum.

        Raises ValueError if the band is not positive and increasing, or traced although the spectrum has absorbers.

        Parameters
        ----------
        values : mapping
            Parameter names to values, of any shape (...).
        low, high : scalar or (...)
            Limits of the band [keV], broadcast against the values. They may be traced only if the spectrum has no
            absorbers.
        power : int
            0 for the photon flux [photons/cm^2/s], 1 for the energy flux [keV/cm^2/s].
        """
        lows, highs = concrete(low), concrete(high)
        if lows is None or highs is None:
            raise ValueError(f"integral of {self}: expected a band of concrete energies; found traced ones.")
        smooth, lines = split_terms(self)
        edges = pieces_of_bands(self, lows, highs, LINE_WIDTH if lines else WIDTH)
        return jnp.sum(integrals(smooth, lines, edges, power)(values), axis=-1)

    def __add__(self, other: "Component") -> "Sum":
        if not isinstance(other, Component):
            return NotImplemented
        return Sum((*_terms(self, Sum), *_terms(other, Sum)))

    def __mul__(self, other: "Component") -> "Product":
        if not isinstance(other, Component):
            return NotImplemented
        return Product((*_terms(self, Product), *_terms(other, Product)))


def components_of(spectrum: Component) -> tuple[Component, ...]:
    """Return the components of an expression, in order."""
    parts = getattr(spectrum, "parts", None)
    return (spectrum,) if parts is None else tuple(component for part in parts for component in components_of(part))


@dataclass(frozen=True)
class _Evaluated:
    """Static part of the callable that `Component.on` returns; equal for spectra that differ in their tables only."""

    component: Component

    def __call__(self, tables, values):
        return self.component._evaluate(tables, values)


def _terms(component: Component, kind: type) -> tuple[Component, ...]:
    """Return the parts of a sum or product of this kind, else the component itself."""
    return component.parts if type(component) is kind else (component,)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Composite(Component):
    """Sum or product of components."""

    label: str = field(default="", init=False, repr=False)
    parts: tuple[Component, ...] = ()

    def __post_init__(self):
        owner: dict[str, Component] = {}
        for part in self.parts:
            for name in (name for name in part.parameters if name not in part.shared_parameters):
                if name in owner:
                    raise ValueError(
                        f"parameter {name!r} belongs to both {owner[name]} and {part}: expected different names. Give "
                        f"one of them a label, as in {type(components_of(part)[0]).__name__}(label='second'), or "
                        "in text, such as diskbb(second)."
                    )
                owner[name] = part

    def __str__(self):
        sign = " + " if isinstance(self, Sum) else " * "
        return "(" + sign.join(str(part) for part in self.parts) + ")"

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {name: parameter for part in self.parts for name, parameter in part.parameters.items()}

    @property
    def shared_parameters(self) -> frozenset[str]:
        names = frozenset().union(*(part.shared_parameters for part in self.parts))
        return names.difference(*(part.parameters.keys() - part.shared_parameters for part in self.parts))

    def _tables(self, energy):
        return tuple(part._tables(energy) for part in self.parts)

    def _bin_tables(self, edges):
        return tuple(part._bin_tables(edges) for part in self.parts)

    def mapped(self, change):
        return type(self)(tuple(part.mapped(change) for part in self.parts))

    def discontinuities(self, low: float, high: float) -> np.ndarray:
        return np.unique(np.concatenate([part.discontinuities(low, high) for part in self.parts]))

    def slope_discontinuities(self, low: float, high: float) -> np.ndarray:
        return np.unique(np.concatenate([part.slope_discontinuities(low, high) for part in self.parts]))

    def _without_absorbers(self):
        remaining = [part for part in (part._without_absorbers() for part in self.parts) if part is not None]
        return type(self)(tuple(remaining)) if len(remaining) > 1 else (remaining[0] if remaining else None)


@dataclass(frozen=True)
class Sum(_Composite):
    """Sum of additive components, the result of ``a + b``.

    Raises ValueError if a part is multiplicative, or two parts have a parameter of the same name.

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
                raise ValueError(f"a sum: expected additive components; found the multiplicative {part}.")
        super().__post_init__()

    def _evaluate(self, tables, values):
        params = floating(self, values)
        return functools.reduce(jnp.add, map(lambda part, table: part._evaluate(table, params), self.parts, tables))

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Return the sum of the integrals of the parts."""
        params = floating(self, values)
        return functools.reduce(jnp.add, (part.integral(params, low, high, power) for part in self.parts))


@dataclass(frozen=True)
class Product(_Composite):
    """Product of factors and at most one additive component, the result of ``a * b``.

    Raises ValueError if two parts are additive, or two parts have a parameter of the same name.

    Examples
    --------
    >>> from hbm_jax.spectra.model.components import Absorption, PowerLaw
    >>> spectrum = PowerLaw() * Absorption("mw") * Absorption("host", z=1.3)
    >>> list(spectrum.parameters)
    ['photon_index', 'log10_flux', 'mw_nh', 'host_nh']
    >>> spectrum.unabsorbed
    PowerLaw(label='', norm=(0.3, 10.0), pivot=1.0, z=0.0)
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
        """``"additive"`` if one of the parts is, else ``"multiplicative"``."""
        return "additive" if any(part.kind == "additive" for part in self.parts) else "multiplicative"

    @property
    def flat(self) -> bool:  # type: ignore[override]
        """True if all parts are independent of energy."""
        return all(part.flat for part in self.parts)

    @property
    def logarithmic(self) -> bool:
        """True if the logarithms of all parts are defined."""
        return all(part.logarithmic for part in self.parts)

    def _log(self, tables, values):
        params = floating(self, values)
        return functools.reduce(jnp.add, map(lambda part, table: part._log(table, params), self.parts, tables))

    def _evaluate(self, tables, values):
        """Return the product; logarithms are added first where they exist, so that fewer products overflow."""
        if self.logarithmic:
            return jnp.exp(self._log(tables, values))
        params, pairs = floating(self, values), tuple(zip(self.parts, tables, strict=True))
        logs = [part._log(table, params) for part, table in pairs if part.logarithmic]
        factors = [part._evaluate(table, params) for part, table in pairs if not part.logarithmic]
        return functools.reduce(jnp.multiply, factors, jnp.exp(functools.reduce(jnp.add, logs)) if logs else 1.0)

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Return the integral as in `Component.integral`.

        If all factors are constants, they multiply the integral of the additive part.
        """
        additive = [part for part in self.parts if part.kind == "additive"]
        factors = [part for part in self.parts if part.kind != "additive"]
        if not additive or not all(part.flat for part in factors):
            return super().integral(values, low, high, power)
        params = floating(self, values)
        total = additive[0].integral(params, low, high, power)
        return functools.reduce(jnp.multiply, (part.on(np.ones(1))(params)[..., 0] for part in factors), total)


class Line(NamedTuple):
    """Component whose photons in bins have a closed form, and the factors that multiply it.

    Attributes
    ----------
    component : Component
        The additive component, such as an emission line.
    factor : Component or None
        Product of its absorbers and constants; None if it has none.
    """

    component: Any
    factor: Component | None


def split_terms(
    spectrum: Component, is_line: Callable[[Component], bool] = operator.attrgetter("narrow")
) -> tuple[Component | None, tuple[Line, ...]]:
    """Split an expression into the part without lines, or None, and the lines: the terms for which `is_line` is true.

    By default the lines are narrow components.
    """
    if not isinstance(spectrum, Sum | Product):
        return (None, (Line(spectrum, None),)) if is_line(spectrum) else (spectrum, ())
    split = [split_terms(part, is_line) for part in spectrum.parts]
    lines = tuple(line for _, part_lines in split for line in part_lines)
    if not lines:
        return spectrum, ()
    if isinstance(spectrum, Sum):
        rest = [part for part, _ in split if part is not None]
        return (functools.reduce(operator.add, rest) if rest else None), lines
    multiplicative = [part for part in spectrum.parts if part.kind != "additive"]
    if not multiplicative:
        return split[0][0], lines
    factor = functools.reduce(operator.mul, multiplicative)
    rest_part = next(part for part, part_lines in split if part_lines)
    multiplied = tuple(Line(line.component, factor if line.factor is None else factor * line.factor) for line in lines)
    return (None if rest_part is None else factor * rest_part), multiplied


def floating(spectrum: Component, values: Values) -> dict[str, jax.Array]:
    """Return the parameter values of a spectrum as arrays of a common floating type.

    Raises ValueError if a value is missing.
    """
    params = {}
    for name in spectrum.parameters:
        if name not in values:
            suggestion = did_you_mean(name, values)
            raise ValueError(
                f"values of {spectrum}: expected a value of {name!r}; found {listed(values) or 'none'}{suggestion}."
            )
        params[name] = values[name]
    dtype = jnp.result_type(float, *params.values())
    return {name: jnp.asarray(value, dtype) for name, value in params.items()}
