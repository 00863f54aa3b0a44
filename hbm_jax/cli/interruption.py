"""Ctrl-C and SIGTERM on the command line, also while a library is at work that does not listen.

While a sampler draws, which takes the signals for itself (`OneProcess.drawing`), the first is left to it: it stops
after the block under way. At any other time the first raises `Ended`; where the main thread has not come to an end
soon, being in the compiler for example, a thread beside it ends the process. So does the second signal, at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from hbm_jax.cli.exit_status import INTERRUPTED

PATIENCE = 1.0  # seconds that the main thread has to end by itself

_last_words: list[Callable[[], str]] = []


class Ended(BaseException):
    """Ctrl-C or SIGTERM outside drawing; not KeyboardInterrupt, at which `fit_each` returns what is done."""


@contextlib.contextmanager
def last_words(words: Callable[[], str]) -> Iterator[None]:
    """While this lasts, let `words` tidy up, and say how to go on, if the process has to be ended from beside."""
    _last_words.append(words)
    try:
        yield
    finally:
        _last_words.remove(words)


@contextlib.contextmanager
def listening(whole_process: bool) -> Iterator[None]:
    """Listen to both signals; does nothing outside the main thread.

    Parameters
    ----------
    whole_process : bool
        Whether the process ends afterwards: the signals then end it from there on, without a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, wake = socket.socketpair()
    wake.setblocking(False)
    over = threading.Event()
    raised: list[int] = []

    def end(number, frame):
        if not raised:  # later ones are the watching thread's
            raised.append(number)
            raise Ended

    def hide(unraisable):
        if not isinstance(unraisable.exc_value, Ended):  # raised where Python has to ignore it, in a destructor
            shown(unraisable)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    shown, sys.unraisablehook = sys.unraisablehook, hide
    waking = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    watching = threading.Thread(target=_watch, args=(heard, end, over), daemon=True)
    watching.start()
    try:
        for number in numbers:
            # Python starts deaf to Ctrl-C where its shell runs it in the background; so it stays.
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, end)
        yield
    finally:
        over.set()
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL if whole_process else handler)
        signal.set_wakeup_fd(waking)
        sys.unraisablehook = shown
        wake.close()
        watching.join()
        heard.close()


def _watch(heard: socket.socket, end: Callable, over: threading.Event) -> None:
    """End the process where a signal wants it and the main thread does not."""
    asked = False
    while number := heard.recv(1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        # Handlers of the sampler's are those of the block under way.
        if not asked and signal.getsignal(number[0]) is not end:
            asked = True
        elif asked or not over.wait(PATIENCE):
            words = _last_words[-1]() if _last_words else "interrupted; nothing was written."
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nhbm-jax: {words}\n".encode())
            os._exit(INTERRUPTED)
