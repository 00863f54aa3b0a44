"""Units of the data of every registered model: the posterior is the same in any of them.

A unit of length, flux or time multiplies data by a factor, and parameters by a power of it; logarithms and magnitudes
are shifted. At corresponding points the log densities then differ by a constant, the logarithm of the Jacobian, so that
the posteriors are equal.

Physical quantities of a model have fixed units, because its constants are in them: redshifts, distances [Mpc], energies
of photons [keV] and columns [1e22 cm^-2]. Numbers of trials are counts. Units of brightness remain: of the flux of
supernovae and bursts, and of exposure times effective area of spectra, whose counts are given.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers

import hbm_jax as hbm
from hbm_jax.data import (
    AfterglowPopulation,
    Afterglows,
    BurstPopulation,
    Bursts,
    BurstSpectra,
    BurstSpectraPopulation,
    CorrelatedSupernovae,
    DistanceModuli,
    PointsInGroups,
    RegressionData,
    SourceSpectra,
    ValuesInGroups,
    load_jla,
)
from hbm_jax.models import (
    Afterglow,
    CorrelatedSupernova,
    Golenetskii,
    GolenetskiiCounts,
    HubbleDiagram,
    Normal,
    NormalVectors,
    Rates,
    Regression,
    Relation,
    SpectralFit,
    SpectralPopulation,
    Supernova,
)
from hbm_jax.registry import BUILT_IN
from hbm_jax.spectra.stack import SpectrumStack

UNITS = (1e-6, 3e7, 1e-21, 1e30)
NUM_POINTS = 5
NEWTON_STEPS = 12
RNG = np.random.default_rng(seed(2))
NUM = 24
GROUP = np.repeat([f"g{i}" for i in range(6)], 4)
X, NOISE = RNG.normal(2.0, 1.0, NUM), RNG.normal(size=(3, NUM))
EXPOSURE = RNG.uniform(1.0, 3.0, NUM)
COUNTS = RNG.poisson(5.0 * EXPOSURE)


class Case(NamedTuple):
    """A model, its data in a unit, and the parameters that follow the unit.

    Attributes
    ----------
    model : PopulationModel
        The model.
    data : callable
        Unit -> data, whose values are those in the unit 1 times the unit.
    powers : mapping of str to float or array
        Power of the unit by which a site is multiplied.
    shifts : mapping of str to float or array
        What is added to a site, per power of ten of the unit.
    priors : callable
        Unit -> priors that are given in the unit of the data; the others are in it by default, or have no unit.
    units : tuple of float
        Units of the test.
    """

    model: Any
    data: Callable[[float], Any]
    powers: Mapping[str, Any] = {}
    shifts: Mapping[str, Any] = {}
    priors: Callable[[float], Mapping[str, Any]] = lambda unit: {}
    units: tuple[float, ...] = UNITS

    def in_unit(self, unit: float):
        """Return the model with its priors in a unit, the priors that depend on it, and bound data."""
        stated = self.priors(unit)
        model = dataclasses.replace(self.model, priors=dict(self.model.priors) | dict(stated))
        return model, {name: model.all_priors[name] for name in stated}, model.bound(self.data(unit))

    def moved(self, values: Mapping[str, Any], unit: float) -> dict[str, Any]:
        """Return the values of sites in another unit."""
        return {
            name: value * unit ** np.asarray(self.powers.get(name, 0.0)) + self.shifts.get(name, 0.0) * np.log10(unit)
            for name, value in values.items()
        }


# Data in a unit


def values(unit, names=("y",)):
    units = {"y": unit, "a": unit, "b": 1.0}  # of vectors, the second component keeps its unit
    columns = {name: units[name] * (5.0 + 2.0 * noise) for name, noise in zip(names, NOISE, strict=False)}
    columns |= {f"sigma_{name}": np.full(NUM, units[name]) for name in names}
    return ValuesInGroups.from_columns(columns | {"group": GROUP}, components=list(names))


def points(unit):
    """Points of y in a unit, and of x in its square."""
    columns = {
        "x": unit**2 * (X + 0.2 * NOISE[1]),
        "sigma_x": np.full(NUM, 0.2 * unit**2),
        "sigma_y": np.full(NUM, unit),
    }
    return PointsInGroups.from_columns(columns | {"y": unit * (1.0 + 2.0 * X + NOISE[0]), "group": GROUP})


def table(unit):
    y = 1.0 + 2.0 * X + NOISE[0] + np.repeat([-3.0, 2.0, 0.5, 4.0, -1.0, -2.0], 4)
    return RegressionData.from_columns({"x": X, "g": GROUP, "y": unit * y}, "y ~ x + (1 | g)")


def counts(unit, formula="y ~ 1", name="t"):
    return RegressionData.from_columns({"y": COUNTS, "x": X, name: unit * EXPOSURE}, formula, exposure=name)


def trials(unit):
    return RegressionData.from_columns({"y": COUNTS, "n": COUNTS + 10}, "y ~ 1", trials="n")


def predictor(unit):
    return RegressionData.from_columns({"y": (NOISE[0] > X - 2.0).astype(int), "x": unit * X, "g": GROUP}, "y ~ x")


def supernovae(unit):
    """Supernovae of which the flux is in a unit."""
    sne = load_jla().subset(np.arange(0, 740, 37))
    return sne.replace_observations(m_b=sne.m_b - 2.5 * np.log10(unit), x1=sne.x1, c=sne.c)


def correlated(unit):
    sne = supernovae(unit)
    blocks = np.zeros((6, len(sne), len(sne)))
    blocks[0] = 1e-3 + np.diag(np.full(len(sne), 1e-3))
    return CorrelatedSupernovae.from_supernovae(sne, blocks, blocks_hold_errors=False)


def moduli(unit):
    z = np.linspace(0.05, 1.0, NUM)
    mu = 43.0 + 5.0 * np.log10(z) + 2.0 * z + 0.1 * NOISE[0]
    data = DistanceModuli.from_columns({"z_cmb": z, "m_b_corr": mu - 19.3, "sigma": np.full(NUM, 0.1)})
    return data.replace_observations(data.mu - 2.5 * np.log10(unit))


def bursts(unit):
    data = BurstPopulation(num_intervals=[3, 2], gamma=(1.5, 0.25)).draw(4, seed=8).data.to_dict()
    limits = {"log10_flux_limit": np.full(4, -9.0 + np.log10(unit))}
    return Bursts.from_dict(data | limits | {"log10_flux": data["log10_flux"] + np.log10(unit)})


def in_exposures(spectra: SpectrumStack, unit) -> SpectrumStack:
    """Return spectra of the same counts in another unit of time."""
    return dataclasses.replace(spectra, exposure=np.asarray(spectra.exposure) * unit)


def burst_spectra(unit):
    population = BurstSpectraPopulation(num_intervals=2, detectors={"n0": "nai", "b0": "bgo"}, spectrum="cutoff")
    data = BurstSpectra.of(population.draw(1, seed=5).bursts)
    return dataclasses.replace(data, spectra=in_exposures(data.spectra, unit))


def sources():
    population = AfterglowPopulation(redshift=(0.5, 1.5, 3.0), log10_flux=(-11.2, 0.1), exposure=2000.0, min_counts=0)
    return population.draw(2, seed=4)


def spectra(unit):
    return in_exposures(SpectrumStack.of(sources().spectra), unit)


def afterglows(unit):
    columns = sources().columns
    return Afterglows.from_spectra(spectra(unit), z=columns["z"], nh_mw=columns["nh_mw"])


def source_spectra(unit):
    return SourceSpectra.from_spectra(spectra(unit), z=sources().columns["z"])


# Priors in a unit


def magnitude(unit):
    return {"M0": dist.Normal(-19.3 - 2.5 * np.log10(unit), 1.0)}


def luminosity(mean, power=1.0):
    return lambda unit: {"log10_N_mean": dist.Normal(mean + power * np.log10(unit), 1.0)}


def flux(unit):
    return {"log10_flux_mean": dist.Normal(-11.5 - np.log10(unit), 0.75)}


def amplitude(unit):
    return {"log10_amplitude": dist.Normal(-3.0 - np.log10(unit), 1.0)}


Y = dict.fromkeys(("mu", "tau", "sigma", "theta"), 1.0)
FIRST = np.array([1.0, 0.0])  # component of a vector
LINE = {name: power for names, power in (
    (("alpha", "alpha_mean", "alpha_std"), -1.0),
    (("beta", "beta_mean", "beta_std", "intrinsic_scatter"), 1.0),
    (("x", "x_mean", "x_std"), 2.0),
) for name in names}  # fmt: skip
LOG_RATE = {"coef": np.array([-np.log(10.0), 0.0])}
BROKEN = {"x_break": 2.0, "alpha_above": -1.0}
OF_FLUXES = (1e-6, 3e7)  # readers refuse logarithms of fluxes far from those of bursts
M0 = {"M0": -2.5, "m_b_true": -2.5}
LUMINOSITY = {"log10_N_mean": 1.0, "log10_N": 1.0, "log10_luminosity": 1.0}
FLUX = dict.fromkeys(("log10_flux", "log10_flux_mean", "log10_N_mean"), -1.0)

# Names of the registry, each with the variants of a model that sample other coordinates.
CATALOGUE = {
    "normal": Case(Normal(), values, Y),
    "normal, inferred": Case(Normal(sigma="inferred"), values, Y),
    "normal, noncentred": Case(Normal(latents="noncentred"), values, Y),
    "normal, stated priors": Case(
        Normal(), values, Y, priors=lambda unit: {"mu": dist.Normal(0.0, 9.0 * unit), "tau": dist.HalfCauchy(unit)}
    ),
    "normal-vectors": Case(NormalVectors(), lambda unit: values(unit, ("a", "b")), {"mu": FIRST, "tau": FIRST}),
    "relation": Case(Relation(), points, LINE),
    "relation, sampled": Case(Relation(latents="sampled"), points, LINE),
    "relation, complete": Case(Relation(pooling="complete", num_components=2), points, LINE),
    "relation, outliers": Case(Relation(outliers=True), points, LINE | {"outlier_scatter": 1.0}),
    "relation, Student's t": Case(Relation(student_t=True), points, LINE),
    "relation, broken": Case(Relation(broken=True, pooling="complete"), points, LINE | BROKEN),
    "relation, curved": Case(Relation(curved=True, pooling="complete"), points, LINE | {"curvature": -3.0}),
    "regression": Case(Regression(), table, dict.fromkeys(("coef", "_g_0", "g_effect", "g_sd", "sigma"), 1.0)),
    "regression, predictor": Case(Regression(family="bernoulli"), predictor, {"coef": np.array([0.0, -1.0])}),
    "regression, exposure": Case(
        Regression(family="poisson"),
        lambda unit: counts(unit, "y ~ x"),
        shifts=LOG_RATE,
    ),
    "rates": Case(Rates(family="poisson"), counts, {"mean": -1.0}),
    "supernova": Case(Supernova(), supernovae, shifts=M0, priors=magnitude),
    "supernova, sampled": Case(Supernova(latents="noncentred"), supernovae, shifts=M0, priors=magnitude),
    "supernova-correlated": Case(CorrelatedSupernova(), correlated, shifts=M0, priors=magnitude),
    "hubble-diagram": Case(HubbleDiagram(intrinsic_scatter=True), moduli, shifts=M0, priors=magnitude),
    "golenetskii": Case(Golenetskii(), bursts, {}, LUMINOSITY, luminosity(52.0), OF_FLUXES),
    "golenetskii, truncated": Case(Golenetskii(truncated=True), bursts, {}, LUMINOSITY, luminosity(52.0), OF_FLUXES),
    "golenetskii-counts": Case(
        GolenetskiiCounts(spectrum="cutoff"), burst_spectra, shifts=FLUX, priors=luminosity(52.0, -1.0)
    ),
    "afterglow": Case(Afterglow(), afterglows, shifts=FLUX, priors=flux),
    "spectra": Case(SpectralPopulation(spectrum="tbabs * powerlaw"), source_spectra, shifts=FLUX, priors=flux),
    "spectrum": Case(SpectralFit("powerlaw * tbabs"), spectra, shifts={"log10_amplitude": -1.0}, priors=amplitude),
}


def traced(model, priors, bound, given, key):
    """Return the sites of a program at ``given`` values, the others drawn with a key."""
    program = handlers.substitute(model.with_priors(priors), data=given)
    return handlers.trace(handlers.seed(program, key)).get_trace(bound)


def of_type(trace, kind, observed=False):
    """Return the values of sites of a type."""
    return {n: s["value"] for n, s in trace.items() if s["type"] == kind and s.get("is_observed", False) == observed}


class Evaluation:
    """Sites and log density of a model in the latents themselves, compiled once for all units.

    Latents ``x`` that are sampled in coordinates ``_x`` may have other coordinates in other units.
    """

    def __init__(self, model):
        def sites(*arguments):
            """Return the values of latent and of recorded sites."""
            trace = traced(model, *arguments)
            return of_type(trace, "sample"), of_type(trace, "deterministic")

        def density(priors, bound, given, key, scales):
            """Return recorded sites, the log density, and the derivatives of scaled latents by their coordinates."""
            trace = traced(model, priors, bound, given, key)
            sampled = [site for site in trace.values() if site["type"] == "sample"]
            log_density = sum(site["fn"].log_prob(site["value"]).sum() for site in sampled)
            flat, unflatten = ravel_pytree({f"_{name}": given[f"_{name}"] for name in scales})

            def scaled(flat):
                recorded = sites(priors, bound, given | unflatten(flat), key)[1]
                return ravel_pytree({f"_{name}": recorded[name] / scale for name, scale in scales.items()})[0]

            return of_type(trace, "deterministic"), log_density, jax.jacfwd(scaled)(flat)

        self.sites, self.density = jax.jit(sites), jax.jit(density)

    def at(self, priors, bound, latents, recorded, key):
        """Return the recorded sites and the log density where latents have the recorded values, by Newton's method."""
        names = [name for name in recorded if f"_{name}" in latents]
        scales = {name: np.abs(recorded[name]).max() for name in names}
        given = dict(latents)
        for _ in range(NEWTON_STEPS):
            found, log_density, slopes = jax.device_get(self.density(priors, bound, given, key, scales))
            difference = {f"_{name}": (recorded[name] - found[name]) / scales[name] for name in names}
            flat, unflatten = ravel_pytree(difference)
            if np.abs(flat).max(initial=0.0) < 1e-13:
                break
            given |= {n: given[n] + step for n, step in unflatten(np.linalg.solve(slopes, flat)).items()}
        log_scales = sum(np.size(recorded[name]) * np.log(scale) for name, scale in scales.items())
        return found, log_density - np.linalg.slogdet(slopes)[1] - log_scales


