"""Supernovae that scatter more than others, and objects of other types in photometric samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Axis, Law


@dataclass(frozen=True)
class Outliers(Law):
    """Objects with an additional scatter outlier_scatter of the magnitude.

    An object of probability P of type Ia is an outlier with the probability 1 - P (1 - outlier_fraction): it is not of
    type Ia, or it is, and scatters more than others. With outlier_fraction = 0 this is the likelihood of Kunz, Bassett
    & Hlozek (2007, Phys. Rev. D 75, 103508) with a normal distribution of other types about the magnitudes of type Ia.
    """

    kind = "outliers"
    units: ClassVar[Mapping[str, str]] = {"outlier_scatter": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "outlier_fraction": r"$f_\mathrm{out}$",
        "outlier_scatter": r"$\sigma_\mathrm{out}$",
    }

    @property
    def priors(self) -> Mapping[str, Prior]:  # type: ignore[override]
        """Default priors of the parameters that the law adds."""
        return {"outlier_fraction": dist.Beta(1.0, 19.0), "outlier_scatter": dist.LogNormal(0.0, 0.5)}

    def scatter(self, p: Mapping[str, Any], axis: Axis, prob_ia: Any = None) -> tuple[Any, Any]:
        """Return the scatter of the magnitude [mag] without and with the addition, and the log weights of both.

        Parameters
        ----------
        p : mapping
            Parameters.
        axis : callable
            Places values along the axis of this law.
        prob_ia : array, optional
            Probability of type Ia of each object, along the axis of the objects; None for 1.
        """
        is_outlier = axis([0.0, 1.0])
        scatter = jnp.sqrt(p["sigma_int"] ** 2 + is_outlier * p["outlier_scatter"] ** 2)
        normal = 1.0 - p["outlier_fraction"]
        if prob_ia is None:
            return scatter, jnp.log(jnp.where(is_outlier > 0, p["outlier_fraction"], normal))
        normal = prob_ia * normal
        weight = jnp.where(is_outlier > 0, 1.0 - normal, normal)
        return scatter, jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0)), -jnp.inf)
