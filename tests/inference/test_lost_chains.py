"""Restart of chains in regions of negligible posterior mass, and of no others."""

import jax
import numpy as np
import pytest
from inference.test_starts import small, started
from numpyro.infer import NUTS

from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.warmup.lost_chains import LostChains, lost_chains, with_restarted


def test_chains_in_a_region_without_mass_are_found_and_begun_again():
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(4, 100, 3))
    potentials = 0.5 * (positions**2).sum(axis=-1)
    assert lost_chains(positions, positions, potentials) == {}
    far = potentials.copy()
    far[2] += 300.0
    ((lost, donor),) = lost_chains(positions, positions, far).items()
    assert (lost, donor != lost) == (2, True)
    # The neck of a funnel: a density that is higher by far, in a volume that is smaller by more.
    narrow, steep, dense = positions.copy(), positions.copy(), potentials.copy()
    narrow[1] *= 1e-14
    steep[1] *= 1e14
    dense[1] -= 50.0
    assert set(lost_chains(narrow, steep, dense)) == {1}
    # A wide mode of lower density has the same mass as a narrow one: 30 times as wide in three dimensions.
    narrow, steep, dense = positions.copy(), positions.copy(), potentials.copy()
    narrow[1] /= 30.0
    steep[1] *= 30.0
    dense[1] -= 3.0 * np.log(30.0)
    assert lost_chains(narrow, steep, dense) == {}
    # A flat density, whose gradients are rounding errors.
    errors = 1e-16 * positions * np.array([1.0, 100.0, 0.0, 1e-3])[:, None, None]
    assert lost_chains(positions, errors, np.zeros((4, 100))) == {}
    # A chain that never moved, or whose density is NaN.
    narrow[1], steep[1], far[3] = 0.0, 1.0, np.nan
    lost = lost_chains(narrow, steep, far)
    assert set(lost) == {1, 2, 3}
    assert set(lost.values()) == {0}


@pytest.mark.parametrize("ends", [(-16.0, -16.0), (-16.0, -6.0), (-16.0, 0.0), (-8.0, -1.0), (-2.0, -1.0)])
def test_chains_in_the_bulk_are_not_begun_again_in_the_neck_of_a_funnel(ends):
    """A chain that leaves the neck has the density of the neck and the standard deviations of the bulk."""
    rng = np.random.default_rng(0)
    log_tau = np.stack([np.linspace(*ends, 100), *rng.normal(-1.0, 0.2, (3, 100))])[..., None]
    mu, tau, data = rng.normal(0.0, 0.2, (4, 100, 1)), np.exp(log_tau), np.linspace(-1.0, 1.0, 30)
    theta = (mu + tau**2 * data) / (1.0 + tau**2) + tau / np.sqrt(1.0 + tau**2) * rng.normal(size=(4, 100, 30))
    standard = (theta - mu) / tau
    terms = 0.5 * (standard**2 + (theta - data) ** 2) + log_tau
    gradients = [
        (mu - (standard / tau).sum(axis=-1, keepdims=True)),
        (1.0 - standard**2).sum(axis=-1, keepdims=True),
        standard / tau + theta - data,
    ]
    potentials = terms.sum(axis=-1) + 0.5 * mu[..., 0] ** 2
    assert set(lost_chains(np.concatenate([mu, log_tau, theta], -1), np.concatenate(gradients, -1), potentials)) <= {0}


def test_a_chain_far_from_the_others_at_its_first_draws_is_not_lost():
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(4, 100, 3))
    positions[0, :5] += 1e4
    assert lost_chains(positions, positions, 0.5 * (positions**2).sum(axis=-1)) == {}


def test_draws_without_gradients_are_not_compared():
    """Checkpoints of older versions have none."""
    positions, numbers = np.random.default_rng(0).normal(size=(2, 25, 3)), np.zeros((2, 25))
    lost = LostChains(100)
    lost.add(Block(positions, np.array([[0.0], [1e3]]) + numbers, numbers, numbers, numbers, numbers))
    assert lost.due
    assert lost.compare(lambda x: x) == {}
    lost = LostChains(100)
    lost.add(Block(positions, np.array([[0.0], [1e3]]) + numbers, numbers, numbers, numbers, numbers, positions))
    assert lost.compare(lambda x: x) == {1: 0}
    assert lost.notes[0].startswith("chain 1 was restarted from chain 0 after 25 warm-up draws")


@pytest.mark.long
def test_a_chain_begun_again_has_the_state_of_another_but_its_own_key():
    target, start = started(small, np.array([1.0, 2.0, 4.0]))
    with jax.enable_x64(True):
        kernel = NUTS(potential_fn=target.potential)
        keys = jax.random.split(jax.random.key(0), 4)
        state = jax.vmap(lambda key, point: kernel.init(key, 20, point, (), {}))(keys, start.points)
        again = with_restarted(state, {1: 3})
    others = np.array([0, 2, 3])
    for name in ("z", "potential_energy", "z_grad"):
        np.testing.assert_array_equal(getattr(again, name)[1], getattr(state, name)[3])
        np.testing.assert_array_equal(getattr(again, name)[others], getattr(state, name)[others])
    np.testing.assert_array_equal(again.adapt_state.step_size[1], state.adapt_state.step_size[3])
    for new, old in ((again, state), (again.adapt_state, state.adapt_state)):
        np.testing.assert_array_equal(jax.random.key_data(new.rng_key), jax.random.key_data(old.rng_key))
    assert with_restarted(state, {}) is state
