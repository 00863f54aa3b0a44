"""Results of contestants, and the numbers computed from them."""

import math
from dataclasses import dataclass, field

import numpy as np

MIN_ESS = 50  # of the slowest parameter, for a speed to mean something
MAX_R_HAT = 1.05
WANTED = 400  # effective draws of the slowest parameter, that make a verdict good


@dataclass
class Result:
    """Seconds of each phase, draws (chain, draw) by parameter, gradients while sampling, divergences, a remark."""

    seconds: dict[str, float]
    draws: dict[str, np.ndarray]
    gradients: int
    divergences: int
    note: str = ""
    verdict_seconds: float = math.nan  # of a fit that ends by itself, from its call to its verdict
    memory: float = math.nan  # bytes, of the process at its largest
    failure: str = ""  # why it has no speed of its own


@dataclass
class Row:
    """A result in numbers.

    Attributes
    ----------
    ess, slowest, r_hat : float, str, float
        Smallest bulk or tail effective sample size and its parameter; largest R-hat.
    means : dict of str to (float, float)
        Posterior mean and its Monte Carlo standard error, by parameter.
    """

    system: str
    contestant: str
    seed: int
    ess: float = math.nan
    slowest: str = ""
    r_hat: float = math.nan
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: int = 0
    divergences: int = 0
    memory: float = math.nan
    verdict_seconds: float = math.nan
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""
    failure: str = ""

    @classmethod
    def of(cls, system: str, contestant: str, seed: int, result: Result) -> "Row":
        """Diagnose a result."""
        if result.failure:
            return cls(system, contestant, seed, failure=result.failure)
        from arviz_stats.base import array_stats

        axes = {"chain_axis": 0, "draw_axis": 1}
        sizes, means, r_hat = {}, {}, 0.0
        for name, draws in result.draws.items():
            bulk = float(array_stats.ess(draws, method="bulk", **axes))
            tail = float(array_stats.ess(draws, method="tail", prob=(0.05, 0.95), **axes))
            sizes[name] = min(bulk, tail)
            of_mean = float(array_stats.ess(draws, method="mean", **axes))
            means[name] = float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(max(of_mean, 1.0)))
            r_hat = max(r_hat, float(array_stats.rhat(draws, method="rank", **axes)))
        slowest = min(sizes, key=sizes.__getitem__)
        return cls(
            system, contestant, seed, sizes[slowest], slowest, r_hat, result.seconds, result.gradients,
            result.divergences, result.memory, result.verdict_seconds, means, result.note,
        )  # fmt: skip

    @property
    def converged(self) -> bool:
        """True if the draws have converged, so that the speed is meaningful."""
        return not self.failure and self.r_hat < MAX_R_HAT and self.ess >= MIN_ESS

    @property
    def rate(self) -> float:
        """Effective draws of the slowest parameter a second of sampling."""
        return self.ess / self.seconds["sampling"]

    @property
    def per_gradient(self) -> float:
        """Effective draws of the slowest parameter a gradient, while sampling."""
        return self.ess / self.gradients if self.gradients else math.nan

    @property
    def to_verdict(self) -> float:
        """Seconds to 400 effective draws of the slowest parameter, compiling and warming up included."""
        return self.seconds["compile"] + self.seconds["warmup"] + WANTED / self.rate
