"""Small fits, sampled once and stored, for tests that only read fits: figures, report, run folders, command line.

    python tests/stored_fits.py [NAME ...]      sample them again, into tests/stored_fits/

`tests/test_stored_fits.py` compares each with the current program. If a log density or a site has changed, the stored
fit is out of date: find the reason, and sample it again.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology, distmod
from hbm_jax.data import DistanceModuli, PointsInGroups, RegressionData, ValuesInGroups
from hbm_jax.inference.checksum import append_checksum
from hbm_jax.inference.sampler.target import build_target
from hbm_jax.models import Golenetskii, HubbleDiagram, Normal, NormalVectors, Regression, Relation, Supernova

FOLDER = Path(__file__).resolve().parent / "stored_fits"
SHORT = {"num_warmup": 200, "num_samples": 200, "seed": 3}


def supernova():
    """Every twelfth supernova of JLA, flat LCDM."""
    sne = hbm.data.load_jla()
    return Supernova(), (sne.subset(np.arange(0, len(sne), 12)),), SHORT


def own_model(x, y=None):
    """Sample a straight line through the origin: a plain NumPyro program of two parameters."""
    slope = numpyro.sample("my_slope", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(slope * jnp.asarray(x), sigma), obs=y)


def own():
    """Thirty points of the user's program."""
    x = np.linspace(0.0, 1.0, 30)
    return own_model, (x, 2.0 * x + 0.3 * np.random.default_rng(0).normal(size=30)), SHORT


def relation(pooling="partial"):
    """Five groups of a line, the last of one point, two of the points upper limits."""
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(5), [8, 8, 6, 2, 1])
    alpha, beta = rng.normal(1.0, 0.4, 5), rng.normal(0.0, 0.5, 5)
    x = rng.normal(size=25)
    y = alpha[of] * x + beta[of] + 0.1 * rng.normal(size=25)
    columns = {
        "x": x, "y": y + 0.1 * rng.normal(size=25), "sigma_x": np.full(25, 0.05), "sigma_y": np.full(25, 0.1),
        "group": [f"g{i}" for i in of], "limit_y": ["upper" if i == 3 else "" for i in range(25)],
    }  # fmt: skip
    data = PointsInGroups.from_columns(columns)
    return Relation(pooling=pooling, pivot=0.0), (data,), {"seed": 1, "num_samples": 200, "num_warmup": 300}


def relation_unpooled():
    """The same with a line of its own for each group."""
    return relation("none")


def relation_of_two():
    """A relation with two predictors, y = a - 2 b."""
    rng = np.random.default_rng(4)
    of = np.repeat(np.arange(3), 6)
    a, b = rng.normal(size=18), rng.normal(size=18)
    y = 1.0 * a - 2.0 * b + 0.5 * of + 0.1 * rng.normal(size=18)
    columns = {"a": a, "b": b, "y": y, "sigma_y": np.full(18, 0.1), "group": [f"g{i}" for i in of]}
    data = PointsInGroups.from_columns(columns, predictors=["a", "b"])
    return Relation(pivot=0.0), (data,), {"seed": 1, "num_samples": 200, "num_warmup": 300}


def golenetskii():
    """Eight bursts, two of unknown redshift."""
    data, _ = hbm.data.BurstPopulation(num_intervals=[4, 6], unknown=2).draw(8, seed=5)
    return Golenetskii(), (data,), SHORT


def golenetskii_pooled():
    """One line for all bursts of Yonetoku's sample."""
    return Golenetskii(pooling="complete"), (hbm.data.load_konus("yonetoku"),), SHORT


def hubble_diagram():
    """120 distance moduli, an equation of state in two bins."""
    rng = np.random.default_rng(2)
    z = np.geomspace(0.02, 1.4, 120)
    mu = np.asarray(distmod(z, Cosmology.flat(70.0, 0.3))) + 0.2 + 0.1 * rng.normal(size=120)
    columns = {"z_cmb": z, "mu": mu, "sigma": np.full(120, 0.1), "survey": [f"s{i % 8}" for i in range(120)]}
    data = DistanceModuli.from_columns(columns, covariates={"x1": rng.normal(size=120)})
    model = HubbleDiagram(cosmology="binned(0.4)", priors={"Om0": "Normal(0.3, 0.05)"})
    return model, (data,), {"seed": 1, "num_samples": 250, "num_warmup": 300}


def eight_schools(latents="mixed"):
    """The centred form takes long steps, which do not fit into the neck of the funnel."""
    model = Normal(latents=latents, priors={"mu": "Normal(0, 5)", "tau": "HalfCauchy(5)"})
    options = {
        "sampler": hbm.NUTS(target_accept_prob=0.8 if latents == "centred" else 0.9),
        "num_samples": 400,
        "num_warmup": 300,
    }
    return model, (hbm.data.load_eight_schools(),), options | {"seed": 1}


def eight_schools_centred():
    """Centred, with divergences."""
    return eight_schools("centred")


