"""Replicated data at single posterior draws, from the observed sites of a program."""

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.ops.provenance import eval_provenance

from hbm_jax.inference.arguments import prior_trace
from hbm_jax.inference.model_check.host_draws import draw_counts, draws_on_host, innermost, parameters_of
from hbm_jax.inference.program import dims_of, integrated_in, unobserved
from hbm_jax.inference.sampler.target import is_observation, plate_dims

MAX_COMPONENTS = 8  # largest last axis of an event that counts as components of a vector
NUM_REPLICATES = 200  # fewer for large data
MAX_VALUES = 260_000  # replicated values at each draw, above which there are fewer replicates
MIN_REPLICATES = 100
MANY_COUNTS = 100_000  # replicated counts at each draw, above which a program is optimised


class Site(NamedTuple):
    """An observed site; an axis of components of a vector is not among its axes."""

    shape: tuple[int, ...]  # lengths of the axes
    axes: tuple[str, ...]  # names of the axes
    components: tuple[str, ...]  # names of the components; empty for scalars
    axis_labels: tuple[tuple[str, ...], ...]  # labels along each axis
    loops: bool  # whether the program draws values by loops of rejection, such as counts
    conditional: bool  # whether residuals given all other values are computed from the score
    normals: tuple[int, ...] | None  # shape of the standard normals from which values are computed, if there is one


@dataclass(frozen=True)
class Structure:
    """Sites of a program.

    Attributes
    ----------
    latents : dict of str to tuple of int
        Shape of each latent site, unconstrained.
    redrawn : tuple of str
        Latents of objects, whose distribution is that of a population, and which can be drawn anew.
    observed : dict of str to Site
        Observed sites, without `numpyro.factor`.
    """

    latents: dict[str, tuple[int, ...]]
    redrawn: tuple[str, ...]
    observed: dict[str, Site]

    def standard_normals(self, rng: np.random.Generator, num: int) -> dict[str, np.ndarray]:
        """Return standard normals for ``num`` replicates at both levels of `replicator`, (2, num, ...), by NumPy.

        They are those of observed sites that are computed from normals. Those of JAX take long to compile.
        """
        shapes = {name: site.normals for name, site in self.observed.items() if site.normals is not None}
        return {name: rng.standard_normal((2, num, *shape)) for name, shape in shapes.items()}

    @property
    def size(self) -> int:
        """Number of observed values."""
        return sum(int(np.prod(site.shape)) * max(len(site.components), 1) for site in self.observed.values())

    def draws_many_counts(self, num_replicates: int) -> bool:
        """Return whether drawing replicated counts, by loops of rejection, takes longer than compiling the program."""
        return num_replicates * self.size > MANY_COUNTS and any(site.loops for site in self.observed.values())


