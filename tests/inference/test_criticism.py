"""Log likelihoods, prediction of data left out and comparison, as functions of draws whose posterior is known."""

import dataclasses
import warnings

import arviz_stats
import jax
import numpy as np
import numpyro
import pytest
import xarray as xr
from arviz_stats.base import array_stats
from criticised import (
    GROUP_OF,
    GROUPS,
    MEASURED,
    NOISE,
    NOISE_OF_LINE,
    NOISE_OF_PAIR,
    NUM_STARS,
    PER_GROUP,
    SLOPE,
    density_of_groups_left_out,
    density_of_line_left_out,
    flat_line,
    group_fit,
    line,
    line_data,
    line_fit,
    line_loo,
    log_density_of_pairs,
    marginal_groups,
    pair_fit,
    sampled_groups,
    supernova_fit,
    tail_index_of_line,
    with_bad,
)
from monte_carlo import seed
from numpyro import distributions as dist
from programs import fit_of_draws
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference import compare, log_likelihood, loo, prior_sensitivity
from hbm_jax.inference.criticism import leave_out
from hbm_jax.inference.criticism.pointwise import thinned


def psis(log_likelihood):
    """ArviZ's PSIS-LOO of log likelihoods (chain, draw, unit) of SciPy."""
    sizes = zip(("chain", "draw", "unit"), log_likelihood.shape, strict=True)
    array = xr.DataArray(log_likelihood, dims=("chain", "draw", "unit"), coords={d: np.arange(n) for d, n in sizes})
    efficiency = [
        array_stats.ess(np.exp(one), chain_axis=0, draw_axis=1, method="mean") / one.size
        for one in np.moveaxis(log_likelihood, -1, 0)
    ]
    tree = xr.DataTree.from_dict({"log_likelihood": xr.Dataset({"y": array})})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter")
        return arviz_stats.loo(tree, pointwise=True, reff=np.mean(efficiency))


def assert_psis_of(result, log_likelihood):
    """A result is the PSIS-LOO of these log likelihoods."""
    expected = psis(log_likelihood)
    np.testing.assert_allclose(result.table["elpd"], expected.elpd_i, rtol=1e-9)
    np.testing.assert_allclose(result.table["pareto_k"], expected.pareto_k, rtol=1e-6, atol=1e-6)
    assert result.elpd == pytest.approx(float(expected.elpd_i.sum()), rel=1e-9)
    assert result.se == pytest.approx(np.sqrt(expected.elpd_i.size) * float(np.std(expected.elpd_i)), rel=1e-9)
    mean_density = np.log(np.mean(np.exp(log_likelihood), axis=(0, 1)))
    assert result.p == pytest.approx(mean_density.sum() - result.elpd, rel=1e-6)


def error_of_importance(log_likelihood):
    """Standard error of each unit's predictive density, from the spread of the importance weights 1 / density."""
    weights = np.exp(-log_likelihood)
    return weights.std(axis=(0, 1)) / weights.mean(axis=(0, 1)) / np.sqrt(weights[..., 0].size)


def log_likelihood_of_line(fit):
    """(chain, draw, star), by SciPy."""
    draws = fit.posterior["coefficient"].to_numpy()
    return stats.norm(draws[..., :1] + draws[..., 1:] * fit.data.x, NOISE_OF_LINE).logpdf(fit.data.y)


# Log likelihoods


def test_log_likelihood_is_scipys_at_every_draw_whatever_the_chunks():
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    values = log_likelihood(fit, chunk=333)["y"]
    assert values.dims == ("chain", "draw", "star")
    np.testing.assert_allclose(values, log_likelihood_of_line(fit), rtol=1e-10)
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    few = log_likelihood(fit, chunk=7, num_draws=10)["y"]
    assert list(few["draw"].to_numpy()) == [0, 500, 999]  # three of each chain, spread evenly
    np.testing.assert_allclose(few, values.sel(draw=few["draw"]), rtol=1e-12)
    with pytest.raises(ValueError, match="expected 1 or more draws at a time; found 0"):
        log_likelihood(fit, chunk=0, num_draws=3)
    with pytest.raises(ValueError, match="num_draws: expected 1 or more; found 0"):
        log_likelihood(fit, num_draws=0)


