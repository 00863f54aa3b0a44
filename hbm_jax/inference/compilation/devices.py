"""CPU devices, one per core, and advice on the choice of device."""

import contextlib
import os

import jax

SMALL = 3e6  # floating-point operations below which kernel launches dominate the time of an accelerator


def use_every_core() -> int:
    """Make one JAX device per CPU core, so that chains run in parallel, and return the number of devices requested.

    Call it before the first JAX computation; later it has no effect. Single operations are then not divided among
    threads, because chains would wait for each other.

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
    """Return an error message if JAX has no device, for example for an unknown JAX_PLATFORMS; else an empty string."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # raised for a platform without devices and for an unknown one
        requested = getattr(jax.config, "jax_platforms", "")
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        setting = f"JAX_PLATFORMS={requested}" if requested else "JAX"
        return (
            f"{setting}: expected a device of this platform; found none{reason}. "
            "Unset JAX_PLATFORMS, or set it to cpu; a GPU needs its driver and the GPU packages of JAX (jax[cuda12])."
        )
    return ""


def advice(platform: str, operations: float) -> str:
    """Return a caution if a density is too small for the device it is evaluated on.

    Parameters
    ----------
    platform : str
        Platform of the device: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
    operations : float
        Floating-point operations of one gradient of all chains together, as counted by the compiler.

    Returns
    -------
    str
        The caution, or an empty string.

    Notes
    -----
    Measured on an H100 (``benchmarks/results/gpu.txt``): JLA with 4 chains runs at half the speed of the CPU of the
    same machine, with 64 chains faster than that CPU; one chain with 10 000 supernovae is 8 times as fast.
    """
    if platform == "cpu" or operations >= SMALL:
        return ""
    return (
        f"a gradient of all chains has about {operations:.0e} operations, and an accelerator needs {SMALL:.0e} to be "
        "faster than a CPU; set JAX_PLATFORMS=cpu, or use many more chains, or fit_each for many objects"
    )
