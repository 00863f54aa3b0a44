"""When a run ends: what is good enough, and how much it may cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from hbm_jax.inference.verdict import MAX_R_HAT, MIN_ESS

MIN_SAMPLES = 1000  # draws a chain before stopping is considered; fewer make poor pictures
GROWTH = (1.1, 2.0)  # draws between one check and the next, relative to those there are


@dataclass(frozen=True)
class StopRule:
    """When to stop drawing.

    Attributes
    ----------
    num_samples : int or None
        Exactly so many draws a chain.
    until : float, mapping of str to float, or None
        Effective sample size to reach, bulk and tail: of every parameter, or of those named. None is that of a usable
        verdict. R-hat must be good too.
    max_num_samples : int
        Budget of draws a chain.
    max_seconds : float or None
        Budget of time of each call of `sample` or `resume`.
    """

    num_samples: int | None = None
    until: float | Mapping[str, float] | None = None
    max_num_samples: int = 20_000
    max_seconds: float | None = None

    def __post_init__(self):
        for name in ("num_samples", "max_num_samples"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        object.__setattr__(self, "max_seconds", real_number("max_seconds", self.max_seconds))
        until = {name: _plain(v) for name, v in self.until.items()} if isinstance(self.until, Mapping) else self.until
        object.__setattr__(self, "until", _plain(until))
        for name, least in (("num_samples", 4), ("max_num_samples", 4), ("max_seconds", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"sample: expected {name} >= {least}; found {value!r}.")
        targets = self.until.values() if isinstance(self.until, Mapping) else [self.until]
        if self.until is not None and not (targets and all(_is_positive(target) for target in targets)):
            raise ValueError(
                "sample: expected until to be an effective sample size above 0, or one for each of some parameters, as "
                f"in {{'Om0': 1000}}; found {self.until!r}."
            )
        if self.num_samples is not None and self.until is not None:
            raise ValueError(
                f"sample: expected either num_samples or until; found both, {self.num_samples} and {self.until!r}."
            )

    @property
    def goal(self) -> int:
        """Most draws a chain."""
        return self.num_samples or self.max_num_samples

    @property
    def adaptive(self) -> bool:
        """Whether the draws themselves decide when to stop."""
        return self.num_samples is None

    def check_names(self, names: Sequence[str]):
        """Refuse targets for parameters that the program does not have."""
        if not isinstance(self.until, Mapping):
            return
        for name in self.until:
            if name.split("[")[0] not in names:
                raise ValueError(f"sample: until names {name!r}; expected one of {', '.join(names)}.")

    def shortfall(self, table: pd.DataFrame) -> float:
        """How many times the draws there are would be needed; at most 1 once everything is reached.

        Parameters
        ----------
        table : DataFrame
            As from `hbm_jax.inference.verdict.diagnose`.
        """
        named = self.until if isinstance(self.until, Mapping) else None
        target = pd.Series(self.until if np.isscalar(self.until) else MIN_ESS, index=table.index)
        if named is not None:
            wanted = {label: named.get(label, named.get(label.split("[")[0])) for label in table.index}
            target = pd.Series({label: value for label, value in wanted.items() if value is not None}, dtype=float)
        rows = table.loc[target.index]
        ess = rows[["ess_bulk", "ess_tail"]].min(axis=1)
        factor = float((target / ess.clip(lower=1.0)).max(skipna=True)) if len(rows) else 1.0
        mixed = not (rows["r_hat"] >= MAX_R_HAT).any()
        factor = 1.0 if np.isnan(factor) else factor  # nothing varies
        return factor if mixed else max(factor, GROWTH[0])

    def next_check(self, num_draws: int, shortfall: float) -> int:
        """Draws a chain after which to look again."""
        return int(np.ceil(num_draws * np.clip(1.1 * shortfall, *GROWTH)))

    @property
    def reached(self) -> str:
        """What to say when the draws are good."""
        if self.until is None:
            return "stopped: R-hat and effective sample sizes are good"
        if isinstance(self.until, Mapping):
            targets = ", ".join(f"{value:g} for {name}" for name, value in self.until.items())
            return f"stopped: the effective sample sizes asked for are reached ({targets})"
        return f"stopped: the effective sample size asked for is reached ({self.until:g})"

    @property
    def spent(self) -> str:
        """What to say when the draws run out."""
        if not self.adaptive:
            return "stopped: all the draws asked for are done"
        return f"stopped: the budget of {self.max_num_samples} draws a chain is spent"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"until": dict(self.until) if isinstance(self.until, Mapping) else self.until}


def whole_number(name: str, value: Any) -> int | None:
    """Return an option of `sample` as Python's int, which JSON can hold; None stays.

    Raises
    ------
    ValueError
        If it is no whole number.
    """
    value = _plain(value)
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if whole and not isinstance(value, bool):
        return int(value)
    raise ValueError(f"sample: expected {name} to be a whole number; found {value!r}.")


def real_number(name: str, value: Any) -> float | None:
    """Return an option of `sample` as a plain number, which JSON can hold; None stays.

    Raises
    ------
    ValueError
        If it is no number.
    """
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"sample: expected {name} to be a number; found {value!r}.")


def _plain(value):
    """Return a scalar of NumPy or JAX as Python's own."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value


def _is_positive(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
