"""Sites with a location and a scale, and the forms in which they can be sampled: centred, non-centred, or in between.

A latent u with a prior of location m and scale t, both perhaps parameters, can be sampled as the x of

    u = m + (t / t0)^(1 - c) (x - c m),      x ~ prior of location c m and scale t0 (t / t0)^c,

where c is the centredness, 1 for u itself and 0 for the non-centred t0 (u - m) / t, and t0 a fixed reference. With
t0 = 1 this is the form of Gorinova, Moore & Hoffman 2020, ICML, arXiv:1906.03028, in which the best c depends on the
unit of u; with t0 near t it does not.
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

from hbm_jax.inference.sampler.fingerprint import program_name

FAMILIES = (
    dist.Normal,
    dist.StudentT,
    dist.Laplace,
    dist.Cauchy,
    dist.Logistic,
    dist.Gumbel,
    dist.SoftLaplace,
    dist.AsymmetricLaplace,
    dist.LogNormal,  # whose logarithm is one
)


@partial(jax.tree_util.register_dataclass, data_fields=["centredness", "reference"], meta_fields=["site"])
@dataclass(frozen=True, eq=False)
class Form(Reparam):
    """The form in which one location-scale site is sampled; a NumPyro reparametrisation.

    Attributes
    ----------
    site : str
        Name of the site.
    centredness : array
        c of each element, of the site's shape, 0 to 1.
    reference : array
        t0 of each element, of the site's shape.
    """

    site: str
    centredness: np.ndarray
    reference: np.ndarray

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays."""
        return {f"form:{self.site}:{what}": np.asarray(getattr(self, what)) for what in ("centredness", "reference")}

    @property
    def helper(self) -> str:
        """Name of the site that is sampled instead; hidden, because it begins with an underscore."""
        return f"_{self.site}_free"

    def __call__(self, name, fn, obs):
        """Sample x and return u; what NumPyro's ``reparam`` handler calls."""
        if fn.shape() != self.centredness.shape:
            raise ValueError(
                f"Site {name!r}: expected the shape {self.centredness.shape} for which its centredness was chosen; "
                f"found {fn.shape()}. Choose it again for this data."
            )
        base = _base(fn)
        family: type = dist.Normal if is_log(fn) else type(base)
        location, scale = location_scale(fn)
        others = {key: getattr(base, key) for key in base.arg_constraints if key not in ("loc", "scale")}
        c, ratio = self.centredness, scale / self.reference
        free = family(loc=c * location, scale=self.reference * ratio**c, **others)
        x = numpyro.sample(self.helper, free.to_event(fn.event_dim))
        value = location + ratio ** (1.0 - c) * (x - c * location)
        return None, jnp.exp(value) if is_log(fn) else value

    def free(self, value, location, scale):
        """Return the x of a value u."""
        return self.centredness * location + (scale / self.reference) ** (self.centredness - 1.0) * (value - location)


@dataclass(frozen=True, eq=False)
class Recentred:
    """A program with some sites in other forms: same posterior, same names; attributes are the program's own."""

    program: Callable
    forms: tuple[Form, ...]

    def __post_init__(self):
        own = self.program if hasattr(self.program, "__qualname__") else type(self.program)
        object.__setattr__(self, "__module__", own.__module__)
        object.__setattr__(self, "__qualname__", program_name(self.program))

    @property
    def __wrapped__(self):
        return self.program  # so that inspect.signature sees the program's arguments

    def __getattr__(self, name):
        if name.startswith("__") or name in ("program", "forms"):
            raise AttributeError(name)
        return getattr(self.program, name)

    def __call__(self, *args, **kwargs):
        """Run the NumPyro program."""
        return handlers.reparam(self.program, config={form.site: form for form in self.forms})(*args, **kwargs)


def with_forms(program: Callable, arrays: Mapping[str, np.ndarray]) -> Callable:
    """Return a program in the forms that `Form.to_arrays` wrote; as it is where there are none."""
    sites = dict.fromkeys(name.split(":")[1] for name in arrays if name.startswith("form:"))
    forms = tuple(Form(s, arrays[f"form:{s}:centredness"], arrays[f"form:{s}:reference"]) for s in sites)
    return Recentred(program, forms) if forms else program


def find_sites(program: Callable, args: tuple, key: jax.Array) -> dict[str, tuple[int, ...]]:
    """Location-scale sites of a program whose location or scale depends on a latent, with their shapes.

    Sites under a mask, a scale or in a subsampled plate are left out: their density is not that of their distribution.
    So are those whose name begins with an underscore, which are a program's own choice of coordinates.
    """
    candidates: dict[str, tuple[int, ...]] = {}

    def slopes(key):
        key_values, key_tangents = jax.random.split(key)
        seeded = handlers.seed(program, key_values)
        drawn = handlers.substitute(seeded, substitute_fn=init_to_sample())  # which has a value for improper priors too
        trace = handlers.trace(drawn).get_trace(*args)
        free = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
        for name, site in free.items():
            known = _is_known(site["fn"]) and not site.get("_control_flow_done")
            if known and site["scale"] is None and not name.startswith("_"):
                candidates[name] = site["fn"].shape()
            if site["fn"].support.is_discrete:
                raise ValueError(f"centre: expected continuous latents only; found the discrete site {name!r}.")
        values = {name: site["value"] for name, site in free.items()}
        keys = dict(zip(values, jax.random.split(key_tangents, len(values)), strict=True))
        tangents = {name: jax.random.normal(keys[name], jnp.shape(value)) for name, value in values.items()}

        def parameters(values):
            trace = handlers.trace(handlers.substitute(seeded, values)).get_trace(*args)
            return {name: location_scale(trace[name]["fn"]) for name in candidates}

        # One derivative along a random direction in all latents: zero only where there is no dependence.
        return jax.jvp(parameters, (values,), (tangents,))[1]

    # Under jit, so that one compilation takes the place of one per operation.
    found = jax.device_get(jax.jit(slopes)(key))
    return {name: shape for name, shape in candidates.items() if any(np.any(slope != 0) for slope in found[name])}


def _is_known(fn) -> bool:
    """Whether a distribution has a location and a scale; one of a user's own says so by `location_scale` = True."""
    family = type(_base(fn))
    return family in FAMILIES or getattr(family, "location_scale", False) is True


def _base(fn):
    """Return a distribution without the layers of `to_event` and `expand`."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def is_log(fn) -> bool:
    """Whether a distribution's logarithm is what has the location and the scale."""
    return isinstance(_base(fn), dist.LogNormal)


def location_scale(fn):
    """Location and scale of every element of a distribution in `FAMILIES`."""
    base = _base(fn)
    return jnp.broadcast_to(base.loc, fn.shape()), jnp.broadcast_to(base.scale, fn.shape())
