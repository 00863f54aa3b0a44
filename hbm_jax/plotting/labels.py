"""Symbols and units of parameters for figures."""

from collections.abc import Mapping

from hbm_jax.models.symbols import SYMBOLS as LABELS
from hbm_jax.notation import UNIT_SYMBOLS

MAX_LETTERS = 24  # of the name of an object in a figure


def object_name(name: object, max_letters: int = MAX_LETTERS) -> str:
    """Return the name of an object as text of matplotlib; long names are shortened in their middle.

    Examples
    --------
    >>> object_name("a cluster with a long name, 3")
    'a cluster w…long name, 3'
    """
    text = str(name)
    if len(text) > max_letters:
        text = text[: (max_letters - 1) // 2] + "\u2026" + text[-(max_letters // 2) :]
    return text.replace("$", r"\$")


def label(name: str, unit: str = "", symbols: Mapping[str, str] | None = None) -> str:
    """Return the symbol and unit of a parameter.

    Parameters
    ----------
    name : str
        Name of a parameter, or of an element such as ``"theta[3]"``.
    unit : str
        Unit of the parameter; empty if it has none.
    symbols : mapping of str to str, optional
        Symbols by name, before those of `LABELS`.

    Returns
    -------
    str
        Text for matplotlib. A name without a symbol is returned unchanged.

    Examples
    --------
    >>> label("M0", "mag")
    '$M_0$ [mag]'
    >>> label("my_slope")
    'my_slope'
    """
    base, bracket, element = name.partition("[")
    symbol = (symbols or {}).get(base) or LABELS.get(base, base.replace("$", r"\$"))
    text = symbol + (f"[{object_name(element.removesuffix(']'))}]" if bracket else "")
    return f"{text} [{UNIT_SYMBOLS.get(unit, unit)}]" if unit else text
