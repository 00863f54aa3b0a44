"""Many posteriors in one program: each is what it would be alone, whoever its neighbours are."""

import os
import signal
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.reparam import CircularReparam
from programs import conjugate, eight_schools
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference.batch import fit_each as batch
from hbm_jax.inference.batch.executor import TaskError
from hbm_jax.inference.batch.fit_each import fit_each
from hbm_jax.inference.batch.slots import Slots

RNG = np.random.default_rng(12)
COUNTS = [3, 7, 1, 5, 2]
RAGGED = [RNG.normal(RNG.normal(0, 2), 1.0, n) for n in COUNTS]


def exact(y):
    """Mean and standard deviation of the posterior of `conjugate`."""
    precision = 1 / 4.0 + len(y)
    return y.sum() / precision, precision**-0.5


def few(program, data, **options):
    defaults = {"seed": seed(5), "progress": False, "num_chains": 4, "num_warmup": 150}
    return fit_each(program, data, **(defaults | options))


@pytest.fixture(scope="module")
def ragged():
    return few(conjugate, RAGGED, keep_draws=True)


# What comes out


@partial(jax.tree_util.register_dataclass, data_fields=["y"], meta_fields=["warnings"])
@dataclass(frozen=True)
class Fluxes:
    """Data with what is unusual in them."""

    y: np.ndarray
    warnings: tuple[str, ...] = ()


class Level:
    """A flux below 1, which says of few data that they are few."""

    def cautions(self, data):
        return ("few data",) if len(data.y) < 3 else ()

    def __call__(self, data):
        level = numpyro.sample("level", dist.Uniform(0.0, 1.0))
        with numpyro.plate("datum", len(data.y)):
            numpyro.sample("y", dist.Normal(level, 0.1), obs=jnp.asarray(data.y))


@pytest.mark.long
def test_each_object_has_the_notes_of_a_single_fit():
    objects = [Fluxes(np.array([0.4, 0.5, 0.6])), Fluxes(np.array([1.4, 1.6]), ("y = 1.6 is unusual",))]
    fits = few(Level(), objects)
    leaning = "level leans on the edge of the prior at 1: the density there is more than 40 % of its peak"
    assert list(fits.verdicts["notes"]) == ["", f"few data; in the data, y = 1.6 is unusual; {leaning}"]
    example = fits.verdicts["notes"][1]
    assert str(fits) == f"2 of 2 posteriors are usable. Posteriors with notes: 1, for example 1: {example}."
    alone = hbm.sample(Level(), objects[1], sampler=hbm.HMC(trajectory_length=1.0), num_samples=400, progress=False)
    assert "; ".join(alone.verdict.notes) == fits.verdicts["notes"][1]


def nothing_observed(data):
    numpyro.sample("x", dist.Normal(data, 1.0))


@pytest.mark.long
def test_programs_that_observe_nothing_are_noted():
    (note,) = set(few(nothing_observed, [1.0, 2.0], num_samples=50).verdicts["notes"])
    assert note.startswith("no site of the program is observed")


def test_ragged_objects_have_their_exact_posteriors(ragged, monte_carlo):
    assert ragged.usable.all(), ragged.verdicts
    assert str(ragged) == "5 of 5 posteriors are usable."
    assert ragged.cost["num_slots"] == 6  # as many as there are objects, and a multiple of the two devices
    for i, y in enumerate(RAGGED):
        mean, sd = exact(y)
        draws = ragged.draws(i)["posterior"]["mu"].to_numpy()
        monte_carlo.mean(draws, mean, name=f"mean of {i}", min_ess=250)
        # Draws that alternate about the mean know it better than they know the spread.
        monte_carlo.std(draws, sd, name=f"spread of {i}", min_ess=100)
        for share in (0.16, 0.5, 0.84):
            below = draws < stats.norm.ppf(share, mean, sd)
            monte_carlo.share(below, share, name=f"share {share} of {i}", min_ess=100)


def test_summary_is_that_of_the_draws(ragged):
    for i in range(5):
        draws = ragged.draws(i)["posterior"]["mu"]
        assert draws.dims == ("chain", "draw")
        values = draws.to_numpy()
        row = ragged.summary(["mu"]).loc[(i, "mu")]
        found = row[["mean", "sd", "lower_68", "median", "upper_68"]].astype(float)
        expected = [values.mean(), values.std(ddof=1), *np.quantile(values, [0.16, 0.5, 0.84])]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        axes = {"chain_axis": 0, "draw_axis": 1}
        np.testing.assert_allclose(row["r_hat"], array_stats.rhat(values, **axes), rtol=2e-4)
        np.testing.assert_allclose(row["ess_bulk"], array_stats.ess(values, **axes), rtol=0.05)
        tail = array_stats.ess(values, method="tail", prob=(0.05, 0.95), **axes)
        np.testing.assert_allclose(row["ess_tail"], tail, rtol=0.2)
        y, mu = RAGGED[i], values
        lp = stats.norm.logpdf(y, mu[..., None]).sum(-1) + stats.norm.logpdf(mu, 0, 2)
        np.testing.assert_allclose(ragged.draws(i)["posterior"]["lp"], lp, rtol=1e-9)
        assert ragged.verdicts.loc[i, "num_draws"] == values.size
    assert set(ragged.summary().index.get_level_values("parameter")) == {"mu"}
    with pytest.raises(ValueError, match=r"summary: expected parameters among mu; found mus \(did you mean 'mu'\?\)\."):
        ragged.summary("mus")


