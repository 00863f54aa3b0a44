"""An exponential population of x: the likelihood with and without selection, draws, and what is refused."""

import jax
import numpy as np
import pytest
from densities import compare_with_integral
from monte_carlo import seed
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

from hbm_jax.data.linear.points_in_groups import PointsInGroups
from hbm_jax.models import Relation
from hbm_jax.validation import DataError, OptionError

X, Y = np.array([0.6, 1.2, 0.9, 2.1, 1.0]), np.array([0.4, 1.9, 1.1, 2.8, -0.5])
ERROR_X, ERROR_Y = np.array([0.7, 0.3, 0.5, 0.2, 0.4]), 0.4
TRUTH = {"alpha": 1.8, "beta": 0.4, "intrinsic_scatter": 0.5, "x_min": -0.3, "x_scale": 0.8}
OUTLIERS = {"outlier_fraction": 0.2, "outlier_scatter": 1.5}
CUT = np.array([0.1, 0.3, -0.2, 0.4, 0.0])
# Limit and width in x (missing below) and in y (missing above).
CASES = {
    "none": (None, None, {}),
    "x > 0.5": ((0.5, 0.0), None, {}),
    "y < 3.0 +- 0.6": (None, (3.0, 0.6), OUTLIERS),
    "x > cut_x +- 0.3": ((CUT, 0.3), None, OUTLIERS),
}


def points(**more):
    columns = {"x": X, "y": Y, "sigma_x": ERROR_X, "sigma_y": np.full(5, ERROR_Y)}
    return PointsInGroups.from_columns(columns | more)


def integral(values, low):
    """Simpson's rule over the true x, (N, 5) -> (5,)."""
    step = (45.0 * low) / (len(values) - 1)
    return step / 3.0 * (values[0] + values[-1] + 4.0 * values[1:-1:2].sum(0) + 2.0 * values[2:-1:2].sum(0))


def plain_log_likelihood(p, in_x, in_y):
    """Integrals over the true x of the density of each point, and of the probability of detection."""
    x = p["x_min"] + np.linspace(0.0, 45.0 * p["x_scale"], 8001)[:, None]
    density = np.exp(-(x - p["x_min"]) / p["x_scale"]) / p["x_scale"] * np.ones(5)
    total, share, outliers = 0.0, 0.0, p.get("outlier_fraction", 0.0)
    for weight, extra in ((1.0 - outliers, 0.0), (outliers, p.get("outlier_scatter", 0.0))):
        mean, spread = p["beta"] + p["alpha"] * x, np.sqrt(p["intrinsic_scatter"] ** 2 + extra**2 + ERROR_Y**2)
        likelihood = stats.norm.pdf(X, x, ERROR_X) * stats.norm.pdf(Y, mean, spread)
        total = total + weight * integral(density * likelihood, p["x_scale"])
        passed = np.ones((len(x), 5))
        if in_x is not None:
            passed = passed * stats.norm.cdf((x - in_x[0]) / np.hypot(in_x[1], ERROR_X))
        if in_y is not None:
            passed = passed * stats.norm.cdf((in_y[0] - mean) / np.hypot(in_y[1], spread))
        share = share + weight * integral(density * passed, p["x_scale"])
    log = np.log(total / share)
    if in_x is not None and in_x[1] > 0:
        log = log + stats.norm.logcdf((X - in_x[0]) / in_x[1])
    if in_y is not None:
        log = log + stats.norm.logcdf((in_y[0] - Y) / in_y[1])
    return log.sum()


@pytest.mark.parametrize("text", CASES)
def test_the_likelihood_is_the_integral_over_true_x(text):
    in_x, in_y, more = CASES[text]
    model = Relation(pooling="complete", x_population="exponential", selection=text, outliers=bool(more), pivot=0.0)
    truth = TRUTH | more
    compare_with_integral(model, points(cut_x=CUT), truth, lambda values: plain_log_likelihood(values, in_x, in_y))


