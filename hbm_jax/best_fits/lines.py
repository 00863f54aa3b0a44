"""Emission lines of a fit: photon fluxes and equivalent widths with intervals or upper limits."""

import copy
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import chi2

from hbm_jax.best_fits.components import names_of_spectra, spectra_of_draws
from hbm_jax.best_fits.fluxes import REACH, standard_deviations
from hbm_jax.blas import one_blas_thread
from hbm_jax.inference import Fit
from hbm_jax.inference.likelihood.derived import ProfileEnd, quantity_interval
from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.likelihood.grid import NUM_STARTS
from hbm_jax.inference.likelihood.profile import _Profile
from hbm_jax.inference.likelihood.search import Point, newton
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.spectra.folding.area_errors import without_instrument
from hbm_jax.spectra.model.energetics import equivalent_width, equivalent_width_function, gaussian_lines

NO_LINE = 8.0  # decades below the bound of its prior at which a line has no effect
COLUMNS = ("value", "lower", "upper", "lower_open", "upper_open")
_LN10 = math.log(10.0)
_LINE_BAND = (1e-3, 1e4)  # keV


def line_table(best: Any, level: float | None = None, *, progress: Progress = False) -> pd.DataFrame:
    """Return photon fluxes and equivalent widths of the Gaussian emission lines of a best fit.

    Parameters
    ----------
    best : hbm_jax.best_fits.BestFit
        The best fit.
    level : float, optional
        Confidence level of the intervals; by default that of the best fit.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.

    Returns
    -------
    pandas.DataFrame
        One row per line, spectrum and quantity: ``photon flux``, without absorption [photons/cm^2/s], and ``equivalent
        width`` [keV] in the frame of the observer; ``value, lower, upper`` with their ``unit``. With ``lower_open`` the
        data do not require the line: ``lower`` is 0, and ``upper`` is the upper limit, at which the statistic has risen
        by 2.706 for a level of 0.9.

    Notes
    -----
    The ends are those of the profile likelihood of the quantity itself: the likelihood is written in the equivalent
    width in place of the normalisation of the line, and maximised over everything else. Bounds of the prior of the
    normalisation do not apply. Where the normalisation is fixed or tied, or the continuum depends on it, the likelihood
    is maximised with a penalty on the equivalent width (`hbm_jax.inference.likelihood.derived`), within all bounds.
    """
    level = best.likelihood.level if level is None else level
    if not 0 < level < 1:
        raise ValueError(f"line_table: level: expected a number between 0 and 1; found {level}.")
    rise = 0.5 * float(chi2.ppf(level, 1))
    names = names_of_spectra(best.model, best.data)
    rows = []
    with jax.enable_x64(True), one_blas_thread(), ProgressLine(progress) as progress_line:
        likelihood = Likelihood(best.model, (best.bound,), 0, NUM_STARTS)
        center = best.likelihood.table["value"].to_numpy(float)
        for name in gaussian_lines(best.model.spectrum):
            for index, spectrum in enumerate(names):
                for quantity, unit, function in _quantities(best, likelihood, name, center, index):
                    progress_line.show(f"{quantity} of {name}")
                    row = _interval(best, likelihood, center, function, _normalisation(best, name, index), rise)
                    rows.append({"line": name, "spectrum": spectrum, "quantity": quantity, **row, "unit": unit})
    return pd.DataFrame(rows, columns=["line", "spectrum", "quantity", *COLUMNS, "unit"])


