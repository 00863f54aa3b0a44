"""The loop: right posteriors, the same draws for the same seed however they are cut, and how a run ends."""

import functools
import json
import re
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import programs
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from numpyro import distributions as dist
from programs import COVARIANCE, MEAN, correlated, correlated_fit, eight_schools_fit, tiny
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import chains as chains_module
from hbm_jax.inference import loop as loop_module
from hbm_jax.inference import sampling
from hbm_jax.inference import start as start_module
from hbm_jax.inference.stopping import MIN_SAMPLES, StopRule
from hbm_jax.inference.target import OneProcess


def ess(values):
    return float(array_stats.ess(np.asarray(values), chain_axis=0, draw_axis=1))


@pytest.fixture(scope="module")
def schools(shared_data):
    return eight_schools_fit(shared_data("hierarchical/posteriordb/eight_schools.json"))


# What is drawn is the posterior


def test_correlated_normal_mean_and_covariance():
    draws = correlated_fit().posterior["x"].to_numpy()
    sizes = np.array([ess(draws[..., i]) for i in range(5)])
    assert sizes.min() > 1500
    error = (draws.mean(axis=(0, 1)) - MEAN) / np.sqrt(np.diag(COVARIANCE) / sizes)
    assert np.abs(error).max() < 4
    for i in range(5):
        for j in range(i, 5):
            product = (draws[..., i] - MEAN[i]) * (draws[..., j] - MEAN[j])
            assert ess(product) > 1000
            assert abs(product.mean() - COVARIANCE[i, j]) < 4 * product.std() / np.sqrt(ess(product)), (i, j)


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
    assert 0.7 < float(stats["acceptance_rate"].mean()) <= 1.0
    assert (stats["step_size"] > 0).all()
    np.testing.assert_array_equal(fit.tree["unconstrained_posterior"]["position"], x)


def test_eight_schools_against_posteriordb(schools, shared_data):
    path = shared_data("hierarchical/posteriordb/reference_summary.json")
    reference = json.loads(path.read_text())["eight_schools-eight_schools_noncentered"]["parameters"]
    assert len(reference) >= 10
    draws = {name: schools.posterior[name].to_numpy() for name in ("mu", "tau")}
    draws |= {f"theta[{i + 1}]": schools.posterior["theta"].to_numpy()[..., i] for i in range(8)}
    for name, values in draws.items():
        assert ess(values) > 2000, name
        error = np.hypot(values.std() / np.sqrt(ess(values)), reference[name]["mcse_mean"])
        assert abs(values.mean() - reference[name]["mean"]) < 4 * error, name
        below = values < reference[name]["q16"]
        assert abs(below.mean() - 0.16) < 4 * 0.37 * np.sqrt(1 / ess(below) + 1 / reference[name]["ess_bulk"]), name
    assert schools.verdict.worst_r_hat[1] < 1.01


def test_without_an_approximation_scales_are_learnt_in_warm_up(monkeypatch):
    monkeypatch.setattr(start_module, "MAX_DENSE", 0)
    monkeypatch.setattr(start_module, "_variational", lambda *_, **__: None)
    width = np.array([0.01, 1.0, 100.0])
    fit = hbm.sample(programs.scales, width, seed=3, num_samples=1000, progress=False)
    assert "diagonal metric" in fit.run["start"]
    assert fit.run["num_warmup"] == 1000
    x = fit.posterior["x"].to_numpy() / width
    for i in range(3):
        assert ess(x[..., i]) > 1000
        assert abs(x[..., i].mean()) < 4 / np.sqrt(ess(x[..., i]))
        assert abs((x[..., i] ** 2).mean() - 1) < 4 * np.sqrt(2 / ess(x[..., i] ** 2))
    assert np.quantile(fit.tree["sample_stats"]["n_steps"], 0.99) <= 15  # adapted, else a hundred times as many


def test_a_low_rank_metric_draws_the_same_posterior_in_fewer_steps(monkeypatch):
    monkeypatch.setattr(start_module, "MAX_DENSE", 0)
    size = 40
    direction = np.ones(size) / np.sqrt(size)
    covariance = np.eye(size) + 400.0 * np.outer(direction, direction)
    program = functools.partial(correlated, np.zeros(size), covariance)
    fit = hbm.sample(program, seed=4, num_samples=1000, progress=False)
    assert "low-rank metric" in fit.run["start"]
    along = fit.posterior["x"].to_numpy() @ direction
    assert ess(along) > 1000
    assert abs(along.mean()) < 4 * np.sqrt(401.0 / ess(along))
    assert abs((along**2).mean() / 401.0 - 1) < 4 * np.sqrt(2 / ess(along**2))
    np.testing.assert_array_equal(fit.tree["unconstrained_posterior"]["position"], fit.posterior["x"])
    assert np.median(fit.tree["sample_stats"]["n_steps"]) <= 7  # 60 with a diagonal one


