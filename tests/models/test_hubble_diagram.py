"""The model of distance-level samples: against dense algebra and astropy, on a grid, in a batch; what it refuses."""

import functools

import astropy.cosmology
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import hbm_jax as hbm
from hbm_jax.data import DataError, DistanceModuli, desi2024_bao, planck2018_distance_priors
from hbm_jax.inference.target import build_target
from hbm_jax.models import Expansion, HubbleDiagram, Supernova

BINNED = ("jla", "union3", "pantheon2018")
# Grid of (Om0, w0) for each model of the published sets; wide enough that no edge matters.
GRIDS = {
    "lcdm": (np.linspace(0.0005, 0.9995, 1000), np.array([-1.0])),
    "wcdm": (np.linspace(0.005, 0.995, 100), np.linspace(-2.985, -0.015, 100)),
}


def made_up(num=40, calibrators=0, seed=2):
    rng = np.random.default_rng(seed)
    z = np.sort(np.exp(rng.uniform(np.log(0.02), np.log(1.5), num)))
    modes = 0.03 * rng.normal(size=(num, 4))
    columns = {
        "z_cmb": z, "z_hel": z * (1 + 1e-3 * rng.normal(size=num)), "survey": ["a", "b", "b", "c"] * (num // 4),
        "covariance": modes @ modes.T + np.diag(rng.uniform(0.08, 0.2, num) ** 2),
    }  # fmt: skip
    mu = astropy.cosmology.FlatLambdaCDM(70.0, 0.3).distmod(z).value
    if calibrators:
        columns["mu_calibrator"] = np.where(np.arange(num) < calibrators, mu + 0.05, np.nan)
    noise = np.linalg.cholesky(columns["covariance"]) @ rng.normal(size=num)
    return DistanceModuli.from_columns(columns | {"m_b_corr": mu - 19.3 + noise})


def likelihood(model, data, values):
    """Log density of the data at given parameters, M0 integrated out."""
    values = {name: jnp.asarray(float(value)) for name, value in values.items()}
    with jax.enable_x64(True):
        fixed = HubbleDiagram(**model.to_config() | {"priors": dict(model.priors) | values_as_priors(values)})
        trace = handlers.trace(handlers.seed(fixed, 0)).get_trace(data)
        site = trace["observed"]
        return float(site["fn"].log_prob(site["value"]))


def values_as_priors(values):
    return {name: float(value) for name, value in values.items() if name != "M0"}


def published(name, shared_data):
    if name == "pantheon2018":
        d = np.load(shared_data("supernovae/pantheon2018_binned.npz"))
        covariance = d["cov_sys"] + np.diag(d["dmb"] ** 2)
        return DistanceModuli.from_columns(
            {"z_cmb": d["zcmb"], "z_hel": d["zhel"], "m_b_corr": d["mb"], "covariance": covariance}
        )
    d = np.load(shared_data(f"supernovae/{'jla_binned31' if name == 'jla' else 'union3_nodes22'}.npz"))
    return DistanceModuli.from_columns({"z_cmb": d["z"], "mu": d["mu"], "covariance": d["cov"]})


def plain_grid(data, cosmology):
    """Log posterior on a grid of flat priors, by plain NumPy: Simpson's distances, dense algebra, flat offset."""
    oms, ws = GRIDS[cosmology]
    z = np.asarray(data.z_cmb)
    steps = 200
    nodes = np.linspace(0.0, 1.0, steps + 1)[:, None] * z
    weights = np.where(np.arange(steps + 1) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    precision = np.linalg.inv(data.covariance)
    ones = np.ones(len(z))
    norm = ones @ precision @ ones
    found = np.empty((len(oms), len(ws)))
    density = (1 + nodes)[:, :, None] ** (3 * (1 + ws))
    for i, om in enumerate(oms):
        e = np.sqrt(om * (1 + nodes[:, :, None]) ** 3 + (1 - om) * density)
        comoving = np.einsum("s,snw->nw", weights, 1 / e) * (z / (3 * steps))[:, None]
        residual = data.mu[:, None] - 5 * np.log10((1 + data.z_hel)[:, None] * comoving)
        through = precision @ residual
        square = np.einsum("nw,nw->w", residual, through) - (ones @ through) ** 2 / norm
        found[i] = -0.5 * square
    return found


def model_grid(data, cosmology):
    """The same by the model's own program: the density of its data, the priors of the parameters being flat."""
    model = HubbleDiagram(cosmology=cosmology, priors={"M0": "Normal(0, 1e5)"})
    with jax.enable_x64(True):
        walk = handlers.trace(handlers.seed(model, 0)).get_trace(data)["_cosmology"]["fn"]

        def at(om, w):
            values = {"Om0": om, "w0": w} if cosmology == "wcdm" else {"Om0": om}
            here = handlers.substitute(handlers.seed(model, 0), {"_cosmology": walk.coordinates(values)})
            site = handlers.trace(here).get_trace(data)["observed"]
            return site["fn"].log_prob(site["value"])

        return np.asarray(jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(*GRIDS[cosmology]))


def moments(log_posterior, cosmology):
    """Means and standard deviations of the parameters on the grid."""
    weight = np.exp(log_posterior - log_posterior.max())
    weight /= weight.sum()
    found = {}
    for axis, (name, values) in enumerate(zip(("Om0", "w0"), GRIDS[cosmology], strict=True)):
        marginal = weight.sum(axis=1 - axis)
        mean = float(marginal @ values)
        found[name] = (mean, float(marginal @ (values - mean) ** 2) ** 0.5)
    return found if cosmology == "wcdm" else {"Om0": found["Om0"]}


@pytest.mark.parametrize("cosmology", GRIDS)
@pytest.mark.parametrize("name", BINNED)
def test_the_binned_sets_on_a_grid(name, cosmology, shared_data):
    """The model's own density gives the moments of a direct integration to a ten-thousandth of a standard deviation."""
    data = published(name, shared_data)
    plain, ours = plain_grid(data, cosmology), model_grid(data, cosmology)
    apart = (ours - ours.max()) - (plain - plain.max())
    assert np.abs(apart[plain > plain.max() - 30]).max() < 1e-4
    expected, found = moments(plain, cosmology), moments(ours, cosmology)
    for parameter, (mean, std) in expected.items():
        assert abs(found[parameter][0] - mean) < 1e-4 * std
        assert found[parameter][1] == pytest.approx(std, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cosmology", GRIDS)
@pytest.mark.parametrize("name", BINNED)
def test_the_binned_sets_by_sampling(name, cosmology, shared_data):
    """Sampled means and deviations within 1 % of a standard deviation, and four Monte Carlo errors, of the grid's."""
    data = published(name, shared_data)
    expected = moments(plain_grid(data, cosmology), cosmology)
    fit = hbm.sample(
        HubbleDiagram(cosmology=cosmology), data, seed=1, until=20_000, max_num_samples=40_000, progress=False
    )
    assert fit.verdict.usable, str(fit.verdict)
    summary = fit.summary()
    for parameter, (mean, std) in expected.items():
        draws = fit.posterior[parameter].to_numpy()
        row = summary.loc[parameter]
        assert min(row["ess_bulk"], row["ess_tail"]) >= 20_000
        print(name, cosmology, parameter, (draws.mean() - mean) / std, draws.std() / std - 1, row["mcse_mean"] / std)
        assert abs(draws.mean() - mean) < 0.01 * std + 4 * row["mcse_mean"]
        assert abs(draws.std() - std) < 0.01 * std + 4 * row["mcse_sd"]


@pytest.mark.parametrize("surveys", [(), ("b",)])
def test_density_against_dense_algebra(surveys):
    data = made_up(40, calibrators=4)
    model = HubbleDiagram(
        cosmology="owcdm", calibrated=True, intrinsic_scatter=True, scatter_surveys=surveys,
        priors={"M0": "Normal(-19, 2)"},
    )  # fmt: skip
    values = {"H0": 73.0, "Om0": 0.25, "Ode0": 0.8, "w0": -0.9, "sigma_int": 0.12}
    mu = astropy.cosmology.wCDM(73.0, 0.25, 0.8, w0=-0.9).distmod(data.z_cmb).value
    mu += 5 * np.log10((1 + data.z_hel) / (1 + data.z_cmb))
    mu = np.where(data.is_calibrator, data.mu_calibrator, mu)
    scatter = np.array([not surveys or survey in surveys for survey in data.survey]) * 0.12**2
    total = data.covariance + np.diag(scatter) + 4.0
    expected = multivariate_normal(mu - 19.0, total).logpdf(data.mu)
    assert likelihood(model, data, values) == pytest.approx(expected, rel=1e-9)


def test_priors_and_density_of_the_program():
    data = made_up()
    model = HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True, priors={"w0": "Normal(-1, 0.3)"})
    with jax.enable_x64(True):
        point = handlers.trace(handlers.seed(model, 3)).get_trace(data)
        free = {n: s["value"] for n, s in point.items() if s["type"] == "sample" and not s["is_observed"]}
        density = float(log_density(model, (data,), {}, free)[0])
        prior = float(point["_cosmology"]["fn"].log_prob(point["_cosmology"]["value"]))
        prior += float(dist.HalfNormal(0.3).log_prob(free["sigma_int"]))
        values = {name: float(point[name]["value"]) for name in ("Om0", "w0", "sigma_int")}
    assert density == pytest.approx(prior + likelihood(model, data, values), rel=1e-10)
    again = HubbleDiagram(**model.to_config())
    assert again.to_config() == model.to_config()
    assert float(log_density(again, (data,), {}, free)[0]) == density


@functools.cache
def fitted():
    data = made_up(60, calibrators=8, seed=5)
    model = HubbleDiagram(cosmology="lcdm", calibrated=True, intrinsic_scatter=True)
    simulated, truth = model.simulate(jax.random.key(2), data, {"H0": 71.0, "Om0": 0.3, "sigma_int": 0.1})
    return simulated, truth, hbm.sample(model, simulated, seed=3, progress=False)


def test_what_goes_in_comes_out():
    data, truth, fit = fitted()
    assert fit.verdict.usable, str(fit.verdict)
    assert float(truth["M0"]) == -19.3
    for name in ("H0", "Om0", "sigma_int"):
        draws = fit.posterior[name].to_numpy()
        assert abs(draws.mean() - float(truth[name])) < 3.5 * draws.std(), name
    offset = hbm.latents(fit)["M0"].to_numpy()
    assert abs(offset.mean() + 19.3) < 3.5 * offset.std()
    # H0 is degenerate with M0 but for the calibrators: the two are drawn together.
    predicted = hbm.posterior_predictive(fit, num_draws=200)["observed"]
    pulls = (predicted.mean("sample").to_numpy() - data.mu) / predicted.std("sample").to_numpy()
    assert 0.6 < np.sqrt(np.mean(pulls**2)) < 1.4
    assert list(predicted["supernova"].to_numpy()) == list(data.name)


def test_leave_one_out_of_correlated_objects():
    data, _, fit = fitted()
    values = hbm.inference.log_likelihood(fit, num_draws=20)["observed"]
    assert values.sizes["supernova"] == len(data)
    row = {n: float(fit.posterior[n].to_numpy()[0, 0]) for n in ("H0", "Om0", "sigma_int")}
    model = HubbleDiagram(cosmology="lcdm", calibrated=True, intrinsic_scatter=True)
    for i in (0, 30):
        rest = np.delete(np.arange(len(data)), i)
        expected = likelihood(model, data, row) - likelihood(model, data.subset(rest), row)
        assert float(values[0, 0, i]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    result = hbm.loo(fit)
    assert result.reliable, str(result)
    assert "predicted given all others" in str(result)
    with pytest.raises(ValueError, match="expected no groups"):
        hbm.loo(fit, group="survey")


def test_each_survey_left_out_in_a_batch():
    data = made_up()
    model = HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True, scatter_surveys=("b",))
    samples = model.without_each_survey(data)
    assert list(samples) == ["all", "without b", "without a", "without c"]
    with jax.enable_x64(True):
        point = handlers.trace(handlers.seed(model, 3)).get_trace(data)
        free = {n: s["value"] for n, s in point.items() if s["type"] == "sample" and not s["is_observed"]}
        for name in ("all", "without a", "without c"):
            direct = data if name == "all" else data.without_survey(name[-1])
            expected = float(log_density(model, (direct,), {}, free)[0])
            assert float(log_density(model, (samples[name],), {}, free)[0]) == pytest.approx(expected, rel=1e-9)
    lcdm = HubbleDiagram()
    samples = {name: one for name, one in lcdm.without_each_survey(data).items() if name in ("all", "without b")}
    fits = hbm.fit_each(
        lcdm, list(samples.values()), names=list(samples), num_samples=500, num_chains=4, progress=False
    )
    for name, sample in (("all", data), ("without b", data.without_survey("b"))):
        mean, std = moments(plain_grid(sample, "lcdm"), "lcdm")["Om0"]
        row = fits.summary().loc[(name, "Om0")]
        assert row["ess_bulk"] > 400
        assert abs(row["mean"] - mean) < 4 * std / row["ess_bulk"] ** 0.5
        assert row["sd"] == pytest.approx(std, rel=0.15)


def test_universes_of_ones_own():
    data = made_up()

    def w(z, p):
        return p["w0"] + p["wa"] * z / (1 + z)

    def distance(z, p):
        return 299792.458 / p["H0"] * 2 * (1 - (1 + z) ** -p["half"])

    flat = dist.Uniform(-3.0, 2.0)
    own = HubbleDiagram(cosmology=Expansion.from_w(w, {"wa": flat, "w0": dist.Uniform(-3.0, 0.0)}))
    known = HubbleDiagram(cosmology="w0wacdm")
    values = {"Om0": 0.3, "w0": -0.8, "wa": -0.5}

    def density(model, values):
        fixed = HubbleDiagram(cosmology=model.cosmology, priors=values)
        site = handlers.trace(handlers.seed(fixed, 0)).get_trace(data)["observed"]
        return float(site["fn"].log_prob(site["value"]))

    assert density(own, values) == pytest.approx(density(known, values), rel=1e-10)
    binned = HubbleDiagram(cosmology="binned(0.4, 0.8)")
    assert list(binned.all_priors) == ["H0", "Om0", "w_1", "w_2", "w_3", "M0"]
    same = {"Om0": 0.3} | dict.fromkeys(("w_1", "w_2", "w_3"), -0.8)
    assert density(binned, same) == pytest.approx(
        density(HubbleDiagram(cosmology="wcdm"), {"Om0": 0.3, "w0": -0.8}), rel=1e-9
    )
    series = HubbleDiagram(cosmology=Expansion.from_distance(distance, {"half": dist.Uniform(0.1, 1.0)}))
    expected = density(HubbleDiagram(), {"Om0": 1.0})
    assert density(series, {"half": 0.5}) == pytest.approx(expected, rel=1e-9)
    assert "own: " in own.to_config()["cosmology"]
    assert "with own: " in own.to_config()["class"]
    assert Supernova(cosmology="binned(0.4)").all_priors.keys() >= {"w_1", "w_2"}
    with pytest.raises(ValueError, match="constraints expect a cosmology with an expansion rate"):
        handlers.seed(HubbleDiagram(cosmology=series.cosmology, constraints=desi2024_bao()), 0)(data)


def test_constraints_are_a_term_of_the_prior():
    data = made_up()
    bao = HubbleDiagram(cosmology="lcdm", constraints=desi2024_bao())
    assert list(bao.all_priors) == ["H0", "Om0", "r_d", "M0"]
    reference = astropy.cosmology.FlatLambdaCDM(70.0, 0.31)
    c = desi2024_bao()
    across, along = reference.comoving_distance(c.z).value, 299792.458 / reference.H(c.z).value
    spherical = np.cbrt(c.z * across**2 * along)
    kinds = {"DM_over_rd": across, "DH_over_rd": along, "DV_over_rd": spherical}
    predicted = np.array([kinds[name][i] for i, name in enumerate(c.quantity)]) / 147.0
    residual = predicted - c.value
    expected = -0.5 * residual @ np.linalg.solve(c.covariance, residual)
    with jax.enable_x64(True):
        trace = handlers.trace(
            handlers.seed(HubbleDiagram(constraints=c, priors={"Om0": 0.31, "r_d": 147.0}), 0)
        ).get_trace(data)
        assert float(trace["constraints"]["fn"].log_factor) == pytest.approx(expected, rel=1e-8)
    both = HubbleDiagram(cosmology="wcdm", constraints=planck2018_distance_priors() + desi2024_bao())
    assert list(both.all_priors) == ["H0", "Om0", "w0", "omega_b", "M0"]
    assert HubbleDiagram(**both.to_config()).to_config() == both.to_config()
    with jax.enable_x64(True):
        target = build_target(both, (data,), jax.random.key(0))
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(target.potential)))(target.prior_draws)
        assert np.isfinite(slopes).all()
        assert np.isfinite(values).all()


