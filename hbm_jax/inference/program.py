"""Protocol of the programs that inference runs.

Any NumPyro program can be sampled. `Program` lists all members that inference uses besides the call. They are optional;
one function here reads each of them and supplies its default.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from numpyro import handlers
from numpyro.distributions import Distribution

TARGET_ACCEPT_PROB = 0.8  # mean acceptance probability of trajectories if neither sampler nor program gives one


@runtime_checkable
class Program(Protocol):
    """A NumPyro program with all members that inference can use; the models of hbm_jax have most of them.

    ``args`` are the arguments of the program, and ``data`` is the first of them. If the call has a keyword argument
    ``observed=True``, it is called with False to draw data; if it has ``recover=False``, with True to draw latents that
    are integrated out.
    """

    def __call__(self, *args: Any) -> Any:
        """Run the program with its arguments, or with the result of `bind` alone."""

    def bind(self, *args: Any) -> Any:
        """Return everything that the program needs of its arguments, as one pytree of arrays.

        It is called once, outside traces and in double precision; the program is then called with the result, which
        may be traced. Without this method the program is called with its arguments.
        """

    def bind_each(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return bound data of several data sets, all of the same structure; without it `bind` is called for each."""

    def bind_alike(self, data: Sequence[Any]) -> Sequence[Any]:
        """Return bound data of several data sets, with arrays of the same shapes even if those of the data differ.

        Without it, data of different shapes are padded before they are bound.
        """

    def padded(self, bound: Any) -> tuple[Any, Mapping[str, int]]:
        """Return bound data padded to sizes in steps, and the size without padding of each plate that is padded.

        The log density of the padded data is that of the data, except for latents of padding, which are independent of
        all others. Compiled programs then serve data of other sizes. Without this method nothing is padded.
        """

    def observing(self, values: Mapping[str, Any], *args: Any) -> Any:
        """Return arguments, bound or not, with other values of the observed sites, given by name.

        It is needed if the parametrisation depends on the observed values; otherwise the values of the observed sites
        are replaced.
        """

    @property
    def dims(self) -> Mapping[str, Sequence[str]]:
        """Dimensions of sites that their plates do not name."""

    def coords(self, data: Any) -> Mapping[str, Any]:
        """Return the labels of dimensions by name."""

    @property
    def units(self) -> Mapping[str, str]:
        """Units of sites."""

    @property
    def symbols(self) -> Mapping[str, str]:
        """Symbols of sites in the notation of matplotlib and LaTeX, such as ``{"slope": "$m$"}``."""

    @property
    def description(self) -> str:
        """One-line description; by default the name of the program."""

    def to_config(self) -> Mapping[str, Any]:
        """Return the options as plain values, for fingerprints and files, or raise ValueError."""

    @property
    def all_priors(self) -> Mapping[str, Any]:
        """Priors by name; their supports also bound parameters that are not latent sites."""

    def with_priors(self, priors: Mapping[str, Any]) -> Any:
        """Return the program with priors of the same families, whose parameters may be traced.

        Compiled programs then serve other numbers in the priors. Without this method these numbers are constants.
        """

    @property
    def integrated(self) -> Sequence[str]:
        """Parameters that are integrated out, and drawn with ``recover=True``."""

    @property
    def blinded(self) -> Sequence[str]:
        """Sites that ``blind=True`` of `hbm_jax.sample` hides: free parameters whose values are the result."""

    @property
    def further_starts(self) -> Callable[[Any, Mapping[str, Any], Callable], Sequence[Mapping[str, Any]]] | None:
        """Starting points of searches for modes, besides draws of the prior; None for none.

        A function of the bound data, values of the latent sites, and a function ``refit`` of values and names of
        sites, which returns the values of highest likelihood near given ones, with the named sites held constant.
        """

    def cautions(self, data: Any, bound: Any = None) -> Sequence[str]:
        """Return notes for the verdict about approximations for these data.

        If the method has an argument ``bound``, it is called with the bound data too.
        """

    def cautions_of_draws(self, data: Any, posterior: Any) -> Sequence[str]:
        """Return sentences for the notes of a verdict, about approximations at the draws of a posterior (Dataset)."""

    @property
    def remedies(self) -> Mapping[str, str]:
        """Advice by family of statistics for data that do not look like the model; see `hbm_jax.check_model`."""

    @property
    def target_accept_prob(self) -> float:
        """Mean acceptance probability of trajectories unless the sampler gives one."""

    @property
    def chooses_centering(self) -> bool:
        """True if `hbm_jax.sample` is to choose the partial non-centring of the latents by a pilot run."""

    @property
    def reparametrisations(self) -> Sequence[Any]:
        """Reparametrisations that are stored with the run, by ``to_arrays()``, such as partial non-centring."""

    def num_data(self, *args: Any) -> int:
        """Return the number of observed values, without padding; by default the sizes of the observed sites."""


