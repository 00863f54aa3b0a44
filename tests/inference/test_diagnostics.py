"""The verdict: each way to fail is found, named and explained."""

import re

import numpy as np
import pytest
import xarray as xr
from arviz_stats.base import array_stats

from hbm_jax.inference.verdict import diagnose, judge

SHAPE = (4, 1000)


def draws(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape)


def random_walk(seed=0, memory=0.99):
    noise, walk = draws(seed), np.zeros(SHAPE)
    for i in range(1, SHAPE[1]):
        walk[:, i] = memory * walk[:, i - 1] + np.sqrt(1 - memory**2) * noise[:, i]
    return walk


def posterior(**variables):
    def labelled(name, values):
        return ["chain", "draw", *(f"{name}_{i}" for i in range(values.ndim - 2))], values

    return xr.Dataset({name: labelled(name, values) for name, values in variables.items()})


def stats(energy=None, diverging=0, shape=SHAPE):
    flags = np.zeros(shape, bool)
    flags.reshape(-1)[:diverging] = True
    energy = draws(99, shape) if energy is None else energy
    return xr.Dataset({"energy": (["chain", "draw"], energy), "diverging": (["chain", "draw"], flags)})


def test_independent_draws_are_usable():
    verdict = judge(posterior(a=draws(1), b=draws(2, (*SHAPE, 3))), stats())
    assert verdict.usable
    assert verdict.reasons == verdict.advice == verdict.notes == ()
    assert verdict.num_draws == 4000
    assert verdict.num_divergences == 0
    assert list(verdict.table.index) == ["a", "b[0]", "b[1]", "b[2]"]
    assert str(verdict).startswith("usable: 4000 draws without divergence, largest R-hat 1.00")
    name, value = verdict.smallest_ess
    assert f"effective sample size {value:.0f} ({name})" in str(verdict)
    assert f"smallest E-BFMI {verdict.min_bfmi:.2f}." in str(verdict)
    assert 0.8 < verdict.min_bfmi < 2.5


@pytest.mark.parametrize("num_draws", [1000, 101, 6])
@pytest.mark.parametrize("kind", ["smooth", "rounded", "shifted"])
def test_table_equals_arviz_for_each_element(kind, num_draws):
    variable = (random_walk(3, 0.5)[..., None, None] + draws(4, (*SHAPE, 2, 2)))[:, :num_draws]
    variable = {"smooth": variable, "rounded": np.round(variable), "shifted": variable + 3.0 * (variable[:1] > 0)}[kind]
    table = diagnose(posterior(v=variable))
    assert list(table.index) == ["v[0, 0]", "v[0, 1]", "v[1, 0]", "v[1, 1]"]
    axes = {"chain_axis": 0, "draw_axis": 1}
    for row, (i, j) in zip(table.itertuples(index=False), np.ndindex(2, 2), strict=True):
        element = variable[:, :, i, j]
        expected = [
            array_stats.rhat(element, **axes),
            array_stats.ess(element, **axes),
            array_stats.ess(element, method="tail", prob=(0.05, 0.95), **axes),
            array_stats.mcse(element, method="mean", **axes),
            array_stats.mcse(element, method="sd", **axes),
        ]
        np.testing.assert_allclose(row, expected, rtol=1e-9)


def test_table_does_not_depend_on_the_order_of_dimensions():
    variable = draws(4, (*SHAPE, 3))
    as_is = xr.DataArray(variable, dims=["chain", "draw", "k"])
    turned = as_is.transpose("k", "draw", "chain")
    np.testing.assert_array_equal(diagnose({"v": as_is}), diagnose({"v": turned}))


def test_labels_use_coordinates():
    variable = xr.DataArray(
        draws(5, (*SHAPE, 2, 2)), dims=["chain", "draw", "survey", "k"], coords={"survey": ["snls", "sdss"]}
    )
    assert list(diagnose({"v": variable}).index) == ["v[snls, 0]", "v[snls, 1]", "v[sdss, 0]", "v[sdss, 1]"]


def test_equal_coordinates_keep_one_row_an_element():
    variable = xr.DataArray(draws(5, (*SHAPE, 3)), dims=["chain", "draw", "sn"], coords={"sn": ["a", "b", "a"]})
    table = diagnose({"v": variable, "w": xr.DataArray(draws(6), dims=["chain", "draw"])})
    assert len(table) == 4
    assert table.index.is_unique


