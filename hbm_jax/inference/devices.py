"""One JAX device for each core of this machine."""

import contextlib
import os

import jax


def use_every_core() -> int:
    """Make one JAX device of each core, so that chains run side by side; returns the number of devices asked for.

    To be called before the first JAX computation: once JAX has started it has no effect. Each device keeps to its own
    thread: sharing single operations out over threads as well only makes the chains wait for each other.

    Examples
    --------
    >>> import hbm_jax as hbm
    >>> cores = hbm.use_every_core()  # doctest: +SKIP
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flag = "--xla_cpu_multi_thread_eigen=false"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores)
    return cores
