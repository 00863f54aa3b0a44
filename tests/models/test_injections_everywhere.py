"""Injections as the selection of bursts, supernovae and afterglows: density against sums, draws, effective number."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats
from stored_fits import load
from test_efficiency_everywhere import (
    FIXED,
    FLUX,
    LINE,
    MAGNITUDE,
    TRIPP,
    bursts,
    moments_of_bursts,
    supernovae,
)
from test_spectral_population import design

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology
from hbm_jax.distributions.selection import FoundInjections
from hbm_jax.models import Afterglow, Golenetskii, Injections, Relation, SpectralPopulation, Supernova
from hbm_jax.spectra.model.energetics import log10_sphere_area
from hbm_jax.validation import DataError, OptionError

SOURCES = {
    "photon_index_mean": 2.0, "photon_index_std": 0.2, "log10_flux_mean": -11.7, "log10_flux_std": 0.4,
    "log10_nh_mean": 0.3, "log10_nh_std": 0.9,
}  # fmt: skip
LIMIT, WIDTH = -11.6, 0.15
# Mean and standard deviation of the normal distributions from which the true values are drawn.
DRAWN = {
    Golenetskii: {"log10_E_peak": (2.2, 0.5), "log10_flux": (-5.9, 1.2)},
    Supernova: {"x1": (0.0, 1.3), "c": (0.02, 0.15), "m_b": (23.3, 1.3)},
    Afterglow: {"photon_index": (2.0, 0.4), "log10_flux": (-11.7, 0.7), "log10_nh": (0.3, 1.3)},
}

KINDS = [Golenetskii, Supernova, pytest.param(Afterglow, marks=pytest.mark.long)]


def injections(kind, num, start=1):
    """A table of injections, found with a probability that depends on their true flux or magnitude."""
    rng = np.random.default_rng(start)
    drawn = {name: rng.normal(*moments, num) for name, moments in DRAWN[kind].items()}
    density = np.prod([stats.norm.pdf(drawn[name], *moments) for name, moments in DRAWN[kind].items()], axis=0)
    return drawn | {"density": density, "found": (rng.random(num) < efficiency(kind, drawn)).astype(int)}


def efficiency(kind, values):
    if kind is Golenetskii:
        return FLUX.probability_at(values["log10_flux"])
    if kind is Supernova:
        return MAGNITUDE.probability_at(values["m_b"])
    return special.ndtr((values["log10_flux"] - LIMIT) / WIDTH)


def true_moments(kind, data):
    """Means (N, n) and covariances (N, n, n) of the true values of every object, written out."""
    if kind is Golenetskii:
        mean, covariance = moments_of_bursts(LINE, data)
        errors = np.asarray(data.errors)[:, 0]
        return mean, covariance - np.array([[[a, b], [b, c]] for a, b, c in errors])
    p = TRIPP if kind is Supernova else SOURCES
    if kind is Afterglow:
        names = list(DRAWN[Afterglow])
        mean = np.array([p[f"{name}_mean"] for name in names])
        covariance = np.diag([p[f"{name}_std"] ** 2 for name in names])
        return np.tile(mean, (len(data), 1)), np.tile(covariance, (len(data), 1, 1))
    with jax.enable_x64(True):
        modulus = np.asarray(Supernova(mass_step=False).distmod(data, Cosmology.flat(H0=70.0, Om0=0.3)))
    m_b = p["M0"] + modulus - p["alpha"] * p["x1_mean"] + p["beta"] * p["c_mean"]
    x1, c, alpha, beta = p["x1_std"] ** 2, p["c_std"] ** 2, p["alpha"], p["beta"]
    m = alpha**2 * x1 + beta**2 * c + p["sigma_int"] ** 2
    covariance = np.array([[x1, 0.0, -alpha * x1], [0.0, c, beta * c], [-alpha * x1, beta * c, m]])
    mean = np.stack([np.full(len(data), p["x1_mean"]), np.full(len(data), p["c_mean"]), m_b], axis=-1)
    return mean, np.tile(covariance, (len(data), 1, 1))


def case(kind):
    """The model's options, data, parameters, and values of its latents."""
    if kind is Golenetskii:
        return {"pooling": "complete"}, bursts(3), dict(LINE)
    if kind is Supernova:
        return FIXED, supernovae(3), dict(TRIPP)
    fit = load("afterglow")
    return {}, fit.data, SOURCES | {f"_{name}": np.zeros(len(fit.data)) for name in DRAWN[Afterglow]}


