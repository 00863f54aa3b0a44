"""The supernova model: its density against a plain SciPy sum, its three treatments of latents, its border."""

import dataclasses
import functools

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from models.densities import LogDensity, coordinates_of
from monte_carlo import seed
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

from hbm_jax.data import DataError, load_jla
from hbm_jax.data.protocol import Container
from hbm_jax.models import Supernova
from hbm_jax.models.expansion import FREE
from hbm_jax.models.supernovae.supernova import LATENTS, OBSERVABLES

JLA = load_jla()
FEW = JLA.subset(np.arange(0, 740, 53))
# All simulations are on this one design: each operation outside of a compiled function is compiled once for a shape.
DESIGN = JLA.subset(np.arange(5, 740, 12)[:60])

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
    """Distance moduli by the rule of Gauss and Legendre; 48 points are more than smooth integrands to z = 2 need."""
    om, w0, wa, h0 = p["Om0"], p.get("w0", -1.0), p.get("wa", 0.0), p.get("H0", 70.0)
    ode = p.get("Ode0", 1 - om)
    k = 1 - om - ode
    points, weights = np.polynomial.legendre.leggauss(48)
    x = 1 + 0.5 * data.z_cmb[:, None] * (1 + points)
    dark = x ** (3 * (1 + w0 + wa)) * np.exp(-3 * wa * (x - 1) / x)
    comoving = 0.5 * data.z_cmb * ((om * x**3 + k * x**2 + ode * dark) ** -0.5 @ weights)
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


@functools.cache
def density_of(**options):
    """Log density of a model of the few supernovae."""
    return LogDensity(Supernova(**options), FEW)


@pytest.mark.parametrize("cosmology", COSMOLOGIES)
def test_density_is_a_plain_scipy_sum(cosmology):
    density = density_of(cosmology=cosmology)
    other = TRUTH | {"M0": -19.6, "alpha": -0.3, "beta": 1.0, "sigma_int": 0.01, "x1_std": 0.3, "delta_M": 0.1}
    for p in [COSMOLOGIES[cosmology][0] | TRUTH, COSMOLOGIES[cosmology][1] | other]:
        np.testing.assert_allclose(density(p), log_prior(p) + log_likelihood(FEW, p), rtol=1e-9)


def test_density_with_overrides_and_fixed_parameters():
    model = Supernova(mass_step=False, priors={"H0": dist.Normal(70, 5), "Om0": 0.3, "sigma_int": "0.1"})
    p = {"H0": 73.0} | {name: v for name, v in TRUTH.items() if name not in ("delta_M", "sigma_int")}
    likelihood = log_likelihood(FEW, p | {"Om0": 0.3, "sigma_int": 0.1})
    np.testing.assert_allclose(LogDensity(model, FEW)(p), log_prior(p) + likelihood, rtol=1e-9)


def draw_latents(data, p, number=0):
    rng = np.random.default_rng(number)
    x1 = rng.normal(p["x1_mean"], p["x1_std"], len(data))
    c = rng.normal(p["c_mean"], p["c_std"], len(data))
    m_b = magnitudes(data, p) - p["alpha"] * x1 + p["beta"] * c + rng.normal(0, p["sigma_int"], len(data))
    return {"x1_true": x1, "c_true": c, "m_b_true": m_b}


def textbook_conditional(data, p):
    """Mean (N, 3) and covariance (N, 3, 3) of the true (x1, c, m_b) given the observed, by the gain matrix."""
    mean, population = textbook_population(data, p)
    observed = np.stack([data.x1, data.c, data.m_b], axis=-1)
    gains = [population @ np.linalg.inv(population + covariance) for covariance in reordered(noise(data))]
    mean = np.array([m + g @ (d - m) for m, g, d in zip(mean, gains, observed, strict=True)])
    return mean, np.array([population - g @ population for g in gains])


def textbook_population(data, p):
    """Mean (N, 3) and covariance (3, 3) of the true (x1, c, m_b)."""
    tripp = np.array([[1.0, 0, 0], [0, 1, 0], [-p["alpha"], p["beta"], 1]])
    population = tripp @ np.diag([p["x1_std"] ** 2, p["c_std"] ** 2, p["sigma_int"] ** 2]) @ tripp.T
    mean = np.stack(np.broadcast_arrays(p["x1_mean"], p["c_mean"], 0.0 * data.m_b), axis=-1) @ tripp.T
    mean[:, 2] += magnitudes(data, p)
    return mean, population


def reordered(covariance):
    """From (m_b, x1, c) to (x1, c, m_b)."""
    order = [1, 2, 0]
    return covariance[:, order][:, :, order]


