"""The everyday fit on the command line: counts of a composed spectrum drawn, written, fitted; what is refused."""

import dataclasses
import json
import os

import numpy as np
import pandas as pd
import pytest
from commands import handed_to_the_sampler, refused, run

from hbm_jax import best_fit, cli
from hbm_jax.data import DataWarning, read_grouped_spectra
from hbm_jax.models import SpectralFit
from hbm_jax.plotting.xray.best_fit import best_fit_spectra, best_fit_unfolded
from hbm_jax.runs import load
from hbm_jax.spectra import read_pha, write_pha

MODEL = "powerlaw * tbabs(mw)"
TRUTH = ["--set", "truth.photon_index=2", "--set", "truth.log10_amplitude=-3", "--set", "prior.mw_nh=0.1"]


@pytest.fixture(autouse=True)
def keep_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "drawn"
    assert cli.main(["simulate", "spectrum", "--spectrum", MODEL, *TRUTH, "--seed", "3", "--out", str(out)]) == 0
    return out


def test_a_spectrum_drawn_reaches_the_sampler_alone_and_with_another(folder, tmp_path, capsys, monkeypatch):
    pha = folder / "source.pha"
    with pytest.warns(DataWarning, match=r"source.pha: read more than once, so their counts enter the likelihood"):
        twice = read_grouped_spectra([pha, pha])
    assert len(twice) == 2
    assert "their counts enter the likelihood more than once" in twice.describe()
    with pytest.warns(DataWarning, match="read more than once"):
        assert len(read_grouped_spectra(pha, also=[str(pha)])) == 2
    options = ["--data", pha, "--spectrum", MODEL, "--set", "prior.mw_nh=0.1", "--set", "data.energies=[0.5, 8]"]
    fit = ["fit", "spectrum", *options, "--out", tmp_path / "run"]
    model, spectra, _ = handed_to_the_sampler(capsys, monkeypatch, *fit)
    assert model.description == "Spectral fit of PowerLaw(norm='amplitude') * Absorption(label='mw')"
    assert model.priors.keys() == {"mw_nh"}
    assert "from 0.5 to 8 keV" in spectra.describe()


@pytest.mark.long
def test_a_spectrum_drawn_is_fitted(folder, tmp_path, capsys):
    pha, out = folder / "source.pha", tmp_path / "run"
    short = ["--num-chains", "2", "--num-warmup", "150", "--num-samples", "100", "--seed", "1"]
    arguments = ["--data", pha, "--spectrum", MODEL, "--set", "prior.mw_nh=0.1", "--set", "data.energies=[0.5, 8]"]
    status, printed, err = run(capsys, "fit", "spectrum", *arguments, "--out", out, *short)
    assert status in (0, cli.MISFIT, cli.NOT_USABLE), err  # so few draws
    assert "Spectral fit of PowerLaw(norm='amplitude') * Absorption(label='mw')" in printed
    assert "from 0.5 to 8 keV" in printed
    fit = load(out)
    for name, true in (("photon_index", 2.0), ("log10_amplitude", -3.0)):
        draws = fit.posterior[name].to_numpy()
        assert abs(draws.mean() - true) < 4 * draws.std(), name
    assert {"spectra", "unfolded_spectrum", "corner"} <= {path.stem for path in (out / "figures").iterdir()}
    assert "source.pha" in (out / "report.html").read_text()


