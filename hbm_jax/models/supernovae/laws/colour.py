"""Populations of colour, and the effect of colour on the magnitude."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Axis, Latent, Law, Population, skewed


class ColourLaw(Law):
    """Population of the true colour c, and its effect on the magnitude.

    A subclass defines `population`, and `standardisation` unless it is ``beta c``.

    Attributes
    ----------
    slopes : tuple of str
        Slopes of the magnitude that differ by delta_beta in massive hosts.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Uncorrected(ColourLaw):  # colour="uncorrected" of a model chooses it
    ...     name = "uncorrected"
    ...
    ...     def population(self, p, axis):
    ...         return Population(p["c_mean"], p["c_std"], 0.0)
    """

    kind = "population of colour"
    registry: ClassVar[dict[str, type]] = {}
    slopes: ClassVar[tuple[str, ...]] = ("beta",)

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the population for values of the parameters, which broadcast against the axes of the mixture."""
        raise NotImplementedError

    def standardisation(self, p: Mapping[str, Any], c: np.ndarray) -> tuple[Any, Any]:
        """Return slope [mag] and intercept [mag] of the magnitude as a function of the observed colour c, (N,)."""
        return p["beta"], 0.0


@dataclass(frozen=True)
class NormalColour(ColourLaw):
    """Normal colours with slope beta."""

    name = "normal"
    gaussian = True
    widths = ("c_std",)

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the normal population."""
        return Population(p["c_mean"], p["c_std"], p["beta"])


@dataclass(frozen=True)
class SkewedColour(ColourLaw):
    """Skew-normal colours of mean c_mean, standard deviation c_std and shape c_skew, with slope beta."""

    name = "skewed"
    widths = ("c_std",)
    symbols: ClassVar[Mapping[str, str]] = {"c_skew": r"$\alpha_c$"}
    priors: ClassVar[Mapping[str, Prior]] = {"c_skew": dist.Normal(0.0, 4.0)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the Gaussian part, with a half-normal latent."""
        loc, scale, slope = skewed(p["c_mean"], p["c_std"], p["c_skew"])
        return Population(loc, scale, p["beta"], latent=Latent(slope, p["beta"] * slope, 0.0, 1.0))


@dataclass(frozen=True)
class ColourTail(ColourLaw):
    """Normal colours plus an exponential tail to red colours, of mean c_tail, all with slope beta.

    c_mean and c_std are those of the normal part (Rubin et al. 2023, arXiv:2311.12098).
    """

    name = "tail"
    widths = ("c_std", "c_tail")
    units: ClassVar[Mapping[str, str]] = {"c_tail": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {"c_tail": r"$\tau_c$"}
    priors: ClassVar[Mapping[str, Prior]] = {"c_tail": dist.HalfNormal(0.2)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the normal part, with an exponential latent."""
        latent = Latent(1.0, p["beta"], 1.0 / p["c_tail"])
        return Population(p["c_mean"], p["c_std"], p["beta"], latent=latent)


@dataclass(frozen=True)
class Dust(ColourLaw):
    """Normal intrinsic colours with slope beta, plus exponential reddening of mean c_dust with slope beta_dust.

    Mandel et al. 2017, ApJ 842, 93.
    """

    name = "dust"
    widths = ("c_std", "c_dust")
    slopes = ("beta_dust",)
    units: ClassVar[Mapping[str, str]] = {"c_dust": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "beta_dust": r"$\beta_\mathrm{dust}$",
        "c_dust": r"$\langle c_\mathrm{dust} \rangle$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {"beta_dust": dist.Normal(4.0, 2.0), "c_dust": dist.HalfNormal(0.2)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return the intrinsic colours, with an exponential latent."""
        reddening = Latent(1.0, p["beta_dust"], 1.0 / p["c_dust"])
        return Population(p["c_mean"], p["c_std"], p["beta"], latent=reddening)

    def standardisation(self, p: Mapping[str, Any], c: np.ndarray) -> tuple[Any, Any]:
        """Return the linear regression of magnitude on true colour."""
        # Fraction of the variance of colour that is due to dust.
        fraction = p["c_dust"] ** 2 / (p["c_dust"] ** 2 + p["c_std"] ** 2)
        slope = p["beta"] + (p["beta_dust"] - p["beta"]) * fraction
        mean = p["beta"] * p["c_mean"] + p["beta_dust"] * p["c_dust"]
        return slope, mean - slope * (p["c_mean"] + p["c_dust"])


@dataclass(frozen=True)
class BrokenColour(ColourLaw):
    """Normal colours, with slope beta for a true c below 0 and beta_red above."""

    name = "broken"
    widths = ("c_std",)
    slopes = ("beta", "beta_red")
    symbols: ClassVar[Mapping[str, str]] = {"beta_red": r"$\beta_\mathrm{red}$"}
    priors: ClassVar[Mapping[str, Prior]] = {"beta_red": dist.Normal(0.0, 5.0)}

    def population(self, p: Mapping[str, Any], axis: Axis) -> Population:
        """Return both sides of the normal distribution, as truncated normal latents.

        c = side t with t > 0: on either side of 0 the normal distribution of c is a truncated normal of t.
        """
        side = axis([-1.0, 1.0])
        beta = jnp.where(side > 0, p["beta_red"], p["beta"])
        precision = p["c_std"] ** -2
        latent = Latent(side, beta * side, -side * p["c_mean"] * precision, precision)
        return Population(0.0, 0.0, beta, log_ndtr(side * p["c_mean"] / p["c_std"]), latent)

    def standardisation(self, p: Mapping[str, Any], c: np.ndarray) -> tuple[Any, Any]:
        """Return the slope on the side of the observed colour."""
        return np.where(c > 0.0, p["beta_red"], p["beta"]), 0.0
