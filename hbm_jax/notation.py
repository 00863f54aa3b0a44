"""Numbers with the digits of their errors, and units, in plain text and in the notation of matplotlib and LaTeX."""

import math
from typing import NamedTuple

import numpy as np

UNIT_SYMBOLS = {
    "km/s/Mpc": r"km s$^{-1}$ Mpc$^{-1}$",
    "erg/cm^2/s": r"erg cm$^{-2}$ s$^{-1}$",
    "photons/cm^2/s/keV": r"photons cm$^{-2}$ s$^{-1}$ keV$^{-1}$",
    "erg cm/s": r"erg cm s$^{-1}$",
    "1e22/cm^2": r"$10^{22}$ cm$^{-2}$",
    "1/cm^3": r"cm$^{-3}$",
}


def rounded(median: float, lower: float, upper: float) -> tuple[str, str, str]:
    """Format a median and its interval to two significant digits of the smaller half-width.

    Half-widths below 1e-3 of the interval, of a median close to a bound, are treated as 1e-3 of it. If the largest
    absolute value is at least 1e6 or below 1e-4, all three have an exponent and at least four significant digits.
    """
    width = min(median - lower, upper - median)
    width = max(width, 1e-3 * (upper - lower)) if width > 0 else width
    largest = max(abs(lower), abs(median), abs(upper))
    digit = int(np.floor(np.log10(width))) - 1 if width > 0 else None  # decimal exponent of the last digit
    if np.isfinite(largest) and largest > 0 and not 1e-4 <= largest < 1e6:
        size = int(np.floor(np.log10(largest)))
        decimals = 3 if digit is None else int(np.clip(size - digit, 3, 12))
        return tuple(f"{value:.{decimals}e}" for value in (median, lower, upper))  # type: ignore[return-value]
    decimals = 3 if digit is None else int(np.clip(-digit, 0, 12))
    return f"{median:.{decimals}f}", f"{lower:.{decimals}f}", f"{upper:.{decimals}f}"


class Quoted(NamedTuple):
    """Median and its distances to the ends of an interval, as text with the same number of decimals."""

    median: str
    plus: str
    minus: str
    exponent: int = 0


def quote(median: float, lower: float, upper: float) -> Quoted:
    """Round a median and its interval to two significant digits of the smaller error.

    Parameters
    ----------
    median, lower, upper : float
        Median and ends of the interval.

    Returns
    -------
    Quoted
        Numbers in units of 10 to the power ``exponent``, which is zero unless the numbers would be very long. Without
        an error, six significant digits of the median; values that are not finite are written ``nan`` or ``inf``.

    Examples
    --------
    >>> quote(0.346654, 0.2631, 0.405852)
    Quoted(median='0.347', plus='0.059', minus='0.084', exponent=0)
    """
    plus, minus = upper - median, median - lower
    errors = [e for e in (plus, minus) if e > 0 and math.isfinite(e)]
    if not errors or not math.isfinite(median):
        return Quoted(f"{median:.6g}", f"{plus:.2g}", f"{minus:.2g}")
    largest = max(abs(median), *errors)
    magnitude = math.floor(math.log10(largest))
    # Where the median is next to a bound, one error is tiny: it counts as a thousandth of the other.
    decimals = 1 - math.floor(math.log10(max(min(errors), 1e-3 * max(errors))))
    exponent = magnitude if magnitude >= 6 or decimals > 7 else 0
    decimals = max(decimals + exponent, 0)
    centre, above, below = (f"{value / 10.0**exponent:.{decimals}f}" for value in (median, plus, minus))
    return Quoted(centre, above, below, exponent)


def column_format(values: np.ndarray, errors: np.ndarray) -> str:
    """Return the format of a column of numbers: significant digits for two digits of every error, at least three."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.abs(np.asarray(values)) / np.asarray(errors)
    sizes = sizes[sizes < 1e12]  # without constants, and NaN
    return f".{int(np.clip(2 + np.ceil(np.log10(max([1.0, *sizes]))), 3, 17))}g"


def quoted_math(quoted: Quoted) -> str:
    """Return a quoted number in matplotlib's mathematical notation."""
    numbers = f"{quoted.median}^{{+{quoted.plus}}}_{{-{quoted.minus}}}"
    return f"${numbers}$" if not quoted.exponent else rf"$({numbers}) \times 10^{{{quoted.exponent}}}$"


def escaped(text: str) -> str:
    """Escape the special characters of LaTeX."""
    replacements = {character: "\\" + character for character in "&%$#_{}"}
    replacements |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(replacements.get(symbol, symbol) for symbol in text)
