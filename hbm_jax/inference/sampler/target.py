"""A NumPyro program and its data as a log density over one flat vector of real numbers.

Everything that moves through parameter space (mode search, NUTS, later checkpoints and batches) sees this vector;
what a person reads is obtained from it by `Target.constrain`.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, potential_energy

from hbm_jax.inference.compilation.constants_as_arguments import Compiled, compiled

RESERVED = {"chain", "draw", "sample"}
PRIOR_DRAWS = 15  # whose median, component by component, is the first of the points from which searches start


class StartError(RuntimeError):
    """No starting point with a finite density and gradient was found."""


class OneProcess:
    """Who computes a density: this process alone. `hbm_jax.inference.distributed.Processes` are several."""

    leads = True
    num_devices = 0  # that share the objects of one density
    _interrupted = False  # by a Ctrl-C that is yet to be acted upon

    def compile(self, fn: Callable, *args: Any, compared: bool = True) -> Callable:
        """Compile a function for arguments of these shapes; there is nobody to compare results with."""
        return compiled(fn, *args)

    def lead(self, work: Callable[[], Any]) -> Any:
        """Do what has to be decided in one place; raises KeyboardInterrupt where that was asked for while drawing."""
        self._stop_if_asked()
        return work()

    def open(self, kind: Callable, folder) -> Any:
        """Open a checkpoint."""
        return kind(folder)

    def choose_start(self, choose: Callable, target: "Target", num_chains: int, key: jax.Array) -> Any:
        """Choose where chains start."""
        return choose(target, num_chains, key)

    def listening(self) -> contextlib.AbstractContextManager:
        """Leave Ctrl-C to Python, but for drawing."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Take note of Ctrl-C, for `lead` to act upon after the block under way; and of SIGTERM, where that is caught.

        The second time is at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        caught = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, self._note) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, frame):
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _stop_if_asked(self):
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Target:
    """The posterior of a program given data, on unconstrained flat vectors.

    Attributes
    ----------
    potential : callable
        (size,) -> scalar, minus the log density.
    sites : callable
        (size,) -> dict of site name to value: every latent and deterministic site.
    start : (size,)
        A point near the median of the prior.
    labels : tuple of str
        Name of each component of the flat vector, for messages.
    dims : dict of str to list of str
        Dimensions of each site, from the plates it is in.
    bounds : dict of str to (float, float)
        Lower and upper bound of the prior of each site that is a scalar, or many; infinite where there is none.
    prior_draws : (num, size)
        Draws of the prior, but for the components that are standard.
    standard : (size,) of bool
        Components whose posterior is about standard normal about a known value, by the word of their sites,
        ``infer={"start": value}``; they start there.
    processes : OneProcess
        Who computes the potential; programs that use it are compiled by them.
    observed : bool
        Whether any site is observed; else the posterior is the prior.
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

    @property
    def size(self) -> int:
        """Number of unconstrained parameters."""
        return len(self.labels)

    @cached_property
    def value_and_grad(self) -> Callable:
        """Potential and gradient, (size,) -> scalar, (size,), compiled when first called: one program for every use."""
        return Compiled(jax.value_and_grad(self.potential), partial(self.processes.compile, compared=False))

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of each site a person reads."""
        found = jax.eval_shape(self.constrain, self.start)
        return {name: found[name] for name in self.dims if name in found}

    @property
    def names(self) -> list[str]:
        """Names of the sites a person reads."""
        return list(self.shapes)

    def constrain(self, flat) -> dict:
        """Sites a person reads, by name: those whose name begins with ``_`` are the sampler's own affair."""
        return {name: value for name, value in self.sites(flat).items() if not name.startswith("_")}


