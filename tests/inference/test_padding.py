"""Ragged data side by side: padding counts nowhere, or the program is refused."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan

from hbm_jax.inference.batch.padding import ragged_axes
from hbm_jax.inference.batch.slots import Slots
from hbm_jax.inference.batch.stacking import stack

RNG = np.random.default_rng(12)
RAGGED = [RNG.normal(1.0, 1.0, n) for n in (3, 7, 1, 5)]
SUM = 3.0


def latents(y, spread=1.0):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("datum", len(y)):
        z = numpyro.sample("z", dist.Normal(mu, spread))
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)
    return mu, z


def pairs(y):
    """Latents that depend on each other, of one datum, and in an event of a distribution."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    free = numpyro.sample("_free", dist.LogNormal(mu, 1.0).expand([len(y)]).to_event(1))
    with numpyro.plate("datum", len(y)):
        pair = numpyro.sample("pair", dist.MultivariateNormal(jnp.stack([free, -free], -1), jnp.eye(2)))
        numpyro.sample("y", dist.Normal(pair[:, 0] * pair[:, 1], 0.5), obs=y)
    numpyro.deterministic("twice", 2.0 * pair.T)
    numpyro.deterministic("known", mu + jnp.ones(3))


@pytest.mark.long
def test_padding_of_latents_that_are_independent_counts_nowhere():
    assert ragged_axes(latents, stack(RAGGED)) == {"mu": (), "z": ((0, 0),)}
    axes = ragged_axes(pairs, stack(RAGGED))
    assert axes == {"mu": (), "_free": ((0, 0),), "pair": ((0, 0),), "twice": ((1, 0),), "known": ()}


def test_a_site_without_its_padding():
    slots = Slots.__new__(Slots)
    slots.stack, slots.ragged = stack(RAGGED), {"twice": ((1, 0),)}
    values = np.arange(4 * 2 * 7).reshape(4, 2, 7)
    np.testing.assert_array_equal(slots.without_padding("twice", values, 3, first=1), values[:, :, :5])
    np.testing.assert_array_equal(slots.without_padding("mu", values, 3, first=1), values)


def by_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.factor("density", dist.Normal(mu, 1.0).log_prob(y).sum())


def differences(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.diff(y))


def sum_of_latents(y):
    numpyro.sample("sum", dist.Normal(latents(y)[1].sum(), 0.1), obs=SUM)


def minus_their_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("datum", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + z - z.mean(), 0.5), obs=y)


def mean_shown(y):
    numpyro.deterministic("mean", latents(y)[1].mean())


def process(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    z = numpyro.sample("z", dist.MultivariateNormal(mu * jnp.ones(len(y)), jnp.eye(len(y))))
    with numpyro.plate("datum", len(y)):
        numpyro.sample("y", dist.Normal(z, 0.5), obs=y)


def tempered(y):
    with numpyro.handlers.scale(scale=2.0):
        latents(y)


def one_more(y):
    latents(y)
    numpyro.sample("steps", dist.Normal(0.0, 1.0).expand([len(y) + 1]))


def one_of_many(y):
    for i in range(len(y)):
        numpyro.sample("y" + str(i), dist.Normal(numpyro.sample("mu" + str(i), dist.Normal(0.0, 1.0))), obs=y[i])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (one_of_many, "expected object 0 to have the same sites with and without padding; found mu3, mu4, mu5, mu6 in"),
        (by_factor, "padding changes the log density of this program: for object 0 it is"),
        (differences, "padding changes the log density of this program: for object 0 it is"),
        (sum_of_latents, "padding changes the log density of this program: for object 0 it is"),
        (minus_their_mean, "padding changes the log density of this program: for object 0 it is"),
        (mean_shown, "the deterministic site 'mean' depends on the padding: for object 0 its value"),
        (process, "on which the size of the latent site 'z' depends; expected it to have independent"),
        (tempered, "on which the size of the latent site 'z' depends; expected it to have independent"),
        (one_more, r"the site 'steps' of object 0 has shape \(4,\) without padding and \(8,\) with it"),
    ],
)
def test_programs_that_count_the_padding_or_may_are_refused(program, message):
    with pytest.raises(ValueError, match=rf"^fit_each: the objects differ in their number of data.*{message}"):
        ragged_axes(program, stack(RAGGED))


def test_every_ragged_axis_is_compared():
    """The first object is padded along its rows only; the columns of the second count."""

    def table(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y.mean(axis=1))

    objects = [RNG.normal(size=shape) for shape in ((2, 6), (5, 4))]
    with pytest.raises(ValueError, match="changes the log density of this program: for object 1 it is"):
        ragged_axes(table, stack(objects))
    with pytest.raises(ValueError, match="changes the log density of this program: for object 0 it is"):
        ragged_axes(lambda y: table(y.T), stack(objects))


@pytest.mark.long
def test_objects_without_a_finite_density_prove_nothing():
    broken = np.full(2, np.nan)
    with pytest.raises(ValueError, match="changes the log density of this program: for object 1 it is"):
        ragged_axes(sum_of_latents, stack([broken, *RAGGED[:2]]))
    ragged_axes(sum_of_latents, stack([broken, RAGGED[1]]))  # which is marked, and the other is not padded
    with pytest.raises(ValueError, match="the effect of padding could not be tested: 5 of the shorter ones"):
        ragged_axes(latents, stack([*([broken] * 6), RAGGED[1]]))


def chain_of_latents(y):
    def step(before, datum):
        now = numpyro.sample("z", dist.Normal(before, 1.0))
        numpyro.sample("y", dist.Normal(now, 0.5), obs=datum)
        return now, None

    scan(step, numpyro.sample("first", dist.Normal(0.0, 1.0)), y)


def test_a_program_that_does_not_run_with_padding_is_refused_by_name():
    with pytest.raises(ValueError, match="runs with padded data; found an error with the padded data of"):
        ragged_axes(chain_of_latents, stack(RAGGED))
