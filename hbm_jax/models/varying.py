"""Parameters of a model expression whose values in the members of a population are normal."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from numpyro import distributions as dist

from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.spectra.model.composition import Parameter

_LN10 = math.log(10.0)
_SCALES = {
    "linear": lambda x: x,
    "negative": lambda x: -x,
    "log10": lambda x: 10.0**x,
    "logit": jax.nn.sigmoid,
}


@dataclass(frozen=True)
class Varying:
    """A parameter of a model expression whose values in the members of a population are normal, in some scale.

    Attributes
    ----------
    parameter, site : str
        Name of the parameter in the expression, and of the normal site: the parameter, its negative, log10 or logit.
    scale : str
        ``"linear"``, ``"negative"``, ``"log10"`` or ``"logit"``.
    unit : str
        Unit of the parameter.
    mean : (float, float)
        Location and scale of the normal prior of the mean of the population.
    std : float
        Scale of the half-normal prior of its standard deviation.
    start_std, min_std : float
        Standard deviation of the prior in separate fits of the members, and lower bound of the population's standard
        deviation estimated from these fits.
    """

    parameter: str
    site: str
    scale: str
    unit: str
    mean: tuple[float, float]
    std: float
    start_std: float
    min_std: float

    def value(self, x):
        """Return the parameter at values of the site."""
        return _SCALES[self.scale](x)

    @property
    def priors(self) -> dict[str, Any]:
        """Priors of mean and standard deviation of the population."""
        return {f"{self.site}_mean": dist.Normal(*self.mean), f"{self.site}_std": dist.HalfNormal(self.std)}

    @property
    def units(self) -> dict[str, str]:
        """Units of the site, its mean and its standard deviation, where they have one."""
        unit = "" if self.scale == "logit" else self.unit
        dex = "dex" if "log10_" in self.site else unit
        units = {self.site: unit, f"{self.site}_mean": unit, f"{self.site}_std": dex}
        return {name: unit for name, unit in units.items() if unit}

    def spread(self, fraction):
        """Return values spread over two standard deviations of the population's prior, for fractions from -1 to 1."""
        return self.value(self.mean[0] + 2.0 * math.hypot(self.mean[1], self.std) * fraction)


def varying_of(name: str, parameter: Parameter) -> Varying:
    """Return the population of a parameter, from its default prior.

    The logarithm of a positive parameter is normal, and the logit of one between 0 and 1. The mean of the population
    has the prior of the parameter, and its standard deviation a half-normal prior of half that width. A uniform prior
    between other limits is that of a parameter of a table model: its logarithm is normal if the limits are positive and
    their ratio is 10 or more, and the mean of the population has a normal prior with the limits at two standard
    deviations.

    Raises
    ------
    ValueError
        If the default prior is not normal, truncated normal, log-normal, or uniform.
    """
    prior: Any = distribution_from_text(parameter.prior, name)
    if isinstance(prior, dist.LogNormal):
        loc, width, scale = float(prior.loc) / _LN10, float(prior.scale) / _LN10, "log10"
    elif isinstance(prior, dist.Uniform) and (float(prior.low), float(prior.high)) == (0.0, 1.0):
        loc, width, scale = 0.0, 1.5, "logit"
    elif isinstance(prior, dist.Uniform):  # of a table model, whose grid has these limits
        low, high = float(prior.low), float(prior.high)
        scale = "log10" if low > 0.0 and high >= 10.0 * low else "linear"
        low, high = (math.log10(low), math.log10(high)) if scale == "log10" else (low, high)
        loc, width = 0.5 * (low + high), 0.25 * (high - low)
    elif isinstance(prior, dist.Normal):
        loc, width, scale = float(prior.loc), float(prior.scale), "linear"
    elif isinstance(getattr(prior, "base_dist", None), dist.Normal):  # a truncated normal distribution
        loc, width, scale = float(prior.base_dist.loc), float(prior.base_dist.scale), "linear"
    else:
        raise ValueError(
            f"{name}: expected a normal, log-normal or truncated normal default prior, or a uniform one, for a "
            f"parameter with a population; found {parameter.prior}."
        )
    site = name if scale == "linear" else f"{scale}_{name}"
    return Varying(name, site, scale, parameter.unit, (loc, width), 0.5 * width, 2.0 * width, 0.1 * width)
