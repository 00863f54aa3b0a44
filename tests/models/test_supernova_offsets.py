"""Calibration offsets that are sampled: coordinates in which they are close to independent unit normals."""

import dataclasses

import jax
import numpy as np
import pytest
from models.test_supernova import FEW, TRUTH
from models.test_supernova_options import T, free_parameters
from numpyro import handlers
from numpyro.infer.util import log_density

import hbm_jax
from hbm_jax.data import Supernovae
from hbm_jax.inference.likelihood.function import StatedParameters
from hbm_jax.models import Supernova

SELECTIVE = {"selection": "common", "outliers": True, "mass_error": True}


def with_offsets(sne, num, seed=1, scale=(0.03, 0.05, 0.01)):
    rng = np.random.default_rng(seed)
    sensitivity = rng.normal(0, scale, (len(sne), num, 3)) * (rng.uniform(size=(len(sne), num, 1)) < 0.4)
    # One offset is a multiple of another, and one changes nothing.
    sensitivity[:, 1], sensitivity[:, 2] = 0.5 * sensitivity[:, 0], 0.0
    names = [f"offset {k}" for k in range(num)]
    return Supernovae.from_dict(sne.to_dict() | {"sensitivity": sensitivity, "offset_name": names})


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="normal"),
        pytest.param(SELECTIVE, id="selective"),
        pytest.param({"stretch": "tail", "colour": "skewed"}, id="tails", marks=pytest.mark.long),
    ],
)
def test_the_joint_density_is_that_of_the_offsets_themselves(options):
    """Equal up to the log determinant of the coordinates, at several points of coordinates and parameters."""
    model = Supernova(priors={"Om0": 0.3}, **options)
    sne = with_offsets(FEW.subset(range(12)), 5)
    bound = model.bound(sne)
    rng = np.random.default_rng(2)
    sites = {name: T[name] for name in free_parameters(model)}

    @jax.jit
    def both(sites, coordinates):
        substituted = handlers.substitute(model, sites | {"_calibration": coordinates})
        trace = handlers.trace(handlers.seed(substituted, 0)).get_trace(bound)
        offsets = trace["calibration"]["value"]
        density = log_density(model, (bound,), {}, sites | {"_calibration": coordinates})[0]
        return offsets, density, log_density(StatedParameters(model), (bound,), {}, sites | {"calibration": offsets})[0]

    with jax.enable_x64(True):
        for factor in (1.0, 1.1):
            offsets, density, stated = both({n: v * factor for n, v in sites.items()}, rng.normal(size=5))
            assert np.ptp(offsets) > 0.1
            assert float(density) == pytest.approx(float(stated) + bound.coordinates.log_det, abs=1e-9)


def test_coordinates_of_normal_data_are_independent_unit_normals():
    """The Hessian at the posterior given parameters close to those assumed is nearly 1, and shows no correlation."""
    model = Supernova(priors={"Om0": 0.3})
    sne = with_offsets(hbm_jax.data.load_jla().subset(np.arange(0, 740, 8)), 6)
    bound = model.bound(sne)
    sites = {name: float(TRUTH[name]) for name in free_parameters(model)} | {"sigma_int": 0.12, "beta": 3.0}
    sites |= {"x1_std": float(np.std(sne.x1)), "c_std": float(np.std(sne.c)), "alpha": 0.14}

    def density(coordinates, M0):
        values = sites | {"_calibration": coordinates, "M0": M0}
        return log_density(model, (bound,), {}, values)[0]

    with jax.enable_x64(True):
        hessian = jax.jit(jax.hessian(density, argnums=(0, 1)))(np.zeros(6), sites["M0"])
    np.testing.assert_allclose(-hessian[0][0], np.eye(6), atol=1e-6)
    correlation = np.asarray(hessian[0][1]) / np.sqrt(-float(hessian[1][1]))
    np.testing.assert_allclose(correlation, 0.0, atol=1e-5)


def test_drawn_offsets_are_their_prior():
    model = Supernova()
    sne = with_offsets(FEW.subset(range(6)), 4)
    drawn = handlers.trace(handlers.seed(model, 0))
    trace = jax.eval_shape(lambda: {k: v["value"] for k, v in drawn.get_trace(sne, observed=False).items()})
    assert trace["calibration"].shape == (4,)
    assert "_calibration" not in trace
    assert model.bound(sne).coordinates.root.shape == (4, 4)
    assert Supernova(offsets="marginal").bound(sne).coordinates is None
    assert Supernova(latents="centred").bound(sne).coordinates is None


@pytest.mark.long
def test_a_simulated_sample_does_not_depend_on_the_treatment_of_offsets():
    sne = with_offsets(FEW.subset(range(6)), 4)
    (first, of_first), (second, of_second) = (
        Supernova(offsets=kind).simulate(jax.random.key(3), sne) for kind in ("sampled", "marginal")
    )
    np.testing.assert_array_equal(first.m_b, second.m_b)
    np.testing.assert_array_equal(of_first["calibration"], of_second["calibration"])
    assert np.ptp(of_first["calibration"]) > 0.1


@pytest.mark.long
def test_posterior_is_that_of_integrated_offsets(monte_carlo):
    """120 supernovae of JLA and 20 offsets, of which some rank only 10: equal posteriors, and mixing."""
    sne = with_offsets(hbm_jax.data.load_jla().subset(np.arange(0, 720, 6)), 20)
    sne = dataclasses.replace(sne, sensitivity=np.where(np.arange(20)[:, None] < 12, sne.sensitivity, 0.0))
    options = {"seed": 1, "num_chains": 2, "num_warmup": 300, "num_samples": 500, "progress": False}
    fits = [hbm_jax.sample(Supernova(offsets=kind), sne, **options) for kind in ("sampled", "marginal")]
    for name in ("Om0", "alpha", "beta", "M0"):
        monte_carlo.same_mean(fits[0].posterior[name], fits[1].posterior[name], name=name)
        monte_carlo.same_std(fits[0].posterior[name], fits[1].posterior[name], name=name)
    summary = fits[0].summary()
    assert summary["r_hat"].max() < 1.01
    assert "calibration" in fits[0].posterior
