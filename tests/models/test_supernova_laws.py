"""Laws of the supernova model: one class in one file adds another, wherever it is defined."""

import dataclasses
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import FEW, TRUTH
from monte_carlo import seed
from numpyro import distributions as dist
from scipy import stats

from hbm_jax.models import Supernova
from hbm_jax.models.supernovae.laws import (
    ColourLaw,
    Dust,
    NormalStretch,
    Population,
    ScatterLaw,
    SelectionLaw,
    StretchLaw,
    TwoStretches,
)
from hbm_jax.plotting import label

P = {"Om0": 0.3} | TRUTH


@pytest.fixture
def steeper():
    """A colour law of another package: its slope is beta + beta_extra."""

    @dataclass(frozen=True)
    class Steeper(ColourLaw):
        name = "steeper"
        units = {"beta_extra": "furlong"}  # noqa: RUF012
        symbols = {"beta_extra": r"$\beta_+$"}  # noqa: RUF012
        share: float = 1.0

        @property
        def priors(self):
            return {"beta_extra": dist.Normal(0.0, 2.0)}

        def population(self, p, axis):
            return Population(p["c_mean"], p["c_std"], p["beta"] + self.share * p["beta_extra"])

        def standardisation(self, p, c):
            return p["beta"] + self.share * p["beta_extra"], 0.0

    yield Steeper
    del ColourLaw.registry["steeper"]


def test_a_law_of_another_package(steeper):
    model = Supernova(colour="steeper")
    assert list(model.all_priors)[-1] == "beta_extra"
    assert model.units["beta_extra"] == "furlong"
    assert label("beta_extra") == r"$\beta_+$"
    config = model.to_config()
    assert (config["colour"], "class" in config) == ("steeper", False)
    assert Supernova(**config).to_config() == config
    assert model == Supernova(colour=steeper())
    found = LogDensity(model, FEW)(P | {"beta": 2.7, "beta_extra": 0.4})
    prior = stats.norm(0, 5)
    expected = LogDensity(Supernova(), FEW)(P | {"beta": 3.1})
    expected += stats.norm(0, 2).logpdf(0.4) + prior.logpdf(2.7) - prior.logpdf(3.1)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    standardised = model.standardise(FEW, P | {"beta": 2.7, "beta_extra": 0.4})
    np.testing.assert_allclose(standardised.m_b, Supernova().standardise(FEW, P | {"beta": 3.1}).m_b, rtol=1e-14)
    with pytest.raises(ValueError, match=r"latents='centred' expects normal populations.*colour='steeper'"):
        Supernova(colour="steeper", latents="centred")


def test_a_law_that_no_name_restores_is_marked(steeper):
    half = Supernova(colour=steeper(share=0.5))
    assert half.colour == steeper(share=0.5)
    config = half.to_config()
    assert config["colour"].startswith("own: ")
    assert config["colour"] in config["class"]
    assert half != Supernova(colour="steeper")


def test_a_name_is_a_law():
    assert Supernova(colour=Dust(), stretch=TwoStretches()) == Supernova(colour="dust", stretch="two")
    assert Supernova(colour=Dust()).colour == "dust"
    assert StretchLaw.named("normal") == NormalStretch()
    assert list(ColourLaw.registry) == ["normal", "skewed", "tail", "dust", "broken"]
    assert list(StretchLaw.registry) == ["normal", "skewed", "tail", "two"]
    assert list(SelectionLaw.registry) == ["none", "common", "survey", "colour", "band"]
    assert list(ScatterLaw.registry) == ["magnitude", "shared", "correlated"]
    for registry in (ColourLaw.registry, StretchLaw.registry, ScatterLaw.registry, SelectionLaw.registry):
        for law in registry.values():
            assert {*law.symbols} >= {*law().priors}, "every parameter of a law has its symbol"


def test_standardised_magnitudes_with_shared_scatter_and_an_evolving_step():
    shares = {"scatter_m": 0.4, "scatter_x1": 0.25}
    plain = Supernova().standardise(FEW, P)
    shared = Supernova(scatter="shared").standardise(FEW, P | shares)
    fractions = 0.4 + 0.6 * 0.25 * (P["alpha"] / 0.14) ** 2 + 0.6 * 0.75 * (P["beta"] / 3.0) ** 2
    change = P["sigma_int"] ** 2 * (fractions - 1.0)
    np.testing.assert_allclose(shared.variance - plain.variance, change, rtol=1e-9)
    evolving = Supernova(step_evolution=True).standardise(FEW, P | {"delta_M_ratio": 0.2})
    factor = 1.9 * 0.8 / (1.0 + 0.9 * 10 ** (0.95 * FEW.z_cmb)) + 0.2
    massive = FEW.log10_mass > 10.0
    np.testing.assert_allclose(plain.m_b - evolving.m_b, massive * P["delta_M"] * (factor - 1.0), atol=1e-12)
    moved = Supernova(host_populations=True).standardise(FEW, P | {"x1_host": 0.4, "c_host": 0.1})
    np.testing.assert_array_equal(moved.m_b, plain.m_b)


def test_simulated_scatter_is_shared(monte_carlo):
    """Without errors and with narrow populations, stretch and colour have the variances of the scatter."""
    many = FEW.subset(np.zeros(4000, int))
    many = dataclasses.replace(many, covariance=1e-8 * many.covariance)
    narrow = P | {"x1_std": 1e-4, "c_std": 1e-5, "sigma_int": 0.2, "scatter_m": 0.4, "scatter_x1": 0.25}
    model = Supernova(scatter="shared")
    simulated, truth = model.simulate(
        jax.random.key(seed(1)), many, {n: narrow[n] for n in narrow if n in model.all_priors}
    )
    monte_carlo.std(simulated.x1, np.sqrt(0.6 * 0.25) * 0.2 / 0.14, independent=True, name="x1")
    monte_carlo.std(simulated.c, np.sqrt(0.6 * 0.75) * 0.2 / 3.0, independent=True, name="c")
    np.testing.assert_allclose(truth["x1_true"], simulated.x1, atol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match=r"latents='centred' expects scatter='magnitude'; found 'shared'"):
        Supernova(scatter="shared", latents="centred")
    with pytest.raises(ValueError, match=r"step_evolution expects mass_step=True"):
        Supernova(step_evolution=True, mass_step=False)
    with pytest.raises(ValueError, match=r"'dusty' .did you mean 'dust'.*once its module is imported"):
        Supernova(colour="dusty")
    with pytest.raises(ValueError, match="population of colour: expected a new name; found 'dust', which is Dust"):
        type("Other", (ColourLaw,), {"name": "dust"})
    assert ColourLaw.registry["dust"] is Dust
