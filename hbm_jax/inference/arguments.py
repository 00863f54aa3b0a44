"""Arguments of a program: conversion of tables, lists and keywords to positional arrays, and checks."""

import contextlib
import inspect
import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform

MAX_COMBINATIONS = 64  # of forms of the arguments that are tried
LISTS_AS_ARRAYS = ".*requires ndarray or scalar arguments"  # JAX's warning that it will not take lists any more


def plain_arguments(program: Callable, args: tuple, keywords: Mapping[str, Any] | None = None) -> tuple:
    """Return the arguments of a program by position, with tables and lists as arrays if the program needs that.

    Parameters
    ----------
    program : callable
        A NumPyro program.
    args, keywords : tuple, mapping of str
        Its arguments. A program that can use a table, a list or a tuple gets it unchanged; otherwise a Series, list or
        tuple becomes an array, and a DataFrame, Dataset, astropy Table or structured array a dict of arrays or, if the
        program cannot use that, an array: a vector if there is one column. A DataArray becomes an array if the program
        can use that. Arrays in the byte order of FITS files or of extended precision become float64.

    Raises
    ------
    TypeError
        For keywords that the program does not have.
    ValueError
        For masked arrays with masked values and Quantities with a unit, which JAX would read without mask or unit, for
        Series and DataFrames of one length with the same labels in different rows, or DataArrays along a dimension,
        which would be paired by position, and for tables, and columns and lists of anything but numbers, if the program
        cannot use them.
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
    _require_equal_rows(names, args)
    args = tuple(_new_view(_require_plain(name, value)) for name, value in zip(names, args, strict=True))
    choice = _usable_forms(program, names, args, [_forms(name, value) for name, value in zip(names, args, strict=True)])
    return args if choice is None else tuple(map(_new_view, choice))


def by_position(program: Callable, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that are arguments of a program which can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(program).parameters if keywords else {}
    return {n: value for n, value in keywords.items() if n in parameters and parameters[n].kind in kinds}


def plain_objects(program: Callable, objects: Sequence[tuple]) -> list[tuple]:
    """Return the arguments of a program for each of many objects, converted as by `plain_arguments`.

    Tables and lists always become arrays, and those of all objects in the same way as those of the first. Errors name
    the object.
    """
    plain, forms = [], []
    for index, args in enumerate(objects):
        names = [f"object {index}, {name}" for name in _argument_names(program, args)]
        _require_equal_rows(names, args)
        plain.append(tuple(_require_plain(name, value) for name, value in zip(names, args, strict=True)))
        for name, value, first in zip(names, plain[-1], plain[0], strict=False):
            if (text := _not_numbers(value)) and not _not_numbers(first):
                raise ValueError(f"{name}: expected numbers, as in object 0; found {text}.")
        all_forms = [_forms(name, value) for name, value in zip(names, plain[-1], strict=True)]
        # Without the argument as it is, if it has other forms.
        forms.append(
            [
                [form for form in options if form is not value] or options
                for options, value in zip(all_forms, plain[-1], strict=True)
            ]
        )
    if not objects:
        return []
    first_names = [f"object 0, {name}" for name in _argument_names(program, objects[0])]
    choice = _usable_forms(program, first_names, plain[0], forms[0])
    if choice is None:
        chosen = [0] * len(forms[0])
    else:
        chosen = [
            next((k for k, form in enumerate(options) if form is value), 0)
            for options, value in zip(forms[0], choice, strict=True)
        ]
    return [
        tuple(options[min(k, len(options) - 1)] for options, k in zip(row, chosen, strict=False))
        if len(row) == len(chosen)
        else args
        for row, args in zip(forms, plain, strict=True)
    ]


def _usable_forms(program: Callable, names: list[str], args: tuple, forms: list[list[Any]]) -> tuple | None:
    """Return the first combination of forms of the arguments that a program can use; None: no argument has others.

    If it can use none, the last form of each, unless an argument is a table or not of numbers: then raise ValueError.
    """
    if all(len(options) == 1 for options in forms):
        _require_numbers(program, names, tuple(options[0] for options in forms))
        return None
    tables = {name: _table_name(value) for name, value in zip(names, args, strict=True) if _is_table(value)}
    # The arguments unchanged first, then those with the fewest conversions.
    indices = sorted(itertools.product(*(range(len(options)) for options in forms)), key=lambda ks: (sum(ks), ks))
    for ks in indices[:MAX_COMBINATIONS]:
        values = tuple(options[k] for options, k in zip(forms, ks, strict=True))
        if _failure(program, values, strict=bool(tables)) is None:
            return values
    last = tuple(options[-1] for options in forms)
    _require_numbers(program, names, last)
    if tables:
        name, text = next(iter(tables.items()))
        error = _failure(program, last, strict=True)
        raise ValueError(
            f"{name}: expected data that the program can use; found {text}. It fails with the table, a dict of its "
            f"columns, and an array ({error}). Pass the columns that it needs as arrays, such as "
            f"{name.split(', ')[-1]}['column'].to_numpy()."
        )
    return last


def _require_numbers(program: Callable, names: list[str], args: tuple) -> None:
    """Raise ValueError for an argument that holds something else than numbers, if the program cannot use it."""
    other = {name: text for name, value in zip(names, args, strict=True) if (text := _not_numbers(value))}
    if other and _failure(program, args) is not None:
        name, text = next(iter(other.items()))
        raise ValueError(f"{name}: expected numbers; found {text}, which the program cannot use.")


def _not_numbers(value: Any) -> str:
    """Return a description of the first entry that is not a number, of an array or a collection; else an empty text."""
    if isinstance(value, str | bytes | set | frozenset | Iterator):
        return f"a {type(value).__name__}"
    if (not isinstance(value, np.ndarray) and type(value) not in (list, tuple)) or _is_table(value):
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


def _failure(program: Callable, args: tuple, strict: bool = False) -> Exception | None:
    """Return the error with which the log density of a program fails with these arguments; None if it can be traced.

    ``strict``: data of another shape than their distribution, which would be broadcast, count as a failure.
    """

    def density(key):
        sites = prior_trace(program, args, key)
        for name, site in sites.items():
            if strict and site["type"] == "sample" and site["is_observed"] and np.ndim(site["value"]):
                expected, actual = tuple(site["fn"].shape()), np.shape(site["value"])
                if expected != actual:
                    raise ValueError(f"observed site {name!r}: expected shape {expected}; found {actual}")
        return sum(jnp.sum(site["fn"].log_prob(site["value"])) for site in sites.values() if site["type"] == "sample")

    try:
        with naming_arguments(program, args), without_support_warnings():
            warnings.filterwarnings("error", LISTS_AS_ARRAYS, DeprecationWarning)
            jax.eval_shape(density, jax.random.key(0))
    except Exception as error:  # pandas, xarray and JAX each raise different exceptions
        return error
    return None


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
                f"{name.split(', ')[-1]}.to_value({str(value.unit)!r}); the priors are then in this unit."
            )
        return np.asarray(value.to_value())
    return value


def _require_equal_rows(names: list[str], args: tuple) -> None:
    """Raise ValueError if two arguments of one length have the same labels in different rows of their indices.

    Indices without a common label, such as those of objects and of groups, say nothing about how rows belong together.
    """
    first: dict[tuple, tuple[str, pd.Index]] = {}
    for name, value in zip(names, args, strict=True):
        for dimension, index in _indices(value).items():
            other, expected = first.setdefault((dimension, len(index)), (name, index))
            labels, expected_labels = index.tolist(), expected.tolist()
            if index.equals(expected) or set(labels).isdisjoint(expected_labels):
                continue
            # Compared as text, because missing labels are not equal to themselves.
            row = [repr(a) == repr(b) for a, b in zip(labels, expected_labels, strict=True)].index(False)
            remedy = "drop_vars" if dimension else "reset_index(drop=True)"
            raise ValueError(
                f"{name}: expected the index of {other}, because rows are paired by position; found {labels[row]!r} "
                f"instead of {expected_labels[row]!r} in row {row} (counted from 0). Align the two, such as by "
                f"reindex, or, if their rows are in the same order, drop the index with {remedy}."
            )


def _indices(value: Any) -> dict[str, pd.Index]:
    """Return the index of a Series or DataFrame, under an empty name, or those of a DataArray or Dataset."""
    if isinstance(value, pd.Series | pd.DataFrame):
        return {"": value.index}
    if isinstance(value, xr.DataArray | xr.Dataset):
        return {str(dimension): index for dimension, index in value.indexes.items()}
    return {}


def _new_view(value: Any) -> Any:
    """Return a new view of an array, or of the arrays of a dict; anything else unchanged.

    JAX 0.10 keeps the precision in which it first read an array object, and would mix it with that of a later run.
    """
    if type(value) is dict:
        return {name: _new_view(entry) for name, entry in value.items()}
    return value.view() if type(value) is np.ndarray else value


def _forms(name: str, value: Any) -> list[Any]:
    """Return an argument and what it can be converted to, in the order in which they are tried.

    Columns and lists: an array. Tables: a dict of arrays, the only column, and a matrix.
    """
    if isinstance(value, xr.DataArray):
        return [value.to_numpy(), value]
    if isinstance(value, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return [value, np.asarray(_with_plain_numbers(pd.Series(value).to_numpy()))]
    if _is_table(value):
        columns = _columns(name, value)
        is_dataset = isinstance(value, xr.Dataset)
        vectors = [columns[str(column)] for column in value.data_vars] if is_dataset else list(columns.values())
        is_matrix = len({np.shape(v) for v in vectors}) == 1 and all(v.dtype.kind in "biuf" for v in vectors)
        arrays = vectors if len(vectors) == 1 else []
        if is_matrix and not is_dataset:
            arrays = [*arrays, np.stack(vectors, axis=-1)]
        return [value, columns, *arrays]
    if isinstance(value, np.ndarray):
        plain = _with_plain_numbers(value)
        return [value] if plain is value else [value, plain]
    if type(value) is dict:
        entries = {key: _require_plain(f"{name}[{key!r}]", entry) for key, entry in value.items()}
        entries = {key: _forms(f"{name}[{key!r}]", entry)[-1] for key, entry in entries.items()}
        return [value] if all(entries[key] is value[key] for key in value) else [value, entries]
    if isinstance(value, list | range) or type(value) is tuple:
        with contextlib.suppress(ValueError, TypeError):  # rows of unequal lengths
            array = np.asarray(value)
            return [value, array] if array.dtype.kind in "biuf" else [value]
    return [value]


def _with_plain_numbers(array: np.ndarray) -> np.ndarray:
    """Return an array as one of numbers that JAX takes, if its entries are real numbers; any other unchanged.

    JAX takes no objects, no extended precision, and not the byte order of FITS files.
    """
    if not array.dtype.isnative and array.dtype.kind in "biufc":
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    if array.dtype.kind == "O" and all(isinstance(x, int | float | np.integer | np.floating) for x in array.ravel()):
        return array.astype(float)
    return array


def _is_table(value: Any) -> bool:
    """Return whether an argument is a DataFrame, a Dataset, an astropy Table or a structured array."""
    is_structured = isinstance(value, np.ndarray) and value.dtype.names is not None
    is_of_astropy = hasattr(value, "colnames") and hasattr(value, "as_array")
    return isinstance(value, pd.DataFrame | xr.Dataset) or is_of_astropy or is_structured


def _table_name(value: Any) -> str:
    """Describe a table by its type and columns."""
    names = [str(name) for name in (_column_names(value) or value)]
    return f"a {type(value).__name__} of {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def _column_names(value: Any) -> list[str]:
    """Return the names of the columns of an astropy Table or a structured array; none for other tables."""
    return list(value.dtype.names if isinstance(value, np.ndarray) else getattr(value, "colnames", ()))


def _columns(name: str, value: Any) -> dict[str, np.ndarray]:
    """Return the columns of a table as arrays; raise ValueError for masked values and units."""
    if isinstance(value, xr.Dataset):
        return {str(column): value[column].to_numpy() for column in value.variables}
    if isinstance(value, pd.DataFrame):
        return {str(column): _with_plain_numbers(value[column].to_numpy()) for column in value}
    columns = {column: _require_plain(f"{name}[{column!r}]", value[column]) for column in _column_names(value)}
    return {column: _with_plain_numbers(np.asarray(entries)) for column, entries in columns.items()}


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
    """Context that adds the arguments to an error of the program.

    Those that are collections are added to errors about types, the lengths of arrays, if they differ, to errors about
    shapes, and values that are not positive to errors about parameters of distributions. Functions of NumPy that meet a
    parameter, and conditions on one, are named with their line.
    """
    try:
        yield
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"The program failed{_line_of(program, error)}: a parameter was passed to a function of NumPy, or of "
            "another library without gradients. Expected jax.numpy in place of numpy (import jax.numpy as jnp)."
        ) from error
    except jax.errors.TracerBoolConversionError as error:
        raise TypeError(
            f"The program failed{_line_of(program, error)}: a parameter decides in an if, a while or a comparison such "
            "as max(a, b). Expected functions of arrays, such as jnp.where(a > 0, 2 * a, a) and jnp.maximum(a, b)."
        ) from error
    except (TypeError, ValueError) as error:
        named = list(zip(_argument_names(program, args), args, strict=True))
        others = [f"{name} is a {type(v).__name__}" for name, v in named if isinstance(v, dict | list | tuple | range)]
        if isinstance(error, TypeError) and others and not isinstance(error, jax.errors.JAXTypeError):
            raise TypeError(f"The program failed: {error}. Expected other arguments? {'; '.join(others)}.") from error
        if isinstance(error, ValueError) and "distribution got invalid" in str(error):
            invalid = [f"{name} has {found}" for name, value in named if (found := _first_not_positive(value))]
            values = f" Expected positive values? {'; '.join(invalid)}." if invalid else ""
            raise ValueError(f"The program failed{_line_of(program, error)}: {error}{values}") from error
        lengths = {name: len(v) for name, v in named if isinstance(v, np.ndarray | jax.Array) and np.ndim(v)}
        is_about_shapes = any(word in str(error).lower() for word in ("shape", "broadcast", "size"))
        if len(set(lengths.values())) < 2 or not is_about_shapes or "Expected arguments of equal length" in str(error):
            raise
        numbers = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"The program failed: {error} Expected arguments of equal length? {numbers} rows.") from error


def _line_of(program: Callable, error: Exception) -> str:
    """Return the last line of the file of a program that an error passed, such as " in line 7 of lines.py"."""
    file = getattr(getattr(program, "__code__", None), "co_filename", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f" in line {lines[-1]} of {Path(file).name}" if file and lines else ""


def _first_not_positive(value: Any) -> str:
    """Return the first value of an array that is not positive, with its row; an empty text if there is none."""
    if not isinstance(value, np.ndarray | jax.Array) or value.dtype.kind not in "fiu":
        return ""
    values = np.atleast_1d(np.asarray(value))
    rows = np.argwhere(~(values > 0))
    return f"{values[tuple(rows[0])]:g} in row {rows[0][0]} (counted from 0)" if len(rows) else ""


@contextlib.contextmanager
def without_support_warnings() -> Iterator[None]:
    """Context without NumPyro's warnings of values outside a support: their log density is -inf, which is refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Out-of-support values", category=UserWarning)
        yield


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
