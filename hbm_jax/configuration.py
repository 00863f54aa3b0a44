"""Configuration of a run, from flags, ``--set`` or a TOML file: a nested dictionary of known keys."""

import collections.abc
import dataclasses
import functools
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hbm_jax.names import choose, did_you_mean

# Sections that accept any key, which the model, its data container or its reader checks; ``[sample]`` has fixed keys.
OPEN = ("model", "data", "prior", "columns", "truth", "population")


class Option(NamedTuple):
    """Option of ``[sample]``: its default and its type, which does not include None."""

    default: Any
    kind: Any


@functools.cache
def sample_options() -> dict[str, Option]:
    """Return the options of ``[sample]``: of the run, of its stopping rule and of all samplers, in one table.

    They are the fields of the dataclasses that `hbm_jax.sample` takes, imported here because most commands do not need
    them.
    """
    from hbm_jax.inference.options import RunOptions
    from hbm_jax.inference.sampler.kernels.selection import FLAG, IN_RUNS
    from hbm_jax.inference.sampler.stopping import StopRule

    options = {"sampler": Option(None, typing.Literal[tuple(IN_RUNS)])}
    for kind in (RunOptions, StopRule, *IN_RUNS.values()):
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            default = None if item.default is dataclasses.MISSING else item.default
            options.setdefault(item.name, Option(default, _without_none(hints[item.name])))
    options["blind"] = Option(False, bool)
    return options | {FLAG: Option(None, bool)}  # in configurations written before samplers had names


