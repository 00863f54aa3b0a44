"""Several spectra as one pytree: grouped counts padded to a common shape, with shared responses stored once."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.spectra.folding.group_sums import grouped_row
from hbm_jax.spectra.folding.grouping import groups
from hbm_jax.spectra.folding.response import Response, Rmf
from hbm_jax.spectra.folding.spectrum import Spectrum
from hbm_jax.spectra.statistics.grouped_counts import GroupedCounts
from hbm_jax.validation import DataError, Floats, frozen_array, warn_unusual

SAME_AREA = 1e-9  # largest relative spread of AREASCAL within a group for which the mean is used
# Padding of the arrays (N, G), by name.
PADDING = {
    "counts": 0.0, "background": 0.0, "ratio": 1.0, "ratio_spread": 0.0, "background_error": np.nan,
    "background_mean": 1.0, "areascal": 1.0, "e_min": np.nan, "e_max": np.nan, "used": False,
    "error": np.nan, "systematic": 0.0,
}  # fmt: skip
ARRAYS = ("exposure", *PADDING)


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class SpectrumStack(GroupedCounts):
    """Grouped spectra with their responses, stacked so that they can be folded and compared together.

    Build with `SpectrumStack.of`. N is the number of spectra, G the largest number of groups of any of them. A pytree:
    the arrays are leaves; names, responses, the grouping and warnings are static.

    Attributes
    ----------
    name, exposure, counts, ..., systematic
        Arrays of the base class ``GroupedCounts``.
    responses : tuple of Response
        Response of each spectrum; those with the same redistribution matrix share one object. Where AREASCAL varies
        within a group, it is multiplied into the response, channel by channel.
    grouping : tuple of (num_channels,) int
        Group number of each channel; -1 for unused channels.
    warnings : tuple of str
        Anomalies of the files, one sentence each.
    notes : tuple of str
        Choices made by a reader, one sentence each.
    """

    responses: tuple[Response, ...] = field(metadata={"static": True})
    grouping: tuple[NDArray[np.int64], ...] = field(metadata={"static": True})
    warnings: tuple[str, ...] = field(default=(), metadata={"static": True})
    notes: tuple[str, ...] = field(default=(), metadata={"static": True})
    distinctive_array: ClassVar[str] = ""  # name of a stored array that only this subclass has, for `from_dict`

    @classmethod
    def of(
        cls, spectra: Sequence[Spectrum], noticed: Sequence[ArrayLike] | None = None, *, poisson: bool = False
    ) -> "SpectrumStack":
        """Stack spectra, summed in their groups of channels.

        Raises DataError if there are no spectra; if a spectrum has no response or no used channels, or Gaussian errors
        where its counts must be Poisson; if the counts of a used channel are NaN, or its background ratio is not
        positive.

        Parameters
        ----------
        spectra : sequence of Spectrum
            Spectra with their responses.
        noticed : sequence of (num_channels,) bool, optional
            Channels to use in each spectrum, from `hbm_jax.spectra.noticed`. Default: all of quality 0.
        poisson : bool
            True: reject counts with Gaussian errors.
        """
        if not spectra:
            raise DataError("spectra: expected at least one; found none.")
        gaussian = [spectrum.name for spectrum in spectra if spectrum.error is not None]
        if poisson and gaussian:
            raise DataError(f"{gaussian[0]}: expected Poisson counts; found counts with Gaussian errors.")
        masks = [s.quality == 0 for s in spectra] if noticed is None else [np.asarray(m, bool) for m in noticed]
        rows = [grouped_row(spectrum, groups(spectrum, mask)) for spectrum, mask in zip(spectra, masks, strict=True)]
        group_warnings = warn_unusual([text for row in rows for text in row.pop("warnings")])
        shared: dict[Any, Response] = {}
        responses = [_scaled_response(spectrum, row, shared) for spectrum, row in zip(spectra, rows, strict=True)]
        num_groups = max(len(row["counts"]) for row in rows)
        arrays = {
            key: np.stack([_padded(row[key], num_groups, padding) for row in rows]) for key, padding in PADDING.items()
        }
        return cls(
            name=tuple(s.name for s in spectra),
            responses=tuple(responses),
            grouping=tuple(row["grouping"] for row in rows),
            exposure=frozen_array([s.exposure for s in spectra]),
            warnings=tuple(dict.fromkeys([text for s in spectra for text in s.warnings] + list(group_warnings))),
            **{key: frozen_array(value, None) for key, value in arrays.items()},  # type: ignore[arg-type]
        )

    def __repr__(self) -> str:
        return f"SpectrumStack({len(self)} spectra, {self.counts.shape[-1]} groups at most)"

    @classmethod
    def joined(cls, stacks: "Sequence[SpectrumStack]") -> "SpectrumStack":
        """Return one stack of the spectra of several, in their order."""
        num_groups = max(np.shape(stack.counts)[1] for stack in stacks)
        rows = {key: [row for stack in stacks for row in np.asarray(getattr(stack, key))] for key in PADDING}
        arrays = {key: [_padded(row, num_groups, PADDING[key]) for row in rows[key]] for key in PADDING}
        texts = {k: dict.fromkeys(t for stack in stacks for t in getattr(stack, k)) for k in ("warnings", "notes")}
        return cls(
            name=tuple(name for stack in stacks for name in stack.name),
            responses=tuple(response for stack in stacks for response in stack.responses),
            grouping=tuple(group for stack in stacks for group in stack.grouping),
            exposure=frozen_array(np.concatenate([stack.exposure for stack in stacks])),
            warnings=tuple(texts["warnings"]),
            notes=tuple(texts["notes"]),
            **{key: frozen_array(np.stack(values), None) for key, values in arrays.items()},
        )

    def sparse_response(self, row: int, *, per_second: bool = False) -> tuple[Floats, sparse.csr_matrix]:
        """Return edges and grouped response of one spectrum times its exposure, or without it if `per_second`.

        Edges [keV] of the energy bins are (num_energies + 1,). The response [cm^2 s] in the groups of this spectrum,
        without padding, is (num_energies, num_groups).
        """
        response, used = self.responses[row], np.asarray(self.used[row])
        scale = (1.0 if per_second else self.exposure[row]) * np.asarray(self.areascal[row])[used]
        return response.energy, sparse.csr_matrix(response.in_groups(self.grouping[row]) @ sparse.diags(scale))

    def grouped_response(self, row: int, *, per_second: bool = False) -> tuple[Floats, Floats]:
        """Return the same as `sparse_response`, with a dense matrix."""
        energy, matrix = self.sparse_response(row, per_second=per_second)
        return energy, matrix.toarray()

    def subset(self, rows: ArrayLike) -> "SpectrumStack":
        """Return the stack of the spectra with these integer indices, or where a mask is True."""
        index = indices_of(rows, len(self.name))
        num_groups = int(np.asarray(self.used)[index].sum(axis=1).max())
        return dataclasses.replace(
            self,
            name=tuple(self.name[i] for i in index),
            responses=tuple(self.responses[i] for i in index),
            grouping=tuple(self.grouping[i] for i in index),
            exposure=frozen_array(self.exposure[index]),
            **{key: frozen_array(getattr(self, key)[index][:, :num_groups], None) for key in PADDING},  # type: ignore[arg-type]
        )

    def describe(self) -> str:
        """Return a sentence on each spectrum (counts, exposure, groups and energy range), the notes and warnings."""
        counts, groups = np.asarray(self.counts).sum(axis=1), np.asarray(self.used).sum(axis=1)
        parts = [
            f"{name}: {total:.0f} counts in {exposure:.6g} s, {num} groups of channels from {low:.3g} to {high:.3g} keV"
            f"{', with a background' if has_background else ''}{', with Gaussian errors' if has_errors else ''}"
            for name, total, exposure, num, low, high, has_background, has_errors in zip(
                self.name, counts, self.exposure, groups, np.nanmin(self.e_min, axis=1), np.nanmax(self.e_max, axis=1),
                self.has_background, self.has_gaussian_counts, strict=True,
            )
        ]  # fmt: skip
        return " ".join(["; ".join(parts) + ".", *self.notes, *(f"Warning: {text}." for text in self.warnings)])

    def to_table(self):
        """Return an astropy ``Table`` with one row per spectrum."""
        from astropy.table import Table

        sums = {key: np.asarray(getattr(self, key)).sum(axis=1) for key in ("counts", "background", "used")}
        ranges = {"e_min": np.nanmin(self.e_min, axis=1), "e_max": np.nanmax(self.e_max, axis=1)}
        return Table(
            {"name": list(self.name), "exposure": np.array(self.exposure)}
            | {"counts": sums["counts"], "background": sums["background"], "groups": sums["used"]}
            | ranges
        )

    def replace_observations(self, counts: ArrayLike) -> "SpectrumStack":
        """Return a copy with new counts in the source region, (N, G).

        Raises DataError if the counts have another shape; if Poisson counts are negative or not whole numbers.
        """
        counts = np.asarray(counts, float)
        if counts.shape != np.shape(self.counts):
            raise DataError(f"counts: expected an array of shape {np.shape(self.counts)}; found {counts.shape}.")
        is_count = np.where(self.has_gaussian_counts[:, None], np.isfinite(counts), (counts >= 0) & (counts % 1 == 0))
        invalid = np.asarray(self.used) & ~is_count
        if invalid.any():
            row = int(invalid.any(axis=1).argmax())
            value = counts[invalid][0]
            raise DataError(f"counts, {self.name[row]}: expected whole numbers, 0 or more; found {value:g}.")
        return dataclasses.replace(self, counts=frozen_array(np.where(self.used, counts, 0.0)))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return the contents as NumPy arrays for storage; each redistribution matrix is stored once."""
        rmfs = list({id(r.rmf): r.rmf for r in self.responses}.values())
        rmf_number = np.array([next(i for i, rmf in enumerate(rmfs) if rmf is r.rmf) for r in self.responses])
        num_bins, num_channels = (
            max(len(row) for row in values) for values in ([r.area for r in self.responses], self.grouping)
        )
        stored = {"spectrum_name": np.array(self.name), "rmf_number": rmf_number}
        stored |= {key: np.array(getattr(self, key)) for key in ARRAYS}
        stored |= {key: np.array(getattr(self, key)) for key in ("warnings", "notes") if getattr(self, key)}
        stored["area"] = np.stack([_padded(r.area, num_bins, 0.0) for r in self.responses])
        stored["grouping"] = np.stack([_padded(g, num_channels, -1) for g in self.grouping])
        for number, rmf in enumerate(rmfs):
            parts = rmf.energy, rmf.channels, rmf.e_min, rmf.e_max, rmf.name
            sparse_parts = rmf.matrix.data, rmf.matrix.indices, rmf.matrix.indptr
            names = [f"rmf{number}_{key}" for key in RMF_PARTS]
            stored |= {key: np.array(part) for key, part in zip(names, (*parts, *sparse_parts), strict=True)}
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "SpectrumStack":
        """Build a stack from the arrays of `to_dict`; every value is restored exactly."""
        for subclass in cls.__subclasses__():
            if subclass.distinctive_array in stored:
                return subclass.from_dict(stored)
        return SpectrumStack.of_arrays(stored)

    @staticmethod
    def of_arrays(stored: Mapping[str, Any]) -> "SpectrumStack":
        """Build a `SpectrumStack` from stored arrays; arrays of a subclass are ignored."""
        rmfs: list[Rmf] = []
        while f"rmf{len(rmfs)}_energy" in stored:
            rmfs.append(_rmf_of([stored[f"rmf{len(rmfs)}_{key}"] for key in RMF_PARTS]))
        responses, grouping = [], []
        for number, area, group in zip(stored["rmf_number"], stored["area"], stored["grouping"], strict=True):
            rmf = rmfs[int(number)]
            responses.append(Response.from_area(rmf, np.asarray(area[: rmf.matrix.shape[0]])))
            grouping.append(np.asarray(group[: len(rmf.channels)]))
        shape = np.shape(stored["ratio"])
        absent_in_older_files = {"ratio_spread": np.zeros(shape), "systematic": np.zeros(shape)}
        stored = absent_in_older_files | {"error": np.full(shape, np.nan)} | dict(stored)
        arrays: dict[str, Any] = {key: frozen_array(stored[key], None) for key in ARRAYS}
        return SpectrumStack(
            name=tuple(str(n) for n in stored["spectrum_name"]),
            responses=tuple(responses),
            grouping=tuple(grouping),
            **arrays,
            **{key: tuple(str(text) for text in stored.get(key, ())) for key in ("warnings", "notes")},
        )


