"""The Golenetskii relation at catalogue level: densities against integrals, recovery, redshifts, calibration."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro import handlers
from scipy import optimize, stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology
from hbm_jax.data import BurstPopulation, Bursts, DataError, load_konus
from hbm_jax.models import Golenetskii
from hbm_jax.spectra.model.energetics import log10_sphere_area

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


def sphere(z, **universe):
    """Logarithm of 4 pi d_L^2, which has tests of its own."""
    cosmology = Cosmology.flat(**({"H0": 70.0, "Om0": 0.3} | universe))
    return np.asarray(jax.jit(log10_sphere_area)(np.asarray(z), cosmology))


def test_the_density_is_that_of_integrals_over_what_was_integrated_out():
    """One burst of two intervals: gamma given, log10_N, mean peak energy and both true peaks by quadrature."""
    rows = {
        "burst": ["a", "a"], "z": [1.3, 1.3], "log10_E_peak": [2.4, 2.0], "log10_flux": [-5.2, -5.9],
        "sigma_log10_E_peak": [0.1, 0.15], "sigma_log10_flux": [0.1, 0.12], "correlation": [0.4, -0.2],
    }  # fmt: skip
    data = Bursts.from_columns(rows)
    sites = compiled_sites(Golenetskii(priors=TRUE), data)
    away, shift = sphere([1.3])[0], np.log10(2.3)
    errors = np.array([[[0.01, 0.4 * 0.01], [0.4 * 0.01, 0.01]], [[0.0225, -0.2 * 0.018], [-0.2 * 0.018, 0.0144]]])
    nodes, weights = np.polynomial.legendre.leggauss(72)
    N, middle = (52.2 + 2.0 * nodes)[:, None, None], (2.6 + 1.5 * nodes)[:, None]
    for z_score in (0.0, 1.2):
        found = sites({"_gamma": np.full(1, z_score)})
        gamma = float(found.values["gamma"][0])
        x = middle + np.linspace(-1.5, 1.5, 301)  # true peaks at rest, by a fine sum
        density = stats.norm.pdf(N[..., 0], 52.2, 0.4) * stats.norm.pdf(middle[:, 0], 2.6, 0.3)
        for j in range(2):
            precision = np.linalg.inv(errors[j] + np.diag([0.0, 0.01]))
            a = rows["log10_E_peak"][j] - (x - shift)
            b = rows["log10_flux"][j] - (N - away + gamma * (x - 2.0))
            square = precision[0, 0] * a * a + 2.0 * precision[0, 1] * a * b + precision[1, 1] * b * b
            normal = np.exp(-0.5 * square) * np.sqrt(np.linalg.det(precision)) / (2.0 * np.pi)
            density = density * (normal * stats.norm.pdf(x, middle, 0.25)).sum(axis=-1) * 0.01
        total = 2.0 * 1.5 * weights @ density @ weights
        assert float(found.log_probs["observed"].sum()) == pytest.approx(np.log(total), abs=1e-5)
        # The slope, in whatever coordinates.
        step = 1e-4
        more = sites({"_gamma": np.full(1, z_score + step)})
        slope = (float(more.values["gamma"][0]) - gamma) / step
        expected = stats.norm.logpdf(gamma, 1.5, 0.25) + np.log(slope)
        assert float(found.log_probs["_gamma"].sum()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"latents": "sampled"}, marks=pytest.mark.long, id="independent"),
        pytest.param({"latents": "sampled", "correlated": True}, id="correlated"),
    ],
)
def test_the_density_with_sampled_latents_is_a_plain_sum(sample, options):
    """Every latent at some value: populations of bursts, peaks within bursts, and what is measured."""
    model = Golenetskii(**options, priors=TRUE | ({"correlation": 0.6} if "correlated" in options else {}))
    sites = compiled_sites(model, sample)
    for number in range(3):
        found = sites(number=number)
        v = found.values
        gamma, N, mean = v["gamma"], v["log10_N"], v["log10_E_peak_burst"]
        peak = v["log10_E_peak"]
        location, spread = 52.2, 0.4
        if "correlated" in options:
            location, spread = 52.2 + 0.6 * 0.4 * (gamma - 1.5) / 0.25, 0.4 * 0.8
        expected = stats.norm.logpdf(gamma, 1.5, 0.25).sum() + stats.norm.logpdf(N, location, spread).sum()
        expected += stats.norm.logpdf(mean, 2.6, 0.3).sum()
        away, shift = sphere(sample.z), np.log10(1.0 + sample.z)
        for i, j in np.argwhere(sample.used):
            expected += stats.norm.logpdf(peak[i, j], mean[i], 0.25)
            line = N[i] - away[i] + gamma[i] * (peak[i, j] - 2.0)
            xx, xy, yy = sample.errors[i, j]
            measured = sample.log10_E_peak[i, j], sample.log10_flux[i, j]
            covariance = [[xx, xy], [xy, yy + 0.1**2]]
            expected += stats.multivariate_normal.logpdf(measured, [peak[i, j] - shift[i], line], covariance)
        # Each latent is its site's value times its width, and moved: widths by steps of the sites.
        names = ["_gamma", "_log10_E_peak_burst", "_log10_luminosity", "_log10_E_peak"]
        given = {name: v[name] for name in names}
        change = 0.0
        for name, latent in zip(names, ("gamma", "log10_E_peak_burst", "log10_N", "log10_E_peak"), strict=True):
            moved = sites(given | {name: given[name] + 1.0}, number).values[latent]
            slope = np.log(moved - v[latent])
            change += slope[sample.used].sum() if slope.ndim == 2 else slope.sum()
        padding = found.log_probs["_log10_E_peak"][~sample.used].sum()
        assert found.log_density - padding == pytest.approx(expected + change, rel=1e-9)


def test_complete_pooling_is_a_line_through_all_measured_values():
    """Yonetoku on Konus-Wind; the published slope of luminosity against peak energy at rest is between 1 and 2."""
    data = load_konus("yonetoku")
    model = Golenetskii(pooling="complete", H0=67.3, Om0=0.315)
    x = data.log10_E_peak[:, 0] + np.log10(1 + data.z) - 2.0
    y = data.log10_flux[:, 0] + sphere(data.z, H0=67.3, Om0=0.315) - 52.0
    sx, sy = data.errors[:, 0, 0], data.errors[:, 0, 2]

    def log_likelihood(slope, line, middle, width, scatter):
        xx, xy = width**2 + sx, slope * width**2
        yy = slope**2 * width**2 + scatter**2 + sy
        det = xx * yy - xy**2
        a, b = x - middle, y - line - slope * middle
        return -np.sum(np.log(2.0 * np.pi) + 0.5 * np.log(det) + 0.5 * (yy * a * a - 2 * xy * a * b + xx * b * b) / det)

    sites = compiled_sites(model, data)
    names = ("gamma", "log10_N", "log10_E_peak_mean", "log10_E_peak_std", "intrinsic_scatter")
    for point in ((1.5, 0.1, 0.6, 0.4, 0.5), (0.7, -0.4, 0.9, 0.2, 0.3)):
        slope, line, middle, width, scatter = point
        found = sites(dict(zip(names, (slope, 52.0 + line, 2.0 + middle, width, scatter), strict=True)))
        assert float(found.log_probs["observed"].sum()) == pytest.approx(log_likelihood(*point), rel=1e-9)
    options = {"method": "Nelder-Mead", "options": {"maxiter": 4000}}
    best = optimize.minimize(lambda p: -log_likelihood(*p), [1.5, 0.0, 0.6, 0.4, 0.5], **options).x
    assert 1.0 < best[0] < 2.0


def test_bursts_of_one_interval_have_one_line_and_the_model_says_so():
    data = load_konus("yonetoku")
    found, expected = (compiled_sites(Golenetskii(**options), data)() for options in ({}, {"pooling": "complete"}))
    assert found.values.keys() == expected.values.keys()
    assert found.log_density == pytest.approx(expected.log_density, rel=1e-14)
    (caution,) = Golenetskii().cautions(data)
    assert caution.startswith(
        f"The sample is {len(data)} bursts of one interval each, so that one line, with slope gamma"
    )
    assert Golenetskii(pooling="complete").cautions(data) == []
    for options, option in (
        ({"priors": {"gamma_std": 0.2}}, "a prior of gamma_std"),
        ({"correlated": True}, "correlated=True"),
    ):
        with pytest.raises(
            DataError, match=f"{option} expects bursts with several intervals; found {len(data)} bursts"
        ):
            Golenetskii(**options).bind(data)


def test_of_fluences_the_relation_is_one_of_energies():
    """A fluence is that of a luminosity times the duration as observed, which is longer by 1 + z."""
    data = load_konus("amati")
    assert data.quantity == "fluence"
    values = {
        "gamma": 1.5,
        "log10_N": 52.0,
        "log10_E_peak_mean": 2.5,
        "log10_E_peak_std": 0.4,
        "intrinsic_scatter": 0.3,
    }
    found = compiled_sites(Golenetskii(pooling="complete"), data)(values).log_probs["observed"][:, 0]
    shift = np.log10(1.0 + data.z)
    mean = np.stack([2.5 - shift, 52.0 + 1.5 * 0.5 - sphere(data.z) + shift], axis=1)
    away = data.observed[:, 0] - mean
    assert not data.has_band.any()  # fluxes of all energies, which need no correction
    xx, xy, yy = data.errors[:, 0].T
    for i in range(len(data)):
        covariance = 0.16 * np.array([[1.0, 1.5], [1.5, 2.25]]) + [[xx[i], xy[i]], [xy[i], yy[i] + 0.09]]
        expected = stats.multivariate_normal.logpdf(away[i], np.zeros(2), covariance)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)


def test_truncation_divides_by_the_probability_of_every_interval(sample):
    limit = np.full(len(sample), -9.0)
    data = Bursts.from_dict(sample.to_dict() | {"log10_flux_limit": limit})
    model = Golenetskii(truncated=True, priors=TRUE)
    same = Golenetskii(selection="log10_flux > -9", priors=TRUE)
    smooth = Golenetskii(selection="log10_flux > Normal(-9, 1) +- 0.5", priors=TRUE | {"log10_flux_lim": -9.0})
    assert "log10_flux_lim_width" in smooth.all_priors

    def distribution(model):
        fn = handlers.trace(handlers.seed(model, 1)).get_trace(data)["observed"]["fn"]
        while not hasattr(fn, "intercept"):
            fn = fn.base_dist
        return fn

    @jax.jit
    def relation():
        fn = distribution(model)
        whole = type(fn)(fn.x_loc, fn.x_scale, fn.intercept, fn.slope, fn.scatter, fn.errors)
        parts = {name: getattr(fn, name) for name in ("x_loc", "x_scale", "intercept", "slope", "scatter")}
        others = [distribution(other).log_prob(data.observed) for other in (same, smooth)]
        return fn.log_prob(data.observed), whole.log_prob(data.observed), parts, others

    found, whole, r, (again, smoothly) = jax.device_get(relation())
    mean = r["intercept"] + r["slope"] * r["x_loc"]
    scale = np.sqrt(r["slope"] ** 2 * r["x_scale"] ** 2 + r["scatter"] ** 2 + data.errors[..., 2])
    np.testing.assert_allclose(found, whole - stats.norm.logsf(-9.0, mean, scale), rtol=1e-10)
    np.testing.assert_allclose(again, found, rtol=1e-14)
    efficiency = stats.norm.logcdf((data.log10_flux + 9.0) / 0.5)
    expected = whole + efficiency - stats.norm.logsf(-9.0, mean, np.hypot(scale, 0.5))
    np.testing.assert_allclose(smoothly[data.used], expected[data.used], rtol=1e-10)
    with pytest.raises(DataError, match=r"expected no flux below the limit; found \d+, the first in"):
        Golenetskii(selection="log10_flux > -1").bind(data)
    with pytest.raises(DataError, match="expected bursts with a log10_flux_limit; found none"):
        model(sample)


@pytest.mark.long
def test_bursts_without_a_limit_have_the_density_without_selection(sample):
    """Values and derivatives; the limit of the others is far above minus infinity."""
    limit = np.where(np.arange(len(sample)) % 2, -9.0, -np.inf)
    data = Bursts.from_dict(sample.to_dict() | {"log10_flux_limit": limit})
    options = {"pooling": "complete"}

    def densities(model, data):
        bound = model.bind(data)

        def total(gamma):
            program = handlers.substitute(handlers.seed(model, 1), {"gamma": gamma})
            return handlers.trace(program).get_trace(bound)["observed"]["fn"].log_prob(bound.observed).sum(axis=1)

        return jax.jit(lambda gamma: (total(gamma), jax.jacfwd(total)(gamma), jax.jacrev(total)(gamma)))(1.4)

    selected, whole = densities(Golenetskii(truncated=True, **options), data), densities(Golenetskii(**options), sample)
    for found, expected in zip(selected, whole, strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[~np.isfinite(limit)], expected[~np.isfinite(limit)], rtol=1e-12)
        assert (np.abs(found - expected)[np.isfinite(limit)] > 1e-6).all()


@pytest.mark.long
def test_a_short_fit_has_the_latents_of_all_bursts(sample):
    options = {"num_warmup": 150, "num_samples": 60, "num_chains": 2, "progress": False}
    fit = hbm.sample(Golenetskii(), sample, seed=seed(1), **options)
    assert set(fit.posterior) == {*TRUE, "gamma"}
    assert fit.posterior["gamma"].dims == ("chain", "draw", "burst")
    latents = hbm.inference.latents(fit, num_draws=60)
    assert latents["log10_N"].dims == ("sample", "burst")
    # True values are near the measured ones; those of bursts are lines through them.
    shift = np.log10(1.0 + sample.z)[:, None]
    peaks, flux = latents["log10_E_peak"].to_numpy(), latents["log10_flux"].to_numpy()
    xx, _, yy = (sample.errors[..., k] for k in range(3))
    used = sample.used
    assert (np.abs(peaks - shift - sample.log10_E_peak)[:, used] < 7.0 * np.sqrt(xx[used])).all()
    assert (np.abs(flux - sample.log10_flux)[:, used] < 7.0 * np.sqrt(yy[used])).all()
    line = latents["log10_N"].to_numpy()[..., None] + latents["gamma"].to_numpy()[..., None] * (peaks - 2.0)
    scatter = flux + sphere(sample.z)[:, None] - line
    inside = fit.posterior["intrinsic_scatter"].to_numpy().max()
    assert np.abs(scatter[:, used]).max() < 6.0 * inside


@pytest.mark.long
def test_what_goes_in_comes_out():
    population = BurstPopulation(gamma=(1.5, 0.25), log10_N=(52.2, 0.4), num_intervals=15)
    data, truth = population.draw(30, seed=6)
    marginal = hbm.sample(Golenetskii(), data, seed=seed(1), progress=False)
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
def test_sampled_latents_have_the_same_posterior(monte_carlo):
    data = BurstPopulation(num_intervals=8, gamma=(1.5, 0.4)).draw(10, seed=3).data
    marginal, sampled = (
        hbm.sample(Golenetskii(latents=form), data, seed=seed(2), progress=False) for form in ("marginal", "sampled")
    )
    for name in TRUE:
        one, other = (fit.posterior[name].to_numpy() for fit in (marginal, sampled))
        monte_carlo.same_mean(one, other, name=name, min_ess=250)
        monte_carlo.same_std(one, other, name=name, min_ess=150)


@pytest.mark.long
def test_redshifts_are_told_poorly_and_honestly():
    """Held-out redshifts: the truth is covered, and the posterior is nearly as wide as the prior."""
    data, truth = BurstPopulation(num_intervals=8, unknown=6).draw(20, seed=5)
    fit = hbm.sample(Golenetskii(), data, seed=seed(3), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    z = np.log(fit.tree.posterior.to_dataset()["z"].to_numpy().reshape(-1, 6))
    assert list(fit.tree.posterior["z"].dims) == ["chain", "draw", "unknown_redshift"]
    inside = (np.quantile(z, 0.005, axis=0) < np.log(truth["z"][-6:])) & (
        np.log(truth["z"][-6:]) < np.quantile(z, 0.995, axis=0)
    )
    assert inside.all()
    assert (z.std(axis=0) > 0.25).all()
    assert (z.std(axis=0) < 0.65).all()


@pytest.mark.long
def test_a_free_cosmology_and_uncertain_redshifts(sample):
    given = sample.to_dict()
    given["sigma_z"] = np.where(np.arange(len(sample)) == 1, 0.1, 0.0)
    given["z"] = np.where(np.arange(len(sample)) == 3, np.nan, sample.z)
    data = Bursts.from_dict(given)
    model = Golenetskii(cosmology="lcdm", priors={"H0": "Normal(70, 5)"})
    sites = compiled_sites(model, data)
    first = sites(number=3)
    assert {"Om0", "H0", "z_measured", "z"} <= set(first.values)
    assert model.coords(data)["uncertain_redshift"] == [data.name[1]]
    assert model.coords(data)["unknown_redshift"] == [data.name[3]]
    values = {name: first.values[name] for name in first.log_probs if name != "observed"}

    def of_data(**changes):
        return float(sites(values | changes).log_probs["observed"].sum())

    # H0 shifts every luminosity by the same: with log10_N_mean it leaves the density of the data as it is.
    expected = of_data(H0=70.0, log10_N_mean=52.0)
    assert of_data(H0=35.0, log10_N_mean=52.0 + 2 * np.log10(2.0)) == pytest.approx(expected, rel=1e-9)
    assert of_data(H0=35.0, log10_N_mean=52.0) != pytest.approx(expected, rel=1e-3)
    # With the redshifts and the universe of numbers it is the density of a model that is given these.
    known = Bursts.from_dict(given | {"sigma_z": np.zeros(len(sample)), "z": sample.z})
    fixed = compiled_sites(Golenetskii(H0=72.0, Om0=float(first.values["Om0"])), known)
    others = {name: value for name, value in values.items() if name not in ("H0", "_cosmology", "z", "z_measured")}
    expected = float(fixed(others).log_probs["observed"].sum())
    found = of_data(H0=72.0, z=sample.z[3:4], z_measured=sample.z[1:2])
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.long
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
        ({"pooling": "none"}, "Unknown pooling of Golenetskii 'none'"),
        ({"correlated": True, "pooling": "complete"}, "correlated=True expects pooling='partial'"),
        ({"truncated": True, "latents": "sampled"}, "truncated=True expects latents='marginal'"),
        ({"truncated": True, "selection": "log10_flux > -7"}, "truncated=True expects no other selection"),
        ({"selection": "flux > -7"}, "expected one limit such as 'log10_flux > -6.5'"),
        ({"cosmology": "lcmd"}, "Unknown cosmology 'lcmd'.*did you mean 'lcdm'"),
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
