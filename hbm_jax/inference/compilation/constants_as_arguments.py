"""Compilation with large constants as arguments, so that compile time does not grow with the data.

A density closes over its data, which therefore are constants of the compiled program. XLA copies and hashes constants
for each program; for hundreds of megabytes of responses this takes longer than compiling the program itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 2**18  # bytes; XLA may use the values of a smaller constant to make the program faster


def compiled(fn: Callable, *args: Any, compiler_options: dict[str, Any] | None = None) -> Callable:
    """Compile a function for arguments of these shapes.

    Parameters
    ----------
    fn : callable
        A function of arrays.
    *args
        Example arguments, or their shapes.
    compiler_options : dict, optional
        Options of XLA.

    Returns
    -------
    callable
        The compiled function, for arguments of the same shapes.
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    large = [_num_bytes(c) >= LARGE for c in closed.consts]
    if not any(large):
        return jax.jit(fn).lower(*args).compile(compiler_options)
    tree = jax.tree.structure(shape)
    lifted = [jnp.asarray(c) for c, is_large in zip(closed.consts, large, strict=True) if is_large]

    def with_constants(lifted, *args):
        arguments = iter(lifted)
        constants = [next(arguments) if is_large else c for c, is_large in zip(closed.consts, large, strict=True)]
        return jax.tree.unflatten(tree, jax.core.eval_jaxpr(closed.jaxpr, constants, *jax.tree.leaves(args)))

    program = jax.jit(with_constants).lower(lifted, *args).compile(compiler_options)
    return lambda *args: program(lifted, *args)


def _num_bytes(constant: Any) -> int:
    """Return the size of a constant in bytes; 0 for random keys."""
    dtype = jnp.result_type(constant)
    return 0 if jnp.issubdtype(dtype, jax.dtypes.extended) else np.size(constant) * np.dtype(dtype).itemsize


class Compiled:
    """A function that is compiled at its first call, for arguments of those shapes.

    Parameters
    ----------
    fn : callable
        A function of arrays, always called with arguments of the same shapes.
    compile : callable
        ``compile(fn, *args)`` returns the compiled function.
    """

    def __init__(self, fn: Callable, compile: Callable = compiled):
        self.fn, self.compile = fn, compile
        self._program: Callable | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        if self._program is None:
            self._program = self.compile(self.fn, *args)
        return self._program(*args)
