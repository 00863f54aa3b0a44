"""Where chains start: in the bulk of the posterior, in any units, and where they are told to."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
import xarray as xr
from monte_carlo import seed
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.data import ValuesInGroups
from hbm_jax.inference.arguments import plain_arguments, plain_objects
from hbm_jax.inference.sampler.given_start import given_start
from hbm_jax.inference.sampler.initialisation import Start, choose_start
from hbm_jax.inference.sampler.metric import Metric
from hbm_jax.inference.sampler.target import StartError, build_target

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
RNG = np.random.default_rng(1)
IN_GROUPS = RNG.normal(1.0, 0.5, 30)[:, None] + RNG.normal(size=(30, 5))
X = RNG.normal(size=30)
Y = 2.0 + X + 0.7 * RNG.normal(size=30)
BRIEF = {"progress": False, "num_warmup": 5, "num_samples": 10}


def schools():
    """Eight schools, centred, with a log-normal scale: there is a mode at log_tau -31, without any mass."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(1.0, 2.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau)))
        numpyro.sample("y", dist.Normal(theta, ERRORS), obs=EFFECTS)


def groups(width):
    """Thirty groups, centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.LogNormal(0.0, width))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, width))
    with numpyro.plate("group", 30):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Normal(theta[:, None], sigma), obs=IN_GROUPS)


def started(program, *args, number=0, num_chains=4):
    """Return the target of a program and its start."""
    with jax.enable_x64(True):
        target = build_target(program, args, jax.random.key(seed(number)))
        return target, choose_start(target, num_chains, jax.random.key(seed(number)))


def column(target, start, label):
    """Return the starting values of one component, by its label."""
    return start.points[:, target.labels.index(label)]


@pytest.mark.parametrize("number", range(2))
def test_schools_start_in_the_bulk_and_not_in_the_neck_of_the_funnel(number):
    target, start = started(schools, number=number)
    # By quadrature, 99.9 % of the posterior of log_tau lie between -7 and 4.
    assert (column(target, start, "log_tau") > -4.0).all()
    assert (column(target, start, "log_tau") < 4.0).all()


@pytest.mark.long
@pytest.mark.parametrize("width", [1.0, 2.0])
def test_many_groups_start_at_the_scatter_of_their_means(width):
    target, start = started(groups, width)
    scatter = np.sqrt(IN_GROUPS.mean(axis=1).var() - 1.0 / 5.0)
    np.testing.assert_allclose(column(target, start, "tau"), np.log(scatter), atol=1.0)
    np.testing.assert_allclose(column(target, start, "sigma"), 0.0, atol=0.5)


def test_a_density_with_an_infinite_mode_starts_in_its_bulk():
    def program():
        s = numpyro.sample("s", dist.HalfCauchy(1.0))
        x = numpyro.sample("x", dist.Normal(0.0, s))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)

    target, start = started(program)
    assert np.abs(column(target, start, "x")).max() < 4.0
    assert column(target, start, "s").min() > -5.0


@pytest.mark.parametrize("limit", [pytest.param(1.0, marks=pytest.mark.long), 3.5])
def test_a_truncated_density_starts_inside_however_rare_that_is_in_the_prior(limit):
    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("cut", jnp.where(x > limit, 0.0, -jnp.inf))

    _, start = started(program)
    assert (start.points > limit).all()
    assert len(np.unique(start.points)) == 4


def test_one_finite_point_is_enough_for_all_chains():
    target, _ = started(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1)))
    only = target.prior_draws[3]

    def value_and_grad(x):
        near = np.abs(x - only).max() < 1e-6
        return (0.5 * x @ x, x) if near else (np.inf, np.full(3, np.nan))

    start = choose_start(target, 4, jax.random.key(0), value_and_grad)
    np.testing.assert_allclose(start.points, np.tile(only, (4, 1)), atol=1e-6)


def test_no_finite_point_says_which_site_and_which_row():
    def program(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal()), 1.0), obs=y)

    in_row = r"found 0\. The observed site 'y' has NaN in row 2 \(counted from 0\)"
    with pytest.raises(StartError, match=in_row):  # without a warning of NumPyro
        started(program, np.array([1.0, 2.0, np.nan, 3.0]))

    def with_covariate(x, y):
        numpyro.sample("y", dist.Normal(x * numpyro.sample("a", dist.Normal()), 1.0), obs=y)

    with pytest.raises(StartError, match=r"found 0\. The argument 'x' has NaN in row 1 \(counted from 0\)\. "):
        started(with_covariate, np.array([1.0, np.nan]), np.ones(2))

    def positive(y):
        numpyro.sample("y", dist.Exponential(jnp.exp(numpyro.sample("x", dist.Normal()))), obs=y)

    with pytest.raises(StartError, match=r"not finite at 'y' \((-inf|nan)\)"):
        started(positive, np.array([1.0, -2.0]))


# Units


def line(unit):
    a = numpyro.sample("a", dist.Normal(0.0, 10.0 * unit))
    b = numpyro.sample("b", dist.Uniform(-9.0 * unit, 9.0 * unit))
    s = numpyro.sample("s", dist.HalfNormal(3.0 * unit))
    numpyro.sample("y", dist.Normal(a + b * X, s), obs=Y * unit)


def hierarchy(unit):
    """Without a joint mode: started from a mean-field approximation, in a low-rank metric."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    tau = numpyro.sample("tau", dist.LogNormal(np.log(unit), 1.0))
    with numpyro.plate("group", 30):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 0.5 * unit), obs=Y * unit)


