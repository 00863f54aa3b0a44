"""A NumPyro program and its data as a log density over one flat vector of real numbers.

Everything that moves through parameter space (mode search, NUTS, later checkpoints and batches) sees this vector;
what a person reads is obtained from it by `Target.constrain`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.initialization import init_to_median
from numpyro.infer.util import constrain_fn, potential_energy

PRIOR_DRAWS = 15  # whose median, site by site, is where everything starts


class StartError(RuntimeError):
    """No starting point with a finite density and gradient was found."""


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
        Lower and upper bound of each scalar site's prior, infinite where there is none.
    """

    potential: Callable
    sites: Callable
    start: np.ndarray
    labels: tuple[str, ...]
    dims: dict[str, list[str]]
    bounds: dict[str, tuple[float, float]]

    @property
    def size(self) -> int:
        """Number of unconstrained parameters."""
        return len(self.labels)

    def constrain(self, flat) -> dict:
        """Sites a person reads, by name: those whose name begins with ``_`` are the sampler's own affair."""
        return {name: value for name, value in self.sites(flat).items() if not name.startswith("_")}


def build_target(program: Callable, args: tuple, key: jax.Array) -> Target:
    """Trace a program once and return its density.

    Parameters
    ----------
    program : callable
        A NumPyro program without discrete latent sites.
    args : tuple
        What it is called with. Closed over, so that whatever depends on data alone is computed once, while tracing.
    key : jax.Array
        Random key for the starting point.

    Raises
    ------
    ValueError
        If the program has a discrete latent site, or none to sample at all.
    """
    structure: dict[str, dict] = {}

    def start(key):
        # Under jit, so that one compilation takes the place of one per operation; what is static is noted on the way.
        initial = handlers.substitute(
            handlers.seed(program, key), substitute_fn=init_to_median(num_samples=PRIOR_DRAWS)
        )
        trace = handlers.trace(initial).get_trace(*args)
        free = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
        for name, site in free.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"The program has a discrete latent site {name!r}: expected continuous latents only, because NUTS "
                    "needs gradients. Sum over it in the program (for example with a mixture distribution)."
                )
        structure["dims"] = plate_dims(trace)
        structure["bounds"] = {
            name: support_bounds(site["fn"].support) for name, site in free.items() if not site["value"].shape
        }
        return {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in free.items()}

    params = jax.jit(start)(key)
    if not params:
        raise ValueError("The program has nothing to sample: expected at least one latent site, found none.")
    flat, unravel = ravel_pytree(params)
    return Target(
        potential=lambda flat: potential_energy(program, args, {}, unravel(flat)),
        sites=lambda flat: constrain_fn(program, args, {}, unravel(flat), return_deterministic=True),
        start=np.asarray(flat),
        labels=_labels(params),
        dims=structure["dims"],
        bounds=structure["bounds"],
    )


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
