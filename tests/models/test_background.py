"""The expansion history by itself: no kind of data has its ridge followed unless its model brings it."""

import jax
import pytest
from numpyro import handlers
from scipy import stats

from hbm_jax.models.background import FREE, default_priors, sample_cosmology
from hbm_jax.models.supernova_ridge import supernova_ridge


def traced(name, ridge=None, key=0):
    seeded = handlers.seed(lambda: sample_cosmology(name, default_priors(name), ridge), jax.random.key(key))
    return handlers.trace(seeded).get_trace()


@pytest.mark.parametrize("name", FREE)
def test_sites_are_the_free_parameters(name):
    sites = {site for site in traced(name) if not site.startswith("_")}
    assert sites == {*FREE[name], *(["Ok0"] if "Ode0" in FREE[name] else [])}


@pytest.mark.parametrize("ridge", [None, supernova_ridge])
def test_draws_have_the_stated_priors_with_and_without_a_ridge(ridge):
    draw = jax.jit(jax.vmap(lambda key: handlers.trace(handlers.seed(run, key)).get_trace()["w0"]["value"]))

    def run():
        sample_cosmology("wcdm", default_priors("wcdm"), ridge)

    w0 = draw(jax.random.split(jax.random.key(1), 500))
    assert stats.kstest(w0, stats.uniform(-3.0, 3.0).cdf).pvalue > 1e-3


def test_a_ridge_is_given_what_is_free_and_what_is_fixed():
    seen = []

    def ridge(free, fixed):
        seen.append((set(free), fixed))
        return {}, {}

    priors = default_priors("w0wacdm") | {"wa": 0.2}
    handlers.seed(lambda: sample_cosmology("w0wacdm", priors, ridge), jax.random.key(0))()
    assert seen == [({"Om0", "w0"}, {"wa": 0.2})]
