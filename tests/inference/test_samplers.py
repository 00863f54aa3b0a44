"""Samplers are objects: their options, former keywords, flat form in configurations and checkpoints."""

import dataclasses
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from programs import tiny

import hbm_jax as hbm
from hbm_jax.configuration import ConfigError, defaults, sample_keywords, set_key
from hbm_jax.inference.centering.location_scale import find_sites
from hbm_jax.inference.compilation.cost import num_elements
from hbm_jax.inference.run import Run
from hbm_jax.inference.sampler.approximations import Approximation, importance_sample
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.kernels.automatic import Automatic
from hbm_jax.inference.sampler.kernels.protocol import Sampler
from hbm_jax.inference.sampler.kernels.selection import SAMPLERS, options_of, sampler_of
from hbm_jax.inference.sampler.stopping import FEWEST_SAMPLES, MIN_SAMPLES, StopRule

SOME = (
    Automatic(),
    hbm.NUTS(),
    hbm.NUTS(target_accept_prob=0.9, max_tree_depth=7),
    hbm.HMC(trajectory_length=1.5),
    hbm.IndependentProposals(),
    hbm.IndependentProposals(trajectory_length=2.0, target_accept_prob=0.7),
    hbm.ChEES(num_superchains=32),
    hbm.WALNUTS(max_energy_error=0.5, max_halvings=4),
)


