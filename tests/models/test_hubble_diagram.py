"""The model of distance-level samples: against dense algebra and astropy, on a grid, in a batch; what it refuses."""

import functools

import astropy.cosmology
import jax
import numpy as np
import pytest
from models.densities import LogDensity
from models.test_supernova import moduli
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from scipy import optimize, stats
from scipy.stats import multivariate_normal

import hbm_jax as hbm
from hbm_jax.data import DataError, DistanceModuli, desi2024_bao, planck2018_distance_priors
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


PRIORS = {
    "H0": stats.uniform(40, 60), "Om0": stats.uniform(0, 1), "Ode0": stats.uniform(0, 1.2), "w0": stats.uniform(-3, 3),
    "wa": stats.uniform(-3, 5), "sigma_int": stats.halfnorm(0, 0.3), "r_d": stats.uniform(80, 170),
    "omega_b": stats.uniform(0.005, 0.095),
}  # fmt: skip


def log_prior(p):
    return sum(PRIORS[name].logpdf(value) for name, value in p.items())


def dense(data, p, M0=(0.0, 100.0), surveys=None, mu=None):
    """Log density of the moduli by dense algebra: M0 is normal, with a mean and a standard deviation."""
    mu = moduli(data, p) if mu is None else mu
    mu = np.where(data.is_calibrator, data.mu_calibrator, mu)
    scatters = np.array([surveys is None or survey in surveys for survey in data.survey])
    total = data.covariance + np.diag(scatters * p.get("sigma_int", 0.0) ** 2) + M0[1] ** 2
    return multivariate_normal(mu + M0[0], total).logpdf(data.mu)


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


def flat_offset(data, p):
    """The same at a point, with the moduli of the other tests."""
    precision = np.linalg.inv(data.covariance)
    through = precision @ (data.mu - moduli(data, p))
    return -0.5 * ((data.mu - moduli(data, p)) @ through - through.sum() ** 2 / precision.sum())


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


def without_offset(data):
    """Log density of the program less its priors, for a flat offset and flat wCDM."""
    density = LogDensity(HubbleDiagram(cosmology="wcdm", priors={"M0": "Normal(0, 1e5)"}), data)
    return lambda p: density(p) - log_prior(p)


@pytest.mark.parametrize("name", BINNED)
def test_the_binned_sets_by_direct_integration(name, shared_data):
    data = published(name, shared_data)
    density = without_offset(data)
    away = []
    for Om0 in (0.1, 0.2, 0.3, 0.4, 0.5):
        for w0 in (-2.0, -1.5, -1.2, -1.0, -0.8, -0.5):
            p = {"Om0": Om0, "w0": w0}
            away.append((flat_offset(data, p), density(p)))
    plain, found = np.array(away).T
    some = plain > plain.max() - 30
    assert some.sum() >= 8
    np.testing.assert_allclose((found - plain)[some], (found - plain)[some][0], atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", BINNED)
def test_the_binned_sets_on_a_grid(name, shared_data):
    """The model's own density gives the moments of a direct integration to a ten-thousandth of a standard deviation."""
    data = published(name, shared_data)
    plain = plain_grid(data, "wcdm")
    density = without_offset(data)
    ours = np.full(plain.shape, -np.inf)
    for i, j in np.argwhere(plain > plain.max() - 15):
        ours[i, j] = density({"Om0": GRIDS["wcdm"][0][i], "w0": GRIDS["wcdm"][1][j]})
    some = np.isfinite(ours)
    plain = np.where(some, plain, -np.inf)
    expected, found = moments(plain, "wcdm"), moments(ours, "wcdm")
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


@pytest.mark.parametrize("surveys", [None, ("b",)])
def test_density_against_dense_algebra(surveys):
    data = made_up(40, calibrators=4)
    model = HubbleDiagram(
        cosmology="owcdm", calibrated=True, intrinsic_scatter=True, scatter_surveys=surveys or (),
        priors={"M0": "Normal(-19, 2)"},
    )  # fmt: skip
    density = LogDensity(model, data)
    p = {"H0": 73.0, "Om0": 0.25, "Ode0": 0.8, "w0": -0.9, "sigma_int": 0.12}
    mu = astropy.cosmology.wCDM(73.0, 0.25, 0.8, w0=-0.9).distmod(data.z_cmb).value
    mu += 5 * np.log10((1 + data.z_hel) / (1 + data.z_cmb))
    assert density(p) == pytest.approx(log_prior(p) + dense(data, p, (-19.0, 2.0), surveys, mu), rel=1e-9)
    p = {"H0": 65.0, "Om0": 0.4, "Ode0": 0.3, "w0": -1.5, "sigma_int": 0.02}
    assert density(p) == pytest.approx(log_prior(p) + dense(data, p, (-19.0, 2.0), surveys), rel=1e-9)


def test_priors_and_density_of_the_program():
    data = made_up()
    model = HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True, priors={"w0": "Normal(-1, 0.3)"})
    p = {"Om0": 0.35, "w0": -0.7, "sigma_int": 0.2}
    expected = log_prior({"Om0": 0.35, "sigma_int": 0.2}) + stats.norm(-1, 0.3).logpdf(-0.7) + dense(data, p)
    again = HubbleDiagram(**model.to_config())
    assert again.to_config() == model.to_config()
    assert again == HubbleDiagram(**again.to_config())
    assert LogDensity(again, data)(p) == pytest.approx(expected, abs=1e-6)
    held = HubbleDiagram(priors={"M0": -19.3, "Om0": 0.3})
    assert LogDensity(held, data)({}) == pytest.approx(dense(data, {"Om0": 0.3}, (-19.3, 0.0)), rel=1e-10)