def weights_of(kind, table, data):
    """Weights (N, I) of all injections in the population of each object; 0 for those that were not found."""
    values = np.stack([table[name] for name in DRAWN[kind]], axis=-1)
    density = [stats.multivariate_normal.pdf(values, m, c) for m, c in zip(*true_moments(kind, data), strict=True)]
    return np.array(density) * table["found"] / table["density"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_density_is_divided_by_the_share_of_injections(kind):
    """Of every object, with derivatives; and the effective number is that of the variance of the log likelihood.

    Padding of bursts and supernovae has no weight in any of them.
    """
    table, (options, data, p) = injections(kind, 3000), case(kind)
    weights = weights_of(kind, table, data)
    fractions = weights.mean(axis=1)
    selected, whole = kind(selection=Injections(table), **options), kind(**options)
    bound = selected.padded(selected.bound(data))[0]
    if kind is not Afterglow:
        assert np.shape(jax.tree.leaves(bound)[0])[0] == 10 > len(data)
    unselected = whole.padded(whole.bound(data))[0]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def change(p):
        density, trace = log_density(selected, (bound,), {}, p)
        recorded = {name: trace[name]["value"] for name in trace if "injections" in name}
        return density - log_density(whole, (unselected,), {}, p)[0], recorded

    with jax.enable_x64(True):
        (found, recorded), gradient = change({name: np.asarray(value, float) for name, value in p.items()})
    assert float(found) == pytest.approx(-np.log(fractions).sum(), abs=1e-9)
    # Relative change of the sum of the logarithms by each injection.
    variance = np.var((weights / fractions[:, None]).sum(axis=0)) / len(weights.T)
    assert float(recorded["effective_injections"]) == pytest.approx(len(data) ** 2 / variance, rel=1e-8)
    assert float(recorded["effective_injections"]) > 4.0 * len(data)
    if kind is not Afterglow:
        single = (fractions**2 / (weights.var(axis=1) / len(weights.T))).min()
        assert float(recorded["injections_per_object"]) == pytest.approx(single, rel=1e-8)
    name = {Golenetskii: "log10_N", Supernova: "M0", Afterglow: "log10_flux_mean"}[kind]
    step, shifted = 1e-5, []
    with pytest.MonkeyPatch.context() as patched:
        for sign in (-1.0, 1.0):
            for parameters in (LINE, TRIPP, SOURCES):
                if name in parameters:
                    patched.setitem(parameters, name, p[name] + sign * step)
            shifted.append(-np.log(weights_of(kind, table, data).mean(axis=1)).sum())
    numeric = (shifted[1] - shifted[0]) / (2.0 * step)
    assert float(gradient[name]) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", [Golenetskii, *(pytest.param(kind, marks=pytest.mark.long) for kind in (Supernova, Afterglow))]
)
def test_simulated_objects_are_found_ones(kind, monte_carlo):
    """True values plus errors, against rejection by the efficiency."""
    options, data, p = case(kind)
    data = data.subset(np.tile(np.arange(3), 100))
    model = kind(selection=Injections(injections(kind, 20_000, seed(4))), **options)
    drawn, truth = model.simulate(
        jax.random.key(seed(5)), data, {name: value for name, value in p.items() if name[0] != "_"}
    )
    mean, covariance = (part[1] for part in true_moments(kind, data))
    rng = np.random.default_rng(seed(6))
    everything = rng.multivariate_normal(mean, covariance, 60_000)
    columns = dict(zip(DRAWN[kind], everything.T, strict=True))
    expected = everything[rng.random(len(everything)) < efficiency(kind, columns)]
    if kind is Afterglow:
        values = np.stack([truth[name] for name in DRAWN[kind]], axis=-1)
    elif kind is Golenetskii:
        values = np.asarray(drawn.observed)[1::3, 0]
        xx, xy, yy = np.asarray(data.errors)[1, 0]
        expected = expected + rng.multivariate_normal(np.zeros(2), [[xx, xy], [xy, yy]], len(expected))
    else:
        values = np.stack([drawn.x1, drawn.c, drawn.m_b], axis=-1)[1::3]
        noise = np.asarray(model.noise(data))[1]
        expected = expected + rng.multivariate_normal(np.zeros(3), noise, len(expected))
    for name, a, b in zip(DRAWN[kind], values.T, expected.T, strict=True):
        monte_carlo.p_value(stats.ks_2samp(a, b).pvalue, name=name)


