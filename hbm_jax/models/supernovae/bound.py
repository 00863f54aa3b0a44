"""Supernovae bound to the supernova model: observed values, and arrays precomputed from the design."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from hbm_jax.constants import speed_of_light_km_s
from hbm_jax.cosmology import Cosmology, RedshiftMatrix
from hbm_jax.data import DataError, Supernovae, lensing_variance, velocity_variance
from hbm_jax.data.columns import index_of_groups
from hbm_jax.distributions.normal.offset_groups import CommonOffsets, bind_offsets
from hbm_jax.models import expansion
from hbm_jax.models.supernovae.population import OBSERVABLES
from hbm_jax.precomputation import padded_axis
from hbm_jax.validation import Remedy, reject_rows

ORDER = np.array([1, 2, 0])  # of OBSERVABLES, from the container's (m_b, x1, c)

# Equal steps of 0.31 standard deviations. The error of the sum is exp(-2 (pi s / 0.31)^2) for an integrand of a width
# of s standard deviations: 1e-9 where the redshift error changes the magnitude by 3 times its scatter.
_NODES = np.linspace(-5.0, 5.0, 33)
_MAX_ERROR = 0.25  # largest error relative to the redshift that these steps resolve
_MIN_NODE = 0.01  # times the observed redshift: nodes below have no weight


@register_dataclass
@dataclass(frozen=True, eq=False)
class BoundSupernovae:
    """N supernovae bound to a `hbm_jax.models.Supernova`.

    Attributes
    ----------
    observed : (N, 3)
        Observed (x1, c, m_b).
    noise : (N, 3, 3)
        Covariance of the errors of (x1, c, m_b): light-curve fit, lensing and velocity.
    distances : RedshiftMatrix
        Distances to the redshifts (N,), or to all quadrature nodes (N Z,).
    z_cmb : (N,)
        Redshifts at which drifting populations are evaluated.
    log_nodes : (N, Z) or None
        Log weights of the redshift nodes for a flat prior; None where redshifts have no errors.
    massive : (N,) or None
        Weight of the high-mass side of the mass step; None without a step.
    prob_ia : (N,) or None
        Probability of type Ia of each object; None where it is 1, or does not enter.
    survey : (N,) or None
        Index of the survey of each supernova; None where no parameter differs between surveys.
    offsets : CommonOffsets or None
        Change of the observed (x1, c, m_b) per unit of each calibration offset; None without offsets.
    design : Supernovae or None
        The container at the redshifts of ``distances``, for the ``distmod`` of a subclass.
    num_surveys : int
        Number of surveys; 0 where no parameter differs between them.
    in_sample : (N,) or None
        False for padding; None without any.
    """

    observed: Any
    noise: Any
    distances: RedshiftMatrix
    z_cmb: Any
    log_nodes: Any
    massive: Any
    prob_ia: Any
    survey: Any
    offsets: CommonOffsets | None
    design: Supernovae | None
    num_surveys: int = field(metadata={"static": True})
    in_sample: Any = None

    def __len__(self) -> int:
        return len(self.observed)

    def log_node_weights(self, prior: str, cosmology: Cosmology) -> jax.Array:
        """Return log weights of the redshift nodes, (N, Z), for a ``redshift_prior`` of the model."""
        if self.log_nodes is None:
            return jnp.zeros((len(self), 1))
        log_weights = self.log_nodes
        if prior == "volume":
            # A constant rate per volume is observed reduced by the time dilation 1 + z.
            volume = self.distances.differential_comoving_volume(cosmology) / (1.0 + self.distances.z)
            log_weights = log_weights + jnp.log(volume).reshape(log_weights.shape)
        return log_weights - jax.scipy.special.logsumexp(log_weights, axis=1, keepdims=True)


def padded(bound: BoundSupernovae, size: int) -> BoundSupernovae:
    """Return bound data without offsets and design, padded to a number of supernovae with copies of the last one."""
    num, distances = len(bound), bound.distances

    def of_objects(array):
        return None if array is None else padded_axis(array, size)

    def of_nodes(array):  # of all redshift nodes of each supernova
        return padded_axis(np.reshape(array, (num, -1, *np.shape(array)[1:])), size).reshape(-1, *np.shape(array)[1:])

    nodes = {name: of_nodes(getattr(distances, name)) for name in ("z", "z_hel", "matrix", "u")}
    fields = ("observed", "noise", "z_cmb", "log_nodes", "massive", "prob_ia", "survey")
    arrays = {name: of_objects(getattr(bound, name)) for name in fields}
    return replace(bound, distances=replace(distances, **nodes), in_sample=np.arange(size) < num, **arrays)


def bind(model, data: Supernovae, noise, massive, like: Sequence[BoundSupernovae] = ()) -> BoundSupernovae:
    """Return the bound data of `hbm_jax.models.Supernova`.

    Parameters
    ----------
    model : Supernova
        The options of this model are used.
    data : Supernovae
        N supernovae.
    noise : (N, 3, 3)
        Covariance of the errors of (x1, c, m_b).
    massive : (N,) or None
        Weight of the high-mass side of the mass step; None without a step.
    like : sequence of BoundSupernovae
        Other bound data with which the result is to be stacked.

    Raises
    ------
    DataError
        For redshift errors with sampled latents, and redshift errors above a quarter of the redshift. With
        ``offsets="marginal"`` also for data without offsets, and for redshifts with errors.
    """
    design, log_nodes = data, None
    uncertain = bool(np.any(data.sigma_z)) or any(other.log_nodes is not None for other in like)
    if uncertain or model.velocity == "redshift":
        if model.latents != "marginal":
            raise DataError(
                f"Supernova: latents={model.latents!r} expects redshifts without an error; found sigma_z above 0. Use "
                "latents='marginal'.",
                [Remedy("latents", "marginal")],
            )
        nodes = redshift_nodes(data, redshift_variance(model, data))
        design = replace(data, z_cmb=nodes.z_cmb.reshape(-1), z_hel=nodes.z_hel.reshape(-1))
        log_nodes = nodes.log_weights
    if model.offsets == "marginal":
        _check_offsets(data, uncertain)
    _check_observations(model, data)
    z_max = max((float(np.max(other.distances.z)) for other in like), default=None)
    surveys = list(data.survey_counts)
    return BoundSupernovae(
        observed=np.stack([getattr(data, name) for name in OBSERVABLES], axis=-1),
        noise=np.asarray(noise),
        distances=expansion.distance_matrix(model.cosmology, design, z_max),
        z_cmb=data.z_cmb,
        log_nodes=log_nodes,
        massive=None if massive is None else np.asarray(massive),
        prob_ia=_type_probabilities(model, data, like),
        survey=index_of_groups(data.survey, surveys) if model.by_survey else None,
        offsets=bind_offsets(data.sensitivity[..., ORDER], not like) if data.offset_name else None,
        design=design if model.overrides_distmod else None,
        num_surveys=len(surveys) if model.by_survey else 0,
    )


def _type_probabilities(model, data: Supernovae, like: Sequence[BoundSupernovae]) -> np.ndarray | None:
    """Return the probabilities of type Ia; None where they are 1.

    Raise DataError if some are below 1 and the model has no outliers: objects of other types are described as outliers.
    """
    uncertain = bool(np.any(data.prob_ia < 1.0))
    if uncertain and model.laws.outliers is None:
        raise DataError(
            "Supernova: outliers=False expects objects known to be of type Ia (prob_ia = 1); found "
            f"{int(np.sum(data.prob_ia < 1.0))} of {len(data)} with a lower probability. Use outliers=True, or read "
            "the table without that column.",
            [Remedy("outliers", True)],
        )
    return np.asarray(data.prob_ia) if uncertain or any(other.prob_ia is not None for other in like) else None


def _check_observations(model, data: Supernovae) -> None:
    """Raise DataError for combined observations where detection or a parameter depends on the survey."""
    repeated = int(np.sum(data.num_observations > 1))
    depends = {"selection": not model.laws.selection.gaussian, ", ".join(model.by_survey): bool(model.by_survey)}
    for option in (name for name, on in depends.items() if on and repeated):
        raise DataError(
            f"Supernova: {option}: expected one observation of each supernova, because it depends on the survey; found "
            f"{repeated} with combined observations. Read the table without combine=True, or leave that option out."
        )


def _check_offsets(data: Supernovae, uncertain: bool) -> None:
    """Raise DataError where there are no offsets to integrate out, or redshifts have errors."""
    if not data.offset_name:
        raise DataError(
            "Supernova: offsets='marginal' expects data with calibration offsets (columns d_m_b_NAME, d_x1_NAME, "
            "d_c_NAME); found none. Use offsets='sampled'.",
            [Remedy("offsets", "sampled")],
        )
    if uncertain:
        raise DataError(
            "Supernova: offsets='marginal' expects redshifts without an error; found sigma_z above 0. Use "
            "offsets='sampled'.",
            [Remedy("offsets", "sampled")],
        )


def noise_covariance(model, data: Supernovae) -> np.ndarray:
    """Return the covariance of the observed (x1, c, m_b), (N, 3, 3): light-curve fit, lensing and velocity."""
    covariance = data.covariance[:, ORDER[:, None], ORDER]
    lensing = data.variance_lensing if model.lensing is None else lensing_variance(data.z_cmb, model.lensing)
    variance = lensing + velocity_variances(model, data).magnitude
    return covariance + variance[:, None, None] * np.diag([0.0, 0.0, 1.0])


def redshift_variance(model, data: Supernovae) -> np.ndarray:
    """Return the variance of the redshift from which the distance is computed, (N,): measurement and velocity."""
    return data.sigma_z**2 + velocity_variances(model, data).redshift


class VelocityVariances(NamedTuple):
    """Variances from peculiar velocities, (N,) or 0: of the magnitude [mag^2] and of the redshift."""

    magnitude: Any
    redshift: Any


def velocity_variances(model, data: Supernovae) -> VelocityVariances:
    """Return the variances from peculiar velocities, which enter either the magnitude or the redshift.

    ``sigma_v`` of the model replaces the ``variance_velocity`` of the data.
    """
    if model.velocity == "redshift":
        sigma = float(model.sigma_v) / speed_of_light_km_s * (1.0 + data.z_cmb)
        return VelocityVariances(magnitude=0.0, redshift=sigma**2)
    if model.sigma_v is not None:
        return VelocityVariances(magnitude=velocity_variance(data.z_cmb, model.sigma_v), redshift=0.0)
    return VelocityVariances(magnitude=data.variance_velocity, redshift=0.0)


class RedshiftNodes(NamedTuple):
    """True redshifts (N, Z) in both frames and the logarithms of their weights, up to a constant."""

    z_cmb: np.ndarray
    z_hel: np.ndarray
    log_weights: np.ndarray


def redshift_nodes(data: Supernovae, variance: np.ndarray) -> RedshiftNodes:
    """Return quadrature nodes in the true redshift of each supernova, weighted by the error of the observed one.

    Parameters
    ----------
    data : Supernovae
        N supernovae.
    variance : (N,)
        Variance of the redshift, from `redshift_variance`.

    Raises
    ------
    DataError
        If an error exceeds a quarter of its redshift: the nodes then do not resolve the change of the distance.
    """
    sigma = np.sqrt(variance)
    expected = f"a redshift error, peculiar velocity included, of at most {_MAX_ERROR} z_cmb"
    reject_rows(sigma > _MAX_ERROR * data.z_cmb, sigma / data.z_cmb, "error relative to z_cmb", expected, data.name)
    z_cmb = data.z_cmb[:, None] + sigma[:, None] * _NODES
    inside = z_cmb > _MIN_NODE * data.z_cmb[:, None]
    z_cmb = np.where(inside, z_cmb, data.z_cmb[:, None])
    # A peculiar velocity changes the measured redshift in both frames, so z_hel is exact; only the distance, computed
    # from z_cmb, is uncertain. A measurement error applies to both redshifts.
    z_hel = data.z_hel[:, None] + np.where(data.sigma_z[:, None] > 0, z_cmb - data.z_cmb[:, None], 0.0)
    return RedshiftNodes(z_cmb, z_hel, np.where(inside, -0.5 * _NODES**2, -np.inf))