@pytest.mark.long
def test_a_best_fit_without_sampling(folder, tmp_path, capsys):
    pha, out = folder / "source.pha", tmp_path / "best"
    options = ["--data", pha, "--spectrum", "(po + bbodyrad(bb)) * tbabs(mw)", "--energies", "[0.5, 8]"]
    held = ["--prior", "mw_nh=0.1", "--prior", "bb_kT=0.5", "--prior", "bb_log10_amplitude=-1"]
    best = ["--best-fit", "--level", "0.9", "--band", "[0.5, 2]", "--redshift", "0.5"]
    best += ["--profile", "photon_index", "--contour", "photon_index, log10_amplitude"]
    status, printed, err = run(capsys, "fit", "spectrum", *options, *held, *best, "--out", out)
    assert status == 0, err
    profile = pd.read_csv(out / "profile_photon_index.csv")
    at_ends = np.interp(pd.read_csv(out / "parameters.csv").loc[0, ["lower", "upper"]], *profile.to_numpy().T[:2])
    np.testing.assert_allclose(at_ends, 2.706, atol=0.1)  # linear between 31 points
    assert len(pd.read_csv(out / "contour_photon_index_log10_amplitude.csv")) == 625
    assert (out / "contour_photon_index_log10_amplitude.pdf").stat().st_size > 1000
    again = load(out)
    assert str(again).partition("\n\n")[2] in printed
    assert printed.count(again.model.description) == 1
    table = pd.read_csv(out / "parameters.csv", index_col=0)
    std, value = table["std"], table["value"]
    assert (np.abs(value - [2.0, -3.0]) < 5 * std).all()
    # 90 % of a nearly normal likelihood.
    np.testing.assert_allclose((table["upper"] - table["lower"]) / (2 * 1.6449 * std), 1.0, atol=0.05)
    fluxes = pd.read_csv(out / "fluxes.csv").set_index(["component", "quantity"])
    assert len(fluxes) == 9  # total, two components; absorbed, unabsorbed, luminosity
    kev = 1.602176634e-9

    def log10_flux(index, log10_amplitude):
        return log10_amplitude + np.log10(kev * (2 ** (2 - index) - 0.5 ** (2 - index)) / (2 - index))

    row = fluxes.loc[("PowerLaw", "unabsorbed flux")]
    assert row["value"] == pytest.approx(10 ** log10_flux(*value), rel=1e-9)
    covariance = pd.read_csv(out / "covariance.csv", index_col=0).to_numpy()
    slope = (log10_flux(value.iloc[0] + 1e-5, 0.0) - log10_flux(value.iloc[0] - 1e-5, 0.0)) / 2e-5
    error = 1.6449 * np.sqrt([slope, 1.0] @ covariance @ [slope, 1.0])
    assert np.log10(row["upper"] / row["lower"]) == pytest.approx(2 * error, rel=0.01)  # nearly normal
    assert fluxes.loc[("total", "flux")]["value"] < fluxes.loc[("total", "unabsorbed flux")]["value"]
    spectra = pd.read_csv(out / "spectra.csv")
    np.testing.assert_allclose(spectra["PowerLaw"] + spectra["bb"], spectra["source"], rtol=1e-3)
    assert spectra["counts"].sum() == read_grouped_spectra(pha, energies=(0.5, 8.0)).counts.sum()
    stored = json.loads((out / "best_fit.json").read_text())
    assert stored["model"]["priors"]["mw_nh"] == "0.1"
    assert 0.0 < stored["p_value"] <= 1.0
    assert "degrees of freedom" in printed
    assert (out / "parameters.tex").read_text().count("^{+") == 2
    for figure in ("spectra", "unfolded"):
        assert (out / f"{figure}.pdf").stat().st_size > 1000
    assert refused(capsys, "fit", "spectrum", *options, "--best-fit", "--out", out).count("--overwrite") == 1


@pytest.mark.long
def test_figures_of_a_best_fit_name_their_axes(folder):
    data = read_grouped_spectra(folder / "source.pha", energies=(0.5, 8.0))
    model = SpectralFit("powerlaw * tbabs(mw)", priors={"mw_nh": 0.1, "photon_index": 2.0})
    best = best_fit(model, data, num_starts=1, num_simulations=0, bands=[(0.5, 2.0)])
    upper, lower = best_fit_spectra(best).axes
    assert lower.get_xlabel() == "energy [keV]"
    assert (upper.get_xlabel(), upper.get_ylabel(), lower.get_ylabel()) == (
        "",
        "counts s$^{-1}$ keV$^{-1}$",
        "residual",
    )
    (unfolded,) = best_fit_unfolded(best).axes
    assert unfolded.get_xlabel() == "observed energy [keV]"
    assert "erg cm$^{-2}$ s$^{-1}$" in unfolded.get_ylabel()


def test_a_contour_on_the_command_line_needs_two_parameters(folder, tmp_path, capsys):
    options = ["--data", folder / "source.pha", "--spectrum", MODEL, "--best-fit", "--contour", "photon_index"]
    assert "--contour: expected two parameters" in refused(
        capsys, "fit", "spectrum", *options, "--out", tmp_path / "run"
    )


