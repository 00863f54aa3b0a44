"""NumPyro distributions of hierarchical models.

Gaussian and linear models with their latents integrated out, mixtures with selection effects, reparametrised priors,
and priors written as text.
"""

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: F401
if TYPE_CHECKING:
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

_MODULES = {
    "CoordinatePriors": "coordinates",
    "CorrelatedNormal": "normal.correlated_normal",
    "Counts": "counts",
    "GroupedLinearRelation": "linear.grouped_relation",
    "GroupedNormal": "normal.grouped_normal",
    "HalfLine": "half_line",
    "Limits": "linear.measured_points",
    "LinearGaussian": "normal.linear_gaussian",
    "LinearRelation": "linear.linear_relation",
    "LogOrLinear": "log_or_linear",
    "MeasuredPoints": "linear.measured_points",
    "ObservedMixture": "observed_mixture",
    "Offset": "normal.correlated_normal",
    "ProbitSelection": "selection",
    "Projected": "normal.correlated_normal",
    "ProjectedNormal": "normal.correlated_normal",
    "Projection": "normal.correlated_normal",
    "Quadrant": "half_line",
    "SkewNormal": "skew_normal",
    "SoftClip": "coordinates",
    "SoftHalfNormal": "half_normal",
    "Whitening": "normal.correlated_normal",
    "compressed": "normal.correlated_normal",
    "distribution_from_text": "notation",
    "distribution_to_text": "notation",
    "projected": "normal.correlated_normal",
    "whiten": "normal.correlated_normal",
}

__all__ = [*_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"hbm_jax.distributions.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'hbm_jax.distributions' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