def test_far_below_the_limit_the_lower_end_does_not_matter():
    """The density of detected points is that of a population without an end, normalised above the limit."""
    model = Relation(pooling="complete", x_population="exponential", selection="x > 0.5", pivot=0.0)

    @jax.jit
    def likelihood(lowest):
        values = TRUTH | {"x_min": lowest, "x_scale": 0.3}
        site = log_density(model, (model.bind(points()),), {}, values)[1]["observed"]
        return site["fn"].log_prob(site["value"]).sum()

    with jax.enable_x64(True):
        near, far = (float(likelihood(lowest)) for lowest in (-8.0, -30.0))
    assert near == pytest.approx(far, rel=1e-10)
    assert np.isfinite(far)


@pytest.mark.long
def test_draws_are_of_the_population_and_of_the_posterior(monte_carlo):
    num = 3000
    columns = {"x": np.linspace(-1, 3, num), "y": np.linspace(-1, 3, num), "sigma_x": np.full(num, 0.5)}
    design = PointsInGroups.from_columns(columns | {"sigma_y": np.full(num, ERROR_Y)})
    model = Relation(pooling="complete", x_population="exponential", selection="x > 0.5", pivot=0.0)
    drawn, _ = model.simulate(jax.random.key(seed(1)), design, TRUTH)
    rng = np.random.default_rng(seed(2))
    true = TRUTH["x_min"] + rng.exponential(TRUTH["x_scale"], 30_000)
    y = TRUTH["beta"] + TRUTH["alpha"] * true + rng.normal(0, np.hypot(TRUTH["intrinsic_scatter"], ERROR_Y), len(true))
    x = true + rng.normal(0, 0.5, len(true))
    for column, values in enumerate((x[x > 0.5], y[x > 0.5])):
        monte_carlo.p_value(stats.ks_2samp(drawn.values[0][:, column], values).pvalue, name="xy"[column])
    # The true x of a point given its measured values, against its distribution function on a grid.
    fixed = Relation(pooling="complete", x_population="exponential", pivot=0.0, priors=TRUTH)
    same = design.replace_observations(np.broadcast_to([0.1, 0.9], (1, num, 2)))
    with jax.enable_x64(True):
        seeded = handlers.seed(fixed, jax.random.key(seed(3)))
        latent = np.asarray(handlers.trace(seeded).get_trace(fixed.bind(same), recover=True)["x"]["value"])[0]
    grid = np.linspace(TRUTH["x_min"], 6.0, 4001)
    spread = np.hypot(TRUTH["intrinsic_scatter"], ERROR_Y)
    density = np.exp(-grid / TRUTH["x_scale"]) * stats.norm.pdf(0.1, grid, 0.5)
    density = density * stats.norm.pdf(0.9, TRUTH["beta"] + TRUTH["alpha"] * grid, spread)
    cumulative = np.cumsum(density) / density.sum()
    monte_carlo.p_value(stats.kstest(latent, lambda v: np.interp(v, grid, cumulative)).pvalue, name="latent")


def test_what_does_not_fit_is_refused():
    exponential = {"x_population": "exponential"}
    with pytest.raises(OptionError, match="expects num_components=1; found num_components=2"):
        Relation(num_components=2, **exponential)
    with pytest.raises(OptionError, match="expects latents='marginal'"):
        Relation(latents="sampled", **exponential)
    with pytest.raises(OptionError, match=r"at most one limit; found selection='x > 1\.0 and y < 2\.0'"):
        Relation(selection="x > 1.0 and y < 2.0", **exponential)
    with pytest.raises(DataError, match="one predictor and no limits; found limits"):
        Relation(**exponential).bind(points(limit_y=["<", "", "", "", ""]))
    with pytest.raises(DataError, match="expected an error of x for every point"):
        Relation(**exponential).bind(points(sigma_x=np.zeros(5)))
