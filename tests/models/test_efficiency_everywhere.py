"""Efficiencies and functions as selections of bursts and supernovae: density and gradient against integrals, draws."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from scipy import integrate, stats

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Bursts, DataError, Supernovae
from hbm_jax.models import Afterglow, DetectionFunction, Efficiency, Golenetskii, Supernova
from hbm_jax.models.xray.detection import SourceDetection
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.validation import OptionError

LINE = {"gamma": 1.5, "log10_N": 52.1, "log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.35, "intrinsic_scatter": 0.4}
FLUX = Efficiency("log10_flux", (-7.2, -6.5, -5.9, -5.0), (0.05, 0.1, 0.8, 0.95))
PEAK = Efficiency("log10_E_peak", (1.0, 2.2, 3.4), (0.2, 1.0, 0.4))
TRIPP = {
    "M0": -19.3, "alpha": 0.14, "beta": 3.0, "sigma_int": 0.12, "x1_mean": 0.1, "x1_std": 1.0,
    "c_mean": 0.02, "c_std": 0.1,
}  # fmt: skip
FIXED = {"mass_step": False, "priors": {"Om0": 0.3}}
MAGNITUDE = Efficiency("m_b", (21.0, 23.0, 23.6, 24.5), (1.0, 0.9, 0.3, 0.05))


def triggered(log10_E_peak, log10_flux):
    return jax.scipy.special.ndtr((log10_flux + 6.2 - 0.4 * (log10_E_peak - 2.3)) / 0.5)


def followed(c, m_b):
    return jax.scipy.special.ndtr((23.5 - m_b) / 0.3) * jax.nn.sigmoid((0.3 - c) / 0.15)


def bursts(num=1):
    columns = {
        "z": [1.3, 0.5, 2.0], "log10_E_peak": [2.2, 2.5, 2.1], "log10_flux": [-5.6, -5.1, -6.0],
        "sigma_log10_E_peak": [0.1, 0.05, 0.2], "sigma_log10_flux": [0.1, 0.05, 0.15],
    }  # fmt: skip
    columns = {name: np.tile(values, num) for name, values in columns.items()}
    return Bursts.from_columns(columns | {"burst": [f"b{i}" for i in range(3 * num)]})


def supernovae(num=1):
    columns = {
        "z_cmb": [0.4, 0.7, 1.0], "z_hel": [0.4, 0.7, 1.0], "m_b": [22.1, 23.4, 23.9],
        "x1": [0.3, -0.5, 0.9], "c": [0.01, -0.05, 0.1],
        "sigma_m_b": [0.05, 0.1, 0.15], "sigma_x1": [0.3, 0.5, 0.7], "sigma_c": [0.03, 0.04, 0.06],
    }  # fmt: skip
    columns = {name: np.tile(values, num) for name, values in columns.items()}
    return Supernovae.from_columns(columns | {"name": [f"s{i}" for i in range(3 * num)]})


def moments_of_bursts(p, data):
    """Mean (B, 2) and covariance (B, 2, 2) of the measured (log10_E_peak, log10_flux)."""
    with jax.enable_x64(True):
        area = np.asarray(log10_sphere_area(np.asarray(data.z), Cosmology.flat(H0=70.0, Om0=0.3)))
    x, variance = p["log10_E_peak_mean"] - 2.0, p["log10_E_peak_std"] ** 2
    mean = np.stack([x + 2.0 - np.log10(1.0 + data.z), p["log10_N"] + p["gamma"] * x - area], axis=-1)
    slope, scatter = p["gamma"], p["intrinsic_scatter"] ** 2
    covariance = np.array([[variance, slope * variance], [slope * variance, slope**2 * variance + scatter]])
    errors = np.asarray(data.errors)[:, 0]
    return mean, covariance + np.array([[[a, b], [b, c]] for a, b, c in errors])


def moments_of_supernovae(p, data):
    """Mean (N, 2) and covariance (N, 2, 2) of the observed (c, m_b)."""
    model = Supernova(mass_step=False)
    with jax.enable_x64(True):
        modulus = np.asarray(model.distmod(data, Cosmology.flat(H0=70.0, Om0=0.3)))
    m_b = p["M0"] + modulus - p["alpha"] * p["x1_mean"] + p["beta"] * p["c_mean"]
    mean = np.stack([np.full(len(data), p["c_mean"]), m_b], axis=-1)
    c, x1, beta = p["c_std"] ** 2, p["x1_std"] ** 2, p["beta"]
    covariance = np.array([[c, beta * c], [beta * c, beta**2 * c + p["alpha"] ** 2 * x1 + p["sigma_int"] ** 2]])
    return mean, covariance + np.asarray(model.noise(data))[:, 1:, 1:]


def detected_fraction(choice, mean, covariance, axis):
    """Detected fraction of a normal vector, by adaptive quadrature of a table, or a sum of a function over a grid."""
    if isinstance(choice, Efficiency):
        loc, std = mean[axis], np.sqrt(covariance[axis, axis])

        def density(v):
            return np.interp(v, choice.at, choice.probability) * stats.norm.pdf(v, loc, std)

        edges = np.unique(
            np.clip([loc - 12.0 * std, *choice.at, loc, loc + 12.0 * std], loc - 12 * std, loc + 12 * std)
        )
        return sum(integrate.quad(density, a, b, epsabs=1e-14)[0] for a, b in pairwise(edges))
    nodes, weights = np.polynomial.legendre.leggauss(160)
    nodes, weights = 9.0 * nodes, 9.0 * weights * stats.norm.pdf(9.0 * nodes)
    factor = np.linalg.cholesky(covariance)
    u, v = nodes[:, None], nodes[None, :]
    x, y = np.broadcast_arrays(mean[0] + factor[0, 0] * u, mean[1] + factor[1, 0] * u + factor[1, 1] * v)
    with jax.enable_x64(True):
        return weights @ np.asarray(choice.function(x, y)) @ weights


CASES = {
    "flux of bursts": (Golenetskii, {"pooling": "complete"}, FLUX, bursts, moments_of_bursts, LINE, "log10_N", 1),
    "peak of bursts": (
        Golenetskii, {"pooling": "complete"}, PEAK, bursts, moments_of_bursts, LINE, "log10_E_peak_mean", 0,
    ),
    "trigger": (
        Golenetskii, {"pooling": "complete"}, DetectionFunction(triggered, "a trigger"), bursts, moments_of_bursts,
        LINE, "gamma", None,
    ),
    "magnitude": (
        Supernova, FIXED, MAGNITUDE, supernovae, moments_of_supernovae, TRIPP, "M0", 1,
    ),
    "follow-up": (
        Supernova, FIXED, DetectionFunction(followed, "a follow-up"), supernovae,
        moments_of_supernovae, TRIPP, "c_mean", None,
    ),
}  # fmt: skip


def measured_of(data):
    if isinstance(data, Bursts):
        return np.asarray(data.observed)[:, 0]
    return np.stack([data.c, data.m_b], axis=-1)


LONG = ("peak of bursts", "follow-up")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in CASES])
def test_density_and_gradient_are_those_of_a_direct_integral(name):
    """To 1e-8, and the gradient to 1e-6."""
    kind, options, choice, draw_data, moments, p, varied, axis = CASES[name]
    data, measured = draw_data(), measured_of(draw_data())

    selected, whole = kind(selection=choice, **options), kind(**options)
    bound, unselected = selected.bind(data), whole.bind(data)

    @jax.jit
    @jax.value_and_grad
    def change(p):
        return log_density(selected, (bound,), {}, p)[0] - log_density(whole, (unselected,), {}, p)[0]

    def expected(p):
        if isinstance(choice, Efficiency):
            efficiency = choice.probability_at(measured[:, axis])
        else:
            efficiency = np.asarray(choice.function(*map(jnp.asarray, measured.T)))
        fractions = [detected_fraction(choice, m, c, axis) for m, c in zip(*moments(p, data), strict=True)]
        return np.log(efficiency).sum() - np.log(fractions).sum()

    with jax.enable_x64(True):
        found, gradient = change({key: np.float64(value) for key, value in p.items()})
        assert float(found) == pytest.approx(expected(p), abs=1e-8)
        step = 1e-4 * (1.0 if varied != "c_mean" else 0.1)
        shifted = [expected(p | {varied: p[varied] + k * step}) for k in (-2, -1, 1, 2)]
        numeric = (shifted[0] - 8.0 * shifted[1] + 8.0 * shifted[2] - shifted[3]) / (12.0 * step)
        assert float(gradient[varied]) == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["trigger", *(pytest.param(name, marks=pytest.mark.long) for name in ("flux of bursts", "magnitude", "follow-up"))],
)
def test_simulated_objects_pass_the_selection(name, monte_carlo):
    """Fluxes or magnitudes at one redshift, against the population times the efficiency."""
    kind, options, choice, draw_data, moments, p, _, _ = CASES[name]
    design = draw_data(500)
    drawn, _ = kind(selection=choice, **options).simulate(jax.random.key(seed(5)), design, p)
    mean, covariance = (part[1] for part in moments(p, design))
    rng = np.random.default_rng(seed(6))
    everything = rng.multivariate_normal(mean, covariance, size=100_000)
    if isinstance(choice, Efficiency):
        probability = choice.probability_at(everything[:, 1])
    else:
        probability = np.asarray(choice.function(*map(jnp.asarray, everything.T)))
    expected = everything[rng.random(len(everything)) < probability]
    for column in (0, 1):
        monte_carlo.p_value(
            stats.ks_2samp(measured_of(drawn)[1::3, column], expected[:, column]).pvalue, name=f"{column}"
        )


def test_fluxes_of_afterglows_are_those_of_detected_ones(monte_carlo):
    """Density, and its derivative in the mean, to 1e-8 and 1e-6 of direct integrals, and draws."""
    table = Efficiency("log10_flux", (-12.5, -12.0, -11.4), (0.01, 0.4, 1.0))
    std, mean = 0.5, -12.1
    (selection,) = Afterglow(selection=str(table)).selections
    v = np.array([-1.0, 0.3, 1.7])  # between the values of the table

    def density(mean):
        p = {"log10_flux_mean": mean, "log10_flux_std": std}
        population = dist.Normal(0.0, 1.0).expand((3,))
        return SourceDetection(selection, p).standardised("log10_flux", population, None)

    def expected(mean):
        fraction = detected_fraction(table, np.array([mean]), np.array([[std**2]]), 0)
        return stats.norm.logpdf(v) + np.log(table.probability_at(mean + std * v)) - np.log(fraction)

    @jax.jit
    def evaluate(mean, keys):
        value, tangent = jax.jvp(lambda m: density(m).log_prob(v), (mean,), (1.0,))
        return value, tangent, jax.vmap(density(mean).sample)(keys)

    keys = jax.random.split(jax.random.key(seed(7)), 1000)
    with jax.enable_x64(True):
        value, tangent, drawn = evaluate(mean, keys)
    np.testing.assert_allclose(value, expected(mean), rtol=0, atol=1e-8)
    step = 1e-4
    k = np.array([-2, -1, 1, 2])
    numeric = np.array([1, -8, 8, -1]) @ [expected(mean + step * i).sum() for i in k] / (12.0 * step)
    assert float(tangent.sum()) == pytest.approx(numeric, rel=1e-6)
    rng = np.random.default_rng(seed(8))
    everything = rng.normal(mean, std, 50_000)
    kept = everything[rng.random(50_000) < table.probability_at(everything)]
    monte_carlo.p_value(stats.ks_2samp(mean + std * np.ravel(drawn), kept).pvalue)


def test_limits_of_supernovae_are_texts_as_everywhere():
    """Densities, written out; one of every survey; and what is refused."""
    data, options = supernovae(), FIXED
    smooth = Supernova(selection="m_b < 24 +- 0.2", **options)
    of_surveys = Supernova(selection="m_b < Normal(24, 0.5) +- 0.2 by group", **options)
    models = [
        (Supernova(**options), TRIPP),
        (Supernova(selection="common", mass_step=False, priors={"Om0": 0.3, "m_lim": 24.0, "m_lim_width": 0.2}), TRIPP),
        (smooth, TRIPP),
        (Supernova(selection="c < 0.15", **options), TRIPP),
        (of_surveys, TRIPP | {"m_b_lim": np.array([24.0])}),
    ]
    bound = [model.bind(data) for model, _ in models]

    @jax.jit
    def densities():
        return [log_density(model, (arrays,), {}, p)[0] for (model, p), arrays in zip(models, bound, strict=True)]

    with jax.enable_x64(True):
        without, common, limited, cut, by_survey = map(float, densities())
    assert limited == pytest.approx(common, rel=1e-12)
    assert Supernova(**smooth.to_config()).to_config() == smooth.to_config()
    covariance = moments_of_supernovae(TRIPP, data)[1]
    fraction = stats.norm.logcdf((0.15 - TRIPP["c_mean"]) / np.sqrt(covariance[:, 0, 0]))
    assert cut - without == pytest.approx(-fraction.sum(), rel=1e-10)
    assert of_surveys.by_survey == ("m_b_lim",)
    assert by_survey == pytest.approx(limited + stats.norm.logpdf(0.0, 0.0, 0.5), rel=1e-12)
    with pytest.raises(DataError, match="expected none beyond the limit; found 2, the first s1"):
        Supernova(selection="m_b < 23", **options).bind(data)
    with pytest.raises(OptionError, match=r"limit of one of x1, c, m_b; found 'm'"):
        Supernova(selection="m < 23")
    with pytest.raises(OptionError, match="'m_limit'"):
        Supernova(selection="m_b < m_limit")
    with pytest.raises(OptionError, match="beside observations='joint' expects a width"):
        Supernova(selection="m_b < 24", observations="joint")


def soft_or_bright(index, flux):
    return jax.scipy.special.ndtr((flux + 12.1 + 0.6 * (index - 1.9)) / 0.4)


@pytest.mark.long
def test_a_function_of_index_and_flux_of_afterglows(monte_carlo):
    """Density to 1e-8 and derivatives to 1e-6 of a sum over a grid, and draws of both."""
    p = {"photon_index_mean": 1.9, "photon_index_std": 0.4, "log10_flux_mean": -12.3, "log10_flux_std": 0.5}
    choice = DetectionFunction(soft_or_bright, "a trigger")
    (selection,) = Afterglow(selection=choice).selections
    u, v = np.array([-1.0, 0.4, 1.7]), np.array([0.3, -0.5, 1.1])
    population = dist.Normal().expand((3,))

    def chain(p):
        detection = SourceDetection(selection, p)
        index, flux = (detection.standardised(name, population, None) for name in ("photon_index", "log10_flux"))
        return index, lambda u: flux({"photon_index": p["photon_index_mean"] + p["photon_index_std"] * u})

    def density(p):
        index, flux = chain(p)
        return index.log_prob(u) + flux(u).log_prob(v)

    def expected(p):
        mean = np.array([p["photon_index_mean"], p["log10_flux_mean"]])
        covariance = np.diag([p["photon_index_std"] ** 2, p["log10_flux_std"] ** 2])
        index, flux = mean[0] + p["photon_index_std"] * u, mean[1] + p["log10_flux_std"] * v
        log_fraction = np.log(detected_fraction(choice, mean, covariance, None))
        efficiency = stats.norm.logcdf((flux + 12.1 + 0.6 * (index - 1.9)) / 0.4)
        return stats.norm.logpdf(u) + stats.norm.logpdf(v) + efficiency - log_fraction

    def draw(key):
        keys = jax.random.split(key)
        index, flux = chain(p)
        drawn = index.sample(keys[0])
        return jnp.stack([drawn, flux(drawn).sample(keys[1])])

    @jax.jit
    def evaluate(values, keys):
        return density(values), jax.jacfwd(density)(values), jax.vmap(draw)(keys)

    found, gradient, drawn = evaluate(p, jax.random.split(jax.random.key(seed(9)), 1000))
    np.testing.assert_allclose(found, expected(p), rtol=0, atol=1e-8)
    step = 1e-4
    for name in p:
        ends = [expected(p | {name: p[name] + k * step}) for k in (-2, -1, 1, 2)]
        numeric = (ends[0] - 8.0 * ends[1] + 8.0 * ends[2] - ends[3]) / (12.0 * step)
        np.testing.assert_allclose(gradient[name], numeric, rtol=1e-6, atol=1e-6, err_msg=name)
    rng = np.random.default_rng(seed(10))
    everything = rng.normal(size=(2, 50_000))
    margin = (
        p["log10_flux_mean"] + p["log10_flux_std"] * everything[1] + 12.1 + 0.6 * p["photon_index_std"] * everything[0]
    )
    kept = everything[:, rng.normal(size=50_000) < margin / 0.4]
    for ours, theirs, name in zip(np.moveaxis(drawn, 1, 0), kept, ("index", "flux"), strict=True):
        monte_carlo.p_value(stats.ks_2samp(np.ravel(ours), theirs).pvalue, name=name)
    with pytest.raises(OptionError, match="expects photon_index_std above 0"):
        Afterglow(selection=choice, priors={"photon_index_std": 0.0})


@pytest.mark.long
def test_colours_of_simulated_supernovae_are_below_the_cut(monte_carlo):
    cut = Supernova(selection="c < 0.15", **FIXED)
    drawn, _ = cut.simulate(jax.random.key(seed(3)), supernovae(300), TRIPP)
    loc, scale = TRIPP["c_mean"], np.sqrt(moments_of_supernovae(TRIPP, supernovae())[1][1, 0, 0])
    expected = stats.truncnorm(-np.inf, (0.15 - loc) / scale, loc, scale)
    monte_carlo.p_value(stats.kstest(drawn.c[1::3], expected.cdf).pvalue)


def test_tables_are_read_and_stored(tmp_path):
    (tmp_path / "efficiency.csv").write_text("m_b,share\n21,1\n23,0.9\n23.6,0.3\n24.5,0.05\n")
    for choice in (MAGNITUDE, str(MAGNITUDE), f"m_b from {tmp_path / 'efficiency.csv'}"):
        model = Supernova(selection=choice)
        assert model.selection == str(MAGNITUDE)
        assert Supernova(**model.to_config()).to_config() == model.to_config()
    model = Golenetskii(selection=FLUX)
    assert model.selection == str(FLUX)
    assert Golenetskii(**model.to_config()).to_config() == model.to_config()
    named = Supernova(selection=DetectionFunction(followed, "a follow-up"))
    assert named.to_config()["class"] == "Supernova with a follow-up"
    assert "selected by a trigger" in Golenetskii(selection=DetectionFunction(triggered, "a trigger")).description


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match="expected an efficiency in a measured quantity of intervals"):
        Golenetskii(selection="log10_peak_flux efficiency -7:0 -6:1")
    with pytest.raises(OptionError, match="expected an efficiency in one of x1, c, m_b; found 'm'"):
        Supernova(selection="m efficiency 22:1 24:0")
    with pytest.raises(OptionError, match="expects colour='normal'; found 'dust'"):
        Supernova(selection=MAGNITUDE, colour="dust")
    with pytest.raises(OptionError, match="expects observations='separate'"):
        Supernova(selection=MAGNITUDE, observations="joint")
    with pytest.raises(OptionError, match="expects probabilities above 0"):
        Afterglow(selection="log10_flux efficiency -12:0 -11:1")
    with pytest.raises(OptionError, match="expected an efficiency in log10_flux"):
        Afterglow(selection="counts efficiency 20:0.1 100:1")
    with pytest.raises(DataError, match="above 0 and up to 1 at every interval; found 0 in b2"):
        Golenetskii(selection="log10_flux efficiency -5.8:0 -5:1", pooling="complete").bind(bursts())
    with pytest.raises(DataError, match="above 0 and up to 1 at every supernova; found 0 for s2"):
        Supernova(selection="m_b efficiency 22:1 23.8:0", mass_step=False).bind(supernovae())
