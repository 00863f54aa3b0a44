"""Expansion histories as model parameters: free parameters, default priors and sampling coordinates."""

import ast
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import (
    BinnedDarkEnergy,
    Cosmology,
    CustomDarkEnergy,
    DistanceFunction,
    RedshiftMatrix,
    breaks_of,
    distmod,
)
from hbm_jax.cosmology.distance_nodes import UNION3_NODES, DistanceNodes
from hbm_jax.data import DistanceModuli
from hbm_jax.distributions import CoordinatePriors
from hbm_jax.models.priors import Prior, in_stated_parameters
from hbm_jax.models.registration import choose_registered
from hbm_jax.models.symbols import SYMBOLS
from hbm_jax.precomputation import precomputed
from hbm_jax.validation import concrete

# Free parameters of each named expansion history. Each may be sampled along its degeneracy with those before it.
FREE = {
    "lcdm": ("Om0",),
    "olcdm": ("Om0", "Ode0"),
    "wcdm": ("Om0", "w0"),
    "owcdm": ("Om0", "Ode0", "w0"),
    "w0wacdm": ("Om0", "wa", "w0"),
}

DEFAULT_PRIORS: dict[str, Prior] = {
    "Om0": dist.Uniform(0.0, 1.0),
    "Ode0": dist.Uniform(0.0, 1.2),
    "w0": dist.Uniform(-3.0, 0.0),
    "wa": dist.Uniform(-3.0, 2.0),
}
BINNED_PRIOR: Prior = dist.Uniform(-3.0, 1.0)
BINNED_EDGES = (0.3, 0.7)
NODE_PRIOR: Prior = dist.Normal(0.0, 1.0)  # mag
WITH_ARGUMENTS = ("binned", "nodes")
_DISPLACEMENT = 0.1  # in errors, of parameters fitted with an estimated covariance, from which there is a warning
FIXED_M0 = -19.3  # mag, with free distances: their common offset is degenerate with M0
H0 = 70.0  # km/s/Mpc, fixed by default: without an anchor H0 is degenerate with M0

DESCRIPTIONS = {
    "lcdm": "flat LCDM",
    "olcdm": "LCDM with curvature",
    "wcdm": "flat wCDM",
    "owcdm": "wCDM with curvature",
    "w0wacdm": "flat w0waCDM",
}
HELP = (
    f"{', '.join(FREE)}, binned or binned(z1, z2, ...): w constant in bins of redshift, nodes or nodes(z1, z2, ...): "
    "free distances at redshifts"
)


