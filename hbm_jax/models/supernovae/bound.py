"""Supernovae bound to the supernova model: observed values, and arrays precomputed from the design."""

from collections.abc import Mapping, Sequence
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
from hbm_jax.data.supernovae.tables import combine_observations
from hbm_jax.distributions.normal.offset_coordinates import OffsetCoordinates, bind_coordinates
from hbm_jax.distributions.normal.offset_groups import CommonOffsets, bind_offsets
from hbm_jax.distributions.normal.repeated_observations import Repeats, bind_repeats
from hbm_jax.distributions.normal.repeated_offsets import RepeatedOffsets, bind_repeated
from hbm_jax.models import expansion
from hbm_jax.models.supernovae.laws import RedshiftLaw
from hbm_jax.models.supernovae.population import OBSERVABLES
from hbm_jax.precomputation import padded_axis
from hbm_jax.validation import Remedy, reject_rows

ORDER = np.array([1, 2, 0])  # of OBSERVABLES, from the container's (m_b, x1, c)

# Equal steps of 0.31 standard deviations. The error of the sum is exp(-2 (pi s / 0.31)^2) for an integrand of a width
# of s standard deviations: 1e-9 where the redshift error changes the magnitude by 3 times its scatter.
_STEP = 0.3125
_MAX_ERROR = 0.25  # largest error relative to the redshift that these steps resolve
_TYPICAL = {"alpha": 0.14, "beta": 3.0, "sigma_int": 0.12}  # for the coordinates of calibration offsets
_SMOOTH = 8  # degree of the polynomials in log(1 + z) there
_MIN_NODE = 0.01  # times the observed redshift: nodes below have no weight


@register_dataclass
@dataclass(frozen=True, eq=False)
class BoundSupernovae:
    """N observations of S supernovae bound to a `hbm_jax.models.Supernova`; N = S unless they are repeated.

    Attributes
    ----------
    observed : (N, 3)
        Observed (x1, c, m_b).
    noise : (S, 3, 3)
        Covariance of the errors of (x1, c, m_b): light-curve fit (of the weighted mean of repeated observations),
        lensing and velocity.
    distances : RedshiftMatrix
        Distances to the redshifts (S,), or to all quadrature nodes (S Z,).
    z_cmb : (S,)
        Redshifts at which drifting populations are evaluated.
    log_nodes : (S, Z) or None
        Log weights of the redshift nodes for a flat prior, which add up to about 1; None for exact redshifts.
    massive : (S,) or None
        Weight of the high-mass side of the mass step; None without a step.
    prob_ia : (S,) or None
        Probability of type Ia of each object; None where it is 1, or does not enter.
    mu_calibrator : (S,) or None
        Modulus of the hosts of calibrators [mag], NaN of others; None without calibrators.
    survey : (N,) or None
        Index of the survey of each supernova; None where no parameter differs between surveys.
    offsets : CommonOffsets or None
        Change of the observed (x1, c, m_b) per unit of each calibration offset; None without offsets.
    design : Supernovae or None
        The container at the redshifts of ``distances``, for the ``distmod`` of a subclass.
    columns : dict of str to (N,)
        Further columns of the data that laws need, by name.
    num_surveys : int
        Number of surveys; 0 where no parameter differs between them.
    in_sample : (N,) or None
        False for padding; None without any.
    repeats : Repeats or None
        Structure of repeated observations; None where each row is another supernova.
    repeated_offsets : RepeatedOffsets or None
        Calibration offsets of repeated observations that are integrated out.
    coordinates : OffsetCoordinates or None
        Coordinates in which calibration offsets are sampled; None where they are not.
    """

    observed: Any
    noise: Any
    distances: RedshiftMatrix
    z_cmb: Any
    log_nodes: Any
    massive: Any
    prob_ia: Any
    mu_calibrator: Any
    survey: Any
    offsets: CommonOffsets | None
    design: Supernovae | None
    columns: dict[str, Any]
    num_surveys: int = field(metadata={"static": True})
    in_sample: Any = None
    repeats: Repeats | None = None
    repeated_offsets: RepeatedOffsets | None = None
    coordinates: OffsetCoordinates | None = None

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def num_objects(self) -> int:
        """Number of supernovae, S."""
        return len(self.noise)

    def with_calibrators(self, modulus):
        """Return the moduli (S,), or (S Z,) at all redshift nodes, with those of calibrators replaced by their own."""
        if self.mu_calibrator is None:
            return modulus
        known = jnp.asarray(self.mu_calibrator)[:, None]
        return jnp.where(jnp.isnan(known), modulus.reshape(len(known), -1), known).reshape(modulus.shape)

    def rows(self, values):
        """Return values (S, ...) of the supernovae for each observation, (N, ...)."""
        return values if self.repeats is None else values[self.repeats.object_index]

    def log_node_weights(self, law: RedshiftLaw, parameters: Mapping[str, Any], cosmology: Cosmology) -> jax.Array:
        """Return log weights of the redshift nodes, (N, Z), for a distribution of true redshifts."""
        if self.log_nodes is None:
            return jnp.zeros((self.num_objects, 1))
        shape = np.shape(self.log_nodes)

        def volume():
            return self.distances.differential_comoving_volume(cosmology).reshape(shape)

        return law.log_weights(parameters, self.log_nodes, self.distances.z.reshape(shape), volume)