CALIBRATED = HubbleDiagram(cosmology="lcdm", calibrated=True, intrinsic_scatter=True)
TRUTH = {"H0": 71.0, "Om0": 0.3, "sigma_int": 0.1}


@functools.cache
def draws_of_data(num=40):
    """Draws of a sample by the program, compiled once, and the sample that gave the design."""
    data = made_up(60, calibrators=8, seed=5)
    model = HubbleDiagram(**CALIBRATED.to_config() | {"priors": TRUTH | {"M0": -19.3}})

    def draw(key):
        return handlers.trace(handlers.seed(model, key)).get_trace(data, observed=False)["observed"]["value"]

    keys = np.array([[1, seed(number)] for number in range(num)], np.uint32)
    return data, np.asarray(jax.jit(jax.vmap(draw))(keys))


@functools.cache
def fitted():
    data, drawn = draws_of_data()
    data = data.replace_observations(drawn[0])
    options = {"num_chains": 2, "num_warmup": 300, "num_samples": 400, "progress": False}
    return data, hbm.sample(CALIBRATED, data, seed=seed(3), **options)


def test_drawn_moduli_have_the_covariance(monte_carlo):
    data, drawn = draws_of_data()
    mean = np.where(data.is_calibrator, data.mu_calibrator, moduli(data, TRUTH)) - 19.3
    root = np.linalg.cholesky(data.covariance + 0.01 * np.eye(60))
    white = np.linalg.solve(root, (drawn - mean).T)
    monte_carlo.within(white.mean(), 0.0, white.size**-0.5, name="mean")
    monte_carlo.within((white**2).mean(), 1.0, (2.0 / white.size) ** 0.5, name="variance")
    monte_carlo.distribution(white, "norm")


def test_simulated_moduli_take_the_place_of_the_observed(monkeypatch):
    asked = []

    def drawn(model, key, data, parameters):
        asked.append(parameters)
        return {"observed": np.arange(40.0)}, {"Om0": 0.3}

    monkeypatch.setattr("hbm_jax.models.base.simulated", drawn)
    data = made_up()
    sample, truth = HubbleDiagram().simulate("key", data, {"Om0": 0.3})
    np.testing.assert_array_equal(sample.mu, np.arange(40.0))
    assert truth == {"Om0": 0.3}
    distances = DistanceModuli.from_columns({"z_cmb": [0.1] * 40, "mu": [40.0] * 40, "sigma": [0.1] * 40})
    HubbleDiagram().simulate("key", distances)
    HubbleDiagram(priors={"M0": "Normal(-19, 1)"}).simulate("key", data)
    assert asked == [{"Om0": 0.3, "M0": -19.3}, {"M0": 0.0}, {}]


