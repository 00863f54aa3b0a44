"""Numbers that are worked out once, before or while a program is traced."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from threadpoolctl import threadpool_limits

MAX_WORKERS = 8  # cores that work out folds, of some 200 MB each


def precomputed(work: Callable[[], Any]) -> Any:
    """Return what a function of numbers gives, in double precision, whatever is being traced.

    A thread traces for itself, so that its compiled programs run as at any other time. Within
    `jax.ensure_compile_time_eval` each operation on numbers is compiled by itself, those of compiled functions too:
    hundreds of programs of a few hundredths of a second.
    """

    def in_double_precision():
        with jax.enable_x64(True):
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(in_double_precision).result()


def on_every_core(work: Callable[[Any], Any], items: Iterable[Any]) -> list:
    """Return the results of work that is mostly linear algebra, an item a core.

    Matrices of a thousand rows are no faster by several threads of the BLAS, which in two processes at once wait for
    each other.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:  # Ctrl-C too: what has not begun is not waited for
            pool.shutdown(cancel_futures=True)
            raise
