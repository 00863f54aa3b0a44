"""Values of groups with the true value integrated out: numbers of components, quadrature, conditionals.

Density, derivatives and draws in general: `test_distribution_laws`.
"""

import jax
import numpy as np
import pytest
from normal_oracles import covariance_of, grouped_normal, log_normal, triangle_of
from scipy import integrate, stats

from hbm_jax.distributions import GroupedNormal

USED = np.array([[True, True, True], [True, False, False], [True, True, False]])
SIZES = (1, 2, 3)


def case(components, seed=0):
    rng = np.random.default_rng([components, seed])
    noise = np.array([[covariance_of(rng, components) for _ in range(3)] for _ in range(3)])
    values = rng.normal(size=(3, 3, components)) * USED[..., None]
    return rng.normal(size=components), triangle_of(rng, components), noise, values


CASES = {size: case(size) for size in SIZES}


@jax.jit
def everything(cases):
    """Density with and without constants, with a true value that is known, and what is known of the true value."""
    found = {}
    for size, (loc, tril, noise, values) in cases.items():
        d = GroupedNormal(loc, tril, noise, USED)
        conditional = d.conditional(values)

        def of_tril(tril, loc=loc, noise=noise, values=values):
            return GroupedNormal(loc, tril, noise, USED).log_prob(values)

        found[size] = {
            "log_prob": d.log_prob(values),
            "known noise": GroupedNormal(loc, tril, CASES[size][2], USED).log_prob(values),
            "known truth": of_tril(0.0 * tril),
            "mean": conditional.mean,
            "covariance": conditional.covariance_matrix,
        }
        if size == 1:
            found[size]["slope at zero"] = jax.grad(lambda s: of_tril(s).sum())(0.0 * tril)
    return found


@pytest.mark.parametrize("components", SIZES)
def test_log_density_is_that_of_a_normal_of_all_values(components):
    loc, tril, noise, values = CASES[components]
    found = everything(CASES)[components]
    for k in range(3):
        mean, covariance = grouped_normal({"loc": loc, "scale_tril": tril, "noise": noise[k], "used": USED[k]})
        expected = log_normal(values[k, USED[k]].ravel(), mean, covariance)
        assert float(found["log_prob"][k]) == pytest.approx(expected, rel=1e-11)
        assert float(found["known noise"][k]) == pytest.approx(expected, rel=1e-11)
        # A true value that is known: independent values.
        each = [stats.multivariate_normal(loc, noise[k, m]).logpdf(values[k, m]) for m in np.flatnonzero(USED[k])]
        assert float(found["known truth"][k]) == pytest.approx(sum(each), rel=1e-11)


def test_it_is_the_integral_over_the_true_value():
    loc, tril, noise, values = CASES[1]
    found = everything(CASES)[1]["log_prob"]
    for k in range(3):

        def density(theta, k=k):
            each = [np.exp(log_normal(values[k, m], np.array([theta]), noise[k, m])) for m in np.flatnonzero(USED[k])]
            return stats.norm.pdf(theta, loc[0], tril[0, 0]) * np.prod(each)

        integral = integrate.quad(density, -20.0, 20.0, points=[values[k, 0, 0]], epsabs=0.0, epsrel=1e-10, limit=300)
        assert float(found[k]) == pytest.approx(np.log(integral[0]), abs=1e-8)


@pytest.mark.parametrize("components", SIZES)
def test_true_values_are_drawn_back_from_their_conditional(components):
    loc, tril, noise, values = CASES[components]
    found = everything(CASES)[components]
    for k in range(3):
        precision = np.linalg.inv(tril @ tril.T)
        weighted = precision @ loc
        for m in np.flatnonzero(USED[k]):
            weighted = weighted + np.linalg.solve(noise[k, m], values[k, m])
            precision = precision + np.linalg.inv(noise[k, m])
        np.testing.assert_allclose(found["mean"][k], np.linalg.solve(precision, weighted), rtol=1e-9)
        np.testing.assert_allclose(found["covariance"][k], np.linalg.inv(precision), rtol=1e-9, atol=1e-12)


def test_the_slope_is_zero_where_the_population_has_no_spread():
    """The density is even in the scale."""
    np.testing.assert_allclose(everything(CASES)[1]["slope at zero"], 0.0, atol=1e-12)
