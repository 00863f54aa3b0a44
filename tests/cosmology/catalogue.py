"""Universes and redshifts that several tests share, and independent integrals to compare with."""

import jax
import mpmath
import numpy as np

from hbm_jax import cosmology as hc

# (Om0, Ode0, w0, wa); the loitering ones have E^2 down to 0.013 below z = 10.
UNIVERSES = {
    "concordance": (0.3, 0.7, -1.0, 0.0),
    "open": (0.3, 0.2, -1.0, 0.0),
    "closed": (0.5, 0.9, -1.0, 0.0),
    "matter": (1.0, 0.0, -1.0, 0.0),
    "quintessence": (0.3, 0.7, -0.8, 0.0),
    "phantom": (0.25, 0.8, -1.6, 0.0),
    "cpl": (0.3, 0.7, -0.9, 0.4),
    "corner early dark energy": (0.05, 1.2, -0.3, 1.0),
    "corner phantom": (1.0, 1.2, -2.0, -1.0),
    "corner low": (0.05, 0.0, -2.0, 1.0),
    "corner heavy": (1.0, 1.2, -0.3, 1.0),
    "loitering a": (0.05, 1.1, -1.508, -0.5),
    "loitering b": (0.08, 1.2, -1.412, 0.3),
}
REDSHIFTS = np.array([1e-6, 0.001, 0.01, 0.1, 0.5, 1.0, 1.7, 2.3, 4.0, 7.0, 9.0, 10.0])
FUNCTIONS = (
    "comoving_distance",
    "transverse_comoving_distance",
    "luminosity_distance",
    "angular_diameter_distance",
    "distmod",
    "lookback_time",
    "age",
    "differential_comoving_volume",
    "efunc",
)

# One compiled program for all universes: cosmologies are arguments.
JITTED = {name: jax.jit(getattr(hc, name)) for name in FUNCTIONS}


def build(universe, H0=70.0):
    om, ode, w0, wa = universe
    return hc.Cosmology(H0=H0, Om0=om, Ode0=ode, w0=w0, wa=wa)


def e_squared(z, universe):
    """E^2 written in z, with NumPy or mpmath numbers."""
    om, ode, w0, wa = universe
    x = 1 + z
    exponential = mpmath.exp if isinstance(z, mpmath.mpf) else np.exp
    return om * x**3 + (1 - om - ode) * x**2 + ode * x ** (3 * (1 + w0 + wa)) * exponential(-3 * wa * z / x)


def mpmath_integral(z_max, universe, power):
    """Integral of (1 + z)^(power - 1) / E from 0 to z_max with 30 digits, split so that loitering is resolved."""
    with mpmath.workdps(30):
        numbers = tuple(mpmath.mpf(float(v)) for v in universe)
        edges = [mpmath.mpf(0), *[mpmath.mpf(z_max) * k / 12 for k in range(1, 13)]]
        return float(
            mpmath.quad(
                lambda z: (1 + z) ** (power - 1) / mpmath.sqrt(e_squared(mpmath.mpf(z), numbers)), edges, maxdegree=8
            )
        )


def draw_universes(num, z_max, lowest, highest, seed):
    """Random universes of the documented domain whose smallest E^2 up to z_max is in [lowest, highest]."""
    rng = np.random.default_rng(seed)
    size = 200_000
    om = 0.05 + 0.95 * rng.uniform(size=size) ** 3
    ode = 1.2 * (1 - rng.uniform(size=size) ** 2)
    w0, wa = rng.uniform(-2, -0.3, size), rng.uniform(-1, 1, size)
    z = np.expm1(np.linspace(0, np.log1p(z_max), 150))[:, None]
    smallest = e_squared(z, (om, ode, w0, wa)).min(axis=0)
    chosen = np.flatnonzero((smallest > lowest) & (smallest < highest))[:num]
    assert len(chosen) == num
    return tuple(v[chosen] for v in (om, ode, w0, wa))
