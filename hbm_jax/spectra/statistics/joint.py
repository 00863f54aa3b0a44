"""One statistic for spectra whose backgrounds ask for different ones: each spectrum keeps the one that suits it."""

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.typing import ArrayLike

from hbm_jax.spectra.statistics.statistic import Statistic


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class JointStatistic:
    """Sum of statistics, each of which has padding where another has data; used in place of a `Statistic`.

    Attributes
    ----------
    counts, used : (..., G)
        Of all.
    parts : tuple of Statistic
        Each of the same shape.
    """

    counts: Any
    used: Any
    parts: tuple[Statistic, ...]

    @classmethod
    def of(cls, parts: tuple[Statistic, ...]) -> "JointStatistic":
        """Join statistics of one shape; no entry may be used by two of them."""
        return cls(
            functools.reduce(operator.add, (part.counts for part in parts)),
            functools.reduce(operator.or_, (part.used for part in parts)),
            parts,
        )

    def __repr__(self) -> str:
        return f"JointStatistic({self.name}, {self.counts.shape})"

    @property
    def name(self) -> str:
        """Names of all parts."""
        return " and ".join(part.name for part in self.parts)

    def log_likelihood(self, expected: ArrayLike) -> jax.Array:
        """As of `Statistic`."""
        return self._total(part.log_likelihood(expected) for part in self.parts)

    def deviance(self, expected: ArrayLike) -> jax.Array:
        """As of `Statistic`."""
        return self._total(part.deviance(expected) for part in self.parts)

    def background_moments(self) -> tuple[Any, Any]:
        """As of `Statistic`."""
        means, variances = zip(*(part.background_moments() for part in self.parts), strict=True)
        return self._total(means), self._total(variances)

    def draw(self, key: jax.Array, expected: ArrayLike) -> "JointStatistic":
        """As of `Statistic`."""
        keys = jax.random.split(key, len(self.parts))
        drawn = tuple(part.draw(one, expected) for part, one in zip(self.parts, keys, strict=True))
        return replace(self, counts=self._total(part.counts for part in drawn), parts=drawn)

    def with_counts(self, counts: ArrayLike) -> "JointStatistic":
        """As of `Statistic`."""
        parts = tuple(part.with_counts(counts) for part in self.parts)
        return replace(self, counts=self._total(part.counts for part in parts), parts=parts)

    @staticmethod
    def _total(values: Any) -> Any:
        return functools.reduce(operator.add, values)


AnyStatistic = Statistic | JointStatistic
