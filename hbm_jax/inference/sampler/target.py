"""Log density of a NumPyro program and its data as a function of one flat unconstrained vector.

Mode searches, samplers and checkpoints use this vector; `Target.constrain` computes the named sites from it.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import distributions as dist
from numpyro.distributions import biject_to
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn
from numpyro.primitives import Messenger

from hbm_jax.inference.arguments import (
    latents_of,
    naming_arguments,
    plain_arguments,
    prior_trace,
    without_support_warnings,
)
from hbm_jax.inference.compilation.constants_as_arguments import Compiled, compiled
from hbm_jax.inference.compilation.identity import identity_of, of_function
from hbm_jax.inference.compilation.separation import Separated, separated
from hbm_jax.inference.program import binds, further_starts_of, traceable_priors
from hbm_jax.inference.sampler.diagnosis import diagnose, require_continuous, require_matching_shapes
from hbm_jax.inference.storage import require_storable_names
from hbm_jax.xla_options import QUICK

PRIOR_DRAWS = 15  # number of prior draws; searches start at them and at their componentwise median


class StartError(RuntimeError):
    """No starting point with a finite log density and gradient was found."""


class OneProcess:
    """Evaluation of a density by a single process; `hbm_jax.inference.distributed.Processes` uses several."""

    leads = True
    num_devices = 0  # devices over which the objects are split
    _interrupted = False  # whether a Ctrl-C is pending

    def compile(
        self,
        fn: Callable,
        *args: Any,
        compared: bool = True,
        options: Any = None,
        arrays: Sequence[Any] = (),
        identity: Any = None,
    ) -> Callable:
        """Compile a function for arguments of these shapes, with options of XLA; others as in `compiled`.

        ``compared`` has no effect in a single process.
        """
        return compiled(fn, *args, compiler_options=options, arrays=arrays, identity=identity)

    def lead(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` and return its result; raise KeyboardInterrupt first if a Ctrl-C is pending."""
        self._raise_if_interrupted()
        return work()

    def open(self, kind: Callable, folder) -> Any:
        """Open a checkpoint folder."""
        return kind(folder)

    def choose_start(self, choose: Callable, target: "Target", num_chains: int, key: jax.Array) -> Any:
        """Choose starting points and metric."""
        return choose(target, num_chains, key)

    def listening(self) -> contextlib.AbstractContextManager:
        """Context of a run: Python handles Ctrl-C, except within `drawing`."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Context of sampling: after Ctrl-C, `lead` raises KeyboardInterrupt at the end of the current block.

        The same holds for SIGTERM if it has a Python handler. A second signal raises at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
        previous = {number: signal.signal(number, self._record_signal) for number in caught}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record_signal(self, number, frame):
        """Handle a signal: record the first, raise KeyboardInterrupt at the second."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _raise_if_interrupted(self):
        """Raise KeyboardInterrupt if a signal is pending."""
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Target:
    """Posterior of a program given its data, as a function of a flat unconstrained vector.

    Attributes
    ----------
    potential : callable
        (size,) -> scalar, minus the log density.
    sites : callable
        (size,) -> dict of site name to value, for every latent and deterministic site.
    start : (size,)
        A point near the median of the prior.
    labels : tuple of str
        Name of each component of the flat vector.
    dims : dict of str to list of str
        Dimensions of each site, from its plates.
    bounds : dict of str to (float, float)
        Lower and upper bound of the prior of each site with scalar events; infinite if unbounded.
    prior_draws : (num, size)
        Draws of the prior; the standard components have their start value.
    standard : (size,) of bool
        Components whose sites declare, by ``infer={"start": value}``, that their posterior is about a normal
        distribution of unit width around this value.
    processes : OneProcess
        Compiles programs that use the potential, for one process or several.
    observed : bool
        Whether any site is observed; otherwise the posterior is the prior.
    prior : callable or None
        Keys (num,) -> draws of the prior (num, size), compiled for each number; None if unknown.
    unconstrain : callable or None
        Dict of site name to value, for every latent site -> (size,); None if unknown.
    diagnose : callable or None
        (size,) -> `Diagnosis` of the log density there; None if unknown. It runs the program without compilation.
    further_starts : callable or None
        `hbm_jax.inference.program.Program.further_starts` for the data.
    arrays : callable
        Returns the arrays of the data that are arguments of compiled programs, so that these serve other data of the
        same shapes; none if the data are constants of them.
    real : (size,) of bool
        False for components of padding, which are independent of all others. Empty: all are real.
    sizes : dict of str to int
        Size of each plate without padding.
    """

    potential: Callable
    sites: Callable
    start: np.ndarray
    labels: tuple[str, ...]
    dims: dict[str, list[str]]
    bounds: dict[str, tuple[float, float]]
    prior_draws: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    standard: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    processes: OneProcess = field(default_factory=OneProcess)
    observed: bool = True
    prior: Callable | None = None
    unconstrain: Callable | None = None
    diagnose: Callable | None = None
    further_starts: Callable | None = None
    arrays: Callable[[], Sequence[Any]] = tuple
    real: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of unconstrained parameters."""
        return len(self.labels)

    @property
    def real_labels(self) -> tuple[str, ...]:
        """Names of the components without those of padding."""
        return tuple(itertools.compress(self.labels, self.real)) if len(self.real) else self.labels

    def without_padding(self, positions: np.ndarray) -> np.ndarray:
        """Return positions (..., size) without the components of padding."""
        return positions[..., self.real] if len(self.real) else positions

    @cached_property
    def unit(self) -> np.ndarray:
        """Powers of two near the spread of the prior of each component, (size,); 1 for the standard ones.

        The spread is the median absolute deviation of the prior draws, because priors may have heavy tails. A product
        with a power of two is exact, so that the units of a parameter do not change a search.
        """
        unit = np.ones(self.size)
        if len(self.prior_draws):
            spread = np.median(np.abs(self.prior_draws - self.start), axis=0)
            usable = np.isfinite(spread) & (spread > 0)
            unit[usable] = np.exp2(np.round(np.log2(spread[usable])))
        return unit

    def draw_prior(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draw from the prior, (num, size); (0, size) if the prior is unknown."""
        if self.prior is None:
            return np.zeros((0, self.size))
        return np.asarray(self.prior(jax.random.split(jax.random.key(rng.integers(2**31)), num)))

    @cached_property
    def value_and_grad(self) -> Callable:
        """Function (size,) -> potential, gradient; compiled at the first call and shared by all uses."""
        compile = partial(self.compile, compared=False, identity="value and gradient")
        return Compiled(jax.value_and_grad(self.potential), compile)

    def compile(
        self, fn: Callable, *args: Any, arrays: Sequence[Any] = (), identity: Any = None, **options: Any
    ) -> Callable:
        """Compile a function of potential or sites, as `OneProcess.compile`.

        Arrays of the data are arguments too. ``identity`` says what the function does with potential and sites.
        """
        arrays = [*self.arrays(), *arrays]
        if identity is not None and self.identity is not None:
            options["identity"] = [self.identity, identity]
        return self.processes.compile(fn, *args, arrays=arrays, **options)

    @cached_property
    def identity(self) -> list[str] | None:
        """Digests of potential, with its gradient, and sites; None if they cannot be compared with others."""
        return identity_of(self.potential, self.sites, self.start)

    @cached_property
    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the value of each latent site, those whose names begin with ``_`` included."""
        sites = jax.eval_shape(self.sites, self.start)
        names = dict.fromkeys(label.split("[")[0] for label in self.labels)
        return {name: tuple(sites[name].shape) for name in names}

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of each named site, without padding and those whose names begin with ``_``."""
        sites = jax.eval_shape(lambda flat: self.real_sites(self.constrain(flat)), self.start)
        return {name: sites[name] for name in self.dims if name in sites}

    @property
    def names(self) -> list[str]:
        """Names of the sites in `shapes`."""
        return list(self.shapes)

    def constrain(self, flat) -> dict:
        """Return the sites at a flat vector, padding included, without those whose names begin with ``_``."""
        return {name: value for name, value in self.sites(flat).items() if not name.startswith("_")}

    def real_sites(self, sites: Mapping[str, Any], num_leading: int = 0) -> dict[str, Any]:
        """Return sites without padding; ``num_leading`` axes, such as those of draws, come before those of a site."""
        leading = (slice(None),) * num_leading

        def real(name, value):
            dims = self.dims.get(name, ()) if self.sizes else ()
            return value[*leading, *(slice(self.sizes.get(plate)) for plate in dims)] if dims else value

        return {name: real(name, value) for name, value in sites.items()}


