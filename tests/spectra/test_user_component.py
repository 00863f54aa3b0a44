"""A component defined outside the package, in one file: it goes wherever those of the package go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.data import read_grouped_spectra
from hbm_jax.inference import maximum_likelihood
from hbm_jax.models import SpectralFit
from hbm_jax.runs import write_report
from hbm_jax.spectra import Parameter, component
from hbm_jax.spectra.model import registration
from hbm_jax.spectra.model.absorbers import precise_cross_section
from hbm_jax.spectra.model.text import spectrum_from_text, spectrum_to_text


@component(
    {
        "index": Parameter("", "Normal(2.0, 0.5)", "local photon index at 1 keV"),
        "curvature": Parameter("", "Normal(0.0, 0.3)", "curvature in log10 of the energy"),
        "log10_amplitude": Parameter("photons/cm^2/s/keV", "Normal(-3.0, 1.0)", "flux density at 1 keV"),
    }
)
def curved(energy, index, curvature, log10_amplitude):
    """Log-parabola."""
    return 10.0 ** (log10_amplitude - (index + curvature * jnp.log10(energy)) * jnp.log10(energy))


@component({"fraction": Parameter("", "Uniform(0.0, 1.0)", "covered part")}, kind="multiplicative")
def grey(energy, fraction):
    """Absorber independent of energy."""
    return (1.0 - fraction) * jnp.ones_like(energy)


TEXT = "tbabs(mw) * grey() * curved()"
TRUTH = {"index": 2.0, "curvature": 0.3, "log10_amplitude": -2.5, "mw_nh": 0.1, "fraction": 0.0}
HELD = {"mw_nh": 0.1, "fraction": 0.0}


def test_expressions_are_read_written_and_evaluated():
    spectrum = spectrum_from_text(TEXT)
    assert list(spectrum.parameters) == ["mw_nh", "fraction", "index", "curvature", "log10_amplitude"]
    assert spectrum_from_text(spectrum_to_text(spectrum)) == spectrum
    assert list(curved("a").parameters) == ["a_index", "a_curvature", "a_log10_amplitude"]
    assert spectrum.unabsorbed == curved()
    energy = np.array([0.5, 1.0, 5.0])
    draws = {name: np.full(4, value) for name, value in TRUTH.items()} | {"fraction": np.linspace(0.0, 0.9, 4)}
    found = np.asarray(jax.jit(spectrum.on(energy))(draws))
    exact = 10**-2.5 * energy ** (-2.0 - 0.3 * np.log10(energy)) * np.exp(-0.1 * precise_cross_section(energy))
    np.testing.assert_allclose(found, exact * (1.0 - draws["fraction"])[:, None], rtol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A spectrum simulated on the command line."""
    out = tmp_path_factory.mktemp("user") / "drawn"
    truth = [word for name, value in TRUTH.items() if name not in HELD for word in ("--set", f"truth.{name}={value}")]
    held = [word for name, value in HELD.items() for word in ("--set", f"prior.{name}={value}")]
    assert cli.main(["simulate", "spectrum", "--spectrum", TEXT, *truth, *held, "--seed", "3", "--out", str(out)]) == 0
    return out


@pytest.mark.long
def test_it_is_fitted_and_comes_back_from_a_file(folder, tmp_path):
    data = read_grouped_spectra(folder / "source.pha")
    model = SpectralFit(TEXT, priors=HELD)
    assert model.units["log10_amplitude"] == "photons/cm^2/s/keV"
    prepared = model.prepare(data)
    assert (prepared.errors < 1e-3).all()
    best = maximum_likelihood(model, prepared, errors="curvature", num_starts=2)
    assert best.converged
    for name, row in best.table.iterrows():
        assert abs(row["value"] - TRUTH[name]) < 4.0 * row["std"], name
    short = {"num_chains": 2, "num_warmup": 20, "num_samples": 20, "progress": False}
    fit = hbm.sample(model, data, seed=1, **short)
    again = hbm.load(fit.save(tmp_path / "fit.nc"))
    assert again.program.spectrum == model.spectrum
    report = write_report(again, tmp_path).read_text()
    assert "curved()" in report


def test_names_are_taken_once_and_packages_declare_theirs(monkeypatch):
    def powerlaw(energy):
        return energy

    with pytest.raises(ValueError, match="expected a name that no other component has; found 'powerlaw'"):
        component({})(powerlaw)
    with pytest.raises(ValueError, match="expected the kind 'additive' or 'multiplicative'; found 'absorber'"):
        component({}, kind="absorber")
    kept = dict(registration.REGISTERED)

    class Entry:
        def load(self):
            registration.REGISTERED.update(kept)

    monkeypatch.setattr(registration.metadata, "entry_points", lambda group: [Entry()] * (group == registration.GROUP))
    registration.REGISTERED.clear()
    try:
        assert list(spectrum_from_text("curved").parameters) == ["index", "curvature", "log10_amplitude"]
    finally:
        registration.REGISTERED.update(kept)