# Independent proposals between trajectories


def skewed():
    """Two parameters that are not normal where they are sampled, and two that go together."""
    numpyro.sample("tails", dist.StudentT(4.0, 1.0, 2.0))
    numpyro.sample("rate", dist.Gamma(4.0, 2.0))
    numpyro.sample("x", dist.MultivariateNormal(np.array([1.0, -2.0]), np.array([[1.0, 0.9], [0.9, 1.5]])))


PROPOSALS = {"independent_proposals": True, "num_chains": 2, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proposed") / "run"
    return hbm.sample(skewed, num_samples=10_000, checkpoint=folder, **PROPOSALS), folder


def test_independent_proposals_draw_the_posterior_also_where_it_is_not_normal(proposed):
    fit, _ = proposed
    exact = {"tails": stats.t(4.0, 1.0, 2.0), "rate": stats.gamma(4.0, scale=0.5)}
    draws = {name: fit.posterior[name].to_numpy() for name in exact}
    for i, (mean, variance) in enumerate(((1.0, 1.0), (-2.0, 1.5))):
        exact[f"x[{i}]"], draws[f"x[{i}]"] = stats.norm(mean, np.sqrt(variance)), fit.posterior["x"].to_numpy()[..., i]
    for name, law in exact.items():
        for p in (0.01, 0.16, 0.5, 0.84, 0.99):
            below = draws[name] < law.ppf(p)
            assert ess(below) > 100  # in the far tail of Student: chains stay there for long
            assert abs(below.mean() - p) < 4 * np.sqrt(p * (1 - p) / ess(below)), (name, p)
    x = fit.posterior["x"].to_numpy()
    product = (x[..., 0] - 1.0) * (x[..., 1] + 2.0)
    assert abs(product.mean() - 0.9) < 4 * product.std() / np.sqrt(ess(product))
    assert fit.verdict.usable


def test_one_draw_in_sixteen_is_a_trajectory(proposed):
    fit, _ = proposed
    found = fit.tree["sample_stats"].to_dataset()
    moved = found["n_steps"].to_numpy() > 0
    assert fit.run["proposals_used"]
    assert moved[0].sum() == 10_000 // 16
    assert (moved[0] == moved[1]).all()
    assert (np.diff(np.flatnonzero(moved[0])) == 16).all()
    assert (np.isfinite(found["energy"].to_numpy()) == moved).all()  # a proposal has no momentum
    stays = (np.diff(found["lp"].to_numpy(), axis=1) == 0) & ~moved[:, 1:]
    assert stays.mean() == pytest.approx(1.0 - found["acceptance_rate"].to_numpy()[:, 1:].mean(), abs=0.02)
    position = fit.tree["unconstrained_posterior"]["position"].to_numpy()[0]
    rate, tails, x = position[:, 0], position[:, 1], position[:, 2:]
    exact = stats.multivariate_normal([1.0, -2.0], [[1.0, 0.9], [0.9, 1.5]]).logpdf(x)
    exact = exact + stats.gamma(4.0, scale=0.5).logpdf(np.exp(rate)) + rate + stats.t(4.0, 1.0, 2.0).logpdf(tails)
    offset = found["lp"].to_numpy()[0] - exact
    np.testing.assert_allclose(offset, 0.0, atol=1e-9)  # of draws of either kind


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


def test_proposals_that_are_seldom_accepted_are_given_up():
    def funnel():
        scale = numpyro.sample("log_scale", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * scale)).expand([5]).to_event(1))

    fit = hbm.sample(funnel, num_samples=100, **PROPOSALS)
    assert not fit.run["proposals_used"]
    assert (fit.tree["sample_stats"]["n_steps"] > 0).all()


def test_proposals_for_too_many_parameters_are_refused():
    with pytest.raises(ValueError, match=r"independent_proposals=True\): expected at most 100 parameters; found 101"):
        hbm.sample(programs.scales, np.ones(101), num_samples=10, **PROPOSALS)


# Trajectories of one length