@pytest.mark.parametrize("bands", [[], [(2.0, 0.5)], (0.5, 2.0)])
def test_bands_of_fluxes_are_checked_before_the_fit(bands, folder):
    data = read_grouped_spectra(folder / "source.pha", energies=(0.5, 8.0))
    with pytest.raises(ValueError, match=r"best_fit: bands: expected (one band|two positive energies)"):
        best_fit(SpectralFit("powerlaw * tbabs(mw)"), data, bands=bands)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "{0}/source.pha"], ["model.spectrum: expected a value", "tbabs", "--spectrum"]),
        (["--data", "{0}/source.pha", "--spectrum", "powerlow"], ["'powerlow' is unknown", "did you mean 'powerlaw'"]),
        (["--data", "{0}/nowhere.pha", "--spectrum", MODEL], ["nowhere.pha", "does not exist"]),
        (["--data", "{0}/source.pha", "--also", "nowhere.pha", "--spectrum", MODEL], ["nowhere.pha"]),
        (["--data", "{0}/source.pha{2}", "--spectrum", MODEL], ["found number 2"]),
        (["--data", "{0}/response.rmf", "--spectrum", MODEL], ["response.rmf", "expected an extension SPECTRUM"]),
        (["--data", "{0}/source.pha", "--spectrum", MODEL, "--set", "data.energies=[20, 30]"], ["20 to 30 keV"]),
        (["--data", "{0}/source.pha", "--spectrum", MODEL, "--set", "prior.nh=0.1"], ["'nh'", "mw_nh"]),
    ],
)
def test_bad_options_of_a_fit(options, words, folder, tmp_path, capsys):
    named = [option.replace("{0}", str(folder)) for option in options]
    text = refused(capsys, "fit", "spectrum", *named, "--out", tmp_path / "run")
    for word in words:
        assert word in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["model.spectrum: expected a value"]),
        (["--spectrum", MODEL, "--set", "truth.photon_index=2"], ["truth.log10_amplitude=1", "mw_nh (hydrogen column"]),
        (["--spectrum", MODEL, *TRUTH, "--set", "truth.index=2"], ["'index'", "photon_index"]),
        (["--spectrum", MODEL, *TRUTH, "--design", "a.pha"], ["expected no --design"]),
        (["--spectrum", MODEL, *TRUTH, "--set", "population.exposure=-1"], ["expected a positive time"]),
        (["--spectrum", MODEL, *TRUTH, "--set", "population.time=1"], ["'time'", "exposure"]),
    ],
)
def test_bad_options_of_a_simulation(options, words, tmp_path, capsys):
    text = refused(capsys, "simulate", "spectrum", *options, "--out", tmp_path / "drawn")
    for word in words:
        assert word in text
    assert not (tmp_path / "drawn").exists()


def test_a_model_of_the_background_on_the_command_line(folder, tmp_path, capsys, monkeypatch):
    (source,) = read_pha(folder / "source.pha")
    background = dataclasses.replace(source, counts=np.full(len(source), 2.0), exposure=3 * source.exposure, files={})
    pha = write_pha(tmp_path / "back.pha", background)
    options = ["--data", folder / "source.pha", "--background", pha, "--spectrum", MODEL, "--energies", "[0.5, 8]"]
    fit = ["fit", "spectrum", *options, "--out", tmp_path / "run"]
    model_of_background = ["--background-response", "rmf", "--background-spectrum", "powerlaw(bkg)"]
    model, spectra, _ = handed_to_the_sampler(capsys, monkeypatch, *fit, *model_of_background)
    assert spectra.name == ("source.pha", "source.pha, background")
    np.testing.assert_allclose(np.asarray(spectra.region_ratio)[0], 3.0)
    assert spectra.exposure[1] == 3 * spectra.exposure[0]
    assert {"bkg_photon_index", "bkg_log10_amplitude"} <= set(model.all_priors)
    assert "with the background PowerLaw(label='bkg', norm='amplitude')" in model.description
    (tmp_path / "fit.toml").write_text(
        f'[model]\nname = "spectrum"\nspectrum = "{MODEL}"\nbackground_spectrum = "powerlaw(bkg)"\n'
        f'[data]\nsource = "{folder / "source.pha"}"\nbackground = "{pha}"\nbackground_response = "rmf"\n'
    )
    toml = ["fit", "--config", tmp_path / "fit.toml", "--energies", "[0.5, 8]", "--out", tmp_path / "run"]
    again, same, _ = handed_to_the_sampler(capsys, monkeypatch, *toml)
    assert again == model
    np.testing.assert_array_equal(same.counts, spectra.counts)
