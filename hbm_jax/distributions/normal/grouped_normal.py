"""Values of groups whose true value is normal and integrated out: the normal hierarchical model, exactly.

    theta ~ N(loc, S S^T),    y_m ~ N(theta, C_m),    m = 1 ... M,

of D components each. The values of a group enter by their mean, weighted with the inverse C_m, and its covariance V:
log p(y) is that of y about this mean, which no theta changes, and of the mean in N(loc, S S^T + V).
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
    """Measured values (M, D) of a group, the true value of the group integrated out.

    Parameters
    ----------
    loc : array (..., D)
        Mean of the true values of groups.
    scale_tril : array (..., D, D)
        Cholesky factor S of their covariance; zero is allowed, and is a true value that is known.
    noise : array (..., M, D, D)
        Covariance of each value about the true one, positive definite.
    used : array (..., M)
        False for padding, which counts for nothing. Draws there are zero.

    Notes
    -----
    Against SciPy's normal of all values of a group: ``tests/distributions/test_grouped_normal.py``.

    References
    ----------
    Gelman et al. 2013, Bayesian Data Analysis, 3rd edition, sect. 5.4.

    Examples
    --------
    >>> one = GroupedNormal(np.zeros(1), np.eye(1), np.ones((2, 1, 1)), np.array([True, True]))
    >>> round(float(one.log_prob(np.array([[1.0], [3.0]]))), 4)
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
        """Inverse Cholesky factors of the noise (..., M, D, D), zero in padding, and the sum of their log pivots."""
        eye = np.eye(self.event_shape[-1])
        if isinstance(self.noise, np.ndarray):  # known errors: once, not at every step
            inverse = np.linalg.inv(np.linalg.cholesky(self.noise))
            logs = np.log(np.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
        else:
            inverse = _solve_lower(_cholesky(self.noise), eye)
            logs = jnp.log(jnp.diagonal(inverse, axis1=-2, axis2=-1)).sum(-1)
        return inverse * self.used[..., None, None], (logs * self.used).sum(-1)

    def _mean(self, inverse, value):
        """Weighted mean of the values (..., D), its covariance, and the log determinant of its Cholesky factor."""
        transposed = jnp.swapaxes(inverse, -1, -2)
        precision = (transposed @ inverse).sum(-3)
        weighted = (transposed @ (inverse @ value[..., None])).sum(-3)
        root = _cholesky(precision)
        inner = _solve_lower(root, np.eye(self.event_shape[-1]))
        covariance = jnp.swapaxes(inner, -1, -2) @ inner
        return (covariance @ weighted)[..., 0], covariance, -jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(-1)

    @validate_sample
    def log_prob(self, value):
        """Log density of measured values (..., M, D)."""
        inverse, logs = self._whiteners()
        mean, covariance, log_root = self._mean(inverse, value)
        away = (inverse @ (value - mean[..., None, :])[..., None])[..., 0]
        count = self.used.sum(-1)
        size = self.event_shape[-1]
        within = logs + log_root - 0.5 * (away**2).sum((-2, -1)) - (count - 1) * size * HALF_LOG_2PI
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
        """Exact distribution of the true value (..., D) of each group, given measured values."""
        inverse, _ = self._whiteners()
        mean, covariance, _ = self._mean(inverse, value)
        return LinearGaussian(self.loc, self.scale_tril, covariance).conditional(mean)