@pytest.mark.long
def test_same_posterior_as_nuts(monte_carlo):
    y = np.array([[28.0, 8, -3, 7, -1, 1, 18, 12]])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    acceptance = {"target_accept_prob": 0.95}
    fits = few(eight_schools, [(one, sigma) for one in y], keep_draws=True, num_samples=1000, **acceptance)
    options = {"sampler": hbm.NUTS(**acceptance), "num_samples": 1000, "progress": False}
    fit = hbm.sample(eight_schools, y[0], sigma, seed=seed(1), **options)
    draws = fits.draws(0)["posterior"]
    for name, place in (("mu", ...), ("tau", ...), ("theta", (..., 0)), ("theta", (..., 7))):
        one, alone = draws[name].to_numpy()[place], fit.posterior[name].to_numpy()[place]
        monte_carlo.same_mean(one, alone, name=name)
        monte_carlo.same_std(one, alone, name=name, min_ess=200)


@pytest.mark.long
def test_an_object_does_not_depend_on_its_place_or_its_neighbours(ragged):
    # To rounding: the compiler orders sums by the number of places.
    other = few(conjugate, [*RAGGED[:3], np.full(7, 50.0), *RAGGED[4:]], keep_draws=True, num_slots=2)
    assert other.cost["num_slots"] == 2
    assert other.waste > 1.0  # two places that wait for each other
    for i in (0, 1, 2, 4):
        one, same = other.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"]
        np.testing.assert_allclose(one, same, rtol=1e-9)


@pytest.mark.long
def test_a_number_of_places_that_no_device_divides_is_rounded_up(ragged):
    other = few(conjugate, RAGGED[:4], keep_draws=True, num_slots=3)
    assert other.cost["num_slots"] == 4
    for i in range(3):
        one, same = other.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"]
        np.testing.assert_allclose(one, same, rtol=1e-9)


@pytest.mark.long
def test_stacked_arrays_are_a_list_of_objects_and_settings_of_the_caller_are_untouched():
    y = RNG.normal(size=(3, 4))
    as_list = few(conjugate, list(y), num_samples=50, keep_draws=True)
    assert as_list.draws(0)["posterior"]["mu"].dtype == np.float64
    with jax.enable_x64(False):
        stacked = few(conjugate, y, num_samples=50, keep_draws=True)
        assert not jax.config.jax_enable_x64
    for i in range(3):
        assert stacked.draws(i)["posterior"]["mu"].dtype == np.float64
        np.testing.assert_array_equal(stacked.draws(i)["posterior"]["mu"], as_list.draws(i)["posterior"]["mu"])
    single = few(conjugate, y, num_samples=50, keep_draws=True, dtype="float32")
    assert single.draws(0)["posterior"]["mu"].dtype == np.float32


@pytest.mark.long
def test_dates_in_single_precision_are_not_usable():
    def transit(times):
        t0 = numpyro.sample("t0", dist.Normal(2459000.5, 1.0))
        numpyro.sample("times", dist.Normal(t0, 0.05), obs=times)

    times = np.repeat([[2459000.5], [2459000.88]], 5, axis=1)
    fits = few(transit, times, dtype="float32", max_num_samples=50)
    assert not fits.verdicts["usable"].any()
    assert fits.verdicts["why"].str.contains("t0 never moved|t0 moved in coarse steps").all()
    assert (fits.verdicts["num_steps"] <= 256).all()


@pytest.mark.long
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


@pytest.mark.long
def test_exact_numbers_of_draws_and_budgets():
    fits = few(conjugate, RAGGED, num_samples=120, keep_draws=["mu"])
    assert fits.draws(0)["posterior"].sizes == {"chain": 4, "draw": 150}
    assert list(fits.draws(0)["posterior"]) == ["mu"]
    assert (fits.verdicts["num_draws"] == 600).all()
    short = few(conjugate, RAGGED, max_num_samples=50)
    assert not short.usable.any()
    assert (short.verdicts["num_draws"] == 200).all()
    assert short.verdicts["why"].str.contains("effective sample size").all()
    assert str(short).startswith("0 of 5 posteriors are usable; most frequent reason among the others: ")
    with pytest.raises(KeyError, match="whose draws were kept; keep_draws=True was not given"):
        short.draws(0)


