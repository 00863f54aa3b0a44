"""Tables of isotropic luminosities or energies and rest-frame peak energies, converted to observed quantities."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hbm_jax.data.columns import POSITIVE_ERROR, Column, check_values
from hbm_jax.data.populations import log10_areas
from hbm_jax.validation import DataError, float_vector, text_tuple

OBSERVED = {"flux": "L_iso", "fluence": "E_iso"}  # quantity in the rest frame, by the observed one
UNITS = {"L_iso": "erg / s", "E_iso": "erg"}
PEAK = "E_peak_rest"


def rest_columns(quantity: str) -> dict[str, Column]:
    """Return the declarations of columns in the rest frame, for ``"flux"`` or ``"fluence"``."""
    name = OBSERVED[quantity]
    unit = UNITS[name]
    logarithm = Column(f"dex({unit})", f"a logarithm of {name} in {unit}", (35.0, 65.0), (44.0, 56.0))
    value = Column(unit, f"{name} in {unit}", (1e35, 1e65), (1e44, 1e56))
    peak = Column("keV", "a peak energy in keV", (0.1, 1e7), (1.0, 1e5))
    log_peak = Column("dex(keV)", "a logarithm of keV", (-1.0, 7.0), (0.0, 5.0))
    declared = {name: value, f"log10_{name}": logarithm, PEAK: peak, f"log10_{PEAK}": log_peak}
    for key, unit_of_error in ((name, unit), (PEAK, "keV")):
        declared |= {
            f"{key}_err_{side}": dataclasses.replace(POSITIVE_ERROR, unit=unit_of_error) for side in ("lo", "hi")
        }
        declared[f"sigma_log10_{key}"] = dataclasses.replace(POSITIVE_ERROR, unit="dex")
    return declared


def quantity_of(names: Iterable[str]) -> str:
    """Return ``"fluence"`` for columns with isotropic energies, otherwise ``"flux"``.

    Raises DataError for columns with isotropic energies beside luminosities or fluxes.
    """
    columns = set(names)
    energies, luminosities, fluxes = (sorted({name, f"log10_{name}"} & columns) for name in ("E_iso", "L_iso", "flux"))
    if energies and (others := luminosities + fluxes):
        raise DataError(
            f"expected columns of fluxes or of fluences; found {energies[0]} and {others[0]}. Choose by "
            f"quantity='flux', which uses {others[0]}, or quantity='fluence'."
        )
    return "fluence" if energies else "flux"


def observed_columns(
    columns: Mapping[str, Any], quantity: str, H0: float, Om0: float, column_names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return columns with observed values in place of those in the rest frame, and their names in messages.

    Raises DataError for a value that is missing or out of range, a luminosity of a burst without redshift, and a
    quantity both in the rest frame and observed.

    Parameters
    ----------
    columns : mapping of str to array
        Columns of `Bursts.from_columns`, with ``L_iso`` [erg/s] in place of the flux, or ``E_iso`` [erg] in place of
        the fluence, and ``E_peak_rest`` [keV] in place of ``E_peak``, or their logarithms; errors have the same form.
    quantity : str
        ``"flux"`` or ``"fluence"``.
    H0, Om0 : float
        Flat cosmology with which the luminosities or energies of the table were computed.
    column_names : mapping of str to str
        Names of the columns in messages.
    """
    declared, name = rest_columns(quantity), OBSERVED[quantity]
    rest_frame = [key for key in columns if key in declared]
    if not rest_frame:
        return dict(columns), dict(column_names)
    burst = text_tuple(columns["burst"], column_names.get("burst", "burst"), "row {row}")
    rows = {key: float_vector(columns[key], column_names.get(key, key), burst) for key in rest_frame}
    check_values(rows, declared, column_names, burst)
    z = float_vector(columns["z"], column_names.get("z", "z"), burst, allow_missing=True)
    if np.isnan(z).any():
        raise DataError(
            f"{column_names.get(rest_frame[0], rest_frame[0])}: expected the redshift of every burst, without which a "
            f"value in the rest frame gives no observed one; found none of {burst[int(np.isnan(z).argmax())]}."
        )
    if not (z > 0.0).all():
        raise DataError(
            f"{column_names.get('z', 'z')}: expected redshifts above 0 in a table of the rest frame; found {z.min():g}."
        )
    factor = -log10_areas(z, H0, Om0) + (np.log10(1.0 + z) if quantity == "fluence" else 0.0)
    result, names = {key: value for key, value in columns.items() if key not in declared}, dict(column_names)
    for rest, observed, log10_factor in ((name, quantity, factor), (PEAK, "E_peak", -np.log10(1.0 + z))):
        standard = "flux" if observed == "fluence" else observed
        for key in rest_frame:
            if rest not in key:
                continue
            observed_key = key.replace(rest, standard)
            if observed_key in columns:
                raise DataError(f"{column_names.get(key, key)}: expected it or {observed_key}; found both. Rename one.")
            is_error = key.startswith("sigma_log10")
            shifted = rows[key] + log10_factor if key.startswith("log10") else rows[key] * 10.0**log10_factor
            result[observed_key] = rows[key] if is_error else shifted
            names[observed_key] = names.pop(key, key)
    return result, names