@pytest.mark.long
def test_simulation_is_repeatable():
    """In the long part, because each operation of the program is compiled by itself."""
    data = made_up(60, calibrators=8, seed=5)
    first, truth = CALIBRATED.simulate(jax.random.key(2), data, TRUTH)
    again, _ = CALIBRATED.simulate(jax.random.key(2), data, TRUTH)
    np.testing.assert_array_equal(first.mu, again.mu)
    assert {name: float(truth[name]) for name in TRUTH} == TRUTH
    assert float(truth["M0"]) == -19.3


@pytest.mark.long
def test_what_goes_in_comes_out(monte_carlo):
    data, fit = fitted()
    for name, value in TRUTH.items():
        draws = fit.posterior[name].to_numpy()
        # A standard deviation of some hundred effective draws is known to a tenth.
        monte_carlo.within(draws.mean(), value, 1.1 * draws.std(), name=name)
    offset = hbm.latents(fit, num_draws=400)["M0"].to_numpy()
    monte_carlo.within(offset.mean(), -19.3, 1.1 * offset.std(), name="M0")
    # H0 is degenerate with M0 but for the calibrators: the two are drawn together.
    predicted = hbm.posterior_predictive(fit, num_draws=400)["observed"]
    pulls = (predicted.mean("sample").to_numpy() - data.mu) / predicted.std("sample").to_numpy()
    # 60 of them, some of whose scatter went into the parameters.
    monte_carlo.within(np.mean(pulls**2), 1.0, (2.0 / 60) ** 0.5 + 0.05, name="pulls")
    assert list(predicted["supernova"].to_numpy()) == list(data.name)


@pytest.mark.long
def test_leave_one_out_of_correlated_objects():
    data, fit = fitted()
    values = hbm.inference.log_likelihood(fit, num_draws=20)["observed"]
    assert values.sizes["supernova"] == len(data)
    p = {name: float(fit.posterior[name].to_numpy()[0, 0]) for name in TRUTH}
    for i in (0, 30):
        rest = data.subset(np.delete(np.arange(len(data)), i))
        assert float(values[0, 0, i]) == pytest.approx(dense(data, p) - dense(rest, p), rel=1e-5, abs=1e-5)
    result = hbm.loo(fit)
    assert "predicted given all others" in str(result)
    with pytest.raises(ValueError, match="expected no groups"):
        hbm.loo(fit, group="survey")


def test_each_survey_left_out_of_the_density():
    data = made_up()
    model = HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True, scatter_surveys=("b",))
    samples = model.without_each_survey(data)
    assert list(samples) == ["all", "without b", "without a", "without c"]
    density = LogDensity(model)
    for p in ({"Om0": 0.3, "w0": -0.9, "sigma_int": 0.15}, {"Om0": 0.15, "w0": -1.6, "sigma_int": 0.05}):
        for name, sample in samples.items():
            direct = data if name == "all" else data.without_survey(name[-1])
            expected = log_prior(p) + dense(direct, p, surveys=("b",))
            assert density(p, sample) == pytest.approx(expected, abs=1e-6), name
    calibrated = made_up(40, calibrators=4)
    whole = CALIBRATED.without_each_survey(calibrated)["all"]
    expected = log_prior(TRUTH) + dense(calibrated, TRUTH)
    assert LogDensity(CALIBRATED)(TRUTH, whole) == pytest.approx(expected, abs=1e-6)


@pytest.mark.long
def test_each_survey_left_out_in_a_batch(monte_carlo):
    data = made_up()
    lcdm = HubbleDiagram()
    samples = {name: one for name, one in lcdm.without_each_survey(data).items() if name in ("all", "without b")}
    options = {"seed": seed(0), "num_samples": 500, "num_chains": 4, "progress": False}
    fits = hbm.fit_each(lcdm, list(samples.values()), names=list(samples), **options)
    summary = fits.summary()
    for name, sample in (("all", data), ("without b", data.without_survey("b"))):
        mean, std = moments(plain_grid(sample, "lcdm"), "lcdm")["Om0"]
        row = summary.loc[(name, "Om0")]
        assert row["ess_bulk"] > 400
        monte_carlo.within(row["mean"], mean, std / row["ess_bulk"] ** 0.5, name=f"mean, {name}")
        monte_carlo.within(row["sd"], std, std / row["ess_bulk"] ** 0.5, name=f"standard deviation, {name}")


