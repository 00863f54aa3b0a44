"""Choice among registered laws and cosmologies, including those of other packages."""

from collections.abc import Iterable

from hbm_jax.names import choose


def choose_registered(kind: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the registered names, as `hbm_jax.names.choose`.

    Raises
    ------
    ValueError
        If the name is unknown; the message mentions packages that may have to be imported first.
    """
    try:
        return choose(kind, value, known)
    except ValueError as error:
        raise ValueError(f"{error} A {kind} of another package is known once its module is imported.") from None
