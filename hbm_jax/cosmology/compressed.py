"""Compressed measurements of the cosmic microwave background and of baryon acoustic oscillations.

The shift parameter R, the acoustic scale l_A and distances in units of the sound horizon r_d, for any `Cosmology`. The
conventions are those of Komatsu et al. 2009 (ApJS 180, 330, section 5.4), which published distance priors assume. With
other conventions the predictions are wrong by several times the published errors.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.cosmology.dark_energy import breaks_of
from hbm_jax.cosmology.distances import transverse_comoving_distance
from hbm_jax.cosmology.expansion import Cosmology, guarded_inverse_e
from hbm_jax.cosmology.radiation import Radiation
from hbm_jax.cosmology.redshift_matrix import RedshiftMatrix

CMB = ("R", "l_A")
BAO = ("DM_over_rd", "DH_over_rd", "DV_over_rd")
PLAIN = ("H0", "Om0", "omega_m", "omega_b", "r_d")
QUANTITIES = (*CMB, *BAO, *PLAIN)

# These conventions put matter-radiation equality at z = 2.5e4 Om0 h^2 (T / 2.7 K)^-4, which fixes Neff. The distance
# priors of Planck 2018 alone then give Om0 = 0.316, H0 = 67.5 in flat LCDM, near the 0.317 and 67.3 of the full
# likelihood; Neff = 3.046 would give H0 = 67.7.
STANDARD_RADIATION = Radiation(Tcmb0=2.7255, Neff=2.9923)
_NODES = 64  # Gauss-Legendre nodes of the sound horizon: 1e-12 against adaptive quadrature


def decoupling_redshift(omega_m: Any, omega_b: Any) -> jax.Array:
    """Return the redshift of photon decoupling (Hu & Sugiyama 1996, ApJ 471, 542, equation E-1).

    Parameters
    ----------
    omega_m, omega_b : scalar
        Physical densities of matter and baryons, Om0 h^2 and Ob0 h^2.
    """
    g1 = 0.0783 * omega_b**-0.238 / (1.0 + 39.5 * omega_b**0.763)
    g2 = 0.560 / (1.0 + 21.1 * omega_b**1.81)
    return 1048.0 * (1.0 + 0.00124 * omega_b**-0.738) * (1.0 + g1 * omega_m**g2)


def sound_horizon(z: Any, cosmology: Cosmology, omega_b: Any) -> jax.Array:
    """Return the comoving sound horizon at a high redshift [Mpc].

    Parameters
    ----------
    z : scalar
        Redshift, several hundred or more.
    cosmology : Cosmology
        A cosmology with radiation.
    omega_b : scalar
        Baryon density Ob0 h^2.

    Returns
    -------
    scalar
        (c / H0) int_0^a da / (a^2 E sqrt(3 (1 + R_b a))), R_b = 31500 Ob0 h^2 (T / 2.7 K)^-4.

    Raises
    ------
    ValueError
        If the cosmology has no radiation.

    Examples
    --------
    >>> sound_horizon(1090.0, Cosmology.flat(67.4, 0.315, radiation=STANDARD_RADIATION), 0.0224)  # doctest: +SKIP
    """
    if cosmology.radiation is None:
        raise ValueError("sound_horizon: expected a cosmology with radiation; found one without.")
    x, weights = np.polynomial.legendre.leggauss(_NODES)
    x, weights = 0.5 * (x + 1.0), 0.5 * weights
    a = x**2 / (1.0 + z)  # the integrand is smooth in sqrt(a)
    baryon_loading = 31500.0 * omega_b * (cosmology.radiation.Tcmb0 / 2.7) ** -4
    # E^2 > 0 at early times, except for densities close to zero: then there is no big bang, and the distance is NaN.
    inverse_e, _ = guarded_inverse_e(-jnp.log(a), cosmology)
    integrand = inverse_e / (a**2 * jnp.sqrt(3.0 * (1.0 + baryon_loading * a)))
    return cosmology.hubble_distance * jnp.sum(weights * 2.0 * x / (1.0 + z) * integrand)


def drag_horizon(omega_m: Any, omega_b: Any, Neff: Any = 3.046) -> Any:
    """Return the sound horizon at the drag epoch [Mpc] (fit of Brieden, Gil-Marin & Verde 2023, JCAP 04, 023)."""
    return 147.05 * (omega_m / 0.1432) ** -0.23 * (Neff / 3.04) ** -0.1 * (omega_b / 0.02236) ** -0.13


def compressed(quantities: Sequence[str], z: np.ndarray, cosmology: Cosmology, omega_b: Any, r_d: Any) -> jax.Array:
    """Predict compressed CMB and BAO quantities.

    Parameters
    ----------
    quantities : sequence of str
        Names among ``R, l_A, DM_over_rd, DH_over_rd, DV_over_rd, H0, Om0, omega_m, omega_b, r_d``.
    z : (N,)
        Redshift of each quantity; used only for the distances over r_d.
    cosmology : Cosmology
        Must have radiation if R or l_A is predicted.
    omega_b, r_d : scalar or None
        Baryon density Ob0 h^2, and sound horizon at the drag epoch [Mpc]; None if no quantity depends on them.

    Returns
    -------
    array (N,)
        All NaN if E^2 is not positive along the line of sight to one of the redshifts.

    Raises
    ------
    ValueError
        For R or l_A of a cosmology without radiation.
    """
    omega_m = cosmology.Om0 * (cosmology.H0 / 100.0) ** 2
    predictions = {"H0": cosmology.H0, "Om0": cosmology.Om0, "omega_m": omega_m, "omega_b": omega_b, "r_d": r_d}
    in_domain = jnp.asarray(True)
    if set(quantities) & set(CMB):
        z_star = decoupling_redshift(omega_m, omega_b)
        distance, in_domain = _guarded(transverse_comoving_distance(z_star, cosmology))
        predictions["R"] = jnp.sqrt(cosmology.Om0) * distance / cosmology.hubble_distance
        predictions["l_A"] = np.pi * distance / sound_horizon(z_star, cosmology, omega_b)
    if set(quantities) & set(BAO):
        redshifts = np.where(z > 0, z, 1.0)
        matrix = RedshiftMatrix(redshifts, breaks=breaks_of(cosmology))
        transverse, finite = _guarded(matrix.transverse_comoving_distance(cosmology))
        inverse_e, positive = guarded_inverse_e(jnp.log1p(redshifts), cosmology)
        radial = cosmology.hubble_distance * inverse_e
        in_domain = in_domain & jnp.all(finite & positive)
        predictions["DM_over_rd"], predictions["DH_over_rd"] = transverse / r_d, radial / r_d
        predictions["DV_over_rd"] = jnp.cbrt(redshifts * transverse**2 * radial) / r_d
    values = [jnp.broadcast_to(predictions[name], np.shape(z))[index] for index, name in enumerate(quantities)]
    return jnp.where(in_domain, jnp.stack(values), np.nan)


def _guarded(distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return distances with 1 where they are not finite, and the mask of finite ones.

    A NaN in the program would make the gradient NaN, even if the caller masks it.
    """
    in_domain = jnp.isfinite(distance)
    return jnp.where(in_domain, distance, 1.0), in_domain