@pytest.mark.long
def test_the_maximum_of_the_likelihood_is_of_named_parameters():
    """Also with intervals by profile in them."""
    data = made_up()
    best = hbm.maximum_likelihood(HubbleDiagram(cosmology="wcdm"), data, num_starts=2, errors="profile")
    assert list(best.table.index) == list(best.parameters) == ["Om0", "w0"]

    def minus_density(p):
        return -dense(data, {"Om0": p[0], "w0": p[1]})

    expected = optimize.minimize(minus_density, [0.3, -1.0], method="Nelder-Mead", options={"xatol": 1e-6})
    assert best.log_likelihood == pytest.approx(-expected.fun, abs=1e-6)
    np.testing.assert_allclose(best.table["value"], expected.x, atol=0.01 * best.table["std"].min())

    def profile(w0):
        at = optimize.minimize_scalar(lambda Om0: minus_density((Om0, w0)), bounds=(0.0, 1.0), method="bounded")
        return at.fun - expected.fun - 0.5 * stats.chi2.ppf(0.683, 1)

    for end, beyond in (("lower", -3.0), ("upper", 0.0)):
        found = best.table.loc["w0", end]
        root = optimize.brentq(profile, *sorted((expected.x[1], beyond)), xtol=1e-4)
        assert found == pytest.approx(root, abs=0.01 * best.table.loc["w0", "std"])
    assert best.converged


def test_universes_of_ones_own():
    data = made_up()

    def w(z, p):
        return p["w0"] + p["wa"] * z / (1 + z)

    def distance(z, p):
        return 299792.458 / p["H0"] * 2 * (1 - (1 + z) ** -p["half"])

    flat = dist.Uniform(-3.0, 2.0)
    own = HubbleDiagram(cosmology=Expansion.from_w(w, {"wa": flat, "w0": dist.Uniform(-3.0, 0.0)}))
    p = {"Om0": 0.3, "w0": -0.8, "wa": -0.5}
    # A prior of M0 of 100 mag costs the dense algebra half of its digits.
    assert LogDensity(own, data)(p) == pytest.approx(log_prior(p) + dense(data, p), abs=1e-6)
    binned = HubbleDiagram(cosmology="binned(0.4, 0.8)")
    assert list(binned.all_priors) == ["H0", "Om0", "w_1", "w_2", "w_3", "M0"]
    same = {"Om0": 0.3} | dict.fromkeys(("w_1", "w_2", "w_3"), -0.8)
    expected = 3 * stats.uniform(-3, 4).logpdf(-0.8) + dense(data, {"Om0": 0.3, "w0": -0.8})
    assert LogDensity(binned, data)(same) == pytest.approx(expected, abs=1e-6)
    series = HubbleDiagram(cosmology=Expansion.from_distance(distance, {"half": dist.Uniform(0.1, 1.0)}))
    expected = -np.log(0.9) + dense(data, {"Om0": 1.0})
    assert LogDensity(series, data)({"half": 0.5}) == pytest.approx(expected, abs=1e-6)
    assert "own: " in own.to_config()["cosmology"]
    assert "with own: " in own.to_config()["class"]
    assert Supernova(cosmology="binned(0.4)").all_priors.keys() >= {"w_1", "w_2"}
    assert (own.target_accept_prob, HubbleDiagram().target_accept_prob) == (0.95, 0.8)
    with pytest.raises(ValueError, match="constraints expect a cosmology with an expansion rate"):
        traced(HubbleDiagram(cosmology=series.cosmology, constraints=desi2024_bao()), data)


def traced(model, sample):
    """Run a program on abstract values, so that nothing is computed."""
    jax.eval_shape(lambda key: handlers.seed(model, key)(sample), np.zeros(2, np.uint32))


