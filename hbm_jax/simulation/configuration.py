"""What the commands that simulate a population without a design have in common: reading it, and where it goes."""

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.files import written_whole
from hbm_jax.names import choose

TABLES = (".csv", ".ecsv", ".fits")  # that simulate writes


def fields_of(
    config: Mapping[str, Any],
    population: type,
    *,
    what: str,
    pairs: Sequence[str],
    scalars: Sequence[str],
    shared: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a population that a configuration sets.

    Parameters
    ----------
    config : mapping
        Of the command line: ``[population]`` holds fields, ``[truth]`` parameters by the names of the model,
        ``[model]`` its options.
    population : type
        A dataclass with defaults.
    what : str
        What is simulated, in the plural, for messages.
    pairs : sequence of str
        Fields that are a mean and a standard deviation, which ``[truth]`` names ``{field}_mean`` and ``{field}_std``.
    scalars : sequence of str
        Fields that ``[truth]`` may name as they are.
    shared : sequence of str
        Options of the model that mean something without data; the caller reads them.

    Raises
    ------
    ConfigError
        For an option or value that a population has no place for.
    ValueError
        For an unknown name.
    """
    hints = typing.get_type_hints(population)
    for name in config["population"]:
        choose("option of [population]", name, tuple(hints))
    fields = {
        name: read_value(value, hints[name], f"population.{name}") for name, value in config["population"].items()
    }
    for name, value in config["model"].items():
        if name != "name" and name not in shared:
            only = f"only {' and '.join(shared)}" if shared else "none"
            raise ConfigError(
                f"model.{name}: expected {only} of the model's options for simulated {what}; found {value!r}. What a "
                f"population may be told is population.{', '.join(hints)}."
            )
    return fields | _true_values(config["truth"], fields, population, what, pairs, scalars)


def _true_values(truth, fields, population, what, pairs, scalars) -> dict[str, Any]:
    """Fields of the population that parameters of the model set."""
    names = tuple(f"{pair}_{part}" for pair in pairs for part in ("mean", "std"))
    found: dict[str, Any] = {}
    for key, value in truth.items():
        choose(f"true value of simulated {what}", key, (*names, *scalars))
        number = read_value(value, float, f"truth.{key}")
        if key in scalars:
            found[key] = number
            continue
        name, _, part = key.rpartition("_")
        before = found.get(name, fields.get(name, getattr(population, name)))
        if before is None and not {f"{name}_mean", f"{name}_std"} <= truth.keys():
            raise ConfigError(f"truth.{key}: expected both {name}_mean and {name}_std; found one.")
        mean, std = before or (0.0, 0.0)
        found[name] = (number, std) if part == "mean" else (mean, number)
    return found


def number_of(num: int | None, default: int) -> int:
    """Return how many to draw; ConfigError below 1."""
    if num is not None and num < 1:
        raise ConfigError(f"--num: expected 1 or more; found {num}.")
    return num or default


def refuse_design(config: Mapping[str, Any], message: str) -> None:
    """Refuse a design, with what to do instead; ``{found}`` in the message is what was given."""
    if config["data"]:
        given = config["data"].get("source") or ", ".join(f"data.{name}" for name in config["data"])
        raise ConfigError(message.format(found=repr(given)))


def refuse_full_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with something in it, unless that may be replaced."""
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise FileExistsError(
            f"{folder}: expected a new or empty folder, found something there. Choose another --out, or pass "
            "--overwrite to replace files in it."
        )


def refuse_bad_table(out: Path, overwrite: bool) -> None:
    """Refuse a table of another kind, or one that is there and is not to be replaced."""
    if out.suffix not in TABLES:
        raise ConfigError(f"{out}: expected a table name ending in {', '.join(TABLES)}, found {out.suffix!r}.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: expected a new file, found one that is there. Pass --overwrite to replace it.")


def write_table(table, truth: Mapping[str, Any], out: Path) -> None:
    """Write a simulated table whole or not at all, with the true values of the population in its header."""
    known = _of_the_population(truth)
    if out.suffix == ".csv":  # has no columns of vectors
        for name in [name for name in table.colnames if table[name].ndim == 2]:
            for index in range(table[name].shape[1]):
                table[f"{name}_{index}"] = table[name][:, index]
            del table[name]
    # A FITS header holds no table of names, but any text.
    table.meta["truth"] = json.dumps(known) if out.suffix == ".fits" else known
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as part:
        table.write(part, overwrite=True)


def _of_the_population(truth: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in truth.items() if not getattr(value, "shape", ()) and key != "num_drawn"}


def in_words(truth: Mapping[str, Any]) -> str:
    """Return the true values of the population, without those of single objects."""
    return f"truth: {', '.join(f'{key} = {value:.4g}' for key, value in _of_the_population(truth).items())}"
