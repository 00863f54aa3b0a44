"""Handling of Ctrl-C and SIGTERM on the command line, including while compiled code runs.

While draws are made, the sampler handles the first signal itself (`OneProcess.drawing`) and stops after the current
block. At any other time the first signal raises `Terminated`; if the main thread has not ended after `PATIENCE`, for
example because it is in the compiler, a second thread ends the process. A second signal ends the process at once. So
does the first during an import, because extension modules can crash if an exception interrupts their import.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from hbm_jax.cli.exit_status import INTERRUPTED

PATIENCE = 1.0  # seconds that the main thread is given to end

_exit_messages: list[Callable[[], str]] = []


class Terminated(BaseException):
    """Ctrl-C or SIGTERM outside sampling. Not a KeyboardInterrupt, on which `fit_each` returns its finished fits."""


@contextlib.contextmanager
def exit_message(message: Callable[[], str]) -> Iterator[None]:
    """Register a function that cleans up and returns a last message, for when the second thread ends the process."""
    _exit_messages.append(message)
    try:
        yield
    finally:
        _exit_messages.remove(message)


@contextlib.contextmanager
def signal_handling(whole_process: bool) -> Iterator[None]:
    """Handle SIGINT and SIGTERM within this context; does nothing outside the main thread.

    Parameters
    ----------
    whole_process : bool
        Whether the process ends after this context. The default handlers are then installed, so that a later signal
        ends the process without a traceback; otherwise the previous handlers are restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    finished = threading.Event()
    received: list[int] = []

    def raise_terminated(number, frame):
        if not received:  # the second thread handles later signals
            received.append(number)
            if whole_process and _imports(frame):
                _end_process()
            raise Terminated

    def hide_terminated(unraisable):
        if not isinstance(unraisable.exc_value, Terminated):  # Python cannot propagate it from a destructor
            previous_hook(unraisable)

    signals = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = {number: signal.getsignal(number) for number in signals}
    previous_hook, sys.unraisablehook = sys.unraisablehook, hide_terminated
    previous_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_end_process_on_signal, args=(receiver, raise_terminated, finished), daemon=True)
    watcher.start()
    try:
        for number in signals:
            # Shells start background processes with SIGINT ignored; keep that.
            if previous_handlers[number] is not signal.SIG_IGN:
                signal.signal(number, raise_terminated)
        yield
    finally:
        finished.set()
        for number, handler in previous_handlers.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL if whole_process else handler)
        signal.set_wakeup_fd(previous_fd)
        sys.unraisablehook = previous_hook
        sender.close()
        watcher.join()
        receiver.close()


def _end_process_on_signal(receiver: socket.socket, handler: Callable, finished: threading.Event) -> None:
    """End the process on the second signal, or if the main thread does not end in time after the first."""
    sampler_signalled = False  # a signal was left to the sampler
    while number := receiver.recv(1):  # Python writes the number of each signal to the socket
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        # Any other handler is that of the sampler, which stops after the current block.
        if not sampler_signalled and signal.getsignal(number[0]) is not handler:
            sampler_signalled = True
        elif sampler_signalled or not finished.wait(PATIENCE):
            _end_process()


def _end_process() -> None:
    """Print the last message and end the process, without the normal exit of Python."""
    message = _exit_messages[-1]() if _exit_messages else "interrupted; nothing was written."
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\nhbm-jax: {message}\n".encode())
    os._exit(INTERRUPTED)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a frame is in the import of a module."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