def test_constraints_are_a_term_of_the_prior():
    data = made_up()
    c = desi2024_bao()
    bao = HubbleDiagram(cosmology="lcdm", constraints=c)
    assert list(bao.all_priors) == ["H0", "Om0", "r_d", "M0"]
    reference = astropy.cosmology.FlatLambdaCDM(70.0, 0.31)
    across, along = reference.comoving_distance(c.z).value, 299792.458 / reference.H(c.z).value
    spherical = np.cbrt(c.z * across**2 * along)
    kinds = {"DM_over_rd": across, "DH_over_rd": along, "DV_over_rd": spherical}
    predicted = np.array([kinds[name][i] for i, name in enumerate(c.quantity)]) / 147.0
    residual = predicted - c.value
    expected = -0.5 * residual @ np.linalg.solve(c.covariance, residual)
    p = {"Om0": 0.31, "r_d": 147.0}
    assert bao.all_priors["H0"] == 70.0, "which is degenerate with the sound horizon"
    found = LogDensity(bao, data, ridge=None)(p)
    assert found == pytest.approx(log_prior(p) + dense(data, p) + expected, abs=1e-6)
    both = HubbleDiagram(cosmology="wcdm", constraints=planck2018_distance_priors() + c)
    assert list(both.all_priors) == ["H0", "Om0", "w0", "omega_b", "M0"]
    assert HubbleDiagram(**both.to_config()).to_config() == both.to_config()
    density, rng = LogDensity(both, data, ridge=None), np.random.default_rng(0)
    for _ in range(8):
        p = {name: PRIORS[name].ppf(rng.uniform(0.02, 0.98)) for name in ("H0", "Om0", "w0", "omega_b")}
        value, slopes = density.with_gradient(p)
        assert np.isfinite(value)
        assert all(np.isfinite(slope) for slope in slopes.values())


@pytest.mark.long
def test_union3_with_planck_and_desi_dr2_is_the_published_result(shared_data):
    """DESI DR2 (arXiv:2503.14738), to half an error; their Planck likelihood is not the compressed one."""
    model = HubbleDiagram(cosmology="w0wacdm", constraints="planck-2018 + desi-dr2-bao")
    fit = hbm.sample(model, published("union3", shared_data), seed=1, progress=False)
    assert fit.verdict.usable
    for name, value, error in (("w0", -0.674, 0.09), ("wa", -1.05, 0.32), ("H0", 66.1, 0.8), ("Om0", 0.328, 0.009)):
        draws = np.asarray(fit.posterior[name])
        assert abs(draws.mean() - value) < 0.5 * error
        assert draws.std() == pytest.approx(error, rel=0.25)


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
            "scatter_surveys: expected names among b, a, c",
        ),
    ):
        with pytest.raises(DataError, match=words):
            traced(model, sample)
    with pytest.raises(DataError, match=r"found data that are traced.*bound = model.bind"):
        jax.eval_shape(lambda sample: HubbleDiagram()(sample), flow)
    one_calibrator = data.subset(np.arange(2, 40))
    with pytest.raises(DataError, match="expects calibrators in the sample; found none"):
        HubbleDiagram(calibrated=True).without_each_survey(one_calibrator)
    bound = HubbleDiagram(intrinsic_scatter=True, priors={"sigma_int": 0.1}).bind(flow)
    with pytest.raises(DataError, match=r"with the same intrinsic scatter, a free value; found 0\.1 mag"):
        traced(HubbleDiagram(intrinsic_scatter=True), bound)
    for options, words in (
        ({"cosmology": "wdcm"}, "did you mean 'wcdm'"),
        ({"cosmology": "binned(0.5, 0.3)"}, "increasing redshifts above 0"),
        ({"priors": {"M0": "Uniform(-20, -18)"}}, "prior.M0: expected Normal"),
        ({"priors": {"w0": -1.0}}, r"cosmology='lcdm'\) has no parameter 'w0'"),
        ({"scatter_surveys": ("a",)}, "expects intrinsic_scatter=True"),
    ):
        with pytest.raises(ValueError, match=words):
            HubbleDiagram(**options)
    with pytest.raises(DataError, match="two surveys or more"):
        HubbleDiagram().without_each_survey(flow.without_survey("a").without_survey("b"))
