"""Several observations of one supernova: joint densities with offsets and detection in each survey, and draws."""

import dataclasses

import jax
import numpy as np
import pytest
from models.test_supernova import FEW, magnitudes
from models.test_supernova_options import T, free_parameters, joint_density, likelihood
from numpyro import handlers
from scipy import stats

from hbm_jax.data import DataError, Supernovae
from hbm_jax.models import Supernova

ORDER = np.ix_([1, 2, 0], [1, 2, 0])


@pytest.fixture(scope="module")
def twice():
    """Three supernovae of JLA, each observed by two surveys."""
    rng = np.random.default_rng(5)
    few = FEW.subset([0, 2, 4, 0, 2, 4])
    few = few.replace_observations(*(getattr(few, q) + 0.03 * rng.normal(size=6) for q in ("m_b", "x1", "c")))
    covariance = few.covariance * np.array([1, 1, 1, 2.0, 0.5, 3.0])[:, None, None]
    mass = np.tile([9.9, 11.0, 10.1], 2)
    return dataclasses.replace(few, covariance=covariance, log10_mass=mass, survey=("a",) * 3 + ("b",) * 3)


def with_offsets(sne, num=2):
    sensitivity = np.random.default_rng(1).normal(0, [0.02, 0.05, 0.01], (len(sne), num, 3))
    names = [f"offset {k}" for k in range(num)]
    return Supernovae.from_dict(sne.to_dict() | {"sensitivity": sensitivity, "offset_name": names})


def moved(sne, offset):
    """The sample with calibration offsets subtracted."""
    change = np.einsum("njq,j->nq", sne.sensitivity, offset)
    observed = (getattr(sne, name) - change[:, k] for k, name in enumerate(("m_b", "x1", "c")))
    return dataclasses.replace(sne.replace_observations(*observed), sensitivity=np.zeros((6, 0, 3)), offset_name=())


def normal_of_both(sne, n, p):
    """Mean (6,) and covariance of both observations of a supernova with normal populations."""
    first = sne.subset([n])
    mean = np.array([p["x1_mean"], p["c_mean"], magnitudes(first, p)[0]])
    mean[2] += p["beta"] * p["c_mean"] - p["alpha"] * p["x1_mean"]
    loading = np.array([[1, 0, 0], [0, 1, 0], [-p["alpha"], p["beta"], 1]]) * [p["x1_std"], p["c_std"], p["sigma_int"]]
    truth = loading @ loading.T + np.diag([0, 0, first.variance_lensing[0] + first.variance_velocity[0]])
    fits = [sne.covariance[row][ORDER] for row in (n, n + 3)]
    return np.tile(mean, 2), np.block([[truth + fits[0], truth], [truth, truth + fits[1]]])


@pytest.mark.parametrize("options", [{}, {"outliers": True, "mass_error": True}], ids=["normal", "mixture"])
def test_joint_density_with_offsets_of_each_survey(twice, options):
    sne, offset = with_offsets(twice), np.array([0.7, -1.2])
    model = Supernova(observations="joint", **options)
    expected = joint_density(model, moved(sne, offset), T) + stats.norm.logpdf(offset).sum()
    assert likelihood(model, sne, {"calibration": offset}) == pytest.approx(expected, abs=1e-8)
    assert likelihood(model, twice) == pytest.approx(joint_density(model, twice, T), abs=1e-8)


def test_offsets_of_repeated_observations_are_integrated_out(twice):
    sne = with_offsets(twice, 4)
    mean, covariance = np.zeros((3, 6)), np.zeros((3, 6, 3, 6))
    for n in range(3):
        mean[n], covariance[n, :, n] = normal_of_both(sne, n, T)
    rows = sne.sensitivity[:, :, [1, 2, 0]].transpose(0, 2, 1)
    rows = np.concatenate([rows[:3], rows[3:]], axis=1).reshape(18, 4)
    total = covariance.reshape(18, 18) + rows @ rows.T
    y = np.array([sne.x1, sne.c, sne.m_b]).T
    observed = np.concatenate([y[:3], y[3:]], axis=1)
    expected = stats.multivariate_normal(mean.ravel(), total).logpdf(observed.ravel())
    model = Supernova(observations="joint", offsets="marginal")
    np.testing.assert_allclose(likelihood(model, sne), expected, rtol=1e-10)
    seeded = handlers.seed(handlers.substitute(model, {n: T[n] for n in free_parameters(model)}), jax.random.key(1))

    def recovered():
        trace = handlers.trace(seeded).get_trace(sne, recover=True)
        return {name: trace[name]["value"] for name in ("calibration", "x1_true")}

    shapes = {name: value.shape for name, value in jax.eval_shape(recovered).items()}
    assert shapes == {"calibration": (4,), "x1_true": (6,)}


