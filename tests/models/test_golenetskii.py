"""The Golenetskii relation at catalogue level: densities against integrals, recovery, redshifts, calibration."""

import jax
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology
from hbm_jax.data import BurstPopulation, Bursts, DataError, load_konus
from hbm_jax.models import Golenetskii
from hbm_jax.spectra.energetics import log10_sphere

TRUE = {
    "gamma_mean": 1.5,
    "gamma_std": 0.25,
    "log10_N_mean": 52.2,
    "log10_N_std": 0.4,
    "log10_E_peak_mean": 2.6,
    "log10_E_peak_std": 0.3,
    "log10_E_peak_scatter": 0.25,
    "intrinsic_scatter": 0.1,
}


@pytest.fixture(scope="module")
def sample():
    return BurstPopulation(num_intervals=[3, 6], gamma=(1.5, 0.25), log10_N=(52.2, 0.4)).draw(5, seed=8).data


def at(model, data, values):
    """Log density of a program at values of its deterministic names, sampled through its own forms."""
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(data)
    sites = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    assert set(sites) <= set(values), set(sites) - set(values)
    return float(log_density(model, (data,), {}, values)[0]), trace


def test_the_density_is_that_of_integrals_over_what_was_integrated_out():
    """One burst of two intervals: gamma given, log10_N, mean peak energy and both true peaks by quadrature."""
    rows = {
        "burst": ["a", "a"], "z": [1.3, 1.3], "log10_E_peak": [2.4, 2.0], "log10_flux": [-5.2, -5.9],
        "sigma_log10_E_peak": [0.1, 0.15], "sigma_log10_flux": [0.1, 0.12], "correlation": [0.4, -0.2],
    }  # fmt: skip
    data = Bursts.from_columns(rows)
    model = Golenetskii(priors=TRUE)
    _, trace = at(model, data, {"_gamma": np.zeros(1)})
    given = {"_gamma": trace["_gamma"]["value"]}
    gamma = float(trace["gamma"]["value"][0])
    prior = float(trace["_gamma"]["fn"].log_prob(given["_gamma"])[0])
    found = at(model, data, given)[0] - prior
    sphere = float(log10_sphere(1.3, Cosmology.flat(H0=70.0, Om0=0.3)))
    shift = np.log10(2.3)
    errors = [[[0.01, 0.4 * 0.01], [0.4 * 0.01, 0.01]], [[0.0225, -0.2 * 0.018], [-0.2 * 0.018, 0.0144]]]

    def point(j, middle, log10_N):
        """True peak by a fine sum."""
        x = np.linspace(middle - 1.5, middle + 1.5, 301)  # at rest
        mean = np.stack([x - shift, log10_N - sphere + gamma * (x - 2.0)], axis=-1)
        noise = np.array(errors[j]) + np.diag([0.0, 0.01])
        value = np.array([rows["log10_E_peak"][j], rows["log10_flux"][j]])
        density = stats.multivariate_normal(np.zeros(2), noise).pdf(value - mean)
        return np.sum(density * stats.norm.pdf(x, middle, 0.25)) * (x[1] - x[0])

    def inner(log10_N, middle):
        weight = stats.norm.pdf(log10_N, 52.2, 0.4) * stats.norm.pdf(middle, 2.6, 0.3)
        return weight * point(0, middle, log10_N) * point(1, middle, log10_N)

    nodes, weights = np.polynomial.legendre.leggauss(72)
    N, m = 52.2 + 2.0 * nodes, 2.6 + 1.5 * nodes
    total = sum(2.0 * wn * 1.5 * wm * inner(a, b) for a, wn in zip(N, weights, strict=True)
                for b, wm in zip(m, weights, strict=True))  # fmt: skip
    assert found == pytest.approx(np.log(total), abs=1e-5)


def test_truncation_divides_by_the_probability_of_every_interval(sample):
    limit = np.full(len(sample), -9.0)
    data = Bursts.from_dict(sample.to_dict() | {"log10_flux_limit": limit})
    model = Golenetskii(truncated=True, priors=TRUE)
    trace = handlers.trace(handlers.seed(model, 1)).get_trace(data)
    relation = trace["observed"]["fn"]
    while not hasattr(relation, "intercept"):
        relation = relation.base_dist
    mean = relation.intercept + relation.slope * relation.x_loc
    scale = np.sqrt(relation.slope**2 * relation.x_scale**2 + relation.scatter**2 + np.asarray(relation.errors)[..., 2])
    without = type(relation)(
        relation.x_loc, relation.x_scale, relation.intercept, relation.slope, relation.scatter, relation.errors
    )
    expected = without.log_prob(data.observed) - stats.norm.logsf(-9.0, np.asarray(mean), np.asarray(scale))
    np.testing.assert_allclose(relation.log_prob(data.observed), expected, rtol=1e-10)
    with pytest.raises(DataError, match="expected bursts with a log10_flux_limit; found none"):
        handlers.trace(handlers.seed(model, 1)).get_trace(sample)


