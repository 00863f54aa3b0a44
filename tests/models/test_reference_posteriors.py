"""Posteriors of posteriordb: reference draws, exact posterior, density of the model, and what it samples."""

import numpy as np
import pytest
from monte_carlo import seed
from posterior_programs import OTHERS, case_of, stein_distances
from posteriors import CAUCHY, LINEAR, QUANTILES, Exact, model_and_data, read_json
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data import RegressionData
from hbm_jax.models import Regression

WIDE = 4.5  # standard errors: of some thousand comparisons, none by chance
# One of each kind of formula and of priors, in the default suite: products, stated and flat priors, no intercept.
COMPILED = (
    "kidiq-kidscore_interaction", "kidiq_with_mom_work-kidscore_mom_work", "mesquite-logmesquite_logvas",
    "kilpisjarvi_mod-kilpisjarvi", "sblri-blr", "arK-arK",
)  # fmt: skip


@pytest.mark.parametrize("name", [n if n in COMPILED else pytest.param(n, marks=pytest.mark.long) for n in LINEAR])
def test_the_model_has_the_density_of_the_exact_posterior(shared_data, name):
    model, data, _ = model_and_data(shared_data, name)
    exact = Exact(np.asarray(data.y), np.asarray(data.X), LINEAR[name].priors, data.terms)
    drawn = exact.draws(3, seed=1)
    basis = np.linalg.inv(np.asarray(data.basis))
    sites = compiled_sites(model, data)
    found = [sites({"_coef": basis @ b, "sigma": sigma}) for b, sigma in drawn]
    for (b, _), one in zip(drawn, found, strict=True):
        np.testing.assert_allclose(one.values["coef"], b, rtol=1e-8)
    difference = [one.log_density - exact.log_joint(*point) for one, point in zip(found, drawn, strict=True)]
    assert np.ptp(difference) < 1e-6 * max(abs(exact.log_joint(*drawn[0])), 1.0)


@pytest.mark.parametrize("name", LINEAR)
def test_reference_draws_are_of_the_exact_posterior(shared_data, name):
    """Means and quantiles of the draws."""
    _, data, reference = model_and_data(shared_data, name)
    exact = Exact(np.asarray(data.y), np.asarray(data.X), LINEAR[name].priors, data.terms)
    for k, known in enumerate(reference):
        assert known["ess_bulk"] > 5000
        assert abs(exact.mean(k) - known["mean"]) < WIDE * known["mcse_mean"], (name, k)
        shares = np.array(list(QUANTILES.values()))
        below = exact.cdf(k, np.array([known[quantile] for quantile in QUANTILES]))
        error = np.sqrt(shares * (1.0 - shares) / known["ess_bulk"])
        assert (np.abs(below - shares) < WIDE * error).all(), (name, k, below)


def compared(draws, reference, monte_carlo):
    """Draws (chain, draw, n) against a summary of reference draws."""
    for k, known in enumerate(reference):
        one = draws[..., k]
        monte_carlo.mean(one, known["mean"], expected_error=known["mcse_mean"], name=f"mean {k}", min_ess=250)
        for quantile, share in QUANTILES.items():
            error = np.sqrt(share * (1.0 - share) / known["ess_bulk"])
            below = one < known[quantile]
            monte_carlo.share(below, share, expected_error=error, name=f"{quantile} {k}", min_ess=100)


def stacked(posterior, *names):
    parts = [posterior[name].transpose("chain", "draw", ...).to_numpy() for name in names]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)


SAMPLED = ("kidiq-kidscore_interaction",)  # long; the others are slow
FOUR = [
    "kidiq_with_mom_work-kidscore_interaction_c", "kidiq_with_mom_work-kidscore_interaction_c2",
    "kidiq_with_mom_work-kidscore_interaction_z", "kidiq_with_mom_work-kidscore_mom_work",
    "earnings-logearn_interaction", "earnings-logearn_interaction_z", "mesquite-logmesquite_logva",
]  # fmt: skip


@pytest.mark.slow
def test_sampled_in_one_program_they_are_those_of_the_reference(shared_data, monte_carlo):
    """All posteriors with four coefficients and flat priors, of 46 to 1192 points, side by side."""
    cases = [model_and_data(shared_data, name) for name in FOUR]
    fits = hbm.fit_each(
        cases[0][0],
        [data for _, data, _ in cases],
        names=FOUR,
        seed=seed(1),
        keep_draws=True,
        progress=False,
        until=1000,
    )
    for name, (_, _, reference) in zip(FOUR, cases, strict=True):
        assert fits.verdicts["usable"][name], fits.verdicts
        draws = fits.draws(name)["posterior"]
        compared(stacked(draws, "coef", "sigma"), reference, monte_carlo)


