"""Likelihood of a program, without its priors, as a function of a flat vector of its parameters."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import compute_log_probs
from scipy.special import expit, logit

from hbm_jax.inference.arguments import prior_trace, without_support_warnings
from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.program import bound_args, num_data_of
from hbm_jax.xla_options import QUICK, sampling_options


class StatedParameters(numpyro.primitives.Messenger):
    """Effect handler that makes a program sample the parameters of its priors, not a reparametrisation of them.

    A program that samples a reparametrisation reads the value of the message ``stated_parameters``; the models of
    hbm_jax do.
    """

    def process_message(self, msg):
        """Set the value of the message ``stated_parameters`` to True."""
        if msg["type"] == "stated_parameters":
            msg["value"] = True


class Likelihood:
    """Minus log likelihood of a program at a flat vector of its parameters, with gradient and Hessian.

    Attributes
    ----------
    names : list of str
        Names of the sites, in the order of the program.
    labels : list of str
        Names of their elements.
    lower, upper : (size,)
        Bounds of the supports of the priors; infinite if unbounded.
    starts : list of (size,)
        Draws of the prior.
    args : tuple
        Arguments with which the program is traced.
    num_data : int or None
        Number of observed values.
    unravel : callable
        (size,) -> dict of site name to value.

    Raises
    ------
    ValueError
        For a program that `maximum_likelihood` rejects.
    """

    def __init__(self, program: Callable, args: tuple, seed: int, num_starts: int):
        stated, shared = StatedParameters(program), _can_be_shared(program)
        stated_num_data, args = num_data_of(program, args), bound_args(program, args)
        self.args = args
        inspect = inspect_latents_once if shared else inspect_latents
        names, values, bounds, elements, num_data = inspect(stated, args, jax.random.key(seed), num_starts)
        self.names = names
        self.num_data = num_data if stated_num_data is None else stated_num_data
        template = [np.asarray(values[name][0]) for name in names]
        shapes = {name: value.shape for name, value in zip(names, template, strict=True)}
        self.labels = [label for name in names for label in _labels(name, shapes[name], elements.get(name))]
        _, unravel = ravel_pytree(template)
        self.unravel = lambda x: dict(zip(names, unravel(x), strict=True))

        def flat(values_of):
            return np.concatenate([np.ravel(values_of(name)).astype(float) for name in names])

        self.lower, self.upper = (flat(lambda name, end=end: bounds[name][end]) for end in (0, 1))
        self.starts = [flat(lambda name, row=row: values[name][row]) for row in range(num_starts)]

        self._value_and_grad: Callable[[Any], Any]
        self._hessian: Callable[[Any], Any]
        if shared:
            sites = tuple((name, shapes[name]) for name in names)
            self._value_and_grad, self._hessian = (
                functools.partial(function, program, sites, args) for function in _compiled()
            )
            return

        def minus_log_likelihood(x):
            return _minus_log_likelihood(stated, seed, args, self.unravel(x))

        self._value_and_grad = Compiled(jax.value_and_grad(minus_log_likelihood))
        self._hessian = Compiled(jax.hessian(minus_log_likelihood))

    def ravel(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the inverse of `unravel`, (size,)."""
        return np.concatenate([np.ravel(values[name]).astype(float) for name in self.names])

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.labels)

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log likelihood and its gradient, (size,)."""
        value, gradient = self._value_and_grad(x)
        return float(value), np.asarray(gradient)

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessian of minus the log likelihood, (size, size)."""
        return np.asarray(self._hessian(x))

    def at_bound(self, x: np.ndarray) -> np.ndarray:
        """Return which parameters are at a bound, (size,)."""
        return (x <= self.lower) | (x >= self.upper)

    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        """Transform parameters to unconstrained ones, with NumPyro's transforms for the supports."""
        low, high = np.isfinite(self.lower), np.isfinite(self.upper)
        with np.errstate(all="ignore"):
            two_sided = logit((x - self.lower) / (self.upper - self.lower))
            one_sided = np.log(np.where(low, x - self.lower, self.upper - x))
        return np.where(low & high, two_sided, np.where(low | high, one_sided, x))

    def constrained(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the inverse of `unconstrained`, and its derivative."""
        low, high = np.isfinite(self.lower), np.isfinite(self.upper)
        with np.errstate(all="ignore"):
            width = self.upper - self.lower
            exponential, fraction = np.exp(u), expit(u)
            x = np.where(low, self.lower + exponential, np.where(high, self.upper - exponential, u))
            derivative = np.where(low, exponential, np.where(high, -exponential, 1.0))
            return (
                np.where(low & high, self.lower + width * fraction, x),
                np.where(low & high, width * fraction * expit(-u), derivative),
            )


def _minus_log_likelihood(program: Callable, seed: int, args: tuple, values: dict[str, Any]) -> jax.Array:
    """Return minus the log likelihood of a program with values of its latent sites.

    The prior of a latent site with ``infer={"auxiliary": True}`` is the result of another measurement, and is included.
    """
    with without_support_warnings():
        log_probs, trace = compute_log_probs(handlers.seed(program, seed), args, {}, values)
    counted = [
        name
        for name, site in trace.items()
        if name in log_probs and (site["is_observed"] or site["infer"].get("auxiliary"))
    ]
    return -sum(log_probs[name] for name in counted)


def _can_be_shared(program: Callable) -> bool:
    """Return whether equal programs with data of one shape may share a compiled likelihood.

    Such programs are dataclasses that compare equal if their options are equal, with bound data that may be traced.
    """
    if not (dataclasses.is_dataclass(program) and hasattr(program, "Bound")):
        return False
    try:
        hash(program)
    except TypeError:
        return False
    return True


def _minus_log_likelihood_at(program, sites, args, x):
    """Return minus the log likelihood at a flat vector x of the values of the sites, given as (name, shape) pairs."""
    values, start = {}, 0
    for name, shape in sites:
        size = math.prod(shape)
        values[name] = x[start : start + size].reshape(shape)
        start += size
    return _minus_log_likelihood(StatedParameters(program), 0, args, values)


@functools.cache
def _compiled() -> tuple[Callable, Callable]:
    """Return value and gradient, and the Hessian, compiled once for all data of one shape.

    Models draw no random numbers if all their sites have values.
    """
    options: dict[str, Any] = {"static_argnums": (0, 1), "compiler_options": sampling_options(jax.default_backend())}
    value_and_grad = jax.value_and_grad(_minus_log_likelihood_at, argnums=3)
    return jax.jit(value_and_grad, **options), jax.jit(jax.hessian(_minus_log_likelihood_at, argnums=3), **options)


def inspect_latents(program: Callable, args: tuple, key: jax.Array, num: int):
    """Return names, prior draws, bounds and element labels of the latents, and the number of data.

    Raises
    ------
    ValueError
        For a program whose likelihood has no useful maximum, and for latents whose name begins with ``_``.
    """
    structure: dict[str, Any] = {}
    keys = jax.random.split(key, (num, 2))
    return _checked(structure, jax.jit(jax.vmap(lambda key: _draw(program, structure, args, key)))(keys))


def inspect_latents_once(program: "StatedParameters", args: tuple, key: jax.Array, num: int):
    """Return the results of `inspect_latents`, compiled once for all data of one shape."""
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)
    structure = _structure_of(program.fn, tree, shapes)
    drawn = _prior_draws(program.fn, structure, args, jax.random.split(key, (num, 2)))
    return _checked(structure.content, drawn)


class _Structure:
    """Structure of a traced program, as a static argument of compiled functions; equal only to itself."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}


@functools.lru_cache(maxsize=64)
def _structure_of(program, tree, shapes) -> _Structure:
    """Return the structure of a program with data of one shape; it is filled when the program is first traced."""
    return _Structure()


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def _prior_draws(program, structure, args, keys):
    """Return prior draws, bounds and log probabilities of the latents for each key."""
    return jax.vmap(lambda key: _draw(StatedParameters(program), structure.content, args, key))(keys)


def _draw(program: Callable, structure: dict[str, Any], args: tuple, keys: jax.Array):
    """Return a draw of the latents, their bounds, and log probabilities at two draws; record the structure."""

    def latents(key):
        sites = [(n, s) for n, s in prior_trace(program, args, key).items() if s["type"] == "sample"]
        observed = [s for _, s in sites if s["is_observed"]]
        structure["observed"], structure["num_data"] = bool(observed), sum(int(np.size(s["value"])) for s in observed)
        return {n: s for n, s in sites if not s["is_observed"]}

    first, second = map(latents, keys)
    structure["names"] = list(first)  # program order; the output of a compiled function is sorted
    structure["elements"] = {name: s["infer"]["labels"] for name, s in first.items() if "labels" in s["infer"]}
    for name, site in first.items():
        _require_number(name, site["fn"].support)
    # The log density of a prior that depends on other latents differs between two draws of these.
    log_probs = {n: (s["fn"].log_prob(s["value"]), second[n]["fn"].log_prob(s["value"])) for n, s in first.items()}
    bounds = {
        name: [
            jnp.broadcast_to(getattr(_plain(site["fn"].support), end, infinite), jnp.shape(site["value"]))
            for end, infinite in (("lower_bound", -jnp.inf), ("upper_bound", jnp.inf))
        ]
        for name, site in first.items()
    }
    return {name: site["value"] for name, site in first.items()}, bounds, log_probs


def _checked(structure: dict[str, Any], drawn: Any):
    """Return the results of `inspect_latents`, after checks."""
    values, bounds, log_probs = drawn
    if not values:
        raise ValueError("The program has nothing to fit: expected at least one latent site, found none.")
    if not structure["observed"]:
        raise ValueError(
            "The program has no likelihood: expected an observed site, found none (was the data argument omitted?)."
        )
    for name, (log_prob, other_log_prob) in log_probs.items():
        if not np.array_equal(np.asarray(log_prob), np.asarray(other_log_prob), equal_nan=True):
            raise ValueError(
                f"maximum_likelihood: expected priors that do not depend on other parameters; found that the prior of "
                f"{name!r} does. The program is hierarchical: sample it (hbm_jax.sample)."
            )
    for name in values:
        if name.startswith("_"):
            raise ValueError(
                f"maximum_likelihood: expected latent sites whose names do not begin with '_'; found {name!r}, a "
                "reparametrisation, such as a non-centred latent. Sample the program (hbm_jax.sample), or write it in "
                "the parameters themselves."
            )
    bounds = {name: [np.asarray(end[0]) for end in ends] for name, ends in bounds.items()}
    return structure["names"], values, bounds, structure["elements"], structure["num_data"] or None


def _labels(name: str, shape: tuple[int, ...], axis_labels: tuple[str, ...] | None) -> list[str]:
    """Return the names of the elements of a site, in order; ``axis_labels`` are those of its last axis, or None."""
    indices = [[*map(str, range(size))] for size in shape]
    if axis_labels is not None:
        indices[-1] = list(axis_labels)
    return [f"{name}[{','.join(index)}]" for index in itertools.product(*indices)] if shape else [name]


def _plain(support):
    """Return the support of one element."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _require_number(name: str, support) -> None:
    """Raise ValueError if a support is discrete or multivariate."""
    if support.is_discrete:
        raise ValueError(
            f"The program has a discrete latent site {name!r}: expected continuous latents only. Sum over it in the "
            "program (for example with a mixture distribution)."
        )
    if _plain(support).event_dim:
        raise ValueError(
            f"maximum_likelihood: expected latent sites of plain numbers, with bounds or without; found {name!r}, "
            f"whose support is {support}."
        )
