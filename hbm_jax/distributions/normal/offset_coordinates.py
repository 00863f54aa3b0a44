"""Coordinates of common offsets in which their posterior is close to independent standard normal distributions.

Observed vectors y_i = m_i + J_i eta + e_i have offsets eta ~ N(0, 1) in common, and means m_i that depend on
parameters. If e_i were normal with known covariances C_i, the offsets would be normal given the parameters, with the
precision F = 1 + sum_i J_i^T C_i^-1 J_i and the mean c = F^-1 sum_i J_i^T C_i^-1 (y_i - m_i). The offsets are sampled
as

    eta = c(parameters) + F^(-1/2) xi,

with F fixed when the data are bound. For normal data the xi are then independent of each other and of the parameters.
Otherwise, with selection, tails or outliers, they are nearly so; the joint density of offsets and parameters is as
stated in any case, because the Jacobian is constant.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro import distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from hbm_jax.distributions.normal.block_arrow import FULL

FAR = 5.0  # distance from the expected vector, in standard deviations, of objects without weight: outliers


class OffsetCoordinates(NamedTuple):
    """Coordinates of J offsets of N objects; see `bind_coordinates`.

    Attributes
    ----------
    root : (J, J)
        Symmetric square root of the inverse of F.
    inverse : (J, J)
        Inverse of the root.
    fixed : (J,)
        Part of c of the observed vectors that no mean accounts for.
    response : (J, B)
        Change of c per unit of each function of the basis of the means.
    projection : (B, N, n)
        Coefficients of these functions in residuals, by generalised least squares.
    log_det : float
        Log determinant of the root.
    """

    root: Any
    inverse: Any
    fixed: Any
    response: Any
    projection: Any
    log_det: Any

    def centre(self, residual):
        """Return c (J,) for residuals y - m, (N, n)."""
        coefficients = jnp.einsum("bni,ni->b", self.projection, residual, precision=FULL)
        return self.fixed + jnp.matmul(self.response, coefficients, precision=FULL)

    def offsets(self, coordinates, residual):
        """Return the offsets (J,) at coordinates xi (J,)."""
        return self.centre(residual) + jnp.matmul(self.root, coordinates, precision=FULL)


class OffsetPrior(dist.Distribution):
    """Distribution of the coordinates xi of offsets that are N(0, 1) each.

    Parameters
    ----------
    coordinates : OffsetCoordinates
        The coordinates.
    residual : array (N, n)
        Observed vectors less their means for the parameters.
    """

    support = constraints.real_vector
    pytree_data_fields = ("coordinates", "residual")

    def __init__(self, coordinates: OffsetCoordinates, residual, *, validate_args=None):
        self.coordinates, self.residual = coordinates, residual
        super().__init__((), np.shape(coordinates.fixed), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value):
        """Return the log density of coordinates (J,): that of the offsets and the constant Jacobian."""
        offsets = self.coordinates.offsets(value, self.residual)
        return jnp.sum(dist.Normal(0.0, 1.0).log_prob(offsets)) + self.coordinates.log_det

    def sample(self, key, sample_shape=()):
        """Draw coordinates ``(*sample_shape, J)``."""
        offsets = random.normal(key, sample_shape + self.event_shape)
        inverse = jnp.asarray(self.coordinates.inverse)
        return jnp.matmul(offsets - self.coordinates.centre(self.residual), inverse, precision=FULL)


def bind_coordinates(
    sensitivity: np.ndarray, covariance: np.ndarray, observed: np.ndarray, basis: np.ndarray
) -> OffsetCoordinates:
    """Return coordinates of the offsets of N objects.

    Parameters
    ----------
    sensitivity : (N, J, n)
        Change of each component per unit of each offset.
    covariance : (N, n, n)
        Approximate covariances of the observed vectors for known offsets, positive definite.
    observed : (N, n)
        Observed vectors.
    basis : (N, n, B)
        Functions whose linear combinations describe how the means depend on the parameters.
    """
    num, size = observed.shape
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    design = (whitening @ np.moveaxis(np.asarray(sensitivity, float), 1, 2)).reshape(num * size, -1)
    functions = (whitening @ basis).reshape(num * size, -1)
    target = np.einsum("nij,nj->ni", whitening, observed).ravel()
    weight = _weights(functions, target, size)
    design, functions, target = design * weight[:, None], functions * weight[:, None], target * weight
    precision = np.eye(design.shape[1]) + design.T @ design
    values, vectors = np.linalg.eigh(precision)
    root = (vectors / np.sqrt(values)) @ vectors.T
    gain = np.linalg.solve(precision, design.T)
    projection = np.linalg.pinv(functions)
    rest = target - functions @ (projection @ target)
    # The projection is applied to residuals that are not whitened.
    rows = (projection * weight).reshape(-1, num, size)
    projection = np.einsum("bni,nij->bnj", rows, whitening)
    return OffsetCoordinates(
        root, (vectors * np.sqrt(values)) @ vectors.T, gain @ rest, gain @ functions, projection,
        float(-0.5 * np.sum(np.log(values))),
    )  # fmt: skip


def _weights(functions: np.ndarray, target: np.ndarray, size: int) -> np.ndarray:
    """Return 1, or 0 for the components of objects far from the fitted means, for whitened arrays (N n, ...)."""
    weight = np.ones(len(target))
    for _ in range(3):
        fitted = functions @ (np.linalg.pinv(functions * weight[:, None]) @ (target * weight))
        distance = np.sqrt(np.sum((target - fitted).reshape(-1, size) ** 2, axis=1))
        weight = np.repeat(distance < FAR, size) * 1.0
        if not weight.any():
            return np.ones(len(target))
    return weight
