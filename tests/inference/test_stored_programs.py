"""Compiled programs that are found on disk without tracing compute what they would if they were compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import hbm_jax as hbm
from hbm_jax.data import PointsInGroups
from hbm_jax.distributions.mills_ratio import log_mills_ratio
from hbm_jax.inference.compilation import cache, constants_as_arguments, stored_programs
from hbm_jax.inference.compilation.identity import SOURCES, UnidentifiedError, digest, identity_of
from hbm_jax.inference.compilation.separation import Separated
from hbm_jax.models import Relation

SETTINGS = {"num_chains": 2, "num_warmup": 30, "num_samples": 20, "progress": False, "sampler": hbm.NUTS()}


def a_line(y, sd):
    with numpyro.plate("point", len(y)):
        numpyro.sample("y", dist.Normal(numpyro.sample("slope", dist.Normal(0.0, sd)), 0.1), obs=y)


def points(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=24)
    columns = {"x": x, "y": 2.0 * x + rng.normal(size=24), "sigma_x": np.full(24, 0.1), "sigma_y": np.full(24, 0.2)}
    return PointsInGroups.from_columns(columns | {"group": ["one", "two", "three"] * 8})


@pytest.fixture
def lowered(tmp_path, monkeypatch):
    """Names of the functions that are traced and lowered while programs are stored in a folder."""
    names = []
    lower = constants_as_arguments.lowered

    def noted(fn, *args, **options):
        names.append(getattr(fn, "__name__", "?"))
        return lower(fn, *args, **options)

    monkeypatch.setattr(constants_as_arguments, "lowered", noted)
    monkeypatch.setattr(cache, "_in_use", [tmp_path])
    return names


@pytest.mark.long
def test_a_second_run_lowers_nothing_and_has_the_same_draws(lowered, tmp_path, monkeypatch):
    y = np.array([0.3, 0.5, 0.2])
    fit = hbm.sample(a_line, y, 1.0, **SETTINGS)
    assert len(lowered) == 5  # prior, gradient, initial state, sampler and sites
    assert len(list(tmp_path.iterdir())) == 5
    lowered.clear()
    again = hbm.sample(a_line, y, 1.0, **SETTINGS)
    assert lowered == []
    np.testing.assert_array_equal(again.posterior["slope"], fit.posterior["slope"])
    monkeypatch.setattr(cache, "_in_use", [])
    without = hbm.sample(a_line, y, 1.0, **SETTINGS)
    np.testing.assert_array_equal(without.posterior["slope"], fit.posterior["slope"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((np.array([0.3, 0.5, 0.9]), 1.0), {}),
        ((np.array([0.3, 0.5, 0.2]), 2.0), {}),
        ((np.array([0.3, 0.5, 0.2]), 1.0), {"sampler": hbm.NUTS(max_tree_depth=3)}),
        ((np.array([0.3, 0.5, 0.2]), 1.0), {"num_warmup": 31}),
    ],
    ids=["other data", "another prior", "another sampler", "another warm-up"],
)
def test_another_run_has_programs_of_its_own(args, options, lowered, monkeypatch):
    hbm.sample(a_line, np.array([0.3, 0.5, 0.2]), 1.0, **SETTINGS)
    lowered.clear()
    fit = hbm.sample(a_line, *args, **SETTINGS | options)
    assert lowered
    monkeypatch.setattr(cache, "_in_use", [])
    np.testing.assert_array_equal(
        fit.posterior["slope"], hbm.sample(a_line, *args, **SETTINGS | options).posterior["slope"]
    )


@pytest.mark.long
def test_other_data_of_a_model_of_the_same_shape_lower_nothing(lowered, monkeypatch):
    hbm.sample(Relation(), points(1), **SETTINGS)
    lowered.clear()
    fit = hbm.sample(Relation(), points(2), **SETTINGS)
    assert lowered == []
    monkeypatch.setattr(cache, "_in_use", [])
    expected = hbm.sample(Relation(), points(2), **SETTINGS)
    np.testing.assert_array_equal(fit.posterior["alpha"], expected.posterior["alpha"])


def test_a_damaged_file_is_replaced(lowered, tmp_path):
    def compiled():
        return constants_as_arguments.compiled(lambda x: 2.0 * x, jnp.ones(3), identity="twice")

    assert compiled()(jnp.ones(3)).sum() == 6.0
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    lowered.clear()
    assert compiled()(jnp.ones(3)).sum() == 6.0
    assert lowered
    lowered.clear()
    assert compiled()(jnp.ones(3)).sum() == 6.0
    assert lowered == []


def test_a_large_constant_that_is_no_argument_is_not_stored(lowered, tmp_path):
    constant = jnp.arange(constants_as_arguments.LARGE)
    constants_as_arguments.compiled(lambda x: (x * constant).sum(), jnp.ones(()), identity="sum")
    assert list(tmp_path.iterdir()) == []


def twice(rule):
    """Twice a number, with the derivative of ``rule``."""

    @jax.custom_jvp
    def fn(x):
        return 2.0 * x

    fn.defjvp(lambda primals, tangents: (fn(*primals), rule * tangents[0]))
    return fn


def test_a_custom_derivative_is_identified_by_the_gradient():
    def identity(fn):
        functions = [Separated(lambda x, data: fn(x).sum() + data, np.ones(2), 1.0) for _ in range(2)]
        return identity_of(*functions, np.ones(2))

    assert identity(twice(2.0)) == identity(twice(2.0))
    assert identity(twice(2.0)) != identity(twice(3.0))
    assert identity(jnp.sin) == identity(jnp.sin) != identity(jnp.cos)
    with pytest.raises(UnidentifiedError, match="no value that could be compared"):
        digest(jax.make_jaxpr(twice(2.0))(1.0))


def test_custom_derivatives_of_the_package_are_identified_by_name(monkeypatch):
    monkeypatch.setattr(jax, "value_and_grad", None)  # no gradient is traced

    def identity(fn):
        functions = [Separated(lambda x, data: fn(x).sum() + data, np.ones(2), 1.0) for _ in range(2)]
        return identity_of(*functions, np.ones(2))

    def without_rule(x):
        return log_mills_ratio.fun(x)

    assert identity(log_mills_ratio) == identity(log_mills_ratio) != identity(without_rule)


def test_custom_derivatives_of_the_package_are_decided_by_its_sources():
    """A function within another, or one with other arguments, could have different rules under one name."""
    decorators = [
        line
        for path in sorted(SOURCES.rglob("*.py"))
        for line in path.read_text().splitlines()
        if "custom_jvp" in line or "custom_vjp" in line
    ]
    assert len(decorators) > 5
    assert set(decorators) == {"@jax.custom_jvp", "@jax.custom_vjp"}


def test_constants_count_and_arguments_do_not():
    def of(array, arguments=()):
        return digest(jax.make_jaxpr(lambda x: x * array)(1.0), arguments)

    one, other = jnp.ones(3), jnp.arange(3.0)
    assert of(one) == of(jnp.ones(3)) != of(other)
    assert of(one, [one]) == of(other, [other]) != of(one)
    with pytest.raises(UnidentifiedError, match="too large"):
        of(jnp.ones(2**22))


def test_nothing_is_stored_without_a_folder(monkeypatch):
    monkeypatch.setattr(cache, "_in_use", [])
    assert stored_programs.name_of("twice", [jnp.ones(3)], [], {}) is None
