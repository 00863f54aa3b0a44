"""The posterior without each group, in one batch."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist

import hbm_jax as hbm

GROUPS = np.repeat(["north", "south", "west"], [5, 8, 4])
VALUES = (
    np.random.default_rng(1).normal([0.0, 1.0, 3.0], 0.5, (8, 3)).T[np.repeat([0, 1, 2], [5, 8, 4]), np.arange(17) % 8]
)


def mean_of(y):
    """Mean of values with errors of 0.5."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("value", len(y)):
        numpyro.sample("observed", dist.Normal(jnp.ones(len(y)) * mean, 0.5), obs=y)


@pytest.fixture(scope="module")
def fits():
    return hbm.leave_groups_out(mean_of, VALUES, GROUPS, seed=seed(1), num_chains=4, keep_draws=True, progress=False)


@pytest.mark.long
def test_posteriors_are_those_of_the_other_groups(fits, monte_carlo):
    assert list(fits.names) == ["all", "without north", "without south", "without west"]
    assert fits.usable.all()
    for name, left_out in zip(fits.names, (None, "north", "south", "west"), strict=True):
        rest = VALUES[left_out != GROUPS]
        precision = len(rest) / 0.25 + 0.25
        expected, sd = rest.sum() / 0.25 / precision, precision**-0.5
        draws = fits.draws(name)["posterior"]["mean"].to_numpy()
        monte_carlo.mean(draws, expected, name=name, min_ess=250)
        monte_carlo.std(draws, sd, name=name, min_ess=100)


@pytest.mark.long
def test_figure_of_the_influence(fits):
    figure = hbm.plotting.influence(fits, ["mean"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(fits.names)
    drawn = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(drawn, fits.summary(["mean"])["median"])
    with pytest.raises(ValueError, match="expected parameters among mean; found slope"):
        hbm.plotting.influence(fits, ["slope"])


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="expected two groups or more; found north"):
        hbm.leave_groups_out(mean_of, VALUES, ["north"] * 17)
    with pytest.raises(
        ValueError, match=r"expected one group for each of \(17,\) observations of 'observed'; found \(16,\)"
    ):
        hbm.leave_groups_out(mean_of, VALUES, GROUPS[:16], progress=False)
