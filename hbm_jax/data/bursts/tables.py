"""Bursts from a user's table, and the bundled Konus-Wind bursts of known redshift."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

import jax
import numpy as np

from hbm_jax.cosmology import Cosmology
from hbm_jax.data.bursts.bursts import FLUX_UNITS, Bursts, columns_of
from hbm_jax.data.columns import unused_errors
from hbm_jax.data.tables import TableColumns, make_from_rows, read_table
from hbm_jax.names import listed
from hbm_jax.spectra.model.energetics import log10_sphere
from hbm_jax.validation import DataError, float_vector, tell

__all__ = ["KONUS_COSMOLOGY", "KONUS_RELATIONS", "load_konus", "read_bursts"]

KONUS_COSMOLOGY: dict[str, Any] = {"H0": 67.3, "Om0": 0.315}  # of Tsvetkova et al. 2017
KONUS_RELATIONS = ("amati", "yonetoku")
ALIASES = {"burst": "name", "z": "redshift", "sigma_z": "redshift_error"}


def read_bursts(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    missing: float | list[float] = (),  # type: ignore[assignment]
    leave_out: str | list[str] = (),  # type: ignore[assignment]
    quantity: str | None = None,
) -> Bursts:
    """Read bursts from a table of one row an interval.

    Parameters
    ----------
    source
        Path of a CSV, ECSV or FITS file, or a table in memory; see `hbm_jax.data.read_table`. Columns with units are
        converted.
    columns
        Which column of the table is which, standard name to the table's: ``{"E_peak": "Ep"}``. Columns that have the
        standard names of `Bursts.from_columns` already (or ``name``, ``redshift``) are found by themselves; others are
        ignored.
    format
        File format, where the suffix does not tell.
    missing
        Numbers that mean that there is no value: ``missing=(-9, -999)``.
    leave_out
        What to leave out: names of bursts, ``"row 3"`` and so on counted from 0; ``"bad"`` leaves out rows that cannot
        be used, and warns of them.
    quantity
        ``"flux"`` [erg/cm^2/s] or ``"fluence"`` [erg/cm^2]; by default what an ECSV table written by
        `Bursts.to_table` says, and flux otherwise.

    Returns
    -------
    Bursts

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    DataError
        For everything else that is wrong, see `Bursts.from_columns`; the message begins with the table.

    Examples
    --------
    >>> table = dict(burst=["a", "b"], z=[1.0, 2.0], Ep=[300.0, 150.0], E_peak_err_lo=[20, 15], E_peak_err_hi=[25, 15])
    >>> table |= dict(flux=[1e-6, 3e-7], flux_err_lo=[1e-7, 2e-8], flux_err_hi=[1e-7, 2e-8])
    >>> len(read_bursts(table, columns={"E_peak": "Ep"}))
    2
    """
    table = read_table(source, format=format, missing=missing)
    try:
        kind = quantity or _quantity(source)
        declared = columns_of(kind)
        found = table.resolve(list(declared), columns, ALIASES)
        table.require(found, "burst", "z")
        data, left_out, _ = make_from_rows(
            {key: table.values(name, declared[key].unit, text=key == "burst") for key, name in found.items()},
            lambda rows: Bursts.from_columns(rows, quantity=kind, called=found),
            name="burst",
            leave_out=leave_out,
        )
    except DataError as error:
        raise DataError(f"{table.origin}: {error}") from error
    unused = unused_errors(found, table.columns, ("z",))
    return replace(data, warnings=tell([*left_out, *unused, *data.warnings], origin=table.origin))


def _quantity(source: Any) -> str:
    """Return what a table of ours says of itself."""
    found = getattr(source, "meta", {}).get("quantity")
    if found is None and str(source).endswith(".ecsv"):
        from astropy.table import Table

        found = Table.read(source, format="ascii.ecsv").meta.get("quantity")
    return found if found in FLUX_UNITS else "flux"


def load_konus(relation: str = "amati") -> Bursts:
    """Load the Konus-Wind bursts of known redshift, bundled with the package.

    Tsvetkova, A. et al. 2017, ApJ 850, 161: long bursts (class II) of the triggered mode, 1997 to 2016.

    Parameters
    ----------
    relation : str
        ``"amati"``: fluence, and peak energy of the time-integrated spectrum, of 137 bursts. ``"yonetoku"``: peak flux,
        and peak energy of the spectrum around the peak, of the 108 bursts that have one.

    Returns
    -------
    Bursts
        One interval a burst. Fluences and fluxes are the published E_iso and L_iso seen from their redshift in the
        paper's cosmology, which takes nothing away and lets the cosmology be another one. They hold from 1 / (1 + z)
        keV to 10 MeV as observed and are taken for bolometric ones.

    Raises
    ------
    ValueError
        For an unknown relation.

    Notes
    -----
    Errors of peak energies are symmetric in the logarithm here, see `Bursts.from_columns`. The flux of the peak is that
    of 64 ms in the burst's frame, and its peak energy that of a longer interval.

    Examples
    --------
    >>> len(load_konus()), len(load_konus("yonetoku"))
    (137, 108)
    """
    if relation not in KONUS_RELATIONS:
        raise ValueError(f"relation: expected one of {listed(KONUS_RELATIONS)}; found {relation!r}.")
    energies, spectra = (_bundled(f"konus_wind_{name}.csv") for name in ("bursts", "spectra"))
    row = {name: i for i, name in enumerate(energies.values("grb"))}
    interval = spectra.values("interval") == ("i" if relation == "amati" else "p")
    of = np.array([row[name] for name in spectra.values("grb")])
    used = interval & (energies.values("class")[of] == "II")
    of = of[used]
    key = "e_iso" if relation == "amati" else "l_iso"
    z, value, error = (float_vector(energies.values(name)[of], name) for name in ("z", key, f"sigma_{key}"))
    with jax.enable_x64(True):
        sphere = np.asarray(jax.jit(log10_sphere)(z, Cosmology.flat(**KONUS_COSMOLOGY)))
    seen = 51.0 + np.log10(value) - sphere + (np.log10(1.0 + z) if relation == "amati" else 0.0)
    columns = {
        "burst": energies.values("grb")[of],
        "z": z,
        "log10_flux": seen,
        "sigma_log10_flux": error / (value * np.log(10.0)),
        "E_peak": spectra.values("e_peak")[used],
        "E_peak_err_lo": spectra.values("e_peak_err_lo")[used],
        "E_peak_err_hi": spectra.values("e_peak_err_hi")[used],
        "alpha": spectra.values("alpha")[used],
        "beta": spectra.values("beta")[used],
    }
    return Bursts.from_columns(columns, quantity="fluence" if relation == "amati" else "flux")


def _bundled(name: str) -> TableColumns:
    with resources.as_file(resources.files("hbm_jax.data") / "bundled" / name) as path:
        return read_table(path)
