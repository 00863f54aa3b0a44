"""The Golenetskii relation from counts: its density against plain NumPy, its parts against each other, recovery."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from monte_carlo import seed
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import gammaln
from sites import at_latents, compiled_sites

import hbm_jax as hbm
from hbm_jax.data import BurstSpectra, BurstSpectraPopulation, DataError, read_burst
from hbm_jax.models import GolenetskiiCounts, SpectralFit, interval_fits
from hbm_jax.models.bursts.fluxes import BurstFluxes, Coordinates, Line
from hbm_jax.models.bursts.folded import FoldedBursts
from hbm_jax.models.bursts.interval_fits import fit_intervals
from hbm_jax.spectra import Parameter, component
from hbm_jax.spectra.folding import fold
from hbm_jax.spectra.model import registration
from hbm_jax.spectra.model.components import Band

HYPER = {
    "gamma_mean": 1.4,
    "gamma_std": 0.3,
    "log10_N_mean": 52.1,
    "log10_N_std": 0.4,
    "log10_E_peak_mean": 2.6,
    "log10_E_peak_std": 0.3,
    "alpha_mean": -0.9,
    "alpha_std": 0.2,
    "beta_mean": -2.4,
    "beta_std": 0.3,
    "intrinsic_scatter": 0.15,
}
Z_SYNTH = 1.53154473971862
KEV = 1.602176634e-9  # erg


@pytest.fixture(scope="module")
def sample():
    population = BurstSpectraPopulation(num_intervals=(3, 2), detectors={"n0": "nai", "n1": "nai", "b0": "bgo"})
    return population.draw(2, seed=5)


@pytest.fixture(scope="module")
def data(sample):
    return BurstSpectra.of(sample.bursts)


@pytest.fixture(scope="module")
def prepared(data):
    return GolenetskiiCounts().prepare(data)


def band_photons(E, alpha, beta, e_peak):
    """Band et al. 1993 at 100 keV, as written there."""
    e0 = e_peak / (2.0 + alpha)
    at = (alpha - beta) * e0
    low = (E / 100.0) ** alpha * np.exp(-E / e0)
    return np.where(at > E, low, (at / 100.0) ** (alpha - beta) * np.exp(beta - alpha) * (E / 100.0) ** beta)


def cutoff_photons(E, alpha, beta, e_peak):
    return (E / 100.0) ** alpha * np.exp(-E * (2.0 + alpha) / e_peak)


def dense(data, row, shape, truth, area=1.0, band=(1.0, 1e4), num=60):
    """Fold one spectrum by the midpoints of many cells in each bin of the response, in plain NumPy."""
    i = data.spectrum_interval[row]
    z = data.z[data.interval_burst[i]]
    photons = {"band": band_photons, "cutoff": cutoff_photons}[shape]
    indices = truth["alpha"][i], truth["beta"][i], 10.0 ** truth["log10_E_peak"][i] / (1.0 + z)
    grid = np.geomspace(band[0] / (1.0 + z), band[1] / (1.0 + z), 40001)
    unit = np.trapezoid(grid**2 * photons(grid, *indices), np.log(grid)) * KEV
    response = data.spectra.responses[row]
    edges = response.energy
    E = (edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(num) + 0.5) / num).ravel()
    incident = photons(E, *indices).reshape(-1, num).mean(axis=1) * np.diff(edges)
    counts = response.fold(incident) * 10.0 ** truth["log10_flux"][i] / unit * data.spectra.exposure[row] * area
    groups = data.spectra.grouping[row]
    return np.bincount(groups[groups >= 0], counts[groups >= 0])


def textbook_pgstat(S, mu, b, error):
    """Log likelihood at the best background, -pgstat/2 and its constants, by a search over b; XSPEC, appendix B."""
    low = np.maximum(b - 12.0 * error, -mu) + 1e-12
    high = np.maximum(b + 12.0 * error, S.max()) + 1.0

    def value(x):
        t = mu + x
        poisson = np.where(S > 0, S * np.log(t), 0.0) - t - gammaln(S + 1.0)
        return poisson - 0.5 * ((x - b) / error) ** 2 - np.log(error * np.sqrt(2.0 * np.pi))

    golden = 0.5 * (np.sqrt(5.0) - 1.0)
    for _ in range(120):
        one, two = high - golden * (high - low), low + golden * (high - low)
        better = value(one) > value(two)
        low, high = np.where(better, low, one), np.where(better, two, high)
    return value(0.5 * (low + high))


@jax.jit
def _expected(folded, truth, area):
    mu = folded.expected(truth | {"effective_area": area})
    return mu, folded.statistic.log_likelihood(mu)


def expected(truth, folded, area=None):
    """Expected counts of the bursts in each spectrum, and their log likelihood."""
    area = np.ones(folded.of_free.shape[1]) if area is None else area
    values = {name: np.asarray(truth[name], float) for name in folded.spectrum.names}
    return jax.device_get(_expected(folded, values, area))


@pytest.mark.parametrize("shape", ["band", "cutoff"])
def test_counts_are_those_of_a_dense_fold(sample, data, shape):
    truth = {k: np.asarray(v) for k, v in sample.truth.items()}
    folded = FoldedBursts.of(data, spectrum=shape, tolerance=1e-5)
    coarse = FoldedBursts.of(data, spectrum=shape)
    assert (coarse.errors <= 1e-2).all()
    assert coarse.source.blocks[0].shape[2] < folded.source.blocks[0].shape[2]
    area = truth["effective_area"]
    found, near = expected(truth, folded, area)[0], expected(truth, coarse, area)[0]
    factor = [1.0, *area[:2], 1.0, *area[2:]]
    for row in range(len(data.spectra)):
        exact = dense(data, row, shape, truth, factor[data.spectrum_detector[row]])
        used = np.asarray(data.spectra.used)[row]
        # Midpoints of 60 cells a bin: 3e-6 of the counts.
        np.testing.assert_allclose(found[row][used], exact, rtol=2e-4, atol=1e-4)
        total = exact + np.maximum(np.asarray(data.spectra.background)[row][used], 0.0)
        assert np.sqrt(((near[row][used] - exact) ** 2 / total).sum()) < 1e-2


def test_statistic_is_that_of_the_textbook(sample, data, prepared):
    mu, found = expected(sample.truth, prepared.folded)
    assert GolenetskiiCounts().cautions(prepared) == ()
    worse = dataclasses.replace(prepared.folded, errors=np.full(len(data.spectra), 0.5))
    told = GolenetskiiCounts().cautions(dataclasses.replace(prepared, folded=worse))[0]
    assert f"up to 0.5 over trial parameters, above the tolerance of 0.01, one of {len(data.spectra)}" in told
    for row in (0, 5, 9):
        used = np.asarray(data.spectra.used)[row]
        S, b, error = (
            np.asarray(a)[row][used]
            for a in (data.spectra.counts, data.spectra.background, data.spectra.background_error)
        )
        exact = textbook_pgstat(S, np.asarray(mu)[row][used], b, error)
        np.testing.assert_allclose(found[row][used], exact, atol=1e-8)
        # The gamma function enters with its sign: the data at themselves cannot be more probable than 1.
        assert (exact + np.log(error * np.sqrt(2.0 * np.pi)) <= 0).all()


def bent(x):
    return 0.05 * np.logaddexp(x / 0.05, 0.0)


def domain(alpha, beta):
    """Indices kept where there is a spectrum."""
    alpha = -2.0 + bent(alpha + 2.0)
    return alpha, alpha - bent(alpha - beta)


def at_point(sample, model, prepared, data):
    """Sites at the true values of all latents, and the log density of the latents that follows from the text."""
    t = {name: np.asarray(value) for name, value in sample.truth.items()}
    h, burst = HYPER, data.interval_burst
    z = np.asarray(data.z)[burst]
    distance = FlatLambdaCDM(H0=70.0, Om0=0.3).luminosity_distance(z).to_value("cm")
    away, x = np.log10(4.0 * np.pi * distance**2), t["log10_E_peak"] - 2.0
    prior = stats.lognorm.logpdf(t["effective_area"], 0.1).sum()
    prior += sum(float(model.all_priors[name].log_prob(value)) for name, value in h.items() if name in model.all_priors)
    for name in ("log10_E_peak", "alpha", "beta"):
        prior += stats.norm.logpdf(t[name], h[f"{name}_mean"], h[f"{name}_std"]).sum()
    wanted = {f"_{name}": (name, t[name]) for name in ("log10_E_peak", "alpha", "beta")}
    given = {name: value for name, value in h.items() if name in model.all_priors} | {"effective_area": area_of(sample)}
    line = t["log10_N"][burst] - away + t["gamma"][burst] * x
    t["log10_flux"] = line if not model.scatter else t["log10_flux"]
    if model.scatter:
        wanted["_log10_flux"] = ("log10_flux", t["log10_flux"])
    if model.scatter and model.latents == "marginal":
        X = np.concatenate([np.eye(2)[burst], np.eye(2)[burst] * x[:, None]], axis=1)
        variances = np.repeat([h["log10_N_std"], h["gamma_std"]], 2) ** 2
        mean = X @ np.repeat([h["log10_N_mean"], h["gamma_mean"]], 2) - away
        covariance = (X * variances) @ X.T + h["intrinsic_scatter"] ** 2 * np.eye(len(x))
        prior += stats.multivariate_normal.logpdf(t["log10_flux"], mean, covariance)
    else:
        prior += stats.norm.logpdf(t["gamma"], h["gamma_mean"], h["gamma_std"]).sum()
        prior += stats.norm.logpdf(t["log10_N"], h["log10_N_mean"], h["log10_N_std"]).sum()
        if model.scatter:
            prior += stats.norm.logpdf(t["log10_flux"], line, h["intrinsic_scatter"]).sum()
        lines = {"_gamma": ("gamma", t["gamma"]), "_log10_luminosity": ("log10_N", t["log10_N"])}
        wanted = lines | wanted
    zeros = {site: np.zeros(np.shape(value)) for site, (_, value) in wanted.items()}
    sites = compiled_sites(model, prepared)
    values, log_determinant = at_latents(sites, given | zeros, wanted)
    return sites, values, prior + log_determinant, t


def area_of(sample):
    return np.asarray(sample.truth["effective_area"])


@pytest.mark.parametrize("options", [{"latents": "sampled"}, {"latents": "marginal"}, {"scatter": False}])
def test_the_density_is_the_sum_of_its_parts(sample, data, prepared, options):
    sites, values, prior, t = at_point(sample, GolenetskiiCounts(**options), prepared, data)
    found = sites(values)
    _, log_likelihood = expected(t, prepared.folded, area_of(sample))
    used = np.asarray(data.spectra.used)
    assert found.log_probs["counts"].sum() == pytest.approx(log_likelihood[used].sum(), rel=1e-11)
    assert found.log_density == pytest.approx(prior + log_likelihood[used].sum(), rel=1e-10)


def test_beyond_the_domain_the_indices_are_bent(sample, data, prepared):
    sites, values, _, t = at_point(sample, GolenetskiiCounts(latents="sampled"), prepared, data)
    values["_alpha"] = values["_alpha"] - np.array([3.0, 0.0, 0.0, 0.0, 0.0])
    values["_beta"] = values["_beta"] + np.array([0.0, 3.0, 0.0, 0.0, 0.0])
    found = sites(values)
    t |= {name: found.values[name] for name in ("alpha", "beta", "log10_flux")}
    assert t["alpha"][0] < -2.0
    assert t["beta"][1] > t["alpha"][1]
    counts, log_likelihood = expected(t, prepared.folded, area_of(sample))
    used = np.asarray(data.spectra.used)
    assert found.log_probs["counts"].sum() == pytest.approx(log_likelihood[used].sum(), rel=1e-9)
    t["alpha"], t["beta"] = domain(t["alpha"], t["beta"])
    assert (t["alpha"] >= -2.0).all()
    assert (t["beta"] <= t["alpha"]).all()
    np.testing.assert_allclose(counts[1][used[1]], dense(data, 1, "band", t), rtol=1e-2)  # the interval of beta


@pytest.mark.long
def test_joint_density_is_that_of_the_intervals_one_at_a_time(sample, data, monkeypatch):
    monkeypatch.setattr(fold, "LEVELS", fold.LEVELS[-1:])  # the same energies for all
    model = GolenetskiiCounts(latents="sampled")
    prepared = model.prepare(data)
    sites, values, prior, t = at_point(sample, model, prepared, data)
    found = sites(values).log_density
    area, burst = area_of(sample), data.interval_burst
    factors = np.array([1.0, *area[:2], 1.0, *area[2:]])
    single = 0.0
    for i in range(len(data.start)):
        alone = data.intervals([i])
        free = [k for k in range(len(data.detector)) if data.detector_burst[k] == burst[i] and not data.reference[k]]
        own = {name: t[name][i : i + 1] for name in ("log10_E_peak", "alpha", "beta", "log10_flux")}
        single += expected(own, FoldedBursts.of(alone), factors[free])[1].sum()
    assert found == pytest.approx(prior + single, rel=1e-10)
    # Beyond the domain the density goes on, and so does its gradient.
    values["_alpha"] = values["_alpha"] - np.array([3.0, 0.0, 0.0, 0.0, 0.0])
    values["_beta"] = values["_beta"] + np.array([0.0, 3.0, 0.0, 0.0, 0.0])
    both = jax.jit(jax.value_and_grad(lambda v: log_density(model, (prepared,), {}, v)[0]))
    value, slope = both({k: np.asarray(v, float) for k, v in values.items()})
    assert value < found - 100.0
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slope))


def fluxes_and_parts(folded):
    """Fluxes of bursts of three and two intervals, and the dense matrices that they come from."""
    rng = np.random.default_rng(1)
    x, of = rng.normal(0.6, 0.3, 5), np.asarray(folded.of_burst)
    line = Line(*(HYPER[k] for k in ("log10_N_mean", "log10_N_std", "gamma_mean", "gamma_std", "intrinsic_scatter")))
    at = Coordinates(rng.normal(-6.0, 0.3, 5), rng.normal(0.0, 0.1, 5), rng.uniform(0.0, 1.0, 5), 0.08)
    X = np.concatenate([of, of * x[:, None]], axis=1)
    prior = np.diag(np.repeat([line.log10_N_std, line.gamma_std], 2) ** 2)
    mean = X @ np.repeat([line.log10_N_mean, line.gamma_mean], 2) - folded.log10_sphere_area
    covariance = X @ prior @ X.T + line.scatter**2 * np.eye(5)
    return BurstFluxes(x, folded.log10_sphere_area, of, line, at), X, prior, mean, covariance


@jax.jit
def _of_fluxes(fluxes, flux, noises):
    value = fluxes.value(flux)
    lines = jax.vmap(lambda noise: fluxes.lines(flux, noise))(noises)
    jacobian = jax.jacobian(fluxes.flux)(value)
    return fluxes.flux(value), fluxes.log_prob(value), jacobian, lines


@jax.jit
def _drawn_fluxes(fluxes, key_data):
    return jax.vmap(fluxes.flux)(fluxes.sample(jax.random.wrap_key_data(key_data), (4000,)))


NOISES = np.concatenate([np.zeros((1, 2, 2)), np.eye(4).reshape(4, 2, 2)])


def test_marginal_fluxes_are_a_dense_gaussian(prepared, monte_carlo):
    fluxes, X, prior, mean, covariance = fluxes_and_parts(prepared.folded)
    flux = np.random.default_rng(2).multivariate_normal(mean, covariance)
    back, log_prob, jacobian, lines = jax.device_get(_of_fluxes(fluxes, flux, NOISES))
    np.testing.assert_allclose(back, flux, rtol=1e-12)
    exact = stats.multivariate_normal.logpdf(flux, mean, covariance) + np.linalg.slogdet(jacobian)[1]
    assert float(log_prob) == pytest.approx(exact, rel=1e-10)
    # The lines behind, given the fluxes.
    gain = prior @ X.T @ np.linalg.inv(covariance)
    center = np.repeat([HYPER["log10_N_mean"], HYPER["gamma_mean"]], 2) + gain @ (flux - mean)
    found = np.concatenate(lines, axis=1)
    np.testing.assert_allclose(found[0], center, rtol=1e-10)
    root = (found[1:] - found[0]).T
    np.testing.assert_allclose(root @ root.T, prior - gain @ X @ prior, atol=1e-12)
    drawn = np.asarray(_drawn_fluxes(fluxes, np.array([0, seed(1)], np.uint32))) - mean
    for i in range(5):
        monte_carlo.mean(drawn[:, i], 0.0, name=f"mean {i}", independent=True)
        monte_carlo.mean(drawn[:, i] * drawn[:, 0], covariance[i, 0], name=f"covariance {i}", independent=True)


def test_lines_without_variance_are_those_of_the_population(prepared, monte_carlo):
    fluxes, *_ = fluxes_and_parts(prepared.folded)
    fluxes.line = fluxes.line._replace(log10_N_std=0.0, gamma_std=0.0)
    log10_N, gamma = _of_fluxes(fluxes, np.full(5, -6.0), NOISES)[-1]
    np.testing.assert_allclose(log10_N, HYPER["log10_N_mean"], rtol=1e-14)
    np.testing.assert_allclose(gamma, HYPER["gamma_mean"], rtol=1e-14)
    drawn = np.asarray(_drawn_fluxes(fluxes, np.array([0, seed(2)], np.uint32)))
    line = HYPER["log10_N_mean"] + HYPER["gamma_mean"] * fluxes.x - fluxes.log10_area
    for i in range(5):
        monte_carlo.mean(drawn[:, i], line[i], name=f"mean {i}", independent=True)
        monte_carlo.std(drawn[:, i], HYPER["intrinsic_scatter"], name=f"scatter {i}", independent=True)


def test_intervals_of_different_numbers_and_lacking_detectors_stay_apart(sample, data, prepared):
    one = sample.bursts[0]
    lacking = dataclasses.replace(one, spectra={**one.spectra, "n1": [one.spectra["n1"][0], None, None]})
    some = BurstSpectra.of([lacking, sample.bursts[1]])
    assert len(some.spectra) == 13
    part = FoldedBursts.of(some)
    assert not part.in_order
    a, b = (expected(sample.truth, folded)[0] for folded in (prepared.folded, part))
    kept = [data.spectra.name.index(name) for name in some.spectra.name]
    np.testing.assert_allclose(b, a[kept], rtol=1e-12)


@pytest.mark.long
def test_single_fits_are_those_of_a_spectral_fit(data):
    one = data.intervals([0])
    z = float(one.z[0])
    table = interval_fits(one)
    model = SpectralFit(Band(norm=(1.0 / (1.0 + z), 1e4 / (1.0 + z))), statistic="pgstat")
    weak = {"log10_E_peak": (2.6 - np.log10(1.0 + z), 0.8), "alpha": (-0.8, 0.6), "beta": (-2.5, 0.5)}

    def objective(x):
        pull = sum(((v - weak[k][0]) / weak[k][1]) ** 2 for k, v in zip(weak, x[:3], strict=True))
        values = {"e_peak": 10.0 ** x[0], "alpha": x[1], "beta": x[2], "log10_flux": x[3]}
        return folded.statistic.log_likelihood(folded.expected(values)).sum() - 0.5 * pull

    folded = model.prepare(one.spectra)
    best = np.array([table[k][0] for k in ("log10_E_peak", "alpha", "beta", "log10_flux")])
    slope, curvature = jax.jit(lambda x: (jax.grad(objective)(x), -jax.hessian(objective)(x)))(best)
    step = np.linalg.solve(curvature, slope)
    errors = np.array([table[f"sigma_{k}"][0] for k in ("log10_E_peak", "alpha", "beta", "log10_flux")])
    assert (np.abs(step) < 0.02 * errors).all()  # another choice of energies, 1e-2 sd apart at most
    # Expected information against observed curvature.
    np.testing.assert_allclose(errors, np.sqrt(np.diag(np.linalg.inv(curvature))), rtol=0.1)
    assert table.meta["band_frame"] == "rest"
    assert table["deviance"][0] == pytest.approx(table["num_groups"][0], rel=0.25)


def test_single_fits_cover_the_truth(sample, prepared):
    found = fit_intervals(prepared.folded, sample.truth["effective_area"])
    # The expected information at the best fit, by differences.
    statistic, area = prepared.folded.statistic, area_of(sample)
    names = ("log10_E_peak", "alpha", "beta", "log10_flux")
    best = dict(zip(names, found.values.T, strict=True))
    ends = [[expected(best | {n: best[n] + h}, prepared.folded, area)[0] for h in (1e-5, -1e-5)] for n in names]
    slopes = np.array([(up - down) / 2e-5 for up, down in ends])
    behind = np.maximum(np.asarray(statistic.background), 0.0)
    variance = expected(best, prepared.folded, area)[0] + behind + np.asarray(statistic.background_error) ** 2
    products = np.einsum(
        "kng,lng,ng->nkl", slopes, slopes, np.where(statistic.used, 1.0 / np.maximum(variance, 1e-6), 0)
    )
    of = np.asarray(prepared.folded.of_interval)[prepared.folded.order]
    information = np.einsum("ni,nkl->ikl", of, products) + np.diag([0.8**-2, 0.6**-2, 0.5**-2, 0.0])
    np.testing.assert_allclose(found.covariance, np.linalg.inv(information), rtol=1e-4)
    for place, name in enumerate(("log10_E_peak", "alpha", "beta", "log10_flux")):
        pull = (found.values[:, place] - sample.truth[name]) / np.sqrt(found.covariance[:, place, place])
        assert np.abs(pull).max() < 4.0


@pytest.mark.long
def test_simulated_counts_have_the_mean_that_the_model_expects(data, prepared, monte_carlo):
    model = GolenetskiiCounts(priors={"effective_area": 1.0})
    drawn, truth = model.simulate(jax.random.key(seed(1)), data, HYPER)
    total = expected(truth, prepared.folded)[0] + np.maximum(np.asarray(data.spectra.background), 0.0)
    counts = np.asarray(drawn.spectra.counts)
    used = np.asarray(data.spectra.used)
    assert counts[~used].sum() == 0
    for row in range(len(counts)):
        mean = total[row][used[row]].sum()
        monte_carlo.within(counts[row].sum(), mean, np.sqrt(mean), name=f"counts of spectrum {row}")
    assert set(truth) >= {"gamma", "log10_N", "log10_E_peak", "alpha", "beta", "log10_flux", "gamma_mean"}
    # Lines of bursts and their intervals' fluxes are those drawn.
    line = truth["log10_N"][data.interval_burst] - prepared.folded.log10_sphere_area
    line = line + truth["gamma"][data.interval_burst] * (truth["log10_E_peak"] - 2.0)
    for i, away in enumerate(truth["log10_flux"] - line):
        monte_carlo.within(away, 0.0, HYPER["intrinsic_scatter"], name=f"flux {i}")


def black_body_photons(E, kT, log10_flux, band=(8.0, 1000.0)):
    grid = np.geomspace(*band, 20001)
    unit = np.trapezoid(grid**4 / np.expm1(grid / kT), np.log(grid)) * KEV
    return 10.0**log10_flux / unit * E**2 / np.expm1(np.minimum(E / kT, 500.0))


@pytest.mark.long
def test_any_expression_with_a_peak_energy(sample, data):
    """A black body beside the Band function: its counts by a plain fold, and a population for each parameter."""
    model = GolenetskiiCounts(spectrum="Band(main) + BlackBody(bb, norm=(8, 1000))")
    names = ("log10_E_peak", "alpha", "beta", "log10_bb_kT", "bb_log10_flux", "log10_flux")
    assert model.peaked.names == names
    assert {"log10_bb_kT_mean", "bb_log10_flux_std", "alpha_mean"} <= model.all_priors.keys()
    assert model.all_priors["bb_log10_flux_mean"].loc == -6.5
    assert [model.units[n] for n in ("log10_bb_kT", "log10_bb_kT_std", "bb_log10_flux_std")] == ["keV", "dex", "dex"]
    assert GolenetskiiCounts(**model.to_config()).to_config() == model.to_config()
    one = data.intervals([0])
    folded = FoldedBursts.of(one, spectrum=model.peaked, tolerance=1e-5)
    truth = {name: np.asarray(sample.truth[name])[:1] for name in ("log10_E_peak", "alpha", "beta", "log10_flux")}
    values = truth | {"log10_bb_kT": np.array([1.2]), "bb_log10_flux": truth["log10_flux"] - 0.5}
    found = expected(values, folded)[0]
    response, groups = one.spectra.responses[0], one.spectra.grouping[0]
    edges = response.energy
    E = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(60) + 0.5) / 60
    body = black_body_photons(E, 10.0**1.2, values["bb_log10_flux"][0]).mean(axis=1) * np.diff(edges)
    exact = np.bincount(groups[groups >= 0], (response.fold(body) * one.spectra.exposure[0])[groups >= 0])
    exact = exact + dense(one, 0, "band", truth)
    np.testing.assert_allclose(found[0][: len(exact)], exact, rtol=2e-4, atol=1e-4)
    assert folded.errors.max() <= 2e-5  # of the finest panels


def test_lines_in_bursts_are_folded_exactly(sample, data):
    one = data.intervals([0])
    folded = FoldedBursts.of(one, spectrum="Band() + gauss(line)")
    values = {name: np.asarray(sample.truth[name])[:1] for name in ("log10_E_peak", "alpha", "beta", "log10_flux")}
    values["log10_line_energy"] = np.log10([37.0])
    for sigma in (1e-4, 0.3, 20.0):
        bright, faint = (
            expected(values | {"log10_line_sigma": np.log10([sigma]), "line_log10_amplitude": [size]}, folded)[0]
            for size in (0.5, -30.0)
        )
        for row in range(len(one.spectra)):
            edges, response = one.spectra.grouped_response(row)
            exact = 10.0**0.5 * np.diff(stats.norm(37.0, sigma).cdf(edges)) @ response
            found = (bright - faint)[row, : len(exact)]
            np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6 * exact.max() + 1e-9)


def test_the_flux_of_a_component_of_a_user_follows_its_peak_energy():
    """Of a log parabola defined outside hbm_jax, in the rest frame of the source."""
    before = dict(registration.REGISTERED)
    shape = {
        "e_peak": Parameter("keV", "LogNormal(5, 1)", "peak"),
        "width": Parameter("", "LogNormal(0, 0.3)", "width"),
    }

    @component(shape | {"log10_amplitude": Parameter("photons/cm^2/s/keV", "Normal(0, 2)", "at the peak")})
    def parabola(energy, e_peak, width, log10_amplitude):
        x = jnp.log10(energy / e_peak)
        return 10.0 ** (log10_amplitude - 0.5 * (x / width) ** 2) * (energy / e_peak) ** -2.0

    try:
        model = GolenetskiiCounts(spectrum="parabola")
        assert model.peaked.names == ("log10_E_peak", "log10_width", "log10_flux")
        low, high = (np.array([limit]) / 2.5 for limit in (1.0, 1e4))
        values = {"log10_E_peak": np.array([2.6]), "log10_width": np.array([-0.1]), "log10_flux": np.array([-5.5])}
        p = jax.jit(lambda v: model.peaked.parameters(v, np.log10([2.5]), low, high))(values)
        assert p["e_peak"][0] == pytest.approx(10**2.6 / 2.5, rel=1e-12)
        grid = np.geomspace(low[0], high[0], 20001)
        density = np.asarray(model.peaked.expression.on(grid)(p))[0]
        assert np.trapezoid(grid**2 * density, np.log(grid)) * KEV == pytest.approx(10**-5.5, rel=1e-6)
        assert grid[np.argmax(grid**2 * density)] == pytest.approx(float(p["e_peak"][0]), rel=1e-3)
    finally:
        registration.REGISTERED.clear()
        registration.REGISTERED.update(before)


def test_choices_are_checked_and_kept():
    model = GolenetskiiCounts(
        spectrum="cutoff", scatter=False, calibration=False, priors={"gamma_std": "HalfNormal(1)"}
    )
    assert set(model.all_priors) == {n for n in HYPER if not n.startswith("beta") and n != "intrinsic_scatter"}
    again = GolenetskiiCounts(**model.to_config())
    assert again.to_config() == model.to_config()
    assert "cut-off power laws" in model.description
    for bad, message in (
        ({"spectrum": "bnd"}, "did you mean 'band'"),
        ({"spectrum": "PowerLaw()"}, "one component has a peak energy e_peak, such as Band"),
        ({"spectrum": "Band(main) + BlackBody()"}, "no second parameter named 'log10_flux'"),
        ({"frame": "host"}, "Unknown frame of GolenetskiiCounts 'host'"),
        ({"band": (10.0, 1.0)}, "band: expected two positive energies"),
        ({"statistic": "chi2_data"}, "statistic"),
        ({"priors": {"gama_mean": 1.0}}, "did you mean 'gamma_mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            GolenetskiiCounts(**bad)
    with pytest.raises(DataError, match="expected BurstSpectra; found list"):
        model.prepare([])


@pytest.mark.slow
def test_a_population_is_recovered():
    population = BurstSpectraPopulation(num_intervals=5, detectors={"n0": "nai", "b0": "bgo"}, spectrum="cutoff")
    sample = population.draw(6, seed=11)
    model = GolenetskiiCounts(spectrum="cutoff")
    fit = hbm.sample(
        model, BurstSpectra.of(sample.bursts), seed=2, sampler=hbm.NUTS(target_accept_prob=0.95), progress=False
    )
    assert fit.verdict.usable, str(fit.verdict)
    for name in ("gamma_mean", "log10_N_mean", "log10_E_peak_mean", "alpha_mean", "intrinsic_scatter"):
        draws = np.asarray(fit.posterior[name]).ravel()
        assert abs(draws.mean() - sample.truth[name]) < 4.0 * draws.std(), name
    pulls = []
    for name in ("log10_E_peak", "alpha", "log10_flux"):
        draws = np.asarray(fit.posterior[name]).reshape(-1, 30)
        pulls.append((draws.mean(axis=0) - sample.truth[name]) / draws.std(axis=0))
    # 90 of them, not independent.
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1.0, abs=0.3)


@pytest.mark.slow
def test_the_synthetic_burst_of_gbm_is_fitted_from_its_files(shared_data):
    ranges = dict.fromkeys(("n1", "n3", "n5"), (10.0, 900.0)) | {"b1": (250.0, 30000.0)}
    files = {d: shared_data(f"grb/synth_gbm/{d}.pha") for d in ranges}
    data = read_burst(files, name="synthetic", z=Z_SYNTH, energies=ranges, grouping="channels_per_group", group_by=2)
    assert len(data.start) == 9
    assert data.spectra.default_statistic == "pgstat"
    table = interval_fits(data, spectrum="cutoff")
    # The first and the last interval are faint.
    assert (np.asarray(table["sigma_log10_flux"])[1:8] < 0.1).all()
    assert (np.asarray(table["sigma_log10_E_peak"])[1:8] < 0.2).all()
    folded = FoldedBursts.of(data, spectrum="cutoff")
    found = fit_intervals(folded)
    mu = np.asarray(folded.expected(dict(zip(folded.spectrum.names, found.values.T, strict=True))))
    deviance = np.asarray(folded.statistic.deviance(mu)).sum(axis=1)
    groups = np.asarray(data.spectra.used).sum(axis=1)
    # Hard to soft, as simulated; the last one is next to nothing.
    assert (np.diff(found.values[:8, 0]) < 0).all()
    for number, name in enumerate(data.detector):
        of = np.asarray(data.spectrum_detector) == number
        # Mean deviance of a group is 1.0 to 1.2 where counts are few; over 9 intervals its scatter is 0.05.
        assert 0.8 < deviance[of].sum() / groups[of].sum() < 1.25, name
