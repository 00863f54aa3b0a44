"""Models of supernovae meet their data once: bound data give the density of the container, also stacked."""

import dataclasses

import jax
import numpy as np
import pytest
from models.test_correlated_supernova import some_of_jla
from models.test_hubble_diagram import made_up
from models.test_supernova import JLA
from numpyro import handlers
from numpyro.infer.util import log_density

from hbm_jax.data import DataError, Supernovae
from hbm_jax.models import CorrelatedSupernova, HubbleDiagram, Supernova

SAMPLES = [JLA.subset(np.arange(start, 740, 150)) for start in (0, 7)]  # of 5 supernovae, at other redshifts
UNCERTAIN = [dataclasses.replace(sample, sigma_z=0.02 * sample.z_cmb) for sample in SAMPLES]
SHIFTED = [
    Supernovae.from_dict(
        sample.to_dict()
        | {"sensitivity": np.random.default_rng(1).normal(0, 0.02, (5, 2, 3)), "offset_name": ["g", "r"]}
    )
    for sample in SAMPLES
]
CORRELATED = [data.replace_observations(data.sne.m_b + 0.1, data.sne.x1, data.sne.c) for data in (some_of_jla(8)[0],)]
CORRELATED += [some_of_jla(8)[0]]
MODULI = [made_up(40), made_up(40, seed=3)]
CALIBRATED = [made_up(40, calibrators=4, seed=seed) for seed in (2, 3)]


class Tilted(Supernova):
    """With distances of its own, from other columns of the container."""

    def distmod(self, data, cosmology):
        return super().distmod(data, cosmology) + 0.1 * data.z_hel


CASES = {
    "normal": (Supernova(), SAMPLES),
    "binned w": (Supernova(cosmology="binned(0.2, 0.9)"), SAMPLES),
    "latents": (Supernova(latents="sampled", lensing=0.06, sigma_v=200.0), SHIFTED),
    "offsets": (Supernova(offsets="marginal"), SHIFTED),
    "non-centred": (Supernova(latents="noncentred", mass_step=False), SAMPLES),
    "hosts": (Supernova(mass_error=True, step_width=0.3, host_beta=True, stretch="two", drift=True), SAMPLES),
    "dust": (Supernova(colour="dust", selection="survey", survey_scatter=True), SHIFTED),
    "broken": (Supernova(colour="broken", outliers=True, step_width=0.2), SAMPLES),
    "skewed colour": (Supernova(colour="skewed", priors={"delta_M": 0.0}), SAMPLES),
    "skewed stretch": (Supernova(stretch="skewed", selection="common"), SAMPLES),
    "velocities": (Supernova(velocity="redshift", sigma_v=300.0, redshift_prior="volume"), SAMPLES),
    "redshift errors": (Supernova(redshift_prior="volume"), UNCERTAIN),
    "some redshift errors": (Supernova(), [UNCERTAIN[0], SAMPLES[1]]),
    "distances of a subclass": (Tilted(), [dataclasses.replace(s, name=SAMPLES[0].name) for s in SAMPLES[:1] * 2]),
    "correlated": (CorrelatedSupernova(cosmology="wcdm"), CORRELATED),
    "correlated, scatter": (CorrelatedSupernova(scatter="survey", mass_step=False), CORRELATED),
    "moduli": (HubbleDiagram(cosmology="wcdm"), MODULI),
    "moduli, known scatter": (HubbleDiagram(intrinsic_scatter=True, priors={"sigma_int": 0.1}), MODULI),
    "moduli, scatter": (HubbleDiagram(intrinsic_scatter=True, scatter_surveys=("b",), calibrated=True), CALIBRATED),
}


