"""Parameters tied to others by formulas: values against those written out, storage, and errors."""

import jax
import numpy as np
import pytest
from commands import handed_to_the_sampler
from numpyro import handlers
from small_ogip import small_arf, small_rmf, small_spectrum

from hbm_jax.models import SpectralFit
from hbm_jax.models.ties import Tie
from hbm_jax.spectra import Response, SpectrumStack, write_arf, write_pha, write_rmf

SPECTRUM = "PowerLaw(a) + PowerLaw(b)"
TIED = {"b_photon_index": "a_photon_index + 0.5", "b_log10_flux": "a_log10_flux + log10(b_photon_index / 5)"}


@pytest.fixture(scope="module")
def stack():
    response = Response.of(small_rmf())
    return SpectrumStack.of([small_spectrum(response=response), small_spectrum(response=response, seed=7)])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x", 3.0),
        ("-x + 2 * y ** 2", 47.0),
        ("(1 + x) / y", 0.8),
        ("sqrt(abs(-x)) * exp(log(3))", 3**1.5),
        ("+1e1 - x", 7),
    ],
)
def test_formulas_are_arithmetic(text, value):
    assert float(Tie(text)({"x": 3.0, "y": 5.0})) == pytest.approx(value, rel=1e-6)


def test_tied_values_enter_every_computation(stack):
    tied = SpectralFit(SPECTRUM, priors=TIED, own="a_photon_index")
    bound = tied.prepare(stack)
    free = {"a_photon_index": np.array([1.5, 2.0]), "a_log10_flux": -3.0}
    written_out = free | {"b_photon_index": np.array([2.0, 2.5]), "b_log10_flux": -3 + np.log10([0.4, 0.5])}
    with jax.enable_x64(True):
        by_hand = np.asarray(bound.expected({name: np.asarray(value, float) for name, value in written_out.items()}))
        seeded = handlers.seed(handlers.substitute(tied, {n: np.asarray(v, float) for n, v in free.items()}), 0)
        trace = handlers.trace(seeded).get_trace(bound)
    np.testing.assert_allclose(tied.expected(bound, free), by_hand, rtol=1e-12)
    assert [name for name, site in trace.items() if site["type"] == "sample"] == [*free, "counts"]
    for name in TIED:
        np.testing.assert_allclose(trace[name]["value"], written_out[name], rtol=1e-12)
    np.testing.assert_allclose(trace["counts"]["fn"].expected, by_hand, rtol=1e-12)
    assert tied.deviance(bound, free).degrees_of_freedom == 24 - 3


def test_ties_are_stored_as_text():
    tied = SpectralFit(SPECTRUM, priors=TIED)
    config = tied.to_config()
    assert {name: config["priors"][name] for name in TIED} == TIED
    again = SpectralFit(**config)
    assert again.to_config() == config
    assert list(again.ties) == list(TIED)


def test_ties_from_the_command_line(tmp_path, capsys, monkeypatch):
    write_rmf(tmp_path / "a.rmf", small_rmf())
    write_arf(tmp_path / "a.arf", small_arf())
    write_pha(tmp_path / "a.pha", small_spectrum(), rmf="a.rmf", arf="a.arf")
    (tmp_path / "ties.toml").write_text(f'[prior]\nb_photon_index = "{TIED["b_photon_index"]}"\n')
    arguments = ["fit", "spectrum", "--data", tmp_path / "a.pha", "--spectrum", SPECTRUM, "--out", tmp_path / "run"]
    arguments += ["--prior", f"b_log10_flux={TIED['b_log10_flux']}", "--config", tmp_path / "ties.toml"]
    model, *_ = handed_to_the_sampler(capsys, monkeypatch, *arguments)
    assert {name: str(tie) for name, tie in model.ties.items()} == TIED


@pytest.mark.parametrize(
    ("priors", "words"),
    [
        (
            {"b_log10_flux": "a_log10_flx - 1"},
            r"prior.b_log10_flux: .*found 'a_log10_flx' \(did you mean 'a_log10_flux'",
        ),
        (
            {"b_log10_flux": "a_log10_flux", "a_log10_flux": "b_log10_flux"},
            "depend on each other; found (b_log10_flux -> a_log10_flux -> b_log10_flux|a_log10_flux -> b_log10_flux)",
        ),
        ({"b_log10_flux": "b_log10_flux + 1"}, "found b_log10_flux -> b_log10_flux"),
        ({"b_log10_flux": "a_log10_flux if 1 else 2"}, "is not a number, a parameter"),
        ({"b_log10_flux": "a_log10_flux.real"}, "is not a number, a parameter"),
        ({"b_log10_flux": "2 * Normal(0, 1)"}, "where .* is not a number"),
        ({"b_log10_flux": "log10(2)"}, "which names no parameter"),
        ({"b_log10_flux": "a_log10_flux + 1 / 0"}, "which cannot be read"),
        ({"b_log10_flux": "a_log10_flux * (-1) ** 0.5"}, "which is not a real number"),
        ({"b_log10_flux": "Nomral(0, 1)"}, r"'Nomral' is not a NumPyro distribution \(did you mean 'Normal'"),
        ({"b_log10_flux": "a_log10_flux + " * 100 + "1"}, "of more than 1000 characters"),
        (
            {"a_photon_index": "b_photon_index"},
            "own: expected parameters that are not tied to others; found 'a_photon_index'",
        ),
    ],
)
def test_errors_name_parameter_and_formula(priors, words):
    with pytest.raises(ValueError, match=words):
        SpectralFit(SPECTRUM, priors=priors, own="a_photon_index")


def test_a_value_to_which_another_is_tied_must_be_given(stack):
    with pytest.raises(ValueError, match="expected a value of 'a_photon_index', to which 'b_photon_index' is tied"):
        SpectralFit(SPECTRUM, priors=TIED).complete({"a_log10_flux": -3.0})
