"""Supernovae with correlated errors: SALT or SiFTO parameters and covariance matrices in alpha and beta."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.containers import Sample, selected_rows, warnings_of
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.validation import DataError, frozen_array

# Blocks with the coefficients 1, alpha^2, beta^2, 2 alpha, -2 beta, -2 alpha beta.
BLOCKS = ("v0", "va", "vb", "v0a", "v0b", "vab")
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # indices in (m_b, x1, c) of the covariance in each block


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class CorrelatedSupernovae(Sample):
    """Type Ia supernovae whose standardised magnitudes have a dense covariance that depends on alpha and beta.

    The covariance of the N magnitudes is

        C = D(alpha, beta) + v0 + alpha^2 va + beta^2 vb + 2 alpha v0a - 2 beta v0b - 2 alpha beta vab

    with a diagonal matrix D and six (N, N) matrices, the blocks. Build the container with `from_supernovae` or
    `hbm_jax.data.read_correlated_supernovae`; the constructor does not validate. Registered as a pytree.

    Attributes
    ----------
    sne : Supernovae
        Redshifts, (m_b, x1, c) and host masses. D is the sum of the variance from ``sne.covariance``, which depends on
        alpha and beta, unless the blocks include it, and of ``sne.variance_*``. ``x1`` is the quantity that alpha
        multiplies: x1 of SALT, or s - 1 of SiFTO.
    blocks : (6, N, N)
        v0, va, vb, v0a, v0b, vab.
    blocks_hold_errors : bool
        True: the blocks include the errors of the light-curve fits (``sne.covariance``), as those of JLA do.
    """

    sne: Supernovae
    blocks: NDArray[np.float64]
    blocks_hold_errors: bool = field(default=False, metadata={"static": True})

    @classmethod
    def from_supernovae(
        cls, sne: Supernovae, blocks: Mapping[str, ArrayLike] | ArrayLike, *, blocks_hold_errors: bool = False
    ) -> "CorrelatedSupernovae":
        """Validate the blocks and build the container.

        Parameters
        ----------
        sne : Supernovae
            N supernovae.
        blocks : mapping of str to (N, N), or (6, N, N)
            Mapping from the names of the blocks, where zero blocks may be omitted; or an array in the order of
            ``BLOCKS``: v0, va, vb, v0a, v0b, vab.
        blocks_hold_errors : bool
            True: the blocks include the errors of the light-curve fits.

        Raises
        ------
        DataError
            For an unknown block, a wrong shape, numbers that are not finite, or a block that is not symmetric.
        """
        num = len(sne)
        if isinstance(blocks, Mapping):
            for name in blocks:
                if name not in BLOCKS:
                    raise DataError(f"blocks: expected names among {', '.join(BLOCKS)}; found {name!r}.")
            blocks = np.array([blocks.get(name, np.zeros((num, num))) for name in BLOCKS])
        array = np.array(blocks, dtype=np.float64)
        if array.shape != (6, num, num):
            raise DataError(f"blocks: expected shape (6, {num}, {num}) for {num} supernovae; found {array.shape}.")
        for name, block in zip(BLOCKS, array, strict=True):
            if not np.isfinite(block).all():
                raise DataError(f"block {name}: expected finite numbers; found NaN or infinity.")
            asymmetry = np.abs(block - block.T).max()
            if asymmetry > 1e-6 * max(np.abs(block).max(), 1e-12):
                raise DataError(
                    f"block {name}: expected a symmetric matrix; found entries that differ by {asymmetry:.3g}."
                )
        array = 0.5 * (array + array.swapaxes(1, 2))
        return cls(sne, frozen_array(array), bool(blocks_hold_errors))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> "CorrelatedSupernovae":
        """Build the container from the columns of `Supernovae` and ``blocks``, ``blocks_hold_errors``."""
        table = {name: value for name, value in columns.items() if name not in ("blocks", "blocks_hold_errors")}
        if "blocks" not in columns:
            raise DataError("blocks: expected the six blocks of the covariance; found none.")
        hold_errors = bool(np.asarray(columns.get("blocks_hold_errors", False)).item())
        return cls.from_supernovae(Supernovae.from_columns(table), columns["blocks"], blocks_hold_errors=hold_errors)

    @property
    def name(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the supernovae."""
        return self.sne.name

    @property
    def survey(self) -> tuple[str, ...]:
        """Survey of each supernova."""
        return self.sne.survey

    @property
    def total_blocks(self) -> NDArray[np.float64]:
        """Blocks including the errors of the light-curve fits, (6, N, N)."""
        if self.blocks_hold_errors:
            return self.blocks
        total = np.array(self.blocks)
        index = np.arange(len(self))
        for block, (i, j) in zip(total, PAIRS, strict=True):
            block[index, index] += self.sne.covariance[:, i, j]
        return total

    def describe(self) -> str:
        """Return a one-paragraph summary: number of objects, surveys and measured quantities."""
        return (
            self.sne.describe()
            + " Errors are correlated between supernovae; their covariance depends on alpha and beta."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each unusual feature of the data."""
        return self.sne.warnings

    def subset(self, rows: ArrayLike) -> "CorrelatedSupernovae":
        """Return the objects selected by a boolean mask or by integer indices."""
        index = selected_rows(rows, len(self), "object")
        blocks = frozen_array(self.blocks[:, index[:, None], index])
        return dataclasses.replace(self, sne=self.sne.subset(index), blocks=blocks)

    def replace_observations(self, m_b: ArrayLike, x1: ArrayLike, c: ArrayLike) -> "CorrelatedSupernovae":
        """Return a copy with other observed values of m_b, x1 and c, (N,) each."""
        return dataclasses.replace(self, sne=self.sne.replace_observations(m_b, x1, c))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage."""
        block_fields = {"blocks": np.array(self.blocks), "blocks_hold_errors": np.array(self.blocks_hold_errors)}
        return self.sne.to_dict() | block_fields

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "CorrelatedSupernovae":
        """Build the container from the output of `to_dict`."""
        container = cls.from_columns({key: value for key, value in stored.items() if key != "warnings"})
        return dataclasses.replace(container, sne=dataclasses.replace(container.sne, warnings=warnings_of(stored)))

    def to_table(self):
        """Return an astropy ``Table`` of the supernovae, with the blocks in its ``meta``."""
        table = self.sne.to_table()
        table.meta["blocks"] = np.array(self.blocks)
        return table


def blocks_from_joint(joint: ArrayLike) -> NDArray[np.float64]:
    """Return the six blocks (6, N, N) of the joint covariance (3N, 3N) of (m_b, x1, c) of N supernovae.

    The joint covariance C_eta is ordered by supernova: m_b, x1, c of the first, then of the second, and so on. With A =
    (1, alpha, -beta) for each supernova, the covariance of the magnitudes is C = A C_eta A^T (Betoule et al. 2014, A&A
    568, A22, eq. 11).

    Raises
    ------
    DataError
        If the matrix is not square, or its size is not a multiple of three.
    """
    joint = np.asarray(joint, dtype=np.float64)
    if joint.ndim != 2 or joint.shape[0] != joint.shape[1] or joint.shape[0] % 3:
        raise DataError(f"joint covariance: expected shape (3N, 3N); found {joint.shape}.")
    parts = [joint[i::3, j::3] for i, j in PAIRS]
    return np.array([0.5 * (part + part.T) for part in parts])
