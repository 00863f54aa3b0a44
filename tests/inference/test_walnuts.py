"""Step sizes that are chosen within a trajectory: reversible steps, exact marginals, NumPyro's NUTS without them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro.infer.util import ParamInfo
from programs import conjugate
from scipy import stats

import hbm_jax as hbm
from hbm_jax.inference.sampler.kernels import macro_step as steps
from hbm_jax.inference.verdict import judge


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def funnel(z):
    """Minus the log density of Neal's funnel of ten parameters (2003, Ann. Statist. 31, 705)."""
    return z[0] ** 2 / 18.0 + 0.5 * jnp.exp(-z[0]) * jnp.sum(z[1:] ** 2) + 4.5 * z[0]


def two_widths(z):
    """Minus the log density of an equal mixture of normals of widths 1 and 0.1, in three dimensions."""
    square = jnp.sum(z**2)
    return -jnp.logaddexp(-0.5 * square, -0.5 * square / 0.1**2 - 3.0 * jnp.log(0.1))


def normal(z):
    """Minus the log density of a standard normal distribution."""
    return 0.5 * jnp.sum(z**2)


# Macro steps


class Reference:
    """Macro steps in the funnel, by NumPy, with the gradient written out; it counts its gradients."""

    def __init__(self, step_size, max_energy_error, max_halvings):
        self.step_size, self.max_energy_error, self.max_halvings = step_size, max_energy_error, max_halvings
        self.num_gradients = 0

    def gradient(self, z):
        self.num_gradients += 1
        scale = np.exp(-z[0])
        return np.concatenate([[z[0] / 9.0 - 0.5 * scale * (z[1:] ** 2).sum() + 4.5], scale * z[1:]])

    def path(self, z, r, halvings):
        """Return the end of so many halvings, or None where the energy varies too much."""
        step, gradient, energies = self.step_size / 2**halvings, self.gradient(z), [float(funnel(z)) + 0.5 * r @ r]
        self.num_gradients -= 1  # that of the start is known
        for _ in range(2**halvings):
            r = r - 0.5 * step * gradient
            z = z + step * r
            gradient = self.gradient(z)
            r = r - 0.5 * step * gradient
            energies.append(float(funnel(z)) + 0.5 * r @ r)
            if not np.ptp(energies) <= self.max_energy_error:
                return None
        return z, r

    def smallest(self, z, r, most):
        """Return the smallest number of halvings up to ``most`` that passes, or None, and the end."""
        for halvings in range(most + 1):
            if (end := self.path(z, r, halvings)) is not None:
                return halvings, end
        return None, (z, r)

    def macro_step(self, z, r):
        """Return outcome, number of halvings, and the end."""
        halvings, (z, r) = self.smallest(z, r, self.max_halvings)
        if halvings is None:
            return steps.FAILED, None, (z, r)
        back, _ = self.smallest(z, -r, halvings - 1)
        return (steps.REVERSIBLE if back is None else steps.IRREVERSIBLE), halvings, (z, r)


