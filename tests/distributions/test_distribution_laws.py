"""Laws that every distribution keeps: density, derivatives and draws against the independent ones of the catalogue.

Each distribution is compiled for its density with derivatives, for its draws, and for single precision; parameters are
arguments. The density is evaluated in two ways at once: of a batch whose parameters broadcast, and of single objects
mapped over.
"""

import warnings
from functools import cache

import jax
import numpy as np
import pytest
from distribution_catalogue import FAMILIES
from distribution_family import at, lay_out
from draw_comparison import p_values_of, smallest
from monte_carlo import seed
from numpyro.distributions.distribution import validation_enabled
from scipy import stats

NUM_DRAWS = 5_000
NUM_REFERENCE = 10_000
STEP = 1e-5
# Variants of another family in the catalogue: long tests.
VARIANTS = {
    "linear Gaussian, large",
    "linear Gaussian, components apart",
    "grouped normal of known errors",
    "grouped lines without padding",
    "grouped lines, one mean",
    "grouped lines, one mean, without padding",
    "observed mixture, truncated, selected",
}


def of_families(condition=lambda family: True):
    """Parametrize a test with the names of the families for which a condition holds."""
    names = [name for name, family in FAMILIES.items() if condition(family)]
    marked = [pytest.param(name, marks=pytest.mark.long) if name in VARIANTS else name for name in names]
    return pytest.mark.parametrize("name", marked)


EVERY = of_families()
PADDED = [name for name, family in FAMILIES.items() if "used" in family.ranks]


def log_prob_of(family):
    """Log density of (S, ..., event) values, and the same of one object and one value at a time.

    The first is that of a distribution taken apart and put together again, as on the way into a compiled function.
    """

    def single(parameters, value):
        return family.build(parameters).log_prob(value)

    def rebuilt(parameters, values):
        leaves, structure = jax.tree.flatten(family.build(parameters))
        return jax.tree.unflatten(structure, leaves).log_prob(values)

    def mapped(parameters, values, function):
        own = {name: v for name, v in parameters.items() if name not in family.shared}
        shared = {name: v for name, v in parameters.items() if name in family.shared}
        return jax.vmap(lambda p, v: function(p | shared, v), (0, 1), 1)(own, values)

    def one_by_one(parameters, values):
        batch = (2, 3) if family.batched else (3,)
        flat = dict(parameters)
        for name in set(parameters) - set(family.shared):
            own_shape = parameters[name].shape[parameters[name].ndim - family.ranks[name] :]
            flat[name] = jax.numpy.broadcast_to(parameters[name], batch + own_shape).reshape(-1, *own_shape)
        values = values.reshape(len(values), -1, *values.shape[1 + len(batch) :])
        found = mapped(flat, values, lambda p, v: jax.vmap(lambda x: single(p, x))(v))
        return found.reshape(-1, *batch)

    function = rebuilt if family.rebuilds else single
    if family.batched and not family.many_values:
        return lambda parameters, values: jax.vmap(lambda v: function(parameters, v))(values), one_by_one
    if family.batched:
        return function, one_by_one
    if family.many_values:
        return lambda parameters, values: mapped(parameters, values, function), one_by_one
    return one_by_one, None


@cache
def compiled(name):
    """Compiled functions of one distribution, and the list to which each tracing of the first adds an entry."""
    family = FAMILIES[name]
    whole, one_by_one = log_prob_of(family)
    traces = []

    @jax.jit
    def density(varied, fixed, values, directions):
        traces.append(1)

        def total(varied, values):
            return whole(varied | fixed, values)

        log_prob, pull = jax.vjp(total, varied, values)
        found = {"log_prob": log_prob}
        if one_by_one is not None:
            found["one by one"] = one_by_one(varied | fixed, values)
        found["gradient"] = pull(jax.numpy.ones_like(log_prob))
        if family.forward:
            found["forward"] = jax.jvp(total, (varied, values), directions)[1].sum()
        moments = family.moments(at(family, lay_out(family)[0], (0, 0))) if family.moments else {}

        def properties(parameters):
            return {key: getattr(family.build(parameters), key) for key in moments}

        found["moments"] = properties(varied | fixed) if family.batched else jax.vmap(properties)(varied | fixed)
        return found

    def draw(parameters, number):
        key = jax.random.key(number)

        def of_one(parameters, key):
            d = family.build(parameters)
            if family.many_draws:
                return d.sample(key, (NUM_DRAWS,))
            return jax.vmap(d.sample)(jax.random.split(key, NUM_DRAWS))

        if family.batched:
            return of_one(parameters, key)
        return jax.vmap(of_one, out_axes=1)(parameters, jax.random.split(key, 3))

    return density, jax.jit(draw), jax.jit(whole), traces


