"""Computation of constants before or while a program is traced."""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from hbm_jax.blas import one_blas_thread

MAX_WORKERS = 8  # threads; precomputing a response on quadrature nodes takes some 200 MB in each
CHUNK = 512  # elements per evaluation

# Raised where NumPy, Python's control flow or indexing needs the value of a tracer, and for a tracer of another thread.
TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.UnexpectedTracerError,
)


def precomputed(work: Callable[[], Any]) -> Any:
    """Return the result of a function without traced arguments, in double precision, also during a trace.

    The function runs in a new thread, which has its own trace context, so compiled functions run as usual. Within
    `jax.ensure_compile_time_eval`, each operation of a compiled function would be compiled separately: hundreds of
    programs of a few hundredths of a second each.
    """

    def in_double_precision():
        with jax.enable_x64(True):
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_double_precision).result()


def elementwise(function: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """Evaluate an elementwise compiled function of arrays of one shape, in double precision; return that shape.

    Chunks have a fixed size, so that the function is compiled once for arrays of any shape.
    """
    flat = [np.asarray(array, float).ravel() for array in arrays]
    chunks = [np.pad(array, (0, -array.size % CHUNK), mode="edge").reshape(-1, CHUNK) for array in flat]
    values = precomputed(lambda: [np.asarray(function(*chunk)) for chunk in zip(*chunks, strict=True)])
    return np.concatenate(values)[: flat[0].size].reshape(np.shape(arrays[0]))


def padded_size(num: int) -> int:
    """Return a number of objects rounded up to a step, so that samples of similar size have arrays of equal shape.

    Steps are 2 from 8 on, and an eighth of the power of two below the number up to 128, a sixteenth beyond. Padding is
    at most 12 % of a number up to 128 and 6 % of larger ones.
    """
    if num < 8:
        return num
    power = 2 ** (int(num).bit_length() - 1)
    step = max(power // (8 if power < 128 else 16), 2)
    return -(-num // step) * step


def padded_axis(array: Any, size: int, axis: int = 0, value: Any = None) -> np.ndarray:
    """Return an array padded to a size along an axis, with a value, or by default with its last entries."""
    array = np.asarray(array)
    widths = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths, mode="edge") if value is None else np.pad(array, widths, constant_values=value)


def cached_once(maxsize: int | None = None) -> Callable[[Callable], Callable]:
    """Return a decorator that caches results, and lets other threads wait while a result is computed.

    With `functools.lru_cache` two threads that need the same table compute it twice.
    """

    def decorate(function):
        cached, lock = functools.lru_cache(maxsize)(function), threading.Lock()

        @functools.wraps(function)
        def locked(*args):
            with lock:
                return cached(*args)

        return locked

    return decorate


def on_every_core(work: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """Map a function dominated by linear algebra over items, on at most `MAX_WORKERS` cores.

    BLAS uses one thread per item: for matrices of a thousand rows several threads are no faster, and two processes with
    several threads each slow each other down.
    """
    items = list(items)
    if len(items) < 2:  # no thread, and the same rounding as with several
        with one_blas_thread():
            return [work(item) for item in items]
    with one_blas_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:  # including KeyboardInterrupt: do not wait for items that have not started
            pool.shutdown(cancel_futures=True)
            raise
