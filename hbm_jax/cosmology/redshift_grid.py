"""Distances to many fixed redshifts from a table of panels in log(1 + z)."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from hbm_jax.cosmology import quadrature
from hbm_jax.cosmology.expansion import Cosmology
from hbm_jax.cosmology.line_of_sight import LinesOfSight

PANEL_STEP = 16  # panels; samples that reach similar redshifts then have arrays of equal shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RedshiftGrid(LinesOfSight):
    """Fixed redshifts, prepared for computing distances in many cosmologies.

    Parameters
    ----------
    z : array of any shape
        Redshift of the expansion (in the CMB frame), finite and not negative, in any order.
    z_hel : array of the shape of z, optional
        Observed redshift, used in the factor 1 + z_hel of the luminosity distance. None: z.
    num_panels : int, optional
        Number of panels in log(1 + z), each with 6 nodes. None: panels at most 0.005 wide, in steps of 16 panels, so
        that most samples have the same number and can be stacked.

    Raises
    ------
    ValueError
        If a redshift is not finite, negative or traced, or if the shapes of z and z_hel differ.

    Notes
    -----
    The object is a pytree and can be an argument of a compiled function. It stores the position of each redshift in the
    panels. Each cosmology costs 1/E at 6 nodes per panel; each redshift costs one look-up and a sum of 6 terms. A
    matrix (redshifts x nodes) applied to 1/E would need 256 columns for the same accuracy; even 16 columns take four
    times as long for 1e5 redshifts, limited by memory bandwidth.

    Methods have the names and meaning of the functions of `hbm_jax.cosmology`, with the cosmology as the only argument.
    They agree to 1e-10 where E^2 > 0.01 up to the largest redshift, for z <= 10
    (``tests/cosmology/test_redshift_grid.py``).

    Examples
    --------
    >>> RedshiftGrid([0.1, 0.5, 1.0]).distmod(Cosmology.flat(H0=70.0, Om0=0.3))
    """

    z: Any
    z_hel: Any = None
    num_panels: Any = field(default=None, metadata={"static": True})
    panels: Any = field(default=None, repr=False)

    def __post_init__(self):
        # JAX rebuilds the object from leaves of any kind; only a new object is precomputed.
        if self.panels is not None or self.z is None:
            return
        z, z_hel = both_redshifts(self.z, self.z_hel)
        num_panels, u = self.num_panels or _panels_needed(z), np.log1p(z)
        u_max = np.max(u, initial=quadrature.SMALLEST_RANGE)
        panels = quadrature.positions(u, u_max, np.ones(z.shape, bool), num_panels)
        for name, value in {"z": z, "z_hel": z_hel, "num_panels": num_panels, "panels": panels}.items():
            object.__setattr__(self, name, value)

    @staticmethod
    def traced(z: jax.Array, z_hel: jax.Array | None = None) -> "RedshiftGrid":
        """Return a grid inside a compiled program, without validation: outside the domain results are NaN."""
        num_panels = quadrature.TRACED_PANELS
        return RedshiftGrid(z, z if z_hel is None else z_hel, num_panels, quadrature.locate(z, num_panels))

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of e^(power u) / E over u from 0 to log(1 + z), and the mask of its domain."""
        return quadrature.integral_in_panels(self.panels, self.num_panels, power, cosmology)

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Return the integral of 1 / E over u from log(1 + z) to infinity, and the mask of its domain."""
        return quadrature.tail_in_panels(self.panels, self.num_panels, cosmology)


def _panels_needed(z: np.ndarray) -> int:
    """Return the number of panels at most `PANEL_WIDTH` wide up to the largest redshift, in steps of `PANEL_STEP`."""
    return max(1, math.ceil(np.log1p(np.max(z, initial=0.0)) / (PANEL_STEP * quadrature.PANEL_WIDTH))) * PANEL_STEP


def both_redshifts(z: Any, z_hel: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return z and z_hel (by default z) as float64; raise ValueError if they are invalid or traced."""
    try:
        z = _checked(z, "z")
        z_hel = z if z_hel is None else _checked(z_hel, "z_hel", lower_bound=-1.0)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(
            "z: expected concrete redshifts; found redshifts traced by a JAX transformation. Build the object before, "
            "and pass it as an argument, or use the functions of hbm_jax.cosmology."
        ) from None
    if z_hel.shape != z.shape:
        raise ValueError(f"z_hel: expected the shape of z, {z.shape}; found {z_hel.shape}.")
    return z, z_hel


def _checked(z: Any, name: str, lower_bound: float | None = None) -> np.ndarray:
    """Return redshifts as float64; raise ValueError for one that is not finite, or negative, or not above the bound."""
    z = np.asarray(z, dtype=np.float64)
    valid = np.isfinite(z) & ((z >= 0) if lower_bound is None else (z > lower_bound))
    if not valid.all():
        index = tuple(int(i) for i in np.argwhere(~valid)[0])
        expected = "not negative" if lower_bound is None else f"above {lower_bound:g}"
        raise ValueError(
            f"{name}{list(index) if index else ''}: expected a finite redshift {expected}; found {z[index]}."
        )
    return z
