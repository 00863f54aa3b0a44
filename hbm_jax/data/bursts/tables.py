"""Readers of burst tables, and the bundled Konus-Wind bursts of known redshift."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hbm_jax.data.building import build_from_table, named_errors
from hbm_jax.data.bursts.bursts import FLUX_UNITS, Bursts, columns_of
from hbm_jax.data.bursts.luminosities import observed_columns, quantity_of, rest_columns
from hbm_jax.data.populations import log10_areas
from hbm_jax.data.tables import read_bundled, read_table
from hbm_jax.names import listed
from hbm_jax.validation import DataError, float_vector

KONUS_COSMOLOGY: dict[str, Any] = {"H0": 67.3, "Om0": 0.315}  # of Tsvetkova et al. 2017
KONUS_RELATIONS = ("amati", "yonetoku")
KONUS_SPECTRA = ("E_peak", "E_peak_err_lo", "E_peak_err_hi", "alpha", "beta")
ALIASES = {"burst": "name", "z": "redshift", "sigma_z": "redshift_error"}


def read_bursts(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    quantity: str | None = None,
    H0: float = 70.0,
    Om0: float = 0.3,
) -> Bursts:
    """Read bursts from a table of fluxes or fluences of intervals, or of isotropic luminosities or energies.

    Raises errors as `hbm_jax.data.read_table` and `Bursts.from_columns`; also DataError for a value in the rest frame
    without a redshift, for E_iso beside L_iso or flux without `quantity`, and for H0 or Om0 out of range.

    Parameters
    ----------
    source, columns, format, missing, leave_out
        As for all readers of tables, see the notes of `hbm_jax.data.read_table`. The name of a row is its ``burst``;
        ``name`` and ``redshift`` are recognised too.
    quantity
        ``"flux"`` [erg/cm^2/s] or ``"fluence"`` [erg/cm^2]; by default the quantity that `Bursts.to_table` stored in
        the metadata of the table, fluence for tables of E_iso, otherwise flux.
    H0, Om0
        Flat cosmology of tables with values in the rest frame: ``L_iso`` [erg/s] or ``E_iso`` [erg] in place of flux or
        fluence, and ``E_peak_rest`` [keV] in place of ``E_peak``; or their logarithms, as in ``log10_E_iso``. Errors
        are named like those of `Bursts.from_columns`, as in ``E_iso_err_lo``. The values are converted to bolometric
        fluxes or fluences and observed peak energies. A model may therefore have another cosmology, and its selections
        apply to observed quantities.

    Examples
    --------
    >>> table = dict(burst=["a", "b"], z=[1.0, 2.0], Ep=[300.0, 150.0], E_peak_err_lo=[20, 15], E_peak_err_hi=[25, 15])
    >>> table |= dict(flux=[1e-6, 3e-7], flux_err_lo=[1e-7, 2e-8], flux_err_hi=[1e-7, 2e-8])
    >>> len(read_bursts(table, columns={"E_peak": "Ep"}))
    2
    >>> table = dict(burst=["a"], z=[1.0], log10_E_peak_rest=[2.8], sigma_log10_E_peak_rest=[0.1])
    >>> table |= dict(E_iso=[1e53], E_iso_err_lo=[1e52], E_iso_err_hi=[2e52])
    >>> read_bursts(table).quantity
    'fluence'
    """
    if not (np.isfinite(H0) and H0 > 0.0 and 0.0 <= Om0 <= 1.0):
        raise DataError(f"read_bursts: expected H0 > 0 and Om0 from 0 to 1; found H0={H0} and Om0={Om0}.")
    table = read_table(source, format=format, missing=missing)
    stored = str(table.meta.get("quantity"))
    with named_errors(table.origin):
        kind = quantity or (stored if stored in FLUX_UNITS else quantity_of([*table.columns, *(columns or {})]))
        declared = columns_of(kind) | rest_columns(kind)

    def make(values: Mapping[str, Any], column_names: Mapping[str, str]) -> Bursts:
        values, column_names = observed_columns(values, kind, H0, Om0, column_names)
        return Bursts.from_columns(values, quantity=kind, column_names=column_names)

    options: dict[str, Any] = {"required": ("burst", "z"), "name": "burst", "aliases": ALIASES, "quantities": ("z",)}
    return build_from_table(table, make, declared, columns=columns, leave_out=leave_out, **options)


def load_konus(relation: str = "amati") -> Bursts:
    """Load the Konus-Wind bursts of known redshift, bundled with the package.

    Tsvetkova, A. et al. 2017, ApJ 850, 161: long bursts (class II) of the triggered mode, 1997 to 2016. Errors of peak
    energies are symmetrised in the logarithm, see `Bursts.from_columns`. The peak flux is measured in 64 ms of the rest
    frame, its peak energy in a longer interval. Raises ValueError for an unknown relation.

    Parameters
    ----------
    relation : str
        ``"amati"``: fluence, and peak energy of the time-integrated spectrum, of 137 bursts. ``"yonetoku"``: peak flux,
        and peak energy of the spectrum around the peak, of the 108 bursts for which it was published.

    Returns
    -------
    Bursts
        One interval per burst. Fluences and fluxes are the published E_iso and L_iso converted back with the paper's
        redshifts and cosmology, so that a fit can use any cosmology. Their observed band, 1 / (1 + z) keV to 10 MeV, is
        treated as bolometric.

    Examples
    --------
    >>> len(load_konus()), len(load_konus("yonetoku"))
    (137, 108)
    """
    if relation not in KONUS_RELATIONS:
        raise ValueError(f"relation: expected one of {listed(KONUS_RELATIONS)}; found {relation!r}.")
    energies, spectra = (read_bundled(f"konus_wind_{name}") for name in ("bursts", "spectra"))
    row = {name: i for i, name in enumerate(energies.values("grb"))}
    interval = spectra.values("interval") == ("i" if relation == "amati" else "p")
    burst_row = np.array([row[name] for name in spectra.values("grb")])
    used = interval & (energies.values("class")[burst_row] == "II")
    burst_row = burst_row[used]
    key = "e_iso" if relation == "amati" else "l_iso"
    z, value, error = (float_vector(energies.values(name)[burst_row], name) for name in ("z", key, f"sigma_{key}"))
    stretch = np.log10(1.0 + z) if relation == "amati" else 0.0
    log10_flux = 51.0 + np.log10(value) - log10_areas(z, **KONUS_COSMOLOGY) + stretch
    columns = {"burst": energies.values("grb")[burst_row], "z": z, "log10_flux": log10_flux}
    columns |= {key: spectra.values(key.lower())[used] for key in KONUS_SPECTRA}
    columns["sigma_log10_flux"] = error / (value * np.log(10.0))
    return Bursts.from_columns(columns, quantity="fluence" if relation == "amati" else "flux")
