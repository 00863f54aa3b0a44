"""The claimed error bound, against independent integrals, closed forms and random universes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from hbm_jax import constants
from hbm_jax import cosmology as hc
from hbm_jax.cosmology import distances, quadrature

from .catalogue import JITTED, REDSHIFTS, UNIVERSES, build, draw_universes, e_squared, mpmath_integral

HUBBLE_DISTANCE = constants.speed_of_light_km_s / 70.0
HUBBLE_TIME = constants.hubble_time_gyr / 70.0


def both_rules(function, z, cosmology):
    """The redshifts all at once, and a few at a time: two different quadratures."""
    jitted = JITTED[function.__name__]
    few = [jitted(part, cosmology) for part in z.reshape(-1, distances.FEW // 2)]
    assert len(z) > distances.FEW
    return {"many": np.asarray(jitted(z, cosmology)), "few": np.concatenate(few)}


@pytest.mark.parametrize("name", UNIVERSES)
def test_distance_and_time_against_mpmath(name):
    universe = UNIVERSES[name]
    assert e_squared(np.linspace(0, 10, 4000), universe).min() > 0.01
    for function, power, unit in [(hc.comoving_distance, 1, HUBBLE_DISTANCE), (hc.lookback_time, 0, HUBBLE_TIME)]:
        expected = unit * np.array([mpmath_integral(z, universe, power) for z in REDSHIFTS[::2]])
        for values in both_rules(function, REDSHIFTS, build(universe)).values():
            np.testing.assert_allclose(values[::2], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", UNIVERSES)
def test_transverse_distance_and_age_against_scipy(name):
    universe = UNIVERSES[name]
    ok = 1 - universe[0] - universe[1]

    def quad(f, a, b):
        return integrate.quad(f, a, b, epsabs=0, epsrel=1e-12, limit=400)[0]

    transverse, age = [], []
    for z in REDSHIFTS:
        chi = quad(lambda u: np.exp(u) * e_squared(np.expm1(u), universe) ** -0.5, 0, np.log1p(z))
        root = np.sqrt(abs(ok))
        transverse.append(chi if abs(ok) < 1e-12 else (np.sinh if ok > 0 else np.sin)(root * chi) / root)
        edges = np.log1p(z) + np.array([0, 0.5, 1, 2, 4, 8, 16, 40])
        age.append(sum(quad(lambda u: e_squared(np.expm1(u), universe) ** -0.5, a, b) for a, b in pairwise(edges)))
    scale = np.max(np.abs(transverse)) if ok < 0 else np.abs(transverse)
    for values in both_rules(hc.transverse_comoving_distance, REDSHIFTS, build(universe)).values():
        assert np.max(np.abs(values / HUBBLE_DISTANCE - transverse) / scale) < 1e-10
    for values in both_rules(hc.age, REDSHIFTS, build(universe)).values():
        np.testing.assert_allclose(values, HUBBLE_TIME * np.array(age), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("lowest", "highest"), [(0.01, 0.02), (0.02, 0.3), (0.3, 1.1)])
@pytest.mark.parametrize("power", [0, 1])
def test_error_bound_over_the_domain(lowest, highest, power):
    universes = draw_universes(40, 10.0, lowest, highest, seed=7)
    z = np.concatenate([np.geomspace(1e-8, 0.1, 10), np.random.default_rng(8).uniform(0.1, 10, 29), [10.0]])
    z.sort()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    expected, total, left = [], 0.0, 0.0
    for u in np.log1p(z):  # pieces no wider than 0.02, 20 nodes each: exact to rounding for E^2 > 0.01
        edges = np.linspace(left, u, 2 + int((u - left) / 0.02))
        for a, b in pairwise(edges):
            v = (a + (b - a) * (nodes + 1) / 2)[:, None]
            total = total + (b - a) / 2 * (weights @ (np.exp(power * v) / np.sqrt(e_squared(np.expm1(v), universes))))
        left = u
        expected.append(total)
    expected = np.array(expected).T
    function, unit = [(hc.lookback_time, HUBBLE_TIME), (hc.comoving_distance, HUBBLE_DISTANCE)][power]
    batch = build(tuple(jnp.asarray(v) for v in universes), H0=jnp.full(40, 70.0))
    many = jax.jit(jax.vmap(lambda c: function(z, c)))(batch)
    few = jax.jit(jax.vmap(lambda c: quadrature.integral_direct(jnp.log1p(z), power, c)[0]))(batch)
    assert np.max(np.abs(many / unit / expected - 1)) < 1e-10
    assert np.max(np.abs(few / expected - 1)) < 1e-10


@pytest.mark.parametrize("rule", ["many", "few"])
def test_closed_forms(rule):
    x = 1 + REDSHIFTS
    einstein_de_sitter = hc.Cosmology.flat(H0=70.0, Om0=1.0)
    milne = hc.Cosmology(H0=70.0, Om0=0.0, Ode0=0.0)
    de_sitter = hc.Cosmology.flat(H0=70.0, Om0=0.0)
    eds_distance = -2 * np.expm1(-0.5 * np.log1p(REDSHIFTS))
    cases = [
        (hc.comoving_distance, einstein_de_sitter, HUBBLE_DISTANCE * eds_distance),
        (hc.lookback_time, einstein_de_sitter, -HUBBLE_TIME * 2 / 3 * np.expm1(-1.5 * np.log1p(REDSHIFTS))),
        (hc.age, einstein_de_sitter, HUBBLE_TIME * 2 / 3 * x**-1.5),
        (hc.differential_comoving_volume, einstein_de_sitter, HUBBLE_DISTANCE**3 * eds_distance**2 * x**-1.5),
        (hc.comoving_distance, milne, HUBBLE_DISTANCE * np.log1p(REDSHIFTS)),
        (hc.transverse_comoving_distance, milne, HUBBLE_DISTANCE * np.sinh(np.log1p(REDSHIFTS))),
        (hc.age, milne, HUBBLE_TIME / x),
        (hc.luminosity_distance, de_sitter, HUBBLE_DISTANCE * REDSHIFTS * x),
        (hc.angular_diameter_distance, de_sitter, HUBBLE_DISTANCE * REDSHIFTS / x),
        (hc.lookback_time, de_sitter, HUBBLE_TIME * np.log1p(REDSHIFTS)),
    ]
    for function, cosmology, expected in cases:
        np.testing.assert_allclose(both_rules(function, REDSHIFTS, cosmology)[rule], expected, rtol=1e-12)


@pytest.mark.parametrize("k", [-400.0, -30.0, -9.9, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 500.0])
def test_curvature_factor(k):
    from hbm_jax.cosmology.line_of_sight import curvature_factor

    root = np.sqrt(abs(k))
    expected = 1.0 if k == 0 else (np.sinh(root) if k > 0 else np.sin(root)) / root
    assert abs(float(curvature_factor(jnp.float64(k))) - expected) < 1e-13 * max(1, expected)


def test_more_nodes_converge_at_the_expected_rate(monkeypatch):
    universe = UNIVERSES["concordance"]
    u = jnp.log1p(jnp.float64(10.0))
    exact = mpmath_integral(10.0, universe, 1)
    errors = []
    for nodes in (8, 16, 32):
        monkeypatch.setattr(quadrature, "DIRECT_NODES", nodes)
        errors.append(abs(float(quadrature.integral_direct(u, 1, build(universe))[0]) / exact - 1))
    # Geometric convergence: doubling the nodes squares the error, up to a constant.
    assert errors[1] < 30 * errors[0] ** 2 < 1
    assert errors[2] < 30 * errors[1] ** 2 < 1
