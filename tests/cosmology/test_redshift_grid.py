"""`RedshiftGrid`: the same numbers as the functions; and how both behave under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax import cosmology as hc
from hbm_jax.cosmology import quadrature

from .catalogue import FUNCTIONS, UNIVERSES, build, by_methods, draw_universes, numpy_integral, quantities

Z = np.random.default_rng(4).permutation(np.concatenate([[0.0, 10.0], np.random.default_rng(5).uniform(0, 10, 50)]))
POSITIVE = Z[Z > 0]
GRID = hc.RedshiftGrid(POSITIVE)
PLANCK = hc.FlatCosmology(H0=67.7, Om0=0.31, radiation=hc.Radiation(2.7255, 3.046, (0.0, 0.0, 0.06)))
COSMOLOGIES = {name: build(universe) for name, universe in UNIVERSES.items()} | {"radiation": PLANCK}


@pytest.mark.parametrize("name", COSMOLOGIES)
def test_equals_the_functions(name):
    cosmology = COSMOLOGIES[name]
    found, expected = by_methods(hc.RedshiftGrid(Z), cosmology), quantities(Z, cosmology, "few")
    for function in FUNCTIONS:
        np.testing.assert_allclose(
            found[function],
            expected[function],
            rtol=2e-10 if function == "differential_comoving_volume" else 1e-10,
            atol=1e-9,
            err_msg=function,
        )


def test_no_integral_from_outside_the_redshifts_is_valid():
    z = np.array([-0.1, np.nan, np.inf, 0.0, 1.0])

    @jax.jit
    def valid(z):
        panels = quadrature.locate(z, 8)
        below, above = quadrature.integral_in_panels(panels, 8, 0, PLANCK), quadrature.tail_in_panels(panels, 8, PLANCK)
        return below[1], above[1]

    for found in valid(z):
        assert found.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("z_max", [0.1, 1.3, 2.3, 10.0])
def test_panels_are_enough_for_every_range(z_max):
    z = np.append(np.geomspace(1e-6, z_max, 40), z_max)
    highest = 0.6 if z_max > 1 else 1.01
    universes = draw_universes(30, z_max, 0.01, highest, seed=11)
    batch = build(universes, H0=np.full(30, 70.0))
    grid = hc.RedshiftGrid(z)
    found = jax.jit(jax.vmap(hc.RedshiftGrid.comoving_distance, in_axes=(None, 0)))(grid, batch)
    expected = numpy_integral(z, universes, 1)
    assert np.max(np.abs(np.asarray(found) / batch.hubble_distance[:, None] / expected - 1)) < 1e-11


def test_heliocentric_redshift():
    z, z_hel, cosmology = POSITIVE, POSITIVE + 0.001, COSMOLOGIES["closed"]
    plain, shifted = by_methods(GRID, cosmology), by_methods(hc.RedshiftGrid(z, z_hel), cosmology)
    expected = (1 + z_hel) * plain["transverse_comoving_distance"]

    @jax.jit
    def both(z, z_hel, c):
        return [getattr(hc, name)(z, c, z_hel=z_hel) for name in ("luminosity_distance", "distmod")]

    many, few = both(z, z_hel, cosmology), both(z[:2], z_hel[:2], cosmology)
    for i, value in enumerate((expected, 5 * np.log10(np.abs(expected)) + 25)):
        np.testing.assert_allclose(shifted[("luminosity_distance", "distmod")[i]], value, rtol=1e-12)
        np.testing.assert_allclose(many[i], value, rtol=1e-12)
        np.testing.assert_allclose(few[i], value[:2], rtol=1e-10)
    for name in FUNCTIONS:
        if name not in ("luminosity_distance", "distmod"):
            np.testing.assert_array_equal(shifted[name], plain[name])


def test_gradient_is_that_of_the_function():
    def loss(f):
        return lambda om, w: jnp.sum(f(hc.Cosmology.flat(H0=70.0, Om0=om, w0=w)) ** 2)

    @jax.jit
    def gradients(om, w):
        return [jax.grad(loss(f), argnums=(0, 1))(om, w) for f in (GRID.distmod, lambda c: hc.distmod(GRID.z, c))]

    of_grid, of_function = gradients(0.3, -0.9)
    np.testing.assert_allclose(of_grid, of_function, rtol=1e-10)


def test_jit_and_vmap_agree_and_nothing_is_traced_twice():
    traces = []

    def distance(grid, z, cosmology):
        traces.append(1)
        return grid.luminosity_distance(cosmology), hc.luminosity_distance(z, cosmology)

    grid, jitted = hc.RedshiftGrid(Z), jax.jit(distance)
    for om in (0.2, 0.3):
        cosmology = hc.Cosmology.flat(H0=70.0, Om0=om)
        compiled = jitted(grid, Z, cosmology)
    assert len(traces) == 1
    batch = hc.FlatCosmology(H0=np.full(2, 70.0), Om0=np.array([0.2, 0.3]), w0=-np.ones(2), wa=np.zeros(2))
    batched = jax.jit(jax.vmap(distance, in_axes=(None, None, 0)))(grid, Z, batch)
    np.testing.assert_allclose(batched[0][1], compiled[0], rtol=1e-13)
    np.testing.assert_allclose(batched[1][1], compiled[1], rtol=1e-13)
    one_by_one = jax.jit(jax.vmap(hc.luminosity_distance, in_axes=(0, None)))(Z, cosmology)
    np.testing.assert_allclose(one_by_one, compiled[1], rtol=1e-10)


@pytest.mark.long
def test_plain_calls_agree_with_compiled_ones():
    z = np.linspace(0.1, 2.0, 12)
    grid, matrix = hc.RedshiftGrid(z), hc.RedshiftMatrix(z)
    for name, rule, part, lines in (("closed", "many", z, grid), ("radiation", "few", z[:4], matrix)):
        cosmology = COSMOLOGIES[name]
        functions, methods = quantities(part, cosmology, rule), by_methods(lines, cosmology)
        for function in FUNCTIONS:
            plain = getattr(hc, function)(part, cosmology), getattr(lines, function)(cosmology)
            for found, expected in zip(plain, (functions, methods), strict=True):
                np.testing.assert_allclose(found, expected[function], rtol=1e-12, err_msg=function)


def test_compiled_program_holds_only_what_contributes():
    grid = hc.RedshiftGrid(Z[Z > 0])

    def count(make, primitive):
        text = str(jax.make_jaxpr(lambda om, w: grid.distmod(make(om, w)))(0.3, -1.0))
        return text.count(f"= {primitive} ") + text.count(f"= {primitive}[")

    flat_w = count(lambda om, w: hc.Cosmology.flat(H0=70.0, Om0=om, w0=w), "exp")
    flat = count(lambda om, w: hc.Cosmology.flat(H0=70.0, Om0=om), "exp")
    assert (flat, flat_w) == (2, 3)
    multiply_flat = count(lambda om, w: hc.Cosmology.flat(H0=70.0, Om0=om, w0=w), "mul")
    multiply_curved = count(lambda om, w: hc.Cosmology(H0=70.0, Om0=om, Ode0=0.7, w0=w), "mul")
    assert multiply_curved > multiply_flat + 20


def everything(z, cosmology):
    return jnp.stack([getattr(hc, name)(z, cosmology) for name in FUNCTIONS])


def test_shapes_and_types():
    cosmology = COSMOLOGIES["concordance"]
    for shape in [(), (0,), (4, 5)]:
        z = np.full(shape, 0.5)
        assert jax.eval_shape(hc.RedshiftGrid(z).distmod, cosmology).shape == shape
        assert jax.eval_shape(everything, z, cosmology).shape == (len(FUNCTIONS), *shape)
    single = np.linspace(0.1, 2, 20, dtype=np.float32)
    with jax.enable_x64(False):
        luminosity_distance = jax.jit(hc.luminosity_distance)
        values = luminosity_distance(single, cosmology)
        assert values.dtype == np.float32
        assert jax.eval_shape(hc.RedshiftGrid(single).luminosity_distance, cosmology).dtype == np.float32
    expected = quantities(single.astype(float), cosmology)["luminosity_distance"]
    np.testing.assert_allclose(values, expected, rtol=3e-6)
    assert jax.eval_shape(hc.age, 1, cosmology).dtype == np.float64


def test_one_impossible_universe_is_nan_beyond_the_gap_only():
    z, bounces = np.linspace(0.1, 3, 30), hc.Cosmology(H0=70.0, Om0=0.1, Ode0=1.8)
    found = by_methods(hc.RedshiftGrid(np.resize(z, len(POSITIVE))), bounces)
    value, expected = found["distmod"][:30], quantities(z, bounces, "few")["distmod"]
    both = np.isfinite(value)
    np.testing.assert_allclose(value[both], expected[both], rtol=1e-10)
    assert both[0]
    assert np.isnan(value[-1])
    # All but those whose panel the gap begins in.
    assert (np.isfinite(expected) & ~both).sum() <= 1
    assert np.isnan(found["age"][:30]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": [0.1, np.nan]}, r"z\[1\]: expected a finite redshift not negative; found nan"),
        ({"z": [[0.1, 0.2], [-0.3, 0.4]]}, r"z\[1, 0\]: expected a finite redshift not negative; found -0.3"),
        ({"z": [0.1, 0.2], "z_hel": [0.1, np.inf]}, r"z_hel\[1\]: expected a finite redshift above -1; found inf"),
        ({"z": [0.1, 0.2], "z_hel": [0.1, 0.2, 0.3]}, r"z_hel: expected the shape of z, \(2,\); found \(3,\)"),
    ],
)
def test_bad_redshifts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        hc.RedshiftGrid(**arguments)
