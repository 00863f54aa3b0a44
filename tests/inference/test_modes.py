"""Modes that chains cannot see: a tempered search with masses known in closed form, and exchanged components."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from monte_carlo import seed
from numpyro import distributions as dist
from programs import fit_of_draws

import hbm_jax as hbm
from hbm_jax.inference.modes.tempering import Tempered


def two_normals():
    """Two modes of equal mass, 30 apart, with widths of 1 and 0.03."""
    x = numpyro.sample("x", dist.Normal(0.0, 40.0))
    numpyro.factor("flat", -dist.Normal(0.0, 40.0).log_prob(x))
    numpyro.factor("modes", jnp.logaddexp(dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(30.0, 0.03).log_prob(x)))


def two_in_many(size, weight=0.3):
    """Two modes, 4 apart in each of many dimensions."""
    x = numpyro.sample("x", dist.Normal(0.0, 5.0).expand([size]).to_event(1))
    numpyro.factor("flat", -dist.Normal(0.0, 5.0).log_prob(x).sum())
    low, high = (dist.Normal(mean, 1.0).log_prob(x).sum() for mean in (-2.0, 2.0))
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
    modes = hbm.look_for_modes(fit, seed=seed(2), num_particles=400, num_runs=10, progress=False)
    assert len(modes.table) == 2
    for row, where in zip(modes.table.itertuples(), modes.locations["x"], strict=True):
        monte_carlo.within(row.mass, 0.5, row.mass_error, name=f"mass near {where:.0f}")
        assert 0.01 < row.mass_error < 0.2
    narrow = int(modes.locations["x"].argmax())
    assert modes.locations["x"][narrow] == pytest.approx(30.0, abs=0.05)
    assert modes.table["share_of_draws"].tolist() == [float(i != narrow) for i in range(2)]
    # Draws in both modes, with the width of each.
    in_narrow = modes.draws["x"] > 15.0
    assert modes.draws["x"][in_narrow].std() == pytest.approx(0.03, rel=0.3)
    assert modes.draws["x"][~in_narrow].std() == pytest.approx(1.0, rel=0.3)
    # What is said, from then on also of the stored fit.
    assert not fit.verdict.usable
    assert "of the mass near x = 30 is missing from the draws" in fit.verdict.reasons[0]
    assert "draws of the tempered run" in fit.verdict.advice[0]
    assert "Modes: 10 tempered runs of 400 particles found 2 modes" in str(fit.verdict)
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


@pytest.mark.long
def test_masses_in_twenty_dimensions(monte_carlo):
    fit = drawn(lambda: two_in_many(20), np.full(20, 2.0), 1.0)
    modes = hbm.look_for_modes(fit, seed=seed(4), num_runs=10, progress=False)
    assert modes.table["share_of_draws"].tolist() == [1.0, 0.0]
    assert np.sign(modes.locations["x[0]"]).tolist() == [1.0, -1.0]
    for row, mass in zip(modes.table.itertuples(), (0.7, 0.3), strict=True):
        monte_carlo.within(row.mass, mass, row.mass_error, name=f"mass of {mass}")
    assert not fit.verdict.usable


@pytest.mark.long
def test_a_mode_of_the_draws_that_particles_miss_is_said():
    """A narrow mode of many parameters attracts no particle before it is separate."""

    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 5.0).expand([10]).to_event(1))
        low, high = dist.Normal(0.0, 1.0).log_prob(x).sum(), dist.Normal(3.0, 0.02).log_prob(x).sum()
        numpyro.factor("modes", jnp.logaddexp(low, high))

    fit = drawn(program, np.full(10, 3.0), 0.02)
    modes = hbm.look_for_modes(fit, num_particles=200, progress=False)
    assert "found one mode, but missed one with 100 % of the draws near x[" in modes.outcome
    assert "of the mass near x[" in modes.missing  # the wide mode, in which no draw is
    assert not fit.verdict.usable


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