def many(unit):
    """Started at its mode, in a rotated metric."""
    with numpyro.plate("group", 30):
        theta = numpyro.sample("theta", dist.StudentT(4.0, 0.0, 3.0 * unit))
        numpyro.sample("y", dist.Normal(theta, 0.5 * unit), obs=Y * unit)


def truncated(unit):
    """Started near the prior."""
    x = numpyro.sample("x", dist.Normal(0.0, unit).expand([2]).to_event(1))
    numpyro.factor("cut", jnp.where(x[0] > unit, 0.0, -jnp.inf))


def normal_data(unit, rng=None):
    values = (5.0 + np.random.default_rng(0).normal(0.0, np.sqrt(5.0), 30)) * unit
    return ValuesInGroups.from_columns(
        {"y": values, "sigma_y": np.full(30, unit), "group": [f"g{i}" for i in range(30)]}
    )


def scaled_draws(name, unit):
    """Return the first draws of a program in a unit, divided by it."""
    if name.startswith("Normal"):
        model, args = hbm.models.Normal(latents=name.split()[1]), (normal_data(unit),)
    else:
        model, args = functools.partial(globals()[name], unit), ()
    fit = hbm.sample(model, *args, seed=seed(3), **BRIEF)
    return {site: draws.to_numpy() / unit for site, draws in fit.posterior.items()}


REFERENCE = functools.cache(lambda name: scaled_draws(name, 1.0))


OTHERS = ("hierarchy", "many", "truncated", "Normal centred")


@pytest.mark.parametrize(
    ("name", "power"),
    [pytest.param("line", power, marks=pytest.mark.long) for power in (-100, 100)]
    + [pytest.param("Normal marginal", power, marks=pytest.mark.long) for power in (-100, 100)]
    + [
        pytest.param(name, power, marks=pytest.mark.long)
        for name, power in zip(OTHERS, (-100, 100, -100, 100), strict=True)
    ]
    + [pytest.param("line", -20, marks=pytest.mark.long)],
)
def test_powers_of_two_do_not_change_the_draws(name, power):
    for site, draws in scaled_draws(name, 2.0**power).items():
        expected = REFERENCE(name)[site]
        np.testing.assert_allclose(draws, expected, rtol=1e-8, atol=1e-8 * expected.std(), err_msg=site)