def test_a_shifted_chain_is_named():
    shifted = draws(6)
    shifted[2] += 1.0
    verdict = judge(posterior(good=draws(7), bad=shifted), stats())
    assert not verdict.usable
    assert verdict.worst_r_hat[0] == "bad"
    assert verdict.worst_r_hat[1] > 1.05
    r_hat = verdict.table.loc["bad", "r_hat"]
    assert f"R-hat is {r_hat:.3f} for bad (below 1.01 is needed; 1 parameter fails)" in verdict.reasons[0]
    assert str(verdict).startswith("not usable: R-hat is")
    assert "To try: Draw more, or look at the rank plot" in str(verdict)


def test_low_effective_sample_size_is_named():
    verdict = judge(posterior(good=draws(8), slow=random_walk(9, 0.97)), stats())
    bulk = [reason for reason in verdict.reasons if "bulk" in reason]
    assert len(bulk) == 1
    assert f"is {verdict.table.loc['slow', 'ess_bulk']:.0f} for slow (400 is needed; 1 parameter fails)" in bulk[0]
    assert verdict.smallest_ess[0] == "slow"
    # The same advice is given once, though bulk and tail both fail.
    assert len(set(verdict.advice)) == len(verdict.advice)


def test_divergences_are_counted():
    verdict = judge(posterior(a=draws(1)), stats(diverging=7))
    assert verdict.reasons == ("7 divergent transitions: some region was not explored",)
    assert "target_accept_prob" in verdict.advice[0]
    assert verdict.num_divergences == 7


def test_divergences_that_crowd_are_placed():
    low, other = draws(1), draws(2)
    flags = low < np.quantile(low, 0.02)
    sample_stats = stats()
    sample_stats["diverging"] = (["chain", "draw"], flags)
    verdict = judge(posterior(other=other, low=low), sample_stats)
    assert f"80 divergent transitions at low low (median {np.median(low[flags]):.3g}): some" in verdict.reasons[0]


def test_chains_in_different_modes_are_told_apart_from_slow_ones():
    split = draws(6)
    split[[1, 3]] += 40.0
    verdict = judge(posterior(good=draws(7), bad=split), stats())
    assert "chains are in different modes: chains 0, 2 near bad = " in " ".join(verdict.reasons)
    assert "chains 1, 3 near bad = 40" in " ".join(verdict.reasons)
    assert "More draws will not help" in verdict.advice[0]
    assert "hbm_jax.look_for_modes(fit)" in verdict.advice[0]
    vector = np.stack([draws(8), split], axis=-1)
    verdict = judge(posterior(v=vector, good=draws(7)), stats())
    assert "chains 1, 3 near v[1] = 40" in " ".join(verdict.reasons)
    slow = judge(posterior(a=random_walk(8, 0.999)), stats())
    assert not any("modes" in reason for reason in slow.reasons)
    assert "Draw more" in slow.advice[0]


def test_modes_that_overlap_in_every_parameter_are_told_apart_by_all_together():
    """Two modes that are 4 standard deviations apart in each of twenty parameters, which are correlated."""
    x = draws(6, (*SHAPE, 20)) @ np.linalg.cholesky(0.5 * np.eye(20) + 0.5).T
    x[[1, 3]] += 4.0 * np.where(np.arange(20) % 2, 1.0, -1.0)
    verdict = judge(posterior(x=x, sum=x.sum(axis=-1)), stats())
    text = " ".join(verdict.reasons)
    assert re.search(r"chains are in different modes: chains (0, 2|1, 3) near x\[\d+\] = .* and chains", text)
    assert "and separate in all parameters together" in text
    assert "hbm_jax.look_for_modes(fit)" in verdict.advice[0]


@pytest.mark.parametrize(
    ("size", "memory"),
    [(20, 0.99), (20, 1.0), *(pytest.param(100, m, marks=pytest.mark.long) for m in (0.9, 0.99, 0.999, 1.0))],
)
def test_slow_chains_are_in_no_modes_however_many_parameters_there_are(size, memory):
    noise, walk = draws(size, (*SHAPE, size)), np.zeros((*SHAPE, size))
    for i in range(SHAPE[1]):
        walk[:, i] = memory * walk[:, i - 1] + np.sqrt(1.0 - min(memory, 0.999) ** 2) * noise[:, i]
    verdict = judge(posterior(x=walk), stats())
    assert not verdict.usable
    assert "different modes" not in " ".join(verdict.reasons)


