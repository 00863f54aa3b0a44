"""Measured points on a line whose slope changes at a break, with the true values integrated out.

On each side of the break, the density is that of a line without a break times the probability that the true x of the
point, given its measured values, is on that side (`MeasuredPoints` has the other relations).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import log_ndtr
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import truncated
from hbm_jax.distributions.normal.bivariate import log_bivariate_ndtr
from hbm_jax.distributions.normal.small_matrices import normal_log_density
from hbm_jax.distributions.selection import ProbitSelection, draw_detected

SIDES = np.array([1.0, -1.0])  # true x below the break, and above it
MIN_VARIANCE = 1e-12  # smallest variance of x given the measured values, in units of that of the population
MAX_CORRELATION = 1.0 - 1e-6  # largest correlation of the true x and the quantity of a selection


class BrokenPoints(dist.Distribution):
    """Distribution of the measured (x, y) of independent points on a line with a break.

    Parameters
    ----------
    x_loc, x_std : scalar
        Mean and standard deviation of the true x.
    x_break : scalar
        Position of the break.
    intercept : array (...)
        True y at the break.
    slopes : (scalar, scalar)
        Slopes below and above the break.
    scatter : array (...)
        Standard deviation of the true y about the line.
    errors : array (..., 2, 2)
        Covariance of the errors.
    selections : sequence of ProbitSelection
        At most one; the density is then that of the detected points. Points that are not detected in ``MAX_TRIES``
        tries are drawn as NaN.

    Examples
    --------
    >>> points = BrokenPoints(0.0, 1.0, 0.0, 2.0, (1.5, 1.5), 0.0, 0.1 * np.eye(2))
    >>> round(float(points.log_prob(np.array([1.0, 3.5]))), 4)  # as without a break
    -1.7761
    """

    arg_constraints: dict = {}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = ("x_loc", "x_std", "x_break", "intercept", "slopes", "scatter", "errors", "selections")

    def __init__(
        self, x_loc, x_std, x_break, intercept, slopes, scatter, errors,
        selections: Sequence[ProbitSelection] = (), *, validate_args=None,
    ):  # fmt: skip
        self.x_loc, self.x_std, self.x_break = x_loc, x_std, x_break
        self.intercept, self.slopes, self.scatter, self.errors = intercept, tuple(slopes), scatter, errors
        self.selections = tuple(selections)
        shape = lax.broadcast_shapes(np.shape(intercept), np.shape(scatter), np.shape(errors)[:-2])
        super().__init__(shape, np.shape(errors)[-1:], validate_args=validate_args)

    def _sides(self):
        """Return means and covariances of the true (x, y) of both lines, continued beyond the break, (..., 2) each."""
        slope, variance = jnp.stack(self.slopes), self.x_std**2
        y = jnp.asarray(self.intercept)[..., None] + slope * (self.x_loc - self.x_break)
        yy = slope**2 * variance + jnp.asarray(self.scatter)[..., None] ** 2
        return (self.x_loc, y), (variance, slope * variance, yy)

    def _measured(self):
        """Return the covariances of the measured (x, y) of both lines, (..., 2) each."""
        xx, xy, yy = self._sides()[1]
        return xx + self.errors[..., 0, 0, None], xy + self.errors[..., 0, 1, None], yy + self.errors[..., 1, 1, None]

    def _conditional_x(self, value):
        """Return residuals of measured values from both lines, and mean and std of the true x given them, (..., 2)."""
        (x, y), (variance, covariance, _) = self._sides()
        residual = value[..., 0, None] - x, value[..., 1, None] - y
        xx, xy, yy = self._measured()
        # Conditional mean and variance by the gain K = Cov(true x, (x, y)) C^-1, with C the measured covariance.
        determinant = xx * yy - xy**2
        gain_x = (variance * yy - covariance * xy) / determinant
        gain_y = (covariance * xx - variance * xy) / determinant
        remaining = variance - gain_x * variance - gain_y * covariance
        std = jnp.sqrt(jnp.maximum(remaining, MIN_VARIANCE * variance))
        return residual, x + gain_x * residual[0] + gain_y * residual[1], std

    def _log_density_of_sides(self, value):
        """Return the log density of each side of the break, (..., 2)."""
        residual, mean, std = self._conditional_x(value)
        xx, xy, yy = jnp.broadcast_arrays(*self._measured())
        residual = jnp.broadcast_arrays(*residual)
        return normal_log_density(residual, [[xx], [xy, yy]]) + log_ndtr(SIDES * (self.x_break - mean) / std)

    @property
    def log_detected(self):
        """Log probability that a point is detected, (...); 0 without a selection."""
        if not self.selections:
            return jnp.zeros(self.batch_shape)
        (part,) = self.selections
        (x, y), (variance, covariance, _) = self._sides()
        slope_x, slope_y = (jnp.asarray(part.slope)[..., i, None] for i in range(2))
        xx, xy, yy = self._measured()
        spread = slope_x**2 * xx + 2.0 * slope_x * slope_y * xy + slope_y**2 * yy
        spread = jnp.sqrt(spread + jnp.asarray(part.variance)[..., None])
        margin = (jnp.asarray(part.limit)[..., None] - slope_x * x - slope_y * y) / spread
        correlation = (slope_x * variance + slope_y * covariance) / (spread * self.x_std)
        correlation = jnp.clip(correlation, -MAX_CORRELATION, MAX_CORRELATION)
        at_break = (self.x_break - x) / self.x_std
        sides = log_bivariate_ndtr(margin, SIDES * at_break, SIDES * correlation)
        return jnp.logaddexp(sides[..., 0], sides[..., 1])

    @validate_sample
    def log_prob(self, value):
        """Return the log density of measured values (..., 2)."""
        sides = self._log_density_of_sides(value)
        log_density = jnp.logaddexp(sides[..., 0], sides[..., 1])
        if not self.selections:
            return log_density
        return log_density + self.selections[0].log_probability(value) - self.log_detected

    def _error(self):
        """Return the standard deviation of the error of x, and slope and variance of the error of y given it, (...)."""
        xx, xy, yy = (jnp.asarray(self.errors)[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        slope = jnp.where(xx > 0.0, xy / jnp.where(xx > 0.0, xx, 1.0), 0.0)
        return jnp.sqrt(xx), slope, jnp.maximum(yy - slope * xy, 0.0)

    def _true_y(self, key, x):
        """Draw the true y at true x."""
        slope = jnp.where(x < self.x_break, *self.slopes)
        return self.intercept + slope * (x - self.x_break) + self.scatter * random.normal(key, x.shape)

    def sample(self, key, sample_shape=()):
        """Draw measured values, ``(*sample_shape, ..., 2)``."""
        shape = (*sample_shape, *self.batch_shape)

        def draw(key):
            keys = random.split(key, 3)
            x = self.x_loc + self.x_std * random.normal(keys[0], shape)
            true = jnp.stack([x, self._true_y(keys[1], x)], axis=-1)
            noise, (std, slope, remaining) = random.normal(keys[2], (*shape, 2)), self._error()
            x_error = std * noise[..., 0]
            y_error = slope * x_error + jnp.sqrt(remaining) * noise[..., 1]
            return true + jnp.stack([x_error, y_error], axis=-1)

        if not self.selections:
            return draw(key)
        return draw_detected(key, shape, 2, draw, self.selections[0].probability)

    def draw_true(self, key, value):
        """Draw the true (x, y), (..., 2), from their exact conditional distribution given measured values."""
        keys = random.split(key, 3)
        log_density = self._log_density_of_sides(value)
        below = random.uniform(keys[0], log_density.shape[:-1]) < jnp.exp(
            log_density[..., 0] - jnp.logaddexp(log_density[..., 0], log_density[..., 1])
        )
        _, mean, std = self._conditional_x(value)
        mean, std = (jnp.where(below, a[..., 0], a[..., 1]) for a in (mean, std))
        side = jnp.where(below, 1.0, -1.0)
        # The distance from the break is a normal variable, truncated to positive values.
        x = self.x_break - side * truncated(keys[1], side * (self.x_break - mean), std, mean.shape)
        # Given x, the true y is normal, and so is the error of y given that of x.
        line = self.intercept + jnp.where(below, *self.slopes) * (x - self.x_break)
        (_, slope, error), scatter = self._error(), jnp.asarray(self.scatter) ** 2
        weight = scatter / jnp.maximum(scatter + error, jnp.finfo(x.dtype).tiny)
        centre = line + weight * (value[..., 1] - slope * (value[..., 0] - x) - line)
        return jnp.stack([x, centre + jnp.sqrt(weight * error) * random.normal(keys[2], x.shape)], axis=-1)
