"""Bursts from counts that are missing as a whole: density against integrals, draws against rejection, refusals."""

from functools import partial

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

from hbm_jax.data import BurstSpectra, BurstSpectraPopulation
from hbm_jax.models import GolenetskiiCounts, Injections
from hbm_jax.models.bursts.detection import PeakFluxDetection
from hbm_jax.models.bursts.fluxes import Line
from hbm_jax.validation import OptionError

HYPER = {
    "gamma_mean": 1.4, "gamma_std": 0.3, "log10_N_mean": 52.1, "log10_N_std": 0.4, "log10_E_peak_mean": 2.6,
    "log10_E_peak_std": 0.3, "alpha_mean": -0.9, "alpha_std": 0.2, "intrinsic_scatter": 0.15,
}  # fmt: skip
LIMIT, WIDTH = "log10_peak_flux_lim", "log10_peak_flux_lim_width"
AT_LIMIT = HYPER | {LIMIT: -5.3, WIDTH: 0.2}
OPTIONS = {"spectrum": "cutoff", "calibration": False}
SELECTED = GolenetskiiCounts(selection="log10_peak_flux > Normal(-5.5, 0.5) +- HalfNormal(0.3)", **OPTIONS)


@pytest.fixture(scope="module")
def bound():
    population = BurstSpectraPopulation(redshift=(1.5, 2.0, 3.0), num_intervals=(3, 1, 2), detectors={"n0": "nai"})
    return GolenetskiiCounts(**OPTIONS).prepare(BurstSpectra.of(population.draw(3, seed=5).bursts))


def log_detected_fractions(p, of_burst, log10_area):
    """Log of the detected fraction of each burst: a sum over slopes, and over luminosities at each slope."""
    u = np.linspace(-9.0, 9.0, 2001)
    weights = stats.norm.pdf(u) / stats.norm.pdf(u).sum()
    num = of_burst.sum(axis=0)
    area = log10_area @ of_burst / num
    slopes = p["gamma_mean"] + p["gamma_std"] * u[::20]
    share = np.zeros(len(num))
    for slope, weight in zip(slopes, weights[::20] / weights[::20].sum(), strict=True):
        std = np.sqrt((slope * p["log10_E_peak_std"]) ** 2 + p["intrinsic_scatter"] ** 2 + p[WIDTH] ** 2)
        mean = p["log10_N_mean"] + p["log10_N_std"] * u + slope * (p["log10_E_peak_mean"] - 2.0) - area[:, None]
        missed = num[:, None] * stats.norm.logcdf((p[LIMIT] - mean) / std)
        share += weight * (-np.expm1(missed) @ weights)
    return np.log(share)


def test_shares_of_populations_and_of_given_peak_energies():
    of_burst, area = np.repeat(np.eye(3), [3, 1, 2], axis=0), np.repeat([58.1, 58.4, 58.9], [3, 1, 2])
    p = AT_LIMIT
    names = ("log10_N_mean", "log10_N_std", "gamma_mean", "gamma_std", "intrinsic_scatter")
    line = Line(*(p[name] for name in names))
    detection = PeakFluxDetection(p[LIMIT], p[WIDTH], line, 0.6, p["log10_E_peak_std"], of_burst, area)
    log10_E_peak = np.array([2.9, 2.3, 2.6, 3.0, 2.2, 2.8])

    def shares_at(log10_E_peak):
        draws = np.random.default_rng(1).normal(size=(2, 200_000, 3)) @ of_burst.T
        flux = p["log10_N_mean"] + p["log10_N_std"] * draws[0] - area
        flux += (p["gamma_mean"] + p["gamma_std"] * draws[1]) * (log10_E_peak - 2.0)
        width = np.hypot(p["intrinsic_scatter"], p[WIDTH])
        return -np.expm1(stats.norm.logcdf((p[LIMIT] - flux) / width) @ of_burst).mean(axis=0)

    with jax.enable_x64(True):
        expected = log_detected_fractions(p, of_burst, area)
        assert expected.min() < -0.5
        np.testing.assert_allclose(jax.jit(detection.log_detected_fraction)(), expected, atol=1e-5)
        detected = detection.of_peak_energies(dist.Normal(np.zeros(6), 1.0), lambda value: value)
        # Means of 200 000 draws, with standard errors of 0.001.
        np.testing.assert_allclose(jax.jit(detected.accepts)(log10_E_peak), shares_at(log10_E_peak), atol=5e-3)


