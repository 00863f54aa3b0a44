"""Messages between the processes of a run: plain values, arrays, records and errors as bytes, without pickling."""

import builtins
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hbm_jax.inference.sampler.checkpoint import CheckpointError, Saved
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.inference.sampler.kernels.protocol import Block
from hbm_jax.inference.sampler.loop import Interrupted
from hbm_jax.inference.sampler.metric import Metric
from hbm_jax.inference.sampler.target import StartError

RECORDS = {kind.__name__: kind for kind in (Block, Metric, Saved, Start)}
ERRORS = {kind.__name__: kind for kind in (CheckpointError, Interrupted, StartError)}
TREE = "tree"


def pack(value: Any) -> bytes:
    """Return a value as bytes.

    Parameters
    ----------
    value
        None, numbers, text, paths, arrays of numbers or text, errors, the records of `RECORDS`, and lists, tuples and
        dictionaries of these.

    Raises
    ------
    TypeError
        For anything else.
    """
    arrays: list[np.ndarray] = []

    def plain(part: Any) -> Any:
        if isinstance(part, np.ndarray | np.generic | jax.Array) and not np.asarray(part).dtype.hasobject:
            arrays.append(np.asarray(part))
            return {"array": len(arrays) - 1, "scalar": isinstance(part, np.generic)}
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, dict):
            return {"items": [[plain(key), plain(entry)] for key, entry in part.items()]}
        if type(part).__name__ in RECORDS and type(part) is RECORDS[type(part).__name__]:
            fields = part._asdict() if isinstance(part, tuple) else vars(part)
            return {"record": type(part).__name__, "fields": plain(dict(fields))}
        if isinstance(part, tuple | list):
            return {type(part).__name__: [plain(entry) for entry in part]}
        if isinstance(part, Path):
            return {"path": str(part)}
        if isinstance(part, BaseException):
            return {"error": type(part).__name__, "text": str(part)}
        raise TypeError(f"expected plain values or arrays in a message; found a {type(part).__name__}: {part!r:.200}")

    tree = json.dumps(plain(value))
    file = io.BytesIO()
    np.savez(file, **{TREE: np.asarray(tree)}, **{str(i): array for i, array in enumerate(arrays)})  # type: ignore[arg-type]
    return file.getvalue()


def unpack(message: bytes) -> Any:
    """Return the value of a message of `pack`; an error of an unknown type becomes a RuntimeError that names it."""
    with np.load(io.BytesIO(message), allow_pickle=False) as members:
        arrays = {name: members[name] for name in members.files}

    def value(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = next(iter(part))
        content = part[kind]
        if kind == "array":
            return arrays[str(content)][()] if part["scalar"] else arrays[str(content)]
        if kind == "items":
            return {value(key): value(entry) for key, entry in content}
        if kind == "record":
            return RECORDS[content](**value(part["fields"]))
        if kind == "path":
            return Path(content)
        if kind == "error":
            return _error(content, part["text"])
        entries = [value(entry) for entry in content]
        return tuple(entries) if kind == "tuple" else entries

    return value(json.loads(str(arrays[TREE])))


def _error(name: str, text: str) -> BaseException:
    """Return an error of process 0."""
    kind = ERRORS.get(name, getattr(builtins, name, None))
    if isinstance(kind, type) and issubclass(kind, BaseException):
        try:
            return kind(text)
        except TypeError:  # it takes other arguments
            pass
    return RuntimeError(f"process 0: {name}: {text}")