def number_of_replicates(size: int) -> int:
    """Return the number of replicated data sets for a number of observed values."""
    return int(np.clip(MAX_VALUES // max(size, 1), MIN_REPLICATES, NUM_REPLICATES))


def inspect_program(
    program: Callable,
    args: tuple,
    coords: Mapping[str, Sequence] = MappingProxyType({}),
    redrawn: tuple[str, ...] | None = None,
) -> Structure:
    """Trace a program without computing anything, and return its structure.

    ``args`` may be bound data. ``redrawn`` are those of the structure, if they are known.
    """
    latents: dict[str, tuple[int, ...]] = {}
    plated: list[str] = []
    observed: dict[str, Site] = {}

    def record(key):
        trace = prior_trace(program, args, key)
        dims = plate_dims(trace) | dims_of(program)
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            if is_observation(site):
                observed[name] = _site(site, list(dims.get(name, [])), coords)
            elif not site["is_observed"]:
                latents[name] = np.shape(biject_to(site["fn"].support).inv(site["value"]))
                if site["cond_indep_stack"]:
                    plated.append(name)
        return {name: trace[name]["value"] for name in latents}

    values = jax.eval_shape(record, jax.random.key(0))
    if redrawn is None:
        redrawn = _object_latents(program, args, values, plated)
    return Structure(latents, redrawn, observed)


def _site(site, dims: list[str], coords: Mapping[str, Sequence]) -> Site:
    """Describe the axes of an observed site."""
    shape, event_dim = np.shape(site["value"]), site["fn"].event_dim
    dims += [f"axis {i + 1}" for i in range(len(dims), len(shape))]
    is_vector = event_dim > 0 and len(shape) > 1 and shape[-1] <= MAX_COMPONENTS
    components: tuple[str, ...] = ()
    if is_vector:
        labels = coords.get(dims[-1], ())
        names = labels if len(labels) == shape[-1] else [f"component {i + 1}" for i in range(shape[-1])]
        components, shape, dims = tuple(map(str, names)), shape[:-1], dims[:-1]
    labels = tuple(
        tuple(map(str, coords[dim])) if len(coords.get(dim, ())) == size else tuple(map(str, range(size)))
        for dim, size in zip(dims, shape, strict=True)
    )
    is_discrete = site["fn"].support.is_discrete
    loops = is_discrete and not draws_on_host(site["fn"])
    fn = site["fn"].base_dist if isinstance(site["fn"], dist.MaskedDistribution) else site["fn"]
    normals = getattr(fn, "shape_of_normals", None)
    return Site(shape, tuple(dims), components, labels, loops, event_dim > 0 and not is_discrete, normals)


def _object_latents(
    program: Callable, args: tuple, values: Mapping[str, Any], plated: Sequence[str]
) -> tuple[str, ...]:
    """Return the latents in plates whose distribution depends on other latents: those of objects.

    ``values`` are those of all latents, or their shapes. Hidden auxiliary sites, whose names begin with ``_``, are
    standardised latents of objects and included.
    """
    visible = [name for name in plated if not name.startswith("_")]

    def log_probs(**values):
        substituted = handlers.substitute(handlers.seed(program, 0), data=values)
        trace = handlers.trace(substituted).get_trace(*args)
        return {name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in visible}

    origins = eval_provenance(log_probs, **values) if visible else {}
    return tuple(name for name in plated if name not in origins or origins[name] - {name})


def split_positions(positions: np.ndarray, structure: Structure) -> dict[str, np.ndarray]:
    """Split flat unconstrained draws (draw, size) into sites, in the order of `hbm_jax.inference.sampler.target`."""
    draws, start = {}, 0
    for name in sorted(structure.latents):
        shape = structure.latents[name]
        stop = start + int(np.prod(shape))
        draws[name] = positions[:, start:stop].reshape(-1, *shape)
        start = stop
    return draws


def replicator(program: Callable, args: tuple, structure: Structure, num: int) -> Callable:
    """Return a function that pools measured with ``num`` replicated values.

    Its arguments are unconstrained latents, key data, and the normals of `Structure.standard_normals`.

    It returns a dictionary for each (observed site, level), with ``values`` (1 + num, ...), the measured first, and the
    mask ``valid``. The levels are "given latents" and, with the latents of objects drawn anew, "population". If
    components are correlated, ``scores`` is the gradient of minus the log density of the values, which for normal
    distributions is the residual of each value given all others times a constant.

    If the distribution of a site has a ``shape_of_normals``, values are those of its method ``from_normals``.
    Of counts that NumPy draws, see `hbm_jax.inference.model_check.host_draws`, ``values`` are the measured ones alone,
    and `completed` adds the replicates.
    """
    integrated = integrated_in(program)

    def trace_at(key, fixed, fill):
        """Trace the program with latents from ``fill``; ``fixed`` has the parameters that it integrates out."""
        substituted = handlers.substitute(unobserved(program) if fixed else program, data=fixed)
        substituted = handlers.substitute(substituted, substitute_fn=fill)
        # Seeded outermost: sites with values need no random keys, whose derivation takes long to compile.
        return handlers.trace(handlers.seed(substituted, key)).get_trace(*args)

    def run(latents, key_data, normals):
        key = jax.random.wrap_key_data(key_data)
        fill = _substituting(latents)
        seeded = handlers.seed(handlers.substitute(program, substitute_fn=fill), key)
        trace = handlers.trace(seeded).get_trace(*args, **({"recover": True} if integrated else {}))
        measured = {name: jnp.asarray(trace[name]["value"]) for name in structure.observed}
        fixed = {name: trace[name]["value"] for name in integrated}
        trace = trace_at(key, fixed, fill) if integrated else trace
        pools = {}
        for name, site in structure.observed.items():
            fn, mask = _distribution(trace[name]["fn"], measured[name])
            site_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            if draws_on_host(fn):
                same = {key: jnp.broadcast_to(v, (num, *jnp.shape(v))) for key, v in parameters_of(fn).items()}
                pools[name, "given latents"] = _for_host(measured[name], fn, same, site_key) | {"valid": mask}
                continue
            if name in normals:
                drawn = jax.vmap(fn.from_normals)(normals[name][0])
            else:
                drawn = jax.vmap(fn.sample)(jax.random.split(site_key, num))
            pool = {"values": jnp.concatenate([measured[name][None], drawn.astype(measured[name].dtype)])}
            if site.conditional:
                pool["scores"] = jax.vmap(jax.grad(lambda value, fn=fn: -fn.log_prob(value).sum()))(pool["values"])
            pools[name, "given latents"] = pool | {"valid": mask}
        if structure.redrawn:
            fill_population = _substituting(
                {name: value for name, value in latents.items() if name not in structure.redrawn}
            )

            def replicate(key, normals):
                drawn = trace_at(key, fixed, fill_population)
                values = {}
                for i, (name, value) in enumerate(measured.items()):
                    fn, _ = _distribution(drawn[name]["fn"], value)
                    if name in normals:
                        values[name] = fn.from_normals(normals[name])
                    elif draws_on_host(fn):
                        values[name] = parameters_of(fn)
                    else:
                        values[name] = fn.sample(jax.random.fold_in(key, i))
                return values

            population_key = jax.random.fold_in(key, 1)
            of_population = {name: both_levels[1] for name, both_levels in normals.items()}
            drawn = jax.vmap(replicate)(jax.random.split(population_key, num), of_population)
            for i, (name, values) in enumerate(drawn.items()):
                pool = pools[name, "given latents"]
                if "distribution" in pool:
                    site_key = jax.random.fold_in(population_key, num + i)
                    filled = _for_host(measured[name], pool["distribution"], values, site_key)
                else:
                    filled = {"values": jnp.concatenate([measured[name][None], values.astype(measured[name].dtype)])}
                pools[name, "population"] = filled | {"valid": pool["valid"]}
        return pools

    return run


def without_padding(values: Any, site: Site, num_leading: int = 0) -> np.ndarray:
    """Return values of a site without those of padding; ``num_leading`` axes come before those of the site."""
    values = np.asarray(values)
    num = values.ndim - num_leading
    return values[(..., *map(slice, site.shape[:num]), *[slice(None)] * (num - len(site.shape)))]


def completed(pool: Mapping[str, Any], site: Site) -> Mapping[str, Any]:
    """Return a pool of `replicator` without padding, and with the replicates that NumPy draws on the host."""
    if "distribution" not in pool:
        return {name: without_padding(values, site, name != "valid") for name, values in pool.items()}
    rng = np.random.default_rng(np.asarray(pool["seed"]))
    parameters = {name: without_padding(values, site, 1) for name, values in pool["parameters"].items()}
    replicates = draw_counts(pool["distribution"], parameters, rng)
    measured = without_padding(pool["values"], site, 1)
    return {"values": np.concatenate([measured, replicates]), "valid": without_padding(pool["valid"], site)}


def _for_host(measured, fn, parameters, key) -> dict[str, Any]:
    """Return what `completed` needs: measured values, distribution, its parameters (num, ...), and a seed."""
    seed = jax.random.key_data(key)
    return {"values": measured[None], "distribution": innermost(fn), "parameters": parameters, "seed": seed}


def _substituting(latents: Mapping[str, Any]) -> Callable:
    """Return a ``substitute_fn`` that constrains unconstrained latents."""

    def fill(site):
        if site["type"] == "sample" and site["name"] in latents and not site.get("is_observed"):
            return biject_to(site["fn"].support)(latents[site["name"]])
        return None

    return fill


def _distribution(fn, measured) -> tuple[dist.Distribution, Any]:
    """Return the distribution of a site with the shape of the measured values, and its mask."""
    mask: Any = True
    if isinstance(fn, dist.MaskedDistribution):
        mask, fn = fn._mask, fn.base_dist
    size = getattr(fn, "total_count", None)
    if size is not None and jnp.issubdtype(jnp.result_type(size), jnp.floating):
        # NumPyro 0.22 cannot draw binomial counts with numbers of trials of a floating-point type.
        fn = copy.copy(fn)
        fn.total_count = jnp.round(size).astype(int)
    batch = np.shape(measured)[: np.ndim(measured) - fn.event_dim]
    if fn.batch_shape != batch:  # a site without a plate
        fn = fn.expand(batch)
    return fn, jnp.broadcast_to(mask, batch)
