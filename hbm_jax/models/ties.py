"""Parameters tied to others by formulas, such as ``2 * a_nh``.

A formula comes from a user, a configuration file or a stored fit, so it is never evaluated as code: it may contain
numbers, names of parameters, ``+ - * / **``, parentheses and the functions `FUNCTIONS`.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hbm_jax.distributions.notation import distribution_from_text
from hbm_jax.names import did_you_mean, listed

FUNCTIONS = {"abs": jnp.abs, "exp": jnp.exp, "log": jnp.log, "log10": jnp.log10, "sqrt": jnp.sqrt}
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MAX_LENGTH = 1000  # characters


@dataclass(frozen=True)
class Tie:
    """Formula for a parameter in terms of other parameters.

    Parameters
    ----------
    text : str
        Numbers, names of parameters, ``+ - * / **``, parentheses, and the functions ``abs``, ``exp``, ``log``,
        ``log10`` and ``sqrt``.
    name : str
        Name of the tied parameter, for error messages.

    Raises
    ------
    ValueError
        If the text is not such a formula, or names no parameter.

    Examples
    --------
    >>> float(Tie("2 * a_nh")({"a_nh": 0.1}))
    0.2
    """

    text: str
    name: str = "prior"

    def __post_init__(self):
        try:
            names = self.parameters
            result = jax.eval_shape(self, {name: jax.ShapeDtypeStruct((), float) for name in names})
        except (SyntaxError, RecursionError, MemoryError, ArithmeticError, TypeError) as error:
            raise ValueError(f"{self._expected}, which cannot be read ({error}).") from None
        if not names:
            raise ValueError(f"{self._expected}, which names no parameter.")
        if not jnp.issubdtype(result.dtype, jnp.floating):
            raise ValueError(f"{self._expected}, which is not a real number.")

    def __str__(self):
        return self.text

    @property
    def _expected(self) -> str:
        """Beginning of error messages."""
        return (
            f"{self.name}: expected a number, a distribution, or a formula of other parameters such as '2 * a_nh'; "
            f"found {self.text!r:.200}"
        )

    @property
    def _node(self) -> ast.expr:
        """Syntax tree of the formula."""
        if len(self.text) > MAX_LENGTH:
            raise ValueError(f"{self._expected}, of more than {MAX_LENGTH} characters.")
        return ast.parse(self.text.strip(), mode="eval").body

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters in the formula, in order."""
        return tuple(dict.fromkeys(names_in(self._node)))

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the formula for values of the parameters, which broadcast."""
        return self._value(self._node, values)

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        """Return the value of a node of the syntax tree; raise ValueError for one that is not allowed."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
            return float(node.value)
        if isinstance(node, ast.Name):
            return values[node.id]
        if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](self._value(node.operand, values))
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](self._value(node.left, values), self._value(node.right, values))
        if _is_function(node) and len(node.args) == 1 and not node.keywords:  # type: ignore[attr-defined]
            return FUNCTIONS[node.func.id](self._value(node.args[0], values))  # type: ignore[attr-defined]
        raise ValueError(
            f"{self._expected}, where {ast.unparse(node)!r} is not a number, a parameter, an operation + - * / **, or "
            f"a function {', '.join(FUNCTIONS)} of one argument."
        )


def _is_function(node: ast.AST) -> bool:
    """Return whether a node is a call of one of `FUNCTIONS`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS


def names_in(node: ast.AST) -> list[str]:
    """Return the names in a syntax tree, in order, without those of functions that are called."""
    if isinstance(node, ast.Name):
        return [node.id]
    children = [*node.args, *node.keywords] if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
    return [name for child in children for name in names_in(child)]


def prior_from_text(text: str, name: str = "prior") -> Any:
    """Read a distribution, a number that fixes a parameter, or a formula of other parameters.

    Raises
    ------
    ValueError
        For any other text.

    Examples
    --------
    >>> prior_from_text("2 * a_nh").parameters
    ('a_nh',)
    """
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
        is_formula = _is_function(node) if isinstance(node, ast.Call) else bool(names_in(node))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        is_formula = False
    return Tie(str(text), name) if is_formula else distribution_from_text(text, name)


def ordered_ties(priors: Mapping[str, Any], allowed: Mapping[str, Any]) -> dict[str, Tie]:
    """Return the ties among priors, sorted so that each depends only on untied parameters and previous ties.

    Parameters
    ----------
    priors : mapping
        Priors of all parameters by name.
    allowed : mapping
        Parameters that formulas may name.

    Raises
    ------
    ValueError
        For a formula that names an unknown parameter, and for formulas that depend on each other.
    """
    ties = {name: prior for name, prior in priors.items() if isinstance(prior, Tie)}
    for name, tie in ties.items():
        for other in (name, *tie.parameters):
            if other not in allowed:
                raise ValueError(
                    f"prior.{name}: expected a formula of the parameters {listed(allowed)}; found {other!r}"
                    f"{did_you_mean(other, allowed)} in {tie.text!r}."
                )
    ordered: dict[str, Tie] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise ValueError(f"prior.{name}: expected formulas that do not depend on each other; found {cycle}.")
        if name in ties and name not in ordered:
            for other in ties[name].parameters:
                visit(other, (*path, name))
            ordered[name] = ties[name]

    for name in ties:
        visit(name, ())
    return ordered
