"""Supernovae in hosts of known distance: density of moved magnitudes, tables, what is refused, recovery of H0."""

import dataclasses

import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import FEW, JLA, TRUTH, moduli
from models.test_supernova_options import MORE_PRIORS, Plain, T
from scipy import stats

import hbm_jax
from hbm_jax.data import DataError, Supernovae, combine_observations, read_supernovae
from hbm_jax.models import Supernova
from hbm_jax.models.supernovae.bound import padded
from hbm_jax.plotting.supernovae.hubble import modulus_draws
from hbm_jax.validation import OptionError

H0 = 64.0
PRIORS = MORE_PRIORS | {"H0": stats.uniform(40, 60)}
MODULI = np.array([np.nan, 31.2, np.nan, np.nan, 33.0, np.nan])


@pytest.fixture(scope="module")
def anchored():
    """Six supernovae of JLA, of which two are calibrators."""
    few = FEW.subset([0, 2, 4, 6, 9, 12])
    known = np.isfinite(MODULI)
    return dataclasses.replace(
        few,
        m_b=np.where(known, MODULI - 19.2, few.m_b),
        mu_calibrator=MODULI,
        sigma_mu_calibrator=np.where(known, 0.12, np.nan),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"outliers": True, "mass_error": True, "stretch": "two"}, {"velocity": "redshift", "sigma_v": 400.0}],
    ids=["normal", "mixture", "velocities"],
)
def test_a_calibrator_has_the_distance_of_its_host_and_no_velocity(anchored, options):
    """Its density is that of the magnitude moved to the modulus of the cosmology, with the error of its modulus."""
    truth, total = T | {"H0": H0}, 0.0
    for n in range(len(anchored)):
        one, chosen = anchored.subset([n]), options
        if np.isfinite(MODULI[n]):
            covariance = one.covariance + 0.12**2 * np.diag([1.0, 0.0, 0.0])
            moved = one.m_b - MODULI[n] + moduli(one, truth)
            one = dataclasses.replace(one, m_b=moved, covariance=covariance, variance_velocity=np.zeros(1))
            chosen = {key: value for key, value in options.items() if key not in ("velocity", "sigma_v")}
        total += Plain(Supernova(**chosen), one, truth).total()
    model = Supernova(calibrated=True, **options)
    sites = {name: truth[name] for name in model.all_priors}
    density, gradient = LogDensity(model, anchored).with_gradient(sites)
    prior = sum(PRIORS[name].logpdf(value) for name, value in sites.items())
    np.testing.assert_allclose(density - prior, total, rtol=1e-6)
    assert all(np.isfinite(slope).all() for slope in gradient.values())


def test_padded_calibrators_keep_the_density(anchored):
    model = Supernova(calibrated=True)
    sites = {name: (T | {"H0": H0})[name] for name in model.all_priors}
    more, expected = padded(model.bound(anchored), 9), LogDensity(model, anchored)(sites)
    assert len(more.mu_calibrator) == 9
    np.testing.assert_allclose(LogDensity(model, more)(sites), expected, rtol=1e-12)


def test_calibrators_in_tables(anchored, tmp_path):
    anchored.to_table().write(tmp_path / "anchored.ecsv")
    again = read_supernovae(tmp_path / "anchored.ecsv")
    np.testing.assert_array_equal(again.mu_calibrator, MODULI)
    np.testing.assert_array_equal(again.sigma_mu_calibrator, anchored.sigma_mu_calibrator)
    assert "2 are calibrators of known distance" in again.describe()
    np.testing.assert_array_equal(Supernovae.from_dict(anchored.to_dict()).mu_calibrator, MODULI)
    assert "mu_calibrator" not in FEW.to_dict()
    twice = anchored.subset([1, 1, 0])
    errors = {"mu_calibrator": np.array([31.0, 31.4, np.nan]), "sigma_mu_calibrator": np.array([0.2, 0.1, np.nan])}
    np.testing.assert_array_equal(
        combine_observations(dataclasses.replace(twice, **errors)).mu_calibrator, [31.4, np.nan]
    )
    columns = {name: getattr(FEW, name) for name in ("z_cmb", "z_hel", "m_b", "x1", "c", "covariance")}
    with pytest.raises(DataError, match=r"mu_calibrator.*expected a sigma_mu_calibrator beside it"):
        Supernovae.from_columns(columns | {"mu_calibrator": np.full(len(FEW), 33.0)})


def test_refusals(anchored):
    with pytest.raises(DataError, match=r"calibrated=False expects no calibrators in the sample .*found 2"):
        Supernova().bind(anchored)
    with pytest.raises(DataError, match=r"calibrated=True expects calibrators in the sample .*found 0"):
        Supernova(calibrated=True).bind(FEW)
    with pytest.raises(OptionError, match=r"calibrated=True expects a free M0; found -19.3 of cosmology='nodes'"):
        Supernova(calibrated=True, cosmology="nodes")
    assert Supernova(calibrated=True).blinded == ("H0", "Om0", "M0")


@pytest.mark.long
def test_the_hubble_constant_is_recovered(monte_carlo):
    """30 calibrators; the error of H0 is that of the difference of two mean magnitudes."""
    rng = np.random.default_rng(3)
    num = 30
    mu = np.where(np.arange(len(JLA)) < num, rng.uniform(30, 33, len(JLA)), np.nan)
    design = dataclasses.replace(JLA, mu_calibrator=mu, sigma_mu_calibrator=np.where(np.isnan(mu), np.nan, 0.05))
    model = Supernova(calibrated=True)
    drawn, _ = model.simulate(jax.random.key(2), design, TRUTH | {"Om0": 0.3, "H0": 74.0})
    fit = hbm_jax.sample(model, drawn, seed=1, progress=False)
    assert fit.verdict.usable
    moduli_shown = modulus_draws(fit, drawn)
    offset = np.asarray(fit.posterior["M0"]) - np.median(fit.posterior["M0"])
    assert np.ptp(moduli_shown[:, :num] - mu[:num]) < np.ptp(offset) + 1e-9
    posterior = np.asarray(fit.posterior["H0"])
    assert abs(posterior.mean() - 74.0) < 3.5 * posterior.std()
    scatter = np.sqrt(TRUTH["sigma_int"] ** 2 + 0.05**2 + np.mean(design.covariance[:num, 0, 0]))
    expected = 74.0 * np.log(10) / 5 * scatter / np.sqrt(num)
    assert 0.8 * expected < posterior.std() < 1.8 * expected
