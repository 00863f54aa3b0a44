"""Searches start where a line or an edge lowers the statistic most."""

import jax
import numpy as np
import pytest
from small_ogip import small_spectrum

from hbm_jax import maximum_likelihood, sample
from hbm_jax.inference.likelihood import search
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import Response, SpectrumStack
from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.statistics.feature_scan import Feature, energies_of, peaks

RMF = xrt_like_rmf(num_energies=400, num_channels=900)
RESPONSE = Response.of(RMF, xrt_like_arf(RMF))
CONTINUUM = {"photon_index": 1.8, "log10_amplitude": -3.0}


def spectrum_of(counts, exposure):
    channel = np.ones(len(counts))
    settings = {"quality": 0 * channel.astype(int), "grouping": 0 * channel.astype(int)}
    settings |= {"channels": RMF.channels, "backscal": channel, "areascal": channel}
    return small_spectrum(counts=counts, response=RESPONSE, exposure=exposure, **settings)


def stack_of(spectrum, truth, exposures=(2e5,)):
    """Spectra drawn from a model."""
    model, spectra, rng = SpectralFit(spectrum), [], np.random.default_rng(1)
    for exposure in exposures:
        empty = SpectrumStack.of([spectrum_of(np.zeros(900), exposure)])
        spectra.append(spectrum_of(rng.poisson(model.expected(empty, truth)[0]).astype(float), exposure))
    return SpectrumStack.of(spectra)


@pytest.mark.parametrize(
    ("feature", "truth"),
    [
        pytest.param(
            "(po + gauss(x))", {"x_energy": 6.4, "x_sigma": 0.05, "x_log10_amplitude": -4.3}, marks=pytest.mark.long
        ),
        pytest.param(
            "(po + gauss(x))", {"x_energy": 6.4, "x_sigma": 0.05, "x_log10_amplitude": -4.8}, marks=pytest.mark.long
        ),
        pytest.param("po * edge(x)", {"x_energy": 3.2, "x_max_tau": 0.5}, marks=pytest.mark.long),
        pytest.param("po * gabs(x)", {"x_energy": 4.1, "x_sigma": 0.1, "x_strength": 0.15}, marks=pytest.mark.long),
    ],
)
def test_a_feature_is_found_with_the_default_prior(feature, truth):
    stack = stack_of(feature, CONTINUUM | truth)
    fixed = {name: value for name, value in truth.items() if name.endswith("sigma")}
    model = SpectralFit(feature, priors=fixed)
    best = maximum_likelihood(model, stack, num_starts=1, errors=None)
    assert best.table.loc["x_energy", "value"] == pytest.approx(truth["x_energy"], abs=0.05)


@pytest.mark.long
def test_lines_of_each_spectrum_are_found_separately():
    both = stack_of(
        "po + gauss(x)", CONTINUUM | {"x_energy": 2.0, "x_sigma": 0.05, "x_log10_amplitude": -4.0}, (1e5, 1e5)
    )
    other = stack_of("po + gauss(x)", CONTINUUM | {"x_energy": 5.0, "x_sigma": 0.05, "x_log10_amplitude": -4.0}, (1e5,))
    stack = SpectrumStack.joined([other, both])
    model = SpectralFit("po + gauss(x)", priors={"x_sigma": 0.05}, own=("x_energy", "x_log10_amplitude"))
    best = maximum_likelihood(model, stack, num_starts=1, errors=None)
    np.testing.assert_allclose(best.parameters["x_energy"], [5.0, 2.0, 2.0], atol=0.05)


def test_the_fall_is_that_of_the_statistic_of_the_model():
    truth = {"x_energy": 6.4, "x_sigma": 0.05, "x_log10_amplitude": -4.3}
    stack, model = stack_of("po + gauss(x)", CONTINUUM | truth), SpectralFit("po + gauss(x)")
    energies = energies_of(np.array([4.0, 5.0, 6.0]), 0.0, np.inf, 100)
    assert np.diff(np.log(energies)) == pytest.approx(np.log(energies[1] / energies[0]))
    with jax.enable_x64(True):
        bound = model.bound(stack)
        found = peaks(
            bound, truth | CONTINUUM, None, Feature("x_energy", "x_log10_amplitude", "x_sigma"), energies,
            num=2, untied=(False, False),
        )  # fmt: skip
    assert found[0].fall > found[1].fall
    assert abs(np.log(found[0].energy / found[1].energy)) > 0.05
    for peak in found:
        values = CONTINUUM | {"x_energy": peak.energy, "x_sigma": peak.width, "x_log10_amplitude": peak.strength}
        without = model.deviance(stack, values | {"x_log10_amplitude": -60.0}).total
        assert peak.fall == pytest.approx(without - model.deviance(stack, values).total, rel=1e-6, abs=1e-6)
    # Within the prior
    assert energies_of(np.array([6.2, 6.5, 6.9]), 6.0, 7.0, 100)[[0, -1]] == pytest.approx([6.0, 7.0])


@pytest.mark.long
@pytest.mark.parametrize("log10_amplitude", [-4.0, -4.7])
def test_both_kinds_of_inference_find_a_line_in_two_instruments(log10_amplitude):
    truth = CONTINUUM | {"x_energy": 6.4, "x_sigma": 0.05, "x_log10_amplitude": log10_amplitude}
    stack = stack_of("po + gauss(x)", truth, (2e5, 1e5))
    model = SpectralFit("po + gauss(x)", priors={"x_sigma": 0.05}, calibration=True)
    best = maximum_likelihood(model, stack, errors="curvature")
    assert best.converged
    line = best.table.loc["x_energy"]
    assert abs(line["value"] - 6.4) < 4 * line["std"]
    assert line["std"] < 0.03
    fit = sample(model, stack, seed=1, num_chains=2, num_warmup=300, num_samples=300, progress=False)
    energy = fit.posterior["x_energy"].to_numpy()
    assert abs(energy.mean(axis=1) - 6.4).max() < 4 * line["std"]
    assert abs(fit.posterior["x_log10_amplitude"].to_numpy().mean() - log10_amplitude) < 0.2


@pytest.mark.long
def test_an_end_in_another_maximum_is_said(monkeypatch):
    """Without a search from the energy that the scan finds, a warning names it."""
    truth = CONTINUUM | {"x_energy": 6.4, "x_sigma": 0.05, "x_log10_amplitude": -4.3}
    stack = stack_of("po + gauss(x)", truth)
    run = search.Search.run
    monkeypatch.setattr(search.Search, "run", lambda self, starts: self.ends or run(self, starts))
    best = maximum_likelihood(SpectralFit("po + gauss(x)", priors={"x_sigma": 0.05}), stack, num_starts=1, errors=None)
    assert "this is not the highest maximum: with x_energy = 6.4" in best.note
    assert not best.converged