def posterior_lines(fit: Fit, level: float = 0.683) -> pd.DataFrame:
    """Return photon fluxes and equivalent widths of the Gaussian emission lines of a sampled spectral fit.

    Parameters
    ----------
    fit : Fit
        Result of `hbm_jax.sample` with a `SpectralFit`.
    level : float
        Probability in the intervals.

    Returns
    -------
    pandas.DataFrame
        One row per ``line``, ``spectrum`` and ``quantity``, as in `line_table`. ``value`` is the posterior median;
        ``lower`` and ``upper`` are the ends of the central interval; the quantity is below ``limit`` with the
        probability ``level``.

    Raises
    ------
    TypeError
        If the fit is not one of a `SpectralFit` with its program.
    ValueError
        If the level is not between 0 and 1.
    """
    model, names, draws = spectra_of_draws(fit, "posterior_lines")
    if not 0 < level < 1:
        raise ValueError(f"posterior_lines: level: expected a number between 0 and 1; found {level}.")
    probabilities, rows = (0.5, 0.5 * (1 - level), 0.5 * (1 + level), level), []
    for name, line in gaussian_lines(model.spectrum).items():
        emitted = without_instrument(line.component if line.factor is None else line.factor * line.component).unabsorbed
        for spectrum, values in zip(names, draws, strict=True):
            flux, widths = emitted.integral(values, *_LINE_BAND), equivalent_width(model.spectrum, values, name)
            for quantity, unit, draw in (("photon flux", "photons/cm^2/s", flux), ("equivalent width", "keV", widths)):
                rows.append((name, spectrum, quantity, *np.quantile(np.asarray(draw), probabilities), unit))
    return pd.DataFrame(rows, columns=["line", "spectrum", "quantity", "value", "lower", "upper", "limit", "unit"])


def _quantities(best: Any, likelihood: Likelihood, name: str, center: np.ndarray, index: int):
    """Return (name, unit, function) of each quantity of a line; the function gives its log10 at flat parameters."""
    component, factor = gaussian_lines(best.model.spectrum)[name]
    # Constant factors, such as that of cflux, scale the photons; absorbers and instruments do not.
    emitted = without_instrument(component if factor is None else factor * component).unabsorbed

    def values_at(x):
        values = best.model.complete(likelihood.unravel(x))
        used = best.model.spectrum.parameters
        return {
            k: jnp.ravel(v)[index] if jnp.ndim(v) else jnp.asarray(v, float) for k, v in values.items() if k in used
        }

    at_best = values_at(jnp.asarray(center))
    energy, sigma = (float(at_best[component._prefixed(key)]) for key in ("energy", "sigma"))
    # Wide enough for all values of the profile's search; beyond, the ratio to the continuum is that at the end.
    half_width = 20.0 * sigma + 0.2 * energy
    one_plus_z = 1.0 + component.z
    low, high = max(0.02 * energy, energy - half_width) / one_plus_z, (energy + half_width) / one_plus_z
    width = equivalent_width_function(best.model.spectrum, name, low, high)
    return (
        ("photon flux", "photons/cm^2/s", lambda x: jnp.log10(emitted.integral(values_at(x), *_LINE_BAND))),
        ("equivalent width", "keV", lambda x: jnp.log10(width(values_at(x)))),
    )


def _normalisation(best: Any, name: str, index: int) -> str:
    """Return the label of the normalisation of a line among the free parameters."""
    component = gaussian_lines(best.model.spectrum)[name].component
    parameter = component._prefixed("log10_amplitude" if component.norm == "amplitude" else "log10_flux")
    return f"{parameter}[{index}]" if parameter in best.model.own else parameter


def _interval(best, likelihood: Likelihood, center: np.ndarray, function: Callable, parameter: str, rise: float):
    """Return a row of the table of quantities: value and interval; ``function`` gives log10 of the quantity."""
    compiled = jax.jit(jax.value_and_grad(function))

    def quantity(x: np.ndarray) -> tuple[float, np.ndarray]:
        derived, slope = compiled(x)
        return float(derived), np.asarray(slope, float)

    value, gradient = quantity(center)
    index = likelihood.labels.index(parameter) if parameter in likelihood.labels else None
    covariance = best.likelihood.covariance.to_numpy(float)
    curvature = jax.jit(jax.hessian(function))
    if index is not None and np.isfinite(value) and abs(gradient[index] - 1.0) < 1e-6:
        lower, upper = _ends_for_amplitude(likelihood, center, quantity, curvature, index, covariance, rise)
    elif np.isfinite(value) and np.isfinite(gradient).all():
        # The amplitude is fixed or tied, or the continuum depends on it.
        std = float(standard_deviations(gradient[None, None], covariance)[0, 0])
        lower, upper = quantity_interval(likelihood, center, quantity, curvature, std=std, rise=rise, reach=REACH)
    else:
        lower = upper = ProfileEnd(math.nan, False)
    row = {"value": 10.0**value, "lower": 0.0 if lower.is_open else 10.0**lower.value}
    row |= {"upper": math.inf if upper.is_open else 10.0**upper.value}
    return row | {"lower_open": lower.is_open, "upper_open": upper.is_open}


