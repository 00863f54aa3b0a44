"""Many posteriors in one program: each is what it would be alone, whoever its neighbours are."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from numpyro import distributions as dist
from programs import conjugate, eight_schools
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import batch, many_chains
from hbm_jax.inference.batch import fit_each
from hbm_jax.inference.many_diagnostics import diagnose_many
from hbm_jax.inference.shares import ShareError
from hbm_jax.inference.stacking import stack

RNG = np.random.default_rng(12)
COUNTS = [3, 7, 1, 5, 2]
RAGGED = [RNG.normal(RNG.normal(0, 2), 1.0, n) for n in COUNTS]


def exact(y):
    """Mean and standard deviation of the posterior of `conjugate`."""
    precision = 1 / 4.0 + len(y)
    return y.sum() / precision, precision**-0.5


def few(program, data, **options):
    return fit_each(program, data, **({"seed": 5, "progress": False, "num_chains": 4, "num_warmup": 150} | options))


@pytest.fixture(scope="module")
def ragged():
    return few(conjugate, RAGGED, keep_draws=True)


# What comes out


def test_ragged_objects_have_their_exact_posteriors(ragged):
    assert ragged.usable.all(), ragged.verdicts
    summary = ragged.summary()
    for i, y in enumerate(RAGGED):
        mean, sd = exact(y)
        row = summary.loc[(i, "mu")]
        assert abs(row["mean"] - mean) < 4 * sd / np.sqrt(row["ess_bulk"])
        # Draws that alternate about the mean know it better than they know the spread.
        squares = (ragged.draws(i)["posterior"]["mu"].to_numpy() - mean) ** 2
        ess = array_stats.ess(squares, method="mean", chain_axis=0, draw_axis=1)
        error = np.sqrt(2.0 / ess) * sd**2  # of a normal
        assert abs(squares.mean() - sd**2) < 4 * error
        assert row["sd"] == pytest.approx(sd, rel=0.15)
        assert row["median"] == pytest.approx(mean, abs=6 * sd / np.sqrt(row["ess_bulk"]))
        assert row["upper_68"] - row["lower_68"] == pytest.approx(2 * sd * stats.norm.ppf(0.84), rel=0.2)


def test_summary_is_that_of_the_draws(ragged):
    draws = ragged.draws(2)["posterior"]["mu"]
    assert draws.dims == ("chain", "draw")
    row = ragged.summary(["mu"]).loc[(2, "mu")]
    np.testing.assert_allclose(row["mean"], draws.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        row[["lower_68", "upper_68"]].astype(float), np.quantile(draws, [0.16, 0.84]), rtol=1e-12
    )
    assert ragged.verdicts.loc[2, "num_draws"] == draws.size
    np.testing.assert_allclose(row["ess_bulk"], array_stats.ess(draws.to_numpy(), chain_axis=0, draw_axis=1), rtol=0.03)


@pytest.mark.long
def test_same_posterior_as_nuts():
    y = np.array([[28.0, 8, -3, 7, -1, 1, 18, 12]])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    fits = few(eight_schools, [(one, sigma) for one in y], target_accept_prob=0.95, num_samples=1000)
    summary = fits.summary()
    for i, one in enumerate(y):
        fit = hbm.sample(eight_schools, one, sigma, seed=1, num_samples=1500, target_accept_prob=0.95, progress=False)
        alone = fit.summary()
        for name in ("mu", "tau", "theta[0]", "theta[7]"):
            both = np.hypot(
                summary.loc[(i, name), "sd"] / np.sqrt(summary.loc[(i, name), "ess_bulk"]), alone.loc[name, "mcse_mean"]
            )
            assert abs(summary.loc[(i, name), "mean"] - alone.loc[name, "mean"]) < 4 * both, (i, name)


def test_an_object_does_not_depend_on_its_place_or_its_neighbours(ragged):
    for data, options in ((RAGGED, {"num_lanes": 2}), (RAGGED[:4], {"num_lanes": 3})):
        other = few(conjugate, [*data[:3], np.full(7, 50.0), *data[4:]], keep_draws=True, **options)
        for i in range(3):
            # To rounding: the compiler orders sums by the number of places.
            one, same = other.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"]
            np.testing.assert_allclose(one, same, rtol=1e-9)


def test_stacked_arrays_are_a_list_of_objects():
    y = RNG.normal(size=(3, 4))
    as_list = few(conjugate, list(y), num_samples=100).summary()
    np.testing.assert_array_equal(few(conjugate, y, num_samples=100).summary(), as_list)


def test_what_is_equal_in_all_objects_stays_concrete():
    def program(design, y):
        matrix = np.linalg.inv(np.asarray(design))  # would fail on a tracer
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        with numpyro.plate("datum", 2):
            numpyro.sample("y", dist.Normal(matrix @ x, 1.0), obs=y)

    design = np.array([[2.0, 0.0], [0.0, 4.0]])
    fits = few(program, [(design, RNG.normal(size=2)) for _ in range(3)], num_samples=100)
    assert len(fits.summary()) == 6
    with pytest.raises(jax.errors.TracerArrayConversionError):
        few(program, [(design * n, RNG.normal(size=2)) for n in (1, 2)], num_samples=100)


def test_exact_numbers_of_draws_and_budgets(ragged):
    fits = few(conjugate, RAGGED, num_samples=120, keep_draws=["mu"])
    assert fits.draws(0)["posterior"].sizes == {"chain": 4, "draw": 150}
    assert (fits.verdicts["num_draws"] == 600).all()
    short = few(conjugate, RAGGED, max_num_samples=50)
    assert not short.usable.any()
    assert short.verdicts["why"].str.contains("effective sample size").all()
    assert str(short).startswith("0 of 5 posteriors are usable; of the others most often: ")
    assert str(ragged) == "5 of 5 posteriors are usable."
    assert ragged.waste >= 1


# Failures stay where they are


def test_an_object_that_fails_is_marked_and_spoils_nothing(ragged):
    data = list(RAGGED)
    data[3] = np.array([1.0, np.nan, 2.0, 0.5, 3.0])
    fits = few(conjugate, data, keep_draws=True, names=["a", "b", "c", "d", "e"])
    assert fits.verdicts.loc["d", "why"] == "no starting point with a finite density was found"
    assert list(fits.usable) == [True, True, True, False, True]
    assert "d" not in fits.summary().index.get_level_values("object")
    for i, name in enumerate("abc"):
        np.testing.assert_array_equal(fits.draws(name)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"])
    with pytest.raises(KeyError, match="draws of 'd': expected an object whose draws were kept; there is none"):
        fits.draws("d")


def wall(steepness):
    """A standard normal up to where next to nothing may be: one count too many."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("counts", dist.Poisson(jnp.exp(steepness * x)), obs=0)


