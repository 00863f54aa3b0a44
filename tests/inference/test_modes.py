"""Modes that chains cannot see: a tempered search, and masses that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from programs import fit_of_draws

import hbm_jax as hbm
from hbm_jax.inference.modes import masses
from hbm_jax.inference.modes.groups import Groups, group
from hbm_jax.inference.modes.searches import points_of_modes
from hbm_jax.inference.modes.tempering import Tempered


def two_normals():
    """Two modes of equal mass, 30 apart, with widths of 1 and 0.03."""
    x = numpyro.sample("x", dist.Normal(0.0, 40.0))
    numpyro.factor("flat", -dist.Normal(0.0, 40.0).log_prob(x))
    numpyro.factor("modes", jnp.logaddexp(dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(30.0, 0.03).log_prob(x)))


def two_in_many(size, weight=0.3, width=1.0, prior_width=5.0):
    """Two modes, 4 apart in each of many dimensions."""
    x = numpyro.sample("x", dist.Normal(0.0, prior_width).expand([size]).to_event(1))
    numpyro.factor("flat", -dist.Normal(0.0, prior_width).log_prob(x).sum())
    low, high = (dist.Normal(mean, width).log_prob(x).sum() for mean in (-2.0, 2.0))
    numpyro.factor("modes", jnp.logaddexp(low + np.log(weight), high + np.log(1.0 - weight)))


def drawn(program, center, width, shape=(4, 100)):
    """A fit of independent draws about one mode."""
    size = np.shape(center)
    draws = center + width * np.random.default_rng(seed(1)).normal(size=(*shape, *size))
    return fit_of_draws(program, (), {"x": draws})


@pytest.mark.long
def test_masses_of_two_modes_and_the_mode_that_chains_missed(tmp_path, monte_carlo):
    fit = drawn(two_normals, 0.0, 1.0, (4, 1000))
    assert fit.verdict.usable
    notes = fit.verdict.notes
    modes = hbm.look_for_modes(fit, seed=seed(2), num_particles=400, progress=False)
    assert len(modes.table) == 2
    for row, where in zip(modes.table.itertuples(), modes.locations["x"], strict=True):
        monte_carlo.within(row.mass, 0.5, row.mass_error, name=f"mass near {where:.0f}")
        assert row.mass_error < 0.02
    narrow = int(modes.locations["x"].argmax())
    assert modes.locations["x"][narrow] == pytest.approx(30.0, abs=0.05)
    assert modes.table["share_of_draws"].tolist() == [float(i != narrow) for i in range(2)]
    # Draws in both modes, with the width of each.
    in_narrow = modes.draws["x"] > 15.0
    assert modes.draws["x"][in_narrow].std() == pytest.approx(0.03, rel=0.3)
    assert modes.draws["x"][~in_narrow].std() == pytest.approx(1.0, rel=0.3)
    # What is said, from then on also of the stored fit.
    assert not fit.verdict.usable
    assert "of the mass found, near x = 30, is missing from the draws" in fit.verdict.reasons[0]
    assert "draws that hbm_jax.look_for_modes(fit) returned" in fit.verdict.advice[0]
    assert "Modes: 4 tempered runs of 400 particles found 2 modes" in str(fit.verdict)
    again = hbm.inference.load(fit.save(tmp_path / "fit"))
    assert (again.verdict.reasons, again.verdict.modes) == (fit.verdict.reasons, fit.verdict.modes)
    assert again.verdict.notes == notes
    with pytest.raises(ValueError, match="expected a fit with its program; found one that was loaded without"):
        hbm.look_for_modes(again)


@pytest.mark.long
def test_one_mode_is_one_however_far_its_tails_go():
    fit = fit_of_draws(
        lambda: numpyro.sample("x", dist.StudentT(3.0)),
        (),
        {"x": np.random.default_rng(seed(3)).standard_t(3, size=(4, 500))},
    )
    modes = hbm.look_for_modes(fit, num_particles=100, num_runs=2, progress=False)
    assert modes.table["mass"].tolist() == [1.0]
    assert modes.missing == ""
    assert fit.verdict.usable
    assert "Modes: 2 tempered runs of 100 particles found one mode." in str(fit.verdict)


# Widths of the modes and the prior, and the mass of the mode at -2.
TWENTY = [(1.0, 5.0, 0.3), (0.2, 10.0, 5.0 / 6.0)]


@pytest.mark.long
@pytest.mark.parametrize(("width", "prior_width", "weight"), TWENTY)
def test_masses_in_twenty_dimensions(width, prior_width, weight, monte_carlo):
    fit = drawn(lambda: two_in_many(20, weight, width, prior_width), np.full(20, 2.0), width)
    modes = hbm.look_for_modes(fit, seed=seed(4), progress=False)
    assert modes.table["mass"].is_monotonic_decreasing
    for row, location in zip(modes.table.itertuples(), modes.locations["x[0]"], strict=True):
        assert abs(location) == pytest.approx(2.0, abs=0.5)
        expected = weight if location < 0 else 1.0 - weight
        monte_carlo.within(row.mass, expected, row.mass_error, name=f"mass at {location:.0f}")
        assert row.mass_error < 0.02
        assert row.share_of_draws == float(location > 0)
    assert not fit.verdict.usable


@pytest.mark.long
def test_chains_that_move_between_modes_still_give_their_masses(monte_carlo):
    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 10.0))
        numpyro.factor("flat", -dist.Normal(0.0, 10.0).log_prob(x))
        low, high = (dist.Normal(mean, 1.0).log_prob(x) for mean in (0.0, 6.0))
        numpyro.factor("modes", jnp.logaddexp(low + np.log(0.7), high + np.log(0.3)))

    modes = hbm.look_for_modes(drawn(program, 0.0, 1.0), seed=seed(9), num_particles=400, num_runs=2, progress=False)
    for row, mass in zip(modes.table.itertuples(), (0.7, 0.3), strict=True):
        monte_carlo.within(row.mass, mass, row.mass_error, name=f"mass of {mass}")


@pytest.mark.long
def test_a_mode_of_the_draws_that_particles_miss_is_said_and_has_its_mass(monte_carlo):
    """A narrow mode of many parameters attracts no particle before it is separate."""

    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 5.0).expand([10]).to_event(1))
        numpyro.factor("flat", -dist.Normal(0.0, 5.0).log_prob(x).sum())
        low, high = dist.Normal(0.0, 1.0).log_prob(x).sum(), dist.Normal(3.0, 0.02).log_prob(x).sum()
        numpyro.factor("modes", jnp.logaddexp(low, high))

    fit = drawn(program, np.full(10, 3.0), 0.02, (4, 500))
    modes = hbm.look_for_modes(fit, num_particles=200, progress=False)
    assert "found 2 modes" in modes.outcome
    assert "missed the mode of draws near x[" in modes.outcome
    assert "of the mass found, near x[" in modes.missing  # the wide mode, in which no draw is
    assert not fit.verdict.usable
    for row in modes.table.itertuples():
        monte_carlo.within(row.mass, 0.5, row.mass_error, name="mass")


# Two modes without sampling: points and draws of each, and the density.
CENTERS, WIDTHS, WEIGHTS = np.array([0.0, 30.0]), np.array([1.0, 0.03]), np.array([0.8, 0.2])


def log_density(points):
    """Log density of two normal distributions, (num,), unnormalised."""
    standardised = (points - CENTERS) / WIDTHS
    return np.logaddexp(*(np.log(7.0 * WEIGHTS / WIDTHS) - 0.5 * standardised**2).T)


def independent_draws(rng, num_draws=500):
    return [center + width * rng.normal(size=(4, num_draws, 1)) for center, width in zip(CENTERS, WIDTHS, strict=True)]


def grouped(chains):
    points = np.concatenate([draws[:, :100].reshape(-1, 1) for draws in chains])
    return Groups(points, group(points, log_density), len(points), 0)


def test_masses_from_draws_of_each_mode(monte_carlo):
    rng = np.random.default_rng(seed(10))
    chains = independent_draws(rng)
    groups = grouped(chains)
    assert groups.num == 2
    result = masses._integrate(chains, groups, log_density, 1000, rng)
    for mass, error, expected in zip(result.mass, result.error, WEIGHTS, strict=True):
        monte_carlo.within(mass, expected, error, name=f"mass of {expected}")
        assert error < 0.01
    monte_carlo.share(result.draws[:, 0] > 15.0, WEIGHTS[1], name="draws", independent=True)


def test_chains_that_do_not_mix_have_no_masses():
    rng = np.random.default_rng(seed(11))
    chains = independent_draws(rng)
    chains[0][0] -= 2.0
    result = masses._integrate(chains, grouped(independent_draws(rng)), log_density, 1000, rng)
    assert result.reason == "chains in one of them do not mix"
    assert np.isnan(result.mass).all()
    assert len(result.draws) == 0


def test_a_chain_of_points_through_a_valley_does_not_join_modes():
    def valley(points):
        return np.logaddexp(*(-0.5 * (points - mean)[:, 0] ** 2 for mean in (0.0, 8.0)))

    points = np.concatenate([np.random.default_rng(0).normal(size=200), np.linspace(1.0, 7.0, 20)])[:, None]
    points = np.concatenate([points, 8.0 + points[:200]])
    labels = group(points, valley)
    assert set(labels[:200]) == {labels[0]}
    assert set(labels[220:]) == {labels[220]}
    assert labels[0] != labels[220]
    # A valley that is not deep: two normal distributions that are four standard deviations apart.
    assert group(points, lambda x: np.logaddexp(*(-0.5 * (x - m)[:, 0] ** 2 for m in (0.0, 4.0)))).max() == 0


def test_searches_end_in_each_mode_and_follow_no_density_without_limit():
    means, widths, weights = np.array([[0.0, 0.0], [8.0, 0.0]]), np.array([1.0, 0.1]), np.array([0.5, 0.5])

    def value_and_grad(x):
        log_densities = np.log(weights) - 2.0 * np.log(widths) - 0.5 * ((x - means) ** 2).sum(axis=1) / widths**2
        total = np.logaddexp(*log_densities)
        return -total, np.exp(log_densities - total) @ ((x - means) / widths[:, None] ** 2)

    def without_limit(x):
        return x[0] + 0.5 * x[1] ** 2, np.array([1.0, x[1]])

    rng = np.random.default_rng(0)
    starts = np.concatenate([means + 0.5 * rng.normal(size=(2, 2)), means[:1] + 0.1])
    with jax.enable_x64(True):
        points = points_of_modes(value_and_grad, starts, rng)
        assert len(points_of_modes(without_limit, starts, rng)) == 0
    near = [np.linalg.norm(points - mean, axis=1) < 6.0 * width for mean, width in zip(means, widths, strict=True)]
    assert (np.sum(near, axis=0) == 1).all()
    assert min(is_near.sum() for is_near in near) >= 20


def test_without_a_prior_to_draw_from_particles_start_around_the_draws():
    def program():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("modes", dist.Normal(5.0, 2.0).log_prob(x))

    fit = drawn(program, 5.0, 2.0)
    modes = hbm.look_for_modes(fit, num_particles=100, num_runs=2, progress=False)
    assert modes.table["mass"].tolist() == [1.0]
    assert modes.draws["x"].mean() == pytest.approx(5.0, abs=2.0)


@pytest.mark.long
def test_the_evidence_of_a_tempered_run_is_the_integral(monte_carlo):
    """Prior N(0, 1) and likelihood exp(-(x - 3)^2 / 2) for each of two: the integral is exp(-9/4) / sqrt(2) each."""
    with jax.enable_x64(True):
        constant = jnp.log(2 * jnp.pi)
        prior = lambda x: -0.5 * x @ x - constant  # noqa: E731
        tempered = Tempered(prior, lambda x: prior(x) - 0.5 * (x - 3.0) @ (x - 3.0), 200, 2)
        rng = np.random.default_rng(seed(6))
        runs = [tempered.run(rng.normal(size=(200, 2)), number) for number in range(8)]
    evidence = np.array([log_evidence for _, log_evidence in runs])
    monte_carlo.within(evidence.mean(), -4.5 - np.log(2.0), evidence.std(ddof=1) / np.sqrt(8), name="log evidence")
    means = np.array([particles.position.mean() for particles, _ in runs])
    monte_carlo.within(means.mean(), 1.5, means.std(ddof=1) / np.sqrt(8), name="mean")


@pytest.mark.parametrize(("options", "name"), [({"num_particles": 4}, "num_particles"), ({"num_runs": 1}, "num_runs")])
def test_options_out_of_range(options, name):
    with pytest.raises(ValueError, match=f"look_for_modes: expected {name} >= "):
        hbm.look_for_modes(None, **options)


def test_too_few_particles_for_the_parameters_are_refused():
    fit = drawn(lambda: two_in_many(20), np.full(20, 2.0), 1.0)
    with pytest.raises(ValueError, match="num_particles >= 80, 4 for each of 20 parameters; found 60"):
        hbm.look_for_modes(fit, num_particles=60, progress=False)