@pytest.mark.long
def test_injections_of_populations_of_any_spectrum():
    """Density of the parameters of two sources, one with two spectra, and simulated sources."""
    rng, num = np.random.default_rng(1), 2000
    drawn = {"photon_index": rng.normal(2.0, 0.5, num), "log10_flux": rng.normal(-11.7, 0.8, num)}
    found = rng.random(num) < special.ndtr((drawn["log10_flux"] + 11.6 + 0.2 * (drawn["photon_index"] - 2.0)) / WIDTH)
    density = stats.norm.pdf(drawn["photon_index"], 2.0, 0.5) * stats.norm.pdf(drawn["log10_flux"], -11.7, 0.8)
    table = drawn | {"density": density, "found": found.astype(int)}
    data = design(3, source=["a", "a", "b"], z=[0.1, 0.1, 0.4])
    model = SpectralPopulation(spectrum="powerlaw", selection=Injections(table))
    bound = model.prepare(data)
    p = {name: value for name, value in SOURCES.items() if "nh" not in name}
    hidden = {"_photon_index": np.array([0.3, -0.2]), "_log10_flux": np.array([0.5, 0.1])}

    @jax.jit
    @jax.value_and_grad
    def change(p):
        parts = []
        for each in (model, dataclasses.replace(model, selection="none")):
            parts.append(log_density(handlers.block(each, hide=["counts"]), (bound,), {}, p | hidden)[0])
        return parts[0] - parts[1]

    def expected(p):
        weights = found / density
        for name, values in drawn.items():
            weights = weights * stats.norm.pdf(values, p[f"{name}_mean"], p[f"{name}_std"])
        return -2.0 * np.log(weights.mean())

    value, gradient = change(p)
    assert float(value) == pytest.approx(expected(p), abs=1e-9)
    for name in p:
        ends = [expected(p | {name: p[name] + step}) for step in (1e-5, -1e-5)]
        assert float(gradient[name]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-7), name
    _, truth = model.simulate(jax.random.key(3), data, p)
    for source in range(2):  # values of one found injection
        row = np.abs(drawn["log10_flux"] - truth["log10_flux"][source]).argmin()
        assert found[row]
        for name in drawn:
            assert truth[name][source] == pytest.approx(drawn[name][row], rel=1e-12)
    assert "selected by injections" in model.description


