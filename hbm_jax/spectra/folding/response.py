"""What an instrument makes of photons: effective area, redistribution over channels, and their product."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.validation import DataError

Floats = NDArray[np.float64]
# Largest sum of a row of a redistribution without area: of each photon one count at most, but for the interpolation of
# calibration files. An area in cm^2 is above that somewhere.
AREA_INCLUDED = 1.5
SAME_ENERGY = 1e-3  # relative, between the energy grids of an ARF and an RMF, which are written in single precision


@dataclass(frozen=True, eq=False)
class Arf:
    """Effective area in bins of photon energy.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the bins [keV].
    area : (num_energies,)
        [cm^2].
    name : str
        For messages.
    """

    energy: Floats = field(repr=False)
    area: Floats = field(repr=False)
    name: str = "ARF"


@dataclass(frozen=True, eq=False)
class Rmf:
    """Redistribution of photons over the channels of a detector.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the bins of photon energy [keV].
    matrix : sparse (num_energies, num_channels)
        Probability that a photon of an energy bin is counted in a channel; or that times an area [cm^2], where a file
        has it folded in.
    channels : (num_channels,)
        Numbers of the channels, as files count them.
    e_min, e_max : (num_channels,)
        Nominal energies of the channels [keV].
    name : str
        For messages.
    full : bool
        Whether a file says that it has the effective area folded in (HDUCLAS3 = FULL).
    warnings : tuple of str
        What is unusual in the file, a sentence each.
    """

    energy: Floats = field(repr=False)
    matrix: sparse.csr_matrix = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)
    e_min: Floats = field(repr=False)
    e_max: Floats = field(repr=False)
    name: str = "RMF"
    full: bool = field(default=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Response:
    """Counts for each photon per cm^2, in channels: effective area times redistribution.

    Build one with `Response.of` or from files with `hbm_jax.spectra.read_spectrum`. The redistribution is kept as it
    is, not multiplied, so that the sources of a population that share one hold it once.

    Attributes
    ----------
    rmf : Rmf
        The redistribution.
    area : (num_rmf_energies,)
        Effective area in its bins [cm^2], 1 where it is folded in.
    rows : slice
        The bins from the first to the last that any photon is counted from.
    """

    rmf: Rmf
    area: Floats
    rows: slice

    @classmethod
    def of(cls, rmf: Rmf, arf: Arf | None = None) -> "Response":
        """Multiply a redistribution matrix by an effective area, or take one with the area folded in.

        Raises
        ------
        DataError
            If the two have different energy grids, or no photon is counted.
        """
        area = np.ones(rmf.matrix.shape[0])
        if arf is not None:
            if len(arf.area) != len(area):
                raise DataError(
                    f"{arf.name}: expected the {len(area)} energy bins of {rmf.name}; found {len(arf.area)}."
                )
            apart = np.abs(arf.energy - rmf.energy) > SAME_ENERGY * np.maximum(rmf.energy, 1e-2)
            if apart.any():
                row = int(apart.argmax())
                raise DataError(
                    f"{arf.name}: expected the energy bins of {rmf.name}, the edge of row {row} at "
                    f"{rmf.energy[row]:g} keV; found {arf.energy[row]:g} keV."
                )
            area = np.asarray(arf.area, float)
        return cls.from_area(rmf, area)

    @classmethod
    def from_area(cls, rmf: Rmf, area: Floats) -> "Response":
        """Multiply a redistribution matrix by an area in each of its bins of energy [cm^2]."""
        used = np.flatnonzero(area * np.asarray(abs(rmf.matrix).sum(axis=1)).ravel())
        if not used.size:
            raise DataError(f"{rmf.name}: expected a response to photons of some energy; found one to none.")
        return cls(rmf, area, slice(int(used[0]), int(used[-1]) + 1))

    def __repr__(self):
        low, high = self.energy[[0, -1]]
        return f"Response({low:.3g} to {high:.3g} keV in {len(self.energy) - 1} bins, {len(self.channels)} channels)"

    @property
    def energy(self) -> Floats:
        """Edges of the bins of photon energy that are counted [keV], (num_energies + 1,)."""
        return self.rmf.energy[self.rows.start : self.rows.stop + 1]

    @property
    def matrix(self) -> sparse.csr_matrix:
        """Area times redistribution [cm^2], sparse (num_energies, num_channels); worked out at every call."""
        return sparse.csr_matrix(sparse.diags(self.area[self.rows]) @ self.rmf.matrix[self.rows])

    @property
    def channels(self) -> NDArray[np.int64]:
        """Numbers of the channels, (num_channels,)."""
        return self.rmf.channels

    @property
    def e_min(self) -> Floats:
        """Lower nominal energy of the channels [keV], (num_channels,)."""
        return self.rmf.e_min

    @property
    def e_max(self) -> Floats:
        """Upper nominal energy of the channels [keV], (num_channels,)."""
        return self.rmf.e_max

    def fold(self, photons: ArrayLike) -> Floats:
        """Return the counts of a spectrum, per unit of exposure.

        Parameters
        ----------
        photons : (..., num_energies)
            Photons in each energy bin [1/cm^2/s].

        Returns
        -------
        (..., num_channels)
            [counts/s].
        """
        incident = np.asarray(photons, float) * self.area[self.rows]
        flat = incident.reshape(-1, incident.shape[-1]) @ self.rmf.matrix[self.rows]
        return np.asarray(flat).reshape(*incident.shape[:-1], -1)

    def grouped(self, groups: ArrayLike) -> Floats:
        """Area times redistribution, summed over the channels of each group.

        Parameters
        ----------
        groups : (num_channels,)
            Number of each channel's group, from 0; -1 for a channel that is not used.

        Returns
        -------
        (num_energies, num_groups)
            [cm^2].
        """
        groups = np.asarray(groups)
        used = np.flatnonzero(groups >= 0)
        shape = (len(groups), int(groups.max(initial=-1)) + 1)
        members = sparse.csr_matrix((np.ones(len(used)), (used, groups[used])), shape=shape)
        return self.area[self.rows, None] * (self.rmf.matrix[self.rows] @ members).toarray()
