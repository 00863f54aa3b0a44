"""Contributions to the published errors of supernova magnitudes: lensing, peculiar velocities, coherent scatter."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hbm_jax.constants import speed_of_light_km_s


def lensing_variance(z: Any, coefficient: float = 0.055) -> Any:
    """Return the magnitude variance from gravitational lensing, (`coefficient` z)^2 [mag^2].

    Parameters
    ----------
    z
        Redshift, any shape.
    coefficient
        Lensing scatter per unit redshift [mag]; 0.055 is from Jonsson et al. 2010, MNRAS 405, 535, as used by JLA.

    Examples
    --------
    >>> round(float(lensing_variance(1.0)), 6)
    0.003025
    """
    return (coefficient * z) ** 2


def velocity_variance(z_cmb: Any, sigma_v_km_s: float = 150.0) -> Any:
    """Return the magnitude variance from peculiar velocities, (5 sigma_v / (ln10 c z))^2 [mag^2].

    Parameters
    ----------
    z_cmb
        Redshift in the CMB frame, positive, any shape; 0 gives infinity.
    sigma_v_km_s
        Scatter of the line-of-sight velocity [km/s]; 150 is the value of JLA (Betoule et al. 2014, A&A 568, A22).

    Examples
    --------
    >>> round(float(velocity_variance(0.01)) ** 0.5, 4)
    0.1086
    """
    return (5.0 * sigma_v_km_s / (math.log(10.0) * speed_of_light_km_s * z_cmb)) ** 2


@dataclass(frozen=True)
class MagnitudeErrorParts:
    """Terms of a published magnitude error that are added in quadrature to the error of the light-curve fit.

    Attributes
    ----------
    coherent_scatter
        Intrinsic scatter [mag]: a number, or a mapping from survey to number.
    lensing_per_z
        Lensing scatter per unit redshift [mag], see `lensing_variance`.
    sigma_v_km_s
        Scatter of the peculiar velocities [km/s], see `velocity_variance`.
    """

    coherent_scatter: float | Mapping[str, float] = 0.0
    lensing_per_z: float = 0.0
    sigma_v_km_s: float = 0.0
