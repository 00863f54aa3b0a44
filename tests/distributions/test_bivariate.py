"""Integrals of the bivariate normal distribution over a quadrant against those of mpmath, and their derivatives."""

import functools

import jax
import mpmath
import numpy as np
import pytest

from hbm_jax.distributions.normal.bivariate import log_bivariate_ndtr, log_quadrant_integral

CASES = [
    (0.0, 0.0, 0.5), (1.0, 0.5, 0.0), (-1.0, 0.5, 0.3), (2.0, -1.0, -0.7), (4.0, 3.0, 0.99), (-3.0, -2.0, 0.95),
    (-2.0, 3.0, -0.95), (8.0, 1.0, 0.7), (0.1, 0.1, 0.999), (15.0, -2.0, 0.999), (3.0, 2.9, -0.99),
    (-8.0, -8.0, 0.7), (-5.0, 3.0, 0.3), (20.0, 20.0, -0.3), (-30.0, 2.0, 0.4), (-20.0, -25.0, -0.5),
]  # fmt: skip
EXTREME = [(0.0, 0.0, 0.9), (300.0, -300.0, 0.5), (-300.0, -300.0, -0.99), (1e3, 1e3, 0.9), (-5.0, 5.0, -0.9999)]


def expected(h, k, rho, precision=40):
    """The log probability, by an integral over the first variable."""
    with mpmath.workdps(precision):
        h, k, rho = map(mpmath.mpf, (h, k, rho))
        s = mpmath.sqrt(1 - rho**2)
        step = k / rho if rho else mpmath.mpf(0)
        width = 10 * s / abs(rho) if rho else mpmath.mpf(1)
        near = (h - d for d in (0.02, 0.05, 0.1, 0.2, 0.4, 1, 3, 8))
        breaks = [step - width, step, step + width, *near, -1, 0, 1]
        breaks = sorted({point for point in breaks if point < h})
        points = [breaks[0] - 40, *breaks, h]
        return float(mpmath.log(mpmath.quad(lambda z: mpmath.npdf(z) * mpmath.ncdf((k - rho * z) / s), points)))


@pytest.fixture(scope="module")
def found():
    values = np.array(CASES + EXTREME).T
    with jax.enable_x64(True):
        whole = jax.jit(jax.vmap(jax.value_and_grad(log_bivariate_ndtr, argnums=(0, 1, 2))))
        step = 1e-4 * np.eye(3)[:, :, None]
        log_probability, gradient = whole(*values)
        differences = [(whole(*(values + d))[0] - whole(*(values - d))[0]) / 2e-4 for d in step]
    return np.asarray(log_probability), np.array(gradient), np.array(differences)


# The integrals of mpmath take most of the time: the default suite has some of them.
SOME = pytest.mark.parametrize("chosen", [slice(1, None, 8), pytest.param(slice(None), marks=pytest.mark.long)])


@SOME
def test_the_distribution_function_is_the_integral_of_the_density(found, chosen):
    reference = [expected(*case) for case in CASES[chosen]]
    np.testing.assert_allclose(found[0][: len(CASES)][chosen], reference, rtol=1e-11, atol=1e-11)


def test_derivatives_are_those_of_the_value(found):
    gradient, differences = (part[:, : len(CASES)] for part in found[1:])
    near_one = np.abs(np.array(CASES)[:, 2]) > 0.98  # where a difference quotient in rho is inaccurate
    np.testing.assert_allclose(gradient[:2], differences[:2], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[2][~near_one], differences[2][~near_one], rtol=2e-5, atol=1e-6)


def test_far_tails_and_touching_edges_are_finite(found):
    assert all(np.isfinite(part[..., len(CASES) :]).all() for part in found[:2])
    assert found[0][len(CASES) + 3] == pytest.approx(0.0, abs=1e-9)