def test_what_goes_in_comes_out():
    population = BurstPopulation(gamma=(1.5, 0.25), log10_N=(52.2, 0.4), num_intervals=15)
    data, truth = population.draw(30, seed=6)
    marginal = hbm.sample(Golenetskii(), data, seed=1, progress=False)
    assert marginal.verdict.usable, str(marginal.verdict)
    draws = marginal.tree.posterior.to_dataset()
    for name in TRUE:
        values = draws[name].to_numpy()
        assert abs(values.mean() - truth[name]) < 3.5 * values.std(), name
    pull = (draws["gamma"].mean(("chain", "draw")) - truth["gamma"]) / draws["gamma"].std(("chain", "draw"))
    assert 0.6 < float(np.sqrt((pull**2).mean())) < 1.5
    # What was integrated out, drawn back.
    latents = hbm.inference.latents(marginal, num_draws=200)
    pull = (latents["log10_N"].mean("sample") - truth["log10_N"]) / latents["log10_N"].std("sample")
    assert 0.6 < float(np.sqrt((pull**2).mean())) < 1.5
    peaks = latents["log10_E_peak"]
    pull = (peaks.mean("sample") - truth["log10_E_peak"]) / peaks.std("sample")
    assert 0.9 < float(np.sqrt((pull**2).mean())) < 1.1


@pytest.mark.long
def test_sampled_latents_have_the_same_posterior():
    data = BurstPopulation(num_intervals=8, gamma=(1.5, 0.4)).draw(10, seed=3).data
    fits = [hbm.sample(Golenetskii(latents=form), data, seed=2, progress=False) for form in ("marginal", "sampled")]
    a, b = (fit.tree.posterior.to_dataset() for fit in fits)
    assert all(fit.verdict.usable for fit in fits), [str(fit.verdict) for fit in fits]
    for name in TRUE:
        error = np.hypot(*(fit.verdict.table.loc[name, "mcse_mean"] for fit in fits))
        assert abs(float(a[name].mean() - b[name].mean())) < 5 * error, name
        assert float(a[name].std() / b[name].std()) == pytest.approx(1.0, abs=0.15), name


