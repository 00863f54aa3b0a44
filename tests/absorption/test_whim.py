"""The integral along the line of sight against quadrature in NumPy, closed forms, and its own table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines_of_sight import (
    CHARGE,
    ENERGY,
    FITS,
    FLAT,
    by_quadrature,
    depth,
    fractions,
    ion_integrals,
    scale,
)

from hbm_jax.absorption import MODES, WhimIons, WhimTable, abundance_table, whim_optical_depth
from hbm_jax.absorption.cross_sections import evaluate, fit_coefficients
from hbm_jax.absorption.rates import ABSORBING, RATES
from hbm_jax.absorption.running_integrals import RunningIntegrals, look_up, running_integrals
from hbm_jax.absorption.whim import COLUMN, parabolic_cells, weighted_integral
from hbm_jax.cosmology import Cosmology

THRESHOLDS = np.unique(np.concatenate(FITS.thresholds()))
WILM = abundance_table("wilm")
Z = np.array([0.0, 0.01, 0.7, 3.0, 9.0])  # of the tables that tests share

# One program for all tables of as many lines of sight.
evaluated = jax.jit(lambda table, *arguments: table(*arguments))
at_points = jax.jit(jax.vmap(lambda table, *arguments: table(*arguments), in_axes=(None, 0, 0, 0)))


@pytest.fixture(scope="module")
def table():
    return WhimTable(ENERGY, Z, cosmology=FLAT)


@pytest.mark.parametrize("z", [0.01, 0.1, 0.5, 2.0, 5.0, 9.0])
def test_quadrature_between_the_edges(z):
    rng = np.random.default_rng(int(100 * z))
    # Just above an edge at the source only a sliver of the line of sight absorbs with it; just below, none.
    at_source = THRESHOLDS[(0.31 * (1 + z) < THRESHOLDS) & (9.8 * (1 + z) > THRESHOLDS)] / (1 + z)
    here = THRESHOLDS[(THRESHOLDS > 0.31) & (THRESHOLDS < 9.8)]
    near = np.concatenate([rng.choice(at_source, 6) * (1 + s) for s in (-1e-6, 1e-6, 1e-3)] + [rng.choice(here, 4)])
    energy = np.concatenate([ENERGY, near * (1 + 1e-7)])
    for log10_T, log10_xi in ((4.0, 0.0), (6.0, -12.0), (7.2, 0.0), (8.0, 0.0), (8.0, 4.0), (5.7, 4.0)):
        found = depth(energy, z, log10_T=log10_T, log10_xi=log10_xi)
        expected = by_quadrature(energy, z, log10_T, log10_xi)
        np.testing.assert_allclose(found, expected, rtol=5e-5, err_msg=f"log T {log10_T}, log xi {log10_xi}")


def test_quadrature_in_another_mode_with_other_rates():
    for log10_T, log10_xi in ((4.3, -1.0), (5.7, 2.0), (7.2, 1.0)):
        found = depth(ENERGY, 1.3, log10_T=log10_T, log10_xi=log10_xi, mode="photo", rates="older")
        expected = by_quadrature(ENERGY, 1.3, log10_T, log10_xi, mode="photo", rates="older")
        np.testing.assert_allclose(found, expected, rtol=5e-5, err_msg=f"log T {log10_T}, log xi {log10_xi}")


@pytest.mark.parametrize("z", [0.3, pytest.param(4.0, marks=pytest.mark.long)])
def test_quadrature_with_evolution(z):
    options = {"density_slope": 0.7, "metallicity_slope": -0.2, "metallicity": 0.3}
    found = depth(ENERGY, z, log10_T=6.0, **options)
    expected = by_quadrature(ENERGY, z, 6.0, metallicity=0.3, slopes=(0.7, -0.2, 0.0))
    np.testing.assert_allclose(found, expected, rtol=5e-5)
    for slope in (0.5, -1.0):
        found = depth(ENERGY, z, log10_T=6.0, temperature_slope=slope, **options)
        expected = by_quadrature(ENERGY, z, 6.0, metallicity=0.3, slopes=(0.7, -0.2, slope))
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_density_hubble_constant_and_light_are_those_given():
    plain = depth(ENERGY, 2.0, log10_T=5.8)
    np.testing.assert_allclose(depth(ENERGY, 2.0, log10_T=5.8, n0=3e-7), 3 * plain, rtol=1e-12)
    faster = Cosmology.flat(H0=100.0, Om0=0.3)
    np.testing.assert_allclose(depth(ENERGY, 2.0, log10_T=5.8, cosmology=faster), 0.7 * plain, rtol=1e-12)
    hard, soft = (depth(ENERGY, 2.0, log10_T=5.8, photon_index=index) for index in (1.0, 3.0))
    assert (np.abs(hard / plain - 1) > 1e-3).any()
    assert (np.abs(soft / plain - 1) > 1e-3).any()


def test_einstein_de_sitter_with_an_inverse_cube():
    # Against a cross section E^-3 the integral is (1 - (1 + z)^-1.5) / 1.5 of it.
    node = running_integrals().node
    power = np.exp(-3.0 * node)
    table = RunningIntegrals(node, power / 3.0, power / 9.0, power / 27.0, power, power)
    integral = jax.jit(
        lambda z, table, L: weighted_integral(parabolic_cells(z, lambda u: jnp.exp(1.5 * u), 20), table, L)
    )
    for z in (0.01, 1.0, 9.0):
        found = np.asarray(integral(z, table, np.log(ENERGY))) * ENERGY**3
        np.testing.assert_allclose(found, (1 - (1 + z) ** -1.5) / 1.5, rtol=1e-5)


def test_parabolas_are_least_squares():
    cells = jax.jit(lambda z: parabolic_cells(z, lambda u: jnp.exp(3.0 * u), 4))(1.0)
    edge, *jumps = (np.asarray(part) for part in cells)
    sums = [np.zeros(5) for _ in range(3)]
    for i in range(4):
        u = np.linspace(edge[i], edge[i + 1], 20_001)
        parabola = np.polynomial.Polynomial.fit(u, np.exp(3 * u), 2)
        for order in range(3):
            sums[order][i] += parabola.deriv(order)(u[0])
            sums[order][i + 1] -= parabola.deriv(order)(u[-1])
    for jump, expected in zip(jumps, sums, strict=True):
        np.testing.assert_allclose(jump, expected, rtol=2e-3, atol=1e-3)


def test_running_integrals_are_those_of_the_cross_sections():
    table = running_integrals()
    look_up_at = jax.jit(look_up)
    rng = np.random.default_rng(3)
    x, w = np.polynomial.legendre.leggauss(12)
    for i, ion in enumerate(ABSORBING):
        a = rng.uniform(np.log(0.05), np.log(50.0), 8)
        b = a + rng.uniform(1e-3, 1.5, 8)
        own = RunningIntegrals(table.node, *(np.ascontiguousarray(column[:, i]) for column in table[1:]))
        first, second = np.asarray(look_up_at(own, np.stack([a, b]))).transpose(1, 0, 2)
        edges, fits = np.log(FITS.thresholds()[i]), fit_coefficients((ion,))
        for j in range(8):
            cuts = np.unique([*np.linspace(a[j], b[j], 30), *edges[(edges > a[j]) & (edges < b[j])]])
            half = 0.5 * np.diff(cuts)[:, None]
            L = cuts[:-1, None] + half * (1 + x)
            sigma = evaluate(np.exp(L), fits)[0]
            total = np.sum(half * w * sigma)
            rounding = 1e-14 * first[0, j]
            assert abs(first[0, j] - second[0, j] - total) <= 1e-5 * total + rounding, ion
            # S2(a) - S2(b) is (b - a) S1(b) plus the moment of sigma.
            moment = (b[j] - a[j]) * second[0, j] + np.sum(half * w * sigma * (L - a[j]))
            assert first[1, j] - second[1, j] == pytest.approx(moment, rel=1e-5, abs=1e-12), ion
            # And S3(a) - S3(b) two terms at b plus half the second moment.
            moment = (b[j] - a[j]) * second[1, j] + 0.5 * (b[j] - a[j]) ** 2 * second[0, j]
            moment += 0.5 * np.sum(half * w * sigma * (L - a[j]) ** 2)
            assert first[2, j] - second[2, j] == pytest.approx(moment, rel=1e-5, abs=1e-12), ion


def test_redshift_zero_has_its_value_and_its_gradient():
    energy = ENERGY[::5]
    shares = fractions([6.0])[0] * WILM[CHARGE - 1]
    slope = 1e-7 * COLUMN / 70.0 * shares @ evaluate(energy, FITS)
    weights = np.array([1.0, -3.0, 300.0])

    @jax.jit
    def slopes(z):
        def depth_at(z):
            return whim_optical_depth(energy, z, n0=1e-7, log10_T=6.0, cosmology=FLAT)

        value, reverse = jax.vjp(depth_at, z)
        return value, jax.jvp(depth_at, (z,), (1.0,))[1], reverse(weights)[0]

    value, forward, reverse = slopes(0.0)
    assert (np.asarray(value) < 1e-15).all()
    assert (depth(ENERGY, 0.0, log10_T=6.0) < 1e-15).all()
    np.testing.assert_allclose(forward, slope, rtol=1e-4)
    assert reverse == pytest.approx(weights @ np.asarray(forward), rel=1e-9)
    for z in (1e-6, 1e-4, 3e-3, 0.015):
        np.testing.assert_allclose(depth(ENERGY, z, log10_T=6.0), by_quadrature(ENERGY, z, 6.0), rtol=2e-5)


AT = {"z": 1.3, "n0": 3e-7, "log10_T": 6.1, "log10_xi": 0.8, "metallicity": 0.4, "photon_index": 1.9, "Om0": 0.3,
      "H0": 70.0, "density_slope": 0.2, "metallicity_slope": -0.1, "temperature_slope": 0.3}  # fmt: skip


@pytest.mark.long
def test_gradients():
    energy = np.array([0.37, 0.81, 2.2])  # no edge where a difference is taken

    @jax.jit
    def value(v):
        v = dict(v)
        cosmology = Cosmology.flat(H0=v.pop("H0"), Om0=v.pop("Om0"))
        return whim_optical_depth(energy, v.pop("z"), cosmology=cosmology, **v)

    at = {name: np.asarray(x) for name, x in AT.items()}
    found = jax.jit(jax.jacfwd(value))(at)
    for name, x in AT.items():
        h = 1e-4 * x if name in ("n0", "H0") else 1e-4 * max(1.0, abs(x))
        ends = [np.asarray(value(at | {name: np.asarray(x + k * h)})) for k in (-2, -1, 1, 2)]
        expected = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.long
def test_gradient_in_redshift_temperature_and_abundances():
    energy = np.array([0.37, 0.6, 1.4, 2.2])  # no edge where a difference is taken
    weights = np.array([1.0, -2.0, 30.0, 400.0])

    @jax.jit
    def gradient(z, log10_T, abundances):
        def total(z, log10_T, abundances):
            tau = whim_optical_depth(energy, z, n0=1e-7, log10_T=log10_T, abundances=abundances, cosmology=FLAT)
            return tau @ weights

        return jax.grad(total, argnums=(0, 1, 2))(z, log10_T, abundances)

    in_z, in_T, in_abundances = (np.asarray(part) for part in gradient(1.3, 6.1, WILM))

    def total(z=1.3, log10_T=6.1, abundances=WILM):
        return depth(energy, z, log10_T=log10_T, abundances=abundances) @ weights

    for found, change in ((in_z, lambda h: {"z": 1.3 + h}), (in_T, lambda h: {"log10_T": 6.1 + h})):
        ends = [total(**change(k * 1e-4)) for k in (-2, -1, 1, 2)]
        assert found == pytest.approx((ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12e-4, rel=1e-5)
    # It is linear in the abundances.
    assert in_abundances @ WILM == pytest.approx(total(), rel=1e-10)
    for place in (0, 1, 7, 25):  # H, He, O, Fe
        more = WILM * (1.0 + np.eye(30)[place])
        assert in_abundances[place] * WILM[place] == pytest.approx(total(abundances=more) - total(), rel=1e-8)


def test_sources_side_by_side_and_out_of_the_domain_where_traced():
    energy = np.array([0.4, 1.0, 5.0])

    @jax.jit
    @jax.vmap
    def many(energy, z, n0, metallicity, abundances, Ode0):
        universe = Cosmology(H0=70.0, Om0=1.0 - Ode0, Ode0=Ode0)
        universe = Cosmology(H0=70.0, Om0=jnp.where(Ode0 > 1.0, 0.1, universe.Om0), Ode0=Ode0)
        given = {"metallicity": metallicity, "abundances": abundances}
        return whim_optical_depth(energy, z, n0=n0, log10_T=6.0, cosmology=universe, **given)

    good = [(energy, z, 1e-7, 0.5, WILM, 0.7) for z in (0.0, 0.4, 3.0)]
    bad = [
        (energy, -0.5, 1e-7, 0.5, WILM, 0.7),
        (energy, 10.5, 1e-7, 0.5, WILM, 0.7),
        (energy, 0.4, -1e-7, 0.5, WILM, 0.7),
        (energy, 0.4, 1e-7, -0.5, WILM, 0.7),
        (energy, 0.4, 1e-7, 0.5, -WILM, 0.7),
        (energy, 3.0, 1e-7, 0.5, WILM, 2.5),  # no big bang
    ]
    some = [(np.array([0.01, 1.0, 400.0]), 0.4, 1e-7, 0.5, WILM, 0.7)]
    cases = [np.array(column) for column in zip(*good, *bad, *some, strict=True)]
    found = np.asarray(many(*cases))
    for row, (_, z, *_) in zip(found, good, strict=False):
        np.testing.assert_allclose(row, depth(energy, z, log10_T=6.0, metallicity=0.5), rtol=1e-10, atol=1e-15)
    assert np.isnan(found[3:9]).all()
    np.testing.assert_array_equal(np.isnan(found[9]), [True, False, True])
    np.testing.assert_allclose(found[9, 1], found[1, 1], rtol=1e-12)


# The table


CASES = [("photo+collisional", "modern", -1.0), ("photo", "older", 2.0), ("collisional", "modern", -1.0)]


@pytest.mark.parametrize(("mode", "rates", "log10_xi"), CASES)
def test_table_has_the_transmission_of_the_integral(mode, rates, log10_xi):
    options = {"mode": mode, "rates": rates}
    table = WhimTable(ENERGY, Z, cosmology=FLAT, log10_xi=log10_xi, **options)
    rng = np.random.default_rng(5)
    num = 150
    log10_T, n0, metallicity = rng.uniform(4, 8, num), 10 ** rng.uniform(-8, -5, num), rng.uniform(0, 2, num)
    log10_T[:3] = 4.05, 5.484, 6.37
    found = np.asarray(at_points(table, n0, log10_T, metallicity))
    shares = fractions(log10_T, log10_xi, **options) * WILM[CHARGE - 1]
    for i, z in enumerate(Z):
        each = ion_integrals(z, tuple(ENERGY.tolist()))
        light, metals = (scale() * (shares * group) @ each for group in (CHARGE <= 2, CHARGE > 2))
        tau = light + metallicity[:, None] * metals
        np.testing.assert_allclose(np.exp(-found[:, i]), np.exp(-tau * n0[:, None] / 1e-7), atol=1e-4)
        # Whatever the density, a transmission is wrong by at most 1/e of the relative error of its optical depth.
        if z > 0:
            np.testing.assert_allclose(found[:, i] * 1e-7 / n0[:, None], tau, rtol=2.7e-4)


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rates", RATES)
def test_table_has_the_transmission_of_the_compiled_integral(mode, rates):
    rng = np.random.default_rng(6)
    for log10_xi in (-1.0, 2.0):
        table = WhimTable(ENERGY, Z, cosmology=FLAT, log10_xi=log10_xi, mode=mode, rates=rates)
        for _ in range(60):
            log10_T, n0, metallicity = rng.uniform(4, 8), 10 ** rng.uniform(-8, -5), rng.uniform(0, 2)
            i = rng.integers(len(Z))
            given = {"log10_T": log10_T, "metallicity": metallicity, "log10_xi": log10_xi}
            tau = depth(ENERGY, Z[i], n0=n0, mode=mode, rates=rates, **given)
            found = np.asarray(evaluated(table, n0, log10_T, metallicity))[i]
            np.testing.assert_allclose(np.exp(-found), np.exp(-tau), atol=1e-4)


def test_table_takes_one_line_of_sight_or_many_with_their_own_gas():
    z, energy = np.array([0.2, 1.0]), np.stack([ENERGY, ENERGY[::-1]])
    table = WhimTable(energy, z, cosmology=FLAT)
    gas = np.array([1e-7, 2e-7]), np.array([5.5, 6.5]), np.array([0.1, 1.0])
    own = np.asarray(evaluated(table, *gas))
    assert own.shape == (2, 15)
    for i in range(2):
        alone = WhimTable(energy[i], z[i], cosmology=FLAT)
        np.testing.assert_allclose(own[i], evaluated(alone, *(column[i] for column in gas)), rtol=1e-12)
    evolving = WhimTable(ENERGY, 2.0, cosmology=FLAT, density_slope=0.5, metallicity_slope=-0.3, photon_index=1.3)
    slopes = {"density_slope": 0.5, "metallicity_slope": -0.3, "photon_index": 1.3}
    exact = depth(ENERGY, 2.0, log10_T=6.0, metallicity=0.4, **slopes)
    np.testing.assert_allclose(evaluated(evolving, 1e-7, 6.0, 0.4), exact, rtol=1e-5)
    # The metallicity is 1 unless given, here outside of a compiled function.
    plain = evolving(1e-7, 6.0)
    np.testing.assert_allclose(plain, evaluated(evolving, 1e-7, 6.0, 1.0), rtol=1e-12)


def test_table_of_other_abundances_and_fewer_cells():
    more = np.where(np.arange(30) == 7, 3.0, 1.0) * WILM
    oxygen = WhimTable(ENERGY, 2.0, cosmology=FLAT, abundances=more)
    exact = depth(ENERGY, 2.0, log10_T=6.0, abundances=more)
    np.testing.assert_allclose(evaluated(oxygen, 1e-7, 6.0, 1.0), exact, rtol=1e-5)
    plain, coarse = (WhimTable(ENERGY, 2.0, cosmology=FLAT, num_cells=num) for num in (20, 2))
    error = np.abs(np.asarray(evaluated(coarse, 1e-7, 6.0, 1.0)) / np.asarray(evaluated(plain, 1e-7, 6.0, 1.0)) - 1)
    assert 1e-5 < error.max() < 0.1


def test_table_is_an_argument_of_a_compiled_function_with_smooth_gradients(table):
    def total(table, x):
        return jnp.sum(table(x[0] * 1e-7, x[1], x[2]))

    both = jax.jit(lambda table, x: (total(table, x), jax.grad(total, argnums=1)(table, x)))
    for at in ((1.0, 5.03, 0.5), (3.0, 6.0, 1.0), (1.0, 7.97, 0.1)):
        found = np.asarray(both(table, np.array(at))[1])
        for i in range(3):
            h = 1e-5 * np.eye(3)[i]
            expected = (float(both(table, np.array(at) + h)[0]) - float(both(table, np.array(at) - h)[0])) / 2e-5
            assert found[i] == pytest.approx(expected, rel=1e-5)
    # A node of the spline is no kink.
    below, above = (both(table, np.array([1.0, 6.0 + side, 1.0]))[1] for side in (-1e-9, 1e-9))
    np.testing.assert_allclose(below, above, rtol=1e-6)


def test_table_is_worked_out_where_a_function_is_compiled_or_refuses_to():
    inside = jax.jit(lambda n0: WhimTable(ENERGY, 2.0, cosmology=FLAT)(n0, 6.0))
    outside = evaluated(WhimTable(ENERGY, 2.0, cosmology=FLAT), 1e-7, 6.0, 1.0)
    np.testing.assert_allclose(inside(1e-7), outside, rtol=1e-12)
    with pytest.raises(ValueError, match=r"computed once.* found a traced value\. Use whim_optical_depth"):
        jax.jit(lambda z: WhimTable(ENERGY, z, cosmology=FLAT)(1e-7, 6.0))(1.0)
    with pytest.raises(TypeError, match="positional"):
        WhimTable(ENERGY, 2.0, FLAT)
    assert repr(WhimTable(ENERGY, [0.1, 2.0], cosmology=FLAT)) == "WhimTable(2 lines of sight, 15 energies)"


def test_table_in_single_precision(table):
    for log10_T in (4.5, 6.0, 7.5):
        double = np.asarray(evaluated(table, 1e-7, log10_T, 1.0))
        single = evaluated(table, np.float32(1e-7), np.float32(log10_T), np.float32(1.0))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(np.exp(-np.asarray(single)), np.exp(-double), atol=1e-5)


def test_integral_in_single_precision():
    energy = ENERGY[::2].astype(np.float32)
    flat = Cosmology.flat(H0=np.float32(70.0), Om0=np.float32(0.3))
    with jax.enable_x64(False):

        @jax.jit
        def both(z):
            def depth_at(z):
                return whim_optical_depth(energy, z, n0=1e-5, log10_T=6.5, cosmology=flat)

            return jax.jvp(depth_at, (z,), (jnp.ones_like(z),))

        found = [(z, *both(np.float32(z))) for z in (1e-4, 0.01, 0.3, 6.0)]
    for z, single, rise in found:
        assert single.dtype == rise.dtype == jnp.float32
        z = float(np.float32(z))
        np.testing.assert_allclose(single, depth(energy.astype(float), z, n0=1e-5, log10_T=6.5), rtol=3e-6)
        h = min(1e-2 * z, 3e-4)  # small, so that it crosses no edge
        ends = [depth(energy.astype(float), z + k * h, n0=1e-5, log10_T=6.5) for k in (-2, -1, 1, 2)]
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        np.testing.assert_allclose(rise, slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": 0.01}, r"energy: expected between 0\.03 and 250 keV; found 0\.01"),
        ({"energy": 300.0}, r"energy: expected between 0\.03 and 250 keV; found 300"),
        ({"z": -0.1}, r"z: expected between 0 and 10; found -0\.1"),
        ({"z": np.array([0.1, 0.2])}, r"z: expected one number \(for several, jax\.vmap\); found shape \(2,\)"),
        ({"log10_T": np.full(20, 6.0)}, r"log10_T: expected one number .* found shape \(20,\)"),
        ({"photon_index": np.ones(3)}, r"photon_index: expected one number .* found shape \(3,\)"),
        ({"density_slope": np.ones(8)}, r"density_slope: expected one number .* found shape \(8,\)"),
        ({"temperature_slope": 9.0}, r"log10_T at the source: expected between 4 and 8; found 8\.7"),
        ({"num_cells": 0}, r"num_cells: expected a whole number, 1 or more; found 0"),
        ({"cosmology": None}, r"cosmology: expected a Cosmology; found None"),
        ({"n0": -1e-7}, r"n0: expected at least 0 cm\^-3; found -1e-07"),
        ({"metallicity": -1.0}, r"metallicity: expected at least 0; found -1"),
        ({"log10_T": 9.0}, r"log10_T: expected between 4 and 8; found 9"),
        ({"mode": "colisional"}, r"unknown mode 'colisional' \(did you mean 'collisional'\?\)"),
        ({"abundances": "solar"}, r"unknown abundance table 'solar'"),
    ],
)
def test_errors(change, message):
    arguments = {"energy": 1.0, "z": 1.0, "n0": 1e-7, "log10_T": 6.0, "cosmology": FLAT} | change
    with pytest.raises(ValueError, match=message):
        whim_optical_depth(**arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((ENERGY, 1.0), {}, "expected a Cosmology; found None"),
        ((ENERGY, 1.0), {"cosmology": "Planck18"}, "expected a Cosmology; found 'Planck18'"),
        ((ENERGY, 11.0), {"cosmology": FLAT}, "z: expected between 0 and 10; found 11"),
        ((ENERGY, np.ones((2, 2))), {"cosmology": FLAT}, r"expected one redshift.* found redshifts \(2, 2\)"),
        ((np.ones((3, 5)), np.ones(2)), {"cosmology": FLAT}, r"one for each row of energies.*energies \(3, 5\)"),
        ((ENERGY, 1.0), {"cosmology": FLAT, "mode": "x"}, "unknown mode 'x'"),
        (
            (ENERGY, 1.0),
            {"cosmology": FLAT, "num_cells": -1},
            "num_cells: expected a whole number, .* found -1",
        ),
    ],
)
@pytest.mark.parametrize("kind", [WhimTable, WhimIons])
def test_errors_of_precomputed_optical_depths(arguments, options, message, kind):
    with pytest.raises(ValueError, match=message):
        kind(*arguments, **options)


def test_errors_of_the_evaluation_of_a_table(table):
    with pytest.raises(ValueError, match="log10_T: expected between 4 and 8"):
        table(1e-7, 8.1)
    with pytest.raises(ValueError, match="n0: expected at least 0"):
        table(-1e-7, 6.0)
    with pytest.raises(ValueError, match=r"metallicity\[1\]: expected at least 0; found -1"):
        table(1e-7, 6.0, np.array([1.0, -1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"log10_T: expected one number; found shape \(15,\)"):
        WhimTable(ENERGY, 1.0, cosmology=FLAT)(1e-7, np.full(15, 6.0))
    with pytest.raises(
        ValueError, match=r"n0: expected one number, or one for each line of sight, \(5,\); found shape"
    ):
        table(np.ones(3), 6.0)
    with pytest.raises(ValueError, match=r"energy\[1\]: expected between 0\.03 and 45\.45\d* keV; found 50"):
        WhimTable([1.0, 50.0], [0.5, 10.0], cosmology=FLAT)


def test_arguments_of_a_table_out_of_the_domain_are_nan_where_traced(table):
    gas = np.array([[1e-7, 8.1, 1.0], [-1e-7, 6.0, 1.0], [1e-7, 6.0, -1.0], [1e-7, 6.0, 1.0]])
    found = np.asarray(at_points(table, *np.resize(gas, (150, 3)).T))[:4]
    np.testing.assert_array_equal(np.isnan(found).all(axis=(1, 2)), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(found).any(axis=(1, 2)), [True, True, True, False])


def test_table_of_one_metallicity_is_the_general_one_there(table):
    fixed = WhimTable(ENERGY, Z, cosmology=FLAT, metallicity=0.3)
    np.testing.assert_allclose(evaluated(fixed, 2e-7, 5.7), evaluated(table, 2e-7, 5.7, 0.3), rtol=1e-6, atol=1e-12)
    assert fixed.coefficients.size == table.coefficients.size // 2
    one = dataclasses.replace(fixed, energy=ENERGY, z=Z[1], coefficients=fixed.coefficients[:, 1])
    np.testing.assert_allclose(evaluated(one, 2e-7, 5.7), evaluated(fixed, 2e-7, 5.7)[1], rtol=1e-12)
    with pytest.raises(ValueError, match="set up for one metallicity"):
        fixed(1e-7, 6.0, 0.3)
    with pytest.raises(ValueError, match="metallicity"):
        WhimTable(ENERGY, Z, cosmology=FLAT, metallicity=-0.3)