def test_what_is_refused():
    data = made_up(40, calibrators=3)
    flow = made_up(40)
    for model, sample, words in (
        (HubbleDiagram(), data, "calibrated=True for a sample with 3 calibrators"),
        (HubbleDiagram(calibrated=True), flow, "expects calibrators in the sample; found none"),
        (HubbleDiagram(), hbm.data.load_jla(), "expected DistanceModuli; found Supernovae"),
        (
            HubbleDiagram(intrinsic_scatter=True, scatter_surveys=("d",)),
            flow,
            "scatter_surveys: expected some of b, a, c",
        ),
    ):
        with pytest.raises(DataError, match=words):
            handlers.seed(model, 0)(sample)
    for options, words in (
        ({"cosmology": "wdcm"}, "Did you mean 'wcdm'"),
        ({"cosmology": "binned(0.5, 0.3)"}, "increasing redshifts above 0"),
        ({"priors": {"M0": "Uniform(-20, -18)"}}, "prior.M0: expected Normal"),
        ({"priors": {"w0": -1.0}}, r"cosmology='lcdm'\) has no parameter 'w0'"),
        ({"scatter_surveys": ("a",)}, "expects intrinsic_scatter=True"),
    ):
        with pytest.raises(ValueError, match=words):
            HubbleDiagram(**options)
    with pytest.raises(DataError, match="two surveys or more"):
        HubbleDiagram().without_each_survey(flow.without_survey("a").without_survey("b"))
