"""What an instrument makes of photons: effective area, redistribution over channels, and their product."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hbm_jax.data.validation import DataError

Floats = NDArray[np.float64]
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
    """

    energy: Floats = field(repr=False)
    matrix: sparse.csr_matrix = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)
    e_min: Floats = field(repr=False)
    e_max: Floats = field(repr=False)
    name: str = "RMF"


@dataclass(frozen=True, eq=False)
class Response:
    """Counts for each photon per cm^2, in channels: effective area times redistribution.

    Build one with `Response.of` or from files with `hbm_jax.spectra.read_spectrum`.

    Attributes
    ----------
    energy : (num_energies + 1,)
        Edges of the bins of photon energy [keV], bins of no area left out at both ends.
    matrix : sparse (num_energies, num_channels)
        [cm^2].
    channels, e_min, e_max : (num_channels,)
        As in `Rmf`.
    """

    energy: Floats = field(repr=False)
    matrix: sparse.csr_matrix = field(repr=False)
    channels: NDArray[np.int64] = field(repr=False)
    e_min: Floats = field(repr=False)
    e_max: Floats = field(repr=False)

    @classmethod
    def of(cls, rmf: Rmf, arf: Arf | None = None) -> "Response":
        """Multiply a redistribution matrix by an effective area, or take one with the area folded in.

        Raises
        ------
        DataError
            If the two have different energy grids.
        """
        matrix = rmf.matrix
        if arf is not None:
            if len(arf.area) != matrix.shape[0]:
                raise DataError(
                    f"{arf.name}: expected the {matrix.shape[0]} energy bins of {rmf.name}; found {len(arf.area)}."
                )
            apart = np.abs(arf.energy - rmf.energy) > SAME_ENERGY * np.maximum(rmf.energy, 1e-2)
            if apart.any():
                row = int(apart.argmax())
                raise DataError(
                    f"{arf.name}: expected the energy bins of {rmf.name}, the edge of row {row} at "
                    f"{rmf.energy[row]:g} keV; found {arf.energy[row]:g} keV."
                )
            matrix = sparse.diags(arf.area) @ matrix
        matrix = sparse.csr_matrix(matrix)
        matrix.eliminate_zeros()
        used = np.flatnonzero(np.diff(matrix.indptr))
        if not used.size:
            raise DataError(f"{rmf.name}: expected a response to photons of some energy; found one to none.")
        low, high = int(used[0]), int(used[-1]) + 1
        return cls(rmf.energy[low : high + 1], matrix[low:high], rmf.channels, rmf.e_min, rmf.e_max)

    def fold(self, photons: ArrayLike) -> Floats:
        """Counts of a spectrum, per unit of exposure.

        Parameters
        ----------
        photons : (num_energies,)
            Photons in each energy bin [1/cm^2/s].

        Returns
        -------
        (num_channels,)
            [counts/s].
        """
        return np.asarray(photons, float) @ self.matrix
