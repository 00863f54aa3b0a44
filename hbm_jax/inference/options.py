"""Options of a run of `hbm_jax.sample`, each defined once, as a field of a dataclass."""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbm_jax.names import did_you_mean

KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run, beside those of its sampler, that determine the draws; `hbm_jax.sample` documents them."""

    seed: int = 0
    num_chains: int = 4
    num_warmup: int | None = None
    dtype: str = "float64"
    centering: bool | None = None

    def __post_init__(self):
        for name in ("seed", "num_chains", "num_warmup"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        object.__setattr__(self, "centering", None if self.centering is None else bool(self.centering))
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"sample: expected a seed of at most 64 bits; found {self.seed}.")
        if self.num_chains < 1:
            raise ValueError(f"sample: expected num_chains >= 1; found {self.num_chains}.")
        if self.num_warmup is not None and self.num_warmup < 0:
            raise ValueError(f"sample: expected num_warmup >= 0; found {self.num_warmup}.")
        with contextlib.suppress(TypeError):  # not a NumPy dtype: rejected below
            object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"sample: expected dtype 'float64' or 'float32'; found {self.dtype!r}.")


def field_names(*kinds: type) -> list[str]:
    """Return the names of the fields of dataclasses."""
    return [item.name for kind in kinds for item in dataclasses.fields(kind)]


def with_options(*kinds: type) -> Callable[[Callable], Callable]:
    """Return a decorator that adds fields of dataclasses to the signature of a function with ``**options``."""

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        fields = []
        for kind in kinds:
            hints = typing.get_type_hints(kind)
            fields += [
                inspect.Parameter(item.name, KEYWORD, default=item.default, annotation=hints[item.name])
                for item in dataclasses.fields(kind)
            ]
        explicit = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        positional = [p for p in explicit if p.kind is not KEYWORD]
        keywords = [p for p in explicit if p.kind is KEYWORD]
        function.__signature__ = signature.replace(parameters=[*positional, *fields, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate


def arguments_named(program: Callable, options: Iterable[str], caller: Callable) -> list[str]:
    """Return the options that are arguments of a NumPyro program and not keywords of the function that runs it."""
    try:
        arguments = inspect.signature(program).parameters
    except (TypeError, ValueError):  # no signature
        return []
    known = inspect.signature(caller).parameters
    return [name for name in options if name in arguments and name not in known]


def require_known(caller: Callable, options: Iterable[str]) -> None:
    """Raise TypeError for an option that is not a keyword of a function; the message suggests the nearest one."""
    known = [p.name for p in inspect.signature(caller).parameters.values() if p.kind is KEYWORD]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{caller.__name__}: unknown option {name!r}{did_you_mean(name, known)}: expected one of "
                f"{', '.join(known)}."
            )


def selected(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the options that are fields of a dataclass."""
    return {name: options[name] for name in field_names(kind) if name in options}


def whole_number(name: str, value: Any, owner: str = "sample") -> int | None:
    """Return an option as a Python int, which JSON can hold; None is returned unchanged.

    Raises
    ------
    ValueError
        If the value is not a whole number.
    """
    value = plain(value)
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if is_whole and not isinstance(value, bool):
        return int(value)
    raise ValueError(f"{owner}: expected {name} to be a whole number; found {value!r}.")


def real_number(name: str, value: Any, owner: str = "sample") -> float | None:
    """Return an option as a Python float, which JSON can hold; None is returned unchanged.

    Raises
    ------
    ValueError
        If the value is not a number.
    """
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{owner}: expected {name} to be a number; found {value!r}.")


def plain(value: Any) -> Any:
    """Return a scalar of NumPy or JAX as a Python scalar; anything else unchanged."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
