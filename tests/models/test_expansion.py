"""The expansion history by itself: no kind of data has its ridge followed unless its model brings it."""

import dataclasses

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from scipy import stats

from hbm_jax.models import Expansion, Supernova
from hbm_jax.models.expansion import (
    FREE,
    REGISTRY,
    cosmology_from,
    default_priors,
    named,
    register,
    sample_cosmology,
)
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.plotting import label

KEY = np.zeros(2, np.uint32)


def abstractly(program):
    """Names of the sites of a program, by tracing alone."""
    names = []

    def run(key):
        names.extend(handlers.trace(handlers.seed(program, key)).get_trace())

    jax.eval_shape(run, KEY)
    return names


@pytest.mark.parametrize("name", FREE)
def test_sites_are_the_free_parameters(name):
    sites = abstractly(lambda: sample_cosmology(name, default_priors(name)))
    assert {site for site in sites if not site.startswith("_")} == {
        *FREE[name], *(["Ok0"] if "Ode0" in FREE[name] else [])
    }  # fmt: skip


def test_draws_have_the_stated_priors_with_and_without_a_ridge(monte_carlo):
    def draw(key):
        traces = [
            handlers.trace(
                handlers.seed(lambda r=ridge: sample_cosmology("w0wacdm", default_priors("w0wacdm"), r), key)
            )
            for ridge in (None, supernova_degeneracy)
        ]
        return [{name: trace[name]["value"] for name in FREE["w0wacdm"]} for trace in (t.get_trace() for t in traces)]

    keys = np.array([[seed(1), number] for number in range(1000)], np.uint32)
    laws = {"Om0": stats.uniform(0, 1), "w0": stats.uniform(-3, 3), "wa": stats.uniform(-3, 5)}
    for draws, ridge in zip(jax.jit(jax.vmap(draw))(keys), ("no ridge", "ridge"), strict=True):
        for name, law in laws.items():
            monte_carlo.distribution(np.asarray(draws[name]), law.cdf, name=f"{name}, {ridge}")


def test_a_ridge_is_given_what_is_free_and_what_is_fixed():
    seen = []

    def ridge(free, fixed):
        seen.append((set(free), fixed))
        return {}, {}

    abstractly(lambda: sample_cosmology("w0wacdm", default_priors("w0wacdm") | {"wa": 0.2}, ridge))
    assert seen == [({"Om0", "w0"}, {"wa": 0.2})]


def test_universes_have_the_values_of_their_parameters():
    values = {"H0": 68.0, "Om0": 0.3, "Ode0": 0.6, "w0": -0.9, "wa": 0.4, "w_1": -1.1, "w_2": -0.8, "w_3": -0.5}
    for name, free in FREE.items():
        found = cosmology_from(name, values)
        assert (found.H0, found.Om0) == (68.0, 0.3)
        assert found.Ode0 == (0.6 if "Ode0" in free else pytest.approx(0.7))
        assert found.w0 == (-0.9 if "w0" in free else -1.0)
        assert found.wa == (0.4 if "wa" in free else 0.0)
    energy = jax.jit(lambda: cosmology_from("binned(0.2, 0.5)", values).dark_energy)()
    assert energy.edges == (0.2, 0.5)
    np.testing.assert_array_equal(energy.w, [-1.1, -0.8, -0.5])
    assert named("binned").description == "flat, w constant in bins cut at z = 0.3, 0.7"
    assert named("wcdm").to_config() == "wcdm"


def test_a_registered_universe_works_by_its_name():
    def w(z, p):
        return p["w0"] + p["wp"] * z / (1 + z) ** 2

    own = Expansion.from_w(w, {"w0": dist.Uniform(-3.0, 0.0), "wp": dist.Uniform(-5.0, 5.0)})
    try:
        register("jbp", dataclasses.replace(own, symbols={"wp": "$w_p$"}))
        model = Supernova(cosmology="jbp")
        assert list(model.all_priors)[:4] == ["H0", "Om0", "w0", "wp"]
        config = model.to_config()
        assert (config["cosmology"], "class" in config) == ("jbp", False)
        assert Supernova(**config).to_config() == config
        assert label("wp") == "$w_p$"
        assert register("jbp", own) == named("jbp"), "the same again"
        with pytest.raises(ValueError, match="expected a new name; found 'wcdm'"):
            register("wcdm", own)
        with pytest.raises(ValueError, match=r"Unknown cosmology 'jpb' .did you mean 'jbp'"):
            Supernova(cosmology="jpb")
    finally:
        del REGISTRY["jbp"]
    assert named("binned(0.4, 0.8)").breaks == (0.4, 0.8)
    assert own.breaks == named("w0wacdm").breaks == ()
