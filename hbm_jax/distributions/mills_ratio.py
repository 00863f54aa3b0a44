"""Mills ratio of the normal distribution, and the mean of a probit over an exponential latent.

With phi and Phi the standard normal density and distribution function, M(y) = (1 - Phi(y)) / phi(y) and
D(y) = -M'(y) = 1 - y M(y). Both are positive and fall as 1/y and 1/y^2. They are evaluated as t P(t) and t^2 Q(t) with
t = 4 / (4 + y) and polynomials P and Q, so that nothing cancels and an infinite y is a regular point.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

_SCALE = 4.0
_LOG_NORM = 0.5 * math.log(2.0 * math.pi)
# Interpolation of M / t and D / t^2 at 120 Chebyshev nodes of 2 t - 1 with mpmath, as coefficients of its powers.
_P = (
    0.47330476582712133,
    0.38094272770499626,
    0.24260238871690443,
    0.11688524074954684,
    0.03784794057776185,
    0.004725112716371126,
    -0.002180573812050009,
    -0.0010219639316197489,
    8.356109123478413e-05,
    0.00014481740162684159,
    -1.1954586693590822e-06,
    -2.2024240150529743e-05,
    4.4781049053492345e-07,
    3.711623252605653e-06,
    -3.916325358693878e-07,
    -6.435668269541386e-07,
    1.6589726208738796e-07,
    1.0166359900617224e-07,
    -4.9370301981818625e-08,
    -1.2263433773102639e-08,
    1.006874161166981e-08,
    8.003884308843899e-10,
    -1.0582092821670057e-09,
)
_Q = (
    0.21356187338302918,
    0.3117725582109553,
    0.26961572209989787,
    0.1547331813269125,
    0.053216316615091006,
    0.0038168083657524427,
    -0.005604441008158491,
    -0.0018768057796581235,
    0.0005138512381079301,
    0.00035905543424150506,
    -6.385232584173829e-05,
    -6.473130270320917e-05,
    1.3512454116070194e-05,
    1.162435639252822e-05,
    -3.870711908999189e-06,
    -1.9166973003144874e-06,
    1.1228384376348538e-06,
    2.40365209084689e-07,
    -2.815483060023254e-07,
    -1.3333868982648479e-08,
    5.210607555489244e-08,
    -9.459330469575193e-10,
    -5.140540102266548e-09,
)


def mills_ratio(t):
    """Return M(y) / t and D(y) / t^2 at y = 4 (1 - t) / t for t between 0 and 1, with a relative error of 5e-15.

    M is the Mills ratio and D = -M'; see the top of this file.
    """
    x = 2.0 * t - 1.0
    ratio, slope = jnp.full_like(x, _P[-1]), jnp.full_like(x, _Q[-1])
    for p, q in zip(_P[-2::-1], _Q[-2::-1], strict=True):
        ratio, slope = ratio * x + p, slope * x + q
    return ratio, slope


@jax.custom_jvp
def log_mills_ratio(y):
    """Return log((1 - Phi(y)) / phi(y)) for any real y, to 1e-13 of the larger of 1 and its value."""
    return _log_mills_ratio(y)[0]


def log_mills_slope(y):
    """Return the derivative of `log_mills_ratio`, -D / M, for any real y, without cancellation for positive y."""
    return _log_mills_ratio(y)[1]


def _log_mills_ratio(y):
    """Return log M and its derivative, -D / M."""
    negative = y < 0.0
    size = jnp.where(negative, -y, y)  # with a derivative at zero
    t = _SCALE / (_SCALE + size)
    ratio, slope = mills_ratio(t)
    ratio, slope = t * ratio, t * t * slope
    # For y < 0, M(y) = (1 - Phi(-y)) / phi(y) = (1 - phi(y) M(-y)) / phi(y).
    log_inverse_density = _LOG_NORM + 0.5 * y * y
    probability = 1.0 - jnp.exp(-log_inverse_density) * ratio
    log_ratio = jnp.log(jnp.where(negative, probability, ratio)) + jnp.where(negative, log_inverse_density, 0.0)
    return log_ratio, jnp.where(negative, y - jnp.exp(-log_inverse_density) / probability, -slope / ratio)


@log_mills_ratio.defjvp
def _log_mills_ratio_jvp(primals, tangents):
    """Return the log of the ratio and its directional derivative."""
    value, derivative = _log_mills_ratio(*primals)
    return value, derivative * tangents[0]


@jax.custom_jvp
def log_mean_probit(x, shift):
    """Return the log of the mean of Phi(x - shift T) over T, exponential with mean 1.

    Parameters
    ----------
    x : array (...)
        Argument without the latent.
    shift : array (...)
        Mean change of the argument; positive, zero or negative.

    Notes
    -----
    With k = 1 / shift, the mean is Phi(x) - exp(-k x + k^2 / 2) Phi(x - k) for a positive shift and
    Phi(x) + exp(-k x + k^2 / 2) (1 - Phi(x - k)) for a negative one. In terms of the Mills ratio both are
    Phi(x) - sign(shift) phi(x) M(y) with y = (1 - shift x) / abs(shift), which is regular at a shift of zero. The
    error relative to the larger of 1 and the value is below 1e-12 for shifts between -100 and 100 and x down to -40,
    that of the derivatives below 1e-10 (``tests/distributions/test_mills_ratio.py``). For larger positive shifts the
    two terms cancel, and the error of the logarithm grows in proportion to the shift.
    """
    return _log_mean_probit(x, shift)[0]


def _log_mean_probit(x, shift):
    """Return `log_mean_probit` and its derivatives with respect to x and shift.

    The mean is Phi(x) - shift * term with term = phi(x) M(y) / abs(shift), which is also its derivative with respect to
    x. That with respect to shift is -phi(x) D(y) / shift^2.
    """
    x, shift = jnp.broadcast_arrays(x, shift)
    sign = jnp.where(shift < 0.0, -1.0, 1.0)
    margin = 1.0 - shift * x  # y abs(shift)
    lower_tail, negative = x < 0.0, margin < 0.0
    # Absolute values with the derivative of one side at zero, because derivatives are differentiated again.
    size, distance = jnp.where(shift < 0.0, -shift, shift), jnp.where(negative, -margin, margin)
    t_x, inverse = _SCALE / (_SCALE + jnp.where(lower_tail, -x, x)), 1.0 / (distance + _SCALE * size)
    mills_x, (mills, slope) = t_x * mills_ratio(t_x)[0], mills_ratio(_SCALE * size * inverse)
    mills, slope = _SCALE * inverse * mills, (_SCALE * inverse) ** 2 * slope  # M(abs(y)) / size, D / size^2
    # The terms below are divided by exp(log_scale): phi(x) in the lower tail, exp(-k x + k^2 / 2) where that is larger.
    log_density = -0.5 * x * x - _LOG_NORM
    k = 1.0 / jnp.where(negative, shift, 1.0)
    log_factor = jnp.where(negative, k * (0.5 * k - x), 0.0)
    log_scale = jnp.where(lower_tail, jnp.where(negative, log_factor, log_density), 0.0)
    density = jnp.exp(log_density - log_scale)
    probability = jnp.where(lower_tail, density * mills_x, 1.0 - density * mills_x)
    factor = jnp.exp(jnp.where(negative, log_factor - log_scale, 0.0)) * jnp.abs(k)
    term = jnp.where(negative, factor - density * mills, density * mills)  # of the exponential, divided by size
    mean = probability - shift * term
    y = margin * k * sign
    derivative = jnp.where(negative, k * k * density - y * k * sign * term, density * slope)
    return log_scale + jnp.log(mean), term / mean, -derivative / mean


_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# Largest differences of two shifts for which `log_mean_probit_of_two` is a quadrature, relative to the larger shift and
# to 1 / (1 + abs(x)).
_CLOSE = 0.25, 0.2


def log_mean_probit_of_two(x, first, second):
    """Return the log of the mean of Phi(x - first T - second T') over independent T, T', exponential with mean 1.

    Parameters
    ----------
    x : array (...)
        Argument without the latents.
    first, second : array (...)
        Mean changes of the argument; positive, zero or negative, and possibly equal.

    Notes
    -----
    With h(s) = s E[Phi(x - s T)] of `log_mean_probit`, the mean is (h(first) - h(second)) / (first - second), because
    the Laplace transform of the sum is a difference of two partial fractions. Its limit for equal shifts is h', the
    mean over a gamma distribution of shape 2. Where shifts are close, it is the mean of h' between them, by a Gauss
    quadrature. The error relative to the larger of 1 and the value, and that of the derivatives, is below 1e-10 for
    shifts between -10 and 10 and x from -20 to 8 (``tests/distributions/test_mills_ratio.py``). It is the detected
    fraction of a population with exponential tails along two directions (`hbm_jax.distributions.Quadrant`).
    """
    x, first, second = jnp.broadcast_arrays(*(jnp.asarray(a, jnp.result_type(float)) for a in (x, first, second)))
    difference = first - second
    relative, absolute = _CLOSE
    largest = jnp.maximum(jnp.abs(first), jnp.abs(second))
    close = jnp.abs(difference) <= jnp.maximum(relative * largest, absolute / (1.0 + jnp.abs(x)))
    logs = log_mean_probit(x, first), log_mean_probit(x, second)
    top = jax.lax.stop_gradient(jnp.maximum(*logs))
    numerator = first * jnp.exp(logs[0] - top) - second * jnp.exp(logs[1] - top)
    apart = top + jnp.log(jnp.where(close, 1.0, numerator / jnp.where(close, 1.0, difference)))
    between = second[..., None] + jnp.where(close, difference, 0.0)[..., None] * (0.5 + 0.5 * _POINTS)
    x = x[..., None]
    # h' = E[Phi] + s dE[Phi] / ds
    log_slope = log_mean_probit(x, between) + jnp.log1p(between * _log_mean_probit(x, between)[2])
    return jnp.where(close, logsumexp(log_slope, axis=-1, b=0.5 * _WEIGHTS), apart)


@log_mean_probit.defjvp
def _log_mean_probit_jvp(primals, tangents):
    """Return the log of the mean and its directional derivative."""
    value, along_x, along_shift = _log_mean_probit(*primals)
    return value, along_x * tangents[0] + along_shift * tangents[1]
