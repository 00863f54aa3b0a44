"""Who a run is: fingerprints of its program and data, so that another one is never taken for it."""

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

from hbm_jax.inference.storage import arrays_of


def identify(program: Callable, args: tuple, options: Mapping[str, Any]) -> dict[str, Any]:
    """Name and fingerprint of everything the draws of a run depend on.

    Parameters
    ----------
    program : callable
        A model of hbm_jax or any NumPyro program.
    args : tuple
        What it is called with.
    options : mapping
        Options of the sampler, plain values.

    Returns
    -------
    dict
        ``program``, ``data``, ``options``: nested dictionaries of plain values, equal for equal runs.
    """
    return {"program": _program(program), "data": fingerprints(args), "options": dict(options)}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Clauses that name each place where two identities differ; empty where they are the same run."""
    found = []
    for section in ("program", "data", "options"):
        mine, other = _flat(ours[section]), _flat(theirs[section])
        for name in dict.fromkeys([*other, *mine]):
            was, is_now = other.get(name, "absent"), mine.get(name, "absent")
            if was == is_now:
                continue
            if section == "data" or name == "code":
                found.append(f"the {'data ' + name if section == 'data' else 'code of the program'} differs")
            else:
                found.append(f"{section} {name} was {was!r} and is {is_now!r}")
    return found


def fingerprints(args: tuple) -> dict[str, str]:
    """SHA-256 of every array and value a program is called with, by its place."""
    found: dict[str, str] = {}
    for number, argument in enumerate(args):
        arrays = arrays_of(argument)
        if arrays is not None:
            fields = {f".{name}": value for name, value in arrays.items()}
        elif hasattr(argument, "to_dict") and isinstance(entries := argument.to_dict(), Mapping):
            fields = {f".{name}": value for name, value in entries.items()}
        else:
            leaves = jax.tree_util.tree_flatten_with_path(argument)[0]
            fields = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        found |= {f"args[{number}]{name}": _digest(value) for name, value in fields.items()}
    return found


def _digest(value) -> str:
    array = np.asarray(value)
    if array.dtype.hasobject:
        content = repr(array.tolist()).encode()  # all of it; NumPy and pandas abridge their own
    else:
        content = f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _program(program) -> dict[str, Any]:
    own = getattr(program, "__module__", type(program).__module__)
    about: dict[str, Any] = {"name": program_name(program)}
    if hasattr(program, "to_config"):
        own = type(program).__module__
        try:
            about["config"] = program.to_config()
        except ValueError:  # a prior that cannot be written as text
            about["config"] = {"repr": repr(program)}
    if not str(own).startswith("hbm_jax."):  # a release of ours may change its code, and its density is checked anyway
        about["code"] = _code(program)
    return about


def program_name(program) -> str:
    """Name of a function, or of a model's class."""
    if isinstance(program, functools.partial):
        return program_name(program.func)
    return getattr(program, "__qualname__", type(program).__name__)


def _code(thing) -> str:
    """Fingerprint of what a program does, as far as its own source and what it closes over say."""
    digest = hashlib.sha256()

    def add(value, depth=0):
        if isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.items()):
                add(part, depth + 1)
        elif isinstance(value, types.FunctionType | types.MethodType | type):
            digest.update(_source(value).encode())
            for cell in getattr(value, "__closure__", None) or ():
                add(cell.cell_contents, depth + 1)
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

    add(thing)
    return digest.hexdigest()[:16]


def _source(thing) -> str:
    """Source without comments and layout; the bytecode where there is no source to be had."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(thing))))
    except (OSError, TypeError, SyntaxError):
        code = getattr(thing, "__code__", None)
        return repr(thing) if code is None else f"{code.co_code!r} {code.co_names} {_constants(code)}"


def _constants(code) -> str:
    return ", ".join(
        f"{c.co_code!r} {c.co_names} {_constants(c)}" if isinstance(c, types.CodeType) else repr(c)
        for c in code.co_consts
    )


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.loads(
                json.dumps(value, default=str)
            )  # a tuple and a list of the same are the same
    return flat