def test_sampled_latents_are_the_marginal_model_by_bayes_identity():
    p = {"Om0": 0.3} | TRUTH
    assert set(LATENTS) == {"marginal", "sampled", "noncentred", "centred"}
    truth = draw_latents(FEW, p)
    stacked = np.stack([truth[f"{name}_true"] for name in OBSERVABLES], axis=-1)
    mean, covariance = textbook_conditional(FEW, p)
    conditional = sum(
        stats.multivariate_normal(m, v).logpdf(x) for x, m, v in zip(stacked, mean, covariance, strict=True)
    )
    centred = density_of(latents="centred")(p | truth)
    np.testing.assert_allclose(centred - conditional, density_of(cosmology="lcdm")(p), rtol=1e-9)
    np.testing.assert_allclose(density_of(latents="sampled")(p | truth), centred, rtol=1e-12)

    centre = magnitudes(FEW, p) - p["alpha"] * truth["x1_true"] + p["beta"] * truth["c_true"]
    standard = {
        "_x1_standard": (truth["x1_true"] - p["x1_mean"]) / p["x1_std"],
        "_c_standard": (truth["c_true"] - p["c_mean"]) / p["c_std"],
        "_m_b_standard": (truth["m_b_true"] - centre) / p["sigma_int"],
    }
    jacobian = len(FEW) * np.log(p["x1_std"] * p["c_std"] * p["sigma_int"])
    np.testing.assert_allclose(density_of(latents="noncentred")(p | standard), centred + jacobian, rtol=1e-9)
    chooses = {latents for latents in LATENTS if Supernova(latents=latents).chooses_centering}
    assert chooses == {"sampled"}


def test_bound_data_may_be_an_argument_of_a_compiled_function():
    model, traces = Supernova(), []

    @jax.jit
    def density(bound, sites):
        traces.append(1)
        return log_density(model, (bound,), {}, sites | {"_cosmology": np.zeros(1)})[0]

    found = float(density(model.bind(FEW), TRUTH))
    # A coordinate of 0 is the middle of the prior of Om0; the slope there is 1 / 4.
    np.testing.assert_allclose(found, density_of(cosmology="lcdm")({"Om0": 0.5} | TRUTH) + np.log(0.25), rtol=1e-12)
    shifted = dataclasses.replace(FEW, m_b=FEW.m_b + 0.1)
    changed = float(density(model.bind(shifted), TRUTH | {"M0": TRUTH["M0"] + 0.1}))
    moved = stats.norm(-19.3, 1).logpdf([TRUTH["M0"], TRUTH["M0"] + 0.1])
    np.testing.assert_allclose(changed - moved[1], found - moved[0], rtol=1e-10)
    assert len(traces) == 1


def test_without_a_big_bang_the_density_is_zero_and_gradients_elsewhere_are_finite():
    # E^2 of (Om0, Ode0) = (0.1, 1.8) is negative from z = 0.5 to 1.2; the default prior of Ode0 hardly reaches there.
    model = Supernova(cosmology="olcdm", priors={"Ode0": dist.Uniform(0.0, 2.0)})
    near = JLA.subset(np.flatnonzero(JLA.z_cmb < 0.3)[:10])
    far = JLA.subset(np.argsort(JLA.z_cmb)[-10:])

    for data, expected in ((near, True), (far, False)):

        @jax.jit
        def value_and_gradient(parameters, data=data):
            sites = TRUTH | {"_cosmology": coordinates_of(model).coordinates(parameters)}
            return jax.value_and_grad(lambda sites: log_density(model, (data,), {}, sites)[0])(sites)

        for ode, possible in ((1.8, expected), (0.7, True), (1.2, True)):
            value, gradient = value_and_gradient({"Om0": 0.1, "Ode0": ode})
            assert np.isfinite(value) if possible else value == -np.inf
            assert all(np.isfinite(g).all() for g in gradient.values())


# The border: choices, configuration, simulation.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cosmology": "wcmd"}, "Unknown cosmology 'wcmd' .did you mean 'wcdm'.*expected one of 'lcdm'"),
        ({"latents": "noncentered"}, "Unknown latents of Supernova 'noncentered'.*did you mean 'noncentred'?"),
        (
            {"priors": {"Om": 0.3}},
            r"'lcdm'\) has no parameter 'Om' .did you mean 'Om0'..: expected one of H0, ",
        ),
        ({"priors": {"w0": -1.0}}, "has no parameter 'w0'"),
        ({"priors": {"delta_M": 0.0}, "mass_step": False}, "has no parameter 'delta_M'"),
        ({"priors": {"Om0": "Normall(0, 1)"}}, "prior.Om0: expected .*did you mean 'Normal'"),
        ({"priors": {"Om0": dist.Normal(np.zeros(2), 1)}}, r"prior.Om0: .*Normal with batch shape \(2,\)"),
        ({"priors": {"beta": dist.Dirichlet(np.ones(2))}}, r"prior.beta: .*event shape \(2,\)"),
    ],
)
def test_wrong_choices_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Supernova(**arguments)


