"""Base class of the models, and the functions that they share.

A model is a frozen dataclass of options. `PopulationModel.bind` checks a data set and precomputes every array that does
not depend on parameters, with ordinary NumPy. The NumPyro program is a function of these arrays and the parameters, and
can be traced, batched and differentiated.
"""

import contextlib
import copy
import dataclasses
import types
import typing
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import jax
import numpy as np
from numpyro import handlers

from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.models.priors import Prior, Priors, complete_priors, in_data_units, prior_lines, priors_to_text
from hbm_jax.models.symbols import SYMBOLS, symbol_of
from hbm_jax.names import choose, did_you_mean, listed
from hbm_jax.precomputation import TRACED, precomputed
from hbm_jax.validation import DataError


@dataclass(frozen=True, kw_only=True)
class PopulationModel:
    """Base class of population models: options, priors, binding to data, simulation and storage.

    A subclass is a frozen dataclass whose fields are its options. It defines `default_priors`, `Bound`, `bind` and
    `program`. An option with a few allowed values is annotated with ``Literal``, alone or in a union, which is checked
    here; `check_options` checks everything else.

    Parameters
    ----------
    priors : mapping of str to Distribution, float or str
        Priors by parameter name that replace the defaults; a number fixes the parameter.

    Raises
    ------
    ValueError
        For an unknown option value or parameter name; the message suggests the nearest.
    TypeError
        For an unknown option.
    """

    Bound: ClassVar[type]
    """Frozen pytree that `bind` returns: a dataclass registered with JAX, with arrays as leaves."""

    priors_in_data_units: ClassVar[bool] = False
    """True if default priors are for standardised values; then only the user's priors are stored as text."""

    traces_priors: ClassVar[bool] = True
    """True if numbers in priors are arguments of compiled programs, which then serve other numbers."""

    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @staticmethod
    def read_prior(text: str, name: str) -> Any:
        """Read a prior given as text; ``name`` is for error messages."""
        return distribution_from_text(text, name)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Raise TypeError for an unknown option; the message suggests the nearest."""
        known = [item.name for item in dataclasses.fields(cls) if item.init]
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known)
                raise TypeError(f"{cls.__name__}: unknown option {name!r}{hint}: expected one of {listed(known)}.")
        return super().__new__(cls)

    def __post_init__(self):
        for name, (values, exclusive) in _choices(type(self)).items():
            if exclusive or isinstance(getattr(self, name), str):
                choose(f"{name} of {type(self).__name__}", getattr(self, name), values)
        object.__setattr__(self, "priors", Priors(self.priors))
        self.check_options()
        self.all_priors  # noqa: B018 - raises for unknown names

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # In the namespace of the class, so that `dataclass` does not generate another.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Return the class with the options that are not defaults, and a line for each parameter: prior and unit."""
        try:
            config = self.to_config()
        except ValueError:  # an option or a prior cannot be written as text
            config = {}
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "priors"}
        changed = [
            # A mapping, such as that of constraints, is longer than the representation of the option.
            f"{item.name}={value if isinstance(config.get(item.name), Mapping) else config.get(item.name, value)!r}"
            for item in dataclasses.fields(self)
            if item.name in values and not _is_default(item, value := values[item.name])
        ]
        remarks = dict(self.units)
        if self.priors_in_data_units:
            remarks |= {
                name: "for standardised data"
                for name, prior in self.all_priors.items()
                if name not in self.priors and in_data_units(prior, 2.0) is not prior
            }
        lines = prior_lines(self.all_priors, remarks).splitlines()
        return "\n".join([f"{type(self).__name__}({', '.join(changed)})", *(f"  {line}" for line in lines)])

    def __getstate__(self) -> dict[str, Any]:
        """Return the options, for copying and pickling, without the completed priors."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}

    def check_options(self) -> None:
        """Raise ValueError for option values out of range and for incompatible options."""

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter, in the order of summary tables; a number fixes a parameter."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Name of the model in error messages about priors."""
        return type(self).__name__

    @cached_property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior, in the order of summary tables; a number fixes a parameter."""
        # In double precision and outside any trace, because the arrays of distributions are kept.
        return precomputed(lambda: complete_priors(self.default_priors, self.priors, self.label, self.read_prior))

    def with_priors(self, priors: Mapping[str, Prior]) -> Self:
        """Return the model with other priors of the same families, without checks; their parameters may be traced."""
        model = copy.copy(self)
        model.__dict__["all_priors"] = Priors({**self.all_priors, **priors})
        return model

    def prior_in_data_units(self, name: str, unit: Any = 1.0, center: Any = 0.0) -> Prior:
        """Return the prior of a parameter; the default of a standardised quantity is transformed to data units."""
        prior = self.all_priors[name]
        return prior if name in self.priors else in_data_units(prior, unit, center)

    def bind(self, data: Any) -> Any:
        """Return the arrays that the program needs, computed from a data set.

        The structure of the result depends on options and shapes only, so that results for data sets of the same shape
        can be stacked. Call `bound` instead, which runs this method in double precision.

        Parameters
        ----------
        data : container
            The data, with concrete values.

        Returns
        -------
        Bound
            A frozen pytree of arrays: quantities precomputed from the design, and the observed values.

        Raises
        ------
        DataError
            If the data have the wrong type, or cannot constrain the parameters.
        """
        raise NotImplementedError

    def program(self, bound: Any, observed: bool, recover: bool) -> None:
        """Run the NumPyro program for bound data; the arguments are those of a call."""
        raise NotImplementedError

    def __call__(self, data: Any, observed: bool = True, recover: bool = False) -> None:
        """Run the NumPyro program.

        Parameters
        ----------
        data : container or Bound
            The data, or the result of `bind`, which is faster where the program is traced several times.
        observed : bool
            Whether to condition on the observed values. Otherwise they are drawn, for the design of ``data``.
        recover : bool
            Whether to draw the latents of each object that are integrated out, as deterministic sites.
        """
        self.program(self.bound(data), observed, recover)

    def bound(self, data: Any) -> Any:
        """Return bound data: the argument itself if it is bound already, else the result of `bind`.

        `bind` runs in double precision and outside any trace.

        Raises
        ------
        DataError
            As `bind`, and if the data are traced.
        """
        if isinstance(data, self.Bound):
            return data
        try:
            return precomputed(lambda: self.bind(data))
        except TRACED:
            raise DataError(
                f"{type(self).__name__}: expected concrete data; found data that are traced by a JAX transformation. "
                "Bind them before, as in bound = model.bind(data), and pass the result."
            ) from None

    def bind_each(self, data: Sequence[Any]) -> list[Any]:
        """Return bound data of several data sets of equal shape, with one pytree structure, so that they stack."""
        return [self.bound(entry) for entry in data]

    def padded(self, bound: Any) -> tuple[Any, dict[str, int]]:
        """Return bound data padded to sizes in steps, and the size without padding of each padded plate.

        `hbm_jax.sample` computes the log density with the padded data, so that its compiled programs serve samples of
        other sizes. Padding changes the log density by that of independent standard normal latents, if objects have
        latents, and otherwise not at all. Here nothing is padded.

        Parameters
        ----------
        bound : Bound
            The result of `bind`.

        Returns
        -------
        Bound, dict of str to int
            The argument itself if nothing is padded.
        """
        return bound, {}

    def check_container(self, data: Any, expected: type, advice: str) -> None:
        """Raise `DataError` unless the data are an ``expected`` container; ``advice`` ends the message."""
        if not isinstance(data, expected):
            raise DataError(
                f"{type(self).__name__}: expected {expected.__name__}; found {type(data).__name__}. {advice}"
            )

    def simulate(self, key: jax.Array, data: Any, parameters: Mapping[str, float] | None = None) -> tuple[Any, dict]:
        """Draw a simulated sample with the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : container
            The design.
        parameters : mapping of str to float, optional
            True values by name; parameters not named are drawn from their priors.

        Returns
        -------
        container, dict
            The sample with new observed values; and the value of every parameter, fixed or drawn, and of every latent
            that is not integrated out.

        Raises
        ------
        ValueError
            For a parameter that the model does not have.
        """
        observed, truth = simulated(self, key, data, parameters)
        return self.with_observed(data, observed), truth

    def with_observed(self, data: Any, values: Mapping[str, Any]) -> Any:
        """Return the container with other observed values, by the name of their site."""
        return data.replace_observations(*values.values())

    def tables(self, posterior: Mapping[str, Any]) -> dict[str, Any]:
        """Return astropy tables that follow from a posterior, by name; a run folder has them as ECSV files."""
        return {}

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of sites that plates do not name, including those of the observed sites."""
        return {}

    @property
    def observed_sites(self) -> tuple[str, ...]:
        """Names of the observed sites, in the order of `with_observed`."""
        return tuple(self.dims)

    def coords(self, data: Any) -> dict[str, list]:
        """Return the labels of the dimensions; the first are the names of the objects."""
        return {}

    @property
    def units(self) -> dict[str, str]:
        """Units of parameters and latents; absent where dimensionless or those of the data."""
        return {}

    @property
    def symbols(self) -> Mapping[str, str]:
        """Symbols by name of the site; may include sites of other models."""
        own = {name: symbol_of(name) for name in (*self.all_priors, *self.units)}
        return SYMBOLS | {name: symbol for name, symbol in own.items() if symbol}

    @property
    def target_accept_prob(self) -> float:
        """Default target acceptance probability of `hbm_jax.NUTS`."""
        return 0.8

    @property
    def chooses_centering(self) -> bool:
        """True if `hbm_jax.sample` chooses the partial non-centring of the latents by a pilot run."""
        return False

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return type(self).__name__

    def to_config(self) -> dict[str, Any]:
        """Return options as plain values and priors as text; ``type(model)(**config)`` is the same model.

        Returns
        -------
        dict
            Every field; ``priors`` comes last and contains all of them, or only those that replace defaults where these
            are for standardised values (`priors_in_data_units`). For a class outside hbm_jax, such as a user's
            subclass, its full name is added as ``class``, so that it is not confused with a model of the same name.
            ``class`` also marks a user-defined option, such as a `hbm_jax.models.Expansion`, which is stored by its
            name.

        Raises
        ------
        ValueError
            If a prior cannot be written as text.
        """
        options = {name: value for name, value in self.__getstate__().items() if name != "priors"}
        config = {name: value.to_config() if hasattr(value, "to_config") else value for name, value in options.items()}
        stored = self.priors if self.priors_in_data_units else self.all_priors
        config["priors"] = priors_to_text({name: self.all_priors[name] for name in stored})
        user_defined = [config[name] for name, value in options.items() if not getattr(value, "is_registered", True)]
        name = f"{type(self).__qualname__} with {user_defined[0]}" if user_defined else full_name(type(self))
        return config if name is None else config | {"class": name}


