"""The likelihood of a program, without its priors, as a function of one flat vector of its parameters."""

import itertools
from collections.abc import Callable
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

from hbm_jax.inference.compilation.constants_as_arguments import Compiled
from hbm_jax.inference.sampler.target import prior_value


class StatedParameters(numpyro.primitives.Messenger):
    """Asks a program for the parameters its priors are stated for, in place of coordinates made for samplers.

    A program that samples coordinates looks for the answer to the message ``stated_parameters``; the models of hbm_jax
    do.
    """

    def process_message(self, msg):
        """Say yes."""
        if msg["type"] == "stated_parameters":
            msg["value"] = True


class Likelihood:
    """Minus the log likelihood of a program at a flat vector of its parameters, with its gradient and Hessian.

    Attributes
    ----------
    labels : list of str
        Names of the parameters, in the order of the program.
    lower, upper : (size,)
        Bounds, infinite where there are none.
    starts : list of (size,)
        Draws of the prior.
    num_data : int or None
        Number of observed values.
    unravel : callable
        (size,) -> dict of site name to value.

    Raises
    ------
    ValueError
        For a program that `maximum_likelihood` refuses.
    """

    def __init__(self, program: Callable, args: tuple, seed: int, num_starts: int):
        own = program
        program = StatedParameters(program)
        names, values, bounds, elements, self.num_data = survey(program, args, jax.random.key(seed), num_starts)
        if hasattr(own, "num_data"):
            self.num_data = int(own.num_data(*args))
        first = [np.asarray(values[name][0]) for name in names]
        shapes = {name: value.shape for name, value in zip(names, first, strict=True)}
        self.labels = [label for name in names for label in _labels(name, shapes[name], elements.get(name))]
        _, unravel = ravel_pytree(first)
        self.unravel = lambda x: dict(zip(names, unravel(x), strict=True))

        def flat(of):
            return np.concatenate([np.ravel(of(name)).astype(float) for name in names])

        self.lower, self.upper = (flat(lambda name, end=end: bounds[name][end]) for end in (0, 1))
        self.starts = [flat(lambda name, row=row: values[name][row]) for row in range(num_starts)]

        def minus_log_likelihood(x):
            log_probs, trace = compute_log_probs(handlers.seed(program, seed), args, {}, self.unravel(x))
            return -sum(log_probs[name] for name, site in trace.items() if name in log_probs and site["is_observed"])

        self._value_and_grad = Compiled(jax.value_and_grad(minus_log_likelihood))
        self._hessian = Compiled(jax.hessian(minus_log_likelihood))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.labels)

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient, (size,)."""
        value, gradient = self._value_and_grad(x)
        return float(value), np.asarray(gradient)

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Second derivatives, (size, size)."""
        return np.asarray(self._hessian(x))

    def at_bound(self, x: np.ndarray) -> np.ndarray:
        """Which parameters are at a bound, (size,)."""
        return (x <= self.lower) | (x >= self.upper)

    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        """Real numbers, by the transforms that NumPyro has for the supports."""
        low, high = np.isfinite(self.lower), np.isfinite(self.upper)
        with np.errstate(all="ignore"):
            both = logit((x - self.lower) / (self.upper - self.lower))
            one = np.log(np.where(low, x - self.lower, self.upper - x))
        return np.where(low & high, both, np.where(low | high, one, x))

    def constrained(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of `unconstrained`, and its slope."""
        low, high = np.isfinite(self.lower), np.isfinite(self.upper)
        with np.errstate(all="ignore"):
            width = self.upper - self.lower
            up, share = np.exp(u), expit(u)
            x = np.where(low, self.lower + up, np.where(high, self.upper - up, u))
            slope = np.where(low, up, np.where(high, -up, 1.0))
            return (
                np.where(low & high, self.lower + width * share, x),
                np.where(low & high, width * share * expit(-u), slope),
            )


def survey(program: Callable, args: tuple, key: jax.Array, num: int):
    """Names of the latents, draws of the priors, bounds, labels of last axes, number of data; refuses what it must.

    Refused is what has no useful maximum, and latents without a name for a reader.
    """
    about: dict[str, Any] = {}

    def latents(key):
        seeded = handlers.substitute(handlers.seed(program, key), substitute_fn=prior_value)
        sites = [(n, s) for n, s in handlers.trace(seeded).get_trace(*args).items() if s["type"] == "sample"]
        observed = [s for _, s in sites if s["is_observed"]]
        about["observed"], about["num_data"] = bool(observed), sum(int(np.size(s["value"])) for s in observed)
        return {n: s for n, s in sites if not s["is_observed"]}

    def one(keys):
        mine, other = latents(keys[0]), latents(keys[1])
        about["names"] = list(mine)  # in the order of the program, which compiled functions do not keep
        about["elements"] = {name: s["infer"]["labels"] for name, s in mine.items() if "labels" in s["infer"]}
        for name, site in mine.items():
            _require_number(name, site["fn"].support)
        # Where the priors are no functions of latents, they do not change with them.
        probabilities = {
            n: (s["fn"].log_prob(s["value"]), other[n]["fn"].log_prob(s["value"])) for n, s in mine.items()
        }
        bounds = {
            name: [
                jnp.broadcast_to(getattr(_plain(site["fn"].support), end, infinite), jnp.shape(site["value"]))
                for end, infinite in (("lower_bound", -jnp.inf), ("upper_bound", jnp.inf))
            ]
            for name, site in mine.items()
        }
        return {name: site["value"] for name, site in mine.items()}, bounds, probabilities

    values, bounds, probabilities = jax.jit(jax.vmap(one))(jax.random.split(key, (num, 2)))
    if not values:
        raise ValueError("The program has nothing to fit: expected at least one latent site, found none.")
    if not about["observed"]:
        raise ValueError("The program has no likelihood: expected an observed site, found none (no data given?).")
    for name, (own, other) in probabilities.items():
        if not np.array_equal(np.asarray(own), np.asarray(other), equal_nan=True):
            raise ValueError(
                f"maximum_likelihood: expected priors that do not depend on other parameters; found that of {name!r}, "
                "which does. The program is hierarchical: sample it (hbm_jax.sample)."
            )
    for name in values:
        if name.startswith("_"):
            raise ValueError(
                f"maximum_likelihood: expected latent sites with names for a reader; found {name!r}, a coordinate of "
                "other parameters, such as a latent of a hierarchy in a form written by hand. Sample the program "
                "(hbm_jax.sample), or write it in the parameters themselves."
            )
    bounds = {name: [np.asarray(end[0]) for end in ends] for name, ends in bounds.items()}
    return about["names"], values, bounds, about["elements"], about["num_data"] or None


def _labels(name: str, shape: tuple[int, ...], last: tuple[str, ...] | None) -> list[str]:
    """Names of the elements of a site, in order; those of its last axis may have names of their own."""
    places = [[*map(str, range(size))] for size in shape]
    if last is not None:
        places[-1] = list(last)
    return [f"{name}[{','.join(place)}]" for place in itertools.product(*places)] if shape else [name]


def _plain(support):
    """Return the support of single elements."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _require_number(name: str, support) -> None:
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
