"""Fingerprints of the program, data and options of a run, which identify it when it is resumed."""

import ast
import functools
import hashlib
import inspect
import json
import textwrap
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.program import config_of, module_of, name_of
from hbm_jax.inference.storage import arrays_of


def identify(program: Callable, args: tuple, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and fingerprints of everything that determines the draws of a run.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    args : tuple
        Arguments of the program.
    options : mapping
        Options of the sampler, as plain values.

    Returns
    -------
    dict
        ``program``, ``data`` and ``options``: nested dictionaries of plain values, equal for equal runs.
    """
    return {"program": _program(program), "data": fingerprints(args), "options": dict(options)}


def differences(current_run: Mapping[str, Any], stored_run: Mapping[str, Any]) -> list[str]:
    """Return one clause for each difference between two identities; empty if they are equal."""
    clauses = []
    for section in ("program", "data", "options"):
        current, stored = _flat(current_run[section]), _flat(stored_run[section])
        for name in dict.fromkeys([*stored, *current]):
            old, new = stored.get(name, "absent"), current.get(name, "absent")
            if old == new:
                continue
            if section == "data" or name == "code":
                clauses.append(f"the {'data ' + name if section == 'data' else 'code of the program'} differs")
            else:
                clauses.append(f"{section} {name} was {old!r} and is {new!r}")
    return clauses


def fingerprints(args: tuple) -> dict[str, str]:
    """Return the SHA-256 of every array and value in the arguments of a program, by its path."""
    digests: dict[str, str] = {}
    for number, argument in enumerate(args):
        entries: Any = arrays_of(argument)
        if entries is None and hasattr(argument, "to_dict"):
            entries = argument.to_dict()
        if isinstance(entries, Mapping):
            fields = {f".{name}": value for name, value in entries.items()}
        else:
            leaves = jax.tree_util.tree_flatten_with_path(argument)[0]
            fields = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        digests |= {f"args[{number}]{name}": _digest(value) for name, value in fields.items()}
    return digests


def _digest(value) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of an array or value, with its type and shape."""
    array = np.asarray(value)
    if array.dtype.hasobject:
        content = repr(array.tolist()).encode()  # complete; the repr of NumPy and pandas is abridged
    else:
        content = f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _program(program) -> dict[str, Any]:
    """Return name, configuration and, outside of hbm_jax, code fingerprint of a program."""
    description: dict[str, Any] = {"name": name_of(program)}
    try:
        if (config := config_of(program)) is not None:
            description["config"] = config
    except ValueError:  # the configuration has a prior that cannot be written as text
        description["config"] = {"repr": repr(program)}
    # Code of hbm_jax may change between releases; `resume` compares densities.
    if not module_of(program).startswith("hbm_jax."):
        description["code"] = _code(program)
    return description


def _code(program) -> str:
    """Return a fingerprint of the source of a program and of the variables that it closes over."""
    digest = hashlib.sha256()
    enclosing: list[Any] = []  # functions whose closures are being read

    def add(value, depth=0):
        if isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.items()):
                add(part, depth + 1)
        elif isinstance(value, types.FunctionType | types.MethodType | type):
            if value in enclosing:  # a recursive function closes over itself
                return
            digest.update(_source(value).encode())
            enclosing.append(value)
            for cell in getattr(value, "__closure__", None) or ():
                add(cell.cell_contents, depth + 1)
            enclosing.pop()
        elif isinstance(value, int | float | str | bool | None | np.ndarray | jax.Array):
            digest.update(_digest(value).encode())
        elif callable(value) and depth < 5:
            add(type(value), depth + 1)
            for field in sorted(getattr(value, "__dict__", {}).items()):
                add(field, depth + 1)
        elif isinstance(value, tuple | list) and depth < 5:
            for part in value:
                add(part, depth + 1)
        else:
            digest.update(type(value).__qualname__.encode())

    add(program)
    return digest.hexdigest()[:16]


def _source(function) -> str:
    """Return the syntax tree of a function or class, as text; its bytecode if there is no source file."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):
        code = getattr(function, "__code__", None)
        return repr(function) if code is None else f"{code.co_code!r} {code.co_names} {_constants(code)}"


def _constants(code) -> str:
    """Return the constants of a code object as text.

    A nested function is described by its bytecode, its names and its constants.
    """
    return ", ".join(
        f"{c.co_code!r} {c.co_names} {_constants(c)}" if isinstance(c, types.CodeType) else repr(c)
        for c in code.co_consts
    )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # Through JSON, so that a tuple equals a list of the same values.
            flat[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return flat
