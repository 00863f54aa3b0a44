"""Digest of a traced function, equal for equal computations, so that its compiled programs are found on disk."""

import contextlib
import dataclasses
import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import AbstractMesh, Mesh, Sharding

from hbm_jax.inference.compilation.separation import Separated

MAX_BYTES = 2**24  # of constants that are read; to read more takes longer than to trace
# Types of JAX, without a public name, whose text says everything.
DESCRIBED = {"UnspecifiedValue"}
# Parameters of operations that hold the rules of a custom derivative, as Python functions.
RULES = {"jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "out_trees"}


class UnidentifiedError(ValueError):
    """Something in a trace, such as a Python function, has no value that could be compared."""


def digest(closed: ClosedJaxpr, arguments: Sequence[Any] = (), *, derivatives: bool = True) -> str:
    """Return the digest of a trace.

    Parameters
    ----------
    closed : ClosedJaxpr
        The trace.
    arguments : sequence of arrays
        Constants whose values do not count, since they are arguments of compiled programs.
    derivatives : bool
        Whether the rules of custom derivatives count. These are Python functions, so that a trace with such rules is
        then not identified.

    Raises
    ------
    UnidentifiedError
        If the trace holds a Python function, or more than `MAX_BYTES` of constants.
    """
    writer = _Writer({id(array): index for index, array in enumerate(arguments)}, derivatives)
    writer.closed(closed)
    return writer.hash.hexdigest()


def of_function(kind: str, function: Separated) -> list[str] | None:
    """Return an identity of a program that evaluates a function without its derivatives; None if it has none.

    ``kind`` says what the program does with the function.
    """
    with contextlib.suppress(UnidentifiedError):
        return [kind, digest(function.closed, derivatives=False)]
    return None


def identity_of(potential: Any, sites: Any, start: np.ndarray) -> list[str] | None:
    """Return digests of a potential, with its gradient, and of the sites.

    Parameters
    ----------
    potential, sites : Separated
        Functions of a flat vector.
    start : (size,)
        Example of the vector.

    Returns
    -------
    list of str or None
        None for functions of other kinds, or that hold something that cannot be compared.
    """
    if not (isinstance(potential, Separated) and isinstance(sites, Separated)):
        return None
    with contextlib.suppress(UnidentifiedError):
        of_sites = digest(sites.closed, derivatives=False)
        with contextlib.suppress(UnidentifiedError):
            return [digest(potential.closed), of_sites]
        # Rules of derivatives are Python functions, which a traced gradient has applied. No sampler differentiates it.
        gradient = jax.jit(jax.value_and_grad(potential)).trace(start).jaxpr
        arrays = [*potential.arrays, *sites.arrays]
        return [digest(gradient, arrays, derivatives=False), of_sites]
    return None


class _Writer:
    """Writes all parts of a trace into a hash."""

    def __init__(self, arguments: dict[int, int], derivatives: bool):
        self.hash, self.arguments, self.derivatives, self.left = hashlib.sha256(), arguments, derivatives, MAX_BYTES

    def text(self, *parts: Any) -> None:
        """Write the text of plain values."""
        self.hash.update(("\x1f".join(map(str, parts)) + "\x1e").encode())

    def array(self, value: Any) -> None:
        """Write type, shape and values of an array, or the number of an argument."""
        if id(value) in self.arguments:
            self.text("argument", self.arguments[id(value)])
            return
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            self.text(value.dtype)
            value = jax.random.key_data(value)
        array = np.asarray(value)
        self.left -= array.nbytes
        if array.dtype.kind == "O" or self.left < 0:
            raise UnidentifiedError("a constant is too large, or no array of numbers")
        self.text(array.dtype, array.shape, getattr(value, "weak_type", False))
        self.hash.update(np.ascontiguousarray(array).tobytes())

    def closed(self, closed: ClosedJaxpr) -> None:
        """Write a trace with its constants."""
        self.jaxpr(closed.jaxpr)
        for constant in closed.consts:
            self.array(constant)

    def jaxpr(self, jaxpr: Jaxpr) -> None:
        """Write the operations of a trace, with numbers in place of variables."""
        numbers: dict[Any, int] = {}

        def define(variables):
            for variable in variables:
                numbers[variable] = len(numbers)
                self.text(variable.aval, getattr(variable.aval, "weak_type", False))

        def use(atoms):
            for atom in atoms:
                if isinstance(atom, Literal):
                    self.text("literal", atom.aval)
                    self.array(atom.val)
                else:
                    self.text(numbers[atom])

        define([*jaxpr.constvars, *jaxpr.invars])
        for equation in jaxpr.eqns:
            self.text("operation", equation.primitive.name)
            for name in sorted(equation.params):
                if self.derivatives or name not in RULES:
                    self.text(name)
                    self.value(equation.params[name])
            use(equation.invars)
            define(equation.outvars)
        self.text("results")
        use(jaxpr.outvars)

    def value(self, value: Any) -> None:
        """Write a parameter of an operation."""
        if isinstance(value, ClosedJaxpr):
            self.closed(value)
        elif isinstance(value, Jaxpr):
            self.jaxpr(value)
        elif isinstance(value, jax.Array | np.ndarray | np.generic):
            self.array(value)
        elif isinstance(value, Mesh | AbstractMesh | Sharding):
            self.text(type(value).__name__, value)
        elif isinstance(value, bool | int | float | complex | str | bytes | enum.Enum | None):
            self.text(type(value).__name__, repr(value))
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                self.text(key)
                self.value(value[key])
        elif isinstance(value, tuple | list | set | frozenset):
            self.text(type(value).__name__, len(value))
            for part in sorted(value, key=str) if isinstance(value, set | frozenset) else value:
                self.value(part)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            self.text(type(value).__name__)
            for field in dataclasses.fields(value):
                self.value(getattr(value, field.name))
        elif isinstance(value, np.dtype | type) or type(value).__name__ in DESCRIBED:
            self.text(type(value).__name__, repr(value))
        else:  # above all Python functions
            raise UnidentifiedError(f"a {type(value).__name__} has no value that could be compared")