def build_target(program: Callable, args: tuple, key: jax.Array | None) -> Target:
    """Trace a program once and return its density.

    Parameters
    ----------
    program : callable
        A NumPyro program without discrete latent sites.
    args : tuple
        What it is called with. Closed over, so that whatever depends on data alone is computed once, while tracing.
    key : jax.Array, optional
        Random key for the starting point. None: there is none, nothing is compiled, and only names, shapes, dimensions
        and labels are those of the program.

    Raises
    ------
    ValueError
        If the program has a discrete latent site, or none to sample at all.
    """
    structure: dict[str, Any] = {}

    def start(key):
        # Under jit, so that one compilation takes the place of one per operation; what is static is noted on the way.
        initial = handlers.substitute(handlers.seed(program, key), substitute_fn=prior_value)
        trace = handlers.trace(initial).get_trace(*args)
        free = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
        for name, site in free.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"The program has a discrete latent site {name!r}: expected continuous latents only, because NUTS "
                    "needs gradients. Sum over it in the program (for example with a mixture distribution)."
                )
        structure["dims"] = plate_dims(trace)
        structure["start"] = {name: site["infer"]["start"] for name, site in free.items() if "start" in site["infer"]}
        structure["observed"] = any(site["type"] == "sample" and site["is_observed"] for site in trace.values())
        structure["bounds"] = {
            name: support_bounds(site["fn"].support) for name, site in free.items() if not site["fn"].event_shape
        }
        return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in free.items()}

    keys = jax.random.split(jax.random.key(0) if key is None else key, PRIOR_DRAWS)
    if key is None:
        draws = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(jax.vmap(start), keys))
    else:
        draws = jax.jit(jax.vmap(start))(keys)
    for kind, names in (
        ("site", structure["dims"]),
        ("plate", {d for dims in structure["dims"].values() for d in dims}),
    ):
        for name in RESERVED & set(names):
            raise ValueError(f"The program has a {kind} called {name!r}: expected another name, because ArviZ uses it.")
        for name in names:
            if "/" in name:
                raise ValueError(
                    f"The program has a {kind} called {name!r}: expected a name without '/', which separates groups in "
                    "result files. In numpyro.handlers.scope, pass divider='.'."
                )
    if not draws:
        raise ValueError("The program has nothing to sample: expected at least one latent site, found none.")
    first = jax.tree.map(lambda x: x[0], draws)
    unravel = ravel_pytree(first)[1]
    flat = np.concatenate([np.asarray(draws[name]).reshape(PRIOR_DRAWS, -1) for name in sorted(draws)], axis=1)
    fixed = {name: np.full(jnp.shape(value), structure["start"].get(name, np.nan)) for name, value in first.items()}
    asked = np.asarray(ravel_pytree(fixed)[0])
    flat = np.where(np.isnan(asked), flat, asked)
    return Target(
        potential=lambda flat: potential_energy(program, args, {}, unravel(flat)),
        sites=lambda flat: constrain_fn(program, args, {}, unravel(flat), return_deterministic=True),
        start=np.median(flat, axis=0),
        labels=_labels(first),
        dims=structure["dims"],
        bounds=structure["bounds"],
        observed=structure["observed"],
        prior_draws=flat,
        standard=~np.isnan(asked),
    )


def prior_value(site):
    """Draw a latent from its prior, or where that cannot be drawn from, near zero; for ``substitute_fn``.

    NumPyro's `init_to_sample` gives the same as the median of one draw, which takes time to compile.
    """
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    try:
        return site["fn"](rng_key=site["kwargs"]["rng_key"], sample_shape=site["kwargs"]["sample_shape"])
    except NotImplementedError:
        return init_to_uniform(site)


def plate_dims(trace) -> dict[str, list[str]]:
    """Names of the plates each site of a trace is in, outermost first; none where its value does not run along them."""
    dims = {}
    for name, site in trace.items():
        if name.startswith("_"):
            continue
        stack = sorted(site.get("cond_indep_stack", ()), key=lambda f: f.dim)
        sizes = getattr(site.get("value"), "shape", ())[: len(stack)]
        dims[name] = [frame.name for frame in stack] if sizes == tuple(frame.size for frame in stack) else []
    return dims


def support_bounds(support) -> tuple[float, float]:
    """Lower and upper bound of a support; infinite where there is none or where it is itself a parameter."""
    ends = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    low, high = (float(end) if np.ndim(end) == 0 and not isinstance(end, jax.core.Tracer) else np.nan for end in ends)
    return (-np.inf if np.isnan(low) else low), (np.inf if np.isnan(high) else high)


def _labels(params) -> tuple[str, ...]:
    """Name of each component of the flattened parameters, in the order of `ravel_pytree`."""
    labels: list[str] = []
    for name in sorted(params):
        shape = jnp.shape(params[name])
        labels += [name] if not shape else [f"{name}[{','.join(map(str, i))}]" for i in np.ndindex(*shape)]
    return tuple(labels)