@dataclass(frozen=True, eq=False)
class Expansion:
    """An expansion history: its parameters with their priors, and the cosmology built from their values.

    A model accepts one as its ``cosmology`` in place of a name. `from_w` and `from_distance` define new ones, and
    `register` gives them a name that works wherever ``"lcdm"`` does.

    Attributes
    ----------
    name : str
        Name in reports and run folders.
    parameters : dict of str to Distribution or float
        Priors of the parameters other than H0, in order; a number fixes a parameter.
    build : callable
        Maps values of H0 and the parameters to a `hbm_jax.cosmology.Cosmology` or `DistanceFunction`.
    description : str
        Short description for reports.
    own : bool
        Whether it is user-defined: it cannot be restored from its name, unless it is registered.
    symbols : dict of str to str
        Symbols of the parameters in figures, in matplotlib's mathematical notation.
    units : dict of str to str
        Units of parameters that are not dimensionless.
    fixed : dict of str to float
        Values at which other parameters of a model are fixed by default, because they are degenerate with these.
    """

    name: str
    parameters: Mapping[str, Prior]
    build: Callable[[Mapping[str, Any]], Any]
    description: str
    own: bool = True
    symbols: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def from_w(
        function: Callable[[Any, Mapping[str, Any]], Any],
        priors: Mapping[str, Prior],
        *,
        curvature: bool = False,
        breaks: tuple[float, ...] = (),
    ) -> "Expansion":
        """Return an expansion history with a user-defined equation of state of dark energy.

        Parameters
        ----------
        function : callable
            ``w(z, parameters)``, written with jax.numpy for z of any shape.
        priors : mapping of str to Distribution or float
            Priors of the parameters of ``function``. Om0 (and Ode0 with curvature) have their default priors unless
            named here.
        curvature : bool
            Whether Ode0 is free.
        breaks : tuple of float
            Redshifts at which w is not smooth.

        Examples
        --------
        >>> def w(z, p):  # Jassal, Bagla & Padmanabhan 2005
        ...     return p["w0"] + p["wa"] * z / (1 + z) ** 2
        >>> jbp = Expansion.from_w(w, {"w0": dist.Uniform(-3, 0), "wa": dist.Uniform(-5, 5)})
        """
        densities = {name: DEFAULT_PRIORS[name] for name in (("Om0", "Ode0") if curvature else ("Om0",))}
        parameters = densities | dict(priors)
        names = [name for name in parameters if name not in densities]

        def build(values):
            energy = CustomDarkEnergy(function, {name: values[name] for name in names}, tuple(breaks))
            background = {name: values[name] for name in ("H0", *densities)}
            return (Cosmology if curvature else Cosmology.flat)(**background, dark_energy=energy)

        function_name = _full_name(function)
        description = f"dark energy of {function_name}{', with curvature' if curvature else ''}"
        return Expansion(function_name, parameters, build, description)

    @staticmethod
    def from_distance(
        function: Callable[[Any, Mapping[str, Any]], Any],
        priors: Mapping[str, Prior],
        *,
        breaks: tuple[float, ...] = (),
    ) -> "Expansion":
        """Return an expansion history defined by its transverse comoving distance alone.

        Parameters
        ----------
        function : callable
            ``transverse_comoving_distance(z, parameters)`` [Mpc], written with jax.numpy for z of any shape;
            ``parameters`` includes H0.
        priors : mapping of str to Distribution or float
            Priors of the other parameters of ``function``.
        breaks : tuple of float
            Redshifts at which the distance is not smooth.

        Examples
        --------
        >>> def distance(z, p):  # the first terms of a cosmographic series
        ...     return 299792.458 / p["H0"] * z * (1 - (1 + p["q0"]) * z / 2)
        >>> series = Expansion.from_distance(distance, {"q0": dist.Uniform(-2, 1)})
        """
        names = ("H0", *priors)

        def build(values):
            return DistanceFunction(function, {name: values[name] for name in names}, tuple(breaks))

        function_name = _full_name(function)
        return Expansion(function_name, dict(priors), build, f"distances of {function_name}")

    @property
    def breaks(self) -> tuple[float, ...]:
        """Redshifts at which the expansion history is not smooth."""
        return breaks_of(self.build({"H0": H0} | dict.fromkeys(self.parameters, 0.3)))

    @property
    def is_registered(self) -> bool:
        """True if the expansion history can be restored from its name."""
        return not self.own

    def to_config(self) -> str:
        """Return the name stored in run folders."""
        return self.name if self.is_registered else f"own: {self.name}"


