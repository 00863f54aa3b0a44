"""Units: data times a power of two have the same draws, for every model whose default priors follow the data."""

import numpy as np
import pytest
from monte_carlo import seed

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
