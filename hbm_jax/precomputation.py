"""Computation of constants before or while a program is traced."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from threadpoolctl import threadpool_limits

MAX_WORKERS = 8  # threads; precomputing a response on quadrature nodes takes some 200 MB in each


def precomputed(work: Callable[[], Any]) -> Any:
    """Return the result of a function of known numbers, in double precision, also while another function is traced.

    A new thread has its own trace context, so compiled functions run in it as usual. Within
    `jax.ensure_compile_time_eval`, every operation is compiled separately, also those of compiled functions: hundreds
    of programs of a few hundredths of a second each.
    """

    def in_double_precision():
        with jax.enable_x64(True):
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_double_precision).result()


def on_every_core(work: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """Return the results of a function dominated by linear algebra, one item per core.

    BLAS uses one thread per item: for matrices of a thousand rows several threads are no faster, and two processes with
    several threads each slow each other down.
    """
    items = list(items)
    if len(items) < 2:  # no thread, and the same rounding as with several
        with threadpool_limits(1, user_api="blas"):
            return [work(item) for item in items]
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:  # including KeyboardInterrupt: do not wait for items that have not started
            pool.shutdown(cancel_futures=True)
            raise
