"""`RedshiftGrid`: the same numbers as the functions; and how both behave under JAX's transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax import cosmology as hc
from hbm_jax.cosmology import distances

from .catalogue import FUNCTIONS, JITTED, UNIVERSES, build, draw_universes

Z = np.random.default_rng(4).permutation(np.concatenate([[0.0, 10.0], np.random.default_rng(5).uniform(0, 10, 50)]))
GRID_JITTED = {name: jax.jit(getattr(hc.RedshiftGrid, name)) for name in FUNCTIONS}
PLANCK = hc.FlatCosmology(H0=67.7, Om0=0.31, radiation=hc.Radiation(2.7255, 3.046, (0.0, 0.0, 0.06)))
COSMOLOGIES = {name: build(universe) for name, universe in UNIVERSES.items()} | {"radiation": PLANCK}


@pytest.mark.parametrize("name", COSMOLOGIES)
def test_equals_the_functions(name):
    cosmology, grid = COSMOLOGIES[name], hc.RedshiftGrid(Z)
    for function in FUNCTIONS:
        np.testing.assert_allclose(
            GRID_JITTED[function](grid, cosmology),
            np.concatenate([JITTED[function](z, cosmology) for z in Z.reshape(-1, distances.FEW // 2)]),
            rtol=2e-10 if function == "differential_comoving_volume" else 1e-10,
            atol=1e-9,
            err_msg=function,
        )


@pytest.mark.parametrize("z_max", [0.1, 1.3, 2.3, 10.0])
def test_panels_are_enough_for_every_range(z_max):
    z = np.append(np.geomspace(1e-6, z_max, 40), z_max)
    highest = 0.6 if z_max > 1 else 1.01
    batch = build(
        tuple(jnp.asarray(v) for v in draw_universes(30, z_max, 0.01, highest, seed=11)), H0=jnp.full(30, 70.0)
    )
    default, finer = hc.RedshiftGrid(z), hc.RedshiftGrid(z, num_panels=1500)
    a, b = (jax.jit(jax.vmap(grid.comoving_distance))(batch) for grid in (default, finer))
    assert np.max(np.abs(a / b - 1)) < 1e-11


def test_redshifts_may_be_traced():
    cosmology = COSMOLOGIES["cpl"]
    inside = jax.jit(lambda z: hc.RedshiftGrid(z).distmod(cosmology))(Z[Z > 0])
    np.testing.assert_allclose(inside, GRID_JITTED["distmod"](hc.RedshiftGrid(Z[Z > 0]), cosmology), rtol=1e-12)


def test_heliocentric_redshift():
    z, z_hel, cosmology = Z[Z > 0], Z[Z > 0] + 0.001, COSMOLOGIES["closed"]
    grid = hc.RedshiftGrid(z, z_hel)
    expected = (1 + z_hel) * JITTED["transverse_comoving_distance"](z, cosmology)
    for name, value in [("luminosity_distance", expected), ("distmod", 5 * np.log10(np.abs(expected)) + 25)]:
        jitted = jax.jit(lambda z, z_hel, c, name=name: getattr(hc, name)(z, c, z_hel=z_hel))
        np.testing.assert_allclose(GRID_JITTED[name](grid, cosmology), value, rtol=1e-12)
        np.testing.assert_allclose(jitted(z, z_hel, cosmology), value, rtol=1e-12)
        np.testing.assert_allclose(jitted(z[:2], z_hel[:2], cosmology), value[:2], rtol=1e-10)
    a, b = (GRID_JITTED["angular_diameter_distance"](g, cosmology) for g in (grid, hc.RedshiftGrid(z)))
    np.testing.assert_array_equal(a, b)


def test_gradient_is_that_of_the_function():
    grid = hc.RedshiftGrid(Z[Z > 0])

    def loss(f):
        return lambda om, w: jnp.sum(f(hc.Cosmology.flat(H0=70.0, Om0=om, w0=w)) ** 2)

    of_grid = jax.jit(jax.grad(loss(grid.distmod), argnums=(0, 1)))(0.3, -0.9)
    of_function = jax.jit(jax.grad(loss(lambda c: hc.distmod(grid.z, c)), argnums=(0, 1)))(0.3, -0.9)
    np.testing.assert_allclose(of_grid, of_function, rtol=1e-10)


def test_jit_vmap_and_plain_agree_and_nothing_is_traced_twice():
    traces = []

    def distance(grid, z, cosmology):
        traces.append(1)
        return grid.luminosity_distance(cosmology), hc.luminosity_distance(z, cosmology)

    grid, jitted = hc.RedshiftGrid(Z), jax.jit(distance)
    for om in (0.2, 0.3):
        cosmology = hc.Cosmology.flat(H0=70.0, Om0=om)
        compiled = jitted(grid, Z, cosmology)
    assert len(traces) == 1
    for a, b in zip(compiled, distance(grid, Z, cosmology), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    batch = hc.FlatCosmology(H0=jnp.full(2, 70.0), Om0=jnp.array([0.2, 0.3]), w0=-jnp.ones(2), wa=jnp.zeros(2))
    batched = jax.jit(jax.vmap(distance, in_axes=(None, None, 0)))(grid, Z, batch)
    np.testing.assert_allclose(batched[0][1], compiled[0], rtol=1e-13)
    np.testing.assert_allclose(batched[1][1], compiled[1], rtol=1e-13)
    one_by_one = jax.jit(jax.vmap(hc.luminosity_distance, in_axes=(0, None)))(Z, cosmology)
    np.testing.assert_allclose(one_by_one, compiled[1], rtol=1e-10)


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
        values = JITTED["luminosity_distance"](single, cosmology)
        assert values.dtype == np.float32
        assert jax.eval_shape(hc.RedshiftGrid(single).luminosity_distance, cosmology).dtype == np.float32
    np.testing.assert_allclose(values, JITTED["luminosity_distance"](single.astype(float), cosmology), rtol=3e-6)
    assert jax.eval_shape(hc.age, 1, cosmology).dtype == np.float64


def test_one_impossible_universe_is_nan_beyond_the_gap_only():
    z, bounces = np.linspace(0.1, 3, 30), hc.Cosmology(H0=70.0, Om0=0.1, Ode0=1.8)
    value = GRID_JITTED["distmod"](hc.RedshiftGrid(z), bounces)
    np.testing.assert_allclose(value[0], JITTED["distmod"](z[:1], bounces)[0], rtol=1e-10)
    assert np.isnan(value[-1])


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
