"""Points on a line or plane with errors in all coordinates: mixtures, outliers, limits; the truth integrated out.

A point has true predictors x, from a mixture of normals, and a true y = intercept + slope . x + N(0, scatter^2), or
Student's t in place of this normal, as a mixture of normals over a grid of its scales. Measured are D = P + 1
coordinates, the response last, with a Gaussian error. Of a point whose measured value in one coordinate is below (or
above) a limit, only that is known.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.nn import logsumexp
from jax.scipy.special import log_ndtr, ndtr, ndtri
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NODES = 48  # of the scales of Student's t: 1e-5 of the density for 1 degree of freedom, 1e-7 for 2, up to 50 scales out


class Limits(NamedTuple):
    """Limits of points, at most one each.

    Attributes
    ----------
    at : array (...)
        Where; NaN for none. A measured value there or beyond is one of which only that is known.
    side : array (...)
        1 where values below the limit are not seen (upper limits), -1 where those above are not.
    order : array (..., D, D), optional
        Permutation that brings the coordinate with the limit to the end; None where it is the response everywhere.
    """

    at: jnp.ndarray
    side: jnp.ndarray
    order: jnp.ndarray | None = None


class MeasuredPoints(dist.Distribution):
    """Measured coordinates of points on a line or plane.

    Parameters
    ----------
    x_loc : array (..., K, P)
        Means of the true predictors in the K components of their population.
    x_cov : array (..., K, P, P)
        Their covariances; may be zero.
    log_weights : array (K,)
        Logarithms of the components' shares.
    intercept, scatter : array (...)
        Of the response.
    slope : array (..., P)
        Its derivatives.
    errors : array (..., D, D)
        Covariance of the errors; positive definite.
    limits : Limits, optional
        Of the measured values.
    outliers : (array, array), optional
        Share of points whose response has another scatter, and the standard deviation that is added to it there.
    nu : array, optional
        Degrees of freedom of Student's t, 1 or more, of which ``scatter`` is then the scale. None: normal.

    Notes
    -----
    Values are (..., D). The density of a point at its limit is the probability to be beyond, times the density of the
    other coordinates. Draws beyond a limit are put on it.

    References
    ----------
    Kelly 2007, ApJ 665, 1489 (mixture, limits); Hogg, Bovy & Lang 2010, arXiv:1008.4686, sect. 3 (outliers).

    Examples
    --------
    >>> loc, cov, errors = np.zeros((1, 1)), np.ones((1, 1, 1)), 0.1 * np.eye(2)
    >>> one = MeasuredPoints(loc, cov, np.zeros(1), 2.0, np.array([1.5]), 0.0, errors)
    >>> round(float(one.log_prob(np.array([1.0, 3.5]))), 4)
    -1.7046
    """

    arg_constraints: dict = {}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = (
        "x_loc", "x_cov", "log_weights", "intercept", "slope", "scatter", "errors", "limits", "outliers", "nu",
    )  # fmt: skip

    def __init__(
        self, x_loc, x_cov, log_weights, intercept, slope, scatter, errors, limits=None, outliers=None, nu=None,
        *, validate_args=None,
    ):  # fmt: skip
        self.x_loc, self.x_cov, self.log_weights = x_loc, x_cov, log_weights
        self.intercept, self.slope, self.scatter, self.errors = intercept, slope, scatter, errors
        self.limits, self.outliers, self.nu = limits, outliers, nu
        shapes = [np.shape(x_loc)[:-2], np.shape(x_cov)[:-3], np.shape(intercept), np.shape(slope)[:-1]]
        shapes += [np.shape(scatter), np.shape(errors)[:-2]]
        super().__init__(lax.broadcast_shapes(*shapes), np.shape(errors)[-1:], validate_args=validate_args)

    def _scatters(self):
        """Logarithms of shares (S,) and variances (..., S, 1) of the normals of which the scatter is a mixture."""
        variance = jnp.broadcast_to(self.scatter, self.batch_shape)[..., None] ** 2
        if self.outliers is not None:
            share, scale = self.outliers
            logs = jnp.stack([jnp.log1p(-share), jnp.log(share)])
            variance = variance + scale**2 * np.array([0.0, 1.0])
        elif self.nu is not None:
            logs, precision = _student_t(self.nu)
            variance = variance / precision
        else:
            logs = jnp.zeros(1)
        return logs, variance[..., None]

    def _components(self):
        """Logarithms of shares (C,), means (..., C, D), covariances of the true coordinates (..., C, D, D).

        C = S K: for each normal of the scatter, all components of the population.
        """
        shape = self.batch_shape
        slope = jnp.broadcast_to(self.slope, (*shape, np.shape(self.slope)[-1]))[..., None, :]
        y = jnp.broadcast_to(self.intercept, shape)[..., None] + (self.x_loc * slope).sum(-1)
        x = jnp.broadcast_to(self.x_loc, (*y.shape, slope.shape[-1]))
        loc = jnp.concatenate([x, y[..., None]], axis=-1)
        xy = (self.x_cov * slope[..., None, :]).sum(-1)
        shares, variance = self._scatters()
        yy = (xy * slope).sum(-1)[..., None, :] + variance
        logs = (shares[:, None] + self.log_weights).reshape(-1)
        num = (*shape, len(logs))

        def each(a, size):  # (..., K, size...) for every normal of the scatter
            return jnp.broadcast_to(a[(..., None, *(slice(None),) * (len(size) + 1))], (*yy.shape, *size)).reshape(
                *num, *size
            )

        size = loc.shape[-1]
        xx = jnp.broadcast_to(self.x_cov, (*xy.shape, xy.shape[-1]))
        upper = jnp.concatenate([each(xx, xx.shape[-2:]), each(xy, xy.shape[-1:])[..., None]], axis=-1)
        lower = jnp.concatenate([each(xy, xy.shape[-1:]), yy.reshape(num)[..., None]], axis=-1)[..., None, :]
        return logs, each(loc, (size,)), jnp.concatenate([upper, lower], axis=-2)

    def _measured(self, cov):
        return cov + self.errors[..., None, :, :]

    def _of_components(self, value):
        """Log density of each component with its share, (..., C)."""
        logs, loc, cov = self._components()
        residual, cov = value[..., None, :] - loc, self._measured(cov)
        if self.limits is not None and self.limits.order is not None:
            order = self.limits.order[..., None, :, :]
            residual = (order * residual[..., None, :]).sum(-1)
            cov = order @ cov @ jnp.swapaxes(order, -1, -2)
        z, diagonal = _whitened(cov, residual)
        density = [-0.5 * a**2 - jnp.log(d) - HALF_LOG_2PI for a, d in zip(z, diagonal, strict=True)]
        if self.limits is not None:
            side = self.limits.side[..., None]
            density[-1] = jnp.where(self._beyond(value)[..., None], log_ndtr(side * z[-1]), density[-1])
        return logs + sum(density)

    def _beyond(self, value):
        """Whether a measured value is at the limit or beyond."""
        at, side, order = self.limits
        last = value[..., -1] if order is None else (order[..., -1, :] * value).sum(-1)
        return side * last <= side * at  # False where there is none

    @validate_sample
    def log_prob(self, value):
        """Log density of measured values (..., D)."""
        return logsumexp(self._of_components(value), axis=-1)

    def outlier_probability(self, value):
        """Probability of each point to be an outlier, given measured values, (...)."""
        each = self._of_components(value)
        half = each.shape[-1] // 2
        return jnp.exp(logsumexp(each[..., half:], axis=-1) - logsumexp(each, axis=-1))

    def weight(self, value):
        """Mean weight of each point, given measured values, (...): 1 in the bulk of Student's t, 0 far out.

        Student's t is a normal whose variance is divided by a weight, from a gamma distribution of mean 1.
        """
        logs = self._of_components(value)
        _, precision = _student_t(self.nu)
        each = logsumexp(logs.reshape(*logs.shape[:-1], NODES, -1), axis=-1)
        return jnp.exp(logsumexp(each + jnp.log(precision), axis=-1) - logsumexp(each, axis=-1))

    def sample(self, key, sample_shape=()):
        """Draw measured values, those beyond a limit put on it, ``(*sample_shape, ..., D)``."""
        key_component, key_normal = random.split(key)
        logs, loc, cov = self._components()
        shape = (*sample_shape, *self.batch_shape)
        mean, tril = _picked(key_component, jnp.broadcast_to(logs, (*shape, len(logs))), loc, self._measured(cov))
        value = mean + (tril @ random.normal(key_normal, (*mean.shape, 1)))[..., 0]
        if self.limits is None:
            return value
        at, _, order = self.limits
        beyond, last = self._beyond(value)[..., None], np.zeros(value.shape[-1])
        last[-1] = 1.0
        where = last if order is None else order[..., -1, :]
        return jnp.where(beyond & (where > 0), at[..., None], value)

    def draw_true(self, key, value):
        """Draw the true coordinates of every point given measured values, (..., D), exactly."""
        keys = random.split(key, 3)
        logs = self._of_components(value)
        _, loc, cov = self._components()
        picked = random.categorical(keys[0], logs)
        one = (picked[..., None] == jnp.arange(logs.shape[-1])).astype(loc.dtype)
        loc = (one[..., None] * loc).sum(-2)
        true = (one[..., None, None] * cov).sum(-3)
        measured = true + self.errors
        if self.limits is not None:
            value = self._unlimited(keys[1], value, loc, measured)
        gain = jnp.swapaxes(jnp.linalg.solve(measured, true), -1, -2)
        mean = loc + (gain @ (value - loc)[..., None])[..., 0]
        left = true - gain @ true
        return mean + (_root(left) @ random.normal(keys[2], (*mean.shape, 1)))[..., 0]

    def _unlimited(self, key, value, loc, measured):
        """Draw what was beyond the limit."""
        side, order = self.limits.side, self.limits.order
        order = jnp.eye(value.shape[-1]) if order is None else order
        turned = (order * (value - loc)[..., None, :]).sum(-1)
        z, diagonal = _whitened(order @ measured @ jnp.swapaxes(order, -1, -2), turned)
        # The last whitened coordinate is normal, below its limit (above it where side is -1).
        u = random.uniform(key, z[-1].shape, minval=jnp.finfo(value.dtype).tiny)
        drawn = side * ndtri(u * ndtr(side * z[-1]))
        last = turned[..., -1] + diagonal[-1] * (drawn - z[-1])
        turned = jnp.concatenate([turned[..., :-1], last[..., None]], axis=-1)
        back = loc + (jnp.swapaxes(order, -1, -2) * turned[..., None, :]).sum(-1)
        return jnp.where(self._beyond(value)[..., None], back, value)


def _student_t(nu):
    """Logarithms of shares, and precisions, of the normals of unit scale whose mixture is Student's t, (NODES,).

    The precision w has the density of Gamma(nu / 2, nu / 2): the trapezoidal rule in its logarithm, which converges
    exponentially. At the ends what a value 50 scales out, or none, asks for has fallen to 1e-7.
    """
    tail = 32.0 / (nu + 1.0)
    low, high = jnp.log((2500.0 + nu) / (nu + 1.0)) + tail, jnp.log1p(tail + jnp.sqrt(2.0 * tail) + jnp.log1p(tail))
    at = -low + (low + high) * jnp.linspace(0.0, 1.0, NODES)
    logs = 0.5 * nu * (at - jnp.exp(at))
    return logs - logsumexp(logs), jnp.exp(at)


def _whitened(cov, residual):
    """Solve L z = residual with the Cholesky factor L of small matrices, by element; z and the diagonal of L."""
    num = cov.shape[-1]
    factor: dict[tuple[int, int], jnp.ndarray] = {}
    z: list[jnp.ndarray] = []
    for i in range(num):
        for j in range(i):
            done = sum(factor[i, k] * factor[j, k] for k in range(j))
            factor[i, j] = (cov[..., i, j] - done) / factor[j, j]
        factor[i, i] = jnp.sqrt(cov[..., i, i] - sum(factor[i, k] ** 2 for k in range(i)))
        z.append((residual[..., i] - sum(factor[i, k] * z[k] for k in range(i))) / factor[i, i])
    return z, [factor[i, i] for i in range(num)]


def _picked(key, logs, loc, cov):
    """Mean and Cholesky factor of a component drawn for each point."""
    picked = random.categorical(key, logs)
    one = (picked[..., None] == jnp.arange(logs.shape[-1])).astype(loc.dtype)
    return (one[..., None] * loc).sum(-2), jnp.linalg.cholesky((one[..., None, None] * cov).sum(-3))


def _root(cov):
    """Square root of a covariance that may be singular."""
    values, vectors = jnp.linalg.eigh(0.5 * (cov + jnp.swapaxes(cov, -1, -2)))
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