def directions_of(family, parameters, values):
    """A random direction for each parameter, and for the values; triangles stay such, and so do symmetric matrices."""
    rng = np.random.default_rng(5)
    varied = {name: v for name, v in parameters.items() if name not in family.constant}
    found = {}
    for name, v in varied.items():
        direction = rng.normal(size=v.shape)
        if family.ranks[name] > 1 and np.array_equal(v, np.tril(v)):
            direction = np.tril(direction)
        elif family.ranks[name] > 1 and v.shape[-1] == v.shape[-2] and np.allclose(v, np.swapaxes(v, -1, -2)):
            direction = direction + np.swapaxes(direction, -1, -2)
        found[name] = direction
    fixed = {name: v for name, v in parameters.items() if name in family.constant}
    return varied, fixed, (found, 0.0 * values if "value" in family.constant else rng.normal(size=values.shape))


@cache
def evaluated(name):
    """What the compiled density says, its arguments, and the indices of objects."""
    family = FAMILIES[name]
    parameters, values = lay_out(family)
    varied, fixed, directions = directions_of(family, parameters, values)
    found = compiled(name)[0](varied, fixed, values, directions)
    batch = list(np.ndindex(*((2, 3) if family.batched else (3,))))
    return jax.tree.map(np.asarray, found), parameters, values, directions, batch


def reference(family, parameters, values, batch):
    """Log densities of the catalogue, (S, ...)."""
    each = [[family.log_density(at(family, parameters, i), v[i]) for i in batch] for v in values]
    return np.array(each).reshape(len(values), *np.add(batch[-1], 1))


@EVERY
def test_log_density_is_the_reference_in_batches_and_one_by_one(name):
    family = FAMILIES[name]
    found, parameters, values, _, batch = evaluated(name)
    expected = reference(family, parameters, values, batch)
    for way in ("log_prob", "one by one"):
        if way in found:
            np.testing.assert_allclose(found[way], expected, rtol=family.rtol, atol=family.rtol, err_msg=way)


@EVERY
def test_derivatives_are_those_of_the_reference_by_finite_differences(name):
    family = FAMILIES[name]
    found, parameters, values, directions, batch = evaluated(name)
    by_parameters, by_values = found["gradient"]
    total = 0.0
    for leaf, direction in [*directions[0].items(), ("value", directions[1])]:
        ends = []
        for step in (STEP, -STEP):
            moved = parameters if leaf == "value" else parameters | {leaf: parameters[leaf] + step * direction}
            ends.append(reference(family, moved, values + step * direction if leaf == "value" else values, batch))
        each = (ends[0] - ends[1]) / (2.0 * STEP)
        slope = (by_values if leaf == "value" else by_parameters[leaf]) * direction
        error = family.slope_rtol * (1.0 + np.abs(each).sum())
        np.testing.assert_allclose(slope.sum(), each.sum(), rtol=0.0, atol=error, err_msg=leaf)
        total += slope.sum()
    if family.forward:
        np.testing.assert_allclose(found["forward"], total, rtol=1e-9, atol=1e-9)


@of_families(lambda family: family.moments)
def test_stated_moments_are_those_of_the_reference(name):
    family = FAMILIES[name]
    found, parameters, _, _, batch = evaluated(name)
    for i in batch:
        for key, expected in family.moments(at(family, parameters, i)).items():
            # A property that does not depend on some parameter need not have its batch dimension.
            stated = np.broadcast_to(found["moments"][key], np.add(batch[-1], 1).tolist() + list(np.shape(expected)))
            np.testing.assert_allclose(stated[i], expected, rtol=1e-9, atol=1e-10, err_msg=key)


@EVERY
def test_it_is_traced_once_and_padding_counts_for_nothing(name):
    family = FAMILIES[name]
    found, parameters, values, directions, _ = evaluated(name)
    varied, fixed, _ = directions_of(family, parameters, values)
    density, _, _, traces = compiled(name)
    if name in PADDED:
        used = np.broadcast_to(parameters["used"], values.shape[1:-1])
        values = np.where(used[..., None], values, 1e6)
    again = density(varied, fixed, values, directions)
    assert len(traces) == 1
    np.testing.assert_array_equal(again["log_prob"], found["log_prob"])
    if name in PADDED:
        assert not used.all()
        assert (np.asarray(again["gradient"][1])[:, ~used] == 0.0).all()


