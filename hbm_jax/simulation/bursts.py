"""Simulation of bursts (``hbm-jax simulate golenetskii``, ``golenetskii-counts``), as a table or as OGIP files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbm_jax.configuration import read_value
from hbm_jax.simulation.configuration import (
    fields_of,
    format_truth,
    number_of,
    refuse_bad_table,
    refuse_design,
    refuse_full_folder,
    write_table,
)

NUM, NUM_SPECTRA = 30, 10  # default numbers of bursts
PAIRS = ("gamma", "log10_N", "log10_E_peak")  # quantities given by mean and standard deviation


def simulate(config: Mapping[str, Any], table: Path, *, num: int | None, overwrite: bool) -> str:
    """Draw a population of bursts at catalogue level and write it as a table.

    Parameters
    ----------
    config : mapping
        Configuration of the command line: ``[population]`` contains fields of `BurstPopulation`, ``[truth]`` parameters
        of the model.
    table : path
        Output file: CSV, ECSV or FITS.
    num : int, optional
        Number of bursts; 30 by default.
    overwrite : bool
        Whether to replace an existing file.

    Returns
    -------
    str
        Report: file written, true values, and the command that fits it.

    Raises
    ------
    ConfigError
        For an unknown name, or a value of the wrong type.
    FileExistsError
        If the file exists.
    """
    from hbm_jax.data import BurstPopulation

    num = number_of(num, NUM)
    scalars = ("correlation", "intrinsic_scatter", "log10_E_peak_scatter")
    fields = fields_of(config, BurstPopulation, what="bursts", pairs=PAIRS, scalars=scalars)
    refuse_bad_table(table, overwrite)
    population = BurstPopulation(**fields)
    sample = population.draw(num, seed=config["sample"]["seed"])
    write_table(sample.data.to_table(), sample.truth, table)
    truncated = " --truncated" if population.log10_flux_limit is not None else ""
    correlated = " --correlated" if population.correlation else ""
    return (
        f"{len(sample.data)} simulated bursts with {sample.data.num_intervals} intervals in {table}\n"
        f"{format_truth(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii --data {table}{truncated}{correlated}"
    )


def simulate_spectra(config: Mapping[str, Any], folder: Path, *, num: int | None, overwrite: bool) -> str:
    """Draw a population of bursts with counts and write a catalogue and one folder of OGIP files for each burst.

    Parameters
    ----------
    config : mapping
        As in `simulate`, with fields of `BurstSpectraPopulation` and the option ``spectrum`` of the model.
    folder : path
        Output folder; must be new or empty unless ``overwrite``.
    num : int, optional
        Number of bursts; 10 by default.
    overwrite : bool
        Whether to replace existing files.

    Returns
    -------
    str
        Report: files written, true values, and the command that fits them.

    Raises
    ------
    ConfigError
        For a design, an unknown name, or a value of the wrong type.
    FileExistsError
        If the folder is not empty.
    """
    from hbm_jax.data import BurstSpectraPopulation, write_burst_spectra

    refuse_design(
        config,
        "simulate golenetskii-counts: expected no --design; found {found}. Simulate a population (--num, --set "
        "population.num_intervals=8), or draw a sample in Python with "
        "hbm_jax.models.GolenetskiiCounts().simulate(key, data).",
    )
    num = number_of(num, NUM_SPECTRA)
    known = {"pairs": (*PAIRS, "alpha", "beta"), "scalars": ("intrinsic_scatter",), "shared": ("spectrum",)}
    fields = fields_of(config, BurstSpectraPopulation, what="bursts", **known)
    if "spectrum" in config["model"]:
        fields["spectrum"] = read_value(config["model"]["spectrum"], str, "model.spectrum")
    refuse_full_folder(folder, overwrite)
    population = BurstSpectraPopulation(**fields)
    sample = population.draw(num, seed=config["sample"]["seed"])
    catalog = write_burst_spectra(folder, sample, overwrite=overwrite)
    spectrum = "" if population.spectrum == "band" else f" --spectrum {population.spectrum}"
    return (
        f"{len(sample.bursts)} simulated bursts in {catalog}, with one folder for each next to it\n"
        f"kept those of {int(sample.truth['num_drawn'])} drawn with a signal-to-noise ratio of at least "
        f"{population.threshold:g}\n"
        f"{format_truth(sample.truth)}\n"
        f"fit them with: hbm-jax fit golenetskii-counts --catalog {catalog}{spectrum}"
    )