def test_objects_away_from_all_injections_have_the_likelihood_without_selection():
    """One object, beside fifty others that have enough injections."""
    rng = np.random.default_rng(1)
    values = rng.normal(0.0, 1.0, (2000, 1))
    with jax.enable_x64(True):
        log_weights = np.stack([np.zeros(2000), stats.norm.logpdf(values[:, 0], 9.0, 0.3)])
        found = FoundInjections(values, log_weights, 4000.0, np.array([50.0, 1.0]))
        np.testing.assert_allclose(found.log_normalisation, [np.log(0.5), 0.0], atol=1e-6)
        assert float(found.effective_number) > 4.0 * 51.0
        one = FoundInjections(values, log_weights[0], 4000.0, 2.0)
        same = FoundInjections(values, log_weights[[0, 0]], 4000.0, np.ones(2))
        assert float(one.effective_number) == pytest.approx(4000.0, rel=1e-10)
        assert float(same.effective_number) == pytest.approx(4000.0, rel=1e-10)
        np.testing.assert_allclose(same.log_normalisation, one.log_normalisation, rtol=1e-12)
        # Padding has no weight.
        padded = FoundInjections(values, log_weights, 4000.0, np.array([2.0, 0.0]))
        assert float(padded.effective_number) == pytest.approx(4000.0, rel=1e-10)
        assert float(padded.smallest_number) == pytest.approx(4000.0, rel=1e-10)


@pytest.mark.long
def test_intervals_of_several_bursts_share_injections():
    """With a line for each burst, of whose intervals some are padding."""
    columns = {
        "burst": ["a", "a", "b"], "z": [1.3, 1.3, 0.5], "log10_E_peak": [2.2, 2.4, 2.5],
        "log10_flux": [-5.6, -5.4, -5.1], "sigma_log10_E_peak": [0.1] * 3, "sigma_log10_flux": [0.1] * 3,
    }  # fmt: skip
    data = hbm.data.Bursts.from_columns(columns)
    table = injections(Golenetskii, 5000)
    model = Golenetskii(selection=Injections(table))
    p = {
        "gamma_mean": 1.5, "gamma_std": 0.2, "log10_N_mean": 52.1, "log10_N_std": 0.3, "intrinsic_scatter": 0.4,
        "log10_E_peak_mean": 2.6, "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.2,
    }  # fmt: skip
    latents = {"_gamma": np.zeros(2), "_log10_E_peak_burst": np.zeros(2), "_log10_luminosity": np.zeros(2)}
    with jax.enable_x64(True):
        _, trace = log_density(
            model, (model.bound(data),), {}, {k: np.asarray(v, float) for k, v in (p | latents).items()}
        )
        relation, values = trace["observed"]["fn"], {name: site["value"] for name, site in trace.items()}
        relation = getattr(relation, "base_dist", relation)
        log_fraction = np.asarray(relation.found.log_normalisation)
    shares = []
    for i, z in enumerate([1.3, 0.5]):
        x = float(values["log10_E_peak_burst"][i])
        area = np.asarray(moments_of_bursts(LINE, data)[0])  # mean log10_flux of LINE, without those of the lines
        area = LINE["log10_N"] + LINE["gamma"] * (LINE["log10_E_peak_mean"] - 2.0) - area[i, 1]
        gamma = float(values["gamma"][i])
        mean = [x - np.log10(1.0 + z), float(values["log10_N"][i]) + gamma * (x - 2.0) - area]
        v = p["log10_E_peak_scatter"] ** 2
        covariance = [[v, gamma * v], [gamma * v, gamma**2 * v + p["intrinsic_scatter"] ** 2]]
        points = np.stack([table["log10_E_peak"], table["log10_flux"]], axis=-1)
        shares.append(
            np.mean(stats.multivariate_normal.pdf(points, mean, covariance) * table["found"] / table["density"])
        )
    expected = np.log([[shares[0], shares[0]], [shares[1], shares[1]]])
    np.testing.assert_allclose(np.broadcast_to(log_fraction, (2, 2)), expected, rtol=1e-9)


POPULATION = {
    "gamma_mean": 1.4, "gamma_std": 0.3, "log10_N_mean": 52.2, "log10_N_std": 0.4, "correlation": 0.4,
    "intrinsic_scatter": 0.3, "log10_E_peak_mean": 2.5, "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.25,
}  # fmt: skip


