"""Models and their priors as text for people."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
from numpyro import distributions as dist

from hbm_jax import models
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.supernovae.laws import MassStep, StretchTail


def test_a_spectral_fit_is_printed_in_the_notation_of_configurations():
    model = models.SpectralFit(
        "powerlaw * tbabs(mw) * ztbabs(host, z=1.3)", calibration=True, priors={"mw_nh": 0.1, "host_nh": "2 * mw_nh"}
    )
    expression = "PowerLaw(norm='amplitude') * Absorption(label='mw') * Absorption(label='host', z=1.3)"
    assert str(model).splitlines() == [
        f'SpectralFit(spectrum="{expression}", calibration=True)',
        "  photon_index     Normal(loc=2.0, scale=1.0)",
        "  log10_amplitude  Normal(loc=-3.0, scale=2.0)    photons/cm^2/s/keV",
        "  mw_nh            0.1                            1e22/cm^2",
        "  host_nh          2 * mw_nh                      1e22/cm^2",
        "  calibration      LogNormal(loc=0.0, scale=0.1)",
    ]


MODELS = (
    models.Afterglow, models.CorrelatedSupernova, models.Golenetskii, models.GolenetskiiCounts, models.HubbleDiagram,
    models.Normal, models.NormalVectors, models.Rates, models.Regression, models.Relation, models.Supernova,
)  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_has_a_line_for_each_parameter(kind):
    model = kind()
    first, *lines = repr(model).splitlines()
    assert first.startswith(f"{kind.__name__}(")
    assert [line.split()[0] for line in lines] == list(model.all_priors)
    assert str(model) == repr(copy.copy(model)) == repr(model)
    assert max(map(len, lines)) < 100


def test_options_are_printed_where_they_are_not_defaults():
    assert repr(models.Supernova()).splitlines()[0] == "Supernova()"
    model = models.Supernova(cosmology="wcdm", stretch=StretchTail(), step_width=0.5)
    assert repr(model).splitlines()[0] == "Supernova(cosmology='wcdm', step_width=0.5, stretch='tail')"
    constrained = models.HubbleDiagram(constraints="desi-dr2-bao")
    assert len(repr(constrained).splitlines()[0]) < 300


def test_standardised_priors_say_so():
    default, given = (models.Relation(priors=priors) for priors in ({}, {"intrinsic_scatter": "HalfNormal(2)"}))
    line = next(line for line in repr(default).splitlines() if "intrinsic_scatter" in line)
    assert line.endswith("for standardised data")
    line = next(line for line in repr(given).splitlines() if "intrinsic_scatter" in line)
    assert line.split(maxsplit=1)[1] == "HalfNormal(scale=2.0)"


def test_priors_are_printed_as_text():
    model = models.SpectralFit(
        "powerlaw", priors={"photon_index": dist.Normal(2, 1), "log10_amplitude": "Uniform(-5, 0)"}
    )
    assert repr(model.priors) == "photon_index     Normal(loc=2.0, scale=1.0)\nlog10_amplitude  Uniform(-5, 0)"
    assert str(models.Supernova().priors) == "{}"
    assert "x1_std     HalfNormal(scale=2.0)" in str(models.Supernova().all_priors)
    assert model.priors == {"photon_index": model.priors["photon_index"], "log10_amplitude": "Uniform(-5, 0)"}


def test_a_prior_that_is_not_text_is_printed_as_numpyro_does():
    mixture = dist.MixtureSameFamily(dist.Categorical(np.full(2, 0.5)), dist.Normal(np.zeros(2), 1.0))
    text = repr(models.Supernova(priors={"Om0": mixture}, cosmology="wcdm"))
    assert text.startswith("Supernova(cosmology='wcdm')\n")
    assert "MixtureSameFamily" in text


def test_a_user_defined_model_may_have_its_own():
    @dataclass(frozen=True, kw_only=True)
    class Short(PopulationModel):
        default_priors = {"a": dist.Normal(0.0, 1.0)}  # noqa: RUF012

        def __repr__(self):
            return "short"

    @dataclass(frozen=True, kw_only=True)
    class Shorter(Short):
        option: int = 3

    assert repr(Short()) == repr(Shorter()) == "short"
    assert repr(MassStep()).startswith("MassStep(")  # options keep the representation of dataclasses
