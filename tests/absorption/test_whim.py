"""The integral along the line of sight against brute force, closed forms, and its own table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax import constants
from hbm_jax.absorption import MODES, WhimTable, abundance_table, ion_fractions, whim_optical_depth
from hbm_jax.absorption.cross_sections import evaluate, fits_of
from hbm_jax.absorption.rates import ABSORBING
from hbm_jax.absorption.running_integrals import Running, look_up, running_integrals
from hbm_jax.absorption.whim import COLUMN, PLACES, along, cells_of
from hbm_jax.cosmology import Cosmology

FLAT = Cosmology.flat(H0=70.0, Om0=0.3)
ENERGY = np.geomspace(0.3, 9.9, 15)
FITS = fits_of(ABSORBING)
CHARGE = np.array([Z for Z, _ in ABSORBING])


def brute_force(z, log10_T, log10_xi=0.0, *, metallicity=1.0, slopes=(0.0, 0.0, 0.0), energy=ENERGY):
    """Optical depth for n0 = 1e-7 by Gauss and Legendre between all the edges of all ions, in NumPy."""
    thresholds = np.unique(np.concatenate(FITS.thresholds()))
    x, w = np.polynomial.legendre.leggauss(16)
    end, found = np.log1p(z), []
    for E in energy:
        cuts = np.log(thresholds / E)
        cuts = np.unique(np.concatenate([np.linspace(0, end, 12), cuts[(cuts > 0) & (cuts < end)]]))
        half = 0.5 * np.diff(cuts)[:, None]
        u = (cuts[:-1, None] + half * (1 + x)).ravel()
        T = log10_T + slopes[2] * u / np.log(10) if slopes[2] else np.full(1, log10_T)
        full = np.resize(T, 1 if len(T) == 1 else -(-len(T) // 2048) * 2048)  # few shapes, few programs to compile
        shares = np.asarray(_fractions()(full, log10_xi))[: len(T), PLACES] * abundance_table("wilm")[CHARGE - 1]
        shares = shares * np.where(CHARGE > 2, metallicity * 10 ** (slopes[1] * np.expm1(u))[:, None], 1.0)
        sigma = evaluate(E * np.exp(u), FITS, np)
        weight = np.exp((3 + slopes[0]) * u) / np.sqrt(0.3 * np.exp(3 * u) + 0.7)
        found.append(np.sum((half * w).ravel() * weight * np.einsum("ui,iu->u", shares, sigma)))
    hubble = 70.0 / constants.megaparsec * 1e3  # 1/s
    return 1e-7 * constants.speed_of_light * 1e2 / hubble * 1e-22 * np.array(found)


@functools.cache
def _fractions():
    return jax.jit(ion_fractions)


@functools.cache
@functools.cache
def _depth(**static):
    """One compiled function for all tests of the same kind."""
    return jax.jit(functools.partial(whim_optical_depth, n0=1e-7, cosmology=FLAT, **static))


THRESHOLDS = np.unique(np.concatenate(FITS.thresholds()))


@pytest.mark.parametrize("z", [0.01, 0.1, 0.5, 2.0, 5.0, 9.0])
def test_brute_force(z):
    rng = np.random.default_rng(int(100 * z))
    # Just above an edge at the source only a sliver of the line of sight absorbs with it; just below, none.
    at_source = THRESHOLDS[(0.31 * (1 + z) < THRESHOLDS) & (9.8 * (1 + z) > THRESHOLDS)] / (1 + z)
    here = THRESHOLDS[(THRESHOLDS > 0.31) & (THRESHOLDS < 9.8)]
    near = np.concatenate([rng.choice(at_source, 6) * (1 + s) for s in (-1e-6, 1e-6, 1e-3)] + [rng.choice(here, 4)])
    energy = np.concatenate([ENERGY, near * (1 + 1e-7)])
    for log10_T, log10_xi in ((4.0, 0.0), (6.0, -12.0), (7.2, 0.0), (8.0, 0.0), (8.0, 4.0), (5.7, 4.0)):
        found = _depth()(energy, z, log10_T=log10_T, log10_xi=log10_xi)
        expected = brute_force(z, log10_T, log10_xi, energy=energy)
        np.testing.assert_allclose(found, expected, rtol=5e-5, err_msg=f"log T {log10_T}, log xi {log10_xi}")


@pytest.mark.parametrize("z", [0.3, 4.0])
def test_brute_force_with_evolution(z):
    options = {"density_slope": 0.7, "metallicity_slope": -0.2, "metallicity": 0.3}
    found = _depth(**options)(ENERGY, z, log10_T=6.0)
    np.testing.assert_allclose(found, brute_force(z, 6.0, metallicity=0.3, slopes=(0.7, -0.2, 0.0)), rtol=5e-5)
    for slope in (0.5, -1.0):
        found = _depth(**options)(ENERGY, z, log10_T=6.0, temperature_slope=slope)
        expected = brute_force(z, 6.0, metallicity=0.3, slopes=(0.7, -0.2, slope))
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_einstein_de_sitter_with_an_inverse_cube():
    # Against a cross section E^-3 the integral is (1 - (1 + z)^-1.5) / 1.5 of it.
    node = running_integrals().node
    power = np.exp(-3.0 * node)
    columns = (power / 3.0, power / 9.0, power / 27.0, power, power)
    table = Running(jnp.asarray(node), *(jnp.asarray(c) for c in columns))

    for z in (0.01, 1.0, 9.0):
        cells = cells_of(jnp.asarray(z), lambda u: jnp.exp(1.5 * u), 20)
        found = along(cells, table, jnp.log(ENERGY)) * ENERGY**3
        np.testing.assert_allclose(found, (1 - (1 + z) ** -1.5) / 1.5, rtol=1e-5)


def test_parabolas_are_least_squares():
    cells = cells_of(jnp.asarray(1.0), lambda u: jnp.exp(3.0 * u), 4)
    sums = [np.zeros(5) for _ in range(3)]
    for i in range(4):
        u = np.linspace(cells.edge[i], cells.edge[i + 1], 20_001)
        parabola = np.polynomial.Polynomial.fit(u, np.exp(3 * u), 2)
        for order in range(3):
            sums[order][i] += parabola.deriv(order)(u[0])
            sums[order][i + 1] -= parabola.deriv(order)(u[-1])
    for jumps, expected in zip(cells[1:], sums, strict=True):
        np.testing.assert_allclose(jumps, expected, rtol=2e-3, atol=1e-3)


def test_running_integrals_are_those_of_the_cross_sections():
    table = running_integrals()
    rng = np.random.default_rng(3)
    x, w = np.polynomial.legendre.leggauss(12)
    for i in rng.choice(102, 12, replace=False):
        own = Running(jnp.asarray(table.node), *(jnp.asarray(column[:, i]) for column in table[1:]))
        a = rng.uniform(np.log(0.05), np.log(50.0), 40)
        b = a + rng.uniform(1e-3, 1.5, 40)
        first, second = look_up(own, a), look_up(own, b)
        for j in range(40):
            edges = np.log(FITS.thresholds()[i])
            cuts = np.unique([*np.linspace(a[j], b[j], 30), *edges[(edges > a[j]) & (edges < b[j])]])
            half = 0.5 * np.diff(cuts)[:, None]
            L = cuts[:-1, None] + half * (1 + x)
            sigma = evaluate(np.exp(L), FITS, np)[i]
            total = np.sum(half * w * sigma)
            rounding = 1e-14 * float(first[0][j])
            assert abs(float(first[0][j] - second[0][j]) - total) <= 1e-5 * total + rounding
            # S2(a) - S2(b) is (b - a) S1(b) plus the moment of sigma.
            moment = (b[j] - a[j]) * float(second[0][j]) + np.sum(half * w * sigma * (L - a[j]))
            assert float(first[1][j] - second[1][j]) == pytest.approx(moment, rel=1e-5, abs=1e-12)
            # And S3(a) - S3(b) two terms at b plus half the second moment.
            moment = (b[j] - a[j]) * float(second[1][j]) + 0.5 * (b[j] - a[j]) ** 2 * float(second[0][j])
            moment += 0.5 * np.sum(half * w * sigma * (L - a[j]) ** 2)
            assert float(first[2][j] - second[2][j]) == pytest.approx(moment, rel=1e-5, abs=1e-12)


def test_redshift_zero_has_its_value_and_its_gradient():
    shares = ion_fractions(6.0, 0.0)[PLACES] * abundance_table("wilm")[CHARGE - 1]
    slope = 1e-7 * COLUMN / 70.0 * np.asarray(shares) @ evaluate(ENERGY, FITS, np)

    def depth(z):
        return whim_optical_depth(ENERGY, z, n0=1e-7, log10_T=6.0, cosmology=FLAT)

    forward, back = jax.jit(jax.jacfwd(depth)), jax.jit(jax.jacrev(depth))
    assert (np.asarray(_depth()(ENERGY, 0.0, log10_T=6.0)) < 1e-15).all()
    np.testing.assert_allclose(forward(0.0), slope, rtol=1e-4)
    np.testing.assert_allclose(back(0.0), forward(0.0), rtol=1e-9)
    for z in (1e-6, 1e-4, 3e-3, 0.015):
        np.testing.assert_allclose(_depth()(ENERGY, z, log10_T=6.0), brute_force(z, 6.0), rtol=2e-5)


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

    at = {name: jnp.asarray(x) for name, x in AT.items()}
    found = jax.jit(jax.jacfwd(value))(at)
    for name, x in AT.items():
        h = 1e-4 * x if name in ("n0", "H0") else 1e-4 * max(1.0, abs(x))
        ends = [np.asarray(value(at | {name: jnp.asarray(x + k * h)})) for k in (-2, -1, 1, 2)]
        expected = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, err_msg=name)
    # Without evolution of the temperature the integral is another program.
    depth = functools.partial(whim_optical_depth, energy, n0=3e-7, cosmology=FLAT)
    slopes = jax.jit(jax.jacrev(lambda x: depth(x[0], log10_T=x[1])))(jnp.array([1.3, 6.1]))
    plain = jax.jit(lambda x: depth(x[0], log10_T=x[1]))
    for i in range(2):
        h = 1e-4 * np.eye(2)[i]
        ends = [np.asarray(plain(np.array([1.3, 6.1]) + k * h)) for k in (-2, -1, 1, 2)]
        expected = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12e-4
        np.testing.assert_allclose(slopes[:, i], expected, rtol=1e-5)


def test_gradient_in_the_abundances():
    wilm = jnp.asarray(abundance_table("wilm"))
    energy = np.array([0.6, 1.4])

    def value(x):
        return whim_optical_depth(energy, 1.0, n0=1e-7, log10_T=6.0, abundances=x, cosmology=FLAT)

    # It is linear in them.
    np.testing.assert_allclose(jax.jacrev(value)(wilm) @ wilm, value(wilm), rtol=1e-10)


def test_sources_side_by_side():
    z = jnp.array([0.0, 0.4, 3.0])
    many = jax.vmap(lambda z: _depth()(ENERGY, z, log10_T=6.0))(z)
    for row, one in zip(many, z, strict=True):
        np.testing.assert_allclose(row, _depth()(ENERGY, float(one), log10_T=6.0), rtol=1e-10, atol=1e-15)


# The table


@pytest.mark.parametrize("mode", MODES)
def test_table_has_the_transmission_of_the_integral(mode):
    rng = np.random.default_rng(5)
    z = np.array([0.0, 0.01, 0.7, 3.0, 9.0])
    for log10_xi, rates in ((-1.0, "modern"), (2.0, "older")):
        table = jax.jit(WhimTable(ENERGY, z, cosmology=FLAT, log10_xi=log10_xi, mode=mode, rates=rates))
        exact = _depth(log10_xi=log10_xi, mode=mode, rates=rates)
        for _ in range(60):
            log10_T, n0, metallicity = rng.uniform(4, 8), 10 ** rng.uniform(-8, -5), rng.uniform(0, 2)
            i = rng.integers(len(z))
            found = np.exp(-table(n0, log10_T, metallicity))[i]
            tau = exact(ENERGY, z[i], log10_T=log10_T, metallicity=metallicity) * n0 / 1e-7
            np.testing.assert_allclose(found, np.exp(-tau), atol=1e-4)
        # Whatever the density, a transmission is wrong by at most 1/e of the relative error of its optical depth.
        for log10_T in (4.05, 5.484, 6.37, *rng.uniform(4, 8, 20)):
            depth, tau = table(1e-7, log10_T)[2], exact(ENERGY, z[2], log10_T=log10_T)
            np.testing.assert_allclose(depth, tau, rtol=2.7e-4)


def test_table_takes_one_line_of_sight_or_many_with_their_own_gas():
    z, energy = np.array([0.2, 1.0]), np.stack([ENERGY, ENERGY[::-1]])
    table = WhimTable(energy, z, cosmology=FLAT)
    assert table(1e-7, 6.0).shape == (2, 15)
    own = table(np.array([1e-7, 2e-7]), np.array([5.5, 6.5]), np.array([0.1, 1.0]))
    for i in range(2):
        alone = WhimTable(energy[i], z[i], cosmology=FLAT)(*((1e-7, 5.5, 0.1), (2e-7, 6.5, 1.0))[i])
        np.testing.assert_allclose(own[i], alone, rtol=1e-12)
    evolving = WhimTable(ENERGY, 2.0, cosmology=FLAT, density_slope=0.5, metallicity_slope=-0.3)
    exact = whim_optical_depth(
        ENERGY, 2.0, n0=1e-7, log10_T=6.0, cosmology=FLAT, density_slope=0.5, metallicity_slope=-0.3
    )
    np.testing.assert_allclose(evolving(1e-7, 6.0), exact, rtol=1e-5)


def test_table_is_an_argument_of_a_compiled_function_with_smooth_gradients():
    table = WhimTable(ENERGY, np.array([0.5, 2.0]), cosmology=FLAT)
    value = jax.jit(lambda table, x: jnp.sum(table(x[0] * 1e-7, x[1], x[2])))
    gradient = jax.jit(jax.grad(value, argnums=1))
    for at in ((1.0, 5.03, 0.5), (3.0, 6.0, 1.0), (1.0, 7.97, 0.1)):
        found = gradient(table, jnp.array(at))
        for i in range(3):
            h = 1e-5 * np.eye(3)[i]
            expected = (value(table, np.array(at) + h) - value(table, np.array(at) - h)) / 2e-5
            assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)
    # A node of the spline is no kink.
    below, above = (
        gradient(table, jnp.array([1.0, 6.0 - 1e-9, 1.0])),
        gradient(table, jnp.array([1.0, 6.0 + 1e-9, 1.0])),
    )
    np.testing.assert_allclose(below, above, rtol=1e-6)


def test_table_is_worked_out_where_a_function_is_compiled_or_refuses_to():
    inside = jax.jit(lambda n0: WhimTable(ENERGY, 2.0, cosmology=FLAT)(n0, 6.0))
    np.testing.assert_allclose(inside(1e-7), WhimTable(ENERGY, 2.0, cosmology=FLAT)(1e-7, 6.0), rtol=1e-12)
    with pytest.raises(ValueError, match=r"worked out once.* found a traced value\. Use whim_optical_depth"):
        jax.jit(lambda z: WhimTable(ENERGY, z, cosmology=FLAT)(1e-7, 6.0))(1.0)
    with pytest.raises(TypeError, match="positional"):
        WhimTable(ENERGY, 2.0, FLAT)
    assert repr(WhimTable(ENERGY, [0.1, 2.0], cosmology=FLAT)) == "WhimTable(2 lines of sight, 15 energies)"


def test_table_in_single_precision():
    table = WhimTable(ENERGY, np.array([0.005, 0.5, 9.0]), cosmology=FLAT)
    for log10_T in (4.5, 6.0, 7.5):
        double = table(1e-7, log10_T)
        single = table(np.float32(1e-7), np.float32(log10_T), np.float32(1.0))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(np.exp(-single), np.exp(-double), atol=1e-5)


def test_integral_in_single_precision():
    flat = Cosmology.flat(H0=np.float32(70.0), Om0=np.float32(0.3))
    with jax.enable_x64(False):
        depth = jax.jit(functools.partial(whim_optical_depth, n0=1e-5, cosmology=flat))
        slope = jax.jit(jax.jacfwd(lambda z: whim_optical_depth(0.8, z, n0=1e-5, log10_T=6.5, cosmology=flat)))
        steep = jax.jit(jax.jacfwd(lambda z: whim_optical_depth(0.8, z, n0=1e-5, log10_T=6.5, cosmology=FLAT)))
        for z in (1e-4, 0.01, 0.3, 6.0):
            single, rise = depth(ENERGY, z, log10_T=6.5), slope(z)
            assert single.dtype == rise.dtype == jnp.float32
            with jax.enable_x64(True):
                double = 100 * _depth()(ENERGY.astype(np.float32), np.float32(z), log10_T=6.5)
                exact = steep(z)
            np.testing.assert_allclose(single, double, rtol=3e-6)
            np.testing.assert_allclose(rise, exact, rtol=1e-5)


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
def test_errors_of_the_table(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        WhimTable(*arguments, **options)


def test_out_of_the_domain_is_nan_where_traced():
    found = jax.jit(lambda z, n0: whim_optical_depth(1.0, z, n0=n0, log10_T=6.0, cosmology=FLAT))
    assert np.isnan(found(-0.5, 1e-7))
    assert np.isnan(found(0.5, -1e-7))
    assert found(0.5, 1e-7) > 0
    table = WhimTable(ENERGY, 1.0, cosmology=FLAT)
    assert np.isnan(jax.jit(table)(1e-7, 8.1)).all()
    with pytest.raises(ValueError, match="log10_T: expected between 4 and 8"):
        table(1e-7, 8.1)
    with pytest.raises(ValueError, match=r"log10_T: expected one number; found shape \(15,\)"):
        table(1e-7, np.full(15, 6.0))
    with pytest.raises(
        ValueError, match=r"n0: expected one number, or one for each line of sight, \(2,\); found shape"
    ):
        WhimTable(ENERGY, np.array([0.5, 1.0]), cosmology=FLAT)(np.ones(3), 6.0)
    assert np.isnan(
        jax.jit(lambda a: whim_optical_depth(1.0, 1.0, n0=1e-7, log10_T=6.0, abundances=a, cosmology=FLAT))(
            -jnp.ones(30)
        )
    )
    no_big_bang = Cosmology(H0=70.0, Om0=0.1, Ode0=2.5)
    assert np.isnan(whim_optical_depth(1.0, 3.0, n0=1e-7, log10_T=6.0, cosmology=no_big_bang))


def test_table_of_one_metallicity_is_the_general_one_there():
    z = np.array([0.4, 3.0])
    general, fixed = WhimTable(ENERGY, z, cosmology=FLAT), WhimTable(ENERGY, z, cosmology=FLAT, metallicity=0.3)
    np.testing.assert_allclose(fixed(2e-7, 5.7), general(2e-7, 5.7, 0.3), rtol=1e-6)
    assert fixed.coefficients.size == general.coefficients.size // 2
    with pytest.raises(ValueError, match="set up for one metallicity"):
        fixed(1e-7, 6.0, 0.3)
    with pytest.raises(ValueError, match="metallicity"):
        WhimTable(ENERGY, z, cosmology=FLAT, metallicity=-0.3)
