"""Container of X-ray afterglows: spectra with responses, redshifts, and Galactic column densities."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.catalogues import HasSpectra
from hbm_jax.data.columns import ERROR, Column, check_values
from hbm_jax.names import renamed_keyword
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.validation import DataError, Floats, float_vector, frozen_array, reject_rows, require_same_length

# No Galactic column reaches 50e22 cm^-2, so a larger value must be in other units.
COLUMNS: dict[str, Column] = {
    "z": Column("", "a redshift", (0.0, 10.0), zero=True),
    "sigma_z": ERROR,
    "nh_mw": Column("1e22 cm-2", "a column in units of 1e22 cm^-2", (0.0, 50.0), (0.0, 5.0), zero=True),
    "sigma_nh_mw": dataclasses.replace(ERROR, unit="1e22 cm-2"),
}
LIMIT = "log10_flux_limit"
LIMITS: dict[str, Column] = {LIMIT: Column("", "log10 of a flux in erg/cm^2/s", (-25.0, 0.0), (-20.0, -5.0))}


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Afterglows(HasSpectra):
    """X-ray afterglows with one spectrum each: counts, response, redshift and Galactic column density.

    Build it with `from_spectra` or `hbm_jax.data.read_afterglows`; the constructor does not validate. Registered as a
    pytree. N is the number of afterglows.

    Attributes
    ----------
    name : tuple of str
        Names of the sources.
    z, sigma_z : (N,)
        Redshift of the host and its standard deviation, 0 where it is exact.
    nh_mw, sigma_nh_mw : (N,)
        Galactic hydrogen column density and its standard deviation [1e22 cm^-2]; NaN and 0 where it is unknown.
    spectra : SpectrumStack
        The spectra with their responses.
    left_out : tuple of (str, str)
        Names of sources in the catalogue that were left out, each with the reason.
    log10_flux_limit : (N,)
        log10 of the flux [erg/cm^2/s] below which each source would not be in the sample; NaN where it is unknown.
    """

    name: tuple[str, ...] = field(metadata={"static": True})
    z: Any
    sigma_z: Any
    nh_mw: Any
    sigma_nh_mw: Any
    spectra: SpectrumStack
    left_out: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})
    log10_flux_limit: Any = None
    object_name = "source"

    @classmethod
    @renamed_keyword("called", "column_names")
    def from_spectra(
        cls,
        spectra: SpectrumStack,
        *,
        z: ArrayLike,
        nh_mw: ArrayLike | None = None,
        sigma_z: ArrayLike | None = None,
        sigma_nh_mw: ArrayLike | None = None,
        log10_flux_limit: ArrayLike | None = None,
        name: Sequence[str] | None = None,
        left_out: Sequence[tuple[str, str]] = (),
        column_names: Mapping[str, str] | None = None,
    ) -> "Afterglows":
        """Build the container from spectra, redshifts and columns, after checking them.

        Raises DataError for unequal lengths, duplicate names, a redshift that is missing or out of range, a column
        density that is negative or above 50e22 cm^-2, a negative error, or a source without any counts.

        Parameters
        ----------
        spectra : SpectrumStack
            N spectra from `SpectrumStack.of`.
        z : (N,)
            Redshifts, 0 to 10.
        nh_mw : (N,), optional
            Galactic column densities [1e22 cm^-2]; unknown where omitted or NaN.
        sigma_z, sigma_nh_mw : (N,), optional
            Standard deviations, 0 or more; 0 where omitted or NaN.
        log10_flux_limit : (N,), optional
            log10 of the flux [erg/cm^2/s] below which each source would not be in the sample, for the selection
            ``"log10_flux > log10_flux_limit +- 0.1"`` of `hbm_jax.models.Afterglow`.
        name : sequence of str, optional
            Names of the sources; those of the spectra by default.
        left_out : sequence of (str, str)
            Names of sources of the catalogue that are not in `spectra`, each with the reason.
        column_names : mapping, optional
            Names of columns in the user's table, by standard name, for use in messages.
        """
        column_names = column_names or {}
        names = tuple(str(n) for n in (spectra.name if name is None else name))
        num = len(spectra)
        inputs = {"z": z, "sigma_z": sigma_z, "nh_mw": nh_mw, "sigma_nh_mw": sigma_nh_mw}
        columns: dict[str, Floats] = {}
        for key, value in inputs.items():
            label = column_names.get(key, key)
            value = np.full(num, np.nan if key == "nh_mw" else 0.0) if value is None else value
            numbers = float_vector(value, label, names, allow_missing=key != "z")
            columns[key] = numbers if key in ("z", "nh_mw") else np.where(np.isnan(numbers), 0.0, numbers)
        limit = np.full(num, np.nan) if log10_flux_limit is None else log10_flux_limit
        columns[LIMIT] = float_vector(limit, column_names.get(LIMIT, LIMIT), names, allow_missing=True)
        require_same_length({"spectra": num, "name": len(names)} | {k: len(v) for k, v in columns.items()})
        for row, source in enumerate(names):
            if source in names[:row]:
                raise DataError(f"name, row {row}: expected distinct names; found {source!r} twice.")
        unusual = check_values(columns, COLUMNS | LIMITS, column_names, names)
        spectra = dataclasses.replace(spectra, warnings=tuple(dict.fromkeys([*spectra.warnings, *unusual])))
        empty = np.asarray(spectra.counts).sum(axis=1) + np.asarray(spectra.background).sum(axis=1) == 0
        reject_rows(empty, np.zeros(num), "counts", "at least one count in source or background", names)
        frozen = {key: frozen_array(value) for key, value in columns.items()}
        return cls(name=names, spectra=spectra, left_out=tuple(left_out), **frozen)

    @property
    def knows_redshift(self) -> NDArray[np.bool_]:
        """Mask (N,) of the redshifts without error."""
        return np.asarray(self.sigma_z) == 0

    def describe(self) -> str:
        """Return a paragraph on the sample: number of sources, redshifts, counts, energies and backgrounds."""
        s = self.spectra
        counts, groups = np.asarray(s.counts).sum(axis=1), np.asarray(s.used).sum(axis=1)
        low, high = np.nanmin(s.e_min), np.nanmax(s.e_max)
        uncertain = int((~self.knows_redshift).sum())
        galactic = int(np.isfinite(self.nh_mw).sum())
        text = (
            f"{len(self)} afterglow{'s' if len(self) > 1 else ''} at redshift {np.min(self.z):.4g} to "
            f"{np.max(self.z):.4g}{f', {uncertain} of them uncertain' if uncertain else ''}; "
            f"{counts.min():.0f} to {counts.max():.0f} counts each (median {np.median(counts):.0f}) from {low:.3g} to "
            f"{high:.3g} keV, in {groups.min()} to {groups.max()} groups of channels. Backgrounds: "
            f"{int(s.has_background.sum())} of {len(self)}; Galactic columns: {galactic} of {len(self)}."
        )
        return text + self._notes()

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, without limits of the flux if all are unknown."""
        stored = super().to_dict()
        return stored if np.isfinite(self.log10_flux_limit).any() else {k: stored[k] for k in stored if k != LIMIT}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Afterglows":
        """Rebuild the container from the output of `to_dict`; every value is restored exactly."""
        return cls.from_spectra(
            SpectrumStack.from_dict(stored),
            name=[str(n) for n in stored["name"]],
            left_out=cls._left_out(stored),
            **{key: stored[key] for key in (*COLUMNS, *LIMITS) if key in stored},
        )

    def to_table(self):
        """Return an astropy ``Table``, the catalogue for `hbm_jax.data.read_afterglows`, with counts and exposures."""
        from astropy.table import Table

        counts = np.asarray(self.spectra.counts).sum(axis=1)
        columns = {"name": list(self.name)} | {key: np.array(getattr(self, key)) for key in COLUMNS}
        if np.isfinite(self.log10_flux_limit).any():
            columns[LIMIT] = np.array(self.log10_flux_limit)
        return Table(columns | {"counts": counts.astype(int), "exposure": np.array(self.spectra.exposure)})