def padded(bound: BoundSupernovae, size: int) -> BoundSupernovae:
    """Return bound data without offsets and design, padded to a number of supernovae with copies of the last one."""
    num, distances = len(bound), bound.distances

    def of_objects(array):
        return None if array is None else padded_axis(array, size)

    def of_nodes(array):  # of all redshift nodes of each supernova
        return padded_axis(np.reshape(array, (num, -1, *np.shape(array)[1:])), size).reshape(-1, *np.shape(array)[1:])

    nodes = {name: of_nodes(getattr(distances, name)) for name in ("z", "z_hel", "matrix", "u")}
    fields = ("observed", "noise", "z_cmb", "log_nodes", "massive", "prob_ia", "mu_calibrator", "survey")
    arrays = {name: of_objects(getattr(bound, name)) for name in fields}
    arrays["columns"] = {name: of_objects(array) for name, array in bound.columns.items()}
    return replace(bound, distances=replace(distances, **nodes), in_sample=np.arange(size) < num, **arrays)


def objects_of(model, data: Supernovae) -> tuple[Supernovae, Repeats | None]:
    """Return the supernovae of a sample of observations, and the structure of the observations.

    With ``observations="joint"`` rows of the same name are one supernova, with the weighted mean of its observations.
    The structure is None where no name is repeated, or each row counts as another supernova.
    """
    if model.observations != "joint" or len(set(data.name)) == len(data):
        return data, None
    if model.latents != "marginal":
        raise DataError(
            f"Supernova: observations='joint' expects latents='marginal'; found latents={model.latents!r}.",
            [Remedy("latents", "marginal")],
        )
    index_of = {name: index for index, name in enumerate(dict.fromkeys(data.name))}
    repeats = bind_repeats(np.array([index_of[name] for name in data.name]), data.covariance[:, ORDER[:, None], ORDER])
    alone: dict[str, Any] = {
        "sensitivity": np.zeros((len(data), 0, 3)),
        "offset_name": (),
        "band_limit": np.full(len(data), np.nan),
    }
    return combine_observations(replace(data, **alone)), repeats


