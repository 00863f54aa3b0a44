"""Stored fits are of the programs as they are: log densities and sites of some draws are computed again."""

import jax
import numpy as np
import pytest
from stored_fits import FOLDER, RECIPES, load

from hbm_jax.inference.target import build_target

DRAWS = 3


def test_every_stored_fit_has_a_recipe():
    assert {path.stem for path in FOLDER.glob("*.nc")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stored_fit_is_not_stale(name):
    fit = load(name)
    target = build_target(fit.program, fit.args, jax.random.key(0))
    raw = fit.tree["unconstrained_posterior"]["position"]
    assert list(raw["parameter"].values) == list(target.labels)
    last = {"chain": -1, "draw": slice(-DRAWS, None)}
    again = f"make it again with `python tests/stored_fits.py {name}`, if the change is meant"
    potential, sites = jax.jit(jax.vmap(lambda x: (target.potential(x), target.constrain(x))))(raw.isel(last).values)
    stored = fit.tree["sample_stats"]["lp"].isel(last).values
    np.testing.assert_allclose(-np.asarray(potential), stored, rtol=1e-7, atol=1e-6, err_msg=again)
    assert set(sites) == set(fit.posterior), again
    for site, values in sites.items():
        expected = fit.posterior[site].isel(last).values
        np.testing.assert_allclose(values, expected, rtol=1e-7, atol=1e-9, err_msg=f"{site}: {again}")