def _full_name(function) -> str:
    """Return module and qualified name of a function."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def named(choice: str | Expansion) -> Expansion:
    """Return the expansion history with this name.

    Parameters
    ----------
    choice : str or Expansion
        ``lcdm, olcdm, wcdm, owcdm``, ``w0wacdm`` or a name of `register`; or ``binned``, a flat universe whose equation
        of state is constant in bins of redshift, with parameters ``w_1, w_2, ...`` and optional edges, as in
        ``"binned(0.2, 0.5, 1)"``; or ``nodes``, free distances at the redshifts of Union3's 22 nodes or at others, as
        in ``"nodes(0.1, 0.5, 1)"`` (`hbm_jax.cosmology.distance_nodes.DistanceNodes`). An `Expansion` is returned
        unchanged.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest one.
    """
    if isinstance(choice, Expansion):
        return choice
    if str(choice).startswith("binned"):
        return _binned(str(choice))
    if str(choice).startswith("nodes"):
        return _nodes(str(choice))
    return REGISTRY[choose_registered("cosmology", choice, (*REGISTRY, *WITH_ARGUMENTS))]


REGISTRY: dict[str, Expansion] = {}
"""Expansion histories by name, without ``binned(...)`` and ``nodes(...)``, which have arguments."""


def register(name: str, expansion: Expansion) -> Expansion:
    """Give an expansion history a name that works wherever ``"lcdm"`` does, and return it.

    A run folder stores the name, so import the module that registers it before restoring the run.

    Parameters
    ----------
    name : str
        A new name; repeating a registration from the same function replaces it.
    expansion : Expansion
        The expansion history, for example from `Expansion.from_w`.

    Raises
    ------
    ValueError
        If the name is that of another expansion history.

    Examples
    --------
    >>> def w(z, p):  # Jassal, Bagla & Padmanabhan 2005
    ...     return p["w0"] + p["wa"] * z / (1 + z) ** 2
    >>> register("jbp", Expansion.from_w(w, {"w0": dist.Uniform(-3, 0), "wa": dist.Uniform(-5, 5)})).to_config()
    'jbp'
    """
    known = REGISTRY.get(name)
    if str(name).startswith(WITH_ARGUMENTS) or (known is not None and known.description != expansion.description):
        raise ValueError(f"cosmology: expected a new name; found {name!r}, which is that of another expansion history.")
    REGISTRY[name] = dataclasses.replace(expansion, name=name, own=False)
    SYMBOLS.update(expansion.symbols)
    return REGISTRY[name]


def _register_named(name: str) -> None:
    """Register an expansion history of `FREE`."""

    def build(values):
        arguments = {parameter: values[parameter] for parameter in ("H0", *FREE[name])}
        return Cosmology(**arguments) if "Ode0" in arguments else Cosmology.flat(**arguments)

    parameters = {parameter: DEFAULT_PRIORS[parameter] for parameter in FREE[name]}
    register(name, Expansion(name, parameters, build, DESCRIPTIONS[name]))


for _name in FREE:
    _register_named(_name)


def _redshifts(text: str, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the redshifts in a text such as ``"binned(0.2, 0.5)"``; none if it cannot be read."""
    if text == name:
        return default
    try:
        literal = ast.literal_eval(text.removeprefix(name))
        return tuple(float(z) for z in (literal if isinstance(literal, tuple) else (literal,)))
    except (ValueError, SyntaxError, TypeError):
        return ()


def _nodes(text: str) -> Expansion:
    """Return distances that are free at nodes in redshift."""
    redshifts = _redshifts(text, "nodes", UNION3_NODES)
    if len(redshifts) < 3 or min(redshifts) <= 0 or any(b <= a for a, b in itertools.pairwise(redshifts)):
        raise ValueError(
            f"cosmology: expected nodes, or nodes(z1, z2, ...) with three increasing redshifts or more above 0; found "
            f"{text!r}."
        )
    function = DistanceNodes(redshifts)
    listed = ", ".join(f"{z:g}" for z in redshifts)

    def build(values):
        return DistanceFunction(function, {name: values[name] for name in ("H0", *function.names)})

    return Expansion(
        "nodes" if redshifts == UNION3_NODES else f"nodes({listed})",
        dict.fromkeys(function.names, NODE_PRIOR),
        build,
        f"free distances at {len(redshifts)} nodes, z = {listed}",
        own=False,
        symbols={name: rf"$\Delta\mu_{{{k + 1}}}$" for k, name in enumerate(function.names)},
        units=dict.fromkeys(function.names, "mag"),
        fixed={"M0": FIXED_M0},
    )


def _function_of_nodes(choice: str | Expansion) -> DistanceNodes | None:
    """Return the distances at nodes of an expansion history, or None."""
    chosen = named(choice)
    function = getattr(chosen.build(dict.fromkeys(("H0", *chosen.parameters), 0.3)), "function", None)
    return function if isinstance(function, DistanceNodes) else None


def has_nodes(choice: str | Expansion) -> bool:
    """Return True for an expansion history with free distances at nodes."""
    return _function_of_nodes(choice) is not None