@pytest.mark.parametrize(
    ("kind", "options", "found"),
    [
        (hbm.NUTS, {"target_accept_prob": 1.5}, "NUTS: expected target_accept_prob between 0 and 1; found 1.5"),
        (hbm.NUTS, {"target_accept_prob": 0.0}, "target_accept_prob between 0 and 1"),
        (hbm.HMC, {"trajectory_length": 1.0, "target_accept_prob": math.nan}, "HMC: expected target_accept_prob"),
        (hbm.NUTS, {"max_tree_depth": 0}, "max_tree_depth >= 1"),
        (hbm.NUTS, {"max_tree_depth": None}, "max_tree_depth >= 1"),
        (hbm.NUTS, {"max_tree_depth": 2.5}, "max_tree_depth to be a whole number; found 2.5"),
        (hbm.HMC, {"trajectory_length": 0.0}, "HMC: expected trajectory_length above 0; found 0.0"),
        (hbm.HMC, {"trajectory_length": None}, "trajectory_length to be a number; found None"),
        (hbm.IndependentProposals, {"trajectory_length": math.inf}, "trajectory_length above 0"),
        (hbm.ChEES, {"num_superchains": 8}, "ChEES: expected num_superchains of at least 16; found 8"),
        (hbm.WALNUTS, {"max_energy_error": 0.0}, "WALNUTS: expected max_energy_error above 0; found 0.0"),
        (hbm.WALNUTS, {"max_halvings": 21}, "WALNUTS: expected max_halvings from 0 to 20; found 21"),
        (hbm.ChEES, {"num_superchains": 20.5}, "ChEES: expected num_superchains to be a whole number; found 20.5"),
    ],
)
def test_options_out_of_range_are_refused(kind, options, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        kind(**options)


@pytest.mark.parametrize("sampler", SOME, ids=repr)
def test_flat_options_describe_a_sampler(sampler):
    assert isinstance(sampler, Sampler)
    assert sampler_of(options_of(sampler)) == sampler
    assert sampler_of(options_of(sampler) | {"seed": 3, "num_chains": 2}) == sampler
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler.max_tree_depth = 3


def test_every_sampler_is_keyword_only_and_has_a_help_text_for_each_option():
    for kind in SAMPLERS.values():
        parameters = inspect.signature(kind).parameters.values()
        assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
        assert all("help" in item.metadata for item in dataclasses.fields(kind))


@pytest.mark.parametrize(
    ("flat", "sampler"),
    [
        ({"trajectory_length": None, "independent_proposals": False, "max_tree_depth": 8}, Automatic(max_tree_depth=8)),
        ({"trajectory_length": 1.5, "independent_proposals": False}, hbm.HMC(trajectory_length=1.5)),
        ({"trajectory_length": None, "independent_proposals": True}, hbm.IndependentProposals()),
        ({"trajectory_length": 2, "independent_proposals": True}, hbm.IndependentProposals(trajectory_length=2.0)),
        ({"sampler": "hmc", "trajectory_length": 2}, hbm.HMC(trajectory_length=2.0)),
    ],
)
def test_options_of_earlier_versions_describe_a_sampler(flat, sampler):
    assert sampler_of(flat) == sampler


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"sampler": "nut"}, "Unknown sampler 'nut' (did you mean 'nuts'?)"),
        ({"sampler": "nuts", "trajectory_length": 1.0}, "sampler 'nuts': unknown option 'trajectory_length'"),
        ({"sampler": "hmc"}, "sampler 'hmc': expected a trajectory_length; found none"),
        (
            {"sampler": "hmc", "trajectory_length": 1, "independent_proposals": True},
            "sampler 'hmc': expected no independent_proposals",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_refused(flat, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler_of(flat)
    with pytest.raises(ConfigError, match=re.escape(f"[sample]: {message}")):
        sample_keywords({"sample": defaults()["sample"] | flat})


def test_a_configuration_gives_the_keywords_of_sample():
    config = defaults()
    assert sample_keywords(config)["sampler"] == Automatic()
    for key, value in (("trajectory_length", "1.5"), ("num_samples", "50"), ("target_accept_prob", "0.9")):
        set_key(config, f"sample.{key}", value)
    keywords = sample_keywords(config)
    assert keywords["sampler"] == hbm.HMC(trajectory_length=1.5, target_accept_prob=0.9)
    assert keywords["num_samples"] == 50
    assert set(keywords) <= set(inspect.signature(hbm.sample).parameters)
    set_key(config, "sample.sampler", "independent_proposals")
    assert isinstance(sample_keywords(config)["sampler"], hbm.IndependentProposals)
    with pytest.raises(
        ConfigError,
        match="expected one of 'automatic', 'nuts', 'hmc', 'independent_proposals', 'chees', 'walnuts', found 'gibbs'",
    ):
        set_key(config, "sample.sampler", "gibbs")


@pytest.fixture
def begun(monkeypatch):
    """Settings of the runs that `hbm_jax.sample` begins, none of which goes on."""
    settings = []

    monkeypatch.setattr(Run, "fit", lambda self, **options: settings.append(self.settings))
    return settings


@pytest.mark.parametrize(
    ("former", "sampler", "advice"),
    [
        ({"target_accept_prob": 0.9}, hbm.NUTS(target_accept_prob=0.9), "hbm_jax.NUTS(target_accept_prob=0.9)"),
        (
            {"trajectory_length": 1.5, "max_tree_depth": 5},
            hbm.HMC(trajectory_length=1.5, max_tree_depth=5, target_accept_prob=0.8),
            "hbm_jax.HMC(max_tree_depth=5, trajectory_length=1.5)",
        ),
        (
            {"independent_proposals": True},
            hbm.IndependentProposals(target_accept_prob=0.8),
            "hbm_jax.IndependentProposals()",
        ),
    ],
)
def test_former_keywords_are_taken_with_a_warning_that_names_the_new_form(begun, former, sampler, advice):
    with pytest.warns(FutureWarning, match=re.escape(f"Use sampler={advice}.")) as caught:
        hbm.sample(tiny, **former)
    assert begun[0].sampler == sampler
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match=r"expected options of the sampler within sampler=NUTS\(\.\.\.\); found also"):
        hbm.sample(tiny, sampler=hbm.NUTS(), **former)


def test_the_acceptance_probability_is_that_of_the_program_unless_it_is_given(begun):
    class Program:
        target_accept_prob = 0.93

        def __call__(self):
            tiny()

    hbm.sample(Program())
    hbm.sample(Program(), sampler=hbm.HMC(trajectory_length=1.0, target_accept_prob=0.7))
    hbm.sample(tiny)
    assert [found.sampler.target_accept_prob for found in begun] == [0.93, 0.7, 0.8]


def test_options_of_sample_are_in_its_signature_and_others_are_refused(begun):
    parameters = inspect.signature(hbm.sample).parameters
    assert {"seed", "num_chains", "until", "dtype", "sampler", "checkpoint"} <= set(parameters)
    assert parameters["num_chains"].default == 4
    with pytest.raises(TypeError, match=r"sample: unknown option 'num_sample' \(did you mean 'num_samples'\?\)"):
        hbm.sample(tiny, num_sample=3)
    for wrong in ("nuts", hbm.NUTS):
        with pytest.raises(TypeError, match=r"sample: expected a sampler such as hbm_jax\.NUTS\(\); found"):
            hbm.sample(tiny, sampler=wrong)
    assert begun == []


def test_integer_parameters_of_priors_have_no_derivative():
    def program():
        mean = numpyro.sample("mean", dist.Normal(0, 5))
        numpyro.sample("x", dist.Normal(mean, 1))
        numpyro.sample("_whitened", dist.Normal(mean, 1))  # reparametrised by the program

    assert find_sites(program, (), jax.random.key(0)) == {"x": ()}


# Choice by the posterior


@pytest.mark.parametrize(("departure", "kind"), [(0.0, hbm.HMC), (0.5, hbm.HMC), (0.6, hbm.NUTS), (math.inf, hbm.NUTS)])
def test_the_default_sampler_depends_on_how_close_to_normal_the_posterior_is(departure, kind):
    start = Start(np.zeros((4, 1)), None, True, "", departure=departure)
    chosen = Automatic(target_accept_prob=0.9, max_tree_depth=7).chosen(start.nearly_normal)
    assert isinstance(chosen, kind)
    assert (chosen.target_accept_prob, chosen.max_tree_depth) == (0.9, 7)


def test_departure_from_normal_is_the_relative_error_of_the_variances():
    """The density has half the variance of the approximation in all ten directions."""
    size, num = 10, 4000
    unit = Approximation.from_covariance(np.zeros(size), np.eye(size))
    sample = importance_sample(lambda x: (np.sum(x**2), 2.0 * x), unit, np.random.default_rng(seed(5)), num)
    # log weights are minus half of a chi-squared variable of ten degrees of freedom, of variance 20 / 4
    assert sample.departure == pytest.approx(1.0, rel=0.1)
    never = dataclasses.replace(sample, log_weights=np.append(sample.log_weights, -np.inf))
    assert never.departure == math.inf


def test_expensive_draws_are_checked_early_where_the_posterior_is_close_to_normal():
    rule = StopRule()
    assert rule.first_check(cost=1e3, nearly_normal=True) == MIN_SAMPLES
    assert rule.first_check(cost=2e7, nearly_normal=True) == 500
    assert rule.first_check(cost=1e12, nearly_normal=True) == FEWEST_SAMPLES
    assert rule.first_check(cost=1e12, nearly_normal=False) == MIN_SAMPLES
    assert StopRule(until=300.0).first_check(cost=1e12, nearly_normal=True) == MIN_SAMPLES
    table = pd.DataFrame({"r_hat": [1.001], "ess_bulk": [500.0], "ess_tail": [500.0]})
    assert rule.shortfall(table, 500) == pytest.approx(1.2)  # 600 are needed
    assert rule.shortfall(table, 1000) < 1.0
    assert rule.next_check(500, 3.0) == 1000


def test_elements_of_products_and_loops_are_counted():
    def function(x):
        return jax.lax.scan(lambda total, row: (total + row, None), x, jnp.ones((7, 3)))[0] @ jnp.ones((3, 2))

    # The loop adds three numbers seven times; the product has two elements of three terms.
    ones = 7 * 3 + 3 * 2
    assert num_elements(function, jnp.zeros(3)) == 7 * 3 + 2 * 3 + ones
