"""The normal with one decomposition, against dense linear algebra, with the scatter known beforehand or not.

Derivatives and draws in general: `test_distribution_laws`.
"""

import jax
import numpy as np
import pytest
from distribution_catalogue import correlated_moments
from normal_oracles import log_normal

from hbm_jax.distributions import CorrelatedNormal, Offset, Projected, ProjectedNormal, compressed, projected, whiten

RNG = np.random.default_rng(4)
N, K = 30, 3
ROOT = RNG.normal(size=(N, N))
COVARIANCE = ROOT @ ROOT.T / N + 0.1 * np.diag(RNG.uniform(0.5, 2.0, N))
BASIS = RNG.normal(size=(N, K))
FIXED = RNG.normal(size=N)
THETA = np.array([0.3, -1.0, 0.5])
VALUE = FIXED + BASIS @ THETA + 2.0 + RNG.normal(size=N)
SOME = np.where(np.arange(N) < 12, 1.0, 0.0)
CASES = {
    "everywhere": (np.ones(N), 0.4),
    "of some": (SOME, 0.7),
    "of some, unequally": (SOME * np.linspace(0.5, 2.0, N), 0.7),
    "none": (None, 0.0),
}


@jax.jit
def everything(theta, offset_scale, scatters):
    """Density with a known scatter, for which sums are precomputed, with a free one, and of projected values."""
    found = {}
    for case, (weights, scatter) in CASES.items():
        whitening = whiten(COVARIANCE, weights)
        projection, offset = projected(whitening, BASIS), Offset(1.5, offset_scale)

        def known(theta, whitening=whitening, projection=projection, scatter=scatter, offset=offset):
            return CorrelatedNormal(whitening, FIXED, projection, theta, scatter, offset).log_prob(VALUE)

        free = CorrelatedNormal(whitening, FIXED, projection, theta, scatters[case], offset)
        inner = ProjectedNormal(projection, theta, scatters[case], offset)
        value, slope = jax.value_and_grad(known)(theta)
        given = free.offset_given(VALUE)
        found[case] = {
            "known": value,
            "slope": slope,
            "free": free.log_prob(VALUE),
            "projected": inner.log_prob(inner.project(free.project(VALUE))),
            "given others": free.log_prob_given_others(VALUE),
            "offset": (given.loc, given.scale),
        }
    return found


def evaluate(offset_scale):
    found = everything(THETA, offset_scale, {case: scatter for case, (_, scatter) in CASES.items()})
    return jax.tree.map(np.asarray, found)


def dense(case, offset_scale, theta=THETA):
    weights, scatter = CASES[case]
    p = {"covariance": COVARIANCE, "weights": weights, "basis": BASIS, "fixed": FIXED, "coefficients": theta}
    return correlated_moments(p | {"scatter": scatter, "offset_loc": 1.5, "offset_scale": offset_scale})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1e3])
def test_density_and_its_slope(case, scale):
    found = evaluate(scale)[case]
    mean, covariance = dense(case, scale)
    tolerance = 1e-9 if scale < 100 else 1e-6  # the dense one loses digits to the large variance
    for way in ("known", "free", "projected"):
        assert found[way] == pytest.approx(log_normal(VALUE, mean, covariance), rel=tolerance), way
    slope = BASIS.T @ np.linalg.solve(covariance, VALUE - mean)
    np.testing.assert_allclose(found["slope"], slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_each_value_given_all_others(case):
    found = evaluate(0.8)[case]["given others"]
    mean, covariance = dense(case, 0.8)
    together = log_normal(VALUE, mean, covariance)
    for i in (0, 7, 29):
        rest = np.delete(np.arange(N), i)
        without = log_normal(VALUE[rest], mean[rest], covariance[np.ix_(rest, rest)])
        assert found[i] == pytest.approx(together - without, rel=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_the_offset_is_drawn_back(case):
    loc, scale = evaluate(0.8)[case]["offset"]
    mean, covariance = dense(case, 0.0)
    precision = np.linalg.inv(covariance)
    weight = precision.sum()
    best = 1.5 + (precision @ (VALUE - mean)).sum() / weight
    variance = 1.0 / (weight + 0.8**-2)
    assert loc == pytest.approx(variance * (weight * best + 1.5 * 0.8**-2), rel=1e-9)
    assert scale == pytest.approx(variance**0.5, rel=1e-9)


@pytest.mark.parametrize("weights", [None, np.ones(N), SOME])
def test_the_decomposition_makes_both_parts_diagonal(weights):
    transform, spread, log_det, inverse = whiten(COVARIANCE, weights)
    np.testing.assert_allclose(transform @ inverse, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(transform @ COVARIANCE @ transform.T, np.eye(N), atol=1e-11)
    expected = np.zeros((N, N)) if weights is None else transform @ np.diag(weights) @ transform.T
    np.testing.assert_allclose(np.diag(spread), expected, atol=1e-11)
    assert log_det == pytest.approx(np.linalg.slogdet(COVARIANCE)[1], rel=1e-12)


def test_a_known_value_is_not_projected():
    """Also where everything is an argument of the compiled function; any other value is projected."""
    weights, scatter = CASES["of some"]
    whitening = whiten(COVARIANCE, weights)
    full = projected(whitening, BASIS)
    few, few_rows = compressed(full, whitening.transform @ (VALUE - FIXED), scatter)
    assert len(few_rows) == K + 2

    def density(whitening, full, known, theta, others):
        normal = CorrelatedNormal(whitening, FIXED, full, theta, scatter, Offset(1.5, 0.5), known=known)
        return normal.log_prob(known.value if others is None else others)

    arguments = (whitening, full, Projected(VALUE, few, few_rows), THETA)
    expected = log_normal(VALUE, *dense("of some", 0.5))
    assert float(jax.jit(density)(*arguments, None)) == pytest.approx(expected, rel=1e-9)
    assert float(jax.jit(density)(*arguments, VALUE.copy())) == pytest.approx(expected, rel=1e-9)
    products = [str(jax.make_jaxpr(density)(*arguments, others)).count("dot_general[") for others in (None, VALUE)]
    assert products == [1, 2], "that with the coefficients alone"
    assert compressed(few, few_rows, 0.0) == (few, few_rows)


@pytest.mark.parametrize("weights", [None, np.ones(N), SOME])
def test_a_covariance_that_is_not_positive_definite_is_refused(weights):
    with pytest.raises(np.linalg.LinAlgError):
        whiten(COVARIANCE - 5.0 * np.eye(N), weights)
