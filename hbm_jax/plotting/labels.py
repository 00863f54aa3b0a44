"""Symbols and units of parameters for figures."""

from collections.abc import Mapping

from hbm_jax.models.symbols import SYMBOLS as LABELS
from hbm_jax.notation import UNIT_SYMBOLS


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
    text = symbol + (bracket + element).replace("$", r"\$")
    return f"{text} [{UNIT_SYMBOLS.get(unit, unit)}]" if unit else text