def test_log_likelihood_is_kept_only_on_request_and_where_arviz_looks(tmp_path):
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    loo(fit, num_draws=40)
    log_likelihood(fit, num_draws=40)
    assert "log_likelihood" not in fit.tree
    kept = log_likelihood(fit)
    assert fit.tree["log_likelihood"].to_dataset().identical(kept)
    np.testing.assert_array_equal(fit.tree["observed_data"]["y"], fit.data.y)
    ours, theirs = loo(fit), arviz_stats.loo(fit.tree, pointwise=True)
    assert ours.elpd == pytest.approx(theirs.elpd, abs=0.05)
    np.testing.assert_array_equal(ours.table["elpd"], line_loo().table["elpd"])
    assert len(loo(fit, num_draws=400).table) == NUM_STARS
    fit.save(tmp_path / "line")
    loaded = hbm.load(tmp_path / "line")
    assert loo(loaded).elpd == pytest.approx(ours.elpd, abs=1e-9)


@pytest.mark.long
def test_log_likelihood_of_marginal_supernovae_is_a_multivariate_normal():
    fit, sne = supernova_fit(), supernova_fit().data
    values = log_likelihood(fit)["observed"]
    assert values.dims == ("chain", "draw", "supernova")
    assert list(values["supernova"].to_numpy()) == list(sne.name)
    for chain, draw in ((0, 0), (3, 249)):
        p = {name: float(v) for name, v in fit.posterior.isel(chain=chain, draw=draw).items()}
        cosmology = hbm.cosmology.Cosmology.flat(H0=70.0, Om0=p["Om0"], w0=p["w0"]).to_astropy()
        for i in (0, 11, 19):
            # In the container's order: m_b, x1, c.
            distance = cosmology.comoving_distance(sne.z_cmb[i]).value * (1 + sne.z_hel[i])
            step = p["delta_M"] * (sne.log10_mass[i] > 10)
            centre = 5 * np.log10(distance) + 25 + p["M0"] + step - p["alpha"] * p["x1_mean"] + p["beta"] * p["c_mean"]
            loading = np.array([-p["alpha"], 1.0, 0.0]), np.array([p["beta"], 0.0, 1.0])
            covariance = sne.covariance[i] + p["x1_std"] ** 2 * np.outer(loading[0], loading[0])
            covariance += p["c_std"] ** 2 * np.outer(loading[1], loading[1])
            covariance[0, 0] += p["sigma_int"] ** 2 + sne.variance_lensing[i] + sne.variance_velocity[i]
            exact = stats.multivariate_normal([centre, p["x1_mean"], p["c_mean"]], covariance)
            seen = [sne.m_b[i], sne.x1[i], sne.c[i]]
            assert float(values[chain, draw, i]) == pytest.approx(exact.logpdf(seen), abs=1e-5)


def test_double_precision_within_and_the_callers_setting_without():
    with jax.enable_x64(False):
        values = log_likelihood(line_fit(), num_draws=4)
        assert not jax.config.jax_enable_x64
    assert values["y"].dtype == np.float64
    exact = log_likelihood_of_line(line_fit())[:, [0]]
    np.testing.assert_allclose(values["y"], exact, rtol=1e-13)


# Leaving out


def test_loo_is_the_exact_leave_one_out_density(monte_carlo):
    fit, result = line_fit(), line_loo()
    log_density = log_likelihood_of_line(fit)
    assert_psis_of(result, log_density)
    for i, error in enumerate(error_of_importance(log_density)):
        exact = density_of_line_left_out(fit.data, [i])
        monte_carlo.within(result.table["elpd"].iloc[i], exact, error, name=f"star {i}")
    assert 1.0 < result.p < 3.0  # two parameters
    assert result.reliable
    assert result.good_k == pytest.approx(0.7)  # of 4000 draws
    assert "each star left out in turn (36)" in str(result)
    assert "Reliable: every one with Pareto k below 0.70." in str(result)
    assert f"{result.table['pareto_k'].max():.2f}, of {result.table['pareto_k'].idxmax()}" in str(result)
    assert result.table.index[3] == "star 3"
    np.testing.assert_array_equal(result.observed["y"], fit.data.y)


def test_draws_that_depend_on_each_other_count_for_fewer(monkeypatch):
    told = []
    arviz_loo = leave_out.arviz_loo
    monkeypatch.setattr(
        leave_out, "arviz_loo", lambda tree, **options: told.append(options) or arviz_loo(tree, **options)
    )
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    log_likelihood(fit)
    one = loo(fit)
    np.testing.assert_array_equal(one.table["elpd"], line_loo().table["elpd"])
    each_twice = xr.concat([fit.tree["log_likelihood"].to_dataset()] * 2, dim="draw").sortby("draw")
    fit.tree["log_likelihood"] = xr.DataTree(each_twice.assign_coords(draw=np.arange(2000)))
    loo(fit)
    assert [options["reff"] for options in told] == pytest.approx([1.0, 0.5], rel=0.2)


