"""Which objects are detected: a probability in what was observed, and its normalisation."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
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
    >>> half = ProbitSelection(24.0, 0.2, np.array([0.0, 0.0, 1.0]))
    >>> float(half.probability(np.array([0.0, 0.0, 24.0])))
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

    def log_share(self, mean, covariance, half_line: HalfLine | None = None):
        """Log of the share of objects that are detected, whose y ~ N(mean, covariance) [+ t direction].

        Parameters
        ----------
        mean, covariance : array (..., n), (..., n, n)
            Of the observed vectors, errors included.
        half_line : HalfLine, optional
            A positive latent that is added along a direction; the mean over it is a Gauss rule, whose error is below
            1e-8 while the latent moves y by less than a few times the width of everything else
            (``tests/distributions/test_selection.py``).
        """
        slope = jnp.asarray(self.slope)
        room = self.limit - jnp.sum(slope * mean, axis=-1)
        size = range(np.shape(covariance)[-1])
        variance = sum(slope[..., i] * slope[..., j] * covariance[..., i, j] for i in size for j in size)
        scale = jnp.sqrt(variance + self.width**2)
        if half_line is None:
            return log_ndtr(room / scale)
        nodes, log_weights = half_line.nodes()
        moved = jnp.sum(slope * half_line.direction, axis=-1)
        inside = (room[..., None] - moved[..., None] * nodes) / scale[..., None]
        return _log_sum_exp(log_weights + log_ndtr(inside))


def _log_sum_exp(values):
    top = jnp.max(values, axis=-1, keepdims=True)
    return (top + jnp.log(jnp.sum(jnp.exp(values - top), axis=-1, keepdims=True)))[..., 0]
