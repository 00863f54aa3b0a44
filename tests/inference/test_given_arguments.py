"""Arguments by name, given starts and small units in `hbm_jax.sample` and `hbm_jax.fit_each`."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from numpyro import distributions as dist

import hbm_jax
from hbm_jax.data import ValuesInGroups
from hbm_jax.inference.centering import pilot
from hbm_jax.models import Normal

Y = np.array([1.2, 0.3, 2.2, 1.9, 0.7])
OPTIONS = {"progress": False, "num_chains": 3, "num_warmup": 200, "num_samples": 200}


def normal(y, sigma=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("value", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=jnp.asarray(y))


def two_wells():
    """Two wells of width 1; that at -50 has exp(-60) of the mass."""
    x = numpyro.sample("x", dist.Uniform(-100.0, 100.0))
    numpyro.factor("wells", jnp.logaddexp(-0.5 * (x - 50.0) ** 2, -0.5 * (x + 50.0) ** 2 - 60.0))


def test_arguments_may_be_given_by_name(tmp_path):
    by_name = hbm_jax.sample(normal, y=list(Y), sigma=0.5, checkpoint=tmp_path / "run", **OPTIONS)
    by_position = hbm_jax.sample(normal, Y, 0.5, **OPTIONS)
    np.testing.assert_array_equal(by_name.posterior["mu"], by_position.posterior["mu"])
    resumed = hbm_jax.resume(tmp_path / "run", normal, list(Y), 0.5, progress=False)  # a list is the same data
    np.testing.assert_array_equal(resumed.posterior["mu"], by_position.posterior["mu"])
    with pytest.raises(TypeError, match="unknown option 'sigmas'"):
        hbm_jax.sample(normal, Y, sigmas=0.5, **OPTIONS)


def test_lists_and_tables_give_what_arrays_give(monkeypatch):
    """In prior predictions, at the maximum of the likelihood, and in the choice of a partial non-centring."""

    def program(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        with numpyro.plate("object", len(y)):
            numpyro.sample("y", dist.Normal(mean + 0.0 * y, 1.0), obs=y)

    values = [1.0, 2.0, 6.0]
    drawn, expected = (hbm_jax.prior_predictive(program, y, num_draws=3) for y in (pd.Series(values), np.array(values)))
    np.testing.assert_array_equal(drawn["y"], expected["y"])
    best = hbm_jax.maximum_likelihood(program, values, errors=None, num_starts=1)
    assert best.table.loc["mean", "value"] == pytest.approx(3.0, abs=1e-6)
    monkeypatch.setattr(pilot, "choose_centering", lambda program, args, *options: args)
    (array,) = hbm_jax.centre(program, values)
    np.testing.assert_array_equal(array, values, strict=False)
    assert isinstance(array, np.ndarray | jax.Array)


def line(x, y, sigma):
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, sigma), obs=y)


def condition_on_a_parameter():
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu if mu > 0.0 else -mu, 1.0), obs=1.0)


def numpy_of_a_parameter():
    numpyro.sample("y", dist.Normal(np.exp(numpyro.sample("a", dist.Normal())), 1.0), obs=1.0)


def log_probability(theta):
    return -0.5 * jnp.sum(theta**2)


X = np.arange(1.0, 6.0)


@pytest.mark.parametrize(
    ("program", "args", "error", "message"),
    [
        (line, (X, Y[:4], 0.1), ValueError, "Expected arguments of equal length. x has 5, y has 4 rows"),
        (
            line,
            (X, Y, np.array([0.1, 0.1, 0.0, 0.1, 0.1])),
            ValueError,
            r"line \d+ of test_given_arguments.py: Normal distribution got invalid scale parameter. Expected positive "
            r"values. sigma has 0 in row 2",
        ),
        (line, (X, np.where(X == 3.0, np.nan, Y), 0.1), hbm_jax.inference.StartError, "'y' has NaN in row 2"),
        (
            numpy_of_a_parameter,
            (),
            TypeError,
            r"line \d+ of test_given_arguments.py: a parameter was passed to a function of NumPy.* Expected jax.numpy",
        ),
        (
            condition_on_a_parameter,
            (),
            TypeError,
            r"line \d+ of test_given_arguments.py: a parameter decides in an if.* Expected .* jnp.where",
        ),
        (log_probability, (X,), ValueError, "is not returned, as for emcee, but passed to numpyro.factor"),
    ],
    ids=["lengths", "scale", "nan", "numpy", "condition", "log probability"],
)
def test_what_goes_wrong_first_in_a_program_of_ones_own_is_named(program, args, error, message):
    with pytest.raises(error, match=message):
        hbm_jax.sample(program, *args, **OPTIONS)


@pytest.mark.long
def test_chains_start_at_given_values_and_at_an_earlier_fit():
    first = hbm_jax.sample(normal, Y, init={"mu": [0.0, 1.0, 2.0]}, **OPTIONS)
    assert first.run["start"].startswith("values that were given")
    again = hbm_jax.sample(normal, Y, init=first, **OPTIONS)
    assert again.run["start"].startswith("draws of an earlier fit")
    exact, error = Y.sum() / (5.0 + 0.01), (5.0 + 0.01) ** -0.5
    for fit in (first, again):
        mu = fit.posterior["mu"].to_numpy()
        assert mu.mean() == pytest.approx(exact, abs=5.0 * error / np.sqrt(100.0))
    with pytest.raises(ValueError, match="expected latent sites among mu; found 'nu'"):
        hbm_jax.sample(normal, Y, init={"nu": 0.0}, **OPTIONS)


@pytest.mark.long
def test_a_chain_in_a_region_of_negligible_mass_is_begun_again_and_the_verdict_says_so():
    fit = hbm_jax.sample(two_wells, init={"x": [50.0, -50.0, 49.0]}, **OPTIONS)
    assert (fit.posterior["x"] > 0.0).all()
    (note,) = [note for note in fit.verdict.notes if "restarted" in note]
    assert note.startswith("chain 1 was restarted from chain ")
    assert note.endswith("after 50 warm-up draws, because it was in a region of negligible posterior mass")


@pytest.mark.long
def test_a_chain_begun_again_is_so_in_a_resumed_run(tmp_path):
    options = OPTIONS | {"init": {"x": [50.0, -50.0, 49.0]}}
    whole = hbm_jax.sample(two_wells, **options)
    hbm_jax.sample(two_wells, checkpoint=tmp_path / "run", **options | {"num_samples": 50})
    resumed = hbm_jax.resume(tmp_path / "run", two_wells, num_samples=200, progress=False)
    np.testing.assert_array_equal(resumed.posterior["x"], whole.posterior["x"])
    assert [note for note in resumed.verdict.notes if "restarted" in note]


@pytest.mark.long
def test_fits_of_many_objects_do_not_depend_on_units():
    """Fluxes of 1e-13 are sampled as well as fluxes of 1."""
    rng = np.random.default_rng(3)
    values = [rng.normal(5.0, 2.0, 30) + rng.normal(size=30) for _ in range(4)]
    usable, means = [], []
    for unit in (1.0, 1e-13):
        data = [ValuesInGroups.from_columns({"y": unit * y, "sigma_y": np.full(30, unit)}) for y in values]
        fits = hbm_jax.fit_each(Normal(), data, progress=False)
        usable.append(np.asarray(fits.usable))
        means.append(fits.summary().query("parameter == 'mu'")["mean"].to_numpy() / unit)
    assert np.all(usable)
    np.testing.assert_allclose(means[1], means[0], atol=5.0 * 0.42 / np.sqrt(400.0))
