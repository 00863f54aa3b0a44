"""Progress line of a running fit."""

import sys

from tqdm import tqdm


class ProgressLine:
    """Progress line on standard error: rewritten in place on a terminal, a new line now and then in a log file.

    Parameters
    ----------
    enabled : bool
        Whether to write anything.
    every : float
        Seconds between lines if the output is not a terminal.
    """

    def __init__(self, enabled: bool, every: float = 10.0):
        self._bar = tqdm(
            total=None,
            bar_format="{desc}",
            file=sys.stderr,
            disable=not enabled,
            mininterval=0.0 if sys.stderr.isatty() else every,
            dynamic_ncols=True,
            leave=True,
        )

    def show(self, text: str):
        """Show a text."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()  # an error message then starts on a new line; no effect if already closed

    def close(self, text: str):
        """Show a last text, which stays on the terminal."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.close()
