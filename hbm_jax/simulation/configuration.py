"""Configuration and output files shared by the simulations of populations without a design."""

import json
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.files import atomic_write
from hbm_jax.names import choose

TABLES = (".csv", ".ecsv", ".fits")  # formats of simulated tables


def fields_of(
    config: Mapping[str, Any],
    population: type,
    *,
    objects: str,
    pairs: Sequence[str],
    scalars: Sequence[str],
    shared: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a population from a configuration.

    Parameters
    ----------
    config : mapping
        Configuration of the command line: ``[population]`` contains fields, ``[truth]`` parameters of the model,
        ``[model]`` its options.
    population : type
        Dataclass with defaults.
    objects : str
        Name of the simulated objects, in the plural, for error messages.
    pairs : sequence of str
        Fields with a mean and a standard deviation, which are ``{field}_mean`` and ``{field}_std`` in ``[truth]``.
    scalars : sequence of str
        Fields that have the same name in ``[truth]``.
    shared : sequence of str
        Options of the model that also apply to a population; the caller reads them.

    Raises
    ------
    ConfigError
        For an option or value that does not apply to a population.
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
                f"model.{name}: expected {only} of the options of the model for simulated {objects}; found {value!r}. "
                f"The options of a population are population.{', '.join(hints)}."
            )
    return fields | _true_values(config["truth"], fields, population, objects, pairs, scalars)


def _true_values(truth, fields, population, objects, pairs, scalars) -> dict[str, Any]:
    """Return the fields of the population given in ``[truth]``; parameters as in `fields_of`."""
    names = tuple(f"{pair}_{part}" for pair in pairs for part in ("mean", "std"))
    values: dict[str, Any] = {}
    for key, value in truth.items():
        choose(f"true value of simulated {objects}", key, (*names, *scalars))
        number = read_value(value, float, f"truth.{key}")
        if key in scalars:
            values[key] = number
            continue
        name, _, part = key.rpartition("_")
        mean_and_std = values.get(name, fields.get(name, getattr(population, name)))
        if mean_and_std is None and not {f"{name}_mean", f"{name}_std"} <= truth.keys():
            raise ConfigError(f"truth.{key}: expected both {name}_mean and {name}_std; found one.")
        mean, std = mean_and_std or (0.0, 0.0)
        values[name] = (number, std) if part == "mean" else (mean, number)
    return values


def number_of(num: int | None, default: int) -> int:
    """Return the number of objects to draw; raise ConfigError below 1."""
    if num is not None and num < 1:
        raise ConfigError(f"--num: expected 1 or more; found {num}.")
    return num or default


def refuse_design(config: Mapping[str, Any], message: str) -> None:
    """Raise ConfigError if the configuration has a design; ``{found}`` in ``message`` stands for the design."""
    if config["data"]:
        design = config["data"].get("source") or ", ".join(f"data.{name}" for name in config["data"])
        raise ConfigError(message.format(found=repr(design)))


def refuse_full_folder(folder: Path, overwrite: bool) -> None:
    """Raise FileExistsError if the folder is not empty, unless ``overwrite``."""
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise FileExistsError(
            f"{folder}: expected a new or empty folder, found something there. Choose another --out, or pass "
            "--overwrite to replace files in it."
        )


def refuse_bad_table(out: Path, overwrite: bool) -> None:
    """Raise ConfigError for an unknown table format, and FileExistsError for an existing file unless ``overwrite``."""
    if out.suffix not in TABLES:
        raise ConfigError(f"{out}: expected a table name ending in {', '.join(TABLES)}, found {out.suffix!r}.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: expected a new file, found an existing one. Pass --overwrite to replace it.")


def write_table(table, truth: Mapping[str, Any], out: Path, vectors: Collection[str] = ()) -> Path:
    """Write a simulated table atomically, and the true values of the population in its header and in a file beside it.

    True values that are arrays belong to single objects, except those whose names are in `vectors`.

    Returns
    -------
    Path
        The file of true values, ``NAME_truth.json``; the header of CSV cannot contain them.
    """
    population_truth = _population_truth(truth, vectors)
    if out.suffix == ".csv":  # CSV has no vector columns
        for name in [name for name in table.colnames if table[name].ndim == 2]:
            for index in range(table[name].shape[1]):
                table[f"{name}_{index}"] = table[name][:, index]
            del table[name]
    # A FITS header cannot contain a mapping, but it can contain text.
    table.meta["truth"] = json.dumps(population_truth) if out.suffix == ".fits" else population_truth
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.stem}_truth.json")
    with atomic_write(out) as part, atomic_write(beside) as truth_part:
        table.write(part, overwrite=True)
        truth_part.write_text(json.dumps(population_truth, indent=2) + "\n", encoding="utf-8")
    return beside


def write_arrays(arrays: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, Path]:
    """Write arrays to ``NAME_OPTION.npz`` beside a simulated table; return the files by option."""
    files = {option: out.with_name(f"{out.stem}_{option}.npz") for option in arrays}
    for option, file in files.items():
        with atomic_write(file) as part, part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays[option])
    return files


def _population_truth(truth: Mapping[str, Any], vectors: Collection[str] = ()) -> dict[str, Any]:
    """Return the true values of the population as numbers and lists, without those of single objects."""
    return {
        key: np.asarray(value, float).tolist()
        for key, value in truth.items()
        if key != "num_drawn" and (np.ndim(value) == 0 or key in vectors)
    }


def format_truth(truth: Mapping[str, Any], vectors: Collection[str] = ()) -> str:
    """Return the true values of the population as text, without those of single objects."""
    texts = [f"{key} = {_format(value)}" for key, value in _population_truth(truth, vectors).items()]
    return f"truth: {', '.join(texts)}"


def _format(value: Any) -> str:
    """Return a number, or a list of numbers, with four digits."""
    return f"[{', '.join(map(_format, value))}]" if isinstance(value, list) else f"{value:.4g}"
