"""Stopping rule of a run: convergence targets and budgets of draws and time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hbm_jax.inference.options import plain, real_number, whole_number

if TYPE_CHECKING:
    import pandas as pd

# Criteria of the verdict, of which the rule uses the first two.
MAX_R_HAT = 1.01  # Vehtari et al. 2021, Bayesian Analysis 16, 667
MIN_ESS = 400.0  # bulk and tail, the same paper
MIN_BFMI = 0.3  # Betancourt 2016, arXiv:1604.00695

MIN_SAMPLES = 1000  # fewest draws per chain of an adaptive run; fewer make noisy figures
# The same where a draw is expensive and the posterior close to normal. The first check is then after so many elements
# (`hbm_jax.inference.compilation.cost`) of the draws of all chains: some ten seconds of a core.
FEWEST_SAMPLES, FIRST_COST = 400, 1e10
# Effective sample sizes at which a run stops, relative to those of the verdict; see `StopRule`.
MARGIN = 1.1
EARLY_MARGIN = 1.5  # the same before `MIN_SAMPLES` draws, where the estimates are noisier and the checks more
GROWTH = (1.1, 2.0)  # smallest and largest ratio of the numbers of draws at successive checks


@dataclass(frozen=True)
class StopRule:
    """Stopping rule of a run.

    A run is checked several times, with estimates of the effective sample size (error 15 % at 300), so that it may stop
    too early. The target is therefore 10 % above the size that the verdict requires. The worst case are chains that are
    just too short at the first check. In simulations of them with known autocorrelation (``benchmarks/stopping.py``)
    the true size is below 80 % of the required one in 0.5 % of the runs, and never below 75 %; without the margin it is
    below 80 % in 2 to 5 %. The margin makes such runs 6 % longer. Means are as close to the truth as those of 400
    independent draws.

    Where a draw is expensive and the posterior close to normal, a run is checked from 400 draws on. Before 1000 draws
    the target is then 50 % above the size that the verdict requires. In the same simulations the true size of runs that
    are just too short at the first check is never below 80 % of the required one, and of others in at most 0.5 % of the
    runs; with tails of slowly varying width, which posteriors close to normal do not have, in 1.8 %.

    Attributes
    ----------
    num_samples : int or None
        Exact number of draws per chain. None: adaptive, until convergence.
    until : float, mapping of str to float, or None
        Effective sample size to reach, bulk and tail: of every parameter, or of the named ones. None: that of the
        verdict and 10 % more. R-hat must meet the criterion of the verdict too.
    max_num_samples : int
        Largest number of draws per chain of an adaptive run.
    max_seconds : float or None
        Time budget in seconds of each call of `sample` or `resume`.
    """

    num_samples: int | None = None
    until: float | Mapping[str, float] | None = None
    max_num_samples: int = 20_000
    max_seconds: float | None = None

    def __post_init__(self):
        for name in ("num_samples", "max_num_samples"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        object.__setattr__(self, "max_seconds", real_number("max_seconds", self.max_seconds))
        until = {name: plain(v) for name, v in self.until.items()} if isinstance(self.until, Mapping) else self.until
        object.__setattr__(self, "until", plain(until))
        for name, minimum in (("num_samples", 4), ("max_num_samples", 4), ("max_seconds", 0)):
            value = getattr(self, name)
            if value is not None and not value >= minimum:
                raise ValueError(f"sample: expected {name} >= {minimum}; found {value!r}.")
        targets = self.until.values() if isinstance(self.until, Mapping) else [self.until]
        if self.until is not None and not (targets and all(_is_positive(target) for target in targets)):
            raise ValueError(
                "sample: expected until to be an effective sample size above 0, or a mapping of parameters to such "
                f"sizes, as in {{'Om0': 1000}}; found {self.until!r}."
            )
        if self.num_samples is not None and self.until is not None:
            raise ValueError(
                f"sample: expected either num_samples or until; found both, {self.num_samples} and {self.until!r}."
            )

    def at_most(self, max_draws: int | None) -> "StopRule":
        """Return the rule whose adaptive runs have at most ``max_draws`` draws per chain, if that is not None."""
        if max_draws is None or self.max_num_samples <= max_draws:
            return self
        return replace(self, max_num_samples=max_draws)

    @property
    def largest_num_samples(self) -> int:
        """Largest number of draws per chain."""
        return self.num_samples or self.max_num_samples

    @property
    def adaptive(self) -> bool:
        """True if the run stops on convergence."""
        return self.num_samples is None

    def check_names(self, names: Sequence[str]):
        """Raise ValueError if ``until`` names a parameter that the program does not have."""
        if not isinstance(self.until, Mapping):
            return
        for name in self.until:
            if name.split("[")[0] not in names:
                raise ValueError(f"sample: until names {name!r}; expected one of {', '.join(names)}.")

    def first_check(self, cost: float, nearly_normal: bool) -> int:
        """Return the number of draws per chain at the first check.

        ``cost`` is the number of elements that a draw of all chains computes, see `hbm_jax.inference.compilation.cost`.
        It is a count, so that the draws of a seed do not depend on the speed of the machine.
        """
        if self.until is not None or not nearly_normal:
            return MIN_SAMPLES
        return int(np.clip(FIRST_COST / max(cost, 1.0), FEWEST_SAMPLES, MIN_SAMPLES))

    def shortfall(self, table: "pd.DataFrame", num_draws: int = MIN_SAMPLES) -> float:
        """Return the required number of draws relative to the current one; at most 1 if all targets are reached.

        Parameters
        ----------
        table : pandas.DataFrame
            Diagnostics from `hbm_jax.inference.verdict.diagnose`.
        num_draws : int
            Number of draws per chain.
        """
        import pandas as pd  # here, because the help of the command line reads the fields of this class

        if isinstance(self.until, Mapping):
            targets = {label: self.until.get(label, self.until.get(label.split("[")[0])) for label in table.index}
            required = pd.Series({label: value for label, value in targets.items() if value is not None}, dtype=float)
        else:
            margin = EARLY_MARGIN if num_draws < min(MIN_SAMPLES, self.largest_num_samples) else MARGIN
            required = pd.Series(margin * MIN_ESS if self.until is None else self.until, index=table.index)
        rows = table.loc[required.index]
        ess = rows[["ess_bulk", "ess_tail"]].min(axis=1)
        factor = float((required / ess.clip(lower=1.0)).max(skipna=True)) if len(rows) else 1.0
        factor = 1.0 if np.isnan(factor) else factor  # no parameter varies
        converged = not (rows["r_hat"] >= MAX_R_HAT).any()
        return factor if converged else max(factor, GROWTH[0])

    def next_check(self, num_draws: int, shortfall: float) -> int:
        """Return the number of draws per chain at the next check."""
        following = int(np.ceil(num_draws * np.clip(1.1 * shortfall, *GROWTH)))
        return min(following, MIN_SAMPLES) if num_draws < MIN_SAMPLES else following

    def remaining_draws(self, num_draws: int, smallest_ess: float, next_check: int) -> float:
        """Return the estimated number of draws per chain until the run stops."""
        required = max(num_draws * MARGIN * MIN_ESS / max(smallest_ess, 1.0), next_check)
        return max(min(required if self.adaptive else np.inf, self.largest_num_samples) - num_draws, 0)

    @property
    def reason_converged(self) -> str:
        """Reason for stopping if the targets are reached."""
        if self.until is None:
            return "stopped: R-hat and effective sample sizes meet the criteria"
        if isinstance(self.until, Mapping):
            targets = ", ".join(f"{value:g} for {name}" for name, value in self.until.items())
            return f"stopped: the requested effective sample sizes are reached ({targets})"
        return f"stopped: the requested effective sample size is reached ({self.until:g})"

    @property
    def reason_exhausted(self) -> str:
        """Reason for stopping if the largest number of draws is reached."""
        if not self.adaptive:
            return "stopped: all requested draws are done"
        return f"stopped: the budget of {self.max_num_samples} draws per chain is spent"

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return asdict(self) | {"until": dict(self.until) if isinstance(self.until, Mapping) else self.until}


def _is_positive(value) -> bool:
    """Return whether a value is a number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
