"""The metric that the warm-up learns from draws and gradients."""

import numpy as np
import pytest
import scipy.linalg
from numpyro.infer.hmc import HMCState
from numpyro.infer.hmc_util import HMCAdaptState

from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.metric import Metric
from hbm_jax.inference.sampler.warmup import adaptation
from hbm_jax.inference.sampler.warmup.adaptation import (
    Adaptation,
    departure_from_normal,
    fisher_covariance,
    geometric_mean,
    with_metric,
)


def covariance_of(size, condition, seed=0):
    """Return a covariance with random principal axes and this ratio of eigenvalues."""
    directions = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return (directions * np.geomspace(1.0, condition, size)) @ directions.T


def test_the_geometric_mean_is_that_of_matrix_square_roots():
    a, b = covariance_of(5, 100.0, 1), covariance_of(5, 30.0, 2)
    root = scipy.linalg.sqrtm(b)
    expected = np.linalg.solve(root, scipy.linalg.sqrtm(root @ a @ root)) @ np.linalg.inv(root)
    mean = geometric_mean(a, b)
    np.testing.assert_allclose(mean, expected.real, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean @ b @ mean, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("units", [1.0, 2.0**60])
def test_of_a_normal_distribution_few_dependent_draws_give_the_covariance(units, monkeypatch):
    monkeypatch.setattr(adaptation, "SHRINKAGE", 0.0)
    covariance = covariance_of(10, 1e4) * units**2
    walk = np.cumsum(np.random.default_rng(3).normal(size=(40, 10)), axis=0)  # far from independent
    draws = 7.0 * units + walk @ np.linalg.cholesky(covariance).T
    gradients = (draws - 3.0 * units) @ np.linalg.inv(covariance)
    np.testing.assert_allclose(fisher_covariance(draws, gradients, True), covariance, rtol=1e-6, atol=1e-6 * units**2)


def test_fewer_draws_than_parameters_give_a_matrix_close_to_the_diagonal():
    rng = np.random.default_rng(4)
    widths = np.geomspace(1.0, 1e6, 50)
    draws = rng.normal(size=(30, 50)) * widths
    learnt = fisher_covariance(draws, draws / widths**2, True)
    np.testing.assert_allclose(learnt / np.outer(widths, widths), np.eye(50), atol=1e-6)


def test_the_diagonal_is_the_ratio_of_the_widths_of_draws_and_gradients():
    rng = np.random.default_rng(5)
    draws, gradients = rng.normal(size=(2, 200, 3)) * np.array([1.0, 10.0, 1e-3])
    expected = draws.std(axis=0) / gradients.std(axis=0)
    np.testing.assert_allclose(fisher_covariance(draws, gradients, False), expected, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_component_that_does_not_vary_teaches_nothing(value):
    draws, gradients = np.random.default_rng(6).normal(size=(2, 50, 3))
    draws[:, 1] = value
    assert fisher_covariance(draws, gradients, True) is None
    assert fisher_covariance(gradients, draws, False) is None


def state_of(metric, num_chains=2, step=0.3):
    """Return a state of chains with this metric and step size."""
    chains = np.full(num_chains, np.log(step))
    adapt = HMCAdaptState(
        np.exp(chains), np.stack([metric] * num_chains), None, None,
        (chains, chains, 0 * chains, np.arange(num_chains), chains), None, 0 * chains, None,
    )  # fmt: skip
    return HMCState(*(adapt if name == "adapt_state" else None for name in HMCState._fields))


@pytest.mark.parametrize("dense", [True, False])
def test_the_step_size_follows_the_stiffest_direction(dense):
    covariance = covariance_of(4, 25.0) if dense else np.array([1.0, 4.0, 9.0, 25.0])
    state = with_metric(state_of(np.eye(4) if dense else np.ones(4)), covariance, np.eye(4) if dense else np.ones(4))
    adapt = state.adapt_state
    np.testing.assert_allclose(adapt.step_size, 0.3, rtol=1e-6)  # the smallest eigenvalue is 1, as before
    for chain in range(2):
        inverse_mass, root, inverse = (
            np.asarray(m[chain]) if dense else np.diag(m[chain])
            for m in (adapt.inverse_mass_matrix, adapt.mass_matrix_sqrt, adapt.mass_matrix_sqrt_inv)
        )
        np.testing.assert_allclose(inverse_mass @ root @ root.T, np.eye(4), atol=1e-5)
        np.testing.assert_allclose(root @ inverse, np.eye(4), atol=1e-5)
        np.testing.assert_allclose(inverse_mass, covariance if dense else np.diag(covariance), rtol=1e-5, atol=1e-6)
    again = with_metric(state, covariance, covariance).adapt_state
    np.testing.assert_allclose(again.step_size, 0.3, rtol=1e-5)
    narrow = with_metric(state_of(np.full(4, 4.0)), np.full(4, 1.0), np.full(4, 4.0)).adapt_state
    np.testing.assert_allclose(narrow.step_size, 0.6, rtol=1e-6)  # all widths halve, and steps are in units of them


def block_of(draws, gradients, accept_prob=0.8, diverging=False):
    """Return a block of draws (chain, draw, size)."""
    block = Block(draws, *[np.broadcast_to(accept_prob, draws.shape[:2])] * 5, gradients)
    return block._replace(diverging=np.full(draws.shape[:2], diverging))


def same(position):
    """Return a position unchanged."""
    return position


@pytest.mark.parametrize(
    ("target", "num_diverging", "skewed"),
    [(0.7, 0, 0.0), (0.7, 100, 0.0), (0.6, 0, 0.6), (0.6, 2, 0.6), (0.4, 4, 0.6), (0.4, 100, 0.6)],
)
def test_the_step_size_is_that_of_the_acceptance_aimed_at_for_all_chains(target, num_diverging, skewed):
    """Acceptance falls linearly in the logarithm of the step size, and chains differ by noise."""
    adapted = Adaptation(400, target)  # aims at 0.7: the target, or a quarter or half of the way to 1
    assert adapted.step_updates == (330, 340, 350, 360, 370, 380, 390, 400)
    rng = np.random.default_rng(8)
    draws = rng.normal(size=(4, 320, 2))
    diverging = np.zeros((4, 320), dtype=bool)
    diverging[0, 320 - num_diverging :] = True
    adapted.add(block_of(draws, draws + skewed * draws**2, diverging=diverging))
    state = state_of(np.eye(2), num_chains=4)
    for count in range(320, 400, 10):
        state = adapted.update(state, count, same)
        step = np.asarray(state.adapt_state.step_size)
        assert np.ptp(step) == 0.0
        accepted = np.clip(0.7 - 0.3 * np.log(step[0]), 0.0, 1.0) + 0.02 * rng.normal(size=(4, 10))
        adapted.add(block_of(draws[:, :10], draws[:, :10], accepted))
    state = adapted.update(state, 400, same)
    np.testing.assert_allclose(state.adapt_state.step_size, 1.0, rtol=0.05)
    assert (np.asarray(state.adapt_state.ss_state[3]) == adaptation.CONSTANT).all()
    assert adapted.update(state, 410, same) is state


def test_the_departure_from_normal_is_that_of_the_score_in_any_units():
    """A cubic term of the log density in one direction; the variance of a z^2 is 2 a^2."""
    rng = np.random.default_rng(10)
    covariance = covariance_of(4, 1e4)
    factor = np.linalg.cholesky(covariance)
    z = rng.normal(size=(200_000, 4))
    for a in (0.0, 0.5):
        score = z + a * np.array([0.0, 0.0, 1.0, 0.0]) * z**2
        gradients = score @ np.linalg.inv(factor)
        found = departure_from_normal(7.0 + z @ factor.T, gradients, covariance)
        np.testing.assert_allclose(found, 2.0 * a**2, rtol=0.05, atol=1e-12)
    assert np.isnan(departure_from_normal(np.full((5, 4), np.nan), z[:5], covariance))
    assert np.isnan(departure_from_normal(z[:9], z[:9], np.diag([1.0, 1.0, 1.0, -1e-8])))  # by rounding


def test_early_draws_and_those_of_chains_left_out_are_not_used():
    rng = np.random.default_rng(7)
    adapted = Adaptation(160, 0.8)
    assert adapted.metric_updates == (10, 20, 40, 80, 128)
    early, late = rng.normal(size=(2, 3, 20, 2))
    early[:, :13], early[1] = 1e6, 1e9
    adapted.add(block_of(early, 2.0 * early))
    adapted.leave_out({1: 0})
    adapted.add(block_of(late, 2.0 * late))
    state = adapted.update(state_of(np.ones(2)), 40, lambda position: 5.0 * position)
    used = np.concatenate([early[0, 13:], late[0], late[1], early[2, 13:], late[2]])
    expected = fisher_covariance(5.0 * used, 2.0 * used, False)
    np.testing.assert_allclose(state.adapt_state.inverse_mass_matrix[0], expected, rtol=1e-6)
    assert Adaptation(0, 0.8).ends == ()
    assert Adaptation(50, 0.8).metric_updates == (12, 25, 40)


def test_the_division_into_blocks_changes_nothing():
    draws, gradients = np.random.default_rng(9).normal(size=(2, 3, 40, 5))
    metrics = []
    for ends in ((40,), (7, 20, 40)):
        adapted = Adaptation(160, 0.8)
        for first, last in zip((0, *ends[:-1]), ends, strict=True):
            adapted.add(block_of(draws[:, first:last], gradients[:, first:last]))
        metrics.append(adapted.update(state_of(np.eye(5)), 40, same).adapt_state.inverse_mass_matrix)
    np.testing.assert_array_equal(*metrics)


@pytest.mark.parametrize(
    ("size", "rank", "dense"), [(100, 0, True), (101, 19, False), (300, 20, True), (301, 20, False)]
)
def test_beyond_a_hundred_parameters_the_metric_is_dense_if_many_directions_stand_out(size, rank, dense):
    directions, stretch = np.eye(size)[:, :rank], np.full(rank, 2.0)
    metric = Metric("low-rank", np.ones(size), "", np.ones(size), directions, stretch)
    assert metric.learnt_dense is dense
    arrays = metric.to_arrays()
    assert Metric.from_arrays(arrays).learnt_dense is dense
    del arrays["metric/max_learnt"]  # as in checkpoints of older versions, whose runs go on as they began
    assert Metric.from_arrays(arrays).learnt_dense is (size <= 100)


def test_draws_without_gradients_are_refused():
    adapted = Adaptation(160, 0.8)
    adapted.add(block_of(np.zeros((2, 10, 3)), np.zeros((2, 10, 0))))
    with pytest.raises(ValueError, match=r"expected draws with gradients; found draws of an older version"):
        adapted.update(state_of(np.ones(3)), 10, same)
