"""Instrument response: effective area (ARF), redistribution matrix (RMF), and their product."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.validation import DataError, Floats

# Largest row sum of a redistribution matrix without effective area: at most one count per photon, with a margin for
# interpolation errors of calibration files. Effective areas in cm^2 exceed it at some energy.
AREA_INCLUDED = 1.5
NO_RESPONSE = (  # advice where a spectrum has no response
    "Name one by rmf=PATH and arf=PATH (--rmf, --arf), for further spectra by 'rmf' and 'arf' in their options."
)
SAME_EDGE = 1e-6  # relative difference of bin edges that are equal in the parts of a split response
SAME_ENERGY_IN_PARTS = 1e-5  # the same between a split matrix and its ARF, in files of single precision
SAME_ENERGY = 1e-3  # relative tolerance between the energy grids of ARF and RMF, which are stored in single precision


@dataclass(frozen=True, eq=False)
class Arf:
    """Effective area in bins of photon energy.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the energy bins [keV].
    area : (num_energies,)
        Effective area [cm^2].
    name : str
        Name for messages.
    """

    energy: Floats = field(repr=False)
    area: Floats = field(repr=False)
    name: str = "ARF"


@dataclass(frozen=True, eq=False)
class Rmf:
    """Redistribution matrix: probability that a photon of a given energy is counted in a channel.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the bins of photon energy [keV].
    matrix : sparse (num_energies, num_channels)
        Probability that a photon of an energy bin is counted in a channel, or that probability times the effective area
        [cm^2] if the file includes the area.
    channels : (num_channels,)
        Channel numbers, as in the file.
    e_min, e_max : (num_channels,)
        Nominal energy limits of the channels [keV].
    name : str
        Name for messages.
    full : bool
        True if the file states that the effective area is included (HDUCLAS3 = FULL).
    split : bool
        True if the energy bins are the union of those of several parts (a split response).
    warnings : tuple of str
        Anomalies of the file, one sentence each.
    """

    energy: Floats = field(repr=False)
    matrix: sparse.csr_matrix = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)
    e_min: Floats = field(repr=False)
    e_max: Floats = field(repr=False)
    name: str = "RMF"
    full: bool = field(default=False, repr=False)
    split: bool = field(default=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Response:
    """Response of an instrument: effective area times redistribution matrix.

    Build it with `Response.of`, or read it with `hbm_jax.spectra.read_spectrum`. Area and redistribution are stored
    separately, so that sources with the same redistribution share one matrix.

    Attributes
    ----------
    rmf : Rmf
        Redistribution matrix.
    area : (num_rmf_energies,)
        Effective area in the energy bins of the redistribution [cm^2]; 1 if the matrix includes the area.
    rows : slice
        Energy bins from the first to the last with a non-zero response.
    """

    rmf: Rmf
    area: Floats
    rows: slice

    @classmethod
    def of(cls, rmf: Rmf, arf: Arf | None = None) -> "Response":
        """Combine a redistribution matrix with an effective area.

        Raises DataError if the energy grids differ, or the response is zero at all energies. The bins of a split
        matrix may be parts of those of the effective area, which is then the same in all parts of a bin.

        Parameters
        ----------
        rmf : Rmf
            Redistribution matrix.
        arf : Arf, optional
            Effective area, in the same energy bins; None if the matrix includes the area.
        """
        area = np.ones(rmf.matrix.shape[0])
        if arf is not None and rmf.split and len(arf.area) != len(area):
            area = _area_in_parts(rmf, arf)
        elif arf is not None:
            if len(arf.area) != len(area):
                raise DataError(
                    f"{arf.name}: expected the {len(area)} energy bins of {rmf.name}; found {len(arf.area)}."
                )
            differs = np.abs(arf.energy - rmf.energy) > SAME_ENERGY * np.maximum(rmf.energy, 1e-2)
            if differs.any():
                row = int(differs.argmax())
                raise DataError(
                    f"{arf.name}: expected the energy bins of {rmf.name}, the edge of row {row} at "
                    f"{rmf.energy[row]:g} keV; found it at {arf.energy[row]:g} keV."
                )
            area = np.asarray(arf.area, float)
        return cls.from_area(rmf, area)

    @classmethod
    def from_area(cls, rmf: Rmf, area: Floats) -> "Response":
        """Combine a redistribution matrix with the effective area in each of its energy bins [cm^2].

        Raises DataError if the response is zero at all energies.
        """
        used = np.flatnonzero(area * np.asarray(abs(rmf.matrix).sum(axis=1)).ravel())
        if not used.size:
            raise DataError(f"{rmf.name}: expected a response above 0 at some energy; found 0 at all energies.")
        return cls(rmf, area, slice(int(used[0]), int(used[-1]) + 1))

    def __repr__(self):
        low, high = self.energy[[0, -1]]
        return f"Response({low:.3g} to {high:.3g} keV in {len(self.energy) - 1} bins, {len(self.channels)} channels)"

    @property
    def energy(self) -> Floats:
        """Edges of the energy bins with a non-zero response [keV], (num_energies + 1,)."""
        return self.rmf.energy[self.rows.start : self.rows.stop + 1]

    @property
    def matrix(self) -> sparse.csr_matrix:
        """Area times redistribution [cm^2], sparse (num_energies, num_channels); computed at every access."""
        return sparse.csr_matrix(sparse.diags(self.area[self.rows]) @ self.rmf.matrix[self.rows])

    @property
    def channels(self) -> NDArray[np.int64]:
        """Channel numbers, (num_channels,)."""
        return self.rmf.channels

    @property
    def e_min(self) -> Floats:
        """Lower nominal energy limits of the channels [keV], (num_channels,)."""
        return self.rmf.e_min

    @property
    def e_max(self) -> Floats:
        """Upper nominal energy limits of the channels [keV], (num_channels,)."""
        return self.rmf.e_max

    def fold(self, photons: ArrayLike) -> Floats:
        """Return the expected count rate of a photon spectrum in each channel [counts/s], (..., num_channels).

        Parameters
        ----------
        photons : (..., num_energies)
            Photon flux in each energy bin [photons/cm^2/s].
        """
        incident = np.asarray(photons, float) * self.area[self.rows]
        counts = incident.reshape(-1, incident.shape[-1]) @ self.rmf.matrix[self.rows]
        return np.asarray(counts).reshape(*incident.shape[:-1], -1)

    def grouped(self, groups: ArrayLike) -> Floats:
        """Return the response summed over the channels of each group [cm^2], (num_energies, num_groups).

        Parameters
        ----------
        groups : (num_channels,)
            Group number of each channel, from 0; -1 for an unused channel.
        """
        return self.in_groups(groups).toarray()

    def in_groups(self, groups: ArrayLike) -> sparse.csr_matrix:
        """Return the same as `grouped`, as a sparse matrix."""
        groups = np.asarray(groups)
        used = np.flatnonzero(groups >= 0)
        shape = (len(groups), int(groups.max(initial=-1)) + 1)
        members = sparse.csr_matrix((np.ones(len(used)), (used, groups[used])), shape=shape)
        return sparse.csr_matrix(sparse.diags(self.area[self.rows]) @ (self.rmf.matrix[self.rows] @ members))


def summed_response(responses: Sequence[Response]) -> Response:
    """Return the sum of responses, such as those of overlapping orders of a grating, in the union of their energy bins.

    The effective areas are included in the matrix, in cm^2. Raises DataError if channels differ.

    Parameters
    ----------
    responses : sequence of Response
        Responses of the same channels; nominal channel energies are those of the first.
    """
    if len(responses) == 1:
        return responses[0]
    first = responses[0].rmf
    for response in responses[1:]:
        if not np.array_equal(response.channels, first.channels):
            raise DataError(
                f"{response.rmf.name}: expected the channels of {first.name}, to which it is added; found others."
            )
    parts = [(r.rmf.energy, sparse.csr_matrix(sparse.diags(r.area) @ r.rmf.matrix)) for r in responses]
    edges, matrix = summed_matrices(parts)
    name = " + ".join(response.rmf.name for response in responses)
    rmf = Rmf(edges, matrix, first.channels, first.e_min, first.e_max, name, full=True, split=True)
    return Response.of(rmf)


def summed_matrices(parts: Sequence[tuple[Floats, sparse.csr_matrix]]) -> tuple[Floats, sparse.csr_matrix]:
    """Sum matrices of the same channels; return the union of their energy bin edges, and the sum in these bins."""
    if len(parts) == 1:
        return parts[0]
    edges = max((e for e, _ in parts), key=len)
    for other_edges, _ in parts:  # add the edges that are not equal, to rounding, to one in the union
        edges = np.union1d(edges, other_edges[_distance(other_edges, edges) > SAME_EDGE * other_edges])
    total = sparse.csr_matrix((len(edges) - 1, parts[0][1].shape[1]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    for part_edges, matrix in parts:
        row = np.searchsorted(part_edges, middle) - 1
        inside = np.flatnonzero((row >= 0) & (row < matrix.shape[0]))
        # A row is the distribution of one photon, so all bins into which an energy bin is divided have the same row.
        shape = len(middle), matrix.shape[0]
        row_map = sparse.csr_matrix((np.ones(len(inside)), (inside, row[inside])), shape)
        total = total + row_map @ matrix
    return edges, sparse.csr_matrix(total)


def _distance(energies: Floats, edges: Floats) -> Floats:
    """Return the distance of each energy to the nearest edge."""
    nearest = np.clip(np.searchsorted(edges, energies), 1, len(edges) - 1)
    return np.minimum(np.abs(energies - edges[nearest]), np.abs(energies - edges[nearest - 1]))


def _area_in_parts(rmf: Rmf, arf: Arf) -> Floats:
    """Return the effective area in the bins of a split matrix, each of which is a part of a bin of the area."""
    middle = 0.5 * (rmf.energy[1:] + rmf.energy[:-1])
    row = np.searchsorted(arf.energy, middle) - 1
    inside = (row >= 0) & (row < len(arf.area))
    responds = np.asarray(abs(rmf.matrix).sum(axis=1)).ravel() > 0
    is_nested = _distance(arf.energy, rmf.energy) <= SAME_ENERGY_IN_PARTS * arf.energy
    outside = (arf.energy < rmf.energy[0]) | (arf.energy > rmf.energy[-1])
    if not (is_nested | outside).all() or (responds & ~inside).any():
        raise DataError(
            f"{arf.name}: expected an effective area at all energies of {rmf.name}, from {rmf.energy[0]:g} to "
            f"{rmf.energy[-1]:g} keV, in bins whose edges are also edges of the matrix, which has several parts; found "
            f"{len(arf.area)} bins from {arf.energy[0]:g} to {arf.energy[-1]:g} keV."
        )
    return np.where(inside, arf.area[np.clip(row, 0, len(arf.area) - 1)], 0.0)
