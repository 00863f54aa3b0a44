"""Gradients: against finite differences, forward against reverse, and wherever a formula changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hbm_jax import cosmology as hc
from hbm_jax.cosmology import distances

from .catalogue import FUNCTIONS, SIZES, UNIVERSES, build, e_squared, quantities

Z = {"few": np.linspace(0.05, 2.5, SIZES["few"]), "many": np.linspace(0.05, 3.0, SIZES["many"])}
# Many redshifts are summed by another program; its formulas are the same.
RULES = ["few", pytest.param("many", marks=pytest.mark.long)]
NAMES = ("concordance", "closed", "open", "cpl", "phantom")
# The formulas are the same for few and many redshifts; of the few, one quantity an integral is enough.
QUANTITIES = {"few": ("luminosity_distance", "lookback_time", "age"), "many": FUNCTIONS}


def everything(z, cosmology):
    """All quantities as one array, so that one compiled program serves them all."""
    rule = "few" if z.size <= distances.FEW else "many"
    return jnp.stack([getattr(hc, name)(z, cosmology) for name in QUANTITIES[rule]])


def of_parameters(z, parameters):
    return everything(z, build(parameters[1:], H0=parameters[0]))


@jax.jit
def forward(z, parameters, dz, direction):
    """Derivatives along one direction, (quantities, redshifts)."""
    return jax.jvp(of_parameters, (z, parameters), (dz, direction))[1]


@jax.jit
def reverse(z, parameters, weights):
    """Gradient of a weighted sum of all quantities."""
    return jax.grad(lambda z, p: jnp.sum(weights * of_parameters(z, p)), argnums=(0, 1))(z, parameters)


def values(z, parameters, rule):
    found = quantities(z, build(tuple(parameters[1:]), H0=parameters[0]), rule)
    return np.stack([found[name] for name in QUANTITIES[rule]])


def central(f, x, step):
    """Derivative of fourth order in the step."""
    return (8 * (f(x + step) - f(x - step)) - (f(x + 2 * step) - f(x - 2 * step))) / (12 * step)


@pytest.mark.parametrize("rule", RULES)
def test_gradient_in_every_parameter_and_redshift(rule):
    z = Z[rule]
    rng = np.random.default_rng(3)
    for name in NAMES:
        parameters = np.array([70.0, *UNIVERSES[name]])
        in_z = np.asarray(forward(z, parameters, np.ones_like(z), np.zeros(5)))
        units = np.eye(5)
        exact = np.stack([forward(z, parameters, np.zeros_like(z), unit) for unit in units], axis=-1)
        scale = np.maximum(np.max(np.abs(exact), axis=1), 1e-9)  # E does not depend on H0
        for i, step in enumerate([0.1, 1e-5, 1e-5, 1e-5, 1e-5]):
            difference = central(lambda t, p=parameters, e=units[i]: values(z, p + t * e, rule), 0.0, step)
            error = np.max(np.abs(difference - exact[..., i]), axis=1) / scale[:, i]
            assert np.all(error < 1e-7), (name, i, error)
        scale_z = np.max(np.abs(in_z), axis=1, keepdims=True)
        difference = central(lambda t, p=parameters: values(z + t, p, rule), 0.0, 1e-3)
        assert np.max(np.abs(in_z - difference) / scale_z) < 1e-6, name
        weights = rng.choice([-1.0, 1.0], in_z.shape) * rng.uniform(0.5, 1.0, in_z.shape) / scale_z
        back_z, back = reverse(z, parameters, weights)
        np.testing.assert_allclose(back_z, np.sum(weights * in_z, axis=0), atol=1e-12 * len(in_z))
        size = np.sum(np.abs(weights[..., None] * exact), axis=(0, 1))
        assert np.max(np.abs(back - np.sum(weights[..., None] * exact, axis=(0, 1))) / size) < 1e-11


@pytest.mark.parametrize("rule", RULES)
def test_redshift_derivatives_are_those_of_the_integrand(rule):
    @jax.jit
    def first_and_second(z, cosmology):
        def slope(z):
            return jax.jvp(lambda z: hc.comoving_distance(z, cosmology), (z,), (jnp.ones_like(z),))[1]

        return jax.jvp(slope, (z,), (jnp.ones_like(z),))

    z = Z[rule]
    for universe in UNIVERSES.values():
        cosmology = build(universe)
        first, second = first_and_second(z, cosmology)
        # E^2 is analytic: its slope by a step along the imaginary axis.
        integrand = cosmology.hubble_distance * e_squared(z + 1e-30j, universe) ** -0.5
        np.testing.assert_allclose(first, integrand.real, rtol=1e-10)
        curvature = integrand.imag / 1e-30
        assert np.max(np.abs(second - curvature)) < 1e-7 * np.max(np.abs(curvature))


@pytest.mark.parametrize("rule", RULES)
def test_curvature_through_zero(rule):
    z = Z[rule]

    @jax.jit
    def all_of(ok):
        def f(ok):
            return hc.transverse_comoving_distance(z, hc.Cosmology(H0=70.0, Om0=0.3, Ode0=0.7 - ok))

        return f(ok), jax.jacfwd(f)(ok), jax.jacrev(f)(ok), jax.jacfwd(jax.jacrev(f))(ok)

    def part(which):
        return lambda ok: np.asarray(all_of(ok)[which])

    for ok in (-0.3, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.3):
        _, first, back, second = all_of(ok)
        np.testing.assert_allclose(first, back, rtol=1e-12)
        np.testing.assert_allclose(first, central(part(0), ok, 1e-3), rtol=1e-8)
        np.testing.assert_allclose(second, central(part(1), ok, 1e-3), rtol=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_flat_is_the_limit_and_its_gradient_runs_along_flat_universes(rule):
    @jax.jit
    def both(om):
        def flat(om):
            return hc.distmod(Z[rule], hc.Cosmology.flat(H0=70.0, Om0=om))

        def curved(om):
            return hc.distmod(Z[rule], hc.Cosmology(H0=70.0, Om0=om, Ode0=1 - om))

        return [jax.jvp(f, (om,), (1.0,)) for f in (flat, curved)]

    flat, curved = both(0.3)
    np.testing.assert_allclose(flat[0], curved[0], rtol=1e-14)
    np.testing.assert_allclose(flat[1], curved[1], rtol=1e-12)


SLOPES_AT_ZERO = {
    "comoving_distance": "hubble_distance",
    "transverse_comoving_distance": "hubble_distance",
    "luminosity_distance": "hubble_distance",
    "angular_diameter_distance": "hubble_distance",
    "lookback_time": "hubble_time",
    "differential_comoving_volume": None,
}


@pytest.mark.parametrize("size", [1, pytest.param(SIZES["many"], marks=pytest.mark.long)])
def test_redshift_zero(size):
    def f(z0, c, names=tuple(SLOPES_AT_ZERO)):
        z = jnp.concatenate([jnp.reshape(z0, 1), np.ones(size - 1)])
        return jnp.stack([getattr(hc, name)(z, c)[0] for name in names])

    def one(z0, c):
        return f(z0, c, ["transverse_comoving_distance"])[0]

    @jax.jit
    def all_of(z0, c):
        ones, none = jax.tree.map(jnp.ones_like, (z0, c)), jax.tree.map(jnp.zeros_like, (z0, c))
        value, in_z = jax.jvp(f, (z0, c), (ones[0], none[1]))
        in_cosmology = jax.jvp(f, (z0, c), (none[0], ones[1]))[1]
        # What is not finite in any second derivative is in this sum of them.
        return value, in_z, in_cosmology, jax.jvp(jax.grad(one, argnums=(0, 1)), (z0, c), ones)[1]

    for ok in (-0.1, 0.0, 0.1):
        cosmology = hc.Cosmology(H0=70.0, Om0=0.3, Ode0=0.7 - ok)
        value, in_z, in_cosmology, second = all_of(0.0, cosmology)
        expected = [0.0 if slope is None else getattr(cosmology, slope) for slope in SLOPES_AT_ZERO.values()]
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_allclose(in_z, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(in_cosmology, 0)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(second))
    assert quantities(np.zeros(1), cosmology, "few" if size == 1 else "many")["distmod"][0] == -np.inf


def bounces(om):
    """Build a universe with E^2 < 0 between z = 0.57 and 7.76."""
    return hc.Cosmology(H0=70.0, Om0=om, Ode0=1.8)


@pytest.mark.parametrize("rule", RULES)
def test_no_way_is_nan_and_poisons_no_gradient(rule):
    z = np.linspace(0.1, 9.0, SIZES[rule])
    found = quantities(z, bounces(0.1), rule)
    reached = np.isfinite(found["luminosity_distance"])
    assert reached[0]
    assert not reached[-1]
    assert not np.any(np.diff(reached.astype(int)) > 0), "beyond the gap there is no way either"
    assert np.all(np.isnan(found["age"]) == (z < 7.76))
    for name in FUNCTIONS:
        if name not in ("age", "efunc"):
            np.testing.assert_array_equal(np.isfinite(found[name]), reached, err_msg=name)
    np.testing.assert_array_equal(np.isfinite(found["efunc"]), (z < 0.57) | (z > 7.76))

    @jax.jit
    def slopes(om, z, weights):
        def masked(om, z):
            values = everything(z, bounces(om))
            return weights @ jnp.sum(jnp.where(jnp.isfinite(values), values, 0.0), axis=1)

        return jax.grad(masked, argnums=(0, 1))(om, z)

    for name, weights in zip(QUANTITIES[rule], np.eye(len(QUANTITIES[rule])), strict=True):
        in_om, in_z = slopes(0.1, z, weights)
        # To the redshifts that are reached and stay so.
        known = np.isfinite(found[name])

        def total(om, name=name, known=known):
            return np.sum(quantities(z, bounces(om), rule)[name][known])

        assert float(in_om) == pytest.approx(central(total, 0.1, 1e-4), rel=1e-6), name
        np.testing.assert_array_equal(in_z[~known], 0.0, err_msg=name)
        assert np.isfinite(in_z).all()
        assert in_z[known].all()


@functools.cache
def good(rule):
    z = np.linspace(0.1, 1.0, SIZES[rule])
    return z, quantities(z, build(UNIVERSES["concordance"]), rule)


@pytest.mark.parametrize("rule", RULES)
def test_redshifts_out_of_domain_are_nan_and_leave_the_others_alone(rule):
    z, expected = good(rule)
    bad = np.concatenate([z[:-3], [-0.1, np.nan, np.inf]])
    found = quantities(bad, build(UNIVERSES["concordance"]), rule)
    for name in FUNCTIONS:
        if name != "efunc":  # which is also that of the future
            assert np.all(np.isnan(found[name][-3:])), name
        np.testing.assert_allclose(found[name][:-3], expected[name][:-3], rtol=1e-13)
