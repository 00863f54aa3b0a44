"""Profile likelihood on grids of one and two parameters: closed forms, bounds, and what is refused."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import optimize

from hbm_jax.inference import maximum_likelihood, profile_grid

X = np.linspace(0.0, 1.0, 40)
Y = 3.0 + 2.0 * X + 0.5 * np.random.default_rng(0).normal(size=40)
DESIGN = np.stack([X, np.ones(40)], axis=1)


def line(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    offset = numpyro.sample("offset", dist.Uniform(-20.0, 20.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    with numpyro.plate("datum", len(x)):
        numpyro.sample("y", dist.Normal(offset + slope * x, sigma), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return maximum_likelihood(line, X, Y, level=0.9)


def test_profiles_of_a_line_have_their_closed_form(fitted):
    best, rss = (a.ravel() for a in np.linalg.lstsq(DESIGN, Y, rcond=None)[:2])
    two = profile_grid(line, X, Y, best=fitted, grid={"slope": 9, "offset": [2.8, 3.0, 3.3]})
    assert two.rise.shape == (9, 3)
    for i, j in np.ndindex(9, 3):
        residual = Y - DESIGN @ [two.axes[0][i], two.axes[1][j]]
        assert two.rise[i, j] == pytest.approx(40 * np.log(residual @ residual / rss[0]), abs=1e-6)
        assert two.values["sigma"][i, j] == pytest.approx(np.sqrt(residual @ residual / 40), rel=1e-5)
    np.testing.assert_allclose(two.best, best, rtol=1e-7)
    one = profile_grid(line, X, Y, best=fitted, grid={"slope": 5})
    unit = np.linalg.inv(DESIGN.T @ DESIGN)[0, 0]
    np.testing.assert_allclose(one.rise, 40 * np.log1p((one.axes[0] - best[0]) ** 2 / unit / rss[0]), atol=1e-6)
    assert one.rise[[0, -1]].min() > 9.21
    assert (one.note, two.note) == ("", "")


def test_a_grid_ends_at_the_bounds_of_a_prior():
    def rate(y):
        numpyro.sample("y", dist.Poisson(numpyro.sample("rate", dist.Uniform(0.0, 30.0))), obs=y)

    best = maximum_likelihood(rate, 2.0)
    grid = profile_grid(rate, 2.0, best=best, grid={"rate": 12})
    assert grid.axes[0][0] == 0.0
    x = grid.axes[0][1:]
    np.testing.assert_allclose(grid.rise[1:], 2 * (x - 2 - 2 * np.log(x / 2)), atol=1e-7)
    assert np.isnan(grid.rise[0])
    assert grid.note == "1 of 12 points did not converge"


def test_points_between_two_maxima_have_the_higher_one():
    """The other parameter jumps from one maximum to another; searches from neighbours alone would stay at the first."""

    def two_maxima(y):
        x, z = (numpyro.sample(name, dist.Uniform(-4.0, 4.0)) for name in ("x", "z"))
        numpyro.factor("likelihood", -((z**2 - 1.0) ** 2) + 0.5 * x * z - 0.1 * x**2 + y)

    def profile(x):
        starts = [optimize.minimize(lambda z: (z[0] ** 2 - 1) ** 2 - 0.5 * x * z[0] + 0.1 * x**2, [s]) for s in (-1, 1)]
        return min(result.fun for result in starts)

    best = maximum_likelihood(two_maxima, 0.0)
    grid = profile_grid(two_maxima, 0.0, best=best, grid={"x": np.linspace(-3.0, 3.0, 13)})
    exact = np.array([profile(x) for x in grid.axes[0]])
    np.testing.assert_allclose(grid.rise - grid.rise.min(), 2 * (exact - exact.min()), atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "one or two parameters; found 0"),
        ({"slop": 3}, r"'slop' is unknown|slop"),
        ({"slope": [1.0, 1.0]}, "slope: expected increasing numbers"),
        ({"sigma": [-1.0, 1.0]}, "sigma: expected values within the limits of its prior, 0 to inf"),
        ({"slope": 1}, "slope: expected 2 values or more; found 1"),
        ({"slope": 300, "offset": 300}, "at most 40000 points"),
    ],
)
def test_what_is_refused(grid, words, fitted):
    with pytest.raises(ValueError, match=words):
        profile_grid(line, X, Y, best=fitted, grid=grid)