def test_trajectories_of_a_given_length_draw_the_same_posterior_in_fewer_steps(tmp_path):
    factor = np.linalg.cholesky(np.array([[1.0, 0.9], [0.9, 1.5]]))

    def program():
        numpyro.sample("x", dist.MultivariateNormal(np.array([1.0, -2.0]), scale_tril=factor))
        numpyro.sample("rate", dist.Gamma(8.0, 2.0))

    options = {"seed": 3, "num_chains": 2, "progress": False}
    nuts = hbm.sample(program, num_samples=2000, **options)
    fit = hbm.sample(program, num_samples=1000, trajectory_length=1.5, checkpoint=tmp_path / "run", **options)
    fit = hbm.resume(tmp_path / "run", program, num_samples=2000, progress=False)
    whole = hbm.sample(program, num_samples=2000, trajectory_length=1.5, **options)
    np.testing.assert_array_equal(fit.posterior["x"], whole.posterior["x"])
    x, rate = fit.posterior["x"].to_numpy(), fit.posterior["rate"].to_numpy()
    sizes = [ess(x[..., 0]), ess(x[..., 1]), ess(rate)]
    assert min(sizes) > 1000
    for values, mean, std in ((x[..., 0], 1.0, 1.0), (x[..., 1], -2.0, np.sqrt(1.5)), (rate, 4.0, np.sqrt(2.0))):
        assert abs(values.mean() - mean) < 4.0 * std / np.sqrt(ess(values))
        assert values.std() == pytest.approx(std, rel=0.1)
    steps = {name: float(one.tree.sample_stats.n_steps.mean()) for name, one in (("nuts", nuts), ("hmc", fit))}
    assert steps["hmc"] < 0.75 * steps["nuts"], steps


# Dimensions and labels


