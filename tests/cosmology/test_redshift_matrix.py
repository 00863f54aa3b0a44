"""`RedshiftMatrix`: the numbers of the functions, within the bounds its docstring states, and how they shrink."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from hbm_jax import cosmology as hc

from .catalogue import FUNCTIONS, UNIVERSES, build, by_methods, e_squared, numpy_integral, quantities

Z = np.concatenate([[1e-4, 1e-3], np.linspace(0.01, 2.4, 30)])
MATRIX, GRID = hc.RedshiftMatrix(Z), hc.RedshiftGrid(Z, num_panels=1500)
CONCORDANCE = hc.Cosmology.flat(H0=70.0, Om0=0.3)


def lattice(curved, wa, z_max=2.4):
    """Universes over the default priors of the supernova model, densest where Om0 vanishes and errors are largest."""
    om = np.concatenate([np.geomspace(1e-5, 0.1, 17), np.linspace(0.2, 1.0, 5)])
    axes = [om, np.linspace(0, 1.2, 9) if curved else [0.0], np.linspace(-3, 0, 9), [-3.0, 0.0, 2.0] if wa else [0.0]]
    om, ode, w0, wa = (v.ravel() for v in np.meshgrid(*axes, indexing="ij"))
    universes = np.stack([om, ode if curved else 1 - om, w0, wa])
    smallest = e_squared(np.expm1(np.linspace(0, np.log1p(z_max), 400))[:, None], universes).min(axis=0)
    return universes[:, smallest > (0.2 if curved else 0.0)]


CHUNK = 256  # universes at a time


@jax.jit
def comoving_distances(matrix, universes):
    """Distances in c / H0, (universes, redshifts)."""
    return jax.vmap(lambda u: matrix.comoving_distance(build(u)) / build(u).hubble_distance)(tuple(universes))


@functools.cache
def reference(curved, wa, z_max):
    """Universes and the integrals to all redshifts, in NumPy."""
    universes = lattice(curved, wa, z_max)
    return universes, numpy_integral(redshifts(z_max), universes, 1)


def redshifts(z_max):
    return np.concatenate([[1e-4, 1e-3], np.linspace(0.01, z_max, 30)])


def largest_error(universes, num_nodes, z=Z, expected=None):
    matrix = hc.RedshiftMatrix(z, num_nodes=num_nodes)
    expected = numpy_integral(z, universes, 1) if expected is None else expected
    num = universes.shape[1]
    padded = np.pad(universes, ((0, 0), (0, -num % CHUNK)), mode="edge").reshape(4, -1, CHUNK)
    found = np.concatenate([np.asarray(comoving_distances(matrix, padded[:, k])) for k in range(padded.shape[1])])
    return float(np.max(np.abs(found[:num] / expected - 1)))


# The bounds of the docstring (32 nodes) and of the comment on NUM_NODES.
@pytest.mark.parametrize(
    ("curved", "wa", "num_nodes", "bound"),
    [
        (False, False, 16, 1e-3),
        (False, False, 24, 1e-5),
        (False, False, 32, 1e-7),
        (False, False, 40, 2e-9),
        (False, True, 32, 1e-4),
        (True, False, 32, 3e-5),
    ],
)
def test_stated_bounds_hold_and_are_not_idle(curved, wa, num_nodes, bound):
    universes, expected = reference(curved, wa, 2.4)
    error = largest_error(universes, num_nodes, Z, expected)
    assert bound / 30 < error < bound


@pytest.mark.parametrize("z_max", [5.0, 10.0])
def test_stated_bounds_hold_to_redshift_ten(z_max):
    z = redshifts(z_max)
    for curved, wa, bound in [(False, False, 1e-7), (False, True, 1e-4), (True, False, 3e-5)]:
        universes, expected = reference(curved, wa, z_max)
        assert largest_error(universes, None, z, expected) < bound, (curved, wa)
    near = np.array([(0.3, 0.7, -1.0, 0.0), (0.28, 0.72, -1.0, 0.0), (0.32, 0.68, -1.0, 0.0)]).T
    assert largest_error(near, None, z) < 1e-13
    flat, expected = reference(False, False, z_max)
    assert z_max < 5 or largest_error(flat, 32, z, expected) > 1e-6, "which 32 nodes would not"


@pytest.mark.parametrize(("z_max", "num_nodes"), [(0.1, 32), (2.4, 32), (2.5, 48), (5.0, 64), (10.0, 80)])
def test_number_of_nodes_follows_the_largest_redshift(z_max, num_nodes):
    assert hc.RedshiftMatrix([0.05, z_max]).num_nodes == num_nodes
    assert hc.RedshiftMatrix([0.05, z_max], num_nodes=20).matrix.shape == (2, 20)


@pytest.mark.parametrize("breaks", [(), (0.3, 0.7)])
def test_samples_can_be_stacked(breaks):
    """Similar samples have equal structures; all have with a common end of the nodes, and the distances stay."""
    samples = [np.linspace(0.02, z_max, 20) for z_max in (1.3, 0.9, 0.28)]
    own = [hc.RedshiftMatrix(z, breaks=breaks) for z in samples]
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(matrix)] for matrix in own]
    assert jax.tree.structure(own[0]) == jax.tree.structure(own[2])
    assert shapes[0] == shapes[1]
    assert (shapes[0] == shapes[2]) == (not breaks), "both breaks are beyond the third sample"
    common = [hc.RedshiftMatrix(z, breaks=breaks, z_max=1.3) for z in samples]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *common)
    found = jax.jit(jax.vmap(lambda matrix: matrix.distmod(CONCORDANCE)))(stacked)
    for row, matrix in zip(found, own, strict=True):
        np.testing.assert_allclose(row, by_methods(matrix, CONCORDANCE)["distmod"], rtol=1e-13)


def test_products_are_of_full_precision_on_any_device():
    jaxpr = str(jax.make_jaxpr(MATRIX.distmod)(CONCORDANCE))
    assert jaxpr.count("dot_general[") == jaxpr.count("(Precision.HIGHEST, Precision.HIGHEST)") == 1


@pytest.mark.parametrize(("num_nodes", "bound"), [(16, 3e-10), (24, 1e-14), (32, 1e-14)])
def test_near_the_concordance_universe(num_nodes, bound):
    near = np.array([(0.3, 0.7, -1.0, 0.0), (0.28, 0.72, -1.0, 0.0), (0.32, 0.68, -1.0, 0.0)]).T
    assert largest_error(near, num_nodes) < bound


def test_error_falls_geometrically_with_the_number_of_nodes():
    hard = np.array([[0.02, 0.98, -2.5, 0.0]]).T
    errors = np.array([largest_error(hard, n) for n in (8, 12, 16, 20)])
    assert np.all(errors[1:] < 0.1 * errors[:-1]), "another digit at least for every four nodes"
    assert errors[0] > 1e-4


@pytest.mark.parametrize("name", ["concordance", "open", "closed", "matter", "cpl", "flat"])
def test_every_method_is_the_function_of_that_name(name):
    cosmology = CONCORDANCE if name == "flat" else build(UNIVERSES[name])
    found, expected = by_methods(MATRIX, cosmology), by_methods(GRID, cosmology)
    for function in FUNCTIONS:
        rtol = 1e-13 if name == "flat" else 1e-11
        np.testing.assert_allclose(found[function], expected[function], rtol=rtol, err_msg=function)


@pytest.mark.parametrize("universe", [(0.3, 0.7, -0.8, 0.0), (0.25, 0.8, -1.3, 0.4)])
def test_distances_agree_with_scipys_integral(universe):
    om, ode, *_ = universe
    curvature = np.sqrt(complex(1 - om - ode))
    hubble = 299792.458 / 70.0
    found = by_methods(MATRIX, build(universe))["distmod"]
    for z, mu in list(zip(Z, found, strict=True))[::5]:
        comoving = integrate.quad(lambda z: 1 / np.sqrt(e_squared(z, universe)), 0, z, epsabs=0, epsrel=1e-12)[0]
        transverse = (np.sinh(curvature * comoving) / curvature).real if abs(curvature) > 1e-6 else comoving
        np.testing.assert_allclose(mu, 5 * np.log10((1 + z) * hubble * transverse) + 25, rtol=1e-12)


def test_heliocentric_redshift_enters_the_luminosity_only():
    z_hel = Z + 0.001
    plain, found = by_methods(MATRIX, CONCORDANCE), by_methods(hc.RedshiftMatrix(Z, z_hel), CONCORDANCE)
    expected = (1 + z_hel) * plain["transverse_comoving_distance"]
    np.testing.assert_allclose(found["luminosity_distance"], expected, rtol=1e-14)
    np.testing.assert_allclose(found["distmod"], 5 * np.log10(expected) + 25, rtol=1e-13)
    for same in FUNCTIONS:
        if same not in ("luminosity_distance", "distmod"):
            np.testing.assert_array_equal(found[same], plain[same])


def test_gradients_are_those_of_the_functions():
    weight = np.linspace(-1, 1, len(Z))

    def loss(distmod):
        return lambda om, ode, w0, wa: jnp.sum(weight * distmod(build((om, ode, w0, wa))))

    @jax.jit
    def gradients(*point):
        of_function = jax.grad(loss(lambda c: hc.distmod(Z, c)), (0, 1, 2, 3))(*point)
        return of_function, [d(loss(MATRIX.distmod), (0, 1, 2, 3))(*point) for d in (jax.grad, jax.jacfwd)]

    of_function, of_matrix = gradients(0.3, 0.75, -0.9, 0.2)
    for found in of_matrix:
        np.testing.assert_allclose(found, of_function, rtol=1e-9)


def test_it_may_be_an_argument_of_a_compiled_function():
    traces = []

    @jax.jit
    def by_object(matrix, om):
        traces.append(1)
        return matrix.distmod(hc.Cosmology.flat(H0=70.0, Om0=om)), matrix.lookback_time(CONCORDANCE)

    as_constants = jax.jit(jax.vmap(lambda om: MATRIX.distmod(hc.Cosmology.flat(H0=70.0, Om0=om))))
    batched = as_constants(np.array([0.2, 0.4]))
    for i, om in enumerate((0.2, 0.4)):
        expected = by_methods(MATRIX, hc.Cosmology.flat(H0=70.0, Om0=om))["distmod"]
        distmod, lookback = by_object(MATRIX, om)
        np.testing.assert_allclose(distmod, expected, rtol=1e-14)
        np.testing.assert_allclose(lookback, by_methods(MATRIX, CONCORDANCE)["lookback_time"], rtol=1e-13)
        np.testing.assert_allclose(batched[i], expected, rtol=1e-14)
    assert len(traces) == 1


def test_it_is_a_pytree_of_its_arrays():
    leaves, structure = jax.tree.flatten(MATRIX)
    assert len(leaves) == 5
    again = jax.tree.unflatten(structure, leaves)
    assert again.num_nodes == MATRIX.num_nodes
    same = (by_methods(lines, CONCORDANCE)["distmod"] for lines in (again, MATRIX))
    np.testing.assert_array_equal(*same)


def test_one_impossible_universe_is_nan_with_finite_gradients_elsewhere():
    def distmod(ode):
        return MATRIX.distmod(hc.Cosmology(H0=70.0, Om0=0.1, Ode0=ode))

    def values(ode):
        return by_methods(MATRIX, hc.Cosmology(H0=70.0, Om0=0.1, Ode0=ode))["distmod"]

    assert np.isnan(values(1.8)).all(), "as the class says: every distance, not those beyond the gap only"
    expected = quantities(Z, hc.Cosmology(H0=70.0, Om0=0.1, Ode0=1.0))["distmod"]
    np.testing.assert_allclose(values(1.0), expected, atol=1e-6)
    masked = jax.jit(jax.grad(lambda ode: jnp.sum(jnp.where(jnp.isfinite(distmod(ode)), distmod(ode), 0.0))))
    ends = [float(values(1.0 + step).sum()) for step in (-1e-4, 1e-4)]
    np.testing.assert_allclose(masked(1.0), (ends[1] - ends[0]) / 2e-4, rtol=1e-5)
    assert masked(1.8) == 0.0


def test_shapes():
    for shape in [(), (1,), (4, 5)]:
        matrix = hc.RedshiftMatrix(np.full(shape, 0.5), num_nodes=8)
        assert matrix.matrix.shape == (*shape, 8)
        for name in FUNCTIONS:
            assert jax.eval_shape(getattr(hc.RedshiftMatrix, name), matrix, CONCORDANCE).shape == shape
    at_zero = by_methods(hc.RedshiftMatrix([0.0, *Z[1:]]), CONCORDANCE)
    assert at_zero["comoving_distance"][0] == 0.0
    assert at_zero["distmod"][0] == -np.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": [0.1, np.nan]}, r"z\[1\]: expected a finite redshift not negative; found nan"),
        ({"z": [0.1, -0.3]}, r"z\[1\]: expected a finite redshift not negative; found -0.3"),
        ({"z": [0.1, 0.2], "z_hel": [0.1, np.inf]}, r"z_hel\[1\]: expected a finite redshift above -1; found inf"),
        ({"z": [0.1, 0.2], "z_hel": [0.1, -1.0]}, r"z_hel\[1\]: expected a finite redshift above -1; found -1.0"),
        ({"z": [0.1, 0.2], "z_hel": [0.1]}, r"z_hel: expected the shape of z, \(2,\); found \(1,\)"),
        ({"z": [0.1, 0.9], "z_max": 0.5}, r"z_max: expected at least the largest redshift, 0\.9; found 0\.5"),
    ],
)
def test_bad_redshifts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        hc.RedshiftMatrix(**arguments)


@pytest.mark.parametrize("kind", [hc.RedshiftMatrix, hc.RedshiftGrid])
def test_traced_redshifts_are_refused(kind):
    with pytest.raises(ValueError, match="found redshifts traced by a JAX transformation"):
        jax.eval_shape(lambda z: kind(z).distmod(CONCORDANCE), Z)


def test_the_number_of_nodes_follows_from_the_largest_redshift_with_breaks_too():
    z = np.array([0.1, 2.0, 30.0])
    assert hc.RedshiftMatrix(z, breaks=(0.3, 0.7)).num_nodes == hc.RedshiftMatrix(z).num_nodes > 32