def sample_keywords(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keywords of `hbm_jax.sample` for a configuration: options that are not None, and the sampler.

    Raises
    ------
    ConfigError
        If the sampler and its options do not fit together.
    """
    from hbm_jax.inference.sampler.kernels.selection import REPLACED, sampler_of

    section = config["sample"]
    try:
        sampler = sampler_of(section)
    except ValueError as error:
        raise ConfigError(f"[sample]: {error}") from None
    not_keywords = {"sampler", *REPLACED}
    options = {name: value for name, value in section.items() if value is not None and name not in not_keywords}
    return options | {"sampler": sampler}


def _without_none(hint: Any) -> Any:
    """Return a type without None."""
    kinds = tuple(kind for kind in typing.get_args(hint) if kind is not type(None))
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.Union[kinds] if is_union else hint  # noqa: UP007 - the members are in a tuple


class ConfigError(ValueError):
    """An unknown key, or a value of the wrong type."""


def defaults() -> dict[str, dict[str, Any]]:
    """Return a new configuration with all defaults."""
    sample = {name: option.default for name, option in sample_options().items()}
    return {"sample": sample} | {name: {} for name in OPEN}


def set_key(config: dict, key: str, value: Any) -> None:
    """Set ``section.name`` of a configuration in place.

    Parameters
    ----------
    config : dict
        Configuration, as returned by `defaults`.
    key : str
        For example ``prior.w0``, ``sample.num_chains``, or, for one entry of a table, ``sample.until.Om0``.
    value
        Text for a key of ``[sample]`` is converted to the type of the option.

    Raises
    ------
    ConfigError
        For an unknown section or key (the message suggests the nearest), or a value of the wrong type.
    """
    section, dot, name = key.partition(".")
    sections = ("sample", *OPEN)
    if section not in sections or not dot or not name:
        raise ConfigError(
            f"{key}{did_you_mean(section, sections)}: expected SECTION.NAME with SECTION one of {', '.join(sections)}."
        )
    name, _, entry = name.partition(".")
    if section == "sample" and name not in sample_options():
        raise ConfigError(
            f"{key}{did_you_mean(name, sample_options())}: expected one of "
            f"{', '.join(f'{section}.{known}' for known in sample_options())}."
        )
    if entry:
        current = config[section].get(name)
        value = (dict(current) if isinstance(current, Mapping) else {}) | {entry: value}
    if section == "sample":
        value = read_value(value, sample_options()[name].kind, key)
    elif section == "prior":
        value = str(value)
    config[section][name] = value


def merged(config: dict, other: dict, where: str) -> dict:
    """Return a configuration updated with the keys of another, each of which is checked.

    Raises
    ------
    ConfigError
        As in `set_key`; the message begins with ``where``, the origin of the keys.
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


def read_toml(path: str | Path) -> dict:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a TOML file that can be read; found: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # also text that is not UTF-8, numbers too long, nesting too deep
        raise ConfigError(f"{path}: expected TOML, found something else: {error}.") from None


def read_value(value: Any, hint: Any, where: str) -> Any:
    """Return a value converted to the type of an option.

    Parameters
    ----------
    value
        A value from a TOML file, or text from the command line, which is parsed as TOML unless the type is text.
    hint : type
        ``bool, int, float, str``, tuples, lists and mappings of them, unions (text matches last), ``Literal``, a
        dataclass (from a table of its fields), or any other class, whose instances are accepted unchanged.
    where : str
        The key, for error messages.

    Raises
    ------
    ConfigError
        If the value is of another type.

    Examples
    --------
    >>> read_value("[1, 2.5]", tuple[float, ...], "model.breaks")
    (1.0, 2.5)
    """
    for interpretation in _interpretations(value):
        try:
            return _converted(interpretation, hint)
        except (TypeError, ValueError, OverflowError):
            continue
    suggestion = did_you_mean(value, _names(hint)) if isinstance(value, str) else ""
    raise ConfigError(f"{where}: expected {_description(hint)}, found {value!r}{suggestion}.")


def _interpretations(value: Any) -> Iterator[Any]:
    """Yield the value and, if it is text, the TOML value that it represents."""
    yield value
    if isinstance(value, str):
        text = value.strip()
        try:
            yield tomllib.loads(f"x = {text.lower() if text.lower() in ('true', 'false') else text}")["x"]
        except tomllib.TOMLDecodeError:
            return


def _converted(value: Any, hint: Any) -> Any:
    """Return the value converted to the type; raise TypeError or ValueError if it does not match."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        # Text always matches str, so str is last: '["a", "b"]' is a list if the union allows lists.
        for option in sorted(args, key=lambda kind: kind is str):
            try:
                return read_value(value, option, "")
            except ConfigError:
                continue
        raise TypeError
    if origin is typing.Literal:
        return args[args.index(value)]
    if origin in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or origin(value) != value == value:
            raise TypeError
        return origin(value)
    if dataclasses.is_dataclass(origin) and isinstance(value, Mapping):
        hints = typing.get_type_hints(origin)
        make: Any = origin
        return make(**{name: read_value(part, hints.get(name, Any), name) for name, part in value.items()})
    if not isinstance(origin, type):
        return value
    if issubclass(origin, Mapping) and isinstance(value, Mapping):
        kind = args[1] if args else Any
        return {str(name): read_value(part, kind, str(name)) for name, part in value.items()}
    if issubclass(origin, Sequence) and not issubclass(origin, str) and isinstance(value, list | tuple):
        is_fixed = origin is tuple and args and args[-1] is not Ellipsis  # a tuple with a type for each entry
        kinds = args if is_fixed else [args[0] if args else Any] * len(value)
        parts = [read_value(part, kind, "") for part, kind in zip(value, kinds, strict=True)]
        return tuple(parts) if issubclass(tuple, origin) else parts
    # A str is a Sequence in Python, but not a valid list.
    if not isinstance(value, origin) or (isinstance(value, str) and origin is Sequence):
        raise TypeError
    return value


def _description(hint: Any) -> str:
    """Return a description of the values that a type accepts."""
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"}
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in simple:
        return simple[origin]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_description(option) for option in args if not _has_functions(option))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, args))}"
    if dataclasses.is_dataclass(origin):
        return f"a table of {', '.join(field.name for field in dataclasses.fields(origin))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a table, each entry {_description(args[1])}" if args else "a table"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if origin is tuple and args == (float, float):
            return "two numbers, as in [0.5, 7]"
        return f"a list, each entry {_description(args[0])}" if args else "a list"
    return getattr(origin, "__name__", str(origin))


def _names(hint: Any) -> list[str]:
    """Return the names that a type accepts: values of its ``Literal``, alone or in a union."""
    if typing.get_origin(hint) is typing.Literal:
        return [value for value in typing.get_args(hint) if isinstance(value, str)]
    return [name for part in typing.get_args(hint) for name in _names(part)]


def _has_functions(hint: Any) -> bool:
    """Return whether a dataclass has functions among its fields, which no TOML table can represent."""
    if not dataclasses.is_dataclass(hint):
        return False
    kinds = typing.get_type_hints(hint).values()
    return any((typing.get_origin(kind) or kind) is collections.abc.Callable for kind in kinds)


def model_options(kind: type) -> dict[str, Any]:
    """Return the options of a model class other than its priors, with their types."""
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind) if item.name != "priors"}


def build_model(kind: Any, options: Mapping[str, Any], priors: Mapping[str, Any]):
    """Return the model described by the ``[model]`` and ``[prior]`` sections of a configuration.

    Raises
    ------
    ConfigError
        For an option of the wrong type, or a missing option without default.
    ValueError
        For an unknown option or prior, or a value that the model rejects.
    """
    known = model_options(kind)
    for name in options:
        choose(f"option of the model {kind.__name__}", name, known)
    values = {name: read_value(value, known[name], f"model.{name}") for name, value in options.items()}
    for item in dataclasses.fields(kind):
        if item.default is item.default_factory is dataclasses.MISSING and item.name not in values:
            description, flag = item.metadata.get("help", "which has no default"), f"--{item.name.replace('_', '-')}"
            raise ConfigError(f"model.{item.name}: expected a value, {description}; found none. Use {flag}.")
    return kind(**values, priors=dict(priors))