def bind(
    model, data: Supernovae, objects: Supernovae, repeats: Repeats | None, noise, massive,
    like: Sequence[BoundSupernovae] = (),
) -> BoundSupernovae:  # fmt: skip
    """Return the bound data of `hbm_jax.models.Supernova`.

    Parameters
    ----------
    model : Supernova
        The options of this model are used.
    data : Supernovae
        N observations.
    objects, repeats : Supernovae, Repeats or None
        The S supernovae, and the structure of their observations; see `objects_of`.
    noise : (S, 3, 3)
        Covariance of the errors of (x1, c, m_b).
    massive : (S,) or None
        Weight of the high-mass side of the mass step; None without a step.
    like : sequence of BoundSupernovae
        Other bound data with which the result is to be stacked.

    Raises
    ------
    DataError
        For redshift errors with sampled latents, and redshift errors above a quarter of the redshift. With
        ``offsets="marginal"`` also for data without offsets, and for redshifts with errors.
    """
    design, log_nodes = objects, None
    uncertain = bool(np.any(data.sigma_z)) or any(other.log_nodes is not None for other in like)
    if uncertain or model.velocity == "redshift":
        if model.latents != "marginal":
            raise DataError(
                f"Supernova: latents={model.latents!r} expects redshifts without an error; found sigma_z above 0. Use "
                "latents='marginal'.",
                [Remedy("latents", "marginal")],
            )
        nodes = redshift_nodes(objects, redshift_variance(model, objects), model.laws.redshifts.reach)
        design = replace(objects, z_cmb=nodes.z_cmb.reshape(-1), z_hel=nodes.z_hel.reshape(-1))
        log_nodes = nodes.log_weights
    if model.offsets == "marginal":
        _check_offsets(data, uncertain)
    _check_observations(model, data, repeats)
    sensitivity = data.sensitivity[..., ORDER]
    marginal_offsets = model.offsets == "marginal"
    z_max = max((float(np.max(other.distances.z)) for other in like), default=None)
    surveys = list(data.survey_counts)
    return BoundSupernovae(
        observed=np.stack([getattr(data, name) for name in OBSERVABLES], axis=-1),
        noise=np.asarray(noise),
        distances=expansion.distance_matrix(model.cosmology, design, z_max),
        z_cmb=objects.z_cmb,
        log_nodes=log_nodes,
        massive=None if massive is None else np.asarray(massive),
        prob_ia=_type_probabilities(model, objects, like),
        mu_calibrator=_calibrators(model, objects),
        survey=index_of_groups(data.survey, surveys) if model.by_survey else None,
        offsets=bind_offsets(sensitivity, not like) if data.offset_name else None,
        design=design if model.overrides_distmod else None,
        columns=_columns(model, data, objects),
        num_surveys=len(surveys) if model.by_survey else 0,
        repeats=repeats,
        repeated_offsets=bind_repeated(sensitivity, repeats, not like) if repeats and marginal_offsets else None,
        coordinates=None if marginal_offsets else _offset_coordinates(model, data),
    )


def _offset_coordinates(model, data: Supernovae) -> OffsetCoordinates | None:
    """Return the coordinates in which calibration offsets are sampled; None without offsets, or with latents.

    Expected vectors are combinations of smooth functions of redshift and of the side of the mass step. The covariances
    have typical slopes, the scatter of the data in x1 and c, and an intrinsic scatter: values far from the truth make
    sampling less efficient, and leave the posterior unchanged.
    """
    if not data.offset_name or model.latents != "marginal":
        return None
    noise = noise_covariance(model, data)
    x1_std, c_std = (np.std(getattr(data, name)) for name in ("x1", "c"))
    slope = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-_TYPICAL["alpha"], _TYPICAL["beta"], 1.0]])
    scale = slope * np.array([x1_std, c_std, _TYPICAL["sigma_int"]])
    modulus_error = (5.0 / np.log(10.0) / data.z_cmb) ** 2 * redshift_variance(model, data)
    covariance = noise + scale @ scale.T + modulus_error[:, None, None] * np.diag([0.0, 0.0, 1.0])
    u = np.log1p(data.z_cmb)
    smooth = np.polynomial.chebyshev.chebvander(2.0 * u / u.max() - 1.0, _SMOOTH)
    host = np.zeros((len(data), 0)) if model.laws.host is None else model.massive(data)[:, None]
    parts = [np.column_stack([smooth[:, :2], host])] * 2 + [np.column_stack([smooth, host])]
    basis = np.zeros((len(data), 3, sum(part.shape[1] for part in parts)))
    first = 0
    for component, part in enumerate(parts):
        basis[:, component, first : first + part.shape[1]] = part
        first += part.shape[1]
    observed = np.stack([getattr(data, name) for name in OBSERVABLES], axis=-1)
    return bind_coordinates(data.sensitivity[..., ORDER], covariance, observed, basis)


def _columns(model, data: Supernovae, objects: Supernovae) -> dict[str, np.ndarray]:
    """Return the columns that the laws need: of the observations for the selection, else of the supernovae."""
    selection = model.laws.selection
    laws = [(law, data if law is selection else objects) for law in model.laws.used]
    return {name: array for law, sample in laws for name, array in law.columns_of(sample).items()}


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


def _calibrators(model, data: Supernovae) -> np.ndarray | None:
    """Return the moduli of calibrators; DataError for calibrators without ``calibrated=True`` or the reverse."""
    if model.calibrated != bool(data.is_calibrator.any()):
        raise DataError(
            f"Supernova: calibrated={model.calibrated} expects {'' if model.calibrated else 'no '}calibrators in the "
            f"sample (mu_calibrator); found {int(data.is_calibrator.sum())}.",
            [Remedy("calibrated", not model.calibrated)],
        )
    return np.asarray(data.mu_calibrator) if model.calibrated else None


