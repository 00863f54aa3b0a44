"""The command line: ``hbm-jax fit | resume | simulate | calibrate | report | absorption | bench | doctor``.

Exit status: 0 the posterior is usable, or calibrated; 3 it is not; 2 bad input or a full disk; 130 interrupted.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence

from hbm_jax.cli.exit_status import BAD_INPUT, INTERRUPTED, NOT_USABLE, USABLE
from hbm_jax.cli.interruption import Ended, listening

__all__ = ["BAD_INPUT", "INTERRUPTED", "NOT_USABLE", "USABLE", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where omitted.
    """
    try:
        with listening(whole_process=argv is None):
            status = _run(argv)
    except (KeyboardInterrupt, Ended) as stopped:
        print(f"\nhbm-jax: {stopped if stopped.args else 'interrupted; nothing was written.'}", file=sys.stderr)
        status = INTERRUPTED
    if status == INTERRUPTED and argv is None:
        with contextlib.suppress(OSError):  # nobody is listening
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # XLA, interrupted while it compiles, has been seen to crash at Python's own end
    return status


def _run(argv: Sequence[str] | None) -> int:
    from hbm_jax.cli import commands  # takes seconds, in which Ctrl-C is to be heard

    before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        return commands.run(argv)
    except (ValueError, OSError, ImportError) as error:
        # Ours and the libraries' refusals of bad input; anything else is a bug and keeps its traceback.
        notes = [note for note in getattr(error, "__notes__", ()) if "JAX_TRACEBACK_FILTERING" not in note]
        print("\n".join([f"hbm-jax: {error}", *notes]), file=sys.stderr)
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
        warnings.formatwarning = before


def _one_line(message, *_, **__) -> str:
    """Write a warning without the line of source that Python shows."""
    return f"hbm-jax: warning: {message}\n"
