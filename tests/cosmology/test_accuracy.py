"""The claimed error bound, against independent integrals, closed forms and random universes."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from hbm_jax import constants
from hbm_jax import cosmology as hc
from hbm_jax.cosmology import quadrature
from hbm_jax.cosmology.line_of_sight import curvature_factor

from .catalogue import (
    REDSHIFTS,
    UNIVERSES,
    build,
    draw_universes,
    e_squared,
    mpmath_integral,
    numpy_integral,
    quantities,
)

HUBBLE_DISTANCE = constants.speed_of_light_km_s / 70.0
HUBBLE_TIME = constants.hubble_time_gyr / 70.0
factor = jax.jit(curvature_factor)


MPMATH = ("cpl", "loitering a", "corner phantom")  # the others, by mpmath too, in the long part


def every_rule(z, cosmology):
    """All quantities by two different quadratures."""
    return [quantities(z, cosmology, rule) for rule in ("many", "few")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in MPMATH else pytest.mark.long) for n in UNIVERSES])
def test_distance_and_time_against_mpmath(name):
    universe = UNIVERSES[name]
    assert e_squared(np.linspace(0, 10, 4000), universe).min() > 0.01
    values = every_rule(REDSHIFTS, build(universe))
    places = [0, 4, 11] if name in MPMATH else range(0, 12, 2)
    for function, power, unit in [("comoving_distance", 1, HUBBLE_DISTANCE), ("lookback_time", 0, HUBBLE_TIME)]:
        expected = unit * np.array([mpmath_integral(z, universe, power) for z in REDSHIFTS[places]])
        for found in values:
            np.testing.assert_allclose(found[function][places], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", UNIVERSES)
def test_distances_times_and_volume_against_scipy(name):
    universe = UNIVERSES[name]
    ok = 1 - universe[0] - universe[1]

    def quad(f, a, b):
        return integrate.quad(f, a, b, epsabs=0, epsrel=1e-12, limit=400)[0]

    comoving, lookback, transverse, age = [], [], [], []
    for z in REDSHIFTS:
        chi = quad(lambda u: np.exp(u) * e_squared(np.expm1(u), universe) ** -0.5, 0, np.log1p(z))
        root = np.sqrt(abs(ok))
        comoving.append(chi)
        lookback.append(quad(lambda u: e_squared(np.expm1(u), universe) ** -0.5, 0, np.log1p(z)))
        transverse.append(chi if abs(ok) < 1e-12 else (np.sinh if ok > 0 else np.sin)(root * chi) / root)
        edges = np.log1p(z) + np.array([0, 0.5, 1, 2, 4, 8, 16, 40])
        age.append(sum(quad(lambda u: e_squared(np.expm1(u), universe) ** -0.5, a, b) for a, b in pairwise(edges)))
    transverse = HUBBLE_DISTANCE * np.array(transverse)
    scale = np.max(np.abs(transverse)) if ok < 0 else np.abs(transverse)
    E = np.sqrt(e_squared(REDSHIFTS, universe))
    for values in every_rule(REDSHIFTS, build(universe)):
        np.testing.assert_allclose(values["comoving_distance"], HUBBLE_DISTANCE * np.array(comoving), rtol=1e-10)
        np.testing.assert_allclose(values["lookback_time"], HUBBLE_TIME * np.array(lookback), rtol=1e-10)
        assert np.max(np.abs(values["transverse_comoving_distance"] - transverse) / scale) < 1e-10
        np.testing.assert_allclose(values["age"], HUBBLE_TIME * np.array(age), rtol=1e-10, atol=0)
        np.testing.assert_allclose(values["efunc"], E, rtol=1e-12)
        volume = transverse**2 * HUBBLE_DISTANCE / E
        assert np.max(np.abs(values["differential_comoving_volume"] / volume - 1) * np.abs(transverse) / scale) < 1e-9


RANDOM_Z = np.sort(np.concatenate([np.geomspace(1e-8, 0.1, 10), np.random.default_rng(8).uniform(0.1, 10, 29), [10.0]]))


@functools.partial(jax.jit, static_argnames="power")
def many_and_few(batch, power):
    """Integrals in random universes by both quadratures."""
    function = (hc.lookback_time, hc.comoving_distance)[power]
    many = jax.vmap(lambda c: function(RANDOM_Z, c))(batch)
    return many, jax.vmap(lambda c: quadrature.integral_direct(jnp.log1p(RANDOM_Z), power, c)[0])(batch)


@pytest.mark.parametrize(("lowest", "highest"), [(0.01, 0.02), (0.02, 0.3), (0.3, 1.1)])
@pytest.mark.parametrize("power", [0, 1])
def test_error_bound_over_the_domain(lowest, highest, power):
    universes = draw_universes(40, 10.0, lowest, highest, seed=7)
    expected = numpy_integral(RANDOM_Z, universes, power)
    many, few = (np.asarray(x) for x in many_and_few(build(universes, H0=np.full(40, 70.0)), power))
    assert np.max(np.abs(many / (HUBBLE_TIME, HUBBLE_DISTANCE)[power] / expected - 1)) < 1e-10
    assert np.max(np.abs(few / expected - 1)) < 1e-10


@pytest.mark.parametrize("rule", ["many", "few"])
def test_closed_forms(rule):
    x = 1 + REDSHIFTS
    eds_distance = -2 * np.expm1(-0.5 * np.log1p(REDSHIFTS))
    expected = {
        "einstein_de_sitter": {
            "comoving_distance": HUBBLE_DISTANCE * eds_distance,
            "lookback_time": -HUBBLE_TIME * 2 / 3 * np.expm1(-1.5 * np.log1p(REDSHIFTS)),
            "age": HUBBLE_TIME * 2 / 3 * x**-1.5,
            "differential_comoving_volume": HUBBLE_DISTANCE**3 * eds_distance**2 * x**-1.5,
            "distmod": 5 * np.log10(x * HUBBLE_DISTANCE * eds_distance) + 25,
        },
        "milne": {
            "comoving_distance": HUBBLE_DISTANCE * np.log1p(REDSHIFTS),
            "transverse_comoving_distance": HUBBLE_DISTANCE * np.sinh(np.log1p(REDSHIFTS)),
            "age": HUBBLE_TIME / x,
        },
        "de_sitter": {
            "luminosity_distance": HUBBLE_DISTANCE * REDSHIFTS * x,
            "angular_diameter_distance": HUBBLE_DISTANCE * REDSHIFTS / x,
            "lookback_time": HUBBLE_TIME * np.log1p(REDSHIFTS),
        },
    }
    universes = {
        "einstein_de_sitter": hc.Cosmology.flat(H0=70.0, Om0=1.0),
        "milne": hc.Cosmology(H0=70.0, Om0=0.0, Ode0=0.0),
        "de_sitter": hc.Cosmology.flat(H0=70.0, Om0=0.0),
    }
    for name, cosmology in universes.items():
        found = quantities(REDSHIFTS, cosmology, rule)
        for function, values in expected[name].items():
            np.testing.assert_allclose(found[function], values, rtol=1e-12, err_msg=f"{name}, {function}")


@pytest.mark.parametrize("k", [-400.0, -30.0, -9.9, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 500.0])
def test_curvature_factor(k):
    root = np.sqrt(abs(k))
    expected = 1.0 if k == 0 else (np.sinh(root) if k > 0 else np.sin(root)) / root
    assert abs(float(factor(k)) - expected) < 1e-13 * max(1, expected)


def test_more_nodes_converge_at_the_expected_rate(monkeypatch):
    universe = UNIVERSES["concordance"]
    exact = numpy_integral(np.array([10.0]), universe, 1)[0, 0]
    errors = []
    for nodes in (8, 16, 32):
        monkeypatch.setattr(quadrature, "DIRECT_NODES", nodes)
        integral = jax.jit(lambda u, c: quadrature.integral_direct(u, 1, c)[0])
        errors.append(abs(float(integral(np.log1p(10.0), build(universe))) / exact - 1))
    # Geometric convergence: doubling the nodes squares the error, up to a constant.
    assert errors[1] < 30 * errors[0] ** 2 < 1
    assert errors[2] < 30 * errors[1] ** 2 < 1
