"""What measurements of the microwave background and of baryon acoustic oscillations are often compressed to.

The shift parameter R, the acoustic scale l_A and distances in units of the sound horizon r_d, of any `Cosmology`. The
conventions are those of Komatsu et al. 2009 (ApJS 180, 330, section 5.4): published distance priors go with them, and
with others are off by several of their errors.
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

# So much that matter and radiation are equal at z = 2.5e4 Om0 h^2 (T / 2.7 K)^-4, as the conventions have it. With it
# the priors of Planck 2018 alone give Om0 = 0.316, H0 = 67.5 in flat LCDM, near the 0.317 and 67.3 of the full
# likelihood; with 3.046 species H0 would be 67.7.
STANDARD_RADIATION = Radiation(Tcmb0=2.7255, Neff=2.9923)
_NODES = 64  # of the sound horizon: 1e-12 against adaptive quadrature


def decoupling_redshift(omega_m: Any, omega_b: Any) -> jax.Array:
    """Redshift of photon decoupling (Hu & Sugiyama 1996, ApJ 471, 542, equation E-1), from Om0 h^2 and Ob0 h^2."""
    g1 = 0.0783 * omega_b**-0.238 / (1.0 + 39.5 * omega_b**0.763)
    g2 = 0.560 / (1.0 + 21.1 * omega_b**1.81)
    return 1048.0 * (1.0 + 0.00124 * omega_b**-0.738) * (1.0 + g1 * omega_m**g2)


def sound_horizon(z: Any, cosmology: Cosmology, omega_b: Any) -> jax.Array:
    """Comoving sound horizon at a high redshift [Mpc].

    Parameters
    ----------
    z : scalar
        Redshift, some hundreds or more.
    cosmology : Cosmology
        With radiation.
    omega_b : scalar
        Baryon density Ob0 h^2.

    Returns
    -------
    scalar
        (c / H0) int_0^a da / (a^2 E sqrt(3 (1 + R_b a))), R_b = 31500 Ob0 h^2 (T / 2.7 K)^-4.

    Examples
    --------
    >>> sound_horizon(1090.0, Cosmology.flat(67.4, 0.315, radiation=STANDARD_RADIATION), 0.0224)  # doctest: +SKIP
    """
    if cosmology.radiation is None:
        raise ValueError("sound_horizon: expected a cosmology with radiation; found one without.")
    x, weights = np.polynomial.legendre.leggauss(_NODES)
    x, weights = 0.5 * (x + 1.0), 0.5 * weights
    a = x**2 / (1.0 + z)  # smooth in the root of the scale factor
    loading = 31500.0 * omega_b * (cosmology.radiation.Tcmb0 / 2.7) ** -4
    # In an early universe E^2 > 0, unless there is next to nothing in it: no big bang then, which the distance tells.
    inverse_e, _ = guarded_inverse_e(-jnp.log(a), cosmology)
    integrand = inverse_e / (a**2 * jnp.sqrt(3.0 * (1.0 + loading * a)))
    return cosmology.hubble_distance * jnp.sum(weights * 2.0 * x / (1.0 + z) * integrand)


def drag_horizon(omega_m: Any, omega_b: Any, Neff: Any = 3.046) -> Any:
    """Sound horizon at the drag epoch [Mpc], by the fit of Brieden, Gil-Marin & Verde 2023 (JCAP 04, 023)."""
    return 147.05 * (omega_m / 0.1432) ** -0.23 * (Neff / 3.04) ** -0.1 * (omega_b / 0.02236) ** -0.13


def compressed(quantities: Sequence[str], z: np.ndarray, cosmology: Cosmology, omega_b: Any, r_d: Any) -> jax.Array:
    """Predict compressed quantities.

    Parameters
    ----------
    quantities : sequence of str
        Names among ``R, l_A, DM_over_rd, DH_over_rd, DV_over_rd, H0, Om0, omega_m, omega_b, r_d``.
    z : (N,)
        Redshift of each; only those of distances over r_d matter.
    cosmology : Cosmology
        With radiation where R or l_A are asked for.
    omega_b, r_d : scalar or None
        Baryon density Ob0 h^2, and the sound horizon at the drag epoch [Mpc]; None where nothing needs them.

    Returns
    -------
    array (N,)
        NaN where there is no such universe.
    """
    omega_m = cosmology.Om0 * (cosmology.H0 / 100.0) ** 2
    known = {"H0": cosmology.H0, "Om0": cosmology.Om0, "omega_m": omega_m, "omega_b": omega_b, "r_d": r_d}
    exists = jnp.asarray(True)
    if set(quantities) & set(CMB):
        z_star = decoupling_redshift(omega_m, omega_b)
        distance, exists = _guarded(transverse_comoving_distance(z_star, cosmology))
        known["R"] = jnp.sqrt(cosmology.Om0) * distance / cosmology.hubble_distance
        known["l_A"] = np.pi * distance / sound_horizon(z_star, cosmology, omega_b)
    if set(quantities) & set(BAO):
        at = np.where(z > 0, z, 1.0)
        lines = RedshiftMatrix(at, breaks=breaks_of(cosmology))
        across, there = _guarded(lines.transverse_comoving_distance(cosmology))
        inverse_e, positive = guarded_inverse_e(jnp.log1p(at), cosmology)
        along = cosmology.hubble_distance * inverse_e
        exists = exists & jnp.all(there & positive)
        known["DM_over_rd"], known["DH_over_rd"] = across / r_d, along / r_d
        known["DV_over_rd"] = jnp.cbrt(at * across**2 * along) / r_d
    found = [jnp.broadcast_to(known[name], np.shape(z))[place] for place, name in enumerate(quantities)]
    return jnp.where(exists, jnp.stack(found), np.nan)


def _guarded(distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return distances, 1 where there are none, and whether there are: a NaN would spoil even a masked gradient."""
    exists = jnp.isfinite(distance)
    return jnp.where(exists, distance, 1.0), exists
