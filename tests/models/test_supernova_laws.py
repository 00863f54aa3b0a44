"""Laws of the supernova model: one class in one file adds another, wherever it is defined."""

from dataclasses import dataclass

import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import FEW, TRUTH
from numpyro import distributions as dist
from scipy import stats

from hbm_jax.models import Supernova
from hbm_jax.models.supernovae.laws import (
    ColourLaw,
    Dust,
    NormalStretch,
    Population,
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
    assert list(SelectionLaw.registry) == ["none", "common", "survey", "band"]
    for registry in (ColourLaw.registry, StretchLaw.registry, SelectionLaw.registry):
        for law in registry.values():
            assert {*law.symbols} >= {*law().priors}, "every parameter of a law has its symbol"


def test_refusals():
    with pytest.raises(ValueError, match=r"'dusty' .did you mean 'dust'.*once its module is imported"):
        Supernova(colour="dusty")
    with pytest.raises(ValueError, match="population of colour: expected a new name; found 'dust', which is Dust"):
        type("Other", (ColourLaw,), {"name": "dust"})
    assert ColourLaw.registry["dust"] is Dust