@pytest.mark.parametrize("by", ["name", "labels"])
def test_leaving_groups_out_is_the_exact_joint_density(by, monte_carlo):
    fit = line_fit()
    nights = np.array(fit.data.night)
    result = loo(fit, group="night" if by == "name" else nights)
    names = list(dict.fromkeys(fit.data.night))
    assert list(result.table.index) == names
    assert result.unit == ("night" if by == "name" else "group")
    assert result.dim == "star"
    rows = [np.flatnonzero(nights == name) for name in names]
    log_density = log_likelihood_of_line(fit)
    in_groups = np.stack([log_density[..., r].sum(axis=-1) for r in rows], axis=-1)
    assert_psis_of(result, in_groups)
    errors = error_of_importance(in_groups)
    # Beyond a quarter the spread of the weights, by which the error is judged, has no variance itself.
    good = [g for g in range(5) if tail_index_of_line(fit.data, rows[g]) < 0.25]
    assert len(good) == 2
    for g in good:
        exact = density_of_line_left_out(fit.data, rows[g])
        monte_carlo.within(result.table["elpd"].iloc[g], exact, errors[g], name=names[g])
    for members, expected, number in zip(result.members, rows, result.table["num_observations"], strict=True):
        np.testing.assert_array_equal(members, expected)
        assert number == len(expected)
    assert "with 5 units the standard error is itself uncertain" in str(result)


def test_leaving_groups_out_with_marginal_effects_agrees_with_exact_refits(monte_carlo):
    fit = group_fit(marginal_groups)
    result = loo(fit)
    mu, tau = (fit.posterior[name].to_numpy()[..., None] for name in ("mu", "tau"))
    in_groups = MEASURED.reshape(GROUPS, PER_GROUP)
    mean, squares = in_groups.mean(axis=1), in_groups.var(axis=1) * PER_GROUP
    log_density = stats.norm.logpdf(mean, mu, np.sqrt(tau**2 + NOISE**2 / PER_GROUP)) - 0.5 * squares / NOISE**2
    log_density += np.log(np.sqrt(2 * np.pi * NOISE**2 / PER_GROUP)) - 0.5 * PER_GROUP * np.log(2 * np.pi * NOISE**2)
    assert_psis_of(result, log_density)
    errors = error_of_importance(log_density)
    for g, exact in enumerate(density_of_groups_left_out()):
        monte_carlo.within(result.table["elpd"].iloc[g], exact, errors[g], name=f"group {g}")
    # By the draws, that is: 0.7 is the limit for 4000 of them (Vehtari et al. 2024).
    assert result.reliable == (result.table["pareto_k"].max() <= 0.7)
    assert "sampled" not in str(result)


@pytest.mark.long
def test_sampled_effects_are_named_and_do_worse():
    fit = group_fit(sampled_groups)
    conditional, marginal = loo(fit, group=GROUP_OF), loo(group_fit(marginal_groups))
    assert conditional.table["pareto_k"].mean() > marginal.table["pareto_k"].mean() + 0.2
    assert not conditional.reliable
    assert "the latents effect are sampled, not integrated out" in str(conditional)
    assert "integrate the latents out" in str(conditional)
    assert "are sampled" not in str(loo(fit))  # the other members of a group still say what its effect is
    effect = fit.posterior["effect"].to_numpy()
    log_density = stats.norm.logpdf(MEASURED, effect[..., GROUP_OF], NOISE).reshape(*effect.shape, PER_GROUP)
    assert_psis_of(conditional, log_density.sum(axis=-1))
    # The quantity itself is the same, but importance sampling does not get there.
    excess = conditional.table["elpd"] - density_of_groups_left_out()
    assert excess.mean() > 0.2