def several(num=1):
    """Bursts of two and three intervals, of which one interval of flux is measured in another band."""
    columns = {
        "burst": ["a", "a", "b", "b", "b", "c", "c"], "z": [1.3] * 2 + [0.5] * 3 + [2.0] * 2,
        "log10_E_peak": [2.2, 2.4, 2.5, 2.3, 2.0, 2.1, 2.3], "log10_flux": [-5.6, -5.4, -5.1, -5.5, -5.7, -5.9, -5.8],
        "sigma_log10_E_peak": [0.1] * 7, "sigma_log10_flux": [0.15] * 7,
    }  # fmt: skip
    columns = {name: np.tile(values, num) for name, values in columns.items()}
    columns["burst"] = [f"{name}{i // 7}" for i, name in enumerate(columns["burst"])]
    return hbm.data.Bursts.from_columns(columns)


def injected_bursts(num, start=1):
    """A table of bursts of one, two and three intervals, found by the sum of the fluxes of all intervals."""
    rng = np.random.default_rng(start)
    counts = rng.integers(1, 4, num)
    burst = np.repeat(np.arange(num), counts)
    peak, flux = rng.normal(2.1, 0.5, len(burst)), rng.normal(-5.7, 0.9, len(burst))
    log_density = stats.norm.logpdf(peak, 2.1, 0.5) + stats.norm.logpdf(flux, -5.7, 0.9)
    density = np.exp(np.bincount(burst, log_density))
    found = rng.random(num) < found_bursts(np.bincount(burst, 10.0**flux))
    return {
        "burst": burst, "log10_E_peak": peak, "log10_flux": flux, "density": density[burst],
        "found": found[burst].astype(int),
    }  # fmt: skip


def found_bursts(total):
    return special.ndtr((np.log10(total) + 5.3) / 0.2)


def log_area(z):
    with jax.enable_x64(True):
        return float(log10_sphere_area(np.array([z]), Cosmology.flat(H0=70.0, Om0=0.3))[0])


def moments_of_intervals(p, z, num):
    """Mean and covariance of peak energies, and functions of x for those of the fluxes, written out."""
    mean = np.full(num, p["log10_E_peak_mean"] - np.log10(1.0 + z))
    covariance = p["log10_E_peak_scatter"] ** 2 * np.eye(num) + p["log10_E_peak_std"] ** 2
    cross = p["correlation"] * p["gamma_std"] * p["log10_N_std"]
    V = np.array([[p["log10_N_std"] ** 2, cross], [cross, p["gamma_std"] ** 2]])

    def of_fluxes(peak):
        X = np.stack([np.ones(num), peak + np.log10(1.0 + z) - 2.0], axis=-1)
        mean = X @ np.array([p["log10_N_mean"], p["gamma_mean"]]) - log_area(z)
        return mean, X @ V @ X.T + p["intrinsic_scatter"] ** 2 * np.eye(num)

    return mean, covariance, of_fluxes


