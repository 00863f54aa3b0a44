"""What a run can be told, whether by flags, by ``--set`` or by a TOML file: one nested dictionary of known keys."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

# Sections whose keys are fixed, with their defaults; the other sections take any name and are checked by the model.
FIXED: dict[str, dict[str, Any]] = {
    "data": {"source": "jla"},
    "sample": {
        "seed": 0,
        "num_chains": 4,
        "num_warmup": None,
        "num_samples": None,
        "max_num_samples": 20_000,
        "target_accept_prob": 0.8,
        "max_tree_depth": 10,
        "dtype": "float64",
    },
}
OPEN = ("model", "prior", "columns", "truth")
_TYPES = {"target_accept_prob": float, "dtype": str, "source": str}


class ConfigError(ValueError):
    """An unknown key or a value of the wrong kind."""


def defaults() -> dict[str, dict[str, Any]]:
    """Return a fresh configuration with every default."""
    return {name: dict(section) for name, section in FIXED.items()} | {name: {} for name in OPEN}


def set_key(config: dict, key: str, value: Any) -> None:
    """Set ``section.name`` of a configuration in place.

    Parameters
    ----------
    config : dict
        As from `defaults`.
    key : str
        For example ``prior.w0`` or ``sample.num_chains``.
    value
        Text is turned into what the key expects.

    Raises
    ------
    ConfigError
        For an unknown section or key (the nearest one is offered), or a value that does not fit.
    """
    section, dot, name = key.partition(".")
    sections = (*FIXED, *OPEN)
    if section not in sections or not dot or not name:
        raise ConfigError(
            f"{key}: expected SECTION.NAME with SECTION one of {', '.join(sections)}.{_nearest(section, sections)}"
        )
    if section in FIXED:
        if name not in FIXED[section]:
            raise ConfigError(
                f"{key}: expected one of {', '.join(f'{section}.{known}' for known in FIXED[section])}."
                f"{_nearest(name, FIXED[section])}"
            )
        wanted = _TYPES.get(name, int)
        try:
            if isinstance(value, bool) or (wanted is int and isinstance(value, float) and not value.is_integer()):
                raise TypeError
            value = wanted(value)
        except (TypeError, ValueError):
            article = {"int": "a whole number", "float": "a number", "str": "text"}[wanted.__name__]
            raise ConfigError(f"{key}: expected {article}, found {value!r}.") from None
    elif section == "model" and str(value).lower() in ("true", "false"):
        value = str(value).lower() == "true"
    elif section == "prior":
        value = str(value)
    config[section][name] = value


def merged(config: dict, other: dict, where: str) -> dict:
    """Return a configuration with the keys of another in their place, each checked.

    Raises
    ------
    ConfigError
        As `set_key`, naming ``where`` the keys come from.
    """
    result = {name: dict(section) for name, section in config.items()}
    for section, content in other.items():
        if not isinstance(content, dict):
            raise ConfigError(f"{where}: {section}: expected a table such as [{section}], found {content!r}.")
        for name, value in content.items():
            try:
                set_key(result, f"{section}.{name}", value)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
    return result


def read_toml(path: str) -> dict:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a TOML file, found none that can be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, found something else: {error}.") from None


def _nearest(name, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""
