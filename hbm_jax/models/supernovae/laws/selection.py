"""Detection of supernovae as a function of their observed magnitude and colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro import distributions as dist

from hbm_jax.distributions import ProbitSelection
from hbm_jax.models.priors import Prior
from hbm_jax.models.selection import Selection
from hbm_jax.models.supernovae.laws.base import Law


class SelectionLaw(Law):
    """Detection probability as a function of the observed (x1, c, m_b). A subclass defines `detection`."""

    kind = "selection"
    registry: ClassVar[dict[str, type]] = {}

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection | None:
        """Return the detection probability for values of the parameters, numbers or (N,); None if all are detected."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoSelection(SelectionLaw):
    """Every supernova is in the sample."""

    name = "none"
    gaussian = True

    def detection(self, p: Mapping[str, Any]) -> None:
        """Return None."""
        return


@dataclass(frozen=True)
class CommonLimit(SelectionLaw):
    """Detection probability Phi((m_lim + m_lim_colour c - m_b) / m_lim_width), the same for all surveys."""

    name = "common"
    limit: ClassVar[Selection] = Selection("m", "above", dist.Normal(24.0, 2.0), dist.LogNormal(-1.2, 0.5), unit="mag")
    units = limit.units
    symbols: ClassVar[Mapping[str, str]] = limit.symbols | {"m_lim_colour": r"$\kappa_\mathrm{lim}$"}
    priors: ClassVar[Mapping[str, Prior]] = limit.priors | {"m_lim_colour": 0.0}

    def detection(self, p: Mapping[str, Any]) -> ProbitSelection:
        """Return the detection probability."""
        slope = jnp.stack([jnp.zeros(()), -jnp.asarray(p["m_lim_colour"]) * 1.0, jnp.ones(())])
        return self.limit.detection({name: jnp.asarray(p[name]) for name in self.limit.names}, slope)


@dataclass(frozen=True)
class SurveyLimits(CommonLimit):
    """Detection probability as `CommonLimit`, with m_lim and m_lim_width for each survey."""

    name = "survey"
    by_survey = ("m_lim", "m_lim_width")
