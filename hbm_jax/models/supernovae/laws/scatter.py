"""Intrinsic scatter of the magnitude, and of stretch and colour about the relation between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from numpyro import distributions as dist

from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Law

# Changes of x1 and c that change the magnitude as 1 mag does, for typical alpha and beta (Rubin et al. 2023).
ALPHA, BETA = 0.14, 3.0


class Scatter(NamedTuple):
    """Intrinsic scatter of (x1, c, m_b): standard deviation of m_b [mag], and the other elements of the covariance.

    Elements that are always 0 are None, for which less is computed; a parameter may also be fixed at 0.
    """

    m_std: Any
    x1_x1: Any = None
    c_x1: Any = None
    c_c: Any = None
    m_x1: Any = None
    m_c: Any = None


class ScatterLaw(Law):
    """Intrinsic scatter of (x1, c, m_b), beside that of the populations. A subclass defines `scatter`."""

    kind = "intrinsic scatter"
    registry: ClassVar[dict[str, type]] = {}
    gaussian = True

    def scatter(self, p: Mapping[str, Any]) -> Scatter:
        """Return the scatter for values of the parameters."""
        raise NotImplementedError


@dataclass(frozen=True)
class MagnitudeScatter(ScatterLaw):
    """Scatter sigma_int of the magnitude alone."""

    name = "magnitude"

    def scatter(self, p: Mapping[str, Any]) -> Scatter:
        """Return the scatter of the magnitude."""
        return Scatter(p["sigma_int"])


@dataclass(frozen=True)
class SharedScatter(ScatterLaw):
    """Scatter shared between m_b, x1 and c, without correlations (Rubin et al. 2023, arXiv:2311.12098).

    With fractions f that add up to 1 the variances are f_m sigma_int^2 in m_b, f_x1 (sigma_int / 0.14)^2 in x1 and
    f_c (sigma_int / 3)^2 in c. scatter_m is f_m, and scatter_x1 the share f_x1 / (f_x1 + f_c) of x1 in the rest. Their
    default priors make the fractions uniform, as a flat Dirichlet distribution.
    """

    name = "shared"
    symbols: ClassVar[Mapping[str, str]] = {"scatter_m": r"$f_m$", "scatter_x1": r"$f_{x_1} / (f_{x_1} + f_c)$"}

    @property
    def priors(self) -> Mapping[str, Prior]:  # type: ignore[override]
        """Default priors of the parameters that the law adds."""
        return {"scatter_m": dist.Beta(1.0, 2.0), "scatter_x1": dist.Uniform(0.0, 1.0)}

    def scatter(self, p: Mapping[str, Any]) -> Scatter:
        """Return the variances."""
        variance, rest = p["sigma_int"] ** 2, 1.0 - p["scatter_m"]
        x1 = rest * p["scatter_x1"] * variance / ALPHA**2
        c = rest * (1.0 - p["scatter_x1"]) * variance / BETA**2
        return Scatter(jnp.sqrt(p["scatter_m"]) * p["sigma_int"], x1_x1=x1, c_c=c)


@dataclass(frozen=True)
class CorrelatedScatter(ScatterLaw):
    """Scatter with a full covariance: sigma_int of m_b, sigma_x1 of x1, sigma_c of c, and three correlations.

    rho_m_x1 and rho_m_c are the correlations of m_b with x1 and c, and rho_x1_c the partial correlation of x1 and c at
    fixed m_b, so that every covariance is positive definite. The data determine sigma_x1 and sigma_c only through the
    scatter about the relation, because the widths of the populations add to them.
    """

    name = "correlated"
    units: ClassVar[Mapping[str, str]] = {"sigma_c": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "sigma_x1": r"$\sigma_{x_1}$",
        "sigma_c": r"$\sigma_c$",
        "rho_m_x1": r"$\rho_{m x_1}$",
        "rho_m_c": r"$\rho_{m c}$",
        "rho_x1_c": r"$\rho_{x_1 c \cdot m}$",
    }
    priors: ClassVar[Mapping[str, Prior]] = {
        "sigma_x1": dist.HalfNormal(0.5),
        "sigma_c": dist.HalfNormal(0.05),
        "rho_m_x1": dist.Uniform(-1.0, 1.0),
        "rho_m_c": dist.Uniform(-1.0, 1.0),
        "rho_x1_c": dist.Uniform(-1.0, 1.0),
    }

    def scatter(self, p: Mapping[str, Any]) -> Scatter:
        """Return all elements."""
        m, x1, c = p["sigma_int"], p["sigma_x1"], p["sigma_c"]
        rho_x1, rho_c = p["rho_m_x1"], p["rho_m_c"]
        rho = rho_x1 * rho_c + p["rho_x1_c"] * jnp.sqrt((1.0 - rho_x1**2) * (1.0 - rho_c**2))
        return Scatter(m, x1**2, rho * x1 * c, c**2, rho_x1 * m * x1, rho_c * m * c)


def scale_rows(scatter: Scatter, x1_std, c_std, x1_slope, c_slope) -> tuple[tuple[Any, ...], ...]:
    """Return the rows of the lower triangular factor of the covariance of the true (x1, c, m_b).

    Parameters
    ----------
    scatter : Scatter
        Intrinsic scatter.
    x1_std, c_std : array
        Widths of the populations of stretch and colour.
    x1_slope, c_slope : array
        Change of the magnitude per unit of stretch and colour [mag].
    """
    if all(entry is None for entry in scatter[1:]):
        return (x1_std, 0.0, 0.0), (0.0, c_std, 0.0), (x1_slope * x1_std, c_slope * c_std, scatter.m_std)
    uncorrelated = scatter.c_x1 is None
    scatter = Scatter(scatter.m_std, *(0.0 if entry is None else entry for entry in scatter[1:]))
    x1 = jnp.sqrt(x1_std**2 + scatter.x1_x1)
    c_variance, m_x1 = c_std**2 + scatter.c_c, (x1_slope * x1_std**2 + scatter.m_x1) / x1
    if uncorrelated:
        c = jnp.sqrt(c_variance)
        m_c = c_slope * c_std**2 / c
        # The variances at fixed x1 and c, in which nothing cancels.
        m_variance = (x1_slope * x1_std) ** 2 * scatter.x1_x1 / x1**2 + (c_slope * c_std) ** 2 * scatter.c_c / c**2
        return (x1, 0.0, 0.0), (0.0, c, 0.0), (m_x1, m_c, jnp.sqrt(scatter.m_std**2 + m_variance))
    c_x1 = scatter.c_x1 / x1
    c = jnp.sqrt(c_variance - c_x1**2)
    m_c = (c_slope * c_std**2 + scatter.m_c - c_x1 * m_x1) / c
    m_variance = scatter.m_std**2 + (x1_slope * x1_std) ** 2 + (c_slope * c_std) ** 2 - m_x1**2 - m_c**2
    return (x1, 0.0, 0.0), (c_x1, c, 0.0), (m_x1, m_c, jnp.sqrt(m_variance))
