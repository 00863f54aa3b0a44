"""Mills ratio and the mean of a probit over an exponential latent, against mpmath."""

import jax
import mpmath
import numpy as np
import pytest
from mpmath import mpf
from scipy import integrate, special

from hbm_jax.distributions.mills_ratio import log_mean_probit, log_mills_ratio

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


@pytest.mark.parametrize(("x", "shift"), [(0.4, 0.8), (-3.0, 1.7), (1.2, -0.6), (4.0, 2.0)])
def test_it_is_the_integral(x, shift):
    expected, _ = integrate.quad(lambda t: np.exp(-t) * special.ndtr(x - shift * t), 0, 60, epsabs=1e-14, limit=200)
    assert float(np.exp(log_mean_probit(np.asarray(x), np.asarray(shift)))) == pytest.approx(expected, rel=1e-11)
