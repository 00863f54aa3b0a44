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
from hbm_jax.distributions.linear_gaussian import LinearGaussian, _cholesky, _solve_lower
from hbm_jax.distributions.selection import ProbitSelection

MAX_TRIES = 20_000  # of a draw that has to be detected


class ObservedMixture(dist.Distribution):
    """Mixture of Gaussian populations observed with errors, exactly normalised over what is detected.

    Parameters
    ----------
    log_weights : array (..., K)
        Of the components, whose exponentials add up to 1.
    loc : array (..., K, n)
        Mean of the true values.
    scale_tril : array (..., K, n, n)
        Lower-triangular factor of their covariance; zeros on the diagonal are allowed.
    noise_covariance : array (..., n, n)
        Of the errors, positive definite.
    offset : array (..., n), optional
        Added to the true values by the measurement.
    half_line : HalfLine, optional
        A positive latent of each component, direction (..., K, n), rate and precision (..., K).
    selection : ProbitSelection, optional
        In the observed values; the density is that of detected objects.

    Notes
    -----
    Values are (..., n). Draws of a selection are made by rejection, so that they use nothing of the normalisation; an
    object not detected in `MAX_TRIES` tries is NaN.

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

    arg_constraints = {"log_weights": constraints.real_vector}  # noqa: RUF012 - NumPyro's own convention
    support = constraints.real_vector
    pytree_data_fields = (
        "log_weights", "loc", "scale_tril", "noise_covariance", "offset", "half_line", "selection",
    )  # fmt: skip

    def __init__(
        self, log_weights, loc, scale_tril, noise_covariance, *, offset=None, half_line: HalfLine | None = None,
        selection: ProbitSelection | None = None, validate_args=None,
    ):  # fmt: skip
        size = np.shape(loc)[-1]
        self.offset = np.zeros(size) if offset is None else offset
        self.log_weights, self.loc, self.scale_tril = log_weights, loc, scale_tril
        self.noise_covariance, self.half_line, self.selection = noise_covariance, half_line, selection
        components = [np.shape(log_weights), np.shape(loc)[:-1], np.shape(scale_tril)[:-2]]
        if half_line is not None:
            components += [np.shape(half_line.direction)[:-1], np.shape(half_line.rate)]
        shared = [np.shape(noise_covariance)[:-2], np.shape(self.offset)[:-1]]
        batch = lax.broadcast_shapes(lax.broadcast_shapes(*components)[:-1], *shared)
        super().__init__(batch, (size,), validate_args=validate_args)

    @property
    def _all(self):
        """Number of components, and their batch shape."""
        return (*self.batch_shape, lax.broadcast_shapes(np.shape(self.log_weights), np.shape(self.loc)[:-1])[-1])

    @property
    def _covariance(self):
        scale = self.scale_tril
        return _product(scale) + jnp.asarray(self.noise_covariance)[..., None, :, :]

    @property
    def _mean(self):
        return self.loc + jnp.asarray(self.offset)[..., None, :]

    def _parts(self, value):
        """Log density of each component without its weight (..., K), and of its half line what is linear, quadratic."""
        tril = _cholesky(self._covariance)
        residual = value[..., None, :] - self._mean
        size = self.event_shape[0]
        if self.half_line is None:
            whitened = _solve_lower(tril, residual[..., None])[..., 0]
            linear = quadratic = None
        else:
            direction = jnp.broadcast_to(self.half_line.direction, residual.shape)
            both = _solve_lower(tril, jnp.stack([residual, direction], axis=-1))
            whitened, along = both[..., 0], both[..., 1]
            linear, quadratic = jnp.sum(whitened * along, -1), jnp.sum(along * along, -1)
        log_det = jnp.log(math.prod(tril[..., i, i] for i in range(size)))
        density = -0.5 * jnp.sum(whitened * whitened, -1) - log_det - 0.5 * size * math.log(2.0 * math.pi)
        if self.half_line is not None:
            density = density + self.half_line.log_integral(linear, quadratic)
        return density, linear, quadratic

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
        each = ProbitSelection(limit[..., None], width[..., None], slope[..., None, :])
        share = each.log_share(self._mean, self._covariance, self.half_line)
        return logsumexp(self.log_weights + share, axis=-1)

    def probabilities(self, value):
        """Probability of each component given an object's observed values, (..., K)."""
        joint = self.log_weights + self._parts(jnp.asarray(value))[0]
        return jnp.exp(joint - logsumexp(joint, axis=-1, keepdims=True))

    def sample(self, key, sample_shape=()):
        """Draw observed values of detected objects, (*sample_shape, ..., n)."""
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

        def pick(array, rank):
            array = jnp.asarray(array)
            own = array.shape[array.ndim - rank :]
            array = jnp.broadcast_to(array, (*self._all, *own))
            index = jnp.broadcast_to(which, which.shape)[(..., None) + (None,) * rank]
            return jnp.take_along_axis(array, index, axis=array.ndim - rank - 1).squeeze(-1 - rank)

        if which.shape != self.batch_shape:  # several draws of each object
            return jax.vmap(self._of)(which)
        half_line = self.half_line
        if half_line is not None:
            precision = None if half_line.precision is None else pick(half_line.precision, 0)
            half_line = HalfLine(pick(half_line.direction, 1), pick(half_line.rate, 0), precision)
        return pick(self.loc, 1), pick(self.scale_tril, 2), half_line

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
            chosen = [jnp.take_along_axis(part, which[..., None], -1)[..., 0] for part in (linear, quadratic)]
            loc = loc + half_line.direction * half_line.conditional(keys[1], *chosen)[..., None]
        gaussian = LinearGaussian(loc, scale, self.noise_covariance, offset=self.offset)
        return which, gaussian.conditional(value).sample(keys[2])


def _product(scale):
    """Scale times its transpose, written out in components: see `hbm_jax.distributions.linear_gaussian`."""
    scale = jnp.asarray(scale)
    size = scale.shape[-1]
    rows = [
        [sum(scale[..., i, k] * scale[..., j, k] for k in range(min(i, j) + 1)) for j in range(size)]
        for i in range(size)
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _times(matrix, vector):
    return jnp.einsum("...ij,...j->...i", matrix, vector)
