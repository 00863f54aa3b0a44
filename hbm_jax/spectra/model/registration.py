"""Registration of user-defined components, which makes them available in text, command line and stored fits."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax.numpy as jnp

from hbm_jax.names import listed
from hbm_jax.spectra.folding import area_errors
from hbm_jax.spectra.model import components, factors, photons, tables, thermal
from hbm_jax.spectra.model.composition import Component, Parameter

CLASSES: dict[str, type[Component]] = {
    name: value
    for module in (components, factors, photons, tables, thermal, area_errors)
    for name in module.__all__
    if inspect.isclass(value := getattr(module, name)) and issubclass(value, Component)
}
# XSPEC's names; components with these names have the normalisation of XSPEC.
_AMPLITUDE = {"norm": "amplitude"}
XSPEC: dict[str, tuple[str, dict[str, str]]] = {
    "powerlaw": ("PowerLaw", _AMPLITUDE), "zpowerlw": ("PowerLaw", _AMPLITUDE),
    "bknpower": ("BrokenPowerLaw", _AMPLITUDE),
    "cutoffpl": ("CutoffPowerLaw", _AMPLITUDE), "zcutoffpl": ("CutoffPowerLaw", _AMPLITUDE),
    "logpar": ("LogParabola", _AMPLITUDE), "grbm": ("Band", _AMPLITUDE),
    "bbodyrad": ("BlackBody", _AMPLITUDE), "bbody": ("BlackBodyLuminosity", _AMPLITUDE),
    "diskbb": ("DiskBlackBody", _AMPLITUDE),
    "bremss": ("Bremsstrahlung", _AMPLITUDE), "zbremss": ("Bremsstrahlung", _AMPLITUDE),
    "gaussian": ("GaussianLine", _AMPLITUDE), "gauss": ("GaussianLine", _AMPLITUDE),
    "zgauss": ("GaussianLine", _AMPLITUDE),
    "tbabs": ("Absorption", {}), "ztbabs": ("Absorption", {}),
    "phabs": ("Absorption", {"model": "phabs"}), "zphabs": ("Absorption", {"model": "phabs"}),
    "pcfabs": ("PartialAbsorption", {"model": "phabs"}), "zpcfabs": ("PartialAbsorption", {"model": "phabs"}),
    "wabs": ("Wabs", {}), "zwabs": ("Wabs", {}), "edge": ("Edge", {}), "zedge": ("Edge", {}),
    "gabs": ("GaussianAbsorption", {}), "zgabs": ("GaussianAbsorption", {}),
    "highecut": ("HighEnergyCutoff", {}), "zhighect": ("HighEnergyCutoff", {}), "expabs": ("LowEnergyCutoff", {}),
    "constant": ("Constant", {}),
    "atable": ("AdditiveTable", {}), "mtable": ("MultiplicativeTable", {}), "etable": ("ExponentialTable", {}),
    "cflux": ("FluxScale", {}), "clumin": ("LuminosityScale", {}),
    "gsmooth": ("GaussianSmoothing", {}), "whim": ("Whim", {}),
}  # fmt: skip
REGISTERED: dict[str, type[Component]] = {}
GROUP = "hbm_jax.components"  # entry points of modules or components, imported when an unknown name is read


def component(
    parameters: Mapping[str, Parameter], *, kind: str = "additive", antiderivative: Callable | None = None
) -> Callable[[Callable], type[Component]]:
    """Return a decorator that makes a function of energy and parameters a component, and registers it by its name.

    The decorator takes a pure JAX function ``function(energy, **parameters)``, whose arguments broadcast. It returns a
    frozen class like those of `hbm_jax.spectra`: ``name(label)`` is a component. Raises ValueError for an unknown kind,
    an antiderivative of a multiplicative component, or if another component has this name.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        Unit, default prior and description of each parameter.
    kind : str
        ``"additive"`` for a photon spectrum [photons/cm^2/s/keV], ``"multiplicative"`` for an absorber.
    antiderivative : callable, optional
        Integral of the spectrum up to an energy, ``antiderivative(energy, **parameters)``. Its differences are the
        photons in bins, however narrow the component is.

    Notes
    -----
    After its module was imported, a registered component can be read and written in model expressions. A package that
    declares its module in the entry point group ``hbm_jax.components`` is imported when an expression has an unknown
    name, also on the command line and when a stored fit is loaded. Without an antiderivative the function should be
    smooth within the energy bins of the response: `hbm_jax.spectra.fold` compares the expected counts with integrals
    over these bins.

    Examples
    --------
    >>> @component({"kT": Parameter("keV", "LogNormal(0.0, 1.0)", "temperature")})
    ... def thermal(energy, kT):
    ...     return jnp.exp(-energy / kT) / energy
    >>> list((thermal() + thermal("hot")).parameters)
    ['kT', 'hot_kT']
    """
    if kind not in ("additive", "multiplicative"):
        raise ValueError(f"component: expected the kind 'additive' or 'multiplicative'; found {kind!r}.")
    if antiderivative is not None and kind != "additive":
        raise ValueError(f"component: expected no antiderivative of a {kind} component; found one.")

    def evaluated(self, function, energy, values):
        """Return a function of energy and parameters at energies (..., K)."""
        params = self._unprefixed(values)
        dtype = jnp.result_type(float, *params.values())
        return function(jnp.asarray(energy, dtype), **{name: value[..., None] for name, value in params.items()})

    def difference(self, limits, values):
        """Return the photons in bins, as differences of the antiderivative."""
        low, high = (evaluated(self, antiderivative, limit, values) for limit in limits)
        return high - low

    def register(function: Callable) -> type[Component]:
        """Return the registered class of a component with this function."""
        members: dict[str, Any] = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "kind": kind,
            "absorbs": kind == "multiplicative",
            "own_parameters": property(lambda self: dict(parameters)),
            "_tables": lambda self, energy: energy,
            "_evaluate": lambda self, energy, values: evaluated(self, function, energy, values),
        }
        if antiderivative is not None:
            members |= {"narrow": True, "integrable": True, "_integrals": difference}
        return registered(dataclass(frozen=True)(type(function.__name__, (Component,), members)))

    return register


def registered(cls: type[Component]) -> type[Component]:
    """Register a component class, a frozen dataclass, by its name; a decorator.

    Raises ValueError if a component of another module has this name.
    """
    name = cls.__name__
    other = REGISTERED.get(name)
    if name in CLASSES or name.lower() in XSPEC or (other is not None and other.__module__ != cls.__module__):
        raise ValueError(f"component: expected a name that no other component has; found {name!r}.")
    REGISTERED[name] = cls
    return cls


def xspec_name(name: str) -> str | None:
    """Return the XSPEC name that a name abbreviates, ignoring case; None if there is none.

    Raises ValueError if the name abbreviates the names of different components.

    Examples
    --------
    >>> xspec_name("po")
    'powerlaw'
    """
    name = name.lower()
    if name in XSPEC:
        return name
    matches = [full_name for full_name in XSPEC if len(name) > 1 and full_name.startswith(name)]
    if len({XSPEC[match][0] for match in matches}) > 1:
        raise ValueError(f"spectrum: expected the name of one component; found {name!r}, short for {listed(matches)}.")
    return matches[0] if matches else None


def load_entry_points() -> None:
    """Import the components that installed packages declare as entry points."""
    for entry in metadata.entry_points(group=GROUP):
        entry.load()
