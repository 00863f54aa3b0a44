"""Dependence of the magnitude on the mass of the host galaxy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from scipy.special import ndtr

from hbm_jax.data import DataError, Supernovae
from hbm_jax.data.supernovae.columns import UNMEASURED_MASS_ERROR
from hbm_jax.models.priors import Prior
from hbm_jax.models.supernovae.laws.base import Axis, Law
from hbm_jax.models.supernovae.laws.drift import NO_SHAPES, SYMBOLS_OF_SHAPES, Shapes
from hbm_jax.validation import Remedy


@dataclass(frozen=True)
class MassStep(Law):
    """Offset delta_M of the magnitudes of supernovae in massive hosts, and optionally of the slope of colour.

    Parameters
    ----------
    mass, width, error
        As ``step_mass``, ``step_width`` and ``mass_error`` of `massive_hosts`. With ``error`` the side of the step is
        marginalised over.
    slope : bool
        Whether the slope of colour differs by delta_beta.
    populations : bool
        Whether the means of stretch and colour differ by x1_host and c_host.
    shapes : Shapes
        Widths and fractions of the populations that differ too.
    evolution : bool
        Whether the step changes with redshift, delta_M (1.9 (1 - r) / (1 + 0.9 10^(0.95 z)) + r), where r =
        delta_M_ratio is the step at high redshift in units of that at z = 0 (Rigault et al. 2013, A&A 560, A66; Rubin
        et al. 2023, arXiv:2311.12098).
    """

    mass: float = 10.0
    width: float = 0.0
    error: bool = False
    slope: bool = False
    populations: bool = False
    evolution: bool = False
    shapes: Shapes = NO_SHAPES

    kind = "mass step"
    units: ClassVar[Mapping[str, str]] = {"delta_M": "mag", "c_host": "mag"}
    symbols: ClassVar[Mapping[str, str]] = {
        "delta_M": r"$\delta_M$",
        "delta_beta": r"$\delta_\beta$",
        "x1_host": r"$\delta_{x_1}$",
        "c_host": r"$\delta_c$",
        "delta_M_ratio": r"$\delta_M(\infty) / \delta_M(0)$",
    } | {f"{name}_host": rf"$r_\mathrm{{host}}({symbol})$" for name, symbol in SYMBOLS_OF_SHAPES.items()}

    @property
    def gaussian(self) -> bool:  # type: ignore[override]
        """True if the side of the step is known."""
        return not self.error

    @property
    def priors(self) -> Mapping[str, Prior]:  # type: ignore[override]
        """Default priors of the parameters that the law adds."""
        priors: dict[str, Prior] = {"delta_M": dist.Normal(0.0, 0.2)}
        priors |= {"delta_beta": dist.Normal(0.0, 1.0)} if self.slope else {}
        priors |= {"x1_host": dist.Normal(0.0, 1.0), "c_host": dist.Normal(0.0, 0.1)} if self.populations else {}
        priors |= self.shapes.priors("host", 0.5)
        return priors | ({"delta_M_ratio": dist.Uniform(0.0, 1.0)} if self.evolution else {})

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Columns of the data that the law needs."""
        return ("z_cmb",) if self.evolution else ()

    def massive(self, data: Supernovae) -> np.ndarray:
        """Return the weight of the high-mass side of the step for each host, (N,)."""
        return massive_hosts(data, self.mass, self.width, self.error)

    def relation(self, p: Mapping[str, Any], massive: Any, slopes: tuple[str, ...]) -> dict[str, Any]:
        """Return the parameters that depend on the host.

        Parameters
        ----------
        p : mapping of str to scalar or array
            Parameters by name: delta_M [mag]; if the slope of colour differs, delta_beta and the slopes; if the
            populations differ, their means and x1_host, c_host, and the ratios of `Shapes`; if the step evolves,
            delta_M_ratio and z_cmb.
        massive : array
            Weight of the high-mass side of the step, of a shape that broadcasts with the parameters.
        slopes : tuple of str
            Names of the slopes of colour that differ in massive hosts.

        Returns
        -------
        dict of str to array
            ``host_magnitude``, the offset of the magnitude [mag], and slopes, means and shapes if they differ.
        """
        step = p["delta_M"]
        if self.evolution:
            ratio = p["delta_M_ratio"]
            step = step * (1.9 * (1.0 - ratio) / (1.0 + 0.9 * 10.0 ** (0.95 * p["z_cmb"])) + ratio)
        relation = {"host_magnitude": step * massive}
        if self.populations:
            relation |= {f"{name}_mean": p[f"{name}_mean"] + p[f"{name}_host"] * massive for name in ("x1", "c")}
        relation |= self.shapes.changed(p, "host", massive)
        return relation | ({name: p[name] + p["delta_beta"] * massive for name in slopes} if self.slope else {})

    def sides(self, massive: Any, axis: Axis, rows: Axis) -> tuple[Any, Any]:
        """Return the weight of the high-mass side in each component, and the log weights of the components.

        Parameters
        ----------
        massive : (N,)
            Weight of the high-mass side for each host.
        axis, rows : callable
            Place values along the axis of this law, and arrays (N, 2) or (N, 1) along the objects and this axis.
        """
        if not self.error:
            return rows(jnp.asarray(massive)[:, None]), 0.0
        probability = jnp.stack([1.0 - massive, massive], axis=-1)
        positive = probability > 0.0
        log_probability = jnp.where(positive, jnp.log(jnp.where(positive, probability, 1.0)), -jnp.inf)
        return axis([0.0, 1.0]), rows(log_probability)


