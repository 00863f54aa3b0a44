"""Data padded to sizes in steps have the same log density, and programs that serve samples of other sizes."""

import os

import jax
import numpy as np
import pytest
import scipy.stats

import hbm_jax as hbm
from hbm_jax.data.supernovae.distance_moduli import DistanceModuli
from hbm_jax.inference.compilation.constants_as_arguments import lowered
from hbm_jax.inference.model_check.compiled_replicates import compiled_replicates
from hbm_jax.inference.model_check.replicates import completed, inspect_program, replicator
from hbm_jax.inference.program import bound_args, padded_of
from hbm_jax.inference.sampler.target import Padded, build_target
from hbm_jax.models import Golenetskii, HubbleDiagram, Normal, Relation, Supernova
from hbm_jax.precomputation import padded_size


def points(num, groups=1):
    rng = np.random.default_rng(num)
    x, sigma_x, sigma_y = rng.normal(size=num), rng.uniform(0.1, 0.3, num), rng.uniform(0.1, 0.3, num)
    columns = {"x": x, "y": 1.5 * x + 0.3 * rng.normal(size=num), "sigma_x": sigma_x, "sigma_y": sigma_y}
    return hbm.data.PointsInGroups.from_columns(columns | {"group": [f"g{i % groups}" for i in range(num)]})


def values(num):
    rng = np.random.default_rng(num)
    columns = {"y": rng.normal(size=num), "sigma_y": rng.uniform(0.5, 1.0, num), "group": [f"g{i}" for i in range(num)]}
    return hbm.data.ValuesInGroups.from_columns(columns)


def bursts(num):
    return hbm.data.BurstPopulation(num_intervals=5).draw(num, seed=1).data


def supernovae(num):
    return hbm.data.load_jla().subset(np.append(np.arange(num - 1), 739))  # the last is the most distant


def moduli(num):
    rng = np.random.default_rng(num)
    z = np.sort(rng.uniform(0.05, 1.0, num))
    z[-1] = 1.0
    mu = 43.0 + 5.0 * np.log10(z) + 0.2 * rng.normal(size=num)
    return DistanceModuli.from_columns({"z_cmb": z, "mu": mu, "sigma": np.full(num, 0.2)})


CASES = {
    "one line": (Relation(pooling="complete"), points, (33, 35)),
    "lines of groups": (Relation(correlated=True), lambda num: points(3 * num, num), (9, 10)),
    "outliers": (Relation(pooling="complete", outliers=True), lambda num: points(3 * num, num), (9, 10)),
    "bursts": (Golenetskii(), bursts, (9, 10)),
    "selected intervals": (Golenetskii(selection="log10_flux > -9"), bursts, (9, 10)),
    "normal": (Normal(), values, (33, 36)),
    "normal, inferred sigma": (Normal(sigma="inferred"), values, (33, 36)),
    "supernovae": (Supernova(), supernovae, (33, 36)),
    "supernovae, outliers": (Supernova(outliers=True), supernovae, (33, 36)),
    "moduli": (HubbleDiagram(), moduli, (40, 44)),
    "moduli with scatter": (HubbleDiagram(intrinsic_scatter=True), moduli, (41, 44)),
}


def targets(model, data):
    """Posteriors of the data, and of the padded data."""
    args = bound_args(model, (data,))
    key = jax.random.key(0)
    return build_target(model, args, key), build_target(model, args, key, Padded(*padded_of(model, args)))


# A line, latents of each object, and values of objects; the others pad in the same places, and take seconds each.
DEFAULT = ("one line", "normal")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in DEFAULT else pytest.mark.long) for c in CASES])
def test_densities_are_those_of_the_data_and_programs_those_of_another_size(case):
    model, data_of, nums = CASES[case]
    with jax.enable_x64(True):
        target, padded = targets(model, data_of(nums[0]))
        _, other = targets(model, data_of(nums[1]))
        assert programs(padded) == programs(other)
        assert padded.real_labels == target.labels
        real = padded.real
        assert padded.size > target.size or case not in ("lines of groups", "bursts", "selected intervals")
        evaluate, evaluate_padded = (jax.jit(jax.value_and_grad(t.potential)) for t in (target, padded))
        for seed, point in enumerate(target.prior_draws[:3]):
            position = np.random.default_rng(seed).normal(size=padded.size)
            position[real] = point
            value, gradient = evaluate(point)
            padded_value, padded_gradient = evaluate_padded(position)
            prior = scipy.stats.norm.logpdf(position[~real]).sum()
            np.testing.assert_allclose(padded_value + prior, value, rtol=1e-12)
            np.testing.assert_allclose(padded_gradient[real], gradient, rtol=1e-9, atol=1e-12 * np.abs(gradient).max())
            np.testing.assert_allclose(padded_gradient[~real], position[~real], rtol=1e-12)
        np.testing.assert_array_equal(padded.without_padding(position), point)
        sites = padded.real_sites(jax.jit(padded.constrain)(position))
        for name, expected in jax.jit(target.constrain)(point).items():
            np.testing.assert_allclose(sites[name], expected, rtol=1e-10, err_msg=name)


