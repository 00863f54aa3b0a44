"""Which objects are detected: a probability in what was observed, and its normalisation."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr

from hbm_jax.distributions.half_line import HalfLine


class ProbitSelection(NamedTuple):
    """Detection probability Phi((limit - slope . y) / width) of an observed vector y.

    Attributes
    ----------
    limit, width : array (...)
        Where half of the objects are detected, and how wide the transition is (positive).
    slope : array (..., n)
        Direction in y.

    Notes
    -----
    Under y ~ N(m, C) the detected share is Phi((limit - slope . m) / sqrt(width^2 + slope . C slope)), exactly.

    Examples
    --------
    >>> half = ProbitSelection(24.0, 0.2, jnp.array([0.0, 0.0, 1.0]))
    >>> float(half.probability(jnp.array([0.0, 0.0, 24.0])))
    0.5
    """

    limit: Any
    width: Any
    slope: Any

    def log_probability(self, value):
        """Log probability that an object observed at ``value`` (..., n) is detected."""
        return log_ndtr((self.limit - jnp.sum(self.slope * value, axis=-1)) / self.width)

    def probability(self, value):
        """Probability that an object observed at ``value`` (..., n) is detected."""
        return ndtr((self.limit - jnp.sum(self.slope * value, axis=-1)) / self.width)


def detected_share(room, variance, half_line: HalfLine | None = None, along=None):
    """Log of the mean of Phi((room - along t - e) / width), e normal: the share of objects that are detected.

    Parameters
    ----------
    room : array (...)
        Limit less the mean of what is compared with it.
    variance : array (...)
        Of e, and the squared width.
    half_line : HalfLine, optional
        The distribution of a positive latent t; the mean over it is a Gauss rule, whose error is below 1e-8 while it
        moves the compared by less than a few times the root of the variance
        (``tests/distributions/test_observed_mixture.py``).
    along : array (...), optional
        What one unit of t adds to the compared.
    """
    scale = jnp.sqrt(variance)
    if half_line is None:
        return log_ndtr(room / scale)
    nodes, log_weights = half_line.nodes()
    inside = (room[..., None] - along[..., None] * nodes) / scale[..., None]
    return _log_sum_exp(log_weights + log_ndtr(inside))


def _log_sum_exp(values):
    top = jnp.max(values, axis=-1, keepdims=True)
    return (top + jnp.log(jnp.sum(jnp.exp(values - top), axis=-1, keepdims=True)))[..., 0]
