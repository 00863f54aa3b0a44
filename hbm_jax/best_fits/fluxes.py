"""Fluxes and luminosities of a fit of spectra and of its components, with intervals."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import chi2

from hbm_jax.best_fits.components import names_of_spectra, spectra_of_draws, terms_of
from hbm_jax.blas import one_blas_thread
from hbm_jax.cosmology import Cosmology
from hbm_jax.inference import Fit
from hbm_jax.inference.likelihood.derived import ProfileEnd, quantity_interval
from hbm_jax.inference.likelihood.function import Likelihood
from hbm_jax.inference.likelihood.profile import MaximumLikelihood
from hbm_jax.inference.sampler.progress import Progress, ProgressLine
from hbm_jax.models import SpectralFit
from hbm_jax.precomputation import precomputed
from hbm_jax.spectra.model.composition import Component
from hbm_jax.spectra.model.energetics import energy_flux, in_chunks, log10_sphere_area
from hbm_jax.validation import energy_band
from hbm_jax.xla_options import QUICK

BANDS = ((0.5, 2.0), (2.0, 10.0))  # keV
FLUX, LUMINOSITY = "erg/cm^2/s", "erg/s"
REACH = (8.0, 40.0)  # decades below and above the best fit at which an interval is open
STEP = 1e-6  # finite differences of gradients
COLUMNS = ["component", "spectrum", "quantity", "low", "high", "value", "lower", "upper"]

Row = tuple[str, Component, str, tuple[float, float]]  # name, expression, quantity and band


def rows_of(model: SpectralFit, bands: Sequence[tuple[float, float]], with_luminosity: bool, name: str) -> list[Row]:
    """Return name, expression, quantity and band of each row of a table of fluxes.

    Raises ValueError, with the name of the calling function, for no band or one that is not positive and increasing.
    """
    bands = [energy_band(band, f"{name}: bands") for band in bands]
    if not bands:
        raise ValueError(f"{name}: bands: expected one band (low, high) [keV] or more; found none.")
    terms = terms_of(model.spectrum)
    expressions = {"total": model.spectrum} | (terms if len(terms) > 1 else {})
    quantities = ("flux", "unabsorbed flux", *(("luminosity",) if with_luminosity else ()))
    return [
        (label, term, quantity, (float(low), float(high)))
        for label, term in expressions.items()
        for low, high in bands
        for quantity in quantities
    ]


def distance_of(z: float | None, cosmology: Cosmology | None) -> tuple[float, float]:
    """Return log10 of 4 pi d_L^2 [cm^2] and 1 + z; 0 and 1 without a redshift."""
    if z is None:
        return 0.0, 1.0
    cosmology = cosmology or Cosmology.flat(H0=70.0, Om0=0.3)
    return precomputed(lambda: float(log10_sphere_area(z, cosmology))), 1.0 + z


def flux_table(
    model: SpectralFit,
    data: Any,
    bound: Any,
    best: MaximumLikelihood,
    rows: Sequence[Row],
    distance: tuple[float, float],
    *,
    num_starts: int,
    progress: Progress = False,
) -> pd.DataFrame:
    """Return the fluxes of a best fit with the intervals of their profile likelihood.

    Parameters
    ----------
    model, data, bound
        The model, the spectra, and the result of ``model.bound(data)``.
    best : MaximumLikelihood
        The maximum.
    rows, distance
        Results of `rows_of` and `distance_of`.
    num_starts : int
        Number of draws of the prior in the fit, for which programs are compiled.
    progress : bool or callable
        Whether to show the progress line, or a function that is called with its texts.
    """
    names = names_of_spectra(model, data)
    shapes = tuple((name, np.shape(value)) for name, value in best.parameters.items())
    rise = 0.5 * float(chi2.ppf(best.level, 1))
    table = []
    with jax.enable_x64(True), one_blas_thread(), ProgressLine(progress) as progress_line:
        likelihood = Likelihood(model, (bound,), 0, num_starts)
        center = np.concatenate([np.ravel(value) for value in best.parameters.values()]).astype(float)
        steps = STEP * np.maximum(1.0, np.abs(center)) * np.where(center >= likelihood.upper, -1.0, 1.0)
        compiled = functools.partial(_fluxes, model, tuple(rows), shapes, len(names), *distance)
        quantities = _Quantities(compiled, steps)
        values, gradients = quantities(center)
        std = standard_deviations(gradients, best.covariance.to_numpy(float))
        for row, (label, _, quantity, band) in enumerate(rows):
            for index, spectrum in enumerate(names):
                progress_line.show(f"{quantity} of {label}, {band[0]:g} to {band[1]:g} keV")
                ends = (ProfileEnd(np.nan, False),) * 2
                if np.isfinite(values[row, index]) and np.isfinite(gradients[row, index]).all():
                    ends = quantity_interval(
                        likelihood, center, *quantities.element(row, index),
                        std=std[row, index], rise=rise, reach=REACH,
                    )  # fmt: skip
                table.append((label, spectrum, quantity, *band, *_interval(values[row, index], *ends), _unit(quantity)))
    return pd.DataFrame(table, columns=[*COLUMNS, "lower_open", "upper_open", "unit"])


def _interval(log10_value: float, lower: ProfileEnd, upper: ProfileEnd) -> tuple[float, float, float, bool, bool]:
    """Return a value with its interval and its open ends, from the logarithms."""
    with np.errstate(over="ignore"):
        ends = [float(10.0 ** np.float64(end.value)) for end in (lower, upper)]
    if lower.is_open and lower.value < log10_value - REACH[0]:
        ends[0] = 0.0
    if upper.is_open and upper.value > log10_value + REACH[1]:
        ends[1] = math.inf
    return 10.0**log10_value, ends[0], ends[1], lower.is_open, upper.is_open


def printed_fluxes(table: pd.DataFrame) -> str:
    """Return a table of fluxes as text, with open ends of intervals in brackets."""
    values, *ends = ([f"{value:.4g}" for value in table[name]] for name in ("value", "lower", "upper"))
    lower = [f"({end}" if is_open else end for end, is_open in zip(ends[0], table["lower_open"], strict=True)]
    upper = [f"{end})" if is_open else end for end, is_open in zip(ends[1], table["upper_open"], strict=True)]
    shown = table.drop(columns=["lower_open", "upper_open"])
    return shown.assign(value=values, lower=lower, upper=upper).to_string(index=False)


def _unit(quantity: str) -> str:
    """Return the unit of a flux or of a luminosity."""
    return LUMINOSITY if quantity == "luminosity" else FLUX


def standard_deviations(gradients: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return standard deviations of log10 fluxes (row, spectrum), at most 1; 1 where the covariance has none."""
    undefined = np.isnan(np.diagonal(covariance))  # such as parameters at a bound
    covariance = np.where(undefined | undefined[:, None], 0.0, covariance)
    with np.errstate(invalid="ignore"):
        std = np.sqrt(np.einsum("rni,ij,rnj->rn", gradients, covariance, gradients))
    return np.where(std > 0, np.minimum(std, 1.0), 1.0)


