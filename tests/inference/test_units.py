"""Units: data times a power of two have the same draws, also in batches, for all models that follow the data."""

import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.data import PointsInGroups, RegressionData, ValuesInGroups
from hbm_jax.models import Normal, NormalVectors, Rates, Regression, Relation

RNG = np.random.default_rng(seed(2))
GROUP = np.repeat([f"g{i}" for i in range(6)], 4)
X, NOISE = RNG.normal(2.0, 1.0, 24), RNG.normal(size=(3, 24))
EXPOSURE = RNG.uniform(1.0, 3.0, 24)
COUNTS = RNG.poisson(5.0 * EXPOSURE)


def values(unit, names=("y",)):
    columns = {name: unit * (5.0 + 2.0 * noise) for name, noise in zip(names, NOISE, strict=False)}
    columns |= {f"sigma_{name}": np.full(24, unit) for name in names}
    return ValuesInGroups.from_columns(columns | {"group": GROUP}, components=list(names))


def points(unit):
    columns = {
        "x": X,
        "sigma_x": np.full(24, 0.2),
        "y": unit * (1.0 + 2.0 * X + NOISE[0]),
        "sigma_y": np.full(24, unit),
    }
    return PointsInGroups.from_columns(columns | {"group": GROUP})


def table(unit):
    return RegressionData.from_columns({"x": X, "g": GROUP, "y": unit * (1.0 + 2.0 * X + NOISE[0])}, "y ~ x + (1 | g)")


def counts(unit):
    return RegressionData.from_columns({"y": COUNTS, "t": EXPOSURE / unit}, "y ~ 1", exposure="t")


# Model, data in a unit, and the sites that have it; the others have none.
CATALOGUE = {
    "normal": (Normal(), values, {"mu", "tau", "theta"}),
    "normal, sampled": (Normal(latents="noncentred"), values, {"mu", "tau", "theta"}),
    "vectors": (NormalVectors(), lambda unit: values(unit, ("a", "b")), {"mu", "tau", "theta"}),
    "relation": (Relation(), points, None),
    "regression": (Regression(), table, None),
    "rates": (Rates(family="poisson"), counts, {"mean", "rate"}),
}


def exponents(ratio):
    """The powers of two that ratios of draws are, which must be the same for all draws of an element."""
    powers = np.log2(ratio.reshape(-1, *ratio.shape[2:]))
    np.testing.assert_allclose(powers, np.broadcast_to(np.round(powers[:1]), powers.shape), atol=1e-7)
    return set(np.round(powers[0]).ravel().astype(int).tolist())


@pytest.mark.long
@pytest.mark.parametrize("name", CATALOGUE)
def test_powers_of_two_do_not_change_the_draws_of_a_model(name):
    model, data, scaled_sites = CATALOGUE[name]
    brief = {"seed": seed(3), "progress": False, "num_warmup": 5, "num_samples": 10, "centering": False}
    plain, scaled = (hbm.sample(model, data(unit), **brief).posterior for unit in (1.0, 2.0**-60))
    found = {}
    for site, draws in scaled.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = draws.to_numpy() / plain[site].to_numpy()
        if np.isfinite(ratio).all():  # no element is 0
            found[str(site)] = exponents(ratio)
    powers = set().union(*found.values())
    assert powers == {0, -60} or powers == {-60}, found
    if scaled_sites is not None:
        assert {site for site, power in found.items() if power == {-60}} >= scaled_sites & set(found), found


def largest_difference(draws, plain):
    """Return the largest difference of draws from those in another unit, in standard deviations."""
    largest = 0.0
    for site, expected in plain.items():
        values, expected = draws[site].to_numpy(), expected.to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            power = np.round(np.log2(np.median(values / expected)))
        if np.isfinite(power):
            largest = max(largest, float(np.abs(values * 2.0**-power - expected).max() / expected.std()))
    return largest


@pytest.mark.long
@pytest.mark.parametrize("name", ["normal, sampled", "regression"])
def test_rounding_errors_grow_no_more_in_other_units_than_those_of_the_data(name):
    """At 100 log 2, logarithms of scales are rounded to 2^-47. First steps that are too long amplify any difference."""
    model, data, _ = CATALOGUE[name]
    brief = {"seed": seed(3), "progress": False, "num_warmup": 5, "num_samples": 10, "centering": False}
    plain, *others = (
        hbm.sample(model, data(unit), **brief).posterior
        for unit in (1.0, 1.0 + 2.0**-52, 1.0 + 2.0**-46, 1.0 - 2.0**-46, 1.0 + 2.0**-45, 2.0**-100, 2.0**100)
    )
    *last_digits, small, large = (largest_difference(draws, plain) for draws in others)
    assert max(small, large) < 10.0 * max(last_digits), (last_digits, small, large)
    assert max(last_digits) < 1e-3


def line(unit):
    def program(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 10.0 * unit))
        level = numpyro.sample("level", dist.Uniform(-9.0 * unit, 9.0 * unit))
        scatter = numpyro.sample("scatter", dist.HalfNormal(3.0 * unit))
        with numpyro.plate("point", len(x)):
            numpyro.sample("y", dist.Normal(level + slope * x, scatter), obs=y)

    return program


def fits_of_lines(unit, **options):
    parts = [slice(0, 10), slice(10, 24)]
    objects = [(X[part], unit * (1.0 + 2.0 * X[part] + NOISE[0, part])) for part in parts]
    default = {"seed": seed(5), "num_chains": 4, "keep_draws": True, "progress": False}
    fits = hbm.fit_each(line(unit), objects, **(default | options))
    return [{name: fits.draws(i)["posterior"][name].to_numpy() / unit for name in SITES} for i in range(2)]


SITES = ("slope", "level", "scatter")


@pytest.mark.long
@pytest.mark.parametrize("power", [-100, 100])
def test_powers_of_two_do_not_change_the_draws_of_most_objects_of_a_batch(power):
    """In some objects rounding errors grow in the warm-up until all draws differ."""
    brief = {"num_warmup": 50, "num_samples": 50}
    num_equal = 0
    for k in range(4):
        plain, scaled = (fits_of_lines(unit, seed=seed(1 + k), **brief) for unit in (1.0, 2.0**power))
        for expected, draws in zip(plain, scaled, strict=True):
            num_equal += all(np.abs(draws[n] - expected[n]).max() < 1e-8 * expected[n].std() for n in SITES)
    assert num_equal >= 5  # of 8


@pytest.mark.long
def test_small_units_do_not_change_the_posteriors_of_a_batch(monte_carlo):
    options = {"num_samples": 500}
    for plain, scaled in zip(fits_of_lines(1.0, **options), fits_of_lines(1e-13, seed=seed(6), **options), strict=True):
        for site, expected in plain.items():
            monte_carlo.same_mean(scaled[site], expected, name=site)
            monte_carlo.same_std(scaled[site], expected, name=site)
