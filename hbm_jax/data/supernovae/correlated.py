"""The container of supernovae whose errors are correlated with one another: SALT or SiFTO parameters and six blocks."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import ArrayLike, NDArray

from hbm_jax.data.columns import warnings_of
from hbm_jax.data.supernovae.supernovae import Supernovae
from hbm_jax.validation import DataError, frozen_array

__all__ = ["BLOCKS", "CorrelatedSupernovae", "blocks_from_joint"]

# In the order of their coefficients 1, alpha^2, beta^2, 2 alpha, -2 beta, -2 alpha beta.
BLOCKS = ("v0", "va", "vb", "v0a", "v0b", "vab")


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class CorrelatedSupernovae:
    """Type Ia supernovae whose standardised magnitudes have a dense covariance that depends on alpha and beta.

    It is

        C = D(alpha, beta) + v0 + alpha^2 va + beta^2 vb + 2 alpha v0a - 2 beta v0b - 2 alpha beta vab.

    Build one with `from_supernovae` or `hbm_jax.data.read_correlated_supernovae`; the constructor itself checks
    nothing. A pytree; N is the number of supernovae.

    Attributes
    ----------
    sne : Supernovae
        Redshifts, (m_b, x1, c) and host masses. Their ``covariance`` is the part of D that depends on alpha and beta,
        the ``variance_*`` what does not. ``x1`` is whatever alpha multiplies: SALT's x1, or SiFTO's s - 1.
    blocks : (6, N, N)
        v0, va, vb, v0a, v0b, vab.
    blocks_hold_errors : bool
        Whether the errors of the light-curve fits (``sne.covariance``) are in the blocks already, as in JLA's.
    """

    sne: Supernovae
    blocks: NDArray[np.float64]
    blocks_hold_errors: bool = field(default=False, metadata={"static": True})

    @classmethod
    def from_supernovae(
        cls, sne: Supernovae, blocks: Mapping[str, ArrayLike] | ArrayLike, *, blocks_hold_errors: bool = False
    ) -> "CorrelatedSupernovae":
        """Check the blocks and build the container.

        Parameters
        ----------
        sne : Supernovae
            N supernovae.
        blocks : mapping of str to (N, N), or (6, N, N)
            By name, those that are zero may be absent; or in the order of ``BLOCKS``: v0, va, vb, v0a, v0b, vab.
        blocks_hold_errors : bool
            Whether the errors of the light-curve fits are in them.

        Raises
        ------
        DataError
            For an unknown block, another shape, numbers that are not finite, or a block that is not symmetric.
        """
        num = len(sne)
        if isinstance(blocks, Mapping):
            for name in blocks:
                if name not in BLOCKS:
                    raise DataError(f"blocks: expected some of {', '.join(BLOCKS)}; found {name!r}.")
            blocks = np.array([blocks.get(name, np.zeros((num, num))) for name in BLOCKS])
        array = np.array(blocks, dtype=np.float64)
        if array.shape != (6, num, num):
            raise DataError(f"blocks: expected shape (6, {num}, {num}) for {num} supernovae; found {array.shape}.")
        for name, block in zip(BLOCKS, array, strict=True):
            if not np.isfinite(block).all():
                raise DataError(f"block {name}: expected finite numbers; found others.")
            lean = np.abs(block - block.T).max()
            if lean > 1e-6 * max(np.abs(block).max(), 1e-12):
                raise DataError(f"block {name}: expected a symmetric matrix; found entries that differ by {lean:.3g}.")
        array = 0.5 * (array + array.swapaxes(1, 2))
        return cls(sne, frozen_array(array), bool(blocks_hold_errors))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> "CorrelatedSupernovae":
        """Build the container from the columns of `Supernovae` with ``blocks`` and ``blocks_hold_errors``."""
        own = {name: value for name, value in columns.items() if name not in ("blocks", "blocks_hold_errors")}
        if "blocks" not in columns:
            raise DataError("blocks: expected the six blocks of the covariance; found none.")
        hold = bool(np.asarray(columns.get("blocks_hold_errors", False)).item())
        return cls.from_supernovae(Supernovae.from_columns(own), columns["blocks"], blocks_hold_errors=hold)

    @property
    def name(self) -> tuple[str, ...]:
        """Names of the supernovae."""
        return self.sne.name

    @property
    def survey(self) -> tuple[str, ...]:
        """Survey of each supernova."""
        return self.sne.survey

    def __len__(self) -> int:
        return len(self.sne)

    def __repr__(self) -> str:
        return f"CorrelatedSupernovae({len(self)} objects)"

    @property
    def total_blocks(self) -> NDArray[np.float64]:
        """Blocks with the errors of the light-curve fits, (6, N, N)."""
        if self.blocks_hold_errors:
            return self.blocks
        m, x, c = range(3)
        pairs = ((m, m), (x, x), (c, c), (m, x), (m, c), (x, c))
        total = np.array(self.blocks)
        index = np.arange(len(self))
        for block, (i, j) in zip(total, pairs, strict=True):
            block[index, index] += self.sne.covariance[:, i, j]
        return total

    def describe(self) -> str:
        """Return one paragraph: how many objects, from where, and what is known of them."""
        return self.sne.describe() + " Their errors are correlated with one another, by six blocks in alpha and beta."

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unusual in the data, a sentence each."""
        return self.sne.warnings

    def subset(self, rows: ArrayLike) -> "CorrelatedSupernovae":
        """Return the objects picked by a boolean mask or by integer indices."""
        index = np.asarray(rows)
        picked = self.sne.subset(index)
        index = np.flatnonzero(index) if index.dtype.kind == "b" else index
        return dataclasses.replace(self, sne=picked, blocks=frozen_array(self.blocks[:, index[:, None], index]))

    def replace_observations(self, m_b: ArrayLike, x1: ArrayLike, c: ArrayLike) -> "CorrelatedSupernovae":
        """Return a copy with other observed values, (N,) each."""
        return dataclasses.replace(self, sne=self.sne.replace_observations(m_b, x1, c))

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return plain arrays by field name, for storage."""
        more = {"blocks": np.array(self.blocks), "blocks_hold_errors": np.array(self.blocks_hold_errors)}
        return self.sne.to_dict() | more

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "CorrelatedSupernovae":
        """Build the container from what `to_dict` returned."""
        made = cls.from_columns({key: value for key, value in stored.items() if key != "warnings"})
        return dataclasses.replace(made, sne=dataclasses.replace(made.sne, warnings=warnings_of(stored)))

    def to_table(self):
        """Return an astropy ``Table`` of the supernovae; the blocks are in its ``meta``."""
        table = self.sne.to_table()
        table.meta["blocks"] = np.array(self.blocks)
        return table


def blocks_from_joint(joint: ArrayLike) -> NDArray[np.float64]:
    """Return the six blocks (6, N, N) of a joint covariance (3N, 3N) of (m_b, x1, c) of one supernova after another.

    Betoule et al. 2014, A&A 568, A22, eq. 11: C = A C_eta A^T with A = (1, alpha, -beta) for each supernova.

    Raises
    ------
    DataError
        If the matrix is not square, or its size no multiple of three.
    """
    joint = np.asarray(joint, dtype=np.float64)
    if joint.ndim != 2 or joint.shape[0] != joint.shape[1] or joint.shape[0] % 3:
        raise DataError(f"joint covariance: expected shape (3N, 3N); found {joint.shape}.")
    m, x, c = range(3)

    def part(i, j):
        found = joint[i::3, j::3]
        return 0.5 * (found + found.T)

    return np.array([part(m, m), part(x, x), part(c, c), part(m, x), part(m, c), part(x, c)])
