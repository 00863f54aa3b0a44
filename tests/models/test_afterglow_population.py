"""Populations of simulated afterglows, from files to posteriors: slow."""

import jax
import numpy as np
import pytest
from monte_carlo import seed

import hbm_jax as hbm
from hbm_jax.data import AfterglowPopulation, read_afterglows, write_afterglows
from hbm_jax.models import Afterglow

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("log10_n0", [-6.3, -6.7, -7.5])
def test_fifty_afterglows_with_a_whim(tmp_path, log10_n0, monte_carlo):
    population = AfterglowPopulation(
        photon_index=(2.0, 0.15),
        log10_flux=(-11.3, 0.25),
        log10_nh=(-0.3, 0.5),
        log10_n0=log10_n0,
        log10_T=6.0,
        exposure=5000.0,
        min_counts=0,
    )
    sample = population.draw(50, seed=seed(3))
    catalog = write_afterglows(tmp_path, sample)
    data = read_afterglows(catalog, spectra=tmp_path / "spectra")
    fit = hbm.sample(Afterglow(whim=True), data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.tree.posterior.to_dataset()
    for name in ("photon_index", "log10_flux", "log10_nh"):
        for part in ("mean", "std"):
            values, true = draws[f"{name}_{part}"].to_numpy(), sample.truth[f"{name}_{part}"]
            monte_carlo.within(values.mean(), true, values.std(), name=f"{name}_{part}")
    # Where the density is low it is bounded from above only: the truth is inside what the posterior holds.
    values = draws["log10_n0"].to_numpy()
    assert np.quantile(values, 0.005) < log10_n0 < np.quantile(values, 0.995)


@pytest.mark.parametrize("whim", [False, True])
def test_posteriors_of_twenty_afterglows_are_calibrated(tmp_path, whim):
    design = AfterglowPopulation(redshift=(0.5, 5.0), log10_flux=(-11.3, 0.1), exposure=2500.0, min_counts=0)
    catalog = write_afterglows(tmp_path, design.draw(20, seed=seed(5)))
    # Wide groups: quicker, and calibration is of what is fitted, whatever it is.
    options = {"grouping": "channels_per_group", "group_by": 100}
    data = read_afterglows(catalog, spectra=tmp_path / "spectra", **options)
    priors = {
        "photon_index_mean": "Normal(2, 0.2)",
        "photon_index_std": "HalfNormal(0.2)",
        "log10_flux_mean": "Normal(-11.3, 0.2)",
        "log10_flux_std": "HalfNormal(0.3)",
        "log10_nh_mean": "Normal(-0.3, 0.3)",
        "log10_nh_std": "HalfNormal(0.4)",
    } | ({"log10_n0": "Normal(-6.8, 0.5)"} if whim else {})
    model = Afterglow(whim=whim, priors=priors)
    prepared = model.prepare(data, tolerance=1e-2)
    result = hbm.calibrate(
        model,
        prepared,
        num_replicates=32,
        num_chains=2,
        num_warmup=400,
        max_num_samples=2000,
        seed=seed(7),
        progress=False,
    )
    assert result.calibrated, str(result)


def test_a_population_of_cutoff_power_laws_recovers_its_truth(tmp_path, monte_carlo):
    truth = {"photon_index_mean": 1.5, "photon_index_std": 0.25, "log10_e_cut_mean": 0.7, "log10_e_cut_std": 0.2}
    truth |= {"log10_flux_mean": -10.9, "log10_flux_std": 0.3, "log10_nh_mean": -0.4, "log10_nh_std": 0.5}
    design = AfterglowPopulation(redshift=(0.4, 1.5, 4.0), log10_flux=(-11.0, 0.1), exposure=10000.0, min_counts=0)
    data = read_afterglows(write_afterglows(tmp_path, design.draw(25, seed=seed(4))), spectra=tmp_path / "spectra")
    model = Afterglow(spectrum="tbabs(mw) * ztbabs(host) * cutoffpl")
    assert set(model.all_priors) == set(truth)
    sample, _ = model.simulate(jax.random.key(seed(2)), data, truth)
    fit = hbm.sample(model, sample, seed=seed(1), num_warmup=1000, num_samples=1000, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.tree.posterior.to_dataset()
    for name, true in truth.items():
        values = draws[name].to_numpy()
        monte_carlo.within(values.mean(), true, values.std(), name=name)


def test_a_population_of_power_laws_with_black_bodies_recovers_its_truth(tmp_path, monte_carlo):
    """Both components are measured in most sources: the black body holds about half of the flux."""
    truth = {"photon_index_mean": 2.0, "photon_index_std": 0.25, "log10_flux_mean": -11.0, "log10_flux_std": 0.3}
    truth |= {"log10_bb_kT_mean": 0.0, "log10_bb_kT_std": 0.15, "bb_log10_flux_mean": -11.0, "bb_log10_flux_std": 0.25}
    truth |= {"log10_nh_mean": -0.4, "log10_nh_std": 0.4}
    design = AfterglowPopulation(redshift=(0.4, 1.5, 4.0), log10_flux=(-11.0, 0.1), exposure=20000.0, min_counts=0)
    options = {"grouping": "channels_per_group", "group_by": 10}
    catalog = write_afterglows(tmp_path, design.draw(25, seed=seed(4)))
    data = read_afterglows(catalog, spectra=tmp_path / "spectra", **options)
    model = Afterglow(spectrum="tbabs(mw) * ztbabs(host) * (powerlaw + bbodyrad(bb))")
    assert set(model.all_priors) == set(truth)
    sample, _ = model.simulate(jax.random.key(seed(2)), data, truth)
    prepared = model.prepare(sample)
    # A black body that is far brighter than the counts allow would need more than a thousand.
    assert prepared.known.blocks[0].shape[2] + prepared.known.first[0] < 500
    assert model.cautions(sample, prepared) == ()
    fit = hbm.sample(model, sample, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    draws = fit.tree.posterior.to_dataset()
    for name, true in truth.items():
        values = draws[name].to_numpy()
        monte_carlo.within(values.mean(), true, values.std(), name=name)