QUICK = ("normal", "relation", "regression", "rates", "hubble-diagram")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in CATALOGUE])
def test_a_unit_changes_the_log_density_by_a_constant(name):
    case = CATALOGUE[name]
    model, *arguments = case.in_unit(1.0)
    evaluation = Evaluation(model)
    keys = jax.random.split(jax.random.key(seed(1)), NUM_POINTS)
    points = [jax.device_get(evaluation.sites(*arguments, {}, key)) for key in keys]
    plain = [evaluation.at(*arguments, *point, key)[1] for point, key in zip(points, keys, strict=True)]
    for unit in case.units:
        _, *arguments = case.in_unit(unit)
        moved = [tuple(case.moved(sites, unit) for sites in point) for point in points]
        results = [evaluation.at(*arguments, *point, key) for point, key in zip(moved, keys, strict=True)]
        for (_, expected), (found, _) in zip(moved, results, strict=True):
            for site, value in expected.items():
                np.testing.assert_allclose(found[site], value, rtol=1e-9, atol=1e-9 * np.abs(value).max(), err_msg=site)
        constants = [log_density - before for (_, log_density), before in zip(results, plain, strict=True)]
        np.testing.assert_allclose(constants, constants[0], rtol=0, atol=1e-9 * np.abs(plain).max())


def test_the_catalogue_has_every_model():
    models = {name.partition(",")[0]: type(case.model) for name, case in CATALOGUE.items()}
    assert models == {name: entry.model for name, entry in BUILT_IN.items()}


@pytest.mark.long
@pytest.mark.parametrize(("name", "unit"), [("normal-vectors", 1e30), ("relation", 1e-21), ("regression", 3e7)])
def test_the_posterior_is_sampled_as_well_in_another_unit(name, unit, monte_carlo):
    case = CATALOGUE[name]
    fits = [
        hbm.sample(case.model, case.data(u), num_samples=1000, seed=seed(number), progress=False)
        for number, u in ((3, 1.0), (4, unit))
    ]
    assert all(fit.verdict.usable for fit in fits)
    plain, found = ({str(n): v.to_numpy() for n, v in fit.posterior.items()} for fit in fits)
    for site, expected in case.moved(plain, unit).items():
        for index in np.ndindex(expected.shape[2:]):
            pair = (draws[(..., *index)] / expected[(..., *index)].std() for draws in (found[site], expected))
            if np.ptp(expected[(..., *index)]) > 0:
                monte_carlo.same_mean(*pair, name=f"{site} {index}")
