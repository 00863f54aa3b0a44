"""Posteriors of posteriordb: reference draws, exact posterior, density of the model, and what it samples."""

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density
from posteriors import CAUCHY, LINEAR, QUANTILES, Exact, model_and_data, read_json

import hbm_jax as hbm
from hbm_jax.data import RegressionData
from hbm_jax.models import Regression

WIDE = 4.5  # standard errors: of some thousand comparisons, none by chance
MIN_ESS = 400


@pytest.mark.parametrize("name", LINEAR)
def test_reference_draws_are_of_the_posterior_of_the_model(shared_data, name):
    """The exact posterior has the means and quantiles of the draws, and the model its density."""
    model, data, reference = model_and_data(shared_data, name)
    exact = Exact(np.asarray(data.y), np.asarray(data.X), LINEAR[name].priors, data.terms)
    for k, known in enumerate(reference):
        assert known["ess_bulk"] > 5000
        assert abs(exact.mean(k) - known["mean"]) < WIDE * known["mcse_mean"], (name, k)
        shares = np.array(list(QUANTILES.values()))
        below = exact.cdf(k, np.array([known[quantile] for quantile in QUANTILES]))
        error = np.sqrt(shares * (1.0 - shares) / known["ess_bulk"])
        assert (np.abs(below - shares) < WIDE * error).all(), (name, k, below)
    drawn = exact.draws(3, seed=1)
    basis = np.linalg.inv(np.asarray(data.basis))
    density = jax.jit(lambda z, sigma: log_density(model, (data,), {}, {"_coef": z, "sigma": sigma})[0])
    difference = [float(density(basis @ b, sigma)) - exact.log_joint(b, sigma) for b, sigma in drawn]
    assert np.ptp(difference) < 1e-6 * max(abs(exact.log_joint(*drawn[0])), 1.0)


def compared(draws, reference, what):
    """Draws (chain, draw, n) against a summary of reference draws."""
    from arviz_stats.base import array_stats

    for k, known in enumerate(reference):
        one = draws[..., k]
        ess = float(array_stats.ess(one, method="bulk"))
        assert ess > MIN_ESS, (what, k)
        error = np.hypot(one.std() / np.sqrt(ess), known["mcse_mean"])
        assert abs(one.mean() - known["mean"]) < WIDE * error, (what, k)
        for quantile, share in QUANTILES.items():
            tail = float(array_stats.ess(one, method="quantile", prob=(share,)))
            error = np.sqrt(share * (1.0 - share) * (1.0 / tail + 1.0 / known["ess_bulk"]))
            assert abs((one < known[quantile]).mean() - share) < WIDE * error, (what, k, quantile)


def stacked(posterior, *names):
    parts = [posterior[name].transpose("chain", "draw", ...).to_numpy() for name in names]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


SAMPLED = ("kidiq-kidscore_interaction",)  # in the default suite
FOUR = [
    "kidiq_with_mom_work-kidscore_interaction_c", "kidiq_with_mom_work-kidscore_interaction_c2",
    "kidiq_with_mom_work-kidscore_interaction_z", "kidiq_with_mom_work-kidscore_mom_work",
    "earnings-logearn_interaction", "earnings-logearn_interaction_z", "mesquite-logmesquite_logva",
]  # fmt: skip


@pytest.mark.slow
def test_sampled_in_one_program_they_are_those_of_the_reference(shared_data):
    """All posteriors with four coefficients and flat priors, of 46 to 1192 points, side by side."""
    cases = [model_and_data(shared_data, name) for name in FOUR]
    fits = hbm.fit_each(
        cases[0][0], [data for _, data, _ in cases], names=FOUR, seed=1, keep_draws=True, progress=False, until=1000
    )
    for name, (_, _, reference) in zip(FOUR, cases, strict=True):
        assert fits.verdicts["usable"][name], fits.verdicts
        draws = fits.draws(name)["posterior"]
        compared(stacked(draws, "coef", "sigma"), reference, name)


def test_eight_schools_as_a_regression(shared_data):
    columns = read_json(shared_data("hierarchical/posteriordb/eight_schools.json"))
    table = {"y": columns["y"], "error": columns["sigma"], "school": list("ABCDEFGH")}
    data = RegressionData.from_columns(table, "y ~ 1 + (1 | school)", error="error")
    model = Regression(priors={"sigma": 0.0, "intercept": "Normal(0, 5)", "sd": "HalfCauchy(5)"})
    fit = hbm.sample(model, data, seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    reference = read_json(shared_data("hierarchical/posteriordb/reference_summary.json"))
    known = reference["eight_schools-eight_schools_noncentered"]["parameters"]
    theta = fit.posterior["coef"].isel(term=0, drop=True) + fit.posterior["school_effect"]
    draws = np.concatenate(
        [theta.transpose("chain", "draw", "school"), stacked(fit.posterior, "coef", "school_sd")], -1
    )
    compared(draws, [known[f"theta[{j}]"] for j in range(1, 9)] + [known["mu"], known["tau"]], "eight schools")


@pytest.mark.parametrize(
    "name", [name if name in SAMPLED else pytest.param(name, marks=pytest.mark.slow) for name in LINEAR]
)
def test_sampled_alone_they_are_those_of_the_reference(shared_data, name):
    model, data, reference = model_and_data(shared_data, name)
    fit = hbm.sample(model, data, seed=1, progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    compared(stacked(fit.posterior, "coef", "sigma"), reference, name)


def test_coordinates_do_not_change_the_posterior(shared_data):
    """With and without orthogonal predictors, the density at the same coefficients differs by a constant."""
    _, data, _ = model_and_data(shared_data, "kidiq-kidscore_interaction")
    rng = np.random.default_rng(1)
    points = [(np.array([20.0, 5.0, 0.6, 0.1]) + rng.normal(size=4), 18.0 + rng.normal()) for _ in range(3)]
    for priors in ({}, CAUCHY, {"coef": "StudentT(3, 0, 10)", "coef[mom_iq]": "Normal(0.5, 0.1)"}):
        densities = []
        for qr in (True, False):
            model = Regression(qr=qr, priors=priors)
            with jax.enable_x64(True):
                values = [_density(model, data, b, sigma) for b, sigma in points]
            densities.append(np.array(values))
        assert np.ptp(densities[0] - densities[1]) < 1e-7


def _density(model, data, b, sigma):
    """Log density at coefficients b, with the coordinates found from two calls: they are linear."""
    from numpyro import handlers

    def coef(z):
        seeded = handlers.substitute(handlers.seed(model, 0), data={"_coef": z, "sigma": sigma})
        return np.asarray(handlers.trace(seeded).get_trace(data)["coef"]["value"])

    zero = coef(np.zeros(len(b)))
    matrix = np.stack([coef(row) - zero for row in np.eye(len(b))], axis=1)
    z = np.linalg.solve(matrix, b - zero)
    # Less the determinant, which belongs to the coordinates.
    return float(log_density(model, (data,), {}, {"_coef": z, "sigma": sigma})[0]) - np.linalg.slogdet(matrix)[1]
