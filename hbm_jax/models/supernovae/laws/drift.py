"""Change of the populations with redshift."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Law


@dataclass(frozen=True)
class Drift(Law):
    """Means of stretch and colour that are linear in redshift: x1_mean + x1_drift z, c_mean + c_drift z."""

    kind = "drift"
    gaussian = True
    units: ClassVar[Mapping[str, str]] = {"c_drift": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "x1_drift": r"$\mathrm{d} x_1 / \mathrm{d} z$",
        "c_drift": r"$\mathrm{d} c / \mathrm{d} z$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {"x1_drift": dist.Normal(0.0, 1.0), "c_drift": dist.Normal(0.0, 0.2)}

    def means(self, p: Mapping[str, Any], z: Any) -> dict[str, Any]:
        """Return the mean stretch and colour at redshifts (N,)."""
        return {f"{name}_mean": p[f"{name}_mean"] + p[f"{name}_drift"] * z for name in ("x1", "c")}
