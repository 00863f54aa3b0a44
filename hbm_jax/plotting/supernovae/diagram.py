"""Parts shared by Hubble diagrams: moduli of posterior draws, binned means, posterior band and redshift axis."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hbm_jax.models import expansion
from hbm_jax.plotting.style import BAND_68, BAND_95, BLACK

NUM_GRID = 120  # redshifts at which the band is evaluated
CHUNK = 50  # cosmologies evaluated in parallel
BANDS = (0.025, 0.16, 0.5, 0.84, 0.975)
MIN_PER_BIN = 5  # objects; the mean of fewer is not shown
MARKERS = ("o", "s", "^", "D", "v", "P")


def moduli_of_draws(model: Any, data: Any, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the model's ``distmod`` of every object of ``data``, (draw, N) [mag], for draws of the cosmology.

    Parameters
    ----------
    model : Supernova or HubbleDiagram
        Model with a ``cosmology`` and a method ``distmod``.
    data : container
        N objects.
    values : mapping of str to array (draw,)
        Draws of H0 and the parameters of the expansion history.
    """
    with jax.enable_x64(True):

        @jax.jit
        def moduli(draws):
            def modulus(draw):
                return model.distmod(data, expansion.cosmology_from(model.cosmology, draw))

            return jax.lax.map(modulus, draws, batch_size=CHUNK)

        return np.asarray(moduli(values))


def means_in_bins(
    x: np.ndarray, residual: np.ndarray, error: np.ndarray, index: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inverse-variance weighted means of x and of the residual, and the error of the latter, in each bin.

    ``index`` is the bin of each object. Bins of fewer than `MIN_PER_BIN` objects are omitted.
    """
    rows = []
    for in_bin in (index == i for i in range(num_bins)):
        if in_bin.sum() >= MIN_PER_BIN:
            weight = 1.0 / error[in_bin] ** 2
            total = weight.sum()
            rows.append((np.sum(weight * x[in_bin]) / total, np.sum(weight * residual[in_bin]) / total, total**-0.5))
    centres, means, errors = np.array(rows).T if rows else np.zeros((3, 0))
    return centres, means, errors


def draw_band(axes, z: np.ndarray, bands: np.ndarray, zorders: Sequence[float]) -> None:
    """Draw the 95 % and 68 % bands and the median, given by the quantiles `BANDS`, (5, z)."""
    wide, narrow, line = zorders
    axes.fill_between(z, bands[0], bands[4], color=BAND_95, lw=0, label="95 %", zorder=wide)
    axes.fill_between(z, bands[1], bands[3], color=BAND_68, lw=0, label="68 %", zorder=narrow)
    axes.plot(z, bands[2], color=BLACK, lw=1.0, zorder=line, label="posterior median")


def label_redshifts(axes) -> None:
    """Label a logarithmic redshift axis as 0.01, 0.02, 0.05, 0.1 and so on."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())