def test_everything_measured_of_an_object_is_left_out_together(monte_carlo):
    fit = pair_fit()
    x, y = fit.args
    slope, true = fit.posterior["slope"].to_numpy()[..., None], fit.posterior["true"].to_numpy()
    log_density = {
        "x_seen": stats.norm.logpdf(x, true, NOISE_OF_PAIR),
        "y_seen": stats.norm.logpdf(y, slope * true, NOISE_OF_PAIR),
    }
    values = log_likelihood(dataclasses.replace(fit, tree=fit.tree.copy()))
    assert set(values) == set(log_density)
    for name, expected in log_density.items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-9)
    result = loo(fit)
    assert result.sites == ("x_seen", "y_seen")
    assert_psis_of(result, sum(log_density.values()))
    assert "x_seen, y_seen are left out together" in str(result)
    assert "the latents true are sampled" in str(result)
    assert "the factors own belong to no observation" in str(result)
    lone = loo(fit, site="x_seen")
    assert lone.sites == ("x_seen",)
    assert_psis_of(lone, log_density["x_seen"])
    # Without the object, the latents integrated out and the slope summed over a grid.
    log_object, log_prior = log_density_of_pairs(x, y), stats.norm.logpdf(SLOPE)
    joint = np.logaddexp.reduce(log_prior + log_object.sum(axis=0))
    errors = error_of_importance(sum(log_density.values()))
    for i in range(12):
        others = np.logaddexp.reduce(log_prior + np.delete(log_object, i, axis=0).sum(axis=0))
        monte_carlo.within(result.table["elpd"].iloc[i], joint - others, errors[i], name=f"object {i}")


def masked(y, seen):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("i", len(y)), numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_masked_observations_are_left_aside():
    seen, y = np.array([True] * 11 + [False]), np.linspace(-1.0, 1.0, 12)
    draws = np.random.default_rng(seed(8)).normal(y[:11].sum() / 12.0, 12**-0.5, (4, 250))
    result = loo(fit_of_draws(masked, (y, seen), {"x": draws}))
    assert list(result.table.index) == [str(i) for i in range(11)]
    assert "1 excluded because the likelihood does not depend on the parameters (masked?)" in str(result)
    assert_psis_of(result, stats.norm.logpdf(y[:11], draws[..., None], 1.0))


# Comparison


@pytest.mark.long
def test_comparison_prefers_the_model_the_data_come_from():
    fits = {"constant": line_fit(program=flat_line), "line": line_fit()}
    result = compare(fits)
    assert list(result.table.index) == ["line", "constant"]
    one, other = (line_loo(program).table["elpd"].to_numpy() for program in (flat_line, line))
    row = result.table.loc["constant"]
    assert row["elpd_diff"] == pytest.approx(np.sum(one - other), rel=1e-9)
    assert row["elpd_diff"] < -10
    assert row["dse"] == pytest.approx(np.sqrt(NUM_STARS) * np.std(one - other), rel=1e-9)
    assert row["elpd"] == pytest.approx(one.sum(), rel=1e-9)
    assert row["se"] == pytest.approx(np.sqrt(NUM_STARS) * np.std(one), rel=1e-9)
    assert row["p"] == pytest.approx(line_loo(flat_line).p)
    assert result.table["weight"].sum() == pytest.approx(1.0)
    assert result.table["weight"]["line"] > 0.9
    assert str(result).startswith("line predicts best; the elpd of constant is lower by")
    assert f"{-row['elpd_diff'] / row['dse']:.1f} standard errors" in str(result)
    spoilt = compare({"constant": with_bad(line_loo(flat_line), "star 3"), "line": line_loo()})
    assert list(spoilt.table["num_bad_k"]) == [0, 1]
    assert "Not reliable: units with a bad Pareto k in constant (1)" in str(spoilt)


def test_models_that_predict_alike_are_called_so():
    a, b = line_loo(), loo(line_fit(), num_draws=2000)
    assert len(b.table) == NUM_STARS
    assert "a negligible difference" in str(compare({"a": a, "b": b}))


def test_differences_within_their_errors_are_said_not_to_tell_models_apart():
    better = line_loo()
    shift = np.where(np.arange(NUM_STARS) % 2, 3.0, -3.3)
    worse = dataclasses.replace(better, table=better.table.assign(elpd=better.table["elpd"] + shift))
    text = str(compare({"a": better, "b": worse}))
    assert "the elpd of b is lower by 5.4 ± 18.9, which is not significant" in text


def test_tiny_densities_do_not_spoil_the_weights():
    fits = {"a": line_loo(), "b": line_loo(flat_line)}
    low = {n: dataclasses.replace(r, table=r.table.assign(elpd=r.table["elpd"] - 5000.0)) for n, r in fits.items()}
    np.testing.assert_allclose(compare(low).table["weight"], compare(fits).table["weight"], atol=1e-6)


