"""Separation of a function of parameters and data into what depends on the data alone, and the rest.

Compiled programs that take data as arguments serve every data set of the same shapes. XLA then cannot compute with the
data beforehand, as it does with constants. Here everything that depends on the data alone is computed once, by a
program of its own, and the results are arguments of the rest.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from hbm_jax.xla_options import QUICK

# Raised for traced data whose values are needed, also by models, for data that are not bound.
OF_TRACED_DATA = (jax.errors.JAXTypeError, ValueError)
CONSTANT, DATA, PARAMETERS = 0, 1, 2  # the dependence of a value
LARGE, MAX_EXPANSION = 10**5, 4  # elements; operations with results of more, and so many times as many as their inputs


@dataclass(eq=False)
class _Value:
    """Value of a traced function: its dependence, its shape and type, and the value itself if it is a constant."""

    dependence: int
    aval: Any = None
    constant: Any = None


class _Operation(NamedTuple):
    """One operation of a trace, with its inputs and outputs."""

    equation: Any
    inputs: list[_Value]
    outputs: list[_Value]

    @property
    def dependence(self) -> int:
        """Largest dependence of its inputs."""
        return max((value.dependence for value in self.inputs), default=CONSTANT)


class Separated:
    """Function of parameters and data as a function of the parameters alone, traced once, at its first use.

    Parameters
    ----------
    fn : callable
        Function of a parameter array, or a random key, and of ``data``, that returns a pytree.
    example : array
        Example of the parameters.
    data : pytree
        The data.
    traced : bool
        Whether the arrays and numbers of the data are traced; otherwise they are constants.
    """

    def __init__(self, fn: Callable, example: Any, data: Any, traced: bool = True):
        self.fn, self.example, self.data, self.traced = fn, example, data, traced

    @cached_property
    def _parts(self) -> "_Parts":
        """Both parts of the function."""
        leaves, structure = jax.tree.flatten(self.data)
        numeric = [i for i, leaf in enumerate(leaves) if self.traced and is_numeric(leaf)]
        arrays = [leaves[i] if isinstance(leaves[i], jax.Array) else np.asarray(leaves[i]) for i in numeric]

        def of_arrays(x, arrays):
            replaced = dict(zip(numeric, arrays, strict=True))
            return self.fn(x, jax.tree.unflatten(structure, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)]))

        return _Parts(jax.jit(of_arrays).trace(self.example, arrays), arrays)

    @property
    def shapes(self) -> Any:
        """Shapes and types of the result."""
        return self._parts.out_info

    @property
    def closed(self) -> ClosedJaxpr:
        """Trace of the function of the parameters and the arrays of the data."""
        return self._parts.closed

    @property
    def arrays(self) -> list[jax.Array]:
        """Arrays that depend on the data alone, which are arguments of compiled programs."""
        return self._parts.arrays

    def __call__(self, x: Any) -> Any:
        """Evaluate the function; in a trace, `arrays` are constants of it."""
        return self._parts.evaluate(x)

    def of_data(self) -> Any:
        """Return the result with None for each of its arrays that depends on the parameters."""
        return self._parts.of_data()


def separated(fn: Callable, example: Any, choices: Sequence[Any], otherwise: Any) -> Separated:
    """Return a traced `Separated` of the first form of the data among ``choices`` that can be traced.

    Data whose values decide what ``fn`` does cannot. If no form can, the data ``otherwise`` are constants.
    """
    for data in choices:
        function = Separated(fn, example, data)
        with contextlib.suppress(*OF_TRACED_DATA):
            function.shapes  # noqa: B018 - traces the function
            return function
    return Separated(fn, example, otherwise, traced=False)


def is_numeric(leaf: Any) -> bool:
    """Return whether a leaf of the data is an array of numbers, a number or a random key."""
    return isinstance(leaf, jax.Array) or np.asarray(leaf).dtype.kind in "biufc"


class _Parts:
    """Operations of a traced function of parameters and arrays of data, those of the data alone separate."""

    def __init__(self, traced: Any, leaves: Sequence[Any]):
        self.out_info, self.closed, self._leaves = traced.out_info, traced.jaxpr, leaves
        jaxpr, constants = traced.jaxpr.jaxpr, traced.jaxpr.consts
        self._operations: list[_Operation] = []
        self._broadcasts: dict[_Value, _Operation] = {}
        self._reciprocals: dict[_Value, _Value] = {}
        self._parameter, *self._data = (
            _Value(DATA if i else PARAMETERS, variable.aval) for i, variable in enumerate(jaxpr.invars)
        )
        values = _constants(jaxpr, constants)
        self._outputs = self._flatten(jaxpr, values, [self._parameter, *self._data])
        self._select()

    def _flatten(self, jaxpr, values: dict, inputs: Sequence[_Value]) -> list[_Value]:
        """Append the operations of a trace, with those of jitted functions in it, and return its outputs."""
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom):
            return _Value(CONSTANT, atom.aval, atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            arguments = [read(atom) for atom in equation.invars]
            if equation.primitive.name in ("jit", "pjit"):
                closed = equation.params["jaxpr"]
                outputs = self._flatten(closed.jaxpr, _constants(closed.jaxpr, closed.consts), arguments)
            elif equation.primitive.name == "div" and _divides_by_data(*arguments):
                outputs = self._traced(jax.lax.mul, arguments[0], self._reciprocal(arguments[1]))
            else:
                operation = _Operation(equation, arguments, [])
                dependence = PARAMETERS if equation.effects else operation.dependence
                outputs = [_Value(dependence, variable.aval) for variable in equation.outvars]
                operation.outputs.extend(outputs)
                self._operations.append(operation)
                if equation.primitive.name == "broadcast_in_dim":
                    self._broadcasts[outputs[0]] = operation
            values |= dict(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _reciprocal(self, value: _Value) -> _Value:
        """Return the reciprocal of a value that depends on the data alone; of a broadcast value, that broadcast.

        XLA divides by constants in this way.
        """
        if value not in self._reciprocals:
            if value in self._broadcasts:
                equation, (source, *sizes), _ = self._broadcasts[value]
                outputs = [_Value(DATA, value.aval)]
                self._operations.append(_Operation(equation, [self._reciprocal(source), *sizes], outputs))
            else:
                outputs = self._traced(lambda x: 1.0 / x, value)
            self._reciprocals[value] = outputs[0]
        return self._reciprocals[value]

    def _traced(self, fn: Callable, *values: _Value) -> list[_Value]:
        """Append the operations of a function of values, and return its outputs."""
        closed = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(value.aval.shape, value.aval.dtype) for value in values))
        return self._flatten(closed.jaxpr, _constants(closed.jaxpr, closed.consts), values)

    def _select(self) -> None:
        """Choose the operations of both parts, and the values that the rest needs of the first."""
        needed, results = set(self._outputs), []
        self._rest: list[_Operation] = []
        for operation in reversed(self._operations):
            of_operation = [value for value in operation.outputs if value in needed]
            if not of_operation:
                continue
            if of_operation[0].dependence == DATA and not _expands(operation):
                results += of_operation
            else:
                self._rest.append(operation)
                needed.update(operation.inputs)
        self._rest.reverse()
        results = [value for value in self._data if value in needed] + results[::-1]
        # Numbers are elements of one array: as arguments of their own they take a tenth of the time of a gradient.
        self._numbers = [value for value in results if value.aval.shape == () and value.aval.dtype.kind == "f"]
        self._results = [value for value in results if value not in self._numbers]
        needed, self._first = set(results), []
        for operation in reversed(self._operations):
            if needed.intersection(operation.outputs):
                self._first.append(operation)
                needed.update(operation.inputs)
        self._first.reverse()

    @cached_property
    def arrays(self) -> list[jax.Array]:
        """Arrays of the data, and of what depends on the data alone, that are arguments of compiled programs."""
        if not (self._results or self._numbers):
            return []

        def compute(leaves):
            values = dict(zip(self._data, leaves, strict=True))
            results = _evaluated(self._first, values, [*self._results, *self._numbers])
            arrays, numbers = results[: len(self._results)], results[len(self._results) :]
            return [*arrays, jnp.stack(jnp.broadcast_arrays(*numbers))] if numbers else arrays

        # Compiled ahead, so that it also runs during a trace.
        return jax.jit(compute).lower(self._leaves).compile(QUICK)(self._leaves)

    def evaluate(self, x: Any) -> Any:
        """Evaluate the function."""
        values = {self._parameter: x} | dict(zip(self._results, self.arrays, strict=False))
        for index, value in enumerate(self._numbers):  # elements of the last array
            values[value] = jax.lax.index_in_dim(self.arrays[-1], index, keepdims=False).astype(value.aval.dtype)
        return self._unflatten(_evaluated(self._rest, values, self._outputs))

    def of_data(self) -> Any:
        """Return the result with None for each of its arrays that depends on the parameters."""
        known = [value for value in self._outputs if value.dependence < PARAMETERS]
        operations = [o for o in self._rest if all(value.dependence < PARAMETERS for value in o.outputs)]
        arrays = [np.asarray(array) for array in self.arrays]  # NumPy's, whose elements need no compilation
        values = dict(zip(self._results, arrays, strict=False))
        if self._numbers:
            values |= dict(zip(self._numbers, arrays[-1], strict=True))
        found = dict(zip(known, _evaluated(operations, values, known), strict=True))
        return self._unflatten([found.get(value) for value in self._outputs])

    def _unflatten(self, outputs: list) -> Any:
        return jax.tree.unflatten(jax.tree.structure(self.out_info), outputs)


def _constants(jaxpr, constants: Sequence[Any]) -> dict[Any, _Value]:
    """Return the values of the constants of a trace by variable."""
    values = (_Value(CONSTANT, variable.aval, c) for variable, c in zip(jaxpr.constvars, constants, strict=True))
    return dict(zip(jaxpr.constvars, values, strict=True))


def _divides_by_data(numerator: _Value, divisor: _Value) -> bool:
    """Return whether a function of the parameters is divided by a floating-point number of the data."""
    is_float = divisor.aval.dtype.kind == "f"
    return is_float and numerator.dependence == PARAMETERS and divisor.dependence == DATA


def _expands(operation: _Operation) -> bool:
    """Return whether the results of an operation are much larger than its inputs, so that it is better repeated."""
    if operation.equation.primitive.name in ("broadcast_in_dim", "iota"):
        return True
    equation = operation.equation
    inputs, outputs = (max((v.aval.size for v in side), default=1) for side in (equation.invars, equation.outvars))
    return outputs > LARGE and outputs > MAX_EXPANSION * inputs


def _evaluated(operations: Sequence[_Operation], values: dict[_Value, Any], outputs: Sequence[_Value]) -> list:
    """Return the outputs of operations; ``values`` has those that they begin with."""

    def read(value):
        return values.get(value, value.constant)

    for operation in operations:
        results = evaluated(operation.equation, [read(value) for value in operation.inputs])
        values |= dict(zip(operation.outputs, results, strict=True))
    return [read(value) for value in outputs]


def evaluated(equation: Any, inputs: Sequence[Any]) -> Sequence[Any]:
    """Return the outputs of one operation of a trace."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = ((), params) if isinstance(params, dict) else params  # a tuple before JAX 0.10
    results = equation.primitive.bind(*functions, *inputs, **params)
    return results if equation.primitive.multiple_results else [results]
