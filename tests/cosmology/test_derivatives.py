"""Gradients: against finite differences, forward against reverse, and wherever a formula changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax import cosmology as hc
from hbm_jax.cosmology import distances

from .catalogue import FUNCTIONS, JITTED, UNIVERSES, build

MANY = np.linspace(0.05, 3.0, 21)
Z = {"few": MANY[::5], "many": MANY}
NAMES = ("concordance", "closed", "open", "cpl", "phantom")


# The formulas are the same for few and many redshifts; of the few, one quantity an integral is enough.
QUANTITIES = {"few": ("luminosity_distance", "lookback_time", "age"), "many": FUNCTIONS}


def everything(z, cosmology):
    """All quantities as one array, so that one compiled program serves them all."""
    rule = "few" if z.size <= distances.FEW else "many"
    return jnp.stack([getattr(hc, name)(z, cosmology) for name in QUANTITIES[rule]])


def central(f, x, step):
    """Derivative of fourth order in the step."""
    return (8 * (f(x + step) - f(x - step)) - (f(x + 2 * step) - f(x - 2 * step))) / (12 * step)


@pytest.mark.parametrize("rule", Z)
def test_gradient_in_every_parameter(rule):
    z = jnp.asarray(Z[rule])

    def f(parameters):
        return everything(z, build(parameters[1:], H0=parameters[0]))

    jitted, forward, reverse = jax.jit(f), jax.jit(jax.jacfwd(f)), jax.jit(jax.jacrev(lambda p: jnp.sum(f(p), axis=1)))
    for name in NAMES:
        parameters = np.array([70.0, *UNIVERSES[name]])
        exact = forward(parameters)
        scale = np.maximum(np.max(np.abs(exact), axis=1), 1e-9)  # E does not depend on H0
        assert np.max(np.abs(np.sum(exact, axis=1) - reverse(parameters)) / scale) < 1e-11
        for i, step in enumerate([0.1, 1e-5, 1e-5, 1e-5, 1e-5]):
            unit = np.eye(5)[i]
            difference = central(lambda t, p=parameters, e=unit: np.asarray(jitted(p + t * e)), 0.0, step)
            error = np.max(np.abs(difference - exact[..., i]), axis=1) / scale[:, i]
            assert np.all(error < 1e-7), (name, i, error)


@pytest.mark.parametrize("rule", Z)
def test_gradient_in_redshift(rule):
    z = jnp.asarray(Z[rule])
    value = jax.jit(everything)
    forward = jax.jit(lambda z, c: jax.jvp(lambda z: everything(z, c), (z,), (jnp.ones_like(z),))[1])
    reverse = jax.jit(jax.jacrev(lambda z, c: jnp.sum(everything(z, c), axis=1)))
    for name in NAMES:
        c = build(UNIVERSES[name])
        exact = forward(z, c)
        scale = np.max(np.abs(exact), axis=1, keepdims=True)
        assert np.max(np.abs(exact - reverse(z, c)) / scale) < 1e-12
        difference = central(lambda t, c=c: np.asarray(value(z + t, c)), 0.0, 1e-3)
        assert np.max(np.abs(exact - difference) / scale) < 1e-6


@pytest.mark.parametrize("rule", Z)
def test_redshift_derivatives_are_those_of_the_integrand(rule):
    def derivatives(f, z, cosmology):
        def slope(z):
            return jax.jvp(lambda z: f(z, cosmology), (z,), (jnp.ones_like(z),))[1]

        return f(z, cosmology), *jax.jvp(slope, (z,), (jnp.ones_like(z),))

    def inverse_hubble_rate(z, cosmology):
        return cosmology.hubble_distance * hc.inv_efunc(z, cosmology)

    z = jnp.asarray(Z[rule])
    ours = jax.jit(lambda z, c: derivatives(hc.comoving_distance, z, c))
    integrand = jax.jit(lambda z, c: derivatives(inverse_hubble_rate, z, c))
    for universe in UNIVERSES.values():
        cosmology = build(universe)
        _, first, second = ours(z, cosmology)
        expected, curvature, _ = integrand(z, cosmology)
        np.testing.assert_allclose(first, expected, rtol=1e-10)
        assert np.max(np.abs(second - curvature)) < 1e-7 * np.max(np.abs(curvature))


@pytest.mark.parametrize("rule", Z)
def test_curvature_through_zero(rule):
    z = jnp.asarray(Z[rule])

    def f(ok, z):
        return hc.transverse_comoving_distance(z, hc.Cosmology(H0=70.0, Om0=0.3, Ode0=0.7 - ok))

    value, forward, reverse = jax.jit(f), jax.jit(jax.jacfwd(f)), jax.jit(jax.jacrev(f))
    forward_over_reverse = jax.jit(jax.jacfwd(jax.jacrev(f)))
    for ok in (-0.3, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.3):
        first, second = forward(ok, z), forward_over_reverse(ok, z)
        np.testing.assert_allclose(first, reverse(ok, z), rtol=1e-12)
        np.testing.assert_allclose(first, central(lambda t: np.asarray(value(t, z)), ok, 1e-3), rtol=1e-8)
        np.testing.assert_allclose(second, central(lambda t: np.asarray(forward(t, z)), ok, 1e-3), rtol=1e-8)


def test_flat_is_the_limit_and_its_gradient_runs_along_flat_universes():
    for z in Z.values():
        flat = jax.jit(lambda om, z=z: hc.distmod(z, hc.Cosmology.flat(H0=70.0, Om0=om)))
        curved = jax.jit(lambda om, z=z: hc.distmod(z, hc.Cosmology(H0=70.0, Om0=om, Ode0=1 - om)))
        np.testing.assert_allclose(flat(0.3), curved(0.3), rtol=1e-14)
        np.testing.assert_allclose(jax.jacfwd(flat)(0.3), jax.jacfwd(curved)(0.3), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 30])
def test_redshift_zero(size):
    z = jnp.zeros(size).at[1:].set(1.0)
    slopes = {
        "comoving_distance": "hubble_distance",
        "transverse_comoving_distance": "hubble_distance",
        "luminosity_distance": "hubble_distance",
        "angular_diameter_distance": "hubble_distance",
        "lookback_time": "hubble_time",
        "differential_comoving_volume": None,
    }

    def f(z0, c, names=tuple(slopes)):
        return jnp.stack([getattr(hc, name)(z.at[0].set(z0), c)[0] for name in names])

    def one(z0, c):
        return f(z0, c, ["transverse_comoving_distance"])

    first = jax.jit(lambda z0, c: (f(z0, c), *jax.jacfwd(f, argnums=(0, 1))(z0, c)))
    second = jax.jit(jax.jacrev(jax.jacfwd(one, argnums=(0, 1)), argnums=(0, 1)))
    for ok in (-0.1, 0.0, 0.1):
        cosmology = hc.Cosmology(H0=70.0, Om0=0.3, Ode0=0.7 - ok)
        value, in_z, in_cosmology = first(0.0, cosmology)
        expected = [0.0 if slope is None else getattr(cosmology, slope) for slope in slopes.values()]
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_allclose(in_z, expected, rtol=1e-10, atol=1e-12)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(in_cosmology))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(second(0.0, cosmology)))
    assert JITTED["distmod"](z, cosmology)[0] == -np.inf


@pytest.mark.parametrize("size", [4, 40])
def test_no_way_is_nan_and_poisons_no_gradient(size):
    z = jnp.linspace(0.1, 9.0, size)

    def bounces(om):  # E^2 < 0 between z = 0.57 and 7.76
        return hc.Cosmology(H0=70.0, Om0=om, Ode0=1.8)

    value = JITTED["luminosity_distance"](z, bounces(0.1))
    reached = np.isfinite(value)
    assert reached[0]
    assert not reached[-1]
    assert not np.any(np.diff(reached.astype(int)) > 0), "beyond the gap there is no way either"
    assert np.all(np.isnan(JITTED["age"](z, bounces(0.1))) == (z < 7.76))

    def masked(om, z):
        values = everything(z, bounces(om))
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0.0), axis=1)

    for gradient in jax.jit(jax.jacrev(masked, argnums=(0, 1)))(0.1, z):
        assert np.all(np.isfinite(gradient))
    first = jax.jit(lambda om: masked(om, z[:1])[0])
    np.testing.assert_allclose(jax.jit(jax.grad(first))(0.1), central(first, 0.1, 1e-4), rtol=1e-6)


@pytest.mark.parametrize("size", [3, 30])
def test_redshifts_out_of_domain_are_nan_and_leave_the_others_alone(size):
    z = jnp.linspace(0.1, 1.0, size)
    bad = jnp.concatenate([z, jnp.array([-0.1, jnp.nan, jnp.inf])])
    cosmology = build(UNIVERSES["concordance"])
    for name in ("luminosity_distance", "age"):
        values = JITTED[name](bad, cosmology)
        assert np.all(np.isnan(values[size:]))
        np.testing.assert_allclose(values[:size], JITTED[name](z, cosmology), rtol=1e-13)
