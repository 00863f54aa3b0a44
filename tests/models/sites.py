"""The sites of a model's program at given values, by one compiled function for each model and data."""

from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro import handlers


class Sites(NamedTuple):
    """Values of all sites of a program, and log densities of those that are sampled or observed."""

    values: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray]

    @property
    def log_density(self) -> float:
        """Sum over all sites and elements."""
        return float(sum(np.sum(log_prob) for log_prob in self.log_probs.values()))


def compiled_sites(program, *args, **options):
    """Return a function of values of sites, the others drawn with a seed, that returns `Sites`."""

    @jax.jit
    def run(values: dict[str, Any], number):
        seeded = handlers.seed(handlers.substitute(program, data=values), jax.random.key(number))
        trace = handlers.trace(seeded).get_trace(*args, **options)
        drawn = {n: site for n, site in trace.items() if site["type"] in ("sample", "deterministic")}
        log_probs = {n: s["fn"].log_prob(s["value"]) for n, s in drawn.items() if s["type"] == "sample"}
        return {n: site["value"] for n, site in drawn.items()}, log_probs

    def sites(values=None, number: int = 0) -> Sites:
        given = {name: np.asarray(value, float) for name, value in (values or {}).items()}
        return Sites(*jax.device_get(run(given, number)))

    return sites


def at_latents(sites, given, wanted) -> tuple[dict[str, np.ndarray], float]:
    """Return values of sites at which latents have given values, and the log determinant of the latents by the sites.

    Each latent is to be an affine function of its own site, element by element, and may depend on the sites before it.
    `given` has a value of every site, `wanted` the name and the value of the latent of each site, in order.
    """
    values, log_determinant = dict(given), 0.0
    for site, (latent, value) in wanted.items():
        zero, one = (sites(values | {site: np.full(np.shape(value), end)}).values[latent] for end in (0.0, 1.0))
        values[site] = (value - zero) / (one - zero)
        log_determinant += np.log(np.abs(one - zero)).sum()
    return values, float(log_determinant)
