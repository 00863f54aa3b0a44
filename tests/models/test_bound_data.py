"""Programs of bound data: the same density as of the container, in a batch of stacked data as one by one."""

import dataclasses

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from hbm_jax.data import (
    AfterglowPopulation,
    Afterglows,
    BurstPopulation,
    Bursts,
    BurstSpectra,
    BurstSpectraPopulation,
    DataError,
)
from hbm_jax.models import Afterglow, Golenetskii, GolenetskiiCounts, SpectralFit
from hbm_jax.spectra.stack import SpectrumStack


@pytest.fixture(scope="module")
def samples():
    """A small sample of each kind."""
    population = AfterglowPopulation(redshift=(0.5, 1.5, 3.0), log10_flux=(-11.2, 0.1), exposure=2000.0, min_counts=0)
    drawn = population.draw(2, seed=4)
    stack = SpectrumStack.of(drawn.spectra)
    detectors = {"n0": "nai", "b0": "bgo"}
    bursts = BurstSpectraPopulation(num_intervals=2, detectors=detectors, spectrum="cutoff").draw(1, seed=5)
    catalogue = BurstPopulation(num_intervals=[3, 2], gamma=(1.5, 0.25)).draw(4, seed=8).data
    banded = catalogue.to_dict()
    used = np.asarray(catalogue.used)
    banded |= {"flux_band": np.where(used[..., None], [10.0, 1000.0], np.nan), "alpha": np.where(used, -0.9, np.nan)}
    banded |= {"z": np.where(np.arange(4) == 3, np.nan, catalogue.z), "sigma_z": np.where(np.arange(4) == 1, 0.1, 0.0)}
    return {
        "afterglows": Afterglows.from_spectra(stack, z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"]),
        "spectra": stack,
        "catalogue": catalogue,
        "limited": Bursts.from_dict(catalogue.to_dict() | {"log10_flux_limit": np.full(4, -9.0)}),
        "uncertain": Bursts.from_dict(banded),
        "bursts": BurstSpectra.of(bursts.bursts),
    }


CASES = {
    "afterglows": (Afterglow(), "afterglows"),
    "spectra": (SpectralFit("powerlaw * tbabs"), "spectra"),
    "counts": (GolenetskiiCounts(spectrum="cutoff"), "bursts"),
    "partial": (Golenetskii(), "catalogue"),
    "sampled": (Golenetskii(latents="sampled", correlated=True), "catalogue"),
    "truncated": (Golenetskii(truncated=True), "limited"),
    "complete": (Golenetskii(pooling="complete"), "limited"),
    "cosmology": (Golenetskii(cosmology="lcdm"), "uncertain"),
}


@pytest.mark.parametrize(("model", "expected"), [(Golenetskii(), "Bursts"), (Afterglow(), "Afterglows")])
def test_data_of_another_type_are_rejected(model, expected):
    with pytest.raises(DataError, match=f"expected {expected}; found list"):
        model.bind([])


def values_of(model, data):
    """Draw a value of every latent site."""
    trace = handlers.trace(handlers.seed(model, 3)).get_trace(data)
    return {n: np.asarray(s["value"]) for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def others(bound, factor):
    """Bound data of other observed values."""
    if hasattr(bound, "observed"):
        return dataclasses.replace(bound, observed=bound.observed * (1.0 + 0.01 * (factor - 1.0)))
    if hasattr(bound, "folded"):
        return dataclasses.replace(bound, folded=others(bound.folded, factor))
    statistic = jax.device_get(bound.statistic.with_counts(factor * np.asarray(bound.statistic.counts)))
    return dataclasses.replace(bound, statistic=statistic)


QUICK = ("partial",)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.long) for c in CASES])
def test_bound_data_have_the_density_of_the_container(case, samples):
    model, data = CASES[case][0], samples[CASES[case][1]]
    bound = model.bind(data)
    assert isinstance(bound, model.Bound)
    leaves = jax.tree.leaves(bound)
    assert all(isinstance(leaf, np.ndarray | float | int) for leaf in leaves)
    assert not any(leaf.dtype == np.float32 for leaf in leaves if isinstance(leaf, np.ndarray) and case != "afterglows")
    values = values_of(model, bound)
    closed = float(jax.jit(lambda v: log_density(model, (data,), {}, v)[0])(values))
    run = jax.jit(lambda bound, v: log_density(model, (bound,), {}, v)[0])
    batch = [bound, others(bound, 2)]
    each = [float(run(one, values)) for one in batch]
    assert each[0] == pytest.approx(closed, rel=1e-12)
    assert each[1] != pytest.approx(closed, rel=1e-6)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batch)
    together = jax.jit(jax.vmap(lambda one, v: log_density(model, (one,), {}, v)[0], (0, None)))(stacked, values)
    np.testing.assert_allclose(together, each, rtol=1e-12)


def test_traced_containers_are_refused(samples):
    with pytest.raises(DataError, match="Golenetskii: expected concrete data; found data that are traced"):
        jax.eval_shape(lambda data: handlers.seed(Golenetskii(), 0)(data), samples["catalogue"])
