"""Threads of BLAS, the library of linear algebra that NumPy and SciPy call."""

import functools
import importlib
from typing import Any

from threadpoolctl import ThreadpoolController


@functools.cache
def _controller() -> ThreadpoolController:
    """Return the control of the threads of BLAS, cached because finding its libraries takes some 5 ms."""
    importlib.import_module("scipy.linalg")  # SciPy has a separate BLAS library
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Return a context in which BLAS uses one thread: for small matrices, several only wait for each other."""
    return _controller().limit(limits=1, user_api="blas")
