"""Latents and data of detected objects, as a chain of sites whose draws are those of detected objects."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.selection import MAX_TRIES


class Detected(dist.Distribution):
    """Distribution of one site of detected objects: a latent, or the data.

    Parameters
    ----------
    base : Distribution
        Distribution of all objects, with one batch dimension of n objects.
    probability : callable
        From values of the site to the probability (n,) that an object with this value is detected.
    log_detected_fraction : array (n,)
        Log of the detected fraction of the population of each object in the first site of the chain; 0 in the others.
    log_efficiency : callable, optional
        From the data to the log of their detection probability (n,), where it is not 1 for all data that were detected.
    objects : array (m, n), optional
        1 where one of m elements of the site belongs to an object, where objects have several, else 0. The batch or the
        event of ``base`` then has m elements.

    Notes
    -----
    Of an object with a latent u and data y that is detected with the probability e(y), the density is
    p(u) p(y | u) e(y) / P. It is a product of the density of detected latents, p(u) P(u) / P, and that of data given
    u, p(y | u) e(y) / P(u), with P(u) the mean of e given u, and P that of P(u). Draws of both sites are from these
    densities, by rejection. `log_prob` leaves out the factors P(u), because they cancel in the sum over both sites. The
    density of one of the two sites is therefore not normalised. Where no draw is detected in ``MAX_TRIES`` tries,
    draws of continuous values are NaN, and draws of counts are those of an object that is not detected.
    """

    arg_constraints: ClassVar[dict] = {}
    pytree_data_fields: tuple[str, ...] = ("base", "log_detected_fraction", "objects")
    pytree_aux_fields = ("accepts", "log_efficiency")
    normalised_with_latents = True  # see the notes

    def __init__(
        self,
        base: Any,
        probability: Callable,
        log_detected_fraction: Any = 0.0,
        log_efficiency: Callable | None = None,
        *,
        objects: Any = None,
        validate_args=None,
    ):
        self.base, self.log_detected_fraction, self.objects = base, log_detected_fraction, objects
        self.accepts, self.log_efficiency = probability, log_efficiency
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        """Support of the distribution of all objects."""
        return self.base.support

    @property
    def mean(self):
        """Mean of all objects, detected or not."""
        return self.base.mean

    @validate_sample
    def log_prob(self, value):
        """Return the log density of values (n, ...), up to factors that cancel in the sum over all sites."""
        log_density = self.base.log_prob(value)
        if self.objects is not None:
            efficiency = 0.0 if self.log_efficiency is None else self.log_efficiency(value)
            factor = (efficiency - self.log_detected_fraction) / jnp.sum(self.objects, axis=0)
            # The factor of an object with several elements is shared equally among them.
            of_elements = jnp.sum(self.objects * factor, axis=1)
            return log_density + (of_elements if self.base.batch_shape else jnp.sum(of_elements))
        # The log density of counts has more axes than that of the objects.
        num_axes = len(self.base.batch_shape) - 1
        log_fraction = self.log_detected_fraction
        log_density = log_density - jnp.reshape(log_fraction, np.shape(log_fraction) + (1,) * num_axes)
        return log_density if self.log_efficiency is None else log_density + self.log_efficiency(value)

    def sample(self, key, sample_shape=()):
        """Draw values of detected objects, ``(n, ...)``."""
        if sample_shape:
            raise NotImplementedError("Detected draws one sample at a time; use jax.vmap for more.")
        num = self.base.batch_shape[0] if self.objects is None else np.shape(self.objects)[1]

        def some_undetected(state):
            _, tries, _, detected = state
            return (tries < MAX_TRIES) & ~jnp.all(detected)

        def try_again(state):
            key, tries, value, detected = state
            key, key_draw, key_uniform = random.split(key, 3)
            drawn = self.base.sample(key_draw)
            new = ~detected & (random.uniform(key_uniform, (num,)) < self.accepts(drawn))
            of_elements = new if self.objects is None else self.objects @ new > 0.5
            chosen = jnp.reshape(of_elements, (-1,) + (1,) * (jnp.ndim(drawn) - 1))
            return key, tries + 1, jnp.where(chosen, drawn, value), detected | new

        start = self.base.sample(key)
        start = jnp.full_like(start, jnp.nan) if jnp.issubdtype(start.dtype, jnp.inexact) else start
        return lax.while_loop(some_undetected, try_again, (key, 0, start, jnp.zeros(num, bool)))[2]


class DrawnFromInjections(Detected):
    """Distribution of one latent of objects whose detected fraction is that of injections.

    Parameters
    ----------
    base : Distribution
        Distribution of all objects, with one batch dimension of n objects.
    drawn : array (n,) or None
        Values of found injections, drawn for all latents of an object together, which `sample` returns; None outside
        simulations.
    log_detected_fraction : scalar or array (n,)
        As in `Detected`.
    """

    pytree_data_fields: tuple[str, ...] = (*Detected.pytree_data_fields, "drawn")

    def __init__(self, base: Any, drawn: Any, log_detected_fraction: Any = 0.0, *, validate_args=None):
        self.drawn = drawn
        super().__init__(base, lambda value: jnp.ones(()), log_detected_fraction, validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        """Return the values of the found injections, or those of all objects where none were drawn."""
        return self.base.sample(key, sample_shape) if self.drawn is None else self.drawn