def programs(target):
    """Texts of the programs that a run compiles: gradients and the values of a block of draws."""
    functions = jax.value_and_grad(target.potential), jax.vmap(target.constrain)
    examples = target.start, target.start[None]
    arrays = target.arrays()
    return [lowered(f, x, arrays=arrays)[0].as_text() for f, x in zip(functions, examples, strict=True)]


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "normal" else pytest.mark.long) for c in CASES])
def test_the_check_of_the_model_has_the_data_and_no_padding(case):
    model, data_of, nums = CASES[case]
    with jax.enable_x64(True):
        args = bound_args(model, (data_of(nums[0]),))
        structure = inspect_program(model, args)
        rng = np.random.default_rng(1)
        latents = {name: 0.3 * rng.normal(size=shape) for name, shape in structure.latents.items()}
        key = np.asarray(jax.random.key_data(jax.random.key(2)))
        draw = compiled_replicates(model, args, structure, 20, latents, key, rng)
        direct = jax.jit(replicator(model, args, structure, 20))(latents, key, structure.standard_normals(rng, 20))
        pools = jax.device_get(draw(latents, key)), jax.device_get(direct)
    for name, level in pools[1]:
        site = structure.observed[name]
        found, expected = (completed(pool[name, level], site) for pool in pools)
        assert found["values"].shape == expected["values"].shape
        np.testing.assert_allclose(found["values"][0], expected["values"][0], rtol=1e-12)
        np.testing.assert_array_equal(found["valid"], expected["valid"])
        np.testing.assert_allclose(found["values"][1:].std(), expected["values"][1:].std(), rtol=0.3)
        if "scores" in expected:
            scale = np.abs(expected["scores"][0]).max()
            np.testing.assert_allclose(found["scores"][0], expected["scores"][0], rtol=1e-8, atol=1e-10 * scale)


def test_steps():
    sizes = np.array([padded_size(num) for num in range(1, 3000)])
    num = np.arange(1, 3000)
    assert (sizes >= num).all()
    assert (np.diff(sizes) >= 0).all()
    assert all(padded_size(size) == size for size in sizes)
    assert (sizes / num <= 1.125).all()
    assert (sizes / num)[num > 128].max() < 1.0625
    assert len(set(sizes[num > 64])) < 90


@pytest.mark.long
def test_a_fit_has_the_objects_of_the_data():
    data = points(27, 9)
    settings = {"num_chains": 2, "num_warmup": 30, "num_samples": 20, "progress": False}
    fit = hbm.sample(Relation(), data, **settings)
    assert fit.posterior.sizes["group"] == 9
    assert list(fit.posterior["group"].to_numpy()) == list(data.name)
    parameters = fit.tree["unconstrained_posterior"]["parameter"].to_numpy()
    assert [name for name in parameters if name.startswith("_alpha")] == [f"_alpha[{i}]" for i in range(9)]
    assert hbm.inference.log_likelihood(fit)["observed"].sizes["group"] == 9
    assert hbm.posterior_predictive(fit, num_draws=3)["observed"].shape == (3, *np.shape(data.values))
    assert hbm.latents(fit, num_draws=3)["x"].shape == (3, *np.shape(data.used))


@pytest.mark.long
def test_an_interrupted_run_of_padded_data_is_continued(tmp_path):
    data = points(27, 9)
    settings = {"num_chains": 2, "num_warmup": 30, "progress": False}
    once = hbm.sample(Relation(), data, num_samples=20, **settings)
    hbm.sample(Relation(), data, num_samples=10, checkpoint=tmp_path / "run", **settings)
    resumed = hbm.inference.resume(tmp_path / "run", Relation(), data, num_samples=20, progress=False)
    np.testing.assert_array_equal(resumed.posterior["alpha"], once.posterior["alpha"])
    again = hbm.sample(Relation(), data, num_samples=10, init=once, **settings)  # without padding
    assert again.posterior.sizes["group"] == 9


@pytest.mark.long
def test_a_sample_of_another_size_with_another_prior_compiles_nothing(tmp_path):
    counts = []

    def count(name, **_):
        if name == "/jax/compilation_cache/cache_misses":
            counts[-1] += 1

    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
        jax.monitoring.register_event_listener(count)
        sampler = hbm.HMC(trajectory_length=1.5)  # by default sampler and warm-up depend on the sample
        for num, prior in ((9, "Normal(1, 0.5)"), (10, "Normal(1.5, 0.25)")):
            jax.clear_caches()
            counts.append(0)
            settings = {"sampler": sampler, "num_warmup": 100, "num_samples": 50, "progress": False}
            model = Relation(priors={"alpha_mean": prior})
            fit = hbm.sample(model, points(3 * num, num), seed=num, **settings)
            assert fit.posterior.sizes["group"] == num
            assert fit.model_check.passed is not None
    finally:
        jax.monitoring.unregister_event_listener(count)
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
    assert counts[0] > 20
    assert counts[1] == 0
    assert os.listdir(tmp_path)
