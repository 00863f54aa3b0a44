"""Supernovae that scatter more than others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Axis, Law


@dataclass(frozen=True)
class Outliers(Law):
    """A fraction outlier_fraction of supernovae with an additional scatter outlier_scatter of the magnitude."""

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

    def scatter(self, p: Mapping[str, Any], axis: Axis) -> tuple[Any, Any]:
        """Return the scatter of the magnitude [mag] without and with the addition, and the log weights of both."""
        is_outlier = axis([0.0, 1.0])
        scatter = jnp.sqrt(p["sigma_int"] ** 2 + is_outlier * p["outlier_scatter"] ** 2)
        return scatter, jnp.log(jnp.where(is_outlier > 0, p["outlier_fraction"], 1.0 - p["outlier_fraction"]))
