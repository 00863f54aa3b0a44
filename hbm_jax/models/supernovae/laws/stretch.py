"""Populations of stretch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Axis, Latent, Law, Population, skewed


class StretchLaw(Law):
    """Population of the true stretch x1; its effect on the magnitude is -alpha x1. A subclass defines `population`."""

    kind = "population of stretch"
    registry: ClassVar[dict[str, type]] = {}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the population for values of the parameters, which broadcast against the axes of the mixture."""
        raise NotImplementedError


@dataclass(frozen=True)
class NormalStretch(StretchLaw):
    """Normal population."""

    name = "normal"
    gaussian = True
    widths = ("x1_std",)

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the normal population."""
        return Population(p["x1_mean"], p["x1_std"], -p["alpha"])


@dataclass(frozen=True)
class SkewedStretch(StretchLaw):
    """Skew-normal population of mean x1_mean, standard deviation x1_std and shape x1_skew."""

    name = "skewed"
    widths = ("x1_std",)
    symbols: ClassVar[Mapping[str, str]] = {"x1_skew": r"$\alpha_{x_1}$"}
    priors: ClassVar[Mapping[str, Prior]] = {"x1_skew": dist.Normal(0.0, 4.0)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the Gaussian part, with a half-normal latent."""
        loc, scale, slope = skewed(p["x1_mean"], p["x1_std"], p["x1_skew"])
        return Population(loc, scale, -p["alpha"], latent=Latent(slope, -p["alpha"] * slope, 0.0, 1.0))


@dataclass(frozen=True)
class StretchTail(StretchLaw):
    """Normal population plus an exponential tail to low stretch, of mean x1_tail.

    x1_mean and x1_std are those of the normal part (Rubin et al. 2023, arXiv:2311.12098).
    """

    name = "tail"
    widths = ("x1_std", "x1_tail")
    symbols: ClassVar[Mapping[str, str]] = {"x1_tail": r"$\tau_{x_1}$"}
    priors: ClassVar[Mapping[str, Prior]] = {"x1_tail": dist.HalfNormal(1.0)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the normal part, with an exponential latent."""
        latent = Latent(-1.0, p["alpha"], 1.0 / p["x1_tail"])
        return Population(p["x1_mean"], p["x1_std"], -p["alpha"], latent=latent)


@dataclass(frozen=True)
class TwoStretches(StretchLaw):
    """Two normal populations; a fraction x1_fraction_low has a mean lower by x1_shift and the width x1_std_low."""

    name = "two"
    fractions = ("x1_fraction_low",)
    symbols: ClassVar[Mapping[str, str]] = {
        "x1_shift": r"$\Delta x_1$",
        "x1_std_low": r"$\sigma_{x_1,\mathrm{low}}$",
        "x1_fraction_low": r"$f_\mathrm{low}$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {
        "x1_shift": dist.HalfNormal(2.0),
        "x1_std_low": dist.HalfNormal(2.0),
        "x1_fraction_low": dist.Uniform(0.0, 1.0),
    }

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the mixture of both populations."""
        low = axis([0.0, 1.0])
        loc = p["x1_mean"] - low * p["x1_shift"]
        scale = jnp.where(low > 0, p["x1_std_low"], p["x1_std"])
        log_weight = jnp.log(jnp.where(low > 0, p["x1_fraction_low"], 1.0 - p["x1_fraction_low"]))
        return Population(loc, scale, -p["alpha"], log_weight)
