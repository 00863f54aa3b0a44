"""Compilation with large constants as arguments, so that compile time does not grow with the data.

A density closes over its data, which therefore are constants of the compiled program. XLA copies and hashes constants
for each program; for hundreds of megabytes of responses this takes longer than compiling the program itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hbm_jax.inference.compilation import stored_programs
from hbm_jax.xla_options import sampling_options

# Bytes. XLA computes with smaller constants beforehand: with all of them as arguments a gradient takes 1.26 times as
# long for a relation or bursts, 1.24 for a regression with groups and 1.03 for JLA.
LARGE = 2**18


def compiled(
    fn: Callable,
    *args: Any,
    compiler_options: dict[str, Any] | None = None,
    arrays: Sequence[Any] = (),
    identity: Any = None,
) -> Callable:
    """Compile a function for arguments of these shapes.

    Parameters
    ----------
    fn : callable
        A function of arrays.
    *args
        Example arguments, or their shapes.
    compiler_options : dict, optional
        Options of XLA. Default: those of programs that search or draw, `hbm_jax.xla_options.sampling_options`.
    arrays : sequence of arrays
        Constants that are arguments of the program whatever their size, such as those of a
        `hbm_jax.inference.compilation.separation.Separated`; the same program then serves others of the same shapes.
    identity : plain values, optional
        What the function computes, apart from the values of ``arrays`` and the shapes of all arguments. The compiled
        program is then stored and found by it, so that the function need not be traced.

    Returns
    -------
    callable
        The compiled function, for arguments of the same shapes.
    """
    if compiler_options is None:
        compiler_options = sampling_options(jax.default_backend())
    name = stored_programs.name_of(identity, args, arrays, compiler_options)
    if (stored := stored_programs.read(name, arrays)) is not None:
        return stored
    if name is None:
        program, large_constants = lowered(fn, *args, arrays=arrays)
        return stored_programs.with_arrays(program.compile(compiler_options), large_constants)
    program, large_constants = lowered(fn, *args, arrays=arrays, fresh=True)
    with stored_programs.without_second_copy():
        executable = program.compile(compiler_options)
    stored_programs.write(name, executable, arrays, large_constants)
    return stored_programs.with_arrays(executable, large_constants)


def lowered(
    fn: Callable, *args: Any, arrays: Sequence[Any] = (), fresh: bool = False
) -> tuple[jax.stages.Lowered, list[Any]]:
    """Return the lowered program of a function, and its large constants, the first argument if there are any.

    ``arrays`` are treated as large constants, whatever their size. A ``fresh`` program is not in JAX's own cache.
    """
    rename = stored_programs.fresh if fresh else lambda fn: fn
    fn = rename(fn)
    traced = jax.jit(fn).trace(*args)
    closed = traced.jaxpr
    named = {id(array) for array in arrays}
    mask = [id(c) in named or _num_bytes(c) >= LARGE for c in closed.consts]
    if not any(mask):
        return traced.lower(), []
    tree = jax.tree.structure(traced.out_info)
    large_constants = [
        c if id(c) in named else jnp.asarray(c) for c, is_large in zip(closed.consts, mask, strict=True) if is_large
    ]

    def with_constants(large_constants, *args):
        remaining = iter(large_constants)
        constants = [next(remaining) if is_large else c for c, is_large in zip(closed.consts, mask, strict=True)]
        return jax.tree.unflatten(tree, jax.core.eval_jaxpr(closed.jaxpr, constants, *jax.tree.leaves(args)))

    return jax.jit(rename(with_constants)).lower(large_constants, *args), large_constants


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