def test_one_line_for_all_is_what_an_integral_over_it_says():
    """Yonetoku on Konus-Wind: slope and scatter against a fit of SciPy's, flat priors nearly."""
    data = load_konus("yonetoku")
    fit = hbm.sample(Golenetskii(pooling="complete", H0=67.3, Om0=0.315), data, seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    away = np.asarray(log10_sphere(data.z, Cosmology.flat(H0=67.3, Om0=0.315)))
    x, y = data.log10_E_peak[:, 0] + np.log10(1 + data.z) - 2.0, data.log10_flux[:, 0] + away - 52.0
    sx, sy = data.errors[:, 0, 0], data.errors[:, 0, 2]

    def minus_log(parameters):
        slope, line, middle, width, scatter = parameters
        xx, xy = width**2 + sx, slope * width**2
        yy = slope**2 * width**2 + scatter**2 + sy
        det = xx * yy - xy**2
        a, b = x - middle, y - line - slope * middle
        return 0.5 * np.sum(np.log(det) + (yy * a * a - 2 * xy * a * b + xx * b * b) / det)

    from scipy.optimize import minimize

    best = minimize(minus_log, [1.5, 0.0, 0.6, 0.4, 0.5], method="Nelder-Mead", options={"maxiter": 4000}).x
    draws = fit.tree.posterior.to_dataset()
    for name, value in (("gamma", best[0]), ("log10_N", 52.0 + best[1]), ("intrinsic_scatter", abs(best[4]))):
        assert abs(float(draws[name].mean()) - value) < 0.35 * float(draws[name].std()), name
    # The published slope, Tsvetkova et al. 2017: luminosity against peak energy at rest, between 1 and 2.
    assert 1.0 < best[0] < 2.0


@pytest.mark.long
def test_redshifts_are_told_poorly_and_honestly():
    """Held-out redshifts: the truth is covered, and the posterior is nearly as wide as the prior."""
    data, truth = BurstPopulation(num_intervals=8, unknown=6).draw(20, seed=5)
    fit = hbm.sample(Golenetskii(), data, seed=3, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    z = np.log(fit.tree.posterior.to_dataset()["z"].to_numpy().reshape(-1, 6))
    assert list(fit.tree.posterior["z"].dims) == ["chain", "draw", "unknown_redshift"]
    inside = (np.quantile(z, 0.005, axis=0) < np.log(truth["z"][-6:])) & (
        np.log(truth["z"][-6:]) < np.quantile(z, 0.995, axis=0)
    )
    assert inside.all()
    assert (z.std(axis=0) > 0.25).all()
    assert (z.std(axis=0) < 0.65).all()


def test_a_free_cosmology_and_uncertain_redshifts(sample):
    given = sample.to_dict()
    given["sigma_z"] = np.where(np.arange(len(sample)) == 1, 0.1, 0.0)
    data = Bursts.from_dict(given)
    model = Golenetskii(cosmology="lcdm", priors={"H0": "Normal(70, 5)"})
    trace = handlers.trace(handlers.seed(model, 3)).get_trace(data)
    assert {"Om0", "H0", "z_measured"} <= set(trace)
    assert model.coords(data)["uncertain_redshift"] == [data.name[1]]
    # H0 shifts every luminosity by the same: with log10_N_mean it leaves the density of the data as it is.
    values = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}

    def of_data(H0, log10_N_mean):
        changed = values | {"H0": H0, "log10_N_mean": log10_N_mean}
        seeded = handlers.seed(handlers.substitute(model, data=changed), 0)
        site = handlers.trace(seeded).get_trace(data)["observed"]
        return float(site["fn"].log_prob(site["value"]).sum())

    assert of_data(70.0, 52.0) == pytest.approx(of_data(35.0, 52.0 + 2 * np.log10(2.0)), rel=1e-9)
    assert of_data(70.0, 52.0) != pytest.approx(of_data(35.0, 52.0), rel=1e-3)


def test_programs_draw_what_they_score(sample):
    limited = Bursts.from_dict(sample.to_dict() | {"log10_flux_limit": np.full(len(sample), -7.0)})
    for model, data in ((Golenetskii(truncated=True), limited), (Golenetskii(correlated=True), sample)):
        drawn, truth = model.simulate(jax.random.key(2), data, TRUE)
        assert (drawn.log10_flux[drawn.used] >= drawn.log10_flux_limit[np.nonzero(drawn.used)[0]]).all()
        assert truth["gamma"].shape == (len(data),)
        assert {"log10_N", "log10_E_peak_burst"} <= set(truth)
    assert Golenetskii(**Golenetskii(correlated=True, cosmology="wcdm").to_config()).all_priors.keys() == (
        Golenetskii(correlated=True, cosmology="wcdm").all_priors.keys()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "none"}, "Unknown pooling 'none'"),
        ({"correlated": True, "pooling": "complete"}, "correlated=True expects pooling='partial'"),
        ({"truncated": True, "latents": "sampled"}, "truncated=True expects latents='marginal'"),
        ({"cosmology": "lcmd"}, "Unknown cosmology 'lcmd'.*Did you mean 'lcdm'"),
        ({"band": (10.0, 1.0)}, "band: expected two positive energies"),
        ({"priors": {"gama_mean": 1.0}}, "Golenetskii has no parameter 'gama_mean'.*gamma_mean"),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        Golenetskii(**options)


@pytest.mark.slow
def test_posteriors_are_calibrated_with_a_limit_and_unknown_redshifts():
    population = BurstPopulation(num_intervals=[4, 6], log10_flux_limit=-7.0, unknown=2, sigma_log10_flux=(0.05, 0.1))
    data = population.draw(8, seed=2).data
    priors = {
        "gamma_mean": "Normal(1.5, 0.2)",
        "gamma_std": "HalfNormal(0.3)",
        "log10_N_mean": "Normal(52, 0.3)",
        "log10_N_std": "HalfNormal(0.4)",
        "log10_E_peak_mean": "Normal(2.6, 0.2)",
        "log10_E_peak_std": "HalfNormal(0.3)",
        "log10_E_peak_scatter": "HalfNormal(0.3)",
        "intrinsic_scatter": "HalfNormal(0.2)",
    }
    model = Golenetskii(truncated=True, priors=priors)
    result = hbm.calibrate(model, data, num_replicates=512, seed=7, progress=False)
    print(result)
    assert result.calibrated, str(result)
