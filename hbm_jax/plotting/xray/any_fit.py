"""Figures of spectra for posteriors and for best fits."""

from collections.abc import Iterable
from typing import Any

from hbm_jax.best_fits.fit import BestFit
from hbm_jax.plotting import count_spectra
from hbm_jax.plotting.count_spectra import MAX_NUM
from hbm_jax.plotting.folded_draws import ExpectedCounts, rows_of
from hbm_jax.plotting.style import Figure
from hbm_jax.plotting.xray.best_fit import best_fit_spectra, best_fit_unfolded


def spectra(
    fit: Any, names: Iterable[str] | None = None, max_num: int = MAX_NUM, *, expected: ExpectedCounts | None = None
) -> Figure:
    """Plot counts, folded model and residuals of spectra, of a posterior or of a best fit.

    Parameters
    ----------
    fit : Fit or BestFit
        Fit of spectra by `hbm_jax.sample` or `hbm_jax.best_fit`.
    names, max_num, expected
        As in `hbm_jax.plotting.count_spectra.spectra`; not used for a best fit, whose first 12 spectra are shown.

    Returns
    -------
    matplotlib.figure.Figure
        That of `hbm_jax.plotting.count_spectra.spectra`, or of `hbm_jax.plotting.xray.best_fit.best_fit_spectra`.

    Raises
    ------
    ValueError
        If the fit is not one of spectra, or for an unknown source.
    """
    if isinstance(fit, BestFit):
        return best_fit_spectra(fit)
    return count_spectra.spectra(fit, names, max_num, expected=expected)


def unfolded_spectrum(
    fit: Any, name: str | None = None, num_draws: int = 100, *, expected: ExpectedCounts | None = None
) -> Figure:
    """Plot the unfolded spectrum of one source, of a posterior or of a best fit.

    Parameters
    ----------
    fit : Fit or BestFit
        Fit of spectra by `hbm_jax.sample` or `hbm_jax.best_fit`.
    name : str, optional
        Name of the source or spectrum; by default the one with the most counts.
    num_draws, expected
        As in `hbm_jax.plotting.count_spectra.unfolded_spectrum`; not used for a best fit.

    Returns
    -------
    matplotlib.figure.Figure
        That of `hbm_jax.plotting.count_spectra.unfolded_spectrum`, or of
        `hbm_jax.plotting.xray.best_fit.best_fit_unfolded`.

    Raises
    ------
    ValueError
        If the fit is not one of spectra, or for an unknown source.
    """
    if isinstance(fit, BestFit):
        return best_fit_unfolded(fit, rows_of(fit.data, name, 1, "unfolded_spectrum")[0])
    return count_spectra.unfolded_spectrum(fit, name, num_draws, expected=expected)
