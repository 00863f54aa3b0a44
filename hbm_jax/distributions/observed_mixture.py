"""Observed vectors from a mixture of Gaussian populations, with errors of their own, of which only some are detected.

Component k of an object has true values x ~ N(loc_k + t direction_k, S_k S_k^T), with a positive t or none, and

    y = offset + x + noise,   noise ~ N(0, noise_covariance),

is in the data with the probability of a `ProbitSelection` in y. Everything is integrated out, and can be drawn back.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import logsumexp
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import HalfLine
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian, _cholesky
from hbm_jax.distributions.selection import ProbitSelection, detected_share

MAX_TRIES = 20_000  # of a draw that has to be detected


class ObservedMixture(dist.Distribution):
    """Mixture of Gaussian populations observed with errors, exactly normalised over what is detected.

    Parameters
    ----------
    log_weights : array (..., K)
        Of the components, whose exponentials add up to 1.
    loc : array (..., K, n), or a tuple of n arrays (..., K)
        Mean of the true values. Tuples are what is fast.
    scale_tril : array (..., K, n, n), or a tuple of rows
        Lower-triangular factor of their covariance; zeros on the diagonal are allowed.
    noise_covariance : array (..., n, n)
        Of the errors, positive definite.
    offset : array (..., n), optional
        Added to the true values by the measurement.
    half_line : HalfLine, optional
        A positive latent of each component, direction as loc, rate and precision (..., K).
    selection : ProbitSelection, optional
        In the observed values; the density is that of detected objects.

    Notes
    -----
    Values are (..., n). Draws of a selection are made by rejection, so that they use nothing of the normalisation; an
    object not detected in ``MAX_TRIES`` tries is NaN.

    References
    ----------
    Kelly 2007, ApJ 665, 1489, section 5.1; Rubin et al. 2015, ApJ 813, 137, appendix B; Mandel et al. 2017, ApJ 842, 93
    (the exponential colour tail).

    Examples
    --------
    >>> one = ObservedMixture(np.zeros(1), np.zeros((1, 2)), np.eye(2)[None], np.eye(2))
    >>> round(float(one.log_prob(np.zeros(2))), 4)
    -2.531
    """

    # A weight may be none: of minus infinity, which no vector of real numbers has.
    arg_constraints = {  # noqa: RUF012 - NumPyro's own convention
        "log_weights": constraints.independent(constraints.less_than(np.inf), 1)
    }
    support = constraints.real_vector
    pytree_aux_fields = ("_components",)
    pytree_data_fields = (
        "log_weights", "loc", "scale_tril", "noise_covariance", "offset", "half_line", "selection",
    )  # fmt: skip

    def __init__(
        self, log_weights, loc, scale_tril, noise_covariance, *, offset=None, half_line: HalfLine | None = None,
        selection: ProbitSelection | None = None, validate_args=None,
    ):  # fmt: skip
        self.loc, self.scale_tril = _entries(loc), tuple(_entries(row) for row in _rows(scale_tril))
        size = len(self.loc)
        self.offset = np.zeros(size) if offset is None else offset
        self.log_weights, self.noise_covariance, self.selection = log_weights, noise_covariance, selection
        self.half_line = half_line
        components = [np.shape(log_weights), *map(np.shape, self.loc)]
        components += [np.shape(entry) for row in self.scale_tril for entry in row]
        if half_line is not None:
            self.half_line = half_line._replace(direction=_entries(half_line.direction))
            components += [*map(np.shape, self.half_line.direction), np.shape(half_line.rate)]
        self._components = lax.broadcast_shapes(*components)
        shared = [np.shape(noise_covariance)[:-2], np.shape(self.offset)[:-1]]
        batch = lax.broadcast_shapes(self._components[:-1], *shared)
        super().__init__(batch, (size,), validate_args=validate_args)

    @property
    def _all(self):
        """Batch shape and number of components."""
        return (*self.batch_shape, self._components[-1])

    def _covariance(self, i, j):
        """Element of the covariance of the observed vectors, (..., K)."""
        one, other = self.scale_tril[i], self.scale_tril[j]
        noise = self.noise_covariance[..., i, j]
        return noise[..., None] + sum(one[k] * other[k] for k in range(min(i, j) + 1))

    def _mean(self, i):
        return self.loc[i] + self.offset[..., i, None]

    def _parts(self, value):
        """Log density of each component without its weight (..., K), and of its half line what is linear, quadratic.

        The factorisation is written out in components without stacking them, so that XLA fuses it into one pass over
        objects and components: ten times faster than arrays of matrices.
        """
        size = len(self.loc)
        factor: dict = {}
        pivot: list = []
        for i in range(size):
            for j in range(i):
                unscaled = self._covariance(i, j) - sum(factor[i, m] * factor[j, m] * pivot[m] for m in range(j))
                factor[i, j] = unscaled / pivot[j]
            pivot.append(self._covariance(i, i) - sum(factor[i, m] ** 2 * pivot[m] for m in range(i)))

        def whitened(vector):
            found: list = []
            for i in range(size):
                found.append(vector[i] - sum(factor[i, m] * found[m] for m in range(i)))
            return found

        residual = whitened([value[..., i, None] - self._mean(i) for i in range(size)])
        density = -0.5 * sum(r * r / p for r, p in zip(residual, pivot, strict=True))
        density = density - 0.5 * (jnp.log(math.prod(pivot)) + size * math.log(2.0 * math.pi))
        if self.half_line is None:
            return density, None, None
        along = whitened(self.half_line.direction)
        linear = sum(r * a / p for r, a, p in zip(residual, along, pivot, strict=True))
        quadratic = sum(a * a / p for a, p in zip(along, pivot, strict=True))
        return density + self.half_line.log_integral(linear, quadratic), linear, quadratic

    @validate_sample
    def log_prob(self, value):
        """Log density of detected objects."""
        value = jnp.asarray(value)
        density = logsumexp(self.log_weights + self._parts(value)[0], axis=-1)
        if self.selection is None:
            return density
        return density + self.selection.log_probability(value) - self.log_detected

    @property
    def log_detected(self):
        """Log of the probability that an object is detected, (...)."""
        if self.selection is None:
            return jnp.zeros(self.batch_shape)
        limit, width, slope = (jnp.asarray(part) for part in self.selection)
        size = range(len(self.loc))
        slopes = [slope[..., i, None] for i in size]
        mean = sum(slopes[i] * self._mean(i) for i in size)
        variance = sum(slopes[i] * slopes[j] * self._covariance(i, j) for i in size for j in size)
        along = None
        if self.half_line is not None:
            along = sum(slopes[i] * self.half_line.direction[i] for i in size)
        share = detected_share(limit[..., None] - mean, variance + width[..., None] ** 2, self.half_line, along)
        return logsumexp(self.log_weights + share, axis=-1)

    def probabilities(self, value):
        """Probability of each component given an object's observed values, (..., K)."""
        joint = self.log_weights + self._parts(jnp.asarray(value))[0]
        return jnp.exp(joint - logsumexp(joint, axis=-1, keepdims=True))

    def sample(self, key, sample_shape=()):
        """Draw observed values of detected objects, ``(*sample_shape, ..., n)``."""
        shape = sample_shape + self.batch_shape
        noise_tril = _cholesky(jnp.asarray(self.noise_covariance))
        selection = self.selection
        if selection is None:
            return self._draw(key, shape, noise_tril)

        def missing(state):
            _, tries, _, found = state
            return (tries < MAX_TRIES) & ~jnp.all(found)

        def again(state):
            key, tries, value, found = state
            key, key_draw, key_chance = random.split(key, 3)
            drawn = self._draw(key_draw, shape, noise_tril)
            new = ~found & (random.uniform(key_chance, shape) < selection.probability(drawn))
            return key, tries + 1, jnp.where(new[..., None], drawn, value), found | new

        nothing = jnp.full(shape + self.event_shape, jnp.nan)
        return lax.while_loop(missing, again, (key, 0, nothing, jnp.zeros(shape, bool)))[2]

    def _draw(self, key, shape, noise_tril):
        keys = random.split(key, 4)
        which = random.categorical(keys[0], jnp.broadcast_to(self.log_weights, self._all), shape=shape)
        loc, scale, half_line = self._of(which)
        if half_line is not None:
            loc = loc + half_line.direction * half_line.sample(keys[1], shape)[..., None]
        standard = random.normal(keys[2], (2, *shape, *self.event_shape))
        return self.offset + loc + _times(scale, standard[0]) + _times(noise_tril, standard[1])

    def _of(self, which):
        """Mean, scale and half line of one component of each object."""
        if which.shape != self.batch_shape:  # several draws of each object
            return jax.vmap(self._of)(which)

        def pick(array):
            return jnp.take_along_axis(jnp.broadcast_to(array, self._all), which[..., None], axis=-1)[..., 0]

        loc = jnp.stack([pick(entry) for entry in self.loc], axis=-1)
        rows = [jnp.stack([pick(entry) for entry in row], axis=-1) for row in self.scale_tril]
        half_line = self.half_line
        if half_line is not None:
            direction = jnp.stack([pick(entry) for entry in half_line.direction], axis=-1)
            precision = None if half_line.precision is None else pick(half_line.precision)
            half_line = HalfLine(direction, pick(half_line.rate), precision)
        return loc, jnp.stack(rows, axis=-2), half_line

    def conditional_sample(self, key, value):
        """Draw the true values given observed ones: component (...) and true values (..., n).

        Whether an object is detected says nothing beyond its observed values.
        """
        keys = random.split(key, 3)
        value = jnp.asarray(value)
        density, linear, quadratic = self._parts(value)
        joint = jnp.broadcast_to(self.log_weights + density, self._all)
        which = random.categorical(keys[0], joint)
        loc, scale, half_line = self._of(which)
        if half_line is not None:
            parts = (jnp.broadcast_to(part, self._all) for part in (linear, quadratic))
            chosen = [jnp.take_along_axis(part, which[..., None], -1)[..., 0] for part in parts]
            loc = loc + half_line.direction * half_line.conditional(keys[1], *chosen)[..., None]
        gaussian = LinearGaussian(loc, scale, self.noise_covariance, offset=self.offset)
        return which, gaussian.conditional(value).sample(keys[2])


def _entries(vector):
    """Entries along the last axis as a tuple."""
    return tuple(vector) if isinstance(vector, tuple | list) else tuple(vector[..., i] for i in range(vector.shape[-1]))


def _rows(matrix):
    """Rows of a matrix as a tuple."""
    return matrix if isinstance(matrix, tuple | list) else [matrix[..., i, :] for i in range(matrix.shape[-2])]


def _times(matrix, vector):
    return jnp.einsum("...ij,...j->...i", matrix, vector)
