"""Design matrices of parsed regression formulas, built by formulaic."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from hbm_jax.data.regression.grammar import (
    NUMBER_FUNCTIONS,
    expanded,
    tokens_of,
)
from hbm_jax.validation import DataError, all_numbers


def require_few_columns(terms: str, frame: Any, limit: int) -> None:
    """Raise `DataError` if a right-hand side has more columns than `limit`; no column is computed."""
    expansion = expanded(terms)
    min_columns = {}
    for factor in frozenset().union(*expansion):
        name = factor.removeprefix("C(").removesuffix(")").strip("`")
        is_text = name in frame and (factor.startswith("C(") or frame[name].dtype.kind not in "iufb")
        min_columns[factor] = max(1, frame[name].nunique() - 1) if is_text else 1
    total = 0.0
    for term in expansion:
        total += float(np.prod([float(min_columns[factor]) for factor in term]))
        if total > limit:
            raise DataError(f"formula: expected at most {limit} coefficients, one per point; found more in {terms!r}.")


def design(formula: str, frame: Any, role: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the design matrix of a formula.

    Parameters
    ----------
    formula : str
        Right-hand side from `parse`: ``x1 * x2``, ``log(x)``, ``C(k)``, ``poly(x, 2)``, ``0 + x``.
    frame : pandas.DataFrame
        The table.
    role : str
        Role of the formula, for messages.

    Returns
    -------
    names : tuple of str
        Names of the K columns.
    values : (N, K)
        Design matrix.

    Raises
    ------
    DataError
        If the formula cannot be evaluated.
    """
    formulaic, errors = _formulaic()
    require_few_columns(formula, frame, len(frame))
    # formulaic evaluates arguments of functions as Python code, so columns get names that are not in use.
    safe_names = {name: f"column_{index}_" for index, name in enumerate(frame)}
    text, end = "", 0
    for token, next_token in pairwise(tokens_of(formula)):
        if token.kind == "quoted" or (token.kind == "name" and next_token.text != "("):
            text += formula[end : token.start] + safe_names[token.text]
            end = token.start + len(token.text) + 2 * (token.kind == "quoted")
    text += formula[end:]
    renamed = frame.rename(columns=safe_names)
    try:
        with np.errstate(all="ignore"):
            matrix = formulaic.model_matrix(text, renamed, context=dict(NUMBER_FUNCTIONS), na_action="ignore")
    except (errors.FormulaicError, ArithmeticError, TypeError, ValueError) as error:
        raise DataError(
            f"formula: {role} {formula!r} cannot be evaluated: {_plain_message(error, safe_names)}"
        ) from None
    original_names = {safe_name: name for name, safe_name in safe_names.items()}
    pattern = re.compile(r"column_\d+_")
    names = tuple(
        pattern.sub(lambda match: original_names[match[0]], str(name)) for name in matrix.model_spec.column_names
    )
    return names, np.asarray(matrix.to_numpy(), float).reshape(len(frame), len(names))


def frame_of(columns: Mapping[str, np.ndarray]) -> Any:
    """Return a pandas data frame; columns of text are converted to numbers if all values are numeric."""
    import pandas as pd

    return pd.DataFrame({name: _numbers_where_possible(values) for name, values in columns.items()})


def _numbers_where_possible(values) -> np.ndarray:
    """Return numbers with NaN for missing values if all values are numeric, else text with None for missing values."""
    mask = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(np.ma.getdata(values))
    if array.dtype.kind == "b":
        return array.astype(float)
    if array.dtype.kind in "iuf":
        return np.where(mask, np.nan, array) if mask is not None else array
    if mask is None and (numbers := all_numbers(array)) is not None:
        return numbers
    texts = [
        "" if value is None else value.decode() if isinstance(value, bytes) else str(value) for value in array.tolist()
    ]
    if mask is not None:
        texts = ["" if is_masked else text for text, is_masked in zip(texts, mask, strict=True)]
    missing = {"", "nan", "na", "none", "--"}
    try:
        numbers = np.array([np.nan if text.strip().lower() in missing else float(text) for text in texts])
    except ValueError:
        return np.array([None if text.strip() == "" else text for text in texts], dtype=object)
    return numbers


def require_numbers(names, frame: Any) -> None:
    """Raise `DataError` for the first column of text that occurs in the arithmetic of a formula."""
    for name in sorted(names):
        if frame[name].dtype.kind not in "iufb":
            value = frame[name].iloc[0]
            raise DataError(f"{name}: expected numbers to compute with; found text such as {value!r}.")


def _plain_message(error, safe_names: Mapping[str, str]) -> str:
    """Return the first line of a formulaic message, with the original column names and without terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error)).strip().splitlines()[0]
    for name, safe_name in safe_names.items():
        text = text.replace(safe_name, name)
    return text


def _formulaic():
    """Import formulaic, an optional dependency."""
    try:
        import formulaic
        from formulaic import errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"formula: expected the package {error.name}; found that it is not installed. Install it with "
            "pip install formulaic.",
            name=error.name,
        ) from error
    return formulaic, errors
