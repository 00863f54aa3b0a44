"""Population of photometric redshifts: density by numerical integration, simulation, and recovery."""

import dataclasses

import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import JLA, PRIORS, TRUTH, moduli
from monte_carlo import seed
from scipy import integrate, stats

import hbm_jax
from hbm_jax.data import DataError
from hbm_jax.models import Supernova
from hbm_jax.validation import OptionError

MODEL = Supernova(redshift_prior="gamma")
T = {"Om0": 0.3} | TRUTH | {"z_mean": 0.45, "z_shape": 6.0}
PRIORS = PRIORS | {"z_mean": stats.lognorm(0.7, 0, np.exp(-0.7)), "z_shape": stats.lognorm(0.8, 0, np.exp(1.6))}
SIGMA = np.array([0.02, 0.0, 0.03, 0.05, 0.015, 0.06])


def photometric(num):
    """Supernovae of JLA beyond z = 0.2."""
    far = JLA.subset(np.flatnonzero(JLA.z_cmb > 0.2))
    return far.subset(np.linspace(0, len(far) - 1, num).astype(int))


def few():
    sne = dataclasses.replace(photometric(6), sigma_z=SIGMA, z_cmb=np.array([0.25, 0.3, 0.4, 0.5, 0.2, 0.9]))
    return dataclasses.replace(sne, m_b=moduli(sne, T) + T["M0"] + 0.2 * np.array([1, -1, 1, -2, 0, 1]))


def densities(sne, n, z, p):
    """Density of the observed x1, c and m_b of supernova n for true redshifts, from the definition of the model."""
    moved = sne.subset(np.full(len(z), n))
    moved = dataclasses.replace(moved, z_cmb=z, z_hel=moved.z_hel + z - moved.z_cmb)
    mean_m = moduli(moved, p) + p["M0"] + p["delta_M"] * (sne.log10_mass[n] > 10)
    slopes = np.array([[1, 0, 0], [0, 1, 0], [-p["alpha"], p["beta"], 1]])
    scale = slopes * np.array([p["x1_std"], p["c_std"], p["sigma_int"]])
    covariance = scale @ scale.T + sne.covariance[n][np.ix_([1, 2, 0], [1, 2, 0])]
    covariance[2, 2] += sne.variance_lensing[n] + sne.variance_velocity[n]
    x1, c = p["x1_mean"], p["c_mean"]
    residual = np.stack(
        [sne.x1[n] - x1 + 0 * z, sne.c[n] - c + 0 * z, sne.m_b[n] - mean_m + p["alpha"] * x1 - p["beta"] * c], axis=-1
    )
    return stats.multivariate_normal(np.zeros(3), covariance).pdf(residual)


@pytest.mark.parametrize("change", [{}, {"z_mean": 0.8, "z_shape": 2.5, "Om0": 0.4}])
def test_density_is_an_integral_over_the_population(change):
    sne, p = few(), T | change
    population = stats.gamma(p["z_shape"], scale=p["z_mean"] / p["z_shape"])
    total = 0.0
    for n, sigma in enumerate(SIGMA):
        z = sne.z_cmb[n]
        if sigma == 0.0:
            total += np.log(densities(sne, n, np.array([z]), p))
            continue

        def integrand(true, n=n, z=z, sigma=sigma):
            return population.pdf(true) * stats.norm(true, sigma).pdf(z) * densities(sne, n, true, p)

        total += np.log(integrate.fixed_quad(integrand, max(z - 9 * sigma, 1e-6), z + 9 * sigma, n=400)[0])
    prior = sum(PRIORS[name].logpdf(value) for name, value in p.items())
    np.testing.assert_allclose(LogDensity(MODEL, sne)(p) - prior, total, rtol=1e-8, atol=1e-8)


def test_simulated_redshifts_have_the_population_and_spectroscopic_ones_are_kept():
    sne = JLA.subset(np.arange(0, 740, 2))
    is_photometric = sne.z_cmb > 0.2
    sne = dataclasses.replace(sne, sigma_z=np.where(is_photometric, 0.02, 0.0))
    drawn, truth = MODEL.simulate(jax.random.key(seed(2)), sne, T | {"z_shape": 40.0})
    assert truth["z_shape"] == 40.0
    np.testing.assert_array_equal(drawn.z_cmb[~is_photometric], sne.z_cmb[~is_photometric])
    np.testing.assert_allclose(drawn.z_hel - sne.z_hel, drawn.z_cmb - sne.z_cmb, atol=1e-12)
    std = np.hypot(0.45 / np.sqrt(40.0), 0.02)
    # 220 redshifts: a Kolmogorov-Smirnov p below 1e-5 happens once in 100 000 runs.
    standardised = (drawn.z_cmb[is_photometric] - 0.45) / std
    assert stats.kstest(standardised, lambda x: stats.gamma((0.45 / std) ** 2).cdf((0.45 + std * x) * 0.45 / std**2))[
        1
    ] > 1e-5  # fmt: skip


def test_the_population_expects_photometric_redshifts_and_no_selection():
    with pytest.raises(DataError, match=r"redshift_prior='gamma' expects photometric redshifts \(sigma_z above 0\)"):
        MODEL.bound(photometric(6))
    with pytest.raises(OptionError, match="redshift_prior='gamma' expects selection='none'; found 'common'"):
        Supernova(redshift_prior="gamma", selection="common")
    with pytest.raises(OptionError, match="expects observations='separate'"):
        Supernova(redshift_prior="gamma", observations="joint")


@pytest.mark.long
def test_the_population_is_recovered(monte_carlo):
    """With errors of 0.05, a flat prior of redshifts and the population differ; the population is unbiased."""
    truth = T | {"z_mean": 0.6, "z_shape": 16.0}
    sne = photometric(240)
    sne = dataclasses.replace(sne, sigma_z=np.where(np.arange(240) % 4 == 0, 0.0, 0.05))
    simulated, _ = MODEL.simulate(jax.random.key(seed(5)), sne, truth)
    fit = hbm_jax.sample(MODEL, simulated, seed=seed(6), num_chains=2, num_samples=500, progress=False)
    assert fit.verdict.num_divergences == 0
    for name in ("z_mean", "z_shape", "Om0", "alpha", "beta"):
        draws = fit.posterior[name].to_numpy().ravel()
        assert abs(draws.mean() - truth[name]) < 4.0 * draws.std(), name
    draws = fit.posterior["z_shape"].to_numpy()
    # The 180 photometric redshifts alone have a relative error of sqrt(2 / 180) = 0.11 in the shape.
    assert 0.08 < draws.std() / draws.mean() < 0.25
