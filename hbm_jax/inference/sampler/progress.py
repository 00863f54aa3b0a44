"""Progress of a running fit, shown in one place: a line on a terminal, logging, or a function of the caller."""

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

LOGGER = logging.getLogger("hbm_jax")

Progress = bool | Callable[[str], object]
"""Whether to show progress, or a function that is called with each text, such as that of a progress bar."""


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