@pytest.mark.parametrize("when", ["between chains", "within chains"])
def test_components_that_change_places_are_to_be_relabelled(when):
    """A mixture of three components, the first two of which overlap a little."""
    rng = np.random.default_rng(5)
    components = np.array([-2.0, 2.0, 9.0]) + draws(1, (*SHAPE, 3))
    if when == "between chains":
        places = np.stack([rng.permutation(3) for _ in range(4)])[:, None, :].repeat(1000, axis=1)
        assert len(np.unique(places[:, 0], axis=0)) > 1
    else:  # every few hundred draws
        places = np.stack([np.repeat([rng.permutation(3) for _ in range(5)], 200, axis=0) for _ in range(4)])
    mu = np.take_along_axis(components, places, axis=-1)
    verdict = judge(posterior(mu=mu, other=draws(2)), stats())
    (reason,) = [reason for reason in verdict.reasons if "label switching" in reason]
    assert reason.startswith("the components of mu change places (label switching): sorted in each draw, they have an")
    assert "order one of the vectors" in verdict.advice[0]
    assert "relabel" in verdict.advice[0]


def test_a_vector_that_does_not_mix_is_no_label_switching():
    shifted = draws(1, (*SHAPE, 3))
    shifted[2] += 1.0
    for vector in (shifted, random_walk(3)[..., None] + draws(4, (*SHAPE, 2))):
        verdict = judge(posterior(v=vector), stats())
        assert not verdict.usable
        assert "label switching" not in str(verdict)


def test_an_r_hat_just_at_its_limit_shows_that_it_is():
    low, high = 0.0, 0.5  # shifts of one chain between which its R-hat is reached
    for _ in range(20):
        shift = 0.5 * (low + high)
        near = draws(6) + shift * (np.arange(4) == 2)[:, None]
        r_hat = array_stats.rhat(near, chain_axis=0, draw_axis=1)
        if 1.01 <= r_hat < 1.0102:
            break
        low, high = (low, shift) if r_hat > 1.01 else (shift, high)
    verdict = judge(posterior(a=near), stats())
    shown = float(re.search(r"R-hat is (\S+) for a \(below 1\.01 is needed", verdict.reasons[0])[1])
    assert shown > 1.01
    assert shown == pytest.approx(verdict.worst_r_hat[1], abs=5e-5)


def test_advice_on_divergences_names_a_larger_acceptance_probability():
    for current, named in ((0.8, "0.95"), (0.95, "0.99"), (0.99, "0.999")):
        verdict = judge(posterior(a=draws(1)), stats(diverging=7), target_accept_prob=current)
        assert f"sampler=hbm_jax.NUTS(target_accept_prob={named})" in verdict.advice[0]
    verdict = judge(posterior(a=draws(1)), stats(diverging=7), target_accept_prob=0.999)
    assert "Use another parametrisation" in verdict.advice[0]


def test_the_number_of_turns_of_an_angle_does_not_decide():
    angle = draws(3)
    unwrapped = angle + 2 * np.pi * np.arange(4)[:, None]
    seen = positions({"angle_unwrapped": unwrapped})
    verdict = judge(posterior(angle=angle, angle_unwrapped=unwrapped), stats(), positions=seen)
    assert verdict.usable
    assert verdict.table.loc["angle_unwrapped"].isna().all()
    # A parameter of that name is one if no angle is computed from it.
    assert not judge(posterior(angle_unwrapped=unwrapped), stats(), positions=seen).usable


def test_chains_that_never_move_are_not_called_modes():
    verdict = judge(posterior(a=np.repeat(np.array([4.33, 4.331, 4.332, 4.334])[:, None], 1000, axis=1)), stats())
    assert not any("modes" in reason for reason in verdict.reasons)


def test_trees_cut_off_are_noted_and_do_not_fail():
    sample_stats = stats()
    depth = np.full(SHAPE, 5)
    depth[0, :100] = 6
    sample_stats["tree_depth"] = (["chain", "draw"], depth)
    verdict = judge(posterior(a=draws(1)), sample_stats, max_tree_depth=6)
    assert verdict.usable
    assert verdict.notes[0].startswith("2 % of the trees were cut off at the depth of 6")
    assert judge(posterior(a=draws(1)), sample_stats, max_tree_depth=7).notes == ()


