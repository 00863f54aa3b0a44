"""Checks of names given by a user, with suggestions for misspelled ones, and former names of arguments."""

import difflib
import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Names of XSPEC and Sherpa that are not similar enough to ours to be found as misspellings.
ELSEWHERE = {"cash": "cstat", "chi": "chi2", "chi2xspecvar": "chi2_data", "chi2datavar": "chi2_data"}
ELSEWHERE |= {"chi2modvar": "chi2_model"}
CUTOFF = 0.5  # similarity of `difflib.get_close_matches` below which a name is not a misspelling of another


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, ignoring case, or its name here; None if there is none."""
    by_lower = {str(candidate).lower(): candidate for candidate in known}
    if (same := ELSEWHERE.get(str(name).lower())) in by_lower:
        return by_lower[same]
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=CUTOFF)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'm_b'?)"`` for the nearest known name, or an empty string if none is similar."""
    similar = nearest(name, known)
    return f" (did you mean {similar!r}?)" if similar else ""


def listed(names: Iterable[str], limit: int = 30) -> str:
    """Return the first `limit` names separated by commas, with the total number if some are left out."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def choose(kind: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of the `known` names.

    Parameters
    ----------
    kind : str
        Kind of thing named, for the message: "model", "cosmology".
    value : str
        Name to check.
    known : iterable of str
        Known names.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known names and suggests the nearest.
    """
    known = tuple(known)
    if value in known:
        return value
    expected = ", ".join(map(repr, known))
    raise ValueError(f"Unknown {kind} {value!r}{did_you_mean(value, known)}: expected one of {expected}.")


def require_parameters(requested: Iterable[str], known: Iterable[Any], caller: str) -> None:
    """Raise ValueError, in the name of `caller`, for an unknown parameter; the message suggests the nearest name."""
    known = [str(name) for name in known]
    if unknown := [name for name in map(str, requested) if name not in known]:
        names = ", ".join(unknown) + did_you_mean(unknown[0], known)
        raise ValueError(f"{caller}: expected parameters among {listed(known)}; found {names}.")


def renamed_keyword(former: str, name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that accepts a keyword argument by its former name too, with a DeprecationWarning."""

    def decorator(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def accepting_former(*args: P.args, **kwargs: P.kwargs) -> R:
            if former in kwargs:
                if name in kwargs:
                    raise TypeError(f"{function.__qualname__}: expected {name}; found also {former}, its former name.")
                message = f"{function.__qualname__}: the argument {former}= is now {name}=."
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[name] = kwargs.pop(former)
            return function(*args, **kwargs)

        return accepting_former

    return decorator