def test_other_observations_are_refused_by_name():
    with pytest.raises(ValueError, match="at least two fits; found 1"):
        compare({"a": line_fit()})
    result = line_loo()
    y = line_data(outlier=6.0).y
    with pytest.raises(ValueError, match=r"y\[35\] is .* in a and .* in b"):
        compare({"a": result, "b": dataclasses.replace(result, observed={"y": y})})
    with pytest.raises(ValueError, match="a has the observed sites y, b has z"):
        compare({"a": result, "b": dataclasses.replace(result, sites=("z",))})
    short = dataclasses.replace(result, observed={"y": y[:20]})
    with pytest.raises(ValueError, match=r"y has shape \(36,\) in a and \(20,\) in b"):
        compare({"a": result, "b": short})
    with pytest.raises(ValueError, match="a leaves out 36 x star, b 5 x night"):
        compare({"a": result, "b": loo(line_fit(), group="night")})


# Errors


def no_data():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("own", 0.0)


def one_event(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0).expand([len(y)]).to_event(1), obs=y)


def two_sites(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    numpyro.sample("z", dist.Normal(x, 1.0), obs=y[:2])


def test_errors_name_what_was_expected():
    draws = {"x": np.random.default_rng(9).normal(size=(4, 20))}
    fit, empty = line_fit(), fit_of_draws(no_data, (), draws)
    for function in (log_likelihood, loo, prior_sensitivity):
        with pytest.raises(ValueError, match="expected a fit with its program and data, found one without"):
            function(dataclasses.replace(fit, program=None))
        with pytest.raises(ValueError, match=r"expected a program with observed sites.*found none"):
            function(empty)
    with pytest.raises(ValueError, match=r"found none, but factors \(own\) in no_data"):
        log_likelihood(empty)
    with pytest.raises(ValueError, match=r"expected the program of the draws, with 2 .* found another, with 1"):
        loo(dataclasses.replace(fit, program=flat_line))
    with pytest.raises(ValueError, match=r"one group label for each entry of the site, 36 \(star\); .* shape \(35,\)"):
        loo(fit, group=np.zeros(35))
    with pytest.raises(ValueError, match=r"name of a dimension or of a field of the data \(.*night.*\); found 'nigth'"):
        loo(fit, group="nigth")
    with pytest.raises(ValueError, match="expected one of the observed sites y; found site='z'"):
        loo(fit, site="z")
    y = np.linspace(-1.0, 1.0, 5)
    with pytest.raises(ValueError, match="a single one for all data of y"):
        loo(fit_of_draws(one_event, (y,), draws))
    with pytest.raises(ValueError, match=r"found y over \(y_dim_0: 5\); z over \(z_dim_0: 2\)"):
        loo(fit_of_draws(two_sites, (y,), {"x": draws["x"][..., None]}))
    with pytest.raises(ValueError, match="expected sites among coefficient; found slope"):
        prior_sensitivity(fit, sites=["slope"])


def test_log_likelihoods_that_are_not_finite_or_of_one_unit_are_refused():
    fit = dataclasses.replace(line_fit(), tree=line_fit().tree.copy())
    kept = log_likelihood(fit)
    fit.tree["log_likelihood"] = xr.DataTree(kept.where(kept["star"] != "star 2", -np.inf))
    with pytest.raises(
        ValueError, match="finite log likelihoods; found 1 star with NaN or infinity, the first being star 2"
    ):
        loo(fit)
    with pytest.raises(ValueError, match=r"log likelihood of at least two units; found 1 \(group\)"):
        loo(line_fit(), group=np.zeros(NUM_STARS))


def test_fits_are_compared_by_name():
    with pytest.raises(ValueError, match=r"compare: expected a dictionary of fits .*; found list"):
        compare([1, 2])
    with pytest.raises(ValueError, match=r"compare: expected a dictionary of fits .*; found int, str"):
        compare({"a": "line", "b": 1})


def test_draws_are_spread_evenly_over_each_chain():
    assert list(thinned((2, 10), None)) == list(range(10))
    assert list(thinned((2, 10), 1)) == [0]
    assert list(thinned((2, 10), 5)) == [0, 4, 9]  # three of each of two chains are five or more
    assert list(thinned((2, 10), 1000)) == list(range(10))
    with pytest.raises(ValueError, match="num_draws: expected 1 or more; found 0"):
        thinned((2, 10), 0)
