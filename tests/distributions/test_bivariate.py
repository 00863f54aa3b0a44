"""The bivariate normal distribution function against integrals of mpmath, and its derivatives."""

import jax
import mpmath
import numpy as np
import pytest

from hbm_jax.distributions.normal.bivariate import log_bivariate_ndtr

CASES = [
    (0.0, 0.0, 0.5), (1.0, 0.5, 0.0), (-1.0, 0.5, 0.3), (2.0, -1.0, -0.7), (4.0, 3.0, 0.99), (-3.0, -2.0, 0.95),
    (-2.0, 3.0, -0.95), (8.0, 1.0, 0.7), (0.1, 0.1, 0.999), (15.0, -2.0, 0.999), (3.0, 2.9, -0.99),
    (-8.0, -8.0, 0.7), (-5.0, 3.0, 0.3), (20.0, 20.0, -0.3),
]  # fmt: skip
EXTREME = [(0.0, 0.0, 0.9), (300.0, -300.0, 0.5), (-300.0, -300.0, -0.99), (1e3, 1e3, 0.9), (-5.0, 5.0, -0.9999)]


def expected(h, k, rho, precision=20):
    """The log probability, by an integral over the first variable."""
    with mpmath.workdps(precision):
        h, k, rho = map(mpmath.mpf, (h, k, rho))
        s = mpmath.sqrt(1 - rho**2)
        step = k / rho if rho else mpmath.mpf(0)
        width = 10 * s / abs(rho) if rho else mpmath.mpf(1)
        breaks = [step - width, step, step + width, h - 0.2, h - 1, h - 3, h - 8, -1, 0, 1]
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


def test_the_distribution_function_is_the_integral_of_the_density(found):
    np.testing.assert_allclose(found[0][: len(CASES)], [expected(*case) for case in CASES], rtol=1e-9, atol=1e-8)


def test_derivatives_are_those_of_the_value(found):
    gradient, differences = (part[:, : len(CASES)] for part in found[1:])
    near_one = np.abs(np.array(CASES)[:, 2]) > 0.98  # where a difference quotient in rho is inaccurate
    np.testing.assert_allclose(gradient[:2], differences[:2], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[2][~near_one], differences[2][~near_one], rtol=2e-5, atol=1e-6)


def test_far_tails_and_touching_edges_are_finite(found):
    assert all(np.isfinite(part[..., len(CASES) :]).all() for part in found[:2])
    assert found[0][len(CASES) + 3] == pytest.approx(0.0, abs=1e-9)