def test_draws_that_diverge_begin_anew_with_a_shorter_step(monkeypatch):
    steepness = np.array([6.0, 8.0, 10.0])
    fits = few(wall, steepness)
    assert fits.usable.all(), fits.verdicts
    assert (fits.verdicts["num_divergences"] == 0).all()
    x = np.linspace(-6.0, 3.0, 4001)
    for i, k in enumerate(steepness):
        density = np.exp(-0.5 * x**2 - np.exp(k * x))
        row = fits.summary().loc[(i, "x")]
        mean = (x * density).sum() / density.sum()
        assert abs(row["mean"] - mean) < 4 * row["sd"] / np.sqrt(row["ess_bulk"])
    monkeypatch.setattr(batch, "SHORTER", 0)
    without = few(wall, steepness)
    assert without.verdicts["why"].str.contains("divergences").all(), without.verdicts
    # They are not drawn on for: no number of draws mends them.
    assert without.verdicts["num_draws"].max() < 4 * 2000


def test_ctrl_c_returns_what_is_done(monkeypatch):
    turn, turns = batch._Queue.turn, []

    def turn_or_stop(self):
        turns.append(1)
        if len(turns) == 14:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(batch._Queue, "turn", turn_or_stop)
    fits = few(conjugate, RAGGED, num_lanes=2, num_samples=200, until=50)
    assert 0 < fits.usable.sum() < 5
    assert (fits.verdicts.loc[~fits.usable, "why"] == "interrupted before it was done").all()


