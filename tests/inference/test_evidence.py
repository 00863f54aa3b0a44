"""Evidence: closed forms, from exact draws of the posteriors; the error; what has none."""

import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from criticised import (
    LOG_PRIOR,
    MU,
    NOISE_OF_LINE,
    TAU,
    WIDTH,
    fit_of_scattered,
    flat_line,
    group_fit,
    line_data,
    line_fit,
    log_density_of_groups,
    sampled_groups,
)
from monte_carlo import seed
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from programs import conjugate, fit_of_draws
from scipy import stats
from scipy.special import gammaln
from stored_fits import FOLDER

import hbm_jax as hbm
from hbm_jax import cli
from hbm_jax.inference import compare, evidence, loo
from hbm_jax.inference.criticism.evidence import bridge

SHAPE = (4, 1000)
RNG = np.random.default_rng(seed(1))
DATA = np.random.default_rng(2)


def normal_mean():
    y = DATA.normal(1.0, 1.0, 12)
    variance = 1.0 / (1.0 / 4.0 + 12)
    fit = fit_of_draws(conjugate, (y,), {"mu": RNG.normal(variance * y.sum(), np.sqrt(variance), SHAPE)})
    return fit, stats.multivariate_normal(np.zeros(12), np.eye(12) + 4.0).logpdf(y)


def linear_regression():
    data = line_data()
    design = np.column_stack([np.ones(len(data)), data.x])
    covariance = NOISE_OF_LINE**2 * np.eye(len(data)) + WIDTH**2 * design @ design.T
    return line_fit(), stats.multivariate_normal(np.zeros(len(data)), covariance).logpdf(data.y)


def unknown_variance():
    """Normal-inverse-gamma: the data have a multivariate t distribution."""

    def program(y):
        variance = numpyro.sample("variance", dist.InverseGamma(3.0, 2.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, (5.0 * variance) ** 0.5))
        with numpyro.plate("datum", len(y)):
            numpyro.sample("y", dist.Normal(mu, variance**0.5), obs=y)

    y = DATA.normal(0.5, 1.5, 9)
    precision = 1 / 5 + 9
    scale = 2.0 + 0.5 * (y @ y - y.sum() ** 2 / precision)
    variance = scale / RNG.gamma(3.0 + 9 / 2, size=SHAPE)
    mu = RNG.normal(y.sum() / precision, np.sqrt(variance / precision))
    free = {"variance": np.log(variance), "mu": mu}
    fit = fit_of_draws(program, (y,), {"variance": variance, "mu": mu}, unconstrained=free)
    return fit, stats.multivariate_t(np.zeros(9), 2 / 3 * (np.eye(9) + 5.0), df=6.0).logpdf(y)


def beta_binomial():
    def program(successes):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        numpyro.sample("successes", dist.Binomial(20, p), obs=successes)

    p = RNG.beta(2.0 + 17, 3.0 + 3, SHAPE)
    fit = fit_of_draws(program, (np.array(17),), {"p": p}, unconstrained={"p": np.log(p / (1 - p))})
    return fit, stats.betabinom(20, 2.0, 3.0).logpmf(17)


def gamma_poisson():
    def program(counts):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
        with numpyro.plate("bin", len(counts)):
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    counts = DATA.poisson(3.0, 6)
    total = counts.sum()
    rate = RNG.gamma(2.0 + total, 1 / 6.5, SHAPE)
    expected = 2 * np.log(0.5) - gammaln(2) + gammaln(2 + total) - (2 + total) * np.log(6.5) - gammaln(counts + 1).sum()
    return fit_of_draws(program, (counts,), {"rate": rate}, unconstrained={"rate": np.log(rate)}), expected


def dirichlet_multinomial():
    def program(counts):
        share = numpyro.sample("share", dist.Dirichlet(np.array([1.0, 2.0, 0.7])))
        numpyro.sample("counts", dist.Multinomial(int(counts.sum()), share), obs=counts)

    counts, prior = np.array([3, 9, 1]), np.array([1.0, 2.0, 0.7])
    share = RNG.dirichlet(prior + counts, SHAPE)
    free = np.asarray(biject_to(constraints.simplex).inv(share))
    fit = fit_of_draws(program, (counts,), {"share": share}, unconstrained={"share": free})
    return fit, stats.dirichlet_multinomial(prior, 13).logpmf(counts)


