"""Distances, times and volumes at any redshift in any cosmology.

Every function takes ``(z, cosmology)`` and returns an array of the shape of z, for example
``distmod(1.0, Cosmology.flat(H0=70.0, Om0=0.3))``. Both may be traced, and z may have any shape. z is the redshift of
the expansion (in the CMB frame). The observed (heliocentric) redshift ``z_hel`` sets the energy loss and time dilation
of photons; it is z by default.

- Domain: z >= 0, and E(z)^2 > 0 along the line of sight (from 0 to z; for `age` from z to infinity). Outside it the
  result is NaN. If the caller masks these NaN, gradients with respect to the cosmology and to other redshifts are
  finite. With more than `FEW` redshifts the line of sight is divided into panels of about 0.005 in log(1 + z), and all
  redshifts in the panel where E^2 vanishes give NaN.
- Accuracy: relative error below 1e-10 for 0 < z <= 10, Om0 in [0.05, 1], Ode0 in [0, 1.2], w0 in [-2, -0.3], wa in
  [-1, 1] wherever E^2 > 0.01 up to the largest z (``tests/cosmology/test_accuracy.py``); 1e-13 is typical. Beyond the
  antipode of a closed universe the error is relative to the largest transverse distance.
- Differentiable to second order in both arguments, in forward and reverse mode, also at z = 0 and at zero curvature.
- Batching: pass arrays. `vmap` over single redshifts repeats the whole integral for each of them.

Equations are those of Hogg 1999 (arXiv:astro-ph/9905116).
"""

import jax
from jax.typing import ArrayLike

from hbm_jax.cosmology.expansion import Cosmology, as_floating
from hbm_jax.cosmology.line_of_sight import FewLinesOfSight, LinesOfSight
from hbm_jax.cosmology.redshift_grid import RedshiftGrid

FEW = 8  # up to 8 redshifts, 320 nodes for each are fewer than the 512 x 6 nodes of the panels


def _lines_of_sight(z: ArrayLike, cosmology: Cosmology, z_hel: ArrayLike | None = None) -> LinesOfSight:
    """Return the lines of sight with the faster quadrature for this number of redshifts."""
    z = as_floating(z, cosmology)
    if z_hel is not None:
        z_hel = as_floating(z_hel, cosmology)
    return FewLinesOfSight(z, z_hel) if z.size <= FEW else RedshiftGrid.traced(z, z_hel)


def comoving_distance(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the line-of-sight comoving distance [Mpc], D_C = (c / H0) int_0^z dz' / E(z') (Hogg 1999, equation 15).

    It is 0 at z = 0, with derivative c / H0.
    """
    return _lines_of_sight(z, cosmology).comoving_distance(cosmology)


def transverse_comoving_distance(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the transverse comoving distance D_M [Mpc], comoving size over angle (Hogg 1999, equation 16).

    It is D_C S(Ok0 (H0 D_C / c)^2) with S(k) = sinh(sqrt k) / sqrt k, which is sin(sqrt -k) / sqrt(-k) for k < 0. S is
    evaluated as one entire function, so derivatives of all orders are correct at zero curvature too
    (``tests/cosmology/test_derivatives.py``). Negative beyond the antipode of a closed universe.
    """
    return _lines_of_sight(z, cosmology).transverse_comoving_distance(cosmology)


def luminosity_distance(z: ArrayLike, cosmology: Cosmology, *, z_hel: ArrayLike | None = None) -> jax.Array:
    """Return the luminosity distance [Mpc], D_L = (1 + z_hel) D_M(z) (Hogg 1999, equation 21); 0 at z = 0."""
    return _lines_of_sight(z, cosmology, z_hel).luminosity_distance(cosmology)


def angular_diameter_distance(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the angular diameter distance [Mpc], D_A = D_M / (1 + z) (Hogg 1999, equation 18); 0 at z = 0."""
    return _lines_of_sight(z, cosmology).angular_diameter_distance(cosmology)


def distmod(z: ArrayLike, cosmology: Cosmology, *, z_hel: ArrayLike | None = None) -> jax.Array:
    """Return the distance modulus [mag], mu = 5 log10(D_L / 10 pc) (Hogg 1999, equation 25).

    It is -inf at z = 0, and NaN beyond the antipode of a closed universe, where D_L is negative.
    """
    return _lines_of_sight(z, cosmology, z_hel).distmod(cosmology)


def lookback_time(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the lookback time [Gyr of 365.25 days], (1 / H0) int_0^z dz' / ((1 + z') E(z')) (equation 30)."""
    return _lines_of_sight(z, cosmology).lookback_time(cosmology)


def age(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the age of the universe at a redshift [Gyr of 365.25 days], (1 / H0) int_z^inf dz' / ((1 + z') E(z')).

    E must grow at least as fast as 1 + z at high redshift, as it does with matter, radiation or open curvature; the
    integral is truncated at 1 + z = e^45. NaN where E^2 is not positive at some higher redshift (no big bang).
    """
    return _lines_of_sight(z, cosmology).age(cosmology)


def differential_comoving_volume(z: ArrayLike, cosmology: Cosmology) -> jax.Array:
    """Return the comoving volume [Mpc^3 / sr] per unit redshift, (c / H0) D_M^2 / E(z) (Hogg 1999, equation 28)."""
    return _lines_of_sight(z, cosmology).differential_comoving_volume(cosmology)
