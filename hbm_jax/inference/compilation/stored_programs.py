"""Compiled programs on disk, found by what they compute, without tracing and lowering it again.

JAX's own cache of compiled programs is asked with the lowered program. To trace and to lower a sampler takes longer
than to read its program. Here a program is found by the digest of the traced log density, the options of the sampler,
the shapes of the arguments, the sources of hbm_jax, and all versions and settings.
"""

import contextlib
import hashlib
import os
import pickle
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from hbm_jax.files import atomic_write
from hbm_jax.inference.compilation.cache import folder_in_use

STORED_FROM = "jax_persistent_cache_min_compile_time_secs"  # the time from which JAX stores a program
PACKAGES = ("jax", "jaxlib", "numpyro", "numpy")
IRRELEVANT = ("cache", "log", "traceback", "debug_info")  # in names of settings of JAX that do not change programs


class Stored(NamedTuple):
    """A stored program.

    Attributes
    ----------
    executable : tuple
        Serialised executable, and the trees of its arguments and results.
    devices : list of int
        Numbers of the devices on which it runs.
    indices : list of int
        Numbers of its first arguments among the arrays of the data.
    """

    executable: tuple[bytes, Any, Any]
    devices: list[int]
    indices: list[int]


def name_of(
    identity: Any, args: Sequence[Any], arrays: Sequence[Any], compiler_options: Mapping[str, Any]
) -> str | None:
    """Return the name of the file of a program; None if programs are not stored, or the program has no identity.

    Programs of other devices than the CPU are not stored: what their libraries need before such a program runs is
    prepared when JAX lowers it.

    Parameters
    ----------
    identity : plain values or None
        What the program computes.
    args : sequence
        Example arguments.
    arrays : sequence of arrays
        Arrays of the data that are arguments too.
    compiler_options : mapping
        Options of XLA.
    """
    if identity is None or folder_in_use() is None or jax.default_backend() != "cpu":
        return None
    leaves, structure = jax.tree.flatten((list(args), list(arrays)))
    shapes = [(str(jax.typeof(leaf)), _placement(leaf)) for leaf in leaves]
    described = repr((_environment(), identity, str(structure), shapes, sorted(compiler_options.items())))
    return f"hbm_jax-{hashlib.sha256(described.encode()).hexdigest()}-cache"


def read(name: str | None, arrays: Sequence[Any]) -> Callable | None:
    """Return a stored program as a function of its other arguments; None if it is not stored or cannot be read."""
    folder = folder_in_use()
    if name is None or folder is None:
        return None
    try:
        stored = Stored(*pickle.loads((folder / name).read_bytes()))
        devices = [device for device in jax.devices() if device.id in stored.devices]
        _prepare_linear_algebra()
        executable = deserialize_and_load(*stored.executable, None, devices)
    except Exception:  # missing, cut short, or of a device that this is not: it is compiled again
        return None
    return with_arrays(executable, [arrays[index] for index in stored.indices])


def write(name: str | None, executable: Any, arrays: Sequence[Any], arguments: Sequence[Any]) -> None:
    """Store a program whose first arguments are among ``arrays``; nothing is stored if some are not."""
    folder, places = folder_in_use(), {id(array): index for index, array in enumerate(arrays)}
    if name is None or folder is None or not all(id(argument) in places for argument in arguments):
        return
    with contextlib.suppress(Exception):  # a full disk, or a program that cannot be serialised
        placement = jax.tree.leaves(executable.output_shardings)[0]
        devices = sorted(device.id for device in placement.device_set)
        stored = Stored(serialize(executable), devices, [places[id(argument)] for argument in arguments])
        with atomic_write(folder / name) as part:
            part.write_bytes(pickle.dumps(tuple(stored)))


def with_arrays(executable: Callable, arrays: Sequence[Any]) -> Callable:
    """Return a program as a function of its arguments after the first, which is the list of arrays if there are any."""
    arrays = list(arrays)
    return (lambda *args: executable(arrays, *args)) if arrays else executable


def fresh(fn: Callable) -> Callable:
    """Return a function under a name that no other has, so that JAX does not read its program from its own cache.

    XLA serialises a program that it has read without some of its functions.
    """

    def renamed(*args):
        return fn(*args)

    renamed.__name__ = f"{getattr(fn, '__name__', 'program')}_{secrets.token_hex(4)}"
    return renamed


@contextlib.contextmanager
def without_second_copy() -> Iterator[None]:
    """Context in which JAX does not store compiled programs itself."""
    seconds = jax.config.values[STORED_FROM]
    jax.config.update(STORED_FROM, float("inf"))
    try:
        yield
    finally:
        jax.config.update(STORED_FROM, seconds)


@cache
def _prepare_linear_algebra() -> None:
    """Make JAX look up the functions of LAPACK, which it does when it lowers the first program that uses one."""
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


def _placement(leaf: Any) -> str:
    """Return the sharding of an array whose device is fixed; otherwise an empty text."""
    return str(leaf.sharding) if getattr(leaf, "committed", False) else ""


def _environment() -> list[Any]:
    """Return everything outside a program that changes it when it is compiled."""
    settings = {
        name: repr(value) for name, value in jax.config.values.items() if not any(word in name for word in IRRELEVANT)
    }
    devices = [(device.platform, device.device_kind, device.id) for device in jax.devices()]
    flags = os.environ.get("XLA_FLAGS", ""), jnp.result_type(float).name
    return [_sources(), [version(package) for package in PACKAGES], sorted(settings.items()), devices, flags]


@cache
def _sources() -> str:
    """Return a digest of the sources of hbm_jax and of the instructions that the processor has."""
    found = hashlib.sha256()
    folder = Path(__file__).parents[2]
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found.update("".join(sorted({line for line in lines if line.startswith(("flags", "model name"))})).encode())
    return found.hexdigest()
