"""Distance moduli bound to the model of Hubble diagrams: decomposed covariance, and nodes of the moduli."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jax.tree_util import register_dataclass

from hbm_jax.cosmology import ModulusBasis, modulus_basis
from hbm_jax.data import DataError, DistanceModuli
from hbm_jax.distributions import (
    CorrelatedNormal,
    Offset,
    Projected,
    ProjectedNormal,
    Projection,
    Whitening,
    compressed,
    projected,
    whiten,
)
from hbm_jax.precomputation import padded_size
from hbm_jax.validation import Remedy


class Sample(NamedTuple):
    """Arrays for draws of a sample and for densities of single objects.

    Attributes
    ----------
    mu, fixed : (N,)
        Observed moduli, and the part of the model that does not depend on the cosmology.
    whitening : Whitening
        Whitening of the covariance.
    projection : Projection
        Projection of the basis of the moduli, with N rows.
    """

    mu: Any
    fixed: Any
    whitening: Whitening
    projection: Projection


@register_dataclass
@dataclass(frozen=True, eq=False)
class BoundModuli:
    """N distance moduli bound to a `hbm_jax.models.HubbleDiagram`.

    Attributes
    ----------
    value : (R,)
        Moduli minus the part that does not depend on the cosmology, in coordinates in which the covariance is diagonal.
    projection : Projection
        Projection of the basis of the moduli, with R rows: K + 2 for K nodes where the scatter is known, otherwise N.
    basis : ModulusBasis
        Nodes of the moduli; its matrix and fixed part are empty.
    sample : Sample or None
        None for subsets of a sample (`hbm_jax.models.HubbleDiagram.without_each_survey`), of which no moduli are drawn.
    num : int
        Number of moduli of the whole sample, N, also for a subset.
    scatter : float or None
        Intrinsic scatter that ``projection`` includes; None where it is a parameter.
    """

    value: Any
    projection: Projection
    basis: ModulusBasis
    sample: Sample | None
    num: int = field(metadata={"static": True})
    scatter: float | None = field(metadata={"static": True})

    def __len__(self) -> int:
        return self.num

    def likelihood(self, coefficients: Any, scatter: Any, offset: Offset) -> tuple[ProjectedNormal, Any]:
        """Return the distribution of the observed moduli, and their value, for the modulus at the nodes (K,)."""
        if self.sample is None:
            return ProjectedNormal(self.projection, coefficients, scatter, offset), self.value
        mu, fixed, whitening, projection = self.sample
        known = Projected(mu, self.projection, self.value)
        return CorrelatedNormal(whitening, fixed, projection, coefficients, scatter, offset, known=known), mu


def check(data: DistanceModuli, calibrated: bool, keep: np.ndarray | None = None) -> None:
    """Raise DataError for calibrators that do not agree with the option ``calibrated``."""
    calibrators = int(np.sum(data.is_calibrator if keep is None else data.is_calibrator[keep]))
    if calibrators and not calibrated:
        raise DataError(
            f"HubbleDiagram: expected calibrated=True for a sample with {calibrators} calibrators, or one read with "
            "calibrators=False; found neither.",
            [Remedy("calibrated", True), Remedy("calibrators", False)],
        )
    if calibrated and not calibrators:
        raise DataError("HubbleDiagram: calibrated=True expects calibrators in the sample; found none.")


def scatter_weights(data: DistanceModuli, surveys: tuple[str, ...]) -> np.ndarray:
    """Return 1 for objects of surveys with intrinsic scatter and 0 for others, (N,); no ``surveys`` means all.

    Raise DataError for a survey that is not in the sample.
    """
    for survey in surveys:
        if survey not in data.survey:
            raise DataError(
                f"HubbleDiagram: scatter_surveys: expected names among {', '.join(data.survey_counts)}; found "
                f"{survey!r}."
            )
    return np.array([float(survey in (surveys or data.survey)) for survey in data.survey])


def bind(
    data: DistanceModuli,
    breaks: tuple[float, ...],
    weights: np.ndarray | None,
    scatter: float | None,
    keep: np.ndarray | None = None,
    z_max: float | None = None,
) -> BoundModuli:
    """Return the bound data of `hbm_jax.models.HubbleDiagram`.

    Parameters
    ----------
    data : DistanceModuli
        N moduli.
    breaks : tuple of float
        Redshifts at which the expansion history is not smooth.
    weights : (N,), optional
        1 for objects with intrinsic scatter and 0 for the others. None: no scatter.
    scatter : float, optional
        Intrinsic scatter, if it is known.
    keep : (N,) of bool, optional
        Objects of a subset; the others become rows of zeros, so that all subsets have equal shapes.
    z_max : float, optional
        Upper end of the redshift nodes; None: the largest redshift.
    """
    basis = modulus_basis(data.z_cmb, data.z_hel, breaks=breaks, z_max=z_max)
    # Calibrators are fixed at their measured moduli.
    fixed = np.where(data.is_calibrator, data.mu_calibrator, basis.fixed)
    matrix = np.where(data.is_calibrator[:, None], 0.0, basis.matrix)
    rows = np.ones(len(data), bool) if keep is None else keep
    covariance = data.covariance if keep is None else data.covariance[np.ix_(rows, rows)]
    whitening = whiten(covariance, None if weights is None else weights[rows])
    projection = projected(whitening, matrix[rows])
    sample = None if keep is not None else Sample(data.mu, fixed, whitening, projection)
    value = whitening.transform @ (data.mu[rows] - fixed[rows])
    if not rows.all():
        projection, value = _padded(projection, value, int((~rows).sum()))
    if scatter is not None:
        projection, value = compressed(projection, value, scatter)
    basis = basis._replace(fixed=np.zeros(0), matrix=np.zeros((0, 0)))
    return BoundModuli(value, _arrays(projection), basis, sample, len(data), scatter)


def padded(bound: BoundModuli) -> BoundModuli:
    """Return bound data without a sample, with rows of zeros up to a size in steps where the scatter is a parameter."""
    num = len(bound.value)
    added = padded_size(num) - num if bound.scatter is None else 0
    projection, value = _padded(bound.projection, bound.value, added)
    return replace(bound, value=value, projection=projection, sample=None)


def _padded(projection: Projection, value: np.ndarray, num: int) -> tuple[Projection, np.ndarray]:
    """Append rows of zeros, which do not contribute to the density, to a projection and a value."""
    arrays = (projection.basis, projection.ones, projection.spread, value)
    basis, ones, spread, value = (np.pad(array, [(0, num)] + [(0, 0)] * (array.ndim - 1)) for array in arrays)
    return projection._replace(basis=basis, ones=ones, spread=spread), value


def _arrays(projection: Projection) -> Projection:
    """Return a projection whose numbers are arrays."""
    return projection._replace(log_det=np.float64(projection.log_det), num=np.float64(projection.num))


def subsets(data: DistanceModuli) -> dict[str, np.ndarray]:
    """Return masks (N,) of the whole sample, ``"all"``, and without each survey in turn, ``"without X"``.

    Raises
    ------
    DataError
        If the sample has a single survey.
    """
    if len(data.survey_counts) < 2:
        surveys = ", ".join(data.survey_counts)
        raise DataError(f"without_each_survey: expected two surveys or more; found {surveys}.")
    survey = np.array(data.survey)
    return {"all": np.ones(len(data), bool)} | {f"without {name}": survey != name for name in data.survey_counts}
