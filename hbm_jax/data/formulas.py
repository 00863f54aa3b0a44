"""Formulas of regressions: the part for all points by formulaic, the terms of groups, as of lmer, split off before.

``y ~ x + (1 + x | county)`` has the columns 1 and x for all points, and 1 and x once more for every county.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbm_jax.validation import DataError, did_you_mean, listed

EXAMPLE = "such as 'y ~ x + (1 | group)'"
NAME = re.compile(r"[A-Za-z_.][\w.]*")


@dataclass(frozen=True)
class GroupTerm:
    """A term such as ``(1 + x | county)`` or ``(1 + x | walk(day))``.

    Attributes
    ----------
    columns : str
        Formula of what varies.
    factors : tuple of str
        Columns whose combinations are the groups.
    walk : bool
        Whether the groups are in an order along which the effects walk.
    correlated : bool
        Whether the effects of a group are correlated: not where the bar is double.
    """

    columns: str
    factors: tuple[str, ...]
    walk: bool = False
    correlated: bool = True


@dataclass(frozen=True)
class ParsedFormula:
    """Response, formula of what all points share, and terms of groups."""

    response: str
    fixed: str
    groups: tuple[GroupTerm, ...]


def parse(formula: str) -> ParsedFormula:
    """Take a formula apart.

    Parameters
    ----------
    formula : str
        ``"response ~ terms + (terms | group)"``. Groups: ``a``, combinations ``a:b``, and ``walk(t)``. ``||`` for
        effects that are not correlated.

    Raises
    ------
    DataError
        For text that is no such formula.

    Examples
    --------
    >>> parse("y ~ x + (1 + x | county)").groups[0].factors
    ('county',)
    """
    response, tilde, terms = str(formula).partition("~")
    if not tilde or not response.strip() or "~" in terms:
        raise DataError(f"formula: expected a response, '~' and terms, {EXAMPLE}; found {formula!r}.")
    groups, rest = [], ""
    at = 0
    while at < len(terms):
        inside = _inside(terms, at, formula) if terms[at] == "(" else None
        called = bool(re.search(r"[\w.\]]\s*$", rest))  # a function's parenthesis
        bar = None if inside is None or called else _bar(inside)
        if inside is None or bar is None:
            rest += terms[at]
            at += 1
            continue
        groups.append(_group(inside[:bar], inside[bar:], formula))
        at += len(inside) + 2
        before = rest.rstrip()
        if before and before[-1] not in "+":
            raise DataError(f"formula: expected '+' before ({inside}), {EXAMPLE}; found {formula!r}.")
        rest = before[:-1]
        if not rest.strip():
            after = terms[at:].lstrip()
            at = len(terms) - len(after) + (1 if after.startswith("+") else 0)
    return ParsedFormula(response.strip(), " ".join(rest.split()) or "1", tuple(groups))


def _inside(terms: str, at: int, formula: str) -> str:
    depth = 0
    for end in range(at, len(terms)):
        depth += {"(": 1, ")": -1}.get(terms[end], 0)
        if depth == 0:
            return terms[at + 1 : end]
    raise DataError(f"formula: expected every parenthesis to be closed; found {formula!r}.")


def _bar(inside: str) -> int | None:
    """Place of a bar outside all parentheses."""
    depth = 0
    for place, letter in enumerate(inside):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "|" and depth == 0:
            return place
    return None


def _group(columns: str, right: str, formula: str) -> GroupTerm:
    correlated = not right.startswith("||")
    group = right.lstrip("|").strip()
    walk = re.fullmatch(r"walk\((.*)\)", group)
    factors = tuple(part.strip().strip("`") for part in (walk.group(1) if walk else group).split(":"))
    if not columns.strip() or not all(NAME.fullmatch(name) for name in factors):
        more = " Write (1 | a/b) as (1 | a) + (1 | a:b)." if "/" in group else ""
        raise DataError(
            f"formula: expected terms of groups as in (1 + x | group), (1 | a:b) or (x | walk(t)); found "
            f"({columns}{right}) in {formula!r}.{more}"
        )
    if walk and len(factors) > 1:
        raise DataError(f"formula: expected walk(t) of one column; found {group!r} in {formula!r}.")
    return GroupTerm(columns.strip(), factors, bool(walk), correlated)


def required_columns(formula: str, columns, what: str) -> set[str]:
    """Return the columns of a table that a formula needs."""
    formulaic, errors = _formulaic()
    try:
        found = set(map(str, formulaic.Formula(formula).required_variables))
        # formulaic 1.2 does not count those inside scale() and center().
        return found | {word for word in NAME.findall(formula) if word in columns}
    except errors.FormulaicError as error:
        raise DataError(f"formula: {what} {formula!r} cannot be read: {_plain(error)}") from None


def design(formula: str, frame: Any, what: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and values (N, K) of the columns of a formula.

    Parameters
    ----------
    formula : str
        As formulaic takes it: ``x1 * x2``, ``log(x)``, ``C(k)``, ``poly(x, 2)``, ``0 + x``.
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
    try:
        with np.errstate(all="ignore"):
            matrix = formulaic.model_matrix(formula, frame, context={}, na_action="ignore")
    except errors.FormulaicError as error:
        raise DataError(f"formula: {what} {formula!r} cannot be evaluated: {_plain(error)}") from None
    names = tuple(map(str, matrix.model_spec.column_names))
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
    texts = ["" if one is None else one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
    if mask is not None:
        texts = ["" if gone else text for text, gone in zip(texts, mask, strict=True)]
    missing = {"", "nan", "na", "none", "--"}
    try:
        numbers = np.array([np.nan if text.strip().lower() in missing else float(text) for text in texts])
    except ValueError:
        return np.array([None if text.strip() == "" else text for text in texts], dtype=object)
    return numbers


def require_columns(names, columns, formula: str) -> None:
    """Raise `DataError` for the first name that is no column of the table."""
    for name in sorted(names):
        if name not in columns:
            raise DataError(
                f"formula {formula!r}: {name!r} is not in the table{did_you_mean(name, columns)}: expected one of "
                f"{listed(columns)}; found {name!r}."
            )


def _plain(error) -> str:
    """Return the words of formulaic's message, without the colours and the picture."""
    return re.sub(r"\x1b\[[0-9;]*m|[⧛⧚]", "", str(error)).strip().splitlines()[0]


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