@pytest.mark.long
def test_eight_schools_as_a_regression(shared_data, monte_carlo):
    columns = read_json(shared_data("hierarchical/posteriordb/eight_schools.json"))
    table = {"y": columns["y"], "error": columns["sigma"], "school": list("ABCDEFGH")}
    data = RegressionData.from_columns(table, "y ~ 1 + (1 | school)", error="error")
    model = Regression(priors={"sigma": 0.0, "intercept": "Normal(0, 5)", "sd": "HalfCauchy(5)"})
    fit = hbm.sample(model, data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    reference = read_json(shared_data("hierarchical/posteriordb/reference_summary.json"))
    known = reference["eight_schools-eight_schools_noncentered"]["parameters"]
    theta = fit.posterior["coef"].isel(term=0, drop=True) + fit.posterior["school_effect"]
    draws = np.concatenate(
        [theta.transpose("chain", "draw", "school"), stacked(fit.posterior, "coef", "school_sd")], -1
    )
    compared(draws, [known[f"theta[{j}]"] for j in range(1, 9)] + [known["mu"], known["tau"]], monte_carlo)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in SAMPLED else pytest.mark.slow) for n in LINEAR]
)
def test_sampled_alone_they_are_those_of_the_reference(shared_data, name, monte_carlo):
    model, data, reference = model_and_data(shared_data, name)
    fit = hbm.sample(model, data, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    compared(stacked(fit.posterior, "coef", "sigma"), reference, monte_carlo)


QUICK = "gp_pois_regr-gp_regr"


@pytest.mark.parametrize("name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.long) for n in OTHERS])
def test_reference_draws_are_of_the_density_of_the_program(shared_data, name):
    """Stein's identity; a prior of alpha that is 1.25 times as wide is 20 errors away."""
    distances = stein_distances(shared_data, name)
    assert len(distances) >= 6
    assert (np.abs(distances) < WIDE).all(), distances


@pytest.mark.long
@pytest.mark.parametrize("name", ["low_dim_gauss_mix-low_dim_gauss_mix", "garch-garch11", QUICK])
def test_sampled_programs_are_those_of_the_reference(shared_data, name, monte_carlo):
    case = case_of(shared_data, name)
    fit = hbm.sample(case.program, *case.args, seed=seed(1), progress=False)
    assert fit.verdict.usable, str(fit.verdict)
    known = read_json(shared_data("hierarchical/posteriordb/reference_summary.json"))[name]["parameters"]
    compared(stacked(fit.posterior, *case.sites), list(known.values()), monte_carlo)


def test_coordinates_do_not_change_the_posterior(shared_data):
    """With and without orthogonal predictors, the density at the same coefficients differs by a constant."""
    _, data, _ = model_and_data(shared_data, "kidiq-kidscore_interaction")
    rng = np.random.default_rng(1)
    points = [(np.array([20.0, 5.0, 0.6, 0.1]) + rng.normal(size=4), 18.0 + rng.normal()) for _ in range(3)]
    for priors in ({}, CAUCHY, {"coef": "StudentT(3, 0, 10)", "coef[mom_iq]": "Normal(0.5, 0.1)"}):
        densities = []
        for qr in (True, False):
            sites = compiled_sites(Regression(qr=qr, priors=priors), data)
            densities.append(np.array([_density(sites, b, sigma) for b, sigma in points]))
        assert np.ptp(densities[0] - densities[1]) < 1e-7


def _density(sites, b, sigma):
    """Log density at coefficients b, with the coordinates found from a few calls: they are linear."""

    def coef(z):
        return sites({"_coef": z, "sigma": sigma}).values["coef"]

    zero = coef(np.zeros(len(b)))
    matrix = np.stack([coef(row) - zero for row in np.eye(len(b))], axis=1)
    z = np.linalg.solve(matrix, b - zero)
    # Less the determinant, which belongs to the coordinates.
    return sites({"_coef": z, "sigma": sigma}).log_density - np.linalg.slogdet(matrix)[1]