def test_low_bfmi():
    energy = draws(10)
    energy[1] = random_walk(11, 0.99)[1]
    verdict = judge(posterior(a=draws(1)), stats(energy=energy))
    assert not verdict.usable
    assert len(verdict.reasons) == 1
    assert f"E-BFMI is {verdict.min_bfmi:.2f} (above 0.3 is needed)" in verdict.reasons[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_draws_that_are_not_finite(value):
    broken = draws(12)
    broken[3, 500:503] = value
    seen = positions({"good": draws(1), "broken": broken, "_whole": np.full(SHAPE, value)})
    for p, where in ((None, "broken"), (seen, "broken, _whole")):
        verdict = judge(posterior(good=draws(1), broken=broken), stats(), positions=p)
        assert not verdict.usable
        assert verdict.reasons[0] == f"draws that are not finite in {where}"


def test_what_the_sampler_saw_has_to_be_finite_too():
    good, position, lp = draws(1), draws(1), draws(2)
    position[2, 7] = lp[0, 3] = np.nan
    verdict = judge(posterior(good=good), stats().assign(lp=(("chain", "draw"), lp)))
    assert verdict.reasons == ("draws that are not finite in the log density",)
    verdict = judge(posterior(good=good), stats(), positions=positions({"good": position}))
    assert verdict.reasons[0] == "draws that are not finite in good"


def test_energy_that_is_not_finite_is_not_usable():
    energy = draws(10)
    energy[0, 5] = np.nan
    assert not judge(posterior(a=draws(1)), stats(energy=energy)).usable


def test_one_chain_cannot_show_convergence():
    verdict = judge(posterior(a=draws(1, (1, 2000))), stats(shape=(1, 2000)))
    assert not verdict.usable
    assert verdict.reasons == ("a single chain cannot show that it has converged",)
    assert np.isnan(verdict.table.loc["a", "r_hat"])
    assert verdict.worst_r_hat[0] == "none"


def test_stuck_chains_fail_without_a_warning():
    stuck = np.repeat(np.arange(4.0)[:, None], 1000, axis=1)
    assert not judge(posterior(a=draws(1), stuck=stuck), stats()).usable


def test_constant_variables_are_skipped():
    verdict = judge(posterior(a=draws(1), fixed=np.full(SHAPE, 70.0)), stats())
    assert verdict.usable
    assert verdict.table.loc["fixed"].isna().all()


def test_variables_of_truth_values_and_whole_numbers():
    a = draws(1)
    verdict = judge(posterior(a=a, above=a > 0.0, count=np.floor(10 * a).astype(int)), stats())
    assert verdict.usable
    assert verdict.table.loc["count", "ess_bulk"] > 400


UNIFORM = np.random.default_rng(3).uniform(size=SHAPE)


@pytest.mark.parametrize(
    ("values", "bounds", "edges"),
    [
        (3.0 * UNIFORM, (0.0, 3.0), [0, 3]),  # the prior itself
        (3.0 * np.sqrt(UNIFORM), (0.0, 3.0), [3]),
        (1.5 + 0.1 * draws(2), (0.0, 3.0), []),
        (np.abs(draws(2)), (0.0, np.inf), [0]),  # a scatter compatible with none
        (0.1 + 0.01 * draws(2), (0.0, np.inf), []),
        (np.exp(0.3 * draws(2)), (0.0, np.inf), []),
        (-np.abs(draws(2)), (-np.inf, 0.0), [0]),
        (draws(2), (-np.inf, np.inf), []),
    ],
)
def test_edges_of_the_prior(values, bounds, edges):
    verdict = judge(posterior(w0=values), stats(), {"w0": bounds, "not sampled": (0.0, 1.0)})
    assert verdict.usable  # a note does not fail the fit
    assert len(verdict.notes) == len(edges)
    for note, edge in zip(verdict.notes, edges, strict=True):
        assert note.startswith(f"w0 leans on the edge of the prior at {edge}: ")
        assert f"Note: {note}." in str(verdict)


def test_edges_are_seen_at_the_posteriors_own_scale():
    far = 5.0 + 0.1 * draws(2)  # fifty of its widths from the edge, though within 2 % of the prior's range
    vector = np.stack([0.002 * np.abs(draws(3)), 0.5 + 0.01 * draws(4), 0.001 * UNIFORM], axis=-1)
    vanishing = np.random.default_rng(5).gamma(2.0, size=SHAPE)  # no density at the edge, some draws near it
    bounds = {"far": (0.0, 1000.0), "vector": (0.0, 1.0), "vanishing": (0.0, np.inf)}
    verdict = judge(posterior(far=far, vector=vector, vanishing=vanishing), stats(), bounds)
    (note,) = verdict.notes
    assert note.startswith("vector[0], vector[2] lean on the edge of the prior at 0: ")


def test_many_broken_variables_are_shortened():
    broken = {f"v{i}": np.full(SHAPE, np.nan) for i in range(8)}
    assert "v0, v1, v2, v3, v4 and 3 more" in judge(posterior(**broken), stats()).reasons[0]


def positions(components):
    values = np.stack(list(components.values()), axis=-1)
    return xr.DataArray(values, {"parameter": list(components)}, ("chain", "draw", "parameter"))


def test_a_sampled_parameter_that_never_moved_fails():
    still = np.full(SHAPE, 2459000.5, np.float32)
    both = posterior(a=draws(1), t0=still, fixed=np.full(SHAPE, 70.0))
    verdict = judge(both, stats(), positions=positions({"a": draws(1), "t0": still}))
    assert verdict.reasons == ("t0 never moved: all draws are the same number",)
    assert 'dtype="float64"' in verdict.advice[0]
    assert verdict.table.loc["t0", ["r_hat", "ess_bulk", "ess_tail"]].tolist() == [np.inf, 0.0, 0.0]
    assert verdict.table.loc["fixed"].isna().all()
    # Sampled by another site in its place, whose own numbers move.
    moved = positions({"a": draws(1), "_t0_free": draws(2)})
    assert judge(both, stats(), positions=moved).usable
    assert judge(both, stats(), positions=moved, recentred=["t0"]).reasons == verdict.reasons


@pytest.mark.parametrize(("dtype", "coarse"), [(np.float32, True), (np.float64, False)])
def test_steps_between_numbers_that_are_too_wide_fail(dtype, coarse):
    """Steps of 0.25 where the standard deviation is 0.3."""
    t0 = (2459000.5 + 0.3 * draws(2)).astype(dtype)
    verdict = judge(posterior(t0=t0), stats(), positions=positions({"t0": t0}))
    assert len(np.unique(t0)) < 20 if coarse else len(np.unique(t0)) == t0.size
    assert verdict.usable is not coarse
    assert not coarse or verdict.reasons[0].startswith("t0 moved in steps of more than 0.25 standard deviations")


def test_sites_that_are_not_shown_are_judged():
    slow = random_walk(9, 0.97)
    for name, component, word in (
        ("_noise[0]", slow, "_noise[0] (400 is needed; 1 parameter fails)"),
        ("_noise[3]", np.zeros(SHAPE), "_noise[3] never moved"),
    ):
        verdict = judge(posterior(a=draws(1)), stats(), positions=positions({name: component, "a": draws(1)}))
        assert any(word in reason for reason in verdict.reasons), verdict.reasons
        assert list(verdict.table.index) == ["a"]


def test_fixed_elements_of_a_matrix_are_no_failure():
    """A Cholesky factor of correlations has an element of 1."""
    y = np.tanh(draws(3))
    factor = np.stack([np.ones(SHAPE), np.zeros(SHAPE), y, np.sqrt(1 - y**2)], axis=-1).reshape(*SHAPE, 2, 2)
    verdict = judge(posterior(factor=factor), stats(), positions=positions({"factor[0]": np.arctanh(y)}))
    assert verdict.usable
    assert verdict.table.loc["factor[0, 0]"].isna().all()


def test_what_cannot_be_computed_fails():
    table = diagnose(posterior(a=draws(4) * 1e200))  # whose squares overflow
    assert table.loc["a", ["mcse_mean", "mcse_sd"]].tolist() == [np.inf, np.inf]
    verdict = judge(posterior(a=draws(4) * 1e200), stats())
    assert verdict.reasons == ("the mean or the spread of a cannot be computed: the values are too large",)