def test_settings_of_the_caller_are_untouched():
    with jax.enable_x64(False):
        fits = few(conjugate, RAGGED[:2], num_samples=50, keep_draws=True)
        assert not jax.config.jax_enable_x64
    assert fits.draws(0)["posterior"]["mu"].dtype == np.float64
    single = few(conjugate, RAGGED[:2], num_samples=50, keep_draws=True, dtype="float32")
    assert single.draws(0)["posterior"]["mu"].dtype == np.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected at least one object, found none"),
        ([{"y": np.ones(2)}, {"x": np.ones(2)}], r"object 1 and the first differ in \[0\]\['x'\], \[0\]\['y'\]"),
        ([np.ones(2), np.ones((2, 2))], "to have 1 axes, as the first has; found 2 for object 1"),
        ([np.ones(2), np.ones(0)], "expected data for every object; object 1 has none"),
        ([np.array(["a"]), np.array(["b"])], "expected numbers in .*; found <U1 for object 0"),
        ({"a": np.ones(3), "b": np.ones(4)}, r"found first axes of \['3', '4'\]"),
    ],
)
def test_data_that_do_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        few(conjugate, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a", "b"]}, "expected 5 different names, one for each object; found 2, 2 of them different"),
        ({"names": list("aabcd")}, "found 5, 4 of them different"),
        ({"num_chains": 1}, "expected num_chains >= 2; found 1"),
        ({"num_warmup": 3}, "expected num_warmup >= 50; found 3"),
        ({"target_accept_prob": 1.2}, "expected target_accept_prob between 0 and 1; found 1.2"),
        ({"dtype": "float16"}, "expected dtype 'float64' or 'float32'; found 'float16'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        few(conjugate, RAGGED, **options)


def test_a_ragged_vector_is_refused():
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1).expand(y.shape).to_event(1), obs=y)

    with pytest.raises(ValueError, match="length of an axis of the vector-valued site 'y'"):
        few(program, RAGGED)


def test_padded_lengths_are_unlike_any_other():
    whole = stack([(np.ones(n), np.ones((4, n))) for n in (2, 4, 3)])
    assert whole.padded == (5,)
    assert [leaf.shape for leaf in jax.tree.leaves(whole.first)] == [(5,), (4, 5)]
    np.testing.assert_array_equal(whole.lengths[:, 0], [2, 4, 3])


# More machines


def die_once(y):
    """`conjugate`, in a worker that is killed the first time."""
    flag = os.environ["HBM_JAX_TEST_FLAG"]
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    conjugate(y)


def fail(y):
    """A program with a bug."""
    raise RuntimeError("a bug")


