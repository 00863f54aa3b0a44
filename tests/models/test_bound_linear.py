"""Binding of data to linear models and regressions: one density whichever way data come, and batches of bound data."""

import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from sites import compiled_sites

from hbm_jax.data import DataError, PointsInGroups, RegressionData, ValuesInGroups
from hbm_jax.models import Normal, NormalVectors, Rates, Regression, Relation

GROUP = np.repeat([0, 1, 2], [4, 3, 2])


def values(rng, components=1):
    names = [f"y{i}" for i in range(components)]
    columns = {name: rng.normal(size=9) for name in names}
    columns |= {f"sigma_{name}": rng.uniform(0.3, 0.9, 9) for name in names}
    return ValuesInGroups.from_columns(columns | {"group": [f"g{k}" for k in GROUP]}, components=names)


def points(rng, *, predictors=("x",), group_predictors=(), limits=(), groups=True):
    columns = {name: rng.normal(size=9) for name in (*predictors, "y")}
    columns |= {f"sigma_{name}": rng.uniform(0.2, 0.4, 9) for name in (*predictors, "y")}
    columns |= {name: rng.normal(size=3)[GROUP] for name in group_predictors}
    columns |= {f"limit_{name}": ["upper" if i == k else "" for i in range(9)] for k, name in enumerate(limits)}
    columns |= {"group": [f"g{k}" for k in GROUP]} if groups else {}
    return PointsInGroups.from_columns(columns, predictors=predictors, group_predictors=group_predictors)


def regression(rng, formula="y ~ x", kind="real", **roles):
    u = rng.uniform(size=9)
    response = {"real": rng.normal(size=9), "count": np.floor(9 * u), "binary": 1.0 * (np.arange(9) % 2)}
    response["text"] = np.array(["a", "b", "c"])[np.arange(9) % 3]
    columns = {"x": rng.normal(size=9), "g": GROUP.astype(str), "t": np.arange(9) // 2, "y": response[kind]}
    return RegressionData.from_columns(columns | {"n": rng.integers(9, 15, 9), "e": 0.1 + u}, formula, **roles)


BINOMIAL = {"kind": "count", "trials": "n"}
COUNTS = {"formula": "y ~ 1", "kind": "count"}
# Model, container and its options.
CASES = {
    "normal": (Normal(), values, {}),
    "normal, inferred sigma": (Normal(sigma="inferred", latents="mixed"), values, {}),
    "normal, centred": (Normal(latents="centred", priors={"tau": 0.5}), values, {}),
    "vectors, inferred sigma": (NormalVectors(sigma="inferred"), values, {"components": 2}),
    "vectors, noncentred": (NormalVectors(latents="noncentred"), values, {"components": 2}),
    "vectors, mixed": (NormalVectors(latents="mixed", correlated=False), values, {"components": 3}),
    "relation": (Relation(correlated=True), points, {}),
    "relation, groups": (Relation(pivot=1.0), points, {"group_predictors": ("age",)}),
    "relation, sampled": (Relation(latents="sampled", scatter=False), points, {}),
    "relation, planes": (Relation(correlated=True), points, {"predictors": ("a", "b")}),
    "relation, limits": (Relation(), points, {"limits": ("x", "y")}),
    "relation, no pooling": (Relation(pooling="none", outliers=True), points, {}),
    "relation, student_t": (Relation(pooling="complete", student_t=True), points, {"limits": ("y",)}),
    "relation, mixture": (Relation(pooling="complete", num_components=2), points, {"groups": False}),
    "relation, sampled mixture": (
        Relation(pooling="complete", latents="sampled", num_components=2),
        points,
        {"groups": False},
    ),
    "regression": (Regression(), regression, {"formula": "y ~ x + (1 + x | g) + (1 | walk(t))", "error": "e"}),
    "regression, student_t": (Regression(family="student_t", qr=False), regression, {"formula": "y ~ x + (1 || g)"}),
    "regression, probit": (Regression(family="bernoulli", link="probit"), regression, {"kind": "binary"}),
    "regression, binomial": (Regression(family="binomial", priors={"coef": 0.3}), regression, BINOMIAL),
    "regression, poisson": (Regression(family="poisson"), regression, {"kind": "count", "exposure": "n"}),
    "regression, negative_binomial": (Regression(family="negative_binomial"), regression, {"kind": "count"}),
    "regression, categorical": (Regression(family="categorical"), regression, {"kind": "text"}),
    "rates": (Rates(), regression, COUNTS | {"trials": "n"}),
    "rates, gamma": (Rates(family="poisson"), regression, COUNTS | {"exposure": "n"}),
    "rates, shape": (Rates(family="poisson", parameters="shape"), regression, COUNTS | {"exposure": "n"}),
}


def log_probs(model, data):
    """Log densities of the sites of a program at draws from their priors."""
    trace = handlers.trace(handlers.seed(model, jax.random.key(3))).get_trace(data)
    return {name: jnp.sum(s["fn"].log_prob(s["value"])) for name, s in trace.items() if s["type"] == "sample"}


QUICK = ("normal", "regression, poisson", "rates")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in CASES])
def test_bound_data_have_the_density_of_their_container_also_in_batches(name):
    model, make, options = CASES[name]
    rng = np.random.default_rng(5)
    datas = [make(rng, **options) for _ in range(2)]
    bound = model.bind_each(datas)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(bound))
    assert model.bound(bound[0]) is bound[0]
    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *bound)

        @jax.jit
        def densities(stacked):
            return log_probs(model, datas[1]), jax.vmap(lambda b: log_probs(model, b))(stacked)

        single, batch = jax.device_get(densities(stacked))
    assert single.keys() == batch.keys()
    for site, found in batch.items():
        assert found.dtype == np.float64
        np.testing.assert_allclose(found[1], single[site], rtol=1e-12, atol=1e-12, err_msg=site)
    differing = [site for site, found in batch.items() if found[0] != found[1]]
    assert {"y", "observed"} & set(differing)  # the data sets are not the same


@pytest.mark.parametrize("name", ["normal", "relation", "regression", "rates"])
def test_traced_containers_are_refused_in_words(name):
    model, make, options = CASES[name]
    data = make(np.random.default_rng(5), **options)
    with pytest.raises(DataError, match=r"expected concrete data; found data that are traced.*bound = model\.bind"):
        jax.jit(lambda data: log_probs(model, data))(data)


def test_containers_of_another_type_are_refused():
    for model in (Normal(), Relation(), Regression(), Rates()):
        with pytest.raises(DataError, match=f"{type(model).__name__}: expected .*; found SimpleNamespace. Read them"):
            model.bound(SimpleNamespace())


def test_models_and_bound_data_can_be_sent_to_another_process():
    for model, make, options in CASES.values():
        again, bound = pickle.loads(pickle.dumps((model, model.bound(make(np.random.default_rng(5), **options)))))
        assert again == model
        assert again.to_config() == model.to_config()
        assert again.bound(bound) is bound


def test_a_single_group_has_one_line_and_a_caution():
    rng = np.random.default_rng(3)
    one, several = points(rng, groups=False), points(rng)
    found, expected = (compiled_sites(Relation(pooling=pooling), one)(number=1) for pooling in ("partial", "complete"))
    names = {"alpha", "beta", "intrinsic_scatter", "x_mean", "x_std", "observed"}
    assert found.values.keys() == expected.values.keys() == names
    assert found.log_density == expected.log_density
    assert "one group, so that one line" in Relation().cautions(one)[0]
    assert Relation(pooling="complete").cautions(one) == Relation().cautions(several) == []
