"""The live line of a running fit."""

import sys

from tqdm import tqdm


class LiveLine:
    """One line on standard error that is rewritten in place; on a log file, a new line now and then.

    Parameters
    ----------
    enabled : bool
        Whether to write anything.
    every : float
        Seconds between lines where the output is not a terminal.
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
        """Show a state."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()  # so that an error message begins on a line of its own; no effect if closed already

    def close(self, text: str):
        """Show the last state, which stays."""
        self._bar.set_description_str(text, refresh=False)
        self._bar.close()
