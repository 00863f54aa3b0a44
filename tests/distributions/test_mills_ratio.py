"""Mills ratio and the mean of a probit over an exponential latent, against mpmath."""

import jax
import mpmath
import numpy as np
import pytest
from mpmath import mpf
from scipy import integrate, special

from hbm_jax.distributions.mills_ratio import log_mean_probit, log_mean_probit_of_two, log_mills_ratio

Y = np.array([-60.0, -7.0, -1.0, -1e-9, 0.0, 0.3, 4.0, 19.9, 20.1, 300.0, 1e7])
# Of either sign and zero; x where the formula changes (0, 1 / shift), in the body and far in the tails.
CASES = [
    (x, shift)
    for shift in (-100.0, -1.0, -0.1, -1e-3, -1e-8, 0.0, 1e-8, 1e-3, 0.1, 1.0, 3.0, 100.0)
    for x in (-40.0, -5.0, 0.0, 0.7, 6.0, *((1.0 / shift, 1.5 / shift) if abs(shift) > 0.02 else ()))
]


def mills(y):
    """M(y) = sqrt(pi / 2) exp(y^2 / 2) erfc(y / sqrt(2))."""
    return mpmath.sqrt(mpmath.pi / 2) * mpmath.exp(y * y / 2) * mpmath.erfc(y / mpmath.sqrt(2))


def mean_probit(x, shift):
    """The closed form as it is printed, in so many digits that its terms may cancel."""
    if not shift:
        return mpmath.ncdf(x)
    k = 1 / shift
    tail = mpmath.ncdf(x - k) if shift > 0 else -mpmath.ncdf(k - x)
    return mpmath.ncdf(x) - mpmath.exp(-k * x + k * k / 2) * tail


def test_log_mills_ratio():
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_mills_ratio)))(Y)
    with mpmath.workdps(60):
        ratio = [mills(mpf(y)) for y in Y]
        expected = np.array([float(mpmath.log(r)) for r in ratio])
        slopes = [float((y * r - 1) / r) for y, r in zip(map(mpf, Y), ratio, strict=True)]
    assert np.max(np.abs(value - expected) / np.maximum(1.0, np.abs(expected))) < 1e-13
    np.testing.assert_allclose(slope, slopes, rtol=1e-12)


def test_mean_of_a_probit_over_an_exponential():
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(log_mean_probit, argnums=(0, 1))))(*np.array(CASES).T)
    for n, (x, shift) in enumerate(CASES):
        with mpmath.workdps(150):
            a, h, step = mpf(x), mpf(shift), mpf(10) ** -30
            expected = float(mpmath.log(mean_probit(a, h)))
            slopes = [
                (mpmath.log(mean_probit(a + da, h + dh)) - mpmath.log(mean_probit(a - da, h - dh))) / (2 * step)
                for da, dh in ((step, 0), (0, step))
            ]
        assert abs(value[n] - expected) < 1e-12 * max(1.0, abs(expected)), (x, shift)
        for found, exact in zip((gradient[0][n], gradient[1][n]), slopes, strict=True):
            assert found == pytest.approx(float(exact), rel=1e-10, abs=1e-14), (x, shift)


# Equal, nearly equal, close and apart, of either sign and zero.
PAIRS = [
    (-10.0, -9.0), (-10.0, 10.0), (-1.0, -1.0), (-1.0, 1e-6), (-0.3, -0.1), (-1e-7, 1e-7), (0.0, 0.0), (0.0, 0.5),
    (0.0, 1e-9), (0.1, 0.1), (0.1, 0.100001), (0.1, 0.2), (0.5, -0.5), (1.0, 1.0), (1.0, 1.2), (1.0, 1.26), (1.0, 1.4),
    (2.0, 0.05), (10.0, 9.0), (10.0, 10.0), (10.0, 1e-3), (10.0, 6.0),
]  # fmt: skip
ARGUMENTS = (-20.0, -0.5, 1.0, 8.0)


def mean_probit_of_two(x, first, second):
    """The difference of two closed forms as it is printed, and its limit by a difference in so many digits."""
    if first == second:
        second = first + mpf(10) ** -60
    return (first * mean_probit(x, first) - second * mean_probit(x, second)) / (first - second)


@pytest.fixture(scope="module")
def of_two():
    cases = [(x, *pair) for pair in PAIRS for x in ARGUMENTS]
    whole = jax.jit(jax.vmap(jax.value_and_grad(log_mean_probit_of_two, argnums=(0, 1, 2))))
    return cases, *map(np.asarray, (lambda value, gradient: (value, np.array(gradient)))(*whole(*np.array(cases).T)))


def test_mean_of_a_probit_over_two_exponentials(of_two):
    cases, value, gradient = of_two
    steps = [tuple(mpf(10) ** -20 if k == j else mpf(0) for j in range(3)) for k in range(3)]
    with mpmath.workdps(170):
        for n, case in enumerate(cases):
            point = [mpf(part) for part in case]
            exact = mpmath.log(mean_probit_of_two(*point))
            assert abs(value[n] - float(exact)) < 1e-10 * max(1.0, abs(float(exact))), case
            for k, step in enumerate(steps):
                above, below = (
                    mpmath.log(mean_probit_of_two(*(a + sign * b for a, b in zip(point, step, strict=True))))
                    for sign in (1, -1)
                )
                slope = float((above - below) / (2 * steps[k][k]))
                assert gradient[k, n] == pytest.approx(slope, rel=1e-10, abs=1e-13), (case, k)


def test_it_is_the_double_integral():
    x, first, second = 0.4, 0.8, -1.3
    t = np.linspace(0.0, 45.0, 4001)
    inner = np.exp(jax.jit(log_mean_probit)(x - first * t, second))
    expected = integrate.simpson(np.exp(-t) * inner, x=t)
    for pair in ((first, second), (second, first)):
        assert float(np.exp(jax.jit(log_mean_probit_of_two)(x, *pair))) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("x", "shift"), [(0.4, 0.8), (-3.0, 1.7), (1.2, -0.6), (4.0, 2.0)])
def test_it_is_the_integral(x, shift):
    expected, _ = integrate.quad(lambda t: np.exp(-t) * special.ndtr(x - shift * t), 0, 60, epsabs=1e-14, limit=200)
    assert float(np.exp(log_mean_probit(np.asarray(x), np.asarray(shift)))) == pytest.approx(expected, rel=1e-11)