@pytest.mark.long
@of_families(lambda family: family.single)
def test_in_single_precision_the_density_is_the_same_to_a_few_digits(name):
    found, parameters, values, _, _ = evaluated(name)

    def cast(array):
        return array.astype(np.float32) if array.dtype == np.float64 else array

    with jax.enable_x64(False):
        single = np.asarray(compiled(name)[2]({key: cast(v) for key, v in parameters.items()}, cast(values)))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, found["log_prob"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.rebuilds])
def test_it_is_a_pytree_with_its_shapes(name):
    family = FAMILIES[name]
    parameters, values = lay_out(family)
    one = at(family, parameters, (1, 2) if family.batched else (2,))
    own = {key: v for key, v in one.items() if key in parameters}
    shapes = []

    def both(own):
        first, second = family.build(own), family.build(own)
        leaves, structure = jax.tree.flatten(first)
        again = jax.tree.unflatten(structure, leaves)
        shapes.extend([first, again])
        assert structure == jax.tree.structure(second)
        assert hash(structure) == hash(jax.tree.structure(second))
        return leaves, jax.tree.leaves(again)

    leaves, again = jax.eval_shape(both, own)
    assert [x.shape for x in leaves] == [x.shape for x in again]
    for d in shapes:
        assert d.batch_shape == ()
        assert d.event_shape == values.shape[3 if family.batched else 2 :]
    if family.batched:
        jax.eval_shape(lambda p: shapes.append(family.build(p)), parameters)
        assert shapes[-1].batch_shape == (2, 3)


@of_families(lambda family: family.draws)
def test_draws_have_the_distribution_of_independent_draws(name, monte_carlo):
    """Each number, and the dependence of each pair: means, squares and products of normal scores."""
    family = FAMILIES[name]
    parameters, values = lay_out(family)
    drawn = np.asarray(compiled(name)[1](parameters, seed(3)))
    assert drawn.shape == (NUM_DRAWS, *values.shape[1:])
    rng = np.random.default_rng(seed(4))
    marginals, moments, firsts = [], [], []
    for i in np.ndindex(*((2, 3) if family.batched else (3,))):
        expected = family.draw(rng, at(family, parameters, i), NUM_REFERENCE).reshape(NUM_REFERENCE, -1)
        found = drawn[(slice(None), *i)].reshape(NUM_DRAWS, -1)
        padding = (expected == 0.0).all(axis=0)
        np.testing.assert_array_equal(found[:, padding], 0.0)
        found, expected = found[:, ~padding], expected[:, ~padding]
        each, means = p_values_of(found, expected)
        marginals.append(each)
        moments.append(means)
        firsts.append(found[:, 0])
    monte_carlo.p_value(smallest(marginals), name=f"{name}: each number")
    monte_carlo.p_value(smallest(moments), name=f"{name}: moments")
    # Objects are independent of each other, and so are draws.
    firsts = np.array(firsts)
    pairs = [stats.spearmanr(a, b).pvalue for k, a in enumerate(firsts) for b in firsts[:k]]
    pairs += [stats.spearmanr(a[1:], a[:-1]).pvalue for a in firsts]
    monte_carlo.p_value(smallest([pairs]), name=f"{name}: independence")


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, key) for name, family in FAMILIES.items() for key in family.invalid]
)
def test_invalid_parameters_are_named(name, parameter):
    """Of concrete arguments, when NumPyro is asked to check them."""
    family = FAMILIES[name]
    good = {key: np.asarray(v) for key, v in family.one(np.random.default_rng(1)).items()}
    bad = {"shape_parameter": "shape"}.get(parameter, parameter)
    with validation_enabled(), pytest.raises(ValueError, match=f"got invalid {parameter} parameter"):
        family.build(good | {bad: family.invalid[parameter]})
    with validation_enabled():
        family.build(good)


# With validation on nothing can be compiled as a whole, and a density is a program for each operation.
@pytest.mark.parametrize("evaluated", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FAMILIES)
def test_valid_parameters_and_values_pass_validation(name, evaluated):
    family, rng = FAMILIES[name], np.random.default_rng(5)
    parameters = {key: np.asarray(v) for key, v in family.one(rng).items()}
    value = np.asarray(family.draw(rng, parameters | family.known, 1))[0]
    with validation_enabled(), warnings.catch_warnings():
        warnings.simplefilter("error")  # which a value outside the support is
        built = family.build(parameters)
        built._validate_sample(value)
        assert not evaluated or np.isfinite(built.log_prob(value))
