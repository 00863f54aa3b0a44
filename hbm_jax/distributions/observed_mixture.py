"""Mixture of Gaussian populations observed with measurement errors and a selection function.

An object of component k has true values x ~ N(loc_k + t direction_k, S_k S_k^T), optionally with a positive latent t,
or two, and observed values

    y = offset + x + noise,   noise ~ N(0, noise_covariance),

which are detected with the probability of a `ProbitSelection` in y. All latents are integrated out; they can be drawn
from their posterior afterwards.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.special import log_ndtr, logsumexp
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import HalfLine, Quadrant, truncated
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.small_matrices import (
    cholesky,
    elements,
    factorised,
    normal_log_density,
    with_noise,
)
from hbm_jax.distributions.selection import (
    BothSelections,
    FoundInjections,
    InjectedSelection,
    ProbitSelection,
    draw_detected,
    log_detected_fraction,
    log_detected_normal,
)

MIN_DETECTED = 1e-12  # detected fraction below which an object is not drawn


class ObservedMixture(dist.Distribution):
    """Mixture of Gaussian populations observed with errors, normalised over the detected objects.

    Parameters
    ----------
    log_weights : array (..., K)
        Log weights of the components; their exponentials add up to 1, or to the density of what was observed besides.
    loc : array (..., K, n), or a tuple of n arrays (..., K)
        Means of the true values. Tuples are faster.
    scale_tril : array (..., K, n, n), or a tuple of rows
        Lower-triangular factors S_k of their covariances; zeros on the diagonal are allowed.
    noise_covariance : array (..., n, n)
        Covariance of the measurement errors, positive definite.
    offset : array (..., n), optional
        Added to the true values by the measurement.
    half_line : HalfLine or Quadrant, optional
        Positive latent, or two, of each component: ``direction`` shaped like ``loc``, ``rate`` and ``precision``
        (..., K).
    selection : ProbitSelection, TabulatedSelection, FunctionSelection, BothSelections or InjectedSelection, optional
        Detection probability in the observed values, or injections of true values; the density is then that of detected
        objects. All but the first expect no positive latent.

    Notes
    -----
    Values are (..., n). A detected object is drawn from its distribution given that limit - slope . y plus the scatter
    of the limit is positive, so that faint objects take no longer than others; one that is detected with a probability
    below 1e-12 is NaN.

    References
    ----------
    Kelly 2007, ApJ 665, 1489, section 5.1; Rubin et al. 2015, ApJ 813, 137, appendix B; Mandel et al. 2017, ApJ 842, 93
    (the exponential colour tail).

    Examples
    --------
    >>> mixture = ObservedMixture(np.zeros(1), np.zeros((1, 2)), np.eye(2)[None], np.eye(2))
    >>> round(float(mixture.log_prob(np.zeros(2))), 4)
    -2.531
    """

    # A log weight may be minus infinity (an empty component), which ``constraints.real_vector`` excludes.
    arg_constraints = {  # noqa: RUF012 - NumPyro's own convention
        "log_weights": constraints.independent(constraints.less_than(np.inf), 1)
    }
    support = constraints.real_vector
    pytree_aux_fields = ("_components",)
    pytree_data_fields = (
        "log_weights", "loc", "scale_tril", "noise_covariance", "offset", "half_line", "selection",
    )  # fmt: skip

    def __init__(
        self, log_weights, loc, scale_tril, noise_covariance, *, offset=None,
        half_line: HalfLine | Quadrant | None = None, selection: Any = None, validate_args=None,
    ):  # fmt: skip
        self.loc, self.scale_tril = _entries(loc), tuple(_entries(row) for row in _rows(scale_tril))
        size = len(self.loc)
        self.offset = np.zeros(size) if offset is None else offset
        self.log_weights, self.noise_covariance, self.selection = log_weights, noise_covariance, selection
        if not (half_line is None or selection is None or isinstance(selection, ProbitSelection)):
            raise ValueError("ObservedMixture: expected a ProbitSelection beside a positive latent; found another one.")
        self.half_line = None if half_line is None else half_line.map(_entries, lambda scalar: scalar)
        components = [np.shape(log_weights), *map(np.shape, self.loc)]
        components += [np.shape(entry) for row in self.scale_tril for entry in row]
        for part in () if self.half_line is None else self.half_line.parts:
            components += [*map(np.shape, part.direction), np.shape(part.rate)]
        self._components = lax.broadcast_shapes(*components)
        shared = [np.shape(noise_covariance)[:-2], np.shape(self.offset)[:-1]]
        batch = lax.broadcast_shapes(self._components[:-1], *shared)
        super().__init__(batch, (size,), validate_args=validate_args)

    @property
    def _component_shape(self):
        """Batch shape and number of components."""
        return (*self.batch_shape, self._components[-1])

    @property
    def _covariance(self) -> list[list]:
        """Elements of the lower triangle of the covariance of the observed vectors, (..., K)."""
        noise = [[entry[..., None] for entry in row] for row in elements(self.noise_covariance)]
        return with_noise(noise, self.scale_tril)

    def _mean(self, i):
        """Return element i of the mean of the observed vectors without the positive latent, (..., K)."""
        return self.loc[i] + self.offset[..., i, None]

    def _component_log_density(self, value):
        """Return the log density of each component without its weight, and coefficients of its latents, (..., K) each.

        Nothing is stacked, so that XLA fuses it into one pass over objects and components: ten times faster than
        batched matrices.
        """
        residual = [value[..., i, None] - self._mean(i) for i in range(len(self.loc))]
        if self.half_line is None:
            return normal_log_density(residual, self._covariance), ()
        factorisation = factorised(self._covariance)
        whitened = factorisation.whiten(residual)
        coefficients = self.half_line.coefficients(factorisation, whitened)
        return factorisation.log_density(whitened) + self.half_line.log_integral(*coefficients), coefficients

    @validate_sample
    def log_prob(self, value):
        """Return the log density of observed values (..., n) among detected objects."""
        value = jnp.asarray(value)
        log_density = logsumexp(self.log_weights + self._component_log_density(value)[0], axis=-1)
        if self.selection is None:
            return log_density
        if isinstance(self.selection, InjectedSelection):
            return log_density - self.log_detected
        return log_density + self.selection.log_probability(value) - self.log_detected

    @property
    def log_detected(self):
        """Log probability that an object is detected, (...)."""
        if self.selection is None:
            return jnp.zeros(self.batch_shape)
        if (found := self.found) is not None:
            return found.log_normalisation
        return logsumexp(self.log_weights + self._log_detected_components(self.selection), axis=-1)

    @property
    def found(self) -> FoundInjections | None:
        """Injections that were found, weighted as the population of each object; None without injections."""
        if not isinstance(self.selection, InjectedSelection):
            return None
        covariance = with_noise(np.zeros((len(self.loc), len(self.loc))), self.scale_tril)
        shape = self._component_shape
        rows = [[jnp.broadcast_to(entry, shape) for entry in row] for row in covariance]
        return self.selection.found([jnp.broadcast_to(a, shape) for a in self.loc], rows, self.log_weights)

    def _log_detected_components(self, selection: Any):
        """Return the log probability that an object of each component is detected, (..., K)."""
        axes = range(len(self.loc))
        if not isinstance(selection, ProbitSelection):
            return log_detected_normal([selection], [self._mean(i) for i in axes], self._covariance)
        slopes = [jnp.asarray(selection.slope)[..., i, None] for i in axes]
        limit, width_variance = (jnp.asarray(part)[..., None] for part in (selection.limit, selection.variance))
        mean = sum(slopes[i] * self._mean(i) for i in axes)
        covariance = self._covariance
        variance = sum(slopes[i] * slopes[j] * covariance[max(i, j)][min(i, j)] for i in axes for j in axes)
        latent_slope = None
        if self.half_line is not None:
            latent_slope = tuple(sum(slopes[i] * part.direction[i] for i in axes) for part in self.half_line.parts)
        return log_detected_fraction(limit - mean, variance + width_variance, self.half_line, latent_slope)

    @property
    def undetected_mean(self):
        """Mean of the observed vectors of all objects, detected or not, (..., n)."""
        weight = jax.nn.softmax(self.log_weights, axis=-1)
        parts = () if self.half_line is None else self.half_line.parts
        latents = [sum(part.direction[i] * part.mean for part in parts) for i in range(len(self.loc))]
        mean = [jnp.sum(weight * (self._mean(i) + latent), axis=-1) for i, latent in enumerate(latents)]
        return jnp.stack([jnp.broadcast_to(entry, self.batch_shape) for entry in mean], axis=-1)

    def with_observation(self, *, offset=None, selection: Any = None) -> "ObservedMixture":
        """Return the mixture with another offset and selection."""
        return ObservedMixture(
            self.log_weights, self.loc, self.scale_tril, self.noise_covariance,
            offset=offset, half_line=self.half_line, selection=selection,
        )  # fmt: skip

    def probabilities(self, value):
        """Return the probability of each component given observed values (..., n), (..., K)."""
        joint = self.log_weights + self._component_log_density(jnp.asarray(value))[0]
        return jnp.exp(joint - logsumexp(joint, axis=-1, keepdims=True))

    def sample(self, key, sample_shape=()):
        """Draw observed values of detected objects, ``(*sample_shape, ..., n)``."""
        shape = sample_shape + self.batch_shape
        if not (self.selection is None or isinstance(self.selection, ProbitSelection)):
            if (found := self.found) is not None:
                key_true, key_noise = random.split(key)
                root = cholesky(jnp.asarray(self.noise_covariance))
                noise = _matvec(root, random.normal(key_noise, (*shape, *self.event_shape)))
                return self.offset + found.sample(key_true, shape) + noise
            first, second = self.selection if isinstance(self.selection, BothSelections) else (None, self.selection)
            objects = self.with_observation(offset=self.offset, selection=first)
            draw = partial(objects.sample, sample_shape=sample_shape)
            return draw_detected(key, shape, len(self.loc), draw, second.probability)
        keys = random.split(key, 5)
        log_weights, selection = self.log_weights, self.selection
        if selection is not None:
            log_weights = log_weights + self._log_detected_components(selection)
        log_weights = jnp.broadcast_to(log_weights, self._component_shape)
        loc, scale, half_line = self._selected(random.categorical(keys[0], log_weights, shape=shape))
        mean = self.offset + loc
        standard = random.normal(keys[2], (2, *shape, *self.event_shape))
        deviation = _matvec(scale, standard[0]) + _matvec(cholesky(jnp.asarray(self.noise_covariance)), standard[1])
        if selection is None:
            shift = 0.0 if half_line is None else half_line.shift(half_line.sample(keys[1], shape))
            return mean + shift + deviation
        # The margin is limit - slope . y plus the scatter of the limit: an object with a positive one is detected.
        slope = jnp.asarray(selection.slope)
        covariance = _matvec(scale, _matvec(jnp.swapaxes(scale, -1, -2), slope)) + _matvec(self.noise_covariance, slope)
        variance = jnp.sum(slope * covariance, axis=-1) + selection.variance  # of the margin
        std = jnp.sqrt(variance)
        if half_line is not None:
            mean = mean + _detected_shift(keys[1], shape, half_line, selection, mean, std)
        scatter = jnp.sqrt(selection.variance) * random.normal(keys[3], shape) - jnp.sum(slope * deviation, axis=-1)
        expected = selection.margin(mean)
        change = truncated(keys[4], expected, std, shape) - (expected + scatter)
        value = mean + deviation - covariance * (change / variance)[..., None]
        return jnp.where((self.log_detected > np.log(MIN_DETECTED))[..., None], value, jnp.nan)

    def _selected(self, component):
        """Return mean, scale and half line of the given component of each object."""
        if component.shape != self.batch_shape:  # several draws of each object
            return jax.vmap(self._selected)(component)

        def pick(array):
            array = jnp.broadcast_to(array, self._component_shape)
            return jnp.take_along_axis(array, component[..., None], axis=-1)[..., 0]

        loc = jnp.stack([pick(entry) for entry in self.loc], axis=-1)
        rows = [jnp.stack([pick(entry) for entry in row], axis=-1) for row in self.scale_tril]
        half_line = self.half_line
        if half_line is not None:
            half_line = half_line.map(lambda direction: tuple(map(pick, direction)), pick)
        return loc, jnp.stack(rows, axis=-2), half_line

    def conditional_sample(self, key, value):
        """Draw the component (...) and the true values (..., n) of each object given its observed values.

        The selection does not enter, because detection depends on the observed values alone.
        """
        keys = random.split(key, 3)
        value = jnp.asarray(value)
        log_density, coefficients = self._component_log_density(value)
        joint = jnp.broadcast_to(self.log_weights + log_density, self._component_shape)
        component = random.categorical(keys[0], joint)
        loc, scale, half_line = self._selected(component)
        if half_line is not None:
            arrays = (jnp.broadcast_to(array, self._component_shape) for array in coefficients)
            selected = [jnp.take_along_axis(array, component[..., None], -1)[..., 0] for array in arrays]
            loc = loc + half_line.shift(half_line.conditional(keys[1], *selected))
        gaussian = LinearGaussian(loc, scale, self.noise_covariance, offset=self.offset)
        return component, gaussian.conditional(value).sample(keys[2])


def _detected_shift(key, shape, half_line, selection: ProbitSelection, mean, std):
    """Draw the changes of the observed vectors of detected objects by their positive latents, shape + (n,).

    Latents are drawn from their distribution and accepted with the probability of detection. It is relative to that
    without latents where these make every object fainter, so that faint objects are soon accepted too.

    Parameters
    ----------
    key, shape
        Random key, and shape of the objects.
    half_line : HalfLine or Quadrant
        Latents of each object.
    selection : ProbitSelection
        Selection.
    mean, std : array
        Mean (..., n) of the observed vector without latents, and standard deviation (...) of the margin.
    """
    slope = jnp.asarray(selection.slope)
    changes = [jnp.sum(slope * jnp.stack(part.direction, axis=-1), axis=-1) for part in half_line.parts]
    fainter = jnp.all(jnp.stack(jnp.broadcast_arrays(*changes)) >= 0.0, axis=0)
    log_largest = jnp.where(fainter, log_ndtr(selection.margin(mean) / std), 0.0)

    def draw(key):
        return half_line.shift(half_line.sample(key, shape))

    def probability(shift):
        return jnp.exp(log_ndtr(selection.margin(mean + shift) / std) - log_largest)

    return draw_detected(key, shape, mean.shape[-1], draw, probability)


def _entries(vector):
    """Return the entries along the last axis as a tuple."""
    return tuple(vector) if isinstance(vector, tuple | list) else tuple(vector[..., i] for i in range(vector.shape[-1]))


def _rows(matrix):
    """Return the rows of a matrix as a sequence."""
    return matrix if isinstance(matrix, tuple | list) else [matrix[..., i, :] for i in range(matrix.shape[-2])]


def _matvec(matrix, vector):
    """Return the product of batched matrices and vectors."""
    return jnp.einsum("...ij,...j->...i", matrix, vector)