def twenty_normals():
    """A correlated prior of twenty parameters, each measured once."""
    mix = DATA.normal(size=(20, 20))
    prior = mix @ mix.T / 20 + 0.1 * np.eye(20)

    def program(y):
        theta = numpyro.sample("theta", dist.MultivariateNormal(np.zeros(20), prior))
        numpyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)

    y = DATA.normal(size=20)
    covariance = np.linalg.inv(np.linalg.inv(prior) + 4 * np.eye(20))
    theta = RNG.multivariate_normal(covariance @ y * 4, covariance, SHAPE)
    return fit_of_draws(program, (y,), {"theta": theta}), stats.multivariate_normal(
        np.zeros(20), prior + 0.25 * np.eye(20)
    ).logpdf(y)


def hierarchical_normal():
    """37 sampled parameters."""
    data = line_data()
    covariance = (1.0 + NOISE_OF_LINE**2) * np.eye(len(data)) + WIDTH**2
    return fit_of_scattered(data), stats.multivariate_normal(np.zeros(len(data)), covariance).logpdf(data.y)


def groups_of_unknown_scatter():
    """Skewed, with a funnel; on a grid."""
    cell = (MU[1, 0] - MU[0, 0]) * (TAU[0, 1] - TAU[0, 0])
    log_density = LOG_PRIOR + log_density_of_groups().sum(axis=0)
    return group_fit(sampled_groups), np.logaddexp.reduce(log_density.ravel()) + np.log(cell)


def exponential_times():
    def program(times):
        rate = numpyro.sample("rate", dist.Gamma(1.5, 2.0))
        numpyro.sample("times", dist.Exponential(rate).expand([4]).to_event(1), obs=times)

    times = np.array([0.2, 1.9, 0.7, 3.1])
    rate = RNG.gamma(5.5, 1 / (2 + times.sum()), SHAPE)
    expected = 1.5 * np.log(2) - gammaln(1.5) + gammaln(5.5) - 5.5 * np.log(2 + times.sum())
    return fit_of_draws(program, (times,), {"rate": rate}, unconstrained={"rate": np.log(rate)}), expected


def at_a_bound():
    """A uniform prior that cuts the posterior."""

    def program(y):
        mu = numpyro.sample("mu", dist.Uniform(0.0, 3.0))
        numpyro.sample("y", dist.Normal(mu, 0.5), obs=y)

    share = RNG.uniform(stats.norm.cdf(0.4), stats.norm.cdf(6.4), SHAPE)
    mu = -0.2 + 0.5 * stats.norm.ppf(share)
    fit = fit_of_draws(program, (np.array(-0.2),), {"mu": mu}, unconstrained={"mu": np.log(mu / (3 - mu))})
    return fit, np.log((stats.norm.cdf(6.4) - stats.norm.cdf(0.4)) / 3.0)


QUICK = (normal_mean, hierarchical_normal, at_a_bound)
OTHERS = (
    linear_regression, unknown_variance, beta_binomial, gamma_poisson, dirichlet_multinomial, twenty_normals,
    groups_of_unknown_scatter, exponential_times,
)  # fmt: skip


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.long) for case in OTHERS)])
def test_closed_forms(case, monte_carlo):
    fit, expected = case()
    found = evidence(fit)
    assert found.log_evidence == pytest.approx(expected, abs=0.05)
    assert found.error < 0.02
    monte_carlo.within(found.log_evidence, expected, max(found.error, 1e-9), name=case.__name__)


def test_error_is_the_scatter_of_repetitions(monte_carlo):
    """Of draws of gamma distributions, in logarithms, each of which comes three times: chains with autocorrelation."""
    shape, distances = np.array([2.0, 4.0]), []

    def log_density(logs):
        return (stats.gamma.logpdf(np.exp(logs), shape) + logs).sum(axis=-1) + 7.0

    rng = np.random.default_rng(seed(3))
    for _ in range(150):
        draws = np.repeat(np.log(rng.gamma(shape, size=(4, 100, 2))), 3, axis=1)
        found, error = bridge(log_density, draws[:, :150].reshape(-1, 2), draws[:, 150:], rng)
        distances.append((found - 7.0) / error)
    # A standard error from few draws is itself uncertain, and the proposals of a repetition have the same errors.
    monte_carlo.within(np.std(distances), 1.0, 0.1, name="scatter in errors")
    monte_carlo.within(np.mean(distances), 0.0, 0.12, name="bias in errors")


def test_dependence_on_the_priors_is_said():
    found = evidence(normal_mean()[0])
    # The widths of normals are their standard deviations, but for the interval of 68 instead of 68.3 %.
    assert found.table.loc["mu", "prior_width"] == pytest.approx(2.0, rel=0.15)
    assert found.table.loc["mu", "posterior_width"] == pytest.approx((1 / 4 + 12) ** -0.5, rel=0.1)
    assert "one k times as wide lowers it by ln k" in str(found)
    assert "mu (7" in str(found) or "mu (6" in str(found)
    assert found.notes == ()