@pytest.mark.long
def test_the_density_is_that_of_detected_bursts(bound):
    """Efficiency at the true fluxes over the detected fraction, to 1e-5, and its gradient to 1e-4."""
    num, p = len(bound.center), AT_LIMIT
    shares = partial(log_detected_fractions, of_burst=bound.folded.of_burst, log10_area=bound.folded.log10_sphere_area)
    hidden = {"_log10_E_peak": np.full(num, 2.6), "_alpha": np.full(num, -0.9), "_log10_flux": bound.center[:, -1]}

    def density(model, p):
        return log_density(model, (bound,), {}, p | hidden)[0]

    def flux(p):
        trace = handlers.trace(handlers.substitute(handlers.seed(SELECTED, 0), p | hidden)).get_trace(bound)
        return trace["log10_flux"]["value"]

    def expected(p):
        limit, width = (p[name] for name in (LIMIT, WIDTH))
        missed = stats.norm.logcdf((limit - np.asarray(flux(p))) / width) @ bound.folded.of_burst
        prior = stats.norm.logpdf(limit, -5.5, 0.5) + stats.halfnorm.logpdf(width, scale=0.3)
        return np.log(-np.expm1(missed)).sum() - shares(p).sum() + prior

    with jax.enable_x64(True):
        p = {name: np.float64(value) for name, value in p.items()}
        found, gradient = jax.jit(jax.value_and_grad(lambda p: density(SELECTED, p)))(p)
        without = jax.jit(jax.value_and_grad(lambda p: density(GolenetskiiCounts(**OPTIONS), p)))
        others, others_gradient = without({name: p[name] for name in HYPER})
        assert shares(p).min() < -0.5
        assert float(found - others) == pytest.approx(expected(p), abs=1e-5)
        for name in ("gamma_std", "log10_N_mean", "log10_E_peak_std", "intrinsic_scatter", LIMIT):
            slope = (expected(p | {name: p[name] + 1e-4}) - expected(p | {name: p[name] - 1e-4})) / 2e-4
            found_slope = float(gradient[name] - others_gradient.get(name, 0.0))
            assert found_slope == pytest.approx(slope, abs=1e-4), name


def draws(model, bound, p, num, key):
    """Latents of bursts and intervals in many samples."""
    names = ("log10_E_peak", "alpha", "log10_flux", "gamma", "log10_N")

    def draw(key):
        program = handlers.seed(handlers.substitute(model, p), key)
        trace = handlers.trace(program).get_trace(bound, observed=False)
        return {name: trace[name]["value"] for name in names}

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(key), num)))


def injected(num, start=1):
    """A table of bursts of one to three intervals, and values by burst and interval."""
    rng = np.random.default_rng(start)
    counts = rng.integers(1, 4, num)
    burst = np.repeat(np.arange(num), counts)
    moments = {"log10_E_peak": (2.1, 0.5), "log10_flux": (-5.9, 1.0), "alpha": (-0.9, 0.4)}
    values = {name: rng.normal(*pair, len(burst)) for name, pair in moments.items()}
    log_density = sum(stats.norm.logpdf(values[name], *pair) for name, pair in moments.items())
    found = rng.random(num) < np.bincount(burst, found_intervals(values["log10_flux"], values["alpha"])) / counts
    density = np.exp(np.bincount(burst, log_density))
    return {"burst": burst, **values, "density": density[burst], "found": found[burst].astype(int)}


def found_intervals(flux, alpha):
    """Probabilities of intervals, whose mean is that of their burst."""
    return stats.norm.cdf((flux + 5.6 + 0.5 * (alpha + 0.9)) / 0.3)


