"""Other numbers in the priors of a model are other arguments of the same compiled programs."""

import dataclasses

import jax
import numpy as np
import pytest
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.data.supernovae.distance_moduli import DistanceModuli
from hbm_jax.inference.compilation.constants_as_arguments import lowered
from hbm_jax.inference.program import OrderedPrior, bound_args, traceable_priors
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.models import Golenetskii, HubbleDiagram, Normal, Relation


def points():
    rng = np.random.default_rng(1)
    columns = {"x": rng.normal(size=20), "y": rng.normal(size=20), "sigma_x": np.full(20, 0.2)}
    return hbm.data.PointsInGroups.from_columns(columns | {"sigma_y": np.full(20, 0.2)})


def bursts():
    return hbm.data.BurstPopulation(num_intervals=5).draw(4, seed=1).data


def values():
    return hbm.data.ValuesInGroups.from_columns(
        {"y": [0.5, -1.0, 2.0], "sigma_y": [0.5, 0.4, 0.3], "group": ["a", "b", "c"]}
    )


def moduli():
    z = np.linspace(0.05, 1.0, 12)
    return DistanceModuli.from_columns({"z_cmb": z, "mu": 43.0 + 5.0 * np.log10(z), "sigma": np.full(12, 0.2)})


# The two priors of a parameter are of one family; those of the other parameters are the defaults.
CASES = {
    "line": (Relation(pooling="complete"), points, {"alpha": ("Normal(1, 0.5)", "Normal(1.5, 0.25)")}),
    "bursts": (Golenetskii(), bursts, {"gamma_std": ("HalfNormal(0.5)", "HalfNormal(0.25)")}),
    "truncated": (Normal(), values, {"mu": ("TruncatedNormal(0, 1, low=-3)", "TruncatedNormal(1, 2, low=-4)")}),
    "log-normal": (Normal(), values, {"tau": ("LogNormal(0, 1)", "LogNormal(-1, 0.5)")}),
    "Student": (Normal(), values, {"mu": ("StudentT(3, 0, 1)", "StudentT(5, 1, 2)")}),
    "coordinates": (
        HubbleDiagram(cosmology="wcdm"),
        moduli,
        {"Om0": ("Uniform(0, 1)", "Uniform(0.1, 1.2)"), "w0": ("Uniform(-3, 0)", "Uniform(-2.5, -0.25)")},
    ),
    "normal density": (HubbleDiagram(cosmology="wcdm"), moduli, {"Om0": ("Normal(0.3, 0.05)", "Normal(0.25, 0.1)")}),
    "moduli": (HubbleDiagram(), moduli, {"M0": ("Normal(0, 1)", "Normal(0.1, 0.5)")}),
}


LONG = ("bursts", "coordinates", "normal density", "truncated", "Student")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.long) if c in LONG else c for c in CASES])
def test_programs_are_those_of_other_numbers_and_densities_those_of_the_program(case):
    model, data, priors = CASES[case]
    texts = []
    with jax.enable_x64(True):
        for k in range(2):
            changed = dataclasses.replace(model, priors={name: given[k] for name, given in priors.items()})
            args = bound_args(changed, (data(),))
            target = build_target(changed, args, jax.random.key(0))
            function = jax.value_and_grad(target.potential)
            texts.append(lowered(function, target.start, arrays=target.arrays())[0].as_text())
        assert_density(changed, args, target)  # by the program of both
    assert texts[0] == texts[1]


def assert_density(model, args, target):
    """Compare the log density with that of the program as a plain function, with data and priors as constants."""
    constants = build_target(lambda bound: model(bound), args, jax.random.key(0))
    evaluate, expected = (jax.jit(jax.value_and_grad(t.potential)) for t in (target, constants))
    for position in target.prior_draws[:3]:
        (value, gradient), (expected_value, expected_gradient) = evaluate(position), expected(position)
        np.testing.assert_allclose(value, expected_value, rtol=1e-12)
        tolerance = 1e-12 * np.abs(expected_gradient).max()
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=tolerance)


def test_distributions_of_users_are_constants():
    class Twice(dist.Normal):
        """A distribution with a number that JAX does not know."""

        def __init__(self, factor):
            self.factor = factor
            super().__init__(0.0, 1.0)

        def log_prob(self, value):
            return super().log_prob(value / self.factor)

    model = Normal(priors={"mu": Twice(2.0)})
    assert set(traceable_priors(model)) == {"tau"}
    with jax.enable_x64(True):
        args = bound_args(model, (values(),))
        assert_density(model, args, build_target(model, args, jax.random.key(0)))


@pytest.mark.parametrize(
    "prior",
    [dist.Normal(1.0, 2.0), dist.TruncatedNormal(1.0, 2.0, low=-3.0), dist.StudentT(3.0, 1.0, 2.0), dist.Uniform(1, 3)],
)
def test_numbers_of_priors_are_in_the_order_of_their_names(prior):
    # In NumPyro's own pytree they have that of a set, so that one program in two is compiled again in another process.
    leaves, structure = jax.tree.flatten(OrderedPrior(prior))
    names = [n for n in sorted(type(prior).gather_pytree_data_fields()) if prior.__dict__.get(n) is not None]
    parts = [vars(prior)[name] for name in names]
    parts = [OrderedPrior(part) if isinstance(part, dist.Distribution) else part for part in parts]
    np.testing.assert_array_equal(leaves, jax.tree.leaves(parts))
    again = jax.tree.unflatten(structure, [2.0 * leaf for leaf in leaves]).prior
    assert again.loc == 2.0 * prior.loc if hasattr(prior, "loc") else again.low == 2.0 * prior.low
    assert jax.tree.unflatten(structure, leaves).prior.log_prob(1.5) == prior.log_prob(1.5)