@pytest.mark.long
def test_whole_bursts_are_divided_by_the_share_of_injections_with_as_many_intervals():
    """Density and derivatives, and the effective numbers, against sums over multivariate normal densities."""
    table, data = injected_bursts(150), several()
    names, redshifts = ["a0", "b0", "c0"], [1.3, 0.5, 2.0]
    counts = np.bincount(table["burst"])

    def weights_of(p):
        rows = []
        for z, num in zip(redshifts, (2, 3, 2), strict=True):
            mean, covariance, of_fluxes = moments_of_intervals(p, z, num)
            weights = np.zeros(len(counts))
            for i in np.flatnonzero(counts == num):
                row = table["burst"] == i
                if table["found"][row][0]:
                    peak, flux = table["log10_E_peak"][row], table["log10_flux"][row]
                    weights[i] = stats.multivariate_normal.pdf(peak, mean, covariance) / table["density"][row][0]
                    weights[i] *= stats.multivariate_normal.pdf(flux, *of_fluxes(peak))
            rows.append(weights)
        return np.array(rows)

    drawn = np.array([(counts == num).sum() for num in (2, 3, 2)])

    def expected(p):
        return -np.log(weights_of(p).sum(axis=1) / drawn).sum()

    model = Golenetskii(correlated=True, selection=Injections(table))
    whole = Golenetskii(correlated=True)
    bound, hidden = model.bound(data), {"_gamma": np.array([0.3, -0.2, 0.5])}
    assert list(data.name) == names
    unselected = whole.bound(data)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def change(p):
        density, trace = log_density(model, (bound,), {}, p | hidden)
        recorded = {name: trace[name]["value"] for name in trace if "injections" in name}
        return density - log_density(whole, (unselected,), {}, p | hidden)[0], recorded

    # Fewer injections than needed would reduce the selection.
    with pytest.MonkeyPatch.context() as patched, jax.enable_x64(True):
        patched.setattr("hbm_jax.distributions.selection.ENOUGH", 1.0 + 1e-6)
        (value, recorded), gradient = change(POPULATION)
    assert float(value) == pytest.approx(expected(POPULATION), abs=1e-9)
    # All parameters are varied together.
    direction = dict(zip(POPULATION, (0.5, -0.3, 0.7, 0.4, -0.6, 0.3, 0.8, -0.5, 0.4), strict=True))
    ends = [expected({n: v + step * direction[n] for n, v in POPULATION.items()}) for step in (1e-5, -1e-5)]
    slope = sum(float(gradient[name]) * value for name, value in direction.items())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    # Variance of the sum of the logarithms: injections of two and of three intervals are independent.
    relative = weights_of(POPULATION)
    relative /= relative.sum(axis=1, keepdims=True)
    variance = sum((relative[rows].sum(axis=0) ** 2).sum() - len(rows) ** 2 / drawn[rows[0]] for rows in ([0, 2], [1]))
    assert float(recorded["effective_injections"]) == pytest.approx(9.0 / variance, rel=1e-8)
    smallest = (1.0 / ((relative**2).sum(axis=1) - 1.0 / drawn)).min()
    assert float(recorded["injections_per_object"]) == pytest.approx(smallest, rel=1e-8)


@pytest.mark.long
def test_simulated_whole_bursts_are_found_ones(monte_carlo):
    """Slopes and measured values, against rejection."""
    num, rng = 300, np.random.default_rng(seed(6))
    model = Golenetskii(correlated=True, selection=Injections(injected_bursts(40_000, seed(4))))
    drawn, truth = model.simulate(jax.random.key(seed(5)), several(num), POPULATION)
    p, z, many = POPULATION, 2.0, 20_000
    N, gamma = rng.multivariate_normal(
        [p["log10_N_mean"], p["gamma_mean"]],
        [[p["log10_N_std"] ** 2, 0.4 * 0.3 * 0.4], [0.4 * 0.3 * 0.4, p["gamma_std"] ** 2]], many,
    ).T  # fmt: skip
    x = rng.normal(p["log10_E_peak_mean"] - 2.0, p["log10_E_peak_std"], (many, 1))
    x = x + rng.normal(0.0, p["log10_E_peak_scatter"], (many, 2))
    flux = N[:, None] + gamma[:, None] * x - log_area(z) + rng.normal(0.0, p["intrinsic_scatter"], (many, 2))
    kept = rng.random(many) < found_bursts((10.0**flux).sum(axis=1))
    assert 0.05 < kept.mean() < 0.8
    flux, peak = flux + rng.normal(0.0, 0.15, flux.shape), x + 2.0 - np.log10(1.0 + z) + rng.normal(0, 0.1, x.shape)
    ours = np.asarray(drawn.observed)[2::3, :2]
    expected = {"peak": (ours[:, 0, 0], peak[:, 0]), "flux": (ours[:, 0, 1], flux[:, 0])}
    expected["difference"] = (ours[:, 0, 1] - ours[:, 1, 1], flux[:, 0] - flux[:, 1])
    expected["gamma"] = (np.asarray(truth["gamma"])[2::3], gamma)
    u = [(ours[:, 0, 1] - truth["gamma"][2::3] * ours[:, 0, 0]), flux[:, 0] - gamma * peak[:, 0]]
    expected["offset"] = u[0], u[1]
    for name, (a, b) in expected.items():
        monte_carlo.p_value(stats.ks_2samp(a, b[kept]).pvalue, name=name)