@pytest.mark.long
def test_injections_of_whole_bursts(bound):
    """Against sums over multivariate normal densities, with derivatives."""
    table = injected(400)
    model = GolenetskiiCounts(selection=Injections(table), **OPTIONS)
    of_burst = np.asarray(bound.folded.of_burst)
    num, counts = of_burst.sum(axis=0), np.bincount(table["burst"])
    stretch, area = (
        np.asarray(row) @ of_burst / num for row in (bound.folded.log10_stretch, bound.folded.log10_sphere_area)
    )
    hidden = {"_log10_E_peak": np.full(6, 2.6), "_alpha": np.full(6, -0.9), "_log10_flux": bound.center[:, -1]}

    def expected(p):
        total = 0.0
        for J, shift, sphere in zip(num.astype(int), stretch, area, strict=True):
            weights = []
            for i in np.flatnonzero(counts == J):
                row = table["burst"] == i
                peak = table["log10_E_peak"][row] + shift
                X = np.stack([np.ones(J), peak - 2.0], axis=-1)
                covariance = X @ np.diag([p["log10_N_std"] ** 2, p["gamma_std"] ** 2]) @ X.T
                covariance += p["intrinsic_scatter"] ** 2 * np.eye(J)
                mean = X @ np.array([p["log10_N_mean"], p["gamma_mean"]]) - sphere
                density = stats.multivariate_normal.pdf(table["log10_flux"][row], mean, covariance)
                density *= stats.norm.pdf(peak, p["log10_E_peak_mean"], p["log10_E_peak_std"]).prod()
                density *= stats.norm.pdf(table["alpha"][row], p["alpha_mean"], p["alpha_std"]).prod()
                weights.append(density * table["found"][row][0] / table["density"][row][0])
            total -= np.log(np.mean(weights))
        return total

    @jax.jit
    @jax.value_and_grad
    def change(p):
        parts = []
        for each in (model, GolenetskiiCounts(**OPTIONS)):
            parts.append(log_density(handlers.block(each, hide=["counts"]), (bound,), {}, p | hidden)[0])
        return parts[0] - parts[1]

    with pytest.MonkeyPatch.context() as patched:  # fewer injections than needed would reduce the selection
        patched.setattr("hbm_jax.distributions.selection.ENOUGH", 1.0 + 1e-6)
        found, gradient = change({name: np.float64(value) for name, value in HYPER.items()})
    assert float(found) == pytest.approx(expected(HYPER), abs=1e-8)
    for name in ("gamma_std", "log10_N_mean", "log10_E_peak_std", "alpha_mean"):
        slope = (expected(HYPER | {name: HYPER[name] + 1e-5}) - expected(HYPER | {name: HYPER[name] - 1e-5})) / 2e-5
        assert float(gradient[name]) == pytest.approx(slope, rel=1e-6, abs=1e-6), name


@pytest.mark.long
def test_simulated_bursts_are_found_injections(bound, monte_carlo):
    num, p = 400, HYPER | {"intrinsic_scatter": 0.5, "alpha_std": 0.3, "log10_E_peak_std": 0.4}  # near the injections
    model = GolenetskiiCounts(selection=Injections(injected(60_000, seed(4))), **OPTIONS)
    ours = draws(model, bound, p, num, seed(1))
    everything = draws(GolenetskiiCounts(**OPTIONS), bound, p, 8 * num, seed(2))
    rng = np.random.default_rng(seed(3))
    for burst, members in enumerate(np.asarray(bound.folded.of_burst).T > 0):
        if members.sum() > 2:
            continue  # too few effective injections, some 26, to compare distributions
        shares = found_intervals(everything["log10_flux"][:, members], everything["alpha"][:, members])
        kept = rng.random(8 * num) < shares.mean(axis=1)
        assert 0.02 < kept.mean() < 0.9
        for name, values in ours.items():
            columns = [burst] if name in ("gamma", "log10_N") else members
            drawn, all_of_one = (a[:, columns].max(axis=1) for a in (values, everything[name]))
            result = stats.ks_2samp(drawn, all_of_one[kept])
            monte_carlo.p_value(result.pvalue, name=f"{name} of burst {burst}")


@pytest.mark.long
def test_simulated_bursts_are_the_detected_ones(bound, monte_carlo):
    num, p = 400, AT_LIMIT
    in_burst = np.asarray(bound.folded.of_burst).T > 0
    ours = draws(SELECTED, bound, p, num, seed(1))
    everything = draws(GolenetskiiCounts(**OPTIONS), bound, p, 8 * num, seed(2))
    rng = np.random.default_rng(seed(3))
    for burst, members in enumerate(in_burst):
        flux = everything["log10_flux"][:, members]
        kept = (rng.normal(size=flux.shape) < (flux - p[LIMIT]) / p[WIDTH]).any(axis=1)
        assert 0.02 < kept.mean() < 0.9
        for name, values in ours.items():
            of_line = name in ("gamma", "log10_N")
            drawn_one, all_of_one = (
                a[:, burst] if of_line else a[:, members].max(1) for a in (values, everything[name])
            )
            result = stats.ks_2samp(drawn_one, all_of_one[kept])
            monte_carlo.p_value(result.pvalue, name=f"{name} of burst {burst}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "log10_peak_flux > -6"}, "expects a width.*a step of their density cannot be sampled"),
        ({"selection": "log10_flux > -6 +- 0.1"}, "expected one limit of the brightest interval"),
        ({"selection": "log10_peak_flux > -6 +- 0.1", "latents": "sampled"}, "expects latents='marginal'"),
        ({"selection": "log10_peak_flux > -6 +- 0.1", "scatter": False}, "expects scatter=True; found False"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        GolenetskiiCounts(**options)


def test_options_are_stored_and_described():
    assert GolenetskiiCounts(**SELECTED.to_config()).to_config() == SELECTED.to_config()
    assert {LIMIT, WIDTH} <= SELECTED.all_priors.keys()
    assert "selected by log10_peak_flux > Normal" in SELECTED.description
