"""Formulas of regressions: the design matrix that formulaic builds from what the grammar has accepted."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from hbm_jax.data.regression.grammar import EXAMPLE, OF_NUMBERS, GroupTerm, ParsedFormula, expanded, parse, tokens_of
from hbm_jax.names import did_you_mean, listed
from hbm_jax.validation import DataError

__all__ = ["EXAMPLE", "GroupTerm", "ParsedFormula", "design", "frame_of", "parse", "require_columns", "require_numbers"]


def require_few_columns(terms: str, frame: Any, limit: int) -> None:
    """Raise `DataError` where the terms of a formula have more columns than points, before any is made.

    Parameters
    ----------
    terms : str
        Right-hand side, as `parse` returns it.
    frame : pandas.DataFrame
        The table.
    limit : int
        How many columns there may be.
    """
    found = expanded(terms)
    least = {}
    for factor in frozenset().union(*found):
        name = factor.removeprefix("C(").removesuffix(")").strip("`")
        text = name in frame and (factor.startswith("C(") or frame[name].dtype.kind not in "iufb")
        least[factor] = max(1, frame[name].nunique() - 1) if text else 1
    total = 0.0
    for term in found:
        total += float(np.prod([float(least[factor]) for factor in term]))
        if total > limit:
            raise DataError(f"formula: expected at most {limit} coefficients, one a point; found more in {terms!r}.")


def design(formula: str, frame: Any, what: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and values (N, K) of the columns of a formula.

    Parameters
    ----------
    formula : str
        As `parse` returns it: ``x1 * x2``, ``log(x)``, ``C(k)``, ``poly(x, 2)``, ``0 + x``.
    frame : pandas.DataFrame
        The table.
    what : str
        What the formula is for, for messages.

    Raises
    ------
    DataError
        If it cannot be evaluated.
    """
    formulaic, errors = _formulaic()
    require_few_columns(formula, frame, len(frame))
    # formulaic evaluates a function's arguments as Python, so a column has a name there that means nothing else.
    called = {name: f"column_{place}_" for place, name in enumerate(frame)}
    text, end = "", 0
    for token, after in pairwise(tokens_of(formula)):
        if token.kind == "quoted" or (token.kind == "name" and after.text != "("):
            text += formula[end : token.start] + called[token.text]
            end = token.start + len(token.text) + 2 * (token.kind == "quoted")
    text += formula[end:]
    renamed = frame.rename(columns=called)
    try:
        with np.errstate(all="ignore"):
            matrix = formulaic.model_matrix(text, renamed, context=dict(OF_NUMBERS), na_action="ignore")
    except (errors.FormulaicError, ArithmeticError, TypeError, ValueError) as error:
        raise DataError(f"formula: {what} {formula!r} cannot be evaluated: {_plain(error, called)}") from None
    known = {safe: name for name, safe in called.items()}
    pattern = re.compile(r"column_\d+_")
    names = tuple(pattern.sub(lambda match: known[match[0]], str(name)) for name in matrix.model_spec.column_names)
    return names, np.asarray(matrix.to_numpy(), float).reshape(len(frame), len(names))


def frame_of(columns: Mapping[str, np.ndarray]) -> Any:
    """Return a pandas frame in which text that reads as numbers is numbers."""
    import pandas as pd

    return pd.DataFrame({name: _numbers_where_possible(values) for name, values in columns.items()})


def _numbers_where_possible(values) -> np.ndarray:
    mask = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values))
    if array.dtype.kind == "b":
        return array.astype(float)
    if array.dtype.kind in "iuf":
        return np.where(mask, np.nan, array) if mask is not None else array
    if mask is None and set(map(type, array.tolist())) == {str}:
        try:
            return array.astype(float)
        except ValueError:
            pass
    texts = ["" if one is None else one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
    if mask is not None:
        texts = ["" if gone else text for text, gone in zip(texts, mask, strict=True)]
    missing = {"", "nan", "na", "none", "--"}
    try:
        numbers = np.array([np.nan if text.strip().lower() in missing else float(text) for text in texts])
    except ValueError:
        return np.array([None if text.strip() == "" else text for text in texts], dtype=object)
    return numbers


def require_numbers(names, frame: Any) -> None:
    """Raise `DataError` for the first column of text that a formula computes with."""
    for name in sorted(names):
        if frame[name].dtype.kind not in "iufb":
            found = frame[name].iloc[0]
            raise DataError(f"{name}: expected numbers to compute with; found text such as {found!r}.")


def require_columns(names, columns, formula: str) -> None:
    """Raise `DataError` for the first name that is no column of the table."""
    for name in sorted(names):
        if name not in columns:
            raise DataError(
                f"formula {formula!r}: {name!r} is not in the table{did_you_mean(name, columns)}: expected one of "
                f"{listed(columns)}; found {name!r}."
            )


def _plain(error, called: Mapping[str, str]) -> str:
    """Return the words of formulaic's message with the columns' own names, without the colours and the picture."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error)).strip().splitlines()[0]
    for name, safe in called.items():
        text = text.replace(safe, name)
    return text


def _formulaic():
    try:
        import formulaic
        from formulaic import errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"formula: expected the package {error.name}; found it is not installed: pip install formulaic.",
            name=error.name,
        ) from error
    return formulaic, errors