def test_compare_shows_both():
    fits = {"line": line_fit(), "flat": line_fit(program=flat_line)}
    result = compare(fits)
    expected = []
    data = line_data()
    for columns in ([np.ones(len(data)), data.x], [np.ones(len(data))]):
        design = np.column_stack(columns)
        covariance = NOISE_OF_LINE**2 * np.eye(len(data)) + WIDTH**2 * design @ design.T
        expected.append(stats.multivariate_normal(np.zeros(len(data)), covariance).logpdf(data.y))
    np.testing.assert_allclose(result.table.loc[["line", "flat"], "log_evidence"], expected, atol=0.05)
    assert "line has the largest log evidence; that of flat is lower by" in str(result)
    assert "priors of coefficient[0], coefficient[1], level" in str(result)
    alone = compare({"line": loo(fits["line"]), "flat": loo(fits["flat"])})
    assert alone.table["log_evidence"].isna().all()
    assert "evidence" not in str(alone)


# What has no evidence


def improper(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()).expand([1]).to_event(1))
    numpyro.sample("y", dist.Normal(mu[0], 1.0), obs=y)


def masked(y):
    with handlers.mask(mask=np.array([False])):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([1]))
    numpyro.sample("y", dist.Normal(mu[0], 1.0), obs=y)


def scaled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([1]))
    with handlers.scale(scale=10.0):
        numpyro.sample("y", dist.Normal(mu[0], 1.0), obs=y)


def discrete(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([1]))
    side = numpyro.sample("side", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(mu[0] * side, 1.0), obs=y)


def without_data(y):
    numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([1]))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (improper, "found the improper prior of 'mu'"),
        (masked, "found a mask in place of the prior of 'mu'"),
        (scaled, "without numpyro.handlers.scale; found it at 'y'"),
        (discrete, "discrete latent site 'side'"),
        (without_data, "found no observed site"),
    ],
)
def test_what_has_no_evidence_is_refused(program, words):
    fit = fit_of_draws(program, (np.array(0.3),), {"mu": RNG.normal(size=(2, 40, 1))})
    with pytest.raises(ValueError, match=words):
        evidence(fit)


def test_other_results_programs_and_few_draws_are_refused():
    with pytest.raises(TypeError, match=r"expected a Fit, as returned by hbm_jax\.sample; found dict"):
        evidence({})
    fit = fit_of_draws(conjugate, (np.zeros(3),), {"mu": RNG.normal(size=(2, 8))})
    with pytest.raises(ValueError, match="expected 20 draws or more for 1 unconstrained parameters; found 16"):
        evidence(fit)
    fit = fit_of_draws(conjugate, (np.zeros(3),), {"mu": np.zeros((2, 80))})
    with pytest.raises(ValueError, match="found parameters that do not vary"):
        evidence(fit)
    fit = fit_of_draws(conjugate, (np.zeros(3),), {"other": RNG.normal(size=(2, 80))})
    with pytest.raises(ValueError, match="expected the program of the draws"):
        evidence(fit)
    fit.program = None
    with pytest.raises(ValueError, match="evidence: expected a fit with its program and data"):
        evidence(fit)


def test_command(capsys):
    path = str(FOLDER / "eight_schools.nc")
    assert cli.main(["evidence", path]) == cli.USABLE
    assert "log evidence -" in capsys.readouterr().out


@pytest.mark.long
def test_flat_lcdm_and_wcdm_of_jla_by_the_density_of_w_at_minus_one(monte_carlo):
    """The models are nested: their evidences are as the posterior to the prior density of w0 at -1 (Dickey 1971)."""
    sne = hbm.data.load_jla()
    fits = {
        name: hbm.sample(hbm.models.Supernova(cosmology=name), sne, num_samples=1000, seed=seed(4), progress=False)
        for name in ("lcdm", "wcdm")
    }
    found = {name: evidence(fit) for name, fit in fits.items()}
    w0 = fits["wcdm"].posterior["w0"].to_numpy()
    near = np.abs(w0 + 1.0) < 0.1  # the density is straight there, so that its mean is that at -1
    ess = array_stats.ess(near.astype(float), chain_axis=0, draw_axis=1, method="mean")
    expected = np.log(near.mean() / 0.2) - np.log(1 / 3)  # the prior is uniform from -3 to 0
    error = np.sqrt((1.0 - near.mean()) / near.mean() / ess)
    difference = found["lcdm"].log_evidence - found["wcdm"].log_evidence
    monte_carlo.within(difference, expected, np.hypot(error, 0.01), name="log Bayes factor")
    assert max(one.error for one in found.values()) < 0.05