class Padded(NamedTuple):
    """Arguments of a program padded to sizes in steps, and the size of each padded plate without padding."""

    args: tuple
    sizes: Mapping[str, int]


def build_target(program: Callable, args: tuple, key: jax.Array | None, padded: Padded | None = None) -> Target:
    """Trace a program and return its posterior.

    Parameters
    ----------
    program : callable
        A NumPyro program without discrete latent sites.
    args : tuple
        Arguments of the program, as `plain_arguments` takes them. They are closed over, so that whatever depends only
        on data is computed once, during tracing.
    key : jax.Array, optional
        Random key of the prior draws. None: nothing is compiled and prior draws are zero; only names, shapes,
        dimensions and labels are valid.
    padded : Padded, optional
        Padded arguments, with which the density is computed instead. Latents of padding are then independent of all
        others and of the data.

    Raises
    ------
    ValueError
        If the program has a discrete latent site or no latent site, or for names that cannot be stored.
    """
    args = plain_arguments(program, args)
    data, sizes = (args, {}) if padded is None else padded
    original, program = program, ProperAuxiliaries(program)
    structure: dict[str, Any] = {}

    def given(data):
        # The program with the parameters of its priors, which may be traced, and its arguments.
        priors, args = data
        named: Any = original
        return ProperAuxiliaries(named.with_priors(priors)) if priors else program, args

    def start(key, data):
        # Compiled as a whole, not operation by operation; static properties are recorded in `structure`.
        program, args = given(data)
        trace = prior_trace(program, args, key)
        free = latents_of(trace)
        require_continuous(free)
        require_matching_shapes(trace)
        structure.update(_structure(trace, free, sizes))
        bounds = {n: _ends(site["fn"].support) for n, site in free.items() if not site["fn"].event_shape}
        return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in free.items()}, bounds

    with naming_arguments(original, args):
        choices = [(traceable_priors(original), data), ({}, data)] if binds(original) else []
        prior = separated(start, jax.random.key(0), choices, otherwise=({}, data))
        shapes = prior.shapes[0]
        draws = jax.tree.map(lambda leaf: np.zeros((PRIOR_DRAWS, *leaf.shape), leaf.dtype), shapes)

        def draw(keys):
            return jax.vmap(lambda key: prior(key)[0])(keys)

        if draws and key is not None:
            program_of_draws = compiled(
                lambda key: draw(jax.random.split(key, PRIOR_DRAWS)),
                key,
                compiler_options=QUICK,
                arrays=prior.arrays,
                identity=of_function("draws of the prior", prior),
            )
            draws = jax.device_get(program_of_draws(key))
    require_storable_names(structure["dims"])
    if not draws:
        raise ValueError(
            "The program has nothing to sample: expected at least one latent site, found none. Call numpyro.sample for "
            "each parameter; a log probability is not returned, as for emcee, but passed to numpyro.factor."
        )
    template = {name: draws[name][0] for name in sorted(draws)}
    # NaN except for standard components, whose sites declare their starts.
    start_values = np.concatenate([np.full(v.size, structure["start"].get(n, np.nan)) for n, v in template.items()])
    unravel = _unraveller(template)

    def flat_draws(draws):
        columns = [np.asarray(draws[name]).reshape(len(draws[name]), -1) for name in template]
        return np.where(np.isnan(start_values), np.concatenate(columns, axis=1), start_values)

    def potential(flat, data):
        with without_support_warnings():
            return potential_energy(*given(data), {}, unravel(flat))

    def sites(flat, data):
        return constrain_fn(*given(data), {}, unravel(flat), return_deterministic=True)

    flat = flat_draws(draws)
    median = np.median(flat, axis=0)
    of_potential, of_sites = (Separated(fn, median, prior.data, prior.traced) for fn in (potential, sites))
    return Target(
        potential=of_potential,
        sites=of_sites,
        start=median,
        labels=_labels(template),
        dims=structure["dims"],
        bounds={name: _known(*ends) for name, ends in prior.of_data()[1].items()},
        observed=structure["observed"],
        prior_draws=flat,
        standard=~np.isnan(start_values),
        prior=lambda keys: flat_draws(jax.jit(draw)(keys)),
        unconstrain=lambda values: ravel_pytree({n: unconstrain_fn(program, args, {}, values)[n] for n in template})[0],
        diagnose=lambda flat: diagnose(original, program, args, lambda: constrain_fn(program, args, {}, unravel(flat))),
        further_starts=further_starts_of(original, args),
        arrays=lambda: [*of_potential.arrays, *of_sites.arrays],
        real=np.concatenate([structure["real"][name].ravel() for name in template]) if sizes else np.zeros(0, bool),
        sizes=sizes,
    )


