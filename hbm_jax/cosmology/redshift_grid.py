"""Distances to many redshifts through one table of panels, prepared once where the redshifts are data."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology import quadrature
from hbm_jax.cosmology.expansion import Cosmology, as_floating
from hbm_jax.cosmology.line_of_sight import LinesOfSight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RedshiftGrid(LinesOfSight):
    """Redshifts known as data, with everything about them that no cosmology changes worked out in advance.

    Parameters
    ----------
    z : array of any shape
        Redshift of the expansion (in the CMB frame), finite and not negative. Need not be sorted.
    z_hel : array of the shape of z, optional
        Observed redshift, used in the factor 1 + z_hel of the luminosity distance. None: z.
    num_panels : int, optional
        Panels of log(1 + z), each interpolated at 6 nodes. None: of width 0.005 at most, or 512 if z is traced.

    Raises
    ------
    ValueError
        If a concrete redshift is not finite or is negative, or if the shapes of z and z_hel differ.

    Notes
    -----
    The object is a pytree and can be an argument of a compiled function. It stores where each redshift lies among
    panels of log(1 + z); a cosmology then costs 1/E at 6 nodes a panel, and a redshift one look-up and a sum of 6
    terms. A matrix (redshifts x nodes) applied to 1/E would need 256 columns for the same accuracy; one with 16 takes
    four times as long for 1e5 redshifts, because memory has to deliver it.

    Methods have the names and meaning of the functions of `hbm_jax.cosmology`, with the cosmology as only argument, and
    agree with them to 1e-10 where E^2 > 0.01 up to the largest redshift, z <= 10
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
        # JAX rebuilds the object from its parts, which may then be anything; only a new one is worked out.
        if self.panels is not None or self.z is None:
            return
        traced = isinstance(self.z, jax.core.Tracer)
        z = as_floating(self.z) if traced else _checked_redshifts(self.z, "z")
        z_hel = z if self.z_hel is None else self.z_hel
        if not traced and not isinstance(z_hel, jax.core.Tracer) and z_hel is not z:
            z_hel = _checked_redshifts(z_hel, "z_hel", above=-1.0)
        if np.shape(z_hel) not in ((), z.shape):
            raise ValueError(f"z_hel: expected the shape of z, {z.shape}; found {np.shape(z_hel)}.")
        num_panels = self.num_panels
        if num_panels is None:
            num_panels = quadrature.TRACED_PANELS if traced else _panels_needed(np.asarray(z))
        panels = quadrature.locate(z, num_panels, jnp if traced else np)
        for name, value in [("z", z), ("z_hel", z_hel), ("num_panels", num_panels), ("panels", panels)]:
            object.__setattr__(self, name, value)

    @staticmethod
    def traced(z: jax.Array, z_hel: jax.Array | None = None) -> "RedshiftGrid":
        """Build one inside a compiled program, without looking at values: out of the domain is NaN, not an error."""
        panels = quadrature.locate(z, quadrature.TRACED_PANELS, jnp)
        return RedshiftGrid(z, z if z_hel is None else z_hel, quadrature.TRACED_PANELS, panels)

    def integral(self, power: int, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Integral of e^(power u) / E over u = log(1 + z) from 0, and whether it exists."""
        return quadrature.integral_in_panels(self.panels, self.num_panels, power, cosmology)

    def integral_to_infinity(self, cosmology: Cosmology) -> tuple[jax.Array, jax.Array]:
        """Integral of 1 / E over u = log(1 + z) to infinity, and whether it exists."""
        return quadrature.tail_in_panels(self.panels, self.num_panels, cosmology)


def _panels_needed(z: np.ndarray) -> int:
    return max(1, math.ceil(np.log1p(np.max(z, initial=0.0)) / quadrature.PANEL_WIDTH))


def _checked_redshifts(z: Any, name: str, above: float | None = None) -> np.ndarray:
    z = np.asarray(z, dtype=np.float64)
    good = np.isfinite(z) & ((z >= 0) if above is None else (z > above))
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~good)[0])
        expected = "not negative" if above is None else f"above {above:g}"
        raise ValueError(
            f"{name}{list(index) if index else ''}: expected a finite redshift {expected}; found {z[index]}."
        )
    return z
