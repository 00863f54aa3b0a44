"""The sampler of many chains against a normal distribution, its metric against NumPy, its diagnostics against ArviZ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from monte_carlo import seed

from hbm_jax.inference.batch import chees, interleaving
from hbm_jax.inference.batch.diagnostics import diagnose_many

RNG = np.random.default_rng(12)


COVARIANCE = np.array([[1.0, 4.5, 0], [4.5, 25.0, 0], [0, 0, 1e-4]])
PRECISION, MEAN = np.linalg.inv(COVARIANCE), np.array([3.0, -1.0, 0.5])
OPTIONS = chees.Options(300, 0.8, 256)
NUM_SEGMENTS = 60


@functools.partial(jax.jit, static_argnums=2)
def many_draws(points, key_data, dense):
    """Draws of a correlated normal, and the state at the end."""
    density = jax.vmap(jax.value_and_grad(lambda x: 0.5 * (x - MEAN) @ PRECISION @ (x - MEAN)))
    state = chees.initial_state(density, points, key_data, dense)
    shares = np.tile(chees.halton(2 * chees.SEGMENT), NUM_SEGMENTS // 2)

    def segment(state, shares):
        def advance(state, share):
            return chees.advance(density, state, share, OPTIONS)

        state, draws = jax.lax.scan(advance, state, shares)
        return chees.end_segment(state, OPTIONS), draws

    state, draws = jax.lax.scan(segment, state, shares.reshape(-1, chees.SEGMENT))
    return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), draws)


def test_the_first_metric_has_the_widths_of_a_normal_density_to_a_power_of_two():
    width = np.array([1e-20, 0.3, 1.0, 5e12])
    points = width * np.random.default_rng(1).normal(size=(8, 4)) * [1.0, 0.1, 3.0, 1.0] + 2.0 * width
    unit = np.asarray(jax.jit(chees.initial_unit)(points, points / width**2))
    np.testing.assert_array_equal(np.frexp(unit)[0], 0.5)
    assert (np.abs(np.log2(unit / width)) <= 0.5).all()
    # Of gradients that do not vary, and of a component that does not vary.
    points[:, 0], gradients = 2.0, points / width**2
    gradients[:, 1] = np.nan
    unit = np.asarray(jax.jit(chees.initial_unit)(points, gradients))
    assert unit[0] == 1.0
    assert np.abs(np.log2(unit[1] / np.median(np.abs(points[:, 1] - np.median(points[:, 1]))))) <= 0.5


@pytest.mark.parametrize("dense", [False, True])
def test_the_sampler_draws_a_correlated_normal(dense, monte_carlo):
    points = np.random.default_rng(seed(3)).normal(size=(8, 3))
    state, draws = jax.tree.map(np.asarray, many_draws(points, np.array([0, seed(1)], np.uint32), dense))
    x = draws.position[300:].swapaxes(0, 1)
    for i in range(3):
        monte_carlo.mean(x[..., i], MEAN[i], name=f"mean {i}", min_ess=1500)
        monte_carlo.std(x[..., i], np.sqrt(COVARIANCE[i, i]), name=f"spread {i}")
    away = x - MEAN
    covariance = away[..., 0] * away[..., 1]
    monte_carlo.mean(covariance, COVARIANCE[0, 1], name="covariance")
    potential = 0.5 * np.einsum("dci,ij,dcj->dc", draws.position - MEAN, PRECISION, draws.position - MEAN)
    np.testing.assert_allclose(draws.potential_energy, potential, atol=1e-9, rtol=1e-9)
    # A quarter to four times: of some hundred effective draws of the last window, whatever the seed.
    if dense:
        ratio = np.linalg.eigvals(np.linalg.solve(COVARIANCE, state.factor @ state.factor.T))
        assert (ratio.real > 0.4).all()
        assert (ratio.real < 2.5).all()
        np.testing.assert_allclose(state.inverse @ state.factor, np.eye(3), atol=1e-9)
        assert draws.num_steps[300:].mean() < 8
    else:
        ratio = state.factor / np.sqrt(np.diag(COVARIANCE))
        assert (ratio > 0.6).all()
        assert (ratio < 1.6).all()
        np.testing.assert_allclose(state.inverse, 1.0 / state.factor, rtol=1e-12)
    assert 0.65 < draws.accept_prob[300:].mean() < 0.98
    assert not draws.diverging[300:].any()
    assert (draws.energy >= draws.potential_energy).all()
    # The kinetic energy of three parameters, where the proposal is accepted as a rule, has mean 3/2.
    kinetic = (draws.energy - draws.potential_energy)[300:]
    assert 1.2 < kinetic.mean() < 1.8


@pytest.mark.long
def test_objects_at_their_own_pace_make_the_same_draws_as_alone():
    """Normal distributions of different widths, so that trajectories differ in length; one slot is empty."""
    width, num_draws = np.array([[1.0, 1.0], [1.0, 30.0], [0.2, 2.0], [5.0, 5.0]]), np.array([60, 33, 50, 0])
    options = chees.Options(50, 0.8, 256)
    keys = np.arange(8, dtype=np.uint32).reshape(4, 2)

    def density(width):
        return jax.vmap(jax.value_and_grad(lambda x: 0.5 * jnp.sum((x / width) ** 2)))

    def initial(width, key):
        return chees.initial_state(density(width), jnp.ones((3, 2)) * jnp.arange(1.0, 4.0)[:, None], key, True)

    @jax.jit
    def together(states, trajectories):
        def leapfrog_all(factors, trajectories):
            return jax.vmap(lambda w, f, t: chees.leapfrog(density(w), f, t))(width, factors, trajectories)

        return interleaving.advance(leapfrog_all, states, trajectories, num_draws, options)

    @jax.jit
    def alone(width, state):
        def step(state, jitter):
            state, draw = chees.advance(density(width), state, jitter, options)
            return chees.end_segment(state, options), draw

        return jax.lax.scan(step, state, np.resize(chees.halton(interleaving.JITTER), 60))[1]

    states = jax.jit(jax.vmap(initial))(width, keys)
    trajectories = jax.vmap(lambda state: interleaving.first_trajectory(state, options))(states)
    _, _, records = jax.tree.map(np.asarray, together(states, trajectories))
    for i in range(3):
        found = [x[i][records.ended[i]] for x in records.draws]
        assert 0 < len(found[0]) <= num_draws[i]
        expected = alone(width[i], jax.tree.map(lambda x, i=i: x[i], states))
        for values, exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(values, exact[: len(values)], rtol=1e-6, atol=1e-9)
        # The steps of a trajectory under way at the end count too.
        assert records.steps[i] >= found[5][:, 0].sum()
        assert records.waited[i] >= records.steps[i]
    assert not records.ended[3].any()
    assert records.steps[3] == 0


@pytest.mark.parametrize("dense", [False, True])
def test_the_metric_is_that_of_the_draws_of_a_window(dense, monkeypatch):
    monkeypatch.setattr(chees, "BITS", 50)  # no rounding
    random = np.random.default_rng(4)
    covariance = [[1.0, 0.5, 0.0], [0.5, 4.0, 0.3], [0.0, 0.3, 0.25]]
    draws = random.multivariate_normal([1.0, 2.0, 3.0], covariance, (50, 4))
    slopes = random.normal(size=draws.shape) * [1.0, 0.5, 2.0]

    @jax.jit
    def seen_and_closed(draws, slopes, age):
        state = chees.initial_state(lambda x: (x.sum(-1), x), np.zeros((4, 3)), np.zeros(2, np.uint32), dense)
        mean, squares, gradient_mean, gradient_squares = (
            state.mean,
            state.squares,
            state.gradient_mean,
            state.gradient_squares,
        )
        for i in range(len(draws)):
            mean, squares = chees._update_moments(draws[i], 4.0 * i, mean, squares)
            gradient_mean, gradient_squares = chees._update_moments(slopes[i], 4.0 * i, gradient_mean, gradient_squares)
        full = state._replace(
            age=age, num_seen=4.0 * len(draws), mean=mean, squares=squares, gradient_mean=gradient_mean,
            gradient_squares=gradient_squares,
        )  # fmt: skip
        return full, chees.end_segment(full, chees.Options(200, 0.8, 256))

    few = draws[:5], slopes[:5]
    flat, num = draws[:5].reshape(-1, 3), 20
    full, after = jax.tree.map(np.asarray, seen_and_closed(*few, 100))  # a half of the warm-up
    np.testing.assert_allclose(full.mean, flat.mean(0), rtol=1e-12)
    about = (flat - flat.mean(0)).T @ (flat - flat.mean(0))
    np.testing.assert_allclose(full.squares, about if dense else np.diagonal(about), rtol=1e-11)
    trust = num / (num + 5.0)
    expected = trust * about / (num - 1)
    expected = np.where(np.eye(3) == 1, expected, expected * num / (num + 0.6) if dense else 0.0)
    # A floor in the units of each parameter: the width by the ratio of the spreads of draws and gradients.
    width = (flat.var(0) / slopes[:5].reshape(-1, 3).var(0)) ** 0.25
    expected = expected + 1e-3 * (1 - trust) * np.diag(width**2)
    factor = after.factor if dense else np.diag(after.factor)
    np.testing.assert_allclose(factor @ factor.T, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(after.inverse @ factor if dense else after.inverse * after.factor,
                               np.eye(3) if dense else 1.0, atol=1e-12)  # fmt: skip
    assert after.num_seen == 0
    assert not any(np.any(part) for part in (after.mean, after.squares, after.gradient_mean, after.gradient_squares))
    # The first window knows the width by the ratio of the spreads of draws and gradients.
    _, first = jax.tree.map(np.asarray, seen_and_closed(*few, 25))
    early = (flat.var(0) / slopes[:5].reshape(-1, 3).var(0)) ** 0.25
    np.testing.assert_allclose(np.diagonal(first.factor) if dense else first.factor, early, rtol=1e-11)
    # In between, and at the end of the warm-up, nothing is replaced.
    for age in (75, 200):
        _, same = jax.tree.map(np.asarray, seen_and_closed(*few, age))
        np.testing.assert_array_equal(same.factor, np.eye(3) if dense else np.ones(3))
        assert same.num_seen == num


def test_halton_numbers():
    np.testing.assert_array_equal(chees.halton(7), [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8])


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95, -0.5])
def test_diagnostics_of_many_quantities_are_those_of_arviz(memory):
    noise = RNG.normal(size=(5, 4, 401))
    x = np.zeros_like(noise)
    for i in range(1, 401):
        x[..., i] = memory * x[..., i - 1] + noise[..., i]
    found = diagnose_many(x)
    for i in range(5):
        axes = {"chain_axis": 0, "draw_axis": 1}
        np.testing.assert_allclose(found.r_hat[i], array_stats.rhat(x[i], **axes), rtol=2e-4)
        np.testing.assert_allclose(found.ess_bulk[i], array_stats.ess(x[i], **axes), rtol=0.03)
        tail = array_stats.ess(x[i], method="tail", prob=(0.05, 0.95), **axes)
        np.testing.assert_allclose(found.ess_tail[i], tail, rtol=0.12)


def test_quantities_that_do_not_vary_have_no_diagnostics():
    x = RNG.normal(size=(3, 4, 100))
    x[1] = 2.0
    x[2, 0, 5] = np.nan
    found = diagnose_many(x)
    assert np.isnan(found.r_hat[1:]).all()
    assert np.isnan(found.ess_bulk[1:]).all()
    assert found.ess_bulk[0] > 100
