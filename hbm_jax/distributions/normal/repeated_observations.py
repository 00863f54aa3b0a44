"""Several measured vectors of one object: one true vector, errors of each measurement, and detection in each.

Object s with true vector x_s is measured K_s times, y_k = x_s + shift_k + e_k with e_k ~ N(0, C_k). The product of the
K_s densities of the errors is that of their mean weighted by the inverse covariances, ybar ~ N(x_s, C) with
C = (sum_k C_k^-1)^-1, times a factor of the differences,

    exp(-sum_k (y_k - ybar) . C_k^-1 (y_k - ybar) / 2) (|2 pi C| / prod_k |2 pi C_k|)^(1/2),

which does not depend on the true vector. Measurements are rows (N, n) of an array. Each that is in the data passed the
selection of its survey, so that the density is divided by the probability that all K_s are detected.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.scipy.special import log_ndtr, logsumexp
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.half_line import HalfLine
from hbm_jax.distributions.observed_mixture import ObservedMixture
from hbm_jax.distributions.selection import ProbitSelection, draw_detected

_REACH, _STEP = 6.0, 0.25  # trapezoidal rule in standard deviations: 1e-8 where a transition is a quarter of one
_NUM_DIFFERENCE = 12  # Gauss-Hermite nodes in the component that changes the differences of bands
_NUM_LATENT = 24  # Gauss-Laguerre nodes in an exponential latent


class Repeats(NamedTuple):
    """Structure of N measurements of S objects, and what their errors alone decide; see `bind_repeats`.

    Attributes
    ----------
    object_index : (N,)
        Object of each measurement.
    first : (S,)
        First measurement of each object.
    several : (M,)
        Objects with more than one measurement.
    slots : (S, K)
        Measurements of each object, padded with N to the largest number.
    precision, weight, factor : (N, n, n)
        Inverse covariances of the errors, matrices whose products with the measurements add up to the mean, and
        Cholesky factors of the covariances.
    combined : (S, n, n)
        Covariances of the means.
    log_norm : (S,)
        Log of the second factor of the density of the differences.
    """

    object_index: Any
    first: Any
    several: Any
    slots: Any
    precision: Any
    weight: Any
    factor: Any
    combined: Any
    log_norm: Any

    def sums(self, values):
        """Return sums of values (N, ...) over the measurements of each object, (S, ...)."""
        return jax.ops.segment_sum(values, jnp.asarray(self.object_index), len(self.first))

    def mean(self, values):
        """Return the weighted means (S, n) of measured vectors (N, n)."""
        return self.sums(jnp.einsum("nij,nj->ni", self.weight, values))

    def log_density_of_differences(self, values, mean):
        """Return the log of the factor of the differences, (S,)."""
        residual = values - mean[self.object_index]
        return self.log_norm - 0.5 * self.sums(jnp.einsum("ni,nij,nj->n", residual, self.precision, residual))


def bind_repeats(object_index: np.ndarray, covariance: np.ndarray) -> Repeats:
    """Return the structure of measurements.

    Parameters
    ----------
    object_index : (N,)
        Object of each measurement, 0 to S - 1 in the order in which objects first appear.
    covariance : (N, n, n)
        Covariances of the errors of the measurements.
    """
    num = int(object_index.max()) + 1
    precision = np.linalg.inv(covariance)
    total = np.zeros((num, *precision.shape[1:]))
    np.add.at(total, object_index, precision)
    combined = np.linalg.inv(total)
    log_det = np.linalg.slogdet(2.0 * np.pi * covariance)[1]
    log_norm = 0.5 * (np.linalg.slogdet(2.0 * np.pi * combined)[1] - np.bincount(object_index, log_det, num))
    counts = np.bincount(object_index, minlength=num)
    several = np.flatnonzero(counts > 1)
    slots = np.full((num, counts.max()), len(object_index))
    slots[np.arange(slots.shape[1]) < counts[:, None]] = np.argsort(object_index, kind="stable")
    first = np.array([np.argmax(object_index == index) for index in range(num)])
    return Repeats(
        object_index, first, several, slots, precision, combined[object_index] @ precision,
        np.linalg.cholesky(covariance), combined, np.where(counts > 1, log_norm, 0.0),
    )  # fmt: skip


class RepeatedObservations(dist.Distribution):
    """Distribution of the N measured vectors of S objects.

    Parameters
    ----------
    objects : LinearGaussian or ObservedMixture
        Distribution of the mean of the measurements of each object without shifts and selection, batch shape (S,).
    repeats : Repeats
        Structure of the measurements.
    shift : array (N, n), optional
        Added to each measurement.
    selection : ProbitSelection, optional
        Detection probability of each measurement; expects `objects` to be an `ObservedMixture`, and three components
        whose first one has a slope of 0 and whose last one the same slope in all measurements of an object.

    Notes
    -----
    The batch shape is (N,). The density of all measurements of an object is that of its first one; the others have a
    log density of 0. The probability that several measurements are all detected is a quadrature with an error below
    1e-6 (``tests/distributions/test_repeated_observations.py``) where the width of the transition is at least a quarter
    of the scatter of the selected magnitude. Single measurements have their closed form.
    """

    support = constraints.real_vector
    pytree_data_fields = ("objects", "repeats", "shift", "selection")

    def __init__(
        self, objects: Any, repeats: Repeats, *, shift=None, selection: ProbitSelection | None = None,
        validate_args=None,
    ):  # fmt: skip
        self.objects, self.repeats, self.selection = objects, repeats, selection
        num = np.shape(repeats.object_index)[0]
        self.shift = np.zeros((num, *objects.event_shape)) if shift is None else shift
        super().__init__((num,), objects.event_shape, validate_args=validate_args)

    @validate_sample
    def log_prob(self, value):
        """Return the log density of each object, at its first measurement, (N,)."""
        value = jnp.asarray(value)
        mean = self.mean(value)
        log_density = self.objects.log_prob(mean)
        log_density = log_density + self.repeats.log_density_of_differences(value - self.shift, mean)
        if self.selection is not None:
            log_density = log_density + self.repeats.sums(self.selection.log_probability(value)) - self.log_detected
        return jnp.zeros(self.batch_shape).at[self.repeats.first].set(log_density)

    def mean(self, value):
        """Return the weighted means of the measurements of each object less their shifts, (S, n)."""
        return self.repeats.mean(jnp.asarray(value) - self.shift)

    @property
    def log_detected(self):
        """Log probability that all measurements of an object are detected, (S,)."""
        first = self.repeats.first
        single = jax.tree.map(lambda array: array[first], self._selection_of_rows)
        objects = self.objects
        alone = ObservedMixture(
            objects.log_weights, objects.loc, objects.scale_tril, objects.noise_covariance,
            offset=jnp.asarray(self.shift)[first], half_line=objects.half_line, selection=single,
        )  # fmt: skip
        if not len(self.repeats.several):
            return alone.log_detected
        return alone.log_detected.at[self.repeats.several].set(self._log_all_detected())

    @property
    def _selection_of_rows(self) -> ProbitSelection:
        """Selection with limit, width and slope of every measurement."""
        selection, (num,) = self.selection, self.batch_shape
        if selection is None or selection.width is None:
            raise ValueError("RepeatedObservations: expected a selection with a width; found none.")
        limit, width = (jnp.broadcast_to(part, (num,)) for part in (selection.limit, selection.width))
        return ProbitSelection(limit, width, jnp.broadcast_to(selection.slope, (num, *self.event_shape)))

    def _log_all_detected(self):
        """Return the log probability that all measurements are detected, of objects with several, (M,).

        The true vector varies along the mean slope of the measurements (trapezoidal rule) and, given that, in its
        second component, by which bands differ (Gauss-Hermite); positive latents shift its mean.
        """
        repeats, objects, rows = self.repeats, self.objects, self._selection_of_rows
        own_width: Any = rows.width
        index = jnp.asarray(repeats.several)
        slots, (num,) = jnp.asarray(repeats.slots)[index], self.batch_shape
        slots, present = jnp.minimum(slots, num - 1), slots < num  # (M, K)
        slope = jnp.where(present[..., None], rows.slope[slots], 0.0)
        average = jnp.sum(slope, axis=1) / jnp.sum(present, axis=1)[:, None]  # (M, n)
        difference = slope[..., 1] - average[:, None, 1]  # (M, K)
        errors = jnp.einsum("nij,nkj->nik", repeats.factor, repeats.factor)[slots]
        width = jnp.sqrt(own_width[slots] ** 2 + jnp.einsum("mki,mkij,mkj->mk", slope, errors, slope))
        margin = rows.limit[slots] - jnp.sum(slope * jnp.asarray(self.shift)[slots], axis=-1)

        def of_objects(array):  # of parameters (S or 1, C)
            array = jnp.asarray(array)
            return array[index] if array.shape[0] == len(repeats.first) else array

        loc, covariance = [of_objects(entry) for entry in objects.loc], self._true_covariance(of_objects, index)
        direction = [sum(covariance[i][j] * average[:, j, None] for j in range(3)) for i in range(3)]
        std = jnp.sqrt(sum(average[:, i, None] * direction[i] for i in range(3)))  # (M, C)
        rest = jnp.sqrt(jnp.maximum(covariance[1][1] - (direction[1] / std) ** 2, 0.0))
        u, v, log_weight = _nodes()
        moved = std[..., None] * u, direction[1][..., None] / std[..., None] * u + rest[..., None] * v
        latents, log_latent = _latent_nodes(objects.half_line, of_objects)  # (M or 1, C, T, 3)
        centre = jnp.stack(jnp.broadcast_arrays(*loc), axis=-1)[:, :, None] + latents
        at_centre = jnp.einsum("mctj,mkj->mctk", jnp.broadcast_to(centre, (len(index), *centre.shape[1:])), slope)
        spread = moved[0][..., None] + moved[1][..., None] * difference[:, None, None, :]  # (M, C, U, K)
        standardised = (margin[:, None, None, None] - at_centre[:, :, :, None] - spread[:, :, None]) / width[
            :, None, None, None
        ]
        log_probability = jnp.sum(jnp.where(present[:, None, None, None], log_ndtr(standardised), 0.0), axis=-1)
        log_probability = logsumexp(log_probability + log_weight, axis=-1)  # over the nodes of the true vector
        log_probability = logsumexp(log_probability + log_latent, axis=-1)
        return logsumexp(of_objects(objects.log_weights) + log_probability, axis=-1)

    def _true_covariance(self, of_objects, index) -> list[list]:
        """Return the covariance of the true vectors of objects with several measurements, without their errors."""
        common = jnp.asarray(self.objects.noise_covariance)[index] - jnp.asarray(self.repeats.combined)[index]
        scale = [[of_objects(entry) if np.ndim(entry) else entry for entry in row] for row in self.objects.scale_tril]
        size = len(scale)
        return [
            [sum(scale[i][k] * scale[j][k] for k in range(size)) + common[:, i, j, None] for j in range(size)]
            for i in range(size)
        ]

    def sample(self, key, sample_shape=()):
        """Draw the measurements of detected objects, ``(*sample_shape, N, n)``; NaN as for `draw_detected`."""
        if sample_shape:
            keys = random.split(key, int(np.prod(sample_shape)))
            drawn = jax.vmap(self.sample)(keys)
            return drawn.reshape(*sample_shape, *drawn.shape[1:])
        if self.selection is None:
            return self._draw(key)
        selection, repeats = self.selection, self.repeats

        # Objects are drawn again until all their measurements are detected: rows are kept in the slots of objects.
        def draw(key):
            rows = self._draw(key)
            return rows[jnp.minimum(slots, len(rows) - 1)].reshape(len(slots), -1)

        def probability(values):
            return jnp.exp(repeats.sums(selection.log_probability(self._rows_of(values))))

        slots = jnp.asarray(repeats.slots)
        return self._rows_of(
            draw_detected(key, slots.shape[:1], slots.shape[1] * self.event_shape[0], draw, probability)
        )

    def _rows_of(self, values):
        """Return measurements (N, n) from values in the slots of objects, (S, K n)."""
        slots = jnp.asarray(self.repeats.slots)
        values = values.reshape(*slots.shape, self.event_shape[0])
        return jnp.zeros((*self.batch_shape, self.event_shape[0])).at[slots].set(values, mode="drop")

    def _draw(self, key):
        """Draw measurements of all objects without selection, (N, n)."""
        keys = random.split(key)
        index = self.repeats.object_index
        error = jnp.einsum("nij,nj->ni", self.repeats.factor, random.normal(keys[1], (*self.batch_shape, 3)))
        # The means have their errors already; what remains are the differences.
        return self.objects.sample(keys[0])[index] + error - self.repeats.mean(error)[index] + self.shift


def _nodes():
    """Return nodes (U,) of two standard normal variables and the logarithms of their weights."""
    u = np.arange(-_REACH, _REACH + 0.5 * _STEP, _STEP)
    v, weight = np.polynomial.hermite_e.hermegauss(_NUM_DIFFERENCE)
    log_weight = -0.5 * u[:, None] ** 2 + np.log(weight)
    log_weight = log_weight - np.log(np.sum(np.exp(log_weight)))
    return np.repeat(u, len(v)), np.tile(v, len(u)), log_weight.ravel()


def _latent_nodes(half_line, of_objects):
    """Return shifts of the true vector (M or 1, C, T, 3) by positive latents, and log weights (M or 1, C, T)."""
    if half_line is None:
        return 0.0, jnp.zeros(1)
    shifts: Any = 0.0
    log_weights: Any = 0.0
    for number, part in enumerate(half_line.parts):
        direction, rate = [of_objects(jnp.asarray(entry)) for entry in part.direction], of_objects(part.rate)
        if part.precision is None:
            points, weights = np.polynomial.laguerre.laggauss(_NUM_LATENT)
            nodes, log_weight = points / rate[..., None], np.log(weights) + jnp.zeros_like(rate)[..., None]
        else:
            nodes, log_weight = HalfLine((), rate, of_objects(part.precision)).nodes()
        shift = jnp.stack(jnp.broadcast_arrays(*(entry[..., None] * nodes for entry in direction)), axis=-1)
        if number:
            shifts = shifts[..., :, None, :] + shift[..., None, :, :]
            log_weights = log_weights[..., :, None] + log_weight[..., None, :]
            shifts = shifts.reshape(*shifts.shape[:-3], -1, 3)
            log_weights = log_weights.reshape(*log_weights.shape[:-2], -1)
        else:
            shifts, log_weights = shift, log_weight
    return shifts, log_weights