@pytest.mark.long
@pytest.mark.parametrize("name", ["line", "Normal"])
def test_small_units_do_not_change_the_posterior(name, monte_carlo):
    program = hbm.models.Normal() if name == "Normal" else functools.partial(line, 1e-6)
    args = (normal_data(1e-6),) if name == "Normal" else ()
    small = hbm.sample(program, *args, seed=seed(1), num_samples=1000, progress=False)
    assert small.verdict.usable
    assert small.tree["sample_stats"]["n_steps"].max() <= 31
    program, args = (program, (normal_data(1.0),)) if name == "Normal" else (functools.partial(line, 1.0), ())
    plain = hbm.sample(program, *args, seed=seed(2), num_samples=1000, progress=False)
    for site, draws in small.posterior.items():
        scaled, expected = (values.to_numpy().reshape(4, 1000, -1) for values in (1e6 * draws, plain.posterior[site]))
        for i in range(expected.shape[-1]):
            monte_carlo.same_mean(scaled[..., i], expected[..., i], name=f"{site} {i}")
            monte_carlo.same_std(scaled[..., i], expected[..., i], name=f"{site} {i}")


# Given starts


def small(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    numpyro.deterministic("twice", 2.0 * mu)
    with numpyro.plate("thing", 3):
        theta = numpyro.sample("theta", dist.Normal(mu, sigma))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.fixture(scope="module")
def target():
    with jax.enable_x64(True):
        return build_target(small, (np.array([1.0, 2.0, 4.0]),), jax.random.key(0))


def given(target, init, num_chains=4):
    with jax.enable_x64(True):
        return given_start(target, init, num_chains)


def test_given_values_are_where_the_chains_start(target):
    start = given(target, {"mu": [1.0, 2.0, 3.0, 4.0], "sigma": 2.0, "theta": [1.0, 2.0, 3.0]})
    np.testing.assert_allclose(column(target, start, "mu"), [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(column(target, start, "sigma"), np.log(2.0))
    np.testing.assert_allclose(column(target, start, "theta[2]"), 3.0)
    assert not start.informed
    one_each = given(target, [{"mu": 1.0}, {"mu": 2.0}, {"sigma": 3.0}, {}])
    median = target.start[target.labels.index("mu")]
    np.testing.assert_allclose(column(target, one_each, "mu"), [1.0, 2.0, median, median])
    np.testing.assert_allclose(column(target, one_each, "sigma")[2], np.log(3.0))


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ({"nu": 1.0}, ValueError, "expected latent sites among mu, sigma, theta; found 'nu'"),
        ({"twice": 1.0}, ValueError, "found 'twice'"),
        ({"theta": [1.0, 2.0]}, ValueError, r"expected 'theta' of shape \(3,\), or \(4, 3\) .*; found \(2,\)"),
        ({"sigma": -1.0}, ValueError, r"expected 'sigma' inside the support of its prior; found -1\.0"),
        ([{"mu": 1.0}] * 3, ValueError, "one set of values for each of 4 chains; found 3"),
        (3.0, TypeError, "or an earlier fit; found float"),
        ({"mu": 1e200}, StartError, "finite log density and gradient at the start of chain 0"),
    ],
)
def test_given_values_that_cannot_be_used_are_refused(target, init, error, message):
    with pytest.raises(error, match=message):
        given(target, init)


def test_an_earlier_fit_gives_points_metric_and_step_size(target):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    positions = rng.normal(size=(2, 500, 5)) @ factor.T
    tree = {
        "unconstrained_posterior": xr.Dataset(
            {"position": (("chain", "draw", "parameter"), positions)}, {"parameter": list(target.labels)}
        ),
        "sample_stats": xr.Dataset({"step_size": (("chain", "draw"), np.full((2, 500), 0.3))}),
    }
    start = given(target, SimpleNamespace(tree=xr.DataTree.from_dict(tree)))
    assert start.informed
    assert start.step_size == pytest.approx(0.3)
    covariance = start.metric.inverse_mass * np.outer(start.metric.scale, start.metric.scale)
    np.testing.assert_allclose(covariance, np.cov(positions.reshape(-1, 5).T), rtol=1e-9, atol=1e-9)
    assert all((positions == point).all(axis=-1).any() for point in start.points)
    assert len(np.unique(start.points, axis=0)) == 4
    assert Start.from_arrays(start.to_arrays()).step_size == start.step_size
    other = {**tree, "unconstrained_posterior": tree["unconstrained_posterior"].isel(parameter=slice(4))}
    with pytest.raises(ValueError, match=r"of the same latent sites, 5 parameters; found one of 4; not in both: theta"):
        given(target, SimpleNamespace(tree=xr.DataTree.from_dict(other)))


@pytest.mark.long
def test_the_start_of_a_real_fit_is_accepted(target):
    fit = hbm.sample(small, np.array([1.0, 2.0, 4.0]), seed=seed(1), num_samples=50, num_warmup=50, progress=False)
    start = given(target, fit, 2)
    assert start.points.shape == (2, 5)
    assert start.note.startswith("draws of an earlier fit; dense metric")


def test_a_start_without_a_step_size_is_one_of_an_older_version():
    start = Start(np.zeros((2, 3)), Metric("dense", np.eye(3), ""), True, "")
    arrays = start.to_arrays()
    del arrays["step_size"]
    again = Start.from_arrays(arrays)
    assert again.step_size == 1.0
    u = np.arange(3.0)
    np.testing.assert_array_equal(again.metric.to_position(u), u)  # an empty scale is 1


# Data that are no arrays


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def density_of(program, *args):
    with jax.enable_x64(True):
        target = build_target(program, args, jax.random.key(0))
        return float(target.potential(np.array([0.5])))


PLAIN = functools.cache(lambda: density_of(regression, X, Y))


@pytest.mark.parametrize(
    "convert",
    [pd.Series, xr.DataArray, list, tuple, np.ma.asarray, lambda x: pd.Series(x, index=np.arange(30)[::-1])],
    ids=["series", "data-array", "list", "tuple", "masked-without-mask", "series-with-index"],
)
def test_columns_and_lists_are_arrays(convert):
    assert density_of(regression, convert(X), convert(Y)) == pytest.approx(PLAIN(), rel=1e-12)


@pytest.mark.parametrize("convert", [np.asarray, xr.DataArray])
def test_arguments_are_read_in_the_precision_of_each_run(convert):
    """JAX keeps that in which it first read an array."""

    def program(x, y):
        numpyro.sample("y", dist.Normal(numpyro.sample("b", dist.Normal()) * x, 1.0), obs=y)

    x, y = convert(X.copy()), convert(Y.copy())
    kept = []
    for double in (False, True, False):
        args = plain_arguments(program, (x, y))
        with jax.enable_x64(double):
            target = build_target(program, args, jax.random.key(0))
            kept.append(target)
            assert target.value_and_grad(np.array([0.5]))[0].dtype == (np.float64 if double else np.float32)


def test_tables_are_dicts_of_arrays_unless_the_program_can_use_them():
    table = pd.DataFrame({"x": X, "y": Y})
    assert density_of(lambda t: regression(t["x"], t["y"]), table) == pytest.approx(PLAIN(), rel=1e-12)
    assert density_of(lambda t: regression(t["x"], t["y"]), xr.Dataset.from_dataframe(table)) == pytest.approx(PLAIN())
    assert density_of(lambda t: regression(t.x.to_numpy(), t.y.to_numpy()), table) == pytest.approx(PLAIN(), rel=1e-12)
    # A program that can use an object gets that object.
    assert plain_arguments(lambda t: regression(t.x.to_numpy(), t.y.to_numpy()), (table,))[0] is table


def test_masked_values_and_units_are_refused_by_name():
    u = pytest.importorskip("astropy.units")
    masked = np.ma.masked_greater(Y, 3.0)
    row = int(np.flatnonzero(masked.mask)[0])
    with pytest.raises(ValueError, match=rf"y: expected an array without masked values; found .* row {row} "):
        build_target(regression, (X, masked), None)
    with pytest.raises(ValueError, match=r"x: expected plain numbers; found a Quantity in km / s\. Pass x\.to_value"):
        build_target(regression, (X * u.km / u.s, Y), None)
    assert density_of(regression, X * u.dimensionless_unscaled, Y) == pytest.approx(PLAIN(), rel=1e-12)


def test_columns_with_different_indices_are_refused_by_name():
    """They would be paired by position."""
    x, y = pd.Series(X), pd.Series(Y)
    found = r"y: expected the index of x, .*; found {} instead of {} in row {} .*{}"
    with pytest.raises(ValueError, match=found.format(29, 0, 0, r"reset_index\(drop=True\)")):
        plain_arguments(regression, (x, y[::-1]))
    with pytest.raises(ValueError, match=found.format("'c'", 28, 28, "reset_index")):
        plain_arguments(regression, (x, pd.DataFrame({"y": Y}, index=[*range(28), "c", "d"])))
    arrays = (xr.DataArray(a, dims="p", coords={"p": p}) for a, p in ((X, np.arange(30)), (Y, np.arange(30) + 1)))
    with pytest.raises(ValueError, match=found.format(1, 0, 0, "drop_vars")):
        plain_arguments(regression, tuple(arrays))
    with pytest.raises(ValueError, match=r"object 1, y: expected the index of object 1, x"):
        plain_objects(regression, [(x, y), (x, y[::-1])])
    # Of equal indices, other lengths, other labels, or without an index.
    for other in (y, y[:29], y[::-1].reset_index(drop=True), y.set_axis([f"g{i}" for i in range(30)]), Y):
        np.testing.assert_array_equal(plain_arguments(lambda x, y: None, (x, other))[1], other)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["a"] * 30, r"entries of type <U1"),
        (pd.Series([1.0] * 29 + [None], dtype=object), r"None in row 29 \(counted from 0\)"),
        (pd.Series(pd.date_range("2020", periods=30)), r"entries of type datetime64"),
        ([[1.0, 2.0], [3.0]], "rows of unequal lengths"),
    ],
    ids=["text", "object", "dates", "ragged"],
)
def test_anything_but_numbers_is_refused_by_name_unless_the_program_can_use_it(values, found):
    with pytest.raises(ValueError, match=rf"x: expected numbers; found {found}.*, which the program cannot use"):
        plain_arguments(regression, (values, Y))
    assert plain_arguments(lambda x, y: regression(X, y), (values, Y))[0] is values


def test_keywords_are_put_in_their_positions():
    found = plain_arguments(regression, (X,), {"y": Y})
    assert [np.shares_memory(a, b) for a, b in zip(found, (X, Y), strict=True)] == [True, True]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        plain_arguments(regression, (X, Y), {"z": 1})
    with pytest.raises(TypeError, match="Keyword-only argument 'y'"):
        plain_arguments(lambda x, *, y: None, (X,), {"y": Y})


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"Observed site 'y': .*\(30,\); found \(29,\).*x has 30, y has 29 rows"):
        build_target(regression, (X, Y[:29]), jax.random.key(0))

    def added(x, z):
        numpyro.sample("y", dist.Normal(x + z, 1.0))

    with pytest.raises(ValueError, match="x has 30, z has 29 rows"):
        build_target(added, (X, Y[:29]), jax.random.key(0))


def test_a_discrete_latent_is_refused_with_what_to_do():
    def program():
        numpyro.sample("n", dist.Poisson(3.0))

    with pytest.raises(ValueError, match=r"'n'.*MixtureSameFamily.*logsumexp.*funsor"):
        build_target(program, (), jax.random.key(0))