def distance_nodes(choice: str | Expansion, posterior: Mapping[str, Any], *, H0: float = H0) -> DistanceModuli:
    """Return the distance-level sample of a posterior of free distances: moduli at the nodes with their covariance.

    The noise of a covariance from n independent draws displaces parameters fitted to K nodes by about sqrt(K / n) of
    their errors (Dodelson & Schneider 2013, PRD 88, 063537). Above 0.1, and for blinded draws, a warning stays with it.

    Parameters
    ----------
    choice : str or Expansion
        ``"nodes"`` or ``"nodes(z1, z2, ...)"``.
    posterior : mapping of str to array (chain, draw)
        Draws of ``dmu_1`` and so on, such as ``fit.posterior``.
    H0 : float
        Value [km/s/Mpc] at which H0 was fixed. The moduli have a common offset, which `hbm_jax.models.HubbleDiagram`
        integrates out.

    Raises
    ------
    ValueError
        For another expansion history, and for fewer than ten draws for each node.
    """
    if (function := _function_of_nodes(choice)) is None:
        raise ValueError(f"distance_nodes: expected cosmology='nodes'; found {named(choice).name!r}.")
    draws = np.stack([np.ravel(posterior[name]) for name in function.names])
    if draws.shape[1] < 10 * len(draws):
        raise ValueError(f"distance_nodes: expected {10 * len(draws)} draws or more; found {draws.shape[1]}.")
    mu = precomputed(lambda: function.moduli(H0)) + draws.mean(axis=1)
    columns = {"name": [f"node {k + 1}" for k in range(len(draws))], "z_cmb": np.asarray(function.nodes), "mu": mu}
    sample = DistanceModuli.from_columns(columns | {"covariance": np.cov(draws)})
    displacement, warnings = np.sqrt(len(draws) / draws.shape[1]), list(sample.warnings)
    if any(getattr(posterior[name], "attrs", {}).get("blinded") for name in function.names):
        warnings += ["blinded: the moduli are shifted by hidden offsets, and so are parameters fitted to them"]
    if displacement > _DISPLACEMENT:
        noise = f"displaces parameters fitted to {len(draws)} nodes by {displacement:.2f} of their errors, more if"
        noise += f" draws are correlated; expected up to {_DISPLACEMENT} (until=)"
        warnings += [f"the covariance is from {draws.shape[1]} draws, whose noise {noise}"]
    return dataclasses.replace(sample, warnings=tuple(warnings))


def _binned(text: str) -> Expansion:
    """Return a flat expansion history with w constant in bins of redshift."""
    edges = _redshifts(text, "binned", BINNED_EDGES)
    if not edges or min(edges) <= 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"cosmology: expected binned, or binned(z1, z2, ...) with increasing redshifts above 0; found {text!r}."
        )
    names = [f"w_{index + 1}" for index in range(len(edges) + 1)]

    def build(values):
        w = jnp.stack([jnp.asarray(values[name], float) for name in names])
        return Cosmology.flat(H0=values["H0"], Om0=values["Om0"], dark_energy=BinnedDarkEnergy(edges, w))

    parameters = {"Om0": DEFAULT_PRIORS["Om0"]} | dict.fromkeys(names, BINNED_PRIOR)
    listed = ", ".join(f"{edge:g}" for edge in edges)
    return Expansion(f"binned({listed})", parameters, build, f"flat, w constant in bins cut at z = {listed}", own=False)


def default_priors(choice: str | Expansion) -> dict[str, Prior]:
    """Return the default priors of an expansion history, with H0 fixed at 70 km/s/Mpc."""
    return {"H0": H0} | dict(named(choice).parameters)


Degeneracy: TypeAlias = Callable[[Mapping[str, dist.Distribution], Mapping[str, float]], tuple[dict, dict]]


