"""Command line: ``hbm-jax COMMAND``.

Commands: ``fit, resume, simulate, calibrate, evidence, report, unblind, absorption, bench, doctor``.

Exit status: 0 usable posterior, or calibrated model; 3 not usable, or not calibrated; 4 usable, but the data do not
look like the model; 2 bad input or full disk; 130 interrupted.
"""

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Sequence

from hbm_jax.cli.exit_status import BAD_INPUT, INTERRUPTED, MISFIT, NOT_USABLE, USABLE
from hbm_jax.cli.interruption import Terminated, signal_handling

__all__ = ["BAD_INPUT", "INTERRUPTED", "MISFIT", "NOT_USABLE", "USABLE", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.
    """
    if argv is None:
        # Imports create so many objects that the default garbage collection takes a tenth of their time.
        gc.set_threshold(20_000, 10, 10)
    try:
        with signal_handling(whole_process=argv is None):
            status = _run(argv)
    except (KeyboardInterrupt, Terminated) as stopped:
        print(f"\nhbm-jax: {stopped if stopped.args else 'interrupted; nothing was written.'}", file=sys.stderr)
        status = INTERRUPTED
    if status == INTERRUPTED and argv is None:
        with contextlib.suppress(OSError):  # the output is closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # XLA interrupted during compilation can crash in the normal exit of Python
    return status


def _run(argv: Sequence[str] | None) -> int:
    """Run the command line; print errors of the input without a traceback."""
    from hbm_jax.cli import commands, inputs  # imported here, where Ctrl-C is handled

    previous_format, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        return commands.run(argv)
    except (ValueError, OSError, ImportError) as error:
        # These types signal bad input, here and in libraries; any other is a bug and keeps its traceback.
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX_TRACEBACK_FILTERING" not in note]
        print("\n".join([f"hbm-jax: {inputs.message_in_flags(error)}", *notes]), file=sys.stderr)
        return BAD_INPUT
    except (RuntimeError, AssertionError) as error:
        from hbm_jax.inference.compilation.devices import no_devices
        from hbm_jax.inference.sampler.target import StartError

        reason = str(error) if isinstance(error, StartError) else no_devices()
        if not reason:
            raise
        print(f"hbm-jax: {reason}", file=sys.stderr)
        return BAD_INPUT
    finally:
        warnings.formatwarning = previous_format


def _one_line(message, *_, **__) -> str:
    """Format a warning without the source line that Python adds."""
    return f"hbm-jax: warning: {message}\n"
