"""Joint statistic of spectra that need different statistics because their backgrounds differ."""

import functools
import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.typing import ArrayLike

from hbm_jax.spectra.statistics.statistic import Statistic


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class JointStatistic:
    """Sum of statistics with the interface of `Statistic`; each part is padding where another part has data.

    Attributes
    ----------
    counts, used : (..., G)
        Counts of all parts; False where all parts are padding.
    parts : tuple of Statistic
        Statistics, all of shape (..., G).
    """

    counts: Any
    used: Any
    parts: tuple[Statistic, ...]

    @classmethod
    def of(cls, parts: tuple[Statistic, ...]) -> "JointStatistic":
        """Join statistics of the same shape; each entry may be used by only one of them."""
        return cls(
            functools.reduce(operator.add, (part.counts for part in parts)),
            functools.reduce(operator.or_, (part.used for part in parts)),
            parts,
        )

    def __repr__(self) -> str:
        return f"JointStatistic({self.name}, {self.counts.shape})"

    @property
    def name(self) -> str:
        """Names of the parts, joined by "and"."""
        return " and ".join(dict.fromkeys(part.name for part in self.parts))

    def log_likelihood(self, expected: ArrayLike) -> jax.Array:
        """Return the log likelihood, as `Statistic.log_likelihood`."""
        return self._total(part.log_likelihood(expected) for part in self.parts)

    def deviance(self, expected: ArrayLike) -> jax.Array:
        """Return the deviance, as `Statistic.deviance`."""
        return self._total(part.deviance(expected) for part in self.parts)

    def background_moments(self) -> tuple[Any, Any]:
        """Return mean and variance of the background, as `Statistic.background_moments`."""
        means, variances = zip(*(part.background_moments() for part in self.parts), strict=True)
        return self._total(means), self._total(variances)

    def draw(self, key: jax.Array, expected: ArrayLike) -> "JointStatistic":
        """Draw data, as `Statistic.draw`."""
        keys = jax.random.split(key, len(self.parts))
        drawn = tuple(part.draw(part_key, expected) for part, part_key in zip(self.parts, keys, strict=True))
        return replace(self, counts=self._total(part.counts for part in drawn), parts=drawn)

    def draw_counts(self, key: jax.Array, expected: ArrayLike) -> jax.Array:
        """Draw counts of the source region, as `Statistic.draw_counts`."""
        keys = jax.random.split(key, len(self.parts))
        drawn = (part.draw_counts(part_key, expected) for part, part_key in zip(self.parts, keys, strict=True))
        return self._total(drawn)

    def displacement_by_profile(self) -> float:
        """Return the displacement by all parts, as `Statistic.displacement_by_profile`."""
        return math.hypot(*(part.displacement_by_profile() for part in self.parts))

    def with_counts(self, counts: ArrayLike) -> "JointStatistic":
        """Return the statistic of other counts, as `Statistic.with_counts`."""
        parts = tuple(part.with_counts(counts) for part in self.parts)
        return replace(self, counts=self._total(part.counts for part in parts), parts=parts)

    @staticmethod
    def _total(values: Any) -> Any:
        """Return the sum over the parts."""
        return functools.reduce(operator.add, values)


AnyStatistic = Statistic | JointStatistic
