"""Kernels of the statistics of counts: the background known, profiled or integrated out.

They broadcast, and return for each channel the deviance D, twice the distance from a model that passes through every
datum, which is what XSPEC prints as C, W and PG-statistic. The normalised log likelihood is that of the datum itself
less D / 2; the first part is data, so a gradient evaluates no gamma function: see `hbm_jax.spectra.Statistic`.

S counts are observed where the source alone is expected to give mu, and the background b.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def cash(counts: ArrayLike, expected: ArrayLike) -> jax.Array:
    """Deviance of Poisson counts, Cash's C.

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more; need not be whole.
    expected : (...)
        Expected counts, source and known background together.

    Returns
    -------
    (...)
        2 (mu - S + S ln(S / mu)); 2 mu where S = 0; inf where nothing is expected and something observed; NaN where
        less than nothing is expected.

    References
    ----------
    Cash 1979, ApJ 228, 939; XSPEC manual, appendix B.

    Examples
    --------
    >>> float(cash(0, 2.5))
    5.0
    """
    expected = floating(expected)
    counts = jnp.asarray(counts, expected.dtype)
    some = counts > 0
    # Where there are no counts mu may be zero, and its logarithm must not reach the gradient.
    quotient = jnp.where(some, expected, 1.0) / jnp.where(some, counts, 1.0)
    value = 2.0 * (expected - counts - jnp.where(some, counts * jnp.log(quotient), 0.0))
    return jnp.where(expected >= 0, value, jnp.nan)


def profiled_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, ratio: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Deviance of source and background region at the best background of each channel: XSPEC's W.

    Parameters
    ----------
    counts, background : (...)
        Counts of the source region S and of the background region B, 0 or more.
    expected : (...)
        Expected counts of the source alone in the source region, 0 or more; NaN where less.
    ratio : (...)
        Expected counts of the background region for each one that the background gives in the source region: the ratio
        of exposure x BACKSCAL x AREASCAL of the two. Positive.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + C(B | ratio b) at its minimum in b, and that b.

    Notes
    -----
    b is the positive root of a quadratic, written so that no digits cancel. It is B / (1 + ratio) where S = 0; where
    B = 0, S / (1 + ratio) - mu, or 0 if the source explains that much. Where B = 0 the best background is too low, and
    a source fitted with W too bright: group to some background counts, or integrate over it (`marginal_background`).

    References
    ----------
    Wachter, Leach & Kellogg 1979, ApJ 230, 274; XSPEC manual, appendix B, "Poisson data with Poisson background".

    Examples
    --------
    >>> deviance, best = profiled_background(0, 2.0, 3, 0.5)
    >>> round(float(best), 3)
    2.0
    """
    expected = floating(expected)
    counts, background, ratio = (jnp.asarray(x, expected.dtype) for x in (counts, background, ratio))
    whole = 1.0 + ratio
    q = counts + background - whole * expected
    under = q * q + 4.0 * whole * background * expected
    # Zero only where another branch is taken.
    root = jnp.sqrt(jnp.where(under > 0, under, 1.0))
    negative = q < 0
    conjugate = 2.0 * background * expected / jnp.where(negative, root - q, 1.0)
    general = jnp.where(negative, conjugate, (q + root) / (2.0 * whole))
    nothing_behind = jnp.maximum(counts / whole - expected, 0.0)
    best = jnp.where(counts > 0, jnp.where(background > 0, general, nothing_behind), background / whole)
    value = cash(counts, expected + best) + cash(background, ratio * best)
    return jnp.where(expected >= 0, value, jnp.nan), best


def gaussian_background(
    counts: ArrayLike, expected: ArrayLike, background: ArrayLike, error: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Deviance of Poisson counts on a background with a Gaussian error, at its best value: XSPEC's PG-statistic.

    Parameters
    ----------
    counts : (...)
        Observed counts S, 0 or more.
    expected : (...)
        Expected counts of the source alone, 0 or more; NaN where less.
    background, error : (...)
        Background expected in the source region, and its standard deviation, 0 or more; 0 holds it there.

    Returns
    -------
    deviance, best : (...)
        C(S | mu + b) + (background - b)^2 / error^2 at its minimum in b, and that b.

    Notes
    -----
    b may be negative, as the Gaussian allows, as long as mu + b is not: where S = 0, it is background - error^2, or -mu
    where that is larger. There XSPEC goes on below zero. Where the error is 0 and mu + background negative: NaN.

    References
    ----------
    XSPEC manual, appendix B, "Poisson data with Gaussian background".

    Examples
    --------
    >>> deviance, best = gaussian_background(4, 2.0, 2.0, 1.0)
    >>> float(best)
    2.0
    """
    expected = floating(expected)
    counts, background, error = (jnp.asarray(x, expected.dtype) for x in (counts, background, error))
    variance = error * error
    # t = mu + b solves t^2 - p t - variance S = 0.
    p = expected + background - variance
    under = p * p + 4.0 * variance * counts
    root = jnp.where(under > 0, jnp.sqrt(jnp.where(under > 0, under, 1.0)), 0.0)
    negative = p < 0
    conjugate = 2.0 * variance * counts / jnp.where(negative, root - p, 1.0)
    total = jnp.where(error > 0, jnp.where(negative, conjugate, 0.5 * (p + root)), expected + background)
    best = total - expected
    pull = jnp.where(error > 0, (background - best) / jnp.where(error > 0, error, 1.0), 0.0)
    return jnp.where(expected >= 0, cash(counts, total) + pull * pull, jnp.nan), best


def floating(values: ArrayLike) -> jax.Array:
    """Return numbers as an array of floating point."""
    values = jnp.asarray(values)
    return (
        values.astype(jnp.result_type(float, values.dtype))
        if not jnp.issubdtype(values.dtype, jnp.floating)
        else values
    )