# Failures stay where they are


def test_an_object_that_fails_is_marked_and_spoils_nothing(ragged):
    data = list(RAGGED)
    data[3] = np.array([1.0, np.nan, 2.0, 0.5, 3.0])
    fits = few(conjugate, data, keep_draws=True, names=["a", "b", "c", "d", "e"])
    assert fits.verdicts.loc["d", "why"] == "no starting point with a finite density was found"
    assert fits.verdicts.loc["d", "notes"] == "The argument 'y' has NaN in row 1 (counted from 0)"
    assert list(fits.usable) == [True, True, True, False, True]
    assert "d" not in fits.summary().index.get_level_values("object")
    for i, name in enumerate("abc"):
        np.testing.assert_array_equal(fits.draws(name)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"])
    with pytest.raises(KeyError, match="draws of 'd': expected an object whose draws were kept; it has no draws"):
        fits.draws("d")
    assert str(fits) == (
        "4 of 5 posteriors are usable; most frequent reason among the others: no starting point with a finite density "
        "was found. Posteriors with notes: 1, for example d: The argument 'y' has NaN in row 1 (counted from 0)."
    )


def wall(steepness):
    """A standard normal up to where next to nothing may be: one count too many."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("counts", dist.Poisson(jnp.exp(steepness * x)), obs=0)


@pytest.mark.long
def test_draws_that_diverge_begin_anew_with_a_shorter_step(monte_carlo):
    steepness = np.array([6.0, 8.0, 10.0])
    fits = few(wall, steepness, keep_draws=True)
    assert fits.usable.all(), fits.verdicts
    assert (fits.verdicts["num_divergences"] == 0).all()
    x = np.linspace(-6.0, 3.0, 4001)
    for i, k in enumerate(steepness):
        density = np.exp(-0.5 * x**2 - np.exp(k * x))
        mean = (x * density).sum() / density.sum()
        monte_carlo.mean(fits.draws(i)["posterior"]["x"].to_numpy(), mean, name=f"steepness {k}", min_ess=250)


@pytest.mark.long
def test_draws_that_diverge_are_not_usable_without_a_shorter_step(monkeypatch):
    monkeypatch.setattr(batch, "MAX_HALVINGS", 0)
    without = few(wall, np.array([6.0, 8.0, 10.0]))
    diverged = without.verdicts["num_divergences"] > 0
    assert diverged.any()
    assert (without.verdicts["why"].str.contains("divergences") == diverged).all(), without.verdicts
    # They are not drawn on for: no number of draws mends them.
    assert without.verdicts.loc[diverged, "num_draws"].max() < 4 * 2000


def test_ctrl_c_returns_what_is_done(monkeypatch):
    advance, calls = batch._Queue.advance, []

    def advance_or_stop(self):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(batch._Queue, "advance", advance_or_stop)
    fits = few(conjugate, RAGGED, num_slots=2, num_samples=200, until=50)
    assert 0 < fits.usable.sum() < 5
    assert (fits.verdicts.loc[~fits.usable, "why"] == "interrupted before it was done").all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected at least one object; found none"),
        ([{"y": np.ones(2)}, {"x": np.ones(2)}], r"object 1 and the first differ in \[0\]\['x'\], \[0\]\['y'\]"),
        ([np.ones(2), np.ones((2, 2))], "to have 1 axes, as the first has; found 2 for object 1"),
        ([np.ones(2), np.ones(0)], "expected data for every object; object 1 has none"),
        ([np.array(["a"]), np.array(["b"])], "object 0, .*: expected numbers; found entries of type <U1"),
        ({"a": np.ones(3), "b": np.ones(4)}, r"found first axes of \['3', '4'\]"),
    ],
)
def test_data_that_do_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        few(conjugate, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a", "b"]}, "expected 5 distinct names, one for each object; found 2, of which 2 are distinct"),
        ({"names": list("aabcd")}, "found 5, of which 4 are distinct"),
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


class Worker(Executor):
    """Works at once, in this process; some submissions are "lost", as with a worker killed, or find it "broken"."""

    _max_workers = 1

    def __init__(self, *fates):
        self.fates, self.rows = list(fates), []

    def submit(self, work, part, rows):
        fate = self.fates.pop(0) if self.fates else "done"
        if fate == "broken":
            raise BrokenExecutor("no more work")
        self.rows.append(list(rows))
        future = Future()
        try:
            if fate == "lost":
                raise BrokenExecutor("killed")
            future.set_result(work(part, rows))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.mark.long
def test_a_share_that_is_lost_is_done_again(ragged):
    worker = Worker("lost", "broken", "done")
    fits = few(conjugate, RAGGED[:2], keep_draws=True, executor=worker)
    assert worker.rows == [[0], [0]]  # the other was done here
    assert fits.usable.all()
    assert fits.cost["num_slots"] == 2
    assert fits.waste == 1.0  # each alone in its place
    for i in range(2):
        np.testing.assert_allclose(fits.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"], rtol=1e-9)


def test_a_share_that_always_fails_is_an_error():
    worker = Worker()
    with pytest.raises(TaskError, match=r"objects \d to \d failed on 3 attempts: RuntimeError: a bug"):
        few(fail, RAGGED, executor=worker)
    assert worker.rows[:4] == [[0, 1], [2], [3], [4]]


@pytest.fixture
def pool():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


def test_a_worker_compiles_once_for_all_its_tasks(ragged, monkeypatch):
    made = []

    def slots(*args):
        made.append(Slots(*args))
        return made[-1]

    monkeypatch.setattr(batch, "Slots", slots)
    fits = few(conjugate, RAGGED, keep_draws=True, executor=Worker())
    assert len(made) == 1
    assert made[0]._advance._cache_size() == made[0]._fill._cache_size() == 1
    for i in range(len(RAGGED)):
        one, same = fits.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"]
        np.testing.assert_allclose(one, same, rtol=1e-9)


@pytest.mark.slow
def test_any_executor_gives_the_same_draws(ragged, pool):
    fits = few(conjugate, RAGGED, keep_draws=True, executor=pool)
    for i in range(5):
        np.testing.assert_allclose(fits.draws(i)["posterior"]["mu"], ragged.draws(i)["posterior"]["mu"], rtol=1e-9)


@pytest.mark.long
def test_a_share_whose_worker_dies_is_done_again(ragged, pool, tmp_path, monkeypatch):
    monkeypatch.setenv("HBM_JAX_TEST_FLAG", str(tmp_path / "flag"))
    fits = few(die_once, RAGGED[:2], keep_draws=True, executor=pool)
    assert (tmp_path / "flag").exists()
    assert fits.usable.all()
    np.testing.assert_allclose(fits.draws(0)["posterior"]["mu"], ragged.draws(0)["posterior"]["mu"], rtol=1e-9)


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


def test_a_program_that_would_count_the_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding changes the log density of this program: for object 0 it is"):
        few(mean_of, RAGGED)


@pytest.mark.long
def test_latents_of_ragged_data_are_those_of_each_object_alone(monte_carlo):
    def program(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("datum", len(y)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=y)

    fits = few(program, RAGGED, keep_draws=True)
    for i, y in enumerate(RAGGED):
        draws = fits.draws(i)["posterior"]
        assert draws["z"].shape[2:] == y.shape
        mean = y.sum() / 1.25 / (0.25 + len(y) / 1.25)
        monte_carlo.mean(draws["mu"].to_numpy(), mean, name=f"mean of {i}", min_ess=200)
        monte_carlo.mean(draws["z"].to_numpy()[..., -1], (mean + 4.0 * y[-1]) / 5.0, name=f"last of {i}", min_ess=200)


@pytest.mark.long
def test_flat_auxiliary_sites_do_not_decide_the_verdict(monte_carlo):
    """Values where others are observed, and the number of turns of an angle."""

    def program(y, known):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with handlers.reparam(config={"phi": CircularReparam()}):
            numpyro.sample("phi", dist.VonMises(0.5, 2.0))
        with numpyro.plate("datum", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=known)

    y, known = np.array([1.0, 2.0, 3.0, 9.0, 4.0]), np.array([True, True, True, False, True])
    fits = few(program, [(y, known), (y[::-1].copy(), known[::-1].copy())], keep_draws=True)
    assert fits.usable.all(), fits.verdicts
    mean, _ = exact(y[known])
    for i in range(2):
        draws = fits.draws(i)["posterior"]
        monte_carlo.mean(draws["mu"].to_numpy(), mean, name=f"mean of {i}", min_ess=200)
        assert draws["y_unobserved"].std() < 2.0
    assert fits.summary().loc[(0, "phi_unwrapped")].isna()["r_hat"]


@pytest.mark.long
def test_objects_of_one_number_each(monte_carlo):
    def number(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fits = few(number, np.array([1.0, -4.0]), keep_draws=True)
    for i, y in enumerate((1.0, -4.0)):
        monte_carlo.mean(fits.draws(i)["posterior"]["mu"].to_numpy(), y * 25 / 26, name=f"object {i}", min_ess=250)


def test_draws_to_keep_are_named_right():
    with pytest.raises(ValueError, match=r"fit_each: expected keep_draws among mu.*; found muu"):
        few(conjugate, RAGGED, keep_draws=["muu"])