class _Quantities:
    """All log10 fluxes (row, spectrum) and their gradients (row, spectrum, size), computed together.

    Parameters
    ----------
    function : callable
        (size,) -> gradients and values.
    steps : (size,)
        Steps of finite differences.
    """

    def __init__(self, function: Any, steps: np.ndarray):
        self.function, self.steps = function, steps
        self._last: tuple[bytes, Any] = (b"", None)

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values and gradients at parameters (size,); the last ones are kept."""
        if x.tobytes() != self._last[0]:
            gradients, values = (np.asarray(part) for part in self.function(x))
            self._last = x.tobytes(), (values, gradients)
        return self._last[1]

    def element(self, *element: int) -> tuple[Any, Any]:
        """Return one of the quantities with its gradient, and its Hessian, as functions of the parameters."""

        def quantity(x: np.ndarray) -> tuple[float, np.ndarray]:
            values, gradients = self(x)
            return float(values[element]), gradients[element]

        def curvature(x: np.ndarray) -> np.ndarray:
            at_x = self(x)[1][element]
            moved = [self.function(x + offset)[0][element] for offset in np.diag(self.steps)]
            columns = (np.stack(moved) - at_x) / self.steps[:, None]
            return 0.5 * (columns + columns.T)

        return quantity, curvature


@functools.partial(jax.jit, static_argnums=range(6), compiler_options=QUICK)  # once for all fits of one model
def _fluxes(model, rows, shapes, num_spectra, log10_area, one_plus_z, x):
    """Return the gradients (row, spectrum, size) of log10 fluxes or luminosities by parameters x (size,), and values.

    ``shapes`` are names and shapes of the parameters in x.
    """

    def logarithms(x):
        sizes = np.cumsum([0, *(math.prod(shape) for _, shape in shapes)])
        pairs = zip(shapes, sizes[:-1], sizes[1:], strict=True)
        values = model.complete({name: x[start:end].reshape(shape) for (name, shape), start, end in pairs})
        values = {name: value for name, value in values.items() if name in model.spectrum.parameters}
        log10_fluxes = [
            jnp.broadcast_to(_log10_flux(row, values, log10_area, one_plus_z), (num_spectra,)) for row in rows
        ]
        stacked = jnp.stack(log10_fluxes)
        return stacked, stacked

    return jax.jacfwd(logarithms, has_aux=True)(x)


def _log10_flux(row: Row, values: Any, log10_area: float, one_plus_z: float) -> jax.Array:
    """Return log10 of the flux [erg/cm^2/s] or luminosity [erg/s] of a row, for values that broadcast."""
    _, term, quantity, (low, high) = row
    scale, offset = (one_plus_z, log10_area) if quantity == "luminosity" else (1.0, 0.0)
    return jnp.log10(energy_flux(term, values, low / scale, high / scale, unabsorbed=quantity != "flux")) + offset


def posterior_fluxes(
    fit: Fit,
    bands: Sequence[tuple[float, float]] = BANDS,
    *,
    z: float | None = None,
    cosmology: Cosmology | None = None,
    level: float = 0.683,
) -> pd.DataFrame:
    """Return fluxes and luminosities of a sampled spectral fit and of its components.

    Parameters
    ----------
    fit : Fit
        Result of `hbm_jax.sample` with a `SpectralFit`.
    bands, z, cosmology
        As in `hbm_jax.best_fit`.
    level : float
        Probability in the intervals.

    Returns
    -------
    pandas.DataFrame
        The rows of ``BestFit.fluxes``, which describes them. ``value`` is the posterior median; ``lower`` and ``upper``
        are the ends of the central interval; the quantity is below ``limit`` with the probability ``level``.

    Raises
    ------
    TypeError
        If the fit is not one of a `SpectralFit` with its program.
    ValueError
        If the level is not between 0 and 1, and for no band or one that is not positive and increasing.

    Examples
    --------
    >>> posterior_fluxes(fit, [(0.5, 10.0)], z=0.1, level=0.9)  # doctest: +SKIP
    """
    model, names, draws = spectra_of_draws(fit, "posterior_fluxes")
    if not 0 < level < 1:
        raise ValueError(f"posterior_fluxes: level: expected a number between 0 and 1; found {level}.")
    rows = rows_of(model, bands, z is not None, "posterior_fluxes")
    distance = distance_of(z, cosmology)
    probabilities, table = (0.5, 0.5 * (1 - level), 0.5 * (1 + level), level), []
    for row in rows:
        label, _, quantity, band = row
        log10_flux = functools.partial(_log10_flux, row, log10_area=distance[0], one_plus_z=distance[1])
        for spectrum, values in zip(names, draws, strict=True):
            quantiles = np.quantile(10.0 ** np.asarray(in_chunks(log10_flux, values)), probabilities)
            table.append((label, spectrum, quantity, *band, *quantiles, _unit(quantity)))
    return pd.DataFrame(table, columns=[*COLUMNS, "limit", "unit"])
