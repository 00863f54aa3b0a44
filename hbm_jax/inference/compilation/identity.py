"""Digest of a traced function, equal for equal computations, so that its compiled programs are found on disk."""

import contextlib
import dataclasses
import enum
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import AbstractMesh, Mesh, Sharding

from hbm_jax.inference.compilation.separation import Separated

MAX_BYTES = 2**24  # of constants that are read; to read more takes longer than to trace
# Types of JAX, without a public name, whose text says everything.
DESCRIBED = {"UnspecifiedValue"}
SOURCES = Path(__file__).parents[2]  # of hbm_jax, which are part of the name of a stored program
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
        Whether the rules of custom derivatives count. These are Python functions: those of hbm_jax are named, and a
        trace with others is not identified.

    Raises
    ------
    UnidentifiedError
        If the trace holds a Python function of others than hbm_jax, or more than `MAX_BYTES` of constants.
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
        # A traced gradient has applied the rules of other packages. No sampler differentiates it.
        gradient = jax.jit(jax.value_and_grad(potential)).trace(start).jaxpr
        arrays = [*potential.arrays, *sites.arrays]
        return [digest(gradient, arrays, derivatives=False), of_sites]
    return None


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """Return the operations of which the results are used.

    Others, such as tests of parameters by NumPyro, differ from process to process.
    """
    used, equations = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or used.intersection(map(id, equation.outvars)):
            equations.append(equation)
            used.update(map(id, equation.invars))
    return equations[::-1]


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
        for equation in _needed(jaxpr):
            self.text("operation", equation.primitive.name)
            named = not self.derivatives or self.rule(equation)
            for name in sorted(equation.params):
                if not (named and name in RULES):
                    self.text(name)
                    self.value(equation.params[name])
            use(equation.invars)
            define(equation.outvars)
        self.text("results")
        use(jaxpr.outvars)

    def rule(self, equation: Any) -> bool:
        """Write the name of the function of hbm_jax whose rule of derivatives an operation has; False for others.

        These functions are defined at the top of a module, so that nothing but the sources decides their rules.
        """
        if RULES.isdisjoint(equation.params):
            return False
        described = equation.params["call_jaxpr"].jaxpr.debug_info
        path = Path(described.func_filename or "")
        if not path.is_relative_to(SOURCES):
            return False
        self.text("rule of", path.relative_to(SOURCES), described.func_name)
        return True

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