@pytest.fixture
def pool():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.slow
def test_any_executor_gives_the_same_draws(ragged, pool):
    fits = few(conjugate, RAGGED, keep_draws=True, executor=pool)
    for i in range(5):
        np.testing.assert_allclose(fits.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"], rtol=1e-9)


def test_a_share_whose_worker_dies_is_done_again(ragged, pool, tmp_path, monkeypatch):
    monkeypatch.setenv("HBM_JAX_TEST_FLAG", str(tmp_path / "flag"))
    fits = few(die_once, RAGGED, keep_draws=True, executor=pool)
    assert (tmp_path / "flag").exists()
    assert fits.usable.all()
    np.testing.assert_allclose(fits.draws(0)["posterior"]["mu"], ragged.draws(0)["posterior"]["mu"], rtol=1e-9)


def test_a_share_that_always_fails_is_an_error(pool):
    with pytest.raises(ShareError, match="objects 0 to 1 failed on 3 attempts: RuntimeError: a bug"):
        few(fail, RAGGED, executor=pool)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.long
def test_a_dask_cluster(ragged):
    distributed = pytest.importorskip("distributed") if not os.environ.get("CI") else __import__("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(os.environ.__setitem__, "JAX_PLATFORMS", "cpu")
        fits = few(conjugate, RAGGED, keep_draws=True, executor=client.get_executor())
    assert fits.usable.all()
    np.testing.assert_allclose(fits.draws(4)["posterior"]["mu"], ragged.draws(4)["posterior"]["mu"], rtol=1e-9)


def mean_of(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.sample("mean", dist.Normal(mu, 1.0 / np.sqrt(len(y))), obs=y.mean())


def by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.factor("density", dist.Normal(mu, 1.0).log_prob(y).sum())


def differences(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.diff(y))


@pytest.mark.parametrize("program", [mean_of, by_factor, differences])
def test_a_program_that_would_count_the_padding_is_refused(program):
    with pytest.raises(ValueError, match=r"this program counts the padding: object 0 has a log density of"):
        few(program, RAGGED)


def test_objects_of_one_number_each():
    def number(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fits = few(number, np.array([1.0, -4.0]))
    medians = fits.summary(["mu"])["median"].to_numpy()
    np.testing.assert_allclose(medians, np.array([1.0, -4.0]) * 25 / 26, atol=0.3)


def test_draws_to_keep_are_named_right():
    with pytest.raises(ValueError, match=r"fit_each: expected keep_draws among mu.*; found muu"):
        few(conjugate, RAGGED, keep_draws=["muu"])


# The sampler itself


def many_draws(potential, points, num_draws, options, dense):
    density = jax.vmap(jax.value_and_grad(potential))
    state = many_chains.initial_state(density, points, jax.random.key_data(jax.random.key(1)), dense)
    shares = jnp.tile(jnp.asarray(many_chains.halton(50)), num_draws // 50)

    def segment(state, shares):
        state, draws = jax.lax.scan(
            lambda s, share: many_chains.advance(density, s, share, jnp.asarray(True), options), state, shares
        )
        return many_chains.end_segment(state, options), draws

    state, draws = jax.jit(lambda state: jax.lax.scan(segment, state, shares.reshape(-1, many_chains.SEGMENT)))(state)
    return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws)


@pytest.mark.parametrize("dense", [False, True])
def test_the_sampler_draws_a_correlated_normal(dense):
    covariance = np.array([[1.0, 4.5, 0], [4.5, 25.0, 0], [0, 0, 1e-4]])
    precision, mean = np.linalg.inv(covariance), np.array([3.0, -1.0, 0.5])
    options = many_chains.Options(300, 0.8, 256)
    state, draws = many_draws(
        lambda x: 0.5 * (x - mean) @ precision @ (x - mean), RNG.normal(size=(8, 3)), 1800, options, dense
    )
    x = np.asarray(draws.position)[300:].swapaxes(0, 1)
    for i in range(3):
        ess = array_stats.ess(x[..., i], chain_axis=0, draw_axis=1)
        assert ess > 3000
        assert abs(x[..., i].mean() - mean[i]) < 4 * np.sqrt(covariance[i, i] / ess)
        tail = array_stats.ess((x[..., i] - mean[i]) ** 2, chain_axis=0, draw_axis=1)
        assert x[..., i].var() == pytest.approx(covariance[i, i], rel=4 * np.sqrt(2 / tail))
    if dense:
        ratio = np.linalg.eigvals(np.linalg.solve(covariance, state.factor @ state.factor.T))
        np.testing.assert_allclose(ratio, 1.0, rtol=0.35)
        np.testing.assert_allclose(state.inverse @ state.factor, np.eye(3), atol=1e-9)
        assert np.asarray(draws.num_steps)[300:].mean() < 5
    else:
        np.testing.assert_allclose(state.factor, np.sqrt(np.diag(covariance)), rtol=0.2)
    assert 0.7 < np.asarray(draws.accept_prob)[300:].mean() < 0.95
    assert not np.asarray(draws.diverging)[300:].any()
    assert (np.asarray(draws.energy) >= np.asarray(draws.potential_energy)).all()


def test_a_place_without_an_object_takes_no_steps():
    options = many_chains.Options(50, 0.8, 256)
    density = jax.vmap(jax.value_and_grad(lambda x: 0.5 * x @ x))
    state = many_chains.initial_state(density, jnp.ones((4, 2)), jax.random.key_data(jax.random.key(1)), True)
    _, draw = many_chains.advance(density, state, jnp.asarray(1.0), jnp.asarray(False), options)
    np.testing.assert_array_equal(draw.num_steps, 0)
    np.testing.assert_array_equal(draw.position, 1.0)


def test_halton_numbers():
    np.testing.assert_array_equal(many_chains.halton(7), [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8])


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95, -0.5])
def test_diagnostics_of_many_quantities_are_those_of_arviz(memory):
    noise = RNG.normal(size=(5, 4, 401))
    x = np.zeros_like(noise)
    for i in range(1, 401):
        x[..., i] = memory * x[..., i - 1] + noise[..., i]
    found = diagnose_many(x)
    for i in range(5):
        axes = {"chain_axis": 0, "draw_axis": 1}
        np.testing.assert_allclose(found.r_hat[i], array_stats.rhat(x[i], **axes), rtol=2e-4)
        np.testing.assert_allclose(found.ess_bulk[i], array_stats.ess(x[i], **axes), rtol=0.03)
        tail = array_stats.ess(x[i], method="tail", prob=(0.05, 0.95), **axes)
        np.testing.assert_allclose(found.ess_tail[i], tail, rtol=0.12)


def test_quantities_that_do_not_vary_have_no_diagnostics():
    x = RNG.normal(size=(3, 4, 100))
    x[1] = 2.0
    x[2, 0, 5] = np.nan
    found = diagnose_many(x)
    assert np.isnan(found.r_hat[1:]).all()
    assert np.isnan(found.ess_bulk[1:]).all()
    assert found.ess_bulk[0] > 100
