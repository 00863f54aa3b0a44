"""Normal hierarchical model with the true value of each group integrated out exactly.

The M measured values of a group scatter about its true value, all with D components,

    theta ~ N(loc, S S^T),    y_m ~ N(theta, C_m),    m = 1 ... M.

With ybar the mean weighted by the inverse C_m and V its covariance, log p(y) is the sum of the log density of y about
ybar, which does not depend on loc and S, and of log N(ybar; loc, S S^T + V).
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian, _cholesky, _solve_lower

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class GroupedNormal(dist.Distribution):
    """Distribution of the measured values (M, D) of a group, with its true value integrated out.

    Parameters
    ----------
    loc : array (..., D)
        Population mean of the true values.
    scale_tril : array (..., D, D)
        Cholesky factor S of their covariance. Zero is allowed: all true values are then equal to ``loc``.
    noise : array (..., M, D, D)
        Covariance of each measured value about the true value, positive definite.
    used : array (..., M)
        False for padding, which does not contribute. Draws there are zero.

    Notes
    -----
    Tested against the joint normal distribution of all values of a group in SciPy:
    ``tests/distributions/test_grouped_normal.py``.

    References
    ----------
    Gelman et al. 2013, Bayesian Data Analysis, 3rd edition, sect. 5.4.

    Examples
    --------
    >>> group = GroupedNormal(np.zeros(1), np.eye(1), np.ones((2, 1, 1)), np.array([True, True]))
    >>> round(float(group.log_prob(np.array([[1.0], [3.0]]))), 4)
    -4.7205
    """

    arg_constraints: dict = {}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.independent(constraints.real, 2)
    pytree_data_fields = ("loc", "scale_tril", "noise", "used")

    def __init__(self, loc, scale_tril, noise, used, *, validate_args=None):
        self.loc, self.scale_tril, self.noise, self.used = loc, scale_tril, noise, used
        shapes = [np.shape(loc)[:-1], np.shape(scale_tril)[:-2], np.shape(noise)[:-3], np.shape(used)[:-1]]
        event = np.shape(noise)[-3:-1]
        super().__init__(lax.broadcast_shapes(*shapes), event, validate_args=validate_args)

    def _whiteners(self):
        """Return inverse Cholesky factors of the noise (..., M, D, D), zero in padding, and their total log det."""
        eye = np.eye(self.event_shape[-1])
        if isinstance(self.noise, np.ndarray):  # constant errors are factorised once, not at every evaluation
            inverse = np.linalg.inv(np.linalg.cholesky(self.noise))
            log_dets = np.log(np.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
        else:
            inverse = _solve_lower(_cholesky(self.noise), eye)
            log_dets = jnp.log(jnp.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
        return inverse * self.used[..., None, None], (log_dets * self.used).sum(-1)

    def _mean(self, inverse, value):
        """Return the weighted mean (..., D), its covariance, and the log determinant of the Cholesky factor of that."""
        transposed = jnp.swapaxes(inverse, -1, -2)
        precision = (transposed @ inverse).sum(-3)
        weighted = (transposed @ (inverse @ value[..., None])).sum(-3)
        tril = _cholesky(precision)
        inverse_tril = _solve_lower(tril, np.eye(self.event_shape[-1]))
        covariance = jnp.swapaxes(inverse_tril, -1, -2) @ inverse_tril
        return (
            (covariance @ weighted)[..., 0],
            covariance,
            -jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum(-1),
        )

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., M, D)."""
        inverse, log_det = self._whiteners()
        mean, covariance, log_det_mean = self._mean(inverse, value)
        whitened = (inverse @ (value - mean[..., None, :])[..., None])[..., 0]
        count = self.used.sum(-1)
        size = self.event_shape[-1]
        within = log_det + log_det_mean - 0.5 * (whitened**2).sum((-2, -1)) - (count - 1) * size * HALF_LOG_2PI
        return within + LinearGaussian(self.loc, self.scale_tril, covariance).log_prob(mean)

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., M, D)``."""
        key_true, key_noise = random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        normal = random.normal(key_true, (*shape, self.event_shape[-1], 1))
        true = self.loc + (self.scale_tril @ normal)[..., 0]
        noise = (_cholesky(self.noise) @ random.normal(key_noise, (*shape, *self.event_shape, 1)))[..., 0]
        return jnp.where(self.used[..., None], true[..., None, :] + noise, 0.0)

    def conditional(self, value):
        """Return the exact conditional distribution of the true values (..., D) given measured values."""
        inverse, _ = self._whiteners()
        mean, covariance, _ = self._mean(inverse, value)
        return LinearGaussian(self.loc, self.scale_tril, covariance).conditional(mean)
