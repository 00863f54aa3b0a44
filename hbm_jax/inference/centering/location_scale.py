"""Partial non-centring of location-scale sites: reparametrisations from centred to non-centred.

A latent u whose prior has location m and scale t, which may be parameters, is sampled as the x of

    u = m + (t / t0)^(1 - c) (x - c m),      x ~ prior of location c m and scale t0 (t / t0)^c.

Here c is a weight: c = 1 samples u itself (centred), c = 0 samples x = t0 (u - m) / t (non-centred). The reference
scale t0 is fixed. With t0 = 1 this is the parametrisation of Gorinova, Moore & Hoffman 2020, ICML,
arXiv:1906.03028, where the best c depends on the unit of u; with t0 near t it does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.reparam import Reparam

from hbm_jax.inference.arguments import latents_of
from hbm_jax.inference.program import name_of

FAMILIES = (
    dist.Normal,
    dist.StudentT,
    dist.Laplace,
    dist.Cauchy,
    dist.Logistic,
    dist.Gumbel,
    dist.SoftLaplace,
    dist.AsymmetricLaplace,
    dist.LogNormal,  # its logarithm is normal
)


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "reference"], meta_fields=["site"])
@dataclass(frozen=True, eq=False)
class PartialNonCentring(Reparam):
    """Partial non-centring of one location-scale site, as a NumPyro reparametrisation.

    Attributes
    ----------
    site : str
        Name of the site.
    weight : array
        Weight c of each element, 0 (non-centred) to 1 (centred); the shape of the site.
    reference : array
        Reference scale t0 of each element; the shape of the site.
    """

    site: str
    weight: np.ndarray
    reference: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the attributes as plain arrays, for `with_partial_centring`."""
        arrays = {"centredness": self.weight, "reference": self.reference}  # names in the files of runs
        return {f"form:{self.site}:{name}": np.asarray(array) for name, array in arrays.items()}

    @property
    def sampled_site(self) -> str:
        """Name of the site of x, which is sampled instead; the leading underscore hides it from the results."""
        return f"_{self.site}_free"

    def __call__(self, name, fn, obs):
        """Sample x and return u; called by NumPyro's ``reparam`` handler."""
        if fn.shape() != self.weight.shape:
            raise ValueError(
                f"Site {name!r}: expected the shape {self.weight.shape} for which its weights were chosen; "
                f"found {fn.shape()}. Choose them again for these data."
            )
        base = _base(fn)
        family: type = dist.Normal if is_log(fn) else type(base)
        location, scale = location_scale(fn)
        shape_parameters = {key: getattr(base, key) for key in base.arg_constraints if key not in ("loc", "scale")}
        c, ratio = self.weight, scale / self.reference
        distribution = family(loc=c * location, scale=self.reference * ratio**c, **shape_parameters)
        x = numpyro.sample(self.sampled_site, distribution.to_event(fn.event_dim))
        value = location + ratio ** (1.0 - c) * (x - c * location)
        return None, jnp.exp(value) if is_log(fn) else value

    def sampled_value(self, value, location, scale):
        """Return x for a value u and the location and scale of its prior."""
        return self.weight * location + (scale / self.reference) ** (self.weight - 1.0) * (value - location)


@dataclass(frozen=True, eq=False)
class ReparametrisedProgram:
    """A program with some sites partially non-centred; posterior, site names and attributes are unchanged."""

    program: Callable
    reparametrisations: tuple[PartialNonCentring, ...]

    def __post_init__(self):
        source = self.program if hasattr(self.program, "__qualname__") else type(self.program)
        object.__setattr__(self, "__module__", source.__module__)
        object.__setattr__(self, "__qualname__", name_of(self.program))

    @property
    def __wrapped__(self):
        return self.program  # for inspect.signature, which then returns the program's arguments

    def __getattr__(self, name):
        if name.startswith("__") or name in ("program", "reparametrisations"):
            raise AttributeError(name)
        return getattr(self.program, name)

    def __call__(self, *args, **kwargs):
        """Run the NumPyro program."""
        config = {part.site: part for part in self.reparametrisations}
        return handlers.reparam(self.program, config=config)(*args, **kwargs)


def with_partial_centring(program: Callable, arrays: Mapping[str, np.ndarray]) -> Callable:
    """Return the program with the reparametrisations stored by `PartialNonCentring.to_arrays`, if there are any."""
    sites = dict.fromkeys(name.split(":")[1] for name in arrays if name.startswith("form:"))
    reparametrisations = tuple(
        PartialNonCentring(site, arrays[f"form:{site}:centredness"], arrays[f"form:{site}:reference"]) for site in sites
    )
    return ReparametrisedProgram(program, reparametrisations) if reparametrisations else program


def find_sites(program: Callable, args: tuple, key: jax.Array) -> dict[str, tuple[int, ...]]:
    """Return the location-scale sites whose location or scale depends on another latent, with their shapes.

    Sites that are masked, scaled or in a subsampled plate are excluded, because their density is not that of their
    distribution, and sites whose name begins with an underscore, which the program has already reparametrised.

    Raises
    ------
    ValueError
        If a latent site is discrete.
    """
    candidates: dict[str, tuple[int, ...]] = {}

    def parameter_tangents(key):
        key_values, key_tangents = jax.random.split(key)
        seeded = handlers.seed(program, key_values)
        substituted = handlers.substitute(seeded, substitute_fn=init_to_sample())  # has a value for improper priors too
        trace = handlers.trace(substituted).get_trace(*args)
        free = latents_of(trace)
        for name, site in free.items():
            has_location_scale = _has_location_scale(site["fn"]) and not site.get("_control_flow_done")
            if has_location_scale and site["scale"] is None and not name.startswith("_"):
                candidates[name] = site["fn"].shape()
            if site["fn"].support.is_discrete:
                raise ValueError(f"centre: expected continuous latents only; found the discrete site {name!r}.")
        values = {name: site["value"] for name, site in free.items()}
        keys = dict(zip(values, jax.random.split(key_tangents, len(values)), strict=True))
        tangents = {name: jax.random.normal(keys[name], jnp.shape(value)) for name, value in values.items()}

        def parameters(values):
            trace = handlers.trace(handlers.substitute(seeded, values)).get_trace(*args)
            return {name: location_scale(trace[name]["fn"]) for name in candidates}

        # A derivative along one random direction in all latents, which is zero only if there is no dependence.
        return jax.jvp(parameters, (values,), (tangents,))[1]

    # Under jit: one compilation, instead of one per operation.
    derivatives = jax.device_get(jax.jit(parameter_tangents)(key))
    # The derivative of an integer, as in Normal(0, 5), has the type float0.
    return {
        name: shape
        for name, shape in candidates.items()
        if any(d.dtype != jax.dtypes.float0 and np.any(d != 0) for d in derivatives[name])
    }


def _has_location_scale(fn) -> bool:
    """Return whether a distribution is of a location-scale family; others declare ``location_scale = True``."""
    family = type(_base(fn))
    return family in FAMILIES or getattr(family, "location_scale", False) is True


def _base(fn):
    """Return the distribution within the wrappers of `to_event` and `expand`."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def is_log(fn) -> bool:
    """Return whether location and scale are those of the logarithm of the variable."""
    return isinstance(_base(fn), dist.LogNormal)


def location_scale(fn):
    """Return location and scale of every element of a location-scale distribution."""
    base = _base(fn)
    return jnp.broadcast_to(base.loc, fn.shape()), jnp.broadcast_to(base.scale, fn.shape())