def sample_cosmology(choice: str | Expansion, priors: Mapping[str, Prior], degeneracy: Degeneracy | None = None) -> Any:
    """Sample the parameters of an expansion history and return the cosmology.

    The parameters are recorded as ``Om0, Ode0, w0, wa`` and so on, and ``Ok0`` where the curvature is free.

    Parameters
    ----------
    choice : str or Expansion
        Expansion history, as for `named`.
    priors : mapping of str to Distribution or float
        Priors of H0 and the parameters of the expansion; a number fixes a parameter.
    degeneracy : callable, optional
        Maps the priors of the free parameters and the values of the fixed ones to the degeneracies and bijections of
        `hbm_jax.distributions.CoordinatePriors`: coordinates along the degeneracy direction of the posterior. They
        affect the efficiency of the sampler only; the priors stay as stated.

    Returns
    -------
    Cosmology or DistanceFunction
        Built from the sampled parameters.
    """
    chosen = named(choice)
    hubble = priors["H0"]
    hubble = numpyro.sample("H0", hubble) if isinstance(hubble, dist.Distribution) else hubble
    values: dict[str, Any] = {parameter: priors[parameter] for parameter in chosen.parameters}
    free = {p: prior for p, prior in values.items() if isinstance(prior, dist.Distribution)}
    if in_stated_parameters():
        values |= {parameter: numpyro.sample(parameter, prior) for parameter, prior in free.items()}
    elif free:
        fixed = {p: value for p, value in values.items() if p not in free}
        coordinates = CoordinatePriors(free, *(degeneracy(free, fixed) if degeneracy is not None else ({}, {})))
        values |= coordinates.parameters(numpyro.sample("_cosmology", coordinates))
        for parameter in free:
            numpyro.deterministic(parameter, values[parameter])
    cosmology = chosen.build({"H0": hubble} | values)
    if "Ode0" in values and free.keys() & {"Om0", "Ode0"}:
        numpyro.deterministic("Ok0", cosmology.Ok0)
    return cosmology


def result_parameters(choice: str | Expansion, priors: Mapping[str, Prior]) -> tuple[str, ...]:
    """Return the sites whose values are the result of a fit of an expansion history.

    These are the free parameters, the curvature that follows from them, and M0 if H0 is free, because data fix their
    combination.
    """
    free = [name for name, prior in priors.items() if isinstance(prior, dist.Distribution)]
    names = [name for name in ("H0", *named(choice).parameters) if name in free]
    names += ["Ok0"] if "Ode0" in named(choice).parameters and {"Om0", "Ode0"} & set(names) else []
    return (*names, "M0") if {"H0", "M0"} <= set(free) else tuple(names)


def cosmology_from(choice: str | Expansion, values: Mapping[str, Any]) -> Any:
    """Return the cosmology of an expansion history for these parameter values.

    Parameters
    ----------
    choice : str or Expansion
        Expansion history, as for `named`.
    values : mapping of str to number
        Values of H0 and the parameters of the expansion; others are ignored.

    Returns
    -------
    Cosmology or DistanceFunction

    Examples
    --------
    >>> cosmology_from("wcdm", {"H0": 70.0, "Om0": 0.3, "w0": -0.9, "M0": -19.0}).Ode0
    0.7
    """
    return named(choice).build(values)


def distance_matrix(choice: str | Expansion, data: Any, z_max: float | None = None) -> RedshiftMatrix:
    """Return the distance matrix of objects for every cosmology of an expansion history.

    Parameters
    ----------
    choice : str or Expansion
        Expansion history, as for `named`; the panels of nodes end where it is not smooth.
    data : container
        N objects with redshifts ``z_cmb`` and ``z_hel``, (N,).
    z_max : float, optional
        Upper end of the nodes, so that matrices of several samples have equal structure; by default the largest
        redshift.
    """
    return RedshiftMatrix(data.z_cmb, data.z_hel, breaks=named(choice).breaks, z_max=z_max)


def distance_moduli(data: Any, cosmology: Any) -> jax.Array:
    """Return the distance modulus [mag] of N objects with redshifts ``z_cmb`` and ``z_hel`` in one cosmology, (N,).

    Redshifts may be traced, as those of a batch are; the moduli are then computed without a distance matrix.
    """
    if concrete(data.z_cmb) is None:
        return distmod(data.z_cmb, cosmology, z_hel=data.z_hel)
    return RedshiftMatrix(data.z_cmb, data.z_hel, breaks=breaks_of(cosmology)).distmod(cosmology)


def require_big_bang(modulus: Any) -> Any:
    """Add zero density where a distance modulus is not finite; return the moduli, 0 in that case.

    They are not finite for a cosmology without a big bang before the largest redshift. A NaN in the moduli would make
    gradients NaN.
    """
    finite = jnp.all(jnp.isfinite(modulus))
    numpyro.factor("_big_bang", jnp.where(finite, 0.0, -jnp.inf))
    return jnp.where(finite, modulus, 0.0)
