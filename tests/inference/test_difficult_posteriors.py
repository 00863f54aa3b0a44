"""Whole runs of posteriors that mislead samplers: funnels, hard edges and several modes end soon, and are named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from inference.test_modes import two_in_many, two_normals
from inference.test_starts import groups, schools
from monte_carlo import seed
from numpyro import distributions as dist
from scipy import integrate, stats

import hbm_jax as hbm

pytestmark = pytest.mark.long


def fitted(program, number=1, **options):
    """Return a fit and the number of gradients of its draws."""
    fit = hbm.sample(program, seed=seed(number), progress=False, **options)
    return fit, int(fit.tree["sample_stats"]["n_steps"].sum())


def test_a_funnel_ends_with_the_advice_to_choose_another_parametrisation():
    fit, gradients = fitted(schools)
    assert gradients < 200_000
    assert "divergent transitions" in " ".join(fit.verdict.reasons)
    assert "hbm_jax.centre" in " ".join(fit.verdict.advice)
    assert fit.posterior["log_tau"].min() > -8.0  # the neck, where chains used to start, is at -31
    chosen, _ = fitted(schools, centering=True, num_samples=2000)
    assert (chosen.verdict.table["r_hat"] < 1.01).all()
    assert chosen.tree["sample_stats"]["diverging"].mean() < 0.01


def test_thirty_groups_converge():
    """Without an early end: a few transitions of this centred funnel may diverge."""
    fit, _ = fitted(functools.partial(groups, 1.0), num_samples=4000)
    assert (fit.verdict.table["r_hat"] < 1.05).all()
    assert fit.tree["sample_stats"]["diverging"].mean() < 0.01


def test_an_infinite_mode_is_sampled_where_the_mass_is(monte_carlo):
    def program():
        s = numpyro.sample("s", dist.HalfCauchy(1.0))
        x = numpyro.sample("x", dist.Normal(0.0, s))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)

    fit, _ = fitted(program, sampler=hbm.NUTS(target_accept_prob=0.99), num_samples=10_000)

    def moment(power):
        """Integral over s of the moment of x, which is normal given s."""

        def of(log_s):
            s = np.exp(log_s)
            mean = 0.3 * s**2 / (1.0 + s**2)
            return stats.halfcauchy.pdf(s) * s * stats.norm.pdf(0.3, 0.0, np.hypot(1.0, s)) * mean**power

        return integrate.quad(of, -30.0, 30.0, limit=200)[0]

    monte_carlo.mean(fit.posterior["x"], moment(1) / moment(0), name="x")


def test_a_hard_edge_is_named_by_its_divergences():
    def program():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("cut", jnp.where(x > 1.0, 0.0, -jnp.inf))

    fit, gradients = fitted(program)
    assert gradients < 20_000
    assert "divergent transitions at low x" in " ".join(fit.verdict.reasons)


def test_the_verdict_says_what_the_searches_found_and_names_the_tempered_run():
    fit, _ = fitted(two_normals)
    assert fit.verdict.usable  # although half of the mass is missing
    text = "Modes: 6 of 6 searches ended in one mode (hbm_jax.look_for_modes(fit) looks for more)"
    assert text in str(fit.verdict)


def test_modes_that_no_single_parameter_separates_end_the_run():
    fit, gradients = fitted(lambda: two_in_many(20))
    assert gradients < 200_000
    assert "chains are in different modes" in " ".join(fit.verdict.reasons)
    assert "hbm_jax.look_for_modes(fit) gives their masses" in fit.verdict.advice[0]


def test_the_components_of_a_mixture_are_to_be_ordered_or_relabelled():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-2.0, 0.5, 60), rng.normal(2.0, 0.5, 40)])[:, None]

    def program():
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        sigma, share = numpyro.sample("sigma", dist.HalfNormal(1.0)), numpyro.sample("share", dist.Beta(2.0, 2.0))
        weights = jnp.log(jnp.stack([share, 1.0 - share]))
        numpyro.factor("mixture", jax.nn.logsumexp(weights + dist.Normal(mu, sigma).log_prob(values), axis=1).sum())

    fit, gradients = fitted(program)
    assert gradients < 200_000
    assert "the components of mu change places (label switching)" in " ".join(fit.verdict.reasons)
    assert "order one of the vectors" in fit.verdict.advice[0]
    assert "relabel the draws" in fit.verdict.advice[0]
