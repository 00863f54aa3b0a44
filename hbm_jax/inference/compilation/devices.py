"""One JAX device for each core of this machine."""

import contextlib
import os

import jax

SMALL = 3e6  # floating-point operations, below which an accelerator waits for its own instructions


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


def no_devices() -> str:
    """Say so where JAX has no device, as where JAX_PLATFORMS names a platform that is not there; else nothing."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a platform that JAX does not know; that has no device
        asked = getattr(jax.config, "jax_platforms", "")
        why = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"{f'JAX_PLATFORMS={asked}' if asked else 'JAX'}: expected a device of such a platform; found none{why}. "
            "Unset JAX_PLATFORMS, or set it to cpu; a GPU needs its driver, and JAX's packages for it (jax[cuda12])."
        )
    return ""


def advice(platform: str, operations: float) -> str:
    """Say so where a density is too small for the device that it is on.

    Parameters
    ----------
    platform : str
        Of the device, ``"cpu"``, ``"gpu"`` or ``"tpu"``.
    operations : float
        Floating-point operations of one gradient of all chains together, as the compiler counts them.

    Returns
    -------
    str
        A sentence, or nothing. Measured on an H100 (``benchmarks/results/gpu.txt``): JLA with 4 chains draws at half
        the speed of the CPU beside it, with 64 faster than that; one chain of 10 000 supernovae 8 times as fast.
    """
    if platform == "cpu" or operations >= SMALL:
        return ""
    return (
        f"a gradient of all chains has some {operations:.0e} operations, and an accelerator needs {SMALL:.0e} to be "
        "faster than a CPU, which JAX_PLATFORMS=cpu would use; many more chains, or fit_each for many objects, fill it"
    )