def _ends_for_amplitude(
    likelihood, center, quantity, curvature, index, covariance, rise
) -> tuple[ProfileEnd, ProfileEnd]:
    """Return the ends of the interval of a quantity that is proportional to the amplitude, without bounds of that."""
    rewritten = Rewritten(likelihood, quantity, curvature, index)
    y = rewritten.to_new(center)
    new_covariance = rewritten.covariance(covariance, quantity(center)[1])
    point = Point(y, rewritten.value_and_grad(y)[0], True)
    # Each is (end, is open, converged), or a point better than the best fit.
    searches = [_Profile(rewritten, point, index, -1.0, new_covariance, rise).end()]
    at_bound = center[index] <= likelihood.lower[index]
    if at_bound or (not isinstance(searches[0], Point) and searches[0][1]):
        # The likelihood may rise towards no line, by less than the search notices: limits refer to the larger one.
        without = np.where(np.arange(len(y)) == index, y - NO_LINE, y)
        point = Point(y, min(point.value, newton(rewritten, without, index).value), True)
    searches.append(_Profile(rewritten, point, index, 1.0, new_covariance, rise).end())
    # At the lower bound of its prior the line is not required, though the likelihood may still rise below.
    lower, upper = (
        ProfileEnd(math.nan, at_bound and end is searches[0])
        if isinstance(end, Point)
        else ProfileEnd(end[0] if end[2] else math.nan, bool(end[1]))
        for end in searches
    )
    return lower, upper


class Rewritten(Likelihood):
    """Likelihood with the logarithm of a derived quantity in place of the parameter to which it is proportional.

    With parameters x, the logarithm is g(x) = x[index] + h(x), where h does not depend on x[index]. The new parameters
    y are x with y[index] = g(x), without bounds. Gradient and Hessian follow from those in x by the chain rule.

    Parameters
    ----------
    likelihood : Likelihood
        The likelihood in x.
    quantity, curvature : callable
        g and its gradient, and the Hessian of g, at x.
    index : int
        Index of the parameter.
    """

    def __init__(self, likelihood: Likelihood, quantity: Callable, curvature: Callable, index: int):
        self.__dict__.update(copy.copy(likelihood.__dict__))
        self.index, self.likelihood = index, likelihood
        self.lower, self.upper = likelihood.lower.copy(), likelihood.upper.copy()
        self.lower[index], self.upper[index] = -np.inf, np.inf
        self._quantity, self._curvature = quantity, curvature

    def to_new(self, x: np.ndarray) -> np.ndarray:
        """Return the new parameters of old ones."""
        y = x.copy()
        y[self.index] = float(self._quantity(x)[0])
        return y

    def _to_old(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the old parameters, and the gradient of h."""
        x = y.copy()
        x[self.index] = 0.0
        h, slope = (np.asarray(part, float) for part in self._quantity(x))
        x[self.index] = y[self.index] - h
        slope = slope.copy()
        slope[self.index] = 0.0
        return x, slope

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the log likelihood and its gradient in the new parameters."""
        old, slope = self._to_old(x)
        value, gradient = self.likelihood.value_and_grad(old)
        return value, gradient - gradient[self.index] * slope

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Return the Hessian of minus the log likelihood in the new parameters."""
        old, slope = self._to_old(x)
        jacobian = np.eye(self.size)
        jacobian[self.index] -= slope
        gradient, curvature = self.likelihood.value_and_grad(old)[1], np.array(self._curvature(old))
        curvature[self.index], curvature[:, self.index] = 0.0, 0.0
        return jacobian.T @ self.likelihood.hessian(old) @ jacobian - gradient[self.index] * curvature

    def covariance(self, covariance: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return the covariance of the new parameters, given that of the old ones and the gradient of the quantity."""
        jacobian = np.eye(self.size)
        jacobian[self.index] = gradient
        return jacobian @ covariance @ jacobian.T
