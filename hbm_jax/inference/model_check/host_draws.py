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
    fn = innermost(fn)
    return hasattr(fn, "draw_on_host") or _known(fn) is not None


def parameters_of(fn: Any) -> dict[str, Any]:
    """Return the parameters of `draw_counts`, each with the batch shape of the distribution."""
    inner = innermost(fn)
    if hasattr(inner, "draw_on_host"):
        return {"mean": jnp.broadcast_to(fn.mean, fn.batch_shape)}
    known = _known(inner)
    assert known is not None
    return {name: jnp.broadcast_to(getattr(inner, name), fn.batch_shape) for name in known.parameters}


def draw_counts(fn: Any, parameters: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Draw one value for each of the parameters (num, ...)."""
    inner = innermost(fn)
    if hasattr(inner, "draw_on_host"):
        return inner.draw_on_host(parameters["mean"], rng)
    known = _known(inner)
    assert known is not None
    return known.draw(rng, **parameters)


def _known(fn: Any) -> HostDraw | None:
    """Return the draw of a distribution of `HOST_DRAWS`; None for others and for subclasses with other draws."""
    known = (base for base in HOST_DRAWS if isinstance(fn, base) and type(fn).sample is base.sample)
    return next((HOST_DRAWS[base] for base in known), None)