def _is_default(item: dataclasses.Field, value: Any) -> bool:
    """Return True if a field of a model has its default value."""
    default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return value is default or (type(value) is type(default) and bool(value == default))


def _choices(model: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """Return the values of each option annotated with ``Literal``, and whether the option allows nothing else."""
    choices = {}
    for item in dataclasses.fields(model):
        hint = typing.get_type_hints(model)[item.name] if isinstance(item.type, str) else item.type
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        parts = typing.get_args(hint) if is_union else (hint,)
        literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
        if literals and str not in parts:
            values = tuple(value for part in literals for value in typing.get_args(part))
            choices[item.name] = values, len(literals) == len(parts)
    return choices


def without_padding(in_sample: Any) -> contextlib.AbstractContextManager:
    """Context in which sites have no density for objects of padding, where ``in_sample`` is False; None: no padding."""
    return contextlib.nullcontext() if in_sample is None else handlers.mask(mask=in_sample)


def full_name(model: type) -> str | None:
    """Return the module and name of a model's class, or None for a class of hbm_jax."""
    internal = model.__module__.split(".")[0] == __name__.split(".")[0]
    return None if internal else f"{model.__module__}.{model.__qualname__}"


def simulated(
    model: PopulationModel,
    key: jax.Array,
    data: Any,
    parameters: Mapping[str, float] | None = None,
    *,
    recover: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return values drawn at the observed sites of a model's program, and the truth, as `PopulationModel.simulate`.

    With ``recover`` the program draws the latents that it integrates out.
    """
    fixed = {name: float(value) for name, value in (parameters or {}).items()}
    model = dataclasses.replace(model, priors=dict(model.priors) | fixed)

    @jax.jit  # the whole program: its operations would be compiled one by one
    def draw(bound, key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(bound, observed=False, recover=recover)
        drawn = ((name, site) for name, site in trace.items() if site["type"] in ("sample", "deterministic"))
        return OrderedDict((name, site["value"]) for name, site in drawn if not name.startswith("_"))

    with jax.enable_x64(True):
        values = draw(model.bound(data), key)
    drawn = {name: np.asarray(value) for name, value in values.items()}
    constants = {name: value for name, value in model.all_priors.items() if isinstance(value, float | int)}
    observed = {name: drawn.pop(name) for name in model.observed_sites if name in drawn}
    return observed, drawn | {name: np.asarray(value) for name, value in constants.items()}
