"""Normal hierarchical model with the true value of each group integrated out exactly.

The M measured values of a group scatter about its true value, all with D components,

    theta ~ N(loc, S S^T),    y_m ~ N(theta, C_m),    m = 1 ... M.

With ybar the mean weighted by the inverse C_m and V its covariance, log p(y) is the sum of the log density of y about
ybar, which does not depend on loc and S, and of log N(ybar; loc, S S^T + V).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.small_matrices import cholesky, solve_lower

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class WhitenedNoise(NamedTuple):
    """Quantities of a group that depend on its noise alone.

    Attributes
    ----------
    inverse : array (..., M, D, D)
        Inverse Cholesky factors of the noise, zero in padding.
    covariance : array (..., D, D)
        Covariance of the weighted mean.
    log_det : array (...)
        Half the log determinant of ``covariance``, less half those of the noise.
    """

    inverse: Any
    covariance: Any
    log_det: Any


def whiten_noise(noise: np.ndarray, used: np.ndarray) -> WhitenedNoise:
    """Return the whitening of known noise (..., M, D, D) of values that are used (..., M), computed with NumPy."""
    inverse = np.linalg.inv(np.linalg.cholesky(noise)) * used[..., None, None]
    diagonal = np.diagonal(inverse, axis1=-2, axis2=-1)
    covariance = np.linalg.inv((np.swapaxes(inverse, -1, -2) @ inverse).sum(-3))
    log_det = np.log(np.where(used[..., None], diagonal, 1.0)).sum((-2, -1)) + 0.5 * np.linalg.slogdet(covariance)[1]
    return WhitenedNoise(inverse, covariance, log_det)


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
    whitening : WhitenedNoise, optional
        The result of `whiten_noise` for this noise, which is then not factorised at every evaluation.

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
    pytree_data_fields = ("loc", "scale_tril", "noise", "used", "whitening")

    def __init__(self, loc, scale_tril, noise, used, whitening=None, *, validate_args=None):
        self.loc, self.scale_tril, self.noise, self.used, self.whitening = loc, scale_tril, noise, used, whitening
        shapes = [np.shape(loc)[:-1], np.shape(scale_tril)[:-2], np.shape(noise)[:-3], np.shape(used)[:-1]]
        event = np.shape(noise)[-3:-1]
        super().__init__(lax.broadcast_shapes(*shapes), event, validate_args=validate_args)

    def _whitening(self) -> WhitenedNoise:
        """Return the whitening of the noise, computed with JAX unless it was given."""
        if self.whitening is not None:
            return self.whitening
        eye = np.eye(self.event_shape[-1])
        inverse = solve_lower(cholesky(self.noise), eye) * self.used[..., None, None]
        precision_tril = cholesky((jnp.swapaxes(inverse, -1, -2) @ inverse).sum(-3))  # of the weighted mean
        inverse_tril = solve_lower(precision_tril, eye)
        diagonal = jnp.where(self.used[..., None], jnp.diagonal(inverse, axis1=-2, axis2=-1), 1.0)
        log_det = jnp.log(diagonal).sum((-2, -1)) - jnp.log(jnp.diagonal(precision_tril, axis1=-2, axis2=-1)).sum(-1)
        return WhitenedNoise(inverse, jnp.swapaxes(inverse_tril, -1, -2) @ inverse_tril, log_det)

    def _mean(self, whitening: WhitenedNoise, value):
        """Return the mean of the measured values weighted by their inverse noise, (..., D)."""
        inverse = whitening.inverse
        weighted = (jnp.swapaxes(inverse, -1, -2) @ (inverse @ value[..., None])).sum(-3)
        return (whitening.covariance @ weighted)[..., 0]

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., M, D)."""
        whitening = self._whitening()
        mean = self._mean(whitening, value)
        whitened = (whitening.inverse @ (value - mean[..., None, :])[..., None])[..., 0]
        # The residuals from the weighted mean have D degrees of freedom fewer than the values.
        constant = (self.used.sum(-1) - 1) * self.event_shape[-1] * HALF_LOG_2PI
        within = whitening.log_det - 0.5 * (whitened**2).sum((-2, -1)) - constant
        return within + LinearGaussian(self.loc, self.scale_tril, whitening.covariance).log_prob(mean)

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., M, D)``."""
        key_true, key_noise = random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        normal = random.normal(key_true, (*shape, self.event_shape[-1], 1))
        true = self.loc + (self.scale_tril @ normal)[..., 0]
        noise = (cholesky(self.noise) @ random.normal(key_noise, (*shape, *self.event_shape, 1)))[..., 0]
        return jnp.where(self.used[..., None], true[..., None, :] + noise, 0.0)

    def conditional(self, value):
        """Return the exact conditional distribution of the true values (..., D) given measured values."""
        whitening = self._whitening()
        mean = self._mean(whitening, value)
        return LinearGaussian(self.loc, self.scale_tril, whitening.covariance).conditional(mean)
