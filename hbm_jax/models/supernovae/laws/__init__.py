"""Laws of the supernova model: choices with parameters of their own, each one class in one file."""

from hbm_jax.models.supernovae.laws.base import Latent, Law, Population
from hbm_jax.models.supernovae.laws.colour import BrokenColour, ColourLaw, ColourTail, Dust, NormalColour, SkewedColour
from hbm_jax.models.supernovae.laws.drift import Drift, Shapes
from hbm_jax.models.supernovae.laws.host import MassStep
from hbm_jax.models.supernovae.laws.outliers import Outliers
from hbm_jax.models.supernovae.laws.redshifts import FlatRedshifts, GammaRedshifts, RedshiftLaw, VolumeRedshifts
from hbm_jax.models.supernovae.laws.scatter import CorrelatedScatter, MagnitudeScatter, ScatterLaw, SharedScatter
from hbm_jax.models.supernovae.laws.selection import (
    BandLimits,
    ColourCut,
    CommonLimit,
    DetectedBy,
    MeasuredLimit,
    NoSelection,
    SelectionLaw,
    SurveyLimits,
    WithColourCut,
)
from hbm_jax.models.supernovae.laws.stretch import NormalStretch, SkewedStretch, StretchLaw, StretchTail, TwoStretches

__all__ = [
    "BandLimits",
    "BrokenColour",
    "ColourCut",
    "ColourLaw",
    "ColourTail",
    "CommonLimit",
    "CorrelatedScatter",
    "DetectedBy",
    "Drift",
    "Dust",
    "FlatRedshifts",
    "GammaRedshifts",
    "Latent",
    "Law",
    "MagnitudeScatter",
    "MassStep",
    "MeasuredLimit",
    "NoSelection",
    "NormalColour",
    "NormalStretch",
    "Outliers",
    "Population",
    "RedshiftLaw",
    "ScatterLaw",
    "SelectionLaw",
    "Shapes",
    "SharedScatter",
    "SkewedColour",
    "SkewedStretch",
    "StretchLaw",
    "StretchTail",
    "SurveyLimits",
    "TwoStretches",
    "VolumeRedshifts",
    "WithColourCut",
]
