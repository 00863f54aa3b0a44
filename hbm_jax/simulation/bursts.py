"""``hbm-jax simulate golenetskii`` and ``golenetskii-counts``: bursts as a table, or as a folder of OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, read_value
from hbm_jax.simulation.configuration import (
    fields_of,
    in_words,
    number_of,
    refuse_bad_table,
    refuse_design,
    refuse_full_folder,
    write_table,
)

NUM, NUM_SPECTRA = 30, 10
PAIRS = ("gamma", "log10_N", "log10_E_peak")


def simulate(
    config: Mapping[str, Any], table: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population of bursts at catalogue level and write it as a table.

    Parameters
    ----------
    config : mapping
        Of the command line: ``[population]`` holds fields of `BurstPopulation`, ``[truth]`` parameters by the names of
        the model.
    table : path
        To write: CSV, ECSV or FITS.
    num : int, optional
        Number of bursts, 30 by default.
    rmf, arf
        None: a catalogue has no instrument.
    overwrite : bool
        Whether to replace a file that is there.

    Returns
    -------
    str
        What was written where, the truth, and the command that fits it.

    Raises
    ------
    ConfigError
        For an unknown name, a value of the wrong kind, a response.
    FileExistsError
        If the file is there.
    """
    from hbm_jax.data import BurstPopulation

    _refuse_response(rmf, arf, "golenetskii, whose bursts are catalogue values")
    num = number_of(num, NUM)
    scalars = ("correlation", "intrinsic_scatter", "log10_E_peak_scatter")
    fields = fields_of(config, BurstPopulation, what="bursts", pairs=PAIRS, scalars=scalars)
    refuse_bad_table(table, overwrite)
    drawn_from = BurstPopulation(**fields)
    sample = drawn_from.draw(num, seed=config["sample"]["seed"])
    write_table(sample.data.to_table(), sample.truth, table)
    truncated = " --truncated" if drawn_from.log10_flux_limit is not None else ""
    correlated = " --correlated" if drawn_from.correlation else ""
    return (
        f"{len(sample.data)} simulated bursts with {sample.data.num_intervals} intervals in {table}\n"
        f"{in_words(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii --data {table}{truncated}{correlated}"
    )


def simulate_spectra(
    config: Mapping[str, Any], folder: Path, *, num: int | None, rmf: str | None, arf: str | None, overwrite: bool
) -> str:
    """Draw a population of bursts as counts and write them as a catalogue and a folder for each.

    Parameters
    ----------
    config : mapping
        As in `simulate`, with fields of `BurstSpectraPopulation` and the model's ``spectrum``.
    folder : path
        To write into; new or empty unless to be overwritten.
    num : int, optional
        Number of bursts, 10 by default.
    rmf, arf
        None: the detectors are idealised ones.
    overwrite : bool
        Whether to replace files that are there.

    Returns
    -------
    str
        What was written where, the truth, and the command that fits it.

    Raises
    ------
    ConfigError
        For a design, an unknown name, a value of the wrong kind, a response.
    FileExistsError
        If there is something in the folder.
    """
    from hbm_jax.data import BurstSpectraPopulation, write_burst_spectra

    refuse_design(
        config,
        "simulate golenetskii-counts: expected no --design; found {found}. Simulate a population (--num, --set "
        "population.num_intervals=8), or draw in Python with hbm_jax.models.GolenetskiiCounts().simulate(key, data), "
        "whose sample can be fitted.",
    )
    _refuse_response(rmf, arf, "golenetskii-counts, whose detectors are idealised ones")
    num = number_of(num, NUM_SPECTRA)
    given = {"pairs": (*PAIRS, "alpha", "beta"), "scalars": ("intrinsic_scatter",), "shared": ("spectrum",)}
    fields = fields_of(config, BurstSpectraPopulation, what="bursts", **given)
    if "spectrum" in config["model"]:
        fields["spectrum"] = read_value(config["model"]["spectrum"], str, "model.spectrum")
    refuse_full_folder(folder, overwrite)
    drawn_from = BurstSpectraPopulation(**fields)
    sample = drawn_from.draw(num, seed=config["sample"]["seed"])
    catalog = write_burst_spectra(folder, sample, overwrite=overwrite)
    spectrum = "" if drawn_from.spectrum == "band" else f" --spectrum {drawn_from.spectrum}"
    return (
        f"{len(sample.bursts)} simulated bursts in {catalog}, a folder for each beside it\n"
        f"of {int(sample.truth['num_drawn'])} drawn, those of signal to noise {drawn_from.threshold:g} or more\n"
        f"{in_words(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii-counts --catalog {catalog}{spectrum}"
    )


def _refuse_response(rmf: str | None, arf: str | None, what: str) -> None:
    for flag, value in (("--rmf", rmf), ("--arf", arf)):
        if value is not None:
            raise ConfigError(f"{flag}: expected none for {what}; found {value!r}.")
