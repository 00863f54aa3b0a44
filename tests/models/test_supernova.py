"""The supernova model: its density against a plain SciPy sum, its three treatments of latents, its border."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import integrate, stats

import hbm_jax
from hbm_jax.data import DataError, Supernovae, load_jla
from hbm_jax.data.protocol import Container
from hbm_jax.models import Supernova
from hbm_jax.models.background import FREE
from hbm_jax.models.protocol import Model
from hbm_jax.models.supernova import LATENTS, OBSERVABLES

JLA = load_jla()
FEW = JLA.subset(np.arange(0, 740, 53))
TRUTH = {
    "M0": -19.1, "alpha": 0.14, "beta": 3.1, "delta_M": -0.07, "sigma_int": 0.1,
    "x1_mean": 0.05, "x1_std": 0.97, "c_mean": -0.02, "c_std": 0.08,
}  # fmt: skip
COSMOLOGIES = {
    "lcdm": [{"Om0": 0.3}, {"Om0": 0.9}],
    "olcdm": [{"Om0": 0.3, "Ode0": 0.8}, {"Om0": 0.25, "Ode0": 0.1}],
    "wcdm": [{"Om0": 0.3, "w0": -1.1}, {"Om0": 0.05, "w0": -0.2}],
    "owcdm": [{"Om0": 0.3, "Ode0": 0.8, "w0": -0.9}, {"Om0": 0.5, "Ode0": 0.3, "w0": -1.8}],
    "w0wacdm": [{"Om0": 0.3, "wa": 0.3, "w0": -0.9}, {"Om0": 0.6, "wa": -1.5, "w0": -0.4}],
}

# The same priors in SciPy, written from the documentation.
PRIORS = {
    "M0": stats.norm(-19.3, 1.0), "alpha": stats.norm(0, 0.5), "beta": stats.norm(0, 5), "delta_M": stats.norm(0, 0.2),
    "sigma_int": stats.halfnorm(0, 0.3), "x1_mean": stats.norm(0, 1), "x1_std": stats.halfnorm(0, 2),
    "c_mean": stats.norm(0, 0.2), "c_std": stats.halfnorm(0, 0.3), "Om0": stats.uniform(0, 1),
    "Ode0": stats.uniform(0, 1.2), "w0": stats.uniform(-3, 3), "wa": stats.uniform(-3, 5), "H0": stats.norm(70, 5),
}  # fmt: skip


def moduli(data, p):
    """Distance moduli by SciPy's adaptive integral."""
    om, w0, wa, h0 = p["Om0"], p.get("w0", -1.0), p.get("wa", 0.0), p.get("H0", 70.0)
    ode = p.get("Ode0", 1 - om)
    k = 1 - om - ode

    def inverse_e(z):
        x = 1 + z
        dark = x ** (3 * (1 + w0 + wa)) * np.exp(-3 * wa * z / x)
        return 1 / np.sqrt(om * x**3 + k * x**2 + ode * dark)

    comoving = np.array([integrate.quad(inverse_e, 0, z, epsabs=0, epsrel=1e-11)[0] for z in data.z_cmb])
    root = np.sqrt(complex(k))
    transverse = (np.sinh(root * comoving) / root).real if abs(k) > 1e-9 else comoving
    return 5 * np.log10((1 + data.z_hel) * 299792.458 / h0 * transverse) + 25


def magnitudes(data, p):
    return moduli(data, p) + p["M0"] + p.get("delta_M", 0.0) * (data.log10_mass > 10)


def noise(data):
    """Covariance of (m_b, x1, c): fit, lensing and velocity, not the coherent part."""
    total = np.array(data.covariance)
    total[:, 0, 0] += data.variance_lensing + data.variance_velocity
    return total


def log_prior(p):
    return sum(PRIORS[name].logpdf(value) for name, value in p.items())


def log_likelihood(data, p):
    """Plain sum: the covariance of (m_b, x1, c) of each supernova, term by term."""
    a, b, rx, rc = p["alpha"], p["beta"], p["x1_std"], p["c_std"]
    mean_m = magnitudes(data, p) - a * p["x1_mean"] + b * p["c_mean"]
    population = np.array(
        [
            [a**2 * rx**2 + b**2 * rc**2 + p["sigma_int"] ** 2, -a * rx**2, b * rc**2],
            [-a * rx**2, rx**2, 0.0],
            [b * rc**2, 0.0, rc**2],
        ]
    )
    return sum(
        stats.multivariate_normal([mean_m[i], p["x1_mean"], p["c_mean"]], population + covariance).logpdf(
            [data.m_b[i], data.x1[i], data.c[i]]
        )
        for i, covariance in enumerate(noise(data))
    )


