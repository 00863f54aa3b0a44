"""Arguments of a program: conversion of tables, lists and keywords to positional arrays, and checks."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform


def plain_arguments(program: Callable, args: tuple, keywords: Mapping[str, Any] | None = None) -> tuple:
    """Return the arguments of a program by position, with tables and lists as arrays if the program needs that.

    Parameters
    ----------
    program : callable
        A NumPyro program.
    args, keywords : tuple, mapping of str
        Its arguments. A program that can use a pandas object, a Dataset, a list or a tuple gets it unchanged; otherwise
        a Series, list or tuple becomes an array, and a DataFrame or Dataset a dict of arrays. A DataArray becomes an
        array if the program can use that.

    Raises
    ------
    TypeError
        For keywords that the program does not have.
    ValueError
        For masked arrays with masked values and Quantities with a unit, which JAX would read without mask or unit, and
        for columns and lists of anything but numbers, if the program cannot use them.
    """
    if keywords:
        bound = inspect.signature(program).bind(*args, **keywords)
        num_given = 1 + max(list(bound.signature.parameters).index(name) for name in bound.arguments)
        bound.apply_defaults()  # for omitted arguments that precede given ones
        if bound.kwargs:
            raise TypeError(
                f"Keyword-only argument {next(iter(bound.kwargs))!r} of the program: expected an argument that can be "
                "given by position. Fix it with functools.partial."
            )
        args = bound.args[: max(num_given, len(args))]
    names = _argument_names(program, args)
    args = tuple(_new_view(_require_plain(name, value)) for name, value in zip(names, args, strict=True))
    converted = tuple(map(_as_arrays, args))
    if all(new is old for new, old in zip(converted, args, strict=True)):
        _require_numbers(program, names, args)
        return args

    without_labels = tuple(value.to_numpy() if isinstance(value, xr.DataArray) else value for value in args)
    candidates = [args] if not any(isinstance(value, xr.DataArray) for value in args) else [without_labels, args]
    chosen = next((values for values in candidates if _can_use(program, values)), None)
    if chosen is None:
        _require_numbers(program, names, converted)
    return tuple(map(_new_view, converted if chosen is None else chosen))


def _require_numbers(program: Callable, names: list[str], args: tuple) -> None:
    """Raise ValueError for an argument that holds something else than numbers, if the program cannot use it."""
    other = {name: text for name, value in zip(names, args, strict=True) if (text := _not_numbers(value))}
    if other and not _can_use(program, args):
        name, text = next(iter(other.items()))
        raise ValueError(f"{name}: expected numbers; found {text}, which the program cannot use.")


def _not_numbers(value: Any) -> str:
    """Return a description of the first entry that is not a number, of an array, list or tuple; else an empty text."""
    if not isinstance(value, np.ndarray) and type(value) not in (list, tuple):
        return ""
    if type(value) in (list, tuple) and any(isinstance(entry, np.ndarray | jax.Array) for entry in value):
        return ""  # a collection of arrays
    try:
        array = np.asarray(value)
    except ValueError:
        return "rows of unequal lengths"
    if array.dtype.kind in "biufc":
        return ""
    if array.dtype.kind != "O":
        return f"entries of type {array.dtype}"
    is_number = [isinstance(entry, int | float | complex | np.number) for entry in array.ravel()]
    if all(is_number):
        return "an array of type object"
    row = np.unravel_index(is_number.index(False), array.shape or (1,))[0]
    return f"{array.ravel()[is_number.index(False)]!r} in row {row} (counted from 0)"


def _can_use(program: Callable, args: tuple) -> bool:
    """Return whether the log density of a program can be traced with these arguments."""

    def density(key):
        sites = prior_trace(program, args, key).values()
        return sum(jnp.sum(site["fn"].log_prob(site["value"])) for site in sites if site["type"] == "sample")

    try:
        jax.eval_shape(density, jax.random.key(0))
    except Exception:  # pandas, xarray and JAX each raise different exceptions
        return False
    return True


def _argument_names(program: Callable, args: tuple) -> list[str]:
    """Return the name of each positional argument; ``argument 0`` and so on if they are unknown."""
    try:
        names = list(inspect.signature(program).bind(*args).arguments)
    except (TypeError, ValueError):
        names = []
    return names if len(names) == len(args) else [f"argument {i}" for i in range(len(args))]


def _require_plain(name: str, value: Any) -> Any:
    """Return a Quantity without unit or a masked array without masked values as an array; else raise ValueError."""
    if isinstance(value, np.ma.MaskedArray):
        rows = np.unique(np.argwhere(np.atleast_1d(np.ma.getmaskarray(value)))[:, 0])
        if len(rows):
            raise ValueError(
                f"{name}: expected an array without masked values; found {np.ma.count_masked(value)} masked, the first "
                f"in row {rows[0]} (counted from 0). Leave these rows out, or pass the mask as an array of its own and "
                "use numpyro.handlers.mask."
            )
        return np.ma.getdata(value)
    if hasattr(value, "unit") and hasattr(value, "to_value"):
        if str(value.unit):
            raise ValueError(
                f"{name}: expected plain numbers; found a Quantity in {value.unit}. Pass "
                f"{name}.to_value({str(value.unit)!r}); the priors are then in this unit."
            )
        return np.asarray(value.to_value())
    return value


def _new_view(value: Any) -> Any:
    """Return a new view of an array, or of the arrays of a dict; anything else unchanged.

    JAX 0.10 keeps the precision in which it first read an array object, and would mix it with that of a later run.
    """
    if type(value) is dict:
        return {name: _new_view(entry) for name, entry in value.items()}
    return value.view() if type(value) is np.ndarray else value


def _as_arrays(value: Any) -> Any:
    """Return a table as a dict of arrays, a column or a list of numbers as an array, anything else unchanged.

    A tuple is treated as a list.
    """
    if isinstance(value, pd.DataFrame):
        return {str(name): value[name].to_numpy() for name in value}
    if isinstance(value, xr.Dataset):
        return {str(name): value[name].to_numpy() for name in value.variables}
    if isinstance(value, pd.Series | pd.Index | xr.DataArray):
        return value.to_numpy()
    if isinstance(value, list) or type(value) is tuple:
        with contextlib.suppress(ValueError, TypeError):  # rows of unequal lengths
            array = np.asarray(value)
            return array if array.dtype.kind in "biuf" else value
    return value


def rows_with_nan(values: Any) -> str:
    """Return the rows of an array that have NaN, such as "row 2 (counted from 0)"; an empty text without any."""
    rows = np.unique(np.argwhere(np.isnan(np.atleast_1d(values)))[:, 0])
    numbers = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"row{'s' * (len(rows) > 1)} {numbers} (counted from 0)" if len(rows) else ""


def arguments_with_nan(program: Callable, args: tuple) -> str:
    """Return a sentence on the arrays among the arguments that have NaN; an empty text without any."""
    found = [
        f"argument {name!r} has NaN in {rows}"
        for name, value in zip(_argument_names(program, args), args, strict=True)
        if isinstance(value, np.ndarray | jax.Array) and value.dtype.kind == "f" and (rows := rows_with_nan(value))
    ]
    return f"The {'; the '.join(found)}. " if found else ""


@contextlib.contextmanager
def naming_arguments(program: Callable, args: tuple) -> Iterator[None]:
    """Context that adds the lengths of the arguments to an error about shapes, if they differ."""
    try:
        yield
    except (TypeError, ValueError) as error:
        lengths = {
            name: len(value)
            for name, value in zip(_argument_names(program, args), args, strict=True)
            if isinstance(value, np.ndarray | jax.Array) and np.ndim(value)
        }
        is_about_shapes = any(word in str(error).lower() for word in ("shape", "broadcast", "size"))
        if len(set(lengths.values())) < 2 or not is_about_shapes:
            raise
        numbers = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"The program failed: {error} Expected arguments of equal length? {numbers} rows.") from error


def prior_value(site):
    """Draw a latent from its prior, or near zero if the prior cannot be sampled; for ``substitute_fn``.

    NumPyro's `init_to_sample` returns the same, but computes a median of one draw, which takes time to compile.
    """
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    try:
        return _draw(site)
    except NotImplementedError:
        return init_to_uniform(site)


def prior_trace(program: Callable, args: tuple, key: jax.Array, value: Callable = prior_value) -> dict[str, dict]:
    """Return the trace of a program at a prior draw; ``value`` draws the latents, as `prior_value` does."""
    seeded = handlers.substitute(handlers.seed(program, key), substitute_fn=value)
    return handlers.trace(seeded).get_trace(*args)


def latents_of(trace: dict[str, dict]) -> dict[str, dict]:
    """Return the latent sites of a trace by name."""
    return {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}


def _draw(site):
    """Draw a value of a site; raise NotImplementedError if its distribution cannot be sampled."""
    return site["fn"](rng_key=site["kwargs"]["rng_key"], sample_shape=site["kwargs"]["sample_shape"])


def unsampled_sites(program: Callable, args: tuple) -> list[str]:
    """Return the latent sites whose prior cannot be sampled, such as improper ones."""
    names: list[str] = []

    def value(site):
        drawn = prior_value(site)
        if drawn is not None:
            try:
                _draw(site)
            except NotImplementedError:
                names.append(site["name"])
        return drawn

    def record(key):
        prior_trace(program, args, key, value)
        return 0

    jax.eval_shape(record, jax.random.key(0))
    return names
