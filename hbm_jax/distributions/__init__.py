"""NumPyro distributions of hierarchical models.

Gaussian and linear models with their latents integrated out, mixtures with selection effects, reparametrised priors,
and priors written as text.
"""

from hbm_jax.distributions.coordinates import CoordinatePriors, SoftClip
from hbm_jax.distributions.counts import Counts
from hbm_jax.distributions.half_line import HalfLine, Quadrant
from hbm_jax.distributions.half_normal import SoftHalfNormal
from hbm_jax.distributions.linear.grouped_relation import GroupedLinearRelation
from hbm_jax.distributions.linear.linear_relation import LinearRelation
from hbm_jax.distributions.linear.measured_points import Limits, MeasuredPoints
from hbm_jax.distributions.log_or_linear import LogOrLinear
from hbm_jax.distributions.normal.correlated_normal import (
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
from hbm_jax.distributions.normal.grouped_normal import GroupedNormal
from hbm_jax.distributions.normal.linear_gaussian import LinearGaussian
from hbm_jax.distributions.notation import distribution_from_text, distribution_to_text
from hbm_jax.distributions.observed_mixture import ObservedMixture
from hbm_jax.distributions.selection import ProbitSelection
from hbm_jax.distributions.skew_normal import SkewNormal

__all__ = [
    "CoordinatePriors",
    "CorrelatedNormal",
    "Counts",
    "GroupedLinearRelation",
    "GroupedNormal",
    "HalfLine",
    "Limits",
    "LinearGaussian",
    "LinearRelation",
    "LogOrLinear",
    "MeasuredPoints",
    "ObservedMixture",
    "Offset",
    "ProbitSelection",
    "Projected",
    "ProjectedNormal",
    "Projection",
    "Quadrant",
    "SkewNormal",
    "SoftClip",
    "SoftHalfNormal",
    "Whitening",
    "compressed",
    "distribution_from_text",
    "distribution_to_text",
    "projected",
    "whiten",
]