def binds(program: Any) -> bool:
    """Return whether the program has `Program.bind`."""
    return hasattr(program, "bind")


def bound_args(program: Callable, args: tuple) -> tuple:
    """Return the arguments for tracing a program: bound data if it has `Program.bind`."""
    return bound_objects(program, [args])[0]


def is_bound(program: Any, objects: Sequence[tuple]) -> bool:
    """Return whether the arguments for each of several objects are bound data."""
    return all(len(args) == 1 and isinstance(args[0], getattr(program, "Bound", ())) for args in objects)


def bound_objects(program: Any, objects: Sequence[tuple]) -> list[tuple]:
    """Return the arguments for each of several objects, bound if the program has `Program.bind`."""
    if not binds(program):
        return list(objects)
    if is_bound(program, objects):
        return list(objects)
    with jax.enable_x64(True):
        if len(objects) > 1 and hasattr(program, "bind_each"):
            data = [args[0] if len(args) == 1 else args for args in objects]
            return [(bound,) for bound in program.bind_each(data)]
        return [(program.bind(*args),) for args in objects]


def padded_of(program: Any, args: tuple) -> tuple[tuple, Mapping[str, int]] | None:
    """Return `Program.padded` of bound arguments, as a tuple of arguments; None where nothing is padded."""
    if not (binds(program) and hasattr(program, "padded")):
        return None
    with jax.enable_x64(True):
        bound, sizes = program.padded(*args)
    return None if bound is args[0] else ((bound,), sizes)


def observing_of(program: Callable) -> Callable | None:
    """Return `Program.observing`, or None."""
    return getattr(program, "observing", None)


def dims_of(program: Callable) -> dict[str, list[str]]:
    """Return `Program.dims`; empty by default."""
    return {name: list(dims) for name, dims in getattr(program, "dims", {}).items()}


def coords_of(program: Callable, args: tuple) -> dict[str, Any]:
    """Return `Program.coords` of the data; empty by default."""
    return dict(program.coords(args[0] if args else None)) if hasattr(program, "coords") else {}


def units_of(program: Callable) -> dict[str, str]:
    """Return `Program.units` as text; empty by default."""
    return {name: str(unit) for name, unit in getattr(program, "units", {}).items()}


def symbols_of(program: Callable) -> dict[str, str]:
    """Return `Program.symbols`; empty by default."""
    return {name: str(symbol) for name, symbol in getattr(program, "symbols", {}).items()}


def name_of(program: Callable) -> str:
    """Return the name of a function, or of the class of a model."""
    if isinstance(program, functools.partial):
        return name_of(program.func)
    return getattr(program, "__qualname__", type(program).__name__)


def module_of(program: Callable) -> str:
    """Return the module in which a function, or the class of a model, is defined."""
    has_class = hasattr(program, "to_config") or not hasattr(program, "__module__")
    return str(type(program).__module__ if has_class else program.__module__)


def description_of(program: Callable) -> str:
    """Return `Program.description`; by default the name."""
    return str(getattr(program, "description", name_of(program)))


def config_of(program: Callable) -> Mapping[str, Any] | None:
    """Return `Program.to_config`; None by default. Raise ValueError if the options have no plain form."""
    return program.to_config() if hasattr(program, "to_config") else None


def supports_of(program: Callable) -> dict[str, Any]:
    """Return the supports of `Program.all_priors`, without fixed parameters; empty by default."""
    priors = getattr(program, "all_priors", {})
    return {name: prior.support for name, prior in priors.items() if hasattr(prior, "support")}


def traceable_priors(program: Any) -> dict[str, Any]:
    """Return the priors whose parameters may be traced, with arrays as parameters: those of NumPyro's distributions.

    Empty for programs without `Program.with_priors`, and where their attribute ``traces_priors`` is False.
    """
    traced = hasattr(program, "with_priors") and getattr(program, "traces_priors", True)
    priors = getattr(program, "all_priors", {}) if traced else {}
    return {
        name: jax.tree.map(lambda number: np.asarray(number, float), prior)
        for name, prior in priors.items()
        if isinstance(prior, Distribution) and _is_of_numpyro(prior)
    }


