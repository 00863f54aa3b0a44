"""The expansion history as model parameters: which are free, what their priors are, and how they are walked."""

import ast
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import BinnedDarkEnergy, Cosmology, CustomDarkEnergy, DistanceFunction
from hbm_jax.distributions import CoordinatePriors
from hbm_jax.models.priors import Prior, in_stated_parameters
from hbm_jax.names import choose

# Free parameters of each named expansion history, the one that follows the others along the ridge last.
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
H0 = 70.0  # km/s/Mpc, held there by default: without an anchor it is degenerate with M0

DESCRIPTIONS = {
    "lcdm": "flat LCDM",
    "olcdm": "LCDM with curvature",
    "wcdm": "flat wCDM",
    "owcdm": "wCDM with curvature",
    "w0wacdm": "flat w0waCDM",
}
KNOWN = (*FREE, "binned")
HELP = f"{', '.join(FREE)}, binned or binned(z1, z2, ...): w constant in bins of redshift"


@dataclass(frozen=True, eq=False)
class Expansion:
    """An expansion history: its free parameters with their priors, and the universe that they make.

    What a model takes as its ``cosmology`` where a name does not do. `from_w` and `from_distance` build one of a
    user's own.

    Attributes
    ----------
    name : str
        For reports and run folders.
    parameters : dict of str to Distribution or float
        Besides H0, in order; a number is held fixed.
    build : callable
        Values of H0 and the parameters -> `hbm_jax.cosmology.Cosmology` or `DistanceFunction`.
    description : str
        In words.
    own : bool
        Whether it is a user's, which no name stands for.
    """

    name: str
    parameters: Mapping[str, Prior]
    build: Callable[[Mapping[str, Any]], Any]
    description: str
    own: bool = True

    @staticmethod
    def from_w(
        function: Callable[[Any, Mapping[str, Any]], Any],
        priors: Mapping[str, Prior],
        *,
        curvature: bool = False,
        breaks: tuple[float, ...] = (),
    ) -> "Expansion":
        """Build one with dark energy of an equation of state of the user's own.

        Parameters
        ----------
        function : callable
            ``w(z, parameters)``, written with jax.numpy for z of any shape.
        priors : mapping of str to Distribution or float
            Of the function's parameters. Om0 (and Ode0 with curvature) have their usual ones unless named here.
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
        parameters = densities | {name: prior for name, prior in priors.items() if name in densities}
        parameters |= {name: prior for name, prior in priors.items() if name not in densities}
        own = [name for name in parameters if name not in densities]

        def build(values):
            energy = CustomDarkEnergy(function, {name: values[name] for name in own}, tuple(breaks))
            first = {name: values[name] for name in ("H0", *densities)}
            return (Cosmology if curvature else Cosmology.flat)(**first, dark_energy=energy)

        named = _full_name(function)
        return Expansion(named, parameters, build, f"dark energy of {named}{', with curvature' if curvature else ''}")

    @staticmethod
    def from_distance(
        function: Callable[[Any, Mapping[str, Any]], Any],
        priors: Mapping[str, Prior],
        *,
        breaks: tuple[float, ...] = (),
    ) -> "Expansion":
        """Build one of which only the distances are known.

        Parameters
        ----------
        function : callable
            ``transverse_comoving_distance(z, parameters)`` [Mpc], written with jax.numpy for z of any shape;
            ``parameters`` has H0 too.
        priors : mapping of str to Distribution or float
            Of the function's parameters.
        breaks : tuple of float
            Redshifts at which it is not smooth.

        Examples
        --------
        >>> def distance(z, p):  # the first terms of a cosmographic series
        ...     return 299792.458 / p["H0"] * z * (1 - (1 + p["q0"]) * z / 2)
        >>> series = Expansion.from_distance(distance, {"q0": dist.Uniform(-2, 1)})
        """
        names = ("H0", *priors)

        def build(values):
            return DistanceFunction(function, {name: values[name] for name in names}, tuple(breaks))

        named = _full_name(function)
        return Expansion(named, dict(priors), build, f"distances of {named}")

    def to_config(self) -> str:
        """Name, as run folders have it."""
        return f"own: {self.name}" if self.own else self.name


def _full_name(function) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"


def named(choice: str | Expansion) -> Expansion:
    """Return the expansion history of a name.

    Parameters
    ----------
    choice : str or Expansion
        ``lcdm, olcdm, wcdm, owcdm, w0wacdm``; ``binned``: flat, the equation of state constant in bins of redshift,
        whose edges may be given as in ``"binned(0.2, 0.5, 1)"``, with parameters ``w_1, w_2, ...``. An `Expansion` is
        returned as it is.

    Raises
    ------
    ValueError
        For an unknown name; the nearest is offered.
    """
    if isinstance(choice, Expansion):
        return choice
    if str(choice).startswith("binned"):
        return _binned(str(choice))
    name = choose("cosmology", choice, KNOWN)
    parameters = {parameter: DEFAULT_PRIORS[parameter] for parameter in FREE[name]}

    def build(values):
        own = {parameter: values[parameter] for parameter in ("H0", *FREE[name])}
        return Cosmology(**own) if "Ode0" in own else Cosmology.flat(**own)

    return Expansion(name, parameters, build, DESCRIPTIONS[name], own=False)


def _binned(text: str) -> Expansion:
    """Flat universe with w constant in bins of redshift."""
    edges: tuple[float, ...] = BINNED_EDGES
    if text != "binned":
        try:
            given = ast.literal_eval(text.removeprefix("binned"))
            edges = tuple(float(edge) for edge in (given if isinstance(given, tuple) else (given,)))
        except (ValueError, SyntaxError, TypeError):
            edges = ()
    if not edges or min(edges) <= 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(
            f"cosmology: expected binned, or binned(z1, z2, ...) with increasing redshifts above 0; found {text!r}."
        )
    names = [f"w_{index + 1}" for index in range(len(edges) + 1)]

    def build(values):
        w = jnp.stack([jnp.asarray(values[name], float) for name in names])
        return Cosmology.flat(H0=values["H0"], Om0=values["Om0"], dark_energy=BinnedDarkEnergy(edges, w))

    parameters = {"Om0": DEFAULT_PRIORS["Om0"]} | dict.fromkeys(names, BINNED_PRIOR)
    cuts = ", ".join(f"{edge:g}" for edge in edges)
    return Expansion(f"binned({cuts})", parameters, build, f"flat, w constant in bins cut at z = {cuts}", own=False)


def default_priors(choice: str | Expansion) -> dict[str, Prior]:
    """Priors of an expansion history, H0 held at 70 km/s/Mpc (it is degenerate with M0 without an anchor)."""
    return {"H0": H0} | dict(named(choice).parameters)


Ridge: TypeAlias = Callable[[Mapping[str, dist.Distribution], Mapping[str, float]], tuple[dict, dict]]


def sample_cosmology(choice: str | Expansion, priors: Mapping[str, Prior], ridge: Ridge | None = None) -> Any:
    """Sample sites of an expansion history.

    Parameters
    ----------
    choice : str or Expansion
        As `expansion`.
    priors : mapping of str to Distribution or float
        H0 and the parameters of the expansion; a number fixes a parameter.
    ridge : callable, optional
        Given the free parameters' priors and the fixed ones' values, returns the ridges and bijections of
        `hbm_jax.distributions.CoordinatePriors`: coordinates that follow the ridge which the model's kind of data
        leaves in the posterior. It steers the sampler and cannot change what is sampled.

    Returns
    -------
    Cosmology or DistanceFunction
        With traced parameters. Named sites such as ``Om0, Ode0, w0, wa`` are recorded (and ``Ok0`` where it is free).
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
        coordinates = CoordinatePriors(free, *(ridge(free, fixed) if ridge is not None else ({}, {})))
        values |= coordinates.parameters(numpyro.sample("_cosmology", coordinates))
        for parameter in free:
            numpyro.deterministic(parameter, values[parameter])
    cosmology = chosen.build({"H0": hubble} | values)
    if "Ode0" in values and free.keys() & {"Om0", "Ode0"}:
        numpyro.deterministic("Ok0", cosmology.Ok0)
    return cosmology


def cosmology_from(choice: str | Expansion, values: Mapping[str, Any]) -> Any:
    """Cosmology of an expansion history at given parameter values.

    Parameters
    ----------
    choice : str or Expansion
        As `expansion`.
    values : mapping of str to number
        H0 and the parameters of the expansion; others are ignored.

    Returns
    -------
    Cosmology or DistanceFunction

    Examples
    --------
    >>> cosmology_from("wcdm", {"H0": 70.0, "Om0": 0.3, "w0": -0.9, "M0": -19.0}).Ode0
    0.7
    """
    return named(choice).build(values)