def _check_observations(model, data: Supernovae, repeats: Repeats | None) -> None:
    """Raise DataError for combined observations where detection or a parameter depends on the survey."""
    others = [name for name in model.by_survey if name not in model.laws.selection.by_survey]
    if repeats is not None and others:
        raise DataError(
            f"Supernova: observations='joint': expected no parameter of the supernovae that depends on the survey; "
            f"found {', '.join(others)} and {len(repeats.several)} supernovae with several observations."
        )
    repeated = int(np.sum(data.num_observations > 1))
    depends = {"selection": not model.laws.selection.gaussian, ", ".join(model.by_survey): bool(model.by_survey)}
    for option in (name for name, on in depends.items() if on and repeated):
        raise DataError(
            f"Supernova: {option}: expected one observation of each supernova, because it depends on the survey; found "
            f"{repeated} with combined observations. Read the table without combine=True and use "
            "observations='joint', or leave that option out."
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
    """Return the covariance of the observed (x1, c, m_b), (N, 3, 3): light-curve fit, lensing, velocity, calibrator."""
    covariance = data.covariance[:, ORDER[:, None], ORDER]
    lensing = data.variance_lensing if model.lensing is None else lensing_variance(data.z_cmb, model.lensing)
    variance = lensing + velocity_variances(model, data).magnitude
    variance = variance + np.where(data.is_calibrator, data.sigma_mu_calibrator, 0.0) ** 2
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

    ``sigma_v`` of the model replaces the ``variance_velocity`` of the data. The distance of a calibrator does not
    depend on its redshift.
    """
    moving = ~data.is_calibrator
    if model.velocity == "redshift":
        sigma = float(model.sigma_v) / speed_of_light_km_s * (1.0 + data.z_cmb)
        return VelocityVariances(magnitude=0.0, redshift=moving * sigma**2)
    if model.sigma_v is not None:
        return VelocityVariances(magnitude=moving * velocity_variance(data.z_cmb, model.sigma_v), redshift=0.0)
    return VelocityVariances(magnitude=moving * data.variance_velocity, redshift=0.0)


class RedshiftNodes(NamedTuple):
    """True redshifts (N, Z) in both frames, and the log of the error's density at them times the step, normalised."""

    z_cmb: np.ndarray
    z_hel: np.ndarray
    log_weights: np.ndarray


def redshift_nodes(data: Supernovae, variance: np.ndarray, reach: float) -> RedshiftNodes:
    """Return quadrature nodes in the true redshift of each supernova, weighted by the error of the observed one.

    Parameters
    ----------
    data : Supernovae
        N supernovae.
    variance : (N,)
        Variance of the redshift, from `redshift_variance`.
    reach : float
        Largest distance of a node from the observed redshift, in standard deviations.

    Raises
    ------
    DataError
        If an error exceeds a quarter of its redshift: the nodes then do not resolve the change of the distance.
    """
    sigma = np.sqrt(variance)
    expected = f"a redshift error, peculiar velocity included, of at most {_MAX_ERROR} z_cmb"
    reject_rows(sigma > _MAX_ERROR * data.z_cmb, sigma / data.z_cmb, "error relative to z_cmb", expected, data.name)
    half = round(reach / _STEP)
    steps = _STEP * np.arange(-half, half + 1)
    z_cmb = data.z_cmb[:, None] + sigma[:, None] * steps
    inside = z_cmb > _MIN_NODE * data.z_cmb[:, None]
    z_cmb = np.where(inside, z_cmb, data.z_cmb[:, None])
    # A peculiar velocity changes the measured redshift in both frames, so z_hel is exact; only the distance, computed
    # from z_cmb, is uncertain. A measurement error applies to both redshifts.
    z_hel = data.z_hel[:, None] + np.where(data.sigma_z[:, None] > 0, z_cmb - data.z_cmb[:, None], 0.0)
    return RedshiftNodes(
        z_cmb, z_hel, np.where(inside, -0.5 * steps**2 + np.log(_STEP / np.sqrt(2.0 * np.pi)), -np.inf)
    )
