"""The loop: right posteriors, the same draws for the same seed however they are cut, and how a run ends."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import programs
import pytest
import xarray as xr
from killed import SIGMA, Y
from monte_carlo import seed
from numpyro import distributions as dist
from programs import COVARIANCE, MEAN, correlated, correlated_fit, tiny
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import run as run_module
from hbm_jax.inference.sampler import chains as chains_module
from hbm_jax.inference.sampler import initialisation as start_module
from hbm_jax.inference.sampler import loop as loop_module
from hbm_jax.inference.sampler.kernels import independent_proposals as independence
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.stopping import MIN_SAMPLES

SCHOOLS = {"coords": {"school": list("ABCDEFGH")}, "progress": False}


def few_of_schools(**options):
    """A few draws of eight schools, by the program and the options of `test_checkpoint`."""
    fixed = {"seed": 4, "num_warmup": 60, "num_samples": 90, "sampler": hbm.HMC(trajectory_length=1.5)}
    return hbm.sample(programs.eight_schools, Y, SIGMA, **(SCHOOLS | fixed | options))


@pytest.fixture(scope="module")
def schools():
    return few_of_schools()


# What is drawn is the posterior


def test_correlated_normal_mean_and_covariance(monte_carlo):
    draws = correlated_fit().posterior["x"].to_numpy()
    for i in range(5):
        monte_carlo.mean(draws[..., i], MEAN[i], name=f"mean {i}")
        for j in range(i, 5):
            product = (draws[..., i] - MEAN[i]) * (draws[..., j] - MEAN[j])
            monte_carlo.mean(product, COVARIANCE[i, j], name=f"covariance {i}, {j}")


def test_log_density_and_sample_stats():
    fit = correlated_fit()
    stats = fit.tree["sample_stats"].to_dataset()
    x = fit.posterior["x"].to_numpy()
    deviation = x - MEAN
    quadratic = np.einsum("cdi,ij,cdj->cd", deviation, np.linalg.inv(COVARIANCE), deviation)
    lp = -0.5 * (quadratic + 5 * np.log(2 * np.pi) + np.linalg.slogdet(COVARIANCE)[1])
    np.testing.assert_allclose(stats["lp"], lp, rtol=1e-9)
    assert (stats["energy"] + stats["lp"] >= 0).all()  # the kinetic energy
    assert stats["diverging"].dtype == bool
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all()
    assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert (stats["n_steps"] >= 2 ** (stats["tree_depth"] - 1)).all()
    assert 0.6 < float(stats["acceptance_rate"].mean()) <= 1.0
    assert (stats["step_size"] > 0).all()
    np.testing.assert_array_equal(fit.tree["unconstrained_posterior"]["position"], x)


@pytest.mark.long
def test_eight_schools_against_posteriordb(shared_data, monte_carlo):
    path = shared_data("hierarchical/posteriordb/reference_summary.json")
    reference = json.loads(path.read_text())["eight_schools-eight_schools_noncentered"]["parameters"]
    assert len(reference) >= 10
    options = {"num_samples": 2500, "sampler": hbm.NUTS(target_accept_prob=0.95)}
    fit = hbm.sample(programs.eight_schools, Y, SIGMA, seed=seed(2), **options, **SCHOOLS)
    draws = {name: fit.posterior[name].to_numpy() for name in ("mu", "tau")}
    draws |= {f"theta[{i + 1}]": fit.posterior["theta"].to_numpy()[..., i] for i in range(8)}
    for name, values in draws.items():
        known = reference[name]
        monte_carlo.mean(values, known["mean"], expected_error=known["mcse_mean"], name=name)
        error = np.sqrt(0.16 * 0.84 / known["ess_bulk"])
        monte_carlo.share(values < known["q16"], 0.16, expected_error=error, name=f"{name} below its 16 % quantile")


@pytest.mark.long
def test_without_an_approximation_scales_are_learnt_in_warm_up(monkeypatch, monte_carlo):
    monkeypatch.setattr(start_module, "MAX_DENSE", 0)
    monkeypatch.setattr(start_module, "mean_field_fits", lambda *_: [])
    width = np.array([0.01, 1.0, 100.0])
    fit = hbm.sample(programs.scales, width, seed=seed(3), num_samples=1000, progress=False)
    assert "diagonal metric" in fit.run["start"]
    assert fit.run["num_warmup"] == 1000
    x = fit.posterior["x"].to_numpy() / width
    for i in range(3):
        monte_carlo.mean(x[..., i], 0.0, name=f"mean {i}")
        monte_carlo.mean(x[..., i] ** 2, 1.0, name=f"variance {i}")
    assert np.quantile(fit.tree["sample_stats"]["n_steps"], 0.99) <= 31  # adapted, else a hundred times as many


@pytest.mark.long
def test_a_low_rank_metric_draws_the_same_posterior_in_fewer_steps(monkeypatch, monte_carlo):
    monkeypatch.setattr(start_module, "MAX_DENSE", 0)
    size = 40
    direction = np.ones(size) / np.sqrt(size)
    covariance = np.eye(size) + 400.0 * np.outer(direction, direction)
    program = functools.partial(correlated, np.zeros(size), covariance)
    fit = hbm.sample(program, seed=seed(4), num_samples=1000, progress=False)
    assert "low-rank metric" in fit.run["start"]
    along = fit.posterior["x"].to_numpy() @ direction
    monte_carlo.mean(along, 0.0, name="mean")
    monte_carlo.mean(along**2, 401.0, name="variance")
    np.testing.assert_array_equal(fit.tree["unconstrained_posterior"]["position"], fit.posterior["x"])
    assert np.median(fit.tree["sample_stats"]["n_steps"]) <= 7  # 60 with a diagonal one


@pytest.mark.long
def test_beyond_a_hundred_parameters_many_directions_are_learnt():
    """A metric of 20 directions took 103 steps a draw."""
    size = 120
    covariance = 0.95 ** np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    program = functools.partial(correlated, np.zeros(size), covariance)
    fit = hbm.sample(program, seed=seed(4), num_samples=200, progress=False)
    assert "20 directions stand out" in fit.run["start"]
    assert fit.tree["sample_stats"]["n_steps"].mean() < 20
    assert fit.posterior["x"].std(["chain", "draw"]).to_numpy() == pytest.approx(np.ones(size), rel=0.25)


# Independent proposals between trajectories


def skewed():
    """Two parameters that are not quite normal where they are sampled, and two that go together."""
    numpyro.sample("tails", dist.StudentT(40.0, 1.0, 2.0))
    numpyro.sample("rate", dist.Gamma(40.0, 2.0))
    numpyro.sample("x", dist.MultivariateNormal(np.array([1.0, -2.0]), np.array([[1.0, 0.9], [0.9, 1.5]])))


PROPOSALS = {"sampler": hbm.IndependentProposals(), "num_chains": 2, "seed": seed(3), "progress": False}


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proposed") / "run"
    return hbm.sample(skewed, num_samples=10_000, checkpoint=folder, **PROPOSALS), folder


@pytest.mark.long
def test_independent_proposals_draw_the_posterior_also_where_it_is_not_normal(proposed, monte_carlo):
    fit, _ = proposed
    exact = {"tails": stats.t(40.0, 1.0, 2.0), "rate": stats.gamma(40.0, scale=0.5)}
    draws = {name: fit.posterior[name].to_numpy() for name in exact}
    for i, (mean, variance) in enumerate(((1.0, 1.0), (-2.0, 1.5))):
        exact[f"x[{i}]"], draws[f"x[{i}]"] = stats.norm(mean, np.sqrt(variance)), fit.posterior["x"].to_numpy()[..., i]
    for name, law in exact.items():
        for p in (0.03, 0.16, 0.5, 0.84, 0.97):
            monte_carlo.share(draws[name] < law.ppf(p), p, name=f"{name} below its quantile of {p}")
    x = fit.posterior["x"].to_numpy()
    monte_carlo.mean((x[..., 0] - 1.0) * (x[..., 1] + 2.0), 0.9, name="covariance")


@pytest.mark.long
def test_one_draw_in_sixteen_is_a_trajectory(proposed, monte_carlo):
    fit, _ = proposed
    found = fit.tree["sample_stats"].to_dataset()
    moved = found["n_steps"].to_numpy() > 0
    assert fit.run["proposals_used"]
    assert moved[0].sum() == 10_000 // 16
    assert (moved[0] == moved[1]).all()
    assert (np.diff(np.flatnonzero(moved[0])) == 16).all()
    assert (np.isfinite(found["energy"].to_numpy()) == moved).all()  # a proposal has no momentum
    stays = (np.diff(found["lp"].to_numpy(), axis=1) == 0) & ~moved[:, 1:]
    rejected = 1.0 - found["acceptance_rate"].to_numpy()[:, 1:][~moved[:, 1:]]
    error = np.sqrt(np.sum(rejected * (1.0 - rejected))) / stays.size
    monte_carlo.within(stays.mean(), rejected.sum() / stays.size, error, name="proposals rejected")
    position = fit.tree["unconstrained_posterior"]["position"].to_numpy()[0]
    rate, tails, x = position[:, 0], position[:, 1], position[:, 2:]
    exact = stats.multivariate_normal([1.0, -2.0], [[1.0, 0.9], [0.9, 1.5]]).logpdf(x)
    exact = exact + stats.gamma(40.0, scale=0.5).logpdf(np.exp(rate)) + rate + stats.t(40.0, 1.0, 2.0).logpdf(tails)
    offset = found["lp"].to_numpy()[0] - exact
    np.testing.assert_allclose(offset, 0.0, atol=1e-9)  # of draws of either kind


@pytest.mark.long
def test_a_run_with_proposals_goes_on_from_its_warm_up_to_the_same_draws(proposed):
    fit, folder = proposed
    blocks = sorted(folder.glob("block-*.npz"))
    lengths = [np.load(path)["draws/energy"].shape[1] for path in blocks]
    kept = int(np.searchsorted(np.cumsum(lengths), 700)) + 1  # in the second round of fitting
    assert 600 < sum(lengths[:kept]) < 5200
    for path in blocks[kept:]:
        path.unlink()
    again = hbm.resume(folder, skewed, progress=False)
    np.testing.assert_array_equal(again.posterior["tails"], fit.posterior["tails"])
    np.testing.assert_array_equal(again.tree["sample_stats"]["n_steps"], fit.tree["sample_stats"]["n_steps"])


@pytest.mark.long
def test_proposals_that_are_seldom_accepted_are_given_up(monkeypatch):
    monkeypatch.setattr(independence, "LEAST_ACCEPTED", 1.0)  # the program is that of `proposed`
    fit = hbm.sample(skewed, num_samples=100, **PROPOSALS)
    assert not fit.run["proposals_used"]
    assert (fit.tree["sample_stats"]["n_steps"] > 0).all()


@pytest.mark.long
def test_proposals_for_a_funnel_are_given_up():
    def funnel():
        scale = numpyro.sample("log_scale", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * scale)).expand([5]).to_event(1))

    fit = hbm.sample(funnel, num_samples=100, **PROPOSALS)
    assert not fit.run["proposals_used"]
    assert (fit.tree["sample_stats"]["n_steps"] > 0).all()


@pytest.mark.long
def test_proposals_for_heavy_tails_are_given_up_and_the_far_tails_are_right(monte_carlo):
    def heavy():
        numpyro.sample("x", dist.StudentT(4.0, 0.0, 1.0).expand([3]).to_event(1))

    fit = hbm.sample(heavy, num_samples=20_000, **PROPOSALS)
    assert not fit.run["proposals_used"]
    assert fit.run["proposals_tail"] > 0.5
    assert any("heavier tails than the independent proposals" in note for note in fit.verdict.notes)
    far = stats.t(4.0).ppf(0.999)
    for i, x in enumerate(np.moveaxis(fit.posterior["x"].to_numpy(), -1, 0)):
        monte_carlo.share(x > far, 0.001, name=f"x[{i}] beyond its quantile of 0.999", min_ess=100)
        monte_carlo.share(x < -far, 0.001, name=f"x[{i}] below its quantile of 0.001", min_ess=100)


@pytest.mark.parametrize("index", [0.25, 1.0, 2.0])
def test_the_index_of_weights_is_that_under_the_proposals(index):
    """Pareto-distributed weights at draws of the posterior; the same index under the proposals is smaller."""
    log_weights = -index * np.log(np.random.default_rng(seed(4)).uniform(size=(4, 4000)))
    num_tail = 3 * np.sqrt(16_000)
    error = (1 + index) / np.sqrt(num_tail) / (1 + index) ** 2  # asymptotic, of the maximum of the likelihood
    assert abs(independence.tail_index(log_weights) - index / (1 + index)) < 5 * error
    assert independence.tail_index(log_weights - 1e4) == pytest.approx(independence.tail_index(log_weights))


def test_heavy_tails_turn_proposals_off():
    rng = np.random.default_rng(seed(5))
    sampler = hbm.IndependentProposals()
    size = (4, 4000)
    laws = {
        True: (rng.normal(size=(*size, 2)), stats.norm()),
        False: (rng.standard_t(5, size=(*size, 2)), stats.t(5)),
    }
    for used, (variables, law) in laws.items():
        flat = np.zeros(size)
        potential = -law.logpdf(variables).sum(axis=-1)
        block = Block(variables, potential, flat, flat, np.full(size, 0.9), flat)
        fitted = sampler.fit(variables, block, 3)
        assert sampler.outcome(fitted)["proposals_used"] is used
        assert (sampler.notes(fitted) == ()) is used
        assert bool(sampler.fit(variables, block, 2).used)  # more rounds follow


def test_proposals_for_too_many_parameters_are_refused():
    target, start = SimpleNamespace(size=101), SimpleNamespace(points=np.zeros((4, 101)))
    with pytest.raises(ValueError, match="IndependentProposals: expected at most 100 parameters; found 101"):
        chains_module.Chains(target, start, 10, hbm.IndependentProposals(), None)


# Trajectories of one length


@pytest.mark.long
def test_trajectories_of_a_given_length_draw_the_same_posterior_in_fewer_steps(monte_carlo):
    options = {"num_samples": 1000, "sampler": hbm.HMC(trajectory_length=1.5), "progress": False}
    fit = hbm.sample(correlated, MEAN, COVARIANCE, seed=seed(3), **options)
    x = fit.posterior["x"].to_numpy()
    for i in range(5):
        monte_carlo.mean(x[..., i], MEAN[i], name=f"mean {i}")
        monte_carlo.std(x[..., i], np.sqrt(COVARIANCE[i, i]), name=f"standard deviation {i}")
    nuts = hbm.sample(correlated, MEAN, COVARIANCE, seed=seed(3), **options | {"sampler": hbm.NUTS()})
    found, nuts = (one.tree["sample_stats"].to_dataset() for one in (fit, nuts))
    assert found["n_steps"].mean() < 0.75 * nuts["n_steps"].mean()
    # In a dense metric the unit of length is a standard deviation; whole steps, at least as long as asked for.
    length, step = found["n_steps"] * found["step_size"], found["step_size"].max()
    assert 1.4 < length.mean() < 1.6 + step
    assert length.max() < 2.25 + step
    assert len(np.unique(found["n_steps"])) > 1


# Dimensions and labels


def test_plates_and_coordinates(schools):
    theta = schools.posterior["theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert list(theta["school"].to_numpy()) == list("ABCDEFGH")
    assert set(schools.posterior) == {"mu", "tau", "theta"}  # _standard is the sampler's own affair
    assert "theta[C]" in schools.verdict.table.index
    assert not any("no site of the program is observed" in note for note in schools.verdict.notes)
    assert "theta[C]" in schools.summary().index
    assert list(schools.tree["unconstrained_posterior"]["parameter"].to_numpy()[:2]) == ["_standard[0]", "_standard[1]"]
    assert list(schools.posterior) == ["mu", "tau", "theta"]  # as declared


def test_several_arguments_are_kept(schools):
    assert len(schools.args) == 2
    np.testing.assert_array_equal(schools.data, [28, 8, -3, 7, -1, 1, 18, 12])
    assert schools.program is programs.eight_schools
    assert schools.run["program"] == "eight_schools"


def test_sites_of_every_shape_are_labelled():
    def shapes():
        with numpyro.plate("row", 2, dim=-2):
            numpyro.sample("column", dist.Normal(0.0, 1.0))
            with numpyro.plate("k", 3, dim=-1):
                numpyro.sample("matrix", dist.Normal(0.0, 1.0))
        with numpyro.plate("object", 2):
            vector = numpyro.sample("vector", dist.Normal(np.zeros(3), 1.0).to_event(1))
            numpyro.deterministic("positive", vector[..., 0] > 0)
            numpyro.deterministic("scalar", vector.sum())

    fit = hbm.sample(
        shapes,
        num_samples=40,
        num_warmup=20,
        num_chains=2,
        sampler=hbm.HMC(trajectory_length=1.5),
        dims={"vector": ["object", "axis"]},
        progress=False,
    )
    sizes = {name: dict(zip(v.dims[2:], v.shape[2:], strict=True)) for name, v in fit.posterior.items()}
    assert sizes["matrix"] == {"row": 2, "k": 3}
    assert list(sizes["column"].values()) == [2, 1]
    assert next(iter(sizes["column"])) == "row"
    assert sizes["vector"] == {"object": 2, "axis": 3}
    assert sizes["positive"] == {"object": 2}
    assert sizes["scalar"] == {}
    assert len(fit.summary()) == 6 + 2 + 6 + 2 + 1


# Seeds and blocks


def test_same_seed_same_draws_however_they_are_cut(monkeypatch):
    whole = correlated_fit()
    lengths = []
    advance = chains_module.Chains.advance

    def counted(self, num_draws):
        lengths.append(num_draws)
        return advance(self, num_draws)

    monkeypatch.setattr(loop_module, "SECONDS_PER_BLOCK", 0.0005)
    monkeypatch.setattr(loop_module, "FIRST_BLOCK", 7)
    monkeypatch.setattr(chains_module.Chains, "advance", counted)
    cut = hbm.sample(correlated, *whole.args, seed=seed(11), num_samples=203, progress=False)
    assert len(lengths) > 10
    assert lengths[0] == 7
    assert cut.posterior.sizes["draw"] == 203
    assert sum(lengths) == 203 + cut.run["num_warmup"]
    for group in ("posterior", "unconstrained_posterior", "sample_stats"):
        mine, other = cut.tree[group].to_dataset(), whole.tree[group].to_dataset().isel(draw=slice(203))
        xr.testing.assert_equal(mine, other)


# How a run ends


def test_stops_when_good():
    fit = correlated_fit()
    assert fit.run["stopped"] == "stopped: R-hat and effective sample sizes meet the criteria"
    assert fit.verdict.usable
    assert MIN_SAMPLES <= fit.posterior.sizes["draw"] < 20_000
    assert fit.run["num_samples"] == fit.posterior.sizes["draw"]
    assert fit.run["seed"] == seed(11)
    assert fit.run["num_warmup"] == 200
    assert fit.run["trajectories"] == "hmc"  # of a normal posterior
    assert "Laplace" in fit.run["start"]
    assert set(fit.timing) == {"centering", "trace", "start", "compile", "warmup", "sampling", "judging"}


def test_a_sampled_fit_is_loaded_as_it_was(tmp_path):
    fit = correlated_fit()
    back = hbm.load(fit.save(tmp_path / "run"))
    for group in fit.tree.children:
        xr.testing.assert_identical(back.tree[group].to_dataset(), fit.tree[group].to_dataset())
    assert str(back.verdict) == str(fit.verdict)
    assert back.run == fit.run
    assert back.timing == pytest.approx(fit.timing)


# Precision, devices, settings


def test_settings_of_the_caller_are_untouched(schools, capsys):
    with jax.enable_x64(False):
        fit = few_of_schools(progress=True)
        assert not jax.config.jax_enable_x64
        assert jax.numpy.ones(1).dtype == np.float32
    assert jax.config.jax_enable_x64
    np.testing.assert_array_equal(fit.posterior["mu"], schools.posterior["mu"])
    assert fit.tree["unconstrained_posterior"]["position"].dtype == np.float64
    # Not only in name: float32 would leave nothing in the last 29 bits.
    position = fit.tree["unconstrained_posterior"]["position"].to_numpy()
    assert (position != position.astype(np.float32)).mean() > 0.9
    out, err = capsys.readouterr()
    assert out == ""
    assert "stopped: all requested draws are done: 4 x 90 draws in " in err
    assert fit.run["num_devices"] == 2


@pytest.mark.long
def test_float32_on_request_and_a_budget(capsys, monte_carlo):
    options = {"num_chains": 3, "num_warmup": 100, "max_num_samples": 400, "until": 1e6}
    fit = hbm.sample(
        tiny, seed=seed(0), dtype="float32", progress=False, sampler=hbm.HMC(trajectory_length=1.5), **options
    )
    assert fit.run["stopped"] == "stopped: the budget of 400 draws per chain is spent"
    assert fit.posterior["a"].dtype == np.float32
    assert fit.run["dtype"] == "float32"
    assert fit.run["num_devices"] == 1  # two devices do not divide three chains
    assert jax.config.jax_enable_x64
    assert fit.posterior.sizes == {"chain": 3, "draw": 400}
    monte_carlo.mean(fit.posterior["a"].to_numpy().astype(float), 2.0, name="mean", min_ess=200)
    assert np.abs(fit.posterior["b"].to_numpy()).max() < 1.0
    assert capsys.readouterr() == ("", "")


# Bad options


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"num_chains": 0}, "expected num_chains >= 1"),
        ({"num_samples": 3}, "num_samples >= 4"),
        ({"num_samples": 0}, "num_samples >= 4"),
        ({"max_num_samples": 1}, "max_num_samples >= 4"),
        ({"num_warmup": -1}, "num_warmup"),
        ({"dtype": "float16"}, "expected dtype 'float64' or 'float32'; found 'float16'"),
    ],
)
def test_bad_options(options, found, monkeypatch):
    monkeypatch.setattr(run_module, "build_target", None)  # refused before any work
    with pytest.raises(ValueError, match=found):
        hbm.sample(tiny, progress=False, **options)


def test_a_density_too_small_for_an_accelerator_is_told(monkeypatch):
    from hbm_jax.inference.batch import chees
    from hbm_jax.inference.compilation.devices import SMALL, advice

    assert advice("cpu", 1.0) == ""
    assert advice("gpu", 4e6) == advice("gpu", SMALL) == ""  # as measured on a GPU
    assert "2e+06 operations, and an accelerator needs 3e+06" in advice("gpu", 2e6)
    assert "JAX_PLATFORMS=cpu" in advice("gpu", 1e5)
    # What is counted is the gradient of all chains: a sum of N squares has about 3 N operations, with its gradient.
    slopes = jax.vmap(jax.value_and_grad(lambda x: ((x - np.arange(1000.0)) ** 2).sum()))
    counted = chees.operations(slopes, 1000, 4)
    assert 4 * 2000 < counted < 4 * 6000


def transit(times):
    t0 = numpyro.sample("t0", dist.Normal(2459000.5, 1.0))
    with numpyro.plate("time", len(times)):
        numpyro.sample("times", dist.Normal(t0, 0.05), obs=times)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [hbm.NUTS, functools.partial(hbm.HMC, trajectory_length=1.5), hbm.IndependentProposals],
)
def test_a_date_in_single_precision_is_not_usable(kind):
    """No number of single precision lies within the posterior but one."""
    options = {"sampler": kind(max_tree_depth=3), "num_warmup": 50, "progress": False, "dtype": "float32"}
    fit = hbm.sample(transit, np.full(5, 2459000.5), **options)
    assert fit.run["stopped"] == "stopped: t0 never moved"  # more draws would not help
    assert fit.run["num_samples"] == MIN_SAMPLES
    assert np.unique(fit.posterior["t0"]).size == 1
    assert fit.verdict.reasons == ("t0 never moved: all draws are the same number",)
    assert 'dtype="float64"' in fit.verdict.advice[0]


@pytest.mark.long
def test_the_step_size_of_trajectories_has_bounds_in_single_precision():
    """Between two numbers of single precision, where the energy error does not fall with the step size."""
    options = {"num_warmup": 200, "sampler": hbm.HMC(max_tree_depth=5, trajectory_length=1.5), "progress": False}
    fit = hbm.sample(transit, np.full(5, 2459000.88), dtype="float32", **options)
    assert fit.tree["sample_stats"]["n_steps"].max() <= 2**5
    assert fit.tree["sample_stats"]["n_steps"].min() >= 1
    assert fit.run["stopped"] in ("stopped: t0 never moved", "stopped: t0 moved in coarse steps")
    assert fit.run["num_samples"] == MIN_SAMPLES
    assert any("t0 moved in steps" in reason or "t0 never moved" in reason for reason in fit.verdict.reasons)


@pytest.mark.long
def test_steps_of_short_trajectories_have_no_size_without_end():
    """Every trajectory is one step, whatever its adapted size; a longer one than any trajectory is never taken."""

    def program():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    options = {"num_warmup": 100, "num_samples": 50, "num_chains": 2, "progress": False}
    fit = hbm.sample(program, sampler=hbm.HMC(trajectory_length=0.3), **options)
    assert (fit.tree["sample_stats"]["n_steps"] == 1).all()
    np.testing.assert_allclose(fit.tree["sample_stats"]["step_size"], 0.6)


def test_density_of_proposals_is_that_of_two_normals():
    noise = np.random.default_rng(1).normal(size=(20, 3)) * 2.0
    parts = [
        p * stats.multivariate_normal(np.zeros(3), s**2 * np.eye(3)).pdf(noise)
        for p, s in zip(independence.WEIGHTS, independence.SCALES, strict=True)
    ]
    # But for the constant of three dimensions.
    expected = np.log(np.sum(parts, axis=0)) + 1.5 * np.log(2.0 * np.pi)
    np.testing.assert_allclose(independence._log_density(jnp.asarray(noise)), expected, rtol=1e-12)