def sites_of(model, data=FEW):
    """Names of the sites, by tracing alone."""
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
    unknown = np.full(len(DESIGN), np.nan)
    bare = dataclasses.replace(DESIGN, log10_mass=unknown, sigma_log10_mass=unknown)
    first = rf"needs the host mass.*found none for 60 of 60, the first being {DESIGN.name[0]}\."
    with pytest.raises(DataError, match=first):
        Supernova().simulate(jax.random.key(0), bare)
    data, truth = Supernova(mass_step=False).simulate(jax.random.key(0), bare)
    assert len(data) == 60
    assert "delta_M" not in truth


log_prob = jax.jit(lambda distribution, x: distribution.log_prob(x))


def test_configuration_comes_back():
    model = Supernova(
        cosmology="wcdm",
        latents="centred",
        mass_step=False,
        priors={"Om0": dist.TruncatedNormal(0.3, 0.05, low=0.0), "H0": dist.Normal(73, 1), "M0": -19.25},
    )
    config = model.to_config()
    again = Supernova(**config)
    assert again.to_config() == config
    assert (config["cosmology"], config["latents"], config["mass_step"]) == ("wcdm", "centred", False)
    assert (again.description, again.units, again.dims) == (model.description, model.units, model.dims)
    assert again.all_priors["M0"] == -19.25
    exact = {"Om0": stats.truncnorm(-6.0, np.inf, 0.3, 0.05), "H0": stats.norm(73, 1)}
    for name, law in exact.items():
        for one in (model, again):
            x = law.ppf(0.2)
            np.testing.assert_allclose(log_prob(one.all_priors[name], x), law.logpdf(x), rtol=1e-12)


def test_model_cannot_be_changed():
    priors = {"Om0": 0.3}
    model = Supernova(priors=priors)
    priors["Om0"] = 0.4
    assert model.all_priors["Om0"] == 0.3
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.cosmology = "wcdm"


def test_simulation_is_repeatable_and_keeps_what_is_given():
    model = Supernova()
    given = {"sigma_int": 0.0, "alpha": 0.2}
    first, truth = model.simulate(jax.random.key(4), DESIGN, given)
    second, _ = model.simulate(jax.random.key(4), DESIGN, given)
    other, _ = model.simulate(jax.random.key(5), DESIGN, given)
    np.testing.assert_array_equal(first.m_b, second.m_b)
    assert not np.any(first.m_b == other.m_b)
    np.testing.assert_array_equal(first.covariance, DESIGN.covariance)
    assert first.name == DESIGN.name
    assert {name: float(truth[name]) for name in given} == given
    assert set(truth) == {"H0", "Om0", *TRUTH, "x1_true", "c_true", "m_b_true"}
    # Without scatter the true magnitude is the Tripp relation's.
    p = {name: float(truth[name]) for name in ("Om0", *TRUTH)}
    expected = magnitudes(DESIGN, p) - p["alpha"] * truth["x1_true"] + p["beta"] * truth["c_true"]
    np.testing.assert_allclose(truth["m_b_true"], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="has no parameter 'omega_m'"):
        model.simulate(jax.random.key(4), DESIGN, {"omega_m": 0.3})


@pytest.mark.long
def test_simulated_populations_and_errors_are_the_designs(monte_carlo):
    """True values scatter by the population, observed ones about them by fit, lensing and velocity alone."""
    data = dataclasses.replace(DESIGN, variance_coherent=DESIGN.variance_coherent + 100.0)
    p = {"Om0": 0.3} | TRUTH
    mean, population = textbook_population(data, p)
    errors, scatters = [], []
    for number in range(12):
        drawn, truth = Supernova().simulate(jax.random.key(seed(9 + 100 * number)), data, p)
        true = np.stack([truth[f"{name}_true"] for name in OBSERVABLES], axis=-1)
        errors.append(np.stack([getattr(drawn, name) for name in OBSERVABLES], axis=-1) - true)
        scatters.append(true - mean)
    whitened(monte_carlo, errors, reordered(noise(data)), "errors")
    whitened(monte_carlo, scatters, population, "populations")


