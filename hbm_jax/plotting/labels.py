"""Symbols and units of parameters for figures, and values rounded to the digits of their errors."""

import math
from collections import ChainMap
from typing import NamedTuple

from hbm_jax.models.registration import SYMBOLS

_LABELS = {
    # expansion history
    "H0": r"$H_0$",
    "Om0": r"$\Omega_\mathrm{m}$",
    "Ode0": r"$\Omega_\mathrm{DE}$",
    "Ok0": r"$\Omega_k$",
    "w0": r"$w_0$",
    "wa": r"$w_a$",
    "omega_b": r"$\omega_\mathrm{b}$",
    "r_d": r"$r_\mathrm{d}$",
    **{f"w_{index}": f"$w_{index}$" for index in range(1, 10)},
    "z": r"$z$",
    "mu": r"$\mu$",
    # supernovae
    "M0": r"$M_0$",
    "alpha": r"$\alpha$",
    "beta": r"$\beta$",
    "sigma_int": r"$\sigma_\mathrm{int}$",
    "x1": r"$x_1$",
    "x1_mean": r"$\langle x_1 \rangle$",
    "x1_std": r"$\sigma_{x_1}$",
    "x1_true": r"true $x_1$",
    "c": r"$c$",
    "c_mean": r"$\langle c \rangle$",
    "c_std": r"$\sigma_c$",
    "c_true": r"true $c$",
    "log10_mass": r"$\log_{10}\,M_\mathrm{host}$",
    "mw_ebv": r"$E(B-V)_\mathrm{MW}$",
    "probability_low_mass": "probability of a low-mass host",
    "m_b": r"$m_B$",
    "m_b_true": r"true $m_B$",
    # X-ray spectra
    "nh": r"$N_\mathrm{H}$",
    "nh_mw": r"$N_\mathrm{H,MW}$",
    "photon_index": r"$\Gamma$",
    "photon_index_mean": r"$\langle \Gamma \rangle$",
    "photon_index_std": r"$\sigma_\Gamma$",
    "log10_flux": r"$\log_{10}\,F$",
    "log10_flux_mean": r"$\langle \log_{10}\,F \rangle$",
    "log10_flux_std": r"$\sigma_{\log F}$",
    "host_nh": r"$N_\mathrm{H,host}$",
    "mw_nh": r"$N_\mathrm{H,MW}$",
    "log10_nh": r"$\log_{10}\,N_\mathrm{H}$",
    "log10_nh_mean": r"$\langle \log_{10}\,N_\mathrm{H} \rangle$",
    "log10_nh_std": r"$\sigma_{\log N_\mathrm{H}}$",
    "log10_nh_shape": r"$\alpha_{\log N_\mathrm{H}}$",
    "log10_n0": r"$\log_{10}\,n_0$",
    "log10_n0_mean": r"$\langle \log_{10}\,n_0 \rangle$",
    "log10_n0_std": r"$\sigma_{\log n_0}$",
    "metallicity": r"$Z$",
    "log10_T": r"$\log_{10}\,T$",
    "log10_xi": r"$\log_{10}\,\xi$",
    # gamma-ray bursts
    "gamma_mean": r"$\langle \gamma \rangle$",
    "gamma_std": r"$\sigma_\gamma$",
    "log10_N": r"$\log_{10}\,N$",
    "log10_N_mean": r"$\langle \log_{10}\,N \rangle$",
    "log10_N_std": r"$\sigma_{\log N}$",
    "log10_E_peak": r"$\log_{10}\,E_\mathrm{peak}$",
    "log10_E_peak_mean": r"$\langle \log_{10}\,E_\mathrm{peak} \rangle$",
    "log10_E_peak_std": r"$\sigma_{\log E}$",
    "log10_E_peak_scatter": r"$\sigma_{\log E,\,\mathrm{in}}$",
    "log10_luminosity": r"$\log_{10}\,L$",
    "intrinsic_scatter": r"$\sigma_\mathrm{int}$",
    "correlation": r"$\rho$",
    # common names in users' models
    "gamma": r"$\gamma$",
    "delta": r"$\delta$",
    "theta": r"$\theta$",
    "mu0": r"$\mu_0$",
    "rho": r"$\rho$",
    "sigma": r"$\sigma$",
    "tau": r"$\tau$",
}
# Symbol of each parameter, in matplotlib's mathematical notation, also of laws and cosmologies registered later.
LABELS = ChainMap(_LABELS, SYMBOLS)

UNIT_SYMBOLS = {
    "km/s/Mpc": r"km s$^{-1}$ Mpc$^{-1}$",
    "erg/cm^2/s": r"erg cm$^{-2}$ s$^{-1}$",
    "photons/cm^2/s/keV": r"photons cm$^{-2}$ s$^{-1}$ keV$^{-1}$",
    "erg cm/s": r"erg cm s$^{-1}$",
    "1e22/cm^2": r"$10^{22}$ cm$^{-2}$",
    "1/cm^3": r"cm$^{-3}$",
}


def label(name: str, unit: str = "") -> str:
    """Return the symbol and unit of a parameter.

    Parameters
    ----------
    name : str
        Name of a parameter, or of an element such as ``"theta[3]"``.
    unit : str
        Unit of the parameter; empty if it has none.

    Returns
    -------
    str
        Text for matplotlib. A name without a symbol in `LABELS` is returned unchanged.

    Examples
    --------
    >>> label("M0", "mag")
    '$M_0$ [mag]'
    >>> label("my_slope")
    'my_slope'
    """
    base, bracket, element = name.partition("[")
    symbol = LABELS.get(base, base.replace("$", r"\$"))
    text = symbol + (bracket + element).replace("$", r"\$")
    return f"{text} [{UNIT_SYMBOLS.get(unit, unit)}]" if unit else text


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
    decimals = 1 - math.floor(math.log10(max(min(errors), 1e-3 * max(errors))))  # of a median next to a bound
    exponent = magnitude if magnitude >= 6 or decimals > 7 else 0
    decimals = max(decimals + exponent, 0)
    centre, above, below = (f"{value / 10.0**exponent:.{decimals}f}" for value in (median, plus, minus))
    return Quoted(centre, above, below, exponent)


def quoted_math(quoted: Quoted) -> str:
    """Return a quoted number in matplotlib's mathematical notation."""
    numbers = f"{quoted.median}^{{+{quoted.plus}}}_{{-{quoted.minus}}}"
    return f"${numbers}$" if not quoted.exponent else rf"$({numbers}) \times 10^{{{quoted.exponent}}}$"
