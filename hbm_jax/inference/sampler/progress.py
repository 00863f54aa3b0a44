"""Progress of a running fit, shown in one place: a line on a terminal, logging, or a function of the caller."""

import logging
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from hbm_jax.inference.sampler.chains import Draws
from hbm_jax.inference.sampler.ensemble.statistics import statistics

LOGGER = logging.getLogger("hbm_jax")

Progress = bool | Callable[[str], object]
"""True to show progress, or a function that is called with each text, such as that of a progress bar."""

MAX_WATCHED = 40  # parameters whose diagnostics are shown; the verdict uses all
MAX_PROGRESS_FRACTION = 0.02  # largest fraction of the time spent on the diagnostics of the line
FEWEST_SHOWN = 20  # draws per chain, for diagnostics


class ProgressLine:
    """Progress line on standard error: rewritten in place on a terminal, a new line every few seconds in a log file.

    If logging is set up for messages of the logger ``hbm_jax`` at the level INFO, these lines go there in place of
    standard error, also on a terminal.

    Parameters
    ----------
    progress : bool or callable
        Whether to write anything; or a function that is called with every text, in place of writing.
    every : float
        Seconds between lines if the output is not a terminal.
    """

    def __init__(self, progress: Progress, every: float = 10.0):
        self._function = progress if callable(progress) else None
        enabled = bool(progress) and self._function is None
        self._in_log, self._every = enabled and (_is_logged() or not sys.stderr.isatty()), every
        self._shown = time.monotonic()
        disable = not enabled or self._in_log
        self._bar = tqdm(bar_format="{desc}", file=sys.stderr, disable=disable, mininterval=0.0, dynamic_ncols=True)

    def show(self, text: str):
        """Show a text."""
        if self._function is not None:
            self._function(text)
        if self._in_log and time.monotonic() - self._shown >= self._every:
            self._write(text)
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(1)

    def _write(self, text: str):
        """Write a line to a log."""
        if _is_logged():
            LOGGER.info(text)
        else:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        self._shown = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()  # an error message then starts on a new line; no effect if already closed

    def close(self, text: str):
        """Show a last text, which stays on the terminal."""
        if self._function is not None:
            self._function(text)
        if self._in_log:
            self._write(text)
        self._bar.set_description_str(text, refresh=False)
        self._bar.close()


def _is_logged() -> bool:
    """Return True if logging has a handler for messages of this package and shows those of level INFO."""
    return LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers()


class DrawingLine:
    """Progress line of draws, with their convergence, which takes at most `MAX_PROGRESS_FRACTION` of the time.

    Parameters
    ----------
    line : ProgressLine
        Line to write to.
    labels : sequence of str
        Names of the elements of the position.
    """

    def __init__(self, line: ProgressLine, labels: Sequence[str]):
        self._line, self._cost, self._shown = line, 0.0, 0.0
        # Sites with the fewest elements first: population parameters are usually the slowest to converge.
        names = [label.split("[")[0] for label in labels]
        self._watched = np.argsort([names.count(name) for name in names], kind="stable")[:MAX_WATCHED]
        self._labels = np.asarray(labels)[self._watched]

    def show(
        self, draws: Draws, num_superchains: int, draws_per_second: float, seconds_left: Callable[[float], float]
    ) -> None:
        """Show the draws so far, unless this is too soon.

        ``seconds_left`` returns the remaining time, given the smallest effective sample size of the watched parameters.
        """
        now = time.perf_counter()
        if draws.num_draws < FEWEST_SHOWN or now - self._shown < self._cost / MAX_PROGRESS_FRACTION:
            return
        position = draws.raw("position")[..., self._watched]
        with np.errstate(divide="ignore", invalid="ignore"):  # chains may be stuck
            r_hat, ess, *_ = statistics(position, num_superchains).T
        r_hat = np.nan_to_num(r_hat, nan=1.0)  # of a single chain
        self._line.show(
            f"{len(position)} x {draws.num_draws} draws, {rate(draws_per_second)}, "
            f"{int(draws.raw('diverging').sum())} divergences, "
            f"worst R-hat {r_hat.max():.3f} ({self._labels[r_hat.argmax()]}), smallest ESS {ess.min():.0f} "
            f"({self._labels[ess.argmin()]}), {duration(seconds_left(ess.min()))} left"
        )
        self._shown = time.perf_counter()
        self._cost = self._shown - now


def rate(draws_per_second: float) -> str:
    """Format the rate of draws of all chains."""
    return f"{draws_per_second:,.0f} draws/s" if draws_per_second >= 10 else f"{draws_per_second:.2g} draws/s"


def duration(seconds: float) -> str:
    """Format a duration in s, min or h."""
    for limit, unit, length in ((90, "s", 1), (5400, "min", 60)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