def _scaled_response(spectrum: Spectrum, row: dict[str, Any], shared: dict[Any, Response]) -> Response:
    """Return the response of a spectrum, multiplied by AREASCAL if that varies within a group.

    In that case ``row["areascal"]`` is set to 1, so that AREASCAL is not applied twice.
    """
    response, grouping = spectrum.response, row["grouping"]
    assert response is not None
    used = grouping >= 0
    mean = row["areascal"][grouping[used]]
    if (np.abs(spectrum.areascal[used] - mean) <= SAME_AREA * mean).all():
        return response
    key = id(response.rmf), response.area.tobytes(), spectrum.areascal.tobytes()
    if key not in shared:
        rmf = response.rmf
        matrix = sparse.csr_matrix(rmf.matrix @ sparse.diags(spectrum.areascal))
        shared[key] = Response.from_area(dataclasses.replace(rmf, matrix=matrix), response.area)
    row["areascal"] = np.ones(len(row["areascal"]))
    return shared[key]


def _padded(values, num: int, padding) -> np.ndarray:
    """Return an array extended to `num` elements with a padding value."""
    values = np.asarray(values)
    return np.concatenate([values, np.full(num - len(values), padding, values.dtype)])


RMF_PARTS = ("energy", "channels", "e_min", "e_max", "name", "values", "columns", "row_starts")


def _rmf_of(parts: Sequence[Any]) -> Rmf:
    """Build a redistribution matrix from its stored parts."""
    energy, channels, e_min, e_max, name, *arrays = parts
    matrix = sparse.csr_matrix(tuple(arrays), shape=(len(energy) - 1, len(channels)))
    return Rmf(energy, matrix, channels, e_min, e_max, str(name))


def indices_of(rows: ArrayLike, num: int) -> list[int]:
    """Return the indices of rows, which are given by their indices or by a mask of all ``num`` rows."""
    array = np.asarray(rows)
    if array.dtype != bool:
        return [int(i) for i in array]
    if array.shape != (num,):
        raise DataError(f"subset: expected indices or a mask of {num} rows; found a mask of shape {array.shape}.")
    return np.flatnonzero(array).tolist()