def _unraveller(template: dict[str, np.ndarray]) -> Callable:
    """Return a function that splits a flat vector into arrays with the names, shapes and types of ``template``."""
    ends = np.cumsum([value.size for value in template.values()])[:-1].tolist()

    def unravel(flat):
        parts = zip(template.items(), jnp.split(flat, ends), strict=True)
        return {name: part.reshape(value.shape).astype(value.dtype) for (name, value), part in parts}

    return unravel


def _structure(trace: dict[str, Any], free: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the static properties of a trace and its latent sites: dimensions, declared starts, and padding."""
    return {
        "dims": plate_dims(trace),
        "start": {name: site["infer"]["start"] for name, site in free.items() if "start" in site["infer"]},
        "observed": any(site["type"] == "sample" and site["is_observed"] for site in trace.values()),
        "real": {name: _real_elements(site, sizes) for name, site in free.items()} if sizes else {},
    }


def _real_elements(site: dict[str, Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Return False for the elements of the unconstrained value of a latent site that are padding."""
    shape = jnp.shape(biject_to(site["fn"].support).inv(site["value"]))
    num_batch, kept = len(site["fn"].batch_shape), [slice(None)] * len(shape)
    for plate in site["cond_indep_stack"]:
        kept[num_batch + plate.dim] = slice(sizes.get(plate.name))
    real = np.zeros(shape, bool)
    real[tuple(kept)] = True
    return real


class ProperAuxiliaries(Messenger):
    """Handler that gives every element of an auxiliary site ``X_unobserved`` a proper density.

    NumPyro's ``obs_mask`` masks this site where X is observed. The density is then flat in these elements, and trees of
    NUTS never turn; without the mask they follow the distribution of the site.
    """

    def process_message(self, msg):
        """Replace the distribution of an auxiliary latent site."""
        is_auxiliary = msg["type"] == "sample" and not msg["is_observed"] and msg["name"].endswith("_unobserved")
        if is_auxiliary and isinstance(msg["fn"], dist.MaskedDistribution):
            msg["fn"] = msg["fn"].base_dist


def is_observation(site) -> bool:
    """Return whether a site is an observation; `numpyro.factor` is not."""
    fn = getattr(site["fn"], "base_dist", site["fn"]) if isinstance(site["fn"], dist.MaskedDistribution) else site["fn"]
    return site["is_observed"] and not isinstance(fn, dist.Unit)


def plate_dims(trace) -> dict[str, list[str]]:
    """Return the plates of each site, outermost first; an empty list if the shape of its value does not match them."""
    dims = {}
    for name, site in trace.items():
        if name.startswith("_"):
            continue
        stack = sorted(site.get("cond_indep_stack", ()), key=lambda f: f.dim)
        sizes = getattr(site.get("value"), "shape", ())[: len(stack)]
        dims[name] = [frame.name for frame in stack] if sizes == tuple(frame.size for frame in stack) else []
    return dims


def support_bounds(support) -> tuple[float, float]:
    """Return the lower and upper bound of a support; infinite if absent or if the bound is itself a parameter."""
    return _known(*_ends(support))


def _ends(support) -> tuple[Any, Any]:
    """Return the lower and upper bound of a support, which may be traced; NaN for arrays, infinite if absent."""
    ends = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    low, high = (end if np.ndim(end) == 0 else np.nan for end in ends)
    return low, high


def _known(low, high) -> tuple[float, float]:
    """Return bounds as numbers; infinite for NaN, and for bounds without a value, which depend on a parameter."""

    def number(bound, unknown):
        try:
            value = float(bound)
        except TypeError:  # of None, and of a traced bound
            return unknown
        return unknown if np.isnan(value) else value

    return number(low, -np.inf), number(high, np.inf)


def _labels(params) -> tuple[str, ...]:
    """Return the name of each component of the flattened parameters, in the order of `ravel_pytree`."""
    labels: list[str] = []
    for name in sorted(params):
        shape = jnp.shape(params[name])
        labels += [name] if not shape else [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(*shape)]
    return tuple(labels)
