"""Names that a user gives, compared with those that are known."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.5  # of `difflib.get_close_matches`: below it, a name is not taken for a misspelling of another


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, upper and lower case alike; None where none is like it."""
    by_lower = {str(candidate).lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=CUTOFF)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'm_b'?)"`` for the nearest known name, or an empty string."""
    near = nearest(name, known)
    return f" (did you mean {near!r}?)" if near else ""


def listed(names: Iterable[str], limit: int = 30) -> str:
    """Return the names separated by commas, the first `limit` of them."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def choose(kind: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of the `known` names.

    Parameters
    ----------
    kind : str
        What is named, for the message: "model", "cosmology".
    value : str
        The name given.
    known : iterable of str
        The names it may be.

    Raises
    ------
    ValueError
        Otherwise; with all known names, and the nearest.
    """
    known = tuple(known)
    if value in known:
        return value
    expected = ", ".join(map(repr, known))
    raise ValueError(f"Unknown {kind} {value!r}{did_you_mean(value, known)}: expected one of {expected}.")