def whitened(monte_carlo, residuals, covariance, name):
    """Residuals (..., 3) are normal with a covariance: whitened, they have mean 0 and covariance 1."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), np.array(residuals)[..., None])[..., 0].reshape(-1, 3)
    num = len(white)
    for i in range(3):
        monte_carlo.within(white[:, i].mean(), 0.0, num**-0.5, name=f"{name}, mean {i}")
        for j in range(i + 1):
            error = (2.0 / num) ** 0.5 if i == j else num**-0.5
            monte_carlo.within((white[:, i] * white[:, j]).mean(), float(i == j), error, name=f"{name}, {i} and {j}")
    monte_carlo.distribution(white, "norm", name=name)


def test_a_subclass_simulates_with_its_own_distances():
    class Shifted(Supernova):
        def distmod(self, data, cosmology):
            return super().distmod(data, cosmology) + 100.0

    key, given = jax.random.key(0), {"Om0": 0.3} | TRUTH
    shifted, plain = (model.simulate(key, DESIGN, given)[0] for model in (Shifted(), Supernova()))
    np.testing.assert_allclose(shifted.m_b, plain.m_b + 100.0, rtol=1e-12)


def test_it_is_a_value():
    model = Supernova(cosmology="wcdm", priors={"Om0": 0.3})
    same = Supernova(cosmology="wcdm", priors={"Om0": 0.3})
    assert model == same
    assert len({model, same, Supernova(cosmology="wcdm")}) == 2


def test_standardised_magnitudes_are_what_the_model_says_of_them():
    p = {"Om0": 0.3} | TRUTH
    truth = draw_latents(FEW, p | {"sigma_int": 0.0})
    true = FEW.replace_observations(**{name: truth[f"{name}_true"] for name in OBSERVABLES})
    magnitude, variance = Supernova().standardise(true, p)
    np.testing.assert_allclose(magnitude, moduli(FEW, p) + p["M0"], rtol=1e-12)
    direction = np.array([1.0, p["alpha"], -p["beta"]])
    expected = [direction @ covariance @ direction + p["sigma_int"] ** 2 for covariance in noise(FEW)]
    np.testing.assert_allclose(variance, expected, rtol=1e-12)
    alike = {name: value for name, value in p.items() if name != "delta_M"}
    massive = FEW.log10_mass > 10
    assert massive.any()
    assert not massive.all()
    without = Supernova(mass_step=False).standardise(true, alike).m_b
    np.testing.assert_allclose(without - magnitude, p["delta_M"] * massive, atol=1e-12)


def test_standardised_magnitudes_with_options():
    """Each option's term by itself; with dust the slope is that of the regression of magnitude on colour."""
    p = {"Om0": 0.3} | TRUTH
    own = p | {"sigma_int": np.array([0.1, 0.2, 0.3, 0.4])}
    surveys = list(FEW.survey_counts)
    scatter = np.array([own["sigma_int"][surveys.index(survey)] for survey in FEW.survey])
    plain = Supernova().standardise(FEW, p)
    np.testing.assert_allclose(
        Supernova(survey_scatter=True).standardise(FEW, own).variance - plain.variance,
        scatter**2 - p["sigma_int"] ** 2,
        rtol=1e-9,
    )
    massive = 1.0 * (FEW.log10_mass > 10)
    sloped = Supernova(host_beta=True).standardise(FEW, p | {"delta_beta": -0.6})
    np.testing.assert_allclose(sloped.m_b - plain.m_b, 0.6 * massive * FEW.c, rtol=1e-9)
    broken = Supernova(colour="broken").standardise(FEW, p | {"beta_red": 3.9})
    np.testing.assert_allclose(broken.m_b - plain.m_b, -0.8 * np.maximum(FEW.c, 0.0), atol=1e-12)
    moving = Supernova(velocity="redshift", sigma_v=300.0)
    sne = dataclasses.replace(FEW, sigma_z=np.full(len(FEW), 0.01))
    error = np.hypot(0.01, 300.0 / 299792.458 * (1 + FEW.z_cmb)) * 5 / np.log(10) / FEW.z_cmb
    np.testing.assert_allclose(
        moving.standardise(sne, p).variance - plain.variance, error**2 - FEW.variance_velocity, rtol=1e-9
    )
    # Variance of the intrinsic colours and of the reddening; the slope is the covariance over the variance of c.
    variances, slopes = np.array([p["c_std"] ** 2, 0.07**2]), np.array([p["beta"], 4.4])
    slope = variances @ slopes / variances.sum()
    zero = slopes @ [p["c_mean"], 0.07] - slope * (p["c_mean"] + 0.07)
    dusty = Supernova(colour="dust").standardise(FEW, p | {"beta_dust": 4.4, "c_dust": 0.07})
    np.testing.assert_allclose(dusty.m_b - plain.m_b, (p["beta"] - slope) * FEW.c - zero, rtol=1e-9)


def test_the_container_keeps_its_protocol():
    assert isinstance(FEW, Container)


def test_a_subclass_is_stored_under_its_own_name():
    def subclass(module):
        return type("Supernova", (Supernova,), {"__module__": module})

    assert "class" not in Supernova().to_config()
    assert subclass("mine")().to_config()["class"] == "mine.Supernova"
    assert subclass("hbm_jaxy.models")().to_config()["class"] == "hbm_jaxy.models.Supernova"
