"""Selection functions: the detection probability of an observed vector, and the detected fraction."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr

from hbm_jax.distributions.half_line import HalfLine
from hbm_jax.distributions.mills_ratio import log_mean_probit


class ProbitSelection(NamedTuple):
    """Detection probability Phi((limit - slope . y) / width) of an observed vector y.

    Attributes
    ----------
    limit, width : array (...)
        Value of slope . y at which half of the objects are detected, and width of the transition (positive).
    slope : array (..., n)
        Direction in y.

    Notes
    -----
    The detected fraction of objects with y ~ N(m, C) is exactly
    Phi((limit - slope . m) / sqrt(width^2 + slope . C slope)).

    Examples
    --------
    >>> selection = ProbitSelection(24.0, 0.2, jnp.array([0.0, 0.0, 1.0]))
    >>> float(selection.probability(jnp.array([0.0, 0.0, 24.0])))
    0.5
    """

    limit: Any
    width: Any
    slope: Any

    def log_probability(self, value):
        """Return the log probability that an object observed at ``value`` (..., n) is detected."""
        return log_ndtr((self.limit - jnp.sum(self.slope * value, axis=-1)) / self.width)

    def probability(self, value):
        """Return the probability that an object observed at ``value`` (..., n) is detected."""
        return ndtr((self.limit - jnp.sum(self.slope * value, axis=-1)) / self.width)


def log_detected_fraction(room, variance, half_line: HalfLine | None = None, along=None):
    """Return the log of the detected fraction, the mean of Phi((room - along t - e) / width) over normal e and over t.

    Parameters
    ----------
    room : array (...)
        Limit minus the mean of slope . y.
    variance : array (...)
        Variance of e plus the squared width.
    half_line : HalfLine, optional
        Distribution of a positive latent t, without which t = 0. The mean over an exponential t is in closed form
        (`log_mean_probit`). Over a half or truncated normal t it is a Gauss quadrature with an error below 1e-8 where t
        changes slope . y by less than a few times the square root of the variance
        (``tests/distributions/test_observed_mixture.py``).
    along : array (...), optional
        Change of slope . y per unit of t.
    """
    scale = jnp.sqrt(variance)
    if half_line is None:
        return log_ndtr(room / scale)
    if half_line.precision is None:
        return log_mean_probit(room / scale, along / (half_line.rate * scale))
    nodes, log_weights = half_line.nodes()
    standardised = (room[..., None] - along[..., None] * nodes) / scale[..., None]
    return _log_sum_exp(log_weights + log_ndtr(standardised))


def _log_sum_exp(values):
    """Return log(sum(exp(values))) over the last axis."""
    maximum = jnp.max(values, axis=-1, keepdims=True)
    return (maximum + jnp.log(jnp.sum(jnp.exp(values - maximum), axis=-1, keepdims=True)))[..., 0]
