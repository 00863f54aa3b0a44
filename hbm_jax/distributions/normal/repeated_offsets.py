"""Several measured vectors of one object with common offsets integrated out.

The differences between the measurements of one object depend on the offsets eta ~ N(0, 1) alone: with D the
sensitivities less those of the weighted mean, their density is proportional to exp(q . eta - eta . Q eta / 2), with
Q = sum D^T C^-1 D and q = sum D^T C^-1 y. It turns the prior of the offsets into N(V q, V), V = (1 + Q)^-1. The means
of the measurements then have the density of `OffsetGaussian` in the offsets V^(-1/2) (eta - V q), which are N(0, 1).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.common_offsets import OffsetGaussian
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.normal.offset_groups import CommonOffsets, bind_offsets
from hbm_jax.distributions.normal.repeated_observations import Repeats


class RepeatedOffsets(NamedTuple):
    """Sensitivities of the means of measurements, and the information of their differences; see `bind_repeated`.

    Attributes
    ----------
    offsets : CommonOffsets
        Sensitivities of the means (S, n) to the offsets V^(-1/2) (eta - V q).
    members : (R,)
        Measurements of objects that have several.
    score : (R, n, J)
        Their contributions to q per unit of the measured vector.
    root : (J, J)
        Symmetric square root of V.
    log_det : float
        Log determinant of the root.
    """

    offsets: CommonOffsets
    members: Any
    score: Any
    root: Any
    log_det: Any


def bind_repeated(sensitivity: np.ndarray, repeats: Repeats, grouped: bool = True) -> RepeatedOffsets:
    """Return the offsets of repeated measurements in a form for fast evaluation.

    Parameters
    ----------
    sensitivity : (N, J, n)
        Change of each measurement per unit of each offset.
    repeats : Repeats
        Structure of the measurements.
    grouped : bool
        As for `bind_offsets`.
    """
    index = repeats.object_index
    mean = np.zeros((len(repeats.first), *sensitivity.shape[1:]))
    np.add.at(mean, index, np.einsum("nij,naj->nai", repeats.weight, sensitivity))
    members = np.flatnonzero(np.isin(index, repeats.several))
    difference = sensitivity[members] - mean[index[members]]
    score = np.einsum("raj,rji->ria", difference, repeats.precision[members])
    information = np.einsum("ria,rbi->ab", score, difference)
    # Offsets on which no difference depends are left as they are, so that their sensitivities stay sparse.
    touched = np.flatnonzero(np.abs(information).max(axis=1) > 0.0)
    root = np.eye(len(information))
    values, vectors = np.linalg.eigh(information[np.ix_(touched, touched)])
    values = 1.0 / np.sqrt(1.0 + np.maximum(values, 0.0))
    root[np.ix_(touched, touched)] = (vectors * values) @ vectors.T
    transformed = np.einsum("sai,ab->sbi", mean, root)
    return RepeatedOffsets(bind_offsets(transformed, grouped), members, score, root, float(np.sum(np.log(values))))


class RepeatedOffsetGaussian(dist.Distribution):
    """Normal distribution of the N measured vectors of S objects with common offsets integrated out.

    Parameters
    ----------
    objects : LinearGaussian
        Distribution of the means of the measurements without offsets, batch shape (S,).
    repeats : Repeats
        Structure of the measurements.
    offsets : RepeatedOffsets
        Sensitivities to the offsets.

    Notes
    -----
    Values are (N, n), one event.
    """

    support = constraints.independent(constraints.real, 2)
    pytree_data_fields = ("objects", "repeats", "offsets")

    def __init__(self, objects: LinearGaussian, repeats: Repeats, offsets: RepeatedOffsets, *, validate_args=None):
        self.objects, self.repeats, self.offsets = objects, repeats, offsets
        event = (np.shape(repeats.object_index)[0], *objects.event_shape)
        super().__init__((), event, validate_args=validate_args)

    def _parts(self, value):
        """Return the distribution of the means, the means, the means less their expected shift, and V^(1/2) q."""
        mean = self.repeats.mean(value)
        q = jnp.einsum("ri,ria->a", value[self.offsets.members], self.offsets.score)
        expected = jnp.asarray(self.offsets.root) @ q
        shifted = mean - self.offsets.offsets.shift(expected, len(self.repeats.first))
        return OffsetGaussian(self.objects, self.offsets.offsets), mean, shifted, expected

    @validate_sample
    def log_prob(self, value):
        """Return the log density of all measurements."""
        distribution, mean, shifted, expected = self._parts(value)
        differences = jnp.sum(self.repeats.log_density_of_differences(value, mean))
        differences = differences + 0.5 * jnp.sum(expected**2) + self.offsets.log_det
        return distribution.log_prob(shifted) + differences

    def conditional_offsets(self, key, value):
        """Draw the J offsets from their exact conditional distribution given the measurements, (J,)."""
        distribution, _, shifted, expected = self._parts(value)
        return jnp.asarray(self.offsets.root) @ (expected + distribution.conditional_offsets(key, shifted))
