"""``hbm-jax simulate afterglow``: a population of afterglows, written as a catalogue and a folder of OGIP files."""

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.models.priors import choose

NUM = 50
WHIM = {"log10_n0": -7.0}  # of --whim without a density: half of the cosmic baryons
PAIRS = ("photon_index", "log10_flux", "log10_nh")  # of which a population has mean and standard deviation
SHARED = ("whim", "abundances")  # options of the model that mean something without data


def simulate(
    config: Mapping[str, Any], folder: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population and write it.

    Parameters
    ----------
    config : mapping
        Of the command line: ``[population]`` holds fields of `AfterglowPopulation`, ``[truth]`` parameters by the names
        of the model.
    folder : path
        To write into; new or empty unless to be overwritten.
    num : int, optional
        Number of sources, 50 by default.
    rmf, arf : path, optional
        Response of the instrument; an idealised one by default.
    overwrite : bool
        Whether to replace files that are there.

    Returns
    -------
    str
        What was written where, and the truth.

    Raises
    ------
    ConfigError
        For a design, an unknown name, a value of the wrong kind.
    FileExistsError
        If there is something in the folder.
    """
    from hbm_jax.data.afterglow_files import SPECTRA, write_afterglows

    if config["data"]:
        given = config["data"].get("source") or ", ".join(f"data.{name}" for name in config["data"])
        raise ConfigError(
            f"simulate afterglow: expected no --design, because counts drawn on one are of groups of channels, for "
            f"which PHA files have no place; found {given!r}. Simulate a population (--num, --rmf, --arf, --set "
            "population.exposure=5000), or draw in Python with hbm_jax.models.Afterglow().simulate(key, data), whose "
            "sample can be fitted."
        )
    if num is not None and num < 1:
        raise ConfigError(f"--num: expected 1 or more; found {num}.")
    drawn_from = population(config)
    response = _response(rmf, arf)
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise FileExistsError(
            f"{folder}: expected a new or empty folder, found something there. Choose another --out, or pass "
            "--overwrite to replace files in it."
        )
    sample = drawn_from.draw(num or NUM, seed=config["sample"]["seed"], response=response)
    catalog = write_afterglows(folder, sample, overwrite=overwrite)
    truth = {key: value for key, value in sample.truth.items() if not hasattr(value, "shape") or not value.shape}
    num_drawn = int(truth.pop("num_drawn"))
    whim = " --whim" if drawn_from.log10_n0 is not None else ""
    return (
        f"{len(sample.spectra)} simulated afterglows in {catalog}, spectra in {folder / SPECTRA}\n"
        f"of {num_drawn} drawn, those with {drawn_from.min_counts} counts or more\n"
        f"truth: {', '.join(f'{key} = {float(value):.4g}' for key, value in truth.items())}\n"
        f"fit them with: hbm-jax fit afterglow --catalog {catalog} --spectra {folder / SPECTRA}{whim}"
    )


def population(config: Mapping[str, Any]):
    """Return the `AfterglowPopulation` that a configuration describes.

    Raises
    ------
    ConfigError
        For an option or true value that a population has no place for.
    ValueError
        For an unknown name, and what the population refuses.
    """
    from hbm_jax.data.afterglow_simulation import AfterglowPopulation

    hints = typing.get_type_hints(AfterglowPopulation)
    for name in config["population"]:
        choose("option of [population]", name, tuple(hints))
    fields = {
        name: read_value(value, hints[name], f"population.{name}") for name, value in config["population"].items()
    }
    options = {name: value for name, value in config["model"].items() if name != "name"}
    for name in options:
        if name not in SHARED:
            raise ConfigError(
                f"model.{name}: expected only {' and '.join(SHARED)} of the model's options for simulated afterglows; "
                f"found {options[name]!r}. What a population may be told is population.{', '.join(hints)}."
            )
    if "abundances" in options:
        fields["abundances"] = str(options["abundances"])
    fields |= _true_values(config["truth"], fields)
    whim = read_value(options["whim"], bool, "model.whim") if "whim" in options else None
    if whim is False and fields.get("log10_n0") is not None:
        raise ConfigError(f"log10_n0: expected none with --no-whim; found {fields['log10_n0']:g}.")
    return AfterglowPopulation(**((WHIM if whim else {}) | fields))


def _true_values(truth: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the population that parameters of the model set."""
    from hbm_jax.data.afterglow_simulation import AfterglowPopulation

    scalars = ("log10_n0", "log10_T", "metallicity")
    names = tuple(f"{pair}_{part}" for pair in PAIRS for part in ("mean", "std"))
    found: dict[str, Any] = {}
    for key, value in truth.items():
        choose("true value of simulated afterglows", key, (*names, *scalars))
        number = read_value(value, float, f"truth.{key}")
        if key in scalars:
            found[key] = number
            continue
        name, _, part = key.rpartition("_")
        if name == "log10_nh" and fields.get("host") == "cloud":
            raise ConfigError(
                f"truth.{key}: expected none with population.host=cloud, which population.log10_nh describes."
            )
        before = found.get(name, fields.get(name, getattr(AfterglowPopulation, name)))
        if before is None and not {f"{name}_mean", f"{name}_std"} <= truth.keys():
            raise ConfigError(f"truth.{key}: expected both {name}_mean and {name}_std; found one.")
        mean, std = before or (0.0, 0.0)
        found[name] = (number, std) if part == "mean" else (mean, number)
    return found


def _response(rmf: str | None, arf: str | None):
    from hbm_jax.spectra.ogip_responses import read_arf, read_rmf
    from hbm_jax.spectra.response import Response

    if rmf is None:
        if arf is not None:
            raise ConfigError(f"--arf: expected --rmf with it; found {arf!r} alone.")
        return None
    return Response.of(read_rmf(rmf), None if arf is None else read_arf(arf))
