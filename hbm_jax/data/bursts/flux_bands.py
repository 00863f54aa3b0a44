"""K-corrections of measured fluxes with known energy bands and spectral shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from hbm_jax.spectra.model.components import Band, CutoffPowerLaw
from hbm_jax.spectra.model.energetics import k_correction

UNUSED_BETA = -2.5  # of cut-off power laws; below every alpha, so that the unused Band function is finite


@register_dataclass
@dataclass(frozen=True, eq=False)
class FluxBands:
    """Measured spectral shapes and energy bands of fluxes, for k-corrections; a pytree.

    Attributes
    ----------
    values : dict of str to (B, J)
        Parameters of `Band` and of `CutoffPowerLaw`.
    observed : (B, J, 2)
        Energy bands of the fluxes [keV].
    has_band, is_band_function : (B, J)
        Masks of the fluxes with a band and a spectral shape, and of those whose shape is a Band function.
    """

    values: Mapping[str, Any]
    observed: Any
    has_band: Any
    is_band_function: Any

    @classmethod
    def of(cls, bursts: Any) -> "FluxBands | None":
        """Return the flux bands of `Bursts`; None if all fluxes are bolometric."""
        has_band = bursts.has_band
        if not has_band.any():
            return None
        is_band_function = has_band & np.isfinite(bursts.beta)
        alpha = np.where(has_band, bursts.alpha, -1.0)
        values = {
            "e_peak": 10.0 ** np.where(has_band, bursts.log10_E_peak, 2.0),
            "alpha": alpha,
            "photon_index": -alpha,
            "beta": np.where(is_band_function, bursts.beta, UNUSED_BETA),
            "log10_amplitude": np.zeros(has_band.shape),
        }
        return cls(values, np.where(has_band[..., None], bursts.flux_band, [10.0, 1000.0]), has_band, is_band_function)

    def log10_k(self, z: Any, rest: tuple[float, float]):
        """Return the k-corrections (B, J); see `Bursts.log10_k`."""
        observed = self.observed[..., 0], self.observed[..., 1]
        band_k, cutoff_k = (
            jnp.log10(k_correction(shape, self.values, jnp.asarray(z)[:, None], rest=rest, observed=observed))
            for shape in (Band(norm="amplitude"), CutoffPowerLaw(norm="amplitude", peak=True))
        )
        return jnp.where(self.has_band, jnp.where(self.is_band_function, band_k, cutoff_k), 0.0)