def test_plates_and_coordinates(schools):
    theta = schools.posterior["theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert list(theta["school"].to_numpy()) == list("ABCDEFGH")
    assert set(schools.posterior) == {"mu", "tau", "theta"}  # _standard is the sampler's own affair
    assert "theta[C]" in schools.verdict.table.index
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
        shapes, num_samples=40, num_warmup=20, num_chains=2, dims={"vector": ["object", "axis"]}, progress=False
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

    monkeypatch.setattr(loop_module, "SECONDS_PER_BLOCK", 0.002)
    monkeypatch.setattr(loop_module, "FIRST_BLOCK", 7)
    monkeypatch.setattr(chains_module.Chains, "advance", counted)
    cut = hbm.sample(correlated, *whole.args, seed=11, num_samples=203, progress=False)
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
    assert fit.run["stopped"] == "stopped: R-hat and effective sample sizes are good"
    assert fit.verdict.usable
    assert MIN_SAMPLES <= fit.posterior.sizes["draw"] < 20_000
    assert fit.run["num_samples"] == fit.posterior.sizes["draw"]
    assert fit.run["seed"] == 11
    assert fit.run["num_warmup"] == 400
    assert "Laplace" in fit.run["start"]
    assert set(fit.timing) == {"centering", "trace", "start", "compile", "warmup", "sampling", "judging"}


class Recorder:
    """Stands in for the live line and keeps what it was told."""

    lines: ClassVar[list[str]] = []

    def __init__(self, enabled):
        self.enabled = enabled

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def show(self, text):
        self.lines.append(text)

    def close(self, text):
        self.lines.append(text)


@pytest.fixture
def interrupted(monkeypatch):
    """Runs `tiny` with Ctrl-C in the block after `draws` draws a chain."""

    def run(draws):
        advance = chains_module.Chains.advance
        done = 0

        def stop_later(self, num_draws):
            nonlocal done
            if done >= 30 + draws:
                raise KeyboardInterrupt
            num_draws = min(num_draws, 10)
            done += num_draws
            return advance(self, num_draws)

        monkeypatch.setattr(chains_module.Chains, "advance", stop_later)
        monkeypatch.setattr(loop_module, "LIVE_SHARE", np.inf)
        monkeypatch.setattr(sampling, "LiveLine", Recorder)
        monkeypatch.setattr(Recorder, "lines", [])
        return hbm.sample(tiny, num_chains=1, num_warmup=30, num_samples=1000, seed=5)

    return run


def test_ctrl_c_keeps_what_is_done(interrupted):
    fit = interrupted(40)
    assert fit.run["stopped"] == "interrupted"
    assert fit.posterior.sizes == {"chain": 1, "draw": 40}
    assert fit.run["num_devices"] == 1
    assert fit.run["num_samples"] == 40
    assert not fit.verdict.usable
    np.testing.assert_allclose(
        fit.summary()["sd"], [fit.posterior[n].to_numpy().std(ddof=1) for n in fit.summary().index]
    )
    # What the live line said on the way.
    lines = Recorder.lines
    assert lines[0] == "tracing the model"
    assert lines[1] == "searching starting points for 2 parameters"
    assert lines[2] == "compiling the sampler"
    assert lines[3].startswith("warm-up 10/30, ")
    live = [line for line in lines if "divergences" in line]
    assert live[-1].startswith("1 x 40 draws, ")
    for part in ("draws/s, 0 divergences, worst R-hat ", "smallest ESS ", " left"):
        assert part in live[-1]
    assert lines[-1].startswith("interrupted: 1 x 40 draws in ")


def test_ctrl_c_before_the_first_draws_is_passed_on():
    def advance(num_draws):
        raise KeyboardInterrupt

    chains = SimpleNamespace(target=SimpleNamespace(labels=("a",), processes=OneProcess()), buffer=50, advance=advance)
    draws = SimpleNamespace(num_draws=0, blocks=[])
    loop = loop_module.Loop(chains, draws, Recorder(False), StopRule(num_samples=100), 100, None, 0.0, False)
    for what in (loop.warm_up, loop.draw):
        with pytest.raises(hbm.inference.Interrupted, match="nothing was kept, because sample was called without"):
            what()


def test_live_line_of_stuck_chains_warns_of_nothing(monkeypatch):
    monkeypatch.setattr(Recorder, "lines", [])
    stuck = np.repeat(np.arange(4.0)[:, None], 30, axis=1)
    block = chains_module.Block(stuck[..., None], *[stuck] * 5)
    draws = SimpleNamespace(num_draws=30, raw=lambda name: getattr(block, name))
    chains = SimpleNamespace(target=SimpleNamespace(labels=("a",), processes=OneProcess()))
    loop = loop_module.Loop(chains, draws, Recorder(True), StopRule(), 0, None, 0.0, False)
    loop._report(block)
    assert float(re.search(r"worst R-hat (\S+) \(a\)", Recorder.lines[-1])[1]) > 1e6


# Precision, devices, settings


def test_settings_of_the_caller_are_untouched(capsys):
    with jax.enable_x64(False):
        fit = hbm.sample(tiny, num_warmup=50, num_samples=25, progress=True)
        assert not jax.config.jax_enable_x64
        assert jax.numpy.ones(1).dtype == np.float32
    assert jax.config.jax_enable_x64
    assert fit.posterior["a"].dtype == np.float64
    assert fit.tree["unconstrained_posterior"]["position"].dtype == np.float64
    # Not only in name: float32 would leave nothing in the last 29 bits.
    position = fit.tree["unconstrained_posterior"]["position"].to_numpy()
    assert (position != position.astype(np.float32)).mean() > 0.9
    out, err = capsys.readouterr()
    assert out == ""
    assert "stopped: all the draws asked for are done: 4 x 25 draws in " in err
    assert fit.run["num_devices"] == 2


def test_float32_on_request_and_a_budget(capsys):
    fit = hbm.sample(
        tiny, num_chains=3, num_warmup=100, max_num_samples=400, until=1e6, dtype="float32", progress=False
    )
    assert fit.run["stopped"] == "stopped: the budget of 400 draws a chain is spent"
    assert fit.posterior["a"].dtype == np.float32
    assert fit.run["dtype"] == "float32"
    assert fit.run["num_devices"] == 1  # two devices do not divide three chains
    assert jax.config.jax_enable_x64
    assert fit.posterior.sizes == {"chain": 3, "draw": 400}
    a = fit.posterior["a"].to_numpy().astype(float)
    assert abs(a.mean() - 2.0) < 4 * 3.0 / np.sqrt(ess(a))
    assert np.ptp(fit.posterior["b"].to_numpy()) < 2.0
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
        ({"target_accept_prob": 1.5}, "target_accept_prob"),
        ({"target_accept_prob": 0.0}, "target_accept_prob"),
        ({"target_accept_prob": float("nan")}, "target_accept_prob"),
        ({"max_tree_depth": 0}, "max_tree_depth"),
        ({"trajectory_length": 0.0}, "trajectory_length"),
    ],
)
def test_bad_options(options, found, monkeypatch):
    monkeypatch.setattr(sampling, "build_target", None)  # refused before any work
    with pytest.raises(ValueError, match=found):
        hbm.sample(tiny, progress=False, **options)


def test_rates_and_times_are_readable():
    block = chains_module.Block(*[np.zeros((4, 10))] * 6)
    assert loop_module._rate(0.001, block) == "4,000 draws/s"
    assert loop_module._rate(10.0, block) == "0.4 draws/s"
    assert [loop_module._time(t) for t in (3.2, 89, 600, 7200)] == ["3 s", "89 s", "10 min", "2.0 h"]


def test_a_density_too_small_for_an_accelerator_is_told(monkeypatch):
    from hbm_jax.inference import many_chains
    from hbm_jax.inference.devices import SMALL, advice

    assert advice("cpu", 1.0) == ""
    assert advice("gpu", 2.0 * SMALL) == ""
    assert "JAX_PLATFORMS=cpu" in advice("gpu", 1e5)
    # What is counted is the gradient of all chains: a sum of N squares has about 3 N operations, with its gradient.
    slopes = jax.vmap(jax.value_and_grad(lambda x: ((x - np.arange(1000.0)) ** 2).sum()))
    counted = many_chains.operations(slopes, 1000, 4)
    assert 4 * 2000 < counted < 4 * 6000
