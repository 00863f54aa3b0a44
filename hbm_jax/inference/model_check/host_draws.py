"""Counts that NumPy draws on the host.

JAX draws them by loops of rejection, which compile slowly and take 20 times as long.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

MAX_RATE = 9e18  # of the Poisson counts that NumPy can draw


class HostDraw(NamedTuple):
    """Names of the parameters of a distribution, and function of a generator and these that draws one value of each."""

    parameters: tuple[str, ...]
    draw: Callable


def _poisson(rng: np.random.Generator, rate):
    """Draw Poisson counts."""
    return rng.poisson(np.minimum(rate, MAX_RATE))


def _gamma_poisson(rng: np.random.Generator, concentration, rate):
    """Draw negative binomial counts."""
    return _poisson(rng, rng.gamma(concentration) / rate)


def _binomial(rng: np.random.Generator, total_count, probs):
    """Draw binomial counts."""
    return rng.binomial(np.round(total_count).astype(int), probs)


def _beta_binomial(rng: np.random.Generator, total_count, concentration1, concentration0):
    """Draw beta-binomial counts."""
    return _binomial(rng, total_count, rng.beta(concentration1, concentration0))


HOST_DRAWS = {
    dist.Poisson: HostDraw(("rate",), _poisson),
    dist.GammaPoisson: HostDraw(("concentration", "rate"), _gamma_poisson),
    dist.BinomialProbs: HostDraw(("total_count", "probs"), _binomial),
    dist.BinomialLogits: HostDraw(("total_count", "probs"), _binomial),
    dist.BetaBinomial: HostDraw(("total_count", "concentration1", "concentration0"), _beta_binomial),
}
"""Draws of NumPyro's distributions of counts, and of their subclasses."""


def innermost(fn: Any) -> Any:
    """Return the distribution that masks and expansions wrap."""
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def draws_on_host(fn: Any) -> bool:
    """Return whether NumPy draws the values of a distribution, masked or expanded or not."""
    return _host_draw(innermost(fn)) is not None


def parameters_of(fn: Any) -> dict[str, Any]:
    """Return the parameters of `draw_counts`, each with the batch shape of the distribution."""
    inner = innermost(fn)
    if hasattr(inner, "draw_on_host"):
        return {"mean": jnp.broadcast_to(fn.mean, fn.batch_shape)}
    names = next(known.parameters for base, known in HOST_DRAWS.items() if isinstance(inner, base))
    return {name: jnp.broadcast_to(getattr(inner, name), fn.batch_shape) for name in names}


def draw_counts(fn: Any, parameters: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw one value for each of the parameters (num, ...)."""
    draw = _host_draw(innermost(fn))
    if draw is None:
        raise TypeError(f"expected a distribution whose values NumPy draws; found {type(fn).__name__}.")
    return draw(rng, **parameters)


def _host_draw(fn: Any) -> Callable | None:
    """Return the function of a generator and parameters; None for other distributions and subclasses with own draws."""
    if hasattr(fn, "draw_on_host"):
        return lambda rng, mean: fn.draw_on_host(mean, rng)
    known = (base for base in HOST_DRAWS if isinstance(fn, base) and type(fn).sample is base.sample)
    return next((HOST_DRAWS[base].draw for base in known), None)