def test_every_survey_detected_the_supernova(twice):
    """Limits in bands: the density is divided by the probability that both surveys detect, of two dimensions."""
    limits = dataclasses.replace(
        with_offsets(twice),
        band_limit=twice.m_b + np.array([0.2, 0.0, 0.3, -0.1, 0.2, 0.1]),
        band_limit_width=np.full(6, 0.3),
        band_offset=np.full(6, 0.1),
        band_colour=np.array([-1.5, 0.4, -0.2, 1.1, 0.0, 0.5]),
    )
    p, offset = T | {"m_lim_shift": 0.1, "m_lim_width_ratio": 1.2}, np.array([0.7, -1.2])
    priors = {name: p[name] for name in ("m_lim_shift", "m_lim_width_ratio")}
    model = Supernova(selection="band", observations="joint", priors={"Om0": p["Om0"]} | priors)
    plain = Supernova(observations="joint")
    sites = {"calibration": offset}
    found = likelihood_of(model, limits, p, sites) - likelihood(plain, limits, sites)
    change = np.einsum("njq,j->nq", limits.sensitivity, offset)
    expected = 0.0
    for n in range(3):
        mean, covariance = normal_of_both(limits, n, p)
        slope, room, own = np.zeros((2, 6)), np.zeros(2), 0.0
        for k, row in enumerate((n, n + 3)):
            slope[k, 3 * k + 1 : 3 * k + 3] = limits.band_colour[row], 1.0
            margin = limits.band_limit[row] + 0.1 - limits.band_offset[row]
            shift = change[row, 0] + limits.band_colour[row] * change[row, 2]
            room[k] = margin - shift - slope[k] @ mean
            own += stats.norm.logcdf((margin - limits.m_b[row] - limits.band_colour[row] * limits.c[row]) / 0.36)
        total = slope @ covariance @ slope.T + np.diag([0.36**2] * 2)
        expected += own - np.log(stats.multivariate_normal(np.zeros(2), total).cdf(room))
    assert found == pytest.approx(expected, abs=1e-6)


def likelihood_of(model, data, p, sites):
    """Log likelihood with parameters of the limits that are fixed."""
    from models.densities import LogDensity
    from models.test_supernova_options import MORE_PRIORS

    free = {name: p[name] for name in free_parameters(model)}
    return LogDensity(model, data)(free | sites) - sum(MORE_PRIORS[name].logpdf(value) for name, value in free.items())


def test_simulated_observations_share_their_truth(twice):
    model = Supernova(observations="joint", selection="common", outliers=True)
    design = dataclasses.replace(twice, covariance=1e-4 * twice.covariance)
    held = {name: T[name] for name in model.all_priors if name in T} | {"m_lim": 30.0, "outlier_fraction": 0.0}
    simulated, truth = model.simulate(jax.random.key(2), design, held)
    np.testing.assert_allclose(simulated.m_b[:3], simulated.m_b[3:], atol=0.02)
    np.testing.assert_allclose(truth["m_b_true"], simulated.m_b, atol=0.3)
    assert np.ptp(simulated.x1) > 0.1


def test_refusals(twice):
    with pytest.raises(DataError, match=r"observations='joint': expected no parameter.*sigma_int and 3 supernovae"):
        Supernova(observations="joint", survey_scatter=True).bind(twice)
    with pytest.raises(DataError, match=r"observations='joint' expects latents='marginal'"):
        Supernova(observations="joint", latents="centred").bind(twice)
    assert Supernova(observations="joint").bind(twice.subset([0, 1])).repeats is None