def coordinates_of(model, data):
    """The CoordinatePriors of a model, None if nothing is free."""
    found = {}

    def run(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(data, observed=False)
        found["site"] = trace.get("_cosmology", {"fn": None})["fn"]
        return 0

    jax.eval_shape(run, jax.random.key(0))
    return found["site"]


class Density:
    """Log density of a model in its stated parameters, compiled once; Jacobians of coordinates by autodiff."""

    def __init__(self, model, data):
        self.block = coordinates_of(model, data)
        self.names = () if self.block is None else tuple(self.block.priors)
        self._density = jax.jit(lambda sites: log_density(model, (data,), {}, sites)[0])
        if self.names:
            self._coordinates = jax.jit(self.block.coordinates)
            vector = lambda y: jnp.stack(list(self.block.parameters(y).values()))  # noqa: E731
            self._log_jacobian = jax.jit(lambda y: jnp.linalg.slogdet(jax.jacfwd(vector)(y))[1])

    def __call__(self, parameters, latents=None):
        sites = {name: value for name, value in parameters.items() if name not in self.names} | (latents or {})
        if not self.names:
            return float(self._density(sites))
        y = self._coordinates({name: parameters[name] for name in self.names})
        return float(self._density(sites | {"_cosmology": y})) - float(self._log_jacobian(y))


@pytest.mark.parametrize("cosmology", COSMOLOGIES)
def test_density_is_a_plain_scipy_sum(cosmology):
    density = Density(Supernova(cosmology=cosmology), FEW)
    other = TRUTH | {"M0": -19.6, "alpha": -0.3, "beta": 1.0, "sigma_int": 0.01, "x1_std": 0.3, "delta_M": 0.1}
    for p in [COSMOLOGIES[cosmology][0] | TRUTH, COSMOLOGIES[cosmology][1] | other]:
        np.testing.assert_allclose(density(p), log_prior(p) + log_likelihood(FEW, p), rtol=1e-9)


def test_density_with_overrides_and_fixed_parameters():
    model = Supernova(mass_step=False, priors={"H0": dist.Normal(70, 5), "Om0": 0.3, "sigma_int": "0.1"})
    p = {"H0": 73.0} | {name: v for name, v in TRUTH.items() if name not in ("delta_M", "sigma_int")}
    likelihood = log_likelihood(FEW, p | {"Om0": 0.3, "sigma_int": 0.1})
    np.testing.assert_allclose(Density(model, FEW)(p), log_prior(p) + likelihood, rtol=1e-9)


def draw_latents(data, p, seed=0):
    rng = np.random.default_rng(seed)
    x1 = rng.normal(p["x1_mean"], p["x1_std"], len(data))
    c = rng.normal(p["c_mean"], p["c_std"], len(data))
    m_b = magnitudes(data, p) - p["alpha"] * x1 + p["beta"] * c + rng.normal(0, p["sigma_int"], len(data))
    return {"x1_true": x1, "c_true": c, "m_b_true": m_b}


def textbook_conditional(data, p):
    """Mean (N, 3) and covariance (N, 3, 3) of the true (x1, c, m_b) given the observed, by the gain matrix."""
    a, b, rx, rc = p["alpha"], p["beta"], p["x1_std"], p["c_std"]
    tripp = np.array([[1.0, 0, 0], [0, 1, 0], [-a, b, 1]])
    population = tripp @ np.diag([rx**2, rc**2, p["sigma_int"] ** 2]) @ tripp.T
    loc = np.stack(np.broadcast_arrays(p["x1_mean"], p["c_mean"], 0.0 * data.m_b), axis=-1) @ tripp.T
    loc[:, 2] += magnitudes(data, p)
    order = np.ix_([1, 2, 0], [1, 2, 0])
    observed = np.stack([data.x1, data.c, data.m_b], axis=-1)
    gains = [population @ np.linalg.inv(population + covariance[order]) for covariance in noise(data)]
    mean = np.array([m + g @ (d - m) for m, g, d in zip(loc, gains, observed, strict=True)])
    return mean, np.array([population - g @ population for g in gains])


def test_sampled_latents_are_the_marginal_model_by_bayes_identity():
    p = {"Om0": 0.3} | TRUTH
    densities = {latents: Density(Supernova(latents=latents), FEW) for latents in LATENTS}
    truth = draw_latents(FEW, p)
    stacked = np.stack([truth[f"{name}_true"] for name in OBSERVABLES], axis=-1)
    mean, covariance = textbook_conditional(FEW, p)
    conditional = sum(
        stats.multivariate_normal(m, v).logpdf(x) for x, m, v in zip(stacked, mean, covariance, strict=True)
    )
    centred = densities["centred"](p, truth)
    np.testing.assert_allclose(centred - conditional, densities["marginal"](p), rtol=1e-9)

    centre = magnitudes(FEW, p) - p["alpha"] * truth["x1_true"] + p["beta"] * truth["c_true"]
    standard = {
        "_x1_standard": (truth["x1_true"] - p["x1_mean"]) / p["x1_std"],
        "_c_standard": (truth["c_true"] - p["c_mean"]) / p["c_std"],
        "_m_b_standard": (truth["m_b_true"] - centre) / p["sigma_int"],
    }
    jacobian = len(FEW) * np.log(p["x1_std"] * p["c_std"] * p["sigma_int"])
    np.testing.assert_allclose(densities["noncentred"](p, standard), centred + jacobian, rtol=1e-9)


def test_data_may_be_an_argument_of_a_compiled_function():
    model, p = Supernova(cosmology="wcdm"), {"Om0": 0.3, "w0": -1.1} | TRUTH
    block = coordinates_of(model, FEW)
    sites = TRUTH | {"_cosmology": block.coordinates({name: p[name] for name in block.priors})}
    traces = []

    @jax.jit
    def density(data, sites):
        traces.append(1)
        return log_density(model, (data,), {}, sites)[0]

    expected = jax.jit(lambda sites: log_density(model, (FEW,), {}, sites)[0])(sites)
    np.testing.assert_allclose(density(FEW, sites), expected, rtol=1e-12)
    shifted = dataclasses.replace(FEW, m_b=FEW.m_b + 0.1)
    changed = density(shifted, sites | {"M0": TRUTH["M0"] + 0.1})
    moved = stats.norm(-19.3, 1).logpdf([TRUTH["M0"], TRUTH["M0"] + 0.1])
    np.testing.assert_allclose(changed - moved[1], expected - moved[0], rtol=1e-10)
    assert len(traces) == 1


def test_without_a_big_bang_the_density_is_zero_and_gradients_elsewhere_are_finite():
    # E^2 of (Om0, Ode0) = (0.1, 1.8) is negative from z = 0.5 to 1.2; the default prior of Ode0 hardly reaches there.
    model = Supernova(cosmology="olcdm", priors={"Ode0": dist.Uniform(0.0, 2.0)})
    near = JLA.subset(np.flatnonzero(JLA.z_cmb < 0.3)[:10])
    for data, expected in ((near, True), (JLA.subset(np.argsort(JLA.z_cmb)[-10:]), False)):
        block = coordinates_of(model, data)
        value_and_grad = jax.jit(jax.value_and_grad(lambda s, data=data: log_density(model, (data,), {}, s)[0]))
        for ode, possible in ((1.8, expected), (0.7, True), (1.2, True)):
            y = block.coordinates({"Om0": 0.1, "Ode0": ode})
            value, gradient = value_and_grad(TRUTH | {"_cosmology": y})
            assert np.isfinite(value) if possible else value == -np.inf
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# What is sampled.


def of_chains(fit, name):
    return fit.posterior[name].to_numpy().ravel()


@pytest.fixture(scope="module")
def simulated():
    data, _ = Supernova().simulate(jax.random.key(3), JLA.subset(np.arange(5, 740, 12)[:60]), {"Om0": 0.3} | TRUTH)
    return data


TREATMENTS = {
    "marginal": {"num_samples": 1500, "num_warmup": 300},
    "sampled": {"num_samples": 1000},
    "noncentred": {"num_samples": 2000, "num_warmup": 500},
    # Small steps, because the centred posterior narrows to a funnel where sigma_int is small.
    "centred": {"num_samples": 2000, "num_warmup": 600, "target_accept_prob": 0.95},
}


class Fits(dict):
    """A fit of each treatment, made when it is first asked for."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __missing__(self, latents):
        options = {"seed": 7, "num_chains": 2, "progress": False} | TREATMENTS[latents]
        self[latents] = hbm_jax.sample(Supernova(latents=latents), self.data, **options)
        return self[latents]


@pytest.fixture(scope="module")
def fits(simulated):
    return Fits(simulated)


@pytest.fixture(scope="module")
def recovered(fits):
    return hbm_jax.latents(fits["marginal"], num_draws=2000, seed=5)


def assert_equal_means(a, b, names, min_ess=200):
    """Means within 4 combined Monte-Carlo standard errors, where both have been sampled well enough to ask."""
    for name in names:
        means, errors = [], []
        for fit in (a, b):
            row = fit.verdict.table.loc[name]
            assert row[["ess_bulk", "ess_tail"]].min() >= min_ess, name
            draws = of_chains(fit, name)
            means.append(draws.mean())
            errors.append(draws.std() / np.sqrt(row["ess_bulk"]))
        assert abs(means[0] - means[1]) < 4 * np.hypot(*errors), name


@pytest.mark.parametrize(
    "latents",
    ["sampled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("noncentred", "centred"))],
)
@pytest.mark.long
def test_treatments_of_latents_have_one_posterior(fits, recovered, latents):
    globals_ = [name for name, v in fits["marginal"].posterior.items() if v.ndim == 2]
    assert set(globals_) == {"Om0", *TRUTH}
    assert_equal_means(fits["marginal"], fits[latents], globals_)
    table = fits[latents].verdict.table
    gaps = []
    for name in OBSERVABLES:
        sampled, exact = fits[latents].posterior[f"{name}_true"], recovered[f"{name}_true"]
        for i, label in enumerate(sampled.supernova.to_numpy()):
            ess = table.loc[f"{name}_true[{label}]", "ess_bulk"]
            assert ess >= 200
            draws = sampled.isel(supernova=i).to_numpy()
            error = draws.std() * np.hypot(1 / np.sqrt(ess), 1 / np.sqrt(1000))
            gaps.append((draws.mean() - float(exact.isel(supernova=i).mean())) / error)
    assert np.max(np.abs(gaps)) < 5, "180 of them"
    assert 0.3 < np.std(gaps) < 1.5


def test_recovered_latents_have_the_moments_of_the_exact_conditional(fits, recovered, simulated):
    fit, drawn, num = fits["marginal"], recovered, 2000
    assert set(drawn) == {"x1_true", "c_true", "m_b_true"}
    assert drawn["c_true"].dims == ("sample", "supernova")
    assert drawn["c_true"].shape == (num, 60)
    assert list(drawn.supernova.to_numpy()) == list(simulated.name)
    posterior = fit.posterior.stack(sample=("chain", "draw"))
    index = np.linspace(0, posterior.sizes["sample"] - 1, num).round().astype(int)
    scores = []
    for k in range(0, num, 100):
        p = {name: float(v[index[k]]) for name, v in posterior.items()}
        mean, covariance = textbook_conditional(simulated, p)
        x = np.stack([drawn[f"{name}_true"].to_numpy()[k] for name in OBSERVABLES], axis=-1)
        scores.append(np.linalg.solve(np.linalg.cholesky(covariance), (x - mean)[..., None])[..., 0])
    scores = np.reshape(scores, (-1, 3))  # standard normal, if mean and covariance are right draw by draw
    for component in scores.T:
        assert stats.kstest(component, "norm").pvalue > 1e-3
    assert np.max(np.abs(np.corrcoef(scores.T) - np.eye(3))) < 4 / np.sqrt(len(scores))


def test_prior_and_posterior_predictive_come_from_the_same_program(fits, simulated):
    prior = hbm_jax.prior_predictive(Supernova(), FEW, num_draws=200, seed=1)
    assert prior["observed"].dims == ("sample", "supernova", "observable")
    assert prior["observed"].shape == (200, len(FEW), 3)
    assert list(prior.observable.to_numpy()) == list(OBSERVABLES)
    for name in ("alpha", "Om0", "sigma_int"):
        assert stats.kstest(prior[name].to_numpy(), PRIORS[name].cdf).pvalue > 1e-3

    replicated = hbm_jax.posterior_predictive(fits["marginal"], num_draws=300, seed=2)["observed"].to_numpy()
    assert replicated.shape == (300, 60, 3)
    observed = np.stack([simulated.x1, simulated.c, simulated.m_b], axis=-1)
    residual = (observed - replicated.mean(0)) / replicated.std(0)
    chi2 = np.sum(residual**2, axis=0)
    assert np.all(np.abs(chi2 - 60) < 4 * np.sqrt(2 * 60)), "a model that made the data describes them"
    replicated_chi2 = np.sum(((replicated[0] - replicated.mean(0)) / replicated.std(0)) ** 2, axis=0)
    assert np.all(np.abs(replicated_chi2 - 60) < 4 * np.sqrt(2 * 60))


@pytest.mark.parametrize(
    ("cosmology", "truth"),
    [("wcdm", {"Om0": 0.3, "w0": -1.0}), pytest.param("lcdm", {"Om0": 0.3}, marks=pytest.mark.slow)],
)
def test_simulated_truth_is_recovered(cosmology, truth):
    truth = truth | TRUTH
    data, _ = Supernova(cosmology=cosmology).simulate(jax.random.key(12), JLA, truth)
    fit = hbm_jax.sample(Supernova(cosmology=cosmology), data, seed=2, num_warmup=300, num_samples=400, progress=False)
    assert fit.verdict.num_divergences == 0
    for name, value in truth.items():
        draws = of_chains(fit, name)
        assert fit.verdict.table.loc[name, ["ess_bulk", "ess_tail"]].min() > 200, name
        assert abs(draws.mean() - value) < 4 * draws.std(), name
    assert of_chains(fit, "alpha").std() < 0.02, "and the data say something"


@pytest.mark.slow
def test_treatments_of_latents_have_one_posterior_on_jla():
    fits = {
        latents: hbm_jax.sample(
            Supernova(cosmology="wcdm", latents=latents),
            JLA,
            seed=1,
            num_chains=2,
            num_warmup=num_warmup,
            num_samples=num_samples,
            progress=False,
        )
        for latents, (num_warmup, num_samples) in {
            "marginal": (300, 1500),
            "noncentred": (600, 1500),
            "centred": (600, 2000),
        }.items()
    }
    names = ["Om0", "w0", *TRUTH]
    assert_equal_means(fits["marginal"], fits["noncentred"], names)
    assert_equal_means(fits["marginal"], fits["centred"], names)


@pytest.mark.slow
def test_ranks_of_simulated_truths_are_uniform():
    """Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788), 64 replicates."""
    design = JLA.subset(np.arange(0, 740, 12)[:60])
    priors = {
        "M0": dist.Normal(-19.1, 0.1), "alpha": dist.Normal(0.14, 0.05), "beta": dist.Normal(3.1, 0.5),
        "delta_M": dist.Normal(-0.05, 0.05), "sigma_int": dist.LogNormal(np.log(0.1), 0.4),
        "x1_mean": dist.Normal(0, 0.5), "x1_std": dist.LogNormal(0.0, 0.3), "c_mean": dist.Normal(0, 0.05),
        "c_std": dist.LogNormal(np.log(0.08), 0.3),
    }  # fmt: skip
    model = Supernova(priors=priors)
    num_replicates, num_thinned = 64, 99
    ranks = {name: [] for name in ("Om0", *priors)}
    for replicate in range(num_replicates):
        data, truth = model.simulate(jax.random.key(1000 + replicate), design)
        fit = hbm_jax.sample(model, data, seed=replicate, num_chains=2, num_warmup=200, num_samples=400, progress=False)
        for name in ranks:
            assert fit.verdict.table.loc[name, "ess_bulk"] > num_thinned, (replicate, name)
            draws = of_chains(fit, name)
            thinned = draws[np.linspace(0, len(draws) - 1, num_thinned).astype(int)]
            ranks[name].append(np.sum(thinned < truth[name]))
    for name, values in ranks.items():
        counts = np.histogram(values, bins=8, range=(0, num_thinned + 1))[0]
        assert stats.chisquare(counts).pvalue > 0.01 / len(ranks), (name, counts)
        uniform = (np.array(values) + 0.5) / (num_thinned + 1)
        assert stats.kstest(uniform, "uniform").pvalue > 0.01 / len(ranks), name


# The border: choices, configuration, simulation.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cosmology": "wcmd"}, "Unknown cosmology 'wcmd': expected one of 'lcdm'.*Did you mean 'wcdm'?"),
        ({"latents": "noncentered"}, "Unknown treatment of latents 'noncentered'.*Did you mean 'noncentred'?"),
        ({"priors": {"Om": 0.3}}, r"cosmology='lcdm'\) has no parameter 'Om': expected one of H0, .*mean 'Om0'?"),
        ({"priors": {"w0": -1.0}}, "has no parameter 'w0'"),
        ({"priors": {"delta_M": 0.0}, "mass_step": False}, "has no parameter 'delta_M'"),
        ({"priors": {"Om0": "Normall(0, 1)"}}, "prior.Om0: expected .*Did you mean Normal"),
        ({"priors": {"Om0": dist.Normal(np.zeros(2), 1)}}, r"prior.Om0: .*Normal with batch shape \(2,\)"),
        ({"priors": {"beta": dist.Dirichlet(np.ones(2))}}, r"prior.beta: .*event shape \(2,\)"),
    ],
)
def test_wrong_choices_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Supernova(**arguments)


def sites_of(model, data=FEW):
    found = {}

    def run(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(data, observed=False)
        found.update({name: site["type"] for name, site in trace.items()})
        return 0

    jax.eval_shape(run, jax.random.key(0))
    return {name for name in found if not name.startswith("_") and name not in ("observed", "supernova")}


@pytest.mark.parametrize("cosmology", FREE)
def test_parameters_are_those_named(cosmology):
    model = Supernova(cosmology=cosmology)
    assert model.all_priors["H0"] == 70.0
    expected = {*FREE[cosmology], *TRUTH}
    assert set(model.all_priors) == expected | {"H0"}
    assert sites_of(model) == expected | ({"Ok0"} if "Ode0" in expected else set())
    assert cosmology in ("lcdm",) or model.description != Supernova().description


def test_switching_parameters_off_and_on():
    assert sites_of(Supernova(mass_step=False)) == {"Om0", *TRUTH} - {"delta_M"}
    assert sites_of(Supernova(priors={"Om0": 0.3, "alpha": "0.14"})) == set(TRUTH) - {"alpha"}
    assert sites_of(Supernova(priors={"H0": "Normal(73, 1)"})) == {"Om0", "H0", *TRUTH}
    both = Supernova(cosmology="olcdm", priors={"Om0": 0.3, "Ode0": 0.7})
    assert sites_of(both) == set(TRUTH)
    assert sites_of(Supernova(cosmology="owcdm", priors={"Ode0": 0.7})) == {"Om0", "w0", "Ok0", *TRUTH}


def test_mass_step_needs_masses():
    columns = {"z_cmb": [0.1, 0.2], "z_hel": [0.1, 0.2], "m_b": [19.0, 20.0], "x1": [0.0, 0.0], "c": [0.0, 0.0]}
    bare = Supernovae.from_columns(columns | {"covariance": np.tile(0.01 * np.eye(3), (2, 1, 1)), "name": ["a", "b"]})
    with pytest.raises(DataError, match=r"needs the host mass.*found none for 2 of 2, the first being a\."):
        Supernova().simulate(jax.random.key(0), bare)
    data, truth = Supernova(mass_step=False).simulate(jax.random.key(0), bare)
    assert len(data) == 2
    assert "delta_M" not in truth


def test_configuration_comes_back():
    model = Supernova(
        cosmology="wcdm",
        latents="centred",
        mass_step=False,
        priors={"Om0": dist.TruncatedNormal(0.3, 0.05, low=0.0), "H0": dist.Normal(73, 1), "M0": -19.25},
    )
    again = Supernova(**model.to_config())
    assert again.to_config() == model.to_config()
    assert (again.description, again.units, again.dims) == (model.description, model.units, model.dims)
    one, two = (m.simulate(jax.random.key(1), FEW) for m in (model, again))
    np.testing.assert_array_equal(one[0].m_b, two[0].m_b)
    assert one[1].keys() == two[1].keys()


def test_model_cannot_be_changed():
    priors = {"Om0": 0.3}
    model = Supernova(priors=priors)
    priors["Om0"] = 0.4
    assert model.all_priors["Om0"] == 0.3
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.cosmology = "wcdm"


def test_simulation_is_repeatable_and_keeps_what_is_given():
    model = Supernova(cosmology="wcdm")
    given = {"Om0": 0.25, "sigma_int": 0.0, "alpha": 0.2}
    first, truth = model.simulate(jax.random.key(4), FEW, given)
    second, _ = model.simulate(jax.random.key(4), FEW, given)
    other, _ = model.simulate(jax.random.key(5), FEW, given)
    np.testing.assert_array_equal(first.m_b, second.m_b)
    assert not np.any(first.m_b == other.m_b)
    np.testing.assert_array_equal(first.covariance, FEW.covariance)
    assert first.name == FEW.name
    assert {name: float(truth[name]) for name in given} == given
    assert set(truth) == {"H0", "Om0", "w0", *TRUTH, "x1_true", "c_true", "m_b_true"}
    # Without scatter the true magnitude is the Tripp relation's.
    p = {name: float(truth[name]) for name in ("Om0", "w0", *TRUTH)}
    expected = magnitudes(FEW, p) - p["alpha"] * truth["x1_true"] + p["beta"] * truth["c_true"]
    np.testing.assert_allclose(truth["m_b_true"], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="has no parameter 'omega_m'"):
        model.simulate(jax.random.key(4), FEW, {"omega_m": 0.3})


def test_simulated_errors_are_the_designs():
    data = dataclasses.replace(FEW, variance_coherent=FEW.variance_coherent + 100.0)
    residuals = []
    simulate = jax.random.split(jax.random.key(9), 30)
    for key in simulate:
        drawn, truth = Supernova().simulate(key, data, {"Om0": 0.3} | TRUTH)
        residuals.append(np.stack([getattr(drawn, n) - truth[f"{n}_true"] for n in ("m_b", "x1", "c")], axis=-1))
    white = np.linalg.solve(np.linalg.cholesky(noise(data)), np.array(residuals)[..., None])[..., 0]
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3, "lensing and velocity count, the coherent part does not"


def test_a_subclass_simulates_with_its_own_distances():
    class Shifted(Supernova):
        def distmod(self, data, cosmology):
            return super().distmod(data, cosmology) + 100.0

    key, given = jax.random.key(0), {"Om0": 0.3} | TRUTH
    shifted, plain = (model.simulate(key, FEW, given)[0] for model in (Shifted(), Supernova()))
    np.testing.assert_allclose(shifted.m_b, plain.m_b + 100.0, rtol=1e-12)


def test_it_is_a_value():
    model = Supernova(cosmology="wcdm", priors={"Om0": 0.3})
    same = Supernova(cosmology="wcdm", priors={"Om0": 0.3})
    assert model == same
    assert len({model, same, Supernova(cosmology="wcdm")}) == 2


def test_standardised_magnitudes_are_what_the_model_says_of_them():
    p = {"Om0": 0.3} | TRUTH
    data, truth = Supernova().simulate(jax.random.key(2), FEW, p | {"sigma_int": 0.0})
    true = data.replace_observations(**{name: truth[f"{name}_true"] for name in OBSERVABLES})
    magnitude, variance = Supernova().standardise(true, p)
    np.testing.assert_allclose(magnitude, moduli(data, p) + p["M0"], rtol=1e-12)
    direction = np.array([1.0, p["alpha"], -p["beta"]])
    expected = [direction @ covariance @ direction + p["sigma_int"] ** 2 for covariance in noise(data)]
    np.testing.assert_allclose(variance, expected, rtol=1e-12)
    alike = {name: value for name, value in p.items() if name != "delta_M"}
    massive = data.log10_mass > 10
    without = Supernova(mass_step=False).standardise(true, alike).m_b
    np.testing.assert_allclose(without - magnitude, p["delta_M"] * massive, atol=1e-12)


def test_model_and_container_keep_the_protocols():
    assert isinstance(Supernova(), Model)
    assert isinstance(FEW, Container)
    assert not isinstance(Supernova().simulate, Model)


def test_a_subclass_is_stored_under_its_own_name():
    def subclass(module):
        return type("Supernova", (Supernova,), {"__module__": module})

    assert "class" not in Supernova().to_config()
    assert subclass("mine")().to_config()["class"] == "mine.Supernova"
    assert subclass("hbm_jaxy.models")().to_config()["class"] == "hbm_jaxy.models.Supernova"