# Linear coefficients in units of the square root of the diagonal of Q, the correlation of Q, and scales of t1 and t2.
QUADRANTS = [
    (0.0, 0.0, 0.0, 1.0, 1.0), (-3.0, -2.0, 0.3, 0.1, 4.0), (4.0, -1.0, -0.6, 1.0, 1.0), (6.0, 5.0, 0.9, 30.0, 0.5),
    (-100.0, -1.0, 0.2, 1.0, 1.0), (-100.0, -100.0, -0.5, 1.0, 2.0), (50.0, -30.0, 0.99, 1.0, 1.0),
    (-8.0, 0.5, -0.99, 1.0, 1.0),
]  # fmt: skip


def moments(l1, l2, q11, q12, q22):
    """The integral, and the means of t1, t2, t1^2, t1 t2 and t2^2: over t1 in closed form, over t2 by mpmath."""
    with mpmath.workdps(25):
        l1, l2, q11, q12, q22 = map(mpmath.mpf, (l1, l2, q11, q12, q22))

        @functools.cache
        def inner(t):
            b = (l1 - q12 * t) / mpmath.sqrt(q11)
            mills = mpmath.sqrt(mpmath.pi / 2) * mpmath.exp(b * b / 2) * mpmath.erfc(-b / mpmath.sqrt(2))
            zeroth = mills / mpmath.sqrt(q11)
            first = (1 + (l1 - q12 * t) * zeroth) / q11
            return zeroth, first, (zeroth + (l1 - q12 * t) * first) / q11

        def log_integrand(t):
            return l2 * t - q22 * t * t / 2 + mpmath.log(inner(t)[0])

        low, high = mpmath.mpf(10) ** -6, mpmath.mpf(1000)  # the maximum of a log-concave function
        for _ in range(60):
            a, b = low + (high - low) * 0.382, low + (high - low) * 0.618
            low, high = (low, b) if log_integrand(a) > log_integrand(b) else (a, high)
        top, width = log_integrand(low), 1 / mpmath.sqrt(q22)
        steps = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 40)
        around = [low + sign * step * width for step in steps for sign in (-1, 1)]
        points = sorted({mpmath.mpf(0), low, *(point for point in around if point > 0)})

        def mean_of(weight):
            return mpmath.quad(lambda t: weight(t) * mpmath.exp(l2 * t - q22 * t * t / 2 - top), points)

        total = mean_of(lambda t: inner(t)[0])
        weights = (
            lambda t: inner(t)[1], lambda t: t * inner(t)[0], lambda t: inner(t)[2], lambda t: t * inner(t)[1],
            lambda t: t * t * inner(t)[0],
        )  # fmt: skip
        return float(mpmath.log(total) + top), [float(mean_of(weight) / total) for weight in weights]


@SOME
def test_the_integral_over_a_quadrant_and_its_moments(chosen):
    coefficients = [
        (a1 / s1, a2 / s2, 1 / s1**2, cosine / (s1 * s2), 1 / s2**2) for a1, a2, cosine, s1, s2 in QUADRANTS[chosen]
    ]
    with jax.enable_x64(True):
        whole = jax.jit(jax.vmap(jax.value_and_grad(log_quadrant_integral, argnums=range(5))))
        value, gradient = whole(*np.array(coefficients).T)
    factors = np.array([1.0, 1.0, -0.5, -1.0, -0.5])
    for n, case in enumerate(coefficients):
        log_integral, means = moments(*case)
        assert abs(value[n] - log_integral) < 1e-11 * max(1.0, abs(log_integral)), case
        slopes = [part[n] for part in gradient]
        # In units of the scales of t: far in the tails, derivatives are small differences of other integrals.
        units = np.sqrt([case[2], case[4]])
        units = np.array([*units, units[0] ** 2, units[0] * units[1], units[1] ** 2])
        error, size = np.abs(slopes - factors * means) * units, np.abs(factors * means) * units
        assert np.all(error <= np.array([1e-8, 1e-8, 1e-6, 1e-6, 1e-6]) * size + 1e-8), case
