"""Universes and redshifts that several tests share, and independent integrals to compare with."""

import functools
from itertools import pairwise

import jax
import mpmath
import numpy as np

from hbm_jax import cosmology as hc
from hbm_jax.cosmology import distances

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

# Redshifts at a time, by either quadrature. All quantities of all universes of a kind are one program for each.
SIZES = {"few": 4, "many": len(REDSHIFTS)}
assert SIZES["few"] <= distances.FEW < SIZES["many"]
_quantities = jax.jit(lambda z, cosmology: {name: getattr(hc, name)(z, cosmology) for name in FUNCTIONS})
# As methods of redshifts that are data.
_methods = jax.jit(lambda lines, cosmology: {name: getattr(lines, name)(cosmology) for name in FUNCTIONS})


def quantities(z, cosmology, rule="many"):
    """All quantities by name at redshifts (n,), a few at a time or many."""
    rows = np.pad(z, (0, -len(z) % SIZES[rule]), mode="edge").reshape(-1, SIZES[rule])
    found = [_quantities(row, cosmology) for row in rows]
    return {name: np.concatenate([np.asarray(one[name]) for one in found])[: len(z)] for name in FUNCTIONS}


def by_methods(lines, cosmology):
    """All quantities by name of a `RedshiftGrid` or `RedshiftMatrix`."""
    return {name: np.asarray(value) for name, value in _methods(lines, cosmology).items()}


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


def numpy_integral(z, universes, power):
    """Integrals of (1 + z)^(power - 1) / E from 0 to each of z, in order: pieces no wider than 0.02, 20 nodes each.

    Exact to rounding for E^2 > 0.01; for universes (4, n) the result is (n, len(z)).
    """
    nodes, weights = np.polynomial.legendre.leggauss(20)
    expected, total, left = [], 0.0, 0.0
    for u in np.log1p(z):
        edges = np.linspace(left, u, 2 + int((u - left) / 0.02))
        for a, b in pairwise(edges):
            v = (a + (b - a) * (nodes + 1) / 2)[:, None]
            total = total + (b - a) / 2 * (weights @ (np.exp(power * v) / np.sqrt(e_squared(np.expm1(v), universes))))
        left = u
        expected.append(total)
    return np.array(expected).T


@functools.cache
def draw_universes(num, z_max, lowest, highest, seed):
    """Random universes of the documented domain whose smallest E^2 up to z_max is in [lowest, highest]."""
    rng = np.random.default_rng(seed)
    z = np.expm1(np.linspace(0, np.log1p(z_max), 150))[:, None]
    found = np.zeros((4, 0))
    for _ in range(100):
        size = 2000
        om = 0.05 + 0.95 * rng.uniform(size=size) ** 3
        ode = 1.2 * (1 - rng.uniform(size=size) ** 2)
        w0, wa = rng.uniform(-2, -0.3, size), rng.uniform(-1, 1, size)
        universes = np.stack([om, ode, w0, wa])
        # Most are far from the limits, as a few redshifts tell.
        universes = universes[:, e_squared(z[::10], universes).min(axis=0) > lowest]
        smallest = e_squared(z, universes).min(axis=0)
        found = np.concatenate([found, universes[:, (smallest > lowest) & (smallest < highest)]], axis=1)
        if found.shape[1] >= num:
            return tuple(found[:, :num])
    raise AssertionError(f"expected {num} universes; found {found.shape[1]}")
