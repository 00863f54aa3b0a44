"""Errors of the effective area: principal components of a set of ARFs, or a factor for each energy band.

The area is that of the response times 1 + deviation + sum_k a_k c_k(E), with standard normal amplitudes a_k, which are
fitted or sampled with the source (Lee et al. 2011, ApJ 731, 126; Xu et al. 2014, ApJ 794, 97).
"""

import functools
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hbm_jax.spectra.folding.response import Arf
from hbm_jax.spectra.model.composition import Component, Parameter, Product, Sum
from hbm_jax.spectra.ogip.tables import opened
from hbm_jax.spectra.ogip.writing import table_of, write_file
from hbm_jax.validation import DataError, Floats, frozen_array

__all__ = ["AreaErrors"]

EXTENSION = "AREA_ERRORS"


@dataclass(frozen=True, eq=False)
class AreaComponents:
    """Relative deviations of an effective area.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the energy bins [keV].
    components : (num_components, num_energies)
        Relative change of the area for an amplitude of 1, which is one standard deviation.
    deviation : (num_energies,)
        Mean relative deviation from the area of the response.
    steps : bool
        True: constant within each bin, and 0 outside all bins. False: linear between the middles of the bins, and
        constant outside.
    explained : float
        Fraction of the variance of the set of areas that the components contain; 1 for bands.
    """

    energy: Floats = field(repr=False)
    components: Floats = field(repr=False)
    deviation: Floats = field(repr=False)
    steps: bool = False
    explained: float = 1.0

    def __post_init__(self):
        for name in ("energy", "components", "deviation"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))
        energy, components = self.energy, self.components
        if energy.ndim != 1 or len(energy) < 2 or not (energy[0] >= 0 and (np.diff(energy) > 0).all()):
            raise DataError(f"AreaComponents: energy: expected increasing edges [keV], 0 or more; found {energy}.")
        if components.ndim != 2 or components.shape[1] != len(energy) - 1 or not len(components):
            raise DataError(
                f"AreaComponents: components: expected an array (num_components, {len(energy) - 1}); found "
                f"{components.shape}."
            )
        if self.deviation.shape != components.shape[1:]:
            raise DataError(
                f"AreaComponents: deviation: expected {components.shape[1:]} numbers; found {self.deviation.shape}."
            )

    @classmethod
    def of(
        cls, arfs: Sequence[Arf], default: Arf | None = None, *, num: int | None = None, fraction: float = 0.99
    ) -> "AreaComponents":
        """Return the principal components of a set of effective areas, such as draws of the calibration.

        Components are those of the areas in cm^2, as in Lee et al. (2011), divided by the default area, and 0 where
        that is 0. The covariance of the set is that of the components if all are kept. Raises DataError for fewer than
        two areas, different energies, equal areas, or an invalid ``num`` or ``fraction``.

        Parameters
        ----------
        arfs : sequence of Arf
            At least two, in the same energy bins.
        default : Arf, optional
            The area of the response, with which the spectra are fitted; by default the mean of the set.
        num : int, optional
            Number of components; by default as many as contain the ``fraction`` of the variance.
        fraction : float
            Fraction of the variance, from 0 to 1.
        """
        if len(arfs) < 2:
            raise DataError(f"AreaComponents: expected at least two effective areas; found {len(arfs)}.")
        if not 0 < fraction <= 1:
            raise DataError(f"AreaComponents: fraction: expected a number above 0, at most 1; found {fraction}.")
        if num is not None and num < 1:
            raise DataError(f"AreaComponents: num: expected 1 or more; found {num}.")
        edges = np.asarray(arfs[0].energy, float)
        for arf in (*arfs, *([] if default is None else [default])):
            if np.shape(arf.energy) != edges.shape or not np.allclose(arf.energy, edges, rtol=1e-5):
                raise DataError(f"{arf.name}: expected the energy bins of {arfs[0].name}; found others.")
        areas = np.stack([np.asarray(arf.area, float) for arf in arfs])
        mean = areas.mean(axis=0)
        reference = mean if default is None else np.asarray(default.area, float)
        _, scales, vectors = np.linalg.svd((areas - mean) / np.sqrt(len(areas) - 1), full_matrices=False)
        explained = np.cumsum(scales**2) / max(float((scales**2).sum()), 1e-300)
        if not scales[0] > 1e-12 * np.abs(mean).max():
            raise DataError("AreaComponents: expected areas that differ; found equal ones.")
        kept = int(np.searchsorted(explained, fraction * (1.0 - 1e-12)) + 1) if num is None else int(num)
        kept = max(1, min(kept, int((scales > 1e-12 * scales[0]).sum())))
        inverse = np.divide(1.0, reference, out=np.zeros_like(reference), where=reference > 0)
        return cls(
            edges, scales[:kept, None] * vectors[:kept] * inverse, (mean - reference) * inverse, False,
            float(explained[kept - 1]),
        )  # fmt: skip

    @classmethod
    def of_bands(cls, edges: ArrayLike, sigma: ArrayLike) -> "AreaComponents":
        """Return independent factors of the area in energy bands.

        Parameters
        ----------
        edges : (num_bands + 1,)
            Edges of the bands [keV], increasing.
        sigma : float or (num_bands,)
            Relative standard deviation of the area in each band.
        """
        edges = np.asarray(edges, float)
        scatter, num = np.asarray(sigma, float), max(edges.size - 1, 0)
        if edges.ndim != 1 or scatter.shape not in ((), (num,)) or not (np.isfinite(scatter) & (scatter >= 0)).all():
            raise DataError(
                f"AreaComponents: sigma: expected one number, 0 or more, or one for each of {num} bands; found "
                f"{scatter}."
            )
        scatter = np.broadcast_to(scatter, (num,))
        return cls(edges, np.diag(scatter), np.zeros(len(edges) - 1), True)

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a FITS file, for `AreaErrors`; raise FileExistsError if it exists and is not to be overwritten."""
        from astropy.io import fits

        num = len(self.components)
        columns = [
            fits.Column("ENERG_LO", "D", "keV", array=self.energy[:-1]),
            fits.Column("ENERG_HI", "D", "keV", array=self.energy[1:]),
            fits.Column("DEVIATION", "D", array=self.deviation),
            fits.Column("COMPONENT", f"{num}D", array=np.ascontiguousarray(self.components.T)),
        ]
        header = {"STEPS": self.steps, "EXPLAIN": self.explained}
        return write_file(path, [table_of(EXTENSION, columns, header)], overwrite)

    def at(self, energy: Floats) -> Floats:
        """Return deviation and components at energies (..., K), as (1 + num_components, ..., K)."""
        rows = np.concatenate([self.deviation[None], self.components])
        if not self.steps:
            middle = 0.5 * (self.energy[1:] + self.energy[:-1])
            return np.stack([np.interp(energy, middle, row) for row in rows])
        cell = np.searchsorted(self.energy, energy, side="right") - 1
        inside = (cell >= 0) & (cell < len(self.energy) - 1)
        return np.where(inside, rows[:, np.clip(cell, 0, len(self.energy) - 2)], 0.0)


def read_area_components(path: str | Path) -> AreaComponents:
    """Read the components that `AreaComponents.write` wrote; the last 8 files are cached.

    Raises DataError if the file cannot be read, or has no such table.
    """
    path = Path(path).absolute()  # in messages, and in the key of the cache
    try:
        modified = os.stat(path).st_mtime_ns
    except OSError:
        raise DataError(f"{path}: expected components of an effective area; the file does not exist.") from None
    return _read(path, modified)


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> AreaComponents:
    """Read components; the time of modification is part of the key of the cache."""
    with opened(path) as hdus:
        if EXTENSION not in hdus:
            extensions = ", ".join(hdu.name for hdu in hdus)
            raise DataError(f"{path}: expected an extension {EXTENSION}; found {extensions}.")
        hdu = hdus[EXTENSION]
        names = ("ENERG_LO", "ENERG_HI", "DEVIATION", "COMPONENT")
        missing = [name for name in names if name not in hdu.columns.names]
        if missing:
            raise DataError(f"{path}: expected a column {missing[0]} in {EXTENSION}; found {hdu.columns.names}.")
        low, high, deviation, components = (np.array(hdu.data[name], float) for name in names)
        steps, explained = bool(hdu.header.get("STEPS", False)), float(hdu.header.get("EXPLAIN", 1.0))
    if not (np.isfinite(components).all() and np.isfinite(deviation).all()):
        raise DataError(f"{path}: expected finite numbers; found NaN or infinity.")
    components = components[:, None] if components.ndim == 1 else components
    return AreaComponents(np.append(low, high[-1:]), components.T, deviation, steps, explained)


@dataclass(frozen=True)
class AreaErrors(Component):
    """Factor for the errors of the effective area, 1 + deviation + sum_k area_k c_k(E).

    Parameters
    ----------
    label : str
        Prefix of the parameter names, such as the name of the instrument.
    file : str
        File written by `AreaComponents.write`. In text: ``AreaErrors("acis.fits")``, or with a label
        ``AreaErrors("acis.fits", acis)``.
    spectra : tuple of int, optional
        Indices of the spectra of a joint fit that this instrument observed; None for all. In a model of the
        background they count background regions.

    Notes
    -----
    The amplitudes ``area_1``, ``area_2`` and so on are standard normal and common to all these spectra. Best fits keep
    these priors, as the calibration is a measurement of its own. Fluxes, luminosities and equivalent widths do not
    include the factor.

    Examples
    --------
    >>> AreaErrors("acis", file="acis.fits", spectra=(0, 2))  # doctest: +SKIP
    """

    _: KW_ONLY
    file: str = ""
    spectra: tuple[int, ...] | None = None
    kind: ClassVar[str] = "multiplicative"
    of_instrument: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))
        if self.spectra is not None:
            spectra: Any = self.spectra
            indices: tuple[Any, ...] = (spectra,) if np.ndim(spectra) == 0 else tuple(spectra)
            if not all(isinstance(index, int | np.integer) and index >= 0 for index in indices):
                raise ValueError(f"AreaErrors: spectra: expected indices of spectra, from 0; found {self.spectra!r}.")
            object.__setattr__(self, "spectra", tuple(int(index) for index in indices))
        _ = self.components  # read here, so that errors name the file at once

    @property
    def components(self) -> AreaComponents:
        """Contents of the file, which is read once."""
        return read_area_components(self.file)

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Amplitude of each component."""
        num = len(self.components.components)
        text = "amplitude of component {} of the effective area, in standard deviations"
        return {f"area_{k}": Parameter("", "Normal(0.0, 1.0)", text.format(k)) for k in range(1, num + 1)}

    def _of_source(self, index: int) -> Component:
        if self.spectra is None:
            return self
        return AreaErrors(self.label, file=self.file, spectra=None if index in self.spectra else ())

    def _tables(self, energy: Any) -> Floats:
        """Return deviation and components, (1 + num_components, ..., K), 0 for the spectra of other instruments."""
        values = self._concrete(energy)
        rows = self.components.at(values)
        if self.spectra is None:
            return rows
        if not self.spectra:
            return np.zeros_like(rows)
        if values.ndim < 2 or max(self.spectra) >= len(values):
            num = len(values) if values.ndim > 1 else 1
            raise ValueError(f"AreaErrors: spectra: expected indices of {num} spectra; found {self.spectra}.")
        applies = np.isin(np.arange(len(values)), self.spectra).reshape(-1, *[1] * (values.ndim - 1))
        return np.where(applies, rows, 0.0)

    def _evaluate(self, tables: Any, values: Any) -> Any:
        """Return the factor 1 + deviation + sum_k area_k c_k."""
        params = self._unprefixed(values)
        factor: Any = None
        for name, row in zip(params, tables[1:], strict=True):
            amplitude = params[name][..., None]
            change = amplitude * jnp.asarray(row, amplitude.dtype)
            factor = 1.0 + jnp.asarray(tables[0], amplitude.dtype) + change if factor is None else factor + change
        return factor

    def discontinuities(self, low: float, high: float) -> np.ndarray:
        """Return the edges of bands; none for components that are linear between bins."""
        edges = self.components.energy
        return edges[(edges > low) & (edges < high)] if self.components.steps else np.zeros(0)


def without_instrument(spectrum: Component) -> Component:
    """Return a model expression without the factors of the instrument, `AreaErrors`."""
    if not isinstance(spectrum, Sum | Product):
        return spectrum
    kept = tuple(without_instrument(part) for part in spectrum.parts if not isinstance(part, AreaErrors))
    return kept[0] if len(kept) == 1 else type(spectrum)(kept)
