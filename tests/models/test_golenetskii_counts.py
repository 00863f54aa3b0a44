"""The Golenetskii relation from counts: its density against plain NumPy, its parts against each other, recovery."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import gammaln

import hbm_jax as hbm
from hbm_jax.data import BurstSpectra, BurstSpectraPopulation, DataError, read_burst
from hbm_jax.models import GolenetskiiCounts, SpectralFit, folded_bursts, interval_fits
from hbm_jax.models.burst_relation import BurstFluxes, Coordinates, Line
from hbm_jax.models.folded_bursts import PIVOT, FoldedBursts, component
from hbm_jax.models.interval_fits import fit_intervals

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


def own(truth, folded, area=None):
    names = ("log10_E_peak", "alpha", "beta", "log10_flux")
    return folded.expected(*(jnp.asarray(truth[name]) for name in names), area)


@pytest.mark.parametrize("shape", ["band", "cutoff"])
def test_counts_are_those_of_a_dense_fold(sample, data, shape):
    truth = {k: np.asarray(v) for k, v in sample.truth.items()}
    folded = FoldedBursts.of(data, shape=shape, tolerance=1e-5)
    coarse = FoldedBursts.of(data, shape=shape)
    assert (coarse.errors <= 1e-2).all()
    assert coarse.log_energy.shape[-1] < folded.log_energy.shape[-1]
    area = truth["effective_area"]
    found, near = np.asarray(own(truth, folded, area)), np.asarray(own(truth, coarse, area))
    factor = [1.0, *area[:2], 1.0, *area[2:]]
    for row in range(len(data.spectra)):
        exact = dense(data, row, shape, truth, factor[data.spectrum_detector[row]])
        used = np.asarray(data.spectra.used)[row]
        # Midpoints of 60 cells a bin: 3e-6 of the counts.
        np.testing.assert_allclose(found[row][used], exact, rtol=2e-4, atol=1e-4)
        total = exact + np.maximum(np.asarray(data.spectra.background)[row][used], 0.0)
        assert np.sqrt(((near[row][used] - exact) ** 2 / total).sum()) < 1e-2


def test_statistic_is_that_of_the_textbook(sample, data):
    folded = FoldedBursts.of(data)
    mu = own(sample.truth, folded)
    found = np.asarray(folded.statistic.log_likelihood(mu))
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


def point(sample):
    """Every latent at its true value, hyperparameters somewhere."""
    truth = {k: jnp.asarray(np.asarray(v)) for k, v in sample.truth.items()}
    return HYPER | {k: truth[k] for k in ("gamma", "log10_N", "log10_E_peak", "alpha", "beta", "log10_flux")}


def sites(model, prepared, p, area):
    """Values of the sites that are sampled, shifted and partly centred, and the logarithm of the Jacobian."""
    center, slopes = (np.asarray(a) for a in (prepared.center, prepared.slopes))
    names = ["log10_E_peak", "alpha", *(["beta"] if model.spectrum == "band" else []), "log10_flux"]
    away = np.stack([np.asarray(p[n]) for n in names], axis=1) - center
    trend = np.einsum("ikj,ij->ik", np.tril(slopes, -1), away)
    level, of = np.asarray(prepared.level), np.asarray(prepared.folded.of_burst)
    latent = {n: np.asarray(p[n]) for n in (*names, "gamma")}
    latent["log10_luminosity"] = np.asarray(p["log10_N"]) + latent["gamma"] * level
    line = of @ np.asarray(p["log10_N"]) + of @ latent["gamma"] * (latent["log10_E_peak"] - 2.0)
    location = {n: np.full_like(latent[n], p[f"{n}_mean"]) for n in (*names[:-1], "gamma")}
    location |= {"log10_flux": line - prepared.folded.log10_sphere}
    location |= {"log10_luminosity": p["log10_N_mean"] + latent["gamma"] * level}
    scale = {n: p[f"{n}_std"] for n in (*names[:-1], "gamma")}
    scale |= {"log10_flux": p["intrinsic_scatter"], "log10_luminosity": p["log10_N_std"]}
    shift = {n: trend[:, k] for k, n in enumerate(names)}
    values, log_jacobian = {}, 0.0
    for n, (c, reference) in prepared.forms.items():
        m, moved = location[n] - shift.get(n, 0.0), latent[n] - shift.get(n, 0.0)
        ratio = scale[n] / reference
        values[f"_{n}"] = c * m + ratio ** (c - 1.0) * (moved - m)
        log_jacobian += np.sum((1.0 - c) * np.log(ratio))  # of the latent by what is sampled
    values |= {k: v for k, v in p.items() if k in model.all_priors}
    return values | {"effective_area": area}, log_jacobian


@pytest.mark.long
def test_joint_density_is_the_sum_of_its_parts(sample, data, monkeypatch):
    monkeypatch.setattr(folded_bursts, "LEVELS", folded_bursts.LEVELS[-1:])  # the same energies for all
    model = GolenetskiiCounts(latents="sampled")
    prepared = model.prepare(data)
    p = point(sample)
    area = np.asarray(sample.truth["effective_area"])
    values, log_jacobian = sites(model, prepared, p, area)
    found = float(log_density(model, (prepared,), {}, values)[0]) - log_jacobian
    z = np.asarray(data.z)[data.interval_burst]
    distance = FlatLambdaCDM(H0=70.0, Om0=0.3).luminosity_distance(z).to_value("cm")
    burst = data.interval_burst
    gamma, log10_N = np.asarray(p["gamma"])[burst], np.asarray(p["log10_N"])[burst]
    line = log10_N - np.log10(4.0 * np.pi * distance**2) + gamma * (np.asarray(p["log10_E_peak"]) - 2.0)
    h = HYPER
    prior = stats.norm.logpdf(p["gamma"], h["gamma_mean"], h["gamma_std"]).sum()
    prior += stats.norm.logpdf(p["log10_N"], h["log10_N_mean"], h["log10_N_std"]).sum()
    for name in ("log10_E_peak", "alpha", "beta"):
        prior += stats.norm.logpdf(p[name], h[f"{name}_mean"], h[f"{name}_std"]).sum()
    prior += stats.norm.logpdf(p["log10_flux"], line, h["intrinsic_scatter"]).sum()
    prior += stats.lognorm.logpdf(area, 0.1).sum()
    for name, value in h.items():
        prior += float(model.all_priors[name].log_prob(value))
    # The same counts, one interval at a time.
    factors = np.array([1.0, *area[:2], 1.0, *area[2:]])
    single = 0.0
    for i in range(len(data.start)):
        alone = data.intervals([i])
        folded = FoldedBursts.of(alone)
        free = [k for k in range(len(data.detector)) if data.detector_burst[k] == burst[i] and not data.reference[k]]
        alpha = -2.0 + 0.05 * np.logaddexp((p["alpha"] + 2.0) / 0.05, 0.0)
        beta = alpha - 0.05 * np.logaddexp((alpha - p["beta"]) / 0.05, 0.0)
        given = [jnp.asarray(v)[i : i + 1] for v in (p["log10_E_peak"], alpha, beta, p["log10_flux"])]
        single += float(folded.statistic.log_likelihood(folded.expected(*given, factors[free])).sum())
    assert found == pytest.approx(prior + single, rel=1e-10)
    # Beyond the domain the density goes on, and so does its gradient.
    values["_alpha"] = values["_alpha"] - np.array([3.0, 0.0, 0.0, 0.0, 0.0])
    values["_beta"] = values["_beta"] + np.array([0.0, 3.0, 0.0, 0.0, 0.0])
    both = jax.jit(jax.value_and_grad(lambda v: log_density(model, (prepared,), {}, v)[0]))
    value, slope = both({k: jnp.asarray(v, float) for k, v in values.items()})
    assert value < found - 100.0
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slope))


def fluxes_and_parts(data, seed=1):
    """Fluxes of bursts of three and two intervals, and the dense matrices that they come from."""
    rng = np.random.default_rng(seed)
    folded = FoldedBursts.of(data)
    x, of = rng.normal(0.6, 0.3, 5), np.asarray(folded.of_burst)
    line = Line(*(HYPER[k] for k in ("log10_N_mean", "log10_N_std", "gamma_mean", "gamma_std", "intrinsic_scatter")))
    at = Coordinates(rng.normal(-6.0, 0.3, 5), rng.normal(0.0, 0.1, 5), rng.uniform(0.0, 1.0, 5), 0.08)
    X = np.concatenate([of, of * x[:, None]], axis=1)
    prior = np.diag(np.repeat([line.log10_N_std, line.gamma_std], 2) ** 2)
    mean = X @ np.repeat([line.log10_N_mean, line.gamma_mean], 2) - folded.log10_sphere
    covariance = X @ prior @ X.T + line.scatter**2 * np.eye(5)
    return BurstFluxes(x, folded.log10_sphere, of, line, at), X, prior, mean, covariance


def test_marginal_fluxes_are_a_dense_gaussian(data):
    fluxes, X, prior, mean, covariance = fluxes_and_parts(data)
    flux = np.random.default_rng(2).multivariate_normal(mean, covariance)
    value = np.asarray(fluxes.value(flux))
    np.testing.assert_allclose(fluxes.flux(value), flux, rtol=1e-12)
    log_jacobian = np.linalg.slogdet(np.asarray(jax.jacobian(fluxes.flux)(jnp.asarray(value))))[1]
    exact = stats.multivariate_normal.logpdf(flux, mean, covariance) + log_jacobian
    assert float(fluxes.log_prob(value)) == pytest.approx(exact, rel=1e-10)
    # The lines behind, given the fluxes.
    gain = prior @ X.T @ np.linalg.inv(covariance)
    center = np.repeat([HYPER["log10_N_mean"], HYPER["gamma_mean"]], 2) + gain @ (flux - mean)
    of_noise = np.stack([np.concatenate(fluxes.lines(flux, noise.reshape(2, 2))) for noise in np.eye(4)], axis=1)
    found = np.concatenate(fluxes.lines(flux, np.zeros((2, 2))))
    np.testing.assert_allclose(found, center, rtol=1e-10)
    root = of_noise - found[:, None]
    np.testing.assert_allclose(root @ root.T, prior - gain @ X @ prior, atol=1e-12)


def test_lines_without_variance_are_those_of_the_population(data):
    fluxes, *_ = fluxes_and_parts(data)
    fluxes.line = fluxes.line._replace(log10_N_std=0.0, gamma_std=0.0)
    log10_N, gamma = fluxes.lines(np.full(5, -6.0), np.ones((2, 2)))
    np.testing.assert_allclose(log10_N, HYPER["log10_N_mean"], rtol=1e-14)
    np.testing.assert_allclose(gamma, HYPER["gamma_mean"], rtol=1e-14)
    draws = fluxes.sample(jax.random.key(0), (4000,))
    drawn = np.asarray(jax.vmap(fluxes.flux)(draws))
    line = HYPER["log10_N_mean"] + HYPER["gamma_mean"] * fluxes.x - fluxes.sphere
    np.testing.assert_allclose(drawn.mean(axis=0), line, atol=5 * 0.15 / np.sqrt(4000))
    np.testing.assert_allclose(drawn.std(axis=0), 0.15, rtol=5 / np.sqrt(8000))


def test_intervals_of_different_numbers_and_lacking_detectors_stay_apart(sample, data):
    one = sample.bursts[0]
    lacking = dataclasses.replace(one, spectra={**one.spectra, "n1": [one.spectra["n1"][0], None, None]})
    some = BurstSpectra.of([lacking, sample.bursts[1]])
    assert len(some.spectra) == 13
    whole, part = FoldedBursts.of(data), FoldedBursts.of(some)
    assert not part.in_order
    a, b = (np.asarray(own(sample.truth, f)) for f in (whole, part))
    kept = [data.spectra.name.index(name) for name in some.spectra.name]
    np.testing.assert_allclose(b, a[kept], rtol=1e-12)


@pytest.mark.long
def test_single_fits_are_those_of_a_spectral_fit(data):
    one = data.intervals([0])
    z = float(one.z[0])
    table = interval_fits(one)
    model = SpectralFit(component("band", (1.0 / (1.0 + z), 1e4 / (1.0 + z))), statistic="pgstat")
    weak = {"log10_E_peak": (2.6 - np.log10(1.0 + z), 0.8), "alpha": (-0.8, 0.6), "beta": (-2.5, 0.5)}

    def objective(x):
        pull = sum(((v - weak[k][0]) / weak[k][1]) ** 2 for k, v in zip(weak, x[:3], strict=True))
        values = {"e_peak": 10.0 ** x[0], "alpha": x[1], "beta": x[2], "log10_flux": x[3]}
        return folded.statistic.log_likelihood(folded.expected(values)).sum() - 0.5 * pull

    folded = model.prepare(one.spectra)
    best = jnp.array([table[k][0] for k in ("log10_E_peak", "alpha", "beta", "log10_flux")])
    slope, curvature = jax.jit(lambda x: (jax.grad(objective)(x), -jax.hessian(objective)(x)))(best)
    step = np.linalg.solve(curvature, slope)
    errors = np.array([table[f"sigma_{k}"][0] for k in ("log10_E_peak", "alpha", "beta", "log10_flux")])
    assert (np.abs(step) < 0.02 * errors).all()  # another choice of energies, 1e-2 sd apart at most
    # Expected information against observed curvature.
    np.testing.assert_allclose(errors, np.sqrt(np.diag(np.linalg.inv(curvature))), rtol=0.1)
    assert table.meta["band_frame"] == "rest"
    assert table["deviance"][0] == pytest.approx(table["num_groups"][0], rel=0.25)


def test_single_fits_cover_the_truth(sample, data):
    found = fit_intervals(FoldedBursts.of(data), sample.truth["effective_area"])
    for place, name in enumerate(("log10_E_peak", "alpha", "beta", "log10_flux")):
        pull = (found.values[:, place] - sample.truth[name]) / np.sqrt(found.covariance[:, place, place])
        assert np.abs(pull).max() < 4.0


def test_simulated_counts_have_the_mean_that_the_model_expects(data):
    model = GolenetskiiCounts(priors={"effective_area": 1.0})
    simulated, truth = model.simulate(jax.random.key(1), data, HYPER)
    folded = model.prepare(data).folded
    total = np.asarray(own(truth, folded)) + np.maximum(np.asarray(data.spectra.background), 0.0)
    counts = np.asarray(simulated.spectra.counts)
    used = np.asarray(data.spectra.used)
    assert counts[~used].sum() == 0
    assert np.abs(counts.sum() - total[used].sum()) < 6.0 * np.sqrt(total[used].sum())
    assert set(truth) >= {"gamma", "log10_N", "log10_E_peak", "alpha", "beta", "log10_flux", "gamma_mean"}


def test_choices_are_checked_and_kept():
    model = GolenetskiiCounts(
        spectrum="cutoff", scatter=False, calibration=False, priors={"gamma_std": "HalfNormal(1)"}
    )
    assert set(model.all_priors) == {n for n in HYPER if not n.startswith("beta") and n != "intrinsic_scatter"}
    again = GolenetskiiCounts(**model.to_config())
    assert again.to_config() == model.to_config()
    assert "cut-off power laws" in model.description
    for bad, message in (
        ({"spectrum": "bnd"}, "Did you mean 'band'"),
        ({"frame": "host"}, "expected one of 'rest'"),
        ({"band": (10.0, 1.0)}, "band: expected two positive energies"),
        ({"statistic": "chi2_data"}, "statistic"),
        ({"priors": {"gama_mean": 1.0}}, "Did you mean 'gamma_mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            GolenetskiiCounts(**bad)
    with pytest.raises(DataError, match="expected BurstSpectra; found list"):
        model.prepare([])
    assert PIVOT == 100.0


@pytest.mark.slow
def test_a_population_is_recovered():
    population = BurstSpectraPopulation(num_intervals=5, detectors={"n0": "nai", "b0": "bgo"}, spectrum="cutoff")
    sample = population.draw(6, seed=11)
    model = GolenetskiiCounts(spectrum="cutoff")
    fit = hbm.sample(model, BurstSpectra.of(sample.bursts), seed=2, target_accept_prob=0.95, progress=False)
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
    folded = FoldedBursts.of(data, shape="cutoff")
    found = fit_intervals(folded)
    mu = np.asarray(folded.expected(found.values[:, 0], found.values[:, 1], np.full(9, -3.0), found.values[:, 2]))
    deviance = np.asarray(folded.statistic.deviance(mu)).sum(axis=1)
    groups = np.asarray(data.spectra.used).sum(axis=1)
    # Hard to soft, as simulated; the last one is next to nothing.
    assert (np.diff(found.values[:8, 0]) < 0).all()
    for number, name in enumerate(data.detector):
        of = np.asarray(data.spectrum_detector) == number
        # Mean deviance of a group is 1.0 to 1.2 where counts are few; over 9 intervals its scatter is 0.05.
        assert 0.8 < deviance[of].sum() / groups[of].sum() < 1.25, name