def _is_of_numpyro(prior: Distribution) -> bool:
    """Return whether a distribution and those that it is made of are NumPyro's, which JAX flattens completely."""
    parts = [getattr(prior, name) for name in ("base_dist",) if hasattr(prior, name)]
    return type(prior).__module__.startswith("numpyro.") and all(map(_is_of_numpyro, parts))


def integrated_in(program: Callable) -> tuple[str, ...]:
    """Return `Program.integrated`; empty by default."""
    return tuple(getattr(program, "integrated", ()))


def blinded_in(program: Callable) -> tuple[str, ...]:
    """Return `Program.blinded`; empty by default."""
    return tuple(getattr(program, "blinded", ()))


def cautions_of_draws(program: Callable, args: tuple, posterior: Any) -> tuple[str, ...]:
    """Return `Program.cautions_of_draws` of the data; empty by default."""
    cautions = getattr(program, "cautions_of_draws", None)
    return tuple(cautions(*args[:1], posterior)) if callable(cautions) and args else ()


def cautions_of(program: Callable, args: tuple, bound: tuple) -> tuple[str, ...]:
    """Return `Program.cautions` of the data, with the bound arguments if it takes them; empty by default."""
    cautions = getattr(program, "cautions", None)
    if not callable(cautions):
        return ()
    takes_bound = bool(args) and "bound" in inspect.signature(cautions).parameters
    return tuple(cautions(*args[:1], bound=bound[0]) if takes_bound else cautions(*args[:1]))


def further_starts_of(program: Callable, bound: tuple) -> Callable[[Mapping[str, Any], Callable], Sequence[Any]] | None:
    """Return `Program.further_starts` for bound arguments; None by default."""
    further_starts = getattr(program, "further_starts", None)
    return functools.partial(further_starts, bound[0]) if further_starts is not None and bound else None


def remedies_of(program: Callable) -> Mapping[str, str]:
    """Return `Program.remedies`; empty by default."""
    return getattr(program, "remedies", {})


def target_accept_prob_of(program: Callable) -> float:
    """Return `Program.target_accept_prob`; 0.8 by default."""
    return getattr(program, "target_accept_prob", TARGET_ACCEPT_PROB)


def chooses_centering(program: Callable) -> bool:
    """Return `Program.chooses_centering`; False by default."""
    return getattr(program, "chooses_centering", False)


def arrays_of_reparametrisations(program: Callable) -> dict[str, Any]:
    """Return the arrays of `Program.reparametrisations` by name; empty by default."""
    reparametrisations = getattr(program, "reparametrisations", ())
    if not reparametrisations and (reparametrisations := getattr(program, "forms", ())):
        message = f"{name_of(program)}: the attribute forms of a program is now called reparametrisations."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    return {name: value for reparam in reparametrisations for name, value in reparam.to_arrays().items()}


def num_data_of(program: Callable, args: tuple) -> int | None:
    """Return `Program.num_data`; None by default."""
    return int(program.num_data(*args)) if hasattr(program, "num_data") else None


def unobserved(program: Callable) -> Callable:
    """Return the program that draws its data: with ``observed=False`` if it has that argument, else unconditioned."""
    parameter = inspect.signature(program).parameters.get("observed")
    if parameter is not None and parameter.default is True:
        return functools.partial(program, observed=False)
    return handlers.uncondition(program)


def recovers(program: Callable) -> bool:
    """Return whether the program has an argument ``recover``."""
    return "recover" in inspect.signature(program).parameters


def warnings_of(args: tuple) -> tuple[str, ...]:
    """Return the warnings that data containers carry, in their attribute ``warnings``."""
    return tuple(text for arg in args for text in getattr(arg, "warnings", ()))


def description_of_data(data: Any) -> str | None:
    """Return the text of ``data.describe()``; None by default, and if it is not text, as for a pandas table."""
    described = data.describe() if hasattr(data, "describe") else None
    return described if isinstance(described, str) else None


def subset_of(data: Any) -> Callable | None:
    """Return the method ``subset(rows)`` of data, which selects objects; None by default."""
    return getattr(data, "subset", None)