def normal_vectors():
    """Five groups of vectors with two components."""
    rng = np.random.default_rng(3)
    columns = {"a": rng.normal(size=10), "b": rng.normal(size=10), "group": [f"g{i % 5}" for i in range(10)]}
    data = ValuesInGroups.from_columns(columns, components=["a", "b"])
    model = NormalVectors(latents="noncentred", sigma="inferred", correlated=False)
    return model, (data,), {"seed": 1, "num_samples": 100, "num_warmup": 200}


def regression():
    """Counts in five groups and along a walk."""
    rng = np.random.default_rng(2)
    of = np.repeat(np.arange(5), [20, 12, 8, 4, 1])
    x, t = rng.normal(size=45), np.arange(45) // 5
    y = rng.poisson(np.exp(1.0 + 0.5 * x + 0.5 * rng.normal(size=5)[of]))
    columns = {"x": x, "y": y, "g": [f"g{j}" for j in of], "t": t}
    data = RegressionData.from_columns(columns, "y ~ x + (1 + x | g) + (1 | walk(t))")
    return Regression(family="poisson"), (data,), {"seed": 1, "num_samples": 100, "num_warmup": 200}


def afterglow():
    """Three afterglows of 15 channels a group, with a WHIM; two short chains of short trees."""
    from hbm_jax.data.xray.simulation import AfterglowPopulation
    from hbm_jax.spectra.folding.grouping import group, noticed
    from hbm_jax.spectra.stack import SpectrumStack

    population = AfterglowPopulation(
        log10_n0=-7.0, redshift=(0.7, 2.0, 3.5), log10_flux=(-11.2, 0.3), log10_nh=(-0.3, 0.3), exposure=8000.0
    )
    sample = population.draw(3, seed=3)
    masks = [noticed(one, (0.3, 10.0)) for one in sample.spectra]
    grouped = [
        group(one, "channels_per_group", 15, noticed=mask) for one, mask in zip(sample.spectra, masks, strict=True)
    ]
    data = hbm.data.Afterglows.from_spectra(
        SpectrumStack.of(grouped, masks), z=sample.columns["z"], nh_mw=sample.columns["nh_mw"]
    )
    # Whatever the draws are, figures show what they say: short trees are enough.
    options = {"num_chains": 2, "num_warmup": 60, "num_samples": 60, "seed": 1, "sampler": hbm.NUTS(max_tree_depth=4)}
    return hbm.models.Afterglow(whim=True), (data,), options | {"centering": False}


def spectral_fit():
    """Two of these spectra with one absorbed power law, fluxes of their own, and an uncertain calibration."""
    from hbm_jax.spectra.model.components import Absorption, PowerLaw

    _, (data,), _ = afterglow()
    model = hbm.models.SpectralFit(
        PowerLaw() * Absorption("mw"), own=("log10_flux",), calibration=True, priors={"mw_nh": 0.3}
    )
    return model, (data.spectra.subset([0, 1]),), {"num_chains": 1, "num_warmup": 20, "num_samples": 5, "seed": 1}


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        supernova, own, relation, relation_unpooled, relation_of_two, golenetskii, golenetskii_pooled, hubble_diagram,
        eight_schools, eight_schools_centred, normal_vectors, regression, afterglow, spectral_fit,
    )
}  # fmt: skip


@functools.cache
def load(name: str) -> hbm.inference.Fit:
    """Return a stored fit with its program and data."""
    path = FOLDER / f"{name}.nc"
    if name == "own":
        program, args, _ = own()
        return hbm.load(path, program, args)
    return hbm.load(path)


def assert_not_stale(name: str) -> None:
    """Compute log density and sites of the last draws again, and compare them with the stored ones."""
    fit = load(name)
    target = build_target(fit.program, fit.bound_args, jax.random.key(0))
    raw = fit.tree["unconstrained_posterior"]["position"]
    assert list(raw["parameter"].values) == list(target.labels)
    last = {"chain": -1, "draw": slice(-3, None)}
    again = f"make it again with `python tests/stored_fits.py {name}`, if the change is meant"
    potential, sites = jax.jit(jax.vmap(lambda x: (target.potential(x), target.constrain(x))))(raw.isel(last).values)
    stored = fit.tree["sample_stats"]["lp"].isel(last).values
    np.testing.assert_allclose(-np.asarray(potential), stored, rtol=1e-7, atol=1e-6, err_msg=again)
    assert set(sites) == set(fit.posterior), again
    for site, values in sites.items():
        expected = fit.posterior[site].isel(last).values
        # Where quadrature nodes of a response are chosen otherwise, sites change by 1e-7.
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-9, err_msg=f"{site}: {again}")


def make(name: str) -> Path:
    """Sample one of them and write its file."""
    program, args, options = RECIPES[name]()
    path = FOLDER / f"{name}.nc"
    tree = hbm.sample(program, *args, progress=False, **options).tree
    small = {
        node.path: {
            key: {"zlib": True, "complevel": 9}
            for key, v in node.variables.items()
            if v.ndim and v.dtype.kind in "fiub"
        }
        for node in tree.subtree
    }
    tree.to_netcdf(path, engine="h5netcdf", encoding={key: value for key, value in small.items() if value})
    append_checksum(path)
    return path


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for wanted in sys.argv[1:] or RECIPES:
        print(make(wanted), flush=True)