def test_a_macro_step_has_the_fewest_halvings_and_its_reverse_returns():
    rng = np.random.default_rng(7)
    step_size, max_energy_error, max_halvings = 0.5, 0.5, 5
    evaluate = jax.value_and_grad(funnel)

    @jax.jit
    def make(step, z, r):
        start = steps.Point(z, r, *evaluate(z))
        return steps.macro_step(evaluate, jnp.ones(10), step, start, max_energy_error, max_halvings)

    outcomes = []
    for _ in range(300):
        y = rng.normal(-1.0, 3.0)
        z, r = np.append(y, rng.normal(size=9) * np.exp(0.5 * y)), rng.normal(size=10)
        reference = Reference(step_size, max_energy_error, max_halvings)
        outcome, halvings, (end, momentum) = reference.macro_step(z, r)
        step = make(jnp.asarray(step_size), z, r)
        assert int(step.outcome) == outcome
        assert int(step.num_gradients) == reference.num_gradients
        outcomes.append((outcome, halvings))
        if outcome == steps.FAILED:
            continue
        assert int(step.num_halvings) == halvings
        np.testing.assert_allclose(step.end.position, end, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(step.end.momentum, momentum, rtol=1e-8, atol=1e-8)
        if outcome == steps.REVERSIBLE:
            back = make(jnp.asarray(-step_size), step.end.position, step.end.momentum)
            assert (int(back.outcome), int(back.num_halvings)) == (outcome, halvings)
            np.testing.assert_allclose(back.end.position, z, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(back.end.momentum, r, rtol=1e-7, atol=1e-9)
    kinds = set(outcomes)
    assert {(steps.REVERSIBLE, n) for n in range(4)} < kinds
    assert {outcome for outcome, _ in kinds} == {steps.REVERSIBLE, steps.IRREVERSIBLE, steps.FAILED}


# Trajectories


def trajectories(sampler, potential, starts, step_size, num, number, dense=False):
    """Return the last of so many states of chains that begin at the starts, (chain, ...), and all of the statistics."""
    size = starts.shape[1]
    inverse_mass = jnp.eye(size) if dense else jnp.ones(size)

    def chain(inputs):
        key, start = inputs
        kernel = sampler.resolved(0.8).kernel(potential, inverse_mass, dense, step_size)
        state = kernel.init(key, 0, ParamInfo(start, *jax.value_and_grad(potential)(start)), (), {})

        def advance(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.num_steps, state.diverging, state.accept_prob)

        state, statistics = jax.lax.scan(advance, state, length=num)
        return state.z, state.potential_energy, state.energy, *statistics

    keys = jax.random.split(jax.random.key(seed(number)), len(starts))
    return [np.asarray(a) for a in jax.jit(lambda *inputs: jax.lax.map(chain, inputs))(keys, jnp.asarray(starts))]


@pytest.mark.parametrize("dense", [pytest.param(False, marks=pytest.mark.long), True])
def test_without_divisions_it_is_the_nuts_of_numpyro(dense):
    starts = np.random.default_rng(1).normal(size=(2, 5))
    ours = trajectories(hbm.WALNUTS(max_energy_error=1e9), normal, starts, 0.4, 30, 2, dense)
    theirs = trajectories(hbm.NUTS(), normal, starts, 0.4, 30, 2, dense)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-8, atol=1e-10)


def funnel_starts(rng, num):
    y = rng.normal(0.0, 3.0, num)
    return np.column_stack([y, rng.normal(size=(num, 9)) * np.exp(0.5 * y)[:, None]])


@pytest.mark.parametrize(
    ("num_chains", "num"), [(3000, 3), pytest.param(20_000, 5, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_the_funnel_is_invariant_in_its_neck_and_its_mouth(num_chains, num, monte_carlo):
    """Independent exact draws are exact after some transitions, with steps so long that half of them are divided.

    Without the check of the reverse, the share below -3 is 5.6 Monte Carlo errors off with many chains.
    """
    starts = funnel_starts(np.random.default_rng(seed(3)), num_chains)
    sampler = hbm.WALNUTS(max_energy_error=0.3)
    z, *_, num_steps, diverging, accept_prob = trajectories(sampler, funnel, starts, 0.5, num, 4)
    assert diverging.mean() < 1e-4  # only in the far neck, below y = -13
    assert 0.2 < accept_prob.mean() < 0.6  # a step that was divided counts as rejected
    assert num_steps.mean() > 20
    assert (np.abs(z[:, 0] - starts[:, 0]) > 0.1).mean() > 0.5
    for y in (-9.0, -7.5, -6.0, -3.0, 0.0, 3.0, 6.0) if num_chains > 10_000 else (-6.0, -3.0, 0.0, 3.0, 6.0):
        monte_carlo.share(z[:, 0] < y, stats.norm.cdf(y / 3.0), name=f"y < {y}", independent=True)
    monte_carlo.distribution(z[:, 1] * np.exp(-0.5 * z[:, 0]), "norm", name="x in its width")


@pytest.mark.long
def test_two_widths_are_invariant(monte_carlo):
    rng = np.random.default_rng(seed(5))
    narrow = rng.random(3000) < 0.5
    starts = rng.normal(size=(3000, 3)) * np.where(narrow, 0.1, 1.0)[:, None]
    z, *_, diverging, accept_prob = trajectories(hbm.WALNUTS(), two_widths, starts, 0.7, 3, 6)
    assert not diverging.any()
    assert accept_prob.mean() < 0.9  # with divided steps
    square = (z**2).sum(axis=1)
    for radius in (0.1, 0.2, 0.5, 2.0):
        expected = 0.5 * (stats.chi2.cdf(radius**2, 3) + stats.chi2.cdf((radius / 0.1) ** 2, 3))
        monte_carlo.share(square < radius**2, expected, name=f"radius < {radius}", independent=True)


def test_a_step_that_is_too_long_after_all_halvings_diverges():
    starts = funnel_starts(np.random.default_rng(8), 200)
    *_, diverging, _ = trajectories(hbm.WALNUTS(max_halvings=0, max_energy_error=1.0), funnel, starts, 1.0, 2, 9)
    assert diverging.mean() > 0.2


# Runs


def neal():
    """The funnel as a program."""
    y = numpyro.sample("y", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * y)).expand([9]).to_event(1))


@pytest.mark.long
def test_a_run_has_the_posterior_and_no_depth_of_trees(monte_carlo):
    y = np.random.default_rng(0).normal(1.0, 1.0, 20)
    fit = hbm.sample(conjugate, y, sampler=hbm.WALNUTS(), num_samples=500, seed=seed(1), progress=False)
    variance = 1.0 / (0.25 + 20)
    monte_carlo.mean(fit.posterior["mu"].to_numpy(), variance * y.sum(), name="mu")
    monte_carlo.std(fit.posterior["mu"].to_numpy(), np.sqrt(variance), name="mu")
    statistics = fit.tree["sample_stats"].to_dataset()
    assert "tree_depth" not in statistics  # the number of gradients does not give it
    assert (statistics["n_steps"] >= 1).all()
    assert fit.run["sampler"] == "walnuts"
    assert fit.verdict.usable


@pytest.mark.long
def test_a_funnel_without_divergences(monte_carlo):
    fit = hbm.sample(neal, sampler=hbm.WALNUTS(), num_samples=20_000, seed=seed(2), progress=False)
    y = fit.posterior["y"].to_numpy()
    assert fit.verdict.num_divergences == 0
    assert y.min() < -7.5
    monte_carlo.mean(y, 0.0, name="y", min_ess=200)
    for limit in (-6.0, -3.0, 0.0, 3.0):
        monte_carlo.share(y < limit, stats.norm.cdf(limit / 3.0), name=f"y < {limit}", min_ess=200)


def test_the_advice_against_divergences_names_it():
    rng = np.random.default_rng(3)
    fields = {"energy": rng.normal(size=(4, 500)), "diverging": rng.random((4, 500)) < 0.01}
    statistics = xr.Dataset({k: (("chain", "draw"), v) for k, v in fields.items()})
    draws = xr.Dataset({"a": (("chain", "draw"), rng.normal(size=(4, 500)))})
    (advice,) = judge(draws, statistics).advice
    assert "sampler=hbm_jax.NUTS(target_accept_prob=0.95)" in advice
    assert "hbm_jax.centre; where there is none, steps that vary along a trajectory" in advice
    assert "sampler=hbm_jax.WALNUTS()" in advice
    (advice,) = judge(draws, statistics, sampler="walnuts").advice
    assert "WALNUTS" not in advice
    assert "max_halvings" in advice
