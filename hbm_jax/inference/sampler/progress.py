"""Progress line of a running fit."""

import sys
import time

from tqdm import tqdm


class ProgressLine:
    """Progress line on standard error: rewritten in place on a terminal, a new line every few seconds in a log file.

    Parameters
    ----------
    enabled : bool
        Whether to write anything.
    every : float
        Seconds between lines if the output is not a terminal.
    """

    def __init__(self, enabled: bool, every: float = 10.0):
        self._in_log, self._every = enabled and not sys.stderr.isatty(), every
        self._shown = time.monotonic()
        disable = not enabled or self._in_log
        self._bar = tqdm(bar_format="{desc}", file=sys.stderr, disable=disable, mininterval=0.0, dynamic_ncols=True)

    def show(self, text: str):
        """Show a text."""
        if self._in_log and time.monotonic() - self._shown >= self._every:
            self._write(text)
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(1)

    def _write(self, text: str):
        """Write a line to a log."""
        print(text, file=sys.stderr, flush=True)
        self._shown = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()  # an error message then starts on a new line; no effect if already closed

    def close(self, text: str):
        """Show a last text, which stays on the terminal."""
        if self._in_log:
            self._write(text)
        self._bar.set_description_str(text, refresh=False)
        self._bar.close()