def sites_of(model, data):
    """Draw a value of every latent site from its prior."""
    trace = handlers.trace(handlers.seed(model, jax.random.key(3))).get_trace(data)
    return {name: s["value"] for name, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


@pytest.mark.parametrize("case", CASES)
def test_bound_data_give_the_density_of_the_container(case):
    """The same program, constants included, for the container, bound data and bound data as an argument."""
    model, (data, *_) = CASES[case]
    bound = model.bind(data)
    assert model.bound(bound) is bound
    assert len(bound) == len(data)
    sites = jax.eval_shape(lambda: sites_of(model, bound))
    programs = [
        jax.make_jaxpr(lambda sites, given=given: log_density(model, (given,), {}, sites)[0])(sites)
        for given in (data, bound)
    ]
    assert str(programs[0]) == str(programs[1])
    for one, other in zip(programs[0].consts, programs[1].consts, strict=True):
        np.testing.assert_array_equal(one, other)
    as_argument = jax.make_jaxpr(lambda bound, sites: log_density(model, (bound,), {}, sites)[0])(bound, sites)
    assert len(as_argument.jaxpr.outvars) == 1


QUICK = ("normal", "hosts", "distances of a subclass", "correlated", "moduli")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.long) for c in CASES])
def test_stacked_data_give_the_densities_of_a_loop(case):
    model, data = CASES[case]
    bound = model.bind_each(data)
    assert len({jax.tree.structure(sample) for sample in bound}) == 1
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *bound)

    @jax.jit
    def densities(stacked, sites):
        def of_one(bound):
            return log_density(model, (bound,), {}, sites)[0]

        return jax.vmap(of_one)(stacked), jax.lax.map(of_one, stacked)

    shapes = jax.eval_shape(lambda: sites_of(model, bound[0]))
    rng = np.random.default_rng(5)
    sites = {name: 0.3 + 0.2 * rng.uniform(size=value.shape) for name, value in shapes.items()} | {"H0": 70.0}
    together, one_by_one = densities(stacked, sites)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, one_by_one, rtol=1e-11)
    assert case == "distances of a subclass" or together[0] != together[1]


def test_a_batch_of_other_panels_has_the_density_of_single_samples():
    """The second sample ends below the second break of the equation of state, so its nodes are others by itself."""
    model = Supernova(cosmology="binned(0.2, 0.5)")
    near = JLA.subset(np.flatnonzero(JLA.z_cmb < 0.4)[:: len(JLA) // 8][:3])
    far = JLA.subset(np.argsort(JLA.z_cmb)[-3:])
    alone = [model.bind(sample) for sample in (near, far)]
    batch = model.bind_each([near, far])
    assert jax.tree.structure(batch[0]) == jax.tree.structure(batch[1])
    nodes = [np.shape(bound.distances.nodes) for bound in (*alone, *batch)]
    assert nodes[0] != nodes[1] == nodes[2] == nodes[3]
    modulus = jax.jit(lambda bound: bound.distances.distmod(_universe(model)))
    np.testing.assert_allclose(modulus(batch[0]), modulus(alone[0]), rtol=1e-10)


def _universe(model):
    from hbm_jax.models.expansion import cosmology_from

    return cosmology_from(model.cosmology, {"H0": 70.0, "Om0": 0.3, "w_1": -0.9, "w_2": -1.1, "w_3": -0.8})


def test_other_data_are_refused():
    with pytest.raises(DataError, match=r"Supernova: expected Supernovae; found DistanceModuli"):
        Supernova().bind(MODULI[0])
    with pytest.raises(DataError, match="expected concrete data"):
        jax.eval_shape(lambda data: Supernova()(data), SAMPLES[0])


def test_a_subclass_has_its_own_errors_and_hosts():
    class Doubled(Supernova):
        def noise(self, data):
            return 2.0 * super().noise(data)

        def massive(self, data):
            return 1.0 - super().massive(data)

    own, plain = Doubled().bind(SAMPLES[0]), Supernova().bind(SAMPLES[0])
    np.testing.assert_array_equal(own.noise, 2.0 * plain.noise)
    np.testing.assert_array_equal(own.massive, 1.0 - plain.massive)