def massive_hosts(data: Supernovae, step_mass: float, step_width: float, mass_error: bool) -> np.ndarray:
    """Return the weight of the high-mass side of the step for each host, (N,): 0 or 1 for a sharp step.

    Parameters
    ----------
    data : Supernovae
        Supernovae with host masses.
    step_mass : float
        Mass at the step [log10 solar masses].
    step_width : float
        Width of the step [dex]: standard deviation of the normal distribution function that it follows. 0 is a sharp
        step.
    mass_error : bool
        Whether the weight is the probability that the host is massive, for a true mass distributed as
        N(log10_mass, sigma_log10_mass^2); 0.5 where the mass is missing, or a placeholder with an error of
        `UNMEASURED_MASS_ERROR` or more.

    Raises
    ------
    DataError
        If a mass is missing and ``mass_error`` is False, or if a mass has no error and ``mass_error`` is True.
    """
    _require_masses(data, mass_error)
    mass = data.log10_mass
    if mass_error:
        known = ~np.isnan(mass) & (data.sigma_log10_mass < UNMEASURED_MASS_ERROR)
        width = np.sqrt(np.where(known, data.sigma_log10_mass, 1.0) ** 2 + step_width**2)
        with np.errstate(divide="ignore", invalid="ignore"):  # a mass without an error
            return np.where(known, ndtr((np.where(known, mass, step_mass) - step_mass) / width), 0.5)
    return ndtr((mass - step_mass) / step_width) if step_width > 0 else (mass > step_mass) * 1.0


def _require_masses(data: Supernovae, mass_error: bool) -> None:
    """Raise an error where a host lacks the mass, or the error of the mass, that the step needs."""
    without_mass = np.isnan(data.log10_mass)
    without_error = ~without_mass & np.isnan(data.sigma_log10_mass)
    if mass_error and without_error.any():
        raise DataError(
            f"Supernova(mass_error=True) needs the error of every host mass; found none for {int(without_error.sum())} "
            f"of {len(data)}, the first being {data.name[int(without_error.argmax())]}. Give them, or use "
            "mass_error=False.",
            [Remedy("mass_error", False)],
        )
    if not mass_error and without_mass.any():
        raise DataError(
            "Supernova(mass_step=True) needs the host mass of every supernova; found none for "
            f"{int(without_mass.sum())} of {len(data)}, the first being {data.name[int(without_mass.argmax())]}. Give "
            "them, or use mass_error=True, which marginalises over both sides of the step where the mass is missing, "
            "or mass_step=False.",
            [Remedy("mass_error", True), Remedy("mass_step", False)],
        )
