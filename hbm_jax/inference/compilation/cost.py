"""Cost of a function as a number of elements, which unlike a time is the same in every run."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np


def num_elements(function: Callable, *args: Any) -> int:
    """Return the number of array elements that a function computes for arguments of these shapes.

    Elements of matrix products count once for each term of their sum, and those of loops once for each iteration, where
    the number of iterations is known. An element takes 0.5 to 4 ns of a core (value and gradient of log densities).
    """
    return _of_operations(jax.make_jaxpr(function)(*args).jaxpr)


def _of_operations(jaxpr: Any) -> int:
    """Return the number of elements that the operations of a trace compute."""
    return sum(map(_of_operation, jaxpr.eqns))


def _of_operation(equation: Any) -> int:
    """Return the number of elements that one operation of a trace computes."""
    inner = sum(map(_of_operations, _traces_in(equation.params)))
    if inner:
        return inner * int(equation.params.get("length", 1))
    elements = sum(int(getattr(variable.aval, "size", 1)) for variable in equation.outvars)
    if equation.primitive.name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        elements *= int(np.prod([equation.invars[0].aval.shape[axis] for axis in summed]))
    return elements


def _traces_in(params: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the traces among the parameters of an operation: bodies of loops, branches, jitted functions."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            trace = getattr(part, "jaxpr", part)
            if hasattr(trace, "eqns"):
                yield trace
