"""Deviance of Poisson counts with a known or a profiled background.

The functions broadcast. They return the deviance D of each channel, twice the log likelihood ratio of the saturated
model to the model, which XSPEC prints as C, W and PG-statistic. The normalised log likelihood is that of the saturated
model minus D / 2. The saturated model depends only on the data, so gradients need no gamma function; see
`hbm_jax.spectra.Statistic`.

S counts are observed in the source region, where mu counts are expected from the source and b from the background.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike


def cash(counts: ArrayLike, expected: ArrayLike) -> jax.Array:
    """Return the deviance of Poisson counts, Cash's C.

    It is 2 (mu - S + S ln(S / mu)), and 2 mu where S = 0; inf where mu = 0 and S > 0; NaN where mu < 0. (Cash 1979, ApJ
    228, 939; XSPEC manual, appendix B.)

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more; not necessarily integers.
    expected : (...)
        Expected counts mu of source and known background together.

    Examples
    --------
    >>> float(cash(0, 2.5))
    5.0
    """
    expected = floating(expected)
    counts = jnp.asarray(counts, expected.dtype)
    observed = counts > 0
    # mu may be 0 where there are no counts, and its logarithm must not enter the gradient.
    quotient = jnp.where(observed, expected, 1.0) / jnp.where(observed, counts, 1.0)
    value = 2.0 * (expected - counts - jnp.where(observed, counts * jnp.log(quotient), 0.0))
    return jnp.where(expected >= 0, value, jnp.nan)


def profiled_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, ratio: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Return the deviance of source and background region for the most likely background of each channel, XSPEC's W.

    The most likely background b in the source region is the positive root of a quadratic equation, written without
    cancellation of digits. With the symbols below, it is B / (1 + ratio) where S = 0, and max(S / (1 + ratio) - mu, 0)
    where B = 0. Where B = 0 this background is biased low, so the fitted source is too bright: group channels until all
    groups have background counts, or use `marginal_background`. (Wachter, Leach & Kellogg 1979, ApJ 230, 274; XSPEC
    manual, appendix B, "Poisson data with Poisson background".)

    Parameters
    ----------
    counts, background : (...)
        Counts S of the source region and B of the background region, 0 or more.
    expected : (...)
        Expected counts mu of the source in the source region, without background, 0 or more; negative values give NaN.
    ratio : (...)
        Ratio of the expected background counts in the background region to those in the source region: exposure x
        BACKSCAL x AREASCAL of the background region, divided by that of the source region. Positive.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + C(B | ratio b) at its minimum in b, and b at the minimum.

    Examples
    --------
    >>> deviance, best = profiled_background(0, 2.0, 3, 0.5)
    >>> round(float(best), 3)
    2.0
    """
    expected = floating(expected)
    counts, background, ratio = (jnp.asarray(x, expected.dtype) for x in (counts, background, ratio))
    total = 1.0 + ratio
    q = counts + background - total * expected
    discriminant = q * q + 4.0 * total * background * expected
    # The discriminant is 0 only where another branch is taken.
    root = jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1.0))
    negative = q < 0
    conjugate = 2.0 * background * expected / jnp.where(negative, root - q, 1.0)
    general = jnp.where(negative, conjugate, (q + root) / (2.0 * total))
    without_background = jnp.maximum(counts / total - expected, 0.0)
    best = jnp.where(counts > 0, jnp.where(background > 0, general, without_background), background / total)
    value = cash(counts, expected + best) + cash(background, ratio * best)
    return jnp.where(expected >= 0, value, jnp.nan), best


def gaussian_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, error: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Return the deviance of Poisson counts for the most likely Gaussian background, XSPEC's PG-statistic.

    b may be negative, but mu + b may not: where S = 0, b = max(background - error^2, -mu), whereas in XSPEC mu + b may
    become negative. The deviance is NaN where error = 0 and mu + background < 0. (XSPEC manual, appendix B, "Poisson
    data with Gaussian background".)

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more.
    expected : (...)
        Expected counts mu of the source without background, 0 or more; negative values give NaN.
    background, error : (...)
        Background in the source region and its standard deviation, 0 or more; 0 fixes the background.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + (background - b)^2 / error^2 at its minimum in b, and b at the minimum.

    Examples
    --------
    >>> deviance, best = gaussian_background(4, 2.0, 2.0, 1.0)
    >>> float(best)
    2.0
    """
    expected = floating(expected)
    counts, background, error = (jnp.asarray(x, expected.dtype) for x in (counts, background, error))
    total = _total_counts(counts, expected, background, error)
    return _gaussian_background_deviance(counts, expected, background, error), total - expected


def _total_counts(counts, expected, background, error):
    """Return t = mu + b for the most likely Gaussian background, which solves t^2 - p t - error^2 S = 0."""
    variance = error * error
    p = expected + background - variance
    discriminant = p * p + 4.0 * variance * counts
    root = jnp.where(discriminant > 0, jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1.0)), 0.0)
    negative = p < 0
    conjugate = 2.0 * variance * counts / jnp.where(negative, root - p, 1.0)
    return jnp.where(error > 0, jnp.where(negative, conjugate, 0.5 * (p + root)), expected + background)


@jax.custom_jvp
def _gaussian_background_deviance(counts, expected, background, error):
    """Return the deviance for the most likely Gaussian background."""
    total = _total_counts(counts, expected, background, error)
    pull = _pull(expected, background, error, total)
    return jnp.where(expected >= 0, cash(counts, total) + pull * pull, jnp.nan)


def _pull(expected, background, error, total):
    """Return the deviation of the most likely background from the measured one, in its errors; 0 without errors."""
    return jnp.where(error > 0, (background - (total - expected)) / jnp.where(error > 0, error, 1.0), 0.0)


def _gaussian_background_jvp(primals, tangents):
    """Return the deviance and its change at fixed b, because the deviance is at its minimum in b.

    Differentiated operation by operation, an evaluation of bursts with its gradient takes about 8 per cent longer.
    """
    counts, expected, background, error = primals
    total = _total_counts(*primals)
    has_error, observed = error > 0, counts > 0
    scaled_pull = _pull(expected, background, error, total) / jnp.where(has_error, error, 1.0)
    # At the minimum both are equal, but b is at its lower limit where t = 0.
    interior = 1.0 - counts / jnp.where(observed, total, 1.0)
    slope = 2.0 * jnp.where((total > 0) | ~has_error, interior, scaled_pull)
    quotient = jnp.where(observed, total, 1.0) / jnp.where(observed, counts, 1.0)
    slopes = (
        lambda: jnp.where(observed, -2.0 * jnp.log(quotient), -2.0),
        lambda: slope,
        lambda: slope,
        lambda: -0.5 * error * slope * slope,
    )
    change = jnp.zeros_like(total)
    for derivative, tangent in zip(slopes, tangents, strict=True):
        if not isinstance(tangent, SymbolicZero):
            change = change + derivative() * tangent
    return _gaussian_background_deviance(*primals), jnp.where(expected >= 0, change, 0.0)


_gaussian_background_deviance.defjvp(_gaussian_background_jvp, symbolic_zeros=True)


def floating(values: ArrayLike) -> jax.Array:
    """Return values as an array of floating-point type."""
    values = jnp.asarray(values)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(float)