@pytest.mark.long
def test_a_fit_gives_the_line_back_and_judges_the_injections():
    population = hbm.data.BurstPopulation(num_intervals=1, redshift=(0.5, 3.0))
    data = population.draw(40, seed=1).data
    table = injections(Golenetskii, 2000)
    truth = LINE | {"gamma": 1.5}
    drawn, _ = Golenetskii(selection=FLUX, pooling="complete").simulate(jax.random.key(1), data, truth)
    options = {"seed": 1, "progress": False, "num_warmup": 300, "num_samples": 300, "num_chains": 2}
    fit = hbm.sample(Golenetskii(pooling="complete", selection=Injections(table)), drawn, **options)
    same = hbm.sample(Golenetskii(pooling="complete", selection=FLUX), drawn, **options)
    (note,) = [note for note in fit.verdict.notes if "found injections" in note]
    assert "times the 40 objects" in note
    assert "For single objects" in note
    for name in ("gamma", "log10_N", "intrinsic_scatter"):
        a, b = (run.posterior[name].to_numpy() for run in (fit, same))
        # The table acts on measured and the injections on true fluxes, and has no Monte Carlo error.
        assert abs(a.mean() - b.mean()) < 0.7 * b.std(), name
        assert abs(a.mean() - truth[name]) < 4.0 * a.std(), name


def test_injections_are_read_from_a_file_and_stored_by_its_name(tmp_path):
    table = injections(Golenetskii, 30)
    rows = [",".join(table), *(",".join(map(repr, map(float, row))) for row in zip(*table.values(), strict=True))]
    path = tmp_path / "injections.csv"
    path.write_text("\n".join(rows))
    model = Golenetskii(selection=f"injections from {path}")
    assert model.to_config()["selection"] == f"injections from {path}"
    again = Golenetskii(**model.to_config())
    assert again.to_config() == model.to_config()
    (part,) = again.selections
    np.testing.assert_allclose(part.selection(model.selected_values).values, Injections(table).selection(
        ("log10_E_peak", "log10_flux")).values, rtol=1e-14)  # fmt: skip
    named = Golenetskii(selection=Injections(table))
    assert named.to_config()["class"] == "Golenetskii with injections from a table"


def test_what_does_not_fit_is_refused(tmp_path):
    table = Injections(injections(Golenetskii, 30))
    with pytest.raises(DataError, match="columns 'x1', 'c', 'm_b' are missing"):
        Supernova(selection=table)
    with pytest.raises(DataError, match="photon_index"):
        Afterglow(selection=table)
    with pytest.raises(OptionError, match="expects intrinsic_scatter above 0"):
        Golenetskii(selection=table, priors={"intrinsic_scatter": 0.0})
    with pytest.raises(OptionError, match="expects sigma_int above 0"):
        Supernova(selection=Injections(injections(Supernova, 30)), priors={"sigma_int": 0.0})
    with pytest.raises(OptionError, match="expects colour='normal'; found 'dust'"):
        Supernova(selection=Injections(injections(Supernova, 30)), colour="dust")
    with pytest.raises(OptionError, match="expected 'injections', with injections= of read_relation"):
        Relation(selection=table)
    with pytest.raises(OptionError, match="expects latents='marginal'"):
        Golenetskii(selection=table, latents="sampled")
    with pytest.raises(OptionError, match=r"expected injections, .*; found log10_flux > -12.0"):
        SpectralPopulation(spectrum="powerlaw", selection="log10_flux > -12 +- 0.1")
    with pytest.raises(OptionError, match="expects own=\\(\\), one value for each source; found log10_flux"):
        SpectralPopulation(spectrum="powerlaw", own="log10_flux", selection=table)
